"""The page of the app in headless Chromium: drop, type, hover, and see another canvas."""

import base64
import csv
import io
import json
import shutil
import socket
import threading

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fakes import dicom
from fakes.images import noise, png
from fakes.models import Squares
from plan_jax.app import server
from plan_jax.app.answers import Answers
from plan_jax.app.guard import Hosts
from plan_jax.app.images import Images

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
  not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
FLAGS = (
  "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
  " disable-component-update disable-sync window-size=1300,1000"
)
DROP = """
const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], arguments[0]));
document.querySelector("h1").dispatchEvent(
  new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
"""
SAVED = """
window.saved = [];
URL.createObjectURL = (blob) => (window.saved.push(blob), "data:,");
HTMLAnchorElement.prototype.click = function () { window.saved.push(this.download); };
"""
TYPED = "=left <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def address():
  models = {"a": Squares(), "b": Squares(offset=20)}
  answers = Answers(models, Images([noise(80, 64)]))
  listener = socket.create_server(("127.0.0.1", 0))
  config = uvicorn.Config(
    server.application(answers, Hosts("127.0.0.1")), log_level="warning", ws="none"
  )
  served = uvicorn.Server(config)
  thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]})
  thread.start()
  yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
  served.should_exit = True
  thread.join()
  listener.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  options = webdriver.ChromeOptions()
  options.binary_location = CHROMIUM
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  for flag in (*FLAGS.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
    options.add_argument(f"--{flag}")
  driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
  yield driver
  driver.quit()


class Page:
  """The open page.

  Attributes:
    panels: their elements.
  """

  def __init__(self, browser, address):
    self.browser = browser
    browser.get(address)
    self.wait(lambda: "80 × 64" in self.text("#status"))
    self.panels = browser.find_elements(By.CSS_SELECTOR, ".panel")

  def wait(self, condition):
    return WebDriverWait(self.browser, 20, 0.05).until(lambda _: condition())

  def part(self, selector, panel=None):
    root = self.browser if panel is None else self.panels[panel]
    return root.find_element(By.CSS_SELECTOR, selector)

  def text(self, selector, panel=None):
    return self.part(selector, panel).text

  def canvas(self, panel=0):
    return self.browser.execute_script(
      "return arguments[0].toDataURL()", self.part("canvas", panel)
    )

  def wait_for_other(self, canvas, panel=0):
    self.wait(lambda: self.canvas(panel) != canvas)
    return self.canvas(panel)

  def type(self, text, panel=0):
    """Types a phrase and waits for its score."""
    self.part("textarea", panel).send_keys(text, Keys.ENTER)
    self.wait(lambda: self.text(".score", panel))

  def slide(self, name, key):
    self.part(f"#{name}").send_keys(key)

  def drop(self, name, data):
    self.browser.execute_script(DROP, name, base64.b64encode(data).decode())


@pytest.fixture
def page(browser, address):
  page = Page(browser, address)
  yield page
  refused = ("responded with a status of 400", "404 (Not Found)")
  messages = [entry["message"] for entry in browser.get_log("browser")]
  assert not [line for line in messages if not any(word in line for word in refused)]


def test_a_dropped_image_and_a_typed_phrase(page):
  first = page.canvas()
  page.drop("<b>x</b>.dcm", dicom.image(noise(90, 70, seed=1)))
  page.wait(lambda: page.text("#status") == "<b>x</b>.dcm, 90 × 70 pixels")
  dropped = page.wait_for_other(first)
  page.type("left effusion")
  shown = page.wait_for_other(dropped)
  assert page.text(".score", 0) == "Score 0.750 · above 50 % of the run's validation phrases"
  assert page.text(".boxes li", 0) == "x 20–40, y 10–30: score 1.000"
  for name, key in (("opacity", Keys.HOME), ("level", Keys.END), ("window", Keys.HOME)):
    page.slide(name, key)
    shown = page.wait_for_other(shown)
  page.part("#reset").click()
  page.wait_for_other(shown)
  page.slide("threshold", Keys.ARROW_RIGHT)
  page.wait(lambda: page.text(".boxes", 0) == "x 20–38, y 10–30: score 1.000")


def test_words_of_a_report(page):
  page.part("textarea", 0).send_keys(
    "Heart normal.", Keys.SHIFT, Keys.ENTER, Keys.NULL, "Left effusion."
  )
  page.part(".report", 0).click()
  words = page.wait(lambda: page.panels[0].find_elements(By.CSS_SELECTOR, ".words button"))
  assert [word.text for word in words] == ["Heart", "normal", "Left", "effusion"]
  shown = page.canvas()
  ActionChains(page.browser).move_to_element(words[2]).perform()
  shown = page.wait_for_other(shown)
  assert page.text(".score", 0) == "“Left”, weight 0.500"
  words[2].send_keys(Keys.TAB)
  page.wait_for_other(shown)
  assert page.text(".score", 0) == "“effusion”, weight 0.500"
  assert [word.get_attribute("aria-pressed") for word in words] == ["false"] * 3 + ["true"]


def test_two_models_side_by_side(page):
  for panel in (0, 1):
    page.type("left effusion", panel)
  assert page.text(".boxes", 0) == "x 20–40, y 10–30: score 1.000"
  assert page.text(".boxes", 1) == "x 40–60, y 10–30: score 1.000"
  assert page.canvas(0) != page.canvas(1)
  page.part("#compare").click()
  assert [panel.is_displayed() for panel in page.panels] == [True, False]


def test_a_new_image_is_asked_the_same(page):
  page.type("left effusion")
  shown = page.canvas()
  page.drop("b.png", png(noise(60, 60, seed=2)))
  page.wait_for_other(shown)
  page.wait(lambda: page.text(".score", 0).startswith("Score"))


def test_downloads(page):
  page.browser.execute_script(SAVED)
  page.type(TYPED)
  for kind in ("png", "json", "csv"):
    page.part(f".{kind}", 0).click()
  page.wait(lambda: page.browser.execute_script("return window.saved.length") == 6)
  read = "return Promise.all(window.saved.map((x) => x.text ? x.text() : x))"
  saved = page.browser.execute_script(read)
  files = dict(zip(saved[1::2], saved[::2], strict=True))
  assert sorted(files) == ["grounding.csv", "grounding.json", "overlay.png"]
  facts = json.loads(files["grounding.json"])
  assert (facts["phrase"], facts["score"], facts["model"]) == (TYPED, 0.75, "a")
  assert facts["boxes"] == [{"x0": 20, "y0": 10, "x1": 40, "y1": 30, "score": 1}]
  assert files["overlay.png"].startswith("\ufffdPNG")
  (row,) = csv.DictReader(io.StringIO(files["grounding.csv"], newline=""))
  values = [row[name] for name in ("phrase", "score", "x1", "box_score")]
  assert values == [f"'{TYPED}", "0.75", "40", "1"]


def test_what_is_shown_keeps_its_phrase_when_another_is_refused(page):
  page.browser.execute_script(SAVED)
  page.type(TYPED)
  text = page.part("textarea", 0)
  text.clear()
  text.send_keys("!!!" + Keys.ENTER)
  page.wait(lambda: page.text("#error"))
  for kind in ("json", "csv"):
    page.part(f".{kind}", 0).click()
  page.wait(lambda: page.browser.execute_script("return window.saved.length") == 4)
  read = "return Promise.all(window.saved.map((x) => x.text ? x.text() : x))"
  facts, _, table, _ = page.browser.execute_script(read)
  assert json.loads(facts)["phrase"] == TYPED and "!!!" not in table


def test_texts_stay_texts(page):
  page.part("textarea", 0).send_keys(TYPED)
  page.part(".report", 0).click()
  page.wait(lambda: page.panels[0].find_elements(By.CSS_SELECTOR, ".words button"))
  assert not page.panels[0].find_elements(By.CSS_SELECTOR, ".words img")


@pytest.mark.parametrize("data", [b"no image", b""])
def test_what_is_no_image_is_refused(page, data):
  before = page.canvas()
  page.drop("notes.txt", data)
  page.wait(lambda: "the file: " in page.text("#error"))
  assert page.canvas() == before
  page.type("left effusion")
  assert page.text("#error") == ""


def test_a_phrase_without_a_word_is_refused(page):
  page.part("textarea", 0).send_keys("...", Keys.ENTER)
  page.wait(lambda: "has no word" in page.text("#error"))


def test_a_phone_shows_all(page):
  size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
  page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
  try:
    page.type("left effusion")
    width = page.browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= 390 and page.part("canvas", 0).size["width"] >= 300
  finally:
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name_and_takes_the_focus(page):
  page.type("left effusion")
  names = set()
  page.browser.execute_script("document.querySelector('#file').focus()")
  for _ in range(60):
    ActionChains(page.browser).send_keys(Keys.TAB).perform()
    element = page.browser.switch_to.active_element
    if element.tag_name == "body":
      break
    assert element.accessible_name, element.get_attribute("outerHTML")
    names.add(element.accessible_name)
  assert {"Test image 1", "Side by side", "Show phrase", "Overlay PNG", "CSV"} <= names
