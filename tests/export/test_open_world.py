"""What an export says of unknown species, unknown diseases and a new place, against counts by
hand.
"""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from common.classes import ClassTree
from common.export import open_world
from common.export.answers import sum_up
from common.export.bounds import difference
from common.export.fitting import Outcome, outcome_of
from common.export.open_world import SERVED
from common.export.pictures import OodKind, Pictures, known_ood

# 0 apple/healthy, 1 apple/scab, 2 corn/healthy, 3 corn/rust
TREE = ClassTree.from_pairs(
    [("apple", "healthy"), ("apple", "scab"), ("corn", "healthy"), ("corn", "rust")]
)
CLASS, SPECIES, UNSURE = 0.9, 0.5, 0.3  # probability of the best class at each depth
CARD = {
    "rejection": {
        "score": "far",
        "weights": {"far": 1.0},
        "threshold": 10.0,
        "quantiles": list(range(101)),
        "disease": {
            "score": "odd",
            "weights": {"odd": 1.0},
            "threshold": 5.0,
            "quantiles": list(range(101)),
        },
    },
    "rollup": {"default": "0.95", "precisions": {"0.95": {"disease": 0.8, "species": 0.6}}},
}


def rows(*answers: tuple[int, float]) -> np.ndarray:
    """Probabilities of (class, how probable): the rest goes to the other class of the species, but
    where it is `UNSURE` to the other species.
    """
    table = np.full((len(answers), 4), 0.0, np.float32)
    for row, (class_idx, p) in zip(table, answers, strict=True):
        row[:] = (1 - p) / 3 if p == UNSURE else 0.0
        row[class_idx] = p
        if p != UNSURE:
            row[class_idx ^ 1] = 1 - p
    return table


def answers_of(truth: list[int], given: list[tuple[int, float]], ood: list[tuple[float, float]]):
    return sum_up(rows(*given), np.array(truth), TREE, np.array(ood, np.float32))


def outcome(root: Path, kinds: dict[OodKind, tuple], val, test) -> Outcome:
    """An outcome whose OOD pictures are answered as `kinds` says: (answers, scores)."""
    found = {role: {} for role in ("plant", "species", "disease", "source")}
    ranked = {role: {} for role in found}
    for kind, (given, ood) in kinds.items():
        seen = answers_of([0] * len(given), given, ood)
        found[kind.role][kind.name], ranked[kind.role][kind.name] = seen.ood, seen.ranked
    pictures = Pictures(SimpleNamespace(root=root, tree=TREE), 32, [*kinds], 100, 0)
    return Outcome(
        pictures, ("far", "odd"), {"val": val, "test": test}, {"test": found}, ranked, {}
    )


class Kind(OodKind):
    """One that may be a key."""

    __hash__ = object.__hash__


def kind(name: str, role: str, *paths: str) -> Kind:
    return Kind(name, role, {"val": [], "test": [Path("holdout", path) for path in paths]})


NEAR = (0.0, 0.0)
PLANTS = answers_of(
    [0, 1, 2, 3],
    [(0, CLASS), (1, CLASS), (3, CLASS), (3, SPECIES)],  # right, right, wrong, right species
    [NEAR, (11, 0), NEAR, (0, 6)],  # the second is rejected, of the last nothing changes
)


def test_each_depth_is_counted_for_unknown_species_and_diseases(tmp_path):
    species = kind("holdout_species", "species", *["species/tea/rust/1.jpg"] * 4)
    disease = kind("holdout_diseases", "disease", *["diseases/corn/smut/1.jpg"] * 5)
    garden = kind("garden", "species", "x.jpg")
    found = open_world.judge(
        outcome(
            tmp_path,
            {
                species: (
                    [(0, CLASS), (2, CLASS), (3, SPECIES), (1, CLASS)],
                    [NEAR, NEAR, NEAR, (11, 0)],
                ),
                disease: (
                    [(3, CLASS), (3, CLASS), (2, SPECIES), (0, CLASS), (3, UNSURE)],
                    [NEAR, (0, 6), NEAR, (0, 6), NEAR],
                ),
                garden: ([(1, CLASS)], [NEAR]),
            },
            PLANTS,
            PLANTS,
        ),
        CARD,
    )
    counted = {(row["role"], row["name"]): (row["n"], row[SERVED]) for row in found["unknown"]}

    def counts(named: int, rolled_up: int, rejected: int, right: int = 0) -> dict[str, int]:
        return dict(named=named, rolled_up=rolled_up, rejected=rejected, species_right=right)

    assert counted == {
        ("species", None): (5, counts(3, 1, 1)),
        ("species", "tea"): (4, counts(2, 1, 1)),
        ("species", "garden (--unknown-plants)"): (1, counts(1, 0, 0)),
        ("disease", None): (5, counts(1, 3, 1, right=2)),
        ("disease", "corn/smut"): (5, counts(1, 3, 1, right=2)),
    }
    assert found["places"] == []
    assert found["thresholds"][SERVED] == {"lost": 1, "n": 4}
    text = "\n".join(open_world.report_lines(found))
    assert "60.0% (23.1 to 88.2)" in text, "3 of 5 named in full, Wilson"
    assert "25.0% (4.6 to 69.9)" in text, "1 of 4 known plants lost"
    assert "## A new place" not in text


def test_thresholds_lose_the_wanted_share_of_val_and_no_more(tmp_path):
    """Of 100 plants, 89 and 94 lie above the thresholds served; the farthest one has no answer to
    lose.
    """
    given = [(0, CLASS)] * 100
    given[99] = (0, UNSURE)
    ood = [(float(i), float(i)) for i in range(100)]
    val = answers_of([0] * 100, given, ood)
    other = kind("holdout_species", "species", *["species/tea/rust/1.jpg"] * 100)
    seen = outcome(tmp_path, {other: ([(0, CLASS)] * 100, ood)}, val, val)
    found = open_world.judge(seen, CARD)
    lost = {name: row["lost"] for name, row in found["thresholds"].items()}
    assert lost == {SERVED: 93, "1% lost": 1, "5% lost": 5}, "above 5, but for the unsure one"
    (whole, _) = found["unknown"]
    assert [whole[name]["rejected"] for name in lost] == [89, 2 * 89 // 94, 6 * 89 // 94]
    assert [whole[name]["named"] for name in lost] == [6, 98, 94]


def test_a_new_place_stands_beside_test_pictures_of_its_classes(tmp_path):
    field = kind(
        "source field",
        "source",
        *["source/apple/healthy/1.jpg"] * 3,
        *["source/apple/scab/1.jpg", "source/corn/smut/1.jpg", "source/tea/rust/1.jpg"],
    )
    given = [(0, CLASS), (1, CLASS), (0, SPECIES), (1, CLASS), (3, CLASS), (2, CLASS)]
    ood = [NEAR, NEAR, NEAR, (11, 0), NEAR, NEAR]
    (tmp_path / "holdout/copies/apple").mkdir(parents=True)
    (tmp_path / "holdout/copies/apple/1.jpg").touch()
    found = open_world.judge(outcome(tmp_path, {field: (given, ood)}, PLANTS, PLANTS), CARD)
    (place,) = found["places"]
    assert (place["name"], place["n"], place["classes"], place["unknown"]) == ("field", 4, 2, 2)
    right = dict(species=4, both=3, named=2, rolled_up=1, rejected=1, species_right=1)
    assert place["across"] == {"n": 4, **right, "answers_right": 2}
    right = dict(species=2, both=2, named=1, rolled_up=0, rejected=1, species_right=0)
    assert place["within"] == {"n": 2, **right, "answers_right": 1}, "two apples of test"
    assert place["gap"]["both"] == difference(3, 4, 2, 2)
    assert [(row["role"], row["name"]) for row in found["unknown"]] == [
        *(("species", None), ("species", "tea"), ("disease", None), ("disease", "corn/smut"))
    ]
    text = "\n".join(open_world.report_lines(found))
    assert "## A new place" in text
    assert "-25.0 points" in text
    assert "further up (2 of field); and near-duplicates" in text
    assert "in one group with them (1)." in text


def test_without_such_pictures_the_report_says_how_to_get_some(tmp_path):
    pets = OodKind("pets", "plant", {"val": [], "test": [Path("1.jpg")]})
    pictures = Pictures(SimpleNamespace(root=tmp_path, tree=TREE), 32, [pets], 100, 0)
    found = open_world.judge(Outcome(pictures, (), {}, {}, {}, {}), CARD)
    assert found == {}
    assert "--holdout-species" in "\n".join(open_world.report_lines(found))


@pytest.mark.parametrize(
    ("counts", "ends"),
    [
        ((56, 70, 48, 80), (0.2, 0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.6, 0.1705, 0.8090)),
        ((10, 10, 0, 20), (1.0, 0.6791, 1.0)),
    ],
)
def test_the_interval_of_a_difference_is_as_published(counts, ends):
    """Newcombe (1998), table II, method 10, contrasts a, b and f."""
    assert difference(*counts) == pytest.approx(ends, abs=5e-5)


# region real files


@pytest.fixture(scope="module")
def organized(tmp_path_factory) -> Path:
    """holdout/ of three unknown species, one unknown disease and a source, as 01 writes it."""
    root = tmp_path_factory.mktemp("organized")
    rows = []
    for split, species, disease, dataset, green in (
        ("holdout_species", "tea", "rust", "a", 10),
        ("holdout_species", "rice", "blast", "a", 20),
        ("holdout_species", "rice", "healthy", "a", 30),
        ("holdout_species", "mango", "healthy", "a", 40),
        ("holdout_diseases", "corn", "smut", "a", 50),
        ("holdout_source", "apple", "scab", "b", 60),
        ("holdout_source", "tea", "rust", "b", 70),
        ("holdout_source", "mango", "healthy", "b", 63),
        ("holdout_copies", "apple", "scab", "b", 90),
    ):
        for number in range(3):
            path = f"{split.replace('_', '/')}/{species}/{disease}/{green + number}.jpg"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (0, green + number, 0)).save(root / path)
            rows.append(dict(path=path, split=split, dataset=dataset, offset=""))
    rows.append(dict(rows[12], path="holdout/diseases/corn/smut/500.jpg"))
    (root / rows[-1]["path"]).write_bytes(b"broken since")
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def data_of(root: Path) -> SimpleNamespace:
    return SimpleNamespace(root=root, tree=TREE, long_side=16)


def test_whole_species_are_fitted_with_or_reported(organized):
    kinds = {kind.name: kind for kind in known_ood(data_of(organized))}
    assert {name: kind.role for name, kind in kinds.items()} == {
        "holdout_species": "species",
        "holdout_diseases": "disease",
        "source b": "source",
    }
    held = {
        split: {path.parts[-3] for path in files}
        for split, files in kinds["holdout_species"].files.items()
    }
    assert held["test"] == {"rice", "tea"}
    assert held["val"] == {"mango"}, "the second by the hash of its name"
    assert sum(len(files) for files in kinds["holdout_species"].files.values()) == 12
    assert [len(f) for f in kinds["holdout_diseases"].files.values()] == [0, 4], "one: reported"
    assert [len(f) for f in kinds["source b"].files.values()] == [0, 9], "copies do not count"


def test_every_answer_is_held_against_its_own_picture(organized):
    """The class of a picture comes from its path and the answer from its pixels: a model that names
    the green of a picture as its score keeps both together, even where a file between others broke.
    """

    def run(batch: np.ndarray) -> list[np.ndarray]:
        return [rows(*[(0, CLASS)] * len(batch)), batch[:, 0, 0, 1:2].astype(np.float32)]

    plants = (np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64))
    pictures = Pictures(data_of(organized), 32, known_ood(data_of(organized)), 4, 0)
    pictures = SimpleNamespace(
        **{name: getattr(pictures, name) for name in ("data", "kinds", "ood", "ood_files")},
        count=lambda split, at_most=1: 1,
        count_ood=pictures.count_ood,
        batches=lambda split: iter([plants]),
    )
    seen = open_world.gather(outcome_of("x", run, pictures, ("green",), splits=("test",)))
    assert len(seen.ood) == 4 + 3 + 3, "mango chose thresholds, and source b has it too"
    greens = {"tea": (10,), "rice": (20, 30), "corn/smut": (50,)}
    assert set(seen.name) == {"tea", "rice", "corn/smut", "apple/scab"}
    for name, source, class_idx, green in zip(
        seen.name, seen.source, seen.class_idx, seen.ood[:, 0], strict=True
    ):
        wanted = greens.get(name, (60,))
        assert min(abs(green - 1 - value) for value in wanted) <= 3, (name, green)
        assert (source == "b") == (green > 57), (name, green)
        assert class_idx == (1 if source == "b" and name == "apple/scab" else -1)


# endregion
