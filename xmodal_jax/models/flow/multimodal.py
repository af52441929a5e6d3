"""A flow over the codes of several modalities: any of them from any others, by one network.

The convention is that of `losses.flow`: t = 0 is noise e, t = 1 is data z. Every modality has a time of its own, by
which an example's modalities have roles:

=========  ===========================  =========================================
role       time                         input
=========  ===========================  =========================================
generated  t, the same for all of them  ``(1 - t) e + t z``; only these have a loss
observed   1                            z, in training with a little noise
missing    0                            e, pure noise
=========  ===========================  =========================================

An input at t = 0 is independent of everything else, so the best velocity given it is that of the marginal distribution
without this modality. Training on random roles thus learns every conditional and the joint distribution, and data that
are really missing have the same role: one training serves all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.checks import check_at_least, check_rates
from xmodal_jax.core.examples import per_example
from xmodal_jax.core.parts import check_choices
from xmodal_jax.core.random import batch_index, batch_keys, example_keys, fold_in_name, normal_like
from xmodal_jax.losses.flow import guide, interpolate, logit_normal_times, velocity_loss
from xmodal_jax.models.flow.codes import CodeConfig, CodeModel, Codes, make_codes
from xmodal_jax.models.flow.samplers import start_times
from xmodal_jax.models.towers import Encoders
from xmodal_jax.models.vae.inference import LatentSamples
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.nets.code_flow import CodeVelocity
from xmodal_jax.nets.decoders import Size
from xmodal_jax.probability import ode
from xmodal_jax.types import Batch, ExampleKeys, Key, Method, Params

CODES = "_codes"
"""Suffix of the field of a batch with a modality's codes."""


@dataclasses.dataclass(frozen=True)
class CodeFlowConfig:
    """The flow over the codes: its network, roles in training, and sampling."""

    width: int = 128
    """Dimensions of a token of the transformer."""
    depth: int = 4
    """Number of transformer blocks."""
    heads: int = 4
    """Number of attention heads; must divide the width."""
    joint: float = 0.3
    """Fraction of the training examples all of whose modalities are generated."""
    drop: float = 0.2
    """Probability that a modality which would be observed is missing instead, for guidance."""
    time_mean: float = 0.0
    """Mean of the logit of a training example's time: below 0, more examples are near the noise, where the leading
    dimensions of the codes are decided."""
    time_std: float = 1.0
    """Standard deviation of the logit of a training example's time."""
    condition_noise: float = 0.1
    """Standard deviation of the noise on observed codes in training."""
    guidance: float = 2.0
    """Strength s of guidance toward what is observed: the velocity is ``v_0 + s (v_c - v_0)``, where ``v_0`` is the
    velocity without conditions; 1: none."""
    agreement: float = 4.0
    """Strength of guidance toward agreement of what is generated, in samples of the joint distribution: as
    ``guidance``, where ``v_0`` is the velocity of each modality by itself; 1: none."""
    solver: Literal["euler", "midpoint", "heun"] = "heun"
    """Solver of the differential equation."""
    steps: int = 10
    """Steps of the solver, of which "midpoint" and "heun" take two evaluations of the network."""
    shift: float = 1.0
    """Shift of the solver's times (`probability.ode.time_grid`): above 1, there are more steps near the noise."""

    def __post_init__(self):
        check_choices(self)
        check_at_least(self, 1, "width", "depth", "heads", "steps")
        check_at_least(self, 0, "condition_noise", "guidance", "agreement", "time_std")
        check_rates(self, "joint", "drop")
        if self.shift <= 0:
            raise ValueError(f"CodeFlowConfig.shift must be above 0, got {self.shift}")
        if self.width % self.heads:
            raise ValueError(f"CodeFlowConfig.heads ({self.heads}) must divide width ({self.width})")


class CodeStatistics(NamedTuple):
    """Mean and standard deviation of every dimension of a code, over the training set."""

    mean: Float[Array, "tokens dims"]
    std: Float[Array, "tokens dims"]


FLOOR = 1e-2
"""Smallest standard deviation of a dimension of a code, relative to the root mean square over its dimensions: a
dimension that hardly varies is not blown up to unit variance."""


def code_statistics(
    codes: Float[np.ndarray, "n tokens dims"], present: Bool[np.ndarray, "n"]
) -> CodeStatistics:
    """The statistics of the codes that are present."""
    x = np.asarray(codes, np.float64)[present]
    if not len(x):
        raise ValueError("no example has this modality")
    std = x.std(axis=0)
    floor = max(FLOOR * float(np.sqrt(np.mean(np.square(std)))), 1e-6)
    return CodeStatistics(np.float32(x.mean(axis=0)), np.float32(np.maximum(std, floor)))


class Roles(NamedTuple):
    """Which modalities of each example have which role; the others are missing."""

    generated: Bool[Array, "m batch"]
    observed: Bool[Array, "m batch"]


def draw_roles(keys: ExampleKeys, present: Bool[Array, "m batch"], *, joint: float, drop: float) -> Roles:
    """Random roles of the modalities that are present.

    With probability ``joint`` all are generated. Otherwise a number from 1 to M - 1 and as many modalities are drawn:
    these are observed, or missing with probability ``drop``, and the others are generated. If none would be generated,
    since what is left is absent, all that are present are.
    """
    count = present.shape[0]
    uniform = lambda name, shape: jax.vmap(lambda key: jax.random.uniform(key, shape), out_axes=-1)(
        fold_in_name(keys, name)
    )
    number = 1 + jnp.floor(uniform("number", ()) * (count - 1))
    number = jnp.where(uniform("joint", ()) < joint, 0, jnp.minimum(number, count - 1))
    rank = jnp.argsort(jnp.argsort(uniform("order", (count,)), axis=0), axis=0)
    chosen = rank < number[None]
    generated = ~chosen & present
    none = ~generated.any(axis=0)
    observed = chosen & present & (uniform("drop", (count,)) >= drop) & ~none[None]
    return Roles(jnp.where(none[None], present, generated), observed)


@dataclasses.dataclass(frozen=True, eq=False)
class CodeFlow:
    """The flow over standardised codes; ``params`` are those of the network alone."""

    config: CodeFlowConfig
    shapes: Mapping[str, tuple[int, int]]
    """Tokens and dimensions of each modality's code, in the order of every axis M."""

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @functools.cached_property
    def network(self) -> CodeVelocity:
        c = self.config
        return CodeVelocity(tuple(self.shapes.items()), c.width, c.depth, c.heads)

    def velocity(self, params: Params, codes: Codes, times: Float[Array, "m batch"]) -> Codes:
        """The network's velocity of every code."""
        return self.network.apply({"params": params}, codes, times)

    def init(self, key: Key) -> Params:
        codes = {m: jnp.zeros((1, *shape)) for m, shape in self.shapes.items()}
        return self.network.init(key, codes, jnp.zeros((len(codes), 1)))["params"]

    def terms(
        self, params: Params, codes: Codes, present: Bool[Array, "m batch"], keys: ExampleKeys
    ) -> tuple[Float[Array, "batch"], Bool[Array, "batch"]]:
        """The loss of each example: the mean over its generated modalities of the mean squared error of the velocity;
        and which examples have one."""
        c = self.config
        roles = draw_roles(fold_in_name(keys, "roles"), present, joint=c.joint, drop=c.drop)
        t = logit_normal_times(fold_in_name(keys, "time"), c.time_mean, c.time_std)
        times = jnp.where(roles.generated, t[None], jnp.where(roles.observed, 1.0, 0.0))
        inputs, data, noise = {}, {}, {}
        for k, m in enumerate(self.modalities):
            data[m] = jnp.where(per_example(present[k], codes[m]), codes[m], 0.0)
            noise[m] = normal_like(fold_in_name(keys, f"noise/{m}"), data[m])
            inputs[m] = interpolate(data[m], noise[m], times[k])
            nudge = c.condition_noise * normal_like(fold_in_name(keys, f"condition/{m}"), data[m])
            inputs[m] = inputs[m] + jnp.where(per_example(roles.observed[k], nudge), nudge, 0.0)
        predicted = self.velocity(params, inputs, times)
        errors = jnp.stack([velocity_loss(predicted[m], data[m], noise[m]) for m in self.modalities])
        counts = roles.generated.sum(axis=0)
        terms = jnp.where(roles.generated, errors, 0.0).sum(axis=0) / jnp.maximum(counts, 1)
        return terms, counts > 0

    def noise(self, keys: ExampleKeys) -> Codes:
        """Standard normal noise of the shape of the codes, for each key."""
        zeros = {m: jnp.zeros((keys.shape[0], *shape)) for m, shape in self.shapes.items()}
        return {m: normal_like(fold_in_name(keys, f"sample/{m}"), x) for m, x in zeros.items()}

    def generate(
        self,
        params: Params,
        codes: Codes,
        observed: Bool[Array, "m batch"],
        keys: ExampleKeys,
        guidance: float | None = None,
        agreement: float = 1.0,
    ) -> Codes:
        """Codes of all modalities, of which the ``observed`` ones are those given and the others are generated.

        ``guidance``: in place of that of the configuration. ``agreement``: see `CodeFlowConfig`.
        """
        c = self.config
        guidance = c.guidance if guidance is None else guidance
        noise = self.noise(keys)
        rows = dict(zip(self.modalities, observed, strict=True))
        choose = lambda a, b: {m: jnp.where(per_example(rows[m], b[m]), a[m], b[m]) for m in rows}
        still = jax.tree.map(jnp.zeros_like, noise)

        def velocity(x: Codes, t: Float[Array, "batch"]) -> Codes:
            """The guided velocity of what is generated; what is observed does not move."""
            times = jnp.broadcast_to(t[None], observed.shape)
            inputs = [(choose(codes, x), jnp.where(observed, 1.0, times))]
            if guidance != 1.0:
                inputs.append((choose(noise, x), jnp.where(observed, 0.0, times)))
            if agreement != 1.0:  # each modality by itself
                for k, m in enumerate(self.modalities):
                    is_one = jnp.arange(len(times))[:, None] == k
                    inputs.append(({**noise, m: x[m]}, jnp.where(is_one, times, 0.0)))
            v, *others = self._velocities(params, inputs)
            if guidance != 1.0:
                v = jax.tree.map(lambda a, b: guide(a, b, guidance), v, others.pop(0))
            if agreement != 1.0:
                unimodal = {m: by_itself[m] for m, by_itself in zip(self.modalities, others, strict=True)}
                v = jax.tree.map(lambda a, b: guide(a, b, agreement), v, unimodal)
            return choose(still, v)

        x = ode.solve(velocity, noise, ode.time_grid(c.steps, shift=c.shift), solver=c.solver)
        return choose(codes, x)

    def edit(
        self,
        params: Params,
        codes: Codes,
        observed: Bool[Array, "m"],
        edited: Bool[Array, "m"],
        keys: ExampleKeys,
        *,
        start: float | Array,
    ) -> Codes:
        """The codes with those of ``edited`` modalities changed toward the ``observed`` ones, from the time ``start``;
        noise in place of the others. See `MultimodalFlow.edit`."""
        c, noise = self.config, self.noise(keys)
        is_observed, is_edited = (
            dict(zip(self.modalities, rows, strict=True)) for rows in (observed, edited)
        )
        fixed = {m: jnp.where(is_observed[m], codes[m], noise[m]) for m in noise}

        def velocity(x: Codes, t: Float[Array, "batch"]) -> Codes:
            """The guided velocity of the edited codes; nothing else moves."""
            inputs = []
            for others, other_times in ((fixed, observed.astype(t.dtype)), (noise, jnp.zeros(len(edited)))):
                times = jnp.where(edited[:, None], t[None], other_times[:, None])
                inputs.append(({m: jnp.where(is_edited[m], x[m], others[m]) for m in x}, times))
            v = jax.tree.map(lambda a, b: guide(a, b, c.guidance), *self._velocities(params, inputs))
            return {m: jnp.where(is_edited[m], v[m], 0.0) for m in v}

        starts = start_times(start, keys.shape[0])
        x = {m: jnp.where(is_edited[m], interpolate(codes[m], noise[m], starts), fixed[m]) for m in noise}
        times = ode.times_from(starts, ode.time_grid(c.steps, shift=c.shift))
        return ode.solve(velocity, x, times, solver=c.solver)

    def _velocities(self, params: Params, inputs: list[tuple[Codes, Float[Array, "m batch"]]]) -> list[Codes]:
        """The velocities of several sets of codes and times, computed as one batch."""
        codes = jax.tree.map(lambda *x: jnp.concatenate(x), *[codes for codes, _ in inputs])
        times = jnp.concatenate([times for _, times in inputs], axis=1)
        together = self.velocity(params, codes, times)
        size = times.shape[1] // len(inputs)
        return [jax.tree.map(lambda x: x[k * size : (k + 1) * size], together) for k in range(len(inputs))]  # noqa: B023

    def log_density(
        self,
        params: Params,
        codes: Codes,
        targets: Sequence[bool],
        observed: Bool[Array, "m batch"],
        keys: ExampleKeys,
        *,
        steps: int = 50,
        exact: bool = False,
    ) -> Float[Array, "batch"]:
        """``log p(z_targets | z_observed)`` of standardised codes in nats, by the ordinary differential equation.

        Modalities that are neither are missing. ``keys`` draw the input of the missing ones, and the signs of
        Hutchinson's estimate of the divergence; with ``exact`` the divergence is exact, which takes one derivative for
        each dimension of the targets.
        """
        names = [m for m, is_target in zip(self.modalities, targets, strict=True) if is_target]
        is_target = jnp.asarray(targets)[:, None]
        base = {
            m: jnp.where(per_example(observed[k], codes[m]), codes[m], x)
            for k, (m, x) in enumerate(self.noise(keys).items())
        }
        sizes = {m: int(np.prod(self.shapes[m])) for m in names}
        ends = list(np.cumsum(list(sizes.values())))

        def velocity(x: Float[Array, "batch dim"], t: Float[Array, "batch"]) -> Float[Array, "batch dim"]:
            """The velocity of the targets, as one vector."""
            parts = jnp.split(x, ends[:-1], axis=1)
            moved = {m: part.reshape(-1, *self.shapes[m]) for m, part in zip(names, parts, strict=True)}
            times = jnp.where(is_target, t[None], jnp.where(observed, 1.0, 0.0))
            v = self.velocity(params, {**base, **moved}, times)
            return jnp.concatenate([v[m].reshape(x.shape[0], -1) for m in names], axis=1)

        x = jnp.concatenate([codes[m].reshape(codes[m].shape[0], -1) for m in names], axis=1)
        signs = None if exact else fold_in_name(keys, "signs")
        return ode.log_density(velocity, x, ode.time_grid(steps), keys=signs, solver=self.config.solver)[0]


@dataclasses.dataclass(frozen=True)
class MultimodalFlowConfig(CodeConfig):
    """Autoencoders of the modalities, and the flow over their codes."""

    flow: CodeFlowConfig = CodeFlowConfig()
    """The flow over the codes of all modalities."""


FROZEN = ("^autoencoders/", "^statistics/")
"""Regular expressions of the parameters that the training of the flow leaves as they are."""


@dataclasses.dataclass(frozen=True, eq=False)
class MultimodalFlow:
    """Autoencoders and the flow over their codes, as pure functions; make one by `make_multimodal_flow`.

    The parameters are a dict: ``autoencoders`` of `CodeModel`, ``statistics`` by modality, ``flow`` of `CodeFlow`.

    Axes of arrays: M modalities, B examples, R samples of each example, N samples that belong to no example, D all
    elements of all codes, which are the *latents* of an example.
    """

    config: MultimodalFlowConfig
    codes: CodeModel
    flow: CodeFlow

    @property
    def dim(self) -> int:
        """The number D of elements of all codes."""
        return sum(tokens * dims for tokens, dims in self.flow.shapes.values())

    # Training of the flow

    def method(self, autoencoders: Params, statistics: Mapping[str, Mapping[str, Any]]) -> Method:
        """The training of the flow, on batches of codes (`code_fields`), with trained autoencoders and the statistics
        of their codes. Freeze the parameters `FROZEN`."""
        trained = {"autoencoders": autoencoders, "statistics": statistics}
        shapes = jax.eval_shape(lambda x: x, trained)

        def init(key: Key, batch: Batch) -> Params:
            """Initial parameters of the flow, and zeros in place of what `load_pretrained` loads."""
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return {**zeros, "flow": self.flow.init(key)}

        def load(params: Params, batch: Batch) -> Params:
            """``params`` with copies of what is trained, since the training step frees the arrays of its state."""
            return {**params, **jax.tree.map(jnp.array, trained)}

        return Method(init, self.loss, self.predict, load_pretrained=load)

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: collectives.AxisName = None):
        """The mean loss of the examples that generate a modality, as this device's share."""
        keys = batch_keys(key, batch)
        codes = {m: batch[m + CODES] for m in self.flow.modalities}
        terms, counts = self.flow.terms(params["flow"], codes, self._present(batch), keys)
        return collectives.batch_mean(terms, counts.astype(terms.dtype), axis_name=axis_name), {}

    def _present(self, batch: Batch) -> Bool[Array, "m batch"]:
        """Which example of a batch of codes has which modality."""
        everywhere = jnp.ones(batch_index(batch).shape[0], bool)
        present = batch.get("present", {})
        return jnp.stack([jnp.asarray(present.get(m, everywhere)) for m in self.flow.modalities])

    # Codes

    def _standardise(self, params: Params, codes: Codes) -> Codes:
        s = params["statistics"]
        return {m: (x - s[m]["mean"][None]) / s[m]["std"][None] for m, x in codes.items()}

    def encode(self, params: Params, batch: Batch) -> tuple[Codes, Bool[Array, "m batch"]]:
        """The standardised codes of a batch, and which are those of a modality that is present."""
        codes, present = self.codes.encode(params["autoencoders"], batch)
        return self._standardise(params, codes), present.T

    def join(self, codes: Codes) -> Float[Array, "batch dim"]:
        """All codes of an example as one vector, its latents."""
        return jnp.concatenate(
            [codes[m].reshape(codes[m].shape[0], -1) for m in self.flow.modalities], axis=-1
        )

    def split(self, latents: Float[Array, "batch dim"]) -> Codes:
        """The inverse of `join`."""
        codes, start = {}, 0
        for m, (tokens, dims) in self.flow.shapes.items():
            part = latents[:, start : start + tokens * dims]
            codes[m] = part.reshape(latents.shape[0], tokens, dims)
            start += tokens * dims
        return codes

    # The functions of `models.vae.multimodal.MultimodalVAE`

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """``{"latent": [B, D]}``: the latents given all modalities that are present."""
        return {
            "latent": self.infer(params, batch, jnp.ones(len(self.flow.modalities), bool), None).shared[0]
        }

    def infer(
        self, params: Params, batch: Batch, observed: Any, key: Key | None, samples: int = 1
    ) -> LatentSamples:
        """Latents given the ``observed [M]`` modalities that are present: their own codes, and generated codes of the
        others. With several masks ``observed [S, M]`` all arrays have a leading axis S.

        Without a key the noise is the same for all examples, so that a translation is a function of its inputs.

        Raises:
          ValueError: ``observed`` has another shape.
        """
        codes, present = self.encode(params, batch)
        index = batch_index(batch)
        if key is None:
            key, index = jax.random.key(0), jnp.zeros_like(index)
        keys = example_keys(key, index)

        def infer_from(observed: Bool[Array, "m"]) -> LatentSamples:
            mask = observed[:, None] & present

            def draw(number) -> Array:
                sample_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
                return self.join(self.flow.generate(params["flow"], codes, mask, sample_keys))

            return self._as_samples(jax.lax.map(draw, jnp.arange(samples)))

        observed = self._check_mask("observed", observed, several=True)
        return infer_from(observed) if observed.ndim == 1 else jax.lax.map(infer_from, observed)

    def _check_mask(self, name: str, mask: Any, several: bool = False) -> Bool[Array, "*masks m"]:
        """The mask over modalities as an array ``[M]``, or, if ``several`` are allowed, ``[S, M]``. Raises ValueError:
        it has another shape."""
        mask, modalities = jnp.asarray(mask), self.flow.modalities
        if mask.ndim not in (1, 1 + several) or mask.shape[-1] != len(modalities):
            raise ValueError(
                f"{name} must have one boolean for each of {', '.join(modalities)}, in this order, got the shape "
                f"{list(mask.shape)}"
            )
        return mask

    def edit(
        self, params: Params, batch: Batch, observed: Any, edited: Any, key: Key, *, start: float | Array
    ) -> LatentSamples:
        """Latents in which the codes of the ``edited [M]`` modalities are changed toward the ``observed [M]`` ones.

        Noise is mixed into them as at the time ``start``, from which the flow goes on (Meng et al. 2022,
        arXiv:2108.01073): 1 changes nothing, 0 generates anew. The other modalities are noise. All examples have to
        have both. ``start``: one time for all examples, or ``[B]``.

        Raises:
          ValueError: a mask has another shape, or ``start`` lies outside [0, 1].
        """
        codes, _ = self.encode(params, batch)
        keys = example_keys(key, batch_index(batch))
        observed, edited = self._check_mask("observed", observed), self._check_mask("edited", edited)
        return self._as_samples(
            self.join(self.flow.edit(params["flow"], codes, observed, edited, keys, start=start))[None]
        )

    def code_log_density(
        self, params: Params, batch: Batch, key: Key, *, steps: int = 20
    ) -> Float[Array, "batch"]:
        """``log p`` of the standardised codes of all modalities in nats, of examples that have all, with Hutchinson's
        estimate of the divergence; see `CodeFlow.log_density`."""
        codes, present = self.encode(params, batch)
        keys, none = example_keys(key, batch_index(batch)), jnp.zeros(present.shape, bool)
        return self.flow.log_density(params["flow"], codes, (True,) * len(codes), none, keys, steps=steps)

    def _as_samples(self, latents: Float[Array, "samples batch dim"]) -> LatentSamples:
        """Latents as the samples of a multimodal VAE. Every modality is decoded from all latents, of which its decoder
        takes its own part."""
        z = jnp.broadcast_to(latents[None], (len(self.flow.modalities), *latents.shape))
        return LatentSamples(z, jnp.full(latents.shape[:2], jnp.nan), latents)

    def decode(
        self, params: Params, z: Float[Array, "m samples batch dim"], key: Key | None
    ) -> dict[str, Array]:
        """Data ``[R, B, ...]`` of every modality from latents ``z [M, R, B, D]``."""
        samples, batch = z.shape[1:3]
        codes = {}
        for k, m in enumerate(self.flow.modalities):
            s = params["statistics"][m]
            codes[m] = self.split(z[k].reshape(samples * batch, -1))[m] * s["std"][None] + s["mean"][None]
        data = self.codes.decode(params["autoencoders"], codes, key)
        return {m: x.reshape(samples, batch, *x.shape[1:]) for m, x in data.items()}

    def decoder_latents(self, params: Params, shared: Float[Array, "n dim"], key: Key | None) -> Array:
        """``[M, 1, N, D]``: the latents ``shared`` for every modality; nothing is drawn."""
        return self._as_samples(shared[None]).z

    def sample_prior(self, params: Params, key: Key, count: int) -> Float[Array, "count dim"]:
        """Latents of all modalities, generated together, with guidance toward agreement: samples of the joint
        distribution itself have agreement 1."""
        keys = example_keys(key, jnp.arange(count))
        codes = {m: jnp.zeros((count, *shape)) for m, shape in self.flow.shapes.items()}
        none = jnp.zeros((len(codes), count), bool)
        agreement = self.config.flow.agreement
        generated = self.flow.generate(params["flow"], codes, none, keys, guidance=1.0, agreement=agreement)
        return self.join(generated)

    def as_vae(self) -> MultimodalVAE:
        """These functions under the names of a multimodal VAE's, for evaluation and reports."""
        return MultimodalVAE(
            Method(lambda *args: None, self.loss, self.predict),
            self.flow.modalities,
            infer=self.infer,
            decode=self.decode,
            decoder_latents=self.decoder_latents,
            sample_prior=self.sample_prior,
            log_likelihood=lambda *args, **options: None,
        )


def make_multimodal_flow(
    config: MultimodalFlowConfig, sizes: Mapping[str, Size], *, encoders: Encoders | None = None
) -> MultimodalFlow:
    """Autoencoders and a flow over their codes for the modalities in ``sizes`` (see `models.vae.modalities.sizes_of`).

    ``encoders``: encoders of your own by kind of data, see `models.towers.Encoders`.
    """
    codes = make_codes(config, sizes, encoders=encoders)
    return MultimodalFlow(config, codes, CodeFlow(config.flow, codes.shapes()))
