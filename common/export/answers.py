"""What is kept of a model's answers. At 10,000 pictures and 11,499 classes one table of
probabilities is 460 MB, so that each batch is summed up as it comes. No torch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.decide import Ranked, rank
from common.train.metrics import Judged, judge

Run = Callable[[np.ndarray], list[np.ndarray]]
Batches = Iterable[tuple[np.ndarray, np.ndarray]]
AT_ONCE = 2_000_000  # numbers of a table that are computed with at once


@dataclass(frozen=True)
class Answers:
    """A model's answers for N pictures.

    Attributes:
        judged: against the truth.
        ranked: what they are decided by.
        true_p: float (N,), probability of the true class.
        ood: float32 (N, scores).
        difference: float (N,), greatest difference of a probability from the reference; 0 where
            there was none.
        also: whatever else was asked for of each batch: an array (N, ...), a tuple or dataclass of
            such, or None.
    """

    judged: Judged
    ranked: Ranked
    true_p: np.ndarray
    ood: np.ndarray
    difference: np.ndarray
    also: Any = None

    @property
    def class_idx(self) -> np.ndarray:
        """True classes, int64 (N,)."""
        return self.judged.class_idx


def sum_up(
    probabilities: np.ndarray,
    class_idx: np.ndarray,
    tree: ClassTree,
    ood: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    also: Any = None,
) -> Answers:
    """Sum up a batch.

    Args:
        probabilities: float (N, classes), rows sum to 1.
        class_idx: int (N,), true classes.
        tree: the classes.
        ood: float (N, scores); None: no scores.
        reference: float (N, classes), what another model answers to the same pictures.
        also: as for `Answers`.
    """
    count = len(class_idx)
    return Answers(
        judge(probabilities, class_idx, tree),
        rank(probabilities, tree),
        probabilities[np.arange(count), class_idx],
        np.zeros((count, 0), np.float32) if ood is None else ood,
        np.zeros(count) if reference is None else np.abs(probabilities - reference).max(axis=1),
        also,
    )


def run_over(
    run: Run,
    batches: Batches,
    tree: ClassTree,
    reference: np.ndarray | None = None,
    also: Callable[..., Any] | None = None,
) -> Answers:
    """Run a model over batches.

    Args:
        run: uint8 (N, size, size, 3) -> probabilities, ood, ...
        batches: of (pictures, class_idx int64 (N,)).
        tree: the classes.
        reference: float (all, classes), what another model answers to the same pictures.
        also: called with each batch's probabilities, class_idx and ood; gives `Answers.also`.
    """
    parts, done = [], 0
    for pictures, class_idx in batches:
        probabilities, ood = run(pictures)[:2]
        beside = None if reference is None else reference[done : done + len(pictures)]
        more = also(probabilities, class_idx, ood) if also else None
        parts.append(sum_up(probabilities, class_idx, tree, ood, beside, more))
        done += len(pictures)
    return join(parts)


def join(parts: Sequence[Any]) -> Any:
    """Put batches together: arrays, or tuples and dataclasses of them such as `Answers`."""
    return _each(np.concatenate, parts)


def take(whole: Any, rows: np.ndarray) -> Any:
    """Choose pictures, of what `join` gives."""
    return _each(lambda parts: parts[0][rows], [whole])


def _each(make: Callable[[Sequence[np.ndarray]], np.ndarray], parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, np.ndarray):
        return make(parts)
    if isinstance(first, tuple):
        return tuple(_each(make, column) for column in zip(*parts, strict=True))
    if is_dataclass(first):
        columns = ([getattr(part, f.name) for part in parts] for f in fields(first))
        return type(first)(*(_each(make, column) for column in columns))
    return first


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Cut a table into blocks of rows that are small beside it."""
    step = max(1, AT_ONCE // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))
