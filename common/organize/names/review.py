"""Class names as classes of the tree: what the parser reads, what a person answers, and what a
person should look at.
"""

import csv
import difflib
import io
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from common.classes import slug
from common.console import fail, warn
from common.organize.names import crops, spelling
from common.organize.names.parse import ASK_BELOW, ParsedName, parse_class_names, parse_flat

Pair = tuple[str, str]
REVIEW = ("name", "species", "disease", "confidence", "decision", "reason")
NAMES = ("name", "species", "disease", "confidence", "decided_by", "reason")
_COLUMNS = NAMES[:3]
_DECISIONS = (
    "left out",
    "unsure",
    "kept apart",
    "put together",
)  # the first that holds stands in the row
_SHOWN = 5  # other names, or unknown answers, that one sentence lists


@dataclass(frozen=True)
class Names:
    """What was decided about every class name.

    classes: raw name -> (species, disease) as slugs, without names left out. review: rows of
    REVIEW, one per name that a person should check and has not answered. table: rows of NAMES, one
    per name, in the order given. Both tables are text; species and disease are slugs, empty where
    the
    name is left out.
    """

    classes: dict[str, Pair]
    review: list[tuple[str, ...]]
    table: list[tuple[str, ...]]


@dataclass(frozen=True)
class _Decided:
    pair: Pair | None
    words: tuple[str, str]
    confidence: str
    by: str
    reason: str


def read_names(names: list[str], levels: int, overrides: Path | None) -> Names:
    """Read class names as classes; a person's answers win over the parser.

    Args:
        names: all raw names of the sources; repeats change nothing.
        levels: 2: species and disease; 1: a name is a class of its own and is taken as it stands.
        overrides: a CSV of answers with the columns name, species, disease (an edited review.csv or
            names.csv will do); an empty species leaves the name out on purpose.

    Raises:
        SystemExit: where the answers cannot be used, with a sentence that names the line.
    """
    names = list(dict.fromkeys(names))
    answers = _answers(overrides, names, levels) if overrides is not None else {}
    parsed = parse_class_names(names) if levels == 2 else [parse_flat(name) for name in names]
    decided = {p.raw: answers.get(p.raw) or _read(p, levels) for p in parsed}
    classes = {name: d.pair for name, d in decided.items() if d.pair}
    table = [
        (name, *(d.pair or ("", "")), d.confidence, d.by, d.reason) for name, d in decided.items()
    ]
    open_names = {name: d for name, d in decided.items() if d.by != "person"}
    return Names(classes, _review(open_names, decided, classes, levels), table)


def _read(parsed: ParsedName, levels: int) -> _Decided:
    pair, confidence = None, f"{parsed.confidence:.2f}"
    if parsed.species is not None:
        species = slug(parsed.species)
        pair = (species, species if levels == 1 else slug(parsed.disease or "unspecified"))
    if parsed.confidence < ASK_BELOW <= float(confidence):
        confidence = f"{parsed.confidence:.3f}"  # 0.899 must not read 0.90
    return _Decided(
        pair, (parsed.species or "", parsed.disease or ""), confidence, "parser", parsed.reason
    )


def _review(
    open_names: dict[str, _Decided],
    decided: dict[str, _Decided],
    classes: dict[str, Pair],
    levels: int,
) -> list[tuple[str, ...]]:
    """One row per open question, the names left out first."""
    notes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, d in open_names.items():
        if d.pair is None:
            notes[name].append(
                (
                    0,
                    f"no species can be read: {d.reason}; to keep it, write its species and "
                    "disease in this row",
                )
            )
        elif float(d.confidence) < ASK_BELOW:
            notes[name].append((1, f"{d.reason}; correct this row, or return it unchanged"))
    together: dict[Pair, list[str]] = defaultdict(list)
    for name, pair in classes.items():
        together[pair].append(name)
    for gone, kept, why in _alike(together, levels):
        for name in together[gone]:
            if name in open_names:
                notes[name].append(
                    (
                        2,
                        (
                            f"{'/'.join(gone)} would join {'/'.join(kept)}: {why}; to join them, "
                            f"write {kept[0]},{kept[1]} in this row, "
                            "to keep them apart return it unchanged"
                        ),
                    )
                )
    for raws in together.values():
        for name in raws if len(raws) > 1 else []:
            if name in open_names:
                notes[name].append((3, _with(name, raws, decided)))
    rows = []
    for name, found in notes.items():
        found.sort(key=lambda note: note[0])
        pair = decided[name].pair or ("", "")
        rows.append(
            (
                found[0][0],
                name,
                *pair,
                decided[name].confidence,
                _DECISIONS[found[0][0]],
                "; ".join(text for _, text in found),
            )
        )
    return [row[1:] for row in sorted(rows, key=lambda row: row[0])]


def _with(name: str, raws: Sequence[str], decided: dict[str, _Decided]) -> str:
    """Which names form one class with this one; names that are read differently and only make the
    same folder name are pointed out.
    """
    others = [raw for raw in raws if raw != name]
    differ = [
        raw
        for raw in others
        if decided[raw].by == "parser" and decided[raw].words != decided[name].words
    ]
    text = (
        "one class with "
        + ", ".join(others[:_SHOWN])
        + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
    )
    if differ:
        mine, its = ("/".join(filter(None, decided[raw].words)) for raw in (name, differ[0]))
        text += f" (read as '{mine}' and '{its}', which make the same folder name)"
    return text


def _alike(classes: Iterable[Pair], levels: int) -> Iterator[tuple[Pair, Pair, str]]:
    """(class that would go, class it would join, why), as slugs."""
    slugs = {tuple(part.replace("_", " ") for part in pair): pair for pair in classes}
    for gone, kept, why in near_identical(slugs):
        if levels == 1:
            yield slugs[gone], slugs[kept[0], kept[0]], why.removeprefix("plants: ")
        else:
            yield slugs[gone], (slug(kept[0]), slug(kept[1])), why


# region a person's answers


def _answers(path: Path, names: list[str], levels: int) -> dict[str, _Decided]:
    known = dict.fromkeys(names)
    composed: dict[str, list[str]] = defaultdict(list)
    for name in names:
        composed[unicodedata.normalize("NFC", name)].append(name)
    answers: dict[str, _Decided] = {}
    lines: dict[str, int] = {}
    unknown: list[tuple[int, str]] = []
    for line, (raw, species, disease) in _rows(path, known):
        same = composed.get(unicodedata.normalize("NFC", raw), [])
        name = raw if raw in known else same[0] if len(same) == 1 else None
        answer = _answer(path, line, raw, species, disease, levels)
        if name is None:
            unknown.append((line, raw))
            continue
        if name in answers and answers[name].pair != answer.pair:
            first, second = (
                "/".join(a.pair) if a.pair else "left out" for a in (answers[name], answer)
            )
            fail(
                f"{path}: '{name}' is answered twice: {first} in line {lines[name]}, {second} in "
                f"line {line}. Keep one of the two."
            )
        if name not in answers:
            answers[name], lines[name] = answer, line
    if unknown:
        shown = "; ".join(
            f"line {line}: '{raw}'{_closest(raw, names)}" for line, raw in unknown[:_SHOWN]
        )
        more = f"; and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        warn(
            f"{path}: {len(unknown)} answers are for names that the sources do not have: "
            f"{shown}{more}."
        )
    return answers


def _answer(path: Path, line: int, raw: str, species: str, disease: str, levels: int) -> _Decided:
    if not species and disease:
        fail(
            f"{path}, line {line}: '{raw}' has the disease '{disease}' but no species. Write its "
            f"species, or leave both empty to "
            "leave the class out."
        )
    if not species:
        return _Decided(
            None, ("", ""), "1.00", "person", f"left out on purpose, line {line} of the answers"
        )
    if levels == 1:
        disease = species
    elif not disease:
        fail(
            f"{path}, line {line}: '{raw}' has the species '{species}' but no disease. Write one, "
            f"such as healthy or diseased."
        )
    return _Decided(
        (slug(species), slug(disease)),
        (species, disease),
        "1.00",
        "person",
        f"line {line} of the answers",
    )


def _rows(path: Path, known: dict[str, None]) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """(line number, (name, species, disease)) of the answers."""
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
        at = [header.index(title) for title in _COLUMNS]
        line = reader.line_num + 1
        for row in reader:
            if len(row) > len(header):
                fail(
                    f"{path}, line {line}: {len(row)} values for {len(header)} columns. Put "
                    f"quotation marks around names that "
                    f"hold '{mark}'."
                )
            name, species, disease = (row[i] if i < len(row) else "" for i in at)
            if name.strip():
                yield line, (name, species.strip(), disease.strip())
            elif any(value.strip() for value in row):
                fail(f"{path}, line {line}: this row has no name, so it answers nothing.")
            line = reader.line_num + 1
    except csv.Error as error:
        fail(f"{path}, line {line}, is no CSV: {error}. Save the table as 'CSV UTF-8' once more.")


def _text(path: Path, known: dict[str, None]) -> str:
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
        if "\0" in line or (
            odd and not any(name in line for name in known if not name.isprintable())
        ):
            fail(
                f"{path}, line {number}, is no UTF-8 text. Save the table as 'CSV UTF-8' "
                f"(spreadsheets offer it under Save as)."
            )
    return text


def _closest(raw: str, names: list[str]) -> str:
    folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(raw.casefold(), folded, 1, 0.6)
    return f" (did you mean '{folded[found[0]]}'?)" if found else ""


# endregion

# region near-identical classes


def near_identical(classes: Iterable[Pair]) -> list[tuple[Pair, Pair, str]]:
    """(class, the class it would become, reason) for classes that look like one; each pair once,
    sorted.
    """
    by_species: dict[str, set[str]] = defaultdict(set)
    for species, disease in classes:
        by_species[species].add(disease)
    found: list[tuple[Pair, Pair, str]] = []
    for a, b, reason in _look_alike(by_species, plants=True):
        gone, kept = _direction(a, b, len(by_species[a]), len(by_species[b]))
        found += [
            ((gone, disease), (kept, disease), f"plants: {reason}")
            for disease in sorted(by_species[gone])
        ]
    for species, diseases in by_species.items():
        for a, b, reason in _look_alike(diseases, plants=False):
            gone, kept = _direction(a, b, 0, 0)
            found.append(((species, gone), (species, kept), reason))
    return sorted(found)


def _direction(a: str, b: str, size_a: int, size_b: int) -> tuple[str, str]:
    """(name that would go, name that would stay): known words stay, then the larger, the shorter,
    the first.
    """

    def worth(name: str, size: int) -> tuple[int, int, int]:
        words = name.split()
        unknown = (
            0 if tuple(words) in crops.PLANTS else sum(not spelling.is_known(w) for w in words)
        )
        rank = next((line.index(name) for line in crops.SAME_DISEASE if name in line), 0)
        return (
            unknown + 2 * (crops.PLANTS.get(tuple(words), name) != name) + rank,
            -size,
            len(name),
        )

    first, second = sorted([(worth(a, size_a), a), (worth(b, size_b), b)])
    return second[1], first[1]


def _plain(name: str) -> list[str]:
    words = [crops.SPELLINGS.get(w, w) for w in name.split()]
    words = [spelling.singular(w) for w in words]
    return words[:-1] if len(words) > 1 and words[-1] == "disease" else words


def _look_alike(names: Iterable[str], plants: bool) -> list[tuple[str, str, str]]:
    """Pairs of names that look like one, with the reason; the strongest reason where several
    hold.
    """
    ordered = sorted(names)
    pairs: dict[tuple[str, str], str] = {}

    def group(keys: dict[str, list[str]], reason: str) -> None:
        for members in keys.values():
            for pair in combinations(members, 2):
                pairs.setdefault(pair, reason)

    plain: dict[str, list[str]] = defaultdict(list)
    same: dict[str, list[str]] = defaultdict(list)
    without_leaf: dict[str, list[str]] = defaultdict(list)
    for name in ordered:
        words = _plain(name)
        plain["".join(words)].append(name)
        lines = [str(i) for i, line in enumerate(crops.SAME_DISEASE) if name in line]
        key = crops.PLANTS.get(tuple(name.split())) if plants else next(iter(lines), None)
        same[key or f"={name}"].append(name)
        without_leaf["".join(w for w in words if w != "leaf") or name].append(name)
    group(plain, "the same but for plural, spacing, spelling or the word 'disease'")
    group(same, "two names of one plant" if plants else "two names of one disease")
    if not plants:
        group(without_leaf, "the same but for the word 'leaf'")
    _add_typos(ordered, plants, pairs)
    return [(a, b, reason) for (a, b), reason in pairs.items()]


def _add_typos(ordered: list[str], plants: bool, pairs: dict[tuple[str, str], str]) -> None:
    """Adds pairs of equal length in words that differ in one word by a slip, where one of the two
    is in no table.
    """
    slots: dict[tuple[object, ...], list[tuple[str, str]]] = defaultdict(list)
    for name in ordered:
        words = name.split()
        for i, word in enumerate(words):
            if len(word) < 4:
                continue
            for key in spelling.deletes(word, 2 if len(word) >= 8 else 1):
                slots[(tuple(words[:i]), tuple(words[i + 1 :]), key)].append((name, word))
    for members in slots.values():
        for (a, x), (b, y) in combinations(members, 2):
            if a == b or (a, b) in pairs or (spelling.is_known(x) and spelling.is_known(y)):
                continue
            slips = spelling.edit_distance(x, y)
            if slips <= (2 if min(len(x), len(y)) >= 8 else 1) and (
                min(len(x), len(y)) >= 5 or sorted(x) == sorted(y)
            ):
                pairs[(a, b)] = (
                    f"'{x}' and '{y}' differ by {slips} letter{'s' if slips > 1 else ''}"
                )


# endregion
