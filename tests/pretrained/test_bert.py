import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers

LENGTH, BATCH, WORDS = 11, 3, 53
SIZES = dict(
    vocab_size=WORDS,
    hidden_size=28,
    num_hidden_layers=3,
    num_attention_heads=7,
    intermediate_size=37,
    max_position_embeddings=23,
)


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request, tmp_path_factory):
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    if request.param == "bert":
        made = transformers.BertModel(transformers.BertConfig(**SIZES))
    else:
        made = transformers.RobertaModel(transformers.RobertaConfig(**SIZES, pad_token_id=1))
    return made, peers.save(made, tmp_path_factory.mktemp(request.param))


def batch(model):
    ids, mask = peers.random_ids(LENGTH, BATCH, WORDS), peers.prefix_mask([LENGTH, 5, 2], LENGTH)
    return jnp.where(mask, ids, model.config.pad_token_id), mask


@pytest.mark.parametrize("scan", [False, True])
def test_hidden_states_and_pool(model, scan):
    theirs, folder = model
    ids, mask = batch(theirs)
    found = peers.load(folder, "text", "pool", scan=scan)
    expected = theirs(
        peers.to_torch(ids).long(), attention_mask=peers.to_torch(mask), output_hidden_states=True
    )
    peers.assert_same_hidden_states(found, ids, mask, expected.hidden_states)
    tokens = found.module.apply({"params": found.params}, ids, mask)
    peers.assert_close(tokens.values, expected.last_hidden_state, "tokens")
    pooled = found.module.apply({"params": found.params}, ids, mask, method="embed")
    peers.assert_close(pooled, expected.pooler_output, "pool")


def test_the_checkpoint_of_a_masked_language_model(tmp_path):
    """It has no layers for the pool, which is then the first token."""
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    theirs = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SIZES, pad_token_id=1))
    folder = peers.save(theirs, tmp_path)
    ids, mask = batch(theirs)
    found = peers.load(folder, "text", "pool")
    expected = theirs.roberta(peers.to_torch(ids).long(), attention_mask=peers.to_torch(mask))
    pooled = found.module.apply({"params": found.params}, ids, mask, method="embed")
    peers.assert_close(pooled, expected.last_hidden_state[:, 0], "pool")


def test_gradients(model):
    theirs, folder = model
    ids, mask = batch(theirs)
    found = peers.load(folder, "text", "pool")
    weights = np.random.default_rng(1).normal(size=(BATCH, LENGTH, 28)).astype(np.float32)
    weights *= np.asarray(mask)[:, :, None]  # PyTorch gives the embedding of padding no gradient

    def loss(params):
        tokens = found.module.apply({"params": params}, ids, mask)
        pooled = found.module.apply({"params": params}, ids, mask, method="embed")
        return (tokens.values * weights).sum() + jnp.square(pooled).sum()

    theirs.zero_grad()
    out = theirs(peers.to_torch(ids).long(), attention_mask=peers.to_torch(mask))
    ((out.last_hidden_state * peers.to_torch(weights)).sum() + out.pooler_output.square().sum()).backward()
    assert peers.assert_same_gradients(found, "text", loss, theirs) == len(list(theirs.parameters()))
