"""Subtitles of a transcript: lines, times and formats."""

import itertools
import json
import re

import numpy as np

from xmodal_jax.inference.long_audio import Transcript, Word
from xmodal_jax.inference.subtitles import (
    LEAST_SECONDS,
    MAX_CHARACTERS,
    MAX_SECONDS,
    PAUSE_SECONDS,
    make_subtitles,
    to_json,
    to_srt,
    to_vtt,
)


def make_words(count=300, seed=0):
    rng = np.random.default_rng(seed)
    now, words = 0.0, []
    for k in range(count):
        start = now + float(rng.exponential(0.2))
        now = start + float(rng.uniform(0.05, 0.6))
        words.append(Word(f"word{k}" * int(rng.integers(1, 3)), start, now, 0.9))
    return words


def test_lines_hold_all_words_in_order_and_never_overlap():
    words = make_words()
    lines = make_subtitles(words)
    assert " ".join(line.text for line in lines).split() == [word.text for word in words]
    by_text = {word.text: word for word in words}
    for line in lines:
        own = [by_text[text] for text in line.text.split()]
        assert len(line.text) <= MAX_CHARACTERS and own[-1].end - own[0].start <= MAX_SECONDS
        assert line.start == own[0].start and line.end >= own[-1].end
        assert all(b.start - a.end < PAUSE_SECONDS for a, b in itertools.pairwise(own))
    for line, following in itertools.pairwise(lines):
        assert line.end <= following.start + 1e-9
        assert line.end - line.start >= min(LEAST_SECONDS, following.start - line.start) - 1e-9
    assert make_subtitles([]) == []


def test_long_words_have_lines_of_their_own():
    words = [
        Word("a", 0.0, 0.1, 1.0),
        Word("b" * 60, 0.1, 0.2, 1.0),
        Word("c", 0.2, 9.9, 1.0),
        Word("d", 9.9, 10, 1.0),
    ]
    assert [line.text for line in make_subtitles(words)] == ["a", "b" * 60, "c", "d"]


def test_files_are_as_their_formats_say():
    words = [Word("a<b", 1.0, 2.0004, 0.5), Word("&", 2.1, 2.2, 0.25), Word("late", 3723.9996, 3725.0, 1.0)]
    transcript = Transcript.from_words(words)
    assert to_srt(transcript) == (
        "1\n00:00:01,000 --> 00:00:02,200\na<b &\n\n2\n01:02:04,000 --> 01:02:05,000\nlate\n"
    )
    assert to_vtt(transcript) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.200\na&lt;b &amp;\n\n01:02:04.000 --> 01:02:05.000\nlate\n"
    )
    content = json.loads(to_json(transcript))
    assert content["text"] == "a<b & late"
    assert content["words"][1] == {"text": "&", "start": 2.1, "end": 2.2, "confidence": 0.25}
    empty = Transcript.from_words([])
    assert (
        to_srt(empty) == ""
        and re.fullmatch("WEBVTT\\s*", to_vtt(empty))
        and json.loads(to_json(empty))["words"] == []
    )
