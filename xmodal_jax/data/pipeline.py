"""From a source to a stream of batches: order, shards, prefetching (Grain) and an exactly resumable position."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from xmodal_jax.data.order import SimilarGroups, make_order
from xmodal_jax.data.source import RawBatch, Source

Transform = Callable[[RawBatch], RawBatch]
"""A function from batch to batch, such as `text.TokenizeTransform`."""
_ENDLESS = 2**31 - 1  # steps


class Loader(Iterator[RawBatch]):
    """An iterator over the batches of a source, which can stop and resume at any step.

    ::

        loader = Loader(source, batch_size=64, seed=0, transform=tokenize)
        batch = next(loader)
        position = loader.position()  # goes into a checkpoint
        loader.restore(position)

    The stream is the concatenation of the epochs, each in its own order, cut into global batches of ``batch_size``; a
    batch may hold the end of one epoch and the start of the next, and no example is dropped in between. No batch holds
    an example twice, unless it is larger than the data set. Each batch gets ``index`` int32 ``[B]``: the example's
    position in the global stream modulo 2**31.

    Args:
      source: the data set.
      batch_size: examples in a global batch.
      seed: random seed of the order of the examples.
      shuffle: whether each epoch is shuffled; False: the source's order.
      num_epochs: number of epochs in the stream; None: it never ends.
      drop_remainder: what happens to a last batch that is incomplete. True drops it. False pads it to full size: the
        padding repeats the data of the first example of the batch, but has the ``index`` of its own position; it is
        False in ``valid`` and in every ``present[m]`` (``valid`` bool ``[B]`` and ``present`` are then in every batch,
        so that the structure never changes).
      transform: applied to each batch, such as `text.TokenizeTransform`.
      shard: ``(h, H)``: host ``h`` of ``H`` reads the examples ``[h B/H, (h+1) B/H)`` of each global batch, so that the
        global batch is the same for any ``H``.
      workers: threads that prepare batches; 0: each is prepared on demand, in the caller's thread.
      prefetch: batches that are prepared ahead.
      similar_groups: how to put similar examples into the same batch (`order.GroupedOrder`); None: batches are random.

    ``wait_seconds`` adds up the time spent in ``next``.

    Raises:
      ValueError: an empty data set, a wrong shard, a batch size that is no multiple of the number of hosts, or one that
        is larger than the whole stream, so that with ``drop_remainder`` there would be no batch.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        num_epochs: int | None = None,
        drop_remainder: bool = True,
        transform: Transform | None = None,
        shard: tuple[int, int] = (0, 1),
        workers: int = 2,
        prefetch: int = 2,
        similar_groups: SimilarGroups | None = None,
    ):
        self._options = dict(
            source=source, batch_size=batch_size, seed=seed, shuffle=shuffle, num_epochs=num_epochs,
            drop_remainder=drop_remainder, transform=transform, shard=shard, workers=workers, prefetch=prefetch,
            similar_groups=similar_groups,
        )  # fmt: skip
        # `copy` and `example` build loaders with these arguments, some of them changed.
        host, hosts = shard
        if not 0 <= host < hosts:
            raise ValueError(f"shard must be (index, count) with 0 <= index < count, got {shard}.")
        if batch_size < 1 or batch_size % hosts:
            raise ValueError(f"the batch size {batch_size} must be a positive multiple of the {hosts} hosts.")
        self.source, self.batch_size, self.transform = source, batch_size, transform
        self.order = make_order(source, seed, shuffle, batch_size, similar_groups)
        local_size = batch_size // hosts
        # The positions within a global batch that this host reads.
        self._local = np.arange(host * local_size, (host + 1) * local_size)
        self._padded = not drop_remainder
        # The number of examples in the stream; None: endless.
        self._total = None if num_epochs is None else num_epochs * len(source)
        if self._total is None:
            self.num_steps = None
        elif drop_remainder:
            self.num_steps = self._total // batch_size
        else:
            self.num_steps = -(-self._total // batch_size)  # rounded up
        if self.num_steps == 0:
            raise ValueError(
                f"the batch size {batch_size} exceeds the {self._total} examples of {num_epochs} "
                "epoch(s): lower it, or set drop_remainder=False."
            )
        self.wait_seconds = 0.0
        steps = grain.MapDataset.range(_ENDLESS if self.num_steps is None else self.num_steps).map(self.fetch)
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=prefetch if workers else 0)
        self._iterator = iter(steps.to_iter_dataset(options))

    def copy(self, *, seed: int, shard: tuple[int, int]) -> Loader:
        """The same stream from its start, in the order of ``seed``, as the host ``shard`` reads it."""
        return Loader(**{**self._options, "seed": seed, "shard": shard})

    def example(self) -> RawBatch:
        """A batch of one example, the first of the stream: the same on every host, for the initialisation of
        parameters."""
        # Only `fetch` of the new loader is called: its iterator starts no threads, and there is nothing to close.
        return Loader(**{**self._options, "batch_size": 1, "shard": (0, 1)}).fetch(0)

    def _positions(self, steps: np.ndarray) -> np.ndarray:
        """The positions in the global stream that this host reads in each of ``steps`` ``[...]``: int64
        ``[..., B/H]``."""
        return np.asarray(steps, np.int64)[..., None] * self.batch_size + self._local

    def fetch(self, step: int) -> RawBatch:
        """This host's part of the batch of any step; the position of the iterator does not change."""
        positions = self._positions(np.asarray(step))
        valid = np.ones(len(positions), bool) if self._total is None else positions < self._total
        # Pad beyond the end of the stream with the first example of the global batch, which always lies before it.
        positions = np.where(valid, positions, int(step) * self.batch_size)
        batch = dict(self.source.batch(self.order(positions)))
        # [1 step, B/H]. Unlike the data, the index of padding is not that of the first example.
        batch["index"] = self.stream_index(step, k=1)[0]
        if self._padded:
            present = batch.get("present", {})
            batch["valid"] = valid
            batch["present"] = {m: valid & present.get(m, True) for m in self.source.modalities}
        return batch if self.transform is None else self.transform(batch)

    def index_batches(self, step: int, k: int) -> np.ndarray:
        """Int32 ``[k, B/H]``: the source indices of the examples that this host reads in steps ``step .. step+k-1``.

        For data on the device, where the compiled program gathers the examples by index.

        Raises:
          IndexError: the stream ends before step ``step+k-1``.
        """
        if self.num_steps is not None and step + k > self.num_steps:
            raise IndexError(f"steps {step}..{step + k - 1} go beyond the stream's {self.num_steps} steps.")
        positions = self._positions(np.arange(step, step + k))
        if self._total is not None:  # pad as `fetch` does, with the first example of each global batch
            # This host's first position of a step is `_local[0]` after that of the global batch.
            first = positions[:, :1] - self._local[0]
            positions = np.where(positions < self._total, positions, first)
        return self.order(positions).astype(np.int32)

    def stream_index(self, step: int, k: int) -> np.ndarray:
        """Int32 ``[k, B/H]``: the field ``index`` of this host's examples in steps ``step .. step+k-1``."""
        return (self._positions(np.arange(step, step + k)) % 2**31).astype(np.int32)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> RawBatch:
        start = time.perf_counter()
        try:
            return next(self._iterator)
        finally:
            self.wait_seconds += time.perf_counter() - start

    @property
    def step(self) -> int:
        """Batches delivered so far: the step of the next one."""
        return int(self._iterator.get_state()["next_index"])

    def position(self) -> dict[str, Any]:
        """The step of the next batch and the settings that determine the stream, to be saved in a checkpoint as
        JSON."""
        order = self.order
        return {
            "step": self.step,
            "examples": order.length,
            "batch_size": self.batch_size,
            "seed": order.seed,
            "shuffle": order.shuffle,
            **order.settings,
        }

    def restore(self, position: dict[str, Any]) -> None:
        """Continue from a saved `position`, with the batches that followed it then; the number of hosts may differ.

        Raises:
          ValueError: the size of the data set, the batch size, the seed, shuffling, the parts of a mixture or the size
            of groups of similar examples differ from the saved ones.
        """
        current = self.position()
        # Also of what only the saved stream has, such as the parts of a mixture.
        names = [name for name in dict.fromkeys([*current, *position]) if name != "step"]
        changed = [name for name in names if position.get(name) != current.get(name)]
        if changed:
            changes = "; ".join(
                f"{name} was {position.get(name)}, is {current.get(name)}" for name in changed
            )
            flag = " (--negatives.group-size; 1: no groups)" if "group" in changed else ""
            raise ValueError(
                f"cannot resume the data at the saved position: {changes}. Use the values of the saved run{flag}."
            )
        self.seek(position["step"])

    def seek(self, step: int) -> None:
        """Make ``step`` the next batch."""
        self._iterator.set_state({"next_index": int(step)})

    def close(self) -> None:
        """Stop the threads."""
        self._iterator.close()


def iterate_epoch(
    source: Source,
    batch_size: int,
    transform: Transform | None = None,
    *,
    shard: tuple[int, int] = (0, 1),
    workers: int = 2,
    prefetch: int = 2,
) -> Iterator[RawBatch]:
    """The batches of one pass in the source's order, for evaluation; the last one is padded (see ``drop_remainder`` of
    `Loader`). The other arguments are those of `Loader`."""
    loader = Loader(
        source, batch_size=batch_size, seed=0, shuffle=False, num_epochs=1, drop_remainder=False,
        transform=transform, shard=shard, workers=workers, prefetch=prefetch,
    )  # fmt: skip
    try:
        yield from loader
    finally:
        loader.close()


def numeric_fields(batch: RawBatch) -> dict[str, Any]:
    """The batch without the fields that a device cannot hold, such as the strings of ``caption``."""
    numeric = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            numeric[name] = numeric_fields(value)
        elif np.asarray(value).dtype.kind in "biuf":
            numeric[name] = value
    return numeric
