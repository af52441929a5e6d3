"""What smaller weights change in the scores of trained runs, on their own test examples.

    python -m benchmarks.export_quality runs/contrastive runs/captioning runs/speech_recognition --examples 1000
    python -m benchmarks.export_quality runs/text_to_image_gan --judge runs/captioning

Each run is evaluated with its weights as ``--dtype`` of experiments/export.py stores them, by the methods of
`inference.load`. Images of a GAN are captioned by the judge, a run of captioning.py, as in text_to_image_gan.py.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.splits import open_splits
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import retrieval_scores
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.inference.loading import load
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.train.run import from_json
from xmodal_jax.transfer.weights import DTYPES


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Runs to evaluate."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Directories of runs of contrastive.py, captioning.py, speech_recognition.py and text_to_image_gan.py."""
    judge: pathlib.Path | None = None
    """A run of captioning.py that captions the images of a GAN."""
    examples: int = 1000
    """Test examples, at most."""


def retrieval(model: Any, test: Source, arguments: Arguments) -> dict[str, float]:
    """Recall at 1 between all pairs of modalities."""
    embeddings = model.embedding_functions.embed_source(test)
    scores = retrieval_scores(embeddings)
    return {name: value for name, value in scores.items() if name.endswith("recall@1")}


def captions(model: Any, test: Source, arguments: Arguments) -> dict[str, float]:
    """Scores of captions."""
    texts = ReferenceTexts(test, model.format.transform.tokenize.clean, one_per_picture=True)
    generated = model.generate(list(read_fields(texts.source, (model.source,))[model.source]))
    return texts.caption_scores(generated, "")


def transcripts(model: Any, test: Source, arguments: Arguments) -> dict[str, float]:
    """Error rates of transcripts."""
    texts = ReferenceTexts(test, model.format.transform.tokenize.clean)
    fields = read_fields(texts.source, ("audio", "audio_mask"))
    sounds = [wave[mask] for wave, mask in zip(fields["audio"], fields["audio_mask"], strict=True)]
    return texts.error_rates(model.generate([(wave, model.format.sample_rate) for wave in sounds]), "")


def images(model: Any, test: Source, arguments: Arguments) -> dict[str, float]:
    """Scores of the judge's captions of the images for the captions of the test split."""
    if arguments.judge is None:
        raise ValueError(f"{model.path}: images of a GAN need --judge, a run of captioning.py")
    texts = ReferenceTexts(test, one_per_picture=True)
    return texts.caption_scores(load(arguments.judge).caption(model.synthesize(texts.texts, seed=0)), "")


SCORES: dict[str, Callable[[Any, Source, Arguments], dict[str, float]]] = {
    "contrastive": retrieval,
    "captioning": captions,
    "speech_recognition": transcripts,
    "text_to_image_gan": images,
}
SHOWN = ("recall@1", "factor_accuracy", "exact_accuracy", "bleu", "cider", "wer", "cer")
"""The endings of the scores in the table."""


def with_weights(model: TrainedModel, dtype: str) -> None:
    """Gives a model the weights that are read again after they were stored as ``dtype``."""
    stored = DTYPES[dtype].compress(trees.flat(model.params))
    expanded = DTYPES[dtype].expand(stored)
    structure = jax.tree.structure(model.params)
    model.params = structure.unflatten([expanded[name] for name in trees.leaf_names(model.params)])


def main(arguments: Arguments) -> None:
    runtime.configure()
    print(
        f"| run | examples | score | {' | '.join(DTYPES)} |\n|---|---:|---|{'---:|' * len(DTYPES)}",
        flush=True,
    )
    for path in arguments.runs:
        rows: dict[str, list[float]] = {}
        config = load(path).metadata["config"]
        options = from_json(DataOptions, config["input"])
        test = open_splits(config["data"], options, BadExamples("skip")).tests["test"]
        test = Subset(test, np.arange(min(len(test), arguments.examples)))
        for dtype in DTYPES:
            model = load(path)
            with_weights(model, dtype)
            for name, value in SCORES[model.kind](model, test, arguments).items():
                if name.endswith(SHOWN):
                    rows.setdefault(name, []).append(value)
        for name, values in rows.items():
            cells = " | ".join(f"{value:.4f}" for value in values)
            print(f"| {path.name} | {len(test)} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
