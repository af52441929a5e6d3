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
from xmodal_jax.core import trees
from xmodal_jax.data.text import train_tokenizer
from xmodal_jax.models.contrastive import make_contrastive
from xmodal_jax.models.fusion import FusionConfig, make_fusion
from xmodal_jax.models.seq2seq import make_seq2seq
from xmodal_jax.nets.encoders import TextDecoderConfig
from xmodal_jax.nets.fusion import GatedCrossAttentionConfig
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.optim import Optimizer, resolve_lr_multipliers
from xmodal_jax.train.run import to_json
from xmodal_jax.transfer.encoders import load_encoders

OLD = train_tokenizer(["a red square", "two blue circles"], "word")
NEW = train_tokenizer(["what colour is the blue square", "is there a red ring"], "word")
MODALITIES = ("text", "image")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A contrastive run with known parameters."""
    folder = tmp_path_factory.mktemp("run")
    method = make_contrastive(TOWERS, MODALITIES, vocab_size=OLD.vocab_size)
    params = jax.jit(method.init)(jax.random.key(5), raw_batch(2, modalities=MODALITIES))
    meta = {"config": {"model": to_json(TOWERS)}, "tokenizer": OLD.files(), "seeds": [0]}
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, {"step": jnp.int32(3), "params": params}, meta)
    checkpoints.close()
    return folder, params


def test_the_encoders_are_those_of_the_run_and_the_rest_is_new(run):
    folder, old = run
    encoders = load_encoders(folder)
    # Whatever sizes the new model asks for, those of the encoders are the run's.
    model = encoders.configure(FusionConfig(fusion=GatedCrossAttentionConfig(width=16, depth=1, heads=2)))
    assert model.text == TOWERS.text and model.image == TOWERS.image
    assert (
        model.audio == FusionConfig().audio and model.features == FusionConfig().features
    )  # it heard nothing
    plain = make_fusion(model, MODALITIES, CLASSES, vocab_size=NEW.vocab_size)
    method = encoders.start(plain, NEW)
    batch = make_batch(2, modalities=MODALITIES)
    batch["text"] = np.pad(batch["text"], ((0, 0), (0, 4)))  # longer texts than the run had
    batch["text_mask"] = np.pad(batch["text_mask"], ((0, 0), (0, 4)))
    key = jax.random.key(0)
    fresh, started = (jax.jit(m.init)(key, batch) for m in (plain, method))
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
    encoders = load_encoders(run[0])
    model = encoders.configure(dataclasses.replace(FUSION))
    method = encoders.start(make_fusion(model, MODALITIES, CLASSES, vocab_size=NEW.vocab_size), NEW)
    params = jax.jit(method.init)(jax.random.key(0), make_batch(2, modalities=MODALITIES))
    at = lambda rate: StartConfig(encoder_lr_multiplier=rate)
    for rate in (0.0, 0.1, 1.0):
        factors = resolve_lr_multipliers(encoders.optimize(Optimizer(), MODALITIES, at(rate)), params)
        assert set(jax.tree.leaves(factors["text"]) + jax.tree.leaves(factors["image"])) == {rate}
        assert set(jax.tree.leaves(factors["fusion"]) + jax.tree.leaves(factors["head"])) == {1.0}
    # A model of one modality has no parameters of the others: no rule speaks of them.
    assert "text" not in str(encoders.optimize(Optimizer(), ("image",), at(0.1)).lr_multipliers)
    assert encoders.optimize(Optimizer(), ("audio",), at(0.1)) == Optimizer()


def test_what_does_not_fit_is_named(run):
    encoders = load_encoders(run[0])
    batch = make_batch(2, modalities=MODALITIES)
    key = jax.random.key(0)
    other = dataclasses.replace(FUSION, image=dataclasses.replace(FUSION.image, width=8))
    method = encoders.start(make_fusion(other, MODALITIES, CLASSES, vocab_size=NEW.vocab_size), NEW)
    with pytest.raises(ValueError, match=r"image/.* has shape .* here it is"):
        jax.eval_shape(method.init, key, batch)
    deeper = dataclasses.replace(FUSION, image=dataclasses.replace(FUSION.image, depth=3))
    method = encoders.start(make_fusion(deeper, MODALITIES, CLASSES, vocab_size=NEW.vocab_size), NEW)
    with pytest.raises(ValueError, match="its image part and this one's differ in"):
        jax.eval_shape(method.init, key, batch)
    with pytest.raises(FileNotFoundError):
        load_encoders(run[0] / "nowhere")


def test_a_decoder_and_a_ctc_head_come_along_word_by_word(tmp_path):
    from tests.models.test_seq2seq import CONFIG
    from tests.models.test_seq2seq import make_batch as texts_and_sounds

    length = 7
    method = make_seq2seq(CONFIG, "audio", vocab_size=OLD.vocab_size, length=length)
    batch = texts_and_sounds("audio", 2)
    old = jax.jit(method.init)(jax.random.key(5), batch)
    meta = {"config": {"model": to_json(CONFIG)}, "tokenizer": OLD.files(), "seeds": [0]}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, {"step": jnp.int32(3), "params": old}, meta)
    checkpoints.close()
    parts = load_encoders(tmp_path)
    assert set(parts.params) == {"audio", "decoder", "ctc"}
    model = parts.configure(dataclasses.replace(CONFIG, decoder=TextDecoderConfig()))
    assert model == CONFIG
    plain = make_seq2seq(model, "audio", vocab_size=NEW.vocab_size, length=length)
    started = jax.jit(parts.start(plain, NEW).init)(jax.random.key(0), batch)
    fresh = jax.jit(plain.init)(jax.random.key(0), batch)
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
