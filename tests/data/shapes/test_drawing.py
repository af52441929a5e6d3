import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from xmodal_jax.data.shapes.drawing import (
    INK,
    PALETTE,
    PAPER,
    PENCIL,
    RING_HOLE,
    draw,
    scene_images,
    scene_videos,
)
from xmodal_jax.data.shapes.scenes import COLOURS, RADII, SHAPES, sample_factors

WHITE, BLACK = np.full((1, 1, 3), 255.0), np.zeros((1, 3))


def one(shape, *, size=64, radius=0.2, centre=(0.43, 0.58), angle=0.0, colour=WHITE, texture=0):
    return draw(
        np.array([[SHAPES.index(shape)]]), colour, np.array([[texture]]), np.array([[centre]]),
        np.array([[radius]]), np.array([[angle]]), BLACK, image_size=size,
    )[0]  # fmt: skip


AREAS = {
    "circle": np.pi, "ring": np.pi * (1 - RING_HOLE**2), "square": 4 * 0.84**2,
    "cross": 8 * 0.34 - 4 * 0.34**2,
   
    "triangle": 3 * np.sqrt(3) / 4 * 1.08**2, "diamond": 2 * 0.68 * 1.1,
    "star": 5 * 1.08 * 0.45 * np.sin(np.pi / 5),
}  # fmt: skip


@pytest.mark.parametrize("shape", sorted(AREAS))
@pytest.mark.parametrize("angle", [0.0, 0.37])
def test_area(shape, angle):
    side, radius = 128, 0.2
    area = one(shape, size=side, radius=radius, angle=angle)[..., 0].sum() / 255
    expected = AREAS[shape] * (radius * side) ** 2
    # Half a pixel's error along a hundredth of the edge and 8-bit rounding.
    assert area == pytest.approx(expected, rel=0.012)


@pytest.mark.parametrize("shape", ["circle", "ring", "square", "cross", "diamond", "star", "triangle"])
@pytest.mark.parametrize("size", [32, 53])
def test_centroid(shape, size):
    weight = one(shape, size=size, centre=(0.43, 0.58))[..., 0].astype(float)
    at = (np.arange(size) + 0.5) / size
    x, y = (weight.sum(axis=0) @ at, weight.sum(axis=1) @ at) / weight.sum()
    assert (x, y) == pytest.approx((0.43, 0.58), abs=0.3 / size)


def test_no_shape_is_cut_by_its_patch_or_leaves_its_extent():
    for shape in SHAPES:
        for angle in np.linspace(0, 6, 7):
            drawn = one(shape, size=128, angle=float(angle))[..., 0] > 8
            at = (np.arange(128) + 0.5) / 128
            distance = np.hypot(at[None] - 0.43, at[:, None] - 0.58)[drawn].max()
            assert distance < (1.19 if shape == "square" else 1.1) * 0.2 + 0.01


def test_colours_of_plain_centres_and_backgrounds():
    f = sample_factors(0, "train", np.arange(300))
    f["motion"] = np.zeros_like(f["motion"])
    images = scene_images(f, 64)
    checked = 0
    for i in range(300):
        for k in range(f["num_objects"][i]):
            if f["texture"][i, k] == 0 and SHAPES[f["shape"][i, k]] != "ring":
                x, y = np.floor(f["position"][i, k] * 64).astype(int)
                colour = PALETTE[f["colour"][i, k]] * f["brightness"][i, k]
                assert np.abs(images[i, y, x] - colour).max() <= 1
                checked += 1
    assert checked > 100
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (np.abs(np.median(corners, axis=1) - f["background"]) <= 1).all()


def test_colours_are_distinct():
    distance = np.linalg.norm(PALETTE[:, None] - PALETTE[None], axis=-1) + 1e3 * np.eye(len(COLOURS))
    assert distance.min() > 90


@pytest.mark.parametrize("texture", [1, 2])
def test_textures_show_at_32_pixels(texture):
    for shape in SHAPES:
        for radius in RADII:
            plain, textured = (one(shape, size=32, radius=float(radius), texture=t) for t in (0, texture))
            difference = np.abs(plain.astype(int) - textured).sum() / plain.sum()
            assert 0.05 < difference < 0.6, (shape, radius)


def test_large_picture_averaged_is_the_small_one():
    f = sample_factors(1, "train", np.arange(40))
    large = scene_images(f, 128).reshape(40, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    small = scene_images(f, 32)
    # The edge is a ramp of a pixel at either size: they differ only there.
    assert np.abs(large - small).mean() < 1.5


def test_images_do_not_depend_on_the_batch():
    f = sample_factors(2, "train", np.arange(1500))
    images = scene_images(f, 32)
    rows = np.array([1400, 3, 77])
    assert np.array_equal(images[rows], scene_images({k: v[rows] for k, v in f.items()}, 32))


def test_video_shows_the_motion():
    f = sample_factors(0, "train", np.arange(600))
    one_object = f["num_objects"] == 1
    f = {k: v[one_object] for k, v in f.items()}
    video = scene_videos(f, 32, 5).astype(float)
    assert np.array_equal(video[:, 0], scene_images(f, 32))
    weight = np.abs(video - f["background"][:, None, None, None, :]).sum(axis=-1)
    weight = np.where(weight > 20, weight, 0)
    at = np.arange(32) / 32
    x, y = (np.einsum("nfhw,w->nf", weight, at), np.einsum("nfhw,h->nf", weight, at)) / weight.sum(
        axis=(2, 3)
    )
    mass = weight.sum(axis=(2, 3))
    dx, dy, growth = x[:, -1] - x[:, 0], y[:, -1] - y[:, 0], mass[:, -1] / mass[:, 0]
    motion = f["motion"][:, 0]
    assert (video[motion == 0] == video[motion == 0][:, :1]).all()
    assert (dx[motion == 1] < -0.1).all() and (dx[motion == 2] > 0.1).all()
    assert (dy[motion == 3] < -0.1).all() and (dy[motion == 4] > 0.1).all()
    assert (growth[motion == 5] > 1.4).all() and (growth[motion == 6] < 0.5).all()
    turning = np.abs(np.diff(video[motion == 7], axis=1)).max(axis=(1, 2, 3, 4))
    assert (turning > 40).all()


def test_image_size_out_of_range():
    with pytest.raises(ValueError, match=r"16\.\.128"):
        one("circle", size=8)


def sketch(shape, *, colour=WHITE, size=64, radius=0.2, texture=0):
    """Ink 0..1 at each pixel."""
    drawn = draw(
        np.array([[SHAPES.index(shape)]]), colour, np.array([[texture]]), np.array([[(0.43, 0.58)]]),
        np.array([[radius]]), np.zeros((1, 1)), np.broadcast_to(PAPER, (1, 3)), image_size=size, sketched=True,
    )[0]  # fmt: skip
    assert (drawn == drawn[..., :1]).all()
    return (PAPER - drawn[..., 0].astype(float)) / (PAPER - INK)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sketch_is_the_outline_of_the_shape(shape):
    size = 128
    lines, filled = sketch(shape, size=size), one(shape, size=size)[..., 0]
    assert not lines[filled == 0].any()
    depth = distance_transform_edt(filled == 255)  # of pixels, 1 for those next to the edge
    width = PENCIL * size
    # White is not hatched. At notches of right angles the distance within a shape is to the edges' extensions.
    assert not lines[depth > np.sqrt(2) * width + 0.5].any() and (depth > np.sqrt(2) * width + 0.5).any()
    assert np.mean(lines[(depth >= 1) & (depth < width - 1)] > 0.99) > 0.97


def test_a_sketch_tells_the_brightness_and_not_the_hue_or_the_texture():
    ink = [sketch("circle", colour=np.full((1, 1, 3), v)).sum() for v in (255.0, 170.0, 85.0, 0.0)]
    assert (np.diff(ink) > 0.1 * ink[0]).all()
    hues = np.array([[[200.0, 0.0, 0.0]]]), np.array([[[0.0, 0.0, 200.0 * 0.299 / 0.114]]])
    np.testing.assert_allclose(*(sketch("heart", colour=hue) for hue in hues), atol=0.01)
    np.testing.assert_array_equal(sketch("star", texture=1), sketch("star"))


def test_sketched_scenes_show_the_same_objects_in_the_same_places():
    f = sample_factors(0, "train", np.arange(200))
    sketches = scene_images(f, 64, sketched=True)
    assert (np.median(sketches, axis=(1, 2, 3)) == PAPER).all()
    assert sketches.shape == (200, 64, 64, 3)
    at = np.arange(64) + 0.5
    for i in range(200):
        near = np.zeros((64, 64), bool)
        for k in range(f["num_objects"][i]):
            x, y = f["position"][i, k] * 64
            reach = RADII[f["size"][i, k]] * 64
            here = np.hypot(at[None] - x, at[:, None] - y) <= 1.19 * reach + 1
            # Ink on all sides of the centre, as far as the shape is wide.
            spread = np.argwhere((sketches[i, ..., 0] < 128) & here)
            assert np.ptp(spread, axis=0).min() > reach and len(spread) > 10
            near |= here
        assert (sketches[i][~near] == PAPER).all()
