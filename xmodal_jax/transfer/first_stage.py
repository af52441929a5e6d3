"""The first stage of a GAN in two stages (StackGAN): trained within a run, or read from another one."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.splits import make_text_cleaner
from xmodal_jax.data.text import Tokenizer, TokenizeTransform, tokenizer_from_files
from xmodal_jax.data.views import TransformedSource, read_into_memory
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.first_stage import FirstStage, first_stage_config
from xmodal_jax.models.gan.method import make_gan
from xmodal_jax.models.gan.presets import OBJECTIVE_PRESETS, OPTIMIZER_PRESETS, with_preset
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.feed import RESIDENT_LIMIT
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import eval_params_by_seed, fit
from xmodal_jax.train.run import Run, from_json, to_json
from xmodal_jax.types import Params

FOLDER = "first_stage"
"""The folder of a run's directory that holds the training of its first stage."""
KIND = "text_to_image_gan"
"""The kind of run whose generator can be a first stage."""


class LoadedFirstStage(NamedTuple):
    """A first stage from another run, and the conditions that it was trained with."""

    run: pathlib.Path
    stage: FirstStage
    tokenize: TokenizeTransform | None
    """How its captions are tokenized; None: it was trained without captions."""
    cleanup: str
    """How captions are cleaned before they are tokenized, see `data.splits.make_text_cleaner`."""
    class_names: tuple[str, ...]

    def check_tokens(
        self, tokenize: TokenizeTransform | None, tokenizer: Tokenizer | None
    ) -> TokenizeTransform:
        """The tokenization of the first stage.

        ``tokenize``, ``tokenizer``: what other frozen networks need; None: nothing.

        Raises:
          ValueError: they need another one.
        """
        tokenizer = tokenize.tokenizer if tokenize is not None else tokenizer
        lengths = {self.tokenize.max_length, (tokenize or self.tokenize).max_length}
        if len(lengths) > 1 or (
            tokenizer is not None and tokenizer.files() != self.tokenize.tokenizer.files()
        ):
            raise ValueError(
                "the first stage (--first-stage) and another frozen network (--redescribe, --read-with or "
                "--text-encoder) have different tokenizers or lengths of text: train them on the same data, with the "
                "same --tokenizer"
            )
        return self.tokenize


def load_first_stage(run: pathlib.Path, *, seed: int | None = None) -> LoadedFirstStage:
    """The generator of a GAN run's newest checkpoint, as the first stage of another.

    ``seed``: the seed whose parameters to take, needed for a run of several; None: the run has one seed.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run is of another kind, or has two stages itself.
    """
    restored = restore_run(run, seed=seed)
    metadata = restored.metadata
    if metadata.get("kind") != KIND:
        raise ValueError(
            f"{run} is no run of {KIND}.py: give the directory of one, with images of fewer pixels"
        )
    model = from_json(GANConfig, metadata["config"]["model"])
    if model.generator.refines_images:
        raise ValueError(f"{run} has two stages itself: give a run with one, such as {run / FOLDER}")
    tokenize, cleanup = None, metadata["config"].get("text_cleanup", "none")
    if metadata.get("tokenizer"):
        tokenizer = tokenizer_from_files(metadata["tokenizer"])
        tokenize = TokenizeTransform(tokenizer, metadata["length"], clean=make_text_cleaner(cleanup))
    params = _generator_params(restored.params)
    if "text" in restored.params.get("frozen", {}):
        params["frozen"] = {"text": restored.params["frozen"]["text"]}
    stage = FirstStage(dataclasses.replace(model, features=None), tuple(metadata["shape"]), params)
    return LoadedFirstStage(run, stage, tokenize, cleanup, tuple(metadata.get("class_names") or ()))


def use_first_stage(config: Any) -> tuple[Any, LoadedFirstStage | None]:
    """The configuration of an experiment with the generator of the run ``--first-stage`` in its model, and that first
    stage; None without the flag.

    Raises:
      FileNotFoundError: the run has no checkpoint.
      ValueError: a flag of the first stage is given, and nothing would use it; or the run cannot be one.
    """
    generator, flag = config.model.generator, "--first-stage"
    if not generator.refines_images:
        for name in ("first_stage", "first_stage_steps"):
            if getattr(config, name) is not None:
                raise ValueError(
                    f"--{name.replace('_', '-')} is of a generator in two stages: give --model.generator stackgan "
                    "as well, or leave it out"
                )
    if config.first_stage_steps is not None and config.first_stage_steps < 1:
        raise ValueError(f"--first-stage-steps must be at least 1, got {config.first_stage_steps}")
    if config.first_stage is None:
        return config, None
    if config.first_stage_steps is not None:
        raise ValueError(
            f"--first-stage-steps trains a first stage, and {flag} gives a trained one: leave one out"
        )
    if generator.first != type(generator)().first:
        raise ValueError(f"--model.generator.first is that of the run ({flag}): leave it out")
    try:
        loaded = load_first_stage(config.first_stage)
    except (FileNotFoundError, ValueError) as error:
        # Of a subclass of ValueError, such as that of a file that is no JSON, the arguments are not known.
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{flag}: {error}") from error
    generator = dataclasses.replace(generator, first=loaded.stage.config.generator)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, generator=generator)), loaded


def prepare_first_stage(
    config: Any,
    loaded: LoadedFirstStage | None,
    loader: Loader,
    sizes: Mapping[str, Any],
    run: Run,
    timer: Timer,
    *,
    metadata: Mapping[str, Any],
    text: Params | None,
) -> FirstStage | None:
    """The first stage of an experiment's generator: that of another run, or one that is trained here.

    Args:
      config: of the whole run.
      loaded: the first stage of another run; None: there is none.
      loader: the batches of the second stage, with images of the full size.
      sizes: of the second stage's data, the arguments of `models.gan.make_gan`.
      run, timer: of the whole run.
      metadata: what the checkpoints of the whole run keep beside the sizes.
      text: parameters of a frozen text encoder that both stages share; None: each network trains one.

    Returns:
      None: the generator of ``config`` has one stage.

    Raises:
      ValueError: the first stage of another run has other conditions or sizes.
    """
    if not config.model.generator.refines_images:
        return None
    if loaded is None:
        return fit_first_stage(config, loader, sizes, run, timer, metadata=metadata, text=text)
    class_names, condition = tuple(metadata.get("class_names") or ()), loaded.stage.config.condition
    if condition.reads_text and "vocab_size" not in sizes:
        raise ValueError(
            f"--first-stage: {loaded.run} generates images from captions, and the data have none: give a run that "
            "generates images of classes, or --modalities text image"
        )
    if condition.name != "none" and not condition.reads_text and loaded.class_names != class_names:
        raise ValueError(
            f"--first-stage: {loaded.run} was trained with the classes {', '.join(loaded.class_names) or '(none)'}, "
            f"and the data have {', '.join(class_names) or 'none'}"
        )
    shape, generator = sizes["shape"], config.model.generator
    if loaded.stage.shape != generator.first_shape(shape):
        raise ValueError(
            f"--first-stage: {loaded.run} has images of {loaded.stage.shape} (height, width, channels), needed are "
            f"{generator.first_shape(shape)} for images of {tuple(shape)}: choose another --model.generator.scale "
            f"(now {generator.scale}) or --image-size"
        )
    return loaded.stage


def check_second_stage(config: GANConfig, sizes: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Finds mistakes in the second stage of ``config`` before its first one is trained.

    ``sizes``, ``arguments``: those of the data and those of frozen networks, for `models.gan.make_gan`.

    Raises:
      ValueError: the parts of the configuration do not fit each other, or the images.
    """
    if not config.generator.refines_images:
        return
    stage = FirstStage(first_stage_config(config), config.generator.first_shape(sizes["shape"]))
    gan = make_gan(config, **sizes, **arguments, first_stage=stage)
    jax.eval_shape(gan.init, jax.random.key(0), {})


def fit_first_stage(
    config: Any,
    loader: Loader,
    sizes: Mapping[str, Any],
    run: Run,
    timer: Timer,
    *,
    metadata: Mapping[str, Any],
    text: Params | None,
) -> FirstStage:
    """Trains the first stage, with as many seeds as the second.

    This training is a run of its own, in the folder ``first_stage`` of the directory of ``run``, with its own
    checkpoints: a run that is resumed goes on in this training, or takes its last checkpoint if it has ended. The
    arguments are those of `prepare_first_stage`.
    """
    model, scale = first_stage_config(config.model), config.model.generator.scale
    sizes = {**sizes, "shape": config.model.generator.first_shape(sizes["shape"])}
    steps = config.steps if config.smoke or config.first_stage_steps is None else config.first_stage_steps
    config = dataclasses.replace(
        config, model=model, steps=steps, first_stage_steps=None, redescribe=None, image_encoder=None,
        eval_every=0, patience=0,
    )  # fmt: skip
    loader = Loader(
        _shrunk_source(loader.source, scale), batch_size=loader.batch_size, seed=config.seed,
        transform=loader.transform,
    )  # fmt: skip
    gan = make_gan(model, **sizes, text=text)
    options = dict(resume=config.resume, writer=run.writes, tensorboard=False)
    with Run.create(run.path / FOLDER, config, **options) as own_run:
        height, width, _ = sizes["shape"]
        run.print(f"training the first stage, images of {height} x {width} pixels")
        trained = fit(
            gan, loader, config, config.optimizer, own_run, timer,
            metadata={**metadata, **sizes}, steps_flag="--first-stage-steps",
        )  # fmt: skip
    # Also of seeds that have diverged, whose second stage diverges at once.
    by_seed = [
        _generator_params(p) for p in eval_params_by_seed(trained.state, trained.engine, trained.training)
    ]
    several = len(by_seed) > 1
    by_seed = jax.tree.map(_to_host, by_seed)
    params = jax.tree.map(lambda *x: np.stack(x), *by_seed) if several else by_seed[0]
    return FirstStage(model, sizes["shape"], params, by_seed=several)


def _to_host(x: jax.Array) -> np.ndarray:
    """An array on this host, also one that is split over the devices of several processes."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def preset_options(config: Any, name: str) -> dict[str, Any]:
    """The options by which a preset of `models.gan.presets` changes an experiment's ``config`` for a training of as
    many steps in all: of two stages that are trained one after the other each has half of them.

    Raises:
      ValueError: there are flags of a first stage, or the images have no size that both stages can have.
    """
    for flag in ("first_stage", "first_stage_steps"):
        if getattr(config, flag) is not None:
            raise ValueError(
                f"--{flag.replace('_', '-')} is of text_to_image_gan.py: a comparison trains both stages of a "
                "generator, each with half of the steps; leave it out"
            )
    model, first, side = with_preset(config.model, name), config.steps // 2, config.input.image_size
    options = {"model": model}
    if name in OPTIMIZER_PRESETS:
        options["optimizer"] = _with_optimizer_preset(config.optimizer, name)
    if not model.generator.refines_images:
        return options
    if side is not None:
        model.generator.first_shape((side, side, 3))
    if not first:
        return options
    return {**options, "steps": config.steps - first, "first_stage_steps": first}


def _with_optimizer_preset(optimizer: GANOptimizer, name: str) -> GANOptimizer:
    """``optimizer`` with the options that a preset of `models.gan.presets` sets for both networks."""
    options = OPTIMIZER_PRESETS[name]
    networks = {part: getattr(optimizer, part) for part in ("discriminator", "generator")}
    return dataclasses.replace(
        optimizer, **{part: dataclasses.replace(network, **options) for part, network in networks.items()}
    )


def check_presets(config: Any, names: Iterable[str], source: Source | None = None) -> None:
    """Finds presets that do not suit an experiment's ``config``, or the images of ``source`` if one is given, before
    any of them is trained. Of ``names`` those of presets count.

    Raises:
      ValueError: as in `preset_options`, or the parts of a configuration do not fit each other.
    """
    shape = None if source is None else source.batch(np.arange(1))["image"].shape[1:]
    for name in filter(OBJECTIVE_PRESETS.__contains__, names):
        generator = preset_options(config, name)["model"].generator
        if shape is not None and generator.refines_images:
            generator.first_shape(shape)


def _generator_params(params: Params) -> dict[str, Any]:
    """The part of a GAN's parameters that its first stage needs: the generator, and the statistics of its batch norm if
    it has one."""
    statistics = params["variables"].get("batch_stats")
    return {"generator": params["generator"]} | (
        {"variables": {"batch_stats": statistics}} if statistics else {}
    )


def shrink_images(batch: RawBatch, scale: int) -> RawBatch:
    """The batch with images uint8 ``[B, H / scale, W / scale, C]``, whose pixels are the means of squares of pixels."""
    images = np.asarray(batch["image"])
    count, height, width, channels = images.shape
    squares = images.reshape(count, height // scale, scale, width // scale, scale, channels)
    means = squares.mean(axis=(2, 4), dtype=np.float32)
    return {**batch, "image": np.round(means).astype(np.uint8)}


def _shrunk_source(source: Source, scale: int) -> Source:
    """The source with smaller images; in memory if ``source`` is."""
    shrunk = TransformedSource(source, lambda batch: shrink_images(batch, scale))
    in_memory = None if source.arrays is None else read_into_memory(shrunk, limit=RESIDENT_LIMIT)
    return shrunk if in_memory is None else in_memory


def first_stage_to_json(stage: FirstStage | None) -> dict[str, Any] | None:
    """What a checkpoint keeps of a first stage beside its parameters, so that the run can be used on new data."""
    return None if stage is None else {"config": to_json(stage.config), "shape": list(stage.shape)}


def first_stage_from_json(value: Mapping[str, Any] | None) -> FirstStage | None:
    """The inverse of `first_stage_to_json`, without parameters."""
    return value and FirstStage(from_json(GANConfig, value["config"]), tuple(value["shape"]))
