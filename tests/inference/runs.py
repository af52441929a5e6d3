"""Small trained runs for the tests of their use, and the inputs that people hold."""

import dataclasses
import io

import numpy as np
from PIL import Image

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.nets.encoders import ConvNetConfig, TextTransformerConfig
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run

COLOURS = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config(StartConfig):
    model: ContrastiveConfig


def coloured_pictures(count=48, seed=0):
    """Plain pictures of 8 x 8 pixels, with the names of their colours."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 3, count)
    image = np.zeros((count, 8, 8, 3), np.uint8)
    image[np.arange(count), :, :, colour] = rng.integers(120, 255, count)[:, None, None]
    return ArraySource({"image": image, "caption": np.array([COLOURS[c] for c in colour], object)})


def plain_picture(colour, size=(8, 8)):
    """A Pillow image of one colour, of any size."""
    return Image.new("RGB", size, colour)


def png_bytes(image):
    """The bytes of a PNG file of a Pillow image."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def train_contrastive(folder, steps=60):
    """A contrastive run over pictures and the names of their colours, trained in ``folder``."""
    source = coloured_pictures()
    tokenizer = train_tokenizer(source.arrays["caption"].tolist(), "word")
    prepare = FittedTransforms(TokenizeTransform(tokenizer, 5))
    model = ContrastiveConfig(
        embed_dim=8,
        image=ConvNetConfig(width=8, norm="none"),
        text=TextTransformerConfig(width=16, depth=1, heads=2),
    )
    method = make_contrastive(model, ("text", "image"), vocab_size=tokenizer.vocab_size)
    config = _Config(
        steps=steps, batch_size=16, model=model, run_dir=folder, input=DataOptions(image_fit="pad")
    )
    with Run.create(folder, config) as run:
        loader = Loader(source, batch_size=16, seed=0, transform=prepare)
        metadata = {"kind": "contrastive", "modalities": ("text", "image"), **prepare.metadata}
        optimizer = Optimizer(learning_rate=1e-2)
        return fit(method, loader, config, optimizer, run, Timer(), metadata=metadata)
