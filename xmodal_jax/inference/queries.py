"""Queries and files that are named on a command line: words, pictures, sounds and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.inputs import InputFormat, InputSource
from xmodal_jax.inference.loading import load
from xmodal_jax.types import kind_of


class Query(NamedTuple):
    """What to search for: words or a file."""

    text: str
    """The words, or the path of the file."""
    modality: str
    """The modality of the run that embeds it."""
    content: str | Path
    """The words, or the file."""


def parse_queries(texts: Sequence[str], modalities: Sequence[str], prefer: str | None = None) -> list[Query]:
    """Parses the queries of a command line: each is a text, unless it is the path of a picture, sound or video.

    Args:
      texts: words or paths.
      modalities: those of the run.
      prefer: the modality, such as text_es, that embeds the queries of its kind; None: the first of the kind.

    Raises:
      FileNotFoundError: a query is the name of a file that does not exist.
      ValueError: a query is empty, or a file that is no picture, sound or video by its suffix; the run lacks ``prefer``
        or a modality of the query's kind; or no query is of ``prefer``.
    """
    if prefer is not None and prefer not in modalities:
        raise ValueError(f"--query-modality {prefer}: the run has {', '.join(modalities)}")
    queries = []
    for text in texts:
        if not text.strip():
            raise ValueError("--query: a query is empty")
        kind = modality_of_file(text)
        if kind is not None and not _is_file(text):
            if not text.split()[1:]:
                raise FileNotFoundError(f"--query {text}: there is no such file")
            kind = None  # a sentence that ends like the name of a file
        if kind is None and Path(text).suffix and _is_file(text):
            raise ValueError(f"--query {text}: this file is no picture, sound or video by its suffix")
        content = text if kind is None else Path(text)
        kind = kind or "text"
        of_kind = [m for m in modalities if kind_of(m) == kind]
        if not of_kind:
            raise ValueError(f"--query {text}: this is {kind}, and the run has {', '.join(modalities)}")
        queries.append(Query(text, prefer if prefer in of_kind else of_kind[0], content))
    if prefer is not None and all(query.modality != prefer for query in queries):
        raise ValueError(f"--query-modality {prefer}: no query is {kind_of(prefer)}")
    return queries


def _is_file(text: str) -> bool:
    """Whether a text is the path of a file; one that is too long or holds a zero is none."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def embed_queries(model: ContrastiveModel, queries: Sequence[Query]) -> np.ndarray:
    """Embeds queries, which may be of different modalities: float32 ``[Q, dim]``."""
    embeddings = np.zeros((len(queries), model.dim), np.float32)
    for modality in dict.fromkeys(query.modality for query in queries):
        rows = [k for k, query in enumerate(queries) if query.modality == modality]
        embeddings[rows] = model.embed(**{modality: [queries[k].content for k in rows]})
    return embeddings


def load_for_index(run: Path, digest: str, seed: int | None = None) -> ContrastiveModel:
    """Loads the model that made an index: the newest checkpoint of a run, or the best, whichever has the ``digest``.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: neither has the digest.
    """
    newest = model = load(run, seed=seed)
    if model.digest != digest:
        try:
            model = load(run, best=True, seed=seed)
        except (FileNotFoundError, ValueError):  # there is no best one; an exported run has a single model
            model = newest
    if model.digest != digest:
        raise ValueError(
            f"the index was made by another checkpoint than those of {run} (its newest is of step {newest.step}): name "
            "the run with --run, or embed the data again"
        )
    return model


def find_files(paths: Sequence[Path], modalities: Sequence[str]) -> tuple[str, list[Path]]:
    """Lists the pictures, sounds or videos among ``paths`` and in their folders and subfolders, with their modality.

    Args:
      paths: files and folders.
      modalities: those of the run; the files get the first of their kind.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the files are of no or of several kinds, or the run cannot read them.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        if path.is_file() and modality_of_file(path.name) is None:
            raise ValueError(f"{path} is no picture, sound or video by its suffix")
        inside = sorted(p for p in path.rglob("*") if p.is_file() and modality_of_file(p.name))
        files += inside if path.is_dir() else [path]
    kinds = {str(modality_of_file(file.name)): file for file in reversed(files)}
    if not kinds:
        raise ValueError(f"{', '.join(map(str, paths))}: there is no picture, sound or video")
    if len(kinds) > 1:
        (kind, file), (other_kind, other) = list(kinds.items())[:2]
        raise ValueError(f"files of one kind are needed: {file} is {kind}, {other} is {other_kind}")
    (kind,) = kinds
    of_kind = [m for m in modalities if kind_of(m) == kind]
    if not of_kind:
        raise ValueError(f"{files[0]} is {kind}, and the run has {', '.join(modalities)}")
    return of_kind[0], files


def keep_readable(
    files: Sequence[Path], format: InputFormat, modality: str, bad_examples: BadExamples
) -> list[Path]:
    """Returns the files that can be read as ``modality``, and adds the others to ``bad_examples``.

    Raises:
      BadExampleError: a file cannot be read, and ``bad_examples`` stops at the first.
      ValueError: none can be read.
    """
    readable = []
    for file in files:
        try:
            InputSource({modality: [file]}, format).batch(np.array([0]))
        except ValueError as error:
            bad_examples.add(file, 0, str(error.__cause__ or error))
        else:
            readable.append(file)
    if not readable:
        raise ValueError(bad_examples.summary() or "there is no file")
    return readable


def query_content(query: Query, format: InputFormat) -> Any:
    """The content of a query for a report: its text, or its file as the model gets it."""
    from xmodal_jax.report.alignment import content

    batch = InputSource({query.modality: [query.content]}, format).batch(np.array([0]))
    return content(batch, query.modality, 0, format.sample_rate)
