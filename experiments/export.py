"""Export of a trained run as Hugging Face folders.

    python experiments/export.py RUN FOLDER

FOLDER/parameters holds all parameters as plain safetensors; inference.load takes FOLDER like a run. Pretrained encoders
are written as their own architectures (FOLDER/image, FOLDER/text, …), both towers of CLIP with their own projections as
FOLDER/clip, a captioner of a pretrained image encoder as FOLDER/captioner; transformers loads each of them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.train.command_line import run_script
from xmodal_jax.transfer.export import export_run


@dataclasses.dataclass(frozen=True)
class Config:
    """A trained run as Hugging Face folders."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory of the run to export."""
    folder: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder to write to, which must be new or empty."""
    best: bool = False
    """Whether to export the checkpoint that is best by validation, not the newest."""
    seed: int | None = None
    """Seed of the trained model to export, if the run has several seeds; None: the run's only seed."""


def main(config: Config) -> None:
    runtime.configure()
    written = export_run(config.run, config.folder, best=config.best, seed=config.seed)
    for name, description in written.items():
        print(f"{config.folder / name}: {description}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
