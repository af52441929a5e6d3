import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.pretrained import peers
from xmodal_jax.core.random import example_keys
from xmodal_jax.models.towers import (
    AudioFeatures,
    Augmentation,
    axes_of,
    precompute_spectrograms,
    preprocess_modality,
)
from xmodal_jax.pretrained.wav2vec2 import apply_weight_norm, split_weight_norm

TIME, BATCH, WIDTH = 101, 3, 21
LENGTHS, CONTENT = [TIME, 61, 23], [8, 4, 1]
SIZES = dict(
    vocab_size=31,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=7,
    intermediate_size=37,
    conv_dim=(11, 13, 5),
    conv_kernel=(5, 3, 2),
    conv_stride=(3, 2, 2),
    num_conv_pos_embedding_groups=3,
    classifier_proj_size=7,
)
GROUP = dict(feat_extract_norm="group", conv_bias=False)
LAYER = dict(feat_extract_norm="layer", conv_bias=True)
MODELS = {
    "wav2vec2 base": ("Wav2Vec2Model", dict(**GROUP, do_stable_layer_norm=False, num_conv_pos_embeddings=6)),
    "wav2vec2 large": ("Wav2Vec2Model", dict(**LAYER, do_stable_layer_norm=True, num_conv_pos_embeddings=5)),
    "hubert": (
        "HubertModel",
        dict(**GROUP, do_stable_layer_norm=True, num_conv_pos_embeddings=20, feat_proj_layer_norm=False),
    ),
    "hubert large": (
        "HubertModel",
        dict(**LAYER, do_stable_layer_norm=False, num_conv_pos_embeddings=4, feat_proj_layer_norm=True),
    ),
}


def make(name, folder, **options):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    config = transformers.HubertConfig if name.startswith("Hubert") else transformers.Wav2Vec2Config
    made = getattr(transformers, name)(config(**SIZES, **options))
    return made, peers.save(made, folder)


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    name, options = MODELS[request.param]
    return make(name, tmp_path_factory.mktemp("model"), **options)


def waveforms(seed=0):
    return jnp.asarray(0.1 + 0.3 * np.random.default_rng(seed).normal(size=(BATCH, TIME)), jnp.float32)


def standardized(x, mask):
    """By the feature extractor of ``transformers``."""
    from transformers import Wav2Vec2FeatureExtractor

    rows = [np.array(row) for row in x]
    return jnp.asarray(
        np.stack(
            Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm(rows, None if mask is None else np.asarray(mask))
        )
    )


def run(model, x, mask, **options):
    x = standardized(x, mask)
    mask = None if mask is None else peers.to_torch(mask).long()
    return model(peers.to_torch(x), attention_mask=mask, **options)


def tokens_of(found, x, mask=None):
    """In one program, as all tests here: operation by operation it takes longer to compile."""
    return jax.jit(lambda params: found.module.apply({"params": params}, x, mask))(found.params)


def tokens_and_pool(found, x, mask):
    apply = lambda params, **options: found.module.apply({"params": params}, x, mask, **options)
    return jax.jit(lambda params: (apply(params), apply(params, method="embed")))(found.params)


@pytest.mark.parametrize("masked, scan", [(False, False), (True, False), (True, True)])
def test_hidden_states_and_pool(model, masked, scan):
    theirs, folder = model
    found = peers.load(folder, "audio", "pool", scan=scan)
    x, mask = waveforms(), peers.prefix_mask(LENGTHS, TIME) if masked else None
    expected = run(theirs, x, mask, output_hidden_states=True)
    peers.assert_same_hidden_states(found, x, mask, expected.hidden_states)
    tokens, pooled = tokens_and_pool(found, x, mask)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    content = CONTENT if masked else [8] * BATCH
    for row, length in enumerate(content):
        np.testing.assert_allclose(pooled[row], tokens.values[row, :length].mean(0), atol=1e-5)
    if masked:
        np.testing.assert_array_equal(tokens.mask, peers.prefix_mask(CONTENT, 8))


def weight_norm_gradients(gradients, theirs):
    """By the gradient of the folded kernel those of its two factors, by the chain rule."""
    (name,) = [n for n in gradients if n.endswith("original1")]
    size, direction = (dict(theirs.named_parameters())[name[:-1] + k].detach().numpy() for k in ("0", "1"))
    unit = direction / np.linalg.norm(direction, axis=(0, 1), keepdims=True)
    by_kernel = gradients[name]
    by_size = (by_kernel * unit).sum((0, 1), keepdims=True)
    by_direction = (by_kernel - by_size * unit) * size / np.linalg.norm(direction, axis=(0, 1), keepdims=True)
    return {**gradients, name[:-1] + "0": by_size, name: by_direction}


def without_key_biases(gradients):
    """A bias of keys adds the same to all logits of a query: its gradient is 0 but for rounding, here as there."""
    biases = [name for name in gradients if name.endswith("k_proj.bias")]
    assert (
        len(biases) == SIZES["num_hidden_layers"]
        and max(np.abs(gradients[name]).max() for name in biases) < 1e-5
    )
    return {name: gradient for name, gradient in gradients.items() if name not in biases}


def test_gradients(model, monkeypatch):
    theirs, folder = model
    found = peers.load(folder, "audio")
    x, mask = waveforms(), peers.prefix_mask(LENGTHS, TIME)
    weights = np.random.default_rng(1).normal(size=(BATCH, 8, WIDTH)).astype(np.float32)

    def loss(params):
        return (found.module.apply({"params": params}, x, mask).values * weights).sum()

    theirs.zero_grad()
    (run(theirs, x, mask).last_hidden_state * peers.to_torch(weights)).sum().backward()
    plain = peers.gradients
    ours = lambda *given: without_key_biases(weight_norm_gradients(plain(*given), theirs))
    monkeypatch.setattr(peers, "gradients", ours)
    compared = peers.assert_same_gradients(found, "audio", loss, theirs)
    assert (
        compared
        == len([n for n, _ in theirs.named_parameters() if n != "masked_spec_embed"])
        - SIZES["num_hidden_layers"]
    )


def test_padding_has_no_influence(model):
    theirs, folder = model
    found = peers.load(folder, "audio", "pool")
    x, mask = waveforms(), peers.prefix_mask([TIME, 61, 0], TIME)
    apply = lambda x, mask, **options: found.module.apply({"params": found.params}, x, mask, **options)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x, mask, method="embed")))))(x)
    assert bool(jnp.isfinite(gradient).all()) and not gradient[~mask].any()
    assert float(jnp.abs(gradient[0]).min()) > 0
    if theirs.config.feat_extract_norm == "layer":  # the other has statistics over the padding too
        tokens, cut = tokens_of(found, x, mask), tokens_of(found, x[:, :61])
        np.testing.assert_allclose(tokens.values[1, :4], cut.values[1], atol=1e-5)


def test_waveform_as_it_is(tmp_path):
    name, options = MODELS["wav2vec2 large"]
    theirs, folder = make(name, tmp_path, **options)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    found = peers.load(folder, "audio")
    x, mask = waveforms(), peers.prefix_mask(LENGTHS, TIME)
    silent = peers.to_torch(jnp.where(mask, x, 0.0))
    expected = theirs(silent, attention_mask=peers.to_torch(mask).long()).last_hidden_state
    peers.assert_close(tokens_of(found, x, mask).values, expected, "tokens")


@pytest.mark.parametrize(
    "name, part",
    [
        ("Wav2Vec2ForPreTraining", "wav2vec2"),
        ("Wav2Vec2ForCTC", "wav2vec2"),
        ("Wav2Vec2ForXVector", "wav2vec2"),
        ("HubertForSequenceClassification", "hubert"),
    ],
)
def test_checkpoints_of_other_tasks(name, part, tmp_path):
    theirs, folder = make(name, tmp_path, **GROUP, use_weighted_layer_sum=True)
    found = peers.load(folder, "audio")
    expected = run(getattr(theirs, part), waveforms(), None).last_hidden_state
    peers.assert_close(tokens_of(found, waveforms()).values, expected, "tokens")
    assert found.unused and not any(f"{part}.encoder" in n for n in found.unused)


def test_waveforms_of_a_batch():
    features = AudioFeatures(kind="waveform")
    pcm = jnp.asarray(32768 * waveforms(), jnp.int16)
    batch = {"index": jnp.arange(BATCH), "audio": pcm, "audio_mask": peers.prefix_mask(LENGTHS, TIME)}
    kept = precompute_spectrograms(features)(batch)
    assert kept == batch and axes_of("audio", kept) == 2
    x, mask = preprocess_modality("audio", kept, features)
    np.testing.assert_array_equal(x, pcm.astype(jnp.float32) / 32768)
    assert mask is batch["audio_mask"]
    assert preprocess_modality("audio", {"audio": waveforms()}, features)[1] is None
    with pytest.raises(ValueError, match="holds frames"):
        preprocess_modality("audio", {**batch, "audio": jnp.zeros((BATCH, TIME, 2))}, features)
    keys = example_keys(jax.random.key(0), batch["index"])
    with pytest.raises(ValueError, match="SpecAugment"):
        preprocess_modality("audio", batch, features, Augmentation(time_masks=1), keys)
    with pytest.raises(ValueError, match="16000 Hz, the data has 8000 Hz"):
        AudioFeatures(sample_rate=8000, kind="waveform")


def test_old_names(tmp_path):
    """As older versions of PyTorch wrote them."""
    _, folder = make("Wav2Vec2Model", tmp_path, **GROUP)
    today = peers.load(folder, "audio").params
    arrays = load_file(folder / "model.safetensors")
    ends = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {next((n.replace(a, b) for a, b in ends.items() if n.endswith(a)), n): x for n, x in arrays.items()}
    assert sum(name.endswith(("weight_g", "weight_v")) for name in old) == 2
    save_file(old, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, peers.load(folder, "audio").params, today)


def test_weight_norm():
    random = np.random.default_rng(0)
    kernel = apply_weight_norm(random.normal(size=(1, 1, 5)), random.normal(size=(6, 7, 5)), groups=3)
    assert kernel.shape == (3, 5, 7, 2)
    np.testing.assert_allclose(apply_weight_norm(*split_weight_norm(kernel), groups=3), kernel, rtol=1e-5)


def test_errors(tmp_path):
    theirs, folder = make("Wav2Vec2Model", tmp_path / "plain")
    found = peers.load(folder, "audio")
    assert found.module.shortest == 5 + 3 * (3 - 1) + 6 * (2 - 1)
    with pytest.raises(ValueError, match="16 samples given.*17"):
        found.module.apply({"params": found.params}, jnp.zeros((1, 16)))
    _, folder = make("HubertModel", tmp_path / "norm", conv_pos_batch_norm=True)
    with pytest.raises(ValueError, match="conv_pos_batch_norm"):
        peers.load(folder, "audio")
    _, folder = make("Wav2Vec2Model", tmp_path / "adapter", add_adapter=True)
    with pytest.raises(ValueError, match="add_adapter"):
        peers.load(folder, "audio")
