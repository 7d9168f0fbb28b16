"""Pictures that most likely stand under a wrong label, found by confident learning: a table and a
page on which a person decides about each.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR
70, 2021. The probabilities are those of linear heads on a frozen backbone's features, each head
fitted without the groups that it judges. A backbone that was trained on these labels has learned
the wrong ones, too, and finds fewer (tests/benchmarks/README.md): give it pretrained weights.

The test split is never listed: if only those of its labels were mended that the model contradicts,
it would flatter the model.
"""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from common import images
from common.console import fail, progress, say, table
from common.files import write_rows, write_text
from common.train.cached_features import Extraction, cache_eval
from common.train.dataset import Organized
from common.train.label_review_page import page
from common.train.manifest import rows_of

REVIEWED = ("train", "val")
COLUMNS = ("picture", "given", "suggested", "confidence", "group", "decision", "sha256")
DECIDED = "labels_review.csv"  # below data/organized/: what a person has decided, written by 01
# Ours: on real leaves these epochs rank as well as L-BFGS until it converges, in a quarter of the
# time and without all features in float32. Small sets go in smaller batches, for steps enough.
FOLDS, EPOCHS = 5, 20
BATCH, LEAST_BATCH, LEAST_STEPS = 256, 8, 12  # steps of an epoch
RATE = 1.28  # over the number of features, each of which moves a logit by the rate in a step
CHUNK = 4096  # pictures judged at once: 190 MB of probabilities where there are 11,499 classes
SHOWN, SIDE = 1000, 200  # rows on the page; px of a picture there


class Doubts(NamedTuple):
    """Pictures whose label is in doubt, the most doubtful first.

    row: int64 (M,), picture numbers; suggested: int64 (M,), class indices; confidence: float32
    (M,), probability of the suggested class; unreviewed: int64, classes whose pictures all stand in
    one fold, so that nothing is known about them; example: int64 (classes,), the picture that most
    clearly shows each class.
    """

    row: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray
    unreviewed: np.ndarray
    example: np.ndarray


def find_doubts(
    features: Tensor, given: np.ndarray, group: np.ndarray, num_classes: int, device: torch.device
) -> Doubts:
    """Find the pictures whose label is in doubt.

    A picture is listed where another class is more probable than the given one and at least as
    probable as it is, on average, for the pictures that are given that class. The order is that of
    the normalised margin: P(given) - P(suggested).

    Args:
        features: float16 (N, features), on the CPU. The probabilities are never held all at once,
            so that the features are what takes memory: 2.3 GB for 1.47 million pictures of 768.
            Time goes with 480 x N x features x classes operations: seconds for thousands of
            pictures, but with 11,499 classes a million of them want a GPU.
        given: int64 (N,), class indices.
        group: (N,), pictures of one group are never on both sides of a fold.
        num_classes: of the tree; classes without a picture are allowed.
        device: where the heads are fitted.

    Raises:
        SystemExit: where all pictures are of one group.
    """
    fold = assign_folds(given, group)
    if not fold.any():
        fail("all pictures are of one group: labels can only be judged by pictures of others.")
    target, heads = torch.from_numpy(given), []
    for k in range(FOLDS):
        rows = torch.from_numpy(np.flatnonzero(fold != k))
        heads.append(_fit_head(features, target, rows, num_classes, device, f"head {k + 1}"))
    own = np.zeros(len(given), np.float32)
    for rows, probs in _out_of_fold(heads, features, fold, device):
        own[rows] = probs[np.arange(len(rows)), given[rows]]
    sizes = np.bincount(given, minlength=num_classes)
    thresholds = np.bincount(given, own, num_classes) / np.maximum(sizes, 1)
    thresholds[sizes == 0] = np.inf
    suggested, confidence = np.zeros(len(given), np.int64), np.zeros(len(given), np.float32)
    for rows, probs in _out_of_fold(heads, features, fold, device):
        probs[probs < thresholds] = 0
        probs[np.arange(len(rows)), given[rows]] = 0
        suggested[rows], confidence[rows] = probs.argmax(1), probs.max(1)
    in_folds = np.bincount(np.unique(given * FOLDS + fold) // FOLDS, minlength=num_classes)
    doubtful = np.flatnonzero((confidence > own) & (in_folds[given] > 1))
    doubtful = doubtful[np.argsort((own - confidence)[doubtful], kind="stable")]
    example, order = np.full(num_classes, -1), np.argsort(own, kind="stable")
    example[given[order]] = order  # the last one stays
    return Doubts(
        doubtful, suggested[doubtful], confidence[doubtful], np.flatnonzero(in_folds == 1), example
    )


def assign_folds(class_idx: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Deal whole groups out to the folds, class by class, so that each fold holds some of each.

    Args:
        class_idx: int64 (N,).
        group: (N,), any sortable values; 01 derives them from the pictures' bytes, so that their
            order is as good as a random one.

    Returns:
        int64 (N,), 0 to FOLDS - 1.
    """
    order = np.lexsort((group, class_idx))
    _, number = np.unique(group, return_inverse=True)
    first = np.sort(np.unique(number[order], return_index=True)[1])
    fold_of = np.empty(len(first), np.int64)
    fold_of[number[order[first]]] = np.arange(len(first)) % FOLDS
    return fold_of[number]


def _fit_head(
    features: Tensor,
    target: Tensor,
    rows: Tensor,
    num_classes: int,
    device: torch.device,
    name: str,
) -> nn.Module:
    """Multinomial logistic regression on standardised features, by AdamW and a cosine."""
    standardise = nn.BatchNorm1d(features.shape[1], momentum=None, affine=False)
    head = nn.Sequential(standardise, nn.Linear(features.shape[1], num_classes)).to(device)
    nn.init.zeros_(head[1].weight)
    nn.init.zeros_(head[1].bias)
    batch_size = min(BATCH, max(LEAST_BATCH, len(rows) // LEAST_STEPS))
    steps = max(1, len(rows) // batch_size)
    optimizer = torch.optim.AdamW(head.parameters(), RATE / features.shape[1])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    draws = torch.Generator().manual_seed(0)
    for _ in progress(range(EPOCHS), desc=f"{name} of {FOLDS}", unit="epoch"):
        for batch in rows[torch.randperm(len(rows), generator=draws)].tensor_split(steps):
            logits = head(features[batch].to(device).float())
            optimizer.zero_grad()
            cross_entropy(logits, target[batch].to(device)).backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def _out_of_fold(
    heads: Sequence[nn.Module], features: Tensor, fold: np.ndarray, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield picture numbers int64 (n,) and their probabilities float32 (n, classes), each picture
    once, by the head that was fitted without its fold.
    """
    for k, head in enumerate(heads):
        for rows in torch.from_numpy(np.flatnonzero(fold == k)).split(CHUNK):
            logits = head(features[rows].to(device).float()).detach()
            yield rows.numpy(), logits.softmax(1).cpu().numpy()


# region what a person gets


def review_labels(extraction: Extraction, data: Organized, folder: Path) -> None:
    """Write labels_review.csv with every picture in doubt, and index.html with the first SHOWN of
    them beside a clear example of either class.

    A picture that a person has decided about is not listed again; the rows of those decisions, be
    they known to 01 or only written into the table, are carried on at its end, so that the newest
    table holds them all.

    Args:
        extraction: of the backbone as it stands; of several processes, which share the work, the
            first does what comes after the features.
        data: what 01 wrote, perhaps with decisions of an earlier review.
        folder: made where it is missing.
    """
    cached = [
        cache_eval(extraction, data.splits[name], folder / "features" / name) for name in REVIEWED
    ]
    if not extraction.world.is_main:
        return
    features = torch.from_numpy(np.concatenate([part.rows["feature"][0] for part in cached]))
    given = np.concatenate([data.splits[name].class_idx for name in REVIEWED]).astype(np.int64)
    group = np.array([int(row["group"], 16) for row in _manifest_rows(data)], np.uint64)
    device = extraction.compute.device
    doubts = find_doubts(features, given, group, data.tree.num_classes, device)
    # those that 01 knows, and those that stand in the table that is about to be written anew
    answered = [*_read(data.root / DECIDED), *_read(folder / DECIDED)]
    decided = {row["sha256"]: row for row in answered if row.get("decision")}
    listed = set(doubts.row.tolist())
    facts = {i: row for i, row in enumerate(_manifest_rows(data)) if i in listed}
    # a class without diseases is named once
    names = ["/".join(dict.fromkeys(data.tree.pair(c))) for c in range(data.tree.num_classes)]
    rows, strips = [], []
    for i, class_idx, sure in zip(*(part.tolist() for part in doubts[:3]), strict=True):
        fact = facts[i]
        if fact["sha256"] not in decided:
            pair = names[given[i]], names[class_idx]
            rows.append((fact["source"], *pair, f"{sure:.4f}", fact["group"], "", fact["sha256"]))
            strips.append((i, *doubts.example[[given[i], class_idx]].tolist()))
    kept = [[row.get(column, "") for column in COLUMNS] for row in decided.values()]
    write_rows(folder / DECIDED, COLUMNS, [*rows, *kept])
    for old in folder.glob("*.jpg"):
        old.unlink()
    for number, strip in enumerate(progress(strips[:SHOWN], desc="page", unit="picture")):
        (folder / f"{number:04d}.jpg").write_bytes(_strip(data, strip))
    write_text(folder / "index.html", page(COLUMNS, [*rows, *kept], names, len(strips[:SHOWN])))
    shutil.rmtree(folder / "features")
    _tell(folder, rows, len(given), len(kept), [names[c] for c in doubts.unreviewed])


def _manifest_rows(data: Organized) -> Iterator[dict[str, str]]:
    """Rows of the manifest in the order of the splits' pictures, one split after the other."""
    for name in REVIEWED:
        yield from rows_of(data.root / "manifest.csv", name)


def _read(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            mark = max(",;\t", key=file.readline().count)  # spreadsheets write semicolons
            file.seek(0)
            yield from csv.DictReader(file, delimiter=mark)


def _strip(data: Organized, numbers: Sequence[int]) -> bytes:
    """JPEG of some pictures side by side, SIDE px each, as the model sees them."""
    strip = np.empty((SIDE, SIDE * len(numbers), 3), np.uint8)
    for k, i in enumerate(numbers):
        first = len(data.splits[REVIEWED[0]])
        name, i = (REVIEWED[0], i) if i < first else (REVIEWED[1], i - first)
        rgb = images.read_rgb(data.splits[name].read(i), min_side=1)
        strip[:, k * SIDE : (k + 1) * SIDE] = images.resize_to_model(rgb, SIDE)
    return images.encode_jpeg(strip, 80)


def _tell(
    folder: Path, rows: Sequence[tuple[str, ...]], count: int, decided: int, unreviewed: list[str]
) -> None:
    most = Counter(row[1:3] for row in rows).most_common(10)
    say(
        f"labels in doubt: {len(rows):,} of {count:,} pictures ({len(rows) / count:.1%}); "
        f"{decided:,} were decided about before",
        table([(*pair, f"{n:,}") for pair, n in most], ("given", "suggested", "pictures")),
    )
    if unreviewed:
        say(
            f"{len(unreviewed):,} classes cannot be reviewed, as their pictures are all of one "
            f"group: {', '.join(unreviewed[:5])}"
        )
    say(
        f"look through {folder / 'index.html'} or fill in the column `decision` of "
        f"{folder / DECIDED}: a class, keep or drop",
        f"then: 01_reorganize.py with the same sources and --labels-review {DECIDED} --fresh",
    )


# endregion
