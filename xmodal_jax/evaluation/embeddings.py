"""Running a trained method over whole data sets, and what a shared embedding space is measured by."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xmodal_jax.data.pipeline import iterate_epoch, numeric_fields
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import Subset
from xmodal_jax.metrics.classification import (
    class_embeddings,
    confusion_matrix,
    linear_probe,
    predict_classes,
    zero_shot,
)
from xmodal_jax.metrics.retrieval import retrieval
from xmodal_jax.types import MODALITIES, Method


def predict_all(
    predict: Callable[[Any, Any], Any],
    params: Any,
    source: Source,
    *,
    batch_size: int = 256,
    transform: Callable | None = None,
) -> Any:
    """``predict(params, batch)`` over every example of ``source`` in order, as NumPy arrays.

    It runs where ``params`` lie: on one device, or with each batch split over all devices of their mesh. Of several
    processes each reads its own rows and all get every answer. The last batch is padded to the size of the others.
    ``predict`` must be the same function in every call (not a fresh lambda), so that evaluations share one program.
    """
    size, pieces = len(source), []
    mesh = _mesh_of(params)
    run, multiple = _compiled(predict, mesh), 1 if mesh is None else mesh.size
    batch_size = -(-min(batch_size, size) // multiple) * multiple
    shard = (0, 1) if mesh is None else (jax.process_index(), jax.process_count())
    for batch in iterate_epoch(source, batch_size, transform=transform, shard=shard):
        batch = numeric_fields(batch)
        if mesh is not None:
            rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            put = functools.partial(jax.make_array_from_process_local_data, rows)
            batch = jax.tree.map(lambda x: put(np.asarray(x)), batch)  # noqa: B023
        pieces.append(run(params, batch))
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(p) for p in x])[:size], *pieces)


def _mesh_of(params: Any) -> Mesh | None:
    """The mesh that the parameters lie on; None for one device."""
    leaf = next(iter(jax.tree.leaves(params)), None)
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None


@functools.lru_cache(maxsize=32)
def _compiled(predict: Callable, mesh: Mesh | None) -> Callable:
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(predict, out_shardings=whole)


def directions(modalities: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All ordered pairs of different modalities, image before the others so that it leads the tables."""
    order = [m for m in ("image", "text", "audio", "video") if m in modalities]
    for a, b in itertools.combinations(order, 2):
        yield a, b
        yield b, a


def retrieval_scores(
    embeddings: dict[str, np.ndarray],
    present: dict[str, np.ndarray] | None = None,
    *,
    ids: np.ndarray | None = None,
    prefix: str = "",
) -> dict[str, float]:
    """Recall@1/5/10 and ranks between every pair of modalities, named ``<prefix>image_to_text/recall@1``.

    ids: examples with the same id answer each other's queries (such as equal captions); by default each its own.
    Examples where either modality is missing (``present``) are left out of that pair.
    """
    scores = {}
    for query, target in directions(tuple(embeddings)):
        keep = np.ones(len(embeddings[query]), bool)
        for name in (query, target):
            if present and name in present:
                keep &= present[name]
        kept_ids = None if ids is None else ids[keep]
        found = retrieval(
            embeddings[query][keep], embeddings[target][keep], query_ids=kept_ids, gallery_ids=kept_ids
        )
        scores.update({f"{prefix}{query}_to_{target}/{k}": float(v) for k, v in found.items()})
    return scores


def distinct(keys: Sequence[Any], limit: int) -> np.ndarray:
    """Indices of the first ``limit`` examples whose key has not come before."""
    seen, rows = set(), []
    for row, key in enumerate(keys):
        if key not in seen and len(rows) < limit:
            seen.add(key)
            rows.append(row)
    return np.asarray(rows)


class Gallery(Source):
    """Test examples among which retrieval searches, read once.

    The first ``limit`` examples of different meaning (`Source.meanings` where a data set has them, else its captions).
    A data set with too few different captions for that, such as class names, gives its first ``limit`` examples, and
    equal captions answer each other's queries. It is a `Source` itself.
    """

    def __init__(self, source: Source, limit: int):
        keys = self._keys(source)
        rows = distinct(keys, limit)
        if len(rows) < min(limit, len(keys)) // 2:
            rows = np.arange(min(limit, len(keys)))
        self.batch_all = source.batch(rows)
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        self.ids = np.array([numbers[keys[row]] for row in rows])
        self.modalities, self.class_names = source.modalities, source.class_names

    @staticmethod
    def _keys(source: Source) -> list[Any]:
        meanings, every = source.meanings(), np.arange(len(source))
        if meanings is not None:
            return meanings
        if "text" not in source.modalities:
            return every.tolist()
        return [str(c) for c in source.batch(every)["caption"]]

    @property
    def distinct(self) -> bool:
        """Whether every example has its own caption."""
        return len(set(self.ids.tolist())) == len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: np.ndarray) -> dict[str, Any]:
        """Rows of what was read."""
        return jax.tree.map(lambda x: x[indices], self.batch_all)


class Embedder:
    """Normalised embeddings of whole data sets by a contrastive method's ``predict``, compiled once."""

    def __init__(self, method: Method, tokenize: Callable, *, batch_size: int):
        self._predict = method.predict
        self._tokenize, self._batch_size = tokenize, batch_size

    def __call__(self, params: Any, source: Source) -> dict[str, np.ndarray]:
        """``{modality: [N, dim]}``."""

        def inputs(batch):
            batch = self._tokenize(batch)
            return {k: v for k, v in batch.items() if k.removesuffix("_mask") in MODALITIES}

        return predict_all(self._predict, params, source, batch_size=self._batch_size, transform=inputs)

    def texts(self, params: Any, captions: Sequence[str]) -> np.ndarray:
        """``[N, dim]``."""
        return self(params, ArraySource({"caption": np.asarray(captions, object)}))["text"]


def class_prompts(train: Source, templates: Sequence[str], *, limit: int = 3000) -> list[list[str]] | None:
    """The prompts of each class; None where the data set has no labels.

    The ``templates`` filled with the class names; without templates the data set's own prompts, or those captions of
    the class that occur in ``limit`` training examples (at most 16 of them).
    """
    if templates:
        if train.class_names is None:
            raise ValueError(
                "--prompts need class names, and the data set has none: leave them out to use its captions"
            )
        return [[t.format(name) for t in templates] for name in train.class_names]
    if train.class_prompts is not None:
        return train.class_prompts
    rows = np.unique(np.linspace(0, len(train) - 1, min(limit, len(train))).astype(np.int64))
    batch = train.batch(rows)
    if "label" not in batch or "caption" not in batch or batch["label"].max() < 0:
        return None
    found: list[dict[str, None]] = [{} for _ in range(int(batch["label"].max()) + 1)]
    for label, caption in zip(batch["label"].tolist(), batch["caption"], strict=True):
        if label >= 0:
            found[label][str(caption)] = None
    names = train.class_names or [str(k) for k in range(len(found))]
    return [
        list(captions)[:16] or [f"a photo of a {name}"] for captions, name in zip(found, names, strict=False)
    ]


def classification_scores(
    embed: Embedder,
    params: Any,
    train: Source,
    test: Source,
    *,
    templates: Sequence[str] = (),
    limit: int = 1500,
) -> tuple[dict[str, float], np.ndarray | None]:
    """Zero-shot accuracy by the prompts' embeddings, and a linear probe on each modality but text.

    ``(scores, confusion)``; nothing where the data set has no classes. Examples without a label are left out. The probe
    is fitted on at most ``limit`` training examples.
    """
    prompts = class_prompts(train, templates) if "text" in train.modalities else None
    if prompts is None:
        return {}, None
    vectors = embed.texts(params, [p for group in prompts for p in group])
    cuts = np.cumsum([len(group) for group in prompts])[:-1]
    longest = max(len(group) for group in prompts)
    pad = lambda group: np.pad(group, ((0, longest - len(group)), (0, 0)), constant_values=1.0)
    mask = np.array([[k < len(group) for k in range(longest)] for group in prompts])
    classes = class_embeddings(np.stack([pad(group) for group in np.split(vectors, cuts)]), mask)
    rows = np.unique(np.linspace(0, len(train) - 1, min(limit, len(train))).astype(np.int64))
    fitted_on, tested_on = _labelled(Subset(train, rows)), _labelled(test)
    if fitted_on is None or tested_on is None:
        return {}, None
    seen, unseen = embed(params, fitted_on[0]), embed(params, tested_on[0])
    scores, confusion = {}, None
    for name in (m for m in ("image", "audio", "video") if m in unseen):
        accuracy = zero_shot(unseen[name], classes, tested_on[1], ks=(1,))["accuracy@1"]
        scores[f"test/{name}_zero_shot_accuracy"] = accuracy
        scores[f"test/{name}_linear_probe_accuracy"] = linear_probe(
            seen[name], fitted_on[1], unseen[name], tested_on[1], inverse_l2=10.0
        )
        if confusion is None:
            guesses = predict_classes(unseen[name], classes)
            confusion = confusion_matrix(tested_on[1], guesses, len(prompts))
    return scores, confusion


def _labelled(source: Source) -> tuple[Source, np.ndarray] | None:
    labels = read_fields(source, ("label",))["label"]
    rows = np.flatnonzero(labels >= 0)
    return (Subset(source, rows), labels[rows]) if rows.size else None
