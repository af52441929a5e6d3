import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from xmodal_jax.nets.encoders import ConvNetConfig, MLPEncoderConfig, build_encoder
from xmodal_jax.nets.gan import ObjectGeneratorConfig
from xmodal_jax.nets.objects import (
    Layout,
    ObjectEmbeddings,
    ObjectGenerator,
    ObjectPosterior,
    SlotAttention,
    bound,
    grounding_logits,
    resampling_weights,
    token_positions,
)
from xmodal_jax.types import Condition, Tokens

KEY = jax.random.key(0)
B, L, K, D = 3, 7, 2, 8
drawn = lambda k, *shape: jax.random.normal(jax.random.fold_in(KEY, k), shape)
MASK = np.arange(L) < np.array([7, 4, 5])[:, None]
CONDITION = Condition(drawn(1, B, 5), Tokens(drawn(2, B, L, 6), jnp.asarray(MASK)))
NOISE = drawn(3, B, 5 * (K + 1))


@pytest.mark.parametrize(("pixels", "cells"), [(13, 5), (7, 17), (2, 2)])
def test_placing_interpolates_between_cells(pixels, cells):
    rng = np.random.default_rng(pixels)
    centre, half = rng.uniform(-0.2, 1.2, 20), rng.uniform(0.05, 0.6, 20)
    found = resampling_weights(jnp.float32(centre), jnp.float32(half), pixels=pixels, cells=cells)
    for n in range(20):
        step = 2 * half[n] / cells
        for i in range(pixels):
            at = centre[n] - half[n] + (np.arange(-4, cells + 4) + 0.5) * step
            near = np.maximum(0.0, 1.0 - np.abs((i + 0.5) / pixels - at) / max(step, 1 / pixels))
            np.testing.assert_allclose(found[n, i], near[4:-4] / (near.sum() + 1e-6), atol=1e-4)


def test_placing_is_the_identity_on_its_own_grid_and_one_inside():
    own = resampling_weights(jnp.full((2,), 0.5), jnp.full((2,), 0.5), pixels=11, cells=11)
    np.testing.assert_allclose(own, np.broadcast_to(np.eye(11), (2, 11, 11)), atol=1e-4)
    for cells in (3, 32):  # larger than a pixel, and smaller
        inside = resampling_weights(jnp.float32(0.4), jnp.float32(0.3), pixels=29, cells=cells).sum(axis=1)
        apart = np.abs((np.arange(29) + 0.5) / 29 - 0.4)
        spread = max(0.6 / cells, 1 / 29)
        np.testing.assert_allclose(inside[apart < 0.3 - spread], 1.0, rtol=1e-4)
        np.testing.assert_array_equal(inside[apart > 0.3 + spread], 0.0)
        assert (np.diff(inside[15:]) <= 1e-5).all()


def exact(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_slots_compete_for_what_they_are_given():
    slots, inputs, bias = drawn(4, B, K, D), drawn(5, B, L, 6), drawn(6, B, K, L)
    module = SlotAttention(rounds=2)
    params = module.init(KEY, slots, inputs)["params"]
    noise = lambda p: p + 0.3 * drawn(7, *p.shape)
    params = jax.tree.map(noise, params)
    run = jax.jit(lambda x, y: module.apply({"params": params}, x, y, jnp.asarray(MASK), bias))
    p, x = exact(params), np.asarray(slots, np.float64)
    y = layer_norm(np.asarray(inputs, np.float64), p["norm_inputs"])
    for _ in range(2):
        query = layer_norm(x, p["norm_slots"]) @ p["query"]["kernel"]
        logits = np.einsum("bkd,bld->bkl", query, y @ p["key"]["kernel"]) / np.sqrt(D) + bias
        share = softmax(logits, axis=1) * MASK[:, None]
        share /= share.sum(axis=-1, keepdims=True) + 1e-3
        x = x + np.einsum("bkl,bld->bkd", share, y @ p["value"]["kernel"]) @ p["out"]["kernel"]
        h = layer_norm(x, p["norm_mlp"])
        h = gelu(h @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"])
        x = x + h @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    found = run(slots, inputs)
    np.testing.assert_allclose(found[0], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], share, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, run(slots, jnp.where(MASK[..., None], inputs, 1e4)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def generator():
    module = ObjectGenerator((10, 14, 3), D, objects=K, heads=2, cells=5, planes=3, hidden=11)
    params = jax.jit(module.init)(KEY, NOISE, CONDITION)["params"]
    return module, jax.tree.map(lambda p: p + 0.1 * drawn(8, *p.shape), params)


def test_an_image_is_its_objects_one_over_the_other(generator):
    module, params = generator
    apply = lambda *args, method=None: module.apply({"params": params}, *args, method=method)
    image = jax.jit(apply)(NOISE, CONDITION)
    objects = jax.jit(lambda: apply(CONDITION, B, method="encode_condition"))()
    np.testing.assert_allclose(jax.jit(apply)(NOISE, objects), image, atol=1e-6)
    own = NOISE.reshape(B, K + 1, 5)[:, 1:]
    rows, columns = exact(jax.jit(lambda: apply(objects, own, method="_resampling"))())
    p, looks = exact(params), np.asarray(objects.appearance, np.float64)
    looks = looks + np.asarray(own[..., 3:], np.float64) @ p["variety"]["kernel"]
    leaky = lambda x: np.where(x > 0, x, 0.2 * x)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]
    planes = dense("plane", leaky(dense("look_1", leaky(dense("look_0", looks))))).reshape(B, K, 25, 3)
    mix = dense("mix", looks).reshape(B, K, 4, 4)
    at = (np.arange(5) + 0.5) / 5 * 2 - 1
    disc = 3.0 * (0.7 - np.hypot(at[:, None], at[None, :])).reshape(25)
    behind = np.asarray(NOISE[:, :5], np.float64)
    color = expit(dense("background_1", gelu(dense("background_0", behind))))
    for b in range(B):
        wanted = np.broadcast_to(color[b], (10, 14, 3))
        for k in range(K):
            values = np.concatenate([planes[b, k], np.ones((25, 1))], axis=1) @ mix[b, k]
            opacity = expit(values[:, 3] + disc).reshape(5, 5)
            paint = expit(values[:, :3]).reshape(5, 5, 3) * opacity[..., None]
            opacity = rows[b, k] @ opacity @ columns[b, k].T
            paint = np.einsum("ip,pqc,jq->ijc", rows[b, k], paint, columns[b, k])
            wanted = wanted * (1 - opacity[..., None]) + paint
        np.testing.assert_allclose(image[b], 2 * wanted - 1, atol=1e-4)
    assert 0.1 < float(image.std())


def test_noise_says_where_and_the_condition_what(generator):
    """And only one's own: no example has influence on another, nor a padded word on anything."""
    module, params = generator
    draw = jax.jit(lambda n, words: module.apply({"params": params}, n, Condition(CONDITION.vector, words)))
    words, mask = CONDITION.words
    image = draw(NOISE, CONDITION.words)
    other = np.asarray(draw(NOISE.at[1].add(1.0), CONDITION.words) != image).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(other, [False, True, False])
    blind = draw(NOISE, Tokens(jnp.where(mask[..., None], words, 1e4), mask))
    np.testing.assert_array_equal(blind, image)


@pytest.mark.parametrize("left", [0, 2])
def test_noise_that_places_leave_is_of_looks(left):
    module = ObjectGenerator((10, 14, 3), D, K, heads=2)
    noise = drawn(14, B, (3 + left) * (K + 1))
    params = jax.jit(module.init)(KEY, noise, CONDITION)

    def look(noise):
        seen = {}

        def keep(next_fun, args, kwargs, context):
            seen[context.method_name] = next_fun(*args, **kwargs)
            return seen[context.method_name]

        with nn.intercept_methods(keep):
            module.apply(params, noise, CONDITION)
        return seen["_draw"]

    assert bool((look(noise) != look(noise + 1.0)).any()) == (left > 0)


def test_objects_look_as_their_words_whichever_they_are(generator):
    """What takes the same words looks the same, and stands otherwise to the others."""
    module, params = generator
    params = {
        **params,
        "content": {**params["content"], "read": jax.tree.map(jnp.zeros_like, params["content"]["read"])},
    }
    near = Condition(CONDITION.vector, Tokens(jnp.broadcast_to(drawn(15, B, 1, 6), (B, L, 6)), None))
    contents_of = jax.jit(lambda p: module.apply({"params": p}, near, B, method="encode_condition"))
    objects = contents_of(params)
    np.testing.assert_allclose(objects.attention.sum(axis=-1), 1.0, atol=2e-3)
    flat = jax.tree.map(lambda p: p, params)
    flat["content"]["beside"] = jax.tree.map(jnp.zeros_like, flat["content"]["beside"])
    objects = contents_of(flat)
    np.testing.assert_allclose(objects.appearance[:, 0], objects.appearance[:, 1], atol=2e-2)
    assert float(jnp.abs(objects.role[:, 0] - objects.role[:, 1]).max()) > 0.5


def test_a_layout_is_normal_given_the_objects_before():
    """Against the Jacobian: places of noise are what is expected of each, and depend on none after it."""
    module, count = Layout(D, heads=2), 3
    objects, noise = drawn(16, B, count, D), drawn(17, B, count, 3)
    params = jax.jit(module.init)(KEY, objects, noise)
    params = jax.tree.map(lambda p: p + 0.3 * drawn(18, *p.shape), params)
    places = jax.jit(module.apply)(params, objects, noise)
    expected = jax.jit(lambda x, y: module.apply(params, x, y, method="moments_of"))
    mean, log_scale = expected(objects, places)
    np.testing.assert_allclose((places - mean) * jnp.exp(-log_scale), noise, atol=1e-4)
    assert float(jnp.abs(log_scale).max()) < 2
    jacobian = jax.jit(jax.jacobian(lambda y: module.apply(params, objects[:1], y)))(noise[:1])[0, :, :, 0]
    of = np.abs(jacobian).max(axis=(1, 3))
    assert (of[np.triu_indices(count, 1)] == 0).all() and (of[np.tril_indices(count)] > 1e-3).all()
    own = np.stack([jacobian[k, :, k] for k in range(count)])
    np.testing.assert_allclose(own, np.exp(log_scale[0])[:, :, None] * np.eye(3), rtol=1e-4, atol=1e-6)
    at = jnp.linspace(-3.0, 3.0, 7)
    np.testing.assert_allclose(bound(at) / np.sqrt(1 - np.square(bound(at))), at, rtol=1e-4, atol=1e-6)


def test_objects_are_where_their_words_are_seen():
    rng = np.random.default_rng(5)
    share, attended = rng.dirichlet(np.ones(L), (B, K)), rng.dirichlet(0.3 * np.ones(6), (B, L))
    attended[:, 2] = 1 / 6  # a word that is anywhere
    found = grounding_logits(jnp.float32(share), jnp.float32(attended))
    for b in range(B):
        for k in range(K):
            nats = [np.log(6) + (row * np.log(row + 1e-12)).sum() + 1e-3 for row in attended[b]]
            weight = share[b, k] * nats
            wanted = np.log(6 * (weight / weight.sum()) @ attended[b] + 0.1)
            np.testing.assert_allclose(found[b, k], wanted, atol=1e-3)


def test_tokens_lie_on_the_grid_of_their_image():
    np.testing.assert_allclose(token_positions(1, 32, 32), [[0.0, 0.0]])
    np.testing.assert_allclose(
        token_positions(6, 20, 30), [[x, y] for y in (-0.5, 0.5) for x in (-2 / 3, 0, 2 / 3)], atol=1e-6
    )
    with pytest.raises(ValueError, match="17 tokens"):
        token_positions(17, 32, 32)


@pytest.mark.parametrize("words", [True, False])
def test_the_posterior_finds_noise_for_every_object(words):
    config = ObjectGeneratorConfig(noise=12, width=8, heads=2, objects=3, dtype="bfloat16")
    module = config.build((12, 8, 1))
    condition = CONDITION if words else Condition(CONDITION.vector)
    noise = drawn(9, B, 12)
    image, variables = jax.jit(module.init_with_output)(KEY, noise, condition)
    assert image.shape == (B, 12, 8, 1) and image.dtype == jnp.float32 and float(jnp.abs(image).max()) <= 1
    objects = jax.jit(lambda v: module.apply(v, condition, B, method="encode_condition"))(variables)
    encoder = build_encoder("image", ConvNetConfig(width=8, norm="none"))
    posterior = ObjectPosterior(encoder, 12)
    seen, attended = drawn(10, B, 6, 9), jax.nn.softmax(4.0 * drawn(11, B, L, 6), axis=-1)
    run = jax.jit(posterior.init_with_output)
    (mean, log_variance), found = run(KEY, image, objects, seen, attended)
    assert mean.shape == log_variance.shape == (B, 12)
    apply = jax.jit(posterior.apply)
    mean, _ = apply(found, image, objects, seen, attended)
    changed = {
        "images": (image + 0.1, objects, seen, attended),
        "looks": (
            image,
            objects._replace(appearance=objects.appearance + drawn(12, *objects.appearance.shape)),
            seen,
            attended,
        ),
        "seen": (image, objects, seen + 0.1, attended),
        "attended": (image, objects, seen, attended[:, ::-1]),
    }
    for name, given in changed.items():
        moved = float(jnp.abs(apply(found, *given)[0] - mean).max())
        assert moved > 1e-4 if words or name != "attended" else moved == 0, name


def test_what_is_found_starts_where_it_is_seen():
    """Of four places, with words that are each seen in one and objects that have one word each."""
    posterior = ObjectPosterior(build_encoder("image", MLPEncoderConfig(width=8, depth=1)), 9)
    seen, image = drawn(10, B, 4, 9), drawn(13, B, 13, 13, 3)
    share = jnp.broadcast_to(jnp.eye(2, 3), (B, 2, 3))
    attended = jnp.broadcast_to(jnp.eye(3, 4), (B, 3, 4))
    objects = ObjectEmbeddings(drawn(19, B, 2, D), drawn(20, B, 2, D), share)
    params = jax.jit(posterior.init)(KEY, image, objects, seen, attended)["params"]
    params["moments"] = jax.tree.map(jnp.zeros_like, params["moments"])
    params["trust"] = jnp.float32(3.0)
    mean, _ = jax.jit(lambda *x: posterior.apply({"params": params}, *x))(image, objects, seen, attended)
    mean = np.asarray(mean).reshape(B, 3, 3)[:, 1:]
    assert (mean[:, 0, 0] < -0.2).all() and (mean[:, 1, 0] > 0.2).all() and (mean[:, :, 1] < -0.2).all(), mean
    np.testing.assert_array_equal(mean[..., 2], 0.0)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="multiple of objects"):
        ObjectGeneratorConfig(noise=13, objects=3)
    with pytest.raises(ValueError, match="at least 12"):
        ObjectGeneratorConfig(noise=8, objects=3)
