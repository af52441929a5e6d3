"""DiffAugment and ADA by their definitions: one change of the image after the other, in float64."""

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from scipy.stats import norm


def diff_color(image, brightness, saturation, contrast):
    image = image + brightness
    grey = image.mean(axis=2, keepdims=True)
    image = (image - grey) * saturation + grey
    return (image - image.mean()) * contrast + image.mean()


def shift(image, down, right):
    out = np.zeros_like(image)
    height, width = image.shape[:2]
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[y, x] = image[y - down, x - right]
    return out


def cut(image, top, left, height, width):
    out = image.copy()
    out[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = 0
    return out


def geometry(draws, p, c, height, width):
    """Where each point (y, x, 1) of the image goes: the product of the changes, the last on the left.

    ``draws``: three uniform numbers for each change; ``c``: the strengths by name.
    """
    happens = lambda name, probability=p: draws[name][0] < probability
    values = lambda name: np.asarray(draws[name][1:], np.float64)
    sides = np.array([height, width])

    def scale(y, x):
        return np.diag([y, x, 1.0])

    def move(by):
        out = np.eye(3)
        out[:2, 2] = by
        return out

    def rotate(angle):
        """Counterclockwise where y points down: right goes up."""
        return np.array(
            [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]]
        )

    g = np.eye(3)
    if c["flip"] and happens("flip") and values("flip")[0] > 0.5:
        g = scale(1, -1) @ g
    if c["quarter_turns"] and happens("quarter_turns"):
        g = rotate(np.floor(4 * values("quarter_turns")[0]) * np.pi / 2) @ g
    if happens("translate"):
        g = move(np.round((2 * values("translate") - 1) * c["translate"] * sides)) @ g
    if happens("scale"):
        s = 2 ** (c["scale"] * norm.ppf(values("scale")[0]))
        g = scale(s, s) @ g
    for name in ("rotate_before", "stretch", "rotate_after"):
        if name == "stretch" and happens(name):
            s = 2 ** (c["stretch"] * norm.ppf(values(name)[0]))
            g = scale(1 / s, s) @ g
        elif name != "stretch" and happens(name, 1 - (1 - p) ** 0.5):
            g = rotate(np.deg2rad(c["rotate"]) * (2 * values(name)[0] - 1)) @ g
    if happens("shift"):
        g = move(norm.ppf(values("shift")) * c["shift"] * sides) @ g
    return g


def warp(image, g):
    """The image after its points went where ``g`` says, bilinear, mirrored outside."""
    height, width, channels = image.shape
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    y, x = np.meshgrid(np.arange(height) - centre[0], np.arange(width) - centre[1], indexing="ij")
    source = np.linalg.inv(g) @ np.stack([y.ravel(), x.ravel(), np.ones(y.size)])
    places = source[:2] + centre[:, None]
    planes = [map_coordinates(image[..., k], places, order=1, mode="mirror") for k in range(channels)]
    return np.stack(planes, axis=-1).reshape(image.shape)


def colors(draws, p, c):
    """The 4x4 matrix of (r, g, b, 1)."""
    happens = lambda name: draws[name][0] < p
    value = lambda name: float(draws[name][1])
    grey = np.ones(3) / np.sqrt(3)

    def linear(m):
        out = np.eye(4)
        out[:3, :3] = m
        return out

    m = np.eye(4)
    if happens("brightness"):
        add = np.eye(4)
        add[:3, 3] = c["brightness"] * norm.ppf(value("brightness"))
        m = add @ m
    if happens("contrast"):
        m = linear(np.eye(3) * 2 ** (c["contrast"] * norm.ppf(value("contrast")))) @ m
    if c["luma_flip"] and happens("luma_flip") and value("luma_flip") > 0.5:
        m = linear(np.eye(3) - 2 * np.outer(grey, grey)) @ m
    if happens("hue"):
        m = linear(Rotation.from_rotvec(np.deg2rad(c["hue"]) * (2 * value("hue") - 1) * grey).as_matrix()) @ m
    if happens("saturation"):
        s = 2 ** (c["saturation"] * norm.ppf(value("saturation")))
        m = linear(np.outer(grey, grey) + s * (np.eye(3) - np.outer(grey, grey))) @ m
    return m


def ada(image, draws, p, c):
    """All of it; of a grey image the three channels are alike and averaged again."""
    height, width, channels = image.shape
    image = warp(np.broadcast_to(image, (height, width, 3)), geometry(draws, p, c, height, width))
    m = colors(draws, p, c)
    image = np.einsum("ij,yxj->yxi", m[:3, :3], image) + m[:3, 3]
    if channels == 1:
        image = image.mean(axis=2, keepdims=True)
    if draws["cutout"][0] < p:
        for y in range(height):
            for x in range(width):
                near = [
                    abs((place + 0.5) / side - centre) < c["cutout"] / 2
                    for place, side, centre in zip((y, x), (height, width), draws["cutout"][1:], strict=True)
                ]
                if all(near):
                    image[y, x] = 0
    return image
