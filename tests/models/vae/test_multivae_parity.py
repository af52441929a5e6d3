"""The objectives of multivae 1.0.3, on the same weights, data and noise: values and gradients; see
requirements-parity.txt.

Where it differs on purpose or by a defect, the test says so and shows that nothing else does. Its losses are means over
the batch for some models and sums for others.
"""

import functools
import zlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.random import example_keys
from xmodal_jax.losses import multimodal_elbo as objectives
from xmodal_jax.losses.objective import ObjectiveInputs
from xmodal_jax.models.vae.modalities import LabelConfig, sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MHVAEConfig
from xmodal_jax.nets.decoders import MLPDecoderConfig
from xmodal_jax.nets.vae import to_log_scale
from xmodal_jax.probability import distributions
from xmodal_jax.probability.distributions import Laplace, Normal, kl, standard_like
from xmodal_jax.probability.likelihoods import dense_log_likelihood
from xmodal_jax.probability.priors import Prior

torch = pytest.importorskip("torch")
pytest.importorskip("multivae")
theirs = pytest.importorskip("tests.models.vae.multivae_models")

M, B, D, P, K, T, C = 3, 7, 2, 2, 3, 4, 3
DIMS = {"a": 3, "b": 4, "c": 5}
FAMILY = {"a": ("normal", 0.5), "b": ("laplace", 0.75), "c": ("bernoulli", 1.0)}
WEIGHT = {"a": 1.0, "b": 2.0, "c": 0.5}
RNG = np.random.default_rng(0)
X = {m: RNG.normal(size=(B, d)).astype(np.float32) for m, d in DIMS.items()}
X["c"] = (X["c"] > 0).astype(np.float32)
THERE = {"a": [1, 1, 0, 1, 1, 0, 1], "b": [1, 0, 1, 1, 1, 0, 0], "c": [1, 1, 1, 1, 0, 1, 0]}


@pytest.fixture(scope="module")
def multivae():
    return theirs.load()


def make_arrays(private=0, seed=1):
    """Of all networks: linear maps, as ``[in, out]``."""
    rng = np.random.default_rng(seed)
    out = {}

    def affine(name, inputs, outputs):
        out[f"{name}/w"] = rng.normal(size=(inputs, outputs)) / inputs**0.5
        out[f"{name}/b"] = 0.3 * rng.normal(size=outputs)

    for m, d in DIMS.items():
        affine(f"encoder/{m}", d, 2 * D + 2 * private)
        affine(f"decoder/{m}", D + private, d)
        affine(f"message/{m}", D, T)
        affine(f"code/{m}", T, D)
        out[f"flow/{m}"] = 0.5 * rng.normal(size=(2, D))
        out[f"auxiliary/{m}"] = 0.5 * rng.normal(size=P)
    affine("joint", sum(DIMS.values()), 2 * D)
    affine("gather", T, 2 * T)
    out |= {
        "prior": 0.5 * rng.normal(size=D),
        "clusters": rng.normal(size=(C, D)),
        "logits": rng.normal(size=C),
    }
    return {k: v.astype(np.float32) for k, v in out.items()}


# -- Ours --------------------------------------------------------------------------------------------------------


def affine(w, name, x):
    return jnp.einsum("...i,io->...o", x, w[f"{name}/w"]) + w[f"{name}/b"].reshape(
        (1,) * (x.ndim - 1) + (-1,)
    )


class Noise:
    """By name, whatever asks for it; kept as it was drawn."""

    def __init__(self):
        self.drawn = {}

    def __call__(self, keys, name, shape, family=Normal):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        size = (*shape[:-1], keys.shape[0], shape[-1])
        self.drawn[name] = (rng.normal if family is Normal else rng.laplace)(size=size).astype(np.float32)
        return jnp.asarray(self.drawn[name])


def to_prior(q, there):
    return kl(q, standard_like(q)).sum(axis=-1)


def problem_of(w, *, family=Normal, scale="exp", private=0, clusters=False, learn_prior=False, present=None):
    said = [affine(w, f"encoder/{m}", jnp.asarray(X[m])) for m in DIMS]
    part = lambda k, size: jnp.stack([s[:, k : k + size] for s in said])
    posterior = lambda start, size: family(part(start, size), to_log_scale(part(start + size, size), scale))
    present = jnp.ones((M, B), bool) if present is None else present

    def log_likelihood(z):
        found = []
        for k, m in enumerate(DIMS):
            kind, s = FAMILY[m]
            x = jnp.asarray(X[m])
            found.append(WEIGHT[m] * dense_log_likelihood(kind, affine(w, f"decoder/{m}", z[k]), x, scale=s))
        return jnp.where(present[:, None], jnp.stack(found), 0.0)

    zeros = lambda *size: jnp.zeros(size)
    centres = w["clusters"] if clusters else zeros(1, D)
    raw = jnp.broadcast_to(w["prior"][None], (1, D)) if learn_prior else jnp.zeros_like(centres)
    prior = Prior(family(centres, to_log_scale(raw, scale)), w["logits"] if clusters else zeros(1))
    if private:
        raw = jnp.stack([w[f"auxiliary/{m}"] for m in DIMS])
        flat = to_log_scale(zeros(P), scale)
        prior = prior._replace(
            private=family(zeros(P), flat), auxiliary=family(zeros(M, P), to_log_scale(raw, scale))
        )
    joint = affine(w, "joint", jnp.concatenate([jnp.asarray(X[m]) for m in DIMS], axis=-1))

    def flow(z):
        s = jnp.stack([w[f"flow/{m}"] for m in DIMS])
        lifted = jnp.broadcast_to(z[None], (M, *z.shape))
        return lifted * jnp.exp(s[:, :1]) + s[:, 1:], jnp.broadcast_to(s[:, 0].sum(axis=-1)[:, None], (M, B))

    def gather(message):
        found = affine(w, "gather", message)
        return Normal(found[:, :T], 0.5 * found[:, T:])

    nets = SimpleNamespace(
        flow=flow, encode_top=gather,
        message=lambda z: jnp.stack([affine(w, f"message/{m}", z[k]) for k, m in enumerate(DIMS)]),
        decode_top=lambda top: jnp.stack([affine(w, f"code/{m}", top) for m in DIMS]),
    )  # fmt: skip
    return ObjectiveInputs(
        present, log_likelihood, to_prior, prior, example_keys(jax.random.key(0), jnp.arange(B)),
        posterior=Normal(joint[:, :D], 0.5 * joint[:, D:]), experts=posterior(0, D),
        private=posterior(2 * D, P) if private else None, networks=nets,
    )  # fmt: skip


def ours(monkeypatch, arrays, objective, **how):
    """Loss, summed over the batch, its gradient, and the noise it was made of."""
    noise = Noise()
    monkeypatch.setattr(distributions, "standard_noise", noise)
    monkeypatch.setattr(
        objectives, "draw_uniform_index", lambda keys, name, allowed: jnp.arange(B) % len(allowed)
    )
    value, grads = jax.jit(jax.value_and_grad(lambda w: objective(problem_of(w, **how)).loss.sum()))(arrays)
    return value, grads, noise.drawn


# -- Theirs ------------------------------------------------------------------------------------------------------


def build(multivae, name, w, *, private=0, config=None, **parts):
    """Their model of a name with the weights ``w``."""
    networks = dict(
        encoders={
            m: theirs.encoder(
                multivae,
                lambda x, m=m: torch.split(
                    w.affine(f"encoder/{m}", x), [D, D] + [private] * (2 if private else 0), -1
                ),
                "several" if private else "encoder",
                style=private,
            )
            for m in DIMS
        },
        decoders={m: theirs.decoder(multivae, lambda z, m=m: w.affine(f"decoder/{m}", z)) for m in DIMS},
    )
    settings = dict(
        n_modalities=M, latent_dim=D, input_dims={m: (d,) for m, d in DIMS.items()},
        uses_likelihood_rescaling=True, rescale_factors=WEIGHT,
        decoders_dist={m: kind for m, (kind, _) in FAMILY.items()},
        decoder_dist_params={m: {"scale": s} for m, (kind, s) in FAMILY.items() if kind != "bernoulli"},
    )  # fmt: skip
    make = getattr(multivae.models, f"{name}Config")
    return getattr(multivae.models, name)(make(**settings | (config or {})), **networks, **parts)


def joint_of(multivae, w):
    say = lambda x: torch.split(w.affine("joint", torch.cat([x[m] for m in DIMS], -1)), D, -1)
    return theirs.encoder(multivae, say, "joint")


def run(multivae, monkeypatch, model, noise, *, masks=None, **how):
    data = {m: torch.tensor(x) for m, x in X.items()}
    inputs = multivae.data(data)
    if masks is not None:
        inputs = multivae.incomplete(data, {m: torch.tensor(x, dtype=torch.bool) for m, x in masks.items()})
    left = theirs.draw_from(monkeypatch, noise)
    output = model(inputs, **how)
    assert not left
    return output


def assert_same(value, grads, loss, w):
    """Value (unless None) and gradient of all weights; theirs as ``loss``, not yet differentiated."""
    if value is not None:
        np.testing.assert_allclose(value, loss.item(), rtol=2e-6)
    loss.backward()
    found = w.gradients()
    largest = max(np.abs(g).max() for g in found.values())
    assert largest > 0
    for name, g in grads.items():
        scale = max(np.abs(found[name]).max(), 1e-3 * largest)
        np.testing.assert_allclose(g, found[name], rtol=0, atol=2e-5 * scale, err_msg=name)


def test_jmvae(multivae, monkeypatch):
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, functools.partial(objectives.jmvae, beta=0.7, alpha=0.3))
    w = theirs.Weights(arrays)
    # Their beta is not of the second divergence.
    config = dict(alpha=0.7 * 0.3, beta=0.7, warmup=1)
    model = build(multivae, "JMVAE", w, config=config, joint_encoder=joint_of(multivae, w))
    assert_same(value, grads, run(multivae, monkeypatch, model, [noise["joint"]], epoch=2).loss_sum, w)


def test_joint_elbo_is_the_first_stage_of_telbo_and_jnf(multivae, monkeypatch):
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, objectives.joint_elbo)
    for name, more in (("TELBO", dict(lambda_factors=WEIGHT, gamma_factors=WEIGHT)), ("JNF", {})):
        w = theirs.Weights(arrays)
        parts = dict(joint_encoder=joint_of(multivae, w))
        if name == "JNF":
            parts |= dict(flows=flows_of(multivae, w))
        model = build(multivae, name, w, config=dict(warmup=10, **more), **parts)
        loss = B * run(multivae, monkeypatch, model, [noise["joint"]], epoch=1).loss
        assert_same(value, grads, loss, w)


def test_telbo_without_its_defect(multivae, monkeypatch):
    """Their unimodal divergences have the joint encoder's log-variance in place of the modality's own, -1/2 sum (1 +
    log s_joint^2 - m^2 - s^2): nothing keeps the posteriors from collapsing to a point but the reconstruction. With the
    difference added, value and gradient are ours."""
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, objectives.unimodal_elbos)
    grads = {k: v if k.startswith("encoder") else jnp.zeros_like(v) for k, v in grads.items()}
    w = theirs.Weights(arrays)
    config = dict(lambda_factors=WEIGHT, gamma_factors=WEIGHT, warmup=1)
    model = build(multivae, "TELBO", w, config=config, joint_encoder=joint_of(multivae, w))
    for name, p in w.parameters.items():  # what they freeze by module
        p.requires_grad_(name.startswith("encoder"))
    drawn = [np.zeros((B, D)), *noise["experts"]]
    loss = run(multivae, monkeypatch, model, drawn, epoch=2).loss_sum
    x = {m: torch.tensor(v) for m, v in X.items()}
    of_joint = w.affine("joint", torch.cat([x[m] for m in DIMS], -1))[:, D:]
    defect = sum(-0.5 * (w.affine(f"encoder/{m}", x[m])[:, D:] - of_joint).sum() for m in DIMS)
    assert abs(defect.item()) > 1
    assert_same(value, grads, loss + defect, w)


def test_mvae(multivae, monkeypatch):
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, functools.partial(objectives.mvae, beta=0.7, subsets=0))
    w = theirs.Weights(arrays)
    model = build(multivae, "MVAE", w, config=dict(beta=0.7, warmup=1, k=0))
    assert_same(value, grads, run(multivae, monkeypatch, model, noise["products"], epoch=2).loss_sum, w)


@pytest.mark.parametrize("masked", [False, True], ids=["complete", "incomplete"])
@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
@pytest.mark.parametrize("dist", ["normal", "laplace_with_softmax"])
def test_mmvae(multivae, monkeypatch, dist, estimator, masked):
    """The mean over modalities is over those that an example has. With DReG their loss has the right gradient, but is
    ``sum_k w_k log w_k`` and not the bound, which ours still is; so it is for the next two models."""
    arrays, masks = make_arrays(), {m: np.array(x, bool) for m, x in THERE.items()} if masked else None
    if masked:
        masks["a"][6] = True  # they divide by the number of modalities, which must not be 0: row 6 has one
    family, scale = (Normal, "exp") if dist == "normal" else (Laplace, "softmax")
    value, grads, noise = ours(
        monkeypatch, arrays, functools.partial(objectives.mmvae, samples=K, estimator=estimator),
        family=family, scale=scale, learn_prior=True,
        present=None if masks is None else jnp.asarray(np.stack([masks[m] for m in DIMS])),
    )  # fmt: skip
    w = theirs.Weights(arrays)
    config = dict(K=K, prior_and_posterior_dist=dist, loss=f"{estimator}_looser")
    model = build(multivae, "MMVAE", w, config=config)
    model.prior_log_var = w["prior"]
    drawn = np.moveaxis(noise["shared"], 1, 0)
    loss = run(multivae, monkeypatch, model, drawn, masks=masks).loss_sum
    assert_same(value if estimator == "iwae" else None, grads, loss, w)


def cross_noise(noise):
    """In the order in which MMVAE+ and CMVAE draw: of each modality both codes, then what the others would say."""
    for c in range(M):
        yield noise["shared"][:, c]
        yield noise["private"][:, c]
        yield from (noise["auxiliary"][m, :, c] for m in range(M) if m != c)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
@pytest.mark.parametrize(
    "dist,family,scale",
    [("normal_with_softplus", Normal, "softplus"), ("laplace_with_softmax", Laplace, "softmax")],
)
def test_mmvae_plus(multivae, monkeypatch, dist, family, scale, estimator):
    """With priors of scale softplus(0) = log 2, as theirs are; those of our network have scale 1. Their gradient of
    DReG is right for beta = 1 alone."""
    arrays, beta = make_arrays(P), 0.7 if estimator == "iwae" else 1.0
    objective = functools.partial(objectives.mmvae, samples=K, estimator=estimator, beta=beta)
    value, grads, noise = ours(monkeypatch, arrays, objective, family=family, scale=scale, private=P)
    w = theirs.Weights(arrays)
    config = dict(
        K=K, prior_and_posterior_dist=dist, loss=f"{estimator}_looser", beta=beta, modalities_specific_dim=P
    )
    model = build(multivae, "MMVAEPlus", w, private=P, config=config)
    del model.logvars_priors
    model.logvars_priors = {m: w[f"auxiliary/{m}"][None] for m in DIMS} | {"shared": torch.zeros(1, D + P)}
    loss = run(multivae, monkeypatch, model, list(cross_noise(noise))).loss_sum
    assert_same(value if estimator == "iwae" else None, grads, loss, w)


@pytest.mark.parametrize("estimator", ["iwae", "dreg"])
def test_cmvae(multivae, monkeypatch, estimator):
    """Their sum over clusters is our log-density of the mixture, and its gradient."""
    arrays, beta = make_arrays(P), 0.7 if estimator == "iwae" else 1.0
    objective = functools.partial(objectives.mmvae, samples=K, estimator=estimator, beta=beta)
    value, grads, noise = ours(monkeypatch, arrays, objective, private=P, clusters=True)
    w = theirs.Weights(arrays)
    config = dict(
        K=K, prior_and_posterior_dist="normal", loss=f"{estimator}_looser", beta=beta,
        modalities_specific_dim=P, number_of_clusters=C,
    )  # fmt: skip
    model = build(multivae, "CMVAE", w, private=P, config=config)
    del model.mean_clusters, model._pc_params, model.r_logvars_priors
    model.mean_clusters, model._pc_params = [w["clusters"][c][None] for c in range(C)], w["logits"]
    model.r_logvars_priors = {m: w[f"auxiliary/{m}"][None] for m in DIMS}
    loss = run(multivae, monkeypatch, model, list(cross_noise(noise))).loss_sum
    assert_same(value if estimator == "iwae" else None, grads, loss, w)


def test_mopoe(multivae, monkeypatch):
    """They assign subsets by an example's place in the batch, one seventh each; here ours do as well. Both have the
    prior in the product of all modalities alone."""
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, functools.partial(objectives.mopoe, beta=0.7))
    w = theirs.Weights(arrays)
    model = build(multivae, "MoPoE", w, config=dict(beta=0.7))
    assert_same(value, grads, run(multivae, monkeypatch, model, [noise["product"]]).loss_sum, w)


def test_mvtcae(multivae, monkeypatch):
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, functools.partial(objectives.mvtcae, beta=0.7, alpha=0.3))
    w = theirs.Weights(arrays)
    model = build(multivae, "MVTCAE", w, config=dict(beta=0.7, alpha=0.3))
    assert_same(value, grads, run(multivae, monkeypatch, model, [noise["product"]]).loss_sum, w)


@pytest.mark.parametrize("masked", [False, True], ids=["complete", "incomplete"])
def test_dmvae(multivae, monkeypatch, masked):
    arrays, masks = make_arrays(P), {m: np.array(x, bool) for m, x in THERE.items()} if masked else None
    objective = functools.partial(objectives.dmvae, beta=0.7, private_beta=0.4)
    present = jnp.asarray(np.stack(list(masks.values()))) if masked else None
    value, grads, noise = ours(monkeypatch, arrays, objective, private=P, present=present)
    w = theirs.Weights(arrays)
    config = dict(
        beta=0.7,
        modalities_specific_dim={m: P for m in DIMS},
        modalities_specific_betas={m: 0.4 for m in DIMS},
    )
    model = build(multivae, "DMVAE", w, private=P, config=config)
    drawn = [x for r in range(1 + M) for x in (noise["shared"][r], *noise["private"][:, r])]
    assert_same(value, grads, B * run(multivae, monkeypatch, model, drawn, masks=masks).loss, w)


def test_crmvae_but_for_a_factor(multivae, monkeypatch):
    """They halve the reconstructions: 1 / (2 (M + 1)) where eq. 9 has 1 / (M + 1), as if beta were twice as large. The
    same therefore with beta half of theirs, and half of the sum."""
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, functools.partial(objectives.crmvae, beta=2 * 0.7))
    w = theirs.Weights(arrays)
    model = build(multivae, "CRMVAE", w, config=dict(beta=0.7))
    loss = 2.0 * run(multivae, monkeypatch, model, [noise["product"], *noise["experts"]]).loss
    assert_same(value, grads, loss, w)


@pytest.mark.parametrize("masked", [False, True], ids=["complete", "incomplete"])
def test_nexus(multivae, monkeypatch, masked):
    arrays, masks = make_arrays(), {m: np.array(x, bool) for m, x in THERE.items()} if masked else None
    objective = functools.partial(objectives.nexus, beta=1.0, top_beta=0.7, gamma=0.4)
    if masked:
        masks["a"][6] = True
    present = jnp.asarray(np.stack([masks[m] for m in DIMS])) if masked else None
    value, grads, noise = ours(monkeypatch, arrays, objective, present=present)
    w = theirs.Weights(arrays)
    config = dict(
        warmup=1, top_beta=0.7, gammas={m: 0.4 for m in DIMS}, msg_dim=T, dropout_rate=0.0,
        modalities_specific_dim={m: D for m in DIMS},
    )  # fmt: skip
    split = lambda x: torch.split(x, T, -1)
    model = build(
        multivae, "Nexus", w, config=config,
        top_encoders={
            m: theirs.encoder(multivae, lambda z, m=m: (w.affine(f"message/{m}", z), None)) for m in DIMS
        },
        joint_encoder=theirs.encoder(multivae, lambda x: split(w.affine("gather", x))),
        top_decoders={m: theirs.decoder(multivae, lambda z, m=m: w.affine(f"code/{m}", z)) for m in DIMS},
    )  # fmt: skip
    drawn = [*noise["experts"], noise["top"]]
    assert_same(value, grads, run(multivae, monkeypatch, model, drawn, masks=masks, epoch=1).loss_sum, w)


def flows_of(multivae, w):
    def say(m):
        return lambda z: (z * torch.exp(w[f"flow/{m}"][0]) + w[f"flow/{m}"][1], w[f"flow/{m}"][0].sum())

    return {m: theirs.flow(multivae, say(m)) for m in DIMS}


def test_jnf(multivae, monkeypatch):
    """The second stage, with affine flows."""
    arrays = make_arrays()
    value, grads, noise = ours(monkeypatch, arrays, objectives.flow_match)
    w = theirs.Weights(arrays)
    model = build(
        multivae,
        "JNF",
        w,
        config=dict(warmup=1),
        joint_encoder=joint_of(multivae, w),
        flows=flows_of(multivae, w),
    )
    for name, p in w.parameters.items():
        p.requires_grad_(name.startswith(("encoder", "flow")))
    loss = run(multivae, monkeypatch, model, [noise["joint"]], epoch=2).loss_sum
    assert_same(value, grads, loss, w)


def test_mhvae(multivae, monkeypatch):
    """The whole of our network, over three labels and three levels, against theirs with its weights."""
    noise, classes, width = Noise(), 3, 5
    names = tuple(f"label_{k}" for k in range(M))
    config = MHVAEConfig(
        latent=D, hidden=width, levels=3, subsets=0, beta=0.7,
        label=LabelConfig(MLPDecoderConfig(width=4, depth=1)),
    )  # fmt: skip
    labels = {m: RNG.integers(0, classes, B).astype(np.int32) for m in names}
    batch = {k: jnp.asarray(v) for k, v in labels.items()} | {"index": jnp.arange(B)}
    vae = make_multimodal_vae(config, sizes_of(batch, names, config, classes=classes))
    leaves, tree = jax.tree.flatten(jax.eval_shape(vae.method.init, jax.random.key(0), batch))
    rng = np.random.default_rng(2)
    params = jax.tree.unflatten(tree, [jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype) for x in leaves])
    monkeypatch.setattr(distributions, "standard_noise", noise)
    loss = lambda p, key: vae.method.loss(p, batch, key)[0]
    value, grads = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(0))
    p = jax.tree.map(lambda x: torch.nn.Parameter(torch.tensor(np.asarray(x))), params)

    (experts,) = (p[k] for k in p if k.startswith("experts"))
    (decoders,) = (p[k]["MLPDecoder_0"] for k in p if k.startswith("decoders"))
    encode = lambda x, k: torch.relu(theirs.dense(experts["features"]["hidden"], x, k))
    tell = lambda z, k: theirs.dense(decoders["out"], torch.relu(theirs.dense(decoders["hidden_0"], z, k)), k)
    make = functools.partial(theirs.encoder, multivae)
    model = multivae.models.MHVAE(
        multivae.models.MHVAEConfig(
            n_modalities=M,
            latent_dim=D,
            n_latent=3,
            beta=0.7,
            decoders_dist=dict.fromkeys(names, "categorical"),
        ),  # fmt: skip
        encoders={m: make(lambda x, k=k: (encode(x, k), None)) for k, m in enumerate(names)},
        decoders={m: theirs.decoder(multivae, lambda z, k=k: tell(z, k)) for k, m in enumerate(names)},
        bottom_up_blocks={
            m: [
                theirs.Block(lambda x, k=k: theirs.mlp(p["rises_0"], x, k)),
                make(lambda x, k=k: theirs.moments(p["deepest"], theirs.mlp(p["rises_1"], x, k), k)),
            ]
            for k, m in enumerate(names)
        },
        top_down_blocks=[theirs.Block(lambda z, n=n: theirs.mlp(p[f"falls_{n}"], z)) for n in range(2)],
        posterior_blocks={
            m: [make(lambda x, k=k, n=n: theirs.moments(p[f"level_experts_{n}"], x, k)) for n in range(2)]
            for k, m in enumerate(names)
        },
        prior_blocks=[make(lambda x, n=n: theirs.moments(p[f"priors_{n}"], x)) for n in range(2)],
    )
    drawn = [noise.drawn[f"level_{n}"][row] for row in range(7) for n in (3, 2, 1)]
    left = theirs.draw_from(monkeypatch, drawn)
    data = {
        m: torch.nn.functional.one_hot(torch.tensor(x).long(), classes).float() for m, x in labels.items()
    }
    loss = model(multivae.data(data)).loss / B
    assert not left
    np.testing.assert_allclose(value, loss.item(), rtol=2e-6)
    loss.backward()
    for (path, g), want in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(p), strict=True):
        want = np.zeros(g.shape) if want.grad is None else want.grad.numpy()
        np.testing.assert_allclose(g, want, rtol=1e-3, atol=1e-5, err_msg=str(path))
