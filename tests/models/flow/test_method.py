"""Flows: invariance, missing data, generation, likelihood, editing and learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.support import LAYOUTS, assert_device_invariant, assert_resumes
from tests.support import random_initial_params as random_params
from xmodal_jax.models.flow import (
    AdaptiveSampler,
    ClassCondition,
    CodeFlowConfig,
    EulerSampler,
    FlowConfig,
    FlowMatching,
    HeunSampler,
    JumpSampler,
    MeanFlow,
    MidpointSampler,
    NoCondition,
    OptimalTransport,
    SentenceCondition,
    Shortcut,
    WordsCondition,
    make_flow,
)
from xmodal_jax.nets.dit import DiTConfig, FlowMLPConfig
from xmodal_jax.nets.encoders import TextTransformerConfig
from xmodal_jax.nets.unet import UNetConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.step import make_training
from xmodal_jax.types import Condition

TEXT = TextTransformerConfig(width=16, depth=1, heads=2)
NETWORK = DiTConfig(patch=4, width=16, depth=2, heads=2, dropout=0.1)
CONDITIONS = {
    "none": NoCondition(),
    "class": ClassCondition(width=8, dropout=0.3),
    "sentence": SentenceCondition(text=TEXT, dropout=0.3),
    "words": WordsCondition(text=TEXT, dropout=0.3),
}
SIZES = dict(shape=(8, 12, 3), vocab_size=19, length=7, classes=5)


def make_batch(n=16):
    rng = np.random.default_rng(0)
    ids = np.zeros((n, 7), np.int32)
    for row in ids:
        count = rng.integers(2, 7)
        row[:count] = rng.integers(1, 19, count)
    arrays = {
        "image": rng.integers(0, 256, (n, 8, 12, 3), dtype=np.uint8),
        "text": ids,
        "text_mask": ids != 0,
        "label": rng.integers(0, 5, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
    }
    return jax.tree.map(jnp.asarray, arrays)


@functools.cache
def make(condition="words", **options):
    return make_flow(FlowConfig(**dict(network=NETWORK, condition=CONDITIONS[condition]) | options), **SIZES)


@functools.cache
def compiled_gradient(flow):
    return jax.jit(jax.value_and_grad(lambda p, batch: flow.loss(p, batch, jax.random.key(0))[0]))


def loss_and_gradient(flow, params, batch):
    return compiled_gradient(flow)(params, batch)


def noise(n=16, dimensions=8 * 12 * 3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, dimensions)), jnp.float32)


VARIANTS = {
    "words": dict(),
    "class_data": dict(condition="class", objective=FlowMatching(prediction="data", times="uniform")),
    "sentence_mean": dict(condition="sentence", objective=MeanFlow(step_fraction=0.5)),
    "none_shortcut": dict(condition="none", objective=Shortcut(step_fraction=0.5)),
    "words_unet": dict(network=UNetConfig(width=8, multipliers=(1, 2), heads=2, dropout=0.1)),
    "class_transport": dict(condition="class", coupling=OptimalTransport(condition_weight=10.0)),
}


@pytest.mark.parametrize(
    ("variant", "layouts"),
    [
        ("words", [("sharded", 4, 2)]),
        ("class_transport", [("pmap", 4, 1)]),
        *(pytest.param(v, LAYOUTS, marks=pytest.mark.slow) for v in VARIANTS),
    ],
)
def test_devices_and_accumulation_change_nothing(variant, layouts):
    flow = make(**VARIANTS[variant])
    parts = 1 if flow.config.coupling else 2
    together = layouts != LAYOUTS
    assert_device_invariant(
        flow.method, make_batch(), layouts=layouts, parts=parts, together=together, rtol=2e-5
    )


def test_optimal_transport_is_refused_in_parts():
    flow, batch = make(**VARIANTS["class_transport"]), make_batch()
    training = make_training(flow.method, Optimizer(accumulate=2), 10)
    state = jax.eval_shape(training.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="whole batch"):
        jax.eval_shape(training.make_step(None), state, batch)


@pytest.mark.parametrize("variant", ["words", pytest.param("sentence_mean", marks=pytest.mark.slow)])
def test_resumes_bit_by_bit(variant, tmp_path):
    data = {k: np.asarray(v) for k, v in make_batch().items() if k != "index"}
    assert_resumes(make(**VARIANTS[variant]).method, data, tmp_path, optimizer=Optimizer(ema=0.9))


def test_missing_images_have_no_part():
    """A batch with absent images has the loss and gradients of the batch without them, whatever they hold."""
    flow, batch = make(), make_batch()
    params = random_params(flow.method, jax.random.key(1), batch)
    present = jnp.arange(16) % 3 != 0
    absent = {**batch, "present": {"image": present, "text": jnp.ones(16, bool)}}
    some = {k: v[present] for k, v in batch.items()}
    value, gradient = loss_and_gradient(flow, params, absent)
    want, want_gradient = loss_and_gradient(flow, params, some)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, want_gradient)


def test_an_absent_caption_trains_the_unconditional_model():
    """What an absent caption says has no influence, and none of the text encoder's parameters has a gradient."""
    flow, batch = make(), make_batch()
    params = random_params(flow.method, jax.random.key(1), batch)
    absent = {**batch, "present": {"image": jnp.ones(16, bool), "text": jnp.zeros(16, bool)}}
    other = {**absent, "text": jnp.ones_like(batch["text"]), "text_mask": jnp.ones((16, 7), bool)}
    value, gradient = loss_and_gradient(flow, params, absent)
    changed, _ = loss_and_gradient(flow, params, other)
    assert value == changed
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient["condition"]["text"]))
    assert np.abs(gradient["condition"]["null"]["embedding"]).max() > 0
    unknown = make("class")
    params = random_params(unknown.method, jax.random.key(1), batch)
    _, gradient = loss_and_gradient(unknown, params, {**batch, "label": jnp.full(16, -1, jnp.int32)})
    assert (gradient["condition"]["classes"]["embedding"] == 0).all()


def test_conditions_are_dropped_per_example():
    """At the rate of the option, independently in each example."""
    flow, batch = make("class"), make_batch()
    params = random_params(flow.method, jax.random.key(0), batch)
    big = {k: jnp.tile(v, (200,) + (1,) * (v.ndim - 1)) for k, v in batch.items() if k == "label"}
    keys = jax.random.split(jax.random.key(3), 3200)
    vectors = params["condition"]["classes"]["embedding"][big["label"]]
    dropped = flow._drop(params, type(flow.encoder.example())(vectors), big, keys).vector
    rate = np.mean((np.asarray(dropped) != np.asarray(vectors)).any(axis=1))
    assert abs(rate - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 3200)


def test_one_pass_of_guidance_is_two_passes():
    flow, batch = make(), make_batch()
    params = random_params(flow.method, jax.random.key(1), batch)
    guided = lambda batch, guidance: sample(
        flow, params, batch, noise(), sampler=EulerSampler(steps=1, guidance=guidance)
    )
    without = {**batch, "present": {"text": jnp.zeros(16, bool)}}
    c, u = guided(batch, 1.0), guided(without, 1.0)
    assert np.abs(c - u).max() > 0.01
    np.testing.assert_allclose(guided(batch, 3.0), u + 3.0 * (c - u), atol=1e-4)


def test_there_is_guidance_within_its_interval_only():
    flow, batch, early = make(), make_batch(), jnp.arange(16) < 8
    params = random_params(flow.method, jax.random.key(1), batch)

    @functools.partial(jax.jit, static_argnums=0)
    def change(sampler):
        """The batch's images, changed in one step: half of them from 0.4 on, the others from 0.6 on."""
        start = jnp.where(early, 0.4, 0.6)
        return flow.edit(params, batch, noise(), start=start, sampler=sampler)

    late = EulerSampler(steps=1, guidance=3.0, guidance_interval=(0.5, 1.0))
    plain, guided, late = map(change, (EulerSampler(steps=1), EulerSampler(steps=1, guidance=3.0), late))
    np.testing.assert_allclose(late, np.where(early[:, None, None, None], plain, guided), atol=1e-5)
    assert np.abs(plain - guided).max() > 0.01
    with pytest.raises(ValueError, match="0 <= start < end <= 1"):
        EulerSampler(guidance_interval=(0.5, 0.2))


@pytest.mark.parametrize("sampler", [HeunSampler(steps=3), MidpointSampler(steps=3), EulerSampler(steps=6)])
def test_an_image_does_not_depend_on_its_batch(sampler):
    flow, batch = make(), make_batch()
    params = random_params(flow.method, jax.random.key(1), batch)
    every = sample(flow, params, batch, noise(), sampler=sampler)
    first = {k: v[:3] for k, v in batch.items()}
    np.testing.assert_allclose(
        sample(flow, params, first, noise()[:3], sampler=sampler), every[:3], atol=1e-4
    )
    assert every.shape == (16, 8, 12, 3)


def test_editing_goes_from_nothing_to_everything():
    flow, batch = make(), make_batch()
    params = random_params(flow.method, jax.random.key(1), batch)
    image, edit = flow.data(batch), jax.jit(lambda start: flow.edit(params, batch, noise(), start=start))
    np.testing.assert_allclose(edit(1.0), image, atol=1e-5)
    new = edit(0.0)
    np.testing.assert_allclose(new, sample(flow, params, batch, noise()), atol=1e-5)


def test_inpainting_keeps_what_is_known():
    flow, batch = make(), make_batch()
    params = random_params(flow.method, jax.random.key(1), batch)
    known = (jnp.arange(12) < 6)[None, None, :, None]
    inpaint = jax.jit(
        lambda known: flow.inpaint(params, batch, noise(), known=known, sampler=HeunSampler(steps=4))
    )
    filled = inpaint(known)
    np.testing.assert_allclose(filled[:, :, :6], flow.data(batch)[:, :, :6], atol=1e-5)
    assert np.abs(filled[:, :, 6:] - flow.data(batch)[:, :, 6:]).max() > 0.1
    nothing = inpaint(jnp.zeros_like(known))
    new = sample(flow, params, batch, noise(), sampler=HeunSampler(steps=4))
    np.testing.assert_allclose(nothing, new, atol=1e-5)


def test_blending_goes_from_one_condition_to_the_other():
    flow, batch = make("sentence"), make_batch()
    params = random_params(flow.method, jax.random.key(1), batch)
    other = {k: jnp.roll(batch[k], 1, axis=0) for k in ("text", "text_mask")}
    toward = {f"toward_{k}": v for k, v in other.items()}
    predict = jax.jit(flow.predict)
    blend = lambda f: predict(
        params, {**batch, **toward, "noise": noise(), "blend": jnp.full(16, f, jnp.float32)}
    )
    np.testing.assert_allclose(blend(0.0), sample(flow, params, batch, noise()), atol=1e-5)
    np.testing.assert_allclose(blend(1.0), sample(flow, params, {**batch, **other}, noise()), atol=1e-5)


MEANS, SCALE = np.array([[2.0, 0.0], [-2.0, 1.0]]), 0.3


def vectors(n=256, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    x = MEANS[label] + SCALE * rng.normal(size=(n, 2))
    arrays = {
        "vector": x.astype(np.float32),
        "label": label.astype(np.int32),
        "index": np.arange(n, dtype=np.int32) + seed * n,
    }
    return jax.tree.map(jnp.asarray, arrays)


def train(flow, steps, n=256):
    """The averaged parameters after this many steps, all in one program."""
    training = make_training(flow.method, Optimizer("adamw", 5e-3, ema=0.98), steps)
    step, every = training.make_step(None), vectors(n * steps)
    batches = jax.tree.map(lambda a: a.reshape(steps, n, *a.shape[1:]), every)

    @jax.jit
    def run(batches):
        state = training.init(jax.random.key(0), jax.tree.map(lambda a: a[0], batches))
        return training.eval_params(jax.lax.scan(lambda s, b: (step(s, b)[0], None), state, batches)[0])

    return run(batches)


@functools.cache
def compiled_sample(flow, **options):
    return jax.jit(lambda p, b, z: flow.sample(p, b, z, **options))


def sample(flow, params, batch, z, **options):
    return np.asarray(compiled_sample(flow, **options)(params, batch, z))


def vector_flow(**options):
    config = FlowConfig(
        condition=ClassCondition(width=8), network=FlowMLPConfig(width=64, depth=2), **options
    )
    return make_flow(config, shape=(2,), classes=2, modality="vector")


def test_a_flow_learns_two_normal_distributions():
    """Samples of each class have its mean and spread, and the likelihood of data is the exact one."""
    flow = vector_flow()
    params = train(flow, 600)
    test = vectors(512, seed=9999)
    samples = sample(flow, params, test, noise(512, 2))
    for label in (0, 1):
        chosen = np.asarray(samples)[np.asarray(test["label"]) == label]
        np.testing.assert_allclose(chosen.mean(axis=0), MEANS[label], atol=0.1)
        np.testing.assert_allclose(chosen.std(axis=0), SCALE, atol=0.06)
    got = jax.jit(flow.log_likelihood)(params, test)
    want = stats.norm(MEANS[np.asarray(test["label"])], SCALE).logpdf(np.asarray(test["vector"])).sum(axis=1)
    assert abs(float(np.mean(got) - np.mean(want))) < 0.1
    assert np.corrcoef(got, want)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("objective", "n"),
    [
        (MeanFlow(step_fraction=0.5, times="uniform", power=0.5), 64),
        pytest.param(Shortcut(levels=4, times="uniform"), 256, marks=pytest.mark.slow),
    ],
)
def test_one_step_generates_what_the_equation_does(objective, n):
    """A network of mean velocities, trained on two normal distributions: one jump lands nearer to the exact
    solution than a step of the velocity can, which ends at the mean of the class."""
    flow = vector_flow(objective=objective)
    params = train(flow, 1200, n)
    test = vectors(512, seed=9999)
    jump = sample(flow, params, test, noise(512, 2), sampler=JumpSampler())
    solved = sample(flow, params, test, noise(512, 2), sampler=HeunSampler(steps=50))
    euler = sample(flow, params, test, noise(512, 2), sampler=EulerSampler(steps=1))
    exact = MEANS[np.asarray(test["label"])] + SCALE * np.asarray(noise(512, 2))
    off = lambda a: np.sqrt(np.mean(np.square(a - exact)))
    assert off(solved) < 0.12
    assert off(jump) < 0.2 < 0.27 < off(euler)


@pytest.mark.slow
def test_optimal_transport_straightens_paths():
    """Noise is paired within the class: one Euler step then lands nearer to the exact solution of many steps."""
    straight = {}
    for name, coupling in {"random": None, "transport": OptimalTransport(condition_weight=100.0)}.items():
        flow = vector_flow(coupling=coupling, objective=FlowMatching(times="uniform"))
        params = train(flow, 400, n=64)
        test = vectors(256, seed=9999)
        one = sample(flow, params, test, noise(256, 2), sampler=EulerSampler(steps=1))
        many = sample(flow, params, test, noise(256, 2), sampler=HeunSampler(steps=50))
        straight[name] = float(np.sqrt(np.mean(np.square(one - many))))
    assert straight["transport"] < 0.6 * straight["random"]


def test_a_network_of_your_own():
    """`make_flow` takes any module with the arguments of the library's networks."""
    import flax.linen as nn

    class Own(nn.Module):
        outputs: int = 2

        @nn.compact
        def __call__(self, z, t, r, condition, *, keys=None):
            return nn.Dense(self.outputs)(jnp.concatenate([z, t[:, None], condition.vector], axis=1))

    class WithoutKeys(nn.Module):
        def __call__(self, z, t, r, condition):
            return z

    make = functools.partial(
        make_flow, FlowConfig(condition=ClassCondition(width=8)), shape=(2,), classes=2, modality="vector"
    )
    contract = r"called as network\(z, t, r, condition, keys=keys\) and returns an array of the shape of z"
    with pytest.raises(
        ValueError, match=f"WithoutKeys is {contract}, but its arguments do not fit: .*'keys'"
    ):
        make(network=WithoutKeys())
    with pytest.raises(ValueError, match=rf"Own is {contract}, \(1, 2\) here, got \(1, 3\)"):
        jax.eval_shape(make(network=Own(outputs=3)).init, jax.random.key(0), vectors())
    flow = make(network=Own())
    params = jax.jit(flow.init)(jax.random.key(0), vectors())
    assert np.isfinite(jax.jit(flow.loss)(params, vectors(), jax.random.key(1))[0])
    assert sample(flow, params, vectors(8), noise(8, 2)).shape == (8, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: FlowConfig(sampler=JumpSampler()), "mean_flow or shortcut"),
        (lambda: FlowConfig(condition=NoCondition(), sampler=HeunSampler(guidance=2.0)), "unconditional"),
        (lambda: make_flow(FlowConfig(), shape=(8, 8, 3)), "needs captions"),
        (lambda: make_flow(FlowConfig(condition=ClassCondition()), shape=(8, 8, 3)), "needs labels"),
        (lambda: make_flow(FlowConfig(condition=NoCondition()), shape=(30, 30, 3)), "do not tile"),
        (
            lambda: make_flow(FlowConfig(condition=NoCondition(), network=UNetConfig()), shape=(30, 30, 3)),
            "sides are",
        ),
        (lambda: UNetConfig(multipliers=()), "at least one"),
        (lambda: UNetConfig(width=9, heads=4), "must divide the channels"),
        (lambda: DiTConfig(width=30, heads=4), "must divide width"),
        (lambda: CodeFlowConfig(shift=0.0), "shift must be above 0, got 0.0"),
        (lambda: CodeFlowConfig(width=30, heads=4), r"heads \(4\) must divide width \(30\)"),
        (lambda: make_flow(FlowConfig(condition=NoCondition()), shape=(2,)), "choose mlp"),
        (
            lambda: make_flow(FlowConfig(condition=NoCondition(), network=UNetConfig()), shape=(2,)),
            "choose mlp",
        ),
        (lambda: HeunSampler(steps=0), "at least 1"),
        (lambda: AdaptiveSampler(tolerance=0.0), "positive"),
        (lambda: MeanFlow(step_fraction=0.0), "step_fraction"),
        (lambda: ClassCondition(dropout=1.0), "dropout"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def without(batch, *names):
    return {k: v for k, v in batch.items() if k not in names}


ONE_STEP = EulerSampler(steps=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # Data.
        (
            lambda f, p, b, z: f.loss(p, {**b, "image": b["image"][..., :1]}, KEY),
            r"image must be \[B, 8, 12, 3\]",
        ),
        (lambda f, p, b, z: f.loss(p, {**b, "image": b["image"][..., 0]}, KEY), r"got \[16, 8, 12\]"),
        (lambda f, p, b, z: f.loss(p, {**b, "image": b["image"][:, :, :8]}, KEY), r"got \[16, 8, 8, 3\]"),
        (lambda f, p, b, z: f.loss(p, without(b, "image"), KEY), "no field 'image'"),
        # Conditions.
        (lambda f, p, b, z: f.loss(p, without(b, "label"), KEY), 'the field "label", integers'),
        (lambda f, p, b, z: f.sample(p, {}, z), "fields: none"),
        (lambda f, p, b, z: f.sample(p, {"label": jnp.ones(16)}, z), r"got float32 \[16\]"),
        (lambda f, p, b, z: f.sample(p, {"label": 1}, z), r"got int32 \[\]"),
        (lambda f, p, b, z: f.sample(p, {"label": jnp.full(16, 5)}, z), "from 0 to 4, or -1 .* got 5"),
        (lambda f, p, b, z: f.sample(p, {"label": jnp.ones(3, int)}, z), "3 conditions for 16 examples"),
        (lambda f, p, b, z: f.predict(p, {**b, "noise": z, "toward_label": b["label"]}), 'no "blend"'),
        (lambda f, p, b, z: f.predict(p, {**b, "noise": z, "toward_name": b["label"]}), 'no field "name"'),
        # Noise.
        (lambda f, p, b, z: f.predict(p, b), 'no "noise", float32'),
        (lambda f, p, b, z: f.sample(p, b, z[:, :100]), r"noise must be \[B, 288\] or \[B, 8, 12, 3\]"),
        (lambda f, p, b, z: f.sample(p, b, z[0]), r"got \[288\]"),
        (lambda f, p, b, z: f.edit(p, b, z[:3], start=0.5), r"noise must be \[16, 288\]"),
        # Times and masks.
        (lambda f, p, b, z: f.edit(p, b, z, start=-0.5), r"start must lie in \[0, 1\]"),
        (lambda f, p, b, z: f.edit(p, b, z, start=jnp.full(16, 1.5)), r"start must lie in \[0, 1\]"),
        (lambda f, p, b, z: f.edit(p, b, z, start=float("nan")), r"start must lie in \[0, 1\]"),
        (lambda f, p, b, z: f.edit(p, b, z, start=jnp.zeros(3)), "one for each of 16 examples"),
        (lambda f, p, b, z: f.inpaint(p, b, z, known=jnp.ones((16, 8, 12), bool)), r"known\[..., None\]"),
        (lambda f, p, b, z: f.inpaint(p, b, z, known=jnp.ones((2, 16, 8, 12, 3), bool)), "known must have"),
        (
            lambda f, p, b, z: f.inpaint(
                p, b, z, known=jnp.ones((8, 12, 1), bool), sampler=AdaptiveSampler()
            ),
            "choose one with fixed steps",
        ),
    ],
)
def test_wrong_inputs_are_named(call, message):
    """By an error that says what was expected, before anything is computed."""
    flow, batch = make("class", network=FIXED_WIDTH), make_batch()
    with pytest.raises(ValueError, match=message):
        call(flow, {"condition": flow.encoder.init(KEY) | {"null": NULL}}, batch, noise())


KEY = jax.random.key(0)
FIXED_WIDTH = DiTConfig(patch=4, width=8, depth=1, heads=1)
NULL = {"embedding": jnp.zeros((2, 8))}


def test_guidance_needs_an_unconditional_model_that_was_trained():
    """Also of a sampler that is not that of the configuration."""
    guided, batch = EulerSampler(steps=1, guidance=3.0), make_batch()
    for condition in (NoCondition(), ClassCondition(dropout=0.0)):
        flow = make_flow(FlowConfig(condition=condition, network=FIXED_WIDTH), **SIZES)
        with pytest.raises(ValueError, match="guidance needs the unconditional model"):
            jax.eval_shape(lambda: flow.sample(flow.init(KEY, batch), batch, noise(), sampler=guided))  # noqa: B023


def test_the_exact_likelihood_of_large_images_is_refused():
    flow, batch = make_flow(FlowConfig(condition=NoCondition()), shape=(32, 32, 3)), {}
    batch = {"image": jnp.zeros((2, 32, 32, 3), jnp.uint8), "index": jnp.arange(2)}
    with pytest.raises(ValueError, match="3072 derivatives .* give a key"):
        flow.log_likelihood({}, batch)


def test_one_condition_serves_all_noise():
    """With guidance as without it."""
    flow, batch = make("class", network=FIXED_WIDTH), make_batch()
    params = random_params(flow.method, KEY, batch)
    guided = EulerSampler(steps=1, guidance=3.0)
    got = sample(flow, params, {"label": jnp.ones(1, int)}, noise(), sampler=guided)
    want = sample(flow, params, {"label": jnp.ones(16, int)}, noise(), sampler=guided)
    np.testing.assert_array_equal(got, want)


def test_blending_toward_an_unknown_class_is_blending_toward_no_condition():
    flow, batch = make("class", network=FIXED_WIDTH), make_batch()
    params = random_params(flow.method, KEY, batch)
    none = jnp.full(16, -1)
    toward = {**batch, "toward_label": none, "blend": jnp.ones(16)}
    want = sample(flow, params, {**batch, "label": none}, noise(), sampler=ONE_STEP)
    assert np.abs(want - sample(flow, params, batch, noise(), sampler=ONE_STEP)).max() > 0.01
    np.testing.assert_allclose(sample(flow, params, toward, noise(), sampler=ONE_STEP), want, atol=1e-5)


def test_adaptive_steps_start_at_a_time_of_each_example():
    """As in editing; of ``dz/dt = z``, whose solution is the exponential function. 1 changes nothing."""
    start, z = jnp.array([0.0, 0.3, 0.8, 1.0]), noise(4, 2)
    got = AdaptiveSampler(tolerance=1e-5).sample(lambda z, t: z, z, start=start)
    np.testing.assert_allclose(got, z * jnp.exp(1.0 - start)[:, None], rtol=1e-4)
    np.testing.assert_array_equal(got[3], z[3])


def test_what_adaptive_steps_do_not_finish_is_not_a_number():
    still, fast = jnp.zeros((1, 2)), jnp.full((1, 2), 100.0)
    velocity = lambda z, t: jnp.where(z > 50.0, 100.0 * z, 0.0)
    x = AdaptiveSampler(max_steps=3).sample(velocity, jnp.concatenate([still, fast]))
    np.testing.assert_array_equal(np.isnan(x), [[False, False], [True, True]])


@pytest.mark.parametrize("condition", ["class", "sentence"])
def test_optimal_transport_ignores_what_is_missing(condition):
    """The noise of absent data, and the conditions that are missing, have no influence on the pairs."""
    flow = make(condition, coupling=OptimalTransport(condition_weight=2.0), network=FIXED_WIDTH)
    rng, batch = np.random.default_rng(1), make_batch()
    x, z = (jnp.asarray(rng.normal(size=(16, 5)), jnp.float32) for _ in range(2))
    vectors = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    pair = jax.jit(
        lambda x, z, vectors, batch: flow._paired_noise(z, x, Condition(vectors, None), batch, None)
    )
    present = jnp.arange(16) % 3 != 0
    absent = {**batch, "present": {"image": present, "text": jnp.ones(16, bool)}}
    some = {k: v[present] for k, v in batch.items()}
    got = pair(jnp.where(present[:, None], x, 0.0), z, vectors, absent)
    np.testing.assert_array_equal(got[present], pair(x[present], z[present], vectors[present], some))
    if condition == "sentence":
        unknown = {**batch, "present": {"image": jnp.ones(16, bool), "text": present}}
        other = jnp.where(present[:, None], vectors, 0.0)
        np.testing.assert_array_equal(pair(x, z, vectors, unknown), pair(x, z, other, unknown))


def test_a_jump_needs_a_network_of_mean_velocities():
    flow, batch = make(), make_batch()
    params = random_params(flow.method, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="mean_flow or shortcut"):
        sample(flow, params, batch, noise(), sampler=JumpSampler())


@pytest.mark.parametrize("network", [NETWORK, UNetConfig(width=8, multipliers=(1,), heads=2)])
def test_the_network_is_zero_at_first(network):
    flow, batch = make(network=network), make_batch()

    @jax.jit
    def velocity(batch, z):
        return flow.velocity(flow.init(jax.random.key(0), batch), batch, z, jnp.full(16, 0.3))

    assert (velocity(batch, noise().reshape(16, 8, 12, 3)) == 0).all()
