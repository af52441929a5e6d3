"""Training, validation and test examples of a data set: splits of its own, or parts of the training split."""

from __future__ import annotations

from collections.abc import Iterable

from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.open import DataOptions, apply_missing, derive_source, open_source, read_split
from xmodal_jax.data.source import Source
from xmodal_jax.data.split_names import Part, parse_part, split_of, splits_overlap
from xmodal_jax.data.views import hold_out


def open_parts(
    spec: str, options: DataOptions, bad_examples: BadExamples, *, validation: int = 300
) -> tuple[Source, Source, dict[str, Source]]:
    """``(training, validation, tests)``: data that share no picture where parts of the training split are held out.

    ``options.test_split`` and ``options.validation`` choose the test and the validation data. By default these are the
    splits that the data set has; without a test split, its validation split is the test split; and what there is no
    split for is a random part of the training split, held out with all examples of its pictures. What was chosen
    without being asked for is remarked in ``bad_examples``, unless it is the usual: the test splits of the data set,
    and a part of its training split for validation.

    Args:
      spec: one of the forms of ``--data`` (see `open_source`).
      options: how to read it. ``missing`` and ``incomplete`` only affect the training examples. For poly:SPEC the
        labelled images are divided before the views are made, so that the parts share no image.
      bad_examples: collects bad examples of all splits.
      validation: training examples to hold out for validation by default; a tenth of them, if that is fewer.
    """
    test_part = parse_part("test_split", options.test_split)
    validation_part = parse_part("validation", options.validation)
    source = read_split(spec, "train", options, bad_examples)
    if len(source) < 2:
        raise ValueError(
            f"--data {spec}: the training split has {len(source)} example, of which none can be held out for "
            "validation: add some."
        )
    open_named = lambda name, flag=None: _open_named(spec, name, options, bad_examples, flag)
    for flag, part in (("--test-split", test_part), ("--validation", validation_part)):
        if part is not None and part.name is not None and split_of(part.name) == "train":
            bad_examples.remark(
                f"{flag} {part.name}: if the training data have these examples too, the scores are not those of unseen "
                "ones"
            )
    own_validation = source.validation_split
    if test_part is None:
        test_part = _default_test(spec, source, validation_part, bad_examples)
    tests: dict[str, Source] = {}
    if test_part is not None and test_part.name is not None:
        tests["test"] = open_named(test_part.name, "--test-split")
        # Where the test examples are those of a validation split, that must not decide anything.
        own_validation = None if split_of(test_part.name) == "validation" else own_validation
    elif test_part is not None:
        source, held_out = hold_out(source, test_part.size(len(source)))
        tests["test"] = derive_source(held_out, spec, "test", options)
    if validation_part is None and own_validation is not None:
        validation_part = Part(name=own_validation)
        bad_examples.remark(
            f"--data {spec}: its split {own_validation!r} is used for validation (--validation 0.1 holds out a share "
            "of the training examples instead)"
        )
    if validation_part is not None and validation_part.name is not None:
        _refuse_overlap(validation_part.name, [test_part.name] if test_part else source.test_splits)
        validated = open_named(validation_part.name, "--validation")
    else:
        usual = Part(count=max(1, min(validation, len(source) // 10)))
        source, held_out = hold_out(source, (validation_part or usual).size(len(source)))
        validated = derive_source(held_out, spec, "validation", options)
    train = apply_missing(derive_source(source, spec, "train", options), options)
    return train, validated, tests or {name: open_named(name) for name in train.test_splits}


def _open_named(
    spec: str, name: str, options: DataOptions, bad_examples: BadExamples, flag: str | None
) -> Source:
    """A split by name; the message of an error tells the ``flag`` that named it (None: no flag did)."""
    try:
        return open_source(spec, name, options, bad_examples=bad_examples)
    except BadExampleError:
        raise
    except ValueError as error:
        if flag is None or getattr(options, flag[2:].replace("-", "_")) is None:
            raise
        raise ValueError(f"{flag} {name}: {error}") from error


def _refuse_overlap(validation: str, tests: Iterable[str | None]) -> None:
    """Raises ValueError if the validation split is a test split too."""
    same = next((test for test in tests if test is not None and splits_overlap(validation, test)), None)
    if same is not None:
        raise ValueError(
            f"--validation {validation}: that is the test split ({same}) too, which would decide about the best "
            "checkpoint. Choose another one, or another --test-split."
        )


def _default_test(
    spec: str, source: Source, validation: Part | None, bad_examples: BadExamples
) -> Part | None:
    """What is the test split where none is asked for; None: the data set's own.

    Args:
      spec: the data set.
      source: its training split.
      validation: what is asked for as validation data.
      bad_examples: remarks the choice.
    """
    if source.test_splits:
        return None
    validation_split = source.validation_split
    if validation_split is None or (validation is not None and validation.name is not None):
        bad_examples.remark(
            f"--data {spec}: there is no test split; a tenth of the training examples is held out as one (--test-split "
            "NAME or SHARE chooses another)"
        )
        return Part(share=0.1)
    bad_examples.remark(
        f"--data {spec}: there is no test split; its split {validation_split!r} is the test split, and validation "
        "examples are held out of the training split (--test-split and --validation choose others)"
    )
    return Part(name=validation_split)
