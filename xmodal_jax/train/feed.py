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
        # Kept on the device: a data set of arrays that fits, and needs no transform on the host.
        self.is_resident = (
            config.resident
            and source.arrays is not None
            and loader.transform is None
            and nbytes(source.arrays) <= RESIDENT_LIMIT
        )
        self.resident = engine.put_resident(numeric_fields(source.arrays)) if self.is_resident else None
        """The data set on the device, or None."""

    def next(self, step: int, count: int) -> Any:
        """The ``scan_inputs`` of `Engine.run` for ``count`` steps from ``step`` on: arrays ``[count, B, ...]`` on the
        devices, with N seeds ``[count, N, B, ...]``."""
        by_seed = [self._host_inputs(loader, step, count) for loader in self.loaders]
        if self.engine.seeds is None:
            (only_seed,) = by_seed
            return self.engine.put(only_seed)
        return self.engine.put(jax.tree.map(lambda *x: np.stack(x, axis=1), *by_seed))

    def _host_inputs(self, loader: Loader, step: int, count: int) -> Any:
        """The inputs of ``count`` steps for one seed, arrays ``[count, B, ...]`` on the host.

        Either batches, or, where the data set is on the device, the numbers of the examples in the data set (``row``)
        and in the stream of all examples drawn so far (``index``).
        """
        if self.is_resident:
            return {"row": loader.index_batches(step, count), "index": loader.stream_index(step, count)}
        batches = [numeric_fields(next(loader)) for _ in range(count)]
        return jax.tree.map(lambda *x: np.stack(x), *batches)

    def position(self) -> dict[str, Any]:
        """The first seed's position in the data. The other seeds are at the same position of their own orders, so that
        theirs differ in the entry ``seed`` only."""
        return self.loaders[0].position()

    def restore(self, position: dict[str, Any]) -> None:
        """Moves all seeds to a ``position`` that `position` has returned."""
        for k, loader in enumerate(self.loaders):
            loader.restore({**position, "seed": position["seed"] + k})

    def close(self) -> None:
        for loader in self.loaders:
            loader.close()
