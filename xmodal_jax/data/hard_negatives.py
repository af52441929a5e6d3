"""Hard negatives of a contrastive loss: similar examples in one batch, and changed captions.

A hard negative is one that is similar to the positive. There are two sources of them. Examples with similar captions
are put into the same batch, where each is a negative of the others (`order.GroupedOrder`). And each caption of the
embedded data set can get *changed captions*, which differ from it in one fact (`shapes.caption_changes`); one of them
is a further negative of its own example (`losses.changed_text_loss`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.order import SimilarGroups, word_count_vectors
from xmodal_jax.data.shapes.caption_changes import AddChangedCaptions
from xmodal_jax.data.shapes.grammar import Meaning
from xmodal_jax.data.source import RawBatch, Source, split_indices
from xmodal_jax.data.text import caption_fields

MIN_DISTINCT_FRACTION = 0.5
"""Examples are grouped by their captions only if at least this fraction of the captions is distinct."""


@dataclasses.dataclass(frozen=True)
class HardNegatives:
    """Options of the hard negatives of a contrastive loss.

    The examples of a random batch differ so much that a few facts tell them apart, and a model never learns to read
    the others: in scenes of Spoken Shapes colours and places suffice, and shapes are read poorly.

    ::

        transform, similar_groups = HardNegatives(group_size=8).prepare(splits.train, transform, BadExamples())
        loader = Loader(splits.train, batch_size=128, seed=0, transform=transform, similar_groups=similar_groups)

    References:
      Yuksekgonul et al. 2023 (NegCLIP), When and why vision-language models behave like bags-of-words, and what to do
      about it?, arXiv:2210.01936.
    """

    group_size: int = 16
    """Number of examples with similar captions that are put into the same batch. 1: batches are random. They also are
    for mixtures, for data without captions, and where less than half of the captions are distinct."""
    changed_captions: int = 0
    """Number of captions with one fact changed that each caption of the embedded data set gets. Each step draws one of
    them as a further negative, see --model.changed-text-weight. 0: there are none."""

    def __post_init__(self):
        check_at_least(self, 1, "group_size")
        check_at_least(self, 0, "changed_captions")

    def prepare(
        self, source: Source, transform: Callable[[RawBatch], RawBatch], bad_examples: BadExamples
    ) -> tuple[Callable[[RawBatch], RawBatch], SimilarGroups | None]:
        """``(transform, similar_groups)``, the arguments of a `pipeline.Loader` of the training split ``source``.

        The given ``transform`` of raw batches is preceded by `AddChangedCaptions` where captions can be changed.
        ``similar_groups`` is None where batches are random. ``bad_examples`` notes why captions are not grouped, and
        that they are not changed although that was chosen.
        """
        with_changed = with_changed_captions(source, transform, self.changed_captions)
        if with_changed is transform and self.changed_captions:
            bad_examples.remark(
                "No caption is changed (--negatives.changed-captions): that needs captions of Spoken Shapes."
            )
        return with_changed, find_similar_groups(source, self.group_size, bad_examples)


def find_similar_groups(
    source: Source, size: int, bad_examples: BadExamples | None = None
) -> SimilarGroups | None:
    """Groups of ``size`` examples with similar captions, for a `pipeline.Loader`. An example with several captions is
    compared by all of them together.

    ``bad_examples`` notes why captions that there are cannot be grouped; None: nothing is noted.

    Returns:
      None, for random batches, if ``size`` is 1; if the data set has no captions, or few distinct ones
      (`MIN_DISTINCT_FRACTION`), as where captions name a class; or if it is a mixture, whose parts take turns.
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
    for indices in split_indices(np.arange(len(source))):
        batch = source.caption_batch(indices)
        fields = caption_fields(batch)
        if not fields:
            say_random("the texts are token ids")
            return None
        rows = zip(*(np.reshape(batch[field], (len(indices), -1)).tolist() for field in fields), strict=True)
        captions += [" ".join(str(caption) for texts in row for caption in texts) for row in rows]
    written = [caption for caption in captions if caption.strip()]  # the others are missing
    distinct = len(set(written))
    if not written or distinct < MIN_DISTINCT_FRACTION * len(written):
        say_random(f"{distinct:,} of the {len(written):,} captions are distinct, less than half")
        return None
    return SimilarGroups(word_count_vectors(captions), size)


def with_changed_captions(
    source: Source, transform: Callable[[RawBatch], RawBatch], count: int
) -> Callable[[RawBatch], RawBatch]:
    """A transform that adds ``count`` changed captions (`AddChangedCaptions`) and then applies ``transform``; the
    ``transform`` alone if ``count`` is 0 or the ``source`` has no captions of scenes of Spoken Shapes."""
    if not count or "text" not in source.modalities:
        return transform
    meanings = source.meanings(np.arange(1))
    if not meanings or not isinstance(meanings[0], Meaning):
        return transform
    add = AddChangedCaptions(count, motion="video" in source.modalities)
    return lambda batch: transform(add(batch))
