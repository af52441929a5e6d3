"""Judges learn to tell classes, each by its own modality alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import assert_device_invariant, random_params
from xmodal_jax.core import trees
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import ModalityConfigs, sizes_of
from xmodal_jax.nets.encoders import MLPEncoderConfig, TextTransformerConfig

NAMES = ("image_0", "text", "image_1", "label")
ORDER = ("image_0", "image_1", "text", "label")  # groups in the order in which they come first
IMAGES = ("image_0", "image_1")
CLASSES, HIDDEN, LENGTH, WORDS = 3, 16, 4, 8
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
KEY = jax.random.key(2)
CONFIG = ModalityConfigs()
ENCODERS = {
    "image": MLPEncoderConfig(width=16, depth=1),
    "text": TextTransformerConfig(width=8, depth=1, heads=2),
    "label": None,
}
# What only training has: noise drawn for each example.
NOISE = 0.2


def make_batch(n=24, seed=0, missing=0.0, unknown=0.0):
    """Pictures in the class's colour, and a word of three of which one is the class's."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n).astype(np.int32)
    text = rng.integers(4, WORDS, (n, LENGTH)).astype(np.int32)
    text[np.arange(n), rng.integers(0, LENGTH - 1, n)] = 1 + label
    text[:, -1] = 0
    batch = {"text": text, "text_mask": text > 0, "index": np.arange(n, dtype=np.int32)}
    for name in ("image_0", "image_1"):
        noise = rng.normal(0, 40, (n, 8, 8, 3))
        batch[name] = np.clip(COLOURS[label][:, None, None] + noise, 0, 255).astype(np.uint8)
    if missing:
        batch["present"] = {m: rng.random(n) >= missing for m in NAMES[:3]}
    return batch | {"label": np.where(rng.random(n) < unknown, -1, label).astype(np.int32)}


on_device = jax.device_put


@functools.cache
def make(names=NAMES, dropout=0.0):
    sizes = sizes_of(make_batch(1), names, CONFIG, vocab_size=WORDS, classes=CLASSES)
    image = dataclasses.replace(ENCODERS["image"], dropout=dropout)
    return make_judges(CONFIG, sizes, CLASSES, hidden=HIDDEN, encoders=ENCODERS | {"image": image})


@functools.cache
def started(names=NAMES):
    judges = make(names)
    return judges, random_params(judges.method.init, KEY, on_device(make_batch(1)))


@functools.cache
def initialized():
    """Judges of all but the label, with the parameters that they start from."""
    judges = make(NAMES[:3])
    return judges, jax.jit(judges.method.init)(KEY, on_device(make_batch(1)))


@functools.cache
def predict():
    return jax.jit(started()[0].method.predict)


def named(tree):
    return dict(zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True))


def test_judges_learn_every_modality():
    judges, params = initialized()
    assert judges.modalities == ORDER[:3]
    tx, data = optax.adam(1e-2), on_device(make_batch(256, seed=1))

    @jax.jit
    def train(params):
        def step(carry, k):
            params, state = carry
            rows = jax.random.randint(jax.random.fold_in(KEY, k), (32,), 0, 256)
            batch = jax.tree.map(lambda x: x[rows], data)
            (value, aux), grads = jax.value_and_grad(judges.method.loss, has_aux=True)(params, batch, KEY)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), (value, aux["accuracy"])

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(120))

    (trained, _), (losses, accuracy) = train(params)
    test = make_batch(199, seed=2)
    verdict = jax.jit(judges.method.predict)(trained, on_device(test))
    assert verdict.logits.shape == (199, 3, CLASSES) and verdict.features.shape == (199, 3, HIDDEN)
    right = np.asarray(verdict.logits.argmax(-1)) == test["label"][:, None]
    assert (right.mean(axis=0) > 0.95).all()
    assert losses[-10:].mean() < 0.2 < losses[0] and accuracy[-10:].mean() > 0.95


def test_the_loss_is_the_mean_over_what_is_present_and_known():
    judges, params = started()
    batch = make_batch(17, missing=0.4, unknown=0.3)
    logits = np.asarray(predict()(params, on_device(batch)).logits, np.float64)
    terms, right = [], []
    for n in range(17):
        for k, name in enumerate(ORDER):
            there = batch["present"].get(name, np.ones(17, bool))[n]
            if there and batch["label"][n] >= 0:
                row = logits[n, k]
                terms.append(np.log(np.exp(row).sum()) - row[batch["label"][n]])
                right.append(row.argmax() == batch["label"][n])
    assert 0 < len(terms) < 17 * 4
    value, aux = jax.jit(judges.method.loss)(params, on_device(batch), KEY)
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(aux["accuracy"], np.mean(right), rtol=1e-6)


def changed(batch, name, seed=7):
    """The same with another content of one modality."""
    other = make_batch(len(batch["index"]), seed=seed)
    fields = [f for f in (name, f"{name}_mask") if f in batch]
    return {**batch, **{f: other[f] for f in fields}}


@pytest.mark.parametrize("name", ORDER)
def test_each_judge_sees_its_own_modality_alone(name):
    """Exactly, and its verdict does depend on that one."""
    judges, params = started()
    batch = make_batch(11)
    place = ORDER.index(name)
    before, after = (predict()(params, on_device(b)) for b in (batch, changed(batch, name)))
    for a, b in zip(before, after, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        others = np.arange(len(ORDER)) != place
        np.testing.assert_array_equal(a[:, others], b[:, others])
        assert not np.array_equal(a[:, place], b[:, place])


@functools.cache
def owners():
    """Which judges' verdicts have a gradient in each member of each array of parameters, bool ``[judge, member]``."""
    judges, params = started()
    batch = on_device(make_batch(11))
    said = lambda p: (judges.method.predict(p, batch).logits ** 2).sum(axis=(0, 2))
    grads = named(jax.jit(jax.jacrev(said))(params))
    return {path: np.asarray((g != 0).any(axis=tuple(range(2, g.ndim)))) for path, g in grads.items()}


def test_judges_share_no_parameters():
    """What one judge says has a gradient in parameters of its own and exactly none in another's."""
    owned = np.zeros(len(ORDER), int)
    for path, moved in owners().items():
        # The two pictures are one group, whose members are in their order; the others are alone.
        expected = np.eye(4, 2, dtype=bool) if moved.shape[1] == 2 else moved & (moved.sum() == 1)
        np.testing.assert_array_equal(moved, expected, err_msg=path)
        owned += moved.sum(axis=1)
    assert (owned[:2] == owned[0]).all() and (owned >= 4).all()


def test_members_of_a_group_begin_apart():
    _, params = initialized()
    pairs = [x for path, x in named(params).items() if len(x) == 2 and path.endswith("kernel")]
    assert len(pairs) == 3 and not any(np.array_equal(x[0], x[1]) for x in pairs)


@functools.cache
def graded():
    return jax.jit(jax.value_and_grad(started()[0].method.loss, has_aux=True))


def assert_same(a, b):
    for path, x in named(a).items():
        np.testing.assert_array_equal(x, named(b)[path], err_msg=path)


def test_missing_modalities_and_unknown_classes_have_no_influence():
    """Whatever they hold; and with one modality missing everywhere its judge learns nothing."""
    params = started()[1]
    batch = make_batch(16, missing=0.4, unknown=0.3)
    batch["present"]["text"][:] = False
    other, unknown = make_batch(16, seed=5), batch["label"] < 0
    spoiled = dict(batch)
    for field in ("image_0", "image_1", "text"):
        gone = ~batch["present"][field] | unknown
        spoiled[field] = np.where(
            gone.reshape(-1, *[1] * (batch[field].ndim - 1)), other[field], batch[field]
        )
        assert not np.array_equal(spoiled[field], batch[field])
    spoiled["label"] = np.where(unknown, -5, batch["label"]).astype(np.int32)
    found, same = graded()(params, on_device(batch), KEY), graded()(params, on_device(spoiled), KEY)
    assert found[0][0] > 0
    assert_same(found, same)
    for path, g in named(found[1]).items():
        silent = not owners()[path][[0, 1, 3]].any()
        assert (np.abs(g).max() == 0) == silent, path


def test_a_batch_without_anything_known_teaches_nothing():
    params = started()[1]
    batch = make_batch(16) | {"label": np.full(16, -1, np.int32)}
    (value, aux), grads = graded()(params, on_device(batch), KEY)
    assert value == 0 and aux["accuracy"] == 0
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_judges_are_the_same_on_any_number_of_devices():
    """With dropout, and with less to learn from on some devices than on others."""
    judges, batch = make(IMAGES, NOISE), make_batch(16, missing=0.4, unknown=0.3)
    batch["label"][:4] = -1
    assert_device_invariant(judges.method, batch, layouts=[("pmap", 4, 1), ("sharded", 4, 2)])


def test_verdicts_are_without_noise_and_training_is_not():
    judges, params = make(IMAGES, NOISE), started(IMAGES)[1]
    batch = on_device(make_batch(9))
    loss = jax.jit(lambda key: judges.method.loss(params, batch, key)[0])
    assert loss(KEY) != loss(jax.random.key(3))
    still = started(IMAGES)[0]
    pair = jax.jit(lambda params: (judges.method.predict(params, batch), still.method.predict(params, batch)))
    for a, b in zip(*pair(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_kind_has_an_encoder():
    """Of judges as they are by default; parameters are not made."""
    batch = make_batch(2) | {"audio": np.zeros((2, 30, 40), np.float32), "audio_mask": np.ones((2, 30), bool)}
    names = (*NAMES, "audio")
    judges = make_judges(CONFIG, sizes_of(batch, names, CONFIG, vocab_size=WORDS, classes=CLASSES), CLASSES)
    params = jax.eval_shape(judges.method.init, KEY, on_device(batch))
    verdict = jax.eval_shape(judges.method.predict, params, on_device(batch))
    assert verdict.logits.shape == (2, 5, CLASSES) and verdict.features.shape == (2, 5, 128)
    assert judges.modalities == (*ORDER, "audio")
