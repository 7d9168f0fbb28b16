"""Class names read as (species, disease), with a confidence and a reason: the entry to the name
parser, which sees a whole list at once.

parse -> unknown_plants -> listing -> naming -> spelling -> crops; each imports only what is on its
right.
"""

from dataclasses import dataclass

from common.organize.names import crops, naming, unknown_plants
from common.organize.names.listing import ListFacts, NameReading, is_known, main_words
from common.organize.names.naming import NameParts
from common.organize.names.spelling import tokenise

ASK_BELOW = 0.9  # confidence below which a person is asked about a name
_FOUND = {  # how the plant was found -> confidence, reason
    "start": (0.98, "known plant first"),
    "last": (0.95, "known plant last"),
    "borrowed": (0.93, "plant told by the disease's name"),
    "abbreviation": (0.85, "plant told by the abbreviation"),
    "middle": (0.8, "known plant in the middle"),
}
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
    found = unknown_plants.separated(parts, facts) or unknown_plants.learned(parts, facts)
    if found:
        return found
    unknown = unknown_plants.unknown_before_known(parts, facts)
    if parts.species and not unknown:
        return _with_plant(parts, facts)
    return unknown_plants.without_plant(parts, facts, unknown)


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
