"""Disease heads: one linear layer per species, stored as one matrix of all classes; a species' rows
lie side by side.
"""

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.classes import ClassTree

# logit of a column beyond a species' diseases: finite, so that 0 x it is 0, and its probability is
# 0
PADDING = -1e9


class DiseaseHeads(nn.Module):
    """One linear layer per species as a single matrix: the rows of species s are
    offsets[s]:offsets[s + 1].

    Parameters: weight float32 (classes, features), bias float32 (classes,). Their gradients are
    dense: a head without a sample in the batch gets zeros, so that AdamW goes on decaying it and
    following its momentum, as for a row of any linear layer.
    """

    def __init__(self, features: int, tree: ClassTree) -> None:
        super().__init__()
        sizes = np.diff(tree.offsets)
        self.weight = nn.Parameter(torch.empty(tree.num_classes, features))
        self.bias = nn.Parameter(torch.zeros(tree.num_classes))
        nn.init.trunc_normal_(self.weight, std=0.02)
        columns = np.arange(sizes.max())
        self.widest = int(sizes.max())
        # (species, widest): the class in each column; padded columns point at 0, masked
        real = columns < sizes[:, None]
        self.register_buffer("sizes", torch.from_numpy(sizes.copy()), persistent=False)
        self.register_buffer("real", torch.from_numpy(real), persistent=False)
        # where the classes stand among the padded ones; a GPU would be waited for to find them
        self.register_buffer("places", torch.from_numpy(np.flatnonzero(real)), persistent=False)
        self.register_buffer(
            "class_of",
            torch.from_numpy(np.where(real, tree.offsets[:-1, None] + columns, 0)),
            persistent=False,
        )
        self.offsets, self._memory = tree.offsets.tolist(), _Memory()

    def forward(self, features: Tensor, species_idx: Tensor) -> Tensor:
        """Compute the disease logits of each sample under its own species.

        On a CPU only the heads of the species present are multiplied (`_SortedHeads`); elsewhere
        one large product beats many small launches. Both equal a ModuleDict of nn.Linear.

        Args:
            features: float (N, features).
            species_idx: int64 (N,).

        Returns:
            float32 (N, widest): columns beyond the species' diseases hold `PADDING`.
        """
        features = features.float()
        if features.device.type == "cpu":
            return _SortedHeads.apply(
                features,
                self.weight,
                self.bias,
                species_idx,
                self.offsets,
                self.widest,
                self._memory,
            )
        logits = self.all_logits(features).gather(1, self.class_of[species_idx])
        return logits.masked_fill(~self.real[species_idx], PADDING)

    def all_logits(self, features: Tensor) -> Tensor:
        """Compute the logits of all classes: float (N, features) -> float32 (N, classes)."""
        return torch.nn.functional.linear(features.float(), self.weight, self.bias)

    def segment_softmax(self, logits: Tensor) -> Tensor:
        """Softmax within each species: logits float (N, classes) -> P(disease given species) float
        (N, classes).
        """
        probs = self._padded(logits).softmax(dim=2)
        return probs.flatten(1)[:, self.places]

    def segment_logsumexp(self, logits: Tensor) -> Tensor:
        """Log of the summed exponentials within each species: logits float (N, classes) -> float
        (N, species).
        """
        return self._padded(logits).logsumexp(dim=2)

    def _padded(self, logits: Tensor) -> Tensor:
        padded = logits[:, self.class_of.flatten()].unflatten(
            1, self.class_of.shape
        )  # (N, species, widest)
        return padded.masked_fill(~self.real, PADDING)


class _SortedHeads(torch.autograd.Function):
    """Rows sorted by species, one small product per species present; the gradient touches each
    weight once.

    With 11,499 classes a batch of 256 holds half of 320 species: all logits would cost several
    times the work, and a loop over modules spends its time in autograd's bookkeeping.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        species_idx: Tensor,
        offsets: list[int],
        widest: int,
        memory: "_Memory",
    ) -> Tensor:
        order = torch.argsort(species_idx, stable=True)
        present, counts = torch.unique_consecutive(species_idx[order], return_counts=True)
        present, ends = present.tolist(), counts.cumsum(0).tolist()
        rows = features[order]
        logits = features.new_full((len(rows), widest), PADDING)
        start = 0
        for species, end in zip(present, ends, strict=True):
            a, b = offsets[species], offsets[species + 1]
            torch.addmm(bias[a:b], rows[start:end], weight[a:b].t(), out=logits[start:end, : b - a])
            start = end
        ctx.save_for_backward(rows, weight, order)
        ctx.layout = (present, ends, offsets, memory)
        return logits[torch.argsort(order)]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, order = ctx.saved_tensors
        (present, ends, offsets, memory), grad = ctx.layout, grad[order]
        grad_rows, grad_weight = torch.empty_like(rows), memory.like(weight)
        grad_bias = weight.new_zeros(len(weight))
        start = written = 0
        for species, end in zip(present, ends, strict=True):
            a, b = offsets[species], offsets[species + 1]
            piece = grad[start:end, : b - a]
            grad_weight[
                written:a
            ].zero_()  # species between two present ones; every row is written exactly once
            torch.mm(piece.t(), rows[start:end], out=grad_weight[a:b])
            if ctx.needs_input_grad[0]:  # not while the backbone is frozen
                torch.mm(piece, weight[a:b], out=grad_rows[start:end])
            torch.sum(piece, dim=0, out=grad_bias[a:b])
            start, written = end, b
        grad_weight[written:].zero_()
        return (
            grad_rows[torch.argsort(order)] if ctx.needs_input_grad[0] else None,
            grad_weight,
            grad_bias,
            None,
            None,
            None,
            None,
        )


class _Memory:
    """Memory of gradients on the CPU, given out again once no tensor uses it; three pieces are kept
    at most.

    The allocator gives such large pieces back to the system, and taking them anew, page by page,
    costs more than the arithmetic.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[Tensor, weakref.ref[np.ndarray]]] = []

    def __reduce__(self) -> tuple[type["_Memory"], tuple[()]]:
        return _Memory, ()  # a copy of the heads has its own

    def like(self, tensor: Tensor) -> Tensor:
        free = [
            piece for piece, user in self.pieces if user() is None and piece.dtype == tensor.dtype
        ]
        piece = free[0] if free else torch.empty_like(tensor)
        user = piece.numpy()  # lives as long as a tensor made from it
        self.pieces = [kept for kept in self.pieces if kept[0] is not piece][-2:] + [
            (piece, weakref.ref(user))
        ]
        return torch.from_numpy(user)
