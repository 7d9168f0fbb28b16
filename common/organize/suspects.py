"""Classes that a person should look at before training: what is odd about each, and what to do. No
torch.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.console import table
from common.organize.sources import SPLITS

# Ours: low enough to find what we planted, high enough that a tidy class is left alone.
FEW_PICTURES, FEW_GROUPS, FEW_JUDGED = 10, 3, 5
ONE_GROUP, ONE_GROUP_PICTURES = 0.4, 5  # share of the class, and the least size of such a group
SHARED, SHARED_PAIRS = 0.02, 3  # share of the smaller class with a twin in the other; least pairs
CONFLICTS, CONFLICT_FILES = 0.02, 3
BROKEN, BROKEN_FILES = 0.1, 5
# one size or source: share in the class, at most in its siblings, pictures of each
ALIKE, ELSEWHERE, ENOUGH = 0.9, 0.1, 10
BROKEN_REASONS = frozenset(
    "empty text format truncated unreadable too_large too_small dark not_a_picture".split()
)


@dataclass(frozen=True)
class Suspect:
    """One doubt about one class.

    Attributes:
        class_idx: the class.
        kind: `shared`, `conflicts`, `one_source`, `one_group`, `one_size`, `broken` or `few`.
        badness: 0..1, larger is worse; only for the order.
        what: one sentence with the figures in it.
        advice: one sentence.
        other: the other class of `shared`, else -1.
    """

    class_idx: int
    kind: str
    badness: float
    what: str
    advice: str
    other: int = -1


@dataclass(frozen=True)
class Pictures:
    """The K pictures that are judged, each attribute int (K,).

    Attributes:
        class_idx: class.
        group: near-duplicate group, any numbers >= 0.
        split: 0 train, 1 val, 2 test.
        origin: which source it comes from.
        width, height: px, as the source had them.
    """

    class_idx: np.ndarray
    group: np.ndarray
    split: np.ndarray
    origin: np.ndarray
    width: np.ndarray
    height: np.ndarray


def suspicious(
    names: Sequence[str],
    pictures: Pictures,
    pairs: np.ndarray,
    rejected: Mapping[str, np.ndarray],
    origins: Sequence[str],
) -> list[Suspect]:
    """Find the classes that look wrong, worst first.

    Args:
        names: "species/disease" of each class; classes of one species are each other's siblings.
        pictures: those that stay.
        pairs: int (M, 2), near-duplicate pictures; pairs within a class are not looked at.
        rejected: reason -> int (classes,), files left out; BROKEN_REASONS and `label_conflict`
            count.
        origins: name of each source, for the sentences.

    Returns:
        doubts ordered by badness, then by the size of the class; the order of the pictures does not
        matter.
    """
    n, class_idx = len(names), np.asarray(pictures.class_idx, np.int64)
    sizes = np.bincount(class_idx, minlength=n)
    species = np.unique([name.split("/")[0] for name in names], return_inverse=True)[1].astype(int)
    group = np.unique(pictures.group, return_inverse=True)[1]
    most, _, (of_class, _, _) = _commonest(class_idx, group, n)
    size = pictures.width.astype(np.int64) << 20 | pictures.height.astype(np.int64)
    by_split = [np.bincount(class_idx[pictures.split == s], minlength=n) for s in range(3)]
    found = [
        *_few(sizes, np.bincount(of_class, minlength=n), by_split),
        *_one_group(most, sizes),
        *_shared(names, class_idx, sizes, pairs),
        *_left_out(sizes, rejected),
        *_one_size(names, _apart(class_idx, size, species)),
        *_one_source(names, _apart(class_idx, pictures.origin, species), origins),
    ]
    return sorted(
        found,
        key=lambda s: (-round(s.badness, 6), -sizes[s.class_idx], s.class_idx, s.kind, s.other),
    )


def _few(sizes: np.ndarray, groups: np.ndarray, by_split: list[np.ndarray]) -> list[Suspect]:
    found, judged = [], by_split[1] + by_split[2]
    small = (sizes < FEW_PICTURES) | (groups < FEW_GROUPS) | (judged < FEW_JUDGED)
    for i in np.flatnonzero(small | (by_split[1] == 0) | (by_split[2] == 0)).tolist():
        missing = [name for name, counts in zip(SPLITS, by_split, strict=True) if not counts[i]]
        held = f"{judged[i]} in val and test together"
        if missing:
            held = f"no picture in {' and '.join(missing)}"
        what = (
            f"{_count(sizes[i], 'picture')} in {_count(groups[i], 'group')}, {held}: it cannot be "
            "judged"
        )
        badness = 0.1 + 0.2 * bool(missing) + 0.1 / (1 + groups[i])
        found.append(
            Suspect(
                i,
                "few",
                0.4 if "train" in missing else badness,
                what if sizes[i] else "no usable picture is left",
                "Add photos of other plants or days, join it with another class, or take its "
                "figures as unknown.",
            )
        )
    return found


def _one_group(most: np.ndarray, sizes: np.ndarray) -> list[Suspect]:
    share = most / np.maximum(sizes, 1)
    return [
        Suspect(
            i,
            "one_group",
            0.7 * float(share[i]),
            f"{most[i]} of {sizes[i]} pictures ({share[i]:.0%}) are near-duplicates of one another",
            "Thin them out or add other plants: the class counts as many pictures and shows one.",
        )
        for i in np.flatnonzero((share >= ONE_GROUP) & (most >= ONE_GROUP_PICTURES)).tolist()
    ]


def _shared(
    names: Sequence[str], class_idx: np.ndarray, sizes: np.ndarray, pairs: np.ndarray
) -> list[Suspect]:
    n, sides, count = len(names), class_idx[pairs], len(class_idx)
    across = sides[:, 0] != sides[:, 1]
    pairs, sides = pairs[across], sides[across]
    code = sides.min(1) * n + sides.max(1)
    kinds, which, counts = np.unique(code, return_inverse=True, return_counts=True)
    # pictures with a twin, once each per pair of classes, however many twins they have
    ends = np.unique(np.tile(which.ravel(), 2) * count + pairs.T.ravel())
    found = []
    a_of, b_of = kinds // n, kinds % n
    first = class_idx[ends % count] == a_of[ends // count]
    in_a, in_b = (
        np.bincount(ends[mask] // count, minlength=len(kinds)) for mask in (first, ~first)
    )
    share_a, share_b = in_a / np.maximum(sizes[a_of], 1), in_b / np.maximum(sizes[b_of], 1)
    for k in np.flatnonzero(
        (counts >= SHARED_PAIRS) & (np.maximum(share_a, share_b) >= SHARED)
    ).tolist():
        mine, other, share, twins = (
            (a_of[k], b_of[k], share_a[k], in_a[k])
            if share_a[k] >= share_b[k]
            else (b_of[k], a_of[k], share_b[k], in_b[k])
        )
        found.append(
            Suspect(
                int(mine),
                "shared",
                0.5 + 0.5 * float(share),
                f"shares {counts[k]} near-duplicate pairs with {names[other]} ({twins} of its "
                f"{sizes[mine]} pictures)",
                "Same photos under two names, or one class twice: look at both sheets, then join "
                "the classes or move the photos.",
                int(other),
            )
        )
    return found


def _left_out(sizes: np.ndarray, rejected: Mapping[str, np.ndarray]) -> list[Suspect]:
    none = np.zeros(len(sizes), np.int64)
    reasons = {r: counts for r, counts in rejected.items() if r in BROKEN_REASONS}
    broken, conflicts = sum(reasons.values(), none), rejected.get("label_conflict", none)
    clash, bad = (left / np.maximum(sizes + left, 1) for left in (conflicts, broken))
    found = [
        Suspect(
            i,
            "conflicts",
            0.3 + 0.7 * float(clash[i]),
            f"{conflicts[i]} of {sizes[i] + conflicts[i]} pictures ({clash[i]:.0%}) stand under "
            "another class too, left out",
            "The two labels cannot both be right; rejected.csv names the files.",
        )
        for i in np.flatnonzero((conflicts >= CONFLICT_FILES) & (clash >= CONFLICTS)).tolist()
    ]
    return found + [
        Suspect(
            i,
            "broken",
            0.5 * float(bad[i]),
            f"{broken[i]} of {sizes[i] + broken[i]} files ({bad[i]:.0%}) are no usable "
            "pictures, most of them: "
            f"{max(sorted(reasons), key=lambda reason: reasons[reason][i])}",
            "Fetch the class again from where it came from.",
        )
        for i in np.flatnonzero((broken >= BROKEN_FILES) & (bad >= BROKEN)).tolist()
    ]


Apart = list[tuple[int, int, float, float]]


def _one_size(names: Sequence[str], apart: Apart) -> list[Suspect]:
    return [
        Suspect(
            i,
            "one_size",
            0.55 * (share - elsewhere),
            f"{share:.0%} of its pictures are {v >> 20} x {v & 0xFFFFF} px, {elsewhere:.0%} of "
            f"other {_plant(names[i])} classes",
            "Crop marks, borders or a camera may then tell the disease: mix sources, or check the "
            "background figure.",
        )
        for i, v, share, elsewhere in apart
    ]


def _one_source(names: Sequence[str], apart: Apart, origins: Sequence[str]) -> list[Suspect]:
    return [
        Suspect(
            i,
            "one_source",
            0.8 * (share - elsewhere),
            f"{share:.0%} of its pictures come from {origins[v]}, {elsewhere:.0%} of other "
            f"{_plant(names[i])} classes",
            "The background then tells the disease: add photos of this class from another source.",
        )
        for i, v, share, elsewhere in apart
    ]


def _commonest(
    class_idx: np.ndarray, value: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """How often each class's commonest value occurs, that value (the smallest of equals; -1: none),
    and all (class, value, count).
    """
    if not len(class_idx):
        return np.zeros(n, np.int64), np.full(n, -1), (np.zeros(0, np.int64),) * 3
    span = int(value.max()) + 1
    code, counts = np.unique(class_idx * span + value, return_counts=True)
    classes, values = code // span, code % span
    order = np.lexsort((values, -counts, classes))
    first = order[np.unique(classes[order], return_index=True)[1]]
    most, which = np.zeros(n, np.int64), np.full(n, -1)
    most[classes[first]], which[classes[first]] = counts[first], values[first]
    return most, which, (classes, values, counts)


def _apart(
    class_idx: np.ndarray, value: np.ndarray, species: np.ndarray
) -> list[tuple[int, int, float, float]]:
    """Classes that nearly always have one value which the other classes of their species nearly
    never have: class, value, both shares.
    """
    n = len(species)
    most, which, (classes, values, counts) = _commonest(class_idx, value, n)
    if not len(classes):
        return []
    span = int(values.max()) + 1
    sizes = np.bincount(class_idx, minlength=n)
    siblings = np.bincount(species[class_idx], minlength=n)[species] - sizes
    code, back = np.unique(species[classes] * span + values, return_inverse=True)
    totals = np.bincount(back.ravel(), weights=counts, minlength=len(code))
    at = np.searchsorted(code, species * span + np.maximum(which, 0)).clip(max=len(code) - 1)
    elsewhere = (totals[at] - most) / np.maximum(siblings, 1)
    share = most / np.maximum(sizes, 1)
    good = (sizes >= ENOUGH) & (siblings >= ENOUGH) & (share >= ALIKE) & (elsewhere <= ELSEWHERE)
    return [
        (i, int(which[i]), float(share[i]), float(elsewhere[i]))
        for i in np.flatnonzero(good).tolist()
    ]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _plant(name: str) -> str:
    return _words(name.split("/")[0])


def _words(name: str) -> str:
    return name.replace("_", " ")


def reasons_by_class(suspects: Sequence[Suspect], names: Sequence[str]) -> dict[int, list[str]]:
    """Sentences per class, worst first; shared pictures are named at both classes."""
    sentences: dict[int, list[str]] = defaultdict(list)
    for suspect in suspects:
        sentences[suspect.class_idx].append(suspect.what)
        if suspect.other >= 0:
            sentences[suspect.other].append(
                f"{names[suspect.class_idx]} "
                f"{suspect.what.replace(names[suspect.other], 'this class', 1)}"
            )
    return dict(sentences)


def printed(
    suspects: Sequence[Suspect], names: Sequence[str], most: int = 20, each: int = 6
) -> str:
    """Lay out the worst doubts as a table, at most `each` of a kind and `most` in all, and say how
    many more there are.
    """
    if not suspects:
        return "No class looks suspicious."
    shown: Counter[str] = Counter()
    rows = []
    for suspect in suspects:
        if shown[suspect.kind] < each and len(rows) < most:
            shown[suspect.kind] += 1
            rows.append((names[suspect.class_idx], suspect.what))
    kinds = Counter(suspect.kind for suspect in suspects)
    advice = {suspect.kind: suspect.advice for suspect in reversed(suspects)}
    more = [
        f"{count - shown[kind]:,} more of {_words(kind)}"
        for kind, count in kinds.most_common()
        if count > shown[kind]
    ]
    return "\n".join(
        [
            table(rows, ("class", "what")),
            "",
            *(f"{_words(kind)}: {advice[kind]}" for kind in kinds if shown[kind]),
            *([f"Not shown: {', '.join(more)}."] if more else []),
        ]
    )
