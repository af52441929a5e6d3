import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from xmodal_jax.core import trees
from xmodal_jax.pretrained.load import load_encoder

LENGTH, BATCH, WORDS = 11, 3, 53


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_embd=28,
        n_layer=3,
        n_head=7,
        n_inner=37,
        n_positions=23,
        bos_token_id=1,
        eos_token_id=1,
    )
    made = transformers.GPT2LMHeadModel(config)
    return made, peers.save(made, tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize("scan", [False, True])
def test_logits_and_hidden_states(model, scan):
    theirs, folder = model
    ids = peers.random_ids(LENGTH, BATCH, WORDS)
    found = peers.load(folder, "decoder", scan=scan)
    expected = theirs(peers.to_torch(ids).long(), output_hidden_states=True)
    logits, kept = found.module.apply({"params": found.params}, ids, mutable=["hidden_states"])
    peers.assert_close(logits, expected.logits, "logits")
    within = kept["hidden_states"]["transformer"]
    states = (
        list(within["layers"]["output"][0])
        if scan
        else [within[f"layers_{k}"]["output"][0] for k in range(3)]
    )
    for k in (1, 2):  # the last has gone through the final norm there
        peers.assert_close(states[k - 1], expected.hidden_states[k], f"hidden state {k}")


def test_what_is_written_token_by_token_is_the_same(model):
    theirs, folder = model
    found = peers.load(folder, "decoder")
    ids = peers.random_ids(5, BATCH, WORDS)
    expected = theirs(peers.to_torch(ids).long()).logits
    cache = {}
    for k in range(5):
        logits, cache = found.module.apply(
            {"params": found.params, **cache}, ids[:, k : k + 1], position=jnp.int32(k), mutable=["cache"]
        )
        peers.assert_close(logits[:, 0], expected[:, k], f"token {k}")


def test_gradients(model):
    theirs, folder = model
    ids = peers.random_ids(LENGTH, BATCH, WORDS)
    found = peers.load(folder, "decoder")

    def loss(params):
        logp = jax.nn.log_softmax(found.module.apply({"params": params}, ids)[:, :-1])
        return -jnp.take_along_axis(logp, ids[:, 1:, None], axis=-1).mean()

    theirs.zero_grad()
    theirs(peers.to_torch(ids).long(), labels=peers.to_torch(ids).long()).loss.backward()
    count = peers.assert_same_gradients(found, "decoder", loss, theirs.transformer)
    assert count == len(list(theirs.transformer.parameters()))


def test_another_vocabulary_and_length_take_the_first_rows(model, tmp_path):
    from xmodal_jax.nets.transformer import TransformerStyle
    from xmodal_jax.pretrained.files import open_checkpoint
    from xmodal_jax.pretrained.load import parameter_shapes, read_parameters

    _, folder = model
    whole = load_encoder(folder, "decoder", progress=False)
    smaller = whole.module.clone(vocab_size=WORDS - 2, max_length=7)
    read, _ = read_parameters(
        open_checkpoint(folder), "decoder", smaller, parameter_shapes(smaller), progress=False
    )
    np.testing.assert_array_equal(read["embed"]["embedding"], whole.params["embed"]["embedding"][:-2])
    np.testing.assert_array_equal(read["positions"]["embedding"], whole.params["positions"]["embedding"][:7])
    larger = whole.module.clone(max_length=24)
    with pytest.raises(ValueError, match="23 tokens or positions, 24 are needed"):
        read_parameters(open_checkpoint(folder), "decoder", larger, parameter_shapes(larger), progress=False)
    assert whole.module.style == TransformerStyle(epsilon=1e-5) and trees.count(whole.params) > 0
