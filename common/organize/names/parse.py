"""Class names read as (species, disease), with a confidence and a reason: the entry to the name
parser, which sees a whole list at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from common.organize.names import answers, likeness, listing, naming, spelling

# Below this confidence a person is asked about a name.
ASK_BELOW = 0.9


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
    Raises TypeError where a name is no text."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"Class names must be text, got {name!r}.")
    readings = {name: naming.read(name) for name in names}
    facts = listing.ListFacts(readings.values())
    read = {
        name: ParsedName(name, *answers.answer(reading, facts))
        for name, reading in readings.items()
    }
    return [read[name] for name in names]


def parse_flat(name: str) -> ParsedName:
    """One label without a second level (animals, flowers) as plain words: species and disease are
    both the label."""
    words = " ".join(token.word for token in spelling.tokenise(name, mend=False))
    if not words:
        return ParsedName(name, None, None, 0.0, "the name holds no words")
    return ParsedName(name, words, words, 1.0, "label taken as it stands")


def near_identical(
    classes: Iterable[tuple[str, str]],
) -> list[tuple[tuple[str, str], tuple[str, str], str]]:
    """(leaf, the leaf it would become, reason) for (species, disease) leaves that look like one;
    nothing is merged.

    Finds plurals, spacing, spellings, known synonyms and typos, between the diseases of a plant and
    between plants. Each pair once, sorted. Raises nothing."""
    return likeness.near_identical(classes)
