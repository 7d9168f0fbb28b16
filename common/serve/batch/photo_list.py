"""Which photos are meant by files, folders and patterns, and what they show where folders or a
label file say so.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import ClassTree, slug
from common.console import fail, say, warn
from common.files import ABSENT, SEVERAL, match_paths, settle, walk
from common.images import SUFFIXES
from common.labels import read_label_file

UNKNOWN, NO_PLANT = -1, -2  # in place of a class: nothing is known of the photo; it shows no plant
NO_PLANT_NAMES = ("not_plants", "not_plant", "not_a_plant")  # folders and labels of such photos
# class names as people write them -> (species, disease) of each, None where it cannot be read
ParseNames = Callable[[list[str]], list[tuple[str, str] | None]]


def find_photos(paths: Iterable[Path | str]) -> list[Path]:
    """List files as given, and the pictures in folders, below them and behind patterns, each once;
    prints how much else is there.

    Args:
        paths: files, folders (walked as 01 does), or patterns such as `photos/**/*.jpg` that no
            shell has expanded. What exists is never a pattern.

    Returns:
        in the order given; those of a folder or a pattern by name.

    Raises:
        SystemExit: where a path does not exist, or a folder or a pattern holds no picture.
    """
    found: dict[Path, None] = {}
    skipped: Counter[str] = Counter()
    for path in map(Path, paths):
        if path.is_dir():
            files = (entry for _, _, entries in walk(path, skipped) for entry in entries)
            if not (inside := _pictures(files, skipped)):
                fail(
                    f"there are no pictures in {path}{_told(skipped, '; skipped: ')}. Pictures end "
                    f"in {', '.join(SUFFIXES)}."
                )
        elif path.is_file():
            inside = [path]
        elif glob.has_magic(str(path)):
            matches = map(Path, glob.glob(str(path), recursive=True))
            if not (inside := _pictures((m for m in matches if not m.is_dir()), skipped)):
                fail(
                    f"no picture fits the pattern {path}. Pictures end in {', '.join(SUFFIXES)}; "
                    f"** stands for folders at any depth."
                )
        else:
            fail(f"there is no file or folder {path} to predict.")
        found.update(dict.fromkeys(inside))
    if told := _told(skipped, "skipped  "):
        say(told)
    return list(found)


def names_below(photos: Iterable[Path], paths: Iterable[Path | str]) -> Iterator[str]:
    """Names of photos that do not tell where a machine keeps them: the path below the folder that
    was given, with slashes; of files and patterns as written. Arguments as of `find_photos`.
    """
    given, roots = set(map(Path, paths)), dict[Path, Path]()
    for photo in photos:
        folder = photo.parent
        if folder not in roots:
            above = (one for one in (folder, *folder.parents) if one in given)
            roots[folder] = next(above, Path())
        yield (photo.relative_to(roots[folder]) if roots[folder] != Path() else photo).as_posix()


def _pictures(files: Iterable[os.DirEntry[str] | Path], skipped: Counter[str]) -> list[Path]:
    pictures = []
    for file in files:
        if (end := os.path.splitext(file.name)[1].lower()) not in SUFFIXES:
            skipped[f"files that are no picture by their ending ({end or 'none'})"] += 1
        elif not file.is_file():  # opening a pipe would wait for ever
            skipped["broken links, pipes and devices"] += 1
        else:
            pictures.append(Path(file))
    return sorted(pictures)


def _told(skipped: Counter[str], before: str) -> str:
    """How much was skipped and why; "" where nothing was."""
    told = [f"{number:,} {why}" for why, number in skipped.most_common(12) if number]
    return before + ", ".join(told) if told else ""


def labels_from_folders(photos: Sequence[Path], tree: ClassTree, parse: ParseNames) -> np.ndarray:
    """Read what photos show from the folders they lie in: `apple/scab/`, `Apple___scab/`,
    `not_plants/`.

    Args:
        photos: in order.
        tree: the model's classes.
        parse: reads names that are not written as the tree's.

    Returns:
        int64 (N,): class, `NO_PLANT` or `UNKNOWN`.
    """
    folders = {photo.parent: (photo.parent.parts, photo.parent.name) for photo in photos}
    known = _classes(folders, tree, parse)
    return np.array([known.get(photo.parent, UNKNOWN) for photo in photos], np.int64)


def labels_from_csv(
    path: Path, photos: Sequence[Path], tree: ClassTree, parse: ParseNames
) -> np.ndarray:
    """Read what photos show from a label file, as `labels.read_label_file` and `files.match_paths`
    read it.

    A file is written as a path, relative to the label file or to where the program runs, or as a
    bare file name. manifest.csv of 01 is such a file. A label may be written as folders are;
    `not_a_plant` says that a photo shows none.

    Returns:
        int64 (N,): class, `NO_PLANT` or `UNKNOWN`.

    Raises:
        SystemExit: where the file cannot be read, lacks a column, contradicts itself, or names none
            of the photos.
    """
    read = read_label_file(path)
    paths = [os.path.abspath(photo) for photo in photos]
    found = match_paths(read.files, paths, (path.absolute().parent, Path.cwd()))
    labelled = [
        photo if labels else ABSENT for photo, labels in zip(found, read.labels, strict=True)
    ]
    chosen = settle(labelled, read.labels, read.table.where, paths)
    if not any(photo >= 0 for photo in found):
        fail(
            f"{path} names none of the photos, such as {photos[0]}, or none alone. Its first file "
            f"is {read.files[0]}."
        )
    if unsure := [i for i, photo in enumerate(found) if photo == SEVERAL]:
        warn(
            f"{len(unsure)} rows of {path} do not count, as several photos are called so, such as "
            f"{read.files[unsure[0]]}. Write their folders, too."
        )
    wanted = {
        label: (label.split("/") if label.count("/") < 2 else (), label)
        for labels in read.labels
        for label in labels
    }
    class_idx = _classes(wanted, tree, parse)
    if lost := [label for label, value in class_idx.items() if value == UNKNOWN]:
        warn(
            f"{len(lost)} labels of {path} are no class of the model and do not count, such as "
            f"'{lost[0]}'."
        )
    shown = np.full(len(photos), UNKNOWN, np.int64)
    for photo, row in chosen.items():
        if len(read.labels[row]) == 1:  # of several labels, none is the photo's class
            shown[photo] = class_idx[read.labels[row][0]]
    return shown


def _exact(parts: Sequence[str], tree: ClassTree) -> int:
    """The class whose names stand at the end of a path."""
    if any(part.lower() in NO_PLANT_NAMES for part in parts):
        return NO_PLANT
    *_, before, last = ("", "", *parts)
    # without a second level the disease bears the species' name
    for species, disease in ((before, last), (last, last)):
        if species in tree.species:
            index = tree.species.index(species)
            if disease in tree.diseases[index]:
                return tree.class_index(index, tree.diseases[index].index(disease))
    return UNKNOWN


def _classes(
    wanted: Mapping[Any, tuple[Sequence[str], str]], tree: ClassTree, parse: ParseNames
) -> dict[Any, int]:
    """Class, `NO_PLANT` or `UNKNOWN` of each (path, name): by the tree's names at the end of the
    path, else as `parse` reads the name.
    """
    found = {key: _exact(parts, tree) for key, (parts, _) in wanted.items()}
    unread = [key for key in wanted if found[key] == UNKNOWN and wanted[key][1]]
    pairs = parse([wanted[key][1] for key in unread]) if unread else []
    for key, pair in zip(unread, pairs, strict=True):
        if pair:
            found[key] = _exact([slug(name) for name in pair], tree)
    return found
