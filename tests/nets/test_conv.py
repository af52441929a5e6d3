from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import export
from jax.sharding import Mesh, PartitionSpec

from tests.support import random_params
from xmodal_jax.nets import conv, conv_cpu, conv_lax
from xmodal_jax.nets.conv import Conv, ConvTranspose

CASES = [  # spatial size, kernel, strides, padding
    ((11, 7), (3, 3), (1, 1), "SAME"),
    ((12, 7), (4, 4), (2, 2), "SAME"),
    ((11, 7), (5, 2), (3, 1), "VALID"),
    ((11, 7), (3, 4), (2, 3), ((2, 1), (0, 3))),
    ((7, 5), (1, 1), (2, 2), "VALID"),
    ((13,), (3,), (2,), ((1, 1),)),
]
TRANSPOSED = [
    ((5, 7), (4, 4), (2, 2), "SAME"),
    ((5, 7), (3, 3), (2, 2), "SAME"),
    ((5, 7), (3, 5), (2, 3), "VALID"),
    ((5, 7), (2, 2), (3, 3), "VALID"),
    ((5, 7), (4, 4), (2, 2), ((2, 1), (3, 2))),
    ((11,), (4,), (2,), "SAME"),
]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layers(transposed, size, kernel, strides, padding, **options):
    ours, theirs = (ConvTranspose, nn.ConvTranspose) if transposed else (Conv, nn.Conv)
    make = lambda cls: cls(5, kernel, strides, padding, **options)
    x = normal(0, 2, *size, 3)
    ours, theirs = make(ours), make(theirs)
    params = random_params(theirs.init, jax.random.key(1), x)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(ours.init, jax.random.key(1), x))
    return ours, theirs, params, x


def close(a, b, tolerance=2e-5):
    def check(a, b):
        assert a.dtype == b.dtype
        largest = float(np.abs(np.asarray(b)).max())
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, largest))

    jax.tree.map(check, a, b)


def loss(layer):
    return lambda params, x: jnp.sum(jnp.tanh(layer.apply(params, x)))


@pytest.mark.parametrize("transposed, case", [(False, c) for c in CASES] + [(True, c) for c in TRANSPOSED])
def test_equals_flax_in_value_gradient_and_gradient_of_gradient(transposed, case):
    ours, theirs, params, x = layers(transposed, *case)
    initial = jax.jit(lambda key: (theirs.init(key, x), ours.init(key, x)))(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, *initial)

    def everything(layer):
        first = jax.grad(loss(layer), argnums=(0, 1))

        def penalty(params, x):  # of both gradients, as a gradient penalty would
            return sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(first(params, x)))

        return jax.jit(lambda p, x: (layer.apply(p, x), first(p, x), jax.grad(penalty, argnums=(0, 1))(p, x)))

    close(everything(ours)(params, x), everything(theirs)(params, x))


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_of_other_platforms_are_the_same(case):
    size, kernel, strides, padding = case
    geometry = conv.conv_geometry(size, kernel, strides, padding)
    x, k, dy = normal(0, 2, *size, 3), normal(1, *kernel, 3, 5), normal(2, 2, *geometry.output_size, 5)

    def both(x, k, dy, permute):
        options = dict(geometry=geometry, permute=permute)
        return conv_lax.input_gradient(dy, k, **options), conv_lax.kernel_gradient(x, dy, **options)

    close(*jax.jit(lambda *args: [both(*args, permute) for permute in (False, True)])(x, k, dy))


def test_programs_for_other_platforms_have_their_gradients():
    """Lowered for a TPU or GPU on this machine, the kernel gradient has no transpose of the whole input."""
    ours, _, params, x = layers(False, (5, 7), (3, 3), (1, 1), "SAME")
    step = jax.jit(jax.grad(loss(ours)))
    programs = {p: export(step, platforms=[p])(params, x).mlir_module() for p in ("cpu", "tpu", "cuda")}
    assert (
        programs["tpu"].count("stablehlo.convolution") == programs["cpu"].count("stablehlo.convolution") == 2
    )
    assert [programs[p].count("stablehlo.transpose") for p in ("tpu", "cuda")] == [0, 0]
    assert programs["cpu"].count("stablehlo.transpose") == 3


@pytest.mark.parametrize("transposed", [False, True])
def test_inside_scan(transposed):
    ours, theirs, params, x = layers(transposed, (5, 7), (3, 3), (2, 2), "SAME")

    def train(layer):
        step = lambda p, x: (jax.tree.map(lambda a, g: a - 0.01 * g, p, jax.grad(loss(layer))(p, x)), None)
        return jax.jit(lambda p: jax.lax.scan(step, p, jnp.stack([x, 2 * x, -x]))[0])(params)

    close(train(ours), train(theirs))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batched", [(0, 0), (0, None), (None, 0)])
def test_under_vmap(transposed, batched):
    ours, _, params, x = layers(transposed, (5, 7), (3, 3), (2, 2), "SAME")
    several = lambda arg: jax.tree.map(lambda a: np.stack([a, 2 * a, a - 1]), arg)
    params, x = jax.tree.map(np.asarray, (params, x))
    args = [several(arg) if axis == 0 else arg for arg, axis in zip((params, x), batched, strict=True)]
    member = lambda i: [
        jax.tree.map(lambda a: a[i], a) if s == 0 else a for a, s in zip(args, batched, strict=True)
    ]

    def penalty(params, x):
        return jnp.sum(jnp.square(jax.grad(loss(ours), argnums=1)(params, x)))

    gradient = jax.grad(penalty, argnums=(0, 1))
    # with the derivative of the mapped function
    total = jax.grad(lambda *a: jax.vmap(loss(ours), in_axes=batched)(*a).sum(), argnums=(0, 1))
    mapped = jax.jit(lambda *a: (jax.vmap(gradient, in_axes=batched)(*a), total(*a)))
    together, total = jax.tree.map(np.asarray, mapped(*args))
    single = jax.jit(lambda *a: (gradient(*a), jax.grad(loss(ours), argnums=(0, 1))(*a)))
    alone = []
    for i in range(3):
        second, first = jax.tree.map(np.asarray, single(*member(i)))
        close(jax.tree.map(lambda a, i=i: a[i], together), second)
        alone.append(first)
    for j, axis in enumerate(batched):
        combine = (lambda *g: np.stack(g)) if axis == 0 else (lambda *g: sum(g))
        close(total[j], jax.tree.map(combine, *(g[j] for g in alone)))


def test_under_pmap_and_shard_map():
    ours, _, params, x = layers(False, (5, 7), (3, 3), (1, 1), "SAME")
    whole = jax.jit(jax.grad(loss(ours)))(params, x)
    shards = x.reshape(2, 1, *x.shape[1:])
    pmapped = jax.pmap(
        lambda p, x: jax.lax.psum(jax.grad(loss(ours))(p, x), "data"), "data", in_axes=(None, 0),
        devices=jax.devices()[:2],
    )(params, shards)  # fmt: skip
    close(jax.tree.map(lambda g: g[0], pmapped), whole)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = PartitionSpec("data")
    for check in (False, True):
        mapped = jax.shard_map(
            lambda p, x: jax.lax.psum(loss(ours)(p, x), "data"),
            mesh=mesh,
            in_specs=(PartitionSpec(), spec),
            out_specs=PartitionSpec(),
            check_vma=check,
        )
        close(jax.jit(jax.grad(mapped))(params, x), whole)


def test_groups_bias_and_dtype():
    x = normal(0, 2, 7, 5, 6)
    for options in (dict(feature_group_count=3), dict(use_bias=False), dict(dtype=jnp.bfloat16)):
        ours, theirs = (cls(9, (3, 3), 2, padding=1, **options) for cls in (Conv, nn.Conv))
        params = random_params(theirs.init, jax.random.key(1), x)

        def everything(layer, gradient="dtype" not in options):
            first = [jax.grad(loss(layer))] if gradient else []
            return jax.jit(lambda p, x: [f(p, x) for f in (layer.apply, *first)])

        ours, theirs = everything(ours)(params, x), everything(theirs)(params, x)
        close(ours, theirs)
        if "dtype" in options:
            assert ours[0].dtype == jnp.bfloat16


def test_errors_say_what_is_wrong():
    init = lambda layer: jax.eval_shape(layer.init, jax.random.key(0), np.ones((2, 5, 3), np.float32))
    with pytest.raises(ValueError, match="4 axes"):
        init(Conv(2, (3, 3)))
    with pytest.raises(ValueError, match="padding"):
        init(Conv(2, (3,), padding="CIRCULAR"))
    with pytest.raises(ValueError, match="padding"):
        init(ConvTranspose(2, (3,), padding="REFLECT"))
    with pytest.raises(ValueError, match="one per spatial axis"):
        init(Conv(2, (3,), strides=(1, 2)))


@pytest.mark.parametrize("groups", [2, 12])  # 12: more than are unrolled
def test_gradients_of_the_gradient_of_groups_are_flaxs(groups):
    x = normal(0, 2, 6, 5, 24)
    ours, theirs = (cls(24, (3, 3), feature_group_count=groups, use_bias=False) for cls in (Conv, nn.Conv))
    params = random_params(theirs.init, jax.random.key(1), x)

    def penalty(layer):
        slope = lambda p, x: jax.grad(loss(layer), argnums=1)(p, x)
        square = lambda p, x: jnp.square(slope(p, x)).sum()
        return jax.jit(jax.value_and_grad(square, argnums=(0, 1)))

    close(penalty(ours)(params, x), penalty(theirs)(params, x), tolerance=1e-4)


STACKED = [  # spatial size, kernel, strides, padding
    ((11, 7), (4, 4), (2, 2), "SAME"),
    ((13, 7), (3, 5), (2, 3), ((2, 1), (0, 3))),
    ((7, 5), (3, 3), (1, 1), "VALID"),
]


OPERANDS = {"correlate": ("x", "kernel"), "input_gradient": ("dy", "kernel"), "kernel_gradient": ("x", "dy")}


def three_orders(form):
    """Value, gradients, and gradients of gradients of a function of two arrays."""
    first = jax.grad(lambda a, b: jnp.sum(jnp.tanh(form(a, b))), argnums=(0, 1))
    second = jax.grad(lambda *ab: sum(jnp.sum(jnp.square(g)) for g in first(*ab)), argnums=(0, 1))
    return jax.jit(lambda *ab: (form(*ab), first(*ab), second(*ab)))


@cache
def plain_of_one_member(name, case):
    options = {} if name == "correlate" else {"permute": False}
    return three_orders(partial(getattr(conv_lax, name), geometry=conv.conv_geometry(*case), **options))


@pytest.mark.parametrize("name", ("correlate", "input_gradient", "kernel_gradient"))
@pytest.mark.parametrize("case", STACKED)
@pytest.mark.parametrize(
    "members",
    # One after the other, or in a loop.
    [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5)), conv_cpu.UNROLLED_MEMBERS + 1],
)
def test_stacked_members_are_the_plain_convolution_of_each(name, case, members):
    """Value, gradients, and gradients of gradients, in float64, where rounding hides nothing."""
    geometry = conv.conv_geometry(*case)
    rng, shapes = np.random.default_rng(0), {
        "x": (members, 3, *geometry.input_size, 3),
        "kernel": (members, *geometry.kernel_size, 3, 5),
        "dy": (members, 3, *geometry.output_size, 5),
    }  # fmt: skip
    ours = three_orders(jax.vmap(lambda a, b: getattr(conv, name)(a, b, geometry)))
    with jax.enable_x64(True):
        operands = [rng.normal(size=shapes[n]) for n in OPERANDS[name]]
        each = [plain_of_one_member(name, case)(*ab) for ab in zip(*operands, strict=True)]
        close(ours(*operands), jax.tree.map(lambda *leaves: np.stack(leaves), *each), 1e-12)


@pytest.mark.parametrize("members", [2, conv_cpu.UNROLLED_MEMBERS + 1])
def test_few_stacked_members_need_no_loop(members):
    """A loop would copy each member in and out."""
    geometry = conv.conv_geometry((7, 5), (4, 4), (2, 2), "SAME")
    x, kernel = jnp.ones((members, 3, 7, 5, 3)), jnp.ones((members, 4, 4, 3, 5))
    step = jax.jit(jax.vmap(lambda x, kernel: conv.correlate(x, kernel, geometry)))
    loops = export(step, platforms=["cpu"])(x, kernel).mlir_module().count("stablehlo.while")
    assert loops == (members > conv_cpu.UNROLLED_MEMBERS)
