"""An index: the embeddings of many examples, to search in, in memory or in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.inference.approximate import NeighbourGraph, load_or_build_graph
from xmodal_jax.inference.index_files import (
    FORMATS,
    VERSION,
    DamagedIndex,
    Format,
    Shard,
    read_settings,
    read_shard,
    write_settings,
    write_shard,
)
from xmodal_jax.inference.inputs import check_count
from xmodal_jax.inference.neighbours import Nearest, nearest

SHARD_SIZE = 16_384
"""Examples in a shard of an index on disk."""
LARGEST_NORM = 1.001
"""Upper bound of the norms of embeddings, which are unit vectors up to the rounding of float32."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Index:
    """Embeddings of N examples in one or several modalities.

    ::

        index = model.index(images=paths)  # or Index.load("embeddings"), which experiments/embed.py wrote
        model.search(index, texts=["a red star"], k=5).names[0]

    Raises:
      ValueError: the numbers of embeddings and names differ, or an embedding is not a unit vector.
    """

    embeddings: Mapping[str, np.ndarray]
    """The unit embeddings of each modality, float32 ``[N, D]``; zeros where an example lacks it."""
    names: Sequence[str]
    """The names of the N examples, such as the paths of their files."""
    model: str
    """`ContrastiveModel.digest` of the model that computed the embeddings."""
    present: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Which examples have a modality, bool ``[N]``; a modality without an entry is that of all."""
    examples: np.ndarray | None = None
    """The index of each example in the data set, int64 ``[N]``; None: 0..N-1."""
    run: str = ""
    """The directory of the run at the time of embedding."""
    data: Mapping[str, Any] | None = None
    """The data set: ``spec`` (as in ``--data``), ``split`` and ``options``, from `embed_data.describe_data`; None:
    there is none."""
    folder: Path | None = None
    """The folder that the index was loaded from, where its graphs for approximate search are kept; None: it was not."""
    _graphs: dict[str, NeighbourGraph] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self):
        if not self.embeddings or not len(self.names):
            raise ValueError("an index needs one example at least")
        for modality, mask in self.present.items():
            if np.shape(mask) != (len(self.names),):
                raise ValueError(
                    f"{len(self.names)} names need as many entries of present[{modality!r}], got {np.shape(mask)}"
                )
        for modality, vectors in self.embeddings.items():
            if vectors.ndim != 2 or len(vectors) != len(self.names):
                raise ValueError(
                    f"{len(self.names)} names need as many embeddings of {modality}, [N, D], got {vectors.shape}"
                )
            norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
            wrong = ~(np.abs(norms - 1) < LARGEST_NORM - 1) & self.has(modality)
            if wrong.any():
                raise ValueError(
                    f"embedding {int(wrong.argmax())} of {modality} has the norm {norms[wrong][0]:.4g}, not 1"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        counts = ", ".join(f"{int(self.has(m).sum()):,} of {m}" for m in self.modalities)
        return f"<Index of {len(self):,} examples: {counts}>"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that can be searched."""
        return tuple(self.embeddings)

    def has(self, modality: str) -> np.ndarray:
        """Which examples have a modality, bool ``[N]``."""
        mask = self.present.get(modality)
        return np.ones(len(self), bool) if mask is None else mask

    def example_numbers(self, indices: np.ndarray) -> list:
        """Converts positions in `names` to indices in the data set, as nested lists of int of the same shape."""
        return (indices if self.examples is None else self.examples[indices]).tolist()

    def choose_modality(self, modality: str | None) -> str:
        """Checks a modality to search in, and returns it; None: the only one of the index.

        Raises:
          ValueError: the index lacks it, or has several and none is chosen.
        """
        if modality is None and len(self.modalities) == 1:
            return self.modalities[0]
        if modality not in self.embeddings:
            chosen = "choose one of them" if modality is None else f"there is no {modality}"
            raise ValueError(f"the index has {', '.join(self.modalities)}: {chosen}")
        return modality

    def nearest(
        self, embeddings: np.ndarray, k: int = 10, *, modality: str | None = None, approximate: bool = False
    ) -> Nearest:
        """Finds the examples with the most similar embeddings.

        Args:
          embeddings: unit vectors ``[Q, D]``, the queries.
          k: number of results for each query; if the index has fewer examples, all of them.
          modality: the modality to search in; None: the only one of the index.
          approximate: whether to search in the graph of `build_graph`, which is faster in a large index and may miss
            some of the nearest examples.

        Returns:
          Cosine similarities and positions in `names`, ``[Q, k]``.

        Raises:
          ValueError: see `choose_modality`, or no example has the modality.
        """
        modality = self.choose_modality(modality)
        vectors, rows = self._vectors_of(modality)
        if approximate:
            scores, indices = self.build_graph(modality).nearest(embeddings, min(k, len(vectors)))
        else:
            scores, indices = nearest(embeddings, vectors, min(k, len(vectors)), max_norm=LARGEST_NORM)
        return Nearest(scores, indices if rows is None else rows[indices])

    def build_graph(
        self, modality: str | None = None, *, announce: Callable[[str], None] | None = None
    ) -> NeighbourGraph:
        """Builds the graph for approximate search in a modality, or reads it from `folder`, where it is kept.

        Args:
          modality: the modality to search in; None: the only one of the index.
          announce: called with messages for the user, such as ``print``; None: there are none.

        Raises:
          ValueError: see `nearest`, or the package faiss-cpu is not installed.
        """
        modality = self.choose_modality(modality)
        if modality not in self._graphs:
            vectors, _ = self._vectors_of(modality)
            self._graphs[modality] = load_or_build_graph(vectors, self.folder, modality, announce)
        return self._graphs[modality]

    def _vectors_of(self, modality: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The embeddings of the examples that have a modality, and the positions of these examples; None: all.

        Raises:
          ValueError: none has it.
        """
        vectors, mask = self.embeddings[modality], self.has(modality)
        if mask.all():
            return vectors, None
        rows = np.flatnonzero(mask)
        if not len(rows):
            raise ValueError(f"no example of the index has {modality}")
        return vectors[rows], rows

    def save(
        self, folder: str | Path, *, format: Format = "safetensors", shard_size: int = SHARD_SIZE
    ) -> None:
        """Writes the index to a new or empty folder, as safetensors or Parquet files of ``shard_size`` examples each.

        Raises:
          FileExistsError: there is something in the folder.
          ValueError: a shard would hold nothing, or the format is unknown.
        """
        folder = Path(folder)
        check_count("shard_size", shard_size, least=1)
        if format not in FORMATS:
            raise ValueError(f"the format is one of {', '.join(FORMATS)}, got {format!r}")
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty: choose a new folder for the index")
        folder.mkdir(parents=True, exist_ok=True)
        examples = np.arange(len(self)) if self.examples is None else self.examples
        starts = range(0, len(self), shard_size)
        settings = index_settings(
            self.modalities, self.model, self.run, self.data, format, len(self), shard_size
        )
        write_settings(folder, settings)
        for number, start in enumerate(starts):
            part = slice(start, start + shard_size)
            shard = Shard(
                {m: x[part] for m, x in self.embeddings.items()},
                {m: self.has(m)[part] for m in self.modalities},
                self.names[part],
                examples[part],
            )
            write_shard(folder, number, shard, format)

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Reads an index that `save` or experiments/embed.py wrote, and verifies every file by its digest.

        Raises:
          FileNotFoundError: there is no index.
          ValueError: it is not finished, or of a later version.
          DamagedIndex: a file differs from what was written.
        """
        folder = Path(folder)
        settings = read_settings(folder)
        modalities, count = settings["modalities"], settings["shards"]
        shards: list[Shard] = []
        for number in range(count):
            try:
                shards.append(read_shard(folder, number, settings["format"], modalities))
            except FileNotFoundError as error:
                raise ValueError(
                    f"{folder} is not finished: shard {number} of 0..{count - 1} is missing. Run the same command of "
                    "experiments/embed.py again, which goes on"
                ) from error
            except (KeyError, TypeError) as error:
                raise DamagedIndex(f"{folder}: shard {number} lacks {error}: embed the data again") from error
        return cls(
            {m: np.concatenate([shard.embeddings[m] for shard in shards]) for m in modalities},
            [name for shard in shards for name in shard.names],
            settings["model"],
            {m: np.concatenate([shard.present[m] for shard in shards]) for m in modalities},
            np.concatenate([shard.examples for shard in shards]),
            settings["run"],
            settings["data"],
            folder,
        )


def index_settings(
    modalities: Sequence[str],
    model: str,
    run: str,
    data: Mapping[str, Any] | None,
    format: Format,
    count: int,
    shard_size: int,
) -> dict[str, Any]:
    """The content of ``index.json``; the arguments are fields of `Index` and arguments of `Index.save`."""
    return {
        "version": VERSION,
        "modalities": list(modalities),
        "model": model,
        "run": run,
        "data": None if data is None else dict(data),
        "format": format,
        "examples": count,
        "shard_size": shard_size,
        "shards": -(-count // shard_size),
    }
