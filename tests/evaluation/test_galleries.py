"""Retrieval where pictures have several captions, against the protocol of COCO and Flickr30k."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles.retrieval import coco_protocol
from tests.pictures import LAYOUTS, pictures_of, write_pictures
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.evaluation import embeddings as evaluate
from xmodal_jax.evaluation.latent_data import open_latent
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.report import alignment
from xmodal_jax.report.page import Report
from xmodal_jax.train.config import RunConfig
from xmodal_jax.types import Method


def open_pictures(folder, layout, **options):
    write_pictures(folder / "train", layout, **options)
    return FolderSource(folder, progress=False)


def perfect_embeddings(source, dim=15):
    """The embeddings of a model that tells all pictures apart, from their pixels and from their captions."""
    batch = source.batch(np.arange(len(source)))
    from_text = [int(caption.split()[1].rstrip(",")) for caption in batch["caption"]]
    units = np.eye(dim, dtype=np.float32)
    return {"image": units[batch["image"][:, 0, 0, 0]], "text": units[from_text]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_perfect_embeddings_find_everything(tmp_path, layout):
    gallery = evaluate.Gallery(open_pictures(tmp_path, layout), 500)
    assert len(gallery) == 75 and gallery.distinct and len(gallery.items["image"]) == 15
    scores = gallery.scores(perfect_embeddings(gallery))
    assert scores["image_to_text/recall@1"] == scores["text_to_image/recall@1"] == 1.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_the_protocol(tmp_path, layout):
    gallery = evaluate.Gallery(open_pictures(tmp_path, layout, pictures=29), 500)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(29, 7)).astype(np.float32)
    captions = (0.6 * np.repeat(images, 5, axis=0) + rng.normal(size=(145, 7))).astype(np.float32)
    scores = gallery.scores({"image": np.repeat(images, 5, axis=0), "text": captions}, "x/")
    want = coco_protocol(images, captions)
    assert 0.1 < want["text_to_image"]["recall@1"] < want["image_to_text"]["recall@5"] < 1
    got = {
        direction: {name: scores[f"x/{direction}/{name}"] for name in recalls}
        for direction, recalls in want.items()
    }
    assert got == {direction: pytest.approx(recalls) for direction, recalls in want.items()}


def test_the_limit_counts_pictures():
    """With all of their captions, wherever they stand in the data."""
    images = np.array([3, 1, 3, 2, 1, 3], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    group = np.array([30, 10, 30, 20, 10, 30], np.int32)
    captions = np.array([f"picture {k} {c}" for c, k in zip("abcdef", group // 10, strict=True)], object)
    gallery = evaluate.Gallery(ArraySource({"image": images, "caption": captions, "group": group}), 2)
    assert gallery.examples["caption"].tolist() == [captions[k] for k in (0, 1, 2, 4, 5)]
    assert gallery.items["image"].tolist() == [0, 1] and gallery.items["text"].tolist() == [0, 1, 2, 3, 4]
    assert gallery.representatives.tolist() == [0, 1]


def test_recordings_of_a_picture_are_all_searched():
    """Spoken captions: the image repeats, the recordings do not."""
    group = np.repeat(np.arange(4, dtype=np.int32), 3)
    source = ArraySource({
        "image": group.astype(np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8),
        "audio": np.arange(12, dtype=np.int16)[:, None] * np.ones((1, 5), np.int16),
        "group": group,
    })  # fmt: skip
    items = evaluate.Gallery(source, 500).items
    assert items["image"].tolist() == [0, 3, 6, 9] and items["audio"].tolist() == list(range(12))


def test_what_is_missing_is_neither_a_query_nor_a_result():
    x = np.eye(4, dtype=np.float32)
    ids = np.array([0, 0, 1, 1, 2, 3])
    items = {"image": np.array([0, 2, 4, 5]), "text": np.arange(6)}
    present = {"text": np.array([True, True, True, False, False, True]), "image": np.arange(6) != 5}
    queries, candidates = evaluate.items_of_pair("image", "text", ids, present=present, items=items)
    assert queries.tolist() == [0, 2] and candidates.tolist() == [0, 1, 2]
    wrong_where_missing = {"image": x[[0, 0, 1, 1, 0, 0]], "text": x[[0, 0, 1, 0, 0, 1]]}
    scores = evaluate.retrieval_scores(wrong_where_missing, present, ids=ids, items=items)
    assert scores["image_to_text/recall@1"] == scores["text_to_image/recall@1"] == 1.0


def test_class_names_as_captions_still_answer_each_other():
    """A picture that is listed twice does not change how the few different captions of a data set are compared."""
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0], np.int32)
    captions = np.array([f"class {k}" for k in labels], object)
    images = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    group = np.array([*range(10), 9], np.int32)  # the last two are one picture
    gallery = evaluate.Gallery(ArraySource({"image": images, "caption": captions, "group": group}), 500)
    assert gallery.ids.tolist() == labels[:10].tolist() and gallery.items is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_caption_of_a_picture_is_a_reference(tmp_path, layout):
    source = open_pictures(tmp_path, layout)
    references = ReferenceTexts(source, str.upper, one_per_picture=True)
    assert len(references.source) == len(references.texts) == 15
    assert references.texts[2] == "PICTURE 2, WORDING 0"
    assert references.references[2] == [f"PICTURE 2, WORDING {k}" for k in range(5)]
    last_wordings = [known[4] for known in references.references]
    assert references.caption_scores(last_wordings, "")["exact_accuracy"] == 1.0
    every = ReferenceTexts(source)
    assert len(every.texts) == 75 and every.references[7] == [every.texts[7]]


def test_examples_without_a_caption_are_no_references():
    captions = np.array(["", "a dog", "a cat", "", "the dog"], object)
    source = ArraySource({"caption": captions, "group": np.array([0, 0, 1, 2, 0], np.int32)})
    references = ReferenceTexts(source, one_per_picture=True)
    assert references.references == [["a dog", "the dog"], ["a cat"], [""]]
    assert references.source.batch(np.arange(3))["caption"].tolist() == ["a dog", "a cat", ""]


def test_the_report_shows_each_picture_once(tmp_path):
    source = open_pictures(tmp_path, "one line", pictures=11)
    gallery = evaluate.Gallery(source, 500)
    embeddings = perfect_embeddings(gallery, dim=11)
    report = Report("Pictures")
    searched = dict(ids=gallery.ids, present=gallery.present, items=gallery.items)
    alignment.add_galleries(report, gallery.examples, embeddings, **searched)
    html = report.html()
    assert "image to text among 55 examples" in html and "text to image among 11 examples" in html
    metrics = gallery.scores(embeddings)
    assert alignment.headline(metrics, gallery) == ["image_to_text/recall@1", "text_to_image/recall@1"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_are_evaluated_on_one_example_of_each_picture(tmp_path, layout):
    for split, pictures in (("train", 20), ("test", 7)):
        write_pictures(tmp_path / split, layout, pictures=pictures, classes=3)
    options = DataOptions(modalities=("text", "image"), progress=False)
    config = RunConfig(data=f"folder:{tmp_path}", input=options)
    data = open_latent(config, ModalityConfigs(), BadExamples())
    assert [len(split) for split in (data.source, data.validation, data.test)] == [90, 2, 7]
    assert pictures_of(data.test) == list(range(7))
    assert not set(pictures_of(data.source)) & set(pictures_of(data.validation))
    np.testing.assert_array_equal(data.factors[:, 0], np.arange(7) % 3)


def test_data_without_classes_are_used_whole_where_nothing_needs_a_class(tmp_path):
    for split, pictures in (("train", 20), ("test", 7)):
        write_pictures(tmp_path / split, "one line", pictures=pictures)
    config = RunConfig(data=f"folder:{tmp_path}", input=DataOptions(modalities=("image",), progress=False))
    with pytest.raises(ValueError, match="no example has a class: the data set needs the field 'label'"):
        open_latent(config, ModalityConfigs(), BadExamples())
    bad_examples = BadExamples()
    data = open_latent(config, ModalityConfigs(), bad_examples, needs_classes=False)
    assert (data.classes, len(data.test), data.factors.shape) == (0, 7, (7, 0))
    assert "no judge is trained" in bad_examples.summary()


def test_classification_counts_each_picture_once(monkeypatch):
    """Three of four pictures are right; the wrong one has most of the captions."""
    group = np.array([0, 1, 2, 3, 3, 3, 3], np.int32)
    labels = np.array([0, 1, 0, 1, 1, 1, 1], np.int32)
    shown = np.array([0, 1, 0, 0, 0, 0, 0])  # what the embedding of the image shows
    images = (100 * shown).astype(np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    captions = np.array([f"class {k} {n}" for n, k in enumerate(labels)], object)
    arrays = {"image": images, "caption": captions, "label": labels, "group": group}
    source = ArraySource(arrays, ("a", "b"))

    def predict(params, batch):
        units = jnp.eye(2)
        found = {"text": units[batch["text"][:, 0]]} if "text" in batch else {}
        return found | ({"image": units[batch["image"][:, 0, 0, 0] // 100]} if "image" in batch else {})

    tokenize = lambda batch: {
        **batch,
        "text": np.array([[int(c.split()[1])] for c in batch["caption"]], np.int32),
    }
    embed = evaluate.Embedder(Method(None, None, predict), tokenize, batch_size=7)
    monkeypatch.setattr(evaluate, "linear_probe", lambda x, *others, **options: float(len(x)))
    scores, confusion = evaluate.classification_scores(embed, None, source, source)
    assert scores["test/image_linear_probe_accuracy"] == 4.0  # it is fitted on one example of each picture
    assert scores["test/image_zero_shot_accuracy"] == 0.75 and confusion.tolist() == [[2, 0], [1, 1]]
