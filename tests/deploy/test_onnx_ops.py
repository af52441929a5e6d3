"""ONNX operators give what the primitives of JAX give, for any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from xmodal_jax.deploy.onnx_convert import make_model
from xmodal_jax.deploy.onnx_graph import NotConvertible, size_at
from xmodal_jax.deploy.programs import Field

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def in_onnx(function, **inputs):
    """``function(**inputs)`` by ONNX Runtime, converted with a symbolic batch size."""
    fields = {name: Field(x.shape[1:], str(x.dtype), "") for name, x in inputs.items()}
    (batch,) = jax.export.symbolic_shape("batch")
    flat = lambda *arrays: (function(**dict(zip(fields, arrays, strict=True))),)
    closed = jax.make_jaxpr(flat)(*(field.struct(batch) for field in fields.values()))
    model = make_model(closed, {}, fields, ["out"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {k: v for k, v in inputs.items() if k in names})[0]


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


KERNELS = normal(2, 3, 3, 4, 6)


def grouped(x):
    """Two convolutions at once, as the encoders of several modalities of a kind are computed."""
    return jax.vmap(
        lambda x, k: lax.conv_general_dilated(
            x, k, (2, 2), ((0, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (1, 0),
    )(x, jnp.asarray(KERNELS))


def transposed(x, padding=((1, 2), (2, 2)), groups=1):
    kernel = jnp.asarray(normal(3, 4, 4 // groups, 6))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, lhs_dilation=(2, 2), feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


CASES = {
    "a product over two axes": (lambda x: jnp.einsum("bijk,jkl->bil", x, normal(3, 4, 5)), normal(2, 6, 3, 4)),
    "a product with batches": (lambda x: jnp.einsum("bqhd,bkhd->bhqk", x, x * 2), normal(2, 5, 3, 4)),
    "a product with a vector": (lambda x: x @ normal(4), normal(3, 4)),
    "a convolution": (
        lambda x: lax.conv_general_dilated(
            x, jnp.asarray(normal(5, 4, 6)), (2,), ((3, 1),), rhs_dilation=(2,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        ), normal(2, 11, 4),
    ),
    "two convolutions at once": (grouped, normal(2, 2, 7, 8, 4)),
    "a transposed convolution": (transposed, normal(2, 5, 6, 4)),
    "one in groups": (lambda x: transposed(x, groups=2), normal(2, 5, 6, 4)),
    "one with much padding": (lambda x: transposed(x, ((1, 4), (2, 5))), normal(2, 5, 6, 4)),
    "a Fourier transform": (lambda x: jnp.abs(jnp.fft.rfft(x).real) + jnp.fft.rfft(x).imag, normal(3, 40)),
    "entries": (lambda x: jnp.take(x, jnp.array([2, 0]), axis=1), normal(2, 3, 4)),
    "entries that are not there": (
        lambda x: x[:, :2] + jnp.take(jnp.asarray(normal(9, 4)), jnp.array([8, 9]), axis=0)[None],
        normal(1, 3, 4),
    ),
    "entries of each example": (
        lambda x: jnp.take_along_axis(x, jnp.argmax(x, axis=1)[:, None, :1], axis=1), normal(3, 5, 4),
    ),
    "slices": (lambda x: x[:, 1:-1:2][..., ::-1], normal(2, 7, 4)),
    "one entry replaced": (lambda x: x.at[:, 1].set(x[:, 0] * 3), normal(2, 3, 4)),
    "padding": (lambda x: jnp.pad(x, ((0, 0), (2, 1)), constant_values=3.0), normal(2, 3)),
    "sums along axes": (lambda x: x.sum((1, 3)) + x.max((1, 3)) * jnp.cumsum(x, 2).min((1, 3)), normal(2, 3, 4, 5)),
    "logic": (lambda x: ((x > 0) & (x < 1)).any(1) | ~jnp.isfinite(x).all(1), normal(3, 4)),
    "a number for all elements": (
        lambda x: jnp.where(x > 0, x, 0.0) * jnp.arange(4.0)[None, :] + jnp.broadcast_to(x[:, :1], x.shape),
        normal(3, 4),
    ),
    "a number alone for all elements": (lambda x: jnp.broadcast_to(x.sum(), x.shape) * jnp.ones_like(x), normal(3, 4)),
    "a count of bools": (
        lambda x: (x > 0).sum(1) + (x > 0).astype(jnp.int32).sum((0, 1), keepdims=True)[0], normal(3, 4, 5)
    ),
    "a choice between bools": (lambda x: jnp.where(x > 0, x > 1, x < -1), normal(3, 4)),
    "functions": (
        lambda x: jnp.expm1(x) + jnp.log1p(jnp.abs(x)) + jax.nn.gelu(x, approximate=False) + x**3 + jax.nn.softmax(x),
        normal(3, 4),
    ),
    "rounding": (lambda x: jnp.round(x * 5) + lax.round(x * 2) + jnp.floor(x), normal(3, 40)),
    "numbers of examples": (lambda x: x + jnp.arange(x.shape[0], dtype=jnp.float32)[:, None], normal(3, 4)),
    "the batch in another axis": (lambda x: jnp.concatenate([x, x], 0).reshape(2, -1, 4).swapaxes(0, 1), normal(3, 4)),
    "stacked and split": (lambda x: jnp.stack(jnp.split(x, 2, axis=1), axis=1) % 0.3, normal(3, 6)),
    "a layer's norm": (lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True)), normal(3, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_equal_the_primitives(name):
    function, x = CASES[name]
    ours = np.asarray(jax.jit(function)(x))
    theirs = in_onnx(function, x=x)
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    np.testing.assert_allclose(theirs, ours, atol=1e-5, rtol=1e-5)


def test_an_operation_that_is_not_convertible_is_named():
    with pytest.raises(NotConvertible, match=r"the operation 'sort' of \(float32\[batch,4\]\) cannot be"):
        in_onnx(lambda x: jnp.sort(x), x=normal(3, 4))


def test_sizes_of_symbols():
    (batch,) = jax.export.symbolic_shape("batch")
    assert [size_at(4 * batch + 1, n) for n in (0, 1, 5)] == [1, 5, 21]
    assert size_at(batch // 2, 5) == 2
    assert size_at(3 * batch * batch - batch, 5) == 70  # JAX writes a power
    with pytest.raises(NotConvertible, match="no formula of the size of the batch: __import__"):
        size_at("__import__('os').getpid()", 1)
