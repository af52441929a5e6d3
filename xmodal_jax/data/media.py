"""Decode image, audio and video files into the arrays of a batch.

Every function raises ``ValueError`` or ``OSError`` with the reason if the file cannot be decoded completely; the caller
adds where the file was named.
"""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
VIDEO_SUFFIXES = (".gif", ".mp4")


def modality_of_file(name: str) -> str | None:
    """``image``, ``audio`` or ``video`` by the file's suffix; None if the suffix is not known."""
    suffix = Path(name).suffix.lower()
    for modality, suffixes in (
        ("image", IMAGE_SUFFIXES),
        ("audio", AUDIO_SUFFIXES),
        ("video", VIDEO_SUFFIXES),
    ):
        if suffix in suffixes:
            return modality
    return None


def _to_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image in 8-bit gray levels (``channels`` 1) or 8-bit RGB (3); transparent pixels become white."""
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow's modes of 16-bit gray images
        # Pillow would clip 16-bit values at 255 rather than scale them.
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def resize_and_crop(image: Image.Image, size: int, channels: int = 3) -> np.ndarray:
    """Uint8 ``[size, size, channels]``: the shorter side resized to ``size`` (antialiased bicubic), then the centre
    cropped.

    Transparent pixels become white; 16-bit values keep their upper 8 bits. ``channels``: 1 (gray) or 3 (RGB).
    """
    image = _to_mode(image, channels)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    array = np.asarray(image, np.uint8)
    return array[..., None] if channels == 1 else array


def _open(file: str | Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)


def shorter_side(file: str | Path | bytes) -> int:
    """The shorter side of an image in pixels, from the file's header alone."""
    with _open(file) as image:
        return min(image.size)


def decode_image(file: str | Path | bytes, size: int, channels: int = 3) -> np.ndarray:
    """Uint8 ``[size, size, channels]`` from a path or from the bytes of a file; see `resize_and_crop`.

    The camera's orientation (EXIF) is applied. A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is
    still at least twice ``size``, which is several times faster.
    """
    with _open(file) as image:
        image.draft(None, (2 * size, 2 * size))
        image.load()
        return resize_and_crop(ImageOps.exif_transpose(image), size, channels)


def _evenly_spaced(total: int, count: int) -> np.ndarray:
    """``count`` indices from 0 to ``total - 1``, evenly spaced; some repeat if ``count`` exceeds ``total``."""
    return np.round(np.linspace(0, total - 1, count)).astype(int)


def decode_video(path: str | Path, frames: int, size: int, channels: int = 3) -> np.ndarray:
    """Uint8 ``[frames, size, size, channels]``: frames evenly spaced from the first to the last, see `resize_and_crop`.

    A clip with fewer frames repeats some. ``.gif`` and animated WebP are read by Pillow; ``.mp4`` needs the package
    imageio-ffmpeg.
    """
    if Path(path).suffix.lower() == ".mp4":
        return _decode_mp4(path, frames, size, channels)
    with Image.open(path) as image:
        indices = _evenly_spaced(getattr(image, "n_frames", 1), frames)
        frame_by_index = {}
        for i, frame in enumerate(ImageSequence.Iterator(image)):
            if i in indices:
                frame_by_index[i] = resize_and_crop(frame, size, channels)
    if not frame_by_index or indices[-1] not in frame_by_index:
        raise ValueError("the animation ends before its last frame")
    return np.stack([frame_by_index[i] for i in indices])


def _decode_mp4(path: str | Path, frames: int, size: int, channels: int) -> np.ndarray:
    """Uint8 ``[frames, size, size, channels]``: frames of an .mp4 file, evenly spaced from the first to the last."""
    stream, images = io.BytesIO(_ffmpeg_to_ppm(path)), []
    content = stream.getbuffer()
    while stream.tell() < len(content):
        with Image.open(io.BytesIO(content[stream.tell() :])) as frame:
            images.append(resize_and_crop(frame, size, channels))
        width, height = frame.size
        # Skip to the next frame. A PPM image is three header lines ("P6", size, depth), then 3 bytes per pixel.
        for _ in range(3):
            stream.readline()
        stream.seek(3 * width * height, io.SEEK_CUR)
    if not images:
        raise ValueError("the video has no frames")
    return np.stack([images[i] for i in _evenly_spaced(len(images), frames)])


def _ffmpeg_to_ppm(path: str | Path) -> bytes:
    """All frames of a video as PPM images, one after the other."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ValueError("reading .mp4 needs: pip install imageio-ffmpeg") from error
    if not Path(path).exists():
        raise FileNotFoundError(f"no such file: {path}")
    # The ffmpeg program itself: the package's reader leaves pipes open when a file is bad.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-"]
    process = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    if process.returncode:
        raise ValueError(
            f"ffmpeg cannot read the file: {process.stderr.decode(errors='replace').strip()[-200:]}"
        )
    return process.stdout


def to_pcm(waveform: np.ndarray) -> np.ndarray:
    """Int16 ``[T]`` from float ``[T]`` in [-1, 1], times 32768 and rounded; values out of range are clipped."""
    return np.clip(np.round(waveform * 32768.0), -32768, 32767).astype(np.int16)


def resample_and_cut(
    waveform: np.ndarray, source_rate: int, sample_rate: int, max_seconds: float | None
) -> tuple[np.ndarray, bool]:
    """``(samples, was_cut)``: int16 ``[t]`` at ``sample_rate`` Hz from floats ``[t]`` or ``[t, channels]`` in [-1, 1],
    at most ``max_seconds`` long (None: any length).

    Channels are averaged; resampling is band-limited (soxr, high quality).
    """
    if waveform.ndim == 2:
        waveform = waveform.mean(axis=1)
    if not waveform.size:
        raise ValueError("the recording has no samples")
    if not np.isfinite(waveform).all():
        raise ValueError("the recording holds values that are not finite")
    limit = None if max_seconds is None else int(round(max_seconds * sample_rate))  # samples of the result
    was_cut = limit is not None and waveform.shape[0] * sample_rate > limit * source_rate
    if source_rate != sample_rate:
        import soxr

        if limit is not None:  # a little more than the limit, so that the filter sees past the cut
            waveform = waveform[: int((limit / sample_rate + 0.1) * source_rate) + 1]
        waveform = soxr.resample(waveform.astype(np.float32), source_rate, sample_rate)
    samples = to_pcm(waveform[:limit])
    if not samples.size:
        raise ValueError("the recording has no samples")
    return samples, bool(was_cut)


def decode_audio(
    file: str | Path | bytes, sample_rate: int, max_seconds: float | None = None
) -> tuple[np.ndarray, bool]:
    """``(samples, was_cut)`` from a path or from the bytes of a file: int16 ``[t]`` at ``sample_rate`` Hz, and
    whether the recording was longer than ``max_seconds``. See `resample_and_cut`."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as sound:
            # Read a little beyond max_seconds, to learn whether the recording is longer; -1 reads all.
            frames = -1 if max_seconds is None else int((max_seconds + 0.2) * sound.samplerate) + 2
            waveform = sound.read(frames, dtype="float32")
            return resample_and_cut(waveform, sound.samplerate, sample_rate, max_seconds)
    except soundfile.SoundFileError as error:
        raise ValueError(f"cannot be decoded as audio: {error}") from error
