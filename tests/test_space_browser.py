# SPDX-License-Identifier: Apache-2.0
"""The web page in headless Chromium, as a visitor uses it, on a desktop and on a phone.

Screenshots go to the folder that SPACE_SCREENSHOTS names, else to a temporary one: look at them after a change. Those
of the README are made anew by

    SPACE_PICTURES=docs/pictures python -m pytest tests/test_space_browser.py -k pictures_of_the_readme
"""

import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline_zerostereo import ZeroStereoPipeline
from tests.odd_photos import encoded
from tests.space_server import ROOT, WEIGHTS, ServedSpace, served_space

pytest.importorskip("selenium", reason="needs the module 'selenium', which is not installed")
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip(
        "browser tests need Chromium: apt-get install --no-install-recommends chromium chromium-driver",
        allow_module_level=True,
    )
pytestmark = pytest.mark.slow

PHOTO = ROOT / "examples" / "coffee.png"
TABS = ("Compare", "Wiggle", "Anaglyph", "Side by side", "Disparity", "Confidence", "Invented", "Points", "Files")
PICTURE_OF_TAB = {"Compare": "compare", "Side by side": "side_by_side"}  # others: the name in lower case
PHONE_WIDTH = 390
WAIT_S = 120
MOVING = (  # what a page answers while it is being laid out
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
FLAGS = (
    "--headless=new --no-sandbox --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-unsafe-swiftshader --use-gl=angle --use-angle=swiftshader "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
).split()
MAX_PICTURE_BYTES = 250_000


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("SPACE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedSpace]:
    with served_space(tmp_path_factory.mktemp("space")) as server:
        yield server


@pytest.fixture
def address(served: ServedSpace) -> str:
    return served.url


class Visitor:
    """A browser that looks at the page."""

    def __init__(self, driver: Any, address: str, screenshots: Path, width: int, theme: str = "light"):
        self.driver, self.screenshots, self.width = driver, screenshots, width
        self.resize(900)
        driver.get(f"{address}/?__theme={theme}")
        self.wait(lambda: driver.find_elements(By.ID, "make"))

    def wait(self, condition: Any) -> Any:
        try:
            return WebDriverWait(self.driver, WAIT_S, ignored_exceptions=MOVING).until(lambda _: condition())
        except TimeoutException:
            self.driver.save_screenshot(str(self.screenshots / "waited_in_vain.png"))
            raise

    def resize(self, height: int) -> None:
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": self.width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> Any:
        return self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def click(self, selector: str) -> None:
        """Click as soon as that is possible: Gradio puts new elements in place of old ones while it loads."""

        def is_clicked() -> bool:
            self.driver.find_element(By.CSS_SELECTOR, selector).click()
            return True

        self.wait(is_clicked)

    def shoot(self, name: str) -> None:
        self.resize(min(3000, self.driver.execute_script("return document.documentElement.scrollHeight")))
        time.sleep(0.3)
        self.driver.save_screenshot(str(self.screenshots / f"{self.width}_{name.lower().replace(' ', '_')}.png"))

    def choose(self, photo: Path) -> None:
        self.find("#photo input[type=file]").send_keys(str(photo))
        self.wait_for_upload()

    def wait_for_upload(self) -> None:
        """Wait until the server has the photograph: it is shown from there."""
        self.find("#photo img[src*='/file=']")

    def make_pair(self) -> None:
        self.click("#make")
        self.wait(lambda: "Done" in self.find("#status").text)

    def open_tab(self, name: str) -> None:
        """Open a tab, from the menu of those that do not fit where it is not in the row."""

        def button(selector: str) -> Any:
            found = self.driver.find_elements(By.CSS_SELECTOR, selector)
            return next((one for one in found if one.get_attribute("textContent").strip() == name), None)

        def is_open() -> bool:
            """Click until the tab is chosen: Gradio lays the row out anew, and loses clicks while it does."""
            if button("#tabs button[role=tab][aria-selected=true]") is not None:
                return True
            tab = button("#tabs button[role=tab]")
            if tab is None:
                self.driver.execute_script("arguments[0].click()", self.find("#tabs .overflow-menu > button"))
                tab = self.wait(lambda: button("#tabs .overflow-dropdown button"))
            self.driver.execute_script("arguments[0].click()", tab)
            return False

        self.wait(is_open)

    def enter(self, element_id: str, value: int) -> None:
        """Type a number into the field of a slider."""
        number = self.find(f"#{element_id} input[type=number]")
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys(str(value), Keys.TAB)

    def status(self) -> str:
        """Return what the page says above the tabs, progress and place in the queue included."""
        return self.find("#status").text

    def links(self) -> dict[str, str]:
        """Return the files on offer: name -> address."""
        found = self.driver.find_elements(By.CSS_SELECTOR, "#files a[href]")
        urls = [link.get_attribute("href") for link in found]
        return {url.rsplit("/", 1)[-1]: url for url in urls}

    def loaded_picture(self, element_id: str) -> str:
        """Wait until a picture is drawn and return where it came from."""
        script = "const i = document.querySelector(arguments[0]); return i && i.naturalWidth > 0 ? i.src : null"
        return self.wait(lambda: self.driver.execute_script(script, f"#{element_id} img"))

    def fetch(self, url: str) -> bytes:
        """Download a file with the browser."""
        script = (
            "const done = arguments[1]; fetch(arguments[0]).then(r => r.arrayBuffer())"
            ".then(b => done(Array.from(new Uint8Array(b))))"
        )
        return bytes(self.driver.execute_async_script(script, url))

    def requested(self) -> list[SplitResult]:
        """Return what the page asked for, since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        urls = [urlsplit(one["request"]["url"]) for one in sent]
        return [url for url in urls if url.scheme in ("http", "https", "ws", "wss")]

    def colors_of_cloud(self) -> int:
        """Return how many colours the viewer of the point cloud shows."""
        canvas = PIL.Image.open(io.BytesIO(self.find("#cloud canvas").screenshot_as_png)).convert("RGB")
        return len(np.unique(np.asarray(canvas).reshape(-1, 3), axis=0))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
    driver.set_script_timeout(WAIT_S)
    yield driver
    driver.quit()


def test_a_visitor_gets_the_pair_of_the_pipeline(browser: Any, address: str, screenshots: Path, tmp_path: Path):
    visitor = Visitor(browser, address, screenshots, 1280)
    visitor.shoot("start")
    visitor.choose(PHOTO)
    visitor.make_pair()
    for name in TABS[:-2]:
        visitor.open_tab(name)
        visitor.loaded_picture(PICTURE_OF_TAB.get(name, name.lower()))
        visitor.shoot(name)
    visitor.open_tab("Points")
    visitor.wait(lambda: visitor.colors_of_cloud() > 100)
    visitor.shoot("Points")
    visitor.click("#cloud_format input[value=glb]")
    hosts, paths = set(), ""

    def is_glb_there() -> bool:
        nonlocal paths
        new = visitor.requested()
        hosts.update(url.netloc for url in new)
        paths += " ".join(url.path for url in new)
        return "/points.glb" in paths

    visitor.wait(is_glb_there)
    visitor.wait(lambda: visitor.colors_of_cloud() > 100)
    visitor.shoot("Points glb")
    assert "/points.ply" in paths

    pipe: Any = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    pair = pipe(
        PIL.Image.open(PHOTO), disparity_scale=0.06, num_inference_steps=1, generator=torch.Generator().manual_seed(0)
    )
    views = pair.left_image[0], pair.right_image[0]
    visitor.open_tab("Files")
    visitor.click("#write")
    files = visitor.wait(visitor.links)
    visitor.shoot("Files")
    assert {"stereo.zip", "disparity.png", "stereo.mpo", "points.ply", "points.glb"} <= files.keys()
    for name, view in zip(("left.png", "right.png"), views, strict=True):
        view.save(tmp_path / name)
        assert visitor.fetch(files[name]) == (tmp_path / name).read_bytes()
    assert visitor.fetch(files["anaglyph.png"]) == encoded(pipe.image_processor.anaglyph(*views, "dubois", 0), "PNG")

    visitor.enter("convergence", 12)
    visitor.wait(lambda: not visitor.links())  # they were of another convergence
    visitor.wait(lambda: "make the files again" in visitor.find("#files_note").text)
    visitor.wait(
        lambda: re.search(r'"convergence"\D{0,9}12\b', visitor.find("#parameters").get_attribute("textContent"))
    )
    visitor.click("#write")
    files = visitor.wait(visitor.links)
    assert visitor.fetch(files["anaglyph.png"]) == encoded(pipe.image_processor.anaglyph(*views, "dubois", 12), "PNG")
    assert json.loads(visitor.fetch(files["parameters.json"]))["convergence"] == 12
    visitor.wait(lambda: not visitor.find("#files_note").text)
    assert hosts | {url.netloc for url in visitor.requested()} == {urlsplit(address).netloc}


def test_the_slider_moves_by_key_and_settings_make_new_pictures(browser: Any, address: str, screenshots: Path):
    visitor = Visitor(browser, address, screenshots, 1280)
    visitor.choose(PHOTO)
    visitor.make_pair()
    visitor.loaded_picture("compare")
    handle = visitor.find("#compare [data-testid=slider]")
    before = handle.get_attribute("style")
    handle.send_keys(Keys.ARROW_RIGHT)
    visitor.wait(lambda: handle.get_attribute("style") != before)
    visitor.open_tab("Anaglyph")
    first = visitor.loaded_picture("anaglyph")
    visitor.enter("convergence", 12)
    visitor.wait(lambda: visitor.loaded_picture("anaglyph") != first)
    images = browser.find_elements(By.CSS_SELECTOR, ".gradio-container img")
    assert images and all(image.get_attribute("alt") for image in images)


def test_an_example_answers_in_one_click(browser: Any, address: str, screenshots: Path):
    visitor = Visitor(browser, address, screenshots, 1280)
    visitor.click("#examples img")
    visitor.wait(lambda: "Done" in visitor.find("#status").text)
    visitor.loaded_picture("compare")


def test_a_picture_of_the_camera_and_a_pasted_one_are_photographs(browser: Any, address: str, screenshots: Path):
    visitor = Visitor(browser, address, screenshots, 1280)
    visitor.click("#photo button[aria-label='Capture from camera']")
    visitor.click("#photo [title='grant webcam access'] button, #photo button[title='grant webcam access']")
    visitor.wait(
        lambda: browser.execute_script(
            "const v = document.querySelector('#photo video'); return v && v.readyState >= 2 && v.currentTime > 0"
        )
    )
    visitor.click("#photo button[aria-label='capture photo']")
    visitor.wait_for_upload()
    visitor.make_pair()
    visitor = Visitor(browser, address, screenshots, 1280)
    origin = "://".join(urlsplit(address)[:2])
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.execute_cdp_cmd("Browser.grantPermissions", {"origin": origin, "permissions": permissions})
    copy = (
        "const done = arguments[0]; const canvas = document.createElement('canvas');"
        "canvas.width = 90; canvas.height = 70; canvas.getContext('2d').fillRect(20, 10, 30, 40);"
        "canvas.toBlob(async b => {"
        "  await navigator.clipboard.write([new ClipboardItem({'image/png': b})]); done(true); })"
    )
    assert browser.execute_async_script(copy)
    visitor.click("#photo button[aria-label='Paste from clipboard']")
    visitor.wait_for_upload()
    visitor.make_pair()
    assert "of 90 px" in visitor.status()


def test_who_waits_sees_their_place_and_who_cancels_frees_the_device(
    browser: Any, address: str, screenshots: Path, tmp_path: Path
):
    from gradio_client import Client, handle_file

    visitor = Visitor(browser, address, screenshots, 1280)
    other = Client(address, verbose=False, download_files=str(tmp_path))
    working = other.submit(handle_file(str(PHOTO)), steps=100, target_view="both", api_name="/stereo_pair")
    visitor.wait(lambda: working.status().code.name in ("PROCESSING", "PROGRESS"))
    visitor.choose(PHOTO)
    visitor.click("#make")
    visitor.wait(lambda: re.search(r"queue: 1/1", visitor.status()))
    visitor.shoot("queue")
    assert visitor.wait(lambda: other.predict(api_name="/cancel") == "Cancelled.")
    visitor.wait(lambda: "Done" in visitor.status())
    with pytest.raises(Exception, match="Cancelled"):
        working.result(WAIT_S)

    browser.execute_script("arguments[0].click()", visitor.find("#advanced button"))

    def steps_are_kept() -> bool:
        """Enter the steps until they stay: the part of the page that just opened is laid out anew once."""
        visitor.enter("steps", 100)
        time.sleep(1)
        return browser.execute_script("return document.querySelector('#steps input[type=range]').value") == "100"

    visitor.wait(steps_are_kept)
    visitor.click("#make")
    visitor.wait(lambda: re.search(r"step \d+ of 100, about \d+ s left", visitor.status()))
    visitor.shoot("running")
    visitor.click("#cancel")
    visitor.wait(lambda: "Cancelled." in visitor.status())
    assert other.predict(handle_file(str(PHOTO)), api_name="/stereo_pair")[4]["steps"] == 1


def test_files_of_a_visitor_who_leaves_are_removed(browser: Any, served: ServedSpace, screenshots: Path):
    visitor = Visitor(browser, served.url, screenshots, 1280)
    visitor.choose(PHOTO)
    visitor.make_pair()
    path = Path(urlsplit(visitor.loaded_picture("compare")).path.split("file=", 1)[1])
    folder = served.cache / path.relative_to(served.cache).parts[0]
    assert path.is_file() and path.parent != folder
    browser.get("about:blank")
    visitor.wait(lambda: not folder.exists())


def test_a_wrong_file_gets_a_message(browser: Any, address: str, screenshots: Path, tmp_path: Path):
    wrong = tmp_path / "wrong.jpg"
    wrong.write_bytes(b"I am not a photograph.")
    visitor = Visitor(browser, address, screenshots, 1280)
    visitor.choose(wrong)
    visitor.click("#make")
    visitor.wait(lambda: "must be an image file" in visitor.find("[data-testid=toast-body]").text)
    visitor.shoot("wrong file")


def test_the_page_fits_a_phone(browser: Any, address: str, screenshots: Path):
    visitor = Visitor(browser, address, screenshots, PHONE_WIDTH)
    visitor.shoot("start")
    visitor.choose(PHOTO)
    visitor.make_pair()
    for name in TABS:
        visitor.open_tab(name)
        time.sleep(0.5)
        visitor.shoot(name)
        widest = browser.execute_script(
            "return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        )
        assert widest <= PHONE_WIDTH, name


@pytest.mark.parametrize("pressed", ["#make", "#examples img"])
def test_a_phone_scrolls_to_where_the_result_appears(browser: Any, address: str, screenshots: Path, pressed: str):
    visitor = Visitor(browser, address, screenshots, PHONE_WIDTH)
    visitor.choose(PHOTO)
    script = "return document.querySelector('#status').getBoundingClientRect().top / window.innerHeight"
    browser.execute_script("window.scrollTo(0, 0)")
    assert browser.execute_script(script) > 1
    visitor.click(pressed)
    visitor.wait(lambda: -0.01 < browser.execute_script(script) < 0.5)
    visitor.wait(lambda: "Done" in visitor.status())


def test_the_page_is_dark_where_that_is_wished(browser: Any, address: str, screenshots: Path):
    visitor = Visitor(browser, address, screenshots, PHONE_WIDTH, theme="dark")
    visitor.shoot("dark")
    script = (
        "const style = getComputedStyle(document.querySelector('#intro h1'));"
        "return [style.color, getComputedStyle(document.querySelector('gradio-app')).backgroundColor]"
        ".map(c => c.match(/\\d+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0) / 3)"
    )
    letters, ground = browser.execute_script(script)
    assert letters > 180 and ground < 60


def test_pictures_of_the_readme_are_small(browser: Any, address: str, screenshots: Path):
    folder = Path(os.environ.get("SPACE_PICTURES") or screenshots / "readme")
    folder.mkdir(parents=True, exist_ok=True)
    for name, width, theme, tab in (
        ("space_desktop.jpg", 1280, "light", "Compare"),
        ("space_desktop_dark.jpg", 1280, "dark", "Anaglyph"),
        ("space_phone.jpg", PHONE_WIDTH, "light", "Disparity"),
    ):
        visitor = Visitor(browser, address, screenshots, width, theme)
        visitor.click("#examples img")
        visitor.wait(lambda visitor=visitor: "Done" in visitor.status())
        visitor.open_tab(tab)
        visitor.loaded_picture(tab.lower())
        visitor.shoot(tab)
        with PIL.Image.open(visitor.screenshots / f"{width}_{tab.lower()}.png") as picture:
            picture.convert("RGB").save(folder / name, quality=85, optimize=True)
        assert (folder / name).stat().st_size < MAX_PICTURE_BYTES
