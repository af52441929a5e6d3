"""Encoders of one's own that flags name by ``module:PACKAGE.MODULE:NAME``."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.vae.multimodal_models import MoPoEConfig
from xmodal_jax.nets.encoders import CustomEncoderConfig
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.run import from_json, to_json
from xmodal_jax.transfer.autoencoders import LatentConfig, use_pretrained_encoders
from xmodal_jax.transfer.frozen import FrozenNetworksConfig, load_text_encoder
from xmodal_jax.transfer.pretrained import find_folders, resolve_pretrained

PLAIN = "tests.nets.test_measured:Plain"
"""A Flax module with one dense layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig):
    """A shared embedding space."""

    model: ContrastiveConfig = ContrastiveConfig(embed_dim=6)
    """The model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent(LatentConfig):
    """An autoencoder."""

    model: MoPoEConfig = MoPoEConfig(latent=3)
    """The model."""


def test_a_flag_puts_a_module_into_the_model():
    words = f"--vector-encoder module:{PLAIN} --model.vector.pool attention --model.vector.heads 2"
    config, encoders = resolve_pretrained(parse(Config, "A test.", words.split()))
    assert config.model.vector == CustomEncoderConfig(module=PLAIN, pool="attention", heads=2)
    assert not encoders.folders and not find_folders(config)
    method = make_contrastive(config.model, ("vector", "vector_b"), vocab_size=0)
    batch = {"vector": jnp.ones((2, 5)), "vector_b": jnp.ones((2, 3)), "index": jnp.arange(2)}
    params = jax.eval_shape(method.init, jax.random.key(0), batch)
    assert params["vector"]["encoder"]["module"]["Dense_0"]["kernel"].shape == (5, 4)
    assert "attention" in params["vector"]["pool"]


def test_the_run_keeps_its_name():
    config, _ = resolve_pretrained(Config(vector_encoder=f"module:{PLAIN}"))
    assert from_json(ContrastiveConfig, to_json(config.model)) == config.model


def test_autoencoders_take_one():
    config, _ = use_pretrained_encoders(Latent(series_encoder=f"module:{PLAIN}"))
    assert config.model.series.encoder == CustomEncoderConfig(module=PLAIN)
    assert config.model.vector == MoPoEConfig().vector


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(image_encoder="module:tests.nothing:Net"), "tests.nothing cannot be imported"),
        (Config(image_encoder="module:tests.nets.test_measured:Net"), "has no 'Net'"),
        (
            Config(vector_encoder="hf:folder"),
            "there are no pretrained encoders of vector",
        ),
        (Latent(video_encoder=f"module:{PLAIN}"), "this experiment takes no encoder of video"),
    ],
)
def test_what_cannot_be_used_is_refused(config, message):
    resolve = use_pretrained_encoders if isinstance(config, Latent) else resolve_pretrained
    with pytest.raises(ValueError, match=message):
        resolve(config)


def test_frozen_networks_take_none():
    with pytest.raises(
        ValueError, match="this experiment takes no encoder of image: leave --image-encoder out"
    ):
        load_text_encoder(FrozenNetworksConfig(image_encoder=f"module:{PLAIN}"))
