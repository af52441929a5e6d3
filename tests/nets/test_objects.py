import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax

from xmodal_jax.nets.encoders import EncoderConfig, build_encoder
from xmodal_jax.nets.gan import GeneratorConfig, build_generator
from xmodal_jax.nets.objects import ObjectGenerator, ObjectPosterior, SlotAttention, placing
from xmodal_jax.types import Condition, Tokens

KEY = jax.random.key(0)
B, L, K, D = 3, 7, 2, 8
drawn = lambda k, *shape: jax.random.normal(jax.random.fold_in(KEY, k), shape)
MASK = np.arange(L) < np.array([7, 4, 5])[:, None]
CONDITION = Condition(drawn(1, B, 5), Tokens(drawn(2, B, L, 6), jnp.asarray(MASK)))
NOISE = drawn(3, B, 3 * (K + 1))


@pytest.mark.parametrize(("pixels", "cells"), [(13, 5), (7, 17), (2, 2)])
def test_placing_interpolates_between_cells(pixels, cells):
    rng = np.random.default_rng(pixels)
    centre, half = rng.uniform(-0.2, 1.2, 20), rng.uniform(0.05, 0.6, 20)
    found = placing(jnp.float32(centre), jnp.float32(half), pixels=pixels, cells=cells)
    for n in range(20):
        step = 2 * half[n] / cells
        for i in range(pixels):
            at = centre[n] - half[n] + (np.arange(-4, cells + 4) + 0.5) * step
            near = np.maximum(0.0, 1.0 - np.abs((i + 0.5) / pixels - at) / max(step, 1 / pixels))
            np.testing.assert_allclose(found[n, i], near[4:-4] / (near.sum() + 1e-6), atol=1e-4)


def test_placing_is_the_identity_on_its_own_grid_and_one_inside():
    own = placing(jnp.full((2,), 0.5), jnp.full((2,), 0.5), pixels=11, cells=11)
    np.testing.assert_allclose(own, np.broadcast_to(np.eye(11), (2, 11, 11)), atol=1e-4)
    for cells in (3, 32):  # larger than a pixel, and smaller
        inside = placing(jnp.float32(0.4), jnp.float32(0.3), pixels=29, cells=cells).sum(axis=1)
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
    np.testing.assert_allclose(run(slots, inputs), x, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(run(slots, jnp.where(MASK[..., None], inputs, 1e4)), run(slots, inputs))


@pytest.fixture(scope="module")
def generator():
    module = ObjectGenerator((10, 14, 3), D, objects=K, heads=2, cells=5, planes=3, hidden=11)
    params = module.init(KEY, NOISE, CONDITION)["params"]
    return module, jax.tree.map(lambda p: p + 0.1 * drawn(8, *p.shape), params)


def test_an_image_is_its_objects_one_over_the_other(generator):
    module, params = generator
    apply = lambda *args, method=None: module.apply({"params": params}, *args, method=method)
    image = jax.jit(apply)(NOISE, CONDITION)
    content = apply(CONDITION, B, method="contents")
    own = NOISE.reshape(B, K + 1, 3)[:, 1:]
    rows, columns = exact(apply(content, own, method="_places"))
    p, looks = exact(params), np.asarray(content, np.float64)
    leaky = lambda x: np.where(x > 0, x, 0.2 * x)
    dense = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]
    planes = dense("plane", leaky(dense("look_1", leaky(dense("look_0", looks))))).reshape(B, K, 25, 3)
    mix = dense("mix", looks).reshape(B, K, 4, 4)
    at = (np.arange(5) + 0.5) / 5 * 2 - 1
    disc = 3.0 * (0.7 - np.hypot(at[:, None], at[None, :])).reshape(25)
    behind = np.asarray(NOISE[:, :3], np.float64)
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


@pytest.mark.parametrize("width", [0, 2])
def test_a_look_takes_part_in_the_noise_where_it_is_to(width):
    module = ObjectGenerator((10, 14, 3), D, K, look_noise=width, heads=2)
    params = module.init(KEY, NOISE, CONDITION)

    def look(noise):
        seen = {}

        def keep(next_fun, args, kwargs, context):
            seen[context.method_name] = next_fun(*args, **kwargs)
            return seen[context.method_name]

        with nn.intercept_methods(keep):
            module.apply(params, noise, CONDITION)
        return seen["_draw"]

    assert bool((look(NOISE) != look(NOISE + 1.0)).any()) == (width > 0)


@pytest.mark.parametrize("words", [True, False])
def test_the_posterior_finds_noise_for_every_object(words):
    config = GeneratorConfig("objects", noise=12, width=8, heads=2, objects=3, dtype="bfloat16")
    module = build_generator(config, (12, 8, 1), None)
    condition = CONDITION if words else Condition(CONDITION.vector)
    noise = drawn(9, B, 12)
    image, variables = module.init_with_output(KEY, noise, condition)
    assert image.shape == (B, 12, 8, 1) and image.dtype == jnp.float32 and float(jnp.abs(image).max()) <= 1
    objects = module.apply(variables, condition, B, method="contents")
    encoder = build_encoder("image", EncoderConfig("convnet", width=8, norm="none"))
    posterior = ObjectPosterior(encoder, 12)
    seen = drawn(10, B, 4, 9)
    (mean, log_variance), found = posterior.init_with_output(KEY, image, objects, seen)
    assert mean.shape == log_variance.shape == (B, 12)
    apply = jax.jit(posterior.apply)
    for given in ((image + 0.1, objects, seen), (image, objects + 0.1, seen), (image, objects, seen + 0.1)):
        assert float(jnp.abs(apply(found, *given)[0] - mean).max()) > 1e-4


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="multiple of objects"):
        GeneratorConfig("objects", noise=13, objects=3)
    with pytest.raises(ValueError, match="look_noise"):
        GeneratorConfig("objects", noise=8, objects=3, look_noise=3)
