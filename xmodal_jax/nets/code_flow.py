"""The velocity of a flow over the codes of several modalities, each with a time of its own."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.dit import DiTBlock, DiTOutput, TimeEmbedding

Shapes = tuple[tuple[str, tuple[int, int]], ...]
"""The shape (tokens, dims) of each modality's code, by name of the modality."""


class CodeVelocity(nn.Module):
    """A diffusion transformer over the tokens of all codes; what modulates a token (adaLN) is the time of its
    modality, so that one forward pass may hold noise, data and anything in between.

    The velocities are exactly 0 at the start of training.
    """

    shapes: Shapes
    width: int = 256
    depth: int = 4
    heads: int = 4

    @nn.compact
    def __call__(
        self, codes: dict[str, Float[Array, "batch tokens dims"]], times: Float[Array, "m batch"]
    ) -> dict[str, Float[Array, "batch tokens dims"]]:
        """The velocity of each code; ``times``: of each modality, in the order of ``shapes``."""
        # As large as what they are added to: with small embeddings all tokens have nearly equal inputs at first.
        embedding = nn.initializers.normal(0.5)
        embedded_times = TimeEmbedding(self.width, name="time")(times)  # [M, B, width]
        x, c = [], []
        for k, (name, (tokens, _)) in enumerate(self.shapes):
            position = self.param(f"position_{name}", embedding, (tokens, self.width))
            x.append(nn.Dense(self.width, name=f"in_{name}")(codes[name]) + position[None])
            modality = self.param(f"modality_{name}", embedding, (self.width,))
            c.append(embedded_times[k] + modality[None])  # the same for all tokens of a modality: [B, width]
        x = shard_examples(jnp.concatenate(x, axis=1))
        counts, together = tuple(tokens for _, (tokens, _) in self.shapes), jnp.stack(c, axis=1)
        for layer in range(self.depth):
            x = DiTBlock(self.heads, name=f"layers_{layer}")(x, together, counts=counts)
        velocities, start = {}, 0
        for k, (name, (tokens, dims)) in enumerate(self.shapes):
            part = slice(start, start + tokens)
            velocities[name] = DiTOutput(dims, name=f"out_{name}")(x[:, part], c[k])
            start += tokens
        return velocities
