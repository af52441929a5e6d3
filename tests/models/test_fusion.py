import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.test_contrastive import CONFIG as TOWERS
from tests.models.test_contrastive import make_batch as raw_batch
from tests.models.test_contrastive import on_device
from tests.support import LAYOUTS, assert_device_invariant, assert_resumes, random_params
from xmodal_jax.core import parts
from xmodal_jax.models.fusion import FusionConfig, drop_modalities, make_fusion
from xmodal_jax.models.towers import precompute_spectrograms, presence_masks
from xmodal_jax.nets.fusion import FusionKind, MergedAttentionConfig
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.train.optim import Optimizer

MODALITIES = ("text", "image", "audio")
CLASSES = {"label": 5, "action": 3}
CONFIG = FusionConfig(
    fusion=MergedAttentionConfig(width=16, depth=1, heads=2, dropout=0.2),  # no gates that start closed
    head_dropout=0.2,
    modality_dropout=0.3,
    label_smoothing=0.1,
    **{f: getattr(TOWERS, f) for f in ("text", "image", "audio", "video", "features", "augment")},
)


def make_batch(n=16, seed=0, modalities=MODALITIES):
    rng = np.random.default_rng(seed + 1)
    labels = {target: rng.integers(-1, count, n).astype(np.int32) for target, count in CLASSES.items()}
    return {**raw_batch(n, seed, modalities), **labels}


@pytest.mark.parametrize(
    "layouts",
    [[("sharded", 4, 2)], pytest.param(LAYOUTS, marks=pytest.mark.slow)],
    ids=["one layout", "all layouts"],
)
def test_the_devices_do_not_change_the_result(layouts):
    """With dropout, modality dropout, augmentation, missing modalities, unknown labels, and three texts to an image."""
    method = make_fusion(CONFIG, ("text", "image"), CLASSES, vocab_size=19)
    batch = {k: v for k, v in grouped_batch()[0].items() if not k.startswith("audio")}
    present = {m: np.arange(8) % 3 != k for k, m in enumerate(("text", "image"))}
    batch = {**batch, "present": present}
    assert_device_invariant(method, batch, layouts=layouts, together=layouts != LAYOUTS)


def test_the_loss_is_the_mean_cross_entropy_of_what_is_known():
    method = make_fusion(still(CONFIG), MODALITIES, CLASSES, vocab_size=19)
    batch = make_batch()
    params = random_params(method.init, jax.random.key(0), batch)
    both = jax.jit(
        lambda params, batch, key: (method.loss(params, batch, key), method.predict(params, batch))
    )
    (value, aux), answer = both(params, batch, jax.random.key(1))
    expected = 0.0
    for target, count in CLASSES.items():
        logits = np.asarray(answer.logits[target], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        known = batch[target] >= 0
        goal = 0.9 * np.eye(count)[batch[target][known]] + 0.1 / count
        mean = -(goal * log_p[known]).sum(axis=1).mean()
        np.testing.assert_allclose(aux[f"{target}_loss"], mean, rtol=1e-5)
        right = (logits[known].argmax(axis=1) == batch[target][known]).mean()
        np.testing.assert_allclose(aux[f"{target}_accuracy"], right, rtol=1e-6)
        expected += mean
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def still(config):
    """Without anything random."""
    quiet = {m: dataclasses.replace(getattr(config, m), dropout=0.0) for m in MODALITIES}
    augment = dataclasses.replace(
        config.augment, image=AugmentConfig(translate=0), time_masks=0, frequency_masks=0
    )
    fusion = dataclasses.replace(config.fusion, dropout=0.0)
    none = dict(head_dropout=0.0, modality_dropout=0.0)
    return dataclasses.replace(config, fusion=fusion, **none, augment=augment, **quiet)


def grouped_batch(rows=8, each=3, shared=("image",)):
    """``(rows that share inputs, the same examples one by one)``."""
    flat = make_batch(rows * each, modalities=("text", "image", "audio"))
    flat.pop("present")
    shapes = lambda x: x.reshape(rows, each, *x.shape[1:])
    grouped = {k: v[::each] if k in shared else shapes(v) for k, v in flat.items() if k != "index"}
    for m in shared:
        flat[m] = np.repeat(flat[m][::each], each, axis=0)
    return {**grouped, "index": np.arange(rows, dtype=np.int32)}, flat


def test_examples_may_share_inputs():
    """Three texts and labels to each image: the loss, gradient and answers are those of the single examples."""
    method = make_fusion(still(CONFIG), ("text", "image"), CLASSES, vocab_size=19)
    grouped, flat = grouped_batch()
    params = random_params(method.init, jax.random.key(0), flat)
    same = jax.eval_shape(method.init, jax.random.key(0), grouped)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, same)
    learn = jax.value_and_grad(method.loss, has_aux=True)
    run = jax.jit(lambda params, batch, key: (learn(params, batch, key), method.predict(params, batch)))
    ((value, aux), grads), answer = run(params, grouped, jax.random.key(1))
    ((other, other_aux), other_grads), other_answer = run(params, flat, jax.random.key(1))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), aux, other_aux)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), grads, other_grads)
    answers = answer.logits["label"], other_answer.logits["label"]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # as in test_speech.py, which every run has
def test_frames_computed_once_are_the_waveforms_own():
    """Also with SpecAugment, of which the keys are the same, and where examples share inputs."""
    config = dataclasses.replace(
        still(CONFIG), augment=dataclasses.replace(still(CONFIG).augment, time_masks=1, frequency_masks=1)
    )
    method = make_fusion(config, ("image", "audio"), CLASSES, vocab_size=19)
    sounds, _ = grouped_batch()
    frames = precompute_spectrograms(config.features)(sounds)
    assert (
        frames["audio"].shape[:2] == (8, 3) and frames["audio"].shape[2:3] == frames["audio_mask"].shape[2:]
    )
    params = random_params(method.init, jax.random.key(0), frames)
    losses = [jax.jit(method.loss)(params, on_device(b), jax.random.key(1))[0] for b in (sounds, frames)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    other = dataclasses.replace(config, features=dataclasses.replace(config.features, mels=7))
    with pytest.raises(ValueError, match="11 bands, features.mels is 7"):
        make_fusion(other, ("image", "audio"), CLASSES, vocab_size=19).predict(params, on_device(frames))


def test_a_model_of_the_shared_input_alone_sees_every_label():
    method = make_fusion(still(CONFIG), ("image",), CLASSES, vocab_size=19)
    grouped, flat = grouped_batch()
    params = random_params(method.init, jax.random.key(0), flat)
    losses = [jax.jit(method.loss)(params, on_device(b), jax.random.key(1))[0] for b in (grouped, flat)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_what_shares_inputs_must_be_as_many():
    method = make_fusion(CONFIG, ("text", "image"), CLASSES, vocab_size=19)
    grouped, _ = grouped_batch()
    with pytest.raises(ValueError, match="must be the same in all: {'text': 3, 'label': 2, 'action': 3}"):
        method.loss(None, {**grouped, "label": grouped["label"][:, :2]}, jax.random.key(0))


def test_a_stopped_run_ends_bit_identical(tmp_path):
    """With dropout, several examples in each row, an average of the parameters and Muon's state."""
    arrays, _ = grouped_batch(rows=24)
    arrays = {k: v for k, v in arrays.items() if k in ("text", "text_mask", *CLASSES)}
    method = make_fusion(CONFIG, ("text",), CLASSES, vocab_size=19)
    assert_resumes(method, arrays, tmp_path, optimizer=Optimizer(name="muon", learning_rate=1e-2, ema=0.9))


def test_a_missing_modality_has_no_influence_and_no_gradient():
    method = make_fusion(CONFIG, MODALITIES, CLASSES, vocab_size=19)
    batch = make_batch()
    batch["present"] = {**batch["present"], "audio": np.zeros(16, bool)}
    params = random_params(method.init, jax.random.key(0), batch)
    gradient = jax.jit(jax.grad(method.loss, has_aux=True))
    grads, _ = gradient(params, batch, jax.random.key(2))
    assert not any(np.any(g) for g in jax.tree.leaves(jax.device_get(grads["audio"])))
    assert any(np.any(g) for g in jax.tree.leaves(jax.device_get(grads["image"])))
    changed = {**batch, "audio": -batch["audio"] // 3}
    jax.tree.map(np.testing.assert_array_equal, grads, gradient(params, changed, jax.random.key(2))[0])


def test_modality_dropout_has_its_rate_and_leaves_one():
    n, rate = 20_000, 0.4
    rng = np.random.default_rng(0)
    present = {m: jax.device_put(rng.random(n) < 0.8) for m in MODALITIES}
    keys = jax.random.split(jax.random.key(0), n)
    kept = jax.jit(lambda p, k: drop_modalities(p, k, rate))(present, keys)
    there, left = (np.stack([np.asarray(x[m]) for m in MODALITIES], axis=1) for x in (present, kept))
    assert not (left & ~there).any()
    assert (left.any(axis=1) == there.any(axis=1)).all()
    for count in (1, 2, 3):  # kept: 1 - rate of each, and where all fell one of them again
        rows = there.sum(axis=1) == count
        expected = (1 - rate) + rate**count / count
        spread = np.sqrt(expected * (1 - expected) / (rows.sum() * count))
        assert abs(left[rows].sum() / (rows.sum() * count) - expected) <= 4 * spread + 1e-9
    alone = drop_modalities({"text": jnp.ones(8, bool)}, keys[:8], 0.9)
    assert alone["text"].all()


def test_prediction_takes_any_subset():
    method = make_fusion(CONFIG, MODALITIES, CLASSES, vocab_size=19)
    batch = on_device(make_batch())
    params = random_params(method.init, jax.random.key(0), batch)
    whole = {
        **batch,
        "present": {"text": np.ones(16, bool), "image": np.zeros(16, bool), "audio": np.zeros(16, bool)},
    }
    alone = {k: v for k, v in batch.items() if k in ("text", "text_mask", "index")}
    a = jax.jit(method.predict)(params, whole)
    assert {t: x.shape for t, x in a.logits.items()} == {"label": (16, 5), "action": (16, 3)}
    b = jax.jit(method.predict)(params, alone)
    np.testing.assert_allclose(a.pooled, b.pooled, atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    ["merged"]
    + [
        pytest.param(k, marks=pytest.mark.slow)
        for k in ("bilinear", "co_attention", "gated", "perceiver", "film", "concat", "bottleneck")
    ],
)
def test_learns_what_no_modality_says_alone(kind):
    """The exclusive or of a word and a picture: either alone, or their sum, stays at one half."""
    # Of the bottleneck tokens: what one modality wrote, another reads a layer later.
    sizes = dict(width=16, depth=2 if kind == "bottleneck" else 1, heads=2)
    part = parts.choose(FusionKind, kind)
    fusion = part(**{name: size for name, size in sizes.items() if name in parts.options_of(part)})
    config = dataclasses.replace(still(CONFIG), fusion=fusion, label_smoothing=0.0)
    method = make_fusion(config, ("text", "image"), {"label": 2}, vocab_size=19)
    rng = np.random.default_rng(0)
    word, picture = rng.integers(0, 2, (2, 256))
    text = np.repeat(3 + word[:, None], 4, axis=1).astype(np.int32)
    image = rng.integers(0, 100, (256, 10, 10, 3)) + 120 * picture[:, None, None, None]
    data = {"text": text, "image": image.astype(np.uint8), "label": (word ^ picture).astype(np.int32)}
    data = {**data, "index": np.arange(256, dtype=np.int32)}
    part = lambda data, rows: jax.tree.map(lambda x: x[rows], data)
    tx = optax.adam(3e-3)
    params = jax.jit(method.init)(jax.random.key(0), part(data, np.arange(2)))

    @jax.jit
    def run(params, data):
        def step(carry, rows):
            params, state = carry
            learn = jax.value_and_grad(method.loss, has_aux=True)
            (value, _), grads = learn(params, part(data, rows), jax.random.key(0))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        rows = jax.random.randint(jax.random.key(1), (150, 32), 0, 128)
        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), rows)
        return method.predict(params, part(data, slice(128, 256))), losses

    answer, losses = run(params, data)
    accuracy = (np.asarray(answer.logits["label"]).argmax(axis=1) == data["label"][128:]).mean()
    assert accuracy > 0.95, (kind, float(accuracy), float(losses[-1]))


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="modality_dropout must lie in"):
        FusionConfig(modality_dropout=1.0)
    with pytest.raises(ValueError, match="at least one modality and one target"):
        make_fusion(CONFIG, ("text",), {}, vocab_size=3)


def test_presence_defaults_to_all():
    found = presence_masks(
        {"index": np.arange(3), "present": {"text": jnp.array([True, False, True])}}, ("text", "image")
    )
    assert found["text"].tolist() == [True, False, True] and found["image"].all()
