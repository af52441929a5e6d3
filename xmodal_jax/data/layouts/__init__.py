"""The layouts in which data sets lie in a folder, for ``--data folder:PATH``: what is published, as it comes.

A new layout is a function that finds its splits, and one entry in `find.LAYOUTS`.
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "layout": "Layout SplitFiles ReadOptions",
        "find": "LAYOUTS CLASS_FOLDERS find_layout",
    },
)
