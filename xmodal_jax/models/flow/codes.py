"""Autoencoders of several modalities, whose codes are sequences of tokens ``[B, tokens, dims]``.

A code is what a flow over several modalities generates (`models.flow.multimodal`). In texts, speech and series
neighbouring tokens of the encoder are joined, so that every token of the code tells of its own part of the sequence;
likewise in images whose decoder has a grid, where every token tells of its own part of the picture. Vectors, classes
and other images become the tokens of their code by one linear layer.

The decoders get codes with noise, and codes are drawn toward 0, so that codes between those of two examples decode to
something in between. The codes of one example's modalities are aligned by a contrastive loss: it brings out what the
modalities share, such as a class, which few dimensions of a code hold otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.random import batch_keys, example_keys, fold_in_name, normal_like
from xmodal_jax.losses.contrastive import info_nce
from xmodal_jax.losses.gradient_cache import chunked
from xmodal_jax.models.towers import Encoders, first_example
from xmodal_jax.models.vae.modalities import (
    AudioConfig,
    ImageConfig,
    ModalityConfig,
    ModalityConfigs,
    NetworkInputs,
    preprocess,
    token_encoder,
    used_configs,
)
from xmodal_jax.models.vae.networks import (
    Decoder,
    ModalityGroup,
    make_groups,
    modality_keys,
    stack_group,
    stack_modalities,
)
from xmodal_jax.nets.decoders import ConvDecoderConfig, FrameDecoderConfig, Size
from xmodal_jax.nets.encoders import AudioTransformerConfig, DCGANEncoderConfig
from xmodal_jax.types import Batch, ExampleKeys, Key, Method, Params, Tokens

Codes = dict[str, Array]
"""Codes ``[B, tokens, dims]`` by name of the modality."""


@dataclasses.dataclass(frozen=True)
class CodeConfig(ModalityConfigs):
    """Encoders, decoders and codes of the modalities."""

    image: ImageConfig = ImageConfig(
        DCGANEncoderConfig(width=64, norm="none"), ConvDecoderConfig(width=64, grid=2), scale=0.1
    )
    """Encoder, decoder and likelihood of images."""
    audio: AudioConfig = AudioConfig(
        AudioTransformerConfig(width=64, downsample=8), FrameDecoderConfig(width=128)
    )
    """Encoder, decoder and likelihood of speech."""
    tokens: int = 1
    """Tokens of the code of a vector, a class, or an image whose decoder has no grid (``image.decoder.grid``); with a
    grid of G an image's code has G x G tokens."""
    sequence_tokens: int = 8
    """Tokens of the code of a text, of speech or of a series; each stands for an equal part of the longest one."""
    dims: int = 96
    """Dimensions of each token of a code."""
    hidden: int = 256
    """Units of the hidden layer between the encoder of an image (or of each part of it), a vector or a class and its
    code."""
    code_noise: float = 0.3
    """Standard deviation of the noise on the codes that decoders get in training. Codes have about unit variance."""
    code_weight: float = 1e-2
    """Weight of half the mean squared code in the loss."""
    align_weight: float = 0.5
    """Weight of the contrastive loss that aligns the codes of an example's modalities; 0: none. Reconstruction is
    measured in nats for each element of the data, such as a pixel's colour."""
    align_dims: int = 64
    """Dimensions of the space in which codes are aligned."""
    temperature: float = 0.1
    """Temperature of the contrastive loss."""

    def __post_init__(self):
        check_at_least(self, 1, "tokens", "sequence_tokens", "dims", "hidden", "align_dims")
        check_at_least(self, 0, "code_noise", "code_weight", "align_weight")


class CodeLayout(NamedTuple):
    """What the tokens of a code stand for."""

    kind: Literal["vector", "sequence", "grid"]
    """For the whole example, for parts of a sequence, or for the parts of a picture, row by row."""
    tokens: int
    """The number of tokens."""


def code_layout(config: CodeConfig, modality: ModalityConfig, size: Size) -> CodeLayout:
    """The layout of the codes of modalities of one kind and size."""
    if modality.token_encoder(size) is not None:
        return CodeLayout("sequence", config.sequence_tokens)
    grid = getattr(modality.decoder, "grid", 1)
    return CodeLayout("grid", grid * grid) if grid > 1 else CodeLayout("vector", config.tokens)


class _Encoder(nn.Module):
    """The code ``[B, tokens, dims]`` of a modality."""

    features: nn.Module
    """From inputs to features ``[B, hidden]``, or to the tokens of a sequence or of a picture."""
    layout: CodeLayout
    dims: int
    hidden: int
    """Units of the hidden layer of each part of a picture."""

    @nn.compact
    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Float[Array, "batch tokens dims"]:
        """``inputs`` and ``mask`` are those of the encoder; ``keys``: of dropout, or None."""
        kind, count = self.layout
        features = self.features(inputs, mask, keys)
        if kind == "vector":
            return nn.Dense(count * self.dims, name="code")(features).reshape(-1, count, self.dims)
        if kind == "sequence":
            return nn.Dense(self.dims, name="code")(join_tokens(features, count))
        parts = join_patches(features.values, math.isqrt(count), inputs.shape[1:3])
        return nn.Dense(self.dims, name="code")(nn.relu(nn.Dense(self.hidden, name="hidden")(parts)))


class _Tokens(nn.Module):
    """An encoder's tokens; its parameters have the path that those of other encoders have."""

    encoder: nn.Module

    def __call__(self, inputs, mask, keys: ExampleKeys | None) -> Tokens:
        """The encoder's tokens."""
        return self.encoder(inputs, mask, keys=keys)


def join_tokens(sequence: Tokens, count: int) -> Float[Array, "batch count joined"]:
    """The ``sequence`` as ``count`` tokens, each of which holds an equal number of neighbouring tokens side by side; 0
    where a token is padding."""
    x = sequence.values.astype(jnp.float32)
    if sequence.mask is not None:
        x = jnp.where(sequence.mask[:, :, None], x, 0.0)
    joined = -(-x.shape[1] // count)
    x = jnp.pad(x, ((0, 0), (0, count * joined - x.shape[1]), (0, 0)))
    return x.reshape(x.shape[0], count, -1)


def join_patches(
    values: Float[Array, "batch tokens width"], grid: int, sides: tuple[int, int]
) -> Float[Array, "batch parts joined"]:
    """The tokens of pictures of ``sides`` (height, width), row by row, as ``grid * grid`` tokens, each of which holds
    those of its own part of the picture side by side; zeros where the grid does not divide the rows and columns.

    Raises:
      ValueError: the tokens form no rows and columns in proportion to the picture's sides.
    """
    count, width = values.shape[1:]
    rows = max(round(math.sqrt(count * sides[0] / sides[1])), 1)
    columns = count // rows
    if rows * columns != count:
        raise ValueError(
            f"{count} tokens of images of {sides[0]} x {sides[1]} form no grid, as the decoder's grid needs: choose "
            "another encoder (--model.image.encoder), or --model.image.decoder.grid 1"
        )
    x = values.astype(jnp.float32).reshape(-1, rows, columns, width)
    x = jnp.pad(x, ((0, 0), (0, -rows % grid), (0, -columns % grid), (0, 0)))
    x = x.reshape(x.shape[0], grid, x.shape[1] // grid, grid, x.shape[2] // grid, width)
    return x.swapaxes(2, 3).reshape(x.shape[0], grid * grid, -1)


class _Projection(nn.Module):
    """A linear map of a code into the space in which codes are aligned."""

    dims: int

    @nn.compact
    def __call__(self, code: Float[Array, "batch tokens dims"]) -> Float[Array, "batch out"]:
        return nn.Dense(self.dims, name="align")(code.reshape(code.shape[0], -1))


class CodeNetwork(nn.Module):
    """Encoders, decoders and projections of the modalities in ``groups``, with stacked parameters in a group."""

    config: CodeConfig
    modalities: Mapping[str, ModalityConfig]
    """The configuration of each kind of data."""
    groups: tuple[ModalityGroup, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, group after group."""
        return tuple(name for group in self.groups for name in group.names)

    def setup(self):
        """The networks of every group of modalities; attribute names are parameter paths."""
        c = self.config
        experts, decoders, projections = {}, {}, {}
        for group in self.groups:
            modality = self.modalities[group.kind]
            layout = code_layout(c, modality, group.size)
            if layout.kind == "vector":
                features = modality.features(group.size, c.hidden)
            elif layout.kind == "sequence":
                features = _Tokens(modality.token_encoder(group.size))
            else:
                features = _Tokens(token_encoder(group.kind, modality.encoder, group.size))
            experts[group.name] = stack_modalities(_Encoder)(features, layout, c.dims, c.hidden)
            decoders[group.name] = stack_modalities(Decoder)(modality, group.size)
            projections[group.name] = stack_modalities(_Projection)(c.align_dims)
        self.experts, self.decoders, self.projections = experts, decoders, projections

    def encode(self, inputs: NetworkInputs, keys: ExampleKeys | None = None) -> Codes:
        """The code of each modality; ``keys``: of dropout, one for each example, or None."""
        codes = {}
        for group in self.groups:
            x, mask = stack_group(group, inputs.inputs)
            code = self.experts[group.name](x, mask, modality_keys(keys, group.names))
            codes |= dict(zip(group.names, code, strict=True))
        return codes

    def project(self, codes: Codes) -> dict[str, Float[Array, "batch align"]]:
        """The codes in the space in which they are aligned, not normalised."""
        projected = {}
        for group in self.groups:
            x = self.projections[group.name](jnp.stack([codes[name] for name in group.names]))
            projected |= dict(zip(group.names, x, strict=True))
        return projected

    def _decode(self, group: ModalityGroup, z: Float[Array, "g batch latent"], tokens, keys=None) -> Array:
        """The outputs of a group's decoders, ``[G, B, ...]``, for flat codes; see `models.vae.networks.Decoder`."""
        return self.decoders[group.name](z, tokens, modality_keys(keys, group.names))

    def log_likelihood(
        self, codes: Codes, inputs: NetworkInputs, keys: ExampleKeys | None = None
    ) -> Float[Array, "m batch"]:
        """``log p(x_m | code_m)`` of each modality, in nats for each element of the data, times the weight of the
        modality's kind; of what is missing the value is arbitrary."""
        terms = []
        for group in self.groups:
            modality = self.modalities[group.kind]
            x, mask = stack_group(group, inputs.targets)
            tokens = jax.vmap(functools.partial(modality.decoder_tokens, samples=1))(x)
            tokens = None if tokens is None else tokens[:, 0]
            outputs = self._decode(group, _flatten(codes, group), tokens, keys)
            nats = jax.vmap(modality.log_likelihood)(outputs[:, None], x, mask)[:, 0]  # [G, 1 sample, B]
            terms.append(modality.weight * nats / max(group.size.elements, 1))
        return jnp.concatenate(terms)

    def generate(self, codes: Codes, key: Key | None) -> dict[str, Array]:
        """Data ``[B, ...]`` of every modality, decoded from its code. Texts and classes are drawn from ``key``, or are
        the likeliest ones without a key."""
        generated = {}
        for group in self.groups:
            z = _flatten(codes, group)
            decode = lambda tokens, group=group, z=z: self._decode(group, z, tokens)
            data = self.modalities[group.kind].generate(decode, z, group.size, key)
            generated |= dict(zip(group.names, data, strict=True))
        return {name: generated[name] for name in self.names}

    def init_all(self, inputs: NetworkInputs, keys: ExampleKeys) -> None:
        """Calls every part once, to initialise its parameters."""
        codes = self.encode(inputs, keys)
        self.project(codes)
        self.log_likelihood(codes, inputs, keys)


def _flatten(codes: Codes, group: ModalityGroup) -> Float[Array, "g batch latent"]:
    """The codes of a group's modalities, each as one vector."""
    stacked = jnp.stack([codes[name] for name in group.names])
    return stacked.reshape(*stacked.shape[:2], -1)


@dataclasses.dataclass(frozen=True, eq=False)
class CodeModel:
    """The functions of the autoencoders; make one by `make_codes`."""

    config: CodeConfig
    network: CodeNetwork

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities, in the order of every axis M."""
        return self.network.names

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Tokens and dimensions of each modality's code."""
        shapes = {}
        for group in self.network.groups:
            layout = code_layout(self.config, self.network.modalities[group.kind], group.size)
            shapes |= dict.fromkeys(group.names, (layout.tokens, self.config.dims))
        return shapes

    @property
    def method(self) -> Method:
        """The training of the autoencoders."""
        return Method(self.init, self.loss, self.encode, needs_whole_batch=True)

    def apply(self, params: Params, method: str, *args):
        """A method of the network with these parameters."""
        return self.network.apply({"params": params}, *args, method=method)

    def preprocess(self, batch: Batch, keys: ExampleKeys | None = None) -> NetworkInputs:
        """The batch as the network takes it; with ``keys``, augmented as in training."""
        return preprocess(self.config, self.modalities, batch, keys)

    def init(self, key: Key, batch: Batch) -> Params:
        """Initial parameters; of the batch only shapes matter."""
        inputs = self.preprocess(first_example(batch))
        keys = example_keys(key, jnp.zeros(1, jnp.int32))
        return self.network.init(key, inputs, keys, method="init_all")["params"]

    def encode(self, params: Params, batch: Batch) -> tuple[Codes, Bool[Array, "batch m"]]:
        """The code of each modality, 0 where it is missing; and which example has which modality."""
        inputs = self.preprocess(batch)
        return self._zero_missing(self.apply(params, "encode", inputs), inputs), inputs.present.T

    def decode(self, params: Params, codes: Codes, key: Key | None = None) -> dict[str, Array]:
        """Data ``[B, ...]`` of every modality, decoded from its code."""
        return self.apply(params, "generate", codes, key)

    def _zero_missing(self, codes: Codes, inputs: NetworkInputs) -> Codes:
        """The codes, with 0 for what is missing: an encoder's output for it is arbitrary and may overflow."""
        present = dict(zip(self.modalities, inputs.present, strict=True))
        return {m: jnp.where(present[m][:, None, None], code, 0.0) for m, code in codes.items()}

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name=None, chunks: int = 1):
        """The loss and its parts, as this device's shares: negative log-likelihood for each element of the data, mean
        squared code and contrastive loss, each a mean over the modalities that are present."""
        keys, c = batch_keys(key, batch), self.config

        def encode(params: Params, inputs):
            """What is computed example by example: terms ``[B, M]`` and projected codes ``[B, align]``."""
            batch, keys = inputs
            inputs = self.preprocess(batch, keys)
            codes = self._zero_missing(self.apply(params, "encode", inputs, keys), inputs)
            noisy = {m: x + c.code_noise * normal_like(fold_in_name(keys, m), x) for m, x in codes.items()}
            nats = -self.apply(params, "log_likelihood", noisy, inputs, keys)
            squares = jnp.stack([jnp.square(codes[m]).mean(axis=(1, 2)) for m in self.modalities])
            return nats.T, squares.T, self.apply(params, "project", noisy), inputs.present.T

        run = encode if chunks == 1 else chunked(encode, chunks)
        nats, squares, projected, present = run(params, (batch, keys))

        def mean_share(values):
            """This device's share of the mean over all modalities that are present, of all examples."""
            weights = present.reshape(-1).astype(jnp.float32)
            return collectives.batch_mean(values.reshape(-1), weights, axis_name=axis_name)

        metrics = {"nats": mean_share(nats), "code": mean_share(squares)}
        loss = metrics["nats"] + 0.5 * c.code_weight * metrics["code"]
        if c.align_weight and len(self.modalities) > 1:
            metrics["align"] = self._align(projected, present, axis_name)
            loss = loss + c.align_weight * metrics["align"]
        return loss, jax.lax.stop_gradient(metrics)

    def _align(self, projected: dict[str, Array], present: Array, axis_name) -> Array:
        """The mean contrastive loss over pairs of modalities of one example that are present."""
        terms, weights = [], []
        for (i, a), (j, b) in itertools.combinations(enumerate(self.modalities), 2):
            both = present[:, i] & present[:, j]
            terms.append(
                info_nce(
                    projected[a],
                    projected[b],
                    temperature=self.config.temperature,
                    present=both,
                    normalize=True,
                    axis_name=axis_name,
                )  # fmt: skip
            )
            weights.append(both.astype(jnp.float32))
        return collectives.batch_mean(jnp.concatenate(terms), jnp.concatenate(weights), axis_name=axis_name)


def make_codes(
    config: CodeConfig, sizes: Mapping[str, Size], *, encoders: Encoders | None = None
) -> CodeModel:
    """Autoencoders of the modalities in ``sizes`` (see `models.vae.modalities.sizes_of`).

    ``encoders``: encoders of your own by kind of data, see `models.towers.Encoders`.
    """
    used = used_configs(config, sizes, encoders=encoders)
    return CodeModel(config, CodeNetwork(config, used, make_groups(sizes)))
