"""Class names read in the light of their list: species and disease with a confidence and a reason.

`taxonomy.parse_class_names` is the public entry.
"""

from __future__ import annotations

from common.organize.names import crops, naming, unknown_plants
from common.organize.names.listing import Answer, ListFacts, is_known, main_words
from common.organize.names.naming import NameParts

_PLANT = {"start": 0.98, "last": 0.95, "borrowed": 0.93, "abbreviation": 0.85, "middle": 0.8}
_WHERE = {
    "start": "known plant first",
    "last": "known plant last",
    "borrowed": "plant told by the disease's name",
    "abbreviation": "plant told by the abbreviation",
    "middle": "known plant in the middle",
}


def answer(reading: NameParts, facts: ListFacts) -> Answer:
    """One reading in the light of its list."""
    words = main_words(reading.tokens)
    if not words:
        return Answer(None, None, 0.0, "the name holds no words that tell a plant or a disease")
    found = unknown_plants.parted(reading, facts) or unknown_plants.learned(reading, facts)
    if found:
        return found
    stranger = unknown_plants.stranger_first(reading, facts)
    if reading.species and not stranger:
        return _with_plant(reading, facts)
    return unknown_plants.without_plant(reading, facts, stranger)


def _with_plant(reading: NameParts, facts: ListFacts) -> Answer:
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
        rest = tuple((disease or "").split())
        often = facts.plants[reading.species or ""] >= 3 and (
            len(rest) == 1 or naming.is_epithet(rest[-1])
        )
        recurs = len(facts.beginnings[rest]) >= 2 or often
        confidence *= 0.94 if parted and recurs else 0.92 if recurs else 0.9 if parted else 0.82
        reason += ", then words that are in no table"
    elif reading.quality == "partly":
        first, tail = (disease or "").split()[0], (disease or "").split()[-1]
        recurs = (
            parted or is_known(first) or len(facts.beginnings[tuple((disease or "").split())]) >= 2
        )
        if disease == "healthy":
            recurs = False
        confidence *= (0.95 if recurs else 0.9) if is_known(tail) else 0.9
        reason += ", a disease with a word that is in no table"
    else:
        reason += {"healthy": ", healthy", "sick": ", sick of something"}.get(
            reading.quality, ", known disease"
        )
    if reading.fixed:
        confidence -= 0.03
        reason += "; a typo was mended"
    return Answer(reading.species, disease, round(confidence, 3), reason)
