"""A data set that is too large for memory: its files are decoded when they are needed."""

import json

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data import media
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.splits import read_captions
from xmodal_jax.data.views import Subset

LAZY = dict(progress=False, memory_limit=1, check_files=False)


@pytest.fixture
def folder(tmp_path):
    """Seven images of one colour each, 10 k, of which the third and the last are damaged."""
    for k in range(7):
        Image.new("RGB", (8, 8), (10 * k,) * 3).save(tmp_path / f"{k}.png")
    for k in (2, 6):
        (tmp_path / f"{k}.png").write_bytes((tmp_path / f"{k}.png").read_bytes()[:-20])
    rows = [{"file_name": f"{k}.png", "text": [f"a {k}", f"b {k}"], "label": k % 3} for k in range(7)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_damaged_file_is_found_when_it_is_needed(folder):
    source = FolderSource(folder, "all", **LAZY)
    assert len(source) == 14 and not source.in_memory
    assert source.batch(np.array([1]))["image"][0, 0, 0].tolist() == [0, 0, 0]
    with pytest.raises(BadExampleError, match=r"metadata.jsonl:3: the file '2.png' cannot be decoded"):
        source.batch(np.array([0, 5]))


def test_the_next_row_takes_the_place_of_a_damaged_one(folder):
    bad_examples = BadExamples("skip")
    source = FolderSource(folder, "all", bad_examples=bad_examples, **LAZY)
    batch = source.batch(np.arange(14))
    expected = [0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 5, 5, 0, 0]
    assert (batch["image"][:, 0, 0, 0] // 10).tolist() == expected
    assert batch["caption"].tolist() == [f"{'ab'[k % 2]} {n}" for k, n in enumerate(expected)]
    assert batch["label"].tolist() == [n % 3 for n in expected]
    assert [(bad.line, len(bad_examples)) for bad in bad_examples.items] == [(3, 2), (7, 2)]
    source.batch(np.arange(14))  # found again, counted once
    assert len(bad_examples) == 2
    # The same whatever was read before, and in whatever order.
    other = FolderSource(folder, "all", bad_examples=BadExamples("skip"), **LAZY)
    for k in reversed(range(14)):
        assert other.batch(np.array([k]))["image"].tobytes() == batch["image"][k].tobytes()


def test_nothing_that_can_be_decoded_is_an_error(folder):
    source = FolderSource(folder, "all", bad_examples=BadExamples("skip"), **LAZY)
    for k in range(7):
        (folder / f"{k}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no usable example .7 bad ones left out"):
        FolderSource(folder, "all", bad_examples=BadExamples("skip"), **LAZY)
    with pytest.raises(ValueError, match="no row can be decoded"):
        source.batch(np.array([3]))


def test_captions_are_read_without_decoding(folder, monkeypatch):
    source = FolderSource(folder, "all", bad_examples=BadExamples("skip"), **LAZY)
    monkeypatch.setattr(media, "decode_image", None)  # calling it raises an error
    assert read_captions(Subset(source, np.array([1, 4]))) == ["b 0", "a 2"]
    assert source.image_sizes(np.array([0, 3]))["image"].tolist() == [[8, 8], [8, 8]]
    assert source.presence()["image"].all() and source.class_labels().tolist()[:4] == [0, 0, 1, 1]


def test_the_same_batches_as_from_memory(folder):
    """Of the files that can be decoded: a loader gives equal batches, however they are read."""
    for k in (2, 6):
        (folder / f"{k}.png").unlink()
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(lines[k] for k in (0, 1, 3, 4, 5)))
    kept = FolderSource(folder, "all", progress=False)
    loaders = [Loader(s, batch_size=4, seed=0) for s in (kept, FolderSource(folder, "all", **LAZY))]
    for _ in range(7):
        one, other = (next(loader) for loader in loaders)
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    for loader in loaders:
        loader.close()
