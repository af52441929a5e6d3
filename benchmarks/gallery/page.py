"""The pages of the gallery, made from the plain values in ``gallery.json``: Markdown for GitHub, HTML with players."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.gallery.cells import Cell, Marked, Panel, Picture, Sound, Speech, draw_panels
from benchmarks.gallery.kinds import KINDS
from xmodal_jax.train.run import write_atomic

DATA, FILES, STRIP = "gallery.json", "files", "strip.png"
INTRODUCTION = """\
What the default run of each experiment leaves, on the embedded data set. Nothing is selected: the examples are the
first ones of the test split, which training never saw, and random numbers have seed 0. Mistakes are **marked**, and
what does not work is shown too. The code on this page, typed in the folder of the project, makes the same again from a
run of yours.
"""
LISTEN = "The sounds play on `index.html` beside this page; here they are links."
AGAIN = "python -m benchmarks.gallery runs/* --out docs/gallery"

Section = Mapping[str, Any]
"""What is shown of a run, see `runs.describe_run` and `runs.make_samples`."""


class Folder:
    """The folder of the gallery: its files, and the sections of all kinds of runs."""

    def __init__(self, path: Path):
        """Reads the sections that are there."""
        self.path = path
        self.sections: dict[str, Section] = {}
        if (path / DATA).is_file():
            self.sections = json.loads((path / DATA).read_text(encoding="utf-8"))

    def store(self, kind: str) -> Callable[[Cell], Any]:
        """``store(cell)`` for the cells of a kind of run: writes pictures and sounds as files, and returns the cell as
        plain values; a cell that comes again is the same file. The kind's files of before are removed."""
        for file in (self.path / FILES).glob(f"{kind}-*"):
            file.unlink()
        stored: dict[int, tuple[str, Cell]] = {}

        def store(cell: Cell) -> Any:
            if isinstance(cell, Marked):
                return {"marked": [[words, bool(wrong)] for words, wrong in cell.pieces]}
            if isinstance(cell, Speech):
                return store(cell.picture) | store(cell.sound)
            if not isinstance(cell, Picture | Sound):
                return str(cell)
            if id(cell) not in stored:
                name = f"{FILES}/{kind}-{len(stored) + 1:02d}.{'png' if isinstance(cell, Picture) else 'mp3'}"
                write_atomic(self.path / name, cell.encode())
                stored[id(cell)] = (name, cell)  # with the cell, whose id would otherwise be free for another
            name = stored[id(cell)][0]
            if isinstance(cell, Sound):
                return {"sound": name}
            return {"picture": name, "alt": cell.alt, "width": cell.image.width}

        return store

    def add(self, kind: str, section: Section) -> None:
        """Adds or replaces the section of a kind of run."""
        self.sections[kind] = section

    def write(self) -> None:
        """Writes the pages, the strip, and the values that they are made of."""
        sections = {kind: self.sections[kind] for kind in KINDS if kind in self.sections}
        write_atomic(self.path / DATA, json.dumps(sections, indent=1, ensure_ascii=False) + "\n")
        write_atomic(self.path / "README.md", markdown(sections))
        write_atomic(self.path / "index.html", page(sections))
        panels = [
            Panel(f"{kind}.py", Image.open(self.path / x["panel"]["picture"]["picture"]), x["panel"]["text"])
            for kind, x in sections.items()
        ]
        strip = draw_panels(panels)
        write_atomic(self.path / STRIP, Picture(strip, "").encode())


def files_of(section: Section) -> set[str]:
    """The files that a section names."""
    cells = [cell for sample in section["samples"] for row in sample["rows"] for cell in row]
    cells.append(section["panel"]["picture"])
    by_name = [(cell.get("picture"), cell.get("sound")) for cell in cells if isinstance(cell, dict)]
    return {name for names in by_name for name in names if name}


# Markdown


def markdown(sections: Mapping[str, Section]) -> str:
    """The page as Markdown."""
    parts = ["# Gallery", INTRODUCTION.strip(), LISTEN, f"![A sample of each]({STRIP})"]
    links = [f"- [{x['title']}](#{_anchor(x['title'])}): `{kind}.py`" for kind, x in sections.items()]
    parts.append("\n".join(links))
    for x in sections.values():
        parts += [f"## {x['title']}", x["summary"], _fenced("sh", x["command"]), f"{x['facts']}."]
        if x["scores"]:
            rows = [f"| `{name}` | {value} | {meaning} |" for name, value, meaning in x["scores"]]
            parts.append("\n".join(["| score | | what it says |", "|---|---|---|", *rows]))
        for sample in x["samples"]:
            parts += [f"### {sample['title']}", *([sample["note"]] if sample["note"] else [])]
            parts += [_markdown_table(sample), _fenced("python", sample["code"])]
    parts.append(f"Made by `{AGAIN}`.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(sample: Mapping[str, Any]) -> str:
    head = [" | ".join(sample["columns"]), " | ".join("---" for _ in sample["columns"])]
    rows = [" | ".join(map(_markdown_cell, row)) for row in sample["rows"]]
    return "\n".join(f"| {line} |" for line in head + rows)


def _markdown_cell(cell: Any) -> str:
    if isinstance(cell, str):
        return _plain(cell)
    if "marked" not in cell:
        sound = f"[sound]({cell['sound']})" if "sound" in cell else ""
        return "<br>".join(filter(None, [_image(cell), sound]))
    # No bold face across the edges of a piece that begins or ends with a space.
    return "".join(f"**{_plain(words.strip())}**" if wrong and words.strip() else _plain(words)
                   for words, wrong in _spaced(cell["marked"]))  # fmt: skip


def _image(cell: Mapping[str, Any]) -> str:
    """The picture of a cell; empty if it has none."""
    if "picture" not in cell:
        return ""
    return f'<img src="{cell["picture"]}" width="{cell["width"]}" alt="{_plain(cell["alt"])}">'


def _spaced(pieces: list[list[Any]]) -> list[tuple[str, bool]]:
    """The pieces of a marked text, neighbours of the same kind joined, with the spaces between them as pieces of their
    own."""
    spaced: list[tuple[str, bool]] = []
    for wrong, group in itertools.groupby(pieces, key=lambda piece: piece[1]):
        if spaced:
            spaced.append((" ", False))
        spaced.append((" ".join(words for words, _ in group), wrong))
    return spaced


def _plain(text: str) -> str:
    """A text that Markdown and HTML show as it is, also in a cell of a table."""
    return html.escape(text).replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")


def _fenced(language: str, code: str) -> str:
    return f"```{language}\n{code}\n```"


def _anchor(title: str) -> str:
    """The name that GitHub gives to a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


# HTML


def page(sections: Mapping[str, Section]) -> str:
    """The page as HTML, with players."""
    links = [f'<li><a href="#{kind}">{_plain(x["title"])}</a></li>' for kind, x in sections.items()]
    parts = ["<h1>Gallery</h1>", f"<p>{_paragraph(INTRODUCTION)}</p>", f"<ul>{''.join(links)}</ul>"]
    for kind, x in sections.items():
        parts += [f'<h2 id="{kind}">{_plain(x["title"])}</h2>', f"<p>{_plain(x['summary'])}</p>"]
        parts += [_pre(x["command"]), f"<p>{_plain(x['facts'])}.</p>"]
        if x["scores"]:
            rows = [[f"<code>{name}</code>", value, _plain(meaning)] for name, value, meaning in x["scores"]]
            parts.append(_table(("score", "", "what it says"), rows))
        for sample in x["samples"]:
            parts += [
                f"<h3>{_plain(sample['title'])}</h3>",
                f"<p>{_plain(sample['note'])}</p>" * bool(sample["note"]),
            ]
            parts += [_html_table(sample), _pre(sample["code"])]
    parts.append(f"<p>Made by <code>{AGAIN}</code>.</p>")
    return TEMPLATE.replace("CONTENT", "\n".join(parts))


def _html_table(sample: Mapping[str, Any]) -> str:
    return _table(sample["columns"], [[_html_cell(cell) for cell in row] for row in sample["rows"]])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells in HTML; on narrow screens each cell stands below the name of its column."""
    names = [_plain(name) for name in columns]
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = [
        "".join(f'<td data-column="{name}">{cell}</td>' for name, cell in zip(names, row, strict=True))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table><tr class="head">{head}</tr>{body}</table></div>'


def _html_cell(cell: Any) -> str:
    if isinstance(cell, str):
        return _plain(cell)
    if "marked" not in cell:
        sound = f'<audio controls preload="none" src="{cell["sound"]}"></audio>' if "sound" in cell else ""
        return _image(cell) + sound
    return "".join(f"<mark>{_plain(words)}</mark>" if wrong else _plain(words)
                   for words, wrong in _spaced(cell["marked"]))  # fmt: skip


def _paragraph(text: str) -> str:
    """A paragraph of Markdown with a word in bold face and no other marks."""
    before, bold, after = _escaped(text).split("**")
    return f"{before}<mark>{bold}</mark>{after}"


def _escaped(text: str) -> str:
    return html.escape(text.strip())


def _pre(code: str) -> str:
    return f"<pre><code>{html.escape(code)}</code></pre>"


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Gallery of xmodal_jax</title>
<style>
:root{color-scheme:light dark;--line:#d8dce2;--soft:#f3f5f8;--wrong:#b4233c;--paper:#fff;--ink:#1f2937}
@media(prefers-color-scheme:dark){:root{--line:#2c3440;--soft:#171b22;--wrong:#f0727f;--paper:#0f1217;--ink:#e6e9ef}}
body{max-width:1100px;margin:0 auto;padding:1rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h2{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem}
.table,pre{overflow-x:auto}pre{background:var(--soft);padding:.6rem .8rem;border-radius:6px;font-size:13px}
table{border-collapse:collapse}td,th{border-bottom:1px solid var(--line);padding:.35rem .6rem .35rem 0;text-align:left;
vertical-align:middle}th{font-weight:600}
img{display:block;image-rendering:pixelated;max-width:none}audio{width:190px;height:34px}
mark{background:none;color:var(--wrong);font-weight:600;text-decoration:underline dotted}
@media(max-width:640px){table,tbody,tr,td{display:block}.head{display:none}tr{border-bottom:1px solid var(--line);
padding:.4rem 0}td{border:0;padding:.15rem 0}td::before{content:attr(data-column);display:block;font-size:12px;
opacity:.65}img{max-width:100%}}
code{font-family:ui-monospace,"DejaVu Sans Mono",monospace}a{color:inherit}
</style></head><body>
CONTENT
</body></html>
"""
