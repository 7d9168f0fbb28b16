"""03_export: the contract of the exports, what the report holds, and the exports it must refuse."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_data
import torch
from conftest import run
from PIL import Image

from common.export import quantize
from common.export.browser.light_model import LightModel
from common.export.fitting import Fitted
from common.export.graph import LEARNED, PRETRAINED, SCORES
from common.export.measure import session_run
from common.files import file_sha256
from common.images import read_rgb, resize_to_model
from common.serve import predictor
from common.serve.advice import read_advice, read_reference
from common.train import checkpoint
from common.train.dataset import EvalViews, load_organized

KEYS = {
    "data": {"species", "classes", "train", "val", "test"},
    "test": {
        "species_top1",
        "disease_top1",
        "disease_top3",
        "cascade_top1",
        "macro_f1",
        "tail_f1",
        "n",
    },
    "ood": {"auroc", "rejected_at_1pct_frr", "precision"},
    "seconds": {"train_species", "train_disease", "export"},
    "decisions": {"joint", "routed", "flat"},
}


def report_of(exports: Path) -> dict:
    return json.loads((exports / "report.json").read_text())


@pytest.fixture(scope="module")
def pictures(exported) -> np.ndarray:
    views = EvalViews(load_organized(exported.data).splits["test"], 32)
    return np.stack([views[i][0].numpy() for i in range(8)])


def test_the_report_has_its_keys(exported):
    report = report_of(exported.exports)
    for part, keys in KEYS.items():
        assert keys <= set(report[part]), part
    for card in report["models"].values():
        assert {"size_mb", "ms_p50", "top1_agreement", "species_top1", "cascade_top1"} <= set(card)
        assert card["ms_p50"] > 0
    assert "model.onnx" in report["models"]
    counts = [report["data"][key] for key in ("species", "classes", "train", "test")]
    assert counts == [3, 7, 50, 10]
    assert report["test"]["n"] == 10
    assert report["seconds"]["train_species"] > 0
    assert report["seconds"]["train_disease"] > 0
    assert report["seconds"]["export"] > 0
    text = (exported.exports / "report.md").read_text()
    assert "test_resnet" in text
    assert f"{report['test']['cascade_top1']:.4f}" in text
    assert report["open_world"] == {}, "nothing is held out"
    assert "01_reorganize.py sets some aside with --holdout-species" in text


def test_the_contract_of_the_models(exported, pictures):
    tree = load_organized(exported.data).tree
    for path in sorted(exported.exports.glob("*.onnx")):
        onnx.checker.check_model(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (image,) = session.get_inputs()
        assert (image.name, image.type, image.shape[1:]) == (
            "images",
            "tensor(uint8)",
            [32, 32, 3],
        )
        assert not isinstance(image.shape[0], int)
        assert [(o.name, o.type) for o in session.get_outputs()] == [
            (n, "tensor(float)") for n in ("probabilities", "ood", "heatmap")
        ]
        together = session.run(None, {"images": pictures})
        one_by_one = [session.run(None, {"images": pictures[i : i + 1]}) for i in range(8)]
        for output, parts in zip(together, zip(*one_by_one, strict=True), strict=True):
            np.testing.assert_allclose(
                output, np.concatenate(parts), rtol=1e-4, atol=1e-4, err_msg=path.name
            )
        probabilities, ood, heatmap = together
        assert probabilities.shape == (8, tree.num_classes)
        assert ood.shape == (8, len(SCORES))
        assert heatmap.ndim == 3
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert heatmap.min() >= 0
        assert heatmap.max() <= 1
        assert np.isfinite(ood).all()


def test_fp32_is_the_calibrated_checkpoint(exported, pictures):
    payload = checkpoint.load(checkpoint.find_best(exported.checkpoints / "hierarchical_full"))
    model = checkpoint.build_model(payload)
    read = predictor.read_bundle(exported.exports)
    t = read.models["model.onnx"].temperature
    with torch.inference_mode():
        features, species = model(torch.from_numpy(pictures))
        want = model.probabilities(
            features, species, t["species"], torch.tensor(t["disease"])[model.class_species]
        ).numpy()
    got = session_run(exported.exports / "model.onnx")(pictures)[0]
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert report_of(exported.exports)["models"]["model.onnx"]["top1_agreement"] == 1.0
    assert read.version == checkpoint.weights_hash(payload)[:12]
    assert read.tree == model.tree
    assert read.scores == SCORES
    assert read.size == 32
    assert read.backbone == "test_resnet"
    assert read.recipe == "demo"


def test_reported_figures_are_those_of_the_models(exported):
    """Judged again here, picture by picture, from the files that were written."""
    data, report = load_organized(exported.data), report_of(exported.exports)
    tree, truth = data.tree, data.splits["test"].class_idx
    species, rows = tree.class_species, np.arange(len(truth))
    views = [EvalViews(data.splits["test"], 32)[i][0].numpy()[None] for i in rows]
    fp32 = np.concatenate([session_run(exported.exports / "model.onnx")(v)[0] for v in views])
    for name, card in report["models"].items():
        run = session_run(exported.exports / name)
        probabilities = np.concatenate([run(view)[0] for view in views])
        answers = probabilities.argmax(1)
        by_species = np.stack([probabilities[:, species == s].sum(1) for s in range(3)], 1)
        own = np.where(species == species[truth][:, None], probabilities, -1)
        rank = (own > own[rows, truth][:, None]).sum(1)
        f1 = [
            2 * ((answers == c) & (truth == c)).sum() / ((answers == c).sum() + (truth == c).sum())
            for c in np.unique(truth)
        ]
        figures = {
            "cascade_top1": (answers == truth).mean(),
            "species_top1": (by_species.argmax(1) == species[truth]).mean(),
            "disease_top1": (rank == 0).mean(),
            "disease_top3": (rank < 3).mean(),
            "macro_f1": np.mean(f1),
            "tail_f1": np.mean(f1),  # every class has 80 pictures or fewer
            "top1_agreement": (answers == fp32.argmax(1)).mean(),
        }
        assert {key: card[key] for key in figures} == pytest.approx(figures, abs=1e-6), name
    assert {key: report["test"][key] for key in figures if key != "top1_agreement"} == {
        key: report["models"]["model.onnx"][key] for key in figures if key != "top1_agreement"
    }


def test_reported_rejection_is_that_of_the_model(exported):
    """AUROC by pairs, precision and shares by counting, from the file and the bundle."""
    data, report = load_organized(exported.data), report_of(exported.exports)
    bundle = json.loads((exported.exports / "bundle.json").read_text())
    rule, names = bundle["models"]["model.onnx"]["rejection"], bundle["scores"]
    run = session_run(exported.exports / "model.onnx")

    def score(views: list[np.ndarray]) -> np.ndarray:
        found = np.concatenate([run(view[None])[1] for view in views]).astype(np.float64)
        return sum(w * found[:, names.index(name)] for name, w in rule["weights"].items())

    files = sorted((exported.data / "not_plants" / "test").rglob("*.jpg"))
    views = EvalViews(data.splits["test"], 32)
    plants = score([views[i][0].numpy() for i in range(len(views))])
    others = score([resize_to_model(read_rgb(path), 32) for path in files])
    pairs = others[:, None] - plants
    caught, lost = (others > rule["threshold"]).sum(), (plants > rule["threshold"]).sum()
    figures = {
        "auroc": (pairs > 0).mean() + 0.5 * (pairs == 0).mean(),
        "rejected": caught / len(others),
        "rejected_at_1pct_frr": (others > plants.max()).mean(),
        "precision": caught / max(1, caught + lost),
        "n_ood": len(files),
    }
    assert {key: report["ood"][key] for key in figures} == pytest.approx(figures)


def test_modules_that_declare_keep_float_stay_float(exported, pictures):
    """Their weights keep the modules' names in the file, and quantization leaves them alone."""
    model = quantize.load_fused(exported.exports / "model.onnx")
    kept = {entry.key: entry.value for entry in model.metadata_props}[quantize.KEEP_FLOAT]
    modules = ["model.species_head.", "model.disease_heads.", "feature_space.", "layer_space."]
    assert set(modules) <= set(json.loads(kept))
    layers = quantize.layers(model, quantize.static_kinds(model))
    ranges = quantize.calibrate(model, [pictures])
    for made in (
        quantize.static(model, layers, ranges),
        quantize.weights(model, smallest=1, depthwise=True),
    ):
        types = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
        assert onnx.TensorProto.INT8 in types.values()
        for module in modules:
            own = [kind for name, kind in types.items() if name.startswith(module)]
            assert own, f"{module} has lost its name"
            assert set(own) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}, module


PICTURES = {"reliability.png", "coverage.png", "scores.png", "confusion.png"}


def test_int8_agrees_or_is_refused_with_a_reason(exported):
    report = report_of(exported.exports)
    tried = report["int8_tried"]
    assert tried
    assert all(row["rejected"] or row["gate"]["passed"] for row in tried)
    assert ("model.int8.onnx" in report["models"]) == any(not row["rejected"] for row in tried)
    assert (bool(report["gate"]) and all(gate["passed"] for gate in report["gate"])) == (
        "model.int8.onnx" in report["models"]
    )
    assert {p.name for p in exported.exports.iterdir()} == {
        "bundle.json",
        "report.json",
        "report.md",
        "report.html",
        "advice.csv",
        "README.md",
        *PICTURES,
        *report["models"],
    }


def test_the_model_card_has_the_form_of_the_hub_and_the_figures_of_the_report(exported):
    text, report = (exported.exports / "README.md").read_text(), report_of(exported.exports)
    card = huggingface_hub.ModelCard(text).data
    served = report["models"][report["default_model"]]
    assert (card.pipeline_tag, card.library_name, card.license) == (
        "image-classification",
        "onnx",
        None,
    )
    assert "onnxruntime" in card.tags
    told = {found.metric_name: found.metric_value for found in card.eval_results}
    assert told["species and disease right"] == round(served["cascade_top1"], 4)
    assert told["macro F1 over the classes"] == round(served["macro_f1"], 4)
    assert {found.dataset_split for found in card.eval_results} == {"test"}
    rows = re.findall(r"^\| (\w+) +\| ([a-z_, ]+?) +\| +(\d+) *\| (\d+) +\| (\d+) +\|$", text, re.M)
    assert [row[:2] for row in rows] == [
        ("apple", "healthy, scab"),
        ("corn", "common_rust, healthy"),
        ("tomato", "early_blight, healthy, late_blight"),
    ]
    sums = [sum(int(row[i]) for row in rows) for i in (2, 3, 4)]
    assert sums == [report["data"][split] for split in ("train", "val", "test")]
    # 95 % interval of 10 of 10 by Wilson: n / (n + z^2)
    share = f"| {served['species_top1']:.3f} | "
    assert share in text
    if served["species_top1"] == 1:
        assert "| 1.000 | 0.722 to 1.000" in text
    for name in report["models"]:
        assert f"| {file_sha256(exported.exports / name)} |" in text
    assert str(exported.data.parent) not in text, "no path of this machine"


def test_the_lines_of_the_model_card_need_the_model_alone(exported, tmp_path):
    text, name = (exported.exports / "README.md").read_text(), report_of(exported.exports)
    name = name["default_model"]
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    shutil.copy(exported.exports / name, tmp_path)
    model = predictor.Predictor(exported.exports, name)
    things = sorted((exported.data / "not_plants" / "test").rglob("*.jpg"))
    photos, outcomes = [*sorted((exported.data / "test").rglob("*.jpg")), *things], set()
    for path in [photos[0], photos[-1]]:
        Image.open(path).save(tmp_path / "leaf.jpg", quality=95)
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outputs = model.run(model.read(tmp_path / "leaf.jpg").pixels[None])
        best = int(outputs.probabilities[0].argmax())
        rejected = bool(model.card.rejection.exceeded(outputs.ood)[0])
        wanted = "rejected" if rejected else model.bundle.tree.class_name(best)
        told, *probability = done.stdout.split()
        assert told == wanted
        assert list(map(float, probability)) == pytest.approx(
            [float(outputs.probabilities[0, best])] * (not rejected), abs=0.02
        )
        outcomes.add(rejected)
    assert outcomes == {False, True}


def test_run_again_it_is_up_to_date(exported, capsys):
    before = {p: p.stat().st_mtime_ns for p in exported.exports.iterdir()}
    assert run("03_export", *exported.flags) == 0
    assert "up to date" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in exported.exports.iterdir()}


def test_advice_is_begun_empty(exported):
    tree = load_organized(exported.data).tree
    begun = (exported.exports / "advice.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in begun[1:]] == [[*tree.pair(i)] for i in range(7)]
    assert read_advice(exported.exports, tree) == {}


def test_pictures_and_a_triton_repository_are_added_to_an_export_however_it_was_made(
    exported, tmp_path, capfd, refused
):
    own = shutil.copytree(exported.exports, tmp_path / "e")
    bundle = (own / "bundle.json").read_text()
    assert bundle.count("-0.95-10000-") == 1
    (own / "bundle.json").write_text(bundle.replace("-0.95-10000-", "-0.9-500-"))
    (own / "advice.csv").unlink()  # as of an export of before
    before = {path: path.stat().st_mtime_ns for path in own.iterdir()}
    flags = [*exported.flags[:4], "--output", own, "--workers", 0]
    refused("none is shown without", run, "03_export", *flags, "--reference", 2)
    triton = ["--triton", tmp_path / "triton"]
    (tmp_path / "triton" / "foliar").mkdir(parents=True)
    refused("no Triton model", run, "03_export", *flags, *triton)
    (tmp_path / "triton" / "foliar").rmdir()
    page = ["--static", tmp_path / "site"]
    refused("no model for the browser", run, "03_export", *flags, *page)
    refused("Give --browser too", run, "03_export", *flags, *page, "--max-pictures", 500)
    refused("no model for the browser", run, "03_export", "--output", own, *page)
    refused("no model for the browser", run, "03_export", *exported.flags, *page)
    refused("Give --browser too", run, "03_export", *exported.flags, *page, "--fresh")
    assert run("03_export", *flags, "--reference", 2, "raw", *triton) == 0
    assert (tmp_path / "triton" / "foliar" / "1" / "model.onnx").is_file()
    after = {path: path.stat().st_mtime_ns for path in own.iterdir()}
    assert before.items() <= after.items()
    assert {path.name for path in after.keys() - before.keys()} == {"advice.csv", "reference"}
    index = read_reference(own, load_organized(exported.data).tree)
    assert [len(pictures) for pictures in index.values()] == [2] * 7
    assert "reference pictures: 14 of 7 classes" in capfd.readouterr().out
    parse = importlib.import_module("03_export").parse
    assert parse(["--reference", "2", "raw", "--workers", "0"]).only_adds
    for more in (["--browser", "a.pt"], ["--fresh"], ["--ood", "b"], ["--precision-wanted", "0.9"]):
        assert not parse(["--reference", "2", "raw", *more]).only_adds
    assert not parse([]).only_adds


# region mistakes


def test_checkpoints_that_do_not_fit_are_refused(exported, tmp_path, refused):
    best = checkpoint.find_best(exported.checkpoints / "hierarchical_full")
    flags = ["--data", exported.data, "--output", tmp_path / "exports", "--workers", 0]
    cut = tmp_path / "cut.pt"
    cut.write_bytes(best.read_bytes()[:-1000])
    refused("cut.pt", run, "03_export", *flags, "--checkpoint", cut)
    refused(
        "there is no checkpoint", run, "03_export", *flags, "--checkpoint", tmp_path / "none.pt"
    )
    refused("02a_train_species.py", run, "03_export", *flags, "--checkpoints", tmp_path)
    other = shutil.copytree(exported.data, tmp_path / "other")
    for name in ("manifest.csv", "species_index.json"):
        (other / name).write_text((other / name).read_text().replace("late_blight", "rust"))
    refused(
        "another data set",
        run,
        "03_export",
        "--data",
        other,
        "--output",
        tmp_path / "exports",
        "--checkpoint",
        best,
    )
    refused("--precision-wanted", run, "03_export", *flags, "--precision-wanted", 2)
    assert not (tmp_path / "exports").exists()
    assert not (tmp_path / "exports.partial").exists()


def test_a_folder_that_is_not_ours_is_never_deleted(exported, tmp_path, refused):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    flags = [*exported.flags[:4], "--output", tmp_path / "precious", "--workers", 0]
    refused("--output", run, "03_export", *flags)
    refused("--output", run, "03_export", *flags, "--fresh")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_heads_without_a_joint_phase_are_exported(trained, tmp_path):
    """With --joint-epochs 0 the trained heads are in disease_heads/: exporting the species run
    would serve random diseases.
    """
    script = __import__("importlib").import_module("03_export")
    for name in ("species_only", "disease_heads"):
        shutil.copytree(trained.checkpoints / name, tmp_path / name)
    args = script.parse(["--checkpoints", str(tmp_path)])
    assert script.pick_checkpoint(args).name == "disease_heads_final.pt"


def test_no_test_pictures_are_told(exported, tmp_path, refused):
    other = shutil.copytree(exported.data, tmp_path / "other")
    lines = (other / "manifest.csv").read_text().splitlines(keepends=True)
    (other / "manifest.csv").write_text("".join(line for line in lines if ",test," not in line))
    refused(
        "test",
        run,
        "03_export",
        "--data",
        other,
        *exported.flags[2:4],
        "--output",
        tmp_path / "exports",
        "--workers",
        0,
    )
    assert not (tmp_path / "exports").exists()


# endregion


@pytest.mark.filterwarnings("ignore")  # of that exporter, on Python's own numbers in the graph
def test_a_flat_set_without_strangers_is_exported_from_its_species_run(
    tmp_path, monkeypatch, capfd
):
    """By torch's older exporter, as with an onnxscript of another time; gpu.py, whose test runs 03
    too, has such a set exported by the current one.
    """
    export = torch.onnx.export

    def older(*args: object, dynamo: bool, **options: object) -> None:
        if dynamo:
            raise RuntimeError("no onnxscript for this torch")
        export(*args, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", older)
    raw = tiny_data.make_raw(tmp_path / "raw", each=6)
    assert (
        run("01_reorganize", raw, "--output", tmp_path / "flat", "--levels", 1, "--workers", 1) == 0
    )
    few = ["--species-finetune-epochs", 1, "--species-final-epochs", 0]
    where = ["--data", tmp_path / "flat", "--checkpoints", tmp_path / "c"]
    assert run("02a_train_species", *where, *tiny_data.SPECIES, *few) == 0
    assert run("03_export", *where, "--output", tmp_path / "exports", "--workers", 0) == 0
    assert "its older exporter does it" in capfd.readouterr().err
    report = report_of(tmp_path / "exports")
    assert report["models"]["model.onnx"]["top1_agreement"] == 1.0
    assert report["ood"] == {}
    assert report["data"]["species"] == report["data"]["classes"] == 7
    assert report["test"]["cascade_top1"] == report["test"]["species_top1"]
    card = (tmp_path / "exports" / "README.md").read_text()
    assert "One photo in; what it shows out" in card
    assert "species right" in card
    assert "disease right" not in card
    assert "else was measured on none." in " ".join(card.split())


def test_strangers_of_ones_own_a_light_model_and_a_triton_repository(exported, tmp_path, capfd):
    old = shutil.copytree(exported.exports, tmp_path / "e")
    written = "species;disease;text\napple;scab;Rake up the leaves.\n".encode("utf-16")
    (old / "advice.csv").write_bytes(written)
    (old / "reference").mkdir()
    best = checkpoint.find_best(exported.checkpoints / "hierarchical_full")
    things = tiny_data.make_strangers(tmp_path / "things", count=24)
    (tmp_path / "weeds").mkdir()
    for number in range(6):
        Image.fromarray(tiny_data.draw("corn", "scab", 100 + number)[::-1, ::-1] // 2).save(
            tmp_path / "weeds" / f"{number}.png"
        )
    assert (
        run(
            "03_export",
            *exported.flags[:4],
            "--output",
            tmp_path / "e",
            "--workers",
            0,
            "--ood",
            f"toys={things}",
            "--unknown-plants",
            tmp_path / "weeds",
            "--browser",
            best,
            "--triton",
            tmp_path / "triton",
            "--max-size-mb",
            50,
            rendered=True,
        )
        == 0
    )
    told = capfd.readouterr()
    assert (old / "advice.csv").read_bytes() == written, "a person's work is kept"
    assert "advice: in en for 1 of 7 classes (none for apple/healthy" in told.out
    assert not (old / "reference").exists()
    assert f"{old / 'reference'} is gone" in told.err
    report = report_of(tmp_path / "e")
    assert {"not_plants", "toys", "weeds"} == set(report["ood"]["kinds"])
    assert predictor.read_bundle(tmp_path / "e").scores == (*SCORES, LEARNED)
    light = LightModel(tmp_path / "e" / "browser")
    assert (
        light.scores[-1] == LEARNED
        and LEARNED not in light.settings["rejection"]["disease"]["weights"]
    )
    assert report["browser"]["thresholds"]["ood"]["kinds"]["toys"]["auroc"] > 0.8
    split = load_organized(exported.data).splits["test"]
    views = EvalViews(split, 32)
    answers = [light.answer(views[i][0].numpy()) for i in range(len(split))]
    right = np.mean(
        [
            answer.class_idx == class_idx
            for answer, class_idx in zip(answers, split.class_idx, strict=True)
        ]
    )
    assert report["browser"]["deferral"]["test"]["browser"] == pytest.approx(right)
    assert (tmp_path / "e" / "deferral.png").is_file()
    assert "The light model, for the browser" in (tmp_path / "e" / "report.md").read_text()
    card = (tmp_path / "e" / "README.md").read_text()
    assert f"species and disease right {right:.3f}" in card
    assert "toys (" in card
    assert (tmp_path / "triton" / "foliar" / "1" / "model.onnx").is_file()
    assert (tmp_path / "triton" / "foliar" / "config.pbtxt").is_file()


def test_the_pretrained_network_gives_a_second_opinion(exported, tmp_path, refused):
    where = ["--data", exported.data, "--checkpoints", tmp_path / "c"]
    out = ["--output", tmp_path / "e", "--workers", 0]
    shutil.copytree(exported.checkpoints, tmp_path / "c")
    refused("pretrained --weights", run, "03_export", *where, *out, "--second-opinion")
    best = checkpoint.find_best(exported.checkpoints / "species_only")
    short = ["--species-finetune-epochs", 1, "--species-final-epochs", 0, "--fresh"]
    begun = ["--data", exported.data, "--checkpoints", tmp_path / "begun"]
    before = tmp_path / "begun" / "species_only" / checkpoint.PRETRAINED
    backbone = checkpoint.build_model(checkpoint.load(best)).backbone.state_dict()
    torch.save(backbone, tmp_path / "plain.pth")
    begun += [*tiny_data.SPECIES, "--weights", tmp_path / "plain.pth"]
    assert run("02a_train_species", *begun, *short) == 0
    kept = checkpoint.build_model(checkpoint.load(before, trained=False))
    for name, value in backbone.items():
        torch.testing.assert_close(kept.backbone.state_dict()[name], value, rtol=0, atol=0)
    refused("random", run, "03_export", *where, *out, "--checkpoint", before)

    shutil.copy(before, tmp_path / "c" / "species_only")
    assert run("03_export", *where, *out, "--second-opinion") == 0
    bundle, report = predictor.read_bundle(tmp_path / "e"), report_of(tmp_path / "e")
    assert bundle.scores == (*SCORES, PRETRAINED)
    assert bundle.models["model.onnx"].rejection.species.score == "pretrained+0.25 gen"
    assert report["rejection"]["species"]["levels"].keys() == {"0.01", "0.05"}
    assert "Second opinion of the pretrained network" in (tmp_path / "e" / "report.md").read_text()
    assert " or ood[0] @ [" in (tmp_path / "e" / "README.md").read_text()
    views = EvalViews(load_organized(exported.data).splits["test"], 32)
    pictures = np.stack([views[i][0].numpy() for i in range(8)])
    got = session_run(tmp_path / "e" / "model.onnx")(pictures)[1][:, -1]
    assert (-1.5 < got).all() and (got < 0).all()
    before = checkpoint.weights_hash(checkpoint.load(before, trained=False))
    assert before in bundle.raw["built_from"], "another pretrained network is another export"


def test_a_second_opinion_that_tells_too_little_is_left_out(capfd):
    script = importlib.import_module("03_export")
    for auroc, kept in ((0.81, True), (0.79, False)):
        fitted = Fitted(*[None] * 5, second=torch.nn.Identity(), left_out={"auroc": auroc})
        assert (script.if_worth_it(fitted).second is not None) == kept
        assert ("NO SECOND OPINION" in capfd.readouterr().err) != kept


def test_a_model_beyond_the_limits_is_an_error(exported, tmp_path, refused, monkeypatch):
    def copy(graph: torch.nn.Module, path: str, size: int) -> None:
        shutil.copy(exported.exports / "model.onnx", path)  # the same graph, which takes seconds

    monkeypatch.setattr(importlib.import_module("03_export"), "export_onnx", copy)
    flags = [*exported.flags[:4], "--output", tmp_path / "e", "--workers", 0]
    refused(("MB", "Nothing was written"), run, "03_export", *flags, "--max-size-mb", 0.001)
    refused("there is no folder", run, "03_export", *flags, "--ood", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
