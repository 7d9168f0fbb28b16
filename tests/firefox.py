"""A headless Firefox driven by WebDriver BiDi, JSON over a WebSocket: needs no package and no
second program.
"""

import base64
import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from browser_page import BrowserPage, Place

FIREFOX = next((path for name in ("firefox", "firefox-esr") if (path := shutil.which(name))), None)
# what has no command of its own is set by code of the browser's own window: `tab` is the page's
_TAB = """const { NavigableManager } = ChromeUtils.importESModule(
  "chrome://remote/content/shared/NavigableManager.sys.mjs");
const tab = NavigableManager.getBrowsingContextById("%s"); %s"""
_TOUCH = """const { left, top } = tab.embedderElement.getBoundingClientRect();
const win = tab.embedderElement.ownerDocument.defaultView;
const [FINGER_DOWN, LIFTED] = [2, 4]; // of nsIDOMWindowUtils
const touch = (finger, kind, [x, y]) => new Promise((done) =>
  win.windowUtils.sendNativeTouchPoint(finger, kind, Math.round(win.mozInnerScreenX + left + x),
    Math.round(win.mozInnerScreenY + top + y), 1, 90, done));
const steps = %s;
for (const [kind, all] of [[FINGER_DOWN, steps], [LIFTED, steps.slice(-1)]]) {
  for (const places of all) for (const [i, at] of places.entries()) await touch(i, kind, at);
}"""  # as the screen does: WebDriver's touches do not scroll
_KEYS = {"Tab": "\ue004", "ArrowUp": "\ue013", "ArrowRight": "\ue014"}


class Firefox:
    """A running browser; `close` ends it."""

    name = "firefox"

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.process = subprocess.Popen(
            [
                FIREFOX,
                "--headless",
                "--remote-debugging-port=0",
                "--remote-allow-system-access",
                "--no-remote",
                "--profile",
                str(folder),
            ],
            env={**os.environ, "HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        server, deadline = folder / "WebDriverBiDiServer.json", time.monotonic() + 60
        while not server.is_file() or not server.read_text().endswith("}"):
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise TimeoutError("Firefox did not start")
            time.sleep(0.05)
        port = json.loads(server.read_text())["ws_port"]
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.sendall(
            f"GET /session HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        self.stream = self.socket.makefile("rb")
        while self.stream.readline() not in (b"\r\n", b""):
            pass
        self.numbers, self.events = itertools.count(1), []
        self.call("session.new", capabilities={})
        self.call("session.subscribe", events=["log.entryAdded"])
        tree = self.call("browsingContext.getTree", **{"moz:scope": "chrome"})
        self.window = tree["contexts"][0]["context"]

    def call(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        number = next(self.numbers)
        data = json.dumps({"id": number, "method": method, "params": params}).encode()
        self.socket.sendall(_frame(data))
        self.socket.settimeout(timeout)
        while True:
            found = self._next()
            if found.get("id") == number:
                if found["type"] == "error":
                    raise RuntimeError(f"{method}: {found['error']}: {found['message']}")
                return found["result"]
            self.events.append(found)

    def _next(self) -> dict[str, Any]:
        data, last = b"", False
        while not last:
            start = self.stream.read(2)
            if not start:
                raise RuntimeError("the browser has ended")
            kind, size = start
            if size > 125:
                size = int.from_bytes(self.stream.read(2 if size == 126 else 8), "big")
            data, last = data + self.stream.read(size), bool(kind & 128)
        return json.loads(data)

    def chrome(self, code: str) -> None:
        """Run code as the browser's own."""
        found = self.call(
            "script.evaluate",
            expression=f"(async () => {{ {code} }})()",
            target={"context": self.window},
            awaitPromise=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])

    def page(self, url: str, width: int = 1200, height: int = 900, **emulate: Any) -> "Page":
        """Open a tab. emulate: `mobile`, `dark` and `blurs` (bool), the last as under
        privacy.resistFingerprinting; and `fresh`: in a profile of its own, which has kept nothing.
        """
        profile = (
            {"userContext": self.call("browser.createUserContext")["userContext"]}
            if emulate.get("fresh")
            else {}
        )
        context = self.call("browsingContext.create", type="tab", **profile)["context"]
        page = Page(self, context, emulate)
        page.call("browsingContext.setViewport", viewport={"width": width, "height": height})
        if emulate.get("blurs"):
            self.chrome("Services.prefs.setBoolPref('privacy.resistFingerprinting', true)")
        page.open(url)
        return page

    def close(self) -> None:
        """End the browser."""
        self.stream.close()
        self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _frame(text: bytes) -> bytes:
    """A message of a WebSocket's client, which has to be masked."""
    size = len(text)
    if size < 126:
        head = bytes([128 | size])
    elif size < 1 << 16:
        head = bytes([254]) + size.to_bytes(2, "big")
    else:
        head = bytes([255]) + size.to_bytes(8, "big")
    mask = (b"mask" * (size // 4 + 1))[:size]
    masked = int.from_bytes(text, "big") ^ int.from_bytes(mask, "big")
    return b"\x81" + head + b"mask" + masked.to_bytes(size, "big")


def _plain(value: dict[str, Any]) -> Any:
    """The plain value of one that the protocol describes."""
    kind, inner = value["type"], value.get("value")
    if kind == "array":
        return [_plain(one) for one in inner]
    if kind == "object":
        return {key: _plain(one) for key, one in inner}
    return float(inner) if kind == "number" and isinstance(inner, str) else inner


class Page(BrowserPage):
    """A tab."""

    def __init__(self, browser: Firefox, context: str, emulate: dict[str, Any]) -> None:
        self.browser, self.context, self.emulate = browser, context, emulate

    def call(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self.browser.call(method, timeout, context=self.context, **params)

    def tab(self, code: str) -> None:
        """Run code as the browser's own, with this `tab`."""
        self.browser.chrome(_TAB % (self.context, code))

    def open(self, url: str) -> None:
        """Go to an address, and wait until it is there."""
        self.call("browsingContext.navigate", url=url, wait="interactive")
        scheme = "dark" if self.emulate.get("dark") else "light"
        touch = "enabled" if self.emulate.get("mobile") else "none"
        # another site may get another process, which knows nothing of it
        self.tab(
            f"tab.prefersColorSchemeOverride = '{scheme}'; tab.touchEventsOverride = '{touch}'"
        )

    def reload(self) -> None:
        """Load the page again."""
        self.call("browsingContext.reload", wait="interactive")

    def js(self, code: str, timeout: float = 30) -> Any:
        """Evaluate an expression, or what its promise gives, as plain values."""
        found = self.browser.call(
            "script.evaluate",
            timeout,
            expression=code,
            target={"context": self.context},
            awaitPromise=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return _plain(found["result"])

    def choose(self, field: str, files: Sequence[Path]) -> None:
        """Choose files in an input, as a person does in the dialog."""
        [node] = self.call("browsingContext.locateNodes", locator={"type": "css", "value": field})[
            "nodes"
        ]
        self.call(
            "input.setFiles",
            element={"sharedId": node["sharedId"]},
            files=[str(path) for path in files],
        )

    def press(self, key: str, times: int = 1) -> None:
        """Press a key of the keyboard."""
        value = _KEYS.get(key, key)
        actions = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        self.call(
            "input.performActions",
            actions=[{"type": "key", "id": "keys", "actions": actions * times}],
        )

    def drag(self, start: Place, end: Place) -> None:
        """Draw from one place on the screen to another with the mouse."""
        (x, y), (to_x, to_y) = start, end
        actions = [
            {"type": "pointerMove", "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "x": round(to_x), "y": round(to_y)},
            {"type": "pointerUp", "button": 0},
        ]
        self.call(
            "input.performActions", actions=[{"type": "pointer", "id": "mouse", "actions": actions}]
        )

    def fingers(self, *steps: Sequence[Place]) -> None:
        """Touch the screen with one or two fingers: where they are in each step; then lift them."""
        self.js(
            "void (globalThis.lifted = new Promise((done) => addEventListener('touchend', "
            "({ touches }) => touches.length || done())))"
        )
        self.tab(_TOUCH % json.dumps(steps))
        self.js("lifted")

    def offline(self, on: bool) -> None:
        """Take the connection away, or give it back."""
        self.browser.call(
            "emulation.setNetworkConditions",
            contexts=[self.context],
            networkConditions={"type": "offline"} if on else None,
        )

    def forced_colors_and_no_motion(self) -> None:
        """Emulate a person's forced colours and reduced motion."""
        self.tab("tab.forcedColorsOverride = 'active'; tab.prefersReducedMotionOverride = 'reduce'")

    def complaints(self) -> list[str]:
        """Errors of the page so far: exceptions, what the console was told, and refusals by the
        content policy.
        """
        self.js("0")
        found = [event["params"] for event in self.browser.events]
        return [
            one["text"]
            for one in found
            if one["level"] == "error" and one["source"].get("context") == self.context
        ]

    def shot(self, path: Path, full: bool = True) -> None:
        """Write a PNG of the page."""
        origin = "document" if full else "viewport"
        data = self.call("browsingContext.captureScreenshot", origin=origin)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """Close the tab."""
        self.call("browsingContext.close")
        if self.emulate.get("blurs"):
            self.browser.chrome("Services.prefs.clearUserPref('privacy.resistFingerprinting')")
