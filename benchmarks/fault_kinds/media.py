"""Images, animations and recordings, in all modes and damaged, given to the decoders."""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from benchmarks.fault_kinds import ANYTHING, REFUSED, Case, Kind, choose, cut, flip_bits
from xmodal_jax.data import media

SIDE = 6
RATE = 8000
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK")
DAMAGES = (
    "cut",
    "bits flipped",
    "bytes swapped",
    "zeros within",
    "no content",
    "text",
    "pipe",
    "folder",
    "missing",
)


def _image(rng: np.random.Generator) -> tuple[bytes, str, np.ndarray]:
    """``(content, suffix, pixel)``: an image of one colour, and that colour in RGB."""
    mode, suffix = choose(rng, MODES), choose(rng, (".png", ".jpg", ".webp", ".bmp"))
    if suffix == ".bmp" and mode in ("LA", "RGBA", "I;16", "CMYK"):
        suffix = ".png"
    if suffix in (".jpg", ".webp") and mode not in ("L", "RGB", "CMYK"):
        suffix = ".png"
    if mode == "CMYK":
        suffix = ".jpg"
    level = int(rng.integers(0, 256))
    size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    if mode == "1":
        image, pixel = Image.new("1", size, level > 127), [255 * (level > 127)] * 3
    elif mode == "L":
        image, pixel = Image.new("L", size, level), [level] * 3
    elif mode == "LA":
        image, pixel = Image.new("LA", size, (level, 255)), [level] * 3
    elif mode == "I;16":
        image, pixel = Image.fromarray(np.full(size[::-1], 256 * level + 7, np.uint16)), [level] * 3
    elif mode == "P":
        pixel = [int(c) for c in rng.integers(0, 256, 3)]
        image = Image.new("P", size, 1)
        image.putpalette([0, 0, 0, *pixel])
    elif mode == "RGBA":  # transparent pixels are white
        pixel = [int(c) for c in rng.integers(0, 256, 3)]
        opaque = bool(rng.integers(2))
        image = Image.new("RGBA", size, (*pixel, 255 * opaque))
        pixel = pixel if opaque else [255] * 3
    else:
        pixel = [int(c) for c in rng.integers(0, 256, 3)]
        image = Image.new("RGB", size, tuple(pixel)).convert(mode)
    stream = io.BytesIO()
    formats = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
    options = (
        {"lossless": True}
        if suffix == ".webp"
        else {"quality": 100, "subsampling": 0}
        if suffix == ".jpg"
        else {}
    )
    image.save(stream, format=formats[suffix], **options)
    return stream.getvalue(), suffix, np.array(pixel, np.uint8)


def _decode_image(path: pathlib.Path, pixel: np.ndarray, tolerance: int) -> Any:
    """True if the decoded image has the colour everywhere, otherwise what it is."""
    array = media.decode_image(path, SIDE)
    right = array.shape == (SIDE, SIDE, 3) and np.abs(array.astype(int) - pixel).max() <= tolerance
    return True if right else array


def _animation(rng: np.random.Generator) -> tuple[bytes, str, np.ndarray]:
    """A GIF of gray frames, and the level of each frame."""
    levels = rng.permutation(np.arange(0, 256, 16))[: int(rng.integers(1, 9))].astype(np.uint8)
    frames = [Image.new("L", (9, 7), int(level)) for level in levels]
    stream = io.BytesIO()
    frames[0].save(stream, format="GIF", save_all=True, append_images=frames[1:], duration=40, loop=0)
    return stream.getvalue(), ".gif", levels


def _decode_animation(path: pathlib.Path, levels: np.ndarray) -> Any:
    """True if as many frames as there are have the levels, otherwise what the first pixels are."""
    found = media.decode_video(path, len(levels), SIDE)[:, 0, 0, 0]
    return True if np.abs(found.astype(int) - levels).max() <= 2 else found


def _recording(rng: np.random.Generator) -> tuple[bytes, str, np.ndarray]:
    """A mono or stereo recording without loss, and its samples, int16."""
    samples = rng.integers(-20000, 20000, int(rng.integers(1, 2000))).astype(np.int16)
    channels, suffix = int(rng.integers(1, 3)), choose(rng, (".wav", ".flac"))
    stream = io.BytesIO()
    soundfile.write(
        stream, np.stack([samples] * channels, 1), RATE, format=suffix[1:].upper(), subtype="PCM_16"
    )
    return stream.getvalue(), suffix, samples


def _decode_recording(path: pathlib.Path, samples: np.ndarray) -> Any:
    found, _ = media.decode_audio(path, RATE)
    return True if np.array_equal(found, samples) else found


def _damage(rng: np.random.Generator, content: bytes, path: pathlib.Path, damage: str) -> bytes | None:
    """The damaged content; None if something else than a file is made at the path, or nothing."""
    if damage == "cut":
        return cut(rng, content)
    if damage == "bits flipped":
        return flip_bits(rng, content, int(rng.integers(1, 6)))
    if damage == "bytes swapped":
        k = int(rng.integers(0, len(content)))
        return content[:k] + content[k:][::-1]
    if damage == "zeros within":
        start = int(rng.integers(0, len(content)))
        return content[:start] + bytes(len(content[start : start + 20])) + content[start + 20 :]
    if damage in ("no content", "text"):
        return b"" if damage == "no content" else b"<html>not found</html>" * 9
    {"pipe": os.mkfifo, "folder": os.mkdir, "missing": lambda path: None}[damage](path)
    return None


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    make, decode = choose(rng, [(_image, _decode_image), (_animation, _decode_animation),
                                (_recording, _decode_recording)])  # fmt: skip
    content, suffix, value = make(rng)
    path = folder / f"file{suffix}"
    arguments = (4 if suffix == ".jpg" else 0,) if make is _image else ()
    attempt = lambda: decode(path, value, *arguments)
    if rng.random() < 0.3:
        path.write_bytes(content)
        return Case(f"{suffix}: good", attempt, True)
    damage = choose(rng, DAMAGES)
    damaged = _damage(rng, content, path, damage)
    if damaged is None or damage in ("no content", "text"):
        if damaged is not None:
            path.write_bytes(damaged)
        return Case(f"{suffix}: {damage}", attempt, REFUSED)
    path.write_bytes(damaged)
    if damaged == content:
        return Case(f"{suffix}: good", attempt, True)
    # A cut file ends too early, which every format tells. Other damage is noticed only where there are checksums.
    expected = True if damage == "cut" or suffix == ".png" else ANYTHING
    return Case(f"{suffix}: {damage}", attempt, expected, may_refuse=True)


KIND = Kind("media", _draw, 2000)
