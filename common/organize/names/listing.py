"""Whole lists of class names: what recurs in a list tells plants from diseases where the tables do
not.

Endings that recur over many beginnings are diseases; beginnings that recur over many endings are
plants. `parse.parse_class_names` is the public entry.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from common.organize.names import crops, naming, spelling
from common.organize.names.naming import NameParts
from common.organize.names.spelling import Token

Words = tuple[str, ...]
STATES = crops.HEALTHY | crops.SICK
_NOT_FIRST = (
    STATES
    | crops.LINKS
    | crops.ORGANS
    | crops.PESTS
    | crops.PATHOGENS
    | {"and", "no", "not", "non", "un"}
)
_BEGINS_DISEASE = crops.MODIFIERS | crops.ORGANS | crops.PESTS
_ENDS_PLANT = crops.PLANT_ENDS | crops.KINDS | crops.ORGANS
_ILL = (
    crops.HEADS
    | crops.PESTS
    | crops.PATHOGENS
    | crops.ABBREVIATIONS.keys()
    | {"mosaic", "curl", "streak", "lesion"}
)


class NameReading(NamedTuple):
    """Species and disease in words or None, confidence 0..1, and the reason in plain words."""

    species: str | None
    disease: str | None
    confidence: float
    reason: str


@lru_cache(maxsize=200_000)
def quality(words: Words) -> str:
    """How `naming.disease_name` judges words left beside a plant: healthy, sick, known, partly,
    unknown, none.
    """
    return naming.disease_name(list(words))[1]


def main_words(tokens: Iterable[Token]) -> Words:
    """Words outside brackets."""
    return tuple(t.word for t in tokens if not t.bracketed)


def turned(words: Words) -> Words:
    """Words with the healthy or sick words in front put behind: "healthy tomato leaf" -> "tomato
    leaf healthy".
    """
    count = next((i for i, w in enumerate(words) if w not in STATES), 0)
    return words[count:] + words[:count]


class ListFacts:
    """What recurs in one list: endings per beginning, beginnings per ending, plants, names without
    a disease.

    learned: phrases in no table that the list shows to be plants -> in how many kinds of names.
    """

    def __init__(self, names: Iterable[NameParts]) -> None:
        self.endings: dict[Words, set[Words]] = defaultdict(set)
        self.beginnings: dict[Words, set[Words]] = defaultdict(set)
        self.plants: Counter[str] = Counter()
        self.bare = Counter[bool]()
        self.bracketed: dict[Words, set[Words]] = defaultdict(set)
        self.names = self.ill = 0
        for parts in names:
            words = turned(main_words(parts.tokens))
            self.names += 1
            aside = tuple(t.word for t in parts.tokens if t.bracketed)
            if aside:
                self.bracketed[aside].add(words)
            self.ill += parts.quality in {"healthy", "sick"} or any(w in _ILL for w in words)
            if parts.species:
                self.plants[parts.species] += 1
                if parts.quality == "none":
                    self.bare[words[-1:] != () and words[-1] in crops.ORGANS] += 1
                if parts.disease and parts.how in {"start", "last"}:
                    self.beginnings[tuple(parts.disease.split())].add((parts.species,))
            for k in range(1, min(5, len(words) + 1)):
                self.endings[words[:k]].add(words[k:] or aside)
                if parts.how != "start":
                    self.beginnings[words[k:]].add(words[:k])
        self.learned = self._learn()

    def is_disease(self, aside: Words) -> bool:
        """Whether words in brackets are a disease: known, or written behind several names."""
        return bool(aside) and (
            quality(aside) in {"healthy", "sick", "known"} or len(self.bracketed[aside]) >= 2
        )

    def plants_only(self) -> bool:
        """Whether the list names plants and next to no diseases, so that an unknown name is a plant
        too.
        """
        return self.bare[False] >= 2 and self.names >= 6 and self.ill <= 0.15 * self.names

    def find_learned(self, words: Words) -> tuple[int, int] | None:
        """(start, end) of the longest learned plant at the beginning of words or right behind "on",
        "of" or "in".
        """
        places = [0, *(i + 1 for i, w in enumerate(words) if w in {"on", "of", "in"})]
        for start in places:
            for end in range(min(start + 4, len(words)), start, -1):
                if words[start:end] in self.learned:
                    return start, end
        return None

    def _learn(self) -> dict[Words, int]:
        """Phrases with endings that stand on their own as diseases; longer ones before the shorter
        they contain.
        """
        learned: dict[Words, int] = {}
        for phrase in sorted((p for p, ends in self.endings.items() if len(ends) > 1), key=len):
            if not _may_be_plant(phrase):
                continue
            ends = self.endings[phrase]
            if len({_inner(end)[:1] for end in ends}) < 2:
                continue  # always followed by the same word: that word belongs to it
            strict = naming.is_plant(phrase[0]) or any(
                phrase[:k] in learned for k in range(1, len(phrase))
            )
            full = sum(self._stands_alone(end, strict) for end in ends)
            if full >= 2 and full * 2 >= len(ends):
                learned[phrase] = len(ends)
        return learned

    def _stands_alone(self, end: Words, strict: bool) -> bool:
        """Whether an ending is a disease in itself. strict: not where the word before could be part
        of its name.
        """
        if not end or all(w in crops.ORGANS for w in end) or quality(end) in {"healthy", "sick"}:
            return True
        known = quality(end) == "known"
        if strict:
            return known and end[0] in _BEGINS_DISEASE and len(end) > 1
        return known or len(self.beginnings[end]) >= 3


def _inner(words: Words) -> Words:
    """Words without organs in front: "leaf rust" -> "rust"."""
    return words[next((i for i, w in enumerate(words) if w not in crops.ORGANS), len(words)) :]


def _may_be_plant(phrase: Words) -> bool:
    """Whether a phrase in no table could name a plant: it holds a word that belongs to no disease,
    in a fit place.
    """
    if phrase[0] in _NOT_FIRST or any(w in crops.PATHOGENS or w in STATES for w in phrase):
        return False
    if naming.plant_of(phrase) or naming.same_plant(phrase):
        return False
    last, heads = phrase[-1], (crops.HEADS | crops.SIGNS) - crops.COLOURS
    if any(w in heads for w in phrase[:-1]) or last in crops.LINKS or last in crops.LEAFY:
        return False
    if len(phrase) == 1:
        return not spelling.is_known(last)
    if naming.is_plant(phrase[0]) and naming.is_plant(last) and last not in crops.KINDS:
        return False  # "corn maize", "citrus lemon"
    return (not is_known(last) and not naming.is_plant(last)) or (
        (naming.is_plant(last) or last in _ENDS_PLANT) and last not in heads | crops.PESTS
    )


def is_known(word: str) -> bool:
    """Whether a word is known as anything but a part of a plant's name (where a whole plant was
    named, nobody asks).
    """
    return spelling.is_disease_word(word) or spelling.is_known(word, plants=False)
