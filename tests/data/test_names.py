"""Several modalities of one kind, told apart by their names."""

import numpy as np
import pytest

from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource, load_npz, modalities_of
from xmodal_jax.types import MODALITIES, kind_of


@pytest.mark.parametrize("kind", [*MODALITIES, "label"])
@pytest.mark.parametrize("name", ["", "_0", "_sketch", "_of_the_left_eye"])
def test_the_kind_is_what_stands_before_the_name(kind, name):
    assert kind_of(kind + name) == kind


@pytest.mark.parametrize("name", ["", "images", "smell", "caption", "_image", "Image_1", "sketch_image"])
def test_what_is_no_modality_is_named(name):
    with pytest.raises(ValueError, match=f"^{name!r} is no modality"):
        kind_of(name)


def test_modalities_among_fields_come_by_kind_and_number():
    fields = [
        "video", "image_10", "image_sketch", "image_2", "image", "audio_mask", "audio", "text_mask", "caption",
        "caption_b", "text_a", "text_a_mask", "image_2_present", "label", "label_2", "factors", "imagery", "image_",
        "caption_b_mask",
    ]  # fmt: skip
    expected = (
        "text", "text_a", "text_b", "image", "image_2", "image_10", "image_sketch", "audio", "video",
    )  # fmt: skip
    assert modalities_of(fields) == expected
    assert modalities_of(fields[::-1]) == expected
    assert modalities_of(["text_mask", "audio_mask", "image_mask", "label"]) == ()


def fields(n=23):
    r = np.random.default_rng(n)
    return {
        "image_0": r.integers(0, 256, (n, 5, 7), np.uint8),
        "image_1": r.integers(0, 256, (n, 4, 4, 3), np.uint8),
        "text_code": r.integers(0, 3, (n, 6)),
        "caption_title": np.array([f"c{i}" for i in range(n)]),
        "audio_left": r.integers(-9, 9, (n, 11)).astype(np.int16),
        "image_1_present": np.arange(n) % 2 == 0,
    }


def test_arrays_of_named_modalities(tmp_path):
    data = fields()
    np.savez(tmp_path / "train.npz", **data)
    source = load_npz(tmp_path, "all")
    assert source.modalities == ("text_code", "text_title", "image_0", "image_1", "audio_left")
    batch = source.batch(np.array([4, 1]))
    np.testing.assert_array_equal(batch["image_0"], data["image_0"][[4, 1]][..., None])
    np.testing.assert_array_equal(batch["image_1"], data["image_1"][[4, 1]])
    assert batch["text_code"].dtype == np.int32 and batch["caption_title"].tolist() == ["c4", "c1"]
    np.testing.assert_array_equal(batch["text_code_mask"], data["text_code"][[4, 1]] != 0)
    assert batch["audio_left_mask"].all() and "image_1_present" not in batch
    assert {m: v.tolist() for m, v in batch["present"].items()} == {
        **dict.fromkeys(source.modalities, [True, True]), "image_1": [True, False]
    }  # fmt: skip


def test_named_modalities_are_chosen_with_their_fields(tmp_path):
    np.savez(tmp_path / "train.npz", **fields())
    some = load_npz(tmp_path, "train", ("image_0", "text_code"))
    assert set(some.arrays) == {"image_0", "text_code", "text_code_mask"}
    assert set(load_npz(tmp_path, "train", ("image_1",)).arrays) == {"image_1", "present"}
    assert set(load_npz(tmp_path, "train", ("text_title",)).arrays) == {"caption_title"}
    with pytest.raises(ValueError, match="has no image_2"):
        load_npz(tmp_path, "train", ("image_2",))
    with pytest.raises(ValueError, match="has no image;"):
        load_npz(tmp_path, "train", ("image",))


@pytest.mark.parametrize(
    "change,message",
    [
        (
            {"image_0": np.zeros((23, 5, 7), np.float32)},
            "'image_0' is float32.*Convert it first.*not meant as image",
        ),
        ({"image_id": np.arange(23)}, "'image_id' is int64.*Rename it if it is not meant as image"),
        ({"image_1": np.zeros((23, 5), np.uint8)}, r"'image_1' is uint8 \[23, 5\]"),
        ({"audio_left": np.full((23, 11), 300.0)}, "'audio_left' is float64 with values beyond"),
        ({"audio_left": np.zeros((23, 11), np.int32)}, "'audio_left' is int32"),
        ({"image_1_present": np.zeros(23)}, "'image_1_present' is float64.*bool"),
        ({"audio_left_mask": np.ones((23, 12), bool)}, "'audio_left_mask' is"),
        ({"image_7_present": np.ones(23, bool)}, "'image_7_present' is about a modality that is not there"),
        ({"image_": np.zeros((23, 5, 7), np.uint8)}, "'image_' is not known; did you mean 'image'"),
    ],
)
def test_wrong_named_fields_are_named(tmp_path, change, message):
    np.savez(tmp_path / "data.npz", **{**fields(), **change})
    with pytest.raises(ValueError, match=message) as caught:
        load_npz(tmp_path / "data.npz")
    assert "data.npz" in str(caught.value)


def test_the_image_size_of_named_images_is_checked(tmp_path):
    np.savez(
        tmp_path / "a.npz", image_0=np.zeros((30, 8, 8), np.uint8), image_1=np.zeros((30, 8, 4), np.uint8)
    )
    assert (
        len(open_source(f"npz:{tmp_path}/a.npz", "all", DataOptions(image_size=8, modalities=("image_0",))))
        == 30
    )
    with pytest.raises(ValueError, match="'image_1' is 8 x 4 pixels, image_size asks for 8"):
        open_source(f"npz:{tmp_path}/a.npz", "all", DataOptions(image_size=8))


def test_options_accept_names_of_modalities_only():
    assert DataOptions(modalities=("text", "image_3", "image_sketch")).modalities[1] == "image_3"
    for wrong in ("smell", "label", "image_", "text_mask", "image_1_present", "caption"):
        with pytest.raises(ValueError, match=f"modalities: '{wrong}'"):
            DataOptions(modalities=(wrong,))


def test_scenes_with_sketches():
    options = DataOptions(train_size=9, image_size=24, modalities=("image_sketch", "image", "text"))
    source = open_source("shapes", "test", options)
    batch = source.batch(np.arange(9))
    assert batch["image_sketch"].shape == batch["image"].shape == (9, 24, 24, 3)
    assert ArraySource(batch).modalities == ("text", "image", "image_sketch")
    alone = SpokenShapes("test", size=9, image_size=24, modalities=("image_sketch",)).batch([4])
    assert set(alone) == {"image_sketch", "label", "factors"}
    np.testing.assert_array_equal(alone["image_sketch"][0], batch["image_sketch"][4])
    assert "image_sketch" not in SpokenShapes(size=3).modalities
    with pytest.raises(ValueError, match="image_sketch, audio, video; got"):
        open_source("shapes", "test", DataOptions(modalities=("image_1",)))
