"""The server of a demo: it serves two users, says what is wrong, and ends without leaving anything behind."""

import importlib.util
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
import soundfile

from benchmarks.demo_memory import ROOT, DemoClient, run_demo

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs requirements-demo.txt"
)


@pytest.fixture(scope="module")
def server(runs, photos, tmp_path_factory):
    """``(process, address, folder of its temporary files)`` of a demo of all kinds of runs."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("tmp")
    flags = [*map(str, runs.values()), "--photos", str(photos), "--max-upload-mb", "0.5"]
    with run_demo(*flags, environment={"TMPDIR": str(folder)}) as (process, address):
        yield process, address, folder
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
        printed = process.stdout.read()
        assert "Traceback" not in printed, printed
        assert list(folder.iterdir()) == []  # what was uploaded and generated is removed


def test_the_page_names_no_other_host(server):
    _, address, _ = server
    with urllib.request.urlopen(address) as response:
        page, policy = response.read().decode(), response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"([^\"]*)\"", page)
    assert loaded and [url for url in loaded if re.match(r"(https?:)?//", url) and address not in url] == []


TITLES = [
    "Search: space", "Classify: space", "Search: listener", "Classify: listener", "Caption", "Recognise speech",
    "Speak", "Resynthesise", "Answer", "Draw: painter", "Draw: illustrator", "Draw: flow", "Latent space: vae",
    "Sample: vae", "Translate: anything", "Latent space: anything", "Sample: anything", "Translate: codes",
    "Latent space: codes", "Sample: codes",
]  # fmt: skip


def test_each_ability_has_a_tab_whose_button_fills_its_outputs(server, photos, sound):
    _, address, _ = server
    client = DemoClient(address)
    titles = [c["props"]["label"] for c in client.config["components"] if c["type"] == "tabitem"]
    inner = {"By text", "By picture", "By sound"}
    assert [t for t in titles if t not in inner] == TITLES
    picture, recording = client.upload(photos / "green.png"), client.upload(sound)
    (found,) = client.press("Search", ["green", 2])
    assert [hit["caption"].split()[0] for hit in found][0] == "green.png" and len(found) == 2
    (found,) = client.press("Search", ["green", 1])  # one pair is no list of two pictures
    assert [hit["caption"].split()[0] for hit in found] == ["green.png"]
    (scores,) = client.press("Classify", [picture, "red, green"])
    assert scores["label"] == "green"
    (text,) = client.press("Transcribe", [recording])
    assert isinstance(text, str)
    (speech,) = client.press("Speak", ["red", "bert", 1.5, 2.0, 0.0])
    content = client.get(speech["url"].removeprefix(address))
    assert soundfile.info(io.BytesIO(content)).samplerate == 16_000
    (copy,) = client.press("Resynthesise", [recording])
    assert copy["url"]
    answer, overlay = client.press("Answer", ["is it red", picture])
    assert {c["label"] for c in answer["confidences"]} == {"yes", "no", "red"} and overlay["url"]
    *_, decoded = client.press("Reconstruct", [0, None, picture])
    assert decoded["url"]
    assert len(client.press("Traverse", [None, 1, None])[0]) == 7
    image, text, audio, numbers = client.press("Generate", [None, "a red star", None, ""])
    assert image["url"] and audio["url"] and isinstance(text, str) and len(numbers.split()) == 3
    (drawn,) = client.press("Sample", [None, 3, 5])
    assert len(drawn) == 5
    images, texts, audio, numbers = client.press("Sample", [None, 3, 2], number=1)
    assert len(images) == 2 and len(texts.splitlines()) == 2 and audio["url"] and len(numbers.split()) == 3


def test_no_slider_is_hidden_by_progress_or_an_error(server):
    """They would cover its value and its label; where the sliders alone change, they appear at one of them."""
    client = DemoClient(server[1])
    kinds = {c["id"]: c["type"] for c in client.config["components"]}
    with_sliders = 0
    for function in client.config["dependencies"]:
        changed, covered = [[kinds[k] for k in function[x]] for x in ("outputs", "show_progress_on")]
        assert covered
        if "slider" in changed and set(changed) != {"slider"}:
            with_sliders += 1
            assert "slider" not in covered and {"image", "state"} & set(covered)
    assert with_sliders == 3  # one for each latent space


def test_two_users_at_once(server, photos):
    _, address, _ = server
    clients, shown = [DemoClient(address), DemoClient(address)], {}
    draw = lambda k, client: shown.update({k: client.press("Draw", ["cat", k, 1])})
    threads = [threading.Thread(target=draw, args=(k, client)) for k, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    addresses = [shown[k][0][0]["image"]["url"].removeprefix(address) for k in range(2)]
    first, second = (client.get(path) for client, path in zip(clients, addresses, strict=True))
    assert first != second  # each got the pictures of his own seed


@pytest.mark.parametrize(
    ("button", "values", "output"),
    [
        ("Speak", ["red", "bert", 1, 0, 0], lambda shown: shown[0]),
        ("Draw", ["cat", 1, 1], lambda shown: shown[0][0]["image"]),
        ("Generate", [None, "red", None, ""], lambda shown: shown[0]),
    ],
)
def test_the_same_answer_of_a_second_user_does_not_cut_off_the_first(server, button, values, output):
    """Its file is replaced, not written again in place while the first user is loading it."""
    _, address, _ = server
    path = output(DemoClient(address).press(button, values))["path"]
    with open(path, "rb") as loading:
        content = loading.read()
        assert output(DemoClient(address).press(button, values))["path"] == path
        assert os.fstat(loading.fileno()).st_nlink == 0 and pathlib.Path(path).read_bytes() == content


def test_mistakes_become_messages_and_the_server_goes_on(server, photos, tmp_path):
    process, address, _ = server
    client = DemoClient(address)
    (tmp_path / "x.png").write_bytes(b"no picture")
    (tmp_path / "x.wav").write_bytes(b"")
    (tmp_path / "big.png").write_bytes(bytes(2**19 + 1))
    for button, values, message in [
        ("Caption", [client.upload(tmp_path / "x.png")], "no image of a known format"),
        ("Transcribe", [client.upload(tmp_path / "x.wav")], "The file is empty"),
        ("Speak", ["red " * 2500, "anna", 1, 0, 0], "10,000 characters"),
        ("Caption", [None], "give one first"),
    ]:
        with pytest.raises(RuntimeError) as raised:
            client.press(button, values)
        assert message in str(raised.value)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        client.upload(tmp_path / "big.png")
    with pytest.raises(urllib.error.URLError, match="413|Broken pipe|reset"):  # it need not read all of it
        client.post("/gradio_api/queue/join", bytes(2**21), "application/json")
    for path in ("/etc/passwd", "http://127.0.0.1:1/x.png"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            client.press("Caption", [{"path": path, "meta": {"_type": "gradio.FileData"}}])
    request = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    assert process.poll() is None
    (shown,) = client.press("Caption", [client.upload(photos / "red.png")])
    assert isinstance(shown, str) and shown


def test_files_of_the_server_are_not_served(server, runs):
    _, address, _ = server
    client = DemoClient(address)
    for file in ("/etc/passwd", next(iter(runs.values())) / "config.json", ROOT / "README.md"):
        with pytest.raises(urllib.error.HTTPError):
            client.get(f"/gradio_api/file={file}")


def run_script(*flags):
    """Status of the script, and its lines on stderr."""
    command = [sys.executable, str(ROOT / "experiments" / "demo.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    return result.returncode, result.stderr.strip().splitlines()


@needs_gradio
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "1", "--host", "203.0.113.1"], "--host 203.0.113.1 --port 1"),
        (["--photos", "."], "--photos"),
    ],
)
def test_mistakes_in_the_flags_are_one_line(runs, flags, message):
    status, lines = run_script(str(runs["vae"]), *flags)
    assert status == 2 and len(lines) == 1 and message in lines[0]


@needs_gradio
def test_ctrl_c_ends_it(runs):
    with run_demo(str(runs["painter"])) as (process, address):
        client = DemoClient(address)
        client.press("Draw", ["dog", 1, 1])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read().splitlines() == ["ended"]
