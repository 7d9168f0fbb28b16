"""What a person reads of stage 1: how names are read, what was made, report.md and report/."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.console import say, table, warn
from common.files import write_text
from common.organize import contact_sheets, suspects
from common.organize.background import background_check
from common.organize.deduplicate import (
    HOLDOUT_COPIES,
    HOLDOUT_SOURCE,
    HOLDOUT_SPECIES,
    SPLITS,
    Kept,
    Pair,
    Rejected,
)
from common.organize.duplicates.planted import planted_table
from common.organize.intake import REASONS, target_of
from common.organize.names.folders import VERSIONS
from common.organize.names.review import Names
from common.organize.partition import Certificate
from common.organize.sources import Files
from common.organize.splits import several_versions


def show_names(files: Files, names: Names, index: Sequence[Pair], class_idx: np.ndarray) -> None:
    """Print the tree with counts, and the doubts."""
    counts = np.bincount(class_idx[class_idx >= 0], minlength=len(index)).tolist()
    species: dict[str, list[str]] = defaultdict(list)
    for (name, disease), n in zip(index, counts, strict=True):
        species[name].append(f"{disease} {n:,}")
    plants = ~files.is_not_plant()
    lines = [
        f"{plants.sum():,} files, {len(files.labels):,} class names, {len(index):,} classes of "
        f"{len(species):,} species"
    ]
    for name, parts in list(species.items())[:40]:
        more = f" and {len(parts) - 30} more" if len(parts) > 30 else ""
        lines.append(f"  {name}: {', '.join(parts[:30])}{more}")
    if len(species) > 40:
        lines.append(f"  ... and {len(species) - 40} more species")
    given = Counter(SPLITS[g] for g in files.given[plants].tolist() if g >= 0)
    if given:
        shares = ", ".join(f"{given[s]:,} {s}" for s in SPLITS[:3])
        lines.append(f"the source has a split of its own: {shares} (--keep-split keeps it)")
    mine = np.flatnonzero(class_idx >= 0)
    versions = np.unique(files.version[mine[several_versions(files, mine, class_idx[mine])]])
    if len(versions):
        tags = [VERSIONS[i] for i in versions if i >= 0]
        lines.append(
            f"{len(versions)} versions of the same leaves ({', '.join(tags)}): each leaf's stay in "
            f"one split; use one alone with --versions {tags[0]}"
        )
    several = len({r[0] for r in names.review}) > 1
    if names.review:
        rows = [
            (
                f"{r[0]}: {r[1]}" if several else r[1],
                "/".join(filter(None, r[2:4])) or "?",
                r[5],
                r[6][:90],
            )
            for r in names.review[:20]
        ]
        lines += [
            "",
            "names to look at (answer with --names CSV, columns name,species,disease):",
            table(rows, ("class name", "read as", "decision", "why")),
        ]
    if len(names.review) > 20:
        lines.append(f"... and {len(names.review) - 20} more in review.csv (--review FILE)")
    say(*lines)
    if left_out := [
        label.name
        for label in files.labels
        if label not in names.classes and label not in names.not_plants
    ]:
        warn(
            f"{len(left_out)} class names are LEFT OUT because no species can be read from them: "
            f"{', '.join(left_out[:6])}"
        )
    if names.not_plants:
        few = ", ".join(label.name for label in names.not_plants[:6])
        warn(f"no plants by their names, left out: {few}. To use them, give --not-plants FOLDER.")


def write_json(target: str, files: Files, names: Names, by_picture: bool) -> None:
    """Write how each class folder is read, or each picture where labels come from a file.

    Args:
        target: file, or "-" for stdout.
        by_picture: a row per picture with its path below the source, instead of a row per folder.
    """
    rows, alone = [], ("", "the file lies in no class folder, or no row names it")
    plants = np.flatnonzero(~files.is_not_plant())
    first, counts = plants, np.ones(len(plants), int)
    if not by_picture:
        pictures = [files.is_picture(i) for i in plants.tolist()]
        _, at, counts = np.unique(
            files.folder[plants[pictures]], return_index=True, return_counts=True
        )
        first = plants[pictures][at]
    for i, n in zip(first.tolist(), counts.tolist(), strict=True):
        origin, given = int(files.origin[i]), int(files.given[i])
        below = "/".join(files.parts(files.folder[i], origin))
        label = files.labels[files.label[i]] if files.label[i] >= 0 else None
        pair = names.classes.get(label) if label else None
        species, disease = (part.replace("_", " ") for part in pair) if pair else (None, None)
        place = "/".join(filter(None, (below, files.name(i)))) if by_picture else below or "."
        rows.append(
            {
                "source": files.sources[origin].name,
                "path" if by_picture else "folder": place,
                "files": n,
                "species": species,
                "disease": disease,
                "split": SPLITS[given] if given >= 0 else None,
                "asked": label in names.asked,
                "decision": names.reasons.get(label, files.notes.get(i, alone)[1]),
            }
        )
    text = json.dumps({"folders": rows}, ensure_ascii=False, indent=1)
    if target == "-":
        print(text)
    else:
        write_text(Path(target), text)


def _leaks(c: Certificate) -> list[tuple[str, str]]:
    shares = {
        "near neighbour in train, as split": c.leak,
        "had each picture been split alone": c.leak_alone,
        "in the split that the source gives": c.leak_given,
    }
    return [(what, f"{share:.2%}") for what, share in shares.items() if share is not None]


def _by_reason(rejected: Rejected) -> list[tuple[str, str]]:
    """Reasons that left files out, and how many."""
    counts = np.bincount(rejected.reason, minlength=len(REASONS)).tolist()
    return [(what, f"{n:,}") for what, n in zip(REASONS, counts, strict=True) if what and n]


def show_result(output: Path, kept: Kept, rejected: Rejected, certificate: Certificate) -> None:
    """Print what was made."""
    counts, tree, groups = kept.counts(), kept.tree(), certificate.group_sizes
    splits = zip(SPLITS, counts.sum(axis=0).tolist(), strict=True)
    rows = [
        ("pictures kept", f"{len(kept):,}"),
        ("species / classes", f"{tree.num_species:,} / {tree.num_classes:,}"),
        *((split, f"{n:,}") for split, n in splits if n),
        *((f"left out: {reason}", n) for reason, n in _by_reason(rejected)),
        ("pictures in groups", f"{sum(groups):,}"),
        *((f"held-out pictures leaking: {what}", share) for what, share in _leaks(certificate)),
    ]
    say("", table(rows, ("what", "how many")))
    for search, found in certificate.planted.items():
        say("", f"copies made to try the search, found by {search}:", planted_table(found))
    if unjudged := _unjudged(counts):
        warn(
            f"{len(unjudged)} classes have no val or no test picture and cannot be judged "
            "(report.md lists them)"
        )
    without = np.flatnonzero((counts[:, 0] == 0) & (counts[:, 1:3].sum(axis=1) > 0)).tolist()
    if without:
        names = ", ".join("/".join(kept.classes[i]) for i in without[:6])
        warn(f"{len(without)} classes have no train picture in the split that was kept: {names}")
    if groups and groups[0] > max(50, 0.02 * len(kept)):
        warn(
            f"the largest group holds {groups[0]:,} pictures: look at it (report.md), or lower "
            "--near"
        )
    say(f"wrote {output}/ (report.md says more)")


def write_report(
    folder: Path,
    kept: Kept,
    files: Files,
    facts: np.ndarray,
    rejected: Rejected,
    names: Names,
    certificate: Certificate,
    not_plants: np.ndarray,
) -> tuple[list[suspects.Suspect], str]:
    """Write report.md.

    Args:
        folder: data/organized/ in the making.
        not_plants: int (2,), pictures of no plant in val and test.

    Returns:
        the suspicious classes, numbered as in `kept.classes`, and a sentence on what the background
        gives away.
    """
    counts, class_names = kept.counts(), ["/".join(pair) for pair in kept.classes]
    inside = np.flatnonzero(kept.split < HOLDOUT_SPECIES)
    position = np.full(len(kept), -1)
    position[inside] = np.arange(len(inside))
    pairs = position[certificate.near.edges()] if certificate.near else np.zeros((0, 2), np.int64)
    chosen = facts[kept.file[inside]]
    pictures = suspects.Pictures(
        kept.class_idx[inside],
        kept.group[inside],
        kept.split[inside],
        files.origin[kept.file[inside]],
        chosen["width"],
        chosen["height"],
    )
    found = suspects.suspicious(
        class_names,
        pictures,
        pairs[(pairs >= 0).all(axis=1)],
        _rejected_by_class(kept, files, rejected, names),
        [source.name for source in files.sources],
    )
    species = np.unique([pair[0] for pair in kept.classes], return_inverse=True)[1]
    background = background_check(chosen["border"], pictures.class_idx, pictures.split, species)
    unjudged = ", ".join(class_names[i] for i in _unjudged(counts))
    sizes = [
        (class_names[i], counts[i].sum(), *counts[i].tolist())
        for i in np.argsort(counts.sum(axis=1), kind="stable")
    ]
    sections = {
        "# Organized data": _counts(kept, files, rejected, not_plants),
        "## Sources": [_sources(kept, files, not_plants)],
        "## Left out": _left_out(files, rejected),
        "## Leak certificate": _certified(kept, files, rejected, certificate),
        "## What the background gives away": [background["sentence"]],
        "## Suspicious classes": [suspects.printed(found, class_names)],
        "## Names": [
            f"{len(names.review):,} names to review: `review.csv`. All readings: `names.csv`."
        ],
        "## Classes that cannot be judged": [
            unjudged or "None: every class has pictures in val and test."
        ],
        "## Classes, rarest first": [table(sizes, ("class", "pictures", *SPLITS))],
    }
    parts = [part for title, body in sections.items() for part in (title, *body)]
    write_text(folder / "report.md", "\n\n".join(parts) + "\n")
    return found, background["sentence"]


def write_contact_sheets(
    folder: Path,
    kept: Kept,
    facts: np.ndarray,
    found: Sequence[suspects.Suspect],
    note: str,
    store: Path,
    workers: int,
) -> None:
    """Write report/: a contact sheet per class, class sizes, index.html. The pictures are read from
    the store.
    """
    inside = np.flatnonzero(kept.split < HOLDOUT_SPECIES)
    classes, class_idx = np.unique(kept.class_idx[inside], return_inverse=True)
    keys, split, group = facts["key"][kept.file[inside]], kept.split[inside], kept.group[inside]
    both = group.astype(np.int64) * len(classes) + class_idx
    _, which, sizes = np.unique(both, return_inverse=True, return_counts=True)
    copies = sizes[which]
    shown, starts = contact_sheets.pick(class_idx, split, group, len(classes))

    def members(i: int) -> list[contact_sheets.Member]:
        return [
            contact_sheets.Member(
                (store / target_of(keys[k])).read_bytes(),
                int(split[k]),
                int(group[k]),
                int(copies[k]),
            )
            for k in shown[starts[i] : starts[i + 1]].tolist()
        ]

    number = {int(i): n for n, i in enumerate(classes)}
    names = ["/".join(pair) for pair in kept.classes]
    reasons = suspects.reasons_by_class(found, names).items()
    contact_sheets.write_contact_sheets(
        folder,
        [names[i] for i in classes],
        members,
        kept.counts()[classes, :3],
        {number[i]: sentences for i, sentences in reasons},
        workers,
        [note],
    )


def _rejected_by_class(
    kept: Kept, files: Files, rejected: Rejected, names: Names
) -> dict[str, np.ndarray]:
    """{reason: int (classes,)} of files left out."""
    number = {pair: i for i, pair in enumerate(kept.classes)}
    by_label = [number.get(names.classes.get(label, ("", "")), -1) for label in files.labels]
    class_idx = np.array([*by_label, -1])[files.label]
    return {
        reason: np.bincount(
            class_idx[(rejected.reason == r) & (class_idx >= 0)], minlength=len(kept.classes)
        )
        for r, reason in enumerate(REASONS)
        if r
    }


# The paragraphs of report.md's sections.


def _counts(kept: Kept, files: Files, rejected: Rejected, not_plants: np.ndarray) -> list[str]:
    tree, counts = kept.tree(), kept.counts().sum(axis=0).tolist()
    splits = ", ".join(f"{n:,} {split}" for n, split in zip(counts, SPLITS, strict=True) if n)
    paragraphs = [
        f"{len(kept):,} pictures in {tree.num_classes:,} classes of {tree.num_species:,} species: "
        f"{splits}. {(rejected.reason > 0).sum():,} files were left out."
    ]
    if counts[HOLDOUT_SOURCE]:
        away = kept.split >= HOLDOUT_SOURCE
        names = [files.datasets[i] for i in np.unique(files.dataset[kept.file[away]])]
        paragraphs.append(
            f"Held out to test the model in a new place (`holdout/source/`): {', '.join(names)}. "
            f"Those of their pictures that are near-duplicates of others, or in one group with "
            f"them, do not count (`holdout/copies/`): {counts[HOLDOUT_COPIES]:,}."
        )
    if not_plants.any():
        val, test = not_plants
        paragraphs.append(f"Pictures of no plant: {val:,} in val, {test:,} in test.")
    return paragraphs


def _sources(kept: Kept, files: Files, not_plants: np.ndarray) -> str:
    all_by, kept_by = (
        np.bincount(origin, minlength=len(files.sources))
        for origin in (files.origin, files.origin[kept.file])
    )
    rows = [
        (s.name, f"{all_by[i]:,}", f"{not_plants.sum() if s.not_plants else kept_by[i]:,}")
        for i, s in enumerate(files.sources)
    ]
    return table(rows, ("source", "files", "kept"))


def _left_out(files: Files, rejected: Rejected) -> list[str]:
    rows = _by_reason(rejected)
    if files.missing:
        rows.append(("missing (rows of the labels CSV)", f"{len(files.missing):,}"))
    return [table(rows, ("reason", "files")), "Each file with its reason: `rejected.csv`."]


def _certified(kept: Kept, files: Files, rejected: Rejected, c: Certificate) -> list[str]:
    copies = np.flatnonzero(rejected.twin >= 0)
    theirs, of = files.given[copies], files.given[rejected.twin[copies]]
    crossing = int(((theirs >= 0) & (of >= 0) & (theirs != of)).sum())
    near = "Hashes were not compared (--near -1)"
    if c.near:
        near = (
            f"Near means: perceptual hashes at most {c.radius} of 64 bits apart under any of 8 "
            "flips and turns"
        )
    if len(c.cosine):
        near += f", or features as alike as --cosine asks ({len(c.cosine):,} pairs)"
    blank = c.near.blank if c.near else 0
    straddle = (
        "The split was kept as the source gives it, with what leaks."
        if c.leak
        else "Groups never straddle a split."
    )
    largest = ", ".join(f"{n:,}" for n in c.group_sizes[:5]) or "none"
    links = [(what, f"{n:,}") for what, n in c.joined.items()]
    paragraphs = [
        "Share of val and test pictures with a near neighbour or another version of their leaf in "
        "train:",
        table(_leaks(c), ("split", "share")),
        f"{near}.",
        blank and f"{blank:,} pictures of one colour have no hash and were not compared.",
        crossing
        and f"{crossing:,} exact copies stood in two parts of the split that the source gives.",
        f"{straddle}\n{len(c.group_sizes):,} groups of two or more hold "
        f"{sum(c.group_sizes):,} pictures, the largest {largest}.",
        links and table(links, ("joined by", "links")),
    ]
    paragraphs = [part for part in paragraphs if part]
    if c.group_sizes and c.group_sizes[0] > 20:
        heads, sizes = np.unique(kept.group, return_counts=True)
        rows = [
            (
                "/".join(kept.classes[kept.class_idx[heads[i]]]),
                sizes[i],
                files.path(kept.file[heads[i]]),
            )
            for i in np.argsort(-sizes, kind="stable")[:5]
        ]
        titles = ("class of the first", "pictures", "first")
        paragraphs += ["Largest groups:", table(rows, titles)]
    for search, rows in c.planted.items():
        paragraphs += [
            f"Altered copies of pictures of this set, made to try the search, found by {search}:",
            planted_table(rows),
        ]
    return paragraphs


def _unjudged(counts: np.ndarray) -> list[int]:
    """Classes without a val or a test picture; `counts` int (classes, 7)."""
    return np.flatnonzero(
        ((counts[:, 1] == 0) | (counts[:, 2] == 0)) & (counts[:, :3].sum(axis=1) > 0)
    ).tolist()
