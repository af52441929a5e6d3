"""Questions with answers about scenes of Spoken Shapes."""

from __future__ import annotations

import numpy as np

from xmodal_jax.data.shapes.scenes import COLOURS, MOTIONS, RELATIONS, SHAPES, Factors, hash_bits

QUESTION_KINDS = ("existence", "colour", "shape", "count", "relation", "motion")
NUMBERS = ("one", "two", "three")
ANSWERS = (
    "yes",
    "no",
    *COLOURS,
    *SHAPES,
    *NUMBERS,
    *RELATIONS,
    "still",
    "up",
    "down",
    "growing",
    "shrinking",
    "turning",
)
"""Every answer to every question. A motion to the left or right is answered by ``left`` or ``right``."""

_COUNT_QUESTIONS = ("how many objects are there", "how many things do you see", "count the objects")

Question = tuple[str, str, str]
"""``(kind, question, answer)``: one of `QUESTION_KINDS`, a sentence without punctuation, one of `ANSWERS`."""


def _name(pair: tuple[int, int]) -> str:
    """The words for a (shape, colour) pair."""
    return f"{COLOURS[pair[1]]} {SHAPES[pair[0]]}"


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def scene_at(factors: Factors, i: int) -> dict:
    """The factors of scene ``i`` as Python numbers and lists."""
    return {name: value[i].tolist() for name, value in factors.items()}


def _ask_existence(bits: int, pairs: list, foil: dict) -> Question:
    bits, k = divmod(bits, len(pairs))
    absent = [p for p in zip(foil["shape"], foil["colour"], strict=True) if p[0] >= 0 and p not in pairs]
    exists = bits % 2 == 0 or not absent
    pair = pairs[k] if exists else absent[(bits // 2) % len(absent)]
    return "existence", f"is there {_with_article(_name(pair))}", "yes" if exists else "no"


def _ask_colour_and_shape(colour_bits: int, shape_bits: int, pairs: list) -> list[Question]:
    """The colour of an object of a unique shape, and the shape of an object of a unique colour."""
    unique = [[p for p in pairs if sum(q[part] == p[part] for q in pairs) == 1] for part in (0, 1)]
    questions = []
    if unique[0]:
        shape, colour = unique[0][colour_bits % len(unique[0])]
        questions.append(("colour", f"what colour is the {SHAPES[shape]}", COLOURS[colour]))
    if unique[1]:
        shape, colour = unique[1][shape_bits % len(unique[1])]
        questions.append(("shape", f"what shape is the {COLOURS[colour]} one", SHAPES[shape]))
    return questions


def _ask_relation(bits: int, pairs: list, scene: dict, both_ways: bool) -> list[Question]:
    bits, k = divmod(bits, len(pairs) - 1)
    bits, swap = divmod(bits, 2)
    relation = (scene["relation"], scene["second_relation"])[k] ^ swap
    first, second = (_name(pairs[k + swap]), _name(pairs[k + 1 - swap]))
    stated = relation if (bits // 2) % 2 == 0 else (relation + 1 + (bits // 4) % 3) % 4
    words = RELATIONS[stated] + (" of" if stated < 2 else "")
    # Opposite relations differ in the last bit.
    orders = [(first, second, relation), (second, first, relation ^ 1)]
    questions = []
    for one, other, true in orders[: 1 + both_ways]:
        if bits % 2:
            questions.append(("relation", f"where is the {one} from the {other}", RELATIONS[true]))
        else:
            answer = "yes" if stated == true else "no"
            questions.append(("relation", f"is the {one} {words} the {other}", answer))
    return questions


def _ask_motion(bits: int, pairs: list, scene: dict) -> Question:
    # Mostly about the object that moves: "still" must not be the best guess.
    movers = [k for k in range(len(pairs)) if scene["motion"][k] > 0]
    bits, ask_other = divmod(bits, 16)
    others = [k for k in range(len(pairs)) if k not in movers]
    k = others[bits % len(others)] if others and (not movers or ask_other == 0) else movers[0]
    return "motion", f"how does the {_name(pairs[k])} move", MOTIONS[scene["motion"][k]]


def scene_questions(
    factors: Factors,
    foils: Factors,
    seed: int,
    split: str,
    index: np.ndarray,
    *,
    motion: bool,
    both_ways: bool = False,
) -> list[list[Question]]:
    """The questions about each scene; kinds that do not apply to a scene are left out.

    Args:
      factors: the scenes, arrays ``[N, ...]`` (see `scenes.sample_factors`).
      foils: other scenes ``[N, ...]`` of the same split. A question about an absent object takes its name from the
        foil, so that the objects of the answer "no" are distributed as those of "yes".
      seed, split, index: what the choice of questions is drawn from; ``index`` int ``[N]``.
      motion: whether to ask how an object moves.
      both_ways: whether to ask each question about a relation once more with the two objects exchanged, which makes
        another answer of the same image and the same words.
    """
    bits = {kind: hash_bits(seed, split, index, f"question/{kind}").tolist() for kind in QUESTION_KINDS}
    questions = []
    for i in range(len(index)):
        scene, foil = scene_at(factors, i), scene_at(foils, i)
        n = scene["num_objects"]
        pairs = list(zip(scene["shape"], scene["colour"], strict=True))[:n]
        in_scene = [_ask_existence(bits["existence"][i], pairs, foil)]
        in_scene += _ask_colour_and_shape(bits["colour"][i], bits["shape"][i], pairs)
        in_scene.append(("count", _COUNT_QUESTIONS[bits["count"][i] % len(_COUNT_QUESTIONS)], NUMBERS[n - 1]))
        if n >= 2:
            in_scene += _ask_relation(bits["relation"][i], pairs, scene, both_ways)
        if motion:
            in_scene.append(_ask_motion(bits["motion"][i], pairs, scene))
        questions.append(in_scene)
    return questions
