"""Damaged uploads against a real server process: thousands drawn here, a folder of bad files, and
damaged copies of those.

  python tests/benchmarks/fuzz.py --exports exports --count 20000 --folder bad_files

Each gets an answer or a 4xx with a reason in JSON; the server lives, says nothing on stderr, and
its memory stays bounded.
"""

import argparse
import collections
import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]

import mutations
from load import free_port, stop
from soak import memory_mb, wait_for

from common.console import say, table

STATUSES = {200, 400, 413, 415, 422}


def send(
    port: int, uploads: list[bytes], counts: collections.Counter, odd: list[str], slow: list[float]
) -> None:
    """Send uploads one after the other over connections that are kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for i, data in enumerate(uploads):
        start = time.perf_counter()
        try:
            connection.request("POST", "/predict", data)
            answer = connection.getresponse()
            status, told = answer.status, json.loads(answer.read())
            code = told["decision"] if status == 200 else told["error"]["code"]
            if status not in STATUSES or not code:
                odd.append(f"{i}: {status} {str(told)[:120]}")
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            code = type(error).__name__
            odd.append(f"{i}: {code} {error} on {data[:24]!r}")
            connection.close()
        counts[code] += 1
        slow.append(time.perf_counter() - start)


def main() -> int:
    """See the module's docstring."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--exports", type=Path, default=Path("exports"))
    flags.add_argument("--count", type=int, default=5000, help="damaged uploads")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument(
        "--folder", type=Path, help="bad files: sent as they are, and damaged beside the drawn ones"
    )
    args = flags.parse_args()
    files = (
        [path.read_bytes() for path in sorted(args.folder.rglob("*")) if path.is_file()]
        if args.folder
        else []
    )
    small = [data for data in files if len(data) < 500_000]
    uploads = files + list(mutations.mutated(mutations.whole() + small, args.count, args.seed))
    port = free_port()
    server = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "04_serve.py"),
            "--exports",
            str(args.exports),
            "--port",
            str(port),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    counts, odd, slow = collections.Counter(), [], []
    try:
        wait_for(server)
        before = memory_mb(server.pid)
        threads = [
            threading.Thread(target=send, args=(port, uploads[i::4], counts, odd, slow))
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = memory_mb(server.pid) if server.poll() is None else float("nan")
        alive = server.poll() is None
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.terminate()
            server.wait(30)
        stop(server)
    errors = server.stderr.read().strip() if server.stderr else ""
    say(
        table(sorted(counts.items(), key=lambda pair: -pair[1]), ("came of it", "uploads")),
        f"{len(uploads)} uploads; slowest {max(slow):.2f} s; memory {before:.0f} -> {after:.0f} "
        f"MB; alive: {alive}; exit code "
        f"{server.returncode}; on stderr: {errors[-500:] or 'nothing'}",
        *odd[:20],
    )
    return 0 if alive and not odd and not errors and server.returncode == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
