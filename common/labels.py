"""Folder names as leaves of the class tree, a person's answers, and what a person should look at."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from common.console import fail
from common.taxonomy import near_identical, parse_class_names, parse_flat, slug

Leaf = tuple[str, str]


def read_names(names: list[str], levels: int, overrides: Path | None) -> tuple[dict[str, Leaf], list[tuple[str, ...]]]:
    """Read folder names as leaves.

    Args:
        names: all folder names of the sources.
        levels: 2: species and disease; 1: a folder is a class of its own.
        overrides: a CSV of a person's answers, columns name, species, disease; they win.

    Returns:
        {folder name: (species, disease)} of the names that could be read, and rows of review.csv.
    """
    answers = _overrides(overrides)
    parsed = parse_class_names(names) if levels == 2 else [parse_flat(name) for name in names]
    leaves: dict[str, Leaf] = {}
    review: list[tuple[str, ...]] = []
    for p in parsed:
        if p.raw in answers:
            leaves[p.raw] = answers[p.raw]
        elif p.species is None:
            review.append((p.raw, "", "", f"{p.confidence:.2f}", "left out", f"no species can be read: {p.reason}"))
        else:
            species = slug(p.species)
            leaves[p.raw] = (species, species if levels == 1 else slug(p.disease or "unspecified"))
            if p.confidence < 0.8 or p.disease is None:
                review.append((p.raw, *leaves[p.raw], f"{p.confidence:.2f}", "kept", p.reason))
    together: dict[Leaf, list[str]] = defaultdict(list)
    for raw, leaf in leaves.items():
        together[leaf].append(raw)
    review += [(raw, *leaf, "", "put together", "with " + ", ".join(o for o in raws if o != raw))
               for leaf, raws in together.items() if len(raws) > 1 for raw in raws]
    words = {leaf: tuple(part.replace("_", " ") for part in leaf) for leaf in together}
    review += [(together[a][0], *a, "", "kept apart", f"may be the same as {'/'.join(b)}: {why}")
               for x, y, why in near_identical(words.values())
               for a, b in [(tuple(map(slug, x)), tuple(map(slug, y)))]]
    return leaves, review


def _overrides(path: Path | None) -> dict[str, Leaf]:
    if path is None:
        return {}
    if not path.is_file():
        fail(f"--names: there is no file {path}.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"name", "species", "disease"} <= set(rows.fieldnames or ()):
            fail(f"--names {path} needs the columns name,species,disease; it has {', '.join(rows.fieldnames or ['none'])}.")
        return {row["name"]: (slug(row["species"]), slug(row["disease"])) for row in rows if row["species"] and row["disease"]}
