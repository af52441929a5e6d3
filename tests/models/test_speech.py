"""Speech from text: losses, gradients, learned durations, and what is spoken."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support import LAYOUTS, assert_device_invariant, assert_resumes, random_params
from xmodal_jax.models.speech import SpeechConfig, log_mel_transform, make_speech, make_synthesizer
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.nets.encoders import TextTransformerConfig
from xmodal_jax.train.optim import Optimizer, make_optimizer
from xmodal_jax.train.step import make_init, make_step

VOCAB, LENGTH, FRAMES, MELS = 7, 5, 29, 8
CONFIG = SpeechConfig(
    text=TextTransformerConfig(width=16, depth=1, heads=2, dropout=0.1),
    decoder_depth=1, kernel=3, dropout=0.1, mean=0.0, scale=1.0, vocoder_iterations=4,
    features=AudioFeatures(sample_rate=4000, mels=MELS, window=64, hop=16),
)  # fmt: skip
SIZES = dict(vocab_size=VOCAB, length=LENGTH, speakers=2)
LASTS = np.array([0, 3, 5, 2, 7, 4, 6])
"""Frames of each token."""


def make_batch(n=16, seed=0):
    """Each token sounds in its own band, for its own time; the second speaker is louder."""
    rng = np.random.default_rng(seed)
    text, audio = np.zeros((n, LENGTH), np.int32), np.zeros((n, FRAMES, MELS), np.float32)
    mask, speaker = np.zeros((n, FRAMES), bool), rng.integers(0, 2, n).astype(np.int32)
    for row in range(n):
        tokens = rng.permutation(np.arange(1, VOCAB))[: rng.integers(2, LENGTH + 1)]
        frames = np.repeat(tokens, LASTS[tokens])
        text[row, : len(tokens)] = tokens
        audio[row, np.arange(len(frames)), frames] = 1.0 + speaker[row]
        mask[row, : len(frames)] = True
    fields = dict(text=text, text_mask=text != 0, audio=audio, audio_mask=mask, speaker=speaker)
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
    for field, row in (("audio", 3), ("text", 3), ("audio", 5), ("text", 5), ("speaker", 3)):
        changed = {**batch, field: batch[field].copy()}
        changed[field][row] = 1 - changed[field][row]
        assert loss(params, on_device(changed)) == usual, (field, row)
    behind = {**batch, "audio": np.where(batch["audio_mask"][:, :, None], batch["audio"], 5.0)}
    assert loss(params, on_device(behind)) == usual
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
    bands = np.asarray(said.log_mel).argmax(axis=2)[np.asarray(said.frame_mask)]
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
    fast = jax.jit(make_synthesizer(config, frames=FRAMES, speed=2.0, **SIZES))(params, batch)
    assert 0.35 < np.asarray(fast.durations).sum() / said.durations.sum() < 0.65
    with pytest.raises(ValueError, match="speed"):
        make_synthesizer(config, frames=FRAMES, speed=0.0, **SIZES)


def test_frames_computed_once_are_the_waveforms_own():
    """The same loss from waveforms and from what `log_mel_transform` made of them."""
    rng = np.random.default_rng(0)
    method, batch = make_speech(CONFIG, **SIZES), make_batch(n=4)
    length = (FRAMES - 1) * CONFIG.features.hop
    mask = np.arange(length)[None, :] < np.array([[length], [300], [200], [350]])
    raw = {**batch, "audio": rng.normal(0, 3000, (4, length)).astype(np.int16), "audio_mask": mask}
    framed = log_mel_transform(CONFIG.features, CONFIG.floor)(raw)
    assert framed["audio"].shape == (4, FRAMES, MELS)
    params = random_params(method.init, jax.random.key(0), framed)
    loss = jax.jit(lambda b: method.loss(params, b, jax.random.key(1))[0])
    np.testing.assert_allclose(loss(on_device(raw)), loss(on_device(framed)), rtol=1e-5)
    with pytest.raises(ValueError, match="bands"):
        jax.eval_shape(method.predict, params, {**framed, "audio": framed["audio"][:, :, 1:]})
