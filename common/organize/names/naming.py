"""One class name at a time: known words -> plant and disease, as far as one name alone tells.

Each step is an ordered table of rules, of which the first that holds decides.
`parse.parse_class_names` reads whole lists with these.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from common.organize.names import crops
from common.organize.names.spelling import (
    GENUS,
    KNOWN,
    LATIN_END,
    PLANT_WORDS,
    Token,
    is_disease_word,
    singular,
    tokenise,
)

_PARTS = {frozenset(phrase) for phrase in crops.PLANTS if len(phrase) > 1}
_ONLY_PLANT = PLANT_WORDS - crops.ORGANS - crops.DISEASE_WORDS
_FULL = crops.HEADS | crops.PESTS
_COMPLETE = frozenset(singular(w) for w in _FULL) - {"yellow"}
_DISEASE = {"disease", "diseases"}
_PARTS_AND_LINKS = crops.ORGANS | crops.LINKS
_LINKING = crops.LINKS | {"and"}
_AFTER_SICK = _PARTS_AND_LINKS | crops.SICK
_NO_PART = crops.WITHOUT_ORGAN | crops.SICK | {"with", "by"}  # behind an organ that says nothing
_BEFORE_DISEASE = _FULL | crops.ORGANS | {"curl", "hole"}
_NAMED = crops.HEADS | crops.SIGNS
_TAILS = crops.IDLE_TAILS - _DISEASE
_FULL_OR_SIGNS = _FULL | crops.SIGNS
_AFFECTED = {"affected", "infected", "infested"}
_TOLD = _FULL | crops.SIGNS | crops.HEALTHY | (crops.SICK - _DISEASE)
_BESIDE = _PARTS_AND_LINKS | {"and"}
_IDLE = crops.HEALTHY | crops.SICK | crops.ORGANS | crops.LINKS | {"no", "not", "non", "un"}
_PLANT_WORDS_ONLY = PLANT_WORDS - _IDLE
_NOT_SICK = re.compile(
    r"\b(no|non|not|un|without) ?(disease|diseased|diseases|infected|affected)\b|\bdisease free\b"
)
_NOT_HEALTHY = re.compile(r"\b(no|non|not|un) ?(healthy|health|normal)\b")
# Two names of one disease in a row -> the first of them.
_TWO_NAMES = {
    (*one.split(), *other.split()): one.split()
    for same in crops.SAME_DISEASE
    for one in same
    for other in same
    if one.split()[-1] != other.split()[-1]
}
Plant = tuple[int, int, str]  # first token, token behind the last, name


class NameParts(NamedTuple):
    """What one name alone says.

    Attributes:
        species: known plant, or None.
        how: where it was found: start, last, middle, borrowed (told by the disease's name),
            abbreviation, or "" without a plant.
        tokens: all words but idle ones.
        disease: words, or None.
        quality: of the disease: healthy, sick, known, partly (known), unknown, none.
        fixed: a typo was corrected.
    """

    species: str | None
    how: str
    tokens: tuple[Token, ...]
    disease: str | None
    quality: str
    fixed: bool


# region the plant


@lru_cache(maxsize=100_000)
def plant_of(words: tuple[str, ...]) -> str | None:
    """The known plant that exactly these words name, in singular or plural, or None."""
    return crops.PLANTS.get(words) or crops.PLANTS.get(tuple(map(_base, words)))


def _base(word: str) -> str:
    return word if word in PLANT_WORDS else singular(word)


def same_plant(words: tuple[str, ...]) -> bool:
    """Whether words only repeat or turn round those of one known plant: "pepper bell bell"."""
    return frozenset(words) in _PARTS


def is_plant(word: str) -> bool:
    """Whether one word names a known plant."""
    return plant_of((word,)) is not None


def is_epithet(word: str) -> bool:
    """Whether a word in no table looks like the second word of a Latin name."""
    return len(word) >= 4 and word not in KNOWN and LATIN_END.search(word) is not None


def find_plants(tokens: list[Token]) -> list[Plant]:
    """All known plants, the longest phrase first at each place, left to right."""
    found: list[Plant] = []
    i = 0
    while i < len(tokens):
        hit = next(filter(None, (_plant_at(tokens, i, n) for n in (3, 2, 1))), None)
        found += [hit] if hit else []
        i = hit[1] if hit else i + 1
    return found


def _plant_at(tokens: list[Token], i: int, n: int) -> Plant | None:
    """The plant that the n words from i on name."""
    if i + n > len(tokens):
        return None
    words, following = tuple(t.word for t in tokens[i : i + n]), tokens[i + n : i + n + 1]
    plant = plant_of(words)
    if not plant and n == 2 and (tokens[i + 1].brk == 1 or tokens[i + 1].bracketed):
        plant = crops.PLANTS.get((_base(words[1]), _base(words[0])))  # "Pepper, bell"
    if not plant:
        return None
    genus = n == 1 and words in crops.LATIN and following and not following[0].brk
    return i, i + n + bool(genus and is_epithet(following[0].word)), plant  # "Musa acuminata"


def _choose(tokens: list[Token], plants: list[Plant]) -> tuple[Plant, str]:
    """The plant that the name is about, and how it was found."""
    words, end = [t.word for t in tokens], len(tokens)
    first = (i for i, w in enumerate(words) if w not in _IDLE or w in _PLANT_WORDS_ONLY)
    lead = next(first, 0)
    while end > 0 and words[end - 1] in _IDLE:
        end -= 1
    plants = [p for p in plants if not tokens[p[0]].bracketed] or plants
    start = next((p for p in plants if p[0] == lead), None)
    later = (
        next((p for p in plants if p[0] and words[p[0] - 1] in {"on", "of", "in"}), None)
        or next((p for p in plants if tokens[p[0]].brk == 2), None)
        or next((p for p in plants if p[1] >= end), None)
    )
    doubtful = start and words[start[0]] in crops.DISEASE_WORDS and later not in (None, start)
    if start and not doubtful:
        return start, "start"
    return (later, "last") if later else (plants[0], "middle")


def _swallow(tokens: list[Token], plants: list[Plant], chosen: Plant) -> int:
    """End of the chosen plant with its repetitions right behind it: "Tomato___Tomato_mosaic",
    "pepper bell bell".
    """
    start, end, name = chosen
    words = [t.word for t in tokens]
    organ = end - start > 1 and words[end - 1] in crops.ORGANS
    if organ and end < len(words) and singular(words[end]) in crops.COMPOUND:
        return end - 1  # "curry leaf spot" is a leaf spot
    ends = {p[0]: p[1] for p in plants if p[2] == name}
    several = name.split() if " " in name else []
    while end < len(words):
        if words[end] in crops.ORGANS and end + 1 in ends:  # "banana leaf banana scab moth"
            end += 1
        elif end not in ends and words[end] not in several:
            break
        end = ends.get(end, end + 1)
    return end


def _plant(tokens: list[Token]) -> tuple[str | None, str, range]:
    """The species, how it was found, and the tokens that name it."""
    words = [t.word for t in tokens]
    borrowed = [
        (i, i + n, crops.BORROWED[phrase])
        for i in range(len(words) - 1)
        for n in (2, 3)
        if (phrase := tuple(words[i : i + n])) in crops.BORROWED
    ]
    plants = [p for p in find_plants(tokens) if not any(i <= p[0] < j for i, j, _ in borrowed)]
    if plants:
        chosen, how = _choose(tokens, plants)
        return chosen[2], how, range(chosen[0], _swallow(tokens, plants, chosen))
    implying = [plant for _, _, plant in borrowed if plant]
    implied = {crops.ABBREVIATIONS[w][0] for w in words if w in crops.ABBREVIATIONS} - {None}
    if implying:
        return implying[0], "borrowed", range(0)
    if len(implied) == 1:
        return implied.pop(), "abbreviation", range(0)
    return None, "", range(0)


# endregion

# region one name


@lru_cache(maxsize=100_000)
def read(raw: str) -> NameParts:
    """One name on its own, see `NameParts`. Raises nothing."""
    tokens = _without_folder(_without_noise(tokenise(raw)))
    if all(t.bracketed for t in tokens):
        tokens = [t._replace(bracketed=False) for t in tokens]
    species, how, taken = _plant(tokens)
    rest = [t for i, t in enumerate(tokens) if i not in taken]
    main = [t for t in rest if not t.bracketed]
    if all(t.word in _PARTS_AND_LINKS for t in main):  # the disease is in the brackets
        main = [t for t in rest if t.word not in _ONLY_PLANT] or main
    words = [t.word for t in main]
    if species and how == "start":  # its name again, behind a full disease name: a synonym begins
        again = (
            i
            for i in range(1, len(words))
            if words[i] in species.split() and words[i - 1] in _NAMED
        )
        words = words[: next(again, None)]
    disease, quality = disease_name(words)
    fixed = any(t.fixed for t in tokens if not t.bracketed)
    return NameParts(species, how, tuple(tokens), disease, quality, fixed)


def _without_noise(tokens: list[Token]) -> list[Token]:
    """Tokens without words of folders and pictures; "white background" goes with its colour."""
    words = [t.word for t in tokens]
    idle = {i for i, w in enumerate(words) if w in crops.NOISE and not _field_plant(tokens, i)}
    for i in range(1, len(words)):
        if words[i] in {"background", "backgrounds"} and words[i - 1] in crops.COLOURS:
            idle.add(i - 1)
    return [t for i, t in enumerate(tokens) if i not in idle]


def _field_plant(tokens: list[Token], i: int) -> bool:
    """Whether "field" belongs to a plant's name: "field bindweed", but not "field images" or "field
    tomato".
    """
    following = tokens[i + 1 : i + 2]
    return tokens[i].word == "field" and any(not t.brk and t.word not in KNOWN for t in following)


def _tells(tokens: list[Token]) -> bool:
    """Whether words name a plant or tell of its state."""
    return bool(find_plants(tokens)) or any(t.word in _TOLD for t in tokens)


def _without_folder(tokens: list[Token]) -> list[Token]:
    """Tokens without folders above a plant's own: "My photos/Potato/rust" -> "Potato/rust"."""
    starts = [0, *(i for i in range(1, len(tokens)) if tokens[i].brk == 2), len(tokens)]
    parts = [tokens[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    for n in range(1, len(parts) - 1):
        if plant_of(tuple(t.word for t in parts[n])) and not any(map(_tells, parts[:n])):
            tokens = tokens[starts[n] :]
            break
    return [tokens[0]._replace(brk=0), *tokens[1:]] if tokens else tokens


# endregion

# region the disease


def disease_name(words: list[str]) -> tuple[str | None, str]:
    """Words left beside the plant -> (disease in plain words or None, quality as in
    `NameParts`).
    """
    words = _expand(words)
    text = " ".join(words)
    while words and words[0] in _LINKING:
        words = words[1:]
    while words and words[-1] in _LINKING:
        words = words[:-1]
    content = [w for w in words if w not in _PARTS_AND_LINKS]
    healthy = not crops.HEALTHY.isdisjoint(content) and _FULL.isdisjoint(content)
    rules: tuple[tuple[object, tuple[str | None, str]], ...] = (
        (_NOT_SICK.search(text), ("healthy", "healthy")),
        (_NOT_HEALTHY.search(text), ("diseased", "sick")),
        (not content, (None, "none")),
        (healthy and all(map(is_disease_word, content)), ("healthy", "healthy")),
        (healthy, ("healthy", "partly")),
        (crops.SICK.issuperset(content), ("diseased", "sick")),
    )
    whole = next((result for holds, result in rules if holds), None)
    return whole or _named(_one_name(_trim_ends(_trim_front(words))))


def _named(words: list[str]) -> tuple[str | None, str]:
    """A disease's name and how well its words are known."""
    if not words:
        return None, "none"
    name = " ".join(words)
    name = "two spotted spider mite" if name == "two spotted spider mites" else name
    telling = [
        (is_disease_word(word) and word not in crops.COLOURS)  # "red" alone is no disease
        or tuple(words) in crops.BORROWED
        or (before in crops.PATHOGENS and word not in _BESIDE)  # "phytophthora ramorum"
        for before, word in zip(["", *words], words, strict=False)
    ]
    if not any(telling):
        return name, "unknown"
    idle = (w in _BESIDE or w in crops.COLOURS for w in words)
    return name, "known" if all(map(max, telling, idle)) else "partly"


def _expand(words: list[str]) -> list[str]:
    """Words with abbreviations written out, none twice in a row."""
    out: list[str] = []
    for word in words:
        for part in crops.ABBREVIATIONS[word][1].split() if word in crops.ABBREVIATIONS else [word]:
            out += [part] if out[-1:] != [part] else []
    return out


def _trim_front(words: list[str]) -> list[str]:
    while len(words) > 1 and _idle_front(words):
        words = words[1:]
    return words


def _idle_front(words: list[str]) -> bool:
    """Whether the first of two or more words says nothing about the disease."""
    first, second, rust = words[0], words[1], words[-1] == "rust"
    organ = first in crops.ORGANS
    return (
        first in crops.LINKS
        or (first in crops.SICK and not _AFTER_SICK.issuperset(words[1:]))
        or (first in {"plant", "tree", "crop"} and second not in crops.PESTS)
        or (organ and second in _NO_PART)
        or (organ and singular(second) not in crops.COMPOUND and is_disease_word(second))
        or (organ and second in {"strip", "stripe"} and rust)
        or (first in {"strip", "stripe"} and rust and len(words) > 2)
    )


def _trim_ends(words: list[str]) -> list[str]:
    while len(words) > 1 and (count := _idle_end(words)):
        words = words[:-count]
    return words


def _idle_end(words: list[str]) -> int:
    """How many of the last of two or more words say nothing about the disease."""
    last, before, many = words[-1], words[-2], len(words) > 2
    organ = last in crops.ORGANS
    affected = words[-1 - organ] in _AFFECTED and is_disease_word(before)
    rules = (
        (organ and before in crops.LINKS, 2),  # "spot on leaf"
        (len(last) == 1 and len(before) > 1 and before != "virus", 1),  # "blight d"
        (affected and (organ or last in _AFFECTED), 1),  # "caterpillar affected leaf"
        (many and last == "damage" and before in crops.ORGANS, 1),
        (organ and singular(before) in _COMPLETE, 1),  # "rust leaf"
        (many and words[-2:] == ["water", "mold"] and words[-3] in _FULL, 2),
        (last in _DISEASE and before in _BEFORE_DISEASE, 1),
        (last == "damage" and singular(before) in {"insect", "pest"}, 0),
        (last in _TAILS and before in _FULL_OR_SIGNS, 1),
    )
    return next((count for holds, count in rules if holds), 0)


def _one_name(words: list[str]) -> list[str]:
    """One name where two of the same disease stand in a row, and a Latin name without its
    authors.
    """
    if len(words) > 2 and GENUS.match(words[0]) and words[1] not in KNOWN and "and" in words[2:]:
        return words[:2]
    if tuple(words) in _TWO_NAMES:
        return _TWO_NAMES[tuple(words)]
    heads = [i for i, w in enumerate(words) if w in _FULL and singular(w) == singular(words[-1])]
    if "and" not in words and len(heads) > 1 and len(words) - heads[-2] > 2:
        return words[heads[-2] + 1 :]
    return words


# endregion
