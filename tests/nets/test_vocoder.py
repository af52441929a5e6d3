"""The vocoder's network: its convolution against NumPy's, and what it knows of padding and of time."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import random_params
from xmodal_jax.nets.vocoder import ConvNeXtStack, DepthwiseConv, VocoderNet

RNG = np.random.default_rng(0)


def test_depthwise_convolution():
    x = jnp.asarray(RNG.normal(size=(2, 9, 3)), jnp.float32)
    conv = DepthwiseConv(5)
    params = random_params(conv.init, jax.random.key(0), x)
    found = conv.apply(params, x)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    for b in range(2):
        for d in range(3):
            # np.convolve flips the kernel.
            expected = np.convolve(np.asarray(x)[b, :, d], np.asarray(kernel)[::-1, d], mode="same") + bias[d]
            np.testing.assert_allclose(found[b, :, d], expected, atol=1e-5)


def test_padding_has_no_influence_and_no_gradient():
    x = jnp.asarray(RNG.normal(size=(2, 12, 4)), jnp.float32)
    mask = jnp.arange(12)[None, :] < jnp.array([[12], [7]])
    stack = ConvNeXtStack(depth=2, kernel=3)
    params = random_params(stack.init, jax.random.key(0), x, mask)
    valid_sum = lambda x: (stack.apply(params, x, mask) ** 2 * mask[:, :, None]).sum()
    gradient = np.asarray(jax.jit(jax.grad(valid_sum))(x))
    assert not gradient[1, 7:].any() and gradient[1, :7].any()
    alone = stack.apply(params, x[1:, :7])
    np.testing.assert_allclose(stack.apply(params, x, mask)[1, :7], alone[0], atol=1e-5)


def test_the_filters_begin_as_those_they_are_added_to():
    x = jnp.asarray(RNG.normal(size=(1, 6, 8)), jnp.float32)
    net = VocoderNet(bins=9, pitches=5, width=8, depth=1)
    frames = net.apply(net.init(jax.random.key(0), x), x)
    assert not any(np.any(part) for part in (frames.harmonic, frames.phase, frames.noise))
    assert frames.harmonic.shape == (1, 6, 9) and frames.pitch_logits.shape == (1, 6, 5)
    assert frames.voicing_logit.shape == (1, 6)
