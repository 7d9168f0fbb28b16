"""Stage 1's --embed: near-duplicates by the features of a pretrained backbone. torch is imported
only where it is used."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.organize.duplicates.planted import Row
from common.train.recipe_flags import arguments, channels


@dataclass(frozen=True)
class Lookalikes:
    """What the search by features found: `pairs` int64 (M, 2), pictures at least `cosine` alike;
    `judge` looks altered copies up."""

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
        default="",
        metavar="NAME=VALUE,...",
        help="as for 02a, e.g. pad_type=same",
    )
    add("--pixel-mean", default="timm", help="as for 02a: timm, one number or three")
    add("--pixel-std", default="timm", help="as for 02a")
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
    from common.train.engine import choose_compute

    backbone = embed.Backbone(
        args.backbone,
        args.weights,
        arguments=arguments(args.backbone_args),
        mean=channels("pixel_mean", args.pixel_mean),
        std=channels("pixel_std", args.pixel_std),
    )
    embedder = embed.load_embedder(backbone, choose_compute(precision=args.precision), args.views)
    features = embed.features(read, keys, embedder, store, workers=args.workers)
    threshold = args.cosine or embed.THRESHOLDS[args.views]
    pairs = cosine.cosine_pairs(features, threshold, embedder.compute.device)
    return Lookalikes(
        pairs,
        threshold,
        lambda sample, groups: embed.judge_features(
            read, sample, features, embedder, groups, threshold
        ),
    )
