"""Text files that people wrote: UTF-8 or refused, with line and byte."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.core import text_files


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20).filter(lambda t: t[:1] != "\ufeff"))
def test_text_is_what_was_written_with_and_without_a_mark(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "a.txt"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + text.encode())
        assert text_files.read_text(path) == text == text_files.read_damaged(path)


def test_a_byte_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("ab\ncafé é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt:2: byte 4 of the line \(0xe9\) is not UTF-8"):
        text_files.read_text(tmp_path / "a.txt")
    damaged = text_files.read_damaged(tmp_path / "a.txt").split("\n")
    assert text_files.surrogate_in(damaged[0]) is None
    assert "byte 4 (0xe9) is not UTF-8" in text_files.surrogate_in(damaged[1])
    (tmp_path / "a.txt").write_bytes("ab".encode("utf-16"))
    for read in (text_files.read_text, text_files.read_damaged):
        with pytest.raises(ValueError, match="a.txt:1: the file is UTF-16"):
            read(tmp_path / "a.txt")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_line_ends_alone(end):
    lines = ["a\u2028b", "", "c\x0bd\x85"]
    assert text_files.split_lines(end.join(lines)) == lines
    assert text_files.split_lines(end.join(lines) + end) == lines
    assert text_files.split_lines(end.join(lines), keep_ends=True) == [line + "\n" for line in lines]
    assert text_files.split_lines("") == []


@pytest.mark.parametrize(
    "text,reason",
    [
        ("{", "not JSON"),
        ("9" * 5000, "thousands of digits"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("-Infinity", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_what_cannot_be_parsed_has_a_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        text_files.parse_json(text)


def test_json_is_that_of_the_standard_library():
    value = {"a": [1, 2.5, None, True, "é\u2028"], "b": {"c": {}}}
    assert text_files.parse_json(json.dumps(value)) == value
    assert text_files.parse_json("[NaN, 1]") == [None, 1]


def test_one_spelling_and_short_messages():
    composed = "caf\u00e9"
    assert text_files.normalise(unicodedata.normalize("NFD", composed)) == composed
    assert "\\ud83d, half of a surrogate pair" in text_files.surrogate_in("a\ud83d")
    assert (
        len(text_files.shorten("x" * 10_000)) < 100
        and len(text_files.shorten([[[[[["y" * 999]]]]]] * 99)) < 200
    )
