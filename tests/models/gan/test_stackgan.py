"""The GAN in two stages: a frozen generator of small images, and one that refines them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.gan.test_method import CLASS, CONFIG, OPTIMIZER, make_batch
from tests.oracles import gan as oracle
from tests.support import LAYOUTS, assert_device_invariant, assert_resumes, random_params
from xmodal_jax.core import trees
from xmodal_jax.models.gan import (
    OBJECTIVE_PRESETS,
    FirstStage,
    GANConfig,
    NoCondition,
    Reconstruction,
    first_stage_config,
    make_gan,
    with_preset,
)
from xmodal_jax.nets.encoders import DCGANEncoderConfig, MLPEncoderConfig
from xmodal_jax.nets.gan import DCGANGeneratorConfig, MLPGeneratorConfig, StackGANGeneratorConfig
from xmodal_jax.nets.stackgan import StackGANGenerator
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.types import Condition

FIRST = DCGANGeneratorConfig(noise=5, width=4, conditioning=3)
STACK = StackGANGeneratorConfig(width=8, blocks=1, scale=2, conditioning=6, first=FIRST)
TWO_STAGES = dataclasses.replace(
    CONFIG, objective="non_saturating", condition=dataclasses.replace(CLASS, auxiliary_weight=0.0),
    generator=STACK, discriminator=MLPEncoderConfig(width=8, depth=1),
)  # fmt: skip
"""8 x 8 pixels, four times as many after the second stage."""
SIZES = dict(shape=(16, 16, 3), classes=3)
KEY = jax.random.key(0)


def positive(statistics):
    """Random statistics of batch norm, whose variances are positive."""
    return trees.map_with_name(lambda name, x: jnp.abs(x) + 0.5 if name.endswith("var") else x, statistics)


def first_stage(config=TWO_STAGES):
    """A first stage with random parameters."""
    own = first_stage_config(config)
    gan = make_gan(own, shape=(8, 8, 3), classes=3)
    params, variables = random_params(gan.init, KEY, {}, seed=1)
    variables["batch_stats"] = positive(variables["batch_stats"])
    params = {"generator": params["generator"], "variables": variables}
    return FirstStage(own, (8, 8, 3), params)


def make(**changes):
    config = dataclasses.replace(TWO_STAGES, **changes)
    return make_gan(config, **SIZES, first_stage=first_stage(config))


def batch_of(n=8):
    rng = np.random.default_rng(0)
    batch = {k: v for k, v in make_batch(n).items() if k in ("label", "index")}
    return {**batch, "image": rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)}


def normed(p, statistics, name, x, stride=1):
    """A convolution and batch norm with these statistics, or with those of the batch."""
    x, norm = oracle.conv(p[f"{name}_conv"], x, stride), p[f"{name}_norm"]
    kept = statistics and statistics[f"{name}_norm"]
    mean, var = (kept["mean"], kept["var"]) if kept else (x.mean((0, 1, 2)), x.var((0, 1, 2)))
    return oracle.batch_norm(x, mean, var) * norm["scale"] + norm["bias"]


def by_hand(p, statistics, images, vector, *, shrinkings, blocks, enlargements):
    """The second stage in NumPy: encode, join the condition to every position, residual blocks, upsample."""
    relu = lambda x: np.maximum(x, 0)
    x = relu(oracle.conv(p["encode"], images))
    for k in range(shrinkings):
        x = relu(normed(p, statistics, f"down_{k}", x, stride=2))
    tiled = np.tile(vector[:, None, None], (1, *x.shape[1:3], 1))
    x = relu(normed(p, statistics, "condition", np.concatenate([x, tiled], -1)))
    for k in range(blocks):
        branch = relu(normed(p, statistics, f"block_{k}_0", x))
        x = relu(x + normed(p, statistics, f"block_{k}_1", branch))
    for k in range(enlargements):
        x = relu(normed(p, statistics, f"up_{k}", x.repeat(2, axis=1).repeat(2, axis=2)))
    return np.tanh(oracle.conv(p["pixels"], x))


@pytest.mark.parametrize("small, large, shrinkings", [((8, 8), (16, 16), 1), ((4, 6), (16, 24), 0)])
def test_the_network_is_the_one_of_the_paper(small, large, shrinkings):
    module = StackGANGenerator((*large, 3), width=8, blocks=2)
    rng = np.random.default_rng(0)
    images, vector = rng.uniform(-1, 1, (3, *small, 3)), rng.normal(size=(3, 5))
    inputs = jnp.float32(images), Condition(jnp.float32(vector))
    variables = random_params(module.init, KEY, *inputs)
    variables["batch_stats"] = positive(variables["batch_stats"])
    p, statistics = jax.tree.map(np.float64, (variables["params"], variables["batch_stats"]))
    sizes = dict(
        shrinkings=shrinkings, blocks=2, enlargements=shrinkings + int(np.log2(large[0] // small[0]))
    )
    evaluated = jax.jit(lambda v, x, c: module.apply(v, x, c))(variables, *inputs)
    np.testing.assert_allclose(evaluated, by_hand(p, statistics, images, vector, **sizes), atol=2e-4)
    train = jax.jit(
        lambda v, x, c: module.apply(v, x, c, keys=jax.random.split(KEY, 3), mutable=["batch_stats"])
    )
    trained, _ = train(variables, *inputs)
    np.testing.assert_allclose(trained, by_hand(p, None, images, vector, **sizes), atol=2e-3)


def test_with_a_skip_connection_it_begins_with_the_upsampled_image_and_adds_detail():
    module = StackGANGenerator((16, 16, 3), width=8, blocks=1, skip=True)
    rng = np.random.default_rng(0)
    images, vector = rng.uniform(-0.9, 0.9, (3, 8, 8, 3)), rng.normal(size=(3, 5))
    inputs = jnp.float32(images), Condition(jnp.float32(vector))
    variables = jax.jit(module.init)(KEY, *inputs)
    apply = jax.jit(lambda v, x, c: module.apply(v, x, c))
    # Pixel centres of the large image lie at (i + 0.5) / 2 - 0.5 of the small one; beyond its border it is constant.
    weights = np.maximum(0, 1 - abs(((np.arange(16) + 0.5) / 2 - 0.5).clip(0, 7)[:, None] - np.arange(8)))
    upsampled = np.einsum("ia,jb,nabc->nijc", weights, weights, images)
    np.testing.assert_allclose(apply(variables, *inputs), upsampled, atol=1e-5)
    params = dict(
        variables["params"], detail={"kernel": variables["params"]["detail"]["kernel"], "bias": jnp.ones(3)}
    )
    brighter = apply({**variables, "params": params}, *inputs)
    np.testing.assert_allclose(np.arctanh(brighter) - np.arctanh(upsampled), 1, atol=1e-3)
    extreme = apply(variables, jnp.ones((3, 8, 8, 3)), inputs[1])  # whose arctanh is infinite
    np.testing.assert_allclose(extreme, 0.99, atol=1e-5)


def test_the_sizes_are_those_of_16_and_64_pixels():
    module = StackGANGenerator((64, 64, 3), width=32)
    shapes = jax.eval_shape(module.init, KEY, jnp.zeros((2, 16, 16, 3)), Condition(jnp.zeros((2, 10))))[
        "params"
    ]
    kernels = {name: p["kernel"].shape for name, p in shapes.items() if "kernel" in p}
    assert kernels["down_1_conv"] == (4, 4, 64, 128) and kernels["condition_conv"] == (3, 3, 138, 128)
    assert [kernels[f"up_{k}_conv"][2:] for k in range(4)] == [(128, 64), (64, 32), (32, 16), (16, 8)]
    for size in ((60, 64, 3), (16 * 3, 16 * 3, 3)):
        with pytest.raises(ValueError, match="the same power of 2 times longer"):
            jax.eval_shape(StackGANGenerator(size).init, KEY, jnp.zeros((1, 16, 16, 3)), Condition())


def test_the_second_stage_refines_the_images_of_the_first():
    """Of the same noise and condition, also between two conditions; they are those of the first stage alone."""
    gan, noise = make(), np.random.default_rng(0).normal(size=(3, 5))
    batch = {"label": jnp.array([0, 1, 2]), "noise": jnp.float32(noise)}
    params, variables = random_params(gan.init, KEY, {})
    variables["batch_stats"] = positive(variables["batch_stats"])
    between = {**batch, "toward_label": jnp.array([1, 2, 0]), "blend": jnp.float32([0.0, 0.3, 1.0])}
    whole = {"generator": params["generator"], "variables": variables, "frozen": gan.frozen}
    alone = jax.jit(make_gan(first_stage_config(TWO_STAGES), shape=(8, 8, 3), classes=3).predict)
    first, second = jax.jit(gan.predict_first_stage), jax.jit(gan.predict)
    for inputs in (batch, between):
        small, images = first(whole, inputs), second(whole, inputs)
        np.testing.assert_allclose(small, alone(gan.frozen["first_stage"], inputs), atol=1e-6)
        assert (small.shape, images.shape) == ((3, 8, 8, 3), (3, 16, 16, 3))
    networks = gan.predict.__self__.networks

    @jax.jit
    def refine(params, small):
        condition, _ = networks.generator_condition(params, None, batch, None)
        return networks.generate(params, variables["batch_stats"], condition, small, None)[0]

    small, images = first(whole, batch), second(whole, batch)
    np.testing.assert_allclose(images, refine(params["generator"], small), atol=1e-5)
    assert np.abs(images - refine(params["generator"], -small)).max() > 1e-3


def closed_form(p, vector):
    """The divergence of conditioning augmentation from N(0, 1), a mean over dimensions."""
    mean, log_variance = np.split(
        np.float64(vector) @ np.float64(p["kernel"]) + np.float64(p["bias"]), 2, axis=-1
    )
    return 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).mean(-1)


def test_each_stage_has_its_own_conditioning_augmentation_whose_divergence_has_the_weight_2():
    gan, batch = make(), batch_of()
    params, variables = random_params(gan.init, KEY, batch)
    own, first = params["generator"], gan.frozen["first_stage"]["generator"]
    assert own["augmentation"]["moments"]["kernel"].shape == (7, 12)
    assert first["augmentation"]["moments"]["kernel"].shape == (7, 6)

    @jax.jit
    def losses(params, variables, batch, frozen):
        generated, _ = gan.generate(params["generator"], variables, batch, KEY, frozen=frozen)
        return generated, gan.g_loss(generated, params["discriminator"], variables, batch, KEY, frozen=frozen)

    generated, (loss, aux) = losses(params, variables, batch, gan.frozen)
    kl = closed_form(own["augmentation"]["moments"], own["classes"]["embedding"][batch["label"]])
    np.testing.assert_allclose(generated["kl"], kl, rtol=1e-4)
    known = batch["label"] >= 0
    np.testing.assert_allclose(aux["g_kl"], kl[known].mean(), rtol=1e-4)
    np.testing.assert_allclose(loss, aux["g_loss"] + 2.0 * aux["g_kl"], rtol=1e-5)
    # The first stage samples too, by the examples' keys; its mean is what it has in evaluation.
    draw = jax.jit(gan.predict.__self__._first_stage_images)
    noise, keys = jnp.zeros((8, 5)), jax.random.split(KEY, 16)
    small = [draw(gan.frozen, batch, noise, k) for k in (keys[:8], keys[8:])]
    mean = jax.jit(gan.predict_first_stage)({"frozen": gan.frozen}, {**batch, "noise": noise})
    assert np.abs(small[0] - mean).max() > 1e-3 and np.abs(small[0] - small[1]).max() > 1e-3


def test_no_gradient_reaches_the_first_stage():
    gan, batch = make(), batch_of()
    params, variables = random_params(gan.init, KEY, batch)

    @jax.jit
    def slopes(generator, frozen):
        def loss(generator, frozen):
            generated, _ = gan.generate(generator, variables, batch, KEY, frozen=frozen)
            args = generated, params["discriminator"], variables, batch, KEY
            return gan.g_loss(*args, frozen=frozen)[0]

        return jax.grad(loss, argnums=(0, 1))(generator, frozen)

    batch = jax.device_put(batch)
    own, frozen = slopes(params["generator"], gan.frozen)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(frozen))
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves({k: own[k] for k in ("net", "augmentation")}))


@pytest.mark.parametrize("stage", ["first", "second"])
def test_the_discriminator_is_matching_aware(stage):
    """``softplus(-D(x, c)) + 1/2 (softplus(D(y, c)) + softplus(D(x, c')))``, of wrong pairs only."""
    gan, batch = make(), batch_of()
    if stage == "first":
        gan = make_gan(first_stage_config(TWO_STAGES), shape=(8, 8, 3), classes=3)
        batch["image"] = batch["image"][:, ::2, ::2]
    label = batch["label"] = np.array([0, 1, 1, 2, 0, -1, 2, 1], np.int32)
    params, variables = random_params(gan.init, KEY, batch)
    networks = gan.predict.__self__.networks

    @jax.jit
    def run(params, variables, batch, frozen):
        options = {} if frozen is None else {"frozen": frozen}
        d = params["discriminator"]
        generated, _ = gan.generate(params["generator"], variables, batch, KEY, **options)
        loss, _ = gan.d_loss(d, variables, batch, generated, KEY, jnp.int32(0), **options)
        c = d["classes"]["embedding"][batch["label"]]
        tokens = lambda x: networks.trunk.apply({"params": d["trunk"]}, x).values
        real, fake = tokens(jnp.float32(batch["image"]) / 127.5 - 1), tokens(generated["image"])
        pairs = (real, c), (fake, c), (real, jnp.roll(c, 1, axis=0))
        return loss, [networks.critic.apply({"params": d["critic"]}, *pair)[:, 0] for pair in pairs]

    loss, logits = run(params, variables, batch, gan.frozen)
    softplus = lambda x: np.logaddexp(0.0, np.float64(x))
    real, fake, wrong = softplus(-logits[0]), softplus(logits[1]), softplus(logits[2])
    known = label >= 0
    counts = known & np.roll(known, 1) & (label != np.roll(label, 1))
    assert counts.sum() == 5
    expected = (real + np.where(counts, 0.5 * (fake + wrong), fake))[known].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "layouts",
    # The losses sum over the axis of devices there; in the other mode the compiler splits the whole batch.
    [[("pmap", 4, 1)], pytest.param(LAYOUTS, marks=pytest.mark.slow)],
    ids=["a layout", "all layouts"],
)
def test_the_devices_do_not_change_the_result(layouts):
    batch = batch_of(16)
    present = {"image": np.arange(16) % 7 != 3}
    assert_device_invariant(make(), {**batch, "present": present}, layouts=layouts, config=OPTIMIZER)


def test_a_stopped_run_ends_bit_identical_and_the_first_stage_stays_as_it_was(tmp_path):
    gan = make()
    arrays = {k: v for k, v in batch_of(16).items() if k != "index"}
    assert_resumes(gan, arrays, tmp_path, optimizer=OPTIMIZER)
    kept = restore_run(tmp_path / "stopped").params["frozen"]
    jax.tree.map(np.testing.assert_array_equal, kept, gan.frozen)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="stackgan needs a trained first stage"):
        make_gan(TWO_STAGES, **SIZES)
    with pytest.raises(ValueError, match="dcgan has no first stage"):
        make_gan(first_stage_config(TWO_STAGES), **SIZES, first_stage=first_stage())
    with pytest.raises(
        ValueError, match=r"for images of \(32, 32, 3\) and scale 2 they must have \(16, 16, 3\)"
    ):
        make_gan(TWO_STAGES, shape=(32, 32, 3), classes=3, first_stage=first_stage())
    with pytest.raises(ValueError, match="no multiple of 2 .--model.generator.scale"):
        make_gan(TWO_STAGES, shape=(15, 16, 3), classes=3, first_stage=first_stage())
    with pytest.raises(ValueError, match="choose --model.reconstruction none"):
        dataclasses.replace(TWO_STAGES, reconstruction=Reconstruction())
    with pytest.raises(ValueError, match="conditioning changes the condition's vector"):
        dataclasses.replace(TWO_STAGES, condition=NoCondition())
    with pytest.raises(ValueError, match="scale must be a power of 2, at least 2, got 6"):
        StackGANGeneratorConfig(scale=6)
    assert StackGANGeneratorConfig(first=MLPGeneratorConfig(noise=7)).noise == 7


def test_the_preset_has_two_stages_of_the_same_condition():
    config = with_preset(GANConfig(condition=CLASS, discriminator=DCGANEncoderConfig(width=8)), "stackgan")
    assert "stackgan" in OBJECTIVE_PRESETS and config.condition == CLASS
    first = first_stage_config(config)
    assert (config.generator.first_shape((32, 32, 3)), first.generator) == (
        (16, 16, 3),
        config.generator.first,
    )
    assert config.generator.conditioning and first.generator.conditioning


@pytest.mark.parametrize("name", OBJECTIVE_PRESETS)
def test_every_preset_can_do_without_a_condition(name):
    """Conditioning augmentation is left out in both stages."""
    plain = GANConfig(condition=NoCondition(), discriminator=DCGANEncoderConfig(width=8))
    config = with_preset(plain, name)
    assert config.generator.conditioning == 0
    if config.generator.refines_images:
        make_gan(first_stage_config(config), shape=(16, 16, 3))
        first = FirstStage(first_stage_config(config), (16, 16, 3))
        gan = make_gan(config, shape=(32, 32, 3), first_stage=first)
        jax.eval_shape(gan.init, KEY, {})
