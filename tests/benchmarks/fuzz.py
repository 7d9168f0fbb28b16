"""Damaged and costly uploads against a real server of two workers, while a good client sends
ordinary photos: thousands drawn here, a folder of bad files, and damaged copies of those.

  python tests/benchmarks/fuzz.py --exports exports --count 20000 --folder bad_files

Bytes are damaged, and so is structure (segments, chunks, tags, with right checksums); some files
are out of all proportion: a million strips, 64 megapixels in 40 bytes, pictures at the limits of
size and memory, tensors in JSON. What must hold is judged at the end, and the exit code says
whether all did: each upload gets an answer, a 4xx with a reason in JSON, or 503 with Retry-After;
no photo of the good client takes longer than 2 s, waits as a 503 asks included; all processes of
the server together stay under 600 MB (their PSS, every 0.2 s); it lives, and says nothing on
stderr.
"""

import argparse
import collections
import contextlib
import http.client
import io
import itertools
import json
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]

import mutations
from load import a_photo, free_port, stop
from soak import wait_for

from common.console import say, table

STATUSES = {200, 400, 413, 415, 422}
SLOWEST, MOST_MB = 2.0, 600
SENDERS = 8
SIDES = (224, 512, 1024, 1600)  # px, of the good client's photos; every eighth is of 4000 x 3000


def large() -> list[bytes]:
    """Valid pictures at and beyond what one may take."""
    noise = Image.effect_noise((500, 375), 80).convert("RGB")
    kinds = [
        ("PNG", (4000, 3000), "RGB", {"compress_level": 1}),
        ("PNG", (2900, 2900), "RGBA", {"compress_level": 1}),
        ("PNG", (6000, 5000), "L", {"compress_level": 1}),
        ("WEBP", (4000, 3000), "RGB", {"method": 0}),
        ("TIFF", (2900, 2200), "RGB", {}),
        ("TIFF", (3600, 3000), "RGB", {"compression": "tiff_lzw"}),
        ("AVIF", (4000, 3000), "RGB", {"speed": 10}),
        ("GIF", (4000, 3000), "L", {}),
        ("JPEG", (9000, 7000), "RGB", {"quality": 92}),
        ("JPEG", (5500, 4000), "RGB", {"progressive": True}),
        ("JPEG", (4000, 4000), "CMYK", {"progressive": True}),
    ]
    found = []
    for kind, size, mode, save in kinds:
        buffer = io.BytesIO()
        noise.resize(size).convert(mode).save(buffer, kind, **save)
        found.append(buffer.getvalue())
    return [data for data in found if len(data) < 20_000_000]


def drawn(count: int, seed: int, files: list[bytes], side: int) -> Iterator[tuple[str, bytes]]:
    """`count` uploads and the kind that each is of; `side`: px of the model's input."""
    draw, whole, big = random.Random(seed), mutations.whole(), large()
    slow = mutations.slow_bitmap(8_000_000)
    giant = [data for _ in range(8) for data in mutations.giants(draw)]
    costly = [
        data for size in (30_000, 1_000_000, 8_000_000) for data in mutations.costly(size).values()
    ]
    small = whole + [data for data in files if len(data) < 500_000]
    flipped = mutations.mutated(small, count, seed)
    moved = mutations.restructured(small, count, seed)
    for _ in range(count):
        kind = draw.random()
        if kind < 0.5:
            yield "bytes", next(flipped)
        elif kind < 0.85:
            yield "structure", next(moved)
        elif kind < 0.92:
            yield "giant", draw.choice(giant)
        elif kind < 0.97:
            yield "costly", draw.choice(costly)
        elif kind < 0.99:
            yield "tensor", draw.choice(list(mutations.tensors(side, draw)))
        elif kind < 0.9995:
            yield "large", draw.choice(big)
        else:
            yield "slow", slow


def ask(connection: http.client.HTTPConnection, path: str, data: bytes) -> tuple[int, str]:
    """Send a body; its status and a word for what came of it, "" where there is none."""
    connection.request("POST", path, data)
    answer = connection.getresponse()
    status, told = answer.status, json.loads(answer.read())
    if status == 503:
        return status, "busy" if answer.headers["Retry-After"] else ""
    if path != "/predict":
        return status, f"/v2 {status}" if status == 200 or told["error"] else ""
    return status, told["decision"] if status == 200 else told["error"]["code"]


class Results:
    """What came of the uploads: counts by word, what is wrong, and seconds by kind."""

    def __init__(self, port: int) -> None:
        self.port, self.over = port, threading.Event()
        self.counts: collections.Counter[str] = collections.Counter()
        self.odd: list[str] = []
        self.slowest: collections.defaultdict[str, float] = collections.defaultdict(float)
        self.peak_mb = 0.0

    def send(self, uploads: "queue.Queue[tuple[str, bytes] | None]") -> None:
        """Send uploads one after the other until None comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while (upload := uploads.get()) is not None:
            kind, data = upload
            connection.close()  # the server may have closed an idle one
            start = time.perf_counter()
            path = "/v2/models/foliar/infer" if kind == "tensor" else "/predict"
            try:
                status, code = ask(connection, path, data)
                if status not in STATUSES | {503} or not code:
                    self.odd.append(f"{kind}: {status} {code or 'without a reason'}")
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                code = type(error).__name__
                self.odd.append(f"{kind}: {code} {error} on {data[:24]!r}")
                connection.close()
            self.counts[code] += 1
            self.slowest[kind] = max(self.slowest[kind], time.perf_counter() - start)

    def watch(self, server: int) -> None:
        """Keep the largest sum of memory of the server's processes (of Linux)."""
        while not self.over.wait(0.2):
            self.peak_mb = max(self.peak_mb, sum(map(pss_mb, family(server))))


def be_good(port: int, told: Connection) -> None:
    """Send ordinary photos, each until it is answered, until told to end; then tell the seconds of
    each, how often the server was busy, and what else was wrong.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    photos = [a_photo(side) for side in SIDES] * 2
    photos[-1:] = [phone_photo()]
    seconds, busy, odd = [], 0, []
    while not told.poll(0.05):
        start, status = time.perf_counter(), 503
        while status == 503:
            status, code = ask(connection, "/predict", photos[len(seconds) % len(photos)])
            busy += status == 503
            time.sleep(status == 503)
        odd += [f"good client: {status} {code}"] if status != 200 else []
        seconds.append(time.perf_counter() - start)
    told.send((sorted(seconds), busy, odd))


def phone_photo() -> bytes:
    """A JPEG of 12 megapixels and 3 MB."""
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (750, 1000, 3), dtype=np.uint8))
    small.resize((4000, 3000), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def family(process: int) -> list[int]:
    """A process and all that it started."""
    found = [process]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def pss_mb(process: int) -> float:
    """Memory of a process, what it shares with others divided among them; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """See the module's docstring."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--exports", type=Path, default=Path("exports"))
    flags.add_argument("--count", type=int, default=20_000, help="uploads")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument(
        "--folder", type=Path, help="bad files: sent as they are, and damaged beside the drawn ones"
    )
    args = flags.parse_args()
    files = (
        [path.read_bytes() for path in sorted(args.folder.rglob("*")) if path.is_file()]
        if args.folder
        else []
    )
    side = json.loads((args.exports / "bundle.json").read_text())["preprocessing"]["size"]
    inputs = drawn(args.count, args.seed, files, side)
    first = next(inputs)  # all that takes long is drawn by now
    port = free_port()
    command = [sys.executable, str(ROOT / "04_serve.py"), "--exports", str(args.exports)]
    command += ["--port", str(port), "--workers", str(args.workers)]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    results, uploads = Results(port), queue.Queue(2 * SENDERS)
    told, end = Pipe()
    good_client = Process(
        target=be_good, args=(port, end)
    )  # of its own: no thread of ours delays it
    begin = time.perf_counter()
    try:
        wait_for(server)
        senders = [threading.Thread(target=results.send, args=(uploads,)) for _ in range(SENDERS)]
        watcher = threading.Thread(target=results.watch, args=(server.pid,))
        good_client.start()
        for thread in [*senders, watcher]:
            thread.start()
        for upload in itertools.chain((("file", data) for data in files), [first], inputs):
            uploads.put(upload)
        for _ in senders:
            uploads.put(None)
        for thread in senders:
            thread.join()
        told.send("end")
        good, busy, odd = told.recv()
        results.over.set()
        watcher.join()
        alive = server.poll() is None
    finally:
        results.over.set()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.terminate()
            server.wait(40)
        stop(server)
    errors = server.stderr.read().strip() if server.stderr else ""
    odd += results.odd
    say(
        table(results.counts.most_common(), ("came of it", "uploads")),
        table(
            [(kind, f"{seconds:.1f}") for kind, seconds in sorted(results.slowest.items())],
            ("kind", "slowest, s"),
        ),
        f"{sum(results.counts.values())} uploads in {time.perf_counter() - begin:.0f} s; memory at "
        f"most {results.peak_mb:.0f} MB; alive: {alive}; exit code {server.returncode}; on stderr: "
        f"{errors[-500:] or 'nothing'}",
        f"good client: {len(good)} photos, {busy} times busy; median "
        f"{1000 * good[len(good) // 2]:.0f} ms, 99 % {1000 * good[len(good) * 99 // 100]:.0f} ms, "
        f"slowest {good[-1]:.2f} s",
        *odd[:20],
    )
    held = alive and not odd and not errors and server.returncode == 0
    return 0 if held and good[-1] < SLOWEST and 0 < results.peak_mb < MOST_MB else 1


if __name__ == "__main__":
    raise SystemExit(main())
