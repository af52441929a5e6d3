"""Multimodal VAEs as methods: missing modalities, devices, one compilation, refusals, two stages."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.vae.multimodal import (
    CLASSES,
    CONFIGS,
    KEY,
    MODALITIES,
    MODELS,
    NAMES,
    config_of,
    graded,
    losses_of,
    make,
    make_batch,
    on_device,
    started,
)
from tests.support import assert_device_invariant, assert_resumes, loss_and_gradient
from xmodal_jax.core import parts, trees
from xmodal_jax.models.vae.modalities import LabelConfig, TextConfig, sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MoPoEConfig, MultimodalVAEModel
from xmodal_jax.nets.decoders import ParallelDecoderConfig
from xmodal_jax.probability.posteriors import all_subsets
from xmodal_jax.train import step
from xmodal_jax.train.muon import matrix_axes
from xmodal_jax.train.optim import Optimizer

TWO_STAGES = [name for name, model in MODELS.items() if model.initial_fraction]


def named(tree):
    return dict(zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True))


def slices(tree, member):
    """Of every array that is stacked over modalities the part of one of ``NAMES``, by path.

    A group's parts are stacked over its members (here both images, or the label alone), those that every modality has
    alike over all of them.
    """
    found = {}
    for path, x in named(tree).items():
        top = path.split("/")[0]
        place = NAMES.index(member)
        if top.startswith(("experts", "trunks", "decoders")):
            kind = member.split("_")[0]
            if f"_{kind}_" in top:
                found[path] = np.asarray(x[0 if kind == "label" else place])
        elif top.startswith(
            ("flow_of_each", "message_of", "code_of", "rises", "deepest", "level_experts", "auxiliary")
        ):
            found[path] = np.asarray(x[place])
    return found


def without(batch, member):
    return {**batch, "present": {**batch["present"], member: np.zeros(len(batch["index"]), bool)}}


def spoiled(batch, seed=9):
    """The same with other content wherever a modality is missing."""
    other = make_batch(len(batch["index"]), seed)
    out = dict(batch)
    for name in NAMES:
        gone = ~batch["present"][name]
        content = np.abs(other[name]) if name == "label" else other[name]
        out[name] = np.where(gone.reshape(-1, *[1] * (content.ndim - 1)), content, batch[name])
    return out


STAGES = [(name, stage) for name in MODELS for stage in range(1 + (name in TWO_STAGES))]


@pytest.mark.parametrize("model,stage", STAGES)
def test_a_missing_modality_has_no_influence_and_no_gradient(model, stage):
    """Exactly: one member of a group of two, and what is missing of the other two in some examples."""
    batch = without(make_batch(), "image_1")
    assert not batch["present"]["image_0"].all() and not batch["present"]["label"].all()
    other = spoiled(batch)
    assert not np.array_equal(other["label"], batch["label"])
    f, params = graded(model, stage), started(model)[1]
    (value, aux), grads = f(params, on_device(batch), KEY)
    (same, same_aux), same_grads = f(params, on_device(other), KEY)
    assert np.isfinite(value) and value == same and aux == same_aux
    for name, g in named(grads).items():
        np.testing.assert_array_equal(g, named(same_grads)[name], err_msg=name)
    for name, g in slices(grads, "image_1").items():
        assert not g.any(), name
    assert f._cache_size() == 1  # whatever is missing, one program
    # What is there learns, as far as this stage is for it.
    first = model in TWO_STAGES and stage == 1
    for name, g in (slices(grads, "image_0") | slices(grads, "label")).items():
        learns = (
            (started(model)[0].method.initial_stage.trains(name) == first) if model in TWO_STAGES else True
        )
        assert g.any() == learns, name


@pytest.mark.parametrize("model,stage", STAGES)
def test_neither_padded_rows_nor_devices_change_anything(model, stage):
    """The batch on one device without them, and with them over two devices: shares and their gradients add up."""
    vae, params = started(model)
    batch, padding = make_batch(), make_batch(4, seed=4)
    padding["present"] = {name: np.zeros(4, bool) for name in NAMES}
    padding["index"] = np.arange(50, 54, dtype=np.int32)
    split = lambda a, b: np.concatenate([a, b]).reshape(2, 6, *a.shape[1:])
    padded = jax.tree.map(split, batch, padding)
    loss = losses_of(vae)[stage]
    share = jax.value_and_grad(lambda p, b: loss(p, b, KEY, axis_name="devices"), has_aux=True)
    shares = jax.jit(jax.vmap(share, (None, 0), axis_name="devices"))(params, on_device(padded))
    (same, same_aux), same_grads = jax.tree.map(lambda x: np.asarray(x).sum(axis=0), shares)
    (value, aux), grads = graded(model, stage)(params, on_device(batch), KEY)
    np.testing.assert_allclose(same, value, rtol=2e-6)
    for name in aux:
        np.testing.assert_allclose(same_aux[name], aux[name], rtol=1e-5, err_msg=name)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    for name, g in named(grads).items():
        scale = max(np.abs(g).max(), 1e-2 * largest)
        np.testing.assert_allclose(named(same_grads)[name], g, rtol=0, atol=1e-5 * scale, err_msg=name)


BOTH = [("pmap", 4, 1), ("sharded", 4, 2)]


@pytest.mark.parametrize(
    "model,layouts,changes",
    [
        ("mvae", BOTH[:1], dict(image=MODALITIES["image"])),  # its convolutions take longer to compile
        *(pytest.param(m, BOTH, {}, marks=pytest.mark.slow) for m in MODELS),
    ],
    ids=["mvae on one layout", *MODELS],
)
def test_the_training_step_does_not_depend_on_the_devices(model, layouts, changes):
    # Weights of importance are exponentials of a hundred nats and more, which float32 knows to 1e-5; in float64 these
    # models agree to 1e-14.
    rtol = 1e-4 if getattr(config_of(model), "samples", 1) > 1 else 1e-5
    # Free bits are a limit on a mean over the whole batch.
    part_count = 1 if getattr(config_of(model), "free_bits", 0.0) else 2
    method = make(model, **changes).method
    assert_device_invariant(method, make_batch(), layouts=layouts, rtol=rtol, parts=part_count)


@pytest.mark.parametrize(
    "model", ["mopoe", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mvae", "code_vae"))]
)
def test_a_batch_in_parts_is_the_whole_batch(model):
    assert_device_invariant(make(model, free_bits=0.0).method, make_batch(), layouts=[])


def test_free_bits_need_the_whole_batch():
    vae, params = started("mvae")
    with pytest.raises(ValueError, match="accumulate = 2 .* the loss needs the whole batch at once"):
        loss_and_gradient(vae.method, on_device(make_batch()), config=Optimizer(accumulate=2), params=params)


@pytest.mark.slow  # tests/train/test_stages.py resumes between two stages
@pytest.mark.parametrize("model", MODELS)
def test_a_stopped_run_ends_as_one_that_was_not(model, tmp_path):
    """Stopped after two of four steps: of two stages, between them."""
    arrays = {k: v for k, v in make_batch(24).items() if k not in ("index", "step")}
    optimizer = Optimizer(name="adamw", learning_rate=1e-2, ema=0.9)
    assert_resumes(make(model).method, arrays, tmp_path, optimizer=optimizer)


@pytest.mark.parametrize("model", ["telbo", pytest.param("jnf", marks=pytest.mark.slow)])
def test_each_stage_moves_its_own_parameters_alone(model):
    """Bit for bit, with decay and momentum: decoders and joint encoder in the first, all others in the second."""
    vae, params = started(model, initial_fraction=0.4)
    batch, optimizer = on_device(make_batch()), Optimizer(name="adamw", learning_rate=1e-2, weight_decay=0.3)
    training = step.make_training(vae.method, optimizer, 5, params=params)
    assert training.initial_steps == 2
    state = jax.jit(training.init)(jax.random.key(3), batch)
    seen = [state.params]
    for make_step, count in ((training.make_initial_step, training.initial_steps), (training.make_step, 3)):
        go = jax.jit(make_step(None))
        for _ in range(count):
            state, metrics = go(state, batch)
            assert metrics["finite"].all()
        seen.append(state.params)
    start, middle, end = map(named, seen)
    joint = [name for name in start if name.split("_")[0] in ("decoders", "trunks", "joint")]
    assert {name.split("_")[0] for name in joint} == {"decoders", "trunks", "joint"}
    assert any(name.startswith("experts") for name in start if name not in joint)
    for name in start:
        moved = [not np.array_equal(a[name], b[name]) for a, b in ((start, middle), (middle, end))]
        assert moved == [name in joint, name not in joint], name


@pytest.mark.parametrize("model", ["mvae", "mopoe", "mmjsd", "mhvae", "mmvm"])
def test_beta_and_its_warm_up_weigh_the_divergence(model):
    """At the fifth of ten steps of warm-up, half of it; 1 after it, and where nothing says which step it is."""
    batch, params = make_batch(), started(model)[1]
    later = {**batch, "step": np.full(8, 30, np.int32)}
    runs = [(graded(model, 0)(params, on_device(x), KEY)[0], w) for x, w in ((batch, 0.5), (later, 1.0))]
    if model == "mvae":
        del later["step"]
        runs.append((jax.jit(make(model).method.loss)(params, on_device(later), KEY), 1.0))
    for (value, aux), weight in runs:
        assert abs(aux["kl"]) > 0.1
        np.testing.assert_allclose(value, aux["reconstruction"] + weight * aux["kl"], rtol=1e-6)


def test_subsets_with_a_missing_modality_keep_their_weights():
    batch = without(make_batch(), "image_1")
    grads = graded("code_vae", 0)(started("code_vae")[1], on_device(batch), KEY)[1]["subset_logits"]
    holds = all_subsets(3)[:, NAMES.index("image_1")]
    np.testing.assert_array_equal(grads[holds], 0.0)
    assert np.all(grads[~holds]) and holds.sum() == 4


@functools.cache
def loss_of(model, **changes):
    return jax.jit(make(model, **changes).method.loss)


def told(model, batch, **changes):
    """Loss and scalars after the warm-up."""
    return loss_of(model, **changes)(started(model)[1], on_device(batch), KEY)


def only(*names):
    """A batch with known labels, in which nothing else is there."""
    present = {name: np.full(8, name in names) for name in NAMES}
    batch = {**make_batch(), "label": np.arange(8, dtype=np.int32) % CLASSES, "present": present}
    return {k: v for k, v in batch.items() if k != "step"}


@pytest.mark.parametrize(
    "beta,weight,alpha,share",
    [
        ({}, 2.5, {}, 5 / 6),
        ({"beta": 1.5}, 1.5, {"alpha": 0.1}, 0.1),
        pytest.param({"beta": 1.5}, 1.5, {}, 5 / 6, marks=pytest.mark.slow),
        pytest.param({}, 2.5, {"alpha": 0.1}, 0.1, marks=pytest.mark.slow),
    ],
)
def test_mvtcae_has_weights_of_its_own(beta, weight, alpha, share):
    total, aux = told("mvtcae", only(*NAMES), **beta, **alpha)
    near = share / 3 * aux["kl_joint_to_experts"]
    want = (3 - share) / 3 * aux["reconstruction"] + weight * ((1 - share) * aux["kl"] + near)
    np.testing.assert_allclose(total, want, rtol=1e-6)


def test_jmvae_has_a_small_one():
    total, aux = told("jmvae", only(*NAMES))
    same, _ = told("jmvae", only(*NAMES), alpha=0.1)
    other, _ = told("jmvae", only(*NAMES), alpha=0.2)
    np.testing.assert_allclose(total, same, rtol=1e-6)
    assert other > total + 0.01


def test_likelihoods_are_weighted_and_rescaled():
    """An image has 64 elements, a label one; the label's own weight is 2."""
    found = lambda name, **changes: float(told("mopoe", only(name), **changes)[1]["reconstruction"])
    plain = found("label", label=dataclasses.replace(MODALITIES["label"], weight=1.0))
    image = found("image_1")
    assert plain > 0 and image > 0
    np.testing.assert_allclose(found("label"), 2 * plain, rtol=1e-6)
    np.testing.assert_allclose(found("label", rescale=True), 128 * plain, rtol=1e-6)
    np.testing.assert_allclose(found("image_1", rescale=True), image, rtol=1e-6)


def test_sizes_are_those_of_the_data():
    batch = {
        "image": np.zeros((2, 8, 6, 3), np.uint8),
        "text": np.zeros((2, 5), np.int32),
        "label": np.zeros(2, np.int32),
        "audio": np.zeros((2, 400), np.float32),
        "audio_mask": np.ones((2, 400), bool),
        "audio_frames": np.zeros((2, 9, 7), np.float32),
        "audio_frames_mask": np.ones((2, 9), bool),
    }
    names = ("image", "text", "label", "audio", "audio_frames")
    sizes = sizes_of(batch, names, CONFIGS, vocab_size=11, classes=3)
    assert sizes["image"] == ((8, 6, 3), 0) and sizes["text"] == ((5,), 11) and sizes["label"] == ((), 3)
    assert sizes["audio"].shape[1] == CONFIGS.audio.spectrogram.mels and sizes["audio_frames"].shape == (9, 7)
    with pytest.raises(ValueError, match="'video': a VAE takes image, text, audio, vector, series, label"):
        sizes_of({"video": np.zeros((2, 1, 8, 8, 3))}, ("video",), CONFIGS)


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(model="vae"), "must be one of jmvae, .*, got 'vae'"),
        (dict(model="mmvae", posterior_scale="relu"), "posterior_scale must be one of .*got 'relu'"),
        (dict(model="mmvae", posterior="cauchy"), "posterior must be one of .*'normal', 'laplace'"),
        (dict(model="mopoe", posterior="laplace"), "unexpected keyword argument 'posterior'"),
        (dict(model="nexus", posterior="laplace"), "unexpected keyword argument 'posterior'"),
        (dict(model="mmjsd", posterior="laplace"), "unexpected keyword argument 'posterior'"),
        (dict(model="mmvae", free_bits=0.1), "unexpected keyword argument 'free_bits'"),
        (dict(model="mhvae", free_bits=0.1), "unexpected keyword argument 'free_bits'"),
        *[
            (dict(model=model, **{field: 0}), f"{field} must be at least 1, got 0")
            for model, field in (
                ("mopoe", "latent"),
                ("mopoe", "hidden"),
                ("mmvae", "samples"),
                ("cmvae", "clusters"),
                ("nexus", "top"),
                ("jnf", "flows"),
                ("dmvae", "private"),
                ("mmvae_plus", "private"),
                ("cmvae", "private"),
            )
        ],
        *[(dict(model="mhvae", levels=n), f"levels must be at least 2 for mhvae, got {n}") for n in (0, 1)],
        (dict(model="telbo", initial_fraction=0.0), "initial_fraction must lie between 0 and 1, got 0.0"),
        (dict(model="jnf", initial_fraction=1.0), "initial_fraction must lie between 0 and 1, got 1.0"),
        *[
            (dict(model=model, **{field: -1}), f"{field} must be at least 0, got -1")
            for model, field in (
                ("mopoe", "warmup"),
                ("mopoe", "cycle"),
                ("mvae", "subsets"),
                ("mhvae", "subsets"),
                ("code_vae", "subsets"),
                ("mmvm", "kl_samples"),
            )
        ],
        (dict(model="mmvm", free_bits=0.1), "unexpected keyword argument 'free_bits'"),
        (dict(model="code_vae", entropy_weight=-1.0), "entropy_weight must be at least 0, got -1.0"),
        (dict(model="mmvm", alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
        *[
            (dict(model="code_vae", correlation=x), rf"correlation must lie in \[0, 1\), got {x}")
            for x in (-0.1, 1.0)
        ],
        (dict(model="mopoe", free_bits=-0.5), "free_bits must be at least 0, got -0.5"),
        (dict(model="mopoe", cycle=10, ramp=0.0), r"ramp must lie in \(0, 1\], got 0.0"),
        (dict(model="mopoe", cycle=10, ramp=1.5), r"ramp must lie in \(0, 1\], got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    options = dict(changes)
    with pytest.raises((ValueError, TypeError), match=message):
        parts.choose(MultimodalVAEModel, options.pop("model"))(**options)


def test_every_model_has_its_own_options_alone():
    for option in ("private", "initial_fraction", "levels", "top", "clusters", "flows", "alpha"):
        assert option not in parts.options_of(MoPoEConfig)
        assert sum(option in parts.options_of(model) for model in MODELS.values()) in (1, 2, 3)
    for model in MODELS:
        assert config_of(model).name == model


@pytest.mark.parametrize(
    "kind,likelihood,message",
    [
        ("image", "categorical", "image.likelihood must be normal, laplace, bernoulli, got 'categorical'"),
        ("image", "poisson", "image.likelihood must be normal, laplace, bernoulli, got 'poisson'"),
        ("audio", "bernoulli", "audio.likelihood: log-mel frames are no probabilities"),
    ],
)
def test_a_likelihood_must_fit_its_kind(kind, likelihood, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(getattr(CONFIGS, kind), likelihood=likelihood)


def test_classes_and_texts_have_one_likelihood():
    for kind in (LabelConfig, TextConfig):
        with pytest.raises(TypeError, match="unexpected keyword argument 'likelihood'"):
            kind(likelihood="normal")


def test_one_modality_is_too_few():
    with pytest.raises(ValueError, match="a multimodal VAE needs two modalities at least, got image_0"):
        make_multimodal_vae(config_of("mopoe"), sizes_of(make_batch(1), ("image_0",), CONFIGS))


def test_a_decoder_must_be_of_its_kind():
    """Tests check the types of fields before `ImageConfig` does, which is called by hand here."""
    config = copy.copy(CONFIGS.image)
    object.__setattr__(config, "decoder", ParallelDecoderConfig())
    with pytest.raises(
        ValueError, match=r"decoders of image are \['conv', 'mlp', 'residual'\], got 'parallel'"
    ):
        config.__post_init__()


def test_a_prediction_is_the_mean_code_of_all_that_is_there():
    vae, params = started("mvae")
    batch = on_device(make_batch())
    codes = jax.jit(lambda params, batch: vae.infer(params, batch, jnp.ones(3, bool), None))(params, batch)
    latent = jax.jit(vae.method.predict)(params, batch)["latent"]
    np.testing.assert_array_equal(latent, codes.shared[0])


def shapes_with(images, model):
    """Shapes of a model's parameters, by path, with as many images and the class."""
    config, names = config_of(model), tuple(f"image_{k}" for k in range(images))
    batch = make_batch(1)
    batch = {**batch, **dict.fromkeys(names, batch["image_0"])}
    batch["present"] = dict.fromkeys((*names, "label"), batch["present"]["label"])
    vae = make_multimodal_vae(config, sizes_of(batch, (*names, "label"), config, classes=CLASSES))
    return {name: x.shape for name, x in named(jax.eval_shape(vae.method.init, KEY, batch)).items()}


@pytest.mark.parametrize("model", MODELS)
def test_muon_orthogonalises_the_matrix_of_each_modality(model):
    two, three = shapes_with(2, model), shapes_with(3, model)
    for name, shape in two.items():
        grown = [axis for axis, sizes in enumerate(zip(shape, three[name], strict=True)) if len({*sizes}) > 1]
        axes = matrix_axes(name, len(shape))
        if axes and grown and not name.startswith("joint_moments"):  # whose inputs are all modalities
            assert grown == [0] == list(axes.stack), name
        elif axes and "_label_" in name:  # a stack of one
            assert axes.stack == (0,), name
        elif axes:
            assert axes.stack == (), name
