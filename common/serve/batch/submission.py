"""A CSV of class probabilities as competitions take it: an id and a column per class, checked after
it is written, perhaps zipped.
"""

import csv
import io
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.classes import ClassTree, slug
from common.console import fail
from common.files import whole

SUM_OFF_BY = 1e-5  # the rounding error of a row's sum at eight digits


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
    if all(
        diseases == (species,)
        for species, diseases in zip(tree.species, tree.diseases, strict=True)
    ):
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
        return Submission(
            path, ("id", *classes), tuple(names), tuple(names.values()), tuple(range(len(classes)))
        )
    titles, ids = _read_sample(sample)
    return Submission(
        path,
        titles,
        ids,
        _find_photos(sample, ids, photos, names),
        _find_classes(sample, titles[1:], classes),
    )


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


def write_submission(plan: Submission, probabilities_of: Callable[[int], np.ndarray | None]) -> int:
    """Write, read again, check, and only then put it where it belongs.

    Args:
        plan: what `plan_submission` returned.
        probabilities_of: photo -> float (classes,), summing to 1; None where it could not be read:
            all classes alike.

    Returns:
        how many rows had no photo that could be read.

    Raises:
        ValueError: where what was written does not pass `check_submission`.
    """
    lost, even = 0, np.full(len(plan.class_idx), 1 / len(plan.class_idx))

    def rows() -> Iterator[list[str]]:
        nonlocal lost
        for name, photo in zip(plan.ids, plan.photo, strict=True):
            values = probabilities_of(photo)
            lost += values is None
            values = (
                even if values is None else np.asarray(values, np.float64)[list(plan.class_idx)]
            )
            yield [name, *(f"{value:.8g}" for value in values / values.sum())]

    with whole(plan.path) as temporary:
        if plan.path.suffix.lower() == ".csv":
            with temporary.open("wb") as stream:
                _write(stream, plan.titles, rows())
        else:
            member = zipfile.ZipInfo(
                plan.path.with_suffix(".csv").name
            )  # its date is fixed: the same rows give the same bytes
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with (
                zipfile.ZipFile(temporary, "w") as archive,
                archive.open(member, "w", force_zip64=True) as stream,
            ):
                _write(stream, plan.titles, rows())
        check_submission(temporary, plan)
    return lost


def _write(stream: io.IOBase, titles: Sequence[str], rows: Iterator[list[str]]) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", newline="")
    csv.writer(text, lineterminator="\n").writerows([titles])
    csv.writer(text, lineterminator="\n").writerows(rows)
    text.flush()
    text.detach()


def check_submission(path: Path, plan: Submission) -> None:
    """Read a written submission and hold it to its plan: titles, ids and their order, a finite
    number from 0 to 1 per class, sums of 1.

    path is a CSV, or a zip that holds one alone. Raises ValueError, with the line, where something
    does not hold.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if len(archive.namelist()) != 1 or archive.testzip():
                raise ValueError(
                    f"{path}: the zip is damaged or holds {len(archive.namelist())} files where "
                    f"one belongs"
                )
            with archive.open(archive.namelist()[0]) as stream:
                _check(io.TextIOWrapper(stream, encoding="utf-8", newline=""), plan)
    else:
        with path.open(newline="", encoding="utf-8") as text:
            _check(text, plan)


def _check(text: io.TextIOBase, plan: Submission) -> None:
    reader = csv.reader(text)
    if tuple(next(reader, ())) != plan.titles:
        raise ValueError("the titles are not those of the plan")
    count = 0
    for name, row in zip(plan.ids, reader, strict=False):
        values = [float(cell) for cell in row[1:]]
        where = f"line {reader.line_num}, id '{row[0]}'"
        if row[0] != name.encode("utf-8", "backslashreplace").decode():
            raise ValueError(f"{where}: here '{name}' belongs")
        if len(values) != len(plan.class_idx) or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{where}: it needs {len(plan.class_idx)} numbers from 0 to 1")
        if not math.isclose(sum(values), 1, abs_tol=SUM_OFF_BY):
            raise ValueError(f"{where}: the numbers sum to {sum(values):.8f}, not to 1")
        count += 1
    if count != len(plan.ids) or next(reader, None) is not None:
        raise ValueError(f"there are {count} rows or more where {len(plan.ids)} belong")
