"""Embeds a data set with a trained run of contrastive.py, for search.py and for other programs.

    python experiments/embed.py RUN folder:PATH
    python experiments/embed.py RUN folder:PATH --modalities image --split test --format parquet
    python experiments/embed.py RUN 'parquet:photos/*.parquet' --output embeddings --on-bad-example skip

Images, audio and video are brought into the format that the run was trained with. Run the same command again to go on
with what was stopped: finished shards are kept. Several processes, started like those of a training, share the work.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, ClassVar

import jax
import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.embed_data import (
    ALL_SPLITS,
    UNUSED_OPTIONS,
    describe_data,
    embed_data,
    open_for_model,
    spread_over_devices,
)
from xmodal_jax.inference.index import SHARD_SIZE
from xmodal_jax.inference.index_files import Format
from xmodal_jax.inference.loading import load
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import DataFlags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Embeddings of a data set."""

    unused_options: ClassVar[tuple[str, ...]] = UNUSED_OPTIONS
    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory of a run of contrastive.py, the folder that it was exported to, or hf:FOLDER (CLIP or SigLIP)."""
    data: Annotated[str, tyro.conf.Positional]
    """Data set, in one of the forms of ``--data`` of the other scripts; by default the modalities that it shares with
    the run are embedded."""
    split: str = ALL_SPLITS
    """Split of the data set to embed: its name, or ``all``."""
    output: pathlib.Path | None = None
    """Folder to write to; None: RUN/embeddings-<split>."""
    format: Format = "safetensors"
    """Files of the embeddings: safetensors with names as JSON lines, or Parquet."""
    best: bool = False
    """Whether to take the checkpoint that is best by validation, not the newest."""
    seed: int | None = None
    """Seed of the trained model, if the run has several; None: the run's only seed."""
    batch_size: int = 256
    """Examples that are computed at a time, over all devices."""
    shard_size: int = SHARD_SIZE
    """Examples in each shard, the unit of work that is repeated after the program was stopped."""
    input: DataFlags = DataOptions()
    """Options of the data set. Images and sounds are brought into the format of the run."""

    def __post_init__(self):
        for name in ("batch_size", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


def main(config: Config) -> None:
    runtime.configure()
    process = jax.process_index(), jax.process_count()
    announce = print if process[0] == 0 else lambda text: None
    model = load(config.run, best=config.best, seed=config.seed)
    if not isinstance(model, ContrastiveModel):
        raise ValueError(
            f"{config.run} is a run of {model.kind}: only runs of contrastive.py have embeddings"
        )

    bad_examples = BadExamples(config.input.on_bad_example, announce=announce)
    source = open_for_model(model, config.data, config.split, config.input, bad_examples)
    announce(f"{model!r}: {len(source):,} examples with {', '.join(source.modalities)}")
    if config.output is None and not config.run.is_dir():
        raise ValueError("--output: name the folder to write to")
    folder = config.output or config.run / f"embeddings-{config.split}"
    spread_over_devices(model)
    embed_data(
        model, source, folder,
        data=describe_data(config.data, config.split, config.input), bad_examples=bad_examples,
        format=config.format, batch_size=config.batch_size, shard_size=config.shard_size, process=process,
        progress=config.input.progress and process[0] == 0, announce=announce,
    )  # fmt: skip
    announce(bad_examples.summary() or "no bad examples")
    announce(f'{folder}\nnext: python experiments/search.py {folder} --query "what to look for"')


if __name__ == "__main__":
    run_script(main, Config, __doc__)
