import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.oracles import alignment as oracle
from tests.support import LAYOUTS, assert_device_invariant, assert_resumes, random_params
from xmodal_jax.data.mixture import MixtureSource
from xmodal_jax.data.open import DataOptions, apply_missing
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.models.contrastive import (
    CCA,
    CORAL,
    MMD,
    ContrastiveConfig,
    InfoNCE,
    PairDistance,
    Pairs,
    Sigmoid,
    Triplet,
    UniformCentroids,
    make_contrastive,
    matching_ids,
    text_ids,
)
from xmodal_jax.models.towers import AudioFeatures, Augmentation, features_field
from xmodal_jax.nets.encoders import (
    AudioTransformerConfig,
    DCGANEncoderConfig,
    TextTransformerConfig,
    TubeletViTConfig,
    VectorMLPConfig,
)
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.train.optim import Optimizer

small = dict(width=16, depth=1, heads=2)
CONFIG = ContrastiveConfig(
    embed_dim=13,
    text=TextTransformerConfig(**small, dropout=0.2),
    image=DCGANEncoderConfig(width=16, norm="none", dropout=0.2),
    audio=AudioTransformerConfig(**small, downsample=8, dropout=0.1),
    video=TubeletViTConfig(**small, patch=5, dropout=0.1),
    features=AudioFeatures(mels=11),
    augment=Augmentation(AugmentConfig(translate=1, brightness=0.2), time_masks=1, frequency_masks=1),
)
MODALITIES = ("text", "image", "audio", "video")


def make_batch(n=16, seed=0, modalities=MODALITIES):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 8, n)
    samples = rng.integers(1500, 3001, n)
    batch = {
        "text": (rng.integers(1, 19, (n, 7)) * (np.arange(7) < lengths[:, None])).astype(np.int32),
        "text_mask": np.arange(7) < lengths[:, None],
        "image": rng.integers(0, 256, (n, 10, 10, 3)).astype(np.uint8),
        "audio": (3000 * rng.normal(size=(n, 3001))).astype(np.int16),
        "audio_mask": np.arange(3001) < samples[:, None],
        "video": rng.integers(0, 256, (n, 2, 10, 10, 3)).astype(np.uint8),
    }
    batch = {k: v for k, v in batch.items() if k.removesuffix("_mask") in modalities}
    present = {m: rng.random(n) < 0.8 for m in modalities}
    return {**batch, "index": np.arange(n, dtype=np.int32), "present": present}


on_device = jax.device_put


@pytest.mark.parametrize(
    ("modalities", "layouts"),
    [
        (("text", "audio"), [("pmap", 8, 1)]),
        pytest.param(("text", "image", "audio"), LAYOUTS, marks=pytest.mark.slow),  # 25 s
    ],
    ids=["one layout", "all layouts"],
)
def test_the_devices_do_not_change_the_result(modalities, layouts):
    """With all kinds of dropout, augmentation and missing modalities, in all three modes on 1, 2, 4 and 8 devices."""
    text = dataclasses.replace(CONFIG.text, drop_path=0.2, token_dropout=0.3)
    method = make_contrastive(dataclasses.replace(CONFIG, text=text), modalities, vocab_size=19)
    batch = make_batch(modalities=modalities)
    assert_device_invariant(method, batch, layouts=layouts, together=layouts != LAYOUTS)


@pytest.mark.slow  # the losses' own tests have every device count
@pytest.mark.parametrize("objective", [Sigmoid(), Triplet(), MMD()], ids=lambda objective: objective.name)
def test_other_objectives_do_not_depend_on_the_devices(objective):
    config = dataclasses.replace(CONFIG, objective=objective, alignment=CORAL())
    method = make_contrastive(config, ("text", "image"), vocab_size=19)
    layouts = [("pmap", 4, 1)]
    # MMD in float32 is a small difference of large means; tests/losses holds it to 1e-10 in float64.
    rtol = 1e-4 if objective == MMD() else 1e-5
    assert_device_invariant(method, make_batch(modalities=("text", "image")), layouts=layouts, rtol=rtol)


def encoded(n=16, modalities=("text", "image")):
    """A batch with the outputs of the encoders, so that there is little to compile; some modalities are missing."""
    batch = make_batch(n, modalities=modalities)
    features = {
        features_field(m): np.random.default_rng(k).normal(size=(n, 16)).astype(np.float32)
        for k, m in enumerate(modalities)
    }
    return batch | features


GAP_LOSSES = [PairDistance(0.7), UniformCentroids(0.7, uniformity_weight=0.3)]


def test_losses_of_the_modality_gap_do_not_depend_on_the_devices():
    """On one device, eight and in parts (the gradient cache), with missing modalities."""
    config = dataclasses.replace(CONFIG, gap_loss=GAP_LOSSES[1])
    method = make_contrastive(config, ("text", "image"), vocab_size=19)
    layouts = [("pmap", 8, 1), ("sharded", 4, 2)]
    assert_device_invariant(method, encoded(), layouts=layouts, parts=4, together=True)


def test_the_loss_of_the_modality_gap_is_added_to_each_pair():
    """To the value by NumPy, with weights of its own; examples that lack a modality have no part in it."""
    batch, key = on_device(encoded()), jax.random.key(0)
    loss = UniformCentroids(0.7, uniformity_weight=0.3, scale=1.5)
    plain = make_contrastive(CONFIG, ("text", "image"), vocab_size=19)
    method = make_contrastive(dataclasses.replace(CONFIG, gap_loss=loss), ("text", "image"), vocab_size=19)
    params = random_params(method.init, key, batch)
    value = lambda method: jax.jit(method.loss)(params, batch, key)[0]
    difference = value(method) - value(plain)
    both = np.asarray(batch["present"]["text"] & batch["present"]["image"])
    x, y = (np.asarray(v)[both] for v in jax.jit(method.predict)(params, batch).values())
    expected = 0.7 * oracle.pair_distance(x, y).mean() + 0.3 * oracle.centroid_uniformity(x, y, 1.5)
    assert 2 < both.sum() < 16
    np.testing.assert_allclose(difference, expected, rtol=1e-4)


@pytest.mark.parametrize("gap_loss", GAP_LOSSES, ids=lambda loss: loss.name)
def test_the_gap_of_a_pair_that_no_example_has_is_exactly_zero(gap_loss):
    a, b = jax.random.normal(jax.random.key(0), (2, 6, 3))
    value, grads = jax.value_and_grad(
        lambda a, b: gap_loss(Pairs(a, b, jnp.zeros(6, bool), None, None)), argnums=(0, 1)
    )(a, b)
    assert value == 0.0 and not np.any(grads)


def test_a_run_of_two_seeds_with_a_loss_of_the_modality_gap_resumes_bit_by_bit(tmp_path):
    config = ContrastiveConfig(embed_dim=6, vector=VectorMLPConfig(width=8), gap_loss=UniformCentroids(0.5))
    method = make_contrastive(config, ("vector", "vector_a"), vocab_size=0)
    arrays = {
        m: np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32) for m in ("vector", "vector_a")
    }
    source = apply_missing(ArraySource(arrays), DataOptions(missing=0.3))
    optimizer = Optimizer(learning_rate=1e-2)
    assert_resumes(method, source, tmp_path, optimizer=optimizer, batch_size=6, seeds=2)


def with_changed(n=16):
    """A batch of texts and features of images, with two changed texts beside each text; the first three are equal."""
    batch = encoded(n)
    del batch[features_field("text")]
    changed = np.repeat(batch["text"][:, None], 2, axis=1)
    changed[3:, :, 0] = changed[3:, :, 0] % 18 + 1  # another first word
    mask = np.repeat(batch["text_mask"][:, None], 2, axis=1)
    return batch | {"text_changed": changed, "text_changed_mask": mask}


def test_a_loss_with_changed_texts_does_not_depend_on_the_devices():
    method = make_contrastive(CONFIG, ("text", "image"), vocab_size=19)
    assert_device_invariant(method, with_changed(), layouts=[("pmap", 4, 1)], parts=4, together=True)


def test_changed_texts_have_no_dropout_where_texts_are_precomputed():
    """Otherwise dropout would tell the right one of the two. The loss then has nothing random."""
    batch, method = with_changed(), make_contrastive(CONFIG, ("text", "image"), vocab_size=19)
    batch["text_changed"][:, 1] = batch["text_changed"][:, 0]  # whichever is drawn
    batch = on_device(batch | {features_field("text"): encoded()[features_field("text")]})
    params = random_params(method.init, jax.random.key(0), batch)
    loss = jax.jit(method.loss)
    first, second = (loss(params, batch, jax.random.key(k))[0] for k in range(2))
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_changed_texts_are_negatives_of_their_own_example():
    """Added to the loss of the pair: the cross-entropy, by NumPy, of telling the text from the changed one. A text that
    is the same adds log 2, with a gradient of zero."""
    no_dropout = dataclasses.replace(CONFIG, text=TextTransformerConfig(**small), changed_text_weight=0.7)
    method = make_contrastive(no_dropout, ("text", "image"), vocab_size=19)
    batch, key = on_device(with_changed()), jax.random.key(0)
    batch["text_changed"] = (
        batch["text_changed"].at[:, 1].set(batch["text_changed"][:, 0])
    )  # whichever is drawn
    params = random_params(method.init, key, batch)
    plain = {k: v for k, v in batch.items() if not k.startswith("text_changed")}
    (value, aux), (other, _) = (jax.jit(method.loss)(params, each, key) for each in (batch, plain))
    embed = jax.jit(method.predict)
    texts = {"text": batch["text_changed"][:, 0], "text_mask": batch["text_changed_mask"][:, 0]}
    found, changed = embed(params, plain), embed(params, texts | {"index": batch["index"]})["text"]
    x, t, c = (np.asarray(each, np.float64) for each in (found["image"], found["text"], changed))
    odds = np.exp(float(aux["scale"]) * np.stack([(x * t).sum(axis=1), (x * c).sum(axis=1)]))
    both = np.asarray(batch["present"]["text"] & batch["present"]["image"])
    expected = 0.7 * -np.log(odds[0] / odds.sum(axis=0))[both].mean()
    np.testing.assert_allclose(value - other, expected, rtol=1e-3)

    same = batch | {"text_changed": jnp.repeat(batch["text"][:, None], 2, axis=1)}
    gradient = lambda each: jax.jit(jax.grad(lambda p: method.loss(p, each, key)[0]))(params)
    for a, b in zip(jax.tree.leaves(gradient(same)), jax.tree.leaves(gradient(plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_text_encoder_learns_the_order_of_words_from_changed_texts():
    """Two images whose captions are the same words in another order; in the batch each caption has many others beside
    it, which differ in their words. A network that ignores the order stays at a loss of log 2."""
    rng = np.random.default_rng(0)
    texts = rng.permuted(np.tile(np.arange(1, 19), (32, 1)), axis=1)[:, :4].astype(np.int32)
    swapped = texts[:, None, [1, 0, 2, 3]]
    features = rng.normal(size=(32, 16)).astype(np.float32)
    batch = {
        "text": texts,
        "text_mask": np.ones_like(texts, bool),
        "image": np.zeros((32, 10, 10, 3), np.uint8),
    }
    batch |= {"text_changed": swapped, "text_changed_mask": np.ones_like(swapped, bool)}
    batch |= {features_field("image"): features, "index": np.arange(32, dtype=np.int32)}
    config = dataclasses.replace(
        CONFIG, text=TextTransformerConfig(**small, embedding_std=1.0), changed_text_weight=3.0
    )
    method, batch = make_contrastive(config, ("text", "image"), vocab_size=19), on_device(batch)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train():
        params = method.init(jax.random.key(0), batch)

        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(
                jax.grad(lambda p: method.loss(p, batch, key)[0])(params), state
            )
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(1), 150)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    params, predict = train(), jax.jit(method.predict)
    plain = {k: v for k, v in batch.items() if "changed" not in k}
    image, right = (predict(params, plain)[name] for name in ("image", "text"))
    wrong = predict(params, plain | {"text": batch["text_changed"][:, 0]})["text"]
    assert jnp.mean((image * right).sum(axis=1) > (image * wrong).sum(axis=1)) > 0.9


def test_weights_of_the_modality_gap_are_checked():
    with pytest.raises(ValueError, match="PairDistance.weight must be 0 or more, got -1.0"):
        PairDistance(-1.0)
    with pytest.raises(ValueError, match="UniformCentroids.uniformity_weight must be 0 or more, got nan"):
        UniformCentroids(uniformity_weight=float("nan"))


def test_a_missing_modality_has_no_influence():
    method = make_contrastive(CONFIG, ("text", "image"), vocab_size=19)
    batch, key = make_batch(modalities=("text", "image")), jax.random.key(0)
    params = random_params(method.init, key, batch)
    everywhere = {m: np.ones(16, bool) for m in ("text", "image")}
    gone = {**everywhere, "image": np.arange(16) != 3}
    loss = jax.jit(method.loss)
    run = lambda image, present: loss(params, on_device({**batch, "image": image, "present": present}), key)[
        0
    ]
    changed = np.where(np.arange(16)[:, None, None, None] == 3, 255 - batch["image"], batch["image"])
    assert run(batch["image"], gone) == run(changed, gone)
    assert run(batch["image"], everywhere) != run(changed, everywhere)


def test_missing_texts_match_nothing():
    """Texts that are missing are rows of zeros, and no reason for the other modalities' pairs to be positives."""
    modalities = ("text", "image", "audio")
    method = make_contrastive(CONFIG, modalities, vocab_size=19)
    batch, key = make_batch(n=4, modalities=modalities), jax.random.key(0)
    params = random_params(method.init, key, batch)
    present = {
        "text": np.array([True, True, False, False]),
        "image": np.ones(4, bool),
        "audio": np.ones(4, bool),
    }
    run = jax.jit(method.loss)

    def image_audio_loss(missing_texts):
        text = np.concatenate([batch["text"][:2], missing_texts])
        mask = np.concatenate([batch["text_mask"][:2], missing_texts > 0])
        part = {**batch, "text": text, "text_mask": mask, "present": present}
        return run(params, on_device(part), key)[1]["image_audio"]

    zeros, distinct = np.zeros((2, 7), np.int32), batch["text"][2:]
    assert image_audio_loss(zeros) == image_audio_loss(distinct)


@pytest.mark.parametrize("objective", [InfoNCE(duplicates="exclude"), Triplet()], ids=lambda o: o.name)
def test_captions_of_one_picture_are_no_negatives(objective):
    """If all examples show one picture, there is no negative left, and the loss of other pairs is 0."""
    modalities = ("text", "image")
    config = dataclasses.replace(CONFIG, objective=objective)
    method = make_contrastive(config, modalities, vocab_size=19)
    batch, key = on_device(make_batch(n=8, modalities=modalities)), jax.random.key(0)
    params, run = random_params(method.init, key, batch), jax.jit(method.loss)
    loss = lambda group: run(params, on_device({**batch, "group": group}), key)[0]
    plain = float(loss(np.full(8, -1, np.int32)))
    assert plain > 0.1
    assert float(loss(np.zeros(8, np.int32))) == pytest.approx(0.0, abs=1e-6)
    assert 0 < float(loss(np.arange(8, dtype=np.int32) // 4)) < plain
    assert float(loss(np.arange(8, dtype=np.int32))) == pytest.approx(plain, rel=1e-6)


def test_examples_match_by_text_or_by_picture():
    batch = {"group": np.array([4, -1, 4], np.int32)}
    texts = jnp.array([7, 7, 9])
    assert matching_ids(texts, {}) is texts and matching_ids(None, {}) is None
    assert matching_ids(None, batch).tolist() == [4, -1, 4]
    assert matching_ids(texts, batch).tolist() == [[7, 4], [7, -1], [9, 4]]


def test_a_modality_missing_in_all_examples_gives_its_tower_no_gradient():
    method = make_contrastive(CONFIG, ("text", "image", "audio"), vocab_size=19)
    batch = make_batch(modalities=("text", "image", "audio"))
    batch["present"] = {**batch["present"], "audio": np.zeros(16, bool)}
    batch = on_device(batch)
    key = jax.random.key(0)
    params = random_params(method.init, key, batch)
    grads, _ = jax.jit(jax.grad(method.loss, has_aux=True))(params, batch, key)
    assert all(not np.any(g) for g in jax.tree.leaves(jax.device_get(grads["audio"])))
    assert any(np.any(g) for g in jax.tree.leaves(jax.device_get(grads["image"])))


TEXTS = ("text", "text_a", "text_b")


def never_met(n=16):
    """A batch in which each example has the text, and half of them one of the other two modalities each."""
    rng = np.random.default_rng(3)
    batch = {m: rng.integers(1, 19, (n, 5)).astype(np.int32) for m in TEXTS}
    batch |= {f"{m}_mask": np.ones((n, 5), bool) for m in TEXTS}
    first = np.arange(n) < n // 2
    present = {"text": np.ones(n, bool), "text_a": first, "text_b": ~first}
    return {**batch, "index": np.arange(n, dtype=np.int32), "present": present}


def test_modalities_that_never_meet_align_through_the_one_they_share():
    """Loss and gradients are those of the pairs with that one alone, and their own pair counts for nothing."""
    method = make_contrastive(CONFIG, TEXTS, vocab_size=19)
    anchored = make_contrastive(dataclasses.replace(CONFIG, anchor="text"), TEXTS, vocab_size=19)
    batch, key = on_device(never_met()), jax.random.key(0)
    params = random_params(method.init, key, batch)
    run = lambda method: jax.jit(jax.value_and_grad(method.loss, has_aux=True))(params, batch, key)
    ((loss, aux), grads), ((expected, _), expected_grads) = run(method), run(anchored)
    assert aux["text_a_text_b"] == 0.0 and loss > 0.1
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for grad, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())


def test_a_batch_without_any_pair_has_a_loss_of_zero():
    method = make_contrastive(CONFIG, TEXTS, vocab_size=19)
    batch, key = never_met(), jax.random.key(0)
    batch["present"]["text"] = np.zeros(16, bool)
    params = random_params(method.init, key, on_device(batch))
    (loss, _), grads = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(params, on_device(batch), key)
    assert loss == 0.0 and not any(np.any(g) for g in jax.tree.leaves(jax.device_get(grads)))


def mixture(missing=0.0):
    """Two sets of 12 and 9 examples, which share the first modality only; weights that repeat the smaller one."""
    rng = np.random.default_rng(0)

    def part(n, other):
        arrays = {m: rng.normal(size=(n, 5)).astype(np.float32) for m in ("vector", other)}
        return apply_missing(ArraySource(arrays), DataOptions(missing=missing))

    return MixtureSource({"a": part(12, "vector_a"), "b": part(9, "vector_b")}, weights=(1, 1))


VECTORS = make_contrastive(
    ContrastiveConfig(embed_dim=6, vector=VectorMLPConfig(width=8)),
    ("vector", "vector_a", "vector_b"),
    vocab_size=0,
)


@pytest.mark.parametrize(
    ("missing", "resident"),
    [(0.0, True), (0.3, False)],
    ids=["on the device", "from the host, some missing"],
)
def test_a_run_on_a_mixture_resumes_bit_by_bit(missing, resident, tmp_path):
    """Stopped after the smaller set has begun again, and the larger one has not."""
    source = mixture(missing)
    optimizer = Optimizer(learning_rate=1e-2, ema=0.9)
    assert_resumes(VECTORS, source, tmp_path, optimizer=optimizer, steps=6, batch_size=6, resident=resident)


def test_the_devices_do_not_change_the_result_on_a_batch_of_a_mixture():
    """Eight devices with two examples each, as the loader mixes them, and modalities missing beside."""
    loader = Loader(mixture(missing=0.3), batch_size=16, seed=1)
    batch = numeric_fields(loader.fetch(1))
    loader.close()
    there = np.stack(list(batch["present"].values()))
    assert not (there[1] & there[2]).any() and 0 < there.sum() < 2 * 16
    assert_device_invariant(VECTORS, batch, layouts=[("pmap", 8, 1)], parts=1)


OBJECTIVES = [InfoNCE(), InfoNCE(implementation="tiled"), Sigmoid(), Triplet(), MMD(), CORAL(), CCA()]


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{o.name} {getattr(o, 'implementation', '')}".strip()
)
def test_a_pair_that_no_example_has_is_exactly_zero(objective):
    a, b = jax.random.normal(jax.random.key(0), (2, 6, 3))
    params = objective.initial_params()

    def loss(a, b, scale, params):
        return objective(Pairs(a, b, jnp.zeros(6, bool), None, None), params, scale)

    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(a, b, jnp.float32(2.0), params)
    assert value == 0.0 and all(np.all(g == 0) for g in jax.tree.leaves(grads))


def test_the_devices_do_not_change_the_loss_of_a_mixture():
    """Also where some devices have no example of a pair that others have."""
    method = make_contrastive(CONFIG, TEXTS, vocab_size=19)
    # The output of the encoders, so that there is little to compile.
    features = {
        features_field(m): np.random.default_rng(k).normal(size=(16, 16)) for k, m in enumerate(TEXTS)
    }
    batch = never_met() | {name: x.astype(np.float32) for name, x in features.items()}
    assert_device_invariant(method, batch, layouts=[("pmap", 4, 1)], together=True)


def test_embeddings_are_unit_vectors_and_prediction_takes_any_modalities():
    method = make_contrastive(CONFIG, ("text", "image"), vocab_size=19)
    batch = make_batch(modalities=("text", "image"))
    params = random_params(method.init, jax.random.key(0), batch)
    out = jax.jit(method.predict)(params, {"image": batch["image"]})
    assert set(out) == {"image"} and out["image"].shape == (16, 13)
    np.testing.assert_allclose(np.linalg.norm(out["image"], axis=1), 1.0, rtol=1e-5)


def test_it_memorises_a_batch():
    """Sixteen random pairs: chance is log 16 = 2.77 nats; a model whose towers do not train stays there."""
    config = dataclasses.replace(CONFIG, augment=Augmentation(AugmentConfig(translate=0)))
    method = make_contrastive(config, ("text", "image"), vocab_size=19)
    batch, key, tx = make_batch(modalities=("text", "image")), jax.random.key(0), optax.adam(3e-3)
    batch["present"] = {m: np.ones(16, bool) for m in ("text", "image")}
    batch = on_device(batch)
    params = jax.jit(method.init)(key, batch)

    @jax.jit
    def run(params, batch):
        def step(carry, k):
            params, state = carry
            (loss, _), grads = jax.value_and_grad(method.loss, has_aux=True)(params, batch, k)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 150))[1]

    losses = np.asarray(run(params, batch))
    assert losses[0] > 2.2 and losses[-10:].mean() < 0.5


def test_padding_is_no_word_in_the_ids_of_texts():
    """Where a vocabulary has a word with the id of padding, 0: the mask tells them apart."""
    tokens, mask = (
        jnp.array([[5, 0, 0], [5, 0, 0], [5, 0, 0]]),
        jnp.array([[1, 0, 0], [1, 1, 0], [1, 1, 0]], bool),
    )
    first, second, third = np.asarray(text_ids(tokens, mask=mask))
    assert first != second == third


def test_equal_texts_have_equal_ids_and_others_do_not():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, (4000, 7)).astype(np.int32)
    tokens[1] = tokens[0]
    ids = np.asarray(text_ids(jnp.asarray(tokens)))
    assert ids[0] == ids[1]
    assert len(np.unique(ids)) == len(np.unique(tokens, axis=0))


def test_what_cannot_be_aligned_is_refused():
    with pytest.raises(
        ValueError, match="two modalities or more are aligned, got text: name them by --modalities"
    ):
        make_contrastive(CONFIG, ("text",), vocab_size=19)
    with pytest.raises(
        ValueError, match="--model.anchor.* must be one of the modalities text, image, got audio"
    ):
        ContrastiveConfig(anchor="audio").pairs(("text", "image"))
    with pytest.raises(ValueError, match="anchor"):
        ContrastiveConfig(anchor="smell")
    with pytest.raises(ValueError, match="temperature must be above 0.01"):
        InfoNCE(temperature=0.01)


def test_modalities_of_one_kind_have_towers_of_their_own():
    names = ("text", "image", "image_sketch")
    method = make_contrastive(CONFIG, names, vocab_size=19)
    batch = make_batch(modalities=("text", "image"))
    batch["image_sketch"] = batch["image"][::-1].copy()
    batch["present"] = {m: np.arange(16) % 5 != k for k, m in enumerate(names)}
    batch, key = on_device(batch), jax.random.key(0)
    params = random_params(method.init, key, batch)
    assert set(params) == {*names, "loss"}
    assert jax.tree.structure(params["image"]) == jax.tree.structure(params["image_sketch"])
    (loss, aux), grads = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(params, batch, key)
    assert set(aux) == {"text_image", "text_image_sketch", "image_image_sketch", "scale"}
    np.testing.assert_allclose(loss, sum(float(v) for k, v in aux.items() if k != "scale") / 3, rtol=1e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(grads["image_sketch"])))
    assert set(jax.eval_shape(method.predict, params, batch)) == set(names)
