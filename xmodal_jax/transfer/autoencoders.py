"""Pretrained encoders in autoencoders: what reads images and texts there, in place of encoders of their own."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from xmodal_jax.core import trees
from xmodal_jax.models.towers import read_pretrained_config
from xmodal_jax.models.vae.modalities import pretrained_encoder
from xmodal_jax.models.vae.networks import make_groups, pretrained_path
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.train.config import PretrainedConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.transfer.pretrained import as_pretrained, find_folders
from xmodal_jax.types import GAN, Batch, Method, Params

Config = TypeVar("Config", bound="LatentConfig")
Trained = TypeVar("Trained", Method, GAN)

READ = ("image", "text")
"""What pretrained encoders may read. Speech is read as the frames that are made of it, which none of them takes."""

_PARTS = "experts|trunks"
"""What reads: each modality's expert, and the trunks of a joint encoder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig(PretrainedConfig):
    """What the experiments with autoencoders share."""

    encoder_lr_multiplier: float = 1.0
    """Learning rate of pretrained encoders, as a factor of that of the rest; 0 freezes them."""

    def __post_init__(self):
        super().__post_init__()
        if self.encoder_lr_multiplier < 0:
            raise ValueError(
                f"--encoder-lr-multiplier must not be negative, got {self.encoder_lr_multiplier}"
            )


class Readers(NamedTuple):
    """The pretrained encoders that read for an autoencoder, by kind of data."""

    folders: Mapping[str, pathlib.Path]
    configs: Mapping[str, EncoderConfig]
    rate: float
    """Of learning, as a factor of that of the rest."""

    def start(self, method: Trained, sizes: Mapping[str, Size]) -> Trained:
        """``method`` of these ``sizes``, beginning with what the checkpoints hold; each modality has its own copy."""
        if not self.folders:
            return method
        groups = [group for group in make_groups(sizes) if group.kind in self.folders]

        def load_pretrained(params: Params, batch: Batch) -> Params:
            flat = trees.flat(params)
            for group in groups:
                module = pretrained_encoder(group.kind, self.configs[group.kind], group.size)
                checkpoint = open_checkpoint(self.folders[group.kind])
                read, _ = read_parameters(checkpoint, group.kind, module, parameter_shapes(module))
                read = trees.flat(read)
                for path, drawn in flat.items():
                    place = re.search(pretrained_path(group.name, _PARTS), path)
                    if place:
                        flat[path] = jnp.broadcast_to(read[path[place.end() :]], drawn.shape)
            return jax.tree.unflatten(jax.tree.structure(params), flat.values())

        return method._replace(load_pretrained=load_pretrained)

    def optimize(self, optimizer: Optimizer) -> Optimizer:
        """An optimizer with the learning rate of these encoders; 0 freezes them."""
        where = [pretrained_path(f"{kind}_[^/]*", _PARTS) for kind in self.folders]
        if self.rate == 0.0:
            return dataclasses.replace(optimizer, freeze=(*optimizer.freeze, *where))
        if self.rate == 1.0:
            return optimizer
        return dataclasses.replace(
            optimizer, lr_multipliers=(*((w, self.rate) for w in where), *optimizer.lr_multipliers)
        )


def pretrained_readers(config: Config) -> tuple[Config, Readers]:
    """A run's configuration with a model that reads by the pretrained encoders that it asks for, and these.

    Raises:
      ValueError: an encoder's flag is not ``hf:`` and a folder or a hub's name, or none of `READ` is its modality.
    """
    folders, configs, model = find_folders(config, READ), {}, config.model
    for kind, folder in folders.items():
        own = getattr(model, kind)
        found = as_pretrained(own.encoder, read_pretrained_config(kind, folder))
        configs[kind] = dataclasses.replace(found, pool="own")
        model = dataclasses.replace(model, **{kind: dataclasses.replace(own, encoder=configs[kind])})
    return dataclasses.replace(config, model=model), Readers(folders, configs, config.encoder_lr_multiplier)
