"""What `phash.near_search` found, counted and listed per picture."""

import numpy as np

from common.organize.duplicates.phash import Near


def pair_count(found: Near) -> int:
    """Pairs of pictures within the radius, those with equal hashes included."""
    sizes = np.bincount(found.of[found.of >= 0], minlength=len(found.first))
    left, right = sizes[found.pairs[:, 0]], sizes[found.pairs[:, 1]]
    return int((sizes * (sizes - 1) // 2).sum() + (left * right).sum())


def neighbours(found: Near, i: int) -> np.ndarray:
    """int64 (K,): the pictures within the radius of picture i, ascending, without i itself."""
    own = found.of[i]
    if own < 0:
        return np.zeros(0, np.int64)
    beside = found.pairs[(found.pairs == own).any(axis=1)].ravel()
    alike = np.flatnonzero(np.isin(found.of, [own, *beside.tolist()]))
    return alike[alike != i]
