import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.losses import chunked, gradient_cache, info_nce

PEAK = """
import pathlib, sys
import jax
from xmodal_jax.losses import info_nce

def peak():  # of this program: getrusage would begin with the parent's peak
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10

a, b = jax.random.normal(jax.random.key(0), (2, 32768, 512))
loss = lambda a, b, t: info_nce(a, b, temperature=t, normalize=True, implementation="tiled").mean()
program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(a, b, 0.07).compile()
before = peak()
jax.block_until_ready(program(a, b, 0.07))
print(peak() - before)
"""


def temporary_mebibytes(size, implementation):
    x = jax.ShapeDtypeStruct((size, 32), jnp.float32)
    loss = lambda a, b: info_nce(a, b, temperature=0.07, implementation=implementation, tile=256).mean()
    return jax.jit(jax.grad(loss, (0, 1))).lower(x, x).compile().memory_analysis().temp_size_in_bytes / 2**20


def test_memory_grows_with_the_batch_and_not_with_its_square():
    """The logits of 16,384 pairs are a gibibyte; a tile of them is 16 MiB, and 8 for half the batch."""
    small, large = temporary_mebibytes(8192, "tiled"), temporary_mebibytes(16384, "tiled")
    assert large < 100 and large < 2.2 * small
    assert temporary_mebibytes(16384, "global") > 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_batch_of_32768_pairs_takes_less_than_a_gibibyte():
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    out = subprocess.run([sys.executable, "-c", PEAK], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert 100 < float(out.stdout) < 1024


def encode(params, batch):
    hidden = jnp.tanh(jnp.einsum("bi,io->bo", batch["x"], params["w"]))
    return {"a": hidden, "b": jnp.einsum("bi,io->bo", batch["y"], params["v"])}


def make():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {"w": normal(5, 3), "v": normal(7, 3), "log_t": jnp.float32(-1.0)}
    return params, {"x": normal(12, 5), "y": normal(12, 7)}


def loss(params, out):
    terms = info_nce(out["a"], out["b"], temperature=jnp.exp(params["log_t"]), normalize=True)
    return terms.mean(), {"hardest": terms.max()}


@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_gradient_cache_is_the_direct_gradient(chunks):
    params, batch = make()
    want = jax.jit(jax.value_and_grad(lambda p: loss(p, encode(p, batch)), has_aux=True))(params)
    got = jax.jit(lambda p, b: gradient_cache(encode, loss, p, b, chunks, has_aux=True))(params, batch)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want)


def test_chunks_must_divide_the_batch():
    params, batch = make()
    with pytest.raises(ValueError, match="a batch of 12 does not split into 5"):
        chunked(encode, 5)(params, batch)


def test_chunks_keep_one_chunk_of_activations():
    """A wide layer's activations dominate: eight chunks need far less than all at once."""
    params = {"w": np.zeros((4, 4096), np.float32), "v": np.zeros((4096, 4), np.float32)}
    batch = np.zeros((512, 4), np.float32)
    wide = lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"]

    def temporary(encode):
        grad = jax.jit(jax.grad(lambda p: jnp.sum(encode(p, batch) ** 2)))
        return grad.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary(chunked(wide, 8)) < 0.5 * temporary(wide)
