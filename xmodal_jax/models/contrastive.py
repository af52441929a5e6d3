"""A shared embedding space over any two or more modalities."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core import collectives
from xmodal_jax.core.parts import Advanced, Basic, check_choices
from xmodal_jax.core.random import batch_keys, fold_in_name
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import alignment, contrastive, modality_gap
from xmodal_jax.losses.contrastive import Implementation
from xmodal_jax.losses.gradient_cache import chunked
from xmodal_jax.losses.pairs import Ids
from xmodal_jax.models.towers import (
    AudioFeatures,
    Augmentation,
    Encoders,
    Tower,
    check_encoders,
    encoder_of,
    features_field,
    first_example,
    make_tower,
    preprocess_modality,
    presence_masks,
    tower_head,
)
from xmodal_jax.nets.encoders import (
    DEFAULTS,
    AudioEncoder,
    ImageEncoder,
    SeriesEncoder,
    TextEncoder,
    VectorEncoder,
    VideoEncoder,
)
from xmodal_jax.nets.heads import AnyHead, HeadConfig, HeadsByKind, LinearHeadConfig, as_head
from xmodal_jax.types import MODALITIES, Batch, EncoderSlot, ExampleKeys, Key, Method, Params, kind_of

CHANGED = "text_changed"
"""The field of a batch with K changed texts of each example, each with one fact changed: token ids ``[B, K, L]``."""
MAX_SCALE = 100.0
"""Largest inverse temperature (CLIP)."""


# Objectives


class Pairs(NamedTuple):
    """A batch of pairs from two modalities."""

    a: Float[Array, "batch dim"]
    """Unit vectors of one modality."""
    b: Float[Array, "batch dim"]
    """Unit vectors of the second modality of the pair."""
    present: Bool[Array, "batch"]
    """Which examples have both modalities."""
    match: Ids | None
    """Which examples have the same text or show the same picture (see `matching_ids`); None where the batch tells
    neither or the objective does not need it."""
    axis_name: str | None
    """Name of the axis of devices that the batch is split over; None: one device."""

    def mean_share(self, terms: Float[Array, "batch"]) -> Float[Array, ""]:
        """This device's share of the mean of ``terms`` over the global batch's examples that have both modalities.

        The sum of the shares over devices is the mean.
        """
        return collectives.batch_mean(terms, self.present.astype(jnp.float32), axis_name=self.axis_name)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss between the embeddings of two modalities. Its subclasses are the parts that can be chosen by name."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""
    duplicates: ClassVar[str] = "ignore"
    """How pairs of different examples with identical text or of the same picture count: ignore, exclude or positive."""

    def __post_init__(self):
        check_choices(self)

    @property
    def initial_scale(self) -> float:
        """Initial inverse temperature; a parameter that objectives without a temperature do not use."""
        return 1.0 / InfoNCE.temperature

    def initial_params(self) -> Params:
        """The objective's own parameters."""
        return {"log_scale": jnp.float32(math.log(self.initial_scale))}

    def __call__(self, pairs: Pairs, params: Params, scale: Float[Array, ""]) -> Float[Array, ""]:
        """This device's share of the loss; ``scale``: the inverse temperature."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class InfoNCE(Objective):
    """Softmax cross-entropy of each example among all of the batch, in both directions (CLIP)."""

    name: ClassVar[str] = "info_nce"

    temperature: float = 0.07
    """Initial temperature that similarities are divided by. It is learned, and never falls below 0.01."""
    duplicates: Literal["ignore", "exclude", "positive"] = "positive"
    """Pairs of different examples with identical text or of the same picture: negatives like all others (ignore), left
    out of the loss (exclude), or additional positives (positive)."""
    implementation: Implementation = "auto"
    """How the loss over all pairs of a batch is computed, with the same result: from the whole matrix of logits
    (global), from one tile of the matrix at a time (tiled), from tiles that pass from device to device (ring, for
    --parallel pmap), or global or tiled by the size of the batch (auto)."""

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 1 / MAX_SCALE:
            raise ValueError(f"temperature must be above {1 / MAX_SCALE}, got {self.temperature}")

    @property
    def initial_scale(self) -> float:
        return 1.0 / self.temperature

    def __call__(self, pairs, params, scale):
        """This device's share of the InfoNCE loss of the ``pairs``' embeddings; ``scale`` is the inverse temperature.
        ``params`` (of the objective) are not needed here."""
        losses = contrastive.info_nce(
            pairs.a, pairs.b, temperature=1.0 / scale, present=pairs.present, match=pairs.match,
            duplicates=self.duplicates, axis_name=pairs.axis_name, implementation=self.implementation,
        )  # fmt: skip
        return pairs.mean_share(losses)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Objective):
    """Binary cross-entropy of all pairs of a batch (SigLIP). The temperature starts at 0.1, the bias at -10; both are
    learned."""

    name: ClassVar[str] = "sigmoid"

    duplicates: Literal["ignore", "exclude", "positive"] = "positive"
    """Pairs of different examples with identical text or of the same picture: negatives like all others (ignore), left
    out of the loss (exclude), or additional positives (positive)."""
    implementation: Implementation = "auto"
    """How the loss over all pairs of a batch is computed, with the same result: from the whole matrix of logits
    (global), from one tile of the matrix at a time (tiled), from tiles that pass from device to device (ring, for
    --parallel pmap), or global or tiled by the size of the batch (auto)."""

    @property
    def initial_scale(self) -> float:
        return 10.0

    def initial_params(self) -> Params:
        return {**super().initial_params(), "bias": jnp.float32(-10.0)}

    def __call__(self, pairs, params, scale):
        """This device's share of the sigmoid loss of the ``pairs``' embeddings; ``scale`` is the inverse temperature,
        ``params["bias"]`` is added to all logits."""
        losses = contrastive.sigmoid_loss(
            pairs.a, pairs.b, temperature=1.0 / scale, bias=params["bias"], implementation=self.implementation,
            present=pairs.present, match=pairs.match, duplicates=self.duplicates, axis_name=pairs.axis_name,
        )  # fmt: skip
        return pairs.mean_share(losses)


@dataclasses.dataclass(frozen=True)
class Triplet(Objective):
    """Hinge on the similarity of the pair and that of the hardest negative (VSE++)."""

    name: ClassVar[str] = "triplet"

    margin: float = 0.2
    """Margin: the loss is 0 where the similarity of the pair exceeds that of the hardest negative by this much."""
    duplicates: Literal["ignore", "exclude"] = "exclude"
    """Pairs of different examples with identical text or of the same picture: negatives like all others (ignore), or
    left out of the loss (exclude)."""

    def __call__(self, pairs, params, scale):
        """This device's share of the triplet loss of the ``pairs``' embeddings. It uses neither ``params`` nor
        ``scale`` (the inverse temperature)."""
        losses = contrastive.triplet_loss(
            pairs.a, pairs.b, margin=self.margin, present=pairs.present, match=pairs.match,
            duplicates=self.duplicates, axis_name=pairs.axis_name,
        )  # fmt: skip
        return pairs.mean_share(losses)


@dataclasses.dataclass(frozen=True)
class MMD(Objective):
    """Maximum mean discrepancy between the distributions of the two modalities' embeddings."""

    name: ClassVar[str] = "mmd"

    def __call__(self, pairs, params, scale):
        return alignment.mmd(pairs.a, pairs.b, present=pairs.present, axis_name=pairs.axis_name)


@dataclasses.dataclass(frozen=True)
class CORAL(Objective):
    """Squared difference of the covariances of the two modalities' embeddings (deep CORAL)."""

    name: ClassVar[str] = "coral"

    def __call__(self, pairs, params, scale):
        return alignment.coral(pairs.a, pairs.b, present=pairs.present, axis_name=pairs.axis_name)


@dataclasses.dataclass(frozen=True)
class CCA(Objective):
    """Negative sum of the canonical correlations of the two modalities' embeddings (deep CCA)."""

    name: ClassVar[str] = "cca"

    def __call__(self, pairs, params, scale):
        return alignment.deep_cca(pairs.a, pairs.b, present=pairs.present, axis_name=pairs.axis_name)


AnyObjective = InfoNCE | Sigmoid | Triplet | MMD | CORAL | CCA
"""The objectives by name."""
Alignment = MMD | CORAL | CCA
"""The objectives that compare distributions, by name."""


# Losses that reduce the modality gap


@dataclasses.dataclass(frozen=True)
class PairDistance:
    """Squared distance of the two embeddings of a pair, which closes the modality gap."""

    name: ClassVar[str] = "pair_distance"
    """Name by which the command line chooses the part."""

    weight: float = 1.0
    """Weight of the mean squared distance of the embeddings of a pair."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ValueError(
                    f"{type(self).__name__}.{field.name} must be 0 or more, got {getattr(self, field.name)}"
                )

    def __call__(self, pairs: Pairs) -> Float[Array, ""]:
        """This device's share of the loss, times its weight."""
        distances = modality_gap.pair_distance(pairs.a, pairs.b, present=pairs.present)
        return self.weight * pairs.mean_share(distances)


@dataclasses.dataclass(frozen=True)
class UniformCentroids(PairDistance):
    """The distance of pairs, and the uniformity of their centroids on the sphere, which keeps pairs apart from each
    other."""

    name: ClassVar[str] = "uniform_centroids"

    uniformity_weight: float = 1.0
    """Weight of the uniformity of the centroids."""
    scale: float = 2.0
    """Inverse width of the Gaussian potential by which centroids repel each other."""

    def __call__(self, pairs: Pairs) -> Float[Array, ""]:
        """This device's share of both losses, times their weights."""
        uniformity = modality_gap.centroid_uniformity(
            pairs.a, pairs.b, scale=self.scale, present=pairs.present, axis_name=pairs.axis_name
        )
        return super().__call__(pairs) + self.uniformity_weight * uniformity


GapLoss = PairDistance | UniformCentroids
"""The losses that reduce the modality gap, by name."""


# Method


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Towers, projections and objective."""

    embed_dim: Basic[int] = 128
    """Dimensions of the shared embedding space."""
    head: Advanced[AnyHead] = LinearHeadConfig()
    """Projection of each tower's pooled features into the shared space: linear, an MLP, or one for frozen encoders
    (identity, sharelock, sail). "own" keeps the projection of pretrained encoders that were trained together (CLIP,
    SigLIP), with their dimensions and temperature."""
    heads: HeadsByKind = HeadsByKind()
    """Heads of the towers of single kinds, in place of model.head."""
    objective: AnyObjective = InfoNCE()
    """Objective of each pair of modalities: InfoNCE (CLIP), sigmoid (SigLIP), triplets with the hardest negative
    (VSE++), or the alignment of two distributions (mmd, coral, cca)."""
    alignment: Alignment | None = None
    """An additional loss that aligns the distributions of the two modalities' embeddings; None: no such loss."""
    alignment_weight: float = 0.1
    """Weight of the additional loss that model.alignment chooses; unused if that is none."""
    gap_loss: GapLoss | None = None
    """An additional loss that reduces the modality gap. It is the distance of pairs (pair_distance), or this and the
    uniformity of the pairs' centroids (uniform_centroids). None: no such loss."""
    changed_text_weight: float = 1.0
    """Weight of an additional loss with one hard negative per example: its own text with one fact changed. Only the
    embedded data set has such texts (--negatives.changed-captions)."""
    anchor: str | None = None
    """Modality that is in every aligned pair, so that the other modalities are aligned only through it; None: all pairs
    of modalities are aligned."""
    text: TextEncoder = DEFAULTS["text"]
    """Text encoder."""
    image: ImageEncoder = DEFAULTS["image"]
    """Image encoder."""
    audio: AudioEncoder = DEFAULTS["audio"]
    """Audio encoder."""
    video: VideoEncoder = DEFAULTS["video"]
    """Video encoder: a transformer over blocks of frames and pixels (tubelet), a convolutional network on each frame
    and a transformer over the frames (frames), or a convolutional network that gets all frames at once, as its input
    channels (stacked)."""
    vector: Advanced[VectorEncoder] = DEFAULTS["vector"]
    """Encoder of vectors of measured quantities: dense layers (mlp), or a transformer whose tokens are the features
    (transformer)."""
    series: Advanced[SeriesEncoder] = DEFAULTS["series"]
    """Encoder of series of measured quantities."""
    features: AudioFeatures = AudioFeatures()
    """Input of the audio encoder: spectrogram or waveform."""
    augment: Augmentation = Augmentation()
    """Random changes of the inputs, in training only."""

    def __post_init__(self):
        object.__setattr__(self, "head", as_head(self.head))  # a name: the head with its default options
        if self.anchor is not None and self.anchor.partition("_")[0] not in MODALITIES:
            raise ValueError(f"anchor must be a modality ({', '.join(MODALITIES)}), got {self.anchor!r}")

    def head_of(self, modality: str) -> HeadConfig:
        """The projection head of a modality's tower."""
        head = getattr(self.heads, kind_of(modality), None)  # kinds of the user's own have the common head
        return self.head if head is None else as_head(head)

    def pairs(self, modalities: tuple[str, ...]) -> list[tuple[str, str]]:
        """The pairs of modalities that are aligned: all pairs, or only those with the ``anchor`` if there is one.

        Raises:
          ValueError: there is no such pair.
        """
        pairs = [
            pair
            for pair in itertools.combinations(modalities, 2)
            if self.anchor is None or self.anchor in pair
        ]
        if not pairs:
            names = ", ".join(modalities)
            if len(modalities) > 1:
                raise ValueError(
                    f"anchor (--model.anchor) must be one of the modalities {names}, got {self.anchor}"
                )
            raise ValueError(
                f"two modalities or more are aligned, got {names or 'none'}: name them by --modalities, such as "
                "--modalities text image"
            )
        return pairs


def make_contrastive(
    config: ContrastiveConfig,
    modalities: tuple[str, ...],
    *,
    vocab_size: int,
    encoders: Encoders | None = None,
) -> Method:
    """Contrastive learning of a shared space over ``modalities``.

    ``predict(params, batch)`` gives the normalised embedding ``[B, embed_dim]`` of each modality in the batch. The loss
    is the mean over pairs of modalities of the pair's objective, each over the global batch's examples that hold both;
    a pair that none of them holds does not count. aux: ``scale`` (inverse temperature) and ``<a>_<b>``, the objective
    of each pair. Precomputed features of a tower in the batch (`models.towers.features_field`) replace its encoder,
    augmentation and dropout.

    ::

        method = make_contrastive(ContrastiveConfig(objective=Triplet()), ("image", "text"), vocab_size=1000)
        params = method.init(key, batch)
        loss, aux = method.loss(params, batch, key)

    Args:
      config: towers and objective; modalities of one kind have towers of the same configuration.
      modalities: at least two names.
      vocab_size: tokens of the tokenizer.
      encoders: encoders of your own by the name of a modality or of a kind, such as ``{"vector": MyModule()}`` (see
        `models.towers.Encoders`); the others are those of ``config``.

    Raises:
      ValueError: there is no pair to align, or ``encoders`` name no modality.
    """
    check_encoders(encoders, modalities)
    network = _Network(config, modalities, vocab_size, config.pairs(modalities), encoders)
    heads = {m: tower_head(encoder_of(config, m, encoders), config.head_of(m)) for m in modalities}
    slots = tuple(
        EncoderSlot(name=kind_of(m), path=f"{m}/encoder", fields=(m,), head=head) for m, head in heads.items()
    )
    return Method(network.init, network.loss, network.embed, encoders=slots, needs_whole_batch=True)


@dataclasses.dataclass(frozen=True, eq=False)
class _Network:
    """The functions ``init``, ``embed`` and ``loss`` of the method, for one configuration."""

    config: ContrastiveConfig
    modalities: tuple[str, ...]
    vocab_size: int
    pairs: list[tuple[str, str]]
    """The pairs of modalities that the loss aligns."""
    encoders: Encoders | None = None
    """Encoders of the user's own, by the name of a modality or of a kind; None: there are none."""

    def towers(self, batch: Batch) -> dict[str, Tower]:
        """The tower (encoder, pool and projection) of each modality that is in the batch."""
        sizes = dict(vocab_size=self.vocab_size, embed_dim=self.config.embed_dim)
        return {
            m: make_tower(
                m, encoder_of(self.config, m, self.encoders), batch, head=self.config.head_of(m), **sizes
            )
            for m in self.modalities
            if m in batch
        }

    def init(self, key: Key, batch: Batch) -> Params:
        """Initial parameters: of each modality's tower under its name, and of the objective under "loss"."""
        example = first_example(batch)  # a batch of one: parameters depend on shapes only
        params = {}
        for name, tower in self.towers(batch).items():
            inputs, mask = preprocess_modality(name, example, self.config.features)
            params[name] = tower.init(fold_in_name(key, name), inputs, mask)["params"]
        return {**params, "loss": self.config.objective.initial_params()}

    def embed(
        self, params: Params, batch: Batch, keys: ExampleKeys | None = None, *, fixed: bool = False
    ) -> dict[str, Array]:
        """The unit vectors ``[B, embed_dim]`` of each modality in a batch.

        ``keys`` draw augmentation and dropout in training; None in evaluation. ``fixed``: inputs are not augmented and
        encoders have no dropout in training either, as where their output is precomputed.
        """
        encoder_keys = None if fixed else keys
        embeddings, config = {}, self.config
        for name, tower in self.towers(batch).items():
            variables = {"params": params[name]}
            # By modality: with equal dropout in two heads, an example would be known by what is dropped.
            head_keys = None if keys is None else fold_in_name(keys, f"head/{name}")
            if features_field(name) in batch:
                # The batch holds the pooled output of a frozen encoder: only the projection is left to compute.
                x = tower.apply(variables, batch[features_field(name)], head_keys, method="project_pooled")
            else:
                inputs, mask = preprocess_modality(name, batch, config.features, config.augment, encoder_keys)
                x = tower.apply(variables, inputs, mask, keys=encoder_keys, head_keys=head_keys)
            embeddings[name] = l2_normalize(x)
        return embeddings

    def embed_with_changed(self, params: Params, batch: Batch, keys: ExampleKeys) -> dict[str, Array]:
        """The unit vectors of `embed`; and, as ``text_changed``, those of one of each example's changed texts, which
        ``keys`` draw, if the batch has the field ``text_changed`` ``[B, K, L]``."""
        embeddings = self.embed(params, batch, keys)
        if CHANGED in batch:
            texts, mask = batch[CHANGED], batch[f"{CHANGED}_mask"]
            draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, texts.shape[1]))
            chosen = draw(fold_in_name(keys, CHANGED))[:, None, None]
            pick = lambda x: jnp.take_along_axis(x, chosen, axis=1)[:, 0]
            changed = {"text": pick(texts), "text_mask": pick(mask), "index": batch["index"]}
            # Encoded as the texts are: dropout in one of the two alone would tell them apart.
            fixed = features_field("text") in batch
            tower_keys = fold_in_name(keys, f"{CHANGED}_tower")
            embeddings[CHANGED] = self.embed(params, changed, tower_keys, fixed=fixed)["text"]
            # A text that was not changed is no negative.
            same = jnp.all(changed["text"] == batch["text"], axis=1)
            embeddings[CHANGED] = jnp.where(same[:, None], embeddings["text"], embeddings[CHANGED])
        return embeddings

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: str | None = None, chunks: int = 1):
        """``(loss, aux)``: the mean loss over the pairs of modalities, as this device's share of the mean over the
        global batch.

        The loss of a pair is the objective, plus ``alignment_weight`` times the alignment loss if there is one, plus
        the loss that reduces the modality gap if there is one, plus ``changed_text_weight`` times the loss with changed
        texts for pairs with text, if the batch has changed texts.

        The batch is encoded in ``chunks`` parts, one after the other (`losses.gradient_cache`); the objective sees all
        of it.

        aux: each pair's loss, and ``scale``, the inverse temperature divided by the number of devices (the devices' aux
        are summed).
        """
        config = self.config
        key = fold_in_name(key, "contrastive")
        inputs = (batch, batch_keys(key, batch))  # one random key for each example
        embed = lambda params, inputs: self.embed_with_changed(params, *inputs)
        embeddings = (embed if chunks == 1 else chunked(embed, chunks))(params, inputs)
        present = presence_masks(batch, self.modalities)
        # Examples with equal texts, or of the same picture, are no negatives of each other: they get equal ids.
        match = None
        if config.objective.duplicates != "ignore":
            texts = (
                text_ids(batch["text"], present["text"], batch.get("text_mask")) if "text" in batch else None
            )
            match = matching_ids(texts, batch)
        scale = jnp.minimum(jnp.exp(params["loss"]["log_scale"]), MAX_SCALE)
        pair_losses = {}
        for a, b in self.pairs:
            pairs = Pairs(embeddings[a], embeddings[b], present[a] & present[b], match, axis_name)
            loss = config.objective(pairs, params["loss"], scale)
            if config.alignment is not None:
                loss = loss + config.alignment_weight * config.alignment(pairs, params["loss"], scale)
            if config.gap_loss is not None:
                loss = loss + config.gap_loss(pairs)
            if CHANGED in embeddings and "text" in (a, b):
                other = pairs.b if a == "text" else pairs.a
                terms = contrastive.changed_text_loss(
                    other, embeddings["text"], embeddings[CHANGED], temperature=1.0 / scale
                )
                loss = loss + config.changed_text_weight * pairs.mean_share(terms)
            pair_losses[f"{a}_{b}"] = loss
        total = sum(pair_losses.values()) / len(pair_losses)
        if "present" in batch:
            # Pairs of modalities that no example of the global batch has both of do not count.
            total = total * (len(pair_losses) / _count_pairs(present, self.pairs, axis_name))
        scale_share = collectives.share(jax.lax.stop_gradient(scale), axis_name=axis_name)
        return total, {**pair_losses, "scale": scale_share}


def _count_pairs(
    present: dict[str, Bool[Array, "batch"]], pairs: list[tuple[str, str]], axis_name: str | None
) -> Float[Array, ""]:
    """The number of ``pairs`` of modalities that some example of the global batch has both of; 1 if there is none."""
    examples = jnp.stack([jnp.sum(present[a] & present[b], dtype=jnp.float32) for a, b in pairs])
    occurs = collectives.psum(examples, axis_name) > 0
    return jnp.maximum(jnp.sum(occurs, dtype=jnp.float32), 1.0)


def matching_ids(ids: Int[Array, "batch"] | None, batch: Batch) -> Ids | None:
    """The ids by which the examples of a batch match each other in a contrastive loss (its argument ``match``).

    These are ``ids``, such as those of the texts (None: there are none), and those of the pictures where the batch has
    the field ``group``: examples match whose text is equal or that show the same picture.

    Returns:
      Ids ``[B]`` or, of two kinds, ``[B, 2]``: two examples match if one of their ids is equal. -1 matches nothing.
      None: nothing matches.
    """
    if "group" not in batch:
        return ids
    groups = jnp.asarray(batch["group"], jnp.int32)
    return groups if ids is None else jnp.stack([ids, groups], axis=1)


def text_ids(
    tokens: Int[Array, "batch length"],
    present: Bool[Array, "batch"] | None = None,
    mask: Bool[Array, "batch length"] | None = None,
) -> Int[Array, "batch"]:
    """A 32-bit hash of each token sequence: equal sequences have equal hashes, different ones collide with a
    probability of about 2^-32.

    It is -1, the id that matches nothing, where the text is not ``present``; None: all texts are. ``mask``: False on
    padding, which tells it from a token with id 0; None: there is no such token.
    """
    tokens = tokens.astype(jnp.uint32)
    multiplier = jnp.uint32(0x9E3779B1)  # 2^32 / golden ratio (Knuth's multiplicative hash)
    digest = jnp.zeros(tokens.shape[0], jnp.uint32)
    for position in range(tokens.shape[1]):
        # Token 0 counts as 1, so that it changes the hash; padding under ``mask`` as 0. The shift mixes high bits into
        # low ones.
        value = tokens[:, position] + jnp.uint32(1)
        if mask is not None:
            value = jnp.where(mask[:, position], value, jnp.uint32(0))
        digest = (digest ^ value) * multiplier
        digest = digest ^ (digest >> 15)
    ids = digest.astype(jnp.int32)
    return ids if present is None else jnp.where(present, ids, -1)
