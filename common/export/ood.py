"""Out-of-distribution (OOD) pictures: which scores reject them, above which thresholds, and what
that is worth. No torch.

Up to four thresholds: above the first a picture is rejected; the second says of a rejected picture
whether it shows a plant at all; above the third the disease is none we know, and the answer stays
at the species; above the fourth, where there is a second opinion, it is a plant of an unknown
species. Each compares a weighted sum of the model's scores with a value fitted on val.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.console import table
from common.export.bounds import at_least, claims, lower, pictures_needed, tail_quantile, upper
from common.train.metrics import auroc

Scores = Mapping[str, np.ndarray]  # {name: float (N,)}, larger = farther from train

MAX_FALSE_REJECTION = 0.01  # share of plants that may be rejected
# Share of that to aim at, as a few hundred pictures only estimate it; the second is used where OOD
# pictures show that this rejects enough of them.
TARGET_SHARE, TARGET_SHARE_WITH_OOD = 0.7, 0.5
MIN_REJECTED = 0.97  # of the OOD pictures, when the threshold is raised to spare poor photos
MAX_POOR_REJECTION = 0.05  # share of poor photos of plants, as far as `MIN_REJECTED` allows
CALLED_PLANT = 0.1  # share of pictures of no plant that may be called a plant, without other plants
MAX_DISEASE_REJECTION = 0.02  # share of plants whose answer may stay at the species
# shares of plants that may be lost to the second opinion beside these: the first is used, both are
# reported
SPECIES_LEVELS = (0.01, 0.05)
ENOUGH = 30  # OOD pictures, from which on they choose the score
WANTED = (0.90, 0.95, 0.99)
# Sums of scores, each in units of its spread over plants. Scores that need no OOD pictures are
# always part of the sum: they find the kinds that the learned score was not shown.
ALONE = {"gen": 1, "mahalanobis_class": 1, "layers": 1}
FEWER = {"gen": 1, "mahalanobis_class": 1}
REJECTION_SCORES = (
    ALONE,
    FEWER,
    *({**scores, "learned": weight} for weight in (1, 2) for scores in (ALONE, FEWER)),
)
PLANT_SCORES = ({"layers": 1}, {"learned": 1})
DISEASE_SCORES = (
    {"mahalanobis_class": 1},
    {"mahalanobis_class": 1, "layers": 1},
    {"mahalanobis_class": 1, "gen": 1},
)
SPECIES_SCORES = ({"pretrained": 1, "gen": 0.25}, {"pretrained": 1})


def columns(ood: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Name the columns of a model's scores: float (N, K) -> {name: (N,)}."""
    return {name: ood[:, i].astype(np.float64) for i, name in enumerate(names)}


# region fitting


def fit(
    plants: Scores,
    *,
    not_plants: Scores | None = None,
    unknown_species: Scores | None = None,
    unknown_diseases: Scores | None = None,
    poor: Mapping[str, Scores] | None = None,
) -> dict[str, Any]:
    """Fit the thresholds on val.

    The rejection threshold is put where an estimated `TARGET_SHARE` of `MAX_FALSE_REJECTION` of
    val plants lie above it; it is raised to `TARGET_SHARE_WITH_OOD` of it, and for `poor` photos of
    plants, as far as `MIN_REJECTED` of the OOD pictures stay rejected. OOD pictures choose the sum
    of scores; without them, or with too few, it is the first one. Where the model has a second
    opinion, its threshold is put where it takes `SPECIES_LEVELS` of val plants beyond those that
    the others take.

    Args:
        plants: scores of val plants.
        not_plants, unknown_species, unknown_diseases: scores of pictures of no plant, of plants of
            other species, and of known species with other diseases, none of which the figures of a
            report are taken from; None where there are none. A `learned` score must be that of a
            fit which has not seen the picture (`graph.cross_fitted`).
        poor: per kind of poor photo, scores of `pictures.shifted` copies of val.

    Returns:
        {"score", "weights", "threshold", "quantiles", "plant", "disease", "species"} as bundle.json
        has it, and "val": figures on val.
    """
    shown = {
        "not_plants": not_plants,
        "unknown_species": unknown_species,
        "unknown_diseases": unknown_diseases,
    }
    shown = {name: scores for name, scores in shown.items() if scores and _count(scores)}
    outside, poor = {k: v for k, v in shown.items() if k != "unknown_diseases"}, poor or {}
    others = {k: v for k, v in shown.items() if k == "unknown_diseases"}
    rule, ranking = _choose(REJECTION_SCORES, plants, outside, TARGET_SHARE * MAX_FALSE_REJECTION)
    rule["threshold"] = _threshold(
        value(rule["weights"], plants),
        [value(rule["weights"], scores) for scores in outside.values()],
        [value(rule["weights"], scores) for scores in poor.values()],
        TARGET_SHARE * MAX_FALSE_REJECTION,
    )
    disease, disease_ranking = _choose(DISEASE_SCORES, plants, others, MAX_DISEASE_REJECTION)
    disease["threshold"] = tail_quantile(value(disease["weights"], plants), MAX_DISEASE_REJECTION)
    fitted = {**rule, "plant": _plant_rule(plants, shown), "disease": disease}
    fitted["species"] = _species_rule(fitted, plants, shown)
    rejected = rejected_by(fitted, plants)
    figures = {
        "plants": len(rejected),
        "false_rejection_rate": float(rejected.mean()),
        "false_rejection_rate_at_most": 1 - at_least(int((~rejected).sum()), len(rejected)),
        "poor_rejected": _shares_beyond(fitted, poor),
        "rejected": _shares_beyond(fitted, outside) | _shares_beyond(disease, others),
        "shown": {name: _count(scores) for name, scores in shown.items()},
        "ranking": ranking,
        "disease_ranking": disease_ranking,
        "kept_at_species": float(beyond(disease, plants).mean()),
    }
    return {**fitted, "val": figures}


def _count(scores: Scores) -> int:
    return len(next(iter(scores.values())))


def value(weights: Mapping[str, float], scores: Scores) -> np.ndarray:
    """The weighted sum of scores: float64 (N,)."""
    return sum(
        (weight * np.asarray(scores[name], np.float64) for name, weight in weights.items()),
        start=np.float64(0),
    )


def beyond(rule: Mapping[str, Any], scores: Scores) -> np.ndarray:
    """Whether pictures lie beyond a threshold: bool (N,). NaN counts as beyond."""
    return ~(value(rule["weights"], scores) <= rule["threshold"])


def rejected_by(fitted: Mapping[str, Any], scores: Scores) -> np.ndarray:
    """Whether pictures are rejected, by the first threshold or by that of species: bool (N,)."""
    species = fitted.get("species")
    return beyond(fitted, scores) | (beyond(species, scores) if species else False)


def _shares_beyond(rule: Mapping[str, Any], kinds: Mapping[str, Scores]) -> dict[str, float]:
    return {kind: float(rejected_by(rule, scores).mean()) for kind, scores in kinds.items()}


def _choose(
    sums: Sequence[Mapping[str, float]],
    plants: Scores,
    ood: Mapping[str, Scores],
    share: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choose a sum of scores that are there: its entry but for the threshold, and per sum the
    AUROC and the share of OOD pictures it rejects, both means over the kinds.
    """
    has_classes = "mahalanobis_class" in plants  # a light model tells only species apart
    sums = [
        {key if has_classes else key.removesuffix("_class"): times for key, times in keys.items()}
        for keys in sums
    ]
    possible = [keys for keys in sums if all(key in plants for key in keys)] or [
        {key: 1 for key in plants}
    ]
    ood = {kind: scores for kind, scores in ood.items() if _count(scores) >= ENOUGH}
    ranking: dict[str, Any] = {}
    rules = [_rule(keys, plants) for keys in possible]
    for rule in rules if ood else []:
        known = value(rule["weights"], plants)
        others = [value(rule["weights"], scores) for scores in ood.values()]
        limit = tail_quantile(known, share)
        ranking[rule["score"]] = {
            "auroc": float(np.mean([auroc(known, values) for values in others])),
            "rejected": float(np.mean([(values > limit).mean() for values in others])),
        }

    def worth(rule: Mapping[str, Any]) -> tuple[float, float]:
        found = ranking[rule["score"]]
        return round(found["rejected"], 2), found["auroc"]

    return max(rules, key=worth) if ranking else rules[0], ranking


def _rule(keys: Mapping[str, float], plants: Scores) -> dict[str, Any]:
    weights = {key: times / max(float(np.std(plants[key])), 1e-12) for key, times in keys.items()}
    values = value(weights, plants)
    name = "+".join(key if times == 1 else f"{times} {key}" for key, times in keys.items())
    percentiles = [float(q) for q in np.quantile(values, np.linspace(0, 1, 101))]
    return {"score": name, "weights": weights, "threshold": 0.0, "quantiles": percentiles}


def _plant_rule(plants: Scores, shown: Mapping[str, Scores]) -> dict[str, Any] | None:
    """Fit the threshold between no plant and a plant of another species; None without any picture
    of either.
    """
    possible = [keys for keys in PLANT_SCORES if all(key in plants for key in keys)]
    shown = {k: v for k, v in shown.items() if k != "unknown_diseases"}
    if not possible or not shown:
        return None
    rule = _rule(possible[-1] if "not_plants" in shown else possible[0], plants)
    others = {name: value(rule["weights"], scores) for name, scores in shown.items()}
    if len(others) == 2:  # the level with the fewest mistakes, either kind weighing the same
        levels = np.unique(np.concatenate([*others.values()]))
        wrong = [
            (others["not_plants"] <= level).mean() + (others["unknown_species"] > level).mean()
            for level in levels
        ]
        rule["threshold"] = float(levels[int(np.argmin(wrong))])
    elif "not_plants" in others:
        rule["threshold"] = float(np.quantile(others["not_plants"], CALLED_PLANT))
    else:
        rule["threshold"] = max(
            tail_quantile(value(rule["weights"], plants), MAX_FALSE_REJECTION),
            float(np.quantile(others["unknown_species"], 0.9)),
        )
    return rule


def _species_rule(
    fitted: Mapping[str, Any], plants: Scores, shown: Mapping[str, Scores]
) -> dict[str, Any] | None:
    """Fit the threshold of the second opinion, None without one; `levels` {share of plants lost:
    threshold}.
    """
    if "pretrained" not in plants:
        return None
    known = {name: scores for name, scores in shown.items() if name == "unknown_species"}
    rule, _ = _choose(SPECIES_SCORES, plants, known, SPECIES_LEVELS[0])
    left = ~(beyond(fitted, plants) | beyond(fitted["disease"], plants))
    values = value(rule["weights"], plants)[left]
    thresholds = [tail_quantile(values, level / left.mean(), 0.05) for level in SPECIES_LEVELS]
    levels = {f"{level:g}": at for level, at in zip(SPECIES_LEVELS, thresholds, strict=True)}
    return rule | {"threshold": thresholds[0], "levels": levels}


def _threshold(
    plants: np.ndarray, ood: Sequence[np.ndarray], poor: Sequence[np.ndarray], share: float
) -> float:
    threshold = tail_quantile(plants, share)
    if ood:
        wish = max(
            [
                tail_quantile(plants, TARGET_SHARE_WITH_OOD * MAX_FALSE_REJECTION),
                *(float(np.quantile(values, 1 - MAX_POOR_REJECTION)) for values in poor),
            ]
        )
        room = min(float(np.quantile(values, 1 - MIN_REJECTED, method="lower")) for values in ood)
        threshold = max(threshold, min(wish, float(np.nextafter(room, -np.inf))))
    return threshold


# endregion

# region judging


def judge(
    fitted: Mapping[str, Any],
    plants: Scores,
    ood: Mapping[str, Scores],
    poor: Mapping[str, Scores] | None = None,
    rate: float = MAX_FALSE_REJECTION,
) -> dict[str, Any]:
    """Measure fitted thresholds on test.

    Args:
        fitted: as `fit` returns it.
        plants: scores of test plants.
        ood: scores per kind; pictures of known species with other diseases do not belong
            here.
        poor: per kind of poor photo, scores of `pictures.shifted` copies of test.
        rate: share of plants.

    Returns:
        shares 0..1 over all OOD pictures: auroc; false_rejection_rate and rejected;
        rejected_at_1pct_frr, where the threshold is put at `rate` of these plants;
        precision (share of rejected pictures that are OOD) and accepted_precision (share of
        accepted pictures that are plants), both with `_at_least`, which they exceed with 95 %
        confidence; false_rejection_rate_at_most likewise; n_plants, n_ood; kinds: {kind: auroc,
        rejected, rejected_at_1pct_frr, not_a_plant (share of the rejected that are called
        so), n}; poor_rejected: {kind of poor photo: share rejected}; thresholds: `thresholds_for`.
        Without OOD only what concerns plants.
    """
    known, turned = value(fitted["weights"], plants), rejected_by(fitted, plants)
    kept = int((~turned).sum())
    judged: dict[str, Any] = {
        "n_plants": len(known),
        "false_rejection_rate": float(turned.mean()),
        "false_rejection_rate_at_most": 1 - at_least(kept, len(known)),
        "poor_rejected": _shares_beyond(fitted, poor or {}),
    }
    scored = {
        kind: value(fitted["weights"], scores) for kind, scores in ood.items() if _count(scores)
    }
    if not scored:
        return judged
    limit = highest_kept(known, rate)
    caught = {kind: rejected_by(fitted, ood[kind]) for kind in scored}
    called = {kind: beyond(fitted["plant"] or fitted, ood[kind]) for kind in scored}
    judged["kinds"] = {
        kind: {
            "auroc": auroc(known, values),
            "rejected": float(caught[kind].mean()),
            "rejected_at_1pct_frr": float((values > limit).mean()),
            "not_a_plant": float(called[kind][caught[kind]].mean()) if caught[kind].any() else 0.0,
            "n": len(values),
        }
        for kind, values in scored.items()
    }
    others, all_caught = np.concatenate([*scored.values()]), np.concatenate([*caught.values()])
    right, wrong, through = int(all_caught.sum()), int(turned.sum()), int((~all_caught).sum())
    return judged | {
        "n_ood": len(others),
        "auroc": auroc(known, others),
        "rejected": float(all_caught.mean()),
        "rejected_at_1pct_frr": float((others > limit).mean()),
        "precision": right / max(1, right + wrong),
        "precision_at_least": at_least(right, right + wrong),
        "accepted_precision": kept / max(1, kept + through),
        "accepted_precision_at_least": at_least(kept, kept + through),
        "thresholds": thresholds_for(known, others),
    }


def highest_kept(values: np.ndarray, rate: float = MAX_FALSE_REJECTION) -> float:
    """The lowest threshold above which at most `rate` of the values lie: it is one of them."""
    ordered = np.sort(values)
    return float(ordered[max(0, len(ordered) - 1 - int(np.floor(rate * len(ordered))))])


def thresholds_for(
    plants: np.ndarray, ood: np.ndarray, wanted: Sequence[float] = WANTED
) -> list[dict[str, Any]]:
    """Find the lowest threshold whose rejections are OOD with a wanted precision, by its
    Clopper-Pearson bound at 95 %.

    Args:
        plants, ood: float (N,), (M,), a score; the precision is that of this mixture of both.
        wanted: shares.

    Returns:
        per wanted share: precision (the wanted one), threshold (None where no threshold reaches
        it), total (pictures rejected), wrong (plants among them), bound, rejected (share of OOD
        pictures), false_rejection_rate;
        and needed, how many rejected pictures such a claim takes with so many plants among them
        (with none, where no threshold reaches it).
    """
    levels = np.unique(
        np.append(np.quantile(plants, np.linspace(0.5, 1, 201), method="higher"), ood.min())
    )
    rows = []
    for share in wanted:
        row = {"precision": share, "threshold": None, "needed": pictures_needed(share)}
        for level in levels:
            wrong, right = int((plants > level).sum()), int((ood > level).sum())
            if claims(right, right + wrong, share):
                row |= {
                    "threshold": float(level),
                    "total": right + wrong,
                    "wrong": wrong,
                    "bound": at_least(right, right + wrong),
                    "rejected": right / len(ood),
                    "false_rejection_rate": wrong / len(plants),
                    "needed": pictures_needed(share, wrong),
                }
                break
        rows.append(row)
    return rows


# endregion


def report_lines(
    fitted: Mapping[str, Any], val: Mapping[str, Any], judged: Mapping[str, Any]
) -> list[str]:
    """Lay out what was fitted and what it is worth, for report.md.

    Args:
        fitted: the thresholds, as bundle.json has them.
        val: the "val" that `fit` returned.
        judged: as `judge` returns it.
    """
    names = {
        "not_plants": "pictures of no plant",
        "unknown_species": "plants of other species",
        "unknown_diseases": "other diseases",
    }
    shown = ", ".join(
        f"{val['rejected'][name]:.1%} of {count} {names[name]}"
        for name, count in val["shown"].items()
    )
    plant, disease = fitted["plant"], fitted["disease"]
    rules = [f"Pictures are rejected by {fitted['score']} above {fitted['threshold']:.3f}"]
    if plant:
        called = f"{plant['score']} above {plant['threshold']:.3f}"
        rules.append(f"a rejected picture is called no plant by {called}")
    rules.append(
        f"the answer stays at the species by {disease['score']} above {disease['threshold']:.3f} "
        f"({val['kept_at_species']:.1%} of val plants). Fitted on {val['plants']} val plants"
        + (f"; rejected there: {shown}." if shown else ", without OOD pictures.")
    )
    poor = [(kind, f"{share:.1%}") for kind, share in judged["poor_rejected"].items()]
    return [
        "; ".join(rules),
        "",
        f"False rejection rate on test: {judged['false_rejection_rate']:.2%} of "
        f"{judged['n_plants']}, with 95 % confidence at most "
        f"{upper(judged['false_rejection_rate_at_most'])}.",
        "",
        *([table(poor, ("poor photos of plants", "rejected")), ""] if poor else ()),
        *(_ood_lines(judged) if "kinds" in judged else _WITHOUT_OOD),
    ]


_WITHOUT_OOD = (
    "There are no OOD pictures to measure it with; 01_reorganize.py takes them with --not-plants.",
    "",
)
_KIND_TITLES = (
    "OOD pictures",
    "pictures",
    "AUROC",
    "rejected",
    "rejected at 1 % false rejections",
    "of these called no plant",
)
_THRESHOLD_TITLES = (
    "wanted precision of rejections",
    "threshold",
    "OOD rejected",
    "false rejection rate",
    "rejections the claim takes",
)


def _ood_lines(judged: Mapping[str, Any]) -> list[str]:
    """What concerns OOD pictures: each kind, all of them, and the thresholds of wanted
    precisions.
    """
    shares = ("rejected", "rejected_at_1pct_frr", "not_a_plant")
    kinds = [
        (kind, f"{row['n']}", f"{row['auroc']:.4f}", *(f"{row[key]:.1%}" for key in shares))
        for kind, row in judged["kinds"].items()
    ]
    thresholds = [
        (
            f"{row['precision']:.0%}",
            *(
                ("too few pictures", "-", "-")
                if row["threshold"] is None
                else (
                    f"{row['threshold']:.3f}",
                    f"{row['rejected']:.1%}",
                    f"{row['false_rejection_rate']:.2%}",
                )
            ),
            f"{row['needed']}",
        )
        for row in judged["thresholds"]
    ]
    return [
        table(kinds, _KIND_TITLES),
        "",
        f"Of the rejected pictures {judged['precision']:.1%} are OOD (with 95 % confidence at "
        f"least {lower(judged['precision_at_least'])}); of those accepted "
        f"{judged['accepted_precision']:.1%} are plants (at least "
        f"{lower(judged['accepted_precision_at_least'])}), in this mixture of "
        f"{judged['n_plants']} plants and {judged['n_ood']} OOD pictures.",
        "",
        table(thresholds, _THRESHOLD_TITLES),
        "",
    ]
