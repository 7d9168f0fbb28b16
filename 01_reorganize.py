"""Put raw image folders in order: names read, bad files and duplicates set aside, split without leaks, resized, indexed.

Reads   one or more folders of class folders (Tomato___Early_blight/, or tomato/early_blight/); never changes them
Writes  data/organized/: {train,val,test}/<species>/<disease>/<id>.jpg, not_plants/{val,test}/<id>.jpg,
        species_index.json, manifest.csv, rejected.csv, review.csv, report.md
Next    02a_train_species.py

  python 01_reorganize.py --demo                             generated leaves, to see every stage work
  python 01_reorganize.py ~/photos/PlantVillage --dry-run    how the names would be read; nothing is written
  python 01_reorganize.py ~/photos/A ~/photos/B --not-plants ~/photos/anything_else

Stopped or killed, the same command goes on where it was. The demo takes half a minute on two cores, drawing included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from common import demo, organize
from common.console import Stopwatch, duration, fail, friendly, header, parser, say, table, warn
from common.files import write_rows, write_text
from common.labels import Leaf, read_names
from common.sources import Checked, Found, check_all, scan
from common.taxonomy import ClassTree


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    flags = parser(__doc__)
    flags.add_argument("sources", nargs="*", type=Path, metavar="SOURCE", help="folder of class folders")
    flags.add_argument("--demo", action="store_true", help="draw demo pictures beside the output folder and organize those")
    flags.add_argument("--output", type=Path, default=Path("data/organized"))
    flags.add_argument("--not-plants", type=Path, help="folder of pictures that show no plant, to fit and test the rejection")
    flags.add_argument("--names", type=Path, metavar="CSV", help="your answers for names: columns name,species,disease")
    flags.add_argument("--levels", type=int, choices=[1, 2], default=2, help="1: a folder is a class of its own (flowers, animals)")
    flags.add_argument("--long-side", type=int, default=512, help="px of the stored pictures' long side (default 512)")
    flags.add_argument("--val", type=float, default=0.15, help="share of val (default 0.15)")
    flags.add_argument("--test", type=float, default=0.15, help="share of test (default 0.15)")
    flags.add_argument("--near", type=int, default=6, metavar="BITS",
                       help="near-duplicates: hashes at most so many of 64 bits apart; -1 turns the search off (default 6)")
    flags.add_argument("--small-classes", choices=["fail", "train", "drop"], default="fail",
                       help="classes of fewer than 3 pictures: stop, keep them in train only, or leave them out")
    flags.add_argument("--dry-run", action="store_true", help="print how names are read and how many files there are; write nothing")
    flags.add_argument("--fresh", action="store_true", help="start over where the output folder is there already")
    flags.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = flags.parse_args(argv)
    if bool(args.sources) == args.demo:
        fail("give one or more folders of class folders, or --demo for generated pictures (--help shows examples).")
    if not 0 < args.val < 1 or not 0 < args.test < 1 or args.val + args.test > 0.8:
        fail(f"--val {args.val} and --test {args.test} must lie above 0 and leave at least a fifth for train.")
    if not 64 <= args.long_side <= 8192 or not -1 <= args.near <= 15 or args.workers < 1:
        fail("--long-side must be 64 to 8192, --near -1 to 15, --workers at least 1.")
    args.sources = [source.absolute() for source in args.sources]  # the same files, however their folder is written
    args.not_plants = args.not_plants and args.not_plants.absolute()
    return args


def list_files(args: argparse.Namespace) -> list[Found]:
    """List all files of the sources."""
    for source in [*args.sources, *([args.not_plants] if args.not_plants else [])]:
        if not source.is_dir():
            fail(f"there is no folder {source}." if not source.exists() else f"{source} is a file; give the folder above it.")
        inside = args.output.resolve()
        if inside == source.resolve() or inside in source.resolve().parents or source.resolve() in inside.parents:
            fail(f"the output folder {args.output} and the source {source} lie within each other. Choose another --output.")
    files = [found for source in args.sources for found in scan(source)]
    if not files:
        fail(f"there are no files in {', '.join(map(str, args.sources))}. A source holds one folder per class, with pictures in it.")
    if not any(found.name for found in files):
        fail(f"{args.sources[0]} holds files but no class folders. Give the folder above it, or sort the pictures into one "
             "folder per class, named like Tomato___Early_blight.")
    return files


def require_sizes(sizes: Counter[Leaf], args: argparse.Namespace, note: str = "") -> None:
    """Stop where there is only one class, or one too small to be in every split, unless the flags say what to do with it."""
    if len(sizes) < 2:
        only = "/".join(next(iter(sizes), ("none",)))
        fail(f"there is only one class ({only}): nothing to tell apart. Give at least two class folders.")
    small = sorted(leaf for leaf, n in sizes.items() if n < 3)
    if small and args.small_classes == "fail":
        names = ", ".join(f"{'/'.join(leaf)} ({sizes[leaf]})" for leaf in small[:8])
        fail(f"{len(small)} of {len(sizes)} classes have fewer than 3 pictures and cannot be in train, val and test: {names}. Add "
             f"pictures, or run again with --small-classes train (learned, never judged) or --small-classes drop.{note}")


def choose(files: list[Found], checked: dict[str, Checked], leaves: dict[str, Leaf],
           args: argparse.Namespace, store: Path) -> tuple[list[organize.Kept], list[tuple[str, ...]]]:
    """Sort checked files into those that stay and rows of rejected.csv; small classes as asked. A dead end leaves no store."""
    rejected = [(f.path, f.name, checked[f.path].reason, checked[f.path].detail) for f in files if checked[f.path].reason]
    good = [f for f in files if not checked[f.path].reason]
    rejected += [(f.path, f.name, "no_class", "the file lies in no class folder" if not f.name else "see review.csv")
                 for f in good if f.name not in leaves]
    kept, duplicates = organize.drop_duplicates([(f, checked[f.path], leaves[f.name]) for f in good if f.name in leaves])
    rejected += duplicates
    if not kept:
        shutil.rmtree(store)
        fail("not one usable picture was found. " + "; ".join(f"{n} files: {reason}" for reason, n in Counter(
            row[2] for row in rejected).most_common(4)) + ".")
    sizes = Counter(k.leaf for k in kept)
    small = {leaf for leaf, n in sizes.items() if n < 3}
    require_sizes(sizes, args, f" What was read waits in {store.name}/, so that the next run is quick.")
    if args.small_classes == "drop":
        rejected += [(k.found.path, k.found.name, "small_class", f"{sizes[k.leaf]} usable pictures") for k in kept if k.leaf in small]
        kept = [k for k in kept if k.leaf not in small]
        require_sizes(Counter(k.leaf for k in kept), args)
    return kept, rejected


def identity_of(files: list[Found], strangers: list[Found], args: argparse.Namespace) -> str:
    """Hash of everything that decides the result: the files' paths, sizes and times, and the flags."""
    flags = [str(vars(args)[k]) for k in ("levels", "long_side", "val", "test", "near", "small_classes")]
    names = args.names.read_text() if args.names and args.names.is_file() else ""
    text = json.dumps([flags, names, *[[f.path, f.size, f.mtime_ns] for f in files + strangers]])
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def already_there(args: argparse.Namespace, identity: str) -> bool:
    """Whether the output folder holds this very result; another result is an error, unless --fresh says otherwise."""
    made_of = args.output / "made_of.json"
    if not args.output.exists():
        return False
    if not made_of.is_file() and (not args.output.is_dir() or any(args.output.iterdir())):
        fail(f"{args.output} is there and was not made by this script. Choose another --output.")
    if args.fresh:
        return False
    if made_of.is_file() and json.loads(made_of.read_text())["identity"] == identity:
        say(f"{args.output} is up to date: same files, same settings.")
        return True
    if made_of.is_file():
        fail(f"{args.output} was made from other files or settings. Add --fresh to make it anew, or choose another --output.")
    return False


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Organize; see the module's docstring."""
    args, clock = parse(argv), Stopwatch()
    header("01 reorganize")
    if args.demo:
        made = demo.make_demo(args.output.absolute().parent / "demo", workers=args.workers)
        args.sources, args.not_plants = [made["plants"]], args.not_plants or made["not_plants"]
    files = list_files(args)
    strangers = list(scan(args.not_plants)) if args.not_plants else []
    leaves, review = read_names(sorted({f.name for f in files if f.name}), args.levels, args.names)
    show_names(files, leaves, review)
    if args.dry_run:
        return 0
    require_sizes(Counter(leaves[f.name] for f in files if f.name in leaves), args)  # before hours are spent on reading
    identity = identity_of(files, strangers, args)
    if already_there(args, identity):
        return 0
    partial = args.output.with_name(args.output.name + ".partial")
    store = args.output.with_name(args.output.name + ".store")
    checked = check_all(files + strangers, store, args.long_side, args.workers)
    kept, rejected = choose(files, checked, leaves, args, store)
    leaks = organize.assign_splits(kept, args.near, args.val, args.test)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    organize.place(kept, store, partial)
    if strangers:
        rejected += organize.place_strangers(strangers, checked, store, partial)
    tree = ClassTree.from_leaves({k.leaf for k in kept})
    organize.write_index(partial, tree, kept)
    organize.write_manifest(partial, kept)
    write_rows(partial / "rejected.csv", organize.REJECTED, sorted(rejected))
    write_rows(partial / "review.csv", ("name", "species", "disease", "confidence", "decision", "reason"), review)
    write_text(partial / "report.md", organize.report(kept, rejected, review, leaks, args.near))
    write_text(partial / "made_of.json", json.dumps(
        {"identity": identity, "long_side": args.long_side, "sources": [str(s) for s in args.sources], "seconds": round(clock(), 1)}))
    shutil.rmtree(args.output, ignore_errors=True)
    os.replace(partial, args.output)
    shutil.rmtree(store)
    show_result(args, tree, kept, rejected, leaks)
    say(f"time: {duration(clock())}", "next: python 02a_train_species.py")
    return 0


def show_names(files: list[Found], leaves: dict[str, Leaf], review: list[tuple[str, ...]]) -> None:
    """Print the tree with counts, and the doubts."""
    counts = Counter(leaves[f.name] for f in files if f.name in leaves)
    species: dict[str, list[str]] = defaultdict(list)
    for (name, disease), n in sorted(counts.items()):
        species[name].append(f"{disease} {n}")
    say(f"{len(files):,} files in {len({f.name for f in files if f.name}):,} class folders")
    for name, parts in list(species.items())[:40]:
        say(f"  {name}: {', '.join(parts)}")
    if len(species) > 40:
        say(f"  ... and {len(species) - 40} more species")
    if review:
        say("", "names to look at (answer with --names CSV, columns name,species,disease):",
            table([(r[0], f"{r[1]}/{r[2]}" if r[1] else "?", r[4], r[5][:70]) for r in review[:20]],
                  ("folder", "read as", "decision", "why")))
        say(*([f"... and {len(review) - 20} more in review.csv"] if len(review) > 20 else []))
    left_out = [r[0] for r in review if r[4] == "left out"]
    if left_out:
        warn(f"{len(left_out)} folders are LEFT OUT because no species can be read from their names: {', '.join(left_out[:6])}")


def show_result(args: argparse.Namespace, tree: ClassTree, kept: list[organize.Kept], rejected: list[tuple[str, ...]],
                leaks: dict[str, float]) -> None:
    """Print what was made."""
    splits = Counter(k.split for k in kept)
    say("", table([("pictures kept", f"{len(kept):,}"), ("species / classes", f"{tree.num_species} / {tree.num_leaves}"),
                   *((s, f"{splits[s]:,}") for s in organize.SPLITS),
                   *((f"left out: {reason}", n) for reason, n in sorted(Counter(r[2] for r in rejected).items())),
                   ("near-duplicates kept together", f"{leaks['grouped']:,}"),
                   ("held-out pictures with a near neighbour in train", f"{leaks['leak']:.2%} ({leaks['leak_alone']:.2%} without)")],
                  ("what", "how many")), f"wrote {args.output}/ (report.md says more)")


if __name__ == "__main__":
    raise SystemExit(main())
