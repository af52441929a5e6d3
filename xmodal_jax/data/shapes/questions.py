"""Questions with answers and commands with targets about Spoken Shapes scenes."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from xmodal_jax.data.shapes.scenes import (
    COLOURS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Factors,
    hash_bits,
)

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

COMMANDS = {
    "move left": ("move {} left", "push {} to the left", "shift {} left"),
    "move right": ("move {} right", "push {} to the right", "shift {} right"),
    "move up": ("move {} up", "push {} up", "shift {} upwards"),
    "move down": ("move {} down", "push {} down", "shift {} downwards"),
    "remove": ("remove {}", "delete {}", "take away {}"),
    "grow": ("make {} bigger", "enlarge {}", "grow {}"),
    "shrink": ("make {} smaller", "shrink {}", "reduce {}"),
    "turn": ("turn {}", "rotate {}", "spin {}"),
}
ACTIONS = tuple(COMMANDS)

_FIELDS = ("size", "texture", "colour", "shape")
_WORDS = dict(zip(_FIELDS, (SIZES, TEXTURES, COLOURS, SHAPES), strict=True))
# Descriptions a person would give, from the fewest words on.
_SUBSETS = [s for n in (1, 2, 3) for s in combinations(_FIELDS, n)]


def _name(pair: tuple[int, int]) -> str:
    return f"{COLOURS[pair[1]]} {SHAPES[pair[0]]}"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _row(factors: Factors, i: int) -> dict:
    return {name: value[i].tolist() for name, value in factors.items()}


def scene_questions(
    factors: Factors,
    foils: Factors,
    seed: int,
    split: str,
    index: np.ndarray,
    *,
    motion: bool,
    both_ways: bool = False,
) -> list[list[tuple[str, str, str]]]:
    """For each scene its questions ``(kind, question, answer)``; kinds that do not apply are left out.

    ``foils``: other scenes ``[N, ...]`` of the same split. An absent object is asked for by the name of a
    foil's object, so that the objects of "no" have the distribution of those of "yes". ``both_ways``: how two objects
    lie is asked once more with the two exchanged, which makes another answer of the same picture and the same words.
    """
    bits = {kind: hash_bits(seed, split, index, f"question/{kind}").tolist() for kind in QUESTION_KINDS}
    out = []
    for i in range(len(index)):
        scene, foil = _row(factors, i), _row(foils, i)
        n = scene["num_objects"]
        pairs = list(zip(scene["shape"], scene["colour"], strict=True))[:n]
        asked = []

        b, k = divmod(bits["existence"][i], n)
        absent = [p for p in zip(foil["shape"], foil["colour"], strict=True) if p[0] >= 0 and p not in pairs]
        exists = b % 2 == 0 or not absent
        pair = pairs[k] if exists else absent[(b // 2) % len(absent)]
        asked.append(("existence", f"is there {_a(_name(pair))}", "yes" if exists else "no"))

        only = [[p for p in pairs if sum(q[part] == p[part] for q in pairs) == 1] for part in (0, 1)]
        if only[0]:
            shape, colour = only[0][bits["colour"][i] % len(only[0])]
            asked.append(("colour", f"what colour is the {SHAPES[shape]}", COLOURS[colour]))
        if only[1]:
            shape, colour = only[1][bits["shape"][i] % len(only[1])]
            asked.append(("shape", f"what shape is the {COLOURS[colour]} one", SHAPES[shape]))

        phrasings = ("how many objects are there", "how many things do you see", "count the objects")
        asked.append(("count", phrasings[bits["count"][i] % len(phrasings)], NUMBERS[n - 1]))

        if n >= 2:
            b, k = divmod(bits["relation"][i], n - 1)
            b, swap = divmod(b, 2)
            relation = (scene["relation"], scene["second_relation"])[k] ^ swap
            first, second = (_name(pairs[k + swap]), _name(pairs[k + 1 - swap]))
            said = relation if (b // 2) % 2 == 0 else (relation + 1 + (b // 4) % 3) % 4
            words = RELATIONS[said] + (" of" if said < 2 else "")
            # Opposites differ in the last bit.
            ways = [(first, second, relation), (second, first, relation ^ 1)]
            for one, other, holds in ways[: 1 + both_ways]:
                if b % 2:
                    asked.append(("relation", f"where is the {one} from the {other}", RELATIONS[holds]))
                else:
                    answer = "yes" if said == holds else "no"
                    asked.append(("relation", f"is the {one} {words} the {other}", answer))

        if motion:
            # Mostly the one that moves: to stand still must not be the best guess.
            movers = [k for k in range(n) if scene["motion"][k] > 0]
            b, ask_other = divmod(bits["motion"][i], 16)
            others = [k for k in range(n) if k not in movers]
            k = others[b % len(others)] if others and (not movers or ask_other == 0) else movers[0]
            asked.append(("motion", f"how does the {_name(pairs[k])} move", MOTIONS[scene["motion"][k]]))
        out.append(asked)
    return out


def _references(scene: dict, target: int) -> list[str]:
    """Descriptions that hold for the target alone."""
    n, found = scene["num_objects"], []
    for fields in _SUBSETS:
        same = [k for k in range(n) if all(scene[f][k] == scene[f][target] for f in fields)]
        if same == [target]:
            words = [_WORDS[f][scene[f][target]] for f in fields]
            found.append("the " + " ".join(words if "shape" in fields else [*words, "one"]))
    return found


def scene_commands(
    factors: Factors, seed: int, split: str, index: np.ndarray
) -> list[list[tuple[str, str, int]]]:
    """For each scene ``(command, action, target)``, one for each of its objects; ``target`` is the object's
    number.

    The command names its target by some description that holds for no other object, not always the fullest.
    """
    bits = [hash_bits(seed, split, index, f"command/{k}").tolist() for k in range(3)]
    out = []
    for i in range(len(index)):
        scene, given = _row(factors, i), []
        for k in range(scene["num_objects"]):
            b, action = divmod(bits[k][i], len(ACTIONS))
            references = _references(scene, k)
            b, which = divmod(b, len(references))
            phrasings = COMMANDS[ACTIONS[action]]
            given.append((phrasings[b % len(phrasings)].format(references[which]), ACTIONS[action], k))
        out.append(given)
    return out
