import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from xmodal_jax.preprocess.image import to_float
from xmodal_jax.pretrained import clip, images
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import complete_config, make_module

BATCH, LENGTH, WORDS, EOS, SHARED = 3, 11, 53, 47, 19
TEXT = dict(
    vocab_size=WORDS,
    hidden_size=21,
    num_hidden_layers=3,
    num_attention_heads=7,
    intermediate_size=37,
    max_position_embeddings=13,
    eos_token_id=EOS,
)
IMAGE = dict(
    hidden_size=28,
    num_hidden_layers=2,
    num_attention_heads=7,
    intermediate_size=31,
    image_size=15,
    patch_size=5,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=SHARED)
    made = transformers.CLIPModel(config)
    return made, peers.save(made, tmp_path_factory.mktemp("clip"))


def saved(name, folder, **changed):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(1)
    kind = "Vision" if "Vision" in name else "Text"
    sizes = {**(IMAGE if kind == "Vision" else TEXT), **changed}
    made = getattr(transformers, name)(getattr(transformers, f"CLIP{kind}Config")(**sizes))
    return made, peers.save(made, folder)


def texts(eos=EOS):
    """Ids that end with ``eos`` in rows of 11, 5 and 2 tokens, padded with it as CLIP's tokenizer does, and a mask."""
    ids, mask = peers.random_ids(LENGTH, BATCH, EOS), peers.prefix_mask([LENGTH, 5, 2], LENGTH)
    last = np.arange(LENGTH)[None] == np.array([LENGTH, 5, 2])[:, None] - 1
    return jnp.where(mask & ~last, ids, eos), mask


def pictures(height=15, width=15, scale=images.CLIP, *, seed=3):
    """Ours, and PyTorch's ``pixel_values`` of the same pictures."""
    pixels = np.random.default_rng(seed).integers(0, 256, (BATCH, height, width, 3), np.uint8)
    theirs = (pixels / np.float32(255) - np.array(scale[0], np.float32)) / np.array(scale[1], np.float32)
    return to_float(jnp.asarray(pixels)), peers.to_torch(theirs.transpose(0, 3, 1, 2))


def embed(found, *inputs):
    return found.module.apply({"params": found.params}, *inputs, method="embed")


@pytest.mark.parametrize("scan", [False, True])
def test_image_encoder(model, scan):
    theirs, folder = model
    ours, pixel_values = pictures()
    found = peers.load(folder, "image", "pool", scan=scan)
    expected = theirs.vision_model(pixel_values, output_hidden_states=True)
    peers.assert_same_hidden_states(found, ours, None, expected.hidden_states)
    tokens = found.module.apply({"params": found.params}, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    peers.assert_close(embed(found, ours), expected.pooler_output, "pool")


@pytest.mark.parametrize("size", [(15, 25), (20, 10)])
def test_another_image_size(model, size):
    theirs, folder = model
    ours, pixel_values = pictures(*size)
    found = peers.load(folder, "image", "project", image_size=size)
    expected = theirs.vision_model(pixel_values, interpolate_pos_encoding=True)
    tokens = found.module.apply({"params": found.params}, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    peers.assert_close(embed(found, ours), theirs.visual_projection(expected.pooler_output), "projection")


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_text_encoder(model, scan, masked):
    theirs, folder = model
    ids, mask = texts()
    found = peers.load(folder, "text", "pool", scan=scan)
    expected = theirs.text_model(
        peers.to_torch(ids).long(),
        attention_mask=peers.to_torch(mask) if masked else None,
        output_hidden_states=True,
    )
    mask = mask if masked else None
    peers.assert_same_hidden_states(found, ids, mask, expected.hidden_states)
    tokens = found.module.apply({"params": found.params}, ids, mask)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    peers.assert_close(embed(found, ids, mask), expected.pooler_output, "pool")


def test_logits(model):
    theirs, folder = model
    (ids, mask), (ours, pixel_values) = texts(), pictures()
    expected = theirs(peers.to_torch(ids).long(), pixel_values, attention_mask=peers.to_torch(mask))
    sides = []
    for modality, inputs in (("image", (ours,)), ("text", (ids, mask))):
        x = embed(peers.load(folder, modality, "project"), *inputs)
        sides.append(x / jnp.linalg.norm(x, axis=-1, keepdims=True))
    peers.assert_close(sides[0], expected.image_embeds, "image")
    peers.assert_close(sides[1], expected.text_embeds, "text")
    found = clip.read_loss_parameters(open_checkpoint(folder))
    assert found.keys() == {"logit_scale"}
    np.testing.assert_allclose(found["logit_scale"], theirs.logit_scale.item(), rtol=1e-6)
    logits = np.exp(found["logit_scale"]) * sides[0] @ sides[1].T
    peers.assert_close(logits, expected.logits_per_image, "logits")


def test_gradients(model):
    theirs, folder = model
    (ids, mask), (ours, pixel_values) = texts(), pictures()
    # Small, so that what is 0 by mathematics (the bias of keys) is small here too.
    weights = np.random.default_rng(1).normal(0.0, 0.1, (BATCH, SHARED)).astype(np.float32)
    compared = 0
    for modality, inputs in (("image", (ours,)), ("text", (ids, mask))):
        found = peers.load(folder, modality, "project")

        def loss(params, module=found.module, inputs=inputs):
            return (module.apply({"params": params}, *inputs, method="embed") * weights).sum()

        theirs.zero_grad()
        if modality == "image":
            out = theirs.get_image_features(pixel_values)
        else:
            out = theirs.get_text_features(peers.to_torch(ids).long(), attention_mask=peers.to_torch(mask))
        (out.pooler_output * peers.to_torch(weights)).sum().backward()
        compared += peers.assert_same_gradients(found, modality, loss, theirs)
    assert compared == len(list(theirs.parameters())) - 1  # all but logit_scale


@pytest.mark.parametrize(
    "name, modality, heads",
    [
        ("CLIPVisionModel", "image", ["none", "pool"]),
        ("CLIPVisionModelWithProjection", "image", ["none", "pool", "project"]),
        ("CLIPTextModel", "text", ["none", "pool"]),
        ("CLIPTextModelWithProjection", "text", ["none", "pool", "project"]),
    ],
)
def test_an_encoder_saved_alone(name, modality, heads, tmp_path):
    theirs, folder = saved(name, tmp_path, projection_dim=SHARED, hidden_act="gelu")
    if modality == "image":
        inputs, pixel_values = pictures()
        given = {"pixel_values": pixel_values}
    else:
        inputs, _ = texts()
        given = {"input_ids": peers.to_torch(inputs).long()}
    expected = theirs(**given)
    pooled = getattr(theirs, {"image": "vision_model", "text": "text_model"}[modality], theirs)(**given)
    for head in heads:
        found = embed(peers.load(folder, modality, head), inputs)
        if head == "none":
            peers.assert_close(found.values, expected.last_hidden_state, head)
        elif head == "pool":
            peers.assert_close(found, pooled.pooler_output, head)
        else:
            peers.assert_close(found, expected[0], head)


def test_the_end_of_text_of_early_configurations(tmp_path):
    theirs, folder = saved("CLIPTextModel", tmp_path, eos_token_id=2)
    found = peers.load(folder, "text", "pool")
    ids, mask = texts(eos=WORDS - 1)
    expected = theirs(peers.to_torch(ids).long()).pooler_output
    peers.assert_close(embed(found, ids), expected, "pool")
    # Whatever the padding: it is not content.
    peers.assert_close(embed(found, jnp.where(mask, ids, 0), mask), expected, "padded with 0")


def test_without_an_end_of_text_the_last_of_the_content_is_taken(model):
    _, folder = model
    found = peers.load(folder, "text", "pool")
    ids, mask = peers.random_ids(LENGTH, BATCH, EOS), peers.prefix_mask([LENGTH, 5, 2], LENGTH)
    values = found.module.apply({"params": found.params}, ids, mask).values
    np.testing.assert_array_equal(
        embed(found, ids, mask), values[jnp.arange(BATCH), jnp.array([LENGTH, 5, 2]) - 1]
    )
    np.testing.assert_array_equal(
        embed(found, ids), found.module.apply({"params": found.params}, ids).values[:, -1]
    )


def test_parameters_end_at_the_head(model):
    _, folder = model
    assert "last_norm" not in peers.load(folder, "image").params
    assert "projector" not in peers.load(folder, "image", "pool").params
    found = peers.load(folder, "text")
    assert "projector" not in found.params
    assert {name.split(".")[0] for name in found.unused} >= {"vision_model", "logit_scale"}


def test_what_does_not_fit_is_said(model):
    _, folder = model
    found = peers.load(folder, "image")
    ours, _ = pictures()
    with pytest.raises(ValueError, match="made for images of 15 x 15 pixels, got 20 x 15"):
        found.module.apply({"params": found.params}, jnp.zeros((1, 20, 15, 3)))
    with pytest.raises(ValueError, match="no padding mask"):
        found.module.apply({"params": found.params}, ours, jnp.ones((BATCH, 9), bool))
    with pytest.raises(ValueError, match="must divide"):
        peers.load(folder, "image", image_size=(15, 16))
    found = peers.load(folder, "text")
    with pytest.raises(ValueError, match="14 tokens given, the pretrained model has 13"):
        found.module.apply({"params": found.params}, jnp.ones((1, 14), jnp.int32))


def test_sizes_of_a_configuration_that_leaves_out_defaults():
    peers.import_transformers()
    config = complete_config(
        {"model_type": "clip", "vision_config": {"patch_size": 16}},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    )
    image = make_module("image", config, EncoderOptions("project"))
    assert (image.sizes.width, image.sizes.depth, image.grid, image.projection) == (768, 12, (14, 14), 512)
    assert image.scale == images.HALF
    text = make_module("text", config, EncoderOptions("project"))
    assert (text.sizes.width, text.eos, text.positions, text.sizes.style.epsilon) == (512, 49407, 77, 1e-5)
