"""When the browser should ask the server: a small logistic rule, fitted on val to "the server is
right and the browser is not".

It goes by what the browser knows once it has answered: how sure it is of the class, how far the
best species and the best disease lie ahead of the next, the entropy score, and which species it
sees. The species' own terms are shrunk hard towards none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.decide import joint_class, species_probabilities

SIGNALS = ("confidence", "species_margin", "disease_margin", "gen")
SPREAD, SPECIES_SPREAD = (
    2.0,
    0.5,
)  # prior deviation of a signal's weight, and of a species' own term, in log-odds
FOLDS = 5
WITHIN = 0.005  # the hybrid's accuracy may lie so far below the server's
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Rule:
    """P(the server is right and the browser is not) = logistic(intercept + weights x (signals -
    mean) / spread + species term).

    weights, mean, spread: one value per name of `SIGNALS`; species: one value per species;
    threshold: photos with at least this probability are sent, None sends none.
    """

    intercept: float
    weights: tuple[float, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    species: tuple[float, ...]
    threshold: float | None = None

    def score(self, values: np.ndarray, species: np.ndarray) -> np.ndarray:
        """Signals float (N, 4), predicted species int (N,) -> float64 (N,), 0..1."""
        scaled = (values - np.array(self.mean)) / np.array(self.spread)
        return _logistic(
            self.intercept + scaled @ np.array(self.weights) + np.array(self.species)[species]
        )

    def sends(self, values: np.ndarray, species: np.ndarray) -> np.ndarray:
        """Whether each photo goes to the server: arguments as for `score`, bool (N,)."""
        return (
            np.zeros(len(values), bool)
            if self.threshold is None
            else self.score(values, species) >= self.threshold
        )

    def to_json(self) -> dict[str, Any]:
        """The rule as plain values; six digits, and what is read back is the same rule."""
        return {"signals": SIGNALS, **asdict(self)}


def from_json(data: Mapping[str, Any]) -> Rule:
    """Read `Rule.to_json`. Raises ValueError, KeyError or TypeError where it is none."""
    if tuple(data["signals"]) != SIGNALS:
        raise ValueError(
            f"its deferral rule goes by {', '.join(data['signals'])}; this program knows "
            f"{', '.join(SIGNALS)}"
        )
    four = {name: tuple(float(v) for v in data[name]) for name in ("weights", "mean", "spread")}
    if any(len(values) != len(SIGNALS) for values in four.values()):
        raise ValueError("its deferral rule needs one weight, mean and spread per signal")
    return Rule(
        float(data["intercept"]),
        species=tuple(float(v) for v in data["species"]),
        threshold=None if data["threshold"] is None else float(data["threshold"]),
        **four,
    )


def signals(
    probabilities: np.ndarray, gen: np.ndarray, tree: ClassTree
) -> tuple[np.ndarray, np.ndarray]:
    """Compute what the rule goes by.

    Args:
        probabilities: float (N, classes), joint; of species other than the best class's only the
            sums matter.
        gen: float (N,), the entropy score.
        tree: the classes.

    Returns:
        float64 (N, 4): log-odds of the best class, P(its species) - P(the best other species),
        P(its disease given the species) - P(the next one) or 1 where the species has one, and gen;
        int64 (N,), the best class's species.
    """
    probabilities, rows = np.asarray(probabilities, np.float64), np.arange(len(probabilities))
    best = joint_class(probabilities, tree)
    species = tree.class_species[best]
    sums = species_probabilities(probabilities, tree)
    own = sums[rows, species]
    others = sums.copy()
    others[rows, species] = 0.0
    confidence = np.clip(probabilities[rows, best], 1e-6, 1 - 1e-6)
    ahead = np.ones(len(rows))
    for s in np.unique(species):
        start, stop = tree.offsets[s], tree.offsets[s + 1]
        if stop - start > 1:
            mine = species == s
            top = np.sort(probabilities[mine, start:stop], axis=1)[:, -2:]
            ahead[mine] = (top[:, 1] - top[:, 0]) / np.maximum(own[mine], 1e-12)
    return np.stack(
        [
            np.log(confidence / (1 - confidence)),
            own - others.max(axis=1),
            ahead,
            np.asarray(gen, np.float64),
        ],
        axis=1,
    ), species


def fit(values: np.ndarray, species: np.ndarray, gain: np.ndarray, num_species: int) -> Rule:
    """Fit the rule by Newton's method to the mode of its posterior; it has no threshold yet.

    Args:
        values, species: of `signals`.
        gain: bool (N,), the server is right and the browser is not.
        num_species: of the tree.

    Returns:
        the rule; where nothing, or everything, is gained, only its intercept differs from 0.
    """
    mean, spread = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    design = np.zeros((len(values), 1 + len(SIGNALS) + num_species))
    design[:, 0], design[:, 1 : 1 + len(SIGNALS)] = 1.0, (values - mean) / spread
    design[np.arange(len(values)), 1 + len(SIGNALS) + species] = 1.0
    pull = np.concatenate(
        [[1e-2], np.full(len(SIGNALS), SPREAD**-2), np.full(num_species, SPECIES_SPREAD**-2)]
    )
    beta = np.zeros(design.shape[1])

    def cost(b: np.ndarray) -> float:
        z = design @ b
        return float(np.logaddexp(0.0, z).sum() - z[gain].sum() + 0.5 * (pull * b * b).sum())

    for _ in range(50):
        p = _logistic(design @ beta)
        curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag(pull)
        step = np.linalg.solve(curvature, design.T @ (p - gain) + pull * beta)
        size = 1.0
        while cost(beta - size * step) > cost(beta) and size > 1e-4:
            size /= 2
        beta = beta - size * step
        if np.abs(size * step).max() < 1e-7:
            break
    return Rule(
        _short(beta[:1])[0],
        _short(beta[1 : 1 + len(SIGNALS)]),
        _short(mean),
        _short(spread),
        _short(beta[1 + len(SIGNALS) :]),
    )


def hybrid_accuracy(order: np.ndarray, browser: np.ndarray, server: np.ndarray) -> np.ndarray:
    """Accuracy where the first 0, 1 ... N photos of an order are sent.

    Args:
        order: int (N,), photos, the first to be sent first.
        browser, server: bool (N,), whether each answered right.

    Returns:
        float64 (N + 1,), 0..1.
    """
    change = server[order].astype(np.int64) - browser[order]
    return (browser.sum() + np.concatenate([[0], np.cumsum(change)])) / max(len(browser), 1)


def fit_deferral(
    values: np.ndarray,
    species: np.ndarray,
    browser: np.ndarray,
    server: np.ndarray,
    num_species: int,
) -> Rule:
    """Fit rule and threshold: the smallest share sent at which the hybrid's accuracy comes within
    half a point of the server's.

    A rule looks better on the photos it was fitted to than on others, so the share is chosen by
    scores of five rules, each of a photo that its rule has not seen; the threshold is then what
    sends that share by the rule of all.

    Args:
        values, species: of `signals`, on val, in the split's order (neighbours are of one class:
            folds are taken in turn).
        browser, server: bool (N,), whether each answered right.

    Returns:
        the rule; its threshold is None where the browser alone is as good, or where there are under
        10 photos.
    """
    gain = server & ~browser
    rule = fit(values, species, gain, num_species)
    if len(gain) < 2 * FOLDS:
        return rule
    unseen = np.empty(len(gain))
    for fold in range(FOLDS):
        out = np.arange(len(gain)) % FOLDS == fold
        unseen[out] = fit(values[~out], species[~out], gain[~out], num_species).score(
            values[out], species[out]
        )
    reached = (
        hybrid_accuracy(np.argsort(-unseen, kind="stable"), browser, server)
        >= server.mean() - WITHIN - 1e-12
    )
    count = int(np.argmax(reached))  # all sent is the server itself, so one is reached
    if count == 0:
        return rule
    threshold = float(np.sort(rule.score(values, species))[-count])
    # rounded down, so that the photo it was taken from is sent by the rule as it is written
    return replace(rule, threshold=float(np.floor(threshold * 1e9) / 1e9))


def judge_deferral(
    rule: Rule, values: np.ndarray, species: np.ndarray, browser: np.ndarray, server: np.ndarray
) -> dict[str, Any]:
    """Measure a rule on a split it was not fitted on.

    Returns:
        browser, server, hybrid: accuracies at the rule's threshold; sent: share of photos sent;
        saved: share of the browser's mistakes that the server would mend and that are sent; n;
        by_share: for each of `SHARES` the hybrid's accuracy by the rule, by lowest confidence
        alone, and the best any rule could do. Fractions are 0..1.
    """
    sends, gain = rule.sends(values, species), server & ~browser
    worth = server.astype(np.int64) - browser
    orders = {"rule": -rule.score(values, species), "confidence": values[:, 0], "best": -worth}
    curves = {
        name: hybrid_accuracy(np.argsort(key, kind="stable"), browser, server)
        for name, key in orders.items()
    }
    return {
        "n": len(browser),
        "browser": float(browser.mean()),
        "server": float(server.mean()),
        "hybrid": float(np.where(sends, server, browser).mean()),
        "sent": float(sends.mean()),
        "saved": float(sends[gain].mean()) if gain.any() else None,
        "by_share": [
            {
                "share": share,
                **{
                    name: float(curve[round(share * len(browser))])
                    for name, curve in curves.items()
                },
            }
            for share in SHARES
        ],
    }


def report_lines(val: Mapping[str, Any], test: Mapping[str, Any], rule: Rule) -> list[str]:
    """Lay out the hybrid for report.md: lines of Markdown, from `judge_deferral` on val and on
    test.
    """
    if rule.threshold is None:
        found = (
            "The browser alone is within half a point of the server on val: no photo needs to "
            "be sent."
        )
    else:
        found = (
            f"Sent where P(the server is right and the browser is not) >= {rule.threshold:.3f}, "
            f"chosen on val for a hybrid within "
            f"half a point of the server ({val['sent']:.1%} sent, {val['hybrid']:.4f} against "
            f"{val['server']:.4f}). "
            f"On test it sends {test['sent']:.1%} and gives {test['hybrid']:.4f}, the browser "
            f"alone {test['browser']:.4f}, "
            f"the server alone {test['server']:.4f}."
        )
    rows = [
        (
            f"{row['share']:.0%}",
            f"{row['rule']:.4f}",
            f"{row['confidence']:.4f}",
            f"{row['best']:.4f}",
        )
        for row in test["by_share"]
    ]
    return [
        "### When the browser asks the server",
        "",
        found,
        "",
        table(
            rows,
            ("photos sent, of test", "right, by the rule", "by confidence alone", "best possible"),
        ),
        "",
    ]


def _short(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Values of six digits: the rule travels as text, and must be the same where it arrives."""
    return tuple(float(f"{v:.6g}") for v in values)


def _logistic(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * z))
