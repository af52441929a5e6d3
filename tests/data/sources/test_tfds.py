"""Prepared data sets in the layout of TensorFlow Datasets, written here without TensorFlow."""

import io
import json
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.sources.tfds import ADAPTERS, TfdsSource, clean_class_name, find_prepared

array_record = pytest.importorskip("array_record.python.array_record_module")
FEATURES = "tensorflow_datasets.core.features."


def image_feature(*shape):
    return {"pythonClassName": FEATURES + "image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": [str(s) for s in shape]}}}  # fmt: skip


def audio_feature(rate, **more):
    audio = {
        "dtype": "int16",
        "encoding": "NONE",
        "shape": {"dimensions": ["-1"]},
        "sampleRate": str(rate),
        **more,
    }
    return {"pythonClassName": FEATURES + "audio_feature.Audio", "audio": audio}


TEXT = {"pythonClassName": FEATURES + "text_feature.Text", "text": {}}


def dictionary(features):
    return {
        "pythonClassName": FEATURES + "features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def sequence(feature):
    return {
        "pythonClassName": FEATURES + "sequence_feature.Sequence",
        "sequence": {"feature": feature, "length": "-1"},
    }


def label_feature(n):
    return {
        "pythonClassName": FEATURES + "class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(n)},
    }


def serialise(example):
    from tensorflow_datasets.proto import tf_example_pb2

    message = tf_example_pb2.Example()
    for name, value in example.items():
        values = value if isinstance(value, list) else [value]
        feature = message.features.feature[name]
        if isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        else:
            feature.int64_list.value.extend(int(v) for v in values)
    return message.SerializeToString()


def prepare(root, name, features, splits, names=None, version="1.0.0"):
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(dictionary(features)))
    info = {
        "name": name,
        "version": version,
        "fileFormat": "array_record",
        "splits": [{"name": s} for s in splits],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    if names:
        (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
    for split, examples in splits.items():
        path = f"{folder}/{name}-{split}.array_record-00000-of-00001"
        writer = array_record.ArrayRecordWriter(path, "group_size:1")
        for example in examples:
            writer.write(serialise(example))
        writer.close()


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_images_with_class_names_become_captions(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
    examples = [{"image": png(p), "label": i % 2} for i, p in enumerate(pictures)]
    features = {"image": image_feature(28, 28, 1), "label": label_feature(2)}
    prepare(
        tmp_path,
        "fashion_mnist",
        features,
        {"train": examples, "test": examples[:2]},
        ["T-shirt/top", "Ankle boot"],
    )
    source = TfdsSource("fashion_mnist", data_dir=tmp_path, channels=1)
    assert source.modalities == ("text", "image") and source.class_names == ("t-shirt", "ankle boot")
    batch = source.batch(np.array([3, 0]))
    np.testing.assert_array_equal(batch["image"][..., 0], pictures[[3, 0]])
    assert list(batch["caption"]) == ["a photo of a ankle boot", "a photo of a t-shirt"]
    np.testing.assert_array_equal(batch["label"], [1, 0])
    assert "tensorflow" not in sys.modules
    options = DataOptions(data_dir=str(tmp_path), image_size=9, prompt="one {}", modalities=("text", "image"))
    test = open_source("tfds:fashion_mnist", "test", options)
    batch = test.batch(np.arange(2))
    assert len(test) == 2 and batch["image"].shape == (2, 9, 9, 3) and batch["caption"][1] == "one ankle boot"


def test_each_caption_of_coco_is_an_example(tmp_path):
    def example(i, k):
        picture = np.full((8, 12, 3), 50 * i, np.uint8)
        captions = [f" caption {i}.{j}".encode() for j in range(k)]
        return {
            "image": png(picture),
            "image/id": i,
            "captions/id": list(range(k)),
            "captions/text": captions,
        }

    captions = sequence(dictionary({"id": {"pythonClassName": FEATURES + "tensor_feature.Tensor",
                        "tensor": {"dtype": "int64", "encoding": "none", "shape": {}}},
                        "text": TEXT}))  # fmt: skip
    features = {"image": image_feature(-1, -1, 3), "captions": captions}
    prepare(
        tmp_path, "coco_captions", features, {"train": [example(0, 5)], "val": [example(1, 5), example(2, 3)]}
    )
    source = TfdsSource("coco_captions", "test", data_dir=tmp_path, image_size=4)
    assert len(source) == 10
    batch = source.batch(np.array([1, 4, 5, 8]))
    assert list(batch["caption"]) == ["caption 1.1", "caption 1.4", "caption 2.0", "caption 2.0"]
    assert batch["group"].tolist() == [0, 0, 1, 1] and batch["image"][:, 2, 2, 0].tolist() == [
        50,
        50,
        100,
        100,
    ]


def test_a_record_that_cannot_be_decoded_is_named(tmp_path):
    image = png(np.zeros((5, 5, 3), np.uint8))
    examples = [
        {"image": image, "text": b"fine"},
        {"image": b"no picture", "text": b"fine"},
        {"image": image, "text": "café".encode("latin-1")},
    ]
    prepare(tmp_path, "pictures", {"image": image_feature(5, 5, 3), "text": TEXT}, {"train": examples})
    source = TfdsSource("pictures", "train", data_dir=tmp_path)
    assert source.batch(np.array([0]))["caption"].tolist() == ["fine"]
    with pytest.raises(
        ValueError, match="tfds:pictures train: 'image' of record 1 .from 0. cannot be decoded"
    ):
        source.batch(np.array([0, 1]))
    with pytest.raises(ValueError, match="'text' of record 2 .from 0. cannot be decoded: .*0xe9"):
        source.batch(np.array([2]))


def test_speech_is_read_without_tensorflow_and_splits_are_sliced(tmp_path):
    waves = [np.random.default_rng(i).integers(-9000, 9000, 20 + i).tolist() for i in range(40)]
    examples = [
        {"speech": w, "text_normalized": f"line {i}".encode(), "text": b"x"} for i, w in enumerate(waves)
    ]
    features = {"speech": audio_feature(16000), "text": TEXT, "text_normalized": TEXT}
    prepare(tmp_path, "ljspeech", features, {"train": examples})
    train, test = (TfdsSource("ljspeech", s, data_dir=tmp_path, max_seconds=0.002) for s in ("train", "test"))
    assert (len(train), len(test)) == (38, 2)
    batch = test.batch(np.array([1, 0]))
    assert list(batch["caption"]) == ["line 39", "line 38"] and batch["audio"].shape == (2, 32)
    np.testing.assert_array_equal(batch["audio"][0], waves[39][:32])
    batch = train.batch(np.array([3]))
    assert batch["audio_mask"].sum() == 23
    np.testing.assert_array_equal(batch["audio"][0, :23], waves[3])
    assert "tensorflow" not in sys.modules


def test_lazily_decoded_audio_and_unknown_set(tmp_path):
    content = io.BytesIO()
    samples = np.arange(-50, 50, dtype=np.int16)
    soundfile.write(content, samples, 16000, format="FLAC", subtype="PCM_16")
    example = {"id": b"7", "sound": content.getvalue(), "kind": 1}
    features = {
        "id": TEXT,
        "sound": audio_feature(16000, lazyDecode=True, fileFormat="flac"),
        "kind": label_feature(3),
    }
    prepare(tmp_path, "noises", features, {"train": [example], "validation": [example]})
    source = TfdsSource("noises", "test", data_dir=tmp_path, max_seconds=0.01)
    assert source.modalities == ("text", "audio")
    batch = source.batch(np.array([0]))
    np.testing.assert_array_equal(batch["audio"][0, :100], samples)
    assert batch["caption"][0] == "1" and batch["label"].tolist() == [1]


def test_what_is_missing_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install tensorflow-cpu && tfds build mnist --data_dir="):
        TfdsSource("mnist", data_dir=tmp_path)
    features = {"image": image_feature(3, 3, 3), "label": label_feature(2)}
    example = {"image": png(np.zeros((3, 3, 3), np.uint8)), "label": 0}
    prepare(tmp_path, "mnist", features, {"train": [example]})
    prepare(tmp_path, "mnist", features, {"train": [example]}, version="1.10.0")
    assert (
        find_prepared("mnist", tmp_path).name == "1.10.0"
        and find_prepared("mnist:1.0.0", tmp_path).name == "1.0.0"
    )
    with pytest.raises(ValueError, match="no split 'test'; it has: train"):
        TfdsSource("mnist", "test", data_dir=tmp_path)
    with pytest.raises(ValueError, match="has no audio; it has: text, image"):
        TfdsSource("mnist", data_dir=tmp_path, modalities=("audio",))
    prepare(tmp_path, "speech_commands", features, {"train": [example]})
    with pytest.raises(ValueError, match="no feature for audio -> audio; its features are: image, label"):
        TfdsSource("speech_commands", data_dir=tmp_path)
    next((tmp_path / "mnist" / "1.0.0").glob("*array_record*")).unlink()
    with pytest.raises(FileNotFoundError, match="another file format"):
        TfdsSource("mnist:1.0.0", data_dir=tmp_path)


def test_adapters_and_class_names():
    assert {"mnist", "fashion_mnist", "cifar10", "oxford_flowers102", "coco_captions", "speech_commands",
            "librispeech",
            "ljspeech"} <= set(ADAPTERS)  # fmt: skip
    assert [clean_class_name(n) for n in ("Ankle boot", "T-shirt/top", "_silence_")] == [
        "ankle boot",
        "t-shirt",
        "silence",
    ]
