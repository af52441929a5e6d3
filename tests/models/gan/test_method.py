import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import LAYOUTS, assert_device_invariant, assert_resumes, random_params
from xmodal_jax.core import trees
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.models.conditions import DataSizes
from xmodal_jax.models.gan import (
    AdaptiveAugment,
    ClassCondition,
    ContrastiveLosses,
    DiffAugment,
    DraganPenalty,
    FrozenCaptioner,
    FrozenEncoder,
    FrozenFeatures,
    GANConfig,
    GradientPenalty,
    MatchingAwarePenalty,
    NoCondition,
    R1Penalty,
    R2Penalty,
    Reconstruction,
    SentenceCondition,
    WordsCondition,
    make_gan,
)
from xmodal_jax.models.gan.inputs import ImageInputs
from xmodal_jax.models.gan.networks import GANNetworks
from xmodal_jax.models.gan.objective import adversarial_loss
from xmodal_jax.nets.encoders import (
    DCGANEncoderConfig,
    MLPEncoderConfig,
    TextDecoderConfig,
    TextTransformerConfig,
)
from xmodal_jax.nets.gan import (
    DCGANGeneratorConfig,
    MLPGeneratorConfig,
    ObjectGeneratorConfig,
    ResidualGeneratorConfig,
)
from xmodal_jax.train import gan_step
from xmodal_jax.train.checkpoint import CheckpointMismatch, restore_run
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run

TEXT = TextTransformerConfig(width=8, depth=1, heads=2)
TEXT_DECODER = TextDecoderConfig(width=8, depth=1, heads=2)
WORDS = WordsCondition(text=TEXT, decoder=TEXT_DECODER)
WORDS_ALONE = dataclasses.replace(WORDS, auxiliary_weight=0.0)
SENTENCE = SentenceCondition(text=TEXT, decoder=TEXT_DECODER)
CLASS = ClassCondition(width=7)
CONFIG = GANConfig(
    condition=WORDS,
    generator=ResidualGeneratorConfig(noise=5, width=8, heads=2, attention=1),
    discriminator=DCGANEncoderConfig(width=8, norm="none"),
)
MLP_GENERATOR, MLP_ENCODER = MLPGeneratorConfig(noise=5, width=8), MLPEncoderConfig(width=8)
DENSE = dict(
    generator=dataclasses.replace(MLP_GENERATOR, depth=1),
    discriminator=dataclasses.replace(MLP_ENCODER, depth=1),
)
"""Networks that compile fast, for what does not depend on the networks."""
SMALL = dict(condition=CLASS, **DENSE)
ADAM = Optimizer(name="adam", learning_rate=1e-2, b1=0.0, clip_norm=None, warmup=0.0, schedule="constant")
OPTIMIZER = GANOptimizer(discriminator=ADAM, generator=dataclasses.replace(ADAM, ema=0.9))
SIZES = dict(shape=(8, 8, 3), vocab_size=11, length=5, classes=3)


def make_batch(n=16, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(1, 11, (n, 5)).astype(np.int32)
    text[rng.random((n, 5)) < 0.2] = 0
    text[:, 0], text[3] = 1, text[2]  # two with the same caption
    return {
        "image": rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8),
        "text": text,
        "text_mask": text > 0,
        "label": rng.integers(-1, 3, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }


on_device = jax.device_put


def make(**changes):
    return make_gan(dataclasses.replace(CONFIG, **changes), **SIZES)


def begin(gan, optimizer=OPTIMIZER, batch=None):
    batch = make_batch() if batch is None else batch
    key = jax.random.key(0)
    params, variables = random_params(gan.init, key, batch)
    training = gan_step.make_training(gan, optimizer, 10, params=params)
    init = training.init
    if not jax.tree.leaves(variables):  # nothing else is initialized: `gan.init` need not be traced again
        same = gan._replace(init=lambda key, batch: (params, variables))
        init = gan_step.make_training(same, optimizer, 10).init
    return training, jax.jit(init)(key, batch), on_device(batch)


RECONSTRUCTION = Reconstruction(encoder=MLPEncoderConfig(width=8, depth=1))
OBJECTS = ObjectGeneratorConfig(noise=9, width=8, heads=2, objects=2)

GLOBAL = dict(
    generator=dataclasses.replace(CONFIG.generator, modulation="batch_norm", conditioning=3),
    contrastive=ContrastiveLosses(sentence_weight=1.0, word_weight=1.0, image_weight=1.0),
    augmentation=DiffAugment(), lecam=0.3, spectral=True, condition=WORDS_ALONE,
)  # fmt: skip
"""All that looks across the batch."""
GLOBAL_OF_CLASSES = GLOBAL | dict(
    generator=DCGANGeneratorConfig(noise=5, width=4, conditioning=3),
    contrastive=ContrastiveLosses(sentence_weight=1.0, image_weight=1.0),
    condition=dataclasses.replace(CLASS, auxiliary_weight=0.0), spectral=False,
    discriminator=DENSE["discriminator"],
)  # fmt: skip
"""The same without words, whose loss tests/losses/test_word_region.py has on several devices, and without spectral
normalization, which is of the weights alone."""


@pytest.mark.parametrize(
    "changes, layouts",
    [
        # The losses sum over the axis of devices there; in the other mode the compiler splits the whole batch.
        (GLOBAL_OF_CLASSES, [("pmap", 8, 1)]),
        pytest.param(GLOBAL_OF_CLASSES, [("sharded", 4, 2)], marks=pytest.mark.slow),
        pytest.param(GLOBAL, LAYOUTS, marks=pytest.mark.slow),  # 5 CPU-seconds a layout
    ],
    ids=["a layout", "another layout", "all layouts"],
)
def test_the_devices_do_not_change_the_result(changes, layouts):
    """With batch norm, DiffAugment, mismatched pairs, global negatives, equal conditions and missing examples."""
    batch = make_batch()
    present = {"image": np.arange(16) % 7 != 3, "text": np.arange(16) % 5 != 4}
    assert_device_invariant(make(**changes), {**batch, "present": present}, layouts=layouts, config=OPTIMIZER)


@pytest.mark.slow
def test_the_devices_do_not_change_several_steps_of_the_discriminator():
    """Two a round, of classes, with a penalty between real and generated images, and images that are rebuilt."""
    gan = make(
        condition=CLASS, objective="relativistic_average", penalty=GradientPenalty(), d_steps=2,
        reconstruction=RECONSTRUCTION, generator=MLP_GENERATOR,
    )  # fmt: skip
    assert_device_invariant(gan, make_batch(), layouts=[("pmap", 4, 1), ("sharded", 4, 1)], config=OPTIMIZER)


@pytest.mark.slow  # the generator pretrains alone, above with its opponent
def test_pretraining_is_the_same_on_several_devices():
    gan = make(generator=OBJECTS, condition=WORDS_ALONE, reconstruction=RECONSTRUCTION)
    present = {"image": np.arange(16) % 7 != 3, "text": np.arange(16) % 5 != 4}
    # Rounding grows on its way through the rounds of two competitions: every gradient differs by up to 1.1e-5.
    how = dict(layouts=[("pmap", 4, 1)], config=OPTIMIZER, make="make_pretrain_step", rtol=3e-5)
    assert_device_invariant(gan, {**make_batch(), "present": present}, **how)


def test_a_stopped_run_ends_bit_identical(tmp_path):
    """Both players, the average, batch statistics and the probability of augmentation, stopped after pretraining."""
    gan = make(
        condition=CLASS, generator=DCGANGeneratorConfig(noise=5, width=4), reconstruction=RECONSTRUCTION,
        discriminator=DENSE["discriminator"], augmentation=AdaptiveAugment(ramp=64), lecam=0.1, spectral=True,
    )  # fmt: skip
    arrays = {k: v for k, v in make_batch().items() if k in ("image", "label")}
    assert_resumes(gan, arrays, tmp_path, optimizer=dataclasses.replace(OPTIMIZER, pretrain_fraction=0.5))


def test_in_pretraining_the_generator_learns_alone():
    gan = make(**SMALL, reconstruction=RECONSTRUCTION)
    optimizer = dataclasses.replace(OPTIMIZER, pretrain_fraction=0.2)
    optimizer = dataclasses.replace(optimizer, discriminator=dataclasses.replace(ADAM, schedule="cosine"))
    training, state, batch = begin(gan, optimizer)
    assert training.initial_steps == 2
    states, all_metrics = [state], []
    pretrain = jax.jit(training.make_initial_step(None))
    for take_step in (pretrain, pretrain, jax.jit(training.make_step(None))):
        state, metrics = take_step(states[-1], batch)
        states.append(state)
        all_metrics.append(metrics)
    for before, after in itertools.pairwise(states[:3]):
        for part in ("params", "opt_state"):
            before_d, after_d = (getattr(x, part)["discriminator"] for x in (before, after))
            assert all(same(before_d, after_d))
        assert not any(same(before.params["generator"]["net"], after.params["generator"]["net"]))
    assert not any(
        same(states[2].params["discriminator"]["trunk"], states[3].params["discriminator"]["trunk"])
    )
    assert ["d_real" in m for m in all_metrics] == [False, False, True]
    assert all(m["finite"].all() and m["g_reconstruction"] > 0 for m in all_metrics)
    # Every image is rebuilt then, and nothing else is learned.
    loss = jax.jit(gan.pretrain_generator)
    of_first_step = states[0].params["generator"], states[0].variables
    key = jax.random.fold_in(states[0].key, 0)
    (first, (aux, _)) = loss(*of_first_step, batch, key)
    assert float(all_metrics[0]["loss"]) == pytest.approx(float(first), rel=1e-5)
    # What is logged as reconstruction is that alone: the divergence, with its weight, comes on top.
    divergence = RECONSTRUCTION.kl_weight * float(aux["g_posterior_kl"]) / np.prod(batch["image"].shape[1:])
    assert divergence > 0.005
    assert float(first) - float(aux["g_reconstruction"]) == pytest.approx(divergence, rel=1e-3)
    other = loss(*of_first_step, {**batch, "image": 255 - batch["image"]}, key)[0]
    assert float(other) != float(first)
    # The discriminator's schedule begins when it does.
    rates = [float(training.learning_rates["discriminator_learning_rate"](k)) for k in (0, 2, 3)]
    assert rates[0] == rates[1] > rates[2]
    with pytest.raises(ValueError, match="model.reconstruction"):
        gan_step.make_training(make(), optimizer, 10)
    with pytest.raises(ValueError, match="fraction"):
        dataclasses.replace(OPTIMIZER, pretrain_fraction=1.0)


def test_with_several_steps_a_round_the_schedule_of_the_discriminator_is_as_long_as_the_training():
    """Its learning rate falls to 0 at the end of 2 rounds of 2 steps: in the last round it is not yet 0."""
    cosine = dataclasses.replace(ADAM, schedule="cosine")
    gan = make(**SMALL, d_steps=2)
    optimizer = GANOptimizer(discriminator=cosine, generator=cosine)
    _, state, batch = begin(gan, optimizer)
    step = jax.jit(gan_step.make_training(gan, optimizer, 2).make_step(None))
    first, _ = step(state, batch)
    last, _ = step(first, batch)
    of_trunk = lambda s: s.params["discriminator"]["trunk"]
    assert not any(same(of_trunk(first), of_trunk(last)))


def leaves(tree):
    return jax.tree.leaves(tree)


def same(a, b):
    return [np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True)]


@pytest.fixture(scope="module")
def trained():
    """With batch norm: the states after 0 to 3 steps."""
    generator = dataclasses.replace(CONFIG.generator, modulation="batch_norm")
    gan = make(condition=WORDS_ALONE, generator=generator, discriminator=DENSE["discriminator"])
    training, state, batch = begin(gan)
    step, states = jax.jit(training.make_step(None)), [state]
    for _ in range(3):
        states.append(step(states[-1], batch)[0])
    assert step._cache_size() == 1
    return gan, states, batch


@pytest.mark.parametrize(
    ("player", "other"), [("generator", "discriminator"), ("discriminator", "generator")]
)
def test_neither_player_moves_the_other(player, other):
    flat = MLPEncoderConfig(width=8, depth=1)
    gan = make(condition=CLASS, generator=MLP_GENERATOR, discriminator=flat)
    frozen = dataclasses.replace(getattr(OPTIMIZER, player), freeze=(".*",))
    training, state, batch = begin(gan, dataclasses.replace(OPTIMIZER, **{player: frozen}))
    after, _ = jax.jit(training.make_step(None))(state, batch)
    assert all(same(after.params[player], state.params[player]))
    part = {"generator": "trunk", "discriminator": "net"}[player]
    assert not any(same(after.params[other][part], state.params[other][part]))


def test_what_is_missing_or_padded_has_no_influence():
    gan = make(
        contrastive=ContrastiveLosses(sentence_weight=1.0, word_weight=1.0), penalty=R1Penalty(),
        augmentation=DiffAugment(),
    )  # fmt: skip
    _, state, batch = begin(gan)
    there = np.arange(16) % 3 != 0
    present = on_device({"image": there, "text": np.ones(16, bool)})
    here, image = there[:, None, None, None], np.asarray(batch["image"])
    other = {**batch, "image": np.where(here, image, 255 - image)}
    made = {"image": np.random.default_rng(5).uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32)}
    wild = {"image": np.where(here, made["image"], np.float32(7.0))}
    loss = lambda d, batch, made: gan.d_loss(
        d, state.variables, {**batch, "present": present}, made, jax.random.key(3), jnp.int32(0)
    )[0]
    d_gradient = jax.jit(jax.grad(loss))
    a = jax.device_get(d_gradient(state.params["discriminator"], batch, made))
    b = jax.device_get(d_gradient(state.params["discriminator"], other, wild))
    for name, x, y in zip(trees.leaf_names(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6 * float(np.abs(x).max() + 1e-6), err_msg=name)
    persuade = lambda m: gan.g_loss(
        m, state.params["discriminator"], state.variables, {**batch, "present": present}, jax.random.key(4)
    )[0]
    slope = np.asarray(jax.jit(jax.grad(persuade))(made)["image"])
    assert (slope[~there] == 0).all() and (np.abs(slope[there]).max(axis=(1, 2, 3)) > 0).all()


def test_an_equal_caption_and_another_of_the_same_picture_are_no_mismatch():
    """Rolled by one, example 3 meets the caption of example 2, which is its own, or one of its picture."""
    plain = make(condition=dataclasses.replace(WORDS_ALONE, matching_aware=False), **DENSE)
    aware = make(condition=WORDS_ALONE, **DENSE)
    _, state, batch = begin(plain)
    same = {**batch, **{k: np.repeat(batch[k][:1], 16, axis=0) for k in ("text", "text_mask")}}
    made = {"image": jnp.zeros((16, 8, 8, 3))}
    player = state.params["discriminator"]
    loss_of_plain, loss_of_aware = (
        jax.jit(
            lambda b, gan=gan: gan.d_loss(player, state.variables, b, made, jax.random.key(3), jnp.int32(0))[
                0
            ]
        )
        for gan in (plain, aware)
    )
    assert float(loss_of_plain(same)) == pytest.approx(float(loss_of_aware(same)), rel=1e-6)
    assert abs(float(loss_of_plain(batch)) - float(loss_of_aware(batch))) > 1e-4
    one_picture = {**batch, "group": np.zeros(16, np.int32)}
    assert float(loss_of_plain(batch)) == pytest.approx(float(loss_of_aware(one_picture)), rel=1e-6)
    unknown = {**batch, "group": np.full(16, -1, np.int32)}
    assert float(loss_of_aware(unknown)) == pytest.approx(float(loss_of_aware(batch)), rel=1e-6)


def test_a_lazy_penalty_is_as_strong_on_average():
    every, lazy = (make(**SMALL, penalty=penalty) for penalty in (R1Penalty(), R1Penalty(every=4)))
    _, state, batch = begin(every)
    made = {"image": jnp.zeros((16, 8, 8, 3))}
    of = lambda gan: jax.jit(
        lambda step: gan.d_loss(
            state.params["discriminator"], state.variables, batch, made, jax.random.key(3), step
        )[1][0]["d_penalty"]
    )
    lazy_of = of(lazy)
    values = [float(lazy_of(k)) for k in range(8)]
    assert values[1:4] == [0, 0, 0] and values[4] > 0
    assert np.mean(values) == pytest.approx(float(of(every)(0)), rel=1e-5)


def test_the_average_is_debiased(trained):
    """After three steps, ``sum_k d^(3-k) p_k / sum_k d^(3-k)``: no trace of where it began."""
    _, states, _ = trained
    seen = [np.asarray(s.params["generator"]["net"]["start"]["kernel"], np.float64) for s in states[1:]]
    weights = 0.9 ** np.arange(2, -1, -1)
    expected = sum(w * p for w, p in zip(weights, seen, strict=True)) / weights.sum()
    np.testing.assert_allclose(states[-1].ema["net"]["start"]["kernel"], expected, rtol=1e-5, atol=1e-7)


def test_the_probability_of_augmentation_follows_the_signs():
    gan = make(**SMALL, augmentation=AdaptiveAugment(target=-1.5, ramp=160))  # always above the target
    _, state, batch = begin(gan)
    made = {"image": jnp.zeros((16, 8, 8, 3))}
    of = jax.jit(
        lambda m: gan.d_loss(state.params["discriminator"], m, batch, made, jax.random.key(3), jnp.int32(0))
    )
    variables = state.variables
    for k in range(1, 3):
        variables = of(variables)[1][1]
        assert float(variables["augment_probability"]) == pytest.approx(16 * k / 160)


def test_clipped_weights_stay_small():
    gan = make(objective="wgan", clip=0.01)
    _, state, _ = begin(gan)
    clipped = gan.constrain(state.params["discriminator"])
    largest = lambda tree: max(float(jnp.abs(x).max()) for x in leaves(tree))
    assert largest([clipped["trunk"], clipped["critic"]]) == pytest.approx(0.01)
    assert all(same(clipped["text"], state.params["discriminator"]["text"]))


def test_a_fixed_text_encoder_serves_both_and_gets_no_gradient():
    of_text = lambda key, batch: make().init(key, batch)[0]["generator"]["text"]
    text = random_params(of_text, jax.random.key(0), make_batch())
    gan = make_gan(dataclasses.replace(CONFIG, condition=WORDS_ALONE, **DENSE), text=text, **SIZES)
    training, state, batch = begin(gan)
    assert "text" not in state.params["generator"] and "text" not in state.params["discriminator"]
    assert all(same(gan.frozen["text"], text)) and "text" not in state.variables
    step = jax.jit(training.make_step(None))
    after, metrics = step(state, batch, gan.frozen)
    assert metrics["finite"].all() and "text" not in after.variables
    generated = [
        jax.jit(gan.generate)(
            state.params["generator"], state.variables, batch, jax.random.key(1), frozen=frozen
        )
        for frozen in (gan.frozen, jax.tree.map(jnp.zeros_like, gan.frozen))
    ]
    assert not any(same(generated[0][0]["image"], generated[1][0]["image"]))


def test_every_second_image_is_held_to_the_real_one():
    gan = make(**SMALL, reconstruction=dataclasses.replace(RECONSTRUCTION, weight=2.0, pixel_scale=0.5))
    plain = make(**SMALL)
    labels = np.arange(16, dtype=np.int32) % 3  # an image with an unknown label counts in no loss
    _, state, batch = begin(gan, batch={**make_batch(), "label": labels})
    params, judge = state.params["generator"], state.params["discriminator"]
    generate = jax.jit(gan.generate)
    made, _ = generate(params, state.variables, batch, jax.random.key(1))
    other = {**batch, "image": 255 - np.asarray(batch["image"])}
    changed, _ = generate(params, state.variables, other, jax.random.key(1))
    moved = np.asarray(changed["image"]) != np.asarray(made["image"])
    np.testing.assert_array_equal(moved.any(axis=(1, 2, 3)), np.arange(16) % 2 == 0)

    of = lambda gan: jax.jit(lambda m: gan.g_loss(m, judge, state.variables, batch, jax.random.key(4)))
    real = np.asarray(batch["image"], np.float64) / 127.5 - 1.0
    nats = np.square(np.asarray(made["image"]) - real).sum(axis=(1, 2, 3)) / (2 * 0.5**2)
    nats += RECONSTRUCTION.kl_weight * np.asarray(made["posterior_kl"])
    extra = of(gan)(made)[0] - of(plain)({"image": made["image"]})[0]
    assert float(extra) == pytest.approx(2.0 * nats[::2].mean() / (8 * 8 * 3), rel=1e-4)


CAPTIONER = FrozenCaptioner(
    lambda params, pixels: params["gain"] * pixels.reshape(len(pixels), 8, 24),
    lambda params, tokens, ids, mask: jnp.square(tokens - params["wanted"]).mean(axis=(1, 2)),
    lambda params, tokens, ids: jax.nn.softmax(ids[:, :, None] * tokens.mean(axis=-1)[:, None, :], axis=-1),
    {"gain": jnp.float32(1.0), "wanted": jnp.float32(0.3)},
)
"""Its tokens are rows of pixels, and its cross-entropy is 0 if each pixel is 0.3."""


def g_loss(gan, generated, state, batch):
    """The generator's loss of generated images, and its aux."""
    args = state.params["discriminator"], state.variables, batch, jax.random.key(4)
    return gan.g_loss(generated, *args, frozen=gan.frozen)


@pytest.mark.parametrize("changes", [dict(condition=CLASS), dict(generator=OBJECTS, condition=WORDS_ALONE)])
def test_between_two_conditions_images_go_from_one_to_the_other(changes):
    gan = make(**changes)
    _, state, batch = begin(gan)
    params = {"generator": state.params["generator"], "variables": state.variables}
    names = [k for k in ("text", "text_mask", "label") if k in batch]
    noise = np.random.default_rng(5).normal(size=(16, changes.get("generator", CONFIG.generator).noise))
    asked = {k: batch[k] for k in names} | {"noise": noise.astype(np.float32)}
    rolled = {k: np.roll(batch[k], 1, axis=0) for k in names}
    other = {f"toward_{k}": x for k, x in rolled.items()}
    draw = jax.jit(gan.predict)
    at = lambda share: np.asarray(draw(params, asked | other | {"blend": np.full(16, share, np.float32)}))
    here, there = (np.asarray(draw(params, asked | condition)) for condition in ({}, rolled))
    np.testing.assert_allclose(at(0.0), here, atol=1e-5)
    np.testing.assert_allclose(at(1.0), there, atol=1e-5)
    assert np.abs(at(0.5) - at(0.0)).max() > 1e-3 and np.abs(at(0.5) - there).max() > 1e-3


def test_redescription_is_the_captioners_cross_entropy():
    """Of a captioner whose cross-entropy is least where every pixel is 0.3."""
    small = dict(condition=WORDS_ALONE, **DENSE)
    config = dataclasses.replace(CONFIG, features=FrozenFeatures(projected=False), **small)
    gan, plain = make_gan(config, captioner=CAPTIONER, **SIZES), make(**small)
    _, state, batch = begin(gan)
    made = {"image": jnp.asarray(np.random.default_rng(5).uniform(-1, 1, (16, 8, 8, 3)), jnp.float32)}
    slope = lambda gan: jax.jit(jax.grad(lambda m: g_loss(gan, m, state, batch)[0]))(made)["image"]
    expected = 2 * (np.asarray(made["image"]) - 0.3) / made["image"].size
    np.testing.assert_allclose(slope(gan) - slope(plain), expected, atol=1e-6)


def test_a_projected_discriminator_gets_the_captioners_tokens_as_well():
    """Its loss and R1 against the parts put together here; R1 is on the gradient by pixels and by tokens."""
    condition = dataclasses.replace(WORDS_ALONE, matching_aware=False)
    config = dataclasses.replace(CONFIG, features=FrozenFeatures(), penalty=R1Penalty(), condition=condition)
    gan = make_gan(config, captioner=CAPTIONER, **SIZES)
    _, state, batch = begin(gan)
    own = state.params["discriminator"]
    made = jnp.asarray(np.random.default_rng(5).uniform(-1, 1, (16, 8, 8, 3)), jnp.float32)
    net = GANNetworks(config, DataSizes(**SIZES), token_shape=(8, 24))

    @jax.jit
    def run(own, variables):
        args = variables, batch, {"image": made}, jax.random.key(1), jnp.int32(0)
        loss = lambda own: gan.d_loss(own, *args, frozen=gan.frozen)
        return jax.value_and_grad(loss, has_aux=True)(own)

    (_, (aux, variables)), slope = run(own, state.variables)
    vector = net.encode_condition(own, None, batch, None).vector

    @jax.jit
    def logits(image, gain=1.0):
        def score(image, tokens):
            return net.score(own, net.image_tokens(own, ImageInputs(image, tokens), None), vector)[:, 0]

        tokens = gain * image.reshape(16, 8, 24)
        slopes = jax.grad(lambda *x: score(*x).sum(), argnums=(0, 1))(image, tokens)
        return score(image, tokens), sum(jnp.square(x).sum(axis=tuple(range(1, x.ndim))) for x in slopes) / 2

    real = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1.0
    of_real, squares = logits(real)
    of_made, _ = logits(made)
    np.testing.assert_allclose(aux["d_penalty"], squares.mean(), rtol=1e-4)
    hinge = jnp.maximum(0.0, 1.0 - of_real).mean() + jnp.maximum(0.0, 1.0 + of_made).mean()
    np.testing.assert_allclose(aux["d_loss"], hinge, rtol=1e-4)
    assert float(jnp.abs(logits(real, gain=-1.0)[0] - of_real).max()) > 1e-3
    assert float(jnp.abs(slope["sight"]["kernel"]).max()) > 0
    assert "captioner" not in variables
    trees_equal = jax.tree.map(np.array_equal, gan.frozen, {"captioner": CAPTIONER.params})
    assert all(jax.tree.leaves(trees_equal))


def test_the_posterior_of_objects_follows_the_captioners_attention():
    config = dataclasses.replace(
        CONFIG,
        features=FrozenFeatures(),
        discriminator=DENSE["discriminator"],
        generator=OBJECTS,
        condition=WORDS_ALONE,
        reconstruction=RECONSTRUCTION,
    )
    # A parameter of the captioner says whether it looks anywhere, so that one program serves both.
    looks = lambda params, tokens, ids: jax.nn.softmax(
        params["sharpness"] * ids[:, :, None] * tokens.mean(axis=-1)[:, None, :], axis=-1
    )
    captioner = CAPTIONER._replace(
        encode=lambda params, pixels: pixels.reshape(len(pixels), 4, 48),
        attention=looks,
        params=CAPTIONER.params | {"sharpness": jnp.float32(1.0)},
    )
    gan = make_gan(config, captioner=captioner, **SIZES)
    nowhere = {"captioner": captioner.params | {"sharpness": jnp.float32(0.0)}}
    assert jax.tree.structure(gan.frozen) == jax.tree.structure(nowhere)
    _, state, batch = begin(gan)
    player = state.params["generator"]
    args = player, state.variables, batch, jax.random.key(1)
    generate = jax.jit(gan.generate)
    made = [generate(*args, frozen=frozen)[0] for frozen in (gan.frozen, nowhere)]
    moved = np.abs(made[0]["image"] - made[1]["image"]).max(axis=(1, 2, 3)) > 1e-6
    np.testing.assert_array_equal(moved, np.arange(16) % 2 == 0)  # those that are reconstructed


def test_the_perceptual_loss_compares_reconstructed_images_with_real_ones():
    features = [FrozenFeatures(projected=False, perceptual_weight=w) for w in (0.0, 2.0)]
    plain, config = (
        dataclasses.replace(
            CONFIG, condition=WORDS_ALONE, **DENSE, reconstruction=RECONSTRUCTION, features=each
        )
        for each in features
    )
    gan, without = (make_gan(c, captioner=CAPTIONER, **SIZES) for c in (config, plain))
    _, state, batch = begin(gan)
    made = jnp.asarray(np.random.default_rng(5).uniform(-1, 1, (16, 8, 8, 3)), jnp.float32)
    own = {"image": made, "posterior_kl": jnp.zeros(16)}
    of = lambda gan: jax.jit(lambda m: g_loss(gan, m, state, batch))(own)
    loss, aux = of(gan)
    a = np.asarray(made, np.float64).reshape(16, 8, 24)
    b = (np.asarray(batch["image"], np.float64) / 127.5 - 1.0).reshape(16, 8, 24)
    cosine = (a * b).sum(axis=2) / np.linalg.norm(a, axis=2) / np.linalg.norm(b, axis=2)
    wanted = (1.0 - cosine.mean(axis=1))[::2].mean()
    np.testing.assert_allclose(aux["g_perceptual"], wanted, rtol=1e-5)
    np.testing.assert_allclose(loss - of(without)[0], 2.0 * wanted, rtol=1e-4)


def test_images_follow_noise_and_caption_and_no_other_example(trained):
    gan, states, batch = trained
    params = gan_step.eval_params(states[-1])
    noise = jnp.asarray(np.random.default_rng(2).normal(size=(16, 5)), jnp.float32)
    draw = jax.jit(gan.predict)
    whole = draw(params, {**batch, "noise": noise})
    assert whole.shape == (16, 8, 8, 3) and float(jnp.abs(whole).max()) <= 1
    part = draw(params, {k: jnp.roll(v, -5, axis=0) for k, v in {**batch, "noise": noise}.items()})
    np.testing.assert_allclose(jnp.roll(part, 5, axis=0), whole, atol=1e-5)
    for changed in ({"noise": jnp.zeros_like(noise)}, {"text": batch["text"][::-1]}):
        assert float(jnp.abs(whole - draw(params, {**batch, "noise": noise, **changed})).max()) > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        dict(
            condition=dataclasses.replace(CLASS, head="projection"), objective="lsgan", penalty=GradientPenalty(),
            generator=DCGANGeneratorConfig(noise=5, width=8),
        ),
        dict(
            condition=NoCondition(), objective="relativistic_average", penalty=DraganPenalty(),
            generator=MLP_GENERATOR, discriminator=MLP_ENCODER,
        ),
        pytest.param(
            dict(
                condition=SENTENCE, objective="jsd", penalty=R2Penalty(), d_steps=2,
                generator=ResidualGeneratorConfig(noise=5, width=8, modulation="fusion"),
            ),
            marks=pytest.mark.slow,
        ),
        dict(
            condition=dataclasses.replace(SENTENCE, auxiliary_weight=0.0), discriminator=DENSE["discriminator"],
            generator=dataclasses.replace(OBJECTS, conditioning=3), reconstruction=RECONSTRUCTION,
        ),
    ],
)  # fmt: skip
def test_every_kind_trains_both_players(changes):
    training, state, batch = begin(make(**changes))
    after, metrics = jax.jit(training.make_step(None))(state, batch)
    assert metrics["finite"].all()
    for player in ("generator", "discriminator"):
        pairs = zip(jax.tree.leaves(state.params[player]), jax.tree.leaves(after.params[player]), strict=True)
        assert np.mean([not np.array_equal(a, b) for a, b in pairs]) > 0.7, player


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(objective="mmd_rq", condition=dataclasses.replace(CLASS, head="projection")), "concat"),
        (dict(objective="mmd_rq", augmentation=AdaptiveAugment()), "ada"),
        (dict(condition=NoCondition(), penalty=MatchingAwarePenalty()), "r1"),
        (dict(condition=CLASS, contrastive=ContrastiveLosses(word_weight=1.0)), "words"),
        (dict(condition=NoCondition(), contrastive=ContrastiveLosses(sentence_weight=1.0)), "condition"),
        (dict(lecam=-1.0), "lecam"),
        (dict(d_steps=0), "d_steps"),
        (dict(features=FrozenFeatures(perceptual_weight=1.0)), "reconstructed"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **changes)


def test_what_the_data_lack_is_said():
    with pytest.raises(ValueError, match="captions"):
        make_gan(CONFIG, shape=(8, 8, 3), classes=3)
    with pytest.raises(ValueError, match="labels"):
        make_gan(dataclasses.replace(CONFIG, condition=CLASS), shape=(8, 8, 3))


def test_a_frozen_network_that_is_missing_or_unused_is_refused():
    with pytest.raises(ValueError, match="--redescribe"):
        make(features=FrozenFeatures())
    with pytest.raises(ValueError, match="--model.features frozen"):
        make_gan(CONFIG, captioner=CAPTIONER, **SIZES)
    of_classes = dataclasses.replace(CONFIG, condition=CLASS, features=FrozenFeatures())
    with pytest.raises(ValueError, match="captioner"):
        make_gan(of_classes, captioner=CAPTIONER, **SIZES)


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="objective must be one of minimax, .*mmd_distance, got 'no_such'"):
        adversarial_loss("no_such")


def test_a_frozen_network_is_stored_once_and_must_be_the_same_to_resume(tmp_path):
    small = dict(condition=NoCondition(), generator=MLP_GENERATOR, discriminator=MLP_ENCODER)
    config = dataclasses.replace(CONFIG, features=FrozenFeatures(), **small)
    image_encoder = FrozenEncoder(CAPTIONER.encode, {"gain": jnp.float32(2.0)})
    gan = make_gan(config, image_encoder=image_encoder, **SIZES)
    arrays = {"image": make_batch()["image"]}
    assert_resumes(gan, arrays, tmp_path, optimizer=OPTIMIZER)
    restored = restore_run(tmp_path / "stopped").params
    assert "image_encoder" not in restored.get("variables", {})
    assert all(same(restored["frozen"], {"image_encoder": image_encoder.params}))
    assert [p.name for p in tmp_path.glob("stopped/checkpoints/*.safetensors")] == ["frozen.safetensors"]
    other = gan._replace(frozen=jax.tree.map(lambda x: x + 1.0, gan.frozen))
    run_config = RunConfig(steps=4, batch_size=8, run_dir=tmp_path / "whole", resume=True)
    loader = Loader(ArraySource(arrays), batch_size=8, seed=0)
    with Run.create(run_config.run_dir, run_config, resume=True, tensorboard=False) as run:
        with pytest.raises(CheckpointMismatch, match="other frozen networks"):
            fit(other, loader, run_config, OPTIMIZER, run, Timer())
    # The run's own stays readable.
    restored = restore_run(tmp_path / "whole").params
    assert all(same(restored["frozen"], {"image_encoder": image_encoder.params}))
