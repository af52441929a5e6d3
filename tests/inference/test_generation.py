"""Captioners, recognisers, synthesisers and generators of pictures on new data."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.inference.runs import COLOURS, plain_picture, png_bytes, save_run, save_text_run
from tests.models.gan.test_method import CONFIG as GAN
from tests.models.gan.test_method import WORDS_ALONE
from tests.support import random_params
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.evaluation.text import LanguageModelConfig
from xmodal_jax.inference import load
from xmodal_jax.inference.model import RestoredRun
from xmodal_jax.inference.speech import SpeechSynthesizer
from xmodal_jax.models.flow import AdaptiveSampler, FlowConfig, HeunSampler, WordsCondition, make_flow
from xmodal_jax.models.gan import ClassCondition, make_gan
from xmodal_jax.models.gan.conditions import NoCondition
from xmodal_jax.models.seq2seq import SamplingConfig
from xmodal_jax.models.speech import ProsodyStatistics, SpeechConfig, make_speech, make_synthesizer
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.nets.dit import DiTConfig
from xmodal_jax.nets.encoders import MLPEncoderConfig, TextTransformerConfig
from xmodal_jax.nets.gan import MLPGeneratorConfig
from xmodal_jax.train.checkpoint import RestoredCheckpoint
from xmodal_jax.train.run import Run


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    example = {"image": np.zeros((1, 8, 8, 3), np.uint8)}
    return load(save_text_run(tmp_path_factory.mktemp("captioner"), "image", "captioning", example))


def test_captions_do_not_depend_on_how_pictures_are_held(captioner):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (12, 9, 3)).astype(np.uint8)) for _ in range(5)]
    captions = captioner.caption(pictures)
    assert len(captions) == 5 and all(isinstance(caption, str) for caption in captions)
    assert captioner.caption([png_bytes(picture) for picture in pictures]) == captions
    assert captioner.caption(pictures[2]) == captions[2:3]
    assert captioner.caption([]) == []
    assert "caption(" in captioner.describe()


def test_a_decoding_of_ones_own_is_used(captioner):
    picture = plain_picture("red")
    drawn = {captioner.caption([picture] * 16, SamplingConfig(temperature=3.0))[k] for k in range(16)}
    assert len(drawn) > 1 and len(set(captioner.caption([picture] * 16))) == 1


def test_recordings_of_any_length_are_transcribed(tmp_path):
    example = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    recognizer = load(save_text_run(tmp_path, "audio", "speech_recognition", example))
    rng = np.random.default_rng(0)
    sounds = [(rng.normal(0, 0.1, n).clip(-1, 1).astype(np.float32), 8000) for n in (4000, 30_000)]
    texts = recognizer.transcribe(sounds)
    assert len(texts) == 2 and texts[0] == recognizer.transcribe(sounds[0])[0]  # padding has no influence


NEW_OPTIONS = {"pitch", "energy", "prosody_weight", "min_pitch", "max_pitch", "statistics"}
"""Options that configurations of earlier runs lack."""


def save_speaker(folder, **options):
    """A speech synthesiser of two voices with random parameters."""
    tokenizer = train_tokenizer(COLOURS, "word")
    model = SpeechConfig(
        text=TextTransformerConfig(width=16, depth=1, heads=2), features=AudioFeatures(mels=8),
        statistics=ProsodyStatistics(voice_pitch=(4.8, 5.2)), **options,
    )  # fmt: skip
    method = make_speech(model, vocab_size=tokenizer.vocab_size, length=6, speakers=2)
    tokens, mask = tokenizer.encode_batch(["red blue"], 6)
    batch = {
        "text": tokens, "text_mask": mask, "speaker": np.zeros(1, np.int32), "index": np.arange(1),
        "audio": np.zeros((1, 20, 8), np.float32), "audio_mask": np.ones((1, 20), bool),
        "pitch": np.zeros((1, 20), np.float32), "energy": np.zeros((1, 20), np.float32),
    }  # fmt: skip
    params = random_params(method.init, jax.random.key(0), batch)
    return save_run(
        folder, {"model": model}, params, kind="speech_synthesis", source="text", target="audio", frames=20,
        speakers=("anna", "bert"), tokenizer=tokenizer.files(), length=6, shapes={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    return load(save_speaker(tmp_path_factory.mktemp("speaker")))


def test_texts_are_spoken_by_the_voices(speaker):
    (first, rate), (second, _) = speaker.synthesize(["red", "red"], ["anna", "bert"])
    assert rate == 16_000 and first.ndim == 1 and first.dtype == np.float32
    ((alone, _),) = speaker.synthesize("red", "bert")
    np.testing.assert_allclose(alone, second, atol=0.01)  # the vocoder amplifies rounding
    assert len(first) != len(second) or np.abs(first - second).max() > 0.05
    assert speaker.synthesize([]) == [] and "anna, bert" in speaker.describe()
    for mistake, message in [
        (lambda: speaker.synthesize("red", "carl"), "no voice 'carl'; the voices are anna, bert"),
        (lambda: speaker.synthesize(["red"], ["anna", "bert"]), "1 texts and 2 voices"),
        (lambda: speaker.synthesize("red", speed=0.0), "speed must be positive"),
        (lambda: speaker.synthesize("red", pitch=float("nan")), r"pitch must lie in -24\.\.24 semitones"),
        (lambda: speaker.synthesize("red", energy=50), r"energy must lie in -40\.\.40 decibels"),
        (lambda: speaker.synthesize(["red", "red"], pitch=[1, 2, 3]), "one for each of 2 texts"),
        (
            lambda: speaker.synthesize("red", speed="fast"),
            "speed is a number or a list of numbers, got 'fast'",
        ),
        (lambda: speaker.synthesize("red red red red red red"), "up to 6 tokens, this one has 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            mistake()


def test_controls_are_those_of_each_text(speaker):
    (plain, _), (high, _), (slow, _) = speaker.synthesize(
        ["red"] * 3, "bert", pitch=[0, 5, 0], speed=[1, 1, 0.4]
    )
    ((alone, _),) = speaker.synthesize("red", "bert", pitch=5.0)
    np.testing.assert_allclose(alone, high, atol=0.01)
    assert len(high) == len(plain) <= len(slow) and np.abs(high - plain).max() > 0.01


def test_speech_longer_than_that_of_training_is_whole(speaker):
    """Slow speech has more frames than the longest recording of training, 20; the texts beside it stay as they are."""
    texts, speed = ["red", "red blue green", "blue"], [1.0, 0.1, 1.0]
    slow = speaker.synthesize(texts, "bert", speed=speed)
    hop, longest = speaker.config.features.hop, speaker.metadata["frames"]
    tokenize = speaker.format.transform.tokenize
    sizes = dict(vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length, speakers=2)
    synthesize = make_synthesizer(speaker.config, frames=1000, waveforms=False, **sizes)  # more than enough
    ids, mask = tokenize.tokenizer.encode_batch(texts, tokenize.max_length)
    batch = {"text": ids, "text_mask": mask, "speaker": np.ones(3, np.int32), "index": np.arange(3)}
    batch = jax.tree.map(jnp.asarray, batch | {"speed": np.float32(speed)})
    expected = synthesize(speaker.params, batch).frame_mask.sum(axis=1).tolist()
    assert longest < expected[1] <= 8 * longest
    assert [len(wave) // hop for wave, _ in slow] == expected
    plain = speaker.synthesize(texts, "bert")
    for row in (0, 2):
        np.testing.assert_array_equal(slow[row][0], plain[row][0])
    with pytest.warns(UserWarning, match=r"the speech of text 1 is longer than 2\.0 s, 8 times the longest"):
        (_, (cut, _)) = speaker.synthesize(texts[:2], "bert", speed=[1.0, 0.001])
    assert len(cut) == (8 * longest - 1) * hop  # a waveform ends in the middle of its last frame


def test_unknown_words_are_spoken_with_a_warning(speaker):
    with pytest.warns(UserWarning, match=r"has words that the run was not trained on \('zebra'\)"):
        speaker.synthesize("red zebra")
    with pytest.raises(ValueError, match="vocoder is a loaded one"):
        speaker.synthesize("red", vocoder="runs/vocoder")


def test_a_recording_is_spoken_by_another_voice(speaker):
    time = np.arange(3000) / 16_000
    tone = (0.5 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)
    ((wave, rate),) = speaker.convert((tone, 16_000), "red", "bert")
    assert rate == 16_000 and len(wave) == 16 * 200  # the frames of the recording, 200 samples each
    assert speaker.convert([], []) == []
    for mistake, message in [
        (lambda: speaker.convert([(tone, 16_000)], ["red", "blue"]), "1 recordings and 2 texts"),
        (lambda: speaker.convert((tone[:100], 16_000), "red blue"), "too short for its text"),
        (lambda: speaker.convert((np.tile(tone, 3), 16_000), "red"), r"audio 0 has 0.56 s, .* up to 0.24 s"),
    ]:
        with pytest.raises(ValueError, match=message):
            mistake()


def test_a_run_from_before_pitch_and_energy_is_read(tmp_path):
    speaker = load(save_speaker(tmp_path, pitch=False, energy=False))
    checkpoint = {k: v for k, v in speaker.metadata["config"]["model"].items() if k not in NEW_OPTIONS}
    metadata = speaker.metadata | {"config": speaker.metadata["config"] | {"model": checkpoint}}
    restored = RestoredCheckpoint(speaker.params, metadata, speaker.step)
    old = SpeechSynthesizer(RestoredRun(tmp_path, restored))
    assert old.config.prosody == ()
    ((wave, _),) = old.synthesize("red", "bert")
    np.testing.assert_array_equal(wave, speaker.synthesize("red", "bert")[0][0])
    with pytest.raises(ValueError, match=r"trained without pitch.*--model\.pitch"):
        old.synthesize("red", pitch=1.0)


def draw_from(folder, condition, **sizes):
    """A generator of pictures with random parameters."""
    config = dataclasses.replace(
        GAN,
        condition=condition,
        discriminator=MLPEncoderConfig(width=8),
        generator=MLPGeneratorConfig(noise=5, width=8),
    )
    gan = make_gan(config, shape=(8, 8, 3), classes=sizes["classes"])
    params, variables = random_params(gan.init, jax.random.key(0), {})
    metadata = {
        "kind": "text_to_image_gan",
        "source": "text",
        "target": "image",
        "shape": (8, 8, 3),
        "shapes": {},
    }
    return load(save_run(folder, {"model": config}, params, variables=variables, **metadata, **sizes))


def save_text_gan(folder):
    """A generator of pictures from texts with random parameters."""
    tokenizer = train_tokenizer(COLOURS, "word")
    config = dataclasses.replace(
        GAN,
        condition=WORDS_ALONE,
        discriminator=MLPEncoderConfig(width=8),
        generator=MLPGeneratorConfig(noise=5, width=8),
    )
    sizes = {"vocab_size": tokenizer.vocab_size, "length": 5, "classes": 0}
    gan = make_gan(config, shape=(8, 8, 3), **sizes)
    params, variables = random_params(gan.init, jax.random.key(0), {})
    return save_run(
        folder, {"model": config}, params, variables=variables, kind="text_to_image_gan", source="text",
        target="image", shape=(8, 8, 3), shapes={}, tokenizer=tokenizer.files(), **sizes,
    )  # fmt: skip


def save_text_flow(folder, sampler=None):
    """A flow from texts to pictures with random parameters."""
    tokenizer = train_tokenizer(COLOURS, "word")
    config = FlowConfig(
        condition=WordsCondition(text=TextTransformerConfig(width=8, depth=1, heads=2)),
        network=DiTConfig(width=8, depth=1, heads=2),
        sampler=sampler or HeunSampler(steps=3, guidance=2.0),
    )
    sizes = {"vocab_size": tokenizer.vocab_size, "length": 5, "classes": 0}
    params = random_params(make_flow(config, shape=(8, 8, 3), **sizes).init, jax.random.key(0), {})
    return save_run(
        folder, {"model": config}, params, kind="text_to_image_flow", source="text", target="image",
        shape=(8, 8, 3), shapes={"image": (8, 8, 3)}, tokenizer=tokenizer.files(), **sizes,
    )  # fmt: skip


def test_a_flow_with_adaptive_steps_edits_and_inpaints(tmp_path):
    """Inpainting takes fixed steps, which can keep what is known."""
    flow = load(save_text_flow(tmp_path, AdaptiveSampler(guidance=2.0, tolerance=0.1)))
    red = np.full((8, 8, 3), (200, 0, 0), np.uint8)
    assert (np.asarray(flow.edit([red], ["blue"], strength=0.0)[0]) == red).all()
    assert (np.asarray(flow.edit([red], ["blue"])[0]) != red).any()
    filled = np.asarray(flow.inpaint([red], np.arange(64).reshape(8, 8) % 8 < 3, ["blue"])[0])
    assert (filled[:, 3:] == red[:, 3:]).all() and (filled[:, :3] != red[:, :3]).any()


def test_a_flow_synthesizes_edits_and_inpaints(tmp_path):
    flow = load(save_text_flow(tmp_path))
    assert "inpaint(images, mask" in flow.describe()
    red, blue = flow.synthesize(["red", "blue"], seed=3)
    assert red.size == (8, 8) and red.tobytes() != blue.tobytes()
    assert flow.synthesize(["red", "blue"], seed=3)[1].tobytes() == blue.tobytes()
    assert flow.edit(red, "blue", strength=0.0)[0].tobytes() == red.tobytes()
    assert flow.edit(red, "blue", strength=0.5)[0].tobytes() != red.tobytes()
    mask = np.zeros((8, 8), bool)
    mask[:, :3] = True
    filled = np.asarray(flow.inpaint([red, red], mask, ["blue", "red"])[0])
    assert (filled[:, 3:] == np.asarray(red)[:, 3:]).all() and (filled[:, :3] != np.asarray(red)[:, :3]).any()
    assert flow.edit([], []) == []
    message = r"'a zzz' .and 1 further texts. has words that the run was not trained on \(.*'zzz', 'qqq'\)"
    with pytest.warns(UserWarning, match=message) as caught:
        flow.synthesize(["red", "a zzz", "qqq"])
    assert [warning.filename for warning in caught] == [__file__]  # the user's line
    for mistake, message in [
        (lambda: flow.edit(red, "blue", strength=1.5), "strength must lie in"),
        (lambda: flow.edit([red, red], ["blue"]), "2 images and 1 conditions"),
        (
            lambda: flow.inpaint(red, np.zeros((3, 3)), "blue"),
            r"mask is an array of the shape \(3, 3\), needed is",
        ),
        (
            lambda: flow.inpaint(red, "mask.png", "blue"),
            r"mask is 'mask.png', needed is an array of booleans",
        ),
        (lambda: flow.edit(red), "toward texts: give one for each image as conditions$"),
        (lambda: flow.inpaint(red, mask), "toward texts: give one for each image as conditions$"),
    ]:
        with pytest.raises(ValueError, match=message):
            mistake()


def test_pictures_of_classes_and_of_noise_alone(tmp_path):
    of_classes = draw_from(tmp_path / "classes", ClassCondition(), classes=2, class_names=["cat", "dog"])
    cats = of_classes.synthesize(["cat", "cat", "dog"], seed=1)
    assert [picture.size for picture in cats] == [(8, 8)] * 3
    assert (np.asarray(cats[0]) != np.asarray(cats[1])).any()  # other noise
    noise = np.zeros((1, of_classes._generate.noise))
    cat, dog = (np.asarray(of_classes.synthesize(name, noise=noise)[0]) for name in ("cat", "dog"))
    assert (cat != dog).any() and (cat == np.asarray(of_classes.synthesize("cat", noise=noise)[0])).all()
    free = draw_from(tmp_path / "free", NoCondition(), classes=0)
    assert len(free.synthesize()) == 1 and len(free.synthesize(count=3)) == 3
    for mistake, message in [
        (lambda: of_classes.synthesize("cow"), "no class 'cow'; the classes are cat, dog"),
        (lambda: of_classes.synthesize(), "from the classes cat, dog: give a list of them as conditions"),
        (lambda: of_classes.synthesize("cat", count=2), "as conditions, and no count"),
        (lambda: free.synthesize("cat"), "from noise alone: give their number as count, and no conditions"),
        (lambda: free.synthesize(count=-1), "count must be at least 0"),
        (lambda: free.synthesize(count=2, noise=noise), r"noise has the shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            mistake()


def test_a_recogniser_writes_what_its_language_model_says(tmp_path):
    """The language model of the run is kept in its folder; with a large weight only its texts are written."""
    (tmp_path / "lines.txt").write_text("green\n" * 20)
    language = LanguageModelConfig(tmp_path / "lines.txt", order=3, weight=1000.0)
    example = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    saved = save_text_run(tmp_path / "run", "audio", "speech_recognition", example, language=language)
    tokenize = TokenizeTransform(train_tokenizer(COLOURS, "word"), 5)
    run = mock.create_autospec(Run, instance=True, path=saved)
    run.write_later.side_effect = lambda write: write()
    language.fit(tokenize, run)
    run.print.assert_not_called()
    (tmp_path / "lines.txt").unlink()  # the run does not need it any more
    sounds = [np.random.default_rng(k).normal(0, 0.1, 1600).astype(np.float32) for k in range(3)]
    assert load(saved).transcribe([(sound, 16_000) for sound in sounds]) == ["green"] * 3
    plain = load(save_text_run(tmp_path / "plain", "audio", "speech_recognition", example))
    assert plain.transcribe([(sound, 16_000) for sound in sounds]) != ["green"] * 3


def test_a_language_model_says_which_lines_it_cannot_learn_whole(tmp_path):
    (tmp_path / "lines.txt").write_text("green\nzebra green\nred red red red red red\n")
    run = mock.create_autospec(Run, instance=True, path=tmp_path)
    LanguageModelConfig(tmp_path / "lines.txt").fit(
        TokenizeTransform(train_tokenizer(COLOURS, "word"), 5), run
    )
    printed = [call.args[0] for call in run.print.call_args_list]
    assert len(printed) == 2 and all("of 3 lines of --language.lines" in line for line in printed)
    assert printed[0].endswith("have words that the tokenizer does not know") and printed[0].startswith(
        "note: 1 "
    )
    assert printed[1].endswith("are cut to 5 tokens") and printed[1].startswith("note: 1 ")


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_the_weight_of_a_language_model_is_a_number(weight):
    with pytest.raises(ValueError, match="must be finite and 0 or more"):
        LanguageModelConfig(weight=weight)
