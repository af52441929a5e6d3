"""What the cells of the gallery's tables hold: texts, pictures and sounds; and how pictures are drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
import soundfile
import soxr
from PIL import Image, ImageDraw, ImageFont

from xmodal_jax.preprocess.audio import log_mel

TILE = 64
"""Pixels of the shorter side of a small picture, at least, enlarged by whole factors."""
GAP = 4
"""Pixels around the pictures of a strip."""
RIGHT = "#0a8f5b"
"""Colour of the frame of a right answer."""
SOUND_RATE = 16_000
"""Samples per second of the sounds."""
SHADES = 31
"""Steps from black to white in a spectrogram; with more of them the file is twice as large."""
FLOOR = 1e-6
"""Mel power below which a spectrogram is black; full scale is about 100."""


class Picture(NamedTuple):
    """A picture and the words that stand for it where it cannot be seen."""

    image: Image.Image
    alt: str

    def encode(self) -> bytes:
        """A PNG file, with a palette where that loses nothing."""
        buffer, image = io.BytesIO(), self.image
        if image.mode == "RGB" and image.getcolors(256) is not None:
            image = image.quantize(256, dither=Image.Dither.NONE)
        image.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


class Sound(NamedTuple):
    """A waveform ``[T]``, float32, and its samples per second."""

    wave: np.ndarray
    sample_rate: int

    def encode(self) -> bytes:
        """An MP3 file at `SOUND_RATE`: a quarter of FLAC's size, played by every browser, and the same bytes each time,
        unlike Ogg with its random serial number."""
        buffer, wave = io.BytesIO(), self.wave
        if self.sample_rate != SOUND_RATE:
            wave = soxr.resample(wave, self.sample_rate, SOUND_RATE)
        soundfile.write(
            buffer, wave, SOUND_RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.7
        )
        return buffer.getvalue()


class Speech(NamedTuple):
    """The spectrogram of a sound above the sound."""

    picture: Picture
    sound: Sound


class Marked(NamedTuple):
    """A text in pieces ``(words, is wrong)``."""

    pieces: Sequence[tuple[str, bool]]


Cell = str | Picture | Sound | Speech | Marked
"""What a cell of a table holds."""


def enlarge(image: Any) -> Image.Image:
    """A Pillow image of an image or of pixels uint8 ``[H, W, C]``, its pixels enlarged to squares so that the shorter
    side has at least `TILE` pixels."""
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    factor = max(1, -(-TILE // min(image.size)))
    return image.convert("RGB").resize([factor * n for n in image.size], Image.Resampling.NEAREST)


def strip(images: Sequence[Any], alt: str, *, right: int | None = None) -> Picture:
    """Pictures of one size in a row. ``right``: the number of the one that gets a frame; None: no picture gets one."""
    tiles = [enlarge(image) for image in images]
    width, height = tiles[0].size
    row = Image.new(
        "RGBA", (len(tiles) * (width + 2 * GAP), height + 2 * GAP)
    )  # transparent: any page's colour
    for k, tile in enumerate(tiles):
        left = k * (width + 2 * GAP)
        if k == right:
            ImageDraw.Draw(row).rectangle((left, 0, left + width + 2 * GAP - 1, row.height - 1), fill=RIGHT)
        row.paste(tile, (left + GAP, GAP))
    return Picture(row, alt)


def spectrogram(sound: tuple[np.ndarray, int], alt: str) -> Picture:
    """The log-mel spectrogram of a sound, high frequencies above: a pixel is 10 ms wide and one of 80 mel bands
    high."""
    wave, rate = np.asarray(sound[0]), int(sound[1])
    sizes = {"n_fft": rate // 40, "hop": rate // 100, "n_mels": 80}
    frames, _ = log_mel(jnp.asarray(wave)[None], sample_rate=rate, floor=FLOOR, **sizes)
    low, high = np.log(FLOOR), max(float(frames.max()), np.log(FLOOR) + 1.0)
    shades = (
        np.round((np.asarray(frames[0]).T[::-1] - low) / (high - low) * SHADES) / SHADES
    )  # [bands, frames]
    return Picture(Image.fromarray(matplotlib.colormaps["magma"](shades, bytes=True)[..., :3]), alt)


def heard(sound: tuple[np.ndarray, int]) -> Sound:
    """A sound as a cell: int16, or floats, which are cut to [-1, 1]."""
    wave = np.asarray(sound[0])
    scale = 2**15 if wave.dtype == np.int16 else 1
    return Sound(np.clip(wave.astype(np.float32) / scale, -1, 1), int(sound[1]))


def show_speech(sound: tuple[np.ndarray, int], alt: str) -> Speech:
    """A sound as a cell with its spectrogram."""
    return Speech(spectrogram(sound, alt), heard(sound))


class Panel(NamedTuple):
    """One picture of the strip that shows all kinds of runs."""

    title: str
    image: Image.Image
    text: str


PANEL, MARGIN, PICTURE = (440, 220), 14, 96
"""Width and height of a panel, the margin beside its content, and the height of its picture, in pixels; a page of
GitHub shows the strip at two thirds of its size."""
INK, MUTED, PAPER = "#1f2937", "#6b7280", "#ffffff"


def draw_panels(panels: Sequence[Panel], *, columns: int = 3) -> Image.Image:
    """Panels in rows of ``columns``: title, picture, two lines of text."""
    (width, height), font = PANEL, ImageFont.load_default(22)
    rows = -(-len(panels) // columns)
    page = Image.new("RGB", (width * min(columns, len(panels)), height * rows), PAPER)
    draw = ImageDraw.Draw(page)
    for k, panel in enumerate(panels):
        left, top = width * (k % columns) + MARGIN, height * (k // columns)
        draw.text((left, top + 10), panel.title, fill=MUTED, font=ImageFont.load_default(19))
        image = panel.image.convert("RGBA")
        scale = min((width - 2 * MARGIN) / image.width, PICTURE / image.height)
        image = image.resize([max(1, round(scale * n)) for n in image.size], Image.Resampling.LANCZOS)
        page.paste(image, (left, top + 40), image)
        for line, text in enumerate(wrap(panel.text, width - 2 * MARGIN, font)[:2]):
            draw.text((left, top + 146 + 28 * line), text, fill=INK, font=font)
    return page


def wrap(text: str, width: int, font: Any) -> list[str]:
    """The text in lines of at most so many pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
