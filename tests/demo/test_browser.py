"""The page in a real browser: every tab used once, by two users at once, wrong inputs, a recording by microphone, and
no request to another host.

It needs Gradio, Playwright, and Debian's Chromium; without one of them it is skipped. ``XMODAL_SCREENSHOTS=FOLDER``
keeps a picture of every tab; ``XMODAL_BROWSER_SECONDS`` is how long the page may take, 20 seconds without it.
"""

import contextlib
import io
import os
import pathlib
import re
import shutil
import signal
import urllib.request
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from benchmarks.demo_memory import run_demo
from tests.inference.runs import plain_picture

CHROMIUM = shutil.which("chromium")
TIMEOUT = 1000 * float(os.environ.get("XMODAL_BROWSER_SECONDS", 20))
"""Milliseconds that the page may take; more where other programs have the processor."""


@pytest.fixture(scope="module")
def launch():
    """A function that starts Chromium with flags."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with api.sync_playwright() as playwright, contextlib.ExitStack() as stack:

        def start(*flags):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *flags])
            stack.callback(browser.close)
            return browser

        yield start


@pytest.fixture(scope="module")
def browser(launch):
    return launch()


@pytest.fixture(scope="module")
def address(runs, photos):
    pytest.importorskip("gradio")
    flags = [*map(str, runs.values()), "--photos", str(photos), "--max-upload-mb", "1"]
    with run_demo(*flags) as (process, address):
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143 and process.stdout.read() == ""


class Visitor:
    """A person at the page."""

    def __init__(self, browser, address, width=1280):
        self.page = browser.new_page(viewport={"width": width, "height": 850})
        self.page.set_default_timeout(TIMEOUT)
        self.requests = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("button[role=tab]")

    @property
    def tab(self):
        """The tab that is open."""
        return self.page.locator("[role=tabpanel]:visible").first

    def open(self, title, *inner):
        button = self.page.get_by_role("tab", name=title, exact=True)
        if button.count() and button.first.is_visible():
            button.first.click()
        else:  # there is no place for it on a narrow screen: it is in the menu
            self.page.locator(".overflow-menu > button").first.click()
            self.page.locator(".overflow-dropdown button", has_text=re.compile(f"^{title}$")).first.click()
        for name in inner:
            self.tab.get_by_role("tab", name=name, exact=True).click()

    def drop(self, file, number=0):
        panel = self.page.locator("[role=tabpanel]:visible").last  # of a search: that of the kind of query
        panel.locator("input[type=file]").nth(number).set_input_files(file)

    def drop_and_wait(self, file, number=0):
        """Drops a file and waits until the picture is shown or the sound can be played."""
        self.drop(file, number)
        self.tab.locator("img, audio, .waveform-container, #waveform").locator(
            "visible=true"
        ).first.wait_for()

    def write(self, label, text):
        self.tab.get_by_label(label).locator("visible=true").first.fill(text)

    def press(self, button):
        self.tab.get_by_role("button", name=button, exact=True).locator("visible=true").first.click()

    def expect(self, selector):
        self.tab.locator(selector).locator("visible=true").first.wait_for()

    def expect_text(self):
        """Waits until a text is written."""
        self.page.wait_for_function(
            "[...document.querySelectorAll('[role=tabpanel] textarea[disabled]')]"
            ".some(x => x.offsetParent && x.value)"
        )

    def expect_message(self, text):
        """Waits for a message, and closes it."""
        message = self.page.locator(".toast-body", has_text=text).first
        message.wait_for()
        message.locator(".toast-close").click()
        message.wait_for(state="detached")


class Use(NamedTuple):
    """How a tab is used once."""

    title: str
    button: str
    shown: str
    """The selector of what the answer is; ``text``: a text is written."""
    files: tuple[str, ...] = ()
    """What is dropped: green.png, tone.wav."""
    texts: dict[str, str] = {}
    """What is written, by the label of its box."""
    inner: tuple[str, ...] = ()
    """The tab within the tab."""

    def fill(self, visitor, folder):
        visitor.open(self.title, *self.inner)
        for number, name in enumerate(self.files):
            visitor.drop_and_wait(folder / name, number)
        for label, text in self.texts.items():
            visitor.write(label, text)

    def expect(self, visitor):
        visitor.expect_text() if self.shown == "text" else visitor.expect(self.shown)


PICTURE, GALLERY, PLAYER = "img[src*='image.png']", ".thumbnail-item img", "button[aria-label=Play]"
USES = {
    "search by text": Use("Search: space", "Search", "text=green.png", (), {"Text": "green"}, ("By text",)),
    "search by picture": Use("Search: space", "Search", "text=green.png 1.00", ("green.png",), {}, ("By picture",)),
    "search by sound": Use("Search: listener", "Search", GALLERY, ("tone.wav",), {}, ("By sound",)),
    "classify": Use("Classify: space", "Classify", "h2:has-text('green')", ("green.png",), {"Classes": "red, green"}),
    "caption": Use("Caption", "Caption", "text", ("green.png",)),
    "recognise": Use("Recognise speech", "Transcribe", "text", ("tone.wav",)),
    "speak": Use("Speak", "Speak", PLAYER, (), {"Text": "red"}),
    "answer": Use("Answer", "Answer", "h2", ("green.png",), {"Text": "is it red"}),
    "draw a class": Use("Draw: painter", "Draw", f"{GALLERY} >> nth=3"),
    "draw a text": Use("Draw: illustrator", "Draw", GALLERY, (), {"Text": "red"}),
    "latents": Use("Latent space: vae", "Reconstruct", PICTURE, ("green.png",)),
    "traversal": Use("Latent space: anything", "Traverse", GALLERY),
    "samples": Use("Sample: vae", "Sample", GALLERY),
    "samples of all kinds": Use("Sample: anything", "Sample", f"{GALLERY} >> nth=3"),
    "samples of a flow": Use("Sample: codes", "Sample", GALLERY),
    "translation": Use("Translate: anything", "Generate", PICTURE, (), {"Text": "a red star"}),
    "translation by a flow": Use("Translate: codes", "Generate", PICTURE, (), {"Text": "a red star"}),
}  # fmt: skip
"""Each tab used once, with a real input."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos, sound):
    """Files that users have: good ones and broken ones."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(photos / "green.png", folder)
    shutil.copy(sound, folder / "tone.wav")
    plain_picture("red", (30, 20)).save(folder / "red.png")
    (folder / "text.txt").write_text("no picture")
    (folder / "text.png").write_text("no picture")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "big.png").write_bytes(bytes(50 * 2**20))
    return folder


@pytest.fixture(scope="module", params=[1280, 390])
def visitor(request, browser, address):
    """A person whose page has this width, and uses one tab after the other."""
    visitor = Visitor(browser, address, request.param)
    visitor.width = request.param
    yield visitor
    others = {url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))}
    assert others == set() and len(visitor.requests) > 20
    visitor.page.close()


LAYOUT = """() => {
  const box = x => x.getBoundingClientRect()
  const visible = s => [...document.querySelectorAll(s)].filter(x => x.offsetParent)
  const faults = []
  if (document.documentElement.scrollWidth > innerWidth) faults.push("the page scrolls sideways")
  for (const x of visible(".thumbnail-lg")) {
    const caption = x.querySelector(".caption-label")
    if (box(caption).top < box(x.querySelector("img")).bottom - 1) faults.push(`${caption.innerText} hides its picture`)
    if (caption.scrollWidth > caption.clientWidth + 1) faults.push(`${caption.innerText} is cut`)
  }
  for (const x of visible(".grid-wrap"))
    if (box(x).bottom > box(x.querySelector(".grid-container")).bottom + 40) faults.push("empty space below pictures")
  for (const x of visible("button[role=tab]"))
    if (x.scrollWidth > x.clientWidth + 1) faults.push(`the title ${x.innerText} is cut`)
  for (const x of visible(".picture img")) {
    const label = x.closest(".block").querySelector("label, [data-testid=block-label]")
    if (label && box(label).bottom > box(x).top + parseFloat(getComputedStyle(x).paddingTop) + 1)
      faults.push(`${label.innerText} hides its picture`)
  }
  return faults
}"""
"""What is wrong in the layout of the page: what covers something else, what is cut, what sticks out."""


@pytest.mark.parametrize("name", USES)
def test_every_tab_is_used(visitor, folder, name):
    use = USES[name]
    use.fill(visitor, folder)
    visitor.press(use.button)
    use.expect(visitor)
    assert visitor.page.evaluate(LAYOUT) == []
    assert visitor.page.locator(".toast-body").count() == 0
    if target := os.environ.get("XMODAL_SCREENSHOTS"):
        visitor.page.wait_for_function("[...document.images].every(x => x.complete || !x.offsetParent)")
        file = pathlib.Path(target) / f"{name.replace(' ', '-')}-{visitor.width}.png"
        visitor.page.screenshot(path=file, full_page=True)


def test_the_sliders_move_the_picture(browser, address):
    """Also without an example, from the origin of the latent space."""
    visitor = Visitor(browser, address)
    visitor.open("Latent space: vae")
    slider = visitor.tab.locator("input[type=range]").nth(
        2
    )  # the first two: where the sliders begin, and one of them
    slider.focus()
    slider.press("ArrowRight")
    visitor.expect(PICTURE)
    visitor.page.close()


def test_the_sliders_of_other_dimensions(browser, address):
    """Their labels follow the first dimension."""
    visitor = Visitor(browser, address, 390)
    visitor.open("Latent space: codes")
    slider = visitor.tab.locator("input[type=range]").first
    slider.focus()
    slider.press("ArrowRight")
    visitor.expect("text=Dimension 8")
    assert visitor.tab.get_by_text("Dimension 0", exact=True).count() == 0
    visitor.page.close()


def test_one_picture_is_one_picture(browser, address):
    """With its caption: a list with one pair is not the pair."""
    visitor = Visitor(browser, address)
    visitor.open("Search: space", "By text")
    visitor.write("Text", "green")
    visitor.tab.get_by_label("number input for Results").fill("1")
    visitor.press("Search")
    visitor.expect("text=green.png")
    assert visitor.tab.locator(GALLERY).count() == 1
    visitor.page.close()


@pytest.mark.parametrize("name", USES)
def test_two_users_at_once(browser, address, folder, name):
    use, visitors = USES[name], [Visitor(browser, address) for _ in range(2)]
    for visitor in visitors:
        use.fill(visitor, folder)
    for visitor in visitors:
        visitor.press(use.button)
    for visitor in visitors:
        use.expect(visitor)
        assert visitor.page.locator(".toast-body").count() == 0
        visitor.page.close()


PICTURE_MISTAKES = {
    "text.txt": "Invalid file type",
    "big.png": "exceed the maximum allowed size of 1",
    "text.png": "no image of a known format",
}
SOUND_MISTAKES = {"empty.wav": "The file is empty"}
LONG = "10,000 characters, at most 2,000"


def takes(kind):
    """The uses of tabs that take a file of a kind."""
    return [name for name, use in USES.items() if any(file.endswith(kind) for file in use.files)]


@pytest.mark.parametrize("name", [*takes("png"), "translation"])
def test_files_that_are_no_pictures_are_explained(browser, address, folder, name):
    use, visitor = USES[name], Visitor(browser, address)
    visitor.open(use.title, *use.inner)
    for label, text in use.texts.items():
        visitor.write(label, text)
    for file, message in PICTURE_MISTAKES.items():
        visitor.drop(folder / file)
        if file == "text.png":
            visitor.tab.get_by_label("Clear").or_(visitor.tab.get_by_label("Remove")).first.wait_for()
            visitor.press(use.button)
        visitor.expect_message(message)
    check_that_it_goes_on(visitor, folder)


@pytest.mark.parametrize("name", [*takes("wav"), "translation"])
def test_files_that_are_no_sounds_are_explained(browser, address, folder, name):
    use, visitor = USES[name], Visitor(browser, address)
    visitor.open(use.title, *use.inner)
    for file, message in SOUND_MISTAKES.items():
        visitor.drop(folder / file, 1 if name == "translation" else 0)
        visitor.tab.get_by_label("Clear").or_(visitor.tab.get_by_label("Remove")).first.wait_for()
        visitor.press(use.button)
        visitor.expect_message(message)
    check_that_it_goes_on(visitor, folder)


@pytest.mark.parametrize("name", [name for name, use in USES.items() if use.texts])
def test_texts_that_are_too_long_are_explained(browser, address, folder, name):
    use, visitor = USES[name], Visitor(browser, address)
    use.fill(visitor, folder)
    visitor.write(next(iter(use.texts)), "red " * 2500)
    visitor.press(use.button)
    visitor.expect_message(LONG)
    check_that_it_goes_on(visitor, folder)


def check_that_it_goes_on(visitor, folder):
    """The same person gets an answer afterwards."""
    use = USES["speak"]
    use.fill(visitor, folder)
    visitor.press(use.button)
    use.expect(visitor)
    visitor.page.close()


def test_a_recording_by_microphone_is_transcribed(launch, address, tmp_path):
    """The recording is what the microphone heard, a tone of 440 Hz."""
    rate = 48_000
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate), rate)
    browser = launch(
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'tone.wav'}",
    )  # fmt: skip
    visitor = Visitor(browser, address)
    visitor.open("Recognise speech")
    visitor.tab.get_by_label("Record audio").click()
    visitor.press("Record")
    visitor.page.wait_for_timeout(1000)
    visitor.press("Stop")
    visitor.expect(PLAYER)
    visitor.press("Transcribe")
    visitor.expect_text()
    assert visitor.page.locator(".toast-body").count() == 0
    (recorded,) = {url for url in visitor.requests if re.search(r"/file=.*\.(wav|webm)$", url)}
    samples, rate = soundfile.read(io.BytesIO(urllib.request.urlopen(recorded).read()), always_2d=True)
    spectrum = np.abs(np.fft.rfft(samples[:, 0]))
    assert abs(spectrum.argmax() * rate / len(samples) - 440) < 3 and len(samples) > rate / 2
    visitor.page.close()
