"""Metadata files as people and programs write them: what is read, and that a bad line costs no other."""

import csv
import io
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.metadata import choose_test, find_file, in_test_split, read_metadata

GOOD = [{"file_name": f"{k}.png", "text": f"picture {k}", "label": "ab"[k % 2]} for k in range(40)]


def as_jsonl(rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def as_csv(rows, quoting=csv.QUOTE_MINIMAL):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read(folder, content, suffix="jsonl", on_bad_example="skip", columns=None):
    path = folder / f"metadata.{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    bad_examples = BadExamples(on_bad_example)
    return read_metadata(path, bad_examples, columns), bad_examples


ODD_LINES = {
    "not UTF-8": '{"file_name": "0.png", "text": "café", "label": "a"}'.encode("latin-1"),
    "many digits": b'{"file_name": "0.png", "text": "x", "label": ' + b"9" * 5000 + b"}",
    "nested": b'{"file_name": "0.png", "text": ' + b"[" * 100_000 + b"}",
    "nested within limits": b'{"file_name": "0.png", "text": ' + b"[" * 500 + b"]" * 500 + b', "label": "a"}',
    "nested name": b'{"file_name": ' + b"[" * 500 + b"]" * 500 + b', "text": "x", "label": "a"}',
    "half of a pair": b'{"file_name": "0.png", "text": "\\ud83d", "label": "a"}',
    "half of a pair in a name": b'{"file_name": "\\ud83d.png", "text": "x", "label": "a"}',
    "half of a pair in a label": b'{"file_name": "0.png", "text": "x", "label": "\\ud83d"}',
    "extra field": b'{"file_name": "0.png", "text": "x", "label": "a", "audio": "x.wav"}',
    "absent field": b'{"file_name": "0.png", "label": "a"}',
    "field twice": b'{"file_name": "0.png", "text": "x", "text": "y", "label": "a"}',
    "fraction": b'{"file_name": "0.png", "text": "x", "label": 2.5}',
    "infinite": b'{"file_name": "0.png", "text": "x", "label": Infinity}',
    "another type": b'{"file_name": "0.png", "text": "x", "label": true}',
    "a list": b'["0.png"]',
    "a number": b"3",
}


def read_with_odd_line(tmp_path, lines, odd, place, suffix):
    """``(lines, bad_examples)``: the good ``lines`` with an odd one, which alone is left out, before line ``place``."""
    lines = lines.encode().splitlines()
    lines.insert(place, odd)
    records, bad_examples = read(tmp_path, b"\n".join(lines), suffix)
    assert [r.files["image"] for r in records] == [row["file_name"] for row in GOOD]
    assert [b.line for b in bad_examples.items] == [place + 1]
    return lines, bad_examples


@pytest.mark.parametrize("name", ODD_LINES)
@pytest.mark.parametrize("place", [0, 17, 40])
def test_an_odd_line_among_many_is_the_only_one_left_out(tmp_path, name, place):
    lines, bad_examples = read_with_odd_line(tmp_path, as_jsonl(GOOD), ODD_LINES[name], place, "jsonl")
    assert len(bad_examples.items[0].reason) < 400
    bad_examples.write(tmp_path / "bad.jsonl")
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1
    with pytest.raises(BadExampleError, match=rf"metadata.jsonl:{place + 1}: "):
        read(tmp_path, b"\n".join(lines), on_bad_example="stop")


CSV_LINES = {
    "not UTF-8": "0.png,café,a".encode("latin-1"),
    "an open quote": b'0.png,"x,a',
    "text after a quote": b'0.png,"x"y,a',
    "many digits": b"0.png,x," + b"9" * 5000,
    "a long cell": b"0.png," + b"x" * 200_000 + b",a",
    "too many cells": b"0.png,x,a,b",
    "too few cells": b"0.png,x",
    "an empty caption": b"0.png,,a",
}


@pytest.mark.parametrize("name", CSV_LINES)
@pytest.mark.parametrize("place", [1, 17, 41])
def test_an_odd_csv_line_among_many_is_the_only_one_left_out(tmp_path, name, place):
    read_with_odd_line(tmp_path, as_csv(GOOD), CSV_LINES[name], place, "csv")


def test_a_byte_that_is_not_utf8_is_named_with_file_and_line(tmp_path):
    line = '{"file_name": "a.png", "text": "un café noir"}'.encode("latin-1")
    byte = line.index(b"\xe9") + 1
    with pytest.raises(BadExampleError, match=rf"metadata.jsonl:2: .*byte {byte} \(0xe9\) is not UTF-8"):
        read(tmp_path, b'{"file_name": "b.png", "text": "x"}\n' + line, on_bad_example="stop")
    content = b"file_name,text\nb.png,x\na.png," + "红".encode("gbk") + b"\n"
    with pytest.raises(BadExampleError, match=r"metadata.csv:3: byte 7 \(0xba\) is not UTF-8"):
        read(tmp_path, content, "csv", on_bad_example="stop")
    with pytest.raises(ValueError, match="metadata.csv:1: .*not UTF-8"):
        read(tmp_path, b"file_name,\xe9\n", "csv")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\n  \n"])
@pytest.mark.parametrize("separator", [b"\n", b"\r\n"])
def test_marks_and_blank_lines_change_nothing(tmp_path, suffix, mark, end, separator):
    content = (as_jsonl if suffix == "jsonl" else as_csv)(GOOD[:3]).encode().rstrip(b"\n")
    records, bad_examples = read(tmp_path, mark + (content + end).replace(b"\n", separator), suffix)
    assert [r.files["image"] for r in records] == ["0.png", "1.png", "2.png"] and not bad_examples.items
    assert [r.captions["text"] for r in records] == [["picture 0"], ["picture 1"], ["picture 2"]]


PANDAS = [
    ("2.0", 2.0, 2),
    ("10.0", 10.0, 10),
    ("", None, None),
    ("", float("nan"), None),
    ("7", 7, 7),
    ("3.", 3.0, 3),
]


def test_labels_as_pandas_writes_them_are_the_same_in_both_formats(tmp_path):
    rows = [{"file_name": f"{k}.png", "text": "x", "label": cell} for k, (cell, _, _) in enumerate(PANDAS)]
    values = [{**row, "label": value} for row, (_, value, _) in zip(rows, PANDAS, strict=True)]
    expected = [label for _, _, label in PANDAS]
    assert [r.label for r in read(tmp_path, as_csv(rows), "csv")[0]] == expected
    (tmp_path / "metadata.csv").unlink()
    assert [r.label for r in read(tmp_path, as_jsonl(values))[0]] == expected


@pytest.mark.parametrize("cell", ["--5", "²", "٣", "1e3", "0x1", "1_0", "nan", "-", "5-", "1.5"])
def test_what_only_looks_like_a_number_is_a_name_in_csv(tmp_path, cell):
    row = {"file_name": "0.png", "text": "x", "label": cell}
    [record], bad_examples = read(tmp_path, as_csv([row]), "csv")
    assert record.label == unicodedata.normalize("NFC", cell) and not bad_examples.items


@given(st.lists(st.text(max_size=12), min_size=1, max_size=6), st.sampled_from(["csv", "jsonl"]))
def test_any_captions_are_read_or_reported(tmp_path_factory, captions, suffix):
    """Nothing is lost, and what is read is the caption in its one spelling."""
    folder = tmp_path_factory.mktemp("a", numbered=True)
    rows = [{"file_name": f"{k}.png", "text": caption} for k, caption in enumerate(captions)]
    content = as_csv(rows, csv.QUOTE_ALL) if suffix == "csv" else as_jsonl(rows)
    records, bad_examples = read(folder, content, suffix)
    got = {r.files["image"]: r.captions["text"] for r in records}
    for row in rows:
        if row["file_name"] in got:
            expected = " ".join(unicodedata.normalize("NFC", row["text"].strip()).split())
            assert got[row["file_name"]] == [expected]
    assert len(records) + len(bad_examples.items) == len(rows)


def test_columns_with_other_names(tmp_path):
    rows = [{"my_file": "a.png", "caption": "x", "kind": "dog"}]
    with pytest.raises(
        ValueError,
        match="no column file_name; found my_file, caption, kind: give --columns file_name=my_file",
    ):
        read(tmp_path, as_csv(rows), "csv")
    columns = {"file_name": "my_file", "label": "kind"}
    [record], bad_examples = read(tmp_path, as_csv(rows), "csv", columns=columns)
    assert (record.files, record.captions, record.label) == ({"image": "a.png"}, {"text": ["x"]}, "dog")
    assert not bad_examples.notes and not bad_examples.remarks
    with pytest.raises(ValueError, match="no column path .--columns.; found my_file, caption, kind"):
        read(tmp_path, as_csv(rows), "csv", columns={"file_name": "path"})
    with pytest.raises(ValueError, match="separate the columns by commas"):
        read(tmp_path, "file_name;text\na.png;x\n", "csv")
    with pytest.raises(ValueError, match="metadata.csv:1: the column 'text' is there twice"):
        read(tmp_path, "file_name,text,text\na.png,x,y\n", "csv")


def test_what_is_not_read_is_said(tmp_path):
    records, bad_examples = read(tmp_path, as_csv([row | {"category": "x"} for row in GOOD]), "csv")
    assert len(records) == 40 and [r.label for r in records] == [row["label"] for row in GOOD]
    [remark] = bad_examples.remarks
    assert remark == "metadata.csv: columns that are not read: 'category' (--columns NAME=COLUMN reads one)"


def test_what_no_split_reads_is_said_once(tmp_path):
    """The tables of the splits have one name, and what is the same in each is one line."""
    bad_examples = BadExamples()
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        path = tmp_path / split / "metadata.csv"
        path.write_text(as_csv([row | {"category": "x"} for row in GOOD]))
        read_metadata(path, bad_examples, None)
    assert len(bad_examples.remarks) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("name", ["../{0}/x.png", "/{0}/x.png", "a/../../x.png", r"..\x.png", r"C:\x.png"])
def test_metadata_cannot_leave_their_folder(tmp_path, suffix, name):
    """Unless a flag says so: it is one bad example, whether or not there is such a file."""
    rows = [*GOOD, {**GOOD[0], "file_name": name.format(tmp_path.name)}]
    content = as_jsonl(rows) if suffix == "jsonl" else as_csv(rows)
    records, bad_examples = read(tmp_path, content, suffix)
    assert len(records) == len(GOOD)
    [bad] = bad_examples.items
    assert bad.line == len(GOOD) + (1 if suffix == "jsonl" else 2)
    assert "'file_name' names" in bad.reason and "outside of the folder" in bad.reason
    path = tmp_path / f"metadata.{suffix}"
    assert len(read_metadata(path, BadExamples(), allow_outside=True)) == len(rows)


def test_captions_alone_are_a_data_set(tmp_path):
    assert len(read(tmp_path, as_jsonl([{"text": "x"}, {"text": "y"}]))[0]) == 2


def test_files_are_found_in_another_spelling(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (tmp_path / decomposed / "sub").mkdir(parents=True)
    file = tmp_path / decomposed / "sub" / f"{decomposed}.png"
    file.touch()
    for name in (
        f"{composed}/sub/{composed}.png",
        f"{decomposed}\\sub\\{composed}.png",
        f"./{composed}\\sub/{decomposed}.png",
    ):
        assert find_file(tmp_path, name).samefile(file)
        assert in_test_split(name) == in_test_split(name.replace(composed, decomposed).replace("\\", "/"))
    odd = tmp_path / "a\\b.png"  # a backslash that is part of the name
    odd.touch()
    assert find_file(tmp_path, "a\\b.png").samefile(odd)
    assert not find_file(tmp_path, "none.png").exists()


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=8))
def test_both_splits_have_an_example_and_names_stay_together(names):
    if len(set(names)) == 1:
        with pytest.raises(ValueError, match="one example is not enough"):
            choose_test(names, "a")
        return
    in_test = choose_test(names, "a")
    assert 0 < in_test.sum() < len(names)
    assert not {n for n, t in zip(names, in_test, strict=True) if t} & {
        n for n, t in zip(names, in_test, strict=True) if not t
    }


def test_many_names_are_split_by_their_hashes():
    names = [f"{k}.png" for k in range(300)]
    np.testing.assert_array_equal(choose_test(names, "a"), [in_test_split(name) for name in names])
