"""What the exported graph adds to the model: spaces of few directions, the learned score, a
temperature per species.
"""

import numpy as np
import onnx
import pytest
import torch
from torch.nn.functional import normalize

from common.classes import ClassTree
from common.export.graph import (
    LEARNED,
    SCORES,
    FeatureSpace,
    LearnedScore,
    ServingGraph,
    export_onnx,
    extract_features,
)
from common.serve.predictor import open_session
from common.train.metrics import auroc
from common.train.model import SwinHierarchical

TREE = ClassTree(("a", "b", "c"), (("x", "y", "z"), ("x",), ("x", "y")))
LEAF_SPECIES = torch.from_numpy(TREE.class_species.copy())


def plants(n: int, seed: int, features: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Features about the means of six leaves, wide in six directions and narrow in all others."""
    generator = torch.Generator().manual_seed(seed)
    means = (
        6
        * torch.randn(6, features, generator=torch.Generator().manual_seed(99))
        * (torch.arange(features) < 6)
    )
    class_idx = torch.arange(n) % 6
    noise = torch.randn(n, features, generator=generator) * torch.where(
        torch.arange(features) < 6, 1.0, 0.1
    )
    return means[class_idx] + 5 * (torch.arange(features) == 0) + noise, class_idx


def test_few_directions_and_a_residual_stand_in_for_all():
    """Along the directions kept it is the full distance; outside of them, only the length
    counts.
    """
    train, class_idx = plants(600, 1)
    full, low = (FeatureSpace(train, class_idx, LEAF_SPECIES, rank=rank) for rank in (40, 8))
    fresh, _ = plants(300, 2)
    inside = fresh + torch.randn(300, 1) * torch.eye(40)[1] * 9
    outside = fresh + 3 * torch.randn(300, 40) * (torch.arange(40) >= 6)
    species = torch.zeros(300, dtype=torch.int64)
    for strangers in (inside, outside):
        for column in range(2):
            ours, all_of_it = [
                float(
                    auroc(
                        *(
                            space.distances(x, species)[:, column].numpy()
                            for x in (fresh, strangers)
                        )
                    )
                )
                for space in (low, full)
            ]
            assert abs(ours - all_of_it) < 0.03
    assert auroc(low(fresh)[:, 0].numpy(), low(outside)[:, 0].numpy()) > 0.99, (
        "the residual sees what lies outside"
    )
    assert sum(buffer.numel() for buffer in low.buffers()) < 0.4 * sum(
        buffer.numel() for buffer in full.buffers()
    )


def test_class_means_count_only_within_the_predicted_species():
    train, class_idx = plants(600, 1)
    space = FeatureSpace(train, class_idx, LEAF_SPECIES, shrinkage=0.1, rank=40)
    fresh, fresh_class = plants(60, 2)
    right, wrong = (
        space.distances(fresh, species)
        for species in (LEAF_SPECIES[fresh_class], (LEAF_SPECIES[fresh_class] + 1) % 3)
    )
    torch.testing.assert_close(right[:, :1], space(fresh))
    torch.testing.assert_close(right[:, 0], wrong[:, 0])
    assert (wrong[:, 1] > 1.5 * right[:, 1]).all()
    unit = normalize(train.double(), dim=1)
    means = torch.stack([unit[class_idx == i].mean(0) for i in range(6)])
    spread = unit - means[class_idx]
    covariance = spread.T @ spread / 600
    covariance = 0.9 * covariance + 0.1 * covariance.diagonal().mean() * torch.eye(40)
    off = normalize(fresh[:1].double(), dim=1) - means[torch.arange(3)]
    want = torch.einsum("if,fg,ig->i", off, torch.linalg.inv(covariance), off).min().sqrt()
    assert float(space.distances(fresh[:1], torch.tensor([0]))[0, 1]) == pytest.approx(
        float(want), rel=2e-3
    )


def test_the_learned_score_separates_what_it_was_shown_and_ignores_how_many():
    train, _ = plants(600, 1)
    strange = train.flip(0)[:100] + 1.5 * (torch.arange(40) == 20)
    learned, again = (
        LearnedScore(train, strange),
        LearnedScore(train, torch.cat([strange, strange])),
    )
    fresh, others = plants(300, 2)[0], plants(300, 3)[0] + 1.5 * (torch.arange(40) == 20)
    assert (learned(fresh) < 0).float().mean() > 0.99 < (learned(others) > 0).float().mean()
    torch.testing.assert_close(learned(fresh), again(fresh), rtol=1e-2, atol=1e-2)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A small model as a graph with every part, as PyTorch and as ONNX, and pictures for it."""
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", TREE, image_size=32).eval()
    pictures = torch.randint(0, 256, (24, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        _, features, layers = extract_features(model, pictures)
    class_idx = torch.arange(24) % 6
    spaces = [
        FeatureSpace(values.clone(), class_idx, model.class_species, rank=4)
        for values in (features, layers)
    ]
    graph = ServingGraph(
        model, *spaces, 1.5, [0.5, 1.0, 2.0], LearnedScore(layers.clone()[:20], layers.clone()[20:])
    ).eval()
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(graph, str(path), 32)
    return model, graph, path, pictures


def test_each_species_has_its_disease_temperature(served):
    model, graph, _, pictures = served
    with torch.inference_mode():
        hidden, species_logits = model(pictures)
        got = graph(pictures)[0]
        for species, temperature in enumerate((0.5, 1.0, 2.0)):
            mine = LEAF_SPECIES == species
            torch.testing.assert_close(
                got[:, mine], model.probabilities(hidden, species_logits, 1.5, temperature)[:, mine]
            )
        plain = ServingGraph(model, graph.feature_space, graph.layer_space, 1.5, 0.8).eval()
        torch.testing.assert_close(
            plain(pictures)[0], model.probabilities(hidden, species_logits, 1.5, 0.8)
        )
    assert plain.scores == SCORES
    assert graph.scores == (*SCORES, LEARNED)


def test_the_file_gives_every_score_and_holds_nothing_unused(served):
    model, graph, path, pictures = served
    with torch.inference_mode():
        want = graph(pictures[:5])
    session = open_session(path)
    for batch in (1, 5):
        got = session.run(None, {"images": pictures[:batch].numpy()})
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs[:batch], rtol=1e-3, atol=1e-3)
    assert want[1].shape == (5, len(graph.scores))
    weights = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert {
        "feature_space.class_means",
        "layer_space.means",
    } <= weights
    assert "layer_space.leaf_means" not in weights
