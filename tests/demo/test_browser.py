"""The page in a real browser: every tab used once, wrong inputs, and no request to another host.

It needs Gradio, Playwright, and Debian's Chromium; without one of them it is skipped.
"""

import os
import pathlib
import shutil
import signal

import pytest

from benchmarks.demo_memory import run_demo

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


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

    def __init__(self, browser, address, width):
        self.page = browser.new_page(viewport={"width": width, "height": 850})
        self.page.set_default_timeout(20_000)
        self.requests = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("button[role=tab]")

    @property
    def tab(self):
        """The tab that is open."""
        return self.page.locator("[role=tabpanel]:visible").first

    def open(self, title):
        button = self.page.get_by_role("tab", name=title, exact=True)
        if button.count() and button.first.is_visible():
            button.first.click()
        else:  # there is no place for it on a narrow screen: it is in the menu
            self.page.locator(".overflow-menu > button").first.click()
            self.page.locator(".overflow-dropdown button", has_text=title).first.click()

    def drop(self, file, number=0):
        self.tab.locator("input[type=file]").nth(number).set_input_files(file)

    def write(self, label, text):
        self.tab.get_by_label(label).locator("visible=true").first.fill(text)

    def press(self, button):
        self.tab.get_by_role("button", name=button, exact=True).locator("visible=true").first.click()

    def expect(self, selector):
        self.tab.locator(selector).locator("visible=true").first.wait_for()

    def expect_text(self):
        """Waits until a text is written."""
        self.page.wait_for_function(
            "[...document.querySelectorAll('[role=tabpanel] textarea')].some(x => x.offsetParent && x.value)"
        )

    def expect_message(self, text):
        self.page.locator(".toast-body", has_text=text).first.wait_for()

    def uploaded(self):
        """Waits until the dropped picture is shown or the sound can be played."""
        self.tab.locator("img, audio, .waveform-container, #waveform").locator(
            "visible=true"
        ).first.wait_for()


@pytest.mark.parametrize("width", [1280, 390])
def test_every_tab_is_used(browser, address, photos, sound, width):
    visitor = Visitor(browser, address, width)
    visitor.open("Search")
    visitor.write("Text", "green")
    visitor.press("Search")
    visitor.expect("text=green.png")
    visitor.open("Classify")
    visitor.drop(photos / "red.png")
    visitor.uploaded()
    visitor.write("Classes", "red, green")
    visitor.press("Classify")
    visitor.expect("h2:has-text('red')")
    visitor.open("Caption")
    visitor.drop(photos / "red.png")
    visitor.uploaded()
    visitor.press("Caption")
    visitor.expect_text()
    visitor.open("Recognise speech")
    visitor.drop(sound)
    visitor.uploaded()
    visitor.press("Transcribe")
    visitor.expect_text()
    visitor.open("Speak")
    visitor.write("Text", "red")
    visitor.press("Speak")
    visitor.expect("button[aria-label=Play]")
    visitor.open("Answer")
    visitor.drop(photos / "red.png")
    visitor.uploaded()
    visitor.write("Text", "is it red")
    visitor.press("Answer")
    visitor.expect("h2")
    visitor.open("Draw")
    visitor.press("Draw")
    visitor.expect(".thumbnail-item img")
    visitor.open("Latent space: vae")
    visitor.drop(photos / "red.png")
    visitor.uploaded()
    visitor.press("Reconstruct")
    visitor.expect("img[src*='image.png']")
    visitor.press("Traverse")
    visitor.expect(".thumbnail-item img")
    visitor.open("Translate")
    visitor.write("Text", "a red star")
    visitor.press("Generate")
    visitor.expect("img[src*='image.png']")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    others = {url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))}
    assert others == set() and len(visitor.requests) > 50
    assert visitor.page.locator(".toast-body").count() == 0
    if folder := os.environ.get("XMODAL_SCREENSHOTS"):
        visitor.page.screenshot(path=pathlib.Path(folder) / f"demo-{width}.png", full_page=True)
    visitor.page.close()


def test_mistakes_are_explained_on_the_page(browser, address, photos, tmp_path):
    visitor = Visitor(browser, address, 1280)
    (tmp_path / "x.png").write_text("no picture")
    (tmp_path / "x.txt").write_text("no picture")
    (tmp_path / "x.wav").write_bytes(b"")
    (tmp_path / "big.png").write_bytes(bytes(50 * 2**20))
    visitor.open("Caption")
    visitor.drop(tmp_path / "x.txt")
    visitor.expect_message("Invalid file type")
    visitor.drop(tmp_path / "big.png")
    visitor.expect_message("exceed the maximum allowed size of 1")
    visitor.drop(tmp_path / "x.png")
    visitor.tab.get_by_label("Clear").or_(visitor.tab.get_by_label("Remove")).first.wait_for()
    visitor.press("Caption")
    visitor.expect_message("no image of a known format")
    visitor.open("Speak")
    visitor.write("Text", "red " * 2500)
    visitor.press("Speak")
    visitor.expect_message("10,000 characters, at most 2,000")
    visitor.write("Text", "red")
    visitor.press("Speak")
    visitor.expect("button[aria-label=Play]")  # the server goes on, and ends although this page is open
