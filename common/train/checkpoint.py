"""Checkpoints: plain values and tensors in one file, written aside and renamed, read back with a
check of everything.
"""

import hashlib
import platform
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub  # comes with timm
import timm
import torch

from common.classes import ClassTree
from common.console import fail
from common.files import whole
from common.train.model import SwinHierarchical

FORMAT = 1
PRETRAINED = "pretrained.pt"  # in species_only/: the model before training


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill or a full disk leaves either the old file or the new one,
    never half of one.

    Args:
        path: ends in `.pt`.
        payload: tensors and plain values, so that `torch.load(weights_only=True)` reads it back.

    Raises:
        OSError, RuntimeError: where the disk is full or not writable; the temporary file is
            removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as aside, aside.open("wb") as file:
        torch.save({"format": FORMAT, **payload}, file)


def load(path: Path, trained: bool = True) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        SystemExit: where it is missing, damaged, no Foliar checkpoint or of another format; and,
            where a trained one is wanted, for `PRETRAINED`.
    """
    if not path.is_file():
        fail(f"there is no checkpoint {path}.")
    payload = _read(path, "Delete it and run the same command again, or give another one.")
    if not isinstance(payload, dict) or "format" not in payload or "tree" not in payload:
        fail(f"{path} is no Foliar checkpoint (for plain backbone weights use --weights FILE).")
    if payload["format"] != FORMAT:
        fail(f"{path} has checkpoint format {payload['format']}, this code reads {FORMAT}.")
    if trained and "epochs_done" not in payload:
        fail(f"{path} is a network before training: its heads are random. Give a trained one.")
    return payload


def _read(path: Path, remedy: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        fail(
            f"{path} cannot be read: it is damaged, cut short or no file of weights "
            f"({first_line(error)}). {remedy}"
        )


def first_line(error: Exception) -> str:
    """First line of an error's message, or its class where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def describe_model(model: SwinHierarchical) -> dict[str, Any]:
    """Return what rebuilds the model: backbone, arguments, preprocessing, neck, hierarchical or
    flat, class tree and weights.
    """
    return {
        "settings": model.settings,
        "tree": model.tree.to_json(),
        "model": model.state_dict(),
    }


def weights_hash(payload: dict[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 over all weights of a checkpoint, whatever else its file
    holds.
    """
    digest = hashlib.sha256()
    for key, value in sorted(payload["model"].items()):
        digest.update(key.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def provenance() -> dict[str, str]:
    """Return versions and the command line of this run."""
    return {
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "python": platform.python_version(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def build_model(payload: dict[str, Any]) -> SwinHierarchical:
    """Rebuild the model of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        SystemExit: where the installed timm builds other tensors under that name.
    """
    s = dict(payload["settings"])
    tree, pixel_stats = ClassTree.from_json(payload["tree"]), (s.pop("mean"), s.pop("std"))
    model = SwinHierarchical(tree=tree, pixel_stats=pixel_stats, **s)
    try:
        # the average is what was judged
        model.load_state_dict(payload.get("ema") or payload["model"])
    except RuntimeError as error:
        fail(
            f"the weights do not fit {s['backbone']} as timm {timm.__version__} builds it (the "
            f"checkpoint was written with "
            f"{payload.get('provenance', {}).get('timm', 'another version')}): "
            f"{str(error).splitlines()[-1].strip()}"
        )
    return model.eval()


def require_tree(payload: dict[str, Any], tree: ClassTree, path: Path, data: Path) -> None:
    """Refuse a checkpoint whose classes are not those of the data set.

    Raises:
        SystemExit: with what differs.
    """
    other = ClassTree.from_json(payload["tree"])
    if other != tree:
        mine, theirs = (
            {tree_.class_name(i) for i in range(tree_.num_classes)} for tree_ in (tree, other)
        )
        odd = sorted(mine ^ theirs)[:5]
        fail(
            f"{path} was trained on another data set: it has {other.num_classes} classes, {data} "
            f"has {tree.num_classes}"
            f"{'; they differ in ' + ', '.join(odd) if odd else ', in another order'}. Give the "
            f"data set it was trained on "
            "(--data), or train again with --fresh."
        )


def find_best(folder: Path) -> Path | None:
    """Return the `*-best.pt` of a run, or None."""
    found = sorted(folder.glob("*-best.pt"))
    return found[-1] if found else None


def skip_unreachable_hub() -> None:
    """Tell timm's download client to use its cache alone where the model hub cannot be reached.

    Otherwise it retries for two minutes before it says so. Behind a proxy nothing is changed.
    """
    if urllib.request.getproxies():
        return
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def load_backbone(model: SwinHierarchical, path: Path) -> str:
    """Load backbone weights from a timm state dict or from a Foliar checkpoint; heads stay as they
    are. What Foliar has trained no longer counts as `pretrained`: it may have learned from the
    very photos that are to be told from unknown ones.

    Returns:
        a line that says what was loaded.

    Raises:
        SystemExit: where the file is missing, damaged or fits less than the whole backbone.
    """
    if not path.is_file():
        fail(f"--weights: there is no file {path}.")
    state = _read(path, "Give another file with --weights FILE.")
    trained = isinstance(state, dict) and "epochs_done" in state
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        fail(
            f"--weights {path} holds no state dict (name: tensor). Save the backbone with "
            f"torch.save(model.state_dict(), file)."
        )
    state = {key.removeprefix("backbone."): value for key, value in state.items()}
    wanted = model.backbone.state_dict()
    odd = [
        key for key, value in wanted.items() if key not in state or state[key].shape != value.shape
    ]
    if odd:
        fail(
            f"--weights {path} does not fit backbone {model.settings['backbone']}: {len(odd)} of "
            f"{len(wanted)} tensors are "
            f"missing or of another shape (first: {odd[0]}). Give the backbone these weights "
            f"belong to with --backbone."
        )
    model.backbone.load_state_dict({key: state[key] for key in wanted})
    model.pretrained = not trained
    note = ", trained by Foliar: 03 will have no second opinion by them" if trained else ""
    return f"backbone weights: {path.name} ({len(wanted)} tensors){note}"
