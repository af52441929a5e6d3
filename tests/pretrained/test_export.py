"""What is written is read by ``transformers``, with the same results."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.pretrained import checkpoints as made
from tests.pretrained import peers
from tests.support import random_params
from xmodal_jax.core import trees
from xmodal_jax.data.text import load_hf_tokenizer, train_tokenizer
from xmodal_jax.evaluation.text import TextGenerationConfig
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.lora import LoRA
from xmodal_jax.models.seq2seq import make_seq2seq
from xmodal_jax.nets.encoders import build_decoder
from xmodal_jax.nets.heads import OwnHeadConfig
from xmodal_jax.pretrained.export import TrainedEncoder, create_folder, save_encoder
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.run import to_json
from xmodal_jax.transfer.export import export_run
from xmodal_jax.transfer.pretrained import resolve_pretrained

TOKENIZER = train_tokenizer(["a red square above two blue circles"], "word")
CAPTIONS = ["a red square", "two blue circles", "a red circle above two blue circles", "blue"]
WORDS = dict(vocab_size=TOKENIZER.vocab_size)
LENGTH = 11


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig):
    model: ContrastiveConfig = ContrastiveConfig(head=OwnHeadConfig())


def batch_of(size=(16, 16)):
    ids, mask = TOKENIZER.encode_batch(CAPTIONS, LENGTH)
    pixels = np.random.default_rng(0).integers(0, 256, (4, *size, 3)).astype(np.uint8)
    return jax.tree.map(
        jnp.asarray, {"index": np.arange(4, dtype=np.int32), "text": ids, "text_mask": mask, "image": pixels}
    )


def keep(folder, config, method, params, **meta):
    """A run's checkpoint, and what it measured."""
    checkpoints = Checkpoints(folder / "checkpoints")
    meta = {
        "config": to_json(config),
        "tokenizer": TOKENIZER.files(),
        "seeds": [0],
        "shapes": {"image": [16, 16, 3], "text": [LENGTH]},
        "encoders": [slot._asdict() for slot in method.encoders],
        **meta,
    }
    checkpoints.save(3, {"step": jnp.int32(3), "params": params}, meta)
    checkpoints.close()
    (folder / "result.json").write_text(json.dumps({"metrics": {"image_to_text/recall@1": 0.25}}))
    return folder


def moved(params):
    """As training would have left them."""
    rng = np.random.default_rng(5)
    draw = lambda x: jnp.asarray(np.asarray(x) + (0.1 * rng.normal(size=x.shape)).astype(x.dtype))
    return jax.tree.map(draw, params)


@pytest.fixture(scope="module", params=["plain", "lora"])
def clip(request, tmp_path_factory):
    """A contrastive run of CLIP's towers, what it exported, and its own similarities."""
    root = tmp_path_factory.mktemp("clip")
    text = {**made.CLIP["text_config"], **WORDS, "eos_token_id": TOKENIZER.eos_id}
    heads = {"text": "project", "image": "project"}
    folder = f"hf:{made.write_folder(root / 'start', {**made.CLIP, 'text_config': text}, heads, TOKENIZER)}"
    lora = LoRA(rank=2 if request.param == "lora" else 0)
    config, pretrained = resolve_pretrained(Config(text_encoder=folder, image_encoder=folder, lora=lora))
    method = make_contrastive(config.model, ("text", "image"), vocab_size=TOKENIZER.vocab_size)
    method = pretrained.attach(method, TOKENIZER)
    batch = batch_of()
    params = moved(method.load_pretrained(random_params(method.init, jax.random.key(0), batch), batch))
    run = keep(root / "run", config, method, params, modalities=["text", "image"], max_length=LENGTH)
    written = export_run(run, root / "out")
    assert set(written) == {"parameters", "text", "image", "clip", "run.json"}
    finalized = method.finalize_params(params) if method.finalize_params else params
    found = jax.tree.map(np.asarray, jax.jit(method.predict)(finalized, batch))
    scale = np.exp(finalized["loss"]["log_scale"])
    return root / "out", batch, finalized, scale * found["text"] @ found["image"].T


def scaled(image):
    """Pixels from -1 to 1."""
    return np.asarray(image).astype(np.float32) / np.float32(127.5) - 1


def normalized(batch, folder):
    """Pixels as the exported processor says."""
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["rescale_factor"] == 1 / 255 and processor["size"] == {"shortest_edge": 16}
    assert processor["do_center_crop"] and processor["crop_size"] == {"height": 16, "width": 16}
    mean, std = np.array(processor["image_mean"]), np.array(processor["image_std"])
    pixels = (np.asarray(batch["image"]) * processor["rescale_factor"] - mean) / std
    return peers.to_torch(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def test_clip_gives_the_same_similarities(clip):
    torch, transformers = peers.import_transformers()
    out, batch, _, similarities = clip
    model = transformers.CLIPModel.from_pretrained(out / "clip", trust_remote_code=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "clip", trust_remote_code=False)
    words = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            pixel_values=normalized(batch, out / "clip"),
        )
    peers.assert_close(similarities, theirs.logits_per_text, "similarities")
    assert tokenizer.model_max_length == LENGTH and tokenizer.eos_token_id == TOKENIZER.eos_id


def test_clip_comes_back(clip):
    """What was exported is a start for another run, and the same model."""
    out, batch, finalized, similarities = clip
    folder = f"hf:{out / 'clip'}"
    config, pretrained = resolve_pretrained(Config(text_encoder=folder, image_encoder=folder))
    method = pretrained.attach(
        make_contrastive(config.model, ("text", "image"), vocab_size=TOKENIZER.vocab_size), TOKENIZER
    )
    params = method.load_pretrained(random_params(method.init, jax.random.key(1), batch), batch)
    for (name, ours), back in zip(trees.flat(finalized).items(), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, back, err_msg=name)
    again = load_hf_tokenizer(out / "clip")
    for ours, back in zip(
        TOKENIZER.encode_batch(CAPTIONS, LENGTH), again.encode_batch(CAPTIONS, LENGTH), strict=True
    ):
        np.testing.assert_array_equal(ours, back)


def test_the_towers_of_clip_on_their_own(clip):
    torch, transformers = peers.import_transformers()
    out, batch, finalized, similarities = clip
    text = transformers.CLIPTextModelWithProjection.from_pretrained(
        out / "text", trust_remote_code=False
    ).eval()
    image = transformers.CLIPVisionModelWithProjection.from_pretrained(
        out / "image", trust_remote_code=False
    ).eval()
    with torch.no_grad():
        a = text(
            peers.to_torch(batch["text"]).long(), attention_mask=peers.to_torch(batch["text_mask"])
        ).text_embeds
        b = image(normalized(batch, out / "image")).image_embeds
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    peers.assert_close(similarities / np.exp(finalized["loss"]["log_scale"]), a @ b.T, "cosines")


def test_plain_parameters_and_the_card(clip):
    out, _, finalized, _ = clip
    arrays = load_file(out / "parameters" / "model.safetensors")
    for name, leaf in trees.flat(finalized).items():
        np.testing.assert_array_equal(arrays.pop(name), leaf)
    assert not arrays
    card = (out / "clip" / "README.md").read_text()
    assert "| image_to_text/recall@1 | 0.25 |" in card and "library_name: transformers" in card


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioner")
    vit = made.write_folder(root / "vit", made.VIT, {"image": "pool"})
    config, pretrained = resolve_pretrained(TextGenerationConfig(image_encoder=f"hf:{vit}"))
    decoder = dataclasses.replace(config.model.decoder, width=12, heads=3, depth=2)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    method = make_seq2seq(config.model, "image", vocab_size=TOKENIZER.vocab_size, length=LENGTH)
    method = pretrained.attach(method, TOKENIZER)
    batch = batch_of()
    params = moved(method.load_pretrained(random_params(method.init, jax.random.key(0), batch), batch))
    run = keep(root / "run", config, method, params, source="image", target="text", length=LENGTH)
    written = export_run(run, root / "out")
    assert set(written) == {"parameters", "image", "captioner", "run.json"}
    return root / "out", config, pretrained, batch, params


def test_a_captioner_gives_the_same_logits_and_texts(captioner):
    torch, transformers = peers.import_transformers()
    from xmodal_jax.models.towers import make_encoder

    out, config, _, batch, params = captioner
    model = transformers.VisionEncoderDecoderModel.from_pretrained(
        out / "captioner", trust_remote_code=False
    ).eval()
    pixels = normalized(batch, out / "captioner")
    with torch.no_grad():
        theirs = model(pixel_values=pixels, decoder_input_ids=peers.to_torch(batch["text"]).long()).logits
    encoder = make_encoder("image", config.model.image, batch, vocab_size=0)
    tokens = jax.jit(encoder.apply)({"params": params["image"]}, scaled(batch["image"]))
    decoder = build_decoder(config.model.decoder, vocab_size=TOKENIZER.vocab_size, max_length=LENGTH)
    decode = jax.jit(lambda ids: decoder.apply({"params": params["decoder"]}, ids, tokens))
    ours = decode(batch["text"])
    peers.assert_close(ours, theirs, "logits")
    with torch.no_grad():
        written = model.generate(pixels, max_length=6, num_beams=1, do_sample=False).numpy()
    ids = np.zeros((4, LENGTH), np.int32)  # of one length: what follows has no influence
    ids[:, 0] = TOKENIZER.bos_id
    for k in range(5):
        ids[:, k + 1] = np.argmax(np.asarray(decode(ids))[:, k], axis=-1)
    ids = ids[:, :6]
    for ours_row, row in zip(ids, written, strict=True):
        end = next((k for k, i in enumerate(ours_row) if i == TOKENIZER.eos_id and k), len(row))
        np.testing.assert_array_equal(ours_row[: end + 1][: len(row)], row[: end + 1])


def test_an_encoder_on_its_own(captioner):
    torch, transformers = peers.import_transformers()
    from xmodal_jax.models.towers import make_encoder

    out, config, _, batch, params = captioner
    model = transformers.ViTModel.from_pretrained(
        out / "image", trust_remote_code=False, add_pooling_layer=False
    ).eval()
    with torch.no_grad():
        theirs = model(normalized(batch, out / "image")).last_hidden_state
    encoder = make_encoder("image", config.model.image, batch, vocab_size=0)
    ours = jax.jit(encoder.apply)({"params": params["image"]}, scaled(batch["image"]))
    peers.assert_close(ours.values, theirs, "tokens")


def test_a_decoder_of_another_width_is_refused(captioner, tmp_path):
    out, config, _, batch, params = captioner
    decoder = dataclasses.replace(config.model.decoder, width=9)
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    method = make_seq2seq(config.model, "image", vocab_size=TOKENIZER.vocab_size, length=LENGTH)
    run = keep(tmp_path / "run", wider, method, params, source="image", target="text", length=LENGTH)
    with pytest.raises(ValueError, match="the encoder has 12, the decoder 9"):
        export_run(run, tmp_path / "out")


LAYERS = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=17)
SPEECH = {key: value for key, value in made.WAV2VEC2.items() if key != "model_type"}
PICTURES = dict(image_size=16, patch_size=8, **LAYERS)
SIGLIP = dict(max_position_embeddings=9, vocab_size=31, projection_size=12, **LAYERS)
ALONE = {
    "Bert": ("text", "pool", dict(vocab_size=31, **LAYERS)),
    "Roberta": ("text", "pool", dict(vocab_size=31, **LAYERS)),
    "ViT": ("image", "pool", PICTURES),
    "Dinov2": (
        "image",
        "pool",
        dict(image_size=16, patch_size=8, hidden_size=12, num_hidden_layers=2, num_attention_heads=3),
    ),
    "ResNet": ("image", "pool", dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])),
    "SiglipVision": ("image", "project", PICTURES),
    "SiglipText": ("text", "project", SIGLIP),
    "Wav2Vec2": ("audio", "none", SPEECH),
    "Hubert": ("audio", "none", SPEECH),
    "VideoMAE": ("video", "none", dict(num_frames=4, use_mean_pooling=False, **PICTURES)),
}


@pytest.mark.parametrize("name", ALONE)
def test_every_parameter_comes_back(name, tmp_path):
    torch, transformers = peers.import_transformers()
    modality, head, sizes = ALONE[name]
    kind = getattr(transformers, f"{name}Model")
    model = kind(getattr(transformers, f"{name}Config")(**sizes))
    found = peers.load(peers.save(model, tmp_path / "theirs"), modality, head)
    trained = TrainedEncoder(modality, found.module, found.params, found.config)
    save_encoder(tmp_path / "ours", trained, card="# A model")
    back, told = kind.from_pretrained(tmp_path / "ours", trust_remote_code=False, output_loading_info=True)
    assert not told["unexpected_keys"]
    # What has no part in the encoder's results is not read, so that it cannot be written.
    ignored = ("mask_token", "masked_spec_embed", "num_batches_tracked")
    assert all(key.endswith(ignored) for key in told["missing_keys"]), told["missing_keys"]
    after = back.state_dict()
    for key, value in model.state_dict().items():
        if not key.endswith((*ignored, "weight.original0", "weight.original1")):
            torch.testing.assert_close(after[key], value, rtol=1e-6, atol=1e-6, msg=key)
    if modality == "audio":  # of a weight norm the product counts, which has many factors
        ours, theirs = (m.encoder.pos_conv_embed.conv.weight for m in (back, model))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [f"{name}Model"]


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    place = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt), create_folder(place) as part:
        (part / "file").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with create_folder(place) as part:
        (part / "file").write_text("whole")
    with pytest.raises(FileExistsError, match="is there already"), create_folder(place):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] and (place / "file").read_text() == "whole"
