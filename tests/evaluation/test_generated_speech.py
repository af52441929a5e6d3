"""Speech of models written by hand, whose loudness is the class, and a recogniser that hears how loud it is."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.painters import CLASSES, CONFIG, END, FRAMES, explore, of_the_first, perfect, source
from xmodal_jax.evaluation.generated_speech import SpeechEvaluator, speech_metrics
from xmodal_jax.evaluation.latent_data import LatentData

NAMES = ("image", "text", "audio")
WORDS = ("", "", "red", "green", "blue", "white", "black")
LABELS = [0, 3, 1, 2, 0, 2, 3]


def sentence(ids):
    """The words up to the end."""
    ids = list(ids)
    return " ".join(WORDS[i] for i in ids[: ids.index(END)])


def latent_data(names=NAMES):
    decode_batch = lambda ids, mask: [sentence(row) for row in ids]
    tokenize = types.SimpleNamespace(tokenizer=types.SimpleNamespace(decode_batch=decode_batch))
    return LatentData(**dict.fromkeys(LatentData._fields))._replace(modalities=names, tokenize=tokenize)


def loudness(wave):
    return np.log(np.sqrt(np.mean(np.square(wave))))


@pytest.fixture(scope="module")
def recognizer():
    """Says the two words of the class whose recording is nearest in loudness."""
    frames = jnp.broadcast_to(-2.0 * jnp.arange(CLASSES)[:, None, None], (CLASSES, FRAMES, 5))
    known = np.array([loudness(wave) for wave in np.clip(CONFIG.audio.waveforms(frames), -1, 1)])
    assert np.all(np.diff(known) < -0.25)

    def transcribe(waves):
        classes = [int(np.abs(known - loudness(wave)).argmin()) for wave in waves]
        return [f"{WORDS[c + 2]} {WORDS[c + 3]}" for c in classes]

    return transcribe


def evaluate(recognizer, policy, data=None, draws=5, names=NAMES):
    evaluator = explore(names, policy)
    shared = np.asarray(evaluator.vae.sample_prior({}, evaluator.key, draws))
    speech = SpeechEvaluator(recognizer, CONFIG, latent_data(names))
    return speech(evaluator, {}, source(names, LABELS) if data is None else data, shared)


def test_a_perfect_model_says_what_is_meant(recognizer):
    speech = evaluate(recognizer, perfect)
    assert list(speech) == ["image", "text", "others", "reconstruction", "recordings", "joint"]
    metrics = speech_metrics(speech)
    assert metrics["speech_from_text/wer"] == metrics["speech_joint/cer"] == 0.0
    assert len(metrics) == 12 and set(metrics.values()) == {0.0}
    assert speech["text"].texts == [f"{WORDS[c + 2]} {WORDS[c + 3]}" for c in LABELS]
    assert len(speech["joint"].waves) == 5 and max(np.abs(speech["joint"].waves[0])) <= 1.0


def test_words_count_that_speech_gets_wrong(recognizer):
    """A model that only looks at the picture says red green without it, the words of class 0. Class 1 is green blue: a
    word left out and one put in."""
    metrics = speech_metrics(evaluate(recognizer, of_the_first))
    assert metrics["speech_from_image/wer"] == metrics["speech_from_others/wer"] == 0.0
    wrong = sum({0: 0, 1: 2, 2: 2, 3: 2}[c] for c in LABELS)
    assert metrics["speech_from_text/wer"] == wrong / (2 * len(LABELS))
    assert metrics["speech_reconstruction/wer"] == wrong / (2 * len(LABELS))
    assert metrics["speech_recordings/wer"] == 0.0


def test_only_complete_examples_are_used(recognizer):
    there = np.array([True, False, True, True, False, True, True])
    data = source(NAMES, LABELS, present={"text": there})
    speech = evaluate(recognizer, perfect, data)
    assert len(speech["image"].waves) == there.sum()
    assert set(evaluate(recognizer, perfect, source(NAMES, LABELS, present={"text": there & False}))) == {
        "joint"
    }


@pytest.mark.parametrize("names", [("image", "text"), ("image", "audio")])
def test_data_without_speech_or_its_words_are_refused(recognizer, names):
    with pytest.raises(ValueError, match=f"--recogniser needs.*{names[0]}, {names[1]}: leave it out"):
        SpeechEvaluator(recognizer, CONFIG, latent_data(names))


def test_a_limit_on_the_examples(recognizer):
    evaluator = explore(NAMES, perfect)
    speech = SpeechEvaluator(recognizer, CONFIG, latent_data())
    result = speech(evaluator, {}, source(NAMES, LABELS), np.zeros((9, 2)), examples=3)
    assert {name: len(each.waves) for name, each in result.items()} == dict.fromkeys(result, 3)
    assert result["text"].transcripts[-1] == f"{WORDS[LABELS[-1] + 2]} {WORDS[LABELS[-1] + 3]}"
