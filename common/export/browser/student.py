"""The light model's part of an export: the student's checkpoint, run over everything, fitted like
the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.decide import joint_class
from common.export.browser import light_export
from common.export.outcomes import Outcome, fit_thresholds, evaluate_thresholds, outcome_of, photo_limits
from common.export.pictures import Pictures
from common.train import checkpoint


def export_browser(
    path: Path,
    folder: Path,
    pictures: Pictures,
    bundle: Mapping[str, Any],
    served: Outcome,
    precision: float,
) -> dict[str, Any]:
    """Write exports/browser/ from a student's checkpoint and judge it alone and with the served
    model.

    Args:
        path: the student's checkpoint.
        folder: exports/browser.
        pictures: of the export, at any size.
        bundle: bundle.json so far.
        served: what the served model answers.
        precision: wanted by default.

    Returns:
        what `light.finish_browser` reports, and `bars`: figures of `evaluate_thresholds`.

    Raises:
        SystemExit: where the checkpoint cannot be read or knows other classes.
    """
    payload, data = checkpoint.load(path), pictures.data
    checkpoint.require_tree(payload, data.tree, path, data.root)
    model = checkpoint.build_model(payload)
    own = pictures.at(int(model.settings["image_size"]))
    settings = {key: bundle[key] for key in ("name", "version", "preprocessing")}
    batches = {"train": own.with_poor, "val": own.batches}
    shown = (batch for _, kind in own.ood("plant", "val") for batch in kind)
    written = light_export.write_browser(
        model, folder, lambda split, _: batches[split](split), settings, shown
    )
    names = written.light.scores
    found = outcome_of(written.light.outputs, own, written.learned)
    bars, _ = fit_thresholds(found, names, data.tree, photo_limits(own), precision)
    server = {split: joint_class(served.splits[split][0], data.tree) for split in ("val", "test")}
    report = light_export.finish_browser(
        written,
        found.splits["val"],
        found.splits["test"],
        server,
        bars,
        own.batches("test"),
        data.class_sizes,
    )
    return report | {"bars": evaluate_thresholds(found, bars, names, data.tree, data.class_sizes)}
