"""What the tabs of a demo do: the same as the models' own methods, within limits, with mistakes explained."""

import asyncio
import dataclasses
import functools
import importlib.util
import json
import pathlib
import sys
import threading
import types
import zlib

import numpy as np
import pytest

from tests.inference.runs import plain_picture
from tests.inference.test_autoencoders import SMALL, save
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.demo import (
    TABS,
    DemoOptions,
    ModelWorker,
    ProtectedApp,
    TabContext,
    actions,
    build_page,
    index_photos,
    limits,
    page,
    tabs_of,
)
from xmodal_jax.demo.limits import message_of
from xmodal_jax.demo.server import is_local
from xmodal_jax.demo.tabs import _label_of_target, _show_values
from xmodal_jax.demo.widgets import enlarge, read_value, widget_of
from xmodal_jax.inference import load
from xmodal_jax.inference.autoencoders import Autoencoder
from xmodal_jax.inference.loading import MODEL_CLASSES
from xmodal_jax.models.vae.single_models import AEConfig, CVAEConfig

ROOT = pathlib.Path(__file__).parents[2]


def pixels(picture):
    return np.asarray(picture)


def test_a_folder_is_searched(models, photos):
    space, bad = models["space"], BadExamples("skip")
    indexed = index_photos(space, photos, bad)
    assert [file.name for file in indexed.files] == ["blue.png", "green.png", "red.png"]
    assert "1" in bad.summary()
    for colour in ("red", "green", "blue"):
        (picture, caption), *others = actions.search(space, indexed, "text", colour, 3)
        assert caption.startswith(f"{colour}.png") and len(others) == 2
        assert actions.search(space, indexed, "image", str(photos / f"{colour}.png"), 1)[0][1].endswith(
            "1.00"
        )
        assert picture.size == (15 * 26, 10 * 26)  # 30 x 20, enlarged by whole pixels
    assert len(actions.search(space, indexed, "text", "red", 1e9)) == 3
    indexed.files[0].rename(photos / "blue.gone")
    assert pixels(indexed.thumbnail(0)).std() == 0  # a grey square
    (photos / "blue.gone").rename(indexed.files[0])


def test_a_picture_is_classified(models, photos):
    scores = actions.classify(models["space"], "image", str(photos / "green.png"), "red, green\nblue, red")
    assert list(scores) == ["red", "green", "blue"] and max(scores, key=scores.get) == "green"
    expected = models["space"].classify(["red", "green", "blue"], images=photos / "green.png").scores[0]
    np.testing.assert_allclose(list(scores.values()), expected)


def test_texts_and_sounds(models, photos, sound):
    captioner, recognizer, speaker = models["captioner"], models["recognizer"], models["speaker"]
    written = actions.write(captioner, str(photos / "red.png"))
    assert written == (captioner.caption(photos / "red.png")[0] or "(nothing)")
    assert actions.write(recognizer, str(sound)) == (recognizer.transcribe(sound)[0] or "(nothing)")
    rate, wave = actions.speak(speaker, "red", "bert", 1.1, 2.0, -3.0)
    ((expected, expected_rate),) = speaker.synthesize("red", "bert", speed=1.1, pitch=2.0, energy=-3.0)
    assert rate == expected_rate and wave.dtype == np.int16
    np.testing.assert_allclose(wave / 32768, np.clip(expected, -1, 32767 / 32768), atol=2e-5)


def test_a_vocoder_copies_a_recording(models, sound):
    rate, wave = actions.resynthesize(models["vocoder"], str(sound))
    ((expected, expected_rate),) = models["vocoder"].reconstruct(sound)
    assert rate == expected_rate and wave.dtype == np.int16
    np.testing.assert_allclose(wave / 32768, np.clip(expected, -1, 32767 / 32768), atol=2e-5)


def test_answers_and_where_the_model_looks(models, photos):
    answers = models["answers"]
    question, picture = "is it red", str(photos / "red.png")
    scores, looked_at = actions.answer(answers, ("text", "image"), question, picture)
    expected = answers.classify(text=question, image=picture)["answer"].scores[0]
    np.testing.assert_allclose(list(scores.values()), expected, rtol=1e-5)
    assert min(looked_at.size) >= 256
    scores, nowhere = actions.answer(answers, ("text", "image"), question, None)
    assert nowhere is None and sum(scores.values()) == pytest.approx(1)


def test_the_same_seed_draws_the_same_pictures(models):
    painter = models["painter"]
    first, again, other = (actions.draw(painter, "cat", seed, 2) for seed in (1, 1, 2))
    assert [caption for _, caption in first] == ["1", "2"]
    assert (pixels(first[1][0]) == pixels(again[1][0])).all()
    assert (pixels(first[0][0]) != pixels(other[0][0])).any()
    assert len(actions.draw(painter, "dog", 1e12, 1000)) == limits.MAX_PICTURES


def test_latents_are_moved(models, photos):
    vae, picture = models["vae"], str(photos / "red.png")
    latents, *rest = actions.encode(vae, 3, 1, None, picture)
    np.testing.assert_allclose(latents, vae.encode(image=picture)[0], rtol=1e-6)
    sliders, (decoded,) = rest[:3], rest[3:]
    np.testing.assert_allclose(sliders, latents[1:4], atol=0.005)
    assert (pixels(decoded) == pixels(enlarge(vae.reconstruct(image=picture)["image"][0]))).all()
    moved, picture = actions.move(vae, latents, 1, None, 2.0, 0.0, -1.0)
    assert moved[1:4].tolist() == [2.0, 0.0, -1.0] and moved[[0, 4]].tolist() == latents[[0, 4]].tolist()
    assert (pixels(picture) == pixels(enlarge(vae.decode(moved[None])["image"][0]))).all()
    row = actions.traverse(vae, "image", latents, 2, None)
    assert [caption for _, caption in row] == [f"{value:g}" for value in actions.TRAVERSED]
    expected = vae.traverse(latents, [2], actions.TRAVERSED)["image"][0]
    assert all((pixels(a) == pixels(enlarge(b))).all() for (a, _), b in zip(row, expected, strict=True))


def test_the_sliders_say_which_dimensions_they_move(models):
    """Also where the number typed is larger than the last dimension that the sliders can begin with."""
    model, latents = models["vae"], np.arange(5, dtype=np.float32)
    show = functools.partial(_show_values, types.SimpleNamespace(update=dict), model, 3, latents)
    assert [(x["label"], x["value"]) for x in show(1)] == [(f"Dimension {k}", k) for k in (1, 2, 3)]
    assert [(x["label"], x["value"]) for x in show(99)] == [(f"Dimension {k}", k) for k in (2, 3, 4)]


def test_a_target_that_is_named_label_is_the_answer():
    assert [_label_of_target(x) for x in ("label", "eye_colour")] == ["Answer", "Eye colour"]


def test_an_empty_text_is_shown_as_nothing():
    assert [widget_of("text").show(x) for x in ("", "a star")] == ["(nothing)", "a star"]


def test_samples_of_the_prior(models):
    """All pictures and texts of a seed, and the first sound; a larger number begins with the same samples."""
    vae, anything = models["vae"], models["anything"]
    (drawn,) = actions.sample(vae, None, 3, 5)
    expected = vae.sample(5, seed=3)["image"]
    assert [caption for _, caption in drawn] == ["1", "2", "3", "4", "5"]
    assert all((pixels(a) == pixels(enlarge(b))).all() for (a, _), b in zip(drawn, expected, strict=True))
    outputs = anything.sample(2, seed=1)
    images, texts, (rate, wave), numbers = actions.sample(anything, None, 1, 2)
    assert len(images) == 2 and texts.splitlines() == [
        f"{k + 1}  {t or '(nothing)'}" for k, t in enumerate(outputs["text"])
    ]
    assert rate == outputs["audio"][0][1] and len(wave) == len(outputs["audio"][0][0])
    assert len(numbers.split()) == 3
    assert len(actions.sample(vae, None, 1e12, 1000)[0]) == limits.MAX_PICTURES


def test_models_without_a_prior_have_no_tab_for_samples(tmp_path):
    tabs = tabs_of(load(save(tmp_path, AEConfig(**SMALL), ("image",), kind="vae")), TabContext(None, None))
    assert [tab.title for tab in tabs] == ["Latent space"]


def test_the_class_of_a_conditional_model_is_sampled(tmp_path):
    options = dict(classes=2, class_names=["cat", "dog"], kind="vae")
    model = load(save(tmp_path, CVAEConfig(**SMALL), ("image",), **options))
    (cats,), (dogs,) = (actions.sample(model, name, 0, 2) for name in ("cat", "dog"))
    assert (pixels(cats[0][0]) != pixels(dogs[0][0])).any()
    assert (pixels(cats[1][0]) == pixels(enlarge(model.sample(2, classes="cat")["image"][1]))).all()


def test_any_modality_from_any_other(models, photos, sound):
    anything = models["anything"]
    modalities = anything.format.modalities
    held = {"image": str(photos / "red.png"), "text": "a red star", "audio": str(sound), "vector": "30, 2 7"}
    for modality, value in held.items():
        values = [value if m == modality else None for m in modalities]
        picture, text, (rate, wave), numbers = actions.generate(anything, modalities, *values)
        assert min(picture.size) >= 256 and isinstance(text, str) and rate == 1009 and wave.ndim == 1
        assert len(numbers.split()) == 3
    with pytest.raises(ValueError, match="give at least one of: Picture, Text, Sound, Vector"):
        actions.generate(anything, modalities, None, " ", None, "")


def make_png(width, height):
    """A PNG file of these sizes that has no pixels: a few bytes, however large the picture."""
    chunk = lambda name, data: (
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    )
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_wrong_inputs_are_explained(models, tmp_path):
    files = {
        "text.png": b"no picture", "empty.wav": b"", "huge.png": make_png(8000, 8000), "cut.png": make_png(8, 8)
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    path = lambda name: str(tmp_path / name)
    import soundfile

    soundfile.write(tmp_path / "long.wav", np.zeros(int(8000 * (limits.MAX_SECONDS + 1))), 8000)
    captioner, recognizer, speaker = models["captioner"], models["recognizer"], models["speaker"]
    vae, anything, space = models["vae"], models["anything"], models["space"]
    for mistake, message in [
        (lambda: actions.write(captioner, path("text.png")), "It is no image of a known format"),
        (lambda: actions.write(captioner, path("huge.png")), "The picture has 8000 x 8000 pixels, at most"),
        (lambda: actions.write(captioner, path("cut.png")), "Image 0: "),
        (lambda: actions.write(captioner, None), "Picture: it is empty; give one first"),
        (lambda: actions.write(recognizer, path("empty.wav")), "The file is empty"),
        (lambda: actions.write(recognizer, path("text.png")), "Cannot be decoded as audio"),
        (lambda: actions.write(recognizer, path("long.wav")), "The sound is longer than 30 s"),
        (lambda: actions.write(recognizer, path("absent.wav")), "No such file or directory"),
        (lambda: actions.speak(speaker, "x" * 10_000, "anna", 1), "The text has 10,000 characters, at most 2,000"),
        (lambda: actions.speak(speaker, "red", "carl", 1), "There is no voice 'carl'"),
        (lambda: actions.speak(speaker, "red", "anna", float("nan"), 0, 0), "The speed is a number from 0.5 to 2"),
        (lambda: actions.draw(models["painter"], "cow", 1, 1), "There is no class 'cow'"),
        (lambda: actions.draw(models["painter"], "cat", None, 1), "A number from 0 to"),
        (lambda: actions.classify(space, "image", path("cut.png"), "red"), "2 to 100 classes are needed"),
        (lambda: actions.traverse(vae, "image", None, "x", None), "A number from 0 to 4 is needed"),
        (lambda: read_value("1 2\n3", anything.format, "vector"), "Each line needs as many numbers"),
        (lambda: read_value("1 two 3", anything.format, "vector"), "Numbers are needed, with spaces"),
    ]:  # fmt: skip
        with pytest.raises((ValueError, OSError)) as raised:
            mistake()
        shown = message_of(raised.value, {})
        assert shown.startswith(message) and str(tmp_path) not in shown and "0x" not in shown


def test_messages_hide_paths_and_faults(caplog):
    assert message_of(ValueError("/home/me/run has no class"), {"/home/me/run": "the run"}) == (
        "The run has no class"
    )
    assert message_of(OSError(2, "No such file", "/secret/x"), {}) == "No such file"
    assert "terminal" in message_of(KeyError("secret"), {}) and "secret" in caplog.text
    assert len(message_of(ValueError("x" * 10_000), {})) < 410


def test_what_takes_too_long_is_said_and_the_next_request_is_served():
    worker, go_on = ModelWorker(0.05), threading.Event()
    with pytest.raises(ValueError, match="longer than 0.05 s; make the input shorter"):
        worker.run(go_on.wait)
    with pytest.raises(ValueError, match="still busy with another request"):
        worker.run(int)
    go_on.set()
    worker._running.cancel()
    assert ModelWorker(5.0).run(max, 1, 2) == 2
    with pytest.raises(KeyError):
        ModelWorker(5.0).run({}.__getitem__, "x")
    worker.close()


def test_every_kind_of_run_has_a_tab(models, photos):
    context = TabContext(None, ModelWorker(1.0))
    titles = {name: [tab.title for tab in tabs_of(model, context)] for name, model in models.items()}
    assert titles["space"] == ["Classify"] and all(titles.values())
    indexed = index_photos(models["space"], photos, BadExamples("skip"))
    assert [t.title for t in tabs_of(models["space"], context._replace(photos=indexed))] == [
        "Search",
        "Classify",
    ]
    assert titles["anything"] == ["Translate", "Latent space", "Sample"]
    assert titles["vae"] == ["Latent space", "Sample"]
    assert len({type(model) for model in models.values()}) == len(MODEL_CLASSES)
    assert any(issubclass(Autoencoder, cls) for cls in TABS)


def test_a_run_that_has_nothing_on_a_page_is_one_line(models, monkeypatch):
    monkeypatch.setattr("xmodal_jax.demo.page.import_gradio", lambda: None)
    monkeypatch.setattr("xmodal_jax.demo.tabs.TABS", {})
    with pytest.raises(ValueError, match="vae is a run of vae with image: the page has nothing for it"):
        build_page([models["vae"]], DemoOptions())


def test_pages_that_were_open_are_forgotten(monkeypatch):
    """What Gradio's queue keeps of each page that ever sent a request has a limit."""
    monkeypatch.setattr(page, "MAX_QUEUES", 3)
    queue = types.SimpleNamespace(pending_messages_per_session={}, pending_event_ids_session={}, other={})
    page._limit_queues(queue)
    for kept in (queue.pending_messages_per_session, queue.pending_event_ids_session):
        for session in range(5):
            kept[session] = session
        kept[4] = "again"
        assert list(kept) == [2, 3, 4] and kept[4] == "again"


def test_without_gradio_one_line_says_how_to_install_it(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    file = ROOT / "experiments" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo_without_gradio", file)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    with pytest.raises(ValueError, match=r"pip install -r requirements-demo.txt$"):
        script.main(script.Config((runs["vae"],)))


def test_kinds_without_an_entry_are_numbers():
    widget = widget_of("series_heart")
    assert widget is widget_of("vector") and widget.show(np.array([[1.0, 2], [3, 4.25]])) == "1 2\n3 4.25"


def test_small_pictures_are_enlarged_by_whole_pixels():
    assert enlarge(plain_picture("red", (8, 16))).size == (256, 512)
    assert enlarge(plain_picture("red", (300, 400))).size == (300, 400)


def test_options_are_checked():
    assert DemoOptions(max_upload_mb=0.5).max_upload_bytes == 2**19
    for options, message in [
        (dict(port=70_000), "--port must be in 0..65535"),
        (dict(max_upload_mb=0.0), "--max-upload-mb must be positive"),
        (dict(max_seconds=float("inf")), "--max-seconds must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(DemoOptions(), **options)


def test_which_addresses_are_local():
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_local(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")] == [False] * 4


# The middleware, with an application that reads all of the body.


async def _echo(scope, receive, send):
    size = 0
    while True:
        message = await receive()
        size += len(message["body"])
        if not message.get("more_body"):
            break
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"x-content-type-options", b"own")]}
    )
    await send({"type": "http.response.body", "body": str(size).encode()})


def request(body, *, host=b"127.0.0.1:80", length=True, kind=b"multipart/form-data", parts=4, app=_echo):
    """The status, the headers, and the body of the answer."""
    headers = [(b"host", host), (b"content-type", kind)] + [
        (b"content-length", str(len(body)).encode())
    ] * length
    size = -(-len(body) // parts)
    incoming = [body[k * size : (k + 1) * size] for k in range(parts)]
    messages = [
        {"type": "http.request", "body": part, "more_body": k + 1 < parts} for k, part in enumerate(incoming)
    ]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    protected = ProtectedApp(app, 1000, ("127.0.0.1", "[::1]"), "/uploads")
    asyncio.run(protected({"type": "http", "method": "POST", "headers": headers}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[-1]["body"]


@pytest.mark.parametrize("kind", [b"multipart/form-data; boundary=x", b"application/json"])
@pytest.mark.parametrize("length", [True, False])
def test_large_bodies_are_refused(length, kind):
    assert request(b"x" * 1000, length=length, kind=kind)[::2] == (200, b"1000")
    status, _, body = request(b"x" * 1001, length=length, kind=kind)
    assert (status, body) == (413, b"the request is too large")


def test_only_uploaded_files_may_be_named():
    name = lambda path: json.dumps({"data": [1, [{"path": path, "meta": {}}]]}).encode()
    for path in ("/uploads/a/x.png", "/uploads/../uploads/x.png"):
        assert request(name(path), kind=b"application/json")[0] == 200
    for path in ("/etc/passwd", "/uploads/../etc/passwd", "http://example.org/x.png", "", "x.png"):
        for kind in (b"application/json", b"text/plain"):
            assert request(name(path), kind=kind)[::2] == (400, b"this file was not uploaded")


def test_other_hosts_are_refused():
    assert request(b"", host=b"[::1]:7860")[0] == 200
    assert request(b"", host=b"evil.example:7860")[0] == 400
    assert request(b"", host=b"")[0] == 400


def test_every_answer_has_the_policy():
    _, headers, _ = request(b"")
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"http" not in headers[b"content-security-policy"]
    assert headers[b"x-content-type-options"] == b"own"  # what the application says stays
