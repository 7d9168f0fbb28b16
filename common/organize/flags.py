"""The flags of 01_reorganize.py, and what their values must fulfil."""

import argparse
import ast
import re
from pathlib import Path
from typing import Any

from common.console import fail
from common.files import claim, cores
from common.organize.names.folders import VERSIONS


def arguments(text: str) -> dict[str, Any]:
    """Read "pad_type=same,depths=[2,2,2,2]" -> {"pad_type": "same", "depths": [2, 2, 2, 2]}."""
    found: dict[str, Any] = {}
    for part in re.split(r",(?![^\[(]*[\])])", text) if text else ():  # not within brackets
        name, equals, value = part.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"`{part}` is not name=value, as in pad_type=same")
        try:
            found[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[name.strip()] = value.strip()
    return found


def channels(text: str) -> tuple[float, ...] | None:
    """Read "timm" -> None, "0.5" -> the same for all channels, "0.4 0.5 0.6" -> each."""
    values = tuple(float(value) for value in text.split()) if text != "timm" else None
    if values and (len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values)):
        raise argparse.ArgumentTypeError(f"`{text}` is not timm, one number or three, each 0 to 1")
    return values * 3 if values and len(values) == 1 else values


# name -> arguments of `argparse.ArgumentParser.add_argument`
FLAGS: dict[str, dict[str, Any]] = {
    "sources": {
        "nargs": "*",
        "metavar": "SOURCE",
        "help": "folder of class folders; NAME=FOLDER names it in the manifest",
    },
    "--demo": {
        "action": "store_true",
        "help": "draw demo pictures beside the output folder and organize those",
    },
    "--output": {
        "type": Path,
        "default": Path("data/organized"),
        "help": "the folder to make; it may be a link, but no mount point (default data/organized)",
    },
    "--not-plants": {
        "type": Path,
        "metavar": "DIR",
        "help": "pictures of no plant, to fit and test the rejection; each folder in it is a kind",
    },
    "--names": {
        "type": Path,
        "metavar": "CSV",
        "help": "your answers for names: columns name,species,disease and, where it is needed, "
        "source (an edited review.csv will do)",
    },
    "--species": {
        "default": "",
        "metavar": "WORDS",
        "help": "plant of the folders or labels that name none, such as mango",
    },
    "--labels-review": {
        "type": Path,
        "metavar": "CSV",
        "help": "your decisions about single pictures: the labels_review.csv of 02a "
        "--review-labels",
    },
    "--levels": {
        "type": int,
        "choices": [1, 2],
        "default": 2,
        "help": "1: a folder or label is a class of its own (flowers, animals)",
    },
    "--versions": {
        "choices": ["all", *VERSIONS],
        "default": "all",
        "help": "where folders hold versions of the same leaves (color, segmented ...): the one to "
        "use (default: all, each leaf's in one split)",
    },
    "--labels": {
        "type": Path,
        "metavar": "FILE",
        "help": "labels of the source's files, instead of its folders: CSV, COCO or other JSON; "
        "with one file per split, any of them",
    },
    "--columns": {
        "nargs": "+",
        "default": [],
        "metavar": "USE=NAME",
        "help": "columns of --labels: file=, label= (or species= disease=), group= (pictures of "
        "one plant or place), split=, source= (the place, camera or year)",
    },
    "--multi": {
        "default": "",
        "choices": ["first"],
        "help": "of several labels of one picture take the first (default: it is left out)",
    },
    "--path-pattern": {
        "default": "{}",
        "metavar": "PATH",
        "help": "where a row's file is below the source, e.g. images/{}.jpg",
    },
    "--long-side": {
        "type": int,
        "default": 512,
        "help": "px of the stored pictures' long side (default 512)",
    },
    "--val": {"type": float, "default": 0.15, "help": "share of val (default 0.15)"},
    "--test": {"type": float, "default": 0.15, "help": "share of test (default 0.15)"},
    "--keep-split": {
        "action": "store_true",
        "help": "keep the train, val and test that the source gives",
    },
    "--near": {
        "type": int,
        "default": 6,
        "metavar": "BITS",
        "help": "near-duplicates: hashes at most so many of 64 bits apart; -1 turns the search "
        "off (default 6)",
    },
    "--group-by": {
        "nargs": "*",
        "choices": ["stem", "moment"],
        "default": ["stem"],
        "help": "keep together: stem, pictures made from one by their names (x_90deg.jpg); "
        "moment, one camera in one minute (default stem)",
    },
    "--holdout-species": {
        "default": "",
        "metavar": "N|NAMES",
        "help": "set whole species aside to test how the model meets the unknown",
    },
    "--holdout-diseases": {
        "default": "",
        "metavar": "N|NAMES",
        "help": "the same for diseases: leaf_mold, tomato/leaf_mold",
    },
    "--holdout-source": {
        "default": "",
        "metavar": "NAMES",
        "help": "set whole sources aside to test the model in a new place: their names, or values "
        "of the column source=",
    },
    "--small-classes": {
        "choices": ["fail", "train", "drop"],
        "default": "fail",
        "help": "classes of fewer than 3 pictures: stop, keep them in train only, or leave them "
        "out",
    },
    "--shards": {
        "nargs": "?",
        "type": float,
        "const": 1000.0,
        "default": 0.0,
        "metavar": "MB",
        "help": "store in tar shards of so many MB (default 1000)",
    },
    "--copy": {
        "action": "store_true",
        "help": "copy pictures that need no change (default: hard links, where the disk can)",
    },
    "--report": {
        "action": "store_true",
        "help": "also write report/: a contact sheet per class, class sizes, suspicious classes",
    },
    "--dry-run": {
        "action": "store_true",
        "help": "print how names are read and how many files there are; organize nothing",
    },
    "--json": {
        "metavar": "FILE",
        "help": "with --dry-run: write how each folder is read as JSON (- for stdout)",
    },
    "--review": {
        "type": Path,
        "metavar": "FILE",
        "help": "with --dry-run: write the names to look at, as review.csv",
    },
    "--fresh": {
        "action": "store_true",
        "help": "start over where the output folder is there already",
    },
    "--undo": {
        "action": "store_true",
        "help": "remove the output folder and what a stopped run left",
    },
    "--workers": {
        "type": int,
        "default": cores(),
        "help": "processes (default: one per core)",
    },
}
EMBED_FLAGS: dict[str, dict[str, Any]] = {  # those that 02a has too have its names
    "--embed": {
        "action": "store_true",
        "help": "compare features of a pretrained backbone, too; a GPU makes it quick",
    },
    "--backbone": {"default": "mobilenetv2_100", "help": "timm name (default mobilenetv2_100)"},
    "--weights": {
        "default": "imagenet",
        "metavar": "FILE",
        "help": "imagenet (timm's, downloaded) or a file",
    },
    "--backbone-args": {
        "type": arguments,
        "default": "",
        "metavar": "NAME=VALUE,...",
        "help": "as for 02a, e.g. pad_type=same",
    },
    "--pixel-mean": {
        "help": "as for 02a: timm, one number or three",
        "type": channels,
        "default": "timm",
    },
    "--pixel-std": {"help": "as for 02a", "type": channels, "default": "timm"},
    "--precision": {
        "choices": ["auto", "fp32", "bf16", "fp16"],
        "default": "auto",
        "help": "as for 02a",
    },
    "--views": {
        "type": int,
        "choices": [1, 2, 8],
        "default": 2,
        "help": "orientations whose features are averaged: 2, with the mirror image; 8 finds "
        "leaves that were turned, at four times the work",
    },
    "--cosine": {
        "type": float,
        "help": "features at least so alike are near-duplicates (default 0.93, 0.94, 0.96 for 1, "
        "2, 8 views)",
    },
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags of 01."""
    for name, options in FLAGS.items():
        parser.add_argument(name, **options)
    add_embed_flags(parser)


def add_embed_flags(parser: argparse.ArgumentParser) -> None:
    """Add --embed and what the backbone needs."""
    group = parser.add_argument_group(
        "near-duplicates by features: crops and second photos of one leaf"
    )
    for name, options in EMBED_FLAGS.items():
        group.add_argument(name, **options)


def check_flags(args: argparse.Namespace) -> None:
    """Stop with a sentence where values are out of range or do not fit each other, or what is to
    be written cannot be. Links of --output are followed.
    """
    ranges = (
        64 <= args.long_side <= 8192,
        -1 <= args.near <= 15,
        args.workers >= 1,
        0.5 <= (args.cosine or 1) <= 1,
    )
    mistakes = (
        (
            not args.undo and bool(args.sources) == args.demo,
            "give one or more folders of class folders, or --demo for generated pictures (--help "
            "shows examples).",
        ),
        (
            min(args.val, args.test) <= 0 or args.val + args.test > 0.8,
            f"--val {args.val} and --test {args.test} must lie above 0 and leave at least a fifth "
            "for train.",
        ),
        (
            not all(ranges),
            "--long-side must be 64 to 8192, --near -1 to 15, --workers at least 1, --cosine 0.5 "
            "to 1.",
        ),
        (
            args.labels and len(args.sources) != 1,
            "--labels tells about one source: give one SOURCE, the folder below which its files "
            "lie.",
        ),
    )
    mistakes += (
        (
            (args.json or args.review) and not args.dry_run,
            "--json and --review write what a --dry-run finds; a run writes review.csv by itself.",
        ),
        (
            args.undo and (args.dry_run or args.sources or args.demo),
            "--undo removes what was made at --output: give it no sources and no --dry-run.",
        ),
    )
    for holds, sentence in mistakes:
        if holds:
            fail(sentence)
    for place in filter(None, (args.review, args.json if args.json != "-" else None)):
        claim(Path(place))
    if not args.dry_run:
        args.output = claim(args.output)
