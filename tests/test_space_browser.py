# SPDX-License-Identifier: Apache-2.0
"""The web page in headless Chromium, as a visitor uses it, on a desktop and on a phone.

Screenshots go to the folder that SPACE_SCREENSHOTS names, else to a temporary one: look at them after a change.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline_zerostereo import ZeroStereoPipeline
from tests.space_server import ROOT, WEIGHTS, ServedSpace, served_space

pytest.importorskip("selenium", reason="needs the module 'selenium', which is not installed")
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
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
WAIT_S = 60
FLAGS = (
    "--headless=new --no-sandbox --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-unsafe-swiftshader --use-gl=angle --use-angle=swiftshader"
).split()


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

    def __init__(self, driver: Any, address: str, screenshots: Path, width: int):
        self.driver, self.screenshots, self.width = driver, screenshots, width
        self.resize(900)
        driver.get(f"{address}/?__theme=light")
        self.wait(lambda: driver.find_elements(By.ID, "make"))

    def wait(self, condition: Any) -> Any:
        try:
            return WebDriverWait(self.driver, WAIT_S).until(lambda _: condition())
        except TimeoutException:
            self.driver.save_screenshot(str(self.screenshots / "waited_in_vain.png"))
            raise

    def resize(self, height: int) -> None:
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": self.width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, selector: str) -> Any:
        return self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def shoot(self, name: str) -> None:
        self.resize(min(3000, self.driver.execute_script("return document.documentElement.scrollHeight")))
        time.sleep(0.3)
        self.driver.save_screenshot(str(self.screenshots / f"{self.width}_{name.lower().replace(' ', '_')}.png"))

    def choose(self, photo: Path) -> None:
        self.find("#photo input[type=file]").send_keys(str(photo))
        self.find("#photo img")

    def make_pair(self) -> None:
        self.find("#make").click()
        self.wait(lambda: "Done" in self.find("#status").text)

    def open_tab(self, name: str) -> None:
        """Open a tab, from the menu of those that do not fit where it is not in the row."""

        def button(selector: str) -> Any:
            found = self.driver.find_elements(By.CSS_SELECTOR, selector)
            return next((one for one in found if one.get_attribute("textContent").strip() == name), None)

        tab = button("#tabs button[role=tab]")
        if tab is None:
            self.driver.execute_script("arguments[0].click()", self.find("#tabs .overflow-menu > button"))
            tab = self.wait(lambda: button("#tabs .overflow-dropdown button"))
        self.driver.execute_script("arguments[0].click()", tab)

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

    def requested_hosts(self) -> set[str]:
        """Hosts that the page asked for anything, since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        urls = [urlsplit(one["request"]["url"]) for one in sent]
        return {url.netloc for url in urls if url.scheme in ("http", "https", "ws", "wss")}


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
    visitor.find("#cloud canvas")
    time.sleep(3)  # until the cloud is drawn
    visitor.shoot("Points")
    canvas = tmp_path / "canvas.png"
    canvas.write_bytes(visitor.find("#cloud canvas").screenshot_as_png)
    assert len(np.unique(np.asarray(PIL.Image.open(canvas).convert("RGB")).reshape(-1, 3), axis=0)) > 100

    visitor.open_tab("Files")
    visitor.find("#write").click()
    links = visitor.wait(lambda: browser.find_elements(By.CSS_SELECTOR, "#files a[href]"))
    files = {link.get_attribute("href").rsplit("/", 1)[-1]: link.get_attribute("href") for link in links}
    visitor.shoot("Files")
    assert {"stereo.zip", "left.png", "right.png", "disparity.png", "stereo.mpo", "points.ply"} <= files.keys()
    pipe = ZeroStereoPipeline.from_pretrained(WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    pair = pipe(
        PIL.Image.open(PHOTO), disparity_scale=0.06, num_inference_steps=1, generator=torch.Generator().manual_seed(0)
    )
    for name, view in (("left.png", pair.left_image[0]), ("right.png", pair.right_image[0])):
        view.save(tmp_path / name)
        assert visitor.fetch(files[name]) == (tmp_path / name).read_bytes()
    assert visitor.requested_hosts() == {urlsplit(address).netloc}


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
    number = visitor.find("#convergence input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys("12", Keys.TAB)
    visitor.wait(lambda: visitor.loaded_picture("anaglyph") != first)
    images = browser.find_elements(By.CSS_SELECTOR, ".gradio-container img")
    assert images and all(image.get_attribute("alt") for image in images)


def test_an_example_answers_in_one_click(browser: Any, address: str, screenshots: Path):
    visitor = Visitor(browser, address, screenshots, 1280)
    visitor.find("#examples img").click()
    visitor.wait(lambda: "Done" in visitor.find("#status").text)
    visitor.loaded_picture("compare")


def test_a_wrong_file_gets_a_message(browser: Any, address: str, screenshots: Path, tmp_path: Path):
    wrong = tmp_path / "wrong.jpg"
    wrong.write_bytes(b"I am not a photograph.")
    visitor = Visitor(browser, address, screenshots, 1280)
    visitor.choose(wrong)
    visitor.find("#make").click()
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
