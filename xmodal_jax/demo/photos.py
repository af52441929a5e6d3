"""A folder of pictures that a demo searches."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.index import Index
from xmodal_jax.inference.queries import find_files, keep_readable
from xmodal_jax.types import kind_of

THUMBNAIL = 320
"""Pixels of the longer side of a picture that the page shows."""


class Photos(NamedTuple):
    """Pictures, and their embeddings by one model."""

    folder: Path
    files: list[Path]
    index: Index

    def thumbnail(self, number: int) -> Image.Image:
        """A picture of the folder as the page shows it; grey where the file is gone."""
        try:
            with Image.open(self.files[number]) as picture:
                picture.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
                upright = ImageOps.exif_transpose(picture).convert("RGB")
        except (OSError, ValueError):
            return Image.new("RGB", (THUMBNAIL, THUMBNAIL), "gray")
        upright.thumbnail((THUMBNAIL, THUMBNAIL))
        return upright


def index_photos(model: ContrastiveModel, folder: Path, bad_examples: BadExamples) -> Photos:
    """The pictures of a folder and its subfolders, embedded by ``model``; those that cannot be read are left out.

    Raises:
      ValueError: the folder holds no picture, or the run has no pictures.
    """
    pictures = [m for m in model.format.modalities if kind_of(m) == "image"]
    modality, files = find_files([folder], model.format.modalities)
    if modality not in pictures:
        raise ValueError(f"--photos {folder}: a folder of pictures is needed, this one holds {modality}")
    files = keep_readable(files, model.format, modality, bad_examples)
    names = [str(file.relative_to(folder)) for file in files]
    return Photos(folder, files, model.index(names, **{modality: files}))
