"""Pitch by YIN, energy, and their means over tokens: against NumPy, known tones and librosa."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.data.shapes.speech import TRAIN_VOICES, synthesize
from xmodal_jax.preprocess import audio, pitch

RATE, HOP = 8000, 100
SIZES = dict(sample_rate=RATE, hop=HOP, f_max=400.0)
yin = jax.jit(functools.partial(pitch.yin, **SIZES))
track_pitch = jax.jit(functools.partial(pitch.track_pitch, **SIZES))
log_energy = jax.jit(functools.partial(pitch.log_energy, window=256, hop=HOP))
RNG = np.random.default_rng(0)


def tone(frequency, seconds=0.5, harmonics=1, rate=RATE):
    """A sum of harmonics, the k-th with the amplitude 1 / k, within [-1, 1]."""
    time = np.arange(round(seconds * rate)) / rate
    parts = [np.sin(2 * np.pi * k * frequency * time + k) / k for k in range(1, harmonics + 1)]
    return (0.5 * sum(parts) / harmonics**0.5).astype(np.float32)


def cents(found, true):
    return np.abs(1200 * np.log2(found / true))


def yin_of_one_frame(frame, window, shortest, longest, threshold):
    """``(period, d')`` of equations 6 to 8 and steps 3 to 5 of the paper, sum by sum."""
    frame = frame.astype(np.float64)
    d = np.array([np.square(frame[:window] - frame[k : k + window]).sum() for k in range(longest + 2)])
    normalised = np.ones(longest + 2)
    for k in range(1, longest + 2):
        normalised[k] = d[k] / (d[1 : k + 1].sum() / k)
    lags = range(shortest, longest + 1)
    minima = [k for k in lags if normalised[k - 1] >= normalised[k] < normalised[k + 1]]
    below = [k for k in minima if normalised[k] < threshold]
    lag = below[0] if below else min(lags, key=lambda k: normalised[k])
    # The vertex of the parabola through three points, by solving for its coefficients.
    a, b, _ = np.polyfit([-1, 0, 1], normalised[lag - 1 : lag + 2], 2)
    vertex = np.clip(-b / (2 * a), -0.5, 0.5) if a > 0 else 0.0
    return lag + vertex, normalised[lag]


def test_is_yin_of_the_paper():
    """A noisy tone, frame by frame in float64."""
    wave = tone(173.0, harmonics=5) + RNG.normal(0, 0.05, RATE // 2).astype(np.float32)
    found = yin(wave[None])
    window, shortest, longest = 320, RATE // 400, -(-RATE // 60)
    size = window + longest + 1
    padded = np.pad(wave, (size // 2, size))
    for t in range(0, 41, 4):
        period, difference = yin_of_one_frame(
            padded[t * HOP : t * HOP + size], window, shortest, longest, 0.1
        )
        np.testing.assert_allclose(found.aperiodicity[0, t], difference, atol=2e-4)
        if found.voiced[0, t]:
            np.testing.assert_allclose(found.frequency[0, t], RATE / period, rtol=1e-3)


@pytest.mark.parametrize("harmonics", [1, 8])
def test_finds_the_pitch_of_tones(harmonics):
    true = np.array([70.0, 110.0, 163.7, 220.0, 311.1, 390.0])
    found = yin(np.stack([tone(f, harmonics=harmonics) for f in true]))
    inside = np.asarray(found.frequency)[:, 4:-4]  # frames without the silence beyond the ends
    assert (inside > 0).all()
    assert cents(inside, true[:, None]).max() < 10
    assert found.frequency.shape == (6, 1 + RATE // 2 // HOP)


def test_follows_a_glide():
    time = np.arange(RATE) / RATE
    frequency = 100 + 100 * time  # Hz; the phase is its integral
    wave = np.sin(2 * np.pi * (100 * time + 50 * time**2)).astype(np.float32)
    found = np.asarray(yin(wave[None]).frequency[0])[: RATE // HOP]
    # The frames are centred on their time but for a few milliseconds, in which the pitch rises by 6 cents.
    assert cents(found, frequency[::HOP])[5:-5].max() < 15


def test_noise_and_silence_have_no_pitch():
    waves = np.stack(
        [
            RNG.normal(0, 0.1, RATE).astype(np.float32),
            np.zeros(RATE, np.float32),
            0.3 * np.ones(RATE, np.float32),
        ]
    )
    found = yin(waves)
    assert np.asarray(found.voiced[0]).mean() < 0.05 and not found.voiced[1:].any()
    assert np.isfinite(found.frequency).all() and np.isfinite(found.aperiodicity).all()
    # Hum that is 50 dB softer than the speech beside it is silence; alone it has a pitch.
    hum = np.concatenate([tone(200.0), 10 ** (-50 / 20) * tone(100.0)])
    assert not yin(hum[None]).voiced[0, 46:].any() and yin(hum[None, RATE // 2 :]).voiced.mean() > 0.8


def test_int16_is_the_same_and_loudness_does_not_matter():
    wave = tone(150.0, harmonics=3)
    expected = yin(wave[None])
    as_integers = yin(np.rint(wave * 32767).astype(np.int16)[None])
    softer = yin(0.01 * wave[None])
    for other in (as_integers, softer):
        np.testing.assert_array_equal(other.voiced, expected.voiced)
        np.testing.assert_allclose(other.frequency, expected.frequency, rtol=1e-3)


@pytest.mark.parametrize("offset", [0.3, -1.0])
@pytest.mark.parametrize("function", [yin, track_pitch])
def test_an_offset_changes_nothing_inside(function, offset):
    wave = np.concatenate([tone(150.0, harmonics=3), np.zeros(RATE // 2, np.float32)])
    expected, found = function(wave[None]), function(wave[None] + np.float32(offset))
    inside = slice(6, -6)
    np.testing.assert_array_equal(found.voiced[0, inside], expected.voiced[0, inside])
    np.testing.assert_allclose(found.frequency[0, inside], expected.frequency[0, inside], rtol=1e-3)


def test_without_costs_the_track_is_yin():
    """On a tone, a glide, noise and silence, whose frames have many candidates."""
    time = np.arange(RATE // 2) / RATE
    glide = np.sin(2 * np.pi * (100 * time + 50 * time**2)).astype(np.float32)
    waves = np.stack([tone(173.0, harmonics=5), glide, RNG.normal(0, 0.1, len(time)), 0.0 * time])
    waves += RNG.normal(0, 0.03, waves.shape) * np.array([1, 1, 1, 0])[:, None]
    waves = waves.astype(np.float32)
    expected = yin(waves)
    track = jax.jit(
        functools.partial(
            pitch.track_pitch, **SIZES, octave_cost=0.0, jump_cost=0.0, voicing_cost=0.0, candidates=40
        )
    )
    found = track(waves)
    np.testing.assert_array_equal(found.voiced, expected.voiced)
    np.testing.assert_allclose(found.frequency, expected.frequency, rtol=1e-5)


def test_a_jump_upwards_is_followed():
    """Twice the period is a period too: the track must not stay with it."""
    wave = np.concatenate(
        [tone(f, harmonics=8, seconds=0.4) for f in (110.0, 220.0, 165.0, 330.0, 131.0, 390.0)]
    )
    found = np.asarray(track_pitch(wave[None]).frequency[0])
    for note, true in enumerate((110.0, 220.0, 165.0, 330.0, 131.0, 390.0)):
        inside = found[32 * note + 9 : 32 * note + 27]
        assert cents(inside, true).max() < 20


def test_the_path_is_the_cheapest_of_all():
    """Against the enumeration of all paths, of two lengths in one batch."""
    frames, count, unvoiced, jump, voicing = 5, 2, 0.5, 0.3, 0.2
    cost = RNG.uniform(0, 1, (6, frames, count)).astype(np.float32)
    cost[0, 2, 1] = np.inf  # no such candidate
    octaves = RNG.uniform(6, 9, cost.shape).astype(np.float32)
    mask = np.arange(frames)[None] < np.array([5, 5, 5, 5, 3, 1])[:, None]
    found = np.asarray(
        pitch._best_path(*map(jnp.asarray, (cost, octaves)), unvoiced, jnp.asarray(mask), jump, voicing)
    )
    for row in range(len(cost)):
        length = mask[row].sum()

        def total(path, row=row):
            """The cost of a path as the docstring of `track_pitch` states it."""
            own = sum(unvoiced if k == count else cost[row, t, k] for t, k in enumerate(path))
            for t, (before, now) in enumerate(itertools.pairwise(path)):
                if before < count and now < count:
                    own += jump * abs(octaves[row, t + 1, now] - octaves[row, t, before])
                elif (before < count) != (now < count):
                    own += voicing
            return own

        best = min(itertools.product(range(count + 1), repeat=int(length)), key=total)
        assert found[row, :length].tolist() == list(best) and (found[row, length:] == count).all()


def test_the_track_of_speech_has_no_jumps_of_octaves():
    """YIN alone takes the hiss of some consonants for a pitch several times that of the voice."""
    far = {"yin": 0, "track_pitch": 0}
    for voice in TRAIN_VOICES[::6]:
        wave = synthesize("a big red circle above three small green stars", voice)
        for name in far:
            found = np.asarray(getattr(pitch, name)(jnp.asarray(wave)[None]).frequency[0])
            voiced = found[found > 0]
            assert len(voiced) > 90
            far[name] += int((np.abs(np.log2(voiced / np.median(voiced))) > 0.7).sum())
    assert far["yin"] > 0 and far["track_pitch"] == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x, m: yin(x, m).frequency,
        lambda x, m: track_pitch(x, m).frequency,
        lambda x, m: log_energy(x, m)[0],
    ],
)
def test_padding_has_no_influence(function):
    wave, length = tone(150.0, harmonics=3), 2650
    mask = np.arange(len(wave))[None] < np.array([[length], [0]])
    loud = np.where(mask, wave, 0.9)
    padded = np.asarray(function(loud.astype(np.float32), mask))
    alone = np.asarray(function(wave[None, :length], np.ones((1, length), bool)))
    count = 1 + length // HOP
    assert alone.shape == (1, count)
    np.testing.assert_allclose(padded[0, :count], alone[0], rtol=1e-4)
    assert not padded[0, count:].any() and not padded[1].any()


def test_frames_are_those_of_the_spectrogram():
    wave, mask = jnp.asarray(tone(150.0)[None]), jnp.arange(4000)[None] < 1234
    expected = audio.log_mel(wave, mask, sample_rate=RATE, n_fft=256, hop=HOP, n_mels=8)[1]
    np.testing.assert_array_equal(yin(wave, mask).mask, expected)
    np.testing.assert_array_equal(log_energy(wave, mask)[1], expected)


def test_energy_is_the_norm_of_the_spectrum_and_rises_by_decibels():
    wave = RNG.normal(0, 0.1, (2, 1000)).astype(np.float32)
    energy, _ = log_energy(wave)
    spectrum = np.abs(np.asarray(audio.stft(jnp.asarray(wave), n_fft=256, hop=HOP))) ** 2
    two_sided = spectrum[..., 0] + spectrum[..., -1] + 2 * spectrum[..., 1:-1].sum(-1)
    expected = np.log(two_sided / 256 / np.square(audio.hann(256)).sum())
    np.testing.assert_allclose(energy, expected, rtol=1e-4)
    louder, _ = log_energy(10 ** (6 / 20) * wave)
    np.testing.assert_allclose(louder - energy, 6 * np.log(10) / 10, rtol=1e-3)
    assert log_energy(np.zeros((1, 1000), np.float32))[0].max() == pytest.approx(np.log(1e-8))


def test_means_over_tokens():
    values, mask = RNG.normal(size=(3, 12)).astype(np.float32), RNG.random((3, 12)) < 0.6
    durations = np.array([[3, 0, 4, 5], [1, 2, 3, 0], [0, 0, 0, 0]])
    means, has_value = jax.jit(pitch.token_means)(values, durations, mask)
    for row in range(3):
        start = 0
        for token, duration in enumerate(durations[row]):
            chosen = values[row, start : start + duration][mask[row, start : start + duration]]
            assert has_value[row, token] == bool(len(chosen))
            np.testing.assert_allclose(
                means[row, token], chosen.mean() if len(chosen) else 0.0, rtol=1e-5, atol=1e-6
            )
            start += duration
    poisoned = np.where(mask, values, np.nan)
    np.testing.assert_array_equal(jax.jit(pitch.token_means)(poisoned, durations, mask)[0], means)


def test_gaps_are_interpolated():
    values, valid = RNG.normal(size=(5, 9)).astype(np.float32), RNG.random((5, 9)) < 0.4
    valid[0], valid[1] = False, True
    filled = jax.jit(pitch.fill_gaps)(values, valid)
    assert not filled[0].any()
    for row in range(1, 5):
        where = np.flatnonzero(valid[row])
        np.testing.assert_allclose(
            filled[row], np.interp(np.arange(9), where, values[row, where]), rtol=1e-5, atol=1e-6
        )


def test_mistakes_are_named():
    wave = np.zeros((1, 800), np.float32)
    for options, message in [
        (dict(f_min=0.0), "pitch is searched from f_min"),
        (dict(f_min=300.0, f_max=200.0), "300.0 to 200.0 Hz"),
        (dict(f_max=5000.0), "a quarter of the sample rate"),
        (dict(hop=0), "hop and window"),
    ]:
        for function in (pitch.yin, pitch.track_pitch):
            with pytest.raises(ValueError, match=message):
                function(jnp.asarray(wave), **options)
    with pytest.raises(ValueError, match="threshold must be below voicing_threshold"):
        pitch.track_pitch(jnp.asarray(wave), threshold=0.5)
    with pytest.raises(ValueError, match="floor above 0"):
        pitch.log_energy(jnp.asarray(wave), floor=0.0)


@pytest.mark.slow  # librosa compiles its functions for half a minute
def test_agrees_with_librosa_on_speech():
    import librosa

    waves = [
        synthesize("a big red circle above three small green stars", voice) for voice in TRAIN_VOICES[::6]
    ]
    within, both, agree, frames = 0, 0, 0, 0
    for wave in waves:
        options = dict(fmin=60, fmax=500, sr=16000, hop_length=200, frame_length=1024)
        theirs, voiced, _ = librosa.pyin(wave / 32768, **options)
        ours = pitch.track_pitch(jnp.asarray(wave)[None])
        frequency, voiced_too = np.asarray(ours.frequency[0]), np.asarray(ours.voiced[0])
        shared = voiced & voiced_too
        within += (np.abs(frequency[shared] / theirs[shared] - 1) < 0.05).sum()
        both, agree, frames = both + shared.sum(), agree + (voiced == voiced_too).sum(), frames + len(voiced)
    assert within / both > 0.97 and agree / frames > 0.82
    # The same algorithm with the same lags, on a tone.
    theirs = librosa.yin(
        tone(150.0, rate=16000), fmin=60, fmax=500, sr=16000, hop_length=200, frame_length=1024
    )
    ours = np.asarray(pitch.yin(jnp.asarray(tone(150.0, rate=16000))[None]).frequency[0])
    np.testing.assert_allclose(ours[5:-5], theirs[5:-5], rtol=2e-3)
