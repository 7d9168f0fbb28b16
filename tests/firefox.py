"""A headless Firefox driven by Marionette, its own protocol of JSON over TCP: needs no package and
no second program.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

FIREFOX = next((path for name in ("firefox", "firefox-esr") if (path := shutil.which(name))), None)


class Firefox:
    """A running browser with one tab; `close` ends it. prefs: lines of user.js by name."""

    def __init__(self, folder: Path, **prefs: bool) -> None:
        folder.mkdir()
        lines = [
            f'user_pref("{name.replace("__", ".")}", {str(value).lower()});\n'
            for name, value in prefs.items()
        ]
        (folder / "user.js").write_text(
            'user_pref("marionette.port", 0);\n' + "".join(lines), encoding="utf-8"
        )
        self.process = subprocess.Popen(
            [FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", str(folder)],
            env={**os.environ, "HOME": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port, deadline = folder / "MarionetteActivePort", time.monotonic() + 60
        while not port.is_file() or not port.read_text():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise TimeoutError("Firefox did not start")
            time.sleep(0.05)
        self.socket = socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=60)
        self.rest, self.numbers = b"", itertools.count(1)
        self._next()
        self.call("WebDriver:NewSession")

    def call(self, command: str, **params: Any) -> Any:
        """Send a command and return its result."""
        data = json.dumps([0, next(self.numbers), command, params]).encode()
        self.socket.sendall(b"%d:%b" % (len(data), data))
        _, _, error, result = self._next()
        if error:
            raise RuntimeError(f"{command}: {error}")
        return result

    def _next(self) -> Any:
        while b":" not in self.rest:
            self.rest += self.socket.recv(1 << 16)
        size, _, self.rest = self.rest.partition(b":")
        while len(self.rest) < int(size):
            self.rest += self.socket.recv(1 << 20)
        message, self.rest = self.rest[: int(size)], self.rest[int(size) :]
        return json.loads(message)

    def js(self, code: str) -> Any:
        """Evaluate an expression or a block that returns; plain values come back. What a call
        defines is gone in the next.
        """
        script = (
            f"const [done] = arguments; (async () => {code})().then((value) => done([value]), "
            "(error) => done(String(error)))"
        )
        found = self.call("WebDriver:ExecuteAsyncScript", script=script, args=[], sandbox=None)[
            "value"
        ]
        if isinstance(found, str):
            raise RuntimeError(found)
        return found[0]

    def wait(self, code: str, timeout: float = 30) -> Any:
        """Wait until an expression is truthy, and return it."""
        deadline = time.monotonic() + timeout
        while not (found := self.js(code)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still waiting for {code}")
            time.sleep(0.05)
        return found

    def choose(self, field: str, path: Path) -> None:
        """Choose a file in an input."""
        element = self.call("WebDriver:FindElement", using="css selector", value=field)["value"]
        self.call("WebDriver:ElementSendKeys", id=next(iter(element.values())), text=str(path))

    def close(self) -> None:
        """End the browser."""
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
