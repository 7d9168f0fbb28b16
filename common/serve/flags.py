"""The flags of 04_serve.py, and which of them go together."""

import argparse
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

from common.console import fail
from common.decide import MODES
from common.files import claim
from common.serve.batch.shards import MOST
from common.serve.providers import PROVIDERS
from common.serve.texts import english, read_texts

BATCH = ("shard", "merge", "tta", "labels", "submission", "sample_submission", "benchmark")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what answers, how fast and how."""
    add = parser.add_argument
    add(
        "--exports",
        type=Path,
        default=Path("exports"),
        help="the folder 03 wrote (default: exports)",
    )
    add(
        "--model",
        action="append",
        metavar="NAME",
        help="a model file of that folder (default: what bundle.json says), "
        "or another exports folder; with --predict several --model answer together",
    )
    add(
        "--provider",
        choices=("auto", *PROVIDERS),
        default="auto",
        help="what runs the model: one of ONNX Runtime's "
        "providers that are installed (default: the best that works)",
    )
    add(
        "--threads",
        type=_whole(1, 1024),
        help="photos computed at once, each on one thread (default: one per core, "
        "shared by the workers)",
    )
    add(
        "--workers",
        type=_whole(1, 256),
        help="processes, for machines of many cores (default: 1; with a GPU, which they share, one "
        "per two cores, at most 8)",
    )
    add(
        "--queue",
        type=_whole(1, 100_000),
        help="requests that may wait; more get 503 (default: 32 per thread, 128 with a GPU)",
    )
    add(
        "--top-k",
        type=_whole(1, 1000),
        default=5,
        help="alternatives listed per answer (default: 5)",
    )
    add(
        "--mode",
        choices=MODES,
        default="joint",
        help="joint: the most probable species and disease "
        "together (default); routed: the best species first, then its best disease",
    )


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add who may ask the server, and what the page says."""
    add = parser.add_argument_group("server", "who may ask, and what the page says").add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets the whole network in",
    )
    add(
        "--port",
        type=_whole(0, 65535),
        default=8000,
        help="port to listen on; 0 takes any free one",
    )
    add("--max-upload-mb", type=_whole(1, 1000), default=20, help="largest upload (default: 20)")
    add(
        "--api-key",
        default=os.environ.get("FOLIAR_API_KEY", ""),
        metavar="KEY",
        help="ask for this key before answering photos and /metrics; rather set FOLIAR_API_KEY, as "
        "other users of a computer see its command lines",
    )
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="let web pages of this address ask too; * for all",
    )
    add(
        "--forwarded-allow-ips",
        type=_addresses,
        default="",
        metavar="ADDRESSES",
        help="reverse proxies in front of this server, addresses or networks with commas between: "
        "the X-Forwarded-For of these, and of nobody else, says who asks",
    )
    add("--access-log", action="store_true", help="print a line per request (never a photo)")
    add(
        "--texts",
        type=Path,
        metavar="FILE",
        help="what the page and the answers say, in another language: a copy of "
        "common/serve/web/texts.json whose sentences are translated",
    )


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of --predict."""
    batch = parser.add_argument_group(
        "batch",
        "answer photos into a CSV instead of serving; exit code 1 where a photo could not be read",
    )
    batch.add_argument(
        "--predict",
        nargs="+",
        metavar="PATH",
        help="photos, folders, or quoted patterns such as 'photos/**/*.jpg'",
    )
    batch.add_argument(
        "--output",
        type=Path,
        default=Path("predictions.csv"),
        metavar="CSV",
        help="where answers go (default: "
        "predictions.csv); a run that was stopped goes on by the same command",
    )
    shards = batch.add_mutually_exclusive_group()
    shards.add_argument(
        "--shard",
        type=_shard,
        metavar="K/N",
        help="answer one of N shares of the photos, 0/N to (N-1)/N, into a file beside the output: "
        "for many processes or machines",
    )
    shards.add_argument(
        "--merge",
        action="store_true",
        help="make the output from the files of all shards, by the same command",
    )
    batch.add_argument(
        "--tta",
        action="store_true",
        help="see each photo, its mirror image and its middle: three times the model's time",
    )
    batch.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="what the photos show, as 01 takes it: columns file, species, disease, or file, label "
        "(default: as their folders are named)",
    )
    batch.add_argument(
        "--submission",
        type=Path,
        metavar="FILE",
        help="also write the probability of every class, to a .csv or .zip",
    )
    batch.add_argument(
        "--sample-submission",
        type=Path,
        metavar="CSV",
        help="a submission whose ids, titles and order are to be kept",
    )
    batch.add_argument(
        "--benchmark",
        action="store_true",
        help="time reading and model on the photos of --predict; writes nothing",
    )


def check_flags(args: argparse.Namespace) -> None:
    """Raises SystemExit over flags that do not go together, outputs that cannot be and unusable
    texts, which stand in `args.texts` afterwards where something is served.
    """
    if not args.predict:
        args.texts = read_texts(args.texts) if args.texts else english()
        for flag in BATCH:
            if getattr(args, flag):
                fail(f"--{flag.replace('_', '-')} needs --predict with photos.")
        if len(args.model or ()) > 1:
            fail(
                "a server answers with one model: give --model once. Several answer together with "
                "--predict."
            )
        return
    if args.texts:
        fail("--texts is for what the page and the server say; --predict writes a table.")
    if args.sample_submission and not args.submission:
        fail("--sample-submission needs --submission, the file to write.")
    if args.benchmark and (args.shard or args.merge):
        fail("--benchmark writes nothing: give it without --shard and --merge.")
    for flag, path in (("output", args.output), ("submission", args.submission)):
        if path and path.is_dir():
            fail(f"--{flag} {path} is a folder; give the name of a file in it.")
        setattr(args, flag, path and claim(path))


def _addresses(text: str) -> str:
    for part in filter(None, text.split(",")):
        try:
            ipaddress.ip_network(part.strip())
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"'{part.strip()}' is no address or network, such as 127.0.0.1 or 172.16.0.0/12"
            ) from None
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least} to {most}")
        return int(text)

    return read


def _shard(text: str) -> tuple[int, int]:
    shard, slash, count = text.partition("/")
    if not (slash and shard.isdecimal() and count.isdecimal() and int(shard) < int(count) <= MOST):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no shard: of 16 they are 0/16, 1/16 to 15/16, and there are at most "
            f"{MOST}"
        )
    return int(shard), int(count)
