"""Report section on which factors of scenes a shared embedding space can tell, and right captions from changed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from xmodal_jax.evaluation.scene_factors import ALL_FACTORS, TEST_KINDS, Outcome, SceneResults, score_name
from xmodal_jax.report import figures
from xmodal_jax.report.alignment import content
from xmodal_jax.report.page import Hit, Item, Report
from xmodal_jax.train.run import format_value

TITLE = "Which factors of scenes the space can tell"
EXAMPLES = 3
"""Number of mistakes of each kind of test that are shown."""


class _Explanation(NamedTuple):
    """Heading and explanation of a kind of test."""

    title: str
    text: str


_EXPLANATIONS = {
    "zero_shot": _Explanation(
        "Which value of a factor?",
        "the scene's own caption with each value that the factor can take; the right one should be nearest",
    ),
    "replaced": _Explanation(
        "The caption, or the same with one value replaced?", "a random other value of one factor"
    ),
    "swapped": _Explanation(
        "The caption, or the same with the values of two objects swapped?",
        "the same words in another order, which a bag of words cannot tell apart",
    ),
}


def add_scene_factors(
    report: Report, metrics: Mapping[str, float | list[float]], results: SceneResults, prefix: str = "test/"
) -> None:
    """Bars and a table of the accuracies by factor, and scenes that are nearer to a wrong caption than to the right
    one; nothing for a data set without captions of scenes.

    ``metrics``: by name, a number or one per seed, among them `SceneResults.scores`. ``results``: of the first seed.
    """
    if not results.outcomes:
        return
    kinds = [kind for kind in TEST_KINDS if any(key[1] == kind for key in results.outcomes)]
    modalities = list(dict.fromkeys(modality for modality, _, _ in results.outcomes))
    panels, chances, rows = {}, {}, []
    for kind in kinds:
        title = _EXPLANATIONS[kind].title
        chances[title] = {f: chance for (k, f), chance in results.tests.chances.items() if k == kind}
        if kind != "zero_shot":
            chances[title] = {ALL_FACTORS: 0.5, **chances[title]}
        values = {
            m: {f: metrics.get(score_name(prefix, m, kind, f)) for f in chances[title]} for m in modalities
        }
        panels[title] = {
            m: {f: float(np.mean(v)) for f, v in of_one.items() if v is not None}
            for m, of_one in values.items()
        }
        rows += [
            [kind, factor, f"{chance:.3f}", *(_cell(values[m][factor]) for m in modalities)]
            for factor, chance in chances[title].items()
        ]
    meaning = "; ".join(f"{_EXPLANATIONS[kind].title} ({_EXPLANATIONS[kind].text})" for kind in kinds)
    report.add_figure(TITLE, figures.grouped_bars(panels, chances), f"Accuracies on test scenes. {meaning}.")
    report.add_table(TITLE, ("test", "factor", "chance", *modalities), rows)
    for kind in kinds:
        _add_mistakes(report, results, modalities[0], kind)


def _cell(value: float | list[float] | None) -> str:
    return "" if value is None else format_value(value)


def _add_mistakes(report: Report, results: SceneResults, modality: str, kind: str) -> None:
    """Scenes that are nearer to a wrong caption than to the right one, for each factor the one with the largest margin;
    nothing if there are none.

    ``modality``: the one whose embeddings are compared with the captions'.
    """
    outcomes = {f: outcome for (m, k, f), outcome in results.outcomes.items() if (m, k) == (modality, kind)}
    # The margin of the nearest caption over the right one, which is the first.
    margins = {f: o.similarity.max(axis=1) - o.similarity[:, 0] for f, o in outcomes.items()}
    worst = sorted(outcomes, key=lambda f: -margins[f].max())[:EXAMPLES]
    worst = [f for f in worst if margins[f].max() > 0]
    if not worst:
        return
    queries, hits = [], []
    for factor in worst:
        query, captions = _mistake(results, modality, outcomes[factor], int(margins[factor].argmax()), factor)
        queries.append(query)
        hits.append(captions)
    report.add_gallery(
        "Scenes that are nearer to a wrong caption", queries, hits, top=3,
        note=f"{_EXPLANATIONS[kind].title} For each factor the {modality} with the largest margin of a wrong caption.",
    )  # fmt: skip


def _mistake(
    results: SceneResults, modality: str, outcome: Outcome, row: int, factor: str
) -> tuple[Item, list[Hit]]:
    """A test as a query with its captions, nearest first. ``row``: its number in ``outcome``."""
    scene, indices = outcome.test.scenes[row], outcome.test.captions[row]
    batch = results.tests.source.batch(np.array([scene]))
    nearest = np.argsort(-outcome.similarity[row], kind="stable")
    hits = [
        Hit(
            results.tests.captions[indices[k]],
            correct=bool(k == 0),
            similarity=float(outcome.similarity[row, k]),
        )
        for k in nearest
    ]
    return Item(content(batch, modality, 0), f"{factor}: {results.tests.captions[indices[0]]}"), hits
