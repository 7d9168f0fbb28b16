"""What a person adds to the answers: advice.csv, a row per class and language, and reference
pictures to compare with, which `03_export.py --reference` writes. Both stand in the exports folder.
"""

import difflib
import json
import re
from pathlib import Path

from common.classes import ClassTree, slug
from common.console import fail
from common.files import write_rows
from common.labels import read_table, require_text

ADVICE, REFERENCE, INDEX = "advice.csv", "reference", "index.json"
CLASS = ("species", "disease", "language")
TEXTS = ("scientific_name", "local_name", "text", "severity", "treatment", "link", "source")
_LANGUAGE = re.compile("[a-z]{2,3}(-[A-Z][a-z]{3})?(-[A-Z]{2}|-[0-9]{3})?")  # RFC 5646
_LINK = re.compile(r"https?://[^\s/]\S*", re.I)  # a page must not run what a link says


def begin_advice(folder: Path, tree: ClassTree) -> None:
    """Write advice.csv into an exports folder: a row per class that says nothing yet. One that is
    there stays as it is.
    """
    if not (folder / ADVICE).exists():
        rows = ([*tree.pair(i), *[""] * (1 + len(TEXTS))] for i in range(tree.num_classes))
        write_rows(folder / ADVICE, (*CLASS, *TEXTS), rows)


def read_advice(
    folder: Path, tree: ClassTree, language: str = "en"
) -> dict[str, dict[str, dict[str, str]]]:
    """Read advice.csv of an exports folder; rows that name no language are in that of the page.

    Returns:
        {language: {"species/disease", or "species/" for all of a species: {column: text}}}, all
        of `TEXTS`, of the rows that say something; empty without the file.

    Raises:
        SystemExit: where the file is no such table, or a row is ragged, is about no class, has a
            language or a link that is none, or stands there twice; the message says which.
    """
    path = folder / ADVICE
    if not path.is_file():
        return {}
    table = read_table(path, prose=True)
    require_text(table, list(table.cells))
    for name in [*(set(table.cells) - {*CLASS, *TEXTS}), *({"species"} - set(table.cells))]:
        fail(
            f"{path}: the columns are {', '.join((*CLASS, *TEXTS))}, and it "
            f"{'has' if name in table.cells else 'lacks'} {name!r}. Correct its first line."
        )
    names = {tree.class_name(i) for i in range(tree.num_classes)}
    names |= {f"{name}/" for name in tree.species}
    found: dict[str, dict[str, dict[str, str]]] = {}
    lines: dict[tuple[str, str], str] = {}
    columns = [table.cells.get(name, [""] * len(table.lines)) for name in (*CLASS, *TEXTS)]
    for row, (species, disease, spoken, *texts) in enumerate(zip(*columns, strict=True)):
        if not any(texts):
            continue
        where, spoken = f"{path}, line {table.lines[row]}", spoken or language
        key = f"{species}/{disease}"
        if key not in names:  # "Bell pepper" means bell_pepper
            key = f"{slug(species)}/{slug(disease) if disease else ''}"
        said = dict(zip(TEXTS, texts, strict=True))
        if key not in names:
            alike = [name for name in names if name.endswith("/") == key.endswith("/")]
            close = [name.rstrip("/") for name in difflib.get_close_matches(key, alike, 2)]
            meant = f" Did you mean {' or '.join(close)}?" if close else ""
            fail(f"{where}: no class {key.rstrip('/')} is known.{meant} Correct or delete the row.")
        if not _LANGUAGE.fullmatch(spoken):
            fail(f"{where}: {spoken!r} is no language. Write en, de or pt-BR, say.")
        if said["link"] and not _LINK.fullmatch(said["link"]):
            fail(f"{where}: the link {said['link']!r} must begin with https:// or http://.")
        first = lines.setdefault((spoken, key), where)
        if first != where:
            other = f"line {first.rpartition(' ')[2]}"
            fail(f"{where}: {other} is about {key} in {spoken}, too. Keep one of them.")
        found.setdefault(spoken, {})[key] = said
    return found


def describe_advice(folder: Path, tree: ClassTree, language: str = "en") -> str:
    """Say for how many classes there is advice in the page's language, and in which others. Raises
    as `read_advice`.
    """
    found = read_advice(folder, tree, language)
    if not found:
        return f"none ({folder / ADVICE} is yours to fill in)"
    keys, others = found.get(language, {}), sorted(found.keys() - {language})
    names = [tree.class_name(i) for i in range(tree.num_classes)]
    without = [name for name in names if not {name, f"{name.partition('/')[0]}/"} & keys.keys()]
    told = f"in {language} for {len(names) - len(without)} of {len(names)} classes"
    if 0 < len(without) < len(names):
        told += f" (none for {', '.join(without[:3])}{' ...' * (len(without) > 3)})"
    return f"{told}; also in {', '.join(others)}" if others else told


def read_reference(folder: Path, tree: ClassTree) -> dict[str, list[dict[str, str]]]:
    """Read the index of the reference pictures of an exports folder.

    Returns:
        {"species/disease": [{"file": below reference/, "source": whose picture it is}, ...]}; empty
        without pictures.

    Raises:
        SystemExit: where it is damaged or of other classes, or a picture is missing.
    """
    path = folder / REFERENCE / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        names = {tree.class_name(i) for i in range(tree.num_classes)}
        for key, pictures in index.items():
            for one in pictures:
                own = re.fullmatch(re.escape(key) + r"/\d+\.jpg", one["file"]) and key in names
                if not own or not isinstance(one["source"], str):
                    raise ValueError(f"{one['file']!r} is not of these classes")
                if not (path.parent / one["file"]).is_file():
                    raise ValueError(f"{one['file']} is missing")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fail(
            f"{path} cannot be used ({error}). Write it again with 03_export.py --reference, or "
            f"delete the folder {path.parent}."
        )
    return index
