"""The comparison of ways to reduce the modality gap, at the smallest size."""

import json

import numpy as np
import pytest

from benchmarks import modality_gap
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.models.contrastive import ContrastiveConfig, PairDistance, UniformCentroids
from xmodal_jax.nets.encoders import DCGANEncoderConfig, TextDecoderConfig, TextTransformerConfig

SMALL = dict(
    image_size=16, train_size=60, test_examples=60, gallery=20, steps=2, batch_size=8, caption_steps=2
)


@pytest.fixture
def small_networks(monkeypatch):
    text = dict(width=16, depth=1, heads=2)
    model = ContrastiveConfig(
        embed_dim=8, image=DCGANEncoderConfig(width=8, norm="none"), text=TextTransformerConfig(**text)
    )
    monkeypatch.setattr(modality_gap, "MODEL", model)
    monkeypatch.setattr(modality_gap, "DECODER", TextDecoderConfig(**text))


@pytest.fixture
def random_networks(monkeypatch):
    """In place of trained networks: embeddings at random, of each modality on a side of its own, and true captions."""

    class RandomBench(modality_gap.Bench):
        def _train_space(self, gap_loss, seed):
            rng = np.random.default_rng(seed)

            def embed(size):
                x = rng.normal(size=(2, size, 6)) + [[[1.0]], [[-1.0]]]
                unit = np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))
                return {"image": unit[0], "text": unit[1]}

            sizes = (self.train, self.gallery, self.labelled[0], self.references.source)
            return modality_gap.TrainedSpace(*(embed(len(source)) for source in sizes), seconds=rng.random())

    monkeypatch.setattr(modality_gap, "Bench", RandomBench)
    monkeypatch.setattr(modality_gap.TextOnlyCaptioner, "fit", lambda *args, seed: {})
    captions = lambda self, params, vectors: ["a red circle"] * len(vectors)
    monkeypatch.setattr(modality_gap.TextOnlyCaptioner, "caption", captions)


@pytest.mark.slow  # 30 s, to compile
def test_all_of_it_runs(tmp_path, small_networks):
    config = modality_gap.Config(out=tmp_path / "gap", ways=("shift", "uniform_centroids"), **SMALL)
    modality_gap.main(config)
    rows = [json.loads(line) for line in (tmp_path / "gap.jsonl").read_text().splitlines()]
    assert [row["way"] for row in rows] == ["shift", "uniform_centroids"]
    for row in rows:
        assert set(modality_gap.COLUMNS) <= set(row["scores"])
        assert np.isfinite(list(row["scores"].values())).all()


def test_rows_are_kept_and_the_table_is_written(tmp_path, capsys, random_networks):
    ways = ("none", "center", "uniform_centroids")
    config = modality_gap.Config(out=tmp_path / "gap", ways=ways, **SMALL)
    modality_gap.main(config)
    rows = [json.loads(line) for line in (tmp_path / "gap.jsonl").read_text().splitlines()]
    assert [row["way"] for row in rows] == list(ways)
    for row in rows:
        scores = row["scores"]
        assert set(modality_gap.COLUMNS) <= set(scores) and np.isfinite(list(scores.values())).all()
        fractions = [scores[k] for k in modality_gap.COLUMNS if k not in ("gap", "train_s")]
        assert min(fractions) >= 0 and max(fractions) <= 1 and 0 <= scores["gap"] <= 2
        assert scores["modality_purity"] >= 0.5
    none, center, _ = (row["scores"] for row in rows)
    assert none["train_s"] == center["train_s"]  # one training
    assert center["gap"] < none["gap"]
    table = (tmp_path / "gap.md").read_text()
    assert "| way | seeds | gap |" in table and "| uniform_centroids | 1 |" in table
    capsys.readouterr()
    modality_gap.main(config)  # reads what is done
    assert "center" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="another configuration"):
        modality_gap.main(modality_gap.Config(out=tmp_path / "gap", **{**SMALL, "steps": 3}))


def test_the_ways_are_those_of_the_model_with_the_weights_of_the_configuration():
    config = modality_gap.Config(distance_weight=0.5, uniformity_weight=0.25)
    ways = {name: config.way(name) for name in modality_gap.NAMES}
    assert ways["none"] == (None, None) and ways["shift"] == (None, "shift")
    assert ways["pair_distance"] == (PairDistance(0.5), None)
    assert ways["uniform_centroids"] == (UniformCentroids(0.5, 0.25), None)


def test_clusters_are_classes_or_modalities():
    """Where images and texts of a class share a place the clusters are classes; far apart they are modalities."""
    labels, noise = np.repeat([0, 1], 30), 0.01 * np.random.default_rng(0).normal(size=(60, 3))
    places = np.float32([[1, 0, 0], [0, 1, 0]])[labels] + noise
    together = modality_gap.cluster_scores({"image": places, "text": places}, labels, seed=0)
    assert together == {"class_purity": 1.0, "modality_purity": 0.5, "nmi": pytest.approx(1.0)}
    far = {"image": places + [0, 0, 9], "text": places - [0, 0, 9]}
    apart = modality_gap.cluster_scores(far, labels, seed=0)
    assert apart["modality_purity"] == 1.0 and apart["class_purity"] == 0.5 and apart["nmi"] < 0.01


def test_a_mixed_gallery_shows_the_gap():
    """Embeddings whose pairs agree, on opposite sides of the sphere: recall between them is perfect, in a mixed
    gallery it is 0, and after the correction both are perfect."""
    bench = modality_gap.Bench.__new__(modality_gap.Bench)
    captions = np.array([f"number {k}" for k in range(12)], object)
    source = ArraySource({"image": np.zeros((12, 2, 2, 3), np.uint8), "caption": captions})
    bench.gallery = modality_gap.Gallery(source, 12)
    unit = lambda x: np.float32(x / np.linalg.norm(x, axis=1, keepdims=True))
    x = unit(np.random.default_rng(0).normal(size=(12, 6)))
    apart = {
        "image": unit(np.c_[x, np.full(12, 1.5)]),
        "text": unit(np.c_[x + 0.01, np.full(12, -1.5)]),
    }
    scores = bench.retrieval_scores(apart)
    assert scores["gap"] > 1.5 and scores["image_to_text/recall@1"] == scores["text_to_image/recall@1"] == 1
    assert scores["mixed/recall@5"] == scores["mixed/other_modality@5"] == 0
    corrected = modality_gap.fit_gap_correction(apart)(apart)
    scores = bench.retrieval_scores({m: np.asarray(x) for m, x in corrected.items()})
    assert scores["gap"] < 0.2 and scores["mixed/recall@1"] == 1


def test_mistakes():
    with pytest.raises(ValueError, match="--ways: 'both' is none of none, shift, center, pair_distance"):
        modality_gap.Config(ways=("both",))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        modality_gap.Config(steps=0)
    with pytest.raises(ValueError, match="distance_weight must be at least 0"):
        modality_gap.Config(distance_weight=-0.5)
    with pytest.raises(ValueError, match="--seeds are 0 or more"):
        modality_gap.Config(seeds=(-1,))
