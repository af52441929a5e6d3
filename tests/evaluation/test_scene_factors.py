"""Accuracies on scenes, for embeddings whose scores are known: of all facts, of a bag of words, of nothing."""

import zlib

import numpy as np
import pytest

from xmodal_jax.data.shapes.grammar import parse, scene_meanings
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import IncompleteSource, Subset
from xmodal_jax.evaluation.embeddings import Embedder, Gallery
from xmodal_jax.evaluation.scene_factors import SceneTests, factor_scores, is_scene_score

SIZE = 150
SOURCE = SpokenShapes("test", size=SIZE, modalities=("text", "image"), image_size=16)


@pytest.fixture(scope="module")
def tests():
    return SceneTests(SOURCE)


def unit(key):
    """A random unit vector for each key, nearly orthogonal to all others."""
    x = np.random.default_rng(zlib.crc32(str(key).encode())).normal(size=256)
    return x / np.linalg.norm(x)


def bag(caption):
    x = np.zeros(512)
    for word in caption.split():
        x[zlib.crc32(("a" if word == "an" else word).encode()) % 512] += 1
    return x / np.linalg.norm(x)


class Oracle(Embedder):
    """Embeds captions by ``embed_text(caption)``, and scenes by ``embed_scene(index, factors, caption)``."""

    def __init__(self, embed_text, embed_scene):
        self.embed_text, self.embed_scene = embed_text, embed_scene

    def __call__(self, params, source):
        indices = np.arange(len(source))
        factors, captions = source.factors(indices), source.caption_batch(indices)["caption"]
        meanings = scene_meanings(factors, motion="video" in source.modalities)
        vectors = np.stack([self.embed_scene(*x) for x in zip(indices, meanings, captions, strict=True)])
        return {m: vectors for m in source.modalities if m != "text"} | {
            "text": self.embed_texts(params, captions)
        }

    def embed_texts(self, params, captions):
        return np.stack([self.embed_text(str(c)) for c in captions])


FACTS = Oracle(lambda caption: unit(parse(caption)), lambda index, meaning, caption: unit(meaning))
BAG = Oracle(bag, lambda index, meaning, caption: bag(caption))
RANDOM = Oracle(unit, lambda index, meaning, caption: unit(index))
CONSTANT = Oracle(lambda caption: np.eye(4)[0], lambda index, meaning, caption: np.eye(4)[1])


def chance_by_name(tests, modality="image"):
    chances = {f"test/{modality}_{kind}_{factor}": p for (kind, factor), p in tests.chances.items()}
    return chances | {f"test/{modality}_replaced": 0.5, f"test/{modality}_swapped": 0.5}


def test_who_reads_all_facts_is_always_right(tests):
    scores = tests.results(FACTS, None).scores()
    assert set(scores) == set(chance_by_name(tests)) and set(scores.values()) == {1.0}


def test_a_bag_of_words_notices_changed_words_but_not_exchanged_ones(tests):
    scores = tests.results(BAG, None).scores()
    for name, value in scores.items():
        assert value == (0.5 if "swapped" in name else 1.0), name


def test_embeddings_of_nothing_are_at_chance(tests):
    chances = chance_by_name(tests)
    assert tests.results(CONSTANT, None).scores() == pytest.approx(chances)
    scores = tests.results(RANDOM, None).scores()
    sizes = {
        f"test/image_{kind}_{factor}": len(test.scenes) for (kind, factor), test in tests.by_factor.items()
    }
    for name, value in scores.items():
        deviation = np.sqrt(chances[name] * (1 - chances[name]) / sizes.get(name, SIZE / 2))
        assert abs(value - chances[name]) < 4 * deviation, name


def test_the_chances_are_those_of_the_number_of_values(tests):
    chances = {factor: round(1 / p) for (kind, factor), p in tests.chances.items() if kind == "zero_shot"}
    assert chances == {
        "shape": 8,
        "colour": 8,
        "size": 2,
        "texture": 3,
        "place": 9,
        "relation": 4,
        "number": 3,
    }
    assert {p for (kind, _), p in tests.chances.items() if kind != "zero_shot"} == {0.5}


def test_scores_are_those_of_a_plain_loop(tests):
    """A noisy reader: the right value has the highest similarity, counted one test at a time."""
    noisy = Oracle(
        lambda caption: unit(parse(caption)) + 0.7 * unit(caption),
        lambda index, meaning, caption: unit(meaning),
    )
    scores, vectors = tests.results(noisy, None).scores(""), noisy(None, SOURCE)["image"]
    by_scene = {}
    for (kind, factor), test in tests.by_factor.items():
        correct = []
        for scene, captions in zip(test.scenes, test.captions, strict=True):
            similarity = [float(vectors[scene] @ noisy.embed_text(tests.captions[c])) for c in captions]
            correct.append(all(similarity[0] > x for x in similarity[1:]))
            by_scene.setdefault((kind, int(scene)), []).append(correct[-1])
        assert scores[f"image_{kind}_{factor}"] == pytest.approx(np.mean(correct))
    for kind in ("replaced", "swapped"):
        means = [np.mean(values) for (k, _), values in by_scene.items() if k == kind]
        assert scores[f"image_{kind}"] == pytest.approx(np.mean(means))


def test_the_right_caption_is_that_of_the_scene_and_the_wrong_ones_are_not(tests):
    meanings, captions = SOURCE.meanings(), SOURCE.captions()
    for test in tests.by_factor.values():
        for scene, indices in zip(test.scenes, test.captions, strict=True):
            right, *wrong = (tests.captions[k] for k in indices)
            assert right == captions[scene] and all(parse(c) not in (None, meanings[scene]) for c in wrong)
            assert len({right, *wrong}) == len(indices)


def test_a_part_and_a_gallery_ask_the_same_of_the_same_scenes():
    some = factor_scores(RANDOM, None, SOURCE, limit=20)
    assert some == factor_scores(RANDOM, None, Subset(SOURCE, np.arange(20)))
    gallery = Gallery(SOURCE, 20)
    np.testing.assert_array_equal(gallery.indices, np.arange(20))  # all of different meaning
    assert some == factor_scores(RANDOM, None, gallery) != factor_scores(RANDOM, None, SOURCE, limit=30)
    assert some == factor_scores(RANDOM, None, gallery, embeddings=RANDOM(None, gallery))


def test_missing_modalities_do_not_count():
    source = IncompleteSource(SOURCE, fraction=0.5, seed=0)
    has = source.presence()
    embeddings = {"image": np.where(has["image"][:, None], FACTS(None, SOURCE)["image"], np.nan)}
    results = SceneTests(source).results(FACTS, None, embeddings)
    assert set(results.scores().values()) == {1.0}
    number = results.outcomes["image", "zero_shot", "number"].test.scenes
    np.testing.assert_array_equal(number, np.flatnonzero(has["image"] & has["text"]))


def test_motion_is_read_where_it_shows():
    source = SpokenShapes("test", size=40, modalities=("text", "image", "video"), image_size=16, frames=2)
    scores = factor_scores(FACTS, None, source, prefix="validation/")
    assert set(scores.values()) == {1.0}
    assert {"validation/video_zero_shot_motion", "validation/video_replaced_motion"} < set(scores)
    assert not any(name.startswith("validation/image") and "motion" in name for name in scores)
    assert {name for name in scores if "zero_shot_shape" in name} == {
        "validation/image_zero_shot_shape", "validation/video_zero_shot_shape"
    }  # fmt: skip


def test_other_data_sets_have_no_such_scores():
    images = np.zeros((6, 4, 4, 3), np.uint8)
    captions = np.array(["a red star above a blue ring"] * 6, object)
    assert factor_scores(RANDOM, None, ArraySource({"image": images, "caption": captions})) == {}
    assert factor_scores(RANDOM, None, SpokenShapes("test", size=6, modalities=("image",))) == {}


def test_scores_by_factor_are_known_by_their_names(tests):
    assert all(map(is_scene_score, tests.results(CONSTANT, None).scores()))
    others = (
        "test/image_zero_shot_accuracy test/image_linear_probe_accuracy test/gap_image_text image_to_text/mrr"
    )
    assert not any(map(is_scene_score, others.split()))
