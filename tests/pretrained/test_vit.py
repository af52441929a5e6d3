import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from tests.pretrained.test_images import pictures, run
from xmodal_jax.pretrained.images import HALF, IMAGENET

BATCH, PATCH = 2, 5
SIZES = dict(
    hidden_size=28, num_hidden_layers=3, num_attention_heads=7, image_size=15, patch_size=PATCH, qkv_bias=True
)
VIT = dict(SIZES, intermediate_size=37)
KINDS = {
    "vit": ("ViT", VIT),
    "vit_no_bias": ("ViT", {**VIT, "qkv_bias": False}),
    "dinov2": ("Dinov2", dict(SIZES, mlp_ratio=3, layerscale_value=0.7)),
    "dinov2_swiglu": ("Dinov2", dict(SIZES, use_swiglu_ffn=True)),
    "registers": ("Dinov2WithRegisters", dict(SIZES, num_register_tokens=3)),
}


def make(kind, folder, suffix="Model"):
    torch, transformers = peers.import_transformers()
    name, sizes = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name + suffix)(getattr(transformers, name + "Config")(**sizes))
    return model, peers.save(model, folder)


@pytest.fixture(scope="module", params=list(KINDS))
def model(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp(request.param))


def scale(model):
    return HALF if model.config.model_type == "vit" else IMAGENET


def resized(model):
    return {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}


@pytest.mark.parametrize("scan", [False, True])
def test_hidden_states_and_pool(model, scan):
    theirs, folder = model
    ours, pixels = pictures(BATCH, 15, 15, 3)
    found = peers.load(folder, "image", "pool", scan=scan)
    expected = theirs(pixels(scale(theirs)), output_hidden_states=True)
    peers.assert_same_hidden_states(found, ours, None, expected.hidden_states)
    tokens = run(found, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    assert tokens.mask is None
    pooled = run(found, ours, method="embed")
    peers.assert_close(pooled, expected.pooler_output, "pool")


@pytest.mark.parametrize("size", [(25, 35), (5, 10)])
def test_other_image_sizes(model, size):
    theirs, folder = model
    ours, pixels = pictures(BATCH, *size, 3)
    found = peers.load(folder, "image", "pool", image_size=size)
    expected = theirs(pixels(scale(theirs)), **resized(theirs))
    tokens = run(found, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    pooled = run(found, ours, method="embed")
    peers.assert_close(pooled, expected.pooler_output, "pool")


@pytest.mark.parametrize("kind", ["vit", pytest.param("dinov2", marks=pytest.mark.slow), "registers"])
def test_gradients(kind, tmp_path):
    theirs, folder = make(kind, tmp_path / "model")
    ours, pixels = pictures(BATCH, 15, 15, 3)
    found = peers.load(folder, "image", "pool")
    shape = run(found, ours).values.shape
    # Small, so that gradients that are zero by mathematics, those of the keys' biases, count as small.
    weights = jnp.asarray(0.05 * np.random.default_rng(1).normal(size=shape), jnp.float32)

    def loss(params):
        tokens = found.module.apply({"params": params}, ours)
        pooled = found.module.apply({"params": params}, ours, method="embed")
        return (tokens.values * weights).sum() + 0.05 * jnp.square(pooled).sum()

    out = theirs(pixels(scale(theirs)))
    (
        (out.last_hidden_state * peers.to_torch(weights)).sum() + 0.05 * out.pooler_output.square().sum()
    ).backward()
    named = peers.with_names_of_checkpoint(theirs, tmp_path / "gradients")
    compared = peers.assert_same_gradients(found, "image", loss, named)
    assert compared == sum(p.grad is not None for p in theirs.parameters())


@pytest.mark.parametrize(
    "kind, suffix, left_out",
    [
        ("vit", "ForImageClassification", {"classifier.weight", "classifier.bias"}),
        (
            "vit",
            "ForMaskedImageModeling",
            {"decoder.0.weight", "decoder.0.bias", "vit.embeddings.mask_token"},
        ),
        (
            "dinov2",
            "ForImageClassification",
            {"classifier.weight", "classifier.bias", "dinov2.embeddings.mask_token"},
        ),
        (
            "registers",
            "ForImageClassification",
            {"classifier.weight", "classifier.bias", "dinov2_with_registers.embeddings.mask_token"},
        ),
    ],
)
def test_the_encoder_of_other_tasks(tmp_path, kind, suffix, left_out):
    theirs, folder = make(kind, tmp_path, suffix)
    ours, pixels = pictures(BATCH, 15, 15, 3)
    found = peers.load(folder, "image")
    assert set(found.unused) == left_out
    expected = theirs.base_model(pixels(scale(theirs)))
    tokens = run(found, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    if kind == "vit":
        # It has no layers for the pool, which is then the class token, as for these tasks.
        pooled = run(peers.load(folder, "image", "pool"), ours, method="embed")
        peers.assert_close(pooled, expected.last_hidden_state[:, 0], "pool")


def test_a_swiglu_is_not_written(tmp_path):
    _, folder = make("dinov2_swiglu", tmp_path)
    found = peers.load(folder, "image")
    with pytest.raises(NotImplementedError, match="SwiGLU"):
        peers.gradients(found, "image", lambda params: jnp.sum(params["class_token"]))


def test_mistakes_are_named(model):
    _, folder = model
    found = peers.load(folder, "image")
    with pytest.raises(ValueError, match="made for images of 15 x 15 pixels, got 15 x 20"):
        found.module.apply({"params": found.params}, jnp.zeros((1, 15, 20, 3)))
    with pytest.raises(ValueError, match="padding mask"):
        found.module.apply({"params": found.params}, jnp.zeros((1, 15, 15, 3)), jnp.ones((1, 10), bool))
    with pytest.raises(ValueError, match="must divide the image's sides, got 15 x 16"):
        peers.load(folder, "image", image_size=(15, 16))
