"""Pretrained encoders in autoencoders, in the synthesis of speech and before both players of a GAN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.gan.test_method import CLASS, MLP_ENCODER, MLP_GENERATOR, WORDS_ALONE
from tests.models.gan.test_method import CONFIG as GAN_CONFIG
from tests.pretrained import checkpoints as made
from tests.support import random_params
from xmodal_jax.core import trees
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.models.conditions import CaptionEncoder, DataSizes
from xmodal_jax.models.gan import FrozenFeatures, GANConfig, Reconstruction, make_gan
from xmodal_jax.models.gan.networks import GANNetworks
from xmodal_jax.models.speech import SpeechConfig, make_speech
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.models.vae.modalities import ImageConfig, TextConfig, sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import JMVAEConfig
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import AAEConfig
from xmodal_jax.nets.decoders import MLPDecoderConfig, ParallelDecoderConfig
from xmodal_jax.nets.encoders import DCGANEncoderConfig, TextTransformerConfig
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.load import load_encoder
from xmodal_jax.train import loop
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.gan_step import make_training as make_game
from xmodal_jax.train.optim import Optimizer, resolve_lr_multipliers
from xmodal_jax.train.parallel import make_engine
from xmodal_jax.train.run import to_json
from xmodal_jax.transfer.autoencoders import LatentConfig, use_pretrained_encoders
from xmodal_jax.transfer.export import export_run
from xmodal_jax.transfer.frozen import (
    FrozenNetworksConfig,
    LoadedCaptioner,
    load_image_encoder,
    load_text_encoder,
    same_tokens,
)
from xmodal_jax.transfer.pretrained import resolve_pretrained

TOKENIZER = train_tokenizer(["a red square above two blue circles"], "word")
CAPTIONS = ["a red square", "two blue circles", "a red circle above two blue circles", "blue"]
LENGTH, SHAPE = 11, (16, 24, 3)
KEY = jax.random.key(0)
SMALL = dict(
    latent=3, hidden=5,
    image=ImageConfig(DCGANEncoderConfig(width=8), MLPDecoderConfig(width=8, depth=1), "normal", 0.5),
    text=TextConfig(
        TextTransformerConfig(width=8, depth=1, heads=2, dropout=0.1),
        ParallelDecoderConfig(width=8, depth=1, heads=2),
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent(LatentConfig):
    model: JMVAEConfig | AAEConfig = JMVAEConfig(**SMALL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    words = dict(vocab_size=TOKENIZER.vocab_size)
    bert = made.write_folder(root / "bert", {**made.BERT, **words}, {"text": "pool"}, TOKENIZER)
    vit = made.write_folder(root / "vit", made.VIT, {"image": "pool"})
    return {"text_encoder": f"hf:{bert}", "image_encoder": f"hf:{vit}"}


@pytest.fixture(scope="module")
def read(folders):
    """What the checkpoints hold."""
    load = lambda kind, **sizes: load_encoder(
        folders[f"{kind}_encoder"][3:], kind, EncoderOptions(head="pool"), progress=False, **sizes
    )
    return {"text": load("text"), "image": load("image", image_size=SHAPE[:2])}


def batch_of(rows=4):
    rng = np.random.default_rng(0)
    text, mask = TOKENIZER.encode_batch(CAPTIONS[:rows], LENGTH)
    pictures = {m: rng.integers(0, 256, (rows, *SHAPE)).astype(np.uint8) for m in ("image", "image_other")}
    batch = {**pictures, "text": text, "text_mask": mask, "index": np.arange(rows, dtype=np.int32)}
    return jax.device_put(batch)


def begun(config, batch):
    """A multimodal VAE as a run has it after its start."""
    config, encoders = use_pretrained_encoders(config)
    names = ("image", "image_other", "text")
    sizes = sizes_of(batch, names, config.model, vocab_size=TOKENIZER.vocab_size)
    vae = make_multimodal_vae(config.model, sizes)
    method = encoders.attach(vae.method, sizes)
    params = method.load_pretrained(random_params(method.init, KEY, batch), batch)
    return config, vae, method, encoders, params


def test_every_modality_of_a_multimodal_vae_reads_by_its_own_copy(folders, read):
    batch = batch_of()
    config, vae, method, encoders, params = begun(Latent(**folders, encoder_lr_multiplier=0.0), batch)
    assert config.model.image.encoder.name == config.model.text.encoder.name == "hf"
    assert config.model.text.encoder.dropout == 0.1  # as asked
    assert config.text_options["tokenizer"] == folders["text_encoder"]
    flat = trees.flat(params)
    for part in ("experts", "trunks"):  # each modality's, and those of the joint encoder
        for group, kind, copies in (
            ("image_16_24_3", "image", 2),
            (f"text_{LENGTH}_{TOKENIZER.vocab_size}", "text", 1),
        ):
            for path, leaf in trees.flat(read[kind].params).items():
                found = flat[f"{part}_{group}/features/encoder/{path}"]
                np.testing.assert_array_equal(
                    found, np.broadcast_to(leaf, (copies, *leaf.shape)), err_msg=path
                )
    # A picture's features are those of the encoder's pool: layer norm, a hidden layer, ReLU.
    own = params["experts_image_16_24_3"]["features"]
    pixels = np.float32(batch["image_other"]) / 127.5 - 1
    embed = jax.jit(lambda params, x: read["image"].module.apply({"params": params}, x, method="embed"))
    pooled = np.asarray(embed(read["image"].params, pixels))
    normed = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    own, moments = jax.tree.map(np.asarray, (own, params["experts_image_16_24_3"]["mean"]))
    normed = normed * own["norm"]["scale"][1] + own["norm"]["bias"][1]
    hidden = np.maximum(normed @ own["hidden"]["kernel"][1] + own["hidden"]["bias"][1], 0)
    given = np.array([False, True, False])
    found = jax.jit(lambda *args: vae.infer(*args, None).shared[0])(params, batch, given)
    np.testing.assert_allclose(
        found, hidden @ moments["kernel"][1] + moments["bias"][1], rtol=1e-4, atol=1e-5
    )
    # Frozen, and nothing else is.
    rates = trees.flat(resolve_lr_multipliers(encoders.set_learning_rates(Optimizer()), params))
    still = {path for path, rate in rates.items() if not rate}
    assert still == {path for path in flat if "/features/encoder/" in path}
    # Nothing of it where no flag asks.
    plain, none = use_pretrained_encoders(Latent())
    assert (
        plain == Latent()
        and none.attach(method, {}) is method
        and none.set_learning_rates(Optimizer()) == Optimizer()
    )


def test_what_an_autoencoder_trained_goes_back_as_folders(folders, tmp_path):
    batch = batch_of()
    config, vae, _, _, params = begun(Latent(**folders), batch)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * np.random.default_rng(0).normal(size=x.shape).astype(x.dtype), params
    )
    sizes = {"image": [*SHAPE, 0], "image_other": [*SHAPE, 0], "text": [LENGTH, TOKENIZER.vocab_size]}
    meta = {"config": to_json(config), "tokenizer": TOKENIZER.files(), "seeds": [0], "sizes": sizes}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(3, {"step": jnp.int32(3), "params": params}, meta | {"length": LENGTH})
    checkpoints.close()
    written = export_run(tmp_path / "run", tmp_path / "out")
    assert set(written) == {"parameters", "run.json", "image", "image_other", "text"}
    for kind, name, group, k in (
        ("image", "image", "image_16_24_3", 0),
        ("image", "image_other", "image_16_24_3", 1),
        ("text", "text", f"text_{LENGTH}_{TOKENIZER.vocab_size}", 0),
    ):
        size = dict(image_size=SHAPE[:2]) if kind == "image" else {}
        again = load_encoder(
            tmp_path / "out" / name, kind, EncoderOptions(head="pool"), progress=False, **size
        )
        own = params[f"experts_{group}"]["features"]["encoder"]
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[k]), again.params, own)  # noqa: B023


@pytest.mark.parametrize("mode, seeds", [("jit", None), ("pmap", 2)])
def test_the_autoencoder_of_a_game_begins_with_it(folders, read, mode, seeds):
    """An adversarial autoencoder, whose generator has an average of its own."""
    batch = batch_of(8 if mode == "pmap" else 4)
    batch = jax.tree.map(lambda x: np.concatenate([x, x])[:8], batch)
    config, encoders = use_pretrained_encoders(
        Latent(
            model=AAEConfig(**SMALL),
            image_encoder=folders["image_encoder"],
            encoder_lr_multiplier=0.1,
        )
    )
    size = sizes_of(batch, ("image",), config.model)["image"]
    method = encoders.attach(make_vae(config.model, "image", size).method, {"image": size})
    generator = encoders.set_learning_rates(Optimizer(ema=0.9))
    training = make_game(method, GANOptimizer(generator=generator), 2)
    engine = make_engine(mode, training.init, training.make_step, seeds=seeds)
    keys = KEY if seeds is None else jax.vmap(jax.random.key)(np.arange(seeds))
    state = loop.load_pretrained_params(engine.init(keys, batch), engine, training, batch)
    state = engine.fetch(state)
    for tree in (state.params["generator"], state.ema):
        found = trees.flat(tree["network"]["experts_image_16_24_3"]["features"]["encoder"])
        for path, leaf in trees.flat(read["image"].params).items():
            expected = np.broadcast_to(leaf, found[path].shape)
            np.testing.assert_array_equal(found[path], expected, err_msg=path)
    rates = trees.flat(
        resolve_lr_multipliers(generator, jax.tree.map(jnp.asarray, state.params["generator"]))
    )
    slow = {path for path, rate in rates.items() if rate == 0.1}
    assert slow and slow == {path for path in rates if "/features/encoder/" in path}


def test_speech_of_a_pretrained_reader(folders, read):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(StartConfig):
        model: SpeechConfig = SpeechConfig(decoder_depth=1, features=AudioFeatures(mels=5))

    config, pretrained = resolve_pretrained(Config(text_encoder=folders["text_encoder"]))
    assert config.model.features == AudioFeatures(mels=5) and config.model.text.width == 12
    batch = {m: x for m, x in batch_of().items() if m in ("text", "text_mask", "index")}
    batch["audio"] = jnp.asarray(np.random.default_rng(0).normal(size=(4, 40, 5)), jnp.float32)
    batch["audio_mask"] = jnp.ones((4, 40), bool)
    batch |= {"pitch": jnp.full((4, 40), 120.0), "energy": jnp.full((4, 40), -4.0)}
    method = make_speech(config.model, vocab_size=TOKENIZER.vocab_size, length=LENGTH)
    method = pretrained.attach(method, TOKENIZER)
    params = method.load_pretrained(random_params(method.init, KEY, batch), batch)
    without = {k: v for k, v in read["text"].params.items() if k != "pooler"}
    jax.tree.map(np.testing.assert_array_equal, params["text"], without)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: method.loss(p, batch, KEY)[0]))(params)
    assert np.isfinite(loss) and all(
        np.abs(g).max() > 0 for g in jax.tree.leaves(grads["text"]["transformer"])
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANTraining(FrozenNetworksConfig):
    model: GANConfig = dataclasses.replace(
        GAN_CONFIG, condition=WORDS_ALONE, generator=MLP_GENERATOR, discriminator=MLP_ENCODER,
        reconstruction=Reconstruction(encoder=MLP_ENCODER),
        features=FrozenFeatures(perceptual_weight=2.0, redescription_weight=0.0),
    )  # fmt: skip


def test_a_pool_that_is_asked_for_is_taken(folders, read):
    """In an autoencoder and in a GAN, also the mean, which is the default of other encoders; by BERT's own tokens."""
    model = JMVAEConfig(**SMALL)
    text = dataclasses.replace(model.text, encoder=TextTransformerConfig(pool="mean"))
    config, _ = use_pretrained_encoders(Latent(**folders, model=dataclasses.replace(model, text=text)))
    assert (config.model.text.encoder.pool, config.model.image.encoder.pool) == ("mean", "own")
    batch = batch_of()
    size = sizes_of(batch, ("text",), config.model, vocab_size=TOKENIZER.vocab_size)["text"]
    features = config.model.text.features(size, 5)
    reader = dataclasses.replace(GANTraining.model.condition, text=TextTransformerConfig(pool="mean"))
    model = dataclasses.replace(GANTraining.model, condition=reader, features=None)
    gan, frozen = load_text_encoder(GANTraining(text_encoder=folders["text_encoder"], model=model))
    sentence = CaptionEncoder(gan.model.condition, TOKENIZER.vocab_size, LENGTH, True).encoder

    @jax.jit
    def run(bert, text, mask):
        tokens = read["text"].module.apply({"params": bert}, text, mask).values
        found, variables = features.init_with_output(KEY, text, mask, None)
        params = {**variables["params"], "encoder": {k: v for k, v in bert.items() if k != "pooler"}}
        vector, _ = sentence.apply({"params": frozen.params}, text, mask)
        return tokens, features.apply({"params": params}, text, mask, None), params, vector

    results = run(read["text"].params, batch["text"], batch["text_mask"])
    tokens, found, params, vector = jax.tree.map(np.asarray, results)
    mask = np.asarray(batch["text_mask"], np.float64)[:, :, None]
    pooled = (tokens * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(vector, pooled, atol=1e-5)
    normed = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    hidden = np.maximum(normed @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    np.testing.assert_allclose(found, hidden, atol=1e-4)
    with pytest.raises(ValueError, match="'attention' has a query to learn"):
        attention = dataclasses.replace(reader, text=TextTransformerConfig(pool="attention"))
        load_text_encoder(dataclasses.replace(gan, model=dataclasses.replace(gan.model, condition=attention)))


def test_a_gan_with_a_frozen_text_encoder_and_a_frozen_image_encoder(folders, read):
    config, reader = load_text_encoder(GANTraining(**folders))
    sizes = dict(shape=SHAPE, vocab_size=TOKENIZER.vocab_size, length=LENGTH)
    image_encoder = load_image_encoder(config, SHAPE)
    gan = make_gan(config.model, text=reader.params, image_encoder=image_encoder, **sizes)
    batch = batch_of()
    params = random_params(lambda *args: gan.init(*args)[0], KEY, batch)
    variables = jax.jit(lambda *args: gan.init(*args)[1])(KEY, batch)
    assert not {"text", "image_encoder"} & variables.keys()
    jax.tree.map(np.testing.assert_array_equal, gan.frozen["text"]["encoder"], read["text"].params)
    # The sentence is what BERT's own pooler makes of it, its words the tokens.
    net = GANNetworks(config.model, DataSizes(**sizes), frozen_text=True)
    encode = jax.jit(lambda *args: net.encode_condition(*args, None))
    condition = encode(params["generator"], gan.frozen, batch)

    @jax.jit
    def read_text(params, ids, mask):
        tokens = read["text"].module.apply({"params": params}, ids, mask)
        return tokens, read["text"].module.apply({"params": params}, tokens, method="pool")

    tokens, pooled = read_text(read["text"].params, batch["text"], batch["text_mask"])
    np.testing.assert_allclose(condition.vector, pooled, atol=1e-6)
    np.testing.assert_allclose(condition.words.values, tokens.values, atol=1e-6)
    # Six places of eight pixels, without the class token.
    real = jnp.asarray(np.float32(batch["image"]) / 127.5 - 1)
    seen = jax.eval_shape(image_encoder.encode, gan.frozen["image_encoder"], real)
    assert seen.shape == (4, 6, 12) and params["discriminator"]["sight"]["kernel"].shape[0] == 12

    # Rebuilt images that are the real ones look the same: no perceptual loss. Others do not.
    made, _ = jax.jit(gan.generate)(params["generator"], variables, batch, KEY, frozen=gan.frozen)
    features = dataclasses.replace(config.model.features, perceptual_weight=0.0)
    without = dataclasses.replace(config.model, features=features)
    plain = make_gan(without, text=reader.params, image_encoder=image_encoder, **sizes)

    def share(image):
        loss = lambda gan: gan.g_loss(
            {**made, "image": image}, params["discriminator"], variables, batch, KEY, frozen=gan.frozen
        )
        (whole, aux), (rest, _) = loss(gan), loss(plain)
        return whole - rest, aux["g_perceptual"]

    shares = jax.jit(jax.value_and_grad(share, has_aux=True))
    (part, value), slope = shares(-real)
    np.testing.assert_allclose(shares(real)[0], 0.0, atol=1e-5)
    assert value > 0.01 and np.abs(slope).max() > 1e-4
    np.testing.assert_allclose(part, 2.0 * value, rtol=1e-4)

    players = GANOptimizer(generator=Optimizer(name="adam"), discriminator=Optimizer(name="adam"))
    training = make_game(gan, players, 2, params=params)
    state = jax.jit(training.init)(KEY, batch)
    after, metrics = jax.jit(training.make_step(None))(state, batch, gan.frozen)
    assert metrics["finite"].all()
    assert jax.tree.structure(after) == jax.tree.structure(state)  # without the frozen networks


def test_what_cannot_be_is_said(folders):
    with pytest.raises(ValueError, match="takes no encoder of audio: leave --audio-encoder out"):
        use_pretrained_encoders(Latent(audio_encoder=folders["text_encoder"]))
    with pytest.raises(ValueError, match="takes no encoder of video: leave --video-encoder out"):
        load_text_encoder(GANTraining(video_encoder=folders["image_encoder"]))
    with pytest.raises(ValueError, match="--encoder-lr-multiplier must not be negative"):
        Latent(encoder_lr_multiplier=-1.0)
    with pytest.raises(ValueError, match="--read-with and --text-encoder both choose what encodes"):
        load_text_encoder(GANTraining(read_with="a run", text_encoder=folders["text_encoder"]))
    of_classes = dataclasses.replace(GANTraining().model, condition=CLASS)
    with pytest.raises(ValueError, match="the condition is 'class': leave them out or"):
        load_text_encoder(GANTraining(text_encoder=folders["text_encoder"], model=of_classes))
    config, reader = load_text_encoder(GANTraining(text_encoder=folders["text_encoder"]))
    assert config.model.features is None  # as there is no network that they could be of
    asked = dataclasses.replace(GANTraining().model, features=FrozenFeatures(redescription_weight=3.0))
    with pytest.raises(ValueError, match="--model.features needs a frozen network"):
        load_text_encoder(GANTraining(model=asked))
    assert same_tokens(None, reader) is None  # as long as the captions are
    own = TokenizeTransform(reader.tokenizer, 9)
    assert same_tokens(LoadedCaptioner(None, own), reader) is own
    other = TokenizeTransform(train_tokenizer(["other words"], "word"), 9)
    with pytest.raises(ValueError, match="have different tokenizers"):
        same_tokens(LoadedCaptioner(None, other), reader)
    image_encoder = load_image_encoder(GANTraining(image_encoder=folders["image_encoder"]), SHAPE)
    blind = dataclasses.replace(config.model, features=FrozenFeatures(projected=False))
    with pytest.raises(ValueError, match="needs projected or perceptual_weight"):
        make_gan(
            blind, image_encoder=image_encoder, shape=SHAPE, vocab_size=TOKENIZER.vocab_size, length=LENGTH
        )
    with pytest.raises(ValueError, match="the pretrained text encoder knows"):
        size = dict(shape=SHAPE, vocab_size=TOKENIZER.vocab_size + 1, length=LENGTH)
        make_gan(config.model, **size).init(KEY, {})
