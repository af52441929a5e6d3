"""Generators and what a discriminator adds to an encoder, against plain NumPy with parameters moved off their start."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import gan as oracle
from xmodal_jax.core.parts import choose
from xmodal_jax.core.random import example_keys
from xmodal_jax.nets.gan import (
    Condition,
    ConditioningAugmentation,
    ContrastiveHead,
    Critic,
    DCGANGenerator,
    DCGANGeneratorConfig,
    Generator,
    MLPGenerator,
    MLPGeneratorConfig,
    Modulation,
    ResidualGenerator,
    ResidualGeneratorConfig,
    upsample_nearest,
)
from xmodal_jax.nets.image import halvings
from xmodal_jax.types import Tokens

KEY = jax.random.key(0)
B, Z, C, L, E = 3, 5, 7, 5, 11
MASK = np.arange(L)[None, :] < np.array([5, 2, 0])[:, None]  # the last example has no word at all


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def keys(n):
    return example_keys(KEY, jnp.arange(n))


def moved(shapes, scale=0.3):
    """Random parameters of these shapes, those included that start at zero."""
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [scale * normal(k, *leaf.shape) for k, leaf in enumerate(leaves)])


def exact(tree):
    """As the oracle takes it."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def parameters(module, *args, **options):
    return moved(jax.eval_shape(lambda: module.init(KEY, *args, **options))["params"])


NOISE, VECTOR, WORDS = normal(50, B, Z), normal(51, B, C), normal(52, B, L, E)
CONDITION = Condition(VECTOR, Tokens(WORDS, jnp.asarray(MASK)))


# -- sizes --------------------------------------------------------------------------------------------


def test_halvings_end_at_an_odd_or_small_side():
    known = {
        (28, 28): 2,
        (32, 32): 3,
        (16, 24): 2,
        (64, 16): 2,
        (8, 12): 1,
        (18, 16): 1,
        (7, 32): 0,
        (6, 6): 0,
    }
    assert {size: halvings(size) for size in known} == known
    assert halvings((32, 32), smallest=8) == 2


def test_upsampling_repeats_and_its_gradient_is_a_sum():
    x, given = normal(0, 2, 3, 5, 7), normal(1, 2, 6, 10, 7)
    value, back = jax.vjp(upsample_nearest, x)
    np.testing.assert_array_equal(value, np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
    blocks = np.asarray(given, np.float64).reshape(2, 3, 2, 5, 2, 7)
    np.testing.assert_allclose(back(given)[0], blocks.sum((2, 4)), rtol=1e-5, atol=1e-6)


# -- modulation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fusion", "rms"])
def test_modulation_is_the_papers(kind):
    module, x = Modulation(kind), 2 + normal(0, B, 2, 5, 6)
    params = parameters(module, x, VECTOR, None)
    found = jax.jit(lambda p, x, c: module.apply({"params": p}, x, c, None))(params, x, VECTOR)
    wanted = oracle.modulate(kind, *exact((params, x, VECTOR)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    first = jax.jit(module.init)(KEY, x, VECTOR, None)["params"]
    affine = [leaf for name, leaf in first.items() if name.startswith("affine")]
    assert len(affine) == 1 + (kind == "fusion") and not any(map(np.any, jax.tree.leaves(affine)))


def test_batch_norm_is_of_the_batch_in_training_and_of_the_past_in_evaluation():
    module, n = Modulation("batch_norm", "data"), 8
    alone = dataclasses.replace(module, axis_name=None)
    x, vector = 2 + 3 * normal(0, n, 2, 3, 5), normal(1, n, C)
    params = parameters(alone, x, vector, None)
    past = {"norm": {"mean": normal(2, 5), "var": jnp.exp(normal(3, 5))}}

    def train(module, x, vector, keys):
        variables = {"params": params, "batch_stats": past}
        return module.apply(variables, x, vector, keys, mutable=["batch_stats"])

    y, after = jax.jit(lambda x, c, k: train(alone, x, c, k))(x, vector, keys(n))
    wanted = oracle.modulate("batch_norm", *exact((params, x, vector)))
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)
    seen = np.asarray(x, np.float64)
    for name, own in (("mean", seen.mean((0, 1, 2))), ("var", seen.var((0, 1, 2)))):
        expected = 0.9 * np.asarray(past["norm"][name]) + 0.1 * own
        np.testing.assert_allclose(after["batch_stats"]["norm"][name], expected, rtol=1e-5)

    evaluate = jax.jit(
        lambda x, c: alone.apply({"params": params, "batch_stats": past}, x, c, None, mutable=["batch_stats"])
    )
    y, same = evaluate(x, vector)
    wanted_then = oracle.modulate("batch_norm", *exact((params, x, vector)), **exact(past["norm"]))
    np.testing.assert_allclose(y, wanted_then, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], past)

    # Of the global batch, on any number of devices.
    split = lambda x: x.reshape(4, 2, *x.shape[1:])
    run = jax.pmap(lambda x, c, k: train(module, x, c, k), "data", devices=jax.devices()[:4])
    y, everywhere = run(split(x), split(vector), split(keys(n)))
    np.testing.assert_allclose(y.reshape(x.shape), wanted, rtol=1e-4, atol=1e-5)
    for copies, one in zip(*map(jax.tree.leaves, (everywhere, after)), strict=True):
        np.testing.assert_allclose(copies, np.broadcast_to(one, copies.shape), rtol=1e-5)


@pytest.mark.parametrize(
    "module", [ResidualGenerator((8, 8, 1), 8, modulation="batch_norm"), DCGANGenerator((8, 8, 1), 3)]
)
def test_training_with_batch_norm_needs_mutable_statistics(module):
    condition = Condition(VECTOR)
    variables = jax.eval_shape(module.init, KEY, NOISE, condition)
    assert variables["batch_stats"]
    run = lambda v, k, **options: module.apply(v, NOISE, condition, keys=k, **options)
    with pytest.raises(flax.errors.ModifyScopeVariableError):
        jax.eval_shape(run, variables, keys(B))
    jax.eval_shape(lambda v: run(v, None), variables)
    _, after = jax.eval_shape(lambda v, k: run(v, k, mutable=["batch_stats"]), variables, keys(B))
    assert jax.tree.structure(after["batch_stats"]) == jax.tree.structure(variables["batch_stats"])


# -- generators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(28, 28, 1), (16, 24, 3)])
@pytest.mark.parametrize("name", ["residual", "dcgan", "r3gan", "mlp"])
def test_generators_make_float32_images(name, shape):
    options = dict(heads=2, attention=2) if name == "residual" else {}
    module = choose(Generator, name)(width=8, dtype="bfloat16", **options).build(shape)
    images, variables = jax.eval_shape(lambda: module.init_with_output(KEY, NOISE, CONDITION))
    assert images.shape == (B, *shape) and images.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    jax.eval_shape(lambda: module.init(KEY, NOISE, Condition()))  # unconditional


@pytest.fixture(scope="module")
def residual():
    """With a block of each kind: two that attend, one with fewer channels that does not."""
    module = ResidualGenerator((32, 48, 3), 12, modulation="rms", attention=2, heads=3)
    params = parameters(module, NOISE, CONDITION)
    return params, jax.jit(lambda p, *args: module.apply({"params": p}, *args))


def test_residual_generator_is_its_blocks(residual):
    params, draw = residual
    attended = {f"attention_{k}{part}" for k in (0, 1) for part in ("", "_norm", "_places", "_query")}
    assert {k for k in params if "shortcut" in k or k.startswith("attention")} == {"shortcut_2", *attended}
    images = draw(params, NOISE, CONDITION)
    sizes = dict(sizes=[(4, 6), (8, 12), (16, 24)], width=12, kind="rms", attended=(4, 8))
    wanted = oracle.residual_generator(*exact((params, NOISE, VECTOR, WORDS)), MASK, **sizes)
    assert 0.1 < np.abs(wanted).mean() < 0.9
    np.testing.assert_allclose(images, wanted, atol=2e-4)
    assert float(jnp.abs(images).max()) <= 1


def test_noise_matters_and_only_ones_own(residual):
    params, draw = residual
    images = draw(params, NOISE, CONDITION)
    other = np.asarray(draw(params, NOISE.at[1].add(1.0), CONDITION) != images).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(other, [False, True, False])


def test_a_padded_word_has_no_influence_and_no_gradient():
    module = ResidualGenerator((8, 12, 1), 8, attention=1, heads=2)
    params = parameters(module, NOISE, CONDITION)

    @jax.jit
    def run(words):
        def total(words):
            images = module.apply(
                {"params": params}, NOISE, Condition(VECTOR, Tokens(words, jnp.asarray(MASK)))
            )
            return jnp.sum(jnp.sin(3 * images)), images

        (_, images), slope = jax.value_and_grad(total, has_aux=True)(words)
        return images, slope

    images, slope = run(WORDS)
    np.testing.assert_array_equal(np.abs(slope).max(-1) > 0, MASK)
    changed, again = run(jnp.where(MASK[:, :, None], WORDS, 1e4))
    np.testing.assert_array_equal(changed, images)
    np.testing.assert_array_equal(again, slope)


def test_the_oracles_convolutions_are_those_of_torch():
    """Of DCGAN: kernels of 4 with a stride of 2 and a padding of 1, transposed for the generator."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=size) for size in ((2, 6, 8, 3), (4, 4, 3, 5), 5))
    p = {"kernel": kernel, "bias": bias}
    image, weight, offset = torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(kernel), torch.tensor(bias)
    down = torch.nn.functional.conv2d(image, weight.permute(3, 2, 0, 1), offset, stride=2, padding=1)
    np.testing.assert_allclose(oracle.conv(p, x, 2), down.permute(0, 2, 3, 1), atol=1e-12)
    # PyTorch's kernel is that of the convolution whose gradient it is: turned by 180 degrees.
    turned = weight.permute(2, 3, 0, 1).flip(2, 3)
    up = torch.nn.functional.conv_transpose2d(image, turned, offset, stride=2, padding=1)
    np.testing.assert_allclose(oracle.upsample(p, x), up.permute(0, 2, 3, 1), atol=1e-12)


def test_dcgan_generator_is_its_layers():
    module = DCGANGenerator((16, 24, 3), 3)
    shapes = jax.eval_shape(lambda: module.init(KEY, NOISE, Condition(VECTOR)))
    params, statistics = moved(shapes["params"]), moved(shapes["batch_stats"])
    statistics = {k: {"mean": v["mean"], "var": jnp.exp(v["var"])} for k, v in statistics.items()}
    assert {k: v["kernel"].shape for k, v in params.items() if "up" in k} == {
        "up_0": (4, 4, 6, 3),
        "up_1": (4, 4, 3, 3),
    }
    assert "bias" in params["up_1"] and "bias" not in params["up_0"] and "bias" not in params["start"]
    draw = jax.jit(lambda v, n: module.apply(v, n, Condition(VECTOR)))
    images = draw({"params": params, "batch_stats": statistics}, NOISE)
    wanted = oracle.dcgan_generator(*exact((params, statistics, NOISE, VECTOR)), size=(4, 6), stages=2)
    assert 0.05 < np.abs(wanted).mean() < 0.9
    np.testing.assert_allclose(images, wanted, atol=1e-5)


def test_mlp_generator_is_its_layers():
    module = MLPGenerator((5, 3, 2), width=11, depth=2)
    params = parameters(module, NOISE, Condition(VECTOR))
    images = jax.jit(lambda p, n: module.apply({"params": p}, n, Condition(VECTOR)))(params, NOISE)
    own, x = exact(params), np.concatenate(exact([NOISE, VECTOR]), axis=1)
    for k in range(2):
        x = oracle.leaky(oracle.dense(own[f"hidden_{k}"], x))
    wanted = np.tanh(oracle.dense(own["pixels"], x)).reshape(B, 5, 3, 2)
    np.testing.assert_allclose(images, wanted, atol=1e-5)


def test_what_cannot_be_generated_is_refused():
    for module in (ResidualGenerator((9, 16, 1)), DCGANGenerator((9, 16, 1))):
        with pytest.raises(ValueError, match="9 x 16 pixels cannot be halved"):
            jax.eval_shape(module.init, KEY, NOISE, Condition())
    with pytest.raises(ValueError, match="modulation must be one of .*'layer'"):
        jax.eval_shape(ResidualGenerator((8, 8, 1), modulation="layer").init, KEY, NOISE, Condition())
    for config, field in (
        (DCGANGeneratorConfig, "noise"), (ResidualGeneratorConfig, "width"), (MLPGeneratorConfig, "depth"),
        (ResidualGeneratorConfig, "heads"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"GeneratorConfig.{field} must be at least 1, got 0"):
            config(**{field: 0})


# -- what knows the condition -------------------------------------------------------------------------


def test_conditioning_augmentation_draws_from_the_gaussian_whose_divergence_it_gives():
    module, noise = ConditioningAugmentation(4), normal(3, B, 4)
    params = parameters(module, VECTOR, None)
    apply = jax.jit(lambda p, c, e: module.apply({"params": p}, c, e))
    drawn, kl = apply(params, VECTOR, noise)
    mean, log_variance = np.split(oracle.dense(*exact((params["moments"], VECTOR))), 2, axis=1)
    sigma = np.exp(log_variance / 2)
    np.testing.assert_allclose(drawn, mean + sigma * np.asarray(noise), rtol=1e-5, atol=1e-6)
    # E log N(x; mu, sigma) - log N(x; 0, 1), whose integrals are the Gaussian's entropy and second moment.
    closed = -np.log(sigma) - 0.5 + (sigma**2 + mean**2) / 2
    assert closed.mean(axis=1).min() > 0.1
    np.testing.assert_allclose(kl, closed.mean(axis=1), rtol=1e-5)
    certain, same = apply(params, VECTOR, None)
    np.testing.assert_allclose(certain, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(same, kl)
    standard = jax.tree.map(jnp.zeros_like, params)  # mu = 0 and sigma = 1
    np.testing.assert_array_equal(apply(standard, VECTOR, noise)[1], 0.0)


@pytest.mark.parametrize(
    "kind, outputs, vector",
    [("projection", 1, VECTOR), ("concat", 3, VECTOR), ("none", 2, None), ("linear", 1, VECTOR), ("linear", 1, None)],
)  # fmt: skip
def test_critic_is_the_papers(kind, outputs, vector):
    module, tokens = Critic(kind, outputs, hidden=6), normal(4, B, 4, 5)
    params = parameters(module, tokens, vector)
    found = jax.jit(lambda p, t: module.apply({"params": p}, t, vector))(params, tokens)
    assert found.shape == (B, outputs)
    wanted = oracle.critic(kind, *exact((params, tokens, vector)))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module, vector, words",
    [
        (Critic("cosine"), VECTOR, "head must be one of .*'cosine'"),
        (Critic("concat"), None, "'concat' needs condition"),
        (Critic("projection"), None, "'projection' needs condition"),
        (Critic("none"), VECTOR, "'none' takes no condition"),
        (Critic("projection", 2), VECTOR, "projection has one output, not 2"),
        (Critic("linear", 2), VECTOR, "linear has one output, not 2"),
    ],
)
def test_critic_says_what_does_not_fit(module, vector, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: module.init(KEY, jnp.ones((B, 2, 3)), vector))


def test_contrast_gives_unit_vectors_of_one_space():
    module, tokens = ContrastiveHead(6, words=True), normal(4, B, 4, 5)
    params = parameters(module, tokens, CONDITION)
    found = jax.jit(lambda p, t: module.apply({"params": p}, t, CONDITION))(params, tokens)
    given = {"image": tokens.mean(axis=1), "condition": VECTOR, "regions": tokens, "words": WORDS}
    for name, x in given.items():
        x = oracle.dense(*exact((params[name], x)))
        unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
        np.testing.assert_allclose(getattr(found, name), unit, rtol=1e-4, atol=1e-5, err_msg=name)
    shapes = lambda **parts: jax.eval_shape(
        lambda: ContrastiveHead(6, **parts).init_with_output(KEY, tokens, CONDITION)
    )[0]
    assert shapes().regions is None and shapes().words is None and shapes().condition.shape == (B, 6)
    assert shapes(sentences=False, words=True).condition is None
