"""Class trees: species in order, each with its diseases in order.

A `ClassTree` is the one index space of the project: every class is a (species, disease) pair, and
the classes of a species lie side by side. `slug` is the file-name form of a class's words.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# Names that Windows keeps for devices: no file or folder may be called so, with or without an
# ending.
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{p}{n}" for p in ("com", "lpt") for n in range(10)}
)
_FOLDED = str.maketrans("øØ", "oo")


def slug(words: str) -> str:
    """File-name form of a name: lower-case letters and digits joined by single underscores.

    "bell pepper" gives "bell_pepper", and accents of Latin letters are folded. Other scripts stay
    as they are; everything that is no letter, digit or vowel sign becomes an underscore, so that
    the result holds no separator, dot or control character and is 1 to 100 characters and at most
    200 bytes long. A name without any becomes "class_" and 8 hex digits of its SHA-256, so that two
    of them stay apart; names too long are cut and end in the same 8 digits; device names of Windows
    get "_class" behind them. Raises nothing.
    """
    text, latin = "", False
    for c in unicodedata.normalize("NFKD", words.replace("ß", "ss").translate(_FOLDED)).lower():
        mark = unicodedata.category(c)[0] == "M"
        if not mark:
            latin = c.isascii()
        text += c if c.isalnum() or (mark and not latin) else "" if mark else "_"
    text = re.sub("_+", "_", unicodedata.normalize("NFC", text)).strip("_")
    digest = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    if not text:
        return f"class_{digest}"
    if len(text) > 100 or len(text.encode()) > 200:
        short = text[:91].encode()[:191].decode(errors="ignore")
        return f"{short.rstrip('_')}_{digest}"
    return f"{text}_class" if text in _RESERVED else text


@dataclass(frozen=True)
class ClassTree:
    """Ordered species, each with ordered diseases, and the packed index of all classes.

    Class indices run over the species in order, so the classes of species s are
    `offsets[s]:offsets[s + 1]`.

    Attributes:
        species: S names.
        diseases: S tuples of names, one or more each.

    Raises:
        ValueError: where the two do not match, a name is empty, no string or not unique, or a
            species has no disease.
    """

    species: tuple[str, ...]
    diseases: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if any(isinstance(names, str) for names in (self.species, self.diseases, *self.diseases)):
            raise ValueError(
                "Species, and the diseases of each, must be lists of names, not one text."
            )
        object.__setattr__(self, "species", tuple(self.species))
        object.__setattr__(self, "diseases", tuple(tuple(d) for d in self.diseases))
        if not self.species:
            raise ValueError("A class tree needs at least one species, and this one has none.")
        if len(self.species) != len(self.diseases):
            raise ValueError(
                f"A class tree needs one list of diseases per species: {len(self.species)} "
                f"species, "
                f"{len(self.diseases)} lists."
            )
        _check_names(self.species, "species")
        for name, diseases in zip(self.species, self.diseases, strict=True):
            if not diseases:
                raise ValueError(
                    f"Species '{name}' has no disease; give it at least one, such as 'healthy'."
                )
            _check_names(diseases, f"disease of '{name}'")

    @classmethod
    def from_pairs(cls, classes: Iterable[tuple[str, str]]) -> "ClassTree":
        """Tree of (species, disease) pairs, both levels sorted; pairs may repeat. Raises ValueError
        when empty.
        """
        grouped: dict[str, set[str]] = {}
        for species, disease in classes:
            grouped.setdefault(species, set()).add(disease)
        names = tuple(sorted(grouped))
        return cls(names, tuple(tuple(sorted(grouped[name])) for name in names))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ClassTree":
        """Tree from what `to_json` gave (other keys are ignored). Raises ValueError where it has
        another shape.
        """
        try:
            rows = data["species"]
            return cls(tuple(row["name"] for row in rows), tuple(row["diseases"] for row in rows))
        except (KeyError, TypeError) as error:
            raise ValueError(
                'This is not a class tree: expected {"species": [{"name": "apple", "diseases": '
                '["healthy", ...]}, ...]}, '
                f"and reading it stopped at {type(error).__name__}: {error}."
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain values: {"species": [{"name": "apple", "diseases": ["healthy", "scab"]}, ...]}, in
        index order.
        """
        return {
            "species": [
                {"name": name, "diseases": list(diseases)}
                for name, diseases in zip(self.species, self.diseases, strict=True)
            ]
        }

    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON; order of species and diseases
        counts.
        """
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

    @property
    def num_species(self) -> int:
        """Number of species S, >= 1."""
        return len(self.species)

    @property
    def num_classes(self) -> int:
        """Number of classes C, >= S."""
        return int(self.offsets[-1])

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 (S + 1,), read-only: the classes of species s are offsets[s]:offsets[s + 1]."""
        sizes = [len(d) for d in self.diseases]
        return _frozen(np.concatenate([[0], np.cumsum(sizes)]))

    @cached_property
    def class_species(self) -> np.ndarray:
        """int64 (C,), read-only: species index of each class."""
        return _frozen(np.repeat(np.arange(self.num_species), np.diff(self.offsets)))

    def class_index(self, species_idx: int, disease_idx: int) -> int:
        """Packed index of a class. Raises IndexError where the species or its disease does not
        exist.
        """
        if not 0 <= species_idx < self.num_species:
            raise IndexError(f"Species index {species_idx} is outside 0..{self.num_species - 1}.")
        if not 0 <= disease_idx < len(self.diseases[species_idx]):
            last = len(self.diseases[species_idx]) - 1
            raise IndexError(
                f"Disease index {disease_idx} of '{self.species[species_idx]}' is outside "
                f"0..{last}."
            )
        return int(self.offsets[species_idx]) + disease_idx

    def pair(self, class_idx: int) -> tuple[str, str]:
        """(species, disease) names of a packed index. Raises IndexError where it does not exist."""
        if not 0 <= class_idx < self.num_classes:
            raise IndexError(f"Class index {class_idx} is outside 0..{self.num_classes - 1}.")
        species_idx = int(self.class_species[class_idx])
        return self.species[species_idx], self.diseases[species_idx][
            class_idx - int(self.offsets[species_idx])
        ]

    @cached_property
    def display_names(self) -> tuple[str, ...]:
        """Name of each class as "apple/scab", without a disease where no species has two."""
        if self.num_classes == self.num_species:
            return self.species
        return tuple(self.class_name(i) for i in range(self.num_classes))

    def class_name(self, class_idx: int) -> str:
        """Name of a packed index as "apple/scab". Raises IndexError where it does not exist."""
        return "/".join(self.pair(class_idx))


def _frozen(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.int64)
    values.setflags(write=False)
    return values


def _check_names(names: tuple[str, ...], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"A {what} has no name (got {name!r}); every class needs one.")
        if name in seen:
            raise ValueError(f"The {what} '{name}' comes twice; every name must be unique.")
        seen.add(name)
