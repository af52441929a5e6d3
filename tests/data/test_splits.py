"""The splits of small data sets: each has an example, and what their size means is said."""

import json

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import (
    choose_batch_size,
    choose_text_length,
    fit_tokenizer,
    make_tokenizer,
    open_splits,
)
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer


def save_folder(folder, n):
    rows = [{"file_name": f"{k}.png", "text": f"t{k}"} for k in range(n)]
    for k, row in enumerate(rows):
        Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions(source):
    return set(source.batch(np.arange(len(source)))["caption"])


@pytest.mark.parametrize("n", [3, 5, 30])
def test_a_small_folder_has_three_splits_and_the_report_says_that_they_are_small(tmp_path, n):
    save_folder(tmp_path, n)
    bad_examples = BadExamples()
    splits = open_splits(f"folder:{tmp_path}", DataOptions(progress=False), bad_examples)
    parts = [captions(split) for split in (splits.train, splits.validation, splits.tests["test"])]
    assert all(parts) and sum(map(len, parts)) == n and len(set.union(*parts)) == n
    notes = bad_examples.summary()
    named = lambda part: "1 example" if len(part) == 1 else f"{len(part)} examples"
    assert f"The split 'validation' has {named(parts[1])}, so few that its scores mean little" in notes
    assert f"The split 'test' has {named(parts[2])}, so few" in notes


@pytest.mark.parametrize("n,message", [(1, "one example is not enough"), (2, "training split has 1 example")])
def test_a_folder_that_is_too_small_says_so(tmp_path, n, message):
    save_folder(tmp_path, n)
    with pytest.raises(ValueError, match=message):
        open_splits(f"folder:{tmp_path}", DataOptions(progress=False), BadExamples())


def test_splits_of_a_hundred_examples_are_not_noted():
    bad_examples = BadExamples()
    options = DataOptions(train_size=1000, modalities=("text", "image"))
    open_splits("shapes", options, bad_examples)
    assert not bad_examples.notes


@pytest.mark.parametrize("n,size", [(1, 1), (24, 16), (63, 32), (64, 64), (65, 64), (1000, 64)])
def test_a_batch_is_no_larger_than_the_data_set(n, size):
    bad_examples = BadExamples()
    source = ArraySource({"image": np.zeros((n, 1, 1, 1), np.uint8)})
    assert choose_batch_size(64, source, bad_examples) == size
    assert ("fewer than the batch size 64: it is reduced to" in bad_examples.summary()) == (n < 64)


@pytest.mark.parametrize("words,length", [(5, 9), (126, 130), (5000, 130)])
def test_one_caption_does_not_make_all_texts_long(words, length):
    """A text of n words has n + 2 tokens, and 2 are added; beyond 128 tokens a caption is cut, and that is noted."""
    captions = ["a b c"] * 40 + [" ".join(["w"] * words)]
    tokenizer = make_tokenizer("word", captions)
    assert choose_text_length(tokenizer, captions) == length
    assert choose_text_length(tokenizer, captions[40:]) == words + 4
    bad_examples = BadExamples()
    TokenizeTransform(tokenizer, length, bad_examples=bad_examples)({"caption": np.array(captions, object)})
    assert ("Texts are cut to 130 tokens" in bad_examples.summary()) == (words == 5000)


def test_texts_are_not_longer_than_the_tokenizer_was_made_for(tmp_path):
    """``model_max_length`` of a tokenizer of Hugging Face, unless a flag says otherwise."""
    transformers = pytest.importorskip("transformers")
    captions = ["one two three four five six seven eight nine ten", "one two"]
    source = ArraySource({"caption": np.array(captions, object)})
    backend = train_tokenizer(captions, "word", 50)._backend
    names = dict(bos_token="[bos]", eos_token="[eos]", unk_token="[unk]")
    options = dict(tokenizer=f"hf:{tmp_path}", vocab_size=None, cleanup="none")
    for limit, expected in ((None, 14), (9, 9), (30, 14)):
        sizes = {} if limit is None else {"model_max_length": limit}
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names, **sizes).save_pretrained(
            tmp_path
        )
        assert fit_tokenizer(source, BadExamples(), **options)[0].max_length == expected
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **names, model_max_length=9
    ).save_pretrained(tmp_path)
    assert fit_tokenizer(source, BadExamples(), **options, max_length=7)[0].max_length == 7
    assert fit_tokenizer(source, BadExamples(), **options, length=12)[0].max_length == 12
