"""Small trained runs for the tests of their use, and the inputs that people hold."""

import dataclasses
import io

import jax
import numpy as np
from PIL import Image

from tests.models.test_seq2seq import CONFIG as SEQ2SEQ
from tests.support import random_params
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.seq2seq import AttentionObjective, BeamSearchConfig, make_seq2seq
from xmodal_jax.nets.encoders import ConvNetConfig, TextTransformerConfig
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, to_json

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


def save_run(folder, config, params, variables=None, **metadata):
    """A run whose only checkpoint has these parameters, as a script would have left it."""
    checkpoints = Checkpoints(folder / "checkpoints")
    state = {"params": params} | ({} if variables is None else {"variables": variables})
    config = {"data": "shapes", "input": {}, **{k: to_json(v) for k, v in config.items()}}
    checkpoints.save(1, state, {"config": config, "seeds": [0], **metadata})
    checkpoints.close()
    return folder


def save_text_run(folder, modality, kind, example, objective=None, **config):
    """A captioner or recogniser with random parameters; ``example``: a batch of its inputs; ``objective``: None: that
    of attention; ``config``: options."""
    tokenizer = train_tokenizer(COLOURS, "word")
    model = dataclasses.replace(
        SEQ2SEQ, objective=objective or AttentionObjective(), image=ConvNetConfig(width=16, norm="none"),
        decoder=dataclasses.replace(SEQ2SEQ.decoder, dropout=0.0),
    )  # fmt: skip
    method = make_seq2seq(model, modality, vocab_size=tokenizer.vocab_size, length=5)
    tokens, mask = tokenizer.encode_batch(["red"], 5)
    params = random_params(method.init, jax.random.key(0), {**example, "text": tokens, "text_mask": mask})
    shapes = {name: x.shape[1:] for name, x in example.items()}
    return save_run(
        folder, {"model": model, "generation": BeamSearchConfig(beams=2), **config}, params, kind=kind, source=modality,
        target="text", shape=shapes.get("image", ()), shapes=shapes, length=5, tokenizer=tokenizer.files(),
    )  # fmt: skip
