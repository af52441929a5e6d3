"""Export of a trained run in one or several formats."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xmodal_jax.deploy.card import CARD, UNKNOWN, write_card
from xmodal_jax.deploy.measure import measure_losses
from xmodal_jax.deploy.onnx_files import write_onnx
from xmodal_jax.deploy.stablehlo import write_stablehlo
from xmodal_jax.inference.loading import make_model, restore
from xmodal_jax.inference.model import RestoredRun, TrainedModel
from xmodal_jax.pretrained.export import check_is_new
from xmodal_jax.transfer.export import write_networks, write_parameters
from xmodal_jax.transfer.exported import PARAMETERS
from xmodal_jax.transfer.weights import DTYPES

WriteFormat = Callable[[RestoredRun, pathlib.Path, str], dict[str, str]]
"""``write(run, folder, dtype)``: writes a format into the folder of the export; what it wrote, by path in it."""


class Format(NamedTuple):
    """One format of an export."""

    write: WriteFormat
    dtypes: tuple[str, ...]
    """The dtypes of weights that it can hold, of `weights.DTYPES`."""


def _write_parameters(run: RestoredRun, folder: pathlib.Path, dtype: str) -> dict[str, str]:
    if (folder / PARAMETERS).exists():
        return {}  # another format wrote the same ones
    return write_parameters(run.checkpoint, folder, run.path, dtype)


def _write_networks(run: RestoredRun, folder: pathlib.Path, dtype: str) -> dict[str, str]:
    networks = write_networks(run.checkpoint, folder, run.path)
    return networks | _write_parameters(run, folder, dtype)


def _programs(name: str, write: Callable[[TrainedModel, pathlib.Path, str], dict[str, str]]) -> WriteFormat:
    """The writer of a format of programs into the folder ``name`` of the export, by ``write(model, folder, dtype)``."""

    def write_in_folder(run: RestoredRun, folder: pathlib.Path, dtype: str) -> dict[str, str]:
        written = write(make_model(run), folder / name, dtype)
        return {f"{name}/{path}": text for path, text in written.items()}

    return write_in_folder


FORMATS: dict[str, Format] = {
    "onnx": Format(_programs("onnx", write_onnx), tuple(DTYPES)),
    "stablehlo": Format(_programs("stablehlo", write_stablehlo), tuple(DTYPES)),
    "hf": Format(_write_networks, ("float32",)),
    "safetensors": Format(_write_parameters, tuple(DTYPES)),
}
"""The formats by name, in the order in which they are written: the file that says that an export is whole comes
last."""


def export_formats(
    run: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    formats: Sequence[str] = ("hf",),
    dtype: str = "float32",
    best: bool = False,
    seed: int | None = None,
    license: str = UNKNOWN,
    data: str | None = None,
) -> dict[str, str]:
    """Writes a trained run for other programs; returns a description of what was written, by path in ``folder``.

    ::

        export_formats("runs/captioning", "exported", formats=("safetensors", "stablehlo"), dtype="int8")

    Args:
      run, best, seed: as for `inference.load`. The formats ``hf`` and ``safetensors`` take runs of any kind.
      folder: new or empty.
      formats: of `FORMATS`. ``safetensors``: all parameters and the metadata, which `inference.load` takes like a run;
        ``hf``: these, and the networks that transformers loads; ``stablehlo``: programs that JAX alone runs;
        ``onnx``: programs for ONNX Runtime and others.
      dtype: of the weights, of `transfer.weights.DTYPES`; everything is computed in float32.
      license: its identifier on the Hub, for the model card.
      data: a data set, in a form of ``--data``, on whose test split the loss of the dtype is measured for the card.

    Raises:
      FileExistsError: ``folder`` is not empty.
      ValueError: a format is not known, cannot hold the dtype, or there are no programs of runs of this kind.
    """
    if unknown := [name for name in formats if name not in FORMATS] or (["none"] if not formats else []):
        raise ValueError(f"--format {unknown[0]}: the formats are {', '.join(FORMATS)}")
    for name in formats:
        if dtype not in FORMATS[name].dtypes:
            raise ValueError(
                f"--dtype {dtype}: --format {name} holds weights as {' or '.join(FORMATS[name].dtypes)} only: leave "
                "--dtype out, or export it to another folder"
            )
    folder = pathlib.Path(folder)
    check_is_new(folder)
    restored = restore(run, best=best, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    for name, format in FORMATS.items():
        if name in formats:
            written |= format.write(restored, folder, dtype)
    losses = None if data is None else measure_losses(make_model(restored), data, dtype)
    write_card(restored, folder, formats=formats, dtype=dtype, license=license, losses=losses)
    return written | {CARD: "the model card"}
