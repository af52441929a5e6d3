"""The server of a demo: it listens where it is told, and ends at Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xmodal_jax.demo.limits import DemoOptions
from xmodal_jax.demo.middleware import ProtectedApp
from xmodal_jax.demo.page import build_page, import_gradio
from xmodal_jax.demo.photos import Photos
from xmodal_jax.inference.model import TrainedModel

CSS = """
.gradio-container { width: 100% !important; max-width: 1100px !important; margin: 0 auto !important; }
.gradio-container > main, .gradio-container .block { width: 100%; min-width: 0 !important; }
.pictures .grid-wrap {
  min-height: 0 !important; max-height: none !important; height: auto !important; padding-top: 36px; overflow: visible;
}
.pictures .gallery-container:has(.preview) .grid-wrap { min-height: 450px !important; }
.pictures .thumbnail-lg { aspect-ratio: auto !important; height: auto !important; align-self: start; }
.pictures .thumbnail-lg img { aspect-ratio: 1; height: auto !important; }
.pictures .caption-label {
  position: static !important; display: block; max-width: 100% !important; border-left: 0 !important;
  white-space: normal !important; overflow-wrap: anywhere; text-align: center !important;
}
.pictures .grid-container { min-width: 0 !important; }
.picture img { width: 100%; height: 100%; object-fit: contain; padding-top: 30px; box-sizing: border-box; }
.runs { opacity: 0.6; font-size: 0.85em; }
footer { display: none !important; }
@media (max-width: 700px) {
  .gradio-container .row > .column { min-width: 100% !important; }
  .tab-container:not(.visually-hidden) { height: auto !important; min-height: 32px; }
  .tab-container:not(.visually-hidden) > button {
    height: auto !important; min-height: 32px; padding: 2px 8px !important; line-height: 1.2; white-space: normal;
  }
  .tab-container:not(.visually-hidden) > button[aria-selected=false] { flex-shrink: 0; }
  .pictures .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""
"""Of the page, which has the whole width of a telephone."""
END_SECONDS = 1
"""Seconds that open connections have to end when the server does."""


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def make_app(page: Any, options: DemoOptions) -> ProtectedApp:
    """The ASGI application that serves a page of `build_page`."""
    import fastapi

    gr = import_gradio()
    font = ("ui-sans-serif", "system-ui", "sans-serif")  # names, so that none is fetched
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gr.mount_gradio_app(
        app, page, path="/", footer_links=[], run_history=False, show_error=True, ssr_mode=False,
        max_file_size=options.max_upload_bytes, enable_monitoring=False, mcp_server=False, css=CSS,
        theme=gr.themes.Default(font=font, font_mono=("ui-monospace", "monospace")), allowed_paths=[],
    )  # fmt: skip
    page.has_launched = True  # Gradio checks only then that the files of requests were uploaded
    hosts = ("localhost", "127.0.0.1", "[::1]", options.host) if is_local(options.host) else None
    return ProtectedApp(app, options.max_upload_bytes + 2**20, hosts, os.environ["GRADIO_TEMP_DIR"])


def serve(
    models: Sequence[TrainedModel],
    options: DemoOptions | None = None,
    photos: Mapping[str, Photos] | None = None,
) -> None:
    """Serves the page of trained runs (`build_page`) until Ctrl-C or SIGTERM. Uploaded and generated files are removed
    at the end.

    Raises:
      ValueError: the server cannot listen at the address; or as in `build_page`.
    """
    options = DemoOptions() if options is None else options
    # The folder first: Gradio's components remember it.
    with _temporary_files(), _listen(options) as listener:
        page = build_page(models, options, photos)
        import uvicorn

        config = uvicorn.Config(
            make_app(page, options), log_level="warning", access_log=False,
            timeout_graceful_shutdown=END_SECONDS, server_header=False, limit_concurrency=200,
        )  # fmt: skip
        address, port = listener.getsockname()[:2]
        print(f"http://{f'[{address}]' if ':' in address else address}:{port}  (Ctrl-C ends it)", flush=True)
        if not is_local(options.host):
            print(
                f"warning: --host {options.host} lets everyone who reaches this machine use the runs and see the "
                "--photos; there is no password",
                flush=True,
            )
        server = uvicorn.Server(config)
        # Pages that are open have connections that wait, which the end cuts off: no error.
        logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            print("ended")
        finally:
            page.worker.close()


@contextlib.contextmanager
def _listen(options: DemoOptions) -> Iterator[socket.socket]:
    """A socket that listens; closed at the end."""
    where = f"--host {options.host} --port {options.port}"
    try:
        family, *_, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=64)
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror or error}; choose another one (--port 0: any)") from error
    with listener:
        yield listener


@contextlib.contextmanager
def _temporary_files() -> Iterator[None]:
    """A folder for all that is uploaded and generated, which is removed at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="xmodal-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before
