"""Packed disease heads against a ModuleDict of nn.Linear, probabilities, and backbones of every
layout.
"""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from torch import nn

from common.classes import ClassTree
from common.export.graph import SCORES, FeatureSpace, ServingGraph, extract_features
from common.train import checkpoint
from common.train.heads import PADDING, DiseaseHeads
from common.train.losses import focal_loss
from common.train.model import SwinHierarchical

SMALL = ClassTree(("a", "b", "c"), (("x", "y", "z"), ("x",), ("x", "y")))


def ragged_tree(species: int = 320, classes: int = 11499) -> ClassTree:
    """A long tail like the real one: 3 to 300 diseases per species."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 301, species).astype(float) ** 2
    sizes = np.clip((sizes / sizes.sum() * classes).round().astype(int), 3, 300)
    sizes[:2] = 3, 300
    while sizes.sum() != classes:
        i, step = rng.integers(2, species), int(np.sign(classes - sizes.sum()))
        if 3 <= sizes[i] + step <= 300:
            sizes[i] += step
    return ClassTree(
        tuple(f"s{i}" for i in range(species)),
        tuple(tuple(f"d{j}" for j in range(n)) for n in sizes),
    )


def as_modules(heads: DiseaseHeads, tree: ClassTree) -> nn.ModuleDict:
    """The same heads as one nn.Linear per species."""
    modules = nn.ModuleDict()
    for s, name in enumerate(tree.species):
        rows = slice(int(tree.offsets[s]), int(tree.offsets[s + 1]))
        linear = nn.Linear(heads.weight.shape[1], rows.stop - rows.start)
        with torch.no_grad():
            linear.weight.copy_(heads.weight[rows])
            linear.bias.copy_(heads.bias[rows])
        modules[name] = linear
    return modules


def dense(heads: DiseaseHeads, features: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
    """What `forward` computes off the CPU."""
    logits = heads.all_logits(features).gather(1, heads.class_of[species])
    return logits.masked_fill(~heads.real[species], PADDING)


@pytest.fixture(scope="module")
def large():
    """320 species, 11,499 classes, a batch of 256: heads, modules, features, species, diseases and
    the loop's results.
    """
    tree = ragged_tree()
    sizes = np.diff(tree.offsets)
    assert (tree.num_species, tree.num_classes, sizes.min(), sizes.max()) == (320, 11499, 3, 300)
    torch.manual_seed(0)
    heads = DiseaseHeads(768, tree)
    with torch.no_grad():
        heads.bias.normal_(std=0.1)
    modules = as_modules(heads, tree)
    features, species = torch.randn(256, 768), torch.randint(320, (256,))
    disease = (torch.rand(256) * heads.sizes[species]).long()
    x = features.clone().requires_grad_()
    loss = torch.zeros(())
    for s in species.unique().tolist():
        rows = species == s
        loss = (
            loss + focal_loss(modules[tree.species[s]](x[rows]), disease[rows], smoothing=0.1).sum()
        )
    loss = loss / 256
    loss.backward()
    weight = torch.cat(
        [
            m.weight.grad if m.weight.grad is not None else torch.zeros_like(m.weight)
            for m in modules.values()
        ]
    )
    bias = torch.cat(
        [
            m.bias.grad if m.bias.grad is not None else torch.zeros_like(m.bias)
            for m in modules.values()
        ]
    )
    return heads, features, species, disease, (loss.detach(), x.grad, weight, bias)


@pytest.mark.parametrize("path", [DiseaseHeads.forward, dense], ids=["sorted", "dense"])
def test_packed_heads_equal_a_module_dict(large, path):
    heads, features, species, disease, (loss, grad, weight, bias) = large
    heads.zero_grad()
    x = features.clone().requires_grad_()
    mine = (
        focal_loss(
            path(heads, x, species), disease, smoothing=0.1, classes=heads.sizes[species]
        ).sum()
        / 256
    )
    mine.backward()
    assert float(weight.abs().max()) > 1e-4, (
        "the gradients must be large enough to be told from nothing"
    )
    for got, want in (
        (mine, loss),
        (x.grad, grad),
        (heads.weight.grad, weight),
        (heads.bias.grad, bias),
    ):
        off = float((got - want).detach().abs().max())
        assert off < 1e-5
        assert off < 1e-4 * float(want.abs().max())
    absent = torch.ones(320, dtype=torch.bool)
    absent[species] = False
    rows = absent.repeat_interleave(heads.sizes)
    assert absent.any()
    assert (heads.weight.grad[rows] == 0).all()
    assert (heads.bias.grad[rows] == 0).all()


def test_the_sorted_path_gives_the_same_logits_and_padding(large):
    heads, features, species, _, _ = large
    got, want = heads(features, species), dense(heads, features, species)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert ((got == PADDING) == ~heads.real[species]).all()


def test_heads_may_be_used_twice_in_one_graph():
    """MixUp runs the heads once per partner, and accumulation adds up."""
    torch.manual_seed(1)
    heads, x = DiseaseHeads(8, SMALL), torch.randn(10, 8, requires_grad=True)
    one, two = torch.randint(3, (10,)), torch.randint(3, (10,))
    one[:], two[0] = one.clamp_max(1), 2  # species 2 is absent from the first use

    def gradients(path) -> list[torch.Tensor]:
        heads.zero_grad()
        x.grad = None
        for _ in range(2):  # accumulated
            total = (
                0.3 * path(heads, x, one).clamp_min(-50).square().sum()
                + 0.7 * path(heads, x, two).clamp_min(-50).square().sum()
            )
            total.backward()
        return [heads.weight.grad.clone(), heads.bias.grad.clone(), x.grad.clone()]

    for got, want in zip(gradients(DiseaseHeads.forward), gradients(dense), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_gradient_is_right_by_finite_differences():
    heads = DiseaseHeads(4, SMALL).double()
    x, species = torch.randn(5, 4, dtype=torch.float64), torch.tensor([2, 0, 0, 1, 2])
    from common.train.heads import _Memory, _SortedHeads

    def call(x, weight, bias):
        return _SortedHeads.apply(
            x, weight, bias, species, heads.offsets, heads.widest, _Memory()
        ).clamp_min(-100)

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), heads.weight, heads.bias))


def weight_gradient(heads: DiseaseHeads, x: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
    heads.zero_grad(set_to_none=True)
    heads(x, species).clamp_min(-50).square().sum().backward()
    return heads.weight.grad


def test_memory_of_a_gradient_is_taken_again_but_never_from_under_one_in_use():
    torch.manual_seed(1)
    heads, x = DiseaseHeads(8, SMALL), torch.randn(4, 8)
    one, two = torch.tensor([0, 0, 1, 0]), torch.tensor([2, 0, 2, 2])
    wanted = [weight_gradient(copy.deepcopy(heads), x, species).clone() for species in (one, two)]
    place = weight_gradient(heads, x, one).data_ptr()
    heads.weight.grad.fill_(torch.nan)  # what clipping by an infinite norm leaves behind
    assert weight_gradient(heads, x, two).data_ptr() == place
    assert torch.equal(heads.weight.grad, wanted[1])
    held = heads.weight.grad
    assert weight_gradient(heads, x, one).data_ptr() != place
    assert torch.equal(held, wanted[1])
    assert torch.equal(heads.weight.grad, wanted[0])
    again = pickle.loads(pickle.dumps(heads))
    assert torch.equal(weight_gradient(again, x, two), wanted[1])
    assert torch.equal(heads.weight.grad, wanted[0])


def test_features_that_need_no_gradient_change_nothing_for_the_heads(large):
    heads, features, species, _, _ = large
    wanted = weight_gradient(heads, features.clone().requires_grad_(), species).clone()
    assert torch.equal(weight_gradient(heads, features, species), wanted)


@pytest.mark.parametrize("skipping", [False, True])
def test_adamw_treats_heads_without_a_sample_as_it_treats_gradients_of_zero(skipping):
    """The loop's default, gradients of None, lets them stand still instead: no decay, no
    momentum.
    """
    torch.manual_seed(1)
    heads, x = DiseaseHeads(8, SMALL), torch.randn(6, 6, 8)
    modules = as_modules(heads, SMALL)
    mine, loop = (
        torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1, fused=True)
        for m in (heads, modules)
    )
    for parameter in modules.parameters():  # what was never there counts as None
        parameter.grad = torch.zeros_like(parameter)
    for step in range(6):
        species = (
            torch.randint(3, (6,)) if step < 3 else torch.tensor([0, 2, 2, 0, 0, 2])
        )  # 1 was there, and is not any more
        weight_gradient(heads, x[step], species)
        modules.zero_grad(set_to_none=skipping)
        sum(
            modules[SMALL.species[s]](row).square().sum()
            for row, s in zip(x[step], species.tolist(), strict=True)
        ).backward()
        before = heads.weight[3].detach().clone()
        mine.step()
        loop.step()
    assert not torch.equal(heads.weight[3], before)
    off = (heads.weight - torch.cat([m.weight for m in modules.values()])).detach().abs().amax(1)
    assert float(off[3]) > 1e-3 if skipping else float(off.max()) < 1e-6


def test_segments_and_rows_sum_to_one():
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", SMALL, image_size=32)
    features = torch.randn(9, model.num_features) * 20
    logits = model.disease_heads.all_logits(features)
    within = model.disease_heads.segment_softmax(logits)
    for s in range(3):
        a, b = SMALL.offsets[s], SMALL.offsets[s + 1]
        torch.testing.assert_close(within[:, a:b], logits[:, a:b].softmax(1), rtol=1e-5, atol=1e-7)
    assert (within[:, 3] == 1).all(), "a species with one disease has P = 1"
    joint = model.probabilities(features, model.species_logits(features), 0.7, 1.9)
    torch.testing.assert_close(joint.sum(1), torch.ones(9))
    species = (model.species_logits(features) / 0.7).softmax(1)
    torch.testing.assert_close(joint[:, :3].sum(1), species[:, 0])
    torch.testing.assert_close(
        joint[:, 4:], species[:, 2:] * (logits[:, 4:] / 1.9).softmax(1), rtol=1e-5, atol=1e-7
    )


SWIN = {
    "embed_dim": 16,
    "depths": (1, 1, 1),
    "num_heads": (1, 2, 2),
    "window_size": 4,
    "patch_size": 2,
}


def serving(model: SwinHierarchical, species_t: float, disease_t: float) -> ServingGraph:
    """A graph with both spaces fitted on random pictures."""
    generator = torch.Generator().manual_seed(5)
    size, class_idx = model.settings["image_size"], torch.arange(24) % 6
    with torch.inference_mode():
        _, *values = extract_features(
            model,
            torch.randint(0, 256, (24, size, size, 3), dtype=torch.uint8, generator=generator),
        )
    return ServingGraph(
        model,
        *(FeatureSpace(v, class_idx, model.class_species) for v in values),
        species_t,
        disease_t,
    ).eval()


@pytest.mark.parametrize(
    ("name", "arguments", "cells"),
    [
        ("test_resnet", {}, 1),
        ("swin_tiny_patch4_window7_224", SWIN, 4),
        ("test_vit", {}, 2),
        ("test_efficientnet", {}, 1),
    ],
)
def test_backbones_of_every_layout(name, arguments, cells):
    """Feature, map and heatmap for convolutions (NCHW), a Swin (NHWC), tokens, and layers behind
    the pooling.
    """
    torch.manual_seed(0)
    model = SwinHierarchical(
        name,
        SMALL,
        image_size=32,
        backbone_args=arguments,
        pixel_stats=((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
    ).eval()
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features, species = model(images)
        assert features.shape == (4, model.num_features)
        assert features.dtype == torch.float32
        assert species.shape == (4, 3)
        pixels = (
            images.permute(0, 3, 1, 2) / 255.0 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        ) / 0.2
        torch.testing.assert_close(features, model.backbone(pixels), rtol=1e-3, atol=1e-4)
        feature_map, seen, layers = extract_features(model, images)
        torch.testing.assert_close(
            feature_map, model.feature_map(images), rtol=1e-3, atol=1e-4
        )  # what is exported is what was trained
        torch.testing.assert_close(seen.float(), features, rtol=1e-3, atol=1e-4)
        assert layers.shape[1] > model.num_features
        assert torch.isfinite(layers).all()
        probabilities, ood, heatmap = serving(model, 1.5, 0.8)(images)
        want = model.probabilities(features, species, 1.5, 0.8)
    torch.testing.assert_close(probabilities, want, rtol=1e-3, atol=1e-4)
    assert probabilities.shape == (4, 6)
    assert ood.shape == (4, len(SCORES))
    assert heatmap.shape[1] == heatmap.shape[2] >= cells
    assert heatmap.min() >= 0
    assert heatmap.max() <= 1
    assert torch.isfinite(ood).all()
    if heatmap.shape[1] > 1:
        assert (heatmap.amax((1, 2)) == 1).all()
        assert (heatmap.amin((1, 2)) == 0).all()


def test_the_heatmap_is_the_class_activation():
    """Where the head is linear on the pooled map, activations average to the logit of the class but
    for its bias.
    """
    torch.manual_seed(2)
    model = SwinHierarchical("test_resnet", SMALL, image_size=64).eval()
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        maps = model.feature_map(images)
        features, species = model(images)
        class_idx = model.probabilities(features, species).argmax(1)
        heatmap = serving(model, 1.0, 1.0)(images)[2]
        weight = (
            model.species_head.weight[model.class_species[class_idx]]
            + model.disease_heads.weight[class_idx]
        )
        want = torch.einsum("nchw,nc->nhw", maps, weight)
    torch.testing.assert_close(want.mean((1, 2)), (features * weight).sum(1), rtol=1e-4, atol=1e-5)
    low, high = want.amin((1, 2), keepdim=True), want.amax((1, 2), keepdim=True)
    torch.testing.assert_close(heatmap, (want - low) / (high - low), rtol=1e-3, atol=1e-4)


def test_distances_equal_a_plain_reference():
    generator = torch.Generator().manual_seed(0)
    features, class_idx = torch.randn(60, 5, generator=generator) + 1, torch.arange(60) % 5
    class_species = torch.tensor([0, 0, 0, 1, 2, 2])  # class 5 has no training picture
    space = FeatureSpace(features, class_idx, class_species, shrinkage=0.1)
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    means = {i: unit[class_idx.numpy() == i].mean(0) for i in range(5)}
    species = {
        s: unit[np.isin(class_idx.numpy(), np.flatnonzero(class_species.numpy() == s))].mean(0)
        for s in range(3)
    }
    spread = unit - np.array([means[i] for i in class_idx.tolist()])
    covariance = spread.T @ spread / 60
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / 5 * np.eye(5)
    inverse = np.linalg.inv(covariance)
    strange = torch.randn(7, 5, generator=generator)
    got = space(strange).numpy()
    for row, x in zip(
        got, (strange / strange.norm(dim=1, keepdim=True)).double().numpy(), strict=True
    ):
        want = [min(np.sqrt((x - m) @ inverse @ (x - m)) for m in species.values())]
        np.testing.assert_allclose(row, want, rtol=2e-3)


# region flat models and necks


def small(**more) -> SwinHierarchical:
    torch.manual_seed(3)
    model = SwinHierarchical("test_resnet", SMALL, image_size=32, **more).eval()
    with torch.no_grad():
        model.disease_heads.bias.normal_()
    return model


def test_a_flat_model_is_one_softmax_over_all_classes():
    model = small(classes="flat")
    hidden = torch.randn(20, model.num_features) * 5
    logits = hidden @ model.disease_heads.weight.T + model.disease_heads.bias
    species = model.species_logits(hidden)
    torch.testing.assert_close(
        model.probabilities(hidden, species), logits.softmax(1), rtol=1e-5, atol=1e-7
    )
    sums = (
        logits.softmax(1)
        @ torch.nn.functional.one_hot(torch.from_numpy(SMALL.class_species.copy())).float()
    )
    torch.testing.assert_close(species.softmax(1), sums, rtol=1e-5, atol=1e-7)
    assert model.species_head is None
    assert not any("species_head" in name for name in model.state_dict())
    torch.testing.assert_close(
        model.probabilities(hidden, species, 2.0, 0.5).sum(1), torch.ones(20)
    )


def test_a_flat_model_with_one_class_per_species_is_a_plain_classifier():
    tree = ClassTree(tuple("abcd"), tuple((name,) for name in "abcd"))
    model = SwinHierarchical("test_resnet", tree, image_size=32, classes="flat")
    hidden = torch.randn(5, model.num_features)
    torch.testing.assert_close(model.species_logits(hidden), model.disease_heads.all_logits(hidden))


def test_head_parameters():
    model, flat = small(neck={"width": 8}), small(classes="flat", neck={"width": 8})
    names = {id(p): n for n, p in [*model.named_parameters(), *flat.named_parameters()]}

    def parts(of: SwinHierarchical, part: str) -> set[str]:
        return {names[id(p)].split(".")[0] for p in of.head_parameters(part)}

    assert parts(model, "species") == {"species_head", "neck"}
    assert parts(model, "disease") == {"disease_heads"}
    assert parts(model, "all") == {"species_head", "disease_heads", "neck"}
    assert parts(flat, "species") == parts(flat, "all") == {"disease_heads", "neck"}
    assert parts(flat, "disease") == {"disease_heads"}


def test_the_neck_drops_out_in_training_only():
    model = small(neck={"dropout": 0.3, "width": 512, "dropout_after": 0.15})
    assert model.disease_heads.weight.shape == (6, 512)
    assert model.species_head.weight.shape == (
        3,
        512,
    )
    x = torch.ones(400, model.num_features)
    torch.testing.assert_close(model.neck(x), model.neck.linear(x).relu())
    with torch.no_grad():
        model.neck.linear.weight.copy_(torch.eye(512, model.num_features))
        model.neck.linear.bias.zero_()
    seen = model.neck.train()(x)[:, : min(512, model.num_features)]
    assert float((seen == 0).float().mean()) == pytest.approx(1 - 0.7 * 0.85, abs=0.02)
    assert float(seen.detach().max()) == pytest.approx(1 / 0.7 / 0.85)


def test_weights_and_random_numbers_of_the_plain_model_are_as_they_were():
    """Heads are drawn before the neck, so that a seed gives the weights that it gave before there
    were necks.
    """
    torch.manual_seed(3)
    plain = SwinHierarchical("test_resnet", SMALL, image_size=32)
    torch.manual_seed(3)
    backbone = timm.create_model("test_resnet", num_classes=0)
    linear = nn.Linear(plain.num_features, 3)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    disease = nn.init.trunc_normal_(torch.empty(6, plain.num_features), std=0.02)
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.backbone.parameters(), backbone.parameters(), strict=True)
    )
    assert torch.equal(plain.species_head.weight, linear.weight)
    assert torch.equal(plain.disease_heads.weight, disease)
    assert {name.split(".")[0] for name in plain.state_dict()} == {
        "backbone",
        "species_head",
        "disease_heads",
    }


@pytest.mark.parametrize(
    "more",
    [{}, {"classes": "flat"}, {"classes": "flat", "neck": {"width": 16, "dropout_after": 0.1}}],
)
def test_a_checkpoint_rebuilds_it(more, tmp_path):
    model = small(**more)
    model.use_counts(np.arange(6))
    checkpoint.save(tmp_path / "a.pt", checkpoint.describe_model(model))
    payload = checkpoint.load(tmp_path / "a.pt", trained=False)
    assert not any("prior" in name for name in payload["model"])
    if not more:  # written before there were necks and flat models
        del payload["settings"]["classes"], payload["settings"]["neck"]
    again = checkpoint.build_model(payload)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        for got, want in zip(again(images), model(images), strict=True):
            assert torch.equal(got, want)
    assert again.flat == model.flat
    assert again.settings == model.settings


@pytest.mark.parametrize(
    "more",
    [{"classes": "flat"}, {"neck": {"width": 16}}, {"classes": "flat", "neck": {"width": 16}}],
)
def test_what_is_served_of_flat_models_and_necks(more):
    """Probabilities as trained; and the map of a class averages to the slope of its logits by the
    pooled feature.
    """
    model = small(**more)
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        hidden, species = model(images)
        want = model.probabilities(hidden, species, 1.5, 0.8)
        torch.testing.assert_close(serving(model, 1.5, 0.8)(images)[0], want, rtol=1e-3, atol=1e-4)
        pooled = model.features(images)
    pooled, class_idx = pooled.clone().requires_grad_(), want.argmax(1)
    hidden = model.neck(pooled)
    score = model.disease_heads.all_logits(hidden).gather(1, class_idx[:, None]).sum()
    if not model.flat:
        score = (
            score
            + model.species_logits(hidden).gather(1, model.class_species[class_idx][:, None]).sum()
        )
    (slope,) = torch.autograd.grad(score, pooled)
    torch.testing.assert_close(
        model.class_gradient(pooled.detach(), class_idx), slope, rtol=1e-4, atol=1e-6
    )


def test_a_kind_of_classes_that_is_none_is_refused():
    with pytest.raises(ValueError, match="hierarchical or flat"):
        small(classes="nested")


# endregion


def test_an_unknown_backbone_raises_what_timm_raises():
    with pytest.raises(RuntimeError):
        SwinHierarchical("no_such_net", SMALL, image_size=32)
