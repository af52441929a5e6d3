"""The report of a run, one self-contained HTML page: metrics, curves, samples, retrieval galleries, audio,
configuration.

The page has no scripts and loads nothing: styles are inline, images and audio are base64. Its content security policy
holds the browser to that, so that no caption or label can make it do anything else. It follows the light or dark
setting of the reader's system. Add sections in reading order, then ``write``::

    report = Report("Image-text retrieval", "shapes, 4 seeds")
    report.add_metrics(result["metrics"], headline=["image_to_text/recall@1"])
    report.add_figure("Training curves", figures.curves(run.read_metrics()))
    report.write(run.path / "report.html")
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import io
import math
import re
import wave
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from xmodal_jax.core.nesting import dotted
from xmodal_jax.report import figures
from xmodal_jax.train.run import format_value, write_atomic

_SHARES = (
    "recall",
    "accuracy",
    "precision",
    "coherence",
    "map",
    "mrr",
    "f1",
    "density",
    "coverage",
    "wer",
    "cer",
)
"""Metrics in [0, 1], whose cards have a bar. A name is compared up to its first ``@``, ``_`` or space: ``recall@1`` is
a recall."""


class Audio(NamedTuple):
    """Audio with a player."""

    wave: np.ndarray
    """Samples ``[T]`` or ``[T, channels]``, int16 PCM or floats in [-1, 1]."""
    sample_rate: int
    """Hz."""


class MarkedText(NamedTuple):
    """A text whose errors are marked."""

    pieces: Sequence[tuple[str, str]]
    """``(words, mark)``, where the mark is "right", "wrong" or "missing" (which is shown struck through)."""


class Highlighted(NamedTuple):
    """A cell of a table that stands out as the best of its row."""

    text: str


class Item(NamedTuple):
    """Content of a gallery or table with its caption: text (plain or marked), an image ``[H, W, C]``, a video
    ``[F, H, W, C]`` or audio."""

    content: str | np.ndarray | Audio | MarkedText
    caption: str = ""


class Hit(NamedTuple):
    """A retrieved result."""

    content: str | np.ndarray | Audio
    correct: bool | None
    """Whether it belongs to the query; None: it is not known."""
    similarity: float
    caption: str = ""


class Report:
    """Collects sections and writes them as one page. Contents of the same title share a section."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        """``title`` and ``subtitle`` are shown at the top of the page."""
        self.title = title
        self.subtitle = subtitle
        self.headline: list[str] = []
        """Names of the metrics on the cards."""
        self._cards: list[str] = []
        """HTML of the cards of metrics."""
        self._sections: dict[str, list[str]] = {}
        """HTML of the contents of each section, by title."""
        self._closed: set[str] = set()
        """Titles of the sections that are collapsed at first."""
        self._columns: set[int] = set()
        """The fixed numbers of columns that grids of images have on this page; `html` writes a CSS rule for each."""

    def add_cards(
        self, metrics: Mapping[str, Any], names: Sequence[str], chance: Mapping[str, float] | None = None
    ) -> None:
        """Cards at the top of the page, of the metrics in ``names``.

        ``metrics``, ``chance``: see `add_metrics`. Raises KeyError if one of the names is not among the metrics.
        """
        for name in names:
            if name not in metrics:
                raise KeyError(f"headline metric {name!r} is not among the metrics: {', '.join(metrics)}")
            self.headline.append(name)
            self._cards.append(_card(name, metrics[name], (chance or {}).get(name)))

    def add_metrics(
        self,
        metrics: Mapping[str, Any],
        *,
        headline: Sequence[str] | None = None,
        chance: Mapping[str, float] | None = None,
        title: str = "Metrics",
    ) -> None:
        """Cards of the headline metrics, and a table of all metrics.

        Args:
          metrics: values by name; a value is a number, or one number per seed. The table has a row for each group and a
            column for each metric in the names ``group/metric`` (the other way round if there are many metrics).
          headline: names of the metrics on cards; None: the first six.
          chance: the value of a random prediction, by name, shown on the card.
          title: of the section with the table.

        Raises:
          KeyError: a headline metric is missing.
        """
        self.add_cards(metrics, list(metrics)[:6] if headline is None else headline, chance)
        if not metrics:
            return self.add_text(title, "There are no scores.")
        by_group: dict[str, dict[str, str]] = {}  # formatted values, by group and metric
        for name, value in metrics.items():
            group, _, metric = name.rpartition("/")
            by_group.setdefault(group, {})[metric] = format_value(value)
        metric_names = list(dict.fromkeys(name.rpartition("/")[2] for name in metrics))
        transposed = len(metric_names) > 7 and len(by_group) < len(metric_names)
        if transposed:  # a tall table reads better than one that scrolls sideways
            rows = [[m, *(cells.get(m, "") for cells in by_group.values())] for m in metric_names]
        else:
            rows = [[group, *(cells.get(m, "") for m in metric_names)] for group, cells in by_group.items()]
        self._add(title, _table(["", *(by_group if transposed else metric_names)], rows))

    def add_text(self, title: str, text: str) -> None:
        """A text; blank lines separate paragraphs."""
        parts = [part for part in text.split("\n\n") if part.strip()]
        self._add(title, "".join(f'<p dir="auto">{_lines(part)}</p>' for part in parts))

    def add_table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = ""
    ) -> None:
        """A table with the headings ``columns``. A cell is a text, a number, an `Item`, or what an `Item` can hold: an
        image, a video, audio. ``note``: shown below the table.

        Raises:
          ValueError: a row has not as many cells as there are ``columns``.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(
                    f"table {title!r}: {len(columns)} columns, but a row has {len(row)}: {row!r}"
                )
        self._add(title, _table(columns, rows) + _note(note))

    def add_figure(self, title: str, fig: Figure, note: str = "") -> None:
        """A matplotlib figure, rendered for light and for dark pages. If it cannot be drawn, the section says why.

        ``note``: shown below the figure.
        """
        width = round(fig.get_size_inches()[0] * 96)  # CSS pixels: 96 per inch
        try:
            light, dark = (uri(figures.to_png(fig, dark=dark), "image/png") for dark in (False, True))
        except Exception as error:  # matplotlib raises many types
            return self.add_text(title, f"This figure could not be drawn ({type(error).__name__}: {error}).")
        self._add(
            title,
            f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
            f'<img src="{light}" alt="{_escape(title)}" width="{width}"></picture>'
            f"{_note(note)}</figure>",
        )

    def add_images(
        self,
        title: str,
        images: Sequence[np.ndarray] | np.ndarray,
        captions: Sequence[str] = (),
        *,
        columns: int | None = None,
        note: str = "",
    ) -> None:
        """Images uint8 ``[H, W, C]``, stored at their size and enlarged by the browser.

        ``captions``: below the first images. ``columns``: images per row; None: as many as fit. ``note``: below all.
        """
        cells = [_cell(image, captions[k] if k < len(captions) else "") for k, image in enumerate(images)]
        css_class = "tiles"
        if columns:
            css_class = f"tiles columns-{columns:d}"
            self._columns.add(columns)  # `html` writes a CSS rule for it
        self._add(title, f'<div class="{css_class}">{"".join(cells)}</div>{_note(note)}')

    def add_videos(
        self,
        title: str,
        videos: Sequence[np.ndarray] | np.ndarray,
        captions: Sequence[str] = (),
        *,
        fps: float = 8.0,
        note: str = "",
    ) -> None:
        """Videos uint8 ``[F, H, W, C]``, as animated images of ``fps`` frames per second.

        ``captions``: below the first videos; ``note``: below all.
        """
        cells = [
            _cell(video, captions[k] if k < len(captions) else "", fps) for k, video in enumerate(videos)
        ]
        self._add(title, f'<div class="tiles">{"".join(cells)}</div>{_note(note)}')

    def add_audio(
        self, title: str, wav: np.ndarray, sample_rate: int, caption: str = "", note: str = ""
    ) -> None:
        """Audio with a player; see `Audio`."""
        self._add(title, f'<div class="sound">{_cell(Audio(wav, sample_rate), caption)}</div>{_note(note)}')

    def add_gallery(
        self,
        title: str,
        queries: Sequence[Item | str | np.ndarray | Audio],
        results: Sequence[Sequence[Hit]],
        *,
        ranks: Sequence[int] | None = None,
        top: int = 5,
        note: str = "",
    ) -> None:
        """Results of retrieval: a row per query with its first ``top`` results, correct ones green, others red; without
        colours where it is not known which are correct.

        Args:
          title: of the section.
          queries: content, or `Item`.
          results: of each query, best first.
          ranks: rank (from 1) of the first correct result of each query, shown where ``results`` do not include it.
          top: results shown.
          note: below the heading.

        Raises:
          ValueError: ``results`` or ``ranks`` are not as many as the queries.
        """
        if len(queries) != len(results) or (ranks is not None and len(ranks) != len(queries)):
            raise ValueError(
                f"gallery {title!r}: {len(queries)} queries need as many lists of results (and ranks)"
            )
        rows = []
        for k, (query, hits) in enumerate(zip(queries, results, strict=True)):
            query = query if isinstance(query, Item) else Item(query)
            cells = "".join(_hit(rank, hit) for rank, hit in enumerate(hits[:top], start=1))
            verdict = _verdict(hits, None if ranks is None else int(ranks[k]))
            rows.append(
                f'<div class="query"><div class="ask"><span class="kind">query</span>{_cell(*query)}'
                f'{verdict}</div><div class="hits">{cells}</div></div>'
            )
        is_judged = any(hit.correct is not None for hits in results for hit in hits)
        colours = '<i class="right"></i>correct <i class="wrong"></i>incorrect' if is_judged else ""
        legend = f'<p class="legend">{colours}<span>rank and similarity below each result</span></p>'
        self._add(title, f'{_note(note)}{legend}<div class="gallery">{"".join(rows)}</div>')

    def add_beside(self, title: str, contents: Mapping[str, str]) -> None:
        """Sections of several reports side by side. ``contents``: their HTML as `read_sections` returns it, by the
        names of what they are of."""
        blocks = "".join(
            f'<div><p class="note">{_escape(name)}</p>{content}</div>' for name, content in contents.items()
        )
        self._columns |= {int(n) for n in re.findall(r'class="tiles columns-(\d+)"', blocks)}
        self._add(title, f'<div class="beside">{blocks}</div>')

    def add_config(self, config: Mapping[str, Any], title: str = "Configuration") -> None:
        """The configuration, with nested names joined by dots. The section is collapsed at first."""
        self._closed.add(title)
        self._add(title, _pairs([(name, _escape(value)) for name, value in dotted(config)]))

    def add_timing(self, timing: Mapping[str, float | None], title: str = "Timing") -> None:
        """Seconds by the name of a part of the run (None: not measured), with bars in proportion to the entry
        "total"."""
        seconds = {name: float(s) for name, s in timing.items() if s is not None}
        longest = max([seconds.get("total", 0.0), *seconds.values(), 1e-12])
        bars = [(name, f"{_bar(s / longest)}<span>{_duration(s)}</span>") for name, s in seconds.items()]
        self._add(title, f'<div class="timing">{_pairs(bars)}</div>')

    def html(self) -> str:
        """The HTML of the page."""
        when = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        links, sections = [], []
        for number, (title, contents) in enumerate(self._sections.items(), start=1):
            links.append(f'<a href="#s{number}">{_escape(title)}</a>')
            open_attribute = "" if title in self._closed else " open"
            sections.append(
                f'<details id="s{number}"{open_attribute}><summary><h2>{_escape(title)}</h2></summary>'
                f'<div class="body">{"".join(contents)}</div></details>'
            )
        subtitle = f'<p class="subtitle">{_escape(self.subtitle)}</p>' if self.subtitle else ""
        cards = f'<div class="cards">{"".join(self._cards)}</div>' if self._cards else ""
        css = _CSS + "".join(
            f".columns-{n}{{grid-template-columns:repeat({n},minmax(0,132px))}}\n"
            for n in sorted(self._columns)
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"{policy(styles=[css])}"
            f"<title>{_escape(self.title)}</title><style>{css}</style></head><body>"
            f"<header><h1>{_escape(self.title)}</h1>{subtitle}{cards}</header>"
            f'<div class="page"><nav><span>Contents</span>{"".join(links)}</nav>'
            f"<main>{''.join(sections)}</main></div>"
            f"<footer>xmodal_jax · written {when}</footer></body></html>\n"
        )

    def write(self, path: Path | str) -> Path:
        """Writes the page atomically; returns its path."""
        write_atomic(path, self.html())
        return Path(path)

    def _add(self, title: str, content: str) -> None:
        self._sections.setdefault(title, []).append(content)


_SECTION = re.compile(
    r'<details id="s\d+"[^>]*><summary><h2>(.*?)</h2></summary><div class="body">(.*?)</div></details>',
    re.DOTALL,
)


def read_sections(page: Path) -> dict[str, str]:
    """The HTML of the sections of a report that was written by `Report.write`, by title; of another or a missing page
    there are none. A section with elements that no report has, such as scripts, is left out."""
    if not page.is_file():
        return {}
    sections = _SECTION.findall(page.read_text(encoding="utf-8", errors="replace"))
    return {html.unescape(title): content for title, content in sections if _is_of_a_report(content)}


class _Elements(HTMLParser):
    """Notes whether HTML has only the elements and attributes that a report's sections have."""

    TAGS = frozenset(
        "audio br dd del div dl dt figcaption figure i img mark p picture rect small source span svg table tbody td th "
        "thead tr wbr".split()
    )
    ATTRIBUTES = frozenset(
        "alt aria-hidden class controls dir height media preload rx src srcset width".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.is_known = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        sources = [value or "" for name, value in attrs if name in ("src", "srcset")]
        self.is_known &= tag in self.TAGS and {name for name, _ in attrs} <= self.ATTRIBUTES
        self.is_known &= all(source.startswith("data:") for source in sources)


def _is_of_a_report(content: str) -> bool:
    """Whether HTML has nothing but what sections of a report are made of."""
    elements = _Elements()
    elements.feed(content)
    elements.close()
    return elements.is_known


def _escape(value: Any) -> str:
    """A value as HTML; characters that no page can hold become U+FFFD."""
    return html.escape(figures.printable(str(value)))


def _lines(text: str) -> str:
    return _escape(text.strip()).replace("\n", "<br>")


def _breakable(text: str) -> str:
    """HTML in which long names, such as those of files, may break after ``/`` and ``_`` rather than inside words."""
    return re.sub(r"([/_])(?=[^\W_])", r"\1<wbr>", text)


def _note(note: str) -> str:
    return f'<p class="note">{_lines(note)}</p>' if note else ""


def policy(*, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """The ``<meta>`` element with the strictest content security policy of a page that needs nothing from outside.

    The browser uses the given inline styles and scripts alone, by their SHA-256, and images and audio that are in the
    page itself (``data:``); it fetches nothing, sends no form, and ignores ``style`` and ``on...`` attributes.

    Args:
      styles: the contents of the ``<style>`` elements.
      scripts: the contents of the ``<script>`` elements.
    """

    def hashes(contents: Sequence[str]) -> str:
        """The SHA-256 of each content as a source of the policy; 'none' without contents."""
        digests = (hashlib.sha256(content.encode()).digest() for content in contents)
        return (
            " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests) or "'none'"
        )

    return (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        f"style-src {hashes(styles)}; script-src {hashes(scripts)}; base-uri 'none'; form-action 'none'\">"
    )


def uri(data: bytes, kind: str) -> str:
    """The content of a file as a data URI; ``kind``: its media type.

    Example::

        uri(b"...", "image/png")  # "data:image/png;base64,..."
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _bar(share: float) -> str:
    """A horizontal bar, filled to ``share`` of its width. As SVG, whose width is no style: the page allows none in
    attributes."""
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    return f'<svg class="bar" aria-hidden="true"><rect width="{width}" height="100%" rx="3"/></svg>'


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_escape(name)}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def _duration(seconds: float) -> str:
    """Seconds as "5.25 s", "2 min 03 s" or "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _card(name: str, value: Any, chance: float | None) -> str:
    """The HTML of one metric's card: its name, its mean over seeds with the spread, a bar if it is one of `_SHARES`,
    and the value of a random prediction (``chance``)."""
    group, _, leaf = name.rpartition("/")
    text, _, spread = format_value(value).partition(" ± ")  # of several seeds: "mean ± standard deviation"
    spread = f"<small> ± {spread}</small>" if spread else ""
    below = f"chance {format_value(chance)}" if chance is not None else ""
    mean = np.mean(np.asarray(value, np.float64)) if value is not None else math.nan
    stem = leaf.lower().replace("_", "@").replace(" ", "@").split("@")[0]  # "recall" of "recall@1"
    bar = _bar(float(mean)) if stem in _SHARES and 0 <= mean <= 1 else ""
    return (
        f'<div class="card"><span class="name">{_escape(leaf).replace("_", "_<wbr>")}</span>'
        f'<span class="group">{_escape(group)}</span>'
        f'<span class="value">{text}{spread}</span>{bar}<span class="chance">{below}</span></div>'
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The HTML of a table with the headings ``columns``; wide tables scroll sideways."""
    head = "".join(f"<th>{_escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(_td(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _td(value: Any) -> str:
    """The HTML of a table cell: media, a number or words."""
    if isinstance(value, Item):
        return f"<td>{_cell(*value)}</td>"  # content and caption
    if isinstance(value, MarkedText):
        return f'<td class="words">{_cell(value)}</td>'
    if isinstance(value, Audio) or (isinstance(value, np.ndarray) and value.ndim in (3, 4)):
        return f"<td>{_cell(value)}</td>"
    if isinstance(value, Highlighted):
        return f'<td class="number best">★ {_escape(value.text)}</td>'
    if isinstance(value, float | np.floating):
        value = format_value(value)
    text = str(value)
    # Also a number as text, such as "0.9 ± 0.1", and no value, so that an empty column takes no width.
    is_number = not text or len(text) < 24 and text.lstrip("-")[:1].isdigit()
    kind = "number" if is_number else "words"
    return f'<td class="{kind}" dir="auto">{_escape(text)}</td>'


def _verdict(hits: Sequence[Hit], rank: int | None) -> str:
    """The HTML of the line that says where the first correct result is; empty if it is not known which are correct.

    ``rank``: of the first correct result, from 1, where the ``hits`` do not include it; None: it is not known.
    """
    if all(hit.correct is None for hit in hits) and rank is None:
        return ""
    first = next((place for place, hit in enumerate(hits, start=1) if hit.correct), rank)
    text = f"first correct result: rank {first}" if first else f"no correct result in the first {len(hits)}"
    return f'<span class="verdict">{text}</span>'


def _hit(rank: int, hit: Hit) -> str:
    """The HTML of one retrieval result with its rank and similarity, marked as right or wrong, if that is known."""
    # The sign is readable without colours.
    css_class, sign = {True: (" right", "✓ "), False: (" wrong", "✗ "), None: ("", "")}[hit.correct]
    return (
        f'<div class="hit{css_class}">{_cell(hit.content, hit.caption)}'
        f'<div class="score"><span>{sign}{rank}</span>'
        f"<span>{hit.similarity:.2f}</span></div></div>"
    )


_TAGS = {"right": "span", "wrong": "mark", "missing": "del"}


def _cell(content: str | np.ndarray | Audio | MarkedText, caption: str = "", fps: float = 8.0) -> str:
    """The HTML of a text, an image, a video or audio, with its caption below it; ``fps``: of a video."""
    below = f'<figcaption dir="auto">{_breakable(_lines(caption))}</figcaption>' if caption else ""
    if isinstance(content, MarkedText):
        words = " ".join(f"<{_TAGS[mark]}>{_escape(text)}</{_TAGS[mark]}>" for text, mark in content.pieces)
        return f'<div class="text" dir="auto">{words}</div>{below}'
    if isinstance(content, str):
        return f'<div class="text" dir="auto">{_escape(content)}</div>{below}'
    if isinstance(content, Audio):
        source = uri(_wav(content), "audio/wav")
        return f'<figure class="audio"><audio controls preload="none" src="{source}"></audio>{below}</figure>'
    if content.dtype != np.uint8 or content.ndim not in (3, 4) or content.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"expected an image uint8 [H, W, C] or a video uint8 [F, H, W, C] with 1, 3 or 4 channels, "
            f"got {content.dtype} {content.shape}"
        )
    # The browser enlarges small images with sharp pixels.
    pixel_class = "" if max(content.shape[-3:-1]) > 160 else ' class="pixels"'
    source = uri(png(content, fps), "image/png")
    return f'<figure class="tile"><img{pixel_class} src="{source}" alt="{_escape(caption)}">{below}</figure>'


def png(content: np.ndarray, fps: float = 8.0) -> bytes:
    """The bytes of a PNG file with an image uint8 ``[H, W, C]``, or with a video ``[F, H, W, C]`` as an animation."""
    video = content if content.ndim == 4 else content[None]  # an image is a video of one frame
    frames = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in video]
    buffer = io.BytesIO()
    milliseconds = round(1000 / fps)
    # loop 0: the animation repeats without end.
    animation = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    frames[0].save(buffer, format="PNG", optimize=True, **(animation if len(frames) > 1 else {}))
    return buffer.getvalue()


def _wav(audio: Audio) -> bytes:
    """The bytes of a 16-bit WAV file; floats are clipped to [-1, 1]."""
    samples = np.asarray(audio.wave)  # [T] or [T, channels]
    if samples.ndim not in (1, 2) or not (
        samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)
    ):
        raise ValueError(
            f"expected int16 or float samples [T] or [T, channels], got {samples.dtype} {samples.shape}"
        )
    if samples.dtype != np.int16:
        samples = (np.clip(np.nan_to_num(samples), -1, 1) * 32767).round().astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)  # bytes: 16 bits
        file.setframerate(int(audio.sample_rate))
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


_CSS = """
:root{--paper:#f5f6f8;--card:#fff;--ink:#1f2937;--muted:#6b7280;--line:#e5e7eb;--soft:#f1f3f6;
--accent:#0072b2;
--right:#0a8f5b;--wrong:#d1495b;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#0f1217;--card:#171b22;--ink:#e6e9ef;--muted:#9aa4b2;
--line:#2c3440;
--soft:#1f252e;--accent:#56b4e9;--right:#34c38a;--wrong:#f0727f}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
header,.page,footer{max-width:1220px;margin:0 auto;padding:0 1.5rem}
header{padding-top:2.2rem}
h1{margin:0;font-size:1.9rem;line-height:1.2;letter-spacing:-.02em}
.subtitle{margin:.35rem 0 0;color:var(--muted);font-size:1.02rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(168px,1fr));gap:.9rem;margin:1.5rem 0 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.85rem 1rem .7rem;
display:flex;
flex-direction:column;min-width:0}
.card .name{font-weight:600;overflow-wrap:anywhere}
.card .group,.card .chance{color:var(--muted);font-size:.8rem;overflow-wrap:anywhere}
.card .value{font-size:1.75rem;font-weight:650;letter-spacing:-.02em;line-height:1.35;white-space:nowrap;
font-variant-numeric:tabular-nums}
.card .value small{font-size:.85rem;font-weight:400;color:var(--muted);letter-spacing:0}
.bar{display:block;width:100%;height:6px;border-radius:3px;background:var(--soft);overflow:hidden;margin:.25rem 0 .3rem}
.bar rect{fill:var(--accent)}
.page{display:grid;grid-template-columns:170px minmax(0,1fr);gap:1.6rem;margin-top:1.6rem}
nav{position:sticky;top:1rem;align-self:start;display:flex;flex-direction:column;font-size:.88rem}
nav span{color:var(--muted);font-size:.74rem;text-transform:uppercase;letter-spacing:.07em;
margin:.2rem 0 .4rem .7rem}
nav a{color:var(--ink);text-decoration:none;padding:.28rem .7rem;border-radius:7px;line-height:1.3}
nav a:hover{background:var(--line)}
details{background:var(--card);border:1px solid var(--line);border-radius:12px;margin-bottom:1.1rem}
summary{cursor:pointer;padding:.8rem 1.1rem;list-style:none;display:flex;align-items:center;gap:.55rem}
summary::-webkit-details-marker{display:none}
summary::before{content:"";border:solid var(--muted);border-width:0 2px 2px 0;padding:3px;
transform:rotate(-45deg);
transition:transform .15s}
details[open]>summary::before{transform:rotate(45deg)}
h2{margin:0;font-size:1.08rem;letter-spacing:-.01em}
.body{padding:.1rem 1.1rem 1.1rem}
.body>*:first-child{margin-top:0}
.note,.legend{color:var(--muted);font-size:.87rem;margin:.5rem 0 .7rem;max-width:75ch}
figure{margin:0}
figure picture img{max-width:100%;height:auto;display:block}
.scroll{overflow-x:auto}
table{border-collapse:collapse;min-width:45%}
th{font-size:.8rem;font-weight:600;color:var(--muted);text-align:left}
th,td{padding:.42rem .9rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:middle}
th:last-child,td:last-child{padding-right:0}
tbody tr:last-child td{border-bottom:0}
td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
td.best{font-weight:700;color:var(--right)}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1.4rem}
.beside>div{min-width:0}
.beside .query{grid-template-columns:minmax(0,1fr);gap:.6rem}
.beside .hits{grid-template-columns:repeat(auto-fill,minmax(86px,1fr))}
td .tile{width:84px}
td .audio{width:132px}
td.words{min-width:9rem;overflow-wrap:anywhere;white-space:pre-line}
mark{background:none;color:var(--wrong);font-weight:650;text-decoration:underline wavy 1px}
del{color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:.9rem}
.tile img{width:100%;display:block;border-radius:6px}
.pixels{image-rendering:pixelated}
figcaption{font-size:.78rem;line-height:1.3;color:var(--muted);margin-top:.3rem;overflow-wrap:anywhere}
.sound{margin:.2rem 0 .9rem;max-width:430px}
audio{width:100%;height:36px;display:block}
.legend{display:flex;align-items:center;gap:.4rem}
.legend i~span{margin-left:.6rem}
.legend i{width:.8rem;height:.8rem;border-radius:3px;display:inline-block}
i.right{background:var(--right)}i.wrong{background:var(--wrong);margin-left:.6rem}
.query{display:grid;grid-template-columns:190px minmax(0,1fr);gap:1.1rem;padding:.9rem 0;
border-top:1px solid var(--line)}
.ask{display:flex;flex-direction:column;gap:.3rem;align-items:flex-start}
.ask .kind{font-size:.7rem;text-transform:uppercase;letter-spacing:.07em;color:var(--muted)}
.ask .tile{width:104px}
.ask .audio{width:100%}
.text{overflow-wrap:anywhere;white-space:pre-line}
.ask .text{font-weight:600;line-height:1.35}
.ask .verdict{font-size:.76rem;color:var(--muted)}
.hits{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:.7rem;align-items:stretch}
.hit{border:2px solid var(--line);border-radius:9px;padding:5px;background:var(--soft);display:flex;
flex-direction:column;justify-content:space-between;min-width:0}
.hit.right{border-color:var(--right)}.hit.wrong{border-color:var(--wrong)}
.hit .text{font-size:.84rem;line-height:1.32;padding:.25rem .3rem;overflow-wrap:anywhere}
.score{display:flex;justify-content:space-between;font-size:.78rem;padding:.25rem .25rem 0;
font-variant-numeric:tabular-nums;color:var(--muted)}
.right .score span:first-child{color:var(--right);font-weight:700}
.wrong .score span:first-child{color:var(--wrong);font-weight:700}
dl{display:grid;grid-template-columns:minmax(120px,max-content) minmax(0,1fr);gap:.32rem 1.4rem;margin:0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.timing dd{display:grid;grid-template-columns:minmax(80px,360px) auto;gap:1rem;align-items:center}
.timing .bar{margin:0}
footer{color:var(--muted);font-size:.8rem;padding-top:.4rem;padding-bottom:2.5rem}
@media(max-width:860px){.page{grid-template-columns:minmax(0,1fr);gap:1rem}nav{position:static;
flex-direction:row;
flex-wrap:wrap}nav span{display:none}.query{grid-template-columns:minmax(0,1fr);gap:.6rem}
header,.page,footer{padding-left:1rem;padding-right:1rem}}
@media(max-width:560px){.hits{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media print{nav{display:none}.page{display:block}details{break-inside:avoid}}
"""
