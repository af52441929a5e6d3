"""A process that decodes files for another one, which `decode_processes` starts: requests come by its standard input,
answers go to its standard output.

It imports neither JAX nor the program that started it. What it cannot decode (whatever the reason: a damaged file, a
warning, a format that only the other process knows) it leaves to the other process, which then has the same error as
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

_BUFFER = 1 << 20
"""Bytes that are collected before a system call writes them."""
_SECONDS = 5.0
"""How often a worker without work looks whether its parent is still there."""


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


def limits() -> dict[str, Any]:
    """Pillow's settings that change what is decoded; a program may set them."""
    return {
        "MAX_IMAGE_PIXELS": Image.MAX_IMAGE_PIXELS,
        "LOAD_TRUNCATED_IMAGES": ImageFile.LOAD_TRUNCATED_IMAGES,
    }


def _decode(kind: str, content: Path | bytes, options: MediaOptions) -> tuple[np.ndarray, bool] | None:
    """As `decode_file`; None: it is left to the parent."""
    try:
        array, was_cut = decode_file(kind, content, options)
    except Exception:  # decoders raise many types of exceptions on damaged files
        return None
    return np.ascontiguousarray(array), was_cut


def _answer(
    header: dict[str, Any], contents: list[memoryview], parent_ended
) -> tuple[list, list[np.ndarray]]:
    """The header and the contents of the answer to a request: for each file None, or the type and shape of its array
    and whether it was cut."""
    Image.MAX_IMAGE_PIXELS = header["limits"]["MAX_IMAGE_PIXELS"]
    ImageFile.LOAD_TRUNCATED_IMAGES = header["limits"]["LOAD_TRUNCATED_IMAGES"]
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
    """The streams of requests and answers. Standard input is then empty, and what a library prints goes to standard
    error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", _BUFFER)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return requests, answers


def main() -> None:
    """Answers requests until the parent closes the stream or ends, however it ends."""
    requests, answers = _take_streams()
    parent = os.getppid()
    # Between a request and its answer the parent writes nothing: what can be read then is the end of the stream.
    readable = lambda seconds: bool(select.select([requests], [], [], seconds)[0])
    warnings.simplefilter("error")  # the parent decodes what is worth a warning, and shows it as it likes
    media.refuse_large_images()
    try:
        write_message(answers, "ready")
        while True:
            while not readable(_SECONDS):
                if os.getppid() != parent:  # and a process that it forked holds the stream open
                    return
            header, contents = read_message(requests)
            write_message(answers, *_answer(header, contents, lambda: readable(0)))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        sys.stderr.flush()
        os._exit(0)  # without writing the rest of an answer that nobody reads
