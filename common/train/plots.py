"""Pictures of a training run and of how it is judged: curves, confusion between species and within
the worst of them.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.train.metrics import Judged, confused_pairs

MOST_LABELLED = 40  # species or diseases on one axis that can still be read
ZOOM = 24  # species in the enlarged part of a larger matrix
BINS = 400  # cells along one axis of the whole matrix; further species share a cell
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind eyes too


def _pyplot() -> Any:
    import matplotlib  # slow to import, and loader workers never draw

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcdefaults()  # light ground, whatever a person's own settings say
    pyplot.rcParams["axes.titlesize"] = 10
    return pyplot


# region curves

_PANELS = (
    (
        "loss",
        (
            ("train_loss", "train"),
            ("val_loss", "val"),
            ("species_nll", "val: -log P(species)"),
            ("disease_nll", "val: -log P(disease | species)"),
        ),
    ),
    (
        "accuracy on val",
        (
            ("species_top1", "species"),
            ("disease_top1", "disease, species given"),
            ("cascade_top1", "both right"),
        ),
    ),
    ("macro F1 on val", (("macro_f1", "all classes"), ("tail_f1", "tail (80 pictures or fewer)"))),
    ("learning rate", (("lr", "heads"), ("backbone_lr", "backbone"))),
)


_OF_DISEASES = ("disease_nll", "disease_top1", "cascade_top1")


def curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, accuracies, macro F1 and learning rate over the epochs, and below them speed and
    waiting for data (PNG).

    Phases are shaded in turn and numbered, their boundaries dashed; a thin line marks the epoch of
    the best score. The 2 x 2 layout is that of the three-stage protocol.

    Args:
        history: rows of log.jsonl, with `epoch` (counted from 1) and `phase`; series that no row
            has are left out.
        path: of the PNG.
    """
    plt = _pyplot()
    figure = plt.figure(figsize=(11, 8.4), constrained_layout=True)
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 0.5))
    places = [*(grid[i // 2, i % 2] for i in range(4)), grid[2, :]]
    axes = [figure.add_subplot(place) for place in places]
    x, size = [row["epoch"] for row in history], 3.5 if len(history) <= 25 else 0
    left_out = set() if any(row.get("disease_nll") for row in history) else set(_OF_DISEASES)
    for axis, (title, series) in zip(axes, _PANELS, strict=False):
        drawn = [
            axis.plot(x, _series(history, key), label=label, color=colour, marker="o", ms=size)
            for (key, label), colour in zip(series, _COLOURS, strict=False)
            if key not in left_out and np.isfinite(_series(history, key)).any()
        ]
        axis.set_title(title, pad=15)
        if len(drawn) > 1:
            axis.legend(fontsize=8)
    if (_series(history, "lr") > 0).any():
        axes[3].set_yscale("log")
    _throughput(axes[4], x, history)
    spans = _phases(history)
    for i, axis in enumerate(axes):
        _mark_phases(axis, spans, history, numbers=i < 4)
    names = [f"{k}: {name}" for k, (name, _, _) in enumerate(spans, 1)]
    figure.suptitle("   ".join(names), fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _series(history: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in history], np.float64)


def _phases(history: Sequence[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(name, first epoch, last epoch) of each stretch of one phase."""
    spans = []
    for name, rows in groupby(history, key=itemgetter("phase")):
        epochs = [row["epoch"] for row in rows]
        spans.append((name, epochs[0], epochs[-1]))
    return spans


def _mark_phases(
    axis: Any, spans: list[tuple[str, int, int]], history: Sequence[dict[str, Any]], numbers: bool
) -> None:
    from matplotlib.ticker import MaxNLocator

    for k, (_, first, last) in enumerate(spans):
        if k % 2:
            axis.axvspan(first - 0.5, last + 0.5, color="0.955", zorder=0, linewidth=0)
        if k:
            axis.axvline(first - 0.5, color="0.45", linestyle="--", linewidth=0.9, zorder=1)
        if numbers and len(spans) > 1:
            axis.annotate(
                str(k + 1),
                ((first + last) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                color="0.3",
            )
    scores = _series(history, "score")
    if np.isfinite(scores).any():
        axis.axvline(
            history[int(np.nanargmax(scores))]["epoch"],
            color="#009e73",
            linewidth=0.8,
            alpha=0.7,
            zorder=1,
        )
    axis.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axis.grid(alpha=0.3, zorder=0)
    axis.tick_params(labelsize=8)
    axis.set_xlabel("epoch (green line: best score)", fontsize=8)


def _throughput(axis: Any, x: list[int], history: Sequence[dict[str, Any]]) -> None:
    speed, marker = _series(history, "images_per_second"), "o" if len(x) == 1 else ""
    axis.step(x, speed, where="mid", color=_COLOURS[0], linewidth=1.5, marker=marker)
    axis.set(ylim=(0, None), title="speed and share of the time spent waiting for pictures")
    axis.set_ylabel("images per second", color=_COLOURS[0], fontsize=8)
    waiting = axis.twinx()
    waiting.bar(x, 100 * _series(history, "wait_share"), width=0.5, color=_COLOURS[1], alpha=0.4)
    waiting.set_ylim(0, 100)
    waiting.set_ylabel("% waiting", color=_COLOURS[1], fontsize=8)
    waiting.tick_params(labelsize=8)


# endregion

# region confusion


def confusion(judged: Judged, tree: ClassTree, path: Path, split: str = "val") -> None:
    """Draw the confusion matrix between species: rows are true species and sum to 1 (PNG).

    Species that are taken for each other stand side by side, the most confused first, so that
    trouble shows as blocks. Up to 40 species all are named; of more, the whole matrix is drawn
    without names and its first 24 species enlarged beside it. The answer is that of the species of
    greatest probability.
    """
    plt = _pyplot()
    truth = tree.class_species[judged.class_idx]
    order = block_order(truth, judged.species, tree.num_species)
    place = np.argsort(order)
    rows, columns, n = place[truth], place[judged.species], tree.num_species
    right = f"{(truth == judged.species).mean():.1%} right"
    if n <= MOST_LABELLED:
        side, shown, rest = 3.0 + 0.28 * n, n, ""
        figure, axis = plt.subplots(figsize=(side + 1.2, side), constrained_layout=True)
        title = f"Species on {split}: {right}"
    else:
        shown, rest = ZOOM, "another species"  # one column takes all other species
        figure, (whole, axis) = plt.subplots(1, 2, figsize=(19, 9.2), constrained_layout=True)
        _whole(figure, whole, rows, columns, n)
        whole.set_title(f"{n:,} species on {split}: {right}; framed: enlarged at the right")
        title = f"the {ZOOM} most confused"
    part, names = rows < shown, [tree.species[i] for i in order[:shown]]
    shares = _shares(rows[part], np.minimum(columns[part], shown), shown, shown + bool(rest))
    image = _matrix(axis, shares, names, rest)
    axis.set(title=title, xlabel="answered", ylabel="true species (percent of the row)")
    if not rest:
        figure.colorbar(image, shrink=0.7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _whole(figure: Any, axis: Any, rows: np.ndarray, columns: np.ndarray, n: int) -> None:
    """Draw the errors of any number of species; the right answers are grey, or their depth would
    hide everything else.
    """
    from matplotlib.colors import PowerNorm

    cells = min(n, BINS)
    shares = _shares(rows * cells // n, columns * cells // n, cells, cells)
    errors = shares * (1 - np.eye(cells))
    shown = axis.imshow(
        errors,
        cmap="Reds",
        norm=PowerNorm(0.5, vmin=0, vmax=max(errors.max(), 1e-3)),
        extent=(0, n, n, 0),
        interpolation="nearest",
    )
    axis.plot([0, n], [0, n], color="0.75", linewidth=1)
    axis.plot(
        [0, ZOOM, ZOOM, 0, 0],
        [0, 0, ZOOM, ZOOM, 0],
        color=_COLOURS[0],
        linewidth=1.8,
        clip_on=False,
    )
    axis.set(xlabel="answered", ylabel="true species, the most confused first")
    figure.colorbar(
        shown,
        ax=axis,
        shrink=0.6,
        location="left",
        label="share of the row's pictures"
        if cells == n
        else f"share of the row's pictures (a cell is {n / cells:.0f} x {n / cells:.0f} species)",
    )


def within_species(
    judged: Judged, tree: ClassTree, path: Path, split: str = "val", worst: int = 4
) -> bool:
    """Draw the confusion between the diseases of the species with most disease errors (PNG).

    Of a species with more than 16 diseases, those in most errors are named and the rest is one row
    and column; the last column takes answers of other species. Rows sum to 1.

    Returns:
        whether there was an error to draw; without one no file is written.
    """
    species, answered = tree.class_species[judged.class_idx], tree.class_species[judged.joint]
    errors = np.bincount(
        species[(judged.class_idx != judged.joint) & (species == answered)],
        minlength=tree.num_species,
    )
    chosen = [s for s in np.argsort(-errors, kind="stable")[:worst].tolist() if errors[s]]
    if not chosen:
        path.unlink(missing_ok=True)
        return False
    plt = _pyplot()
    figure, axes = plt.subplots(
        -(-len(chosen) // 2),
        min(2, len(chosen)),
        figsize=(8.2 * min(2, len(chosen)), 6.8 * -(-len(chosen) // 2)),
        constrained_layout=True,
        squeeze=False,
    )
    for axis, s in zip(axes.flat, chosen, strict=False):
        mine = species == s
        names, rows, columns = _diseases(
            judged.class_idx[mine] - tree.offsets[s],
            judged.joint[mine] - tree.offsets[s],
            tree.diseases[s],
        )
        _matrix(axis, _shares(rows, columns, len(names), len(names) + 1), names, "another species")
        axis.set_title(
            f"{tree.species[s]}: {errors[s]:,} disease errors in {mine.sum():,} pictures of {split}"
        )
    for axis in axes.flat[len(chosen) :]:
        axis.remove()
    figure.supxlabel("answered (joint decision)", fontsize=9)
    figure.supylabel("true disease (percent of the row)", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return True


def _diseases(
    truth: np.ndarray, answer: np.ndarray, names: tuple[str, ...], most: int = 16
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, rows and columns of a species' matrix: answers outside 0..len(names) - 1 go to the
    column after the last name.
    """
    n, outside = len(names), (answer < 0) | (answer >= len(names))
    wrong = (truth != answer) & ~outside
    errors = np.bincount(truth[wrong], minlength=n) + np.bincount(answer[wrong], minlength=n)
    kept = np.argsort(-errors, kind="stable")[:most] if n > most + 1 else np.arange(n)
    row = np.full(n, len(kept))  # of each disease; those not kept share the one after the last
    row[kept] = np.arange(len(kept))
    answer = np.where(outside, 0, answer)
    if len(kept) < n:
        both = (row[truth] < most) & (row[answer] < most) & ~outside
        kept = kept[block_order(row[truth[both]], row[answer[both]], most)]
        row[kept] = np.arange(len(kept))
    shown = [names[i] for i in kept] + [f"({n - most} others)"] * (len(kept) < n)
    return shown, row[truth], np.where(outside, len(shown), row[answer])


def block_order(truth: np.ndarray, answer: np.ndarray, n: int, longest: int = 8) -> np.ndarray:
    """Order classes so that those taken for each other stand side by side, the chains with most
    confusion first.

    Pairs are joined by falling count of errors in both directions, end to end where an end is free,
    as in a greedy seriation.

    Args:
        truth, answer: int (N,), 0..n - 1.
        n: classes.
        longest: classes in a chain; without a limit one stray error after another would tie all
            classes together.

    Returns:
        int64 (n,), a permutation; classes without an error keep their order, last.
    """
    pairs, counts = confused_pairs(np.minimum(truth, answer), np.maximum(truth, answer))
    chain_of = list(range(n))
    chains: dict[int, list[int]] = {i: [i] for i in range(n)}
    weight = [0] * n
    for (a, b), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        x, y = chain_of[a], chain_of[b]
        if x == y:
            weight[x] += count
            continue
        left, right = chains[x], chains[y]
        if len(left) + len(right) > longest:
            continue
        if left[0] == a and left[-1] != a:
            left.reverse()
        if right[-1] == b and right[0] != b:
            right.reverse()
        left += right
        weight[x] += weight[y] + count
        for i in chains.pop(y):
            chain_of[i] = x
    best = sorted(chains, key=lambda x: (-weight[x], min(chains[x])))
    return np.array([i for x in best for i in chains[x]], np.int64)


def _shares(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> np.ndarray:
    counts = np.bincount(rows * width + columns, minlength=height * width).reshape(height, width)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _matrix(axis: Any, shares: np.ndarray, names: list[str], last: str = "") -> Any:
    """Draw a labelled matrix with its larger cells as numbers; `last` names one column more than
    there are rows.
    """
    from matplotlib.colors import PowerNorm

    shown = axis.imshow(
        shares,
        cmap="Greens",
        norm=PowerNorm(0.5, vmin=0, vmax=1),
        aspect="auto" if last else "equal",
    )
    short = [name if len(name) <= 26 else name[:25] + "…" for name in names]
    axis.set_xticks(
        range(shares.shape[1]), short + ([last] if last else []), rotation=90, fontsize=8
    )
    axis.set_yticks(range(shares.shape[0]), short, fontsize=8)
    axis.set_xticks(np.arange(shares.shape[1] + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(shares.shape[0] + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.5)
    axis.tick_params(which="minor", length=0)
    for i, j in zip(*np.nonzero(shares >= 0.005), strict=True):
        axis.text(
            j,
            i,
            f"{100 * shares[i, j]:.0f}",
            ha="center",
            va="center",
            fontsize=7 if len(names) <= 26 else 5.5,
            color="white" if shares[i, j] > 0.4 else "black",
        )
    return shown


# endregion
