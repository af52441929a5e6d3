import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import make_text_cleaner, open_splits
from xmodal_jax.evaluation import embeddings as evaluate
from xmodal_jax.train.parallel import make_mesh, state_layout
from xmodal_jax.types import Method

WORDS = ["red", "green", "blue"]


def labelled(n, seed):
    """Pictures of one colour each, with the colour's name: what a perfect model must classify perfectly."""
    labels = np.random.default_rng(seed).integers(0, 3, n).astype(np.int32)
    images = np.zeros((n, 4, 4, 3), np.uint8)
    images[np.arange(n), :, :, labels] = 200
    captions = np.array([f"a {WORDS[k]} picture" for k in labels], object)
    return ArraySource({"image": images, "caption": captions, "label": labels}, tuple(WORDS))


def tokenize(batch):
    ids = [[1 + next(k for k, w in enumerate(WORDS) if w in c)] for c in batch["caption"]]
    return {**batch, "text": np.array(ids, np.int32)}


def perfect(params, batch):
    out = {}
    if "image" in batch:
        out["image"] = jnp.eye(3)[batch["image"].mean(axis=(1, 2)).argmax(axis=1)]
    if "text" in batch:
        out["text"] = jnp.eye(3)[batch["text"][:, 0] - 1]
    return out


EMBED = evaluate.Embedder(Method(None, None, perfect), tokenize, batch_size=7)


def test_embeddings_come_in_order_without_the_padding():
    source = labelled(17, 0)
    found = EMBED(None, source)
    np.testing.assert_array_equal(found["image"].argmax(axis=1), source.arrays["label"])
    assert found["text"].shape == (17, 3)


def test_equal_captions_answer_each_other():
    gallery = evaluate.Gallery(labelled(19, 1), 11)
    assert len(gallery) == 11 and not gallery.distinct
    scores = evaluate.retrieval_scores(EMBED(None, gallery), ids=gallery.ids)
    assert scores["image_to_text/recall@1"] == scores["text_to_image/recall@1"] == 1.0


def test_missing_modalities_are_left_out_of_their_pair():
    x = np.eye(5, dtype=np.float32)
    wrong = x[[1, 0, 2, 3, 4]]
    present = {"image": np.array([False, False, True, True, True])}
    assert evaluate.retrieval_scores({"image": wrong, "text": x})["image_to_text/recall@1"] == 0.6
    assert evaluate.retrieval_scores({"image": wrong, "text": x}, present)["image_to_text/recall@1"] == 1.0


def test_classification_by_captions_and_by_templates():
    train, test = labelled(60, 2), labelled(30, 3)
    scores, confusion = evaluate.classification_scores(EMBED, None, train, test)
    assert scores == {"test/image_zero_shot_accuracy": 1.0, "test/image_linear_probe_accuracy": 1.0}
    np.testing.assert_array_equal(np.diag(confusion), np.bincount(test.arrays["label"]))
    templates = evaluate.class_prompts(train, ("one {}", "two {}"))
    assert templates == [[f"one {w}", f"two {w}"] for w in WORDS]
    braces = evaluate.class_prompts(train, ("{} is {}, {0} {x} {",))  # only {} stands for the name
    assert braces == [[f"{w} is {w}, {{0}} {{x}} {{"] for w in WORDS]
    with pytest.raises(ValueError, match="where the name of the class goes, got 'a photo'"):
        evaluate.class_prompts(train, ("a {}", "a photo"))
    assert evaluate.class_prompts(train, ()) == [[f"a {w} picture"] for w in WORDS]


def test_a_gallery_of_scenes_holds_distinct_meanings():
    options = DataOptions(train_size=60, modalities=("text", "image"), progress=False)
    gallery = evaluate.Gallery(open_splits("shapes", options, BadExamples()).tests["test"], 20)
    assert len(gallery) == 20 and gallery.distinct
    assert list(evaluate.directions(("text", "audio", "image")))[:2] == [("image", "text"), ("text", "image")]


def test_text_cleaning_by_name():
    assert make_text_cleaner("none") is None
    assert make_text_cleaner("lower")("A  Red Star") == "a red star"
    assert make_text_cleaner("stop")("There is A red Star") == "red star"


@pytest.mark.parametrize("fsdp", [1, 4])
def test_answers_do_not_depend_on_where_the_parameters_lie(fsdp):
    params = {"w": jax.random.normal(jax.random.key(0), (64, 96)), "b": jnp.arange(96.0)}
    rng = np.random.default_rng(0)
    source = ArraySource({"x": rng.normal(size=(37, 64)).astype(np.float32)})
    predict = lambda p, batch: {"y": batch["x"] @ p["w"] + p["b"][None, :], "row": batch["index"]}
    alone = evaluate.predict_all(predict, params, source, batch_size=11)
    np.testing.assert_array_equal(alone["row"], np.arange(37))
    spread = jax.device_put(params, state_layout(params, make_mesh(fsdp)))
    found = evaluate.predict_all(predict, spread, source, batch_size=11)  # 16 at a time, two on each device
    np.testing.assert_array_equal(found["row"], np.arange(37))
    np.testing.assert_allclose(found["y"], alone["y"], rtol=1e-5, atol=1e-5)


def test_a_progress_bar_of_long_predictions_changes_no_result(monkeypatch, capsys):
    """It counts the examples, without those of padding; short computations show none."""
    source = ArraySource({"vector": np.arange(10, dtype=np.float32).reshape(5, 2)})
    double = lambda params, batch: 2 * batch["vector"]
    silent = evaluate.predict_all(double, {}, source, batch_size=2, progress="doubling")
    assert capsys.readouterr().err == ""
    tqdm = evaluate.tqdm
    at_once = {"delay": 0.0, "mininterval": 0.0, "leave": True}
    monkeypatch.setattr(evaluate, "tqdm", lambda **options: tqdm(**options | at_once))
    shown = evaluate.predict_all(double, {}, source, batch_size=2, progress="doubling")
    assert "doubling: 100%" in (lines := capsys.readouterr().err) and "5/5" in lines and "2/5" in lines
    np.testing.assert_array_equal(shown, silent)
    np.testing.assert_array_equal(shown, evaluate.predict_all(double, {}, source, batch_size=2))
