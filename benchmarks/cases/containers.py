"""Images and captions from Parquet files and tar shards that do not fit into memory, against `datasets` and
`webdataset` with PyTorch's DataLoader."""

from __future__ import annotations

import atexit
import functools
import io
import pathlib
import shutil
import tarfile
import tempfile

import jax
import numpy as np
from PIL import Image

from benchmarks.cases.sides import Row, Side, Variant

ROWS_STORED, STORED, PIXELS, BATCH, SHARDS = 4096, 96, 64, 64, 8
WORKERS = (0, 1, 2)

WHAT = (
    f"{ROWS_STORED} JPEG images of {STORED} px with a caption and a label, resized to {PIXELS} px, shuffled, batches "
    f"of {BATCH} as float32, time per epoch; nothing is kept decoded. DataLoader with {', '.join(map(str, WORKERS))} "
    "workers, the library with two processes"
)
PARQUET = tuple(f"parquet, {n} workers" for n in WORKERS)
TAR = tuple(f"tar, {n} workers" for n in WORKERS)
ROWS = (
    Row(
        "Parquet",
        f"{WHAT}. PyTorch: `datasets`, which has converted the file to Arrow before, and a transform with Pillow",
        "parquet",
        PARQUET,
        goal=1 / 1.5,
    ),
    Row(
        "tar shards",
        f"{WHAT}. PyTorch: `webdataset` with {SHARDS} shards, a shuffle buffer of 1000 (the library shuffles globally)",
        "tar",
        TAR,
        goal=1 / 1.5,
    ),
)


@functools.cache
def containers() -> pathlib.Path:
    """A folder with train.parquet as `datasets` writes it, and tar shards of the same examples."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = pathlib.Path(tempfile.mkdtemp(prefix="xmodal_benchmark_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    rng, rows = np.random.default_rng(0), []
    for i in range(ROWS_STORED):
        # Smooth noise, which compresses about as photographs do.
        small = rng.integers(0, 256, (12, 12, 3), np.uint8)
        image, file = Image.fromarray(small).resize((STORED, STORED), Image.Resampling.BICUBIC), io.BytesIO()
        image.save(file, "JPEG", quality=90)
        rows.append((file.getvalue(), f"a picture with the number {i}", i % 10))
    images = [{"bytes": content, "path": f"{i:06d}.jpg"} for i, (content, _, _) in enumerate(rows)]
    table = pa.table(
        {"image": images, "text": [text for _, text, _ in rows], "label": [label for _, _, label in rows]}
    )
    features = (
        '{"info": {"features": {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}, '
        '"label": {"dtype": "int64", "_type": "Value"}}}}'
    )
    table = table.replace_schema_metadata({"huggingface": features})
    pq.write_table(table, path / "train.parquet", row_group_size=256)
    (path / "shards").mkdir()
    for shard in range(SHARDS):
        with tarfile.open(path / "shards" / f"{shard:03d}.tar", "w") as tar:
            for i in range(shard * ROWS_STORED // SHARDS, (shard + 1) * ROWS_STORED // SHARDS):
                content, text, label = rows[i]
                for suffix, data in (("jpg", content), ("txt", text.encode()), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return path


def jax_side() -> Side:
    from xmodal_jax.data.open import DataOptions, open_source
    from xmodal_jax.data.pipeline import Loader, numeric_fields
    from xmodal_jax.preprocess.image import to_float

    scale = jax.jit(to_float)
    options = DataOptions(image_size=PIXELS, memory_limit_gib=1e-6, check_files=False, progress=False)

    def epochs(spec):
        source = open_source(spec, "all", options)
        assert not source.in_memory and len(source) == ROWS_STORED
        loader = Loader(source, batch_size=BATCH, seed=0)

        def epoch():
            for _ in range(ROWS_STORED // BATCH):
                batch = next(loader)
                assert len(batch["caption"]) == BATCH
                image = scale(jax.device_put(numeric_fields(batch))["image"])
            assert image.shape == (BATCH, PIXELS, PIXELS, 3)
            jax.block_until_ready(image)

        return Variant(epoch)

    folder = containers()
    return Side(
        {"parquet": epochs(f"parquet:{folder / 'train.parquet'}"), "tar": epochs(f"tar:{folder / 'shards'}")}
    )


def to_tensor(image):
    """Float32 ``[3, PIXELS, PIXELS]`` from a Pillow image."""
    import torch

    pixels = np.asarray(image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BICUBIC), np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)


def torch_side() -> Side:
    import torch
    from torch.utils.data import DataLoader

    def epoch(batches):
        count = 0
        for image, text, label in batches:
            assert image.shape[1:] == (3, PIXELS, PIXELS) and len(text) == len(label) == len(image)
            count += len(image)
        assert count == ROWS_STORED and image.dtype == torch.float32

    options = lambda n: dict(
        num_workers=n, persistent_workers=n > 0, multiprocessing_context="fork" if n else None
    )
    variants = {}
    for n, parquet, tar in zip(WORKERS, PARQUET, TAR, strict=True):
        batches = DataLoader(_hugging_face(), BATCH, shuffle=True, collate_fn=_collate, **options(n))
        variants[parquet] = Variant(lambda batches=batches: epoch(batches))
        shards = DataLoader(_web_dataset(), batch_size=None, **options(n))
        variants[tar] = Variant(lambda shards=shards: epoch(shards))
    return Side(variants)


def _collate(rows):
    import torch

    return torch.stack([r["image"] for r in rows]), [r["text"] for r in rows], [r["label"] for r in rows]


def _hugging_face():
    import datasets

    datasets.disable_progress_bars()
    folder = containers()
    data = datasets.load_dataset(
        "parquet", data_files=str(folder / "train.parquet"), split="train", cache_dir=str(folder / "cache")
    )

    def convert(batch):
        return batch | {"image": [to_tensor(image) for image in batch["image"]]}

    return data.with_transform(convert)


def _web_dataset():
    import webdataset

    pattern = f"{containers()}/shards/{{000..{SHARDS - 1:03d}}}.tar"
    data = webdataset.WebDataset(
        pattern, shardshuffle=SHARDS, nodesplitter=None, workersplitter=webdataset.split_by_worker, seed=0
    )
    return data.shuffle(1000).decode("pil").to_tuple("jpg", "txt", "cls").map_tuple(to_tensor).batched(BATCH)
