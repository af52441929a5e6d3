"""A small run of each kind with random parameters, inputs of its programs, and what the library makes of them."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

from tests.inference import test_autoencoders, test_fusion, test_generation, test_vocoder
from tests.inference.runs import COLOURS, save_run, save_text_run
from tests.support import random_params
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.deploy import export_formats
from xmodal_jax.deploy.programs import input_fields, prepare_inputs
from xmodal_jax.evaluation.vocoder import pad_frames
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.gan import ClassCondition
from xmodal_jax.models.seq2seq import GreedySearchConfig
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.models.vae.multimodal_models import MVTCAEConfig
from xmodal_jax.nets.encoders import AudioTransformerConfig, ConvNetConfig, TextTransformerConfig

COUNT = 3
RATE, SAMPLES = 1000, 2000


def save_contrastive(folder):
    """Texts, pictures and sounds in one space."""
    tokenizer = train_tokenizer(COLOURS, "word")
    prepare = FittedTransforms(TokenizeTransform(tokenizer, 5))
    model = ContrastiveConfig(
        embed_dim=8, image=ConvNetConfig(width=8, norm="group"),
        text=TextTransformerConfig(width=16, depth=1, heads=2),
        audio=AudioTransformerConfig(width=16, depth=1, heads=2, downsample=4),
        features=AudioFeatures(mels=5, window=64, hop=16, sample_rate=RATE),
    )  # fmt: skip
    modalities = ("text", "image", "audio")
    method = make_contrastive(model, modalities, vocab_size=tokenizer.vocab_size)
    tokens, mask = tokenizer.encode_batch(["red"], 5)
    batch = {
        "text": tokens, "text_mask": mask, "image": np.zeros((1, 8, 8, 3), np.uint8),
        "audio": np.zeros((1, SAMPLES), np.int16), "audio_mask": np.ones((1, SAMPLES), bool),
        "index": np.arange(1),
    }  # fmt: skip
    params = random_params(method.init, jax.random.key(0), batch)
    shapes = {name: x.shape[1:] for name, x in batch.items()}
    options = {"sample_rate": RATE, "max_seconds": SAMPLES / RATE}
    return save_run(
        folder, {"model": model, "input": options, "batch_size": 16, "seed": 0}, params, kind="contrastive",
        modalities=modalities, shapes=shapes, **prepare.metadata,
    )  # fmt: skip


def save_captioner(folder):
    """Pictures to texts."""
    return save_text_run(folder, "image", "captioning", {"image": np.zeros((1, 8, 8, 3), np.uint8)})


def save_images(folder):
    """Pictures of two classes."""
    names = ["cat", "dog"]
    return test_generation.draw_from(folder, ClassCondition(), classes=2, class_names=names).path


def save_fusion(folder):
    """Answers to questions about pictures."""
    return test_fusion.save_fusion(folder, ("text", "image"), test_fusion.ANSWERS)


def save_autoencoder(folder):
    """A multimodal VAE of pictures, texts, sounds and vectors."""
    return test_autoencoders.save(folder, MVTCAEConfig(**test_autoencoders.SMALL))


RUNS = {
    "contrastive": save_contrastive,
    "captioning": save_captioner,
    "text_to_image_gan": save_images,
    "text_to_image_flow": test_generation.save_text_flow,
    "fusion": save_fusion,
    "multimodal_vae": save_autoencoder,
    "speech_synthesis": test_generation.save_speaker,
    "vocoder": test_vocoder.save_vocoder,
}
"""What saves a run of each kind. Speech recognition and VAEs of one modality have the programs of captioning and of
multimodal VAEs."""
TEXTS = ["red", "blue", "green red"]


def pictures(side):
    """Pixels of some pictures."""
    return [np.random.default_rng(k).integers(0, 256, (side, side, 3)).astype(np.uint8) for k in range(COUNT)]


def sounds(rate):
    """Recordings of some lengths."""
    return [
        (np.random.default_rng(k).integers(-9000, 9000, 700 + 9 * k).astype(np.int16), rate)
        for k in range(COUNT)
    ]


def fields(model, **inputs):
    """The inputs of a program, as the library prepares them; sounds followed by zeros up to the program's length."""
    batch = prepare_inputs(model, model.read(inputs).batch(np.arange(COUNT)))
    padded = {}
    for modality in inputs:
        for name, field in input_fields(model, modality).items():
            padded[name] = np.zeros((COUNT, *field.shape), field.dtype)
            padded[name][:, : batch[name].shape[1]] = batch[name]
    return padded


def presence(model):
    """That all examples have all modalities."""
    return {f"present_{m}": np.ones(COUNT, bool) for m in model.format.modalities}


def of_contrastive(model):
    inputs = {"text": TEXTS, "image": pictures(8), "audio": sounds(RATE)}
    return {
        f"encode_{m}": (fields(model, **{m: x}), {"embedding": model.embed(**{m: x})})
        for m, x in inputs.items()
    }


def of_captioner(model):
    inputs = fields(model, image=pictures(8))
    texts = model.caption(pictures(8), GreedySearchConfig())
    return {"encode": (inputs, {}), "generate": (inputs, {"texts": texts})}


def of_images(model):
    noise = np.random.default_rng(0).normal(size=(COUNT, model.noise)).astype(np.float32)
    labels = np.array([0, 1, 0], np.int32)
    pixels = np.stack(
        [np.asarray(x) for x in model.synthesize([model.class_names[k] for k in labels], noise=noise)]
    )
    return {"generate": ({"noise": noise, "label": labels}, {"pixels": pixels})}


def of_flow(model):
    texts = ["red", "blue", "green red"]
    noise = np.random.default_rng(0).normal(size=(COUNT, model.noise)).astype(np.float32)
    pixels = np.stack([np.asarray(x) for x in model.synthesize(texts, noise=noise)])
    values = fields(model, text=texts)
    state = noise.reshape(COUNT, *model.flow.shape)
    time = np.array([0.0, 0.3, 0.9], np.float32)
    velocity = model.flow.velocity(
        model.params, jax.tree.map(jnp.asarray, values), jnp.asarray(state), jnp.asarray(time)
    )
    return {
        "generate": ({"noise": noise, **values}, {"pixels": pixels}),
        "velocity": ({"state": state, "time": time, **values}, {"velocity": velocity}),
    }


def of_fusion(model):
    inputs = {"text": ["is it blue", "what colour", "the red star"], "image": pictures(11)}
    missing = {"text": inputs["text"], "image": [*inputs["image"][:2], None]}
    values = fields(model, **inputs) | presence(model)
    values["present_image"] = np.array([True, True, False])
    return {"classify": (values, {"answer": model.classify(**missing)["answer"].scores})}


def of_autoencoder(model):
    _, held = test_autoencoders.arrays(COUNT)
    values = fields(model, **held) | presence(model)
    missing = held | {"audio": [None, *held["audio"][1:]]}
    values["present_audio"] = np.array([False, True, True])
    latents = model.encode(**missing)
    decoded = model.decode(latents)
    return {
        "encode": (values, {"latents": latents}),
        "decode": ({"latents": latents}, {"image": np.stack([np.asarray(x) for x in decoded["image"]])}),
    }


def of_speaker(model):
    values = fields(model, text=["red", "blue", "green red"]) | {"speaker": np.array([0, 1, 1], np.int32)}
    spoken = model.synthesize(["red", "blue", "green red"], ["anna", "bert", "bert"])
    return {"synthesize": (values, {"lengths": [len(wave) for wave, _ in spoken]})}


def of_vocoder(model):
    frames = [x[:40] for x in test_vocoder.log_mels(COUNT)]
    length = input_fields(model, "audio")["audio"].shape[0] // model.config.features.hop + 1
    values = pad_frames(frames, length, model.config.floor)
    waves = [wave for wave, _ in model.decode(frames)]
    waveform = np.zeros((COUNT, (length - 1) * model.config.features.hop), np.float32)
    for padded, wave in zip(waveform, waves, strict=True):
        padded[: len(wave)] = wave
    inputs = {"log_mel": values["audio"], "log_mel_mask": values["audio_mask"]}
    return {"decode": (inputs, {"waveform": waveform})}


CASES = {
    "contrastive": of_contrastive,
    "captioning": of_captioner,
    "text_to_image_gan": of_images,
    "text_to_image_flow": of_flow,
    "fusion": of_fusion,
    "multimodal_vae": of_autoencoder,
    "speech_synthesis": of_speaker,
    "vocoder": of_vocoder,
}
"""For each kind of run, ``cases(model)``: by program its inputs, and the library's results for them through its public
methods, which pad batches and compile programs of their own."""


def check(kind, model, program, outputs, expected, atol):
    """Compares the outputs of an exported program with the library's results."""
    for name, value in expected.items():
        if name == "texts":
            tokenizer = model.format.transform.tokenizer
            assert tokenizer.decode_batch(outputs["ids"], outputs["ids_mask"]) == value
        elif name == "pixels":
            pixels = np.clip(np.round((outputs["image"] + 1) * 127.5), 0, 255)
            np.testing.assert_allclose(pixels, value, atol=1)
        elif name == "lengths":
            assert outputs["waveform_mask"].sum(axis=1).tolist() == value
        elif value.dtype == np.uint8:
            np.testing.assert_allclose(outputs[name].astype(int), value.astype(int), atol=1)
        else:
            np.testing.assert_allclose(outputs[name], value, atol=atol, rtol=0)


def export_with_symbols(run, folder, **options):
    """`export_formats` without the types that tests check at run time: the size of a batch is a symbol there, and no
    ``int``."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        export_formats(run, folder, **options)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
