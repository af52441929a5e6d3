"""Decoding of real small files, against what was written into them."""

import os
import subprocess
import tracemalloc

import numpy as np
import pytest
import soundfile
from PIL import Image, UnidentifiedImageError

from xmodal_jax.data import media


def gradient(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 5 % 256, x * 7 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "tiff"])
def test_lossless_image_round_trip(tmp_path, suffix):
    image = gradient(17, 17)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(image).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(media.decode_image(path, 17), image)
    np.testing.assert_array_equal(media.decode_image(path.read_bytes(), 17), image)
    assert min(media.image_size(path)) == 17


def test_centre_crop_takes_the_middle_columns(tmp_path):
    image = gradient(11, 31)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(media.decode_image(tmp_path / "a.png", 11), image[:, 10:21])


def test_downscaling_is_antialiased(tmp_path):
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checker).save(tmp_path / "a.png")
    small = media.decode_image(tmp_path / "a.png", 8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small.astype(int) - 127).max() < 12  # without antialiasing every value would be 0 or 255


def test_modes_become_rgb_or_gray(tmp_path):
    transparent = np.zeros((5, 5, 4), np.uint8)
    transparent[2, 2] = (10, 20, 30, 255)
    Image.fromarray(transparent).save(tmp_path / "rgba.png")
    out = media.decode_image(tmp_path / "rgba.png", 5)
    assert tuple(out[0, 0]) == (255, 255, 255) and tuple(out[2, 2]) == (10, 20, 30)
    deep = (np.arange(25, dtype=np.uint16) * 2500).reshape(5, 5)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(media.decode_image(tmp_path / "deep.png", 5, 1)[..., 0], deep >> 8)


def test_truncated_image_raises(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 31, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ValueError, match="truncated"):
        media.decode_image(path, 31)


def test_jpeg_draft_is_close_to_the_full_decoding(tmp_path):
    y, x = np.mgrid[:512, :512]
    smooth = np.stack([127 + 100 * np.sin(x / 90), 127 + 100 * np.cos(y / 70), (x + y) / 4], -1).astype(
        np.uint8
    )
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        full = media.to_square(image, 32)
    assert np.abs(media.decode_image(tmp_path / "a.jpg", 32).astype(int) - full).max() <= 4


def test_gif_frames_are_evenly_spaced(tmp_path):
    frames = [Image.fromarray(np.full((7, 7, 3), 20 * i, np.uint8)) for i in range(11)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    video = media.decode_video(tmp_path / "a.gif", 3, 7)
    assert video.shape == (3, 7, 7, 3)
    np.testing.assert_allclose(video[:, 3, 3, 0], [0, 100, 200], atol=2)
    assert media.decode_video(tmp_path / "a.gif", 23, 7).shape[0] == 23


def write_mp4(path, frames, rate):
    """A film of the ``frames`` ``[F, H, W, 3]``, ``rate`` of them a second."""
    imageio = pytest.importorskip("imageio_ffmpeg")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(rate), "-i", "-"]
    command = [imageio.get_ffmpeg_exe(), "-v", "error", *raw, "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)


def test_mp4_frames(tmp_path):
    frames = np.stack([np.full((32, 32, 3), 25 * i, np.uint8) for i in range(10)])
    write_mp4(tmp_path / "a.mp4", frames, rate=10)
    video = media.decode_video(tmp_path / "a.mp4", 4, 16)
    np.testing.assert_allclose(video[:, 8, 8, 1], [0, 75, 150, 225], atol=6)
    (tmp_path / "bad.mp4").write_bytes(b"not a film")
    with pytest.raises((ValueError, OSError)):
        media.decode_video(tmp_path / "bad.mp4", 4, 16)


@pytest.fixture
def film(tmp_path):
    """An .mp4 file of 60 frames, 320 by 240 pixels, the k-th of the gray level 4k."""
    frames = np.stack([np.full((240, 320, 3), 4 * k, np.uint8) for k in range(60)])
    write_mp4(tmp_path / "a.mp4", frames, rate=30)
    return tmp_path / "a.mp4"


def test_of_a_film_only_the_frames_of_the_result_are_kept(film):
    """The whole film is 13.8 MB, a frame 230 kB."""
    tracemalloc.start()
    video = media.decode_video(film, 4, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(video[:, 8, 8, 1], 4 * np.array([0, 20, 39, 59]), atol=4)
    assert peak < 2_000_000


def test_a_film_that_takes_too_long_is_given_up(film, monkeypatch):
    monkeypatch.setattr(media, "VIDEO_SECONDS", 0.01)
    with pytest.raises(ValueError, match="decoding takes longer than 0 s: shorten the video"):
        media.decode_video(film, 4, 16)


def test_a_film_that_is_cut_off_is_an_error(film):
    film.write_bytes(film.read_bytes()[:-500])
    with pytest.raises(ValueError, match="ffmpeg cannot read the file"):
        media.decode_video(film, 4, 16)


def test_a_film_cannot_name_other_files(tmp_path):
    """FFmpeg reads a play list whatever its suffix; it must not fetch what that names."""
    pytest.importorskip("imageio_ffmpeg")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.mp4").write_text(playlist)
    with pytest.raises(ValueError, match="ffmpeg cannot read the file"):
        media.decode_video(tmp_path / "a.mp4", 4, 16)


def test_an_animation_that_states_too_many_pixels_is_refused(tmp_path, monkeypatch):
    frames = [Image.fromarray(np.full((7, 7, 3), 20 * i, np.uint8)) for i in range(11)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(media, "MAX_ANIMATION_PIXELS", 11 * 49 - 1)
    with pytest.raises(ValueError, match="11 frames of 7 x 7 pixels"):
        media.decode_video(tmp_path / "a.gif", 3, 7)


@pytest.mark.parametrize("suffix", ["png", "gif", "mp4", "wav"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, suffix):
    """Opening a pipe would wait for ever."""
    path = tmp_path / f"a.{suffix}"
    os.mkfifo(path)
    decode = {
        "png": lambda: media.decode_image(path, 4),
        "wav": lambda: media.decode_audio(path, 16000),
    }.get(suffix, lambda: media.decode_video(path, 4, 4))
    with pytest.raises(ValueError, match="not a regular file"):
        decode()
    with pytest.raises(ValueError, match="not a regular file"):
        media.image_size(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        decode()


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_pcm_round_trip(tmp_path, suffix):
    samples = np.random.default_rng(0).integers(-32768, 32768, 1013).astype(np.int16)
    soundfile.write(tmp_path / f"a.{suffix}", samples, 16000, subtype="PCM_16")
    decoded, cut = media.decode_audio(tmp_path / f"a.{suffix}", 16000)
    np.testing.assert_array_equal(decoded, samples)
    assert not cut


def test_resampling_keeps_a_tone(tmp_path):
    t = np.arange(8000) / 8000
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * t), 8000)
    decoded, _ = media.decode_audio(tmp_path / "a.wav", 16000)
    assert decoded.shape == (16000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(decoded / 32768 - expected)[500:-500].max() < 1e-3


def test_stereo_ogg_is_averaged(tmp_path):
    t = np.arange(16000) / 16000
    tone = 0.4 * np.sin(2 * np.pi * 220 * t)
    soundfile.write(tmp_path / "a.ogg", np.stack([tone, np.zeros_like(tone)], 1), 16000)
    decoded, _ = media.decode_audio(tmp_path / "a.ogg", 16000)
    assert np.abs(decoded / 32768 - tone / 2).max() < 0.05


def test_cut_and_empty(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.25), 16000)
    decoded, cut = media.decode_audio(tmp_path / "a.wav", 16000, 0.5)
    assert decoded.shape == (8000,) and cut
    assert not media.decode_audio(tmp_path / "a.wav", 16000, 1.0)[1]
    resampled, cut = media.decode_audio(tmp_path / "a.wav", 8000, 0.5)
    assert resampled.shape == (4000,) and cut
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match="no samples"):
        media.decode_audio(tmp_path / "empty.wav", 16000)
    (tmp_path / "bad.wav").write_bytes(b"RIFFxxxx")
    with pytest.raises(ValueError, match="cannot be decoded as audio"):
        media.decode_audio(tmp_path / "bad.wav", 16000)


def test_how_images_become_square(tmp_path):
    """A picture of 8 x 4 pixels, left half red, right half blue."""
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, :4, 0], wide[:, 4:, 2] = 255, 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    square = lambda fit, size=4: media.decode_image(
        tmp_path / "wide.png", size, resize=media.Resize(fit, "nearest")
    )
    np.testing.assert_array_equal(square("crop"), wide[:, 2:6])
    np.testing.assert_array_equal(square("stretch"), wide[:, ::2])
    padded = square("pad", 8)
    np.testing.assert_array_equal(padded[2:6], wide)
    assert not padded[:2].any() and not padded[6:].any()
    smooth = media.decode_image(tmp_path / "wide.png", 4, resize=media.Resize("stretch", "bilinear"))
    assert len(np.unique(smooth)) > 2  # colours mixed at the border


def test_a_changed_byte_of_a_png_is_noticed_by_its_checksum(tmp_path):
    """Decoders do not look at the checksum of the pixels."""
    path = tmp_path / "a.png"
    Image.fromarray(gradient(17, 17)).save(path, compress_level=0)
    content = path.read_bytes()
    start = (
        content.index(b"IDAT") + 4 + 7 + 1 + 10
    )  # behind two headers and the filter of the first row: a pixel
    path.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    with pytest.raises(ValueError, match="IDAT.*another checksum"):
        media.decode_image(path, 17)


def test_cut_animations_and_recordings_are_not_taken_for_shorter_ones(tmp_path):
    gif, wav = tmp_path / "a.gif", tmp_path / "a.wav"
    frames = [Image.new("L", (9, 7), level) for level in (0, 90, 180, 250)]
    frames[0].save(gif, save_all=True, append_images=frames[1:])
    samples = np.arange(-500, 500, dtype=np.int16)
    soundfile.write(wav, samples, 8000)
    assert media.decode_video(gif, 4, 7)[:, 0, 0, 0].tolist() == [0, 90, 180, 250]
    np.testing.assert_array_equal(media.decode_audio(wav.read_bytes(), 8000)[0], samples)
    for path, decode in (
        (gif, lambda: media.decode_video(gif, 4, 7)),
        (wav, lambda: media.decode_audio(wav, 8000)),
    ):
        content = path.read_bytes()
        for stop in (len(content) - 1, len(content) // 2, 20):
            path.write_bytes(content[:stop])
            with pytest.raises((ValueError, OSError)):
                decode()
        path.write_bytes(content)
    # A recording that was written to a pipe does not know its length.
    content = bytearray(wav.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = b"\xff\xff\xff\xff"
    np.testing.assert_array_equal(media.decode_audio(bytes(content), 8000)[0], samples)


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_the_centre_of_a_larger_image_is_kept(fit):
    """Of an image that is already larger by that much it is the middle, pixel by pixel; padding keeps everything."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    found = media.to_square(Image.fromarray(pixels), 16, resize=media.Resize(fit, "bicubic", 0.8))
    whole = media.to_square(Image.fromarray(pixels), 16, resize=media.Resize(fit, "bicubic"))
    np.testing.assert_array_equal(found, whole if fit == "pad" else pixels[2:18, 2:18])
    small = media.to_square(
        Image.fromarray(pixels[:16, :16]), 16, resize=media.Resize("crop", "bicubic", 0.8)
    )
    assert not np.array_equal(small, pixels[:16, :16])  # an image of the right size is enlarged as well


@pytest.mark.parametrize("suffix,options", [("jfif", {"format": "JPEG"}), ("avif", {})])
def test_other_suffixes_of_images_are_read(tmp_path, suffix, options):
    path = tmp_path / f"a.{suffix}"
    y, x = np.mgrid[:32, :32]
    smooth = np.stack([4 * x, 4 * y, 2 * (x + y)], -1).astype(np.uint8)
    Image.fromarray(smooth).save(path, quality=95, **options)
    for file in (path, path.read_bytes()):
        assert np.abs(media.decode_image(file, 32).astype(int) - smooth).max() < 16
    assert media.modality_of_file(path.name) == "image"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises((ValueError, OSError)):
        media.decode_image(path, 32)


def test_avif_without_support_says_so(tmp_path, monkeypatch):
    Image.fromarray(gradient(9, 9)).save(tmp_path / "a.avif")

    def refuse(*args):
        raise UnidentifiedImageError("cannot identify image file")

    monkeypatch.setattr(media.features, "check", lambda name: False)
    monkeypatch.setattr(media.Image, "open", refuse)
    with pytest.raises(ValueError, match="Pillow was built without AVIF"):
        media.decode_image(tmp_path / "a.avif", 9)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_32_bits_are_refused(tmp_path, dtype):
    """What range they have is not known: values in 0..1 would all become black."""
    Image.fromarray(np.full((5, 5), 1, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="32 bits, in a range that is not known"):
        media.decode_image(tmp_path / "a.tif", 5)
    deep = (np.arange(25, dtype=np.uint16) * 2500).reshape(5, 5)
    Image.fromarray(deep).save(tmp_path / "b.tif")
    np.testing.assert_array_equal(media.decode_image(tmp_path / "b.tif", 5, 1)[..., 0], deep >> 8)


@pytest.mark.parametrize("suffix", ["opus", "m4a"])
def test_compressed_recordings_are_read(tmp_path, suffix):
    """Two channels of a tone: its frequency, strength and length come back, as a whole and cut."""
    rate, path = 24000, tmp_path / f"a.{suffix}"
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    if suffix == "opus":
        soundfile.write(path, np.stack([tone, tone], 1), rate, format="OGG", subtype="OPUS")
    else:
        ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
        soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], 1), rate)
        subprocess.run(
            [ffmpeg, "-v", "error", "-i", tmp_path / "a.wav", "-movflags", "+faststart", path], check=True
        )
    assert media.modality_of_file(path.name) == "audio"
    for file in (path, path.read_bytes()):
        samples, was_cut = media.decode_audio(file, 16000, 5.0)
        assert not was_cut and abs(len(samples) - 16000) < 400 and samples.dtype == np.int16
        blocks = np.concatenate(list(media.decode_audio_blocks(file, 16000)))
        n = min(len(blocks), len(samples))
        assert (
            abs(len(blocks) - len(samples)) <= 1 and np.abs(blocks[:n].astype(int) - samples[:n]).max() <= 1
        )
        middle = samples[4000:12000] / 32768
        assert np.argmax(np.abs(np.fft.rfft(middle))) == 220 and abs(middle.std() - 0.3 / 2**0.5) < 0.02
    samples, was_cut = media.decode_audio(path, 16000, 0.25)
    assert was_cut and len(samples) == 4000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError):
        media.decode_audio(path, 16000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_blocks_of_a_recording_are_the_whole(tmp_path, suffix, rate, monkeypatch):
    monkeypatch.setattr(media, "BLOCK_SECONDS", 0.3)
    rng = np.random.default_rng(0)
    sound = np.cumsum(rng.normal(0, 0.02, (2 * rate + 77, 2)), axis=0)
    soundfile.write(tmp_path / f"a.{suffix}", 0.5 * np.sin(sound), rate)
    for file in (tmp_path / f"a.{suffix}", (tmp_path / f"a.{suffix}").read_bytes()):
        whole, _ = media.decode_audio(file, 16_000)
        blocks = list(media.decode_audio_blocks(file, 16_000))
        assert len(blocks) > 5 and max(map(len, blocks)) < len(whole) / 2
        joined = np.concatenate(blocks)
        assert abs(len(joined) - len(whole)) <= 1  # the number of samples is rounded at the end
        n = min(len(joined), len(whole))
        assert np.abs(joined[:n].astype(int) - whole[:n]).max() <= 1


def test_blocks_without_samples_are_a_mistake(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    with pytest.raises(ValueError, match="no samples"):
        list(media.decode_audio_blocks(tmp_path / "a.wav", 16_000))
    with pytest.raises(ValueError, match="not finite"):
        list(media.resample_blocks([np.array([0.0, np.nan])], 8000, 16_000))
    (tmp_path / "b.wav").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be decoded as audio"):
        list(media.decode_audio_blocks(tmp_path / "b.wav", 16_000))
