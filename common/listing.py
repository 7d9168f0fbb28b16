"""Whole lists of class names: what recurs in a list tells plants from diseases where the tables do not.

Endings that recur over many beginnings are diseases; beginnings that recur over many endings are plants.
`taxonomy.parse_class_names` is the public entry.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import log2
from typing import NamedTuple

from common import crops, naming, spelling
from common.naming import Reading
from common.spelling import Token

Words = tuple[str, ...]
_PLANT = {"start": 0.98, "last": 0.95, "borrowed": 0.93, "abbreviation": 0.85, "middle": 0.8}
_WHERE = {
    "start": "known plant first",
    "last": "known plant last",
    "borrowed": "plant told by the disease's name",
    "abbreviation": "plant told by the abbreviation",
    "middle": "known plant in the middle",
}


class Answer(NamedTuple):
    """Species and disease in words or None, confidence 0..1, reason in plain words."""

    species: str | None
    disease: str | None
    confidence: float
    reason: str


class ListFacts:
    """What recurs in one list: endings per beginning, beginnings per ending, plants, names without a disease."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self.endings: dict[Words, set[Words]] = defaultdict(set)
        self.beginnings: dict[Words, set[Words]] = defaultdict(set)
        self.plants: Counter[str] = Counter()
        self.bare = Counter[bool]()
        for reading in readings:
            words = main_words(reading.tokens)
            if reading.species:
                self.plants[reading.species] += 1
                if reading.quality == "none":
                    self.bare[words[-1:] != () and words[-1] in crops.ORGANS] += 1
                if reading.disease and reading.how in {"start", "last"}:
                    self.beginnings[tuple(reading.disease.split())].add((reading.species,))
            if reading.how != "start":
                for k in range(1, min(5, len(words))):
                    self.endings[words[:k]].add(words[k:])
                    self.beginnings[words[k:]].add(words[:k])

    def only_plant(self) -> str | None:
        """The one plant of the list, where at least three names give it and no name gives another."""
        return next(iter(self.plants)) if len(self.plants) == 1 and self.plants.total() >= 3 else None


def main_words(tokens: Iterable[Token]) -> Words:
    """Words outside brackets."""
    return tuple(t.word for t in tokens if not t.bracketed)


def answer(reading: Reading, facts: ListFacts) -> Answer:
    """One reading in the light of its list."""
    words = main_words(reading.tokens)
    if not words:
        return Answer(None, None, 0.0, "the name holds no words that tell a plant or a disease")
    stranger = _stranger_first(reading, facts)
    if reading.species and not stranger:
        return _with_plant(reading, facts)
    return _without_plant(reading, facts, stranger)


def _stranger_first(reading: Reading, facts: ListFacts) -> int:
    """Words of an unknown plant before a known one ("quandong___peach_leaf_curl"); 0 where there is none."""
    if reading.how not in {"middle", "last", "borrowed", "abbreviation"}:
        return 0
    tokens = [t for t in reading.tokens if not t.bracketed]
    count = next((i for i, t in enumerate(tokens) if spelling.is_known(t.word) or _is_known(t.word)), len(tokens))
    if not 0 < count < len(tokens):
        return 0
    kind = tokens[count].word in crops.KINDS and tokens[count].brk < 2 and count + 1 < len(tokens)
    if reading.how == "middle" and kind:
        return count + 1
    recurs = len(facts.endings[tuple(t.word for t in tokens[:count])]) >= 2
    return count if tokens[count].brk == 2 or recurs else 0


def _is_known(word: str) -> bool:
    """Known as anything but a part of a plant's name (where a whole plant was named, nobody asks)."""
    return spelling.is_disease_word(word) or spelling.is_known(word, plants=False)


def _with_plant(reading: Reading, facts: ListFacts) -> Answer:
    confidence, reason = _PLANT[reading.how], _WHERE[reading.how]
    if reading.how == "abbreviation" and len(reading.tokens) == 1:
        confidence = 0.7
    disease = reading.disease
    words = main_words(reading.tokens)
    parted = any(t.brk == 2 for t in reading.tokens)
    if reading.quality == "none":
        organ = words[-1] in crops.ORGANS
        same = facts.bare[organ] >= 3
        disease = "healthy"
        confidence *= (0.94 if same else 0.86) if organ else (0.8 if same else 0.66)
        reason += ", and no disease named" + (", as in others of this list" if same else "")
    elif reading.quality == "unknown":
        recurs = len(facts.beginnings[tuple((disease or "").split())]) >= 2 or facts.plants[reading.species or ""] >= 3
        confidence *= 0.94 if parted and recurs else 0.92 if recurs else 0.9 if parted else 0.82
        reason += ", then words that are in no table"
    elif reading.quality == "partly":
        tail = (disease or "").split()[-1]
        confidence *= 0.95 if _is_known(tail) else 0.9
        reason += ", a disease with a word that is in no table"
    else:
        reason += {"healthy": ", healthy", "sick": ", sick of something"}.get(reading.quality, ", known disease")
    if reading.fixed:
        confidence -= 0.03
        reason += "; a typo was mended"
    return Answer(reading.species, disease, round(confidence, 3), reason)


def _without_plant(reading: Reading, facts: ListFacts, stranger: int) -> Answer:
    tokens = [t for t in reading.tokens if not t.bracketed]
    words = tuple(t.word for t in tokens)
    unknown = [i for i, w in enumerate(words) if not _is_known(w)]
    split = None
    if unknown or stranger:
        split = _split(tokens, unknown, facts, stranger)
    if split:
        species, rest, confidence, reason = split
        disease, quality = naming.disease_name(list(rest))
        if quality in {"none", "unknown"}:
            confidence -= 0.15
        if disease is None:
            disease, reason = "healthy", reason + ", and no disease named"
        return Answer(" ".join(species), disease, round(max(confidence, 0.1), 3), reason)
    only = facts.only_plant()
    if only:
        reason = f"the name does not say the plant; every name of this list that does says {only}"
        return Answer(only, reading.disease, 0.5, reason)
    return Answer(None, reading.disease, 0.2, "the name does not say the plant")


def _split(
    tokens: list[Token], unknown: list[int], facts: ListFacts, stranger: int
) -> tuple[Words, Words, float, str] | None:
    """(plant words, other words, confidence, reason) of a name whose plant is in no table; None where it has none."""
    words = tuple(t.word for t in tokens)
    idle = crops.HEALTHY | crops.SICK
    first = next((i for i, w in enumerate(words) if w not in idle), 0)
    link = next((i for i, w in enumerate(words) if i and w in {"on", "of", "in"}), None)
    if link and any(i > link for i in unknown) and not any(i < link for i in unknown):
        plant = tuple(w for w in words[link + 1 :] if w not in crops.ORGANS)
        return plant, words[:link], 0.75, "unknown plant behind 'on' or 'of'"
    if not stranger and first not in unknown:
        tail = len(words) - sum(w in crops.ORGANS for w in words[-1:])
        count = next((n for n in range(tail) if tail - 1 - n not in unknown), tail)
        body = words[: tail - count]
        complete = body and body[-1] in crops.HEADS | crops.PESTS | crops.HEALTHY
        complete = complete and not spelling.GENUS.match(body[-1])  # "Cercospora fictiva" is one Latin name
        if count and complete and len(unknown) == count:
            return words[tail - count : tail], body, 0.6, "known disease first, then an unknown plant"
        return None
    rest = words[first:]
    brk = next((i for i in range(1, len(rest)) if tokens[first + i].brk == 2), 0)
    known = next((i for i, w in enumerate(rest) if i and (_is_known(w))), len(rest))
    k = brk or stranger or max(range(1, len(rest) + 1), key=lambda n: (_score(rest, n, known, facts), -n))
    plant, others = rest[:k], words[:first] + rest[k:]
    again = next((n for n in range(1, k // 2 + 1) if 2 * n == k and plant[:n] == plant[n:]), k)
    plant = plant[:again]  # "quandong quandong rust"
    while others[: len(plant)] == plant:
        others = others[len(plant) :]
    many, wide = len(facts.endings[plant]), len(facts.beginnings[rest[k:]]) if k < len(rest) else 0
    confidence = 0.8 if brk else 0.68
    confidence += 0.07 * (many >= 2) + 0.05 * (many >= 3) + 0.03 * (wide >= 2)
    if words == rest == plant and len(plant) == 1:  # one bare word: a plant, a pest or a code, nobody can tell
        if len(plant[0]) <= 5 or many < 2:
            return None
    reason = "unknown plant before a strong separator" if brk else "unknown plant before the disease"
    if many >= 2:
        reason += f"; it begins {many} kinds of names"
    if wide >= 2:
        reason += f"; the ending follows {wide} plants"
    return plant, others, confidence, reason


def _score(words: Words, n: int, known: int, facts: ListFacts) -> float:
    """How well a list backs words[:n] as a plant: recurring on both sides, disease words on the right side."""
    ending = words[n:]
    score = 2.0 * (n == known) - 2.0 * max(0, n - known)
    score += 1.5 * log2(1 + len(facts.endings[words[:n]])) if ending else 0.0
    return score + (1.5 * log2(1 + len(facts.beginnings[ending])) if ending else 0.0)
