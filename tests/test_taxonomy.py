"""Class trees, safe names, and the reading of class names: one invented example per rule, then whole lists."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from common.taxonomy import ClassTree, near_identical, parse_class_names, parse_flat, slug

ROOT = Path(__file__).resolve().parents[1]
PRACTICE = Path(__file__).resolve().parents[2] / "shared/data/class_names.csv"
TREE = ClassTree(("corn", "apple", "fig"), (("rust", "healthy", "smut"), ("scab", "healthy"), ("healthy",)))


def read_one(name: str, *others: str) -> tuple[str | None, str | None]:
    parsed = parse_class_names([name, *others])[0]
    return parsed.species, parsed.disease


# --- ClassTree ---


def test_tree_indices() -> None:
    assert (TREE.num_species, TREE.num_leaves) == (3, 6)
    assert TREE.offsets.tolist() == [0, 3, 5, 6] and TREE.offsets.dtype == np.int64
    assert TREE.leaf_species.tolist() == [0, 0, 0, 1, 1, 2] and TREE.leaf_species.dtype == np.int64
    for s, diseases in enumerate(TREE.diseases):
        for d, disease in enumerate(diseases):
            leaf = TREE.leaf_index(s, d)
            assert TREE.leaf(leaf) == (TREE.species[s], disease)
            assert TREE.leaf_name(leaf) == f"{TREE.species[s]}/{disease}"
            assert TREE.offsets[s] <= leaf < TREE.offsets[s + 1]


@pytest.mark.parametrize("call", [(3, 0), (-1, 0), (2, 1), (0, -1)])
def test_tree_index_outside(call: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="is outside 0"):
        TREE.leaf_index(*call)


@pytest.mark.parametrize("leaf", [-1, 6])
def test_tree_leaf_outside(leaf: int) -> None:
    with pytest.raises(IndexError, match="is outside 0..5"):
        TREE.leaf_name(leaf)


def test_tree_arrays_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TREE.offsets[0] = 7


def test_tree_from_leaves_sorts_and_joins() -> None:
    tree = ClassTree.from_leaves([("pear", "scab"), ("apple", "scab"), ("pear", "healthy"), ("apple", "scab")])
    assert tree.species == ("apple", "pear") and tree.diseases == (("scab",), ("healthy", "scab"))


def test_tree_survives_json_and_pickle() -> None:
    assert TREE.to_json()["species"][1] == {"name": "apple", "diseases": ["scab", "healthy"]}
    again = ClassTree.from_json(json.loads(json.dumps(TREE.to_json())))
    assert again == TREE and again.fingerprint() == TREE.fingerprint()
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
def test_tree_refuses(species: tuple, diseases: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassTree(species, diseases)


@pytest.mark.parametrize("data", [{}, {"species": [{"name": "fig"}]}, {"species": ["fig"]}, {"species": None}, []])
def test_tree_refuses_other_json(data: object) -> None:
    with pytest.raises(ValueError, match="no class tree"):
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
    ],
)
def test_slug(words: str, expected: str) -> None:
    assert slug(words) == expected


def test_slug_is_never_empty_nor_long_nor_shared_by_strangers() -> None:
    odd = ["", "..", "番茄", "辣椒", "\udcff", "🍅", "x" * 300, "x" * 299]
    names = [slug(word) for word in odd]
    assert len(set(names)) == len(odd)
    assert all(name.isascii() and name.replace("_", "").isalnum() and 0 < len(name) <= 100 for name in names)
    assert [slug(name) for name in names] == names


# --- one name, one rule ---


@pytest.mark.parametrize(
    ("name", "species", "disease"),
    [
        ("Walnut/leaf blotch", "walnut", "leaf blotch"),  # nested folders
        ("photos/train/Walnut/leaf_blotch", "walnut", "leaf blotch"),
        ("Plum___brown_rot", "plum", "brown rot"),
        ("plum__Brown-Rot", "plum", "brown rot"),
        ("Plum - brown rot", "plum", "brown rot"),
        ("Plum,brown rot", "plum", "brown rot"),
        ("Plum\u00a0brown\u200b \ufeffrot", "plum", "brown rot"),  # non-breaking and invisible
        ("Plum\u0640brown\u0640rot", "plum", "brown rot"),
        ("DragonFruitStemCanker", "dragon fruit", "stem canker"),  # camel case
        ("OatTMVirus", "oat", "tm virus"),
        ("walnutleafspot", "walnut", "leaf spot"),  # run together
        ("Corn_(maize)___ear_rot", "corn", "ear rot"),  # bracketed synonyms
        ("Pear_fire_blight_(Erwinia)", "pear", "fire blight"),
        ("Fire blight [pear]", "pear", "fire blight"),
        ("Quince (leaf spot)", "quince", "leaf spot"),
        ("Pepper, bell: leaf spot", "bell pepper", "leaf spot"),
        ("07_Plum_rust", "plum", "rust"),  # numbers
        ("class 12 plum rust", "plum", "rust"),
        ("Plum_rust (3)", "plum", "rust"),
        ("c3 plum rust", "plum", "rust"),
        ("Plum_rust_severe", "plum", "rust"),  # severity, split and picture words
        ("Plum_rust_test", "plum", "rust"),
        ("train_plum rust augmented images", "plum", "rust"),
        ("white background/plum rust", "plum", "rust"),
        ("Walnut leaf brown blight", "walnut", "brown blight"),  # organs
        ("Walnut leaf rust", "walnut", "leaf rust"),
        ("Walnut rust leaves", "walnut", "rust"),
        ("Walnut_Rust_on_leaves", "walnut", "rust"),
        ("Walnut_dry_leaf", "walnut", "dry leaf"),
        ("tomatto late blihgt", "tomato", "late blight"),  # typos
        ("Strawbery powdary mildew", "strawberry", "powdery mildew"),
        ("Okra___Okra_leaf_curl_virus", "okra", "leaf curl virus"),  # repeated species
        ("sweet potato sweet potato scab", "sweet potato", "scab"),
        ("plum_pocket_plum_taphrina_()", "plum", "pocket"),
        ("Leaf scorch of almond", "almond", "leaf scorch"),  # species last
        ("Rust Walnut Leaf", "walnut", "rust"),
        ("black_rot_on_kale", "kale", "black rot"),
        ("Healthy okra leaf", "okra", "healthy"),  # healthy and sick
        ("okra fresh", "okra", "healthy"),
        ("Okra no disease", "okra", "healthy"),
        ("Okra leaf", "okra", "healthy"),
        ("Okra", "okra", "healthy"),
        ("okra not healthy", "okra", "diseased"),
        ("diseased okra plant", "okra", "diseased"),
        ("okra_infected_by_aphids", "okra", "aphids"),
        ("brinjal wilt", "eggplant", "wilt"),  # synonyms
        ("capsicum thrips", "bell pepper", "thrips"),
        ("Zea mays smut", "corn", "smut"),
        ("Groundnuts rust", "peanut", "rust"),
        ("custardapple canker", "custard apple", "canker"),
        ("Tomato TYLCV", "tomato", "yellow leaf curl virus"),  # abbreviations
        ("Celery HLB", "celery", "huanglongbing"),
        ("Plum scab disease", "plum", "scab"),  # idle tails
        ("Plum mosaic disease", "plum", "mosaic disease"),
        ("Plum scab fungus", "plum", "scab"),
        ("Tea spider mite damage", "tea", "spider mite"),
        ("Plum cercospora leaf spot brown leaf spot", "plum", "brown leaf spot"),  # one of two names
        ("Mandarin huanglongbing citrus greening", "mandarin", "huanglongbing"),
        ("Pear_cedar_apple_rust", "pear", "cedar apple rust"),  # a plant in the disease's name
        ("lime citrus canker", "lime", "citrus canker"),
        ("cedar apple rust", "apple", "cedar apple rust"),
    ],
)
def test_name(name: str, species: str, disease: str) -> None:
    assert read_one(name) == (species, disease)


@pytest.mark.parametrize("name", ["healthy", "Early Blight", "leaf_spot_3", "Cercospora fictiva", "rust/leaf", "zqx"])
def test_name_without_plant_is_asked_about(name: str) -> None:
    parsed = parse_class_names([name, "Plum rust", "Okra wilt"])[0]
    assert parsed.species is None and parsed.confidence < 0.5 and "plant" in parsed.reason


@pytest.mark.parametrize("name", ["", "   ", "///", "___", "123", "()", "🍅", "\u200b", "train/images"])
def test_name_without_words(name: str) -> None:
    parsed = parse_class_names([name])[0]
    assert (parsed.raw, parsed.species, parsed.disease, parsed.confidence) == (name, None, None, 0.0)


def test_odd_names_do_no_harm() -> None:
    odd = ["番茄_早疫病", "\udcff\udcfe rust", "leaf " * 50_000, "((((plum rust", "a" * 100_000, "plum\x00rust", "%s {0} \\n"]
    for parsed in parse_class_names(odd):
        assert 0 <= parsed.confidence <= 1 and parsed.reason
    assert read_one("((((plum rust") == ("plum", "rust") and read_one("plum\x00rust") == ("plum", "rust")
    with pytest.raises(TypeError, match="must be text"):
        parse_class_names(["plum rust", None])  # type: ignore[list-item]


# --- whole lists ---


def test_unknown_plants_are_learned_from_the_list() -> None:
    names = ["quandong_zorbitis", "quandong_leaf_spot", "quandong_healthy", "feijoa zorbitis", "feijoa leaf", "plum zorbitis"]
    answers = [(p.species, p.disease) for p in parse_class_names(names)]
    assert answers == [
        ("quandong", "zorbitis"),
        ("quandong", "leaf spot"),
        ("quandong", "healthy"),
        ("feijoa", "zorbitis"),
        ("feijoa", "healthy"),
        ("plum", "zorbitis"),
    ]
    assert read_one("Monkey puzzle rust", "Monkey puzzle blight") == ("monkey puzzle", "rust")
    assert read_one("salak palm rust", "plum rust") == ("salak palm", "rust")


def test_strong_separator_before_a_disease_with_a_plants_name() -> None:
    assert read_one("Quandong___peach_leaf_curl", "Quandong___rust") == ("quandong", "peach leaf curl")


def test_recurring_names_raise_confidence() -> None:
    alone = parse_class_names(["quandong_rust"])[0]
    often = parse_class_names(["quandong_rust", "quandong_scab", "quandong_wilt", "feijoa_rust"])[0]
    assert often.confidence > alone.confidence and "3 kinds" in often.reason


def test_confidence_falls_with_doubt() -> None:
    sure, typo, middle, bare, stranger = (
        p.confidence for p in parse_class_names(["plum rust", "plumm rust", "old red okra rust", "fig", "quandong rust"])
    )
    assert sure > typo >= 0.9 > middle and bare < 0.9 and stranger < 0.9


def test_list_of_one_plant_offers_it_but_asks() -> None:
    names = ["Okra wilt", "Okra rust", "Okra scab", "Healthy"]
    parsed = parse_class_names(names)[3]
    assert (parsed.species, parsed.disease) == ("okra", "healthy") and parsed.confidence < 0.9 and "okra" in parsed.reason
    assert read_one("Healthy", "Okra wilt", "Okra rust", "Plum scab") == (None, "healthy")


def test_order_and_repeats_change_nothing() -> None:
    names = ["quandong_rust", "Plum rust", "quandong_scab", "Plum rust", "healthy"]
    forward, backward = parse_class_names(names), parse_class_names(names[::-1])
    assert [p.raw for p in forward] == names and forward == backward[::-1] and forward[1] == forward[3]
    assert parse_class_names([]) == []


def test_a_large_list() -> None:
    plants = [f"{a}{b}{c}o" for a in "bdfklmnprt" for b in "aiou" for c in ("nd", "lt", "rv", "sk", "mp", "gl", "xt", "dr")]
    tails = ["rust", "late_blight", "leaf spot", "Mosaic_virus", "healthy"] + [f"vorn{c}elia rot" for c in "bcdfghjkl"]
    names = [f"{plant}___{tail}" for plant in plants for tail in tails * 3][:11_499]
    parsed = parse_class_names(names)
    right = [p.species == p.raw.split("___")[0] for p in parsed]
    assert len(parsed) == 11_499 and sum(right) >= 0.98 * len(right)


def test_demo_names() -> None:
    demo = pytest.importorskip("common.demo")
    truth = demo.demo_truth()
    answers = {p.raw: (p.species, p.disease) for p in parse_class_names(list(truth))}
    assert answers == {name: tuple(leaf) for name, leaf in truth.items()}


def test_practice_lists() -> None:
    if not PRACTICE.exists():
        pytest.skip("the practice list of class names (shared/data/class_names.csv) is not here")
    lists: dict[str, list[dict[str, str]]] = defaultdict(list)
    with PRACTICE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            lists[row["source"]].append(row)
    together = [row for rows in lists.values() for row in rows]
    for groups in (list(lists.values()), [together]):
        right = known = bold = ambiguous = 0
        for rows in groups:
            for row, parsed in zip(rows, parse_class_names([row["raw_name"] for row in rows]), strict=True):
                if row["species"] == "ambiguous":
                    ambiguous += 1
                    bold += parsed.confidence >= 0.9
                elif row["disease"] != "ambiguous":
                    known += 1
                    right += (parsed.species, parsed.disease) == (row["species"], row["disease"])
        assert right / known >= 0.97, f"{right} of {known} names right"
        assert bold / ambiguous <= 0.02, f"{bold} of {ambiguous} ambiguous names answered boldly"


# --- flat labels, near-identical leaves, imports ---


def test_flat_labels() -> None:
    parsed = parse_flat("Red_Fox (2)")
    assert (parsed.species, parsed.disease, parsed.confidence) == ("red fox 2", "red fox 2", 1.0)
    assert parse_flat("grevyZebra").species == "grevy zebra" and parse_flat("__").species is None


def test_near_identical_proposes_and_leaves_the_rest() -> None:
    leaves = [
        ("corn", "gray leaf spot"), ("corn", "grey leaf spot"), ("corn", "stem rust"), ("corn", "leaf rust"),
        ("potato", "early blight"), ("potato", "late blight"), ("potato", "zorbitis"), ("potato", "zorbitus"),
        ("orange", "citrus greening"), ("orange", "huanglongbing"), ("plum", "spots"), ("plum", "spot"),
        ("plum", "leaf spot"), ("quandnog", "rust"), ("quandong", "rust"), ("quandong", "scab"), ("pea", "rust"),
        ("pear", "rust"), ("maize", "wilt"),
    ]  # fmt: skip
    found = {(gone, kept) for gone, kept, _ in near_identical(leaves)}
    assert found == {
        (("corn", "grey leaf spot"), ("corn", "gray leaf spot")),
        (("orange", "citrus greening"), ("orange", "huanglongbing")),
        (("plum", "spots"), ("plum", "spot")),
        (("plum", "leaf spot"), ("plum", "spot")),
        (("plum", "leaf spot"), ("plum", "spots")),
        (("quandnog", "rust"), ("quandong", "rust")),
        (("maize", "wilt"), ("corn", "wilt")),
        (("potato", "zorbitus"), ("potato", "zorbitis")),
    }
    assert near_identical(leaves[::-1]) == near_identical(leaves)
    assert all(reason for _, _, reason in near_identical(leaves))


def test_import_is_light() -> None:
    code = "import sys, common.taxonomy; print([m for m in ('torch', 'PIL', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
