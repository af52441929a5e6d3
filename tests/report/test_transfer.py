"""Transfers of models written by hand: a changed picture is as grey as the strength of the change says."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.painters import CONFIG, FRAMES, explore, level, read, source
from tests.report.test_latent import WORDS, pixels, tables
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.evaluation.speech import TranscribedSpeech
from xmodal_jax.models.flow.multimodal import MultimodalFlow
from xmodal_jax.models.vae.inference import LatentSamples
from xmodal_jax.models.vae.modalities import Vocabulary
from xmodal_jax.report import transfer
from xmodal_jax.report.latent import ExampleRenderer
from xmodal_jax.report.page import Report

NAMES = ("image_0", "image_1", "text", "audio")
LABELS = [0, 1, 3]


class Editor(MultimodalFlow):
    """Its changes lie between the class of what is edited and that of what is observed."""

    def __init__(self):
        """It has no networks."""

    def edit(self, params, batch, observed, edited, key, *, start):
        seen = jnp.stack([read(name, batch) for name in NAMES])
        choose = lambda rows: jnp.where(rows[:, None], seen, 0.0).sum(axis=0)
        told = start * choose(edited) + (1 - start) * choose(observed)
        z = jnp.broadcast_to(jnp.stack([told, 0 * told], axis=-1), (len(NAMES), 1, len(told), 2))
        return LatentSamples(z, jnp.zeros((1, len(told))), z[0])


@pytest.fixture(scope="module")
def report():
    report, evaluator = Report("transfers"), explore(NAMES)
    decode = lambda ids: " ".join(WORDS[i] for i in ids)
    renderer = ExampleRenderer(CONFIG, Vocabulary(decode, None))
    batch = transfer.read_examples(evaluator, source(NAMES, LABELS), 3)
    transfer.add_modality_transfer(report, evaluator, {}, batch, renderer)
    transfer.add_style_transfer(report, Editor(), evaluator, {}, batch, renderer)
    return tables(report)


def grey(cell):
    return pixels(cell)[0, 0, 0]


def test_pictures_of_one_modality_become_those_of_another(report):
    """Beside the source and the example's own."""
    headings, *rows = report[0]
    assert headings == ["", "source", "generated", "the example's own"]
    titles = ["image_0 to image_1"] * 3 + ["image_1 to image_0"] * 3
    assert [row[0] for row in rows] == titles
    for row, label in zip(rows, LABELS * 2, strict=True):
        assert [grey(cell) for cell in row[1:]] == [30 + 60 * label] * 3


def test_pictures_change_toward_the_next_examples_words(report):
    headings, *rows = report[1]
    assert headings[:3] == ["", "source", "condition"] and headings[3] == "strength 0"
    following = np.roll(LABELS, -1)
    for k, row in enumerate(rows[:6]):
        assert row[0] == f"image_{k // 3}"
        own, other = LABELS[k % 3], following[k % 3]
        assert grey(row[1]) == 30 + 60 * own and row[2].startswith(WORDS[other + 2])
        for cell, strength in zip(row[3:], transfer.STRENGTHS, strict=True):
            expected = 255 * float(level((1 - strength) * own + strength * other))
            assert abs(grey(cell) - expected) <= 0.51, strength


def test_speech_changes_under_its_own_words(report):
    rows = report[1][7:]
    assert [row[0] for row in rows] == ["audio"] * 3
    for row, label in zip(rows, LABELS, strict=True):
        assert row[2].startswith(WORDS[label + 2])
        assert all(cell.startswith("data:audio") for cell in (row[1], *row[3:]))


def test_what_cannot_be_transferred_is_left_out():
    """Speech without words that say what it should become; a single modality of images."""
    assert transfer.neighbours(["image"]) == []
    assert transfer.neighbours(["a", "b", "c"]) == [
        ("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"), ("c", "a"), ("a", "c"),
    ]  # fmt: skip
    assert transfer.condition_of("image_1", ("image_0", "image_1")) == "image_0"
    assert transfer.condition_of("audio", NAMES) == "text"
    report, names = Report("none"), ("image", "text")
    evaluator = explore(names)
    data = LatentData(**dict.fromkeys(LatentData._fields))
    there = np.zeros(3, bool)
    data = data._replace(test=source(names, LABELS, present={"text": there}))
    transfer.add_transfers(report, Editor(), evaluator, {}, data)
    transfer.add_generated_speech(report, {}, 1000)
    assert tables(report) == []


def test_generated_speech_can_be_played_beside_its_transcript():
    report, waves = Report("speech"), [np.zeros(FRAMES, np.float32)] * 2
    speech = {
        "text": TranscribedSpeech(waves, ["red green", "red blue"], ["red green", "red green"]),
        "joint": TranscribedSpeech(waves[:1], ["white"], ["white"]),
    }
    transfer.add_generated_speech(report, speech, 1000)
    ((headings, *rows),) = tables(report)
    assert headings == ["generated from", "what it should say", "speech", "transcript"]
    assert [row[0] for row in rows] == ["text", "joint", "text"]
    assert all(row[2].startswith("data:audio") for row in rows)
    assert "blue" in rows[2][3] and rows[2][1] == "red green"
