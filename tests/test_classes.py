"""Class trees, their index and their file form, and names that are safe as file names."""

import json
import pickle

import numpy as np
import pytest

from common.classes import ClassTree, slug

pytestmark = pytest.mark.smoke

TREE = ClassTree(
    ("corn", "apple", "fig"), (("rust", "healthy", "smut"), ("scab", "healthy"), ("healthy",))
)


def test_tree_indices() -> None:
    assert (TREE.num_species, TREE.num_classes) == (3, 6)
    assert TREE.offsets.tolist() == [0, 3, 5, 6]
    assert TREE.offsets.dtype == np.int64
    assert TREE.class_species.tolist() == [0, 0, 0, 1, 1, 2]
    assert TREE.class_species.dtype == np.int64
    for s, diseases in enumerate(TREE.diseases):
        for d, disease in enumerate(diseases):
            class_idx = TREE.class_index(s, d)
            assert TREE.pair(class_idx) == (TREE.species[s], disease)
            assert TREE.class_name(class_idx) == f"{TREE.species[s]}/{disease}"
            assert TREE.offsets[s] <= class_idx < TREE.offsets[s + 1]


@pytest.mark.parametrize("call", [(3, 0), (-1, 0), (2, 1), (0, -1)])
def test_tree_index_outside(call: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="is outside 0"):
        TREE.class_index(*call)


@pytest.mark.parametrize("class_idx", [-1, 6])
def test_tree_class_outside(class_idx: int) -> None:
    with pytest.raises(IndexError, match="is outside 0..5"):
        TREE.class_name(class_idx)


def test_tree_arrays_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TREE.offsets[0] = 7


def test_tree_from_pairs_sorts_and_joins() -> None:
    tree = ClassTree.from_pairs(
        [("pear", "scab"), ("apple", "scab"), ("pear", "healthy"), ("apple", "scab")]
    )
    assert tree.species == ("apple", "pear")
    assert tree.diseases == (("scab",), ("healthy", "scab"))


def test_tree_survives_json_and_pickle() -> None:
    assert TREE.to_json()["species"][1] == {"name": "apple", "diseases": ["scab", "healthy"]}
    again = ClassTree.from_json(json.loads(json.dumps(TREE.to_json())))
    assert again == TREE
    assert again.fingerprint() == TREE.fingerprint()
    assert pickle.loads(pickle.dumps(TREE)) == TREE
    extra = {"species": [{"name": "fig", "diseases": ["healthy"], "train": [7]}], "format": 1}
    assert ClassTree.from_json(extra).species == ("fig",)


def test_tree_fingerprint_tells_order_and_names() -> None:
    turned = ClassTree(TREE.species, (("healthy", "rust", "smut"), *TREE.diseases[1:]))
    renamed = ClassTree(("corn", "apple", "figs"), TREE.diseases)
    assert len({TREE.fingerprint(), turned.fingerprint(), renamed.fingerprint()}) == 3
    assert TREE.fingerprint() == ClassTree(TREE.species, TREE.diseases).fingerprint()


@pytest.mark.parametrize(
    ("species", "diseases", "message"),
    [
        ((), (), "at least one species"),
        (("apple",), (), "one list of diseases per species"),
        (("apple", "apple"), (("scab",), ("rust",)), "'apple' comes twice"),
        (("apple",), (("scab", "scab"),), "'scab' comes twice"),
        (("apple",), ((),), "'apple' has no disease"),
        (("apple", " "), (("scab",), ("rust",)), "has no name"),
        (("apple",), (("",),), "has no name"),
        (("apple",), ("scab",), "not one text"),
        ("apple", (("scab",),), "not one text"),
    ],
)
def test_tree_rejects(species: tuple, diseases: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassTree(species, diseases)


@pytest.mark.parametrize(
    "data", [{}, {"species": [{"name": "fig"}]}, {"species": ["fig"]}, {"species": None}, []]
)
def test_tree_rejects_other_json(data: object) -> None:
    with pytest.raises(ValueError, match="not a class tree"):
        ClassTree.from_json(data)  # type: ignore[arg-type]


# --- slug ---


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("bell pepper", "bell_pepper"),
        ("  Two-Spotted  mite ", "two_spotted_mite"),
        ("café crème", "cafe_creme"),
        ("../x", "x"),
        ("a/b\\c", "a_b_c"),
        ("x.\x00y\n", "x_y"),
        ("CON", "con_class"),
        ("lpt1", "lpt1_class"),
        ("~$% 5", "5"),
        ("番茄 早疫病", "番茄_早疫病"),
        ("आम पत्ती", "आम_पत्ती"),
        ("Ёлка", "ёлка"),
    ],
)
def test_slug(words: str, expected: str) -> None:
    assert slug(words) == expected


def test_slug_is_never_empty_nor_long_nor_shared() -> None:
    odd = ["", "..", "番茄", "辣椒", "\udcff", "🍅", "x" * 300, "x" * 299, "番" * 99, "番" * 98]
    names = [slug(word) for word in odd]
    assert len(set(names)) == len(odd)
    assert all(
        name.replace("_", "").isalnum() and 0 < len(name) <= 100 and len(name.encode()) <= 200
        for name in names
    )
    assert [slug(name) for name in names] == names
