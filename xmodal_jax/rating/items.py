"""Items to rate from folders of images, one folder per source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from xmodal_jax.data import media
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.metadata import find_file, find_metadata, normalise_name, read_metadata
from xmodal_jax.rating.page import RatingItem


def folder_items(
    sources: Mapping[str, Path | str],
    *,
    match: Literal["caption", "file_name"] = "caption",
    count: int | None = None,
    image_size: int | None = None,
    seed: int,
    bad_examples: BadExamples | None = None,
    allow_outside: bool = False,
) -> list[RatingItem]:
    """Items from folders of images with a metadata file (``file_name``, ``text``), one folder per source.

    Args:
      sources: the folder of each source, by the source's name.
      match: images of different sources belong to one item if they have the same caption, or the same file name without
        its suffix. If a source has several images with one caption, the first ones of all sources belong together, then
        the second ones, and so on.
      count: number of items, drawn at random; None: all.
      image_size: side of the square that all images are resized to, in pixels; None: the shorter side of the smallest
        image, so that the resolution does not tell the sources apart.
      seed: decides which items are drawn.
      bad_examples: collects bad lines of the metadata and pictures that cannot be decoded, whose items are left out;
        None: they raise.
      allow_outside: whether the metadata may name images outside of their folder.

    Raises:
      FileNotFoundError: a folder has no metadata.
      BadExampleError: a line of the metadata cannot be read, or an image cannot be decoded.
      ValueError: the sources have nothing in common, or no item is left.
    """
    bad_examples = BadExamples() if bad_examples is None else bad_examples
    images = {
        name: _images_by(match, Path(folder), bad_examples, allow_outside) for name, folder in sources.items()
    }
    matched = _match(images)  # for each item its image from each source
    if not matched:
        what = "captions" if match == "caption" else "file names"
        raise ValueError(
            f"no {what} are in all of {', '.join(sources)}; "
            + ("match them by file name" if match == "caption" else "match them by caption")
            + f" or check the text of {', '.join(str(folder) for folder in sources.values())}"
        )
    if count is not None and count < len(matched):
        chosen = np.random.default_rng(seed).choice(len(matched), count, replace=False)
        matched = [matched[k] for k in sorted(chosen)]
    if image_size is None:
        shorter_side = lambda file: min(media.image_size(file))
        sides_by_item = [_decode_all(shorter_side, by_source, bad_examples) for by_source in matched]
        matched = [by_source for by_source, sides in zip(matched, sides_by_item, strict=True) if sides]
        image_size = min((side for sides in sides_by_item if sides for side in sides.values()), default=None)
    items = []
    for by_source in matched:
        samples = _decode_all(media.decode_image, by_source, bad_examples, image_size)
        if samples is not None:
            items.append(RatingItem(next(iter(by_source.values())).caption, samples))
    if not items:
        raise ValueError(f"no picture can be rated ({len(bad_examples)} bad ones left out)")
    return items


class _Image(NamedTuple):
    """An image file and its caption."""

    file: Path
    caption: str
    metadata: Path
    """The metadata file that lists it."""
    line: int
    """The line of the metadata file, from 1."""


def _images_by(
    match: str, folder: Path, bad_examples: BadExamples, allow_outside: bool
) -> dict[str, list[_Image]]:
    """The images that a folder's metadata list, by caption (``match`` "caption": an image with several captions is
    listed for each), or by file name without suffix ("file_name")."""
    metadata = find_metadata(folder)
    if metadata is None:
        raise FileNotFoundError(
            f"{folder} has no metadata.jsonl: write one line for each picture, "
            '{"file_name": "0.png", "text": "a red circle"}'
        )
    images: dict[str, list[_Image]] = {}
    for record in read_metadata(metadata, bad_examples, allow_outside=allow_outside):
        if "image" not in record.files or "text" not in record.captions:
            bad_examples.add(metadata, record.line, "the line has no picture (file_name) or no text")
            continue
        try:
            file = find_file(folder, record.files["image"])
        except (OSError, ValueError) as error:  # a name that no file system has
            bad_examples.add(metadata, record.line, f"the picture cannot be found: {error}")
            continue
        if match == "caption":
            for caption in record.captions["text"]:
                images.setdefault(caption, []).append(_Image(file, caption, metadata, record.line))
        else:
            name = str(Path(normalise_name(record.files["image"])).with_suffix(""))
            image = _Image(file, record.captions["text"][0], metadata, record.line)
            images.setdefault(name, []).append(image)
    return images


def _match(images: Mapping[str, Mapping[str, list[_Image]]]) -> list[dict[str, _Image]]:
    """The images of each item, by source.

    ``images``: by source, and by the caption or file name that images are matched by. The n-th images of all sources
    with one caption make an item; further images, which some source lacks, are left out.
    """
    first_source, *other_sources = images.values()
    matched = []
    for caption, first_images in first_source.items():
        by_source = [first_images, *(source.get(caption, []) for source in other_sources)]
        matched += [dict(zip(images, item, strict=True)) for item in zip(*by_source, strict=False)]
    return matched


def _decode_all(
    decode: Callable[..., Any], by_source: Mapping[str, _Image], bad_examples: BadExamples, *options: Any
) -> dict[str, Any] | None:
    """``decode(file, *options)`` of an item's image from each source; None if one cannot be decoded, which is added to
    ``bad_examples``."""
    decoded = {}
    for name, image in by_source.items():
        try:
            decoded[name] = decode(image.file, *options)
        except Exception as error:  # decoders raise many types of exceptions on damaged files
            reason = f"the picture {image.file} cannot be decoded: {error}"
            bad_examples.add(image.metadata, image.line, reason)
            return None
    return decoded
