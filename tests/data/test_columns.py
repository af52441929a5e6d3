"""What the columns of metadata are taken for: by ``--columns``, by their usual names, by common ones."""

import json

import numpy as np
import pytest

from tests.data.sources.test_folder import save_png, save_wav, write
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.columns import COMMON_NAMES, common_field, field_of, parse_columns
from xmodal_jax.data.metadata import read_metadata
from xmodal_jax.data.open import DataOptions, open_source


def read(folder, rows, **options):
    """The records of lines, and what is remarked; a bad line raises."""
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad_examples = BadExamples()
    return read_metadata(folder / "metadata.jsonl", bad_examples, **options), bad_examples.remarks


@pytest.mark.parametrize(
    "name,field",
    [
        ("file_name", "file_name"), ("label", "label"), ("group", "group"), ("image", "image"),
        ("image_file_name", "image"), ("image_2", "image_2"), ("image_2_file_name", "image_2"), ("text_es", "text_es"),
        ("audio_sound", "audio_sound"), ("text", "text"), ("text_file_name", None), ("filename", None),
        ("image_", None), ("image_mask", None), ("", None), ("smell", None),
    ],
)  # fmt: skip
def test_names_of_columns_are_fields_or_modalities(name, field):
    assert field_of(name) == field
    if field is None:
        with pytest.raises(ValueError, match="is not NAME=COLUMN"):
            parse_columns([f"{name}=x"])
    else:
        assert parse_columns([f"{name}=a=b"]) == {field: "a=b"}


def test_no_name_is_common_for_two_fields():
    names = [name for names in COMMON_NAMES.values() for name in names]
    assert len(names) == len(set(names)) and names == [name.lower() for name in names]
    assert common_field("Image Path") == common_field("image-path") == "image"


def test_columns_give_modalities_of_their_own(tmp_path):
    save_png(tmp_path / "a.png", 1)
    save_png(tmp_path / "b.png", 2)
    save_wav(tmp_path / "a.wav", 100)
    row = {
        "photo_of": "a.png",
        "second": "b.png",
        "noise": "a.wav",
        "spanish": "una",
        "text": "one",
        "who": "x",
    }
    write(tmp_path, [row])
    columns = ("image=photo_of", "image_2=second", "audio_sound=noise", "text_es=spanish", "label=who")
    options = DataOptions(columns=columns, progress=False, max_seconds=0.1)
    source = open_source(f"folder:{tmp_path}", "all", options)
    assert source.modalities == ("text", "text_es", "image", "image_2", "audio_sound")
    assert source.class_names == ("x",)
    batch = source.batch(np.array([0]))
    assert (batch["caption"][0], batch["caption_es"][0]) == ("one", "una")
    assert (batch["image"] != batch["image_2"]).any()


def test_named_modalities_are_read_by_their_columns(tmp_path):
    row = {
        "file_name": "a.png",
        "image_2": "b.png",
        "audio_x_file_name": "c.wav",
        "text_es": "una",
        "image_id": 7,
    }
    [record], remarks = read(tmp_path, [row])
    assert record.files == {"image": "a.png", "image_2": "b.png", "audio_x": "c.wav"} and not record.captions
    [remark] = remarks
    assert (
        "not read: 'text_es', 'image_id' (--columns NAME=COLUMN reads one, --modalities ... text_es a"
        in remark
    )
    [record], remarks = read(tmp_path, [row], modalities=("image", "text_es"))
    assert record.captions == {"text_es": ["una"]} and "not read: 'image_id' (--col" in remarks[0]
    [record], _ = read(tmp_path, [row], columns={"text_fr": "text_es"})
    assert record.captions == {"text_fr": ["una"]}


def test_an_empty_cell_of_a_second_text_is_missing_and_of_the_text_is_bad(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("file_name,text,text_es\na.png,x,\nb.png,,y\n")
    bad_examples = BadExamples("skip")
    [record] = read_metadata(path, bad_examples, modalities=("text", "text_es"))
    assert record.captions == {"text": ["x"]}
    assert [(b.line, "caption is empty" in b.reason) for b in bad_examples.items] == [(3, True)]


@pytest.mark.parametrize(
    "row,files,captions,label",
    [
        ({"filename": "a.png", "sentence": "x", "category": "c"}, {"image": "a.png"}, ["x"], "c"),
        ({"Path": "a.mp3", "Transcript": "x", "class_id": 3}, {"audio": "a.mp3"}, ["x"], 3),
        ({"img": "a.png", "wav": "b.wav", "Description": ["x", "y"]}, {"image": "a.png", "audio": "b.wav"},
         ["x", "y"], None),
        ({"file_name": "a.png", "audio_path": "b.wav", "text": "x"}, {"image": "a.png", "audio": "b.wav"}, ["x"], None),
        ({"image_bytes": "a.png", "caption": "x"}, {"image": "a.png"}, ["x"], None),
        # What is there by its usual name needs no other, and what is not a file name is none.
        ({"image": "a.png", "path": "b.png", "text": "x", "sentence": "y"}, {"image": "a.png"}, ["x"], None),
        ({"image": "a.png", "path": "/m/7", "text": "x", "class": None}, {"image": "a.png"}, ["x"], None),
        ({"image": "a.png", "img": "https://a.b/c.png", "caption": "x"}, {"image": "a.png"}, ["x"], None),
    ],
)  # fmt: skip
def test_common_names_are_found_and_said(tmp_path, row, files, captions, label):
    [record], remarks = read(tmp_path, [row])
    assert (record.files, record.captions, record.label) == (files, {"text": captions}, label)
    said = "\n".join(remarks)
    for column in row:
        usual = column in ("image", "file_name", "text", "caption")
        assert (f"{column!r}" in said) == (not usual)


@pytest.mark.parametrize(
    "row,message",
    [
        ({"filename": "a.png", "img": "b.png"}, "filename and img can each be the image: .* image=filename"),
        ({"file_name": "a.png", "sentence": "x", "description": "y"}, "sentence and description .* text=sentence"),
        ({"file_name": "a.png", "category": "x", "class": "y"}, "category and class can .* label=category"),
        ({"image": "a.png", "image_file_name": "b.png", "text": "x"}, "image and image_file_name can"),
    ],
)  # fmt: skip
def test_two_columns_for_one_field_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=f"metadata.jsonl: the columns {message}"):
        read(tmp_path, [row])


def test_a_rare_column_is_not_taken_for_the_label(tmp_path):
    rows = [{"file_name": f"{k}.png", "text": "x"} for k in range(5)]
    records, remarks = read(tmp_path, [{**rows[0], "category": "c"}, *rows[1:]])
    assert len(records) == 5 and "'category'" in remarks[0]


def test_two_names_of_one_image_that_differ_are_a_bad_line(tmp_path):
    rows = [{"file_name": "a.png", "image": "a.png"}, {"file_name": "b.mp3", "image": "b.png"}]
    assert len(read(tmp_path, rows)[0]) == 2
    with pytest.raises(BadExampleError, match="jsonl:3: 'image' names 'd.png', but the image is 'c.png'"):
        read(tmp_path, [*rows, {"file_name": "c.png", "image": "d.png"}])


@pytest.mark.parametrize(
    "groups", [[4, 4, None, 4, 9], ["u", "u", None, "u", "v"]], ids=["integers", "names"]
)
def test_a_group_tells_which_lines_show_one_picture(tmp_path, groups):
    rows = [{"file_name": f"{k}.png", "text": "x", "group": group} for k, group in enumerate(groups)]
    for k in range(5):
        save_png(tmp_path / f"{k}.png", k)
    write(tmp_path, rows)
    source = open_source(f"folder:{tmp_path}", "all", DataOptions(progress=False))
    assert source.groups().tolist() == [0, 0, 2, 0, 4]
    parts = [open_source(f"folder:{tmp_path}", s, DataOptions(progress=False)) for s in ("train", "test")]
    sizes = sorted(map(len, parts))
    assert sum(sizes) == 5 and sizes[0] in (1, 2)  # the three of one picture are together
    with pytest.raises(BadExampleError, match="the group must be a whole number or a name, not 1.5"):
        read(tmp_path, [{**rows[0], "group": 1.5}])
