"""Memory of the server of experiments/demo.py over many requests: it should not grow.

    python -m benchmarks.demo_memory runs/captioning --tab Caption --file photo.png --requests 500

Each request is that of a new user, who uploads the file. The table has the resident memory of the server, the number of
files in its temporary folder, and its threads and open files, after every tenth of the requests. It needs
requirements-demo.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class DemoClient:
    """A user of a demo without a browser, who presses its buttons."""

    def __init__(self, address: str):
        """``address``: such as ``http://127.0.0.1:7860``."""
        self.address, self.session, self._numbers = address, uuid.uuid4().hex, itertools.count()
        self.config = json.loads(self.get("/config"))
        """The components and functions of the page, as Gradio describes them."""

    def get(self, path: str) -> bytes:
        """The content at a path of the server."""
        with urllib.request.urlopen(self.address + path, timeout=120) as response:
            return response.read()

    def post(self, path: str, body: bytes, content_type: str) -> Any:
        """The answer to a body, parsed as JSON."""
        request = urllib.request.Request(self.address + path, body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.loads(response.read())

    def upload(self, file: Path) -> dict[str, Any]:
        """An uploaded file as the value of a component."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        (path,) = self.post("/gradio_api/upload", body, f"multipart/form-data; boundary={boundary}")
        return {"path": path, "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}

    def press(self, button: str, values: Sequence[Any]) -> list[Any]:
        """Presses the first button with this text, with the values of its inputs.

        Returns:
          What the outputs show.

        Raises:
          RuntimeError: the page would show a message, which this is.
        """
        buttons = [
            c["id"]
            for c in self.config["components"]
            if c["type"] == "button" and c["props"].get("value") == button
        ]
        if not buttons:
            raise ValueError(f"the page has no button {button!r}")
        functions = [d for d in self.config["dependencies"] if [buttons[0], "click"] in d["targets"]]
        session = f"{self.session}{next(self._numbers)}"
        body = {
            "data": list(values), "fn_index": functions[0]["id"], "session_hash": session, "trigger_id": buttons[0],
            "event_data": None,
        }  # fmt: skip
        self.post("/gradio_api/queue/join", json.dumps(body).encode(), "application/json")
        address = f"{self.address}/gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(address, timeout=120) as lines:
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(message["output"].get("error"))
                    return message["output"]["data"]
        raise RuntimeError("the server closed the connection")


@contextlib.contextmanager
def run_demo(
    *flags: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server of experiments/demo.py with these flags on a free port, and its address; it is killed at the end."""
    command = [sys.executable, str(ROOT / "experiments" / "demo.py"), *flags, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            printed = []
            for line in process.stdout:
                if line.startswith("http://"):
                    yield process, line.split()[0]
                    return
                printed.append(line)
            raise RuntimeError("the demo did not start:\n" + "".join(printed))
        finally:
            process.kill()


def measure(process: int, folder: Path) -> dict[str, float]:
    """What a server uses: MB of memory, files in its temporary folder and their MB, threads, open files."""
    status = Path(f"/proc/{process}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "memory (MB)": int(fields["VmRSS"].split()[0]) / 1024,
        "files": len(files),
        "files (MB)": sum(path.stat().st_size for path in files) / 2**20,
        "threads": int(fields["Threads"]),
        "open files": len(os.listdir(f"/proc/{process}/fd")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--tab", default="Caption", help="text of the button that is pressed")
    parser.add_argument("--file", type=Path, required=True, help="what is uploaded each time")
    parser.add_argument("--requests", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {"TMPDIR": folder}
        with run_demo(str(args.run), environment=environment) as (process, address):
            client, start = DemoClient(address), time.monotonic()
            for number in range(1, args.requests + 1):
                client.press(args.tab, [client.upload(args.file)])
                if number == 1 or number % max(1, args.requests // 10) == 0:
                    row = {"requests": number, **measure(process.pid, Path(folder))}
                    row["s"] = time.monotonic() - start
                    print("  ".join(f"{name} {value:.0f}" for name, value in row.items()), flush=True)
            process.send_signal(signal.SIGTERM)
            process.wait(30)


if __name__ == "__main__":
    main()
