"""A changed caption differs from the right one in the intended fact alone, and is one that the data could have."""

import difflib
import functools
import itertools
import re

import numpy as np
import pytest

from xmodal_jax.data.shapes.caption_changes import (
    PROPERTIES,
    STATED_FACTORS,
    number_captions,
    possible_values,
    replace_value,
    swap_values,
)
from xmodal_jax.data.shapes.grammar import caption_tokens, match_factors, parse
from xmodal_jax.data.shapes.scenes import COLOURS, MOTIONS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES
from xmodal_jax.data.shapes.source import SpokenShapes

SCENES = 60
VOCABULARIES = dict(
    zip(STATED_FACTORS, (SHAPES, COLOURS, SIZES, TEXTURES, MOTIONS, PLACES, RELATIONS), strict=True)
)


@functools.cache
def scenes(video=False):
    return SpokenShapes("test", size=SCENES, modalities=("text", "video") if video else ("text",), seed=5)


def wrong_facts(caption, reference):
    counts = match_factors(parse(caption), reference)
    return {name: total - right for name, (right, total) in counts.items() if right < total}


@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("factor", STATED_FACTORS)
def test_one_fact_becomes_wrong(factor, video):
    if factor == "motion" and not video:
        return
    tested = 0
    for caption, meaning in zip(scenes(video).captions(), scenes(video).meanings(), strict=True):
        for number in range(len(meaning.objects)):
            values = possible_values(caption, factor, number)
            assert len(set(values)) == len(values)
            assert not values or replace_value(caption, factor, values[0], number) == caption
            for value in values[1:]:
                changed = replace_value(caption, factor, value, number)
                assert wrong_facts(changed, meaning) == {factor: 1}, (caption, changed)
                assert len({(o.shape, o.colour) for o in parse(changed).objects}) == len(meaning.objects)
                tested += 1
        if len(meaning.objects) == 1:
            assert set(possible_values(caption, factor)) == set(
                range(len(VOCABULARIES[factor]) if factor != "relation" else 0)
            )
    assert tested > 30


@pytest.mark.parametrize("factor", ["shape", "colour", "size", "place", "relation"])
def test_all_other_words_stay(factor):
    for caption, meaning in zip(scenes().captions(), scenes().meanings(), strict=True):
        for number in range(len(meaning.objects)):
            for value in possible_values(caption, factor, number)[1:]:
                words, changed = caption.split(), replace_value(caption, factor, value, number).split()
                words, changed = (["a" if w == "an" else w for w in x] for x in (words, changed))
                spans = [
                    x
                    for x in difflib.SequenceMatcher(None, words, changed, False).get_opcodes()
                    if x[0] != "equal"
                ]
                low, high = min(x[1] for x in spans), max(x[2] for x in spans)
                assert high - low <= (5 if factor == "place" else 4 if factor == "relation" else 1), (
                    caption,
                    value,
                )


NOUN_PHRASE = re.compile("DS?(?:(?:0?C|CT|TC)N|CNW)M?")
"""What `grammar.realise` makes of an object, by the letters of `grammar.caption_tokens`, and 0 for "plain"."""


@pytest.mark.parametrize("factor", ["colour", "texture", "motion"])
def test_changed_captions_are_wordings_of_the_data_set(factor):
    """Also where a texture or motion comes or goes: "plain" stands before the colour alone, "an" before a vowel."""
    for caption, meaning in zip(scenes(True).captions(), scenes(True).meanings(), strict=True):
        changes = [
            replace_value(caption, factor, value, number)
            for number in range(len(meaning.objects))
            for value in possible_values(caption, factor, number)
        ]
        for changed in changes + (swap_values(caption, factor) if factor in PROPERTIES else []):
            letters = ["0" if words == "plain" else letter for words, letter, _ in caption_tokens(changed)]
            phrases = re.split("[PREBHA]+(?=D|$)|(?<=[NWM])[PREBHA]+", "".join(letters))
            phrases = [phrase for phrase in phrases if phrase]
            assert len(phrases) == len(meaning.objects) and all(map(NOUN_PHRASE.fullmatch, phrases)), changed
            pairs = itertools.pairwise(changed.split())
            assert all((a == "an") == (b[0] in "aeiou") for a, b in pairs if a in ("a", "an")), changed


def test_examples_of_changes():
    caption = "a small plain orange star is above a big violet ring with stripes"
    change = functools.partial(replace_value, caption)
    assert (
        change("shape", SHAPES.index("circle"), 1)
        == "a small plain orange star is above a big violet circle with stripes"
    )
    donut = "a small red donut in the middle"  # the second word for a ring becomes the second for a circle
    assert replace_value(donut, "shape", SHAPES.index("circle")) == "a small red disc in the middle"
    assert change("texture", 1) == "a small striped orange star is above a big violet ring with stripes"
    assert change("texture", 0, 1) == "a small plain orange star is above a big violet ring"
    assert change("relation", 0) == "a small plain orange star is left of a big violet ring with stripes"
    assert swap_values(caption, "texture") == [
        "a small orange star with stripes is above a big plain violet ring"
    ]
    assert swap_values(caption, "colour") == [
        "a small plain violet star is above a big orange ring with stripes"
    ]
    three = "a red star above an orange ring which is left of a blue heart"
    assert replace_value(three, "colour", 0, 1) == "a red star above a red ring which is left of a blue heart"
    assert possible_values(three, "relation", 1) == [0, 1] and not possible_values(three, "size")
    assert possible_values("a red star above a red ring", "shape") == [
        3,
        0,
        1,
        2,
        4,
        6,
        7,
    ]  # no second red ring
    assert len(swap_values(three, "shape")) == len(swap_values(three, "colour")) == 3
    assert swap_values("a small red star above a small red ring", "colour") == []
    # The first two cannot exchange their shapes: there would be two blue stars.
    assert swap_values("a red star above a blue ring which is left of a blue star", "shape") == [
        "a red star above a blue star which is left of a blue ring"
    ]
    with pytest.raises(ValueError, match="no sentence of the captions' grammar"):
        possible_values("a photo of a dog", "colour")
    with pytest.raises(ValueError, match="states no place"):
        replace_value(three, "place", 0)


@pytest.mark.parametrize("factor", PROPERTIES)
def test_exchanged_values_are_the_same_words_in_another_order(factor):
    tested = 0
    for caption, meaning in zip(scenes(True).captions(), scenes(True).meanings(), strict=True):
        swapped = swap_values(caption, factor)
        assert len(set(swapped)) == len(swapped) <= {1: 0, 2: 1, 3: 3}[len(meaning.objects)]
        for other in swapped:
            assert sorted(other.split()) == sorted(caption.split()) and other != caption
            changed = parse(other)
            assert changed != meaning and wrong_facts(other, meaning)
            values = lambda m: sorted(getattr(o, factor) for o in m.objects)  # noqa: B023
            assert values(changed) == values(meaning)
            assert len({(o.shape, o.colour) for o in changed.objects}) == len(meaning.objects)
            tested += 1
    assert tested > 5


@pytest.mark.parametrize("video", [False, True])
def test_captions_of_one_to_three_objects(video):
    source, rng = scenes(video), np.random.default_rng(0)
    factors = source.factors()
    for scene, meaning in enumerate(source.meanings()):
        captions = number_captions(factors, scene, rng, motion=video)
        present = len(meaning.objects)
        names = lambda m: {(o.shape, o.colour) for o in m.objects}
        for count, caption in enumerate(captions, start=1):
            stated = parse(caption)
            assert len(stated.objects) == len(names(stated)) == count
            assert len(names(stated) & names(meaning)) == min(count, present)
            assert (stated.place >= 0) == (count == 1)
        assert parse(captions[present - 1]) == meaning
