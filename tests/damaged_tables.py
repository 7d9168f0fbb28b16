"""Label files damaged at random, and what a reader may make of them: no picture a label that no row
of the damaged file gives it, by a reading of the rows that shares nothing with the readers.
"""

import contextlib
import copy
import csv
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import tiny_bundle as tiny

from common.organize.label_csv import read_labels
from common.organize.sources import Files, list_files, parse_sources
from common.serve.batch.photo_list import labels_from_csv

LABELS = [
    f"{species}/{disease}"
    for species, diseases in zip(tiny.TREE.species, tiny.TREE.diseases, strict=True)
    for disease in diseases
]
NAMES = {str(i): label for i, label in enumerate(LABELS)}
FOREIGN = ("/home/bob/set/", "C:\\Users\\bob\\set\\", "gs://bucket/deep/er/set/")
KINDS = ("label", "species", "numbers", "flags", "several", "dict", "list", "coco")


def make_source(folder: Path) -> Files:
    """Pictures whose names recur in several folders, and endings of either case."""
    for sub, end in (("a", ".jpg"), ("b", ".jpg"), ("b/deep", ".JPG"), ("c", ".png")):
        (folder / "set" / sub).mkdir(parents=True)
        for i in range(6):
            shared = f"{i}{end}" if i < 3 else f"{sub[0]}{i}{len(sub)}{end}"
            (folder / "set" / sub / shared).touch()
    (folder / "tables").mkdir()
    (folder / "tables" / "names.json").write_text(json.dumps(NAMES), encoding="utf-8")
    with contextlib.redirect_stderr(io.StringIO()):
        return list_files(parse_sources([str(folder / "set")], None))


def draw(files: Files, rng: random.Random) -> tuple[bytes, str]:
    """A good label file: its bytes and its kind."""
    root = files.sources[0].root
    paths = [Path(files.path(i)).relative_to(root).as_posix() for i in range(len(files))]
    paths += ["a/gone.jpg", "d/0.jpg", "7.jpg"]  # of pictures that are not here
    names = [path.rpartition("/")[2] for path in paths]
    style, kind = rng.choice(("path", "name", "stem", "windows", "foreign")), rng.choice(KINDS)
    far = rng.choice(FOREIGN)
    written = {
        "path": paths,
        "name": [
            name if names.count(name) == 1 else path
            for path, name in zip(paths, names, strict=True)
        ],
        "stem": [path.rpartition(".")[0] for path in paths],
        "windows": [path.replace("/", "\\") for path in paths],
        "foreign": [far + path.replace("/", "\\" if "\\" in far else "/") for path in paths],
    }[style]
    rows = [(name, rng.choice(LABELS)) for name in written if rng.random() < 0.9]
    rng.shuffle(rows)
    return write(rows, kind, rng), kind


def write(rows: list[tuple[str, str]], kind: str, rng: random.Random) -> bytes:
    """Rows of (file, label) as a file of a kind."""
    several = {
        name: rng.sample(LABELS, 2) if rng.random() < 0.2 else [label] for name, label in rows
    }
    if kind == "dict":
        return json.dumps(dict(rows), indent=rng.choice((None, 1))).encode()
    if kind == "list":
        found = [{"image": name, "label": several[name], "age": 3} for name, _ in rows]
        return json.dumps(found, indent=rng.choice((None, 1))).encode()
    if kind == "coco":
        return json.dumps(
            {
                "images": [{"id": i, "file_name": name} for i, (name, _) in enumerate(rows)],
                "categories": [{"id": i, "name": label} for i, label in enumerate(LABELS)],
                "annotations": [
                    {"image_id": i, "category_id": LABELS.index(label)}
                    for i, (name, _) in enumerate(rows)
                    for label in several[name]
                ],
            },
            indent=rng.choice((None, 1)),
        ).encode()
    head, cells = {
        "label": (["file", "label", "by"], lambda n, t: [n, t, "me"]),
        "species": (["file", "by", "species", "disease"], lambda n, t: [n, "me", *t.split("/")]),
        "numbers": (["image_id", "label"], lambda n, t: [n, str(LABELS.index(t))]),
        "flags": (
            ["filename", *LABELS],
            lambda n, t: [n, *(str(int(x in several[n])) for x in LABELS)],
        ),
        "several": (["image", "labels"], lambda n, t: [n, "|".join(several[n])]),
    }[kind]
    out = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    end = rng.choice(("\n", "\r\n"))
    writer = csv.writer(out, delimiter=rng.choice(",;\t"), quoting=quoting, lineterminator=end)
    writer.writerows([head, *(cells(name, label) for name, label in rows)])
    return out.getvalue().encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le")))


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to three damages: bytes flipped, cut out or put in, lines shuffled, joined or doubled,
    delimiters mixed, cells of two lines exchanged.
    """
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(9)
        at = rng.randrange(len(data) + 1)
        lines = data.split(b"\n")
        row = rng.randrange(len(lines))
        if kind == 0:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 3, 10))):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            data = bytes(changed)
        elif kind == 1:
            data = rng.choice((data[:at], data[at:], data[:at] + data[at + rng.randrange(60) :]))
        elif kind == 2:
            data = (
                data[:at] + rng.choice((b'"', b",", b"\n", b"\r", b"/", b"|", b"\xe9")) + data[at:]
            )
        elif kind == 3:
            first = lines[: rng.randrange(2)]
            rest = lines[len(first) :]
            rng.shuffle(rest)
            data = b"\n".join(first + rest)
        elif kind == 4:
            old, new = rng.sample([b",", b";", b"\t", b"|", b'"', b"/"], 2)
            some = [line.replace(old, new) if rng.random() < 0.3 else line for line in lines]
            data = b"\n".join(some)
        elif kind == 5:
            data = b"\n".join(lines[:row]) + b"\n".join(lines[row:])
        elif kind == 6:
            data = b"\n".join([*lines[:row], lines[rng.randrange(len(lines))], *lines[row:]])
        elif kind == 7:
            marks = [i for i, byte in enumerate(data) if byte in b',;\t"\n']
            for i in sorted(rng.sample(marks, min(len(marks), rng.choice((1, 2)))), reverse=True):
                data = data[:i] + data[i + 1 :]
        else:
            other = rng.randrange(len(lines))
            here, there = lines[row].partition(b","), lines[other].partition(b",")
            lines[row] = here[0] + here[1] + there[2]
            data = b"\n".join(lines)
    return data


# region what rows give


def given(data: bytes, kind: str) -> list[tuple[str, set[str]]]:
    """(file, labels) of each row that can be made out."""
    if kind in ("dict", "list", "coco"):
        return _given_json(data, kind)
    rows = []
    for text in _texts(data):
        lines = re.split("[\r\n]+", text)
        head = next((line for line in lines if line.strip()), "")
        for mark in ",;\t":
            columns = _cells(head, mark)
            rows += [_row(_cells(line, mark), columns, kind) for line in lines]
    return [row for row in rows if row[0]]


def _row(cells: list[str], columns: list[str], kind: str) -> tuple[str, set[str]]:
    name = cells[0] if cells else ""
    if kind == "label":
        return name, set(cells[1:2])
    if kind == "species":
        pair = cells[2:4]
        return name, {"/".join(filter(None, pair)), *pair}
    if kind == "numbers":
        return name, {NAMES.get(cell, cell) for cell in cells[1:2]} | set(cells[1:2])
    if kind == "several":
        splits = [cell.split(mark) for cell in cells[1:2] for mark in "|;, \0"]
        return name, {part.strip() for parts in splits for part in parts}
    on = {c for c, cell in zip(columns[1:], cells[1:], strict=False) if cell in ("1", "1.0")}
    return name, on


def _cells(line: str, mark: str) -> list[str]:
    try:
        found = next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
    except csv.Error:
        return []
    return [cell.strip() for cell in found]


def _texts(data: bytes) -> list[str]:
    found = [data.decode("utf-8-sig", "surrogateescape")]
    for codec in ("utf-16", "utf-16-le", "utf-16-be"):
        with contextlib.suppress(UnicodeDecodeError):
            found.append(data.decode(codec))
    return found


def _given_json(data: bytes, kind: str) -> list[tuple[str, set[str]]]:
    try:
        found = json.loads(data.decode("utf-8-sig", "surrogateescape"))
    except ValueError:
        return []

    def words(value: object) -> set[str]:
        parts = value if isinstance(value, list) else [value]
        return {NAMES.get(str(part), str(part)).strip() for part in parts}

    with contextlib.suppress(AttributeError, KeyError, TypeError):
        if kind == "dict":
            return [(name.strip(), words(label)) for name, label in found.items()]
        if kind == "list":
            return [(str(row.get("image")).strip(), words(row.get("label"))) for row in found]
        names = {c["id"]: c["name"] for c in found["categories"]}
        return [
            (
                str(image["file_name"]).strip(),
                {
                    str(names[a["category_id"]]).strip()
                    for a in found["annotations"]
                    if a["image_id"] == image["id"]
                },
            )
            for image in found["images"]
        ]
    return []


def bare(label: str) -> str:
    """A label without slashes at its ends, and none twice."""
    return "/".join(filter(None, label.split("/")))


def names_it(written: str, path: str) -> bool:
    """Whether a row may mean the picture at `path`: the same name, but for a missing ending or one
    in other case, and no other folder. Folders of another machine do not count but for the last.
    """
    parts = [part for part in written.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    here = path.split("/")
    stem, _, end = here[-1].rpartition(".")
    same = parts and parts[-1][: len(stem) + 1] in (stem, f"{stem}.")
    if not same or parts[-1].lower() not in {stem.lower(), f"{stem}.{end}".lower()}:
        return False
    far = re.match(r"/|\\|[A-Za-z][\w+.-]*:", written)
    folders = parts[-2:-1] if far else parts[:-1]
    return not folders or here[-1 - len(folders) : -1] == folders


# endregion


def trial(files: Files, folder: Path, seed: int) -> tuple[str, int, int]:
    """Damage one label file and have both readers read it.

    Returns:
        "stopped" or "read" by 01, pictures labelled by either, and how many of them wrongly.
    """
    rng = random.Random(seed)
    data, kind = draw(files, rng)
    if seed % 50:  # every fiftieth is as it was
        data = damage(data, rng)
    table = (
        folder / "tables" / ("labels.json" if kind in ("dict", "list", "coco") else "labels.csv")
    )
    table.write_bytes(data)
    paths = [files.path(i) for i in range(len(files))]
    shown: list[tuple[str, str]] = []
    outcome = "stopped"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            taken = copy.deepcopy(files)
            read_labels(taken, 0, table, [], "{}", multi=rng.choice(("", "first")))
            shown += [
                (path, taken.label_of(i)) for i, path in enumerate(paths) if taken.label_of(i)
            ]
            outcome = "read"
        with contextlib.suppress(SystemExit):
            photos = [Path(path) for path in paths]
            found = labels_from_csv(table, photos, tiny.TREE, lambda names: [None] * len(names))
            shown += [(paths[i], LABELS[found[i]]) for i in np.flatnonzero(found >= 0)]
    rows = [(name, set(map(bare, labels))) for name, labels in given(data, kind)]
    wrong = [
        (path, label)
        for path, label in shown
        if not any(bare(label) in labels and names_it(name, path) for name, labels in rows)
    ]
    return outcome, len(shown), len(wrong)
