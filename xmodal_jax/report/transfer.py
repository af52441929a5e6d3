"""What reports of flows over several modalities show: transfer between modalities and styles, and generated speech."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.evaluation.generated_speech import complete_examples
from xmodal_jax.evaluation.latent import LatentEvaluator, LatentResults
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.evaluation.speech import TranscribedSpeech
from xmodal_jax.metrics.text import align_words
from xmodal_jax.models.flow.multimodal import MultimodalFlow
from xmodal_jax.report.latent import ExampleRenderer, add_latent, make_renderer, read_batch, with_frames
from xmodal_jax.report.page import Audio, MarkedText, Report
from xmodal_jax.types import kind_of

EXAMPLES = 3
"""Number of test examples in each table."""
STRENGTHS = (0.0, 0.3, 0.5, 0.7, 0.85)
"""Strengths of changes: 1 minus the time from which the flow goes on."""
VOICES = (
    "Speech: its voice is changed to a random one, under the example's own words. The voice cannot be chosen, since no "
    "modality of the model tells it. "
)


def add_multimodal_flow(
    report: Report,
    flow: MultimodalFlow,
    evaluator: LatentEvaluator,
    params: Any,
    data: LatentData,
    results: LatentResults,
    folder: Path,
) -> None:
    """All sections about a flow over several modalities: those of `report.latent.add_latent`, transfers, and generated
    speech. ``params``: of ``flow``, which ``evaluator`` evaluates; ``results``: its evaluation."""
    add_latent(report, evaluator, params, data, results, folder)
    add_transfers(report, flow, evaluator, params, data)
    sounds = [m for m in evaluator.modalities if kind_of(m) == "audio"]
    if sounds:
        add_generated_speech(report, results.speech, evaluator.configs.for_modality(sounds[0]).sample_rate)


def add_transfers(
    report: Report, flow: MultimodalFlow, evaluator: LatentEvaluator, params: Any, data: LatentData
) -> None:
    """Pictures in the style of another image modality, and pictures and speech that keep a part of their own code
    while another modality tells what they should become. ``params``: of ``flow``, which ``evaluator`` evaluates."""
    complete = complete_examples(evaluator, data.test)
    if complete is None or len(evaluator.modalities) < 2:
        return
    batch = read_examples(evaluator, complete, EXAMPLES)
    renderer = make_renderer(evaluator, data)
    add_modality_transfer(report, evaluator, params, batch, renderer)
    add_style_transfer(report, flow, evaluator, params, batch, renderer)


def read_examples(evaluator: LatentEvaluator, source: Source, count: int) -> dict[str, Any]:
    """A batch of ``count`` examples of ``source`` (fewer if it has fewer), evenly spread."""
    indices = np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64))
    return read_batch(evaluator, source, indices)


def neighbours(names: list[str]) -> list[tuple[str, str]]:
    """Every name with the next one of ``names``, the last with the first, in both directions."""
    pairs = [(a, names[(k + 1) % len(names)]) for k, a in enumerate(names)] if len(names) > 1 else []
    return list(dict.fromkeys(pair for a, b in pairs for pair in ((a, b), (b, a))))


def add_modality_transfer(
    report: Report,
    evaluator: LatentEvaluator,
    params: Any,
    batch: Mapping[str, Any],
    renderer: ExampleRenderer,
) -> None:
    """A table of images generated from the same example's image of another modality, such as pictures from sketches."""
    names = list(evaluator.modalities)
    pairs = neighbours([m for m in names if kind_of(m) == "image"])
    if not pairs:
        return
    sources = list(dict.fromkeys(a for a, _ in pairs))
    observed = np.array([[m == a for m in names] for a in sources])
    latents = jax.jit(evaluator.vae.infer)(params, batch, observed, evaluator.key).z
    decode = jax.jit(evaluator.decode_sample)
    generated = {a: decode(params, z) for a, z in zip(sources, latents, strict=True)}
    rows = [
        [f"{a} to {b}", *(renderer.cell(*cell, k) for cell in ((a, batch), (b, generated[a]), (b, batch)))]
        for a, b in pairs
        for k in range(len(batch["index"]))
    ]
    report.add_table("Modality transfer", ["", "source", "generated", "the example's own"], rows)


def add_style_transfer(
    report: Report,
    flow: MultimodalFlow,
    evaluator: LatentEvaluator,
    params: Any,
    batch: Mapping[str, Any],
    renderer: ExampleRenderer,
) -> None:
    """A table of images changed toward what another modality of the next example says, and of speech changed under its
    own words, with several strengths of change."""
    names, count = evaluator.modalities, len(batch["index"])
    starts = 1.0 - jnp.asarray(STRENGTHS, jnp.float32)

    @jax.jit
    def edit(params, batch, observed, edited):
        """All modalities by strength, as batches stacked along the first axis."""
        change = lambda start: flow.edit(params, batch, observed, edited, evaluator.key, start=start).z
        return jax.lax.map(lambda start: evaluator.decode_sample(params, change(start)), starts)

    images, rows = [m for m in names if kind_of(m) == "image"], []
    for name in (m for m in names if kind_of(m) in ("image", "audio")):
        is_image = name in images
        condition = condition_of(name, names)
        if not is_image and kind_of(condition) != "text":
            continue  # nothing says what the speech should say
        inputs = next_condition(batch, condition) if is_image else dict(batch)
        masks = [np.array([m == chosen for m in names]) for chosen in (condition, name)]
        outputs = jax.tree.map(np.asarray, edit(params, inputs, *masks))
        shown = with_frames(evaluator, inputs)
        for k in range(count):
            by_strength = [jax.tree.map(lambda x, j=j: x[j], outputs) for j in range(len(STRENGTHS))]
            render = lambda fields, name=name, k=k: _render(renderer, name, fields, k)
            rows.append([name, render(shown), renderer.cell(condition, shown, k), *map(render, by_strength)])
    note = "Strength 0 reconstructs the source, 1 would be a new one. Pictures: toward the next example's condition. "
    note += VOICES if any(kind_of(row[0]) == "audio" for row in rows) else ""
    if rows:
        headings = ["", "source", "condition", *(f"strength {strength:g}" for strength in STRENGTHS)]
        report.add_table("Style transfer", headings, rows, note=note)


def condition_of(name: str, names: tuple[str, ...]) -> str:
    """The modality that says what an edited one should become: a text if there is one, else the next of ``names``."""
    texts = [m for m in names if kind_of(m) == "text" and m != name]
    return texts[0] if texts else names[(names.index(name) + 1) % len(names)]


def next_condition(batch: Mapping[str, Any], condition: str) -> dict[str, Any]:
    """The batch, with the modality ``condition`` of the next example for each one."""
    fields = {k: np.roll(batch[k], -1, axis=0) for k in (condition, f"{condition}_mask") if k in batch}
    return {**batch, **fields}


def _render(renderer: ExampleRenderer, name: str, batch: Mapping[str, Any], index: int) -> Any:
    """An example as a cell of a table; speech with a player."""
    if kind_of(name) == "audio":
        return renderer.sounds(name, batch, [index])[0]
    return renderer.cell(name, batch, index)


def add_generated_speech(
    report: Report, speech: Mapping[str, TranscribedSpeech], sample_rate: int, *, count: int = EXAMPLES
) -> None:
    """A table of generated speech with what a recogniser hears in it; nothing without transcripts."""
    rows = [
        [
            name.replace("_", " "),
            each.texts[k],
            Audio(np.asarray(each.waves[k]), sample_rate),
            _marked(each, k),
        ]
        for k in range(count)
        for name, each in speech.items()
        if k < len(each.waves)
    ]
    note = (
        "Errors of the transcript are marked. A picture does not say in which words it is described, so that speech "
        "generated from it has wrong words even where it describes the picture rightly."
    )
    if rows:
        headings = ["generated from", "what it should say", "speech", "transcript"]
        report.add_table("Generated speech", headings, rows, note=note)


def _marked(speech: TranscribedSpeech, index: int) -> MarkedText:
    """The transcript at ``index`` with its errors marked."""
    return MarkedText(align_words(speech.transcripts[index], speech.texts[index]))
