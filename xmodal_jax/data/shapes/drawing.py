"""Draws scenes of coloured shapes with anti-aliased edges from signed distances, in vectorised NumPy."""

from __future__ import annotations

import numpy as np

from xmodal_jax.data.shapes.scenes import EXTENT, GROWTH, MOTIONS, RADII, SHRINKAGE, Factors

PALETTE = np.array(
    [
        (225, 40, 45), (40, 175, 60), (55, 95, 245), (250, 225, 45),
        (250, 135, 25), (160, 60, 215), (60, 215, 225), (245, 245, 245),
    ],
    np.float32,
)  # fmt: skip
"""RGB of the colours in the order of `scenes.COLOURS`, at brightness 1."""

DARK = 0.38
"""Brightness of stripes and dots over that of the object."""
RING_HOLE = 0.48
"""Inner radius of the ring over its radius."""
_CHUNK = 1024
_GROWING, _SHRINKING, _TURNING = (MOTIONS.index(name) for name in ("growing", "shrinking", "turning"))

PAPER, INK = np.float32(248), np.float32(24)
"""Gray levels of sketches."""
PENCIL = 0.032
"""Width of a sketch's outlines in canvas widths; they are at least 1.2 pixels wide."""


# Signed distances of pixels from the outlines of the shapes, negative inside. Pixels lie at ``x``, ``y`` in radii from
# the shape's centre, y pointing down; distances are in radii as well.


def _half_planes(x, y, normals, offset):
    """Signed distance of the intersection of half planes: nx x + ny y <= offset for each of ``normals`` (nx, ny)."""
    return np.maximum.reduce([nx * x + ny * y for nx, ny in normals]) - np.float32(offset)


def _circle(x, y):
    return np.sqrt(x * x + y * y) - np.float32(1)


def _square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.84)


def _triangle(x, y):
    # Equilateral, apex up (y points down); the corners lie 1.08 and the sides 0.54 from the centre.
    normals = [np.float32((np.cos(a), np.sin(a))) for a in np.pi / 2 + np.arange(3) * 2 * np.pi / 3]
    return _half_planes(x, y, normals, offset=0.54)


def _star(x, y):
    """Signed distance of a star with five tips, at ``x``, ``y`` in radii from its centre; negative inside."""
    # By symmetry all points are moved to one of ten equal sectors: the angle from the nearest tip, 0..36 degrees.
    angle = np.abs(
        np.mod(np.arctan2(x, -y) + np.float32(np.pi / 5), np.float32(2 * np.pi / 5)) - np.float32(np.pi / 5)
    )
    r = np.sqrt(x * x + y * y)
    # In the sector, the outline is the line from the tip (radius 1.08) to the notch (radius 0.45).
    tip, notch = np.array([1.08, 0.0]), 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
    normal /= np.linalg.norm(normal)
    nx, ny = np.float32(normal)
    return r * (nx * np.cos(angle) + ny * np.sin(angle)) - np.float32(normal @ tip)


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - np.float32(0.34), np.maximum(x, y) - np.float32(1))


def _ring(x, y):
    middle, half = (1 + RING_HOLE) / 2, (1 - RING_HOLE) / 2
    return np.abs(np.sqrt(x * x + y * y) - np.float32(middle)) - np.float32(half)


def _diamond(x, y):
    # |x| / 0.68 + |y| / 1.1 - 1, divided by the length of its gradient, which makes it a distance.
    wide, tall = 0.68, 1.1
    scale = 1 / np.hypot(1 / wide, 1 / tall)
    return np.abs(x) * np.float32(scale / wide) + np.abs(y) * np.float32(scale / tall) - np.float32(scale)


_HEART = (0.54, 0.47, -0.36, 1.05)
"""``(r, cx, cy, tip)``: a heart is two discs of radius r around (-cx, cy) and (cx, cy), and the wedge below them
between their tangents through the tip (0, tip); y points down."""


def _heart_normal():
    """The unit normal (nx, ny) of the tangent from the tip of the heart to its right disc, pointing outwards."""
    r, cx, cy, tip = _HEART
    to_tip = np.array([-cx, tip - cy])
    angle = np.arctan2(to_tip[1], to_tip[0]) - np.arccos(r / np.linalg.norm(to_tip))
    return np.cos(angle), np.sin(angle)


def _heart(x, y):
    """Signed distance of a heart (see `_HEART`), at ``x``, ``y`` in radii from its centre; negative inside."""
    r, cx, cy, _ = _HEART
    x = np.abs(x)  # the right half
    nx, ny = _heart_normal()
    # Signed distances from the disc and from the tangent.
    disc = np.sqrt((x - np.float32(cx)) ** 2 + (y - np.float32(cy)) ** 2) - np.float32(r)
    wedge = np.float32(nx) * (x - np.float32(cx)) + np.float32(ny) * (y - np.float32(cy)) - np.float32(r)
    # Above the line from (0, cy) to the tangent point, where ``top`` is positive, only the discs count.
    top = np.float32(cy) + x * np.float32(ny * r / (cx + nx * r)) - y
    return np.minimum(disc, np.maximum(wedge, top))


def _heart_inside(x, y):
    """As `_heart`, but exact inside, where `_heart` takes the seams between the discs and the wedge for edges.

    Negative inside; ``x`` and ``y`` in radii from the centre.
    """
    r, cx, cy, _ = (np.float32(value) for value in _HEART)
    x, (nx, ny) = np.abs(x), np.float32(_heart_normal())  # the right half
    u, v = x - cx, y - cy  # from the centre of the disc
    distance = np.sqrt(u * u + v * v)
    # The distance to the notch, where the two discs meet at the top.
    notch = np.sqrt(x * x + (y - cy + np.sqrt(r * r - cx * cx)) ** 2)
    # Whether the nearest point of the disc's edge is on the outline, rather than inside the other disc.
    on_arc = cx * distance + r * u >= 0
    below = ny * u - nx * v < 0  # where the tangent is the nearest part of the outline
    within = np.minimum(
        np.where(below, r - nx * u - ny * v, np.inf), np.where(on_arc & ~below, r - distance, notch)
    )
    outside = _heart(x, y)
    return np.where(outside < 0, -within, outside).astype(np.float32)


_DISTANCES = (_circle, _square, _triangle, _star, _cross, _ring, _diamond, _heart)
_SKETCHED = (*_DISTANCES[:-1], _heart_inside)
_DOT_PHASES = (0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.5, 0.0)
"""Offset of the grid of dots on each shape, in periods. 0 puts the shape's centre between four dots, 0.5 puts a dot at
the centre: for thin shapes, which would contain none of the four."""


def _texture(texture, x, y, pixels, phase):
    """How dark the texture is, 0..1, at ``x``, ``y`` in radii from the object's centre.

    ``texture``: index into `scenes.TEXTURES`; ``pixels``: the radius in pixels; ``phase``: see `_DOT_PHASES`. Edges are
    anti-aliased over one pixel.
    """
    # Diagonal stripes: the distance from the middle between two stripes, in periods of 0.72 radii.
    pitch = np.float32(0.72)
    stripe = np.abs(np.mod((x + y) * np.float32(np.sqrt(0.5)) / pitch + np.float32(0.5), 1) - np.float32(0.5))
    striped = np.clip(np.float32(0.5) + (stripe - np.float32(0.27)) * pitch * pixels, 0, 1)
    # Dots on a grid of 0.7 radii: the position relative to the nearest dot's centre, in periods.
    pitch = np.float32(0.7)
    u, v = (np.mod(c / pitch + np.float32(phase), 1) - np.float32(0.5) for c in (x, y))
    dotted = np.clip(np.float32(0.5) - (np.sqrt(u * u + v * v) - np.float32(0.3)) * pitch * pixels, 0, 1)
    return np.where(texture == 1, striped, np.where(texture == 2, dotted, np.float32(0)))


def _locate(side, canvases, centre, radius, angle, patch):
    """The square patch of ``patch`` pixels around each of N objects on its canvas of ``side`` pixels.

    Returns ``(x, y, pixels, area)``: the patch's pixels ``[N, patch, patch]`` in the object's own coordinates, turned
    by ``-angle`` and in radii from its centre; the radius in pixels ``[N, 1, 1]``; and the index of the patches in the
    array of all canvases, where object ``i`` lies on canvas ``canvases[i]``.
    """
    pixels = (radius * side)[:, None, None]
    corner = np.clip(np.rint(centre * side - patch / 2).astype(np.int64), 0, side - patch)  # [N, (x, y)]
    steps = np.arange(patch)
    columns, lines = corner[:, 0, None] + steps, corner[:, 1, None] + steps  # [N, patch] each
    # From the object's centre to the middle of each pixel, in pixels; then turned and divided by the radius.
    dx = (columns + np.float32(0.5) - centre[:, 0, None] * side).astype(np.float32)[:, None, :]
    dy = (lines + np.float32(0.5) - centre[:, 1, None] * side).astype(np.float32)[:, :, None]
    cos, sin = np.cos(angle)[:, None, None] / pixels, np.sin(angle)[:, None, None] / pixels
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    return x, y, pixels, (canvases[:, None, None], lines[:, :, None], columns[:, None, :])


def _paint(canvas, numbers, kind, colour, texture, centre, radius, angle, patch):
    """Draws one object on each of K canvases, in place: the canvases ``numbers`` ``[K]`` of ``canvas``
    ``[N, side, side, 3]``.

    All have the shape ``kind`` and lie within a square of ``patch`` pixels; the other arguments are those of `draw`,
    ``[K, ...]``. They are the objects' colours RGB ``[K, 3]``, textures ``[K]``, centres ``[K, 2]`` and radii ``[K]``
    (in canvas widths) and angles ``[K]``.
    """
    x, y, pixels, area = _locate(canvas.shape[1], numbers, centre, radius, angle, patch)
    # The fraction of each pixel that the shape covers: 0.5 on its outline, and linear over one pixel.
    cover = np.clip(np.float32(0.5) - _DISTANCES[kind](x, y) * pixels, 0, 1)[..., None]
    paint = np.broadcast_to(colour[:, None, None, :], (*cover.shape[:3], 3))
    textured = np.flatnonzero(texture > 0)
    if len(textured):  # darken the stripes and dots
        dark = _texture(
            texture[textured, None, None], x[textured], y[textured], pixels[textured], _DOT_PHASES[kind]
        )
        paint = paint.copy()
        paint[textured] *= (1 - np.float32(1 - DARK) * dark)[..., None]
    under = canvas[area]
    canvas[area] = under + cover * (paint - under)  # alpha compositing


def _sketch(canvas, numbers, kind, colour, texture, centre, radius, angle, patch):
    """Draws one object on each of the canvases ``numbers`` as an outline with hatching; arguments as `_paint`.

    ``canvas [N, side, side, 3]`` is drawn on in place. The objects have the shape ``kind``, lie within squares of
    ``patch`` pixels, and have colours ``[K, 3]``, centres ``[K, 2]``, radii ``[K]`` and angles ``[K]``.
    """
    x, y, pixels, area = _locate(canvas.shape[1], numbers, centre, radius, angle, patch)
    # The outline: a line of ``width`` pixels inside the edge, where the depth below the edge is 0 to ``width`` pixels.
    depth = -_SKETCHED[kind](x, y) * pixels
    width = np.float32(max(1.2, PENCIL * canvas.shape[1]))
    line = np.clip(np.float32(0.5) + width / 2 - np.abs(depth - width / 2), 0, 1)
    # Hatching follows the diagonals of the canvas, so that it does not show how an object is turned. The darker the
    # object (by its luma, ITU-R BT.601), the thicker the lines.
    _, lines, columns = area
    pitch = np.float32(2.5) * width
    stripe = np.abs(np.mod((lines + columns).astype(np.float32) / pitch, 1) - np.float32(0.5)) * pitch
    bright = (colour @ np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255))[:, None, None]
    thick = np.maximum(1 - bright, 0) * pitch
    hatch = np.minimum(np.clip(thick / 2 - stripe + np.float32(0.5), 0, 1), thick) * np.float32(0.55)
    # The fraction of each pixel that the object covers.
    cover = np.clip(depth + np.float32(0.5), 0, 1)[..., None]
    ink = np.maximum(line, hatch)[..., None]
    under = canvas[area]
    canvas[area] = under + cover * (PAPER + ink * (INK - PAPER) - under)


def draw(
    shape: np.ndarray,
    colour: np.ndarray,
    texture: np.ndarray,
    position: np.ndarray,
    radius: np.ndarray,
    angle: np.ndarray,
    background: np.ndarray,
    *,
    image_size: int,
    sketched: bool = False,
) -> np.ndarray:
    """Images of coloured shapes, uint8 ``[N, image_size, image_size, 3]``; later objects lie over earlier ones.

    Args:
      shape: int ``[N, K]``, indices into `scenes.SHAPES`; -1: no object.
      colour: RGB 0..255 ``[N, K, 3]``.
      texture: int ``[N, K]``, indices into `scenes.TEXTURES`.
      position: centres (x, y) ``[N, K, 2]`` in canvas widths.
      radius: ``[N, K]`` in canvas widths.
      angle: ``[N, K]`` in radians.
      background: RGB 0..255 ``[N, 3]``.
      image_size: side in pixels, 16..128.
      sketched: whether to draw outlines with hatching, which is the denser the darker the colour; textures do not show.

    Raises:
      ValueError: ``image_size`` outside 16..128.
    """
    draw_group = _sketch if sketched else _paint
    if not 16 <= image_size <= 128:
        raise ValueError(f"image_size must lie in 16..128, got {image_size}")
    n, k = shape.shape
    out = np.empty((n, image_size, image_size, 3), np.uint8)
    # Each object is drawn within a square patch around it. The sides of patches are multiples of 3 pixels, so that
    # objects of similar size can be drawn together.
    patch = np.ceil((2 * EXTENT * radius * image_size + 1.5) / 3).astype(np.int64) * 3
    patch = np.minimum(patch, image_size)
    chunk = max(1, _CHUNK * 32 * 32 // image_size**2)  # images drawn at a time
    for begin in range(0, n, chunk):
        images = slice(begin, min(begin + chunk, n))
        canvas = np.empty((images.stop - begin, image_size, image_size, 3), np.float32)
        canvas[:] = background[images, None, None, :]
        for slot in range(k):  # later objects over earlier ones
            # Objects with the same shape and patch size are drawn together: both in one number, -1 for no object.
            codes = shape[images, slot] * 1000 + patch[images, slot]
            group = np.where(shape[images, slot] >= 0, codes, -1)
            for code in np.unique(group[group >= 0]):
                numbers = np.flatnonzero(group == code)
                objects = begin + numbers, slot  # an index of arrays [N, K]
                draw_group(
                    canvas, numbers, kind=int(code // 1000), colour=colour[objects].astype(np.float32),
                    texture=texture[objects], centre=position[objects].astype(np.float32),
                    radius=radius[objects].astype(np.float32), angle=angle[objects].astype(np.float32),
                    patch=int(code % 1000),
                )  # fmt: skip
        out[images] = np.clip(canvas + np.float32(0.5), 0, 255)
    return out


def scene_images(
    factors: Factors, image_size: int, *, time: float = 0.0, sketched: bool = False
) -> np.ndarray:
    """Images of scenes, uint8 ``[N, image_size, image_size, 3]``, at ``time`` 0 (first frame) to 1 (last frame).

    ``factors``: see `scenes.sample_factors`. ``sketched``: whether to draw in dark lines on white paper.
    """
    motion = factors["motion"]  # an index into `scenes.MOTIONS`; -1: no object
    radius = RADII[np.maximum(factors["size"], 0)]
    factor = np.where(motion == _GROWING, GROWTH, np.where(motion == _SHRINKING, SHRINKAGE, 1.0))
    radius = radius * (1 + (factor - 1) * time)
    # The direction (x, y) of each motion; the last entry is that of -1.
    step = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0), (0, 0), (0, 0), (0, 0)])[motion]
    position = factors["position"] + step * (factors["travel"] * time)[..., None]
    # An object that grows near an edge is pushed inwards, so that it stays visible.
    reach = (EXTENT * radius)[..., None]
    position = np.where((motion == _GROWING)[..., None], np.clip(position, reach, 1 - reach), position)
    angle = factors["angle"] + np.where(motion == _TURNING, np.pi / 2 * time, 0.0)
    colour = PALETTE[np.maximum(factors["colour"], 0)] * factors["brightness"][..., None]
    background = factors["background"]
    if sketched:
        background = np.broadcast_to(PAPER, background.shape)
    return draw(
        factors["shape"], colour, factors["texture"], position, radius, angle, background,
        image_size=image_size, sketched=sketched,
    )  # fmt: skip


def scene_videos(factors: Factors, image_size: int, frames: int) -> np.ndarray:
    """Videos of scenes, uint8 ``[N, frames, image_size, image_size, 3]``; the first frame is that of `scene_images`."""
    times = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    return np.stack([scene_images(factors, image_size, time=float(t)) for t in times], axis=1)
