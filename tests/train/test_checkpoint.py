"""Checkpoints: whole or not at all, readable without code, and refused in a sentence where they do
not fit.
"""

import os
from pathlib import Path

import pytest
import torch

from common.classes import ClassTree
from common.train import checkpoint
from common.train.model import SwinHierarchical

TREE = ClassTree(("a", "b"), (("x", "y"), ("x",)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SwinHierarchical("test_resnet", TREE, image_size=32).eval()


@pytest.fixture
def saved(model, tmp_path) -> Path:
    path = tmp_path / "run" / "last.pt"
    facts = {"provenance": checkpoint.provenance(), "epochs_done": 3}
    checkpoint.save(path, checkpoint.describe_model(model) | facts)
    return path


def test_there_and_back(model, saved):
    payload = torch.load(saved, weights_only=True)  # plain values and tensors only
    assert payload["format"] == checkpoint.FORMAT
    again = checkpoint.build_model(checkpoint.load(saved))
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(model(images)[1], again(images)[1])
    assert not again.training
    assert again.tree == TREE
    assert list(saved.parent.iterdir()) == [saved]
    assert checkpoint.weights_hash(payload) == checkpoint.weights_hash(
        checkpoint.describe_model(again)
    )


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    with pytest.raises(Exception, match="pickle|local"):
        checkpoint.save(saved, {"bad": lambda: None})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved, {"tree": {}})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_full_disk(model, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    target = tmp_path / "x.pt"
    (tmp_path / "x.pt.tmp").symlink_to("/dev/full")
    with pytest.raises((OSError, RuntimeError)):
        checkpoint.save(target, checkpoint.describe_model(model))
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(saved, tmp_path, refused):
    data = saved.read_bytes()
    bad = tmp_path / "bad.pt"
    for part in (
        b"",
        b"x",
        b"plain text, no checkpoint\n" * 5,
        data[:100],
        data[: len(data) // 2],
        data[:-1],
        data[:-30],
        data[50:],
        b"\x80\x02}q\x00.",
        b"PK\x03\x04" + b"\0" * 60,
    ):
        bad.write_bytes(part)
        refused("bad.pt", checkpoint.load, bad)
    refused("there is no checkpoint", checkpoint.load, tmp_path / "none.pt")
    refused("there is no checkpoint", checkpoint.load, tmp_path)


def test_a_file_that_would_run_code_is_refused(tmp_path, refused):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"format": 1, "tree": Trap()}, tmp_path / "trap.pt")
    refused("trap.pt", checkpoint.load, tmp_path / "trap.pt")
    assert not (tmp_path / "trapped").exists()


def test_other_files_are_refused(saved, tmp_path, refused):
    other = tmp_path / "other.pt"
    for thing in ({"weight": torch.zeros(2)}, [1, 2], torch.zeros(3)):
        torch.save(thing, other)
        refused("no Foliar checkpoint", checkpoint.load, other)
    torch.save({**torch.load(saved, weights_only=True), "format": 99}, other)
    refused(("99", str(checkpoint.FORMAT)), checkpoint.load, other)


def test_a_network_before_training_is_no_trained_one(model, tmp_path, refused):
    before = tmp_path / checkpoint.PRETRAINED
    checkpoint.save(before, checkpoint.describe_model(model))
    refused(("random", before.name), checkpoint.load, before)
    assert checkpoint.load(before, trained=False)["settings"] == model.settings


def test_another_tree_is_refused(saved, refused):
    payload = checkpoint.load(saved)
    checkpoint.require_tree(payload, TREE, saved, Path("data"))
    refused(
        ("b/z", "--data"),
        checkpoint.require_tree,
        payload,
        ClassTree(("a", "b"), (("x", "y"), ("z",))),
        saved,
        Path("data"),
    )
    refused(
        "another order",
        checkpoint.require_tree,
        payload,
        ClassTree(("b", "a"), (("x",), ("x", "y"))),
        saved,
        Path("data"),
    )


def test_weights_of_another_shape_are_refused(saved, refused):
    payload = checkpoint.load(saved)
    payload["model"].pop("species_head.weight")
    refused("timm", checkpoint.build_model, payload)


def test_backbone_weights(model, saved, tmp_path, refused):
    fresh = SwinHierarchical("test_resnet", TREE, image_size=32)
    head = fresh.species_head.weight.clone()
    plain = tmp_path / "plain.pth"
    torch.save(model.backbone.state_dict(), plain)
    wrapped = tmp_path / "wrapped.pth"
    torch.save({"state_dict": model.backbone.state_dict()}, wrapped)
    for path in (saved, plain, wrapped):
        with torch.no_grad():
            for p in fresh.backbone.parameters():
                p.zero_()
        assert path.name in checkpoint.load_backbone(fresh, path)
        assert fresh.pretrained == (path != saved), "trained by Foliar is fine-tuned"
        for key, value in model.backbone.state_dict().items():
            assert torch.equal(fresh.backbone.state_dict()[key], value)
    assert torch.equal(fresh.species_head.weight, head)
    other = SwinHierarchical("test_vit", TREE, image_size=32)
    refused(("--weights", "test_vit"), checkpoint.load_backbone, other, plain)
    refused("no file", checkpoint.load_backbone, fresh, tmp_path / "none.pth")
    (tmp_path / "cut.pth").write_bytes(plain.read_bytes()[:3000])
    refused("cut.pth", checkpoint.load_backbone, fresh, tmp_path / "cut.pth")
    for thing in ([1, 2], torch.zeros(3), {"epoch": 3, "model": None}):
        torch.save(thing, tmp_path / "odd.pth")
        refused("odd.pth", checkpoint.load_backbone, fresh, tmp_path / "odd.pth")


def test_best(tmp_path):
    assert checkpoint.find_best(tmp_path) is None
    assert checkpoint.find_best(tmp_path / "nowhere") is None
    for name in ("epoch=02-best.pt", "epoch=10-best.pt", "epoch=10.pt", "epoch=10-best.pt.tmp"):
        (tmp_path / name).touch()
    assert checkpoint.find_best(tmp_path).name == "epoch=10-best.pt"
    (tmp_path / "epoch=100-best.pt").touch()
    assert checkpoint.find_best(tmp_path).name == "epoch=100-best.pt"
