"""Columns of tables as vectors and series: csv, JSON lines and Parquet."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.columns import parse_columns
from xmodal_jax.data.measured_columns import expand_columns, parse_cell
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.standardise import fit_standardisation

N = 30
RNG = np.random.default_rng(0)
AGE, WEIGHT, PULSE = RNG.integers(20, 80, N), RNG.normal(70, 10, N).round(2), RNG.normal(60, 5, N).round(1)
NOTES = [f"patient {i} rests" for i in range(N)]


def write_csv(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return f"folder:{folder}"


def write_jsonl(folder, records):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return f"folder:{folder}"


def read(spec, columns=(), split="all", **options):
    bad_examples = options.pop("bad_examples", None)
    options = DataOptions(columns=tuple(columns) or None, progress=False, **options)
    return open_source(spec, split, options, bad_examples=bad_examples)


def order_of(source):
    """The number of the patient of each example, from the note."""
    return [int(note.split()[1]) for note in source.batch(np.arange(len(source)))["caption"]]


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def table(request, tmp_path):
    """A table of patients in each format, in which one pulse is missing."""
    pulse = [None if i == 4 else float(x) for i, x in enumerate(PULSE)]
    records = [
        {"age": int(AGE[i]), "weight": float(WEIGHT[i]), "pulse": pulse[i], "text": NOTES[i], "label": i % 2}
        for i in range(N)
    ]
    if request.param == "jsonl":
        return write_jsonl(tmp_path / "data", records)
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
        return f"parquet:{tmp_path / 'a.parquet'}"
    cells = [["" if v is None else str(v) for v in record.values()] for record in records]
    return write_csv(tmp_path / "data", [",".join(records[0]), *map(",".join, cells)])


def test_columns_are_joined_in_the_order_of_the_flag(table):
    source = read(table, ["vector=pulse,age,weight"])
    assert source.modalities == ("text", "vector")
    assert source.feature_names == {"vector": ("pulse", "age", "weight")}
    batch = source.batch(np.arange(len(source)))
    order = order_of(source)
    expected = np.stack([PULSE, AGE, WEIGHT], axis=1)[order]
    mask = np.ones((N, 3), bool)
    mask[order.index(4), 0] = False
    np.testing.assert_array_equal(batch["vector_mask"], mask)
    np.testing.assert_array_equal(batch["vector"], np.where(mask, expected, 0.0))
    measured = source.measured_batch(np.array([3, 0]))
    np.testing.assert_array_equal(measured["vector"], batch["vector"][[3, 0]])
    statistics = fit_standardisation(source).statistics["vector"]
    assert statistics.names == ("pulse", "age", "weight")
    np.testing.assert_allclose(statistics.mean[1], AGE.mean(), rtol=1e-12)


def test_a_pattern_stands_for_the_columns_that_fit(table):
    source = read(table, ["vector=*e*ght,p*", "vector_age=age"])
    assert source.feature_names == {"vector": ("weight", "pulse"), "vector_age": ("age",)}
    assert source.modalities == ("text", "vector", "vector_age")


def test_a_column_that_is_not_there_is_named(table):
    with pytest.raises(ValueError, match=r"no column height \(--columns vector=\); found .*weight"):
        read(table, ["vector=age,height"])
    with pytest.raises(ValueError, match="names age twice"):
        read(table, ["vector=age,age"])


def test_a_table_of_numbers_and_classes_alone_is_a_data_set(tmp_path):
    """Splits follow from the numbers, and captions from the classes."""
    lines = [f"{AGE[i]},{WEIGHT[i]},{('ill', 'well')[i % 2]}" for i in range(N)]
    spec = write_csv(tmp_path / "data", ["age,weight,label", *lines])
    columns = ["vector=age,weight"]
    train, test = (read(spec, columns, split, prompt="a patient who is {}") for split in ("train", "test"))
    assert len(train) + len(test) == N and 0 < len(test) < N / 2
    assert set(train.batch(np.arange(len(train)))["caption"]) == {
        "a patient who is ill",
        "a patient who is well",
    }
    rows = {tuple(row) for s in (train, test) for row in s.batch(np.arange(len(s)))["vector"].tolist()}
    assert len(rows) == N


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_lists_are_vectors_and_series(tmp_path, format):
    """Without a flag, if the columns have these names; series are padded to the longest of all splits."""
    series = [RNG.normal(size=(2 + i % 3, 2)).tolist() for i in range(N)]
    series[5][1][0] = None
    records = [{"vector": [i, 2.0 * i], "series": series[i], "text": NOTES[i]} for i in range(N)]
    records[7]["series"] = None
    if format == "jsonl":
        spec = write_jsonl(tmp_path / "data", records)
    else:
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
        spec = f"parquet:{tmp_path / 'a.parquet'}"
    source = read(spec)
    assert source.modalities == ("text", "vector", "series")
    assert source.feature_names["vector"] == ("vector[0]", "vector[1]")
    order = order_of(source)
    batch = source.batch(np.arange(N))
    np.testing.assert_array_equal(batch["vector"][:, 1], 2.0 * np.array(order))
    assert batch["series"].shape == batch["series_mask"].shape == (N, 4, 2)
    k = order.index(5)
    assert not batch["series_mask"][k, 1, 0] and batch["series_mask"][k, 1, 1]
    assert not batch["present"]["series"][order.index(7)] and batch["present"]["vector"].all()
    k = order.index(8)  # four steps
    np.testing.assert_array_equal(batch["series"][k], series[8])
    assert read(spec, split="test").batch(np.array([0]))["series"].shape == (1, 4, 2)


def test_columns_of_lists_are_the_channels_of_a_series(tmp_path):
    records = [{"hr": [60.0, 61.0, 62.0], "bp": [120.0, 121.0], "text": NOTES[i]} for i in range(4)]
    source = read(write_jsonl(tmp_path / "data", records), ["series=hr,bp"])
    batch = source.batch(np.array([0]))
    np.testing.assert_array_equal(batch["series"][0], [[60, 120], [61, 121], [62, 0]])
    assert not batch["series_mask"][0, 2, 1]
    assert source.feature_names == {"series": ("hr", "bp")}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("high", "'pulse' is no number"),
        ([1.0, 2.0, 3.0], r"'pulse' has \[3\] numbers, most rows have 1"),
        ("inf", "'pulse' has a number that is infinite"),
    ],
)
def test_what_is_no_number_is_a_bad_example(tmp_path, value, reason):
    records = [{"pulse": 60 + i, "text": NOTES[i]} for i in range(10)]
    records[6]["pulse"] = value
    spec = write_jsonl(tmp_path / "data", records)
    with pytest.raises(BadExampleError, match=f"metadata.jsonl.*7: {reason}"):
        read(spec, ["vector=pulse"])
    assert len(read(spec, ["vector=pulse"], bad_examples=BadExamples("skip"))) == 9


def test_a_column_of_words_that_is_called_series_is_no_series(tmp_path):
    records = [{"series": "a comedy", "text": NOTES[i]} for i in range(4)]
    assert read(write_jsonl(tmp_path / "data", records)).modalities == ("text",)


def test_modalities_choose_them(tmp_path):
    records = [{"vector": [1, i], "vector_blood": [i, i], "text": NOTES[i]} for i in range(5)]
    spec = write_jsonl(tmp_path / "data", records)
    assert read(spec).modalities == ("text", "vector")
    chosen = read(spec, modalities=("text", "vector_blood"))
    assert chosen.modalities == ("text", "vector_blood")


def test_the_flag():
    assert parse_columns(["vector=a,b", "vector_x=c*"]) == {"vector": "a,b", "vector_x": "c*"}
    assert expand_columns("t", "vector", "a,b", ["a,b", "a"]) == ("a,b",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, [3.0]),
        ("2.5", [2.5]),
        ("", None),
        (None, None),
        ("[1, null]", [1.0, np.nan]),
        ([[1], [2]], [[1.0], [2.0]]),
    ],
)
def test_cells(value, expected):
    cell = parse_cell("a", value)
    if expected is None:
        assert cell is None
    else:
        np.testing.assert_array_equal(cell, expected)
