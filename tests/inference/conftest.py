"""The trained contrastive run that several files of tests use."""

import pytest

from tests.inference.runs import train_contrastive
from xmodal_jax.inference import load


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Directory of a run over pictures and the names of their colours."""
    folder = tmp_path_factory.mktemp("contrastive")
    train_contrastive(folder)
    return folder


@pytest.fixture(scope="module")
def model(run):
    """The model of this run."""
    return load(run)
