"""The CPU's forms against XLA's plain convolutions, at sizes where the forms change."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.nets import conv_cpu, conv_lax
from xmodal_jax.nets.conv import conv_geometry

MAPS = ("correlate", "input_gradient", "kernel_gradient")
CASES = [  # spatial size, kernel, strides, padding
    ((11, 7), (3, 3), (1, 1), "SAME"),
    ((12, 7), (4, 4), (2, 2), "SAME"),
    ((11, 7), (3, 4), (1, 2), ((2, 1), (0, 3))),
    ((13, 11), (2, 3), (1, 1), "VALID"),
    ((9, 9), (6, 6), (3, 3), ((1, 2), (0, 0))),
    ((11, 13), (6, 4), (3, 2), ((-1, 2), (0, -2))),
    ((5, 2), (3, 3), (1, 1), "SAME"),
]
OTHERS = [  # never by Winograd
    ((2, 2), (3, 3), (1, 1), "SAME"),  # an input smaller than the kernel
    ((2, 3), (4, 4), (2, 2), "SAME"),
    ((4, 4), (3, 3), (2, 2), "SAME"),  # a small gradient, dilated
    ((13, 7), (7, 7), (2, 2), ((3, 3), (3, 3))),
    ((11,), (4,), (2,), "SAME"),
    ((5, 7, 4), (2, 4, 3), (1, 2, 2), "SAME"),
]


def operands(name, geometry, channels=5, features=7, batch=3, dtype=np.float64):
    rng = np.random.default_rng(0)
    shapes = {
        "x": (batch, *geometry.input_size, channels),
        "kernel": (*geometry.kernel_size, channels, features),
        "dy": (batch, *geometry.output_size, features),
    }
    names = {"correlate": ("x", "kernel"), "input_gradient": ("dy", "kernel"), "kernel_gradient": ("x", "dy")}
    return [rng.normal(size=shapes[n]).astype(dtype) for n in names[name]]


def plain(name, geometry, *args):
    options = {} if name == "correlate" else {"permute": False}
    return getattr(conv_lax, name)(*map(jnp.asarray, args), geometry=geometry, **options)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("case", CASES)
def test_winograd_is_the_convolution(monkeypatch, name, case):
    """In float64, where only a wrong formula could differ by more than 1e-12."""
    monkeypatch.setattr(conv_cpu, "WINOGRAD_WORK", 0)
    for least in (conv_cpu.WINOGRAD_CHANNELS, conv_cpu.WINOGRAD_KERNEL_CHANNELS):
        for taps in least:
            monkeypatch.setitem(least, taps, 1)
    geometry = conv_geometry(*case)
    with jax.enable_x64(True):
        args = operands(name, geometry)
        ours = jax.jit(lambda *a: getattr(conv_cpu, name)(*a, geometry=geometry))
        products = ours.lower(*args).as_text().count("stablehlo.dot_general")
        taps = np.ceil(np.array(geometry.kernel_size) / geometry.strides)
        if name == "input_gradient" and max(geometry.strides) > 1:
            assert products == 1  # by blocks
        else:
            assert products == np.prod(taps + 1)
        expected = plain(name, geometry, *args)
        assert ours(*args).shape == expected.shape
        np.testing.assert_allclose(ours(*args), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("case", OTHERS)
def test_other_forms_are_the_convolution(name, case):
    geometry = conv_geometry(*case)
    with jax.enable_x64(True):
        args = operands(name, geometry)
        ours = jax.jit(lambda *a: getattr(conv_cpu, name)(*a, geometry=geometry))(*args)
        np.testing.assert_allclose(ours, plain(name, geometry, *args), rtol=1e-12, atol=1e-12)


def test_winograd_is_chosen_for_wide_layers_and_keeps_the_precision():
    """0.6 GFLOP, 128 channels and more; float32 to a few units in the last place of the largest output."""
    geometry = conv_geometry((17, 13), (3, 3), (1, 1), "SAME")
    for name in MAPS:
        args = operands(name, geometry, channels=131, features=137, batch=9, dtype=np.float32)
        ours = jax.jit(lambda *a, name=name: getattr(conv_cpu, name)(*a, geometry=geometry))
        assert ours.lower(*args).as_text().count("stablehlo.dot_general") == 16
        result = np.asarray(ours(*args))
        with jax.enable_x64(True):
            expected = np.asarray(plain(name, geometry, *(a.astype(np.float64) for a in args)))
        assert np.abs(result - expected).max() < 5e-6 * np.abs(expected).max()


def test_matrices_of_winograd():
    """A ((G g) * (B d)) is the correlation of d with g, for every pair of unit vectors."""
    for taps in (2, 3):
        b, g, a = (
            m[taps] for m in (conv_cpu.WINOGRAD_INPUT, conv_cpu.WINOGRAD_KERNEL, conv_cpu.WINOGRAD_OUTPUT)
        )
        for i, t in itertools.product(range(taps + 1), range(taps)):
            d, k = np.eye(taps + 1)[i], np.eye(taps)[t]
            np.testing.assert_array_equal(a @ ((g @ k) * (b @ d)), np.correlate(d, k, "valid"))
