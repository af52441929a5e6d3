"""Open a data set by its name on the command line, ``--data``.

`FORMS` is the table of names. A new kind of data set is a `Source` in a file of its own, and one entry there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np

from xmodal_jax.core.parts import Advanced
from xmodal_jax.data.bad_examples import BadExamples, OnBadExample
from xmodal_jax.data.columns import names_modality, parse_columns
from xmodal_jax.data.media import Fit, Resample
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import load_npz
from xmodal_jax.data.sources.digits import load_digits
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.sources.parquet import HubSource, ParquetSource, SavedSource
from xmodal_jax.data.sources.poly import PolySource
from xmodal_jax.data.sources.spoken import SpokenLines
from xmodal_jax.data.sources.stacked import StackedSource
from xmodal_jax.data.sources.tar import TarSource
from xmodal_jax.data.sources.tfds import TfdsSource
from xmodal_jax.data.split_names import parse_part, splits_overlap
from xmodal_jax.data.views import IncompleteSource, Subset, keep_complete
from xmodal_jax.types import MODALITIES

_FILE_OPTIONS = (
    "image_size", "largest_side", "image_fit", "resample", "image_centre", "channels", "sample_rate", "max_seconds",
    "frames", "modalities", "prompt", "columns", "allow_outside", "bad_examples", "memory_limit", "check_files",
    "workers", "progress",
)  # fmt: skip
"""The options of data sets that are read from image, audio and video files."""
TEST_SIZE = 600
"""Examples in each test split of a generated data set, at most."""


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How a data set is read. Each form of ``--data`` uses some of these options, see `FORMS`.

    ::

        DataOptions(image_size=64, modalities=("text", "image"), missing=0.3)

    Raises:
      ValueError: a value outside its range, or a name that is no modality.
    """

    image_size: int | None = None
    """Side of images and video frames in pixels. None: the size that the data set has, 32 for shapes; for image
    files the median of their shorter sides, at most --largest-side. Arrays (npz:PATH) are not resized but must have
    this size."""
    largest_side: Advanced[int | None] = None
    """Largest side in pixels to which image files are resized where --image-size is not given. None: 64, which the
    default networks are made for, or that of a pretrained image encoder."""
    image_fit: Advanced[Fit | None] = None
    """How images become squares: the shorter side is resized and the centre cropped (crop), the longer side is resized
    and the rest black (pad), or each side is resized (stretch). None: as for a pretrained image encoder, or crop."""
    resample: Advanced[Resample | None] = None
    """Filter by which images are resized: nearest, box, bilinear, hamming, bicubic or lanczos. None: that of a
    pretrained image encoder, or bicubic."""
    image_centre: Advanced[float | None] = None
    """Fraction of the resized side of an image that is kept, around the centre (not with --image-fit pad): 0.875
    resizes to 256 pixels and crops to 224. None: as for a pretrained image encoder, or 1."""
    channels: Advanced[int] = 3
    """Colour channels of images and video frames: 1 (gray) or 3 (RGB)."""
    sample_rate: Advanced[int] = 16000
    """Rate in Hz that audio is resampled to. Speech of shapes and spoken:FILE always has 16000 Hz."""
    max_seconds: Advanced[float] = 4.0
    """Length in seconds that audio is cut or padded to. Synthetic speech that would be longer is spoken faster."""
    frames: Advanced[int] = 8
    """Number of frames that a video is reduced to, evenly spaced."""
    modalities: tuple[str, ...] | None = None
    """Modalities to read: text, image, audio, video, vector, series, a kind of your own (docs/modality.md), or
    KIND_NAME for further ones of a kind (such as image_2). None: all that the data set has; for shapes text, image and
    audio."""
    on_bad_example: OnBadExample = "stop"
    """What to do with an example that cannot be used, such as a damaged file: ``stop`` the run, or ``skip`` the
    example, which is then counted and listed in the report."""
    columns: Advanced[tuple[str, ...] | None] = None
    """Columns of metadata, Parquet or Arrow files, as NAME=COLUMN: file_name=photo label=species text_es=spanish. NAME
    is file_name, label, group or a modality (image, text_es). vector=age,weight,lab_* joins several columns of numbers.
    Fields of tar:SHARDS: image_2=right.png text=json.alt. None: those with the usual or common names."""
    allow_outside: Advanced[bool] = False
    """Whether metadata (folder:PATH) may name files outside of their folder, by absolute paths or with "..". Otherwise
    such a line is a bad example, so that the metadata of strangers cannot make a run read other files."""
    validation: Advanced[str | None] = None
    """Validation data: the NAME of a split, or a SHARE (0.1) or COUNT (500) of the training examples, which are held
    out. None: the split that the data set has for validation, or else a tenth of the training examples, at most 300."""
    test_split: Advanced[str | None] = None
    """Test data: the NAME of a split, or a SHARE (0.1) or COUNT of the training examples, which are held out. None: the
    test splits that the data set has; or else its validation split, or a tenth of the training examples."""
    test_data: Advanced[str | None] = None
    """Another data set, whose test splits are the test data in place of those of --data, such as one that has the
    modalities of several data sets that are mixed. None: those of --data."""
    data_weights: Advanced[tuple[float, ...] | None] = None
    """How often training draws from each of several data sets (--data A B), in any unit: 2 1 takes two examples of A
    for each one of B. None: in proportion to their numbers of examples."""
    data_dir: Advanced[str | None] = None
    """Folder of the data sets that TensorFlow Datasets has prepared (tfds:NAME). None: the environment variable
    TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    prompt: Advanced[str | None] = None
    """Template of a caption, with {} for the class name, for a data set with labels but no captions. None: a template
    that suits the data set, usually "a photo of a {}"."""
    train_size: int | None = None
    """Number of training examples of a generated data set (shapes, spoken:FILE, poly:SPEC, stacked:SPEC). For shapes
    the number of scenes (None: 10,000); for spoken:FILE the number of utterances (None: one for each training line of
    FILE); for poly:SPEC the largest number, as a random subset (None: all); for stacked:SPEC the number of stacks
    (None: 50,000). The test splits of shapes, spoken:FILE and stacked:SPEC have as many, but at most 600."""
    data_seed: Advanced[int] = 0
    """Random seed of generated data (shapes, spoken:FILE, poly:SPEC, stacked:SPEC) and of the choice of missing
    modalities."""
    voice_language: Advanced[str] = "en"
    """Language that the lines of spoken:FILE are spoken in, by its name in eSpeak NG, such as es."""
    views: Advanced[int] = 5
    """Number of image modalities in each example of poly:SPEC."""
    missing: float = 0.0
    """Probability that a training example lacks a modality, for each modality; each example keeps at least one.
    Validation and test examples stay complete. 0: no modality is removed."""
    incomplete: Advanced[Literal["keep", "discard"]] = "keep"
    """Whether training examples that lack a modality are used (keep) or left out (discard)."""
    workers: Advanced[int] = 8
    """Number of threads that decode images, recordings and videos; of processes, at most one per core, where many files
    of less than a millisecond are decoded."""
    memory_limit_gib: Advanced[float] = 4.0
    """Size in GiB up to which decoded files are kept in memory. The files of a larger data set are decoded again for
    each batch."""
    check_files: Advanced[bool | None] = None
    """Whether every file is decoded at the start, to find those that cannot be. None: if the decoded files are kept in
    memory, or if there are at most 20,000 examples; of a larger data set, a file that is damaged is found when it is
    first needed."""
    progress: Advanced[bool] = True
    """Whether to show a progress bar while data are read."""

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}.")
        for name in (
            "image_size",
            "largest_side",
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
        if self.image_centre is not None and not 0 < self.image_centre <= 1:
            raise ValueError(f"image_centre must lie above 0 and be at most 1, not {self.image_centre}.")
        if not 0 <= self.missing <= 1:
            raise ValueError(f"missing must lie in 0..1, a fraction of the examples; got {self.missing}.")
        for name, choices in (("image_fit", get_args(Fit)), ("resample", get_args(Resample))):
            if getattr(self, name) not in (None, *choices):
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.incomplete not in ("keep", "discard"):
            raise ValueError(f"incomplete must be keep or discard, not {self.incomplete!r}.")
        unknown = [m for m in self.modalities or () if not names_modality(m)]
        if unknown:
            raise ValueError(
                f"modalities: {unknown[0]!r} is none of {', '.join(MODALITIES)}, nor one of these with a name of its "
                "own, as image_1."
            )
        parse_columns(self.columns or ())
        test, validation = (parse_part(name, getattr(self, name)) for name in ("test_split", "validation"))
        if (
            test
            and validation
            and test.name
            and validation.name
            and splits_overlap(test.name, validation.name)
        ):
            both = test.name if test.name == validation.name else f"{validation.name} ({test.name})"
            raise ValueError(
                f"validation and test_split are both {both}: choose two splits, so that the test examples decide "
                "nothing."
            )
        if self.prompt is not None and (
            self.prompt.count("{}") != 1 or set("{}") & {*self.prompt.replace("{}", "")}
        ):
            raise ValueError(
                f"prompt must contain {{}} where the class name goes, once and no other braces, got {self.prompt!r}."
            )

    @property
    def column_of(self) -> dict[str, str] | None:
        """``columns`` as a dict, ``{"file_name": "path"}``; see `columns.parse_columns`."""
        return None if self.columns is None else parse_columns(self.columns)

    def generated_size(self, split: str) -> int | None:
        """Examples in a split of a generated data set: ``train_size`` for training (None: what the data set has), and
        at most `TEST_SIZE` for a test split."""
        if split == "train":
            return self.train_size
        return min(TEST_SIZE, self.train_size or TEST_SIZE)


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of ``--data``: ``NAME``, or ``NAME:ARGUMENT``."""

    argument: str
    """The argument after the colon as the help shows it, such as PATH; empty: the form takes none."""
    description: str
    """What the data set is, for the help."""
    open: Callable[..., Source]
    """Opens one split of the data set: ``open(argument, split=..., **options)``, without ``argument`` if the form takes
    none. For ``--data folder:photos`` it is called as ``open("photos", split="train", image_size=64, ...)``."""
    options: tuple[str, ...]
    """The keyword arguments of ``open`` besides ``split``: fields of `DataOptions`, or one of

    - ``size``: the number of examples of a generated split (see `DataOptions.generated_size`);
    - ``seed``: ``data_seed``;
    - ``memory_limit``: ``memory_limit_gib`` in bytes;
    - ``columns``: ``column_of``;
    - ``bad_examples``: the collector of bad examples.

    Options that are None are left out, so that ``open`` decides.
    """
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Options that must keep their default, each with the reason."""
    generated: bool = False
    """Whether the data set comes with this library or is generated: it is no data set of the user's own."""
    derived: bool = False
    """Whether ``argument`` names a data set of labelled images, from which ``open`` makes this one: ``open`` then takes
    that `Source` in place of the argument."""


FORMS: dict[str, Form] = {
    "shapes": Form(
        "",
        "Spoken Shapes, drawn and spoken here; nothing to download",
        SpokenShapes,
        ("size", "image_size", "modalities", "frames", "seed", "max_seconds"),
        fixed={"channels": "is drawn in 3 colour channels", "sample_rate": "is spoken at 16000 Hz"},
        generated=True,
    ),
    "tfds": Form(
        "NAME",
        "a TensorFlow Datasets set that has been prepared as ArrayRecord; --data-dir says where",
        TfdsSource,
        (
            "data_dir", "image_size", "image_fit", "resample", "image_centre", "channels", "sample_rate", "max_seconds",
            "modalities", "prompt",
        ),
    ),
    "folder": Form(
        "PATH",
        "files with metadata.jsonl or metadata.csv",
        FolderSource,
        _FILE_OPTIONS,
    ),
    "tar": Form(
        "SHARDS",
        "tar shards in WebDataset's layout: a folder of them, or a pattern such as 'shards/{000..099}.tar'",
        TarSource,
        tuple(option for option in _FILE_OPTIONS if option != "allow_outside"),
    ),
    "parquet": Form(
        "PATH",
        "Parquet files: one, those in a folder, or those that a glob fits",
        ParquetSource,
        _FILE_OPTIONS,
    ),
    "arrow": Form("PATH", "what datasets.save_to_disk wrote", SavedSource, _FILE_OPTIONS),
    "hub": Form(
        "NAME",
        "a data set of the Hugging Face hub, OWNER/NAME or OWNER/NAME:CONFIG; needs the package datasets",
        HubSource,
        _FILE_OPTIONS,
    ),
    "npz": Form(
        "PATH",
        "a .npz file, or a folder of .npy files, one per field",
        load_npz,
        ("modalities", "image_size", "bad_examples"),
    ),
    "digits": Form(
        "",
        "handwritten digits of 8x8 pixels, which come with scikit-learn; nothing to download",
        load_digits,
        ("image_size", "channels", "resample", "modalities"),
        generated=True,
    ),
    "spoken": Form(
        "FILE",
        "the lines of a text file, spoken here in many voices",
        SpokenLines,
        ("size", "modalities", "max_seconds", "seed", "voice_language"),
        fixed={"sample_rate": "is spoken at 16000 Hz"},
        generated=True,
    ),
    "poly": Form(
        "SPEC",
        "several image modalities made of any of the above that has images and labels: poly:tfds:mnist",
        PolySource,
        ("views", "seed", "modalities", "progress"),
        fixed={"channels": "is drawn in 3 colour channels"},
        generated=True,
        derived=True,
    ),
    "stacked": Form(
        "SPEC",
        "images of many modes: three of any of the above that has images and labels are the colour channels of one: "
        "stacked:digits",
        StackedSource,
        ("size", "seed", "modalities", "progress"),
        fixed={"channels": "has 3 colour channels, each an image"},
        generated=True,
        derived=True,
    ),
}  # fmt: skip
"""The forms of ``--data`` by the name before the colon."""


def spec_of(name: str) -> str:
    """The syntax of a form of ``--data``, for messages: ``shapes``, ``folder:PATH``."""
    return f"{name}:{FORMS[name].argument}" if FORMS[name].argument else name


def is_generated(spec: str) -> bool:
    """Whether a data set, with or without options after ``?``, comes with this library or is generated (see `Form`)."""
    form = FORMS.get(re.split("[:?]", spec, maxsplit=1)[0])
    return form is not None and form.generated


def _parse(spec: str) -> tuple[str, Form, str]:
    """``(name, form, argument)`` of ``spec``: ``folder:photos`` gives ``("folder", FORMS["folder"], "photos")``."""
    name, colon, argument = spec.partition(":")
    form = FORMS.get(name)
    # The colon and an argument must be there exactly if the form takes an argument.
    if form is None or bool(form.argument) != bool(argument) or bool(colon) != bool(argument):
        *others, last = map(spec_of, FORMS)
        hint = "" if form is None else f" {spec_of(name)}: {form.description}."
        raise ValueError(f"--data {spec!r} is not understood: use {', '.join(others)} or {last}.{hint}")
    return name, form, argument


def open_source(
    spec: str,
    split: str = "train",
    options: DataOptions = DataOptions(),
    *,
    bad_examples: BadExamples | None = None,
) -> Source:
    """Open one split of the data set that ``spec`` names.

    ::

        scenes = open_source("shapes", "test", DataOptions(modalities=("text", "image")))
        digits = open_source("npz:digits.npz")
        digits.batch(np.array([0, 3]))["image"]  # uint8 [2, H, W, C]

    Args:
      spec: one of `FORMS`, such as ``shapes``, ``folder:PATH`` or ``poly:tfds:mnist``.
      split: ``train``, ``test``, or another one that the data set has.
      options: how to read it; a form uses those that its entry in `FORMS` lists. ``missing`` and ``incomplete`` apply
        to the split ``train`` only.
      bad_examples: collects bad examples, and decides whether they stop the run. Default: a new collector with
        ``options.on_bad_example``.

    Raises:
      ValueError: another form, or an option that the data set cannot follow.
      FileNotFoundError: there is no such data.
      BadExampleError: a bad example, under ``on_bad_example="stop"``.
    """
    bad_examples = BadExamples(options.on_bad_example) if bad_examples is None else bad_examples
    source = derive_source(read_split(spec, split, options, bad_examples), spec, split, options)
    return apply_missing(source, options) if split == "train" else source


def apply_missing(source: Source, options: DataOptions) -> Source:
    """The training examples with some modalities removed at random, with probability ``options.missing`` each; then
    without the examples that lack a modality, if ``options.incomplete`` is ``discard``."""
    if options.missing:
        source = IncompleteSource(source, fraction=options.missing, seed=options.data_seed)
    return source if options.incomplete == "keep" else keep_complete(source)


def read_split(spec: str, split: str, options: DataOptions, bad_examples: BadExamples) -> Source:
    """One split of the data set ``spec``; for a derived form such as poly, the labelled images that it is made from.

    Raises:
      ValueError: ``options`` change an option that is fixed for this form.
    """
    name, form, argument = _parse(spec)
    for option, reason in form.fixed.items():
        if getattr(options, option) != getattr(DataOptions, option):
            raise ValueError(
                f"--data {spec_of(name)} {reason}: leave {option} (--{option.replace('_', '-')})."
            )
    if form.derived:
        return _read_images(name, argument, split, options, bad_examples)
    arguments = (argument,) if form.argument else ()
    return form.open(*arguments, split=split, **_keywords(form, split, options, bad_examples))


def derive_source(source: Source, spec: str, split: str, options: DataOptions) -> Source:
    """For a derived form such as poly, the data set made from ``source``, its labelled images; otherwise ``source``."""
    _, form, _ = _parse(spec)
    return form.open(source, split=split, **_keywords(form, split, options)) if form.derived else source


def _keywords(
    form: Form, split: str, options: DataOptions, bad_examples: BadExamples | None = None
) -> dict[str, Any]:
    """The keyword arguments of ``form.open`` for one split, without ``split``; see `Form.options`."""
    values = {
        **vars(options),
        "size": options.generated_size(split),
        "seed": options.data_seed,
        "memory_limit": int(options.memory_limit_gib * 2**30),
        "columns": options.column_of,
        "bad_examples": bad_examples,
    }
    return {name: values[name] for name in form.options if values[name] is not None}


def _read_images(name: str, spec: str, split: str, options: DataOptions, bad_examples: BadExamples) -> Source:
    """The labelled images ``spec`` from which the derived form ``name`` makes a data set; a random
    ``options.train_size`` of them for training, unless that is the size of the data set made of them."""
    origin = spec.partition(":")[0]
    if origin == "spoken" or (origin in FORMS and FORMS[origin].derived):
        raise ValueError(
            f"--data {name}:{spec} is not understood: {name}: needs a data set of labelled images, such as "
            f"{name}:tfds:mnist, {name}:folder:PATH or {name}:npz:PATH."
        )
    images = dataclasses.replace(options, modalities=("image",), train_size=None)
    source = read_split(spec, split, images, bad_examples)
    if split != "train" or options.train_size is None or "size" in FORMS[name].options:
        return source
    chosen = np.random.default_rng(options.data_seed).permutation(len(source))[: options.train_size]
    return Subset(source, np.sort(chosen))
