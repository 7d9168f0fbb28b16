"""The hash under flips, turns and re-encoding, and the search against comparing all with all."""

import multiprocessing

import cv2
import numpy as np
import pytest
from near_pairs import neighbours, pair_count
from tiny_data import draw

from common.organize.duplicates import bands, phash
from common.organize.duplicates.phash import (
    BLANK,
    connected,
    matches,
    near_search,
    orientations,
    perceptual_hash,
)


def blobs(seed: int, height: int = 150, width: int = 210) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)


def bits(a: int, b: int) -> int:
    return (int(a) ^ int(b)).bit_count()


def turned(picture: np.ndarray) -> list[np.ndarray]:
    return [
        np.ascontiguousarray(np.rot90(base, turns))
        for base in (picture, picture[:, ::-1])
        for turns in range(4)
    ]


def distances(hashes: np.ndarray) -> np.ndarray:
    """All with all under all turns: int (N, N), blank ones far from everything."""
    far = (
        np.bitwise_count(orientations(hashes)[:, None, :] ^ hashes[None, :, None])
        .min(axis=2)
        .astype(int)
    )
    far[hashes == BLANK] = far[:, hashes == BLANK] = 99
    np.fill_diagonal(far, 99)
    return far


def collections() -> dict[str, np.ndarray]:
    """Hashes of the kinds that make a search stumble."""
    rng = np.random.default_rng(0)

    def moved(values: np.ndarray, most: int) -> np.ndarray:
        values = values.copy()
        for i, amount in enumerate(rng.integers(0, most + 1, len(values))):
            for bit in rng.choice(64, amount, replace=False).tolist():
                values[i] ^= np.uint64(1) << np.uint64(bit)
        return orientations(values)[np.arange(len(values)), rng.integers(0, 8, len(values))]

    plain = rng.integers(1, 2**64, 100, dtype=np.uint64)
    every = {
        "random": np.concatenate([plain, moved(plain, 12)]),
        "clusters": moved(np.repeat(rng.integers(1, 2**64, 5, dtype=np.uint64), 40), 7),
        # half of the bits always the same, as in pictures of one kind
        "correlated": rng.integers(1, 2**64, 200, dtype=np.uint64) & np.uint64(0x00FF0F0F33550101)
        | np.uint64(0x1000F0F044002222),
        "identical": moved(np.repeat(rng.integers(1, 2**64, 4, dtype=np.uint64), 50), 0),
    }
    palindromes = plain & np.uint64(
        15 | ((1 << 30) - 1) << 4
    )  # pictures that are their own mirror image along a diagonal
    palindromes |= (palindromes >> np.uint64(4)) << np.uint64(34)
    every["symmetric"] = np.concatenate([palindromes, moved(palindromes, 3)])
    every["mixed"] = np.concatenate(
        [values[:45] for values in every.values()] + [np.zeros(20, np.uint64)]
    )
    return every


COLLECTIONS = collections()


def banded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search a few hashes in the way that is chosen for many."""
    plan = bands._plan
    monkeypatch.setattr(bands, "_plan", lambda stored, queries, *rest: plan(10**6, 10**6, *rest))


# region the hash


def test_the_hashes_of_all_turns_follow_from_one():
    for seed, shape in enumerate([(150, 210), (64, 64), (47, 35), (301, 299)]):
        seen = []
        for picture in turned(blobs(seed, *shape)):
            mine = perceptual_hash(picture)
            apart = [
                bits(mine, other)
                for other in orientations(
                    np.array([perceptual_hash(blobs(seed, *shape))], np.uint64)
                )[0]
            ]
            assert min(apart) <= 1, (shape, apart)
            seen.append(int(np.argmin(apart)))
        assert sorted(seen) == list(range(8)), (
            "each turn is another one of the eight, the first none"
        )
        assert seen[0] == 0, "each turn is another one of the eight, the first none"


def test_turns_keep_distances_and_form_a_group():
    hashes = np.random.default_rng(1).integers(0, 2**64, 50, dtype=np.uint64)
    eight = orientations(hashes)
    assert eight.shape == (50, 8)
    assert eight.dtype == np.uint64
    assert (eight[:, 0] == hashes).all()
    apart = np.bitwise_count(eight[:-1] ^ eight[1:])
    assert (apart == apart[:, :1]).all()
    for k in range(8):
        assert (np.sort(orientations(eight[:, k])) == np.sort(eight)).all()
    assert orientations(np.zeros(0, np.uint64)).shape == (0, 8)


def test_cells_are_area_means():
    for shape in [(64, 32), (47, 35), (20, 33)]:
        grey = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
        fine = np.repeat(np.repeat(grey, 32, axis=0), 32, axis=1).astype(
            np.float64
        )  # every cell is a whole block of these
        want = fine.reshape(32, shape[0], 32, shape[1]).mean(axis=(1, 3))
        assert np.abs(phash._means(grey) - want).max() < 1e-3


def test_copies_are_near_and_others_far():
    picture = blobs(3, 300, 400)
    mine = perceptual_hash(picture)
    assert isinstance(mine, int)
    assert 0 < mine < 2**64
    small = cv2.resize(picture, (200, 150), interpolation=cv2.INTER_AREA)
    pressed = cv2.imdecode(
        cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR
    )
    assert bits(perceptual_hash(pressed), mine) <= 3
    assert bits(perceptual_hash((picture * 0.6).astype(np.uint8)), mine) <= 3
    others = np.array([perceptual_hash(blobs(seed)) for seed in range(100, 160)], np.uint64)
    assert distances(np.append(others, np.uint64(mine))).min() > 8
    assert perceptual_hash(draw("apple", "scab", 1)) != perceptual_hash(draw("apple", "scab", 2))


def test_pictures_of_one_colour_are_blank_and_have_no_neighbours():
    rng = np.random.default_rng(4)
    flat = np.full((200, 300, 3), (90, 160, 40), np.uint8)
    noisy = np.clip(flat + rng.normal(0, 6, flat.shape), 0, 255).astype(np.uint8)
    pressed = cv2.imdecode(
        cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR
    )
    blank = [
        perceptual_hash(p)
        for p in (
            flat,
            noisy,
            pressed,
            np.zeros((64, 64, 3), np.uint8),
            np.full((40, 90, 3), 255, np.uint8),
        )
    ]
    assert blank == [BLANK] * 5
    faint = np.repeat(
        np.linspace(100, 108, 300).astype(np.uint8)[None, :, None], 200, axis=0
    ).repeat(3, axis=2)
    assert perceptual_hash(faint) != BLANK, "a faint picture is a picture"
    found = near_search(np.array([*blank, perceptual_hash(blobs(1))], np.uint64), 15)
    assert (pair_count(found), found.blank, len(found.first), len(found.edges())) == (0, 5, 1, 0)
    assert found.of.tolist() == [-1] * 5 + [0]
    assert not found.has_neighbour_in(np.ones(6, bool)).any()
    assert not len(neighbours(found, 0))


# endregion
# region the search


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_all_pairs_and_nothing_else(kind, monkeypatch):
    hashes = COLLECTIONS[kind]
    far = distances(hashes)
    for radius in range(11) if kind == "mixed" else (1, 6, 10):
        found = near_search(hashes, radius)
        close = far <= radius
        assert pair_count(found) == close.sum() // 2, radius
        assert all(
            np.array_equal(neighbours(found, i), np.flatnonzero(row)) for i, row in enumerate(close)
        )
        assert found.pairs.dtype == np.int32
        assert (found.pairs[:, 0] < found.pairs[:, 1]).all()
        with monkeypatch.context() as patch:
            banded(patch)
            again = near_search(hashes, radius)
        assert all(
            np.array_equal(getattr(found, name), getattr(again, name))
            for name in ("of", "first", "pairs")
        ), radius
        for mask in (
            np.arange(len(hashes)) % 3 == 0,
            np.arange(len(hashes)) < 7,
            np.zeros(len(hashes), bool),
        ):
            assert np.array_equal(found.has_neighbour_in(mask), (close & mask).any(axis=1))


@pytest.mark.parametrize("radius", [12, 15])
def test_wide_radii(radius, monkeypatch):
    banded(monkeypatch)
    hashes = COLLECTIONS["random"]
    assert pair_count(near_search(hashes, radius)) == (distances(hashes) <= radius).sum() // 2


def test_edges_join_what_pairs_join():
    hashes = COLLECTIONS["mixed"]
    for radius in (0, 4, 8):
        found = near_search(hashes, radius)
        edges = found.edges()
        assert edges.dtype == np.int64
        assert (edges[:, 0] != edges[:, 1]).all()
        assert len(edges) <= len(hashes) + len(found.pairs), (
            "as many as there are copies, not pairs of copies"
        )
        pairs = np.argwhere(distances(hashes) <= radius)
        assert np.array_equal(connected(len(hashes), edges), connected(len(hashes), pairs))


def test_ten_thousand_copies_of_one_picture_stay_small():
    hashes = orientations(np.repeat(np.uint64(0xDEADBEEF12345678), 10_000))[
        np.arange(10_000), np.arange(10_000) % 8
    ]
    found = near_search(hashes, 6)
    assert pair_count(found) == 10_000 * 9_999 // 2
    assert found.pairs.shape == (0, 2)
    assert found.edges().shape == (9_999, 2)
    assert not connected(10_000, found.edges()).any()
    assert len(neighbours(found, 5)) == 9_999
    alone = np.zeros(10_000, bool)
    alone[77] = True
    near = found.has_neighbour_in(alone)
    assert not near[77], "a picture is not its own neighbour, though it may be its own mirror image"
    assert near.sum() == 9_999, (
        "a picture is not its own neighbour, though it may be its own mirror image"
    )


def test_blocks_smaller_than_buckets(monkeypatch):
    hashes = COLLECTIONS["clusters"]
    want = near_search(hashes, 6)
    monkeypatch.setattr(bands, "_CELLS", 97)
    assert np.array_equal(near_search(hashes, 6).pairs, want.pairs)
    banded(monkeypatch)
    assert np.array_equal(near_search(hashes, 6).pairs, want.pairs)


def test_more_pairs_than_memory_holds_end_in_a_sentence(monkeypatch):
    hashes = COLLECTIONS["clusters"]
    for limit, fine in [
        (pair_count(near_search(hashes, 6)) * 3, True),
        (500, False),
        (20, False),
    ]:  # in all, and in one share
        monkeypatch.setattr(bands, "MOST_PAIRS", limit)
        with monkeypatch.context() as patch:
            banded(patch)
            if fine:
                near_search(hashes, 6)
                continue
            for workers in (1, 2):
                with pytest.raises(OverflowError, match="within 6 bits.*smaller radius"):
                    near_search(hashes, 6, workers)


def test_many_processes_find_the_same(monkeypatch):
    banded(monkeypatch)
    hashes, seen = COLLECTIONS["mixed"], []

    def progress(items, total, desc, unit):
        for item in items:
            seen.append((total, desc))
            yield item

    monkeypatch.setattr(bands, "progress", progress)
    monkeypatch.setattr(bands, "SHOWN_FROM", 10)
    want = near_search(hashes, 6)
    assert len(seen) == seen[0][0] > 1
    assert np.array_equal(near_search(hashes, 6, 2).pairs, want.pairs)
    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(bands.multiprocessing, "get_context", lambda: context)
    assert np.array_equal(near_search(hashes, 6, 2).pairs, want.pairs)


def test_queries_find_what_is_stored(monkeypatch):
    stored = COLLECTIONS["mixed"]
    queries = np.concatenate(
        [COLLECTIONS["random"][100:150], [np.uint64(BLANK)], COLLECTIONS["identical"][:30]]
    )
    far = (
        np.bitwise_count(orientations(queries)[:, None, :] ^ stored[None, :, None])
        .min(axis=2)
        .astype(int)
    )
    far[queries == BLANK] = far[:, stored == BLANK] = 99
    for radius in (0, 6, 11):
        want = np.argwhere(far <= radius)
        assert len(want) > 30
        assert np.array_equal(matches(queries, stored, radius), want)
    banded(monkeypatch)
    assert np.array_equal(matches(queries, stored, 11), want)
    assert matches(queries[:0], stored, 6).shape == (0, 2)
    assert matches(queries, stored[:0], 6).shape == (0, 2)


def test_plans_promise_what_they_must():
    for stored in (10, 10_000, 100_000, 1_470_000):
        for radius in range(16):
            parts, order = bands._plan(stored, stored, radius, phash._TOGETHER)
            assert sorted(order.tolist()) == list(range(64))
            if parts[0].width:
                assert sum(part.slack + 1 for part in parts) == radius + 1, "pigeonhole"
                assert sum(part.width for part in parts) <= 64
                assert max(part.width for part in parts) <= 16
                assert np.bitwise_or.reduce([part.mask for part in parts]).bit_count() == sum(
                    part.width for part in parts
                )
    assert bands._plan(100, 100, 6, phash._TOGETHER)[0][0].width == 0
    assert bands._plan(10**6, 10**6, 6, phash._TOGETHER)[0][0].width


def test_none_one_and_a_wrong_radius():
    for count in (0, 1):
        found = near_search(np.full(count, 7, np.uint64), 6)
        assert pair_count(found) == 0
        assert found.pairs.shape == (0, 2)
        assert found.edges().shape == (0, 2)
        assert found.has_neighbour_in(np.ones(count, bool)).tolist() == [False] * count
    for radius in (-1, 16):
        with pytest.raises(ValueError, match="0 to 15"):
            near_search(np.zeros(3, np.uint64), radius)


# endregion
# region groups


def plain_groups(count: int, edges: np.ndarray) -> list[int]:
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in edges.tolist():
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(count)]


def test_groups_are_the_connected_parts():
    rng = np.random.default_rng(5)
    for count in (1, 2, 50, 2000):
        for share in (0, 0.3, 0.5, 1, 3):
            edges = rng.integers(0, count, (int(share * count), 2))
            labels = connected(count, edges)
            assert labels.dtype == np.int64
            assert labels.tolist() == plain_groups(count, edges)
    path = rng.permutation(5000)
    star = np.stack([np.full(4999, 4999), np.arange(4999)], axis=1)
    comb = np.concatenate(
        [
            np.stack([path[:-1:2], path[1::2]], axis=1),
            np.stack([path[1:-1:2], path[2::2]], axis=1)[::7],
        ]
    )
    for edges in (np.stack([path[:-1], path[1:]], axis=1), star, star[:, ::-1], comb):
        assert connected(5000, edges).tolist() == plain_groups(5000, edges)
    assert connected(3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 2]


# endregion
