"""The embeddings of a whole data set as an index on disk."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.inference.runs import COLOURS, coloured_pictures
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.inference import ContrastiveModel, Index, embed_data, load
from xmodal_jax.inference.embed_data import (
    ALL_SPLITS,
    describe_data,
    open_for_model,
    open_for_report,
    open_splits_for_model,
    spread_over_devices,
)
from xmodal_jax.inference.inputs import InputFormat

COUNT = 23


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures of all sizes, with two captions for the first."""
    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for k in range(COUNT):
        pixels = np.zeros((9 + k % 3, 8 + k % 5, 3), np.uint8)
        pixels[..., k % 3] = rng.integers(100, 255, pixels.shape[:2])
        Image.fromarray(pixels).save(folder / f"{k:02}.png")
        caption = [COLOURS[k % 3], "a thing"] if k == 0 else COLOURS[k % 3]
        lines.append(json.dumps({"file_name": f"{k:02}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def embed(
    model, pictures, folder, *, on_bad_example="stop", process=(0, 1), announce=lambda _: None, **options
):
    """Embeds the pictures in shards of eight, and returns the collector of bad examples."""
    spec, data = f"folder:{pictures.parent}", DataOptions(on_bad_example=on_bad_example, progress=False)
    bad_examples = BadExamples(on_bad_example)
    source = open_for_model(model, spec, "train", data, bad_examples)
    embed_data.embed_data(
        model, source, folder,
        data=describe_data(spec, "train", data), bad_examples=bad_examples,
        batch_size=4, shard_size=7, process=process, progress=False, announce=announce, **options,
    )  # fmt: skip
    return bad_examples


def assert_equal(a, b, atol=0.0):
    """Whether two indexes are of the same examples and embeddings."""
    assert a.names == b.names and a.modalities == b.modalities
    np.testing.assert_array_equal(a.examples, b.examples)
    for modality in a.modalities:
        np.testing.assert_allclose(a.embeddings[modality], b.embeddings[modality], atol=atol)
        np.testing.assert_array_equal(a.has(modality), b.has(modality))


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_embeddings_are_those_of_the_files(model, pictures, tmp_path, format):
    embed(model, pictures, tmp_path / "index", format=format)
    index = Index.load(tmp_path / "index")
    assert len(index) == COUNT + 1 and len(list((tmp_path / "index").glob("shard-*.json"))) == 3
    assert index.names[:3] == ["train/00.png", "train/00.png", "train/01.png"]
    files = [pictures.parent / name for name in index.names]
    has = index.has("image")
    assert has.tolist() == [True, False] + [True] * (COUNT - 1)  # a picture with two captions counts once
    np.testing.assert_allclose(index.embeddings["image"][has], model.embed(images=files)[has], atol=1e-6)
    np.testing.assert_allclose(
        index.embeddings["text"][1:3], model.embed(texts=["a thing", "green"]), atol=1e-6
    )
    assert model.search(index, texts=["blue"], modality="image", k=7).indices[0].tolist() != []
    found = model.search(index, images=files[-1], modality="image", k=1)
    assert found.names == [["train/22.png"]]


def test_what_was_stopped_is_gone_on_with(model, pictures, tmp_path, monkeypatch):
    embed(model, pictures, tmp_path / "whole")
    write, written = embed_data.write_shard, []

    def stop_at_the_second(folder, number, *arguments):
        """Writes the embeddings of the second shard and then fails, as a program that is killed."""
        if number == 1:
            (folder / "shard-00001.safetensors.part").write_bytes(b"cut")
            (folder / "shard-00001.safetensors").write_bytes(b"without its summary")
            raise KeyboardInterrupt
        written.append(number)
        write(folder, number, *arguments)

    monkeypatch.setattr(embed_data, "write_shard", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed(model, pictures, tmp_path / "index")
    before = (tmp_path / "index" / "shard-00000.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="is not finished: shard 1 of 0..2"):
        Index.load(tmp_path / "index")
    monkeypatch.setattr(embed_data, "write_shard", write)
    said = []
    embed(model, pictures, tmp_path / "index", announce=said.append)
    assert said == ["1 of 3 shards are there already"]
    assert (tmp_path / "index" / "shard-00000.json").stat().st_mtime_ns == before
    assert_equal(Index.load(tmp_path / "index"), Index.load(tmp_path / "whole"))


def test_a_damaged_shard_is_embedded_again(model, pictures, tmp_path):
    embed(model, pictures, tmp_path / "index")
    path = tmp_path / "index" / "shard-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = []
    embed(model, pictures, tmp_path / "index", announce=said.append)
    assert path.read_bytes() == content and "shard-00002.safetensors holds other content" in said[0]


def test_processes_share_the_work(model, pictures, tmp_path):
    embed(model, pictures, tmp_path / "whole")
    for process in ((0, 2), (1, 2)):
        embed(model, pictures, tmp_path / "shared", process=process)
        if process[0] == 0:
            assert not (tmp_path / "shared" / "shard-00001.json").exists()
    assert_equal(Index.load(tmp_path / "shared"), Index.load(tmp_path / "whole"), atol=1e-6)


def test_devices_share_each_batch(run, model, pictures, tmp_path):
    spread = load(run)
    spread_over_devices(spread)
    embed(spread, pictures, tmp_path / "eight")
    embed(model, pictures, tmp_path / "one")
    assert spread.digest == model.digest
    assert_equal(Index.load(tmp_path / "eight"), Index.load(tmp_path / "one"), atol=1e-6)


def test_bad_examples_are_left_out_and_listed(model, pictures, tmp_path):
    embed(model, pictures, tmp_path / "whole")
    for k in (6, 7, 22):  # across the border of two shards, and the last one
        (pictures / f"{k:02}.png").write_bytes(b"no picture")
    with pytest.raises(BadExampleError, match=r"metadata.jsonl:7: .*06.png"):
        embed(model, pictures, tmp_path / "stopped")
    bad = embed(model, pictures, tmp_path / "index", on_bad_example="skip")
    assert sorted(b.line for b in bad.items) == [7, 8, 23]
    whole, index = Index.load(tmp_path / "whole"), Index.load(tmp_path / "index")
    good = [k for k, name in enumerate(whole.names) if name[-6:] not in ("06.png", "07.png", "22.png")]
    assert index.names == [whole.names[k] for k in good] and index.examples.tolist() == good
    np.testing.assert_allclose(index.embeddings["image"], whole.embeddings["image"][good], atol=1e-6)
    again = embed(model, pictures, tmp_path / "index", on_bad_example="skip")  # nothing is left to do
    listed = (tmp_path / "index" / "bad_examples.jsonl").read_text().splitlines()
    assert len(again) == len(listed) == 3


def test_another_index_is_not_overwritten(run, model, pictures, tmp_path):
    embed(model, pictures, tmp_path / "index")
    other = load(run)
    other.params = {**other.params, "loss": {"log_scale": np.float32(0)}}
    with pytest.raises(ValueError, match="holds another index, whose model is"):
        embed(other, pictures, tmp_path / "index")
    with pytest.raises(ValueError, match="whose format is 'safetensors' and not 'parquet'"):
        embed(model, pictures, tmp_path / "index", format="parquet")
    with pytest.raises(FileExistsError, match="holds files but no index"):
        embed(model, pictures, pictures)


def test_one_program_at_a_time_writes(model, pictures, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    code = "import sys, pathlib; from xmodal_jax.train import owner; owner.acquire(pathlib.Path(sys.argv[1])); print()"
    other = [sys.executable, "-c", f"{code}; sys.stdout.flush(); input()", str(folder)]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        program.stdout.readline()
        with pytest.raises(FileExistsError, match="another program embeds into it; wait .* --output"):
            embed(model, pictures, folder)
        program.kill()
    embed(model, pictures, folder)  # what a killed program leaves is no obstacle
    assert len(Index.load(folder)) == COUNT + 1 and not list(folder.glob("lock*"))


def test_data_are_opened_in_the_format_of_the_run(model, pictures):
    spec, bad_examples = f"folder:{pictures.parent}", BadExamples()
    source = open_for_model(model, spec, "train", DataOptions(progress=False), bad_examples)
    assert source.modalities == ("text", "image")
    assert source.batch(np.arange(2))["image"].shape == (2, 8, 8, 3)
    narrow = source.batch(np.array([6]))["image"][0]  # 11 x 8 pixels
    assert not narrow[:, 0].any() and narrow[:, 4].any()  # padded, as the run was trained
    words = open_for_model(model, f"{spec}?modalities=text", "train", DataOptions(), bad_examples)
    assert words.modalities == ("text",)
    for options, message in (
        ({"image_size": 16}, r"--image-size 16: inputs are brought into the format .* \(8\): leave it out"),
        ({"missing": 0.5}, "--missing is an option of training"),
        ({"modalities": ("audio",)}, "the run has text, image, not audio"),
    ):
        with pytest.raises(ValueError, match=message):
            open_for_model(model, spec, "train", DataOptions(**options), bad_examples)
    with pytest.raises(ValueError, match="has none of the run's modalities text, image"):
        (pictures / "metadata.jsonl").write_text('{"audio_file_name": "a.wav"}')
        open_for_model(model, spec, "train", DataOptions(), bad_examples)


def test_what_is_shown_is_larger_and_may_be_gone(model, pictures, tmp_path):
    embed(model, pictures, tmp_path / "index")
    index, bad_examples = Index.load(tmp_path / "index"), BadExamples()
    source = open_for_report(model, index, bad_examples)
    assert source.batch(np.array([3]))["image"].shape == (1, 160, 160, 3) and not bad_examples.remarks
    lines = (pictures / "metadata.jsonl").read_text().splitlines()
    (pictures / "metadata.jsonl").write_text("\n".join(lines[1:]))
    assert open_for_report(model, index, bad_examples) is None
    pictures.parent.rename(tmp_path / "gone")
    assert open_for_report(model, index, bad_examples) is None
    assert "has changed since it was embedded" in bad_examples.remarks[0]
    assert "shows names alone, because the data set folder:" in bad_examples.remarks[1]
    assert open_for_report(model, dataclasses.replace(index, data=None), bad_examples) is None


def test_all_splits_are_embedded_and_shown(model, pictures, tmp_path):
    """Of a folder without splits too, of which a training would hold out a part."""
    for k, folder in enumerate((pictures, pictures.parent)):
        if k == 1:
            pictures.rename(tmp_path / "undivided")
            folder = tmp_path / "undivided"
        else:
            test = pictures.parent / "test"
            test.mkdir()
            Image.new("RGB", (8, 8), "#0000e0").save(test / "x.png")
            (test / "metadata.jsonl").write_text('{"file_name": "x.png"}')  # without a caption
            folder = pictures.parent
        spec, options = f"folder:{folder}", DataOptions(progress=False)
        source = open_for_model(model, spec, ALL_SPLITS, options, BadExamples())
        names = source.example_names()
        if k == 0:
            assert names[-1] == "test/x.png" and len(source) == COUNT + 2
            assert not source.presence()["text"][-1] and source.presence()["image"].all()
        else:
            assert sorted(set(names)) == [f"{k:02}.png" for k in range(COUNT)]
        embed_data.embed_data(
            model, source, tmp_path / f"all-{k}", data=describe_data(spec, ALL_SPLITS, options),
            bad_examples=BadExamples(), progress=False,
        )  # fmt: skip
        index = Index.load(tmp_path / f"all-{k}")
        assert list(index.names) == names
        shown = open_for_report(model, index, BadExamples())
        assert shown.batch(np.array([0, len(names) - 1]))["image"].shape == (2, 160, 160, 3)


@pytest.mark.slow  # two processes, about 10 s
def test_a_killed_program_loses_no_shard(run, model, pictures, tmp_path):
    """Killed by SIGKILL when the first shard is written; the same command goes on, and the index is the same."""
    root = pathlib.Path(__file__).parents[2]
    command = [
        sys.executable,
        "experiments/embed.py",
        str(run),
        f"folder:{pictures.parent}",
        "--split",
        "train",
    ]
    command += [
        "--output",
        str(tmp_path / "index"),
        "--batch-size",
        "1",
        "--shard-size",
        "1",
        "--no-progress",
    ]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "index").glob("shard-*.json")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("shard-*.json")}
    assert 0 < len(finished) < COUNT + 1
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    embed(model, pictures, tmp_path / "whole")
    assert_equal(Index.load(tmp_path / "index"), Index.load(tmp_path / "whole"), atol=1e-6)


def test_all_modalities_of_the_run_are_evaluated(tmp_path):
    """Those that the data set has only if it is asked for them, such as a second language, too."""
    source = coloured_pictures(6)
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        rows = []
        for k, image in enumerate(source.arrays["image"]):
            Image.fromarray(image).save(tmp_path / name / f"{k}.png")
            rows.append({"file_name": f"{k}.png", "text": "red", "text_es": "rojo"})
        (tmp_path / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    metadata = {"config": {"input": {}}, "shapes": {"image": (8, 8, 3)}}
    model = object.__new__(ContrastiveModel)  # of which only the format is needed
    model.metadata, model.format = metadata, InputFormat.from_metadata(metadata, ("text", "text_es", "image"))
    splits = open_splits_for_model(
        model, f"folder:{tmp_path}", DataOptions(progress=False), BadExamples("skip")
    )
    assert set(splits.tests["test"].modalities) == {"text", "text_es", "image"}
