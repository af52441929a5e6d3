"""Subtitles of a transcript with times: SubRip (.srt), WebVTT (.vtt), and the words as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from xmodal_jax.inference.long_audio import Transcript, Word

MAX_CHARACTERS = 42
"""Characters of a subtitle, at most, unless one word has more."""
MAX_SECONDS = 6.0
"""Seconds that a subtitle stays, at most, unless one word lasts longer."""
PAUSE_SECONDS = 0.6
"""Seconds between two words after which another subtitle begins."""
LEAST_SECONDS = 1.0
"""Seconds that a subtitle stays at least, if the next one does not begin before."""


class Subtitle(NamedTuple):
    """A line that is shown for some time."""

    start: float
    """When it appears, in seconds."""
    end: float
    """When it disappears, in seconds."""
    text: str
    """What it says."""


def make_subtitles(words: Sequence[Word]) -> list[Subtitle]:
    """The words in lines of at most `MAX_CHARACTERS` and `MAX_SECONDS`, with a new line after each longer pause.

    A line that is shorter than `LEAST_SECONDS` stays that long, or until the next one appears.
    """
    lines: list[list[Word]] = []
    for word in words:
        line = lines[-1] if lines else []
        fits = (
            line
            and word.start - line[-1].end < PAUSE_SECONDS
            and word.end - line[0].start <= MAX_SECONDS
            and len(" ".join(w.text for w in [*line, word])) <= MAX_CHARACTERS
        )
        if fits:
            line.append(word)
        else:
            lines.append([word])
    if not lines:
        return []
    begins = [*(line[0].start for line in lines[1:]), float("inf")]
    return [
        Subtitle(
            line[0].start,
            max(line[-1].end, min(line[0].start + LEAST_SECONDS, following)),
            " ".join(word.text for word in line),
        )
        for line, following in zip(lines, begins, strict=True)
    ]


def to_srt(transcript: Transcript) -> str:
    """The transcript as the content of a SubRip file.

    Example::

        to_srt(transcript)  # "1\\n00:00:01,700 --> 00:00:03,400\\na big plain violet diamond\\n"
    """
    blocks = [
        f"{k}\n{_clock(line.start, ',')} --> {_clock(line.end, ',')}\n{line.text}\n"
        for k, line in enumerate(make_subtitles(transcript.words), 1)
    ]
    return "\n".join(blocks)


def to_vtt(transcript: Transcript) -> str:
    """The transcript as the content of a WebVTT file (W3C, 2019); the characters ``&`` and ``<`` are escaped."""
    blocks = ["WEBVTT\n"]
    for line in make_subtitles(transcript.words):
        text = line.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(line.start, '.')} --> {_clock(line.end, '.')}\n{text}\n")
    return "\n".join(blocks)


def to_json(transcript: Transcript) -> str:
    """The transcript as a JSON object: ``text``, and ``words`` with text, start and end in seconds and confidence."""
    words = [
        {
            "text": w.text,
            "start": round(w.start, 3),
            "end": round(w.end, 3),
            "confidence": round(w.confidence, 4),
        }
        for w in transcript.words
    ]
    return json.dumps({"text": transcript.text, "words": words}, ensure_ascii=False, indent=1)


def _clock(seconds: float, separator: str) -> str:
    """A time as hours, minutes, seconds and milliseconds, ``00:01:02,345``."""
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{separator}{rest % 1000:03}"


SUBTITLE_WRITERS = {".srt": to_srt, ".vtt": to_vtt, ".json": to_json}
"""The content of a file by its suffix, as a function of a `Transcript`."""
