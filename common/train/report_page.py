"""report.html of a judged checkpoint: curves, confusion, and the pictures that it got wrong."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.console import say
from common.files import write_text
from common.train.compute import Compute
from common.train.dataset import EvalViews, Organized
from common.train.gallery import Gallery, grade
from common.train.loop import evaluate
from common.train.metrics import Judged
from common.train.model import SwinHierarchical
from common.train.page import Section, drawing, sections
from common.train.report import evaluate_report

AT_ONCE = 32  # pictures whose heat maps are computed together


def write_reports(
    folder: Path,
    checkpoint: Path,
    model: SwinHierarchical,
    batches: Iterable[tuple[Tensor, Tensor]],
    data: Organized,
    compute: Compute,
    *,
    split: str,
    **words: Any,
) -> None:
    """Judge a checkpoint on a split, and write all that a person reads of it.

    Args:
        folder: where the files go.
        checkpoint: its path; model: made from it, on the device.
        batches: of the split, as `loop.evaluate` takes them.
        data, compute: as for `write_page`.
        words: for `evaluate_report`.
    """
    judged = evaluate(model, batches, compute)
    evaluate_report(folder, judged, data, checkpoint=checkpoint.name, split=split, **words)
    write_page(folder, judged, data, split, model, compute, checkpoint)
    say(f"what it got wrong, to look at: {folder / 'report.html'}")


def write_page(
    folder: Path,
    judged: Judged,
    data: Organized,
    split: str,
    model: SwinHierarchical,
    compute: Compute,
    checkpoint: Path,
) -> None:
    """Write report.html beside the drawings of `report.evaluate_report`, which it holds too.

    Args:
        folder: of the report.
        judged: outcomes of the split, every picture once, in order.
        data: the organized data; split: which of its splits was judged.
        model, compute: draw the heat maps, on the device.
        checkpoint: the judged one; of those in species_only/ only species count.
    """
    species_only = checkpoint.parent.name == "species_only" and not model.flat
    best = data.tree.offsets[judged.species] if species_only else judged.joint
    views = EvalViews(data.splits[split], model.settings["image_size"])

    @torch.inference_mode()
    def heat(rows: np.ndarray) -> np.ndarray:
        maps = []
        for some in np.array_split(rows, -(-len(rows) // AT_ONCE)):
            images = compute.upload(torch.stack([views[i][0] for i in some]))
            feature_map = model.feature_map(images)
            features = model.backbone.forward_head(feature_map, pre_logits=True)
            class_idx = torch.from_numpy(best[some]).to(compute.device)
            maps.append(model.heatmap(feature_map, features, class_idx).cpu().numpy())
        return np.concatenate(maps)

    gallery = Gallery(data, split, grade(judged, data.tree, species_only), heat)
    count, wrong = len(judged.class_idx), len(gallery.mistakes)
    lead = f"{count:,} pictures of {split}: {wrong:,} wrong answers ({wrong / count:.1%})"
    curves = drawing(folder / "curves.png", "losses, accuracies and rates over the epochs")
    write_text(
        folder / "report.html",
        sections(
            f"What {checkpoint.stem} got wrong on {split}",
            [f"{lead}{', species alone' if species_only else ''}.", *gallery.advice()],
            [
                *gallery.answers(),
                gallery.confusion(folder),
                gallery.by_class(),
                *([Section("curves", "Curves", "Epoch by epoch, on val.", curves)] * bool(curves)),
            ],
        ),
    )
