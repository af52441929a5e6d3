"""Where the batches of a training come from: examples drawn on the device, or batches read by the host."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.sources.arrays import nbytes
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.parallel import Engine

RESIDENT_LIMIT = 2 * 2**30
"""Largest data set, in bytes, that is kept in the device's memory."""


class BatchFeed:
    """The input of each dispatch: examples of a data set on the device by their numbers, or batches from the host.

    Each seed has its own order of the data, and each process reads its own part of every global batch.
    """

    def __init__(self, loader: Loader, engine: Engine, config: RunConfig):
        shard = (jax.process_index(), jax.process_count())
        self.loaders = [loader.copy(seed=loader.order.seed + k, shard=shard) for k in range(config.seeds)]
        self.engine = engine
        source = loader.source
        self.is_resident = (
            config.resident
            and source.arrays is not None
            and loader.transform is None
            and nbytes(source.arrays) <= RESIDENT_LIMIT
        )
        self.resident = engine.put_resident(numeric_fields(source.arrays)) if self.is_resident else None
        """The data set on the device, or None."""

    def next(self, step: int, count: int) -> Any:
        """The ``scan_inputs`` of `Engine.run` for ``count`` steps from ``step`` on."""
        scan_inputs = [self._next_of(loader, step, count) for loader in self.loaders]
        if self.engine.seeds is None:
            return self.engine.put(scan_inputs[0])
        return self.engine.put(jax.tree.map(lambda *x: np.stack(x, axis=1), *scan_inputs))

    def _next_of(self, loader: Loader, step: int, count: int) -> Any:
        if self.is_resident:
            return {"row": loader.index_batches(step, count), "index": loader.stream_index(step, count)}
        batches = [numeric_fields(next(loader)) for _ in range(count)]
        return jax.tree.map(lambda *x: np.stack(x), *batches)

    def position(self) -> dict[str, Any]:
        """The position in the data of the first seed; the others differ from it in the seed alone."""
        return self.loaders[0].position()

    def restore(self, position: dict[str, Any]) -> None:
        """Goes on from a `position`."""
        for k, loader in enumerate(self.loaders):
            loader.restore({**position, "seed": position["seed"] + k})

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()
