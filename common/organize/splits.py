"""Train, val and test: groups stay whole, shares hold per class, and a picture's place follows from
its content."""

from __future__ import annotations

import numpy as np

TRAIN, VAL, TEST = 0, 1, 2
# a class's shares may stray so far before its nearest groups are moved: more would break the
# proportions,
SLACK = 0.03
#               less would move pictures whenever some are added


def draws(sha256: np.ndarray) -> np.ndarray:
    """A number per picture that follows from its bytes.

    Args:
        sha256: uint8 (K, 32).

    Returns:
        float64 (K,), uniform in [0, 1). Bytes 8 to 15: the first eight name files, and the smallest
        of them names a group.
    """
    return np.ascontiguousarray(sha256[:, 8:16]).view(">u8")[:, 0] / 2.0**64


def split_groups(
    class_idx: np.ndarray, group: np.ndarray, draw: np.ndarray, val: float, test: float
) -> np.ndarray:
    """Put whole groups into splits, by the draw of the group's first picture: below `test` test,
    then `val`, then train.

    Where a class's shares stray by more than `SLACK` (one picture, in small classes), its groups
    nearest to the border cross it. A class with three groups or more has one in every split, one
    with two has no test picture, one with a single group is all train. A group that spans classes
    stays where its draw puts it, unless a class would be without a train picture. So a picture's
    place depends on its content and in small classes on its class's others, not on order or on other
    classes. Only where such groups hold most of a class (camera stations), they are balanced
    together, over all classes that they touch.

    Args:
        class_idx: int (K,), 0..L-1.
        group: int (K,), the smallest picture number of its group, where pictures are in the order
            of their content.
        draw: float (K,), from `draws`.
        val, test: shares of the pictures, 0..1.

    Returns:
        int8 (K,): 0 train, 1 val, 2 test.
    """
    heads, which = np.unique(group, return_inverse=True)
    u = draw[heads]
    place = np.where(u < test, TEST, np.where(u < test + val, VAL, TRAIN)).astype(np.int8)
    pairs, weights = np.unique(
        class_idx.astype(np.int64) * len(heads) + which, return_counts=True
    )  # (class, group) and its pictures
    pair_class, pair_group = np.divmod(pairs, max(1, len(heads)))
    own = np.bincount(pair_group, minlength=len(heads))[pair_group] == 1
    edges = np.flatnonzero(np.diff(pair_class, prepend=-1, append=-1))
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    mostly_shared = np.bincount(pair_class, weights * own) < 0.5 * np.bincount(pair_class, weights)
    cross_class = np.zeros(len(heads), bool)
    cross_class[pair_group[mostly_shared[pair_class] & ~own]] = True
    if cross_class.any():
        _balance(place, u, cross_class, pair_class, pair_group, weights, val, test)
    for (
        start,
        stop,
    ) in spans:  # before any class is settled, as these are the steps that touch other classes
        members = pair_group[start:stop]
        if not (place[members] == TRAIN).any():
            mine = members[own[start:stop]] if own[start:stop].any() else members
            place[mine[np.argmax(u[mine])]] = TRAIN
    for start, stop in spans:
        mine, members = own[start:stop], pair_group[start:stop]
        others = np.bincount(place[members[~mine]], weights[start:stop][~mine], minlength=3)
        groups = np.bincount(place[members[~mine]], minlength=3)
        order = np.argsort(u[members[mine]], kind="stable")
        settled = members[mine][order]
        place[settled] = _settle(
            place[settled], weights[start:stop][mine][order], others, groups, val, test
        )
    return place[which]


def _balance(
    place: np.ndarray,
    u: np.ndarray,
    cross_class: np.ndarray,
    pair_class: np.ndarray,
    pair_group: np.ndarray,
    weights: np.ndarray,
    val: float,
    test: float,
) -> None:
    """Place groups that span classes, the largest first, each where it brings the shares of its
    classes nearest to what is wanted."""
    total = np.bincount(pair_class, weights)
    have = np.zeros((len(total), 3))
    rest = ~cross_class[pair_group]
    np.add.at(have, (pair_class[rest], place[pair_group[rest]]), weights[rest])
    wanted = np.array([1 - val - test, val, test]) * total[:, None]
    mine = np.flatnonzero(~rest)
    mine = mine[np.argsort(pair_group[mine], kind="stable")]
    sizes = np.bincount(pair_group[mine], weights[mine], minlength=len(u))
    bounds = np.searchsorted(pair_group[mine], np.arange(len(u) + 1))
    for g in sorted(np.flatnonzero(cross_class).tolist(), key=lambda g: (-sizes[g], u[g])):
        pairs = mine[bounds[g] : bounds[g + 1]]
        classes, count = pair_class[pairs], weights[pairs]
        lack = (wanted[classes] - have[classes]) / total[
            classes, None
        ]  # (classes of the group, 3), shares
        gain = (2 * lack - (count / total[classes])[:, None]) * (count / total[classes])[
            :, None
        ]  # what the squared error falls by
        place[g] = np.argmax(gain.sum(axis=0))
        have[classes, place[g]] += count


def _settle(
    place: np.ndarray,
    weight: np.ndarray,
    others: np.ndarray,
    other_groups: np.ndarray,
    val: float,
    test: float,
) -> np.ndarray:
    """Mend one class's shares. `place`, `weight` (G,): its own groups in the order of their draws;
    `others`: pictures, and `other_groups`: groups, per split, that it shares with other classes and
    that do not move."""
    place = place.copy()
    total = weight.sum() + others.sum()
    have = np.bincount(place, weight, minlength=3) + others
    groups = np.bincount(place, minlength=3) + other_groups
    slack = max(1.0, SLACK * total)

    def move(g: int, to: int) -> None:
        have[place[g]] -= weight[g]
        groups[place[g]] -= 1
        have[to] += weight[g]
        groups[to] += 1
        place[g] = to

    for split, share in ((TEST, test), (VAL, val)):
        low, high = share * total - slack, share * total + slack
        if have[split] > high:
            for g in np.flatnonzero(place == split)[::-1]:  # the largest draws lie nearest to train
                if have[split] > high and (groups[split] > 1 or have[split] - weight[g] < low):
                    move(int(g), TRAIN)
        if have[split] < low:
            for g in np.flatnonzero(place == TRAIN):
                if have[split] < low and have[split] + weight[g] <= high and groups[TRAIN] > 1:
                    move(int(g), split)
    for split in (VAL, TEST) if groups.sum() >= 3 else (VAL,) if groups.sum() == 2 else ():
        if not groups[split] and groups[TRAIN] > 1:
            free = np.flatnonzero(place == TRAIN)
            if len(free):
                move(int(free[np.argmin(weight[free])]), split)
    if (
        groups.sum() < 3 and groups[TEST]
    ):  # with two groups val matters more; with one there is only train
        for g in np.flatnonzero(place == TEST):
            move(int(g), VAL if groups[TRAIN] and not groups[VAL] else TRAIN)
    return place


def keep_given(ours: np.ndarray, given: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Keep the split that the source gives; where it has no val or no test, that part is drawn from
    its train.

    Args:
        ours: int8 (K,), from `split_groups`.
        given: int8 (K,), the source's, -1 where it gives none.
        group: int (K,).

    Returns:
        int8 (K,).
    """
    lacking = [split for split in (VAL, TEST) if not (given == split).any()]
    _, which = np.unique(group, return_inverse=True)
    most = np.full(
        which.max(initial=-1) + 1, -1, np.int8
    )  # the most held-out split that the source gives any of a group
    np.maximum.at(most, which, given)
    kin = most[which]
    free = np.where(
        (kin < 0) | ((kin == TRAIN) & np.isin(ours, lacking)), ours, kin
    )  # pictures without a split follow their group
    return np.where((given > TRAIN) | ((given == TRAIN) & (kin > TRAIN)), given, free).astype(
        np.int8
    )
