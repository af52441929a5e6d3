"""How much of what is meant a caption says."""

import numpy as np
import pytest

from xmodal_jax.data.shapes.grammar import factor_accuracies, mark_wrong_words, match_factors, parse, realise
from xmodal_jax.data.shapes.source import SpokenShapes

PAIR = "a big red circle to the left of a small plain blue star"


def counts(said, meant):
    found = match_factors(parse(said), parse(meant))
    return sum(r for r, _ in found.values()), sum(n for _, n in found.values())


@pytest.mark.parametrize("modalities", [("text", "image"), ("text", "video")])
def test_every_wording_of_the_truth_is_all_right(modalities):
    scenes = SpokenShapes(size=200, modalities=modalities)
    meanings = scenes.meanings(np.arange(200))
    for phrasing in (1, 2):
        captions = scenes.captions(np.arange(200), phrasing).tolist()
        scores = factor_accuracies(captions, meanings)
        assert set(scores.values()) == {1.0}
        assert ("motion_accuracy" in scores) == ("video" in modalities)
        assert not any(
            wrong for c, m in zip(captions, meanings, strict=True) for _, wrong in mark_wrong_words(c, m)
        )


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (PAIR, 0),
        ("a small blue star is right of a big red disc", 0),
        ("a big red circle above a small blue star", 1),  # the relation
        ("a big red circle right of a small blue star", 1),  # the same things in the other order
        ("a big red square left of a small blue star", 1),
        ("a small green dotted square left of a small blue star", 4),
        ("a big red circle in the middle", 4 + 1 + 1),  # the star, the number, the relation
        (
            "a big red circle left of a small blue star which is above a red heart",
            4,
        ),  # of three, "plain" must be said
        ("a big red circle left of", 10),  # no sentence
        ("", 10),
    ],
)
def test_factors_are_counted(said, lost):
    # Two things of four factors each, their number and one relation.
    assert counts(said, PAIR) == (10 - lost, 10)


def test_a_place_counts_for_one_thing_and_sizes_do_not_count_for_three():
    assert counts("a red circle in the middle", "a big red circle at the top") == (
        4,
        6,
    )  # not size, not place
    three = "a red circle left of a blue star which is above a green heart"
    assert counts(three, three) == (9, 9)  # three colours and shapes, the number, two relations


def test_motion_counts_where_one_moves():
    still, moving = "a big red circle at the top", "a big red circle growing at the top"
    assert counts(still, still)[1] == 6
    assert counts(still, moving) == (6, 7)
    assert counts(moving, still) == (6, 7)


def test_accuracies_are_shares_of_all_factors():
    meant = [parse(PAIR), parse("a big red circle at the top")]
    scores = factor_accuracies(["a big red circle above a small blue star", "nonsense"], meant)
    assert scores["factor_accuracy"] == pytest.approx(9 / 16)
    assert scores["colour_accuracy"] == pytest.approx(2 / 3)
    assert scores["relation_accuracy"] == 0
    assert scores["exact_accuracy"] == 0
    assert scores["sentence_share"] == 0.5
    assert factor_accuracies([PAIR], meant[:1])["exact_accuracy"] == 1


def test_wrong_words_are_those_that_nothing_meant_has():
    pieces = mark_wrong_words("a big red square above a small purple star wibble", parse(PAIR))
    assert [words for words, wrong in pieces if wrong] == ["square", "above", "purple", "wibble"]
    assert " ".join(words for words, _ in pieces) == "a big red square above a small purple star wibble"
    twice = mark_wrong_words("a big red circle left of a big red circle", parse(PAIR))
    assert [words for words, wrong in twice if wrong] == ["big", "red", "circle"]


def test_wrong_words_follow_the_chosen_wording():
    meant = parse(PAIR)
    for bits in range(0, 2**20, 9973):
        assert not any(wrong for _, wrong in mark_wrong_words(realise(meant, bits), meant))
