"""Images per second of the embedding of a data set, beside the network alone and open_clip.

    python -m benchmarks.embedding
    python -m benchmarks.embedding --count 10000 --rounds 3

Random images of 32 x 32 pixels in memory, and a vision transformer of patch 4, width 192, depth 4 and 3 heads. "Data
set" is what experiments/embed.py does: read, compute, write shards with digests. "Predict" is the method's compiled
predict on batches that are loaded already. "open_clip" is ``encode_image`` of a network of the same shape (and a class
token) in PyTorch, on batches that are loaded and normalised already; left out where it is not installed. Medians of
rounds in which all take turns, after warming up.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import tyro

from benchmarks.cases.peers import import_torchvision
from benchmarks.turns import in_turn
from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import iterate_epoch
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.embed_data import embed_data
from xmodal_jax.inference.model import RestoredRun
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.nets.encoders import ViTConfig
from xmodal_jax.train.checkpoint import RestoredCheckpoint
from xmodal_jax.train.run import to_json

SIDE, PATCH, WIDTH, DEPTH, HEADS, EMBED = 32, 4, 192, 4, 3, 128


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sizes."""

    count: int = 100_000
    """Images of the data set."""
    batch_size: int = 256
    """Images at a time."""
    rounds: int = 5
    """Timings of each."""


def make_model() -> ContrastiveModel:
    """A model with random parameters, as a run of contrastive.py would give it."""
    image = ViTConfig(patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)
    config = ContrastiveConfig(embed_dim=EMBED, image=image)
    modalities = ("image", "vector")
    method = make_contrastive(config, modalities, vocab_size=0)
    batch = {"image": np.zeros((1, SIDE, SIDE, 3), np.uint8), "vector": np.zeros((1, 3), np.float32)}
    params = method.init(jax.random.key(0), batch)
    stored = to_json({"model": config, "input": DataOptions()})
    metadata = {
        "kind": "contrastive", "modalities": modalities, "config": stored,
        "shapes": {name: list(value.shape[1:]) for name, value in batch.items()},
    }  # fmt: skip
    return ContrastiveModel(RestoredRun(pathlib.Path("random"), RestoredCheckpoint(params, metadata, 0)))


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """``run`` as a function that returns the seconds it took."""

    def seconds() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


def predict_alone(model: ContrastiveModel, source: ArraySource, batch_size: int) -> Callable[[], None]:
    """The compiled predict of all batches, which are on the device already."""
    batches = [jax.device_put(model.prepare(batch)) for batch in iterate_epoch(source, batch_size)]
    predict = jax.jit(model.method.predict)

    def run() -> None:
        results = [predict(model.params, batch) for batch in batches]
        for result in results:
            np.asarray(result["image"])

    return run


def open_clip_alone(images: np.ndarray, batch_size: int) -> Callable[[], None] | None:
    """``encode_image`` of all batches in PyTorch; None: it is not installed."""
    try:
        import torch

        import_torchvision()
        import open_clip
    except ImportError:
        return None
    vision = open_clip.CLIPVisionCfg(
        layers=DEPTH,
        width=WIDTH,
        head_width=WIDTH // HEADS,
        patch_size=PATCH,
        image_size=SIDE,
        no_ln_pre=True,
    )
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=16, width=16, heads=1, layers=1)
    model = open_clip.CLIP(EMBED, vision, text).eval()
    chunks = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    batches = [torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1) for x in chunks]

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.encode_image(batch, normalize=True).numpy()

    return run


def main(arguments: Arguments) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (arguments.count, SIDE, SIDE, 3), np.uint8)
    source, model = ArraySource({"image": images}), make_model()
    with tempfile.TemporaryDirectory() as root:
        folders = (pathlib.Path(root) / str(k) for k in range(arguments.rounds + 1))

        def data_set() -> None:
            embed_data(
                model, source, next(folders), data={}, bad_examples=BadExamples(),
                batch_size=arguments.batch_size, progress=False, announce=lambda text: None,
            )  # fmt: skip

        runs = {"data set": data_set, "predict": predict_alone(model, source, arguments.batch_size)}
        if (peer := open_clip_alone(images, arguments.batch_size)) is not None:
            runs["open_clip"] = peer
        for run in runs.values():  # warms up
            run()
        seconds = in_turn({name: timed(run) for name, run in runs.items()}, arguments.rounds)
    print(f"{arguments.count:,} images of {SIDE} x {SIDE}, batches of {arguments.batch_size}\n")
    print("| | images/s | time, by that of the data set |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {arguments.count / value:,.0f} | {value / seconds['data set']:.2f} |")


if __name__ == "__main__":
    chosen = tyro.cli(Arguments, description=__doc__)
    runtime.configure()
    main(chosen)
