"""Chromium, driven by chromedriver over its own HTTP protocol: several tabs, the keyboard, the network's log."""

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

AVAILABLE = bool(shutil.which("chromium") and shutil.which("chromedriver"))
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER, ESCAPE, TAB, RIGHT, DOWN = "\ue007", "\ue00c", "\ue004", "\ue014", "\ue015"


class Browser:
    def __init__(self, port: int, width: int, height: int) -> None:
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        options = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "mobileEmulation": {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1, "mobile": width < 500}},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        self.session = ""
        self.session = f"/session/{self.post('/session', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def post(self, path: str, **content: Any) -> Any:
        answer = self.client.post(self.session + path, json=content).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def ask(self, expression: str) -> Any:
        return self.post("/execute/sync", script=f"return {expression}", args=[])

    def text(self, selector: str = "body") -> str:
        return str(self.ask(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText).join('\\n')"))

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """The expression's value once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.ask(expression)):
            assert time.monotonic() < end, f"{expression} stayed {value!r}; the page: {self.text()}"
            time.sleep(0.03)
        return value

    def wait_for(self, text: str, selector: str = "body", seconds: float = 30) -> None:
        inner = f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText).join(' ')"
        self.wait(f"{inner}.includes({json.dumps(text)})", seconds)

    def element(self, selector: str) -> str:
        return str(self.post("/element", using="css selector", value=selector)[ELEMENT])

    def click(self, selector: str) -> None:
        self.post(f"/element/{self.element(selector)}/click")

    def button(self, name: str) -> None:
        self.ask(f"[...document.querySelectorAll('button')].find(b => b.innerText === {json.dumps(name)}).click()")

    def retype(self, text: str) -> None:
        """Types over what stands in the field that has the focus."""
        self.ask("document.activeElement.select()")
        self.press(*text)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def open(self, url: str) -> None:
        self.post("/url", url=url)

    def tab(self) -> str:
        """Opens another tab and goes to it."""
        handle = str(self.post("/window/new", type="tab")["handle"])
        self.switch(handle)
        return handle

    def current_tab(self) -> str:
        return str(self.client.get(f"{self.session}/window").json()["value"])

    def switch(self, handle: str) -> None:
        self.post("/window", handle=handle)

    def colours(self, scheme: str) -> None:
        """`light` or `dark`, as the system would say."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.post("/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})

    def requests(self) -> list[str]:
        """What the pages have asked for since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.post("/se/log", type="performance")]
        kinds = {"Network.requestWillBeSent": lambda p: p["request"]["url"], "Network.webSocketCreated": lambda p: p["url"]}
        return [kinds[event["method"]](event["params"]) for event in events if event["method"] in kinds]

    def complaints(self) -> list[str]:
        """Errors in the pages' consoles."""
        return [entry["message"] for entry in self.post("/se/log", type="browser") if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        """The whole page, however long."""
        size = self.ask("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        params = {"captureBeyondViewport": True, "clip": clip}
        path.write_bytes(base64.b64decode(self.post("/goog/cdp/execute", cmd="Page.captureScreenshot", params=params)["data"]))


@contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Browser]:
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert driver.stdout is not None
    browser = None
    try:
        port = next(int(found[1]) for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        browser = Browser(port, width, height)
        yield browser
    finally:
        if browser is not None:
            browser.client.delete(browser.session)
            browser.client.close()
        driver.terminate()
        driver.wait()
        driver.stdout.close()
