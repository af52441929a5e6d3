"""Folders of pictures with several captions each, in the two layouts that data sets of captions come in."""

import json

import numpy as np
from PIL import Image

LAYOUTS = ("one line", "several lines")


def write_pictures(folder, layout, *, pictures=15, captions=5, side=4, first=0, classes=0):
    """Writes ``pictures`` PNG files with ``captions`` captions each, and ``metadata.jsonl``: a line for each picture
    with the list of its captions, or a line for each caption.

    The gray levels of the pictures count from ``first`` on; a picture is named after its own, as are its captions:
    ``picture 7, wording 3``. With ``classes`` it has the label gray level modulo ``classes``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for k in range(first, first + pictures):
        name = f"{k}.png"
        Image.fromarray(np.full((side, side, 3), k, np.uint8)).save(folder / name)
        texts = [f"picture {k}, wording {j}" for j in range(captions)]
        label = {"label": k % classes} if classes else {}
        for text in [texts] if layout == "one line" else texts:
            lines.append({"file_name": name, "text": text, **label})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def pictures_of(source):
    """The gray level of each example of a source: which picture it shows."""
    return source.batch(np.arange(len(source)))["image"][:, 0, 0, 0].astype(int).tolist()
