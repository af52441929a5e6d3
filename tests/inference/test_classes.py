"""The classes of files as people read them."""

from pathlib import Path

import numpy as np

from xmodal_jax.inference.classes import likeliest_classes, to_records
from xmodal_jax.inference.model import Classification


def test_the_likeliest_classes_and_records():
    scores = np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]], np.float32)
    result = Classification.from_scores(("a", "b", "c"), scores)
    best = likeliest_classes(result, 2)
    assert [[name for name, _ in row] for row in best] == [["b", "c"], ["a", "c"]]
    np.testing.assert_allclose([[s for _, s in row] for row in best], [[0.7, 0.2], [0.4, 0.4]])
    records = to_records([Path("x.png"), Path("y.png")], {"colour": result})
    assert records[0]["file"] == "x.png" and records[1]["colour"]["class"] == "a"
    assert list(records[0]["colour"]["scores"]) == ["a", "b", "c"]
