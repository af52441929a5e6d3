"""The factors of Spoken Shapes scenes, drawn by a counter-based hash: scene ``i`` is the same in any batch."""

from __future__ import annotations

import zlib

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "white")
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "dotted")
RELATIONS = ("left", "right", "above", "below")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
MOTIONS = ("still", "left", "right", "up", "down", "growing", "shrinking", "turning")
SPLITS = ("train", "test", "compositions", "voices")
MAX_OBJECTS = 3
"""Objects of a scene, at most."""

RADII = np.array([0.13, 0.20], np.float32)
"""Radius of small and of big objects, in canvas widths."""
EXTENT = 1.1
"""How far a shape reaches from its centre at most, in radii."""
GROWTH, SHRINKAGE = 1.4, 0.5
"""Radius at the end of a video over radius at its start, of objects that grow and that shrink."""

HELD_OUT = np.array([(s, (3 * s + 2) % 8) for s in range(8)])
"""The (shape, colour) pairs ``[8, 2]`` that only the split ``compositions`` has: each shape and each colour once."""
_HELD_OUT_CODES = HELD_OUT[:, 0] * 8 + HELD_OUT[:, 1]
_SEEN_CODES = np.setdiff1d(np.arange(64), _HELD_OUT_CODES)

Factors = dict[str, np.ndarray]
"""The factors of N scenes, arrays ``[N, ...]`` by name; see `sample_factors`."""


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection on uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_bits(seed: int, split: str, index: np.ndarray, field: str) -> np.ndarray:
    """64 random bits, uint64 ``[N]``, for each ``index`` ``[N]``: a pure function of (seed, split, index, field)."""
    # Arrays of one element, on which uint64 overflow wraps around without a warning.
    seed_word, name_word = np.array(
        [[seed & (2**64 - 1)], [zlib.crc32(f"{split}/{field}".encode())]], np.uint64
    )
    key = _mix(_mix(seed_word) ^ name_word)
    return _mix(_mix(np.asarray(index).astype(np.uint64) ^ key) + key)


def uniform(seed: int, split: str, index: np.ndarray, field: str) -> np.ndarray:
    """A random number, float64 ``[N]`` in [0, 1), for each ``index`` ``[N]``; see `hash_bits`."""
    return (hash_bits(seed, split, index, field) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class _Draw:
    """The random numbers of some scenes, by the name of the field that they are for."""

    def __init__(self, seed: int, split: str, index: np.ndarray):
        self.args = (seed, split, index)

    def uniform(self, field: str) -> np.ndarray:
        return uniform(*self.args, field)

    def integer(self, field: str, high) -> np.ndarray:
        """Integers ``[N]`` in 0..high-1."""
        return np.floor(self.uniform(field) * high).astype(np.int64)

    def columns(self, field: str, n: int) -> np.ndarray:
        """Numbers ``[N, n]`` in [0, 1)."""
        return np.stack([self.uniform(f"{field}/{k}") for k in range(n)], axis=1)


def _pairs(draw: _Draw, n: np.ndarray, *, held_out: bool) -> np.ndarray:
    """Three distinct shape-colour pairs for each scene, codes ``[N, 3]`` (shape * 8 + colour).

    ``n``: the number of objects ``[N]``. ``held_out``: whether one object of each scene gets a pair of `HELD_OUT`.

    ``draw`` gives random numbers ``[N]`` by name, one for each scene.
    """
    # Three distinct positions in _SEEN_CODES: the second is drawn as a distance from the first.
    m = len(_SEEN_CODES)
    first = draw.integer("pair/0", m)
    second = (first + 1 + draw.integer("pair/1", m - 1)) % m
    # The third is drawn from m - 2 values; those from a taken position on move up by one, the smaller one first.
    third = draw.integer("pair/2", m - 2)
    for taken in (np.minimum(first, second), np.maximum(first, second)):
        third = third + (third >= taken)
    codes = _SEEN_CODES[np.stack([first, second, third], axis=1)]
    if held_out:  # replace the pair of one object
        slot = draw.integer("held-out/slot", n)
        codes[np.arange(len(n)), slot] = _HELD_OUT_CODES[draw.integer("held-out/pair", len(_HELD_OUT_CODES))]
    return codes


def _between(low, high, u):
    """Linear interpolation: ``low`` at ``u`` = 0, ``high`` at ``u`` = 1."""
    return low + (high - low) * u


def _along(draw: _Draw, name: str, *, first: np.ndarray, second: np.ndarray, swap: np.ndarray):
    """Random coordinates along one axis for two objects side by side with the radii ``first`` and ``second``.

    Returns ``(first_coordinate, second_coordinate, distance)``, ``[N]`` each in canvas widths. The first object has the
    smaller coordinate, or the second one where ``swap``.

    ``draw`` gives random numbers ``[N]`` by name; ``name`` is the prefix of the names used here.
    """
    # The distance of the centres: objects neither overlap nor lie too close together, and both fit on the canvas.
    reach = EXTENT * (first + second)
    distance = _between(np.maximum(0.36, 1.05 * (first + second)), 1 - reach, draw.uniform(f"{name}/gap"))
    # The smaller coordinate, such that neither object goes beyond the canvas.
    low = np.where(swap, second, first) * EXTENT
    start = _between(low, 1 - (reach - low) - distance, draw.uniform(f"{name}/start"))
    return np.where(swap, start + distance, start), np.where(swap, start, start + distance), distance


def _single_object(draw: _Draw, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(position, place)`` of an object that is alone in its scene: the centre (x, y) ``[N, 2]`` in canvas widths, and
    the index ``[N]`` of its place in `PLACES`. ``margin`` ``[N, 1]``: smallest distance from the canvas's edge.

    ``draw`` gives random numbers ``[N]`` by name, one for each scene.
    """
    # The cell (column, line) of a 3 x 3 grid; there are gaps between the cells, so that places are unambiguous.
    cell = np.stack([draw.integer("place/x", high=3), draw.integer("place/y", high=3)], axis=1)
    low = np.where(cell == 0, margin, np.where(cell == 1, 0.45, 0.65))
    high = np.where(cell == 0, 0.35, np.where(cell == 1, 0.55, 1 - margin))
    return _between(low, high, draw.columns("place/jitter", 2)), cell[:, 1] * 3 + cell[:, 0]


def _positions(draw: _Draw, n: np.ndarray, radius: np.ndarray):
    """``(position, place, relation, second_relation)`` of scenes with ``n`` ``[N]`` objects of ``radius`` ``[N, 3]``.

    ``position`` ``[N, 3, 2]``: centres (x, y) in canvas widths. ``place`` ``[N]``: that of a single object. The
    relations ``[N]`` are those of object 0 to object 1, and of 1 to 2. Places and relations are -1 where they do not
    apply.

    Two objects lie side by side. Three form an L with the second one at its corner, so that both relations are
    unambiguous.

    ``draw`` gives random numbers ``[N]`` by name, one for each scene.
    """
    margin = EXTENT * radius
    single_position, single_place = _single_object(draw, margin[:, :1])

    # Two or three objects. The axis of the first relation is called "along", the other axis "across". ``along0`` is the
    # coordinate of object 0 on the axis "along", and so on; ``distance01`` is the distance of objects 0 and 1 on that
    # axis, ``distance12`` that of objects 1 and 2 on the axis "across". Relations: left 0, right 1, above 2, below 3.
    relation = draw.integer("relation/0", high=4)
    vertical, swap = relation // 2, relation % 2  # swap: object 1 comes before object 0
    swap_second = draw.integer("relation/1", high=2)
    along0, along1, distance01 = _along(
        draw, "along", first=radius[:, 0], second=radius[:, 1], swap=swap == 1
    )
    across1, across2, distance12 = _along(
        draw, "across", first=radius[:, 1], second=radius[:, 2], swap=swap_second == 1
    )
    # Without a third object, the second one may lie anywhere across.
    free = _between(margin[:, 1], 1 - margin[:, 1], draw.uniform("across/free"))
    across1 = np.where(n == 3, across1, free)
    # Objects 0 and 2 deviate a little from the straight line through object 1, by at most this fraction of their
    # distance from it, and stay on the canvas.
    slack = np.where(n == 3, 0.15, 0.35)
    offset0, offset2 = (2 * draw.columns("offset", 2) - 1).T * slack * np.stack([distance01, distance12])
    across0 = np.clip(across1 + offset0, margin[:, 0], 1 - margin[:, 0])
    along2 = np.clip(along1 + offset2, margin[:, 2], 1 - margin[:, 2])
    position = np.stack(
        [np.stack([along0, along1, along2], 1), np.stack([across0, across1, across2], 1)], axis=2
    )  # [N, object, (along, across)]
    position = np.where(vertical[:, None, None] == 1, position[:, :, ::-1], position)  # to (x, y)
    position[n == 1, 0] = single_position[n == 1]
    position[np.arange(MAX_OBJECTS) >= n[:, None]] = 0.0  # no object

    place = np.where(n == 1, single_place, -1)
    second_relation = 2 * (1 - vertical) + swap_second  # on the other axis
    return position, place, np.where(n >= 2, relation, -1), np.where(n == 3, second_relation, -1)


def _room_to_move(n: np.ndarray, mover: np.ndarray, position: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How far an object can go left, right, up and down, ``[N, 4]`` in canvas widths.

    The object ``mover`` ``[N]`` of each scene can go to the canvas's edge, or to another object in its way. ``n``
    ``[N]``: number of objects; ``position`` ``[N, 3, 2]``, ``radius`` ``[N, 3]``.
    """
    scene = np.arange(len(n))
    centre, r = position[scene, mover], radius[scene, mover]
    is_other = (np.arange(MAX_OBJECTS) < n[:, None]) & (np.arange(MAX_OBJECTS) != mover[:, None])
    room = np.empty((len(n), 4))
    for direction, (axis, sign) in enumerate(((0, -1), (0, 1), (1, -1), (1, 1))):
        to_edge = np.where(sign > 0, 1 - centre[:, axis], centre[:, axis]) - EXTENT * r
        # Each object's distance in this direction; it is in the way if the two would touch in passing.
        ahead = sign * (position[:, :, axis] - centre[:, None, axis])
        touching = r[:, None] + radius
        in_way = np.abs(position[:, :, 1 - axis] - centre[:, None, 1 - axis]) < touching
        to_object = np.where(is_other & in_way & (ahead > 0), ahead - touching, np.inf).min(axis=1)
        room[:, direction] = np.minimum(to_edge, to_object)
    return room


def _motions(draw: _Draw, n: np.ndarray, position: np.ndarray, radius: np.ndarray):
    """``(motion, travel)`` ``[N, 3]``: each object's index into `MOTIONS` (-1: no object), and the distance that it
    moves in canvas widths.

    At most one of a scene's ``n`` objects moves, in a direction where there is room. ``position`` ``[N, 3, 2]``,
    ``radius`` ``[N, 3]``.

    ``draw`` gives random numbers ``[N]`` by name, one for each scene.
    """
    scene = np.arange(len(n))
    mover = draw.integer("mover", n)  # [N], the object that may move
    room = _room_to_move(n, mover, position, radius)
    possible = room >= 0.15
    # One of the possible directions, uniformly: the one with number ``pick`` among them.
    pick = draw.integer("motion/direction", np.maximum(possible.sum(axis=1), 1))
    direction = np.argmax(np.cumsum(possible, axis=1) > pick[:, None], axis=1)
    # Half of the movers move (1..4); the others are still (0), grow (5), shrink (6) or turn (7). Without room: turn.
    kind = draw.integer("motion/kind", high=8)
    moving = (kind >= 1) & (kind <= 4)
    code = np.where(moving, np.where(possible.any(axis=1), 1 + direction, 7), kind)
    motion = np.where(np.arange(MAX_OBJECTS) < n[:, None], 0, -1)
    motion[scene, mover] = code
    travel = np.zeros_like(radius, dtype=np.float32)
    travel[scene, mover] = np.where(moving, np.clip(room[scene, direction], 0, 0.3), 0)
    return motion, travel


def sample_factors(seed: int, split: str, index: np.ndarray) -> Factors:
    """The factors of the scenes with the numbers ``index`` ``[N]``; -1 where there is no object (or no relation).

    Indices into the vocabularies of this module (`SHAPES`, `COLOURS` and so on), int32:

    - ``[N]``: ``num_objects`` (1..3), ``place`` (of a single object), ``relation`` (of object 0 to object 1),
      ``second_relation`` (of 1 to 2);
    - ``[N, 3]``: ``shape``, ``colour``, ``size``, ``texture``, ``motion``.

    Quantities, float32:

    - ``position`` ``[N, 3, 2]``: x and y from the top left in canvas widths, at the first frame;
    - ``angle`` (radians), ``travel`` (distance moved, canvas widths), ``brightness`` (0.88..1) ``[N, 3]``;
    - ``background`` ``[N, 3]``: RGB, 0..255.
    """
    draw = _Draw(seed, split, np.asarray(index))
    n = 1 + draw.integer("num_objects", MAX_OBJECTS)
    present = np.arange(MAX_OBJECTS) < n[:, None]
    # A code is 8 * shape + colour. The split "compositions" has pairs of shape and colour that training never shows.
    codes = _pairs(draw, n, held_out=split == "compositions")
    shape, colour = codes // 8, codes % 8
    size = np.floor(draw.columns("size", 3) * len(SIZES)).astype(np.int64)
    texture = np.floor(draw.columns("texture", 3) * len(TEXTURES)).astype(np.int64)
    radius = RADII[size].astype(np.float64)
    position, place, relation, second = _positions(draw, n, radius)
    motion, travel = _motions(draw, n, position, radius)
    # A plain disc that turns (motion 7) looks like one that stands still: give it stripes (texture 1).
    round_shape = np.isin(shape, (SHAPES.index("circle"), SHAPES.index("ring")))
    texture = np.where(round_shape & (motion == 7), 1, texture)
    # A dark gray background (18..56) with a tint: up to 6 levels more or less in each colour.
    shade = 18 + 38 * draw.uniform("background/shade")
    tint = 12 * draw.columns("background/tint", 3) - 6

    factors = {"num_objects": n, "place": place, "relation": relation, "second_relation": second}
    factors |= {"motion": motion}
    for name, value in (("shape", shape), ("colour", colour), ("size", size), ("texture", texture)):
        factors[name] = np.where(present, value, -1)
    factors = {name: value.astype(np.int32) for name, value in factors.items()}
    return factors | {
        "position": position.astype(np.float32),
        "angle": ((draw.columns("angle", 3) - 0.5) * 0.4).astype(np.float32),  # -0.2..0.2
        "travel": travel,
        "brightness": (0.88 + 0.12 * draw.columns("brightness", 3)).astype(np.float32),
        "background": (shade[:, None] + tint).astype(np.float32),
    }
