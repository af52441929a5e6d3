"""Decoders of latent codes, and the layers between encoders and posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import gan as oracle
from xmodal_jax.core import parts
from xmodal_jax.core.random import example_keys
from xmodal_jax.nets import decoders
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import DCGANEncoderConfig, TextTransformerConfig
from xmodal_jax.nets.vae import MLP, EncoderFeatures, Expert, LabelFeatures, Moments, to_log_scale

N, D, L, V = 5, 3, 7, 11
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(N, D)), jnp.float32)
IDS = jnp.asarray(RNG.integers(1, V, (N, L)), jnp.int32)
KEYS = example_keys(KEY, jnp.arange(N))


def drawn(module, *args, **kwargs):
    """Parameters that no initialiser made, so that zeros hide nothing."""
    shapes = jax.eval_shape(lambda: module.init(KEY, *args, **kwargs))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        tree, [jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32) for x in leaves]
    )


DECODERS = {
    "image": decoders.ImageDecoders,
    "text": decoders.TextDecoders,
    "audio": decoders.AudioDecoders,
    "label": decoders.LabelDecoders,
}


def built(kind, name, size, told=None, **config):
    """``(params, run(z, told, keys))``."""
    module = parts.choose(DECODERS[kind], name)(**config).build(size)
    params = drawn(module, Z, told)
    return params, jax.jit(
        lambda z, told=None, keys=None, params=params: module.apply({"params": params}, z, told, keys=keys)
    )


def dense(of, x):
    return x @ np.float64(of["kernel"]) + np.float64(of["bias"])


SIZES = {"image": Size((8, 12, 2)), "text": Size((L,), V), "audio": Size((33, 5)), "label": Size((), 4)}
SHAPES = {"image": (8, 12, 2), "text": (L, V), "audio": (33, 5), "label": (4,)}


@pytest.mark.parametrize(
    "kind,name", [(kind, name) for kind in DECODERS for name in parts.parts_of(DECODERS[kind])]
)
def test_every_decoder_makes_what_it_is_sized_for_from_the_code(kind, name):
    """Of its own code alone: another example's does not matter."""
    told = IDS if kind == "text" else None
    options = parts.options_of(parts.choose(DECODERS[kind], name))
    small = {k: v for k, v in dict(width=8, depth=1, heads=2).items() if k in options}
    _, run = built(kind, name, SIZES[kind], told, **small)
    out = run(Z, told)
    assert out.shape == (N, *SHAPES[kind]) and out.dtype == jnp.float32
    other = run(Z.at[2].add(1.0), told)
    changed = np.abs(np.asarray(other - out)).reshape(N, -1).max(axis=1) > 1e-3
    assert changed.tolist() == [k == 2 for k in range(N)]


@pytest.mark.parametrize(
    "kind,size", [("image", SIZES["image"]), ("audio", SIZES["audio"]), ("label", SIZES["label"])]
)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_mlp_is_its_definition(kind, size, depth):
    params, run = built(kind, "mlp", size, width=6, depth=depth)
    x = np.float64(Z)
    for k in range(depth):
        x = np.maximum(dense(params[f"hidden_{k}"], x), 0.0)
    want = dense(params["out"], x).reshape(N, *SHAPES[kind])
    np.testing.assert_allclose(run(Z), want, rtol=1e-4, atol=1e-5)


def transposed(x, of):
    """A transposed convolution 4 wide of stride 2 in every spatial dimension, output twice the size, tap by tap: what
    input ``i`` says goes to ``2 i - 1 .. 2 i + 2``, by the kernel's last tap first (as Flax has it)."""
    kernel, bias = np.float64(of["kernel"]), np.float64(of["bias"])
    space = x.shape[1:-1]
    out = np.zeros((len(x), *(2 * n + 3 for n in space), kernel.shape[-1]))
    for place in np.ndindex(*space):
        for tap in np.ndindex(*kernel.shape[:-2]):
            at = tuple(2 * i + t for i, t in zip(place, tap, strict=True))
            out[(slice(None), *at)] += x[(slice(None), *place)] @ kernel[tuple(3 - t for t in tap)]
    return out[(slice(None), *(slice(1, 2 * n + 1) for n in space))] + bias


def test_the_picture_decoder_is_its_definition():
    """16 x 16 is two halvings away from 4 x 4, with half the channels in between."""
    params, run = built("image", "conv", Size((16, 16, 2)), width=6)
    x = dense(params["start"], np.float64(Z)).reshape(N, 4, 4, 6)
    x = transposed(np.maximum(x, 0.0), params["up_0"])
    assert x.shape == (N, 8, 8, 3)
    x = transposed(np.maximum(x, 0.0), params["up_1"])
    np.testing.assert_allclose(run(Z), x, rtol=1e-4, atol=1e-4)


def test_the_residual_decoder_is_its_definition():
    """24 x 16 is two halvings away from 6 x 4: blocks at 6 x 4 and 12 x 8."""
    params, run = built("image", "residual", Size((24, 16, 2)), width=8)
    wanted = oracle.residual_pixels(
        jax.tree.map(np.float64, params), np.float64(Z), sizes=[(6, 4), (12, 8)], width=8, kind="rms"
    )
    assert wanted.shape == (N, 24, 16, 2) and np.abs(wanted).max() > 1, "no activation bounds it"
    np.testing.assert_allclose(run(Z), wanted, rtol=1e-4, atol=1e-4)


def test_the_frame_decoder_is_its_definition():
    """33 frames: three coarse ones, doubled four times, and what is too much cut off."""
    params, run = built("audio", "conv", SIZES["audio"], width=4)
    x = dense(params["start"], np.float64(Z)).reshape(N, 3, 4)
    for k in range(4):
        x = transposed(np.maximum(x, 0.0), params[f"up_{k}"])
    assert x.shape == (N, 48, 5)
    np.testing.assert_allclose(run(Z), x[:, :33], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_a_picture_that_cannot_be_halved_is_refused(name):
    with pytest.raises(
        ValueError, match="a picture of 7 x 8 pixels cannot be halved: choose the decoder 'mlp'"
    ):
        built("image", name, Size((7, 8, 1)))


def test_parallel_tokens_are_told_nothing():
    """Places differ, though all hear the same code; ids given are not looked at."""
    _, run = built("text", "parallel", SIZES["text"], width=8, depth=1, heads=2)
    out = np.asarray(run(Z))
    np.testing.assert_array_equal(run(Z, IDS), out)
    assert all(np.abs(out[:, a] - out[:, b]).max() > 1e-3 for a in range(L) for b in range(a))


def test_autoregressive_tokens_see_the_code_and_those_before():
    _, run = built("text", "autoregressive", SIZES["text"], IDS, width=8, depth=1, heads=2)
    out = np.asarray(run(Z, IDS))
    for t in range(L):
        other = np.asarray(run(Z, IDS.at[:, t].set(IDS[:, t] % (V - 1) + 1)))
        changed = np.abs(other - out).max(axis=(0, 2)) > 1e-4
        assert changed.tolist() == [k > t for k in range(L)], t
    assert (np.abs(np.asarray(run(Z + 1.0, IDS)) - out).max(axis=2) > 1e-4).all()


def test_words_are_dropped_in_training_alone_and_by_example():
    size = SIZES["text"]
    _, run = built("text", "autoregressive", size, IDS, width=8, depth=1, heads=2, word_dropout=0.5)
    still, moved = np.asarray(run(Z, IDS)), np.asarray(run(Z, IDS, KEYS))
    np.testing.assert_array_equal(moved[:, 0], still[:, 0])
    assert np.abs(moved - still).max() > 1e-3
    order = np.array([4, 2, 0, 1, 3])
    np.testing.assert_allclose(run(Z[order], IDS[order], KEYS[order]), moved[order], rtol=1e-5, atol=1e-5)


def test_the_share_of_dropped_words():
    """Of 4000 tokens, within four standard errors; the others are as they were."""
    ids, rate = jnp.full((400, 10), 7, jnp.int32), 0.3
    left = np.asarray(decoders.drop_words(ids, example_keys(KEY, jnp.arange(400)), rate))
    assert set(np.unique(left)) == {0, 7}
    assert abs((left == 0).mean() - rate) < 4 * (rate * (1 - rate) / 4000) ** 0.5


@pytest.mark.parametrize("name", ["parallel", "autoregressive"])
def test_dropout_is_by_example(name):
    _, run = built("text", name, SIZES["text"], IDS, width=8, depth=1, heads=2, dropout=0.5)
    still, moved = np.asarray(run(Z, IDS)), np.asarray(run(Z, IDS, KEYS))
    assert np.abs(moved - still).max() > 1e-3
    order = np.array([4, 2, 0, 1, 3])
    np.testing.assert_allclose(run(Z[order], IDS[order], KEYS[order]), moved[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes,message",
    [
        *[({field: 0}, f"{field} must be at least 1, got 0") for field in ("width", "depth", "heads")],
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"word_dropout": -0.1}, r"word_dropout must lie in \[0, 1\), got -0.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        decoders.AutoregressiveDecoderConfig(**changes)


def test_unknown_decoders_are_refused():
    with pytest.raises(ValueError, match="must be one of conv, residual, mlp, got 'parallel'"):
        built("image", "parallel", SIZES["image"])
    for name in parts.parts_of(decoders.ImageDecoders):
        with pytest.raises(TypeError, match="unexpected keyword argument 'heads'"):
            built("image", name, SIZES["image"], heads=2)


# -- Between encoders and posteriors -------------------------------------------------------------------------


def test_scales():
    raw = np.float32([[-3.0, 0.0, 2.0], [40.0, -40.0, 0.5]])
    x = np.float64(raw)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    want = {
        "exp": np.exp(x) ** 0.5,
        "softplus": np.log1p(np.exp(x)) + 1e-6,
        "softmax": 3 * e / e.sum(axis=1, keepdims=True) + 1e-6,
    }
    for kind, scale in want.items():
        np.testing.assert_allclose(to_log_scale(jnp.asarray(raw), kind), np.log(scale), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="scale must be one of .*, got 'tanh'"):
        to_log_scale(jnp.asarray(raw), "tanh")


@pytest.mark.parametrize("hidden", [0, 5])
def test_moments_are_their_definition(hidden):
    module = Moments(2, hidden)
    params = drawn(module, Z)
    x = np.maximum(dense(params["hidden"], np.float64(Z)), 0) if hidden else np.float64(Z)
    for got, name in zip(module.apply({"params": params}, Z), ("mean", "raw"), strict=True):
        np.testing.assert_allclose(got, dense(params[name], x), rtol=1e-5, atol=1e-5)


def test_the_small_network_is_its_definition():
    params = drawn(MLP(2, 5), Z)
    want = dense(params["out"], np.maximum(dense(params["hidden"], np.float64(Z)), 0))
    np.testing.assert_allclose(MLP(2, 5).apply({"params": params}, Z), want, rtol=1e-5, atol=1e-5)


def test_a_label_is_a_unit_vector_and_an_unknown_one_none():
    labels = jnp.array([0, 2, -1, 3], jnp.int32)
    expert = Expert(LabelFeatures(3, 5), latent=2, private=1)
    params = drawn(expert, labels, None, None)
    said = expert.apply({"params": params}, labels, None, None)
    units = np.concatenate([np.eye(3), np.zeros((1, 3))])[[0, 2, 3, 3]]
    h = np.maximum(dense(params["features"]["hidden"], units), 0)
    np.testing.assert_allclose(said.features, h, rtol=1e-5, atol=1e-6)
    for name in ("mean", "raw", "private_mean", "private_raw"):
        np.testing.assert_allclose(getattr(said, name), dense(params[name], h), rtol=1e-5, atol=1e-6)


def test_what_has_no_dimensions_says_nothing():
    expert = Expert(LabelFeatures(3, 5), latent=0)
    labels = jnp.zeros(2, jnp.int32)
    said = expert.apply({"params": drawn(expert, labels, None, None)}, labels, None, None)
    assert [x is None for x in said] == [True] * 4 + [False] and said.features.shape == (2, 5)


def test_features_of_images_keep_places_and_those_of_text_ignore_padding():
    image = EncoderFeatures("image", DCGANEncoderConfig(width=4), 6, flatten=True, shape_info={})
    x = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32)
    params = drawn(image, x, None, None)
    run = lambda x: image.apply({"params": params}, x, None, None)
    assert np.abs(np.asarray(run(x) - run(x[:, ::-1]))).max() > 1e-2
    encoder = TextTransformerConfig(width=8, depth=1, heads=2)
    text = EncoderFeatures("text", encoder, 6, flatten=False, shape_info=dict(vocab_size=V, max_length=L))
    mask = jnp.arange(L)[None] < jnp.array([4, 7, 1, 2, 5])[:, None]
    params = drawn(text, IDS, mask, None)
    run = jax.jit(lambda ids: text.apply({"params": params}, ids, mask, None))
    np.testing.assert_array_equal(run(IDS), run(jnp.where(mask, IDS, 3)))
    assert np.abs(np.asarray(run(IDS) - run(IDS % (V - 1) + 1))).max() > 1e-3


def test_parts_of_a_latent_are_decoded_to_their_own_parts_of_the_image():
    """By one layer for all parts, whose parts of the feature map are in the order of the image."""
    decoder = decoders.ConvDecoder((16, 32, 3), width=4, grid=2)
    z = jnp.asarray(RNG.normal(size=(1, 4 * D)), jnp.float32)
    params = drawn(decoder, z)
    assert params["start"]["kernel"].shape == (D, 2 * 4 * 4)  # a quarter of a map of 4 x 8 x 4
    apply = jax.jit(lambda z: decoder.apply({"params": params}, z)[0])
    for part, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        other = apply(z.at[:, part * D : (part + 1) * D].add(1.0))
        changed = np.asarray(jnp.abs(other - apply(z)).max(axis=-1) > 1e-5)
        halves = changed.reshape(2, 8, 2, 16)
        assert halves[row, :, column].mean() > 0.8
        assert not changed[12 * (1 - row) : 12 * (1 - row) + 4].any()
        assert not changed[:, 28 * (1 - column) : 28 * (1 - column) + 4].any()
    odd = decoders.ConvDecoder((28, 28, 3), width=4, grid=2)  # whose smallest map has 7 x 7 positions
    shapes = jax.eval_shape(odd.init, KEY, z)["params"]
    assert shapes["start"]["kernel"].shape == (D, 4 * 4 * 4)
    assert jax.eval_shape(odd.apply, {"params": shapes}, z).shape == (1, 28, 28, 3)
    with pytest.raises(ValueError, match="choose another grid"):
        decoders.ConvDecoder((16, 32, 3), width=4, grid=3).init(KEY, z)
