"""Open a data set by its name on the command line, ``--data``."""

from __future__ import annotations

import dataclasses

from xmodal_jax.data.problems import OnBadExample, Problems
from xmodal_jax.data.source import Source
from xmodal_jax.types import MODALITIES

TEST_SIZE = 600
"""Examples in each test split of the embedded data set."""

FORMS = "shapes, tfds:NAME, folder:PATH, npz:PATH or spoken:FILE"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How a data set is read. None leaves the choice to the data set."""

    image_size: int | None = None
    """Side of images and video frames in pixels: the shorter side is resized to it, then the centre
    cropped."""
    channels: int = 3
    """Colour channels, 1 or 3."""
    sample_rate: int = 16000
    """Audio is resampled to this rate, in Hz."""
    max_seconds: float = 4.0
    """Audio is cut and padded to this length."""
    frames: int = 8
    """Frames of each video clip, evenly spaced."""
    modalities: tuple[str, ...] | None = None
    """Which of text, image, audio and video to read; None reads all that the data set has."""
    on_bad_example: OnBadExample = "stop"
    """What to do with an example that cannot be used: stop the run, or skip, count and list it."""
    data_dir: str | None = None
    """Where TensorFlow Datasets has prepared its data sets (tfds:NAME)."""
    prompt: str | None = None
    """The caption of a class name, such as "a photo of a {}", for data sets with labels but no captions."""
    train_size: int | None = None
    """Number of training examples of a generated data set (shapes, spoken); its test splits have up to 600."""
    data_seed: int = 0
    """Seed of a generated data set (shapes, spoken)."""
    workers: int = 8
    """Threads that decode files (folder:PATH)."""
    memory_limit_gib: float = 4.0
    """Decoded files are kept in memory up to this size (folder:PATH)."""
    progress: bool = True
    """Whether to show a progress bar while files are read."""

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}.")
        for name in (
            "image_size",
            "sample_rate",
            "max_seconds",
            "frames",
            "train_size",
            "workers",
            "memory_limit_gib",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}.")
        unknown = [m for m in self.modalities or () if m not in MODALITIES]
        if unknown:
            raise ValueError(f"modalities: {unknown[0]!r} is none of {', '.join(MODALITIES)}.")
        if self.prompt is not None and "{}" not in self.prompt:
            raise ValueError(f"prompt must contain {{}} where the class name goes, got {self.prompt!r}.")


def open_source(
    spec: str, split: str = "train", options: DataOptions = DataOptions(), *, problems: Problems | None = None
) -> Source:
    """The data set that ``spec`` names: ``shapes``, ``tfds:NAME``, ``folder:PATH``, ``npz:PATH`` or ``spoken:FILE``.

    Arrays (npz) are taken as they are, so that of the options only ``modalities`` and the check of
    ``image_size`` apply to them.

    ``problems`` collects the bad examples (default: a new collector with ``options.on_bad_example``; a given
    one decides itself). Raises ValueError for another form, FileNotFoundError where there is no such data.
    """
    kind, _, rest = spec.partition(":")
    o = options
    problems = Problems(o.on_bad_example) if problems is None else problems
    size = o.train_size if split == "train" else min(TEST_SIZE, o.train_size or TEST_SIZE)
    if spec == "shapes":
        from xmodal_jax.data.shapes import SpokenShapes

        if (o.channels, o.sample_rate) != (3, 16000):
            raise ValueError(
                "--data shapes is drawn in 3 colour channels and spoken at 16000 Hz: leave these options."
            )
        given = {"size": size, "image_size": o.image_size, "modalities": o.modalities}
        return SpokenShapes(
            split=split, frames=o.frames, seed=o.data_seed, max_seconds=o.max_seconds,
            **{k: v for k, v in given.items() if v is not None},
        )  # fmt: skip
    if kind not in ("tfds", "folder", "npz", "spoken") or not rest:
        raise ValueError(f"--data {spec!r} is not understood: use {FORMS}.")
    if kind == "spoken":
        from xmodal_jax.data.spoken import SpokenLines

        if o.sample_rate != 16000:
            raise ValueError("--data spoken:FILE is spoken at 16000 Hz: leave sample_rate (--sample-rate).")
        return SpokenLines(
            rest, split, size=size, modalities=o.modalities,
            max_seconds=o.max_seconds, seed=o.data_seed,
        )  # fmt: skip
    if kind == "npz":
        from xmodal_jax.data.arrays import load_npz

        source = load_npz(rest, split, o.modalities)
        for field in ("image", "video"):
            if (
                o.image_size
                and field in source.arrays
                and source.arrays[field].shape[-3:-1] != (o.image_size,) * 2
            ):
                height, width = source.arrays[field].shape[-3:-1]
                raise ValueError(
                    f"{spec}: {field!r} is {height} x {width} pixels, image_size asks for "
                    f"{o.image_size}. Arrays are "
                    "taken as they are: save them at that size, or set image_size (--image-size) to theirs."
                )
        return source
    if kind == "tfds":
        from xmodal_jax.data.tfds import TfdsSource

        return TfdsSource(
            rest, split, data_dir=o.data_dir, image_size=o.image_size, channels=o.channels,
            sample_rate=o.sample_rate, max_seconds=o.max_seconds, modalities=o.modalities, prompt=o.prompt,
        )  # fmt: skip
    from xmodal_jax.data.folder import FolderSource

    return FolderSource(
        rest, split, image_size=o.image_size, channels=o.channels, sample_rate=o.sample_rate,
        max_seconds=o.max_seconds, frames=o.frames, modalities=o.modalities, problems=problems,
        workers=o.workers, memory_limit=int(o.memory_limit_gib * 2**30), progress=o.progress,
        **({} if o.prompt is None else {"prompt": o.prompt}),
    )  # fmt: skip
