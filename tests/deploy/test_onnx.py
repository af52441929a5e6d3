"""Exported ONNX programs give what the library gives."""

import json

import numpy as np
import pytest

from tests.deploy.runs import CASES, COUNT, RUNS, check, export_all
from xmodal_jax.inference import load

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
PROGRAMS = [
    ("contrastive", "encode_text"),
    ("contrastive", "encode_image"),
    ("contrastive", "encode_audio"),
    ("text_to_image_gan", "generate"),
    ("fusion", "classify"),
    ("multimodal_vae", "encode"),
    ("multimodal_vae", "decode"),
]
KINDS = ("contrastive", "captioning", "text_to_image_gan", "fusion", "multimodal_vae")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """For each kind the model and the folder of its ONNX files."""
    folder = tmp_path_factory.mktemp("exports")
    models = {kind: load(RUNS[kind](tmp_path_factory.mktemp(kind))) for kind in KINDS}
    export_all({str(model.path): str(folder / kind) for kind, model in models.items()}, "onnx")
    return {kind: (model, folder / kind / "onnx") for kind, model in models.items()}


def run(folder, program, inputs):
    """The outputs of a program by name."""
    session = onnxruntime.InferenceSession(
        str(folder / f"{program}.onnx"), providers=["CPUExecutionProvider"]
    )
    values = session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})
    return dict(zip([value.name for value in session.get_outputs()], values, strict=True))


@pytest.mark.parametrize(("kind", "program"), PROGRAMS)
def test_programs_equal_the_library_for_any_batch_size(exports, kind, program):
    model, folder = exports[kind]
    inputs, expected = CASES[kind](model)[program]
    for count in (COUNT, 1):
        outputs = run(folder, program, {name: x[:count] for name, x in inputs.items()})
        check(kind, model, program, outputs, {k: v[:count] for k, v in expected.items()}, atol=1e-4)


def test_captions_of_a_greedy_loop_over_the_decoder(exports):
    model, folder = exports["captioning"]
    inputs, expected = CASES["captioning"](model)["generate"]
    memory = run(folder, "encode", inputs)
    tokenizer, length = model.format.transform.tokenizer, model.metadata["length"] - 1
    ids = np.full((COUNT, length), tokenizer.bos_id, np.int32)
    for place in range(length):
        following = run(folder, "decode", {"ids": ids, **memory})["logits"][:, place].argmax(axis=-1)
        if place + 1 < length:
            ids[:, place + 1] = following
    written = np.concatenate([ids[:, 1:], following[:, None]], axis=1)
    assert tokenizer.decode_batch(written) == expected["texts"]


def test_what_cannot_be_converted_is_named(exports):
    _, folder = exports["captioning"]
    content = json.loads((folder / "signature.json").read_text())
    assert set(content["programs"]) == {"encode", "decode"}
    assert "cannot be converted to ONNX: use --format stablehlo" in content["not_converted"]["generate"]
