"""Speech from text: losses, gradients, learned durations, and what is spoken."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support import LAYOUTS, assert_device_invariant, assert_resumes, random_params
from xmodal_jax.models.speech import (
    ProsodyStatistics,
    SpeechConfig,
    make_converter,
    make_speech,
    make_synthesizer,
    precompute_speech,
)
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.nets.encoders import TextTransformerConfig
from xmodal_jax.train.optim import Optimizer, make_optimizer
from xmodal_jax.train.step import make_init, make_step

VOCAB, LENGTH, FRAMES, MELS = 7, 5, 29, 8
CONFIG = SpeechConfig(
    text=TextTransformerConfig(width=16, depth=1, heads=2, dropout=0.1),
    decoder_depth=1, kernel=3, dropout=0.1, mean=0.0, scale=1.0, vocoder_iterations=4,
    features=AudioFeatures(sample_rate=4000, mels=MELS, window=64, hop=16), min_pitch=100.0,
    statistics=ProsodyStatistics(pitch_mean=5.3, pitch_scale=0.3, energy_mean=0.5, energy_scale=1.0),
)  # fmt: skip
SIZES = dict(vocab_size=VOCAB, length=LENGTH, speakers=2)
LASTS = np.array([0, 3, 5, 2, 7, 4, 6])
"""Frames of each token."""
LOUDNESS = 0.5
PITCH = np.array([0, 0, 150, 200, 250, 180, 220])
"""Pitch of each token in Hz; the first one is not voiced."""


def make_batch(n=16, seed=0):
    """Each token sounds in its own band, for its own time, at its own pitch; the second voice is louder, higher."""
    rng = np.random.default_rng(seed)
    text, audio = np.zeros((n, LENGTH), np.int32), np.zeros((n, FRAMES, MELS), np.float32)
    mask, speaker = np.zeros((n, FRAMES), bool), rng.integers(0, 2, n).astype(np.int32)
    pitch, energy = np.zeros((2, n, FRAMES), np.float32)
    for row in range(n):
        tokens = rng.permutation(np.arange(1, VOCAB))[: rng.integers(2, LENGTH + 1)]
        frames = np.repeat(tokens, LASTS[tokens])
        text[row, : len(tokens)] = tokens
        audio[row, np.arange(len(frames)), frames] = 1.0 + speaker[row]
        mask[row, : len(frames)] = True
        # Of each utterance by chance, so that the decoder has to listen to them.
        pitch[row, : len(frames)] = PITCH[frames] * (1 + 0.3 * speaker[row]) * rng.uniform(0.7, 1.4)
        energy[row, : len(frames)] = 0.2 * frames + speaker[row] + rng.uniform(-1, 1)
    # No token sounds in the first band and in the last one: they hold pitch and energy.
    audio[:, :, 0], audio[:, :, -1] = (
        LOUDNESS * np.log(np.where(pitch > 0, pitch, 100) / 100),
        LOUDNESS * energy / 2,
    )
    fields = dict(text=text, text_mask=text != 0, audio=audio, audio_mask=mask, speaker=speaker)
    fields |= dict(pitch=pitch, energy=energy)
    return {**fields, "index": np.arange(n, dtype=np.int32)}


on_device = jax.device_put


@pytest.mark.parametrize("layouts", [[("sharded", 4, 2)], pytest.param(LAYOUTS, marks=pytest.mark.slow)])
def test_the_devices_do_not_change_the_result(layouts):
    batch = make_batch()
    batch["present"] = {"audio": np.arange(16) != 3, "text": np.arange(16) != 5}
    method = make_speech(CONFIG, **SIZES)
    assert_device_invariant(method, batch, layouts=layouts, together=layouts != LAYOUTS)


def test_a_stopped_run_ends_bit_identical(tmp_path):
    arrays = {k: v for k, v in make_batch(n=24).items() if k != "index"}
    assert_resumes(make_speech(CONFIG, **SIZES), arrays, tmp_path, optimizer=Optimizer(name="adamw"))


def test_what_is_missing_or_padded_has_no_influence_and_no_gradient():
    method, batch = make_speech(CONFIG, **SIZES), make_batch()
    batch["present"] = {"audio": np.arange(16) != 3, "text": np.arange(16) != 5}
    params = random_params(method.init, jax.random.key(0), batch)
    learn = jax.jit(jax.value_and_grad(lambda p, b: method.loss(p, b, jax.random.key(1))[0]))
    loss = lambda p, b: learn(p, b)[0]
    usual = loss(params, on_device(batch))
    for field, row in (
        ("audio", 3), ("text", 3), ("audio", 5), ("text", 5), ("speaker", 3), ("pitch", 3), ("energy", 5),
    ):  # fmt: skip
        changed = {**batch, field: batch[field].copy()}
        changed[field][row] = 1 - changed[field][row]
        assert loss(params, on_device(changed)) == usual, (field, row)
    behind = {**batch, "audio": np.where(batch["audio_mask"][:, :, None], batch["audio"], 5.0)}
    assert loss(params, on_device(behind)) == usual
    for field in ("pitch", "energy"):
        behind = {**batch, field: np.where(batch["audio_mask"], batch[field], 300.0)}
        assert loss(params, on_device(behind)) == usual, field
    behind = {**batch, "text": np.where(batch["text_mask"], batch["text"], 3)}
    assert loss(params, on_device(behind)) == usual
    nobody = {**batch, "present": {"audio": np.zeros(16, bool), "text": np.ones(16, bool)}}
    value, grads = learn(params, on_device(nobody))
    assert value == 0 and not any(np.any(g) for g in jax.tree.leaves(jax.device_get(grads)))


def test_a_text_longer_than_its_speech_is_counted_and_left_out():
    method, batch = make_speech(CONFIG, **SIZES), make_batch()
    batch["audio_mask"] = batch["audio_mask"].copy()
    batch["audio_mask"][2] = np.arange(FRAMES) < batch["text_mask"][2].sum() - 1
    params = random_params(method.init, jax.random.key(0), batch)
    loss = jax.jit(lambda p, b: method.loss(p, b, jax.random.key(1)))
    value, aux = loss(params, on_device(batch))
    assert np.isfinite(value) and aux["unaligned"] == pytest.approx(1 / 16)
    changed = {**batch, "audio": batch["audio"].copy()}
    changed["audio"][2] += 1.0
    assert loss(params, on_device(changed))[0] == value


@pytest.fixture(scope="module")
def trained():
    config = dataclasses.replace(CONFIG, dropout=0.0, text=dataclasses.replace(CONFIG.text, dropout=0.0))
    method, optimizer = make_speech(config, **SIZES), Optimizer(name="muon", learning_rate=2e-2)
    tx = make_optimizer(optimizer, 200)
    step = jax.jit(make_step(method, tx, optimizer), donate_argnums=0)
    state = jax.jit(make_init(method, tx, optimizer))(jax.random.key(0), on_device(make_batch()))
    for seed in range(200):
        state, metrics = step(state, on_device(make_batch(seed=seed)))
    assert step._cache_size() == 1
    return config, method, state.params, metrics


def test_learns_how_long_each_token_lasts_without_being_told(trained):
    _, method, params, metrics = trained
    batch = make_batch(seed=1000)
    found = jax.jit(method.predict)(params, on_device(batch))
    content, true = batch["text_mask"], LASTS[batch["text"]]
    # Evenly split, 0.2 of the tokens would be right, being LASTS' own mean; so many are after alignment.
    assert (np.asarray(found.durations) == true)[content].mean() > 0.95
    assert np.abs(np.asarray(found.predicted_durations) - true)[content].mean() < 0.5
    # A frame has one loud band of eight, of 1 or 2: silence would be off by 1.5 / 8.
    assert np.asarray(found.error).mean() < 0.09
    assert metrics["unaligned"] == 0


def test_speaks_each_token_in_its_band_and_ends(trained):
    config, _, params, _ = trained
    batch = make_batch(seed=1001)
    speak = jax.jit(make_synthesizer(config, frames=FRAMES + 3, **SIZES))
    inputs = on_device({k: batch[k] for k in ("text", "text_mask", "speaker", "index")})
    said = speak(params, inputs)
    durations = np.asarray(said.durations)
    content, true = batch["text_mask"], LASTS[batch["text"]]
    assert np.abs(durations - true)[content].mean() < 0.5 and not durations[~content].any()
    np.testing.assert_array_equal(said.frame_mask.sum(axis=1), durations.sum(axis=1))
    np.testing.assert_array_equal(said.mask.sum(axis=1), durations.sum(axis=1) * config.features.hop)
    waves = np.asarray(said.waveform)
    assert not waves[~np.asarray(said.mask)].any() and np.abs(waves).max() <= 1
    # The bands of tokens, without those of pitch and energy.
    bands = 1 + np.asarray(said.log_mel)[:, :, 1:-1].argmax(axis=2)[np.asarray(said.frame_mask)]
    wanted = np.concatenate(
        [np.repeat(text, own) for text, own in zip(batch["text"], durations, strict=True)]
    )
    assert (bands == wanted).mean() > 0.7  # of eight bands; what is near the edge of a token is blurred


def test_who_speaks_and_how_fast(trained):
    config, _, params, _ = trained
    batch = on_device({k: v for k, v in make_batch(seed=1002).items() if k in ("text", "index")})
    loud, speak = {}, jax.jit(make_synthesizer(config, frames=FRAMES, **SIZES))
    for who in (0, 1):
        said = jax.device_get(speak(params, {**batch, "speaker": np.full(16, who, np.int32)}))
        loud[who] = said.log_mel.max(axis=2)[said.frame_mask].mean()
    assert loud[1] - loud[0] > 0.5  # 1 in truth
    batch["speaker"] = np.ones(16, np.int32)
    fast = speak(params, {**batch, "speed": np.full(16, 2.0, np.float32)})
    assert 0.35 < np.asarray(fast.durations).sum() / said.durations.sum() < 0.65


def controlled(speak, params, inputs, pitch=0.0, energy=0.0):
    """Speech with the pitch shifted by semitones and the energy by decibels."""
    shifts = {"pitch_shift": np.full(16, pitch, np.float32), "energy_shift": np.full(16, energy, np.float32)}
    return jax.device_get(speak(params, inputs | shifts))


def test_pitch_and_energy_are_predicted(trained):
    _, method, params, _ = trained
    batch = make_batch(seed=1003)
    aligned = jax.device_get(jax.jit(method.predict)(params, on_device(batch)))
    voiced = batch["text"] > 1
    high = 0.3 * batch["speaker"][:, None]
    expected = np.log(np.maximum(PITCH, 1))[batch["text"]] + np.log1p(high)  # without what is by chance
    assert np.corrcoef(expected[voiced], aligned.predicted_prosody["pitch"][voiced])[0, 1] > 0.85
    expected, valid = 0.2 * batch["text"] + batch["speaker"][:, None], batch["text_mask"]
    assert np.corrcoef(expected[valid], aligned.predicted_prosody["energy"][valid])[0, 1] > 0.85
    # The values of the recording are means over the voiced frames of each token.
    right = voiced & (aligned.durations == LASTS[batch["text"]])
    ends = np.cumsum(LASTS[batch["text"]], axis=1)
    rows = np.arange(16)[:, None]
    log_pitch = np.log(np.maximum(batch["pitch"][rows, np.minimum(ends, FRAMES) - 1], 1))
    np.testing.assert_allclose(aligned.prosody["pitch"][right], ((log_pitch - 5.3) / 0.3)[right], atol=0.02)


def test_pitch_and_energy_are_moved_as_asked(trained):
    config, method, params, _ = trained
    batch = on_device(make_batch(seed=1003))
    speak = jax.jit(make_synthesizer(config, frames=FRAMES, **SIZES))
    inputs = {k: batch[k] for k in ("text", "text_mask", "speaker", "index")}
    plain = controlled(speak, params, inputs)
    high, loud = controlled(speak, params, inputs, pitch=4), controlled(speak, params, inputs, energy=3)
    assert speak._cache_size() == 1  # one program for all values
    voiced = np.stack(  # frames of voiced tokens
        [np.pad(np.repeat(np.asarray(text) > 1, lasts), (0, FRAMES))[:FRAMES]
         for text, lasts in zip(batch["text"], plain.durations, strict=True)]
    )  # fmt: skip
    moved = lambda speech, band: (speech.log_mel - plain.log_mel)[voiced][:, band].mean() / LOUDNESS
    assert moved(high, 0) == pytest.approx(4 * np.log(2) / 12, rel=0.3)
    assert moved(loud, -1) == pytest.approx(3 * np.log(10) / 10 / 2, rel=0.3)
    assert abs(moved(high, -1)) < 0.08 and abs(moved(loud, 0)) < 0.08
    # The pitch of frames, for a vocoder, is that of the tokens, interpolated between their middles.
    np.testing.assert_allclose(high.pitch, plain.pitch * 2 ** (4 / 12), rtol=1e-4)
    tokens = jax.device_get(jax.jit(method.predict)(params, batch)).predicted_prosody["pitch"]
    for row, (pitch, lasts) in enumerate(zip(tokens, plain.durations, strict=True)):
        spoken = lasts > 0
        middles = (np.cumsum(lasts) - lasts / 2)[spoken]
        expected = np.exp(5.3 + 0.3 * np.interp(np.arange(lasts.sum()) + 0.5, middles, pitch[spoken]))
        np.testing.assert_allclose(plain.pitch[row, : lasts.sum()], expected, rtol=1e-3)
    unchanged = jax.device_get(speak(params, inputs))  # no controls are those that change nothing
    np.testing.assert_allclose(unchanged.log_mel, plain.log_mel, atol=1e-5)


def test_a_recording_is_spoken_by_the_other_voice(trained):
    config, _, params, _ = trained
    batch = make_batch(seed=1004)
    semitones = 12 * np.log2(1.3) * (1 - 2 * batch["speaker"])  # the second voice is higher by the factor 1.3
    other = {**batch, "speaker": 1 - batch["speaker"], "pitch_shift": semitones.astype(np.float32)}
    convert = jax.jit(make_converter(config, frames=FRAMES, **SIZES))
    speech = jax.device_get(convert(params, on_device(other)))
    lasts = np.where(batch["text_mask"], LASTS[batch["text"]], 0)
    assert (speech.durations == lasts)[batch["text_mask"]].mean() > 0.9
    right = (speech.durations == lasts).all(axis=1)[:, None] & (batch["pitch"] > 0)
    moved = batch["pitch"] * 2 ** (semitones[:, None] / 12)
    expected = LOUDNESS * np.log(moved[right] / 100)
    assert np.abs(speech.log_mel[:, :, 0][right] - expected).mean() < 0.1
    short = {
        **other,
        "audio_mask": np.arange(FRAMES)[None, :] < np.where(np.arange(16) == 2, 1, FRAMES)[:, None],
    }
    assert not convert(params, on_device(short)).mask[2].any()


def test_without_pitch_and_energy():
    """The network of earlier runs: the same parameters without those of pitch and energy, and no such controls."""
    config = dataclasses.replace(CONFIG, pitch=False, energy=False)
    method, batch = make_speech(config, **SIZES), on_device(make_batch())
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    full = jax.eval_shape(make_speech(CONFIG, **SIZES).init, jax.random.key(0), batch)
    added = {name for name in full if name.startswith(("predictors_", "embeddings_"))}
    assert len(added) == 4 and shapes == {k: v for k, v in full.items() if k not in added}
    _, aux = jax.eval_shape(lambda p: method.loss(p, batch, jax.random.key(1)), shapes)
    assert "pitch" not in aux
    speak = make_synthesizer(config, frames=FRAMES, **SIZES)
    assert jax.eval_shape(speak, shapes, batch).pitch is None
    only_frames = make_synthesizer(config, frames=FRAMES, waveforms=False, **SIZES)
    assert jax.eval_shape(only_frames, shapes, batch).waveform is None
    with pytest.raises(ValueError, match="pitch_shift needs a model that is trained with pitch"):
        jax.eval_shape(speak, shapes, {**batch, "pitch_shift": np.ones(16, np.float32)})
    with pytest.raises(
        ValueError, match="without their pitch and energy: compute them by `precompute_speech`"
    ):
        bare = {k: v for k, v in batch.items() if k not in ("pitch", "energy")}
        jax.eval_shape(make_speech(CONFIG, **SIZES).predict, full, bare)
    with pytest.raises(ValueError, match="min_pitch and max_pitch must rise"):
        dataclasses.replace(CONFIG, max_pitch=50.0)


def test_speech_without_a_voiced_frame_teaches_no_pitch():
    method, batch = make_speech(CONFIG, **SIZES), make_batch()
    params = random_params(method.init, jax.random.key(0), batch)
    whispered = {**batch, "pitch": np.zeros_like(batch["pitch"])}
    loss = jax.jit(jax.value_and_grad(lambda p, b: method.loss(p, b, jax.random.key(1)), has_aux=True))
    (_, aux), grads = loss(params, on_device(whispered))
    assert aux["pitch"] == 0 and not any(np.any(g) for g in jax.tree.leaves(grads["predictors_pitch"]))
    assert any(np.any(g) for g in jax.tree.leaves(grads["predictors_energy"]))


def test_frames_computed_once_are_the_waveforms_own():
    """The same loss from waveforms and from what `precompute_speech` made of them."""
    rng = np.random.default_rng(0)
    method, batch = make_speech(CONFIG, **SIZES), make_batch(n=4)
    del batch["pitch"], batch["energy"]
    length = (FRAMES - 1) * CONFIG.features.hop
    mask = np.arange(length)[None, :] < np.array([[length], [300], [200], [350]])
    tone = 6000 * np.sin(2 * np.pi * np.array([[150], [200], [250], [300]]) * np.arange(length) / 4000)
    raw = {**batch, "audio": (tone + rng.normal(0, 500, tone.shape)).astype(np.int16), "audio_mask": mask}
    framed = precompute_speech(CONFIG)(raw)
    assert framed["audio"].shape == (4, FRAMES, MELS) and framed["pitch"].shape == (4, FRAMES)
    assert (framed["pitch"] > 0)[framed["audio_mask"]].mean() > 0.5
    params = random_params(method.init, jax.random.key(0), framed)
    loss = jax.jit(lambda b: method.loss(params, b, jax.random.key(1))[0])
    np.testing.assert_allclose(loss(on_device(raw)), loss(on_device(framed)), rtol=1e-5)
    with pytest.raises(ValueError, match="bands"):
        jax.eval_shape(method.predict, params, {**framed, "audio": framed["audio"][:, :, 1:]})
