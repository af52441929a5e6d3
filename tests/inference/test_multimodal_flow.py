"""A trained flow over several modalities on new data."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.inference import test_autoencoders
from tests.inference.runs import save_run
from tests.inference.test_autoencoders import RATE, SAMPLES, TOKENIZER, TRANSFORM, arrays
from tests.support import random_params
from xmodal_jax.evaluation.codes import flow_metadata
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.inference import MultimodalFlowModel, load
from xmodal_jax.models.flow.multimodal import CodeFlowConfig, MultimodalFlowConfig, make_multimodal_flow
from xmodal_jax.models.vae.modalities import sizes_of

ROOT = pathlib.Path(__file__).parents[2]
KINDS = ("image", "text", "vector")
MODALITIES = KINDS
CONFIG = MultimodalFlowConfig(
    **{kind: test_autoencoders.SMALL[kind] for kind in KINDS},
    tokens=1, sequence_tokens=2, dims=3, hidden=8, align_dims=4,
    flow=CodeFlowConfig(width=8, depth=1, heads=2, steps=2),
)  # fmt: skip


def save(folder, modalities=MODALITIES):
    """A run with random parameters."""
    batch, _ = arrays(1, modalities)
    batch |= {m: np.zeros((1, 11, 11, 3), np.uint8) for m in modalities if m.startswith("image")}
    sizes = sizes_of(batch, modalities, CONFIG, vocab_size=TOKENIZER.vocab_size)
    flow = make_multimodal_flow(CONFIG, sizes)
    autoencoders = random_params(flow.codes.init, jax.random.key(0), batch)
    one = {m: {"mean": jnp.full(s, 0.1), "std": jnp.full(s, 2.0)} for m, s in flow.flow.shapes.items()}
    params = {
        "autoencoders": autoencoders,
        "statistics": one,
        "flow": random_params(flow.flow.init, jax.random.key(1)),
    }
    data = LatentData(**dict.fromkeys(LatentData._fields))._replace(
        classes=0, tokenize=TRANSFORM.tokenize, standardise=TRANSFORM.standardise
    )
    options = {"sample_rate": RATE, "max_seconds": SAMPLES / RATE}
    return save_run(folder, {"model": CONFIG, "input": options}, params, **flow_metadata(sizes, data, batch))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save(tmp_path_factory.mktemp("flow")))


def test_what_is_given_keeps_its_codes_and_the_rest_is_generated(model):
    """By itself, in any company, and in every call the same."""
    _, held = arrays(3, MODALITIES)
    image, text = held["image"], held["text"]
    latents = model.encode(image=image, text=text)
    dim = sum(tokens * dims for tokens, dims in ((1, 3), (2, 3), (1, 3)))
    assert latents.shape == (3, dim) == (3, model.dim)
    again = model.encode(image=image[1:2], text=text[1:2])
    np.testing.assert_allclose(again[0], latents[1], rtol=1e-3, atol=1e-4)
    everything = model.encode(**held)
    where = np.abs(everything - latents).max(axis=0) < 1e-4
    assert where.sum() == 9  # of the picture and the text
    samples = model.encode(image=image, text=text, samples=4)
    spread = samples.std(axis=0).max(axis=0)
    np.testing.assert_array_equal(spread < 1e-5, where)


def test_translations_and_joint_samples(model):
    _, held = arrays(3, MODALITIES)
    outputs = model.reconstruct(**held)
    for m in MODALITIES:
        assert len(outputs[m]) == 3
    texts = model.translate("text", image=held["image"], count=2)
    assert len(texts) == 3 and all(len(x) == 2 for x in texts)
    with pytest.warns(
        UserWarning, match=r"'zzz' has words that the run was not trained on \('zzz'\)"
    ) as caught:
        model.translate("vector", text=["zzz", "a"])
    assert [warning.filename for warning in caught] == [__file__]  # the user's line
    drawn = model.sample(3, seed=1)
    assert set(drawn) == set(MODALITIES) and drawn["image"][0].size == (11, 11)
    np.testing.assert_allclose(drawn["vector"][:2], model.sample(2, seed=1)["vector"], rtol=1e-3, atol=1e-3)
    assert model.kind == "multimodal_flow" and "translate" in model.actions
    description = model.describe()  # there is no posterior: the latents are codes
    assert "as the codes of all modalities" in description and "posterior" not in description
    assert "Samples the prior" not in description


@pytest.fixture(scope="module")
def script():
    """The module of experiments/translate.py."""
    spec = importlib.util.spec_from_file_location("translate_script", ROOT / "experiments" / "translate.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_turns_pictures_into_sketches_and_sketches_into_pictures(script, tmp_path, monkeypatch):
    """From files, as `translate` does from Python."""
    monkeypatch.chdir(tmp_path)
    run = save(tmp_path / "flow", ("image", "image_sketch"))
    model = load(run)
    pixels = np.random.default_rng(2).integers(0, 256, (11, 11, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    as_array, calls, translate = (
        lambda picture: np.asarray(picture).astype(int),
        [],
        MultimodalFlowModel.translate,
    )

    def record(self, target, **inputs):
        calls.append((*(m for m in inputs if inputs[m] is not None), target))
        return translate(self, target, **inputs)

    monkeypatch.setattr(MultimodalFlowModel, "translate", record)
    for ways in (("image", "image_sketch"), ("image_sketch", "image")):
        source, target = ways
        folder = tmp_path / target
        script.main(
            script.Config(source="photo.png", source_modality=source, to=target, runs=(run,), run_dir=folder)
        )
        assert calls.pop() == ways and not calls
        (expected,) = translate(model, target, **{source: [pixels]})
        (file,) = (folder / "out").iterdir()
        assert np.abs(as_array(Image.open(file)) - as_array(expected)).max() <= 1, ways
    with pytest.raises(ValueError, match="--as audio: photo.png is of the kind image"):
        script.main(script.Config(source="photo.png", source_modality="audio", to="image", runs=(run,)))
