"""README.md of an export: a model card in Hugging Face's format, to go with the models wherever
they go. https://huggingface.co/docs/hub/model-cards
"""

import csv
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData  # comes with timm

from common.console import table
from common.train.dataset import Organized
from common.train.metrics import wilson

TAGS = ["onnxruntime", "timm", "hierarchical-classification", "out-of-distribution-detection"]
METRICS = {  # name in the reports -> Hugging Face's type, words
    "species_top1": ("accuracy", "species right"),
    "disease_top1": ("accuracy", "disease right, given the species"),
    "cascade_top1": ("accuracy", "species and disease right"),
    "macro_f1": ("f1", "macro F1 over the classes"),
}
USE = """
```python
import json
import numpy as np, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}")
size = session.get_inputs()[0].shape[1]
photo = ImageOps.exif_transpose(Image.open("leaf.jpg")).convert("RGB")
pixels = np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR))
probabilities, ood, heatmap = session.run(None, {{"images": pixels[None]}})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
best = probabilities[0].argmax()
rejected = {rule}
print("rejected" if rejected else f"{{classes[best]}} {{probabilities[0, best]:.3f}}")
```
"""


def compose(
    report: Mapping[str, Any], bundle: Mapping[str, Any], data: Organized, class_idx: np.ndarray
) -> str:
    """Compose README.md.

    Args:
        report: report.json.
        bundle: bundle.json.
        data: what was trained on; its manifest names the sources.
        class_idx: int (N,), the true classes of the test pictures that the report is of.

    Returns:
        Markdown after a front matter in YAML. It has no licence: that is for the owner of the
        photos to choose.
    """
    served, size = bundle["default_model"], bundle["preprocessing"]["size"]
    with (data.root / "manifest.csv").open(newline="", encoding="utf-8", errors="replace") as file:
        rows = (row for row in csv.DictReader(file) if row["split"] in data.splits)
        counts = Counter(row.get("dataset") or "unnamed" for row in rows)
    sources = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items()))
    several = np.diff(data.tree.offsets)[data.tree.class_species[class_idx]] > 1
    deep = data.tree.num_classes > data.tree.num_species
    what = "the species of a plant and its disease" if deep else "what it shows"
    return "\n".join(
        [
            f"---\n{front_matter(report, bundle, sorted(counts))}\n---",
            f"# {bundle['name'].title()} {bundle['version']}",
            "",
            _wrap(
                f"One photo in; {what} out, or a rejection. It knows {report['data']['species']} "
                f"species with {report['data']['classes']} classes. "
                f"{bundle['backbone']} at {size} x {size} pixels, trained with the recipe "
                f"{bundle['recipe']} and exported as ONNX, calibrated and with thresholds of "
                f"rejection. `{served}` is the one to serve."
            ),
            "",
            "## How to ask it",
            USE.format(file=served, rule=_rule(bundle["models"][served]["rejection"], bundle)),
            _wrap(
                f"The input is uint8 (N, {size}, {size}, 3), RGB: the whole photo, upright, "
                f"squeezed to a square by Pillow's `BILINEAR`; normalisation is in the graph. "
                f"`probabilities` are joint over species and disease and sum to 1, so that those "
                f"of a species' classes add up to its own; `ood` grows with the distance from the "
                f"training photos; `heatmap` is 0 to 1. `bundle.json` has the class tree and all "
                f"thresholds, also those below which the answer should be the species alone."
            ),
            "",
            "## Data",
            "",
            f"Sources, with their pictures: {sources}. Near-duplicates are in one split.",
            "",
            table(_classes(data), ("species", "diseases", *data.splits)),
            "",
            *_figures(report, served, int(several.sum())),
            *_limits(report, served),
            "## Files",
            "",
            table(
                [
                    (name, card["precision"], f"{card['size_mb']:.1f}", card["sha256"])
                    for name, card in bundle["models"].items()
                ],
                ("file", "precision", "MB", "SHA-256"),
            ),
            "",
            *_light(report),
            "Made with "
            + ", ".join(
                f"{name} {bundle['versions'][name]}"
                for name in ("python", "torch", "timm", "onnx", "onnxruntime")
                if name in bundle["versions"]
            )
            + f", {bundle['created'][:10]}.",
            "",
            "## Licence",
            "",
            _wrap(
                "None was chosen. Whoever owns the photos and publishes the model adds `license:` "
                "to the first lines of this file; a new export writes it anew, without that."
            ),
            "",
        ]
    )


def front_matter(report: Mapping[str, Any], bundle: Mapping[str, Any], sources: list[str]) -> str:
    """The lines between the dashes: what Hugging Face's site shows and searches, with the figures
    of the served model on test.
    """
    found = report["models"][bundle["default_model"]]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="imagefolder",
            dataset_name=", ".join(sources),
            dataset_split="test",
            metric_type=kind,
            metric_name=words,
            metric_value=round(found[name], 4),
        )
        for name, (kind, words) in _metrics(report).items()
    ]
    return ModelCardData(
        model_name=f"{bundle['name']}-{bundle['version']}",
        pipeline_tag="image-classification",
        library_name="onnx",
        tags=TAGS,
        metrics=sorted({kind for kind, _ in METRICS.values()}),
        eval_results=results,
    ).to_yaml()


def _metrics(report: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Those of `METRICS` that mean something: a flat tree has no diseases."""
    flat = report["data"]["classes"] == report["data"]["species"]
    return {k: v for k, v in METRICS.items() if not flat or k in ("species_top1", "macro_f1")}


def _rule(rejection: Mapping[str, Any], bundle: Mapping[str, Any]) -> str:
    """When a picture is rejected, as an expression of `ood`."""
    return " or ".join(
        f"ood[0] @ {[round(rule['weights'].get(name, 0), 6) for name in bundle['scores']]} "
        f"> {rule['threshold']:.6g}"
        for rule in (rejection, rejection["species"])
        if rule
    )


def _classes(data: Organized) -> list[tuple[Any, ...]]:
    """A row per species: its diseases, and its pictures in each split."""
    tree = data.tree
    counts = [
        np.bincount(tree.class_species[split.class_idx], minlength=tree.num_species)
        for split in data.splits.values()
    ]
    return [
        (name, ", ".join(diseases), *(int(count[i]) for count in counts))
        for i, (name, diseases) in enumerate(zip(tree.species, tree.diseases, strict=True))
    ]


def _figures(report: Mapping[str, Any], served: str, several: int) -> list[str]:
    """Shares on test; `several` pictures are of species with more than one disease, which alone can
    be given a wrong one.
    """
    card, found = report["models"][served], report["calibration"]["after"]["all"]
    rollup, ood, n = card["rollup"][report["rollup"]["default"]], card["rejection"], card["n"]
    shares = [
        (words, card[name], several if name == "disease_top1" else n)
        for name, (kind, words) in _metrics(report).items()
        if kind != "f1"
    ]
    shares += [
        ("answered, with the species at least", rollup["coverage"], n),
        ("right among the answers", rollup["precision"], rollup["given"]),
        ("known plants rejected by their scores", ood["false_rejection_rate"], ood["n_plants"]),
        ("pictures of something else rejected", ood.get("rejected"), ood.get("n_ood", 0)),
    ]
    rows = [
        (words, f"{share:.3f}", "{:.3f} to {:.3f}".format(*wilson(np.array([share * of]), of)[0]))
        for words, share, of in shares
        if share is not None and of
    ]
    return [
        f"## Figures of `{served}`",
        "",
        _wrap(
            f"On the {n:,} pictures of test, which nothing was fitted on, with 95 % intervals "
            f"(Wilson). Answers are those of the thresholds for a precision of "
            f"{report['rollup']['default']}. Macro F1 is {card['macro_f1']:.3f}; the calibration "
            f"error of model.onnx, how far its probabilities are from the shares that were right, "
            f"without what chance adds, is {found['error']:.3f} ({found['low']:.3f} to "
            f"{found['high']:.3f})."
        ),
        "",
        table(rows, ("share", "value", "95 % interval")),
        "",
    ]


def _light(report: Mapping[str, Any]) -> list[str]:
    if not report["browser"]:
        return []
    found = report["browser"]["deferral"]["test"]["browser"]
    return [
        f"`browser/` has a light model for web pages: species and disease right {found:.3f}.",
        "",
    ]


def _limits(report: Mapping[str, Any], served: str) -> list[str]:
    kinds = report["models"][served]["rejection"].get("kinds", {})
    tested = ", ".join(f"{k} ({v['rejected']:.1%} of {v['n']})" for k, v in kinds.items())
    unknown = (
        "report.md says how often it names plants of species that were held out."
        if report["open_world"]
        else "How often was not measured, since no species was held out."
    )
    lines = [
        "For a first look at a plant, by people who check what it says. It is no diagnosis, and no "
        "ground by itself for a treatment.",
        "It knows the classes above alone. A plant of another species, or another disease of a "
        f"known one, may be given the most similar name. {unknown}",
        "Rejection of pictures of something else was measured on "
        + (f"these kinds alone, and may be worse on others: {tested}." if tested else "none."),
        "Test pictures come from the same sources as those it learned from. In other places, with "
        "other cameras and at other stages of a disease, expect less.",
    ]
    wrapped = [
        textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ") for line in lines
    ]
    return ["## Intended use and limits", "", *wrapped, ""]


def _wrap(text: str) -> str:
    return textwrap.fill(text, 100)
