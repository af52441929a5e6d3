"""A trained shared embedding space on new data."""

import shutil

import jax
import numpy as np
import pytest

from experiments import evaluate
from tests.inference.runs import COLOURS, coloured_pictures, plain_picture, png_bytes
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.splits import Splits
from xmodal_jax.inference import load
from xmodal_jax.pretrained.export import save_model
from xmodal_jax.train.checkpoint import DamagedCheckpoint, RestoredCheckpoint
from xmodal_jax.transfer.export import export_run
from xmodal_jax.transfer.exported import restore_exported, write_exported


def test_it_knows_the_colours(model):
    pictures = [plain_picture(c, (30, 20)) for c in ("#e00000", "#00d000", "#0000f0")]
    result = model.classify(COLOURS, images=pictures)
    assert result.names == list(COLOURS) and result.classes == COLOURS
    np.testing.assert_allclose(result.scores.sum(axis=1), 1, rtol=1e-5)
    similarity = model.similarity(model.embed(images=pictures), model.embed(texts=COLOURS))
    assert similarity.argmax(axis=1).tolist() == [0, 1, 2]
    logits = np.float64(model.scale) * similarity  # softmax in NumPy, in float64
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result.scores, probabilities, rtol=1e-3)


def test_embeddings_are_those_of_the_method(model):
    source = coloured_pictures(5, seed=1)
    whole = model.embed_source(source)
    np.testing.assert_allclose(model.embed(images=source.arrays["image"]), whole["image"], atol=1e-6)
    np.testing.assert_allclose(model.embed(texts=list(source.arrays["caption"])), whole["text"], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(whole["image"], axis=1), 1, rtol=1e-5)
    one_at_a_time = [model.embed(images=x)[0] for x in source.arrays["image"]]
    np.testing.assert_allclose(one_at_a_time, whole["image"], atol=1e-6)
    assert model.embed(texts=[]).shape == (0, model.dim) == (0, 8)


def test_numbers_of_inputs_share_programs(model):
    with jax.log_compiles(False):
        before = model.method.predict  # one function object for all calls
        for count in (3, 4, 5, 6, 7, 8):
            model.embed(images=[plain_picture("red")] * count)
        assert model.method.predict is before
    from xmodal_jax.evaluation.embeddings import _compiled

    assert _compiled(before, None)._cache_size() <= 8  # images and texts of 1, 4, 8 and a few more examples


@pytest.mark.parametrize("kind", ["shift", "center"])
def test_the_gap_is_corrected_in_all_that_the_model_does(model, kind):
    """Against the same in NumPy; the model itself stays as it is."""
    source = coloured_pictures(30, seed=2)
    before = model.embed_source(source)
    means = {m: np.float64(x).mean(axis=0) for m, x in before.items()}
    common = np.mean(list(means.values()), axis=0) if kind == "shift" else 0.0
    corrected = model.correct_gap(source, kind=kind)
    after = corrected.embed_source(source)
    for modality, mean in means.items():
        moved = before[modality] - (mean - common)
        expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        np.testing.assert_allclose(after[modality], expected, atol=1e-5)
    pictures = source.arrays["image"]
    np.testing.assert_allclose(corrected.embed(images=pictures), after["image"], atol=1e-6)
    batches = np.concatenate([x["text"] for x in corrected.embed_batches(source, batch_size=15)])
    np.testing.assert_allclose(batches, after["text"], atol=1e-6)
    found = corrected.search(corrected.index(images=pictures), texts=list(COLOURS), k=1)
    captions = source.arrays["caption"]
    assert [captions[int(name)] for (name,) in found.names] == list(COLOURS)
    assert corrected.classify(COLOURS, images=pictures).names == captions.tolist()
    np.testing.assert_array_equal(model.embed_source(source)["image"], before["image"])
    assert model.gap_correction is None and corrected.gap_correction is not None


def test_evaluate_scores_the_corrected_space(model, monkeypatch):
    """Corrected by the means of training examples."""
    train, test = coloured_pictures(30, seed=2), coloured_pictures(10, seed=3)
    monkeypatch.setattr(evaluate, "open_splits_for_model", lambda *args: Splits(train, test, {"test": test}))
    monkeypatch.setattr(evaluate, "evaluate_space", lambda space, *splits: space)
    spaces = {
        kind: evaluate.evaluate(
            evaluate.Config(runs=("run",), data=("data",), gap_correction=kind), model, "data", BadExamples()
        )
        for kind in (None, "center")
    }
    expected = {None: model, "center": model.correct_gap(train, kind="center")}
    for kind, space in spaces.items():
        vectors, words = space.embed_source(test), space.embed_texts(["red", "blue"])
        np.testing.assert_array_equal(vectors["image"], expected[kind].embed_source(test)["image"])
        np.testing.assert_array_equal(words, expected[kind].embed(texts=["red", "blue"]))
    assert np.abs(vectors["image"] - model.embed_source(test)["image"]).max() > 0.01


def test_an_index_of_other_embeddings_is_refused_after_a_correction(model):
    source = coloured_pictures(6, seed=2)
    corrected, digest = model.correct_gap(source), model.digest
    assert corrected.digest == model.correct_gap(source).digest != digest == model.digest
    assert corrected.digest != model.correct_gap(source, strength=0.5).digest
    pictures = source.arrays["image"]
    corrected.search(corrected.index(images=pictures), texts=["red"])
    for index, searching in (
        (model.index(images=pictures), corrected),
        (corrected.index(images=pictures), model),
    ):
        with pytest.raises(ValueError, match="the index was made by another checkpoint"):
            searching.search(index, texts=["red"])
    with pytest.raises(ValueError, match="examples must be at least 1"):
        model.correct_gap(source, examples=0)
    with pytest.raises(ValueError, match="fitted to image, not to text"):
        images = coloured_pictures(6)
        images = type(images)({"image": images.arrays["image"]})
        model.correct_gap(images).embed(texts=["red"])


def test_a_run_that_was_moved_works(run, model, tmp_path):
    shutil.copytree(run, tmp_path / "elsewhere")
    moved = load(tmp_path / "elsewhere")
    picture = png_bytes(plain_picture("red"))
    np.testing.assert_array_equal(moved.embed(images=picture), model.embed(images=picture))


def test_it_says_what_it_takes_and_gives(model):
    text = model.describe()
    for words in ("contrastive", "60 training steps", "8 x 8 pixels", "classify(classes", "embed(", "a str"):
        assert words in text


def test_classes_and_prompts_of_any_sequence(model):
    pictures = [plain_picture("#e00000"), plain_picture("#0000f0")]
    expected = model.classify(list(COLOURS), ["a {}", "{} {}"], images=pictures)
    for kind in (np.array, iter, tuple, dict.fromkeys):
        result = model.classify(kind(COLOURS), kind(["a {}", "{} {}"]), images=pictures)
        assert result.names == expected.names and result.classes == expected.classes
        np.testing.assert_array_equal(result.scores, expected.scores)
    with pytest.raises(ValueError, match="the class 'red' is named twice"):
        model.classify(["red", "green", "red"], images=pictures)
    for a, b in ((np.zeros((2, 8)), np.zeros((2, 7))), (np.zeros(8), np.zeros((1, 8)))):
        with pytest.raises(ValueError, match=r"embeddings have the shapes \[N, dim\]"):
            model.similarity(a, b)


def test_mistakes_are_explained(model, tmp_path):
    with pytest.raises(ValueError, match=r"inputs of one modality \(text, image\), got none"):
        model.embed()
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        model.embed(texts=["a"], batch_size=0)
    with pytest.raises(ValueError, match="got text, image"):
        model.embed(texts=["a"], images=[plain_picture("red")])
    with pytest.raises(ValueError, match="no modality 'audio'; it has text, image"):
        model.embed(audio=[b""])
    with pytest.raises(ValueError, match="classes is a list of names"):
        model.classify("red", images=[plain_picture("red")])
    with pytest.raises(ValueError, match="a prompt has {} where the name .* got 'a photo'"):
        model.classify(["red"], ["a photo"], images=[plain_picture("red")])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(ValueError, match="holds the seed"):
        load(model.path, seed=3)


def test_an_exported_run_works_like_the_run(run, model, tmp_path):
    export_run(run, tmp_path / "export")
    exported = load(tmp_path / "export")
    picture = plain_picture("red")
    np.testing.assert_array_equal(exported.embed(images=picture), model.embed(images=picture))
    assert (exported.step, exported.scale) == (model.step, model.scale)
    with pytest.raises(ValueError, match="leave out best and seed"):
        load(tmp_path / "export", best=True)


@pytest.mark.parametrize("name", ["run.json", "parameters/model.safetensors"])
def test_a_changed_byte_of_an_export_is_found(run, tmp_path, name):
    export_run(run, tmp_path / "export")
    file = tmp_path / "export" / name
    content = bytearray(file.read_bytes())
    for position in np.linspace(0, len(content) - 1, 7).astype(int):
        changed = content.copy()
        changed[position] ^= 1
        file.write_bytes(changed)
        try:
            loaded = restore_exported(tmp_path / "export")
        except DamagedCheckpoint as error:
            assert "export the run again" in str(error)
        else:  # a space of the JSON's layout became another space
            assert name == "run.json" and loaded.metadata == load(run).metadata


def test_parts_that_hold_nothing_come_back(tmp_path):
    params = {"generator": {"kernel": jax.numpy.ones(3)}, "variables": {}, "loss": {"a": {}, "b": {}}}
    restored = RestoredCheckpoint(params, {"config": {}}, 5)
    arrays = [("generator/kernel", np.ones(3, np.float32))]
    save_model(tmp_path / "parameters", arrays, card="")
    write_exported(tmp_path, restored)
    loaded = restore_exported(tmp_path)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params) and loaded.step == 5
    assert loaded.params["loss"] == {"a": {}, "b": {}}
