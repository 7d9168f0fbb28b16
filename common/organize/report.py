"""What a person reads of stage 1: how names are read, what was made, report.md and report/."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.console import say, table, warn
from common.files import write_text
from common.organize import contact_sheets, suspects
from common.organize.background import background_check
from common.organize.deduplicate import HOLDOUT_SPECIES, SPLITS, Kept, Pair, Rejected
from common.organize.duplicates.planted import planted_table
from common.organize.intake import REASONS, target_of
from common.organize.names.review import Names
from common.organize.partition import Certificate
from common.organize.sources import Files

SHEET = 24  # pictures on a contact sheet


def show_names(files: Files, names: Names, index: Sequence[Pair], class_idx: np.ndarray) -> None:
    """Print the tree with counts, and the doubts."""
    counts = np.bincount(class_idx[class_idx >= 0], minlength=len(index)).tolist()
    species: dict[str, list[str]] = defaultdict(list)
    for (name, disease), n in zip(index, counts, strict=True):
        species[name].append(f"{disease} {n:,}")
    say(
        f"{(~files.is_not_plant()).sum():,} files, {len(files.labels):,} class names, "
        f"{len(index):,} classes of {len(species):,} species"
    )
    for name, parts in list(species.items())[:40]:
        say(
            f"  {name}: "
            f"{', '.join(parts[:30])}{f' and {len(parts) - 30} more' if len(parts) > 30 else ''}"
        )
    if len(species) > 40:
        say(f"  ... and {len(species) - 40} more species")
    given = Counter(SPLITS[g] for g in files.given[~files.is_not_plant()].tolist() if g >= 0)
    if given:
        say(
            "the source has a split of its own: "
            + ", ".join(f"{given[s]:,} {s}" for s in SPLITS[:3])
            + " (--keep-split keeps it)"
        )
    if names.review:
        say(
            "",
            "names to look at (answer with --names CSV, columns name,species,disease):",
            table(
                [
                    (r[0], f"{r[1]}/{r[2]}" if r[1] else "?", r[4], r[5][:90])
                    for r in names.review[:20]
                ],
                ("class name", "read as", "decision", "why"),
            ),
        )
        say(
            *(
                [f"... and {len(names.review) - 20} more in review.csv"]
                if len(names.review) > 20
                else []
            )
        )
    left_out = [r[0] for r in names.review if r[4] == "left out"]
    if left_out:
        warn(
            f"{len(left_out)} class names are LEFT OUT because no species can be read from them: "
            f"{', '.join(left_out[:6])}"
        )


def _leaks(c: Certificate) -> list[tuple[str, str]]:
    rows = [
        ("near neighbour in train, as split", f"{c.leak:.2%}"),
        ("had each picture been split alone", f"{c.leak_alone:.2%}"),
    ]
    return rows + (
        [("in the split that the source gives", f"{c.leak_given:.2%}")]
        if c.leak_given is not None
        else []
    )


def show_result(
    output: Path,
    kept: Kept,
    rejected: Rejected,
    certificate: Certificate,
) -> None:
    """Print what was made."""
    counts, tree = kept.counts(), kept.tree()
    reasons = np.bincount(rejected.reason, minlength=len(REASONS)).tolist()
    say(
        "",
        table(
            [
                ("pictures kept", f"{len(kept):,}"),
                ("species / classes", f"{tree.num_species:,} / {tree.num_classes:,}"),
                *(
                    (s, f"{n:,}")
                    for s, n in zip(SPLITS, counts.sum(axis=0).tolist(), strict=True)
                    if n
                ),
                *(
                    (f"left out: {reason}", f"{n:,}")
                    for reason, n in zip(REASONS, reasons, strict=True)
                    if reason and n
                ),
                ("pictures in groups", f"{sum(certificate.group_sizes):,}"),
                *(
                    (f"held-out pictures leaking: {what}", share)
                    for what, share in _leaks(certificate)
                ),
            ],
            ("what", "how many"),
        ),
    )
    for search, rows in certificate.planted.items():
        say("", f"copies made to try the search, found by {search}:", planted_table(rows))
    if unjudged := _unjudged(counts):
        warn(
            f"{len(unjudged)} classes have no val or no test picture and cannot be judged "
            f"(report.md lists them)"
        )
    without = np.flatnonzero((counts[:, 0] == 0) & (counts[:, 1:3].sum(axis=1) > 0)).tolist()
    if without:
        names = ", ".join("/".join(kept.classes[i]) for i in without[:6])
        warn(f"{len(without)} classes have no train picture in the split that was kept: {names}")
    if certificate.group_sizes and certificate.group_sizes[0] > max(50, 0.02 * len(kept)):
        warn(
            f"the largest group holds {certificate.group_sizes[0]:,} pictures: look at it "
            f"(report.md), or lower --near"
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
    chosen, counts = facts[kept.file], kept.counts()
    class_names = ["/".join(pair) for pair in kept.classes]
    by_reason, conflicts = _rejected_by_class(kept, files, rejected, names)
    inside = np.flatnonzero(kept.split < HOLDOUT_SPECIES)
    position = np.full(len(kept), -1)
    position[inside] = np.arange(len(inside))
    pairs = position[certificate.near.edges()] if certificate.near else np.zeros((0, 2), np.int64)
    class_idx, split = kept.class_idx[inside], kept.split[inside]
    found = suspects.suspicious(
        class_names,
        class_idx,
        kept.group[inside],
        split,
        files.origin[kept.file[inside]],
        chosen["width"][inside],
        chosen["height"][inside],
        pairs=pairs[(pairs >= 0).all(axis=1)],
        rejected=by_reason,
        conflicts=conflicts,
        origins=[s.name for s in files.sources],
    )
    species = np.unique([pair[0] for pair in kept.classes], return_inverse=True)[1]
    background = background_check(chosen["border"][inside], class_idx, split, species)
    write_text(
        folder / "report.md",
        "\n".join(
            [
                *_counts(kept, files, rejected, not_plants),
                *_certified(kept, files, rejected, certificate),
                "## What the background gives away",
                "",
                background["sentence"],
                "",
                "## Suspicious classes",
                "",
                suspects.printed(found, class_names),
                "",
                "## Names",
                "",
                f"{len(names.review):,} names to review: `review.csv`. All readings: `names.csv`.",
                "",
                "## Classes that cannot be judged",
                "",
                ", ".join(class_names[i] for i in _unjudged(counts))
                or "None: every class has pictures in val and test.",
                "",
                "## Classes, rarest first",
                "",
                table(
                    [
                        (class_names[i], counts[i].sum(), *counts[i].tolist())
                        for i in np.argsort(counts.sum(axis=1), kind="stable")
                    ],
                    ("class", "pictures", *SPLITS),
                ),
                "",
            ]
        ),
    )
    return found, background["sentence"]


@dataclass(frozen=True)
class _Sheets:
    """Gives the pictures of each contact sheet; a class, not a closure, so that processes can be
    given it.
    """

    store: Path
    keys: np.ndarray
    split: np.ndarray
    group: np.ndarray
    copies: np.ndarray
    shown: np.ndarray
    starts: np.ndarray

    def __call__(self, class_idx: int) -> list[contact_sheets.Member]:
        shown = self.shown[self.starts[class_idx] : self.starts[class_idx + 1]].tolist()
        return [
            contact_sheets.Member(
                (self.store / target_of(self.keys[k])).read_bytes(),
                int(self.split[k]),
                int(self.group[k]),
                int(self.copies[k]),
            )
            for k in shown
        ]


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
    names = ["/".join(kept.classes[i]) for i in classes]
    group = kept.group[inside].astype(np.int64)
    _, which, sizes = np.unique(
        group * len(classes) + class_idx, return_inverse=True, return_counts=True
    )
    shown, starts = contact_sheets.pick(class_idx, kept.split[inside], group, len(classes), SHEET)
    sheets = _Sheets(
        store,
        facts["key"][kept.file[inside]],
        kept.split[inside],
        group,
        sizes[which],
        shown,
        starts,
    )
    number = {int(i): n for n, i in enumerate(classes)}
    reasons = suspects.reasons_by_class(found, ["/".join(pair) for pair in kept.classes])
    contact_sheets.write_contact_sheets(
        folder,
        names,
        sheets,
        kept.counts()[classes, :3],
        {number[i]: told for i, told in reasons.items()},
        workers,
        [note],
    )


def _rejected_by_class(
    kept: Kept, files: Files, rejected: Rejected, names: Names
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{reason: int (classes,)} of files left out, and those in conflict with another class, int
    (classes,).
    """
    number = {pair: i for i, pair in enumerate(kept.classes)}
    by_label = np.array(
        [number.get(names.classes.get(label, ("", "")), -1) for label in files.labels] + [-1]
    )
    class_idx = by_label[files.label]
    rows = {
        reason: np.bincount(
            class_idx[(rejected.reason == r) & (class_idx >= 0)], minlength=len(kept.classes)
        )
        for r, reason in enumerate(REASONS)
        if r
    }
    return rows, rows["label_conflict"]


def _counts(kept: Kept, files: Files, rejected: Rejected, not_plants: np.ndarray) -> list[str]:
    counts, tree = kept.counts().sum(axis=0).tolist(), kept.tree()
    reasons = np.bincount(rejected.reason, minlength=len(REASONS)).tolist()
    lines = [
        "# Organized data",
        "",
        f"{len(kept):,} pictures in {tree.num_classes:,} classes of {tree.num_species:,} species: "
        + ", ".join(f"{n:,} {s}" for n, s in zip(counts, SPLITS, strict=True) if n)
        + f". {(rejected.reason > 0).sum():,} files were left out.",
        "",
    ]
    if not_plants.any():
        lines += [f"Pictures of no plant: {not_plants[0]:,} in val, {not_plants[1]:,} in test.", ""]
    kept_by, all_by = (
        np.bincount(origin, minlength=len(files.sources))
        for origin in (files.origin[kept.file], files.origin)
    )
    lines += [
        "## Sources",
        "",
        table(
            [
                (
                    s.name,
                    f"{all_by[i]:,}",
                    f"{kept_by[i]:,}" if not s.not_plants else f"{not_plants.sum():,}",
                )
                for i, s in enumerate(files.sources)
            ],
            ("source", "files", "kept"),
        ),
        "",
    ]
    return [
        *lines,
        "## Left out",
        "",
        table(
            [(reason, f"{n:,}") for reason, n in zip(REASONS, reasons, strict=True) if reason and n]
            + (
                [("missing (rows of the labels CSV)", f"{len(files.missing):,}")]
                if files.missing
                else []
            ),
            ("reason", "files"),
        ),
        "",
        "Each file with its reason: `rejected.csv`.",
        "",
    ]


def _certified(
    kept: Kept,
    files: Files,
    rejected: Rejected,
    c: Certificate,
) -> list[str]:
    copies = np.flatnonzero(rejected.twin >= 0)
    theirs, of = files.given[copies], files.given[rejected.twin[copies]]
    crossing = int(((theirs >= 0) & (of >= 0) & (theirs != of)).sum())
    lines = [
        "## Leak certificate",
        "",
        "Share of val and test pictures with a near neighbour in train:",
        "",
        table(_leaks(c), ("split", "share")),
        "",
        (
            f"Near means: perceptual hashes at most {c.radius} of 64 bits apart under any of 8 "
            f"flips and turns"
            if c.near
            else "Hashes were not compared (--near -1)"
        )
        + (
            f", or features as alike as --cosine asks ({len(c.cosine):,} pairs)."
            if len(c.cosine)
            else "."
        ),
        "",
    ]
    if c.near and c.near.blank:
        lines += [
            f"{c.near.blank:,} pictures of one colour have no hash and were not compared.",
            "",
        ]
    if crossing:
        lines += [
            f"{crossing:,} exact copies stood in two parts of the split that the source gives.",
            "",
        ]
    lines += [
        "Groups never straddle a split."
        if c.leak == 0
        else "The split was kept as the source gives it, with what leaks.",
        f"{len(c.group_sizes):,} groups of two or more hold {sum(c.group_sizes):,} pictures, the "
        f"largest "
        f"{', '.join(f'{n:,}' for n in list(c.group_sizes)[:5]) or 'none'}.",
        "",
    ]
    if c.joined:
        lines += [
            table([(what, f"{n:,}") for what, n in c.joined.items()], ("joined by", "links")),
            "",
        ]
    if c.group_sizes and c.group_sizes[0] > 20:
        heads, sizes = np.unique(kept.group, return_counts=True)
        big = [
            (kept.classes[kept.class_idx[heads[i]]], sizes[i], files.path(kept.file[heads[i]]))
            for i in np.argsort(-sizes, kind="stable")[:5]
        ]
        lines += [
            "Largest groups:",
            "",
            table(
                [("/".join(pair), n, path) for pair, n, path in big],
                ("class of the first", "pictures", "first"),
            ),
            "",
        ]
    for search, rows in c.planted.items():
        lines += [
            f"Altered copies of pictures of this set, made to try the search, found by {search}:",
            "",
            planted_table(rows),
            "",
        ]
    return lines


def _unjudged(counts: np.ndarray) -> list[int]:
    """Classes without a val or a test picture; `counts` int (classes, 5)."""
    return np.flatnonzero(
        ((counts[:, 1] == 0) | (counts[:, 2] == 0)) & (counts[:, :3].sum(axis=1) > 0)
    ).tolist()
