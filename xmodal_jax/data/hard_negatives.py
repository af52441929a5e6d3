"""Hard negatives of a contrastive loss: similar examples in one batch, and captions with one fact changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.order import SimilarGroups, text_vectors
from xmodal_jax.data.shapes.caption_changes import AddChangedCaptions
from xmodal_jax.data.shapes.grammar import Meaning
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.text import caption_fields

_CHUNK = 4096
"""Examples whose captions are read at a time."""
DISTINCT = 0.5
"""The smallest fraction of distinct captions with which similar examples are grouped."""


@dataclasses.dataclass(frozen=True)
class HardNegatives:
    """Options of the hard negatives of a contrastive loss.

    A random batch is told apart at a glance, and what its captions say beyond that is never learned: of the scenes of
    Spoken Shapes, colours and places suffice, and shapes remain unread.
    """

    group_size: int = 16
    """Examples with similar captions that stand together in a batch; 1: batches are random, as are those of mixtures,
    of data without captions, and of data where less than half of the captions are distinct."""
    changed_captions: int = 0
    """Captions with one fact changed beside each caption of the embedded data set; one of them, drawn in each step, is
    a further negative (see --model.changed-text-weight). 0: none."""

    def __post_init__(self):
        check_at_least(self, 1, "group_size")
        check_at_least(self, 0, "changed_captions")

    def prepare(
        self, source: Source, transform: Callable[[RawBatch], RawBatch], bad_examples: BadExamples
    ) -> tuple[Callable[[RawBatch], RawBatch], SimilarGroups | None]:
        """``(transform, groups)`` for a `pipeline.Loader` of a training split: its fitted ``transform``, with changed
        captions where the data has them, and the groups of similar examples, None where it has none. ``bad_examples``
        says why captions are not grouped, or that they are not changed although another number was chosen."""
        with_changed = with_changed_captions(source, transform, self.changed_captions)
        if with_changed is transform and self.changed_captions:
            bad_examples.remark(
                "No caption is changed (--negatives.changed-captions): that needs captions of Spoken Shapes."
            )
        return with_changed, similar_groups(source, self.group_size, bad_examples)


def similar_groups(
    source: Source, size: int, bad_examples: BadExamples | None = None
) -> SimilarGroups | None:
    """Groups of ``size`` examples with similar captions, for a `pipeline.Loader`; all captions of an example count.

    None, and thus random batches: ``size`` is 1, the data set has no captions or few distinct ones (`DISTINCT`), such
    as those of classes, or it is a mixture, whose parts take turns in a batch. ``bad_examples`` says why captions that
    there are cannot be grouped; None: nobody is told.
    """
    bad_examples = BadExamples() if bad_examples is None else bad_examples
    say_random = lambda reason: bad_examples.remark(
        f"Batches are random, without groups of similar captions (--negatives.group-size): {reason}."
    )
    if size == 1 or "text" not in source.modalities:
        return None
    if source.parts() is not None and source.part_weights is not None:
        say_random("the parts of a mixture take turns")
        return None
    captions: list[str] = []
    for indices in np.array_split(np.arange(len(source)), -(-len(source) // _CHUNK)):
        batch = source.caption_batch(indices)
        fields = caption_fields(batch)
        if not fields:
            say_random("the texts are token ids")
            return None
        rows = zip(*(np.reshape(batch[field], (len(indices), -1)).tolist() for field in fields), strict=True)
        captions += [" ".join(str(caption) for texts in row for caption in texts) for row in rows]
    written = [caption for caption in captions if caption.strip()]  # the others are missing
    distinct = len(set(written))
    if not written or distinct < DISTINCT * len(written):
        say_random(f"{distinct:,} of the {len(written):,} captions are distinct, less than half")
        return None
    return SimilarGroups(text_vectors(captions), size)


def with_changed_captions(
    source: Source, prepare: Callable[[RawBatch], RawBatch], count: int
) -> Callable[[RawBatch], RawBatch]:
    """``prepare``, after `AddChangedCaptions` where the ``source`` is made of scenes of Spoken Shapes with captions and
    ``count`` is not 0."""
    if not count or "text" not in source.modalities:
        return prepare
    meanings = source.meanings(np.arange(1))
    if not meanings or not isinstance(meanings[0], Meaning):
        return prepare
    add = AddChangedCaptions(count, motion="video" in source.modalities)
    return lambda batch: prepare(add(batch))
