"""What is fitted on val after training: temperatures, the threshold for strangers, the bars of the roll-up."""

from __future__ import annotations

import numpy as np

from common.decide import joint_leaf, species_probabilities
from common.metrics import auroc
from common.taxonomy import ClassTree


def fit_temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """Find the temperature with the smallest negative log-likelihood (Guo et al. 2017), by golden section over its log.

    Args:
        logits: float (N, C); padding columns hold very negative values.
        target: int (N,).

    Returns:
        0.05 to 20; 1.0 where there is nothing to fit.
    """
    if len(target) == 0 or logits.shape[1] < 2:
        return 1.0
    logits, rows = logits.astype(np.float64), np.arange(len(target))

    def nll(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        top = scaled.max(1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(1)) - scaled[rows, target]).mean())

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if nll(a) < nll(b) else (a, high)
    return float(np.exp((low + high) / 2))


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over bins of equal count: mean gap between confidence and accuracy, 0..1.

    Args:
        confidence: float (N,), probability of the answer given.
        right: bool (N,), whether it was right.
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    return float(sum(abs(confidence[p].mean() - right[p].mean()) * len(p) for p in parts) / len(order))


def fit_rejection(scores: dict[str, np.ndarray], strangers: dict[str, np.ndarray] | None, lost: float = 0.007,
                  keep_rejected: float = 0.98) -> dict[str, object]:
    """Choose the score and the threshold above which a picture is refused as a stranger.

    Without pictures of strangers the score is the distance over several layers, and the threshold the quantile that loses
    `lost` of plants: less than the promised 1 %, because a few hundred pictures only estimate it. With them, the score is
    the one with the best AUROC on val, and the threshold moves up as far as `keep_rejected` of the strangers stay refused:
    a margin for plants that val did not hold.

    Args:
        scores: {name: float (N,)} of val plants, larger = stranger.
        strangers: {name: float (M,)} of val pictures of no plant, or None.
        lost: share of plants that may be refused.
        keep_rejected: share of strangers to refuse.

    Returns:
        {"score", "threshold", "quantiles"} as bundle.json has it, and "val": figures on val.
    """
    names = list(scores)
    if strangers:
        ranking = {name: auroc(scores[name], strangers[name]) for name in names}
        score = max(ranking, key=lambda name: (ranking[name], -names.index(name)))
    else:
        ranking, score = {}, names[-1]
    plants = scores[score].astype(np.float64)
    threshold = tail_quantile(plants, lost)
    if strangers:
        threshold = max(threshold, float(np.quantile(strangers[score], 1 - keep_rejected, method="lower")) - 1e-6)
    figures = {"plants_lost": float((plants > threshold).mean()), "auroc": ranking}
    if strangers:
        figures["strangers_rejected"] = float((strangers[score] > threshold).mean())
    return {"score": score, "threshold": threshold, "quantiles": [float(q) for q in np.quantile(plants, np.linspace(0, 1, 101))],
            "val": figures}


def tail_quantile(values: np.ndarray, share: float, tail: float = 0.1) -> float:
    """Estimate the value that a small share exceeds, from the excesses over the start of the upper tail.

    Peaks over threshold with exponential excesses (Pickands 1975, shape 0): far out, the order statistics of a few hundred
    pictures jump with single outliers, their mean excess does not.

    Args:
        values: float (N,).
        share: 0..1, below `tail`.
        tail: share of the values that the fit uses.

    Returns:
        the estimate; the largest value where there are fewer than 50.
    """
    ordered = np.sort(values)
    count = int(len(ordered) * tail)
    if count < 5:
        return float(ordered[-1])
    start = ordered[-count - 1]
    return float(start + (ordered[-count:] - start).mean() * np.log(tail / share))


def judge_rejection(rejection: dict[str, object], scores: dict[str, np.ndarray], strangers: dict[str, np.ndarray],
                    lost: float = 0.01) -> dict[str, float]:
    """Measure a fitted rejection on test.

    Returns:
        auroc; plants_lost, rejected, precision (share of refused pictures that are strangers) and accepted_precision (share of
        accepted pictures that are plants) at the fitted threshold; rejected_at_1pct_plants_lost, where the threshold is put at
        1 % of these plants; n_plants, n_strangers. Fractions are 0..1.
    """
    plants, others = scores[str(rejection["score"])], strangers[str(rejection["score"])]
    refused, caught = plants > rejection["threshold"], others > rejection["threshold"]
    at_lost = np.sort(plants)[max(0, len(plants) - 1 - int(np.floor(lost * len(plants))))]
    return {"auroc": auroc(plants, others), "plants_lost": float(refused.mean()), "rejected": float(caught.mean()),
            "rejected_at_1pct_plants_lost": float((others > at_lost).mean()),
            "precision": float(caught.sum() / max(1, caught.sum() + refused.sum())),
            "accepted_precision": float((~refused).sum() / max(1, (~refused).sum() + (~caught).sum())),
            "n_plants": len(plants), "n_strangers": len(others)}


def fit_rollup(probabilities: np.ndarray, leaf: np.ndarray, tree: ClassTree, precision: float = 0.95) -> dict[str, float]:
    """Find the least probabilities at which answers given are right as often as wanted, on val.

    First the leaf: the lowest bar above which leaf answers reach the precision. Then, among pictures below it, the species.

    Args:
        probabilities: float (N, leaves).
        leaf: int (N,), true leaves.
        precision: wanted share of right answers.

    Returns:
        {"leaf", "species", "precision"}; a bar of 2 means no answer at that level is good enough.
    """
    best = joint_leaf(probabilities, tree)
    confidence = probabilities[np.arange(len(leaf)), best]
    leaf_bar = _lowest_bar(confidence, best == leaf, precision)
    below = confidence < leaf_bar
    by_species = species_probabilities(probabilities[below], tree)
    right = by_species.argmax(1) == tree.leaf_species[leaf[below]]
    return {"leaf": leaf_bar, "species": _lowest_bar(by_species.max(1, initial=0.0), right, precision), "precision": precision}


def _lowest_bar(confidence: np.ndarray, right: np.ndarray, precision: float) -> float:
    if len(right) == 0:
        return 0.5
    order = np.argsort(-confidence, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    ordered = confidence[order]
    last_of_ties = np.append(ordered[1:] < ordered[:-1], True)  # a bar lets all equals in, or none
    good = np.nonzero((share >= precision) & last_of_ties)[0]
    if len(good) == 0:
        return 2.0
    return 0.0 if good[-1] == len(order) - 1 else float(ordered[good[-1]])
