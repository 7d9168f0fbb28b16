"""Class folders of whole sources: which folders of a path name the class, which name the split,
and which plant the folders around a class folder mean.

A class folder is read with the words that it and the folders above it hold; the plant comes from
the class folder, else the nearest folder above it that names a known plant, else the name that a
person gave the source, else its neighbours, else the title of the source's own folder.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from common.organize.names import crops, naming
from common.organize.names.parse import ParsedName, parse_class_names
from common.organize.names.spelling import GENUS, LATIN_END, is_known, singular, tokenise

Parts = tuple[str, ...]  # names of the folders from below the source down to one
SPLITS = ("train", "val", "test")
GUESSED = ("neighbours", "title")  # where a plant is from that a person should confirm


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SPLIT = {
    word: number
    for number, words in enumerate(
        (
            "train training trainset traindata trn traning",
            "val valid validation validate dev eval valset",
            "test testing testset testdata tst holdout",
        )
    )
    for word in words.split()
}
# Words that tell neither plant nor disease where a folder's name holds nothing else.
_IDLE = (crops.NOISE - {"cereal", "cereals", "vegetable", "vegetables"}) | _words(
    """
imageset mini small large full all part parts split splits dir folder folders file files copies
untitled zip zipped archive archives backup tmp temp misc stuff my our preprocessed processed
unprocessed originals colored coloured grayscaled greyscale gray grey rgb segmentation rotated
rotate flipped mirrored scaled resize crops balanced imbalanced unbalanced clean cleaned cleansed
filtered merged combined complete augmentation augmentations unaugmented white black with without
annotation annotations annotated annotate and or in of for from to on by size px pixel pixels
multiclass multi binary single collection collections database databases repository repo project
projects main master public private download downloads research paper comprehensive classification
classifier recognition detection detector identification diagnosis deep learning ml ai cnn cv
kaggle mendeley roboflow github v version wo w no non aug leaf leaves leafs leave plant plants crop
fruit fruits disease diseases species agriculture agricultural different kinds kind category
categories smartphone mobile camera canon nikon dslr drone uav
"""
)
# Copies of one leaf that collections keep in sibling folders, and the words that name them.
VERSIONS = ("original", "color", "grayscale", "segmented", "augmented", "rotated")
_VERSION_WORDS = {
    word: number
    for number, words in enumerate(
        (
            "original originals raw unaugmented",
            "color colour colored coloured rgb",
            "grayscale greyscale grayscaled gray grey",
            "segmented segmentation masked",
            "augmented augmentation augmentations aug augment",
            "rotated flipped mirrored",
        )
    )
    for word in words.split()
}
_NOT_PLANT = re.compile(
    r"\b(background|backgrounds|soil|negative|negatives|no (leaf|leaves|plant|plants)|"
    r"(without|non|not|not a) (leaf|leaves|plant|plants)|nonplant|nothing|empty|noise|random)\b"
)
_WITHOUT = re.compile(r"\b(without|no) (leaf|leaves|plant|plants)\b")
_NEGATED = re.compile(r"\b(not|non|no) \w")
# Words that name a disease, a pest or a state. Words beside a plant without one of them may as well
# name a variety, so that a person is asked.
_HEADS = (
    crops.HEADS
    | crops.PESTS
    | crops.PATHOGENS
    | crops.SIGNS - {"yellow", "purple", "dry", "weed", "weeds", "top", "hole", "holes"}
    | crops.HEALTHY
    | crops.SICK
    | crops.ELSEWHERE
    | _words("drop fall lesion rot anomalous")
)
# Plants that stand for a group; a crop of the group is the better answer.
_GROUPS = {"citrus", "gourd", "pepper", "bean", "millet", "berry", "palm", "pulses", "cucurbit"}


@dataclass(frozen=True)
class FolderReading:
    """A class folder as read.

    Attributes:
        species, disease: lower-case words, None where the path does not say.
        confidence: 0..1; a person is asked below `parse.ASK_BELOW`.
        reason: in plain words.
        crop_from: "" where the class folder names its plant, else what does: "folder", "name",
            "neighbours" or "title".
        not_plant: whether the name tells of pictures without a plant.
    """

    species: str | None
    disease: str | None
    confidence: float
    reason: str
    crop_from: str = ""
    not_plant: bool = False


@functools.lru_cache(maxsize=100_000)
def words_of(segment: str) -> tuple[str, ...]:
    """Words of one folder's name, without numbers and single letters."""
    found = (t.word for t in tokenise(segment, mend=False))
    return tuple(w for w in found if not w.isdigit() and (len(w) > 1 or not w.isascii()))


@functools.lru_cache(maxsize=100_000)
def split_of(segment: str) -> int:
    """Index into SPLITS of a folder whose name says a split and nothing else, or -1."""
    words = words_of(segment)
    named = {_SPLIT[w] for w in words if w in _SPLIT}
    if not named or not all(w in _SPLIT or w in _IDLE for w in words):
        return -1
    return max(named)


@functools.lru_cache(maxsize=100_000)
def tells_nothing(segment: str) -> bool:
    """Whether a folder's name holds only words of collections, pictures and splits, or numbers."""
    words = words_of(segment)
    if {"leaf", "folder"} <= set(words) or _WITHOUT.search(" ".join(words)):
        return False  # a pest, pictures without a plant
    return all(w in _IDLE or w in _SPLIT for w in words)


@functools.lru_cache(maxsize=100_000)
def plants_in(segment: str) -> frozenset[str]:
    """Known plants that a folder's name holds, other than in the names of diseases."""
    parts = naming.read(segment)
    found = {name for _, _, name in naming.find_plants(list(parts.tokens))}
    known = {parts.species} if parts.species and parts.how != "abbreviation" else set()
    return frozenset((found | known) - {None}) if known else frozenset()


def _tells_disease(segment: str) -> bool:
    known = naming.read(segment).quality in {"healthy", "sick", "known"}
    return known and not tells_nothing(segment)


def splits(paths: Iterable[Parts]) -> dict[Parts, tuple[int, Parts]]:
    """The split of each folder, and its path without the folders and words that name a split.

    `Weed_train` beside `Weed_test` is one class of two splits.
    """
    paths = list(paths)
    ends: dict[Parts, set[int]] = defaultdict(set)
    for path in paths:
        for i, segment in enumerate(path):
            rest, number = _split_end(segment)
            if rest and number >= 0:
                ends[(*path[:i], rest)].add(number)
    found = {}
    for path in paths:
        number, kept = -1, []
        for i, segment in enumerate(path):
            whole = split_of(segment)
            rest, end = _split_end(segment)
            if whole >= 0:
                number = whole
            elif end >= 0 and len(ends[(*path[:i], rest)]) > 1:
                number = end
                kept.append(rest)
            else:
                kept.append(segment)
        found[path] = number, tuple(kept)
    return found


def class_path(path: Parts) -> str:
    """A class folder's path without the folders that tell nothing, unless none would be left."""
    kept = [s for s in path if not tells_nothing(s) or not words_of(s)]
    return "/".join(kept or path[-1:])


def version_of(path: Parts) -> int:
    """Index into VERSIONS of what a folder's path names last, or -1 where it names none; "without
    augmentation" is original.
    """
    words = [word for segment in path for word in words_of(segment)]
    for before, word in reversed(list(pairwise(["", *words]))):
        if word in _VERSION_WORDS:
            without = word.startswith("aug") and before in {"without", "wo", "no", "non"}
            return 0 if without else _VERSION_WORDS[word]
    return -1


def _split_end(segment: str) -> tuple[str, int]:
    """A name's beginning and the split that its last word tells: "Weed_train" -> ("Weed", 0)."""
    match = re.fullmatch(r"(.*\w)[\s_-]+([A-Za-z]+)", segment)
    number = _SPLIT.get(match[2].lower(), -1) if match else -1
    return (match[1], number) if match and number >= 0 else ("", -1)


def read_folders(
    paths: Sequence[Parts], title: str = "", name: str = "", said: Sequence[str] = ()
) -> list[FolderReading]:
    """Read the class folders of one source.

    Args:
        paths: names of the folders below the source down to the class folder; splits are out.
        title: the source folder's own name; name: what a person called the source.
        said: the plant that a person said each path shows where it names none, whatever the tables
            hold, or "".
    """
    known = naming.read(name).species or ""
    plants = [plant or known for plant in said or [""] * len(paths)]
    readings = _Source([_telling(p) for p in paths], title).read(plants)
    codes = Counter(path[:-1] for path in paths if path and not words_of(path[-1]))
    return [
        _checked(path, reading, path[:-1] in codes and not words_of(path[-1]) and codes[path[:-1]])
        for path, reading in zip(paths, readings, strict=True)
    ]


def _telling(path: Parts) -> Parts:
    """A path without the folders that tell nothing, and of a whole taxonomy genus and species."""
    return tuple(_taxon(segment) or segment for segment in path if not tells_nothing(segment))


def _taxon(segment: str) -> str:
    """Genus and species of a name that begins with their kingdom, else ""."""
    words = words_of(segment)
    return " ".join(words[-2:]) if words[:1] == ("plantae",) and len(words) > 2 else ""


def _checked(path: Parts, reading: FolderReading, codes: int) -> FolderReading:
    """A reading, without the plant where the name tells of none, and with doubt where folders
    beside each other are told apart by numbers and letters alone (codes: how many).
    """
    telling = (s for s in reversed(path) if not tells_nothing(s))
    last = next(telling, next((s for s in reversed(path) if words_of(s)), ""))
    text = " ".join(words_of(last))
    bare = _WITHOUT.search(" ".join(words_of(path[-1]))) if path else None
    if bare or (_NOT_PLANT.search(text) and not plants_in(last)):
        return FolderReading(None, None, 0.0, "pictures without a plant?", not_plant=True)
    if _NEGATED.search(text) and naming.read(last).quality not in {"healthy", "sick"}:
        return replace(reading, confidence=min(reading.confidence, 0.5), reason="a negation?")
    if codes > 1:
        reason = f"'{path[-1]}' is a code; {reading.reason}"
        return replace(reading, confidence=min(reading.confidence, 0.5), reason=reason)
    return reading


class _Name(NamedTuple):
    """What the parser reads for a folder, where the folder's class lies, where the plant in `text`
    is from ("" for the class folder itself), and what a person should know about it.
    """

    text: str
    parent: Parts
    crop_from: str = ""
    note: str = ""


class _Source:
    """One source's folders, read together."""

    def __init__(self, paths: list[Parts], title: str) -> None:
        self.paths = paths
        self.title = plants_in(title)
        self.beside: dict[Parts, set[str]] = defaultdict(set)
        for path in paths:
            for i in range(len(path)):
                self.beside[path[:i]].add(path[i])

    def read(self, said: Sequence[str]) -> list[FolderReading]:
        """Read every folder, in the order given; said: the plant of each that names none, or ""."""
        names = [self._name(path) for path in self.paths]
        parsed = parse_class_names([name.text for name in names])
        taxa = _taxa(names, parsed)
        neighbours: dict[Parts, set[str]] = defaultdict(set)
        for name, p in zip(names, parsed, strict=True):
            if _gives_plant(p) and not naming.read(name.text).fixed:
                neighbours[name.parent].add(p.species or "")
        crop = [
            self._crop(name, p, neighbours[name.parent], plant) if p.raw not in taxa else ("", "")
            for name, p, plant in zip(names, parsed, said, strict=True)
        ]
        texts = [f"{c[0]}/{name.text}" for c, name in zip(crop, names, strict=True) if c[0]]
        again = dict(zip(texts, parse_class_names(texts), strict=True))
        readings = []
        for name, p, (plant, told) in zip(names, parsed, crop, strict=True):
            if p.raw in taxa:
                readings.append(FolderReading(taxa[p.raw], "healthy", 0.7, "a plant's name"))
                continue
            doubt = 1.0
            if plant:
                p = again[f"{plant}/{name.text}"]
            reason = f"{p.reason}; the plant is told by the {told}" if told else p.reason
            if name.note or _vague(p.disease):
                doubt = 0.8
                reason += f"; {name.note or 'a variety, a state or a disease?'}"
            confidence = min(doubt, p.confidence)
            told = told or name.crop_from
            readings.append(FolderReading(plant or p.species, p.disease, confidence, reason, told))
        return readings

    def _crop(self, name: _Name, p: ParsedName, neighbours: set[str], said: str) -> tuple[str, str]:
        """The plant that a folder takes from around it, and from what: "name", "neighbours" or
        "title"; ("", "") where it needs none.
        """
        own = _gives_plant(p) and p.species not in _GROUPS and not naming.read(name.text).fixed
        strong = p.species and p.confidence >= 0.8 and re.search(r"__|/| - ", name.text)
        if not name.text or own or name.crop_from or (strong and p.species not in _GROUPS):
            return "", ""
        if said:
            return said, "name"
        if len(self.title) == 1 and neighbours <= _GROUPS:
            return next(iter(self.title)), "title"
        if len(neighbours) == 1:
            return next(iter(neighbours)), "neighbours"
        return "", ""

    def _name(self, path: Parts) -> _Name:
        """What the parser reads for a folder: its own name, with the plant above it where it has
        none.
        """
        if not path:
            return _Name("", ())
        last, above = path[-1], path[:-1]
        plants, quality = plants_in(last), naming.read(last).quality
        crop = next((i for i in reversed(range(len(above))) if plants_in(above[i])), -1)
        state = next((i for i in reversed(range(len(above))) if _tells_disease(above[i])), -1)
        variety = f"'{last}' is taken for a variety or a place"
        told = plants_in(above[crop]) if crop >= 0 else frozenset[str]()
        plant = next(iter(told)) if len(told) == 1 else (above[crop] if told else "")
        if plants and quality in {"none", "unknown"} and state >= 0:
            if state > crop >= 0:  # Tomato/rust/cherry
                return _Name(f"{plant}/{above[state]}", path[:state], "folder", variety)
            return _Name(f"{last}/{above[state]}", path[:state])  # diseased/tomato
        if plants and (not told or plants & told):
            return _Name(last, path[:-1], "folder" if told else "")
        if plants and plants <= _GROUPS and len(told) == 1:  # Lemon/Citrus canker
            return _Name(f"{plant}/{last}", path[:-1], "folder", f"the folder above says {plant}")
        if plants:
            return _Name(last, path[:-1], "", f"the folder above says {above[crop]}")
        tells = _tells_disease(last) or quality == "partly"
        if told:
            if state > crop and not tells:
                return _Name(f"{plant}/{above[state]}", path[:state], "folder", variety)
            if state == crop and naming.read(above[crop]).quality == "known" and not tells:
                return _Name(above[crop], path[:crop], "", variety)
            return _Name(f"{plant}/{last}", path[: crop + 1], "folder")
        if above and self._names_plants(above[:-1]) and not _tells_disease(above[-1]):
            note = f"'{above[-1]}' stands beside known plants"
            return _Name(f"{above[-1]}___{last}", path[:-1], "folder", note)
        if state >= 0 and state == len(above) - 1 and not tells:
            return _Name(above[state], path[:state], "", variety)
        return _Name(last, path[:-1])

    def _names_plants(self, parent: Parts) -> bool:
        """Whether at least half of the folders beside each other name known plants."""
        known = sum(bool(plants_in(segment)) for segment in self.beside[parent])
        return known >= 2 and known * 2 >= len(self.beside[parent])


def _gives_plant(p: ParsedName) -> bool:
    return p.species is not None and naming.plant_of(tuple(p.species.split())) is not None


def _vague(disease: str | None) -> bool:
    """Whether words beside a plant could name a variety or a state as well as a disease."""
    words = (disease or "").split()
    return disease is not None and not any(
        w in _HEADS or singular(w) in _HEADS or GENUS.match(w) for w in words
    )


def _tells_plant_alone(p: ParsedName) -> bool:
    return p.disease in {None, "healthy"} or _vague(p.disease)


def _taxa(names: list[_Name], parsed: list[ParsedName]) -> dict[str, str]:
    """Names that are those of species, in a list of nothing else: name -> species. Latin ones, or
    such as "fire lily" where no name tells a disease.
    """
    found = {}
    for name in {n.text for n in names if n.text}:
        words = words_of(name)
        latin = len(words) == 2 and any(LATIN_END.search(w) for w in words)
        known = naming.plant_of(words)
        if latin and (known or not any(is_known(w, plants=False) for w in words)):
            found[name] = known or " ".join(words)
    if len(found) * 5 >= 4 * len({n.text for n in names}) and len(found) > 2:
        return found
    plants = sum(map(_gives_plant, parsed))
    if plants < 2 or len(parsed) < 5 or not all(map(_tells_plant_alone, parsed)):
        return {}
    found = {}
    for p in parsed:
        read = naming.read(p.raw)
        words = tuple(t.word for t in read.tokens if not t.bracketed)
        if words and (read.how == "last" or not p.species or words[-1] in crops.KINDS):
            found[p.raw] = " ".join(words)
    return found
