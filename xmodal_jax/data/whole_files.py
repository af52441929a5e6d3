"""Whether image, animation and audio files are whole, where a decoder would take a damaged one in silence.

Formats say it themselves: PNG by a checksum of each chunk, GIF by its last byte, WAV by the number of its bytes,
Ogg by a mark on its last page.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_UNKNOWN_SIZES = (0, 2**31 - 1, 2**32 - 1)
"""Sizes in WAV files that were written to a pipe, and whose end nobody knew."""


def open_binary(file: str | Path | bytes) -> io.BufferedIOBase:
    """A stream of a file's content."""
    return io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb")


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turns what a decoder raises about a damaged file (IndexError, SyntaxError, struct.error, ...) into ValueError; an
    OSError stays one."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{error or 'damaged'} ({type(error).__name__})") from error


def check_png(file: str | Path | bytes) -> None:
    """Raises ValueError if a chunk of a PNG file that the image needs has another checksum than stands behind it."""
    with open_binary(file) as stream:
        stream.seek(8)  # the signature
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            content, written = stream.read(length), stream.read(4)
            if len(written) < 4:
                break
            if kind[:1].isupper() and written != struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))):
                raise ValueError(f"the PNG file is damaged: its part {kind!r} has another checksum")
            if kind == b"IEND":
                return
    raise ValueError("the PNG file is truncated")


def check_gif(file: str | Path | bytes) -> None:
    """Raises ValueError if a GIF file does not end as one does."""
    with open_binary(file) as stream:
        stream.seek(-min(64, stream.seek(0, io.SEEK_END)), io.SEEK_END)
        if not stream.read().rstrip(b"\0\r\n").endswith(b";"):
            raise ValueError("the GIF file is truncated: its end is missing")


def check_wav(file: str | Path | bytes) -> None:
    """Raises ValueError if a WAV file has fewer bytes of samples than it says; other files pass."""
    with open_binary(file) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return
        while len(head := stream.read(8)) == 8:
            length = struct.unpack("<I", head[4:])[0]
            if head[:4] == b"data":
                present = size - stream.tell()
                if length not in _UNKNOWN_SIZES and present < length:
                    raise ValueError(f"the WAV file is truncated: {present:,} of {length:,} bytes of samples")
                return
            stream.seek(length + length % 2, io.SEEK_CUR)
    raise ValueError("the WAV file is truncated: it has no samples")


def check_ogg(file: str | Path | bytes) -> None:
    """Raises ValueError if the last page of an Ogg file (Vorbis or Opus) is cut, or is not marked as the last; other
    files pass."""
    with open_binary(file) as stream:
        if stream.read(4) != b"OggS":
            return
        # A page has at most 65,307 bytes: 27 of a header, 255 lengths of segments, and these of up to 255 bytes.
        stream.seek(-min(1 << 17, stream.seek(0, io.SEEK_END)), io.SEEK_END)
        end = stream.read()
    page = end[end.rfind(b"OggS\0") :]
    segments = page[26] if len(page) > 26 else 0
    if len(page) < 27 + segments + sum(page[27 : 27 + segments]):
        raise ValueError("the Ogg file is truncated within its last page")
    if not page[5] & 4:
        raise ValueError("the Ogg file is truncated: its last page is missing")
