"""The networks of the conditional GAN, and how their parameters are named."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.towers import make_encoder
from xmodal_jax.nets.encoders import build_decoder, build_encoder, build_pool
from xmodal_jax.nets.gan import (
    Compared,
    ConditioningAugmentation,
    Contrast,
    Critic,
    Posterior,
    TextReader,
    build_generator,
)
from xmodal_jax.nets.objects import Contents, ObjectPosterior
from xmodal_jax.types import Batch, Condition, ExampleKeys, Key, Params, Tokens

MMD_OUTPUTS = 16
"""What an MMD critic has in place of one logit (Bińkowski et al. 2018, sec. 5)."""


class FrozenCaptioner(NamedTuple):
    """A trained captioner of images, whose parameters stay as they are."""

    encode: Callable[..., jax.Array]
    """``encode(params, pixels) -> [B, N, D]``, from `models.seq2seq.make_captioner`."""
    cross_entropy: Callable[..., jax.Array]
    """``cross_entropy(params, tokens, ids, mask) -> [B]``, from the same."""
    attention: Callable[..., jax.Array]
    """``attention(params, tokens, ids) -> [B, length, N]``, from the same."""
    params: Params


class Watcher(NamedTuple):
    """An image encoder that was trained before and stays as it is."""

    encode: Callable[..., jax.Array]
    """``encode(params, pixels) -> [B, N, D]``."""
    params: Params


class View(NamedTuple):
    """What a player is shown of an image."""

    image: Float[Array, "batch height width channels"]
    seen: Float[Array, "batch length dim"] | None = None
    """What a captioner or a `Watcher` sees in it."""
    attended: Float[Array, "batch words length"] | None = None
    """Where among that it sees each word of the caption."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Both players' parts. The generator's parameters: ``net``, ``augmentation``, ``posterior`` and what knows the
    condition; the discriminator's: ``trunk``, ``sight``, ``critic``, ``reader``, ``contrast`` and what knows the
    condition, that is ``text`` or ``classes``, or nothing where ``fixed_text`` says that the text encoder lies in the
    variables."""

    config: GANConfig
    shape: tuple[int, int, int]
    fixed_text: bool
    vocab_size: int
    length: int
    classes: int
    seen: tuple[int, ...] = ()
    """Number and width of the tokens of a captioner or a `Watcher` that the discriminator sees."""
    attends: bool = False
    """Whether these are told from each other by the caption's words."""
    axis_name: str | None = None

    @functools.cached_property
    def generator(self) -> nn.Module:
        return build_generator(self.config.generator, self.shape, self.axis_name)

    @property
    def augmentation(self) -> ConditioningAugmentation:
        return ConditioningAugmentation(self.config.generator.conditioning)

    @functools.cached_property
    def posterior(self) -> nn.Module:
        kind = ObjectPosterior if self.config.generator.name == "objects" else Posterior
        return kind(build_encoder("image", self.config.encoder), self.config.generator.noise)

    @functools.cached_property
    def trunk(self) -> nn.Module:
        return build_encoder("image", self.config.discriminator)

    @property
    def sight(self) -> nn.Module:
        return nn.Dense(self.config.discriminator.width)

    @property
    def critic(self) -> Critic:
        kind = "none" if self.config.condition == "none" else self.config.head
        return Critic(kind, MMD_OUTPUTS if self.config.mmd else 1)

    @functools.cached_property
    def reader(self) -> nn.Module:
        """Of the condition off an image's tokens."""
        if self.config.condition == "class":
            return nn.Dense(self.classes)
        return build_decoder(self.config.decoder, vocab_size=self.vocab_size, max_length=self.length)

    @property
    def contrast(self) -> Contrast:
        return Contrast(whole=self.config.compares, parts=self.config.word_weight > 0)

    @functools.cached_property
    def text(self) -> TextReader:
        config, example = self.config.text, {"text": jax.ShapeDtypeStruct((1, self.length), jnp.int32)}
        own = config.pool == "own"
        far = "pool" if own else "none"
        encoder = make_encoder("text", config, example, vocab_size=self.vocab_size, far=far)
        return TextReader(encoder, None if own else build_pool(config))

    # -- parameters -----------------------------------------------------------------------------------

    def init(self, key: Key) -> tuple[dict[str, Params], dict[str, Any]]:
        """Parameters of both players, and the generator's statistics."""
        own = lambda name: fold_in_name(key, name)
        generator, discriminator = (
            self._init_condition(own("generator")),
            self._init_condition(own("discriminator")),
        )
        condition, width = self._blank()
        if self.config.generator.conditioning and width:
            drawn, made = self.augmentation.init_with_output(own("augmentation"), condition.vector, None)
            generator["augmentation"], shown = made["params"], condition._replace(vector=drawn[0])
        else:
            shown = condition
        noise = jnp.zeros((1, self.config.generator.noise))
        made = self.generator.init(own("net"), noise, shown)
        generator["net"] = made["params"]
        image = jnp.zeros((1, *self.shape))
        if self.config.reconstruction_weight:
            view = View(image)
            if self.seen:
                nowhere = jnp.full((1, self.length, self.seen[0]), 1.0 / self.seen[0])
                view = View(image, jnp.zeros((1, *self.seen)), nowhere if self.attends else None)
            given = self._clues(view, self._composed(generator, shown, 1))
            generator["posterior"] = self.posterior.init(own("posterior"), *given)["params"]
        tokens, found = self.trunk.init_with_output(own("trunk"), image)
        discriminator["trunk"] = found["params"]
        if self.seen:
            seen = jnp.zeros((1, *self.seen))
            discriminator["sight"] = self.sight.init(own("sight"), seen)["params"]
            tokens = tokens._replace(
                values=jnp.zeros((1, tokens.values.shape[1] + self.seen[0], tokens.values.shape[2]))
            )
        critic = self.critic.init(own("critic"), tokens.values, condition.vector)
        discriminator["critic"] = critic["params"]
        if width and self.config.auxiliary_weight:
            ids = jnp.ones((1, self.length), jnp.int32)
            given = (tokens.values.mean(axis=1),) if self.config.condition == "class" else (ids, tokens)
            discriminator["reader"] = self.reader.init(own("reader"), *given)["params"]
        if self.config.compares or self.config.word_weight or self.config.image_weight:
            discriminator["contrast"] = self.contrast.init(own("contrast"), tokens.values, condition)[
                "params"
            ]
        statistics = {"generator": made.get("batch_stats", {})}
        return {"generator": generator, "discriminator": discriminator}, statistics

    def _blank(self) -> tuple[Condition, int]:
        """A condition of zeros, and its width (0: none)."""
        if self.config.condition == "none":
            return Condition(), 0
        width = self.config.classes if self.config.condition == "class" else self.config.text.width
        words = Tokens(jnp.zeros((1, self.length, width)), jnp.ones((1, self.length), bool))
        return Condition(jnp.zeros((1, width)), words if self.config.reads else None), width

    def _init_condition(self, key: Key) -> dict[str, Params]:
        if self.config.condition == "class":
            # One more for what has no label.
            drawn = jax.random.normal(fold_in_name(key, "classes"), (self.classes + 1, self.config.classes))
            return {"classes": {"embedding": drawn}}
        if self.config.reads and not self.fixed_text:
            ids = jnp.ones((1, self.length), jnp.int32)
            return {"text": self.text.init(fold_in_name(key, "text"), ids, ids > 0)["params"]}
        return {}

    # -- what the parts do ----------------------------------------------------------------------------

    def condition(self, player: Params, variables, batch: Batch, keys: ExampleKeys | None) -> Condition:
        """What the batch asks for, as a player understands it."""
        if self.config.condition == "none":
            return Condition()
        if self.config.condition == "class":
            return Condition(player["classes"]["embedding"][batch["label"]])  # -1 is the last
        params = player["text"] if "text" in player else variables["text"]
        mask = batch.get("text_mask", batch["text"] != 0)
        return Condition(*self.text.apply({"params": params}, batch["text"], mask, keys=keys))

    def asked(self, player: Params, variables, batch: Batch, keys: ExampleKeys | None):
        """The condition as the generator is given it (where that composes objects, their `Contents`), and what that
        costs: ``{"kl"}`` of conditioning augmentation."""
        condition = self.condition(player, variables, batch, keys)
        if self.config.condition == "sentence":
            condition = condition._replace(words=None)
        count = len(jax.tree.leaves(batch)[0])
        if "augmentation" not in player:
            return self._composed(player, condition, count), {}
        extra = None
        if keys is not None:
            size = (self.config.generator.conditioning,)
            extra = jax.vmap(lambda k: jax.random.normal(k, size))(fold_in_name(keys, "conditioning"))
        vector, kl = self.augmentation.apply({"params": player["augmentation"]}, condition.vector, extra)
        return self._composed(player, condition._replace(vector=vector), count), {"kl": kl}

    def _composed(self, player: Params, condition: Condition, count: int) -> Condition | Contents:
        if self.config.generator.name != "objects":
            return condition
        return self.generator.apply({"params": player["net"]}, condition, count, method="contents")

    def draw(
        self, player: Params, variables, condition: Condition | Contents, noise, keys: ExampleKeys | None
    ):
        """Images of what is `asked`, and the new statistics."""
        everything = {"params": player["net"], "batch_stats": variables["generator"]}
        if keys is None or not variables["generator"]:
            image, statistics = (
                self.generator.apply(everything, noise, condition, keys=keys),
                variables["generator"],
            )
        else:
            image, changed = self.generator.apply(
                everything, noise, condition, keys=keys, mutable=["batch_stats"]
            )
            statistics = changed["batch_stats"]
        return image, statistics

    def infer(self, player: Params, condition: Condition | Contents, view: View, noise, keys: ExampleKeys):
        """The noise that would make the images, drawn with ``noise``, and its KL to N(0, I) in nats ``[B]``.
        ``condition``: what was `asked`."""
        given = self._clues(view, condition)
        mean, log_variance = self.posterior.apply({"params": player["posterior"]}, *given, keys=keys)
        if isinstance(condition, Contents):
            found = mean + jnp.exp(0.5 * log_variance) * noise
            expected = functools.partial(self.generator.apply, {"params": player["net"]}, method="expected")
            center, log_scale = expected(condition, found)
            mean, log_variance = (mean - center) * jnp.exp(-log_scale), log_variance - 2.0 * log_scale
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).sum(axis=-1)
        return mean + jnp.exp(0.5 * log_variance) * noise, kl

    def _clues(self, view: View, condition: Condition | Contents) -> tuple[Any, ...]:
        """What the posterior is given: the image, and where that is composed of objects what is looked for in it."""
        if not isinstance(condition, Contents):
            return (view.image,)
        seen = None if view.seen is None else _scaled(view.seen)
        return view.image, condition, seen, view.attended

    def look(self, player: Params, view: View, keys: ExampleKeys | None) -> Float[Array, "batch length dim"]:
        """An image's tokens, and after them what else is seen in it."""
        tokens = self.trunk.apply({"params": player["trunk"]}, view.image, keys=keys).values
        if view.seen is None:
            return tokens
        seen = self.sight.apply({"params": player["sight"]}, _scaled(view.seen))
        return jnp.concatenate([tokens, seen], axis=1)

    def judge(self, player: Params, tokens, vector) -> Float[Array, "batch outputs"]:
        """How real an image is."""
        return self.critic.apply({"params": player["critic"]}, tokens, vector)

    def read(self, player: Params, tokens, batch: Batch) -> Array:
        """Logits of the class, or of every next token of the caption."""
        if self.config.condition == "class":
            return self.reader.apply({"params": player["reader"]}, tokens.mean(axis=1))
        ids = batch["text"][:, :-1]
        return self.reader.apply({"params": player["reader"]}, ids, Tokens(tokens, None))

    def compare(self, player: Params, tokens, condition: Condition) -> Compared:
        """Image and condition in one space."""
        return self.contrast.apply({"params": player["contrast"]}, tokens, condition)


def _scaled(seen):
    """Tokens of root mean square 1."""
    return seen / jnp.sqrt(jnp.square(seen).mean(axis=-1, keepdims=True) + 1e-6)


def blended(a: Condition | Contents, b: Condition | Contents, share: Float[Array, "batch"]) -> Any:
    """Every number of a condition, ``share`` of the way from ``a``'s to ``b``'s; words are there that either has."""
    mix = lambda x, y: x + share.reshape(-1, *[1] * (x.ndim - 1)) * (y - x)
    return jax.tree.map(lambda x, y: x | y if x.dtype == bool else mix(x, y), a, b)
