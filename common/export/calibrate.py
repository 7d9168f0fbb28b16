"""Temperatures fitted on val, and how far probabilities are from the shares that come true, before
and after.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.decide import species_probabilities
from common.export.answers import Answers, blocks
from common.train.metrics import TAIL_AT_MOST

LOG_T = np.linspace(
    math.log(0.05), math.log(20.0), 241
)  # where likelihoods are computed: steps of 2.5 %
SPREADS = np.geomspace(
    0.05, 2.0, 25
)  # standard deviations of log T between species that are weighed against none


@dataclass(frozen=True, eq=False)
class Temperatures:
    """What logits are divided by before softmax: `species` > 0, `disease` float64 (species,) > 0,
    one per species' diseases.

    disease_global: the one temperature of all diseases; spread: standard deviation of log T between
    species as val shows it, 0 where all get the global one.
    """

    species: float
    disease: np.ndarray
    disease_global: float = 1.0
    spread: float = 0.0

    def __str__(self) -> str:
        """As a line of the terminal."""
        return (
            f"species {self.species:.3f}, diseases {self.disease_global:.3f} "
            f"({self.disease.min():.3f} to {self.disease.max():.3f} by species)"
        )

    @classmethod
    def none(cls, tree: ClassTree) -> "Temperatures":
        """Temperatures of 1, which change nothing."""
        return cls(1.0, np.ones(tree.num_species))

    def to_json(self) -> dict[str, Any]:
        """Plain values: {"species": t, "disease": [t per species], "disease_global": t, "spread":
        s}.
        """
        return {
            "species": float(self.species),
            "disease": [float(t) for t in self.disease],
            "disease_global": float(self.disease_global),
            "spread": float(self.spread),
        }


# region fitting


def fit_temperature(logits: np.ndarray, target: np.ndarray) -> float:
    """Find the temperature with the smallest negative log-likelihood (Guo et al. 2017), by golden
    section over its log.

    Args:
        logits: float (N, C); padding columns hold very negative values.
        target: int (N,).

    Returns:
        0.05 to 20; 1.0 where there is nothing to fit.
    """
    if len(target) == 0 or logits.shape[1] < 2:
        return 1.0
    low, high, ratio = LOG_T[0], LOG_T[-1], (np.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (
            (low, b)
            if _nll(logits, target, a).mean() < _nll(logits, target, b).mean()
            else (a, high)
        )
    return float(np.exp((low + high) / 2))


def fit_temperatures(
    species_logits: np.ndarray, disease_logits: np.ndarray, class_idx: np.ndarray, tree: ClassTree
) -> Temperatures:
    """Fit one temperature for species and one per species for its diseases, shrunk towards their
    global one.

    Empirical Bayes (Robbins 1956; Efron and Morris 1975): log T of a species is drawn from a normal
    law about the log of the global temperature, its spread is the one with the greatest marginal
    likelihood (none at all is among them), and a species gets the mean of log T given its own
    pictures. So few pictures leave the global one in force, many override it, and where species do
    not differ by more than chance all get the same.

    Args:
        species_logits: float (N, species).
        disease_logits: float (N, widest), those of the true species; columns beyond its last hold
            very negative values.
        class_idx: int (N,), true classes.
        tree: the classes.

    Returns:
        temperatures from 0.05 to 20; 1.0 where there is nothing to fit; the global one for species
        without pictures.
    """
    species = tree.class_species[class_idx]
    several = np.diff(tree.offsets)[species] > 1
    owner, target = species[several], (class_idx - tree.offsets[species])[several]
    logits = np.asarray(disease_logits)[several]
    overall, spread = fit_temperature(logits, target), 0.0
    own = np.full(tree.num_species, overall)
    if len(owner):
        losses = np.stack(
            [np.bincount(owner, _nll(logits, target, x), tree.num_species) for x in LOG_T], axis=1
        )
        # (species, T); 1 everywhere where there is no picture
        likelihood = np.exp(losses.min(1, keepdims=True) - losses)
        priors = np.exp(-((LOG_T - math.log(overall)) ** 2) / (2 * SPREADS[:, None] ** 2))
        priors /= priors.sum(1, keepdims=True)
        at_global = np.array([np.interp(math.log(overall), LOG_T, row) for row in likelihood])
        with np.errstate(divide="ignore"):
            evidence = np.log(likelihood @ priors.T).sum(0)  # (spreads,)
            none = np.log(at_global).sum()
        best = int(evidence.argmax())
        if evidence[best] > none:
            weight, spread = likelihood * priors[best], float(SPREADS[best])
            shown = np.bincount(owner, minlength=tree.num_species) > 0
            own = np.where(shown, np.exp(weight @ LOG_T / weight.sum(1)), overall)
    return Temperatures(fit_temperature(species_logits, species), own, overall, spread)


def _nll(logits: np.ndarray, target: np.ndarray, log_t: float) -> np.ndarray:
    losses = np.empty(len(target))
    for rows in blocks(*logits.shape):  # where species are many, a table in float64 is gigabytes
        scaled = logits[rows].astype(np.float64) / np.exp(log_t)
        top, own = scaled.max(1), scaled[np.arange(len(scaled)), target[rows]]
        losses[rows] = top + np.log(np.exp(scaled - top[:, None]).sum(1)) - own
    return losses


# endregion

# region between logits and probabilities


def retemper(
    probabilities: np.ndarray, tree: ClassTree, old: Temperatures, new: Temperatures
) -> np.ndarray:
    """Move joint probabilities from one set of temperatures to another; exact but for what float32
    rounded to zero.

    A softmax at T to the power T, divided by its sum, is the softmax at 1.

    Args:
        probabilities: float (N, classes), made at `old`.

    Returns:
        float32 (N, classes) at `new`; rows sum to 1.
    """
    power = (np.asarray(old.disease) / np.asarray(new.disease))[tree.class_species]
    moved = np.empty(np.shape(probabilities), np.float32)
    for rows in blocks(*moved.shape):  # all at once would be gigabytes in float64
        part = np.asarray(probabilities[rows])
        by_species = np.maximum(species_probabilities(part, tree), 1e-300)
        inside = np.maximum(part / by_species[:, tree.class_species], 1e-30) ** power
        inside /= np.add.reduceat(inside, tree.offsets[:-1], axis=1)[:, tree.class_species]
        outside = np.maximum(by_species, 1e-30) ** (old.species / new.species)
        moved[rows] = inside * (outside / outside.sum(1, keepdims=True))[:, tree.class_species]
    return moved


# endregion

# region how well calibrated


def calibration_bins(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> np.ndarray:
    """Cut pictures into bins of equal count by confidence: float64 (bins, 3), count, mean
    confidence, share right.
    """
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(bins, len(order))) if len(order) else []
    return np.array(
        [(len(p), confidence[p].mean(dtype=np.float64), right[p].mean()) for p in parts]
    ).reshape(-1, 3)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error over bins of equal count: mean gap between confidence and
    accuracy, 0..1, as it is counted.

    Chance makes it too large: 589 pictures of a perfectly calibrated model at 91 % accuracy show
    0.024. See `calibration`.

    Args:
        confidence: float (N,), probability of the answer given.
        right: bool (N,), whether it was right.
    """
    count, sure, share = calibration_bins(confidence, right, bins).T
    return float((count * np.abs(sure - share)).sum() / count.sum()) if len(count) else float("nan")


def calibration(
    confidence: np.ndarray, right: np.ndarray, bins: int = 15, draws: int = 2000
) -> dict[str, float]:
    """Estimate the calibration error without the part that chance adds, with an interval.

    Kumar et al. 2019 (with p = 1): chance is taken to add as much to the count as a second dose of
    the same noise adds to what was counted. It removes about two fifths of the excess of a
    perfectly calibrated model and nearly all of it where the error is larger, so that it still errs
    upwards. The interval is the basic bootstrap over the noise of the bins, down to 0 where a
    perfectly calibrated model may well (97.5 %) be counted as high.

    Args:
        confidence, right, bins: as for `calibration_error`.
        draws: of the noise, for the interval; the same ones at every call.

    Returns:
        error (0..1, the estimate), low and high (95 %), counted (`calibration_error`), by_chance
        (what a perfectly calibrated model with these confidences would be counted as), confidence
        and accuracy (means), n. NaN without pictures.
    """
    if not len(confidence):
        return dict.fromkeys(
            ("error", "low", "high", "counted", "by_chance", "confidence", "accuracy"), float("nan")
        ) | {"n": 0}
    count, sure, share = calibration_bins(confidence, right, bins).T
    weight, gap = count / count.sum(), sure - share
    likely = (share * count + sure) / (
        count + 1
    )  # one more picture as expected, or bins without an error would have no noise
    noise = np.sqrt(np.maximum(likely * (1 - likely), 1e-12) / count)
    counted = float(weight @ np.abs(gap))

    def estimate(gaps: np.ndarray) -> np.ndarray:
        return np.maximum(2 * np.abs(gaps) @ weight - _mean_size(gaps, noise) @ weight, 0.0)

    dice = np.random.default_rng(0).standard_normal((draws, len(gap)))
    error, again = float(estimate(gap)), estimate(gap + noise * dice) - counted
    low, high = error - np.quantile(again, [0.975, 0.025])
    perfect = np.sqrt(np.maximum(sure * (1 - sure), 0.0) / count)
    if counted <= np.quantile(np.abs(perfect * dice) @ weight, 0.975):
        low = 0.0  # a perfectly calibrated model may well be counted as this
    return {
        "error": error,
        "low": max(0.0, float(low)),
        "high": max(error, float(high)),
        "counted": counted,
        "by_chance": float(weight @ perfect) * math.sqrt(2 / math.pi),
        "confidence": float(weight @ sure),
        "accuracy": float(weight @ share),
        "n": int(count.sum()),
    }


def _mean_size(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Mean of the absolute value of a normal variable."""
    ratio = mean / spread
    inside = np.vectorize(math.erf)(ratio / math.sqrt(2))
    return spread * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + mean * inside


def calibration_figures(
    answers: Answers, tree: ClassTree, class_sizes: np.ndarray, tail_at_most: int = TAIL_AT_MOST
) -> dict[str, dict[str, float]]:
    """Judge joint probabilities on a split.

    Args:
        answers: of a model.
        tree: the classes.
        class_sizes: int (classes,), pictures per class over all splits; classes with `tail_at_most`
            or fewer are the tail.

    Returns:
        {"all", "species", "tail"}: the class answer, the species answer, and the class answer on
        the pictures of the tail; each as `calibration` has it, and `nll`: mean -log P of the truth.
    """
    ranked, class_idx = answers.ranked, answers.class_idx
    every, tail = np.ones(len(class_idx), bool), np.asarray(class_sizes)[class_idx] <= tail_at_most
    by_class = (
        ranked.joint_p,
        ranked.joint == class_idx,
        -np.log(np.maximum(answers.true_p, 1e-12, dtype=np.float64)),
    )
    by_species = (
        ranked.species_p,
        ranked.species == tree.class_species[class_idx],
        answers.judged.species_nll,
    )
    figures = {}
    for name, (confidence, right, losses), part in (
        ("all", by_class, every),
        ("species", by_species, every),
        ("tail", by_class, tail),
    ):
        figures[name] = calibration(confidence[part], right[part])
        figures[name]["nll"] = float(losses[part].mean()) if part.any() else float("nan")
    return figures


def report_lines(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    temperatures: Temperatures,
    names: Sequence[str],
) -> list[str]:
    """Lay out calibration before and after temperature as lines of report.md; `names` are the
    species, for the extremes.
    """

    def cell(row: Mapping[str, float]) -> tuple[str, ...]:
        return (
            f"{row['nll']:.3f}",
            f"{row['error']:.2%} ({row['low']:.2%} to {row['high']:.2%})",
            f"{row['counted']:.2%}",
            f"{row['by_chance']:.2%}",
        )

    what = {"all": "class answer", "species": "species answer", "tail": "class answer, tail"}
    rows = [
        (label, when, *cell(figures[key]), figures[key]["n"])
        for key, label in what.items()
        for when, figures in (("before", before), ("after", after))
        if figures[key]["n"]
    ]
    own, diseases = temperatures.disease, f"diseases {temperatures.disease_global:.3f}"
    if temperatures.spread:
        diseases += (
            f" over all, per species {own.min():.3f} ({names[int(own.argmin())]}) to "
            f"{own.max():.3f} ({names[int(own.argmax())]})"
        )
    else:
        diseases += " for all species, which val does not tell apart"
    return [
        table(
            rows,
            (
                "on test",
                "temperature",
                "NLL",
                "calibration error (95 %)",
                "as counted",
                "of which by chance",
                "n",
            ),
        ),
        "",
        f"Temperatures: species {temperatures.species:.3f}; {diseases}. The calibration error "
        "has 15 bins of equal count and is freed of part of what chance adds; `by chance` is what "
        "a perfectly calibrated model would be counted as.",
    ]


# endregion
