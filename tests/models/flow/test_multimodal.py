"""Codes of several modalities and the flow over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.vae.multimodal import CLASSES, CONFIGS, NAMES, make_batch
from tests.support import assert_device_invariant, assert_resumes, random_params
from xmodal_jax.core.random import example_keys, fold_in_name, normal_like
from xmodal_jax.models.flow.codes import CodeConfig, join_patches, join_tokens, make_codes
from xmodal_jax.models.flow.multimodal import (
    CODES,
    FROZEN,
    CodeFlow,
    CodeFlowConfig,
    MultimodalFlowConfig,
    code_statistics,
    draw_roles,
    make_multimodal_flow,
)
from xmodal_jax.models.vae.modalities import ImageConfig, sizes_of
from xmodal_jax.nets.decoders import ConvDecoderConfig, Size
from xmodal_jax.nets.encoders import DCGANEncoderConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.types import Tokens

layouts = pytest.mark.parametrize(
    "layouts",
    [[("pmap", 2, 1)], pytest.param([("pmap", 2, 1), ("sharded", 4, 2)], marks=pytest.mark.slow)],
    ids=["one layout", "two layouts"],
)
SMALL = dict(
    image=CONFIGS.image, label=CONFIGS.label, tokens=2, dims=3, hidden=7, align_dims=5,
)  # fmt: skip
SHAPES = {"image_0": (2, 3), "image_1": (2, 3), "label": (1, 4)}
SIZES = sizes_of(make_batch(1), NAMES, CONFIGS, classes=CLASSES)


@functools.cache
def codes_model(**changes):
    return make_codes(CodeConfig(**{**SMALL, **changes}), SIZES)


def code_batch(n=8, seed=0):
    """Codes of three modalities, some of which are missing; one example has none."""
    rng = np.random.default_rng(seed)
    present = {m: rng.random(n) < 0.7 for m in SHAPES}
    present = {m: np.where(np.arange(n) == 0, False, x) for m, x in present.items()}
    fields = {m + CODES: rng.normal(size=(n, *shape)).astype(np.float32) for m, shape in SHAPES.items()}
    return {**fields, "present": present, "index": np.arange(n, dtype=np.int32)}


def small_flow(shapes=None, **options):
    return CodeFlow(CodeFlowConfig(width=8, depth=1, heads=2, **options), shapes or SHAPES)


class Whole:
    """The flow of `make_multimodal_flow`, with its parameters of autoencoders and statistics."""

    def __init__(self):
        config = MultimodalFlowConfig(**SMALL, flow=CodeFlowConfig(width=8, depth=1, heads=2, steps=2))
        self.flow = make_multimodal_flow(config, SIZES)
        self.autoencoders = random_params(self.flow.codes.init, jax.random.key(0), make_batch(1))
        rng = np.random.default_rng(3)
        self.statistics = {
            m: {
                "mean": rng.normal(size=s).astype(np.float32),
                "std": rng.uniform(0.5, 2, s).astype(np.float32),
            }
            for m, s in self.flow.flow.shapes.items()
        }
        self.method = self.flow.method(self.autoencoders, self.statistics)
        network = random_params(self.flow.flow.init, jax.random.key(1))
        self.params = {"autoencoders": self.autoencoders, "statistics": self.statistics, "flow": network}
        self.batch = {
            **{
                m + CODES: rng.normal(size=(8, *s)).astype(np.float32)
                for m, s in self.flow.flow.shapes.items()
            },
            "present": code_batch()["present"],
            "index": np.arange(8, dtype=np.int32),
        }


@functools.cache
def whole():
    return Whole()


@layouts
def test_device_invariance_of_the_autoencoders(layouts):
    together = len(layouts) == 1
    assert_device_invariant(codes_model().method, make_batch(), layouts=layouts, together=together)


@layouts
def test_device_invariance_of_the_flow(layouts):
    options = dict(config=Optimizer(freeze=FROZEN), parts=2, together=len(layouts) == 1)
    assert_device_invariant(whole().method, whole().batch, layouts=layouts, **options)


def test_a_flow_resumes_bit_by_bit(tmp_path):
    data = {k: v for k, v in whole().batch.items() if k != "index"}
    optimizer = Optimizer("adamw", learning_rate=1e-3, ema=0.9, freeze=FROZEN)
    assert_resumes(whole().method, data, tmp_path, optimizer=optimizer)


@functools.cache
def loss_and_gradients():
    """The loss, and its gradients with respect to the parameters and to the codes, of a batch: one program."""
    flow, fields = whole().flow, [m + CODES for m in whole().flow.flow.modalities]
    loss = lambda p, codes, rest: flow.loss(p, {**rest, **codes}, jax.random.key(0))[0]
    program = jax.jit(jax.value_and_grad(loss, (0, 1)))

    def run(batch):
        rest = {k: v for k, v in batch.items() if k not in fields}
        return program(whole().params, {k: batch[k] for k in fields}, rest)

    return run


@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf])
def test_what_is_missing_has_no_influence_on_the_flow(garbage):
    """Neither on the loss nor on a gradient, whatever stands in its place."""
    loss, batch = loss_and_gradients(), whole().batch
    other = dict(batch)
    for m, there in batch["present"].items():
        other[m + CODES] = np.where(there[:, None, None], batch[m + CODES], np.float32(garbage))
    jax.tree.map(np.testing.assert_array_equal, loss(batch), loss(other))


def test_what_is_missing_gets_no_gradient():
    """What is present does."""
    batch = whole().batch
    _, (_, gradients) = loss_and_gradients()(batch)
    assert len(gradients) == len(whole().flow.flow.modalities)
    for name, gradient in gradients.items():
        present = np.asarray(batch["present"][name.removesuffix(CODES)])
        assert not np.any(np.asarray(gradient)[~present]), name
        assert np.any(np.asarray(gradient)[present]), name


def test_what_is_missing_has_no_influence_on_the_autoencoders():
    batch = make_batch()
    other = dict(batch)
    for m in NAMES[:2]:
        other[m] = np.where(batch["present"][m][:, None, None, None], batch[m], 255 - batch[m])
    loss = jax.jit(jax.value_and_grad(lambda p, b: codes_model().loss(p, b, jax.random.key(0))[0]))
    params = random_params(codes_model().init, jax.random.key(0), batch)
    jax.tree.map(np.testing.assert_array_equal, loss(params, batch), loss(params, other))


def test_every_pair_of_modalities_is_aligned_and_alignment_can_be_left_out():
    params = random_params(codes_model().init, jax.random.key(0), make_batch())
    batch = jax.device_put(make_batch())
    loss = lambda **changes: jax.jit(codes_model(**changes).loss)(params, batch, jax.random.key(0))
    value, aux = loss()
    c = codes_model().config
    expected = aux["nats"] + 0.5 * c.code_weight * aux["code"] + c.align_weight * aux["align"]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert "align" not in loss(align_weight=0.0)[1]


def test_a_sequence_becomes_a_fixed_number_of_tokens():
    values = jnp.arange(1.0, 11.0).reshape(1, 5, 2)
    mask = jnp.array([[True, True, True, True, False]])
    joined = join_tokens(Tokens(values, mask), 3)
    np.testing.assert_array_equal(joined, [[[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]])
    assert join_tokens(Tokens(values, None), 8).shape == (1, 8, 2)


def test_each_token_of_a_picture_holds_the_encoders_tokens_of_its_part():
    """Of pictures twice as wide as high, whose encoder makes 2 x 4 tokens, 2 x 2 of them."""
    values = jnp.arange(8.0).reshape(1, 8, 1)
    joined = join_patches(values, 2, (10, 20))
    np.testing.assert_array_equal(joined, [[[0, 1], [2, 3], [4, 5], [6, 7]]])
    square = join_patches(jnp.arange(16.0).reshape(1, 16, 1), 2, (7, 7))
    np.testing.assert_array_equal(square[0, 1], [2, 3, 6, 7])
    cut = join_patches(jnp.arange(1.0, 10.0).reshape(1, 9, 1), 2, (7, 7))  # 3 x 3 tokens
    np.testing.assert_array_equal(cut, [[[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]])
    with pytest.raises(ValueError, match="form no grid"):
        join_patches(jnp.zeros((1, 5, 1)), 2, (8, 8))  # such as a class token and four patches


def test_pictures_have_a_code_of_as_many_tokens_as_the_grid_of_their_decoder():
    """A token tells of its own part: another picture in the lower right corner leaves the first token as it is."""
    image = ImageConfig(DCGANEncoderConfig(width=4, norm="none"), ConvDecoderConfig(width=4, grid=2))
    sizes = {"image": Size((32, 32, 1))}
    model = make_codes(CodeConfig(image=image, dims=3, hidden=5), sizes)
    assert model.shapes() == {"image": (4, 3)}
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    pictures[1, :, :24] = pictures[0, :, :24]  # the left half, and what its tokens see of the right one
    batch = {"image": pictures, "index": np.arange(2, dtype=np.int32)}
    params = random_params(model.init, jax.random.key(0), batch)
    codes = jax.jit(model.encode)(params, batch)[0]["image"]
    assert codes.shape == (2, 4, 3)
    np.testing.assert_allclose(codes[0, ::2], codes[1, ::2], atol=1e-5)  # left
    assert np.all(np.abs(codes[0, 1::2] - codes[1, 1::2]).max(axis=-1) > 1e-3)  # right
    assert jax.eval_shape(model.decode, params, {"image": codes})["image"].shape == pictures.shape


def test_statistics_are_those_of_the_codes_that_are_present():
    rng = np.random.default_rng(0)
    codes = rng.normal(3.0, 2.0, size=(100, 2, 3)).astype(np.float32)
    codes[:, 0, 1] = 5.0  # does not vary
    present = rng.random(100) < 0.5
    statistics = code_statistics(np.where(present[:, None, None], codes, np.nan), present)
    np.testing.assert_allclose(statistics.mean, codes[present].mean(axis=0), rtol=1e-5)
    std = codes[present].std(axis=0)
    assert 0 < statistics.std[0, 1] < 0.1
    std[0, 1] = statistics.std[0, 1]
    np.testing.assert_allclose(statistics.std, std, rtol=1e-4)
    with pytest.raises(ValueError, match="no example"):
        code_statistics(codes, np.zeros(100, bool))


def test_roles():
    """Nothing that is missing has a role; something is generated wherever an example has a modality; every number of
    observed modalities is as likely."""
    n = 4000
    present = jnp.asarray(np.random.default_rng(0).random((4, n)) < 0.8)
    keys = example_keys(jax.random.key(0), jnp.arange(n))
    roles = draw_roles(keys, present, joint=0.0, drop=0.0)
    assert not np.any((roles.generated | roles.observed) & ~present)
    assert not np.any(roles.generated & roles.observed)
    np.testing.assert_array_equal(roles.generated.any(axis=0), present.any(axis=0))
    everywhere = draw_roles(keys, jnp.ones((4, n), bool), joint=0.0, drop=0.0)
    np.testing.assert_array_equal(everywhere.generated, ~everywhere.observed)
    counts = np.bincount(np.asarray(everywhere.observed.sum(axis=0)), minlength=5) / n
    np.testing.assert_allclose(counts, [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=0.03)
    joint = draw_roles(keys, jnp.ones((4, n), bool), joint=1.0, drop=0.0)
    assert joint.generated.all()
    dropped = draw_roles(keys, jnp.ones((4, n), bool), joint=0.0, drop=0.5)
    observed = np.asarray(dropped.observed.sum() / everywhere.observed.sum())
    np.testing.assert_allclose(observed, 0.5, atol=0.03)
    np.testing.assert_array_equal(dropped.generated, everywhere.generated)


class GaussianFlow(CodeFlow):
    """The exact velocity of jointly Gaussian codes with mean 0; ``params``: their covariance ``[D, D]``."""

    def velocity(self, params, codes, times):
        scale = jnp.concatenate(
            [
                jnp.repeat(t[:, None], n * d, axis=1)
                for t, (n, d) in zip(times, self.shapes.values(), strict=True)
            ],
            axis=1,
        )  # [B, D]
        u = jnp.concatenate([x.reshape(x.shape[0], -1) for x in codes.values()], axis=1)

        def one(s, u):
            """``E[z - e | u]`` for ``u = (1 - s) e + s z``."""
            covariance = s[:, None] * params * s[None, :] + jnp.diag((1 - s) ** 2)
            return (params * s[None, :] - jnp.diag(1 - s)) @ jnp.linalg.solve(covariance, u)

        v, out, start = jax.vmap(one)(scale, u), {}, 0
        for m, (n, d) in self.shapes.items():
            out[m] = v[:, start : start + n * d].reshape(-1, n, d)
            start += n * d
        return out

    def noise(self, keys):
        """Zero, and the five unit vectors. What is generated of Gaussians is affine in the noise, so that these six
        examples tell its mean and covariance exactly."""
        return as_codes(jnp.concatenate([jnp.zeros((1, 5)), jnp.eye(5)]))


GAUSSIAN = {"a": (1, 2), "b": (2, 1), "c": (1, 1)}
KEYS = example_keys(jax.random.key(0), jnp.arange(6))


def gaussian_flow(**options):
    factor = np.random.default_rng(4).normal(size=(5, 5)) / 2
    return GaussianFlow(CodeFlowConfig(**options), GAUSSIAN), jnp.float32(factor @ factor.T + 0.3 * np.eye(5))


def repeated(codes):
    """The codes ``[5]`` of one example for each of the noises."""
    return as_codes(jnp.broadcast_to(jnp.float32(codes), (6, 5)))


def moments(codes):
    """Mean and covariance of what was generated from the noises of `GaussianFlow`."""
    z = np.concatenate([np.asarray(x).reshape(6, -1) for x in codes.values()], axis=1)
    factor = (z[1:] - z[:1]).T
    return z[0], factor @ factor.T


def roles(*observed):
    """A mask over the modalities for each of the noises."""
    return jnp.broadcast_to(jnp.asarray(observed, bool)[:, None], (3, 6))


def as_codes(z):
    return {
        "a": z[:, :2].reshape(-1, 1, 2),
        "b": z[:, 2:4].reshape(-1, 2, 1),
        "c": z[:, 4:].reshape(-1, 1, 1),
    }


@functools.cache
def generate_of_gaussians():
    """``generate(codes, observed)`` without guidance, with more steps near the noise, and the covariance of the
    codes."""
    flow, covariance = gaussian_flow(steps=40, shift=1.5)
    return jax.jit(lambda c, mask: flow.generate(covariance, c, mask, KEYS, guidance=1.0)), covariance


@pytest.mark.parametrize("observed", [(False, False, False), (True, False, False), (False, True, True)])
def test_generated_codes_of_gaussians_have_the_exact_conditional_distribution(observed):
    """Means and covariances in closed form, with the exact velocity in place of the network."""
    generate, covariance = generate_of_gaussians()
    given = np.float32([0.7, -1.1, 0.4, 1.3, -0.6])
    mean, spread = moments(generate(repeated(given), roles(*observed)))
    seen = np.repeat(observed, (2, 2, 1))
    s, k = np.float64(covariance), ~seen
    gain = s[np.ix_(k, seen)] @ np.linalg.inv(s[np.ix_(seen, seen)])
    np.testing.assert_array_equal(mean[seen], given[seen])
    np.testing.assert_array_equal(spread[seen], 0.0)
    np.testing.assert_allclose(mean[k], gain @ given[seen], atol=0.01)
    conditional = s[np.ix_(k, k)] - gain @ s[np.ix_(seen, k)]
    np.testing.assert_allclose(spread[np.ix_(k, k)], conditional, atol=0.01)


def test_the_exact_velocity_has_the_smallest_loss():
    """So training finds it: the velocity of another covariance is worse."""
    flow, covariance = gaussian_flow(condition_noise=0.0)
    n = 4000
    z = jax.random.multivariate_normal(jax.random.key(1), jnp.zeros(5), covariance, (n,))
    keys = example_keys(jax.random.key(2), jnp.arange(n))
    present = jnp.ones((3, n), bool)
    loss = jax.jit(lambda s: flow.terms(s, as_codes(z), present, keys)[0].mean())
    best = loss(covariance)
    for other in (covariance + 0.5 * jnp.eye(5), 0.6 * covariance, jnp.diag(jnp.diag(covariance))):
        assert loss(other) > best + 1e-3


class TimesFlow(CodeFlow):
    """A flow whose loss tells the time of an example."""

    def velocity(self, params, codes, times):
        """Such that the error of the velocity of each element is the logit of its time."""
        data, noise = params
        logit = jnp.log(times) - jnp.log1p(-times)
        return {m: data[m] - noise[m] + logit[k][:, None, None] for k, m in enumerate(codes)}


def test_training_times_are_logit_normal():
    n, keys = 4000, example_keys(jax.random.key(5), jnp.arange(4000))
    flow = TimesFlow(CodeFlowConfig(joint=0.9, time_mean=-1.5, time_std=0.5), {"a": (1, 1), "b": (1, 1)})
    zeros = {m: jnp.zeros((n, 1, 1)) for m in "ab"}
    noise = {m: normal_like(fold_in_name(keys, f"noise/{m}"), zeros[m]) for m in "ab"}
    squares, _ = flow.terms((zeros, noise), zeros, jnp.ones((2, n), bool), keys)
    np.testing.assert_allclose(np.sqrt(squares).mean(), 1.5, atol=0.03)  # few of the logits are above 0
    np.testing.assert_allclose(squares.mean(), 1.5**2 + 0.5**2, rtol=0.03)


def test_guidance_moves_toward_what_is_observed():
    """Of a Gaussian the guided mean goes further from the marginal one; what is observed stays."""
    flow, covariance = gaussian_flow(steps=20)
    codes, mask = repeated([1.5, 1.5, 0, 0, 0]), roles(True, False, False)
    generate = lambda s: jax.jit(lambda c: flow.generate(covariance, c, mask, KEYS, guidance=s))(codes)
    guided = generate(2.0)
    np.testing.assert_array_equal(guided["a"], codes["a"])
    assert np.linalg.norm(moments(guided)[0][2:]) > 1.2 * np.linalg.norm(moments(generate(1.0))[0][2:])


def test_an_edited_code_keeps_what_the_time_leaves_of_it():
    """Of Gaussians with the exact velocity: from time 1 nothing changes, from time 0 the code is a new one given what
    is observed; what is neither has no influence. Of standard normal codes an edited one is known exactly: the state at
    the start, in its standard units."""
    flow, covariance = gaussian_flow(steps=20, guidance=1.0)
    given = np.float32([0.7, -1.1, 0.4, 1.3, -0.6])
    codes, observed, edited = (
        repeated(given),
        jnp.array([False, True, False]),
        jnp.array([True, False, False]),
    )
    edit = jax.jit(lambda s, codes, start: flow.edit(s, codes, observed, edited, KEYS, start=start))
    same = edit(covariance, codes, 1.0)
    np.testing.assert_allclose(same["a"], codes["a"], atol=1e-6)
    anew = edit(covariance, {**codes, "a": 100 + codes["a"], "c": jnp.full_like(codes["c"], jnp.nan)}, 0.0)
    np.testing.assert_array_equal(anew["b"], codes["b"])
    s = np.float64(covariance)
    gain = s[:2, 2:4] @ np.linalg.inv(s[2:4, 2:4])
    mean, spread = moments(anew)
    np.testing.assert_allclose(mean[:2], gain @ given[2:4], atol=0.01)
    np.testing.assert_allclose(spread[:2, :2], s[:2, :2] - gain @ s[2:4, :2], atol=0.01)
    half = edit(jnp.eye(5), codes, 0.5)["a"]
    state = 0.5 * flow.noise(KEYS)["a"] + 0.5 * codes["a"]
    np.testing.assert_allclose(half, state / np.sqrt(0.5), rtol=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda flow, batch: flow.infer(NONE, batch, [True, False], KEY),
            "observed must have one boolean for each",
        ),
        (lambda flow, batch: flow.infer(NONE, batch, True, KEY), r"observed .* got the shape \[\]"),
        (
            lambda flow, batch: flow.edit(NONE, batch, *[np.ones((2, 3))] * 2, KEY, start=0.5),
            "observed must have",
        ),
        (lambda flow, batch: flow.edit(NONE, batch, EACH, [True], KEY, start=0.5), "edited must have"),
        (
            lambda flow, batch: flow.edit(NONE, batch, EACH, EACH, KEY, start=1.5),
            r"start must lie in \[0, 1\]",
        ),
        (
            lambda flow, batch: flow.edit(NONE, batch, EACH, EACH, KEY, start=jnp.zeros(3)),
            "each of 8 examples",
        ),
    ],
)
def test_wrong_masks_and_times_are_named(call, message, monkeypatch):
    """By an error that says what was expected."""
    flow, batch = whole().flow, jax.tree.map(jnp.asarray, make_batch(8))
    codes = {m: jnp.zeros((8, *shape)) for m, shape in flow.flow.shapes.items()}
    monkeypatch.setattr(type(flow), "encode", lambda *_: (codes, jnp.ones((len(NAMES), 8), bool)))
    with pytest.raises(ValueError, match=message):
        call(flow, batch)


NONE = {"flow": {}}
KEY, EACH = jax.random.key(0), [True] * len(NAMES)


def test_codes_are_edited_from_a_time_of_each_example():
    """As each by itself; 1 changes nothing."""
    flow, keys = small_flow(steps=2), example_keys(KEY, jnp.arange(2))
    params = random_params(flow.init, KEY)
    codes = {m: jnp.full((2, *shape), 0.5) for m, shape in SHAPES.items()}
    masks = jnp.array([True, False, False]), jnp.array([False, True, False])
    edit = jax.jit(lambda start: flow.edit(params, codes, *masks, keys, start=start)["image_1"])
    got = edit(jnp.array([0.3, 1.0]))
    np.testing.assert_allclose(got[0], edit(0.3)[0], atol=1e-6)
    np.testing.assert_array_equal(got[1], 0.5)


def test_the_log_density_of_gaussians_is_exact():
    """Joint, conditional and marginal, with the exact divergence."""
    flow, covariance = gaussian_flow(steps=10)
    z = np.random.default_rng(5).multivariate_normal(np.zeros(5), covariance, 6).astype(np.float32)
    keys = example_keys(jax.random.key(0), jnp.arange(6))
    parts = np.repeat([0, 1, 2], (2, 2, 1))
    s = np.float64(covariance)

    def normal(x, mean, covariance):
        d = x - mean
        quadratic = np.einsum("nd,nd->n", d @ np.linalg.inv(covariance), d)
        return -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])

    for targets, observed in [((1, 1, 1), (0, 0, 0)), ((1, 0, 0), (0, 1, 1)), ((0, 1, 0), (1, 0, 0))]:
        t, o = np.isin(parts, np.flatnonzero(targets)), np.isin(parts, np.flatnonzero(observed))
        gain = s[np.ix_(t, o)] @ np.linalg.inv(s[np.ix_(o, o)])
        expected = normal(z[:, t], z[:, o] @ gain.T, s[np.ix_(t, t)] - gain @ s[np.ix_(o, t)])
        mask = jnp.broadcast_to(jnp.asarray(observed, bool)[:, None], (3, 6))
        density = lambda z, mask, targets=targets: flow.log_density(
            covariance, as_codes(z), tuple(map(bool, targets)), mask, keys, exact=True
        )
        value = jax.jit(density)(jnp.asarray(z), mask)
        np.testing.assert_allclose(value, expected, atol=0.01)


def test_guidance_toward_agreement_makes_joint_samples_agree_more():
    """Of Gaussians: the correlation of what is generated together grows, that within a modality alone does not."""
    flow, _ = gaussian_flow(steps=20)
    covariance = jnp.float32(0.5 * np.ones((5, 5)) + 0.5 * np.eye(5))
    codes, none, correlation = repeated(np.zeros(5)), roles(False, False, False), []
    for agreement in (1.0, 2.0):
        generate = lambda c, agreement=agreement: flow.generate(
            covariance, c, none, KEYS, guidance=1.0, agreement=agreement
        )
        _, spread = moments(jax.jit(generate)(codes))
        correlation.append(spread[0, 4] / np.sqrt(spread[0, 0] * spread[4, 4]))
    np.testing.assert_allclose(correlation[0], 0.5, atol=0.01)
    assert correlation[1] > correlation[0] + 0.1
