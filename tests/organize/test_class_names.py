"""The reading of class names: one invented example per rule, then whole lists, near-identical
leaves, flat labels.
"""

import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from common.classes import slug
from common.organize.names.parse import parse_class_names, parse_flat
from common.organize.names.review import near_identical

ROOT = Path(__file__).resolve().parents[2]
PRACTICE = Path(__file__).resolve().parents[3] / "shared/data/class_names.csv"


def read_one(name: str, *others: str) -> tuple[str | None, str | None]:
    parsed = parse_class_names([name, *others])[0]
    return parsed.species, parsed.disease


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
        ("plam dubas", "palm", "dubas"),
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
        (
            "Plum cercospora leaf spot brown leaf spot",
            "plum",
            "brown leaf spot",
        ),  # one of two names
        ("Mandarin huanglongbing citrus greening", "mandarin", "huanglongbing"),
        ("Pear_cedar_apple_rust", "pear", "cedar apple rust"),  # a plant in the disease's name
        ("lime citrus canker", "lime", "citrus canker"),
        ("cedar apple rust", "apple", "cedar apple rust"),
    ],
)
def test_name(name: str, species: str, disease: str) -> None:
    assert read_one(name) == (species, disease)


@pytest.mark.parametrize(
    "name", ["healthy", "Early Blight", "leaf_spot_3", "Cercospora fictiva", "rust/leaf", "zqx"]
)
def test_name_without_plant_is_asked_about(name: str) -> None:
    parsed = parse_class_names([name, "Plum rust", "Okra wilt"])[0]
    assert parsed.species is None
    assert parsed.confidence < 0.5
    assert "plant" in parsed.reason


@pytest.mark.parametrize(
    "name", ["", "   ", "///", "___", "123", "()", "🍅", "\u200b", "train/images"]
)
def test_name_without_words(name: str) -> None:
    parsed = parse_class_names([name])[0]
    assert (parsed.raw, parsed.species, parsed.disease, parsed.confidence) == (
        name,
        None,
        None,
        0.0,
    )


def test_odd_names_do_no_harm() -> None:
    odd = [
        "番茄_早疫病",
        "\udcff\udcfe rust",
        "leaf " * 50_000,
        "((((plum rust",
        "a" * 100_000,
        "%s {0} \\n",
    ]
    for parsed in parse_class_names(odd):
        assert 0 <= parsed.confidence <= 1
        assert parsed.reason
    assert read_one("((((plum rust") == ("plum", "rust")
    assert read_one("plum\x00rust") == (
        "plum",
        "rust",
    )
    with pytest.raises(TypeError, match="must be text"):
        parse_class_names(["plum rust", None])  # type: ignore[list-item]


# --- whole lists ---


def test_unknown_plants_are_learned_from_the_list() -> None:
    names = ["quandong_zorbitis", "quandong_leaf_spot", "quandong_healthy"]
    names += ["feijoa zorbitis", "feijoa leaf", "plum zorbitis"]
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
    assert read_one("zalacc palm rust", "plum rust") == ("zalacc palm", "rust")


def test_strong_separator_before_a_disease_with_a_plants_name() -> None:
    assert read_one("Quandong___peach_leaf_curl", "Quandong___rust") == (
        "quandong",
        "peach leaf curl",
    )


def test_recurring_names_raise_confidence() -> None:
    alone = parse_class_names(["quandong_rust"])[0]
    often = parse_class_names(["quandong_rust", "quandong_scab", "quandong_wilt", "feijoa_rust"])[0]
    assert often.confidence > alone.confidence
    assert "3 kinds" in often.reason


def test_confidence_falls_with_doubt() -> None:
    names = ["plum rust", "plumm rust", "red okra rust", "fig leaf", "fig", "quandong rust"]
    sure, typo, middle, class_idx, bare, stranger = (p.confidence for p in parse_class_names(names))
    assert sure > typo >= 0.9 > middle
    assert 0.9 > class_idx > bare
    assert stranger < 0.9
    several = parse_class_names([f"{plant} leaf" for plant in ("fig", "plum", "okra")])
    assert all(p.disease == "healthy" and p.confidence >= 0.9 for p in several)


def test_order_and_repeats_change_nothing() -> None:
    names = ["quandong_rust", "Plum rust", "quandong_scab", "Plum rust", "healthy"]
    forward, backward = parse_class_names(names), parse_class_names(names[::-1])
    assert [p.raw for p in forward] == names
    assert forward == backward[::-1]
    assert forward[1] == forward[3]
    assert parse_class_names([]) == []


def test_a_large_list() -> None:
    middles = ("nd", "lt", "rv", "sk", "mp", "gl", "xt", "dr")
    plants = [f"{a}{b}{c}o" for a in "bdfklmnprt" for b in "aiou" for c in middles]
    tails = ["rust", "late_blight", "leaf spot", "Mosaic_virus", "healthy"] + [
        f"vorn{c}elia rot" for c in "bcdfghjkl"
    ]
    names = [f"{plant}___{tail}" for plant in plants for tail in tails * 3][:11_499]
    parsed = parse_class_names(names)
    right = [p.species == p.raw.split("___")[0] for p in parsed]
    assert len(parsed) == 11_499
    assert sum(right) >= 0.98 * len(right)


def test_demo_names() -> None:
    demo = pytest.importorskip("common.demo.pictures")
    truth = {folder: (species, disease) for folder, species, disease, _ in demo.CLASSES}
    answers = {p.raw: (p.species, p.disease) for p in parse_class_names(list(truth))}
    assert answers == {name: tuple(class_idx) for name, class_idx in truth.items()}


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
            for row, parsed in zip(
                rows, parse_class_names([row["raw_name"] for row in rows]), strict=True
            ):
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
    assert parse_flat("grevyZebra").species == "grevy zebra"
    assert parse_flat("__").species is None


def test_slugs_hold_on_every_file_system() -> None:
    words = [
        "Tomato Late Blight",
        "CON",
        "ÉÈÊ rust",
        "番茄",
        "番茄 早疫病",
        "a" * 300,
        "a" * 299 + "b",
        "...",
        "nul",
        "straße",
        "İs rot",
    ]
    slugs = [slug(w) for w in words]
    assert len({s.casefold() for s in slugs}) == len(words)
    assert all(s == s.lower() and len(s) <= 100 for s in slugs)
    assert slug("Late  Blight") == slug("late_blight") == "late_blight"


def test_near_identical_proposes_and_leaves_the_rest() -> None:
    text = """corn/gray leaf spot; corn/grey leaf spot; corn/stem rust; corn/leaf rust; potato/early
blight; potato/late blight; potato/zorbitis; potato/zorbitus; orange/citrus greening;
orange/huanglongbing; plum/spots; plum/spot; plum/leaf spot; quandnog/rust; quandong/rust;
quandong/scab; pea/rust; pear/rust; maize/wilt"""
    classes = [tuple(pair.split("/")) for pair in " ".join(text.split()).split("; ")]
    found = {(gone, kept) for gone, kept, _ in near_identical(classes)}
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
    assert near_identical(classes[::-1]) == near_identical(classes)
    assert all(reason for _, _, reason in near_identical(classes))


def test_import_is_light() -> None:
    code = (
        "import sys, common.organize.names.parse; print([m for m in ('torch', 'PIL', 'cv2') if "
        "m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_name_whose_ending_no_other_name_has_is_read() -> None:
    odd = "ccmt-multi-crop-plant-disease-detection-dataset"
    assert parse_class_names([odd])[0].raw == odd
