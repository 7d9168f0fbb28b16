"""What an export fits: before the graph can be exported, temperatures on val and OOD scores on
train; on the answers of each exported model, its thresholds.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.console import long_part
from common.decide import Ranked, rank, rejection_from_json
from common.export import ood, rollup
from common.export.answers import Answers, Batches, Run, blocks, join, run_over
from common.export.calibrate import Temperatures, calibration_error, fit_temperatures
from common.export.graph import (
    ENOUGH,
    RANK,
    FeatureSpace,
    LearnedScore,
    ServingGraph,
    cross_fitted,
    extract_features,
)
from common.export.pictures import POOR_AT_MOST, ROLES, SHIFTS, Pictures
from common.export.second_opinion import KernelRegression, SecondOpinion
from common.train.compute import Compute
from common.train.metrics import decision_figures, for_json, summarise
from common.train.model import SwinHierarchical

SAMPLED = 16  # one train picture in so many is kept for the means of activations

# region before the graph


@contextlib.contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Compute with a module on the device, exactly in float32; afterwards it is on the CPU."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")  # no TF32, neither here nor in convolutions
    torch.backends.cudnn.allow_tf32 = False
    module.to(device)  # outside of inference mode, whose tensors the exporter does not take
    try:
        with torch.inference_mode():
            yield
    finally:
        module.cpu()
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def upload(images: np.ndarray, device: torch.device) -> Tensor:
    """Copy a batch to the device."""
    return Compute(device, torch.float32).upload(torch.from_numpy(images))


def features_of(
    model: SwinHierarchical, batches: Batches, total: int, what: str, device: torch.device
) -> tuple[Tensor, ...]:
    """Run the backbone.

    Args:
        model: it ends on the CPU.
        batches: of (uint8 (B, size, size, 3), class_idx int64 (B,)).
        total: how many pictures, for the progress bar; what: its name.
        device: to compute on.

    Returns:
        features float32 (N, F), layer statistics float32 (N, D), class_idx int64 (N,), on the CPU.
    """
    parts = []
    with on_device(model, device), long_part(what, total) as bar:
        for images, class_idx in batches:
            _, features, layers = extract_features(model, upload(images, device))
            parts.append((features.cpu(), layers.cpu(), torch.from_numpy(class_idx)))
            bar.update(len(class_idx))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@torch.inference_mode()
def logits_of(
    model: SwinHierarchical, features: Tensor, class_idx: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Compute what the heads say of pooled features, as `fit_temperatures` takes it: species logits
    float32 (N, species), and disease logits float32 (N, widest) of the true species.
    """
    tree, count = model.tree, len(features)
    species = np.empty((count, tree.num_species), np.float32)
    disease = np.empty((count, int(np.diff(tree.offsets).max())), np.float32)
    for rows in blocks(count, tree.num_classes):  # a flat model computes every class on the way
        hidden = model.neck(features[rows])
        species[rows] = model.species_logits(hidden)
        disease[rows] = model.disease_logits(hidden, model.class_species[class_idx[rows]])
    return species, disease


@dataclass(frozen=True)
class Fitted:
    """What is fitted before a graph can be exported.

    Attributes:
        features, layers: `FeatureSpace` of train, with poor copies.
        temperatures: of val.
        learned: learned from val's pictures of no plant; None without them.
        second: the second opinion; None without pretrained weights.
        left_out: `KernelRegression.leave_species_out` on val; None without a second opinion.
        held_out: float32 (M,), the learned score of these very pictures, each by a fit that has not
            seen it; None without them.
    """

    features: FeatureSpace
    layers: FeatureSpace
    temperatures: Temperatures
    learned: LearnedScore | None
    held_out: np.ndarray | None
    second: SecondOpinion | None = None
    left_out: dict[str, Any] | None = None

    def graph(self, model: SwinHierarchical) -> ServingGraph:
        """Put the graph to export together, in evaluation mode on the CPU."""
        at = self.temperatures
        return ServingGraph(
            model, self.features, self.layers, at.species, at.disease, self.learned, self.second
        ).eval()


def fit_parts(
    model: SwinHierarchical,
    pictures: Pictures,
    device: torch.device,
    ranks: tuple[int, int] = (RANK, RANK),
    sample: list[np.ndarray] | None = None,
    pretrained: SwinHierarchical | None = None,
) -> Fitted:
    """Fit temperatures on val, and OOD scores on train and val's pictures of no plant.

    Args:
        model: it ends on the CPU.
        pictures: at the model's size.
        device: where the backbone runs.
        ranks: of the spaces of features and of layers.
        sample: takes one train picture in `SAMPLED`, in batches.
        pretrained: the model before it was trained, for a second opinion.
    """

    def run(split: str, batches: Batches, times: int = 1) -> tuple[Tensor, ...]:
        total = times * pictures.count(split)
        return features_of(model, batches, total, f"features of {split}", device)

    def train() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # with poor copies, so that a poor photo of a plant does not count as OOD
        for batch, class_idx in pictures.with_poor("train"):
            if sample is not None:
                sample.append(batch[::SAMPLED])
            yield batch, class_idx

    features, train_layers, class_idx = run("train", train(), times=2)
    spaces = [
        FeatureSpace(values, class_idx, model.class_species, rank=rank)
        for values, rank in zip((features, train_layers), ranks, strict=True)
    ]
    features, _, class_idx = run("val", pictures.batches("val"))
    logits = logits_of(model, features, class_idx)
    fitted = fit_temperatures(*logits, class_idx.numpy(), model.tree)
    learned = held_out = None
    if count := pictures.count_ood("plant", "val"):
        batches = (
            (batch, np.zeros(len(batch), np.int64))
            for _, kind in pictures.ood("plant", "val")
            for batch in kind
        )
        layers = features_of(model, batches, count, "features of no plants", device)[1]
        if len(layers) >= ENOUGH:
            learned = LearnedScore(train_layers, layers)
            held_out = cross_fitted(train_layers, layers).numpy()
    second = fit_second_opinion(pretrained, pictures, device) if pretrained else (None, None)
    return Fitted(*spaces, fitted, learned, held_out, *second)


def fit_second_opinion(
    network: SwinHierarchical, pictures: Pictures, device: torch.device
) -> tuple[SecondOpinion, dict[str, Any]]:
    """Fit a second opinion on train with poor copies, so that a poor photo does not pass for an
    unknown species; returns it, and `KernelRegression.leave_species_out` on val.

    Args:
        network: the model before it was trained; its heads are taken off, and it ends on the CPU.
        pictures, device: as for `fit_parts`.
    """
    tree, found = pictures.data.tree, {}
    for split, batches, times in (
        ("train", pictures.with_poor("train"), 2),
        ("val", pictures.batches("val"), 1),
    ):
        what, total = f"pretrained features of {split}", times * pictures.count(split)
        _, layers, class_idx = features_of(network, batches, total, what, device)
        found[split] = layers, torch.from_numpy(tree.class_species[class_idx.numpy()])
    regression = KernelRegression(*found["train"], tree.num_species)
    return SecondOpinion(network, regression), regression.leave_species_out(*found["val"])


@dataclass(frozen=True)
class Reference:
    """What PyTorch answers to the test split: exported models are compared with it as they answer.

    Attributes:
        probabilities: float32 (N, classes); the one table of its size that an export holds.
        joint: int64 (N,), the most probable class.
        flat: int64 (N,), what one softmax over the disease heads' logits of all classes answers.
    """

    probabilities: np.ndarray
    joint: np.ndarray
    flat: np.ndarray


def torch_answers(graph: ServingGraph, pictures: Pictures, device: torch.device) -> Reference:
    """Answer the test split in PyTorch; the graph ends on the CPU."""
    count, model = pictures.count("test"), graph.model
    table = np.empty((count, model.tree.num_classes), np.float32)
    flat, done = np.empty(count, np.int64), 0
    with on_device(graph, device), long_part("answers of PyTorch", count) as bar:
        for images, _ in pictures.batches("test"):
            rows = slice(done, done + len(images))
            maps = extract_features(model, upload(images, device))
            table[rows] = graph.answer(*maps)[0].cpu()
            flat[rows] = model.disease_heads.all_logits(model.neck(maps[1])).argmax(dim=1).cpu()
            done += len(images)
            bar.update(len(images))
    return Reference(table, table.argmax(axis=1), flat)


# endregion

# region on the answers of a model


@dataclass(frozen=True)
class Outcome:
    """Answers of one model for all pictures of an export.

    Attributes:
        pictures: the pictures, at the model's size.
        names: of the scores.
        splits: {`val` | `test`: of its plants}.
        ood: {split: {role: {kind: ood (M, scores)}}}.
        ranked: {role: {kind: what the OOD pictures of test are decided by}}.
        poor: {split: {kind of poor photo: ood (M, scores)}}.
    """

    pictures: Pictures
    names: Sequence[str]
    splits: dict[str, Answers]
    ood: dict[str, dict[str, dict[str, np.ndarray]]]
    ranked: dict[str, dict[str, Ranked]]
    poor: dict[str, dict[str, np.ndarray]]

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """Scores of the split's plants by name, float64 (N,) each."""
        return ood.columns(self.splits[split].ood, self.names)

    def shown(self, role: str, split: str = "val") -> dict[str, np.ndarray] | None:
        """Scores of all OOD pictures of a role by name; None where there are none."""
        kinds = self.ood[split][role]
        return ood.columns(np.concatenate([*kinds.values()]), self.names) if kinds else None

    def by_kind(self, kinds: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """Name the scores of several kinds of pictures: {kind: (M, scores)} -> {kind: {name:
        (M,)}}.
        """
        return {kind: ood.columns(values, self.names) for kind, values in kinds.items()}


def outcome_of(
    what: str,
    run: Run,
    pictures: Pictures,
    names: Sequence[str],
    held_out: np.ndarray | None = None,
    *,
    splits: Sequence[str] = ("val", "test"),
    reference: Reference | None = None,
    also: Mapping[str, Callable[..., Any]] | None = None,
) -> Outcome:
    """Run a model over everything.

    Args:
        what: the name of the model, for the progress bar.
        run: uint8 (N, size, size, 3) -> probabilities, ood, ...
        pictures: at the model's size.
        names: of the scores.
        held_out: of `Fitted`; it takes the place of the learned score, the last one.
        splits: which; poor photos are left out where it is one alone.
        reference: what to compare the answers to test with.
        also: {split: as for `run_over`}.
    """
    shifts = SHIFTS if len(splits) > 1 else ()
    total = sum(
        pictures.count(split)
        + len(shifts) * pictures.count(split, POOR_AT_MOST)
        + sum(pictures.count_ood(role, split) for role in ROLES)
        for split in splits
    )
    with long_part(f"answers of {what}", total) as bar:

        def counted(batch: np.ndarray) -> list[np.ndarray]:
            bar.update(len(batch))
            return run(batch)

        def scores(batches: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate([counted(batch)[1] for batch in batches])

        kinds: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        ranked: dict[str, dict[str, Ranked]] = {}  # of the last split
        for split, role in itertools.product(splits, ROLES):
            ranked[role], kinds.setdefault(split, {})[role] = {}, {}
            for kind, batches in pictures.ood(role, split):
                found = (counted(batch)[:2] for batch in batches)
                kinds[split][role][kind], ranked[role][kind] = join(
                    [(scores_, rank(p, pictures.data.tree)) for p, scores_ in found]
                )
        poor = {
            split: {kind: scores(b for b, _ in pictures.poor(kind, split)) for kind in shifts}
            for split in splits
        }
        answers = {
            split: run_over(
                counted,
                pictures.batches(split),
                pictures.data.tree,
                reference.probabilities if reference and split == "test" else None,
                (also or {}).get(split),
            )
            for split in splits
        }
    if held_out is not None:
        plants = list(kinds["val"]["plant"].values())
        for rows, own in zip(
            plants, np.split(held_out, np.cumsum([*map(len, plants)])[:-1]), strict=True
        ):
            rows[:, -1] = own
    return Outcome(pictures, names, answers, kinds, ranked, poor)


def fit_thresholds(outcome: Outcome, precision: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit on val what decides: thresholds of rejection, and those of the wanted precisions.

    Args:
        outcome: of the model.
        precision: the wanted share of right answers unless the caller asks for another, 0..1.

    Returns:
        {"rejection", "rollup"} as bundle.json has them, and figures of the rejection on val.
    """
    rejection = ood.fit(
        outcome.columns("val"),
        not_plants=outcome.shown("plant"),
        unknown_species=outcome.shown("species"),
        unknown_diseases=outcome.shown("disease"),
        poor=outcome.by_kind(outcome.poor["val"]),
    )
    on_val = rejection.pop("val")
    rejection["photo"] = outcome.pictures.photo_limits
    rollup_ = rollup.fit(
        outcome.splits["val"],
        outcome.pictures.data.tree,
        rejection=rejection_from_json(rejection, outcome.names),
        default=precision,
    )
    return {"rejection": rejection, "rollup": rollup_}, on_val


def evaluate_thresholds(
    outcome: Outcome, fitted: Mapping[str, Any], flat: np.ndarray | None = None
) -> dict[str, Any]:
    """Evaluate a model with its thresholds on test.

    Args:
        outcome: of the model.
        fitted: of `fit_thresholds`.
        flat: int (N,), what one softmax over all classes answers, where it is at hand.

    Returns:
        plain values: the figures of `metrics.summarise`, calibration_error, `ood` (of
        `ood.judge`; empty without OOD pictures), `rejection` (the same, always), `rollup` (of
        `rollup.judge` per precision), `decisions`.
    """
    answers, data = outcome.splits["test"], outcome.pictures.data
    read, judged = rejection_from_json(fitted["rejection"], outcome.names), answers.judged
    judged = judged if flat is None else replace(judged, flat=flat)
    kinds = outcome.ood["test"]["plant"] | outcome.ood["test"]["species"]
    rejected = ood.judge(
        fitted["rejection"],
        outcome.columns("test"),
        outcome.by_kind(kinds),
        outcome.by_kind(outcome.poor["test"]),
    )
    return {
        **for_json(summarise(judged, data.tree, data.class_sizes)),
        "calibration_error": calibration_error(judged.confidence, judged.joint == judged.class_idx),
        "ood": rejected if kinds else {},
        "rejection": rejected,
        "decisions": decision_figures(judged, data.tree),
        "rollup": {
            name: rollup.judge(entry, answers, data.tree, read)
            for name, entry in fitted["rollup"]["precisions"].items()
        },
    }


def describe(outcome: Outcome, reference: Reference, precision: float) -> dict[str, Any]:
    """Fit what is fitted per model on val, and evaluate it on test.

    Args:
        outcome: of the model, compared with `reference`.
        reference: of PyTorch.
        precision: as for `fit_thresholds`.

    Returns:
        "rejection", "rollup" and "metrics" of the model's entry in bundle.json.
    """
    fitted, on_val = fit_thresholds(outcome, precision)
    answers = outcome.splits["test"]
    metrics = evaluate_thresholds(outcome, fitted, reference.flat) | {
        "top1_agreement": float((answers.ranked.joint == reference.joint).mean()),
        "max_probability_difference": float(answers.difference.max()),
        "rejection_val": on_val,
    }
    return {**fitted, "metrics": metrics}


# endregion
