"""Data sets: opening them by name, splits, tokenization, and a stream of batches.

::

    from xmodal_jax.data import BadExamples, DataOptions, Loader, fit_tokenizer, open_splits, prepare_source

    bad_examples = BadExamples()
    splits = open_splits("shapes", DataOptions(train_size=5000), bad_examples)
    tokenize, _ = fit_tokenizer(splits.train, bad_examples, tokenizer="word", vocab_size=None, cleanup="none")
    source, transform = prepare_source(splits.train, tokenize, limit=2**30)
    loader = Loader(source, batch_size=64, seed=0, transform=transform)
    batch = next(loader)  # "text" [64, L], "image" [64, 32, 32, 3], ...
"""

import importlib

_MODULES = {
    "Source": "source",
    "SourceView": "source",
    "RawBatch": "source",
    "read_fields": "source",
    "BadExample": "bad_examples",
    "BadExampleError": "bad_examples",
    "BadExamples": "bad_examples",
    "OnBadExample": "bad_examples",
    "DataOptions": "open",
    "FORMS": "open",
    "Form": "open",
    "open_source": "open",
    "open_training": "open",
    "apply_missing": "open",
    "Splits": "splits",
    "open_splits": "splits",
    "fit_tokenizer": "splits",
    "prepare_source": "splits",
    "make_tokenizer": "splits",
    "make_text_cleaner": "splits",
    "choose_text_length": "splits",
    "read_captions": "splits",
    "open_task": "tasks",
    "read_target_classes": "tasks",
    "Tokenizer": "text",
    "TokenizeTransform": "text",
    "train_tokenizer": "text",
    "load_tokenizer": "text",
    "load_hf_tokenizer": "text",
    "tokenizer_from_files": "text",
    "clean_text": "text",
    "caption_fields": "text",
    "Loader": "pipeline",
    "iterate_epoch": "pipeline",
    "numeric_fields": "pipeline",
    "Subset": "views",
    "TransformedSource": "views",
    "IncompleteSource": "views",
    "keep_complete": "views",
    "keep_labelled": "views",
    "hold_out": "views",
    "read_into_memory": "views",
    "decode_audio": "media",
    "decode_image": "media",
    "decode_video": "media",
    "to_pcm": "media",
    "Record": "metadata",
    "read_metadata": "metadata",
}
"""The module of each public name. It is imported on first use, because some load JAX, which generated data sets do not
need."""

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
