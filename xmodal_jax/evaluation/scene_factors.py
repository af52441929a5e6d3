"""Which factors of scenes a shared embedding space can tell: zero-shot classification of every factor of Spoken
Shapes, and the choice between the right caption and one in which a value is replaced, or two values are swapped.

A test compares an image (a recording, a video) with several captions. It is passed if the right caption has the highest
cosine similarity. All captions are sentences of the data set's grammar (`data.shapes.caption_changes`), so that right
and wrong ones look like captions of the training data. There are three kinds of tests:

- ``zero_shot``: the scene's own caption with each value that a factor can take. Of scenes of one object: ``shape`` (8
  values, chance 1/8), ``colour`` (8), ``size`` (2), ``texture`` (3), ``place`` (9) and, of videos and speech where
  captions tell it, ``motion`` (8); of scenes of two objects: ``relation`` (4); of all: ``number`` (3), where captions
  of fewer objects leave out some of the scene's, and those of more add random ones.
- ``replaced``: the scene's own caption and a changed one, in which one factor (of a random object) has a random other
  value; chance 1/2.
- ``swapped``: the scene's own caption of two or three objects and a changed one, in which two objects have swapped
  their values of one factor, "a red star left of a blue ring" for "a blue star left of a red ring"; chance 1/2. A bag
  of words cannot tell these.

The last two are the REPLACE and SWAP tests of SugarCrepe (Hsieh et al. 2023, arXiv:2306.14610), after ARO (Yuksekgonul
et al. 2023, arXiv:2210.01936), with captions by rules.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.shapes.caption_changes import (
    PROPERTIES,
    STATED_FACTORS,
    number_captions,
    possible_values,
    replace_value,
    swap_values,
)
from xmodal_jax.data.shapes.grammar import Meaning, parse
from xmodal_jax.data.source import Source
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import Embedder, ordered
from xmodal_jax.types import kind_of

TEST_KINDS = ("zero_shot", "replaced", "swapped")
"""The kinds of tests, see the head of this module."""
ALL_FACTORS = "all"
"""Stands for all factors together, in place of the name of one."""
MAX_SCENES = 500
"""Largest number of scenes of a source that are tested."""
TIE_TOLERANCE = 1e-6
"""Cosine similarities that differ by less count as equal, so that rounding decides nothing."""
_FACTORS_BY_COUNT = {1: ("shape", "colour", "size", "texture", "place", "motion"), 2: ("relation",), 3: ()}
"""The factors that zero-shot classification predicts, by the number of objects in the scene."""
_FACTORS = (*STATED_FACTORS, "number")
_STILL = "image"
"""The kind of modality that shows no motion; videos show it, and speech tells it."""


class CaptionTest(NamedTuple):
    """Tests of one kind and factor: the scene of each test, and its captions, the right one first."""

    scenes: np.ndarray
    """The index of each test's scene in the source, int ``[n]``."""
    captions: np.ndarray
    """The index of each caption in `SceneTests.captions`, int ``[n, k]``."""


class SceneTests:
    """The tests of the first ``limit`` scenes of a source, made once for all evaluations. The random choices depend on
    the index of a scene alone.

    ::

        tests = SceneTests(validation)
        tests.results(embed, params).scores("validation/")["validation/image_zero_shot_colour"]

    Args:
      source: examples with captions, their meanings and factors, as `data.shapes.SpokenShapes` has them, or a view of
        it such as a `Gallery`. There are no tests of other sources, nor of captions outside of the grammar.
      limit: largest number of scenes.
    """

    captions: list[str]
    """All captions of the tests, each once."""
    by_factor: dict[tuple[str, str], CaptionTest]
    """The tests by kind and factor."""

    def __init__(self, source: Source, limit: int = MAX_SCENES):
        """See the class for the arguments."""
        self.source = source
        self.captions, self.by_factor = [], {}
        tests: dict[tuple[str, str], list[tuple[int, list[str]]]] = defaultdict(list)
        motion = "video" in source.modalities
        factors = source.factors(np.arange(min(limit, len(source))))
        for scene, caption, meaning in _scenes(source, limit):
            rng = np.random.default_rng([0, scene])
            for kind, factor, captions in _tests_of_scene(caption, meaning, rng, motion=motion):
                tests[kind, factor].append((scene, captions))
            by_number = number_captions(factors, scene, rng, motion=motion)
            wrong = [c for count, c in enumerate(by_number, start=1) if count != len(meaning.objects)]
            tests["zero_shot", "number"].append((scene, [caption, *wrong]))
        index_of: dict[str, int] = {}
        for key in sorted(tests, key=_order):
            indices = [
                [index_of.setdefault(c, len(index_of)) for c in captions] for _, captions in tests[key]
            ]
            self.by_factor[key] = CaptionTest(np.array([scene for scene, _ in tests[key]]), np.array(indices))
        self.captions = list(index_of)

    @property
    def chances(self) -> dict[tuple[str, str], float]:
        """The accuracy of a random choice, by kind and factor."""
        return {key: 1 / test.captions.shape[1] for key, test in self.by_factor.items()}

    def results(
        self, embed: Embedder, params: Any, embeddings: Mapping[str, np.ndarray] | None = None
    ) -> SceneResults:
        """The similarities of scenes and captions, for every modality except text.

        Args:
          embed: computes the embeddings.
          params: of the method.
          embeddings: unit vectors ``[N, dim]`` of all examples of the source by modality; None: they are computed.
        """
        if not self.by_factor:
            return SceneResults(self, {})
        scenes = np.arange(1 + max(test.scenes.max() for test in self.by_factor.values()))
        if embeddings is None:
            embeddings = embed(params, Subset(self.source, scenes))
        texts = np.asarray(embed.embed_texts(params, self.captions), np.float64)
        present = self.source.presence(scenes)
        outcomes = {}
        for name in (m for m in ordered(tuple(embeddings)) if kind_of(m) != "text"):
            vectors = np.asarray(embeddings[name], np.float64)
            for (kind, factor), test in self.by_factor.items():
                has = present[name][test.scenes]
                if not has.any() or (factor == "motion" and kind_of(name) == _STILL):
                    continue
                test = CaptionTest(test.scenes[has], test.captions[has])
                similarity = np.einsum("nd,nkd->nk", vectors[test.scenes], texts[test.captions])
                outcomes[name, kind, factor] = Outcome(test, similarity)
        return SceneResults(self, outcomes)


class Outcome(NamedTuple):
    """The results of one modality in the tests of one kind and factor."""

    test: CaptionTest
    """The tests of the scenes that have the modality."""
    similarity: np.ndarray
    """Cosine similarities ``[n, k]`` of the scene and each caption."""

    @property
    def correct(self) -> np.ndarray:
        """Whether each test is answered correctly, ``[n]`` in 0..1: 1 where the right caption alone has the highest
        similarity, 1/m where it shares it with m - 1 others (a random choice among these), else 0."""
        highest = self.similarity >= self.similarity.max(axis=1, keepdims=True) - TIE_TOLERANCE
        return highest[:, 0] / highest.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class SceneResults:
    """The results of `SceneTests`."""

    tests: SceneTests
    """The tests, with their captions and scenes."""
    outcomes: dict[tuple[str, str, str], Outcome]
    """By modality, kind and factor."""

    def scores(self, prefix: str = "test/") -> dict[str, float]:
        """The accuracies, named ``<prefix><modality>_<kind>_<factor>``, such as ``test/image_zero_shot_colour`` and
        ``test/image_replaced_colour``. ``test/image_replaced`` and ``test/image_swapped`` are over all factors: the
        mean over the scenes of the mean over a scene's tests."""
        scores = {}
        for modality, kind in dict.fromkeys(key[:2] for key in self.outcomes):
            outcomes = {key[2]: o for key, o in self.outcomes.items() if key[:2] == (modality, kind)}
            if kind != "zero_shot":
                scores[score_name(prefix, modality, kind, ALL_FACTORS)] = _mean_by_scene(
                    list(outcomes.values())
                )
            for factor, outcome in outcomes.items():
                scores[score_name(prefix, modality, kind, factor)] = float(outcome.correct.mean())
        return scores


def score_name(prefix: str, modality: str, kind: str, factor: str) -> str:
    """The name of a score: ``test/image_zero_shot_colour``, or ``test/image_swapped`` for `ALL_FACTORS`."""
    name = f"{prefix}{modality}_{kind}"
    return name if factor == ALL_FACTORS else f"{name}_{factor}"


def is_scene_score(name: str) -> bool:
    """Whether a metric is one of `SceneResults.scores`."""
    return any(name.endswith((f"_{kind}", *(f"_{kind}_{f}" for f in _FACTORS))) for kind in TEST_KINDS)


def factor_scores(
    embed: Embedder,
    params: Any,
    source: Source,
    *,
    embeddings: Mapping[str, np.ndarray] | None = None,
    prefix: str = "test/",
    limit: int = MAX_SCENES,
) -> dict[str, float]:
    """Accuracies of zero-shot classification of every factor of a scene, and of the choice between right and changed
    captions, for every modality except text.

    The head of this module defines the tests, `SceneResults.scores` the names. Where they are computed several times,
    as during training, `SceneTests` makes the captions once.

    Args:
      embed: computes the embeddings.
      params: of the method.
      source: scenes with captions and factors. An example that lacks a modality does not count for it.
      embeddings: of all examples of the source by modality; None: they are computed.
      prefix: before every name.
      limit: the first ``limit`` scenes are tested.

    Returns:
      The scores; ``{}`` for a data set without captions of scenes.

    Example::

        factor_scores(embed, params, validation, prefix="validation/")["validation/image_replaced"]
    """
    return SceneTests(source, limit).results(embed, params, embeddings).scores(prefix)


def _scenes(source: Source, limit: int) -> Iterator[tuple[int, str, Meaning]]:
    """Yields ``(index, caption, meaning)`` of the first ``limit`` examples, of those whose captions are sentences of
    the grammar; none if the source does not tell factors and meanings of scenes."""
    indices = np.arange(min(limit, len(source)))
    meanings, factors = source.meanings(indices), source.factors(indices)
    if "text" not in source.modalities or not meanings or factors is None:
        return
    captions = source.caption_batch(indices)["caption"]
    for index, (caption, meaning) in enumerate(zip(captions, meanings, strict=True)):
        if isinstance(meaning, Meaning) and parse(str(caption)) == meaning:
            yield index, str(caption), meaning


def _tests_of_scene(
    caption: str, meaning: Meaning, rng: np.random.Generator, *, motion: bool
) -> Iterator[tuple[str, str, list[str]]]:
    """Yields ``(kind, factor, captions)`` of the tests of one scene, the right caption first.

    ``motion``: whether captions tell how objects move.
    """
    count = len(meaning.objects)
    for factor in STATED_FACTORS:
        if factor == "motion" and not motion:
            continue
        # The objects or relations that state the factor, each with its value and all others.
        values = {number: possible_values(caption, factor, number) for number in range(count)}
        values = {number: v for number, v in values.items() if len(v) > 1}
        if factor == "motion":  # at most one object moves
            values = {number: v for number, v in values.items() if v[0] > 0} or values
        if not values:
            continue
        if factor in _FACTORS_BY_COUNT[count]:
            yield "zero_shot", factor, [replace_value(caption, factor, v) for v in values[0]]
        number = int(rng.choice(list(values)))
        wrong = int(rng.choice(values[number][1:]))
        yield "replaced", factor, [caption, replace_value(caption, factor, wrong, number)]
    for factor in PROPERTIES:
        if options := swap_values(caption, factor):
            yield "swapped", factor, [caption, options[rng.integers(len(options))]]


def _order(key: tuple[str, str]) -> tuple[int, int]:
    """The place of a kind and factor in tables."""
    return TEST_KINDS.index(key[0]), _FACTORS.index(key[1])


def _mean_by_scene(outcomes: list[Outcome]) -> float:
    """The mean over scenes of the mean over a scene's tests."""
    scenes = np.concatenate([outcome.test.scenes for outcome in outcomes])
    correct = np.concatenate([outcome.correct for outcome in outcomes])
    counts = np.bincount(scenes)
    sums = np.bincount(scenes, weights=correct)
    return float((sums[counts > 0] / counts[counts > 0]).mean())
