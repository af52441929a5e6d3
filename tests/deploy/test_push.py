"""Uploads, against a server on this machine that answers as the Hub does."""

import base64
import http.server
import json
import threading

import pytest

from xmodal_jax.deploy.push import check_token, push


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers that an upload of small files needs; what it was sent is in ``requests``."""

    requests: list = []
    refuse = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Hub.requests.append((self.path, self.headers.get("Authorization"), body))
        if Hub.refuse:
            return self.answer(403, {"error": "no"})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": f"{Hub.address}/me/model", "name": "me/model", "id": "1"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self.answer(200, {"files": files})
        if self.path.endswith("/commit/main"):
            return self.answer(200, {"commitUrl": f"{Hub.address}/me/model/commit/1", "commitOid": "1",
                                     "hookOutput": "", "success": True})  # fmt: skip
        return self.answer(404, {})

    def do_GET(self):
        Hub.requests.append((self.path, self.headers.get("Authorization"), b""))
        self.answer(200, {"sha": "0" * 40, "id": "me/model", "siblings": [], "tags": [], "private": False})

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The address of a server, and a token."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.requests, Hub.refuse = [], False
    Hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", Hub.address)  # what HF_ENDPOINT says at import
    monkeypatch.setenv("HF_TOKEN", "hf_stub")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def folder_of(tmp_path):
    (tmp_path / "secret.txt").write_text("not of the export")
    folder = tmp_path / "export"
    (folder / "parameters").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: unknown\n---\n")
    (folder / "parameters" / "model.bin").write_bytes(b"123")
    return folder


def test_the_files_of_the_export_and_no_others_are_uploaded(hub, tmp_path):
    push(folder_of(tmp_path), "me/model", private=True)
    made = json.loads(next(body for path, _, body in Hub.requests if path == "/api/repos/create"))
    assert made["name"] == "model" and made["organization"] == "me"
    assert made.get("private") is True or made.get("visibility") == "private"
    commit = next(body for path, _, body in Hub.requests if path.endswith("/commit/main"))
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
    assert set(files) == {"README.md", "parameters/model.bin"}
    assert files["parameters/model.bin"] == b"123"
    assert all(token == "Bearer hf_stub" for path, token, _ in Hub.requests if "commit" in path)
    assert not any("telemetry" in path for path, _, _ in Hub.requests)


def test_a_refusal_is_one_line(hub, tmp_path):
    Hub.refuse = True
    with pytest.raises(ValueError, match=r"--push me/model: .*403") as error:
        push(folder_of(tmp_path), "me/model")
    assert "\n" not in str(error.value)


def test_without_a_token_nothing_is_sent(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="--push needs a token that may write: set HF_TOKEN"):
        check_token()
    with pytest.raises(ValueError, match="set HF_TOKEN"):
        push(folder_of(tmp_path), "me/model")


def test_a_name_that_is_none_of_a_repository(hub, tmp_path):
    with pytest.raises(ValueError, match="give OWNER/NAME"):
        push(folder_of(tmp_path), "me/model/of/mine")
