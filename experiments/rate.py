"""Blind ratings by people: make a page, hand it out, read the answers.

    python experiments/rate.py page --sources real=data/test generated=runs/gan/out --out rating.html
    python experiments/rate.py page --sources small=runs/a/out large=runs/b/out --mode rating --count 20
    python experiments/rate.py rates answers-ada.csv answers-alan.csv --key rating.key.json

A source is a folder of pictures with a metadata.jsonl (`file_name`, `text`); what has the same text is compared. Send
rating.html to the raters, and not rating.key.json, which knows who made what. Each sends back a CSV file.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Literal

import tyro

from xmodal_jax.data.bad_examples import BadExamples, OnBadExample
from xmodal_jax.rating import ratings as rating
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.run import write_atomic

TITLES = {"preference": "Two pictures for one text", "rating": "Pictures and their texts"}
QUESTIONS = {
    "preference": "Which of the two suits the text better?",
    "rating": "Mark the picture, and how well it agrees with the text.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Make the page, and the key beside it."""

    sources: tuple[str, ...]
    """NAME=FOLDER of each source; raters do not see the names."""
    out: pathlib.Path = pathlib.Path("rating.html")
    """The page."""
    mode: Literal["preference", "rating"] = "preference"
    """Which of two is better, or marks from 1 to 5 for one."""
    count: int | None = 40
    """So many captions, drawn at random; None: all."""
    match: Literal["caption", "file_name"] = "caption"
    """What makes pictures of several sources belong together."""
    image_size: int | None = None
    """All pictures are made squares of this side, pixels; None: of the smallest side among them."""
    title: str | None = None
    """Heading of the page; None: one that fits the mode."""
    question: str | None = None
    """What raters are asked; None: one that fits the mode."""
    on_bad_example: OnBadExample = "stop"
    """What to do with a bad line of the metadata: stop, or skip and count it."""
    seed: int = 0
    """Decides the captions, the order and the sides."""

    def __post_init__(self):
        names = [source.partition("=")[0] for source in self.sources]
        for source in self.sources:
            if not all(source.partition("=")):
                raise ValueError(f"--sources: write NAME=FOLDER, not {source!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"--sources: each needs a name of its own, got {', '.join(names)}")
        if len(names) < (2 if self.mode == "preference" else 1):
            raise ValueError("--sources: a preference needs two or more, NAME=FOLDER NAME=FOLDER")
        if self.count is not None and self.count < 1:
            raise ValueError(f"--count is 1 or more, got {self.count}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Read the answers: a table, and the same as JSON."""

    answers: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """The CSV files of the raters."""
    key: pathlib.Path
    """The page's key, <page>.key.json."""
    out: pathlib.Path | None = None
    """The result as JSON; <page>.result.json beside the key if not given."""
    seed: int = 0
    """Decides what the bootstrap draws."""


def page(config: Page) -> None:
    sources = dict(source.split("=", 1) for source in config.sources)
    bad_examples = BadExamples(config.on_bad_example)
    items = rating.folder_items(
        sources,
        match=config.match,
        count=config.count,
        image_size=config.image_size,
        seed=config.seed,
        bad_examples=bad_examples,
    )
    path, key = rating.write_rating_page(
        config.out,
        items,
        mode=config.mode,
        title=config.title or TITLES[config.mode],
        question=config.question or QUESTIONS[config.mode],
        seed=config.seed,
    )
    trials = len(rating.read_key(key)["trials"])
    print(bad_examples.summary() or "no bad examples")
    print(f"{len(items)} texts, {trials} trials\nsend:  {path}\nkeep:  {key}")


def rates(config: Rates) -> None:
    mode = rating.read_key(config.key)["mode"]
    if mode == "preference":
        found = rating.preference_rates(config.answers, config.key)
        rows = {"pairs": [pair._asdict() for pair in found.pairs]}
        print(f"{'preferred':>16} {'to':>16}   rate  95% interval    wins  losses  ties")
        for p in found.pairs:
            print(
                f"{p.first:>16} {p.second:>16}  {p.rate:5.3f}  {p.low:5.3f} - {p.high:5.3f}"
                f"  {p.first_wins:6} {p.second_wins:7} {p.ties:5}"
            )
        print("ties count half")
    else:
        found = rating.mean_ratings(config.answers, config.key, seed=config.seed)
        rows = {"sources": [source._asdict() for source in found.sources]}
        print(f"{'source':>16} {'scale':>10}   mean  95% interval  answers")
        for s in found.sources:
            interval = "(one rater)" if s.low is None else f"{s.low:4.2f} - {s.high:4.2f}"
            print(f"{s.source:>16} {s.scale:>10}  {s.mean:5.2f}  {interval:12}  {s.answers:7}")
    facts = {"answers": found.answers, "raters": found.raters, "replaced": found.replaced}
    out = config.out or config.key.with_name(config.key.name.removesuffix(".key.json") + ".result.json")
    write_atomic(out, json.dumps({"mode": mode, **rows, **facts}, indent=2) + "\n")
    if found.replaced:
        print(f"{found.replaced} earlier answers of a rater to the same trial were replaced by the last")
    print(f"{out}\n{found.answers} answers of {found.raters} raters")


def main(config: Page | Rates) -> None:
    page(config) if isinstance(config, Page) else rates(config)


if __name__ == "__main__":
    main(parse(Page | Rates, __doc__))
