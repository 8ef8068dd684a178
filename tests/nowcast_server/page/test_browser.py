"""The page in a real Chromium, driven as a person would use it. Pictures of it are kept under build/page."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
from server_kit import Caller, Last, Start, listening, tell

from nowcast_server.app import create_app
from nowcast_server.forecasters import load_forecaster
from nowcast_server.jobs.course import Place
from nowcast_server.settings import Settings
from nowcast_server.tokens import ANONYMOUS

CHROMIUM, DRIVER = which("chromium"), which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]

PICTURES = Path(__file__).resolve().parents[3] / "build" / "page"
PATIENCE_S = 120.0
"""A busy machine may take its time; what is waited for comes, or the test fails."""


class Browser:
    """One window."""

    def __init__(self) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))

    def look(self, *, width: int = 1280, dark: bool = False) -> None:
        """Have a window of this width, in light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str = "body") -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def until(self, ready: Callable[[], Any], what: str) -> Any:
        """Wait until something holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := ready()):
            assert time.monotonic() < deadline, f"{what} did not come about; the page says:\n{self.text()}"
            time.sleep(0.1)
        return value

    def keep(self, name: str) -> None:
        """Keep a picture of the whole page."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        width, height = self.run("return [innerWidth, Math.min(document.documentElement.scrollHeight, 4000)]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        (PICTURES / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console has to say."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(window: Browser) -> Browser:
    """A window as a person opens it: wide, light, logged in nowhere."""
    window.driver.get("about:blank")
    window.driver.delete_all_cookies()
    window.look()
    window.complaints(), window.requests()
    return window


def address(caller: Caller) -> str:
    return str(caller.client.base_url).rstrip("/")


def points(browser: Browser) -> int:
    return int(browser.run("return Number(document.querySelector('#chart-loss')?.dataset.points ?? 0)"))


def axe_findings(browser: Browser) -> list[str]:
    """Serious findings of axe-core."""
    import axe_core_python

    script = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    browser.run(script)
    found = browser.driver.execute_async_script("const done = arguments[0]; axe.run().then((found) => done(found.violations));")
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:120]}" for each in found if each["impact"] in {"serious", "critical"}
    ]  # fmt: skip


def test_job_appears_and_its_curve_grows(browser: Browser, listen: Start) -> None:
    """The page would have to be loaded anew to see what training does; or it asks other servers for something."""
    caller = listen(drain_s=1)
    url = address(caller)
    browser.driver.get(url)
    assert "No job yet" in browser.text()
    caller.put("vision.resnet-1")
    browser.until(lambda: "vision.resnet-1" in browser.text("#jobs"), "the job's row")
    tell(caller.service, "vision.resnet-1", range(10, 500, 10))
    browser.until(lambda: "490" in browser.text("#jobs"), "its step")
    assert "No job yet" not in browser.text()
    browser.run("document.querySelector('#jobs a').click()")
    browser.until(lambda: points(browser) == 49, "the curve")
    tell(caller.service, "vision.resnet-1", range(500, 600, 10), skipped={"late": 1})
    browser.until(lambda: points(browser) == 59, "new points of the curve")
    browser.until(lambda: "did not come in time" in browser.text("#happenings"), "the event")
    browser.run("document.querySelector('#across input[value=\"1\"]').click()")
    browser.until(lambda: "wall time" in browser.text("#chart-loss"), "the axis of wall time")
    assert browser.complaints() == []
    assert {each for each in browser.requests() if not each.startswith((url, "data:", "about:"))} == set()


def test_killed_server_is_shown_as_lost_and_comes_back(browser: Browser) -> None:
    """Figures of a dead server would look like those of a running one; or the page would need a reload afterwards."""
    settings = Settings(port=0, drain_s=1)
    app = create_app(settings, forecasters={})
    with listening(app, settings) as client:
        url, port = str(client.base_url).rstrip("/"), client.base_url.port
        browser.driver.get(url)
        browser.until(lambda: browser.run("return document.querySelector('#live')._htmx?.sse != null"), "the stream of events")
        assert browser.run("return document.querySelector('#lost').hidden")
    browser.until(lambda: not browser.run("return document.querySelector('#lost').hidden"), "the notice that the server is lost")
    browser.keep("lost")
    with listening(create_app(settings, forecasters={}), settings, port=port):
        browser.until(lambda: browser.run("return document.querySelector('#lost').hidden"), "the end of that notice")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (375, False), (375, True)])
def test_pages_fit_and_can_be_read(browser: Browser, listen: Start, width: int, dark: bool) -> None:  # noqa: FBT001
    """On a phone, in the dark, or with a screen reader the page would be of no use."""
    caller = listen(Last(), load_forecaster("nino"), drain_s=1)
    for job, mode, speed in (("vision.resnet-1", "glide", 1.6), ("vision.shadow", "shadow", 1.0)):
        caller.put(job, mode=mode)
        layers = {"conv1": 0.61, "layer1.0.conv1": 0.34, "fc": -0.08}
        tell(caller.service, job, range(10, 900 if mode == "glide" else 1900, 10), speed=speed, skipped={"late": 3}, layers=layers)
        for step in range(8):
            vector = np.random.default_rng(step).normal(size=4).astype(np.float32)
            caller.service.jobs.get(ANONYMOUS, job).places.add(Place(step, 1 / (1 + step), vector))
    browser.look(width=width, dark=dark)
    for name, path in (("overview", "/"), ("job", "/jobs/vision.resnet-1"), ("map", "/map")):
        browser.driver.get(address(caller) + path)
        if name == "job":
            browser.until(lambda: points(browser), "the curve")
            browser.until(lambda: browser.text(".diagram"), "the picture of the network")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert axe_findings(browser) == []
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") != dark
        browser.keep(f"{name}-{width}-{'dark' if dark else 'light'}")
    assert browser.complaints() == []


def test_keyboard_alone_leads_from_login_to_a_curve(browser: Browser, listen: Start) -> None:
    """Who cannot use a mouse could not use the page."""
    from selenium.webdriver.common.keys import Keys

    token = "alice-secret-alice-secret"
    caller = listen(tokens=f"alice:{token}", drain_s=1)
    caller.put("job", headers={"authorization": f"Bearer {token}"})
    tell(caller.service, "job", range(10, 300, 10), tenant="alice")
    browser.driver.get(address(caller))
    assert "Log in" in browser.text("h1")
    browser.driver.switch_to.active_element.send_keys(token + Keys.ENTER)
    browser.until(lambda: "job" in browser.text("#jobs"), "the overview")

    def tab_to(selector: str) -> Any:
        for _ in range(20):
            browser.driver.switch_to.active_element.send_keys(Keys.TAB)
            active = browser.driver.switch_to.active_element
            if browser.run("return arguments[0].matches(arguments[1])", active, selector):
                outline = browser.run("return getComputedStyle(arguments[0]).outlineStyle", active)
                assert outline != "none", f"the focus on {selector} cannot be seen"
                return active
        raise AssertionError(f"no key leads to {selector}")

    tab_to("#jobs a").send_keys(Keys.ENTER)
    browser.until(lambda: points(browser) == 29, "the curve")
    tab_to("#across input").send_keys(Keys.ARROW_RIGHT)
    browser.until(lambda: "wall time" in browser.text("#chart-loss"), "the axis of wall time")
