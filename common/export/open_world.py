"""What a model does with what it has not learned: unknown species, unknown diseases and photos of a
new place, by the rule of common/decide.py on answers that an export has already. No torch.

No picture counted here was trained on, and neither the species and diseases counted nor any picture
of a held-out source chose a threshold; of a folder of --unknown-plants, the other half did.
"""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.console import table
from common.decide import (
    ANSWERED,
    ROLLED_UP,
    Decisions,
    Ranked,
    Rejection,
    Rollup,
    decide_batch,
    rejection_from_json,
)
from common.export.answers import Answers, join, take
from common.export.bounds import difference
from common.export.fitting import Outcome
from common.export.pictures import class_of
from common.train.metrics import wilson

RATES = (0.01, 0.05)  # shares of known plants that other thresholds than those served may lose
SERVED = "as served"  # the thresholds of bundle.json
LONGEST = 40  # rows of report.md's table of species and diseases; report.json has them all


@dataclass(frozen=True)
class Unlearned:
    """M test pictures of what the model has not learned.

    Attributes:
        ranked, ood: what they are decided by; float32 (M, scores).
        class_idx, species: int64 (M,), true class and species; -1 where the model has no such.
        name: str (M,), the species, or species/disease where the model knows the species, or the
            folder of --unknown-plants.
        source: str (M,), the held-out source; "" for other pictures.
    """

    ranked: Ranked
    ood: np.ndarray
    class_idx: np.ndarray
    species: np.ndarray
    name: np.ndarray
    source: np.ndarray


def gather(outcome: Outcome) -> Unlearned | None:
    """Collect the pictures of what the model has not learned, but for species and diseases of which
    other pictures chose thresholds; None where there are none.
    """
    pictures, parts, fitted = outcome.pictures, [], []
    tree = pictures.data.tree
    classes = {tree.pair(i): i for i in range(tree.num_classes)}
    numbers = {name: i for i, name in enumerate(tree.species)}

    def name(pair: tuple[str, str]) -> str:
        return "/".join(pair) if pair[0] in numbers else pair[0]

    for kind in pictures.kinds:
        given = kind.role == "species" and kind.name != "holdout_species"  # --unknown-plants
        if kind.role == "plant":
            continue
        if not given:
            fitted += [name(class_of(path)) for path in kind.files["val"]]
        if kind.files["test"]:
            ood = outcome.ood["test"][kind.role][kind.name]
            pairs = [(f"{kind.name} (--unknown-plants)", "")] * len(ood)
            pairs = pairs if given else [*map(class_of, pictures.ood_files(kind, "test"))]
            source = kind.name.removeprefix("source ") if kind.role == "source" else ""
            columns = (
                [classes.get(pair, -1) for pair in pairs],
                [numbers.get(pair[0], -1) for pair in pairs],
                [name(pair) for pair in pairs],
                [source] * len(pairs),
            )
            parts.append((outcome.ranked[kind.role][kind.name], ood, *map(np.array, columns)))
    if not parts:
        return None
    found = Unlearned(*join(parts))
    return take(found, (found.class_idx >= 0) | ~np.isin(found.name, fitted))


# region judging


def judge(outcome: Outcome, card: Mapping[str, Any]) -> dict[str, Any]:
    """Judge the decisions on pictures of what the model has not learned.

    Args:
        outcome: of the model.
        card: its entry in bundle.json: "rejection" and "rollup", of which the default is taken.

    Returns:
        plain values, empty without such pictures. thresholds: {name: {lost: known plants of test
        whose answer is less deep than without these thresholds, of n}}, for `SERVED` and `RATES`.
        unknown: rows of role (`species` or `disease`), name (None: all of them), n and, per name of
        thresholds, the counts of `depths`. places: per held-out source its name, n, classes, and
        unknown (its pictures of classes that are not known, which are not in n but in the rows
        above); `across` and `within`, counts of its pictures, and of test pictures of the same
        classes; `gap`: {both, species: difference of the shares and its 95 % interval}, None
        without such test pictures. copies: pictures of held-out sources that 01 says do not count.
    """
    seen, data = gather(outcome), outcome.pictures.data
    if seen is None:
        return {}
    rejection = rejection_from_json(card["rejection"], outcome.names)
    entry = card["rollup"]["precisions"][card["rollup"]["default"]]
    rollup = Rollup(entry["disease"], entry["species"])
    test, tree = outcome.splits["test"], data.tree
    points = {SERVED: rejection} | losing(outcome.splits["val"], tree, rejection, rollup)
    decided = {
        name: decide_batch(seen.ranked, seen.ood, tree, point, rollup)
        for name, point in points.items()
    }

    def row(role: str, name: str | None, mine: np.ndarray) -> dict[str, Any]:
        counts = {point: depths(found, seen.species, mine) for point, found in decided.items()}
        return {"role": role, "name": name, "n": int(mine.sum()), **counts}

    unknown = [
        row(role, name, all_of if name is None else all_of & (seen.name == name))
        for role, all_of in (
            ("species", seen.species < 0),
            ("disease", (seen.species >= 0) & (seen.class_idx < 0)),
        )
        if all_of.any()
        for name in (None, *np.unique(seen.name[all_of]).tolist())
    ]
    return {
        "thresholds": {
            name: {"lost": int(lost(test, tree, point, rollup).sum()), "n": len(test.class_idx)}
            for name, point in points.items()
        },
        "unknown": unknown,
        "places": [
            _place(name, seen, decided[SERVED], test, tree, rejection, rollup)
            for name in np.unique(seen.source).tolist()
            if name
        ],
        "copies": sum(1 for _ in (data.root / "holdout" / "copies").rglob("*.jpg")),
    }


def _place(
    name: str,
    seen: Unlearned,
    decided: Decisions,
    test: Answers,
    tree: ClassTree,
    rejection: Rejection | None,
    rollup: Rollup,
) -> dict[str, Any]:
    mine = (seen.source == name) & (seen.class_idx >= 0)
    classes = np.unique(seen.class_idx[mine])
    across = counts(seen.ranked, decided, seen.class_idx, mine, tree)
    same = np.isin(test.class_idx, classes)
    at_home = decide_batch(test.ranked, test.ood, tree, rejection, rollup)
    within = counts(test.ranked, at_home, test.class_idx, same, tree)
    gap = {
        key: difference(across[key], across["n"], within[key], within["n"])
        for key in ("both", "species")
    }
    return {
        "name": name,
        "n": int(mine.sum()),
        "classes": len(classes),
        "unknown": int((seen.source == name).sum() - mine.sum()),
        "across": across,
        "within": within,
        "gap": gap if across["n"] and within["n"] else None,
    }


def depth(decided: Decisions) -> np.ndarray:
    """How deep answers go: int (N,), 2 species and disease, 1 the species alone, 0 rejected."""
    return np.select([decided.outcome == ANSWERED, decided.outcome == ROLLED_UP], [2, 1], 0)


def depths(decided: Decisions, species: np.ndarray, mine: np.ndarray) -> dict[str, int]:
    """Count how deep the answers to some pictures go.

    Args:
        decided: of N pictures.
        species: int (N,), the true one, -1 for an unknown one.
        mine: bool (N,), which to count.

    Returns:
        named (species and disease), rolled_up (the species alone), rejected; species_right of those
        rolled up.
    """
    deep = depth(decided)[mine]
    right = (decided.species == species)[mine]
    return {
        "named": int((deep == 2).sum()),
        "rolled_up": int((deep == 1).sum()),
        "rejected": int((deep == 0).sum()),
        "species_right": int((right & (deep == 1)).sum()),
    }


def counts(
    ranked: Ranked, decided: Decisions, class_idx: np.ndarray, mine: np.ndarray, tree: ClassTree
) -> dict[str, int]:
    """Count what is right for pictures of known classes.

    Args:
        ranked, decided, class_idx: of N pictures: what is decided by, how, and the truth.
        mine: bool (N,), which to count; their classes are known.

    Returns:
        n; species and both (of all, whatever is rejected, the most probable species and class being
        right); those of `depths`; answers_right of those named or rolled up.
    """
    species = tree.class_species[class_idx]
    found = depths(decided, species, mine)
    named = (decided.outcome == ANSWERED) & (decided.class_idx == class_idx)
    return {
        "n": int(mine.sum()),
        "species": int((ranked.species == species)[mine].sum()),
        "both": int((ranked.joint == class_idx)[mine].sum()),
        **found,
        "answers_right": int(named[mine].sum()) + found["species_right"],
    }


def lost(
    plants: Answers, tree: ClassTree, rejection: Rejection | None, rollup: Rollup
) -> np.ndarray:
    """Which known plants get a less deep answer than without the thresholds of OOD scores: bool
    (N,).
    """
    with_them, without = (
        depth(decide_batch(plants.ranked, plants.ood, tree, thresholds, rollup))
        for thresholds in (rejection, None)
    )
    return with_them < without


def losing(
    plants: Answers, tree: ClassTree, rejection: Rejection, rollup: Rollup
) -> dict[str, Rejection]:
    """The strictest thresholds that lose at most each of `RATES` of the plants of val.

    All thresholds that take answers move together: the numbers of plants above each stay to each
    other as they are served.

    Returns:
        {"1% lost": thresholds, ...}.
    """
    rules = {name: rule for name, rule in vars(rejection).items() if hasattr(rule, "threshold")}
    rules.pop("plant", None)  # only tells why a picture is rejected
    levels = {name: np.sort(rule.value(plants.ood))[::-1] for name, rule in rules.items()}
    above = {name: max(1, rule.exceeded(plants.ood).sum()) for name, rule in rules.items()}

    def at(k: int) -> Rejection:  # k plants lie above the threshold that is served most of them
        step = {name: k * count // max(above.values()) for name, count in above.items()}
        moved = {name: replace(rules[name], threshold=levels[name][step[name]]) for name in rules}
        return replace(rejection, **moved)

    def share(k: int) -> float:
        return float(lost(plants, tree, at(k), rollup).mean())

    steps = range(len(plants.ood))
    return {
        f"{rate:.0%} lost": at(bisect.bisect_right(steps, rate, key=share) - 1) for rate in RATES
    }


# endregion

# region words

_TRUE = {"species": "unknown species", "disease": "unknown disease, known species"}


def report_lines(found: Mapping[str, Any]) -> list[str]:
    """Lay out what `judge` found as sections of report.md."""
    title = ["## Species and diseases it does not know", ""]
    if not found:
        return [
            *title,
            "There are no pictures of such. 01_reorganize.py sets some aside with "
            "--holdout-species, --holdout-diseases and, for a new place, --holdout-source; "
            "--unknown-plants takes others.",
            "",
        ]
    return [
        *([*title, *_unknown_lines(found)] if found["unknown"] else ()),
        *(["## A new place", "", *_place_lines(found)] if found["places"] else ()),
    ]


def share(hits: int, n: int) -> str:
    """A share with its 95 % interval (Wilson): 3 of 4 -> "75.0% (30.1 to 95.4)"; "-" of none."""
    low, high = 100 * wilson(np.array([hits]), np.array([n]))[0]
    return f"{hits / n:.1%} ({low:.1f} to {high:.1f})" if n else "-"


def _unknown_lines(found: Mapping[str, Any]) -> list[str]:
    points = found["thresholds"]
    rows = [
        (
            _TRUE[row["role"]],
            row["n"],
            name,
            share(point["lost"], point["n"]),
            *(share(row[name][key], row["n"]) for key in ("named", "rolled_up", "rejected")),
            share(row[name]["species_right"], row[name]["rolled_up"] * (row["role"] == "disease")),
        )
        for row in found["unknown"]
        if row["name"] is None
        for name, point in points.items()
    ]
    single = [row for row in found["unknown"] if row["name"] is not None]
    single.sort(key=lambda row: [-row[SERVED][key] / row["n"] for key in ("named", "rolled_up")])
    each = [
        (
            row["name"],
            row["n"],
            *(share(row[name]["named"], row["n"]) for name in points),
            *(f"{row[SERVED][key] / row['n']:.1%}" for key in ("rolled_up", "rejected")),
        )
        for row in single[:LONGEST]
    ]
    return [
        "Pictures of species and diseases that the model has never seen. To name a species and a "
        "disease is always wrong for them. The species alone is right for an unknown disease, if "
        "it is the true one; for an unknown species only a rejection is right. Thresholds were "
        "fitted without the species and diseases counted here; of a folder of --unknown-plants, "
        "they were fitted with the other half. 95 % intervals in brackets.",
        "",
        table(
            rows,
            (
                *("true", "pictures", "thresholds", "known plants lost", "species and disease"),
                *("species alone", "rejected", "of species alone: right"),
            ),
        ),
        "",
        "Known plants lost are test pictures of known classes that OOD scores take an answer from: "
        "they get the species alone or a rejection. The thresholds as served are those of "
        "bundle.json; the others are set to lose 1 % and 5 % of val.",
        "",
        table(
            each,
            (
                *("true", "pictures", *(f"species and disease, {name}" for name in points)),
                *("species alone, as served", "rejected, as served"),
            ),
        ),
        "",
        *([f"{len(single)} rows in all: report.json.", ""] if len(single) > LONGEST else ()),
    ]


def _place_lines(found: Mapping[str, Any]) -> list[str]:
    columns = ("species", "both", "named", "rolled_up", "rejected")
    rows = []
    for place in found["places"]:
        at_home = f"test, the {place['classes']} classes of {place['name']}"
        for words, row in ((at_home, place["within"]), (place["name"], place["across"])):
            shares = [share(row[key], row["n"]) for key in columns]
            answers = share(row["answers_right"], row["named"] + row["rolled_up"])
            rows.append((words, row["n"], *shares, answers))
        ends = place["gap"] or {}
        gaps = [
            "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * end for end in ends[key]))
            for key in columns[: len(ends)]
        ]
        rows.append((f"gap of {place['name']}", "", *(gaps or "--"), *[""] * 4))
    unknown = ", ".join(f"{place['unknown']:,} of {place['name']}" for place in found["places"])
    return [
        "Sources that 01 set aside (--holdout-source): the model and its thresholds have seen no "
        "picture of them. Above each stand the test pictures of the same classes from the sources "
        "that the model learned from; the gap is the difference. `species right` and `both right` "
        "(species and disease) count all pictures, even those rejected; the columns after them "
        "tell what is answered, as served. 95 % intervals in brackets.",
        "",
        table(
            rows,
            (
                *("pictures", "number", "species right", "both right", "species and disease"),
                *("species alone", "rejected", "of the answers: right"),
            ),
        ),
        "",
        f"Not in this table: pictures of classes that the model does not know, which count further "
        f"up ({unknown}); and near-duplicates of other pictures, or pictures in one group with "
        f"them ({found['copies']:,}).",
        "",
    ]


# endregion
