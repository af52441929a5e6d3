"""Predictions of a trained method over whole data sets, and the scores of a shared embedding space."""

from __future__ import annotations

import functools
import hashlib
import itertools
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from xmodal_jax.data.pipeline import iterate_epoch, numeric_fields
from xmodal_jax.data.source import RawBatch, Source, first_of_group
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import Subset, one_per_picture
from xmodal_jax.metrics.classification import (
    class_embeddings,
    confusion_matrix,
    linear_probe,
    predict_classes,
    zero_shot,
)
from xmodal_jax.metrics.retrieval import retrieval
from xmodal_jax.types import MODALITIES, Method, kind_of


def predict_all(
    predict: Callable[[Any, Any], Any],
    params: Any,
    source: Source,
    *,
    batch_size: int = 256,
    transform: Callable | None = None,
    few_shapes: bool = False,
    progress: str | None = None,
) -> Any:
    """``predict(params, batch)`` for every example of ``source`` in order, as NumPy arrays.

    The computation runs where ``params`` are: on one device, or with each batch split over all devices of their mesh.
    Of several processes each reads its own part, and all return the results of every example.

    Args:
      predict: should be the same function object in every call (not a new lambda), so that it is compiled once.
      params: first argument of ``predict``.
      source: the examples.
      batch_size: examples at a time; the last batch is padded to this size.
      transform: applied to every raw batch, such as tokenization; None: nothing is.
      few_shapes: whether fewer examples than ``batch_size`` are padded to a power of two, so that calls with different
        numbers of examples share compiled programs.
      progress: the name of what is computed, for a progress bar if it takes more than two seconds; None: there is none.
    """
    size = len(source)
    if few_shapes:
        batch_size = min(batch_size, 1 << (size - 1).bit_length())
    else:
        batch_size = min(batch_size, size)
    batches = predict_batches(predict, params, source, batch_size=batch_size, transform=transform)
    results = list(batches if progress is None else _show_progress(batches, size, progress))
    concatenate = lambda *outputs: np.concatenate([np.asarray(x) for x in outputs])
    return jax.tree.map(lambda *outputs: concatenate(*outputs)[:size], *results)  # without the padding


def _show_progress(batches: Iterator[Any], size: int, name: str) -> Iterator[Any]:
    """The batches of results, with a progress bar of ``size`` examples on stderr, shown by one of all processes.

    One batch at a time is computed while the next one is read, so that the bar shows what is done.
    """
    bar = tqdm(
        total=size,
        desc=name,
        unit="example",
        delay=2.0,  # short computations show none
        mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log file needs no line per batch
        leave=None,
        disable=jax.process_index() != 0,
    )
    previous = None
    with bar:
        for batch in batches:
            yield batch
            if previous is not None:
                bar.update(len(jax.tree.leaves(jax.block_until_ready(previous))[0]))
            previous = batch
        jax.block_until_ready(previous)
        bar.update(size - bar.n)


def predict_batches(
    predict: Callable[[Any, Any], Any],
    params: Any,
    source: Source,
    *,
    batch_size: int,
    transform: Callable | None = None,
) -> Iterator[Any]:
    """``predict(params, batch)`` of one batch of ``source`` after the other, as JAX arrays, which may still be computed
    while the next batches are read. The last batch is padded. The arguments are those of `predict_all`, except that
    ``batch_size`` may become larger: it is a multiple of the number of devices."""
    mesh = _mesh_of(params)
    run, devices = _compiled(predict, mesh), 1 if mesh is None else mesh.size
    batch_size = -(-batch_size // devices) * devices  # the next multiple of the number of devices
    shard = (0, 1)
    if mesh is not None:
        # This process among those of the mesh, which may be this one alone.
        processes = sorted({device.process_index for device in mesh.devices.flat})
        shard = (processes.index(jax.process_index()), len(processes))
    for batch in iterate_epoch(source, batch_size, transform=transform, shard=shard):
        batch = numeric_fields(batch)  # without strings, which devices cannot hold
        if mesh is None and jax.default_backend() == "cpu":
            # A program whose inputs are still being copied runs in another thread, where malloc gets the memory of
            # every call from the system anew (see `runtime.configure`), which costs a fifth of the time.
            batch = jax.block_until_ready(jax.device_put(batch))
        if mesh is not None:
            # The first axis of every array is split over all devices; each process puts its own part on its devices.
            split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            put = functools.partial(jax.make_array_from_process_local_data, split)
            batch = jax.tree.map(lambda x: put(np.asarray(x)), batch)  # noqa: B023
        yield run(params, batch)


def _mesh_of(params: Any) -> Mesh | None:
    """The mesh of the parameters' devices; None for one device."""
    leaf = next(iter(jax.tree.leaves(params)), None)
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None


@functools.lru_cache(maxsize=32)
def _compiled(predict: Callable, mesh: Mesh | None) -> Callable:
    """``predict``, compiled once for each mesh. Its results are on every device, so that each process can read all."""
    replicated = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(predict, out_shardings=replicated)


def ordered(modalities: Sequence[str]) -> list[str]:
    """The modalities in the order of tables and figures: image, text, audio, video, then all others."""
    first = [m for m in ("image", "text", "audio", "video") if m in modalities]
    return first + [m for m in modalities if m not in first]


def directions(modalities: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All pairs (source, target) of different modalities, in both directions; pairs with the image come first.

    Example::

        list(directions(("text", "image")))  # [("image", "text"), ("text", "image")]
    """
    for a, b in itertools.combinations(ordered(modalities), 2):
        yield a, b
        yield b, a


def retrieval_scores(
    embeddings: dict[str, np.ndarray],
    present: dict[str, np.ndarray] | None = None,
    *,
    ids: np.ndarray | None = None,
    items: dict[str, np.ndarray] | None = None,
    prefix: str = "",
) -> dict[str, float]:
    """Retrieval scores between every pair of modalities, named ``<prefix>image_to_text/recall@1``.

    Args:
      embeddings: unit vectors ``[N, dim]`` of each modality.
      present: bool ``[N]`` of each modality. An example that lacks either modality of a pair is left out of that pair;
        a pair that no example has gets no scores.
      ids: ``int [N]``; examples with equal ids are correct results of each other's queries, such as those with equal
        captions. None: each example is the only correct result of its query.
      items: of each modality the examples that count, in increasing order, such as one for each distinct image; None:
        all examples. With five captions to each image, and the image's number as their ``ids``, the scores are those of
        the COCO and Flickr30k protocol: any of the five is correct for an image, and a caption searches the distinct
        images.
      prefix: before every name.

    Returns:
      The scores of `metrics.retrieval.retrieval`.
    """
    scores = {}
    size = len(next(iter(embeddings.values())))
    ids = np.arange(size) if ids is None else ids
    for query, target in directions(tuple(embeddings)):
        queries, candidates = items_of_pair(query, target, ids, present=present, items=items)
        if not len(queries):
            continue
        pair_scores = retrieval(
            embeddings[query][queries], embeddings[target][candidates],
            query_ids=ids[queries], gallery_ids=ids[candidates],
        )  # fmt: skip
        scores.update({f"{prefix}{query}_to_{target}/{k}": float(v) for k, v in pair_scores.items()})
    return scores


def items_of_pair(
    query: str,
    target: str,
    ids: np.ndarray,
    *,
    present: Mapping[str, np.ndarray] | None = None,
    items: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """``(queries, candidates)``: the examples whose modality ``query`` searches, and those whose modality ``target`` is
    searched, each int ``[n]``; see `retrieval_scores` for the other arguments.

    Without ``items`` these are the examples that have both modalities. With them, an item is left out if it is missing,
    or if no item of the other modality has its id.
    """
    # A modality that ``present`` does not name is present in all examples.
    every, all_present = np.arange(len(ids)), np.ones(len(ids), bool)
    has_query, has_target = ((present or {}).get(m, all_present) for m in (query, target))
    if items is None:
        both = every[has_query & has_target]
        return both, both
    # The items that are present. Then those are left out that have no counterpart: an id that only they have.
    queries = items[query][has_query[items[query]]]
    candidates = items[target][has_target[items[target]]]
    return (
        queries[np.isin(ids[queries], ids[candidates])],
        candidates[np.isin(ids[candidates], ids[queries])],
    )


def chance_of(gallery: Gallery, query: str, target: str) -> float | None:
    """The recall@1 of a random result of retrieval from one modality to another, with one correct id for each query.
    None: no example of the gallery has both."""
    _, candidates = items_of_pair(query, target, gallery.ids, present=gallery.present, items=gallery.items)
    return 1 / len(set(gallery.ids[candidates].tolist())) if len(candidates) else None


def first_occurrences(keys: Sequence[Any], limit: int) -> np.ndarray:
    """The indices of the first ``limit`` different keys, each where it occurs first."""
    used_keys, indices = set(), []
    for index, key in enumerate(keys):
        if key not in used_keys and len(indices) < limit:
            used_keys.add(key)
            indices.append(index)
    return np.asarray(indices)


def _distinct_items(examples: RawBatch, ids: np.ndarray, modality: str) -> np.ndarray:
    """The first example of each distinct content of a modality (an image, a recording) within the examples with equal
    ids, int ``[n]``. Captions all count, also equal ones.

    ``examples``: N raw examples as one batch; ``ids [N]``. Contents are compared by the SHA-256 of their bytes.
    """
    if kind_of(modality) == "text":
        return np.arange(len(ids))
    digests = [hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest() for value in examples[modality]]
    return first_occurrences(list(zip(ids.tolist(), digests, strict=True)), len(ids))


class Gallery(Source):
    """The test examples that retrieval searches, read once; a `Source` itself.

    These are the first ``limit`` examples with different captions (by `Source.meanings` where a data set has them). A
    data set with few different captions, such as class names, gives its first ``limit`` examples, of which those with
    equal captions are correct results of each other's queries.

    Where several examples show the same picture (see `Source.groups`), these are all examples of the first ``limit``
    pictures. The examples of a picture are correct results of each other's queries, and each distinct image of a
    picture counts once, as in the COCO and Flickr30k protocol. (With few different captions, it is still the captions
    that decide, and of the examples of a picture with the same caption the first one counts.)
    """

    indices: np.ndarray
    """The examples of the source that the gallery has, int ``[N]``."""
    examples: RawBatch
    """These examples as one batch."""
    ids: np.ndarray
    """``int [N]``, equal for examples with equal captions, or of the same picture."""
    items: dict[str, np.ndarray] | None = None
    """Of each modality the examples that count (see `retrieval_scores`); None: all."""
    representatives: np.ndarray
    """One example of each picture, int ``[n]``."""

    def __init__(self, source: Source, limit: int | None):
        """Reads at most ``limit`` pictures of ``source``, with all their captions. None: all examples, those with equal
        captions too, unless the pictures have several captions."""
        # Of each example: a key that equal captions share, and the first example that shows the same picture.
        keys, pictures = self._caption_keys(source), first_of_group(source).tolist()
        has_groups = len(set(pictures)) < len(pictures)
        keeps_all, limit = limit is None, len(pictures) if limit is None else limit
        indices = first_occurrences(keys, limit)  # the first ``limit`` examples with different captions
        few_captions = len(indices) < min(limit, len(set(pictures))) // 2
        if keeps_all and not has_groups:
            indices = np.arange(len(pictures))
        elif few_captions:  # take examples with equal captions as well, but of different pictures
            indices = first_occurrences(list(zip(pictures, keys, strict=True)), limit)
        elif has_groups:
            # All examples of the first ``limit`` pictures; the picture, not the caption, decides what is correct.
            chosen = list(dict.fromkeys(pictures))[:limit]
            indices = np.flatnonzero(np.isin(pictures, chosen))
            keys = pictures
        self.indices, self.examples = np.asarray(indices), source.batch(indices)
        self._meanings = source.meanings(self.indices)
        # Keys (captions, meanings or pictures) numbered in the order of their first occurrence.
        id_of_key = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.ids = np.array([id_of_key[keys[index]] for index in indices])
        self.modalities, self.class_names = source.modalities, source.class_names
        self.representatives = np.arange(len(indices))
        if has_groups and not few_captions:
            self.items = {m: _distinct_items(self.examples, self.ids, m) for m in self.modalities}
            # The first example of each id.
            self.representatives = np.sort(np.unique(self.ids, return_index=True)[1])

    @staticmethod
    def _caption_keys(source: Source) -> list[Any]:
        """A key of each example, equal for equal captions: the caption's meaning where the data set has it, else the
        caption; the example's index where there is none."""
        meanings, indices = source.meanings(), np.arange(len(source))
        if meanings is not None:
            return meanings
        if "text" not in source.modalities:
            return indices.tolist()
        return [str(c) or index for index, c in enumerate(source.caption_batch(indices)["caption"])]

    @property
    def distinct(self) -> bool:
        """Whether no two pictures have the same caption, as far as the gallery tells them apart by their captions."""
        return self.items is not None or len(set(self.ids.tolist())) == len(self.ids)

    def scores(self, embeddings: dict[str, np.ndarray], prefix: str = "") -> dict[str, float]:
        """The `retrieval_scores` of the gallery's ``embeddings``; ``prefix`` is put before their names."""
        return retrieval_scores(embeddings, self.present, ids=self.ids, items=self.items, prefix=prefix)

    @property
    def present(self) -> dict[str, np.ndarray] | None:
        """Which examples have which modality, bool ``[N]`` each; None: all have all."""
        return self.examples.get("present")

    def factors(self, indices: np.ndarray | None = None) -> dict[str, np.ndarray] | None:
        factors = self.examples.get("factors")
        return factors and {k: x[self._resolve_indices(indices)] for k, x in factors.items()}

    def meanings(self, indices: np.ndarray | None = None) -> list[Hashable] | None:
        meanings = self._meanings
        return meanings and [meanings[index] for index in self._resolve_indices(indices).tolist()]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: np.ndarray) -> dict[str, Any]:
        """The examples ``indices``."""
        return jax.tree.map(lambda x: x[indices], self.examples)


class Embedder:
    """Unit embeddings of whole data sets by the ``predict`` of a contrastive method, which is compiled once.

    Example::

        embed = Embedder(method, tokenize, batch_size=250)
        embed(params, test)["image"]  # [N, dim]
    """

    def __init__(self, method: Method, tokenize: Callable | None, *, batch_size: int):
        """``tokenize``: adds the tokens of the captions to a raw batch; None: there are no captions."""
        self._predict = method.predict
        self._tokenize, self._batch_size = tokenize, batch_size

    def __call__(self, params: Any, source: Source) -> dict[str, np.ndarray]:
        """The embeddings ``[N, dim]`` of each modality in ``source``, with the method's parameters ``params``."""

        def inputs(batch):
            """The fields of the modalities and their masks from a raw batch, with captions as tokens."""
            batch = batch if self._tokenize is None else self._tokenize(batch)
            modalities = (*MODALITIES, *source.modalities)
            return {k: v for k, v in batch.items() if k.removesuffix("_mask") in modalities}

        return predict_all(self._predict, params, source, batch_size=self._batch_size, transform=inputs)

    def embed_texts(self, params: Any, captions: Sequence[str]) -> np.ndarray:
        """The embeddings ``[N, dim]`` of given captions."""
        return self(params, ArraySource({"caption": np.asarray(captions, object)}))["text"]


def class_prompts(train: Source, templates: Sequence[str], *, limit: int = 3000) -> list[list[str]] | None:
    """The prompts of each class (a list for each), for zero-shot classification; None where the data set has no labels.

    ``train``: the training split. The ``templates`` (texts with ``{}``) are filled with the class names. Without
    templates these are the prompts that the data set declares, or else up to 16 captions of each class among ``limit``
    training examples.

    Raises:
      ValueError: there are templates, and the data set has no class names, or one has no place for them.
    """
    if templates:
        if train.class_names is None:
            raise ValueError(
                "--prompts need class names, and the data set has none: leave them out to use its captions"
            )
        return [fill_prompts(templates, name) for name in train.class_names]
    if train.class_prompts is not None:
        return train.class_prompts
    batch = train.batch(evenly_spread(len(train), limit))
    if "label" not in batch or "caption" not in batch or batch["label"].max() < 0:
        return None
    # By class its different captions, in order: a dict serves as an ordered set.
    captions: list[dict[str, None]] = [{} for _ in range(int(batch["label"].max()) + 1)]
    for label, caption in zip(batch["label"].tolist(), batch["caption"], strict=True):
        if label >= 0 and caption:
            captions[label][str(caption)] = None
    names = train.class_names or [str(k) for k in range(len(captions))]
    return [
        list(class_captions)[:16] or [f"a photo of a {name}"]
        for class_captions, name in zip(captions, names, strict=False)
    ]


def mean_recall(scores: Mapping[str, float]) -> float:
    """The mean recall@1 over all directions of retrieval, of the scores of a `Gallery`."""
    return float(np.mean([value for name, value in scores.items() if name.endswith("recall@1")]))


def check_prompts(templates: Sequence[str]) -> None:
    """Raises ValueError for a prompt without ``{}``, which would be the same for all classes."""
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"a prompt has {{}} where the name of the class goes, got {wrong[0]!r}")


def fill_prompts(templates: Sequence[str], name: str) -> list[str]:
    """The prompts of the class ``name``, which stands in place of each ``{}``; other braces are text.

    Raises:
      ValueError: a prompt has no ``{}``.

    Example::

        fill_prompts(["a photo of a {}", "a {}"], "dog")  # ["a photo of a dog", "a dog"]
    """
    check_prompts(templates)
    return [template.replace("{}", name) for template in templates]


def evenly_spread(size: int, count: int) -> np.ndarray:
    """At most ``count`` indices of ``size`` examples, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def take_evenly(source: Source, count: int) -> Subset:
    """At most ``count`` examples of a source, evenly spread."""
    return Subset(source, evenly_spread(len(source), count))


def classification_scores(
    embed: Embedder,
    params: Any,
    train: Source,
    test: Source,
    *,
    templates: Sequence[str] = (),
    limit: int = 1500,
) -> tuple[dict[str, float], np.ndarray | None]:
    """Accuracy of zero-shot classification and of a linear probe, for every modality except text.

    Args:
      embed: computes the embeddings.
      params: of the method.
      train: the training split; the probe is fitted on at most ``limit`` of its examples.
      test: the test split; its labelled examples are classified, one of each picture. An example that lacks a modality
        does not count for it, here and in ``train``.
      templates: prompts with ``{}`` in place of the class name; see `class_prompts`.
      limit: see ``train``.

    Returns:
      The scores ``test/<modality>_zero_shot_accuracy`` and ``test/<modality>_linear_probe_accuracy``, and the confusion
      matrix of the first modality's zero-shot classification. ``({}, None)`` where the data set has no classes.
    """
    prompts = class_prompts(train, templates) if "text" in train.modalities else None
    if prompts is None:
        return {}, None
    classes = embed_prompts(functools.partial(embed.embed_texts, params), prompts)  # [classes, dim]
    train = one_per_picture(train)
    probe_split = labelled_examples(take_evenly(train, limit))
    test_split = labelled_examples(one_per_picture(test))
    if probe_split is None or test_split is None:
        return {}, None
    (probe_source, train_labels), (test_source, labels) = probe_split, test_split
    train_embeddings, embeddings = embed(params, probe_source), embed(params, test_source)
    in_train, in_test = probe_source.presence(), test_source.presence()  # the examples that have a modality
    scores, confusion = {}, None
    for name in (m for m in ordered(tuple(embeddings)) if m != "text"):
        trained, tested = in_train[name], in_test[name]
        if not tested.any():
            continue
        vectors, targets = embeddings[name][tested], labels[tested]
        accuracy = zero_shot(vectors, classes, targets, ks=(1,))["accuracy@1"]
        scores[f"test/{name}_zero_shot_accuracy"] = accuracy
        if trained.any():
            scores[f"test/{name}_linear_probe_accuracy"] = linear_probe(
                train_embeddings[name][trained], train_labels[trained], vectors, targets, inverse_l2=10.0
            )
        if confusion is None:
            confusion = confusion_matrix(targets, predict_classes(vectors, classes), len(prompts))
    return scores, confusion


def embed_prompts(embed_texts: Callable[[list[str]], np.ndarray], prompts: list[list[str]]) -> jax.Array:
    """The embeddings ``[classes, dim]`` of classes: the normalised mean of the embeddings of each class's ``prompts``.

    ``embed_texts``: gives the embeddings ``[N, dim]`` of texts.
    """
    counts = [len(class_prompts) for class_prompts in prompts]
    vectors = embed_texts([text for class_prompts in prompts for text in class_prompts])
    vectors_by_class = np.split(vectors, np.cumsum(counts)[:-1])  # a list of arrays [prompts, dim]
    # Classes may have different numbers of prompts: pad them to [classes, most, dim], with a mask [classes, most].
    most = max(counts)
    pad = lambda x: np.pad(x, ((0, most - len(x)), (0, 0)), constant_values=1.0)
    mask = np.array([[k < count for k in range(most)] for count in counts])
    return class_embeddings(np.stack([pad(x) for x in vectors_by_class]), mask)


def labelled_examples(source: Source) -> tuple[Source, np.ndarray] | None:
    """The examples that have a label, and their labels ``[N]``; None if no example has one."""
    labels = source.class_labels()
    if labels is None:
        return None
    indices = np.flatnonzero(labels >= 0)
    return (Subset(source, indices), labels[indices]) if indices.size else None
