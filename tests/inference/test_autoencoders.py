"""Latent spaces of trained autoencoders on new data."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.inference.runs import plain_picture, png_bytes, save_run
from tests.pretrained import checkpoints
from tests.support import random_params
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.data.standardise import FeatureStatistics, StandardiseTransform
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.evaluation.matching_density import fit_flow_matching, save_density
from xmodal_jax.inference import load
from xmodal_jax.inference.outputs import OutputFormat
from xmodal_jax.models.speech import log_mel_transform
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.models.vae.modalities import (
    AudioConfig,
    ImageConfig,
    ModalityConfigs,
    SeriesConfig,
    TextConfig,
    VectorConfig,
    as_batch,
    sizes_of,
)
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import (
    MMVAEPlusConfig,
    MMVMConfig,
    MVTCAEConfig,
    NexusConfig,
)
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import AAEConfig, AEConfig, CVAEConfig, VAEConfig
from xmodal_jax.nets.decoders import FrameDecoderConfig, MLPDecoderConfig, ParallelDecoderConfig
from xmodal_jax.nets.encoders import (
    AudioTransformerConfig,
    MLPEncoderConfig,
    PretrainedEncoderConfig,
    TextTransformerConfig,
    VectorMLPConfig,
)
from xmodal_jax.transfer.autoencoders import LatentConfig, use_pretrained_encoders

LENGTH, RATE, SAMPLES = 7, 1009, 1311
D, MLP = 5, MLPDecoderConfig(width=8, depth=1)
SMALL = dict(
    latent=D,
    hidden=8,
    image=ImageConfig(MLPEncoderConfig(width=8, depth=1), MLP),
    text=TextConfig(
        TextTransformerConfig(width=8, depth=1, heads=2), ParallelDecoderConfig(width=8, depth=1, heads=2)
    ),
    audio=AudioConfig(
        AudioTransformerConfig(width=8, depth=1, heads=2, downsample=8),
        FrameDecoderConfig(width=8),
        spectrogram=AudioFeatures(mels=5, window=64, hop=16, sample_rate=RATE),
    ),
    vector=VectorConfig(VectorMLPConfig(width=8, depth=1), MLP),
    series=SeriesConfig(decoder=MLP),
)
STATISTICS = {"vector": FeatureStatistics((30.0, 2.0, 7.0), (10.0, 0.5, 0.0), ("age", "weight", "constant"))}
TOKENIZER = train_tokenizer(["a red star", "two blue rings"], "word")
MODALITIES = ("image", "text", "audio", "vector")
RNG = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained(LatentConfig):
    model: MVTCAEConfig = MVTCAEConfig(**SMALL)


def arrays(count, modalities=MODALITIES):
    """Prepared examples as training has them, and the same as people hold them."""
    waves = np.zeros((count, SAMPLES), np.int16)
    mask = np.arange(SAMPLES) < (601 + 7 * np.arange(count))[:, None]
    waves[mask] = RNG.integers(-9000, 9000, mask.sum())
    texts = [["a red star", "two blue rings", "red"][k % 3] for k in range(count)]
    numbers = np.stack([RNG.normal(30, 10, count), RNG.normal(2, 0.5, count), np.full(count, 7.0)], axis=1)
    raw = {
        "image": RNG.integers(0, 256, (count, 11, 11, 3)).astype(np.uint8), "audio": waves, "audio_mask": mask,
        "caption": np.array(texts, object), "vector": numbers, "index": np.arange(count, dtype=np.int32),
    }  # fmt: skip
    batch = TRANSFORM(log_mel_transform(SMALL["audio"].spectrogram, SMALL["audio"].floor)(raw))
    batch.pop("caption")
    held = {
        "image": list(raw["image"]),
        "audio": [(wave[m], RATE) for wave, m in zip(waves, mask, strict=True)],
        "text": texts,
        "vector": list(numbers),
    }
    kept = lambda fields: {
        k: v for k, v in fields.items() if k.removesuffix("_mask") in (*modalities, "index")
    }
    return kept(batch), kept(held)


TRANSFORM = FittedTransforms(TokenizeTransform(TOKENIZER, LENGTH), StandardiseTransform(STATISTICS))


def save(
    folder,
    config,
    modalities=MODALITIES,
    classes=0,
    class_names=None,
    kind="multimodal_vae",
    image=(11, 11, 3),
):
    """A run with random parameters; ``image``: the shape of its images, of all image modalities."""
    batch, _ = arrays(1)
    batch |= {m: np.zeros((1, *image), np.uint8) for m in modalities if m.startswith("image")}
    sizes = sizes_of(batch, modalities, config, vocab_size=TOKENIZER.vocab_size, classes=classes)
    as_json = {m: [*s.shape, s.values] for m, s in sizes.items()}
    if kind == "vae":
        method = make_vae(config, modalities[0], sizes[modalities[0]], classes=classes).method
        own = {"modality": modalities[0], "size": as_json[modalities[0]]}
        batch = batch | {"label": np.zeros(1, np.int32)}
    else:
        method = make_multimodal_vae(config, sizes).method
        own = {"modalities": modalities, "sizes": as_json}
    params = random_params(method.init, jax.random.key(0), batch)
    shapes = {k: v.shape[1:] for k, v in batch.items()}
    data = LatentData(
        modalities,
        class_names,
        classes,
        None,
        None,
        None,
        None,
        None,
        TRANSFORM.tokenize,
        TRANSFORM.standardise,
    )
    variables = None
    if isinstance(params, tuple):  # a GAN's
        params, variables = params
    options = {"sample_rate": RATE, "max_seconds": SAMPLES / RATE}
    return save_run(
        folder, {"model": config, "input": options}, params, variables, kind=kind, shapes=shapes, **own,
        **data.metadata,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save(tmp_path_factory.mktemp("multimodal"), MVTCAEConfig(**SMALL))


@pytest.fixture(scope="module")
def model(run):
    return load(run)


def test_latents_are_those_of_the_method_in_training(model):
    """Also of sounds, whose frames were computed once of waveforms padded to the longest."""
    batch, held = arrays(5)
    vae = make_multimodal_vae(model.config, model.sizes)
    infer = jax.jit(lambda params, batch, observed: vae.infer(params, batch, observed, None).shared)
    all_observed, sound = np.ones(4, bool), np.array([m == "audio" for m in vae.modalities])
    expected = infer(model.params, batch, np.stack([all_observed, sound]))[:, 0]
    latents = model.encode(**held)
    assert latents.shape == (5, D) and model.dim == D
    np.testing.assert_allclose(latents, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.encode(audio=held["audio"]), expected[1], rtol=1e-4, atol=1e-5)
    for k in range(0, 5, 2):
        one = {m: x[k] if m != "vector" else x[k : k + 1] for m, x in held.items()}
        np.testing.assert_allclose(model.encode(**one)[0], latents[k], rtol=1e-4, atol=1e-5)


def test_what_is_missing_has_no_influence(model):
    _, held = arrays(3)
    image, text = held["image"], held["text"]
    latents = model.encode(image=[image[0], None], text=[None, text[1]])
    np.testing.assert_allclose(latents[0], model.encode(image=image[0])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(latents[1], model.encode(text=text[1])[0], rtol=1e-4, atol=1e-5)
    # The field of a missing modality holds zeros; other content there changes nothing.
    source = model._read({"image": image}, None)
    batch = model.prepare(source.batch(np.arange(3)))
    spoiled = {**batch, "vector": batch["vector"] + 3, "audio": batch["audio"] - 2, "text": batch["text"] + 1}
    infer = lambda batch: jax.jit(model.encode_batch, static_argnums=2)({"model": model.params}, batch, None)
    batch, spoiled = ({**x, "index": np.arange(3, dtype=np.int32)} for x in (batch, spoiled))
    drop = lambda batch: {k: v for k, v in batch.items() if k != "caption"}
    np.testing.assert_array_equal(infer(drop(batch)), infer(drop(spoiled)))


def test_outputs_are_what_people_hold(model):
    """Pixels, tokens, numbers and sounds are those of the method."""
    batch, held = arrays(3)
    outputs = model.reconstruct(**held)
    vae = make_multimodal_vae(model.config, model.sizes)

    def reconstruct(params, batch):
        z = vae.infer(params, batch, np.ones(4, bool), None).z
        return jax.tree.map(lambda x: x[0], vae.decode(params, z, None))

    expected = jax.device_get(jax.jit(reconstruct)(model.params, batch))
    ends = (
        as_batch(model.config, {"audio": jax.numpy.asarray(expected["audio"])})["audio_mask"]
        .sum(axis=1)
        .tolist()
    )
    ends = np.minimum(ends, SAMPLES // 16)
    for k in range(3):
        picture = np.asarray(outputs["image"][k])
        assert picture.dtype == np.uint8
        assert np.abs(picture - expected["image"][k] * 255.0).max() <= 0.51
        ids = expected["text"][k].tolist()
        ids = ids[: ids.index(TOKENIZER.eos_id)] if TOKENIZER.eos_id in ids else ids
        assert outputs["text"][k] == TOKENIZER.decode([i for i in ids if i != TOKENIZER.pad_id])
        numbers = expected["vector"][k] * [10.0, 0.5, 0.0] + [30.0, 2.0, 7.0]
        np.testing.assert_allclose(outputs["vector"][k], numbers, rtol=1e-4)
        wave, rate = outputs["audio"][k]
        assert rate == RATE and wave.shape == (ends[k] * 16,) and np.abs(wave).max() <= 1
    one = model.reconstruct(**{m: x[:1] for m, x in held.items()})
    np.testing.assert_allclose(one["vector"][0], outputs["vector"][0], rtol=1e-4)
    assert np.abs(np.asarray(one["image"][0]).astype(int) - np.asarray(outputs["image"][0])).max() <= 1


def test_a_series_shorter_than_those_of_training(tmp_path):
    """The same latents as in training, where it was padded; what is generated has all steps, in the data's unit."""
    statistics = {"series": FeatureStatistics((5.0, -3.0), (2.0, 0.1))}
    prepare = FittedTransforms(None, StandardiseTransform(statistics))
    short = RNG.normal((5.0, -3.0), (2.0, 0.1), (4, 2))
    padded = {"series": np.full((1, 7, 2), 99.0), "series_mask": np.arange(7)[None] < 4}
    padded["series"][0, :4] = short
    batch = prepare(padded) | {"index": np.zeros(1, np.int32)}
    config = VAEConfig(**SMALL)
    size = sizes_of(batch, ("series",), config)["series"]
    vae = make_vae(config, "series", size)
    params = random_params(vae.method.init, jax.random.key(0), batch)
    run = save_run(
        tmp_path, {"model": config}, params, kind="vae", modality="series", size=[*size.shape, size.values], classes=0,
        shapes={"series": (7, 2)}, standardisation=prepare.standardise.to_json(),
    )  # fmt: skip
    model = load(run)
    latents = jax.jit(vae.encode)(params, batch)
    np.testing.assert_allclose(model.encode(series=short), latents, rtol=1e-4, atol=1e-5)
    (series,) = model.reconstruct(series=[short])["series"]
    expected = np.asarray(jax.jit(vae.decode)(params, latents))[0] * [2.0, 0.1] + [5.0, -3.0]
    np.testing.assert_allclose(series, expected, rtol=1e-4)


def test_units_go_there_and_back():
    numbers = np.array([[31.0, 1.7, 7.0], [12.0, 2.4, 7.0]])
    standard = TRANSFORM({"vector": numbers})
    format = OutputFormat(ModalityConfigs(), TRANSFORM, ("cat", "dog"))
    np.testing.assert_allclose(format.to_outputs("vector", standard), numbers, rtol=1e-6)
    assert format.to_outputs("label", {"label": np.array([1, 0])}) == ["dog", "cat"]
    grey = format.to_outputs("image", {"image": np.full((1, 3, 5, 1), 9, np.uint8)})[0]
    assert grey.size == (5, 3) and grey.mode == "L"
    red = format.to_outputs("image", {"image": np.full((1, 3, 5, 3), (255, 0, 0), np.uint8)})[0]
    assert red.getpixel((0, 0)) == (255, 0, 0)


def test_a_tone_is_heard_as_it_was():
    """Through log-mel frames and back: the loudest frequency stays."""
    rate, config = 16_000, AudioConfig()
    tone = (9000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.int16)[None]
    frames = log_mel_transform(config.spectrogram, config.floor)({"audio": tone})["audio"]
    ((wave, held_rate),) = OutputFormat(ModalityConfigs(), TRANSFORM).to_outputs("audio", {"audio": frames})
    assert held_rate == rate and wave.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(wave))
    assert abs(np.fft.rfftfreq(len(wave), 1 / rate)[spectrum.argmax()] - 440) < 30


def test_any_modality_from_any_others(model):
    _, held = arrays(3)
    texts = model.translate("text", image=held["image"], vector=held["vector"])
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    assert texts == model.reconstruct(image=held["image"], vector=held["vector"])["text"]
    several = model.translate("vector", text=held["text"], count=3, seed=1)
    assert np.shape(several) == (3, 3, 3) and np.ptp(several, axis=1)[:, :2].min() > 0
    np.testing.assert_array_equal(several, model.translate("vector", text=held["text"], count=3, seed=1))
    assert np.any(several != np.array(model.translate("vector", text=held["text"], count=3, seed=2)))
    ((picture,),) = model.translate("image", text="a red star", count=1)
    assert isinstance(picture, Image.Image) and picture.size == (11, 11)
    named = model.translate("vector", vector={"weight": 2.5, "age": 40.0})
    np.testing.assert_allclose(named, model.translate("vector", vector=[[40.0, 2.5, np.nan]]), rtol=1e-6)


def test_samples_of_the_posterior_scatter_about_its_mean(model):
    mean, samples = model.encode(text="red")[0], model.encode(text="red", samples=64, seed=3)[:, 0]
    assert samples.shape == (64, D)
    error = samples.std(axis=0) / 8
    assert (np.abs(samples.mean(axis=0) - mean) < 5 * error).all() and error.min() > 0


def test_samples_of_the_prior(model):
    three, five = model.sample(3, seed=4), model.sample(5, seed=4)
    np.testing.assert_allclose(three["vector"], five["vector"][:3], rtol=1e-4)
    assert three["text"] == five["text"][:3] and len(model.sample()["image"]) == 1
    assert set(three) == set(MODALITIES) and np.ptp(five["vector"], axis=0)[:2].min() > 0


def test_lines_and_traversals(model):
    start, end = model.encode(text=["red", "two blue rings"])
    line = model.interpolate(start, {"text": "two blue rings"}, 5)
    np.testing.assert_allclose(line["vector"][0], model.decode(start[None])["vector"][0], rtol=1e-4)
    np.testing.assert_allclose(
        line["vector"][2], model.decode((start + end)[None] / 2)["vector"][0], rtol=1e-4
    )
    np.testing.assert_allclose(line["vector"][4], model.decode(end[None])["vector"][0], rtol=1e-3)
    varied = model.traverse({"text": "red"}, [1, 4], [-2.0, 0.5, 3.0])
    assert np.shape(varied["vector"]) == (2, 3, 3) and len(varied["image"][1]) == 3
    changed = start.copy()
    changed[4] = 3.0
    np.testing.assert_allclose(varied["vector"][1][2], model.decode(changed[None])["vector"][0], rtol=1e-3)


def test_no_inputs_have_no_outputs(model):
    assert model.encode(text=[]).shape == (0, D) and model.encode(text=[], samples=3).shape == (3, 0, D)
    nothing = {m: [] for m in MODALITIES}
    assert model.reconstruct(image=[]) == nothing == model.decode(np.zeros((0, D))) == model.sample(0)
    assert model.translate("image", text=[]) == [] and model.interpolate(np.zeros(D), np.ones(D), 2)


def test_a_run_that_was_moved_works(run, model, tmp_path):
    moved = load(shutil.copytree(run, tmp_path / "elsewhere"))
    picture = png_bytes(plain_picture("red", (30, 20)))
    np.testing.assert_array_equal(moved.encode(image=picture), model.encode(image=picture))
    text = moved.describe()
    for words in ("translate(target", "latent dimensions: 5", "11 x 11 pixels", "at most 1.29931 s"):
        assert words in text


@pytest.mark.parametrize(
    "config",
    [MMVAEPlusConfig(**SMALL, private=3), NexusConfig(**SMALL, top=3)],
    ids=lambda config: config.name,
)
def test_latents_beside_the_shared_ones(tmp_path, config):
    """Private latents are the mean of their prior, or drawn; a latent above the others has its own dimensions."""
    model = load(save(tmp_path, config, ("image", "vector")))
    latents = model.encode(vector=[[30.0, 2.0, 7.0]])
    assert latents.shape == (1, model.dim) and model.dim == (3 if config.name == "nexus" else D)
    numbers = [model.decode(latents, seed=seed)["vector"][0][:2] for seed in (None, None, 1, 1, 2)]
    np.testing.assert_array_equal(numbers[0], numbers[1])
    np.testing.assert_array_equal(numbers[2], numbers[3])
    assert (numbers[2] != numbers[4]).all() and (numbers[0] != numbers[2]).all()
    assert len(model.sample(2)["image"]) == 2 and np.shape(
        model.translate("vector", vector=np.ones((1, 3)))
    ) == (1, 3)


@pytest.mark.parametrize("learn_prior", [False, True])
def test_a_conditional_model_takes_classes(tmp_path, learn_prior):
    config = CVAEConfig(**SMALL, learn_prior=learn_prior)
    model = load(save(tmp_path, config, ("image",), classes=2, class_names=("cat", "dog"), kind="vae"))
    assert model.class_names == ("cat", "dog") and "classes: cat, dog" in model.describe()
    batch, held = arrays(2)
    latents = model.encode(image=held["image"], classes=["dog", "cat"])
    vae = make_vae(config, "image", model.sizes["image"], classes=2)
    labelled = {**batch, "label": np.array([1, 0], np.int32)}
    np.testing.assert_allclose(latents, jax.jit(vae.encode)(model.params, labelled), rtol=1e-4, atol=1e-5)
    decoded = np.asarray(model.decode(latents[:1], classes="cat")["image"][0])
    expected = jax.jit(vae.decode)(model.params, latents[:1], np.array([0]))[0] * 255.0
    assert np.abs(decoded - expected).max() <= 0.51
    assert (decoded != np.asarray(model.decode(latents[:1], classes="dog")["image"][0])).any()
    assert len(model.sample(classes=["cat", "dog", "cat"])["image"]) == 3
    assert len(model.sample(3, classes="dog")["image"]) == 3
    prior = jax.jit(vae.sample_prior, static_argnums=2)(model.params, jax.random.key(6), 1, np.array([1]))
    sampled = np.asarray(model.sample(classes="dog", seed=6)["image"][0])
    assert np.abs(sampled - np.asarray(model.decode(np.asarray(prior), classes="dog")["image"][0])).max() <= 1
    reconstructed = model.reconstruct(image=held["image"], classes="cat")["image"]
    assert (
        len(reconstructed) == 2
        and len(model.traverse(latents[0], [0], [1, 2], classes="cat")["image"][0]) == 2
    )
    for mistake, message in [
        (lambda: model.encode(image=held["image"]), "conditional: give the classes, of cat, dog"),
        (lambda: model.sample(classes="cow"), "no class 'cow'; the classes are cat, dog"),
        (lambda: model.encode(image=held["image"], classes=["cat"]), "2 examples and 1 classes"),
    ]:
        with pytest.raises(ValueError, match=message):
            mistake()


@pytest.mark.parametrize(
    "config", [AEConfig(**SMALL), AAEConfig(**SMALL), VAEConfig(**SMALL)], ids=lambda c: c.name
)
def test_only_a_model_with_a_prior_samples(tmp_path, config):
    model = load(save(tmp_path, config, ("text",), kind="vae"))
    assert ("sample" in model.actions) == config.has_prior == ("sample(" in model.describe())
    assert not hasattr(model, "translate") and model.encode(text=["red", "a red star"]).shape == (2, D)
    assert len(model.reconstruct(text="red")["text"]) == 1
    if config.has_prior:
        assert len(model.sample(2)["text"]) == 2
    else:
        with pytest.raises(ValueError, match="no prior to sample from: nothing in the training of 'ae'"):
            model.sample(2)


def test_a_multimodal_model_without_a_prior_translates(tmp_path):
    model = load(save(tmp_path, MMVMConfig(**SMALL), ("image", "vector")))
    assert "sample" not in model.actions and "translate" in model.actions
    with pytest.raises(ValueError, match="no prior to sample from: nothing in the training of 'mmvm'"):
        model.sample(2)
    picture = png_bytes(plain_picture("red", (30, 20)))
    assert model.dim == D and np.shape(model.translate("vector", image=picture, count=3)) == (1, 3, 3)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda m: m.encode(), "at least one modality: image, text, audio, vector"),
        (lambda m: m.encode(video=[b""]), "no modality 'video'; it has image, text"),
        (lambda m: m.encode(image=["missing.png"]), r"image 0 \(missing.png\): No such file"),
        (lambda m: m.encode(text=["a", "b"], image=[b""] * 3), "same number of inputs"),
        (lambda m: m.encode(text=["a", None]), "example 1 has none of"),
        (lambda m: m.encode(text="a", classes="cat"), "is not conditional: it takes no classes"),
        (lambda m: m.decode(np.zeros(D)), r"latents have the shape \[N, 5\], got \(5,\)"),
        (lambda m: m.translate("sound", text="a"), "no modality 'sound' to translate into; it has image"),
        (lambda m: m.translate("text", text="a", count=0), "count must be at least 1"),
        (lambda m: m.interpolate("a", "b"), r"latents of the shape \(5,\) or an example by modality"),
        (lambda m: m.interpolate({"text": ["a", "b"]}, np.zeros(D)), "one example is needed, got 2"),
        (lambda m: m.interpolate(np.zeros(D), np.zeros(D), 1), "steps must be at least 2"),
        (lambda m: m.encode(text="a", samples=0), "samples must be at least 1"),
        (lambda m: m.decode(np.full((2, D), np.nan)), "the latents hold NaN or infinity"),
        (lambda m: m.sample(-1), "count must be at least 0"),
        (lambda m: m.traverse(np.zeros(D), [5], [0.0]), "no dimension 5: they are numbered from 0 to 4"),
    ],
)
def test_mistakes_are_explained(model, mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake(model)


def test_pretrained_encoders_need_their_folder_no_more(tmp_path):
    """They are in the checkpoint, whose configuration holds their architecture."""
    words = dict(vocab_size=TOKENIZER.vocab_size)
    folders = {
        "text_encoder": checkpoints.write_folder(
            tmp_path / "bert", {**checkpoints.BERT, **words}, {"text": "pool"}, TOKENIZER
        ),
        "image_encoder": checkpoints.write_folder(tmp_path / "vit", checkpoints.VIT, {"image": "pool"}),
    }
    config = Pretrained(**{name: f"hf:{folder}" for name, folder in folders.items()})
    config, _ = use_pretrained_encoders(config)
    run = save(tmp_path / "run", config.model, ("image", "text"), image=(16, 24, 3))
    for folder in folders.values():
        shutil.rmtree(folder)
    model = load(run)
    assert isinstance(model.config.image.encoder, PretrainedEncoderConfig)
    picture = RNG.integers(0, 256, (16, 24, 3)).astype(np.uint8)
    assert model.encode(image=picture, text="a red star").shape == (1, D)
    assert model.translate("image", text="red")[0].size == (24, 16)


def test_samples_of_the_density_that_the_run_fitted(tmp_path):
    """Latents of two far apart clusters: what is decoded is what `decode` makes of the density's samples."""
    model = load(save(tmp_path, MMVMConfig(**SMALL), ("image", "vector")))
    latents = np.random.default_rng(0).normal(size=(300, D)) + 9.0 * np.arange(D)
    density = fit_flow_matching(latents, seed=0, steps=2, width=8, depth=1)
    save_density(model.path, model.params, density)
    model = load(tmp_path)
    assert "sample" in model.actions
    samples = model.sample(3, seed=4)
    expected = model.decode(density.sample(4, 4)[:3], seed=4)
    np.testing.assert_array_equal(samples["vector"], expected["vector"])
    np.testing.assert_array_equal(
        model.sample(2, density="flow_matching", seed=4)["vector"], samples["vector"][:2]
    )
    np.testing.assert_array_equal(np.asarray(samples["image"][2]), np.asarray(expected["image"][2]))
    with pytest.raises(ValueError, match="has no prior to sample from"):
        model.sample(2, density="prior")
    with pytest.raises(ValueError, match="density must be prior or flow_matching, got 'mixture'"):
        model.sample(2, density="mixture")
    (file,) = (tmp_path / "densities").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    for damaged in (content, b"no archive", b""):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file.name} is damaged"):
            load(tmp_path)
    # The density of other parameters, such as those of another seed, is not taken.
    file.rename(file.with_name(f"{'0' * 32}.npz"))
    assert "sample" not in load(tmp_path).actions


def test_a_model_with_a_prior_samples_either(tmp_path):
    model = load(save(tmp_path, MVTCAEConfig(**SMALL), ("image", "vector")))
    with pytest.raises(ValueError, match="keeps no density of its latents"):
        model.sample(2, density="flow_matching")
    latents = 50.0 + np.random.default_rng(0).normal(size=(300, D))
    save_density(tmp_path, model.params, fit_flow_matching(latents, seed=0, steps=1, width=8, depth=1))
    both = load(tmp_path)
    prior, fitted = (
        both.sample(2, seed=1)["vector"],
        both.sample(2, seed=1, density="flow_matching")["vector"],
    )
    np.testing.assert_array_equal(prior, model.sample(2, seed=1, density="prior")["vector"])
    assert not np.allclose(prior, fitted)
