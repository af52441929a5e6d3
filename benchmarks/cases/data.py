"""Images from a folder: the library's folder source and loader against PyTorch's DataLoader."""

from __future__ import annotations

import atexit
import functools
import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np
from PIL import Image

from benchmarks.cases.peers import import_torchvision
from benchmarks.cases.sides import Row, Side, Variant

FILES, PIXELS, BATCH, CLASSES = 2000, 32, 64, 10
WORKERS = (0, 1, 2)

WHAT = (
    f"{FILES} PNG files of {PIXELS} px with labels, shuffled, batches of {BATCH} as float32 on the device, time per "
    f"epoch of {FILES // BATCH} batches"
)
LATER = tuple(f"eager later epoch, {n} workers" for n in WORKERS)
FIRST = tuple(f"eager first epoch, {n} workers" for n in WORKERS)
KEPT = "eager later epoch, images kept decoded"
ROWS = (
    Row(
        "data, first epoch",
        f"{WHAT}, with opening the folder and starting workers. PyTorch: a Dataset that decodes with Pillow, "
        f"DataLoader with {', '.join(map(str, WORKERS))} workers",
        "first epoch",
        FIRST,
        goal=1 / 1.5,
    ),
    Row(
        "data, later epochs",
        f"{WHAT}; the library keeps decoded files in memory (up to 4 GiB), the PyTorch Dataset decodes again, as "
        "is usual",
        "later epoch",
        LATER,
        ("later epoch, not kept", "later epoch, data on the device"),
        goal=1 / 1.5,
    ),
    Row(
        "data, later epochs, kept by both",
        f"{WHAT}; the library as the experiments run it where the data set fits: it lies on the device and the program "
        "draws the rows. The PyTorch Dataset keeps the decoded images (no workers: each would keep its own)",
        "later epoch, data on the device",
        (KEPT,),
        ("later epoch",),
        goal=1 / 1.5,
    ),
)


@functools.cache
def folder() -> pathlib.Path:
    """Images of noise around a colour, and metadata.jsonl."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="xmodal_benchmark_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    rng, lines = np.random.default_rng(0), []
    for i in range(FILES):
        colour = rng.uniform(40, 215, 3)
        image = np.clip(colour + rng.normal(0, 12, (PIXELS, PIXELS, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(path / f"{i:05d}.png")
        lines.append(
            json.dumps({"file_name": f"{i:05d}.png", "label": int(i % CLASSES), "text": f"image {i}"})
        )
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path


def jax_side() -> Side:
    from xmodal_jax.data.pipeline import Loader, numeric_fields
    from xmodal_jax.data.sources.folder import FolderSource
    from xmodal_jax.preprocess.image import to_float

    root, scale = folder(), jax.jit(to_float)

    def source(**options):
        return FolderSource(root, "all", modalities=("image",), progress=False, **options)

    def epoch(loader):
        for _ in range(FILES // BATCH):
            batch = jax.device_put(numeric_fields(next(loader)))
            image = scale(batch["image"])
        assert image.shape == (BATCH, PIXELS, PIXELS, 3) and batch["label"].shape == (BATCH,)
        jax.block_until_ready(image)

    def first():
        loader = Loader(source(), batch_size=BATCH, seed=0)
        epoch(loader)
        loader.close()

    def later(**options):
        loader = Loader(source(**options), batch_size=BATCH, seed=0)
        assert loader.source.in_memory == (not options)
        return Variant(lambda: epoch(loader))

    def resident():
        """As the experiments do with a data set that fits: it lies on the device, the program draws the rows."""
        loader = Loader(source(), batch_size=BATCH, seed=0)
        held = jax.device_put(numeric_fields(loader.source.batch(np.arange(FILES))))
        draw = jax.jit(lambda held, row: (to_float(held["image"][row]), held["label"][row]))
        step = 0

        def run():
            nonlocal step
            for _ in range(FILES // BATCH):
                image, label = draw(held, loader.index_batches(step, 1)[0])
                step += 1
            jax.block_until_ready((image, label))

        return Variant(run)

    return Side(
        {
            "first epoch": Variant(first),
            "later epoch": later(),
            "later epoch, data on the device": resident(),
            "later epoch, not kept": later(memory_limit=0),
        }
    )


def torch_side() -> Side:
    import torch
    from torch.utils.data import DataLoader, Dataset

    import_torchvision()
    from torchvision.transforms.functional import to_tensor

    class Images(Dataset):
        def __init__(self, root, keep=False):
            self.root = root
            lines = (root / "metadata.jsonl").read_text().splitlines()
            self.rows = [(row["file_name"], row["label"]) for row in map(json.loads, lines)]
            self.kept = [None] * len(self.rows) if keep else None

        def __len__(self):
            return len(self.rows)

        def decode(self, name):
            with Image.open(self.root / name) as image:
                return to_tensor(image.convert("RGB"))

        def __getitem__(self, i):
            name, label = self.rows[i]
            if self.kept is None:
                return self.decode(name), label
            if self.kept[i] is None:
                self.kept[i] = self.decode(name)
            return self.kept[i], label

    root = folder()

    def loader(workers, **options):
        return DataLoader(
            Images(root, **options),
            BATCH,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=workers > 0,
            # PyTorch's default on Linux, which the driver's own way to start processes would change.
            multiprocessing_context="fork" if workers else None,
        )

    def epoch(batches):
        for image, label in batches:
            last = image, label
        assert last[0].shape == (BATCH, 3, PIXELS, PIXELS) and last[1].shape == (BATCH,)
        assert last[0].dtype == torch.float32

    def later(workers, **options):
        batches = loader(workers, **options)
        return Variant(lambda: epoch(batches))

    variants = {KEPT: later(0, keep=True)}
    for n, first, name in zip(WORKERS, FIRST, LATER, strict=True):
        variants[first] = Variant(lambda n=n: epoch(loader(n)))
        variants[name] = later(n)
    return Side(variants)
