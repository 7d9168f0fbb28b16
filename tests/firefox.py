"""A headless Firefox driven by WebDriver BiDi, JSON over a WebSocket: needs no package and no second
program.
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
_KEYS = {
    name: chr(0xE000 + code)
    for name, code in (("Tab", 4), ("ArrowLeft", 18), ("ArrowUp", 19), ("ArrowRight", 20))
}


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
        size = len(data)
        if size < 126:
            head = bytes([128 | size])
        elif size < 1 << 16:
            head = b"\xfe" + size.to_bytes(2, "big")
        else:
            head = b"\xff" + size.to_bytes(8, "big")
        masked = int.from_bytes(data, "big") ^ int.from_bytes(b"mask" * size, "big") >> 24 * size
        self.socket.sendall(b"\x81" + head + b"mask" + masked.to_bytes(size, "big"))
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
            kind, size = self.stream.read(2)
            if size > 125:
                size = int.from_bytes(self.stream.read(2 if size == 126 else 8), "big")
            data, last = data + self.stream.read(size), bool(kind & 128)
        return json.loads(data)

    def chrome(self, code: str) -> None:
        """Run code as the browser's own."""
        found = self.call(
            "script.evaluate",
            expression=f"{{ {code} }}",
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
        page = Page(self, context, bool(emulate.get("blurs")))
        page.call("browsingContext.setViewport", viewport={"width": width, "height": height})
        page.tab(f"tab.prefersColorSchemeOverride = '{'dark' if emulate.get('dark') else 'light'}'")
        if emulate.get("mobile"):
            page.tab("tab.touchEventsOverride = 'enabled'")
        if page.blurs:
            self.chrome("Services.prefs.setBoolPref('privacy.resistFingerprinting', true)")
        page.open(url)
        return page

    def close(self) -> None:
        """End the browser."""
        self.stream.close()
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


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

    def __init__(self, browser: Firefox, context: str, blurs: bool) -> None:
        self.browser, self.context, self.blurs = browser, context, blurs

    def call(self, method: str, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self.browser.call(method, timeout, context=self.context, **params)

    def tab(self, code: str) -> None:
        """Run code as the browser's own, with this `tab`."""
        self.browser.chrome(_TAB % (self.context, code))

    def open(self, url: str) -> None:
        """Go to an address, and wait until it is there."""
        self.call("browsingContext.navigate", url=url, wait="interactive")

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

    def _act(self, *sources: dict[str, Any]) -> None:
        self.call("input.performActions", actions=list(sources))

    def press(self, key: str, times: int = 1) -> None:
        """Press a key of the keyboard."""
        value = _KEYS.get(key, key)
        actions = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keys", "actions": actions * times})

    def drag(self, start: Place, end: Place) -> None:
        """Draw from one place on the screen to another with the mouse."""
        actions = [
            _move(start),
            {"type": "pointerDown", "button": 0},
            _move(end),
            {"type": "pointerUp", "button": 0},
        ]
        self._act({"type": "pointer", "id": "mouse", "actions": actions})

    def fingers(self, *steps: Sequence[Place]) -> None:
        """Touch the screen with one or two fingers: where they are in each step; then lift them."""
        sources = []
        for i in range(max(map(len, steps))):
            actions: list[dict[str, Any]] = []
            down = False
            for places in steps:
                if i >= len(places):
                    actions += [{"type": "pause"}] * 2
                    continue
                actions.append(_move(places[i]))
                actions.append({"type": "pause"} if down else {"type": "pointerDown", "button": 0})
                down = True
            actions.append({"type": "pointerUp", "button": 0})
            touch = {"pointerType": "touch"}
            sources.append(
                {"type": "pointer", "id": f"f{i}", "parameters": touch, "actions": actions}
            )
        self._act(*sources)

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
        if self.blurs:
            self.browser.chrome("Services.prefs.clearUserPref('privacy.resistFingerprinting')")


def _move(place: Place) -> dict[str, Any]:
    return {"type": "pointerMove", "x": round(place[0]), "y": round(place[1])}
