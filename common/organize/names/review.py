"""Class names as classes of the tree: what the parser reads, what a person answers, and what a
person should look at.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from common.classes import slug
from common.organize.names import crops, spelling
from common.organize.names.answers import ALL, Answers, Decided
from common.organize.names.folders import GUESSED, FolderReading, read_folders
from common.organize.names.parse import ASK_BELOW, ParsedName, parse_flat
from common.organize.sources import Label, Source

Pair = tuple[str, str]
REVIEW = ("source", "name", "species", "disease", "confidence", "decision", "reason")
NAMES = ("source", "name", "species", "disease", "confidence", "decided_by", "reason")
_SHOWN = 5  # other names that one sentence lists


@dataclass(frozen=True)
class Names:
    """What was decided about every class name.

    Attributes:
        classes: label -> (species, disease) as slugs, without labels left out.
        review: rows of REVIEW, one per question that a person has not answered, the labels left out
            first. A row named "*" asks which plant a whole source shows, "x/*" a folder of it.
        table: rows of NAMES, one per label, in the order given. Both tables are text; species and
            disease are slugs, empty where the label is left out.
        reasons: label -> why it was read so.
        asked: labels that a row of `review` asks about.
        not_plants: labels whose names tell of pictures without a plant.
    """

    classes: dict[Label, Pair]
    review: list[tuple[str, ...]]
    table: list[tuple[str, ...]]
    reasons: dict[Label, str]
    asked: set[Label]
    not_plants: list[Label]


def read_names(
    labels: Sequence[Label],
    sources: Sequence[Source],
    levels: int,
    answers: Path | None,
    species: str = "",
) -> Names:
    """Read labels as classes; a person's answers win over the parser.

    Args:
        labels: all labels of the sources; repeats change nothing.
        sources: what the labels' numbers stand for.
        levels: 2: species and disease; 1: a name is a class of its own and is taken as it stands.
        answers: a CSV of answers with the columns name, species, disease and, where names of
            several sources are alike, source (an edited review.csv or names.csv will do); an empty
            species leaves the name out on purpose.
        species: plant of all names that give none.

    Raises:
        SystemExit: where the answers cannot be used, with a sentence that names the line.
    """
    labels = list(dict.fromkeys(labels))
    given = Answers(labels, sources, levels)
    if answers is not None:
        given.read(answers)
    decided: dict[Label, Decided] = {}
    for number, source in enumerate(sources):
        mine = [label for label in labels if label.source == number]
        if levels == 1:
            read = [_flat(parse_flat(label.name.rpartition("/")[2])) for label in mine]
        else:
            paths = [tuple(label.name.split("/")) for label in mine]
            name = source.name if source.named else ""
            said = [given.plant(label) or species for label in mine]
            read = [_read(r) for r in read_folders(paths, source.root.name, name, said)]
        decided |= {k: given.rows.get(k, d) for k, d in zip(mine, read, strict=True)}
    decided = {label: decided[label] for label in labels}
    classes = {label: d.pair for label, d in decided.items() if d.pair}
    table = [
        (sources[label.source].name, label.name, *(d.pair or ("", "")), *d.columns())
        for label, d in decided.items()
    ]
    review, asked = _review(decided, classes, sources, levels)
    not_plants = [label for label, d in decided.items() if d.not_plant]
    reasons = {label: d.reason for label, d in decided.items()}
    return Names(classes, review, table, reasons, asked, not_plants)


def _flat(parsed: ParsedName) -> Decided:
    words = (parsed.species or "", parsed.disease or "")
    pair = (slug(words[0]), slug(words[0])) if words[0] else None
    return Decided(pair, words, f"{parsed.confidence:.2f}", "parser", parsed.reason)


def _read(reading: FolderReading) -> Decided:
    pair, confidence = None, f"{reading.confidence:.2f}"
    words = (reading.species or "", reading.disease or "")
    if reading.species is not None:
        pair = (slug(reading.species), slug(reading.disease or "unspecified"))
    if reading.confidence < ASK_BELOW <= float(confidence):
        confidence = f"{reading.confidence:.3f}"  # 0.899 must not read 0.90
    guessed = reading.crop_from if reading.crop_from in GUESSED else ""
    return Decided(pair, words, confidence, "parser", reading.reason, guessed, reading.not_plant)


# what a question is about, the weightiest first
_DECISIONS = ("left out", "crop from the {}", "unsure", "kept apart", "put together")


def _review(
    decided: dict[Label, Decided],
    classes: dict[Label, Pair],
    sources: Sequence[Source],
    levels: int,
) -> tuple[list[tuple[str, ...]], set[Label]]:
    """One row per open question, the names left out first; and all labels that are asked about."""
    questions: list[tuple[int, tuple[str, ...]]] = []
    guessed: dict[tuple[int, str, str], list[Label]] = defaultdict(list)
    notes: dict[Label, list[tuple[int, str]]] = defaultdict(list)
    open_names = {label: d for label, d in decided.items() if d.by != "person"}
    for label, d in open_names.items():
        if d.pair and d.crop_from:
            guessed[label.source, d.pair[0], d.crop_from].append(label)
        if d.not_plant:
            notes[label].append((0, f"{d.reason} give the folder with --not-plants"))
        elif d.pair is None:
            how = "to keep it, write its species and disease in this row"
            notes[label].append((0, f"no species can be read: {d.reason}; {how}"))
        elif float(d.confidence) < ASK_BELOW:
            notes[label].append((2, f"{d.reason}; correct this row, or return it unchanged"))
    for (number, plant, told, place), members in _by_place(guessed, open_names).items():
        few = ", ".join(label.name for label in members[:_SHOWN])
        what = f"{plant} from the {told}, for names that say no plant? {len(members)}: {few}"
        row = (sources[number].name, place, plant, "", "0.70", _DECISIONS[1].format(told), what)
        questions.append((1, row))
    together: dict[Pair, list[Label]] = defaultdict(list)
    for label, pair in classes.items():
        together[pair].append(label)
    for gone, kept, why in _alike(together, levels):
        question = (
            f"{'/'.join(gone)} would join {'/'.join(kept)}: {why}; to join them, write "
            f"{kept[0]},{kept[1]} in this row, to keep them apart return it unchanged"
        )
        for label in filter(open_names.get, together[gone]):
            notes[label].append((3, question))
    for same in together.values():
        if len({label.name.rpartition("/")[2].casefold() for label in same}) > 1:
            for label in filter(open_names.get, same):
                notes[label].append((4, _with(label, same, decided)))
    for label, found in notes.items():
        found.sort(key=lambda note: note[0])
        d, rank = decided[label], found[0][0]
        text = "; ".join(text for _, text in found)
        row = (*(d.pair or ("", "")), d.confidence, _DECISIONS[rank], text)
        questions.append((rank, (sources[label.source].name, label.name, *row)))
    asked = {label for label, found in notes.items() if found[0][0] < 3}
    asked.update(*guessed.values())
    return [row for _, row in sorted(questions, key=lambda question: question[0])], asked


def _by_place(
    guessed: dict[tuple[int, str, str], list[Label]], decided: dict[Label, Decided]
) -> dict[tuple[int, str, str, str], list[Label]]:
    """Guesses with the name of the row that asks about them: "*" where all names of a source that
    say no plant share one guess, else a row for each folder.
    """
    without = {label.source for label, d in decided.items() if not d.pair and not d.not_plant}
    groups = Counter(number for number, *_ in guessed)
    places: dict[tuple[int, str, str, str], list[Label]] = defaultdict(list)
    for key, members in guessed.items():
        for label in members:
            parent = label.name.rpartition("/")[0] or "."
            alone = groups[label.source] == 1 and label.source not in without
            places[(*key, ALL if alone else f"{parent}/{ALL}")].append(label)
    return places


def _with(label: Label, same: Sequence[Label], decided: dict[Label, Decided]) -> str:
    """Which names form one class with this one; names that are read differently and only make the
    same folder name are pointed out.
    """
    others = [other for other in same if other != label]
    text = f"one class with {', '.join(other.name for other in others[:_SHOWN])}"
    if len(others) > _SHOWN:
        text += f" and {len(others) - _SHOWN} more"
    for other in others:
        if decided[other].by == "parser" and decided[other].words != decided[label].words:
            mine, its = ("/".join(filter(None, decided[k].words)) for k in (label, other))
            return f"{text} (read as '{mine}' and '{its}', which make the same folder name)"
    return text


def _alike(classes: Iterable[Pair], levels: int) -> Iterator[tuple[Pair, Pair, str]]:
    """(class that would go, class it would join, why), as slugs."""
    slugs = {tuple(part.replace("_", " ") for part in pair): pair for pair in classes}
    for gone, kept, why in near_identical(slugs):
        if levels == 1:
            yield slugs[gone], slugs[kept[0], kept[0]], why.removeprefix("plants: ")
        else:
            yield slugs[gone], (slug(kept[0]), slug(kept[1])), why


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
