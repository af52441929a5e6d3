"""Results of a blind rating: the answers that raters have saved from a page, read with the key of the page::

preference_rates(["answers-ada.csv", "answers-alan.csv"], "rating.key.json").table()
"""

from __future__ import annotations

import codecs
import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.rating.page import SCALES, Mode, read_key

COLUMNS = ("trial", "left", "right", "choice", "seconds", "rater")
"""Columns of the CSV files."""
FORMULA_STARTS = r"=+\-@\t\r\uff1d\uff0b\uff0d\uff20"
"""With one of these a cell begins that a spreadsheet takes for a formula, as a class of a regular expression."""


class PairRate(NamedTuple):
    """How often one source was preferred to another."""

    first: str
    second: str
    rate: float
    """Fraction of the answers that prefer ``first``, ties counted half."""
    low: float
    """Lower end of the 95% interval (Wilson)."""
    high: float
    """Upper end of the 95% interval."""
    first_wins: int
    """Number of answers that prefer ``first``."""
    second_wins: int
    """Number of answers that prefer ``second``."""
    ties: int
    """Number of answers without a preference."""
    raters: int
    """Number of raters who compared these two."""


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
    """The mean mark of a source on a scale."""

    source: str
    scale: str
    """A key of `SCALES`."""
    mean: float
    """From 1 to 5."""
    low: float | None
    """Lower end of the 95% interval over raters; None where there is only one."""
    high: float | None
    """Upper end of the 95% interval."""
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


class _Answer(NamedTuple):
    trial: str
    choice: str
    seconds: float
    rater: str


class _Answers(NamedTuple):
    answers: list[_Answer]
    raters: list[str]
    replaced: int
    """Number of earlier answers of a rater to the same trial, which do not count."""


def preference_rates(
    csv_paths: Sequence[Path | str], key_path: Path | str, *, bad_examples: BadExamples | None = None
) -> Preferences:
    """How often raters preferred one source to another, for each pair of sources.

    The rate is ``(wins + ties / 2) / answers``, so that the rates of both directions add up to 1. The interval is
    Wilson's (1927) for independent answers. It is somewhat too wide with ties, which vary less than wins and losses,
    and too narrow with few raters or captions, whose answers depend on each other.

    Args:
      csv_paths: the CSV files that the raters have saved.
      key_path: the key of the page.
      bad_examples: collects lines that cannot be read or that answer a trial which the key does not have, and decides
        whether they stop the reading (the default).

    Raises:
      BadExampleError: there is such a line, and they stop the reading; the message names file and line.
      ValueError: there is no answer, or the page is one for marks (the mode "rating").
    """
    key = _key_for(key_path, "preference")
    answers = _read_answers(csv_paths, key, bad_examples)
    # By pair of sources (in alphabetical order): how much each answer prefers the first one, 0 to 1, and its rater.
    by_pair: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for answer in answers.answers:
        trial = key["trials"][answer.trial]
        left, right = (key["samples"][trial[side]]["source"] for side in ("left", "right"))
        score = {"left": 1.0, "tie": 0.5, "right": 0.0}[answer.choice]
        pair, score = ((left, right), score) if left < right else ((right, left), 1.0 - score)
        by_pair.setdefault(pair, []).append((score, answer.rater))
    pairs = []
    for (first, second), scores_and_raters in sorted(by_pair.items()):
        scores = [score for score, _ in scores_and_raters]
        low, high = wilson_interval(sum(scores), len(scores))
        pairs.append(
            PairRate(
                first=first,
                second=second,
                rate=sum(scores) / len(scores),
                low=low,
                high=high,
                first_wins=scores.count(1.0),
                second_wins=scores.count(0.0),
                ties=scores.count(0.5),
                raters=len({rater for _, rater in scores_and_raters}),
            )
        )
    return Preferences(pairs, len(answers.answers), len(answers.raters), answers.replaced)


def mean_ratings(
    csv_paths: Sequence[Path | str],
    key_path: Path | str,
    *,
    seed: int,
    resamples: int = 10_000,
    bad_examples: BadExamples | None = None,
) -> Ratings:
    """The mean mark (1 to 5) of each source on each of `SCALES`, with a 95% interval.

    The interval goes from the 2.5% to the 97.5% quantile of a bootstrap over raters, not over answers: the answers of
    one rater are correlated, so that a bootstrap over answers would give a too narrow interval.

    Args:
      csv_paths: the CSV files that the raters have saved.
      key_path: the key of the page.
      seed: of the bootstrap.
      resamples: number of samples of the bootstrap.
      bad_examples: as in `preference_rates`.

    Raises:
      BadExampleError: as in `preference_rates`.
      ValueError: there is no answer, or the page is one for preferences.
    """
    key = _key_for(key_path, "rating")
    answers = _read_answers(csv_paths, key, bad_examples)
    # By source and scale, the marks that each rater has given. A choice such as "q4a5" has a digit for each scale.
    marks: dict[tuple[str, str], dict[str, list[int]]] = {}
    for answer in answers.answers:
        source = key["samples"][key["trials"][answer.trial]["left"]]["source"]
        for scale, digit in zip(SCALES, re.findall(r"\d", answer.choice), strict=True):
            marks.setdefault((source, scale), {}).setdefault(answer.rater, []).append(int(digit))
    sources = []
    for (source, scale), by_rater in sorted(marks.items()):
        sums = np.array([sum(values) for values in by_rater.values()], np.float64)  # [raters]
        counts = np.array([len(values) for values in by_rater.values()])
        low = high = None
        if len(by_rater) > 1:
            # Each resample draws as many raters as there are, with replacement.
            drawn_raters = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
            means = sums[drawn_raters].sum(1) / counts[drawn_raters].sum(1)
            low, high = (float(q) for q in np.quantile(means, (0.025, 0.975)))
        sources.append(
            SourceRating(
                source=source,
                scale=scale,
                mean=float(sums.sum() / counts.sum()),
                low=low,
                high=high,
                answers=int(counts.sum()),
                raters=len(by_rater),
            )
        )
    return Ratings(sources, len(answers.answers), len(answers.raters), answers.replaced)


def wilson_interval(successes: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """The confidence interval ``(low, high)`` of a proportion (Wilson 1927).

    All ``p`` with ``|r - p| <= z sqrt(p (1 - p) / n)``, where ``r`` is the fraction of ``successes`` among
    ``n = count`` trials, and ``z`` is the normal quantile of the ``level`` (1.96 for 0.95). Its centre is
    ``(r + z^2 / 2n) / (1 + z^2 / n)``.

    Example::

        wilson_interval(5, 10)  # (0.237, 0.763)
    """
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    rate, z2_by_n = successes / count, z * z / count
    centre = (rate + z2_by_n / 2.0) / (1.0 + z2_by_n)
    half_width = math.sqrt(z2_by_n * (rate * (1.0 - rate) + z2_by_n / 4.0)) / (1.0 + z2_by_n)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def _key_for(path: Path | str, mode: Mode) -> dict[str, Any]:
    """The key of a page (see `read_key`); raises ValueError if the page has another mode."""
    key = read_key(path)
    if key["mode"] != mode:
        other = "preference_rates" if key["mode"] == "preference" else "mean_ratings"
        raise ValueError(f"{path} is of a page in the mode {key['mode']!r}: read its answers with {other}")
    return key


def _read_answers(
    paths: Sequence[Path | str], key: Mapping[str, Any], bad_examples: BadExamples | None
) -> _Answers:
    """The answers in all files; where a rater has answered a trial several times, the last answer counts."""
    bad_examples = BadExamples() if bad_examples is None else bad_examples
    answers: dict[tuple[str, str], _Answer] = {}
    total = 0
    for path in paths:
        for number, line in enumerate(_lines(Path(path)), 1):
            try:
                cells = _parse_line(line)
                if number == 1:
                    _check_header(cells)
                elif cells:
                    answer = _read_answer(cells, key)
                    answers[answer.rater, answer.trial] = answer
                    total += 1
            except ValueError as error:
                bad_examples.add(path, number, str(error))
                if number == 1:
                    break  # what the cells of this file are is not known
    if not answers:
        raise ValueError(f"no answers in {', '.join(str(path) for path in paths) or 'no files'}")
    last_answers = list(answers.values())
    raters = sorted({answer.rater for answer in last_answers})
    return _Answers(last_answers, raters, replaced=total - len(last_answers))


def _lines(path: Path) -> list[bytes]:
    """The lines of a file of answers without their ends, at least one; a mark of the byte order is left out."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: give the CSV files that the raters have saved")
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").split(b"\n")


def _parse_line(line: bytes) -> list[str]:
    """The cells of a line of CSV; none if it is blank.

    Every line is read by itself, so that a quote which is not closed does not swallow those that follow. A page writes
    no cell of several lines.

    Raises:
      ValueError: it is not UTF-8, or not CSV.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} of the line is not UTF-8: save the file as UTF-8"
        ) from error
    try:
        return next(csv.reader([text], strict=True), []) if text.strip() else []
    except csv.Error as error:
        raise ValueError(f"the line is not CSV: {error}") from error


def _check_header(cells: list[str]) -> None:
    """Raises ValueError unless the cells are `COLUMNS`."""
    if tuple(cells) != COLUMNS:
        raise ValueError(
            f"expected the columns {','.join(COLUMNS)}, found {','.join(cells) or 'none'}; give the file as the page "
            "saved it"
        )


def _read_answer(cells: list[str], key: Mapping[str, Any]) -> _Answer:
    """The answer in one line of a CSV file, its cells being those of `COLUMNS`; raises ValueError if it is not a valid
    answer to a trial of ``key``."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} cells, found {len(cells)}")
    trial, left, right, choice, seconds, rater = (cell.strip() for cell in cells)
    shown = key["trials"].get(trial)
    if shown is None:
        raise ValueError(f"the trial {trial!r} is not in the key: the answers belong to another page")
    if (left, right) != (shown["left"], shown["right"]):
        raise ValueError(f"the trial {trial!r} showed {shown['left']}, {shown['right']}, not {left}, {right}")
    if key["mode"] == "preference":
        if choice not in ("left", "right", "tie"):
            raise ValueError(f"the choice is left, right or tie, not {choice!r}")
    elif not re.fullmatch("".join(f"{name[0]}[1-5]" for name in SCALES), choice):
        raise ValueError(f"the choice is two marks such as q4a5, not {choice!r}")
    try:
        duration = float(seconds)
    except ValueError:
        duration = math.nan
    if not 0.0 <= duration < math.inf:
        raise ValueError(f"the seconds are a number from 0 up, not {seconds!r}")
    if not rater:
        raise ValueError("the rater's name is empty")
    # The page puts an apostrophe before a name that a spreadsheet would run as a formula.
    return _Answer(trial, choice, duration, re.sub(f"^'(?='*[{FORMULA_STARTS}])", "", rater))
