"""Heads of the towers of a shared space: for all, and for single kinds of modalities."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from tests.support import assert_device_invariant, assert_resumes, random_params
from xmodal_jax.models.contrastive import CORAL, ContrastiveConfig, make_contrastive
from xmodal_jax.models.towers import Augmentation
from xmodal_jax.nets.encoders import MLPEncoderConfig, VectorMLPConfig
from xmodal_jax.nets.heads import (
    HeadsByKind,
    IdentityHeadConfig,
    MLPHeadConfig,
    OwnHeadConfig,
    SAILHeadConfig,
    ShareLockHeadConfig,
)
from xmodal_jax.preprocess.measured import MeasuredAugmentConfig
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import from_json, to_json

MODALITIES = ("image", "vector")
ENCODERS = dict(
    embed_dim=8, image=MLPEncoderConfig(width=8, depth=1), vector=VectorMLPConfig(width=8, depth=1)
)
SHARELOCK = ContrastiveConfig(
    **ENCODERS, heads=HeadsByKind(image=IdentityHeadConfig(), vector=ShareLockHeadConfig(width=9, depth=3))
)
"""As in the paper: the features of images as they are, an MLP for the other modality."""
SAIL = ContrastiveConfig(**ENCODERS, head=SAILHeadConfig(widening=2))
CONFIGS = [SHARELOCK, pytest.param(SAIL, marks=pytest.mark.slow)]
"""Both treat each example by itself; the first has dropout as well."""


def make_batch(n=16):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)
    return {"image": images, "vector": rng.normal(size=(n, 5)).astype(np.float32), "index": np.arange(n)}


def make(config):
    return make_contrastive(config, MODALITIES, vocab_size=0)


@pytest.mark.parametrize("config", CONFIGS, ids=["sharelock", "sail"])
def test_the_devices_do_not_change_the_result(config):
    assert_device_invariant(make(config), make_batch(), layouts=[("pmap", 8, 1)])


@pytest.mark.parametrize("config", CONFIGS, ids=["sharelock", "sail"])
def test_a_run_resumes_bit_by_bit(config, tmp_path):
    data = {name: x for name, x in make_batch().items() if name != "index"}
    assert_resumes(make(config), data, tmp_path, optimizer=Optimizer(learning_rate=1e-2))


def test_two_seeds_are_the_runs_that_each_would_be_alone():
    method, batch = make(SHARELOCK), jax.device_put(make_batch())
    params = [random_params(method.init, jax.random.key(k), batch, seed=k) for k in range(2)]
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    gradient = jax.grad(lambda params, key: method.loss(params, batch, key)[0])
    both = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *x: jnp.stack(x), *params), keys)
    for k in range(2):
        alone = jax.jit(gradient)(params[k], keys[k])
        close = lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-4, atol=1e-6)
        jax.tree.map(close, both, alone)


def test_the_head_of_a_kind_comes_before_that_of_all():
    config = dataclasses.replace(SHARELOCK, head=MLPHeadConfig())
    assert (
        config.head_of("image_sketch") == IdentityHeadConfig() and config.head_of("text") == MLPHeadConfig()
    )
    params = make(config).init(jax.random.key(0), jax.device_put(make_batch(1)))
    assert set(params["image"]) == {"encoder"}  # the features as they are: nothing to train
    assert set(params["vector"]) == {"encoder", "hidden_0", "hidden_1", "norm_0", "norm_1", "project"}
    wrong = make(dataclasses.replace(config, embed_dim=7))
    with pytest.raises(ValueError, match="give --model.embed-dim 8, not 7"):
        wrong.init(jax.random.key(0), jax.device_put(make_batch(1)))


def test_two_towers_do_not_drop_the_same_units():
    """Otherwise a pair would be known by what is dropped in both: with equal features and heads it would be equal."""
    modalities, vectors = ("vector_a", "vector_b"), make_batch()["vector"]
    # Equal embeddings have equal covariances.
    config = ContrastiveConfig(
        embed_dim=8,
        vector=VectorMLPConfig(width=8, depth=1, dropout=0.0),
        augment=Augmentation(measured=MeasuredAugmentConfig()),
        objective=CORAL(),
    )
    batch = jax.device_put({"vector_a": vectors, "vector_b": vectors, "index": np.arange(16)})
    losses = {}
    for dropout in (0.0, 0.2):
        head = ShareLockHeadConfig(width=16, dropout=dropout)
        method = make_contrastive(dataclasses.replace(config, head=head), modalities, vocab_size=0)
        params = random_params(method.init, jax.random.key(0), batch)
        params["vector_b"] = params["vector_a"]
        losses[dropout] = float(jax.jit(method.loss)(params, batch, jax.random.key(1))[0])
    assert losses[0.0] < 1e-9 < 1e-6 < losses[0.2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig):
    model: ContrastiveConfig = ContrastiveConfig()


def test_heads_on_the_command_line_and_in_files_of_runs():
    words = (
        "--model.head sail --model.head.widening 4 --model.heads.text sharelock --model.heads.text.depth 2"
    )
    config = parse(Config, "", f"{words} --model.heads.image identity".split())
    assert config.model.head == SAILHeadConfig(widening=4)
    assert config.model.heads == HeadsByKind(text=ShareLockHeadConfig(depth=2), image=IdentityHeadConfig())
    assert from_json(Config, to_json(config)) == config
    # In the files of older runs, as in older code, a name stands for a head with its default options.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert ContrastiveConfig(head="own").head == OwnHeadConfig()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    older = to_json(Config(model=ContrastiveConfig(head=MLPHeadConfig())))
    older["model"]["head"] = "mlp"
    del older["model"]["heads"]
    assert from_json(Config, older).model.head == MLPHeadConfig()
    older["model"]["head"] = "quadratic"
    with pytest.raises(ValueError, match="an object with the name of a part is expected, got 'quadratic'"):
        from_json(Config, older)
