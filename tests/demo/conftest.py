"""Tiny runs of all kinds, saved once."""

import numpy as np
import pytest

from tests.deploy.runs import save_contrastive
from tests.inference import test_multimodal_flow
from tests.inference.runs import plain_picture, save_text_run, train_contrastive
from tests.inference.test_autoencoders import SMALL, save
from tests.inference.test_fusion import ANSWERS, save_fusion
from tests.inference.test_generation import draw_from, save_speaker, save_text_flow, save_text_gan
from tests.inference.test_vocoder import save_vocoder
from xmodal_jax.inference import load
from xmodal_jax.models.gan import ClassCondition
from xmodal_jax.models.vae.multimodal_models import MVTCAEConfig
from xmodal_jax.models.vae.single_models import VAEConfig


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """By a short name the folder of a run of each kind."""
    root = tmp_path_factory.mktemp("runs")
    folder = lambda name: root / name
    train_contrastive(folder("space"))
    save_contrastive(folder("listener"))
    save_text_run(folder("captioner"), "image", "captioning", {"image": np.zeros((1, 8, 8, 3), np.uint8)})
    audio = {"audio": np.zeros((1, 1600), np.int16), "audio_mask": np.ones((1, 1600), bool)}
    save_text_run(folder("recognizer"), "audio", "speech_recognition", audio)
    save_speaker(folder("speaker"))
    save_vocoder(folder("vocoder"))
    save_fusion(folder("answers"), ("text", "image"), ANSWERS)
    draw_from(folder("painter"), ClassCondition(), classes=2, class_names=["cat", "dog"])
    save_text_gan(folder("illustrator"))
    save_text_flow(folder("flow"))
    save(folder("vae"), VAEConfig(**SMALL), ("image",), kind="vae")
    save(folder("anything"), MVTCAEConfig(**SMALL))
    test_multimodal_flow.save(folder("codes"))
    names = (
        "space listener captioner recognizer speaker vocoder answers painter illustrator flow vae anything "
    )
    names += "codes"
    return {name: folder(name) for name in names.split()}


@pytest.fixture(scope="session")
def models(runs):
    """The runs, loaded."""
    return {name: load(path) for name, path in runs.items()}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of three pictures, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("red", "green", "blue"):
        plain_picture({"green": "#00d000"}.get(name, name), (30, 20)).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A recording of half a second."""
    import soundfile

    file = tmp_path_factory.mktemp("sounds") / "tone.wav"
    soundfile.write(file, 0.3 * np.sin(np.arange(4000) / 3), 8000)
    return file
