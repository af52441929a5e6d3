"""Faulty inputs of each kind, a bounded number: none hangs, raises a raw exception, or is wrong in silence. And the
tool notices each of these."""

import os
import pathlib
import time

import numpy as np
import pytest

from benchmarks import faults
from benchmarks.fault_kinds import ANYTHING, REFUSED, Case, Kind, same

COUNTS = {
    "metadata": 40,
    "media": 60,
    "arrays": 40,
    "parquet": 25,
    "tar": 25,
    "safetensors": 60,
    "rating": 40,
    "spoken": 12,
    "tokenizers": 20,
}
"""Kinds that are tried in this process, in about a second each. More with ``python -m benchmarks.faults``."""
SLOW_COUNTS = {"configs": 12, "checkpoints": 12, "flags": 4}


@pytest.mark.parametrize("name", COUNTS)
def test_no_faulty_input_is_raw_hung_or_wrong(name):
    results = list(faults.try_here(faults.load(name), 7, range(COUNTS[name])))
    assert len(results) == COUNTS[name]
    assert [result for result in results if result.outcome in faults.BAD] == []
    assert {result.outcome for result in results} == {"right", "refused"}


@pytest.mark.slow  # each imports JAX in a process of its own: 10 seconds
@pytest.mark.parametrize("name", SLOW_COUNTS)
def test_no_faulty_input_of_another_kind_is_raw_hung_or_wrong(name):
    config = faults.Config(seed=7, only=(name,), count=SLOW_COUNTS[name])
    results = list(faults.try_in_process(config, name))
    assert len(results) == SLOW_COUNTS[name]
    assert [result for result in results if result.outcome in faults.BAD] == []


def test_every_kind_is_tried():
    assert {*COUNTS, *SLOW_COUNTS} == set(faults.KINDS)
    modules = (pathlib.Path(faults.__file__).parent / "fault_kinds").glob("[a-z]*.py")
    assert {path.stem for path in modules} == set(faults.KINDS)


def outcome_of(attempt, **answer):
    """What `faults` says of one input."""
    kind = Kind("toy", lambda rng, folder: Case("fault", attempt, **answer), 1, seconds=0.2)
    [result] = faults.try_here(kind, 0, [0])
    return result.outcome


def fail(error):
    def attempt():
        raise error

    return attempt


@pytest.mark.parametrize(
    "attempt, answer, outcome",
    [
        (lambda: 3, {"expected": 3}, "right"),
        (lambda: 4, {"expected": 3}, "wrong"),
        (lambda: 3, {"expected": REFUSED}, "wrong"),
        (lambda: 3, {"expected": ANYTHING}, "right"),
        (fail(ValueError("a.csv:3: no")), {"expected": REFUSED, "mentions": ("a.csv:3",)}, "refused"),
        (fail(ValueError("no")), {"expected": REFUSED, "mentions": ("a.csv:3",)}, "raw"),
        (fail(ValueError("a good one")), {"expected": 3}, "wrong"),
        (fail(ValueError("perhaps")), {"expected": 3, "may_refuse": True}, "refused"),
        (fail(KeyError("a.csv:3")), {"expected": REFUSED}, "raw"),
        (fail(UnicodeDecodeError("utf-8", b"x", 0, 1, "a.csv")), {"expected": REFUSED}, "raw"),
        (fail(RecursionError()), {"expected": 3, "may_refuse": True}, "raw"),
        (lambda: time.sleep(9), {"expected": 3}, "hung"),
    ],
)
def test_outcomes(attempt, answer, outcome):
    assert outcome_of(attempt, **answer) == outcome


def test_a_reader_of_a_pipe_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert outcome_of((tmp_path / "pipe").read_bytes, expected=REFUSED) == "hung"


def test_values_are_compared_by_their_bits():
    one = {"x": np.float32([0, np.nan]), "y": ["a", (1, None)]}
    assert same({"x": np.float32([0, np.nan]), "y": ["a", (1, None)]}, one)
    for other in (
        {**one, "x": np.float64([0, np.nan])},
        {**one, "x": np.float32([-0.0, np.nan])},
        {"x": one["x"]},
    ):
        assert not same(other, one)
    assert not same(["a"], ["a", "b"])


def test_an_input_depends_on_its_seed_and_number_alone(tmp_path):
    kind, contents = faults.load("safetensors"), []
    for folder, seed, index in (("a", 0, 5), ("b", 0, 5), ("c", 1, 5), ("d", 0, 6)):
        (tmp_path / folder).mkdir()
        faults.draw(kind, seed, index, tmp_path / folder)
        files = sorted((path for path in (tmp_path / folder).rglob("*") if path.is_file()), key=str)
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1] and contents[1] not in contents[2:]


def test_table_counts_by_fault():
    result = lambda fault, outcome: faults.Result("toy", 0, fault, outcome, "")
    results = [result("a", "right"), result("a", "raw"), result("b", "refused")]
    short, long = faults.table(results), faults.table(results, by_fault=True)
    assert "| toy | 3 | 1 | 1 | 1 | 0 | 0 |" in short and "| all | 3 | 1 | 1 | 1 | 0 | 0 |" in short
    assert "| toy: a | 2 | 1 | 0 | 1 | 0 | 0 |" in long and "toy: a" not in short
