"""Which pictures belong together: near-duplicates, copies by file name, one place, one camera in
one minute."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from common.organize.sources import Files

# What tools append to the name of a picture that they made from another one: Roboflow's
# ".rf.<hash>", PlantVillage's augmented sets ("_90deg", "_flipLR", "_newPixel25",
# "_new30degFlipLR", "_final_masked"), common scripts ("_aug3", "-rotated90").
_MARK = re.compile(
    r"(?ix)"
    r"\.rf\.[0-9a-f]{16,64}$"
    r"| [ _.-]+ (?: "
    r"(?:aug|augmented|augmentation|flip(?:ped)?|mirror(?:ed)?|rot(?:ate[ds]?|ation)?|blur(?:red)?|noisy?|bright(?:ness)?"
    r"|dark(?:er)?|crop(?:ped)?|zoom(?:ed)?|shear(?:ed)?|resized?|contrast|[hv]flip|copy|copie|kopie|duplicate"
    r"|(?:final[ _])?masked|segmented)"
    r"   (?:[ _.-]?[a-z]{0,2}-?\d{0,4})"
    r"   | (?:\d{2,3}deg(?:rees)?) | flip(?:lr|tb|ud) | newpixel\d* | "
    r"new\d{1,3}deg(?:flip(?:lr|tb))? )$"
    r"| \s-\s(?:copy|kopie|copie)(?:\s\(\d+\))?$"
)
_PICTURE_ENDING = re.compile(r"(?i)(?:[._](?:jpe?g|png|webp|bmp|tiff?))+$")


def stem_of(name: str) -> str | None:
    """Name of the picture that this file was made from, by its own name; None where it does not say
    that it was made from one.

    "IMG_7.rf.0a1b....jpg" gives "IMG_7"; "a1b2 3335_90deg.JPG" gives "a1b2 3335". "leaf (2).jpg" is
    a picture of its own."""
    stem = _PICTURE_ENDING.sub("", name)
    short, changed = stem, False
    while cut := _MARK.search(short):
        short, changed = _PICTURE_ENDING.sub("", short[: cut.start()]), True
    # what is left must still name one picture: a number, or enough letters
    return short if changed and (any(c.isdigit() for c in short) or len(short) >= 6) else None


def stem_edges(files: Files, kept: np.ndarray) -> np.ndarray:
    """Join pictures of one source and class that were made from one picture, by their names, and
    with that picture itself.

    Args:
        files: all files.
        kept: int (K,), the files in question.

    Returns:
        int64 (E, 2), numbers within `kept`.
    """
    names = [files.name(i) for i in kept.tolist()]
    stems = [stem_of(name) for name in names]
    wanted = {stem for stem in stems if stem is not None}
    if not wanted:
        return np.zeros((0, 2), np.int64)
    first: dict[tuple[int, int, str], int] = {}
    edges = []
    for k, (name, stem) in enumerate(zip(names, stems, strict=True)):
        stem = stem if stem is not None else _PICTURE_ENDING.sub("", name)
        if stem in wanted:
            i = kept[k]
            other = first.setdefault((int(files.origin[i]), int(files.label[i]), stem), k)
            if other != k:
                edges.append((other, k))
    return np.array(edges, np.int64).reshape(-1, 2)


def equal_edges(*values: np.ndarray, none: int) -> np.ndarray:
    """Join pictures with equal values; `none` in the last array joins nothing.

    Args:
        values: int (K,) each.
        none: value of the last one that says nothing.

    Returns:
        int64 (E, 2).
    """
    order = np.lexsort(values)
    same = np.ones(max(0, len(order) - 1), bool)
    for value in values:
        same &= value[order][1:] == value[order][:-1]
    same &= values[-1][order][1:] != none
    return np.stack([order[:-1][same], order[1:][same]], axis=1).astype(np.int64).reshape(-1, 2)


def sizes_of(groups: np.ndarray) -> Sequence[int]:
    """Sizes of the groups of two or more, largest first; `groups` int (K,) holds each picture's
    group."""
    sizes = np.unique(groups, return_counts=True)[1] if len(groups) else np.zeros(0, int)
    return sorted(sizes[sizes > 1].tolist(), reverse=True)
