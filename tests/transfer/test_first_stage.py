"""The first stage of a GAN: trained within a run, resumed there, or read from another run."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from tests.models.gan.test_stackgan import OPTIMIZER, STACK, TWO_STAGES
from tests.support import assert_trees_identical
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.data.views import TransformedSource
from xmodal_jax.inference.loading import load
from xmodal_jax.models.gan import GANConfig, NoCondition, SentenceCondition, make_gan
from xmodal_jax.nets.encoders import MLPEncoderConfig, ViTConfig
from xmodal_jax.nets.gan import MLPGeneratorConfig
from xmodal_jax.report.comparison import read_run
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import Preempted, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.transfer import first_stage as stages
from xmodal_jax.transfer.frozen import FrozenNetworks, FrozenNetworksConfig, load_frozen_networks

DENSE = dataclasses.replace(
    TWO_STAGES,
    generator=dataclasses.replace(STACK, first=MLPGeneratorConfig(noise=5, width=8, depth=1, conditioning=3)),
    discriminator=MLPEncoderConfig(width=8, depth=1),
)  # fmt: skip
SIZES = dict(shape=(16, 16, 3), classes=3)
SGD = Optimizer(name="sgd", learning_rate=0.1)
NAMES = ("a", "b", "c")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FrozenNetworksConfig):
    model: GANConfig = DENSE
    optimizer: GANOptimizer = OPTIMIZER


def make_source(n=16):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
    return ArraySource({"image": images, "label": np.arange(n, dtype=np.int32) % 3}, class_names=NAMES)


def train(folder, *, stopped=False, **options):
    """Both stages; ``stopped``: SIGTERM comes in the training of the second, after two steps."""
    config = Config(steps=4, batch_size=8, eval_every=2, run_dir=folder, **options)
    config, frozen = load_frozen_networks(config)
    metadata = {"kind": "text_to_image_gan", "class_names": NAMES, **SIZES}
    loader, timer = Loader(make_source(), batch_size=8, seed=config.seed), Timer()
    stop = lambda params: os.kill(os.getpid(), signal.SIGTERM) or {}
    evaluate = stop if stopped else lambda params: {}
    with Run.create(folder, config, resume=config.resume, tensorboard=False) as run:
        try:
            networks, metadata = frozen.prepare_networks(loader, SIZES, run, timer, metadata)
            gan = make_gan(config.model, **SIZES, **networks)
            result = fit(
                gan, loader, config, config.optimizer, run, timer, evaluate=evaluate, metadata=metadata
            )
        finally:
            loader.close()
            timer.clock.close()
    return networks["first_stage"], result


def test_both_stages_are_one_run_that_resumes_in_either(tmp_path, monkeypatch):
    """Stopped in the first stage, then in the second, it ends as one that was not; its parameters are those that load,
    and the first stage is a run that can be used alone, and as the first stage of another run."""
    whole, expected = train(tmp_path / "whole", checkpoint_every=2)
    real_fit = stages.fit

    def stopping_fit(*args, **options):
        """The first stage's training, which gets SIGTERM before its first step and stops after that."""
        with monkeypatch.context() as patch:
            patch.setattr(
                "xmodal_jax.train.loop.TrainingLoop.evaluate", lambda loop: os.kill(os.getpid(), 15) or False
            )
            return real_fit(*args, **options)

    monkeypatch.setattr(stages, "fit", stopping_fit)
    with pytest.raises(Preempted):
        train(tmp_path / "stopped", checkpoint_every=2)
    assert restore_run(tmp_path / "stopped" / "first_stage").step == 1
    monkeypatch.setattr(stages, "fit", real_fit)
    with pytest.raises(Preempted):
        train(tmp_path / "stopped", stopped=True, checkpoint_every=2, resume=True)
    assert restore_run(tmp_path / "stopped").step == 2
    again, found = train(tmp_path / "stopped", checkpoint_every=2, resume=True)
    assert_trees_identical(whole.params, again.params)
    assert_trees_identical(expected.state, found.state)

    params = restore_run(tmp_path / "stopped").params
    jax.tree.map(np.testing.assert_array_equal, params["frozen"]["first_stage"], whole.params)
    model = load(tmp_path / "stopped")
    assert [x.size for x in model.synthesize(["a", "c"], seed=1)] == [(16, 16)] * 2
    assert load(tmp_path / "stopped" / "first_stage").synthesize(["a"])[0].size == (8, 8)

    other, options = tmp_path / "other", dict(model=with_default_first(), checkpoint_every=2)
    first, _ = train(other, first_stage=tmp_path / "stopped" / "first_stage", **options)
    assert not (other / "first_stage").exists()
    assert_trees_identical(jax.tree.map(np.asarray, first.params), whole.params)
    assert load(other).synthesize(["b"], seed=2)[0].size == (16, 16)
    with pytest.raises(ValueError, match="--first-stage: .* has two stages itself: give a run with one"):
        train(tmp_path / "third", first_stage=tmp_path / "stopped", **options)


@pytest.mark.slow
def test_each_of_two_seeds_has_the_first_stage_that_it_would_have_alone(tmp_path):
    # Not by Adam, which turns the rounding of a gradient near 0 into a step of the size of its learning rate.
    options = dict(checkpoint_every=4, seed=5, optimizer=GANOptimizer(discriminator=SGD, generator=SGD))
    together, results = train(tmp_path / "together", seeds=2, **options)
    assert together.by_seed
    for k in (0, 1):
        alone, result = train(tmp_path / str(k), **{**options, "seed": 5 + k})
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, jax.tree.map(lambda x, k=k: x[k], together.params), alone.params)
        jax.tree.map(close, results.params[k], result.params[0])
        kept = restore_run(tmp_path / "together", seed=5 + k).params
        jax.tree.map(np.testing.assert_array_equal, kept, jax.tree.map(np.asarray, results.params[k]))
    first = [p["frozen"]["first_stage"]["generator"]["net"]["pixels"]["kernel"] for p in results.params]
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_images_of_the_first_stage_are_means_of_squares_and_the_rest_stays():
    source = make_source(5)
    images = source.arrays["image"]
    small = stages.shrink_images(source.batch(np.array([3, 1])), 4)
    expected = [
        [[images[3, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, c].mean() for c in range(3)] for j in range(4)]
        for i in range(4)
    ]
    np.testing.assert_array_equal(small["image"][0], np.round(np.float32(expected)).astype(np.uint8))
    np.testing.assert_array_equal(small["label"], [0, 1])
    in_memory, read = stages._shrunk_source(source, 4), TransformedSource(source, dict)
    assert in_memory.arrays is not None and stages._shrunk_source(read, 4).arrays is None
    for one in (in_memory, stages._shrunk_source(read, 4)):
        np.testing.assert_array_equal(one.batch(np.array([3, 1]))["image"], small["image"])
        assert one.class_names == NAMES


def test_flags_that_nothing_would_use_are_refused(tmp_path):
    plain = dataclasses.replace(DENSE, generator=DENSE.generator.first)
    for options, message in (
        (dict(model=plain, first_stage=tmp_path), "--first-stage is of a generator in two stages"),
        (dict(model=plain, first_stage_steps=3), "--first-stage-steps is of a generator in two stages"),
        (dict(first_stage_steps=0), "--first-stage-steps must be at least 1, got 0"),
        (dict(first_stage=tmp_path, first_stage_steps=3), "--first-stage gives a trained one: leave one out"),
        (dict(first_stage=tmp_path), "--model.generator.first is that of the run"),
        (
            dict(model=with_default_first(), first_stage=tmp_path / "none"),
            "--first-stage: .*none does not exist",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_frozen_networks(Config(**options))


def with_default_first():
    return dataclasses.replace(DENSE, generator=type(STACK)(scale=2))


def test_a_first_stage_has_the_conditions_of_the_second(tmp_path):
    """The same tokenizer as other frozen networks, the same classes, and images of the right size."""
    words, others = (train_tokenizer(texts, "word") for texts in (["a red star"], ["a blue ring"]))
    stage = stages.FirstStage(stages.first_stage_config(DENSE), (8, 8, 3), {})
    first = stages.LoadedFirstStage(tmp_path, stage, TokenizeTransform(words, 6), "none", NAMES)
    networks = FrozenNetworks(Config(), None, None, first)
    assert networks.tokenize is first.tokenize
    assert first.check_tokens(TokenizeTransform(words, 6), None) is first.tokenize
    for tokenize, tokenizer in (
        (TokenizeTransform(others, 6), None),
        (TokenizeTransform(words, 7), None),
        (None, others),
    ):
        with pytest.raises(ValueError, match="different tokenizers or lengths of text"):
            first.check_tokens(tokenize, tokenizer)
    loader, run = Loader(make_source(), batch_size=8, seed=0), Run.create(tmp_path / "run", Config())
    prepare = lambda sizes, names: stages.prepare_first_stage(
        Config(), first, loader, sizes, run, Timer(), metadata={"class_names": names}, text=None
    )
    assert prepare(SIZES, NAMES) is stage
    with pytest.raises(ValueError, match="trained with the classes a, b, c, and the data have a, b"):
        prepare(SIZES, ("a", "b"))
    with pytest.raises(ValueError, match=r"images of \(8, 8, 3\) .* needed are \(16, 16, 3\)"):
        prepare({**SIZES, "shape": (32, 32, 3)}, NAMES)
    loader.close()
    run.close()
    assert stages.first_stage_from_json(None) is None
    again = stages.first_stage_from_json(stages.first_stage_to_json(stage))
    assert again == stage._replace(params=None)


def test_a_preset_of_two_stages_takes_as_many_steps_in_all(tmp_path):
    """Half of them each; a comparison counts both. A first stage is not given, nor the number of its steps."""
    config = Config(steps=7, model=dataclasses.replace(DENSE, generator=DENSE.generator.first))
    options = stages.preset_options(config, "stackgan")
    assert (options["steps"], options["first_stage_steps"]) == (4, 3)
    assert options["model"].generator.refines_images
    assert stages.preset_options(config, "hinge").keys() == {"model"}
    for flag in (dict(first_stage=tmp_path), dict(first_stage_steps=3)):
        with pytest.raises(ValueError, match="--first-stage.* is of text_to_image_gan.py"):
            stages.preset_options(dataclasses.replace(config, **flag), "hinge")
    sized = dataclasses.replace(config, input=DataOptions(image_size=31))
    assert stages.preset_options(sized, "hinge").keys() == {"model"}
    with pytest.raises(ValueError, match="31 x 31 pixels are no multiple of 2"):
        stages.preset_options(sized, "stackgan")
    (tmp_path / "first_stage").mkdir()
    (tmp_path / "first_stage" / "config.json").write_text('{"steps": 3}')
    (tmp_path / "result.json").write_text(
        '{"metrics": {}, "steps": 4, "resumed": 0, "diverged": [], "timing": {"train": 14.0}}'
    )
    values = read_run(tmp_path).values
    assert (values["steps"], values["step_ms"], values["train_seconds"]) == (7, 2000.0, 14.0)


def test_mistakes_of_the_second_stage_are_found_before_the_first_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "fit", lambda *args, **options: pytest.fail("the first stage is trained"))
    patches = dataclasses.replace(DENSE, discriminator=ViTConfig(patch=5, width=8, depth=1, heads=1))
    with pytest.raises(ValueError, match="patch"):
        train(tmp_path / "patches", model=patches)


def test_a_first_stage_of_captions_needs_captions_and_one_of_noise_no_classes(tmp_path):
    loader, run = Loader(make_source(), batch_size=8, seed=0), Run.create(tmp_path / "run", Config())

    def prepare(condition):
        """The first stage of a run with this condition, whose data had other classes."""
        generator = MLPGeneratorConfig(noise=5, width=8, depth=1)
        config = dataclasses.replace(
            stages.first_stage_config(DENSE), generator=generator, condition=condition
        )
        first = stages.LoadedFirstStage(
            tmp_path, stages.FirstStage(config, (8, 8, 3), {}), None, "none", ("other",)
        )
        return stages.prepare_first_stage(
            Config(), first, loader, SIZES, run, Timer(), metadata={"class_names": NAMES}, text=None
        )

    assert prepare(NoCondition()).shape == (8, 8, 3)
    with pytest.raises(ValueError, match="generates images from captions, and the data have none"):
        prepare(SentenceCondition(auxiliary_weight=0.0))
    loader.close()
    run.close()
    networks = FrozenNetworks(Config(), None, None, None)
    assert networks.fit_tokenizer(make_source(), BadExamples()) is None


def test_a_file_of_the_first_stage_that_is_no_json_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "load_first_stage", lambda run: json.loads("{"))
    with pytest.raises(ValueError, match="--first-stage: Expecting property name"):
        load_frozen_networks(Config(model=with_default_first(), first_stage=tmp_path))
