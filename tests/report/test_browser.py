"""The page works in a real browser: hovering, typing and clicking cause no error or request."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction  # noqa: E402
from nexusflow_integrations.report import Question, write_report  # noqa: E402

from .conftest import EVIL, fill  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1280,900",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]

AT = """
const canvas = document.getElementById('map').getBoundingClientRect();
const data = JSON.parse(document.getElementById('data').textContent);
const read = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const at = data.ids.indexOf(arguments[0]), pad = 18;
return [pad + read(data.x)[at] * (canvas.width - 2 * pad) - canvas.width / 2,
        pad + (1 - read(data.y)[at]) * (canvas.height - 2 * pad) - canvas.height / 2];
"""
"""Where a point is, from the middle of the map, where Selenium measures from."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, running_server: Any) -> Path:
    folder = tmp_path_factory.mktemp("page")
    function = NexusFlowEmbeddingFunction(
        running_server.api_key, api_base=running_server.base_url, dimensions=128
    )
    collection = fill(folder / "chroma", function, 120)
    asked = [
        Question("Who hides thing number 16?", ["id-16"]),
        Question("</script><b>beetle", ["id-1"]),
        Question("something about otters"),
    ]
    return write_report(collection, folder / "out.html", questions=asked, projection="pca").path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ.setdefault("SE_OFFLINE", "true")
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_page_load_timeout(300)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Any]:
    """The page; after the test, check that it logged no error and sent no request."""
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.title == "zoo"
    events = [json.loads(item["message"])["message"] for item in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        # The browser's own first page may still be loading.
        and not event["params"]["documentURL"].startswith("chrome")
    }
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def one(browser: Any, selector: str) -> Any:
    return browser.find_element(By.CSS_SELECTOR, selector)


def point(browser: Any, name: str) -> ActionChains:
    x, y = browser.execute_script(AT, name)
    canvas = one(browser, "#map")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    return ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y))


def text_of(browser: Any, selector: str) -> str:
    return str(one(browser, selector).get_property("textContent"))


def test_a_hover_shows_the_text_of_the_point(opened: Any) -> None:
    assert not one(opened, "#tip").is_displayed()
    point(opened, "evil").perform()
    assert one(opened, "#tip").is_displayed()
    assert text_of(opened, "#tip") == "<b>evil</b>" + EVIL
    ActionChains(opened).move_to_element(one(opened, "#title")).perform()
    assert not one(opened, "#tip").is_displayed()


def test_markup_in_a_text_makes_no_element_anywhere(opened: Any) -> None:
    point(opened, "evil").click().perform()
    one(opened, "#search").send_keys("onerror")
    assert text_of(opened, "#count") == "1 of 121"
    assert opened.find_elements(By.CSS_SELECTOR, "img, b") == []
    assert one(opened, "#side mark").text == "onerror"


def test_typing_filters_the_points_and_lists_them_with_the_words_marked(opened: Any) -> None:
    one(opened, "#search").send_keys("otter hides")
    assert text_of(opened, "#count") == "6 of 121"
    rows = opened.find_elements(By.CSS_SELECTOR, "#side .row")
    assert len(rows) == 6
    assert {mark.text.lower() for mark in rows[0].find_elements(By.CSS_SELECTOR, "mark")} == {
        "otter",
        "hides",
    }
    rows[0].find_element(By.CSS_SELECTOR, "button").click()
    assert len(opened.find_elements(By.CSS_SELECTOR, "#side .full")) == 1
    one(opened, "#side .back").click()
    assert len(opened.find_elements(By.CSS_SELECTOR, "#side .row")) == 6
    point(opened, "id-1").perform()  # a panda, which is faded now
    assert "panda" not in text_of(opened, "#tip")
    one(opened, "#search").clear()
    one(opened, "#search").send_keys("no such words")
    assert text_of(opened, "#count") == "0 of 121"


def test_a_click_selects_the_point_and_shows_what_is_near(opened: Any) -> None:
    point(opened, "id-42").click().perform()
    assert "thing number" in text_of(opened, "#side .full")
    near = opened.find_elements(By.CSS_SELECTOR, "#side .row")
    assert len(near) == 6
    chosen = text_of(opened, "#side .full")
    near[0].find_element(By.CSS_SELECTOR, "button").click()
    assert text_of(opened, "#side .full") != chosen


def test_a_group_of_the_legend_is_shown_alone_and_colours_change(opened: Any) -> None:
    legend = {
        button.find_element(By.CSS_SELECTOR, ".name").text: button
        for button in opened.find_elements(By.CSS_SELECTOR, "#legend button")
    }
    legend["panda.md"].click()
    assert legend["panda.md"].get_attribute("aria-pressed") == "true"
    shown = opened.find_elements(By.CSS_SELECTOR, "#side .row")
    assert len(shown) == 30
    assert all("panda" in row.text for row in shown)
    one(opened, "#colours button:nth-child(2)").click()
    names = [item.text for item in opened.find_elements(By.CSS_SELECTOR, "#legend .name")]
    assert "panda.md" not in names
    assert len(names) > 2


def test_questions_that_failed_come_first_and_alone(opened: Any) -> None:
    assert one(opened, "main section").get_attribute("id") == "inspector"
    shown = opened.find_elements(By.CSS_SELECTOR, "#questions li")
    assert [item.text.splitlines()[0] for item in shown] == ["</script><b>beetle"]
    assert "First correct result: #" in text_of(opened, "#answer")
    assert "</script><b>beetle" in text_of(opened, "#answer .head")
    one(opened, "#which button:nth-child(2)").click()
    assert len(opened.find_elements(By.CSS_SELECTOR, "#questions li")) == 3


def test_a_question_shows_its_hits_and_the_rank_of_the_right_one(opened: Any) -> None:
    one(opened, "#which button:nth-child(2)").click()
    one(opened, "#questions li:nth-child(2) button").click()
    assert "First correct result: #1" in text_of(opened, "#answer")
    first = one(opened, "#answer .row")
    assert "thing number 16." in first.text
    assert "right" in first.get_attribute("class")
    assert "hides" in {mark.text for mark in first.find_elements(By.CSS_SELECTOR, "mark")}
    one(opened, "#questions li:nth-child(3) button").click()
    assert "First correct" not in text_of(opened, "#answer")


def test_of_a_question_whole_words_are_marked_and_pairs_of_chinese_characters(
    browser: Any, tmp_path: Path, running_server: Any
) -> None:
    function = NexusFlowEmbeddingFunction(
        running_server.api_key, api_base=running_server.base_url, dimensions=128
    )
    collection: Any = chromadb.EphemeralClient().create_collection(
        "words",
        embedding_function=function,  # type: ignore[arg-type]
    )
    text = "Holidays: 28 days a year. 小熊猫喜欢吃竹子。"
    collection.add(ids=["1"], documents=[text])
    asked = [Question("How many days? 熊猫 day", ["1"])]
    browser.get(write_report(collection, tmp_path / "out.html", questions=asked).path.as_uri())
    (row,) = browser.find_elements(By.CSS_SELECTOR, "#answer .row")
    assert [mark.text for mark in row.find_elements(By.CSS_SELECTOR, "mark")] == ["days", "熊猫"]


def test_questions_hits_and_outliers_are_exported_as_json(opened: Any) -> None:
    made = """
    const done = arguments[0], make = URL.createObjectURL;
    URL.createObjectURL = (blob) => {
      blob.text().then(done);
      URL.createObjectURL = make;
      return '#';
    };
    document.getElementById('export').click();
    """
    found = json.loads(opened.execute_async_script(made))
    assert found["collection"] == "zoo"
    assert found["model"] == "text-embedding-v4"
    asked = found["questions"][0]
    assert (asked["question"], asked["expected"]) == ("Who hides thing number 16?", ["id-16"])
    assert asked["hits"][asked["rank"] - 1]["id"] == "id-16"
    assert len(found["outliers"]) == 12


def test_a_source_with_an_address_is_a_link(opened: Any) -> None:
    link = one(opened, "#outliers a.source")
    assert link.get_attribute("href").startswith("https://zoo.example/")
    assert link.get_attribute("rel") == "noopener noreferrer"


def test_the_printed_page_holds_the_failed_questions_and_no_controls(opened: Any) -> None:
    assert not one(opened, "#printed").is_displayed()
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert "beetle" in one(opened, "#printed").text
        for hidden in ("#print", "#search", "#questions", "#side"):
            assert not one(opened, hidden).is_displayed()
        assert opened.execute_cdp_cmd("Page.printToPDF", {})["data"]
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width", [390, 1280])
def test_the_zoom_buttons_work_and_cover_nothing_of_the_map(opened: Any, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        field = one(opened, "#map").rect
        for button in opened.find_elements(By.CSS_SELECTOR, ".zoom button"):
            assert button.rect["y"] + button.rect["height"] <= field["y"]
            assert 0 <= button.rect["x"] <= width - button.rect["width"]
            button.click()
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_cards_are_filled(opened: Any) -> None:
    assert len(opened.find_elements(By.CSS_SELECTOR, "#histogram rect")) > 10
    assert len(opened.find_elements(By.CSS_SELECTOR, "#outliers .row")) == 12
    assert "CNY" in text_of(opened, "#cost")
    assert "3 documents were embedded again" in text_of(opened, "#cost")
    model = "a model named text-embedding-v4 on this machine"  # a server can be a stand-in
    assert f"{model} · 128 dimensions" in text_of(opened, "#facts")
    assert "of the variance" in text_of(opened, "#quality")
    one(opened, "#outliers .row button").click()
    assert text_of(opened, "#chosen")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_phones_and_desktops_in_both_schemes(opened: Any, scheme: str, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 2, "mobile": width < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        wide = opened.execute_script("return document.documentElement.scrollWidth")
        assert wide <= opened.execute_script("return innerWidth") == width
        page = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, page.removeprefix("rgb(").removesuffix(")").split(","))) > 382
        assert light == (scheme == "light")
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_ten_thousand_points_are_drawn_and_hovered_over(browser: Any, tmp_path: Path) -> None:
    count = 10_000
    random = np.random.default_rng(0)
    vectors = random.normal(size=(12, 16))[np.arange(count) % 12] + random.normal(
        scale=0.5, size=(count, 16)
    )
    collection: Any = chromadb.PersistentClient(str(tmp_path)).create_collection("many")
    for start in range(0, count, 5000):
        collection.add(
            ids=[str(number) for number in range(start, start + 5000)],
            embeddings=vectors[start : start + 5000].astype(np.float32),
            documents=[f"text number {number}" for number in range(start, start + 5000)],
        )
    done = write_report(collection, tmp_path / "out.html", projection="pca")
    browser.get(done.path.as_uri())
    # Each of a hundred moves looks at a few of the points, and never draws more than once a frame.
    looked = browser.execute_async_script(
        """
        const done = arguments[0], canvas = document.getElementById('map');
        const box = canvas.getBoundingClientRect(), names = new Set();
        const draw = CanvasRenderingContext2D.prototype.clearRect;
        let frames = 0, step = 0;
        CanvasRenderingContext2D.prototype.clearRect = function (...all) {
          frames++;
          draw.apply(this, all);
        };
        const move = () => {
          for (let k = 0; k < 5; k++) {
            const x = box.width * (0.2 + 0.6 * step / 100), y = box.height * (0.3 + 0.4 * k / 5);
            const place = { clientX: box.left + x, clientY: box.top + y, bubbles: true };
            canvas.dispatchEvent(new PointerEvent('pointermove', place));
            names.add(document.getElementById('tip').textContent);
          }
          if (++step < 100) requestAnimationFrame(move); else done([names.size, frames]);
        };
        move();
        """
    )
    names, frames = looked
    assert names > 50
    assert frames <= 101
    one(browser, "#search").send_keys("number 77")
    found = sum("77" in str(number) for number in range(count))
    assert text_of(browser, "#count") == f"{found} of 10,000"
    assert browser.get_log("browser") == []
