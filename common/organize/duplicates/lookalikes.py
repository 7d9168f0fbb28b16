"""01's --embed: near-duplicates by the features of a pretrained backbone. torch is imported only
when it is used.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import images
from common.organize.duplicates import planted


@dataclass(frozen=True)
class Lookalikes:
    """What the search by features found: `pairs` int64 (M, 2), pictures at least `cosine` alike;
    `judge` looks altered copies up.
    """

    pairs: np.ndarray
    cosine: float
    judge: Callable[[Sequence[int], np.ndarray], list[planted.Row]]


NONE = Lookalikes(np.zeros((0, 2), np.int64), 1.0, lambda sample, groups: [])


def find(
    args: argparse.Namespace, read: Callable[[int], bytes], keys: np.ndarray, store: Path
) -> Lookalikes:
    """Compare all pictures.

    Args:
        args: values of `flags.EMBED_FLAGS`, and `workers`.
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
    looks_up = functools.partial(
        judge, read=read, features=features, embedder=embedder, threshold=threshold
    )
    return Lookalikes(pairs, threshold, looks_up)


def judge(
    sample: Sequence[int],
    groups: np.ndarray,
    read: Callable[[int], bytes],
    features: np.ndarray,
    embedder: Any,
    threshold: float,
) -> list[planted.Row]:
    """Judge the search by features on altered copies of the sampled pictures.

    Args:
        sample: (S,) numbers of pictures; one costs a forward pass per kind of copy and view.
        groups: int (N,), pictures that may rightly be found together with each other.
        read: picture number -> its file's bytes.
        features, embedder: float16 (N, dim), and the `embed.Embedder` that made them.
        threshold: cosine.

    Returns:
        a row per kind of copy.
    """
    from common.organize.duplicates.cosine import cosine_matches

    def match(queries: np.ndarray) -> np.ndarray:
        return cosine_matches(queries, features, threshold, embedder.device)

    def pixels(i: int) -> np.ndarray:
        return images.read_rgb(read(i), min_side=1)

    return planted.judge(pixels, sample, embedder.embed, match, groups)
