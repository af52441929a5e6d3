"""Autoencoders with pretrained encoders of images and texts, in place of encoders that are trained from scratch."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from xmodal_jax.core import trees
from xmodal_jax.core.parts import Advanced
from xmodal_jax.models.towers import read_pretrained_config
from xmodal_jax.models.vae.modalities import pretrained_encoder
from xmodal_jax.models.vae.networks import make_groups, pretrained_path
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.train.config import PretrainedConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.transfer.pretrained import (
    as_pretrained,
    find_folders,
    with_image_settings,
    with_own_encoders,
)
from xmodal_jax.types import GAN, MODALITIES, Batch, Method, Params

Config = TypeVar("Config", bound="LatentConfig")
Trained = TypeVar("Trained", Method, GAN)

ENCODER_MODALITIES = ("image", "text")
"""The kinds of modalities that a pretrained encoder can encode. Autoencoders encode speech from frames of a spectrogram
that differ from those of every pretrained encoder of audio."""

_PARTS = "experts|trunks"
"""The parts of a VAE that contain encoders: each modality's expert, and the trunks of a joint encoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig(PretrainedConfig):
    """The options that the experiments with autoencoders share."""

    help_group: ClassVar[str] = "pretrained encoders"

    video_encoder: Advanced[str | None] = None
    """Must stay None: the autoencoders encode no videos."""
    encoder_lr_multiplier: float = 1.0
    """Learning rate of the pretrained encoders, relative to the other parameters (0.1: a tenth); 0 freezes them."""

    def __post_init__(self):
        """Checks the multiplier of the learning rate."""
        super().__post_init__()
        if self.encoder_lr_multiplier < 0:
            raise ValueError(
                f"--encoder-lr-multiplier must not be negative, got {self.encoder_lr_multiplier}"
            )


class AutoencoderEncoders(NamedTuple):
    """The pretrained encoders within an autoencoder, by the kind of their modality, and their learning rate."""

    checkpoints: Mapping[str, pathlib.Path]
    """Folders of the encoders' Hugging Face checkpoints."""
    configs: Mapping[str, EncoderConfig]
    """Configurations of the encoders."""
    lr_multiplier: float
    """Learning rate of the encoders, as a multiple of that of the other parameters; 0 freezes them."""

    def attach(self, method: Trained, sizes: Mapping[str, Size]) -> Trained:
        """``method``, whose training starts from the parameters of these checkpoints.

        Each modality gets its own copy of an encoder, so that two modalities of one kind can be trained apart.
        ``sizes``: the shape and the number of values of each of the method's modalities, by name.
        ``self.checkpoints`` and ``self.configs`` are folders and configurations by kind, such as "image".
        """
        if not self.checkpoints:
            return method
        # The modalities of one kind and size form a group, whose encoders are stacked along the first axis.
        groups = [group for group in make_groups(sizes) if group.kind in self.checkpoints]

        def load_pretrained(params: Params, batch: Batch) -> Params:
            """``params`` with the encoders' parameters from the checkpoints."""
            flat = trees.flat(params)
            for group in groups:
                module = pretrained_encoder(group.kind, self.configs[group.kind], group.size)
                checkpoint = open_checkpoint(self.checkpoints[group.kind])
                loaded, _ = read_parameters(checkpoint, group.kind, module, parameter_shapes(module))
                loaded = trees.flat(loaded)  # by paths that begin within the encoder
                for path, initial in flat.items():
                    prefix = re.search(pretrained_path(group.name, _PARTS), path)
                    # A parameter of this group's encoder: the same values for each modality of the group.
                    if prefix:
                        flat[path] = jnp.broadcast_to(loaded[path[prefix.end() :]], initial.shape)
            return jax.tree.unflatten(jax.tree.structure(params), flat.values())

        return method._replace(load_pretrained=load_pretrained)

    def set_learning_rates(self, optimizer: Optimizer) -> Optimizer:
        """``optimizer`` with the learning rate of these encoders; a multiplier of 0 freezes them."""
        # Regular expressions for the paths of these encoders' parameters.
        paths = [pretrained_path(f"{kind}_[^/]*", _PARTS) for kind in self.checkpoints]
        if self.lr_multiplier == 0.0:
            return dataclasses.replace(optimizer, freeze=(*optimizer.freeze, *paths))
        if self.lr_multiplier == 1.0:
            return optimizer
        rules = tuple((path, self.lr_multiplier) for path in paths)
        # Before the other rules, because the first regular expression that matches a parameter decides.
        return dataclasses.replace(optimizer, lr_multipliers=(*rules, *optimizer.lr_multipliers))


def use_pretrained_encoders(config: Config) -> tuple[Config, AutoencoderEncoders]:
    """The configuration with its encoders replaced by the pretrained ones that --image-encoder etc. name, and these
    encoders.

    Options that do not follow from a checkpoint, such as dropout, stay as they are.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: a flag is not ``hf:`` and a folder or a hub's name, or its modality is not in `ENCODER_MODALITIES`.
    """
    checkpoints, configs = find_folders(config, ENCODER_MODALITIES), {}
    fields = {field.name for field in dataclasses.fields(config.model)}
    config = with_own_encoders(config, {m: f"{m}.encoder" for m in MODALITIES if m in fields})
    model = config.model
    for kind, checkpoint in checkpoints.items():
        modality_config = getattr(model, kind)  # of all modalities of this kind: encoder, decoder and so on
        configs[kind] = as_pretrained(modality_config.encoder, read_pretrained_config(kind, checkpoint))
        modality_config = dataclasses.replace(modality_config, encoder=configs[kind])
        model = dataclasses.replace(model, **{kind: modality_config})
    config = with_image_settings(config, configs)
    encoders = AutoencoderEncoders(checkpoints, configs, config.encoder_lr_multiplier)
    return dataclasses.replace(config, model=model), encoders
