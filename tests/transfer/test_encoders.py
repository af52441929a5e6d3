"""A run's encoders as the start of another model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_contrastive import CONFIG as TOWERS
from tests.models.test_contrastive import make_batch as raw_batch
from tests.models.test_fusion import CLASSES, make_batch
from tests.models.test_fusion import CONFIG as FUSION
from tests.support import random_params
from xmodal_jax.core import trees
from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.splits import make_tokenizer
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.fusion import FusionConfig, make_fusion
from xmodal_jax.models.seq2seq import make_seq2seq
from xmodal_jax.nets.encoders import ConvNetConfig, TextDecoderConfig
from xmodal_jax.nets.fusion import GatedCrossAttentionConfig
from xmodal_jax.nets.heads import HeadsByKind, SAILHeadConfig, ShareLockHeadConfig
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.optim import Optimizer, resolve_lr_multipliers
from xmodal_jax.train.run import to_json
from xmodal_jax.transfer.features import frozen_features
from xmodal_jax.transfer.pretrained import find_folders, load_trained_run, resolve_pretrained

OLD = train_tokenizer(["a red square", "two blue circles"], "word")
NEW = train_tokenizer(["what colour is the blue square", "is there a red ring"], "word")
MODALITIES = ("text", "image")


def save(folder, config, method, params, cleanup="none"):
    """A run's checkpoint, and its tokenizer."""
    OLD.save(folder / "tokenizer")
    slots = [slot._asdict() for slot in method.encoders]
    metadata = {
        "config": {"model": to_json(config), "text_cleanup": cleanup},
        "tokenizer": OLD.files(),
        "max_length": 7,
        "shapes": {"image": [10, 10, 3], "text": [7]},
        "seeds": [0],
        "encoders": slots,
    }
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, {"step": jnp.int32(3), "params": params}, metadata)
    checkpoints.close()


def config_of(model, **options):
    """A configuration with this model."""
    fields = [("model", type(model), dataclasses.field(default=model))]
    config = dataclasses.make_dataclass("Config", fields, bases=(StartConfig,), frozen=True, kw_only=True)
    return config(**options)


def resolve(run, model, **options):
    """The configuration of a model that starts from a run, and the run's encoders."""
    config, pretrained = resolve_pretrained(config_of(model, init_from=run, **options))
    return config.model, pretrained


def started_params(method, key, batch):
    """Parameters as a run has them after its start."""
    return method.load_pretrained(random_params(method.init, key, batch), batch)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A contrastive run with known parameters."""
    folder = tmp_path_factory.mktemp("run")
    method = make_contrastive(TOWERS, MODALITIES, vocab_size=OLD.vocab_size)
    params = random_params(method.init, jax.random.key(5), raw_batch(2, modalities=MODALITIES), seed=5)
    save(folder, TOWERS, method, params)
    return folder, params


def test_the_encoders_are_those_of_the_run_and_the_rest_is_new(run):
    folder, old = run
    # Whatever sizes the new model asks for, those of the encoders are the run's.
    asked = FusionConfig(fusion=GatedCrossAttentionConfig(width=16, depth=1, heads=2))
    model, pretrained = resolve(folder, asked)
    assert model.text == TOWERS.text and model.image == TOWERS.image
    assert (
        model.audio == FusionConfig().audio and model.features == FusionConfig().features
    )  # it heard nothing
    plain = make_fusion(model, MODALITIES, CLASSES, vocab_size=NEW.vocab_size)
    method = pretrained.attach(plain, NEW)
    batch = make_batch(2, modalities=MODALITIES)
    batch["text"] = np.pad(batch["text"], ((0, 0), (0, 4)))  # longer texts than the run had
    batch["text_mask"] = np.pad(batch["text_mask"], ((0, 0), (0, 4)))
    key = jax.random.key(0)
    fresh, started = random_params(plain.init, key, batch), started_params(method, key, batch)
    assert method.loss is plain.loss and method.predict is plain.predict
    jax.tree.map(np.testing.assert_array_equal, started["image"], old["image"]["encoder"])
    for name in ("fusion", "head"):
        jax.tree.map(np.testing.assert_array_equal, started[name], fresh[name])

    table, before = (np.asarray(p["embed"]["embedding"]) for p in (started["text"], old["text"]["encoder"]))
    random = np.asarray(fresh["text"]["embed"]["embedding"])
    known = NEW.vocabulary().keys() & OLD.vocabulary().keys()
    assert {"red", "blue", "square", "a"} <= known and "ring" not in known
    for word, row in NEW.vocabulary().items():
        expected = before[OLD.vocabulary()[word]] if word in known else random[row]
        np.testing.assert_array_equal(table[row], expected, err_msg=word)
    positions = started["text"]["positions"]["embedding"]
    np.testing.assert_array_equal(positions[:7], old["text"]["encoder"]["positions"]["embedding"])
    np.testing.assert_array_equal(positions[7:], fresh["text"]["positions"]["embedding"][7:])
    same = [n for n in trees.leaf_names(started["text"]) if not n.startswith(("embed", "positions"))]
    assert same
    for name in same:
        leaf = lambda tree, name=name: dict(zip(trees.leaf_names(tree), jax.tree.leaves(tree), strict=True))[
            name
        ]
        np.testing.assert_array_equal(leaf(started["text"]), leaf(old["text"]["encoder"]))


def test_the_rate_of_the_encoders_is_their_own(run):
    model, _ = resolve(run[0], FUSION)
    make = lambda modalities: make_fusion(model, modalities, CLASSES, vocab_size=NEW.vocab_size)
    method, batch = make(MODALITIES), make_batch(2, modalities=MODALITIES)
    params = random_params(method.init, jax.random.key(0), batch)
    at = lambda rate: resolve(run[0], FUSION, encoder_lr_multiplier=rate)[1]
    for rate in (0.0, 0.1, 1.0):
        factors = resolve_lr_multipliers(at(rate).set_learning_rates(Optimizer(), method), params)
        assert set(jax.tree.leaves(factors["text"]) + jax.tree.leaves(factors["image"])) == {rate}
        assert set(jax.tree.leaves(factors["fusion"]) + jax.tree.leaves(factors["head"])) == {1.0}
    # A model of one modality has no parameters of the others: no rule speaks of them.
    assert "text" not in str(at(0.1).set_learning_rates(Optimizer(), make(("image",))).lr_multipliers)
    assert at(0.1).set_learning_rates(Optimizer(), make(("audio",))) == Optimizer()


def test_what_does_not_fit_is_named(run):
    _, pretrained = resolve(run[0], FUSION)
    batch = make_batch(2, modalities=MODALITIES)
    key = jax.random.key(0)
    other = dataclasses.replace(FUSION, image=dataclasses.replace(FUSION.image, width=8))
    method = pretrained.attach(make_fusion(other, MODALITIES, CLASSES, vocab_size=NEW.vocab_size), NEW)
    with pytest.raises(ValueError, match=r"image/.* has shape .* here it is"):
        started_params(method, key, batch)
    another = dataclasses.replace(FUSION, image=ConvNetConfig(width=16))
    method = pretrained.attach(make_fusion(another, MODALITIES, CLASSES, vocab_size=NEW.vocab_size), NEW)
    with pytest.raises(ValueError, match="its image part and this one's differ in"):
        started_params(method, key, batch)
    with pytest.raises(FileNotFoundError):
        load_trained_run(run[0] / "nowhere")


@pytest.fixture(scope="module")
def other_run(tmp_path_factory):
    """A run with another text encoder, which was trained on texts in lower case; and its configuration."""
    folder = tmp_path_factory.mktemp("other")
    config = dataclasses.replace(TOWERS, text=dataclasses.replace(TOWERS.text, width=12))
    method = make_contrastive(config, ("text", "audio"), vocab_size=OLD.vocab_size)
    batch = raw_batch(2, modalities=("text", "audio"))
    params = random_params(method.init, jax.random.key(6), batch, seed=6)
    save(folder, config, method, params, cleanup="lower")
    return folder, params, config


HEADS = HeadsByKind(text=ShareLockHeadConfig(width=9), image=SAILHeadConfig(widening=2))


def test_two_frozen_towers_of_two_runs(run, other_run):
    """One command aligns encoders that were trained apart: heads on features that are computed once."""
    (folder, old), (other_folder, other, other_config) = run, other_run
    config = config_of(
        ContrastiveConfig(embed_dim=5, heads=HEADS),
        image_encoder=f"run:{folder}",
        text_encoder=f"run:{other_folder}",
        encoder_lr_multiplier=0.0,
        text_cleanup="lower",
    )
    config, pretrained = resolve_pretrained(config)
    model = config.model
    assert model.image == TOWERS.image and model.text == other_config.text and model.text != TOWERS.text
    # Images and texts are read as they were in training.
    assert config.input.image_size == 10
    assert resolve_pretrained(config_of(TOWERS, init_from=folder))[0].input.image_size is None
    options = config.text_options
    assert options["tokenizer"] == f"run:{other_folder}" and options["length"] == 7
    assert make_tokenizer(options["tokenizer"], []).vocabulary() == OLD.vocabulary()

    plain = make_contrastive(model, MODALITIES, vocab_size=OLD.vocab_size)
    method = pretrained.attach(plain, OLD)
    captions = np.array(["a red square", "two blue circles", "a square", "red"], object)
    raw = {"image": raw_batch(4, modalities=("image",))["image"], "caption": captions}
    transform = TokenizeTransform(OLD, 7)
    batch = {**numeric_fields(transform(raw)), "index": np.arange(4)}
    params = started_params(method, jax.random.key(0), batch)
    jax.tree.map(np.testing.assert_array_equal, params["image"]["encoder"], old["image"]["encoder"])
    jax.tree.map(np.testing.assert_array_equal, params["text"]["encoder"], other["text"]["encoder"])
    rates = trees.flat(resolve_lr_multipliers(pretrained.set_learning_rates(Optimizer(), method), params))
    assert all((rate == 0.0) == ("/encoder/" in name) for name, rate in rates.items())

    added = frozen_features(pretrained, model, transform)(raw)
    assert set(added) == {"image", "caption", "image_features", "text_features"}
    predict = jax.jit(method.predict)
    cached = predict(params, {**batch, **{f: x for f, x in added.items() if f.endswith("_features")}})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cached, predict(params, batch))


def test_only_the_frozen_tower_has_features(run):
    """The other one is trained from its start, on what the batch holds."""
    text = f"run:{run[0]}"
    model, pretrained = resolve(None, TOWERS, text_encoder=text, encoder_lr_multiplier=0.0)
    captions = np.array(["a red square", "two"], object)
    raw = {"image": raw_batch(2, modalities=("image",))["image"], "caption": captions}
    added = frozen_features(pretrained, model, TokenizeTransform(OLD, 7))(raw)
    assert "text_features" in added and "image_features" not in added
    method = pretrained.attach(make_contrastive(model, MODALITIES, vocab_size=OLD.vocab_size), OLD)
    tokens = numeric_fields(TokenizeTransform(OLD, 7)(raw))
    with_text = jax.device_put({**numeric_fields(added), **tokens, "index": np.arange(2)})
    params = started_params(method, jax.random.key(0), with_text)
    # A gradient reaches the image tower only; the texts' encoder is no part of the program.
    grads = jax.jit(jax.grad(lambda params: method.loss(params, with_text, jax.random.key(0))[0]))(params)
    size = lambda tree: max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))
    assert size(grads["image"]["encoder"]) > 0 and size(grads["text"]["project"]) > 0
    assert size(grads["text"]["encoder"]) == 0
    # Attention that is trained with the rest changes the features.
    attention = dataclasses.replace(model, text=dataclasses.replace(TOWERS.text, pool="attention"))
    with pytest.raises(ValueError, match="the pool 'attention' of text is trained.*--model.text.pool mean"):
        frozen_features(pretrained, attention, TokenizeTransform(OLD, 7))


def test_the_flag_of_an_encoder_comes_before_the_run_of_all(run, other_run):
    model, pretrained = resolve(run[0], TOWERS, text_encoder=f"run:{other_run[0]}", text_cleanup="lower")
    assert model.text == other_run[2].text and model.image == TOWERS.image
    assert {name: found.source for name, found in pretrained.runs.items()} == {
        "text": str(other_run[0]),
        "image": str(run[0]),
    }


def test_encoders_of_runs_that_cannot_be_are_named(run, other_run):
    with pytest.raises(ValueError, match=r"--audio-encoder run:.*has no encoder of audio, but of"):
        resolve(None, TOWERS, audio_encoder=f"run:{run[0]}")
    with pytest.raises(ValueError, match="was trained with --text-cleanup lower: give it here too"):
        resolve(None, TOWERS, text_encoder=f"run:{other_run[0]}")
    with pytest.raises(FileNotFoundError):
        resolve(None, TOWERS, text_encoder=f"run:{run[0] / 'nowhere'}")
    with pytest.raises(ValueError, match="is hf: and a folder.*or run: and the directory of a run"):
        resolve(None, TOWERS, text_encoder="run:")
    # Experiments that cannot start from a run say what they take.
    with pytest.raises(ValueError, match=r"--text-encoder is hf: and a folder.*; got 'run:"):
        find_folders(config_of(TOWERS, text_encoder=f"run:{run[0]}"))


def test_a_decoder_and_a_ctc_head_come_along_word_by_word(tmp_path):
    from tests.models.test_seq2seq import CONFIG
    from tests.models.test_seq2seq import make_batch as texts_and_sounds

    length = 7
    method = make_seq2seq(CONFIG, "audio", vocab_size=OLD.vocab_size, length=length)
    batch = texts_and_sounds("audio", 2)
    old = random_params(method.init, jax.random.key(5), batch, seed=5)
    save(tmp_path, CONFIG, method, old)
    model, pretrained = resolve(tmp_path, dataclasses.replace(CONFIG, decoder=TextDecoderConfig()))
    assert set(pretrained.runs) == {"audio", "decoder", "ctc"}
    assert model == CONFIG
    plain = make_seq2seq(model, "audio", vocab_size=NEW.vocab_size, length=length)
    started = started_params(pretrained.attach(plain, NEW), jax.random.key(0), batch)
    fresh = random_params(plain.init, jax.random.key(0), batch)
    jax.tree.map(np.testing.assert_array_equal, started["audio"], old["audio"])
    jax.tree.map(
        np.testing.assert_array_equal, started["decoder"]["transformer"], old["decoder"]["transformer"]
    )
    ours, theirs = NEW.vocabulary(), OLD.vocabulary()
    assert {"blue", "a"} <= ours.keys() & theirs.keys() and "colour" not in theirs
    for word, row in ours.items():
        source, at = (old, theirs[word]) if word in theirs else (fresh, row)
        table = lambda p: p["decoder"]["embed"]["embedding"]
        np.testing.assert_array_equal(table(started)[row], table(source)[at])
        logits = lambda p: p["ctc"]["logits"]["kernel"]
        np.testing.assert_array_equal(logits(started)[:, row], logits(source)[:, at])
