"""01's --embed: near-duplicates by the features of a pretrained backbone. torch is imported only
when it is used.
"""

import argparse
import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.organize.duplicates.planted import Row


@dataclass(frozen=True)
class Lookalikes:
    """What the search by features found: `pairs` int64 (M, 2), pictures at least `cosine` alike;
    `judge` looks altered copies up.
    """

    pairs: np.ndarray
    cosine: float
    judge: Callable[[Sequence[int], np.ndarray], list[Row]]


NONE = Lookalikes(np.zeros((0, 2), np.int64), 1.0, lambda sample, groups: [])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --embed and what the backbone needs; those that 02a has too have its names."""
    add = parser.add_argument_group(
        "near-duplicates by features: crops and second photos of one leaf"
    ).add_argument
    add(
        "--embed",
        action="store_true",
        help="compare features of a pretrained backbone, too; a GPU makes it quick",
    )
    add("--backbone", default="mobilenetv2_100", help="timm name (default mobilenetv2_100)")
    add(
        "--weights",
        default="imagenet",
        metavar="FILE",
        help="imagenet (timm's, downloaded) or a file",
    )
    add(
        "--backbone-args",
        type=arguments,
        default="",
        metavar="NAME=VALUE,...",
        help="as for 02a, e.g. pad_type=same",
    )
    pixel = {"type": channels, "default": "timm"}
    add("--pixel-mean", help="as for 02a: timm, one number or three", **pixel)
    add("--pixel-std", help="as for 02a", **pixel)
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="as for 02a")
    add(
        "--views",
        type=int,
        choices=[1, 2, 8],
        default=2,
        help="orientations whose features are averaged: 2, with the mirror image; 8 finds leaves "
        "that were turned, at four times the work",
    )
    add(
        "--cosine",
        type=float,
        help="features at least so alike are near-duplicates (default 0.93, 0.94, 0.96 for 1, 2, "
        "8 views)",
    )


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


def find(
    args: argparse.Namespace, read: Callable[[int], bytes], keys: np.ndarray, store: Path
) -> Lookalikes:
    """Compare all pictures.

    Args:
        args: from flags of `add_flags`, and `workers`.
        read: picture number -> its JPEG.
        keys: uint8 (K, 32), SHA-256 of the pictures.
        store: folder for the features, so that a killed run goes on.

    Raises:
        SystemExit: where the weights cannot be loaded, or the threshold joins too much.
    """
    from common.organize.duplicates import cosine, embed

    backbone = embed.Backbone(
        args.backbone,
        args.weights,
        arguments=args.backbone_args,
        mean=args.pixel_mean,
        std=args.pixel_std,
    )
    embedder = embed.load_embedder(backbone, args.precision, args.views)
    features = embed.features(read, keys, embedder, store, workers=args.workers)
    threshold = args.cosine or embed.THRESHOLDS[args.views]
    pairs = cosine.cosine_pairs(features, threshold, embedder.device)
    return Lookalikes(
        pairs,
        threshold,
        lambda sample, groups: embed.judge_features(
            read, sample, features, embedder, groups, threshold
        ),
    )
