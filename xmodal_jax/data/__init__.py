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

from xmodal_jax.core.lazy import lazy_exports

# Names are imported on first use, because some modules load JAX, which generated data sets do not need.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "source": "Source SourceView RawBatch first_of_group read_fields",
        "bad_examples": "BadExample BadExampleError BadExamples OnBadExample",
        "open": "DataOptions FORMS Form open_source apply_missing",
        "held_out": "open_parts",
        "mixture": "MixtureSource",
        "mixture_splits": "open_mixture split_options",
        "splits": (
            "Splits open_splits fit_tokenizer prepare_source make_tokenizer make_text_cleaner "
            "choose_batch_size choose_text_length read_captions FittedTransforms fit_transforms"
        ),
        "standardise": "FeatureStatistics StandardiseTransform fit_standardisation load_standardisation "
        "standardisation_from_json",
        "tasks": "open_task read_target_classes",
        "text": (
            "Tokenizer TokenizeTransform train_tokenizer load_tokenizer load_hf_tokenizer "
            "tokenizer_from_files clean_text caption_fields"
        ),
        "pipeline": "Loader iterate_epoch numeric_fields",
        "views": (
            "Subset TransformedSource IncompleteSource keep_complete keep_labelled hold_out one_per_picture "
            "read_into_memory"
        ),
        "media": "decode_audio decode_audio_blocks decode_image decode_video resample_blocks to_pcm",
        "metadata": "Record read_metadata",
        "table": "Table Row Content FolderFile",
    },
)
