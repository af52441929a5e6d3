import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained import peers
from xmodal_jax.data.splits import make_tokenizer
from xmodal_jax.data.text import train_tokenizer
from xmodal_jax.models.towers import read_pretrained_config
from xmodal_jax.pretrained.export import TokenizerFiles

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


SENTENCES = ["a red square above two blue circles", "two circles", "a square " * 20, "blue"]


def sentence_encoder(folder):
    """The folder of a random BERT with the files of a published sentence encoder: all-MiniLM-L6-v2 has the same."""
    torch, transformers = peers.import_transformers()
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(**SIZES))
    peers.save(theirs, folder)
    names = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{name}"}
        for k, (name, path) in enumerate(names)
    ]
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    tokenizer = TokenizerFiles(
        train_tokenizer(SENTENCES, "word").files(), length=SIZES["max_position_embeddings"]
    )
    files = tokenizer.for_transformers() | {
        "modules.json": json.dumps(modules),
        "1_Pooling/config.json": json.dumps({"word_embedding_dimension": 28, **pooling}),
        "sentence_bert_config.json": json.dumps({"max_seq_length": 13, "do_lower_case": False}),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return theirs


def test_embeddings_of_a_sentence_encoder_are_the_published_ones(tmp_path):
    """From texts to vectors: cut to the folder's 13 tokens of 23 positions, the mean of the tokens that are no padding,
    scaled to length 1."""
    torch, transformers = peers.import_transformers()
    theirs = sentence_encoder(tmp_path)
    encoded = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        SENTENCES, padding=True, truncation=True, max_length=13, return_tensors="pt"
    )
    with torch.no_grad():
        tokens = theirs(encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
    valid = encoded["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((tokens * valid).sum(1) / valid.sum(1), dim=1)

    length = read_pretrained_config("text", tmp_path).max_tokens
    ids, mask = make_tokenizer(f"hf:{tmp_path}", []).encode_batch(SENTENCES, length)
    assert length == 13 and mask.sum(1).tolist() == [9, 4, 13, 3]
    found = peers.load(tmp_path, "text", "pool")
    embed = jax.jit(lambda *inputs: found.module.apply({"params": found.params}, *inputs, method="embed"))
    np.testing.assert_allclose(embed(ids, mask), expected, atol=1e-6)
