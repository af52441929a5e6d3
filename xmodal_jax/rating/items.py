"""Items to rate from folders of images, one folder per source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import decode_image, shorter_side
from xmodal_jax.data.metadata import find_metadata, read_metadata
from xmodal_jax.rating.page import RatingItem


def folder_items(
    sources: Mapping[str, Path | str],
    *,
    match: Literal["caption", "file_name"] = "caption",
    count: int | None = None,
    image_size: int | None = None,
    seed: int,
    bad_examples: BadExamples | None = None,
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
      bad_examples: collects bad lines of the metadata; None: they raise.

    Raises:
      FileNotFoundError: a folder has no metadata.
      BadExampleError: a line of the metadata cannot be read.
      ValueError: the sources have nothing in common, or an image cannot be decoded.
    """
    bad_examples = BadExamples() if bad_examples is None else bad_examples
    images = {name: _images_by(match, Path(folder), bad_examples) for name, folder in sources.items()}
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
    size = image_size or min(
        _decode(shorter_side, image.file) for by_source in matched for image in by_source.values()
    )
    items = []
    for by_source in matched:
        samples = {name: _decode(decode_image, image.file, size) for name, image in by_source.items()}
        items.append(RatingItem(next(iter(by_source.values())).caption, samples))
    return items


class _Image(NamedTuple):
    """An image file and its caption."""

    file: Path
    caption: str


def _images_by(match: str, folder: Path, bad_examples: BadExamples) -> dict[str, list[_Image]]:
    """The images that a folder's metadata list, by caption (``match`` "caption": an image with several captions is
    listed for each), or by file name without suffix ("file_name")."""
    metadata = find_metadata(folder)
    if metadata is None:
        raise FileNotFoundError(
            f"{folder} has no metadata.jsonl: write one line for each picture, "
            '{"file_name": "0.png", "text": "a red circle"}'
        )
    images: dict[str, list[_Image]] = {}
    for record in read_metadata(metadata, bad_examples):
        if "image" not in record.files or not record.captions:
            bad_examples.add(metadata, record.line, "the line has no picture (file_name) or no text")
            continue
        file = folder / record.files["image"]
        if match == "caption":
            for caption in record.captions:
                images.setdefault(caption, []).append(_Image(file, caption))
        else:
            name = str(Path(record.files["image"]).with_suffix(""))
            images.setdefault(name, []).append(_Image(file, record.captions[0]))
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


def _decode(decoder: Callable[..., Any], file: Path, *options: Any) -> Any:
    """``decoder(file, *options)``, with the file's name in the error if it cannot be decoded."""
    try:
        return decoder(file, *options)
    except (OSError, ValueError) as error:
        raise ValueError(f"the picture {file} cannot be decoded: {error}") from error
