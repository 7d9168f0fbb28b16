"""Heads trained again for the rare classes: the loss, what each method may change, and what it does
for few pictures."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.classes import ClassTree
from common.train import tail
from common.train.cached_features import CachedViews
from common.train.engine import Compute
from common.train.heads import PADDING
from common.train.model import SwinHierarchical
from common.train.shots import Answers, by_size
from common.train.tail import (
    GRID,
    METHODS,
    Method,
    Schedule,
    adjusted_loss,
    answer,
    choose_tau,
    head_state,
    lengths,
    retrain_heads,
)

CPU = Compute(torch.device("cpu"), torch.float32)
TREE = ClassTree(
    ("apple", "corn", "rice"), (("healthy", "rust", "scab"), ("blight", "healthy"), ("healthy",))
)
COUNTS = np.array([120, 6, 30, 60, 4, 25])
INFORMED = 6  # of the features say something; with more, few pictures are told apart by heart
SPREAD = np.arange(96) < INFORMED
FAST = Schedule(epochs=8, lr=3e-2, batch_size=32)
KINDS = {
    "hierarchical": {},
    "flat": {"classes": "flat"},
    "neck": {"neck": {"width": 16, "dropout": 0.2}},
}


def stored(
    path: Path, class_idx: np.ndarray, centres: np.ndarray, seed: int, views: int = 2
) -> CachedViews:
    """Features drawn around the centre of each class, as `cache_views` would store them."""
    cached = CachedViews(path, views, len(class_idx), centres.shape[1])
    rows = np.empty((views, len(class_idx)), cached.row)
    rows["feature"] = centres[class_idx] + SPREAD * np.random.default_rng(seed).normal(
        0, 1, (views, len(class_idx), centres.shape[1])
    )
    rows["class_idx"] = class_idx
    path.write_bytes(rows.tobytes())
    return cached


def new_model(kind: str) -> SwinHierarchical:
    torch.manual_seed(0)
    return SwinHierarchical("test_resnet", TREE, image_size=32, **KINDS[kind]).eval()


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Long-tailed train and balanced val features; classes overlap, those of one species most."""
    folder, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(1)
    width = len(SPREAD)
    centres = SPREAD * (
        rng.normal(0, 1.2, (3, width))[TREE.class_species] + rng.normal(0, 0.9, (6, width))
    )
    train = stored(folder / "train", np.repeat(np.arange(6), COUNTS), centres, 2)
    return train, stored(folder / "val", np.repeat(np.arange(6), 60), centres, 3, 1)


@pytest.fixture(scope="module")
def plain(features):
    """Models with plainly trained heads, by kind; left as they are by everything below."""
    models = {}
    for kind in KINDS:
        models[kind] = new_model(kind)
        models[kind].load_state_dict(
            retrain_heads(models[kind], *features, "cross_entropy", COUNTS, FAST, 0, CPU),
            strict=False,
        )
    return models


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in one.items()
    )


# region the loss


def test_the_hierarchical_loss_is_cross_entropy_over_raised_logits_of_single_layers():
    model = new_model("hierarchical")
    generator = torch.Generator().manual_seed(0)
    hidden, class_idx = (
        torch.randn(20, model.num_features, generator=generator),
        torch.arange(20) % 6,
    )
    species_prior, class_prior = (
        torch.log(torch.tensor([52.0, 32.0, 25.0])),
        torch.log(torch.tensor(COUNTS).float()),
    )
    loss = adjusted_loss(
        model, hidden, class_idx, (species_prior, class_prior), None, Schedule(disease_weight=0.7)
    )
    for row, true, value in zip(hidden, class_idx.tolist(), loss, strict=True):
        s = int(TREE.class_species[true])
        a, b = int(TREE.offsets[s]), int(TREE.offsets[s + 1])
        species = F.cross_entropy(model.species_head(row) + species_prior, torch.tensor(s))
        disease = F.cross_entropy(
            model.disease_heads.weight[a:b] @ row
            + model.disease_heads.bias[a:b]
            + class_prior[a:b],
            torch.tensor(true - a),
        )
        assert value.item() == pytest.approx((species + 0.7 * disease).item(), abs=1e-5)


def test_the_flat_loss_is_cross_entropy_over_all_raised_logits():
    model = new_model("flat")
    hidden, class_idx = (
        torch.randn(20, model.num_features, generator=torch.Generator().manual_seed(0)),
        torch.arange(20) % 6,
    )
    prior = torch.log(torch.tensor(COUNTS).float())
    loss = adjusted_loss(model, hidden, class_idx, (torch.zeros(3), prior), None, Schedule())
    expected = F.cross_entropy(
        hidden @ model.disease_heads.weight.T + model.disease_heads.bias + prior,
        class_idx,
        reduction="none",
    )
    torch.testing.assert_close(loss, expected)


def test_scales_multiply_each_logit_and_leave_padding_alone(monkeypatch):
    model = new_model("hierarchical")
    hidden, class_idx = (
        torch.randn(6, model.num_features, generator=torch.Generator().manual_seed(0)),
        torch.arange(6),
    )
    scales = tail._Scales(model)
    with torch.no_grad():
        scales.class_idx.copy_(torch.tensor([1.0, 2.0, -0.5, 3.0, 0.25, 1.0]))
    seen, real = [], tail.focal_loss
    monkeypatch.setattr(
        tail,
        "focal_loss",
        lambda logits, *a, **k: seen.append(logits.detach()) or real(logits, *a, **k),
    )
    adjusted_loss(model, hidden, class_idx, (torch.zeros(3), torch.zeros(6)), scales, Schedule())
    every = model.disease_heads.all_logits(hidden).detach() * scales.class_idx.detach()
    for i, row in enumerate(seen[1]):
        a, b = (int(TREE.offsets[TREE.class_species[i] + k]) for k in (0, 1))
        torch.testing.assert_close(row[: b - a], every[i, a:b])
        assert (row[b - a :] == PADDING).all()


# endregion

# region what each method does


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_deterministic_and_leaves_the_model_as_it_was(plain, features, kind, method):
    model = plain[kind]
    before, learns = head_state(model), [p.requires_grad for p in model.parameters()]
    short = Schedule(epochs=2, lr=1e-2, batch_size=64)
    made = retrain_heads(model, *features, method, COUNTS, short, 0, CPU)
    torch.rand(5)  # the state of torch's generator must not matter
    assert same(made, retrain_heads(model, *features, method, COUNTS, short, 0, CPU))
    assert (
        same(head_state(model), before) and [p.requires_grad for p in model.parameters()] == learns
    )
    assert (
        not any(key.startswith("backbone.") for key in made)
        and made.keys() <= model.state_dict().keys()
    )
    neck = [key for key in made if key.startswith("neck.")]
    assert len(neck) == (2 if kind == "neck" else 0)
    moved = METHODS[method].learns == "heads"
    assert all(torch.equal(made[key], before[key]) != moved for key in neck), (
        "scales and tau leave the neck alone"
    )
    assert method == "tau" or same(made, before) == (method == "plain"), "tau may well be 0"


def test_another_seed_trains_on_other_batches(plain, features):
    made = [
        retrain_heads(plain["hierarchical"], *features, "balanced_softmax", COUNTS, FAST, seed, CPU)
        for seed in (0, 1)
    ]
    assert not same(*made)


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
@pytest.mark.parametrize("method", ["balanced_softmax", "balanced_sampling"])
def test_few_pictures_gain_over_as_much_plain_training(plain, features, kind, method):
    model, val = plain[kind], features[1]
    figures = {}
    for name in ("cross_entropy", method):
        state = retrain_heads(model, *features, name, COUNTS, FAST, 0, CPU)
        figures[name] = by_size(answer(model, val, CPU, state), TREE, COUNTS, few=10, medium=40)
    assert (
        figures[method]["few"]["cascade_acc"] > figures["cross_entropy"]["few"]["cascade_acc"] + 0.1
    )
    assert figures[method]["all"]["cascade_f1"] > figures["cross_entropy"]["all"]["cascade_f1"]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_lws_scales_each_class_for_classes_that_come_equally_often(plain, features, kind):
    model, (x, class_idx) = plain[kind], next(features[0].batches(1000))
    before, made = head_state(model), retrain_heads(model, *features, "lws", COUNTS, FAST, 0, CPU)
    for head in ("species_head", "disease_heads") if kind == "hierarchical" else ("disease_heads",):
        old, new = (
            torch.cat([state[f"{head}.weight"], state[f"{head}.bias"][:, None]], dim=1)
            for state in (before, made)
        )
        factor = (old * new).sum(1) / old.square().sum(1)
        torch.testing.assert_close(new, old * factor[:, None], rtol=1e-4, atol=1e-6)
        assert factor.max() > 1.1 * factor.min()

    def balanced_loss(state: dict[str, torch.Tensor]) -> float:
        model.load_state_dict(state, strict=False)
        with torch.inference_mode():
            losses = adjusted_loss(
                model, model.neck(x), class_idx, (torch.zeros(3), torch.zeros(6)), None, Schedule()
            )
        model.load_state_dict(before, strict=False)
        return float(np.mean([losses[class_idx == k].mean() for k in range(6)]))

    assert balanced_loss(made) < 0.97 * balanced_loss(before)


@pytest.mark.parametrize("part", ["species", "disease"])
def test_only_the_heads_asked_for_change(plain, features, part):
    other = {"species": "disease_heads", "disease": "species_head"}[part]
    model = plain["hierarchical"]
    before = head_state(model)
    for method in ("balanced_softmax", "lws", "tau"):
        made = retrain_heads(
            model, *features, method, COUNTS, Schedule(epochs=1, lr=1e-2, heads=part), 0, CPU
        )
        changed = {key.split(".")[0] for key in made if not torch.equal(made[key], before[key])}
        assert other not in changed and (changed or method == "tau")


def test_tau_scales_by_length_and_keeps_the_mean(plain):
    model = plain["hierarchical"]
    factors = lengths(model, 0.5, 1.0)
    for head, factor, tau in (
        (model.species_head, factors[0], 0.5),
        (model.disease_heads, factors[1], 1.0),
    ):
        norm = head.weight.detach().norm(dim=1)
        torch.testing.assert_close(factor / factor[0], (norm / norm[0]) ** -tau)
        assert float(factor.log().mean()) == pytest.approx(0, abs=1e-6)
    assert (
        all((f == 1).all() for f in lengths(model, 0, 0))
        and (lengths(plain["flat"], 1, 1)[0] == 1).all()
    )


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_tau_is_the_best_on_val_and_the_smallest_of_equals(plain, features, kind):
    model, val = copy.deepcopy(plain[kind]), features[1]
    uneven = torch.tensor([3.0, 0.4, 1.0, 2.0, 0.3, 1.0])
    tail._multiply(
        model, uneven[:3], uneven
    )  # as if long training had made the weights of frequent classes long
    before = head_state(model)
    scores: dict[str, list[float]] = {"species_f1": [], "disease_f1": [], "cascade_f1": []}
    for tau in GRID:
        tail._multiply(model, *lengths(model, tau, tau))
        answers = answer(model, val, CPU)
        model.load_state_dict(before, strict=False)
        f1 = [
            tail.f1_per_class(answers.class_idx, answers.given, 6).mean(),
            tail.f1_per_class(answers.class_idx, answers.joint, 6).mean(),
            tail.f1_per_class(TREE.class_species[answers.class_idx], answers.species, 3).mean(),
        ]
        for name, value in zip(("disease_f1", "cascade_f1", "species_f1"), f1, strict=True):
            scores[name].append(value)
    best = {name: GRID[int(np.argmax(values))] for name, values in scores.items()}
    expected = (
        (0.0, best["cascade_f1"]) if kind == "flat" else (best["species_f1"], best["disease_f1"])
    )
    assert choose_tau(model, val, CPU) == expected
    assert len(set(scores["disease_f1"])) > 3, "the choice is a choice"


def test_sampling(plain, features, monkeypatch):
    train, seen, real = features[0], [], CachedViews.batch
    monkeypatch.setattr(
        CachedViews,
        "batch",
        lambda self, items: seen.extend(i for _, _, i in items) or real(self, items),
    )
    many = Schedule(epochs=10, lr=1e-3, batch_size=64)
    retrain_heads(plain["hierarchical"], *features, "balanced_sampling", COUNTS, many, 0, CPU)
    drawn = np.bincount(train.rows["class_idx"][0, seen], minlength=6)
    np.testing.assert_allclose(drawn / drawn.sum(), 1 / 6, atol=0.03)
    seen.clear()
    weights = (train.rows["class_idx"][0] == 3).astype(float)
    retrain_heads(
        plain["hierarchical"], *features, Method("heads", prior=1.0), COUNTS, many, 0, CPU, weights
    )
    assert (train.rows["class_idx"][0, seen] == 3).all() and seen
    seen.clear()
    retrain_heads(plain["hierarchical"], *features, "balanced_softmax", COUNTS, many, 0, CPU)
    assert np.bincount(seen).max() == 10, "shuffled: each picture once per epoch"


def test_mistakes(plain, features, refused):
    refused(
        ("balanced_softmaxx", "lws"),
        retrain_heads,
        plain["hierarchical"],
        *features,
        "balanced_softmaxx",
        COUNTS,
        FAST,
        0,
        CPU,
    )
    model = new_model("hierarchical")
    with torch.no_grad():
        model.species_head.weight[0, 0] = float("nan")
    refused(
        ("nan", "rate"), retrain_heads, model, *features, "balanced_softmax", COUNTS, FAST, 0, CPU
    )


# endregion

# region judging


@pytest.mark.parametrize("kind", KINDS)
def test_answers(plain, features, kind):
    model, val = plain[kind], features[1]
    found = answer(model, val, CPU)
    x, class_idx = next(val.batches(1000))
    with torch.inference_mode():
        hidden = model.neck(x)
        probs = model.probabilities(hidden, model.species_logits(hidden)).numpy()
    np.testing.assert_array_equal(found.class_idx, class_idx)
    np.testing.assert_array_equal(found.joint, probs.argmax(1))
    by_species = np.add.reduceat(probs, TREE.offsets[:-1], axis=1)
    np.testing.assert_array_equal(found.species, by_species.argmax(1))
    for given, true, row in zip(found.given, class_idx.tolist(), probs, strict=True):
        a, b = (TREE.offsets[TREE.class_species[true] + k] for k in (0, 1))
        assert given == a + row[a:b].argmax()


def test_answers_of_another_state_leave_the_model(plain, features):
    model = plain["hierarchical"]
    before, other = head_state(model), head_state(new_model("hierarchical"))
    found = answer(model, features[1], CPU, other)
    assert same(head_state(model), before)
    assert not np.array_equal(found.joint, answer(model, features[1], CPU).joint)


def test_figures_by_size_of_class():
    class_idx = np.array([0, 0, 0, 0, 1, 1, 2, 3, 4, 5])
    joint = np.array([0, 0, 0, 3, 1, 0, 2, 3, 3, 5])
    given = np.array([0, 0, 0, 0, 1, 0, 2, 3, 3, 5])
    found = by_size(
        Answers(class_idx, TREE.class_species[joint], given, joint),
        TREE,
        np.array([100, 80, 20, 81, 21, 3]),
        few=20,
        medium=80,
    )
    assert {name: (row["classes"], row["pictures"]) for name, row in found.items()} == {
        "many": (2, 5),
        "medium": (2, 3),
        "few": (2, 2),
        "all": (6, 10),
    }
    assert found["many"]["cascade_acc"] == 4 / 5 and found["medium"]["cascade_acc"] == 1 / 3
    # class 0: 3 hits of 4, said 4 times; class 3: 1 hit of 1, said 3 times
    assert found["many"]["cascade_f1"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert found["many"]["disease_f1"] == pytest.approx((8 / 9 + 2 / 3) / 2)
    assert found["few"]["disease_acc"] == 1.0 and found["few"]["cascade_acc"] == 1.0
    # apple: 6 hits of 7, said 6 times; corn: 2 of 2, said 3 times; rice: 1 of 1
    assert (
        found["all"]["species_f1"] == pytest.approx((3 * 12 / 13 + 2 * 4 / 5 + 1) / 6)
        and found["all"]["species_acc"] == 0.9
    )


def test_a_species_with_one_class_has_no_disease_figures():
    class_idx = np.array([0, 5, 5])
    found = by_size(
        Answers(class_idx, TREE.class_species[class_idx], class_idx, class_idx),
        TREE,
        np.array([100, 50, 50, 50, 50, 3]),
    )
    assert (
        np.isnan(found["few"]["disease_f1"])
        and np.isnan(found["few"]["disease_acc"])
        and found["few"]["cascade_f1"] == 1.0
    )
    assert (
        found["medium"]["classes"] == 0
        and np.isnan(found["medium"]["cascade_acc"])
        and found["all"]["classes"] == 2
    )


# endregion
