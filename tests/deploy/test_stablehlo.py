"""Exported programs run in a process that has JAX alone, and give what the library gives."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.deploy.runs import COUNT, check
from xmodal_jax.deploy import FORMATS, export_formats, programs_of
from xmodal_jax.deploy.programs import PROGRAMS
from xmodal_jax.inference import load
from xmodal_jax.inference.loading import MODEL_CLASSES
from xmodal_jax.transfer.weights import DTYPES

pytest.importorskip("flatbuffers")
RUNNER = """
import json, pathlib, sys
import jax, numpy as np
from safetensors.numpy import load_file

for folder, program, inputs in json.loads(sys.argv[1]):
    folder = pathlib.Path(folder)
    exported = jax.export.deserialize(bytearray((folder / f"{program}.stablehlo").read_bytes()))
    values = dict(np.load(inputs))
    for count in {1, len(next(iter(values.values())))}:
        part = {name: x[:count] for name, x in values.items()}
        outputs = exported.call(load_file(folder / "parameters.safetensors"), part)
        np.savez(f"{inputs}.out{count}.npz", **outputs)
absent = [name for name in ("xmodal_jax", "flax", "optax", "transformers") if name in sys.modules]
sys.exit(f"imported {absent}" if absent else 0)
"""


PROGRAM_NAMES = [
    ("contrastive", "encode_text"),
    ("contrastive", "encode_image"),
    ("contrastive", "encode_audio"),
    ("captioning", "generate"),
    ("text_to_image_gan", "generate"),
    ("text_to_image_flow", "generate"),
    ("text_to_image_flow", "velocity"),
    ("fusion", "classify"),
    ("multimodal_vae", "encode"),
    ("multimodal_vae", "decode"),
    ("speech_synthesis", "synthesize"),
    ("vocoder", "decode"),
]


@pytest.fixture(scope="module")
def outputs(export_of, cases_of, tmp_path_factory):
    """For each kind and program the folder of its inputs and of the outputs of the other process."""
    root, jobs, results = tmp_path_factory.mktemp("outputs"), [], {}
    for kind, program in PROGRAM_NAMES:
        file = results[kind, program] = root / f"{kind}-{program}.npz"
        np.savez(file, **cases_of(kind)[program][0])
        jobs.append((str(export_of(kind, "stablehlo")), program, str(file)))
    # `-I`: neither the working directory nor PYTHONPATH, so that the library cannot be imported by accident.
    code = "import sys; sys.modules['xmodal_jax'] = None\n" + RUNNER.replace('("xmodal_jax", ', "(")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, json.dumps(jobs)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return results


@pytest.mark.parametrize(("kind", "program"), PROGRAM_NAMES)
def test_programs_in_another_process_equal_the_library(outputs, model_of, cases_of, kind, program):
    file, (_, expected) = outputs[kind, program], cases_of(kind)[program]
    check(kind, model_of(kind), program, dict(np.load(f"{file}.out{COUNT}.npz")), expected, atol=1e-5)
    one = {k: v[:1] for k, v in expected.items()}
    check(kind, model_of(kind), program, dict(np.load(f"{file}.out1.npz")), one, atol=1e-5)


def test_every_kind_of_run_has_programs():
    assert PROGRAMS.keys() == MODEL_CLASSES.keys()


def test_the_signature_says_what_programs_take_and_give(export_of):
    folder = export_of("contrastive", "stablehlo")
    content = json.loads((folder / "signature.json").read_text())
    program = content["programs"]["encode_image"]
    assert program["inputs"]["image"]["shape"] == ["batch", 8, 8, 3]
    assert program["inputs"]["image"]["dtype"] == "uint8"
    assert program["outputs"]["embedding"]["shape"] == ["batch", 8]
    assert content["platforms"] == ["cpu", "cuda", "tpu"] and content["weights"]["dtype"] == "float32"
    steps = json.loads((folder / "preprocessing.json").read_text())
    assert steps["image"]["height"] == 8 and steps["text"]["length"] == 5
    assert (folder / "tokenizer.json").is_file()
    assert {p.stem for p in folder.glob("*.stablehlo")} == set(content["programs"])


def test_a_greedy_loop_over_the_decoder_writes_the_text_of_generate(model_of, cases_of):
    """The decoder alone, called by one's own loop, with other tokens behind those so far."""
    model = model_of("captioning")
    programs = {program.name: program for program in programs_of(model)}
    call = {name: jax.jit(program.function) for name, program in programs.items()}
    inputs, _ = cases_of("captioning")["generate"]
    memory = call["encode"](model.params, inputs)
    generated = call["generate"](model.params, inputs)
    length = programs["decode"].inputs["ids"].shape[0]
    ids = np.full((COUNT, length), 2, np.int32)
    ids[:, 0] = model.format.transform.tokenizer.bos_id
    for place in range(length):
        logits = call["decode"](model.params, {"ids": ids, **memory})["logits"]
        following = np.argmax(logits[:, place], axis=-1)
        valid = np.asarray(generated["ids_mask"])[:, place]
        np.testing.assert_array_equal(following[valid], np.asarray(generated["ids"])[:, place][valid])
        if place + 1 < length:
            ids[:, place + 1] = following


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "float32"])
def test_smaller_weights_give_nearly_the_same_and_are_read_again(model_of, cases_of, tmp_path, dtype):
    model = model_of("contrastive")
    export_formats(model.path, tmp_path / "full", formats=("safetensors",))
    export_formats(model.path, tmp_path / "small", formats=("safetensors",), dtype=dtype)
    size = lambda name: (tmp_path / name / "parameters" / "model.safetensors").stat().st_size
    assert size("small") < size("full")
    images = cases_of("contrastive")["encode_image"][0]["image"]
    small = load(tmp_path / "small")
    difference = np.abs(small.embed(images=images) - model.embed(images=images)).max()
    assert 0 < difference < 0.03


def test_a_format_that_cannot_hold_a_dtype_is_named(model_of, tmp_path):
    path = model_of("captioning").path
    with pytest.raises(ValueError, match="--dtype int8: --format hf holds weights as float32 only"):
        export_formats(path, tmp_path / "a", formats=("hf",), dtype="int8")
    with pytest.raises(ValueError, match=f"--format tflite: the formats are {', '.join(FORMATS)}"):
        export_formats(path, tmp_path / "a", formats=("tflite",))
