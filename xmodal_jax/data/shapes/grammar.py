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
"""In place of an index: the caption does not say."""

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
        def name(names, i):
            return "" if i == UNSPECIFIED else names[i]

        parts = []
        for k, o in enumerate(self.objects):
            words = [name(SIZES, o.size), COLOURS[o.colour], name(TEXTURES, o.texture), SHAPES[o.shape]]
            words += [f"({MOTIONS[o.motion]})"] if o.motion else []
            words += [RELATIONS[self.relations[k]]] if k < len(self.relations) else []
            parts += [w for w in words if w]
        return " ".join([*parts, "at", PLACES[self.place]] if self.place != UNSPECIFIED else parts)


def _inverse(relation: int) -> int:
    """The same relation seen from the other object: `RELATIONS` are numbered in inverse pairs, 0 left and 1 right, 2
    above and 3 below."""
    return relation ^ 1


def _canonical(objects: Sequence[ObjectMeaning], relations: Sequence[int]) -> Meaning:
    """The meaning with its objects in the order that `Meaning` describes."""
    objects, relations = tuple(objects), tuple(relations)
    if (len(objects) == 2 and relations[0] % 2) or (len(objects) == 3 and relations[0] >= 2):
        objects, relations = objects[::-1], tuple(_inverse(r) for r in relations[::-1])
    return Meaning(objects, UNSPECIFIED, relations)


def scene_meanings(factors: Factors, *, motion: bool = False) -> list[Meaning]:
    """What the caption of each scene says, from factors ``[N, ...]``; ``motion``: whether it tells how objects move.

    One or two objects are described in full; three by colour and shape, which tell them apart and keep it short.
    """
    columns = (factors[k].tolist() for k in ("size", "colour", "texture", "shape", "motion"))
    heads = (factors[k].tolist() for k in ("num_objects", "place", "relation", "second_relation"))
    meanings = []
    for sizes, colours, textures, shapes, motions, n, place, first, second in zip(
        *columns, *heads, strict=True
    ):
        objects = [
            ObjectMeaning(
                sizes[k] if n < 3 else UNSPECIFIED, colours[k], textures[k] if n < 3 else UNSPECIFIED, shapes[k],
                motions[k] if motion else 0,
            )
            for k in range(n)
        ]  # fmt: skip
        if n == 1:
            meanings.append(Meaning((objects[0],), place, ()))
        else:
            meanings.append(_canonical(objects, (first, second)[: n - 1]))
    return meanings


class _Chooser:
    """Spends random bits on choices; when none are left (0) it takes the first option."""

    __slots__ = ("bits",)

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, options):
        self.bits, i = divmod(self.bits, len(options))
        return options[i]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _noun_phrase(o: ObjectMeaning, choose: _Chooser) -> str:
    words = [] if o.size == UNSPECIFIED else [choose(SIZE_WORDS[o.size])]
    colour, after = choose(COLOUR_WORDS[o.colour]), ""
    style = choose((0, 1, 2)) if o.texture > 0 else 3
    if style == 0:
        words += [colour, choose(TEXTURE_WORDS[o.texture])]
    elif style == 1:
        words += [choose(TEXTURE_WORDS[o.texture]), colour]
    else:
        words += [choose(("plain " + colour, colour, colour)) if o.texture == 0 else colour]
        after = " " + choose(WITH_TEXTURE[o.texture]) if o.texture > 0 else ""
    words.append(choose(SHAPE_WORDS[o.shape]))
    moving = " " + choose(MOTION_WORDS[o.motion]) if o.motion else ""
    return _article(" ".join(words)) + after + moving


# Sentences of one, two and three objects; {r}, {q} are relations to the next object, {s} is the inverse of {r}.
_ONE = ("{0} {p}", "{0} {p}", "there is {0} {p}", "{p} there is {0}", "{p} is {0}")
_TWO = ("{0} {r} {1}", "there is {0} {r} {1}", "{0} is {r} {1}", "{r} {1} there is {0}", "{r} {1} is {0}")
_THREE = (
    "{0} {r} {1} which is {q} {2}", "{0} {r} {1} that is {q} {2}", "{0} is {r} {1} which is {q} {2}",
    "{1} {s} {0} and {q} {2}", "{1} is {s} {0} and {q} {2}", "{1} {q} {2} and {s} {0}",
)  # fmt: skip


def realise(meaning: Meaning, bits: int) -> str:
    """A caption of this meaning, in lower case without punctuation; ``bits``, a non-negative integer, chooses the
    wording."""
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
    template = choose(_THREE)
    first, first_inverse, second = (
        choose(RELATION_WORDS[relation]) for relation in (relations[0], _inverse(relations[0]), relations[1])
    )
    return template.format(*nouns, r=first, s=first_inverse, q=second)


# Parsing: each phrase becomes a letter (its category) and a value; the letters must form one of the patterns.
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
_OBJECT = re.compile("DS?(?:CT?|TC)NW?M?")
_SENTENCE = re.compile("E?X|E?XP|P[EB]X|E?XRX|XBRX|RX[EB]X|XB?RXHRX|XB?RXARX")


def _read_object(letters: str, values: Sequence[int]) -> ObjectMeaning | None:
    value = dict(zip(letters, values, strict=True))
    if "T" in value and "W" in value:
        return None
    texture = value.get("T", value.get("W", UNSPECIFIED))
    return ObjectMeaning(value.get("S", UNSPECIFIED), value["C"], texture, value["N"], value.get("M", 0))


def _tokens(caption: str) -> Iterator[tuple[str, str | None, int]]:
    """The phrases of a caption ``(words, letter, value)`` by `_LEXICON`; a word that it does not have has no letter."""
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
    """What a caption says, or None if it is not a sentence of the grammar; the inverse of `realise`.

    Of one or two objects, one without a texture word is plain. Case and surplus spaces do not matter.
    """
    tokens = list(_tokens(caption))
    if any(letter is None for _, letter, _ in tokens):
        return None
    letters, values = [letter for _, letter, _ in tokens], [value for *_, value in tokens]
    sentence = "".join(letters)
    objects = [
        _read_object(match.group(), values[match.start() : match.end()])
        for match in _OBJECT.finditer(sentence)
    ]
    outline = _OBJECT.sub("X", sentence)
    if not objects or None in objects or _SENTENCE.fullmatch(outline) is None:
        return None
    relations = [value for letter, value in zip(letters, values, strict=True) if letter == "R"]
    if len(objects) < 3:
        objects = [o._replace(texture=max(o.texture, 0)) for o in objects]
    if outline.startswith("R"):  # "left of A there is B"
        objects = objects[::-1]
    elif outline.endswith("ARX"):  # "B left of A and above C": B is the elbow between A and C
        objects, relations = [objects[1], objects[0], objects[2]], [_inverse(relations[0]), relations[1]]
    if len(objects) == 1:
        return Meaning((objects[0],), values[letters.index("P")] if "P" in letters else UNSPECIFIED, ())
    if len(objects) == 3 and relations[0] // 2 == relations[1] // 2:
        return None  # the scenes of three are L-shaped: one relation along each axis
    return _canonical(objects, relations)


def realise_all(meanings: Sequence[Meaning], bits: np.ndarray) -> np.ndarray:
    """A caption of each meaning, object ``[N]`` of str, worded by the random ``bits`` uint64 ``[N]``; see `realise`."""
    captions = np.empty(len(meanings), object)
    captions[:] = [realise(m, b) for m, b in zip(meanings, bits.tolist(), strict=True)]
    return captions


FACTORS = ("number", "size", "colour", "texture", "shape", "motion", "place", "relation")
"""The kinds of facts that `match_factors` compares; ``number`` is that of objects."""
_PROPERTIES = ("size", "colour", "texture", "shape", "motion")


def _match_paired(
    pairs: Sequence[tuple[ObjectMeaning | None, ObjectMeaning]],
    same_order: bool,
    caption: Meaning | None,
    reference: Meaning,
) -> dict[str, tuple[int, int]]:
    """`match_factors` for one way to pair the objects of the caption with those of the reference."""
    number = len(caption.objects) if caption is not None else 0
    counts = {"number": (int(number == len(reference.objects)), 1)}
    for name in _PROPERTIES:
        values = [(None if a is None else getattr(a, name), getattr(b, name)) for a, b in pairs]
        if name == "motion":
            values = [(a, b) for a, b in values if (a or 0) > 0 or b > 0]
        else:
            values = [(a, b) for a, b in values if b != UNSPECIFIED]
        counts[name] = (sum(a == b for a, b in values), len(values))
    if reference.place != UNSPECIFIED:
        counts["place"] = (int(caption is not None and caption.place == reference.place), 1)
    if reference.relations:
        right = 0
        if same_order and caption is not None and len(caption.relations) == len(reference.relations):
            right = sum(a == b for a, b in zip(caption.relations, reference.relations, strict=True))
        counts["relation"] = (right, len(reference.relations))
    return counts


def match_factors(caption: Meaning | None, reference: Meaning) -> dict[str, tuple[int, int]]:
    """How much of ``reference`` a caption says: ``(right, total)`` counts for each of `FACTORS` that occurs.

    What the reference leaves unspecified does not count, nor does motion where neither has any. Objects are paired in
    the way that makes most of it right; a relation is right only between the right objects. None, a caption that is no
    sentence, has nothing right; nor has an object that it does not mention.
    """
    best: dict[str, tuple[int, int]] = {}
    objects = caption.objects if caption is not None else ()
    # None stands for an object that the caption does not mention.
    padded = (*objects, *[None] * (len(reference.objects) - len(objects)))
    for order in dict.fromkeys(itertools.permutations(padded, len(reference.objects))):
        pairs = list(zip(order, reference.objects, strict=True))
        counts = _match_paired(pairs, order == objects, caption, reference)
        if not best or sum(r for r, _ in counts.values()) > sum(r for r, _ in best.values()):
            best = counts
    return best


def factor_accuracies(captions: Sequence[str], meanings: Sequence[Meaning]) -> dict[str, float]:
    """How well captions say what is meant, fractions in [0, 1].

    Returns:
      ``factor_accuracy``: of all facts that are meant, those said right (see `match_factors`);
      ``<factor>_accuracy``: the same of each of `FACTORS` that occurs;
      ``exact_accuracy``: captions that mean exactly what is meant;
      ``sentence_share``: captions that are a sentence of the grammar.
    """
    right, total, exact, sentences = Counter(), Counter(), 0, 0
    for caption, reference in zip(captions, meanings, strict=True):
        meaning = parse(caption)
        sentences += meaning is not None
        counts = match_factors(meaning, reference)
        exact += all(a == b for a, b in counts.values()) and meaning == reference
        for name, (a, b) in counts.items():
            right[name] += a
            total[name] += b
    return {
        "factor_accuracy": right.total() / total.total(),
        "exact_accuracy": exact / len(captions),
        "sentence_share": sentences / len(captions),
        **{f"{name}_accuracy": right[name] / total[name] for name in FACTORS if total[name]},
    }


def mark_wrong_words(caption: str, reference: Meaning) -> list[tuple[str, bool]]:
    """The caption in pieces ``(words, whether they are wrong)``.

    Wrong are: a size, colour or other property that no object of ``reference`` has (or none is left that has it);
    relations, if they are not those of the reference; and words that are not of the grammar.
    """
    meaning = parse(caption)
    properties = {"S": "size", "C": "colour", "T": "texture", "N": "shape", "M": "motion"}
    remaining = {k: Counter(getattr(o, name) for o in reference.objects) for k, name in properties.items()}
    remaining["W"], remaining["P"] = remaining["T"], Counter([reference.place])
    pieces = []
    for words, letter, value in _tokens(caption):
        if letter is None:
            wrong = True
        elif letter == "R":
            wrong = meaning is None or meaning.relations != reference.relations
        else:
            # Of three objects, sizes and textures are unspecified, so that they cannot be judged.
            known = letter in remaining and UNSPECIFIED not in remaining[letter]
            wrong = known and remaining[letter][value] == 0
            if known and not wrong:
                remaining[letter][value] -= 1
        pieces.append((words, wrong))
    return pieces
