"""Report sections on synthesised speech: audio beside recordings, and spectrograms with the tokens' durations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmodal_jax.evaluation.speech import SynthesisComparison, Utterances
from xmodal_jax.metrics.text import align_words
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.report.figures import INK, WIDTH
from xmodal_jax.report.page import Audio, MarkedText, Report

TABLE_ROWS = 6
"""Rows of each table of examples."""
SPECTROGRAMS = 3
"""Examples in each figure of spectrograms."""


def add_speech(
    report: Report,
    texts: Sequence[str],
    tokens: Sequence[Sequence[str]],
    synthesized: Utterances,
    vocoded: Utterances,
    recordings: Utterances,
    comparison: SynthesisComparison,
    transcripts: Sequence[str] | None,
    config: SpeechConfig,
) -> None:
    """Audio and spectrograms of random examples and of those farthest from their recordings.

    Args:
      report: gets the tables and figures.
      texts: the texts that were synthesised.
      tokens: the tokens of each text.
      synthesized: the speech of the model.
      vocoded: copy synthesis, that is, the recordings' own spectrograms turned into audio by the vocoder.
      recordings: the true speech.
      comparison: of the synthesised speech with the recordings.
      transcripts: of the synthesised speech, by a recogniser; None: there is none.
      config: of the model.
    """
    distances = comparison.distances
    sampled = np.random.default_rng(0).permutation(len(texts))[:TABLE_ROWS].tolist()
    farthest = np.argsort(-distances, kind="stable")[:TABLE_ROWS].tolist()
    notes = ("Random examples.", "Largest mel distance.")
    rate = config.features.sample_rate
    columns = ["text", "synthesised", "recording", "copy synthesis", "mel distance"]
    if transcripts is not None:
        columns.append("transcript")
    for indices, note in zip((sampled, farthest), notes, strict=True):
        cells = []  # the cells of each row
        for k in indices:
            sounds = [Audio(np.asarray(x.waves[k]), rate) for x in (synthesized, recordings, vocoded)]
            cells.append([texts[k], *sounds, f"{distances[k]:.2f}"])
            if transcripts is not None:
                cells[-1].append(MarkedText(align_words(transcripts[k], texts[k])))
        report.add_table("Synthesised speech", columns, cells, note)
    for indices, note in zip((sampled[:SPECTROGRAMS], farthest[:SPECTROGRAMS]), notes, strict=True):
        fig = spectrograms(indices, texts, tokens, synthesized, recordings, comparison.pitch, config)
        report.add_figure(
            "Spectrograms and pitch", fig, f"{note} The green line is the pitch, in Hz on the right."
        )


def spectrograms(
    indices: Sequence[int],
    texts: Sequence[str],
    tokens: Sequence[Sequence[str]],
    synthesized: Utterances,
    recordings: Utterances,
    pitch: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    config: SpeechConfig,
) -> Figure:
    """For each of the examples ``indices`` the synthesised log-mel frames with their tokens, above those of the
    recording, and the pitch of both over them.

    ``texts``, ``tokens`` (of each text), the utterances and ``pitch`` (in Hz, of the synthesised speech and of the
    recordings) are those of all examples. ``config``: of the model.
    """
    fig = Figure((WIDTH, 2.5 * len(indices)), layout="constrained")
    axes = fig.subplots(2 * len(indices), 1, squeeze=False)[:, 0]  # one column
    seconds = config.features.hop / config.features.sample_rate  # per frame
    longest = max(len(x.frames[k]) for k in indices for x in (synthesized, recordings)) * seconds
    for (top, bottom), k in zip(axes.reshape(-1, 2), indices, strict=True):  # two panels for each example
        # Of both: one colour scale.
        loudest = float(max(x.frames[k].max() for x in (synthesized, recordings)))
        panels = ((top, synthesized, pitch[0]), (bottom, recordings, pitch[1]))
        for (ax, speech, frequency), label in zip(panels, ("synthesised", "recording"), strict=True):
            frames = speech.frames[k]
            ax.imshow(
                frames.T, origin="lower", aspect="auto", cmap="magma",
                extent=(0, len(frames) * seconds, 0, frames.shape[1]),
                vmin=np.log(config.floor), vmax=loudest,
            )  # fmt: skip
            ax.set(xlim=(0, longest), yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_ylabel(label, fontsize=8, color=INK)
            ax.tick_params(labelsize=7, colors=INK, length=2)
            highest = max(of_all[k].max(initial=0.0) for of_all in pitch)
            _draw_pitch(ax, frequency[k], seconds, highest=highest)
        durations = synthesized.durations[k][: len(tokens[k])] * seconds  # without those of padding
        _draw_tokens(top, tokens[k], durations, height=synthesized.frames[k].shape[1])
        top.set_title(texts[k], fontsize=8.5, color=INK, loc="left", parse_math=False)
        top.tick_params(bottom=False, labelbottom=False)
    axes[-1].set_xlabel("seconds", fontsize=8, color=INK)
    return fig


def _draw_tokens(ax: Axes, tokens: Sequence[str], durations: np.ndarray, *, height: int) -> None:
    """Writes each token into a spectrogram at its time, with a line where it ends. ``durations``: of the tokens, in
    seconds. ``height``: of the spectrogram, in mel bands."""
    for token, end, duration in zip(tokens, np.cumsum(durations), durations, strict=True):
        ax.axvline(end, color="white", linewidth=0.4, alpha=0.6)
        # The begin and the end of the text are not shown; "Ġ" is the space of byte-level BPE.
        label = {"[bos]": "", "[eos]": "", "Ġ": "␣"}.get(token, token)
        ax.text(end - duration / 2, height * 0.9, label, color="white", fontsize=6.5, ha="center",
                parse_math=False)  # fmt: skip


def _draw_pitch(ax: Axes, frequency: np.ndarray, seconds: float, *, highest: float) -> None:
    """Draws the pitch over a spectrogram, with an axis of its own on the right; nothing in unvoiced frames.

    ``frequency``: of each frame, in Hz. ``seconds``: from frame to frame. ``highest``: pitch of the panels that are
    compared, in Hz.
    """
    right = ax.twinx()
    time = (np.arange(len(frequency)) + 0.5) * seconds
    # Dots, so that a voiced frame between unvoiced ones is seen as well.
    right.plot(
        time, np.where(frequency > 0, frequency, np.nan), ".-", color="#35e08a", markersize=2.5, linewidth=0.9
    )
    right.set(ylim=(0, 1.6 * max(highest, 1.0)))  # the tokens stand above it
    right.spines[:].set_visible(False)
    right.tick_params(labelsize=6.5, colors=INK, length=2)
