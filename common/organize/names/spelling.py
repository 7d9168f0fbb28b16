"""Raw class names -> known words: separators, camel case, numbers, invisible characters, typos,
words run together.

Plain functions over the tables of `crops`; no state but caches.
"""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from common.organize.names import crops
from common.organize.names.languages import in_english

PLANT_WORDS = frozenset(word for phrase in crops.PLANTS for word in phrase)
# A typo is never corrected into a short word that is only part of a plant's name ("monkey" is not
# "money plant").
_NEVER = {**crops.LATIN, **crops.FOREIGN, **crops.RARE}
_TARGETS = frozenset(
    w for p in crops.PLANTS for w in p if (len(p) == 1 or len(w) >= 6) and p not in _NEVER
)
_TARGETS = (
    _TARGETS
    | (crops.DISEASE_WORDS - crops.ELSEWHERE)
    | crops.HEALTHY
    | crops.SICK
    | crops.ORGANS
    | crops.IDLE_TAILS
)
_TARGETS = _TARGETS | {w for w in crops.NOISE if len(w) >= 6}
_ALONE = frozenset(
    p[0] for p in crops.PLANTS if len(p) == 1 and p not in crops.LATIN and p not in crops.FOREIGN
)
_ALONE_OR_DISEASE = _ALONE | crops.DISEASE_WORDS
_MODIFIERS = crops.MODIFIERS | (crops.COLOURS - PLANT_WORDS)
_SAID = crops.HEALTHY | crops.SICK
_SMALL = frozenset({"and", "no", "not", "non", "un", "two"})
KNOWN = (
    PLANT_WORDS
    | crops.ELSEWHERE
    | _TARGETS
    | crops.NOISE
    | crops.LINKS
    | crops.ABBREVIATIONS.keys()
    | _SMALL
)
_STATES = crops.DISEASE_WORDS | crops.HEALTHY | crops.SICK | crops.ABBREVIATIONS.keys()
_OTHER = KNOWN - (
    PLANT_WORDS - crops.DISEASE_WORDS - crops.ORGANS - crops.LINKS - crops.NOISE - {"and"}
)
_FINAL = (
    crops.HEADS
    | crops.PESTS
    | crops.HEALTHY
    | crops.SICK
    | crops.ORGANS
    | {"streak", "curl", "mosaic", "mottle"}
)
_PIECES = re.compile(r"[()\[\]{}<>]|[/\\]+|_{2,}|[,;:|+=]|\s-+\s|-{2,}|[^\W_]+")
_LONGEST = (
    1000  # letters of a name that are read; file systems stop at 255, a label in a CSV may not
)
_CAMEL = re.compile(
    r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\d)(?=[^\W\d])|(?<=[^\W\d])(?=\d)"
)
# Endings of fungi and bacteria that no common plant shares (unlike -ium, -aria, -ella, -inia).
GENUS = re.compile(
    r"[a-z]{3,}(spora|phora|phthora|monas|trichum|iopsis|ctonia|porium|sporium|basidium|sphaeria)$"
)
LATIN_END = re.compile(r"(us|um|a|ae|is|ii?|ens|ans|oides|x|er|or)$")


class Token(NamedTuple):
    """One lower-case word; brk 2 after a strong separator, 1 after a comma or dash; bracketed;
    fixed = typo corrected.
    """

    word: str
    brk: int
    bracketed: bool
    fixed: bool


def tokenise(raw: str, mend: bool = True) -> list[Token]:
    """Words of a raw name in order: lower-case, accents folded; mend: numbers gone, typos mended.
    Raises nothing.
    """
    text = unicodedata.normalize("NFKC", in_english(raw[:_LONGEST])).replace("\u0640", " ")
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    folded = unicodedata.normalize("NFKD", text)
    text = unicodedata.normalize("NFC", "".join(c for c in folded if not unicodedata.combining(c)))
    text = re.sub(r"['`\u2019\u2018\u00b4]", "", text)
    text = re.sub(r"[\u2010-\u2015\u2212]", "-", text).replace("&", " and ")
    balanced = text.count("(") == text.count(")")
    tokens: list[Token] = []
    depth = brk = 0
    for piece in _PIECES.findall(text):
        if piece in "([{<":
            depth += balanced or piece != "("
        elif piece in ")]}>":
            depth = max(0, depth - 1)
        elif (
            piece[0] in "/\\:|"
            or piece.startswith("__")
            or (piece[0].isspace() and piece.strip() == "-" * len(piece.strip()))
        ):
            brk = 2
        elif not piece[0].isalnum():
            brk = max(brk, 1)
        else:
            for word in [piece] if piece.lower() in crops.ABBREVIATIONS else _CAMEL.split(piece):
                tokens.append(Token(word.lower(), brk, depth > 0, False))
                brk = 0
    if not mend:
        return tokens
    spelled: list[Token] = []
    for token in _without_numbers(tokens):
        epithet = (
            spelled
            and spelled[-1].word in crops.PATHOGENS
            and not token.brk
            and LATIN_END.search(token.word)
        )
        spelled += (
            [token] if epithet else _spell_token(token)
        )  # "plasmodiophora brassicae" is no typo
    return spelled


def _without_numbers(tokens: list[Token]) -> list[Token]:
    kept: list[Token] = []
    brk = 0
    for i, token in enumerate(tokens):
        following = tokens[i + 1].word if i + 1 < len(tokens) else ""
        numeric = token.word.isdigit() and not following.startswith("spot")
        beside = [tokens[k].word for k in (i - 1, i + 1) if 0 <= k < len(tokens)]
        lone = (
            len(token.word) == 1 and token.word.isascii() and any(word.isdigit() for word in beside)
        )
        if numeric or lone:
            brk = max(brk, token.brk)
        else:
            kept.append(token._replace(brk=max(brk, token.brk)))
            brk = 0
    return kept


def _spell_token(token: Token) -> list[Token]:
    words = spell(token.word)
    if token.bracketed and len(words) == 1:
        words = (token.word,)  # a synonym in brackets is left as it is
    fixed = len(words) == 1 and words[0] != token.word
    return [
        Token(word, token.brk if i == 0 else 0, token.bracketed, fixed)
        for i, word in enumerate(words)
    ]


def singular(word: str) -> str:
    """Singular of an English plural by its ending, for comparing; other words as they are."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word == "leaves":
        return "leaf"
    return word[:-2] if word.endswith(("oes", "ches", "shes", "xes", "sses")) else word[:-1]


@lru_cache(maxsize=100_000)
def spell(word: str) -> tuple[str, ...]:
    """A word as known words: itself, its parts where two known words are run together, or one typo
    mended.

    Conservative: no mending below 4 letters, at 4 only two letters swapped, from 5 one slip (a
    swap, a letter too many, too few or wrong), from 8 two; the first letter must hold unless two
    letters were swapped.
    """
    if (
        word in KNOWN
        or singular(word) in KNOWN
        or len(word) < 4
        or not word.isalpha()
        or not word.isascii()
    ):
        return (word,)
    parts = _segment(word)
    if parts:
        return parts
    reach = 2 if len(word) >= 8 else 1
    best: list[tuple[tuple[int, int, int, str], str]] = []
    for target in {t for key in deletes(word, reach) for t in _delete_index().get(key, ())}:
        swap = sorted(target) == sorted(word)
        if len(target) < 4 or not (swap or (len(word) >= 5 and target[0] == word[0])):
            continue
        slips = edit_distance(word, target)
        if slips > 1 and (target[-1] != word[-1] or target[:2] != word[:2]):
            continue
        if target in crops.PATHOGENS and (len(target) < 8 or target[:2] != word[:2]):
            continue
        if slips <= (2 if len(word) >= 8 and len(target) >= 7 else 1):
            best.append(((slips, not swap, _rank(target), target), target))
    return (min(best)[1],) if best else (word,)


def _rank(word: str) -> int:
    for rank, table in enumerate(
        (PLANT_WORDS, crops.HEADS, crops.MODIFIERS, crops.SIGNS, crops.PESTS)
    ):
        if word in table:
            return rank
    return 9


def _segment(word: str) -> tuple[str, ...]:
    """Fewest known words of 3 letters or more that make up the word; () where there are none."""
    if not 6 <= len(word) <= 40:
        return ()
    for n in range(3, len(word) - 2):  # "cassavabrown" of "cassavabrown_streak"
        plant, rest = word[:n] in _ALONE, word[n:]
        if (plant and rest in _MODIFIERS) or (word[:n] in PLANT_WORDS and rest in _SAID and n > 3):
            return word[:n], rest
    best: list[tuple[str, ...] | None] = [()] + [None] * len(word)
    for end in range(3, len(word) + 1):
        for start in range(end - 2):
            head, part = best[start], word[start:end]
            if head is None or part not in _TARGETS:
                continue
            if best[end] is None or len(head) + 1 < len(best[end] or ()):
                best[end] = (*head, part)
    parts = best[-1] or ()
    if len(parts) == 2 and parts[1] in crops.ORGANS and parts[0] not in _ALONE_OR_DISEASE:
        return ()  # "velvetleaf" is no velvet bean
    return (
        parts
        if len(parts) > 1 and singular(parts[-1]) in _FINAL and len(parts) * 3 < len(word)
        else ()
    )


def deletes(word: str, reach: int) -> set[str]:
    """The word and every form of it with up to `reach` letters left out; two words a slip apart
    share a form.
    """
    keys = {word}
    for _ in range(reach):
        keys |= {key[:i] + key[i + 1 :] for key in keys for i in range(len(key))}
    return keys


@lru_cache(maxsize=1)
def _delete_index() -> dict[str, list[str]]:
    """Every known word under each form it takes with up to two letters left out (symmetric-delete
    look-up).
    """
    index: dict[str, list[str]] = {}
    for word in sorted(_TARGETS):
        if len(word) >= 4:
            for key in deletes(word, 2 if len(word) >= 7 else 1):
                index.setdefault(key, []).append(word)
    return index


def edit_distance(a: str, b: str) -> int:
    """Slips between two words: letters added, lost, wrong, or swapped with their neighbour (each
    counts 1).
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before = last
    return row[-1]


def is_disease_word(word: str) -> bool:
    """Whether a word belongs to the name of a disease, pest or disorder, or to a healthy or sick
    plant.
    """
    known = word in _STATES or singular(word) in _STATES
    return known or (len(word) >= 7 and GENUS.match(word) is not None)


def is_known(word: str, plants: bool = True) -> bool:
    """Whether a word stands in the tables: diseases, organs, idle and linking words, and, if asked,
    parts of plants.
    """
    table = KNOWN if plants else _OTHER
    return word in table or singular(word) in table
