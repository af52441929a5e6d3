"""Tables as other programs write them: columns without values, files that differ, types that no example has."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.sources.test_parquet import with_features
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.sources.parquet import ParquetSource, SavedSource

COUNT = 12
TEXTS = [f"picture {k}" for k in range(COUNT)]
LABELS = [k % 3 for k in range(COUNT)]


def png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


IMAGES = [png(k) for k in range(COUNT)]
GOOD = {"image": IMAGES, "text": TEXTS, "label": LABELS}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))


def open_tables(folder, *tables, split="all", names=None, mode="stop", **options):
    """``(source, remarks)`` of tables, one in each file."""
    folder = folder / "data"
    folder.mkdir()
    for k, table in enumerate(tables):
        name = names[k] if names else f"{k}.parquet"
        pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / name)
    bad = BadExamples(mode)
    return ParquetSource(folder, split, bad_examples=bad, progress=False, workers=1, **options), bad


def labels_of(source):
    return source.class_labels().tolist()


@pytest.mark.parametrize("column, missing", [("text", ""), ("label", -1)])
@pytest.mark.parametrize("first", [True, False])
def test_a_column_without_values_in_one_file_is_that_of_the_others(tmp_path, column, missing, first):
    empty = {**GOOD, column: pa.nulls(COUNT)}
    source, _ = open_tables(tmp_path, *([empty, GOOD] if first else [GOOD, empty]))
    values = source.batch(np.arange(2 * COUNT))["caption" if column == "text" else "label"].tolist()
    assert values == ([missing] * COUNT + GOOD[column] if first else GOOD[column] + [missing] * COUNT)


def test_a_column_without_any_value_is_not_read(tmp_path):
    source, bad = open_tables(tmp_path, {**GOOD, "text": pa.nulls(COUNT), "label": pa.nulls(COUNT)})
    assert source.modalities == ("image",) and source.class_labels() is None
    assert [r for r in bad.remarks if "'text', 'label'" in r and "without any value" in r]


@pytest.mark.parametrize("schema", [{}, {"image": pa.nulls(0), "text": pa.nulls(0)}])
def test_files_without_rows_decide_nothing(tmp_path, schema):
    source, _ = open_tables(tmp_path, schema, GOOD)
    assert len(source) == COUNT and source.modalities == ("text", "image")


@pytest.mark.parametrize("first", [True, False])
def test_a_column_that_one_file_lacks_is_named_with_both_files(tmp_path, first):
    lacking = {name: values for name, values in GOOD.items() if name != "label"}
    with pytest.raises(ValueError, match=r"[01]\.parquet: no column label; .* while .*[01]\.parquet has it"):
        open_tables(tmp_path, *([lacking, GOOD] if first else [GOOD, lacking]))


def test_classes_must_have_the_same_numbers_in_all_files(tmp_path):
    first, second = (
        with_features(pa.table(GOOD), label={"_type": "ClassLabel", "names": [*names]})
        for names in ("abc", "cba")
    )
    with pytest.raises(ValueError, match=r"1\.parquet: the classes of the column label are 'c, b, a', but"):
        open_tables(tmp_path, first, second)


def test_names_of_classes_can_stand_in_a_later_file(tmp_path):
    named = with_features(pa.table(GOOD), label={"_type": "ClassLabel", "names": [*"cba"]})
    source, _ = open_tables(tmp_path, GOOD, named)
    assert source.class_names == ("c", "b", "a") and labels_of(source) == LABELS * 2


@pytest.mark.parametrize("names", [["a", "a", "c"], ["", "b", "c"]])
def test_each_class_has_a_name_of_its_own(tmp_path, names):
    with pytest.raises(ValueError, match=r"0\.parquet: the classes of the column label .* a name of its own"):
        open_tables(tmp_path, with_features(pa.table(GOOD), label={"_type": "ClassLabel", "names": names}))


@pytest.mark.parametrize("named", [True, False])
def test_a_number_without_sign_stays_itself(tmp_path, named):
    table = pa.table({**GOOD, "label": pa.array([*LABELS[:-1], 2**64 - 1], pa.uint64())})
    table = with_features(table, label={"_type": "ClassLabel", "names": [*"abc"]}) if named else table
    source, bad = open_tables(tmp_path, table, mode="skip")
    assert labels_of(source) == LABELS[:-1]  # the last is not -1, unknown
    assert [(e.line, "18446744073709551615" in e.reason) for e in bad.items] == [(COUNT, True)]


def test_groups_without_sign_are_told_apart(tmp_path):
    groups = pa.array([2**63 + k // 2 for k in range(COUNT)], pa.uint64())
    source, _ = open_tables(tmp_path, {**GOOD, "group": groups})
    assert source.groups().tolist() == [k // 2 * 2 for k in range(COUNT)]


@pytest.mark.parametrize(
    "labels", [pa.array([True] * COUNT), pa.array([[1]] * COUNT), pa.array([b"a"] * COUNT)]
)
def test_labels_of_another_type_are_not_read_unless_they_are_asked_for(tmp_path, labels):
    table = {**GOOD, "label": labels}
    source, bad = open_tables(tmp_path, table)
    assert source.class_labels() is None
    assert [remark for remark in bad.remarks if "the column label is not read" in remark]
    with pytest.raises(ValueError, match="the column label, which is to be the label, is .* or write it so"):
        ParquetSource(tmp_path / "data", "all", columns={"label": "label"}, progress=False)


def test_a_column_with_files_of_several_kinds_is_refused(tmp_path):
    names = [f"{k}.png" if k % 2 else f"{k}.wav" for k in range(COUNT)]
    with pytest.raises(ValueError, match=r"0\.parquet: the column file_name names files of audio and image"):
        open_tables(tmp_path, {"file_name": names, "text": TEXTS})


def test_shards_that_are_not_there_are_remarked(tmp_path):
    names = ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet", "train-00000-of-00001.parquet"]
    _, bad = open_tables(tmp_path, GOOD, GOOD, GOOD, names=names)
    assert [
        r for r in bad.remarks if "1 of 3 shards of train are not there, the first train-00001-of-00003" in r
    ]
    assert [r for r in bad.remarks if "two divisions, -of-00001 and -of-00003" in r]


def test_names_in_capital_letters_are_found(tmp_path):
    assert len(open_tables(tmp_path, GOOD, names=["TRAIN.PARQUET"])[0]) == COUNT


def test_addresses_are_said_to_be_no_files(tmp_path):
    _, bad = open_tables(tmp_path, {"image": ["http://a.b/c.png", *[None] * 11], "text": TEXTS}, mode="skip")
    assert [(e.line, e.reason) for e in bad.items] == [
        (1, "the file 'http://a.b/c.png' is an address: download the file, and name it by its path")
    ]


def test_what_cannot_be_decoded_has_the_same_reason_each_time(tmp_path):
    table = {"image": [b"<html>", *IMAGES[1:]], "audio": [b"", b"RIFF", *[None] * 10], "text": TEXTS}
    _, bad = open_tables(tmp_path, table, mode="skip")
    reasons = [e.reason for e in bad.items]
    assert len(reasons) == 2 and not any("0x" in reason for reason in reasons)
    ParquetSource(tmp_path / "data", "all", bad_examples=bad, progress=False)
    assert [e.reason for e in bad.items] == reasons and "b'<html>'" in reasons[0]


def test_views_of_lists_are_lists(tmp_path):
    captions = pa.array([[t, t + "!"] for t in TEXTS[:-2]] + [None, ["x"]], pa.list_view(pa.string()))
    table = pa.table({"image": IMAGES, "captions": captions})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    source = SavedSource(tmp_path / "a.arrow", "all", progress=False)
    expected = [c for list_ in captions.to_pylist() for c in list_ or [""]]
    assert source.batch(np.arange(len(source)))["caption"].tolist() == expected


def test_an_arrow_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    with pytest.raises(FileNotFoundError, match=r"data-00000-of-00001\.arrow does not exist"):
        SavedSource(tmp_path, progress=False)


@pytest.mark.parametrize("arrow", [True, False])
def test_names_of_columns_that_are_damaged_name_the_file(tmp_path, arrow):
    path, table = tmp_path / "a.arrow", pa.table({**GOOD, "description_of_it": TEXTS})
    if arrow:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"description_of_it", b"description\xd8of_it"))
    with pytest.raises(ValueError, match=r"a\.arrow: not an? (Arrow|Parquet) file, or a truncated one"):
        (SavedSource if arrow else ParquetSource)(path, "all", progress=False)
