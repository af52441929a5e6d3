"""Exported ONNX programs give what the library gives."""

import json

import jax
import numpy as np
import pytest

from tests.deploy.runs import COUNT, check, export_with_symbols
from xmodal_jax.core import trees
from xmodal_jax.deploy import onnx_files, programs_of
from xmodal_jax.deploy.stablehlo import with_stored
from xmodal_jax.transfer.weights import DTYPES

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
PROGRAMS = [
    ("contrastive", "encode_text"),
    ("contrastive", "encode_image"),
    ("contrastive", "encode_audio"),
    ("text_to_image_gan", "generate"),
    ("text_to_image_flow", "generate"),
    ("text_to_image_flow", "velocity"),
    ("fusion", "classify"),
    ("multimodal_vae", "encode"),
    ("multimodal_vae", "decode"),
]


def run(folder, program, inputs):
    """The outputs of a program by name."""
    session = onnxruntime.InferenceSession(
        str(folder / f"{program}.onnx"), providers=["CPUExecutionProvider"]
    )
    values = session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})
    return dict(zip([value.name for value in session.get_outputs()], values, strict=True))


@pytest.mark.parametrize(("kind", "program"), PROGRAMS)
def test_programs_equal_the_library_for_any_batch_size(model_of, export_of, cases_of, kind, program):
    model, folder, (inputs, expected) = model_of(kind), export_of(kind, "onnx"), cases_of(kind)[program]
    for count in (COUNT, 1):
        outputs = run(folder, program, {name: x[:count] for name, x in inputs.items()})
        check(kind, model, program, outputs, {k: v[:count] for k, v in expected.items()}, atol=1e-4)


def test_captions_of_a_greedy_loop_over_the_decoder(model_of, export_of, cases_of):
    model, folder = model_of("captioning"), export_of("captioning", "onnx")
    inputs, expected = cases_of("captioning")["generate"]
    memory = run(folder, "encode", inputs)
    tokenizer, length = model.format.transform.tokenizer, model.metadata["length"] - 1
    ids = np.full((COUNT, length), tokenizer.bos_id, np.int32)
    for place in range(length):
        following = run(folder, "decode", {"ids": ids, **memory})["logits"][:, place].argmax(axis=-1)
        if place + 1 < length:
            ids[:, place + 1] = following
    written = np.concatenate([ids[:, 1:], following[:, None]], axis=1)
    assert tokenizer.decode_batch(written) == expected["texts"]


def test_what_cannot_be_converted_is_named(export_of):
    content = json.loads((export_of("captioning", "onnx") / "signature.json").read_text())
    assert set(content["programs"]) == {"encode", "decode"}
    assert "cannot be converted to ONNX: use --format stablehlo" in content["not_converted"]["generate"]


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "float32"])
@pytest.mark.parametrize(("kind", "program"), PROGRAMS)
def test_smaller_weights_equal_our_own_computation_of_them(
    model_of, export_of, cases_of, kind, program, dtype
):
    """ONNX Runtime expands the stored weights as we do, and computes in float32."""
    model, (inputs, _) = model_of(kind), cases_of(kind)[program]
    (ours,) = (p for p in programs_of(model) if p.name == program)
    stored = DTYPES[dtype].compress(trees.flat(model.params))
    expected = jax.jit(with_stored(model, ours, dtype))(stored, inputs)
    outputs = run(export_of(kind, "onnx", dtype), program, inputs)
    for name, value in expected.items():
        atol = 1 if value.dtype == np.uint8 else 1e-4
        np.testing.assert_allclose(outputs[name].astype(np.float32), np.float32(value), atol=atol, rtol=1e-4)


def test_weights_that_are_too_large_for_a_file_have_one_of_their_own(
    model_of, export_of, cases_of, tmp_path, monkeypatch
):
    """As protobuf needs it from 2 GiB on, here from 1,000 bytes on."""
    monkeypatch.setattr(onnx_files, "MOST_BYTES", 1000)
    export_with_symbols(model_of("captioning").path, tmp_path / "x", formats=("onnx",))
    folder = tmp_path / "x" / "onnx"
    files = {path.name: path.stat().st_size for path in folder.iterdir() if ".onnx" in path.name}
    assert set(files) == {"encode.onnx", "encode.onnx.data", "decode.onnx", "decode.onnx.data"}
    inputs, _ = cases_of("captioning")["generate"]
    whole = run(export_of("captioning", "onnx"), "encode", inputs)
    for name, value in run(folder, "encode", inputs).items():
        np.testing.assert_array_equal(value, whole[name])
