"""Tar shards: standard readers agree with the arithmetic, and a kill, a full disk or another plan
leaves no wrong shard.
"""

import itertools
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from common.organize.shards import RECORD, Layout, layout, shard_name, write_shards

LIMIT = 2 * RECORD


class Killed(BaseException):
    """The moment at which a run ends."""


def make(count: int = 60, seed: int = 0) -> tuple[Layout, list[bytes]]:
    """Pictures in three leaves, with sizes around whole blocks and one above what a shard holds."""
    rng = np.random.default_rng(seed)
    sizes = [1, 511, 512, 513, 1024, LIMIT + 1, *rng.integers(1, 3000, count - 6).tolist()]
    ids = rng.integers(0, 2**64, count, np.uint64)
    ids[0] = 0xAB
    return layout(ids, np.arange(count) * 3 // count, np.array(sizes), LIMIT), [
        rng.bytes(n) for n in sizes
    ]


def members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path, "r:") as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


def samples(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Group members by what stands before the first dot, as WebDataset does."""
    found = [(m.name, data) for path in sorted(folder.glob("*.tar")) for m, data in members(path)]
    return [
        (key, {name.split(".", 1)[1]: data for name, data in group})
        for key, group in itertools.groupby(found, key=lambda item: item[0].split(".", 1)[0])
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# region what is written


def test_the_standard_reader_finds_everything_where_the_layout_says(tmp_path):
    plan, data = make()
    assert write_shards(tmp_path, plan, data) == len(plan.shard_bytes) > 5
    seen = []
    for number, size in enumerate(plan.shard_bytes.tolist()):
        path = tmp_path / shard_name(number)
        assert path.stat().st_size == size
        assert size % RECORD == 0
        found = members(path)
        assert size <= LIMIT or len(found) == 2, "only a picture that is larger has a larger shard"
        for (jpg, stored), (cls, class_idx) in zip(found[::2], found[1::2], strict=True):
            i = int(np.flatnonzero(plan.ids == int(jpg.name[:16], 16))[0])
            assert (jpg.name, cls.name) == (
                f"{int(plan.ids[i]):016x}.jpg",
                f"{int(plan.ids[i]):016x}.cls",
            )
            assert (plan.shard[i], plan.offset[i], plan.size[i]) == (
                number,
                jpg.offset_data,
                jpg.size,
            )
            assert stored == data[i]
            assert class_idx == b"%d" % plan.class_idx[i]
            assert all(
                (m.mtime, m.uid, m.gid, m.mode, m.uname, m.isfile()) == (0, 0, 0, 0o644, "", True)
                for m in (jpg, cls)
            )
            seen.append(i)
    assert seen == plan.order.tolist()
    assert sorted(seen) == list(range(len(data)))
    assert sorted(contents(tmp_path)) == [shard_name(n) for n in range(len(plan.shard_bytes))], (
        "nothing is left aside"
    )


def test_shards_are_as_full_as_they_may_be(tmp_path):
    plan, _ = make()
    needs = 3 * 512 + (plan.size + 511) // 512 * 512
    used = np.bincount(plan.shard, needs) + 1024
    first = needs[plan.order[plan.firsts[1:-1]]]
    assert (used[:-1] + first > LIMIT).all(), "the next picture would not have fitted"
    assert (used <= LIMIT).sum() == len(used) - 1
    four = layout(np.arange(4, dtype=np.uint64), np.zeros(4), np.full(4, 3072), RECORD + 500)
    assert four.shard.tolist() == [0, 0, 1, 1], "two fit to the byte"


def test_members_group_into_samples(tmp_path):
    plan, data = make()
    write_shards(tmp_path, plan, data)
    found = samples(tmp_path)
    assert [key for key, _ in found] == [f"{n:016x}" for n in sorted(plan.ids.tolist())]
    by_id = {f"{int(plan.ids[i]):016x}": i for i in range(len(data))}
    assert all(
        parts == {"jpg": data[by_id[key]], "cls": b"%d" % plan.class_idx[by_id[key]]}
        for key, parts in found
    )


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program here")
def test_the_tar_program_reads_them_without_a_word(tmp_path):
    plan, data = make()
    write_shards(tmp_path / "shards", plan, data)
    (tmp_path / "out").mkdir()
    for path in sorted((tmp_path / "shards").iterdir()):
        done = subprocess.run(
            ["tar", "xf", str(path), "-C", str(tmp_path / "out")], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert contents(tmp_path / "out") == {
        f"{int(plan.ids[i]):016x}.{end}": part
        for i in range(len(data))
        for end, part in (("jpg", data[i]), ("cls", b"%d" % plan.class_idx[i]))
    }


def test_the_order_of_the_pictures_changes_nothing(tmp_path):
    plan, data = make()
    turn = np.random.default_rng(1).permutation(len(data))
    turned = layout(plan.ids[turn], plan.class_idx[turn], plan.size[turn], LIMIT)
    np.testing.assert_array_equal(turned.offset, plan.offset[turn])
    np.testing.assert_array_equal(turned.shard, plan.shard[turn])
    write_shards(tmp_path / "a", plan, data)
    write_shards(tmp_path / "b", turned, lambda i: data[turn[i]])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_one_who_reads_on_meets_the_classes_mixed():
    """Classes in long runs, as a manifest has them: in the shards a neighbour is of the same
    class as often as by chance.
    """
    class_idx = np.repeat(np.arange(10), 200)
    plan = layout(
        np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64),
        class_idx,
        np.full(2000, 300),
        LIMIT,
    )
    row = class_idx[plan.order]
    assert 0.06 < (row[1:] == row[:-1]).mean() < 0.14


def test_sources_are_paths_or_bytes(tmp_path):
    plan, data = make()
    for i, part in enumerate(data):
        (tmp_path / f"{i}.jpg").write_bytes(part)
    paths = [tmp_path / f"{i}.jpg" for i in range(len(data))]
    for name, sources in (
        ("bytes", data),
        ("paths", paths),
        ("texts", [str(p) for p in paths]),
        ("call", lambda i: paths[i]),
    ):
        write_shards(tmp_path / name, plan, sources)
    assert (
        contents(tmp_path / "bytes")
        == contents(tmp_path / "paths")
        == contents(tmp_path / "texts")
        == contents(tmp_path / "call")
    )


def test_no_pictures_are_no_shards(tmp_path):
    empty = np.zeros(0, np.int64)
    assert write_shards(tmp_path / "none", layout(empty, empty, empty), []) == 0
    assert contents(tmp_path / "none") == {}


def test_memory_holds_a_picture_and_not_a_shard(tmp_path):
    size, count = 400_000, 40
    plan = layout(np.arange(count, dtype=np.uint64), np.zeros(count), np.full(count, size))
    tracemalloc.start()
    write_shards(tmp_path, plan, lambda i: bytes(size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan.shard_bytes) == 1
    assert peak < 4_000_000 < plan.shard_bytes[0] / 3


# endregion

# region kills, full disks and mistakes


@pytest.mark.parametrize("at", [0, 17, 59])
def test_a_killed_run_goes_on(tmp_path, at):
    plan, data = make()
    whole = tmp_path / "whole"
    write_shards(whole, plan, data)
    calls = itertools.count()

    def dying(i: int) -> bytes:
        if next(calls) == at:
            raise Killed
        return data[i]

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        write_shards(folder, plan, dying)
    done = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    dead = int(plan.shard[plan.order[at]])
    assert sorted(done) == [shard_name(n) for n in range(dead)], (
        "those before it, complete; nothing of the one it died in"
    )
    (folder / (shard_name(dead) + ".tmp")).write_bytes(b"half")  # what kill -9 leaves
    assert write_shards(folder, plan, data) == len(plan.shard_bytes) - dead
    assert contents(folder) == contents(whole)
    assert done.items() <= {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}.items(), (
        "what was complete was not touched"
    )
    assert write_shards(folder, plan, lambda i: pytest.fail("nothing is to be read")) == 0


def test_a_shard_of_another_plan_is_no_complete_shard(tmp_path):
    """Same sizes, other leaves or ids; cut short; or left over from a plan with more shards."""
    plan, data = make()
    write_shards(tmp_path / "want", plan, data)
    class_idx, ids = plan.class_idx.copy(), plan.ids.copy()
    class_idx[plan.order[-1]] += 1
    ids[plan.order[0]] += 1
    for other in (
        layout(plan.ids, class_idx, plan.size, LIMIT),
        layout(ids, plan.class_idx, plan.size, LIMIT),
    ):
        np.testing.assert_array_equal(other.shard_bytes, plan.shard_bytes)
        write_shards(tmp_path / "got", other, data)
        assert write_shards(tmp_path / "got", plan, data) == 1
        assert contents(tmp_path / "got") == contents(tmp_path / "want")
    cut = tmp_path / "got" / shard_name(2)
    cut.write_bytes(cut.read_bytes()[:-RECORD])
    for name in (shard_name(900), shard_name(901) + ".tmp"):
        (tmp_path / "got" / name).write_bytes(b"old")
    assert write_shards(tmp_path / "got", plan, data) == 1
    assert contents(tmp_path / "got") == contents(tmp_path / "want")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_leaves_no_half_shard(tmp_path):
    plan, data = make()

    def filling(i: int) -> bytes:
        if plan.shard[i] == 1 and not (tmp_path / (shard_name(2) + ".tmp")).is_symlink():
            (tmp_path / (shard_name(2) + ".tmp")).symlink_to("/dev/full")
        return data[i]

    with pytest.raises(OSError, match="No space left"):
        write_shards(tmp_path, plan, filling)
    assert sorted(contents(tmp_path)) == [shard_name(0), shard_name(1)]
    assert write_shards(tmp_path, plan, data) == len(plan.shard_bytes) - 2


def test_a_picture_that_changed_meanwhile_is_told(tmp_path, refused):
    plan, data = make()
    path = tmp_path / "late.jpg"
    path.write_bytes(data[0] + b"more")
    last = int(plan.order[-1])
    refused(
        ("late.jpg", "again"),
        write_shards,
        tmp_path / "out",
        plan,
        lambda i: path if i == last else data[i],
    )
    assert shard_name(int(plan.shard[last])) not in contents(tmp_path / "out")


def test_what_no_tar_can_hold_is_refused():
    one = np.array([1, 1], np.uint64)
    with pytest.raises(ValueError, match="0000000000000001"):
        layout(one, one, one)
    for size in (0, -5, 8**11):
        with pytest.raises(ValueError, match=str(size)):
            layout(np.array([1, 2], np.uint64), one, np.array([9, size]))


# endregion
