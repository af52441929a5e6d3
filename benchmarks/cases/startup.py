"""From the start of the process to the end of the first training step, of a small contrastive model."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.cases.sides import Row, Side, Variant

ROOT = pathlib.Path(__file__).resolve().parents[2]

WHAT = (
    "process start to the end of the first training step of a contrastive model of images and text (batch 64, two "
    "transformers of width 128, depth 2). PyTorch: open_clip's CLIP of that size, eager"
)
ROWS = (
    Row("start, nothing compiled before", WHAT, "cold", ("eager",)),
    Row("start, with the cache of programs", WHAT, "warm", ("eager",), limit=8.0),
)

JAX = """
from xmodal_jax.core import runtime
runtime.configure()
import jax, numpy as np
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.nets.encoders import TextTransformerConfig, ViTConfig
from xmodal_jax.train import loop  # what an experiment imports
from xmodal_jax.train.optim import Optimizer, make_optimizer
from xmodal_jax.train.parallel import make_engine
from xmodal_jax.train.step import make_init, make_step

rng = np.random.default_rng(0)
arrays = {
    "image": rng.integers(0, 256, (256, 32, 32, 3)).astype(np.uint8),
    "text": rng.integers(1, 1000, (256, 32)).astype(np.int32),
    "text_mask": np.ones((256, 32), bool),
}
loader = Loader(ArraySource(arrays), batch_size=64, seed=0)
model = ContrastiveConfig(image=ViTConfig(), text=TextTransformerConfig())
method, optimizer = make_contrastive(model, ("text", "image"), vocab_size=1000), Optimizer()
tx = make_optimizer(optimizer, 100)
step = lambda axis: make_step(method, tx, optimizer, axis_name=axis)
engine = make_engine("jit", make_init(method, tx, optimizer), step)
state = engine.init(jax.random.key(0), numeric_fields(loader.example()))
batch = jax.tree.map(lambda x: x[None], numeric_fields(next(loader)))
state, metrics = engine.run(state, None, engine.put(batch))
assert np.isfinite(np.asarray(metrics["loss"])).all()
loader.close()
"""

TORCH = """
import numpy as np, torch
from benchmarks.cases.peers import import_torchvision
import_torchvision()
import open_clip
torch.set_num_threads({threads})
vision = open_clip.CLIPVisionCfg(layers=2, width=128, head_width=32, patch_size=8, image_size=32)
text = open_clip.CLIPTextCfg(context_length=32, vocab_size=1000, width=128, heads=4, layers=2)
model, entropy = open_clip.CLIP(128, vision, text), open_clip.ClipLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
images, tokens = torch.randn(64, 3, 32, 32), torch.randint(1, 1000, (64, 32))
loss = entropy(*model(images, tokens))
loss.backward()
optimizer.step()
assert np.isfinite(loss.item())
"""


def launch(program: str, **environment: str) -> None:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # XMODAL_CACHE says where
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def jax_side() -> Side:
    kept = tempfile.TemporaryDirectory(prefix="xmodal_benchmark_")

    def cold():
        with tempfile.TemporaryDirectory(prefix="xmodal_benchmark_") as empty:
            launch(JAX, XMODAL_CACHE=empty)

    return Side({"cold": Variant(cold), "warm": Variant(lambda: launch(JAX, XMODAL_CACHE=kept.name))})


def torch_side() -> Side:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Side({"eager": Variant(lambda: launch(TORCH.format(threads=threads)))})
