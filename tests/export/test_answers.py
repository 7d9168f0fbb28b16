"""Answers that are summed up batch by batch: the same to the bit as all at once, in the memory of
one table.
"""

import tracemalloc
from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.classes import ClassTree
from common.decide import joint_class, species_probabilities
from common.export import answers as answers_
from common.export import calibrate, fitting
from common.export.answers import blocks, join, run_over, sum_up, take
from common.export.calibrate import Temperatures, calibration_figures, retemper
from common.export.gate import Side, judge_gate
from common.export.graph import FeatureSpace, ServingGraph
from common.train.model import SwinHierarchical

SMALL = ClassTree(("a", "b", "c"), (("x", "y", "z"), ("x",), ("x", "y")))
CPU = torch.device("cpu")


def table_of(n: int, tree: ClassTree, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 (n, classes), a third of their first class, and true classes."""
    rng = np.random.default_rng(seed)
    class_idx = rng.integers(0, tree.num_classes, n)
    p = rng.random((n, tree.num_classes), dtype=np.float32)
    p[np.arange(n), class_idx] += tree.num_classes / 3
    return p / p.sum(axis=1, keepdims=True), class_idx


def same(one: object, other: object) -> None:
    """Equal to the bit, array by array."""
    if is_dataclass(one):
        for f in fields(one):
            same(getattr(one, f.name), getattr(other, f.name))
    elif isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        np.testing.assert_array_equal(one, other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)


def test_batch_by_batch_is_all_at_once():
    p, class_idx = table_of(70, SMALL, 1)
    wanted, ood = np.roll(p, 1, axis=1), np.arange(140, dtype=np.float32).reshape(70, 2)
    at_once = sum_up(p, class_idx, SMALL, ood, wanted, (ood[:, 0], class_idx))
    parts = [(np.arange(a, min(a + 32, 70)), class_idx[a : a + 32]) for a in (0, 32, 64)]
    found = run_over(
        lambda rows: [p[rows], ood[rows], None],
        parts,
        SMALL,
        wanted,
        lambda _, truth, scores: (scores[:, 0], truth),
    )
    same(found, at_once)
    sums, rows = species_probabilities(p, SMALL), np.arange(70)
    assert found.difference.max() == np.abs(p - wanted).max() > 0.1
    same(found.ranked.joint, joint_class(p, SMALL))
    same(found.ranked.species_p, sums.max(axis=1))
    same(found.ranked.joint_species_p, sums[rows, SMALL.class_species[found.ranked.joint]])
    same(found.ranked.routed_p, p[rows, found.ranked.routed])
    same(found.true_p, p[rows, class_idx])
    same(found.judged.routed, found.ranked.routed)
    few = np.array([3, 3, 69])
    more = (ood[few, 0], class_idx[few])
    same(take(found, few), sum_up(p[few], class_idx[few], SMALL, ood[few], wanted[few], more))


def test_what_is_not_asked_for_is_empty():
    p, class_idx = table_of(5, SMALL, 2)
    found = join([sum_up(p[:2], class_idx[:2], SMALL), sum_up(p[2:], class_idx[2:], SMALL)])
    assert found.ood.shape == (5, 0)
    assert not found.difference.any()
    assert found.also is None
    assert found.class_idx.tolist() == class_idx.tolist()


def test_blocks_cover_a_table_once(monkeypatch):
    monkeypatch.setattr(answers_, "AT_ONCE", 100)
    assert [*blocks(25, 10)] == [slice(0, 10), slice(10, 20), slice(20, 30)]
    assert [*blocks(2, 1000)] == [slice(0, 1), slice(1, 2)]
    assert not [*blocks(0, 10)]


def test_temperatures_do_not_depend_on_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, (300, 40)).astype(np.float32), rng.integers(0, 40, 300)
    whole = calibrate.fit_temperature(logits, target)
    monkeypatch.setattr(answers_, "AT_ONCE", 280)
    assert calibrate.fit_temperature(logits, target) == whole


# region memory

N, MANY = (
    1200,
    ClassTree(
        tuple(f"s{i}" for i in range(1000)), tuple(("a", "b", "c", "d") for _ in range(1000))
    ),
)
TABLE = N * 4000 * 4  # bytes


class Peak:
    """Bytes of numpy arrays that were alive at once inside the `with`, beyond those before."""

    def __enter__(self) -> "Peak":
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


@pytest.fixture
def graph() -> ServingGraph:
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", MANY, image_size=32).eval()
    features = torch.randn(64, model.num_features)
    layers = torch.randn(64, fitting.extract_features(model, torch.zeros(1, 32, 32, 3))[2].shape[1])
    spaces = [
        FeatureSpace(values, torch.arange(64), model.class_species, rank=8)
        for values in (features, layers)
    ]
    return ServingGraph(model, *spaces, 0.7, [1.3] * 1000).eval()


def shown() -> SimpleNamespace:
    """The pictures of an export without any of other plants or of none."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    class_idx = rng.integers(0, MANY.num_classes, N)
    train = SimpleNamespace(class_idx=class_idx)
    return SimpleNamespace(
        data=SimpleNamespace(tree=MANY, class_sizes=np.full(4000, 30), splits={"train": train}),
        photo_limits={},
        count=lambda split, at_most=None: min(N, at_most or N),
        count_ood=lambda role, split: 0,
        batches=lambda split: (
            (pictures[a : a + 32], class_idx[a : a + 32]) for a in range(0, N, 32)
        ),
        ood=lambda role, split: iter(()),
        poor=lambda kind, split: iter([(pictures[:8], class_idx[:8])]),
    )


def test_an_export_holds_one_table_of_probabilities(graph, monkeypatch):
    """PyTorch's answers to test, with which each model is compared; of the models' own, on val and
    on test, there is never more than a batch.
    """
    monkeypatch.setattr(answers_, "AT_ONCE", 50_000)
    pictures, at = shown(), Temperatures(0.7, np.full(1000, 1.3))

    @torch.inference_mode()
    def run(batch: np.ndarray) -> list[np.ndarray]:
        return [values.numpy() for values in graph(torch.from_numpy(batch))]

    def plain(probabilities: np.ndarray, class_idx: np.ndarray, _: np.ndarray) -> answers_.Answers:
        return sum_up(retemper(probabilities, MANY, at, Temperatures.none(MANY)), class_idx, MANY)

    with Peak() as peak:
        reference = fitting.torch_answers(graph, pictures, CPU)
        fp32, other = (
            fitting.outcome_of("x", run, pictures, graph.scores, reference=reference, also=also)
            for also in ({"test": plain}, None)
        )
        entry = fitting.describe(fp32, reference, 0.95)
        sides = [Side.of(found.splits["val"]) for found in (fp32, other)]
        gate = judge_gate("x", *sides, MANY, np.full(4000, 30))
        figures = [
            calibration_figures(found, MANY, np.full(4000, 30))
            for found in (fp32.splits["test"], fp32.splits["test"].also)
        ]
    assert TABLE < peak.bytes < 1.3 * TABLE
    # and all of it is what whole tables give
    whole = np.concatenate([run(batch)[0] for batch, _ in pictures.batches("test")])
    same(reference.probabilities, whole)
    same(reference.joint, whole.argmax(axis=1))
    assert entry["metrics"]["max_probability_difference"] == 0
    assert entry["metrics"]["top1_agreement"] == 1
    assert gate.passed
    moved = retemper(whole, MANY, at, Temperatures.none(MANY))
    class_idx = fp32.splits["test"].class_idx
    for figure, table in zip(figures, (whole, moved), strict=True):
        assert figure == calibration_figures(
            sum_up(table, class_idx, MANY), MANY, np.full(4000, 30)
        )
    assert figures[0]["all"]["nll"] != figures[1]["all"]["nll"]


def test_temperatures_of_many_species_make_no_second_table(monkeypatch):
    """A species a class: the logits of species are such a table."""
    monkeypatch.setattr(answers_, "AT_ONCE", 50_000)
    tree = ClassTree(tuple(f"s{i}" for i in range(4000)), tuple(("x",) for _ in range(4000)))
    rng = np.random.default_rng(0)
    logits = rng.random((N, 4000), dtype=np.float32)
    with Peak() as peak:
        t = calibrate.fit_temperatures(logits, np.zeros((N, 1)), rng.integers(0, 4000, N), tree)
    assert peak.bytes < 0.3 * TABLE
    assert t.species > 19, "logits that tell nothing"


@pytest.mark.parametrize("classes", ["hierarchical", "flat"])
def test_logits_of_blocks_are_those_of_all(classes, monkeypatch):
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", SMALL, image_size=32, classes=classes).eval()
    features, class_idx = torch.randn(50, model.num_features), torch.arange(50) % 6
    whole = fitting.logits_of(model, features, class_idx)
    monkeypatch.setattr(answers_, "AT_ONCE", 48)
    for one, other in zip(whole, fitting.logits_of(model, features, class_idx), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# endregion
