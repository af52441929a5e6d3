"""DiffAugment and ADA against changes made one after the other; what is cut out or pushed out has no influence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import gan_augment as oracle
from xmodal_jax.core.random import example_keys
from xmodal_jax.preprocess import gan_augment as G

B, H, W = 7, 11, 13
RNG = np.random.default_rng(0)
IMAGES = jnp.array(RNG.uniform(-1.0, 1.0, (B, H, W, 3)), jnp.float32)
WEIGHTS = jnp.array(RNG.standard_normal((B, H, W, 3)), jnp.float32)
KEYS = example_keys(jax.random.key(0), jnp.arange(B))
MANY = example_keys(jax.random.key(1), jnp.arange(3001))
ORDER = jnp.array([3, 1, 6, 0, 2, 5, 4])
EVERYTHING = dataclasses.replace(G.PAPER, cutout=0.4)


def value_and_gradient(function):
    """``function(images, *rest)``, and the gradient of its product with the weights; compiled once per shape."""

    def loss(images, weights, *rest):
        out = function(images, *rest)
        return (out * weights).sum(), out

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def run(images, *rest, weights=WEIGHTS):
        (_, out), gradient = compiled(images, weights[: len(images)], *rest)
        return out, gradient

    return run


DIFF = {
    "moved": value_and_gradient(lambda x, k: G.diff_augment(x, k, color=False, translation=0.3)),
    "all": value_and_gradient(G.diff_augment),
}
ADA = value_and_gradient(lambda x, k, p: G.ada_augment(x, k, p, config=EVERYTHING))


def numpy_draws(keys):
    drawn = {name: np.array(values) for name, values in G.ada_draws(keys).items()}
    return [{name: values[k] for name, values in drawn.items()} for k in range(len(keys))]


@pytest.mark.parametrize("name", ["all", "ada"])
def test_randomness_belongs_to_the_example(name):
    """Any order, and a part of the batch: the same images; no keys: the images as they were."""
    run = DIFF["all"] if name == "all" else lambda x, k: ADA(x, k, 0.5)
    out, gradient = run(IMAGES, KEYS)
    assert out.shape == IMAGES.shape and out.dtype == IMAGES.dtype
    changed = np.abs(np.array(out - IMAGES)).max((1, 2, 3))
    assert (changed > 0.01).all()
    np.testing.assert_allclose(run(IMAGES[ORDER], KEYS[ORDER])[0], out[ORDER], atol=1e-6)
    part = run(IMAGES[:3], KEYS[:3])
    np.testing.assert_allclose(part[0], out[:3], atol=1e-6)
    np.testing.assert_allclose(part[1], gradient[:3], atol=1e-5)
    assert G.diff_augment(IMAGES, None) is IMAGES and G.ada_augment(IMAGES, None, 0.5) is IMAGES


def test_diff_color():
    """The mean tells the brightness; saturation and contrast are the ratios of the distances from grey and from the
    mean, and these three numbers explain every pixel."""
    image = RNG.uniform(-1.0, 1.0, (2, 3, 3))
    run = jax.jit(lambda x, k: G.diff_augment(x, k, translation=0.0, cutout=0.0))
    out = np.array(run(jnp.broadcast_to(jnp.float32(image), (len(MANY), 2, 3, 3)), MANY), np.float64)
    brightness = out.mean((1, 2, 3)) - image.mean()

    def ratio(after, before):
        return (after * before).sum((1, 2, 3)) / (before**2).sum()

    grey, grey_out = image.mean(2, keepdims=True), out.mean(3, keepdims=True)
    contrast = ratio(grey_out - grey_out.mean((1, 2), keepdims=True), grey - grey.mean())
    saturation = ratio(out - grey_out, image - grey) / contrast
    for k in range(50):
        expected = oracle.diff_color(image, brightness[k], saturation[k], contrast[k])
        np.testing.assert_allclose(out[k], expected, atol=1e-6)
    for drawn, low, width in ((brightness, -0.5, 1.0), (saturation, 0.0, 2.0), (contrast, 0.5, 1.0)):
        assert scipy.stats.kstest(drawn, "uniform", (low, width)).pvalue > 1e-3
    assert abs(np.corrcoef([brightness, saturation, contrast]) - np.eye(3)).max() < 0.06


def chances(options, candidates):
    """How often ``diff_augment`` makes which of the candidates of one small image; each image is one of them."""
    image = np.arange(1.0, 36.0).reshape(5, 7, 1)
    wanted = np.array([candidate(image) for candidate in candidates])
    run = jax.jit(lambda x, k: G.diff_augment(x, k, color=False, **options))
    out = np.array(run(jnp.broadcast_to(jnp.float32(image), (len(MANY), 5, 7, 1)), MANY))
    found = (out[:, None] == wanted[None]).all((2, 3, 4))
    assert (found.sum(1) == 1).all()
    return found.sum(0)


def test_diff_translation_and_cutout_are_uniform():
    """A share of 0.3 of 5 and of 7 pixels is 2 (rounded half up); half of them is 3 and 4, centred on any pixel, or for
    an even size any boundary, of the image."""
    shifts = [lambda x, y=y, z=z: oracle.shift(x, y, z) for y in range(-2, 3) for z in range(-2, 3)]
    counts = chances({"translation": 0.3, "cutout": 0.0}, shifts)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    boxes = [lambda x, y=y, z=z: oracle.cut(x, y, z, 3, 4) for y in range(-1, 4) for z in range(-2, 6)]
    counts = chances({"translation": 0.0, "cutout": 0.5}, boxes)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_diff_augment_is_colour_then_shift_then_cutout():
    @jax.jit
    def one_by_one(images, keys):
        images = G.diff_augment(images, keys, translation=0.0, cutout=0.0)
        images = G.diff_augment(images, keys, color=False, cutout=0.0)
        return G.diff_augment(images, keys, color=False, translation=0.0)

    np.testing.assert_allclose(DIFF["all"](IMAGES, KEYS)[0], one_by_one(IMAGES, KEYS), atol=1e-6)


def test_gradient_reaches_the_pixels_that_are_left():
    """Each pixel carries its number: where that shows the weight goes back to it, elsewhere nothing does."""
    numbers = jnp.arange(1.0, H * W * 3 + 1).reshape(1, H, W, 3)
    out, gradient = DIFF["moved"](jnp.broadcast_to(numbers, IMAGES.shape), KEYS)
    for shown, weights, got in zip(np.array(out), np.array(WEIGHTS), np.array(gradient), strict=True):
        expected = np.zeros(H * W * 3 + 1, np.float32)
        expected[shown.astype(int).ravel()] = weights.ravel()
        np.testing.assert_array_equal(got, expected[1:].reshape(H, W, 3))
        assert 0.2 < (expected[1:] == 0).mean() < 0.9


def test_gradient_of_all_colours():
    """An affine map: what it adds to a gradient is what it makes of a direction."""
    out, gradient = DIFF["all"](IMAGES, KEYS)
    step = jnp.float32(RNG.standard_normal(IMAGES.shape))
    change = ((DIFF["all"](IMAGES + step, KEYS)[0] - out) * WEIGHTS).sum((1, 2, 3))
    np.testing.assert_allclose((gradient * step).sum((1, 2, 3)), change, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_ada_equals_one_change_after_the_other(probability):
    out = np.array(ADA(IMAGES, KEYS, probability)[0])
    config = dataclasses.asdict(EVERYTHING)
    for image, draws, result in zip(np.array(IMAGES, np.float64), numpy_draws(KEYS), out, strict=True):
        np.testing.assert_allclose(result, oracle.ada(image, draws, probability, config), atol=2e-5)


def test_grey_images():
    grey, config = IMAGES[..., :1], dataclasses.asdict(EVERYTHING)
    run = jax.jit(lambda x, k, p: G.ada_augment(x, k, p, config=EVERYTHING))
    out = np.array(run(grey, KEYS, 0.7))
    for image, draws, result in zip(np.array(grey, np.float64), numpy_draws(KEYS), out, strict=True):
        np.testing.assert_allclose(result, oracle.ada(image, draws, 0.7, config), atol=2e-5)
    np.testing.assert_array_equal(run(grey, KEYS, 0.0), grey)
    # Three equal channels stay equal, and are what one channel becomes.
    three, _ = DIFF["all"](jnp.repeat(grey, 3, axis=-1), KEYS)
    one = jax.jit(G.diff_augment)(grey, KEYS)
    np.testing.assert_allclose(three, jnp.repeat(one, 3, axis=-1), atol=1e-6)


def test_ada_at_probability_0_is_the_identity():
    out, gradient = ADA(IMAGES, KEYS, 0.0)
    np.testing.assert_array_equal(out, IMAGES)
    np.testing.assert_array_equal(gradient, WEIGHTS)


def test_ada_gradient():
    """Affine in the image, per example; exactly nothing comes back from what is cut out."""
    out, gradient = ADA(IMAGES, KEYS, 1.0)
    zero = ADA(jnp.zeros_like(IMAGES), KEYS, 1.0)[0]
    linear = ((out - zero) * WEIGHTS).sum((1, 2, 3))
    np.testing.assert_allclose((gradient * IMAGES).sum((1, 2, 3)), linear, rtol=1e-4, atol=1e-4)
    cut = out == 0
    assert bool(cut.all(-1).any((1, 2)).all())
    assert not np.any(ADA(IMAGES, KEYS, 1.0, weights=jnp.where(cut, WEIGHTS, 0.0))[1])


def test_closed_forms_of_single_changes():
    """One change per example, the others off, on a square image."""
    side, ramp = 11, np.arange(11.0)
    config = dataclasses.replace(G.PAPER, translate=0.5, scale=1.0)
    images = {
        name: RNG.uniform(-1.0, 1.0, (side, side, 3))
        for name in ("none", "flip", "quarter_turns", "translate")
    }
    images["scale"] = np.broadcast_to(ramp[None, :, None], (side, side, 3))
    share = {"flip": 0.7, "quarter_turns": 0.3, "translate": 0.9, "scale": scipy.stats.norm.cdf(1.0)}
    # By 0.8 of half of 11 pixels, rounded: 4 down, and 4 to the left.
    draws = {name: np.full((len(images), 3), 0.9) for name in G.TRANSFORMATIONS}
    for k, name in enumerate(images):
        if name in share:
            draws[name][k] = (0.1, share[name], 0.1)

    @jax.jit
    def run(x, draws):
        return G.warp(x, G.ada_geometry(draws, 0.5, config, height=side, width=side))

    stack = jnp.array(np.stack(list(images.values())), jnp.float32)
    out = dict(zip(images, run(stack, jax.tree.map(jnp.float32, draws)), strict=True))
    padded = np.pad(images["translate"], [(4, 4), (4, 4), (0, 0)], mode="reflect")
    expected = {
        "none": images["none"],
        "flip": images["flip"][:, ::-1],
        "quarter_turns": np.rot90(images["quarter_turns"]),
        "translate": padded[:side, 8:],
        "scale": np.broadcast_to(((ramp - 5) / 2 + 5)[None, :, None], (side, side, 3)),  # twice as large
    }
    for name in images:
        np.testing.assert_allclose(out[name], expected[name], atol=1e-5, err_msg=name)


def test_chances_of_ada():
    """Draws are uniform; of the two rotations, one or both happen with the probability asked for."""
    for name, values in jax.jit(G.ada_draws)(MANY).items():
        for column in np.array(values).T:
            assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4, name
    turns = G.AdaConfig(translate=0.0, scale=0.0, stretch=0.0, shift=0.0)
    maps = jax.jit(lambda k: G.ada_geometry(G.ada_draws(k), 0.36, turns, height=H, width=W))(MANY)
    turned = np.array((maps[:, :, :2] != jnp.eye(2)[None]).any((1, 2)))
    assert scipy.stats.binomtest(int(turned.sum()), len(MANY), 0.36).pvalue > 1e-3
    angles = np.rad2deg(np.arctan2(maps[:, 0, 1], maps[:, 0, 0]))
    assert 15.0 < np.abs(angles).max() <= 30.0


def test_ada_update_ramp():
    """From 0 to 1 within 500,000 images, and no further; down again; no change at the target."""
    p, update = jnp.float32(0.0), lambda p, r: G.ada_update(p, jnp.float32(r), examples=100_000)
    for expected in (0.2, 0.4, 0.6, 0.8, 1.0, 1.0):
        p = update(p, 0.9)
        np.testing.assert_allclose(p, expected, rtol=1e-6)
    p = update(p, -0.5)
    np.testing.assert_allclose([p, update(p, 0.6)], 0.8, rtol=1e-6)
    np.testing.assert_array_equal(update(jnp.float32(0.1), 0.0), 0.0)


@given(st.floats(0.0, 1.0, width=32), st.floats(-1.0, 1.0, width=32), st.integers(1, 1000))
def test_ada_update_moves_towards_the_target(p, r, examples):
    new = float(G.ada_update(jnp.float32(p), jnp.float32(r), examples=examples, target=0.25, ramp=1000))
    assert 0.0 <= new <= 1.0 and abs(new - p) <= examples / 1000 + 1e-6
    assert (new - p) * (r - 0.25) >= 0.0 and (
        new != p or r == 0.25 or p in (0.0, 1.0) or examples / 1000 < 1e-7
    )


def test_errors():
    two = IMAGES[..., :2]
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        G.diff_augment(two, KEYS)
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        G.ada_augment(two, KEYS, 0.5)
    with pytest.raises(ValueError, match="two pixels"):
        G.ada_augment(IMAGES[:, :1], KEYS, 0.5)
    with pytest.raises(ValueError, match="cutout is a fraction"):
        G.diff_augment(IMAGES, KEYS, cutout=1.5)
    for field, value in {"translate": 1.5, "hue": 181.0, "scale": -0.1}.items():
        with pytest.raises(ValueError, match=field):
            G.AdaConfig(**{field: value})
