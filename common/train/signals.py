"""SIGTERM and Ctrl-C as a request to stop at the next step, where everything can be saved."""

import signal
import threading
from types import FrameType, TracebackType

from common.console import warn


class StopRequest:
    """Within the `with`, the first SIGTERM, SIGINT or SIGUSR1 (as clusters send before a limit)
    sets `asked`; the second Ctrl-C stops at once, as always.

    Attributes:
        asked: name of the signal, "" as long as none came.
    """

    WATCHED = tuple(
        getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.asked = ""
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if (
            threading.current_thread() is threading.main_thread()
        ):  # elsewhere Python takes no handlers
            self._before = {number: signal.signal(number, self._ask) for number in self.WATCHED}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            warn(f"{signal.Signals(number).name}: saving after this step, then stopping")
        self.asked = signal.Signals(number).name
