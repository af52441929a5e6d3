"""The table of projection heads: from an encoder's pooled features to the shared embedding space.

Each is a part of a configuration (`core.parts`) that builds its module, ``module(pooled, keys=None) -> [B, embed_dim]``
in float32, not normalised. A new one touches this file alone.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core import parts
from xmodal_jax.core.checks import check_rates, check_sizes
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.types import ExampleKeys

# Modules


class LinearHead(nn.Module):
    """Layer norm and a projection without bias, ``y = W LN(x)``, as in CLIP (Radford et al. 2021, arXiv:2103.00020)."""

    embed_dim: int

    def setup(self):
        """The layers. Their names are parameter paths."""
        self.norm = nn.LayerNorm()
        self.project = nn.Dense(self.embed_dim, use_bias=False)

    def __call__(
        self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None = None
    ) -> Float[Array, "batch dim"]:
        """The projection of each example's features; ``keys`` are not used."""
        return self.project(self.norm(pooled))


class MLPHead(nn.Module):
    """Layer norm and an MLP, ``y = B gelu(A LN(x) + a) + b``, with twice as many hidden units as outputs."""

    embed_dim: int

    def setup(self):
        """The layers. Their names are parameter paths."""
        self.norm = nn.LayerNorm()
        self.hidden = nn.Dense(2 * self.embed_dim)
        self.project = nn.Dense(self.embed_dim)

    def __call__(
        self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None = None
    ) -> Float[Array, "batch dim"]:
        """The projection of each example's features; ``keys`` are not used."""
        return self.project(nn.gelu(self.hidden(self.norm(pooled))))


class IdentityHead(nn.Module):
    """The features themselves, ``y = x``.

    Raises:
      ValueError: they have another number of dimensions than ``embed_dim``; None: any number is right.
    """

    embed_dim: int | None = None

    def __call__(
        self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None = None
    ) -> Float[Array, "batch width"]:
        """The features; ``keys`` are not used."""
        width = pooled.shape[-1]
        if self.embed_dim not in (None, width):
            raise ValueError(
                f"the head 'identity' keeps the encoder's features, which have {width} dimensions: give "
                f"--model.embed-dim {width}, not {self.embed_dim}, or another head"
            )
        return pooled


class ShareLockHead(nn.Module):
    """An MLP for the features of a frozen encoder (ShareLock, Ruthardt et al. 2024, arXiv:2410.07173).

    ``x_k = dropout(relu(norm(W_k x_{k-1} + b_k)))`` for the layers before the last, and a last one that is linear.

    The norm of the paper is batch norm. Here it is layer norm, with which an example's embedding depends on no other
    example, and neither on the number of devices nor on the parts that a batch is computed in.
    """

    embed_dim: int
    depth: int = 4
    width: int = 512
    dropout: float = 0.2

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None = None
    ) -> Float[Array, "batch dim"]:
        """The projection of each example's features; ``keys`` (one per example) for dropout, None: no dropout."""
        x = pooled
        for k in range(self.depth - 1):
            x = nn.relu(nn.LayerNorm(name=f"norm_{k}")(nn.Dense(self.width, name=f"hidden_{k}")(x)))
            x = Dropout(self.dropout, name=f"dropout_{k}")(x, keys)
        return nn.Dense(self.embed_dim, name="project")(x)


class SAILHead(nn.Module):
    """A gated layer for the features of a frozen encoder (SAIL, Zhang et al. 2024, arXiv:2412.04616).

    ``y = W (relu6(A z + a) * (B z + b)) + w`` with ``z = LN(x)``, where ``*`` is the product of elements and ``A`` and
    ``B`` have ``widening`` times as many rows as ``x`` has dimensions.
    """

    embed_dim: int
    widening: int = 8

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "batch width"], keys: ExampleKeys | None = None
    ) -> Float[Array, "batch dim"]:
        """The projection of each example's features; ``keys`` are not used."""
        x, hidden = nn.LayerNorm(name="norm")(pooled), self.widening * pooled.shape[-1]
        gate, values = nn.Dense(hidden, name="gate")(x), nn.Dense(hidden, name="values")(x)
        return nn.Dense(self.embed_dim, name="project")(jnp.clip(gate, 0.0, 6.0) * values)


# Configurations


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Base of the projection heads that can be chosen by name."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""
    is_own: ClassVar[bool] = False
    """Whether the head is the projection of the pretrained encoder itself."""

    def __post_init__(self):
        """Checks that sizes are at least 1, and the range of dropout rates."""
        check_sizes(self)
        check_rates(self, *(name for name in ("dropout",) if hasattr(self, name)))

    def build(self, embed_dim: int) -> nn.Module:
        """The module, for a shared space of ``embed_dim`` dimensions."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LinearHeadConfig(HeadConfig):
    """Layer norm and a linear projection (CLIP)."""

    name: ClassVar[str] = "linear"

    def build(self, embed_dim: int) -> LinearHead:
        return LinearHead(embed_dim)


@dataclasses.dataclass(frozen=True)
class MLPHeadConfig(HeadConfig):
    """Layer norm and an MLP of one hidden layer."""

    name: ClassVar[str] = "mlp"

    def build(self, embed_dim: int) -> MLPHead:
        return MLPHead(embed_dim)


@dataclasses.dataclass(frozen=True)
class OwnHeadConfig(HeadConfig):
    """The projection of a pretrained encoder that was trained in a shared space (CLIP, SigLIP)."""

    name: ClassVar[str] = "own"
    is_own: ClassVar[bool] = True

    def build(self, embed_dim: int) -> IdentityHead:
        """No further layer: the encoder's outputs are projected already, to the checkpoint's number of dimensions."""
        return IdentityHead()


@dataclasses.dataclass(frozen=True)
class IdentityHeadConfig(HeadConfig):
    """The encoder's pooled features themselves, so that the other towers are trained into its space (ShareLock's head
    of images)."""

    name: ClassVar[str] = "identity"

    def build(self, embed_dim: int) -> IdentityHead:
        return IdentityHead(embed_dim)


@dataclasses.dataclass(frozen=True)
class ShareLockHeadConfig(HeadConfig):
    """A deep MLP with dropout, for the text features of a frozen encoder (ShareLock). The paper's temperature is fixed:
    ``--optimizer.freeze loss/log_scale``."""

    name: ClassVar[str] = "sharelock"

    depth: int = 4
    """Number of linear layers."""
    width: int = 512
    """Units of each hidden layer (4096 in the paper)."""
    dropout: float = 0.2
    """Dropout rate after each hidden layer."""

    def build(self, embed_dim: int) -> ShareLockHead:
        return ShareLockHead(embed_dim, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class SAILHeadConfig(HeadConfig):
    """A gated layer for the features of a frozen encoder (SAIL)."""

    name: ClassVar[str] = "sail"

    widening: int = 8
    """Units of the hidden layer, as a multiple of the encoder's dimensions."""

    def build(self, embed_dim: int) -> SAILHead:
        return SAILHead(embed_dim, **dataclasses.asdict(self))


AnyHead = (
    LinearHeadConfig
    | MLPHeadConfig
    | OwnHeadConfig
    | IdentityHeadConfig
    | ShareLockHeadConfig
    | SAILHeadConfig
)
"""The projection heads by name."""


def as_head(head: HeadConfig | str) -> HeadConfig:
    """A head as its configuration; a name stands for the head with its default options.

    Raises:
      ValueError: there is no head of this name.
    """
    return parts.choose(AnyHead, head)() if isinstance(head, str) else head


@dataclasses.dataclass(frozen=True)
class HeadsByKind:
    """Projection heads of the towers of single kinds of modalities; None: the one that all towers have."""

    text: AnyHead | None = None
    """Head of texts; None: that of --model.head."""
    image: AnyHead | None = None
    """Head of images; None: that of --model.head."""
    audio: AnyHead | None = None
    """Head of audio; None: that of --model.head."""
    video: AnyHead | None = None
    """Head of videos; None: that of --model.head."""
    vector: AnyHead | None = None
    """Head of vectors; None: that of --model.head."""
    series: AnyHead | None = None
    """Head of series; None: that of --model.head."""
