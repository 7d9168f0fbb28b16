"""Which pictures the page of a report shows, and what stands below them: the surest mistakes, the
least sure right answers, and the most typical and the oddest of each class. Only these are read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common import images
from common.classes import ClassTree
from common.train.dataset import Organized
from common.train.manifest import rows_of
from common.train.metrics import Judged, confused_pairs, f1_per_class
from common.train.page import Picture, Section, drawing, rows_table, sheet, text

THUMB, GAP, QUALITY = 160, 4, 70  # px of the long side, and of the JPEG
# as many as leave the page below 10 MB
MISTAKES, UNSURE, CLASSES, TYPICAL, ODD, PAIRS = 60, 24, 60, 2, 3, 15
SHADE, DARKEST = np.float32((12, 28, 18)), 0.8  # as the served page shades what counts little


@dataclass(frozen=True)
class Graded:
    """Answers of N pictures at the level at which they are compared.

    Attributes:
        names: of the classes.
        given, answered: int64 (N,), indices into `names`.
        given_p, answered_p: float64 (N,), their probabilities.
    """

    names: Sequence[str]
    given: np.ndarray
    answered: np.ndarray
    given_p: np.ndarray
    answered_p: np.ndarray


def grade(judged: Judged, tree: ClassTree, species_only: bool = False) -> Graded:
    """Compare the joint answers, or the species where disease heads have not learned yet."""
    given_species = np.exp(-judged.species_nll)
    if species_only:
        given = tree.class_species[judged.class_idx]
        return Graded(tree.species, given, judged.species, given_species, judged.species_p)
    own = given_species * np.exp(-judged.disease_nll)
    return Graded(tree.display_names, judged.class_idx, judged.joint, own, judged.confidence)


def surest_mistakes(graded: Graded) -> np.ndarray:
    """All wrong answers, int64: first those farthest above the given class in probability (the
    normalised margin of confident learning, Northcutt et al. 2021), among which wrong labels stand.
    """
    wrong = np.flatnonzero(graded.given != graded.answered)
    return wrong[np.argsort((graded.given_p - graded.answered_p)[wrong], kind="stable")]


def least_sure(graded: Graded) -> np.ndarray:
    """All right answers, int64, the least probable first."""
    right = np.flatnonzero(graded.given == graded.answered)
    return right[np.argsort(graded.answered_p[right], kind="stable")]


def typical_and_odd(graded: Graded) -> list[tuple[int, float, np.ndarray, np.ndarray]]:
    """The worst classes by F1, of equal ones that with most pictures first.

    Returns:
        of each: index, F1, int64 the pictures with the highest probability of their own class, and
        of the others those with the lowest, lowest first.
    """
    f1 = f1_per_class(graded.given, graded.answered, len(graded.names))
    order = np.lexsort((-graded.given_p, graded.given))
    ends = np.cumsum(np.bincount(graded.given, minlength=len(graded.names)))
    present = np.diff(ends, prepend=0)
    there = np.flatnonzero(present)
    worst = there[np.lexsort((-present[there], f1[there]))][:CLASSES]
    found = []
    for c in worst.tolist():
        members = order[ends[c] - present[c] : ends[c]]
        found.append((c, float(f1[c]), members[:TYPICAL], members[TYPICAL:][::-1][:ODD]))
    return found


def thumbnail(source: bytes | Path, heat: np.ndarray | None = None) -> tuple[bytes, int, int]:
    """Make a JPEG of a photo, and beside it the photo shaded where the heat map is low.

    Args:
        source: bytes of a picture, or its path.
        heat: float (h, w), 0..1, over the whole photo; None = the photo alone.

    Returns:
        the JPEG; its width and height, px.
    """
    rgb = images.read_rgb(source, long_side=THUMB, min_side=1)
    if heat is not None:
        light = cv2.resize(heat.astype(np.float32), rgb.shape[1::-1]).clip(0, 1)[..., None]
        shaded = rgb + DARKEST * (1 - light) * (SHADE - rgb)
        gap = np.full((len(rgb), GAP, 3), 128, np.uint8)
        rgb = np.concatenate([rgb, gap, np.rint(shaded).astype(np.uint8)], axis=1)
    return images.encode_jpeg(rgb, QUALITY), rgb.shape[1], rgb.shape[0]


class Gallery:
    """The judged pictures of a split, and the sections of a page that show some of them.

    Attributes:
        mistakes, unsure: int64, all wrong and all right answers, in the order in which they are
            shown.
    """

    def __init__(
        self,
        data: Organized,
        split: str,
        graded: Graded,
        heat: Callable[[np.ndarray], np.ndarray],
        *,
        numbers: np.ndarray | None = None,
        note: Callable[[int], str] = lambda _: "",
        also: Iterable[int] = (),
    ) -> None:
        """Choose, and find the sources of what is shown in the manifest.

        Args:
            data, split: where the pictures are.
            graded: their answers.
            heat: int64 (n,) of the graded pictures -> their heat maps, float (n, h, w).
            numbers: int64 (N,), number in the split of each graded picture; None = all in order.
            note: what became of a graded picture instead of the answer, or nothing.
            also: further graded pictures that `pictures` will be asked for.
        """
        self.split_name, self.split, self.root = split, data.splits[split], data.root
        self.graded, self.heat, self.note = graded, heat, note
        self.numbers = np.arange(len(graded.given)) if numbers is None else numbers
        self.mistakes, self.unsure = surest_mistakes(graded), least_sure(graded)
        self.classes = typical_and_odd(graded)
        parts = [part for row in self.classes for part in row[2:]]
        chosen = [self.mistakes[:MISTAKES], self.unsure[:UNSURE], *parts, np.array([*also], int)]
        wanted = set(self.numbers[np.concatenate(chosen)].tolist())
        rows = enumerate(rows_of(data.root / "manifest.csv", split))
        self.sources = {i: row.get("source", "") for i, row in rows if i in wanted}

    def pictures(self, rows: np.ndarray, title: str = "") -> list[Picture]:
        """Some graded pictures: with heat maps and both classes, or below a plain title."""
        heats = self.heat(rows) if len(rows) and not title else [None] * len(rows)
        return [self._picture(i, heat, title) for i, heat in zip(rows.tolist(), heats, strict=True)]

    def _picture(self, i: int, heat: np.ndarray | None, title: str) -> Picture:
        graded, number = self.graded, int(self.numbers[i])
        given, answered = (graded.names[k[i]] for k in (graded.given, graded.answered))
        note = self.note(i)  # where the rule does not give the best class as its answer
        said = f"{'best class' if note else 'answered'} {answered}: {graded.answered_p[i]:.3f}"
        alt = f"given as {given}, answered as {answered}"
        file = self.split.path(number)  # the manifest may name pictures elsewhere in full
        path = (file.relative_to(self.root) if file.is_relative_to(self.root) else file).as_posix()
        inside = f", at byte {at:,}" if (at := int(self.split.offset[number])) >= 0 else ""
        return Picture(
            *thumbnail(self.split.read(number), heat),
            alt if heat is None else f"{alt}; beside it, shaded where it counted little",
            f"{title or f'given {given}'}: {graded.given_p[i]:.3f}",
            [said * (given != answered), note],
            [path + inside, self.sources.get(number, "")],
            wide=heat is not None,
        )

    # region sections

    def confusion(self, folder: Path) -> Section:
        """The classes most often taken for each other, and the drawings that stand in a folder."""
        graded = self.graded
        pairs, counts = confused_pairs(graded.given, graded.answered)
        size = np.bincount(graded.given, minlength=len(graded.names))
        rows = [
            (graded.names[a], graded.names[b], f"{count:,}", f"{count / size[a]:.0%}")
            for (a, b), count in zip(pairs[:PAIRS].tolist(), counts[:PAIRS].tolist(), strict=True)
        ]
        titles = ("given class", "answered", "pictures", "of the class")
        return Section(
            "confusion",
            "Confusion",
            f"{len(self.mistakes):,} wrong answers fall on {len(pairs):,} pairs of classes; those "
            "taken for each other most often:",
            (rows_table(rows, titles) if rows else "")
            + drawing(folder / "confusion.png", "confusion matrix between species")
            + drawing(folder / "confusion_within.png", "confusion matrices between diseases"),
        )

    def answers(self) -> list[Section]:
        """The surest mistakes and the least sure right answers."""
        return [
            Section(
                "mistakes",
                "The surest mistakes",
                f"{shown_of(MISTAKES, self.mistakes)} wrong answers, the most certain against "
                "the given class first: here stand wrong labels, if there are any. The regions "
                "that count for the answer keep their light in the right half.",
                sheet(self.pictures(self.mistakes[:MISTAKES])),
            ),
            Section(
                "unsure",
                "Right, but least sure",
                f"{shown_of(UNSURE, self.unsure)} right answers, the least probable first.",
                sheet(self.pictures(self.unsure[:UNSURE])),
            ),
        ]

    def by_class(self) -> Section:
        """The most typical and the oddest pictures of the worst classes."""
        names, count = self.graded.names, len(np.unique(self.graded.given))
        parts = [
            f"<h3>{text(names[c])}, F1 {f1:.2f}</h3>\n"
            + sheet([*self.pictures(typical, "typical"), *self.pictures(odd, "odd")])
            for c, f1, typical, odd in self.classes
        ]
        return Section(
            "classes",
            "Typical and odd pictures of each class",
            f"{'All' if count <= CLASSES else f'The {CLASSES} worst of'} {count:,} classes, by F1. "
            f"At most {TYPICAL} pictures with the highest probability of their own class, and "
            f"{ODD} with the lowest.",
            "\n".join(parts),
        )

    def advice(self) -> list[str]:
        """What to do about what the page shows."""
        review = (
            "Labels of test that are mended only where the model objects flatter the model: look "
            "through all of a class, or leave test as it is."
            if self.split_name == "test"
            else "02a_train_species.py --review-labels lists all such photos of train and val, "
            "and 01 takes the decisions with --labels-review."
        )
        return [
            "A photo under a wrong class: move it to the right folder among your photos (the last "
            f"line below it says where it came from) and run 01 again with --fresh. {review}",
            "A class that was read wrongly from its folder's name, or two that mean the same: "
            "correct the row in review.csv and give that file to 01 with --names. Classes that "
            "are confused although their labels are right need more, or clearer, photos.",
        ]

    # endregion


def shown_of(most: int, rows: Sequence[object]) -> str:
    """Say how many of some rows are shown."""
    return f"{most} of {len(rows):,}" if len(rows) > most else f"{len(rows):,}"
