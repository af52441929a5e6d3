"""Recipes: the settings that the size of a training set decides, below the flags that a user gives."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.hard_negatives import HardNegatives
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import Splits, fit_transforms
from xmodal_jax.experiment import choose_recipe, make_loader
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.nets.encoders import ConvNetConfig, PretrainedEncoderConfig, TextTransformerConfig, ViTConfig
from xmodal_jax.preprocess.image import AugmentConfig
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import ContrastiveRecipeFlags, RecipeFlags, StartConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.recipes import (
    CONTRASTIVE_RECIPES,
    RECIPES,
    Recipe,
    describe_training_set,
    is_mirror_safe,
    resolve_recipe,
)
from xmodal_jax.train.run import Run, from_json, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig, ContrastiveRecipeFlags):
    """An experiment with recipes."""

    steps: int = 640
    batch_size: int = 64
    eval_every: int = 160
    model: ContrastiveConfig = ContrastiveConfig()
    """Towers."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-3)
    """Update rule."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cached(Config):
    """An experiment that computes the features of its frozen encoder once."""

    cache_features: bool = True


def make_source(examples, caption="a red car"):
    """A source of ``examples`` tiny images with captions."""
    captions = np.array([caption] * examples, object)
    return ArraySource({"image": np.zeros((examples, 1, 1, 3), np.uint8), "caption": captions})


def resolve(words, examples=450, validation=60, caption="a red car"):
    """The configuration that a command line and the data give, and the line on screen."""
    config = parse(Config, None, ["--data", "folder:photos", *words.split()])
    return resolve_recipe(config, make_source(examples, caption), make_source(validation))


@pytest.mark.parametrize(
    ("examples", "batch_size", "steps"),
    [(30, 16, 188), (3, 2, 150), (1, 64, 100), (500, 50, 1000), (500, 100, 500), (5, 1, 500), (10, 256, 100)],
)
def test_steps_are_epochs_within_limits(examples, batch_size, steps):
    recipe = Recipe(max_examples=10, epochs=100, min_steps=100, max_steps=1000)
    assert recipe.steps(examples, batch_size) == steps


def test_thirty_photos_are_not_trained_on_for_640_steps():
    config, line = resolve("", examples=27, validation=3)
    assert config.recipe == "small" and config.steps < 200
    assert config.patience == 0  # three examples decide nothing
    assert "small" in line and "27 training examples" in line and f"steps {config.steps}" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("examples", "name"),
    [(4_999, "small"), (5_000, "medium"), (99_999, "medium"), (100_000, "large")],
)
def test_the_number_of_training_examples_chooses(examples, name):
    config, _ = resolve("", examples)
    recipe = CONTRASTIVE_RECIPES[name]
    assert config.recipe == name
    assert recipe.min_steps <= config.steps <= recipe.max_steps
    assert config.eval_every == config.steps // recipe.evaluations


def test_small_sets_get_augmentation_stochastic_depth_decay_and_early_stopping():
    config, _ = resolve("")
    image = config.model.augment.image
    assert image.min_crop_scale < 1 and image.flip == 0.5 and image.contrast > 0
    assert all(getattr(config.model, kind).drop_path > 0 for kind in ("image", "text"))
    assert config.model.audio == Config().model.audio  # there is none
    assert config.model.text.token_dropout > 0
    assert config.optimizer.weight_decay > Optimizer.weight_decay
    assert 0 < config.patience < config.steps / config.eval_every
    larger = resolve("", 200_000)[0]
    assert (larger.model, larger.optimizer) == (Config().model, Config().optimizer)


def test_given_flags_win():
    words = "--patience 3 --eval-every 7 --model.augment.image.flip 0 --optimizer.learning-rate 0.001 --batch-size 16"
    config, line = resolve(words)
    assert (config.patience, config.eval_every, config.model.augment.image.flip) == (3, 7, 0.0)
    assert config.batch_size == 16 and config.steps == CONTRASTIVE_RECIPES["small"].steps(450, 16)
    # The learning rate is that of an update rule: who gives one of them keeps both.
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 1e-3)
    assert config.optimizer.weight_decay == 0.1 and config.model.augment.image.min_crop_scale < 1
    assert not any(word in line for word in ("flip", "patience", "learning_rate", "batch_size"))
    # A value that is the default counts as well.
    assert resolve("--optimizer.weight-decay=0.05")[0].optimizer.weight_decay == 0.05
    assert resolve("--no-resident --eval_every 0")[0].patience == 0


@pytest.mark.parametrize(
    "words", ["--steps 640", "--data shapes", "--data shapes?data_seed=1 folder:photos", "--recipe none"]
)
def test_steps_that_are_given_and_generated_data_keep_every_setting(words):
    given = parse(Config, None, ["--data", "folder:photos", *words.split()])
    if "--data" in words:
        given = parse(Config, None, words.split())
    config, line = resolve_recipe(given, make_source(450), make_source(60))
    assert line is None and config == dataclasses.replace(given, recipe="none")


def test_a_recipe_that_is_asked_for_is_taken_for_any_data():
    config, _ = resolve("--recipe medium --steps 30")
    assert config.recipe == "medium" and config.steps == 30 and config.eval_every == 1
    assert config.model.augment.image.min_crop_scale == 0.8 and config.model.image.drop_path == 0
    shapes = parse(Config, None, "--recipe small --data shapes".split())
    assert resolve_recipe(shapes, make_source(450), make_source(60))[0].model.image.drop_path > 0


def test_a_smoke_run_keeps_its_length():
    config = parse(Config, None, "--data folder:photos --smoke".split())
    short = dataclasses.replace(config, steps=4, batch_size=16, eval_every=2)
    resolved, _ = resolve_recipe(short, make_source(64), make_source(60))
    assert (resolved.steps, resolved.batch_size, resolved.eval_every, resolved.patience) == (4, 16, 2, 0)
    assert resolved.model.image.drop_path > 0


def test_options_that_a_part_lacks_and_those_of_pretrained_encoders_are_passed_over():
    assert resolve("--model.image vit")[0].model.image == dataclasses.replace(ViTConfig(), drop_path=0.1)
    assert not hasattr(resolve("--model.image mlp")[0].model.image, "drop_path")
    config = parse(Config, None, "--data folder:photos --image-encoder hf:model".split())
    assert config.model.image == PretrainedEncoderConfig()
    resolved, _ = resolve_recipe(config, make_source(450), make_source(60))
    assert resolved.model.image == PretrainedEncoderConfig() and resolved.optimizer.name == "adamw"
    assert resolved.model.text.drop_path > 0  # a new encoder
    assert resolved.text_cleanup == "none" and resolved.model.augment.image.min_crop_scale < 1
    cached = describe_training_set(_Cached(image_encoder="hf:model"), make_source(9), make_source(9))
    assert cached.kinds == {"text"} and cached.pretrained == {"image"}
    with_run = parse(Config, None, "--data folder:photos --init-from run".split())
    resolved, _ = resolve_recipe(with_run, make_source(450), make_source(60))
    assert (resolved.model.text, resolved.model.image) == (Config().model.text, Config().model.image)
    assert resolved.recipe == "small" and resolved.optimizer.name == "adamw"


def test_settings_that_the_data_or_the_tokenizer_cannot_have_are_passed_over():
    gray = ArraySource({"image": np.zeros((450, 1, 1, 1), np.uint8), "caption": np.array(["a car"] * 450)})
    config = parse(Config, None, "--data folder:photos --tokenizer hf:folder".split())
    resolved, _ = resolve_recipe(config, gray, make_source(60))
    assert resolved.model.augment.image.saturation == 0 < resolved.model.augment.image.contrast
    assert resolved.model.text.token_dropout == 0 < resolved.model.text.drop_path
    vectors = ArraySource({"vector": np.zeros((450, 3), np.float32), "caption": np.array(["a car"] * 450)})
    assert resolve_recipe(config, vectors, vectors)[0].model.augment == config.model.augment


def test_texts_decide_whether_images_are_mirrored():
    for text in (
        "a car on the LEFT",
        "turn right!",
        "la mano izquierda",
        "The letter y.",
        "eine linke Hand",
        "a 7.",
    ):
        assert not is_mirror_safe(["a red car", text])
    assert resolve("", caption="a car on the left")[0].model.augment.image.flip == 0
    assert is_mirror_safe(["a bright copyrighted picture of 3 leftovers and a signal"])
    assert not is_mirror_safe([])  # a recording, say, whose words nobody has read
    images = ArraySource({"image": np.zeros((9, 1, 1, 3), np.uint8), "label": np.zeros(9, int)}, ("cat", "7"))
    assert not describe_training_set(Config(), images, images).is_mirror_safe
    images.class_names = ("cat", "dog")
    assert describe_training_set(Config(), images, images).is_mirror_safe


def test_a_configuration_that_no_command_line_made_has_a_recipe_if_it_asks_for_one():
    sources = make_source(450), make_source(60)
    config = Config(data="folder:photos")
    assert resolve_recipe(config, *sources) == (dataclasses.replace(config, recipe="none"), None)
    augment = dataclasses.replace(config.model.augment, image=AugmentConfig(flip=0.1))
    own = Config(recipe="small", steps=77, model=ContrastiveConfig(augment=augment))
    resolved, _ = resolve_recipe(own, *sources)
    assert resolved.steps == 77 and resolved.model.augment.image.flip == 0.1
    assert resolved.model.augment.image.min_crop_scale < 1 and resolved.eval_every == 3


@pytest.fixture
def splits():
    return Splits(make_source(450), make_source(60), {"test": make_source(10)})


def write_run(folder, words, splits):
    """The run that a command line makes, with its recipe chosen and a logged step."""
    config = parse(Config, None, ["--run-dir", str(folder), *words.split()])
    with Run.create(folder, config, resume=config.resume, tensorboard=False) as run:
        config = choose_recipe(config, splits, run)
        run.log(config.steps, {"train/loss": 1.0})
    return config


def test_the_choice_is_said_in_a_line_and_stands_in_the_configuration(tmp_path, splits, capsys):
    config = write_run(tmp_path / "run", "--data folder:photos", splits)
    assert capsys.readouterr().out.startswith("recipe small for 450 training examples: steps ")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["recipe"] == "small" and written["steps"] == config.steps
    assert written["model"]["augment"]["image"]["min_crop_scale"] == config.model.augment.image.min_crop_scale
    assert from_json(Config, written) == config


def test_a_resumed_run_has_the_settings_that_it_began_with(tmp_path, splits, capsys):
    first = write_run(tmp_path / "run", "--data folder:photos --optimizer.b1 0.8", splits)
    capsys.readouterr()
    more = splits._replace(train=make_source(20_000), validation=make_source(3))
    again = write_run(tmp_path / "run", "--resume", more)
    assert again == dataclasses.replace(first, resume=True)
    assert "note: resuming" not in capsys.readouterr().out
    longer = write_run(tmp_path / "run", "--resume --steps 900 --model.augment.image.flip 0", more)
    assert longer.steps == 900 and longer.model.augment.image.flip == 0
    assert longer.model.image == first.model.image and longer.recipe == "small"


def test_a_run_of_a_version_without_recipes_goes_on_as_it_was(tmp_path, splits):
    words = ["--run-dir", str(tmp_path), "--data", "folder:photos", "--recipe", "none"]
    with Run.create(tmp_path, parse(Config, None, words), tensorboard=False) as run:
        run.log(1, {"train/loss": 1.0})
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in written.items() if name not in ("recipe", "fixed_flags")})
    )
    config = write_run(tmp_path, "--resume", splits)
    assert config.recipe == "none" and (config.steps, config.model) == (640, ContrastiveConfig())


def test_a_run_that_was_killed_before_the_choice_makes_it_when_it_is_resumed(tmp_path, splits):
    words = ["--run-dir", str(tmp_path), "--data", "folder:photos", "--recipe", "small", "--batch-size", "32"]
    with Run.create(tmp_path, parse(Config, None, words), tensorboard=False):
        pass
    config = write_run(tmp_path, "--resume", splits)
    assert config.batch_size == 32 and config.model.image.drop_path > 0


def test_every_option_of_a_recipe_is_one_that_an_experiment_has():
    encoders = (ConvNetConfig(), TextTransformerConfig())
    for recipe in CONTRASTIVE_RECIPES.values():
        for path in (path for setting in recipe.settings for path in setting.values):
            value = Config()
            for name in path.split(".")[:-1]:
                value = getattr(value, name)
            assert hasattr(value, path.split(".")[-1]) or path == "model.vector.drop_path", path
    assert all(hasattr(encoder, "drop_path") for encoder in encoders)
    assert from_json(Config, to_json(Config())) == Config()
    assert RecipeFlags.recipes is RECIPES and RECIPES.keys() == CONTRASTIVE_RECIPES.keys()


def test_token_dropout_needs_a_tokenizer_that_was_trained_here():
    config = Config(model=ContrastiveConfig(text=TextTransformerConfig(token_dropout=0.1)), batch_size=2)
    source = SpokenShapes(size=4, modalities=("text", "image"), image_size=16)
    prepare = fit_transforms(source, BadExamples(), config.text_options)
    make_loader(config, source, prepare, bad_examples=BadExamples())
    prepare.tokenizer.unk_id = 100  # as BERT's
    for negatives in (None, HardNegatives()):
        with pytest.raises(ValueError, match="--model.text.token-dropout is for tokenizers that are trained"):
            make_loader(config, source, prepare, bad_examples=BadExamples(), negatives=negatives)


def test_the_table_of_the_documentation_has_the_numbers_of_the_code():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for name, recipe in RECIPES.items():
        limit = "the rest" if recipe.max_examples is None else f"below {recipe.max_examples:,}"
        assert (
            f"| `{name}` | {limit} | {recipe.epochs} | {recipe.min_steps:,} to {recipe.max_steps:,} |" in text
        )
