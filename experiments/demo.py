"""A page in the browser on which trained runs are tried: one tab for each thing that they can do.

    python experiments/demo.py runs/captioning runs/speech_synthesis
    python experiments/demo.py runs/contrastive --photos photos/

It needs `pip install -r requirements-demo.txt`. Only this machine reaches the page, unless --host says otherwise.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.demo import DemoOptions, index_photos, serve
from xmodal_jax.demo.page import require_gradio
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.loading import load
from xmodal_jax.train.command_line import run_script


@dataclasses.dataclass(frozen=True)
class Config:
    """A page to try trained runs."""

    runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Directories of runs, or the folders that they were exported to."""
    photos: pathlib.Path | None = None
    """Folder of pictures that runs of contrastive.py search; it is read once, at the start."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: whoever reaches this machine can use the page, without a password."""
    port: int = 7860
    """Port to listen on; 0: any free one."""
    max_upload_mb: float = 10.0
    """Size of an uploaded file in megabytes, at most."""
    max_seconds: float = 60.0
    """Seconds that a request may compute, at most."""
    best: bool = False
    """Whether to take the checkpoints that are best by validation, not the newest."""
    seed: int | None = None
    """Seed of the trained models, if the runs have several; None: their only seed."""

    def __post_init__(self):
        if not self.runs:
            raise ValueError("name at least one run")
        _ = self.options  # its mistakes are those of the flags

    @property
    def options(self) -> DemoOptions:
        """Where the page is served, and what a request may cost."""
        return DemoOptions(self.host, self.port, self.max_upload_mb, self.max_seconds)


def main(config: Config) -> None:
    require_gradio()  # a missing one is reported before the runs are read
    runtime.configure()
    models = [load(run, best=config.best, seed=config.seed) for run in config.runs]
    photos, bad_examples = {}, BadExamples("skip", announce=print)
    if config.photos is not None:
        spaces = [model for model in models if isinstance(model, ContrastiveModel)]
        if not spaces:
            raise ValueError(
                f"--photos {config.photos}: no run of contrastive.py is named, which searches it"
            )
        photos = {str(model.path): index_photos(model, config.photos, bad_examples) for model in spaces}
    serve(models, config.options, photos)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
