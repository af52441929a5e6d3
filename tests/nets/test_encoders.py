"""What every encoder must satisfy, then what each one adds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.oracles import gan as oracle
from tests.support import random_params
from xmodal_jax.core import parts
from xmodal_jax.core.random import example_keys
from xmodal_jax.nets.audio import AudioTransformer
from xmodal_jax.nets.encoders import (
    DEFAULTS,
    ENCODERS,
    AudioTransformerConfig,
    ConvNetConfig,
    PretrainedEncoderConfig,
    TextTransformerConfig,
    build_encoder,
    build_pool,
)  # fmt: skip
from xmodal_jax.nets.image import ConvNet, FlatMLP, PlainConvNet, ResNet, ViT, coordinate_channels
from xmodal_jax.nets.r3gan import R3GANEncoder
from xmodal_jax.nets.text import TextTransformer
from xmodal_jax.nets.transformer import sincos_grid
from xmodal_jax.nets.video import FrameTransformer, TubeletViT

B = 3
SHAPE_INFO = {"text": dict(vocab_size=23, max_length=11)}
OTHERS = ("hf", "module")  # a checkpoint's, and those of tests/nets/test_measured.py
ALL = [(m, name) for m, union in ENCODERS.items() for name in parts.parts_of(union) if name not in OTHERS]
FAST = [p for p in ALL if not p[1].startswith("resnet")] + [
    pytest.param("image", name, marks=pytest.mark.slow) for name in ("resnet18", "resnet50")
]
PLAIN = ("dcgan", "mlp", "r3gan")  # neither drop_path nor remat
KEY = jax.random.key(0)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def inputs(modality):
    if modality == "text":
        return jnp.asarray(np.random.default_rng(0).integers(1, 23, (B, 7)), jnp.int32)
    shapes = {
        "image": (16, 24, 3),
        "audio": (29, 5),
        "video": (4, 8, 16, 3),
        "vector": (6,),
        "series": (29, 5),
    }
    return normal(B, *shapes[modality])


def config(modality, name, **changes):
    """Small, with those of the options that the encoder has."""
    part = parts.choose(ENCODERS[modality], name)
    small = {"width": 32, "depth": 1, "heads": 2}
    return part(**{k: v for k, v in small.items() if k in parts.options_of(part)} | changes)


def encoder(modality, name, **changes):
    module = build_encoder(modality, config(modality, name, **changes), **SHAPE_INFO.get(modality, {}))
    if name == "frames" and not changes.get("dtype"):  # an image encoder that compiles faster
        drop = changes.get("dropout", 0.0)
        module = module.clone(image_encoder=ViT(patch=8, width=8, depth=0, heads=2, dropout=drop))
    return module


def init(module, x):
    """Parameters, none of them zero (a bias of zero would hide what leaks from the padding)."""
    return random_params(module.init, KEY, x)


@pytest.mark.parametrize("modality, name", FAST)
def test_shape_randomness_and_one_compilation(modality, name):
    pool = build_pool(config(modality, name))
    module = encoder(modality, name, dropout=0.3, **({} if name in PLAIN else dict(drop_path=0.3)))
    x = inputs(modality)
    params = init(module, x)
    traces = []

    @jax.jit
    def run(params, x, keys):
        traces.append(1)
        tokens = module.apply(params, x, keys=keys)
        return tokens, pool.apply({}, tokens)

    keys = example_keys(KEY, jnp.arange(B))
    tokens, vectors = run(params, x, keys)
    assert tokens.values.shape[0] == B and tokens.values.shape[2] == 32 and vectors.shape == (B, 32)
    order = np.array([2, 0, 1])
    permuted, _ = run(params, x[order], keys[order])
    np.testing.assert_allclose(permuted.values, np.asarray(tokens.values)[order], atol=2e-5)
    other, _ = run(params, x, example_keys(jax.random.key(1), jnp.arange(B)))
    assert not np.allclose(other.values, tokens.values, atol=1e-3)
    assert len(traces) == 1


def matmul_dtypes(jaxpr):
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(tuple(str(v.aval.dtype) for v in eqn.invars))
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "eqns"):
                    found += matmul_dtypes(inner)
                elif hasattr(inner, "jaxpr") and hasattr(inner.jaxpr, "eqns"):
                    found += matmul_dtypes(inner.jaxpr)
    return found


@pytest.mark.parametrize("modality, name", [p for p in ALL if p[1] != "resnet34"])
def test_every_matmul_runs_in_bfloat16(modality, name):
    scan = name == "vit" or modality != "image" and name not in ("stacked", *PLAIN)
    changes = dict(scan_layers=True) if scan else {}
    changes |= {} if name in PLAIN else dict(remat=True)
    changes |= dict(depth=3) if name == "mlp" else {}
    module = encoder(modality, name, dtype="bfloat16", **changes)
    x = inputs(modality)
    shapes = jax.eval_shape(module.init, KEY, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    # float32 params, a float32 loss, and every product of forward and backward in 16 bits
    loss = lambda p: module.apply(p, x).values.astype(jnp.float32).sum()
    dtypes = matmul_dtypes(jax.make_jaxpr(jax.grad(loss))(shapes).jaxpr)
    assert len(dtypes) >= 5
    softmax_backward = ("float32", "bfloat16")  # the gradient of the float32 attention logits
    smallest = (
        {("float32", "float32")} if name == "r3gan" else set()
    )  # as in the paper, the last resolution is
    assert {d for d in dtypes if set(d) != {"bfloat16"}} <= {
        softmax_backward,
        softmax_backward[::-1],
        *smallest,
    }


PADDED = [  # modality, encoder, length of the content, its tokens, pool
    ("text", "transformer", 5, 5, "cls"),
    ("audio", "transformer", 13, 2, "mean"),
    ("video", "tubelet", 2, 2, "cls"),
    ("video", "frames", 3, 3, "mean"),
    ("video", "stacked", 3, 2, "mean"),
    ("series", "transformer", 13, 4, "mean"),
]


@pytest.mark.parametrize("modality, name, length, tokens, pool", PADDED)
def test_padding_has_exactly_no_influence(modality, name, length, tokens, pool):
    module = encoder(modality, name, pool=pool)
    pooling = build_pool(config(modality, name, pool=pool))
    x = inputs(modality)
    mask = np.arange(x.shape[1])[None, :] < np.array([length, length, 0])[:, None]
    params = init(module, x)

    @jax.jit
    def run(x, mask):
        result = module.apply(params, x, mask)
        return pooling.apply({}, result), result

    embed = lambda *args: run(*args)[0]
    whole, result = run(x, mask)
    assert np.isfinite(whole).all()
    content = mask.reshape(*mask.shape, *(1,) * (x.ndim - 2))
    changed = np.where(content, x, np.asarray(7, x.dtype))
    np.testing.assert_array_equal(embed(changed, mask), whole)
    if (
        name != "tubelet"
    ):  # a masked sequence equals the cut one (a tubelet's table of positions has a fixed size)
        assert int(result.mask[0].sum()) == tokens + (pool == "cls")
        if modality != "video":
            cut = embed(x[:2, :length], mask[:2, :length])
            np.testing.assert_allclose(whole[:2], cut, atol=2e-5)
    if modality != "text":
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(embed(x, mask)))))(x)
        depends = np.abs(np.asarray(gradient)).reshape(*mask.shape, -1).max(-1) > 0
        np.testing.assert_array_equal(depends, mask)


def test_text_padding_is_zero_and_gradient_spares_it():
    module = TextTransformer(23, 11, width=8, heads=2)
    x = jnp.array([[3, 4, 5, 0, 0], [6, 7, 0, 0, 0]])
    params = init(module, x)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        tokens = module.apply(params, x)
        return jnp.sum(jnp.where((x != 0)[:, :, None], tokens.values, 0.0) ** 2), tokens.mask

    gradient, mask = gradient(params)
    np.testing.assert_array_equal(mask, x != 0)
    used = np.abs(gradient["params"]["embed"]["embedding"]).max(-1) > 0
    assert set(np.flatnonzero(used)) == {3, 4, 5, 6, 7}
    with pytest.raises(ValueError, match="at most 11"):
        jax.eval_shape(module.apply, params, np.ones((2, 13), np.int32))


def test_causal_text_by_gradient():
    module = TextTransformer(23, 11, width=8, heads=2, causal=True)
    x = np.random.default_rng(0).integers(1, 23, (1, 5)).astype(np.int32)
    params = init(module, x)
    run = jax.jit(lambda x: module.apply(params, x).values[0])
    for place in range(5):
        moved = np.array(x)
        moved[0, place] = x[0, place] % 22 + 1
        same = (np.asarray(run(moved)) == run(x)).all(axis=-1)
        np.testing.assert_array_equal(same, np.arange(5) < place)
    with pytest.raises(ValueError, match="causal"):
        jax.eval_shape(TextTransformer(23, 11, causal=True, class_token=True).init, KEY, x)


def test_grids():
    tokens = lambda module, shape: (
        jax.eval_shape(module.init_with_output, KEY, jnp.ones(shape))[0].values.shape
    )
    assert tokens(ConvNet(), (2, 32, 32, 3)) == (2, 16, 128)
    assert tokens(ConvNet(norm="none"), (2, 37, 11, 1)) == (2, 5 * 2, 128)
    assert tokens(PlainConvNet(), (2, 28, 44, 1)) == (2, 7 * 11, 256)
    assert tokens(PlainConvNet(norm="group"), (2, 31, 5, 3)) == (2, 16 * 3, 256)
    assert tokens(FlatMLP(), (2, 7, 5, 3)) == (2, 1, 512)
    assert tokens(R3GANEncoder(), (2, 28, 44, 1)) == (2, 1, 64)
    assert tokens(R3GANEncoder(8), (2, 7, 5, 3)) == (2, 1, 8)
    assert tokens(ResNet(18, 64), (2, 32, 32, 3)) == (2, 16, 64)
    assert tokens(ResNet(50, 64, "imagenet"), (2, 64, 96, 3)) == (2, 2 * 3, 64)
    assert tokens(ViT(patch=4, class_token=True), (2, 20, 12, 3)) == (2, 16, 128)
    assert tokens(AudioTransformer(), (2, 301, 80)) == (2, 38, 128)
    assert tokens(TubeletViT((2, 8)), (2, 4, 16, 24, 3)) == (2, 2 * 2 * 3, 128)
    assert tokens(FrameTransformer(ConvNet(), class_token=True), (2, 5, 16, 16, 3)) == (2, 6, 128)


def test_vit_patches_are_row_by_row():
    """Only the token of the changed patch changes before the tokens are mixed (depth 0)."""
    module = ViT(patch=4, width=8, depth=0, heads=2)
    x = normal(1, 8, 12, 3)
    params, run = init(module, x), jax.jit(module.apply)
    moved = np.asarray(run(params, x.at[0, 5, 9].add(1.0)).values) != run(params, x).values
    np.testing.assert_array_equal(moved.any(-1)[0], np.arange(6) == 3 + 2)


def test_tubelets_are_ordered_by_time_row_column():
    module = TubeletViT((2, 4), width=8, depth=0, heads=2)
    x = normal(1, 4, 8, 12, 3)
    params, run = init(module, x), jax.jit(module.apply)
    moved = np.asarray(run(params, x.at[0, 3, 5, 1].add(1.0)).values) != run(params, x).values
    np.testing.assert_array_equal(moved.any(-1)[0], np.arange(12) == 6 + 3)


def test_convnet_sees_the_coordinates():
    image = jnp.zeros((1, 16, 24, 3))
    assert (
        jax.eval_shape(ConvNet(coordinates=False).init, KEY, image)["params"]["stem"]["kernel"].shape[2] == 3
    )
    assert jax.eval_shape(ConvNet().init, KEY, image)["params"]["stem"]["kernel"].shape[2] == 5
    rows, columns = np.moveaxis(np.array(coordinate_channels(image))[0], -1, 0)
    np.testing.assert_allclose(rows, np.broadcast_to(np.linspace(-1, 1, 16)[:, None], (16, 24)), atol=1e-6)
    np.testing.assert_allclose(columns, np.broadcast_to(np.linspace(-1, 1, 24)[None], (16, 24)), atol=1e-6)


def test_token_positions_tell_equal_cells_apart():
    """Of a picture that looks the same everywhere (no coordinates, no borders: depth 0) by row and column."""
    module = ConvNet(width=8, depth=0, norm="none", coordinates=False, token_positions=True)
    plain = dataclasses.replace(module, token_positions=False)
    image = normal(1, 16, 24, 3)
    params = init(plain, image)
    both = jax.jit(lambda p, x: (module.apply(p, x).values, plain.apply(p, x).values))(params, image)
    added = np.subtract(*both)
    np.testing.assert_allclose(added[0], sincos_grid((2, 3), 8), atol=1e-6)


def exact(tree):
    """As the oracle takes it."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_plain_convnet_is_its_layers(norm):
    module = PlainConvNet(width=12, norm=norm)
    x = normal(2, 17, 21, 3)
    params = init(module, x)["params"]
    assert {k: v["kernel"].shape for k, v in params.items() if "conv" in k} == {
        "conv_0": (4, 4, 3, 6),
        "conv_1": (4, 4, 6, 12),
    }
    assert ("norm_1" in params) == (norm == "group") and "norm_0" not in params
    found = jax.jit(module.apply)({"params": params}, x)
    assert found.mask is None
    np.testing.assert_allclose(found.values, oracle.plain_convnet(*exact((params, x))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [1, 4, 7, 8, 9, 15, 16, 17, 29, 31, 32, 33])
def test_plain_convnet_ends_below_eight_and_no_sooner(side):
    shapes = jax.eval_shape(PlainConvNet(width=16).init, KEY, jnp.zeros((1, side, 40, 1)))["params"]
    sides = [side]
    while len(sides) < 2 or sides[-1] >= 8:
        sides.append(-(-sides[-1] // 2))
    assert len(shapes) == len(sides) - 1


def test_flat_mlp_is_its_layers():
    module = FlatMLP(width=11, depth=2)
    x = normal(3, 5, 2, 3)
    params = init(module, x)["params"]
    found = jax.jit(module.apply)({"params": params}, x).values
    own, hidden = exact((params, x.reshape(3, 30)))
    for k in range(2):
        hidden = oracle.leaky(oracle.dense(own[f"layer_{k}"], hidden))
    np.testing.assert_allclose(found[:, 0], hidden, rtol=1e-5, atol=1e-6)


def test_default_image_encoder_has_the_stated_cost():
    module = build_encoder("image")
    x = jnp.ones((1, 32, 32, 3))
    params = jax.eval_shape(module.init, KEY, x)
    flops = jax.jit(module.apply).lower(params, x).cost_analysis()["flops"]
    assert 15e6 < flops < 30e6


@pytest.mark.parametrize("modality", sorted(DEFAULTS))
def test_defaults_build(modality):
    module = build_encoder(modality, **SHAPE_INFO.get(modality, {}))
    shapes = {
        "image": (2, 32, 32, 3), "audio": (2, 301, 80), "video": (2, 8, 32, 32, 3), "text": (2, 7), "vector": (2, 7),
        "series": (2, 30, 4),
    }  # fmt: skip
    x = jnp.zeros(shapes[modality], jnp.int32 if modality == "text" else jnp.float32)
    tokens, _ = jax.eval_shape(module.init_with_output, KEY, x)
    assert tokens.values.shape[2] == DEFAULTS[modality].width


def test_errors_list_what_is_allowed():
    with pytest.raises(ValueError, match="'audio', 'image', 'series', 'text', 'vector', 'video'"):
        build_encoder("smell")
    with pytest.raises(ValueError, match="'resnet50', 'vit'"):
        build_encoder("image", TextTransformerConfig())
    with pytest.raises(ValueError, match="vocab_size"):
        build_encoder("text")
    with pytest.raises(ValueError, match="vocab_size"):
        build_encoder("image", vocab_size=3)
    with pytest.raises((ValueError, TypeCheckError), match="pool"):
        ConvNetConfig(pool="cls")
    with pytest.raises(TypeError, match="scan_layers"):
        config("image", "resnet18", scan_layers=True)
    with pytest.raises(ValueError, match="built from its checkpoint: --image-encoder hf:PATH"):
        build_encoder("image", PretrainedEncoderConfig())
    for name in PLAIN:
        for change in (dict(drop_path=0.1), dict(remat=True)):
            with pytest.raises(TypeError, match=next(iter(change))):
                config("image", name, **change)
        with pytest.raises(ValueError, match="no padding mask"):
            jax.eval_shape(encoder("image", name).init, KEY, jnp.ones((1, 8, 8, 3)), jnp.ones((1, 4), bool))
    with pytest.raises(ValueError, match="norm must be"):
        jax.eval_shape(PlainConvNet(norm="batch").init, KEY, jnp.ones((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="must divide"):
        build_encoder("audio", AudioTransformerConfig(heads=3))
    for modality, name, field, value in (
        ("image", "convnet", "width", 0), ("image", "convnet", "dropout", 1.0), ("image", "convnet", "pool", "max"),
        ("image", "convnet", "dtype", "int8"), ("audio", "transformer", "downsample", 3),
        ("image", "resnet18", "stem", "big"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeCheckError), match=field):
            config(modality, name, **{field: value})
    with pytest.raises(ValueError, match="patch=8"):
        jax.eval_shape(encoder("image", "vit").init, KEY, jnp.ones((1, 12, 16, 3)))
    with pytest.raises(ValueError, match="tubelet"):
        jax.eval_shape(encoder("video", "tubelet").init, KEY, jnp.ones((1, 3, 16, 16, 3)))
    with pytest.raises(ValueError, match="no padding mask"):
        jax.eval_shape(encoder("image", "vit").init, KEY, jnp.ones((1, 16, 16, 3)), jnp.ones((1, 4), bool))
