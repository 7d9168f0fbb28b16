"""Put raw image folders in order: names read, bad files and duplicates set aside, split without
leaks, resized, indexed.

Reads   folders of class folders (Tomato___Early_blight/, or tomato/early_blight/), or a labels CSV;
        never changes them
Writes  data/organized/: {train,val,test}/<species>/<disease>/<id>.jpg or, with --shards,
        {train,val,test}/shard-000000.tar; not_plants/{val,test}/, holdout/; species_index.json,
        manifest.csv, rejected.csv, review.csv, names.csv, labels_review.csv (decisions, where
        given), report.md, report/
Next    02a_train_species.py

  python 01_reorganize.py --demo                          generated pictures, to try every stage
  python 01_reorganize.py ~/photos/PlantVillage --dry-run show how names are read, write nothing
  python 01_reorganize.py village=~/photos/A field=~/photos/B --not-plants ~/photos/other --report
  python 01_reorganize.py ~/traps --labels ~/traps/labels.csv --levels 1 \\
      --columns file=image_id label=animal group=station
  python 01_reorganize.py --undo                          remove what was made, but no source

A run that was stopped or killed continues with the same command. The demo takes half a minute on
two cores, drawing included.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.console import Laps, fail, friendly, header, parser, say
from common.demo import pictures
from common.files import write_rows, write_text
from common.images import read_rgb
from common.organize import placing
from common.organize.deduplicate import Rejected, choose, class_numbers, require_sizes
from common.organize.duplicates import lookalikes
from common.organize.duplicates.planted import judge_hashes
from common.organize.intake import read_all, target_of
from common.organize.label_csv import read_labels
from common.organize.label_decisions import apply_decisions, read_decisions, write_decisions
from common.organize.names.review import NAMES, REVIEW, read_names
from common.organize.partition import hold_out, partition
from common.organize.report import show_names, show_result, write_contact_sheets, write_report
from common.organize.sources import Files, list_files, parse_sources

PLANTED = 200  # pictures whose altered copies show how many duplicates the search finds


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    flags = parser(__doc__)
    add = flags.add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="folder of class folders; NAME=FOLDER names it in the manifest",
    )
    add(
        "--demo",
        action="store_true",
        help="draw demo pictures beside the output folder and organize those",
    )
    add("--output", type=Path, default=Path("data/organized"))
    add(
        "--not-plants",
        type=Path,
        metavar="DIR",
        help="pictures of no plant, to fit and test the rejection; each folder in it is a kind",
    )
    add(
        "--names",
        type=Path,
        metavar="CSV",
        help="your answers for names: columns name,species,disease (an edited review.csv will do)",
    )
    add("--labels-review", type=Path, metavar="CSV", help="labels_review.csv of 02a, decided")
    add(
        "--levels",
        type=int,
        choices=[1, 2],
        default=2,
        help="1: a folder or label is a class of its own (flowers, animals)",
    )
    add(
        "--labels",
        type=Path,
        metavar="CSV",
        help="labels of the source's files, instead of its folders",
    )
    add(
        "--columns",
        nargs="+",
        default=[],
        metavar="USE=NAME",
        help="columns of --labels: file=, label= (or species= disease=), group= (pictures of one "
        "plant or place), split=",
    )
    add(
        "--path-pattern",
        default="{}",
        metavar="PATH",
        help="where a row's file is below the source, e.g. images/{}.jpg",
    )
    add(
        "--long-side",
        type=int,
        default=512,
        help="px of the stored pictures' long side (default 512)",
    )
    add("--val", type=float, default=0.15, help="share of val (default 0.15)")
    add("--test", type=float, default=0.15, help="share of test (default 0.15)")
    add(
        "--keep-split",
        action="store_true",
        help="keep the train, val and test that the source gives",
    )
    add(
        "--near",
        type=int,
        default=6,
        metavar="BITS",
        help="near-duplicates: hashes at most so many of 64 bits apart; -1 turns the search off "
        "(default 6)",
    )
    add(
        "--group-by",
        nargs="*",
        choices=["stem", "moment"],
        default=["stem"],
        help="keep together: stem, pictures made from one by their names (x_90deg.jpg); moment, "
        "one camera in one minute (default stem)",
    )
    add(
        "--holdout-species",
        default="",
        metavar="N|NAMES",
        help="set whole species aside to test how the model meets the unknown",
    )
    add(
        "--holdout-diseases",
        default="",
        metavar="N|NAMES",
        help="the same for diseases: leaf_mold, tomato/leaf_mold",
    )
    add(
        "--small-classes",
        choices=["fail", "train", "drop"],
        default="fail",
        help="classes of fewer than 3 pictures: stop, keep them in train only, or leave them out",
    )
    add(
        "--shards",
        nargs="?",
        type=float,
        const=1000.0,
        default=0.0,
        metavar="MB",
        help="store in tar shards of so many MB (default 1000)",
    )
    add(
        "--copy",
        action="store_true",
        help="copy pictures that need no change (default: hard links, where the disk can)",
    )
    add(
        "--report",
        action="store_true",
        help="also write report/: a contact sheet per class, class sizes, suspicious classes",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print how names are read and how many files there are; write nothing",
    )
    add("--fresh", action="store_true", help="start over where the output folder is there already")
    add("--undo", action="store_true", help="remove the output folder and what a stopped run left")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    lookalikes.add_flags(flags)
    args = flags.parse_args(argv)
    if not args.undo and bool(args.sources) == args.demo:
        fail(
            "give one or more folders of class folders, or --demo for generated pictures (--help "
            "shows examples)."
        )
    if not 0 < args.val < 1 or not 0 < args.test < 1 or args.val + args.test > 0.8:
        fail(
            f"--val {args.val} and --test {args.test} must lie above 0 and leave at least a fifth "
            f"for train."
        )
    if (
        not 64 <= args.long_side <= 8192
        or not -1 <= args.near <= 15
        or args.workers < 1
        or not 0.5 <= (args.cosine or 1) <= 1
    ):
        fail(
            "--long-side must be 64 to 8192, --near -1 to 15, --workers at least 1, --cosine 0.5 "
            "to 1."
        )
    if args.labels and len(args.sources) != 1:
        fail(
            "--labels tells about one source: give one SOURCE, the folder below which its files "
            "lie."
        )
    return args


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
    if args.labels:
        read_labels(files, 0, args.labels, args.columns, args.path_pattern)
    elif not (files.label >= 0).any():
        fail(
            f"{args.sources[0]} holds files but no class folders. Give the folder above it, or "
            f"sort the pictures into one folder per "
            "class, named like Tomato___Early_blight, or give their --labels in a CSV."
        )
    return files


def identity_of(files: Files, args: argparse.Namespace) -> str:
    """Hash of everything that decides the result: the files' paths, sizes and times, and the
    flags.
    """
    machine = {
        "workers",
        "fresh",
        "undo",
        "dry_run",
        "output",
        "demo",
        "sources",
        "not_plants",
        "names",
        "labels",
        "labels_review",
    }
    flags = sorted((k, str(v)) for k, v in vars(args).items() if k not in machine)
    digest = hashlib.sha256(
        repr((flags, [(s.name, str(s.root)) for s in files.sources], files.folders)).encode(
            errors="surrogateescape"
        )
    )
    for path in (args.names, args.labels, args.labels_review):
        digest.update(path.read_bytes() if path and path.is_file() else b"-")
    for values in (
        files.folder,
        files.label,
        files.given,
        files.arena,
        files.ends,
        files.size,
        files.mtime_ns,
    ):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]


def already_there(args: argparse.Namespace, identity: str) -> bool:
    """Whether the output folder holds this very result; another result is an error, unless --fresh
    says otherwise.
    """
    build_info = args.output / "build_info.json"
    if not args.output.exists():
        return False
    if not build_info.is_file() and (not args.output.is_dir() or any(args.output.iterdir())):
        fail(f"{args.output} is there and was not made by this script. Choose another --output.")
    if args.fresh:
        if build_info.is_file() and (others := placing.foreign(args.output)):
            fail(
                f"{args.output} holds {len(others)} files that this script did not make "
                f"({', '.join(others[:3])}); --fresh would delete "
                "them. Move them away first."
            )
        return False
    if build_info.is_file() and json.loads(build_info.read_text())["identity"] == identity:
        say(f"{args.output} is up to date: same files, same settings.")
        return True
    if build_info.is_file():
        fail(
            f"{args.output} was made from other files or settings. Add --fresh to make it anew, "
            f"or choose another --output."
        )
    return False


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Organize; see the module's docstring."""
    args, laps = parse(argv), Laps()
    header("01 reorganize")
    store, partial = (
        args.output.with_name(args.output.name + ending) for ending in (".store", ".partial")
    )
    if args.undo:
        return undo(args.output)
    if args.demo:
        made = pictures.make_demo(args.output.absolute().parent / "demo", workers=args.workers)
        args.sources, args.not_plants = [str(made["plants"])], args.not_plants or made["not_plants"]
    with laps("listing files"):
        files = gather(args)
    with laps("reading names"):
        names = read_names(files.labels, args.levels, args.names)
        index, class_idx = class_numbers(files, names.classes)
    show_names(files, names, index, class_idx)
    decisions = read_decisions(args.labels_review, index) if args.labels_review else []
    if args.dry_run:
        return 0
    require_sizes(
        np.bincount(class_idx[class_idx >= 0], minlength=len(index)), index, args.small_classes
    )  # before hours of reading
    held_out = dict(
        zip(index, hold_out(index, args.holdout_species, args.holdout_diseases), strict=True)
    )
    identity = identity_of(files, args)
    if already_there(args, identity):
        placing.clear(args.output)
        return 0
    with laps("reading pictures"):
        facts, details = read_all(files, store, args.long_side, not args.copy, args.workers)
    if decisions:
        apply_decisions(decisions, args.labels_review, files, facts, class_idx)
    with laps("setting duplicates aside"):
        if not ((facts["reason"] == 0) & ~files.is_not_plant()).any():
            shutil.rmtree(store)  # nothing in it that would make another run quicker
        rejected = Rejected(facts["reason"].copy(), details, np.full(len(files), -1, np.int64))
        kept, others = choose(
            files,
            facts,
            rejected,
            index,
            class_idx,
            small_classes=args.small_classes,
            keep_split=args.keep_split,
            no_label=f"no row in {args.labels.name}"
            if args.labels
            else "the file lies in no class folder",
        )

    def stored(k: int) -> Path:
        return store / target_of(facts["key"][kept.file[k]])

    alike = lookalikes.NONE
    if args.embed:
        with laps("comparing features"):
            alike = lookalikes.find(
                args,
                lambda k: stored(k).read_bytes(),
                facts["sha256"][kept.file],
                store / "features",
            )
    with laps("grouping and splitting"):
        out = np.array([held_out[pair] for pair in kept.classes], np.int8)
        certificate = partition(
            kept,
            files,
            facts,
            out,
            radius=args.near,
            val=args.val,
            test=args.test,
            group_by=args.group_by,
            keep_split=args.keep_split,
            cosine=alike.pairs,
            workers=args.workers,
        )
    with laps("judging the search on copies it makes"):
        sample = range(min(PLANTED, len(kept)))  # the first by content hash are a random sample
        planted = (
            {f"features, cosine at least {alike.cosine}": alike.judge(sample, kept.group)}
            if args.embed
            else {}
        )
        if args.near >= 0:
            planted[f"perceptual hash, at most {args.near} of 64 bits"] = judge_hashes(
                lambda k: read_rgb(stored(k), min_side=1),
                sample,
                facts["phash"][kept.file],
                kept.group,
                args.near,
            )
    with laps("placing pictures"):
        placed, layouts = placing.plan_places(kept, facts, round(args.shards * 1e6))
        placing.place(placed, layouts, facts, store, partial)
        not_plants = (
            placing.place_not_plants(files, facts, others, args.near, store, partial)
            if args.not_plants
            else np.zeros(2, int)
        )
    with laps("writing the index"):
        placing.write_index(partial, kept)
        write_rows(
            partial / "manifest.csv", placing.MANIFEST, placing.manifest_rows(placed, files, facts)
        )
        write_rows(
            partial / "rejected.csv", placing.REJECTED, placing.rejected_rows(files, rejected)
        )
        write_rows(partial / "review.csv", REVIEW, names.review)
        write_rows(partial / "names.csv", NAMES, names.table)
        if decisions:
            write_decisions(partial / "labels_review.csv", decisions)
        suspects, note = write_report(
            partial, kept, files, facts, rejected, names, certificate, planted, not_plants
        )
        write_text(
            partial / "build_info.json",
            json.dumps(
                {
                    "identity": identity,
                    "long_side": args.long_side,
                    "sources": {s.name: str(s.root) for s in files.sources},
                }
            ),
        )
    if args.report:
        with laps("drawing the report"):
            write_contact_sheets(
                partial / "report", kept, facts, suspects, note, store, args.workers
            )
    shutil.rmtree(args.output, ignore_errors=True)
    os.replace(partial, args.output)
    placing.clear(args.output)
    show_result(args.output, kept, rejected, certificate, planted)
    say("", laps.table(), "", "next: python 02a_train_species.py")
    return 0


def undo(output: Path) -> int:
    """Remove what this script made at `output`."""
    if output.exists() and any(output.iterdir()) and not (output / "build_info.json").is_file():
        fail(f"{output} was not made by this script; nothing was removed.")
    left = placing.remove(output)
    say(f"removed what this script had made at {output}; the sources are as they were.")
    if left:
        say(f"{len(left)} files there are not of its making and stay: {', '.join(left[:6])}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
