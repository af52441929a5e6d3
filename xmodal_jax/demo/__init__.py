"""A page in the browser on which trained runs are tried: one tab for each thing that they can do.

::

    from xmodal_jax.demo import DemoOptions, serve

    serve([load("runs/captioning"), load("runs/vae")], DemoOptions(port=8000))

It needs Gradio (``pip install -r requirements-demo.txt``), which is imported only when a page is built.
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "limits": "DemoOptions ModelWorker",
        "photos": "Photos index_photos",
        "tabs": "TABS Tab TabContext tabs_of",
        "page": "build_page",
        "server": "serve",
        "middleware": "ProtectedApp",
    },
)
