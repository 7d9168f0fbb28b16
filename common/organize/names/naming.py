"""One class name at a time: known words -> plant and disease, as far as one name alone tells.

`taxonomy.parse_class_names` reads whole lists with these. Plain words in, plain words out.
"""

from __future__ import annotations

import re
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
_IDLE_TAILS = crops.IDLE_TAILS - {"disease", "diseases"}
_TOLD = _FULL | crops.SIGNS | crops.HEALTHY | (crops.SICK - {"disease", "diseases"})
_BESIDE = crops.ORGANS | crops.LINKS | {"and"}
# Two names of one disease in a row -> the first of them.
_TWO_NAMES = {
    (*one.split(), *other.split()): one.split()
    for same in crops.SAME_DISEASE
    for one in same
    for other in same
    if one.split()[-1] != other.split()[-1]
}


class Reading(NamedTuple):
    """What one name alone says. how: start, last, middle, borrowed, abbreviation, or "" without a
    plant.

    tokens: all words but idle ones; disease: words or None; quality: healthy, sick, known, partly,
    unknown, none."""

    species: str | None
    how: str
    tokens: tuple[Token, ...]
    disease: str | None
    quality: str
    fixed: bool


def plant_of(words: tuple[str, ...]) -> str | None:
    """The known plant that exactly these words name, in singular or plural, or None."""
    return crops.PLANTS.get(words) or crops.PLANTS.get(
        tuple(w if w in PLANT_WORDS else singular(w) for w in words)
    )


def same_plant(words: tuple[str, ...]) -> bool:
    """Whether words only repeat or turn round those of one known plant: "pepper bell bell"."""
    return frozenset(words) in _PARTS


def is_plant(word: str) -> bool:
    """Whether one word names a known plant."""
    return plant_of((word,)) is not None


def find_plants(tokens: list[Token]) -> list[tuple[int, int, str]]:
    """(start, end, plant) of every known plant, longest phrase first at each place, left to
    right."""
    words = [t.word for t in tokens]
    base = [w if w in PLANT_WORDS else singular(w) for w in words]
    found: list[tuple[int, int, str]] = []
    i = 0
    while i < len(words):
        hit = None
        for n in (3, 2, 1):
            if i + n > len(words):
                continue
            plant = crops.PLANTS.get(tuple(words[i : i + n])) or crops.PLANTS.get(
                tuple(base[i : i + n])
            )
            if not plant and n == 2 and (tokens[i + 1].brk == 1 or tokens[i + 1].bracketed):
                plant = crops.PLANTS.get((base[i + 1], base[i]))  # "Pepper, bell"
            if plant:
                hit = (i, i + n, plant)
                genus = (
                    n == 1
                    and (words[i],) in crops.LATIN
                    and i + 1 < len(words)
                    and not tokens[i + 1].brk
                )
                if genus and is_epithet(words[i + 1]):
                    hit = (i, i + 2, plant)  # "Musa acuminata"
                break
        if hit:
            found.append(hit)
            i = hit[1]
        else:
            i += 1
    return found


def is_epithet(word: str) -> bool:
    """Whether a word in no table looks like the second word of a Latin name."""
    return len(word) >= 4 and word not in KNOWN and LATIN_END.search(word) is not None


def read(raw: str) -> Reading:
    """One name on its own, see `Reading`. Raises nothing."""
    tokens = tokenise(raw)
    # "White background" tells of the picture: the colour goes with the noise word behind it.
    scene = [i for i, t in enumerate(tokens) if t.word in {"background", "backgrounds"} and i]
    idle = {i - 1 for i in scene if tokens[i - 1].word in crops.COLOURS}
    idle |= {
        i for i, t in enumerate(tokens) if t.word in crops.NOISE and not _field_plant(tokens, i)
    }
    tokens = _without_folder([t for i, t in enumerate(tokens) if i not in idle])
    if not any(not t.bracketed for t in tokens):
        tokens = [t._replace(bracketed=False) for t in tokens]
    words = [t.word for t in tokens]
    borrowed = [
        (i, i + len(phrase), plant)
        for phrase, plant in crops.BORROWED.items()
        for i in range(len(words))
        if tuple(words[i : i + len(phrase)]) == phrase
    ]
    plants = [p for p in find_plants(tokens) if not any(i <= p[0] < j for i, j, _ in borrowed)]
    species, how, taken = None, "", range(0)
    if plants:
        chosen, how = _choose(tokens, plants)
        species, taken = chosen[2], range(chosen[0], _swallow(tokens, plants, chosen))
    elif any(plant for _, _, plant in borrowed):
        species, how = next(plant for _, _, plant in borrowed if plant), "borrowed"
    else:
        implied = {crops.ABBREVIATIONS[w][0] for w in words if w in crops.ABBREVIATIONS} - {None}
        if len(implied) == 1:
            species, how = implied.pop(), "abbreviation"
    rest = [t for i, t in enumerate(tokens) if i not in taken]
    main = [t for t in rest if not t.bracketed]
    rest = (
        main if _means_something(main) else [t for t in rest if t.word not in _ONLY_PLANT] or main
    )
    for i, token in enumerate(
        rest
    ):  # the plant's name again, behind a full disease name, starts a synonym
        again = species and token.word in species.split() and how == "start"
        if again and i and rest[i - 1].word in crops.HEADS | crops.SIGNS:
            rest = rest[:i]
            break
    disease, quality = disease_name([t.word for t in rest])
    fixed = any(t.fixed for t in tokens if not t.bracketed)
    return Reading(species, how, tuple(tokens), disease, quality, fixed)


def _field_plant(tokens: list[Token], i: int) -> bool:
    """Whether "field" belongs to a plant's name: "field bindweed", but not "field images" or "field
    tomato"."""
    following = tokens[i + 1] if i + 1 < len(tokens) else None
    return (
        tokens[i].word == "field"
        and following is not None
        and not following.brk
        and following.word not in KNOWN
    )


def _without_folder(tokens: list[Token]) -> list[Token]:
    """Tokens without folders above a plant's own: "My photos/Potato/rust" -> "Potato/rust"."""
    starts = [0, *(i for i in range(1, len(tokens)) if tokens[i].brk == 2), len(tokens)]
    parts = [tokens[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    for n, part in enumerate(parts[:-1]):
        words = tuple(t.word for t in part)
        if (
            n
            and plant_of(words)
            and not any(find_plants(p) or any(t.word in _TOLD for t in p) for p in parts[:n])
        ):
            tokens = tokens[starts[n] :]
            break
    return [tokens[0]._replace(brk=0), *tokens[1:]] if tokens else tokens


def _means_something(tokens: list[Token]) -> bool:
    return any(t.word not in crops.ORGANS | crops.LINKS for t in tokens)


def _choose(
    tokens: list[Token], plants: list[tuple[int, int, str]]
) -> tuple[tuple[int, int, str], str]:
    idle = crops.HEALTHY | crops.SICK | crops.ORGANS | crops.LINKS | {"no", "not", "non", "un"}
    lead = next(
        (i for i, t in enumerate(tokens) if t.word not in idle or t.word in PLANT_WORDS - idle), 0
    )
    end = len(tokens)
    while end > 0 and tokens[end - 1].word in idle:
        end -= 1
    open_ones = [p for p in plants if not tokens[p[0]].bracketed] or plants
    start = next((p for p in open_ones if p[0] == lead), None)
    linked = next(
        (p for p in open_ones if p[0] and tokens[p[0] - 1].word in {"on", "of", "in"}), None
    )
    parted = next((p for p in open_ones if tokens[p[0]].brk == 2), None)
    last = next((p for p in open_ones if p[1] >= end), None)
    if start and not (
        tokens[start[0]].word in crops.DISEASE_WORDS
        and (linked or parted or last) not in (None, start)
    ):
        return start, "start"
    for plant in (linked, parted, last):
        if plant:
            return plant, "last"
    return open_ones[0], "middle"


def _swallow(
    tokens: list[Token], plants: list[tuple[int, int, str]], chosen: tuple[int, int, str]
) -> int:
    """End of the chosen plant with its repetitions right behind it: "Tomato___Tomato_mosaic",
    "pepper bell bell"."""
    end = chosen[1]
    words = [t.word for t in tokens]
    organ = end - chosen[0] > 1 and words[end - 1] in crops.ORGANS
    if organ and end < len(words) and singular(words[end]) in crops.COMPOUND:
        return end - 1  # "curry leaf spot" is a leaf spot
    following = {p[0]: p for p in plants}
    several = chosen[2].split() if " " in chosen[2] else []
    while end < len(tokens):
        if end in following and following[end][2] == chosen[2]:
            end = following[end][1]
        elif tokens[end].word in several:
            end += 1
        else:
            break
    return end


def disease_name(words: list[str]) -> tuple[str | None, str]:
    """Words left beside the plant -> (disease in plain words or None, quality as in `Reading`)."""
    words = _expand(words)
    text = " ".join(words)
    if re.search(
        r"\b(no|non|not|un|without) ?(disease|diseased|diseases|infected|affected)\b|\bdisease "
        r"free\b",
        text,
    ):
        return "healthy", "healthy"
    if re.search(r"\b(no|non|not|un) ?(healthy|health|normal)\b", text):
        return "diseased", "sick"
    while words and words[0] in crops.LINKS | {"and"}:
        words = words[1:]
    while words and words[-1] in crops.LINKS | {"and"}:
        words = words[:-1]
    content = [w for w in words if w not in crops.ORGANS | crops.LINKS]
    if not content:
        return None, "none"
    if any(w in crops.HEALTHY for w in content) and not any(w in _FULL for w in content):
        if all(is_disease_word(w) for w in content):
            return "healthy", "healthy"
        return "healthy", "partly"
    if all(w in crops.SICK for w in content):
        return "diseased", "sick"
    words = _trim_ends(_trim_front(words))
    words = _one_name(words)
    if not words:
        return None, "none"
    name = " ".join(words)
    name = {"two spotted spider mites": "two spotted spider mite"}.get(name, name)
    telling = [
        is_disease_word(w) and w not in crops.COLOURS for w in words
    ]  # "red" alone is no disease
    borrowed = tuple(words) in crops.BORROWED
    for i, word in enumerate(words):  # "phytophthora ramorum"
        telling[i] = (
            telling[i]
            or borrowed
            or (i > 0 and words[i - 1] in crops.PATHOGENS and word not in _BESIDE)
        )
    if any(telling) and all(
        t or w in _BESIDE or w in crops.COLOURS for t, w in zip(telling, words, strict=True)
    ):
        return name, "known"
    return name, "partly" if any(telling) else "unknown"


def _expand(words: list[str]) -> list[str]:
    out: list[str] = []
    for word in words:
        for part in crops.ABBREVIATIONS[word][1].split() if word in crops.ABBREVIATIONS else [word]:
            if not out or out[-1] != part:
                out.append(part)
    return out


def _trim_front(words: list[str]) -> list[str]:
    while len(words) > 1:
        first, second = words[0], words[1]
        sick = first in crops.SICK and any(
            w not in crops.ORGANS | crops.SICK | crops.LINKS for w in words[1:]
        )
        strip = first in {"strip", "stripe"} and words[-1] == "rust" and len(words) > 2
        organ = first in crops.ORGANS and (
            second in crops.SICK
            or (singular(second) not in crops.COMPOUND and is_disease_word(second))
        )
        organ = organ or (
            first in crops.ORGANS and second in {"strip", "stripe"} and words[-1] == "rust"
        )
        whole = first in {"plant", "tree", "crop"} and second not in crops.PESTS
        organ = organ or (first in crops.ORGANS and second in {"with", "by"})
        if not (sick or strip or organ or whole or first in crops.LINKS):
            break
        words = words[1:]
    return words


def _trim_ends(words: list[str]) -> list[str]:
    while len(words) > 1:
        last, before = words[-1], words[-2]
        if last in crops.ORGANS and before in crops.LINKS:
            words = words[:-2]
        elif len(last) == 1 and len(before) > 1 and before != "virus":
            words = words[:-1]  # "blight d"
        elif (
            last in {"affected", "infected", "infested"} | crops.ORGANS
            and is_disease_word(before)
            and _affected(words)
        ):
            words = words[:-1]
        elif len(words) > 2 and last == "damage" and before in crops.ORGANS:
            words = words[:-1]
        elif last in crops.ORGANS and singular(before) in _COMPLETE:
            words = words[:-1]
        elif len(words) > 2 and words[-2:] == ["water", "mold"] and words[-3] in _FULL:
            words = words[:-2]
        elif last in {"disease", "diseases"} and before in _FULL | crops.ORGANS | {"curl", "hole"}:
            words = words[:-1]
        elif last in _IDLE_TAILS and (before in _FULL or before in crops.SIGNS):
            if last == "damage" and singular(before) in {"insect", "pest"}:
                break
            words = words[:-1]
        else:
            break
    return words


def _affected(words: list[str]) -> bool:
    """Whether words end in "affected", with or without an organ: "caterpillar affected leaf"."""
    return words[-1 - (words[-1] in crops.ORGANS)] in {"affected", "infected", "infested"}


def _one_name(words: list[str]) -> list[str]:
    """One name where two of the same disease stand in a row, and a Latin name without its
    authors."""
    if len(words) > 2 and GENUS.match(words[0]) and words[1] not in KNOWN and "and" in words[2:]:
        return words[:2]
    if tuple(words) in _TWO_NAMES:
        return _TWO_NAMES[tuple(words)]
    if "and" not in words:
        last = singular(words[-1])
        heads = [i for i, w in enumerate(words) if w in _FULL and singular(w) == last]
        if len(heads) > 1 and len(words) - heads[-2] > 2:
            return words[heads[-2] + 1 :]
    return words
