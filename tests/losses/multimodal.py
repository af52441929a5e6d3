"""Small multimodal problems with everything drawn beforehand, for the objectives and for the oracle: linear decoders
with Gaussian noise, and a table of objectives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from tests.oracles import multimodal as oracle
from xmodal_jax.core.random import example_keys
from xmodal_jax.losses import multimodal_elbo as objectives
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms
from xmodal_jax.probability import distributions
from xmodal_jax.probability.distributions import Laplace, Normal, kl, standard_like
from xmodal_jax.probability.priors import Prior

M, B, D, P, T, H, X, C, K = 4, 7, 3, 2, 2, 5, 6, 3, 3
SCALE = 0.8
PRESENT = np.array(
    [[1, 1, 0, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1, 1]], bool
)
ALPHA, PRIVATE_BETA, TOP_BETA, GAMMA = 0.3, 0.6, 1.7, 0.4
CORRELATION, ENTROPY_WEIGHT = 0.4, 3.0
AFTER = np.array([1.0, -0.7, 0.4, 2.0, 1.3, -1.1, 0.9])
"""What the examples' losses are multiplied by before they are summed."""

AXES: dict[str, tuple] = {
    **dict.fromkeys(["mean", "log_scale", "own_mean", "own_log_scale", "w", "offset", "x", "present"], ("m",)),
    **dict.fromkeys(["aux_mean", "aux_log_scale", "stretch", "shift", "message", "tell", "seen"], ("m",)),
    "choose_subset": ("m",), "choose_expert": ("m",), "choose_middle": (None, "m"), "choose_any": (None, "m"),
    "each": ("m",), "rows": ("1+m",), "rows_and_two": ("1+m",), "own_rows": ("m", "1+m"), "every": ("s",),
    "subset_logits": ("s",),
    "first": (None, "m"), "many": (None, "m"), "first_own": (None, "m"), "many_own": (None, "m"),
    "first_aux": ("m", None, "m"), "many_aux": ("m", None, "m"),
}  # fmt: skip
"""What the first axes of an array go over: the modalities, everything and then the modalities (and what is left), all
subsets."""


def subset_of(rng, members, smallest=1, largest=None):
    options = oracle.subsets(list(members), smallest, largest)
    return np.isin(np.arange(M), options[rng.integers(len(options))])


def make_world(seed=0, present=PRESENT, gone=None, dim=D):
    """All that a problem is made of, in float64. ``gone``: a modality that no choice has in it."""
    rng = np.random.default_rng(seed)
    n = lambda *shape, scale=1.0: scale * rng.normal(size=shape)
    rest = [m for m in range(M) if m != gone]
    there = [np.flatnonzero(column) for column in present.T]
    across = lambda draw: np.stack([draw(b) for b in range(B)], axis=-1)
    largest = len(rest) - 1
    return {
        "mean": n(M, B, dim), "log_scale": n(M, B, dim, scale=0.3), "present": present,
        "own_mean": n(M, B, P), "own_log_scale": n(M, B, P, scale=0.3),
        "joint_mean": n(B, dim), "joint_log_scale": n(B, dim, scale=0.3),
        "w": n(M, X, dim + P), "offset": n(M, X), "x": n(M, B, X),
        "components": n(C, dim), "component_log_scale": n(C, dim, scale=0.3), "logits": n(C),
        "own_prior": n(P), "own_prior_log_scale": n(P, scale=0.3),
        "aux_mean": n(M, P), "aux_log_scale": n(M, P, scale=0.3),
        "stretch": n(M, dim, scale=0.3), "shift": n(M, dim),
        "message": n(M, H, dim), "gather": n(T, H), "tell": n(M, dim, T),
        "seen": across(lambda b: subset_of(rng, there[b])),
        "choose_subset": across(lambda b: subset_of(rng, there[b])),
        "choose_expert": across(lambda b: subset_of(rng, there[b], 1, 1)),
        "choose_middle": np.stack([across(lambda b: subset_of(rng, rest, 2, largest)) for _ in range(2)]),
        "choose_any": np.stack([
            across(lambda b: subset_of(rng, there[b])), across(lambda b: subset_of(rng, rest)),
        ]),
        "one": n(B, dim), "whole": n(1, B, dim), "each": n(M, B, dim), "rows": n(1 + M, B, dim),
        "whole_and_two": n(3, B, dim),
        "rows_and_two": n(3 + M, B, dim), "own_rows": n(M, 1 + M, B, P), "every": n(2**M - 1, B, dim),
        "two": n(2, B, dim), "above": n(B, T),
        "first": n(1, M, B, dim), "first_own": n(1, M, B, P), "first_aux": n(M, 1, M, B, P),
        "many": n(K, M, B, dim), "many_own": n(K, M, B, P), "many_aux": n(M, K, M, B, P),
        "subset_logits": n(2**M - 1),
    }  # fmt: skip


def restricted(world, order):
    """The same with these modalities alone, in this order."""
    order, count = np.array(order), len(world["mean"])
    ways = oracle.subsets(range(count))
    index = {
        "m": order,
        "s": [ways.index(tuple(sorted(order[list(s)]))) for s in oracle.subsets(range(len(order)))],
    }
    out = {}
    for name, x in world.items():
        for axis, what in enumerate(AXES.get(name, ())):
            if what == "1+m":
                x = np.take(x, [0, *(1 + order), *range(1 + count, x.shape[axis])], axis=axis)
            elif what:
                x = np.take(x, index[what], axis=axis)
        out[name] = x
    return out


class Case(NamedTuple):
    """An objective, by the library and by the oracle."""

    run: Callable[..., ObjectiveTerms]
    """``run(problem, beta)``."""
    by_oracle: Callable[..., float]
    """``by_oracle(example, held)``: of an example, ``held`` being the same where there is no gradient."""
    draws: Mapping[str, str]
    """What noise the objective draws, and which of the world's that is."""
    private: bool = False
    clusters: int = 0
    """Components of the prior; 0: standard."""
    family: type = Normal
    chooses: str = ""
    """What of the world `draw_uniform_index` and `draw_allowed` find."""
    sizes: tuple[int, int] = (1, 0)
    """Of the subsets they choose from: the smallest, and the largest less the number of modalities."""
    experts: bool = True
    """Whether all experts that are there learn in each example."""


class _TopDownPass(NamedTuple):
    latents: Any
    divergences: Any


class Nets:
    """Networks of a few lines."""

    def __init__(self, t, noise):
        self.t, self.noise = t, noise

    def flow(self, z):
        base = z[None] * jnp.exp(self.t["stretch"])[:, None] + self.t["shift"][:, None]
        log_det = jnp.broadcast_to(self.t["stretch"].sum(axis=-1)[:, None], base.shape[:2])
        return base, log_det

    def message(self, codes):
        return jnp.tanh(jnp.einsum("mhd,mbd->mbh", self.t["message"], codes))

    def encode_top(self, message):
        found = message @ self.t["gather"].T
        return Normal(found, 0.3 * found)

    def decode_top(self, top):
        return jnp.einsum("mdt,bt->mbd", self.t["tell"], top)

    def top_down_pass(self, there, keys):
        precision = jnp.where(there[..., None], jnp.exp(-2 * self.t["log_scale"])[None], 0.0)
        total = 1 + precision.sum(axis=1)
        mean = (precision * self.t["mean"][None]).sum(axis=1) / total
        q = Normal(mean, -0.5 * jnp.log(total))
        levels = [kl(q, standard_like(q)).sum(axis=-1), jnp.square(mean).sum(axis=-1)]
        return _TopDownPass(q.reparametrize(self.noise[: len(there)]), jnp.stack(levels, axis=-1))


def make_inputs(t, case: Case) -> ObjectiveInputs:
    present, batch = t["present"], t["mean"].shape[1]

    def log_likelihood(z):
        w = t["w"][:, :, : z.shape[-1]]
        mean = jnp.einsum("mxd,mrbd->mrbx", w, z) + t["offset"][:, None, None]
        scale = jnp.full_like(mean, np.log(SCALE))
        terms = Normal(mean, scale).log_prob(jnp.broadcast_to(t["x"][:, None], mean.shape))
        return jnp.where(present[:, None], terms.sum(axis=-1), 0.0)

    def to_prior(q, there):
        # Whoever uses what is not there gets no number.
        return jnp.where(there, kl(q, standard_like(q)).sum(axis=-1), t["absent"])

    family, dim = case.family, t["mean"].shape[-1]
    components, logits = family(jnp.zeros((1, dim)), jnp.zeros((1, dim))), jnp.zeros(1)
    if case.clusters:
        components = family(t["components"], t["component_log_scale"])
        logits = t["logits"]
    prior = Prior(components, logits)
    if case.private:
        prior = prior._replace(
            private=family(t["own_prior"], t["own_prior_log_scale"]),
            auxiliary=family(t["aux_mean"], t["aux_log_scale"]),
        )
    return ObjectiveInputs(
        present, log_likelihood, to_prior, prior, example_keys(jax.random.key(0), jnp.arange(batch)),
        posterior=Normal(t["joint_mean"], t["joint_log_scale"]),
        experts=family(t["mean"], t["log_scale"]),
        private=family(t["own_mean"], t["own_log_scale"]) if case.private else None,
        networks=Nets(t, t[case.draws["levels"]] if "levels" in case.draws else None),
    )  # fmt: skip


def terms_of(case: Case, t, beta=None) -> ObjectiveTerms:
    """The objective on what `as_tree` gives, with the world's draws in place of random ones."""
    p = make_inputs(t, case)

    def noise(keys, name, shape, family=Normal):
        assert keys is p.keys and family is case.family
        drawn = t[case.draws[name]]
        assert drawn.shape == (*shape[:-1], len(keys), shape[-1]), name
        return drawn

    def several(keys, name, allowed, count):
        assert keys is p.keys and len(t["chosen"]) >= count
        return t["chosen"][:count]

    # What nets draw themselves goes by another name.
    patch = dict(
        draw_uniform_index=lambda *args: several(*args, 1)[0], draw_allowed=several,
        modality_dropout=lambda keys, present, rate: t["seen"] if rate else present,
    )  # fmt: skip
    distribution_noise = mock.patch.object(distributions, "standard_noise", noise)
    with mock.patch.multiple(objectives, **patch), distribution_noise:
        return case.run(p, t["beta"] if beta is None else beta)


def as_tree(world, case: Case):
    """The world in float32, choices as rows of the table of subsets."""
    t = {k: jnp.asarray(v, bool if v.dtype == bool else jnp.float32) for k, v in world.items()}
    t |= {"beta": jnp.linspace(0.5, 2.0, B), "absent": jnp.float32(jnp.nan)}
    if case.chooses:
        count = len(world["mean"])
        members = world[case.chooses].reshape(-1, count, B)
        smallest, largest = case.sizes[0], count + case.sizes[1]
        if case.chooses == "choose_expert":
            largest = 1
        table = oracle.subsets(range(count), smallest, largest)
        t["chosen"] = jnp.asarray(
            [[table.index(tuple(np.flatnonzero(column))) for column in of_one.T] for of_one in members]
        )
    return t


class Example:
    """One example as the oracle takes it: what it has of the world, as lists."""

    def __init__(self, world, b: int, case: Case):
        order = np.flatnonzero(world["present"][:, b])
        self.world, self.b, self.case = restricted(world, order), b, case
        self.beta = np.linspace(0.5, 2.0, B)[b]
        w = self.world
        self.count = len(order)
        # Of which of the drawn subsets nothing is missing.
        members = lambda x, name: x[name][..., b].sum(axis=1)
        self.full = {k: members(world, k) == members(w, k) for k in ("choose_any", "choose_middle")}
        self.experts = [(m, np.exp(s)) for m, s in zip(self["mean"], self["log_scale"], strict=True)]
        self.private = [(m, np.exp(s)) for m, s in zip(self["own_mean"], self["own_log_scale"], strict=True)]
        self.joint = self["joint_mean"], np.exp(self["joint_log_scale"])
        self.auxiliary = [(m, np.exp(s)) for m, s in zip(w["aux_mean"], w["aux_log_scale"], strict=True)]
        self.own_prior = w["own_prior"], np.exp(w["own_prior_log_scale"])
        self.rec = [functools.partial(self.nats, m) for m in range(self.count)]
        self.log_prob = oracle.normal_log_prob if case.family is Normal else oracle.laplace_log_prob

    def __getitem__(self, name):
        return self.world[name][..., self.b, :]

    def nats(self, m, z):
        mean = self.world["w"][m][:, : len(z)] @ z + self.world["offset"][m]
        return -oracle.normal_log_prob(self["x"][m], mean, SCALE).sum()

    def score(self, z):
        """The gradient of the log-likelihood of all by z."""
        found = np.zeros_like(z)
        for m in range(self.count):
            w = self.world["w"][m][:, : len(z)]
            found += w.T @ (self["x"][m] - w @ z - self.world["offset"][m]) / SCALE**2
        return found

    def log_prior(self, z):
        if not self.case.clusters:
            return self.log_prob(z, 0.0, 1.0).sum()
        w = self.world
        components = zip(w["components"], np.exp(w["component_log_scale"]), strict=True)
        return oracle.clusters_log_prob(z, list(components), w["logits"], self.log_prob)

    def chosen(self, name):
        """What is left of the choices, as lists of places."""
        masks = self.world[name][..., self.b].reshape(-1, self.count)
        return [tuple(np.flatnonzero(mask)) for mask in masks]

    def flows(self):
        w = self.world
        flow = lambda m, z: (z * np.exp(w["stretch"][m]) + w["shift"][m], w["stretch"][m].sum())
        return [functools.partial(flow, m) for m in range(self.count)]

    def nexus_nets(self):
        w = self.world
        messages = [lambda z, a=a: np.tanh(a @ z) for a in w["message"]]
        gather = lambda h: (w["gather"] @ h, np.exp(0.3 * (w["gather"] @ h)))
        return messages, gather, [lambda top, a=a: a @ top for a in w["tell"]]

    def descent(self, members, noise):
        q = oracle.product([self.experts[m] for m in members], prior=1.0)
        return oracle.at(q, noise), [oracle.to_prior(q), (q[0] ** 2).sum()]


def by_oracle(case: Case, world, held=None):
    """The loss of each example."""
    pairs = [(Example(world, b, case), Example(held or world, b, case)) for b in range(B)]
    return np.array([case.by_oracle(*pair) for pair in pairs])


def _mvae(single, subsets, draws):
    def of(e, held):
        every = tuple(range(e.count))
        chosen = [every]
        if single:
            chosen += [(m,) for m in every]
        # A drawn subset counts where all of it is there, and more than it.
        drawn = zip(e.chosen("choose_middle"), e.full["choose_middle"], strict=True)
        chosen += [s if full and len(s) < e.count else () for s, full in drawn][:subsets]
        kept = [(s, noise) for s, noise in zip(chosen, e[draws], strict=True) if s]
        return oracle.mvae(e.rec, e.experts, *zip(*kept, strict=True), e.beta)

    run = lambda p, beta: objectives.mvae(p, beta=beta, single=single, subsets=subsets)
    return Case(run, of, {"products": draws}, chooses="choose_middle" if subsets else "", sizes=(2, -1))


def _mopoe(prior):
    def of(e, held):
        has = {
            "never": lambda s: False,
            "always": lambda s: True,
            "full": lambda s: len(s) == e.count,
        }
        powerset, chosen = oracle.subsets(range(e.count)), e.chosen("choose_subset")[0]
        return oracle.mopoe(e.rec, e.experts, powerset, chosen, e["one"], e.beta, has[prior])

    run = lambda p, beta: objectives.mopoe(p, beta=beta, prior=prior)
    return Case(run, of, {"product": "one"}, chooses="choose_subset")


def _mmvae(samples=K, estimator="iwae", **kind):
    name = "first" if samples == 1 else "many"
    draws = {"shared": name, "private": f"{name}_own", "auxiliary": f"{name}_aux"}

    def of(e, held):
        plus = None
        if e.case.private:
            plus = e.private, e[draws["private"]], e.own_prior, e.auxiliary, e[draws["auxiliary"]]
        how = dict(log_prob=e.log_prob, plus=plus)
        return oracle.mmvae(e.rec, e.experts, e[name], e.log_prior, e.beta, **how)

    run = lambda p, beta: objectives.mmvae(p, beta=beta, samples=samples, estimator=estimator)
    return Case(run, of, draws, **kind)


def _nexus(dropout):
    def of(e, held):
        seen = np.flatnonzero(e.world["seen"][:, e.b]) if dropout else range(e.count)
        codes = [oracle.at(q, noise) for q, noise in zip(held.experts, held["each"], strict=True)]
        weights = e.beta, TOP_BETA, GAMMA
        return oracle.nexus(
            e.rec, e.experts, e.nexus_nets(), seen, e["each"], e["above"], *weights, held=codes
        )

    run = lambda p, beta: objectives.nexus(p, beta=beta, top_beta=TOP_BETA, gamma=GAMMA, dropout=dropout)
    return Case(run, of, {"experts": "each", "top": "above"})


def _mhvae(subsets):
    def of(e, held):
        chosen = e.chosen("choose_any")[:subsets] if subsets else oracle.subsets(range(e.count))
        noise = e["two" if subsets else "every"]
        kept = zip(chosen, noise, strict=True)
        # A drawn subset counts where all of it is there.
        full = e.full["choose_any"][:subsets] if subsets else [True] * len(chosen)
        descents = [e.descent(s, n) for (s, n), whole in zip(kept, full, strict=True) if whole]
        return oracle.mhvae(e.rec, descents, e.beta)

    run = lambda p, beta: objectives.mhvae(p, beta=beta, subsets=subsets)
    chooses = "choose_any" if subsets else ""
    draws = {"levels": "two" if subsets else "every"}
    return Case(run, of, draws, chooses=chooses, experts=not subsets)


def _mmvm(alpha=0.0, samples=0):
    def of(e, held):
        if samples:
            divergence = oracle.mmvm_by_samples(e.experts, e["many"][:samples], alpha)
        else:
            divergence = oracle.mmvm_bound(e.experts, alpha)
        return oracle.mmvm(e.rec, e.experts, e["each"], divergence, e.beta)

    run = lambda p, beta: objectives.mmvm(p, beta=beta, alpha=alpha, kl_samples=samples)
    return Case(run, of, {"experts": "each", "divergence": "many"})


def _code_vae(subsets=0):
    def of(e, held):
        options = dict(correlation=CORRELATION, entropy_weight=ENTROPY_WEIGHT)
        drawn, noise = None, e["every"]
        if subsets:
            ways, whole = oracle.subsets(range(e.count)), e.full["choose_any"][:subsets]
            chosen = zip(e.chosen("choose_any")[:subsets], e["two"], whole, strict=True)
            kept = [(ways.index(members), n) for members, n, is_whole in chosen if is_whole]
            drawn, noise = zip(*kept, strict=True)
            options["share"] = len(ways) / min(subsets, len(ways))
        return oracle.code_vae(
            e.rec, e.experts, e.world["subset_logits"], noise, e.beta, drawn=drawn, **options
        )

    run = lambda p, beta: objectives.code_vae(
        p, p.networks.t["subset_logits"], beta=beta, correlation=CORRELATION,
        entropy_weight=ENTROPY_WEIGHT, subsets=subsets,
    )  # fmt: skip
    chooses, draws = ("choose_any", "two") if subsets else ("", "every")
    return Case(run, of, {"subsets": draws}, chooses=chooses, experts=not subsets)


def _unimodal(family=Normal):
    kl_of = oracle.normal_kl if family is Normal else oracle.laplace_kl
    of = lambda e, held: oracle.unimodal_elbos(e.rec, e.experts, e["each"], e.beta, kl_of)
    run = lambda p, beta: objectives.unimodal_elbos(p, beta=beta)
    return Case(run, of, {"experts": "each"}, family=family)


CASES: dict[str, Case] = {
    "joint_elbo": Case(
        lambda p, beta: objectives.joint_elbo(p, beta=beta),
        lambda e, held: oracle.joint_elbo(e.rec, e.joint, e["one"], e.beta),
        {"joint": "one"},
        experts=False,
    ),
    "jmvae": Case(
        lambda p, beta: objectives.jmvae(p, beta=beta, alpha=ALPHA),
        lambda e, held: oracle.jmvae(e.rec, e.joint, e.experts, e["one"], e.beta, ALPHA),
        {"joint": "one"},
    ),
    "unimodal_elbos": _unimodal(),
    "unimodal_elbos, laplace": _unimodal(Laplace),
    "mvae": _mvae(True, 2, "rows_and_two"),
    "mvae, no further subsets": _mvae(True, 0, "rows"),
    "mvae, no single ones": _mvae(False, 2, "whole_and_two"),
    "mvae, whole": _mvae(False, 0, "whole"),
    "mopoe, full": _mopoe("full"),
    "mopoe, always": _mopoe("always"),
    "mopoe, never": _mopoe("never"),
    "mmjsd": Case(
        lambda p, beta: objectives.mmjsd(p, beta=beta),
        lambda e, held: oracle.mmjsd(e.rec, e.experts, e.chosen("choose_expert")[0][0], e["one"], e.beta),
        {"experts": "one"},
        chooses="choose_expert",
    ),
    "mvtcae": Case(
        lambda p, beta: objectives.mvtcae(p, beta=beta, alpha=ALPHA),
        lambda e, held: oracle.mvtcae(e.rec, e.experts, e["one"], e.beta, ALPHA),
        {"product": "one"},
    ),
    "crmvae": Case(
        lambda p, beta: objectives.crmvae(p, beta=beta),
        lambda e, held: oracle.crmvae(e.rec, e.experts, e["one"], e["each"], e.beta),
        {"product": "one", "experts": "each"},
    ),
    "dmvae": Case(
        lambda p, beta: objectives.dmvae(p, beta=beta, private_beta=PRIVATE_BETA),
        lambda e, held: oracle.dmvae(
            e.rec, e.experts, e.private, e["rows"], e["own_rows"], e.beta, PRIVATE_BETA
        ),
        {"shared": "rows", "private": "own_rows"},
        private=True,
    ),
    "mmvae, one sample": _mmvae(1),
    "mmvae": _mmvae(),
    "mmvae, dreg": _mmvae(estimator="dreg"),
    "mmvae, laplace": _mmvae(family=Laplace),
    "mmvae, clusters": _mmvae(clusters=C),
    "mmvae_plus": _mmvae(private=True),
    "mmvae_plus, dreg": _mmvae(estimator="dreg", private=True),
    "cmvae": _mmvae(private=True, clusters=C),
    "flow_match": Case(
        lambda p, beta: objectives.flow_match(p),
        lambda e, held: oracle.flow_match(held.joint, e.experts, e.flows(), e["one"]),
        {"joint": "one"},
    ),
    "nexus": _nexus(0.0),
    "nexus, dropout": _nexus(0.5),
    "mhvae": _mhvae(0),
    "mhvae, two subsets": _mhvae(2),
    "mmvm": _mmvm(),
    "mmvm, standard normal": _mmvm(ALPHA),
    "mmvm, by samples": _mmvm(samples=K),
    "mmvm, standard normal, by samples": _mmvm(ALPHA, K),
    "code_vae": _code_vae(),
    "code_vae, two subsets": _code_vae(2),
}
