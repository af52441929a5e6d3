"""The table of what one can learn from trained runs: conditions, images and scores. Models are stubs."""

import dataclasses
import json
import pathlib
import types

import numpy as np
import pytest
from PIL import Image

from benchmarks import learning_from_generated as benchmark
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.train.command_line import run_script

SOURCE = ArraySource(
    {
        "image": np.zeros((3, 2, 2, 1), np.uint8),
        "label": np.array([1, 0, 1], np.int32),
        "caption": np.array(["a dog", "a cat", "the dog"], object),
    },
    ("cat", "dog"),
)
ALL = np.array([0, 1, 2, 0])


def picture(seed, side=2):
    return Image.fromarray(np.full((side, side, 3), seed, np.uint8))


class Stub(types.SimpleNamespace):
    """A model that remembers what it was asked for, and paints the seed."""

    path, side = pathlib.Path("runs/stub"), 2

    def synthesize(self, conditions, *, seed):
        self.conditions = conditions
        return [picture(seed % 251, self.side)] * len(conditions)

    def sample(self, *, classes, seed):
        return {"image": self.synthesize(classes, seed=seed)}

    def translate(self, target, *, text, count, seed):
        assert (target, count) == ("image", 1)
        return [[image] for image in self.synthesize(text, seed=seed)]


@pytest.mark.parametrize(
    "model,expected",
    [
        (Stub(kind="text_to_image_gan", reads_text=True, class_names=()), "captions"),
        (Stub(kind="text_to_image_flow", reads_text=False, class_names=("cat", "dog")), "classes"),
        (Stub(kind="vae", class_names=("cat", "dog")), "classes"),
        (Stub(kind="multimodal_vae"), "captions"),
    ],
    ids=lambda x: getattr(x, "kind", x),
)
def test_each_kind_of_run_generates_by_its_condition(model, expected, monkeypatch):
    monkeypatch.setattr(benchmark, "CHUNK", 3)
    conditions = benchmark.Conditions(SOURCE)
    images = benchmark.generate(model, conditions, ALL, seed=7)
    assert images.shape == (4, 2, 2, 3) and images.dtype == np.uint8
    assert images[0, 0, 0, 0] != images[3, 0, 0, 0]  # another chunk has other noise
    wanted = {"captions": ["a dog", "a cat", "the dog", "a dog"], "classes": ["dog", "cat", "dog", "dog"]}
    assert conditions.of(ALL, texts=expected == "captions") == wanted[expected]
    assert model.conditions == wanted[expected][3:]


@pytest.mark.parametrize(
    "model,message",
    [
        (Stub(kind="text_to_image_gan", reads_text=False, class_names=()), "from noise alone"),
        (Stub(kind="vae", class_names=()), "--model cvae"),
        (Stub(kind="contrastive"), "contrastive.py; needed are"),
    ],
)
def test_a_run_without_known_classes_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        benchmark.generate(model, benchmark.Conditions(SOURCE), ALL, seed=0)


def test_gray_images_have_three_channels_where_real_ones_have():
    gray, real = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1), np.zeros((5, 2, 2, 3), np.uint8)
    matched = benchmark.matches(gray, real, Stub.path)
    np.testing.assert_array_equal(matched, np.concatenate([gray] * 3, axis=-1))
    with pytest.raises(ValueError, match="stub generates images of"):
        benchmark.matches(gray, np.zeros((5, 3, 3, 3), np.uint8), Stub.path)


def test_the_table_has_a_row_for_real_images_and_one_for_each_run():
    metrics = {
        "learning/real_accuracy": 0.9, "learning/real_accuracy_sd": 0.01, "learning/real_accuracy_of_500": 0.7,
        "learning/generated_accuracy": 0.8, "learning/generated_accuracy_sd": 0.02,
        "learning/augmented_accuracy_of_500": 0.75, "learning/gain_of_500": 0.05, "learning/ratio_of_500": 4.0,
    }  # fmt: skip
    real, generated = benchmark.rows_of(metrics)
    assert real == {"accuracy": 0.9, "accuracy_sd": 0.01, "accuracy_of_500": 0.7}
    lines = benchmark.table([("real images", real), ("runs/a", generated)], [500]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["trained on", "accuracy", "with 500 real images", "gain", "ratio"]
    assert cells[2] == ["real images", "0.900 ± 0.010", "0.700", "", ""]
    assert cells[3] == ["runs/a", "0.800 ± 0.020", "0.750", "0.050", "4"]
    generated["caption_score"] = 0.5
    assert "captions |" in benchmark.table([("runs/a", generated)], [500]).splitlines()[0]


def test_the_options_of_classifiers_are_those_of_the_command():
    arguments = benchmark.Arguments((), examples=70, real_sizes=(20, 40), ratios=(3.0,), seeds=5, steps=9)
    options = arguments.learning
    for field in dataclasses.fields(options):
        if hasattr(arguments, field.name):
            assert getattr(options, field.name) == getattr(arguments, field.name), field.name
    assert options.generated == 120


@pytest.mark.parametrize(
    "flags,message",
    [
        ("", "RUNS: name the directory of at least one trained run"),
        ("nowhere", "nowhere does not exist"),
        ("nowhere --out .", "--out . is a directory"),
        ("nowhere --steps -1", "steps must be at least 1, got -1"),
        ("nowhere --steps 0", "steps must be at least 1, got 0"),
        ("nowhere --ratios nan", "ratios must be positive and finite"),
        ("nowhere --caption-steps -1", "caption_steps must be at least 0, got -1"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        run_script(benchmark.main, benchmark.Arguments, benchmark.__doc__, flags.split())
    error = capsys.readouterr().err.strip()
    assert exit.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_runs_of_several_seeds_stand_beside_runs_of_one(tmp_path, monkeypatch):
    """--run-seed chooses among several; a run of one seed alone has no other."""
    for name, config in {"zoo": {"seed": 2, "seeds": 3}, "one": {"seed": 0, "seeds": 1}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    zoo, one, exported = (tmp_path / name for name in ("zoo", "one", "exported"))
    monkeypatch.setattr(benchmark, "load", lambda run, seed: (run.name, seed))
    load = lambda runs, seed: dict(benchmark.load_models(runs, seed))
    assert load([zoo, one, exported], 3) == {"zoo": 3, "one": None, "exported": None}
    assert load([one, exported], 0) == {"one": 0, "exported": 0}  # checked by `load`
    assert load([one], None) == {"one": None}
    for seed in (None, 5):
        with pytest.raises(ValueError, match="--run-seed: .*zoo has the seeds 2, 3, 4: name one"):
            load([one, zoo], seed)


@pytest.mark.parametrize("flags,expected", [({}, None), ({"caption_steps": 3}, ("text", "image"))])
def test_captions_are_read_where_any_run_needs_them(flags, expected):
    """Whatever the order of the runs: a VAE of images reads none, a GAN may."""
    run = lambda *modalities: types.SimpleNamespace(
        metadata={"config": {"data": "shapes", "input": {"modalities": modalities, "image_size": 16}}}
    )
    arguments = benchmark.Arguments((), train_size=8, **flags)
    read = lambda *runs: benchmark.open_data(arguments, runs).train.modalities
    assert (
        read(run("image"), run("text", "image"))
        == read(run("text", "image"), run("image"))
        == ("text", "image")
    )
    assert read(run("image")) == (expected or ("image",))


def test_captioners_learn_from_scenes_of_all_numbers_of_objects(monkeypatch):
    """Classes are those of scenes with one object; a test of captions has the others too."""

    class Learning:
        def __init__(self, splits, steps):
            assert steps == 3

        def score(self, images, captions):
            assert len(images) == len(captions)
            self.captions = captions
            return float(images.mean())

    monkeypatch.setattr(benchmark, "CaptionLearning", Learning)
    arguments = benchmark.Arguments((), train_size=60, caption_steps=3)
    config = {"data": "shapes", "input": {"modalities": ("text", "image"), "image_size": 16}}
    splits = benchmark.open_data(arguments, [types.SimpleNamespace(metadata={"config": config})])
    writes, reads = Stub(kind="vae", class_names=("cat", "dog")), Stub(kind="multimodal_vae", side=16)
    make = lambda *models: benchmark.CaptionBenchmark(splits, models, steps=3, examples=50)
    with pytest.raises(ValueError, match="generates images of classes, and some examples have none"):
        make(reads, writes)
    captions = make(reads)
    assert captions.score(reads, 7) == 7.0 and captions.score_real() > 7
    assert reads.conditions == captions._learning.captions == captions.conditions.captions
    assert len(reads.conditions) == 50
    assert any(" and " in text or "," in text for text in reads.conditions)


def test_a_run_that_cannot_be_compared_is_found_before_anything_is_trained():
    """A good run comes first; each run generates one image of each class."""
    good = Stub(kind="vae", class_names=("cat", "dog"))
    conditions, real = benchmark.Conditions(SOURCE), np.zeros((3, 2, 2, 3), np.uint8)
    benchmark.check_models([good], conditions, real)
    assert good.conditions == ["cat", "dog"]
    for bad, message in (
        (Stub(kind="contrastive"), "is a run of contrastive.py"),
        (Stub(kind="vae", class_names=()), "from noise alone"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmark.check_models([good, bad], conditions, real)
    with pytest.raises(ValueError, match="the data set has"):
        benchmark.check_models([good], conditions, np.zeros((3, 4, 4, 3), np.uint8))


def test_a_class_without_test_images_is_null_in_json():
    accuracies = {"class": {"real": np.array([0.5, np.nan])}}
    assert benchmark.accuracies_to_json(accuracies) == {"class": {"real": [0.5, None]}}


def test_numbers_of_real_images_that_there_are_not_are_noted(capsys):
    benchmark.note_limit((500, 5000, 9000), 1000)
    assert capsys.readouterr().out.startswith("--real-sizes 5000 9000: there are 1000 training images")
    benchmark.note_limit((500, 1000), 1000)
    assert not capsys.readouterr().out
