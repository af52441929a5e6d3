"""The picture is the unit: which examples share one, in every kind of data set, and splits that share none."""

import numpy as np
import pytest

from tests.data.sources.test_folder import save_png, save_wav, write
from tests.pictures import LAYOUTS, pictures_of, write_pictures
from xmodal_jax.data import media
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.source import first_of_group
from xmodal_jax.data.sources.arrays import ArraySource, load_npz
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.splits import open_splits
from xmodal_jax.data.views import IncompleteSource, Subset, hold_out, one_per_picture, read_into_memory

QUIET = DataOptions(modalities=("text", "image"), progress=False)


def grouped(groups):
    rows = np.arange(len(groups), dtype=np.int32)
    return ArraySource({"row": rows, "group": np.asarray(groups, np.int32)})


def rows_of(source):
    return source.batch(np.arange(len(source)))["row"].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captions_of_a_picture_share_its_group(tmp_path, layout):
    write_pictures(tmp_path / "train", layout)
    source = FolderSource(tmp_path, progress=False)
    assert len(source) == 75
    np.testing.assert_array_equal(first_of_group(source), np.repeat(5 * np.arange(15), 5))
    some = np.array([7, 2, 9])
    np.testing.assert_array_equal(source.batch(some)["group"], source.groups(some))
    assert pictures_of(one_per_picture(source)) == list(range(15))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_picture_is_in_two_parts(tmp_path, layout):
    """Without folders for the splits, and with validation held out."""
    write_pictures(tmp_path, layout, pictures=60)
    splits = open_splits(f"folder:{tmp_path}", QUIET, BadExamples())
    parts = [splits.train, splits.validation, splits.tests["test"]]
    by_part = [set(pictures_of(part)) for part in parts]
    assert all(by_part) and sum(len(pictures) for pictures in by_part) == 60
    assert set.union(*by_part) == set(range(60)) and sum(map(len, parts)) == 300


def test_pictures_that_do_not_repeat_have_no_groups(tmp_path):
    """And are held out as examples are."""
    write_pictures(tmp_path / "train", "one line", captions=1)
    source = FolderSource(tmp_path, progress=False)
    assert source.groups() is None and "group" not in source.batch(np.array([0, 1]))
    assert one_per_picture(source) is source
    order = np.random.default_rng(3).permutation(15)
    remaining, held_out = hold_out(source, 4, seed=3)
    assert pictures_of(held_out) == sorted(order[:4]) and pictures_of(remaining) == sorted(order[4:])


def test_one_file_in_several_spellings_is_one_picture(tmp_path):
    train = tmp_path / "train"
    save_png(train / "caf\u00e9.png", 1)
    names = ["caf\u00e9.png", "./caf\u00e9.png", "cafe\u0301.png"]
    write(train, [{"file_name": name, "text": str(k)} for k, name in enumerate(names)])
    assert FolderSource(tmp_path, progress=False).groups().tolist() == [0, 0, 0]


def test_spoken_captions_of_a_picture_are_in_one_split(tmp_path):
    """The lines of a picture differ in their recordings, whose names must not decide its split."""
    lines = []
    for picture in range(12):
        save_png(tmp_path / f"{picture}.png", picture)
        for k in range(4):
            save_wav(tmp_path / f"{picture}-{k}.wav", 20)
            lines.append({"image": f"{picture}.png", "audio": f"{picture}-{k}.wav", "text": f"{picture} {k}"})
    write(tmp_path, lines)
    options = dict(progress=False, max_seconds=0.1)
    parts = [FolderSource(tmp_path, split, **options) for split in ("train", "test")]
    captions = [part.batch(np.arange(len(part)))["caption"] for part in parts]
    by_split = [{int(c.split()[0]) for c in part} for part in captions]
    assert all(by_split) and not by_split[0] & by_split[1] and set.union(*by_split) == set(range(12))


def test_examples_without_a_picture_share_none(tmp_path):
    train = tmp_path / "train"
    save_png(train / "a.png", 1)
    lines = [{"file_name": name, "text": "x"} for name in ("a.png", None, None, "a.png")]
    write(train, lines)
    source = FolderSource(tmp_path, progress=False)
    assert first_of_group(source).tolist() == [0, 1, 2, 0]


def test_few_pictures_are_noted_however_many_captions_they_have(tmp_path):
    for split in ("train", "test"):
        write_pictures(tmp_path / split, "one line", pictures=30, captions=5)
    notes = BadExamples()
    open_splits(f"folder:{tmp_path}", QUIET, notes)
    assert "The split 'test' has examples of 30 pictures, so few" in notes.summary()


def test_a_file_that_several_lines_name_is_decoded_once(tmp_path, monkeypatch):
    write_pictures(tmp_path / "train", "several lines", pictures=20, captions=5)
    (tmp_path / "train" / "7.png").write_bytes(b"damaged")
    decoded, decode_image = [], media.decode_image
    record = lambda file, *args: decoded.append(file) or decode_image(file, *args)
    monkeypatch.setattr(media, "decode_image", record)
    bad_examples, options = BadExamples("skip"), dict(progress=False, workers=1)
    source = FolderSource(tmp_path, bad_examples=bad_examples, **options)
    assert len(decoded) == 20 and source.in_memory
    assert [example.line for example in bad_examples.items] == list(range(36, 41))
    assert pictures_of(source) == [k for k in range(20) if k != 7 for _ in range(5)]
    not_kept = FolderSource(tmp_path, bad_examples=bad_examples, memory_limit=800, **options)
    assert not not_kept.in_memory and pictures_of(not_kept) == pictures_of(source)
    # The images of 4 x 4 pixels fit the limit if they are kept once.
    kept_once = FolderSource(tmp_path, bad_examples=bad_examples, memory_limit=20 * 48, **options)
    assert kept_once.in_memory


def test_a_picture_in_two_folders_of_splits_is_noted(tmp_path):
    save_png(tmp_path / "a.png", 1)
    save_png(tmp_path / "b.png", 2)
    for split, names in (("train", "ab"), ("test", "a")):
        (tmp_path / split).mkdir()
        write(tmp_path / split, [{"file_name": f"../{name}.png", "text": name} for name in names])
    notes, options = BadExamples(), dict(progress=False, allow_outside=True)
    FolderSource(tmp_path, "test", bad_examples=notes, **options)
    assert "The pictures of 1 example in" in notes.summary() and "are in another split too" in notes.summary()
    notes = BadExamples()
    FolderSource(tmp_path, "train", bad_examples=notes, **options)
    assert notes.summary() == ""


@pytest.mark.parametrize(
    "group",
    [np.array([9**15, 4, -1, 4, 9**15, -1]), np.array(["b.png", "a.png", "", "a.png", "b.png", ""])],
    ids=["integers", "names"],
)
def test_arrays_have_a_column_of_groups(tmp_path, group):
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "train.npz", image=images, caption=np.array(list("abcdef")), group=group)
    source = load_npz(tmp_path, "all", modalities=("image",))
    assert source.batch(np.arange(6))["group"].dtype == np.int32
    assert first_of_group(source).tolist() == [0, 1, 2, 1, 0, 5]


def test_arrays_in_one_file_are_split_by_group(tmp_path):
    """A number that repeats is in one split; without groups the split is that of the examples' own numbers."""
    images = np.arange(120, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 3))
    np.savez(tmp_path / "a.npz", image=images, group=group)
    parts = [load_npz(tmp_path / "a.npz", split).arrays for split in ("train", "test")]
    assert sum(len(part["group"]) for part in parts) == 120
    by_split = [set(group[part["image"][:, 0, 0, 0]]) for part in parts]
    assert all(by_split) and not by_split[0] & by_split[1]
    np.savez(tmp_path / "b.npz", image=images)
    np.savez(tmp_path / "c.npz", image=images, group=np.arange(120))
    plain, single = (load_npz(tmp_path / name, "test").arrays["image"] for name in ("b.npz", "c.npz"))
    np.testing.assert_array_equal(plain, single)


def test_a_misspelt_column_of_groups_is_named(tmp_path):
    np.savez(tmp_path / "train.npz", image=np.zeros((3, 2, 2, 3), np.uint8), groups=np.arange(3))
    with pytest.raises(ValueError, match="did you mean 'group'"):
        load_npz(tmp_path)
    np.savez(tmp_path / "train.npz", image=np.zeros((3, 2, 2, 3), np.uint8), group=np.arange(3.0))
    with pytest.raises(ValueError, match="integers or strings"):
        load_npz(tmp_path)


def test_pictures_are_held_out_whole():
    source = grouped([5, 5, -1, 3, 3, 3, -1, 5, 8])
    for seed in range(20):
        remaining, held_out = hold_out(source, 3, seed=seed)
        held, rest = rows_of(held_out), rows_of(remaining)
        assert sorted(held + rest) == list(range(9)) and held == sorted(held) and rest == sorted(rest)
        for members in ({0, 1, 7}, {3, 4, 5}):
            assert members <= set(held) or members <= set(rest)
        assert 3 <= len(held) <= 5  # as many as asked for, and the rest of one picture


def test_one_picture_always_remains():
    source = grouped([0] * 4 + [1] * 2)
    for seed in range(10):
        sizes = [len(part) for part in hold_out(source, 5, seed=seed)]
        assert sorted(sizes) == [2, 4]
    with pytest.raises(ValueError, match="all show the same picture"):
        hold_out(grouped([2, 2, 2]), 1)


def test_views_know_the_groups():
    source = grouped([4, 4, 7, 7])
    assert first_of_group(Subset(source, np.array([3, 1, 2]))).tolist() == [0, 1, 0]
    arrays = {"image": np.zeros((4, 2, 2, 3), np.uint8), "caption": np.array(list("abcd"), object)}
    pairs = ArraySource({**arrays, "group": np.array([4, 4, 7, 7], np.int32)})
    incomplete = IncompleteSource(pairs, fraction=0.5, seed=0)
    assert first_of_group(incomplete).tolist() == [0, 0, 2, 2]
    in_memory = read_into_memory(incomplete, limit=2**20, progress=False)
    assert in_memory.groups().tolist() == [4, 4, 7, 7]
