import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from tests.support import random_params
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
drawn = lambda k, *shape: jnp.asarray(np.random.default_rng(k).normal(size=shape), jnp.float32)
MASK = np.arange(L) < np.array([7, 4, 5])[:, None]
CONDITION = Condition(drawn(1, B, 5), Tokens(drawn(2, B, L, 6), jnp.asarray(MASK)))
NOISE = drawn(3, B, 5 * (K + 1))


@pytest.mark.parametrize(("pixels", "cells"), [(13, 5), (7, 17), (2, 2)])
def test_placing_interpolates_between_cells(pixels, cells):
    rng = np.random.default_rng(pixels)
    centre, half = rng.uniform(-0.2, 1.2, 20), rng.uniform(0.05, 0.6, 20)
    weigh = jax.jit(functools.partial(resampling_weights, pixels=pixels, cells=cells))
    found = np.asarray(weigh(np.float32(centre), np.float32(half)))
    for n in range(20):
        step = 2 * half[n] / cells
        for i in range(pixels):
            at = centre[n] - half[n] + (np.arange(-4, cells + 4) + 0.5) * step
            near = np.maximum(0.0, 1.0 - np.abs((i + 0.5) / pixels - at) / max(step, 1 / pixels))
            np.testing.assert_allclose(found[n, i], near[4:-4] / (near.sum() + 1e-6), atol=1e-4)


def test_placing_is_the_identity_on_its_own_grid_and_one_inside():
    weigh = jax.jit(resampling_weights, static_argnames=("pixels", "cells"))
    own = weigh(np.full(2, 0.5, np.float32), np.full(2, 0.5, np.float32), pixels=11, cells=11)
    np.testing.assert_allclose(own, np.broadcast_to(np.eye(11), (2, 11, 11)), atol=1e-4)
    for cells in (3, 32):  # larger than a pixel, and smaller
        inside = np.asarray(weigh(np.float32(0.4), np.float32(0.3), pixels=29, cells=cells)).sum(axis=1)
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
    params = random_params(module.init, KEY, slots, inputs)["params"]
    params = jax.tree.map(lambda p: p + 0.3 * np.asarray(drawn(7, *p.shape)), params)
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
    blind = np.where(MASK[..., None], inputs, np.float32(1e4))
    for one, other in zip(found, run(slots, blind), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def generator():
    """The module, random parameters, and what it draws, compiled once: ``draw(params, noise, condition)``."""
    module = ObjectGenerator((10, 14, 3), D, objects=K, heads=2, cells=5, planes=3, hidden=11)
    params = random_params(module.init, KEY, NOISE, CONDITION)["params"]

    @jax.jit
    def draw(params, noise, condition):
        apply = functools.partial(module.apply, {"params": params})
        objects = apply(condition, B, method="encode_condition")
        own = noise.reshape(B, K + 1, 5)[:, 1:]
        resampling = apply(objects, own, method="_resampling")
        return apply(noise, condition), apply(noise, objects), objects, resampling

    return module, params, draw


def test_an_image_is_its_objects_one_over_the_other(generator):
    _, params, draw = generator
    image, again, objects, resampling = draw(params, NOISE, CONDITION)
    np.testing.assert_allclose(again, image, atol=1e-6)
    own = NOISE.reshape(B, K + 1, 5)[:, 1:]
    rows, columns = exact(resampling)
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
    _, params, draw = generator
    words, mask = CONDITION.words
    image = np.asarray(draw(params, NOISE, CONDITION)[0])
    moved = NOISE + np.float32([[0.0], [1.0], [0.0]])
    other = (np.asarray(draw(params, moved, CONDITION)[0]) != image).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(other, [False, True, False])
    unread = Tokens(jnp.asarray(np.where(MASK[..., None], words, np.float32(1e4))), mask)
    blind = draw(params, NOISE, CONDITION._replace(words=unread))[0]
    np.testing.assert_array_equal(blind, image)


@pytest.mark.parametrize("left", [0, 2])
def test_noise_that_places_leave_is_of_looks(left):
    module = ObjectGenerator((10, 14, 3), D, K, heads=2)
    noise = drawn(14, B, (3 + left) * (K + 1))
    params = random_params(module.init, KEY, noise, CONDITION)

    @jax.jit
    def look(noise):
        seen = {}

        def keep(next_fun, args, kwargs, context):
            seen[context.method_name] = next_fun(*args, **kwargs)
            return seen[context.method_name]

        with nn.intercept_methods(keep):
            module.apply(params, noise, CONDITION)
        return seen["_draw"]

    assert np.any(np.asarray(look(noise)) != look(noise + np.float32(1.0))) == (left > 0)


def test_objects_look_as_their_words_whichever_they_are(generator):
    """What takes the same words looks the same, and stands otherwise to the others."""
    module, params, _ = generator
    params = {
        **params,
        "content": {**params["content"], "read": jax.tree.map(np.zeros_like, params["content"]["read"])},
    }
    near = Condition(CONDITION.vector, Tokens(np.broadcast_to(drawn(15, B, 1, 6), (B, L, 6)), None))
    contents_of = jax.jit(lambda p: module.apply({"params": p}, near, B, method="encode_condition"))
    objects = jax.tree.map(np.asarray, contents_of(params))
    np.testing.assert_allclose(objects.attention.sum(axis=-1), 1.0, atol=2e-3)
    flat = jax.tree.map(lambda p: p, params)
    flat["content"]["beside"] = jax.tree.map(np.zeros_like, flat["content"]["beside"])
    objects = jax.tree.map(np.asarray, contents_of(flat))
    np.testing.assert_allclose(objects.appearance[:, 0], objects.appearance[:, 1], atol=2e-2)
    assert np.abs(objects.role[:, 0] - objects.role[:, 1]).max() > 0.5


def test_a_layout_is_normal_given_the_objects_before():
    """Against the Jacobian: places of noise are what is expected of each, and depend on none after it."""
    module, count = Layout(D, heads=2), 3
    objects, noise = drawn(16, B, count, D), drawn(17, B, count, 3)
    params = random_params(module.init, KEY, objects, noise)
    params = jax.tree.map(lambda p: p + 0.3 * np.asarray(drawn(18, *p.shape)), params)
    places = jax.jit(module.apply)(params, objects, noise)
    expected = jax.jit(lambda x, y: module.apply(params, x, y, method="moments_of"))
    mean, log_scale = map(np.asarray, expected(objects, places))
    np.testing.assert_allclose((np.asarray(places) - mean) * np.exp(-log_scale), noise, atol=1e-4)
    assert np.abs(log_scale).max() < 2
    jacobian = jax.jit(jax.jacobian(lambda y: module.apply(params, objects[:1], y)))(noise[:1])
    jacobian = np.asarray(jacobian)[0, :, :, 0]
    of = np.abs(jacobian).max(axis=(1, 3))
    assert (of[np.triu_indices(count, 1)] == 0).all() and (of[np.tril_indices(count)] > 1e-3).all()
    own = np.stack([jacobian[k, :, k] for k in range(count)])
    np.testing.assert_allclose(own, np.exp(log_scale[0])[:, :, None] * np.eye(3), rtol=1e-4, atol=1e-6)
    at = np.linspace(-3.0, 3.0, 7, dtype=np.float32)
    inside = np.asarray(bound(jnp.asarray(at)))
    np.testing.assert_allclose(inside / np.sqrt(1 - np.square(inside)), at, rtol=1e-4, atol=1e-6)


def test_objects_are_where_their_words_are_seen():
    rng = np.random.default_rng(5)
    share, attended = rng.dirichlet(np.ones(L), (B, K)), rng.dirichlet(0.3 * np.ones(6), (B, L))
    attended[:, 2] = 1 / 6  # a word that is anywhere
    found = np.asarray(jax.jit(grounding_logits)(np.float32(share), np.float32(attended)))
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
    variables = random_params(module.init, KEY, noise, condition)
    generate = lambda v: (
        module.apply(v, noise, condition),
        module.apply(v, condition, B, method="encode_condition"),
    )
    image, objects = jax.jit(generate)(variables)
    assert image.shape == (B, 12, 8, 1) and image.dtype == jnp.float32 and float(jnp.abs(image).max()) <= 1
    encoder = build_encoder("image", ConvNetConfig(width=8, norm="none"))
    posterior = ObjectPosterior(encoder, 12)
    seen = drawn(10, B, 6, 9)
    attended = jnp.asarray(softmax(4.0 * np.asarray(drawn(11, B, L, 6)), axis=-1))
    found = random_params(posterior.init, KEY, image, objects, seen, attended)
    apply = jax.jit(posterior.apply)
    mean, log_variance = apply(found, image, objects, seen, attended)
    assert mean.shape == log_variance.shape == (B, 12)
    changed = {
        "images": (image + np.float32(0.1), objects, seen, attended),
        "looks": (
            image,
            objects._replace(appearance=objects.appearance + drawn(12, *objects.appearance.shape)),
            seen,
            attended,
        ),
        "seen": (image, objects, seen + np.float32(0.1), attended),
        "attended": (image, objects, seen, attended[:, ::-1]),
    }
    for name, given in changed.items():
        moved = np.abs(np.asarray(apply(found, *given)[0]) - mean).max()
        assert moved > 1e-4 if words or name != "attended" else moved == 0, name


def test_what_is_found_starts_where_it_is_seen():
    """Of four places, with words that are each seen in one and objects that have one word each."""
    posterior = ObjectPosterior(build_encoder("image", MLPEncoderConfig(width=8, depth=1)), 9)
    seen, image = drawn(10, B, 4, 9), drawn(13, B, 13, 13, 3)
    share, attended = (
        jnp.asarray(np.broadcast_to(np.eye(n, n + 1, dtype=np.float32), (B, n, n + 1))) for n in (2, 3)
    )
    objects = ObjectEmbeddings(drawn(19, B, 2, D), drawn(20, B, 2, D), share)
    params = random_params(posterior.init, KEY, image, objects, seen, attended)["params"]
    params["moments"] = jax.tree.map(np.zeros_like, params["moments"])
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
