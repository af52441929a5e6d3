"""The splits of small data sets: each has an example, and what their size means is said."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.pictures import pictures_of, write_pictures
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, open_source
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
    open_splits(f"folder:{tmp_path}", DataOptions(progress=False), bad_examples)
    assert bad_examples.summary() == notes  # the numbers of several data sets are not added up


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


def save_splits(root, **sizes):
    """A folder of splits with so many pictures of two captions each; the pictures of the k-th count from 60 k."""
    for number, (name, n) in enumerate(sizes.items()):
        write_pictures(root / name, "one line", pictures=n, captions=2, first=60 * number)


def pictures(splits):
    """The pictures of the training, the validation and the test split."""
    return [set(pictures_of(source)) for source in (splits.train, splits.validation, splits.tests["test"])]


QUIET = DataOptions(progress=False)
TRAIN, SECOND, THIRD = set(range(50)), set(range(60, 70)), set(range(120, 130))


def test_a_validation_split_is_used_and_said(tmp_path):
    save_splits(tmp_path, train=50, dev=10, test=10)
    bad_examples = BadExamples()
    splits = open_splits(f"folder:{tmp_path}", QUIET, bad_examples)
    assert pictures(splits) == [TRAIN, SECOND, THIRD]
    (remark,) = bad_examples.remarks
    assert "its split 'validation' is used for validation (--validation 0.1" in remark
    again = BadExamples()
    options = dataclasses.replace(QUIET, validation="dev")
    assert pictures(open_splits(f"folder:{tmp_path}", options, again)) == [TRAIN, SECOND, THIRD]
    assert not again.remarks


@pytest.mark.parametrize("validation,count", [("0.2", 10), ("7", 4), (".02", 1)])
def test_validation_examples_are_held_out_with_all_captions(tmp_path, validation, count):
    save_splits(tmp_path, train=50, dev=10, test=10)
    options = dataclasses.replace(QUIET, validation=validation)
    splits = open_splits(f"folder:{tmp_path}", options, BadExamples())
    train, held_out, test = pictures(splits)
    assert train | held_out == TRAIN and not train & held_out and test == THIRD
    assert len(held_out) == count and len(splits.validation) == 2 * count  # each picture has two examples


def test_without_a_test_split_a_tenth_of_the_training_split_is_one(tmp_path):
    save_splits(tmp_path, train=50)
    bad_examples = BadExamples()
    splits = open_splits(f"folder:{tmp_path}", QUIET, bad_examples)
    parts = pictures(splits)
    assert set.union(*parts) == TRAIN and sum(map(len, parts)) == 50 and len(parts[2]) == 5
    assert "there is no test split; a tenth of the training examples is held out" in bad_examples.remarks[0]
    options = dataclasses.replace(QUIET, test_split="0.5", validation="4")
    parts = pictures(open_splits(f"folder:{tmp_path}", options, BadExamples()))
    assert set.union(*parts) == TRAIN and [len(part) for part in parts] == [23, 2, 25]
    # In code, the training split is all of it, and there is no other.
    assert len(open_source(f"folder:{tmp_path}", options=QUIET)) == 100
    with pytest.raises(ValueError, match="no split 'test'"):
        open_source(f"folder:{tmp_path}", "test", QUIET)


def test_a_validation_split_without_a_test_split_is_the_test_split(tmp_path):
    save_splits(tmp_path, train=50, val2017=10)
    bad_examples = BadExamples()
    train, validation, test = pictures(open_splits(f"folder:{tmp_path}", QUIET, bad_examples))
    assert test == SECOND and train | validation == TRAIN and not train & validation
    assert (
        "its split 'validation' is the test split, and validation examples are held out"
        in bad_examples.remarks[0]
    )
    options = dataclasses.replace(QUIET, validation="val2017")
    train, validation, test = pictures(open_splits(f"folder:{tmp_path}", options, BadExamples()))
    assert validation == SECOND and train | test == TRAIN and len(test) == 5


def test_a_test_split_that_is_asked_for_decides_nothing(tmp_path):
    save_splits(tmp_path, train=50, dev=10, test=10)
    options = dataclasses.replace(QUIET, test_split="dev")
    train, validation, test = pictures(open_splits(f"folder:{tmp_path}", options, BadExamples()))
    assert test == SECOND and train | validation == TRAIN and not train & validation
    with pytest.raises(ValueError, match="validation and test_split are both dev"):
        DataOptions(test_split="dev", validation="dev")


def test_other_forms_hold_out_and_choose_too():
    options = DataOptions(
        train_size=60, modalities=("text", "image"), test_split="compositions", validation="0.25"
    )
    splits = open_splits("shapes", options, BadExamples())
    assert [*splits.tests] == ["test"] and len(splits.train) == 45 and len(splits.validation) == 15
    expected = open_source("shapes", "compositions", options)
    np.testing.assert_array_equal(
        splits.tests["test"].batch(np.arange(3))["image"], expected.batch(np.arange(3))["image"]
    )
    with pytest.raises(
        ValueError, match="--validation or --test-split 60: that is 60 of 60 training examples"
    ):
        open_splits("shapes", dataclasses.replace(options, validation="60"), BadExamples())


def test_images_are_divided_before_views_are_made_of_them(tmp_path):
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(60) % 2)
    options = DataOptions(test_split="0.2", validation="6", views=2, progress=False)
    splits = open_splits(f"poly:npz:{tmp_path}/a.npz", options, BadExamples())
    whole = len(open_source(f"npz:{tmp_path}/a.npz"))
    sizes = [len(splits.train), len(splits.validation), len(splits.tests["test"])]
    assert sizes == [whole - 6 - round(0.2 * whole), 6, round(0.2 * whole)]


@pytest.mark.parametrize("value", ["0", "-3", "0.0", "1.0", "1.5", "-0.1", "train", "all", "", "1e3"])
def test_what_is_no_part_is_refused(value):
    for option in ("validation", "test_split"):
        with pytest.raises(ValueError, match=f"^{option} must be"):
            DataOptions(**{option: value})


def test_an_unknown_split_lists_those_that_there_are(tmp_path):
    save_splits(tmp_path, train=5, dev=3)
    for option in ("validation", "test_split"):
        with pytest.raises(ValueError, match="no split 'voices'; .* are: dev, train"):
            open_splits(
                f"folder:{tmp_path}", DataOptions(progress=False, **{option: "voices"}), BadExamples()
            )


def save_container(root, form, **sizes):
    """As `save_splits`, one caption for each picture, in a Parquet file or a tar shard for each split."""
    for number, (name, n) in enumerate(sizes.items()):
        members = []
        for k in range(60 * number, 60 * number + n):
            stream = io.BytesIO()
            Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(stream, "PNG")
            members.append((f"{k:03}", stream.getvalue(), f"picture {k}"))
        if form == "parquet":
            import pyarrow.parquet as pq
            from pyarrow import table

            images = [{"bytes": image, "path": f"{key}.png"} for key, image, _ in members]
            pq.write_table(
                table({"image": images, "text": [m[2] for m in members]}),
                root / f"{name}-00000-of-00001.parquet",
            )
            continue
        with tarfile.open(root / f"{name}-000.tar", "w") as tar:
            for key, image, caption in members:
                for suffix, content in (("png", image), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_containers_declare_their_splits_as_folders_do(tmp_path, form, monkeypatch):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path / "cache"))
    for folder, sizes in (("three", dict(train=50, dev=10, test=10)), ("two", dict(train=50, valid=10))):
        (tmp_path / folder).mkdir()
        save_container(tmp_path / folder, form, **sizes)
    said = BadExamples()
    assert pictures(open_splits(f"{form}:{tmp_path}/three", QUIET, said)) == [TRAIN, SECOND, THIRD]
    assert any("its split 'validation' is used for validation" in remark for remark in said.remarks)
    train, validation, test = pictures(open_splits(f"{form}:{tmp_path}/two", QUIET, BadExamples()))
    assert test == SECOND and train | validation == TRAIN and not train & validation
    options = dataclasses.replace(QUIET, validation="dev", test_split="test")
    assert pictures(open_splits(f"{form}:{tmp_path}/three", options, BadExamples())) == [TRAIN, SECOND, THIRD]


@pytest.mark.parametrize("validation, test", [("val", "validation"), ("dev", "val"), ("dev-clean", "dev")])
def test_two_names_of_one_split_are_refused(validation, test):
    with pytest.raises(ValueError, match=f"validation and test_split are both {validation} .{test}."):
        DataOptions(validation=validation, test_split=test)
    DataOptions(validation="dev-clean", test_split="dev-other")


def test_the_test_split_does_not_decide_about_the_best_checkpoint(tmp_path):
    save_splits(tmp_path, train=20, test=9)
    for name in ("test", "Test", "testing"):
        with pytest.raises(ValueError, match=f"--validation {name}: that is the test split .test. too"):
            open_splits(f"folder:{tmp_path}", DataOptions(validation=name, progress=False), BadExamples())
    options = DataOptions(validation="test", test_split="0.2", progress=False)
    assert len(open_splits(f"folder:{tmp_path}", options, BadExamples()).validation) == 2 * 9


@pytest.mark.parametrize("name", ["training", "Train"])
def test_another_word_for_the_training_split_is_refused(name):
    for option in ("validation", "test_split"):
        with pytest.raises(ValueError, match=f"{option} must be another split than the training split"):
            DataOptions(**{option: name})


def test_a_name_of_a_training_split_is_remarked(tmp_path):
    save_splits(tmp_path, **{"train-a": 20, "train-b": 9, "test": 5})
    bad = BadExamples()
    open_splits(f"folder:{tmp_path}", DataOptions(validation="train-b", progress=False), bad)
    assert [r for r in bad.remarks if r.startswith("--validation train-b: if the training data have these")]


def test_a_split_that_is_not_there_is_named_with_its_flag(tmp_path):
    save_splits(tmp_path, train=20, test=9)
    for flag in ("validation", "test_split"):
        with pytest.raises(ValueError, match=f"^--{flag.replace('_', '-')} voices: .* has no split 'voices'"):
            open_splits(f"folder:{tmp_path}", DataOptions(**{flag: "voices"}, progress=False), BadExamples())


@pytest.mark.parametrize("prompt", ["a {} and {}", "a {} {x}", "a {} {", "a {0}"])
def test_a_prompt_has_one_place_for_the_class(prompt):
    with pytest.raises(ValueError, match="prompt must contain {}"):
        DataOptions(prompt=prompt)
