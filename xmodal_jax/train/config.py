"""The flags that every experiment shares."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import tyro

from xmodal_jax.data.open import DataOptions
from xmodal_jax.models.lora import LoRA
from xmodal_jax.types import MODALITIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all experiments share; an experiment's own dataclass adds its fields."""

    data: str = "shapes"
    """Data set: ``shapes`` (embedded), ``tfds:NAME``, ``folder:PATH``, ``npz:PATH``, ``spoken:FILE``, or ``poly:SPEC``:
    image modalities made of another data set with images and labels."""
    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions()
    """How the data set is read."""
    tokenizer: str = "word"
    """``word``, ``wordpiece`` or ``bpe``, trained on the captions; or the folder of a Hugging Face tokenizer, or of a
    run's (``RUN/tokenizer``)."""
    vocab_size: int | None = None
    """Size of a trained tokenizer's vocabulary; None: by its kind. ``bpe`` with 260 reads bytes."""
    text_cleanup: Literal["none", "lower", "stop"] = "none"
    """Captions as they are, in lower case, or in lower case without English stop words."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 128
    """Examples per step, over all devices together."""
    seed: int = 0
    """Decides initialisation, order of the data and all randomness in training."""
    seeds: int = 1
    """Train this many runs at once, with the seeds ``seed``, ``seed + 1``, …; metrics are their mean and spread."""
    on_divergence: Literal["stop", "drop"] = "stop"
    """What happens when a loss or a gradient is no longer finite: the run stops, or, of several seeds, that one is
    dropped and counted, and the others go on."""
    parallel: Literal["jit", "pmap", "sharded"] = "jit"
    """One device, data parallelism with a named axis, or a mesh with sharded parameters."""
    fsdp: int = 1
    """Sharded mode: over how many devices each large array of the state is split."""
    dispatch: int = 1
    """Steps per program: one call runs this many in a ``lax.scan``."""
    resident: bool = True
    """Keep a data set that fits on the device there, and draw batches inside the program."""
    eval_every: int = 0
    """Steps between evaluations; 0: only at the end."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: only at the end (and when the run is asked to stop)."""
    patience: int = 0
    """Evaluations without improvement before training stops early; 0: never."""
    smoke: bool = False
    """Only check that everything works: a tiny data set and a few steps. Nearly all of its minute or two is
    compilation."""
    run_dir: pathlib.Path | None = None
    """Where the run's files go; ``runs/<experiment>-<time>`` if not given."""
    resume: bool = False
    """Go on from the newest checkpoint in run_dir."""

    @property
    def all_seeds(self) -> list[int]:
        """``seed``, ``seed + 1``, …, of the runs that train at once."""
        return [self.seed + k for k in range(self.seeds)]

    @property
    def reading(self) -> dict[str, Any]:
        """What `data.splits.fit_tokenizer` is to be told."""
        return dict(tokenizer=self.tokenizer, vocab_size=self.vocab_size, cleanup=self.text_cleanup)

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
        if self.resume and self.run_dir is None:
            raise ValueError("--resume needs --run-dir, the directory of the run to go on with")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedConfig(RunConfig):
    """What the experiments share that take pretrained encoders."""

    image_encoder: str | None = None
    """``hf:PATH``: a pretrained encoder of images, from a folder (config.json and safetensors) or the hub's
    ``hf:OWNER/MODEL``. Its positions are resampled to the data's image size: give --image-size."""
    text_encoder: str | None = None
    """``hf:PATH``: of texts, with its tokenizer."""
    audio_encoder: str | None = None
    """``hf:PATH``: of speech."""
    video_encoder: str | None = None
    """``hf:PATH``: of video."""

    @property
    def pretrained(self) -> dict[str, str]:
        """The pretrained encoders that are asked for, by modality (and, as "decoder", that of text)."""
        given = {m: getattr(self, f"{m}_encoder") for m in MODALITIES}
        return {m: encoder for m, encoder in given.items() if encoder is not None}

    @property
    def reading(self) -> dict[str, Any]:
        own, given = super().reading, self.pretrained
        reads = given.get("decoder", given.get("text"))
        if reads is None or self.tokenizer != RunConfig.tokenizer:
            return own
        return {**own, "tokenizer": reads}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig(PretrainedConfig):
    """What the experiments share that can start from what was trained before."""

    init_from: pathlib.Path | None = None
    """A run whose encoders (and decoder, if both have one) to start from."""
    encoder_lr_multiplier: float = 1.0
    """Learning rate of the encoders of --init-from and of pretrained ones, as a factor of that of the rest; 0 freezes
    them."""
    layer_decay: float = 1.0
    """Learning rate of each layer of the pretrained encoders, as a factor of that of the layer above it."""
    lora: LoRA = LoRA()
    """Adapters in the pretrained encoders, which are then frozen but for them (``--lora.rank 8``)."""

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


def shrink(config):
    """The configuration of a ``--smoke`` run: the same work at the smallest size that still exercises it."""
    return dataclasses.replace(
        config,
        steps=min(config.steps, 4),
        batch_size=min(config.batch_size, 16),
        eval_every=2,
        checkpoint_every=2,
        input=dataclasses.replace(config.input, train_size=min(config.input.train_size or 64, 64)),
    )
