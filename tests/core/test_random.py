import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.random import example_keys, fold_in_name, named_keys

data = jax.random.key_data


def test_the_name_decides_and_not_the_order(key):
    a, b = named_keys(key, "dropout", "noise")
    d, c = named_keys(key, "noise", "dropout")
    np.testing.assert_array_equal(data(a), data(c))
    np.testing.assert_array_equal(data(b), data(d))
    assert not np.array_equal(data(a), data(b)) and not np.array_equal(data(a), data(key))


def test_a_name_gives_the_same_key_in_every_process(key):
    """Unlike Python's hash; 0xcbf43926 is the check value of CRC-32, for "123456789"."""
    np.testing.assert_array_equal(
        data(fold_in_name(key, "123456789")), data(jax.random.fold_in(key, np.uint32(0xCBF43926)))
    )


def test_arrays_of_keys_are_mapped_over(key):
    keys = jax.random.split(key, (2, 3))
    got = fold_in_name(keys, "x")
    assert got.shape == (2, 3)
    np.testing.assert_array_equal(data(got[1, 2]), data(fold_in_name(keys[1, 2], "x")))


def test_example_keys_do_not_depend_on_how_the_batch_is_split(key):
    index = jnp.arange(8) + 40
    whole = example_keys(key, index)
    parts = jax.pmap(lambda i: data(example_keys(key, i)), devices=jax.devices()[:4])(index.reshape(4, 2))
    np.testing.assert_array_equal(parts.reshape(8, -1), data(whole))
    np.testing.assert_array_equal(data(example_keys(key, index[::-1])), data(whole)[::-1])
    assert len({tuple(k) for k in data(whole).tolist()}) == 8
