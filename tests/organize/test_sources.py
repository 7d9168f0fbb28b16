"""Listing: every file once, in a fixed order, with its class name and the split its folder
gives.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from common.organize.sources import Label, list_files, parse_sources


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def listed(root: Path, *more: Path):
    files = list_files(parse_sources([str(root), *map(str, more)], None))
    return files, {os.path.relpath(files.path(i), root): i for i in range(len(files))}


def test_class_names_are_paths_without_splits_and_folders_that_tell_nothing(tmp_path):
    files, at = listed(
        make(
            tmp_path,
            "train/Apple___scab/1.jpg",
            "valid/Apple___scab/2.jpg",
            "Test/tomato/leaf mold/images/3.jpg",
            "deep/er/tomato/leaf mold/4.jpg",
            "5.jpg",
        )
    )
    assert {name: (files.label_of(i), int(files.given[i])) for name, i in at.items()} == {
        "train/Apple___scab/1.jpg": ("Apple___scab", 0),
        "valid/Apple___scab/2.jpg": ("Apple___scab", 1),
        "Test/tomato/leaf mold/images/3.jpg": ("tomato/leaf mold", 2),
        "deep/er/tomato/leaf mold/4.jpg": ("er/tomato/leaf mold", -1),
        "5.jpg": ("", -1),
    }


def test_only_folders_with_pictures_of_their_own_are_classes(tmp_path):
    files, _ = listed(
        make(
            tmp_path,
            "apple/rust/1.jpg",
            "apple/csv/1.csv",
            "apple/rust/@eaDir/1.jpg/THUMB.jpg",
            "__MACOSX/apple/1.jpg",
            ".ipynb_checkpoints/1.jpg",
        )
    )
    assert files.labels == [Label(0, "apple/rust")]
    assert len(files) == 2


def test_the_order_is_fixed_and_sizes_are_known(tmp_path):
    files, at = listed(make(tmp_path, "b/2.jpg", "a/10.jpg", "a/9.jpg"))
    assert list(at) == ["a/10.jpg", "a/9.jpg", "b/2.jpg"]
    assert files.size.tolist() == [8, 7, 7]
    assert files.mtime_ns.dtype == np.int64


def test_system_files_do_not_count_and_hidden_folders_are_not_entered(tmp_path):
    _, at = listed(
        make(
            tmp_path,
            *("a/.DS_Store", "a/Thumbs.db", "a/._1.jpg", "a/1.jpg"),
            *(".git/x.jpg", "a/@eaDir/1.jpg/THUMB.jpg", "__MACOSX/a/1.jpg"),
        )
    )
    assert list(at) == ["a/1.jpg"]


def test_links_are_followed_but_no_folder_twice(tmp_path):
    make(tmp_path / "real", "a/1.jpg")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "real" / "a")
    (root / "again").symlink_to(root)
    (root / "linked2").symlink_to(tmp_path / "real" / "a")
    _, at = listed(root)
    assert list(at) == ["linked/1.jpg"]


def test_broken_links_and_pipes_are_listed_as_no_regular_files(tmp_path):
    make(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "a" / "3.jpg")
    files, at = listed(tmp_path)
    assert {name: int(files.size[i]) for name, i in at.items()} == {
        "a/1.jpg": 7,
        "a/2.jpg": -1,
        "a/3.jpg": -1,
    }


def test_names_that_are_no_utf8_survive(tmp_path):
    (tmp_path / "a").mkdir()
    name = b"\xff leaf \xe9.jpg"
    (Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/" + name))).write_bytes(b"x")
    files, _ = listed(tmp_path)
    assert os.fsencode(files.name(0)) == name
    assert Path(files.path(0)).read_bytes() == b"x"


def test_keys_name_a_files_state(tmp_path):
    make(tmp_path, "a/1.jpg", "a/2.jpg")
    files, _ = listed(tmp_path)
    keys = files.keys(512, True)
    assert keys.shape == (2, 2)
    assert len(np.unique(keys, axis=0)) == 2
    assert (files.keys(512, True) == keys).all()
    assert (files.keys(256, True) != keys).any(axis=1).all()
    os.utime(tmp_path / "a" / "1.jpg", ns=(1, 1))
    assert (listed(tmp_path)[0].keys(512, True) != keys).any(axis=1).tolist() == [True, False]


def test_sources_have_names(tmp_path, refused):
    for name in ("x/plants", "y/plants", "z=1"):
        make(tmp_path / name, "a/1.jpg")
    texts = [
        f"field={tmp_path}/x/plants",
        f"{tmp_path}/y/plants",
        f"{tmp_path}/x/plants",
        str(tmp_path / "z=1"),
    ]
    assert [s.name for s in parse_sources(texts, tmp_path / "x")] == [
        "field",
        "plants",
        "plants_2",
        "z=1",
        "not_plants",
    ]
    refused("two sources are called a", parse_sources, [f"a={tmp_path}", f"a={tmp_path}"], None)
    refused("there is no folder", parse_sources, [str(tmp_path / "nowhere")], None)
    refused("is a file", parse_sources, [str(tmp_path / "x/plants/a/1.jpg")], None)
    refused("there is no folder", parse_sources, [str(tmp_path)], tmp_path / "nowhere")


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="root opens every folder",
)
def test_a_folder_that_cannot_be_opened_stops(tmp_path, refused):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a").chmod(0)
    try:
        refused("cannot be opened", listed, tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)
