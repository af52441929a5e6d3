"""Blind ratings by people: a page to hand out, and what the answers say.

The page shows captions with one sample each (two marks from 1 to 5) or with two (which one is better). Who made what
stands only in the key, ``<page>.key.json``, which stays here::

    page, key = write_rating_page("rating.html", items, title="...", question="...", seed=0)
    preference_rates(["answers-ada.csv", "answers-alan.csv"], key)
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import decode_image, shorter_side
from xmodal_jax.data.metadata import find_metadata, read_metadata
from xmodal_jax.rating import page as rating_page
from xmodal_jax.report.page import png, uri
from xmodal_jax.train.run import write_atomic

Mode = Literal["preference", "rating"]
COLUMNS = ("trial", "left", "right", "choice", "seconds", "rater")
SCALES = {
    "quality": ("How good is the sample itself?", "bad", "excellent"),
    "agreement": ("How well does it agree with the text?", "not at all", "fully"),
}
"""The marks from 1 to 5 of the mode ``rating``: the question and the ends of the scale."""


class RatingItem(NamedTuple):
    """A caption, and what each source made of it: a picture uint8 ``[H, W, C]`` or a video uint8 ``[F, H, W, C]``."""

    caption: str
    samples: Mapping[str, np.ndarray]


class PairRate(NamedTuple):
    """How often ``first`` was preferred to ``second``, ties counted half, with a 95% interval (Wilson)."""

    first: str
    second: str
    rate: float
    low: float
    high: float
    first_wins: int
    second_wins: int
    ties: int
    raters: int


class Preferences(NamedTuple):
    """How often each source is preferred to each other."""

    pairs: list[PairRate]
    answers: int
    raters: int
    replaced: int
    """Number of earlier answers of a rater to the same trial, which do not count."""

    def table(self) -> str:
        """A line for each pair, below a heading."""
        lines = [f"{'preferred':>16} {'to':>16}   rate  95% interval    wins  losses  ties"]
        for p in self.pairs:
            lines.append(
                f"{p.first:>16} {p.second:>16}  {p.rate:5.3f}  {p.low:5.3f} - {p.high:5.3f}"
                f"  {p.first_wins:6} {p.second_wins:7} {p.ties:5}"
            )
        return "\n".join([*lines, "ties count half"])


class SourceRating(NamedTuple):
    """The mean mark of a source, 1 to 5, with a 95% interval over raters (None where there is only one)."""

    source: str
    scale: str
    mean: float
    low: float | None
    high: float | None
    answers: int
    raters: int


class Ratings(NamedTuple):
    """The mean mark of each source on each scale."""

    sources: list[SourceRating]
    answers: int
    raters: int
    replaced: int
    """Number of earlier answers of a rater to the same trial, which do not count."""

    def table(self) -> str:
        """A line for each source and scale, below a heading."""
        lines = [f"{'source':>16} {'scale':>10}   mean  95% interval  answers"]
        for s in self.sources:
            interval = "(one rater)" if s.low is None else f"{s.low:4.2f} - {s.high:4.2f}"
            lines.append(f"{s.source:>16} {s.scale:>10}  {s.mean:5.2f}  {interval:12}  {s.answers:7}")
        return "\n".join(lines)


def write_rating_page(
    path: Path | str,
    items: Sequence[RatingItem],
    *,
    mode: Mode = "preference",
    title: str,
    question: str,
    seed: int,
) -> tuple[Path, Path]:
    """Writes one HTML file that needs nothing else, and the key beside it; returns both paths.

    ``preference``: a trial for every two sources of an item; each source stands as often on the left as on the right,
    up to one. ``rating``: a trial for every sample. The order is random by ``seed``. Raters save a CSV file with the
    columns ``trial,left,right,choice,seconds,rater``.

    Raises:
      ValueError: an item has too few sources, or samples of different shapes (that would tell them apart), or samples
        that are not uint8.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(
            f"the page is an HTML file: name it {path.with_suffix('.html').name}, not {path.name}"
        )
    for number, item in enumerate(items):
        _check_item(number, item, 2 if mode == "preference" else 1)
    if not items:
        raise ValueError("there is nothing to rate: no items")
    # The content decides the ids too: answers to another page are then not taken for answers to this one.
    digest = hashlib.sha256(repr((mode, title, question)).encode())
    for item in items:
        digest.update(item.caption.encode())
        for source, sample in sorted(item.samples.items()):
            digest.update(source.encode() + np.ascontiguousarray(sample).tobytes())
    rng = np.random.default_rng([seed, int.from_bytes(digest.digest(), "big")])

    plan = _plan(items, mode, rng)
    order = rng.permutation(len(plan))
    used = sorted({(number, source) for number, sources in plan for source in sources})
    page, *ids = _ids(rng, 1 + len(used) + len(plan))
    sample_ids = dict(zip(used, ids, strict=False))
    trials, uris = [], {}
    for trial, k in zip(ids[len(used) :], order, strict=True):
        number, sources = plan[k]
        sides = dict(zip(("left", "right"), (sample_ids[number, source] for source in sources), strict=False))
        trials.append({"id": trial, "caption": items[number].caption, **sides})
    for (number, source), name in sample_ids.items():
        uris[name] = uri(png(np.asarray(items[number].samples[source]), 8.0), "image/png")
    data = {
        "page": page,
        "mode": mode,
        "title": title,
        "question": question,
        "trials": trials,
        "samples": dict(sorted(uris.items())),
        "scales": [
            {"letter": name[0], "text": text, "low": low, "high": high}
            for name, (text, low, high) in SCALES.items()
        ],
    }
    key = {
        "page": page,
        "mode": mode,
        "title": title,
        "seed": seed,
        "samples": {
            name: {"source": source, "item": number} for (number, source), name in sample_ids.items()
        },
        "trials": {
            trial["id"]: {
                "caption": trial["caption"],
                "left": trial["left"],
                "right": trial.get("right", ""),
            }
            for trial in trials
        },
    }
    key_path = path.with_suffix(".key.json")
    write_atomic(path, rating_page.PAGE.replace(rating_page.MARK, json.dumps(data).replace("<", "\\u003c")))
    write_atomic(key_path, json.dumps(key, indent=1, ensure_ascii=False) + "\n")
    return path, key_path


def _check_item(number: int, item: RatingItem, least: int) -> None:
    where = f"item {number} ({item.caption!r})"
    if len(item.samples) < least:
        raise ValueError(f"{where} has samples of {len(item.samples)} sources, and needs {least} or more")
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


def _plan(
    items: Sequence[RatingItem], mode: Mode, rng: np.random.Generator
) -> list[tuple[int, tuple[str, ...]]]:
    """The trials: an item's number and the sources shown, from left to right."""
    if mode == "rating":
        return [(number, (source,)) for number, item in enumerate(items) for source in sorted(item.samples)]
    plan = []
    by_pair: dict[tuple[str, str], list[int]] = {}
    for number, item in enumerate(items):
        for pair in itertools.combinations(sorted(item.samples), 2):
            by_pair.setdefault(pair, []).append(number)
    for pair, numbers in by_pair.items():
        swapped = (rng.permutation(len(numbers)) + rng.integers(2)) % 2
        plan += [
            (number, pair[::-1] if swap else pair) for number, swap in zip(numbers, swapped, strict=True)
        ]
    return plan


def _ids(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct words without vowels: no spreadsheet takes them for numbers, no reader for names."""
    letters = np.array(list("bcdfghjkmnpqrtvwxz"))
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids["".join(rng.choice(letters, 8))] = None
    return list(ids)


def folder_items(
    sources: Mapping[str, Path | str],
    *,
    match: Literal["caption", "file_name"] = "caption",
    count: int | None = None,
    image_size: int | None = None,
    seed: int,
    bad_examples: BadExamples | None = None,
) -> list[RatingItem]:
    """Items from folders of pictures with a metadata file (``file_name``, ``text``), one folder for each source.

    An item is a caption, or with ``match="file_name"`` a file name up to its suffix, that all sources have; of pictures
    with the same caption, the n-th of each source belong together. ``count`` draws as many at random. All pictures
    become squares of ``image_size`` pixels; None: of the smallest side among them, so that resolution tells nothing.
    ``bad_examples`` collects bad lines of the metadata.

    Raises:
      FileNotFoundError: a folder without metadata.
      BadExampleError: a line of the metadata that cannot be read.
      ValueError: the sources have nothing in common, or a picture cannot be decoded.
    """
    bad_examples = BadExamples() if bad_examples is None else bad_examples
    found = {name: _pictures(Path(folder), match, bad_examples) for name, folder in sources.items()}
    first = next(iter(found))
    matched = []
    for value, pictures in found[first].items():
        alike = [pictures, *(other.get(value, []) for name, other in found.items() if name != first)]
        matched += [dict(zip(found, files, strict=True)) for files in zip(*alike, strict=False)]
    if not matched:
        what = "captions" if match == "caption" else "file names"
        raise ValueError(
            f"no {what} are in all of {', '.join(found)}; "
            + ("match them by file name" if match == "caption" else "match them by caption")
            + f" or check the text of {', '.join(str(folder) for folder in sources.values())}"
        )
    if count is not None and count < len(matched):
        chosen = np.random.default_rng(seed).choice(len(matched), count, replace=False)
        matched = [matched[k] for k in sorted(chosen)]
    size = image_size or min(_decode(shorter_side, p.file) for files in matched for p in files.values())
    decode = lambda files: {name: _decode(decode_image, p.file, size) for name, p in files.items()}
    return [RatingItem(files[first].caption, decode(files)) for files in matched]


def _decode(decoder, file: Path, *options):
    try:
        return decoder(file, *options)
    except (OSError, ValueError) as error:
        raise ValueError(f"the picture {file} cannot be decoded: {error}") from error


class _Picture(NamedTuple):
    file: Path
    caption: str


def _pictures(folder: Path, match: str, bad_examples: BadExamples) -> dict[str, list[_Picture]]:
    metadata = find_metadata(folder)
    if metadata is None:
        raise FileNotFoundError(
            f"{folder} has no metadata.jsonl: write one line for each picture, "
            '{"file_name": "0.png", "text": "a red circle"}'
        )
    pictures: dict[str, list[_Picture]] = {}
    for record in read_metadata(metadata, bad_examples):
        if "image" not in record.files or not record.captions:
            bad_examples.add(metadata, record.line, "the line has no picture (file_name) or no text")
            continue
        file, name = folder / record.files["image"], str(Path(record.files["image"]).with_suffix(""))
        for caption in record.captions if match == "caption" else record.captions[:1]:
            found = pictures.setdefault(caption if match == "caption" else name, [])
            found.append(_Picture(file, caption))
    return pictures


class _Answer(NamedTuple):
    trial: str
    choice: str
    seconds: float
    rater: str


class _Answers(NamedTuple):
    rows: list[_Answer]
    raters: list[str]
    replaced: int


def preference_rates(csv_paths: Sequence[Path | str], key_path: Path | str) -> Preferences:
    """How often each source was preferred to each other one.

    rate = (wins + ties / 2) / answers, so that both directions add up to 1 and no answer is lost. The interval is
    Wilson's (1927) for independent answers; a tie counted half varies less than a win or a loss, so with ties it is
    rather too wide, and with few raters or captions rather too narrow.

    Raises:
      ValueError: names the file and the line that cannot be read, or that answers a trial which the key does not have.
    """
    key = _key_for(key_path, "preference")
    answers = _read_answers(csv_paths, key)
    by_pair: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for answer in answers.rows:
        trial = key["trials"][answer.trial]
        left, right = (key["samples"][trial[side]]["source"] for side in ("left", "right"))
        score = {"left": 1.0, "tie": 0.5, "right": 0.0}[answer.choice]
        pair, score = ((left, right), score) if left < right else ((right, left), 1.0 - score)
        by_pair.setdefault(pair, []).append((score, answer.rater))
    pairs = []
    for (first, second), scored in sorted(by_pair.items()):
        scores = [score for score, _ in scored]
        pairs.append(
            PairRate(
                first,
                second,
                sum(scores) / len(scores),
                *wilson_interval(sum(scores), len(scores)),
                *(scores.count(score) for score in (1.0, 0.0, 0.5)),
                len({rater for _, rater in scored}),
            )
        )
    return Preferences(pairs, len(answers.rows), len(answers.raters), answers.replaced)


def mean_ratings(
    csv_paths: Sequence[Path | str], key_path: Path | str, *, seed: int, resamples: int = 10_000
) -> Ratings:
    """The mean mark of each source on each of ``SCALES``.

    The interval is the bootstrap's 2.5% and 97.5% quantiles, drawing raters with replacement (answers of one rater are
    alike, so that drawing answers would make it too narrow).

    Raises:
      ValueError: as `preference_rates`.
    """
    key = _key_for(key_path, "rating")
    answers = _read_answers(csv_paths, key)
    marks: dict[tuple[str, str], dict[str, list[int]]] = {}
    for answer in answers.rows:
        source = key["samples"][key["trials"][answer.trial]["left"]]["source"]
        for scale, digit in zip(SCALES, re.findall(r"\d", answer.choice), strict=True):
            marks.setdefault((source, scale), {}).setdefault(answer.rater, []).append(int(digit))
    sources = []
    for (source, scale), by_rater in sorted(marks.items()):
        sums = np.array([sum(values) for values in by_rater.values()], np.float64)
        counts = np.array([len(values) for values in by_rater.values()])
        low = high = None
        if len(by_rater) > 1:
            drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
            means = sums[drawn].sum(1) / counts[drawn].sum(1)
            low, high = (float(q) for q in np.quantile(means, (0.025, 0.975)))
        mean = float(sums.sum() / counts.sum())
        sources.append(SourceRating(source, scale, mean, low, high, int(counts.sum()), len(by_rater)))
    return Ratings(sources, len(answers.rows), len(answers.raters), answers.replaced)


def wilson_interval(successes: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """The p with ``|successes / count - p| <= z sqrt(p (1 - p) / count)`` (Wilson 1927), z the normal quantile."""
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    share, spread = successes / count, z * z / count
    centre = (share + spread / 2.0) / (1.0 + spread)
    half = math.sqrt(spread * (share * (1.0 - share) + spread / 4.0)) / (1.0 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _key_for(path: Path | str, mode: Mode) -> dict[str, Any]:
    key = read_key(path)
    if key["mode"] != mode:
        other = "preference_rates" if key["mode"] == "preference" else "mean_ratings"
        raise ValueError(f"{path} is of a page in the mode {key['mode']!r}: read its answers with {other}")
    return key


def read_key(path: Path | str) -> dict[str, Any]:
    """The key of a page: ``mode``, ``samples`` (id to source) and ``trials`` (id to what stood left and right)."""
    try:
        key = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a rating page's key: {error}") from error
    if not isinstance(key, dict) or not {"mode", "samples", "trials"} <= set(key):
        raise ValueError(
            f"{path} is not a rating page's key: give the <page>.key.json written beside the page"
        )
    return key


def _read_answers(paths: Sequence[Path | str], key: Mapping[str, Any]) -> _Answers:
    """The answers of all files; of several by one rater to one trial, the last."""
    answers: dict[tuple[str, str], _Answer] = {}
    total = 0
    for path in paths:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                header = next(reader, [])
                if tuple(header) != COLUMNS:
                    raise ValueError(
                        f"expected the columns {','.join(COLUMNS)}, found {','.join(header) or 'none'}; "
                        "give the file as the page saved it"
                    )
                for cells in reader:
                    if cells:
                        answer = _read_answer(cells, key)
                        answers[answer.rater, answer.trial] = answer
                        total += 1
            except (ValueError, csv.Error) as error:
                raise ValueError(f"{path}:{max(reader.line_num, 1)}: {error}") from error
    if not answers:
        raise ValueError(f"no answers in {', '.join(str(path) for path in paths) or 'no files'}")
    rows = list(answers.values())
    return _Answers(rows, sorted({answer.rater for answer in rows}), total - len(rows))


def _read_answer(cells: list[str], key: Mapping[str, Any]) -> _Answer:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} cells, found {len(cells)}")
    trial, left, right, choice, seconds, rater = (cell.strip() for cell in cells)
    known = key["trials"].get(trial)
    if known is None:
        raise ValueError(f"the trial {trial!r} is not in the key: the answers belong to another page")
    if (left, right) != (known["left"], known["right"]):
        raise ValueError(f"the trial {trial!r} showed {known['left']}, {known['right']}, not {left}, {right}")
    if key["mode"] == "preference":
        if choice not in ("left", "right", "tie"):
            raise ValueError(f"the choice is left, right or tie, not {choice!r}")
    elif not re.fullmatch("".join(f"{name[0]}[1-5]" for name in SCALES), choice):
        raise ValueError(f"the choice is two marks such as q4a5, not {choice!r}")
    try:
        spent = float(seconds)
    except ValueError:
        spent = math.nan
    if not 0.0 <= spent < math.inf:
        raise ValueError(f"the seconds are a number from 0 up, not {seconds!r}")
    if not rater:
        raise ValueError("the rater's name is empty")
    return _Answer(trial, choice, spent, rater)
