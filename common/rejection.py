"""Strangers: which scores refuse them, above what, and what that promise is worth. No torch.

Three bars stand one behind the other: not a plant; a plant, but of no species we know; the species, but no disease we know.
Each compares a weighted sum of the model's scores with a threshold that is fitted on val plants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from common.bounds import at_least, claims, pictures_needed, tail_quantile
from common.console import table
from common.metrics import auroc

Scores = Mapping[str, np.ndarray]  # {name: float (N,)}, larger = stranger

LOST = 0.01  # share of plants that the bars for plant and species may refuse together
AIM = 0.7  # of that share is aimed at: a few hundred pictures only estimate it
KEEP_REJECTED = 0.98  # of the strangers, when a bar is raised to spare poor photos of plants
POOR_LOST = 0.05  # share of the poor photos of plants that may be refused, where strangers leave the room
DISEASE_LOST = 0.02  # share of plants that the bar for diseases may keep from an answer in full
ENOUGH = 30  # pictures of strangers, from which on they choose the score
WANTED = (0.90, 0.95, 0.99)
# without pictures of strangers
DEFAULTS = {"plant": ("mahalanobis", "layers"), "species": ("gen", "mahalanobis"), "disease": ("mahalanobis_leaf",)}


def columns(ood: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Name the columns of a model's scores: float (N, K) -> {name: (N,)}."""
    return {name: ood[:, i].astype(np.float64) for i, name in enumerate(names)}


# region fitting


def fit(plants: Scores, *, strangers: Scores | None = None, unknown_species: Scores | None = None,
        unknown_diseases: Scores | None = None, poor: Mapping[str, Scores] | None = None) -> dict[str, Any]:
    """Fit the three bars on val.

    The bar for plants is put where an estimated `AIM` of `LOST` of val plants lie above it, and the bar for species where the rest
    of `LOST` is used up. A bar is raised for `poor` photos of plants as far as `KEEP_REJECTED` of the strangers stay refused.
    Strangers choose among the scores and their sums (each score in units of its spread over plants); without them, or with too
    few, the sums are those of `DEFAULTS`.

    Args:
        plants: scores of val plants.
        strangers, unknown_species, unknown_diseases: scores of pictures of no plant, of plants of other species, and of known
            species with other diseases, none of which the figures of a report are taken from; None where there are none.
        poor: per kind of fault, scores of `poor_photos.shifted` copies of val.

    Returns:
        {"score", "weights", "threshold", "quantiles", "species", "disease"} as bundle.json has it, and "val": figures on val.
    """
    shown = {"plant": strangers, "species": unknown_species, "disease": unknown_diseases}
    shown = {name: values if values and len(next(iter(values.values()))) else None for name, values in shown.items()}
    poor, bars, figures = poor or {}, {}, {}
    for name, share in (("plant", AIM * LOST / 2), ("species", AIM * LOST), ("disease", DISEASE_LOST)):
        weights, found = _choose(name, plants, shown[name], share)
        values = value(weights, plants)
        before = np.zeros(len(values), bool) if name != "species" else beyond(bars["plant"], plants)
        bar = {"score": "+".join(weights), "weights": weights, "quantiles": [float(q) for q in np.quantile(values, np.linspace(0, 1, 101))]}
        strange = None if shown[name] is None else value(weights, shown[name])
        # what the bar for plants has not used up, the one for species may lose
        bar["threshold"] = _threshold(values[~before], strange, [value(weights, scores) for scores in poor.values()],
                                      max(share - before.mean(), share / 4))
        bars[name] = bar
        figures[name] = {"lost": float(beyond(bar, plants).mean()), "ranking": found}
        if strange is not None:
            figures[name] |= {"rejected": float((strange > bar["threshold"]).mean()), "strangers": len(strange)}
    fitted = {**bars["plant"], "species": bars["species"], "disease": bars["disease"]}
    lost = refused(fitted, plants)
    figures |= {"plants": len(lost), "plants_lost": float(lost.mean()), "plants_lost_at_most": 1 - at_least(int((~lost).sum()), len(lost)),
                "poor_lost": {kind: float(refused(fitted, scores).mean()) for kind, scores in poor.items()}}
    return {**fitted, "val": figures}


def value(weights: Mapping[str, float], scores: Scores) -> np.ndarray:
    """The weighted sum of scores: float64 (N,)."""
    return sum((weight * np.asarray(scores[name], np.float64) for name, weight in weights.items()), start=np.float64(0))


def beyond(bar: Mapping[str, Any], scores: Scores) -> np.ndarray:
    """Whether pictures lie beyond a bar: bool (N,). What is no number does."""
    return ~(value(bar["weights"], scores) <= bar["threshold"])


def refused(fitted: Mapping[str, Any], scores: Scores) -> np.ndarray:
    """Whether the bar for plants or the one for species refuses pictures: bool (N,)."""
    return beyond(fitted, scores) | (beyond(fitted["species"], scores) if fitted["species"] else False)


def _choose(name: str, plants: Scores, strangers: Scores | None, share: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Choose a sum of scores: its weights, and per candidate its AUROC and the share of strangers it refuses."""
    spread = {key: max(float(np.std(values)), 1e-12) for key, values in plants.items()}

    def weigh(keys: Iterable[str]) -> dict[str, float]:
        return {key: 1.0 / spread[key] for key in keys}

    if strangers is None or len(next(iter(strangers.values()))) < ENOUGH:
        return weigh([key for key in DEFAULTS[name] if key in plants] or plants), {}
    ranking: dict[str, Any] = {}
    for count in range(1, len(plants) + 1):
        for keys in combinations(plants, count):
            known, strange = value(weigh(keys), plants), value(weigh(keys), strangers)
            ranking["+".join(keys)] = {"auroc": auroc(known, strange), "rejected": float((strange > tail_quantile(known, share)).mean())}
    best = max(ranking, key=lambda key: (round(ranking[key]["rejected"], 2), ranking[key]["auroc"], -len(key)))
    return weigh(best.split("+")), ranking


def _threshold(plants: np.ndarray, strangers: np.ndarray | None, poor: Sequence[np.ndarray], share: float) -> float:
    threshold = tail_quantile(plants, share)
    if strangers is not None and poor:
        wish = max(float(np.quantile(values, 1 - POOR_LOST)) for values in poor)
        room = float(np.quantile(strangers, 1 - KEEP_REJECTED, method="lower"))
        threshold = max(threshold, min(wish, float(np.nextafter(room, -np.inf))))
    return threshold


# endregion

# region judging


def judge(fitted: Mapping[str, Any], plants: Scores, strangers: Mapping[str, Scores], poor: Mapping[str, Scores] | None = None,
          lost: float = LOST) -> dict[str, Any]:
    """Measure fitted bars on test.

    Args:
        fitted: as `fit` returns it.
        plants: scores of test plants.
        strangers: scores per kind; pictures of known species with other diseases do not belong here.
        poor: per kind of fault, scores of `poor_photos.shifted` copies of test.
        lost: share of plants.

    Returns:
        shares 0..1 over all strangers: auroc of the bar for plants; plants_lost and rejected, by that bar or the one for species;
        rejected_at_1pct_plants_lost, where its threshold is put at `lost` of these plants; precision (share of refused pictures
        that are strangers) and accepted_precision (share of accepted pictures that are plants), both with `_at_least`, which
        they exceed with 95 % confidence; plants_lost_at_most likewise; n_plants, n_strangers; kinds: {kind: auroc, auroc_species
        (of the bar for species), rejected, rejected_at_1pct_plants_lost, n}; poor_lost: {fault: share refused}; thresholds:
        `thresholds_for` of the bar for plants. Without strangers only what concerns plants.
    """
    known, turned = value(fitted["weights"], plants), refused(fitted, plants)
    kept = int((~turned).sum())
    judged: dict[str, Any] = {
        "n_plants": len(known), "plants_lost": float(turned.mean()), "plants_lost_at_most": 1 - at_least(kept, len(known)),
        "poor_lost": {kind: float(refused(fitted, scores).mean()) for kind, scores in (poor or {}).items()}}
    strange = {kind: value(fitted["weights"], scores) for kind, scores in strangers.items() if len(next(iter(scores.values())))}
    if not strange:
        return judged
    limit, caught = highest_kept(known, lost), {kind: refused(fitted, strangers[kind]) for kind in strange}
    second = value(fitted["species"]["weights"], plants)
    near = {kind: value(fitted["species"]["weights"], strangers[kind]) for kind in strange}
    judged["kinds"] = {kind: {"auroc": auroc(known, values), "auroc_species": auroc(second, near[kind]),
                              "rejected": float(caught[kind].mean()), "rejected_at_1pct_plants_lost": float((values > limit).mean()),
                              "n": len(values)} for kind, values in strange.items()}
    others, all_caught = np.concatenate([*strange.values()]), np.concatenate([*caught.values()])
    right, wrong, through = int(all_caught.sum()), int(turned.sum()), int((~all_caught).sum())
    return judged | {
        "n_strangers": len(others), "auroc": auroc(known, others), "rejected": float(all_caught.mean()),
        "rejected_at_1pct_plants_lost": float((others > limit).mean()),
        "precision": right / max(1, right + wrong), "precision_at_least": at_least(right, right + wrong),
        "accepted_precision": kept / max(1, kept + through), "accepted_precision_at_least": at_least(kept, kept + through),
        "thresholds": thresholds_for(known, others)}


def highest_kept(values: np.ndarray, lost: float = LOST) -> float:
    """The lowest threshold above which at most `lost` of the values lie: it is one of them."""
    ordered = np.sort(values)
    return float(ordered[max(0, len(ordered) - 1 - int(np.floor(lost * len(ordered))))])


def thresholds_for(plants: np.ndarray, strangers: np.ndarray, wanted: Sequence[float] = WANTED) -> list[dict[str, Any]]:
    """Find the lowest threshold whose refusals are strangers with a wanted precision, by its Clopper-Pearson bound at 95 %.

    Args:
        plants, strangers: float (N,), (M,), a score; the precision is that of this mixture of both.
        wanted: shares.

    Returns:
        per wanted share: precision (the wanted one), threshold (None where no threshold reaches it), refused, wrong (plants among
        them), bound, rejected (share of strangers), plants_lost; and needed, how many refused pictures such a claim takes
        with so many plants among them (with none, where no threshold reaches it).
    """
    levels = np.unique(np.append(np.quantile(plants, np.linspace(0.5, 1, 201), method="higher"), strangers.min()))
    rows = []
    for share in wanted:
        row: dict[str, Any] = {"precision": share, "threshold": None, "needed": pictures_needed(share)}
        for level in levels:
            wrong, right = int((plants > level).sum()), int((strangers > level).sum())
            if claims(right, right + wrong, share):
                row |= {"threshold": float(level), "refused": right + wrong, "wrong": wrong, "bound": at_least(right, right + wrong),
                        "rejected": right / len(strangers), "plants_lost": wrong / len(plants), "needed": pictures_needed(share, wrong)}
                break
        rows.append(row)
    return rows


# endregion


def report_lines(fitted: Mapping[str, Any], val: Mapping[str, Any], judged: Mapping[str, Any]) -> list[str]:
    """Lay out what was fitted and what it is worth, for report.md.

    Args:
        fitted: the bars, as bundle.json has them.
        val: the "val" that `fit` returned.
        judged: as `judge` returns it.
    """
    what = {"plant": "not a plant", "species": "a plant of no species we know", "disease": "no disease we know"}
    rows = [(what[name], bar["score"], f"{bar['threshold']:.3f}", f"{val[name]['lost']:.2%}",
             f"{val[name]['rejected']:.1%} of {val[name]['strangers']}" if "rejected" in val[name] else "none to check with")
            for name, bar in (("plant", fitted), ("species", fitted["species"]), ("disease", fitted["disease"]))]
    lines = [table(rows, ("refuses", "scores", "above", "val plants beyond", "val strangers beyond")), "",
             f"Plants of test refused as strangers: {judged['plants_lost']:.2%} of {judged['n_plants']}, with 95 % confidence at most "
             f"{judged['plants_lost_at_most']:.2%}.", ""]
    if judged["poor_lost"]:
        lines += [table([(kind, f"{share:.1%}") for kind, share in judged["poor_lost"].items()], ("poor photos of plants", "refused")), ""]
    if "kinds" not in judged:
        return [*lines, "There are no pictures of strangers to measure it with; 01_reorganize.py takes them with --not-plants.", ""]
    kinds = [(kind, f"{row['n']}", f"{row['auroc']:.4f}", f"{row['auroc_species']:.4f}", f"{row['rejected']:.1%}",
              f"{row['rejected_at_1pct_plants_lost']:.1%}") for kind, row in judged["kinds"].items()]
    lines += [table(kinds, ("strangers", "pictures", "AUROC", "AUROC, species", "refused", "at 1 % of plants lost")), "",
              f"Of the pictures refused {judged['precision']:.1%} are strangers (with 95 % confidence at least "
              f"{judged['precision_at_least']:.1%}); of those accepted {judged['accepted_precision']:.1%} are plants (at least "
              f"{judged['accepted_precision_at_least']:.1%}), in this mixture of {judged['n_plants']} plants and {judged['n_strangers']} "
              "strangers.", "",
              table([(f"{row['precision']:.0%}", *(("too few pictures", "-", "-") if row["threshold"] is None else
                                                   (f"{row['threshold']:.3f}", f"{row['rejected']:.1%}", f"{row['plants_lost']:.2%}")),
                      f"{row['needed']}") for row in judged["thresholds"]],
                    ("wanted precision of refusals", "threshold", "strangers refused", "plants lost", "refusals the claim takes")), ""]
    return lines
