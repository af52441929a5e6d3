import jax
import pytest

from xmodal_jax.core import trees
from xmodal_jax.core.nesting import nested, value_at

TREE = {"image": {"encoder": {"kernel": 1, "bias": 2}, "head": 3}, "scale": 4}


def test_nested_is_the_inverse_of_flat():
    flat = {"image/encoder/kernel": 1, "image/encoder/bias": 2, "image/head": 3, "scale": 4}
    assert nested(flat) == TREE
    assert trees.flat(TREE) == flat
    assert jax.tree.structure(nested(trees.flat(TREE))) == jax.tree.structure(TREE)
    assert nested({}) == {}


def test_values_are_found_by_their_paths():
    assert value_at(TREE, "image/encoder") == {"kernel": 1, "bias": 2}
    assert value_at(TREE, "scale") == 4
    with pytest.raises(KeyError, match="decoder"):
        value_at(TREE, "image/decoder")
