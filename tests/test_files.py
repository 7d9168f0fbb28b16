"""Which file a written path means: folders, unique names, paths of other machines, endings."""

import os

import pytest

from common.files import ABSENT, SEVERAL, cores, match_paths, settle

ROOT = "/far/set"
FILES = ("train/0.jpg", "train/1.JPG", "test/1.jpg", "a/x/7.jpg", "b/x/7.jpg", "b/8.png", "9.jpeg")
PATHS = [f"{ROOT}/{name}" for name in FILES]


def found(*written, paths=PATHS, bases=(ROOT,)):
    hits = match_paths(written, paths, bases)
    names = {ABSENT: None, SEVERAL: "several"}
    return [names.get(i) if i < 0 else paths[i].removeprefix(f"{ROOT}/") for i in hits]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("train/0.jpg", "train/0.jpg"),
        ("test/0.jpg", None),  # another folder's picture of the same name
        ("set/test/0.jpg", None),
        ("0.jpg", "train/0.jpg"),
        ("0", "train/0.jpg"),
        ("1.jpg", "test/1.jpg"),
        ("1.JPG", "train/1.JPG"),
        ("1", "several"),
        ("7.jpg", "several"),
        ("x/7.jpg", "several"),
        ("a/x/7.jpg", "a/x/7.jpg"),
        ("a\\x\\7.jpg", "a/x/7.jpg"),
        ("a/7.jpg", None),
        (".\\b\\x\\7.jpg", "b/x/7.jpg"),
        ("b/8", "b/8.png"),
        ("b/8.PNG", "b/8.png"),
        ("b/8.jpg", None),  # another ending is another file
        ("8.pn", None),
        ("./9.jpeg", "9.jpeg"),
        ("b/../9.jpeg", "9.jpeg"),
        ("../set/b/8.png", "b/8.png"),
        ("set/b/8.png", "b/8.png"),
        ("et/b/8.png", None),
        ("", None),
        (".", None),
        ("b", None),
        ("b/", None),
        ("b/x", None),
    ],
)
def test_what_a_relative_path_means(written, meant):
    assert found(written) == [meant]


def test_a_bare_name_that_two_files_have_needs_a_dot_to_mean_the_one_at_the_top():
    paths = [f"{ROOT}/1.jpg", f"{ROOT}/old/1.jpg"]
    assert found("1.jpg", "./1.jpg", "old/1.jpg", paths=paths) == ["several", "1.jpg", "old/1.jpg"]


@pytest.mark.parametrize(
    "start", ["/home/bob/set", "C:\\Users\\bob", "gs://bucket/set", "//nas/it"]
)
def test_absolute_paths_of_another_machine_lose_the_same_folders_in_every_row(start):
    rows = [f"{start}/{name}" for name in ("train/0.jpg", "test/0.jpg", "b/x/7.jpg", "9.jpeg")]
    assert found(*rows) == ["train/0.jpg", None, "b/x/7.jpg", "9.jpeg"]


def test_names_alone_count_right_below_the_folder_that_others_tell(capfd):
    rows = ("/home/bob/my/train/0.jpg", "/home/bob/my/9.jpeg", "/home/bob/my/8.png")
    assert found(*rows) == ["train/0.jpg", "9.jpeg", None]
    assert f"home/bob/my is taken to be {ROOT} here" in capfd.readouterr().out


def test_absolute_paths_of_this_machine():
    assert found(f"{ROOT}/train/0.jpg", f"{ROOT}/test/0.jpg") == ["train/0.jpg", None]


def test_names_alone_count_where_one_folder_of_another_machine_holds_all(capfd, tmp_path):
    assert found("D:/photos/8.png", "D:/photos/9.jpeg") == ["b/8.png", "9.jpeg"]
    assert "photos is taken to be any folder here" in capfd.readouterr().out
    assert found("D:/photos/8.png", "D:/more/9.jpeg") == [None, None]
    assert found("/kaggle/test/0.jpg", "/kaggle/test/8.png") == [None, None]
    (tmp_path / "a").mkdir()
    assert found(f"{tmp_path}/a/8.png") == [None], "the folder is here, and the picture is not"


def test_nothing_means_no_picture():
    assert match_paths(["", ".", "/", "a/"], ["/s/.jpg", "/s/a/.jpg"]) == [ABSENT] * 4


def test_letters_made_of_two_signs_are_one():
    assert match_paths(["bl\u00e5/1.jpg"], ["/s/bla\u030a/1.jpg"]) == [0]


def test_rows_that_agree_count_once_and_others_stop(refused):
    pictures, said = [0, ABSENT, 0, 1], [("a",), ("b",), ("a",), ("b",)]
    more = (lambda row: f"line {row + 2}", ["0.jpg", "1.jpg"])
    assert settle(pictures, said, *more) == {0: 0, 1: 3}
    words = ("line 2 and line 6", "0.jpg", "a or b, train?")
    refused(words, settle, [*pictures, 0], [*said, ("b", "", "train")], *more)


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "250000 100000", "a/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "20000 100000"}, 1),
        ("0::/docker/of-the-host", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "6400000 100000"}, 8),
        (
            "5:memory:/b\n4:cpu,cpuacct:/a\n0::/",
            {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "50000"},
            4,
        ),
        (
            "4:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"},
            8,
        ),
        (None, {}, 8),
    ],
)
def test_cores_are_those_of_affinity_and_quota(tmp_path, monkeypatch, group, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    if group:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert cores(tmp_path) == expected
