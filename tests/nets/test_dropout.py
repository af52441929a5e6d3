import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core.random import example_keys
from xmodal_jax.data.text import train_tokenizer
from xmodal_jax.nets.dropout import UNKNOWN_ID, Dropout, DropPath, TokenDropout, random_stream_name


def keys(n=7):
    return example_keys(jax.random.key(5), jnp.arange(n))


@pytest.mark.parametrize("Module", [Dropout, DropPath])
def test_draws_belong_to_the_example(Module):
    x = jnp.ones((7, 13, 5))
    drop = lambda x, keys: Module(0.3).apply({}, x, keys)
    whole = drop(x, keys())
    order = jnp.array([3, 1, 6, 0, 2, 5, 4])
    np.testing.assert_array_equal(drop(x, keys()[order]), whole[order])
    np.testing.assert_array_equal(jnp.concatenate([drop(x[:2], keys()[:2]), drop(x[2:], keys()[2:])]), whole)
    np.testing.assert_array_equal(drop(x, None), x)
    np.testing.assert_array_equal(Module(0.0).apply({}, x, keys()), x)


def test_rate_and_mean():
    kept = Dropout(0.3).apply({}, jnp.ones((7, 5000)), keys())
    share = float((kept == 0).mean())
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 35000)  # five standard errors
    np.testing.assert_allclose(kept.max(), 1 / 0.7, rtol=1e-4)


def test_drop_path_drops_whole_examples():
    kept = DropPath(0.5).apply({}, jnp.ones((101, 3, 2)), keys(101))
    flat = kept.reshape(101, -1)
    assert bool(jnp.all(flat == flat[:, :1])) and 0.2 < float((flat[:, 0] == 0).mean()) < 0.8


def test_drop_path_keeps_the_mean_of_a_residual_sum():
    """``E[x + z y / (1 - p)] = x + y`` for z = 1 with probability ``1 - p``, a z for each example."""
    n, rate = 20_000, 0.2
    x, y = np.array([1.0, -2.0, 0.5]), np.array([3.0, 0.1, -1.0])
    branch = np.asarray(DropPath(rate).apply({}, jnp.tile(jnp.asarray(y, jnp.float32), (n, 1)), keys(n)))
    error = 5 * np.abs(y) * np.sqrt(rate / (1 - rate) / n)  # five standard errors of the mean
    assert np.all(np.abs((x + branch).mean(axis=0) - (x + y)) < error)


def test_token_dropout_replaces_words_by_the_unknown_token():
    n, rate = 500, 0.3
    ids = jnp.tile(
        jnp.array([1, 17, 5, 3, 40, 2, 0]), (n, 1)
    )  # begin, words of which one is unknown, end, padding
    drop = lambda ids, keys: TokenDropout(rate).apply({}, ids, keys)
    dropped = drop(ids, keys(n))
    assert bool(jnp.all((dropped == ids) | (dropped == UNKNOWN_ID)))
    np.testing.assert_array_equal(dropped[:, [0, 3, 5, 6]], ids[:, [0, 3, 5, 6]])
    share = np.asarray(dropped != ids)[:, [1, 2, 4]]
    assert abs(share.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / share.size)
    assert 0 < share[:, 0].sum() < n and np.any(share[:, 0] != share[:, 1])  # words are dropped one by one
    order = np.random.default_rng(0).permutation(n)
    np.testing.assert_array_equal(
        drop(ids[order], keys(n)[order]), dropped[order]
    )  # by the example's own key
    np.testing.assert_array_equal(drop(ids, None), ids)
    np.testing.assert_array_equal(TokenDropout(0.0).apply({}, ids, keys(n)), ids)


@pytest.mark.parametrize("kind", ["word", "wordpiece", "bpe"])
def test_the_unknown_token_is_that_of_the_tokenizers_trained_here(kind):
    tokenizer = train_tokenizer(["a red circle", "a blue square"], kind, vocab_size=300)
    assert tokenizer.unk_id == UNKNOWN_ID and {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} == {
        0,
        1,
        2,
    }


class Two(nn.Module):
    @nn.compact
    def __call__(self, x, keys):
        return Dropout(0.5, name="a")(x, keys), Dropout(0.5, name="b")(x, keys)


def test_other_names_draw_otherwise():
    a, b = Two().apply({}, jnp.ones((2, 1000)), keys(2))
    assert abs(float((a == b).mean()) - 0.5) < 5 * 0.5 / np.sqrt(
        2000
    )  # independent masks agree half the time
    assert (
        random_stream_name(("a", "layers_3", "b"))
        == random_stream_name(("a", "layers", "b"))
        != random_stream_name(("a", "b"))
    )


def test_rate_must_be_a_probability():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(1.0).apply({}, jnp.ones((2, 3)), None)
