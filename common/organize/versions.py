"""Versions of one leaf: colour, grayscale, segmented and augmented copies, which collections keep
in sibling folders with equal file names.

One of them in train and another in test is a leak that no comparison of pictures finds.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from common.organize.names.folders import words_of
from common.organize.splits import _PICTURE_ENDING, stem_of

_VERSIONS = {
    word: tag
    for tag, words in {
        "color": "color colour colored coloured rgb",
        "grayscale": "grayscale greyscale grayscaled gray grey",
        "segmented": "segmented segmentation masked",
        "augmented": "augmented augmentation augmentations aug augment",
        "original": "original originals raw unaugmented",
        "rotated": "rotated flipped mirrored",
    }.items()
    for word in words.split()
}
_UUID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}_+")


def version_of(path: Sequence[str]) -> str:
    """Which version a folder's path names, by its last word that does: "color", "augmented" ...,
    or "" where it names none. "without augmentation" is "original".
    """
    words = [word for segment in path for word in words_of(segment)]
    for before, word in zip(reversed(["", *words[:-1]]), reversed(words), strict=True):
        tag = _VERSIONS.get(word, "")
        if tag:
            negated = tag == "augmented" and before in {"without", "wo", "no", "non"}
            return "original" if negated else tag
    return ""


def version_groups(
    names: Sequence[str], version: np.ndarray, origin: np.ndarray, class_idx: np.ndarray
) -> np.ndarray:
    """Tie the versions of each leaf by their file names, within one source and class.

    Augmented names are matched by the original name that they begin with: "_0_1120" belongs to
    "0".

    Args:
        names: K file names.
        version: int (K,), equal where two pictures are of one version; -1 where a folder names
            none.
        origin, class_idx: int (K,), source and class of each picture.

    Returns:
        int64 (K,): equal for the versions of one leaf; -1 for pictures without another version.
    """
    group = np.full(len(names), -1, np.int64)
    several = _with_several(version, origin, class_idx)
    stems: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for k in np.flatnonzero(several).tolist():
        stems[int(origin[k]), int(class_idx[k]), _stem(names[k])].append(k)
    for source, number, stem in list(stems):
        root = _root(stem, source, number, stems)
        if root:
            stems[source, number, root] += stems.pop((source, number, stem))
    for members in stems.values():
        if len({int(version[k]) for k in members}) > 1:
            group[members] = min(members)
    return group


def _with_several(version: np.ndarray, origin: np.ndarray, class_idx: np.ndarray) -> np.ndarray:
    """bool (K,): pictures whose source and class hold more than one version."""
    place = np.unique(np.stack([origin, class_idx]), axis=1, return_inverse=True)[1].reshape(-1)
    pairs = np.unique(np.stack([place, version]), axis=1)
    return (np.bincount(pairs[0], minlength=place.max(initial=-1) + 1) > 1)[place]


def _stem(name: str) -> str:
    stem = stem_of(name) or _PICTURE_ENDING.sub("", name)
    return " ".join(re.split(r"[\s_.-]+", _UUID.sub("", stem.lower()))).strip()


def _root(stem: str, source: int, number: int, stems: dict) -> str:
    """The longest other stem that begins this one, up to a whole word."""
    words = stem.split(" ")
    for end in range(len(words) - 1, 0, -1):
        short = " ".join(words[:end])
        if (source, number, short) in stems:
            return short
    return ""
