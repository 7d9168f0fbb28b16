"""Stage 4: answer photos with an exported model, over HTTP with a web page, or for whole folders.

Reads   exports/ (written by 03_export.py). Needs no torch.
Writes  nothing; with --predict a CSV, one row per photo.

  python 04_serve.py                                   the page and the API at http://127.0.0.1:8000
  python 04_serve.py --port 9000 --model model.onnx    another port, another model of the exports folder
  python 04_serve.py --workers 4 --provider cpu        several processes on one port, on the CPU even where there is a GPU
  python 04_serve.py --predict photos/ leaf.jpg --output predictions.csv

  curl --data-binary @leaf.jpg http://127.0.0.1:8000/predict
  curl -F photo=@a.jpg -F photo=@b.jpg -F species=tomato http://127.0.0.1:8000/predict      one plant, its species known

It starts in about a second and answers within a few milliseconds of the model's own time. Each answer names species
and disease, or the species alone, or refuses and says why. Only this computer can reach the server unless --host says
otherwise; it keeps no photo. /docs describes the addresses. Ctrl-C or SIGTERM lets the requests under way finish, then stops it.
"""

from __future__ import annotations

import argparse
import csv
import errno
import os
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import console, serving, workers
from common.answers import answer_photo
from common.bundle import Bundle, BundleError, ModelCard, Predictor, read_bundle
from common.decide import MODES
from common.http_app import make_app
from common.images import SUFFIXES, ImageError
from common.providers import GPUS, PROVIDERS, open_predictor
from common.runners import settle_process
from common.service import Settings

COLUMNS = ("file", "decision", "level", "species", "disease", "species_probability", "disease_given_species",
           "leaf_probability", "best_guess", "best_guess_probability", "reason", "score", "quantile", "error")


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = console.parser(__doc__)
    parser.add_argument("--exports", type=Path, default=Path("exports"), help="the folder 03 wrote (default: exports)")
    parser.add_argument("--model", metavar="NAME", help="a model file of that folder (default: what bundle.json says)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets the whole network in")
    parser.add_argument("--port", type=_whole(0, 65535), default=8000, help="port to listen on; 0 takes any free one")
    parser.add_argument("--provider", choices=("auto", *PROVIDERS), default="auto", help="what runs the model: one of ONNX Runtime's "
                        "providers that are installed (default: the best that works)")
    parser.add_argument("--threads", type=_whole(1, 1024), help="photos computed at once, each on one thread (default: one per core, "
                        "shared by the workers)")
    parser.add_argument("--workers", type=_whole(1, 256), default=1, help="processes, for machines of many cores (default: 1)")
    parser.add_argument("--queue", type=_whole(1, 100_000), help="requests that may wait; more get 503 (default: 32 per thread)")
    parser.add_argument("--top-k", type=_whole(1, 1000), default=5, help="alternatives listed per answer (default: 5)")
    parser.add_argument("--mode", choices=MODES, default="joint", help="joint: the most probable species and disease "
                        "together (default); routed: the best species first, then its best disease")
    parser.add_argument("--max-upload-mb", type=_whole(1, 1000), default=20, help="largest upload (default: 20)")
    parser.add_argument("--api-key", default=os.environ.get("FOLIAR_API_KEY", ""), metavar="KEY", help="ask for this key before answering "
                        "photos and /metrics; rather set FOLIAR_API_KEY, as other users of a computer see its command lines")
    parser.add_argument("--cors-origin", action="append", default=[], metavar="URL",
                        help="let web pages of this address ask too; * for all")
    parser.add_argument("--access-log", action="store_true", help="print a line per request (never a photo)")
    parser.add_argument("--predict", type=Path, nargs="+", metavar="PATH",
                        help="answer these photos and folders, then end")
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"), help="where --predict writes its CSV")
    return parser


@console.friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or predict files; returns the exit code."""
    args = build_parser().parse_args(argv)
    paths = find_photos(args.predict) if args.predict else []
    if args.predict and args.output.is_dir():
        console.fail(f"--output {args.output} is a folder; give the name of a CSV file in it.")
    if args.predict and args.output.parent.exists() and not args.output.parent.is_dir():
        console.fail(f"--output {args.output} cannot be: {args.output.parent} is a file, not a folder.")
    try:
        if args.predict:
            return predict_files(Predictor(args.exports, args.model), paths, args)
        listener = bind(args.host, args.port)
        if args.workers == 1:
            return serve(args, listener)
        bundle = read_bundle(args.exports)
        return workers.supervise(args.workers, serve, (args, listener), started=lambda: announce(args, listener, bundle))
    except BundleError as error:
        console.fail(str(error))


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything slow happens, so that one in use is told at once and in plain words."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere this option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
        return listener
    except (socket.gaierror, UnicodeError):
        console.fail(f"--host {host} is no address of this computer. Use 127.0.0.1, or 0.0.0.0 for the whole network.")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            console.fail(f"port {port} on {host} is in use by another program. Stop it, or choose another port, for "
                         f"example --port {port + 1 if port < 65535 else 8000}, or --port 0 for any free one.")
        if error.errno in (errno.EACCES, errno.EPERM):
            console.fail(f"no permission to listen on port {port}. Choose one above 1023, for example --port 8000.")
        if error.errno == errno.EADDRNOTAVAIL:
            console.fail(f"--host {host} is no address of this computer. Use 127.0.0.1, or 0.0.0.0 for the whole "
                         "network.")
        raise


def serve(args: argparse.Namespace, listener: socket.socket, ready: Any = None) -> int:
    """Answer requests until Ctrl-C or SIGTERM; those under way are finished first. `ready` is set by a worker once it serves."""
    settle_process()
    try:
        predictor, provider = open_predictor(args.exports, args.model, args.provider)
    except BundleError as error:
        console.fail(str(error))
    threads = args.threads or max(1, _cores() // args.workers) * (4 if provider in GPUS else 1)  # a GPU waits for decoded photos
    settings = Settings(top_k=args.top_k, mode=args.mode, runners=threads, waiting=args.queue or max(32, 32 * threads),
                        max_upload_mb=args.max_upload_mb, memory_mb=max(512, 4 * args.max_upload_mb), access_log=args.access_log,
                        batch=32 if provider in GPUS else 0, provider=provider, api_key=args.api_key, cors_origins=tuple(args.cors_origin))
    app = make_app(predictor, settings)
    if ready is None:
        serving.serve(app, listener, started=lambda: announce(args, listener, predictor.bundle, predictor.card, provider))
        console.say("stopped")
    else:
        serving.serve(app, listener, worker=True, started=ready.set)
    return 0


def announce(args: argparse.Namespace, listener: socket.socket, bundle: Bundle, card: ModelCard | None = None, provider: str = "") -> None:
    """Say what answers, and where."""
    describe(bundle, card or bundle.models[args.model or bundle.default_model], provider)
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    if host in ("0.0.0.0", "::"):
        console.say("network  everyone who can reach this computer can send photos" + (", with the API key" if args.api_key else ""))
    console.say(f"page     {url}/", f"API      {url}/docs", f"try      curl --data-binary @leaf.jpg {url}/predict", "stop     Ctrl-C")


def describe(bundle: Bundle, card: ModelCard, provider: str = "") -> None:
    """Say which model answers, and when it refuses."""
    console.header(f"{bundle.name} {bundle.version}")
    console.say(f"model    {card.file} ({card.precision}, {card.size_mb:.1f} MB, {bundle.backbone}, "
                f"{bundle.size} x {bundle.size} pixels{f', on {provider}' if provider else ''})",
                f"classes  {bundle.tree.num_species} species, {bundle.tree.num_leaves} with their diseases")
    console.say("refuses  " + (f"{card.rejection.score} above {card.rejection.threshold:.4g}" if card.rejection
                               else "no stranger: this export has no rejection threshold"))


def find_photos(paths: Iterable[Path]) -> list[Path]:
    """Files as given, and the pictures in folders and the folders below, each once, in the order of their names."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = [Path(root, name) for root, _, names in os.walk(path) for name in names
                      if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
            if not inside:
                console.fail(f"there are no pictures in {path}. Pictures end in {', '.join(SUFFIXES)}.")
            found.update(dict.fromkeys(sorted(inside)))
        elif path.is_file():
            found[path] = None
        else:
            console.fail(f"there is no file or folder {path} to predict.")
    return list(found)


def predict_files(predictor: Predictor, paths: Sequence[Path], args: argparse.Namespace) -> int:
    """Answer each file into a CSV that appears whole or not at all; what cannot be read becomes a row that says why."""
    def one(path: Path) -> dict[str, Any]:
        try:
            return csv_row(path, answer_photo(predictor, path, mode=args.mode, top_k=1))
        except ImageError as error:
            return {"file": path, "decision": "error", "reason": error.reason, "error": str(error)}
        except OSError as error:
            return {"file": path, "decision": "error", "reason": "unreadable", "error": error.strerror or str(error)}

    describe(predictor.bundle, predictor.card)
    watch, decisions = console.Stopwatch(), Counter()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{args.output.name}-", suffix=".tmp", dir=args.output.parent)
    try:
        # file names need not be valid text: the odd byte is written as \xNN instead of ending the run
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            rows = in_order(one, paths, args.threads or _cores())
            for row in console.progress(rows, total=len(paths), desc="predict", unit="photo"):
                writer.writerow(row)
                decisions[row["decision"]] += 1
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, args.output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    counts = ", ".join(f"{decisions[key]} {key.replace('_', ' ')}" for key in
                       ("answered", "rolled_up", "rejected", "error") if decisions[key])
    console.say(f"photos   {len(paths)} in {console.duration(watch())}: {counts}", f"wrote    {args.output}")
    return 0


def csv_row(path: Path, answer: dict[str, Any]) -> dict[str, Any]:
    """One answer as a row of the CSV; the best guess stands there even where the answer is a refusal."""
    guess = answer["alternatives"][0]
    return {
        "file": path, "decision": answer["decision"], "level": answer["level"], "species": answer["species"],
        "disease": answer["disease"], "species_probability": answer["probabilities"]["species"],
        "disease_given_species": answer["probabilities"]["disease_given_species"],
        "leaf_probability": answer["probabilities"]["leaf"], "best_guess": f"{guess['species']}/{guess['disease']}",
        "best_guess_probability": guess["probability"], "reason": answer["rejection"]["reason"],
        "score": answer["rejection"]["value"], "quantile": answer["rejection"]["quantile"],
    }


def in_order(job: Any, items: Iterable[Any], threads: int) -> Iterator[Any]:
    """Run a job over items on several threads, results in the items' order, never more than a few ahead."""
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(job, item))
            if len(pending) >= 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _whole(least: int, most: int) -> Any:
    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least} to {most}")
        return int(text)
    return read


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    raise SystemExit(main())
