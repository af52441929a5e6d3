"""R3GAN: its losses at critics whose gradients are known, its schedules, and its training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.gan.test_method import (
    ADAM,
    CLASS,
    DENSE,
    OPTIMIZER,
    begin,
    make,
    make_batch,
    on_device,
    same,
)
from tests.support import assert_device_invariant, assert_resumes
from xmodal_jax.models.conditions import DataSizes
from xmodal_jax.models.gan import (
    OBJECTIVE_PRESETS,
    ClassCondition,
    ConditionalGAN,
    DiffAugment,
    GANConfig,
    MatchingAwarePenalty,
    NoCondition,
    R1Penalty,
    R2Penalty,
    ScheduledAugment,
    with_preset,
)
from xmodal_jax.models.gan.networks import GANNetworks
from xmodal_jax.nets.encoders import R3GANEncoderConfig
from xmodal_jax.nets.gan import R3GANGeneratorConfig
from xmodal_jax.train.schedule import StepPlan

HEAD = ClassCondition(width=7, head="linear", auxiliary_weight=0.0, matching_aware=False)
GAMMA = dict(weight=0.6, final_weight=0.1, before_augmentation=True)
LOSSES = dict(objective="relativistic", penalty=R1Penalty(**GAMMA), second_penalty=R2Penalty(**GAMMA))
SCHEDULED = ScheduledAugment(probability=0.2, final_probability=0.9)
NETWORKS = dict(
    generator=R3GANGeneratorConfig(noise=5, width=8, group_size=4),
    discriminator=R3GANEncoderConfig(width=8, group_size=4),
)
R3GAN = LOSSES | NETWORKS | dict(condition=HEAD, augmentation=SCHEDULED)
DENSE_R3GAN = R3GAN | DENSE
"""With networks that compile fast, for what does not depend on the networks."""
SCHEDULES = dataclasses.replace(
    OPTIMIZER,
    discriminator=dataclasses.replace(ADAM, b2=0.9, final_b2=0.99, schedule="cosine", final_scale=0.25),
    generator=dataclasses.replace(ADAM, b2=0.9, final_b2=0.99, schedule="cosine", final_scale=0.25),
    ema_half_life=0.25,
)


@dataclasses.dataclass(frozen=True)
class Quadratic(GANNetworks):
    """A critic ``a x + q x^2 / 2``, summed over the image, whose gradient by the image is ``a + q x``."""

    def image_tokens(self, params, inputs, keys):
        return inputs.image.reshape(len(inputs.image), 1, -1)

    def score(self, params, tokens, vector):
        x = tokens[:, 0]
        return (params["a"][None] * x + 0.5 * params["q"][None] * x**2).sum(axis=1, keepdims=True)


class Dimmer(DiffAugment):
    """An augmentation that halves all pixels."""

    def apply(self, images, variables, keys):
        return 0.5 * images


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(a, q, real, fake, gamma, dim, before):
    """The discriminator's loss and its gradients by ``a`` and ``q``, and the generator's and its by ``fake``.

    ``dim``: the factor of the augmentation; ``before``: whether the penalties' gradient is by the image before it.
    """
    x, y = dim * real, dim * fake
    score = lambda x: x @ a + x**2 @ q / 2
    gap, n, scale = score(y) - score(x), len(x), dim if before else 1.0
    slopes = scale * (a + q * x), scale * (a + q * y)
    loss = np.log1p(np.exp(gap)).mean() + gamma * sum((s**2).sum(1).mean() / 2 for s in slopes)
    weight = sigmoid(gap)[:, None]
    by_a = (weight * (y - x)).mean(0) + gamma * scale * (slopes[0] + slopes[1]).mean(0)
    by_q = (weight * (y**2 - x**2) / 2).mean(0) + gamma * scale * (slopes[0] * x + slopes[1] * y).mean(0)
    g_loss = np.log1p(np.exp(-gap)).mean()
    return loss, by_a, by_q, g_loss, -sigmoid(-gap)[:, None] * dim * (a + q * y) / n


@pytest.mark.parametrize(
    "progress, gamma",
    [(None, 0.6), (0.0, 0.6), (0.25, 0.1 + 0.25 * (1 + np.sqrt(0.5))), (0.5, 0.35), (1.0, 0.1)],
)
@pytest.mark.parametrize("before", [True, False])
def test_losses_of_a_quadratic_critic_are_those_computed_by_hand(progress, gamma, before):
    """Softplus of the difference of pairs, R1 and R2 with one half, gamma once, and a norm over all pixels."""
    penalty = dict(GAMMA, before_augmentation=before)
    config = GANConfig(
        objective="relativistic", condition=NoCondition(), penalty=R1Penalty(**penalty), augmentation=Dimmer(),
        second_penalty=R2Penalty(**penalty), **DENSE,
    )  # fmt: skip
    gan = ConditionalGAN(config, Quadratic(config, DataSizes((8, 8, 3), 0, 0, 0)))
    rng = np.random.default_rng(0)
    a, q = rng.normal(size=(2, 192)) * 0.1
    batch = {k: v for k, v in make_batch(4).items() if k in ("image", "index")}
    if progress is not None:
        batch["progress"] = np.full(4, progress, np.float32)
    real, fake = batch["image"] / 127.5 - 1.0, rng.uniform(-1, 1, (4, 8, 8, 3))
    params = {"a": jnp.float32(a), "q": jnp.float32(q)}

    @jax.jit
    def run(params, batch, made):
        d_loss = lambda p: gan.d_loss(p, {}, batch, {"image": made}, jax.random.key(0), jnp.int32(3))
        g_loss = lambda m: gan.g_loss({"image": m}, params, {}, batch, jax.random.key(0))
        of_d = jax.value_and_grad(d_loss, has_aux=True)(params)
        return of_d, jax.value_and_grad(g_loss, has_aux=True)(made)

    ((loss, (aux, _)), slopes), ((g_loss, _), g_slope) = run(params, batch, jnp.float32(fake))
    flat = lambda x: x.reshape(4, -1)
    wanted = by_hand(a, q, flat(real), flat(fake), gamma, 0.5, before)
    found = loss, slopes["a"], slopes["q"], g_loss, flat(np.asarray(g_slope))
    for name, ours, theirs in zip(("loss", "a", "q", "g_loss", "made"), found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=name)
    assert aux["d_penalty"] != aux["d_second_penalty"]


def test_the_probability_of_augmentation_follows_its_schedule():
    gan = make(**DENSE_R3GAN)
    _, state, batch = begin(gan)
    variables = jax.jit(gan.init)(jax.random.key(0), batch)[1]
    assert float(variables["augment_probability"]) == pytest.approx(0.2)
    made, params = {"image": jnp.zeros((16, 8, 8, 3))}, state.params["discriminator"]

    @jax.jit
    def probability(progress):
        own = {**batch, "progress": jnp.full(16, progress)}
        _, (_, variables) = gan.d_loss(params, state.variables, own, made, jax.random.key(3), jnp.int32(0))
        return variables["augment_probability"]

    for progress, expected in ((0.0, 0.2), (0.5, 0.55), (1.0, 0.9)):
        assert float(probability(progress)) == pytest.approx(expected, rel=1e-6)
    for name in ("probability", "final_probability"):
        with pytest.raises(ValueError, match=f"{name} must lie in .0, 1., got 1.5"):
            ScheduledAugment(**{name: 1.5})


def test_the_half_life_of_the_average_grows_from_nothing():
    plan = StepPlan.begin(100)
    weight = jax.jit(lambda step: SCHEDULES.ema_weight(step, plan))  # in the end 25 steps
    assert float(weight(0)) == 1.0
    assert float(weight(50)) == pytest.approx(1 - 0.5 ** (1 / 12.5), rel=1e-5)
    assert float(weight(100)) == pytest.approx(1 - 0.5 ** (1 / 25), rel=1e-5)
    in_steps = dataclasses.replace(SCHEDULES, ema_half_life=4.0)
    assert float(in_steps.ema_weight(jnp.int32(100), plan)) == pytest.approx(1 - 0.5**0.25, rel=1e-5)
    with pytest.raises(ValueError, match="ema_half_life must be positive"):
        dataclasses.replace(SCHEDULES, ema_half_life=0.0)
    with pytest.raises(ValueError, match="steps"):
        SCHEDULES.ema_weight(jnp.int32(0), None)


def test_a_training_is_one_program_and_its_average_that_of_the_half_lives():
    gan = make(**DENSE_R3GAN)
    optimizer = dataclasses.replace(SCHEDULES, generator=dataclasses.replace(SCHEDULES.generator, ema=None))
    training, state, batch = begin(gan, optimizer)
    step, average, probabilities = jax.jit(training.make_step(None)), None, []
    for k in range(4):
        probabilities.append(float(state.variables["augment_probability"]))
        state, metrics = step(state, batch)
        assert metrics["finite"].all()
        own = np.float64(state.params["generator"]["net"]["pixels"]["kernel"])
        half_life = 2.5 * (1 - np.cos(np.pi * k / 10)) / 2  # of 10 steps a quarter in the end
        decay = 0.5 ** (1 / half_life) if k else 0.0
        average = own if k == 0 else decay * average + (1 - decay) * own
        np.testing.assert_allclose(state.ema["net"]["pixels"]["kernel"], average, rtol=1e-4, atol=1e-6)
    assert step._cache_size() == 1
    at = lambda k: 0.9 - 0.7 * (1 + np.cos(np.pi * k / 10)) / 2
    np.testing.assert_allclose(probabilities, [0.2, at(0), at(1), at(2)], rtol=1e-5)  # one step behind


@pytest.mark.parametrize(
    "changes, layouts",
    [
        (DENSE_R3GAN | dict(augmentation=DiffAugment()), [("pmap", 4, 1)]),
        pytest.param(R3GAN, [("pmap", 4, 1), ("sharded", 4, 2)], marks=pytest.mark.slow),
    ],
    ids=["dense", "networks"],
)
def test_the_devices_do_not_change_the_result(changes, layouts):
    batch = make_batch()
    present = {"image": np.arange(16) % 7 != 3}
    batch |= {"present": present, "progress": np.full(16, 0.3, np.float32)}
    assert_device_invariant(make(**changes), batch, layouts=layouts, config=OPTIMIZER)


def test_a_stopped_run_ends_bit_identical(tmp_path):
    arrays = {k: v for k, v in make_batch().items() if k in ("image", "label")}
    assert_resumes(make(**DENSE_R3GAN), arrays, tmp_path, optimizer=SCHEDULES)


def test_what_is_missing_has_no_influence():
    """Neither on the discriminator, through either penalty, nor has it a gradient of the generator's loss."""
    gan = make(**DENSE_R3GAN)
    _, state, batch = begin(gan)
    there = (np.arange(16) % 3 != 0) & (np.asarray(batch["label"]) >= 0)
    present = on_device({"image": there})
    made = np.random.default_rng(5).uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32)
    here = there[:, None, None, None]
    others = {**batch, "image": np.where(here, batch["image"], 255 - np.asarray(batch["image"]))}

    @jax.jit
    def slopes(batch, made):
        batch, params = {**batch, "present": present}, state.params["discriminator"]
        d_loss = lambda p: gan.d_loss(
            p, state.variables, batch, {"image": made}, jax.random.key(3), jnp.int32(0)
        )[0]
        g_loss = lambda m: gan.g_loss({"image": m}, params, state.variables, batch, jax.random.key(4))[0]
        return jax.grad(d_loss)(params), jax.grad(g_loss)(made)

    of_d, of_made = slopes(batch, made)
    of_d_too, of_made_too = slopes(others, np.where(here, made, np.float32(7.0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), of_d, of_d_too)
    assert (np.asarray(of_made_too)[~there] == 0).all()
    assert (np.abs(of_made)[there].max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.slow
def test_the_networks_train():
    """Every parameter of both moves in two steps: in the first the last layers of blocks, which start at 0."""
    gan = make(**R3GAN)
    training, _, batch = begin(gan)
    state, step = jax.jit(training.init)(jax.random.key(0), batch), jax.jit(training.make_step(None))
    after = state
    for _ in range(2):
        after, metrics = step(after, batch)
        assert metrics["finite"].all()
    for player in ("generator", "discriminator"):
        assert not any(same(state.params[player], after.params[player])), player


def test_a_preset_is_a_change_of_a_configuration():
    base = GANConfig(condition=CLASS)
    config = with_preset(base, "r3gan")
    assert isinstance(config.generator, R3GANGeneratorConfig) and config.condition.head == "linear"
    assert config.condition.width == CLASS.width and list(config.penalties) == ["penalty", "second_penalty"]
    assert [p.name for p in config.penalties.values()] == ["r1", "r2"]
    assert with_preset(GANConfig(condition=NoCondition()), "r3gan").condition.head == "linear"
    same_networks = with_preset(base, "relativistic_r1_r2")
    assert same_networks == dataclasses.replace(
        config, **{name: getattr(base, name) for name in ("generator", "discriminator", "condition")}
    )
    for name in OBJECTIVE_PRESETS:
        with_preset(base, name)
    with pytest.raises(ValueError, match="'r4gan' is no preset: choose of minimax, "):
        with_preset(base, "r4gan")
    with pytest.raises(ValueError, match="choose the head concat"):
        GANConfig(objective="mmd_rq", condition=HEAD)
    with pytest.raises(ValueError, match="choose r1 without a condition"):
        GANConfig(condition=NoCondition(), second_penalty=MatchingAwarePenalty())
