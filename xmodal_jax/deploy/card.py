"""The model card of an export: what it is, its scores, how it is used, its limits; README.md with YAML metadata."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import xmodal_jax
from xmodal_jax.inference.loading import kind_of_run
from xmodal_jax.inference.model import RestoredRun
from xmodal_jax.report.comparison import read_result
from xmodal_jax.train.run import write_atomic
from xmodal_jax.transfer.weights import DTYPES

CARD = "README.md"
UNKNOWN = "unknown"
"""The licence of an export whose owner names none."""
PIPELINES = {
    "captioning": "image-to-text",
    "speech_recognition": "automatic-speech-recognition",
    "speech_synthesis": "text-to-speech",
    "contrastive": "feature-extraction",
}
"""The task of a kind of run, as the Hub names it, where a name fits."""
MOST_METRICS = 40
"""Scores in a card; result.json has all."""
USAGES = {
    "safetensors": """from xmodal_jax.inference import load

model = load("{folder}")
print(model.describe())""",
    "stablehlo": """import json, pathlib
import jax, numpy as np
from safetensors.numpy import load_file

folder = pathlib.Path("{folder}/stablehlo")
signature = json.loads((folder / "signature.json").read_text())
name, program = next(iter(signature["programs"].items()))
run = jax.export.deserialize(bytearray((folder / program["file"]).read_bytes()))
inputs = {{k: np.ones((2, *x["shape"][1:]), x["dtype"]) for k, x in program["inputs"].items()}}
print(name, run.call(load_file(folder / signature["parameters"]), inputs))""",
    "onnx": """import json, pathlib
import numpy as np, onnxruntime

folder = pathlib.Path("{folder}/onnx")
signature = json.loads((folder / "signature.json").read_text())
name, program = next(iter(signature["programs"].items()))
run = onnxruntime.InferenceSession(folder / program["file"], providers=["CPUExecutionProvider"])
inputs = {{k.name: program["inputs"][k.name] for k in run.get_inputs()}}
inputs = {{k: np.ones((2, *x["shape"][1:]), x["dtype"]) for k, x in inputs.items()}}
print(name, run.run(None, inputs))""",
}
"""How each format is used, in ten lines of Python. The inputs are stand-ins: ``signature.json`` says what they are."""
USAGES["hf"] = USAGES["safetensors"]


def write_card(
    run: RestoredRun,
    folder: pathlib.Path,
    *,
    formats: Sequence[str],
    dtype: str,
    license: str = UNKNOWN,
    losses: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``README.md``.

    Args:
      run: what was exported.
      folder: of the export.
      formats: that were written.
      dtype: of the weights.
      license: its identifier on the Hub, such as ``apache-2.0``.
      losses: what the stored weights change, see `measure.measure_losses`; None: it was not measured.
    """
    write_atomic(folder / CARD, make_card(run, folder.name, formats, dtype, license, losses))


def make_card(
    run: RestoredRun,
    folder: str,
    formats: Sequence[str],
    dtype: str,
    license: str,
    losses: Mapping[str, Any] | None = None,
) -> str:
    """The text of a card; the arguments are those of `write_card`, ``folder`` the name of the export's."""
    import yaml

    metadata, config = run.checkpoint.metadata, run.checkpoint.metadata["config"]
    kind, result = kind_of_run(metadata) or "model", read_result(run.path)
    header = {"library_name": "xmodal_jax", "license": license, "tags": ["xmodal_jax", "jax", kind, *formats]}
    if kind in PIPELINES:
        header["pipeline_tag"] = PIPELINES[kind]
    scores = _scores(result)
    if scores and kind in PIPELINES:
        header["model-index"] = [_index(run.path.name, kind, str(config.get("data")), scores)]
    seeds = result.get("seeds") or metadata.get("seeds") or [config.get("seed")]
    about = [
        f"A model of the kind `{kind}`, trained with xmodal_jax {xmodal_jax.__version__} on `{config.get('data')}` for "
        f"{run.checkpoint.step} steps in batches of {config.get('batch_size')}.",
        "",
        f"Weights: {dtype}, {DTYPES[dtype].meaning}.",
        "",
        f"Licence: {license}."
        + (" Nobody has said which one; ask the owner before you use it." if license == UNKNOWN else ""),
    ]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n# {run.path.name}\n",
        "\n".join(about) + "\n",
        _score_table(scores, result, seeds),
        _loss_table(losses),
        _usage(formats, folder),
        _limits(run, result),
    ]
    return "\n".join(part for part in parts if part)


def _scores(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are finite numbers."""
    return {name: float(x) for name, x in result.get("metrics", {}).items() if isinstance(x, int | float)}


def _index(name: str, kind: str, data: str, scores: Mapping[str, float]) -> dict[str, Any]:
    metrics = [{"type": k, "name": k, "value": v} for k, v in list(scores.items())[:MOST_METRICS]]
    task = {"type": PIPELINES[kind]}
    return {
        "name": name,
        "results": [{"task": task, "dataset": {"type": data, "name": data}, "metrics": metrics}],
    }


def _score_table(scores: Mapping[str, float], result: Mapping[str, Any], seeds: Sequence[Any]) -> str:
    """The test scores, with their standard deviation over seeds."""
    if not scores:
        return "## Scores\n\nThe run has no scores: it was exported before it was tested.\n"
    spread, rows = result.get("spread", {}), []
    for name, value in list(scores.items())[:MOST_METRICS]:
        around = f" ± {spread[name]:.2g}" if spread.get(name) is not None else ""
        rows.append(f"| {name} | {value:.4g}{around} |")
    count = len(seeds)
    meaning = (
        f"Mean and standard deviation over {count} seeds; the weights are of one of them."
        if count > 1
        else "Of one seed: how much they vary between seeds is not known."
    )
    left = len(scores) - len(rows)
    more = f" {left} more are left out." if left > 0 else ""
    return "\n".join(["## Scores", "", meaning + more, "", "| metric | value |", "|---|---:|", *rows, ""])


def _loss_table(losses: Mapping[str, Any] | None) -> str:
    if losses is None:
        return ""
    head = f"What the stored weights change, on {losses['examples']} examples of `{losses['data']}`."
    rows = [f"| {name} | {x['largest']:.3g} | {x['mean']:.3g} |" for name, x in losses["differences"].items()]
    lines = ["## Loss", "", head, "", "| output | largest difference | mean difference |", "|---|---:|---:|"]
    lines += [*rows, ""]
    if losses["scores"]:
        lines += ["| score | trained weights | stored weights |", "|---|---:|---:|"]
        lines += [f"| {name} | {a:.4g} | {b:.4g} |" for name, (a, b) in losses["scores"].items()]
    return "\n".join([*lines, ""])


def _usage(formats: Sequence[str], folder: str) -> str:
    lines = ["## Use", ""]
    for name in formats:
        lines += [f"{name}:", "", "```python", USAGES[name].format(folder=folder), "```", ""]
    return "\n".join(lines)


def _limits(run: RestoredRun, result: Mapping[str, Any]) -> str:
    config = run.checkpoint.metadata["config"]
    size = config.get("input", {}).get("train_size")
    examples = f" ({size} examples)" if size else ""
    limits = [
        f"- It has seen nothing but `{config.get('data')}`{examples} in training, and was not tested on other data.",
        f"- {run.checkpoint.step} steps"
        + (f", {result['parameters']:,} parameters." if result.get("parameters") else "."),
    ]
    if config.get("smoke"):
        limits.append("- It is a smoke run: a test of the programs, and of no use for anything else.")
    return "\n".join(["## Limits", "", *limits, ""])
