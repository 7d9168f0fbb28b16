"""Poor copies of pictures, and the measures that tell them."""

import numpy as np
import pytest

from common.export.pictures import SHIFTS, fit_photo, shifted
from common.images import photo_quality


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Six pictures with large and small detail, all different."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (6, 8, 8, 3)).repeat(12, axis=1).repeat(12, axis=2)
    return np.clip(coarse + rng.integers(-30, 31, (6, 96, 96, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_copy_is_the_same_in_any_batch_and_leaves_the_original(pictures, kind):
    before = pictures.copy()
    together = shifted(pictures, kind)
    assert together.shape == pictures.shape
    assert together.dtype == np.uint8
    assert (together != pictures).any(axis=(1, 2, 3)).all()
    one_by_one = np.concatenate([shifted(pictures[i : i + 1], kind, first=i) for i in range(6)])
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(pictures, before)


def test_each_fault_is_what_it_is_called(pictures):
    plain = photo_quality(pictures)
    assert photo_quality(shifted(pictures, "dark"))["brightness"] == pytest.approx(
        0.35 * plain["brightness"], rel=0.02
    )
    assert (photo_quality(shifted(pictures, "blur"))["sharpness"] < 0.2 * plain["sharpness"]).all()
    crops = shifted(np.repeat(pictures[:1], 5, axis=0), "crop")
    assert len({crop.tobytes() for crop in crops}) == 5, "corners and middle"
    corner = np.abs(
        crops[0, 4:40, 4:40].mean(axis=(0, 1)) - pictures[0, 2:24, 2:24].mean(axis=(0, 1))
    )
    assert corner.max() < 6, "the first crop is the upper left corner, enlarged"
    rough = np.abs(shifted(pictures, "compression").astype(int) - pictures).mean()
    assert 3 < rough < 40
    with pytest.raises(ValueError, match="dark, blur, crop, compression"):
        shifted(pictures, "rain")


def test_sharpness_does_not_follow_contrast_or_light(pictures):
    faint = (pictures * 0.4 + 100).astype(np.uint8)
    assert photo_quality(faint)["sharpness"] == pytest.approx(
        photo_quality(pictures)["sharpness"], rel=0.1
    )
    blank = photo_quality(np.full((1, 32, 32, 3), 255, np.uint8))
    assert blank["sharpness"][0] == 0
    assert blank["brightness"][0] == 1


def test_limits_are_low_quantiles_of_the_photos_or_lower_still():
    values = np.random.default_rng(1).permutation(np.arange(1.0, 1001))
    assert fit_photo({"brightness": values})["brightness"] == pytest.approx(10.99)
    assert fit_photo({"short_side": np.array([256.0, 200, 300])}) == {"short_side": 100.0}
    assert fit_photo({"sharpness": np.zeros(0)}) == {}
