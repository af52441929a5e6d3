"""Tokenizers: round trips, limits and determinism."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.text import (
    Tokenizer,
    TokenizeTransform,
    clean_text,
    load_hf_tokenizer,
    load_tokenizer,
    tokenizer_from_files,
    train_tokenizer,
)

CAPTIONS = [f"a {size} {colour} {shape}." for size in ("big", "small") for colour in ("red", "green", "blue")
            for shape in ("circle", "square", "triangle")]  # fmt: skip
KINDS = [("bpe", 300), ("wordpiece", 80), ("word", 50)]


@pytest.mark.parametrize("kind,size", KINDS)
def test_round_trip_and_special_tokens(kind, size, tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, kind, size)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    length = tokenizer.fit_length(CAPTIONS)
    ids, mask = tokenizer.encode_batch(CAPTIONS, length)
    assert (
        ids.dtype == np.int32
        and ids.shape == mask.shape == (18, length)
        and ids.max() < tokenizer.vocab_size <= size
    )
    assert tokenizer.decode_batch(ids) == CAPTIONS and tokenizer.truncated == 0
    assert (ids[:, 0] == 1).all() and (ids[np.arange(18), mask.sum(1) - 1] == 2).all()
    np.testing.assert_array_equal(mask, np.arange(length) < tokenizer.lengths(CAPTIONS)[:, None])
    assert not ids[~mask].any()
    tokenizer.save(tmp_path / "t")
    np.testing.assert_array_equal(load_tokenizer(tmp_path / "t").encode_batch(CAPTIONS, length)[0], ids)


@pytest.mark.parametrize("kind,size", KINDS[1:])
def test_hyphens_apostrophes_and_numbers_round_trip(kind, size):
    """A caption that is written as it was learned is the same text again."""
    captions = ["a photo of a t-shirt", "isn\u2019t it the dog's bone, no?", "3.5 - 1,200"]
    tokenizer = train_tokenizer(captions, kind, 2 * size)
    ids, _ = tokenizer.encode_batch(captions, tokenizer.fit_length(captions))
    assert tokenizer.decode_batch(ids) == captions


@pytest.mark.parametrize("kind,size", KINDS)
def test_training_does_not_depend_on_order_or_process(kind, size, tmp_path):
    train_tokenizer(CAPTIONS[::-1], kind, size).save(tmp_path / "here")
    program = (
        "import sys, json; from xmodal_jax.data.text import train_tokenizer\n"
        "train_tokenizer(json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])).save(sys.argv[4])"
    )
    arguments = [json.dumps(CAPTIONS), kind, str(size), str(tmp_path / "there")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)
    here, there = ((tmp_path / d / "tokenizer.json").read_text() for d in ("here", "there"))
    assert json.loads(here) == json.loads(there)


def test_truncation_is_counted_and_keeps_the_end():
    tokenizer, bad_examples = train_tokenizer(CAPTIONS, "word", 50), BadExamples()
    ids, mask = tokenizer.encode_batch(["a red circle.", "a big red circle."], 6, bad_examples=bad_examples)
    assert tokenizer.truncated == 1 and list(bad_examples.notes.values()) == [1]
    assert ids[1, -1] == 2 and tokenizer.decode(ids[1]) == "a big red circle"
    assert mask.all(1).tolist() == [True, True]


def test_fit_length_covers_the_fraction():
    tokenizer = train_tokenizer(CAPTIONS, "word", 50)
    captions = ["a"] * 9 + ["a big red circle"]
    assert tokenizer.fit_length(captions) == 6 and tokenizer.fit_length(captions, cover=0.9) == 3


def test_missing_and_unknown_text():
    tokenizer = train_tokenizer(CAPTIONS, "word", 50)
    ids, mask = tokenizer.encode_batch(["", "zebra"], 4)
    assert not mask[0].any() and not ids[0].any() and ids[1, 1] == tokenizer.unk_id


BPE = train_tokenizer(CAPTIONS, "bpe", 300)


@given(
    st.text(min_size=1, max_size=30).filter(
        lambda s: not any(t in s for t in ("[pad]", "[bos]", "[eos]", "[unk]"))
    )
)
def test_byte_level_bpe_round_trips_any_text(text):
    ids, _ = BPE.encode_batch([text], 200)
    assert BPE.decode(ids[0]) == text


def test_clean_text_and_transform():
    assert clean_text("  A  Red, circle ", stop_words=("a",)) == "red, circle"
    assert clean_text("The End", lower=False) == "The End"
    tokenizer = train_tokenizer(CAPTIONS, "word", 50)
    batch = TokenizeTransform(tokenizer, 5, clean=clean_text)({"caption": np.array(["A RED circle"], object)})
    assert tokenizer.decode(batch["text"][0]) == "a red circle" and batch["text_mask"].all()
    assert TokenizeTransform(tokenizer, 5)({"label": np.zeros(1)}).keys() == {"label"}
    several = np.array([["a red circle", "a red"], ["", "circle"]], object)
    batch = TokenizeTransform(tokenizer, 5)({"caption": several})
    assert batch["text"].shape == batch["text_mask"].shape == (2, 2, 5)
    np.testing.assert_array_equal(batch["text"][0, 1], tokenizer.encode_batch(["a red"], 5)[0][0])
    assert not batch["text_mask"][1, 0].any()


def test_hugging_face_tokenizer_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    backend = train_tokenizer(CAPTIONS, "word", 50)._backend
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[pad]", bos_token="[bos]", eos_token="[eos]", unk_token="[unk]"
    ).save_pretrained(tmp_path / "hf")
    loaded = load_hf_tokenizer(tmp_path / "hf")
    ids, _ = loaded.encode_batch(CAPTIONS, 8)
    assert loaded.decode_batch(ids) == CAPTIONS and loaded.eos_id == 2
    with pytest.raises(FileNotFoundError):
        load_hf_tokenizer(tmp_path / "nothing")


LONG = ["a red circle above a blue square", "a red circle", "", "square"]


@pytest.mark.parametrize("template", ["[bos] $A [eos]", "[bos] $A", "$A [eos]", "[bos] [unk] $A [eos]"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_are_cut_on_the_side_that_the_tokenizer_says(tmp_path, side, template):
    """As by transformers, and again after the tokenizer was saved with a run."""
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer.from_str(train_tokenizer(LONG, "word", 50).files()["tokenizer.json"])
    ids = [(token, backend.token_to_id(token)) for token in ("[bos]", "[eos]", "[unk]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=ids)
    names = {f"{name}_token": f"[{name}]" for name in ("pad", "bos", "eos", "unk") if f"[{name}]" in template}
    names |= {"truncation_side": side, "unk_token": "[unk]"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=6, **names)
    theirs.save_pretrained(tmp_path / "hf")
    loaded = load_hf_tokenizer(tmp_path / "hf")
    assert (loaded.truncation_side, loaded.max_tokens) == (side, 6)
    loaded.save(tmp_path / "run")
    for tokenizer in (loaded, load_tokenizer(tmp_path / "run")):
        for length in (4, 5, 6, 9):
            found, mask = tokenizer.encode_batch(LONG, length)
            for text, row, valid in zip(LONG, found, mask, strict=True):
                expected = theirs(text, truncation=True, max_length=length)["input_ids"] if text else []
                assert row[valid].tolist() == expected
    assert loaded.truncated == sum(len(theirs(x)["input_ids"]) > n for x in LONG if x for n in (4, 5, 6, 9))


def test_a_tokenizer_without_a_limit_or_with_a_wrong_side(tmp_path):
    transformers = pytest.importorskip("transformers")
    backend = train_tokenizer(CAPTIONS, "word", 50)._backend
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[unk]").save_pretrained(
        tmp_path
    )
    loaded = load_hf_tokenizer(tmp_path)
    assert (loaded.truncation_side, loaded.max_tokens) == ("right", None)
    assert set(json.loads(loaded.files()["special_tokens.json"])) == {"pad", "bos", "eos", "unk"}
    damaged = dict(BPE.files())
    damaged["special_tokens.json"] = json.dumps(
        json.loads(damaged["special_tokens.json"]) | {"truncation_side": "both"}
    )
    with pytest.raises(ValueError, match="truncation_side is 'both', not right or left"):
        tokenizer_from_files(damaged)
    with pytest.raises(ValueError, match="right or left, got 'middle'"):
        Tokenizer(backend, dict.fromkeys(("pad", "bos", "eos", "unk")), "middle")


def plain_tokenizer(folder, **names):
    """A tokenizer of words that adds no tokens to a text, saved with the ``names`` of its special tokens."""
    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 1, "<s>": 2, "</s>": 3}, unk_token="a")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


@pytest.mark.parametrize(
    "generation, names, expected",
    [
        ({"bos_token_id": 2, "eos_token_id": 3}, {}, [2, 0, 1, 3]),
        ({"bos_token_id": 2, "eos_token_id": [3, 2], "pad_token_id": 3}, {}, [2, 0, 1, 3]),
        ({"eos_token_id": 3}, {}, [3, 0, 1, 3]),  # one token for both, as GPT-2's
        ({"eos_token_id": 2}, {"bos_token": "<s>", "eos_token": "</s>"}, [2, 0, 1, 3]),  # the tokenizer's own
        ({}, {}, [0, 1]),
    ],
)
def test_a_language_model_may_name_the_ends_of_a_text_in_its_generation_config(
    tmp_path, generation, names, expected
):
    plain_tokenizer(tmp_path, **names)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"max_length": 20, "num_beams": 4, **generation})
    )
    loaded = load_hf_tokenizer(tmp_path)
    ids, mask = loaded.encode_batch(["a b"], 6)
    assert ids[mask].tolist() == expected
    assert loaded.eos_id == (expected[-1] if len(expected) > 2 else -1)
    assert loaded.pad_id == generation.get("pad_token_id", -1)


@pytest.mark.parametrize(
    "content", ["[1]", "{", '{"eos_token_id": 9}', '{"eos_token_id": -1}', '{"bos_token_id": "a"}']
)
def test_a_generation_config_that_cannot_be_is_refused(tmp_path, content):
    plain_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ValueError, match="generation_config.json"):
        load_hf_tokenizer(tmp_path)


def gpt2_like(words=("!", "w1", "w2"), end="<end>"):
    """A tokenizer whose id 0 is a word, which has no padding token, and one token for begin and end, as GPT-2's."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate([*words, end])}))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([end])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    return Tokenizer(backend, {"pad": None, "bos": end, "eos": end, "unk": None})


def test_the_tokens_of_a_text_that_is_cut_are_those_of_its_ids():
    tokenizer = gpt2_like(words=[f"w{k}" for k in range(9)])
    text = " ".join(f"w{k}" for k in range(8))
    for length in (4, 10, 12):
        ids, mask = tokenizer.encode_batch([text], length)
        assert tokenizer.tokens(text, length) == [tokenizer.token(int(k)) for k in ids[0][mask[0]]]
    assert tokenizer.tokens(text) == tokenizer.tokens(text, 10) and len(tokenizer.tokens(text, 4)) == 4
    assert tokenizer.tokens("", 4) == []


def test_filler_is_no_word_where_id_0_is_one():
    """Generated tokens, which end without an end token and are filled with 0; and captions."""
    tokenizer = gpt2_like()
    assert tokenizer.pad_id == -1 and tokenizer.has_word_zero and not BPE.has_word_zero
    ids, mask = (
        np.array([[1, 2, 0, 0, 0], [1, 0, 0, 0, 0]]),
        np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]], bool),
    )
    assert tokenizer.decode_batch(ids, mask) == ["w1 w2", "w1 !"]
    captions = ["w1 !", "", "! ! w2"]
    assert tokenizer.decode_batch(*tokenizer.encode_batch(captions, 7)) == captions
    assert tokenizer.token(0) == "!"


def test_no_code_of_a_tokenizer_is_run(tmp_path):
    """A tokenizer's folder can name a Python file of its own, which must not run."""
    pytest.importorskip("transformers")
    made, ran = tmp_path / "made", tmp_path / "ran"
    made.mkdir()
    (made / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    names = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
    (made / "tokenizer_config.json").write_text(json.dumps(names))
    (made / "tokenizer.json").write_text(BPE.files()["tokenizer.json"])
    with contextlib.suppress(ValueError, OSError):
        load_hf_tokenizer(made)
    assert not ran.exists()


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match=">= 260"):
        train_tokenizer(CAPTIONS, "bpe", 100)
    with pytest.raises(ValueError, match="at least one caption"):
        train_tokenizer([])
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        load_tokenizer(tmp_path)
