"""Masked autoregressive flows against Jacobians, quadrature and autoregression by hand."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import flows as oracle
from xmodal_jax.nets.flows import MADE, AutoregressiveFlow, MaskedDense

KEY = jax.random.key(0)
SIZES = [(1, 5, 1), (5, 11, 2), (7, 3, 1)]
"""Dimensions, hidden units (also fewer than dimensions) and depth."""


def rows(count, dim, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, dim)), jnp.float32)


def random_params(module, *args, seed=0, scale=0.5):
    """Noise in every parameter, those that start at 0 included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, KEY, *args)
    return jax.tree.map(lambda p: jnp.asarray(scale * rng.normal(size=p.shape), p.dtype), shapes)


def random_flow(dim, hidden=7, depth=2, layers=2, context=None, scale=0.5):
    flow = AutoregressiveFlow(dim, layers=layers, hidden=hidden, depth=depth)
    given = None if context is None else rows(3, context)
    return flow, random_params(flow, rows(3, dim), given, scale=scale)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("dim,hidden,depth", SIZES)
def test_every_dimension_sees_those_before_it_and_nothing_else(dim, hidden, depth, context, reverse):
    made = MADE(dim, hidden, depth, reverse=reverse)
    given = None if context is None else rows(1, context, 1)
    x = rows(1, dim)
    params = random_params(made, x, given)
    for part in jax.jit(jax.jacobian(lambda x: made.apply(params, x, given)))(x):
        part = np.asarray(part)[0, :, 0]
        part = part[::-1, ::-1] if reverse else part
        assert (np.triu(part) == 0).all()
        assert (part[np.tril_indices(dim, -1)] != 0).all()


@pytest.mark.parametrize("dim,hidden,depth", SIZES)
def test_the_context_reaches_every_dimension(dim, hidden, depth):
    made = MADE(dim, hidden, depth)
    x, given = rows(1, dim), rows(1, 3, 1)
    params = random_params(made, x, given)
    hidden_only = jax.tree.map(lambda p: p, params)
    hidden_only["params"]["context_out"]["kernel"] *= 0
    for part in jax.jit(jax.jacobian(lambda c: made.apply(params, x, c)))(given):
        assert (np.asarray(part) != 0).all()
    # The first dimension is no linear function of the context either, however many dimensions follow.
    if hidden >= dim:
        for part in jax.jit(jax.jacobian(lambda c: made.apply(hidden_only, x, c)))(given):
            assert (np.asarray(part) != 0).all()


def test_outputs_see_all_inputs_through_hidden_units_too():
    made = MADE(5, 8, 2)
    params = random_params(made, rows(1, 5))
    params["params"]["direct"]["kernel"] *= 0
    part = jax.jit(jax.jacobian(lambda x: made.apply(params, x)[0]))(rows(1, 5))[0, :, 0]
    assert (part[np.tril_indices(5, -1)] != 0).all()


@pytest.mark.parametrize("strict", [False, True])
def test_masked_dense_is_its_definition(strict):
    inputs, outputs = (1, 2, 3, 2), (3, 1, 2, 2, 4)
    layer = MaskedDense(inputs, outputs, strict=strict)
    x = rows(3, 4)
    params = random_params(layer, x)
    kernel, bias = (np.asarray(params["params"][k], np.float64) for k in ("kernel", "bias"))
    want = np.zeros((3, 5))
    forbidden = np.zeros((4, 5), bool)
    for j, out in enumerate(outputs):
        want[:, j] = bias[j]
        for i, degree in enumerate(inputs):
            forbidden[i, j] = not (out > degree if strict else out >= degree)
            if not forbidden[i, j]:
                want[:, j] += np.asarray(x, np.float64)[:, i] * kernel[i, j]
    np.testing.assert_allclose(layer.apply(params, x), want, atol=1e-5)
    params["params"]["kernel"] = jnp.where(forbidden, jnp.inf, params["params"]["kernel"])
    np.testing.assert_allclose(layer.apply(params, x), want, atol=1e-5)
    grads = jax.grad(lambda p: layer.apply(p, x).sum())(params)["params"]["kernel"]
    assert (np.asarray(grads)[forbidden] == 0).all() and (np.asarray(grads)[~forbidden] != 0).all()


def test_weights_start_with_the_variance_of_what_is_seen():
    layer = MaskedDense(tuple(range(1, 41)), (10,) * 3000)
    params = layer.init(KEY, rows(1, 40))
    y = layer.apply(params, jnp.ones((1, 40)))
    # 3000 sums of 10 weights of variance 1/10; the variance of 3000 normals is known to 2.6%.
    np.testing.assert_allclose(np.var(y), 1.0, rtol=0.11)


@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("dim,hidden,depth", SIZES)
def test_log_det_is_that_of_the_jacobian_and_the_inverse_inverts(dim, hidden, depth, context):
    """In float64: the determinant of a random flow's Jacobian is small beside its entries."""
    flow, params = random_flow(dim, hidden, depth, layers=3, context=context)
    x, given = rows(5, dim, 1), None if context is None else rows(5, context, 2)
    with jax.enable_x64(True):
        params, x, given = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, x, given))
        one = lambda x, c: flow.apply(params, x[None], None if c is None else c[None])[0][0]
        all_of = lambda x, c: (flow.apply(params, x, c), jax.vmap(jax.jacobian(one))(x, c))
        (z, log_det), jacobian = jax.jit(all_of)(x, given)
        back = jax.jit(lambda z, c: flow.apply(params, z, c, method="inverse"))(z, given)
        assert back.dtype == np.float64
    sign, want = np.linalg.slogdet(jacobian)
    assert (sign == 1).all()
    np.testing.assert_allclose(log_det, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back, x, rtol=1e-9, atol=1e-9)
    assert np.abs(log_det).max() > 0.05 and np.abs(np.asarray(z - x)).max() > 0.05


@pytest.mark.parametrize("dim", [1, 5, 13])
def test_the_inverse_inverts_in_float32(dim):
    flow, params = random_flow(dim, hidden=17, layers=4, scale=0.1)
    x = rows(11, dim, 1)
    back = jax.jit(lambda x: flow.apply(params, flow.apply(params, x)[0], method="inverse"))(x)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_inverse_is_autoregression(reverse):
    dim = 5
    flow, params = random_flow(dim, layers=2)
    made = MADE(dim, flow.hidden, flow.depth, reverse=reverse)
    weights = {"params": params["params"]["steps_1" if reverse else "steps_0"]}

    forward = jax.jit(made.apply)

    def ask(x):
        return (np.asarray(y[0], np.float64) for y in forward(weights, jnp.asarray(x[None], jnp.float32)))

    noise = np.random.default_rng(3).normal(size=dim)
    want = oracle.autoregression(ask, noise, range(dim)[::-1] if reverse else range(dim))
    # A layer whose parameters are all 0 is the identity and leaves the other alone.
    other = "steps_0" if reverse else "steps_1"
    alone = {"params": params["params"] | {other: jax.tree.map(jnp.zeros_like, params["params"][other])}}
    got = jax.jit(partial(flow.apply, method="inverse"))(alone, jnp.asarray(noise[None], jnp.float32))
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [None, 2])
def test_starts_as_the_identity(context):
    flow = AutoregressiveFlow(5, layers=3, hidden=7)
    x, given = rows(11, 5), None if context is None else rows(11, context)

    @jax.jit
    def everything(x, given):
        params = flow.init(KEY, x, given)
        of = lambda params, method: flow.apply(params, x, given, method=method)
        grads = jax.grad(lambda p: of(p, "log_prob").mean())(params)["params"]
        return [of(params, method) for method in ("__call__", "inverse", "log_prob")], grads

    ((z, log_det), inverse, log_prob), grads = everything(x, given)
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(log_det, np.zeros(11))
    np.testing.assert_array_equal(inverse, x)
    want = -0.5 * np.square(np.asarray(x, np.float64)).sum(1) - 2.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)
    # And can leave it: what starts at 0 has a gradient.
    for made in grads.values():
        assert np.abs(made["out"]["kernel"]).max() > 0 and np.abs(made["direct"]["kernel"]).max() > 0


@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize("dim", [1, 2])
def test_the_density_integrates_to_one(dim, context):
    flow, params = random_flow(dim, layers=3, context=context, scale=0.3)
    line = np.linspace(-12, 12, 401)
    grid = np.stack(np.meshgrid(*[line] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    given = None if context is None else jnp.broadcast_to(rows(1, context, 1), (len(grid), context))
    log_p = jax.jit(lambda x, c: flow.apply(params, x, c, method="log_prob"))(
        jnp.asarray(grid, jnp.float32), given
    )
    p = np.exp(np.asarray(log_p, np.float64)).reshape((401,) * dim)
    for _ in range(dim):
        p = np.trapezoid(p, line, axis=0)
    np.testing.assert_allclose(p, 1.0, atol=1e-3)


def test_examples_do_not_meet():
    flow, params = random_flow(3, context=2)
    x, given = rows(5, 3), rows(5, 2, 1)
    together = jax.jit(flow.apply)
    z, log_det = together(params, x, given)
    alone = jax.jit(jax.vmap(lambda x, c: flow.apply(params, x[None], c[None])))(x, given)
    np.testing.assert_allclose(alone[0][:, 0], z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone[1][:, 0], log_det, rtol=1e-5, atol=1e-6)
    moved = together(params, x, given.at[2].add(1.0))[0]
    changed = np.abs(np.asarray(moved - z)).max(axis=1) > 1e-4
    assert changed.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("context", [None, 3])
def test_over_modalities_it_is_one_flow_each(context):
    modalities, dim = 3, 5
    kinds = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    methods = ["__call__", "inverse", "log_prob"]
    flows = nn.vmap(AutoregressiveFlow, in_axes=0, methods=methods, **kinds)(dim, layers=2, hidden=7)
    one = AutoregressiveFlow(dim, layers=2, hidden=7)
    x = rows(modalities * 4, dim).reshape(modalities, 4, dim)
    given = None if context is None else rows(modalities * 4, context).reshape(modalities, 4, context)
    args = (x,) if given is None else (x, given)
    params = jax.jit(flows.init)(KEY, *args)
    kernel = np.asarray(params["params"]["steps_0"]["hidden_0"]["kernel"])
    assert kernel.shape == (modalities, dim, 7) and not np.array_equal(kernel[0], kernel[1])
    params = random_params(flows, *args)
    params, args = jax.tree.map(np.asarray, (params, args))
    every = lambda flow: jax.jit(lambda *args: [flow.apply(*args, method=method) for method in methods])
    got, alone = jax.tree.leaves(jax.tree.map(np.asarray, every(flows)(params, *args))), every(one)
    for m in range(modalities):
        own = jax.tree.map(lambda p, m=m: p[m], params)
        want = jax.tree.leaves(alone(own, *(a[m] for a in args)))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a[m], b, rtol=1e-5, atol=1e-5)


def test_the_log_scale_is_bounded():
    made = MADE(3, 5, 1, bound=1.5)
    params = random_params(made, rows(1, 3), scale=1e4)
    _, log_scale = made.apply(params, 1e4 * rows(7, 3))
    np.testing.assert_allclose(np.abs(log_scale), 1.5, rtol=1e-3)


@pytest.mark.parametrize(
    "sizes,match",
    [
        ({"features": 0}, "features must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"bound": 0.0}, "bound must be positive"),
        ({"features": 3}, "of 3 features"),
    ],
)
def test_sizes_that_make_no_flow_are_refused(sizes, match):
    flow = AutoregressiveFlow(**{"features": 5, "layers": 2, "hidden": 7, "depth": 1} | sizes)
    with pytest.raises(ValueError, match=match):
        flow.init(KEY, jnp.zeros((2, 5)))


def test_a_context_is_given_always_or_never():
    x, given = rows(2, 3), rows(2, 2)
    flow, without = random_flow(3)
    _, with_one = random_flow(3, context=2)
    for method in ("__call__", "inverse", "log_prob"):
        with pytest.raises(ValueError, match="without a context"):
            flow.apply(without, x, given, method=method)
        with pytest.raises(ValueError, match="give one"):
            flow.apply(with_one, x, method=method)


def test_masked_dense_refuses_other_inputs():
    with pytest.raises(ValueError, match="2 inputs"):
        MaskedDense((1, 2), (1, 2)).init(KEY, jnp.zeros((1, 3)))
