"""What stands between the network and the page: large bodies are refused, and the page loads nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # Gradio's page holds scripts in place
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""The content security policy: nothing is loaded from, or sent to, another host."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
MAX_JSON_BYTES = 2**20
"""Bytes of a request that is no upload."""


class ProtectedApp:
    """An ASGI application within limits.

    A request whose body is larger than ``max_bytes`` is answered with status 413, one for another host than those that
    are allowed with 400 (a page of another site that lets its name point here could otherwise use the server). All
    answers have `HEADERS`. Files that a request names must lie in the folder of uploads: otherwise a request could have
    any file of the server read, or any address fetched.
    """

    def __init__(self, app: Any, max_bytes: int, hosts: Sequence[str] | None, folder: str):
        """``app``: the application. ``hosts``: names that it is reached by; None: any. ``folder``: of uploads."""
        self._app, self._max_bytes, self._folder = app, max_bytes, Path(folder).resolve()
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serves one connection, as ASGI says."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._hosts is not None and _host_name(headers.get(b"host", b"")) not in self._hosts:
            await _refuse(send, 400, "this host name is not served here")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            await _refuse(send, 413, "the request is too large")
            return
        is_upload = headers.get(b"content-type", b"").startswith(b"multipart/form-data")
        if scope.get("method") == "POST" and not is_upload:
            receive = await self._checked(receive, send)
            if receive is None:
                return
        received, has_begun = 0, False

        async def receive_some() -> dict[str, Any]:
            """The next part of the body; raises `_TooLarge` once all parts are more than allowed."""
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise _TooLarge
            return message

        async def send_with_headers(message: dict[str, Any]) -> None:
            """Sends a part of the answer, to its beginning with the headers."""
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                names = {name.lower() for name, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in names]
                message = message | {"headers": [*message["headers"], *added]}
            await send(message)

        try:
            await self._app(scope, receive_some, send_with_headers)
        except _TooLarge:
            if not has_begun:
                await _refuse(send, 413, "the request is too large")

    async def _checked(self, receive: Any, send: Any) -> Any:
        """What gives the body of a request once more after it has been read and checked; None: it was refused."""
        body, is_complete = bytearray(), False
        while not is_complete:
            message = await receive()
            if message["type"] != "http.request":
                return None  # the user has gone
            body += message.get("body", b"")
            if len(body) > min(self._max_bytes, MAX_JSON_BYTES):
                await _refuse(send, 413, "the request is too large")
                return None
            is_complete = not message.get("more_body")
        if any(not Path(path).resolve().is_relative_to(self._folder) for path in _paths_in(bytes(body))):
            await _refuse(send, 400, "this file was not uploaded")
            return None
        messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> dict[str, Any]:
            """The body, and then what comes after it."""
            return messages.pop() if messages else await receive()

        return receive_again


def _paths_in(body: bytes) -> Iterator[str]:
    """The values of all fields ``path`` in a body of JSON; none where it is something else."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(path := value.get("path"), str):
                yield path.replace("\0", "")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


class _TooLarge(Exception):
    """A body that does not say its length is longer than allowed."""


def _host_name(host: bytes) -> str:
    """The name without the port, of a Host header."""
    text = host.decode("latin-1").lower()
    return text[: text.index("]") + 1] if text.startswith("[") and "]" in text else text.partition(":")[0]


async def _refuse(send: Any, status: int, reason: str) -> None:
    """Answers with a status and one line."""
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
