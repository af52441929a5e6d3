"""Open a data set by its name on the command line, ``--data``."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from xmodal_jax.core.parts import Advanced
from xmodal_jax.data.bad_examples import BadExamples, OnBadExample
from xmodal_jax.data.source import Source
from xmodal_jax.types import MODALITIES, kind_of

TEST_SIZE = 600
"""Examples in each test split of the embedded data set."""

FORMS = "shapes, tfds:NAME, folder:PATH, npz:PATH, spoken:FILE or poly:SPEC"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How a data set is read. None leaves the choice to the data set."""

    image_size: int | None = None
    """Side of images and video frames in pixels: the shorter side is resized to it, then the centre
    cropped."""
    channels: Advanced[int] = 3
    """Colour channels, 1 or 3."""
    sample_rate: Advanced[int] = 16000
    """Audio is resampled to this rate, in Hz."""
    max_seconds: float = 4.0
    """Audio is cut and padded to this length."""
    frames: Advanced[int] = 8
    """Frames of each video clip, evenly spaced."""
    modalities: tuple[str, ...] | None = None
    """Which of text, image, audio and video (or others of a kind, named KIND_NAME) to read; None reads all that the
    data set has, of shapes text, image and audio."""
    on_bad_example: OnBadExample = "stop"
    """What to do with an example that cannot be used: stop the run, or skip, count and list it."""
    data_dir: str | None = None
    """Where TensorFlow Datasets has prepared its data sets (tfds:NAME)."""
    prompt: str | None = None
    """The caption of a class name, such as "a photo of a {}", for data sets with labels but no captions."""
    train_size: int | None = None
    """Number of training examples of a generated data set: of shapes and spoken, whose test splits have up to 600; of
    poly at most, chosen at random from its data set, whose test split stays whole."""
    data_seed: Advanced[int] = 0
    """Seed of a generated data set (shapes, spoken, poly) and of what is missing."""
    views: Advanced[int] = 5
    """Number of image modalities (poly:SPEC)."""
    missing: float = 0.0
    """Share of the training examples that lack a modality, for each modality, drawn at random; each example keeps at
    least one. Validation and test examples stay complete."""
    incomplete: Advanced[Literal["keep", "discard"]] = "keep"
    """Whether training sees the examples that lack a modality, or none of them."""
    workers: Advanced[int] = 8
    """Threads that decode files (folder:PATH)."""
    memory_limit_gib: Advanced[float] = 4.0
    """Decoded files are kept in memory up to this size (folder:PATH)."""
    progress: Advanced[bool] = True
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
            "views",
            "workers",
            "memory_limit_gib",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}.")
        if not 0 <= self.missing <= 1:
            raise ValueError(f"missing must lie in 0..1, a share of the examples; got {self.missing}.")
        if self.incomplete not in ("keep", "discard"):
            raise ValueError(f"incomplete must be keep or discard, not {self.incomplete!r}.")
        unknown = [m for m in self.modalities or () if not _names_modality(m)]
        if unknown:
            raise ValueError(
                f"modalities: {unknown[0]!r} is none of {', '.join(MODALITIES)}, nor one of these with a name of its "
                "own, as image_1."
            )
        if self.prompt is not None and "{}" not in self.prompt:
            raise ValueError(f"prompt must contain {{}} where the class name goes, got {self.prompt!r}.")


def _names_modality(name: str) -> bool:
    if name.endswith(("_mask", "_present", "_")):
        return False
    return name.partition("_")[0] in MODALITIES


def open_source(
    spec: str,
    split: str = "train",
    options: DataOptions = DataOptions(),
    *,
    bad_examples: BadExamples | None = None,
) -> Source:
    """The data set that ``spec`` names: ``shapes``, ``tfds:NAME``, ``folder:PATH``, ``npz:PATH``, ``spoken:FILE``, or
    ``poly:SPEC``, image modalities made of another one (see `poly.PolySource`).

    Arrays (npz) are taken as they are, so that of the options only ``modalities`` and the check of
    ``image_size`` apply to them.

    ``bad_examples`` collects the bad examples (default: a new collector with ``options.on_bad_example``; a given
    one decides itself). Raises ValueError for another form, FileNotFoundError where there is no such data.
    """
    bad_examples = BadExamples(options.on_bad_example) if bad_examples is None else bad_examples
    source = _finish(_read(spec, split, options, bad_examples), spec, split, options)
    return apply_missing(source, options) if split == "train" else source


def open_training(
    spec: str, options: DataOptions, *, bad_examples: BadExamples, validation: int = 300
) -> tuple[Source, Source]:
    """``(training, validation)``: the split ``train`` without ``validation`` examples (a tenth, if that is fewer), and
    those, complete. Of poly, neither shows an image of the other."""
    from xmodal_jax.data.views import hold_out

    source = _read(spec, "train", options, bad_examples)
    rest, held = hold_out(source, max(1, min(validation, len(source) // 10)))
    train = apply_missing(_finish(rest, spec, "train", options), options)
    return train, _finish(held, spec, "validation", options)


def apply_missing(source: Source, options: DataOptions) -> Source:
    """The source with a share of its modalities missing, or without the examples that lack any, as the options say."""
    from xmodal_jax.data.views import IncompleteSource, keep_complete

    if options.missing:
        source = IncompleteSource(source, share=options.missing, seed=options.data_seed)
    return source if options.incomplete == "keep" else keep_complete(source)


def _finish(source: Source, spec: str, split: str, options: DataOptions) -> Source:
    """What the data set makes of the files that it is read from."""
    if not spec.startswith("poly:"):
        return source
    from xmodal_jax.data.sources.poly import PolySource

    return PolySource(
        source, views=options.views, seed=options.data_seed, split=split, modalities=options.modalities,
        progress=options.progress,
    )  # fmt: skip


def _read_inner(spec: str, split: str, o: DataOptions, bad_examples: BadExamples) -> Source:
    """The labelled images that poly:SPEC is made of."""
    if spec.partition(":")[0] in ("poly", "spoken", ""):
        raise ValueError(
            f"--data poly:{spec} is not understood: poly: needs a data set of labelled images, such as "
            "poly:tfds:mnist, poly:folder:PATH or poly:npz:PATH."
        )
    if o.channels != 3:
        raise ValueError("--data poly:SPEC is drawn in 3 colour channels: leave channels (--channels).")
    source = _read(spec, split, dataclasses.replace(o, modalities=("image",), train_size=None), bad_examples)
    if split != "train" or o.train_size is None:
        return source
    from xmodal_jax.data.views import Subset

    chosen = np.random.default_rng(o.data_seed).permutation(len(source))[: o.train_size]
    return Subset(source, np.sort(chosen))


def _read(spec: str, split: str, options: DataOptions, bad_examples: BadExamples) -> Source:
    """What is stored: the data set, or what it is made of."""
    kind, _, rest = spec.partition(":")
    o = options
    if kind == "poly":
        return _read_inner(rest, split, o, bad_examples)
    size = o.train_size if split == "train" else min(TEST_SIZE, o.train_size or TEST_SIZE)
    if spec == "shapes":
        from xmodal_jax.data.shapes.source import SpokenShapes

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
        from xmodal_jax.data.sources.spoken import SpokenLines

        if o.sample_rate != 16000:
            raise ValueError("--data spoken:FILE is spoken at 16000 Hz: leave sample_rate (--sample-rate).")
        return SpokenLines(
            rest, split, size=size, modalities=o.modalities,
            max_seconds=o.max_seconds, seed=o.data_seed,
        )  # fmt: skip
    if kind == "npz":
        from xmodal_jax.data.sources.arrays import load_npz

        source = load_npz(rest, split, o.modalities)
        for field in source.modalities:
            if (
                o.image_size
                and kind_of(field) in ("image", "video")
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
        from xmodal_jax.data.sources.tfds import TfdsSource

        return TfdsSource(
            rest, split, data_dir=o.data_dir, image_size=o.image_size, channels=o.channels,
            sample_rate=o.sample_rate, max_seconds=o.max_seconds, modalities=o.modalities, prompt=o.prompt,
        )  # fmt: skip
    from xmodal_jax.data.sources.folder import FolderSource

    return FolderSource(
        rest, split, image_size=o.image_size, channels=o.channels, sample_rate=o.sample_rate,
        max_seconds=o.max_seconds, frames=o.frames, modalities=o.modalities, bad_examples=bad_examples,
        workers=o.workers, memory_limit=int(o.memory_limit_gib * 2**30), progress=o.progress,
        **({} if o.prompt is None else {"prompt": o.prompt}),
    )  # fmt: skip
