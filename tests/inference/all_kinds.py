"""A small run of each kind that can be used."""

import numpy as np

from tests.inference.runs import save_text_run, train_contrastive
from tests.inference.test_autoencoders import SMALL, save
from tests.inference.test_fusion import ANSWERS, save_fusion
from tests.inference.test_generation import save_speaker, save_text_flow, save_text_gan
from tests.inference.test_vocoder import save_vocoder
from xmodal_jax.models.seq2seq import JointObjective
from xmodal_jax.models.vae.multimodal_models import MVTCAEConfig
from xmodal_jax.models.vae.single_models import VAEConfig


def save_all_kinds(folder, latent=("image", "text")):
    """Saves a run of each kind in a folder of its name, of which only the contrastive one was trained.

    ``latent``: the modalities of the multimodal VAE.
    """
    train_contrastive(folder / "contrastive")
    save_fusion(folder / "fusion", ("text", "image"), ANSWERS)
    save(folder / "multimodal_vae", MVTCAEConfig(**SMALL), latent)
    save(folder / "vae", VAEConfig(**SMALL), ("image",), kind="vae")
    save_text_run(folder / "captioning", "image", "captioning", {"image": np.zeros((1, 8, 8, 3), np.uint8)})
    sound = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    save_text_run(
        folder / "speech_recognition", "audio", "speech_recognition", sound, objective=JointObjective()
    )
    save_speaker(folder / "speech_synthesis")
    save_vocoder(folder / "vocoder")
    save_text_gan(folder / "text_to_image_gan")
    save_text_flow(folder / "text_to_image_flow")
