import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from tests.pretrained.test_images import pictures, run
from xmodal_jax.core import trees
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.images import IMAGENET
from xmodal_jax.pretrained.load import load_encoder

BATCH = 2
BASIC = dict(embedding_size=5, hidden_sizes=[7, 11, 13], depths=[1, 2, 1], layer_type="basic")
BOTTLENECK = dict(
    embedding_size=5, hidden_sizes=[12, 20, 28, 44], depths=[2, 1, 2, 1], layer_type="bottleneck"
)
KINDS = {
    "basic": BASIC,
    "same_width": {**BASIC, "embedding_size": 7},
    "first_stage": {**BASIC, "downsample_in_first_stage": True},
    "bottleneck": BOTTLENECK,
    "in_bottleneck": {**BOTTLENECK, "downsample_in_bottleneck": True},
}


def make(folder, kind, suffix="Model"):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    model = getattr(transformers, "ResNet" + suffix)(transformers.ResNetConfig(**KINDS[kind]))
    return model, peers.save(model, folder)


def as_tokens(images):
    return images.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind, size", [*((kind, (37, 83)) for kind in KINDS), ("bottleneck", (64, 32))])
def test_hidden_states_and_pool(tmp_path, kind, size):
    theirs, folder = make(tmp_path, kind)
    ours, pixels = pictures(BATCH, *size, 3)
    found = peers.load(folder, "image", "pool")
    assert not [name for name in found.unused if not name.endswith("num_batches_tracked")]
    expected = theirs(pixels(IMAGENET), output_hidden_states=True)
    states = peers.compiled_hidden_states(found, ours)
    assert len(states) == len(expected.hidden_states) == 1 + len(KINDS[kind]["depths"])
    for k, (a, b) in enumerate(zip(states, expected.hidden_states, strict=True)):
        peers.assert_close(a, as_tokens(b), f"hidden state {k}")
    tokens = run(found, ours)
    peers.assert_close(tokens.values, as_tokens(expected.last_hidden_state), "tokens")
    pooled = run(found, ours, method="embed")
    peers.assert_close(pooled, expected.pooler_output[:, :, 0, 0], "pool")


@pytest.mark.parametrize("remat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gradients(tmp_path, remat):
    theirs, folder = make(tmp_path, "bottleneck")
    ours, pixels = pictures(BATCH, 37, 83, 3)
    found = load_encoder(folder, "image", EncoderOptions(head="pool", remat=remat), progress=False)
    shape = run(found, ours).values.shape
    weights = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)

    def loss(params):
        tokens = found.module.apply({"params": params}, ours)
        pooled = found.module.apply({"params": params}, ours, method="embed")
        return (tokens.values * weights).sum() + jnp.square(pooled).sum()

    out = theirs(pixels(IMAGENET))
    (
        (as_tokens(out.last_hidden_state) * peers.to_torch(weights)).sum() + out.pooler_output.square().sum()
    ).backward()
    # Means and variances are no parameters there: here their gradients must be zero.
    assert peers.assert_same_gradients(found, "image", loss, theirs) == len(list(theirs.parameters()))
    frozen = [name for name in trees.leaf_names(found.params) if name.endswith(("/mean", "/var"))]
    assert len(frozen) == len(list(theirs.parameters())) * 2 // 3


def test_the_encoder_of_a_classifier(tmp_path):
    theirs, folder = make(tmp_path, "basic", "ForImageClassification")
    ours, pixels = pictures(BATCH, 41, 31, 3)
    found = peers.load(folder, "image", image_size=(41, 31))
    left = {name for name in found.unused if not name.endswith("num_batches_tracked")}
    assert left == {"classifier.1.weight", "classifier.1.bias"}
    tokens = run(found, ours)
    peers.assert_close(tokens.values, as_tokens(theirs.resnet(pixels(IMAGENET)).last_hidden_state), "tokens")
    with pytest.raises(ValueError, match="padding mask"):
        found.module.apply({"params": found.params}, ours, jnp.ones((BATCH, 4), bool))
