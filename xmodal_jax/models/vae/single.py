"""Autoencoders of one modality: one pair of encoder and decoder, and an objective by name (`MODELS`).

`make_vae` binds one to data; what it returns learns (`method`), encodes, reconstructs, generates and, where there is a
density, estimates likelihoods.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.random import example_keys, fold_in_name
from xmodal_jax.losses import adversarial
from xmodal_jax.losses import autoencoder as objectives
from xmodal_jax.losses.autoencoder import KERNELS
from xmodal_jax.losses.elbo import ESTIMATORS, importance_bound, kl_warmup, kl_with_free_bits
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms
from xmodal_jax.models.towers import init_inputs
from xmodal_jax.models.vae.generation import decode_all
from xmodal_jax.models.vae.modalities import Reading, kinds_of, see, sizes_of
from xmodal_jax.models.vae.networks import Group, Network, NetworkConfig, Seen
from xmodal_jax.nets.decoders import DECODERS, MLPDecoder, Size
from xmodal_jax.nets.vae import SCALES, Moments, log_scale_of
from xmodal_jax.probability.distributions import Normal, standard_noise
from xmodal_jax.types import GAN, Batch, ExampleKeys, Key, Method, Params, kind_of

CORRUPTIONS = ("gaussian", "masking")


class Member(NamedTuple):
    """One model of the family."""

    objective: Callable[..., ObjectiveTerms]
    options: tuple[str, ...] = ()
    """The fields among `OPTIONS` that it has."""
    beta: float = 1.0
    """What ``beta`` None stands for."""
    samples: int = 1
    """What ``samples`` None stands for."""
    stochastic: bool = True
    """What ``stochastic`` None stands for."""
    conditional: bool = False
    """Whether it is told the label."""
    opponent: str | None = None
    """The objective in `losses.adversarial.OBJECTIVES` of the two players, codes and critic; None: one player."""
    density: bool = False
    """Whether the encoder's density serves to estimate ``log p(x)``."""


_SCHEDULE = ("warmup", "cycle", "ramp")
_ELBO = ("samples", "free_bits", *_SCHEDULE)
_MATCHED = ("beta", "stochastic")
MODELS: dict[str, Member] = {
    "ae": Member(objectives.reconstruction, stochastic=False),
    "dae": Member(objectives.reconstruction, ("corruption", "noise"), stochastic=False),
    "vae": Member(objectives.elbo, _ELBO, density=True),
    "beta_vae": Member(objectives.elbo, ("beta", *_ELBO), beta=4.0, density=True),
    "cvae": Member(objectives.elbo, ("beta", "learn_prior", *_ELBO), conditional=True, density=True),
    "iwae": Member(
        objectives.importance_weighted, ("samples", "estimator", *_SCHEDULE), samples=5, density=True
    ),
    "wae_mmd": Member(
        objectives.mmd_to_prior, ("kernel", *_MATCHED, *_SCHEDULE), beta=10.0, stochastic=False
    ),
    "jsd_vae": Member(objectives.reconstruction, ("critic_steps", *_MATCHED), opponent="jsd"),
    "aae": Member(
        objectives.reconstruction, ("critic_steps", *_MATCHED), stochastic=False, opponent="non_saturating"
    ),
}
"""By name; a new one is an objective in `losses.autoencoder` and a line here."""

OPTIONS = (
    "beta", "samples", "estimator", "free_bits", *_SCHEDULE, "learn_prior", "corruption", "noise", "kernel",
    "stochastic", "critic_steps",
)  # fmt: skip
"""Fields of `VAEConfig` that only some models have; to set one that a model has not is an error."""


@dataclasses.dataclass(frozen=True)
class VAEConfig(Reading):
    """Which model, its sizes, and how each kind of data is read and made. ``MODELS`` has the options of each."""

    model: str = "vae"
    """A key of ``MODELS``."""
    latent: int = 64
    """Dimensions of the code."""
    hidden: int = 256
    """The layer between an encoder and its posterior, and of all smaller networks."""
    scale: str = "exp"
    """How scales of posteriors are made: "exp", "softplus" or "softmax"."""
    beta: float | None = None
    """Weight of the divergence from the prior (beta_vae, cvae, wae_mmd, jsd_vae, aae); None: 1, of beta_vae 4, of
    wae_mmd 10."""
    samples: int | None = None
    """Codes of each example in a step: their mean in an ELBO, K of the bound of iwae; None: 1, of iwae 5."""
    estimator: str = "iwae"
    """Of the gradient of iwae: "iwae" or "dreg"."""
    free_bits: float = 0.0
    """Nats that each dimension of the divergence may have for free (vae, beta_vae, cvae)."""
    warmup: int = 0
    """Steps over which the divergence's weight rises from 0 (of models of one player)."""
    cycle: int = 0
    """Steps after which it rises again; 0: never."""
    ramp: float = 0.5
    """Share of such a cycle that it rises."""
    learn_prior: bool = False
    """Whether the prior of a code is a network of the label (cvae)."""
    corruption: str = "gaussian"
    """What the encoder is given in place of its input (dae): with "gaussian" noise, or "masking": elements replaced
    by 0 (in images mid-grey), tokens by padding, labels by none."""
    noise: float = 0.3
    """The noise's standard deviation (pixels lie in [-1, 1]), or the probability of masking (dae)."""
    kernel: str = "imq"
    """A key of `losses.autoencoder.KERNELS` (wae_mmd)."""
    stochastic: bool | None = None
    """Whether the encoder says a normal distribution and not a point (wae_mmd, jsd_vae, aae); None: jsd_vae alone."""
    critic_steps: int = 1
    """Steps of the critic for each of the autoencoder (jsd_vae, aae)."""

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        for field in dataclasses.fields(self):
            if field.name in OPTIONS and field.name not in self.member.options:
                if getattr(self, field.name) != field.default:
                    own = ", ".join(self.member.options) or "none"
                    raise ValueError(
                        f"{self.model} has no {field.name}: leave it as it is (its options: {own})"
                    )
        for field, allowed in (
            ("scale", SCALES), ("estimator", ESTIMATORS), ("corruption", CORRUPTIONS), ("kernel", tuple(KERNELS))
        ):  # fmt: skip
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {allowed}, got {getattr(self, field)!r}")
        for field in ("latent", "hidden", "samples", "critic_steps"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")
        for field in ("beta", "free_bits", "warmup", "cycle", "noise"):
            if (getattr(self, field) or 0) < 0:
                raise ValueError(f"{field} must not be negative, got {getattr(self, field)}")
        if self.corruption == "masking" and self.noise >= 1:
            raise ValueError(f"noise is the probability of masking and must be below 1, got {self.noise}")
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp must lie in (0, 1], got {self.ramp}")

    @property
    def member(self) -> Member:
        """Its line in ``MODELS``."""
        return MODELS[self.model]

    def option(self, name: str) -> Any:
        """A field, or what None stands for."""
        value = getattr(self, name)
        return getattr(self.member, name) if value is None else value


class VAE(NamedTuple):
    """An autoencoder of one modality as pure functions. ``params``: what ``method.predict`` takes; of two players a
    dict with the autoencoder's under ``generator`` (`train.gan_step.eval_params`)."""

    method: Method | GAN
    encode: Callable[..., Array]
    """``encode(params, batch, key=None) -> [B, D]``: drawn from ``key`` and the examples' indices; the mean
    without."""
    decode: Callable[..., Array]
    """``decode(params, z [N, D], labels=None, key=None)``: images in [0, 1], ids, frames or classes, ``[N, ...]``;
    ids and classes are drawn from ``key``, the likeliest without. ``labels`` (cvae): ``[N]``, or a batch that holds
    them."""
    sample: Callable[..., Array]
    """``sample(params, key, count, labels=None)``: decoded draws from the prior; cvae needs ``labels [count]``."""
    log_likelihood: Callable[..., Array]
    """``log_likelihood(params, batch, key, samples) -> [B]``: the importance-weighted estimate of ``log p(x)`` (of
    cvae ``log p(x | label)``) by so many codes of the encoder, in nats, without the weight in the loss; 0 where x is
    missing. A lower bound in expectation. ("bernoulli" is no density of values between 0 and 1.) Raises ValueError for
    models whose codes have no density to weigh them by."""
    reconstruct: Callable[..., Array]
    """``reconstruct(params, batch)``: what is decoded of the mean code."""


class Heads(nn.Module):
    """What stands between encoder and decoder: the posterior ``[B, D]`` of features and condition, and the prior.

    A condition of no dimensions is none. The prior is N(0, 1), or ``learned`` from the condition.
    """

    latent: int
    hidden: int
    scale: str
    point: bool
    conditional: bool
    learned: bool

    def setup(self):
        if self.point:
            self.point_of = nn.Dense(self.latent, name="point")
        else:
            self.moments_of = Moments(self.latent, self.hidden if self.conditional else 0, name="posterior")
        if self.learned:
            self.prior_of = Moments(self.latent, self.hidden, name="prior")

    def posterior(
        self, features: Float[Array, "batch hidden"], condition: Float[Array, "batch classes"]
    ) -> Normal:
        """``q(z | x, c)``."""
        if self.point:
            mean = self.point_of(features)
            return Normal(mean, jnp.full_like(mean, -jnp.inf))
        mean, raw = self.moments_of(jnp.concatenate([features, condition], axis=-1))
        return Normal(mean, log_scale_of(raw, self.scale))

    def prior(self, condition: Float[Array, "batch classes"]) -> Normal:
        """``p(z | c)``."""
        if self.learned:
            mean, raw = self.prior_of(condition)
            return Normal(mean, log_scale_of(raw, self.scale))
        zeros = jnp.zeros((len(condition), self.latent))
        return Normal(zeros, zeros)

    def __call__(self, features, condition):
        return self.posterior(features, condition), self.prior(condition)


def size_of(batch: Batch, modality: str, config: VAEConfig, *, vocab_size: int = 0, classes: int = 0) -> Size:
    """What the decoder has to make, from a batch (arrays or shapes)."""
    sizes = dict(vocab_size=vocab_size, classes=classes)
    return sizes_of(batch, (modality,), config, **sizes)[modality]


def corrupt(kind: str, x: Array, keys: ExampleKeys, *, how: str = "gaussian", amount: float = 0.3) -> Array:
    """An input of a kind of data, ``[B, ...]``, with something missing: ``how`` and ``amount`` as ``corruption`` and
    ``noise`` of `VAEConfig` (Vincent et al. 2008, sec. 2.3; gaussian: Vincent et al. 2010, JMLR 11, sec. 3.3)."""
    keys = fold_in_name(keys, "corrupt")
    if how == "gaussian":
        return x + amount * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    lost = jax.vmap(lambda key: jax.random.bernoulli(key, amount, x.shape[1:]))(keys)
    return jnp.where(lost, jnp.asarray(-1 if kind == "label" else 0, x.dtype), x)


def make_vae(config: VAEConfig, modality: str, size: Size, *, classes: int = 0) -> VAE:
    r"""The model of ``config`` over one modality (an image, text, audio or a label) of this size (see `size_of`).

    One player minimises the mean over the global batch of its objective (`losses.autoencoder`); aux:
    ``reconstruction`` (nats, weighted), ``kl``, ``mmd``. Of two, the critic tells draws of the prior (real) from
    codes, and the autoencoder minimises :math:`-\log p(x \mid z) + \beta L_G(z)`, where :math:`L_G` is the f-GAN bound
    (`losses.adversarial.jsd_bound`), twice the Jensen-Shannon divergence at best (jsd_vae), or :math:`-\log D(z)`
    (aae; Makhzani et al. 2016, arXiv:1511.05644, sec. 2, reconstruction and regularisation in one step). aux:
    ``d_loss``, ``d_prior`` and ``d_code`` (mean logits), ``reconstruction``, ``g_loss``. Pretraining it is
    reconstruction alone.

    An example that lacks the modality (of cvae: or its label) has no influence. ``classes``: of the labels (cvae).

    Raises:
      ValueError: a modality that has no decoder, a likelihood or a corruption that does not fit it, or a number of
        classes or tokens that is missing.
    """
    member, kind = config.member, kind_of(modality)
    _check(config, kind, size, classes)
    kinds = kinds_of(config, {modality: size}, {kind})
    group = Group(kind, size, (modality,))
    network = Network(NetworkConfig(latent=0, hidden=config.hidden), kinds, (group,))
    heads = Heads(
        config.latent, config.hidden, config.scale, not config.option("stochastic"), member.conditional,
        config.learn_prior,
    )  # fmt: skip
    classes = classes if member.conditional else 0
    critic = MLPDecoder((1,), config.hidden, 2)

    def bound(params, part=network, name="network"):
        return lambda method, *args: part.apply({"params": params[name]}, *args, method=method)

    def head(params):
        return bound(params, heads, "heads")

    def own(params):
        """The autoencoder's parameters."""
        return params if member.opponent is None else params["generator"]

    def condition_of(labels, count: int) -> Float[Array, "batch classes"]:
        if not classes:
            return jnp.zeros((count, 0))
        if labels is None:
            raise ValueError("cvae makes data of a label: give labels, one for each code")
        labels = labels["label"] if isinstance(labels, Mapping) else labels
        return jax.nn.one_hot(jnp.asarray(labels), classes)

    def look(batch: Batch, keys=None) -> Seen:
        """The batch as the network takes it; ``keys``: changed as in training."""
        seen = see(config, (modality,), batch, keys)
        if member.conditional:
            known = jnp.asarray(batch["label"]) >= 0
            known &= batch.get("present", {}).get("label", known)
            seen = seen._replace(present=seen.present & known[None])
        if keys is not None and "corruption" in member.options and config.noise:
            x, mask = seen.inputs[modality]
            x = corrupt(kind, x, keys, how=config.corruption, amount=config.noise)
            seen = seen._replace(inputs={modality: (x, mask)})
        return seen

    def joined(z: Float[Array, "rows batch dim"], condition: Float[Array, "batch classes"]):
        """Codes as the decoder takes them, ``[1, R, B, D + C]``."""
        beside = jnp.broadcast_to(condition[None], (*z.shape[:2], condition.shape[-1]))
        return jnp.concatenate([z, beside], axis=-1)[None]

    def pose(
        params, batch: Batch, keys, *, training: bool, weighted: bool = True, axis_name=None
    ) -> ObjectiveInputs:
        noisy = keys if training else None
        seen = look(batch, noisy)
        condition = condition_of(batch, seen.present.shape[1])
        features = bound(params)("encode", seen, noisy).features[0]

        def log_likelihood(z):
            return bound(params)("log_likelihood", joined(z, condition), seen, noisy, weighted)[0]

        q, prior = head(params)("posterior", features, condition), head(params)("prior", condition)
        least = config.free_bits if training else 0.0
        kl_to_prior = lambda q, present: kl_with_free_bits(
            q, prior, free_bits=least, present=present, axis_name=axis_name
        )
        return ObjectiveInputs(
            seen.present[0], log_likelihood, kl_to_prior, prior, keys, posterior=q, axis_name=axis_name
        )

    def told(batch: Batch) -> dict[str, Any]:
        """What the objective is told."""
        names = ("samples", "estimator", "kernel")
        options = {name: config.option(name) for name in names if name in member.options}
        if "warmup" in member.options:
            options["beta"] = config.option("beta")
            if "step" in batch:
                how = {name: getattr(config, name) for name in _SCHEDULE}
                options["beta"] = options["beta"] * kl_warmup(batch["step"], **how)
        return options

    def averaged(terms: ObjectiveTerms, present, axis_name):
        mean = functools.partial(
            collectives.batch_mean, weights=present.astype(jnp.float32), axis_name=axis_name
        )
        total = mean(terms.loss)
        aux = {name: mean(x) for name, x in terms.metrics.items()}
        for name, (share, weight) in terms.batch_terms.items():
            total, aux[name] = total + weight * share, share
        return total, jax.lax.stop_gradient(aux)

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: collectives.AxisName = None):
        keys = example_keys(key, batch["index"])
        p = pose(params, batch, keys, training=True, axis_name=axis_name)
        return averaged(member.objective(p, **told(batch)), p.present, axis_name)

    def init(key: Key, batch: Batch) -> Params:
        one = init_inputs(batch)
        seen, keys = look(one), example_keys(key, jnp.zeros(1, jnp.int32))
        condition = condition_of(one, 1)
        codes = joined(jnp.zeros((1, 1, config.latent)), condition)

        def both(net):
            net.log_likelihood(codes, seen, keys)
            return net.encode(seen, keys)

        said, variables = network.init_with_output(fold_in_name(key, "network"), method=both)
        between = heads.init(fold_in_name(key, "heads"), said.features[0], condition)
        return {"network": variables["params"], "heads": between["params"]}

    def encode(params, batch: Batch, key: Key | None = None) -> Float[Array, "batch dim"]:
        keys = None if key is None else example_keys(key, batch["index"])
        p = pose(own(params), batch, keys, training=False)
        return p.posterior.mean if keys is None else objectives.draw_latents(p, 1)[0]

    def decode(params, z, labels=None, key: Key | None = None) -> Array:
        codes = joined(z[None], condition_of(labels, len(z)))
        return decode_all(network, bound(own(params)), codes, key)[modality][0]

    def sample(params, key: Key, count: int, labels=None) -> Array:
        prior = head(own(params))("prior", condition_of(labels, count))
        if len(prior.mean) != count:
            raise ValueError(f"one label for each of {count} samples, got {len(prior.mean)}")
        noise = standard_noise(example_keys(key, jnp.arange(count)), "prior", (config.latent,))
        return decode(params, prior.reparametrize(noise), labels, fold_in_name(key, "decode"))

    def log_likelihood(params, batch: Batch, key: Key, samples: int) -> Float[Array, "batch"]:
        if not member.density:
            able = ", ".join(name for name, each in MODELS.items() if each.density)
            raise ValueError(
                f"{config.model} learns no density of codes given the data to weigh them by; of {able} log p(x) "
                "can be estimated"
            )
        p = pose(params, batch, example_keys(key, batch["index"]), training=False, weighted=False)

        def log_weight(k):
            # One code at a time: thousands of decodings of a batch need not fit into memory at once.
            each = p._replace(keys=jax.vmap(jax.random.fold_in, (0, None))(p.keys, k))
            z = objectives.draw_latents(each, 1)
            return (p.log_likelihood(z) + objectives.prior_log_ratio(p.posterior, p.prior, z))[0]

        bound_of_all = importance_bound(jax.lax.map(log_weight, jnp.arange(samples), batch_size=8))
        return jnp.where(p.present, bound_of_all, 0.0)

    def reconstruct(params, batch: Batch) -> Array:
        return decode(params, encode(params, batch), batch if classes else None)

    def predict(params, batch: Batch) -> dict[str, Array]:
        return {"latent": encode(params, batch)}

    method = Method(init, loss, predict)
    if member.opponent is not None:
        method = _players(config, init, pose, look, critic, predict)
    return VAE(method, encode, decode, sample, log_likelihood, reconstruct)


def _players(config: VAEConfig, init_own, pose, look, critic: MLPDecoder, predict) -> GAN:
    """The autoencoder as ``generator`` of codes, the critic as ``discriminator``."""
    game = adversarial.OBJECTIVES[config.member.opponent]

    def judge(params, codes):
        return critic.apply({"params": params}, codes)[:, 0]

    def mean_of(batch, axis_name):
        ok = look(batch).present[0]
        weights = ok.astype(jnp.float32)
        return ok, functools.partial(collectives.batch_mean, weights=weights, axis_name=axis_name)

    def of_prior(keys):
        return standard_noise(keys, "prior", (config.latent,))

    def init(key: Key, batch: Batch):
        judging = critic.init(fold_in_name(key, "critic"), jnp.zeros((1, config.latent)))["params"]
        return {"generator": init_own(key, batch), "discriminator": judging}, {}

    def generate(generator, variables, batch: Batch, key: Key, *, axis_name=None):
        keys = fold_in_name(example_keys(key, batch["index"]), "generate")
        terms = config.member.objective(pose(generator, batch, keys, training=True, axis_name=axis_name))
        return {"code": terms.latent, "reconstruction": terms.loss}, variables

    def d_loss(discriminator, variables, batch: Batch, made, key: Key, step, *, axis_name=None):
        keys = fold_in_name(example_keys(key, batch["index"]), "discriminate")
        ok, mean = mean_of(batch, axis_name)
        real, fake = judge(discriminator, of_prior(keys)), judge(discriminator, made["code"])
        share = mean(game.discriminator(real, fake, present=ok, axis_name=axis_name))
        aux = {"d_loss": share, "d_prior": mean(real), "d_code": mean(fake)}
        return share, (jax.lax.stop_gradient(aux), variables)

    def g_loss(made, discriminator, variables, batch: Batch, key: Key, *, axis_name=None):
        keys = fold_in_name(example_keys(key, batch["index"]), "persuade")
        ok, mean = mean_of(batch, axis_name)
        real, fake = judge(discriminator, of_prior(keys)), judge(discriminator, made["code"])
        aux = {
            "reconstruction": mean(made["reconstruction"]),
            "g_loss": mean(game.generator(fake, real, present=ok, axis_name=axis_name)),
        }
        share = aux["reconstruction"] + config.option("beta") * aux["g_loss"]
        return share, jax.lax.stop_gradient(aux)

    def pretrain_generator(generator, variables, batch: Batch, key: Key, *, axis_name=None):
        keys = fold_in_name(example_keys(key, batch["index"]), "rehearse")
        terms = config.member.objective(pose(generator, batch, keys, training=True, axis_name=axis_name))
        share = mean_of(batch, axis_name)[1](terms.loss)
        return share, ({"reconstruction": jax.lax.stop_gradient(share)}, variables)

    return GAN(
        init,
        generate,
        d_loss,
        g_loss,
        lambda params: params,
        predict,
        config.critic_steps,
        pretrain_generator,
    )


def _check(config: VAEConfig, kind: str, size: Size, classes: int) -> None:
    if kind not in DECODERS:
        raise ValueError(f"an autoencoder takes {', '.join(DECODERS)}, got {kind}")
    if kind in ("text", "label") and size.values < 2:
        raise ValueError(f"size.values must say how many values {kind} takes, got {size.values}")
    if config.member.conditional and (kind == "label" or classes < 2):
        raise ValueError(
            "cvae is conditioned on the label: it needs another modality and classes of 2 at least, "
            f"got {kind} and {classes}"
        )
    dense = kind in ("image", "audio")
    if "corruption" in config.member.options and config.corruption == "gaussian" and not dense:
        raise ValueError(f"gaussian noise on {kind}: set corruption to 'masking'")
