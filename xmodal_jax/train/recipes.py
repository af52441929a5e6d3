"""Recipes: the settings of a training by the size of its training set.

A network that is trained on few examples for many epochs overfits; with many examples it needs few epochs. A `Recipe`
sets the number of epochs, the augmentation of images and the strength of regularisation. `RECIPES` is the table. A flag
that is given on the command line wins over the recipe::

    config, line = resolve_recipe(config, splits.train, splits.validation)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from xmodal_jax.data.open import is_generated
from xmodal_jax.data.source import Source
from xmodal_jax.data.splits import DEFAULT_VOCAB_SIZE, FEW_EXAMPLES, read_captions
from xmodal_jax.train.command_help import flag_of
from xmodal_jax.types import KINDS, kind_of

RecipeName = Literal["auto", "none", "small", "medium", "large"]
LENGTH_OPTIONS = ("steps", "batch_size", "eval_every", "patience")
"""The options of a recipe that say how long a training is; a ``--smoke`` run has its own."""


class TrainingSet(NamedTuple):
    """What a recipe needs to know of the data, and of the networks that are trained on them."""

    examples: int
    """Number of training examples."""
    validation: int
    """Number of validation examples."""
    kinds: Collection[str]
    """The kinds of data that networks are trained on, such as text and image."""
    is_mirror_safe: bool
    """Whether texts stay true if images are flipped from left to right, see `is_mirror_safe`."""
    has_colors: bool
    """Whether all images have three colour channels."""
    pretrained: Collection[str]
    """The kinds of data whose encoders do not start from random parameters."""
    trains_tokenizer: bool
    """Whether the tokenizer is trained on the data."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Values of options that belong together: if the user gives one of them, the recipe sets none of them."""

    values: Mapping[str, Any]
    """By path, such as ``model.augment.image.flip``. Options that the configuration does not have are left out, and so
    are those of encoders that are pretrained or of the user's own."""
    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of data, such as image and text. The setting is for training sets that have at least one of them."""
    suits: Callable[[TrainingSet], bool] = lambda _: True
    """A further condition on a training set."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings for training sets of one size."""

    max_examples: int | None
    """The recipe is for training sets with fewer examples than this; None: there is no limit."""
    epochs: int
    """Number of epochs, if the number of steps is then within its limits."""
    min_steps: int
    """Smallest number of steps."""
    max_steps: int
    """Largest number of steps."""
    evaluations: int = 20
    """Number of evaluations on validation data."""
    patience: int = 0
    """Evaluations without improvement after which training stops early; 0: it never does. It needs `FEW_EXAMPLES` / 2
    validation examples, because the scores of fewer improve by chance."""
    settings: tuple[Setting, ...] = ()
    """Values of other options."""

    def steps(self, examples: int, batch_size: int) -> int:
        """The steps for N examples in batches of B: ``clip(epochs * N / min(B, N), min_steps, max_steps)``."""
        steps = round(self.epochs * examples / min(batch_size, examples))
        return min(max(steps, self.min_steps), self.max_steps)


_IMAGES = ("image", "video")


def augmentation_settings(crop: float, jitter: float = 0.0) -> tuple[Setting, ...]:
    """Settings for the augmentation of images and videos.

    Args:
      crop: random crops have at least this fraction of the area.
      jitter: largest relative change of contrast and of saturation; up to half of it is added to pixels, which are in
        [-1, 1], as a change of brightness. 0: colours stay as they are.

    Half of the images are flipped from left to right, where texts stay true of them (`is_mirror_safe`).
    """
    path = "model.augment.image."
    settings = [
        Setting({f"{path}min_crop_scale": crop}, _IMAGES),
        Setting({f"{path}flip": 0.5}, _IMAGES, suits=lambda data: data.is_mirror_safe),
    ]
    if jitter:
        settings += [
            Setting({f"{path}brightness": jitter / 2, f"{path}contrast": jitter}, _IMAGES),
            Setting({f"{path}saturation": jitter}, _IMAGES, suits=lambda data: data.has_colors),
        ]
    return tuple(settings)


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "small": Recipe(
            max_examples=5_000,
            epochs=100,
            min_steps=100,
            max_steps=1_000,
            patience=10,
            settings=(
                *augmentation_settings(crop=0.5, jitter=0.3),
                *(Setting({f"model.{kind}.drop_path": 0.1}, (kind,)) for kind in KINDS),
                Setting(
                    {"model.text.token_dropout": 0.2}, ("text",), suits=lambda data: data.trains_tokenizer
                ),
                Setting({"optimizer.weight_decay": 0.1}),
            ),
        ),
        "medium": Recipe(
            max_examples=100_000,
            epochs=10,
            min_steps=500,
            max_steps=2_500,
            settings=augmentation_settings(crop=0.8),
        ),
        "large": Recipe(max_examples=None, epochs=2, min_steps=2_500, max_steps=20_000),
    }
)
"""The recipes by name, for ever larger training sets."""


def extend_recipe(name: str, *settings: Setting) -> Mapping[str, Recipe]:
    """`RECIPES` with further settings in the recipe ``name``."""
    recipe = RECIPES[name]
    return MappingProxyType(
        {**RECIPES, name: dataclasses.replace(recipe, settings=recipe.settings + settings)}
    )


CONTRASTIVE_RECIPES = extend_recipe(
    "small",
    Setting({"batch_size": 128}),
    Setting(
        {"optimizer.name": "muon", "optimizer.learning_rate": 5e-3}, suits=lambda data: not data.pretrained
    ),
    Setting({"model.text.embedding_std": 1.0}, ("text",)),
    Setting({"text_cleanup": "lower"}, ("text",), suits=lambda data: not data.pretrained),
)
"""Recipes of contrastive learning. Negatives come from the batch, so that small data sets have large batches; texts are
not generated, so that they can be in lower case."""


def fix_flags(config: Any, flags: Collection[str], *, resumed: bool) -> Any:
    """``config`` with ``fixed_flags``: those of the given ``flags`` whose options a recipe would set, and must not.

    Args:
      config: read from the command line, with the options of `train.config.RecipeFlags`.
      flags: those of the command line, such as ``--steps``.
      resumed: whether the configuration is that of a run that is resumed, which has ``fixed_flags`` of its own.
    """
    fixed = config.fixed_flags
    if resumed and fixed is None:  # of a version without recipes
        return config
    recipe_flags = {flag_of(path) for recipe in config.recipes.values() for path in _paths(recipe)}
    return dataclasses.replace(config, fixed_flags=tuple(sorted({*(fixed or ()), *recipe_flags & {*flags}})))


def resolve_recipe(config: Any, train: Source, validation: Source) -> tuple[Any, str | None]:
    """Chooses the recipe of a training and applies it.

    ::

        config, line = resolve_recipe(config, splits.train, splits.validation)

    Args:
      config: with the options of `train.config.RecipeFlags`.
      train, validation: the splits of the data.

    Returns:
      ``(config, line)``: the configuration with the settings of the recipe, and a line for the user that says what was
      chosen; None: there is no recipe.
    """
    name = _choose_name(config, len(train))
    if name == "none":
        return dataclasses.replace(config, recipe=name), None
    recipe, fixed = config.recipes[name], _fixed_flags(config)
    data = describe_training_set(config, train, validation)
    is_fixed = lambda path: flag_of(path) in fixed or (config.smoke and path in LENGTH_OPTIONS)
    changes: dict[str, Any] = {}
    for setting in recipe.settings:
        is_for_data = bool({*setting.kinds} & {*data.kinds}) and setting.suits(data)
        if is_for_data and not any(map(is_fixed, setting.values)):
            changes |= {
                path: value for path, value in setting.values.items() if _has_option(config, path, data)
            }
    steps = config.steps if is_fixed("steps") else recipe.steps(
        data.examples, changes.get("batch_size", config.batch_size)
    )  # fmt: skip
    every = config.eval_every if is_fixed("eval_every") else max(steps // recipe.evaluations, 1)
    patience = recipe.patience if every and 2 * data.validation >= FEW_EXAMPLES else config.patience
    length = {"steps": steps, "eval_every": every, "patience": patience}
    changes = {path: value for path, value in length.items() if not is_fixed(path)} | changes
    chosen = {path: value for path, value in changes.items() if _value_at(config, path) != value}
    fixed_flags = tuple(sorted({*(config.fixed_flags or ()), *map(flag_of, changes)}))
    values = {**chosen, "recipe": name, "fixed_flags": fixed_flags}
    return _replace_at(config, values), _describe(name, data.examples, chosen)


def describe_training_set(config: Any, train: Source, validation: Source) -> TrainingSet:
    """What a recipe needs to know of an experiment's data and encoders."""
    kinds = {*map(kind_of, train.modalities)}
    texts = [*(train.class_names or ())]
    if "text" in kinds:
        texts += read_captions(train, limit=5_000)
    pretrained = {*config.pretrained} if config.init_from is None else {*kinds}
    if getattr(config, "cache_features", False):  # of pretrained encoders, which then see no training
        kinds -= pretrained
    images = [m for m in train.modalities if kind_of(m) in _IMAGES]
    example = train.batch(np.array([0])) if images else {}
    return TrainingSet(
        len(train),
        len(validation),
        kinds,
        is_mirror_safe=is_mirror_safe(texts),
        has_colors=all(example[m].shape[-1] == 3 for m in images),
        pretrained=pretrained,
        trains_tokenizer=config.text_options["tokenizer"] in DEFAULT_VOCAB_SIZE,
    )


ORIENTED = re.compile(
    r"\b(left|right|(anti-?|counter-?)?clockwise|arrows?|letters?|digits?|numbers?|numerals?|characters?|signs?"
    r"|writes?|written|reads?|izquierd[ao]s?|derech[ao]s?|letras?|números?|gauche|droite|lettres?|chiffres?"
    r"|link[es]\w*|recht[es]\w*|buchstaben?|ziffern?|sinistr[ao]|destr[ao]|esquerd[ao]|direit[ao])\b"
    r"|\b\w\W*$",  # the last word is a single letter or digit
    re.IGNORECASE,
)
"""Words (English, Spanish, French, German, Italian, Portuguese) of texts that may not be true of a flipped image."""


def is_mirror_safe(texts: Collection[str]) -> bool:
    """Whether texts stay true of images that are flipped from left to right: there are texts, and none of them has a
    word of `ORIENTED`, about a side or about writing.

    ::

        is_mirror_safe(["a red car"]), is_mirror_safe(["a car on the left"])  # True, False
    """
    return bool(texts) and not any(map(ORIENTED.search, texts))


def _choose_name(config: Any, examples: int) -> str:
    """The name of the recipe for a number of training examples, or ``none``."""
    if config.recipe != "auto":
        return config.recipe
    specs = (config.data,) if isinstance(config.data, str) else config.data
    is_without_recipe = config.fixed_flags is None or "--steps" in config.fixed_flags
    if is_without_recipe or any(map(is_generated, specs)):
        return "none"
    limits = {name: recipe.max_examples for name, recipe in config.recipes.items()}
    return next(name for name, limit in limits.items() if limit is None or examples < limit)


def _fixed_flags(config: Any) -> Collection[str]:
    """The flags of the options that a recipe must not change."""
    if config.fixed_flags is not None:
        return config.fixed_flags
    default = type(config)()
    paths = {path for recipe in config.recipes.values() for path in _paths(recipe)}
    return [flag_of(path) for path in paths if _value_at(config, path) != _value_at(default, path)]


def _paths(recipe: Recipe) -> Iterator[str]:
    """The paths of the options that a recipe sets."""
    yield from LENGTH_OPTIONS
    for setting in recipe.settings:
        yield from setting.values


def _has_option(config: Any, path: str, data: TrainingSet) -> bool:
    """Whether a configuration has the option at a path, and it is not one of an encoder that is pretrained or of the
    user's own."""
    names = path.split(".")
    if names[0] == "model" and names[1] in data.pretrained:
        return False
    for name in names:
        if not hasattr(config, name) or hasattr(config, "chosen_by"):
            return False
        config = getattr(config, name)
    return True


def _value_at(config: Any, path: str) -> Any:
    """The value of the option at a path; None where there is none."""
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _replace_at(config: Any, values: Mapping[str, Any]) -> Any:
    """``config`` with the options at some paths replaced, all at once."""
    by_field: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        field, _, rest = path.partition(".")
        by_field.setdefault(field, {})[rest] = value
    return dataclasses.replace(
        config,
        **{
            field: inner[""] if "" in inner else _replace_at(getattr(config, field), inner)
            for field, inner in by_field.items()
        },
    )


def _describe(name: str, examples: int, chosen: Mapping[str, Any]) -> str:
    """One line about a recipe and what it has changed."""
    values = ", ".join(f"{path.removeprefix('model.')} {value}" for path, value in chosen.items())
    return f"recipe {name} for {examples:,} training examples: {values or 'changes nothing'} (--recipe none: without)"
