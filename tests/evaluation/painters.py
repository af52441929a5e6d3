"""Multimodal VAEs and judges written by hand, whose answers are known: a grey level or a first token is a class."""

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.latent import LatentEvaluator
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.models.vae.inference import LatentSamples
from xmodal_jax.models.vae.judges import JudgeOutputs, Judges
from xmodal_jax.models.vae.modalities import AudioConfig, ModalityConfigs
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.types import Method, kind_of

CLASSES, SIDE, LENGTH, END = 4, 8, 5, 1
IMAGES = ("image_0", "image_1", "image_2")
MIXED = ("image", "text", "audio", "label")
SPECTROGRAM = AudioFeatures(sample_rate=1000, mels=5, window=32, hop=16)
CONFIG = ModalityConfigs(audio=AudioConfig(spectrogram=SPECTROGRAM))
FRAMES = 7


def level(classes):
    """The grey level of a class, in [0, 1]: a whole number of 255ths."""
    return (30.0 + 60.0 * classes) / 255.0


def data(names, labels, side=SIDE):
    """Examples of these classes: flat pictures, ``c + 2, c + 3, end, 0, 0``, flat frames, the class."""
    labels, arrays = np.asarray(labels, np.int32), {}
    seen = np.maximum(labels, 0)
    for name in names:
        kind = kind_of(name)
        if kind == "image":
            grey = np.round(255 * level(seen)).astype(np.uint8)
            arrays[name] = np.broadcast_to(grey[:, None, None, None], (len(labels), side, side, 1)).copy()
        elif kind == "text":
            arrays[name] = np.stack([seen + 2, seen + 3, 0 * seen + END, 0 * seen, 0 * seen], axis=1)
            arrays[f"{name}_mask"] = arrays[name] != 0
        elif kind == "audio":
            arrays[name] = np.broadcast_to(-2.0 * seen[:, None, None], (len(labels), FRAMES, 5)).astype("f4")
            arrays[f"{name}_mask"] = np.ones((len(labels), FRAMES), bool)
    return {**arrays, "label": labels}


def source(names, labels, class_names=None, present=None, **how):
    arrays = data(names, labels, **how)
    for name, there in (present or {}).items():
        arrays[name] = arrays[name] * there.reshape(-1, *[1] * (arrays[name].ndim - 1)).astype(
            arrays[name].dtype
        )
    return ArraySource(arrays | ({"present": present} if present else {}), class_names)


def read(name, batch):
    """The value that a modality shows, a class where it is a whole number."""
    kind, x = kind_of(name), jnp.asarray(batch[name])
    if kind == "image":
        return (x.astype(jnp.float32).mean(axis=(1, 2, 3)) - 30.0) / 60.0
    if kind == "audio":
        return x.mean(axis=(1, 2)) / -2.0
    return (x[:, 0] - 2 if kind == "text" else x).astype(jnp.float32)


def make_judges(names, classes=CLASSES):
    """They say the nearest class; their one feature is what is shown."""

    def predict(params, batch):
        shown = jnp.stack([read(name, batch) for name in names], axis=1)
        return JudgeOutputs(-jnp.abs(shown[..., None] - jnp.arange(classes)[None, None]), shown[..., None])

    return Judges(Method(None, None, predict), tuple(names))


def perfect(here, seen):
    """The class of the first modality that is given and there."""
    first = jnp.take_along_axis(seen, here.argmax(axis=0)[None], axis=0)[0]
    return jnp.broadcast_to(jnp.where(here.any(axis=0), first, 0.0)[None], seen.shape)


def ignorant(here, seen):
    """Class 0 whatever is given."""
    return jnp.zeros(seen.shape)


def of_the_first(here, seen):
    """The first modality's class, to all; class 0 without it."""
    return jnp.broadcast_to(jnp.where(here[0], seen[0], 0.0)[None], seen.shape)


def make_painter(names, policy=perfect, shade=lambda given, there: 0.0, side=SIDE):
    """``policy(here [M, B], seen [M, B])``: the classes told ``[M, B]``. ``shade(given [M], there [M, B])``: how far
    pictures are off, in classes. Codes: class, shade. Shared codes: what the first is told, the subset as a number,
    whether drawn, the index. Dreams: column 0 is the class, column 1 is added to the last modality; noise if drawn."""
    names = tuple(names)
    bits = 2.0 ** jnp.arange(len(names))

    def infer(params, batch, given, key, samples=1):
        seen = jnp.stack([read(name, batch) for name in names])
        index = batch["index"].astype(jnp.float32)
        everyone = jnp.ones(len(index), bool)
        there = jnp.stack([batch.get("present", {}).get(name, everyone) for name in names])

        def of_one(given):
            told = policy(given[:, None] & there, seen)
            off = jnp.broadcast_to(jnp.asarray(shade(given, there), jnp.float32), told.shape)
            z = jnp.stack([told, off], axis=-1)
            number = jnp.full(index.shape, (given * bits).sum())
            drawn = jnp.full(index.shape, 0.0 if key is None else 1.0)
            shared = jnp.stack([told[0], number, drawn, index], axis=-1)
            rows = lambda x, axis: jnp.repeat(jnp.expand_dims(x, axis), samples, axis)
            return LatentSamples(rows(z, 1), jnp.zeros((samples, len(index))), rows(shared, 0))

        given = jnp.asarray(given)
        return of_one(given) if given.ndim == 1 else jax.vmap(of_one)(given)

    def decode(params, z, key):
        assert key is None  # scores and reports ask for the likeliest
        made, shape = {}, z.shape[1:3]
        for m, name in enumerate(names):
            shown, kind = z[m, ..., 0] + z[m, ..., 1], kind_of(name)
            if kind == "image":
                grey = jnp.clip(level(shown), 0.0, 1.0)[..., None, None, None]
                made[name] = jnp.broadcast_to(grey, (*shape, side, side, 1))
            elif kind == "audio":
                frames = (-2.0 * shown - CONFIG.audio.mel_mean) / CONFIG.audio.mel_scale
                made[name] = jnp.broadcast_to(frames[..., None, None], (*shape, FRAMES, 5))
            else:
                one = jnp.round(shown).astype(jnp.int32)
                end = jnp.full(shape, END, jnp.int32)
                text = jnp.stack([one + 2, one + 3, end, one + 2, one + 2], axis=-1)
                made[name] = text if kind == "text" else one
        return made

    def unfold(params, shared, key):
        told = jnp.repeat(shared[None, :, 0], len(names), axis=0).at[-1].add(shared[:, 1])
        off = jnp.zeros(told.shape) if key is None else 0.1 * jax.random.normal(key, told.shape)
        return jnp.stack([told, off], axis=-1)[:, None]

    def prior(params, key, count):
        return jnp.stack([jnp.arange(count) % CLASSES, jnp.zeros(count)], axis=1).astype(jnp.float32)

    def log_likelihood(params, batch, key, given, told, samples):
        what = (given * bits).sum() + 100.0 * (told * bits).sum() + 10_000.0 * samples
        return what + batch["label"] / 4.0

    method = Method(None, None, None)
    return MultimodalVAE(method, names, infer, decode, unfold, prior, log_likelihood)


def explore(names, policy=perfect, *, batch_size=7, **how):
    painter = make_painter(names, policy, **how)
    return LatentEvaluator(painter, CONFIG, make_judges(names), end_id=END, batch_size=batch_size)
