"""A headless Chromium driven by the DevTools protocol over pipes: needs no package, no port and no
second program.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from browser_page import BrowserPage, Place

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (path := shutil.which(name))
    ),
    None,
)
# the protocol wants its pipes as file descriptors 3 and 4
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)

_KEYS = {"Tab": 9, "ArrowUp": 38, "ArrowRight": 39}
_BLUR = """
const Real = Worker;
Worker = function (url, options) {
  const text = `const own = OffscreenCanvasRenderingContext2D.prototype.getImageData;
    OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...a) {
      const d = own.apply(this, a); d.data[5] ^= 1; return d; };
    onmessage = (first) => import('${url}').then(() => onmessage(first));`;
  return new Real(URL.createObjectURL(new Blob([text], { type: 'text/javascript' })), options);
};"""


class Chromium:
    """A running browser; `close` ends it."""

    name = "chromium"

    def __init__(self, folder: Path) -> None:
        commands, self.out = os.pipe()
        self.into, answers = os.pipe()
        pipes = [
            fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers)
        ]  # away from 3 and 4
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _START,
                *map(str, pipes),
                CHROMIUM,
                *_FLAGS,
                f"--user-data-dir={folder}",
            ],
            pass_fds=pipes,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (commands, answers, *pipes):
            os.close(fd)
        self.numbers, self.rest, self.events = itertools.count(1), b"", []

    def call(
        self, method: str, session: str | None = None, timeout: float = 30, **params: Any
    ) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": session} if session else {}
        )
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data) :]
        deadline = time.monotonic() + timeout
        while True:
            found = self._next(deadline, method)
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not select.select([self.into], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{what}: the browser did not answer")
            part = os.read(self.into, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def page(self, url: str, width: int = 1200, height: int = 900, **emulate: Any) -> "Page":
        """Open a tab. emulate: `mobile`, `dark` and `blurs` (bool), the last as browsers that
        change pixels do; and `fresh`: in a profile of its own, which has kept nothing.
        """
        context = (
            {"browserContextId": self.call("Target.createBrowserContext")["browserContextId"]}
            if emulate.get("fresh")
            else {}
        )
        target = self.call("Target.createTarget", url="about:blank", **context)["targetId"]
        page = Page(
            self,
            target,
            self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"],
        )
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=bool(emulate.get("mobile")),
        )
        scheme = "dark" if emulate.get("dark") else "light"
        page.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        if emulate.get("mobile"):
            page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        if emulate.get("blurs"):
            page.call("Page.addScriptToEvaluateOnNewDocument", source=_BLUR)
            page.call("Page.setBypassCSP", enabled=True)
        page.open(url)
        return page

    def close(self) -> None:
        """End the browser."""
        try:
            self.call("Browser.close", timeout=5)
            self.process.wait(10)
        except (RuntimeError, TimeoutError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        for fd in (self.out, self.into):
            os.close(fd)


class Page(BrowserPage):
    """A tab."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session

    def call(self, method: str, timeout: float = 30, **params: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self.browser.call(method, self.session, timeout, **params)

    def open(self, url: str) -> None:
        """Go to an address; does not wait for it."""
        self.call("Page.navigate", url=url)

    def reload(self) -> None:
        """Load the page again, and wait until the old one is gone."""
        self.js("void (globalThis.old = true)")
        self.call("Page.reload")
        self.wait("!globalThis.old")

    def js(self, code: str, timeout: float = 30) -> Any:
        """Evaluate an expression, or what its promise gives, as plain values."""
        found = self.call(
            "Runtime.evaluate", timeout, expression=code, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return found["result"].get("value")

    def choose(self, field: str, files: Sequence[Path]) -> None:
        """Choose files in an input, as a person does in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=field)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path) for path in files], nodeId=node)

    def press(self, key: str, times: int = 1) -> None:
        """Press a key of the keyboard."""
        text = {"text": key} if len(key) == 1 else {"windowsVirtualKeyCode": _KEYS[key]}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def drag(self, start: Place, end: Place) -> None:
        """Draw from one place on the screen to another with the mouse."""
        mouse = {"button": "left", "buttons": 1, "clickCount": 1}
        for kind, (x, y) in (("Pressed", start), ("Moved", end), ("Released", end)):
            self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **mouse)

    def fingers(self, *steps: Sequence[Place]) -> None:
        """Touch the screen with one or two fingers: where they are in each step; then lift them."""
        down = 0
        for places in (*steps, ()):
            kind = "Start" if len(places) > down else "Move" if places else "End"
            points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
            self.call("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=points)
            down = len(places)

    def offline(self, on: bool) -> None:
        """Take the connection away, or give it back."""
        self.call("Network.enable")
        there = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", offline=on, **there)

    def forced_colors_and_no_motion(self) -> None:
        """Emulate a person's forced colours and reduced motion."""
        features = [
            {"name": "forced-colors", "value": "active"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def complaints(self) -> list[str]:
        """Errors of the page so far: exceptions, what the console was told, and refusals by the
        content policy.
        """
        self.js("0")
        found = []
        for event in self.browser.events:
            if event.get("sessionId") == self.session:
                if event["method"] == "Runtime.exceptionThrown":
                    found.append(
                        str(
                            event["params"]["exceptionDetails"]
                            .get("exception", {})
                            .get("description")
                        )
                    )
                elif (
                    event["method"] == "Log.entryAdded"
                    and event["params"]["entry"]["level"] == "error"
                ):
                    found.append(
                        f"{event['params']['entry']['text']} "
                        f"{event['params']['entry'].get('url', '')}"
                    )
        return found

    def shot(self, path: Path, full: bool = True) -> None:
        """Write a PNG of the page."""
        path.write_bytes(
            base64.b64decode(
                self.call("Page.captureScreenshot", captureBeyondViewport=full)["data"]
            )
        )

    def close(self) -> None:
        """Close the tab."""
        self.browser.call("Target.closeTarget", targetId=self.target)
