"""Pretrained encoders as the start of the library's models: what is read, what learns, and at which rate."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_contrastive import make_batch
from tests.models.test_fusion import CLASSES
from tests.models.test_fusion import make_batch as fusion_batch
from tests.pretrained import checkpoints as made
from tests.support import assert_device_invariant, random_params
from xmodal_jax.core import trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import fit_tokenizer
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.evaluation.text import TextGenerationConfig
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.fusion import FusionConfig, make_fusion
from xmodal_jax.models.lora import LoRA
from xmodal_jax.models.seq2seq import make_seq2seq
from xmodal_jax.nets.encoders import PretrainedEncoderConfig, TextTransformerConfig
from xmodal_jax.nets.fusion import GatedCrossAttentionConfig
from xmodal_jax.nets.heads import LinearHeadConfig, OwnHeadConfig
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.load import load_encoder, make_module
from xmodal_jax.train import loop
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.optim import Optimizer, resolve_lr_multipliers
from xmodal_jax.train.parallel import make_engine
from xmodal_jax.train.run import to_json
from xmodal_jax.train.step import make_training
from xmodal_jax.transfer.features import frozen_features
from xmodal_jax.transfer.pretrained import resolve_pretrained

TOKENIZER = train_tokenizer(["a red square above two blue circles"], "word")
MODALITIES = ("text", "image")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig):
    model: ContrastiveConfig | FusionConfig = ContrastiveConfig(embed_dim=7)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(StartConfig):
    model: ContrastiveConfig = ContrastiveConfig(embed_dim=7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    words = dict(vocab_size=TOKENIZER.vocab_size)
    return {
        "bert": made.write_folder(root / "bert", {**made.BERT, **words}, {"text": "pool"}, TOKENIZER),
        "vit": made.write_folder(root / "vit", made.VIT, {"image": "pool"}),
        "gpt2": made.write_folder(root / "gpt2", {**made.GPT2, **words}, {"decoder": "none"}, TOKENIZER),
        "wav2vec2": made.write_folder(root / "wav2vec2", made.WAV2VEC2, {"audio": "none"}),
        "clip": made.write_folder(
            root / "clip",
            {**made.CLIP, "text_config": {**made.CLIP["text_config"], **words, "eos_token_id": 2}},
            {"text": "project", "image": "project"},
            TOKENIZER,
        ),
    }


def batch_of(rows=4, modalities=MODALITIES):
    batch = make_batch(rows, modalities=modalities)
    rng = np.random.default_rng(0)
    if "image" in modalities:
        batch["image"] = rng.integers(0, 256, (rows, 16, 24, 3)).astype(np.uint8)
    if "text" in modalities:
        captions = ["a red square", "two blue circles", "a red circle above two blue circles", "blue"]
        batch["text"], batch["text_mask"] = TOKENIZER.encode_batch((captions * rows)[:rows], 11)
    return jax.device_put(batch)


def begin(config, make, batch, modalities=MODALITIES):
    """Method, optimizer and parameters as a run has them after its start."""
    config, pretrained = resolve_pretrained(config)
    method = pretrained.attach(make(config.model), TOKENIZER)
    optimizer = pretrained.set_learning_rates(Optimizer(), method)
    params = random_params(method.init, jax.random.key(0), batch)
    return (
        config,
        method,
        optimizer,
        method.load_pretrained(params, batch) if method.load_pretrained else params,
    )


def started_params(method, batch):
    """Parameters as a run has them after its start."""
    return method.load_pretrained(random_params(method.init, jax.random.key(0), batch), batch)


def contrastive(model):
    return make_contrastive(model, MODALITIES, vocab_size=TOKENIZER.vocab_size)


def hf(folders, **names):
    return {flag: f"hf:{folders[name]}" for flag, name in names.items()}


def test_towers_are_read_and_their_projections_are_new(folders):
    config = Config(**hf(folders, text_encoder="bert", image_encoder="vit"))
    assert config.text_options["tokenizer"] == f"hf:{folders['bert']}"
    batch = batch_of()
    config, method, _, params = begin(config, contrastive, batch)
    bert = load_encoder(folders["bert"], "text", EncoderOptions(head="pool"), progress=False)
    jax.tree.map(np.testing.assert_array_equal, params["text"]["encoder"], bert.params)
    vit = load_encoder(
        folders["vit"], "image", EncoderOptions(head="pool"), progress=False, image_size=(16, 24)
    )
    jax.tree.map(np.testing.assert_array_equal, params["image"]["encoder"], vit.params)
    # The tower is: the encoder's own pool, a layer norm, a projection, the unit sphere.
    embed = jax.jit(lambda params, x: vit.module.apply({"params": params}, x, method="embed"))
    pooled = np.asarray(embed(vit.params, np.float32(batch["image"]) / 127.5 - 1), np.float64)
    normed = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    tower = jax.tree.map(np.float64, {name: params["image"][name] for name in ("norm", "project")})
    expected = (normed * tower["norm"]["scale"] + tower["norm"]["bias"]) @ tower["project"]["kernel"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    predicted = jax.jit(method.predict)(params, batch)
    np.testing.assert_allclose(predicted["image"], expected, atol=1e-5)
    # What a run keeps says all: another process makes the same model of it.
    again = make_contrastive(config.model, MODALITIES, vocab_size=TOKENIZER.vocab_size)
    np.testing.assert_array_equal(jax.jit(again.predict)(params, batch)["text"], predicted["text"])


def test_clip_as_it_was_trained(folders):
    flags = hf(folders, text_encoder="clip", image_encoder="clip")
    model = ContrastiveConfig(head=OwnHeadConfig(), embed_dim=99)  # the dimensions are the checkpoint's
    batch = batch_of()
    _, method, optimizer, params = begin(Config(model=model, **flags), contrastive, batch)
    assert set(params["text"]) == set(params["image"]) == {"encoder"}
    np.testing.assert_allclose(params["loss"]["log_scale"], made.LOG_SCALE)
    assert jax.eval_shape(method.predict, params, batch)["text"].shape == (4, 7)
    assert optimizer == Optimizer()
    with pytest.raises(ValueError, match="head 'own' is the projection of a pretrained image encoder"):
        begin(Config(model=model, **hf(folders, text_encoder="clip")), contrastive, batch)


@pytest.mark.parametrize(
    "layout, parts",
    # tests/models/test_contrastive.py has all layouts, and parts.
    [(("pmap", 8, 1), 1), pytest.param(("sharded", 4, 2), 2, marks=pytest.mark.slow)],
    ids=["pmap", "sharded and in parts"],
)
def test_the_method_does_not_depend_on_the_devices(folders, layout, parts):
    config = Config(
        model=ContrastiveConfig(head=OwnHeadConfig()),
        **hf(folders, text_encoder="clip", image_encoder="clip"),
    )
    _, method, _, params = begin(config, contrastive, batch_of())
    begun = method._replace(init=lambda key, batch: params)
    # From what the checkpoints hold.
    assert_device_invariant(begun, batch_of(8), layouts=[layout], parts=parts, initialize=True)


@pytest.mark.parametrize(
    "mode, seeds",
    [
        ("jit", None),
        ("pmap", None),
        ("sharded", 2),
        pytest.param("jit", 2, marks=pytest.mark.slow),  # one seed and several are there, in other modes
    ],
)
def test_every_engine_begins_with_what_was_read(folders, mode, seeds):
    config, pretrained = resolve_pretrained(Config(**hf(folders, text_encoder="bert", image_encoder="vit")))
    method = pretrained.attach(contrastive(config.model), TOKENIZER)
    # Each seed starts from parameters of its own; a single one needs no compiled initialization.
    initial = random_params(method.init, jax.random.key(0), batch_of()) if seeds is None else None
    training = make_training(method, Optimizer(ema=0.9), 2, params=initial)
    engine = make_engine(mode, training.init, training.make_step, seeds=seeds)
    keys = jax.random.key(0) if seeds is None else jax.vmap(jax.random.key)(np.arange(seeds))
    drawn = engine.init(keys, batch_of())
    before = engine.fetch(drawn).params["text"]["project"]["kernel"]
    state = engine.fetch(loop.load_pretrained_params(drawn, engine, training, batch_of()))
    bert = load_encoder(folders["bert"], "text", EncoderOptions(head="pool"), progress=False).params
    for params in (state.params, state.ema):
        for (name, read), found in zip(
            trees.flat(bert).items(), jax.tree.leaves(params["text"]["encoder"]), strict=True
        ):
            for k in range(seeds or 1):
                np.testing.assert_array_equal(found if seeds is None else found[k], read, err_msg=name)
        np.testing.assert_array_equal(params["text"]["project"]["kernel"], before)
    shardings = [leaf.sharding for leaf in jax.tree.leaves(state)]
    assert shardings == [leaf.sharding for leaf in jax.tree.leaves(engine.fetch(drawn))]


def test_rates_of_layers(folders):
    config = Config(
        **hf(folders, text_encoder="bert", image_encoder="vit"), layer_decay=0.5, encoder_lr_multiplier=0.1
    )
    _, _, optimizer, params = begin(config, contrastive, batch_of())
    rates = trees.flat(resolve_lr_multipliers(optimizer, params))
    for name, rate in rates.items():
        if "/encoder/" not in name:
            expected = 1.0
        elif "layers_1/" in name or "transformer/norm" in name or "pooler" in name or "/dense/" in name:
            expected = 0.1
        elif "layers_0/" in name:
            expected = 0.05
        else:
            expected = 0.025
        np.testing.assert_allclose(rate, expected, err_msg=name)
    assert {round(rate, 4) for rate in rates.values()} == {1.0, 0.1, 0.05, 0.025}


@pytest.mark.parametrize("how", [dict(encoder_lr_multiplier=0.0), dict(lora=LoRA(rank=2))])
def test_frozen_encoders_keep_still(folders, how):
    config = Config(**hf(folders, text_encoder="bert", image_encoder="vit"), **how)
    _, _, optimizer, params = begin(config, contrastive, batch_of())
    for name, rate in trees.flat(resolve_lr_multipliers(optimizer, params)).items():
        assert (rate == 0.0) == (name.split("/")[1] == "encoder" and not name.startswith("lora")), name
    assert ("lora" in params) == ("lora" in how)


@pytest.mark.parametrize("head", [LinearHeadConfig(), OwnHeadConfig()], ids=["linear", "own"])
def test_features_of_frozen_towers_are_computed_once(folders, head):
    name = "clip" if head.is_own else None
    flags = hf(folders, text_encoder=name or "bert", image_encoder=name or "vit")
    config = Config(model=ContrastiveConfig(embed_dim=7, head=head), encoder_lr_multiplier=0.0, **flags)
    config, pretrained = resolve_pretrained(config)
    method = pretrained.attach(contrastive(config.model), TOKENIZER)
    captions = ["a red square", "two blue circles", "a red circle above two blue circles", "blue"]
    batch = batch_of()
    raw = {"image": np.asarray(batch["image"]), "caption": np.array(captions, object)}
    added = frozen_features(pretrained, config.model, TokenizeTransform(TOKENIZER, 11))(raw)
    assert set(added) == {"image", "caption", "image_features", "text_features"}
    params = started_params(method, batch)
    with_features = {**batch, **{f: x for f, x in added.items() if f.endswith("_features")}}
    predict = jax.jit(method.predict)
    plain, cached = predict(params, batch), predict(params, with_features)
    for modality in MODALITIES:
        np.testing.assert_allclose(cached[modality], plain[modality], atol=1e-6)
    # Nothing but the features counts: the program has no encoder in it.
    other = {**with_features, "image": 255 - batch["image"]}
    np.testing.assert_array_equal(predict(params, other)["image"], cached["image"])
    trained = dataclasses.replace(pretrained, lr_multiplier=0.1)
    with pytest.raises(ValueError, match="--cache-features keeps the features of frozen"):
        frozen_features(trained, config.model, TokenizeTransform(TOKENIZER, 11))


def test_a_fusion_of_pretrained_encoders(folders):
    flags = hf(folders, text_encoder="bert", image_encoder="vit", audio_encoder="wav2vec2")
    modalities = ("text", "image", "audio")
    batch = batch_of(modalities=modalities)
    batch["audio"] = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (4, 4000)), jnp.float32)
    batch["audio_mask"] = jnp.asarray(np.arange(4000)[None] < np.array([[4000], [2000], [1000], [3000]]))
    batch["label"] = jnp.zeros((4,), jnp.int32)
    targets = {k: v[:4] for k, v in fusion_batch(4, modalities=("text", "image")).items() if k not in batch}
    batch = {**targets, **batch}
    make = lambda model: make_fusion(model, modalities, CLASSES, vocab_size=TOKENIZER.vocab_size)
    config = Config(model=FusionConfig(fusion=GatedCrossAttentionConfig(width=16, depth=1, heads=2)), **flags)
    config, method, _, params = begin(config, make, batch, modalities)
    assert config.model.features.kind == "waveform"
    heard = load_encoder(folders["wav2vec2"], "audio", progress=False)
    jax.tree.map(np.testing.assert_array_equal, params["audio"], heard.params)
    assert "pooler" not in params["text"] and "dense" not in params["image"]
    loss, _ = jax.jit(method.loss)(params, batch, jax.random.key(0))
    assert np.isfinite(loss)


def test_a_captioner_begins_with_a_language_model(folders):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Writing(TextGenerationConfig):
        pass

    config = Writing(**hf(folders, image_encoder="vit", text_decoder="gpt2"))
    batch = batch_of()
    make = lambda model: make_seq2seq(model, "image", vocab_size=TOKENIZER.vocab_size, length=11)
    config, method, _, params = begin(config, make, batch, ("image", "decoder"))
    language = load_encoder(folders["gpt2"], "decoder", progress=False).params
    read = trees.flat(params["decoder"])
    for name, leaf in trees.flat(language).items():
        expected = leaf[:11] if name == "positions/embedding" else leaf
        np.testing.assert_array_equal(read[name], expected, err_msg=name)
    new = {name for name in read if name not in trees.flat(language)}
    assert new and all("/cross_" in name for name in new)
    assert np.isfinite(jax.jit(method.loss)(params, batch, jax.random.key(0))[0])
    frozen = dataclasses.replace(config, encoder_lr_multiplier=0.0)
    _, pretrained = resolve_pretrained(frozen)
    rates = trees.flat(resolve_lr_multipliers(pretrained.set_learning_rates(Optimizer(), method), params))
    assert {name for name, rate in rates.items() if rate} == {f"decoder/{name}" for name in new}


def test_another_model_goes_on_from_a_run_of_pretrained_towers(folders, tmp_path):
    config = Config(**hf(folders, text_encoder="bert", image_encoder="vit"))
    config, method, _, params = begin(config, contrastive, batch_of())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    slots = [slot._asdict() for slot in method.encoders]
    meta = {"config": to_json(config), "tokenizer": TOKENIZER.files(), "seeds": [0], "encoders": slots}
    checkpoints.save(3, {"step": jnp.int32(3), "params": params}, meta)
    checkpoints.close()
    config = Config(
        model=FusionConfig(fusion=GatedCrossAttentionConfig(width=16, depth=1, heads=2)), init_from=tmp_path
    )
    config, pretrained = resolve_pretrained(config)
    make = make_fusion(config.model, MODALITIES, CLASSES, vocab_size=TOKENIZER.vocab_size)
    batch = {**fusion_batch(4, modalities=MODALITIES), **batch_of()}
    started = started_params(pretrained.attach(make, TOKENIZER), batch)
    for modality, left_out in (("text", "pooler"), ("image", "dense")):
        old = {k: v for k, v in params[modality]["encoder"].items() if k != left_out}
        jax.tree.map(np.testing.assert_array_equal, started[modality], old)
    other = train_tokenizer(["another text"], "word")
    with pytest.raises(ValueError, match="give --tokenizer .*/tokenizer"):
        pretrained.attach(make, other)


def test_the_tokenizer_must_be_the_encoders(folders):
    config, pretrained = resolve_pretrained(Config(**hf(folders, text_encoder="bert")))
    larger = train_tokenizer(["a red square above two blue circles and more words"], "word")
    method = make_contrastive(config.model, MODALITIES, vocab_size=larger.vocab_size)
    with pytest.raises(
        ValueError, match=r"the tokenizer has \d+ tokens, the pretrained text encoder knows \d+"
    ):
        pretrained.attach(method, larger).init(jax.random.key(0), batch_of())


def test_audio_of_another_rate_is_refused(folders):
    with pytest.raises(ValueError, match="give --sample-rate 16000, not 8000"):
        resolve_pretrained(
            Config(input=DataOptions(sample_rate=8000), **hf(folders, audio_encoder="wav2vec2"))
        )


def test_what_does_not_follow_from_the_checkpoint_is_the_users(folders):
    image = PretrainedEncoderConfig(dropout=0.1, scan_layers=True, dtype="bfloat16", pool="cls")
    model = ContrastiveConfig(embed_dim=7, image=image)
    flags = hf(folders, text_encoder="bert", image_encoder="vit")
    config, method, _, params = begin(Config(model=model, **flags), contrastive, batch_of())
    image = config.model.image
    assert (image.dropout, image.scan_layers, image.dtype, image.pool) == (0.1, True, "bfloat16", "cls")
    assert (image.name, image.width, image.depth, image.heads) == ("hf", 12, 2, 3)
    stacked = load_encoder(
        folders["vit"], "image", EncoderOptions(scan_layers=True), image_size=(16, 24), progress=False
    )
    jax.tree.map(np.testing.assert_array_equal, params["image"]["encoder"], stacked.params)
    assert jax.eval_shape(method.predict, params, batch_of())["image"].dtype == jnp.float32


def words_vector(params, config, batch):
    """The mean of BERT's tokens, by the encoder's own tokens."""
    bert = make_module("text", config.model.text.architecture)
    tokens = bert.apply({"params": params["text"]["encoder"]}, batch["text"], batch["text_mask"])
    mask = np.asarray(batch["text_mask"], np.float64)[:, :, None]
    return (np.asarray(tokens.values, np.float64) * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize("by", ["command line", "configuration"])
def test_a_pool_that_is_asked_for_is_taken(folders, by):
    """Also the one that is the default of other encoders."""
    flags = hf(folders, text_encoder="bert")
    if by == "command line":
        words = ["--text-encoder", flags["text_encoder"], "--model.text.pool", "mean"]
        config = parse(Plain, None, words)
    else:
        config = Plain(model=ContrastiveConfig(text=TextTransformerConfig(pool="mean")), **flags)
    batch = batch_of()
    config, method, _, params = begin(config, contrastive, batch)
    assert config.model.text.pool == "mean"
    pooled = words_vector(params, config, batch)
    normed = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    tower = jax.tree.map(np.float64, {name: params["text"][name] for name in ("norm", "project")})
    expected = (normed * tower["norm"]["scale"] + tower["norm"]["bias"]) @ tower["project"]["kernel"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(jax.jit(method.predict)(params, batch)["text"], expected, atol=1e-5)
    # Nothing asked for: the encoder's own.
    assert resolve_pretrained(Plain(**flags))[0].model.text.pool == "own"


def test_captions_are_cut_to_the_positions_of_the_pretrained_encoder(folders):
    """They keep their end token, and are counted and noted; a flag makes them shorter still."""
    words, bad_examples = " ".join(["red"] * 60), BadExamples()
    source = ArraySource({"caption": np.array([words, "a red square"], object)})
    config, _ = resolve_pretrained(Plain(**hf(folders, text_encoder="bert")))
    tokenize, _ = fit_tokenizer(source, bad_examples, **config.text_options)
    assert tokenize.max_length == 40 == made.BERT["max_position_embeddings"]
    batch, end = tokenize(source.batch(np.arange(2))), TOKENIZER.eos_id
    assert batch["text"].shape == (2, 40) and batch["text"][0, -1] == end and batch["text_mask"][0].all()
    np.testing.assert_array_equal(batch["text"][0, 1:-1], TOKENIZER.vocabulary()["red"])
    assert batch["text_mask"][1].sum() == 5
    assert [count for text, count in bad_examples.notes.items() if "cut to 40 tokens" in text] == [1]
    shorter = dataclasses.replace(config, text_length=7).text_options
    assert fit_tokenizer(source, bad_examples, **shorter)[0].max_length == 7
    with pytest.raises(ValueError, match="--text-length 41: the pretrained text model takes at most 40"):
        fit_tokenizer(source, bad_examples, **dataclasses.replace(config, text_length=41).text_options)
    with pytest.raises(ValueError, match="--text-length must be at least 3"):
        dataclasses.replace(config, text_length=2)
    # An encoder that learns its positions here has as many as the texts need, and 2 more.
    assert fit_tokenizer(source, bad_examples, **Plain().text_options)[0].max_length == 64


def test_a_pretrained_text_model_reads_its_own_tokens(folders):
    flags = hf(folders, text_encoder="bert")
    assert Plain(**flags).text_options["tokenizer"] == flags["text_encoder"]
    assert Plain(**flags, tokenizer="other").text_options["tokenizer"] == "other"
    assert Plain().text_options["tokenizer"] == "word"
    with pytest.raises(
        ValueError, match="--tokenizer word trains a tokenizer"
    ):  # though it is the default otherwise
        _ = Plain(**flags, tokenizer="word").text_options
    source, options = ArraySource({"caption": np.array(["a red square"], object)}), dict(cleanup="none")
    with pytest.raises(ValueError, match="--vocab-size 500 is for a tokenizer that is trained"):
        fit_tokenizer(source, BadExamples(), tokenizer=flags["text_encoder"], vocab_size=500, **options)
    with pytest.raises(ValueError, match="got 0"):  # which is a size like any other
        fit_tokenizer(source, BadExamples(), tokenizer="bpe", vocab_size=0, **options)


def test_files_are_resized_as_the_encoders_processor_does(tmp_path):
    """Unless flags say otherwise; files are not larger than the images that the encoder was trained on."""
    folder = made.write_folder(tmp_path, {**made.VIT, "image_size": 96}, {"image": "pool"})
    flag = f"hf:{folder}"
    data = resolve_pretrained(Plain(image_encoder=flag))[0].input
    assert (data.image_fit, data.resample, data.largest_side, data.image_size) == (None, None, 96, None)
    settings = {"image_processor": {"size": {"height": 96, "width": 96}, "resample": 2}}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    data = resolve_pretrained(Plain(image_encoder=flag))[0].input
    assert (data.image_fit, data.resample, data.largest_side) == ("stretch", "bilinear", 96)
    with pytest.raises(ValueError, match="leave --channels 1 out"):
        resolve_pretrained(Plain(image_encoder=flag, input=DataOptions(channels=1)))
    own = DataOptions(image_fit="crop", resample="bicubic", largest_side=64)  # the defaults otherwise
    data = resolve_pretrained(Plain(image_encoder=flag, input=own))[0].input
    assert (data.image_fit, data.resample, data.largest_side) == ("crop", "bicubic", 64)
    cropped = {
        "size": {"shortest_edge": 120},
        "do_center_crop": True,
        "crop_size": 96,
    }  # as DINOv2 is published
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": cropped}))
    data = resolve_pretrained(Plain(image_encoder=flag))[0].input
    assert (data.image_fit, data.image_centre) == ("crop", 0.8)
    data = resolve_pretrained(Plain(image_encoder=flag, input=DataOptions(image_centre=1.0)))[0].input
    assert data.image_centre == 1.0


def test_what_cannot_be_is_said(folders, tmp_path):
    with pytest.raises(ValueError, match="--image-encoder is hf: and a folder"):
        resolve_pretrained(Config(image_encoder=str(folders["vit"])))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        resolve_pretrained(Config(image_encoder=f"hf:{tmp_path / 'nowhere'}"))
    with pytest.raises(ValueError, match="pretrained encoders of video are"):
        resolve_pretrained(Config(video_encoder=f"hf:{folders['vit']}"))
    with pytest.raises(ValueError, match="are for what was trained before"):
        resolve_pretrained(Config(lora=LoRA(rank=2)))
    with pytest.raises(ValueError, match="the encoders are frozen: leave --encoder-lr-multiplier"):
        Config(lora=LoRA(rank=2), encoder_lr_multiplier=0.5)
    with pytest.raises(ValueError, match=r"--layer-decay lie in \(0, 1\]"):
        Config(layer_decay=1.5)
    config, pretrained = resolve_pretrained(Config(image_encoder=f"hf:{folders['vit']}"))
    method = pretrained.attach(contrastive(config.model), TOKENIZER)
    batch = batch_of()
    batch["image"] = batch["image"][:, :15]
    with pytest.raises(ValueError, match="patches of 8 pixels must divide the image's sides, got 15 x 24"):
        method.init(jax.random.key(0), batch)
    assert pathlib.Path(folders["vit"]).is_dir()
