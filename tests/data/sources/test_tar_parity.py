"""Shards that webdataset writes are read as it reads them."""

import gc
import io

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.sources.tar import TarTable

webdataset = pytest.importorskip("webdataset")


def png(seed):
    image = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of webdataset's reader
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_of_webdataset_are_read_as_it_reads_them(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"a/{i:04d}", "png": png(i), "txt": f"picture {i}", "cls": str(i % 3)})
    theirs = list(webdataset.WebDataset(str(tmp_path / "{000..002}.tar"), shardshuffle=False))
    gc.collect()
    table = TarTable(f"{tmp_path}/{{000..002}}.tar", "all", BadExamples(), progress=False)
    rows = table.read(range(10), ["text", "image"])
    assert [table.key(i) for i in range(10)] == [sample["__key__"] for sample in theirs]
    assert [row.files["image"] for row in rows] == [sample["png"] for sample in theirs]
    assert [row.captions["text"] for row in rows] == [[sample["txt"].decode()] for sample in theirs]
    assert table.labels.tolist() == [int(sample["cls"]) for sample in theirs]
    assert table.location(9) == (tmp_path / "002.tar", 2)
