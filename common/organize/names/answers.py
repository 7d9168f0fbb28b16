"""A person's answers for class names: rows of an edited review.csv or names.csv."""

import csv
import difflib
import io
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.classes import slug
from common.console import fail, warn
from common.organize.sources import Label, Source

# Last part of the name of a row that answers which plant all names show that say none: "*" of the
# whole source, "x/*" of what lies below x, "./*" of what lies in no folder.
ALL = "*"
_COLUMNS = ("name", "species", "disease")
_SHOWN = 5  # names that one sentence lists


@dataclass(frozen=True)
class Decided:
    """What was decided about a label: its class as slugs and in words, how sure, by whom and why.

    crop_from: what the plant was guessed from, "" where the name gives it or a person said it.
    """

    pair: tuple[str, str] | None
    words: tuple[str, str]
    confidence: str
    by: str
    reason: str
    crop_from: str = ""
    not_plant: bool = False

    def columns(self) -> tuple[str, str, str]:
        """The last columns of names.csv."""
        return self.confidence, self.by, self.reason


class Answers:
    """A person's answers: rows for labels, and the plants of whole sources."""

    def __init__(self, labels: Sequence[Label], sources: Sequence[Source], levels: int) -> None:
        self.sources = {source.name: number for number, source in enumerate(sources)}
        self.levels = levels
        self.rows: dict[Label, Decided] = {}
        self.plants: dict[tuple[int, str], str] = {}  # (source, name of the row) -> plant
        self.names: dict[str, list[Label]] = defaultdict(list)  # by path, else by the last folder
        for label in labels:
            for name in {label.name, label.name.rpartition("/")[2]}:
                self.names[unicodedata.normalize("NFC", name)].append(label)

    def read(self, path: Path) -> None:
        """Read the answers of a file."""
        lines: dict[Label, int] = {}
        unknown: list[tuple[int, str]] = []
        known = [name for name in self.names if not name.isprintable()]
        for line, (source, raw, species, disease) in _rows(path, known):
            if raw.rpartition("/")[2] == ALL and species:
                for number in self._numbers(path, line, source):
                    self.plants[number, raw] = species
                continue
            answer = _answer(path, line, raw, species, disease, self.levels)
            found = self._labels(path, line, source, raw)
            unknown += [] if found else [(line, raw)]
            for label in found:
                first = self.rows.get(label)
                if first and first.pair != answer.pair:
                    both = ("/".join(a.pair) if a.pair else "left out" for a in (first, answer))
                    fail(
                        f"{path}: '{label.name}' is answered twice: {next(both)} in line "
                        f"{lines[label]}, {next(both)} in line {line}. Keep one of the two."
                    )
                if not first:
                    self.rows[label], lines[label] = answer, line
        if unknown:
            shown = "; ".join(
                f"line {line}: '{raw}'{_closest(raw, list(self.names))}"
                for line, raw in unknown[:_SHOWN]
            )
            more = f"; and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            warn(
                f"{path}: {len(unknown)} answers are for names that the sources do not have: "
                f"{shown}{more}."
            )

    def plant(self, label: Label) -> str:
        """The plant that a person gave the nearest folder above a label, or its source, or ""."""
        folders = label.name.split("/")[:-1]
        above = ["/".join(folders[:n]) for n in range(len(folders), 0, -1)] or ["."]
        rows = (*(f"{folder}/{ALL}" for folder in above), ALL)
        found = (self.plants.get((label.source, row), "") for row in rows)
        return next(filter(None, found), "")

    def _numbers(self, path: Path, line: int, source: str) -> list[int]:
        if source and source not in self.sources:
            names = ", ".join(self.sources)
            fail(f"{path}, line {line}: there is no source '{source}'; there are {names}.")
        return [self.sources[source]] if source else list(self.sources.values())

    def _labels(self, path: Path, line: int, source: str, raw: str) -> list[Label]:
        """The labels that a row's name stands for: a path, or a class folder's name where only one
        has it.
        """
        numbers = self._numbers(path, line, source)
        name = unicodedata.normalize("NFC", raw)
        found = [label for label in self.names.get(name, []) if label.source in numbers]
        exact = [label for label in found if label.name == raw] or [
            label for label in found if unicodedata.normalize("NFC", label.name) == name
        ]
        if len(exact or found) > 1:
            names = list(self.sources)
            places = "; ".join(f"{names[k.source]}: {k.name}" for k in found[:_SHOWN])
            fail(
                f"{path}, line {line}: '{raw}' stands for several names ({places}). Write the "
                "whole path, and the source in a column of its own."
            )
        return exact or found


def _answer(path: Path, line: int, raw: str, species: str, disease: str, levels: int) -> Decided:
    if not species and disease:
        fail(
            f"{path}, line {line}: '{raw}' has the disease '{disease}' but no species. Write its "
            f"species, or leave both empty to "
            "leave the class out."
        )
    if not species:
        return Decided(
            None, ("", ""), "1.00", "person", f"left out on purpose, line {line} of the answers"
        )
    if levels == 1:
        disease = species
    elif not disease:
        fail(
            f"{path}, line {line}: '{raw}' has the species '{species}' but no disease. Write one, "
            f"such as healthy or diseased."
        )
    return Decided(
        (slug(species), slug(disease)),
        (species, disease),
        "1.00",
        "person",
        f"line {line} of the answers",
    )


def _rows(path: Path, known: list[str]) -> Iterator[tuple[int, tuple[str, str, str, str]]]:
    """(line number, (source, name, species, disease)) of the answers; known: names that cannot be
    printed.
    """
    text = _text(path, known)
    first = text.partition("\n")[0]
    mark = max(",;\t", key=first.count)  # spreadsheets of some countries write semicolons
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    line = 1
    try:
        header = [title.strip().lower() for title in next(reader, [])]
        missing = [title for title in _COLUMNS if title not in header]
        if missing:
            fail(
                f"{path} needs the columns {','.join(_COLUMNS)} in its first line; "
                f"{', '.join(missing)} is missing (it has "
                f"{', '.join(header) or 'nothing'})."
            )
        at = [header.index(t) if t in header else len(header) for t in ("source", *_COLUMNS)]
        line = reader.line_num + 1
        for row in reader:
            if len(row) > len(header):
                fail(
                    f"{path}, line {line}: {len(row)} values for {len(header)} columns. Put "
                    f"quotation marks around names that "
                    f"hold '{mark}'."
                )
            source, name, species, disease = (row[i] if i < len(row) else "" for i in at)
            if name.strip():
                yield line, (source.strip(), name, species.strip(), disease.strip())
            elif any(value.strip() for value in row):
                fail(f"{path}, line {line}: this row has no name, so it answers nothing.")
            line = reader.line_num + 1
    except csv.Error as error:
        fail(f"{path}, line {line}, is no CSV: {error}. Save the table as 'CSV UTF-8' once more.")


def _text(path: Path, known: list[str]) -> str:
    if not path.is_file():
        fail(
            f"--names: there is no file {path}."
            if not path.exists()
            else f"--names: {path} is no file. Give a CSV."
        )
    data = path.read_bytes()
    text = data.decode("utf-8-sig", "surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        odd = any("\udc80" <= c <= "\udcff" for c in line)
        if "\0" in line or (odd and not any(name in line for name in known)):
            fail(
                f"{path}, line {number}, is no UTF-8 text. Save the table as 'CSV UTF-8' "
                f"(spreadsheets offer it under Save as)."
            )
    return text


def _closest(raw: str, names: list[str]) -> str:
    folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(raw.casefold(), folded, 1, 0.6)
    return f" (did you mean '{folded[found[0]]}'?)" if found else ""
