"""A headless Chromium, driven by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-prefers-reduced-motion", "--remote-debugging-port=0",
)  # fmt: skip
_KEYS = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "Tab": 9}


class Browser:
    """A Chromium with a profile of its own."""

    def __init__(self) -> None:
        program = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
        assert program is not None, "these tests need Chromium"
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        flags = [*_FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        quiet, english = subprocess.DEVNULL, os.environ | {"LANG": "en_US.UTF-8"}
        self.process = subprocess.Popen([program, *flags], stdout=quiet, stderr=quiet, env=english)
        self.port = self._port()

    def _port(self) -> int:
        file = Path(self.profile, "DevToolsActivePort")
        for _ in range(600):
            if file.is_file() and (lines := file.read_text().split()):
                return int(lines[0])
            time.sleep(0.05)
        raise AssertionError("Chromium did not start")

    def page(self, url: str, width: int = 1280, height: int = 800, *, dark: bool = False, phone: bool = False) -> Page:
        """A tab that shows an address."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request) as answer:
            target = json.load(answer)
        page = Page(connect(target["webSocketDebuggerUrl"], max_size=None))
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        page.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        page.open(url)
        return page

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.profile, ignore_errors=True)


class Page:
    """A tab. What its console says as an error, and requests to elsewhere, are kept in `errors` and `addresses`."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.numbers = connection, count(1)
        self.errors: list[str] = []
        self.addresses: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self.numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            found = json.loads(self.connection.recv(timeout=30))
            if found.get("id") == number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self._hear(found.get("method"), found.get("params", {}))

    def _hear(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"].get("exception", {}).get("description", told)))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.addresses.append(told["request"]["url"])

    def open(self, url: str) -> None:
        """Show an address, and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        ends = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < ends, f"not within {seconds} s: {script}; the page shows: {self.run('document.body.innerText')!r}"
            time.sleep(0.03)

    def text(self, selector: str) -> str:
        """The text of the first element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, or tap it on a phone."""
        at = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'nearest'}}); "
            "const r = e.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button=button, clickCount=1)

    def write(self, text: str) -> None:
        """Write into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key."""
        for kind, text in (("keyDown", "\r" if key == "Enter" else ""), ("keyUp", "")):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key], text=text)

    def picture(self, file: Path) -> None:
        """Write a picture of what can be seen."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
