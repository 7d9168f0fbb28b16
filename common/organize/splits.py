"""Groups of pictures, and their splits: groups stay whole, the shares of val and test hold per
class, and a picture's split follows from its content.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from common.organize.sources import Files

TRAIN, VAL, TEST = 0, 1, 2
# How far the shares of a class may be off before its nearest groups are moved: more would break the
# proportions, less would move pictures whenever some are added.
SLACK = 0.03
# What tools append to the name of a picture that they made from another one: Roboflow's
# ".rf.<hash>", PlantVillage's augmented sets ("_90deg", "_flipLR", "_newPixel25",
# "_new30degFlipLR", "_final_masked"), common scripts ("_aug3", "-rotated90").
_MARK = re.compile(
    r"(?ix)"
    r"\.rf\.[0-9a-f]{16,64}$"
    r"| [ _.-]+ (?: "
    r"(?:aug|augmented|augmentation|flip(?:ped)?|mirror(?:ed)?|rot(?:ate[ds]?|ation)?|blur(?:red)?"
    r"|noisy?|bright(?:ness)?|dark(?:er)?|crop(?:ped)?|zoom(?:ed)?|shear(?:ed)?|resized?|contrast"
    r"|[hv]flip|copy|copie|kopie|duplicate|(?:final[ _])?masked|segmented)"
    r"   (?:[ _.-]?[a-z]{0,2}-?\d{0,4})"
    r"   | (?:\d{2,3}deg(?:rees)?) | flip(?:lr|tb|ud) | newpixel\d* | "
    r"new\d{1,3}deg(?:flip(?:lr|tb))? )$"
    r"| \s-\s(?:copy|kopie|copie)(?:\s\(\d+\))?$"
)
_UUID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}_+")
_PICTURE_ENDING = re.compile(r"(?i)(?:[._](?:jpe?g|png|webp|bmp|tiff?))+$")


def stem_of(name: str) -> str | None:
    """Name of the picture that this file was made from, by its own name; None where it does not say
    that it was made from one.

    "IMG_7.rf.0a1b....jpg" gives "IMG_7"; "a1b2 3335_90deg.JPG" gives "a1b2 3335". "leaf (2).jpg" is
    a picture of its own.
    """
    stem = _PICTURE_ENDING.sub("", name)
    short, changed = stem, False
    while cut := _MARK.search(short):
        short, changed = _PICTURE_ENDING.sub("", short[: cut.start()]), True
    # what is left must still name one picture: a number, or enough letters
    return short if changed and (any(c.isdigit() for c in short) or len(short) >= 6) else None


def stem_edges(files: Files, kept: np.ndarray, class_idx: np.ndarray) -> np.ndarray:
    """Join pictures of one source and class that were made from one picture, by their names, and
    with that picture itself.

    Args:
        files: all files.
        kept: int (K,), the files in question; class_idx: int (K,), their classes.

    Returns:
        int64 (E, 2), numbers within `kept`.
    """
    names = [files.name(i) for i in kept.tolist()]
    stems = [stem_of(name) for name in names]
    wanted = {stem for stem in stems if stem is not None}
    if not wanted:
        return np.zeros((0, 2), np.int64)
    first: dict[tuple[int, int, str], int] = {}
    edges = []
    for k, (name, stem) in enumerate(zip(names, stems, strict=True)):
        stem = stem if stem is not None else _PICTURE_ENDING.sub("", name)
        if stem in wanted:
            place = int(files.origin[kept[k]]), int(class_idx[k])
            other = first.setdefault((*place, stem), k)
            if other != k:
                edges.append((other, k))
    return np.array(edges, np.int64).reshape(-1, 2)


def several_versions(files: Files, kept: np.ndarray, class_idx: np.ndarray) -> np.ndarray:
    """Which pictures belong to a class that its source holds in more than one version: colour and
    grayscale, original and augmented ...

    Args:
        files: all files.
        kept: int (K,), the files in question; class_idx: int (K,), their classes.

    Returns:
        bool (K,).
    """
    place = class_idx * len(files.sources) + files.origin[kept]
    pairs = np.unique(np.stack([place, files.version[kept]]), axis=1)
    versions = np.bincount(pairs[0], minlength=place.max(initial=-1) + 1)
    return versions[place] > 1


def version_groups(files: Files, kept: np.ndarray, class_idx: np.ndarray) -> np.ndarray:
    """Tie the versions of each leaf by their file names, within one source and class.

    A name that begins with another version's whole name is made from it: "_0_1120" from "0".

    Args:
        files: all files.
        kept: int (K,), the files in question; class_idx: int (K,), their classes.

    Returns:
        int64 (K,): equal for the versions of one leaf, -1 for pictures without another version.
    """
    group = np.full(len(kept), -1, np.int64)
    members: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for k in np.flatnonzero(several_versions(files, kept, class_idx)).tolist():
        name = files.name(kept[k])
        stem = _UUID.sub("", (stem_of(name) or _PICTURE_ENDING.sub("", name)).lower())
        stem = re.sub(r"[\s_.-]+", " ", stem).strip()
        members[int(files.origin[kept[k]]), int(class_idx[k]), stem].append(k)
    for origin, number, stem in list(members):
        words = stem.split(" ")
        for end in range(len(words) - 1, 0, -1):
            root = (origin, number, " ".join(words[:end]))
            if root in members:
                members[root] += members.pop((origin, number, stem))
                break
    for same in members.values():
        if len(set(files.version[kept[same]].tolist())) > 1:
            group[same] = min(same)
    return group


def equal_edges(*values: np.ndarray, none: int) -> np.ndarray:
    """Join pictures with equal values; `none` in the last array joins nothing.

    Args:
        values: int (K,) each.
        none: value of the last one that says nothing.

    Returns:
        int64 (E, 2).
    """
    order = np.lexsort(values)
    same = np.ones(max(0, len(order) - 1), bool)
    for value in values:
        same &= value[order][1:] == value[order][:-1]
    same &= values[-1][order][1:] != none
    return np.stack([order[:-1][same], order[1:][same]], axis=1).astype(np.int64).reshape(-1, 2)


def sizes_of(groups: np.ndarray) -> Sequence[int]:
    """Sizes of the groups of two or more, largest first; `groups` int (K,) holds each picture's
    group.
    """
    sizes = np.unique(groups, return_counts=True)[1] if len(groups) else np.zeros(0, int)
    return sorted(sizes[sizes > 1].tolist(), reverse=True)


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
    place depends on its content, and in small classes on the other pictures of the class; it does
    not depend on the order or on other classes. Only where such groups hold most of a class (camera
    stations) are they balanced together, over all classes that they touch.

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
    # (class, group) and its pictures
    pairs, weights = np.unique(class_idx.astype(np.int64) * len(heads) + which, return_counts=True)
    pair_class, pair_group = np.divmod(pairs, max(1, len(heads)))
    own = np.bincount(pair_group, minlength=len(heads))[pair_group] == 1
    edges = np.flatnonzero(np.diff(pair_class, prepend=-1, append=-1))
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    mostly_shared = np.bincount(pair_class, weights * own) < 0.5 * np.bincount(pair_class, weights)
    cross_class = np.zeros(len(heads), bool)
    cross_class[pair_group[mostly_shared[pair_class] & ~own]] = True
    if cross_class.any():
        _balance(place, u, cross_class, pair_class, pair_group, weights, val, test)
    for start, stop in spans:  # first, as these are the steps that touch other classes
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
    classes nearest to what is wanted.
    """
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
        lack = (wanted[classes] - have[classes]) / total[classes, None]  # shares
        part = (count / total[classes])[:, None]
        gain = (2 * lack - part) * part  # by how much the squared error falls
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
    """Bring the shares of one class within `SLACK`. `place`, `weight` (G,): its own groups in the
    order of their draws; `others`: pictures, and `other_groups`: groups, per split, that it shares
    with other classes and that do not move.
    """
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
    # with two groups val matters more; with one there is only train
    if groups.sum() < 3 and groups[TEST]:
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
    # the most held-out split that the source gives to any picture of a group
    most = np.full(which.max(initial=-1) + 1, -1, np.int8)
    np.maximum.at(most, which, given)
    kin = most[which]
    # pictures without a split follow their group
    free = np.where((kin < 0) | ((kin == TRAIN) & np.isin(ours, lacking)), ours, kin)
    return np.where((given > TRAIN) | ((given == TRAIN) & (kin > TRAIN)), given, free).astype(
        np.int8
    )
