"""The program of a worker process that decodes files, which `decode_processes` starts. It reads requests from its
standard input and writes answers to its standard output.

It imports neither JAX nor the main module of its parent. A file that it cannot decode (because it is damaged, causes a
warning, or has a format that only the parent knows) it leaves to the parent, which then raises the same error as
without workers.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from xmodal_jax.data import media
from xmodal_jax.data.decode_file import MediaOptions, decode_file

_BUFFER_BYTES = 1 << 20
"""Size of the output buffer."""
_PARENT_CHECK_SECONDS = 5.0
"""Interval at which an idle worker checks that its parent still runs."""


def write_message(stream: io.BufferedIOBase, header: Any, contents: Sequence[Any] = ()) -> None:
    """Writes a message: the length of its head in 4 bytes, the head (``header`` and the sizes of ``contents``, as
    JSON), and the contents, which are bytes or contiguous arrays."""
    views = [memoryview(content).cast("B") for content in contents]
    head = json.dumps([header, [len(view) for view in views]], default=lambda x: x.item()).encode()
    stream.write(len(head).to_bytes(4, "big"))
    stream.write(head)
    for view in views:
        stream.write(view)
    stream.flush()


def read_message(stream: io.BufferedIOBase) -> tuple[Any, list[memoryview]]:
    """``(header, contents)`` of a message, see `write_message`.

    Raises:
      EOFError: the other process has ended, or closed the stream.
    """
    header, sizes = json.loads(bytes(_read(stream, int.from_bytes(_read(stream, 4), "big"))))
    content, contents, start = _read(stream, sum(sizes)), [], 0
    for size in sizes:
        contents.append(content[start : start + size])
        start += size
    return header, contents


def _read(stream: io.BufferedIOBase, size: int) -> memoryview:
    """The next ``size`` bytes of a stream."""
    content, done = memoryview(bytearray(size)), 0
    while done < size:
        count = stream.readinto(content[done:])
        if not count:
            raise EOFError("the other process has closed the stream")
        done += count
    return content


def pillow_settings() -> dict[str, Any]:
    """The global settings of Pillow that change what is decoded. A program may set them, so they go with each
    request."""
    return {
        "MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "LOAD_TRUNCATED_IMAGES": ImageFile.LOAD_TRUNCATED_IMAGES,
    }


def _decode(kind: str, content: Path | bytes, options: MediaOptions) -> tuple[np.ndarray, bool] | None:
    """Decodes a file as `decode_file` does; None if that fails."""
    try:
        array, was_cut = decode_file(kind, content, options)
    except Exception:  # decoders raise many types of exceptions on damaged files
        return None
    return np.ascontiguousarray(array), was_cut


def _decode_request(
    header: dict[str, Any], contents: list[memoryview], parent_ended
) -> tuple[list, list[np.ndarray]]:
    """Decodes the files of a request, and returns ``(header, contents)`` of the answer.

    The header has for each file None, or dtype and shape of its array and whether it was cut; ``contents`` are the
    arrays. ``parent_ended()``: whether the parent has ended, which stops the work with EOFError.
    """
    Image.MAX_IMAGE_PIXELS = header["pillow_settings"]["MAX_IMAGE_PIXELS"]
    ImageFile.LOAD_TRUNCATED_IMAGES = header["pillow_settings"]["LOAD_TRUNCATED_IMAGES"]
    *fields, resize = header["options"]
    options = MediaOptions(*fields, media.Resize(*resize))
    outcomes, arrays = [], []
    for (kind, path), content in zip(header["files"], contents, strict=True):
        if parent_ended():
            raise EOFError
        decoded = _decode(kind, bytes(content) if path is None else Path(path), options)
        if decoded is None:
            outcomes.append(None)
            continue
        array, was_cut = decoded
        outcomes.append([array.dtype.str, array.shape, was_cut])
        arrays.append(array)
    return outcomes, arrays


def _take_streams() -> tuple[io.BufferedIOBase, io.BufferedIOBase]:
    """Takes standard input and output for requests and answers, and returns them as streams. What a library then reads
    from standard input is empty, and what it prints goes to standard error, so that neither disturbs the protocol."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", _BUFFER_BYTES)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return requests, answers


def main() -> None:
    """Answers requests until the parent closes the stream or ends, in whatever way."""
    requests, answers = _take_streams()
    parent = os.getppid()
    # The parent writes nothing between a request and its answer: if the stream is readable then, it has ended.
    readable = lambda seconds: bool(select.select([requests], [], [], seconds)[0])
    warnings.simplefilter("error")  # a file that causes a warning is left to the parent, which shows it
    media.refuse_large_images()
    try:
        write_message(answers, "ready")
        while True:
            while not readable(_PARENT_CHECK_SECONDS):
                if os.getppid() != parent:  # it has ended, but a process that it forked keeps the stream open
                    return
            header, contents = read_message(requests)
            write_message(answers, *_decode_request(header, contents, lambda: readable(0)))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        sys.stderr.flush()
        os._exit(0)  # without flushing the rest of an answer, which nobody reads
