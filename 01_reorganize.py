"""Put raw image folders in order: names read, bad files and duplicates set aside, split without
leaks, resized, indexed.

Reads   folders of class folders (Tomato___Early_blight/, or tomato/early_blight/), or a labels CSV;
        never changes them
Writes  data/organized/: {train,val,test}/<species>/<disease>/<id>.jpg or, with --shards,
        {train,val,test}/shard-000000.tar; not_plants/{val,test}/, holdout/; species_index.json,
        manifest.csv, rejected.csv, review.csv, names.csv, labels_review.csv, report.md,
        report/
Next    02a_train_species.py

  python 01_reorganize.py --demo                          generated pictures, to try every stage
  python 01_reorganize.py ~/photos/PlantVillage --dry-run show how folders are read
  python 01_reorganize.py mango=~/photos/leaves --dry-run --json folders.json --review review.csv
  python 01_reorganize.py village=~/photos/A field=~/photos/B --not-plants ~/photos/other --report
  python 01_reorganize.py village=~/photos/A field=~/photos/B --holdout-source field
  python 01_reorganize.py ~/traps --labels ~/traps/labels.csv --levels 1 \\
      --columns file=image_id label=animal group=station
  python 01_reorganize.py --undo                          remove what was made, but no source

A run that was stopped or killed continues with the same command. The demo takes half a minute on
two cores, drawing included.
"""

import argparse
import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from common.console import Laps, fail, friendly, header, parser, say
from common.demo import pictures
from common.files import stand_in, write_rows, write_text
from common.images import read_rgb
from common.organize import label_decisions, placing
from common.organize.deduplicate import (
    Kept,
    Rejected,
    choose,
    class_numbers,
    class_sizes,
    leave_out_versions,
    require_sizes,
)
from common.organize.duplicates import lookalikes
from common.organize.duplicates.planted import Row, judge_hashes
from common.organize.flags import add_flags, check_flags
from common.organize.intake import read_all, target_of
from common.organize.label_csv import find_table, read_labels
from common.organize.names.review import NAMES, REVIEW, Names, read_names
from common.organize.partition import hold_out, hold_out_sources, partition
from common.organize.report import (
    show_names,
    show_result,
    write_contact_sheets,
    write_json,
    write_report,
)
from common.organize.sources import Files, list_files, parse_sources

PLANTED = 200  # pictures whose altered copies show how many duplicates the search finds
# flags that do not change what is made of the same files
MACHINE = frozenset(
    "workers fresh undo dry_run json review output demo sources not_plants names labels "
    "labels_review".split()
)


def gather(args: argparse.Namespace) -> Files:
    """List all files of the sources, with their labels."""
    sources = parse_sources(args.sources, args.not_plants)
    inside = args.output.resolve()
    for source in sources:
        root = source.root.resolve()
        if inside == root or inside in root.parents or root in inside.parents:
            fail(
                f"the output folder {args.output} and the source {root} lie within each other. "
                f"Choose another --output."
            )
    files = list_files(sources)
    plants = ~files.is_not_plant()
    if not plants.any():
        fail(
            f"there are no files in {', '.join(args.sources)}. A source holds one folder per "
            f"class, with pictures in it."
        )
    if not args.labels and len(args.sources) == 1 and not (files.label >= 0).any():
        args.labels = find_table(sources[0].root)
    if args.labels:
        read_labels(files, 0, args.labels, args.columns, args.path_pattern, args.multi)
    elif not (files.label >= 0).any():
        fail(
            f"{args.sources[0]} holds no class folder with a picture. Give the folder above it, or "
            f"sort the pictures into one folder per "
            "class, named like Tomato___Early_blight, or give their --labels in a CSV."
        )
    if args.keep_split and not (files.given[plants] >= 0).any():
        fail(
            "--keep-split: no folder of the source and no column of --labels says train, val or "
            "test. A column is told with --columns split=NAME."
        )
    return files


def identity_of(files: Files, args: argparse.Namespace) -> str:
    """Hash of everything that decides the result: the files' paths, sizes and times, and the
    flags.
    """
    flags = sorted((k, str(v)) for k, v in vars(args).items() if k not in MACHINE)
    digest = hashlib.sha256(
        repr(
            (flags, [(s.name, str(s.root)) for s in files.sources], files.folders, files.labels)
        ).encode(errors="surrogateescape")
    )
    for path in (args.names, args.labels, args.labels_review):
        digest.update(path.read_bytes() if path and path.is_file() else b"-")
    for name in ("folder", "label", "given", "cluster", "arena", "ends", "size", "mtime_ns"):
        digest.update(np.ascontiguousarray(getattr(files, name)).data)
    return digest.hexdigest()[:16]


def already_there(args: argparse.Namespace, identity: str) -> bool:
    """Whether the output folder holds this very result; another result is an error, unless --fresh
    says otherwise.
    """
    build_info, output = args.output / "build_info.json", args.output
    if not build_info.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            fail(f"{output} is there and was not made by this script. Choose another --output.")
        return False
    if args.fresh:
        if others := placing.foreign(output):
            fail(
                f"{output} holds {len(others)} files that this script did not make "
                f"({', '.join(others[:3])}); --fresh would delete them. Move them away first."
            )
        return False
    if json.loads(build_info.read_text())["identity"] != identity:
        fail(
            f"{output} was made from other files or settings. Add --fresh to make it anew, or "
            "choose another --output."
        )
    say(f"{output} is up to date: same files, same settings.")
    return True


def read_sources(
    args: argparse.Namespace, laps: Laps
) -> tuple[Files, Names, list[tuple[str, str]], np.ndarray]:
    """List the files and read their classes: files, names, classes, and each file's class."""
    header("01 reorganize")
    if args.demo:
        made = pictures.make_demo(args.output.absolute().parent / "demo", workers=args.workers)
        args.sources = [str(made["plants"])]
        args.not_plants = args.not_plants or made["not_plants"]
    with laps("listing files"):
        files = gather(args)
    with laps("reading names"):
        names = read_names(files.labels, files.sources, args.levels, args.names, args.species)
        index, class_idx = class_numbers(files, names.classes)
        if args.versions != "all":
            leave_out_versions(files, class_idx, args.versions)
    show_names(files, names, index, class_idx)
    hold_out_sources(files, class_idx, index, args.holdout_source)
    return files, names, index, class_idx


def judge_search(
    args: argparse.Namespace,
    kept: Kept,
    hashes: np.ndarray,
    stored: Callable[[int], bytes],
    alike: lookalikes.Lookalikes,
) -> dict[str, list[Row]]:
    """What each search for near-duplicates makes of altered copies of kept pictures; hashes: uint64
    (K,); stored: the file of a kept one.
    """
    planted = {}
    sample = range(min(PLANTED, len(kept)))  # the first by content hash are a random sample
    if args.embed:
        planted[f"features, cosine at least {alike.cosine}"] = alike.judge(sample, kept.group)
    if args.near >= 0:
        planted[f"perceptual hash, at most {args.near} of 64 bits"] = judge_hashes(
            lambda k: read_rgb(stored(k), min_side=1), sample, hashes, kept.group, args.near
        )
    return planted


def write_tables(
    folder: Path,
    names: Names,
    decisions: list[label_decisions.Decision],
    manifest: Iterable,
    rejected: Iterable,
) -> None:
    """Write the CSV tables of data/organized/."""
    for table, titles, rows in (
        ("manifest", placing.MANIFEST, manifest),
        ("rejected", placing.REJECTED, rejected),
        ("review", REVIEW, names.review),
        ("names", NAMES, names.table),
        ("labels_review", label_decisions.COLUMNS, label_decisions.decided_rows(decisions)),
    ):
        write_rows(folder / f"{table}.csv", titles, rows)


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Organize; see the module's docstring."""
    flags, laps = parser(__doc__), Laps()
    add_flags(flags)
    args = flags.parse_args(argv)
    check_flags(args)
    if args.undo:
        return undo(args.output)
    with contextlib.redirect_stdout(sys.stderr if args.json == "-" else sys.stdout):
        files, names, index, class_idx = read_sources(args, laps)
    review = args.review if args.dry_run else args.output.with_name("review.csv")
    if review and (args.dry_run or not index):
        write_rows(review, REVIEW, names.review)
    decisions = label_decisions.read_decisions(args.labels_review, index)
    if args.dry_run:
        if args.json:
            write_json(args.json, files, names, by_picture=bool(args.labels))
        return 0
    if not index:
        fail(
            f"no class can be read from {len(files.labels):,} names: none says its plant. Say it "
            f"with --species, with NAME=FOLDER, or in {review}, given back with --names."
        )
    sizes = class_sizes(np.arange(len(files)), files, class_idx, index)
    require_sizes(sizes, index, args.small_classes)  # before hours of reading
    learned = [index[i] for i in np.flatnonzero(sizes)]
    held_out = dict(
        zip(learned, hold_out(learned, args.holdout_species, args.holdout_diseases), strict=True)
    )
    identity = identity_of(files, args)
    if already_there(args, identity):
        placing.clear(args.output)
        return 0
    store, partial = placing.store_of(args.output), placing.partial_of(args.output)
    with laps("reading pictures"):
        facts, details = read_all(files, store, args.long_side, not args.copy, args.workers)
    label_decisions.apply_decisions(decisions, files, facts, class_idx)
    with laps("setting duplicates aside"):
        if not ((facts["reason"] == 0) & ~files.is_not_plant()).any():
            shutil.rmtree(store)  # nothing in it that would make another run quicker
        rejected = Rejected(facts["reason"].copy(), details, np.full(len(files), -1, np.int64))
        kept, others = choose(files, facts, rejected, index, class_idx, args)

    def stored(k: int) -> bytes:
        return (store / target_of(facts["key"][kept.file[k]])).read_bytes()

    chosen, alike = facts[kept.file], lookalikes.NONE
    if args.embed:
        with laps("comparing features"):
            alike = lookalikes.find(args, stored, chosen["sha256"], store / "features")
    with laps("grouping and splitting"):
        out = np.array([held_out.get(pair, 0) for pair in kept.classes], np.int8)
        certificate = partition(kept, files, facts, out, alike.pairs, args)
    with laps("judging the search on copies it makes"):
        certificate.planted.update(judge_search(args, kept, chosen["phash"], stored, alike))
    with laps("placing pictures"):
        placed, layouts = placing.plan_places(kept, facts, round(args.shards * 1e6))
        placing.place(placed, layouts, facts, store, partial)
        not_plants = placing.place_not_plants(files, facts, others, args.near, store, partial)
    with laps("writing the index"):
        placing.write_index(partial, kept)
        manifest = placing.manifest_rows(placed, files, facts)
        write_tables(partial, names, decisions, manifest, placing.rejected_rows(files, rejected))
        suspects, note = write_report(
            partial, kept, files, facts, rejected, names, certificate, not_plants
        )
        info = {"identity": identity, "long_side": args.long_side}
        info["sources"] = {source.name: str(source.root) for source in files.sources}
        write_text(partial / "build_info.json", json.dumps(info))
    if args.report:
        with laps("drawing the report"):
            write_contact_sheets(
                partial / "report", kept, facts, suspects, note, store, args.workers
            )
    stand_in(partial, args.output)
    placing.clear(args.output)
    show_result(args.output, kept, rejected, certificate)
    say("", laps.table(), "", "next: python 02a_train_species.py")
    return 0


def undo(output: Path) -> int:
    """Remove what this script made at `output`."""
    there = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if there and not (output / "build_info.json").is_file():
        fail(f"{output} was not made by this script; nothing was removed.")
    left = placing.remove(output)
    say(f"removed what this script had made at {output}; the sources are as they were.")
    if left:
        say(f"{len(left)} files there are not of its making and stay: {', '.join(left[:6])}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
