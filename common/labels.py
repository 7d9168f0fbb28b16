"""Label files: tables that say what pictures show, read strictly, and which columns say it."""

import codecs
import csv
import functools
import itertools
import json
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from common.classes import slug
from common.console import fail
from common.images import SUFFIXES

USES = ("file", "label", "species", "disease", "source", "group", "split")
# columns as public label files call them, the likelier first
USUAL = {
    "file": "file filename file_name filepath file_path path image_path image_file image_name "
    "image image_id imageid img img_path img_name photo picture id",
    "label": "label labels class class_name classes category category_name target",
    "species": "species plant crop host",
    "disease": "disease condition pathogen",
}
MARKS = {",": "comma", ";": "semicolon", "\t": "tab"}
NO_LABEL = {"", "nan", "null", "n/a"}
MAP_BYTES = 1_000_000  # JSON files beyond this are no name maps
_BREAK = re.compile(r"\r\n|\n|\r")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_JOINT = "\x1f"  # between the labels of one JSON entry; no text file may hold it
_FLAGS = {"0", "1", "0.0", "1.0", "false", "true", ""}
_ASIDE = re.compile(r"(is_|in_)?(train|val|valid|test|split|fold|set|subset|group)(_set|_id)?")


@dataclass(frozen=True)
class Table:
    """A label file as it stands.

    Attributes:
        path: the file.
        cells: {column: its text, without spaces around it, row by row}.
        lines: of each row; counted from 1, as editors do.
        unit: what `lines` counts: lines of text, or entries of a JSON file.
    """

    path: Path
    cells: dict[str, list[str]]
    lines: Sequence[int]
    unit: str = "line"

    def where(self, row: int) -> str:
        """Where a row stands, for a message."""
        return f"{self.path.name}, {self.unit} {self.lines[row]}"


def read_table(path: Path, prose: bool = False) -> Table:
    """Read a label file: CSV with commas, semicolons or tabs, in UTF-8 or UTF-16, or JSON: COCO, a
    list of objects, or an object {file: label}.

    Nothing is mended: a row of the wrong length, a quote that its line does not close, a repeated
    name of a column and control characters are mistakes of the whole file.

    Args:
        path: the file.
        prose: cells in quotes may have several lines; no row may have more cells than the header,
            as one has whose text holds the delimiter without quotes.

    Raises:
        SystemExit: where the file is not there or not as said, with the line.
    """
    if not path.is_file():
        fail(f"--labels: there is no file {path}.")
    text = _decode(path, path.read_bytes())
    if bad := _CONTROL.search(text):
        line = len(_BREAK.split(text[: bad.start()]))
        fail(f"{path}, line {line}: a control character, {bad[0]!r}. Is the file damaged?")
    return (
        _json_table(path, text) if path.suffix.lower() == ".json" else _csv_table(path, text, prose)
    )


def _decode(path: Path, data: bytes) -> str:
    """UTF-8 keeps bytes that are none, as file names may hold them; labels may not."""
    if data[:4] in (b"PK\3\4", b"\xd0\xcf\x11\xe0"):
        fail(
            f"{path} is a spreadsheet. Save its sheet as CSV (in Excel: CSV UTF-8), and use that "
            f"file."
        )
    odd, even, some = data[1:400:2].count(0), data[:400:2].count(0), len(data[:400])
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        codec = "utf-16"
    elif max(odd, even) * 4 > some:
        codec = "utf-16-le" if odd > even else "utf-16-be"
    else:
        return data.decode("utf-8-sig", "surrogateescape")
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        fail(
            f"{path} is not UTF-16 text ({error.reason} at byte {error.start}). Save it "
            f"as UTF-8 CSV."
        )


def _csv_table(path: Path, text: str, prose: bool) -> Table:
    lines = _BREAK.split(text)
    told = re.fullmatch(r'"?sep=([,;|\t])"?[,;\t ]*', lines[0], re.I)
    start = next((i for i in range(bool(told), len(lines)) if lines[i].strip()), len(lines))
    mark = told[1] if told else _mark(lines[start : start + 2])
    header: list[str] = []
    columns: list[list[str]] = []
    numbers, done = array("q"), start
    rest = (line + "\n" * prose for line in lines[start:])
    reader = csv.reader(rest, delimiter=mark, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if start + reader.line_num != done + 1 and not prose:
                raise csv.Error("a quote is opened and not closed")
            row = list(map(str.strip, row))
            if not header:  # columns without a name at its end hold nothing
                full = len(row)
                header = row[: max((i for i, name in enumerate(row, 1) if name), default=0)]
                columns = [[] for _ in header]
            elif any(row):
                if row == header:
                    raise csv.Error("the header again")
                short, more = len(row) < len(header), any(row[len(header) :])
                if short or more or (prose and len(row) > full):
                    raise csv.Error(
                        f"{len(row)} cells where the header has {len(header)}; a cell that holds "
                        f"the delimiter ({MARKS.get(mark, mark)}) needs quotes around it"
                    )
                numbers.append(done + 1)
                for column, cell in zip(columns, row, strict=False):
                    column.append(cell)
            done = start + reader.line_num
    except csv.Error as error:
        open_quote = start + reader.line_num > done + 1 or "end of data" in str(error)
        told_as = "a quote is opened and not closed in the line" if open_quote else error
        fail(f"{path}, line {done + 1}: {told_as}. Mend the line; nothing was read.")
    return _table(path, header, columns, numbers, f"line {start + 1}")


def _mark(lines: Sequence[str]) -> str:
    """The delimiter: one that stands in the header as often as in the row below it."""
    counts = {mark: [line.count(mark) for line in lines] or [0] for mark in MARKS}
    return max(MARKS, key=lambda m: (min(counts[m]) > 0 and len(set(counts[m])) == 1, counts[m][0]))


def _table(
    path: Path, header: list[str], columns: list[list[str]], lines: Sequence[int], where: str
) -> Table:
    named = [name.casefold() for name in header if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        fail(f"{path}, {where}: the column {twice[0]!r} stands there twice. Rename or remove one.")
    if not named or not lines:
        fail(f"{path} is empty; it needs a header row, and rows below it.")
    cells = {  # one object for cells that are equal: a million labels are few words
        name: list(map({}.setdefault, column, column))
        for name, column in zip(header, columns, strict=True)
        if name
    }
    return Table(path, cells, lines, where.split()[0])


def _json_table(path: Path, text: str) -> Table:
    try:
        entries = _entries(json.loads(text, object_pairs_hook=_apart))
        header = list(dict.fromkeys(name for entry in entries for name in entry))
        columns = [[_cell(entry.get(name)) for entry in entries] for name in header]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        fail(
            f"--labels {path} cannot be used ({type(error).__name__}: {error}). It may be COCO, "
            f'a list of objects such as {{"file": "1.jpg", "label": "rust"}}, or one object '
            f'{{"1.jpg": "rust", ...}}.'
        )
    return _table(path, header, columns, range(1, len(entries) + 1), "entry 1")


def _apart(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return found


def _entries(found: Any) -> list[dict[str, Any]]:
    """One object per picture."""
    if isinstance(found, list):
        return found
    if {"images", "annotations", "categories"} <= found.keys():
        names = {c["id"]: c["name"] for c in found["categories"]}
        shown: dict[Any, dict[str, None]] = {image["id"]: {} for image in found["images"]}
        if len(names) < len(found["categories"]) or len(shown) < len(found["images"]):
            raise ValueError("an id stands there twice")
        for annotation in found["annotations"]:
            shown[annotation["image_id"]][names[annotation["category_id"]]] = None
        return [{"file": i["file_name"], "label": list(shown[i["id"]])} for i in found["images"]]
    if all(isinstance(value, dict) for value in found.values()):
        return [{**value, "file": name} for name, value in found.items()]
    return [{"file": name, "label": value} for name, value in found.items()]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return _JOINT.join(_cell(part) for part in value)
    if _CONTROL.search(text := "" if value is None or isinstance(value, dict) else str(value)):
        raise ValueError(f"a control character in {text!r}")
    return text.strip()


@dataclass(frozen=True)
class LabelFile:
    """What a label file says.

    Attributes:
        table: the file.
        columns: {use: column}.
        files: a picture per row, as written.
        labels: the labels of each row: none, one or several; `species/disease` where two columns
            say them.
        note: how labels were found, in words.
    """

    table: Table
    columns: dict[str, str]
    files: list[str]
    labels: list[tuple[str, ...]]
    note: str


def read_label_file(
    path: Path, told: Sequence[str] = (), folders: Sequence[Path] = ()
) -> LabelFile:
    """Read a label file: its table, and which columns hold the file and the labels.

    Columns of text are taken before numbers; numbers take names from a JSON file beside them;
    several columns of 0 and 1 are labels of their own.

    Args:
        path: the file.
        told: USE=COLUMN, USE one of USES; the others are found by their names.
        folders: where a JSON file with names of numbers may lie, besides the file's own folder.

    Raises:
        SystemExit: where the file or a column cannot be read.
    """
    table = read_table(path)
    chosen = _told_columns(table, told)
    if "file" not in chosen:
        chosen["file"] = _file_column(table, chosen)
    flags: list[str] = []
    if not {"label", "species", "disease"} & set(chosen):
        options = _options(table, chosen)
        text = [o for o in options if not any(_numeric(table.cells[c]) for c in o.values())]
        flags = [] if text else _flag_columns(table, chosen)
        option = (text or options or [{}])[0]
        exclusive = all(len(row) == 1 for row in _flagged(table, flags))
        if option and (not exclusive or _names(table, list(option.values())[-1], folders)):
            flags = []
        if not (option or flags):
            _no_column(table, "label")
        chosen |= {} if flags else option
    column = chosen.get("label", chosen.get("disease"))
    names = _names(table, column, folders) if column and _numeric(table.cells[column]) else None
    chosen = {use: chosen[use] for use in USES if use in chosen}
    require_text(table, [c for use, c in chosen.items() if use != "file"] + flags)
    note = ", ".join(f"{use} = {name}" for use, name in chosen.items())
    if flags:
        more = ", ..." if len(flags) > 6 else ""
        note += f", label = the one of {', '.join(flags[:6])}{more} that is 1"
    labels = _flagged(table, flags) if flags else _row_labels(table, chosen, names)
    note += " (numbers, with names from a JSON file)" if names else ""
    return LabelFile(table, chosen, table.cells[chosen["file"]], labels, note)


def _told_columns(table: Table, told: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for text in told:
        use, _, name = text.partition("=")
        if use not in USES:
            fail(
                f"--columns {text}: write file=NAME, label=NAME (or species=NAME disease=NAME), "
                f"source=NAME, group=NAME or split=NAME."
            )
        if name.strip() not in table.cells:
            fail(
                f"--columns {text}: {table.path} has no column {name!r}; it has "
                f"{', '.join(table.cells)}."
            )
        chosen[use] = name.strip()
    return chosen


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _no_column(table: Table, lacking: str) -> NoReturn:
    hint = ""
    if any(map(_is_picture, table.cells)):
        hint = " Its first line names a picture: does it lack a header row (file,label)?"
    fail(
        f"{table.path}: which column holds the {lacking}? It has {', '.join(table.cells)}. Say so: "
        f"--columns {lacking}=NAME.{hint}"
    )


def _usual(table: Table, use: str) -> list[str]:
    """Columns whose names tell a use, the likelier first."""
    low: dict[str, str] = {}
    for name in table.cells:
        other = low.setdefault(plain := re.sub(r"\W+", "_", name.lower()).strip("_"), name)
        if other != name and plain in USUAL[use].split():
            fail(f"{table.path}: the columns {other!r} and {name!r} mean the same. Remove one.")
    return [low[name] for name in USUAL[use].split() if name in low]


def _file_column(table: Table, chosen: dict[str, str]) -> str:
    usual = [name for name in _usual(table, "file") if name not in chosen.values()]
    like = [n for n, cells in table.cells.items() if sum(map(_is_picture, cells)) * 2 > len(cells)]
    if not usual and len(like) != 1:
        _no_column(table, "file")
    return (usual or like)[0]


def _options(table: Table, chosen: dict[str, str]) -> list[dict[str, str]]:
    """The ways to find a label, the likelier first."""
    found = {
        use: [name for name in _usual(table, use) if name not in chosen.values()]
        for use in ("label", "species", "disease")
    }
    ids = {name for name in found["species"] if re.search(r"\d", "".join(table.cells[name]))}
    options = [
        {"species": species, use: name}
        for species in found["species"][:1]
        for use in ("disease", "label")
        for name in found[use]
        if use == "disease" or species not in ids  # `plant` may number plants
    ]
    for first, second in (o.values() for o in options):  # numbers may tell more than the species
        pairs = set(zip(table.cells[first], table.cells[second], strict=True))
        if len(pairs) > len(set(table.cells[first])):
            found["species"] = []
    alone = [{use: name} for use in ("label", "species", "disease") for name in found[use]]
    return options + alone


def _numeric(cells: Iterable[str]) -> bool:
    """Whether nine in ten cells are numbers, so that one damaged cell does not make them words."""
    found = [bool(re.fullmatch(r"[+-]?\d+(\.\d*)?", cell)) for cell in cells if cell]
    return sum(found) * 10 >= len(found) * 9 > 0


def _flag_columns(table: Table, chosen: dict[str, str]) -> list[str]:
    """Columns of 0 and 1, where there are at least two."""
    found, aside = [], {*chosen.values(), *_usual(table, "label")}
    for name, cells in table.cells.items():
        low = re.sub(r"\W+", "_", name.lower())
        if name in aside or _ASIDE.fullmatch(low):
            continue
        wrong = [row for row, cell in enumerate(cells) if cell.lower() not in _FLAGS]
        if not wrong and any(cells):
            found.append(name)
        elif len(wrong) * 10 <= len(cells):
            fail(
                f"{table.where(wrong[0])}: column {name} holds {cells[wrong[0]]!r} where others "
                f"hold 0 and 1. Mend it, or say with --columns label=NAME which column counts."
            )
    return found if len(found) > 1 else []


def _flagged(table: Table, flags: list[str]) -> list[tuple[str, ...]]:
    rows = zip(*(table.cells[name] for name in flags), strict=True)
    on = {"1", "1.0", "true"}
    return [tuple(n for n, c in zip(flags, row, strict=True) if c.lower() in on) for row in rows]


def require_text(table: Table, columns: Sequence[str]) -> None:
    """Raises SystemExit where a name or a cell of some columns is not UTF-8."""
    for name in columns:
        for row, cell in enumerate((name, *table.cells[name])):
            if not cell.isascii() and re.search("[\ud800-\udfff]", cell):
                where = table.where(row - 1) if row else f"{table.path.name}, the header"
                fail(f"{where} is not UTF-8 text. Save the file as UTF-8 (in Excel: CSV UTF-8).")


def _row_labels(
    table: Table, chosen: dict[str, str], names: dict[str, str] | None
) -> list[tuple[str, ...]]:
    """The last column may hold several labels in a cell."""
    *first, last = [table.cells[chosen[c]] for c in ("species", "disease", "label") if c in chosen]
    read = _several(last)
    if names:
        read = {
            cell: tuple(names[part.partition(".")[0]] for part in parts)
            for cell, parts in read.items()
        }
    rows = ("/".join(cell for cell in row if cell) for row in zip(*first, strict=True))
    befores = rows if first else itertools.repeat("")
    whole = "disease" not in chosen

    @functools.cache
    def labels(before: str, cell: str) -> tuple[str, ...]:
        return tuple(_joined(whole, before, part) for part in read[cell] or [""] if before or part)

    return list(map(labels, befores, last))


def _joined(whole: bool, before: str, part: str) -> str:
    """Species and disease; a label (whole) may hold its species already."""
    has = whole and f"_{slug(before)}_" in f"_{slug(part)}_"
    return part if has or not before else f"{before.strip('/')}/{part.strip('/')}".strip("/")


def _several(cells: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The labels of each cell: several where most of its parts are labels of other cells."""
    alone = set(cells)
    found: dict[str, tuple[str, ...]] = {}
    for cell in alone:
        found[cell] = () if cell.lower() in NO_LABEL else (cell,)
        for mark in (_JOINT, "|", ";", ",", " "):
            parts = tuple(part.strip() for part in cell.split(mark) if part.strip())
            known = sum(part in alone for part in parts)
            most = known * 2 > len(parts) and (mark != " " or "_" in cell)
            if len(parts) > 1 and (mark == _JOINT or known == len(parts) or most):
                found[cell] = tuple(dict.fromkeys(parts))
                break
    return found


def _names(table: Table, column: str, folders: Sequence[Path]) -> dict[str, str] | None:
    keys = {
        cell.partition(".")[0] for cell in set(table.cells[column]) if cell.lower() not in NO_LABEL
    }
    found = (name_map(folder, keys) for folder in dict.fromkeys((table.path.parent, *folders)))
    return next((names for names in found if names), None)


def name_map(folder: Path, keys: Iterable[str]) -> dict[str, str] | None:
    """Find names of numbers in a flat JSON file of a folder: {"0": "name", ...}.

    Returns:
        {key: name} of all keys, or None where no file has them all, or two files differ.
    """
    found: list[dict[str, str]] = []
    keys = list(keys)
    for path in sorted(folder.glob("*.json")):
        try:
            if path.stat().st_size > MAP_BYTES:
                continue
            read = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_apart)
        except (OSError, ValueError, RecursionError):
            continue
        names = [read.get(key) for key in keys] if isinstance(read, dict) else [None]
        if keys and all(isinstance(n, str) and n.strip() and not _is_picture(n) for n in names):
            found.append({key: name.strip() for key, name in zip(keys, names, strict=True)})
    return found[0] if found and all(names == found[0] for names in found) else None
