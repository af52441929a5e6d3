"""What is in a data set: counts, sizes and lengths of each split, what two splits share, and conspicuous examples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from xmodal_jax.core.text_files import shorten
from xmodal_jax.data.source import RawBatch, Source, first_of_group
from xmodal_jax.data.table import evenly_spaced
from xmodal_jax.types import kind_of

_CHUNK = 200
"""Examples read at a time."""
QUIET = 33
"""Largest value of 16-bit samples, 60 dB below full scale, up to which a recording counts as silent."""


class Conspicuous(NamedTuple):
    """An example to look at."""

    index: int
    """Its number in the split, from 0."""
    modality: str
    reason: str
    """What is unusual, such as "all pixels are equal"."""


class SplitStatistics(NamedTuple):
    """What is in one split. Arrays have one value for each example that was read and has the modality."""

    examples: int
    pictures: int
    """Different pictures: several captions of one picture are several examples."""
    counts: dict[str, int]
    """How many examples have each modality."""
    classes: dict[str, int]
    """How many examples each class has, by its name; empty: there are no labels."""
    read: np.ndarray
    """The indices of the examples that were read, int64 ``[n]``; what follows tells about these alone."""
    words: dict[str, np.ndarray]
    """The number of words of each caption, by text modality."""
    seconds: dict[str, np.ndarray]
    """The length of each recording, after it was cut to ``max_seconds``, by audio modality."""
    sizes: dict[str, np.ndarray]
    """Width and height of each image in pixels, before it was resized, ``[n, 2]``, by image modality; empty: they are
    not known."""
    digests: dict[str, dict[bytes, int]]
    """A hash of each different content, by modality, with the number of examples that have it. A picture with several
    captions counts once."""
    conspicuous: list[Conspicuous]


def describe(
    source: Source, *, limit: int = 10_000, sample_rate: int = 16_000, progress: bool = True
) -> SplitStatistics:
    """Counts all examples of a split, and reads up to ``limit`` of them, evenly spaced.

    ::

        statistics = describe(open_source("folder:photos"))
        statistics.counts["image"], statistics.words["text"].max()

    Args:
      source: the split.
      limit: examples to read.
      sample_rate: of audio, Hz.
      progress: whether to show a progress bar.
    """
    read = evenly_spaced(len(source), limit)
    words: dict[str, list[int]] = {}
    seconds: dict[str, list[float]] = {}
    digests: dict[str, Counter[bytes]] = {m: Counter() for m in source.modalities}
    conspicuous: list[Conspicuous] = []
    pictures = first_of_group(source)
    counted: set[tuple[str, int, bytes]] = set()  # modality, picture, and digest of the content
    chunks = np.array_split(read, -(-len(read) // _CHUNK))
    for indices in tqdm(chunks, desc="reading examples", unit="chunk", disable=not progress):
        batch = source.batch(indices)
        for modality in source.modalities:
            present = batch.get("present", {}).get(modality, np.ones(len(indices), bool))
            for k in np.flatnonzero(present):
                content = content_of(batch, modality, int(k))
                digest = _digest(content)
                if kind_of(modality) == "text":
                    words.setdefault(modality, []).append(len(str(content).split()))
                elif kind_of(modality) == "audio":
                    seconds.setdefault(modality, []).append(len(content) / sample_rate)
                occurrence = (modality, int(pictures[indices[k]]), digest)
                if occurrence in counted and kind_of(modality) != "text":
                    continue  # the same file, with another caption
                counted.add(occurrence)
                digests[modality][digest] += 1
                if reason := _unusual(modality, content):
                    conspicuous.append(Conspicuous(int(indices[k]), modality, reason))
    return SplitStatistics(
        examples=len(source),
        pictures=len(np.unique(pictures)),
        counts={m: int(mask.sum()) for m, mask in source.presence().items()},
        classes=_count_classes(source),
        read=read,
        words={m: np.array(values) for m, values in words.items()},
        seconds={m: np.array(values) for m, values in seconds.items()},
        sizes={m: sizes[(sizes > 0).all(1)] for m, sizes in (source.image_sizes(read) or {}).items()},
        digests={m: dict(counter) for m, counter in digests.items()},
        conspicuous=conspicuous,
    )


def content_of(batch: RawBatch, modality: str, k: int) -> Any:
    """What example ``k`` of a batch has of a modality: a caption (str; token ids where there is no caption), a
    recording without padding, or pixels."""
    if kind_of(modality) == "text":
        caption = batch.get(modality.replace("text", "caption", 1))
        return batch[modality][k] if caption is None else str(caption[k])
    if kind_of(modality) == "audio" and f"{modality}_mask" in batch:
        return batch[modality][k][: int(batch[f"{modality}_mask"][k].sum())]
    return batch[modality][k]


def _digest(content: Any) -> bytes:
    data = content.encode() if isinstance(content, str) else np.ascontiguousarray(content).tobytes()
    return hashlib.blake2b(data, digest_size=8).digest()


def _unusual(modality: str, content: Any) -> str | None:
    """What is unusual about the content of one example; None: nothing."""
    kind = kind_of(modality)
    if kind in ("image", "video") and content.min() == content.max():
        return f"all pixels are {content.flat[0]}"
    if kind == "audio" and not len(content):
        return "the recording is empty"
    if kind == "audio" and np.abs(content.astype(np.float32)).max() <= (
        QUIET if content.dtype == np.int16 else QUIET / 32768
    ):
        return "the recording is silent"
    if kind == "text" and isinstance(content, str) and not any(c.isalnum() for c in content):
        return f"the caption {shorten(content)} has no letter and no digit"
    return None


def _count_classes(source: Source) -> dict[str, int]:
    """The number of examples of each class by name, most frequent first; "unknown" for those without a class."""
    labels = source.class_labels()
    if labels is None:
        return {}
    values, counts = np.unique(labels, return_counts=True)
    name = lambda value: str(value) if source.class_names is None else source.class_names[value]
    by_name = {
        "unknown" if value < 0 else name(value): int(n) for value, n in zip(values, counts, strict=True)
    }
    return dict(sorted(by_name.items(), key=lambda item: -item[1]))


def shared_contents(splits: Mapping[str, SplitStatistics]) -> dict[str, dict[str, int]]:
    """For each modality the number of different contents that occur in more than one example, equal to the last bit
    after decoding: within each split ("train"), and in two splits ("train and test"). Those that are 0 are left out.
    The picture that several captions describe is one.
    """
    shared: dict[str, dict[str, int]] = {}
    names = list(splits)
    for modality in dict.fromkeys(m for split in splits.values() for m in split.digests):
        of_split = {name: splits[name].digests.get(modality, {}) for name in names}
        repeated = {name: sum(n > 1 for n in digests.values()) for name, digests in of_split.items()}
        for k, first in enumerate(names):
            for second in names[k + 1 :]:
                repeated[f"{first} and {second}"] = len(of_split[first].keys() & of_split[second].keys())
        shared[modality] = {where: count for where, count in repeated.items() if count}
    return shared
