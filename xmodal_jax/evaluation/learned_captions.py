"""What a captioner of real images learns from generated ones: as `evaluation.learning`, for captions in place of
classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.splits import Splits, fit_tokenizer
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.learning import Trainer
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerator
from xmodal_jax.models.seq2seq import GreedySearchConfig, Seq2SeqConfig, make_seq2seq
from xmodal_jax.train.optim import Optimizer

OPTIMIZER = Optimizer("muon", learning_rate=5e-3)
"""Update rule and learning-rate schedule of the captioners."""
CONFIG = Seq2SeqConfig()
"""The captioners' encoder and decoder."""
SCORES = ("factor_accuracy", "exact_accuracy")
"""What a captioner is scored by: the first of these that is known of the data set."""


class CaptionLearning:
    """Trains captioners on pairs of images and captions, and scores them on the real images of the split "test".

    Args:
      splits: of a data set with captions and images; the tokenizer is fitted to the captions of its training split.
      steps: updates of each captioner.
      test_examples: largest number of test images.
      config: of the captioner.
      batch_size: images per update.

    Example::

        learning = CaptionLearning(splits, steps=600)
        learning.score(generated, captions)  # 0.9
    """

    def __init__(
        self,
        splits: Splits,
        steps: int,
        *,
        test_examples: int = 500,
        config: Seq2SeqConfig = CONFIG,
        batch_size: int = 64,
    ):
        options = dict(tokenizer="word", vocab_size=None, cleanup="none")
        self.tokenize, _ = fit_tokenizer(splits.train, BadExamples("skip"), **options)
        tokenizer, length = self.tokenize.tokenizer, self.tokenize.max_length
        method = make_seq2seq(config, "image", vocab_size=tokenizer.vocab_size, length=length)
        loss = lambda params, batch, key: method.loss(params, batch, key)[0]
        self._trainer = Trainer(method.init, loss, OPTIMIZER, steps=steps, batch_size=batch_size)
        self._generate = TextGenerator(
            config, "image", tokenizer, decodings={"greedy": GreedySearchConfig()}, length=length
        )
        test = splits.tests["test"]
        test = Subset(test, np.arange(min(len(test), test_examples)))
        self.references = ReferenceTexts(test, self.tokenize.clean, one_per_picture=True)

    def score(self, images: np.ndarray, captions: Sequence[str], *, seed: int = 0) -> float:
        """The score on real images of a captioner that was trained on images uint8 ``[N, H, W, C]`` and their
        ``captions``: the fraction of the factors of a scene that it names correctly, or of captions that are
        correct, see `SCORES`."""
        tokens = self.tokenize({"caption": np.asarray(captions, object)})
        fields = {"image": images} | {name: tokens[name] for name in ("text", "text_mask")}
        params = self._trainer.fit(fields, np.arange(len(images)), seed=seed)
        scores = self.references.caption_scores(
            self._generate(params, self.references.source, decoding="greedy"), prefix=""
        )
        return float(next(scores[name] for name in SCORES if name in scores))
