import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.data.shapes import grammar
from xmodal_jax.data.shapes.grammar import UNSPECIFIED, Meaning, ObjectMeaning, parse, realise
from xmodal_jax.data.shapes.scenes import COLOURS, MOTIONS, PLACES, SHAPES, SIZES, TEXTURES
from xmodal_jax.data.shapes.source import SpokenShapes


@pytest.mark.parametrize("modalities", [("text",), ("text", "video")])
@pytest.mark.parametrize("split", ["train", "compositions"])
def test_parse_inverts_every_phrasing(modalities, split):
    source = SpokenShapes(split, size=307, modalities=modalities)
    meanings = source.meanings(np.arange(307))
    spoken = [source.captions(np.arange(307), phrasing=k) for k in range(8)]
    for captions in spoken:
        assert [parse(c) for c in captions] == meanings
        assert max(len(c.split()) for c in captions) <= 20
    assert np.mean([len(set(c)) for c in zip(*spoken, strict=True)]) > 5
    assert np.array_equal(source.captions([13, 5], phrasing=3), spoken[3][[13, 5]])


things = st.builds(
    ObjectMeaning,
    st.integers(0, 1),
    st.integers(0, 7),
    st.integers(0, 2),
    st.integers(0, 7),
    st.integers(0, 7),
)
bits = st.integers(0, 2**64 - 1)


@given(things, st.integers(0, 8), bits)
def test_one_thing(thing, place, bits):
    meaning = Meaning((thing,), place, ())
    assert parse(realise(meaning, bits)) == meaning


@given(things, things, st.sampled_from([0, 2]), bits)
def test_two_things(a, b, relation, bits):
    meaning = Meaning((a, b), UNSPECIFIED, (relation,))
    assert parse(realise(meaning, bits)) == meaning


@given(things, things, things, st.integers(0, 1), st.integers(2, 3), bits)
def test_three_things(a, b, c, first, second, bits):
    a, b, c = (t._replace(size=UNSPECIFIED, texture=UNSPECIFIED) for t in (a, b, c))
    meaning = Meaning((a, b, c), UNSPECIFIED, (first, second))
    assert parse(realise(meaning, bits)) == meaning


def test_meaning_says_the_factors():
    source = SpokenShapes(size=200, modalities=("text", "video"))
    f = source.factors(np.arange(200))
    for i, meaning in enumerate(source.meanings(np.arange(200))):
        n = f["num_objects"][i]
        said = sorted((t.shape, t.colour, t.motion) for t in meaning.objects)
        assert said == sorted((f["shape"][i, k], f["colour"][i, k], f["motion"][i, k]) for k in range(n))
        if n < 3:
            said = sorted((t.shape, t.colour, t.size, t.texture) for t in meaning.objects)
            names = ("shape", "colour", "size", "texture")
            assert said == sorted(tuple(f[k][i, j] for k in names) for j in range(n))
        assert meaning.place == f["place"][i]
        where = [
            next(k for k in range(n) if (f["shape"][i, k], f["colour"][i, k]) == (t.shape, t.colour))
            for t in meaning.objects
        ]
        for k, relation in enumerate(meaning.relations):
            axis = relation // 2
            a, b = (f["position"][i, where[j], axis] for j in (k, k + 1))
            assert (a > b) == bool(relation % 2)


def test_hand_written_sentences():
    circle = ObjectMeaning(
        SIZES.index("big"), COLOURS.index("red"), TEXTURES.index("striped"), SHAPES.index("circle")
    )
    star = ObjectMeaning(
        SIZES.index("small"), COLOURS.index("orange"), TEXTURES.index("plain"), SHAPES.index("star")
    )
    assert parse("A large red disc with stripes in the top left corner") == Meaning(
        (circle,), PLACES.index("top left"), ()
    )
    pair = Meaning((star, circle), UNSPECIFIED, (0,))
    for text in (
        "a big striped red circle to the right of a tiny orange star",
        "a small plain orange star is left of a big red striped disc",
        "right of a little orange star there is a big red circle with stripes",
    ):
        assert parse(text) == pair
    moving = parse("a big striped red circle going left on the left")
    assert moving.objects[0].motion == MOTIONS.index("left") and PLACES[moving.place] == "left"
    elbow = parse("a blue box right of a red circle and above a green star")
    assert elbow == parse("a red circle left of a blue square that is over a green star")
    assert str(elbow) == "red circle left blue square above green star"


@pytest.mark.parametrize(
    "text",
    ["", "a", "red circle", "a red", "a circle red", "a red circle left of", "a red circle a blue star",
     "hello",
     "a red striped circle with dots", "a red circle left of a blue star on the left", "a redcircle",
     "a red circle left of a blue square which is right of a green star"],
)  # fmt: skip
def test_ungrammatical(text):
    assert parse(text) is None


def test_no_phrase_has_two_senses():
    tables = (
        grammar.SHAPE_WORDS, grammar.COLOUR_WORDS, grammar.SIZE_WORDS, grammar.TEXTURE_WORDS,
        grammar.WITH_TEXTURE,
        grammar.MOTION_WORDS, grammar.PLACE_WORDS, grammar.RELATION_WORDS,
    )  # fmt: skip
    phrases = [p for table in tables for row in table for p in row]
    assert len(phrases) == len(set(phrases))
