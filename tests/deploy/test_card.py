"""Model cards: the Hub's parser reads them, their code runs, and they say what was measured."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.deploy.runs import RATE, RUNS, TEXTS, export_with_symbols, pictures, sounds
from tests.inference import test_autoencoders, test_multimodal_flow
from tests.inference.runs import save_text_run
from xmodal_jax.deploy import FORMATS, export_formats, measure_losses
from xmodal_jax.deploy.card import PIPELINES, write_card
from xmodal_jax.inference import load
from xmodal_jax.inference.loading import MODEL_CLASSES, restore
from xmodal_jax.models.vae.single_models import VAEConfig

RESULT = {
    "metrics": {"image_to_text/recall@1": 0.5, "text_to_image/recall@1": 0.25, "missing": None},
    "spread": {"image_to_text/recall@1": 0.0123},
    "per_seed": {"image_to_text/recall@1": [0.49, 0.51]},
    "seeds": [0, 1],
    "parameters": 12345,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RUNS["contrastive"](tmp_path_factory.mktemp("contrastive"))
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def test_the_hub_reads_the_metadata(run, tmp_path):
    export_formats(run, tmp_path / "a", formats=("safetensors",), license="apache-2.0")
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert card.data.library_name == "xmodal_jax" and card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "feature-extraction"
    assert {"xmodal_jax", "contrastive", "safetensors"} <= set(card.data.tags)
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"image_to_text/recall@1": 0.5, "text_to_image/recall@1": 0.25}
    assert "| image_to_text/recall@1 | 0.5 ± 0.012 |" in card.text
    assert "over 2 seeds" in card.text and "12,345 parameters" in card.text


SOUND = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
SMALL_VAE = VAEConfig(**test_autoencoders.SMALL)
KINDS = RUNS | {
    "multimodal_flow": test_multimodal_flow.save,
    "speech_recognition": lambda folder: save_text_run(folder, "audio", "speech_recognition", SOUND),
    "vae": lambda folder: test_autoencoders.save(folder, SMALL_VAE, ("image",), kind="vae"),
}
"""What saves a run of each kind that can be loaded."""


def test_every_kind_has_a_run():
    assert set(KINDS) == set(MODEL_CLASSES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_reads_the_cards_of_every_kind(kind, tmp_path):
    """In each format with each dtype that it can hold, and with all formats."""
    KINDS[kind](tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(json.dumps(RESULT))
    run = restore(tmp_path / "run")
    exports = [([name], dtype) for name, format in FORMATS.items() for dtype in format.dtypes]
    for formats, dtype in [*exports, (list(FORMATS), "float32")]:
        write_card(run, tmp_path, formats=formats, dtype=dtype, license="mit")
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.library_name == "xmodal_jax" and card.data.license == "mit"
        assert card.data.tags == ["xmodal_jax", "jax", kind, *formats]
        assert card.data.pipeline_tag == PIPELINES.get(kind)
        assert len(card.data.eval_results or []) == (2 if kind in PIPELINES else 0)
        assert f"Weights: {dtype}" in card.text and "| text_to_image/recall@1 | 0.25 |" in card.text
        assert all(f"{name}:\n\n```python" in card.text for name in formats)


def test_a_licence_that_nobody_named_is_said_to_be_unknown(run, tmp_path):
    export_formats(run, tmp_path / "a", formats=("safetensors",))
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert card.data.license == "unknown" and "Nobody has said which one" in card.text


def test_the_code_of_the_card_runs(run, tmp_path):
    pytest.importorskip("flatbuffers")
    pytest.importorskip("onnxruntime")
    export_with_symbols(run, tmp_path / "exported", formats=("safetensors", "stablehlo", "onnx"))
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "exported" / "README.md").read_text(), re.S)
    assert len(blocks) == 3 and all(len(block.splitlines()) <= 10 for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "embed" in done.stdout and done.stdout.count("encode_text") == 2


def test_losses_of_smaller_weights_are_in_the_card(run, tmp_path, monkeypatch):
    """On data of which the differences are known: weights that are int8 already lose nothing."""
    losses = {"data": "folder:x", "examples": 7, "scores": {"recall@1": (0.5, 0.4)},
              "differences": {"encode_text/embedding": {"largest": 0.01, "mean": 0.002}}}  # fmt: skip
    monkeypatch.setattr("xmodal_jax.deploy.export.measure_losses", lambda *args: losses)
    export_formats(run, tmp_path / "a", formats=("safetensors",), dtype="int8", data="folder:x")
    text = (tmp_path / "a" / "README.md").read_text()
    assert "on 7 examples of `folder:x`" in text
    assert "| encode_text/embedding | 0.01 | 0.002 |" in text and "| recall@1 | 0.5 | 0.4 |" in text


def test_weights_that_stay_as_they_are_lose_nothing(run, monkeypatch):
    inputs = {"text": TEXTS, "image": pictures(8), "audio": sounds(RATE)}
    monkeypatch.setattr("xmodal_jax.deploy.measure.open_for_model", lambda model, *args: model.read(inputs))
    losses = measure_losses(load(run), "folder:x", "float32")
    assert losses["examples"] == len(TEXTS) and all(x["largest"] == 0 for x in losses["differences"].values())
    assert all(before == after for before, after in losses["scores"].values())
    rounded = measure_losses(load(run), "folder:x", "bfloat16")
    assert 0 < max(x["largest"] for x in rounded["differences"].values()) < 0.1
