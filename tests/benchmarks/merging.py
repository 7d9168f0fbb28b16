"""Merging the shards of a long 04_serve --predict: time, processor time and memory, on generated
shard files of photos that need not exist.

  python tests/benchmarks/merging.py --exports exports --folder /some/empty/folder

Needs 1.2 GB of disk for a million rows.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.serve.batch import predictions, shards
from common.serve.batch.ensembles import Ensemble, open_models


def peak_gb() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Write the shards' files, and merge them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exports", type=Path, default=Path("exports"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=16)
    args = parser.parse_args()
    ensemble = Ensemble([one for one, _ in open_models(args.exports, None, "cpu")])
    names = tuple(f"class{i % 100:03d}/photo{i:07d}.jpg" for i in range(args.rows))
    job = predictions.Job(
        tuple(Path("photos") / name for name in names),
        args.folder / "predictions.csv",
        np.full(args.rows, -1),
        names=names,
    )
    row = dict.fromkeys(predictions.COLUMNS, 0.123456) | {"decision": "answered"}
    args.folder.mkdir(parents=True, exist_ok=True)
    for mine in shards.split(job, args.shards)[0]:
        with mine.output.open("w+b") as file:
            part = predictions.Part(file, predictions.tie(ensemble, mine), mine.photos)
            for photo in mine.photos:
                part.add({"row": row | {"file": str(photo)}, "class_idx": [0], "species": [0]})
    before, wall, used = peak_gb(), time.perf_counter(), time.process_time()
    shards.merge(ensemble, job)
    print(
        f"{args.rows:,} rows of {args.shards} shards: {time.perf_counter() - wall:.0f} s, "
        f"{time.process_time() - used:.0f} s of processor time, {peak_gb():.2f} GB at most, "
        f"{before:.2f} GB before"
    )


if __name__ == "__main__":
    main()
