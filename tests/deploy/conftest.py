"""A run of each kind, which is made, exported and used by the library once for all files."""

import functools

import pytest

from tests.deploy.runs import CASES, RUNS, export_with_symbols
from xmodal_jax.inference import load


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """``model_of(kind)``: the run of a kind, loaded."""
    return functools.cache(lambda kind: load(RUNS[kind](tmp_path_factory.mktemp(kind))))


@pytest.fixture(scope="session")
def cases_of(model_of):
    """``cases_of(kind)``: by program its inputs and the library's results."""
    return functools.cache(lambda kind: CASES[kind](model_of(kind)))


@pytest.fixture(scope="session")
def export_of(model_of, tmp_path_factory):
    """``export_of(kind, format, dtype)``: the folder of an export of the run of a kind."""

    @functools.cache
    def export(kind, format, dtype="float32"):
        folder = tmp_path_factory.mktemp("exports") / kind
        export_with_symbols(model_of(kind).path, folder, formats=(format,), dtype=dtype)
        return folder / format

    return export
