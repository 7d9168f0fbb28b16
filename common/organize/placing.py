"""Puts the kept pictures where they belong below data/organized/, writes its index, and takes it
back.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.console import progress
from common.files import write_text
from common.organize.deduplicate import HOLDOUT_SPECIES, SPLITS, Kept, Rejected
from common.organize.duplicates.phash import connected, near_search
from common.organize.intake import REASONS, target_of
from common.organize.shards import Layout, layout, shard_name, write_shards
from common.organize.sources import Files
from common.organize.splits import TEST, draws, split_groups

FOLDERS = tuple(split.replace("_", "/") for split in SPLITS)
MANIFEST = tuple(
    "path species disease split group sha256 phash width height dataset source offset size".split()
)
REJECTED = ("source", "name", "reason", "detail")


@dataclass(frozen=True)
class Placed:
    """Where pictures stand below data/organized/: in files of their own, or (offset >= 0) within
    tar shards.

    shard: int32 (K,), -1 for a file of its own; offset: int64 (K,).
    """

    kept: Kept
    ids: np.ndarray
    shard: np.ndarray
    offset: np.ndarray

    def path(self, k: int) -> str:
        """Path of picture k in the manifest."""
        split, (species, disease) = self.kept.split[k], self.kept.classes[self.kept.class_idx[k]]
        if self.shard[k] >= 0:
            return f"{SPLITS[split]}/{shard_name(self.shard[k])}"
        return f"{FOLDERS[split]}/{species}/{disease}/{self.ids[k]:016x}.jpg"


def store_of(output: Path) -> Path:
    """Where a run keeps what it has read until data/organized/ is complete."""
    return output.with_name(output.name + ".store")


def partial_of(output: Path) -> Path:
    """Where data/organized/ grows until it is complete."""
    return output.with_name(output.name + ".partial")


def plan_places(kept: Kept, facts: np.ndarray, shard_bytes: int) -> tuple[Placed, list[Layout]]:
    """Decide where each picture goes; `shard_bytes` 0: files of their own. Returns the plan, and
    the shards of each split.
    """
    ids = np.ascontiguousarray(facts["sha256"][kept.file, :8]).view(">u8")[:, 0].astype(np.uint64)
    shard, offset, layouts = np.full(len(kept), -1, np.int32), np.full(len(kept), -1, np.int64), []
    if shard_bytes:
        inside = np.unique(
            kept.class_idx[kept.split < HOLDOUT_SPECIES]
        )  # class numbers as in the class tree, which knows no holdout
        number = np.searchsorted(inside, kept.class_idx)
        for split in range(3):
            mine = np.flatnonzero(kept.split == split)
            plan = layout(ids[mine], number[mine], facts["stored"][kept.file[mine]], shard_bytes)
            shard[mine], offset[mine] = plan.shard, plan.offset
            layouts.append(plan)
    return Placed(kept, ids, shard, offset), layouts


def place(
    placed: Placed, layouts: Sequence[Layout], facts: np.ndarray, store: Path, partial: Path
) -> None:
    """Put stored pictures where they belong; what stands there from a killed run with the same plan
    stays.

    Files become hard links, as the store must keep its own until the run is complete.
    """
    kept = placed.kept
    plan = hashlib.sha256(
        b"".join(
            np.ascontiguousarray(a).tobytes()
            for a in (placed.ids, placed.offset, kept.split, kept.class_idx)
        )
    )
    mark = partial.with_name(partial.name + ".plan")
    if not mark.is_file() or mark.read_text() != plan.hexdigest():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        mark.write_text(plan.hexdigest())

    def stored(k: int) -> str:
        return f"{store}/{target_of(facts['key'][kept.file[k]])}"

    for split, plan in enumerate(layouts):
        mine = np.flatnonzero(kept.split == split)
        write_shards(
            partial / SPLITS[split],
            plan,
            lambda i, mine=mine: stored(mine[i]),
            f"writing {SPLITS[split]} shards",
        )
    single = np.flatnonzero(placed.shard < 0)
    for split, class_idx in np.unique(
        np.stack([kept.split[single], kept.class_idx[single]]), axis=1
    ).T:
        (partial / FOLDERS[split] / Path(*kept.classes[class_idx])).mkdir(
            parents=True, exist_ok=True
        )
    for k in progress(single.tolist(), len(single), desc="placing", unit="file"):
        link(stored(k), f"{partial}/{placed.path(k)}")


def link(source: str, target: str) -> None:
    """Hard link, or copy where links cannot be; a target that is there already stays."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target + ".tmp")
        os.replace(target + ".tmp", target)


def place_not_plants(
    files: Files, facts: np.ndarray, good: np.ndarray, radius: int, store: Path, partial: Path
) -> np.ndarray:
    """Place pictures of no plant, of each kind half in val, half in test, by their content;
    near-duplicates keep together.

    Those in a folder below --not-plants lie in one of its name, which is their kind.

    Args:
        good: int64 (M,), their files that stay, in the order of their SHA-256.

    Returns:
        int64 (2,): pictures in val and test.
    """
    near = near_search(facts["phash"][good], max(radius, 0))
    group = connected(len(good), near.edges()) if radius >= 0 else np.arange(len(good))
    kinds = [files.kind_of(i) for i in good.tolist()]
    number = np.unique(np.array(kinds, str), return_inverse=True)[1]
    split = split_groups(number.astype(np.int64), group, draws(facts["sha256"][good]), 0.0, 0.5)
    # of a killed run, perhaps with other pictures
    shutil.rmtree(partial / "not_plants", ignore_errors=True)
    for k, i in enumerate(good.tolist()):
        folder = partial / "not_plants" / ("test" if split[k] == TEST else "val") / kinds[k]
        folder.mkdir(parents=True, exist_ok=True)
        link(
            f"{store}/{target_of(facts['key'][i])}",
            f"{folder}/{facts['sha256'][i, :8].tobytes().hex()}.jpg",
        )
    return np.array([(split != TEST).sum(), (split == TEST).sum()])


def write_index(folder: Path, kept: Kept) -> None:
    """Write species_index.json: the tree in index order with the counts per split."""
    data = kept.tree().to_json()
    counts = dict(zip(kept.classes, kept.counts().tolist(), strict=True))
    for row in data["species"]:
        row["counts"] = {
            d: dict(zip(SPLITS[:3], counts[row["name"], d], strict=False)) for d in row["diseases"]
        }
    write_text(folder / "species_index.json", json.dumps(data, indent=1))


def manifest_rows(placed: Placed, files: Files, facts: np.ndarray) -> Iterator[tuple[object, ...]]:
    """Rows of manifest.csv, a picture each, by split, species, disease and id."""
    kept = placed.kept
    order = np.lexsort((kept.class_idx, kept.split))
    # in blocks: Python numbers taken one by one out of arrays cost ten times as much
    for start in range(0, len(order), 4096):
        rows = order[start : start + 4096]
        i = kept.file[rows]
        fact, groups = facts[i], placed.ids[kept.group[rows]]
        columns = (
            kept.class_idx[rows],
            kept.split[rows],
            groups,
            fact["phash"],
            fact["width"],
            fact["height"],
            files.dataset[i],
            placed.offset[rows],
            fact["stored"],
        )
        for k, file, sha, (
            class_idx,
            split,
            group,
            phash,
            width,
            height,
            dataset,
            offset,
            stored,
        ) in zip(
            rows.tolist(),
            i.tolist(),
            fact["sha256"],
            zip(*(column.tolist() for column in columns), strict=True),
            strict=True,
        ):
            yield (
                placed.path(k),
                *kept.classes[class_idx],
                SPLITS[split],
                f"{group:016x}",
                sha.tobytes().hex(),
                f"{phash:016x}",
                width,
                height,
                files.datasets[dataset],
                files.path(file),
                offset if offset >= 0 else "",
                stored,
            )


def rejected_rows(files: Files, rejected: Rejected) -> Iterator[tuple[str, ...]]:
    """Rows of rejected.csv: every file that is not in the manifest, and rows of labels CSVs without
    a file.
    """
    not_plants = files.is_not_plant()
    for i in np.flatnonzero(rejected.reason).tolist():
        label = "not_plants" if not_plants[i] else files.label_of(i)
        twin = rejected.twin[i]
        yield (
            files.path(i),
            label,
            REASONS[rejected.reason[i]],
            f"of {files.path(twin)}" if twin >= 0 else rejected.details.get(i, ""),
        )
    yield from files.missing


def foreign(output: Path) -> list[str]:
    """Paths below data/organized/ that 01 did not make, sorted."""
    own = {
        "manifest.csv",
        "rejected.csv",
        "review.csv",
        "names.csv",
        "labels_review.csv",
        "species_index.json",
        "report.md",
        "build_info.json",
    }
    with (output / "manifest.csv").open(
        newline="", encoding="utf-8", errors="surrogateescape"
    ) as file:
        own |= {row["path"] for row in csv.DictReader(file)}
    paths = (
        os.path.relpath(os.path.join(folder, name), output)
        for folder, _, names in os.walk(output)
        for name in names
    )
    return sorted(
        path
        for path in paths
        if path not in own and not path.startswith(("not_plants" + os.sep, "report" + os.sep))
    )


def clear(output: Path) -> None:
    """Remove what a run needs on its way and a killed one leaves: the store and a half-made
    folder.
    """
    for folder in (store_of(output), partial_of(output)):
        shutil.rmtree(folder, ignore_errors=True)
    output.with_name(output.name + ".partial.plan").unlink(missing_ok=True)


def remove(output: Path) -> list[str]:
    """Take back what 01 made: data/organized/, its store and what a killed run left; the sources
    are not touched.

    Returns:
        paths below `output` that 01 did not make; they stay, and so do their folders.
    """
    clear(output)
    if not output.is_dir():
        return []
    left = foreign(output)
    if not left:
        shutil.rmtree(output)
        return []
    for folder, _, names in os.walk(output, topdown=False):
        for path in (os.path.join(folder, name) for name in names):
            if os.path.relpath(path, output) not in left:
                os.unlink(path)
        if not os.listdir(folder):
            os.rmdir(folder)
    return left
