"""The flags that every experiment shares."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import tyro

from xmodal_jax.core.parts import Advanced, FilledIn
from xmodal_jax.data.mixture_splits import DataSpec
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import DEFAULT_VOCAB_SIZE
from xmodal_jax.models.lora import LoRA
from xmodal_jax.nets.encoders import CustomEncoderConfig, PretrainedEncoderConfig, max_text_tokens
from xmodal_jax.train.recipes import CONTRASTIVE_RECIPES, RECIPES, Recipe, RecipeName
from xmodal_jax.train.schedule import ResumeSchedule
from xmodal_jax.train.tracking import TrackerName
from xmodal_jax.types import MODALITIES

MODULE_PREFIX = "module:"
"""What the value of ``--image-encoder`` begins with if it names an encoder of the user's own."""
RUN_PREFIX = "run:"
"""What the value of ``--image-encoder`` begins with if it names the encoder of another run."""
DataFlags = Annotated[DataOptions, tyro.conf.arg(name="")]
"""The type of a configuration's field ``input``, whose options have flags without that prefix: ``--train-size``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set, and how its text is read."""

    help_group: ClassVar[str] = "data"

    data: DataSpec = "shapes"
    """Data set: ``shapes`` (embedded), ``folder:PATH``, ``tar:SHARDS``, ``parquet:PATH``, ``arrow:PATH``, ``hub:NAME``,
    ``npz:PATH``, ``tfds:NAME``, ``digits``, ``spoken:FILE``, ``poly:SPEC`` or ``stacked:SPEC``; docs/data.md describes
    each. Several are mixed, each with modalities and options of its own:
    ``folder:A 'shapes?modalities=text,audio'``."""
    input: DataFlags = DataOptions()
    """Options of the data set: number of examples, modalities, sizes of images, length of audio. Their flags have no
    prefix (``--train-size``)."""
    tokenizer: str | None = None
    """Tokenizer of the texts: ``word``, ``wordpiece`` or ``bpe`` (trained on the data set), or a folder (of Hugging
    Face, or RUN/tokenizer of a run). None: that of a pretrained text model, or ``word`` (``bpe`` to synthesise)."""
    vocab_size: Advanced[int | None] = None
    """Vocabulary size of a tokenizer that is trained; None: the default of its kind. ``bpe`` with 260 reads bytes."""
    default_tokenizer: ClassVar[tuple[str, int | None]] = ("word", None)
    """Kind and vocabulary size of the tokenizer that is trained if the flags choose none."""
    text_length: Advanced[int | None] = None
    """Tokens that a text has at most, begin and end included; longer texts are cut but keep their end token. None: 2
    more than the longest training text, or as many as a pretrained text model takes if that is fewer."""
    text_cleanup: Advanced[Literal["none", "lower", "stop", "whisper", "whisper_english"]] = "none"
    """Preprocessing of texts, later also of queries: ``none``; ``lower`` turns them to lower case; ``stop`` also
    removes English stop words; ``whisper`` and ``whisper_english`` are Whisper's normalisers of transcripts, lower case
    without punctuation and what stands in brackets; the English one writes numbers as digits."""

    @property
    def _unset_tokenizer(self) -> tuple[str, int | None]:
        """What stands for `tokenizer` and `vocab_size` where the flags choose no tokenizer."""
        return self.default_tokenizer

    @property
    def text_options(self) -> dict[str, Any]:
        """Keyword arguments of `data.splits.fit_tokenizer`."""
        kind, size = (self.tokenizer, None) if self.tokenizer is not None else self._unset_tokenizer
        return dict(
            tokenizer=kind,
            vocab_size=size if self.vocab_size is None else self.vocab_size,
            cleanup=self.text_cleanup,
            length=self.text_length,
            max_length=max_text_tokens(getattr(self, "model", None)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(DataConfig):
    """The length of the training, its random seeds and how it is spread over devices."""

    help_group: ClassVar[str] = "training"

    steps: int = 1000
    """Number of training steps, each with one batch."""
    batch_size: int = 128
    """Examples per step, over all devices together."""
    seed: int = 0
    """Random seed of initialisation, data order and training."""
    seeds: int = 1
    """Number of runs that train at once, with the seeds S, S + 1, … for --seed S. Metrics are their mean and spread."""
    on_divergence: Advanced[Literal["stop", "drop"]] = "stop"
    """When a loss or a gradient is no longer finite: stop the run, or, with several seeds, drop the seed, count it, and
    train the others on."""
    parallel: Literal["jit", "pmap", "sharded"] = "jit"
    """Devices: one (jit), data parallelism with a named axis (pmap), or a mesh with sharded parameters (sharded)."""
    fsdp: Advanced[int] = 1
    """With --parallel sharded: number of devices over which each large array of the training state is split; 1: arrays
    are not split."""
    dispatch: Advanced[int] = 1
    """Number of training steps that one call of the compiled program runs, in a ``lax.scan``."""
    resident: Advanced[bool] = True
    """Whether a data set that fits into the device's memory is kept there, and batches are drawn inside the compiled
    program."""
    eval_every: int = 0
    """Steps between evaluations on validation data; 0: only at the end."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: only at the end. A run that is asked to stop also writes a checkpoint."""
    patience: Advanced[int] = 0
    """Number of evaluations without improvement after which training stops early; 0: it never stops early."""

    @property
    def all_seeds(self) -> list[int]:
        """``seed``, ``seed + 1``, …, of the runs that train at once."""
        return [self.seed + k for k in range(self.seeds)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """The options that all experiments share; an experiment's own dataclass adds its fields."""

    help_group: ClassVar[str] = "run"

    smoke: bool = False
    """Only check that everything works: a tiny data set and a few steps. This takes one or two minutes, mostly for
    compilation."""
    run_dir: pathlib.Path | None = None
    """Directory of the run's files; None: ``runs/<experiment>-<time>``."""
    resume: bool = False
    """Continue from the newest checkpoint in --run-dir."""
    track: Advanced[TrackerName | None] = None
    """Tracker that the configuration, metrics and result are sent to, beside TensorBoard: ``wandb`` (Weights & Biases)
    or ``mlflow``; docs/tracking.md has their settings. None: nothing is sent."""
    resume_schedule: Advanced[ResumeSchedule] = "extend"
    """Learning rate of a run that is resumed with another number of --steps: as if that number had been asked for from
    the beginning (extend: it may jump up), a new schedule of the remaining steps with its own warm-up (restart), or
    that of the last step to the end (keep). The rates before and after are printed."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "dispatch", "fsdp", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("eval_every", "checkpoint_every", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}"
                )
        if self.patience and not self.eval_every:
            raise ValueError("--patience counts evaluations: give --eval-every as well")
        if self.text_length is not None and self.text_length < 3:
            raise ValueError(
                f"--text-length must be at least 3 (begin, one token, end), got {self.text_length}"
            )
        if self.resume and self.run_dir is None:
            raise ValueError("--resume needs --run-dir, the directory of the run to continue")
        if self.resume_schedule != "extend" and not self.resume:
            raise ValueError(
                f"--resume-schedule {self.resume_schedule} needs --resume: a new run has one schedule"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedConfig(RunConfig):
    """The options of experiments that use pretrained encoders."""

    help_group: ClassVar[str] = "pretrained encoders"

    image_encoder: str | None = None
    """``hf:PATH``: a pretrained image encoder, from a folder (config.json and safetensors) or the hub
    (``hf:OWNER/MODEL``); ``run:RUN``: that of another run (where --init-from is an option); or
    ``module:PACKAGE.MODULE:NAME``: an encoder of your own, a Flax module (docs/modality.md). Position embeddings of a
    pretrained one are interpolated to --image-size. None: none of these."""
    text_encoder: str | None = None
    """``hf:PATH``: a pretrained text encoder, used with its own tokenizer. For where from see --image-encoder. None: no
    pretrained encoder."""
    audio_encoder: str | None = None
    """``hf:PATH``: a pretrained speech encoder. For where from see --image-encoder. None: no pretrained encoder."""
    video_encoder: str | None = None
    """``hf:PATH``: a pretrained video encoder. For where from see --image-encoder. None: no pretrained encoder."""

    vector_encoder: Advanced[str | None] = None
    """``module:PACKAGE.MODULE:NAME``: an encoder of your own of vectors, a Flax module (docs/modality.md). None: the
    one that --model.vector chooses."""
    series_encoder: Advanced[str | None] = None
    """``module:PACKAGE.MODULE:NAME``: an encoder of your own of series, a Flax module (docs/modality.md). None: the one
    that --model.series chooses."""

    @property
    def _chosen_encoders(self) -> dict[str, str]:
        """The values of the flags ``--<modality>-encoder`` that are set, by modality."""
        encoders = {modality: getattr(self, f"{modality}_encoder", None) for modality in MODALITIES}
        return {modality: encoder for modality, encoder in encoders.items() if encoder is not None}

    @property
    def pretrained(self) -> dict[str, str]:
        """The flags of pretrained encoders and those of other runs that are set, such as ``{"image": "hf:PATH"}``, by
        modality (a pretrained text decoder as "decoder")."""
        return {m: value for m, value in self._chosen_encoders.items() if not value.startswith(MODULE_PREFIX)}

    @property
    def encoder_runs(self) -> dict[str, pathlib.Path]:
        """The runs whose encoders flags name, such as ``{"image": Path("runs/a")}`` for ``--image-encoder run:runs/a``,
        by modality."""
        chosen = self._chosen_encoders.items()
        return {
            m: pathlib.Path(value.removeprefix(RUN_PREFIX))
            for m, value in chosen
            if value.startswith(RUN_PREFIX) and value != RUN_PREFIX
        }

    @property
    def own_encoders(self) -> dict[str, str]:
        """The encoders of the user's own that flags name, such as ``{"image": "my_package.nets:Net"}``, by modality."""
        chosen = self._chosen_encoders.items()
        return {
            m: value.removeprefix(MODULE_PREFIX) for m, value in chosen if value.startswith(MODULE_PREFIX)
        }

    @classmethod
    def implied_parts(cls, flags: Mapping[str, str]) -> dict[str, str]:
        """Names of the parts that the given ``flags`` choose by their values, by path.

        With ``--image-encoder`` the encoder of images is the part for pretrained encoders (or for encoders of one's
        own), so that ``--model.image.dropout`` is an option of that part. Experiments have the encoder at one of two
        paths, ``model.image`` or ``model.image.encoder``.
        """
        implied = {}
        for modality in MODALITIES:
            value = flags.get(f"--{modality}-encoder")
            if value is not None and not value.startswith(
                RUN_PREFIX
            ):  # a run decides it by its configuration
                part = CustomEncoderConfig if value.startswith(MODULE_PREFIX) else PretrainedEncoderConfig
                paths = [f"model.{modality}{suffix}" for suffix in ("", ".encoder")]
                implied |= dict.fromkeys(paths, part.name)
        return implied

    @property
    def _text_model(self) -> str | None:
        """The flag of the pretrained text model (decoder or encoder), such as ``hf:PATH`` or ``run:RUN``; None: there
        is none."""
        return self.pretrained.get("decoder", self.pretrained.get("text"))

    @property
    def _unset_tokenizer(self) -> tuple[str, int | None]:
        return super()._unset_tokenizer if self._text_model is None else (self._text_model, None)

    @property
    def text_options(self) -> dict[str, Any]:
        """Keyword arguments of `data.splits.fit_tokenizer`: a pretrained text model (decoder or encoder) comes with its
        own tokenizer, unless --tokenizer chooses another.

        Raises:
          ValueError: --tokenizer asks for a tokenizer that is trained, whose tokens a pretrained text model does not
            know.
        """
        if self._text_model is not None and self.tokenizer in DEFAULT_VOCAB_SIZE:
            raise ValueError(
                f"--tokenizer {self.tokenizer} trains a tokenizer, whose tokens the pretrained text model "
                f"{self._text_model} does not know: leave --tokenizer out, so that its own is taken"
            )
        return super().text_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig(PretrainedConfig):
    """The options of experiments whose encoders may come from an earlier run."""

    help_group: ClassVar[str] = "pretrained encoders"

    init_from: pathlib.Path | None = None
    """Directory of an earlier run: training starts from its encoders (and its decoder, if both runs have one). None: no
    earlier run."""
    encoder_lr_multiplier: float = 1.0
    """Learning rate of the encoders that are pretrained or come from --init-from, relative to the other parameters
    (0.1: a tenth); 0 freezes the encoders."""
    layer_decay: Advanced[float] = 1.0
    """Layer-wise decay of the pretrained encoders' learning rate: each layer has this times the learning rate of the
    layer above it; 1: all layers learn equally fast."""
    lora: LoRA = LoRA()
    """Low-rank adapters in the pretrained encoders, whose other parameters are then frozen (``--lora.rank 8``)."""

    def __post_init__(self):
        super().__post_init__()
        if self.encoder_lr_multiplier < 0 or not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"--encoder-lr-multiplier must not be negative and --layer-decay lie in (0, 1], got "
                f"{self.encoder_lr_multiplier} and {self.layer_decay}"
            )
        if self.lora.rank and (self.encoder_lr_multiplier != 1.0 or self.layer_decay != 1.0):
            raise ValueError(
                "with --lora.rank the encoders are frozen: leave --encoder-lr-multiplier and --layer-decay at 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeFlags:
    """The option of experiments that have settings for training sets of several sizes (`train.recipes`)."""

    help_group: ClassVar[str] = "training"
    recipes: ClassVar[Mapping[str, Recipe]] = RECIPES
    """The experiment's recipes by name."""

    recipe: RecipeName = "auto"
    """Settings for the size of the data set; flags win. They are the number of steps, augmentation and regularisation.
    ``auto``: ``small`` below 5,000 training examples, ``medium`` below 100,000, else ``large``; but ``none`` for
    generated data sets, and if --steps is given."""
    fixed_flags: FilledIn[tuple[str, ...] | None] = None
    """The flags of those options that the recipe does not change any more: that the user has given, or that it has set.
    None: no command line was read; ``auto`` is then ``none``, and options that differ from their defaults are
    fixed."""


class ContrastiveRecipeFlags(RecipeFlags):
    """`RecipeFlags` of contrastive learning."""

    recipes = CONTRASTIVE_RECIPES


def shrink(config):
    """The configuration of a ``--smoke`` run: 4 steps on at most 64 examples, with an evaluation and a checkpoint every
    2 steps, so that all parts of a run are exercised; options with a method ``shrink`` are replaced by its result."""
    return dataclasses.replace(
        config,
        **{name: value.shrink() for name, value in vars(config).items() if hasattr(value, "shrink")},
        steps=min(config.steps, 4),
        batch_size=min(config.batch_size, 16),
        eval_every=2,
        checkpoint_every=2,
        input=dataclasses.replace(config.input, train_size=min(config.input.train_size or 64, 64)),
        data=_shrink_data(config.data),
    )


def _shrink_data(spec: DataSpec) -> DataSpec:
    """What ``--data`` says, with at most 64 examples where a data set has a ``train_size`` of its own."""
    if not isinstance(spec, str):
        return tuple(map(_shrink_data, spec))
    return re.sub(r"(?<=[?&]train_size=)\d+", lambda size: str(min(int(size[0]), 64)), spec)
