"""The flags of 03_export.py, and which of them go together."""

import argparse
from pathlib import Path

from common.console import fail
from common.train.dataset import default_workers

WHERE = {"data", "checkpoints", "checkpoint", "output", "device", "workers"}
PAGE = {"static", "texts", "output"}  # alone, they make do with an export that is there
ADDS = {"reference", "triton", "static", "texts"}  # alone, they add to one of the same checkpoint


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags."""
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/organized"), help="folder of 01_reorganize.py")
    add("--checkpoints", type=Path, default=Path("checkpoints"), help="where the run folders stand")
    add("--checkpoint", type=Path, help="the one to export (default: the best of the last stage)")
    add(
        "--output",
        type=Path,
        default=Path("exports"),
        help="the folder to make; it may be a link, but no mount point (default exports)",
    )
    add(
        "--precision-wanted",
        type=float,
        default=0.95,
        help="least share of right answers among those given, unless the caller asks for another "
        "(default 0.95)",
    )
    folders = {"nargs": "+", "default": [], "metavar": "[NAME=]DIR"}
    add("--ood", **folders, help="further pictures that show no plant")
    add("--unknown-plants", **folders, help="pictures of plants that no class knows")
    add(
        "--second-opinion",
        action=argparse.BooleanOptionalAction,
        help="the pretrained network tells plants of unknown species, beside the trained one "
        "(default: where its weights are at hand and tell species that are left out)",
    )
    add("--browser", type=Path, metavar="CHECKPOINT", help="a small model: writes browser/ with it")
    add(
        "--reference",
        nargs="+",
        metavar=("N", "SOURCE"),
        help="also N typical train pictures per class, for the page to show to everybody: only of "
        "the sources named here (`dataset` in manifest.csv)",
    )
    add(
        "--static",
        type=Path,
        metavar="DIR",
        help="also write the page as a folder that any web host can serve: it answers in the "
        "browser alone",
    )
    add("--texts", type=Path, metavar="FILE", help="what that page says, as 04_serve.py takes it")
    add("--triton", type=Path, metavar="DIR", help="also lay out a Triton model repository")
    add("--max-size-mb", type=float, help="fail where the served model is larger")
    add("--max-latency-ms", type=float, help="fail where a picture takes longer on one thread")
    add("--max-pictures", type=int, default=10000, help="per split to fit and check with (10000)")
    add("--device", default="auto", help="where PyTorch computes: auto, cpu, cuda:1, mps ...")
    add("--workers", type=int, default=default_workers())
    add("--fresh", action="store_true", help="export again, even where all is up to date")


def check_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Stop with a sentence over values out of range and flags that do not go together. Sets
    `only_page` and `only_adds`: whether all that is wanted can be made of an export that is there.
    """
    if not 0.5 <= args.precision_wanted < 1 or args.max_pictures < 10 or args.workers < 0:
        fail(
            "--precision-wanted must be 0.5 to 1, --max-pictures at least 10, --workers at least 0."
        )
    if args.texts and not args.static:
        fail("--texts is what the page of --static says; a server takes it from 04_serve.py.")
    changed = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    args.only_page = bool(args.static) and changed <= PAGE
    args.only_adds = bool(changed & ADDS) and changed <= ADDS | WHERE
