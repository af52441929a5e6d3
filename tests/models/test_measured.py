"""Vectors and series in all methods: missing values, devices, resuming, and encoders of one's own."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import assert_device_invariant, assert_resumes, random_params
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.fusion import FusionConfig, make_fusion
from xmodal_jax.models.towers import Augmentation
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import SeriesConfig, VectorConfig, as_batch, preprocess, sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MoPoEConfig
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import VAEConfig
from xmodal_jax.nets.decoders import FrameDecoderConfig, MLPDecoderConfig
from xmodal_jax.nets.encoders import FeatureTransformerConfig, SeriesTransformerConfig, VectorMLPConfig
from xmodal_jax.nets.fusion import MergedAttentionConfig
from xmodal_jax.preprocess.measured import MeasuredAugmentConfig
from xmodal_jax.train.optim import Optimizer

AUGMENT = MeasuredAugmentConfig(jitter=0.1, feature_masking=0.2, time_masks=1)
VECTOR = VectorMLPConfig(width=8, dropout=0.1)
SERIES = SeriesTransformerConfig(width=8, depth=1, heads=2, downsample=2, dropout=0.1)
NAMES = ("vector", "series")
VAE_OPTIONS = dict(
    latent=3,
    hidden=8,
    vector=VectorConfig(
        encoder=VECTOR, decoder=MLPDecoderConfig(width=8), likelihood="student_t", augment=AUGMENT
    ),
    series=SeriesConfig(encoder=SERIES, decoder=FrameDecoderConfig(width=8), augment=AUGMENT),
)


def make_batch(n=16, seed=0):
    """Vectors and series of which values, steps and whole examples are missing."""
    rng = np.random.default_rng(seed)
    batch = {
        "vector": np.float32(rng.normal(size=(n, 5))),
        "vector_mask": rng.random((n, 5)) < 0.7,
        "series": np.float32(rng.normal(size=(n, 9, 3))),
        "series_mask": rng.random((n, 9, 3)) < 0.7,
        "label": rng.integers(-1, 3, n).astype(np.int32),
        "index": np.arange(n, dtype=np.int32),
        "present": {m: rng.random(n) < 0.8 for m in NAMES},
    }
    return batch


@functools.cache
def methods():
    """A method of each paradigm, by name."""
    contrastive = ContrastiveConfig(
        embed_dim=6, vector=VECTOR, series=SERIES, augment=Augmentation(measured=AUGMENT)
    )
    fusion = FusionConfig(
        fusion=MergedAttentionConfig(width=8, depth=1, heads=2),
        vector=FeatureTransformerConfig(width=8, depth=1, heads=2),
        series=SERIES,
        augment=Augmentation(measured=AUGMENT),
    )
    joint = MoPoEConfig(**VAE_OPTIONS)
    return {
        "contrastive": make_contrastive(contrastive, NAMES, vocab_size=0),
        "fusion": make_fusion(fusion, NAMES, {"label": 3}, vocab_size=0),
        "multimodal_vae": make_multimodal_vae(joint, sizes_of(make_batch(), NAMES, joint)).method,
        "vae": make_vae(
            VAEConfig(**VAE_OPTIONS), "series", sizes_of(make_batch(), NAMES, joint)["series"]
        ).method,
    }


@pytest.mark.parametrize("config", [ContrastiveConfig(), FusionConfig()])
def test_vectors_are_noisy_in_training_by_default(config):
    """Without noise and dropout, networks of the default size fit the rows of a small table exactly."""
    assert config.augment.measured == MeasuredAugmentConfig(jitter=0.3)
    assert config.vector == VectorMLPConfig(dropout=0.2)
    # An autoencoder has noise of its own: that of its latents.
    assert VectorConfig().augment == MeasuredAugmentConfig()
    assert VectorConfig().encoder == VectorMLPConfig(width=64, dropout=0.0)


PARADIGMS = ("contrastive", "fusion", "multimodal_vae", "vae")


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_what_is_missing_has_exactly_no_influence(paradigm):
    """Neither a value under the mask nor an example without the modality: not on the loss, and the loss has no gradient
    with respect to it, even where it is NaN."""
    method, batch, key = methods()[paradigm], make_batch(), jax.random.key(0)
    on_device = jax.device_put(batch)
    params = random_params(method.init, key, batch)

    @jax.jit
    def run(vector, series):
        loss = lambda fields: method.loss(params, {**on_device, **fields}, key)[0]
        return jax.value_and_grad(loss)({"vector": vector, "series": series})

    known = {
        m: batch[f"{m}_mask"] & np.expand_dims(batch["present"][m], tuple(range(1, batch[m].ndim)))
        for m in NAMES
    }
    if paradigm == "vae":
        known["vector"] = np.zeros_like(known["vector"])  # the model has no vectors
    value, gradient = run(*(batch[m] for m in NAMES))
    other, other_gradient = run(*(np.where(known[m], batch[m], 1e3) for m in NAMES))
    if paradigm != "contrastive":  # whose embeddings of missing examples are computed, and then left out
        assert value == other
    np.testing.assert_allclose(value, other, rtol=1e-6)
    for m in NAMES:
        assert not np.asarray(gradient[m])[~known[m]].any()
    damaged, _ = run(*(np.where(batch[f"{m}_mask"], batch[m], np.nan) for m in NAMES))
    assert damaged == value
    assert any(np.asarray(g).any() for g in gradient.values())
    del other_gradient


@pytest.mark.parametrize(
    "paradigm, layouts",
    [
        ("fusion", [("pmap", 4, 1)]),
        *(pytest.param(p, [("pmap", 4, 1), ("sharded", 8, 4)], marks=pytest.mark.slow) for p in PARADIGMS),
    ],
)
def test_the_devices_do_not_change_the_result(paradigm, layouts):
    """With dropout, augmentation and missing values."""
    together = len(layouts) == 1
    assert_device_invariant(methods()[paradigm], make_batch(), layouts=layouts, together=together)


@pytest.mark.parametrize(
    "paradigm", [pytest.param(p, marks=() if p == "vae" else pytest.mark.slow) for p in PARADIGMS]
)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(paradigm, tmp_path):
    arrays = {k: v for k, v in make_batch(24).items() if k != "index"}
    assert_resumes(methods()[paradigm], arrays, tmp_path, optimizer=Optimizer(learning_rate=1e-2))


def test_a_judge_takes_them():
    batch, config = make_batch(), MoPoEConfig(**VAE_OPTIONS)
    judges = make_judges(config, sizes_of(batch, NAMES, config), 3)
    params = jax.eval_shape(judges.method.init, jax.random.key(0), batch)
    assert jax.eval_shape(judges.method.predict, params, batch).logits.shape == (16, 2, 3)


def test_generated_data_are_a_batch_again():
    config = MoPoEConfig(**VAE_OPTIONS)
    generated = {"vector": jnp.ones((4, 5)), "series": jnp.ones((4, 9, 3))}
    batch = as_batch(config, generated)
    assert batch["vector_mask"].shape == (4, 5) and batch["series_mask"].shape == (4, 9)
    inputs = preprocess(config, NAMES, batch)
    for m in NAMES:
        np.testing.assert_array_equal(inputs.targets[m][0], generated[m])
        assert inputs.targets[m][1].all()


def test_the_scale_of_each_feature_is_learned():
    """The gradient of the log-likelihood of exact means: the scale becomes that of the residuals."""
    config = dataclasses.replace(VAE_OPTIONS["vector"], likelihood="normal", least_scale=1e-6)
    size = sizes_of(make_batch(), ("vector",), MoPoEConfig(**VAE_OPTIONS))["vector"]
    decoder = config.build_decoder(size)
    z = jnp.zeros((2000, 3))
    params = decoder.init(jax.random.key(0), z)["params"]
    scale = np.array([0.1, 0.5, 1.0, 2.0, 5.0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 5)) * scale, jnp.float32)

    def loss(log_scale):
        outputs = decoder.apply({"params": {**params, "log_scale": log_scale}}, z)[None]
        exact = outputs.at[..., 0].set(0.0)
        return -config.log_likelihood(exact, x, jnp.ones(x.shape, bool)).mean()

    best = jnp.asarray(np.log(np.asarray(x).std(axis=0)), jnp.float32)
    np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=5e-3)
    assert (np.abs(jax.grad(loss)(best + 0.1)) > 0.1).all()


class Own(nn.Module):
    """One dense layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(7, name="layer")(x)


def test_encoders_of_ones_own_in_every_method():
    batch, key = jax.device_put(make_batch()), jax.random.key(0)
    joint = MoPoEConfig(**VAE_OPTIONS)
    own = {"vector": Own()}
    shape = lambda method: jax.tree.map(jnp.shape, jax.eval_shape(method.init, key, batch))
    contrastive = make_contrastive(ContrastiveConfig(embed_dim=6), NAMES, vocab_size=0, encoders=own)
    assert shape(contrastive)["vector"]["encoder"]["module"]["layer"]["kernel"] == (5, 7)
    fusion = make_fusion(FusionConfig(), NAMES, {"label": 3}, vocab_size=0, encoders=own)
    assert shape(fusion)["vector"]["module"]["layer"]["kernel"] == (5, 7)
    vae = make_multimodal_vae(joint, sizes_of(batch, NAMES, joint), encoders=own).method
    kernels = [x.shape for x in jax.tree.leaves(jax.eval_shape(vae.init, key, batch)) if x.shape == (1, 5, 7)]
    assert kernels  # stacked over the modalities of one kind and size
    with pytest.raises(ValueError, match="encoders: there is no modality 'vektor'; there are vector, series"):
        make_contrastive(ContrastiveConfig(), NAMES, vocab_size=0, encoders={"vektor": Own()})


def test_two_vectors_can_have_different_encoders():
    batch = {**make_batch(), "vector_blood": np.ones((16, 4), np.float32)}
    init = lambda key, x: {"w": jax.random.normal(key, (x.shape[1], 2))}
    own = {"vector_blood": (init, lambda params, x: x @ params["w"])}
    method = make_contrastive(
        ContrastiveConfig(embed_dim=6), ("vector", "vector_blood"), vocab_size=0, encoders=own
    )
    params = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert params["vector_blood"]["encoder"]["functions"]["w"].shape == (4, 2)
    assert "layer_0" in params["vector"]["encoder"]
