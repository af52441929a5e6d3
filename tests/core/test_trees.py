import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core import trees
from xmodal_jax.types import Tokens

TREE = {
    "encoder": {"layers": [{"kernel": jnp.ones((2, 3)), "bias": jnp.full(3, 2.0)}]},
    "head": Tokens(jnp.zeros((1, 1, 1)), None),
}
NAMES = ["encoder/layers/0/bias", "encoder/layers/0/kernel", "head/values"]


def test_names_follow_the_leaves():
    assert trees.leaf_names(TREE) == NAMES
    seen = trees.map_with_name(lambda name, leaf: (name, leaf.shape), TREE)
    assert seen["encoder"]["layers"][0]["kernel"] == (NAMES[1], (2, 3))
    assert seen["head"].mask is None


def test_match_names():
    mask = trees.match_names(r"kernel$|^head", TREE)
    assert mask["encoder"]["layers"][0] == {"kernel": True, "bias": False} and mask["head"].values is True
    with pytest.raises(ValueError, match="freeze 'kernal' matches no parameter") as error:
        trees.match_names("kernal", TREE, what="freeze")
    assert all(name in str(error.value) for name in NAMES)


def test_counts_norms_and_finite_checks():
    assert trees.count(TREE) == 10
    np.testing.assert_allclose(trees.global_norm(TREE), np.sqrt(6 * 1 + 3 * 4), rtol=1e-6)
    assert trees.global_norm({}) == 0
    bad = {"a": jnp.array([1.0, jnp.inf]), "b": jnp.ones(2), "c": jnp.array(jnp.nan)}
    np.testing.assert_array_equal(trees.finite_leaves(bad), [False, True, False])


def test_a_norm_of_half_precision_does_not_overflow():
    np.testing.assert_allclose(trees.global_norm({"a": jnp.full(4, 300.0, jnp.float16)}), 600.0, rtol=1e-3)


def test_ema():
    got = trees.update_ema({"a": jnp.array([1.0, 5.0])}, {"a": jnp.array([3.0, -5.0])}, 0.75)
    np.testing.assert_allclose(got["a"], [1.5, 2.5], rtol=1e-6)
