"""A CSV of class probabilities as competitions take it: an id and a column per class, perhaps
zipped.
"""

import contextlib
import csv
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.classes import ClassTree, slug
from common.console import fail
from common.files import whole


@dataclass(frozen=True)
class Submission:
    """What is to be written: titles of the columns; ids in order; photo and class_idx, the photo
    of each row and the class of each column.
    """

    path: Path
    titles: tuple[str, ...]
    ids: tuple[str, ...]
    photo: tuple[int, ...]
    class_idx: tuple[int, ...]


def plan_submission(
    path: Path, photos: Sequence[Path], tree: ClassTree, sample: Path | None = None
) -> Submission:
    """Say what a submission will hold, before anything is computed for it.

    Args:
        path: ends in .csv, or in .zip for the CSV of that name within a zip.
        photos: those that are predicted.
        tree: the classes; a column is titled `species/disease`, or by the species alone where no
            species has a second level.
        sample: a submission in the wanted form: its titles, ids and both orders are kept. Its ids
            are file names, with or without their ending; its titles are class names, however they
            are written. Without it: `id`, file names, classes by index.

    Raises:
        SystemExit: where ids are not unique, or the sample has other photos or classes than these.
    """
    if path.suffix.lower() not in (".csv", ".zip"):
        fail(f"--submission {path} must end in .csv or .zip.")
    classes = [tree.class_name(i) for i in range(tree.num_classes)]
    if tree.diseases == tuple((species,) for species in tree.species):
        classes = list(tree.species)
    names: dict[str, int] = {}
    for i, photo in enumerate(photos):
        if photo.name in names:
            fail(
                f"two photos would have one id, '{photo.name}': {photos[names[photo.name]]} and "
                f"{photo}. Predict them in two runs, "
                "or rename one."
            )
        names[photo.name] = i
    if sample is None:
        photo, class_idx = tuple(names.values()), tuple(range(len(classes)))
        return Submission(path, ("id", *classes), tuple(names), photo, class_idx)
    titles, ids = _read_sample(sample)
    photo = _find_photos(sample, ids, photos, names)
    return Submission(path, titles, ids, photo, _find_classes(sample, titles[1:], classes))


def _read_sample(sample: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        with sample.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        fail(f"--sample-submission {sample} cannot be read: {error}.")
    if not rows or len(rows[0]) < 2:
        fail(
            f"--sample-submission {sample} needs a line of titles: one for the ids, then one per "
            f"class."
        )
    ids = [row[0] for row in rows[1:] if row]
    if len(set(ids)) < len(ids):
        fail(
            f"--sample-submission {sample} names "
            f"'{next(name for name in ids if ids.count(name) > 1)}' twice."
        )
    return tuple(rows[0]), tuple(ids)


def _find_photos(
    sample: Path, ids: Sequence[str], photos: Sequence[Path], names: dict[str, int]
) -> tuple[int, ...]:
    stems: dict[str, list[int]] = {}
    for i, photo in enumerate(photos):
        stems.setdefault(photo.stem, []).append(i)
    found = []
    for name in ids:
        matches = [names[name]] if name in names else stems.get(name, [])
        if len(matches) > 1:
            fail(
                f"{sample}: '{name}' may be {photos[matches[0]]} or {photos[matches[1]]}. Its ids "
                f"need the files' endings."
            )
        found += matches or [-1]
    if missing := [name for name, i in zip(ids, found, strict=True) if i < 0]:
        fail(
            f"{sample} has {len(missing)} of {len(ids)} ids for which there is no photo, such as "
            f"'{missing[0]}'. --predict must name all."
        )
    if extra := sorted(set(range(len(photos))) - set(found)):
        fail(
            f"{sample} has no id for {len(extra)} of {len(photos)} photos, such as "
            f"{photos[extra[0]]}. Predict only those it names."
        )
    return tuple(found)


def _find_classes(sample: Path, titles: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    by_slug = {slug(name): i for i, name in enumerate(classes)}
    found = [by_slug.get(slug(title), -1) for title in titles]
    if sorted(found) != list(range(len(classes))):
        odd = [title for title, i in zip(titles, found, strict=True) if i < 0]
        lost = sorted(set(range(len(classes))) - set(found))
        words = [f"its columns {', '.join(odd[:3])} are no classes of the model"] if odd else []
        words += (
            [f"classes {', '.join(classes[i] for i in lost[:3])} have no column"] if lost else []
        )
        fail(
            f"{sample} has {len(titles)} columns for {len(classes)} classes; "
            f"{'; '.join(words) or 'a class comes twice'}. Its first line "
            "must have the model's class names."
        )
    return tuple(found)


def write_submission(
    plan: Submission, probabilities_of: Callable[[int], np.ndarray | None]
) -> None:
    """Write a submission whole or not at all.

    probabilities_of gives a photo's float (classes,), summing to 1, or None where it could not be
    read: then all classes are alike.
    """
    even = np.full(len(plan.class_idx), 1 / len(plan.class_idx))

    def rows() -> Iterator[list[str]]:
        yield list(plan.titles)
        for name, photo in zip(plan.ids, plan.photo, strict=True):
            found = probabilities_of(photo)
            values = even if found is None else found.astype(np.float64)[list(plan.class_idx)]
            yield [name, *(f"{value:.8g}" for value in values / values.sum())]

    with whole(plan.path) as temporary, contextlib.ExitStack() as opened:
        if plan.path.suffix.lower() == ".csv":
            stream = opened.enter_context(temporary.open("wb"))
        else:
            # its date is fixed: the same rows give the same bytes
            member = zipfile.ZipInfo(plan.path.with_suffix(".csv").name)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive = opened.enter_context(zipfile.ZipFile(temporary, "w"))
            stream = opened.enter_context(archive.open(member, "w", force_zip64=True))
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", newline="")
        csv.writer(text, lineterminator="\n").writerows(rows())
        text.detach()
