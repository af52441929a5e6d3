"""The page of a demo: a tab for each ability of each run."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from xmodal_jax.demo.limits import QUEUE_SIZE, DemoOptions, ModelWorker
from xmodal_jax.demo.photos import Photos
from xmodal_jax.demo.tabs import TabContext, tabs_of
from xmodal_jax.inference.model import TrainedModel

KEPT_SECONDS = 900
"""Seconds after which uploaded and generated files are removed."""
MAX_SESSIONS = 50
"""Open pages whose latents the server remembers; the oldest is forgotten."""
MAX_QUEUES = 200
"""Open pages whose queue of messages is kept: many more than requests that can wait."""
NO_TELEMETRY = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_SHARE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",  # requests that the server remembers
}
"""The environment in which Gradio is imported: it sends nothing, and its further services are off."""


def require_gradio() -> None:
    """Raises ValueError, with the command that installs it, where Gradio is missing; imports nothing."""
    try:
        is_missing = importlib.util.find_spec("gradio") is None
    except ValueError:  # something that is no package has its name
        is_missing = True
    if is_missing:
        raise ValueError("the demo needs Gradio: pip install -r requirements-demo.txt")


def import_gradio() -> Any:
    """The module Gradio; raises ValueError where it is missing."""
    require_gradio()
    os.environ.update(NO_TELEMETRY)
    import gradio

    return gradio


def build_page(
    models: Sequence[TrainedModel],
    options: DemoOptions,
    photos: Mapping[str, Photos] | None = None,
) -> Any:
    """The page, a ``gradio.Blocks``, with a tab for each thing that a model can do.

    Args:
      models: from `inference.load`.
      options: what a request may cost.
      photos: by the path of a model the folder that it searches (`index_photos`).

    Raises:
      ValueError: Gradio is missing, or a model can do nothing on a page.
    """
    gr = import_gradio()
    worker = ModelWorker(options.max_seconds)
    placed = []
    for model in models:
        context = TabContext(gr, worker, (photos or {}).get(str(model.path)))
        tabs = tabs_of(model, context)
        if not tabs:
            raise ValueError(
                f"{model.path} is a run of {model.kind} with {', '.join(model.format.modalities)}: the page has "
                "nothing for it (--photos FOLDER lets a shared space search)"
            )
        placed += [(tab, model, context) for tab in tabs]
    titles = Counter(tab.title for tab, _, _ in placed)
    with gr.Blocks(title="xmodal_jax", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as page:
        with gr.Tabs():
            for tab, model, context in placed:
                title = tab.title if titles[tab.title] == 1 else f"{tab.title}: {model.path.name}"
                with gr.Tab(title):
                    tab.build(model, context)
        gr.Markdown(f"Runs: {', '.join(model.path.name for model in models)}", elem_classes="runs")
    page.worker = worker  # ends with the page
    page.state_session_capacity = MAX_SESSIONS
    page.queue(max_size=QUEUE_SIZE, api_open=False, default_concurrency_limit=1)
    _limit_queues(page._queue)
    return page


class _NewestEntries(dict):
    """A dictionary that keeps the newest entries only, `MAX_QUEUES` of them."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Adds an entry, and removes the oldest one if there are too many."""
        super().__setitem__(key, value)
        if len(self) > MAX_QUEUES:
            del self[next(iter(self))]


def _limit_queues(queue: Any) -> None:
    """Limits what Gradio's queue keeps of each page that ever sent a request: 2,000 queues of messages, and any number
    of sets of requests. A page that is forgotten gets new ones with its next request."""
    for name in ("pending_messages_per_session", "pending_event_ids_session"):
        if isinstance(
            getattr(queue, name, None), dict
        ):  # another version of Gradio may have none of this name
            setattr(queue, name, _NewestEntries())
