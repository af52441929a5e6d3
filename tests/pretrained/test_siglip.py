import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from tests.pretrained.test_images import run
from xmodal_jax.preprocess.image import to_float
from xmodal_jax.pretrained import clip, images, siglip
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import complete_config, make_module

BATCH, LENGTH, WORDS, PATCH, PAD = 3, 11, 53, 5, 3
TEXT = dict(
    vocab_size=WORDS,
    hidden_size=21,
    num_hidden_layers=3,
    num_attention_heads=7,
    intermediate_size=37,
    max_position_embeddings=13,
    projection_size=28,
    pad_token_id=PAD,
)
IMAGE = dict(
    hidden_size=28,
    num_hidden_layers=2,
    num_attention_heads=7,
    intermediate_size=31,
    patch_size=PATCH,
)
# 17 pixels are 3 patches and a rest that is not seen, as in the published 384 pixels with patches of 14.
SIZES = {"Siglip": {"image_size": 17}, "Siglip2": {"num_patches": 9}}


@pytest.fixture(scope="module", params=list(SIZES))
def model(request, tmp_path_factory):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    vision = {**IMAGE, **SIZES[request.param]}
    config = getattr(transformers, f"{request.param}Config")(text_config=TEXT, vision_config=vision)
    made = getattr(transformers, f"{request.param}Model")(config)
    return made, peers.save(made, tmp_path_factory.mktemp(request.param))


def pictures(model, height, width):
    """Ours, and what PyTorch's image encoder is given of the same pictures."""
    pixels = np.random.default_rng(3).integers(0, 256, (BATCH, height, width, 3), np.uint8)
    theirs = pixels / np.float32(127.5) - np.float32(1)
    if model.config.model_type == "siglip":
        given = {
            "pixel_values": peers.to_torch(theirs.transpose(0, 3, 1, 2)),
            "interpolate_pos_encoding": True,
        }
    else:
        torch, _ = peers.import_transformers()
        rows, columns = height // PATCH, width // PATCH
        cut = [
            theirs[:, PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)].reshape(BATCH, -1)
            for i in range(rows)
            for j in range(columns)
        ]
        given = {
            "pixel_values": peers.to_torch(np.stack(cut, axis=1)),
            "pixel_attention_mask": torch.ones(BATCH, rows * columns, dtype=torch.int32),
            "spatial_shapes": torch.tensor([[rows, columns]] * BATCH),
        }
    return to_float(jnp.asarray(pixels)), given


def trained_size(model):
    side = 17 if model.config.model_type == "siglip" else 15
    return side, side


def texts():
    return peers.random_ids(LENGTH, BATCH, WORDS), peers.prefix_mask([LENGTH, 5, 2], LENGTH)


def padded(ids, mask):
    """What the processors of these models make of texts: all of the length of the positions."""
    ids = jnp.pad(jnp.where(mask, ids, PAD), [(0, 0), (0, 13 - LENGTH)], constant_values=PAD)
    return peers.to_torch(ids).long()


def embed(found, *inputs):
    return run(found, *inputs, method="embed")


@pytest.mark.parametrize("scan", [False, True])
def test_image_encoder(model, scan):
    theirs, folder = model
    ours, given = pictures(theirs, *trained_size(theirs))
    found = peers.load(folder, "image", "pool", scan=scan)
    expected = theirs.vision_model(**given, output_hidden_states=True)
    peers.assert_same_hidden_states(found, ours, None, expected.hidden_states)
    tokens = run(found, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    peers.assert_close(embed(found, ours), expected.pooler_output, "pool")


@pytest.mark.parametrize("size", [(10, 25), (20, 35)])
def test_another_image_size(model, size):
    theirs, folder = model
    ours, given = pictures(theirs, *size)
    found = peers.load(folder, "image", "pool", image_size=size)
    expected = theirs.vision_model(**given)
    tokens = run(found, ours)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    peers.assert_close(embed(found, ours), expected.pooler_output, "pool")


@pytest.mark.parametrize("scan", [False, True])
def test_text_encoder_pads_as_it_was_trained(model, scan):
    theirs, folder = model
    ids, mask = texts()
    found = peers.load(folder, "text", "pool", scan=scan)
    expected = theirs.text_model(padded(ids, mask), output_hidden_states=True)
    peers.assert_same_hidden_states(found, ids, mask, expected.hidden_states)
    tokens = run(found, ids, mask)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    np.testing.assert_array_equal(tokens.mask, jnp.pad(mask, [(0, 0), (0, 2)]))
    peers.assert_close(embed(found, ids, mask), expected.pooler_output, "pool")
    everything = theirs.text_model(padded(ids, jnp.ones_like(mask))).pooler_output
    peers.assert_close(embed(found, ids), everything, "without a mask")


@pytest.mark.parametrize("masked", [False, True])
def test_text_encoder_with_a_mask_of_attention(model, masked):
    theirs, folder = model
    ids, mask = texts()
    found = peers.load(folder, "text", "pool")
    found = found._replace(module=found.module.clone(attends_to_padding=False))
    expected = theirs.text_model(
        peers.to_torch(ids).long(),
        attention_mask=peers.to_torch(mask) if masked else None,
        output_hidden_states=True,
    )
    mask = mask if masked else None
    peers.assert_same_hidden_states(found, ids, mask, expected.hidden_states)
    tokens = run(found, ids, mask)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    peers.assert_close(embed(found, ids, mask), expected.pooler_output, "pool")


def test_logits(model):
    theirs, folder = model
    (ids, mask), (ours, given) = texts(), pictures(theirs, *trained_size(theirs))
    expected = theirs(input_ids=padded(ids, mask), **given)
    sides = []
    for modality, inputs in (("image", (ours,)), ("text", (ids, mask))):
        x = embed(peers.load(folder, modality, "project"), *inputs)
        sides.append(x / jnp.linalg.norm(x, axis=-1, keepdims=True))
    found = clip.read_loss_parameters(open_checkpoint(folder))
    logits = np.exp(found["logit_scale"]) * sides[0] @ sides[1].T + found["logit_bias"]
    peers.assert_close(logits, expected.logits_per_image, "logits")


def test_gradients(model):
    theirs, folder = model
    (ids, mask), (ours, given) = texts(), pictures(theirs, *trained_size(theirs))
    # Small, so that what is 0 by mathematics (the bias of keys) is small here too.
    weights = np.random.default_rng(1).normal(0.0, 0.1, (BATCH, 28)).astype(np.float32)
    compared = 0
    for modality, inputs in (("image", (ours,)), ("text", (ids, mask))):
        found = peers.load(folder, modality, "project")

        def loss(params, module=found.module, inputs=inputs):
            return (module.apply({"params": params}, *inputs, method="embed") * weights).sum()

        theirs.zero_grad()
        tower = theirs.vision_model if modality == "image" else theirs.text_model
        out = tower(**given) if modality == "image" else tower(padded(ids, mask))
        (out.pooler_output * peers.to_torch(weights)).sum().backward()
        prefix = "vision_model." if modality == "image" else "text_model."
        compared += peers.assert_same_gradients(found, modality, loss, theirs, prefix=prefix)
    assert compared == len(list(theirs.parameters())) - 2  # all but the scale and bias of the logits


@pytest.mark.parametrize("family", list(SIZES))
@pytest.mark.parametrize("modality", ["image", "text"])
def test_an_encoder_saved_alone(family, modality, tmp_path):
    torch, transformers = peers.import_transformers()
    kind, sizes = ("Vision", {**IMAGE, **SIZES[family]}) if modality == "image" else ("Text", TEXT)
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}{kind}Config")(**sizes)
    theirs = getattr(transformers, f"{family}{kind}Model")(config)
    found = peers.load(peers.save(theirs, tmp_path), modality, "pool")
    if modality == "image":
        side = math.isqrt(math.prod(found.module.grid)) * PATCH
        theirs.config.model_type = family.lower()
        ours, given = pictures(theirs, side, side)
        peers.assert_close(embed(found, ours), theirs(**given).pooler_output, "pool")
    else:
        ids, mask = texts()
        expected = theirs(padded(ids, mask)).pooler_output
        peers.assert_close(embed(found, ids, mask), expected, "pool")


@pytest.mark.parametrize(
    "old, new", [((3, 3), (2, 7)), ((16, 16), (5, 13)), ((4, 4), (4, 1)), ((5, 5), (11, 23))]
)
def test_positions_are_resampled_as_pytorch_does(old, new):
    torch, _ = peers.import_transformers()
    table = np.random.default_rng(0).normal(size=(math.prod(old), 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        peers.to_torch(table.reshape(1, *old, 3).transpose(0, 3, 1, 2)), new, mode="bilinear", antialias=True
    )
    expected = expected.numpy()[0].transpose(1, 2, 0).reshape(-1, 3)
    np.testing.assert_allclose(siglip.make_linear_resampler(old, new)(table), expected, atol=2e-6)


def test_a_checkpoint_without_a_pool(tmp_path):
    """It pools by the mean of the tokens, as SiglipForImageClassification does."""
    torch, transformers = peers.import_transformers()
    config = transformers.SiglipVisionConfig(**IMAGE, image_size=15, vision_use_head=False)
    theirs = transformers.SiglipVisionModel(config)
    folder = peers.save(theirs, tmp_path)
    found = peers.load(folder, "image", "pool")
    assert found.module.grid == (3, 3)
    ours = jnp.asarray(np.random.default_rng(3).normal(size=(BATCH, 15, 15, 3)), jnp.float32)
    expected = theirs(peers.to_torch(ours.transpose(0, 3, 1, 2))).last_hidden_state.mean(axis=1)
    peers.assert_close(found.module.apply({"params": found.params}, ours, method="embed"), expected, "pool")
    with pytest.raises(ValueError, match="has no embedding in a shared space"):
        peers.load(folder, "image", "project")


def test_sizes_of_published_configurations():
    peers.import_transformers()
    config = complete_config({"model_type": "siglip2", "text_config": {"vocab_size": 256_000}})
    image = make_module("image", config, EncoderOptions("pool"), image_size=(160, 384))
    assert (image.trained_grid, image.grid, image.scale) == ((16, 16), (10, 24), images.HALF)
    assert make_module("text", config).pad == 0
    config = complete_config({"model_type": "siglip", "vision_config": {"image_size": 384, "patch_size": 14}})
    assert make_module("image", config, image_size=(384, 384)).grid == (27, 27)
    assert make_module("text", config).pad == 1
