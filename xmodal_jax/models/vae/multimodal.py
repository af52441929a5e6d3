"""Multimodal VAEs: one set of encoders, decoders and posteriors, and an objective by name (`MODELS`).

`make_multimodal_vae` binds one to data; what it returns learns (`method`), translates between any subsets of the
modalities, generates, and estimates likelihoods.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmodal_jax.core import collectives
from xmodal_jax.core.random import example_keys, fold_in_name
from xmodal_jax.losses import multimodal_elbo as objectives
from xmodal_jax.losses.elbo import importance_bound, kl_warmup, kl_with_free_bits
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms
from xmodal_jax.models.towers import init_inputs
from xmodal_jax.models.vae import inference
from xmodal_jax.models.vae.generation import decode_all, unfold_shared
from xmodal_jax.models.vae.modalities import Reading, TextConfig, kinds_of, see
from xmodal_jax.models.vae.networks import (
    Network,
    NetworkConfig,
    Seen,
    make_groups,
)
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.vae import SCALES
from xmodal_jax.probability.distributions import standard_like
from xmodal_jax.probability.posteriors import mask_experts
from xmodal_jax.types import Batch, Key, Method, Params, Stage


class Member(NamedTuple):
    """One model of the family."""

    objective: Callable[..., ObjectiveTerms]
    options: tuple[str, ...]
    """Fields of the configuration that the objective is told, besides beta."""
    infer: Callable[..., inference.Codes]
    beta: float = 1.0
    """What ``beta`` None stands for."""
    alpha: float = 0.1
    """What ``alpha`` None stands for."""
    parts: Mapping[str, Any] = {}
    """Of `NetworkConfig`: parts that this model has. A string is the field of the configuration that says how many."""
    first: Callable[..., ObjectiveTerms] | None = None
    """The objective of the first stage of two: it trains the joint encoder and the decoders, the second all others."""
    prior: bool = True
    """Whether its KL to the prior has a closed form, for free bits."""


_MIXED = ("samples", "estimator")
_PRIVATE = {"private": "private", "learn_auxiliary": True}
MODELS: dict[str, Member] = {
    "jmvae": Member(objectives.jmvae, ("alpha",), inference.from_joint, parts={"joint": True}),
    "telbo": Member(
        objectives.unimodal_elbos, (), inference.from_joint, parts={"joint": True}, first=objectives.joint_elbo
    ),
    "mvae": Member(objectives.mvae, ("subsets", "single"), inference.from_product_and_prior),
    "mmvae": Member(
        objectives.mmvae, _MIXED, inference.from_mixture, parts={"learn_prior": "learn_prior"}, prior=False
    ),
    "mopoe": Member(objectives.mopoe, (), inference.from_full_product_and_prior),
    "mmjsd": Member(objectives.mmjsd, (), inference.from_mixture, prior=False),
    "mvtcae": Member(objectives.mvtcae, ("alpha",), inference.from_product, beta=2.5, alpha=5 / 6),
    "dmvae": Member(
        objectives.dmvae, ("private_beta",), inference.from_product_and_prior, parts={"private": "private"}
    ),
    "mmvae_plus": Member(
        objectives.mmvae, _MIXED, inference.from_mixture, parts=_PRIVATE | {"learn_prior": "learn_prior"}, prior=False
    ),
    "cmvae": Member(
        objectives.mmvae, _MIXED, inference.from_mixture, parts=_PRIVATE | {"clusters": "clusters"}, prior=False
    ),
    "crmvae": Member(objectives.crmvae, (), inference.from_product),
    "nexus": Member(
        objectives.nexus, ("top_beta", "gamma", "dropout"), inference.from_messages, parts={"top": "top"}
    ),
    "mhvae": Member(
        objectives.mhvae, ("subsets",), inference.from_levels, parts={"levels": "levels"}, prior=False
    ),
    "jnf": Member(
        objectives.flow_match, (), inference.from_flows, parts={"joint": True, "flows": "flows"},
        first=objectives.joint_elbo,
    ),
}  # fmt: skip
"""By name; a new one is an objective in `losses.multimodal_elbo` and a line here."""

PRODUCTS = ("mvae", "mopoe", "mvtcae", "dmvae", "crmvae", "jmvae", "telbo", "jnf", "nexus", "mhvae", "mmjsd")
"""Those whose posterior must be normal: products of experts, or a closed form that is written for it."""


@dataclasses.dataclass(frozen=True)
class MultimodalVAEConfig(Reading):
    """Which model, its sizes, and how each kind of data is read and made. What a model has no use for is ignored;
    which options it has is in ``MODELS``."""

    text: TextConfig = dataclasses.replace(Reading.text, weight=20.0)
    """Text: the sum over its tokens. A sentence has some tens of nats, a picture thousands: unweighted, codes hardly
    hold what only words make much of."""
    model: str = "mopoe"
    """A key of ``MODELS``."""
    latent: int = 32
    """Dimensions that the modalities share."""
    private: int = 32
    """Dimensions of each modality's own (dmvae, mmvae_plus, cmvae)."""
    hidden: int = 256
    """The layer between an encoder and its posterior, and of all smaller networks."""
    posterior: str = "normal"
    """"normal" or "laplace" (of mixtures of experts alone): the prior's family too."""
    scale: str = "exp"
    """How scales of posteriors are made: "exp", "softplus" or "softmax"."""
    beta: float | None = None
    """Weight of the divergence; None: 1, of mvtcae 2.5."""
    alpha: float | None = None
    """Of the divergence to the experts (jmvae), of total correlation (mvtcae); None: 0.1, of mvtcae 5/6."""
    private_beta: float = 1.0
    """Weight of the private variables' divergence (dmvae)."""
    samples: int = 1
    """Of each expert in importance-weighted bounds (mmvae, mmvae_plus, cmvae)."""
    estimator: str = "iwae"
    """Of their gradient: "iwae" or "dreg"."""
    subsets: int = 1
    """Further random subsets in each step (mvae), subsets in all (mhvae; 0: every one)."""
    single: bool = True
    """Whether each modality alone is a subset as well (mvae)."""
    learn_prior: bool = False
    """Whether the prior's scales are learned (mmvae, mmvae_plus)."""
    clusters: int = 10
    """Components of the prior (cmvae)."""
    top: int = 64
    """Dimensions of the code above (nexus)."""
    top_beta: float = 1.0
    """Weight of its divergence (nexus)."""
    gamma: float = 1.0
    """Weight of telling the codes from it (nexus)."""
    dropout: float = 0.5
    """Probability that the code above sees only some modalities (nexus)."""
    levels: int = 3
    """Of latent variables (mhvae)."""
    flows: int = 2
    """Layers of each modality's flow (jnf)."""
    hmc_steps: int = 50
    """Proposals of Hamiltonian Monte Carlo, to infer from several modalities (jnf)."""
    hmc_leapfrog: int = 10
    """Steps of each."""
    hmc_step_size: float = 0.05
    """Their size."""
    first: float = 0.5
    """Share of training in which the joint VAE learns and after which it does not (telbo, jnf)."""
    free_bits: float = 0.0
    """Nats that each dimension of a closed-form divergence to the prior may have for free."""
    warmup: int = 0
    """Steps over which beta rises from 0."""
    cycle: int = 0
    """Steps after which it rises again; 0: never."""
    ramp: float = 0.5
    """Share of such a cycle that it rises."""
    rescale: bool = False
    """Likelihoods weighted by the largest modality's number of elements over their own, besides their own weights."""

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if self.scale not in SCALES or self.posterior not in ("normal", "laplace"):
            raise ValueError(
                f"posterior must be normal or laplace, scale one of {SCALES}; got {self.posterior!r}, {self.scale!r}"
            )
        if self.posterior == "laplace" and self.model in PRODUCTS:
            raise ValueError(f"the posterior of {self.model} must be normal: products of Laplaces are none")
        if self.free_bits and not MODELS[self.model].prior:
            raise ValueError(
                f"free_bits: {self.model} has no divergence to the prior in closed form; set it to 0"
            )
        for field in ("latent", "hidden", "samples", "clusters", "top", "levels", "flows"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if MODELS[self.model].parts.get("private") and self.private < 1:
            raise ValueError(f"private must be at least 1 for {self.model}, got {self.private}")
        if self.model == "mhvae" and self.levels < 2:
            raise ValueError("levels must be at least 2 for mhvae: with one it is mopoe over all subsets")
        if MODELS[self.model].first and not 0 < self.first < 1:
            raise ValueError(f"first must lie between 0 and 1 for {self.model}, got {self.first}")
        for field in ("warmup", "cycle", "free_bits", "subsets"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")
        if self.cycle and not 0 < self.ramp <= 1:
            raise ValueError(f"ramp must lie in (0, 1], got {self.ramp}")


class MultimodalVAE(NamedTuple):
    """A multimodal VAE as pure functions. ``given`` and ``told`` are bool ``[M]``, over ``modalities``."""

    method: Method
    modalities: tuple[str, ...]
    """In the order of all arrays over modalities."""
    infer: Callable[..., inference.Codes]
    """``infer(params, batch, given, key, samples=1)``: codes from the given modalities that are present, drawn from
    ``key`` and the examples' indices; the mean with key None. Of several subsets, ``given [S, M]``, codes ``[S,
    ...]``."""
    decode: Callable[..., dict[str, Array]]
    """``decode(params, z [M, R, B, D], key)``: of every modality what its decoder says, ``[R, B, ...]``: images in [0,
    1], ids, frames, classes; with a key None the likeliest."""
    unfold: Callable[..., Array]
    """``unfold(params, shared [N, D], key) -> z [M, 1, N, D']``: decoders' inputs from shared codes, of the prior, a
    sampler or a traversal; what is private comes from its prior (its mean with key None)."""
    prior: Callable[..., Array] | None
    """``prior(params, key, count) -> shared [count, D]``; None where shared codes have no prior of their own."""
    log_likelihood: Callable[..., Array]
    """``log_likelihood(params, batch, key, given, told, samples)``: the importance-weighted estimate ``[B]`` of ``log
    p(x_told)`` by samples of ``q(z | x_given)``, in nats; for those told that are present."""


def make_multimodal_vae(config: MultimodalVAEConfig, sizes: Mapping[str, Size]) -> MultimodalVAE:
    """The model of ``config`` over the modalities in ``sizes`` (see `sizes_of`).

    Raises:
      ValueError: fewer than two modalities, or a likelihood that does not fit its kind.
    """
    if len(sizes) < 2:
        raise ValueError(f"a multimodal VAE needs two modalities at least, got {', '.join(sizes) or 'none'}")
    member = MODELS[config.model]
    groups = make_groups(sizes)
    kinds = kinds_of(config, sizes, {group.kind for group in groups}, rescale=config.rescale)
    parts = {k: getattr(config, v) if isinstance(v, str) else v for k, v in member.parts.items()}
    network = Network(
        NetworkConfig(config.latent, hidden=config.hidden, family=config.posterior, scale=config.scale, **parts),
        kinds, groups,
    )  # fmt: skip
    names = network.names

    def chosen(name: str):
        """A field of the configuration, of which None stands for the model's own."""
        value = getattr(config, name)
        return getattr(member, name) if value is None else value

    def bound(params):
        return lambda method, *args: network.apply({"params": params}, *args, method=method)

    def problem(
        params, seen: Seen, keys, *, training: bool, decoders=None, axis_name=None
    ) -> ObjectiveInputs:
        apply = bound(params)
        own = keys if training else None
        latents = apply("encode", seen, own)
        # What a network says of something that is not there may be anything, also what overflows.
        there = lambda q: None if q is None else mask_experts(q, seen.present)
        latents = latents._replace(experts=there(latents.experts), private=there(latents.private))
        say = apply if decoders is None else bound(decoders)
        return ObjectiveInputs(
            seen.present,
            lambda z: say("log_likelihood", z, seen, own),
            lambda q, there: kl_with_free_bits(
                q, standard_like(q), free_bits=config.free_bits if training else 0.0, present=there,
                axis_name=axis_name,
            ),
            apply("prior"), keys,
            posterior=apply("join", seen, own) if parts.get("joint") else None,
            experts=latents.experts, private=latents.private,
            networks=_Nets(apply, latents.features, keys), axis_name=axis_name,
        )  # fmt: skip

    def make_loss(objective, options: dict[str, Any], frozen: bool):
        def loss(params: Params, batch: Batch, key: Key, *, axis_name: collectives.AxisName = None):
            keys = example_keys(key, batch["index"])
            seen = see(config, names, batch, keys)
            # In the second stage the decoders are told nothing, and the joint encoder learns nothing.
            decoders = jax.lax.stop_gradient(params) if frozen else None
            p = problem(params, seen, keys, training=True, decoders=decoders, axis_name=axis_name)
            how = dict(options)
            if objective is not objectives.flow_match:
                beta = chosen("beta")
                if "step" in batch:
                    beta = beta * kl_warmup(
                        batch["step"], warmup=config.warmup, cycle=config.cycle, ramp=config.ramp
                    )
                how["beta"] = beta
            terms = objective(p, **how)
            weight = seen.present.any(axis=0).astype(jnp.float32)
            mean = functools.partial(collectives.batch_mean, weights=weight, axis_name=axis_name)
            return mean(terms.loss), {
                name: mean(jax.lax.stop_gradient(x)) for name, x in terms.metrics.items()
            }

        return loss

    def init(key: Key, batch: Batch) -> Params:
        one = init_inputs(batch)
        keys = example_keys(key, jnp.zeros(1, jnp.int32))
        return network.init(key, see(config, names, one), keys, method="everything")["params"]

    def infer(params, batch, given, key, samples: int = 1):
        seen = see(config, names, batch)
        keys = None if key is None else example_keys(key, batch["index"])
        p = problem(params, seen, keys, training=False)
        of_one = lambda given: member_infer(p, given[:, None] & seen.present, keys, samples)
        given = jnp.asarray(given)
        # Of several subsets one after the other, so that memory does not grow with them.
        return of_one(given) if given.ndim == 1 else jax.lax.map(of_one, given)

    member_infer = member.infer
    if member.infer is inference.from_flows:
        member_infer = functools.partial(
            member.infer, steps=config.hmc_steps, leapfrog=config.hmc_leapfrog, step_size=config.hmc_step_size
        )

    def unfold(params, shared, key):
        batch = len(shared)
        keys = None if key is None else example_keys(key, jnp.arange(batch))
        return unfold_shared(bound(params), network, shared, keys)

    def prior(params, key, count: int):
        keys = example_keys(key, jnp.arange(count))
        if config.model == "nexus":
            return jax.vmap(lambda k: jax.random.normal(k, (config.top,)))(fold_in_name(keys, "prior"))
        return inference.from_prior(bound(params)("prior"), keys, 1, count)[0]

    def log_likelihood(params, batch, key, given, told, samples: int):
        seen = see(config, names, batch)
        codes = infer(params, batch, given, key, samples)
        seen = seen._replace(present=seen.present & jnp.asarray(told)[:, None])
        terms = bound(params)("log_likelihood", codes.z, seen, None, False).sum(axis=0)
        return importance_bound(terms + codes.log_ratio)

    def predict(params, batch):
        codes = infer(params, batch, jnp.ones(len(names), bool), None)
        return {"latent": codes.shared[0]}

    options = {name: chosen(name) for name in member.options}
    if config.model == "mhvae":
        options["subsets"] = config.subsets
    loss = make_loss(member.objective, options, member.first is not None)
    stage = None
    if member.first is not None:
        joint = lambda path: path.split("/")[0].split("_")[0] in ("decoders", "trunks", "joint")
        stage = Stage(make_loss(member.first, {}, False), config.first, joint)

    def decode(params, z, key):
        return decode_all(network, bound(params), z, key)

    return MultimodalVAE(
        Method(init, loss, predict, stage), names, infer, decode, unfold, prior, log_likelihood
    )


class _Nets(NamedTuple):
    """What some objectives call by name: the network's methods with parameters and example at hand."""

    apply: Callable[..., Any]
    features: Array
    keys: Any

    def flow(self, z):
        return self.apply("flow", z)

    def unflow(self, base):
        return self.apply("unflow", base)

    def message(self, codes):
        return self.apply("message", codes)

    def encode_top(self, message):
        return self.apply("encode_top", message)

    def decode_top(self, top):
        return self.apply("decode_top", top)

    def top_down_pass(self, there, *keys):
        return self.apply("top_down_pass", self.features, there, *(keys or (self.keys,)))
