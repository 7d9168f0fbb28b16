"""Several photos of one plant, declared species, priors: the arithmetic, and what the answer says
of it.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
import tiny_bundle as tiny

from common.serve.answer import Options, answer
from common.serve.fusion import (
    FLOOR,
    apply_prior,
    best,
    condition,
    find_species,
    fuse_probabilities,
    fuse_scores,
    parse_prior,
    photo_weight,
)
from common.serve.http.uploads import RequestError, read_options

TREE = tiny.TREE


def ask(predictor, *colors, size=(200, 160), **options):
    return answer(
        predictor,
        [tiny.run_photo(predictor, tiny.picture(color, size)) for color in colors],
        Options(**options),
    )


def random_rows(count, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(TREE.num_classes, 0.3), count)


def test_the_same_photo_twice_is_one_photo_and_one_alone_is_untouched():
    row = random_rows(1)
    np.testing.assert_array_equal(fuse_probabilities(row, np.array([0.3])), row[0])
    np.testing.assert_allclose(
        fuse_probabilities(np.repeat(row, 3, axis=0), np.array([0.2, 1, 0.7])),
        np.maximum(row[0], FLOOR),
        atol=1e-9,
    )


def test_the_fused_row_is_the_weighted_geometric_mean():
    rows, weights = random_rows(4), np.array([1.0, 0.5, 0.0, 0.25])
    wanted = np.prod(rows[[0, 1, 3]] ** (weights[[0, 1, 3], None] / 1.75), axis=0)
    np.testing.assert_allclose(fuse_probabilities(rows, weights), wanted / wanted.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        fuse_probabilities(rows, np.zeros(4)), fuse_probabilities(rows, np.ones(4))
    )


def test_a_zero_is_no_veto_by_rounding_but_nearly_one():
    fused = fuse_probabilities(np.array([[0.0, 1.0], [0.9, 0.1]]), np.ones(2))
    assert 0 < fused[0] < 1e-4
    assert fused.sum() == pytest.approx(1)


def test_scores_lie_between_those_of_the_photos_that_count():
    ood = np.array([[1.0, np.nan], [3.0, 5.0], [9.0, 9.0]])
    np.testing.assert_allclose(fuse_scores(ood[1:], np.array([0.5, 1.5]), [3, 9]), [7.5, 8.0])
    np.testing.assert_allclose(
        fuse_scores(ood, np.array([0.0, 1.0, 0.0]), [1, 3, 9]), [3, 5]
    )  # not spoiled by the NaN of another
    np.testing.assert_allclose(fuse_scores(ood[1:], np.zeros(2), [9, None]), [3, 5])


def test_weights_fall_with_poor_light_focus_and_strangeness():
    limits = {"brightness": 0.2, "sharpness": 0.1}
    good = {"brightness": 0.5, "sharpness": 0.3, "short_side": 300.0}
    assert photo_weight(good, limits, 0.5, False) == 1.0
    assert photo_weight(good, {}, None, False) == 1.0
    assert photo_weight(good, limits, 0.5, True) == 0.0
    dark, blurred = dict(good, brightness=0.1), dict(good, sharpness=0.02)
    assert photo_weight(dark, limits, 0.5, False) == pytest.approx(0.25)
    assert photo_weight(blurred, limits, 0.5, False) == pytest.approx(0.1)
    assert photo_weight(dict(good, sharpness=float("nan")), limits, 0.5, False) == pytest.approx(
        0.1
    )
    falling = [photo_weight(good, limits, q, False) for q in (0.9, 0.95, 0.99, 1.0)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 1.0
    assert falling[-1] == pytest.approx(0.1)


def test_a_prior_multiplies_and_a_declared_species_conditions():
    row = random_rows(1)[0]
    weighed = apply_prior(row, {"basil": 4.0}, TREE)
    wanted = row * np.array([1, 1, 1, 4, 1, 1])
    np.testing.assert_allclose(weighed, wanted / wanted.sum(), atol=1e-9)
    given = condition(row, "corn", TREE)
    np.testing.assert_allclose(given[4:], row[4:] / row[4:].sum(), atol=1e-9)
    assert given[:4].sum() == 0
    blind = condition(
        np.array([0.0, 0, 0, 1, 0, 0]), "apple", TREE
    )  # no evidence at all: its diseases alike
    np.testing.assert_allclose(blind[:3], 1 / 3)
    assert best(blind, TREE)["species"] == "apple"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("apple:3,corn:0.5", {"apple": 3.0, "corn": 0.5}),
        (" Apple : 2 ", {"apple": 2.0}),
        ('{"corn": 2, "basil": 0}', {"corn": 2.0, "basil": 0.0}),
    ],
)
def test_priors_are_read(text, wanted):
    assert parse_prior(text, TREE) == wanted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("appel:3", "Did you mean apple"),
        ("apple", "tomato:3"),
        ("apple:-1", "from 0"),
        ("apple:nan", "from 0"),
        ("apple:inf", "from 0"),
        ("apple:1e9", "from 0"),
        ("{", "JSON"),
        ('{"apple": [1]}', "from 0"),
        ('{"apple": true}', "from 0"),
        ("{}", "names no species"),
        (",", "names no species"),
        ("apple:0,basil:0,corn:0", "every species"),
        ("{" * 5000, "JSON"),
        ("apple:" + "9" * 500, "from 0"),
        ('{"a":' + "[" * 20000, "JSON"),
    ],
)
def test_bad_priors_say_what_is_wrong(text, word):
    with pytest.raises(ValueError, match=word):
        parse_prior(text, TREE)


def test_names_of_species_are_forgiving():
    tree = tiny.ClassTree(("bell_pepper", "tomato"), (("healthy",), ("healthy",)))
    assert find_species(" Bell-Pepper ", tree) == "bell_pepper"
    with pytest.raises(ValueError, match="Did you mean tomato"):
        find_species("tomatoe", tree)


def test_options_of_a_request():
    def read(*pairs):
        return read_options(pairs, Options(), TREE, ["0.95", "0.90"])

    assert read(
        ("species", "Corn"), ("precision", "0.9"), ("prior", "apple:2"), ("heatmap", "true")
    ) == Options(heatmap=True, species="corn", precision="0.90", prior={"apple": 2.0})
    assert (
        read(("species", ""), ("precision", ""), ("prior", "")) == Options()
    )  # an empty field of a form
    for pair, word in (
        (("precision", "0.99"), "0.90, 0.95"),
        (("precision", "x"), "0.90, 0.95"),
        (("species", "fern"), "fern"),
        (("speces", "corn"), "not known"),
    ):
        with pytest.raises(RequestError, match=word) as caught:
            read(pair)
        assert caught.value.status == 400
        assert caught.value.code == "bad_option"


def test_several_photos_become_one_answer_with_a_row_each(predictor):
    three = ask(predictor, tiny.color_of(2), tiny.color_of(2), tiny.between(1, 2), heatmap=True)
    assert (three["decision"], three["species"], three["disease"]) == ("answered", "apple", "scab")
    assert [row["weight"] for row in three["photos"]] == [1.0, 1.0, three["photos"][2]["weight"]]
    assert three["agreement"] == {"agree": True, "level": None, "message": None}
    assert len(three["heatmap"]) == tiny.CELLS
    assert three["image"] == {"width": 200, "height": 160}
    alone, twice = (
        ask(predictor, tiny.color_of(2)),
        ask(predictor, tiny.color_of(2), tiny.color_of(2)),
    )
    assert twice["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    assert twice["rejection"]["value"] == pytest.approx(alone["rejection"]["value"], abs=1e-6)


def test_photos_that_disagree_are_told(predictor):
    parted = ask(predictor, tiny.color_of(0), tiny.color_of(3))
    assert parted["agreement"]["agree"] is False
    assert parted["agreement"]["level"] == "species"
    assert "photo 1 says apple healthy" in parted["agreement"]["message"]
    assert "photo 2 says basil" in parted["agreement"]["message"]
    diseases = ask(predictor, tiny.color_of(0), tiny.color_of(2))
    assert diseases["agreement"]["level"] == "disease"
    assert "photo 2 says apple scab" in diseases["agreement"]["message"]


@functools.cache
def plain(predictor):
    return tiny.run_photo(predictor, tiny.picture(tiny.color_of(0), (200, 160)))


def told(predictor, *rows, **options):
    """The answer to photos of these probabilities that are alike in all else."""
    return answer(
        predictor,
        [replace(plain(predictor), probabilities=np.asarray(row, np.float64)) for row in rows],
        Options(**options),
    )


def test_photos_that_disagree_are_not_answered_a_compromise(predictor):
    """Grape black rot and oak powdery mildew became "Oak, anthracnose, 64 %": what neither photo
    shows, but neither rules out.
    """
    rust, blight = [0, 0.97, 0, 0, 0, 0.03], [0, 0, 0, 0, 0.97, 0.03]
    compromise = fuse_probabilities(np.array([rust, blight]), np.ones(2))
    assert compromise[5] > 0.9
    found = told(predictor, rust, blight)
    assert (found["decision"], found["level"], found["species"]) == ("rejected", "none", None)
    assert found["path"] == []
    assert found["rejection"]["rejected"]
    assert found["rejection"]["reason"] == "photos_disagree"
    for text in (found["rejection"]["message"], found["agreement"]["message"]):
        assert "photo 1 says apple rust, photo 2 says corn blight" in text
    assert [one["disease"] for one in found["alternatives"][:2]] == ["rust", "blight"]
    # two diseases of one species; a third would win
    scab = [0.03, 0, 0.97, 0, 0, 0]
    found = told(predictor, [0.03, 0.97, 0, 0, 0, 0], scab)
    assert (found["decision"], found["species"], found["disease"]) == ("rolled_up", "apple", None)
    assert found["rejection"]["reason"] == "photos_disagree"
    assert not found["rejection"]["rejected"]
    assert "photo 2 says apple scab" in found["rejection"]["message"]
    # a declared species leaves them to disagree about its diseases alone
    found = told(predictor, rust, [0, 0, 0.4, 0, 0.6, 0], species="apple")
    assert (found["species"], found["disease"]) == ("apple", None)
    assert "photo 2 says apple scab" in found["rejection"]["message"]
    # a prior that makes both photos say the same makes them agree
    torn = [0.001, 0.001, 0.001, 0, 0.996, 0.001]
    assert not told(predictor, rust, torn)["agreement"]["agree"]
    assert told(predictor, torn, torn, prior={"apple": 0})["species"] == "corn"
    assert told(predictor, rust, torn, prior={"corn": 0})["species"] == "apple"


def test_what_no_photo_was_answered_is_not_answered(predictor):
    # unsure, both: their fused probabilities are sure of apple healthy
    unsure = ([0.5, 0, 0, 0.5, 0, 0], [0.5, 0, 0, 0, 0.5, 0])
    assert fuse_probabilities(np.array(unsure), np.ones(2))[0] > 0.99
    found = told(predictor, *unsure)
    assert (found["decision"], found["rejection"]["reason"]) == ("rejected", "unsure")
    assert found["rejection"]["message"] == told(predictor, unsure[0])["rejection"]["message"]
    # the species alone, both: no disease
    found = told(predictor, [0.5, 0.5, 0, 0, 0, 0], [0.5, 0, 0.5, 0, 0, 0])
    assert (found["decision"], found["species"], found["disease"]) == ("rolled_up", "apple", None)
    # one is sure, the others are not: they may take away, not add
    found = told(predictor, [0.97, 0, 0, 0.03, 0, 0], [0, 0, 0, 0.5, 0.5, 0])
    assert found["species"] is None
    found = told(predictor, [0.97, 0, 0, 0.03, 0, 0], [0.5, 0, 0, 0, 0.5, 0])
    assert (found["species"], found["disease"]) == ("apple", "healthy")


def test_an_answer_to_several_photos_is_what_one_of_them_was_answered_or_less(predictor):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(400):
        count = int(rng.integers(2, 6))
        rows = rng.dirichlet(np.full(TREE.num_classes, rng.choice([0.02, 0.1, 0.5])), count)
        if rng.random() < 0.5:  # most about one class, as photos of one plant
            rows = 0.2 * rows + 0.8 * np.eye(TREE.num_classes)[int(rng.integers(6))]
        options = {"mode": str(rng.choice(["joint", "routed"]))}
        if rng.random() < 0.3:
            options["prior"] = {"apple": float(rng.choice([0, 0.2, 5])), "corn": 2.0}
        if rng.random() < 0.2:
            options["species"] = str(rng.choice(TREE.species))
        own = [told(predictor, row, **options) for row in rows]
        found = told(predictor, *rows, **options)
        pairs = {(one["species"], one["disease"]) for one in own if one["species"]}
        species, diseases = {s for s, _ in pairs}, {pair for pair in pairs if pair[1]}
        seen.add((found["level"], len(species) > 1, len(diseases) > 1))
        if found["species"]:
            assert species == {found["species"]}
            assert found["level"] == ("disease" if found["disease"] else "species")
        if found["disease"]:
            assert diseases == {(found["species"], found["disease"])}
        if len(species) > 1 or len(diseases) > 1:
            assert found["rejection"]["reason"] == "photos_disagree"
            named = species if len(species) > 1 else {disease for _, disease in diseases}
            assert all(name in found["rejection"]["message"] for name in named)
        order = told(predictor, *rows[::-1], **options)
        assert (order["species"], order["disease"]) == (found["species"], found["disease"])
        again = told(predictor, rows[0], rows[0], **options)
        assert [again[k] for k in ("decision", "species", "disease")] == [
            own[0][k] for k in ("decision", "species", "disease")
        ]
    assert {("disease", False, False), ("species", False, True), ("none", True, True)} <= seen


def test_a_rejected_photo_counts_nothing_and_such_photos_alone_are_rejected(predictor):
    mixed, alone = ask(predictor, tiny.NO_PLANT, tiny.color_of(0)), ask(predictor, tiny.color_of(0))
    assert [row["weight"] for row in mixed["photos"]] == [0.0, 1.0]
    assert mixed["photos"][0]["rejected"]
    for key in ("decision", "species", "disease", "probabilities", "rejection"):
        assert mixed[key] == alone[key]
    assert mixed["agreement"]["agree"]
    rejected = ask(predictor, tiny.NO_PLANT, tiny.NO_PLANT)
    assert rejected["decision"] == "rejected"
    assert rejected["rejection"]["reason"] == "not_a_plant"
    one = ask(predictor, tiny.NO_PLANT)
    assert rejected["rejection"] == one["rejection"]


def test_a_photo_that_the_second_opinion_rejects_counts_nothing(predictor, monkeypatch):
    """The species threshold rejects whatever the OOD threshold accepts, by the same score here."""
    ood = predictor.card.rejection.ood
    accepted = tiny.run_photo(predictor, tiny.picture(tiny.color_of(0), (200, 160))).ood
    loose = replace(ood, threshold=1e9)
    strict = replace(ood, threshold=float(ood.value(accepted)) + 1e-6)
    rejection = replace(predictor.card.rejection, ood=loose, species=strict)
    monkeypatch.setattr(predictor, "card", replace(predictor.card, rejection=rejection))
    mixed = ask(predictor, tiny.NO_PLANT, tiny.color_of(0))
    assert [row["rejected"] for row in mixed["photos"]] == [True, False]
    assert [row["weight"] for row in mixed["photos"]][0] == 0.0
    assert mixed["decision"] == "answered"
    assert ask(predictor, tiny.NO_PLANT)["rejection"]["reason"] == "unknown_species"


def test_a_photo_that_is_all_but_black_counts_nothing(predictor, monkeypatch):
    """Its class, of which the model is sure, had a say in what the others were answered."""
    limits = {"brightness": 0.99}  # a quarter of it is more than basil has
    rejection = replace(predictor.card.rejection, photo=limits)
    monkeypatch.setattr(predictor, "card", replace(predictor.card, rejection=rejection))
    black, corn = tiny.color_of(3), tiny.color_of(4)
    for options in ({}, {"species": "corn"}, {"prior": {"basil": 9.0}}):
        mixed, alone = ask(predictor, corn, black, **options), ask(predictor, corn, **options)
        assert [row["rejected"] for row in mixed["photos"]] == [False, True]
        assert mixed["photos"][1]["weight"] == 0.0
        assert mixed["decision"] == "answered"
        assert mixed["probabilities"] == alone["probabilities"]
        both = ask(predictor, black, black, **options)
        assert (both["decision"], both["rejection"]["reason"]) == ("rejected", "dark")
    assert ask(predictor, tiny.NO_PLANT, black)["decision"] == "rejected"


def test_a_small_photo_counts_less(predictor):
    seen = [
        tiny.run_photo(predictor, tiny.picture(tiny.color_of(0), size))
        for size in ((200, 160), (60, 50))
    ]
    rows = answer(predictor, seen, Options())["photos"]
    assert rows[0]["weight"] == 1.0
    assert rows[1]["weight"] == pytest.approx(50 / 80)


def test_a_declared_species_decides_the_species_and_says_so(predictor):
    free = ask(predictor, tiny.color_of(0))
    held = ask(predictor, tiny.color_of(0), species="corn")
    assert free["conditioned"] is None
    assert free["species"] == "apple"
    assert held["probabilities"]["species"] == 1.0
    assert held["path"][0]["name"] == "corn"
    told = held["conditioned"]
    assert (told["species"], told["agrees"], told["best_before"]["species"]) == (
        "corn",
        False,
        "apple",
    )
    assert told["probability_before"] < 0.1
    assert "corn" in told["message"]
    assert "apple" in told["message"]
    right = ask(predictor, tiny.between(1, 2), species="apple")["conditioned"]
    assert right["agrees"]
    assert right["message"] is None
    # a name does not make a plant, nor is a rejection an answer that goes by it
    nothing = [ask(predictor, tiny.NO_PLANT, species=species) for species in TREE.species]
    assert {found["decision"] for found in nothing} == {"rejected"}
    assert {found["conditioned"]["message"] for found in nothing} == {None}
    assert {found["conditioned"]["agrees"] for found in nothing} == {False, True}


def test_a_prior_shows_its_effect(predictor):
    torn = tiny.between(3, 0)
    plain = ask(predictor, torn)
    other = "basil" if plain["alternatives"][0]["species"] != "basil" else "apple"
    moved = ask(predictor, torn, prior={other: 1e6})["prior"]
    assert moved["before"]["species"] != other
    assert moved["after"]["species"] == other
    assert moved["changed"]
    same = ask(predictor, tiny.color_of(0), prior={"apple": 2.0})["prior"]
    assert not same["changed"]
    assert same["weights"] == {"apple": 2.0}


def test_precision_chooses_the_bars(predictor):
    torn = tiny.between(1, 2)
    assert ask(predictor, torn)["precision"] == "0.95"
    low = ask(predictor, torn, precision="0.90")
    assert low["precision"] == "0.90"
    seen = [tiny.run_photo(predictor, tiny.picture(torn))]
    class_idx = answer(predictor, seen, Options())["alternatives"][0]["probability"]
    assert 0.4 < class_idx < 0.6  # below both class thresholds: 0.6 and 0.7
    between = answer(
        predictor,
        [
            seen[0].__class__(
                **{**vars(seen[0]), "probabilities": np.array([0.65, 0.3, 0.05, 0, 0, 0])}
            )
        ],
        Options(),
    )
    lower = answer(
        predictor,
        [
            seen[0].__class__(
                **{**vars(seen[0]), "probabilities": np.array([0.65, 0.3, 0.05, 0, 0, 0])}
            )
        ],
        Options(precision="0.90"),
    )
    assert (between["level"], lower["level"]) == ("species", "disease")
