"""The networks of R3GAN against plain NumPy, and their initialisation against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets.test_gan import CONDITION, KEY, NOISE, VECTOR, exact, keys, normal, parameters
from tests.oracles import gan as oracle
from xmodal_jax.nets.gan import R3GANGeneratorConfig
from xmodal_jax.nets.r3gan import (
    R3GANEncoder,
    R3GANGenerator,
    ResidualBlock,
    block_gain,
    downsample_smooth,
    stage_features,
    upsample_smooth,
)
from xmodal_jax.types import Condition

B = len(NOISE)


@pytest.mark.parametrize("size", [(4, 6), (2, 8)])
def test_resampling_is_zeros_between_and_the_filter_121(size):
    x = normal(0, 2, *size, 3)
    for ours, theirs in (
        (upsample_smooth, oracle.upsample_smooth),
        (downsample_smooth, oracle.downsample_smooth),
    ):
        ours = jax.jit(ours)
        np.testing.assert_allclose(ours(x), theirs(np.float64(x)), rtol=1e-5, atol=1e-6)
        # Constant images stay constant away from the border, where the outside is 0.
        np.testing.assert_allclose(ours(jnp.ones_like(x))[:, 1:, 1:], 1.0)


def test_the_generator_is_its_layers():
    """Of two blocks at each of three resolutions, the last of which has half the channels."""
    module = R3GANGenerator((16, 24, 3), width=8, depth=2, group_size=4, wide_stages=2, basis_features=12)
    params = parameters(module, NOISE, CONDITION)
    assert {k for k in params if "channels" in k} == {"channels_0", "channels_2"}
    assert params["basis"].shape == (4, 6, 12)
    assert params["block_2_1"]["conv"]["kernel"].shape == (3, 3, 4, 8)
    apply = lambda p, n, k: module.apply({"params": p}, n, Condition(VECTOR), keys=k)
    training, evaluation = jax.jit(lambda p, n: [apply(p, n, k) for k in (keys(B), None)])(params, NOISE)
    wanted = oracle.r3gan_generator(*exact((params, NOISE, VECTOR)), stages=3, group_size=4)
    assert np.abs(wanted).max() > 1.5
    np.testing.assert_allclose(training, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(evaluation, wanted.clip(-1, 1), rtol=1e-3, atol=1e-4)


def test_the_discriminator_is_its_layers():
    module, x = R3GANEncoder(width=8, depth=2, group_size=4, wide_stages=2), normal(1, B, 16, 24, 3)
    params = parameters(module, x)
    assert {k for k in params if "channels" in k} == {"channels_1"}
    found = jax.jit(lambda p, x: module.apply({"params": p}, x))(params, x)
    wanted = oracle.r3gan_encoder(*exact((params, x)), stages=3, group_size=4)
    assert found.values.shape == (B, 1, 8) and found.mask is None
    np.testing.assert_allclose(found.values[:, 0], wanted, rtol=1e-3, atol=1e-3)


def test_weights_have_the_scale_of_the_definition_and_blocks_start_as_the_identity():
    block, x = ResidualBlock(blocks=8, group_size=16), normal(2, 2, 4, 4, 64)
    output, variables = jax.jit(block.init_with_output)(KEY, x)
    np.testing.assert_array_equal(output, x)
    own = variables["params"]
    gain = np.sqrt(2 / 1.04) * 8**-0.25
    assert block_gain(8) == pytest.approx(gain)
    for name, fan_in in (("expand", 64), ("conv", 9 * 16)):
        kernel = np.asarray(own[name]["kernel"])
        # The deviation of n normal numbers has a relative error of 1 / sqrt(2 n), a kurtosis of 3.
        assert kernel.std() == pytest.approx(gain / np.sqrt(fan_in), rel=4 / np.sqrt(2 * kernel.size))
        assert (kernel**4).mean() / kernel.var() ** 2 == pytest.approx(3, abs=0.3)
    assert not np.any(own["reduce"]["kernel"]) and "bias" not in own["reduce"]
    assert not np.any(own["activation_0"]["bias"])


def test_the_first_activations_have_the_scale_of_the_input():
    """Of a generator and a discriminator: their first feature maps have variance 1 for noise of variance 1."""
    noise = normal(3, 64, 32)
    generator, encoder = R3GANGenerator((8, 8, 64), width=64), R3GANEncoder(width=64)
    init = jax.jit(lambda n: generator.init_with_output(KEY, n, Condition(), keys=keys(64))[0])
    # All blocks are identities: basis x start, upsampled, then pixels. The filter halves the variance along an axis at
    # every second pixel, and keeps it at the others.
    assert float(init(noise)[:, 1::2, 1::2].std()) == pytest.approx(1.0, rel=0.15)
    x = normal(4, 64, 4, 4, 64)
    token = jax.jit(lambda x: encoder.init_with_output(KEY, x)[0].values)(x)
    assert float(token.std()) == pytest.approx(1.0, rel=0.15)


def test_the_smallest_size_is_that_of_the_other_networks():
    for shape, start in (((28, 28, 1), (7, 7)), ((32, 32, 3), (4, 4)), ((64, 16, 3), (16, 4))):
        module = R3GANGeneratorConfig(width=16, basis_features=8).build(shape)
        images, variables = jax.eval_shape(lambda m=module: m.init_with_output(KEY, NOISE, CONDITION))
        assert images.shape == (B, *shape)
        assert variables["params"]["basis"].shape == (*start, 16)
        encoder = R3GANEncoder(width=16)
        _, variables = jax.eval_shape(lambda s=shape, e=encoder: e.init_with_output(KEY, jnp.zeros((B, *s))))
        assert variables["params"]["basis"].shape == (*start, 16)
    with pytest.raises(ValueError, match="9 x 16 pixels cannot be halved"):
        jax.eval_shape(R3GANGenerator((9, 16, 1)).init, KEY, NOISE, Condition())
    with pytest.raises(ValueError, match="group_size must be at least 1, got 0"):
        R3GANGeneratorConfig(group_size=0)
    assert [stage_features(64, 2, k, 16) for k in range(6)] == [64, 64, 32, 16, 8, 8]
    assert stage_features(4, 1, 0, 16) == 4
