"""The contact sheet of a search: contents, captions and names of what was found."""

import numpy as np

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.report.search import CAPTION_LENGTH, read_items


def test_a_long_caption_is_cut_and_the_name_stays_whole():
    long, name = "a knight that jumps over others " * 10, "test/" + "n" * 100 + ".png"
    source = ArraySource({"image": np.zeros((2, 4, 4, 3), np.uint8), "caption": np.array(["a frog", long])})
    ((found, frog),) = read_items(
        source, "image", np.array([[1, 0]]), np.array([[name, "f.png"]]), sample_rate=16000
    )
    caption, shown = found.caption.split("\n")
    assert shown == name and len(caption) == CAPTION_LENGTH and caption == f"{long[: CAPTION_LENGTH - 1]}…"
    assert frog.caption == "a frog\nf.png"
