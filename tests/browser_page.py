"""What a page of every browser can do for tests."""

import time
from typing import Any

Place = tuple[float, float]  # on the screen, in pixels of the page


class BrowserPage:
    """A tab of a browser; its driver gives the rest."""

    def wait(self, code: str, timeout: float = 20) -> Any:
        """Wait until an expression is truthy, and return it."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                if found := self.js(code):
                    return found
            except RuntimeError as error:  # the page is just being replaced
                if not any(word in str(error) for word in ("context", "null", "script.evaluate")):
                    raise
            if time.monotonic() > deadline:
                text = self.js("document.body?.innerText")
                raise TimeoutError(
                    f"still waiting for {code}; the page says:\n{text}\n{self.complaints()}"
                )
            time.sleep(0.02)

    def click(self, name: str) -> None:
        """Click the element of an id."""
        self.js(f"document.getElementById('{name}').click()")
