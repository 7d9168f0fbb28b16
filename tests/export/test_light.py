"""The light model's files: what stands in them, that they answer as the student does, and that few
heads are fetched.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tiny_data
import torch

from common.classes import ClassTree
from common.export.answers import run_over
from common.export.browser import heads_file
from common.export.browser.light_export import finish_browser, report_lines, write_browser
from common.export.browser.light_graph import SCORES, LightGraph, has_exact_map
from common.export.browser.light_model import LightModel
from common.export.fitting import torch_answers
from common.export.graph import FeatureSpace, extract_features
from common.serve.predictor import BundleError
from common.train.model import SwinHierarchical, places_of

TREE = ClassTree(
    ("apple", "corn", "tomato"),
    (("healthy", "scab"), ("common_rust",), ("early_blight", "healthy", "late_blight")),
)
SIZE = 64  # two by two places in the heatmap


def student(**more: object) -> SwinHierarchical:
    """A student whose random features tell these pictures apart under heads fitted by least
    squares.
    """
    torch.manual_seed(0)
    model = SwinHierarchical("test_resnet", TREE, image_size=SIZE, **more).eval()
    pictures, class_idx = (
        torch.from_numpy(np.concatenate(column))
        for column in zip(*batches("train", SIZE), strict=True)
    )
    with torch.inference_mode():
        hidden = model.neck(model.features(pictures))
    mean, spread = hidden.mean(0), hidden.std(0) + 1e-3
    scaled = (hidden - mean) / spread
    for head, target in (
        (model.species_head, model.class_species[class_idx]),
        (model.disease_heads, class_idx),
    ):
        if head is not None:
            wanted = 6 * torch.nn.functional.one_hot(target, len(head.weight)).float()
            weight = (
                torch.linalg.solve(
                    scaled.T @ scaled + 5 * torch.eye(scaled.shape[1]),
                    scaled.T @ (wanted - wanted.mean(0)),
                ).T
                / spread
            )
            head.weight.data, head.bias.data = weight.contiguous(), wanted.mean(0) - weight @ mean
    return model


def batches(split: str, size: int):
    """Ten pictures of each leaf; beyond train, every fourth is half of another leaf."""
    first = {"train": 0, "val": 20, "test": 40}[split]
    pairs = [
        (class_idx, number)
        for number in range(first, first + 10)
        for class_idx in range(TREE.num_classes)
    ]
    for start in range(0, len(pairs), 16):
        part = [(start + i, *pair) for i, pair in enumerate(pairs[start : start + 16])]
        pictures = [
            tiny_data.draw(*TREE.pair(class_idx), number, size) for _, class_idx, number in part
        ]
        others = [
            tiny_data.draw(*TREE.pair((class_idx + 2) % 6), number, size)
            for _, class_idx, number in part
        ]
        yield (
            np.stack(
                [
                    a // 2 + b // 2 if split != "train" and place % 4 == 0 else a
                    for a, b, (place, _, _) in zip(pictures, others, part, strict=True)
                ]
            ),
            np.array([class_idx for _, class_idx, _ in part]),
        )


def shown() -> SimpleNamespace:
    """What an export fits on, without poor copies and without OOD pictures."""
    return SimpleNamespace(
        count=lambda split: 60,
        batches=lambda split: batches(split, SIZE),
        with_poor=lambda split: batches(split, SIZE),
        count_ood=lambda role, split: 0,
    )


def make(folder: Path, model: SwinHierarchical) -> SimpleNamespace:
    preprocessing = {"layout": "NHWC", "long_side": 64}
    written = write_browser(
        model,
        folder,
        shown(),
        {"name": "foliar", "version": "abc", "preprocessing": preprocessing},
        torch.device("cpu"),
    )
    reference = torch_answers(written.fitted.graph(model), shown(), torch.device("cpu"))
    splits = {
        split: run_over(
            written.light.outputs,
            batches(split, SIZE),
            TREE,
            reference.probabilities if split == "test" else None,
            written.signals,
        )
        for split in ("val", "test")
    }
    assert splits["test"].ood.shape == (60, len(SCORES))
    assert np.isfinite(splits["test"].ood).all()
    report = finish_browser(
        written,
        splits,
        reference.joint,
        {split: found.class_idx for split, found in splits.items()},
        {"rejection": {"score": "gen"}, "rollup": {"disease": 0.5}},
        batches("test", SIZE),
        np.full(6, 30),
    )
    return SimpleNamespace(folder=folder, model=model, report=report)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    return make(tmp_path_factory.mktemp("light") / "browser", student())


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.concatenate([p for p, _ in batches("test", SIZE)])


def test_the_files_are_there_and_nothing_else(made):
    assert sorted(p.name for p in made.folder.iterdir()) == [
        "heads.bin",
        "light.json",
        "light.onnx",
    ]
    json.dumps(made.report, allow_nan=False)


def test_it_answers_as_the_student(made, pictures):
    light = LightModel(made.folder)
    temperature = made.report["temperature"]
    with torch.inference_mode():
        hidden, logits = made.model(torch.from_numpy(pictures))
        per_class = torch.tensor(temperature["disease"])[made.model.class_species]
        wanted = made.model.probabilities(hidden, logits, temperature["species"], per_class).numpy()
    found = light.outputs(pictures)[0]
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert temperature["species"] != 1
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.95
    assert np.abs(found - wanted).max() < 0.1  # int8 weights
    assert len(set(found.argmax(1))) > 2  # or the comparison says nothing


def test_head_by_head_the_answer_is_that_of_all_heads(made, pictures):
    light, some = LightModel(made.folder), 0
    probabilities, ood = light.outputs(pictures)
    for picture, row, scores in zip(pictures, probabilities, ood, strict=True):
        answer = LightModel.answer(light, picture)
        assert answer.class_idx == row.argmax()
        assert np.allclose(answer.ood, scores, atol=1e-4)
        sums = np.add.reduceat(answer.probabilities, TREE.offsets[:-1])
        assert np.allclose(sums, np.add.reduceat(row, TREE.offsets[:-1]), atol=1e-5)
        for s in answer.fetched:
            part = slice(TREE.offsets[s], TREE.offsets[s + 1])
            assert np.allclose(answer.probabilities[part], row[part], atol=1e-5)
        some += len(answer.fetched) < 3
    assert some > len(pictures) / 2


def test_only_the_heads_that_an_answer_needs_are_fetched(made, pictures):
    data, asked = (made.folder / "heads.bin").read_bytes(), []

    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return data[start:stop]

    light = LightModel(made.folder, fetch=fetch)
    assert asked == []
    answer = light.answer(pictures[0])
    assert asked == [(light.offsets[s], light.offsets[s + 1]) for s in answer.fetched]
    light.answer(pictures[0])
    assert len(asked) == len(answer.fetched), "a head is fetched once"
    assert light.tree == TREE


def test_a_logit_is_the_mean_of_its_heatmap(made, pictures):
    light = LightModel(made.folder)
    species, _, _, maps = light.run(pictures[:4])
    assert made.report["heatmap"] == "exact"
    temperature = light.settings["temperature"]["species"]
    for row in range(4):
        logits = [
            float((maps[row] @ light.head(s).species_row).mean() + light.head(s).species_bias)
            for s in range(3)
        ]
        wanted = np.log(species[row].astype(np.float64)) * temperature  # but for a constant
        assert np.allclose(np.diff(logits), np.diff(wanted), atol=2e-3)
        answer = light.answer(pictures[row])
        assert answer.heatmap.shape == maps.shape[1:3]
        assert answer.heatmap.min() == 0
        assert answer.heatmap.max() == pytest.approx(1)


def test_one_picture_or_many(made, pictures):
    light = LightModel(made.folder)
    together = light.outputs(pictures[:5])
    for i in range(5):
        alone = light.outputs(pictures[i : i + 1])
        assert all(np.abs(a[i] - b[0]).max() < 1e-5 for a, b in zip(together, alone, strict=True))


def test_large_weights_are_int8_and_names_are_short(made):
    graph = onnx.load(made.folder / "light.onnx").graph
    kinds = {t.name: (t.data_type, int(np.prod(t.dims))) for t in graph.initializer}
    floats = [
        name
        for name, (kind, count) in kinds.items()
        if kind == onnx.TensorProto.FLOAT and count > 1024
    ]
    assert floats == []
    assert {kind for kind, count in kinds.values() if count > 1024} == {
        onnx.TensorProto.INT8,
        onnx.TensorProto.FLOAT16,
    }
    assert not any(node.metadata_props for node in graph.node if hasattr(node, "metadata_props"))
    parameters = sum(p.numel() for p in made.model.backbone.parameters())
    assert (made.folder / "light.onnx").stat().st_size < 1.35 * parameters + 60_000


def test_its_rule_is_in_the_settings_and_used(made, pictures):
    light = LightModel(made.folder)
    assert light.settings["rejection"] == {"score": "gen"}
    assert light.settings["rollup"] == {"disease": 0.5}
    judged = made.report["deferral"]["test"]
    sent = [light.answer(p).asks for p in pictures]
    assert judged["server"] == 1.0
    assert np.mean(sent) == pytest.approx(judged["sent"], abs=0.02)
    assert judged["sent"] > 0
    assert any("photos sent" in line for line in report_lines(made.report))


def test_bytes_before_the_first_answer_are_model_settings_and_heads(made):
    files, first = made.report["files"], made.report["first_answer"]
    assert first["gzip"] == pytest.approx(
        files["light.onnx"]["gzip"] + files["light.json"]["gzip"] + first["head_bytes"], abs=2
    )
    assert 1 <= first["heads_fetched"] <= 3
    assert first["head_bytes"] <= files["heads.bin"]["raw"]


def test_another_model_or_heads_of_another_are_refused(made, tmp_path, pictures):
    for name in ("light.onnx", "light.json", "heads.bin"):
        (tmp_path / name).write_bytes((made.folder / name).read_bytes())
    data = bytearray((tmp_path / "heads.bin").read_bytes())
    data[-6] ^= 1
    (tmp_path / "heads.bin").write_bytes(data)
    with pytest.raises(heads_file.HeadsError, match="damaged"):
        LightModel(tmp_path).head(2)
    (tmp_path / "light.onnx").write_bytes((tmp_path / "light.onnx").read_bytes() + b"\0")
    with pytest.raises(BundleError, match="not the file that was exported"):
        LightModel(tmp_path)
    settings = json.loads((made.folder / "light.json").read_text())
    (tmp_path / "light.json").write_text(json.dumps(settings | {"format": 99}))
    with pytest.raises(BundleError, match="format 99"):
        LightModel(tmp_path)
    (tmp_path / "light.json").write_text(json.dumps(settings | {"diseases": [1]}))
    with pytest.raises(BundleError, match="not as it should be"):
        LightModel(tmp_path)
    (tmp_path / "light.onnx").unlink()
    with pytest.raises(BundleError, match="holds no light.onnx"):
        LightModel(tmp_path)


def test_a_neck_makes_the_heatmap_inexact_and_says_so(pictures):
    model = student(neck={"width": 16, "dropout": 0.0, "dropout_after": 0.0})
    images = torch.from_numpy(pictures[:2])
    assert not has_exact_map(model, images)
    assert has_exact_map(student(), images)


def test_maps_of_any_layout_become_places():
    model = student()
    assert places_of(model, torch.zeros(2, 7, 3, 4)).shape == (2, 3, 4, 7)
    assert places_of(model, torch.zeros(2, 10, 7)).shape == (
        2,
        3,
        3,
        7,
    )  # a class token before 9 places
    model.backbone.output_fmt = "NHWC"
    assert places_of(model, torch.zeros(2, 3, 4, 7)).shape == (2, 3, 4, 7)


@torch.inference_mode()
def test_a_flat_model_goes_to_the_browser_too(pictures):
    model = student(classes="flat")
    _, features, layers = extract_features(model, torch.from_numpy(pictures))
    near = [
        FeatureSpace(values, torch.arange(60) % 6, model.class_species, rank=4)
        for values in (features, layers)
    ]
    species, feature, _, places = LightGraph(model, *near, 1.0, True)(torch.from_numpy(pictures))
    weights = (model.disease_heads.weight.numpy(), model.disease_heads.bias.numpy())
    packed, offsets = heads_file.pack(TREE, None, weights, np.ones(3), b"abcd")
    heads = [
        heads_file.unpack(packed[a:b], b"abcd") for a, b in zip(offsets, offsets[1:], strict=False)
    ]
    found = np.concatenate(
        [
            species.numpy()[:, s : s + 1] * head.probabilities(feature.numpy())
            for s, head in enumerate(heads)
        ],
        axis=1,
    )
    wanted = model.probabilities(feature, model.species_logits(feature)).numpy()
    assert np.abs(found - wanted).max() < 0.05
    assert places.shape[-1] == feature.shape[1]


def test_without_the_convolution_behind_the_pooling_the_heatmap_is_exact():
    images = torch.randint(
        0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    torch.manual_seed(0)
    with_it, without = (
        SwinHierarchical("mobilenetv3_small_050", TREE, image_size=64, backbone_args=more).eval()
        for more in ({}, {"conv_head": False})
    )
    assert not has_exact_map(with_it, images)
    assert has_exact_map(without, images)
    assert (with_it.num_features, without.num_features) == (1024, 288)
    assert without.settings["backbone_args"] == {
        "conv_head": False
    }  # the checkpoint rebuilds it so
    state = {
        key: value
        for key, value in with_it.backbone.state_dict().items()
        if not key.startswith("conv_head")
    }
    without.backbone.load_state_dict(state)  # published weights fit


@pytest.mark.parametrize("name", ["test_resnet", "efficientnet_b0"])
def test_other_backbones_have_no_such_convolution(name):
    with pytest.raises(ValueError, match="no convolution between pooling and classifier"):
        SwinHierarchical(name, TREE, image_size=32, backbone_args={"conv_head": False})
