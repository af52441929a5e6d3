"""Several runs beside each other."""

import numpy as np

from xmodal_jax.report import comparison
from xmodal_jax.report.page import Report


def test_samples_are_in_the_row_of_their_run():
    image = np.zeros((2, 2, 3), np.uint8)
    report = Report("t")
    comparison.add_samples(report, {"hinge": [image, image], "r3gan": [image]})
    html = report.html()
    assert html.count("<img") == 3 and html.index("hinge") < html.index("<img") < html.index("r3gan")
    none = Report("t")
    comparison.add_samples(none, {"hinge": []})
    assert "Samples" not in none.html()
