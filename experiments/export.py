"""Export of a trained run for other programs.

    python experiments/export.py RUN FOLDER
    python experiments/export.py RUN FOLDER --format safetensors stablehlo --dtype int8 --data folder:PATH
    python experiments/export.py RUN FOLDER --format onnx --license mit --push OWNER/NAME

FOLDER/parameters holds all parameters as plain safetensors; inference.load takes FOLDER like a run. Pretrained encoders
are written as their own architectures (FOLDER/image, FOLDER/text, …), both towers of CLIP with their own projections as
FOLDER/clip, a captioner of a pretrained image encoder as FOLDER/captioner; transformers loads each of them.
FOLDER/stablehlo holds programs that JAX alone runs, on CPU, GPU and TPU; FOLDER/onnx those for ONNX Runtime and others.
docs/export.md says more.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.deploy.export import FORMATS, export_formats
from xmodal_jax.deploy.push import check_token, push
from xmodal_jax.train.command_line import run_script
from xmodal_jax.transfer.weights import DTYPES


@dataclasses.dataclass(frozen=True)
class Config:
    """A trained run for other programs."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory of the run to export."""
    folder: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder to write to, which must be new or empty."""
    format: tuple[Literal[tuple(FORMATS)], ...] = ("hf",)
    """Formats to write: all parameters (safetensors); these and the networks that transformers loads (hf); programs
    that JAX alone runs (stablehlo), or ONNX Runtime (onnx)."""
    dtype: Literal[tuple(DTYPES)] = "float32"
    """Weights as they were trained (float32), rounded (bfloat16), or matrices and convolutions as integers with a scale
    for each output channel (int8); all of them are computed in float32."""
    data: str | None = None
    """Data set on whose test split the loss of --dtype is measured, for the model card."""
    license: str = "unknown"
    """Licence of the model, as the Hub names it (apache-2.0, mit, cc-by-4.0), for the model card."""
    push: str | None = None
    """OWNER/NAME on the Hugging Face Hub to upload the folder to; needs a token (HF_TOKEN)."""
    private: bool = False
    """Whether a repository that --push makes is private."""
    best: bool = False
    """Whether to export the checkpoint that is best by validation, not the newest."""
    seed: int | None = None
    """Seed of the trained model to export, if the run has several seeds; None: the run's only seed."""


def main(config: Config) -> None:
    runtime.configure()
    if config.push is not None:
        check_token()
    written = export_formats(
        config.run,
        config.folder,
        formats=config.format,
        dtype=config.dtype,
        best=config.best,
        seed=config.seed,
        license=config.license,
        data=config.data,
    )
    for name, description in written.items():
        print(f"{config.folder / name}: {description}")
    if config.push is not None:
        print(f"uploaded to {push(config.folder, config.push, private=config.private)}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
