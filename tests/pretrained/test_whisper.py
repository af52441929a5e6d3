import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from xmodal_jax.models.towers import AudioFeatures, axes_of, precompute_spectrograms, preprocess_modality
from xmodal_jax.preprocess.audio import whisper_log_mel

FRAMES, BATCH, BANDS = 22, 3, 13
SIZES = dict(
    vocab_size=53,
    num_mel_bins=BANDS,
    d_model=28,
    encoder_layers=3,
    encoder_attention_heads=7,
    encoder_ffn_dim=37,
    decoder_layers=1,
    decoder_attention_heads=7,
    decoder_ffn_dim=11,
    max_source_positions=FRAMES // 2,
    max_target_positions=5,
    classifier_proj_size=7,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    suppress_tokens=None,
    begin_suppress_tokens=None,
)


def make(name, folder, **options):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    made = getattr(transformers, name)(transformers.WhisperConfig(**SIZES, **options))
    return made, peers.save(made, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make("WhisperModel", tmp_path_factory.mktemp("whisper"))


def frames(length=FRAMES, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(BATCH, length, BANDS)), jnp.float32)


def encode(model, x, **options):
    return model.get_encoder()(peers.to_torch(x).transpose(1, 2), **options)


@pytest.mark.parametrize("scan", [False, True])
def test_hidden_states_and_pool(model, scan):
    theirs, folder = model
    found = peers.load(folder, "audio", "pool", scan=scan)
    x = frames()
    expected = encode(theirs, x, output_hidden_states=True)
    peers.assert_same_hidden_states(found, x, None, expected.hidden_states)
    tokens = found.module.apply({"params": found.params}, x)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    pooled = found.module.apply({"params": found.params}, x, method="embed")
    peers.assert_close(pooled, expected.last_hidden_state.mean(1), "pool")
    everything = jnp.ones((BATCH, FRAMES), bool)
    masked = found.module.apply({"params": found.params}, x, everything)
    np.testing.assert_allclose(masked.values, tokens.values, atol=1e-5)


def test_gradients(model):
    theirs, folder = model
    found = peers.load(folder, "audio")
    x, weights = frames(), np.random.default_rng(1).normal(size=(BATCH, FRAMES // 2, 28)).astype(np.float32)

    def loss(params):
        return (found.module.apply({"params": params}, x).values * weights).sum()

    theirs.zero_grad()
    (encode(theirs, x).last_hidden_state * peers.to_torch(weights)).sum().backward()
    compared = peers.assert_same_gradients(found, "audio", loss, theirs, prefix="encoder.")
    # All but the table of positions, which is fixed.
    assert compared == len(list(theirs.get_encoder().parameters())) - 1


@pytest.mark.parametrize("length", [1, 7, 12])
def test_padding_has_no_influence(model, length):
    found = peers.load(model[1], "audio", "pool")
    x, mask = frames(), peers.prefix_mask([length, FRAMES, 0], FRAMES)
    apply = lambda x, mask, **options: found.module.apply({"params": found.params}, x, mask, **options)
    tokens, cut = apply(x, mask), apply(x[:, :length], None)
    content = -(-length // 2)
    np.testing.assert_array_equal(tokens.mask.sum(1), [content, FRAMES // 2, 0])
    np.testing.assert_allclose(tokens.values[0, :content], cut.values[0], atol=1e-5)
    pooled = apply(x, mask, method="embed")
    np.testing.assert_allclose(pooled[0], cut.values[0].mean(0), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(apply(x, mask, method="embed")))))(x)
    np.testing.assert_array_equal(jnp.abs(gradient).max(-1) > 0, mask)


@pytest.mark.parametrize("name", ["WhisperForConditionalGeneration", "WhisperForAudioClassification"])
def test_checkpoints_of_other_tasks(name, tmp_path):
    theirs, folder = make(name, tmp_path, use_weighted_layer_sum=True)
    found = peers.load(folder, "audio")
    encoder = theirs.get_encoder() if hasattr(theirs, "get_encoder") else theirs.encoder
    expected = encoder(peers.to_torch(frames()).transpose(1, 2)).last_hidden_state
    peers.assert_close(found.module.apply({"params": found.params}, frames()).values, expected, "tokens")
    assert found.unused and not any("encoder.layers" in n and "decoder" not in n for n in found.unused)


def test_frames_of_a_batch():
    features = AudioFeatures(kind="whisper", mels=BANDS)
    sound = jnp.asarray(0.3 * np.random.default_rng(0).normal(size=(BATCH, 1009)), jnp.float32)
    batch = {"audio": sound, "audio_mask": peers.prefix_mask([1009, 501, 0], 1009)}
    x, mask = preprocess_modality("audio", batch, features)
    expected, there = whisper_log_mel(sound, batch["audio_mask"], mels=BANDS)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(mask, there)
    once = precompute_spectrograms(features)(batch)
    assert axes_of("audio", once) == 3
    np.testing.assert_allclose(preprocess_modality("audio", once, features)[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="16000 Hz, the data has 8000 Hz"):
        AudioFeatures(sample_rate=8000, kind="whisper")


def test_errors(model):
    found = peers.load(model[1], "audio")
    with pytest.raises(ValueError, match="0.23 seconds.*0.22 seconds"):
        found.module.apply({"params": found.params}, frames(23))
    with pytest.raises(ValueError, match="13 mel bands"):
        found.module.apply({"params": found.params}, jnp.zeros((1, 2, 40)))
