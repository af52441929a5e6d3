"""Flows of images or vectors as a method: training, generation, likelihood and editing."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.collectives import AxisName
from xmodal_jax.core.examples import per_example, select_examples
from xmodal_jax.core.random import batch_index, batch_keys, example_keys, fold_in_name, normal_like
from xmodal_jax.losses import flow as losses
from xmodal_jax.models.conditions import ConditionEncoder, DataSizes, interpolate_conditions
from xmodal_jax.models.flow.conditions import (
    encode_condition,
    has_condition,
    init_condition,
    null_condition,
)
from xmodal_jax.models.flow.config import FlowConfig, check_guidance
from xmodal_jax.models.flow.samplers import Sampler, start_times
from xmodal_jax.models.towers import presence_masks
from xmodal_jax.preprocess.image import to_float
from xmodal_jax.probability import ode
from xmodal_jax.probability.transport import optimal_assignment, squared_distances
from xmodal_jax.types import Batch, Condition, ExampleKeys, Key, Method, Params, kind_of

MAX_EXACT_DIMENSIONS = 1000
"""Largest number of dimensions whose exact likelihood `FlowModel.log_likelihood` computes."""
CONTRACT = "called as network(z, t, r, condition, keys=keys) and returns an array of the shape of z"
"""What a network of one's own is, for messages."""


def make_flow(
    config: FlowConfig,
    *,
    shape: tuple[int, ...],
    vocab_size: int = 0,
    length: int = 0,
    classes: int = 0,
    modality: str = "image",
    network: nn.Module | None = None,
) -> FlowModel:
    """The flow of ``config`` for data of ``shape``.

    Args:
      config: the parts of the flow.
      shape: of an example: ``(height, width, channels)`` of images, ``(dimensions,)`` of vectors.
      vocab_size: tokens of the captions' vocabulary, for the conditions "sentence" and "words".
      length: tokens of a caption, for the same.
      classes: number of classes, for the condition "class".
      modality: the field of the batch that is generated: uint8 images, or vectors.
      network: a Flax module of your own, called as ``network(z, t, r, condition, keys=keys)``, which returns an array
        of the shape of ``z``; None: that of ``config.network``.

    Raises:
      ValueError: the condition needs captions or labels and there are none, the network does not fit the shape, or it
        takes other arguments.

    Example::

        flow = make_flow(FlowConfig(condition=ClassCondition()), shape=(32, 32, 3), classes=10)
        params = flow.init(key, batch)
        images = flow.sample(params, {"label": labels}, noise)
    """
    sizes = DataSizes(tuple(shape), vocab_size, length, classes)
    encoder = config.condition.build(sizes)
    if network is None:
        network = config.network.build(sizes.shape, words=config.condition.uses_words)
    else:
        _check_arguments(network)
    return FlowModel(config, sizes.shape, modality, encoder, network)


def _check_arguments(network: Any) -> None:
    """Raises ValueError: a network of one's own cannot be called as those of the library."""
    try:
        inspect.signature(network).bind("z", "t", "r", "condition", keys=None)
    except TypeError as error:
        raise ValueError(
            f"the network {type(network).__name__} is {CONTRACT}, but its arguments do not fit: {error}"
        ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class FlowModel:
    r"""The functions of a flow from standard normal noise to data, with the convention of `losses.flow`.

    The batch holds the field ``modality`` (images uint8, or vectors) and, as the condition needs, ``text [B, length]``
    with its mask, or ``label`` (-1 is unknown). An example without the data has no influence. One without its condition
    is trained without it, as are, drawn at random, ``condition.dropout`` of the others.

    The loss is the mean over the global batch of the objective's terms (`models.flow.objectives`).

    Parameters are a dict of ``network`` and ``condition``, the condition's encoder with the learned condition ``null``
    of the unconditional model.
    """

    config: FlowConfig
    shape: tuple[int, ...]
    modality: str
    encoder: ConditionEncoder
    network: nn.Module

    @functools.cached_property
    def method(self) -> Method:
        """Training, and ``predict``, as a `types.Method`."""
        return Method(self.init, self.loss, self.predict)

    @property
    def dimensions(self) -> int:
        """Numbers in an example's noise."""
        return math.prod(self.shape)

    # -- training --

    def init(self, key: Key, batch: Batch) -> dict[str, Params]:
        """Initial parameters. ``batch`` is not used: the configuration and the data's sizes determine all shapes.

        Raises:
          ValueError: the network gives an array of another shape than its input.
        """
        condition_params = init_condition(self.encoder, fold_in_name(key, "condition"))
        example = self.encoder.generator_input(self.encoder.example())
        z, t = jnp.zeros((1, *self.shape)), jnp.zeros(1)
        r = t if self.config.objective.predicts_mean else None
        output, variables = self.network.init_with_output(fold_in_name(key, "network"), z, t, r, example)
        if getattr(output, "shape", None) != z.shape:
            got = f"{output.shape}" if hasattr(output, "shape") else f"no array but {type(output).__name__}"
            raise ValueError(
                f"the network {type(self.network).__name__} is {CONTRACT}, {z.shape} here, got {got}"
            )
        return {"network": variables["params"], "condition": condition_params}

    def loss(
        self, params: Params, batch: Batch, key: Key, *, axis_name: AxisName = None
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The mean of the objective over the global batch (this device's share of it), and no further scalars."""
        keys = batch_keys(key, batch)
        x = self.data(batch)
        present = presence_masks(batch, (self.modality,))[self.modality]
        x = jnp.where(per_example(present, x), x, 0.0)
        noise = normal_like(fold_in_name(keys, "noise"), x)
        # Dropout of the condition's encoder and of the network.
        condition = encode_condition(
            self.encoder, params["condition"], batch, fold_in_name(keys, "condition")
        )
        if self.config.coupling is not None:
            noise = self._paired_noise(noise, x, condition, batch, axis_name)
        condition = self._drop(params, condition, batch, fold_in_name(keys, "drop"))
        network = functools.partial(self._apply, params, condition, keys=fold_in_name(keys, "network"))
        terms = self.config.objective.terms(network, x, noise, fold_in_name(keys, "objective"))
        return collectives.batch_mean(terms, present.astype(jnp.float32), axis_name=axis_name), {}

    def data(self, batch: Batch) -> Float[Array, "batch ..."]:
        """The data that are generated, as real numbers: images in [-1, 1].

        Raises:
          ValueError: the batch has none, or they have another shape than the flow.
        """
        if self.modality not in batch:
            raise ValueError(
                f"the batch has no field {self.modality!r}, the data of the flow (fields: {', '.join(sorted(batch))})"
            )
        values = batch[self.modality]
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(
                f"{self.modality} must be {_dimensions(self.shape)}, as the flow was made for, got "
                f"{list(values.shape)}: resize the data, or make a flow of their shape"
            )
        return to_float(values) if kind_of(self.modality) == "image" else values.astype(jnp.float32)

    def _apply(self, params, condition, z, t, r, *, keys=None) -> Array:
        """The network's output."""
        return self.network.apply({"params": params["network"]}, z, t, r, condition, keys=keys)

    def _drop(self, params: Params, condition: Condition, batch: Batch, keys: ExampleKeys) -> Condition:
        """The condition, replaced by ``null`` where the example lacks it, or at random."""
        if condition.vector is None:
            return condition
        keep = has_condition(self.encoder, batch, condition.vector.shape[0])
        keep &= jax.vmap(jax.random.uniform)(keys) >= self.config.condition.dropout
        return select_examples(keep, condition, null_condition(params["condition"], condition))

    def _paired_noise(self, noise, x, condition, batch, axis_name) -> Array:
        """For each example the noise of the global batch that optimal transport pairs it with."""
        gather = lambda a: a if axis_name is None else collectives.all_gather(a, axis_name)
        all_noise = gather(noise)
        cost = squared_distances(gather(x), all_noise)
        weight = self.config.coupling.condition_weight
        if weight and condition.vector is not None:
            cost = cost + weight * self._condition_distances(gather, condition, batch)
        # Absent data keep the noise of absent data: the others are paired as in a batch without them.
        absent = gather(~presence_masks(batch, (self.modality,))[self.modality])
        forbidden = 1.0 + cost.shape[0] * (cost.max() - cost.min())  # more than all other pairs can differ by
        cost = cost + jnp.where(absent[:, None] != absent[None], forbidden, 0.0)
        pairing = optimal_assignment(jax.lax.stop_gradient(cost))
        index = collectives.global_index(x.shape[0], axis_name=axis_name)
        return all_noise[pairing[index]]

    def _condition_distances(self, gather, condition: Condition, batch: Batch) -> Array:
        """Distances of the conditions of all pairs of the global batch: 0 or 1 for classes, 1 - cosine for captions. Of
        a condition that is missing it is 0 to others that are missing, and 1 to all that are not."""
        if not self.config.condition.reads_text:
            labels = gather(batch["label"])
            return (labels[:, None] != labels[None]).astype(jnp.float32)
        known = gather(has_condition(self.encoder, batch, condition.vector.shape[0]))
        vectors = jnp.where(known[:, None], jax.lax.stop_gradient(gather(condition.vector)), 1.0)
        vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
        return jnp.where(known[:, None] == known[None], 1.0 - vectors @ vectors.T, 1.0)

    # -- generation --

    def predict(self, params: Params, batch: Batch) -> Float[Array, "batch ..."]:
        """Data generated from the batch's conditions and its ``noise [B, D]``: images in [-1, 1], or vectors.

        If the batch also holds ``toward_NAME`` for the fields of a second condition (``toward_label``, or
        ``toward_text`` and ``toward_text_mask``), the condition is interpolated linearly: ``blend [B]`` is the weight
        of the second one, from 0 to 1.
        """
        if "noise" not in batch:
            raise ValueError(
                f'the batch has no "noise", float32 [B, {self.dimensions}], from which data are generated'
            )
        return self.sample(params, batch, batch["noise"])

    def sample(
        self,
        params: Params,
        batch: Batch,
        noise: Float[Array, "batch ..."],
        *,
        sampler: Sampler | None = None,
    ) -> Float[Array, "batch ..."]:
        """Data at t = 1 from ``noise [B, D]`` or ``[B, *shape]`` and the batch's conditions.

        ``sampler``: how the equation is solved; None: ``config.sampler``. An example without its condition is generated
        by the unconditional model.

        Raises:
          ValueError: the noise has another shape, there are not as many conditions (or one for all), or the sampler
            needs what the flow was not trained for: mean velocities, or guidance the unconditional model.
        """
        sampler = sampler or self.config.sampler
        z = self._reshape_noise(noise).astype(jnp.float32)
        condition, null = self._conditions(params, batch, z.shape[0])
        return sampler.sample(self._field(params, condition, null, sampler), z)

    def edit(
        self,
        params: Params,
        batch: Batch,
        noise: Array,
        *,
        start: float | Array,
        sampler: Sampler | None = None,
    ) -> Float[Array, "batch ..."]:
        """The batch's data changed toward its conditions: noise is mixed in as at the time ``start``, from which the
        flow goes on (Meng et al. 2022, arXiv:2108.01073). 1 changes nothing, 0 generates anew.

        ``noise`` and ``sampler`` are those of `sample`; ``start``: one time for all examples, or ``[B]``.

        Raises:
          ValueError: as in `sample`, or ``start`` has another shape or lies outside [0, 1].
        """
        sampler = sampler or self.config.sampler
        x = self.data(batch)
        t = start_times(start, x.shape[0])
        z = losses.interpolate(x, self._reshape_noise(noise, x.shape[0]), t)
        condition, null = self._conditions(params, batch, x.shape[0])
        return sampler.sample(self._field(params, condition, null, sampler), z, start=t)

    def inpaint(
        self,
        params: Params,
        batch: Batch,
        noise: Array,
        *,
        known: Bool[Array, "..."],
        sampler: Sampler | None = None,
    ) -> Float[Array, "batch ..."]:
        """The batch's data where ``known`` (of their shape, or one that broadcasts to it, such as ``[H, W, 1]``), and
        generated elsewhere.

        After every step the known part is set to its state at that time, ``(1 - t) noise + t x``.

        Raises:
          ValueError: as in `sample`, or ``known`` has another shape, or the sampler has no fixed steps.
        """
        sampler = sampler or self.config.sampler
        x = self.data(batch)
        noise = self._reshape_noise(noise, x.shape[0])
        if not _broadcasts(jnp.shape(known), x.shape):
            raise ValueError(
                f"known must have the shape {list(x.shape)} of the data or one that broadcasts to it, got "
                f"{list(jnp.shape(known))}: a mask of pixels needs a last axis for the channels, known[..., None]"
            )
        clamp = lambda z, t: jnp.where(known, losses.interpolate(x, noise, t), z)
        condition, null = self._conditions(params, batch, x.shape[0])
        return sampler.sample(self._field(params, condition, null, sampler), noise, correct=clamp)

    def velocity(self, params: Params, batch: Batch, z: Array, t: Float[Array, "batch"]) -> Array:
        """The velocity of the batch's conditions at the states z, without guidance."""
        condition, _ = self._conditions(params, batch, z.shape[0])
        network = functools.partial(self._apply, params, condition)
        return self.config.objective.velocity(network, z, t)

    def log_likelihood(
        self,
        params: Params,
        batch: Batch,
        key: Key | None = None,
        *,
        steps: int = 50,
        dequantise: bool = True,
    ) -> Float[Array, "batch"]:
        """The log-density of the batch's data given their conditions, in nats, of images in units of [-1, 1].

        With ``key`` the divergence is Hutchinson's estimate, and 8-bit pixels are dequantised with uniform noise (if
        ``dequantise``); without, it is exact, which takes one derivative for each dimension, and pixels are not
        dequantised. See `probability.ode.log_density` and, for bits per dimension,
        `probability.ode.bits_per_dimension`.

        Raises:
          ValueError: there is no key, and the data have more than `MAX_EXACT_DIMENSIONS`.
        """
        if key is None and self.dimensions > MAX_EXACT_DIMENSIONS:
            raise ValueError(
                f"the exact likelihood takes {self.dimensions} derivatives in every step, more than "
                f"{MAX_EXACT_DIMENSIONS}: give a key for Hutchinson's estimate, or call probability.ode.log_density"
            )
        x, keys = self.data(batch), None
        if key is not None:
            keys = example_keys(key, batch_index(batch))
            if dequantise and kind_of(self.modality) == "image":
                draw = lambda key: jax.random.uniform(key, self.shape, minval=-0.5, maxval=0.5)
                x = x + jax.vmap(draw)(fold_in_name(keys, "dequantise")) / 127.5
        condition, _ = self._conditions(params, batch, x.shape[0])
        network = functools.partial(self._apply, params, condition)
        velocity = functools.partial(self.config.objective.velocity, network)
        return ode.log_density(velocity, x, ode.time_grid(steps), keys=keys)[0]

    def _reshape_noise(self, noise: Array, count: int | None = None) -> Array:
        """``noise [B, D]`` as ``[B, *shape]``. Raises ValueError: it has another size, or is not for ``count``
        examples."""
        if math.prod(noise.shape[1:]) != self.dimensions or count not in (None, noise.shape[0]):
            raise ValueError(
                f"noise must be [{count or 'B'}, {self.dimensions}] or {_dimensions(self.shape, count)}, got "
                f"{list(noise.shape)}"
            )
        return noise.reshape(noise.shape[0], *self.shape)

    def _conditions(self, params: Params, batch: Batch, count: int) -> tuple[Condition, Condition]:
        """``(condition, null)``: the conditions of a batch, between two of them if it holds ``toward_NAME``, and those
        of the unconditional model."""

        def encode(batch: Batch) -> tuple[Condition, Condition]:
            """The conditions of ``count`` examples, ``null`` where there is none, and ``null``."""
            condition = encode_condition(self.encoder, params["condition"], batch, None)
            if condition.vector is None:
                return condition, condition
            if condition.vector.shape[0] not in (1, count):
                raise ValueError(
                    f"there are {condition.vector.shape[0]} conditions for {count} examples: give one for each"
                )
            condition = jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape[1:])), condition)
            null = null_condition(params["condition"], condition)
            return select_examples(has_condition(self.encoder, batch, count), condition, null), null

        condition, null = encode(batch)
        second = {k.removeprefix("toward_"): v for k, v in batch.items() if k.startswith("toward_")}
        if second and condition.vector is not None:
            if unknown := sorted(name for name in second if name.removesuffix("_mask") not in batch):
                raise ValueError(f'the batch has a field "toward_{unknown[0]}", but no field "{unknown[0]}"')
            if "blend" not in batch:
                raise ValueError('the batch has a second condition, but no "blend" [B], the weight of it')
            first = {k: v for k, v in batch.items() if k != "present"}  # of the first condition
            condition = interpolate_conditions(
                condition, encode({**first, **second})[0], fraction=batch["blend"]
            )
        return condition, null

    def _field(self, params: Params, condition: Condition, null: Condition, sampler: Sampler) -> Any:
        """What the sampler integrates: the guided velocity ``(z, t)``, or mean velocity ``(z, t, r)``."""
        if sampler.uses_mean and not self.config.objective.predicts_mean:
            raise ValueError(f"the sampler {sampler.name} needs the objective mean_flow or shortcut")

        def evaluate(condition, z, *times):
            network = functools.partial(self._apply, params, condition)
            if sampler.uses_mean:
                return network(z, *times)
            return self.config.objective.velocity(network, z, *times)

        if sampler.guidance == 1.0:
            return functools.partial(evaluate, condition)
        check_guidance(self.config.condition, sampler)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null)

        def guided(z, *times):
            """One evaluation for both conditions, as a batch of twice the size."""
            twice = lambda a: jnp.concatenate([a, a])
            with_condition, without = jnp.split(evaluate(both, twice(z), *map(twice, times)), 2)
            scale = per_example(sampler.guidance_at(times[0]), z)
            return losses.guide(with_condition, without, scale)

        return guided


def _dimensions(shape: tuple[int, ...], count: int | None = None) -> str:
    """The shape of a batch as text, such as ``[B, 32, 32, 3]``."""
    return f"[{', '.join(map(str, (count or 'B', *shape)))}]"


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of ``shape`` broadcasts to the shape ``to``."""
    ends = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(a in (1, b) for a, b in ends)
