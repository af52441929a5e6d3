"""Trained networks that another training uses as they are: captioners, readers of captions, encoders of images."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.text import Tokenizer, TokenizeTransform, load_hf_tokenizer, tokenizer_from_files
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.models.gan.networks import FrozenCaptioner, Watcher
from xmodal_jax.models.seq2seq import Seq2SeqConfig, make_captioner
from xmodal_jax.models.towers import make_encoder, pretrained_config
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.config import PretrainedConfig
from xmodal_jax.train.run import from_json
from xmodal_jax.transfer.pretrained import as_pretrained, find_folders


class CaptioningRun(NamedTuple):
    """What a captioning run of pictures has learned."""

    config: Seq2SeqConfig
    params: Any
    tokenizer: Tokenizer
    length: int
    shape: tuple[int, int, int]
    """Of the pictures."""


def load_captioning_run(run: pathlib.Path, *, seed: int | None = None) -> CaptioningRun:
    """The newest checkpoint of a captioning run.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run captions no pictures.
    """
    restored = restore_run(run, seed=seed)
    metadata = restored.metadata
    if (metadata.get("source"), metadata.get("target")) != ("image", "text"):
        raise ValueError(f"{run} captions no pictures and cannot judge pictures: give a run of captioning.py")
    config = from_json(Seq2SeqConfig, metadata["config"]["model"])
    tokenizer, shape = tokenizer_from_files(metadata["tokenizer"]), tuple(metadata["shape"])
    return CaptioningRun(config, restored.params, tokenizer, metadata["length"], shape)


class LoadedCaptioner(NamedTuple):
    """A trained captioner, and how it reads texts."""

    captioner: FrozenCaptioner
    tokenize: TokenizeTransform


def load_captioner(run: pathlib.Path, *, seed: int | None = None) -> LoadedCaptioner:
    """The captioner of pictures in a run's newest checkpoint, for `models.gan.method.make_gan`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run captions no pictures.
    """
    trained = load_captioning_run(run, seed=seed)
    sizes = dict(vocab_size=trained.tokenizer.vocab_size, length=trained.length)
    describer = make_captioner(trained.config, "image", **sizes)
    return LoadedCaptioner(
        FrozenCaptioner(*describer, trained.params), TokenizeTransform(trained.tokenizer, trained.length)
    )


class FrozenTextEncoder(NamedTuple):
    """A trained text encoder, and how it reads texts."""

    config: EncoderConfig
    params: Any
    tokenizer: Tokenizer
    length: int | None
    """Tokens of a text; None: as many as there are places."""


def text_encoder_of_run(run: pathlib.Path, *, seed: int | None = None) -> FrozenTextEncoder:
    """The text encoder of a contrastive run's newest checkpoint, for `models.gan.method.make_gan`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run has aligned no texts.
    """
    restored = restore_run(run, seed=seed)
    metadata, parts = restored.metadata, restored.params.get("text", {})
    if "text" not in metadata.get("modalities", ()) or "encoder" not in parts:
        raise ValueError(f"{run} has no text encoder of its own: give a run of contrastive.py with text")
    config = from_json(ContrastiveConfig, metadata["config"]["model"]).text
    params = {name: parts[name] for name in ("encoder", "pool") if name in parts}
    return FrozenTextEncoder(
        config, params, tokenizer_from_files(metadata["tokenizer"]), metadata["max_length"]
    )


def text_encoder_of_checkpoint(asked: EncoderConfig, folder: pathlib.Path) -> FrozenTextEncoder:
    """The pretrained text encoder of a Hugging Face folder; ``asked``: what does not follow from it."""
    config = dataclasses.replace(as_pretrained(asked, pretrained_config("text", folder)), pool="own")
    module = make_encoder("text", config, {}, vocab_size=0, far="pool")
    params, _ = read_parameters(open_checkpoint(folder), "text", module, parameter_shapes(module))
    return FrozenTextEncoder(config, {"encoder": params}, load_hf_tokenizer(folder), None)


def load_text_encoder(config: PretrainedConfig) -> tuple[PretrainedConfig, FrozenTextEncoder | None]:
    """A drawing run's configuration with the text encoder of ``--read-with RUN`` or ``--text-encoder hf:PATH`` in its
    model, and that encoder.

    Raises:
      ValueError: both are given, or one where no caption is read, or an encoder of neither text nor images.
    """
    folder = find_folders(config, ("text", "image")).get("text")
    if config.read_with is not None and folder is not None:
        raise ValueError("--read-with and --text-encoder both say who reads the captions: give one of them")
    if config.read_with is None and folder is None:
        return config, None
    if not config.model.reads:
        raise ValueError(
            f"--read-with and --text-encoder read captions, the condition is {config.model.condition!r}: leave them out"
            " or set --model.condition words"
        )
    reader = (
        text_encoder_of_run(config.read_with)
        if folder is None
        else text_encoder_of_checkpoint(config.model.text, folder)
    )
    model = dataclasses.replace(config.model, text=reader.config)
    return dataclasses.replace(config, model=model), reader


def image_watcher(config: PretrainedConfig, shape: tuple[int, int, int]) -> Watcher | None:
    """The pretrained encoder of ``--image-encoder hf:PATH``, for images of ``shape``: what it sees at each place."""
    folder = find_folders(config).get("image")
    if folder is None:
        return None
    example = {"image": np.zeros((1, *shape), np.uint8)}
    module = make_encoder("image", pretrained_config("image", folder), example, vocab_size=0)
    params, _ = read_parameters(open_checkpoint(folder), "image", module, parameter_shapes(module))
    see = lambda params, pixels: module.apply({"params": params}, pixels).values[:, module.prefix_tokens :]
    return Watcher(see, params)


def same_tokens(
    described: LoadedCaptioner | None, reader: FrozenTextEncoder | None
) -> TokenizeTransform | None:
    """How both read texts; None: neither says how long they are. Raises ``ValueError``: each has a way of its own."""
    if described is None:
        return (
            None
            if reader is None or reader.length is None
            else TokenizeTransform(reader.tokenizer, reader.length)
        )
    tokenize = described.tokenize
    if reader is not None and (
        tokenize.tokenizer.files() != reader.tokenizer.files()
        or reader.length not in (None, tokenize.max_length)
    ):
        raise ValueError(
            "the captioner (--redescribe) and the text encoder (--read-with or --text-encoder) have other tokenizers or"
            " lengths of text: train them on the same data, with the same --tokenizer"
        )
    return tokenize
