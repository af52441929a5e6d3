"""The order of the examples in the endless stream that training reads: of one data set, or of a mixture of several."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.data.source import Source


class ExampleOrder:
    """Maps positions of the endless global stream of a training to the indices of examples, one epoch after the other.

    Each epoch is a permutation drawn from ``(seed, epoch)``: the examples are sorted by one random number each, the raw
    output of Philox, which NumPy keeps stable between versions. The permutation is cached, 8 bytes per example; drawing
    it takes about 0.1 s per million examples. Without ``shuffle`` every epoch is in order.

    The stream is cut into batches of ``batch_size``, and none holds an example twice, unless there are fewer examples
    than that. In a batch with the end of one epoch and the start of the next, the examples of the start that are in the
    end too change places with later ones of their epoch. Of these, a data set of less than two batches has too few: its
    epochs all have the order of the first, unless an epoch is one batch.

    Raises:
      ValueError: no examples, or a seed outside 0..2**64-1.
    """

    def __init__(self, length: int, seed: int, shuffle: bool, batch_size: int = 1):
        """``length``: number of examples. The class says what the other arguments do."""
        if length < 1:
            raise ValueError("the data set is empty.")
        if not 0 <= seed < 2**64:
            raise ValueError(f"the seed must be in 0..2**64-1, got {seed}.")
        self.length, self.seed, self.shuffle, self._batch_size = length, seed, shuffle, batch_size
        # Too few examples to exchange those that a batch would hold twice: all epochs then have the first one's order.
        self._repeats_first = batch_size < length < 2 * batch_size
        # A batch may lie in two epochs, and prefetching may reach into a third: three permutations are in use. Each is
        # computed from its epoch's draw and that of the epoch before: four draws.
        self._draw = functools.lru_cache(maxsize=4)(self._draw_uncached)
        self._permutation = functools.lru_cache(maxsize=3)(self._permute)

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the stream besides length, seed, shuffling and batch size, as JSON: nothing."""
        return {}

    def _draw_uncached(self, epoch: int) -> np.ndarray:
        """A random permutation of the examples for an epoch, before `_permute` removes repetitions: int64
        ``[length]``."""
        draws = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(self.length)
        return np.argsort(draws, kind="stable")

    def _permute(self, epoch: int) -> np.ndarray:
        """The order of the examples in an epoch, int64 ``[length]``."""
        if self._repeats_first:
            return self._draw(0)  # of epoch 0
        order = self._draw(epoch)
        before = (
            epoch * self.length % self._batch_size
        )  # examples of the last epoch in this one's first batch
        if not before or self.length < self._batch_size:
            return order
        start = self._batch_size - before  # this epoch's examples in that batch
        in_end = np.zeros(self.length, bool)
        in_end[self._draw(epoch - 1)[self.length - before :]] = True
        # Not with examples in a batch with the next epoch, which that epoch relies on.
        stop = self.length - (epoch + 1) * self.length % self._batch_size
        return _exchange(order, in_end, start, stop)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The examples at these positions of the stream: int64 indices of the shape of ``positions``."""
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.length)  # offset within its epoch
        if not self.shuffle:
            return offsets
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            indices[in_epoch] = self._permutation(int(epoch))[offsets[in_epoch]]
        return indices


def _exchange(order: np.ndarray, in_end: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The ``order`` ``[length]`` of an epoch in which none of its first ``start`` examples is among those at the end of
    the epoch before (``in_end``, bool ``[length]``): such examples change places with later ones, before ``stop``."""
    repeated = np.flatnonzero(in_end[order[:start]])
    later = start + np.flatnonzero(~in_end[order[start:stop]])[: len(repeated)]
    order = order.copy()
    order[repeated], order[later] = order[later], order[repeated]
    return order


LARGEST_COMPONENT = 2**15
"""The largest component of the vectors of `GroupedOrder` after rounding."""


@dataclasses.dataclass(frozen=True)
class SimilarGroups:
    """How `GroupedOrder` groups the examples of a data set: by the similarity of vectors. These groups are not those of
    `Source.groups`, whose examples show the same picture."""

    vectors: np.ndarray
    """One vector per example, float32 ``[N, D]``, by whose inner products similarity is measured, such as those of
    `word_count_vectors`."""
    size: int
    """Number of examples in a group."""

    def __post_init__(self):
        if self.size < 2:
            raise ValueError(f"a group has at least two examples, got a size of {self.size}")


class GroupedOrder(ExampleOrder):
    """An `ExampleOrder` in which groups of similar examples follow each other, so that a batch holds whole groups.

    In a contrastive loss they are hard negatives of each other. Each epoch has new groups, the leaves of a random
    projection tree: of a set of examples with the vectors v, two with the vectors a and b are drawn; the set is sorted
    by v · (a - b) and divided into halves, and these are divided in turn until they have ``similar_groups.size``
    examples. The groups of an epoch follow each other in random order. Vectors are rounded to whole numbers first,
    whose inner products are exact, so that the order is the same on every machine.

    ::

        order = GroupedOrder(SimilarGroups(word_count_vectors(captions), size=16), seed=0, batch_size=128)

    Args:
      similar_groups: vectors of the examples, and the size of a group.
      seed: random seed of the order.
      batch_size: examples in a global batch; a multiple of the groups' size keeps groups whole.

    References:
      Dasgupta and Freund 2008, Random projection trees and low dimensional manifolds (there the direction a - b is a
      random one).
    """

    def __init__(self, similar_groups: SimilarGroups, seed: int, batch_size: int = 1):
        super().__init__(len(similar_groups.vectors), seed, shuffle=True, batch_size=batch_size)
        self.similar_groups = similar_groups
        vectors = np.asarray(similar_groups.vectors, np.float64)
        largest = np.abs(vectors).max(initial=0.0)
        self._vectors = np.rint(vectors * (LARGEST_COMPONENT / (largest or 1.0))).astype(np.int64)

    @property
    def settings(self) -> dict[str, Any]:
        """What else determines the stream, as JSON: the size of the groups."""
        return {"group": self.similar_groups.size}

    def _draw_uncached(self, epoch: int) -> np.ndarray:
        """The examples of an epoch, group after group: int64 ``[length]``."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], np.uint64)))
        vectors, size = self._vectors, self.similar_groups.size
        groups, undivided = [], [np.arange(self.length)]
        while undivided:
            members = undivided.pop()
            if len(members) <= size:
                groups.append(rng.permutation(members))
                continue
            first, second = vectors[rng.choice(members, 2, replace=False)]
            # A random number below 1 for each example divides those that are equally similar to the two at random.
            scores = vectors[members] @ (first - second) + rng.random(len(members))
            members = members[np.argsort(scores, kind="stable")]
            half = size * max(1, round(len(members) / size / 2))  # whole groups
            undivided += [members[:half], members[half:]]
        # An incomplete group comes last, so that the others begin at multiples of their size.
        order = sorted(rng.permutation(len(groups)), key=lambda g: len(groups[g]) < size)
        return np.concatenate([groups[g] for g in order])


def word_count_vectors(captions: Sequence[str], dimensions: int = 64) -> np.ndarray:
    """Random projections of the captions' word counts: captions that share words have similar vectors.

    ``w R / (|w| sqrt(D))`` for the word counts w of a caption (in lower case) and a random matrix R of -1 and 1 with
    D = ``dimensions`` columns. Cosine similarities are those of the word counts up to an error of about ``1 / sqrt(D)``
    (Achlioptas 2003, Database-friendly random projections: Johnson-Lindenstrauss with binary coins). The sums are of
    whole numbers, and therefore the same on every machine.

    ::

        star, ring, cross = word_count_vectors(["a red star", "a red ring", "a blue cross"], dimensions=4096)
        star @ ring > star @ cross  # True: two words are shared, not one

    Returns:
      float32 ``[N, dimensions]``; 0 for captions without words.
    """
    from sklearn.feature_extraction.text import CountVectorizer  # here: it takes a second to load

    try:
        # Without inverse document frequencies, which weight the wording (rare synonyms) more than what is said.
        counts = CountVectorizer(token_pattern=r"\w+").fit_transform(captions)
    except ValueError:  # no caption has a word
        return np.zeros((len(captions), dimensions), np.float32)
    signs = 2 * np.random.Generator(np.random.Philox(0)).integers(0, 2, (counts.shape[1], dimensions)) - 1
    squared_norms = np.asarray(counts.multiply(counts).sum(axis=1))
    norms = np.sqrt(np.maximum(squared_norms, 1) * dimensions)
    return np.asarray(counts @ signs / norms, np.float32)


class _PartOrder(ExampleOrder):
    """The order of one part of a mixture: no example occurs twice within any ``reach`` positions that follow each
    other, unless the part has fewer examples. A part of less than three times as many has the same order in all
    epochs."""

    def __init__(self, length: int, seed: int, reach: int):
        super().__init__(length, seed, shuffle=True)
        self._reach = reach

    def _permute(self, epoch: int) -> np.ndarray:
        """The order of the examples in an epoch, int64 ``[length]``."""
        if self.length < 3 * self._reach:
            return self._draw(0)
        if epoch == 0:
            return self._draw(epoch)
        # The exchange leaves the end of an epoch as it was drawn.
        stop = self.length - self._reach
        in_end = np.zeros(self.length, bool)
        in_end[self._draw(epoch - 1)[stop:]] = True
        return _exchange(self._draw(epoch), in_end, self._reach, stop)


class MixtureOrder:
    """Maps positions of the endless global stream of a mixture to the indices of examples.

    The parts take turns, spread as evenly as their weights allow: any run of positions, such as a batch, holds of each
    part its share to within a few examples, and an epoch (as many positions as there are examples) exactly its share,
    rounded to a whole number of examples and at least one. Each part goes through its own epochs, each of them a
    permutation of all its examples, whatever its share is; where a part has enough examples, no batch holds one twice.

    ::

        order = MixtureOrder(np.array([0, 0, 0, 1, 1, 1]), (2.0, 1.0), seed=0)
        order(np.arange(6))  # four of the first part and two of the second

    Args:
      parts: the part that each example belongs to, int ``[N]``. A part without examples has no share.
      weights: of the parts, in any unit.
      seed: of the order of each part.
      batch_size: examples in a global batch.

    Raises:
      ValueError: no examples, or a seed outside 0..2**64-1.
    """

    shuffle = True

    def __init__(
        self, parts: np.ndarray, weights: Sequence[float | int] | np.ndarray, seed: int, batch_size: int = 1
    ):
        """See the class for the arguments."""
        if not len(parts):
            raise ValueError("the data set is empty.")
        self.length, self.seed = len(parts), seed
        members = [np.flatnonzero(parts == part) for part in range(len(weights))]
        self._counts = share_out(
            self.length, [w if len(m) else 0.0 for w, m in zip(weights, members, strict=True)]
        )
        """Positions of each part in an epoch of the mixture."""
        self._members = members
        self._epoch = int(self._counts.sum())
        # The part at each position of an epoch, and how many earlier positions of the epoch are of the same part.
        self._part_at = take_turns(self._counts)
        self._rank_at = np.zeros(self._epoch, np.int64)
        self._orders = []
        for part, (count, examples) in enumerate(zip(self._counts, members, strict=True)):
            self._rank_at[self._part_at == part] = np.arange(count)
            # Examples of this part in a batch, at most: how evenly `take_turns` spreads depends on the number of parts.
            reach = -(-(batch_size + len(members)) * int(count) // self._epoch) + 1
            self._orders.append(
                _PartOrder(len(examples), _seed_of_part(seed, part), reach) if count else None
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The number of examples of each part, and how many of each an epoch holds, as JSON."""
        return {"parts": [len(m) for m in self._members], "shares": self._counts.tolist()}

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The examples at these positions of the stream: int64 indices of the shape of ``positions``."""
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self._epoch)
        parts = self._part_at[offsets]
        within_part = (
            epochs * self._counts[parts] + self._rank_at[offsets]
        )  # the position in the part's own stream
        indices = np.empty_like(offsets)
        for part in np.unique(parts):
            chosen = parts == part
            indices[chosen] = self._members[part][self._orders[part](within_part[chosen])]
        return indices


def make_order(
    source: Source,
    seed: int,
    shuffle: bool,
    batch_size: int,
    similar_groups: SimilarGroups | None = None,
) -> ExampleOrder | MixtureOrder:
    """The order in which a loader reads a source: `GroupedOrder` with ``similar_groups``, else `MixtureOrder` for a
    mixture that is shuffled, else `ExampleOrder`.

    Raises:
      ValueError: ``similar_groups`` of a mixture, of examples that are not shuffled, or of another number of examples.
    """
    parts = source.parts() if shuffle else None
    is_mixture = parts is not None and source.part_weights is not None
    if similar_groups is not None:
        if is_mixture or not shuffle or len(similar_groups.vectors) != len(source):
            raise ValueError(
                f"similar_groups, with the vectors of {len(similar_groups.vectors)} examples, need a data set of as "
                f"many (here {len(source)}) that is shuffled and no mixture"
            )
        return GroupedOrder(similar_groups, seed, batch_size)
    if not is_mixture:
        return ExampleOrder(len(source), seed, shuffle, batch_size)
    return MixtureOrder(parts, source.part_weights, seed, batch_size)


def share_out(total: int, weights: Sequence[float | int] | np.ndarray) -> np.ndarray:
    """``total`` divided in proportion to ``weights``: int64 of the same length, each rounded so that the sum is
    ``total`` (largest remainders are rounded up). Where a weight is not 0 the share is at least 1, even if the sum then
    is more than ``total``.

    ::

        share_out(10, [2, 1])  # [7, 3]
    """
    exact = total * np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    # A share that is whole but for the rounding of floating point is whole.
    exact = np.where(np.abs(exact - np.round(exact)) < 1e-6, np.round(exact), exact)
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return np.where(np.asarray(weights) > 0, np.maximum(counts, 1), 0)


def take_turns(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """A sequence in which each number k occurs ``counts[k]`` times, spread evenly: int64 ``[sum(counts)]``.

    ::

        take_turns([4, 2])  # [0, 1, 0, 0, 1, 0]
    """
    # The j-th of n occurrences is due at the fraction (j + 1/2) / n of the sequence.
    due = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(due, kind="stable")]


def _seed_of_part(seed: int, part: int) -> int:
    """The seed of the order of a part of a mixture: parts of equal size have different orders."""
    return int(np.random.Philox(key=np.array([seed, 2**64 - 1 - part], np.uint64)).random_raw())
