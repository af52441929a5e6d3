"""Trained classifiers by several modalities on new data."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from tests.inference.runs import COLOURS, plain_picture, png_bytes, save_run
from tests.models.test_fusion import CONFIG, still
from tests.support import random_params
from xmodal_jax.core import parts
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.evaluation import attention
from xmodal_jax.inference import load, overlay
from xmodal_jax.models.fusion import make_fusion, make_token_attention
from xmodal_jax.models.towers import precompute_spectrograms
from xmodal_jax.nets.fusion import ConcatenationConfig, FusionKind

ANSWERS = {"answer": ("yes", "no", "red")}
TASKS = {"action": ("grow", "turn"), "colour": COLOURS}
LENGTH, RATE, SECONDS = 7, 1009, 1.3
RNG = np.random.default_rng(0)


def pictures(count):
    return [RNG.integers(0, 256, (11, 11, 3)).astype(np.uint8) for _ in range(count)]


def sounds(count):
    lengths = range(601, 601 + 7 * count, 7)
    return [(RNG.integers(-9000, 9000, n).astype(np.int16), RATE) for n in lengths]


def save_fusion(folder, modalities, classes, fusion=None):
    """A run with random parameters; its training batches have several examples in a row."""
    features = dataclasses.replace(CONFIG.features, sample_rate=RATE, window=64, hop=16)
    config = dataclasses.replace(still(CONFIG), features=features, fusion=fusion or still(CONFIG).fusion)
    tokenizer = train_tokenizer(["what colour is the red star", "is it blue"], "word")
    example = {"index": np.zeros(1, np.int32)}
    for m in modalities:
        kind = m.partition("_")[0]
        example |= {
            "image": {m: np.zeros((1, 11, 11, 3), np.uint8)},
            "text": {m: np.ones((1, LENGTH), np.int32), f"{m}_mask": np.ones((1, LENGTH), bool)},
            "audio": {m: np.zeros((1, 1311), np.int16), f"{m}_mask": np.ones((1, 1311), bool)},
        }[kind]
    counts = {target: len(names) for target, names in classes.items()}
    method = make_fusion(config, modalities, counts, vocab_size=tokenizer.vocab_size)
    params = random_params(method.init, jax.random.key(0), example)
    shapes = {k: (3, *v.shape[1:]) if k.startswith("text") else v.shape[1:] for k, v in example.items()}
    text = any(m.startswith("text") for m in modalities)
    prepare = FittedTransforms(TokenizeTransform(tokenizer, LENGTH) if text else None)
    metadata = {"tokenizer": None} | prepare.metadata
    options = {"sample_rate": RATE, "max_seconds": SECONDS}
    return save_run(
        folder, {"model": config, "input": options}, params, kind="fusion", modalities=modalities,
        classes=classes, shapes=shapes, **metadata,
    )  # fmt: skip


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    return load(save_fusion(tmp_path_factory.mktemp("questions"), ("text", "image"), ANSWERS))


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    return load(save_fusion(tmp_path_factory.mktemp("commands"), ("image", "audio"), TASKS))


def softmax(logits):
    e = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_questions_about_one_picture(answering):
    """The same as one example at a time, and as rows of several questions, as training has them."""
    (picture,), questions = pictures(1), ["what colour is the star", "is it red", "is it blue"]
    result = answering.classify(image=png_bytes(plain_picture("red", (30, 20))), text=questions)["answer"]
    assert result.classes == ANSWERS["answer"] and result.scores.shape == (3, 3)
    result = answering.classify(image=picture, text=questions)["answer"]
    np.testing.assert_allclose(result.scores.sum(axis=1), 1, rtol=1e-5)
    for k, question in enumerate(questions):
        alone = answering.classify(images=[picture], texts=[question])["answer"]
        np.testing.assert_allclose(alone.scores[0], result.scores[k], atol=2e-6)
    assert answering.answer(image=picture, text=questions) == result.names
    tokens, mask = answering.format.transform.tokenizer.encode_batch(questions, LENGTH)
    row = {
        "image": picture[None],
        "text": tokens[None],
        "text_mask": mask[None],
        "index": np.zeros(1, np.int32),
    }
    logits = np.asarray(jax.jit(answering.method.predict)(answering.params, row).logits["answer"])
    np.testing.assert_allclose(result.scores, softmax(logits), atol=2e-6)
    assert result.names == [ANSWERS["answer"][k] for k in logits.argmax(axis=1)]


def test_any_modality_may_be_missing(answering):
    (picture,), question = pictures(1), "is it red"
    both = answering.classify(image=[picture, picture, None], text=[question, None, question])[
        "answer"
    ].scores
    without_text = answering.classify(image=picture)["answer"].scores[0]
    without_image = answering.classify(image=None, text=question)["answer"].scores[0]
    np.testing.assert_allclose(both[1], without_text, atol=2e-6)
    np.testing.assert_allclose(both[2], without_image, atol=2e-6)
    assert np.abs(both[0] - without_text).max() > 1e-4 and np.abs(both[0] - without_image).max() > 1e-4
    assert answering.answer(image=[], text=question) == [] == answering.attention(text=[])
    assert answering.classify(text=[])["answer"].scores.shape == (0, 3)


def test_waveforms_are_what_frames_computed_once_were(commanded):
    """In training the spectrograms were computed once, of waveforms padded to the longest."""
    images, waves = pictures(5), sounds(5)
    result = commanded.classify(image=images, audio=waves)
    audio, mask = np.zeros((5, 1311), np.int16), np.zeros((5, 1311), bool)
    for k, (wave, _) in enumerate(waves):
        audio[k, : len(wave)], mask[k, : len(wave)] = wave, True
    batch = {
        "image": np.stack(images),
        "audio": audio,
        "audio_mask": mask,
        "index": np.arange(5, dtype=np.int32),
    }
    frames = precompute_spectrograms(commanded.config.features)(batch)
    assert frames["audio"].ndim == 3
    logits = jax.jit(commanded.method.predict)(commanded.params, frames).logits
    for target, names in TASKS.items():
        np.testing.assert_allclose(result[target].scores, softmax(np.asarray(logits[target])), atol=2e-5)
        assert result[target].classes == names
    answers = commanded.answer(image=images, audio=waves)
    assert [a["colour"] for a in answers] == result["colour"].names and set(answers[0]) == set(TASKS)
    assert "action: grow, turn" in commanded.describe() and "at most 1.3 s" in commanded.describe()


def test_attention_is_that_of_the_method(answering):
    (picture,), questions = pictures(1), ["what colour is the star", "is it red"]
    examples = answering.attention(image=[picture, None], text=questions)
    assert set(examples[0]) == {"image", "text"} and set(examples[1]) == {"text"}
    tokens, mask = answering.format.transform.tokenizer.encode_batch(questions[:1], LENGTH)
    batch = {"image": picture[None], "text": tokens, "text_mask": mask, "index": np.zeros(1, np.int32)}
    counts = {"answer": 3}
    vocab_size = answering.format.transform.vocab_size
    attend = make_token_attention(answering.config, ("text", "image"), counts, vocab_size=vocab_size)
    weights = jax.jit(attend)(answering.params, batch)
    of_image, of_text = examples[0]["image"], examples[0]["text"]
    np.testing.assert_allclose(of_image.weights.ravel(), weights["image"][0], rtol=1e-4)
    np.testing.assert_allclose(of_text.weights, weights["text"][0][: len(of_text.weights)], rtol=1e-4)
    assert of_text.content[1:5] == ["what", "colour", "is", "the"] and len(of_text.content) == 7
    np.testing.assert_array_equal(of_image.content, picture)


def test_the_grid_has_the_proportions_of_the_image():
    grid = attention._grid(np.arange(6), 1, 16, 24)[0]
    assert grid.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert attention._grid(np.arange(12), 2, 24, 16).shape == (2, 3, 2)
    assert [attention._grid(np.arange(n), 1, 11, 11).shape[1:] for n in (1, 9, 11, 49)] == [
        (1, 1), (3, 3), (3, 3), (7, 7),
    ]  # fmt: skip


def test_dark_where_there_is_little_attention():
    grid = np.zeros((2, 2))
    grid[0, 1] = 0.7
    shown = np.asarray(overlay(plain_picture("white", (13, 17)), grid)).astype(int)
    assert (
        shown.shape == (17, 13, 3) and shown[0, -1].min() == 255 and shown[-1, 0].max() == round(0.15 * 255)
    )
    red = np.asarray(overlay(np.full((5, 7, 3), (200, 0, 0), np.uint8), np.ones((1, 1))))
    assert red.shape == (5, 7, 3) and (red == (200, 0, 0)).all()
    assert overlay(np.zeros((5, 7, 1), np.uint8), grid).size == (7, 5)
    with pytest.raises(ValueError, match=r"shape \[h, w\], got \(3,\)"):
        overlay(plain_picture("red"), np.ones(3))


def test_modalities_with_names_of_their_own_and_runs_that_were_moved(tmp_path):
    run = save_fusion(tmp_path / "run", ("text_es", "image", "image_2"), ANSWERS)
    inputs = dict(text_es=["is it red", "es rojo"], image=pictures(2), image_2=[*pictures(1), None])
    here = load(run)
    shutil.move(run, tmp_path / "elsewhere")
    there = load(tmp_path / "elsewhere")
    scores = here.classify(**inputs)["answer"].scores
    np.testing.assert_array_equal(scores, there.classify(**inputs)["answer"].scores)
    swapped = dict(inputs, image=inputs["image_2"], image_2=inputs["image"])
    assert np.abs(there.classify(**swapped)["answer"].scores - scores).max() > 1e-4
    assert there.attention(**inputs)[0]["text_es"].content[1:4] == ["is", "it", "red"]


def test_a_fusion_without_attention_has_no_such_method(tmp_path):
    model = load(save_fusion(tmp_path, ("text", "image"), ANSWERS, ConcatenationConfig(width=8, depth=1)))
    assert model.actions == ("classify", "answer") and "attention" not in model.describe()
    with pytest.raises(ValueError, match="the fusion 'concat' has no attention"):
        model.attention(text="red")


@pytest.mark.parametrize("name", parts.parts_of(FusionKind))
def test_every_fusion_says_whether_it_has_attention(name):
    part = parts.parts_of(FusionKind)[name]
    sizes = {k: v for k, v in dict(width=8, depth=1, heads=2).items() if k in parts.options_of(part)}
    config, classes = dataclasses.replace(still(CONFIG), fusion=part(**sizes)), {"answer": 2}
    image = jax.ShapeDtypeStruct((1, 11, 11, 3), np.uint8)
    text = jax.ShapeDtypeStruct((1, 5), np.int32)
    batch = {"image": image, "text": text, "index": jax.ShapeDtypeStruct((1,), np.int32)}
    arguments = (config, ("text", "image"), classes)
    params = jax.eval_shape(make_fusion(*arguments, vocab_size=9).init, jax.random.key(0), batch)
    attention = jax.eval_shape(make_token_attention(*arguments, vocab_size=9), params, batch)
    assert bool(attention) == part.has_attention


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "at least one modality: text, image"),
        (dict(audio=[b""]), "no modality 'audio'; it has text, image"),
        (dict(image=["a.png"] * 2, text=["a"] * 3), "same number of inputs, got {'image': 2, 'text': 3}"),
        (dict(image=["missing.png"], text="a"), r"image 0 \(missing.png\): No such file"),
        (dict(text=[None]), "example 0 has none of text"),
    ],
)
def test_mistakes_are_explained(answering, inputs, message):
    with pytest.raises(ValueError, match=message):
        answering.classify(**inputs)
