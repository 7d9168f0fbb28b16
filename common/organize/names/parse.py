"""Class names read as (species, disease), with a confidence and a reason: the entry to the name
parser, which sees a whole list at once.

parse -> listing -> naming -> spelling -> crops; each imports only what is on its right.
"""

from dataclasses import dataclass

from common.organize.names import crops, naming, spelling
from common.organize.names.listing import (
    STATES,
    ListFacts,
    NameReading,
    Words,
    is_known,
    main_words,
    quality,
    turned,
)
from common.organize.names.naming import NameParts
from common.organize.names.spelling import Token, tokenise

ASK_BELOW = 0.9  # confidence below which a person is asked about a name
_FOUND = {  # how the plant was found -> confidence, reason
    "start": (0.98, "known plant first"),
    "last": (0.95, "known plant last"),
    "borrowed": (0.93, "plant told by the disease's name"),
    "abbreviation": (0.85, "plant told by the abbreviation"),
    "middle": (0.8, "known plant in the middle"),
}
_PARTS = crops.ORGANS | crops.LINKS | STATES  # beside a plant's name
_CAUSES = crops.HEADS | crops.PESTS | crops.PATHOGENS
_SIGNS = crops.HEADS | crops.SIGNS | crops.PESTS
_SIGNS_AND_LINKS = _SIGNS | crops.LINKS
_HEADS = crops.HEADS | crops.PESTS
_ILL = _HEADS | STATES
_ORGANS_ONLY = crops.ORGANS - crops.PLANT_ENDS
_KNOWN = {"healthy": "healthy", "sick": "sick of something", "known": "known disease"}


@dataclass(frozen=True)
class ParsedName:
    """One class name as read: lower-case words joined by single spaces, None where the name does
    not say.

    confidence: 0..1, a person is asked below ASK_BELOW; reason: one short phrase.
    """

    raw: str
    species: str | None
    disease: str | None
    confidence: float
    reason: str


def parse_class_names(names: list[str]) -> list[ParsedName]:
    """Folder names or nested "species/disease" names -> species and disease, in the order given.

    The list is read as a whole: what recurs in it tells unknown plants from unknown diseases.
    Raises TypeError where a name is no text.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"Class names must be text, got {name!r}.")
    parts = {name: naming.read(name) for name in names}
    facts = ListFacts(parts.values())
    read = {name: ParsedName(name, *_reading(found, facts)) for name, found in parts.items()}
    return [read[name] for name in names]


def parse_flat(name: str) -> ParsedName:
    """One label without a second level (animals, flowers) as plain words: species and disease are
    both the label.
    """
    words = " ".join(token.word for token in tokenise(name, mend=False))
    if not words:
        return ParsedName(name, None, None, 0.0, "the name holds no words")
    return ParsedName(name, words, words, 1.0, "label taken as it stands")


def _reading(parts: NameParts, facts: ListFacts) -> NameReading:
    """One name in the light of its list; the first of these that applies."""
    if not main_words(parts.tokens):
        reason = "the name holds no words that tell a plant or a disease"
        return NameReading(None, None, 0.0, reason)
    found = _separated(parts, facts) or _learned(parts, facts)
    if found:
        return found
    unknown = _unknown_before_known(parts, facts)
    if parts.species and not unknown:
        return _with_plant(parts, facts)
    return _without_plant(parts, facts, unknown)


def _with_plant(parts: NameParts, facts: ListFacts) -> NameReading:
    confidence, reason = _FOUND[parts.how]
    if parts.how == "abbreviation" and len(parts.tokens) == 1:
        confidence = 0.7
    disease, words = parts.disease, tuple((parts.disease or "").split())
    separated = any(t.brk == 2 for t in parts.tokens)
    recurs = len(facts.beginnings[words]) >= 2
    if parts.quality == "none":
        organ = main_words(parts.tokens)[-1] in crops.ORGANS
        same = facts.bare[organ] >= 3
        disease = "healthy"
        confidence *= (0.94 if same else 0.86) if organ else (0.8 if same else 0.66)
        reason += ", and no disease named" + (", as in others of this list" if same else "")
    elif parts.quality == "unknown":
        often = facts.plants[parts.species or ""] >= 3
        recurs = recurs or (often and (len(words) == 1 or naming.is_epithet(words[-1])))
        confidence *= (0.94 if separated else 0.92) if recurs else (0.9 if separated else 0.82)
        reason += ", then words that are in no table"
    elif parts.quality == "partly":
        recurs = disease != "healthy" and (separated or is_known(words[0]) or recurs)
        confidence *= 0.95 if recurs and is_known(words[-1]) else 0.9
        reason += ", a disease with a word that is in no table"
    else:
        reason += f", {_KNOWN[parts.quality]}"
    if parts.fixed:
        confidence -= 0.03
        reason += "; a typo was corrected"
    return NameReading(parts.species, disease, round(confidence, 3), reason)


# region names whose plant is in no table: separators, brackets and the list tell where it ends


def _separated(parts: NameParts, facts: ListFacts) -> NameReading | None:
    """A plant in no table before a strong separator or a bracket with a disease: "Rose_Hip___rust",
    "Medlar (rust)".
    """
    tokens = parts.tokens
    strong = (i for i in range(1, len(tokens)) if tokens[i].brk == 2 and not tokens[i].bracketed)
    bracket = (i for i in range(1, len(tokens)) if tokens[i].bracketed)
    cut = next(strong, 0) or next(bracket, 0)
    left, right = tokens[:cut], tokens[cut:]
    aside = bool(cut) and right[0].bracketed
    if not cut or (aside and not all(t.bracketed for t in right)):
        return None
    main = [t.word for t in left if not t.bracketed]
    while (
        main
        and main[-1] in _ORGANS_ONLY
        and (main[-1] in crops.LEAFY or tuple(main) not in facts.learned)
    ):
        main.pop()
    known = naming.find_plants(list(left))
    spare = [
        t.word
        for i, t in enumerate(left)
        if t.word in main and t.word not in _PARTS and not any(a <= i < b for a, b, _ in known)
    ]
    behind = [t.word for t in right]
    name = known[0][2].split() if known else []
    if spare and len(name) > 1 and all(w in name for w in spare):
        return None  # "Pepper__bell"
    both = _two_names(main, behind, parts, facts) if aside and main else None
    if both:
        return both
    rest = [t._replace(bracketed=False) for t in right] if aside else list(right)
    kind = quality(tuple(behind))
    no_plant = (
        not spare
        or main[0] in STATES
        or any(w in _CAUSES for w in main)
        or (not known and all(map(is_known, main)))
        # "cabbage club root (plasmodiophora brassicae)"
        or (aside and known and behind[0] in crops.PATHOGENS)
        or (aside and (not facts.is_disease(tuple(behind)) or naming.find_plants(rest)))
        # "Cassava mosaic (CMD)"
        or (aside and known and any(is_known(w) and w not in crops.COLOURS for w in spare))
        or (known and kind in {"none", "unknown"} and tuple(main) not in facts.learned)
    )
    if no_plant:
        return None
    again = next((k for k in range(1, len(main) // 2 + 1) if main[:k] * 2 == main), len(main))
    if tuple(main) not in facts.learned:  # unless the list shows that it is called so ("camu camu")
        main = main[:again]
    others = [t.word for t in rest if not t.bracketed]
    while len(others) > len(main) and others[: len(main)] == main:
        others = others[len(main) :]
    disease, kind = naming.disease_name(others)
    many, wide = len(facts.endings[tuple(main)]), len(facts.beginnings[tuple(others)])
    confidence = 0.85 if known else 0.87
    confidence += 0.04 * (many >= 2) + 0.02 * (many >= 3) + 0.02 * (wide >= 2)
    confidence -= {"none": 0.2, "unknown": 0.0 if wide >= 2 else 0.06}.get(kind, 0.0)
    kinds = f"{many} kind{'s' * (many != 1)} of names"
    reason = f"unknown plant before a strong separator; it begins {kinds}"
    return NameReading(" ".join(main), disease or "healthy", _bounded(confidence, parts), reason)


def _two_names(
    main: list[str], other: list[str], parts: NameParts, facts: ListFacts
) -> NameReading | None:
    """A plant and its other name in brackets, with no disease in either: "Ficus religiosa (peepal
    tree)".
    """
    ill = any(spelling.is_disease_word(w) and not naming.is_plant(w) for w in main + other)
    if ill or len(facts.bracketed[tuple(other)]) >= 2:
        return None
    named = [naming.plant_of(tuple(words)) for words in (main, other)]
    latin = len(main) > 1 and all(spelling.LATIN_END.search(w) for w in main[:2])
    if not any(named) and not latin:
        return None
    species = named[0] or named[1] or " ".join(main)
    return NameReading(
        species,
        "healthy",
        _bounded(0.8, parts),
        "a plant with its other name in brackets, and no disease named",
    )


def _learned(parts: NameParts, facts: ListFacts) -> NameReading | None:
    """A plant that the list itself shows: it begins names with several diseases. None where it does
    not.
    """
    words = turned(main_words(parts.tokens))
    found = facts.find_learned(words)
    if not found:
        return None
    start, end = found
    plant, rest = words[start:end], words[end:] + words[: max(0, start - 1)]
    aside = tuple(t.word for t in parts.tokens if t.bracketed)
    if not rest and facts.is_disease(aside):
        rest = aside
    while rest[: len(plant)] == plant:
        rest = rest[len(plant) :]
    disease, kind = naming.disease_name(list(rest))
    many, wide = len(facts.endings[plant]), len(facts.beginnings[rest])
    confidence = 0.83 + 0.05 * (many >= 3) + 0.03 * (many >= 4) + 0.03 * (wide >= 2)
    widely = many >= 3 and wide >= 3
    confidence -= {
        "none": 0.1,
        "partly": 0.0 if widely else 0.06,
        "unknown": 0.01 if widely else 0.15,
    }.get(kind, 0.0)
    reason = f"unknown plant; it begins {many} kinds of names"
    if wide >= 2:
        reason += f"; the ending follows {wide} plants"
    if disease is None:
        disease, reason = "healthy", reason + ", and no disease named"
    return NameReading(" ".join(plant), disease, _bounded(confidence, parts), reason)


def _bounded(confidence: float, parts: NameParts) -> float:
    return round(max(0.1, min(confidence, 0.97) - 0.03 * parts.fixed), 3)


def _unknown_before_known(parts: NameParts, facts: ListFacts) -> int:
    """Words of an unknown plant before a known one ("quandong___peach_leaf_curl"); 0 where there is
    none.
    """
    if parts.how not in {"middle", "last", "borrowed", "abbreviation"}:
        return 0
    tokens = [t for t in parts.tokens if not t.bracketed]
    count = next(
        (i for i, t in enumerate(tokens) if spelling.is_known(t.word) or is_known(t.word)),
        len(tokens),
    )
    if not 0 < count < len(tokens):
        return 0
    kind = tokens[count].word in crops.KINDS and tokens[count].brk < 2 and count + 1 < len(tokens)
    if parts.how == "middle" and kind:
        return count + 1
    ends = facts.endings[tuple(t.word for t in tokens[:count])]
    return count if tokens[count].brk == 2 or len({end[:1] for end in ends}) >= 2 else 0


def _without_plant(parts: NameParts, facts: ListFacts, before: int) -> NameReading:
    """A name that no table and no other name explains: where its plant ends, or what the list says
    instead.
    """
    tokens = [t for t in parts.tokens if not t.bracketed]
    words = tuple(t.word for t in tokens)
    unknown = [i for i, w in enumerate(words) if not is_known(w)]
    split = _split(tokens, unknown, facts, before) if unknown or before else None
    if split:
        species, rest, confidence, reason = split
        disease, kind = naming.disease_name(list(rest))
        if kind in {"none", "unknown"}:
            confidence -= 0.15
        if disease is None:
            disease, reason = "healthy", reason + ", and no disease named"
        return NameReading(" ".join(species), disease, _bounded(confidence, parts), reason)
    if unknown and facts.plants_only() and not any(w in _CAUSES for w in words):
        plant = words[:-1] if len(words) > 1 and words[-1] in crops.ORGANS else words
        return NameReading(
            " ".join(plant), "healthy", 0.7, "unknown name in a list of plants; no disease named"
        )
    return NameReading(None, parts.disease, 0.2, "the name does not say the plant")


def _split(
    tokens: list[Token], unknown: list[int], facts: ListFacts, before: int
) -> tuple[Words, Words, float, str] | None:
    """(plant words, other words, confidence, reason) of a name whose plant is in no table; None
    where it has none.
    """
    words = tuple(t.word for t in tokens)
    if any(w in crops.PATHOGENS or spelling.GENUS.match(w) for w in words[:1]):
        return None  # "Cercospora fictiva" is one Latin name
    link = next((i for i, w in enumerate(words) if i and w in {"on", "of", "in"}), None)
    ill = link and any(w in _ILL for w in words[link:])  # "tree of zorb rust"
    if link and not ill and any(i > link for i in unknown) and not any(i < link for i in unknown):
        plant = tuple(w for w in words[link + 1 :] if w not in crops.ORGANS)
        return plant, words[:link], 0.75, "unknown plant behind 'on' or 'of'"
    first = next((i for i, w in enumerate(words) if w not in STATES), 0)
    rest = words[first:]
    brk = next((i for i in range(1, len(rest)) if tokens[first + i].brk == 2), 0)
    if before:
        count = before
    elif brk and any(i >= first for i in unknown if i < first + brk):
        count = brk
    else:
        count = _boundary(words, first, unknown, facts)
        if count < 0:
            return (
                words[first - count - 1 :],
                words[: first - count - 1],
                0.6,
                "known disease first, then an unknown plant",
            )
    if not count:
        return None
    plant, others = rest[:count], words[:first] + rest[count:]
    again = next(
        (n for n in range(1, count // 2 + 1) if 2 * n == count and plant[:n] == plant[n:]), count
    )
    plant = plant[:again]  # "quandong quandong rust"
    while others[: len(plant)] == plant:
        others = others[len(plant) :]
    many, wide = (
        len(facts.endings[plant]),
        len(facts.beginnings[rest[count:]]) if count < len(rest) else 0,
    )
    confidence = (
        (0.8 if brk == count else 0.68)
        + 0.05 * (many >= 2)
        + 0.03 * (wide >= 2)
        + 0.05 * (wide >= 4)
    )
    if words == plant:  # nothing but unknown words: a plant, a pest or a code, nobody can tell
        return None
    reason = (
        "unknown plant before a strong separator"
        if brk == count
        else "unknown plant before the disease"
    )
    return (
        plant,
        others,
        confidence,
        reason + (f"; the ending follows {wide} plants" if wide >= 2 else ""),
    )


def _boundary(words: Words, first: int, unknown: list[int], facts: ListFacts) -> int:
    """Words of the plant in words[first:]; below 0: -(1 + place) of a plant behind a known disease;
    0: none is seen.

    The disease is the ending that recurs over most plants, else the longest that is known.
    """
    rest = words[first:]
    inside = [i - first for i in unknown if i >= first]
    if not inside:
        return 0
    if first and all(w not in _SIGNS for w in rest):
        tail = len(rest) - sum(w in crops.ORGANS for w in rest[-1:])
        return tail  # "healthy hairy vetch leaf": all of it is the plant
    lead = rest[: inside[0]]
    if (
        lead
        and quality(lead) == "known"
        and lead[-1] in _HEADS
        and inside == list(range(inside[0], len(rest)))
    ):
        return -(1 + inside[0])
    if lead and any(w in _SIGNS_AND_LINKS for w in lead):
        return 0
    scores = {}
    for n in range(inside[0] + 1, len(rest) + 1):
        ending = rest[n:]
        kind = quality(ending) if ending else "none"
        worth = {"healthy": 3.0, "sick": 3.0, "known": 2.0, "partly": 0.3}.get(kind, 0.0)
        wide = max(1, min(4, len(facts.beginnings[ending]))) if ending else 1
        scores[n] = worth - 1.2 * sum(i >= n for i in inside) / wide + 1.2 * (wide - 1) - 0.01 * n
        if n == len(rest):
            scores[n] -= 0.5
        if (
            n < len(rest)
            and (spelling.is_disease_word(rest[n - 1]) or rest[n - 1] in crops.ORGANS)
            and not naming.is_plant(rest[n - 1])
        ):
            scores[n] -= 2.5  # "impatiens downy | mildew"
    return max(scores, key=lambda n: scores[n])


# endregion
