"""The second opinion: kernel regression against plain numpy, species left out, its threshold, and a
network that has forgotten what another still sees.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.classes import ClassTree
from common.decide import ANSWERED, NOT_A_PLANT, UNKNOWN_SPECIES, decide_batch, rank
from common.decide import rejection_from_json as read
from common.export import ood
from common.export.graph import FeatureSpace
from common.export.pictures import OodKind, Pictures
from common.export.second_opinion import RIDGE, WIDTH, KernelRegression

NUMBER, SIDE = 6, 12  # species; features


def photos(count: int, seed: int, species: range = range(NUMBER)) -> tuple[torch.Tensor, ...]:
    """Unit features about a mean per species, float (count, SIDE), and the species."""
    means = torch.randn(9, SIDE, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(seed)
    of = torch.tensor(species)[torch.arange(count) % len(species)]
    noise = 0.5 * torch.randn(count, SIDE, generator=generator)
    return torch.nn.functional.normalize(means[of] + noise, dim=1), of


def by_numpy(train: np.ndarray, species: np.ndarray, fresh: np.ndarray, width: float) -> np.ndarray:
    """Minus the greatest of the ridge regressions with a Gaussian kernel on every train picture."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / width)

    matrix = kernel(train, train) + RIDGE * np.eye(len(train))
    weight = np.linalg.solve(matrix, np.eye(NUMBER)[species])
    return -(kernel(fresh, train) @ weight).max(1)


@pytest.fixture(scope="module")
def fitted() -> tuple[KernelRegression, torch.Tensor, torch.Tensor]:
    train, species = photos(240, 1)
    return KernelRegression(train, species, NUMBER), train, species


def test_it_is_kernel_ridge_regression(fitted):
    regression, train, species = fitted
    pairs = train.double().numpy()
    squared = ((pairs[:, None] - pairs[None]) ** 2).sum(2)
    assert regression.width == pytest.approx(WIDTH * np.median(squared), rel=0.01)
    fresh = photos(90, 2, range(9))[0]
    want = by_numpy(pairs, species.numpy(), fresh.double().numpy(), regression.width)
    np.testing.assert_allclose(regression(fresh)[:, 0], want, atol=1e-3)
    assert want[:6].max() < -0.5, "a known species is near 1"
    assert abs(float(regression(100 * fresh[:1]))) < 1e-6, "far from all it knows no species"


def test_leaving_a_species_out_is_a_fit_without_it(fitted):
    regression, train, species = fitted
    val, of = photos(300, 3)
    figures, plain = regression.leave_species_out(val, of), []
    for out in range(NUMBER):
        rest = species != out
        args = (part.double().numpy() for part in (train[rest], val))
        pairs = next(args)
        score = by_numpy(pairs, species[rest].numpy(), next(args), regression.width)
        plain.append(ood.auroc(score[of.numpy() != out], score[of.numpy() == out]))
    assert figures["folds"] == NUMBER
    assert figures["auroc"] == pytest.approx(np.mean(plain), abs=2e-3)
    assert 0 < figures["rejected"]["0.01"] <= figures["rejected"]["0.05"] <= 1


def test_it_finds_unknown_species_that_the_trained_network_has_forgotten():
    """A trained network that maps everything on the nearest known species, and a pretrained one
    that still sees the rest; decided by thresholds without any picture of an unknown species.
    """
    tree = ClassTree(tuple("abcdef"), (("x", "y"),) * NUMBER)
    (train, of_train), (val, of_val), (known, of_known) = (photos(n, n) for n in (900, 1200, 1201))
    unknown, _ = photos(600, 7, range(6, 9))
    means = torch.stack([train[of_train == s].mean(0) for s in range(NUMBER)])

    def forgetful(features: torch.Tensor) -> torch.Tensor:
        nearest = torch.cdist(features, means).argmin(1)
        return means[nearest] + 0.02 * torch.randn(features.shape, generator=noise)

    noise = torch.Generator().manual_seed(0)
    space = FeatureSpace(forgetful(train), 2 * of_train, torch.arange(12) // 2)
    regression = KernelRegression(train, of_train, NUMBER)

    def scores(features: torch.Tensor) -> dict[str, np.ndarray]:
        near = space(forgetful(features))[:, 0].double().numpy()
        second = regression(features)[:, 0].double().numpy()
        return {"gen": near, "mahalanobis_class": near, "pretrained": second}

    names = ("gen", "mahalanobis_class", "pretrained")
    shares = {}
    for used in (names[:2], names):
        fit = ood.fit({name: scores(val)[name] for name in used})
        for kind, features in (("known", known), ("unknown", unknown)):
            table = np.stack([scores(features)[name] for name in used], axis=1)
            answers = rank(np.eye(12)[np.zeros(len(table), int)], tree)
            got = decide_batch(answers, table, tree, read(fit, used), None).outcome
            shares[len(used), kind] = (got == ANSWERED).mean(), (got == UNKNOWN_SPECIES).mean()
    assert shares[2, "unknown"][0] > 0.9
    assert shares[3, "unknown"][0] < 0.2
    assert shares[3, "unknown"][1] > 0.8
    assert shares[2, "known"][0] - shares[3, "known"][0] < 0.03


def test_its_threshold_takes_its_share_beyond_what_the_others_take():
    rng = np.random.default_rng(0)
    plants = {name: rng.normal(0, 1, 20000) for name in ("gen", "mahalanobis_class", "pretrained")}
    assert ood.fit({k: v for k, v in plants.items() if k != "pretrained"})["species"] is None
    fit = ood.fit(plants)
    others = ood.beyond(fit | {"species": None}, plants) | ood.beyond(fit["disease"], plants)
    for level, threshold in fit["species"]["levels"].items():
        more = (ood.value(fit["species"]["weights"], plants) > threshold) & ~others
        assert more.mean() == pytest.approx(float(level), abs=0.003)
    assert fit["species"]["threshold"] == fit["species"]["levels"]["0.01"]
    both = ood.beyond(fit, plants) | ood.beyond(fit["species"], plants)
    assert ood.judge(fit, plants, {})["false_rejection_rate"] == pytest.approx(both.mean())


def test_a_picture_of_no_plant_stays_no_plant():
    """`ood` and `plant` have the first word; the species threshold the second."""
    rule = {"score": "a", "threshold": 1.0, "quantiles": [0.0] * 101}
    rules = {
        **rule,
        "plant": {**rule, "threshold": 3.0},
        "species": {**rule, "score": "b"},
    }
    rejection = read(rules, ("a", "b"))
    tree = ClassTree(("s",), (("x", "y"),))
    table = np.array([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [4.0, 2.0], [0.0, np.nan]])
    answers = rank(np.tile([0.9, 0.1], (5, 1)), tree)
    assert decide_batch(answers, table, tree, rejection, None).outcome.tolist() == [
        ANSWERED,
        UNKNOWN_SPECIES,
        UNKNOWN_SPECIES,
        NOT_A_PLANT,
        UNKNOWN_SPECIES,
    ]


def test_of_a_large_train_split_rare_classes_are_taken_too(monkeypatch):
    class_idx = np.repeat(np.arange(3), (5000, 4, 996))
    split, taken = type("Split", (), {"class_idx": class_idx, "__len__": lambda _: 6000})(), []
    monkeypatch.setattr(Pictures, "load", lambda _, name, rows, size: taken.append(rows) or ())
    for name, at_most in (("train", 100), ("train", 6000), ("val", 100)):
        pictures = Pictures(SimpleNamespace(splits={name: split}), 32, [], at_most, 0)
        assert list(pictures.batches(name)) == []
    counts = [np.bincount(class_idx[rows], minlength=3).tolist() for rows in taken]
    assert counts[0] == [48, 4, 48]
    assert counts[1] == [5000, 4, 996]
    assert counts[2][1] == 0, "val and test stay as they are met"


def test_ood_pictures_of_which_none_can_be_read_are_told(tmp_path, refused):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    kind = OodKind("things", "plant", {"val": [tmp_path / "a.jpg"], "test": []})
    pictures = Pictures(SimpleNamespace(long_side=None), 32, [kind], 10, 0)
    ((_, batches),) = pictures.ood("plant", "val")
    refused(("a.jpg", "can be read"), list, batches)
