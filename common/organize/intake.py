"""Reads every file once, in parallel: hashes, decodes and stores it, and keeps a journal, so that a
killed run continues.
"""

import ctypes
import hashlib
import io
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common import images
from common.console import progress, say, warn
from common.organize.background import border_pixels
from common.organize.duplicates.phash import perceptual_hash
from common.organize.moment import capture_moment
from common.organize.sources import Files

REASONS = (
    "",
    *"empty text format truncated too_large too_small dark unreadable".split(),
    *"not_a_picture missing".split(),
    *"no_class label_conflict duplicate same_pixels small_class other_version dropped".split(),
)

# What a file holds. reason: index into REASONS; pixels: of the decoded picture, at most long_side
# px; colors: index into COLORS; stored: bytes as stored; moment: hash of camera and minute, 0 where
# unknown; border: eight background pixels.
FACTS = np.dtype(
    [
        ("key", "u8", 2),
        ("reason", "u1"),
        ("sha256", "u1", 32),
        ("pixels", "u8", 2),
        ("phash", "u8"),
        ("width", "i4"),
        ("height", "i4"),
        ("colors", "u1"),
        ("stored", "i8"),
        ("moment", "u8"),
        ("border", "u1", 24),
    ]
)
COLORS = ("", "converted", "broken")  # what `images.color_profile` says
HEADER = b"foliar journal 3 %06d\n" % FACTS.itemsize
# files per job: large enough that sending jobs costs nothing, small enough that a kill loses little
CHUNK = 32
Results = Future[list[tuple[bytes, str]]]  # of `read_files`


def read_file(path: str, target: str, long_side: int, link: bool) -> tuple[np.ndarray, str]:
    """Read a file and store its picture: upright, JPEG, at most `long_side` px.

    A JPEG that is all that already is stored as it stands: as a hard link where that is wanted and
    possible, else a copy. It keeps its colour profile, by which training reads it as serving does;
    what is encoded here is sRGB.

    Args:
        path: the file.
        target: path of the stored picture; written aside and renamed.
        long_side: px.
        link: whether to try a hard link.

    Returns:
        FACTS record without its key, and the detail of its reason.

    Raises:
        OSError: where the target cannot be written (a full disk). A source that cannot be read is a
            reason, not an error.
    """
    facts = np.zeros((), FACTS)

    def rejected(reason: str, detail: str) -> tuple[np.ndarray, str]:
        facts["reason"] = REASONS.index(reason)
        return facts, detail

    if os.path.splitext(path)[1].lower() not in images.SUFFIXES:
        return rejected(
            "not_a_picture", f"no picture by its ending ({os.path.splitext(path)[1] or 'none'})"
        )
    try:
        with open(path, "rb") as file:
            data = file.read(images.MAX_BYTES + 1)
    except OSError as error:
        return rejected("unreadable", f"the file cannot be opened: {error.strerror}")
    if len(data) > images.MAX_BYTES:
        return rejected(
            "too_large", f"the file has more than the {images.MAX_BYTES / 1e6:.0f} MB that are read"
        )
    facts["sha256"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    try:
        rgb = images.read_rgb(data, long_side=long_side)
    except images.ImageError as error:
        return rejected(error.reason, str(error))
    height, width = rgb.shape[:2]
    facts["width"], facts["height"], facts["phash"], facts["border"] = (
        width,
        height,
        perceptual_hash(rgb),
        border_pixels(rgb),
    )
    pixels = hashlib.blake2b(
        np.ascontiguousarray(rgb).data, digest_size=16, key=b"%d %d" % (width, height)
    )
    facts["pixels"] = np.frombuffer(pixels.digest(), np.uint64)
    if moment := capture_moment(data):
        facts["moment"] = (
            int.from_bytes(hashlib.blake2b(moment.encode(), digest_size=8).digest(), "little") or 1
        )
    with Image.open(io.BytesIO(data)) as image:
        facts["colors"] = COLORS.index(images.color_profile(image))
        as_it_is = _as_it_is(image, width, height)
    if as_it_is:
        facts["stored"] = len(data)
        if not (link and _link(path, target)):
            _write(target, data)
    else:
        jpeg = images.encode_jpeg(rgb)
        facts["stored"] = len(jpeg)
        _write(target, jpeg)
    return facts, ""


def _as_it_is(image: Image.Image, width: int, height: int) -> bool:
    """Whether a file is already what would be stored: a baseline RGB JPEG of that size with no EXIF
    turn.
    """
    return (
        image.format == "JPEG"
        and image.mode == "RGB"
        and image.size == (width, height)
        and image.getexif().get(0x0112, 1) == 1
        and not image.info.get("progressive")
    )


def _link(path: str, target: str) -> bool:
    aside = target + ".tmp"
    try:
        if os.path.exists(aside):
            os.unlink(aside)
        os.link(os.path.realpath(path) if os.path.islink(path) else path, aside)
        os.replace(aside, target)
        if os.path.exists(aside):  # renaming one link of a file onto another does nothing
            os.unlink(aside)
    except OSError:  # another file system, or one without links
        return False
    return True


def _write(path: str, data: bytes) -> None:
    aside = path + ".tmp"
    try:
        if os.path.lexists(path):  # never write into what may be a link to a source
            os.unlink(path)
        with open(aside, "wb") as file:
            file.write(data)
        os.replace(aside, path)
    except OSError:
        if os.path.exists(aside):
            os.unlink(aside)
        raise


def read_files(
    paths: list[str], targets: list[str], long_side: int, link: bool
) -> list[tuple[bytes, str]]:
    """`read_file` for several files; records as bytes, which are cheap to send."""
    return [
        (facts.tobytes(), detail)
        for facts, detail in (
            read_file(p, t, long_side, link) for p, t in zip(paths, targets, strict=True)
        )
    ]


class Journal:
    """What was read so far: `journal.bin` (FACTS records) and `details.jsonl` ([key, detail] of
    what was rejected).

    Records are appended; a partial one that a kill left behind is cut off when the journal is
    opened again.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.details_path = folder / "journal.bin", folder / "details.jsonl"
        if not self.path.is_file() or self.path.read_bytes()[: len(HEADER)] != HEADER:
            shutil.rmtree(folder)  # of another version, or none
            folder.mkdir()
            self.path.write_bytes(HEADER)
        whole = (self.path.stat().st_size - len(HEADER)) // FACTS.itemsize * FACTS.itemsize + len(
            HEADER
        )
        os.truncate(self.path, whole)
        self.log, self.details_log = (
            self.path.open("ab"),
            self.details_path.open("a", encoding="utf-8"),
        )
        if self.details_log.tell():
            self.details_log.write("\n")  # ends the line that a kill may have cut short

    def load(self) -> tuple[np.ndarray, dict[str, str]]:
        """FACTS records so far, and {key in hex: detail}."""
        records = np.fromfile(self.path, FACTS, offset=len(HEADER))
        details = {}
        for line in self.details_path.read_text(encoding="utf-8").splitlines():
            try:
                key, detail = json.loads(line)
            except ValueError:  # the line that a kill cut short; its record was not written
                continue
            details[key] = detail
        return records, details

    def add(self, records: np.ndarray, details: dict[str, str]) -> None:
        """Append; details first, so that no record is without its own."""
        self.details_log.write("".join(json.dumps(item) + "\n" for item in details.items()))
        self.details_log.flush()
        self.log.write(records.tobytes())
        self.log.flush()

    def close(self) -> None:
        """Close both files."""
        self.log.close()
        self.details_log.close()


def target_of(key: np.ndarray) -> str:
    """Path below the store of the picture of a file with this key, uint64 (2,); 256 folders keep
    directories small.
    """
    text = key.tobytes().hex()
    return f"{text[:2]}/{text[2:]}.jpg"


def read_all(
    files: Files, store: Path, long_side: int, link: bool, workers: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Read and store every file; files in the journal of an earlier run are not read again.

    Args:
        files: N files.
        store: folder of the journal and of the stored pictures (`target_of` names them).
        long_side: px.
        link: whether pictures that need no change become hard links.
        workers: processes.

    Returns:
        FACTS (N,), and {file: detail} of those with a reason.
    """
    journal = Journal(store)
    for number in range(256):
        (store / f"{number:02x}").mkdir(exist_ok=True)
    facts = np.zeros(len(files), FACTS)
    facts["key"] = files.keys(long_side, link)
    done, reasons = journal.load()
    order = np.argsort(done["key"][:, 0], kind="stable")
    at = (
        np.searchsorted(done["key"][order, 0], facts["key"][:, 0], "right") - 1
    )  # the last of equal ones: written last
    known, row = np.zeros(len(files), bool), np.zeros(len(files), np.int64)
    if len(done):
        row = order[np.maximum(at, 0)]
        known = (at >= 0) & (done["key"][row] == facts["key"]).all(axis=1)
    facts[known] = done[row[known]]
    details = {
        int(i): reasons.get(facts["key"][i].tobytes().hex(), "")
        for i in np.flatnonzero(known & (facts["reason"] > 0))
    }
    if known.any():
        say(f"going on: {known.sum():,} of {len(files):,} files were read before")
    for i in np.flatnonzero(files.size < 0):  # opening a pipe would wait for ever
        facts["reason"][i], details[int(i)] = (
            REASONS.index("unreadable"),
            "no regular file: a broken link, a pipe or a device",
        )
    todo = np.flatnonzero(~known & (files.size >= 0))
    chunks = (todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK))

    def submit(pool: ProcessPoolExecutor, chunk: np.ndarray) -> Results:
        paths = [files.path(i) for i in chunk]
        targets = [str(store / target_of(facts["key"][i])) for i in chunk]
        return pool.submit(read_files, paths, targets, long_side, link)

    with progress([], len(todo), "reading", "file") as bar:
        for chunk, results in _in_parallel(chunks, submit, workers):
            records = np.frombuffer(b"".join(record for record, _ in results), FACTS).copy()
            records["key"] = facts["key"][chunk]
            facts[chunk] = records
            fresh = {
                int(i): detail for i, (_, detail) in zip(chunk, results, strict=True) if detail
            }
            details |= fresh
            journal.add(
                records, {facts["key"][i].tobytes().hex(): detail for i, detail in fresh.items()}
            )
            bar.update(len(chunk))
    journal.close()
    _, converted, broken = np.bincount(facts["colors"], minlength=3).tolist()
    if converted:
        say(f"{converted:,} pictures have colours of another profile than sRGB, and are read as it")
    if broken:
        warn(f"{broken:,} pictures have a colour profile that cannot be used: taken as sRGB")
    return facts, details


def _in_parallel(
    chunks: Iterator[np.ndarray],
    submit: Callable[[ProcessPoolExecutor, np.ndarray], Results],
    workers: int,
) -> Iterator[tuple[np.ndarray, list[tuple[bytes, str]]]]:
    """Yield (chunk, results) in order, a bounded number under way; a file that kills its reader is
    rejected, and the rest continues.
    """
    waiting: deque[tuple[np.ndarray, Results]] = deque()
    pool = ProcessPoolExecutor(workers, initializer=_quiet_worker)
    try:
        while True:
            while len(waiting) < 4 * workers and (chunk := next(chunks, None)) is not None:
                waiting.append((chunk, submit(pool, chunk)))
            if not waiting:
                return
            chunk, future = waiting[0]
            try:
                results = future.result()
            except BrokenProcessPool:
                results = [_alone(submit, chunk[k : k + 1]) for k in range(len(chunk))]
                pool.shutdown(wait=False)
                pool = ProcessPoolExecutor(workers, initializer=_quiet_worker)
                waiting = deque((c, submit(pool, c)) for c, _ in waiting)
            waiting.popleft()
            yield chunk, results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(
    submit: Callable[[ProcessPoolExecutor, np.ndarray], Results], chunk: np.ndarray
) -> tuple[bytes, str]:
    with ProcessPoolExecutor(1, initializer=_quiet_worker) as pool:
        try:
            return submit(pool, chunk).result()[0]
        except BrokenProcessPool:
            facts = np.zeros((), FACTS)
            facts["reason"] = REASONS.index("unreadable")
            why = "the process that read it died (a decoder crashed, or memory ran out)"
            return facts.tobytes(), why


def _quiet_worker() -> None:
    cv2.setNumThreads(1)  # the processes already fill the cores
    if (
        sys.platform == "linux"
    ):  # end with the parent, even one that was killed: PR_SET_PDEATHSIG, SIGKILL
        ctypes.CDLL(None).prctl(1, 9)
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), 2
    )  # libtiff and libpng write a line per oddity straight to stderr
