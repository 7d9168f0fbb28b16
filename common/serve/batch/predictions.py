"""Answers for whole folders: a CSV with a row per photo, from a run that may be killed and resumed.

Finished photos are kept in a part file beside the output: a first line that says which models,
flags and photos it belongs to, then a line per photo, in order. The output is made from it at the
end, atomically, so that a resumed run writes the same bytes as an uninterrupted one.
"""

import base64
import contextlib
import csv
import functools
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common import console
from common.classes import ClassTree
from common.files import whole
from common.images import ImageError
from common.serve.answer import RunningPhoto, read_photo, result_of
from common.serve.batch.ensembles import Ensemble, best, contributions
from common.serve.batch.photo_list import NO_PLANT
from common.serve.batch.submission import Submission, write_submission
from common.serve.batcher import LANES
from common.serve.predictor import SIZES

COLUMNS = (
    "file",
    "decision",
    "level",
    "species",
    "disease",
    "species_probability",
    "disease_given_species",
    "joint_probability",
    "best_guess",
    "best_guess_probability",
    "reason",
    "score",
    "quantile",
    "error",
)
DECISIONS = ("answered", "rolled_up", "rejected", "error")
SHOWN = 5  # files that are named at the end, of those that could not be read


@dataclass(frozen=True)
class Job:
    """What to predict: photos in order; the CSV to write; labels int64 (N,) with a class,
    `NO_PLANT` or `UNKNOWN`; a submission or None; names of the photos that are the same on every
    machine (`photo_list.names_below`), without them the paths.
    """

    photos: tuple[Path, ...]
    output: Path
    labels: np.ndarray
    mode: str = "joint"
    threads: int = 1
    submission: Submission | None = None
    names: tuple[str, ...] = ()

    @functools.cached_property
    def stamp(self) -> str:
        """Hash of the photos' names, sizes and times; it asks the file system once."""
        return hash_of(map(_stamp, self.photos, self.names or map(str, self.photos)))


def predict(ensemble: Ensemble, job: Job) -> int:
    """Answer every photo into the CSV, going on where a run of the same models, flags and photos
    was stopped.

    Returns:
        how many photos could not be read; each is a row that says why, and the first are named on
        the terminal.

    Raises:
        SystemExit: where a part file of another run is in the way. BundleError: where a model gives
            NaN.
    """
    path = part_of(job)
    with path.open("a+b") as file:
        part, told = fill(ensemble, job, file)
        found = _write(part, job, ensemble.num_systems)
    path.unlink()
    _tell(ensemble, job, found)
    numbers = zip(
        DECISIONS, np.bincount(found.decision, minlength=len(DECISIONS)).tolist(), strict=True
    )
    counts = ", ".join(f"{number} {key.replace('_', ' ')}" for key, number in numbers if number)
    console.say(
        f"photos   {told}: {counts}",
        f"wrote    {job.output}" + (f" and {job.submission.path}" if job.submission else ""),
    )
    return len(found.failures)


def part_of(job: Job) -> Path:
    """The part file beside a job's output, whose folder is made."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    return job.output.with_name(job.output.name + ".part")


def fill(ensemble: Ensemble, job: Job, file: BinaryIO) -> tuple["Part", str]:
    """Answer the photos that a part file, open for appending, has no lines of yet.

    Returns:
        the part, complete; and how many photos and how fast, in words.

    Raises:
        SystemExit: where the file is of another run, or another run is writing it. BundleError:
            where a model gives NaN.
    """
    watch, part = console.Stopwatch(), resume(file, tie(ensemble, job), job.photos)
    if 0 < part.done < len(job.photos):
        console.say(
            f"goes on  after {part.done} of {len(job.photos)} photos, which {file.name} holds"
        )
    rest = job.photos[part.done :]
    ahead = 4 * job.threads + LANES * SIZES[-1]  # as many as fill a GPU's lanes
    started = in_order(lambda photo: start(ensemble, photo), rest, job.threads, ahead)
    records = (answer(ensemble, job, *one) for one in zip(rest, started, strict=True))
    for record in console.progress(records, total=len(rest), desc="predict", unit="photo"):
        part.add(record)
    seconds = watch()
    speed = f", {len(rest) / seconds:.0f} a second" if rest else ""
    return part, f"{len(job.photos)} in {console.duration(seconds)}{speed}"


def start(ensemble: Ensemble, photo: Path | bytes) -> RunningPhoto | Exception:
    """Read a photo for the models, or say why it cannot be read."""
    try:
        return ensemble.start(photo)
    except (ImageError, OSError) as error:
        return error


def answer(
    ensemble: Ensemble, job: Job, photo: Path, started: RunningPhoto | Exception
) -> dict[str, Any]:
    """A photo's line of the part file, from what `start` gave.

    Returns:
        row: {column: value} of the CSV; where it could be read also class_idx and species, the
        best of each of `Ensemble.systems`, and for a submission p, the probabilities as float32 in
        base64.
    """
    if isinstance(started, Exception):
        reason = getattr(started, "reason", "unreadable")
        why = getattr(started, "strerror", None) or str(started)
        return {
            "row": {"file": str(photo), "decision": "error", "reason": reason, "error": why},
        }
    result = result_of(started)
    class_idx, species = best(ensemble.systems(result), ensemble.tree)
    record = {
        "row": csv_row(photo, vars(ensemble.decide(result, job.mode))),
        "class_idx": class_idx.tolist(),
        "species": species.tolist(),
    }
    if job.submission is not None:
        record["p"] = base64.b64encode(result.probabilities.astype("<f4").tobytes()).decode()
    return record


def csv_row(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """One answer as a row of the CSV, with the best guess even where the photo is rejected."""
    guess = found["alternatives"][0]
    return {
        "file": str(path),
        "decision": found["decision"],
        "level": found["level"],
        "species": found["species"],
        "disease": found["disease"],
        "species_probability": found["probabilities"]["species"],
        "disease_given_species": found["probabilities"]["disease_given_species"],
        "joint_probability": found["probabilities"]["joint"],
        "best_guess": f"{guess['species']}/{guess['disease']}",
        "best_guess_probability": guess["probability"],
        "reason": found["rejection"]["reason"],
        "score": found["rejection"]["value"],
        "quantile": found["rejection"]["quantile"],
    }


def in_order(
    job: Callable[[Any], Any], items: Iterable[Any], threads: int, ahead: int
) -> Iterator[Any]:
    """Run a job over items on several threads, results in the items' order, at most `ahead` items
    before the one that is taken.
    """
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(job, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # stopped in between: cancel what has not begun
            for future in pending:
                future.cancel()


def tie(ensemble: Ensemble, job: Job) -> dict[str, str]:
    """What a part file belongs to: hashes of models with thresholds, of flags, and of the names,
    sizes and times of photos; and the providers.
    """
    models = [
        [
            one.card.sha256,
            one.bundle.raw["models"][one.card.file],
            one.bundle.raw["preprocessing"],
            one.bundle.scores,
            one.bundle.tree.to_json(),
        ]
        for one in ensemble.predictors
    ]
    return {
        "models": hash_of([json.dumps(models, sort_keys=True)]),
        "flags": hash_of([job.mode, str(ensemble.tta), str(job.submission is not None)]),
        "photos": job.stamp,
        "providers": " ".join(
            sorted({one.session.get_providers()[0] for one in ensemble.predictors})
        ),
    }


def hash_of(texts: Iterable[str]) -> str:
    """First 16 hex digits of the SHA-256 of texts, each with its end."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def _stamp(photo: Path, name: str) -> str:
    with contextlib.suppress(OSError):
        found = photo.stat()
        return f"{name}\0{found.st_size}\0{found.st_mtime_ns}"
    return name


class Part:
    """What a run has done so far, one line of a part file each: `done` is their number, `start`
    where they begin, and `other` what of the file does not fit, if anything.

    file is open for reading and writing, new or of a run that was stopped; belongs says what run
    that must be; photos are those of the run. A line that a kill cut short is removed, and so is
    what two runs wrote at once where a file system has no locks. Raises SystemExit where another
    run is writing the file.
    """

    def __init__(self, file: BinaryIO, belongs: dict[str, str], photos: Sequence[Path]) -> None:
        self.file, self.done, self.flushed = file, 0, time.monotonic()
        _lock(file)
        file.seek(0)
        first = file.readline()
        if not first.endswith(b"\n"):  # new, or killed before its first line stood
            file.truncate(0)
            first = _line({"predictions": 1, **belongs})
            file.write(first)
        self.start = end = len(first)
        found = parse_line(first)
        self.other = [name for name, value in belongs.items() if found.get(name) != value]
        if self.other:
            return
        for photo, line in zip(photos, iter(file.readline, b""), strict=False):
            name = parse_line(line).get("row", {}).get("file", "")
            if not line.endswith(b"\n") or not name.endswith(photo.name):
                break
            self.done += 1
            end += len(line)
        file.truncate(end)

    def add(self, record: dict[str, Any]) -> None:
        """Add a photo's line; it is on its way to the disk within a second."""
        self.file.write(_line(record))
        self.done += 1
        if time.monotonic() - self.flushed > 1:
            self.file.flush()
            self.flushed = time.monotonic()

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The lines in order, each with its place in the file."""
        at = self.start
        self.file.seek(at)
        for line in iter(self.file.readline, b""):
            yield at, json.loads(line)
            at += len(line)

    def line(self, at: int) -> dict[str, Any]:
        """The line at a place."""
        self.file.seek(at)
        return json.loads(self.file.readline())


def resume(file: BinaryIO, belongs: dict[str, str], photos: Sequence[Path]) -> Part:
    """Go on with a part file: `Part`. Raises SystemExit, too, where it is of another run."""
    part = Part(file, belongs, photos)
    if part.other:
        console.fail(
            f"{file.name} is of another run, with other {' and '.join(part.other)}. To go on with "
            "that run, repeat its command; to begin anew, delete the file or give another "
            "--output."
        )
    return part


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def parse_line(line: bytes) -> dict[str, Any]:
    """A line of a part file; {} where it is torn."""
    with contextlib.suppress(ValueError):  # zeros, after the power failed
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}


def _lock(file: BinaryIO) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.fail(f"another run is writing {file.name}. Wait for it, or give another --output.")
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass


@dataclass(frozen=True)
class _Found:
    """What the part file says of N photos: decision, int8 (N,), an index of `DECISIONS`; failures,
    (file, reason) of those that could not be read; class_idx and species, int32 (N, systems), -1
    where a photo could not be read.
    """

    decision: np.ndarray
    failures: list[tuple[str, str]]
    class_idx: np.ndarray
    species: np.ndarray


def _write(part: Part, job: Job, systems: int) -> _Found:
    """Make the outputs from a part file that is complete; `systems` is `Ensemble.num_systems`."""
    count = len(job.photos)
    unread = np.full((count, systems), -1, np.int32)
    found = _Found(np.zeros(count, np.int8), [], unread, unread.copy())
    places = np.zeros(count, np.int64)
    with whole(job.output) as temporary:
        # file names need not be valid text: an odd byte is written as \xNN instead of ending
        # the run
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for i, (at, record) in enumerate(part.lines()):
                places[i], row = at, record["row"]
                row["file"] = str(job.photos[i])  # other machines may have another path to it
                writer.writerow(row)
                found.decision[i] = DECISIONS.index(row["decision"])
                if row["decision"] == "error":
                    found.failures.append((row["file"], row["error"]))
                else:
                    found.class_idx[i], found.species[i] = record["class_idx"], record["species"]
        if job.submission is not None:  # before the CSV appears: both, or none
            job.submission.path.parent.mkdir(parents=True, exist_ok=True)
            write_submission(
                job.submission, lambda photo: _probabilities(part.line(int(places[photo])))
            )
            if found.failures:
                console.warn(
                    f"{len(found.failures)} rows of {job.submission.path} have all classes alike, "
                    f"because their photos could not be read."
                )
    return found


def _probabilities(record: dict[str, Any]) -> np.ndarray | None:
    return np.frombuffer(base64.b64decode(record["p"]), "<f4") if "p" in record else None


def _tell(ensemble: Ensemble, job: Job, found: _Found) -> None:
    """Print what failed, how right the answers are where that is known, and what each model
    adds.
    """
    if found.failures:
        lines = [f"   {file}: {error}" for file, error in found.failures[:SHOWN]]
        if (more := len(found.failures) - SHOWN) > 0:
            lines.append(f"   and {more} more, which {job.output} names")
        console.warn("\n".join([f"{len(found.failures)} photos could not be read:", *lines]))
    if lines := accuracy(found, job.labels, ensemble.tree):
        console.say("", *lines, "")
    read = found.class_idx[:, 0] >= 0
    if len(ensemble.predictors) > 1 and read.any():
        photo = read_photo(ensemble.predictors, job.photos[int(read.argmax())], tta=ensemble.tta)
        console.say(
            contributions(
                ensemble, photo, found.class_idx[read], found.species[read], job.labels[read]
            ),
            "",
        )


def accuracy(found: _Found, labels: np.ndarray, tree: ClassTree) -> list[str]:
    """Say how right the answers to labelled photos are: lines to print, none without such photos.

    labels is int (N,), true classes, `NO_PLANT` or `UNKNOWN`.
    """
    answered, rolled, rejected, unread = (found.decision == i for i in range(len(DECISIONS)))
    plants, no_plant = ~unread & (labels >= 0), ~unread & (labels == NO_PLANT)
    lines = []
    if plants.any():
        class_right = found.class_idx[:, 0] == labels
        species_right = found.species[:, 0] == tree.class_species[np.maximum(labels, 0)]
        lines.append(
            f"labelled {plants.sum()} photos of {len(np.unique(labels[plants]))} classes: species "
            f"right {species_right[plants].mean():.4f}, species and disease both right "
            f"{class_right[plants].mean():.4f}, rejected {rejected[plants].mean():.4f}"
        )
        if given := int((plants & ~rejected).sum()):
            right = int((plants & (answered & class_right | rolled & species_right)).sum())
            lines.append(
                f"given    {given} answers, {int(rolled[plants].sum())} of them of the species "
                f"alone: {right / given:.4f} right"
            )
    if no_plant.any():
        lines.append(f"no plant {no_plant.sum()} photos: rejected {rejected[no_plant].mean():.4f}")
    return lines
