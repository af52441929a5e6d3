"""Trained networks that take part in another training and stay frozen: captioners, text encoders, image encoders."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from xmodal_jax.core.parts import Advanced
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import Source
from xmodal_jax.data.splits import fit_tokenizer, make_text_cleaner
from xmodal_jax.data.text import Tokenizer, TokenizeTransform, load_hf_tokenizer, tokenizer_from_files
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.models.gan.inputs import FrozenCaptioner, FrozenEncoder
from xmodal_jax.models.seq2seq import Seq2SeqConfig, make_captioner
from xmodal_jax.models.towers import make_encoder, read_pretrained_config
from xmodal_jax.nets.encoders import EncoderConfig, max_text_tokens
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.config import PretrainedConfig
from xmodal_jax.train.run import Run, from_json
from xmodal_jax.transfer.first_stage import (
    LoadedFirstStage,
    check_second_stage,
    first_stage_to_json,
    prepare_first_stage,
    use_first_stage,
)
from xmodal_jax.transfer.pretrained import as_pretrained, find_folders, with_own_encoders


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenNetworksConfig(PretrainedConfig):
    """The options of an experiment that trains a GAN with frozen networks."""

    help_group: ClassVar[str] = "pretrained encoders"

    audio_encoder: Advanced[str | None] = None
    """Must stay None: an image GAN has no speech encoder."""
    video_encoder: Advanced[str | None] = None
    """Must stay None: an image GAN has no video encoder."""
    redescribe: pathlib.Path | None = None
    """Directory of a run of captioning.py, whose frozen captioner takes part in training: its cross-entropy of the
    captions given the generated images is a loss of the generator, with the weight
    --model.features.redescription-weight. Captions are tokenized as in that run. None: no captioner."""
    read_with: pathlib.Path | None = None
    """Directory of a run of contrastive.py, whose frozen text encoder encodes the captions. None: generator and
    discriminator each train a text encoder, unless --text-encoder gives a frozen one."""
    first_stage: Advanced[pathlib.Path | None] = None
    """Directory of a run of text_to_image_gan.py on smaller images, whose frozen generator is the first stage of
    --model.generator stackgan. None: the first stage is trained within this run, on images that are made smaller."""
    first_stage_steps: Advanced[int | None] = None
    """Training steps of the first stage of --model.generator stackgan, where it is trained within this run. None: as
    many as --steps."""


class CaptioningRun(NamedTuple):
    """A trained captioner of images, from a run of captioning.py."""

    config: Seq2SeqConfig
    params: Any
    tokenizer: Tokenizer
    length: int
    """Largest number of tokens in a caption."""
    shape: tuple[int, int, int]
    """Height, width and channels of the images."""
    cleanup: str = "none"
    """How its texts were cleaned before they were tokenized, see `data.splits.make_text_cleaner`."""

    @property
    def tokenize(self) -> TokenizeTransform:
        """Captions to tokens, as in its training."""
        return TokenizeTransform(self.tokenizer, self.length, clean=make_text_cleaner(self.cleanup))


def load_captioning_run(run: pathlib.Path, *, seed: int | None = None) -> CaptioningRun:
    """The newest checkpoint of a captioning run.

    ``seed``: the seed whose parameters to take, needed for a run of several; None: the run has one seed.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run does not caption images.
    """
    restored = restore_run(run, seed=seed)
    metadata = restored.metadata
    if (metadata.get("source"), metadata.get("target")) != ("image", "text"):
        raise ValueError(f"{run} captions no images and cannot judge images: give a run of captioning.py")
    config = from_json(Seq2SeqConfig, metadata["config"]["model"])
    tokenizer, shape = tokenizer_from_files(metadata["tokenizer"]), tuple(metadata["shape"])
    cleanup = metadata["config"].get("text_cleanup", "none")
    return CaptioningRun(config, restored.params, tokenizer, metadata["length"], shape, cleanup)


class LoadedCaptioner(NamedTuple):
    """A frozen captioner, and the tokenization of the captions that it was trained on."""

    captioner: FrozenCaptioner
    tokenize: TokenizeTransform
    cleanup: str = "none"
    """How captions are cleaned before they are tokenized, see `data.splits.make_text_cleaner`."""


def load_captioner(run: pathlib.Path, *, seed: int | None = None) -> LoadedCaptioner:
    """The captioner of a run's newest checkpoint, for `models.gan.make_gan`.

    ``seed``: the seed whose parameters to take, needed for a run of several; None: the run has one seed.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run does not caption images.
    """
    trained = load_captioning_run(run, seed=seed)
    sizes = dict(vocab_size=trained.tokenizer.vocab_size, length=trained.length)
    captioner = make_captioner(trained.config, "image", **sizes)
    frozen = FrozenCaptioner(*captioner, trained.params)  # the captioner's functions, and their parameters
    return LoadedCaptioner(frozen, trained.tokenize, trained.cleanup)


class FrozenTextEncoder(NamedTuple):
    """A frozen text encoder, and its tokenizer."""

    config: EncoderConfig
    params: Any
    tokenizer: Tokenizer
    length: int | None
    """Number of tokens that texts are padded or cut to; None: any number up to the encoder's positions."""
    cleanup: str = "none"
    """How texts are cleaned before they are tokenized, see `data.splits.make_text_cleaner`."""


def text_encoder_of_run(run: pathlib.Path, *, seed: int | None = None) -> FrozenTextEncoder:
    """The text encoder of a contrastive run's newest checkpoint, for `models.gan.make_gan`.

    ``seed``: the seed whose parameters to take; needed where the run has several (``--seeds``).

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run has no text encoder, or has several seeds and ``seed`` is none of them.
    """
    restored = restore_run(run, seed=seed)
    metadata, parts = restored.metadata, restored.params.get("text", {})
    if "text" not in metadata.get("modalities", ()) or "encoder" not in parts:
        raise ValueError(f"{run} has no text encoder: give a run of contrastive.py with text")
    config = from_json(ContrastiveConfig, metadata["config"]["model"]).text
    params = {name: parts[name] for name in ("encoder", "pool") if name in parts}  # not the run's projection
    tokenizer = tokenizer_from_files(metadata["tokenizer"])
    cleanup = metadata["config"].get("text_cleanup", "none")  # how the run cleaned its texts
    return FrozenTextEncoder(config, params, tokenizer, metadata["max_length"], cleanup)


def text_encoder_of_checkpoint(options: EncoderConfig, folder: pathlib.Path) -> FrozenTextEncoder:
    """The pretrained text encoder of a Hugging Face folder.

    ``options``: the configured encoder, which decides what the checkpoint leaves open, such as dropout and the pool.

    Raises:
      ValueError: the pool is "attention", whose query is learned.
    """
    config = as_pretrained(options, read_pretrained_config("text", folder))
    if config.pool == "attention":
        raise ValueError(
            "the pool 'attention' has a query to learn, and the text encoder of --text-encoder is frozen: give "
            "--model.condition.text.pool mean, cls, or leave it out for the encoder's own"
        )
    head = "pool" if config.pool == "own" else "none"  # "none": tokens, which the GAN's own pool reduces
    # No example is needed, as parameters do not depend on the length of texts. vocab_size=0: the tokenizer is the
    # checkpoint's own, which need not be checked.
    module = make_encoder("text", config, {}, vocab_size=0, head=head)
    params, _ = read_parameters(open_checkpoint(folder), "text", module, parameter_shapes(module))
    return FrozenTextEncoder(config, {"encoder": params}, load_hf_tokenizer(folder), length=None)


class FrozenNetworks(NamedTuple):
    """The frozen networks that the flags of an experiment name."""

    config: FrozenNetworksConfig
    text_encoder: FrozenTextEncoder | None
    captioner: LoadedCaptioner | None
    first_stage: LoadedFirstStage | None = None

    @property
    def tokenize(self) -> TokenizeTransform | None:
        """The tokenization that these networks need, or None if any will do (see `same_tokens`)."""
        tokenize = same_tokens(self.captioner, self.text_encoder)
        if self.first_stage is None or self.first_stage.tokenize is None:
            return tokenize
        return self.first_stage.check_tokens(tokenize, self.text_encoder and self.text_encoder.tokenizer)

    def fit_tokenizer(self, source: Source, bad_examples: BadExamples) -> TokenizeTransform | None:
        """The tokenization that these networks need, or else one that is fitted to the captions of ``source``; None:
        there are no captions. ``bad_examples`` notes the captions that are cut."""
        if "text" not in source.modalities:
            return None
        tokenize = self.tokenize
        if tokenize is not None:
            tokenize.bad_examples = bad_examples
        else:
            tokenize, _ = fit_tokenizer(source, bad_examples, **self.config.text_options)
        return tokenize

    def gan_arguments(self, shape: tuple[int, int, int]) -> dict[str, Any]:
        """The keyword arguments of `models.gan.make_gan` for images of ``shape`` (H, W, C).

        They are the text encoder's parameters, the captioner and the image encoder; None for each that there is not.
        """
        return {
            "text": self.text_encoder and self.text_encoder.params,
            "captioner": self.captioner and self.captioner.captioner,
            "image_encoder": load_image_encoder(self.config, shape),
        }

    def prepare_networks(
        self, loader: Loader, sizes: Mapping[str, Any], run: Run, timer: Timer, metadata: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`gan_arguments` with the first stage of a generator that has one, which may be trained here (see
        `transfer.first_stage.prepare_first_stage`), and ``metadata`` with what a checkpoint keeps of that stage."""
        arguments = self.gan_arguments(sizes["shape"])
        check_second_stage(self.config.model, sizes, arguments)
        text = self.text_encoder and self.text_encoder.params
        stage = prepare_first_stage(
            self.config, self.first_stage, loader, sizes, run, timer, metadata=metadata, text=text
        )
        return {**arguments, "first_stage": stage}, {**metadata, "first_stage": first_stage_to_json(stage)}


def load_frozen_networks(config: FrozenNetworksConfig) -> tuple[FrozenNetworksConfig, FrozenNetworks]:
    """Loads the frozen networks that the flags name.

    Returns:
      The configuration, with that of a frozen text encoder in its model and the networks' way to clean texts, and the
      networks.

    Raises:
      FileNotFoundError: a run has no checkpoint.
      ValueError: flags contradict each other, or a run or folder has no such network.
    """
    config, text_encoder = load_text_encoder(config)
    captioner = None if config.redescribe is None else load_captioner(config.redescribe)
    config, first_stage = use_first_stage(config)
    networks = FrozenNetworks(config, text_encoder, captioner, first_stage)
    # A network that fixes the tokenization needs texts that are cleaned as in its training.
    if networks.tokenize is not None:
        fixed = captioner or text_encoder or first_stage  # whose tokenization all texts get
        config = dataclasses.replace(config, text_cleanup=fixed.cleanup)
    return config, networks._replace(config=config)


def load_text_encoder(
    config: FrozenNetworksConfig,
) -> tuple[FrozenNetworksConfig, FrozenTextEncoder | None]:
    """Loads the frozen text encoder of ``--read-with RUN`` or ``--text-encoder hf:PATH``.

    Returns:
      The configuration with that encoder's configuration in its model, and the encoder (None if no flag is given).

    Raises:
      ValueError: both flags are given; or one is, but the model encodes no captions; or a flag names a pretrained
        encoder of another modality than text and images.
    """
    folder = find_folders(config, ("text", "image")).get("text")
    config = with_own_encoders(config, {})  # refuses them: these networks are frozen
    config = _without_unused_features(config)
    if config.read_with is not None and folder is not None:
        raise ValueError(
            "--read-with and --text-encoder both choose what encodes the captions: give one of them"
        )
    if config.read_with is None and folder is None:
        return config, None
    if not config.model.condition.reads_text:
        raise ValueError(
            f"--read-with and --text-encoder encode captions, the condition is {config.model.condition.name!r}: leave"
            " them out or set --model.condition words"
        )
    if folder is None:
        encoder = text_encoder_of_run(config.read_with)
    else:
        encoder = text_encoder_of_checkpoint(config.model.condition.text, folder)
    condition = dataclasses.replace(config.model.condition, text=encoder.config)
    model = dataclasses.replace(config.model, condition=condition)
    return dataclasses.replace(config, model=model), encoder


def _without_unused_features(config: FrozenNetworksConfig) -> FrozenNetworksConfig:
    """The configuration without ``model.features`` where neither --redescribe nor --image-encoder gives a network.

    Raises:
      ValueError: ``model.features`` was changed, but there is no network that it applies to.
    """
    if config.redescribe is not None or config.image_encoder is not None or config.model.features is None:
        return config
    if config.model.features != type(config)().model.features:
        raise ValueError(
            "--model.features needs a frozen network: give --redescribe RUN or --image-encoder hf:PATH"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, features=None))


def load_image_encoder(config: PretrainedConfig, shape: tuple[int, int, int]) -> FrozenEncoder | None:
    """The frozen encoder of ``--image-encoder hf:PATH`` for images of ``shape`` ``(H, W, C)``; None if the flag is not
    given. It outputs a token for each patch, without leading tokens such as [CLS]."""
    folder = find_folders(config).get("image")
    if folder is None:
        return None
    example = {"image": np.zeros((1, *shape), np.uint8)}
    # vocab_size=0: there is no tokenizer here whose size has to fit the encoder.
    module = make_encoder("image", read_pretrained_config("image", folder), example, vocab_size=0)
    params, _ = read_parameters(open_checkpoint(folder), "image", module, parameter_shapes(module))

    def encode(params: Any, pixels: jax.Array) -> jax.Array:
        """The tokens of the patches, ``[B, patches, width]``, of images ``[B, H, W, C]``."""
        return module.apply({"params": params}, pixels).values[:, module.prefix_tokens :]

    return FrozenEncoder(encode, params)


def same_tokens(
    captioner: LoadedCaptioner | None, text_encoder: FrozenTextEncoder | None
) -> TokenizeTransform | None:
    """The tokenization that captioner and text encoder share; None: neither of them fixes the length of texts.

    Raises:
      ValueError: they have different tokenizers or lengths of text.
    """
    if captioner is None:
        if text_encoder is None or text_encoder.length is None:
            return None
        clean = make_text_cleaner(text_encoder.cleanup)
        return TokenizeTransform(text_encoder.tokenizer, text_encoder.length, clean=clean)
    tokenize = captioner.tokenize
    if text_encoder is not None and (
        tokenize.tokenizer.files() != text_encoder.tokenizer.files()
        or text_encoder.length not in (None, tokenize.max_length)
    ):
        raise ValueError(
            "the captioner (--redescribe) and the text encoder (--read-with or --text-encoder) have different"
            " tokenizers or lengths of text: train them on the same data, with the same --tokenizer"
        )
    limit = None if text_encoder is None else max_text_tokens(text_encoder.config)
    if limit is not None and tokenize.max_length > limit:
        raise ValueError(
            f"the captioner (--redescribe) reads texts of {tokenize.max_length} tokens, the text encoder "
            f"(--text-encoder) at most {limit}: train the captioner with --text-length {limit}"
        )
    return tokenize
