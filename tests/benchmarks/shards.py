"""Pictures in files against pictures in tar shards: writing, random and sequential reading; and the
index at 1.47 M pictures.

  python tests/benchmarks/shards.py

20,000 small JPEGs (8 to 40 KB) in 500 leaves, organized both ways. Files and shards take turns, so
that the machine's moods hit both alike. `cold` means that the kernel was asked to drop the contents
(not the names and sizes) before each round. The index is loaded in a process of its own, so that
its peak memory is its own. Needs 2.5 GB of disk.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.classes import ClassTree
from common.console import table
from common.images import encode_jpeg
from common.organize.placing import MANIFEST
from common.organize.shards import layout, shard_name, write_shards


def make_tree(classes: int) -> ClassTree:
    """36 diseases a species."""
    return ClassTree.from_pairs(
        (f"some_species_{i // 36:03d}", f"disease_of_it_{i % 36:03d}") for i in range(classes)
    )


def write_index(folder: Path, tree: ClassTree, rows: Iterator[tuple[object, ...]]) -> None:
    """Write manifest.csv and species_index.json as 01 does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "species_index.json").write_text(json.dumps(tree.to_json()))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MANIFEST)
        writer.writerows(rows)


# region files and shards


def make_both(folder: Path, count: int) -> tuple[list[Path], float, float]:
    """Write the pictures as files and as shards, and the shards' files with tar too; returns
    seconds of both ways of packing.
    """
    rng, tree = np.random.default_rng(0), make_tree(500)
    jpegs = [
        encode_jpeg(
            np.kron(rng.integers(0, 256, (int(n), int(n), 3)), np.ones((4, 4, 1))).astype(np.uint8)
        )
        for n in rng.integers(28, 64, 50)
    ]
    data = [
        jpegs[int(k)] + bytes(str(i), "ascii") for i, k in enumerate(rng.integers(0, 50, count))
    ]  # decoders skip what follows
    sha = np.array([hashlib.sha256(d).hexdigest() for d in data])
    class_idx, split = (
        rng.integers(0, 500, count),
        np.where(rng.random(count) < 0.05, "val", "train"),
    )
    order = np.lexsort((sha, class_idx, split))
    data, sha, class_idx, split = (
        [data[i] for i in order],
        sha[order],
        class_idx[order],
        split[order],
    )
    ids, size = (
        np.array([int(h[:16], 16) for h in sha], np.uint64),
        np.array([len(d) for d in data]),
    )
    paths = [
        Path(split[i], *tree.pair(int(class_idx[i])), f"{sha[i][:16]}.jpg") for i in range(count)
    ]
    for path, bytes_ in zip(paths, data, strict=True):
        (folder / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / path).write_bytes(bytes_)
    os.sync()

    def row(i: int, path: object, offset: object) -> tuple[object, ...]:
        return (
            path,
            *tree.pair(int(class_idx[i])),
            split[i],
            "g",
            sha[i],
            "0",
            256,
            256,
            "",
            "x",
            offset,
            size[i],
        )

    write_index(folder / "files", tree, (row(i, paths[i], "") for i in range(count)))
    shard, offset, ours, tars = np.zeros(count, int), np.zeros(count, int), [], []
    for name in ("train", "val"):
        mine = np.flatnonzero(split == name)
        plan = layout(ids[mine], class_idx[mine], size[mine], 100_000_000)
        shard[mine], offset[mine] = plan.shard, plan.offset
        sources = [folder / "files" / paths[i] for i in mine]
        (folder / "list").write_text("\n".join(str(sources[i]) for i in plan.order))
        tar = [
            "tar",
            "cf",
            str(folder / "by_tar"),
            "-P",
            "--no-recursion",
            "-T",
            str(folder / "list"),
        ]
        for _ in range(3):  # in turns
            shutil.rmtree(folder / "shards" / name, ignore_errors=True)
            ours.append(
                _seconds(
                    lambda m=name, p=plan, s=sources: write_shards(folder / "shards" / m, p, s)
                )
            )
            tars.append(
                _seconds(lambda t=tar: (subprocess.run(t, check=True), _sync(folder / "by_tar")))
            )
    write_index(
        folder / "shards",
        tree,
        (row(i, f"{split[i]}/{shard_name(shard[i])}", offset[i]) for i in range(count)),
    )
    return paths, min(ours[:3]) + min(ours[3:]), min(tars[:3]) + min(tars[3:])


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def drop(folder: Path) -> None:
    """Ask the kernel to drop the contents of all files below a folder."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def stream(folder: Path) -> int:
    """Read shards from their beginnings with the standard library, as WebDataset does; returns
    bytes of pictures.
    """
    total = 0
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                total += len(tar.extractfile(member).read()) if member.name.endswith(".jpg") else 0
    return total


def reading(folder: Path, rounds: int) -> list[tuple[object, ...]]:
    """Time reads of the same pictures from files and shards, in turns."""
    from common.train.dataset import load_organized

    splits = {way: load_organized(folder / way).splits["train"] for way in ("files", "shards")}
    count, rng = len(splits["files"]), np.random.default_rng(1)
    for i in rng.permutation(count)[:500].tolist():
        assert splits["files"].read(i) == splits["shards"].read(i)
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        some = rng.permutation(count)[:4000].tolist()
        for cold in (False, True):
            for what, order in (("random", some), ("in the order of the manifest", range(count))):
                for way, split in splits.items():
                    if cold:
                        drop(folder / way)
                    seconds = _seconds(lambda s=split, o=order: [s.read(i) for i in o])
                    times.setdefault((what + (", cold" if cold else ""), way), []).append(
                        1e6 * seconds / len(order)
                    )
            if cold:
                drop(folder / "shards")
            seconds = _seconds(lambda: stream(folder / "shards" / "train"))
            times.setdefault(
                ("from its beginning (tarfile)" + (", cold" if cold else ""), "shards"), []
            ).append(1e6 * seconds / count)
    rows = []
    for what in dict.fromkeys(key[0] for key in times):
        shards, files = (
            float(np.median(times[what, way])) if (what, way) in times else None
            for way in ("shards", "files")
        )
        rows.append(
            (what, f"{files:.1f}", f"{shards:.1f}", f"{files / shards:.2f}")
            if files
            else (what, "-", f"{shards:.1f}", "-")
        )
    return rows


# endregion

# region the index


def million(folder: Path, count: int, shards: bool) -> None:
    """Write a manifest of `count` pictures in 11,499 leaves."""
    rng, tree = np.random.default_rng(2), make_tree(11_499)
    class_idx = np.sort(rng.integers(0, tree.num_classes, count))
    names = [tree.pair(i) for i in range(tree.num_classes)]
    size, offset = (
        rng.integers(20_000, 60_000, count).tolist(),
        rng.integers(0, 10**9, count).tolist(),
    )
    shard = rng.integers(0, 60, count).tolist()

    def rows() -> Iterator[tuple[object, ...]]:
        i = 0
        for split, first, last in (("test", 0, 0.15), ("train", 0.15, 0.85), ("val", 0.85, 1)):
            for k in class_idx[int(first * count) : int(last * count)].tolist():
                sha = hashlib.sha256(b"%d" % i).hexdigest()
                species, disease = names[k]
                path = (
                    f"{split}/{shard_name(shard[i])}"
                    if shards
                    else f"{split}/{species}/{disease}/{sha[:16]}.jpg"
                )
                yield (
                    path,
                    species,
                    disease,
                    split,
                    sha[16:32],
                    sha,
                    sha[32:48],
                    512,
                    384,
                    "farm",
                    f"some/where/in/a/folder/{species} {disease}/IMG_{i:08d}.JPG",
                    offset[i] if shards else "",
                    size[i],
                )
                i += 1

    write_index(folder, tree, rows())


LOAD = """
import re, sys, time
from pathlib import Path
import numpy as np
import common.dataset
def peak():  # of this process alone: ru_maxrss knows the parent's too
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, begin = peak(), time.perf_counter()
data = common.train.dataset.load_organized(Path(sys.argv[1]))
seconds = time.perf_counter() - begin
held = sum(a.nbytes for split in data.splits.values()
 for a in vars(split).values() if isinstance(a, np.ndarray))
print(sum(map(len, data.splits.values())), seconds, before, peak(), held / 2**20)
"""


def loading(folder: Path) -> list[str]:
    """Load an index in a fresh process: pictures, seconds, MB before, MB at the peak, MB held."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    count, *numbers = done.stdout.split()
    return [
        f"{int(count):,}",
        f"{float(numbers[0]):.1f}",
        *(f"{float(n):,.0f}" for n in numbers[1:]),
    ]


# endregion


def main() -> int:
    """Measure and print tables."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--pictures", type=int, default=20_000)
    flags.add_argument("--rows", type=int, default=1_470_000)
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument(
        "--folder",
        type=Path,
        help="where to work; its disk is measured (default: a temporary folder)",
    )
    args = flags.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy "
        f"{np.__version__}\n"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        paths, ours, tars = make_both(folder, args.pictures)
        total = sum((folder / "files" / path).stat().st_size for path in paths)
        print(
            f"\nwriting {len(paths):,} pictures, {total / 1e6:.0f} MB: shards {ours:.2f} s "
            f"({total / ours / 1e6:.0f} MB/s), tar cf of "
            f"the same files {tars:.2f} s: {tars / ours:.2f} times as fast; both flushed to disk\n"
        )
        print(
            table(
                reading(folder, args.rounds),
                ("reading, microseconds a picture", "files", "shards", "files / shards"),
            ),
            "\n",
        )
        rows = []
        for way in ("files", "shards"):
            million(folder / way, args.rows, way == "shards")
            rows += [(way, *loading(folder / way)) for _ in range(2)]
        print(
            table(
                rows,
                ("index", "pictures", "seconds", "MB before (torch)", "MB at the peak", "MB held"),
            )
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
