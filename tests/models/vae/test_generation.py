"""What decoders gave, as a batch of data."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.models.vae.modalities import AudioConfig, ModalityConfigs, as_batch, preprocess

CONFIGS = ModalityConfigs()


def test_pictures_are_rounded_to_the_nearest_pixel_value():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random(2 * 7 * 5 * 3 - 4), [0.0, 1.0, 0.4999 / 255, 254.501 / 255]]).astype(
        np.float32
    )
    x = x.reshape(2, 7, 5, 3)
    found = as_batch(CONFIGS, {"image_3": jnp.asarray(x)})
    assert found["image_3"].dtype == jnp.uint8 and set(found) == {"image_3", "index"}
    np.testing.assert_array_equal(found["image_3"], np.rint(x.astype(np.float64) * 255))
    assert found["image_3"][-1, -1, -1, 0] == 254 or found["image_3"][-1, -1, -1, 2] == 255
    # What was a picture of data is one again.
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    again = as_batch(CONFIGS, {"image": jnp.asarray(pixels, jnp.float32) / 255.0})
    np.testing.assert_array_equal(again["image"], pixels)


@hypothesis.given(
    st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(-1, 5)
)
def test_texts_count_up_to_their_first_end(rows, end):
    hypothesis.assume(end != 0)
    x = np.array(rows, np.int32)
    found = as_batch(CONFIGS, {"text": jnp.asarray(x)}, end_id=end)
    expected = np.zeros(x.shape, bool)
    for k, row in enumerate(rows):
        for place, token in enumerate(row):
            expected[k, place] = token != 0
            if token == end:
                break
    np.testing.assert_array_equal(found["text"], x)
    np.testing.assert_array_equal(found["text_mask"], expected)
    assert found["text_mask"].dtype == bool


@pytest.mark.parametrize(
    "row,end,mask",
    [
        ([4, 5, 2, 4, 2], 2, [1, 1, 1, 0, 0]),  # the first end, and nothing after it
        ([2, 4, 5, 4, 5], 2, [1, 0, 0, 0, 0]),
        ([4, 5, 4, 5, 4], 2, [1, 1, 1, 1, 1]),  # none
        ([4, 0, 4, 2, 4], 2, [1, 0, 1, 1, 0]),  # padding within
        ([4, 5, 2, 4, 2], -1, [1, 1, 1, 1, 1]),  # there is no end
        ([0, 0, 0, 0, 0], 2, [0, 0, 0, 0, 0]),
    ],
)
def test_a_text_ends_with_its_end(row, end, mask):
    found = as_batch(CONFIGS, {"text_en": jnp.array([row])}, end_id=end)
    np.testing.assert_array_equal(found["text_en_mask"][0], np.array(mask, bool))


@pytest.mark.parametrize("pad,mask", [(-1, [1, 1, 1, 0, 0]), (4, [1, 0, 1, 0, 0]), (0, [0, 1, 1, 0, 0])])
def test_padding_is_the_tokenizers_own(pad, mask):
    """A vocabulary may have its padding elsewhere than at 0 (RoBERTa), or none (GPT-2)."""
    found = as_batch(CONFIGS, {"text": jnp.array([[0, 4, 2, 0, 4]])}, end_id=2, pad_id=pad)
    np.testing.assert_array_equal(found["text_mask"][0], np.array(mask, bool))


def test_audio_is_frames_as_data_hold_them():
    """Log-mel frames, all of which count; the model sees in them what the decoder said."""
    configs = ModalityConfigs(audio=AudioConfig(mel_mean=-3.0, mel_scale=2.0))
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    found = as_batch(configs, {"audio": jnp.asarray(x)})
    np.testing.assert_allclose(found["audio"], x * 2.0 - 3.0, rtol=1e-6)
    assert (
        found["audio_mask"].shape == (3, 7)
        and found["audio_mask"].dtype == bool
        and found["audio_mask"].all()
    )
    seen = preprocess(configs, ("audio",), found)
    np.testing.assert_allclose(seen.inputs["audio"][0], x, rtol=1e-5, atol=1e-6)


def test_generated_speech_ends_with_its_last_sound():
    """Pauses within it belong to it, silence behind it does not; silence alone is one frame long."""
    configs = ModalityConfigs(audio=AudioConfig(mel_mean=0.0, mel_scale=1.0))
    loudest = np.array([[-8, -2, -9, -3, -7, -11], [-2, -8, -8, -8, -8, -5], [-9, -9, -9, -9, -9, -9]])
    frames = np.stack([np.full_like(loudest, -11), loudest], axis=-1).astype(np.float32)
    mask = as_batch(configs, {"audio": jnp.asarray(frames)})["audio_mask"]
    np.testing.assert_array_equal(mask, np.arange(6) < np.array([[4], [6], [1]]))
    waves = configs.audio.cut_waveforms(np.zeros((3, 5 * 200), np.float32), np.asarray(mask))
    assert [len(wave) for wave in waves] == [800, 1000, 200]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8])
def test_classes_are_labels_as_data_hold_them(dtype):
    found = as_batch(CONFIGS, {"label": jnp.asarray([3, 0, 2], dtype)})
    assert found["label"].dtype == jnp.int32
    np.testing.assert_array_equal(found["label"], [3, 0, 2])


def test_all_of_them_are_one_batch_whose_examples_are_counted():
    outputs = {
        "image": jnp.zeros((11, 4, 4, 1)),
        "text": jnp.ones((11, 3), jnp.int32),
        "audio": jnp.zeros((11, 5, 2)),
        "label": jnp.zeros(11, jnp.int32),
    }
    found = jax.jit(lambda x: as_batch(CONFIGS, x, end_id=1))(outputs)
    assert set(found) == {"image", "text", "text_mask", "audio", "audio_mask", "label", "index"}
    assert all(len(x) == 11 for x in found.values()) and found["index"].dtype == jnp.int32
    np.testing.assert_array_equal(found["index"], np.arange(11))
    np.testing.assert_array_equal(found["text_mask"], [[True, False, False]] * 11)
    assert set(outputs) == {"image", "text", "audio", "label"}  # is left as it was
