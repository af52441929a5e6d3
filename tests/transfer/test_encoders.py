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
from xmodal_jax.data.text import train_tokenizer
from xmodal_jax.models.contrastive import make_contrastive
from xmodal_jax.models.fusion import FusionConfig, make_fusion
from xmodal_jax.models.seq2seq import make_seq2seq
from xmodal_jax.nets.encoders import ConvNetConfig, TextDecoderConfig
from xmodal_jax.nets.fusion import GatedCrossAttentionConfig
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.optim import Optimizer, resolve_lr_multipliers
from xmodal_jax.train.run import to_json
from xmodal_jax.transfer.pretrained import load_trained_run, resolve_pretrained

OLD = train_tokenizer(["a red square", "two blue circles"], "word")
NEW = train_tokenizer(["what colour is the blue square", "is there a red ring"], "word")
MODALITIES = ("text", "image")


def save(folder, config, method, params):
    """A run's checkpoint."""
    slots = [slot._asdict() for slot in method.encoders]
    metadata = {
        "config": {"model": to_json(config)},
        "tokenizer": OLD.files(),
        "seeds": [0],
        "encoders": slots,
    }
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, {"step": jnp.int32(3), "params": params}, metadata)
    checkpoints.close()


def resolve(run, model, **options):
    """The configuration of a model that starts from a run, and the run's encoders."""
    fields = [("model", type(model), dataclasses.field(default=model))]
    config = dataclasses.make_dataclass("Config", fields, bases=(StartConfig,), frozen=True, kw_only=True)
    config, pretrained = resolve_pretrained(config(init_from=run, **options))
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


def test_a_decoder_and_a_ctc_head_come_along_word_by_word(tmp_path):
    from tests.models.test_seq2seq import CONFIG
    from tests.models.test_seq2seq import make_batch as texts_and_sounds

    length = 7
    method = make_seq2seq(CONFIG, "audio", vocab_size=OLD.vocab_size, length=length)
    batch = texts_and_sounds("audio", 2)
    old = random_params(method.init, jax.random.key(5), batch, seed=5)
    save(tmp_path, CONFIG, method, old)
    model, pretrained = resolve(tmp_path, dataclasses.replace(CONFIG, decoder=TextDecoderConfig()))
    assert set(pretrained.run.params) == {"audio", "decoder", "ctc"}
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
