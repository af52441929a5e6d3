"""Blind ratings by people: make a page, hand it out, read the answers.

    python experiments/rate.py page --sources real=data/test generated=runs/gan/out --out rating.html
    python experiments/rate.py rates answers-ada.csv answers-alan.csv --key rating.key.json

A source is a folder of pictures with a metadata.jsonl (`file_name`, `text`); pictures of the same text are compared.
Send rating.html to the raters; keep rating.key.json, which names the source of each picture. Raters send CSV files.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Literal

import tyro

from xmodal_jax import rating
from xmodal_jax.data.bad_examples import BadExamples, OnBadExample
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.run import write_atomic

TEXTS = {
    "preference": ("Two pictures for one text", "Which of the two suits the text better?"),
    "rating": ("Pictures and their texts", "Mark the picture, and how well it agrees with the text."),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Makes the page for the raters, and the key beside it."""

    sources: tuple[str, ...]
    """Sources of pictures, each written NAME=FOLDER; raters do not see the names."""
    out: pathlib.Path = pathlib.Path("rating.html")
    """HTML file to write the page to; the key is written beside it."""
    mode: Literal["preference", "rating"] = "preference"
    """What raters do: choose the better of two pictures (preference), or mark one picture from 1 to 5 (rating)."""
    count: int | None = 40
    """Number of captions that raters see, drawn at random; None: all."""
    match: Literal["caption", "file_name"] = "caption"
    """Which pictures of different sources are compared: those with the same caption, or with the same file name."""
    image_size: int | None = None
    """Side in pixels of the squares that all pictures are resized to; None: the smallest side among them."""
    title: str | None = None
    """Heading of the page; None: a heading that suits the mode."""
    question: str | None = None
    """Question to the raters; None: a question that suits the mode."""
    on_bad_example: OnBadExample = "stop"
    """What to do with a bad line of the metadata: stop, or skip and count it."""
    allow_outside: bool = False
    """Whether metadata may name pictures outside of their folder."""
    seed: int = 0
    """Random seed of the choice of captions, their order and the sides of the pictures."""

    def __post_init__(self):
        names = [source.partition("=")[0] for source in self.sources]
        if wrong := [source for source in self.sources if not all(source.partition("="))]:
            raise ValueError(f"--sources: write NAME=FOLDER, not {wrong[0]!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"--sources: each needs a name of its own, got {', '.join(names)}")
        if len(names) < (2 if self.mode == "preference" else 1):
            raise ValueError("--sources: a preference needs two or more, NAME=FOLDER NAME=FOLDER")
        if self.count is not None and self.count < 1:
            raise ValueError(f"--count is 1 or more, got {self.count}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Reads the answers, prints a table and writes it as JSON."""

    answers: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """CSV files from the raters."""
    key: pathlib.Path
    """Key of the page, the file PAGE.key.json, which names the source of each picture."""
    out: pathlib.Path | None = None
    """JSON file to write the result to; None: PAGE.result.json beside the key."""
    on_bad_example: OnBadExample = "stop"
    """What to do with a line of the answers that cannot be used: stop, or skip and count it."""
    seed: int = 0
    """Random seed of the bootstrap intervals."""


def page(config: Page) -> None:
    bad_examples = BadExamples(config.on_bad_example)
    sources = dict(source.split("=", 1) for source in config.sources)
    options = {n: getattr(config, n) for n in ("match", "count", "image_size", "seed", "allow_outside")}
    items = rating.folder_items(sources, bad_examples=bad_examples, **options)
    title, question = TEXTS[config.mode]
    texts = dict(title=config.title or title, question=config.question or question)
    path, key = rating.write_rating_page(config.out, items, mode=config.mode, seed=config.seed, **texts)
    print(bad_examples.summary() or "no bad examples")
    print(f"{len(items)} texts, {len(rating.read_key(key)['trials'])} trials\nsend:  {path}\nkeep:  {key}")


def rates(config: Rates) -> None:
    mode, bad_examples = rating.read_key(config.key)["mode"], BadExamples(config.on_bad_example)
    if mode == "preference":
        result = rating.preference_rates(config.answers, config.key, bad_examples=bad_examples)
        results = {"pairs": [pair._asdict() for pair in result.pairs]}
    else:
        result = rating.mean_ratings(config.answers, config.key, seed=config.seed, bad_examples=bad_examples)
        results = {"sources": [source._asdict() for source in result.sources]}
    counts = {name: getattr(result, name) for name in ("answers", "raters", "replaced")}
    counts["bad"] = len(bad_examples)
    out = config.out or config.key.with_name(config.key.name.removesuffix(".key.json") + ".result.json")
    write_atomic(out, json.dumps({"mode": mode, **results, **counts}, indent=2) + "\n")
    print(f"{result.table()}\n{bad_examples.summary() or 'no bad examples'}")
    print(f"{result.replaced} earlier answers of a rater to the same trial were replaced by the last")
    print(f"{out}\n{result.answers} answers of {result.raters} raters")


def main(config: Page | Rates) -> None:
    page(config) if isinstance(config, Page) else rates(config)


if __name__ == "__main__":
    run_script(main, Page | Rates, __doc__)
