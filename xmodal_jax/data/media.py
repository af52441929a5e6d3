"""Decode image, audio and video files into the arrays of a batch.

Every function raises ``ValueError`` or ``OSError`` with the reason if the file cannot be decoded completely; the caller
adds where the file was named.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError, features

from xmodal_jax.data.whole_files import check_gif, check_ogg, check_png, check_wav, open_binary, readable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".avif")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a")
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


Fit = Literal["crop", "pad", "stretch"]
"""How an image becomes a square: the shorter side is resized and the centre cropped (crop), the longer side is resized
and the rest filled with black (pad), or each side is resized (stretch)."""
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Filters by which images are resized, antialiased as in Pillow."""


class Resize(NamedTuple):
    """How images become squares of one size."""

    fit: Fit = "crop"
    resample: Resample = "bicubic"
    centre: float = 1.0
    """Fraction of the resized side that is kept, around the centre, above 0 and at most 1: the image is resized (crop:
    its shorter side, stretch: each side) to the square's side divided by this fraction, and then cropped."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Resize:
        """That of the data options of a run's configuration, ``image_fit``, ``resample`` and ``image_centre``."""
        names = {"fit": "image_fit", "resample": "resample", "centre": "image_centre"}
        return cls(**{field: options[name] for field, name in names.items() if options.get(name) is not None})


DEFAULT_RESIZE = Resize()
"""The shorter side resized by a bicubic filter, and the centre cropped."""


def to_square(
    image: Image.Image, size: int, channels: int = 3, resize: Resize = DEFAULT_RESIZE
) -> np.ndarray:
    """The image as uint8 ``[size, size, channels]``, resized as ``resize`` says.

    Transparent pixels become white; 16-bit values keep their upper 8 bits. ``channels``: 1 (gray) or 3 (RGB).
    """
    image = _to_mode(image, channels)
    if image.size != (size, size) or (resize.fit != "pad" and resize.centre < 1):
        method = Image.Resampling[resize.resample.upper()]
        if resize.fit != "pad" and resize.centre < 1:
            image = _crop_centre(image, size, resize)
        elif resize.fit == "crop":
            image = ImageOps.fit(image, (size, size), method=method)
        elif resize.fit == "pad":
            image = ImageOps.pad(image, (size, size), method=method)
        else:
            image = image.resize((size, size), method)
    array = np.asarray(image, np.uint8)
    return array[..., None] if channels == 1 else array


def _crop_centre(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """The square of ``size`` in the middle of the image, which is first resized to a larger size (`Resize.centre`)."""
    side = int(size / resize.centre + 1e-6)  # 256 for 224 / 0.875, which rounding can make less
    shorter = min(image.size)
    width, height = (side, side) if resize.fit == "stretch" else (side * x // shorter for x in image.size)
    image = image.resize((width, height), Image.Resampling[resize.resample.upper()])
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def require_file(path: str | Path) -> None:
    """Raises FileNotFoundError if there is no such file, and ValueError if it is a folder, or a pipe or device, from
    which reading could wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")


LARGE_IMAGE_PIXELS = 2**25
"""Pixels from which images are decoded one at a time: the largest that Pillow allows takes half a GiB."""
_one_large_image = threading.Lock()
_large_images_refused = False


def refuse_large_images() -> None:
    """Large images raise ValueError from now on in this process: another one decodes them, one at a time."""
    global _large_images_refused
    _large_images_refused = True


def _open(file: str | Path | bytes) -> Image.Image:
    if not isinstance(file, bytes):
        require_file(file)
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except UnidentifiedImageError as error:
        if _brand(file) in (b"avif", b"avis") and not features.check("avif"):
            raise ValueError("Pillow was built without AVIF here: pip install 'pillow>=11.3'") from error
        # Pillow's message names a place in memory, another one each time.
        raise ValueError(f"it is no image of a known format: {_beginning(file)}") from error


def _beginning(file: str | Path | bytes) -> str:
    """How a file begins, for messages."""
    with open_binary(file) as stream:
        head = stream.read(12)
    return f"it begins with {head!r}" if head else "it is empty"


def _brand(file: str | Path | bytes) -> bytes | None:
    """The brand of a file of the MP4 family, such as ``avif`` or ``M4A ``; None: it is of another family."""
    with open_binary(file) as stream:
        head = stream.read(12)
    return head[8:] if head[4:8] == b"ftyp" else None


@readable()
def image_size(file: str | Path | bytes) -> tuple[int, int]:
    """Width and height of an image in pixels, from the file's header alone."""
    with _open(file) as image:
        return image.size


def check_known_range(image: Image.Image) -> None:
    """Raises ValueError for pixels of 32 bits: Pillow would clip them at 255, which makes an image black whose values
    lie in 0..1. (In the mode I Pillow also has the 16 bits of PNG and PGM files.)"""
    if image.mode == "F" or (image.mode == "I" and image.format in ("TIFF", None)):
        raise ValueError("its pixels have 32 bits, in a range that is not known: convert it to 8 or 16 bits")


@readable()
def decode_image(
    file: str | Path | bytes, size: int, channels: int = 3, resize: Resize = DEFAULT_RESIZE
) -> np.ndarray:
    """Uint8 ``[size, size, channels]`` from a path or from the bytes of a file; see `to_square`.

    The camera's orientation (EXIF) is applied. A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is
    still at least twice ``size``, which is several times faster.
    """
    with _open(file) as image:
        if image.format == "PNG":
            check_png(file)
        check_known_range(image)
        image.draft(None, (2 * size, 2 * size))
        is_large = image.width * image.height > LARGE_IMAGE_PIXELS
        if is_large and _large_images_refused:
            raise ValueError("it is decoded by another process")
        with _one_large_image if is_large else contextlib.nullcontext():
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_square(image, size, channels, resize)


def _evenly_spaced(total: int, count: int) -> np.ndarray:
    """``count`` indices from 0 to ``total - 1``, evenly spaced; some repeat if ``count`` exceeds ``total``."""
    return np.round(np.linspace(0, total - 1, count)).astype(int)


@readable()
def decode_video(
    file: str | Path | bytes, frames: int, size: int, channels: int = 3, resize: Resize = DEFAULT_RESIZE
) -> np.ndarray:
    """Uint8 ``[frames, size, size, channels]`` from a path or from the bytes of a file: frames evenly spaced from the
    first to the last, see `to_square`.

    A clip with fewer frames repeats some. ``.gif`` and animated WebP are read by Pillow; ``.mp4`` needs the package
    imageio-ffmpeg. Only the frames of the result are kept in memory. A video that takes longer than `VIDEO_SECONDS`, or
    an animation of more than `MAX_ANIMATION_PIXELS`, raises ValueError.
    """
    if isinstance(file, bytes) and file[4:8] == b"ftyp":  # as an MP4 file begins; FFmpeg has to seek in it
        with tempfile.NamedTemporaryFile(suffix=".mp4") as copy:
            copy.write(file)
            copy.flush()
            return _decode_mp4(copy.name, frames, size, channels, resize)
    if not isinstance(file, bytes) and Path(file).suffix.lower() == ".mp4":
        return _decode_mp4(file, frames, size, channels, resize)
    with _open(file) as image:
        if image.format == "GIF":
            check_gif(file)
        count = getattr(image, "n_frames", 1)
        if count * image.width * image.height > MAX_ANIMATION_PIXELS:
            raise ValueError(
                f"the animation states {count} frames of {image.width} x {image.height} pixels, more than "
                f"{MAX_ANIMATION_PIXELS:.0e} pixels: shorten it"
            )
        indices = _evenly_spaced(count, frames)
        frame_by_index = {}
        for i, frame in enumerate(ImageSequence.Iterator(image)):
            if i in indices:
                frame_by_index[i] = to_square(frame, size, channels, resize)
    if not frame_by_index or indices[-1] not in frame_by_index:
        raise ValueError("the animation ends before its last frame")
    return np.stack([frame_by_index[i] for i in indices])


VIDEO_SECONDS = 120.0
"""Seconds that the decoding of a video may take."""
MAX_ANIMATION_PIXELS = 10**10
"""Pixels that all frames of a .gif or .webp may have: about a minute to decode. A small file can state far more."""
MAX_FRAME_PIXELS = 2 * 89_478_485
"""Pixels of a video's frame, at most: what Pillow allows for an image."""


def _decode_mp4(path: str | Path, frames: int, size: int, channels: int, resize: Resize) -> np.ndarray:
    """Uint8 ``[frames, size, size, channels]``: frames of an .mp4 file, evenly spaced from the first to the last.

    The file is decoded twice, because only the end tells how many frames there are: once as images of one pixel, which
    are counted, and once to keep the frames of the result.
    """
    require_file(path)
    deadline = time.monotonic() + VIDEO_SECONDS
    with _ffmpeg_to_ppm(path, deadline, "-vf", "scale=1:1") as stream:
        count = sum(1 for _ in iter(lambda: _read_ppm(stream, keep=False), None))
    if not count:
        raise ValueError("the video has no frames")
    indices = _evenly_spaced(count, frames)
    wanted, frame_by_index = set(indices.tolist()), {}
    with _ffmpeg_to_ppm(path, deadline) as stream:
        for i in range(count):
            frame = _read_ppm(stream, keep=i in wanted)
            if frame is None:
                raise ValueError("the video ends before its last frame")
            if i in wanted:
                frame_by_index[i] = to_square(frame, size, channels, resize)
    return np.stack([frame_by_index[i] for i in indices])


def _read_ppm(stream: BinaryIO, keep: bool) -> Image.Image | bool | None:
    """The next PPM image of a stream (three header lines "P6", size and depth, then 3 bytes per pixel), or True for an
    image that is skipped, without ``keep``; None at the end."""
    if not stream.readline():
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()
    pixels = stream.read(3 * width * height)
    if len(pixels) < 3 * width * height:
        raise ValueError("the video ends within a frame")
    return Image.frombytes("RGB", (width, height), pixels) if keep else True


def _ffmpeg_to_ppm(
    path: str | Path, deadline: float, *options: str
) -> contextlib.AbstractContextManager[BinaryIO]:
    """A stream of all frames of a video as PPM images, one after the other; see `_run_ffmpeg`."""
    return _run_ffmpeg(path, deadline, *options, "-f", "image2pipe", "-c:v", "ppm")


@contextlib.contextmanager
def _run_ffmpeg(path: str | Path, deadline: float, *options: str) -> Iterator[BinaryIO]:
    """A stream of what ffmpeg makes of a file.

    Args:
      path: the file. FFmpeg may open no other, nor a network address, whatever the file says.
      deadline: the value of ``time.monotonic()`` at which decoding is stopped.
      options: options of ffmpeg for the output.

    Raises:
      ValueError: ffmpeg cannot read the file, or it takes too long.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ValueError("reading .mp4 and .m4a needs: pip install imageio-ffmpeg") from error
    # The ffmpeg program itself: the package's reader leaves pipes open when a file is bad.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-protocol_whitelist", "file,pipe"]
    command += ["-max_pixels", str(MAX_FRAME_PIXELS), "-i", f"file:{path}"]
    command += [*options, "-"]
    with (
        tempfile.TemporaryFile() as messages,  # not a pipe, which would have to be read at the same time
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages
        ) as process,
    ):
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        timer.start()
        try:
            yield process.stdout
            failed = process.wait()
        except ValueError:
            # If the stream ended too early because decoding was stopped, that is what went wrong.
            failed = 1 if time.monotonic() >= deadline else 0
            if not failed:
                raise
        finally:
            timer.cancel()
            process.kill()
        if failed and time.monotonic() >= deadline:
            raise ValueError(
                f"decoding takes longer than {VIDEO_SECONDS:.0f} s: shorten the video or make it smaller"
            )
        if failed:
            messages.seek(0)
            # A message begins with the part of ffmpeg that it comes from: "[mov,mp4 @ 0x55b6a67]".
            lines = re.sub(r"\[[^\]]* @ 0x[0-9a-f]+\] ", "", messages.read().decode(errors="replace"))
            raise ValueError(f"ffmpeg cannot read the file: {' '.join(lines.split())[:200]}")


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

    if not isinstance(file, bytes):
        require_file(file)
    if _brand(file) is not None:
        waveform, source_rate = _decode_m4a(file, max_seconds)
        return resample_and_cut(waveform, source_rate, sample_rate, max_seconds)
    check_wav(file)
    check_ogg(file)
    try:
        with soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as sound:
            # Read a little beyond max_seconds, to learn whether the recording is longer; -1 reads all.
            frames = -1 if max_seconds is None else int((max_seconds + 0.2) * sound.samplerate) + 2
            waveform = sound.read(frames, dtype="float32")
            return resample_and_cut(waveform, sound.samplerate, sample_rate, max_seconds)
    except soundfile.SoundFileError as error:
        # The message for contents names a place in memory, another one each time.
        reason = re.sub(r"^Error opening .*?: ", "", str(error).rstrip("."))
        raise ValueError(f"cannot be decoded as audio ({reason}): {_beginning(file)}") from error


def _decode_m4a(file: str | Path | bytes, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """``(waveform, rate)`` of an .m4a file, by ffmpeg: float32 ``[t, channels]`` in [-1, 1], a little longer than
    ``max_seconds`` at most, and its sample rate in Hz."""
    limit = () if max_seconds is None else ("-t", f"{max_seconds + 0.2:.3f}")
    with _m4a_to_au(file, *limit) as stream:
        blocks, rate, channels = _read_au(stream, -1)
        data = b"".join(blocks)
    return _au_samples(data, channels), rate


@contextlib.contextmanager
def _m4a_to_au(file: str | Path | bytes, *options: str) -> Iterator[BinaryIO]:
    """A stream of an .m4a file as an .au file of 32-bit floats, by ffmpeg with these ``options``."""
    if isinstance(file, bytes):  # FFmpeg has to seek in it
        with tempfile.NamedTemporaryFile(suffix=".m4a") as copy:
            copy.write(file)
            copy.flush()
            with _m4a_to_au(copy.name, *options) as stream:
                yield stream
        return
    options = ("-xerror", "-vn", *options, "-f", "au", "-c:a", "pcm_f32be")
    with _run_ffmpeg(file, time.monotonic() + VIDEO_SECONDS, *options) as stream:
        yield stream


def _read_au(stream: BinaryIO, frames: int) -> tuple[Iterator[bytes], int, int]:
    """``(blocks, rate, channels)`` of a stream of `_m4a_to_au`: the bytes of ``frames`` samples of all channels at a
    time (-1: of all), its sample rate in Hz and its number of channels."""
    # The header of an .au file: big-endian, the offset of the samples first, and the rate and the channels last.
    head = stream.read(24)
    if len(head) < 24:
        raise ValueError("the recording has no samples")
    offset, rate, channels = (int.from_bytes(head[k : k + 4], "big") for k in (4, 16, 20))
    stream.read(offset - 24)
    size = -1 if frames < 0 else 4 * channels * frames
    return iter(lambda: stream.read(size), b""), rate, channels


def _au_samples(data: bytes, channels: int) -> np.ndarray:
    """Float32 ``[t, channels]`` of the bytes of `_read_au`; an incomplete sample at the end is left out."""
    samples = np.frombuffer(data, ">f4", count=len(data) // (4 * channels) * channels)
    return samples.astype(np.float32).reshape(-1, channels)


BLOCK_SECONDS = 5.0
"""Seconds of a recording that `decode_audio_blocks` holds in memory at a time."""


def decode_audio_blocks(file: str | Path | bytes, sample_rate: int) -> Iterator[np.ndarray]:
    """The samples of `decode_audio`, block by block: int16 ``[t]`` at ``sample_rate`` Hz.

    The memory does not grow with the length of the recording; .m4a files are decoded to a temporary file first. Blocks
    have about `BLOCK_SECONDS`.

    Raises:
      ValueError, OSError: the file cannot be decoded; some blocks of a damaged one may come first.

    Example::

        sum(len(block) for block in decode_audio_blocks("lecture.flac", 16_000)) / 16_000  # seconds
    """
    import soundfile

    if not isinstance(file, bytes):
        require_file(file)
    if _brand(file) is not None:
        with tempfile.TemporaryFile() as copy:
            with _m4a_to_au(file) as stream:
                shutil.copyfileobj(stream, copy)
            copy.seek(0)
            rate = int.from_bytes(copy.read(24)[16:20], "big")
            copy.seek(0)
            blocks, rate, channels = _read_au(copy, int(BLOCK_SECONDS * rate))
            yield from resample_blocks((_au_samples(data, channels) for data in blocks), rate, sample_rate)
        return
    check_wav(file)
    check_ogg(file)
    try:
        with soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as sound:
            blocks = sound.blocks(int(BLOCK_SECONDS * sound.samplerate), dtype="float32")
            yield from resample_blocks(blocks, sound.samplerate, sample_rate)
    except soundfile.SoundFileError as error:
        reason = re.sub(r"^Error opening .*?: ", "", str(error).rstrip("."))
        raise ValueError(f"cannot be decoded as audio ({reason}): {_beginning(file)}") from error


def resample_blocks(blocks: Iterable[np.ndarray], source_rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """`resample_and_cut` of a recording that comes in blocks, floats ``[t]`` or ``[t, channels]`` in [-1, 1] of any
    lengths: int16 ``[t]`` at ``sample_rate`` Hz, of lengths that differ from those of the blocks.

    Where both rates are equal, a block is passed on as soon as it comes. Otherwise the filter (soxr, high quality)
    delays samples by some ten milliseconds.

    Raises:
      ValueError: there are no samples, or values that are not finite.
    """
    import soxr

    resampler = None
    if source_rate != sample_rate:
        resampler = soxr.ResampleStream(source_rate, sample_rate, 1, dtype="float32")
    empty = True
    for block in blocks:
        waveform = block.mean(axis=1) if block.ndim == 2 else block
        if not np.isfinite(waveform).all():
            raise ValueError("the recording holds values that are not finite")
        if resampler is not None:
            waveform = resampler.resample_chunk(waveform.astype(np.float32))
        if waveform.size:
            empty = False
            yield to_pcm(waveform)
    rest = np.zeros(0, np.float32)
    if resampler is not None:
        rest = resampler.resample_chunk(rest, last=True)
    if rest.size:
        yield to_pcm(rest)
    elif empty:
        raise ValueError("the recording has no samples")
