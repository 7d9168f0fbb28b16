"""Splits: groups whole, shares per class, places that follow from content and hardly move when
pictures are added.
"""

import hashlib

import numpy as np
import pytest

from common.organize.splits import TEST, TRAIN, VAL, draws, keep_given, split_groups


def shas(names) -> np.ndarray:
    return np.array(
        [list(hashlib.sha256(str(name).encode()).digest()) for name in names], np.uint8
    ).reshape(-1, 32)


def split(class_idx, groups=None, names=None, val=0.15, test=0.15) -> np.ndarray:
    """Split pictures given in any order, as 01 does: in the order of their content, groups named by
    their first picture.
    """
    class_idx = np.asarray(class_idx)
    sha = shas(range(len(class_idx)) if names is None else names)
    order = np.lexsort(sha.T[::-1])
    groups = np.arange(len(class_idx)) if groups is None else np.asarray(groups)
    first = {}
    for position, i in enumerate(order.tolist()):
        first.setdefault(int(groups[i]), position)
    result = split_groups(
        class_idx[order],
        np.array([first[int(groups[i])] for i in order]),
        draws(sha[order]),
        val,
        test,
    )
    back = np.empty(len(class_idx), np.int8)
    back[order] = result
    return back


def test_draws_are_uniform_and_not_the_ids():
    u = draws(shas(range(4000)))
    assert 0 <= u.min()
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(u, shas(range(4000))[:, 0])[0, 1]) < 0.05, (
        "ids order shards and name groups; splits must not follow them"
    )


@pytest.mark.parametrize(
    ("pictures", "splits"),
    [
        (1, {TRAIN}),
        (2, {TRAIN, VAL}),
        (3, {TRAIN, VAL, TEST}),
        (5, {TRAIN, VAL, TEST}),
        (12, {TRAIN, VAL, TEST}),
    ],
)
def test_small_classes(pictures, splits):
    for salt in range(40):
        assert (
            set(
                split(
                    np.zeros(pictures, int), names=[f"{salt}/{i}" for i in range(pictures)]
                ).tolist()
            )
            == splits
        )


@pytest.mark.parametrize("pictures", [7, 20, 33, 60, 150, 400, 3000])
def test_shares_hold_per_class(pictures):
    for salt in range(10):
        got = np.bincount(
            split(np.zeros(pictures, int), names=[f"{salt}/{i}" for i in range(pictures)]),
            minlength=3,
        )
        slack = max(1.0, 0.03 * pictures) + 1e-9
        assert abs(got[VAL] - 0.15 * pictures) <= slack
        assert abs(got[TEST] - 0.15 * pictures) <= slack


def test_groups_stay_whole_and_big_ones_do_not_unbalance_a_class():
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 60, 300))
    for salt in range(10):
        got = split(np.zeros(300, int), groups, [f"{salt}/{i}" for i in range(300)])
        for g in np.unique(groups):
            assert len(set(got[groups == g].tolist())) == 1
        assert 0.08 <= (got == TEST).mean() <= 0.22
        assert 0.08 <= (got == VAL).mean() <= 0.22
    one_big = np.r_[np.zeros(80, int), np.arange(1, 21)]
    for salt in range(20):
        got = split(np.zeros(100, int), one_big, [f"{salt}/{i}" for i in range(100)])
        assert set(got.tolist()) == {TRAIN, VAL, TEST}
        assert got[0] == TRAIN, "eighty of a hundred pictures are no fifteen percent"


def test_every_class_keeps_a_train_group_even_where_groups_span_classes():
    rng = np.random.default_rng(1)
    for salt in range(30):
        class_idx = rng.integers(0, 6, 60)
        groups = rng.integers(0, 14, 60)
        got = split(class_idx, groups, [f"{salt}/{i}" for i in range(60)])
        for g in np.unique(groups):
            assert len(set(got[groups == g].tolist())) == 1
        for one in np.unique(class_idx):
            assert (got[class_idx == one] == TRAIN).any()


def test_stations_that_all_classes_share_are_balanced_over_the_classes():
    rng = np.random.default_rng(3)
    for salt in range(20):
        station, class_idx = (
            rng.integers(0, 30, 900),
            rng.choice(6, 900, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05]),
        )
        got = split(class_idx, station, [f"{salt}/{i}" for i in range(900)])
        assert all(len(set(got[station == s].tolist())) == 1 for s in range(30))
        for one in range(6):
            shares = np.bincount(got[class_idx == one], minlength=3) / (class_idx == one).sum()
            assert 0.05 < shares[VAL] < 0.3, shares
            assert 0.05 < shares[TEST] < 0.3, shares


def test_order_and_other_classes_change_nothing():
    rng = np.random.default_rng(2)
    class_idx, names = np.repeat([0, 1, 2], [9, 40, 700]), [f"picture {i}" for i in range(749)]
    whole = split(class_idx, names=names)
    order = rng.permutation(749)
    assert (split(class_idx[order], names=[names[i] for i in order]) == whole[order]).all()
    for one in range(3):
        assert (
            split(
                np.zeros((class_idx == one).sum(), int),
                names=[n for n, of in zip(names, class_idx, strict=True) if of == one],
            )
            == whole[class_idx == one]
        ).all()


@pytest.mark.parametrize(
    ("pictures", "more", "moved"),
    [(2000, 200, 0.0), (2000, 1, 0.0), (200, 20, 0.02), (30, 3, 0.06), (8, 1, 0.1)],
)
def test_adding_pictures_moves_as_good_as_none(pictures, more, moved):
    shares = []
    for salt in range(20):
        names = [f"{salt}/{i}" for i in range(pictures + more)]
        before = split(np.zeros(pictures, int), names=names[:pictures])
        after = split(np.zeros(pictures + more, int), names=names)
        shares.append((before != after[:pictures]).mean())
    assert np.mean(shares) <= moved + 1e-9


def test_a_given_split_is_kept_and_what_lacks_is_drawn_from_train():
    given = np.r_[np.zeros(80), np.full(20, TEST)].astype(np.int8)
    ours = split(np.zeros(100, int))
    got = keep_given(ours, given, np.arange(100))
    assert (got[80:] == TEST).all(), "their test stays"
    assert ((got[:80] == VAL) == (ours[:80] == VAL)).all(), "val comes from their train"
    assert not (got[:80] == TEST).any(), "val comes from their train"
    complete = given.copy()
    complete[:10] = VAL
    assert (keep_given(ours, complete, np.arange(100)) == complete).all()


def test_pictures_without_a_given_split_follow_their_group():
    given = np.array([TEST, -1, TRAIN, -1, VAL, -1, -1], np.int8)
    ours = np.array([TRAIN, TRAIN, TRAIN, TEST, TRAIN, TRAIN, VAL], np.int8)
    group = np.array([0, 0, 2, 2, 4, 4, 6])
    assert keep_given(ours, given, group).tolist() == [TEST, TEST, TRAIN, TRAIN, VAL, VAL, VAL]
