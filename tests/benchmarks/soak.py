"""The server at more than it can do for minutes, with bad uploads, clients that leave and workers
that are killed; then a stop under load.

  python tests/benchmarks/soak.py --exports exports --minutes 10
  python tests/benchmarks/soak.py --exports exports --minutes 30 --workers 2 --kill 10

Capacity is measured first; then requests begin at 1.5 times that rate, whatever becomes of those
before (an open loop). One in twenty is a damaged picture, one in twenty leaves before its answer.
What must hold is judged at the end: nothing but answers, 4xx and 503; memory within 25 MB per
worker of what it was after the first tenth; accepted requests answered in bounded time; /metrics
equal to what the clients counted, but for requests that were under way in a worker when it was
killed; after SIGTERM every accepted request answered and exit code 0. The exit code says whether
all did.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]

import mutations
from load import CORES, a_photo, free_port, stop

from common.console import say, table

MORE_MB = 25  # that memory may grow
BAD, LEAVING = 0.05, 0.05  # shares


def request(body: bytes) -> bytes:
    """A POST /predict with a connection of its own."""
    return (
        f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: "
        f"{len(body)}\r\n\r\n".encode()
        + body
    )


class Load:
    """Requests in an open loop, and what came of them."""

    def __init__(self, port: int, folder: Path | None) -> None:
        self.port, self.draw = port, random.Random(0)
        self.good = [request(a_photo(side)) for side in (224, 512, 1600)]
        bad = (
            [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
            if folder
            else []
        )
        self.bad = [request(data) for data in [*bad, *mutations.mutated(mutations.whole(), 300)]]
        self.counts: collections.Counter[str] = collections.Counter()
        self.times: list[tuple[float, float]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.draining = asyncio.Event()
        self.killed, self.kills = float("-inf"), 0  # when a worker was last, and how many

    async def one(self, body: bytes, classes: bool) -> None:
        """One request."""
        start, sent = time.perf_counter(), False
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            self.counts["no connection"] += 1
            self.draining.set()
            return
        try:
            writer.write(body)
            sent = True
            if classes:
                await asyncio.sleep(self.draw.random() * 0.3)
                self.counts["left" if self.killed < start else "left at a kill"] += 1
                return
            data = await asyncio.wait_for(reader.read(), 120)
            if not data:
                raise ConnectionResetError
            status, told = data[9:12].decode(), json.loads(data.partition(b"\r\n\r\n")[2])
            self.counts[status] += 1
            if status == "200":
                self.times.append((start, time.perf_counter() - start))
            elif status == "503" and told["error"]["code"] == "draining":
                self.draining.set()
        except asyncio.TimeoutError:  # noqa: UP041 - its own class before Python 3.11
            self.counts["no answer"] += 1
        except (OSError, ValueError):
            lost = "lost at a kill" if time.perf_counter() - self.killed < 2 else "lost"
            self.counts[lost if sent else "no connection"] += 1
        finally:
            writer.close()

    async def closed(self, seconds: float, width: int) -> float:
        """Answers per second with `width` clients that wait for theirs."""
        end, before = time.perf_counter() + seconds, self.counts["200"]

        async def client() -> None:
            while time.perf_counter() < end:
                await self.one(self.draw.choice(self.good), False)

        await asyncio.gather(*(client() for _ in range(width)))
        return (self.counts["200"] - before) / seconds

    async def open(self, rate: float, seconds: float) -> None:
        """Begin `rate` requests per second for some seconds, or until the server says that it
        stops.
        """
        begin = due = time.perf_counter()
        while due < begin + seconds and not self.draining.is_set():
            due += self.draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            kind = self.draw.random()
            task = asyncio.create_task(
                self.one(
                    self.draw.choice(self.bad if kind < BAD else self.good),
                    BAD <= kind < BAD + LEAVING,
                )
            )
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)


def wait_for(server: subprocess.Popen) -> None:
    """Read what 04_serve.py says until it serves."""
    assert server.stdout is not None
    for line in server.stdout:
        if re.match("stop ", line):
            return
    raise SystemExit("the server did not start")


def workers_of(pid: int) -> list[int]:
    """The processes that answer: a server, or its workers."""
    found = [
        int(child)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return found or [pid]


def memory_mb(pid: int) -> float:
    """Resident memory of the processes that answer, those that die meanwhile left out."""
    pages = 0
    with contextlib.suppress(OSError):
        for worker in workers_of(pid):
            pages += int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def counted(port: int) -> collections.Counter[str]:
    """What /metrics says of requests: all, and those with status 200 and 503."""
    found: collections.Counter[str] = collections.Counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    for outcome, value in re.findall(
        r'^foliar_requests_total{outcome="(\w+)".* (\S+)$', text, re.M
    ):
        found["all"] += round(float(value))
        if outcome not in ("request_rejected", "vanished", "failed"):
            found["200"] += round(float(value))
    found["503"] = round(float(re.search(r"^foliar_rejected_busy_total (\S+)$", text, re.M)[1]))
    return found


async def kill_workers(load: Load, pid: int, seconds: float) -> None:
    """Kill one worker after the other, for ever."""
    while seconds:
        await asyncio.sleep(seconds)
        with contextlib.suppress(OSError):
            worker = load.draw.choice(workers_of(pid))
            load.killed = time.perf_counter()
            os.kill(worker, signal.SIGKILL)
            load.kills += 1


def compare(counts: collections.Counter[str], found: collections.Counter[str]) -> tuple:
    """A row on whether the server has counted what its clients have."""
    unsure = counts["lost at a kill"] + counts["left at a kill"]
    left = unsure + counts["left"]  # whose answers nobody saw
    holds = (
        0 <= sum(counts.values()) - found["all"] <= unsure
        and all(0 <= found[status] - counts[status] <= left for status in ("200", "503"))
        and found["200"] > 0
    )
    told = "; ".join(
        f"{name} {found[name]:,} of {number:,}"
        for name, number in (
            ("all", sum(counts.values())),
            ("200", counts["200"]),
            ("503", counts["503"]),
        )
    )
    return f"/metrics of the clients' own ({unsure} at a kill, {left} unseen)", told, holds


async def soak(
    args: argparse.Namespace, server: subprocess.Popen, port: int
) -> list[tuple[str, str, bool]]:
    """Run it; returns (what, figure, whether it holds)."""
    load = Load(port, args.bad_files)
    await load.closed(5, 4 * CORES)
    rate = await load.closed(15, 4 * CORES)
    before = counted(port)
    say(
        f"capacity {rate:.1f} answers/s; now {args.factor:g} times that for {args.minutes:g} "
        f"minutes"
    )
    load.counts.clear()
    load.times.clear()
    begin, memory = time.perf_counter(), []
    pressing = asyncio.create_task(load.open(args.factor * rate, 60 * args.minutes))
    killing = asyncio.create_task(kill_workers(load, server.pid, args.kill))
    while not pressing.done():
        await asyncio.wait({pressing}, timeout=2)
        memory.append((time.perf_counter() - begin, memory_mb(server.pid)))
    killing.cancel()
    await asyncio.gather(*load.tasks)
    await asyncio.sleep(2)  # for the last of those that left
    same = compare(load.counts, counted(port) - before)
    counts, late = dict(load.counts), np.array([seconds for _, seconds in load.times])
    # medians of tenths: a single moment also holds the bodies under way, some of them over the
    # limit of 20 MB
    tenths = [float(np.median(part)) for part in np.array_split([mb for _, mb in memory], 10)]
    grown = max(tenths[1:]) - tenths[0]
    odd = {
        key: n
        for key, n in counts.items()
        if key not in ("200", "left", "left at a kill", "lost at a kill")
        and not (key.isdigit() and (key[0] == "4" or key == "503"))
    }
    slower = 2 if args.kill else 1.5  # a worker that starts takes the processor from the others
    bound = args.workers * (args.queue + 2 * CORES) / rate * slower + 1
    kills, more_mb = load.kills, MORE_MB * args.workers
    say(f"at the end {time.perf_counter() - begin:.0f} s: {counts}")
    load.counts.clear()
    pressing = asyncio.create_task(load.open(args.factor * rate, 60))
    await asyncio.sleep(3)
    server.send_signal(signal.SIGTERM)
    begin = time.perf_counter()
    await pressing
    await asyncio.gather(*load.tasks)
    while server.poll() is None and time.perf_counter() < begin + 40:
        await asyncio.sleep(0.1)
    stopped = time.perf_counter() - begin
    lost = sum(load.counts[key] for key in ("lost", "lost at a kill", "no answer"))
    args.errors.seek(0)
    errors = re.sub(r"!! worker \d+ ended with signal SIGKILL .*", "", args.errors.read())
    return [
        ("requests", f"{sum(counts.values()):,}", True),
        (
            "workers killed, requests lost with them",
            f"{kills}, {counts.get('lost at a kill', 0)}",
            bool(kills) == bool(args.kill),
        ),
        same,
        (
            "answered, 503, other 4xx, left",
            f"{counts.get('200', 0)}, {counts.get('503', 0)}, "
            f"{sum(n for key, n in counts.items() if key[0] == '4')}, {counts.get('left', 0)}",
            counts.get("503", 0) > 0,
        ),
        ("anything else", str(odd or "none"), not odd),
        (
            "latency of answers, p50, p95, largest (s)",
            f"{np.quantile(late, 0.5):.2f}, {np.quantile(late, 0.95):.2f}, {late.max():.2f}; "
            f"bound {bound:.1f}",
            bool(late.max() <= bound),
        ),
        (
            f"memory, median of the first tenth, of the last, largest growth (MB, at most "
            f"{more_mb})",
            f"{tenths[0]:.0f}, {tenths[-1]:.0f}, {grown:+.1f}",
            grown <= more_mb,
        ),
        ("the most memory at any moment (MB)", f"{max(mb for _, mb in memory):.0f}", True),
        (
            "SIGTERM under load: answered, 503, lost",
            f"{load.counts['200']}, {load.counts['503']}, {lost}",
            lost == 0 and load.counts["200"] > 0,
        ),
        (
            "stopped after (s), exit code",
            f"{stopped:.1f}, {server.returncode}",
            server.returncode == 0,
        ),
        ("on stderr", errors.strip()[-300:] or "nothing", not errors.strip()),
    ]


def main() -> int:
    """See the module's docstring."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--exports", type=Path, default=Path("exports"))
    flags.add_argument("--minutes", type=float, default=10)
    flags.add_argument("--factor", type=float, default=1.5, help="of the measured capacity")
    flags.add_argument("--queue", type=int, default=64, help="requests that may wait in the server")
    flags.add_argument(
        "--bad-files", type=Path, help="folder of files to send beside the drawn bad ones"
    )
    flags.add_argument("--workers", type=int, default=1)
    flags.add_argument("--kill", type=float, default=0, metavar="SECONDS", help="between two kills")
    args = flags.parse_args()
    if args.kill and args.workers < 2:
        flags.error("--kill needs --workers 2 or more")
    port, args.errors = free_port(), tempfile.TemporaryFile("w+")
    server = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "04_serve.py"),
            "--exports",
            str(args.exports),
            "--port",
            str(port),
            "--queue",
            str(args.queue),
            "--workers",
            str(args.workers),
        ],
        stdout=subprocess.PIPE,
        stderr=args.errors,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(server)
        rows = asyncio.run(soak(args, server, port))
    finally:
        stop(server)
    say(
        table(
            [(what, figure, "yes" if holds else "NO") for what, figure, holds in rows],
            ("what", "figure", "holds"),
        )
    )
    return 0 if all(holds for _, _, holds in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
