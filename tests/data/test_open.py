"""The table of the forms of ``--data``."""

import dataclasses
import inspect
import pathlib

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.open import FORMS, DataOptions, Form, open_source, spec_of
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.sources.tables import TableSource

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
OPTIONS = {field.name for field in dataclasses.fields(DataOptions)}


@pytest.mark.parametrize("name", FORMS)
def test_options_of_a_form_exist(name):
    form = FORMS[name]
    parameters = dict(inspect.signature(form.open).parameters)
    if parameters.pop("options", None) is not None:  # passed on to the class of all tables
        parameters |= inspect.signature(TableSource).parameters
    assert {*form.options, "split"} <= set(parameters)
    assert set(form.options) <= OPTIONS | {"size", "seed", "memory_limit", "bad_examples"}
    assert set(form.fixed) <= OPTIONS - set(form.options)


@pytest.mark.parametrize("name", FORMS)
def test_the_documentation_lists_each_form(name):
    assert f"| `{spec_of(name)}` |" in DOCS.read_text()


def test_a_new_form_is_one_entry(monkeypatch):
    """It is given the options that it reads, and those that it cannot follow are refused."""

    def open_ones(argument, split="train", *, image_size=8, channels=3, seed=None):
        images = np.ones((int(argument), image_size, image_size, channels), np.uint8)
        return ArraySource({"image": images, "label": np.full(len(images), seed, np.int32)})

    ones = Form("COUNT", "ones", open_ones, ("image_size", "seed"), fixed={"channels": "has three"})
    monkeypatch.setitem(FORMS, "ones", ones)
    assert open_source("ones:3").batch(np.arange(3))["image"].shape == (3, 8, 8, 3)
    batch = open_source("ones:2", options=DataOptions(image_size=5, data_seed=7)).batch(np.arange(2))
    assert batch["image"].shape == (2, 5, 5, 3) and batch["label"].tolist() == [7, 7]
    with pytest.raises(ValueError, match="ones:COUNT has three: leave channels .--channels"):
        open_source("ones:2", options=DataOptions(channels=1))
    with pytest.raises(ValueError, match="'ones' is not understood: .* ones:COUNT: ones"):
        open_source("ones")


@pytest.mark.parametrize("spec", ["shapes:", "shapes:x", "npz:", "npz", "what:x", ""])
def test_what_is_no_form_lists_those_that_are(spec):
    with pytest.raises(
        ValueError,
        match="use shapes, tfds:NAME, folder:PATH, tar:SHARDS, parquet:PATH, .* hub:NAME, npz:PATH, .* or stacked",
    ):
        open_source(spec)


def test_columns_are_given_by_the_names_that_metadata_have(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("where,text,species\na.png,x,dog\n")
    options = DataOptions(columns=("file_name=where", "label=species"), progress=False)
    source = open_source(f"folder:{tmp_path}", "all", options)
    assert source.class_names == ("dog",) and source.modalities == ("text", "image")
    for wrong in ("path", "filename=path", "file_name=", "=path"):
        with pytest.raises(
            ValueError, match="columns: .* is not NAME=COLUMN, .* file_name, label, group, text"
        ):
            DataOptions(columns=(wrong,))
    with pytest.raises(ValueError, match="image is given twice, as a and as b"):
        DataOptions(columns=("image=a", "image_file_name=b"))
