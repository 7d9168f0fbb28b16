"""Recall and false rate of a duplicate search, measured on duplicates that are made on purpose."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from common.console import table
from common.organize.duplicates.phash import matches, perceptual_hash


@dataclass(frozen=True)
class Row:
    """What a duplicate search made of one kind of copy.

    Attributes:
        kind: what was done to the copies.
        copies: copies looked up, one per sampled picture.
        found: copies whose original was found.
        false: pictures found that belong to another group than the original, over all copies.
        compared: pictures of other groups that the copies were compared with, over all copies.
    """

    kind: str
    copies: int
    found: int
    false: int
    compared: int


def variants(rgb: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Make copies of a picture as they turn up in collections.

    Args:
        rgb: uint8 (height, width, 3).
        seed: decides where the cropped frames sit, which way it is mirrored and turned.

    Returns:
        by what was done, uint8 (h, w, 3), own memory each.
    """
    rng = np.random.default_rng(seed)
    height, width = rgb.shape[:2]

    def cropped(share: float) -> np.ndarray:
        less_high, less_wide = round(share * height), round(share * width)
        top, left = (int(rng.integers(less + 1)) for less in (less_high, less_wide))
        return rgb[top : top + height - less_high, left : left + width - less_wide].copy()

    pressed = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 50]
    )[1]
    return {
        "re-encoded, quality 50": cv2.cvtColor(
            cv2.imdecode(pressed, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        ),
        "resized to 50 %": cv2.resize(
            rgb, (max(1, width // 2), max(1, height // 2)), interpolation=cv2.INTER_AREA
        ),
        "blurred": cv2.GaussianBlur(rgb, (0, 0), max(height, width) / 200),
        "brighter, x 1.3": cv2.convertScaleAbs(rgb, alpha=1.3),
        "darker, x 0.7": cv2.convertScaleAbs(rgb, alpha=0.7),
        "mirrored": cv2.flip(rgb, int(rng.integers(2))),
        "turned by a quarter": np.ascontiguousarray(np.rot90(rgb, int(rng.choice([1, 3])))),
        "cropped by 5 %": cropped(0.05),
        "cropped by 15 %": cropped(0.15),
    }


def judge(
    read: Callable[[int], np.ndarray],
    sample: Sequence[int],
    describe: Callable[[list[np.ndarray]], np.ndarray],
    match: Callable[[np.ndarray], np.ndarray],
    groups: np.ndarray,
    seed: int = 0,
) -> list[Row]:
    """Look copies of sampled pictures up and count what is found, for any duplicate search.

    Args:
        read: number of a stored picture -> uint8 (height, width, 3).
        sample: (S,) numbers of stored pictures.
        describe: pictures (K of them, all copies of one original) -> (K, ...) what the search
            compares, such as hashes or features.
        match: (Q, ...) descriptions of all copies -> int (M, 2), query and stored picture that it
            takes for duplicates, no pair twice.
        groups: int (N,), pictures that may rightly be found together with each other.
        seed: of the copies; those of a picture depend on the seed and its number only.

    Returns:
        a row per kind of copy.
    """
    described, kinds = [], []
    for i in sample:
        state = np.random.SeedSequence((seed, int(i))).generate_state(1)
        copies = variants(read(int(i)), int(state[0]))
        kinds = list(copies)
        described.append(describe(list(copies.values())))
    if not described:
        return []
    original = np.repeat(np.asarray(sample, np.int64), len(kinds))
    query, stored = np.asarray(match(np.concatenate(described)), np.int64).reshape(-1, 2).T
    found = np.bincount(query[stored == original[query]], minlength=len(original)) > 0
    false = np.bincount(query[groups[stored] != groups[original[query]]], minlength=len(original))
    labels, inverse = np.unique(groups, return_inverse=True)
    others = len(groups) - np.bincount(inverse, minlength=len(labels))[inverse[original]]
    found, false, others = (
        values.reshape(-1, len(kinds)).sum(axis=0).tolist() for values in (found, false, others)
    )
    return [
        Row(kind, len(described), *counts)
        for kind, *counts in zip(kinds, found, false, others, strict=True)
    ]


def judge_hashes(
    read: Callable[[int], np.ndarray],
    sample: Sequence[int],
    hashes: np.ndarray,
    groups: np.ndarray,
    radius: int,
    seed: int = 0,
) -> list[Row]:
    """Judge the search by perceptual hash (`phash.near_search`).

    Args:
        read, sample, groups, seed: as for `judge`.
        hashes: uint64 (N,), of all stored pictures.
        radius: bits, 0..15.

    Returns:
        a row per kind of copy.
    """

    def describe(pictures: list[np.ndarray]) -> np.ndarray:
        return np.array([perceptual_hash(picture) for picture in pictures], np.uint64)

    return judge(
        read,
        sample,
        describe,
        functools.partial(matches, hashes=hashes, radius=radius),
        groups,
        seed,
    )


def planted_table(rows: Sequence[Row]) -> str:
    """Lay the rows out as a table, with the sum of all kinds last.

    Args:
        rows: from `judge`.

    Returns:
        a Markdown table.
    """
    counts = [(row.copies, row.found, row.false, row.compared) for row in rows]
    total = Row("all", *(sum(column) for column in zip(*counts, strict=True)))
    return table(
        [
            (
                row.kind,
                row.copies,
                f"{100 * row.found / max(1, row.copies):.1f} %",
                f"{row.false / max(1, row.copies):.2f}",
                f"{1e6 * row.false / max(1, row.compared):.2f}",
            )
            for row in [*rows, total]
        ],
        ("copy", "copies", "original found", "false per copy", "false per million comparisons"),
    )
