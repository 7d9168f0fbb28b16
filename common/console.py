"""What a person sees in the terminal: headings, progress, tables, and errors that say how to fix
them.
"""

import argparse
import atexit
import contextlib
import difflib
import errno
import functools
import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from tqdm import tqdm

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_muted = False


def mute() -> None:
    """Print nothing but errors from now on: of several processes of a run, one speaks."""
    global _muted
    _muted = True


def say(*lines: str) -> None:
    """Print lines at once, so that output keeps its order when it goes through a pipe."""
    for line in lines if not _muted else ():
        print(line, flush=True)


def header(title: str) -> None:
    """Print the heading of a section of a run."""
    say("", f"== {title} " + "=" * max(4, 76 - len(title)))


def warn(message: str) -> None:
    """Print a warning to stderr, set apart so that it is not missed."""
    if not _muted:
        print(f"\n!! {message}\n", file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """End the run over a mistake that its user can fix.

    Args:
        message: what is wrong, where, and what to do about it.

    Raises:
        SystemExit: always, with exit code 2.
    """
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(2)


class Unusable(ValueError):
    """What somebody gave cannot be used; the message tells them what, and how to mend it."""


def friendly(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Wrap a script's `main` so that `Unusable`, a full disk, a missing permission or Ctrl-C ends
    in a sentence, and a closed pipe (`| head`) quietly, as the shell's own tools do: exit code 141.

    Anything else is a bug of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        # at its end the interpreter would look for garbage among all that torch made, for seconds
        atexit.register(gc.freeze)
        try:
            try:
                return main(argv)
            finally:
                sys.stdout.flush()  # --help | head
        except BrokenPipeError as error:
            if _is_between_processes(error):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python's last flush must not complain
            return 141
        except KeyboardInterrupt:
            print(
                "\nstopped. Run the same command again to go on from the last saved state.",
                file=sys.stderr,
            )
            return 130
        except Unusable as error:
            fail(str(error))
        except (OSError, RuntimeError) as error:
            file = getattr(error, "filename", None)
            where = f" ({file})" if file else ""
            if _comes_of_little_shared_memory(error):
                fail(
                    "the processes of --workers need more shared memory than /dev/shm has free. In "
                    "Docker, start the container with --shm-size 2g (its default is 64 MB). Or "
                    "give 02a, 02b and 03 --workers 0, which needs none but is slower."
                )
            if _comes_of_a_full_disk(error):
                fail(
                    f"the disk is full{where}. Nothing that was finished is lost: make room, then "
                    f"run the same command again."
                )
            if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS):
                fail(
                    f"no permission{where}: {error.strerror}. Choose another folder or change its "
                    f"permissions."
                )
            raise

    return wrapped


def _comes_of_a_full_disk(error: BaseException | None) -> bool:
    """Whether a write that failed for want of space is an error or its cause: torch's file writer
    raises errors of its own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return True
        if "PytorchStreamWriter failed" in str(error) or "No space left" in str(error):
            return True
        error = error.__context__
    return False


def _comes_of_little_shared_memory(error: BaseException) -> bool:
    """Whether a lock or a batch of torch's loader had no room in /dev/shm."""
    if getattr(error, "errno", None) == errno.ENOSPC:
        return _is_between_processes(error)
    return bool(re.search("DataLoader worker.*(Bus error|shared memory|/torch_)", str(error), re.S))


def _is_between_processes(error: BaseException) -> bool:
    return "multiprocessing" in traceback.extract_tb(error.__traceback__)[-1].filename


class _Parser(argparse.ArgumentParser):
    """A parser that expands `~` wherever a path begins (shells leave that of --output=~/x and
    name=~/x alone), and whose errors are one sentence, with the flag that was probably meant.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [
            re.sub(r"^([^~/]*=|)~(?=/|$)", lambda match: match[1] + os.path.expanduser("~"), word)
            for word in (sys.argv[1:] if args is None else args)
        ]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        meant = [
            close
            for word in message.split()
            if word.startswith("--")
            for close in difflib.get_close_matches(word.split("=")[0], known, n=1)
            if close not in message.split()
        ]
        hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
        fail(f"{self.prog}: {message}.{hint} --help lists all flags.")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the argument parser of a numbered script: its docstring as help, no abbreviated
    flags.
    """
    return _Parser(
        description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def progress(
    items: Iterable[Any], total: int | None = None, desc: str = "", unit: str = "it"
) -> tqdm:
    """Wrap an iterable in a progress bar; in a log file it prints a line now and then instead of
    redrawing.

    Args:
        items: what to iterate over.
        total: how many items there are, where `len(items)` does not say.
        desc: the words before the bar.
        unit: the name of one item.
    """
    shown = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        desc=desc,
        unit=unit,
        disable=_muted,
        mininterval=0.2 if shown else 20.0,
        dynamic_ncols=shown,
        leave=shown,
        smoothing=0.1,
        ascii=None if shown else True,
    )


@contextlib.contextmanager
def long_part(what: str, total: int, unit: str = "picture") -> Iterator[tqdm]:
    """Show the progress of a part that takes a while, and one line when it is done.

    Args:
        what: its name.
        total: how many items it has; whoever works on them calls `update` of what is yielded.
        unit: the name of one item.
    """
    clock = Stopwatch()
    with progress((), total, what, unit) as bar:
        bar.leave = False  # the line says it
        yield bar
    say(f"{what}: {bar.n:,} {unit}s in {duration(clock())}")


def table(rows: Sequence[Sequence[object]], titles: Sequence[str]) -> str:
    """Lay out rows under titles as a Markdown table with padded columns, so that it reads well as
    plain text too.

    Args:
        rows: the cells, each converted with `str`.
        titles: one title per column.

    Returns:
        the table, without a final newline.

    Raises:
        ValueError: where a row has not as many cells as there are titles.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if any(len(row) != len(titles) for row in cells):
        raise ValueError(f"every row needs {len(titles)} cells: {titles}")
    widths = [
        max(len(title), *(len(row[i]) for row in cells), 3) if cells else max(len(title), 3)
        for i, title in enumerate(titles)
    ]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [list(titles), *cells]
    ]
    return "\n".join(
        [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
    )


def duration(seconds: float) -> str:
    """Write seconds as people say them: `48 s`, `12 min 05 s`, `3 h 20 min`."""
    seconds = int(round(seconds))
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 6000:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.start


class Laps:
    """Times the parts of a run, and the most memory that it and its processes ever held."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        self.whole = Stopwatch()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what stands inside the `with`."""
        clock = Stopwatch()
        yield
        self.rows.append((name, clock()))

    def table(self) -> str:
        """Lay out the parts that took a second or more, the sum, and the peak of resident
        memory.
        """
        rows = [(name, duration(seconds)) for name, seconds in self.rows if seconds >= 1] + [
            ("in all", duration(self.whole()))
        ]
        with contextlib.suppress(ImportError):  # not on Windows
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            for who, name in (
                (resource.RUSAGE_SELF, "peak memory"),
                (resource.RUSAGE_CHILDREN, "peak memory of a worker"),
            ):
                peak = resource.getrusage(who).ru_maxrss * unit
                rows += [(name, f"{peak / 1e9:.2f} GB")] if peak else []
        return table(rows, ("part", "time"))
