"""The scores of experiments/evaluate.py beside those that PyTorch and scikit-learn compute from the same embeddings.

    python -m benchmarks.evaluation RUN --data folder:PATH npz:PATH

For each data set: recall@1, 5 and 10 from the sorted similarities of all pairs (PyTorch, float64), the accuracy of the
most similar class and its calibration error by a loop over bins, and scikit-learn's logistic regression (whose C the
validation examples choose) and nearest neighbours. Prints both and the largest difference; it ends with status 1 if
that exceeds 1e-6.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import numpy as np
import tyro

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import Splits
from xmodal_jax.evaluation.embeddings import class_prompts
from xmodal_jax.evaluation.protocol import INVERSE_L2, Protocol, evaluate_space
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.embed_data import open_splits_for_model
from xmodal_jax.inference.loading import load

TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which run, on which data sets."""

    run: Annotated[str, tyro.conf.Positional]
    """A run of contrastive.py."""
    seed: int | None = None
    """Seed of the trained model, if the run has several."""
    data: tuple[str, ...]
    """Data sets in one of the forms of ``--data``."""
    protocol: Protocol = Protocol(resamples=10)
    """What is measured; the peer follows the same numbers."""


def embed_once(model: ContrastiveModel, source) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """``(embeddings, fields)`` of all examples of a split: the fields are its captions, labels and groups."""
    embeddings = model.embed_source(source)
    indices = np.arange(len(source))
    groups, labels = source.groups(), source.class_labels()
    return embeddings, {
        "caption": np.asarray(source.caption_batch(indices)["caption"], str),
        "group": indices if groups is None else np.where(groups < 0, -1 - indices, groups),
        "label": np.full(len(source), -1) if labels is None else labels,
        **{f"has_{m}": present for m, present in source.presence().items()},
    }


def recalls(queries, gallery, query_ids, gallery_ids) -> dict[int, float]:
    """The fraction of queries with a correct item among the k most similar, by sorting all similarities. A tie with a
    wrong item counts as wrong."""
    import torch

    similarity = torch.from_numpy(queries.astype(np.float64)) @ torch.from_numpy(gallery.astype(np.float64)).T
    correct = torch.from_numpy(query_ids)[:, None] == torch.from_numpy(gallery_ids)[None, :]
    best = similarity.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)
    wrong = similarity.masked_fill(correct, -torch.inf).sort(dim=1, descending=True).values
    return {k: float((wrong[:, k - 1] < best[:, 0]).double().mean()) for k in (1, 5, 10)}


def first_items(keys: np.ndarray) -> np.ndarray:
    """The indices of the first occurrence of each key, ascending."""
    return np.sort(np.unique(keys, return_index=True)[1])


def retrieval_peer(embeddings, fields) -> dict[str, float]:
    """All directions of retrieval over a test split.

    With several captions to a picture, the picture decides what is correct, and each distinct picture counts once.
    Otherwise equal captions do; an example without a caption stands for itself.
    """
    count = len(fields["label"])
    grouped = len(set(fields["group"].tolist())) < count
    captions = np.where(fields["caption"] == "", np.arange(count).astype(str), fields["caption"])
    ids = fields["group"] if grouped else np.unique(captions, return_inverse=True)[1]
    items = {m: fields[f"has_{m}"] for m in embeddings}
    if grouped:  # the pictures and sounds of a group are equal here: the first stands for all
        first = np.zeros(count, bool)
        first[first_items(fields["group"])] = True
        items = {m: has if m.startswith("text") else has & first for m, has in items.items()}
    scores = {}
    for query in embeddings:
        for target in embeddings:
            both = items[query] & items[target] if not grouped else None
            q, t = (both, both) if both is not None else (items[query], items[target])
            if query != target and q.any():
                found = recalls(embeddings[query][q], embeddings[target][t], ids[q], ids[t])
                scores |= {f"{query}_to_{target}/recall@{k}": value for k, value in found.items()}
    return scores


def softmax(x: np.ndarray) -> np.ndarray:
    """In float64, over the last axis."""
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By a loop over the 15 bins of the definition."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total)


def classification_peer(
    model: ContrastiveModel, splits: Splits, parts, protocol: Protocol
) -> dict[str, float]:
    """Zero-shot accuracy and calibration, the linear probe, and few-shot nearest neighbours, of each modality."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    prompts = class_prompts(splits.train, protocol.prompts)
    if prompts is None:
        return {}
    means = [model.embed(texts=texts).astype(np.float64).mean(axis=0) for texts in prompts]
    classes = np.stack([mean / np.linalg.norm(mean) for mean in means])

    def labelled(part, modality):
        """The embeddings and labels of a split's labelled pictures that have the modality."""
        embeddings, fields = parts[part]
        rows = first_items(fields["group"])
        rows = rows[fields["label"][rows] >= 0]
        return rows, embeddings[modality], fields["label"], fields[f"has_{modality}"]

    scores = {}
    for modality in (m for m in parts["test"][0] if not m.startswith("text")):
        rows, embeddings, labels, has = labelled("test", modality)
        x, y = (a[rows[has[rows]]] for a in (embeddings, labels))
        similarity = x.astype(np.float64) @ classes.T
        scores[f"{modality}_zero_shot/accuracy"] = float(np.mean(similarity.argmax(axis=1) == y))
        if model.scale is not None:
            scores[f"{modality}_zero_shot/calibration_error"] = calibration_error(
                softmax(model.scale * similarity), y
            )
        rows, embeddings, labels, has = labelled("train", modality)
        spread = np.unique(np.linspace(0, len(rows) - 1, min(protocol.probe_examples, len(rows))).astype(int))
        fitted = rows[spread][has[rows[spread]]]
        held, held_x, held_y, held_has = labelled("validation", modality)
        held = held[held_has[held]]
        best = (-1.0, None)
        for weight in INVERSE_L2:
            probe = LogisticRegression(C=weight, max_iter=1000).fit(embeddings[fitted], labels[fitted])
            accuracy = probe.score(held_x[held], held_y[held])
            best = max(best, (accuracy, probe), key=lambda pair: pair[0])
        scores[f"{modality}_linear_probe/accuracy"] = float(best[1].score(x, y))
        rng = np.random.default_rng(protocol.seed)
        of_class = [np.flatnonzero(labels[rows] == k) for k in np.unique(labels[rows])]
        shots = np.sort(np.concatenate([rng.permutation(each)[: protocol.shots] for each in of_class]))
        shots = rows[shots][has[rows[shots]]]
        peer = KNeighborsClassifier(min(protocol.neighbours, len(shots)), metric="cosine")
        scores[f"{modality}_few_shot/accuracy"] = float(
            peer.fit(embeddings[shots], labels[shots]).score(x, y)
        )
    return scores


def main(config: Config) -> int:
    """Prints both for every data set; returns 1 if they differ by more than `TOLERANCE`."""
    model = load(config.run, seed=config.seed)
    worst = 0.0
    for spec in config.data:
        splits = open_splits_for_model(model, spec, DataOptions(), BadExamples("skip"))
        test = splits.tests["test"]
        ours = evaluate_space(
            model.embedding_functions, splits.train, splits.validation, test, config.protocol
        )
        sources = {"train": splits.train, "validation": splits.validation, "test": test}
        parts = {name: embed_once(model, source) for name, source in sources.items()}
        theirs = retrieval_peer(*parts["test"]) | classification_peer(model, splits, parts, config.protocol)
        print(f"\n{spec}\n{'score':44} {'evaluate.py':>12} {'peer':>12}")
        for name in ours:
            difference = abs(ours[name].value - theirs.get(name, float("nan")))
            worst = max(worst, difference if np.isfinite(difference) else 1.0)
            print(f"{name:44} {ours[name].value:12.8f} {theirs.get(name, float('nan')):12.8f}")
    print(f"\nlargest difference {worst:.2e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
