"""From a source to a stream of batches: order, shards, prefetching (Grain) and an exactly resumable
position."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from xmodal_jax.data.source import RawBatch, Source

Transform = Callable[[RawBatch], RawBatch]
_ENDLESS = 2**31 - 1  # steps


class Order:
    """Which example stands at each place of the endless global stream: one epoch after the other.

    Each epoch is a permutation drawn from ``(seed, epoch)``: the order of the examples' raw Philox draws,
    which NumPy keeps stable between versions. It is cached, 8 bytes per example; drawing it takes about 0.1 s
    per million.
    """

    def __init__(self, length: int, seed: int, shuffle: bool):
        if length < 1:
            raise ValueError("the data set is empty.")
        if not 0 <= seed < 2**64:
            raise ValueError(f"the seed must be in 0..2**64-1, got {seed}.")
        self.length, self.seed, self.shuffle = length, seed, shuffle
        # The stream straddles two epochs at a time; a third covers prefetching.
        self._permutation = functools.lru_cache(maxsize=3)(self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        draws = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(self.length)
        return np.argsort(draws, kind="stable")

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Dataset indices int64 at the given places of the stream (any shape)."""
        epochs, within = np.divmod(np.asarray(places, np.int64), self.length)
        if not self.shuffle:
            return within
        out = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self._permutation(int(epoch))[within[here]]
        return out


class Loader(Iterator[RawBatch]):
    """An iterator over the batches of ``source``.

    The stream is the concatenation of the epochs, each in its own order, cut into global batches of
    ``batch_size``; a batch may hold the end of one epoch and the start of the next, and no example is dropped
    in between. With ``num_epochs`` the stream ends; its last, incomplete batch is dropped, or with
    ``drop_remainder=False`` padded to full size: padded rows repeat the batch's row 0 and are False in
    ``valid`` and in every ``present[m]`` (``valid`` bool ``[B]`` and ``present`` are then part of every
    batch, so that the structure never changes).

    ``shard=(h, H)``: host ``h`` of ``H`` reads rows ``[h B/H, (h+1) B/H)`` of each global batch, so that the
    global batch is the same for any ``H``. Each batch gets ``index`` int32: the example's place in the global
    stream modulo 2**31. ``transform`` (such as `TokenizeTransform`) is applied to each batch.

    ``workers`` threads prepare up to ``prefetch`` batches ahead (0: on demand, in the caller's thread).
    ``wait_seconds`` adds up the time spent in ``next``.
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
    ):
        self._options = dict(
            source=source, batch_size=batch_size, seed=seed, shuffle=shuffle, num_epochs=num_epochs,
            drop_remainder=drop_remainder, transform=transform, shard=shard, workers=workers, prefetch=prefetch,
        )  # fmt: skip
        host, hosts = shard
        if not 0 <= host < hosts:
            raise ValueError(f"shard must be (index, count) with 0 <= index < count, got {shard}.")
        if batch_size < 1 or batch_size % hosts:
            raise ValueError(f"the batch size {batch_size} must be a positive multiple of the {hosts} hosts.")
        self.source, self.batch_size, self.transform = source, batch_size, transform
        self.order = Order(len(source), seed, shuffle)
        rows = batch_size // hosts
        self._rows = np.arange(host * rows, (host + 1) * rows)
        self._padded = not drop_remainder
        self._total = None if num_epochs is None else num_epochs * len(source)
        if self._total is None:
            self.num_steps = None
        elif drop_remainder:
            self.num_steps = self._total // batch_size
        else:
            self.num_steps = -(-self._total // batch_size)
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
        """The same stream from its start, in another seed's order or as another host reads it."""
        return Loader(**{**self._options, "seed": seed, "shard": shard})

    def example(self) -> RawBatch:
        """A batch of one: the stream's first example, the same on every host. For shapes and initialisation."""
        return Loader(**{**self._options, "batch_size": 1, "shard": (0, 1)}).fetch(0)

    def _places(self, steps: np.ndarray) -> np.ndarray:
        return np.asarray(steps, np.int64)[..., None] * self.batch_size + self._rows

    def fetch(self, step: int) -> RawBatch:
        """The batch of a step, by random access."""
        places = self._places(np.asarray(step))
        real = np.ones(len(places), bool) if self._total is None else places < self._total
        # Every host pads with the global batch's row 0: its own first row may be padding itself.
        read_places = np.where(real, places, int(step) * self.batch_size)
        batch = dict(self.source.batch(self.order(read_places)))
        batch["index"] = self.stream_index(step, 1)[0]
        if self._padded:
            held = batch.get("present", {})
            batch["valid"] = real
            batch["present"] = {m: real & held.get(m, True) for m in self.source.modalities}
        return batch if self.transform is None else self.transform(batch)

    def index_batches(self, step: int, k: int) -> np.ndarray:
        """Int32 ``[k, B/H]``: the dataset indices of this host's rows in steps ``step .. step+k-1``.

        For data that lies on the device, where the program itself gathers the examples.
        """
        if self.num_steps is not None and step + k > self.num_steps:
            raise IndexError(f"steps {step}..{step + k - 1} go beyond the stream's {self.num_steps} steps.")
        places = self._places(np.arange(step, step + k))
        if self._total is not None:
            places = np.where(places < self._total, places, places[:, :1] - self._rows[0])
        return self.order(places).astype(np.int32)

    def stream_index(self, step: int, k: int) -> np.ndarray:
        """Int32 ``[k, B/H]``: the ``index`` of this host's rows in steps ``step .. step+k-1``."""
        return (self._places(np.arange(step, step + k)) % 2**31).astype(np.int32)

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
        """Where the stream stands and what it depends on, for a checkpoint (can be written as JSON)."""
        o = self.order
        return {
            "step": self.step,
            "examples": o.length,
            "batch_size": self.batch_size,
            "seed": o.seed,
            "shuffle": o.shuffle,
        }

    def restore(self, position: dict[str, Any]) -> None:
        """Continue from a `position`: the batches that follow are those that followed it, on any number of
        hosts.

        Raises ValueError if data set, batch size, seed or shuffling differ, since the stream would be another
        one.
        """
        now = self.position()
        changed = {k: (position.get(k), now[k]) for k in now if k != "step" and position.get(k) != now[k]}
        if changed:
            shown = "; ".join(f"{k} was {a}, is {b}" for k, (a, b) in changed.items())
            raise ValueError(
                f"cannot resume the data at the saved position: {shown}. Use the values of the saved run."
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
    """One pass in order, for evaluation; the last batch is padded (see `Loader`,
    ``drop_remainder=False``)."""
    loader = Loader(
        source, batch_size=batch_size, seed=0, shuffle=False, num_epochs=1, drop_remainder=False,
        transform=transform, shard=shard, workers=workers, prefetch=prefetch,
    )  # fmt: skip
    try:
        yield from loader
    finally:
        loader.close()


def numeric_fields(batch: RawBatch) -> dict[str, Any]:
    """The batch without what a device cannot hold (strings, such as ``caption``)."""
    numeric = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            numeric[name] = numeric_fields(value)
        elif np.asarray(value).dtype.kind in "biuf":
            numeric[name] = value
    return numeric
