"""Memory of the server of experiments/demo.py over many requests: it should not grow.

    python -m benchmarks.demo_memory runs/captioning runs/vae --picture photo.png --sound speech.wav --photos photos/

Each ability of each run has a server of its own, and each request is that of a new user, who uploads the files. The
table has the resident memory of the server, measured after every tenth request, in the second and the last hundred of
the requests, and files in its temporary folder, threads and open files at the end. It needs requirements-demo.txt.
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

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
"""That a request may take, with the programs that it compiles."""


class DemoClient:
    """A user of a demo without a browser, who presses its buttons."""

    def __init__(self, address: str):
        """``address``: such as ``http://127.0.0.1:7860``."""
        self.address, self.session, self._numbers = address, uuid.uuid4().hex, itertools.count()
        self.config = json.loads(self.get("/config"))
        """The components and functions of the page, as Gradio describes them."""

    def get(self, path: str) -> bytes:
        """The content at a path of the server."""
        with urllib.request.urlopen(self.address + path, timeout=SECONDS) as response:
            return response.read()

    def post(self, path: str, body: bytes, content_type: str) -> Any:
        """The answer to a body, parsed as JSON."""
        request = urllib.request.Request(self.address + path, body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
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

    def press(self, button: str, values: Sequence[Any], number: int = 0) -> list[Any]:
        """Presses a button with this text, of several the one with this number, with the values of its inputs.

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
        if len(buttons) <= number:
            raise ValueError(f"the page has no button {button!r} with the number {number}")
        return self.trigger(buttons[number], "click", values)

    def trigger(self, component: int, event: str, values: Sequence[Any]) -> list[Any]:
        """What `press` does, for an event such as ``input`` of any component of the page."""
        session = f"{self.session}{next(self._numbers)}"
        body = {
            "data": list(values), "fn_index": self.function_of(component, event)["id"], "session_hash": session,
            "trigger_id": component, "event_data": None,
        }  # fmt: skip
        self.post("/gradio_api/queue/join", json.dumps(body).encode(), "application/json")
        address = f"{self.address}/gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(address, timeout=SECONDS) as lines:
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(message["output"].get("error"))
                    return message["output"]["data"]
        raise RuntimeError("the server closed the connection")

    def function_of(self, component: int, event: str) -> dict[str, Any]:
        """The function that an event of a component calls, as Gradio describes it."""
        return next(d for d in self.config["dependencies"] if [component, event] in d["targets"])

    def inputs_of(self, component: int, event: str) -> list[dict[str, Any]]:
        """The components whose values this function takes."""
        by_id = {c["id"]: c for c in self.config["components"]}
        return [by_id[k] for k in self.function_of(component, event)["inputs"]]


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


def abilities_of(client: DemoClient) -> dict[str, tuple[int, str]]:
    """What the page can be asked, by name: each button, and the first slider of latents, as component and event."""
    abilities = {}
    for component in client.config["components"]:
        label = component["props"].get("label")
        if component["type"] == "button" and component["props"].get("variant") == "primary":
            first = client.inputs_of(component["id"], "click")[0]["type"]
            abilities[f"{component['props']['value']} ({first})"] = (component["id"], "click")
        elif component["type"] == "button" and component["props"].get("value") == "Traverse":
            abilities["Traverse"] = (component["id"], "click")
        elif component["type"] == "slider" and label == "Dimension 0":
            abilities["Slider of latents"] = (component["id"], "input")
    return abilities


def values_of(client: DemoClient, component: int, event: str, args: argparse.Namespace) -> list[Any]:
    """Values of the inputs: the files, uploaded, and the text; what else there is keeps its value."""
    values = []
    for c in client.inputs_of(component, event):
        if c["type"] in ("image", "audio"):
            values.append(client.upload(args.picture if c["type"] == "image" else args.sound))
        elif c["type"] == "textbox":
            label = c["props"]["label"]
            values.append("" if "(numbers)" in label else args.classes if "Classes" in label else args.text)
        else:
            values.append(c["props"].get("value"))
    return values


def measure_ability(run: Path, ability: str, args: argparse.Namespace) -> str:
    """The row of the table of one ability."""
    with tempfile.TemporaryDirectory() as folder, run_demo(
        *flags_of(run, args), environment={"TMPDIR": folder}
    ) as (process, address):  # fmt: skip
        client, start, memory = DemoClient(address), time.monotonic(), {}
        component, event = abilities_of(client)[ability]
        for number in range(1, args.requests + 1):
            client.trigger(component, event, values_of(client, component, event, args))
            if number == 1 or number % 10 == 0:
                memory[number] = measure(process.pid, Path(folder))["memory (MB)"]
        seconds, last = time.monotonic() - start, measure(process.pid, Path(folder))
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
    second = [x for n, x in memory.items() if 100 < n <= 200]
    final = [x for n, x in memory.items() if n > args.requests - 100]
    spread = lambda x: f"{np.mean(x):.1f} ({min(x):.0f}-{max(x):.0f})" if x else "-"
    return (
        f"| {run.name} | {ability} | {memory[1]:.0f} | {spread(second)} | {spread(final)} | {last['files']} | "
        f"{last['threads']} | {last['open files']} | {1e3 * seconds / args.requests:.0f} |"
    )


def flags_of(run: Path, args: argparse.Namespace) -> list[str]:
    """The flags of the server of a run."""
    from xmodal_jax.inference.loading import restore

    searches = args.photos is not None and restore(run).checkpoint.metadata.get("kind") == "contrastive"
    patience = ["--max-seconds", str(SECONDS)]  # a request that waits for other programs is not refused
    return [str(run), *patience, *(["--photos", str(args.photos)] if searches else [])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path, required=True, help="picture that is uploaded each time")
    parser.add_argument("--sound", type=Path, required=True, help="recording that is uploaded each time")
    parser.add_argument("--photos", type=Path, help="folder that runs of contrastive.py search")
    parser.add_argument("--text", default="a red star")
    parser.add_argument("--classes", default="star, ring")
    parser.add_argument("--ability", nargs="+", help="of the page, by the table's names; without: all")
    parser.add_argument("--requests", type=int, default=500)
    args = parser.parse_args()
    last = args.requests - 99
    print(
        f"| run | ability | MB after 1 | MB in 101-200 | MB in {last}-{args.requests} | files | threads | open files "
        "| ms per request |\n|---|---|" + "---:|" * 7
    )
    for run in args.runs:
        with run_demo(*flags_of(run, args)) as (process, address):
            names = list(abilities_of(DemoClient(address)))
            process.send_signal(signal.SIGTERM)
        for name in names:
            if args.ability is None or name in args.ability:
                print(measure_ability(run, name, args), flush=True)


if __name__ == "__main__":
    main()
