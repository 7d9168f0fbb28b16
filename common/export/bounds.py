"""What a count can claim: exact bounds of a share, how many pictures a claim takes, and quantiles
far out. No torch.
"""

import math
from functools import cache

import numpy as np

from common.train.metrics import wilson


def lower(share: float) -> str:
    """A lower bound in per cent with two digits, rounded down: no more is claimed than was
    shown.
    """
    return f"{math.floor(share * 1e4 + 1e-9) / 1e4:.2%}"


def upper(share: float) -> str:
    """An upper bound in per cent with two digits, rounded up."""
    return f"{math.ceil(share * 1e4 - 1e-9) / 1e4:.2%}"


def at_least(hits: int, n: int, level: float = 0.95) -> float:
    """Lower end of the one-sided Clopper-Pearson interval of a share (1934): with confidence
    `level` the share is no less.

    Args:
        hits: 0..n.
        n: pictures, up to some millions.
        level: 0..1.

    Returns:
        0..1; 0 where n or hits is 0.
    """
    if hits <= 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if claims(hits, n, middle, level) else (low, middle)
    return low


def claims(hits: int, n: int, share: float, level: float = 0.95) -> bool:
    """Whether `at_least(hits, n, level)` reaches a share, at a sixtieth of the cost."""
    return hits > 0 and _binomial_tail(int(n) - int(hits), int(n), 1 - share) <= 1 - level


def pictures_needed(share: float, misses: int = 0, level: float = 0.95) -> int:
    """How many pictures it takes to claim a share with confidence `level`, when `misses` of them
    are wrong.

    299 for 99 % without a miss, 473 with one.
    """
    low, high = misses, 2 * (misses + 1)
    while not claims(high - misses, high, share, level):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if claims(middle - misses, middle, share, level) else (middle, high)
        )
    return high


def difference(hits: int, n: int, other_hits: int, other_n: int) -> tuple[float, float, float]:
    """The difference of two shares of different pictures, and its 95 % interval from Wilson's of
    both (Newcombe 1998, method 10).

    Returns:
        share less other share, lower and upper end, -1..1; NaN where a count of pictures is 0.
    """
    n_both = np.array([n, other_n])
    ends = wilson(np.array([hits, other_hits]), n_both)
    with np.errstate(invalid="ignore"):
        a, b = np.array([hits, other_hits]) / n_both
    down = math.hypot(a - ends[0, 0], ends[1, 1] - b)
    up = math.hypot(ends[0, 1] - a, b - ends[1, 0])
    return float(a - b), float(a - b - down), float(a - b + up)


def _binomial_tail(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p)."""
    if p <= 0 or k >= n:
        return 1.0
    if p >= 1:
        return 0.0
    facts, i = _log_factorials(1 << max(10, n.bit_length())), np.arange(k + 1)
    logs = facts[n] - facts[i] - facts[n - i] + i * math.log(p) + (n - i) * math.log1p(-p)
    return float(min(1.0, np.exp(logs).sum()))


@cache
def _log_factorials(count: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])


def tail_quantile(values: np.ndarray, share: float, tail: float = 0.1) -> float:
    """Estimate the value that a small share exceeds, from the excesses over the start of the upper
    tail.

    Peaks over threshold with exponential excesses (Pickands 1975, shape 0): far out, the order
    statistics of a few hundred pictures jump with single outliers, their mean excess does not.

    Args:
        values: float (N,).
        share: 0..1; from `tail` on it is the plain quantile.
        tail: share of the values that the fit uses.

    Returns:
        the estimate; the largest value where there are fewer than 50.
    """
    ordered = np.sort(values)
    count = int(len(ordered) * tail)
    if count < 5:
        return float(ordered[-1])
    if share >= tail:
        return float(np.quantile(ordered, 1 - share))
    start = ordered[-count - 1]
    return float(start + (ordered[-count:] - start).mean() * np.log(tail / share))
