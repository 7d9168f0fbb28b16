"""Whether versions of one leaf straddle a split: real leaves in colour, grayscale and cut out, as
collections keep them, through 01_reorganize.

  python tests/benchmarks/versions.py --data DIR [--per-class 8]

DIR holds class folders of photos. The copies stand in color/, grayscale/ and segmented/ with equal
class folders and file names; the cut-out ones are those pixels that differ from the border's
colour, and end in _final_masked. The search for near-duplicates is off, so that names alone tie
the versions. Prints how many leaves have versions in two splits, and what the certificate says of
this split and of one that draws each picture by itself.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def write_versions(source: Path, to: Path, per_class: int) -> int:
    """Write three versions of some leaves of each class; returns how many leaves."""
    count = 0
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        for path in sorted(folder.iterdir())[:per_class]:
            image = Image.open(path).convert("RGB")
            pixels = np.asarray(image)
            border = np.median(np.concatenate([pixels[0], pixels[-1]]), axis=0)
            leaf = np.abs(pixels - border).sum(axis=2, keepdims=True) > 60
            versions = {
                f"color/{folder.name}/{path.stem}.jpg": image,
                f"grayscale/{folder.name}/{path.stem}.jpg": image.convert("L"),
                f"segmented/{folder.name}/{path.stem}_final_masked.jpg": Image.fromarray(
                    np.where(leaf, pixels, 0).astype(np.uint8)
                ),
            }
            for name, version in versions.items():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                version.save(to / name, quality=95)
            count += 1
    return count


def main() -> None:
    """Make the copies, organize them, and print what straddles."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--data", type=Path, required=True)
    flags.add_argument("--per-class", type=int, default=8)
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "raw", Path(folder) / "organized"
        leaves = write_versions(args.data, raw, args.per_class)
        command = [sys.executable, ROOT / "01_reorganize.py", raw, "--output", out, "--near", "-1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        splits: dict[str, set[str]] = defaultdict(set)
        pictures = 0
        with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                path = Path(row["source"])
                stem = path.stem.removesuffix("_final_masked")
                splits[f"{path.parent.name}/{stem}"].add(row["split"])
                pictures += 1
        report = (out / "report.md").read_text(encoding="utf-8")
    straddling = sum(len(found) > 1 for found in splits.values())
    print(f"{pictures} pictures of {leaves} leaves; {straddling} leaves straddle a split")
    for what, share in re.findall(r"(as split|split alone).*?([\d.]+%)", report):
        print(f"held-out pictures that leak, {what}: {share}")


if __name__ == "__main__":
    main()
