"""The neural vocoder: its loss, crops, sources and waveforms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import assert_device_invariant, assert_resumes, random_params
from xmodal_jax.models.towers import AudioFeatures, compute_log_mel
from xmodal_jax.models.vocoder import (
    VocoderConfig,
    _Model,
    make_vocode,
    make_vocoder,
    spectral_envelope,
    spectrogram_differences,
)
from xmodal_jax.preprocess.pitch import track_pitch
from xmodal_jax.train.optim import Optimizer, make_optimizer
from xmodal_jax.train.step import make_init, make_step

RATE, TIME = 4000, 1200
FEATURES = AudioFeatures(sample_rate=RATE, mels=16, window=128, hop=32)
CONFIG = VocoderConfig(
    features=FEATURES, width=16, depth=1, kernel=3, window=96, pitch_range=(100.0, 400.0), pitches=24, crop=16,
    resolutions=((64, 16), (128, 32)),
)  # fmt: skip


def make_batch(n=8, seed=0):
    """Voices of different pitch with some noise, from half to the whole length."""
    rng = np.random.default_rng(seed)
    t, pitch = np.arange(TIME) / RATE, rng.uniform(120, 350, (n, 1))
    tones = sum(np.cos(2 * np.pi * k * pitch * t + rng.uniform(0, 6)) / k for k in range(1, 6)) / 6
    audio = tones + rng.normal(0, 0.02, (n, TIME))
    mask = t[None, :] * RATE < rng.integers(TIME // 2, TIME + 1, (n, 1))
    audio = np.where(mask, 32767 * 0.8 * audio, 0).astype(np.int16)
    return {"audio": audio, "audio_mask": mask, "index": np.arange(n, dtype=np.int32)}


def frames_of(audio, mask=None, features=FEATURES, floor=CONFIG.floor):
    """Log-mel frames and their mask, as NumPy arrays."""
    mask = None if mask is None else jnp.asarray(mask)
    return jax.device_get(compute_log_mel(jnp.asarray(audio), mask, features, floor=floor))


def test_the_devices_do_not_change_the_result():
    batch = make_batch()
    batch["present"] = {"audio": np.arange(8) != 3}
    assert_device_invariant(
        make_vocoder(CONFIG), batch, layouts=[("sharded", 4, 2)], together=True, rtol=1e-4
    )


def test_a_stopped_run_ends_bit_identical(tmp_path):
    arrays = {k: v for k, v in make_batch(n=16).items() if k != "index"}
    assert_resumes(make_vocoder(CONFIG), arrays, tmp_path, optimizer=Optimizer(name="adamw"))


def test_what_is_missing_or_padded_has_no_influence_and_no_gradient():
    method, batch = make_vocoder(CONFIG), make_batch()
    batch["present"] = {"audio": np.arange(8) != 3}
    params = random_params(method.init, jax.random.key(0), batch)
    learn = jax.jit(jax.value_and_grad(lambda p, b: method.loss(p, b, jax.random.key(1))[0]))
    put = jax.device_put
    usual, gradient = learn(params, put(batch))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    changed = {**batch, "audio": batch["audio"].copy()}
    changed["audio"][3] = 999
    changed["audio"][~batch["audio_mask"]] = -20_000
    assert learn(params, put(changed))[0] == usual
    nobody = {**batch, "present": {"audio": np.zeros(8, bool)}}
    value, gradient = learn(params, put(nobody))
    assert value == 0 and not any(np.any(g) for g in jax.tree.leaves(jax.device_get(gradient)))


def test_a_crop_holds_the_frames_of_the_whole_recording():
    config = dataclasses.replace(CONFIG, crop=10)
    batch = make_batch(n=3)
    batch["audio_mask"][2] = np.arange(TIME) < 150  # shorter than a crop
    model, audio = _Model(config), np.where(batch["audio_mask"], batch["audio"] / np.float32(32768), 0)
    keys = jax.random.split(jax.random.key(3), 3)
    log_mel, frame_mask, samples, mask, pitch, _ = jax.device_get(jax.jit(model.crop)(batch, keys))
    starts = []
    for row in range(3):
        valid = samples[row][mask[row]]
        windows = np.lib.stride_tricks.sliding_window_view(audio[row], len(valid))
        (start,) = np.flatnonzero((windows == valid).all(axis=1))
        starts.append(start)
        # Moved so that the crop begins at a frame of the whole recording.
        moved = np.pad(audio[row], (-start % 32, 64))
        whole, _ = frames_of(moved[None].astype(np.float32))
        first = -(-start // 32)
        expected = whole[0, first : first + 10][frame_mask[row]]
        np.testing.assert_allclose(log_mel[row][frame_mask[row]], expected, atol=1e-3)
    assert starts[2] == 0 and mask[2].sum() == 150 and frame_mask[2].sum() == 1 + 150 // 32
    assert mask[:2].all() and len(set(starts)) > 1 and (pitch > 0).all()


def test_the_envelope_of_white_noise_is_flat():
    """A filter for noise of variance 1 that has the noise's own log-mel frames is 1 at every frequency."""
    noise = 0.3 * np.random.default_rng(0).normal(size=(1, 40_000)).astype(np.float32)
    for features in (FEATURES, AudioFeatures(window=1024, hop=200, mels=40)):
        log_mel, _ = frames_of(noise, features=features, floor=1e-9)
        envelope = np.asarray(spectral_envelope(jnp.asarray(log_mel), features, bins=65))[0, 5:-5]
        np.testing.assert_allclose(np.log(np.exp(2 * envelope).mean(axis=0)) / 2, np.log(0.3), atol=0.12)


@pytest.fixture(scope="module")
def trained():
    method, optimizer = make_vocoder(CONFIG), Optimizer(name="adamw", learning_rate=5e-3)
    tx = make_optimizer(optimizer, 150)
    step = jax.jit(make_step(method, tx, optimizer), donate_argnums=0)
    state = jax.jit(make_init(method, tx, optimizer))(jax.random.key(0), jax.device_put(make_batch()))
    for seed in range(150):
        state, metrics = step(state, jax.device_put(make_batch(seed=seed)))
    assert step._cache_size() == 1
    return state.params, jax.device_get(metrics)


def test_learns_pitch_and_sound(trained):
    params, metrics = trained
    batch = make_batch(n=8, seed=1000)
    copies = jax.device_get(jax.jit(make_vocoder(CONFIG).predict)(params, jax.device_put(batch)))
    assert np.abs(copies.waveform).max() <= 1 and not copies.waveform[~copies.mask].any()
    np.testing.assert_array_equal(copies.mask.sum(axis=1), batch["audio_mask"].sum(axis=1) // 32 * 32)
    frames, mask = frames_of(copies.waveform, copies.mask)
    true, _ = frames_of(batch["audio"], batch["audio_mask"])
    length = frames.shape[1]
    errors = np.abs(frames - true[:, :length])[mask]
    spread = true[:, :length][mask].std()
    assert errors.mean() < 0.4 * spread
    # The cross-entropy of uniform probabilities is log(classes).
    assert metrics["voicing"] < 0.1 and metrics["pitch"] < np.log(CONFIG.pitches) - 0.5


def test_padding_changes_no_waveform_and_nothing_is_random():
    params = random_params(make_vocoder(CONFIG).init, jax.random.key(0), make_batch(n=1))
    params = jax.tree.map(lambda x: 0.3 * x, params)
    batch, vocode = make_batch(n=2, seed=5), jax.jit(make_vocode(CONFIG))
    frames, _ = frames_of(batch["audio"])
    mask = np.arange(frames.shape[1])[None, :] < np.array([[frames.shape[1]], [21]])
    padded = np.where(mask[:, :, None], frames, 3.0)
    waveform, valid = map(np.asarray, vocode(params, padded, mask))
    alone, all_valid = map(np.asarray, vocode(params, frames[1:, :21], mask[1:, :21]))
    assert all_valid.all() and valid[1].sum() == alone.shape[1] == 20 * 32
    np.testing.assert_allclose(waveform[1][valid[1]], alone[0], atol=1e-5)
    np.testing.assert_array_equal(vocode(params, padded, mask)[0], waveform)


def test_a_given_pitch_is_that_of_the_sound():
    """A glide is spoken through flat spectra, whose own pitch is none; outside the range it is its nearest end."""
    params = make_vocoder(CONFIG).init(jax.random.key(0), make_batch(n=1))
    params["pitch"]["bias"] = params["pitch"]["bias"].at[-1].set(9.0)  # voiced
    params["filters"]["bias"] = params["filters"]["bias"].at[2 * 49 :].set(-4.0)  # without noise
    frames, mask = np.full((2, 60, 16), -3.0, np.float32), np.ones((2, 60), bool)
    pitch = np.stack([np.linspace(150.0, 300.0, 60), np.full(60, 50.0)]).astype(np.float32)
    waveform, _ = jax.jit(make_vocode(CONFIG))(params, frames, mask, pitch)
    found = track_pitch(waveform, sample_rate=RATE, hop=32, f_min=80.0, f_max=400.0).frequency
    inside = slice(8, -8)
    np.testing.assert_allclose(found[0, inside], pitch[0, inside], rtol=0.03)
    np.testing.assert_allclose(found[1, inside], 100.0, rtol=0.03)


def test_mistakes():
    for changes, message in [
        (dict(floor=0.0), "floor and scale"), (dict(kernel=4), "kernel must be odd"), (dict(depth=0), "depth"),
        (dict(window=32), "so that frames overlap"), (dict(crop=1), "crop"),
        (dict(features=AudioFeatures(kind="waveform", hop=32)), "log_mel"),
        (dict(pitch_range=(300.0, 200.0)), "pitch_range"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **changes)
    assert spectrogram_differences(CONFIG, FEATURES, CONFIG.floor) == []
    other = dataclasses.replace(FEATURES, hop=64)
    assert spectrogram_differences(CONFIG, other, 1e-3) == [
        "hop 32 instead of 64",
        "floor 1e-05 instead of 0.001",
    ]
