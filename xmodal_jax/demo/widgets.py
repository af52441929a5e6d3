"""How the page takes and shows each kind of data: a box for texts, a place to drop a picture, a recorder, …"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

from xmodal_jax.data.media import decode_audio, image_size, to_pcm
from xmodal_jax.demo.limits import MAX_CHARACTERS, MAX_PIXELS, MAX_SECONDS
from xmodal_jax.inference.inputs import InputFormat
from xmodal_jax.train.run import write_atomic
from xmodal_jax.types import kind_of

SHOWN_PIXELS = 256
"""Pixels that the shorter side of a generated picture is enlarged to, so that each of its own can be seen."""

NOTHING = "(nothing)"
"""What is shown of a generated text that is empty."""
NOT_UPLOADED = "?"
"""Stands for the path of a file that is none of the uploaded ones."""


class Widget(NamedTuple):
    """How one kind of data is taken and shown. ``gr`` is the module Gradio."""

    build_input: Callable[[Any, str], Any]
    """``build_input(gr, label)``: the component that takes it."""
    build_output: Callable[[Any, str], Any]
    """``build_output(gr, label)``: the component that shows it."""
    read: Callable[[Any, InputFormat, str], Any]
    """``read(value, format, modality)``: what a component holds as an input of a model; it is not empty."""
    show: Callable[[Any], Any]
    """``show(output)``: what a model generates as the component takes it."""


def widget_of(modality: str) -> Widget:
    """The widget of a modality's kind; what has no entry in `WIDGETS` is numbers."""
    return WIDGETS.get(kind_of(modality), _NUMBERS)


def read_value(value: Any, format: InputFormat, modality: str) -> Any:
    """What a component holds as an input of a model; None where it is empty.

    Raises:
      ValueError: it cannot be used, or is too large.
    """
    is_empty = value is None or (isinstance(value, str) and not value.strip())
    return None if is_empty else widget_of(modality).read(value, format, modality)


def label_of(modality: str) -> str:
    """A modality's name on the page: image_sketch is "Image sketch"."""
    return {"image": "Picture", "audio": "Sound", "text": "Text"}.get(
        modality, modality.replace("_", " ").capitalize()
    )


def label_of_input(format: InputFormat, modality: str) -> str:
    """The name with what is used of an input, where that may be less than all."""
    kind, tokenize = kind_of(modality), format.transform.tokenize
    if kind == "audio" and format.max_seconds is not None and format.max_seconds < MAX_SECONDS:
        return f"{label_of(modality)} (of which the first {format.max_seconds:.3g} s are used)"
    if kind == "text" and tokenize is not None:
        return f"{label_of(modality)} (of which the first {tokenize.max_length} tokens are used)"
    return label_of(modality)


def enlarge(picture: Image.Image) -> Image.Image:
    """A small picture with larger pixels; others as they are."""
    factor = -(-SHOWN_PIXELS // min(picture.size))
    size = (picture.width * factor, picture.height * factor)
    return picture if factor == 1 else picture.resize(size, Image.Resampling.NEAREST)


def check_text(text: str) -> str:
    """The text; raises ValueError for one that is too long."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the text has {len(text):,} characters, at most {MAX_CHARACTERS:,} are taken")
    return text


def show_picture_files(component: Any) -> Any:
    """A component that shows a picture, or pairs of a picture and its caption, as files of `_replace_file`."""
    postprocess = component.postprocess

    def write(value: Any) -> Any:
        """The files' paths in place of the pictures."""
        if isinstance(value, list):
            return [(write(picture), caption) for picture, caption in value]
        if not isinstance(value, Image.Image):
            return value
        content = io.BytesIO()
        value.save(content, "png")
        return _replace_file(content.getvalue(), "image.png", component.GRADIO_CACHE)

    component.postprocess = lambda value: postprocess(write(value))
    return component


def _show_sound_file(gr: Any, component: Any) -> Any:
    """A component that shows a pair of a sampling rate and samples as a file of `_replace_file`."""

    def write(value: tuple[int, np.ndarray] | None) -> Any:
        if value is None:
            return None
        content, (rate, samples) = io.BytesIO(), value
        soundfile.write(content, samples, rate, format="WAV")
        name = "audio.wav"
        return gr.FileData(
            path=_replace_file(content.getvalue(), name, component.GRADIO_CACHE), orig_name=name
        )

    component.postprocess = write
    return component


def _replace_file(content: bytes, name: str, folder: str) -> str:
    """The path of a file in a folder of its content's hash, which is written whole, also where it is there already.

    Gradio names files by their content too, but writes them in place: a second user with the same answer would cut
    off the file that the first one is loading.
    """
    path = Path(folder) / hashlib.sha256(content).hexdigest() / name
    write_atomic(path, content)
    return str(path)


def _upload(component: Any) -> Any:
    """A component whose value is the path of the uploaded file, which Gradio does not decode itself."""
    component.preprocess = lambda payload: (
        None if payload is None else _uploaded_path(payload.path, component.GRADIO_CACHE)
    )
    return component


def _uploaded_path(path: str | None, folder: str) -> str:
    """The path of a file within the folder of uploads; of another one the empty path. A request could name any file of
    the server."""
    if not path or not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        return NOT_UPLOADED
    return path


def _read_file(path: str) -> bytes:
    """The bytes of an uploaded file."""
    if path == NOT_UPLOADED:
        raise ValueError("the file was not uploaded, or has been removed: upload it again")
    content = Path(path).read_bytes()
    if not content:
        raise ValueError("the file is empty")
    return content


def _read_image(value: str, format: InputFormat, modality: str) -> bytes:
    content = _read_file(value)
    width, height = image_size(content)
    if width * height > MAX_PIXELS:
        raise ValueError(f"the picture has {width} x {height} pixels, at most {MAX_PIXELS:,} are taken")
    return content


def _read_audio(value: str, format: InputFormat, modality: str) -> tuple[np.ndarray, int]:
    samples, was_cut = decode_audio(_read_file(value), format.sample_rate, MAX_SECONDS)
    if was_cut:
        raise ValueError(f"the sound is longer than {MAX_SECONDS:g} s, the longest that is taken")
    return samples, format.sample_rate


def _read_numbers(value: str, format: InputFormat, modality: str) -> np.ndarray:
    """Numbers in the shape of the training data, one line for each step of a series."""
    shape = format.shapes[modality]
    lines = [line.replace(",", " ").split() for line in check_text(value).splitlines() if line.strip()]
    if len({len(line) for line in lines}) != 1:
        raise ValueError("each line needs as many numbers")
    try:
        numbers = np.array(lines, np.float64)
    except ValueError:
        raise ValueError(f"numbers are needed, with spaces or commas between them: {value[:50]!r}") from None
    return numbers.reshape(-1) if len(shape) == 1 else numbers


def _show_numbers(value: Any) -> str:
    if isinstance(value, str):
        return value
    rows = np.atleast_2d(np.asarray(value, np.float64))
    return "\n".join(" ".join(f"{x:.4g}" for x in row) for row in rows.reshape(-1, rows.shape[-1]))


def _image_input(gr: Any, label: str) -> Any:
    options = dict(
        type="filepath", sources=["upload", "clipboard"], height=260, elem_classes="picture", buttons=[]
    )
    return _upload(gr.Image(label=label, **options))


def _audio_input(gr: Any, label: str) -> Any:
    options = dict(type="filepath", sources=["upload", "microphone"], editable=False, buttons=[])
    return _upload(gr.Audio(label=label, **options))


def _picture_output(gr: Any, label: str) -> Any:
    options = dict(type="pil", interactive=False, height=260, elem_classes="picture", buttons=["download"])
    return show_picture_files(gr.Image(label=label, **options))


def _sound_output(gr: Any, label: str) -> Any:
    options = dict(interactive=False, editable=False, buttons=["download"])
    return _show_sound_file(gr, gr.Audio(label=label, **options))


def _video_input(gr: Any, label: str) -> Any:
    return _upload(gr.Video(label=label, sources=["upload"], height=260, buttons=[]))


WIDGETS: dict[str, Widget] = {
    "text": Widget(
        lambda gr, label: gr.Textbox(label=label, lines=1),
        lambda gr, label: gr.Textbox(label=label, interactive=False),
        lambda value, format, modality: check_text(value),
        lambda output: output or NOTHING,
    ),
    "image": Widget(
        _image_input,
        _picture_output,
        _read_image,
        enlarge,
    ),
    "audio": Widget(
        _audio_input,
        _sound_output,
        _read_audio,
        lambda output: (output[1], to_pcm(output[0])),
    ),
    "video": Widget(
        _video_input,
        lambda gr, label: gr.Textbox(label=label, interactive=False),
        lambda value, format, modality: _read_file(value),
        lambda output: f"{len(output)} frames",
    ),
}
"""By kind of modality."""
_NUMBERS = Widget(
    lambda gr, label: gr.Textbox(label=f"{label} (numbers)", lines=2),
    lambda gr, label: gr.Textbox(label=label, lines=2, interactive=False),
    _read_numbers,
    _show_numbers,
)
