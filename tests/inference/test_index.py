"""An index of embeddings: built in memory, searched, saved and loaded."""

import json

import numpy as np
import pytest

from tests.inference.runs import COLOURS, plain_picture
from xmodal_jax.inference import DamagedIndex, Index
from xmodal_jax.inference.index_files import shard_summary


def small_index(count=11, dim=5):
    """Unit vectors of two modalities, of which two examples lack the second."""
    rng = np.random.default_rng(0)
    vectors = {m: rng.standard_normal((count, dim)).astype(np.float32) for m in ("image", "text")}
    vectors = {m: x / np.linalg.norm(x, axis=1, keepdims=True) for m, x in vectors.items()}
    present = {"text": np.arange(count) % 5 != 3}
    vectors["text"][~present["text"]] = 0
    names = [f"{k}.png" for k in range(count - 2)] + ["Straße\u2028\n2.png", "\udcff.png"]
    data = {"spec": "folder:x", "split": "test", "options": {"columns": ["a=b"]}}
    return Index(vectors, names, "digest", present, np.arange(count) * 2, "runs/a", data)


def test_words_find_pictures(model, tmp_path):
    files = []
    for k, colour in enumerate(("#e00000", "#00d000", "#0000f0", "#c00000")):
        files.append(tmp_path / f"{k}.png")
        plain_picture(colour, (9, 12)).save(files[-1])
    index = model.index(images=files)
    assert index.modalities == ("image",) and len(index) == 4
    names, scores, indices = model.search(index, texts=COLOURS, k=2)
    assert [row[0] for row in names[1:]] == [str(files[1]), str(files[2])]
    assert set(names[0]) == {str(files[0]), str(files[3])} and indices.shape == scores.shape == (3, 2)
    similarity = model.similarity(model.embed(texts=COLOURS), model.embed(images=files))
    np.testing.assert_allclose(scores, np.take_along_axis(similarity, indices, axis=1), atol=1e-6)
    assert model.search(index, images=files[2]).names[0][0] == str(files[2])
    assert len(model.search(index, images=files[2]).names[0]) == 4  # all of fewer than k


def test_an_index_of_pairs_leaves_out_what_is_missing(model):
    pictures = [plain_picture(c) for c in ("#e00000", "#00d000", "#0000f0")]
    index = model.index(images=[pictures[0], None, pictures[2]], texts=["red", "green", None])
    assert repr(index) == "<Index of 3 examples: 2 of image, 2 of text>" and list(index.names) == [
        "0",
        "1",
        "2",
    ]
    assert set(model.search(index, texts=["blue"], modality="image").indices[0]) == {0, 2}
    assert set(model.search(index, images=pictures[0], modality="text").indices[0]) == {0, 1}
    with pytest.raises(ValueError, match="the index has image, text: choose one of them"):
        model.search(index, texts=["blue"])
    with pytest.raises(ValueError, match="there is no audio"):
        model.search(index, texts=["blue"], modality="audio")


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_it_is_what_was_saved(format, tmp_path):
    index = small_index()
    index.save(tmp_path / "index", format=format, shard_size=4)
    loaded = Index.load(tmp_path / "index")
    for modality in index.modalities:
        np.testing.assert_array_equal(loaded.embeddings[modality], index.embeddings[modality])
        np.testing.assert_array_equal(loaded.has(modality), index.has(modality))
    written = (
        [name.replace("\udcff", "\\udcff") for name in index.names] if format == "parquet" else index.names
    )
    assert loaded.names == written
    assert (loaded.model, loaded.run, loaded.data) == (index.model, index.run, index.data)
    np.testing.assert_array_equal(loaded.examples, index.examples)
    query = index.embeddings["text"][:2]
    np.testing.assert_array_equal(
        loaded.nearest(query, 20, modality="text").indices, index.nearest(query, 9, modality="text").indices
    )
    assert not list((tmp_path / "index").glob("*.part"))
    with pytest.raises(FileExistsError, match="is not empty"):
        index.save(tmp_path / "index")


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_damage_is_found(format, tmp_path):
    folder = tmp_path / "index"
    small_index().save(folder, format=format, shard_size=4)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for damaged in (content[:-3], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
            file.write_bytes(damaged)
            with pytest.raises(DamagedIndex, match=f"{file.name} holds other content than was written"):
                Index.load(folder)
        file.write_bytes(content)
    Index.load(folder)
    (folder / "shard-00001.json").unlink()
    with pytest.raises(
        ValueError, match=r"is not finished: shard 1 of 0..2 is missing. Run the same command"
    ):
        Index.load(folder)
    with pytest.raises(FileNotFoundError, match="is no index"):
        Index.load(tmp_path)


def test_a_later_version_is_refused(tmp_path):
    from xmodal_jax.train.checkpoint import seal

    small_index().save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    content = json.loads(path.read_text())["content"]
    path.write_text(json.dumps(seal({**content, "version": 99})))
    with pytest.raises(ValueError, match="has the version 99, this program reads 1"):
        Index.load(tmp_path / "index")
    assert shard_summary(tmp_path / "index", 0)["examples"] == 11


def test_an_index_of_another_model_is_refused(model):
    index = small_index(dim=model.dim)
    with pytest.raises(ValueError, match=r"made by another checkpoint \(runs/a\) than"):
        model.search(index, texts=["red"], modality="image")


def test_a_shard_holds_an_example_at_least(tmp_path):
    for size in (0, -1):
        with pytest.raises(ValueError, match="shard_size must be at least 1"):
            small_index().save(tmp_path / "index", shard_size=size)
    assert not (tmp_path / "index").exists()


def test_mistakes_are_explained(model):
    with pytest.raises(ValueError, match=r"2 names need as many entries of present\['image'\], got \(3,\)"):
        Index({"image": np.eye(2, dtype=np.float32)}, ["a", "b"], "", {"image": np.ones(3, bool)})
    index = small_index()
    with pytest.raises(ValueError, match="3 names need as many embeddings of image"):
        Index(index.embeddings, ["a", "b", "c"], "digest")
    with pytest.raises(ValueError, match="embedding 3 of text has the norm 0, not 1"):
        Index(index.embeddings, index.names, "digest")
    with pytest.raises(ValueError, match="one example at least"):
        Index({}, [], "digest")
    with pytest.raises(ValueError, match="there is no input"):
        model.index(images=[])
