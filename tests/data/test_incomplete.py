"""Views in which modalities are missing."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.pipeline import iterate_epoch
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.splits import choose_text_length, make_tokenizer, open_splits, read_captions
from xmodal_jax.data.tasks import Questions, open_task
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.data.views import IncompleteSource, Subset, TransformedSource, keep_complete

N = 307
MODALITIES = ("text", "text_title", "image_0", "image_1", "audio", "video")


def arrays(n=N):
    r = np.random.default_rng(0)
    return {
        "caption": np.array([f"words of {k}" for k in range(n)], object),
        "text_title": r.integers(1, 9, (n, 3)).astype(np.int32),
        "text_title_mask": np.ones((n, 3), bool),
        "image_0": r.integers(1, 256, (n, 2, 3, 3), dtype=np.uint8),
        "image_1": r.integers(1, 256, (n, 2, 3, 3), dtype=np.uint8),
        "audio": r.integers(1, 99, (n, 5)).astype(np.int16),
        "audio_mask": np.ones((n, 5), bool),
        "video": r.integers(1, 256, (n, 2, 2, 2, 1), dtype=np.uint8),
        "label": np.arange(n, dtype=np.int32),
    }


FIELDS = {
    "text": ("caption",), "text_title": ("text_title", "text_title_mask"), "image_0": ("image_0",),
    "image_1": ("image_1",), "audio": ("audio", "audio_mask"), "video": ("video",),
}  # fmt: skip


class UnreadableSource(Source):
    """A source that must not be read beyond its first example."""

    modalities, class_names = ("image_0", "image_1", "image_2"), None

    def __len__(self):
        return 5003

    def batch(self, indices):
        assert len(indices) == 1
        return {m: np.ones((1, 1, 1, 1), np.uint8) for m in self.modalities}


def test_is_a_source_and_tells_what_its_source_tells():
    source = IncompleteSource(ArraySource(arrays(), tuple("ab")), fraction=0.3, seed=0)
    assert isinstance(source, Source) and len(source) == N
    assert source.modalities == MODALITIES and source.class_names == ("a", "b")
    assert source.target_classes is None


def test_what_is_missing_is_blank_and_the_rest_is_as_it_was():
    whole, source = arrays(), IncompleteSource(ArraySource(arrays()), fraction=0.4, seed=1)
    batch = source.batch(np.arange(N))
    for m in MODALITIES:
        there = batch["present"][m]
        assert 100 < there.sum() < N - 60
        for field in FIELDS[m]:
            np.testing.assert_array_equal(batch[field][there], whole[field][there])
            left = batch[field][~there]
            assert (left == "").all() if left.dtype == object else not left.any()
    np.testing.assert_array_equal(batch["label"], whole["label"])
    # The source's own arrays are untouched.
    np.testing.assert_array_equal(source.source.arrays["image_0"], whole["image_0"])


def test_an_example_lacks_the_same_alone_and_in_any_batch():
    source = IncompleteSource(ArraySource(arrays()), fraction=0.5, seed=2)
    every = source.presence()
    order = np.random.default_rng(0).permutation(N)[:41]
    for m, there in source.batch(order)["present"].items():
        np.testing.assert_array_equal(there, every[m][order])
        np.testing.assert_array_equal(source.presence(order)[m], every[m][order])
        assert source.batch(order[7:8])["present"][m][0] == every[m][order[7]]
    other = IncompleteSource(ArraySource(arrays()), fraction=0.5, seed=3).presence()
    assert any(not np.array_equal(every[m], other[m]) for m in MODALITIES)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_is_binomial_and_one_always_stays(fraction):
    there = np.stack(
        list(IncompleteSource(UnreadableSource(), fraction=fraction, seed=4).presence().values())
    )
    assert there.any(axis=0).all()
    n, p = there.shape[1], fraction - fraction**3 / 3
    low, high = binom.ppf([1e-6, 1 - 1e-6], n, p)
    assert all(low <= n - row.sum() <= high for row in there)
    # Independent but for the one that stays: with p = fraction, both of two are missing in p^2 - (2/3) p^3.
    low, high = binom.ppf([1e-6, 1 - 1e-6], n, fraction**2 - 2 / 3 * fraction**3)
    assert all(low <= (~there[a] & ~there[b]).sum() <= high for a, b in ((0, 1), (0, 2), (1, 2)))


def test_only_the_modalities_named_go_missing():
    there = IncompleteSource(UnreadableSource(), fraction=1.0, seed=0, modalities=("image_1",)).presence()
    assert there["image_0"].all() and there["image_2"].all() and not there["image_1"].any()


@given(fraction=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 2**31))
def test_combined_with_what_the_source_lacks(fraction, seed):
    r = np.random.default_rng(seed)
    stated = {m: r.random(N) < 0.5 for m in MODALITIES[:3]}
    base = ArraySource({**arrays(), "present": stated})
    source = IncompleteSource(base, fraction=fraction, seed=seed)
    before, after = base.presence(), source.presence()
    assert all((after[m] <= before[m]).all() for m in MODALITIES)
    np.testing.assert_array_equal(np.any(list(after.values()), axis=0), np.any(list(before.values()), axis=0))
    if fraction == 0:
        assert all(np.array_equal(after[m], before[m]) for m in MODALITIES)
    if fraction == 1:
        np.testing.assert_array_equal(np.sum(list(after.values()), axis=0), 1)


def test_an_example_with_nothing_stays_so():
    nothing = {m: np.zeros(N, bool) for m in MODALITIES}
    source = IncompleteSource(ArraySource({**arrays(), "present": nothing}), fraction=0.5, seed=0)
    assert not any(there.any() for there in source.presence().values())


@pytest.mark.parametrize("kind", ["word", "wordpiece", "bpe"])
def test_tokenizers_survive_missing_captions(kind):
    source = IncompleteSource(ArraySource(arrays()), fraction=0.5, seed=5)
    captions = read_captions(source)
    assert "" in captions and any(captions)
    tokenizer = make_tokenizer(kind, captions, 400)
    clean = lambda text: text.upper()
    tokenize = TokenizeTransform(tokenizer, choose_text_length(tokenizer, captions), clean=clean)
    batch = tokenize(source.batch(np.arange(N)))
    there = batch["present"]["text"]
    assert not batch["text"][~there].any() and not batch["text_mask"][~there].any()
    assert batch["text_mask"][there].sum(axis=1).min() >= 3


def test_tokenize_reads_every_caption_field():
    fields = {"caption": np.array(["a b"], object), "caption_title": np.array(["b"], object)}
    source = ArraySource(fields)
    assert source.modalities == ("text", "text_title")
    tokenizer = make_tokenizer("word", read_captions(source))
    batch = TokenizeTransform(tokenizer, 4)(source.batch(np.array([0])))
    assert tokenizer.decode_batch(batch["text"]) == ["a b"]
    assert tokenizer.decode_batch(batch["text_title"]) == ["b"]
    assert batch["text_title_mask"].tolist() == [[True, True, True, False]]
    lacking = IncompleteSource(source, fraction=1.0, seed=0).batch(np.array([0]))
    assert sorted(lacking[f][0] == "" for f in fields) == [False, True]


def test_complete_only():
    source = IncompleteSource(UnreadableSource(), fraction=0.3, seed=6)
    kept = keep_complete(source)
    assert isinstance(kept, Subset)
    whole = np.all(list(source.presence().values()), axis=0)
    np.testing.assert_array_equal(kept.indices, np.flatnonzero(whole))
    assert all(there.all() for there in kept.presence().values())
    assert len(keep_complete(UnreadableSource())) == 5003
    with pytest.raises(ValueError, match="none of the 5003 examples has all of image_0, image_1, image_2"):
        keep_complete(IncompleteSource(UnreadableSource(), fraction=1.0, seed=0))


def test_presence_of_a_source_that_tells_by_its_batches_only():
    stated = {"text": np.arange(N) % 3 == 0}
    source = TransformedSource(ArraySource({**arrays(), "present": stated}), lambda batch: batch)
    assert TransformedSource.presence is Source.presence
    found = source.presence(np.array([3, 4, 5]))
    assert found["text"].tolist() == [True, False, False] and found["audio"].all()
    assert tuple(source.presence()) == MODALITIES and source.presence()["text"].sum() == 103


def test_presence_of_a_folder(tmp_path):
    from PIL import Image

    rows = []
    for k in range(7):
        Image.fromarray(np.full((4, 4, 3), k, np.uint8)).save(tmp_path / f"{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"the {k}" if k % 2 else None})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = FolderSource(tmp_path, "all", progress=False)
    stated, read = source.presence(), source.batch(np.arange(7))["present"]
    assert stated["text"].sum() == 3 and stated["image"].all()
    assert all(np.array_equal(stated[m], read[m]) for m in ("text", "image"))
    assert len(keep_complete(source)) == 3


def test_padded_rows_of_named_modalities_are_missing():
    source = IncompleteSource(ArraySource(arrays(5)), fraction=0.5, seed=0)
    every = source.presence()
    batches = list(iterate_epoch(source, 3))
    assert [set(b["present"]) for b in batches] == [set(MODALITIES)] * 2
    for m in MODALITIES:
        got = np.concatenate([b["present"][m] for b in batches])
        assert got.tolist() == [*every[m].tolist(), False]
    plain = list(iterate_epoch(ArraySource({"image_0": np.zeros((5, 1, 1, 1), np.uint8)}), 3))
    assert plain[1]["present"]["image_0"].tolist() == [True, True, False]


def test_training_lacks_modalities_and_tests_do_not(tmp_path):
    for split in ("train", "test"):
        whole = arrays()
        np.savez(tmp_path / f"{split}.npz", **{**whole, "caption": whole["caption"].astype("U")})
    options = DataOptions(missing=0.3, data_seed=7, progress=False)
    splits = open_splits(f"npz:{tmp_path}", options, BadExamples())
    complete = [all(v.all() for v in s.presence().values()) for s in (*splits[:2], splits.tests["test"])]
    assert complete == [False, True, True] and len(splits.train) + len(splits.validation) == N
    assert "present" not in open_source(f"npz:{tmp_path}", "test", options).batch(np.arange(3))
    opened = open_source(f"npz:{tmp_path}", "train", options)
    assert not np.all(list(opened.presence().values()))

    discard = DataOptions(missing=0.3, incomplete="discard", data_seed=7, progress=False)
    kept = open_splits(f"npz:{tmp_path}", discard, BadExamples())
    assert len(kept.train) == np.all(list(splits.train.presence().values()), axis=0).sum()
    assert len(kept.validation) == len(splits.validation)
    np.testing.assert_array_equal(
        kept.validation.batch(np.arange(9))["label"], splits.validation.batch(np.arange(9))["label"]
    )


def test_discard_also_concerns_what_the_data_set_itself_lacks(tmp_path):
    whole = {k: v for k, v in arrays().items() if k.startswith("image")}
    np.savez(tmp_path / "train.npz", image_1_present=np.arange(N) % 2 == 0, **whole)
    np.savez(tmp_path / "test.npz", **whole)
    source = open_source(f"npz:{tmp_path}", "train", DataOptions(incomplete="discard"))
    assert len(source) == (N + 1) // 2


def test_scenes_and_tasks_about_them_can_lack_modalities():
    options = DataOptions(train_size=60, modalities=("text", "image"), missing=0.5, progress=False)
    scenes = open_source("shapes", "train", options).batch(np.arange(60))
    gone = ~scenes["present"]["image"]
    assert gone.any() and not scenes["image"][gone].any()
    splits = open_task("shapes", options, BadExamples(), Questions)
    batch = splits.train.batch(np.arange(60))
    gone = ~batch["present"]["text"]
    assert gone.any() and (batch["caption"][gone] == "").all() and (batch["label"] >= 0).any()
    assert splits.train.target_classes == Questions.target_classes
    assert "present" not in splits.validation.batch(np.arange(3))


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_bounds(fraction):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        IncompleteSource(UnreadableSource(), fraction=fraction, seed=0)
    with pytest.raises(ValueError, match=r"missing must lie in 0\.\.1"):
        DataOptions(missing=fraction)


def test_errors():
    with pytest.raises(ValueError, match="must be some of image_0"):
        IncompleteSource(UnreadableSource(), fraction=0.1, seed=0, modalities=("image",))
    with pytest.raises(ValueError, match="one modality .image"):
        IncompleteSource(ArraySource({"image": np.zeros((3, 1, 1, 1), np.uint8)}), fraction=0.1, seed=0)
    with pytest.raises(
        (ValueError, TypeError), match="incomplete"
    ):  # the types of arguments are checked in tests
        DataOptions(incomplete="drop")
    with pytest.raises(ValueError, match="views must be positive"):
        DataOptions(views=0)
