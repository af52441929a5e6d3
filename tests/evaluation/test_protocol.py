"""The scores of a space against scikit-learn and NumPy, on embeddings that are looked up by the picture's number."""

import dataclasses

import numpy as np
import pytest

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.protocol import EmbeddingFunctions, Protocol, evaluate_space
from xmodal_jax.metrics.retrieval import ranks

CLASSES = ("cat", "dog", "cow")
DIM, COUNT = 6, 240
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, COUNT)
CENTRES = RNG.normal(size=(3, DIM))


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


IMAGES = unit(CENTRES[LABELS] + 0.9 * RNG.normal(size=(COUNT, DIM)))
TEXTS = unit(CENTRES + 0.3 * RNG.normal(size=(3, DIM)))


def split(start, stop, **fields):
    """Examples whose picture holds their number, with their class as label and caption."""
    numbers = np.arange(start, stop)
    image = np.zeros((len(numbers), 1, 2, 3), np.uint8)
    image[:, 0, 0, 0], image[:, 0, 1, 0] = numbers // 256, numbers % 256
    labels = LABELS[start:stop]
    captions = np.array([CLASSES[k] for k in labels], object)
    arrays = {"image": image, "caption": captions, "label": labels.astype(np.int32), **fields}
    return ArraySource(arrays, class_names=CLASSES)


def embed_texts(texts):
    return TEXTS[[CLASSES.index(text) for text in texts]]


def embed_source(source):
    batch = source.batch(np.arange(len(source)))
    numbers = batch["image"][:, 0, 0, 0].astype(int) * 256 + batch["image"][:, 0, 1, 0]
    return {"image": IMAGES[numbers], "text": embed_texts(batch["caption"])}


SPACE = EmbeddingFunctions(embed_source, embed_texts, scale=10.0)
TRAIN, VALIDATION, TEST = split(0, 120), split(120, 160), split(160, COUNT)
PROTOCOL = Protocol(shots=7, neighbours=3, resamples=200, probe_examples=120)


@pytest.fixture(scope="module")
def scores():
    return evaluate_space(SPACE, TRAIN, VALIDATION, TEST, PROTOCOL)


def test_all_scores_are_those_of_scikit_learn(scores):
    linear_model = pytest.importorskip("sklearn.linear_model")
    neighbors = pytest.importorskip("sklearn.neighbors")
    tested, labels = IMAGES[160:], LABELS[160:]
    assert scores["image_zero_shot/accuracy"].value == np.mean((tested @ TEXTS.T).argmax(1) == labels)
    accuracy = {}
    for weight in (0.1, 1.0, 10.0, 100.0):
        probe = linear_model.LogisticRegression(C=weight, max_iter=1000).fit(IMAGES[:120], LABELS[:120])
        accuracy[weight] = (
            probe.score(IMAGES[120:160], LABELS[120:160]),
            -weight,
            probe.score(tested, labels),
        )
    assert scores["image_linear_probe/accuracy"].value == pytest.approx(max(accuracy.values())[2])
    rng = np.random.default_rng(0)
    shots = np.concatenate([rng.permutation(np.flatnonzero(LABELS[:120] == k))[:7] for k in range(3)])
    peer = neighbors.KNeighborsClassifier(3, metric="cosine").fit(IMAGES[shots], LABELS[shots])
    assert scores["image_few_shot/accuracy"].value == pytest.approx(peer.score(tested, labels))


def test_retrieval_is_by_the_meaning_of_captions(scores):
    """With three captions, all pictures of a class are correct results of its caption."""
    tested, labels = IMAGES[160:], LABELS[160:]
    texts = TEXTS[labels]
    to_text = ranks(tested, texts, query_ids=labels, gallery_ids=labels)
    to_image = ranks(texts, tested, query_ids=labels, gallery_ids=labels)
    for k in (1, 5, 10):
        assert scores[f"image_to_text/recall@{k}"].value == np.mean(to_text <= k)
        assert scores[f"text_to_image/recall@{k}"].value == np.mean(to_image <= k)


def test_intervals_hold_the_scores_and_calibration_has_none(scores):
    for name, (value, low, high) in scores.items():
        if name.endswith("calibration_error"):
            assert np.isnan([low, high]).all() and 0 <= value <= 1
        else:
            assert low <= value <= high and high - low < 0.3, name


def test_examples_without_a_class_or_a_picture_do_not_count():
    labels = LABELS[160:].astype(np.int32).copy()
    labels[:30] = -1
    test = split(160, COUNT, label=labels, present={"image": np.arange(80) < 70, "text": np.ones(80, bool)})
    scores = evaluate_space(SPACE, TRAIN, VALIDATION, test, PROTOCOL)
    counted = slice(190, 230)
    expected = np.mean((IMAGES[counted] @ TEXTS.T).argmax(1) == LABELS[counted])
    assert scores["image_zero_shot/accuracy"].value == pytest.approx(expected)


@pytest.mark.parametrize("gallery", [None, 20, 80])
def test_a_test_example_is_embedded_once(gallery):
    """For retrieval and for classification, whether or not retrieval searches all of them."""
    embedded = []

    def embed_and_count(source):
        numbers = source.batch(np.arange(len(source)))["image"][:, 0, :, 0].astype(int) @ [256, 1]
        embedded.extend(number for number in numbers.tolist() if number >= 160)
        return embed_source(source)

    protocol = dataclasses.replace(PROTOCOL, gallery=gallery)
    counted = SPACE._replace(embed_source=embed_and_count)
    scores = evaluate_space(counted, TRAIN, VALIDATION, TEST, protocol)
    assert sorted(embedded) == list(range(160, COUNT))
    expected = np.mean((IMAGES[160:] @ TEXTS.T).argmax(1) == LABELS[160:])
    assert scores["image_zero_shot/accuracy"].value == expected


def test_what_a_data_set_or_a_space_lacks_is_left_out():
    nothing = split(160, COUNT, label=np.full(80, -1, np.int32))
    only_retrieval = evaluate_space(SPACE, TRAIN, VALIDATION, nothing, PROTOCOL)
    assert {name.split("/")[0] for name in only_retrieval} == {"image_to_text", "text_to_image"}
    without_texts = SPACE._replace(
        embed_source=lambda source: {"image": embed_source(source)["image"]}, embed_texts=None, scale=None
    )
    scores = evaluate_space(without_texts, TRAIN, VALIDATION, TEST, PROTOCOL)
    assert set(scores) == {"image_linear_probe/accuracy", "image_few_shot/accuracy"}
    with pytest.raises(ValueError, match="--protocol.shots must be at least 1"):
        Protocol(shots=0)
