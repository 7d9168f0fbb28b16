"""A second opinion on what species a picture shows: by the pretrained network as it was before it
was fine-tuned.

Fine-tuning keeps what tells the known species apart and forgets the rest, so that a leaf of an
unknown species lands beside a known one. The pretrained network has never seen the labels: on its
features, kernel regression answers "1" for a species near pictures of that species, and "0" for all
of them elsewhere. For the same reason species can be left out in turn without training it again:
what the rest makes of their photos says how well unknown species are told, without any picture of
one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.console import fail, table, warn
from common.export.bounds import tail_quantile
from common.export.graph import extract_features, widest
from common.export.ood import SPECIES_LEVELS
from common.train import checkpoint
from common.train.metrics import auroc
from common.train.model import SwinHierarchical

LANDMARKS, FITTED_ON = 2000, 8000  # train pictures at most: centres of kernels, and to fit with
WIDTH = 1.0  # of the kernel, in medians of the squared distance between train pictures
RIDGE = 0.01
WORTH = 0.8  # least AUROC on left-out species for which 03 takes it unasked
RANK = 256  # directions of the layers that are kept
FOLDS = 15  # groups of species left out in turn, at most


class KernelRegression(nn.Module):
    """Ridge regression of the species, one-hot, with a Gaussian kernel on `LANDMARKS` centres
    (Nystroem: Williams and Seeger 2001; Rudi et al. 2015).

    As the mean of a Gaussian process it falls back to 0, no species, far from all train pictures
    (Rasmussen and Williams 2006, chapter 2).
    """

    def __init__(self, layers: Tensor, species: Tensor, num_species: int) -> None:
        """Fit.

        Args:
            layers: float (N, D) of train pictures, as `extract_features` gives them.
            species: int64 (N,).
            num_species: how many there are.
        """
        super().__init__()
        order = torch.randperm(len(layers), generator=torch.Generator().manual_seed(0))
        chosen = order[:FITTED_ON]
        basis = widest(layers[chosen].double(), RANK)
        layers, self.species = layers[chosen].double() @ basis, species[chosen]
        centres = layers[:LANDMARKS]
        self.width = max(WIDTH * float(squared_distances(centres, centres).median()), 1e-12)
        self.register_buffer("basis", basis.float().contiguous())  # (D, K)
        self.register_buffer("centres", centres.float().T.contiguous())  # (K, M)
        self.register_buffer("lengths", centres.square().sum(1).float())
        self.kernel = torch.exp(-squared_distances(layers, centres) / self.width)  # (N, M)
        self.num_species = num_species
        self.product = self.kernel.T @ self.kernel
        self.register_buffer("weight", self._solve(torch.ones(len(layers), dtype=torch.bool)))

    def _solve(self, known: Tensor) -> Tensor:
        """Weights float32 (M, species) of the fit to some of the pictures, bool (N,); a centre that
        is none of them has weight 0.
        """
        at = known[: len(self.product)].nonzero()[:, 0]
        rest = self.kernel[~known][:, at]
        product = self.product[at][:, at] - rest.T @ rest
        matrix = product + RIDGE * self.kernel[at][:, at]
        matrix += 1e-9 * product.diagonal().mean() * torch.eye(len(at)).double()
        # the kernel times the species, one-hot: a table of thousands of species is large
        sums = torch.zeros(len(at), self.num_species, dtype=torch.float64)
        sums.index_add_(1, self.species[known], self.kernel[known][:, at].T)
        weight = torch.zeros(len(self.product), self.num_species, dtype=torch.float64)
        weight[at] = torch.linalg.solve(matrix, sums)
        return weight.float()

    def forward(self, layers: Tensor, weight: Tensor | None = None) -> Tensor:
        """Layers float (N, D) -> how little speaks for any species, float32 (N, 1): minus the
        greatest of the regressions, about -1 (a known one) to 0.
        """
        near = layers @ self.basis
        squared = near.square().sum(1, keepdim=True) + self.lengths - 2 * (near @ self.centres)
        kernel = torch.exp(squared.clamp_min(0.0) / -self.width)
        return -(kernel @ (self.weight if weight is None else weight)).amax(dim=1, keepdim=True)

    def leave_species_out(self, layers: Tensor, species: Tensor) -> dict[str, Any]:
        """Leave species out in turn, and take their val photos for those of unknown ones.

        Species that were photographed each in a place of its own are told by the place, too: then
        the figures are better than those of an unknown species in a place that is known.

        Args:
            layers: float (N, D) of val.
            species: int64 (N,).

        Returns:
            means over the folds: auroc; rejected {level: share of the left-out species' photos
            above the threshold that this share of the others' exceeds}; and folds, how many.
        """
        count, figures = self.num_species, []
        folds = min(FOLDS, count)
        for fold in range(folds):
            out = torch.arange(count) % folds == fold
            unknown = out[species]
            if not unknown.any() or unknown.all():
                continue
            scores = self(layers, self._solve(~out[self.species]))[:, 0].double().numpy()
            plants, others = scores[~unknown.numpy()], scores[unknown.numpy()]
            shares = [
                float((others > tail_quantile(plants, level, 0.05)).mean())
                for level in SPECIES_LEVELS
            ]
            figures.append([auroc(plants, others), *shares])
        mean = np.mean(figures or [[0.5, 0.0, 0.0]], axis=0).tolist()  # none where val has but one
        rejected = dict(zip(map(str, SPECIES_LEVELS), mean[1:], strict=True))
        return {"auroc": mean[0], "rejected": rejected, "folds": len(figures)}


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Between all rows: (N, D), (M, D) -> (N, M)."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0.0)


class SecondOpinion(nn.Module):
    """The pretrained network with the regression on its layers."""

    # INT8 costs the score more than it saves: no check of the gate watches it
    keep_float = True

    def __init__(self, network: SwinHierarchical, regression: KernelRegression) -> None:
        super().__init__()
        network.neck = network.species_head = network.disease_heads = None  # untrained
        self.network, self.regression = network, regression

    def forward(self, images: Tensor) -> Tensor:
        """Pixels uint8 (N, size, size, 3) -> the score, float32 (N, 1)."""
        return self.regression(extract_features(self.network, images)[2])


def load_pretrained(
    wanted: bool | None, path: Path, payload: dict[str, Any]
) -> dict[str, Any] | None:
    """Load what the checkpoint at `path` was before training, for a second opinion; None where it
    is not wanted, or not there (`wanted` None).
    """
    if wanted is False:
        return None
    file = path.absolute().parents[1] / "species_only" / checkpoint.PRETRAINED
    before = checkpoint.load(file, trained=False) if file.is_file() else None
    if len(payload["tree"]["species"]) < 2:
        lacks = "with one species there is none to leave out"
    elif before is None:
        lacks = (
            f"there is no {file}, which 02a_train_species.py writes where it begins with "
            f"pretrained --weights"
        )
    elif before["settings"] != payload["settings"]:
        lacks = f"{file} is another network, or at another size, than {path}"
    else:
        return before
    if wanted:
        fail(f"--second-opinion: {lacks}.")
    warn(f"NO SECOND OPINION: {lacks}. Plants of unknown species are recognised less often.")
    return None


def report_lines(rejection: Mapping[str, Any], val: Mapping[str, Any]) -> list[str]:
    """Lay out for report.md what it is worth on species left out in turn, and what it costs.

    Args:
        rejection: as bundle.json has it.
        val: with `left_out`, of `KernelRegression.leave_species_out`, and `cost`, of
            `measure.cost_of_scores`.
    """
    if not (rule := rejection["species"]):
        return []
    left_out, cost = val["left_out"], val["cost"]
    rows = [
        (f"{float(level):.0%}", f"{at:.3f}", f"{left_out['rejected'][level]:.1%}")
        for level, at in rule["levels"].items()
    ]
    return [
        f"Second opinion of the pretrained network: a picture above {rule['threshold']:.3f} by "
        f"{rule['score']} is a plant of an unknown species. Left out of its fit in turn "
        f"({left_out['folds']} times), known species are told from the others with an AUROC of "
        f"{left_out['auroc']:.3f} by `pretrained` alone, which the last column is of, too; places "
        f"known from no other photo make that look better than it is.",
        "",
        table(rows, ("known plants lost", "threshold", "left-out species recognised")),
        "",
        f"All scores together cost {cost['mb']:.1f} of {cost['of_mb']:.1f} MB and "
        f"{cost['ms']:.1f} of {cost['of_ms']:.1f} ms (model.onnx, one thread).",
        "",
    ]
