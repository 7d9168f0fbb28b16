"""All pairs of unit vectors above a cosine, exact, among millions."""

import warnings

import numpy as np
import torch
from torch import Tensor

from common.console import fail, progress

MOST_PAIRS = 30_000_000  # 480 MB of them
REDUCE_FROM = 20_000  # pictures; below this the plain product takes seconds
SAMPLE = 4096  # pictures on which the number of directions is chosen
DIRECTIONS = (32, 64, 128, 256, 512)
# The most that rounding can move the product of two unit rows: the stored float16, the operands,
# the product itself. bf16 would need 7.5e-3, and lets so many more pairs pass that it is no
# quicker.
SLACK = {torch.float32: 1.5e-3, torch.float16: 2.5e-3}
CHUNK = 2048  # rows that are in memory in float32 at once


def cosine_pairs(
    features: np.ndarray, threshold: float, device: torch.device | str = "cpu", most: float = 200.0
) -> np.ndarray:
    """Find all pairs of pictures whose features have a cosine of at least `threshold`; exact.

    The rows are first projected on their leading principal directions, with the norm of what is
    left as one more coordinate: by the Cauchy-Schwarz inequality the product of two such rows is
    an upper bound of the cosine. Only pairs that reach the threshold there are measured in full, in
    float64. Precision and projection change the time, never the result. 1.47 million pictures are
    1.1e12 pairs: 64 directions of 1280 were enough at 0.94, half an hour on one CPU core.

    Args:
        features: float16 (count, dim), rows of length 1 or 0, as `features` makes them. A memory
            map is fine.
        threshold: cosine, above 0 and below 1.
        device: where the products are computed: float32 on a CPU, float16 elsewhere.
        most: stop where there are more pairs per picture than this on average, or more than
            `MOST_PAIRS` in all.

    Returns:
        int64 (M, 2), each pair once, first index smaller, in ascending order. Memory beside the
        features and the result: at most 2 bytes x 513 per picture, usually 2 x 129, and some 300
        MB.

    Raises:
        SystemExit: where there are too many pairs for the threshold to mean anything.
        ValueError: for a threshold out of range.
    """
    device = torch.device(device)
    kind, bound, height, width = _plan(threshold, device)
    count, limit = len(features), min(int(most * len(features)), MOST_PAIRS)
    if count < 2:
        return np.zeros((0, 2), np.int64)
    norms = _norms(features)
    short = _tensor(_short_rows(features, norms, threshold, bound, limit))
    if device.type != "cpu" and short.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
        short = short.to(device)
    found, total = [], 0
    with progress((), total=count * (count - 1) // 2, desc="comparing", unit="pair") as bar:
        for row in range(0, count, height):
            left, near = short[row : row + height].to(device, kind), []
            for column in range(row, count, width):
                right = short[column : column + width].to(device, kind)
                near.append(_reaching(left @ right.T, bound, row, column))
            candidates = np.concatenate(near)
            candidates = candidates[candidates[:, 0] < candidates[:, 1]]
            found.append(_measured(features, norms, features, norms, candidates, threshold))
            total += len(found[-1])
            if total > limit:
                _too_many(threshold)
            bar.update(sum(range(max(count - row - height, 0), count - row)))
    return np.concatenate(found)


def cosine_matches(
    queries: np.ndarray, features: np.ndarray, threshold: float, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Find for each query all stored features with a cosine of at least `threshold`; exact.

    Args:
        queries: float16 (asked, dim); features: float16 (count, dim); rows of length 1 or 0.
        threshold: cosine, above 0 and below 1.
        device: where the products are computed: float32 on a CPU, float16 elsewhere.

    Returns:
        int64 (M, 2): query and stored picture, in ascending order.

    Raises:
        ValueError: for a threshold out of range.
    """
    device = torch.device(device)
    kind, bound, _, width = _plan(threshold, device)
    asked, stored, near = (
        _tensor(queries).to(device, kind),
        _tensor(features),
        [np.zeros((0, 2), np.int64)],
    )
    for column in range(0, len(features), width):
        right = stored[column : column + width].to(device, kind)
        near.append(_reaching(asked @ right.T, bound, 0, column))
    return _measured(
        queries, _norms(queries), features, _norms(features), np.concatenate(near), threshold
    )


def _plan(threshold: float, device: torch.device) -> tuple[torch.dtype, float, int, int]:
    """Precision of the products, what they must reach for a pair to be measured, height and width
    of a tile.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; it must lie above 0 and below 1")
    if device.type == "cpu":
        return torch.float32, threshold - SLACK[torch.float32], 512, 2048
    return torch.float16, threshold - SLACK[torch.float16], 2048, 32768


def _too_many(threshold: float) -> None:
    fail(
        f"cosine {threshold:g} is too low: at that threshold pictures have hundreds of "
        f"near-duplicates each, or many millions in "
        "all. Give a higher one (0.94 and above are usual), or leave --embed out."
    )


def _norms(features: np.ndarray) -> np.ndarray:
    """Lengths of the rows, float64 (count,); 1 for a row of zeros."""
    if not len(features):
        return np.ones(0)
    rows = _tensor(features)  # torch widens float16 several times as fast as numpy
    norms = torch.cat(
        [
            rows[a : a + CHUNK].float().square().sum(dim=1, dtype=torch.float64)
            for a in range(0, len(rows), CHUNK)
        ]
    )
    return torch.where(norms > 0, norms.sqrt(), 1.0).numpy()


def _short_rows(
    features: np.ndarray, norms: np.ndarray, threshold: float, bound: float, limit: int
) -> np.ndarray:
    """Project the rows on the number of principal directions that makes the whole search cheapest,
    estimated on a random sample.

    Returns:
        float16 (count, directions + 1), or the features themselves.

    Raises:
        SystemExit: where the sample alone shows that there are far too many pairs.
    """
    count, dim = features.shape
    if count < REDUCE_FROM:
        return features
    sample = np.sort(np.random.default_rng(0).choice(count, min(count, SAMPLE), replace=False))
    rows = _unit(features[sample], norms[sample])
    others = ~np.eye(len(rows), dtype=bool)
    products = (rows @ rows.T)[others]
    if (products >= threshold).mean() * count * (count - 1) / 2 > 4 * limit:
        _too_many(threshold)
    basis = np.linalg.eigh((rows.T @ rows).astype(np.float64))[1][:, ::-1].astype(
        np.float32
    )  # largest first
    # measuring a pair in full costs as much as multiplying it in some 100,000 directions
    costs = {dim: dim + 1e5 * (products >= bound).mean()}
    for directions in (d for d in DIRECTIONS if d < dim):
        part = _cut(rows, basis[:, :directions])
        costs[directions] = directions + 1e5 * ((part @ part.T)[others] >= bound).mean()
    best = min(costs, key=costs.__getitem__)
    if best == dim:
        return features
    short = np.empty((count, best + 1), np.float16)
    for a in range(0, count, CHUNK):
        short[a : a + CHUNK] = _cut(
            _unit(features[a : a + CHUNK], norms[a : a + CHUNK]), basis[:, :best]
        )
    return short


def _unit(rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
    return _tensor(rows).float().numpy() / norms[:, None].astype(np.float32)


def _cut(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Rows float32 (n, dim) -> their coordinates along the basis and the norm of the residual,
    float32 (n, directions + 1).
    """
    part = rows @ basis
    rest = np.square(rows).sum(axis=1) - np.square(part).sum(axis=1)
    return np.column_stack(
        [part, np.sqrt(np.maximum(rest, 0) + 2e-6)]
    )  # rounded up: the bound must hold


def _reaching(products: Tensor, bound: float, row: int, column: int) -> np.ndarray:
    """Pairs, int64 (n, 2), of a tile of products that reach the bound."""
    lines = (
        (products.amax(dim=1) >= bound).nonzero().squeeze(1)
    )  # most rows hold none: much quicker than nonzero of all
    near = (products[lines] >= bound).nonzero()
    return torch.stack([lines[near[:, 0]] + row, near[:, 1] + column], dim=1).cpu().numpy()


def _measured(
    left: np.ndarray,
    left_norms: np.ndarray,
    right: np.ndarray,
    right_norms: np.ndarray,
    pairs: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """Those of the pairs (row of the left, row of the right), in ascending order, whose cosine
    reaches the threshold.
    """
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    reach, one, other = np.zeros(len(pairs), bool), _tensor(left), _tensor(right)
    for a in range(0, len(pairs), CHUNK):
        i, j = pairs[a : a + CHUNK].T
        products = (
            one[torch.from_numpy(i)].float() * other[torch.from_numpy(j)].float()
        )  # exact: two float16 fit a float32
        reach[a : a + CHUNK] = (
            products.sum(dim=1, dtype=torch.float64).numpy() / (left_norms[i] * right_norms[j])
            >= threshold
        )
    return pairs[reach]


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # a read-only map; nothing is written to it here
        return torch.from_numpy(array)
