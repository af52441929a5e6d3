"""Folders of pictures with several captions each, in the two layouts that data sets of captions come in."""

import json

import numpy as np
from PIL import Image

LAYOUTS = ("one line", "several lines")


def write_pictures(folder, layout, *, pictures=15, captions=5, side=4, first=0):
    """Writes ``pictures`` PNG files with ``captions`` captions each, and ``metadata.jsonl``: a line for each picture
    with the list of its captions, or a line for each caption.

    Picture k has the gray level ``first + k`` and is named after it, as are its captions: ``picture 7, wording 3``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for k in range(first, first + pictures):
        name = f"{k}.png"
        Image.fromarray(np.full((side, side, 3), k, np.uint8)).save(folder / name)
        texts = [f"picture {k}, wording {j}" for j in range(captions)]
        if layout == "one line":
            lines.append({"file_name": name, "text": texts})
        else:
            lines += [{"file_name": name, "text": text} for text in texts]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def pictures_of(source):
    """The gray level of each example of a source: which picture it shows."""
    return source.batch(np.arange(len(source)))["image"][:, 0, 0, 0].astype(int).tolist()
