"""Commands about scenes of Spoken Shapes: an action and the object that it is for."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from xmodal_jax.data.shapes.questions import scene_at
from xmodal_jax.data.shapes.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Factors, hash_bits

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
"""The phrasings of each action; ``{}`` stands for the object."""
ACTIONS = tuple(COMMANDS)

_PROPERTIES = ("size", "texture", "colour", "shape")
_WORDS = dict(zip(_PROPERTIES, (SIZES, TEXTURES, COLOURS, SHAPES), strict=True))
# The properties that a description can mention: those that a person would give, the shortest descriptions first.
_DESCRIPTIONS = [subset for n in (1, 2, 3) for subset in combinations(_PROPERTIES, n)]


def _references(scene: dict, target: int) -> list[str]:
    """The descriptions that fit the object ``target`` and no other object, such as "the big red one".

    ``scene``: the factors of one scene, with lists by object. ``target``: the number of an object.
    """
    n, references = scene["num_objects"], []
    for properties in _DESCRIPTIONS:  # tuples such as ("size", "colour")
        matching = [k for k in range(n) if all(scene[p][k] == scene[p][target] for p in properties)]
        if matching == [target]:
            words = [_WORDS[p][scene[p][target]] for p in properties]
            references.append("the " + " ".join(words if "shape" in properties else [*words, "one"]))
    return references


def scene_commands(
    factors: Factors, seed: int, split: str, index: np.ndarray
) -> list[list[tuple[str, str, int]]]:
    """For each scene a list of ``(command, action, target)``, one for each of its objects; ``target`` is the object's
    number.

    A command describes its target in one to three words that fit no other object. The choices are drawn from (seed,
    split, index). ``factors``: arrays ``[N, ...]``; ``index`` int ``[N]``.
    """
    # Random integers by object and scene: each gives in turn the action, the description and the phrasing.
    bits = [hash_bits(seed, split, index, f"command/{k}").tolist() for k in range(3)]
    commands = []
    for i in range(len(index)):
        scene, in_scene = scene_at(factors, i), []
        for k in range(scene["num_objects"]):
            remaining_bits, action = divmod(bits[k][i], len(ACTIONS))
            references = _references(scene, k)
            remaining_bits, reference = divmod(remaining_bits, len(references))
            phrasings = COMMANDS[ACTIONS[action]]
            command = phrasings[remaining_bits % len(phrasings)].format(references[reference])
            in_scene.append((command, ACTIONS[action], k))
        commands.append(in_scene)
    return commands
