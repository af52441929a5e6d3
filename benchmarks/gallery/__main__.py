"""Writes the gallery of some runs: ``python -m benchmarks.gallery RUN... --out docs/gallery``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks.gallery
from benchmarks.gallery.kinds import KINDS
from benchmarks.gallery.page import Folder
from benchmarks.gallery.runs import describe_run, make_samples, open_runs


def write_gallery(paths: Sequence[Path], out: Path, hardware: str = "") -> None:
    """Shows runs in the gallery in the folder ``out``; the sections of other kinds of runs stay as they are.

    Args:
      paths: the directories of runs, one of each kind.
      out: the gallery's folder.
      hardware: on what the runs were trained, in words.
    """
    runs, folder = open_runs(paths), Folder(out)
    loaded: dict[str, Any] = {}

    def load_other(kind: str) -> Any:
        """Another run among those that are shown; None: there is none of this kind."""
        if kind in runs and kind not in loaded:
            loaded[kind] = KINDS[kind].load(runs[kind].path)
        return loaded.get(kind)

    for kind, run in runs.items():
        samples = make_samples(kind, run, load_other, folder.store(kind))
        folder.add(kind, describe_run(kind, run, hardware) | samples)
        print(f"{kind}: {run.path}", flush=True)
    folder.write()
    print(f"{out / 'README.md'}, {out / 'index.html'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery", description=benchmarks.gallery.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN",
        help="directory of a run, one of each kind; none: the pages are written anew",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"), help="folder of the gallery")
    parser.add_argument("--hardware", default="", help="on what the runs were trained, in words")
    args = parser.parse_args()
    try:
        write_gallery(args.runs, args.out, args.hardware)
    except (ValueError, OSError) as error:
        sys.exit(f"gallery: {error}")


if __name__ == "__main__":
    main()
