import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from tests.pretrained.test_images import pictures, run
from xmodal_jax.pretrained.images import IMAGENET

BATCH = 2
SIZES = dict(
    hidden_size=28,
    num_hidden_layers=3,
    num_attention_heads=7,
    intermediate_size=37,
    image_size=15,
    patch_size=5,
    num_frames=6,
    tubelet_size=3,
)
DECODER = dict(
    decoder_num_attention_heads=2,
    decoder_hidden_size=14,
    decoder_num_hidden_layers=1,
    decoder_intermediate_size=11,
)


def make(folder, suffix="Model", **changes):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(**{**SIZES, **changes})
    model = getattr(transformers, "VideoMAE" + suffix)(config)
    return model, peers.save(model, folder)


KINDS = [
    dict(use_mean_pooling=True),
    dict(use_mean_pooling=False),
    dict(use_mean_pooling=True, qv_bias=False, tubelet_size=2, image_size=[15, 25]),
]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("changes", KINDS)
def test_hidden_states(tmp_path, changes, scan):
    theirs, folder = make(tmp_path, **changes)
    width = 25 if "image_size" in changes else 15
    ours, pixels = pictures(BATCH, 6, 15, width, 3)
    found = peers.load(folder, "video", scan=scan)
    expected = theirs(pixels(IMAGENET), output_hidden_states=True)
    peers.assert_same_hidden_states(found, ours, None, expected.hidden_states)
    tokens = run(found, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")


def pooled_by(classifier, pixels):
    """What the classifier's last layer takes."""
    seen = []
    classifier.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    classifier(pixels)
    return seen[0]


@pytest.mark.parametrize("changes", KINDS)
def test_pool_of_a_classifier(tmp_path, changes):
    theirs, folder = make(tmp_path, "ForVideoClassification", **changes)
    width = 25 if "image_size" in changes else 15
    ours, pixels = pictures(BATCH, 6, 15, width, 3)
    found = peers.load(folder, "video", "pool")
    assert set(found.unused) == {"classifier.weight", "classifier.bias"}
    pooled = run(found, ours, method="embed")
    peers.assert_close(pooled, pooled_by(theirs, pixels(IMAGENET)), "pool")
    bare = peers.load(folder, "video")
    norm = {"fc_norm.weight", "fc_norm.bias"} if changes["use_mean_pooling"] else set()
    assert set(bare.unused) == {"classifier.weight", "classifier.bias"} | norm
    tokens = run(bare, ours)
    peers.assert_close(tokens.values, theirs.videomae(pixels(IMAGENET)).last_hidden_state, "tokens")


@pytest.mark.parametrize("mean", [False, True])
def test_pool_of_other_checkpoints_is_that_of_a_new_classifier(tmp_path, mean):
    theirs, folder = make(tmp_path, "ForPreTraining", use_mean_pooling=mean, **DECODER)
    _, transformers = peers.import_transformers()
    classifier = transformers.VideoMAEForVideoClassification.from_pretrained(
        folder, trust_remote_code=False
    ).eval()
    ours, pixels = pictures(BATCH, 6, 15, 15, 3)
    found = peers.load(folder, "video", "pool")
    assert all(name.startswith(("decoder.", "encoder_to_decoder.", "mask_token")) for name in found.unused)
    pooled = run(found, ours, method="embed")
    peers.assert_close(pooled, pooled_by(classifier, pixels(IMAGENET)), "pool")


@pytest.mark.parametrize("size, frames", [((10, 35), 6), ((15, 15), 9), ((20, 5), 3)])
def test_other_sizes_and_lengths(tmp_path, size, frames):
    theirs, folder = make(tmp_path / "a")
    _, transformers = peers.import_transformers()
    config = transformers.VideoMAEConfig(**{**SIZES, "image_size": list(size), "num_frames": frames})
    other = transformers.VideoMAEModel(config)
    other.load_state_dict(theirs.state_dict())
    ours, pixels = pictures(BATCH, frames, *size, 3)
    found = peers.load(folder, "video", image_size=size, frames=frames)
    tokens = run(found, ours)
    peers.assert_close(tokens.values, other.eval()(pixels(IMAGENET)).last_hidden_state, "tokens")


@pytest.mark.parametrize("mean", [False, True])
def test_frames_without_content_change_nothing(tmp_path, mean):
    _, folder = make(tmp_path, use_mean_pooling=mean)
    ours, _ = pictures(BATCH, 9, 15, 15, 3)
    mask = jnp.asarray(np.arange(9)[None] < np.array([[3], [9]]))
    found = peers.load(folder, "video", "pool")
    tokens = run(found, ours, mask)
    short = run(found, ours[:1, :3])
    np.testing.assert_array_equal(tokens.mask, np.arange(27)[None] < np.array([[9], [27]]))
    np.testing.assert_allclose(tokens.values[0, :9], short.values[0], atol=1e-4)
    pooled = [run(found, *of, method="embed")[0] for of in [(ours, mask), (ours[:1, :3],)]]
    np.testing.assert_allclose(*pooled, atol=1e-4)


def test_gradients(tmp_path):
    theirs, folder = make(tmp_path / "model")
    ours, pixels = pictures(BATCH, 6, 15, 15, 3)
    found = peers.load(folder, "video")
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, 18, 28)), jnp.float32)
    loss = lambda params: (found.module.apply({"params": params}, ours).values * weights).sum()
    (theirs(pixels(IMAGENET)).last_hidden_state * peers.to_torch(weights)).sum().backward()
    named = peers.with_names_of_checkpoint(theirs, tmp_path / "gradients")
    assert peers.assert_same_gradients(found, "video", loss, named) == len(list(theirs.parameters()))


def test_mistakes_are_named(tmp_path):
    _, folder = make(tmp_path)
    found = peers.load(folder, "video")
    with pytest.raises(ValueError, match="tubelet 3 x 5 x 5 must divide the video's 4 x 15 x 15"):
        found.module.apply({"params": found.params}, jnp.zeros((1, 4, 15, 15, 3)))
    with pytest.raises(ValueError, match="tubelets of 3 frames must divide a video's, got 8"):
        peers.load(folder, "video", frames=8)
    with pytest.raises(ValueError, match="must divide the image's sides, got 15 x 16"):
        peers.load(folder, "video", image_size=(15, 16))
