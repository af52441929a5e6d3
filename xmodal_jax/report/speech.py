"""The report's panels on synthesised speech: sounds to listen to, and spectrograms with the tokens' durations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.evaluation.speech import Utterances
from xmodal_jax.metrics.text import align_words
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.report.figures import INK, WIDTH
from xmodal_jax.report.page import Audio, MarkedText, Report

SHOWN = 6
"""Examples of each kind."""


def add_speech(
    report: Report,
    texts: Sequence[str],
    tokens: Sequence[Sequence[str]],
    made: Utterances,
    vocoded: Utterances,
    true: Utterances,
    distance: np.ndarray,
    heard: Sequence[str] | None,
    config: SpeechConfig,
) -> None:
    """Examples at random and those farthest from their recordings: sounds beside each other, then spectrograms."""
    drawn = np.random.default_rng(0).permutation(len(texts))[:SHOWN].tolist()
    worst = np.argsort(-distance, kind="stable")[:SHOWN].tolist()
    rate = config.features.sample_rate
    columns = ["text", "synthesised", "recording", "recording through the vocoder", "mel distance"]
    for rows, note in ((drawn, "drawn at random"), (worst, "farthest from their recordings")):
        cells = []
        for k in rows:
            sounds = [Audio(np.asarray(each.waves[k]), rate) for each in (made, true, vocoded)]
            said = [MarkedText(align_words(heard[k], texts[k]))] if heard is not None else []
            cells.append([texts[k], *sounds, f"{distance[k]:.2f}", *said])
        report.add_table("Utterances", columns + ["understood as"] * (heard is not None), cells, note)
    for rows, note in ((drawn[:3], "drawn at random"), (worst[:3], "farthest from their recordings")):
        report.add_figure("Spectrograms", spectrograms(rows, texts, tokens, made, true, config), note)


def spectrograms(
    rows: Sequence[int],
    texts: Sequence[str],
    tokens: Sequence[Sequence[str]],
    made: Utterances,
    true: Utterances,
    config: SpeechConfig,
) -> Figure:
    """For each of ``rows`` the synthesised log-mel frames with their tokens, above those of the recording."""
    fig = Figure((WIDTH, 2.5 * len(rows)), layout="constrained")
    axes = fig.subplots(2 * len(rows), 1, squeeze=False)[:, 0]
    seconds = config.features.hop / config.features.sample_rate
    longest = max(len(each.frames[k]) for k in rows for each in (made, true)) * seconds
    for pair, k in zip(axes.reshape(-1, 2), rows, strict=True):
        for ax, sounds, what in zip(pair, (made, true), ("synthesised", "recording"), strict=True):
            frames = sounds.frames[k]
            ax.imshow(
                frames.T, origin="lower", aspect="auto", cmap="magma",
                extent=(0, len(frames) * seconds, 0, frames.shape[1]),
                vmin=np.log(config.floor), vmax=float(max(x.max() for x in (made.frames[k], true.frames[k]))),
            )  # fmt: skip
            ax.set(xlim=(0, longest), yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_ylabel(what, fontsize=8, color=INK)
            ax.tick_params(labelsize=7, colors=INK, length=2)
        durations = made.durations[k][: len(tokens[k])]
        ends = np.cumsum(durations) * seconds
        height = made.frames[k].shape[1]
        for token, end, length in zip(tokens[k], ends, durations * seconds, strict=True):
            pair[0].axvline(end, color="white", linewidth=0.4, alpha=0.6)
            shown = {"[bos]": "", "[eos]": "", "Ġ": "␣"}.get(token, token)
            pair[0].text(end - length / 2, height * 0.9, shown, color="white", fontsize=6.5, ha="center",
                         parse_math=False)  # fmt: skip
        pair[0].set_title(texts[k], fontsize=8.5, color=INK, loc="left", parse_math=False)
        pair[0].tick_params(bottom=False, labelbottom=False)
    axes[-1].set_xlabel("seconds", fontsize=8, color=INK)
    return fig
