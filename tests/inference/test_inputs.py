"""Inputs as people hold them become what the training data were."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.inference.runs import plain_picture, png_bytes
from xmodal_jax.data.media import Resize, decode_audio, decode_image
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.data.standardise import FeatureStatistics, StandardiseTransform
from xmodal_jax.inference import inputs
from xmodal_jax.inference.inputs import InputFormat, InputSource, as_list, broadcast_inputs, collect_inputs
from xmodal_jax.models.towers import max_audio_seconds
from xmodal_jax.nets.encoders import AudioTransformerConfig

MODALITIES = ("text", "image", "audio", "video", "vector", "series")
STATISTICS = {"vector": FeatureStatistics((1.0, 2.0), (1.0, 4.0), ("age", "weight"))}
FORMAT = InputFormat(
    MODALITIES,
    {"image": (8, 8, 3), "video": (3, 8, 8, 3), "vector": (2,), "series": (5, 2), "audio": (51, 40)},
    sample_rate=1000,
    max_seconds=2.5,
    resize=Resize(),
    transform=FittedTransforms(None, StandardiseTransform(STATISTICS)),
)
RNG = np.random.default_rng(0)


def read(**inputs):
    """All inputs as one batch."""
    source = InputSource(collect_inputs(FORMAT, inputs), FORMAT)
    return source.batch(np.arange(len(source)))


def photo():
    return Image.fromarray(RNG.integers(0, 255, (20, 30, 3)).astype(np.uint8))


def test_a_picture_is_the_same_however_it_is_held(tmp_path):
    picture = photo()
    picture.save(tmp_path / "a.png")
    pixels = np.asarray(picture)
    held = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png_bytes(picture),
        picture,
        pixels,
        jnp.asarray(pixels),
    ]
    images = read(images=held)["image"]
    assert images.shape == (6, 8, 8, 3)
    for image in images:
        np.testing.assert_array_equal(image, decode_image(tmp_path / "a.png", 8))


def test_audio_is_cut_to_the_shortest_limit():
    """One rule for all runs: what they were trained on, and what their encoder has positions for."""
    assert FORMAT.limit_audio(None).max_seconds == FORMAT.limit_audio(30.0).max_seconds == 2.5
    assert FORMAT.limit_audio(30.0, 1.5).max_seconds == 1.5
    any_length = FORMAT._replace(max_seconds=None)
    assert any_length.limit_audio(None).max_seconds is None and any_length.limit_audio(30.0).max_seconds == 30
    assert max_audio_seconds(AudioTransformerConfig()) is None  # Whisper's are in tests/pretrained


def test_an_input_of_several_examples_is_read_once(monkeypatch):
    decoded = []
    monkeypatch.setattr(
        inputs, "decode_image", lambda file, *_: decoded.append(file) or np.ones((8, 8, 3), np.uint8)
    )
    by_modality = broadcast_inputs({"image": ["a.png"], "text": ["red", "blue", "red"]})
    batch = InputSource(by_modality, FORMAT).batch(np.arange(3))
    assert batch["image"].shape == (3, 8, 8, 3) and batch["caption"].tolist() == ["red", "blue", "red"]
    InputSource({"image": ["a.png", None, "b.png"], "text": ["a"] * 3}, FORMAT).batch(np.array([0, 1, 2, 0]))
    assert decoded == ["a.png", "a.png", "b.png"]
    assert broadcast_inputs({"image": [1], "text": []}) == {"image": [], "text": []}
    assert broadcast_inputs({"image": [1, 2], "text": [3, 4, 5]}) == {"image": [1, 2], "text": [3, 4, 5]}


def test_images_of_training_that_are_no_squares(tmp_path):
    wide = FORMAT._replace(shapes={"image": (5, 7, 3), "video": (2, 5, 7, 3)})
    pixels = RNG.integers(0, 255, (5, 7, 3)).astype(np.uint8)
    source = InputSource({"image": [pixels], "video": [np.stack([pixels, pixels])]}, wide)
    batch = source.batch(np.arange(1))
    np.testing.assert_array_equal(batch["image"][0], pixels)
    np.testing.assert_array_equal(batch["video"][0, 1], pixels)
    for name, value in (("image", photo()), ("image", "a.png"), ("video", np.stack([pixels] * 3))):
        with pytest.raises(ValueError, match="training have 5 x 7 pixels: give pixels uint8 of exactly"):
            InputSource({name: [value]}, wide).batch(np.arange(1))


def test_one_input_is_a_list_of_one(tmp_path):
    pixels = np.asarray(photo())
    for one in (photo(), pixels, "a.png", b"bytes", pixels[..., 0]):
        assert len(as_list("image", one)) == 1
    assert len(as_list("image", np.stack([pixels, pixels]))) == 2
    assert len(as_list("audio", (np.zeros(5), 1000))) == 1
    assert len(as_list("audio", [(np.zeros(5), 1000), (np.zeros(6), 1000)])) == 2
    assert as_list("text", "a red star") == ["a red star"]
    assert len(as_list("vector", {"age": 3})) == len(as_list("vector", np.zeros(2))) == 1
    assert len(as_list("vector", np.zeros((4, 2)))) == 4
    assert len(as_list("series", np.zeros((4, 2)))) == 1


def test_arrays_of_paths_are_lists(tmp_path):
    for k in range(3):
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / f"{k}.png")
    paths = [str(tmp_path / f"{k}.png") for k in (2, 0, 1)]
    pandas = pytest.importorskip("pandas")
    for held in (np.array(paths), np.array(paths, object), pandas.Series(paths), (path for path in paths)):
        assert read(images=held)["image"][:, 0, 0, 0].tolist() == [2, 0, 1]
    sounds = ((np.zeros(500), 1000), (np.zeros(700), 1000))  # a tuple of two sounds is no sound
    assert read(audio=sounds)["audio_mask"].sum(axis=1).tolist() == [500, 700]


def test_each_row_of_an_array_is_read():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    for held in (images, jnp.asarray(images)):
        batch = InputSource({"image": held}, FORMAT).batch(np.arange(5))
        assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_pillow_image_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    photo().save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        images = read(images=[tmp_path / "a.png", picture])["image"]
    np.testing.assert_array_equal(images[0], images[1])


def test_sounds_are_resampled_and_padded_to_whole_seconds(tmp_path):
    wave = np.sin(np.arange(3000) / 9).astype(np.float32) * 0.5
    soundfile.write(tmp_path / "a.wav", wave, 2000, subtype="FLOAT")
    stream = io.BytesIO()
    soundfile.write(stream, wave, 2000, format="WAV", subtype="FLOAT")
    expected = decode_audio(tmp_path / "a.wav", 1000)[0]
    batch = read(
        audio=[tmp_path / "a.wav", stream.getvalue(), (wave, 2000), (np.stack([wave, wave], 1), 2000)]
    )
    assert batch["audio"].shape == (4, 2000) and expected.shape == (1500,)
    for sound, mask in zip(batch["audio"], batch["audio_mask"], strict=True):
        np.testing.assert_array_equal(sound[mask], expected)
    assert read(audio=(np.zeros(9000, np.int16), 1000))["audio_mask"].sum() == 2500  # cut to max_seconds


def test_a_video_keeps_evenly_spaced_frames():
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    for held in (frames, [Image.fromarray(frame) for frame in frames], list(frames)):
        inputs = [held] if isinstance(held, list) else held
        assert read(videos=inputs)["video"][0, :, 0, 0, 0].tolist() == [0, 4, 8]


def test_measurements_are_named_or_in_order():
    batch = read(vectors=[{"weight": 6.0, "age": 2.0}, [2.0, 6.0], {"age": 2.0}])
    standard = FORMAT.transform(batch)
    np.testing.assert_allclose(standard["vector"], [[1, 1], [1, 1], [1, 0]])
    assert standard["vector_mask"].tolist() == [[True, True], [True, True], [True, False]]
    series = read(series=[np.ones((2, 2)), np.ones((5, 2))])
    assert series["series"].shape == (2, 5, 2) and series["series_mask"].sum(1).tolist() == [2, 5]


def test_what_is_missing_is_marked():
    batch = read(images=[photo(), None], texts=[None, "red"])
    assert {m: x.tolist() for m, x in batch["present"].items()} == {
        "image": [True, False],
        "text": [False, True],
    }
    assert not batch["image"][1].any() and batch["caption"].tolist() == ["", "red"]
    with pytest.raises(ValueError, match="example 1 has none of image, text"):
        read(images=[photo(), None], texts=["red", None])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (dict(images=[photo(), "missing.png"]), r"image 1 \(missing.png\): No such file"),
        (dict(images=[b"abc"]), "image 0: it is no image of a known format"),
        (dict(images=[np.zeros((8, 8, 3))]), "pixels are uint8 in 0..255, got float64"),
        (dict(images=[np.zeros((8, 8, 2), np.uint8)]), "with 1, 3 or 4 channels"),
        (dict(images=[np.zeros((0, 8, 3), np.uint8)]), "the image is empty"),
        (dict(images=[7.5]), r"pixels are uint8|\[H, W\]"),
        (dict(images=[{}]), "a path, the bytes of a file, a Pillow image or an array"),
        (dict(texts=[3]), "a text is a str, got int"),
        (dict(audio=[np.zeros(5)]), "a pair .waveform, samples per second."),
        (dict(audio=[(np.full(50, 9.0), 1000)]), r"floats in \[-1, 1\]"),
        (dict(audio=[(np.zeros((2, 2, 2)), 1000)]), r"\[T, channels\]"),
        (dict(images=[Image.new("RGB", (0, 4))]), "the image is empty: it has 0 x 4 pixels"),
        (dict(images=[Image.new("F", (4, 4))]), "32 bits, in a range that is not known"),
        (dict(images=[Image.new("I", (4, 4))]), "32 bits, in a range that is not known"),
        (dict(videos=[[Image.new("F", (4, 4))]]), "32 bits, in a range that is not known"),
        (dict(images=photo(), image=photo()), "image is given twice, the second time as image"),
        (dict(texts={"red", "green"}), "inputs of text are one input or a list of them, got set"),
        (dict(images=5), "inputs of image are one input or a list of them, got int"),
        (dict(audio=[(np.zeros((2, 50)), 1000)]), "more channels than samples: transpose it"),
        (dict(audio=[(np.full(50, 9000), 1000)]), "or int16 or int32"),  # int64: one cannot tell its range
        (dict(vectors=[[np.inf, 1.0]]), "a value is infinite"),
        (dict(vectors=[{"age": np.inf}]), "a value is infinite"),
        (dict(series=[[[np.inf, 1.0]]]), "a value is infinite"),
        (dict(vectors=[{"height": 1}]), "no feature 'height'; the features are age, weight"),
        (dict(vectors=[np.zeros(3)]), r"shape \(3,\), the training data have \(2,\)"),
        (dict(series=[np.zeros((6, 2))]), "6 steps, at least 1 and at most 5"),
        (dict(videos=[[]]), "no frames"),
        (dict(smells=[1]), "no modality 'smells'; it has text, image"),
        (dict(texts=["a"], images=[]), "same number of inputs"),
        (dict(texts=[]), "there is no input"),
    ],
)  # fmt: skip
def test_an_input_that_cannot_be_used_is_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        read(**inputs)


def test_pictures_of_every_mode_are_read():
    for mode in ("1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16"):
        assert read(images=plain_picture(1, (9, 7)).convert("L").convert(mode) if mode != "I;16" else
                    Image.new("I;16", (9, 7)))["image"].shape == (1, 8, 8, 3)  # fmt: skip
