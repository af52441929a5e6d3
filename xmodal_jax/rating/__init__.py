"""Blind ratings by people: a page that shows samples without their sources, and what the answers say.

::

    items = folder_items({"real": "data/test", "generated": "runs/gan/out"}, seed=0)
    page, key = write_rating_page("rating.html", items, title="...", question="...", seed=0)  # hand out the page
    preference_rates(["answers-ada.csv", "answers-alan.csv"], key)
"""

from xmodal_jax.rating.answers import (
    PairRate,
    Preferences,
    Ratings,
    SourceRating,
    mean_ratings,
    preference_rates,
    wilson_interval,
)
from xmodal_jax.rating.items import folder_items
from xmodal_jax.rating.page import SCALES, Mode, RatingItem, read_key, write_rating_page

__all__ = [
    "SCALES",
    "Mode",
    "PairRate",
    "Preferences",
    "RatingItem",
    "Ratings",
    "SourceRating",
    "folder_items",
    "mean_ratings",
    "preference_rates",
    "read_key",
    "wilson_interval",
    "write_rating_page",
]
