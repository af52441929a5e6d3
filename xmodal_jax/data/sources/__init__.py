"""Data sets that are read from files: each a `Source`."""

from xmodal_jax.core.lazy import lazy_exports

# Names are imported on first use, because some modules load JAX, which generated data sets do not need.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "arrays": "ArraySource load_npz materialise",
        "tables": "TableSource MediaOptions",
        "folder": "FolderSource FolderTable",
        "tar": "TarSource TarTable",
        "parquet": "ParquetSource SavedSource HubSource ArrowTable",
        "tfds": "TfdsSource Adapter ADAPTERS find_prepared",
        "spoken": "SpokenLines",
        "poly": "PolySource overlay",
        "stacked": "StackedSource",
        "digits": "load_digits",
        "gray_images": "read_gray_images",
    },
)
