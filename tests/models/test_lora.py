"""Adapters against their equation, and what must not move."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.models.test_contrastive import CONFIG, make_batch
from tests.support import random_params
from xmodal_jax.core import trees
from xmodal_jax.models.contrastive import make_contrastive
from xmodal_jax.models.lora import LoRA, merge_adapters, split_adapters, with_lora
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.step import make_training

MODALITIES = ("text", "image")
PLAIN = make_contrastive(CONFIG, MODALITIES, vocab_size=13)
METHOD = with_lora(PLAIN, LoRA(rank=3, alpha=5.0), ("text",))
finalize = jax.jit(METHOD.finalize_params)


@pytest.fixture(scope="module")
def params():
    """Drawn, with the adapters of the method's own initialization."""
    args = jax.random.key(0), make_batch(4, modalities=MODALITIES)
    adapters = jax.jit(lambda *args: split_adapters(METHOD.init(*args))[1])(*args)
    return {**random_params(METHOD.init, *args), "lora": adapters}


def moved(params):
    """Adapters away from zero."""
    own, adapters = split_adapters(params)
    draw = lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype)
    return {**own, "lora": jax.tree.map(draw, adapters)}


def test_training_begins_at_the_given_model(params):
    own, adapters = split_adapters(params)
    assert {n.rpartition("/")[2] for n in trees.leaf_names(adapters)} == {"a", "b"}
    assert all(name.startswith("text/") for name in trees.leaf_names(adapters))
    same = merge_adapters(own, adapters, LoRA(rank=3, alpha=5.0))
    jax.tree.map(np.testing.assert_array_equal, same, own)


def test_the_difference_is_the_papers(params):
    params = moved(params)
    own, adapters = (trees.flat(tree) for tree in split_adapters(params))
    merged = trees.flat(finalize(params))
    changed = {name.rpartition("/")[0] for name in adapters}
    kinds = {name.split("attention/")[-1].split("mlp/")[-1] for name in changed}
    assert kinds == {"qkv/kernel", "out/kernel", "up/kernel", "down/kernel"}
    for name, kernel in own.items():
        if name not in changed:
            np.testing.assert_array_equal(merged[name], kernel)
            continue
        a, b = np.asarray(adapters[f"{name}/a"], np.float64), np.asarray(adapters[f"{name}/b"], np.float64)
        inputs = np.prod(kernel.shape[: 2 if "attention/out" in name else 1])
        assert a.shape == (inputs, 3)
        expected = np.asarray(kernel, np.float64).reshape(inputs, -1) + 5.0 / 3.0 * a @ b
        np.testing.assert_allclose(merged[name].reshape(inputs, -1), expected, rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_the_merged_model(params):
    params, batch, key = moved(params), make_batch(4, modalities=MODALITIES), jax.random.key(1)
    ours = jax.jit(METHOD.loss)(params, batch, key)[0]
    merged = jax.jit(PLAIN.loss)(finalize(params), batch, key)[0]
    np.testing.assert_allclose(ours, merged, rtol=1e-6)


def test_only_the_adapters_and_the_rest_learn(params):
    optimizer = Optimizer(freeze=("^text/encoder/",), learning_rate=1e-2)
    training = make_training(METHOD, optimizer, 2, params=params)
    batch = make_batch(4, modalities=MODALITIES)
    state = jax.jit(training.init)(jax.random.key(0), batch)
    step = jax.jit(training.make_step(None))
    first = state.params
    for _ in range(2):  # a's gradient is zero while b is
        state, metrics = step(state, batch)
    before, after = trees.flat(first), trees.flat(state.params)
    for name, value in before.items():
        same = np.array_equal(value, after[name])
        assert same == name.startswith("text/encoder/"), name
    evaluated = trees.flat(training.eval_params(state))
    assert not any(name.startswith("lora") for name in evaluated)
    name = next(n for n in before if n.endswith("qkv/kernel") and n.startswith("text"))
    assert not np.array_equal(evaluated[name], before[name])


def test_scanned_layers_have_an_adapter_each():
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, scan_layers=True))
    method = with_lora(make_contrastive(config, MODALITIES, vocab_size=13), LoRA(rank=2), ("text",))
    params = jax.eval_shape(method.init, jax.random.key(0), make_batch(4, modalities=MODALITIES))
    shapes = {name: leaf.shape for name, leaf in trees.flat(params["lora"]).items()}
    depth, width = config.text.depth, config.text.width
    name = next(n for n in shapes if n.endswith("qkv/kernel/a"))
    assert shapes[name] == (depth, width, 2) and shapes[name[:-1] + "b"] == (depth, 2, 3 * width)
    full = jax.eval_shape(lambda p: method.finalize_params(p), params)
    jax.tree.map(lambda x, y: None if x.shape == y.shape else pytest.fail(), full, split_adapters(params)[0])


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="rank is 0 or more"):
        LoRA(rank=-1)
    with pytest.raises(ValueError, match="no regular expression"):
        LoRA(rank=1, targets="(")
    nowhere = with_lora(PLAIN, LoRA(rank=1, targets="nothing"), ("text",))
    with pytest.raises(ValueError, match="match no parameter of text"):
        jax.eval_shape(nowhere.init, jax.random.key(0), make_batch(4, modalities=MODALITIES))
    assert with_lora(PLAIN, LoRA(), ("text",)) is PLAIN
