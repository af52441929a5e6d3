"""The small English of Spoken Shapes: what a caption means, its phrasings, and the way back to meaning."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
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

UNSAID = -1

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


class Thing(NamedTuple):
    """What is said of one object: indices into the vocabularies of `scenes`, `UNSAID` where nothing is.

    ``motion`` 0 (still) is never put into words.
    """

    size: int
    colour: int
    texture: int
    shape: int
    motion: int = 0


class Meaning(NamedTuple):
    """What a caption says. Captions with the same meaning have equal ``Meaning``, whatever their words.

    ``place``: of a single object, or `UNSAID`. ``relations``: of each thing to the next. The order is
    canonical: of two, the left or upper thing comes first; of three, the first relation is left or right.
    """

    things: tuple[Thing, ...]
    place: int
    relations: tuple[int, ...]

    def __str__(self) -> str:
        def name(names, i):
            return "" if i == UNSAID else names[i]

        parts = []
        for k, t in enumerate(self.things):
            words = [name(SIZES, t.size), COLOURS[t.colour], name(TEXTURES, t.texture), SHAPES[t.shape]]
            words += [f"({MOTIONS[t.motion]})"] if t.motion else []
            words += [RELATIONS[self.relations[k]]] if k < len(self.relations) else []
            parts += [w for w in words if w]
        return " ".join([*parts, "at", PLACES[self.place]] if self.place != UNSAID else parts)


def _canonical(things: Sequence[Thing], relations: Sequence[int]) -> Meaning:
    things, relations = tuple(things), tuple(relations)
    if (len(things) == 2 and relations[0] % 2) or (len(things) == 3 and relations[0] >= 2):
        things, relations = things[::-1], tuple(r ^ 1 for r in relations[::-1])
    return Meaning(things, UNSAID, relations)


def meanings_of(factors: Factors, *, motion: bool = False) -> list[Meaning]:
    """What the caption of each scene says; of motions only if ``motion``.

    One or two objects are described in full; three by colour and shape, which tell them apart and keep it
    short.
    """
    columns = (factors[k].tolist() for k in ("size", "colour", "texture", "shape", "motion"))
    heads = (factors[k].tolist() for k in ("num_objects", "place", "relation", "second_relation"))
    found = []
    for sizes, colours, textures, shapes, motions, n, place, first, second in zip(
        *columns, *heads, strict=True
    ):
        things = [
            Thing(
                sizes[k] if n < 3 else UNSAID, colours[k], textures[k] if n < 3 else UNSAID, shapes[k],
                motions[k] if motion else 0,
            )
            for k in range(n)
        ]  # fmt: skip
        if n == 1:
            found.append(Meaning((things[0],), place, ()))
        else:
            found.append(_canonical(things, (first, second)[: n - 1]))
    return found


class _Chooser:
    """Spends 64 random bits on choices; an empty one (0 bits) always takes the first."""

    __slots__ = ("bits",)

    def __init__(self, bits: int):
        self.bits = bits

    def __call__(self, options):
        self.bits, i = divmod(self.bits, len(options))
        return options[i]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _noun_phrase(t: Thing, choose: _Chooser) -> str:
    words = [] if t.size == UNSAID else [choose(SIZE_WORDS[t.size])]
    colour, after = choose(COLOUR_WORDS[t.colour]), ""
    style = choose((0, 1, 2)) if t.texture > 0 else 3
    if style == 0:
        words += [colour, choose(TEXTURE_WORDS[t.texture])]
    elif style == 1:
        words += [choose(TEXTURE_WORDS[t.texture]), colour]
    else:
        words += [choose(("plain " + colour, colour, colour)) if t.texture == 0 else colour]
        after = " " + choose(WITH_TEXTURE[t.texture]) if t.texture > 0 else ""
    words.append(choose(SHAPE_WORDS[t.shape]))
    moving = " " + choose(MOTION_WORDS[t.motion]) if t.motion else ""
    return _article(" ".join(words)) + after + moving


_ONE = ("{0} {p}", "{0} {p}", "there is {0} {p}", "{p} there is {0}", "{p} is {0}")
_TWO = ("{0} {r} {1}", "there is {0} {r} {1}", "{0} is {r} {1}", "{r} {1} there is {0}", "{r} {1} is {0}")
_THREE = (
    "{0} {r} {1} which is {q} {2}", "{0} {r} {1} that is {q} {2}", "{0} is {r} {1} which is {q} {2}",
    "{1} {s} {0} and {q} {2}", "{1} is {s} {0} and {q} {2}", "{1} {q} {2} and {s} {0}",
)  # fmt: skip


def realise(meaning: Meaning, bits: int) -> str:
    """A caption, lower case without punctuation; ``bits`` (a non-negative integer) chooses the phrasing."""
    choose = _Chooser(bits)
    things, relations = meaning.things, meaning.relations
    if len(things) == 1:
        phrase = _noun_phrase(things[0], choose)
        if meaning.place == UNSAID:
            return phrase
        return choose(_ONE).format(phrase, p=choose(PLACE_WORDS[meaning.place]))
    if choose((0, 1)):
        things, relations = things[::-1], tuple(r ^ 1 for r in relations[::-1])
    nouns = [_noun_phrase(t, choose) for t in things]
    if len(things) == 2:
        return choose(_TWO).format(*nouns, r=choose(RELATION_WORDS[relations[0]]))
    template = choose(_THREE)
    r, s, q = (choose(RELATION_WORDS[x]) for x in (relations[0], relations[0] ^ 1, relations[1]))
    return template.format(*nouns, r=r, s=s, q=q)


# Reading: each phrase becomes a letter (its category) and a value; the letters must form one of the patterns.
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
_THING = re.compile("DS?(?:CT?|TC)NW?M?")
_SENTENCE = re.compile("E?X|E?XP|P[EB]X|E?XRX|XBRX|RX[EB]X|XB?RXHRX|XB?RXARX")


def _read_thing(letters: str, values: Sequence[int]) -> Thing | None:
    said = dict(zip(letters, values, strict=True))
    if "T" in said and "W" in said:
        return None
    texture = said.get("T", said.get("W", UNSAID))
    return Thing(said.get("S", UNSAID), said["C"], texture, said["N"], said.get("M", 0))


def parse(caption: str) -> Meaning | None:
    """What a caption says, or None if it is not a sentence of the grammar; the inverse of `realise`.

    Of one or two objects, one without a texture word is plain. Case and surplus spaces do not matter.
    """
    text, position = " ".join(caption.lower().split()), 0
    letters, values = [], []
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        letter, value = _LEXICON[token.group(1)]
        letters.append(letter)
        values.append(value)
        position = token.end()
    word = "".join(letters)
    things, relations, place = [], [], UNSAID
    for found in _THING.finditer(word):
        thing = _read_thing(found.group(), values[found.start() : found.end()])
        if thing is None:
            return None
        things.append(thing)
    outline = _THING.sub("X", word)
    if not things or _SENTENCE.fullmatch(outline) is None:
        return None
    relations = [v for letter, v in zip(letters, values, strict=True) if letter == "R"]
    place = values[letters.index("P")] if "P" in letters else UNSAID
    if len(things) < 3:
        things = [t._replace(texture=max(t.texture, 0)) for t in things]
    if outline.startswith("R"):  # "left of A there is B"
        things = things[::-1]
    elif outline.endswith("ARX"):  # "B left of A and above C": B is the elbow between A and C
        things, relations = [things[1], things[0], things[2]], [relations[0] ^ 1, relations[1]]
    if len(things) == 1:
        return Meaning((things[0],), place, ())
    if len(things) == 3 and relations[0] // 2 == relations[1] // 2:
        return None  # the scenes of three are L-shaped: one relation along each axis
    return _canonical(things, relations)


def captions_of(meanings: Sequence[Meaning], bits: np.ndarray) -> np.ndarray:
    """Captions, an object array ``[N]`` of str, by the random ``bits`` uint64 ``[N]``."""
    out = np.empty(len(meanings), object)
    out[:] = [realise(m, b) for m, b in zip(meanings, bits.tolist(), strict=True)]
    return out


FACTORS = ("number", "size", "colour", "texture", "shape", "motion", "place", "relation")
"""What `match_factors` tells apart."""


def match_factors(said: Meaning | None, meant: Meaning) -> dict[str, tuple[int, int]]:
    """How much of what is ``meant`` a caption says: by the names of `FACTORS` ``(right, all)``, both counts.

    What ``meant`` leaves unsaid does not count, and a motion where neither has one. Each thing is compared with the one
    of ``said`` that suits it best (of all ways to pair them); a relation is right only between the right things.
    Nothing is right in what is no sentence (None), nor of a thing that is not mentioned.
    """
    best: dict[str, tuple[int, int]] = {}
    things = said.things if said is not None else ()
    # Things in another order, or fewer: None stands for one that is not mentioned.
    padded = (*things, *[None] * (len(meant.things) - len(things)))
    for order in dict.fromkeys(itertools.permutations(padded, len(meant.things))):
        found = {"number": (int(len(things) == len(meant.things)), 1)}
        for name in ("size", "colour", "texture", "shape", "motion"):
            pairs = [
                (getattr(a, name, None), getattr(b, name)) for a, b in zip(order, meant.things, strict=True)
            ]
            if name == "motion":
                pairs = [(a, b) for a, b in pairs if (a or 0) > 0 or b > 0]
            else:
                pairs = [(a, b) for a, b in pairs if b != UNSAID]
            found[name] = (sum(a == b for a, b in pairs), len(pairs))
        if meant.place != UNSAID:
            found["place"] = (int(said is not None and said.place == meant.place), 1)
        if meant.relations:
            same = said is not None and order == things and len(said.relations) == len(meant.relations)
            right = sum(a == b for a, b in zip(said.relations, meant.relations, strict=True)) if same else 0
            found["relation"] = (right, len(meant.relations))
        if not best or sum(r for r, _ in found.values()) > sum(r for r, _ in best.values()):
            best = found
    return best


def factor_accuracies(captions: Sequence[str], meanings: Sequence[Meaning]) -> dict[str, float]:
    """``factor_accuracy``, the share of all factors that the captions say right, ``exact_accuracy``, that of captions
    with all of them right, ``sentence_share``, of what is a sentence at all, and ``<factor>_accuracy`` of each of
    `FACTORS` that occurs."""
    right, total, exact, read = Counter(), Counter(), 0, 0
    for caption, meant in zip(captions, meanings, strict=True):
        said = parse(caption)
        read += said is not None
        found = match_factors(said, meant)
        exact += all(a == b for a, b in found.values()) and said == meant
        for name, (a, b) in found.items():
            right[name] += a
            total[name] += b
    return {
        "factor_accuracy": right.total() / total.total(),
        "exact_accuracy": exact / len(captions),
        "sentence_share": read / len(captions),
        **{f"{name}_accuracy": right[name] / total[name] for name in FACTORS if total[name]},
    }


def mark_wrong_words(caption: str, meant: Meaning) -> list[tuple[str, bool]]:
    """The caption in pieces ``(words, whether they are wrong)``: what names a size, colour, … that no thing of
    ``meant`` has (or none is left that has it), relations if they are not those that are meant, and what is not of the
    grammar."""
    said = parse(caption)
    left = {
        letter: Counter(getattr(t, name) for t in meant.things)
        for letter, name in (
            ("S", "size"),
            ("C", "colour"),
            ("T", "texture"),
            ("N", "shape"),
            ("M", "motion"),
        )
    }
    left["W"], left["P"] = left["T"], Counter([meant.place])
    pieces, text, position = [], " ".join(caption.lower().split()), 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            end = text.find(" ", position)
            end = len(text) if end < 0 else end + 1
            pieces.append((text[position:end].strip(), True))
            position = end
            continue
        letter, value = _LEXICON[token.group(1)]
        if letter == "R":
            wrong = said is None or said.relations != meant.relations
        else:
            # Of three, sizes and textures are left unsaid, so that no one knows.
            known = letter in left and UNSAID not in left[letter]
            wrong = known and left[letter][value] == 0
            if known and not wrong:
                left[letter][value] -= 1
        pieces.append((token.group(1), wrong))
        position = token.end()
    return pieces
