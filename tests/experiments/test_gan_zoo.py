"""The comparison of generators: which trainings it starts, with which options. The trainings themselves are stubs."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.data.open import DataOptions
from xmodal_jax.models.flow.conditions import ClassCondition, NoCondition, SentenceCondition
from xmodal_jax.models.gan import conditions
from xmodal_jax.report.page import read_sections
from xmodal_jax.train.loop import NonFiniteError

ROOT = pathlib.Path(__file__).parents[2]
SECONDS_PER_STEP = {
    "hinge": 0.2,
    "lsgan": 0.3,
    "wgan_gp": 0.9,
    "flow_matching": 0.05,
    "stackgan": 0.5,
    "r3gan": 0.6,
}


@pytest.fixture(scope="module")
def zoo():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        spec = importlib.util.spec_from_file_location("zoo_script", ROOT / "experiments" / "gan_zoo.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def trainings(zoo, monkeypatch):
    """The configurations of the trainings that were started, by folder; each leaves a result at once."""
    started = {}

    def main(config):
        name = config.run_dir.name
        started[str(config.run_dir.relative_to(config.run_dir.parents[1]))] = config
        if name == "minimax":
            raise NonFiniteError("the loss is not finite")
        (config.run_dir / "generated").mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(config.run_dir / "generated" / "0.png")
        seconds = SECONDS_PER_STEP[name] * config.steps
        metrics = {
            "test/precision": 0.5,
            "learning/generated_accuracy": 0.75,
            "learning/real_accuracy": 0.875,
        }
        result = {"metrics": metrics, "timing": {"train": seconds}, "steps": config.steps}
        (config.run_dir / "result.json").write_text(json.dumps({**result, "resumed": 0, "diverged": []}))

    monkeypatch.setattr(zoo.text_to_image_gan, "main", main)
    monkeypatch.setattr(zoo.text_to_image_flow, "main", main)
    return started


def test_another_generator_trains_for_the_median_time_of_the_gans(zoo, trainings, tmp_path):
    """On the same data, whatever its place in the list; a diverged GAN has no time."""
    names = ("flow_matching", "hinge", "minimax", "wgan_gp", "lsgan")
    config = zoo.Config(
        objectives=names, run_dir=tmp_path / "run", steps=400, seed=3, data="shapes?data_seed=2"
    )
    zoo.main(config)
    run = lambda name: trainings[f"run/{name}"]
    assert list(trainings)[:4] == [f"run/{name}" for name in names[1:]]
    timing, flow = trainings["timing/flow_matching"], run("flow_matching")
    assert (timing.steps, timing.judge, timing.learning.steps) == (50, None, 0)
    assert flow.steps == 400 * 0.3 / 0.05 and run("lsgan").steps == 400
    for option in ("data", "input", "seed", "seeds", "batch_size", "judge", "learning"):
        assert getattr(flow, option) == getattr(run("lsgan"), option), option
    assert isinstance(flow.model.condition, SentenceCondition)
    assert flow.model.condition.text == run("lsgan").model.condition.text
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["flow_matching/steps"] == 2400 and metrics["minimax/diverged"] == 3
    np.testing.assert_allclose(metrics["flow_matching/train_seconds"], metrics["lsgan/train_seconds"])
    (page,) = [x for title, x in read_sections(tmp_path / "run" / "report.html").items() if "judge" in title]
    for text in ("flow_matching", "2400", "training in s", "accuracy learned from it", "0.75", "0.875"):
        assert text in page, text


def test_at_equal_time_all_gans_train_as_long_as_the_first(zoo, trainings, tmp_path):
    names = ("hinge", "wgan_gp", "flow_matching", "stackgan")
    zoo.main(zoo.Config(objectives=names, equal="time", run_dir=tmp_path / "run", steps=450))
    assert [trainings[f"run/{name}"].steps for name in names[:3]] == [450, 100, 1800]
    stackgan = trainings["run/stackgan"]  # two stages of equal length, in the time of 450 steps of hinge
    assert stackgan.steps == stackgan.first_stage_steps == 90
    assert trainings["timing/stackgan"].steps == 25 and trainings["timing/wgan_gp"].judge is None
    assert "timing/hinge" not in trainings


def test_a_diverged_gan_is_no_measure_of_equal_time(zoo, trainings, tmp_path):
    """The first one whose time is known is."""
    names = ("minimax", "hinge", "wgan_gp")
    zoo.main(zoo.Config(objectives=names, equal="time", run_dir=tmp_path / "run", steps=450))
    assert [trainings[f"run/{name}"].steps for name in names[1:]] == [450, 100]


@pytest.mark.parametrize("names", [("hinge", "lsgan", "hinge"), ("hinges",), ()])
def test_each_objective_is_given_once(zoo, names):
    with pytest.raises(ValueError, match=r"--objectives: (\['hinge'\]|\['hinges'\]|none) given.*each once"):
        zoo.Config(objectives=names)


def test_r3gan_has_learning_rates_of_its_own(zoo, trainings, tmp_path):
    zoo.main(zoo.Config(objectives=("hinge", "r3gan"), run_dir=tmp_path / "run", steps=10))
    rates = lambda name: [
        getattr(trainings[f"run/{name}"].optimizer, part).learning_rate
        for part in ("discriminator", "generator")
    ]
    assert rates("hinge") == [4e-4, 2e-4] and rates("r3gan") == [1e-3, 1e-3]
    ema = [trainings[f"run/{name}"].optimizer.generator.ema for name in ("hinge", "r3gan")]
    assert ema == [0.99, 0.99]


def test_a_finished_comparison_is_not_trained_again(zoo, trainings, tmp_path):
    config = dict(objectives=("hinge", "flow_matching"), run_dir=tmp_path / "run", steps=40)
    zoo.main(zoo.Config(**config))
    assert trainings["run/flow_matching"].steps == 160 and trainings["timing/flow_matching"].steps == 40
    trainings.clear()
    zoo.main(zoo.Config(**config, resume=True))
    assert not trainings


def test_without_a_gan_there_is_no_time_to_be_equal_to(zoo, trainings, tmp_path):
    zoo.main(zoo.Config(objectives=("flow_matching",), run_dir=tmp_path / "run", steps=70))
    assert trainings["run/flow_matching"].steps == 70


@pytest.mark.parametrize(
    "condition,expected", [(conditions.ClassCondition, ClassCondition), (conditions.NoCondition, NoCondition)]
)
def test_a_flow_takes_the_condition_of_the_gans(zoo, condition, expected):
    """Without one there is no guidance, which would be refused."""
    _, options = zoo.OTHERS["flow_matching"]
    model = options(zoo.Config(model=zoo.gans.GANConfig(condition=condition())))["model"]
    assert isinstance(model.condition, expected)
    assert (model.sampler.guidance == 1.0) == (expected is NoCondition)


def test_images_that_do_not_fit_are_found_before_any_objective_is_trained(zoo, trainings, tmp_path):
    """30 pixels are two times 15, which cannot be halved again. Their size is known from the data alone."""
    images = np.zeros((30, 30, 30, 3), np.uint8)
    np.savez(tmp_path / "data.npz", image=images, caption=np.array([f"a {k}" for k in range(30)]))
    config = dict(
        data=f"npz:{tmp_path / 'data.npz'}", objectives=("hinge", "stackgan"), run_dir=tmp_path / "run"
    )
    with pytest.raises(ValueError, match="15 x 15 pixels cannot be halved"):
        zoo.main(zoo.Config(**config))
    assert not trainings
    zoo.main(zoo.Config(**config | {"objectives": ("hinge",)}))


def test_objectives_that_do_not_fit_are_found_before_any_is_trained(zoo, tmp_path):
    with pytest.raises(ValueError, match="31 x 31 pixels are no multiple of 2"):
        zoo.Config(input=DataOptions(image_size=31))
    for options in (dict(first_stage=tmp_path), dict(first_stage_steps=3)):
        with pytest.raises(ValueError, match="is of text_to_image_gan.py: a comparison trains both stages"):
            zoo.Config(objectives=("stackgan",), **options)
    zoo.Config(model=zoo.gans.GANConfig(condition=conditions.NoCondition()))
