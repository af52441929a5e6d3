"""Captioners trained on generated images: what they are trained on, and what they are scored by."""

import numpy as np
import pytest

from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.splits import Splits
from xmodal_jax.evaluation.learned_captions import CaptionLearning


@pytest.fixture
def splits():
    scenes = lambda split, size: SpokenShapes(split, size=size, modalities=("text", "image"), image_size=16)
    return Splits(scenes("train", 40), scenes("train", 5), {"test": scenes("test", 12)})


@pytest.mark.parametrize("right", [True, False])
def test_captioners_are_scored_by_the_factors_of_real_scenes(splits, right):
    """Real captions are all right; those of the scenes in reverse order are right by chance only."""
    learning = CaptionLearning(splits, 3, test_examples=10)
    trained, asked = [], []
    learning._trainer.fit = lambda fields, indices, seed: (
        trained.append((fields, indices, seed)) or "parameters"
    )

    def generate(params, source, decoding):
        asked.append((params, len(source)))
        captions = source.caption_batch(np.arange(10))["caption"].tolist()
        return captions if right else captions[::-1]

    learning._generate = generate
    batch = splits.train.batch(np.arange(6))
    score = learning.score(batch["image"], batch["caption"].tolist(), seed=4)
    assert score == 1.0 if right else score < 0.7
    ((fields, indices, seed),) = trained
    assert seed == 4 and indices.tolist() == list(range(6)) and asked == [("parameters", 10)]
    np.testing.assert_array_equal(fields["image"], batch["image"])
    decode = learning.tokenize.tokenizer.decode
    assert [decode(text[mask]) for text, mask in zip(fields["text"], fields["text_mask"], strict=True)] == (
        batch["caption"].tolist()
    )
