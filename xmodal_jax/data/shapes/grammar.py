"""The grammar of Spoken Shapes' captions: what a scene's caption means, how that is put into words, and parsing."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.shapes.scenes import (
    COLOURS,
    MOTIONS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Factors,
)

UNSPECIFIED = -1
"""Stands for an index where a caption does not mention the property."""

# The phrases of each value, in the order of the vocabularies of `scenes`; the first is the plain one.
SHAPE_WORDS = (
    ("circle", "disc"), ("square", "box"), ("triangle",), ("star",), ("cross",), ("ring", "donut"),
    ("diamond",), ("heart",),
)  # fmt: skip
COLOUR_WORDS = (
    ("red",), ("green",), ("blue",), ("yellow",), ("orange",), ("purple", "violet"), ("cyan", "turquoise"),
    ("white",),
)  # fmt: skip
SIZE_WORDS = (("small", "little", "tiny"), ("big", "large"))
TEXTURE_WORDS = (("plain",), ("striped", "stripy"), ("dotted", "spotted"))
WITH_TEXTURE = ((), ("with stripes",), ("with dots", "with spots"))
RELATION_WORDS = (
    ("left of", "to the left of"), ("right of", "to the right of"), ("above", "over"),
    ("below", "under", "beneath"),
)  # fmt: skip
PLACE_WORDS = tuple(
    (f"in the {p}", f"at the {p}", f"in the {p} corner") if " " in p
    else ("in the middle", "in the center") if p == "middle"
    else (f"on the {p}", f"on the {p} side") if p in ("left", "right")
    else (f"at the {p}",)
    for p in PLACES
)  # fmt: skip
MOTION_WORDS = (
    (), ("moving left", "going left"), ("moving right", "going right"), ("moving up", "going up"),
    ("moving down", "going down"), ("growing", "getting bigger"), ("shrinking", "getting smaller"),
    ("turning", "spinning", "rotating"),
)  # fmt: skip


class ObjectMeaning(NamedTuple):
    """What a caption says of one object: indices into the vocabularies of `scenes`, or `UNSPECIFIED`."""

    size: int
    colour: int
    texture: int
    shape: int
    motion: int = 0
    """0 (still) is never put into words."""


class Meaning(NamedTuple):
    """What a caption says, whatever its words: captions with the same meaning have equal ``Meaning``.

    The order of objects is canonical: of two, the left or upper one comes first; of three, the first relation is left
    or right. ``str`` of a meaning reads well.
    """

    objects: tuple[ObjectMeaning, ...]
    place: int
    """The place of a single object, an index into `scenes.PLACES`; otherwise `UNSPECIFIED`."""
    relations: tuple[int, ...]
    """The relation of each object to the next, indices into `scenes.RELATIONS`."""

    def __str__(self) -> str:
        """The meaning in words, such as "big red plain circle left small blue dotted star"."""
        words = []
        for k, o in enumerate(self.objects):
            words += [SIZES[o.size]] if o.size != UNSPECIFIED else []
            words += [COLOURS[o.colour]]
            words += [TEXTURES[o.texture]] if o.texture != UNSPECIFIED else []
            words += [SHAPES[o.shape]]
            words += [f"({MOTIONS[o.motion]})"] if o.motion else []
            words += [RELATIONS[self.relations[k]]] if k < len(self.relations) else []
        words += ["at", PLACES[self.place]] if self.place != UNSPECIFIED else []
        return " ".join(words)


def _inverse(relation: int) -> int:
    """The relation seen from the other object. `RELATIONS` are left 0, right 1, above 2, below 3: opposite ones differ
    in the last bit."""
    return relation ^ 1


def canonical_meaning(objects: Sequence[ObjectMeaning], relations: Sequence[int]) -> Meaning:
    """The meaning of two or three objects with these relations between neighbours, in the canonical order of `Meaning`:
    reversing the order of the objects inverts their relations."""
    objects, relations = tuple(objects), tuple(relations)
    if (len(objects) == 2 and relations[0] % 2) or (len(objects) == 3 and relations[0] >= 2):
        objects, relations = objects[::-1], tuple(_inverse(r) for r in relations[::-1])
    return Meaning(objects, UNSPECIFIED, relations)


def scene_meanings(factors: Factors, *, motion: bool = False) -> list[Meaning]:
    """The meaning of each scene's caption, from factors ``[N, ...]``; ``motion``: whether it tells how objects move.

    One or two objects are described in full, three by colour and shape only, which tell them apart and keep captions
    short.
    """
    names = (
        "size", "colour", "texture", "shape", "motion", "num_objects", "place", "relation", "second_relation",
    )  # fmt: skip
    columns = [factors[name].tolist() for name in names]
    meanings = []
    # Of a scene: lists by object, then the number of objects n, the place and the two relations.
    for sizes, colours, textures, shapes, motions, n, place, *relations in zip(*columns, strict=True):
        objects = [
            ObjectMeaning(
                size=sizes[k] if n < 3 else UNSPECIFIED,
                colour=colours[k],
                texture=textures[k] if n < 3 else UNSPECIFIED,
                shape=shapes[k],
                motion=motions[k] if motion else 0,
            )
            for k in range(n)
        ]
        if n == 1:
            meanings.append(Meaning((objects[0],), place, relations=()))
        else:
            meanings.append(canonical_meaning(objects, relations[: n - 1]))
    return meanings


class _Chooser:
    """``choose(options)`` takes one of the options by a random integer, ``bits``, and divides it by their number; when
    no bits are left (0) it takes the first option."""

    __slots__ = ("bits",)

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, options):
        self.bits, i = divmod(self.bits, len(options))
        return options[i]


def with_article(noun: str) -> str:
    """``noun`` after "a", or after "an" before a vowel."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _noun_phrase(o: ObjectMeaning, choose: _Chooser) -> str:
    """An object in words, such as "a small red circle with stripes moving left"; ``choose`` decides the wording."""
    words = [] if o.size == UNSPECIFIED else [choose(SIZE_WORDS[o.size])]
    colour, with_texture = choose(COLOUR_WORDS[o.colour]), ""
    if o.texture > 0:  # striped or dotted: the texture comes after the colour, before it, or after the noun
        order = choose(("colour first", "texture first", "texture after the noun"))
        if order == "colour first":
            words += [colour, choose(TEXTURE_WORDS[o.texture])]
        elif order == "texture first":
            words += [choose(TEXTURE_WORDS[o.texture]), colour]
        else:
            words += [colour]
            with_texture = " " + choose(WITH_TEXTURE[o.texture])
    elif o.texture == 0:  # plain, which is mentioned one time in three
        words += [choose(("plain " + colour, colour, colour))]
    else:
        words += [colour]
    words.append(choose(SHAPE_WORDS[o.shape]))
    moving = " " + choose(MOTION_WORDS[o.motion]) if o.motion else ""
    return with_article(" ".join(words)) + with_texture + moving


# Sentences about one, two and three objects {0}, {1}, {2}. {p}: the place; {r}: the relation of {0} to {1}; {s}: its
# inverse; {q}: the relation of {1} to {2}.
_ONE = ("{0} {p}", "{0} {p}", "there is {0} {p}", "{p} there is {0}", "{p} is {0}")
_TWO = ("{0} {r} {1}", "there is {0} {r} {1}", "{0} is {r} {1}", "{r} {1} there is {0}", "{r} {1} is {0}")
_THREE = (
    "{0} {r} {1} which is {q} {2}", "{0} {r} {1} that is {q} {2}", "{0} is {r} {1} which is {q} {2}",
    "{1} {s} {0} and {q} {2}", "{1} is {s} {0} and {q} {2}", "{1} {q} {2} and {s} {0}",
)  # fmt: skip


def realise(meaning: Meaning, bits: int) -> str:
    """A caption with this meaning, in lower case without punctuation. ``bits``: a non-negative random integer that
    chooses the wording; 0 takes the first option everywhere."""
    choose = _Chooser(bits)
    objects, relations = meaning.objects, meaning.relations
    if len(objects) == 1:
        phrase = _noun_phrase(objects[0], choose)
        if meaning.place == UNSPECIFIED:
            return phrase
        return choose(_ONE).format(phrase, p=choose(PLACE_WORDS[meaning.place]))
    # The objects can be named from the last to the first; each relation then becomes its inverse.
    if choose((0, 1)):
        objects, relations = objects[::-1], tuple(_inverse(r) for r in relations[::-1])
    nouns = [_noun_phrase(o, choose) for o in objects]
    if len(objects) == 2:
        return choose(_TWO).format(*nouns, r=choose(RELATION_WORDS[relations[0]]))
    # In the template {r} is the first relation and {q} the second; {s} is the inverse of the first, for wordings that
    # name the second object first.
    template = choose(_THREE)
    first, first_inverse, second = (
        choose(RELATION_WORDS[relation]) for relation in (relations[0], _inverse(relations[0]), relations[1])
    )
    return template.format(*nouns, r=first, s=first_inverse, q=second)


# Parsing: each phrase of a caption becomes a letter (its category) and a value (an index). The letters of a caption
# must form one of the patterns below, in which X stands for a whole object. S size, C colour, T texture, N shape,
# W "with stripes", M motion, P place, R relation, D article, E "there is", B "is", H "which is", A "and".
_LEXICON: dict[str, tuple[str, int]] = {
    phrase: (letter, value)
    for letter, table in (
        ("S", SIZE_WORDS), ("C", COLOUR_WORDS), ("T", TEXTURE_WORDS), ("N", SHAPE_WORDS), ("W", WITH_TEXTURE),
        ("M", MOTION_WORDS), ("P", PLACE_WORDS), ("R", RELATION_WORDS),
    )
    for value, phrases in enumerate(table)
    for phrase in phrases
} | {"a": ("D", 0), "an": ("D", 0), "there is": ("E", 0), "is": ("B", 0), "which is": ("H", 0),
     "that is": ("H", 0), "and": ("A", 0)}  # fmt: skip
_TOKEN = re.compile("(" + "|".join(sorted(map(re.escape, _LEXICON), key=len, reverse=True)) + r")(?: |$)")
OBJECT_PATTERN = re.compile("DS?(?:CT?|TC)NW?M?")
_SENTENCE = re.compile("E?X|E?XP|P[EB]X|E?XRX|XBRX|RX[EB]X|XB?RXHRX|XB?RXARX")


def _read_object(letters: str, values: Sequence[int]) -> ObjectMeaning | None:
    """The object of a noun phrase, given the category letters of its phrases (see `_LEXICON`) and their values; None if
    it names its texture twice."""
    value = dict(zip(letters, values, strict=True))
    if "T" in value and "W" in value:
        return None
    texture = value.get("T", value.get("W", UNSPECIFIED))
    return ObjectMeaning(value.get("S", UNSPECIFIED), value["C"], texture, value["N"], value.get("M", 0))


def caption_tokens(caption: str) -> Iterator[tuple[str, str | None, int]]:
    """Yields ``(words, letter, value)`` of each phrase of a caption, such as ``("red", "C", 0)``: its words, the letter
    of its category (C is colour, see `_LEXICON`), and its index in the category's vocabulary.

    For an unknown word the letter is None and the value 0.
    """
    text, position = " ".join(caption.lower().split()), 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            end = text.find(" ", position)
            end = len(text) if end < 0 else end + 1
            yield text[position:end].strip(), None, 0
            position = end
        else:
            yield token.group(1), *_LEXICON[token.group(1)]
            position = token.end()


def parse(caption: str) -> Meaning | None:
    """The meaning of a caption, or None if it is not a sentence of the grammar; the inverse of `realise`.

    In captions of one or two objects, an object without a texture word is plain. Case and surplus spaces do not matter.
    """
    tokens = list(caption_tokens(caption))
    if any(letter is None for _, letter, _ in tokens):
        return None
    letters, values = [letter for _, letter, _ in tokens], [value for *_, value in tokens]
    sentence = "".join(letters)
    objects = [
        _read_object(match.group(), values[match.start() : match.end()])
        for match in OBJECT_PATTERN.finditer(sentence)
    ]
    # The sentence with "X" for each object, such as "XRX" for "A left of B".
    outline = OBJECT_PATTERN.sub("X", sentence)
    if not objects or None in objects or _SENTENCE.fullmatch(outline) is None:
        return None
    relations = [value for letter, value in zip(letters, values, strict=True) if letter == "R"]
    if len(objects) < 3:  # without a texture word: plain (0) rather than unspecified (-1)
        objects = [o._replace(texture=max(o.texture, 0)) for o in objects]
    if outline.startswith("R"):  # "left of A there is B"
        objects = objects[::-1]
    elif outline.endswith("ARX"):  # "B left of A and above C": the order is A, B, C
        objects, relations = [objects[1], objects[0], objects[2]], [_inverse(relations[0]), relations[1]]
    if len(objects) == 1:
        return Meaning((objects[0],), values[letters.index("P")] if "P" in letters else UNSPECIFIED, ())
    if len(objects) == 3 and relations[0] // 2 == relations[1] // 2:
        return None  # three objects form an L: one relation is horizontal and one vertical
    return canonical_meaning(objects, relations)


def realise_all(meanings: Sequence[Meaning], bits: np.ndarray) -> np.ndarray:
    """A caption for each meaning, object ``[N]`` of str; the random ``bits`` uint64 ``[N]`` choose the wording, see
    `realise`."""
    captions = np.empty(len(meanings), object)
    captions[:] = [realise(m, b) for m, b in zip(meanings, bits.tolist(), strict=True)]
    return captions


FACTORS = ("number", "size", "colour", "texture", "shape", "motion", "place", "relation")
"""The kinds of facts that `match_factors` compares; ``number`` is that of objects."""
_PROPERTIES = ("size", "colour", "texture", "shape", "motion")


def _match_paired(
    pairs: Sequence[tuple[ObjectMeaning | None, ObjectMeaning]],
    caption: Meaning | None,
    reference: Meaning,
    *,
    same_order: bool,
) -> dict[str, tuple[int, int]]:
    """``(right, total)`` counts as in `match_factors`, for one way to pair the objects of the caption with those of the
    reference.

    ``pairs``: ``(caption_object, reference_object)``, None for an object that the caption does not mention.
    ``same_order``: whether the pairing keeps the caption's order of objects, without which its relations are wrong.
    """
    number = len(caption.objects) if caption is not None else 0
    counts = {"number": (int(number == len(reference.objects)), 1)}
    for name in _PROPERTIES:
        # (stated, expected) values of the property.
        values = [(None if a is None else getattr(a, name), getattr(b, name)) for a, b in pairs]
        if name == "motion":  # counts only where one of the two moves
            values = [(stated, expected) for stated, expected in values if (stated or 0) > 0 or expected > 0]
        else:
            values = [(stated, expected) for stated, expected in values if expected != UNSPECIFIED]
        counts[name] = (sum(stated == expected for stated, expected in values), len(values))
    if reference.place != UNSPECIFIED:
        counts["place"] = (int(caption is not None and caption.place == reference.place), 1)
    if reference.relations:
        right = 0
        if same_order and caption is not None and len(caption.relations) == len(reference.relations):
            right = sum(a == b for a, b in zip(caption.relations, reference.relations, strict=True))
        counts["relation"] = (right, len(reference.relations))
    return counts


def match_factors(caption: Meaning | None, reference: Meaning) -> dict[str, tuple[int, int]]:
    """How many facts of ``reference`` a caption states correctly: ``(right, total)`` for each of `FACTORS` that occurs.

    Facts that the reference leaves unspecified do not count, nor does motion where neither object moves. The caption's
    objects are paired with those of the reference in the way that makes the most facts right; a relation is right only
    between the right objects. None, for a caption that is not a sentence, has no fact right.
    """
    best: dict[str, tuple[int, int]] = {}
    objects = caption.objects if caption is not None else ()
    # None stands for an object that the caption does not mention.
    padded = (*objects, *[None] * (len(reference.objects) - len(objects)))
    for order in dict.fromkeys(itertools.permutations(padded, len(reference.objects))):
        pairs = list(zip(order, reference.objects, strict=True))
        counts = _match_paired(pairs, caption, reference, same_order=order == objects)
        if not best or sum(r for r, _ in counts.values()) > sum(r for r, _ in best.values()):
            best = counts
    return best


def factor_accuracies(captions: Sequence[str], meanings: Sequence[Meaning]) -> dict[str, float]:
    """How well captions state the intended ``meanings``, as fractions in [0, 1].

    Returns:
      ``factor_accuracy``: the fraction of all intended facts that are stated correctly (see `match_factors`);
      ``<factor>_accuracy``: the same for the facts about each of `FACTORS` that occurs;
      ``exact_accuracy``: the fraction of captions with exactly the intended meaning;
      ``sentence_share``: the fraction of captions that are sentences of the grammar.
    """
    right, total, exact, sentences = Counter(), Counter(), 0, 0
    for caption, reference in zip(captions, meanings, strict=True):
        meaning = parse(caption)
        sentences += meaning is not None
        counts = match_factors(meaning, reference)
        exact += all(correct == facts for correct, facts in counts.values()) and meaning == reference
        for name, (correct, facts) in counts.items():
            right[name] += correct
            total[name] += facts
    return {
        "factor_accuracy": right.total() / total.total(),
        "exact_accuracy": exact / len(captions),
        "sentence_share": sentences / len(captions),
        **{f"{name}_accuracy": right[name] / total[name] for name in FACTORS if total[name]},
    }


def mark_wrong_words(caption: str, reference: Meaning) -> list[tuple[str, bool]]:
    """The caption in pieces ``(words, wrong)``, ``wrong`` a bool.

    A property such as a colour is wrong if no object of ``reference`` has it, or if the caption mentions it more often
    than there are such objects; relations are wrong unless all are those of the reference; and words outside the
    grammar are wrong.
    """
    meaning = parse(caption)
    # How often each value of a property may still be mentioned, by the category letter of its words (see `_LEXICON`).
    properties = {"S": "size", "C": "colour", "T": "texture", "N": "shape", "M": "motion"}
    remaining = {k: Counter(getattr(o, name) for o in reference.objects) for k, name in properties.items()}
    remaining["W"], remaining["P"] = remaining["T"], Counter([reference.place])
    pieces = []
    for words, letter, value in caption_tokens(caption):
        if letter is None:
            wrong = True
        elif letter == "R":
            wrong = meaning is None or meaning.relations != reference.relations
        else:
            # The reference does not specify sizes and textures of three objects: they cannot be wrong.
            known = letter in remaining and UNSPECIFIED not in remaining[letter]
            wrong = known and remaining[letter][value] == 0
            if known and not wrong:
                remaining[letter][value] -= 1
        pieces.append((words, wrong))
    return pieces
