"""Pictures of an export: reliability, accuracy against coverage, what sending photos to the server
brings, and OOD scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common.export.calibrate import calibration, calibration_bins

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
)  # told apart by colour-blind eyes too
MOST_POINTS = 600  # of one curve


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure that is written as PNG at the end, without a pyplot window list or a person's own
    settings.
    """
    import matplotlib  # slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # what importing pyplot would set is left out: a back end that another thread may be using
    with matplotlib.rc_context(
        {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=110)


# region calibration


def reliability(
    before: tuple[np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray],
    path: Path,
    split: str = "test",
) -> None:
    """Draw the share of right answers against the confidence, before and after temperature, with
    pictures per bin (PNG).

    Bins are of equal count; bars are 95 % of what a share of so few pictures may show (Wilson).
    Below, how many pictures lie at which confidence.

    Args:
        before, after: (confidence float (N,), right bool (N,)) of the class answer.
    """
    with _figure(path, 9.6, 5.8) as figure:
        axes = figure.subplots(2, 2, sharex=True, height_ratios=(4, 1))
        for column, (title, (confidence, right)) in enumerate(
            (("before temperature", before), ("after temperature", after))
        ):
            top, below, colour = axes[0, column], axes[1, column], _COLOURS[1 - column]
            count, sure, share = calibration_bins(confidence, right).T
            low, high = _wilson(share, count)
            top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="calibrated")
            top.errorbar(
                sure,
                share,
                yerr=[share - low, high - share],
                fmt="o-",
                markersize=4,
                linewidth=1.3,
                elinewidth=0.9,
                color=colour,
                label=f"{len(count)} bins of {count.min():.0f} to {count.max():.0f}"
                if len(count)
                else None,
            )
            top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right" if column == 0 else None)
            figures = calibration(confidence, right)
            top.set_title(
                f"{title}: error {figures['error']:.1%} ({figures['low']:.1%} to "
                f"{figures['high']:.1%})\n"
                f"counted {figures['counted']:.1%}, of which by chance {figures['by_chance']:.1%}",
                fontsize=9,
            )
            top.legend(fontsize=8, loc="upper left", frameon=False)
            below.hist(confidence, bins=np.linspace(0, 1, 41), color=colour, alpha=0.75)
            below.axvline(right.mean(), color="black", linewidth=1)
            below.axvline(
                np.mean(confidence, dtype=np.float64), color="black", linewidth=1, linestyle=":"
            )
            below.set_xlabel(
                "confidence of the class answer (line: share right, dots: mean confidence)",
                fontsize=8,
            )
            below.set_ylabel("pictures" if column == 0 else None, fontsize=8)
            for axis in (top, below):
                axis.grid(alpha=0.3)
                axis.tick_params(labelsize=8)
        figure.suptitle(f"Reliability on {split}, {len(after[0]):,} pictures", fontsize=10)


def _wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    by = 1 + z * z / n
    middle, half = (
        (share + z * z / (2 * n)) / by,
        z / by * np.sqrt(share * (1 - share) / n + z * z / (4.0 * n * n)),
    )
    return np.minimum(middle - half, share), np.maximum(middle + half, share)


# endregion

# region coverage


def accuracy_by_coverage(
    confidence: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy where only the surest pictures are answered: coverage and accuracy, float64 (P,)
    each, coverage rising to 1.

    Equal confidences are answered together. At most `MOST_POINTS` points.
    """
    order = np.argsort(-confidence, kind="stable")
    ends = (
        np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
        if len(order)
        else np.zeros(0, np.int64)
    )
    if len(ends) > MOST_POINTS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, MOST_POINTS).astype(int))]
    hits = np.cumsum(right[order])
    return (ends + 1) / max(1, len(order)), hits[ends] / (ends + 1)


def coverage(
    class_idx: Mapping[str, tuple[np.ndarray, np.ndarray]],
    species: Mapping[str, tuple[np.ndarray, np.ndarray]],
    judged: Mapping[str, Mapping[str, Any]],
    path: Path,
    split: str = "test",
) -> None:
    """Draw accuracy against the share of pictures answered, for class and species answers, with the
    thresholds of the precisions (PNG).

    Args:
        class_idx, species: by way to decide (joint, routed, flat), (confidence float (N,), right
            bool (N,)) of that answer.
        judged: `rollup.judge`'s figures by name of precision; marked at the left by their class
            answers, at the right by all answers given.
    """
    with _figure(path, 11, 4.8) as figure:
        axes = figure.subplots(1, 2)
        for axis, curves, prefix, title in (
            (axes[0], class_idx, "disease_", "answers that name the disease"),
            (axes[1], species, "", "answers that name the species; marks: all answers of the rule"),
        ):
            lowest = [0.97]
            for (name, (confidence, right)), colour, dash in zip(
                curves.items(), _COLOURS, ("-", "--", ":", "-.") * 2, strict=False
            ):
                x, y = accuracy_by_coverage(confidence, right)
                axis.plot(
                    x,
                    y,
                    dash,
                    color=colour,
                    linewidth=1.6,
                    label=f"{name}: {right.mean():.1%} of all",
                )
                if name == next(
                    iter(curves)
                ):  # the way that answers; one far below leaves the picture, not its scale
                    lowest.append(y[x > 0.1].min(initial=1.0))
            for (name, figures), sign in zip(judged.items(), "os^Dv", strict=False):
                wanted, shown = float(name), figures[prefix + "precision"]
                axis.axhline(wanted, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
                if shown is not None:
                    axis.errorbar(
                        [figures[prefix + "coverage"]],
                        [shown],
                        yerr=[[shown - figures[prefix + "precision_low"]], [0]],
                        fmt=sign,
                        markersize=8,
                        color="black",
                        markerfacecolor="white",
                        elinewidth=1,
                        capsize=3,
                        zorder=5,
                        label=f"thresholds for {name}: {shown:.1%} "
                        f"of {figures[prefix + 'coverage']:.1%}",
                    )
                    lowest.append(figures[prefix + "precision_low"])
            axis.set(
                xlim=(0, 1.02),
                ylim=(max(0.0, 1.6 * min(lowest) - 0.6), 1.005),
                xlabel="share of pictures answered",
            )
            axis.set_title(title, fontsize=10)
            axis.legend(fontsize=8, loc="lower left")
            axis.grid(alpha=0.3)
            axis.tick_params(labelsize=8)
        axes[0].set_ylabel("share of answers right (bar: 95 % lower bound)")
        figure.suptitle(f"Accuracy against coverage on {split}", fontsize=10)


# endregion

# region browser and server, OOD scores


def deferral(judged: Mapping[str, Any], path: Path, split: str = "test") -> None:
    """Draw the accuracy of browser and server together against the share of photos sent (PNG).

    Args:
        judged: figures of `deferral.judge_deferral`: browser, server, hybrid, sent, and by_share
            with share, rule, confidence, best.
    """
    names = {"best": "best possible", "rule": "by the rule", "confidence": "by lowest confidence"}
    with _figure(path, 7.4, 4.8) as figure:
        axis = figure.subplots()
        share = [100 * row["share"] for row in judged["by_share"]]
        for (key, label), colour, dash in zip(
            names.items(), ("0.6", _COLOURS[0], _COLOURS[1]), (":", "-", "--"), strict=True
        ):
            axis.plot(
                share,
                [row[key] for row in judged["by_share"]],
                dash,
                marker="o",
                markersize=3.5,
                color=colour,
                label=label,
            )
        axis.axhline(
            judged["server"],
            color=_COLOURS[2],
            linewidth=1,
            label=f"server alone: {judged['server']:.1%}",
        )
        axis.axhspan(
            judged["server"] - 0.005, judged["server"], color=_COLOURS[2], alpha=0.15, linewidth=0
        )
        axis.axhline(
            judged["browser"],
            color="0.3",
            linewidth=1,
            linestyle="-.",
            label=f"browser alone: {judged['browser']:.1%}",
        )
        axis.plot(
            [100 * judged["sent"]],
            [judged["hybrid"]],
            "D",
            markersize=8,
            markerfacecolor="white",
            color="black",
            zorder=5,
            label=f"chosen on val: {judged['sent']:.1%} sent, {judged['hybrid']:.1%} right",
        )
        axis.set(
            xlim=(-2, 102),
            xlabel="% of photos sent to the server",
            ylabel="share of answers right (band: half a point)",
        )
        axis.set_title(
            f"Browser and server together on {split}, {judged['n']:,} photos", fontsize=10
        )
        axis.legend(fontsize=8, loc="best")
        axis.grid(alpha=0.3)


def scores(
    panels: Sequence[tuple[str, Mapping[str, np.ndarray], float]], path: Path, split: str = "test"
) -> None:
    """Draw how an OOD score is spread over plants and over each kind of OOD picture, with the
    threshold (PNG).

    Args:
        panels: side by side, (title, scores float (N,) by group, the plants first, threshold);
            larger = farther from train. Empty groups are left out; NaN counts as beyond, and
            lies at the right end.
    """
    panels = [
        (title, {name: np.asarray(v, np.float64) for name, v in groups.items() if len(v)}, bar)
        for title, groups, bar in panels
    ]
    rows = max([len(groups) for _, groups, _ in panels] or [1])
    with _figure(path, 5.6 * max(1, len(panels)), 1.2 + 1.05 * max(1, rows)) as figure:
        figure.suptitle(f"OOD scores on {split}", fontsize=10)
        parts = figure.subfigures(1, max(1, len(panels)), squeeze=False)[
            0
        ]  # each panel with its own axis below
        for part, (title, groups, threshold) in zip(parts, panels, strict=False):
            grid = part.subplots(max(1, rows), 1, squeeze=False, sharex=True)[:, 0]
            finite = np.concatenate([v[np.isfinite(v)] for v in groups.values()] + [[threshold]])
            ends = np.quantile(finite, [0.002, 0.995])
            low, high = min(ends[0], threshold), max(ends[1], threshold)
            pad = 0.03 * (high - low) or 1.0
            edges = np.linspace(low - pad, high + pad, 61)
            for axis, (name, values) in zip(grid, groups.items(), strict=False):
                beyond = ~(values <= threshold)
                known = name == next(iter(groups))
                shown = np.clip(np.nan_to_num(values, nan=np.inf), edges[0], edges[-1])
                axis.hist(
                    shown,
                    edges,
                    weights=np.full(len(shown), 1 / len(shown)),
                    color=_COLOURS[2 if known else 1],
                    alpha=0.75,
                )
                axis.set_ylim(0, 1.45 * axis.get_ylim()[1])  # room for the words
                axis.axvline(threshold, color="black", linewidth=1.2)
                axis.text(
                    0.99,
                    0.93,
                    f"{name} ({len(values):,}): {beyond.mean():.1%} beyond",
                    transform=axis.transAxes,
                    ha="right",
                    va="top",
                    fontsize=8,
                    bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5},
                )
                axis.set_yticks([])
                axis.tick_params(labelsize=8)
            for axis in grid[len(groups) :]:
                axis.set_axis_off()
            if groups:
                grid[0].set_title(title, fontsize=10)
                last = grid[len(groups) - 1]
                last.set_xlabel("score (line: threshold)", fontsize=8)
                last.tick_params(labelbottom=True)


# endregion
