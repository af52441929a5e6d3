"""Questions with answers about scenes of Spoken Shapes."""

from __future__ import annotations

import numpy as np

from xmodal_jax.data.shapes.grammar import with_article
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


def scene_at(factors: Factors, i: int) -> dict:
    """The factors of scene ``i`` as Python numbers and lists."""
    return {name: value[i].tolist() for name, value in factors.items()}


# The choices of a question are made by a random integer ``bits``: ``divmod(bits, n)`` chooses one of n options and
# leaves the remaining bits.


def _ask_existence(bits: int, pairs: list[tuple[int, int]], foil: dict) -> Question:
    """Whether an object exists: one of the scene ("yes"), or one of the scene ``foil`` that this one lacks ("no").

    ``bits``: a random integer that decides; ``pairs``: the (shape, colour) of each object of the scene.
    """
    bits, k = divmod(bits, len(pairs))
    # The objects of the foil that this scene lacks; shape -1 is an empty slot.
    absent = [p for p in zip(foil["shape"], foil["colour"], strict=True) if p[0] >= 0 and p not in pairs]
    exists = bits % 2 == 0 or not absent
    pair = pairs[k] if exists else absent[(bits // 2) % len(absent)]
    return "existence", f"is there {with_article(_name(pair))}", "yes" if exists else "no"


def _ask_colour_and_shape(colour_bits: int, shape_bits: int, pairs: list[tuple[int, int]]) -> list[Question]:
    """The colour of an object with a unique shape, and the shape of an object with a unique colour, if there are any.

    ``pairs``: the (shape, colour) of each object. The random bits choose among several such objects.
    """
    shapes, colours = [shape for shape, _ in pairs], [colour for _, colour in pairs]
    unique_shape = [pair for pair in pairs if shapes.count(pair[0]) == 1]
    unique_colour = [pair for pair in pairs if colours.count(pair[1]) == 1]
    questions = []
    if unique_shape:
        shape, colour = unique_shape[colour_bits % len(unique_shape)]
        questions.append(("colour", f"what colour is the {SHAPES[shape]}", COLOURS[colour]))
    if unique_colour:
        shape, colour = unique_colour[shape_bits % len(unique_colour)]
        questions.append(("shape", f"what shape is the {COLOURS[colour]} one", SHAPES[shape]))
    return questions


def _ask_relation(bits: int, pairs: list[tuple[int, int]], scene: dict, both_ways: bool) -> list[Question]:
    """Where one object is from another, or whether a stated relation between them holds.

    ``both_ways``: the same question with the objects exchanged is asked as well. ``bits`` is a random integer that
    decides: in turn the two objects (k and k + 1), their order, the form of the question and the stated relation.
    """
    bits, k = divmod(bits, len(pairs) - 1)
    bits, swap = divmod(bits, 2)
    # Relations are numbered in opposite pairs (left, right, above, below), which differ in the last bit.
    relation = (scene["relation"], scene["second_relation"])[k] ^ swap
    first, second = (_name(pairs[k + swap]), _name(pairs[k + 1 - swap]))
    # The stated relation is the true one half of the time, else one of the three others.
    stated = relation if (bits // 2) % 2 == 0 else (relation + 1 + (bits // 4) % 3) % 4
    words = RELATIONS[stated] + (" of" if stated < 2 else "")  # "left of", but "above"
    questions = []
    orders = [(first, second, relation), (second, first, relation ^ 1)]
    for subject, landmark, true_relation in orders if both_ways else orders[:1]:
        if bits % 2:
            question = f"where is the {subject} from the {landmark}"
            questions.append(("relation", question, RELATIONS[true_relation]))
        else:
            answer = "yes" if stated == true_relation else "no"
            questions.append(("relation", f"is the {subject} {words} the {landmark}", answer))
    return questions


def _ask_motion(bits: int, pairs: list[tuple[int, int]], scene: dict) -> Question:
    """How an object moves; ``bits`` (a random integer) chooses it, ``pairs`` is the (shape, colour) of each object."""
    moving = [k for k in range(len(pairs)) if scene["motion"][k] > 0]  # at most one
    still = [k for k in range(len(pairs)) if k not in moving]
    # Ask about a still object in one of 16 questions only: "still" must not be the best guess.
    bits, number = divmod(bits, 16)
    k = still[bits % len(still)] if still and (not moving or number == 0) else moving[0]
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
        foil, so that objects in questions answered "no" are distributed like those answered "yes".
      seed, split, index: what the choice of questions is drawn from; ``index`` int ``[N]``.
      motion: whether to ask how an object moves.
      both_ways: whether to ask each question about a relation once more with the two objects exchanged, so that the
        same image and the same words have another answer.
    """
    # A random integer for each kind of question and scene, which decides the question's choices.
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
