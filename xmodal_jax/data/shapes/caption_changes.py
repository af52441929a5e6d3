"""Changed captions of Spoken Shapes: captions with one fact changed, and otherwise in the same words.

Only a model that reads every word tells the right caption from one with a value replaced (`replace_value`), and only
one that also reads the order of words tells it from one with two values swapped (`swap_values`)::

    replace_value("a small red star on the left", "colour", 2)  # "a small blue star on the left"
    swap_values("a small red star above a big blue ring", "colour")  # ["a small blue star above a big red ring"]
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.shapes.grammar import (
    COLOUR_WORDS,
    MOTION_WORDS,
    OBJECT_PATTERN,
    PLACE_WORDS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    UNSPECIFIED,
    WITH_TEXTURE,
    Meaning,
    ObjectMeaning,
    canonical_meaning,
    caption_tokens,
    parse,
    realise,
    with_article,
)
from xmodal_jax.data.shapes.scenes import COLOURS, MAX_OBJECTS, RELATIONS, SHAPES, SIZES, TEXTURES, Factors
from xmodal_jax.data.source import RawBatch

# How the words of a caption are taken apart: its tokens, each of a category that a letter stands for.


class _Token(NamedTuple):
    """A phrase of a caption, see `grammar.caption_tokens`."""

    words: str
    letter: str
    value: int


_Part = tuple[_Token, ...]
"""An object's noun phrase with its article, or one token outside of these."""
_PHRASES = {
    "S": SIZE_WORDS, "C": COLOUR_WORDS, "T": TEXTURE_WORDS, "W": WITH_TEXTURE, "N": SHAPE_WORDS, "M": MOTION_WORDS,
    "P": PLACE_WORDS, "R": RELATION_WORDS,
}  # fmt: skip
"""The phrases of each value, by the letter of their category."""
_LETTERS = {
    "shape": "N", "colour": "C", "size": "S", "texture": "TW", "motion": "M", "place": "P", "relation": "R",
}  # fmt: skip
"""By factor, the letters of the categories that state it."""
STATED_FACTORS = tuple(_LETTERS)
"""The factors that a phrase of a caption states."""
PROPERTIES = ("shape", "colour", "size", "texture")
"""The factors that each object of a scene has, without its motion."""


def possible_values(caption: str, factor: str, number: int = 0) -> list[int]:
    """The values that ``factor`` could have in a caption, as indices into the vocabularies of `scenes`: first the one
    that the caption states, then all others. Empty if it does not state the factor.

    In scenes of several objects, values that would make two objects alike in shape and colour are left out; and in
    those of three, a relation can only become its opposite. The data set has no such scenes.

    Args:
      caption: a sentence of the grammar.
      factor: of `STATED_FACTORS`.
      number: of the object or the relation, from 0 in the order of mention.

    Raises:
      ValueError: ``caption`` is no sentence of the grammar.

    Example::

        possible_values("a small red star on the left", "size")  # [0, 1]: small, big
    """
    parts = _take_apart(caption)
    place = _part_about(parts, factor, number)
    value = None if place is None else _value(parts, place, factor)
    if value is None:
        return []
    values = range(len(_PHRASES[_LETTERS[factor][0]]))
    objects = [k for k, part in enumerate(parts) if len(part) > 1]
    if factor == "relation" and len(objects) == MAX_OBJECTS:
        values = (value ^ 1,)  # left 0, right 1, above 2, below 3
    elif factor in ("shape", "colour"):
        other = "colour" if factor == "shape" else "shape"
        same_other = [k for k in objects if _value(parts, k, other) == _value(parts, place, other)]
        taken = {_value(parts, k, factor) for k in same_other}
        values = [v for v in values if v not in taken]
    return [value, *(v for v in values if v != value)]


def replace_value(caption: str, factor: str, value: int, number: int = 0) -> str:
    """The caption with another ``value`` of a factor that it states, again a sentence of the grammar.

    Args:
      caption, factor, number: see `possible_values`.
      value: one of the `possible_values`.

    Raises:
      ValueError: the caption is no sentence of the grammar, or does not state the factor.
    """
    parts = [*_take_apart(caption)]
    place = _part_about(parts, factor, number)
    stated = None if place is None else _value(parts, place, factor)
    if stated is None:
        raise ValueError(f"{caption!r} states no {factor} with the number {number}")
    if stated == value:
        return caption
    parts[place] = _with_value(parts[place], factor, stated, value)
    return _join(parts)


def swap_values(caption: str, factor: str) -> list[str]:
    """The captions in which two objects have swapped their values of ``factor``, one of `PROPERTIES`: the same words in
    another order, "a red star above a blue ring" for "a blue star above a red ring".

    There is one for each pair of objects with different values, without captions in which two objects would be alike in
    shape and colour.

    Raises:
      ValueError: ``caption`` is no sentence of the grammar.
    """
    parts = _take_apart(caption)
    objects = [k for k, part in enumerate(parts) if len(part) > 1]
    letters, captions = _LETTERS[factor], []
    for a, b in itertools.combinations(objects, 2):
        if _value(parts, a, factor) == _value(parts, b, factor):
            continue
        tokens = [next((t for t in parts[k] if t.letter in letters), None) for k in (a, b)]
        changed = [*parts]
        changed[a], changed[b] = (
            _with_token(parts[k], letters, token) for k, token in zip((a, b), tokens[::-1], strict=True)
        )
        if not _has_equal_objects(changed):
            captions.append(_join(changed))
    return captions


class AddChangedCaptions:
    """A transform of raw batches that adds changed captions, hard negatives of a contrastive loss.

    To ``caption``, strings ``[B]``, it adds ``caption_changed``, strings ``[B, count]``. In scenes of several objects
    two of them swap their values of a property (`swap_values`), or a relation is replaced, so that the order of words
    matters; in other scenes, such as those of one object, a random factor has another value (`replace_value`). The
    random choices depend on the caption alone, and some of the ``count`` captions may be equal. A caption that is no
    sentence of the grammar is repeated as it is.

    Args:
      count: number of changed captions for each caption.
      motion: whether captions tell how objects move.

    Example::

        batch = AddChangedCaptions(2)({"caption": np.array(["a small red star above a big blue ring"], object)})
        batch["caption_changed"][0].tolist()
        # such as ["a small red star below a big blue ring", "a big red star above a small blue ring"]
    """

    def __init__(self, count: int, *, motion: bool = False):
        if count < 1:
            raise ValueError(f"the number of changed captions must be at least 1, got {count}")
        self.count = count
        self._factors = tuple(name for name in STATED_FACTORS if motion or name != "motion")

    def __call__(self, batch: RawBatch) -> RawBatch:
        """The batch with ``caption_changed``."""
        captions = np.asarray(batch["caption"])
        changed = np.empty((len(captions), self.count), object)
        for row, caption in zip(changed, captions.tolist(), strict=True):
            row[:] = self._change(caption)
        return {**batch, "caption_changed": changed}

    def _change(self, caption: str) -> list[str]:
        """``count`` changed captions; ``caption`` itself, as often, if it is no sentence of the grammar."""
        if parse(caption) is None:
            return [caption] * self.count
        rng = np.random.Generator(np.random.Philox(zlib.crc32(caption.encode())))
        return [self._change_order(caption, rng) or self._replace(caption, rng) for _ in range(self.count)]

    def _replace(self, caption: str, rng: np.random.Generator, factors: Sequence[str] = ()) -> str | None:
        """The caption with another value of a random factor (of ``factors``, if given); None: it states none."""
        facts = [(factor, k) for factor in factors or self._factors for k in range(MAX_OBJECTS)]
        for index in rng.permutation(len(facts)):
            factor, number = facts[index]
            if len(values := possible_values(caption, factor, number)) > 1:
                return replace_value(caption, factor, values[rng.integers(1, len(values))], number)
        return None

    def _change_order(self, caption: str, rng: np.random.Generator) -> str | None:
        """The caption with two values swapped or a relation replaced; None: it has one object, or no such change."""
        if rng.random() < 0.5 and (changed := self._replace(caption, rng, ("relation",))):
            return changed
        for index in rng.permutation(len(PROPERTIES)):
            if captions := swap_values(caption, PROPERTIES[index]):
                return captions[rng.integers(len(captions))]
        return None


def number_captions(
    factors: Factors, scene: int, rng: np.random.Generator, *, motion: bool = False
) -> list[str]:
    """Captions of one, two and three objects for a scene: as many of its own objects as that, and where it has fewer,
    objects drawn by ``rng`` besides.

    The caption with the scene's number of objects is right. Two objects that remain keep their relation, and the place
    of one that remains is the one where it lies.

    Args:
      factors: of N scenes, see `scenes.sample_factors`.
      scene: the index of the scene among these.
      rng: chooses what is left out, what is added, and the words.
      motion: whether captions tell how objects move.
    """
    row = {name: values[scene] for name, values in factors.items()}
    present = int(row["num_objects"])
    captions = []
    for count in range(1, MAX_OBJECTS + 1):
        # Neighbours in the order of the relations remain.
        first = int(rng.integers(0, max(present - count, 0) + 1))
        numbers = range(first, first + min(count, present))
        objects = [_object_of(row, k, motion) for k in numbers]
        relations = [int(row[("relation", "second_relation")[k]]) for k in numbers[:-1]]
        while len(objects) < count:
            objects.append(_new_object(objects, rng))
            # A second relation is on the other axis than the first (left 0, right 1, above 2, below 3).
            axis = 1 - relations[0] // 2 if relations else int(rng.integers(0, len(RELATIONS) // 2))
            relations.append(2 * axis + int(rng.integers(0, 2)))
        if count == 1:
            meaning = Meaning((objects[0],), _place(row["position"][first]), ())
        else:
            if count == MAX_OBJECTS:  # captions of three objects state no size and no texture
                objects = [o._replace(size=UNSPECIFIED, texture=UNSPECIFIED) for o in objects]
            meaning = canonical_meaning(objects, relations)
        captions.append(realise(meaning, int(rng.integers(0, 2**63))))
    return captions


def _object_of(row: Mapping[str, Any], k: int, motion: bool) -> ObjectMeaning:
    """The object ``k`` of a scene, in full. ``row``: the scene's factors."""
    size, colour, texture, shape = (int(row[name][k]) for name in ("size", "colour", "texture", "shape"))
    return ObjectMeaning(size, colour, texture, shape, int(row["motion"][k]) if motion else 0)


def _new_object(objects: list[ObjectMeaning], rng: np.random.Generator) -> ObjectMeaning:
    """A random object that is not alike in shape and colour to any of ``objects``."""
    while True:
        size, colour, texture, shape = (
            int(rng.integers(0, len(x))) for x in (SIZES, COLOURS, TEXTURES, SHAPES)
        )
        if all((o.shape, o.colour) != (shape, colour) for o in objects):
            return ObjectMeaning(size, colour, texture, shape)


def _place(position: np.ndarray) -> int:
    """The index into `scenes.PLACES` of the cell that holds ``position`` (x, y); see `scenes.sample_factors`."""
    column, line = np.digitize(position, (0.4, 0.6)).tolist()
    return 3 * line + column


@functools.lru_cache(maxsize=8)
def _take_apart(caption: str) -> tuple[_Part, ...]:
    """The parts of a caption: each an object's noun phrase with its article, or one token outside of these."""
    if parse(caption) is None:
        raise ValueError(f"{caption!r} is no sentence of the captions' grammar")
    tokens = [_Token(*token) for token in caption_tokens(caption)]
    parts, position = [], 0
    for match in OBJECT_PATTERN.finditer("".join(token.letter for token in tokens)):
        parts += [(token,) for token in tokens[position : match.start()]]
        parts.append(tuple(tokens[match.start() : match.end()]))
        position = match.end()
    return (*parts, *((token,) for token in tokens[position:]))


def _join(parts: Sequence[_Part]) -> str:
    """The caption with these parts; articles follow the words after them."""
    words: list[str] = []
    for part in parts:
        texts = [token.words for token in part]
        words += texts if part[0].letter != "D" else [with_article(" ".join(texts[1:]))]
    return " ".join(words)


def _part_about(parts: Sequence[_Part], factor: str, number: int) -> int | None:
    """The index of the part that states ``factor``: the noun phrase of the object ``number`` in the order of mention,
    the relation of this number, or the place. None: there is none."""
    is_of_object = factor in (*PROPERTIES, "motion")
    matches = [
        k for k, p in enumerate(parts) if (len(p) > 1 if is_of_object else p[0].letter == _LETTERS[factor])
    ]
    return matches[number] if number < len(matches) else None


def _value(parts: Sequence[_Part], place: int, factor: str) -> int | None:
    """The value of ``factor`` that the part at ``place`` states, also without a word (plain, still); None: none."""
    token = next((t for t in parts[place] if t.letter in _LETTERS[factor]), None)
    if token is not None:
        return token.value
    unsaid = factor == "motion" or (
        factor == "texture" and sum(len(part) > 1 for part in parts) < MAX_OBJECTS
    )
    return 0 if unsaid else None


def _has_equal_objects(parts: Sequence[_Part]) -> bool:
    """Whether two objects are alike in shape and colour."""
    tokens = [token for part in parts for token in part]
    shapes, colours = ([t.value for t in tokens if t.letter == letter] for letter in "NC")
    return len(set(zip(shapes, colours, strict=True))) < len(shapes)


def _with_value(phrase: _Part, factor: str, value: int, new_value: int) -> _Part:
    """The phrase with ``new_value`` of ``factor`` in place of ``value``, in the synonym of the same number."""
    letters = _LETTERS[factor]
    index = next((k for k, t in enumerate(phrase) if t.letter in letters), None)
    if index is None:  # plain or still, without a word
        letter, choice = letters[0], 0
    else:
        letter, choice = (
            phrase[index].letter,
            _PHRASES[phrase[index].letter][value].index(phrase[index].words),
        )
    is_unsaid = new_value == 0 and (
        factor == "motion" or (factor == "texture" and not _before_colour(phrase, index))
    )
    if is_unsaid:
        return _with_token(phrase, letters, None)
    options = _PHRASES[letter][new_value]
    return _with_token(phrase, letters, _Token(options[choice % len(options)], letter, new_value))


def _before_colour(phrase: _Part, index: int | None) -> bool:
    """Whether the token ``index`` comes directly before the colour."""
    return index is not None and index + 1 < len(phrase) and phrase[index + 1].letter == "C"


def _with_token(phrase: _Part, letters: str, token: _Token | None) -> _Part:
    """The phrase with ``token`` in place of the one of the categories ``letters``; None: without that.

    "plain" stands before the colour; other textures stand where the phrase's texture stood, else after the colour.
    """
    index = next((k for k, t in enumerate(phrase) if t.letter in letters), None)
    is_plain = token is not None and token.letter == "T" and token.value == 0
    if index is not None and token is not None and token.letter == phrase[index].letter and not is_plain:
        return (*phrase[:index], token, *phrase[index + 1 :])
    rest = tuple(t for t in phrase if t.letter not in letters)
    if token is None:
        return rest
    order = "".join(t.letter for t in rest)
    if token.letter == "T":
        at = order.index("C") + (not is_plain)
    elif token.letter == "W":
        at = order.index("N") + 1
    else:  # a motion
        at = len(rest)
    return (*rest[:at], token, *rest[at:])
