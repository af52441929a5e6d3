"""The page of a blind rating, which is handed out, and its key, which is not.

The page shows captions with one sample each (two marks from 1 to 5) or with two (which one is better)::

    page, key = write_rating_page("rating.html", items, title="...", question="...", seed=0)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from xmodal_jax.rating import template
from xmodal_jax.report.page import png, uri
from xmodal_jax.train.run import write_atomic

Mode = Literal["preference", "rating"]
"""Which of two samples is better ("preference"), or two marks for one sample ("rating")."""
SCALES = {
    "quality": ("How good is the sample itself?", "bad", "excellent"),
    "agreement": ("How well does it agree with the text?", "not at all", "fully"),
}
"""The marks from 1 to 5 of the mode "rating": the question, and the ends of the scale."""


class RatingItem(NamedTuple):
    """A caption with a sample from each source (a model, or a data set)."""

    caption: str
    samples: Mapping[str, np.ndarray]
    """By source, an image uint8 ``[H, W, C]`` or a video uint8 ``[F, H, W, C]``."""


class _Trial(NamedTuple):
    """One question to a rater: the samples that are shown together."""

    item: int
    """Index of the item."""
    sources: tuple[str, ...]
    """One source, or two from left to right."""


def write_rating_page(
    path: Path | str,
    items: Sequence[RatingItem],
    *,
    mode: Mode = "preference",
    title: str,
    question: str,
    seed: int,
) -> tuple[Path, Path]:
    """Writes the page as one self-contained HTML file, and its key beside it; returns both paths.

    Raters open the page in a browser and save a CSV file (see `rating.answers`). Only the key, ``<page>.key.json``,
    says which source made which sample.

    Args:
      path: of the page, a name that ends in ``.html``.
      items: what to rate.
      mode: "preference" makes a trial of every two sources of an item, each source on the left as often as on the right
        (up to one). "rating" makes a trial of every sample.
      title: heading of the page.
      question: shown with every trial.
      seed: of the order of the trials, and of the sides.

    Raises:
      ValueError: an item has too few sources, or samples that are not uint8 or differ in shape (which would tell the
        sources apart).
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(
            f"the page is an HTML file: name it {path.with_suffix('.html').name}, not {path.name}"
        )
    for number, item in enumerate(items):
        _check_item(number, item, min_sources=2 if mode == "preference" else 1)
    if not items:
        raise ValueError("there is nothing to rate: no items")
    rng = np.random.default_rng([seed, _digest(items, mode, title, question)])
    trials = _trials(items, mode, rng)
    order = rng.permutation(len(trials))
    # Random ids for the page, the samples (pairs of an item's index and a source) and the trials: nothing on the page
    # tells the source of a sample.
    samples = sorted({(trial.item, source) for trial in trials for source in trial.sources})
    page_id, *ids = _ids(rng, 1 + len(samples) + len(trials))
    sample_ids = dict(zip(samples, ids[: len(samples)], strict=True))
    trial_ids = ids[len(samples) :]
    page_trials = []  # in the order in which they are shown
    for trial_id, index in zip(trial_ids, order, strict=True):
        item, sources = trials[index]
        sides = zip(("left", "right"), (sample_ids[item, source] for source in sources), strict=False)
        page_trials.append({"id": trial_id, "caption": items[item].caption, **dict(sides)})
    header = {"page": page_id, "mode": mode, "title": title}
    data = _page_data(header, question, items, page_trials, sample_ids)
    key = _answer_key(header, seed, page_trials, sample_ids)
    key_path = path.with_suffix(".key.json")
    # "<" is escaped, so that no caption can end the script that holds the data.
    write_atomic(path, template.render(json.dumps(data).replace("<", "\\u003c")))
    write_atomic(key_path, _to_json(key))
    return path, key_path


def _check_item(number: int, item: RatingItem, *, min_sources: int) -> None:
    """Raises ValueError if an item (its ``number`` is for the message) has samples of too few sources, or samples that
    are not uint8 images or videos of one shape."""
    where = f"item {number} ({item.caption!r})"
    if len(item.samples) < min_sources:
        raise ValueError(
            f"{where} has samples of {len(item.samples)} sources, and needs {min_sources} or more"
        )
    shapes = {source: np.shape(sample) for source, sample in item.samples.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{where}: shapes would tell the sources apart: {shapes}; resize them to one size")
    for source, sample in item.samples.items():
        sample = np.asarray(sample)
        if sample.dtype != np.uint8 or sample.ndim not in (3, 4) or sample.shape[-1] not in (1, 3):
            raise ValueError(
                f"{where}, {source}: expected uint8 [H, W, C] or [F, H, W, C] with 1 or 3 channels, got "
                f"{sample.dtype} {sample.shape}"
            )


def _digest(items: Sequence[RatingItem], mode: Mode, title: str, question: str) -> int:
    """A hash of the page's content. It seeds the random ids, so that the ids of different pages differ and answers to
    another page are recognised."""
    digest = hashlib.sha256(repr((mode, title, question)).encode(errors="surrogatepass"))
    for item in items:
        digest.update(item.caption.encode(errors="surrogatepass"))
        for source, sample in sorted(item.samples.items()):
            digest.update(source.encode() + np.ascontiguousarray(sample).tobytes())
    return int.from_bytes(digest.digest(), "big")


def _trials(items: Sequence[RatingItem], mode: Mode, rng: np.random.Generator) -> list[_Trial]:
    """The trials of a page: every sample of every item ("rating"), or every two sources of every item ("preference"),
    with the sides chosen at random."""
    if mode == "rating":
        return [
            _Trial(number, (source,)) for number, item in enumerate(items) for source in sorted(item.samples)
        ]
    trials = []
    items_by_pair: dict[tuple[str, str], list[int]] = {}
    for number, item in enumerate(items):
        for pair in itertools.combinations(sorted(item.samples), 2):
            items_by_pair.setdefault(pair, []).append(number)
    for pair, numbers in items_by_pair.items():
        # Half of the numbers in a permutation are odd: the sides are swapped in half of the pair's trials, and with an
        # odd number of trials a coin decides which half is larger.
        swapped = (rng.permutation(len(numbers)) + rng.integers(2)) % 2
        trials += [
            _Trial(number, pair[::-1] if swap else pair)
            for number, swap in zip(numbers, swapped, strict=True)
        ]
    return trials


def _ids(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct words without vowels: no spreadsheet takes them for numbers, no reader for names."""
    letters = np.array(list("bcdfghjkmnpqrtvwxz"))
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids["".join(rng.choice(letters, 8))] = None
    return list(ids)


def _page_data(
    header: dict[str, Any],
    question: str,
    items: Sequence[RatingItem],
    trials: list[dict[str, str]],
    sample_ids: Mapping[tuple[int, str], str],
) -> dict[str, Any]:
    """The data of the page, which its script reads: the samples as data URIs by id, the trials, and the scales.

    ``header``: the page's id, mode and title. ``sample_ids``: by item and source.
    """
    uris = {
        sample_id: uri(png(np.asarray(items[item].samples[source]), fps=8.0), "image/png")
        for (item, source), sample_id in sample_ids.items()
    }
    scales = [
        {"letter": name[0], "text": text, "low": low, "high": high}
        for name, (text, low, high) in SCALES.items()
    ]
    samples = dict(sorted(uris.items()))  # by id: their order must not tell the sources
    return {**header, "question": question, "trials": trials, "samples": samples, "scales": scales}


def _answer_key(
    header: dict[str, Any],
    seed: int,
    trials: list[dict[str, str]],
    sample_ids: Mapping[tuple[int, str], str],
) -> dict[str, Any]:
    """The content of the page's key file: which source and item each sample id stands for, and the caption and the
    samples (left, right) of each trial, by trial id. ``header``: the page's id, mode and title."""
    samples = {
        sample_id: {"source": source, "item": item} for (item, source), sample_id in sample_ids.items()
    }
    trials_by_id = {
        trial["id"]: {"caption": trial["caption"], "left": trial["left"], "right": trial.get("right", "")}
        for trial in trials
    }
    return {**header, "seed": seed, "samples": samples, "trials": trials_by_id}


def _to_json(key: dict[str, Any]) -> str:
    """A key as JSON that UTF-8 can hold: letters as they are, unless a caption has half a surrogate pair, which UTF-8
    does not have."""
    text = json.dumps(key, indent=1, ensure_ascii=False) + "\n"
    is_utf8 = not any("\ud800" <= character <= "\udfff" for character in text)
    return text if is_utf8 else json.dumps(key, indent=1) + "\n"


def read_key(path: Path | str) -> dict[str, Any]:
    """The key of a page: its ``mode``, the source of each of the ``samples``, and the samples of each of the
    ``trials``.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a key, or has been changed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the <page>.key.json written beside the page")
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a rating page's key: {error}") from error
    if not isinstance(key, dict) or not {"mode", "samples", "trials"} <= set(key):
        raise ValueError(
            f"{path} is not a rating page's key: give the <page>.key.json written beside the page"
        )
    if damage := _damage_of(key):
        raise ValueError(
            f"{path} is not a rating page's key: {damage}. It has been changed since it was written"
        )
    return key


def _damage_of(key: dict[str, Any]) -> str | None:
    """What is wrong with the content of a key; None: nothing."""
    modes = typing.get_args(Mode)
    if key["mode"] not in modes:
        return f"its 'mode' is {key['mode']!r}, not {' or '.join(modes)}"
    for field in ("samples", "trials"):
        if not isinstance(key[field], dict) or not all(isinstance(v, dict) for v in key[field].values()):
            return f"its {field!r} are not an object of objects"
    for name, sample in key["samples"].items():
        if not isinstance(sample.get("source"), str):
            return f"the sample {name!r} has no 'source'"
    sides = ("left", "right") if key["mode"] == "preference" else ("left",)
    for name, trial in key["trials"].items():
        for side in sides:
            sample = trial.get(side)
            if not isinstance(sample, str) or sample not in key["samples"]:
                return f"the trial {name!r} shows on the {side} {sample!r}, which is none of its 'samples'"
        if key["mode"] == "rating" and trial.get("right") != "":
            return f"the trial {name!r} shows on the right {trial.get('right')!r}, and in this mode nothing"
    return None
