"""The server under load on loopback, against the raw `session.run` limit and other servers doing
the same work, all in turn.

  python tests/benchmarks/swin_exports.py exports_swin
      # once: Swin-Tiny INT8, random weights
  python tests/benchmarks/load.py --exports exports_swin
      # FastAPI and LitServe take part where they are installed

The limit is what as many threads as there are cores reach with `session.run` alone on a prepared
picture (at concurrency 1: one thread). Every round measures each contestant for some seconds, so
that the machine's moods hit all alike; ratios are taken within a round and their median is shown.
Processor time per answer, which other work on the machine hardly changes, stands beside (of Linux).
The client is a process of its own, of raw sockets: it shares the machine, and costs little.
"""

import argparse
import asyncio
import contextlib
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from common.console import say, table
from common.files import cores
from common.images import read_rgb, resize_to_model
from common.serve.answer import Options, answer, result_of, start_photo
from common.serve.predictor import Predictor
from common.serve.providers import open_predictor

CORES = cores()


def a_photo(side: int) -> bytes:
    """A JPEG of smooth noise."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# region the parts that run as processes of their own


def apart() -> Callable[[object], None]:
    """Keep stdout for messages: from now on whatever libraries print goes to stderr.

    Returns:
        what sends a message, as a line of JSON.
    """
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda message: print(json.dumps(message), file=told, flush=True)


def raw(exports: Path, provider: str, tell: Callable[[object], None]) -> None:
    """For each line {"threads", "seconds", "batch"} run the session alone, and tell the
    milliseconds of each run.
    """
    predictor, _ = open_predictor(exports, None, provider)
    size = predictor.bundle.size
    one = np.asarray(Image.open(io.BytesIO(a_photo(size))).convert("RGB"))[None]
    tell("ready")
    for line in sys.stdin:
        asked, times = json.loads(line), []
        picture = one.repeat(asked["batch"], axis=0)
        predictor.session.run(None, {"images": picture})  # a GPU prepares for each size of batch
        end = time.perf_counter() + asked["seconds"]

        def work(
            end: float = end, times: list[float] = times, picture: np.ndarray = picture
        ) -> None:
            while (start := time.perf_counter()) < end:
                predictor.session.run(None, {"images": picture})
                times.append(1000 * (time.perf_counter() - start))

        begin, used, threads = (
            time.perf_counter(),
            time.process_time(),
            [threading.Thread(target=work) for _ in range(asked["threads"])],
        )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tell(
            {
                "ms": times,
                "seconds": time.perf_counter() - begin,
                "statuses": {},
                "answers": len(times) * asked["batch"],
                "processor": time.process_time() - used,
            }
        )


def decode(tell: Callable[[object], None]) -> None:
    """For each line {"side", "size", "seconds"} read a photo again and again as the server does,
    and tell how often.
    """
    tell("ready")
    for line in sys.stdin:
        asked, count = json.loads(line), 0
        photo, begin = a_photo(asked["side"]), time.perf_counter()
        while time.perf_counter() < begin + asked["seconds"]:
            resize_to_model(read_rgb(photo, long_side=512), asked["size"])
            count += 1
        tell({"answers": count, "seconds": time.perf_counter() - begin})


async def no_work(port: int, tell: Callable[[object], None]) -> None:
    """A server that reads requests and answers nothing: what the client alone can ask."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    server = await asyncio.start_server(one, "127.0.0.1", port)
    tell("ready")
    await server.serve_forever()


def client(tell: Callable[[object], None]) -> None:
    """For each line {"port", "concurrency", "seconds", "side", "form"} ask a server, and tell
    milliseconds and statuses.
    """
    tell("ready")
    for line in sys.stdin:
        tell(asyncio.run(_ask(json.loads(line))))


async def _ask(asked: dict[str, Any]) -> dict[str, Any]:
    body = a_photo(asked["side"])
    kind = "image/jpeg"
    if asked["form"]:
        body = (
            b'--b\r\nContent-Disposition: form-data; name="photo"; '
            b'filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + body + b"\r\n--b--\r\n"
        )
        kind = "multipart/form-data; boundary=b"
    request = (
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: "
        f"{len(body)}\r\n\r\n"
    ).encode() + body
    times: list[float] = []
    statuses: dict[str, int] = {}
    end = time.perf_counter() + asked["seconds"]

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", asked["port"])
        # all clients begin at once: their first answers tell of a queue that fills, not of one that
        # stands
        first = True
        while (start := time.perf_counter()) < end:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            status = head[9:12].decode()
            statuses[status] = statuses.get(status, 0) + 1
            if status == "200" and not first:
                times.append(1000 * (time.perf_counter() - start))
            first = False
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(asked["concurrency"])))
    return {
        "ms": times,
        "seconds": time.perf_counter() - begin,
        "statuses": statuses,
        "answers": statuses.get("200", 0),
    }


def fastapi_server(exports: Path, port: int) -> None:
    """A plain FastAPI handler as its manual shows it: a function with an upload, which runs in
    FastAPI's pool of threads.
    """
    import uvicorn
    from fastapi import FastAPI, UploadFile

    app, predictor = FastAPI(), Predictor(exports)

    def predict(photo: UploadFile):  # noqa: ANN202 - FastAPI would make a schema of the return type
        return answer(
            predictor, [result_of(start_photo([predictor], photo.file.read()))], Options()
        )

    predict.__annotations__["photo"] = UploadFile
    app.post("/predict")(predict)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


class Api(
    importlib.import_module("litserve").LitAPI
    if "litserve" in sys.argv and "--as" in sys.argv
    else object
):
    """What LitServe runs in its workers, which import this file anew."""

    exports = ""

    def setup(self, device: str) -> None:
        self.predictor = Predictor(self.exports)

    def decode_request(self, request) -> bytes:
        return request["photo"].file.read()

    def predict(self, x: bytes) -> dict[str, Any]:
        return answer(self.predictor, [result_of(start_photo([self.predictor], x))], Options())

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def litserve_server(exports: Path, port: int) -> None:
    """LitServe with a worker per core."""
    import litserve

    api = Api()
    api.exports = str(exports)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=CORES, timeout=False)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


# endregion


class Part:
    """A process that answers a line for a line; starting several costs the time of one."""

    def __init__(self, *arguments: str) -> None:
        self.is_ready, self.errors = False, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def wait(self) -> None:
        """Wait until it is ready, the first time; raises RuntimeError where it ends instead."""
        if not self.is_ready:
            self.is_ready = self._read() == "ready"

    def __call__(self, **asked: Any) -> dict[str, Any]:
        """Hand in a line and wait for the answer; raises RuntimeError where it ends instead."""
        self.wait()
        with contextlib.suppress(BrokenPipeError):  # one that has ended is told of below
            print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.errors.seek(0)
        code, said = self.process.wait(), self.errors.read().split("\n")
        last = next((line for line in reversed(said) if line.strip()), "it said nothing")
        raise RuntimeError(f"{self.process.args[3]} ended with code {code}: {last.strip()}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_server(
    command: list[str], port: int, photo: bytes, begun: Callable[[int], None] = lambda pid: None
) -> subprocess.Popen:
    """Start a server, hand its process id to `begun`, and wait until it answers a photo."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, start_new_session=True
    )
    begun(process.pid)
    form = (
        b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
        + photo
        + b"\r\n--b--\r\n"
    )
    for _ in range(300):
        try:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/predict",
                form,
                {"content-type": "multipart/form-data; boundary=b"},
            )
            urllib.request.urlopen(request, timeout=60).read()
            return process
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    stop(process)
    raise SystemExit(f"{' '.join(command)} does not answer")


def stop(process: subprocess.Popen) -> None:
    """End a server, and what it started."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def processor_seconds(group: int) -> float:
    """What the processes of a group have used so far; 0 where there is no /proc."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(args: argparse.Namespace, servers: dict[str, tuple[int, subprocess.Popen]]) -> None:
    """Print a table per concurrency."""
    limit = Part("--as", "raw", "--exports", str(args.exports), "--provider", "cpu")
    asker = Part("--as", "client")
    try:
        for concurrency in args.concurrency:
            found: dict[str, list[dict[str, Any]]] = {
                name: [] for name in ("session.run", *servers)
            }
            for round_ in range(args.rounds + 1):
                names = list(found)
                for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                    if name in servers:
                        port, process = servers[name]
                        used = processor_seconds(process.pid)
                        result = asker(
                            port=port,
                            concurrency=concurrency,
                            seconds=args.seconds,
                            side=args.side,
                            form=True,
                        )
                        result["processor"] = processor_seconds(process.pid) - used
                    else:
                        result = limit(
                            threads=min(CORES, concurrency), seconds=args.seconds, batch=1
                        )
                    if round_:  # the first warms up
                        found[name].append(result)
            say(
                "",
                f"concurrency {concurrency}, {args.rounds} rounds of {args.seconds:g} s",
                "",
                report(found),
            )
    finally:
        for part in (limit, asker):
            part.process.kill()


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    """Lay out the medians over the rounds, with ratios to the limit within each round."""

    def of(result: dict[str, Any]) -> np.ndarray:
        rate = result["answers"] / result["seconds"]
        return np.array(
            [
                rate,
                *(np.quantile(result["ms"], q) if result["ms"] else np.nan for q in (0.5, 0.95)),
                1000 * result["processor"] / max(1, result["answers"]),
            ]
        )

    rows, base = [], np.array([of(result) for result in found["session.run"]])
    for name, results in found.items():
        own = np.array([of(result) for result in results])
        ratio = np.median(own / base, axis=0)
        rate, p50, p95, processor = np.median(own, axis=0)
        other = sum(
            count
            for result in results
            for status, count in result["statuses"].items()
            if status != "200"
        )
        rows.append(
            (
                name,
                f"{rate:.1f}",
                f"{ratio[0]:.3f}",
                f"{p50:.1f}",
                f"{p95:.1f}",
                f"{ratio[1]:.3f}",
                f"{ratio[2]:.3f}",
                f"{np.median(own[:, 2] / own[:, 1]):.3f}",
                f"{processor:.1f}",
                f"{ratio[3]:.3f}",
                other,
            )
        )
    return table(
        rows,
        (
            "contestant",
            "answers/s",
            "x limit",
            "p50 ms",
            "p95 ms",
            "p50 x limit's",
            "p95 x limit's",
            "p95/p50",
            "processor ms",
            "x limit's",
            "not 200",
        ),
    )


def main() -> None:
    """See the module's docstring."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--exports", type=Path, default=Path("exports"))
    flags.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--seconds", type=float, default=10)
    flags.add_argument(
        "--side", type=int, default=224, help="pixels per side of the photo that is sent"
    )
    flags.add_argument(
        "--only",
        nargs="+",
        default=["foliar", "fastapi", "litserve"],
        help="servers that take part",
    )
    flags.add_argument(
        "--as",
        dest="part",
        choices=["raw", "decode", "no_work", "client", "fastapi", "litserve"],
        help=argparse.SUPPRESS,
    )
    flags.add_argument("--provider", help=argparse.SUPPRESS)
    flags.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.part in ("client", "decode"):
        return {"client": client, "decode": decode}[args.part](apart())
    if args.part == "no_work":
        return asyncio.run(no_work(args.port, apart()))
    if args.part == "raw":
        return raw(args.exports, args.provider, apart())
    if args.part:
        return {"fastapi": fastapi_server, "litserve": litserve_server}[args.part](
            args.exports, args.port
        )
    servers, processes = {}, []
    try:
        for name in args.only:
            port = free_port()
            command = [__file__, "--as", name, "--exports", str(args.exports), "--port", str(port)]
            if name == "foliar":
                command = [
                    str(ROOT / "04_serve.py"),
                    "--exports",
                    str(args.exports),
                    "--port",
                    str(port),
                    "--provider",
                    "cpu",
                ]
            else:
                try:
                    importlib.import_module(name)
                except ImportError:
                    say(f"{name} is not installed and takes no part")
                    continue
            processes.append(start_server(command, port, a_photo(args.side)))
            servers[name] = port, processes[-1]
        say(f"{CORES} cores, photo {args.side} x {args.side}, {len(a_photo(args.side)):,} bytes")
        measure(args, servers)
    finally:
        for process in processes:
            stop(process)


if __name__ == "__main__":
    main()
