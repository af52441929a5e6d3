"""The same examples in every container give the same batches, and so the same training."""

import io
import json
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data.sources.test_tfds import TEXT, dictionary, image_feature, label_feature, serialise
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.pipeline import Loader

ROOT = pathlib.Path(__file__).parents[2]
SIDE, CLASSES = 16, ("bird", "cat", "dog")
FORMS = ("folder", "npz", "parquet", "arrow", "tar", "tfds")


def make_examples(count, seed):
    """``(images uint8 [count, SIDE, SIDE, 3], captions, labels)``: a class has a colour and a place in the image."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    images = rng.integers(0, 60, (count, SIDE, SIDE, 3), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * rng.integers(0, 3, 2)
        image[row : row + 6, column : column + 6, label] = 250
    captions = [f"a photo of a {CLASSES[label]}, number {k % 17}" for k, label in enumerate(labels)]
    return images, captions, labels


def to_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_folder(path, split, images, captions, labels):
    (path / split).mkdir(parents=True)
    rows = []
    for k, (image, text, label) in enumerate(zip(images, captions, labels, strict=True)):
        (path / split / f"{k:05d}.png").write_bytes(to_png(image))
        rows.append({"file_name": f"{k:05d}.png", "text": text, "label": CLASSES[label]})
    (path / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_npz(path, split, images, captions, labels):
    path.mkdir(exist_ok=True)
    names = np.array(CLASSES)
    caption = np.array(captions)
    np.savez(
        path / f"{split}.npz", image=images, caption=caption, label=labels.astype(np.int32), class_names=names
    )


def hugging_face(images, captions, labels):
    """The examples as a data set of Hugging Face's `datasets`."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(CLASSES)),
        }
    )
    pictures = [{"bytes": to_png(image), "path": None} for image in images]
    columns = {"image": pictures, "text": captions, "label": labels.tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(path, split, *examples):
    path.mkdir(exist_ok=True)
    hugging_face(*examples).to_parquet(path / f"{split}-00000-of-00001.parquet", batch_size=37)


def write_arrow(path, split, *examples):
    data_set = hugging_face(*examples)
    data_set.save_to_disk(path / split, num_shards=2)
    listed = sorted({*json.loads((path / "dataset_dict.json").read_text())["splits"], split}) if (
        path / "dataset_dict.json"
    ).exists() else [split]  # fmt: skip
    (path / "dataset_dict.json").write_text(json.dumps({"splits": listed}))


def write_tar(path, split, images, captions, labels):
    path.mkdir(exist_ok=True)
    (path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for shard, chosen in enumerate(np.array_split(np.arange(len(images)), 3)):
        with tarfile.open(path / f"{split}-{shard:03d}.tar", "w") as tar:
            for k in chosen:
                fields = {"png": to_png(images[k]), "txt": captions[k].encode(), "cls": b"%d" % labels[k]}
                for suffix, content in fields.items():
                    member = tarfile.TarInfo(f"{k:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_tfds(path, split, images, captions, labels):
    writer_module = pytest.importorskip("array_record.python.array_record_module")
    folder = path / "toy" / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    features = {"image": image_feature(SIDE, SIDE, 3), "text": TEXT, "label": label_feature(len(CLASSES))}
    (folder / "features.json").write_text(json.dumps(dictionary(features)))
    file = folder / "dataset_info.json"
    splits = json.loads(file.read_text())["splits"] if file.exists() else []
    info = {"name": "toy", "version": "1.0.0", "fileFormat": "array_record"}
    file.write_text(json.dumps(info | {"splits": [*splits, {"name": split}]}))
    (folder / "label.labels.txt").write_text("\n".join(CLASSES) + "\n")
    writer = writer_module.ArrayRecordWriter(
        f"{folder}/toy-{split}.array_record-00000-of-00001", "group_size:1"
    )
    for image, text, label in zip(images, captions, labels, strict=True):
        writer.write(serialise({"image": to_png(image), "text": text.encode(), "label": int(label)}))
    writer.close()


def write_all(root, train, test):
    """``--data`` and further flags of each form, whose files are written below ``root``."""
    specs = {}
    for form in FORMS:
        path = root / form
        for split, examples in (("train", train), ("test", test)):
            globals()[f"write_{form}"](path, split, *examples)
        specs[form] = (f"tfds:toy --data-dir {path}" if form == "tfds" else f"{form}:{path}").split()
    return specs


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("containers"), make_examples(101, 0), make_examples(23, 1))


def loader_of(words, split="train", **options):
    data_dir = words[2] if len(words) > 1 else None
    options = DataOptions(data_dir=data_dir, progress=False, **options)
    return Loader(open_source(words[0], split, options), batch_size=8, seed=3)


@pytest.mark.parametrize("form", FORMS[1:])
def test_batches_equal_those_of_the_folder(form, specs):
    for split in ("train", "test"):
        loaders = [loader_of(specs[name], split) for name in ("folder", form)]
        one, other = (loader.source for loader in loaders)
        assert one.class_names == other.class_names == CLASSES and one.modalities == other.modalities
        for _ in range(14):
            expected, batch = (next(loader) for loader in loaders)
            assert set(expected) == set(batch)
            for name in expected:
                np.testing.assert_array_equal(expected[name], batch[name], err_msg=name)
        for loader in loaders:
            loader.close()


@pytest.mark.parametrize("form", ("folder", "parquet", "arrow", "tar"))
def test_batches_that_are_decoded_each_time_equal_those_in_memory(form, specs):
    kept, read = loader_of(specs[form]), loader_of(specs[form], memory_limit_gib=1e-9, check_files=False)
    assert kept.source.in_memory and not read.source.in_memory
    for _ in range(14):
        expected, batch = next(kept), next(read)
        for name in expected:
            np.testing.assert_array_equal(expected[name], batch[name], err_msg=name)
    kept.close()
    read.close()


@pytest.mark.slow
def test_training_is_the_same(tmp_path):
    """2,000 examples, 50 steps of a contrastive run: equal losses to the last bit in all six containers."""
    specs = write_all(tmp_path, make_examples(2000, 0), make_examples(200, 1))
    losses = {}
    for form, words in specs.items():
        command = [
            sys.executable,
            "experiments/contrastive.py",
            "--data",
            *words,
            "--run-dir",
            tmp_path / "runs" / form,
        ]
        flags = "--modalities text image --steps 50 --batch-size 32 --gallery 50 --model.text.width 32"
        subprocess.run([*map(str, command), *flags.split()], cwd=ROOT, check=True, capture_output=True)
        lines = (tmp_path / "runs" / form / "metrics.jsonl").read_text().splitlines()
        losses[form] = [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]
    assert len(losses["folder"]) >= 5 and losses["folder"][-1] < losses["folder"][0]
    print(losses)
    assert all(values == losses["folder"] for values in losses.values())
