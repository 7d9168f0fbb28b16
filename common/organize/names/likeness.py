"""Near-identical classes: plurals, spellings, synonyms and typos that a person should look at
before training.

`near_identical` proposes, and never merges.
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations

from common.organize.names import crops, spelling

Pair = tuple[str, str]


def near_identical(classes: Iterable[Pair]) -> list[tuple[Pair, Pair, str]]:
    """(class, the class it would become, reason) for classes that look like one; each pair once,
    sorted.
    """
    by_species: dict[str, set[str]] = defaultdict(set)
    for species, disease in classes:
        by_species[species].add(disease)
    found: list[tuple[Pair, Pair, str]] = []
    for a, b, reason in _alike(by_species, plants=True):
        gone, kept = _direction(a, b, len(by_species[a]), len(by_species[b]))
        found += [
            ((gone, disease), (kept, disease), f"plants: {reason}")
            for disease in sorted(by_species[gone])
        ]
    for species, diseases in by_species.items():
        for a, b, reason in _alike(diseases, plants=False):
            gone, kept = _direction(a, b, 0, 0)
            found.append(((species, gone), (species, kept), reason))
    return sorted(found)


def _direction(a: str, b: str, size_a: int, size_b: int) -> tuple[str, str]:
    """(name that would go, name that would stay): known words stay, then the larger, the shorter,
    the first.
    """

    def worth(name: str, size: int) -> tuple[int, int, int]:
        words = name.split()
        unknown = (
            0 if tuple(words) in crops.PLANTS else sum(not spelling.is_known(w) for w in words)
        )
        rank = next((line.index(name) for line in crops.SAME_DISEASE if name in line), 0)
        return (
            unknown + 2 * (crops.PLANTS.get(tuple(words), name) != name) + rank,
            -size,
            len(name),
        )

    first, second = sorted([(worth(a, size_a), a), (worth(b, size_b), b)])
    return second[1], first[1]


def _plain(name: str) -> list[str]:
    words = [crops.SPELLINGS.get(w, w) for w in name.split()]
    words = [spelling.singular(w) for w in words]
    return words[:-1] if len(words) > 1 and words[-1] == "disease" else words


def _alike(names: Iterable[str], plants: bool) -> list[tuple[str, str, str]]:
    """Pairs of names that look like one, with the reason; the strongest reason where several
    hold.
    """
    ordered = sorted(names)
    pairs: dict[tuple[str, str], str] = {}

    def group(keys: dict[str, list[str]], reason: str) -> None:
        for members in keys.values():
            for pair in combinations(members, 2):
                pairs.setdefault(pair, reason)

    plain: dict[str, list[str]] = defaultdict(list)
    same: dict[str, list[str]] = defaultdict(list)
    without_leaf: dict[str, list[str]] = defaultdict(list)
    for name in ordered:
        words = _plain(name)
        plain["".join(words)].append(name)
        lines = [str(i) for i, line in enumerate(crops.SAME_DISEASE) if name in line]
        key = crops.PLANTS.get(tuple(name.split())) if plants else next(iter(lines), None)
        same[key or f"={name}"].append(name)
        without_leaf["".join(w for w in words if w != "leaf") or name].append(name)
    group(plain, "the same but for plural, spacing, spelling or the word 'disease'")
    group(same, "two names of one plant" if plants else "two names of one disease")
    if not plants:
        group(without_leaf, "the same but for the word 'leaf'")
    _add_typos(ordered, plants, pairs)
    return [(a, b, reason) for (a, b), reason in pairs.items()]


def _add_typos(ordered: list[str], plants: bool, pairs: dict[tuple[str, str], str]) -> None:
    """Adds pairs of equal length in words that differ in one word by a slip, where one of the two
    is in no table.
    """
    slots: dict[tuple[object, ...], list[tuple[str, str]]] = defaultdict(list)
    for name in ordered:
        words = name.split()
        for i, word in enumerate(words):
            if len(word) < 4:
                continue
            for key in spelling.deletes(word, 2 if len(word) >= 8 else 1):
                slots[(tuple(words[:i]), tuple(words[i + 1 :]), key)].append((name, word))
    for members in slots.values():
        for (a, x), (b, y) in combinations(members, 2):
            if a == b or (a, b) in pairs or (spelling.is_known(x) and spelling.is_known(y)):
                continue
            slips = spelling.edit_distance(x, y)
            if slips <= (2 if min(len(x), len(y)) >= 8 else 1) and (
                min(len(x), len(y)) >= 5 or sorted(x) == sorted(y)
            ):
                pairs[(a, b)] = (
                    f"'{x}' and '{y}' differ by {slips} letter{'s' if slips > 1 else ''}"
                )
