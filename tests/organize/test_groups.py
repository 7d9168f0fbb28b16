"""Groups by file names, columns and moments."""

from pathlib import Path

import numpy as np
import pytest

from common.organize.sources import list_files, parse_sources
from common.organize.splits import equal_edges, sizes_of, stem_edges, stem_of


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("IMG_0012_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg", "IMG_0012"),
        ("0a1b-22___FREC_Scab 3335_90deg.JPG", "0a1b-22___FREC_Scab 3335"),
        ("0a1b-22___FREC_Scab 3335_new30degFlipLR.JPG", "0a1b-22___FREC_Scab 3335"),
        ("x 17_flipTB.jpg", "x 17"),
        ("RS_HL 1_newPixel25.JPG", "RS_HL 1"),
        ("RS_HL 1_270deg.JPG", "RS_HL 1"),
        ("RS_HL 1_final_masked.jpg", "RS_HL 1"),
        ("leaf12_aug_3.png", "leaf12"),
        ("leaf12-rotated90.jpeg", "leaf12"),
        ("leaf12_flip_rot90.jpg", "leaf12"),
        ("DSC01 - Copy.jpg", "DSC01"),
        ("DSC01 - Copy (2).jpg", "DSC01"),
        ("leaf (2).jpg", None),
        ("IMG_0012.JPG", None),
        ("rot90.jpg", None),
        ("flip_3.jpg", None),
        ("20230514_101500.jpg", None),
        ("crop.jpg", None),
        ("blight_dark.jpg", "blight"),
        ("early blight leaf 7.jpg", None),
        ("a_90deg.jpg", None),
    ],
)
def test_names_that_tell_of_another_picture(name, stem):
    assert stem_of(name) == stem


def test_pictures_made_from_one_join_within_their_class_and_source(tmp_path: Path):
    names = {
        "a/tomato mold": ["s 1.jpg", "s 1_90deg.jpg", "s 1_flipLR.jpg", "s 2.jpg"],
        "a/tomato rust": ["s 1_90deg.jpg"],
        "b/tomato mold": ["s 1_180deg.jpg"],
    }
    for folder, files in names.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in files:
            (tmp_path / folder / name).touch()
    files = list_files(parse_sources([str(tmp_path / "a"), str(tmp_path / "b")], None))
    kept = np.arange(len(files))
    joined = {
        frozenset(Path(files.path(int(i))).relative_to(tmp_path).as_posix() for i in pair)
        for pair in stem_edges(files, kept, files.label)
    }
    one = "a/tomato mold/s 1.jpg"
    assert joined == {
        frozenset({one, "a/tomato mold/s 1_90deg.jpg"}),
        frozenset({one, "a/tomato mold/s 1_flipLR.jpg"}),
    }
    assert len(stem_edges(files, kept[[3, 4, 5]], files.label[[3, 4, 5]])) == 0


def test_equal_values_join_and_nothing_else():
    origin, moment = np.array([0, 0, 1, 0, 0, 0]), np.array([7, 7, 7, 0, 0, 9])
    assert equal_edges(origin, moment, none=0).tolist() == [[0, 1]]
    assert equal_edges(np.array([3, -1, 3, -1, 3]), none=-1).tolist() == [[0, 2], [2, 4]]
    assert equal_edges(np.zeros(0, int), none=-1).shape == (0, 2)


def test_sizes_largest_first():
    assert sizes_of(np.array([0, 0, 2, 3, 3, 3])) == [3, 2]
    assert sizes_of(np.zeros(0, int)) == []
