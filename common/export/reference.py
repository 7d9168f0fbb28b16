"""Reference pictures: typical train pictures of each class, which people compare with theirs."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from common import images
from common.console import fail
from common.export.fitting import features_of
from common.export.pictures import BATCH, Pictures, balanced
from common.files import stand_in, write_text
from common.train.dataset import Organized
from common.train.manifest import rows_of
from common.train.model import SwinHierarchical

MOST = 10  # pictures of a class
CANDIDATES = 50  # plants of a class on average, among which the typical ones are found
SIDE, QUALITY = 256, 80  # px of the long side, and of the JPEG


def free_pictures(data: Organized, wanted: list[str]) -> tuple[int, dict[int, str]]:
    """Find the train pictures that may be shown to everybody.

    Args:
        data: the organized data.
        wanted: of --reference: how many per class, then names of sources (`dataset` in
            manifest.csv).

    Returns:
        how many; {picture of train: its source}, one picture per plant (`group`) and class.

    Raises:
        SystemExit: where the number is none, no source is named, or one is not in the data.
    """
    number, *names = wanted
    flag = f"--reference {' '.join(wanted)}"
    if not number.isdecimal() or not 1 <= int(number) <= MOST:
        fail(f"{flag}: how many pictures per class comes first, 1 to {MOST}: --reference 3 SOURCE")
    found: dict[int, str] = {}
    seen: set[tuple[int, str]] = set()
    counts: Counter[str] = Counter()
    class_idx = data.splits["train"].class_idx
    for i, row in enumerate(rows_of(data.root / "manifest.csv", "train")):
        source, plant = row.get("dataset") or "unnamed", (int(class_idx[i]), row["group"])
        counts[source] += 1
        if source in names and plant not in seen:
            seen.add(plant)
            found[i] = source
    told = ", ".join(f"{name} ({count:,} pictures)" for name, count in sorted(counts.items()))
    if not names:
        fail(
            f"{flag}: name the sources whose pictures everybody may see; none is shown without "
            f"that. {data.root} has {told}: --reference {number} {min(counts)}, say."
        )
    if unknown := [name for name in names if name not in counts]:
        fail(f"{flag}: train has no source {unknown[0]!r}. It has {told}.")
    return int(number), found


def write_reference(
    folder: Path,
    data: Organized,
    model: SwinHierarchical,
    free: Mapping[int, str],
    count: int,
    device: torch.device,
    workers: int,
) -> str:
    """Write pictures nearest their class's mean in feature space, as small JPEGs without metadata:
    `<folder>/<species>/<disease>/<n>.jpg`, the nearest first, and index.json, which names their
    sources.

    Args:
        folder: it is replaced as a whole.
        data: where the pictures are, in files or shards.
        model: it ends on the CPU.
        free: {picture of train: its source}, those to choose from.
        count: pictures per class.
        device: where the backbone runs.
        workers: of the loader.

    Returns:
        a sentence on what was written.
    """
    split, tree = data.splits["train"], data.tree
    chosen = np.array([*free])
    chosen = chosen[balanced(split.class_idx[chosen], CANDIDATES * tree.num_classes)]
    pictures = Pictures(data, model.settings["image_size"], [], len(chosen), workers)
    batches = pictures.load("train", chosen, BATCH)
    features, _, class_idx = features_of(
        model, batches, len(chosen), "features of reference pictures", device
    )
    new = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    index: dict[str, list[dict[str, str]]] = {}
    for c in np.unique(class_idx.numpy()).tolist():
        own, name = (class_idx == c).numpy(), tree.class_name(c)
        distance = torch.linalg.vector_norm(features[own] - features[own].mean(0), dim=1)
        nearest = chosen[own][np.argsort(distance.numpy(), kind="stable")[:count]]
        (new / name).mkdir(parents=True)
        for n, i in enumerate(nearest.tolist(), 1):
            rgb = images.read_rgb(split.read(i), long_side=SIDE, min_side=1)
            (new / name / f"{n}.jpg").write_bytes(images.encode_jpeg(rgb, QUALITY))
            index.setdefault(name, []).append({"file": f"{name}/{n}.jpg", "source": free[i]})
    write_text(new / "index.json", json.dumps(index, ensure_ascii=False, indent=1) + "\n")
    stand_in(new, folder)
    written = sum(map(len, index.values()))
    without = [name for name in map(tree.class_name, range(tree.num_classes)) if name not in index]
    lacking = f"; none of {len(without)} classes, such as {without[0]}" if without else ""
    return f"reference pictures: {written:,} of {len(index):,} classes in {folder}{lacking}"
