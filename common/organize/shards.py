"""Plain tar shards, named as WebDataset names them: where each picture stands is arithmetic on
sizes, known before one is written.

A picture is two members, <id>.jpg and <id>.cls (its class index as text). A member is a header of
512 bytes and its data filled up to a multiple of 512 (POSIX.1-1988, ustar). Time, owner and group
are 0, so that the same pictures give the same bytes.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.console import fail, progress
from common.files import whole

BLOCK = 512
RECORD = 20 * BLOCK  # an archive ends with two empty blocks and is filled up to a whole record
SHARD_BYTES = 1_000_000_000
# what follows the checksum: regular file, no link, magic and version, no names of owners, device 0,
# no prefix
REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
REST_SUM = sum(REST) + 8 * ord(" ")  # the checksum itself counts as eight spaces

Source = str | Path | bytes


@dataclass(frozen=True)
class Layout:
    """Where the pictures of one folder stand in its shards.

    Attributes:
        ids: uint64 (N,), the first 8 bytes of the SHA-256 as a number; `<id>` is its 16 hex digits.
        class_idx: int64 (N,), class index.
        size: int64 (N,), bytes of the JPEG.
        shard: int32 (N,), number of its shard.
        offset: int64 (N,), where its data begins in that shard, bytes.
        order: int64 (N,), the pictures in the order in which they follow each other through all
            shards.
        firsts: int64 (S + 1,): shard s holds order[firsts[s]:firsts[s + 1]].
        shard_bytes: int64 (S,), size of each shard.
    """

    ids: np.ndarray
    class_idx: np.ndarray
    size: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    order: np.ndarray
    firsts: np.ndarray
    shard_bytes: np.ndarray


def shard_name(number: int) -> str:
    """File name of a shard: `shard-000000.tar`."""
    return f"shard-{number:06d}.tar"


def layout(
    ids: np.ndarray, class_idx: np.ndarray, size: np.ndarray, shard_bytes: int = SHARD_BYTES
) -> Layout:
    """Give each picture of one folder its shard and its place there.

    They stand in the order of their ids. An id is a hash of the content, so that one who reads a
    shard from its beginning meets the classes mixed, and the order of the arguments changes
    nothing.

    Args:
        ids: uint64 (N,), the first 8 bytes of the SHA-256 as a number, each once.
        class_idx: int (N,), class index; -1 for a picture of no class of the tree.
        size: int (N,), bytes of each JPEG.
        shard_bytes: size of a shard at most; a picture that is larger has one of its own.

    Returns:
        the layout, its arrays in the order of the arguments.

    Raises:
        ValueError: where an id stands twice or a size is no size.
    """
    ids, class_idx, size = (
        np.asarray(ids, np.uint64),
        np.asarray(class_idx, np.int64),
        np.asarray(size, np.int64),
    )
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(twice):
        raise ValueError(
            f"the id {int(ids[order[twice[0]]]):016x} stands for two pictures of one folder"
        )
    if len(size) and not 0 < size.min() <= size.max() < 8**11:
        raise ValueError(
            f"a picture of {size.min() if size.min() <= 0 else size.max()} bytes does not go into "
            f"a tar file"
        )
    ends = np.cumsum(3 * BLOCK + size[order] + _gap(size[order]))
    firsts, used, room = [0], 0, shard_bytes // RECORD * RECORD - 2 * BLOCK
    while firsts[-1] < len(order):
        last = int(np.searchsorted(ends, used + room, side="right"))
        firsts.append(max(last, firsts[-1] + 1))
        used = int(ends[firsts[-1] - 1])
    begins = np.concatenate([[0], ends])  # of each picture, counted over all shards
    starts = np.array(firsts)
    counts = np.diff(starts)
    full = np.diff(begins[starts]) + 2 * BLOCK
    shard, offset = np.empty(len(order), np.int32), np.empty(len(order), np.int64)
    shard[order] = np.repeat(np.arange(len(counts)), counts)
    offset[order] = begins[:-1] - np.repeat(begins[starts[:-1]], counts) + BLOCK
    return Layout(ids, class_idx, size, shard, offset, order, starts, full + -full % RECORD)


def write_shards(
    folder: Path,
    plan: Layout,
    sources: Sequence[Source] | Callable[[int], Source],
    desc: str = "writing shards",
) -> int:
    """Write the shards of one folder, each aside and then renamed; those that stand there complete
    are left as they are.

    Holds one picture in memory. Shards of an earlier plan that this one does not have are removed.

    Args:
        folder: where they go; made if it is not there.
        plan: of `layout`.
        sources: path (or bytes) of the JPEG of picture i, in the order of the plan's arrays.
        desc: words before the progress bar.

    Returns:
        how many shards were written.

    Raises:
        OSError: a full disk, among others; the shard that was being written is gone, those before
            it stay.
        SystemExit: where a JPEG has not the planned size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [shard_name(number) for number in range(len(plan.shard_bytes))]
    for stale in set(folder.glob("shard-*.tar*")) - {folder / name for name in names}:
        stale.unlink()
    source_of = sources if callable(sources) else sources.__getitem__
    written = 0
    with progress((), total=len(plan.order), desc=desc, unit="file") as bar:
        for number, name in enumerate(names):
            pictures = plan.order[plan.firsts[number] : plan.firsts[number + 1]].tolist()
            if not _is_complete(folder / name, plan, pictures, int(plan.shard_bytes[number])):
                _write_shard(folder / name, plan, pictures, source_of, bar.update)
                written += 1
            else:
                bar.update(len(pictures))
    return written


def _write_shard(
    path: Path,
    plan: Layout,
    pictures: list[int],
    source_of: Callable[[int], Source],
    done: Callable[[], object],
) -> None:
    # a shard is known to be complete by its name, so its bytes are safe before it has that
    with whole(path) as aside, aside.open("wb", buffering=1 << 20) as file:
        for i in pictures:
            source = source_of(i)
            data = source if isinstance(source, bytes) else _read(source)
            if len(data) != plan.size[i]:
                what = "the picture" if isinstance(source, bytes) else source
                fail(
                    f"{what} has {len(data):,} bytes, and had {plan.size[i]:,} when its place "
                    f"in {path.name} was fixed. "
                    "Did something change it? Run the same command again."
                )
            file.write(_header(b"%016x.jpg" % int(plan.ids[i]), len(data)))
            file.write(data)
            file.write(_after(plan, i))
            done()
        file.write(bytes(int(plan.shard_bytes[plan.shard[pictures[0]]]) - file.tell()))


def _is_complete(path: Path, plan: Layout, pictures: list[int], size: int) -> bool:
    """Whether the very shard of the plan stands there: right size, and after each picture its id
    and its class.
    """
    if not path.is_file() or path.stat().st_size != size:
        return False
    with open(path, "rb", buffering=0) as file:
        for i in pictures:
            after = _after(plan, i)
            if os.pread(file.fileno(), len(after), int(plan.offset[i] + plan.size[i])) != after:
                return False
    return True


def _read(path: str | Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _after(plan: Layout, i: int) -> bytes:
    """What follows a JPEG's data: its filling and the member with the class."""
    class_idx = b"%d" % int(plan.class_idx[i])
    return (
        bytes(_gap(int(plan.size[i])))
        + _header(b"%016x.cls" % int(plan.ids[i]), len(class_idx))
        + class_idx.ljust(BLOCK, b"\0")
    )


def _gap(size: int | np.ndarray) -> int | np.ndarray:
    """Bytes that fill data up to whole blocks."""
    return -size % BLOCK


def _header(name: bytes, size: int) -> bytes:
    """Header of a regular file: name, mode, owner, group, size, time, checksum (the sum of its
    bytes) and the rest.
    """
    head = (
        name.ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + b"%011o\0" % size
        + b"00000000000\0"
    )
    return head + b"%06o\0 " % (sum(head) + REST_SUM) + REST
