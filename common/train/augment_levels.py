"""Parameter ranges of the augmentation tiers 1 and 2, by level."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """Parameter ranges of tiers 1 and 2; p is a probability, shares are of the picture's area or
    side.

    `plain` leaves all of it out: the view is then, pixel for pixel, what evaluation sees.
    """

    plain: bool = False
    crop_area: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.33)
    flip_p: float = 0.5
    rotate_degrees: float = 45.0
    rotate_p: float = 0.5
    jitter_p: float = 0.8
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.1  # of the full circle
    exposure_p: float = 0.5
    exposure_brightness: float = 0.2
    exposure_contrast: float = 0.2
    blur_kernels: tuple[int, ...] = (3, 5, 7)
    noise_variance: tuple[float, float] = (10.0, 50.0)  # of 255 squared
    iso_colour_shift: tuple[float, float] = (0.01, 0.05)
    iso_intensity: tuple[float, float] = (0.1, 0.3)
    jpeg_p: float = 0.2
    jpeg_quality: tuple[int, int] = (60, 95)
    shadow_p: float = 0.15
    grey_p: float = 0.05
    dropout_p: float = 0.0
    dropout_holes: tuple[int, int] = (1, 8)
    dropout_side: tuple[float, float] = (0.05, 0.15)  # of the picture's side
    grid_p: float = 0.0
    grid_unit: tuple[float, float] = (
        0.43,
        1.0,
    )  # of the picture's side: 96 to 224 of 224 px (GridMask, Chen et al. 2020)
    grid_hole: float = 0.4  # of the unit's side


LEVELS: dict[str, Level] = {
    "full": Level(),  # the hierarchical system's plan, tiers 1 and 2 as stated
    # ours, for a network that starts from random weights and sees each picture a few times: the
    # same, in smaller ranges
    "gentle": Level(
        crop_area=(0.8, 1.0),
        crop_ratio=(0.87, 1.15),
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.03,
        exposure_p=0.25,
        blur_kernels=(3,),
        jpeg_p=0.1,
        shadow_p=0.1,
        grey_p=0.0,
    ),
    "plain": Level(plain=True),  # the camera-trap report: resize and normalise
    # the flower competition has the four names and says that the last adds coarse dropout, grid
    # mask and wider jitter; the numbers are ours
    "light": Level(
        crop_area=(0.8, 1.0),
        crop_ratio=(0.87, 1.15),
        rotate_degrees=15.0,
        rotate_p=0.3,
        jitter_p=0.5,
        brightness=0.1,
        contrast=0.1,
        saturation=0.1,
        hue=0.02,
        exposure_p=0.0,
        blur_kernels=(3,),
        jpeg_p=0.0,
        shadow_p=0.0,
        grey_p=0.0,
    ),
    "medium": Level(
        crop_area=(0.7, 1.0),
        crop_ratio=(0.8, 1.25),
        rotate_degrees=30.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.05,
        exposure_p=0.25,
        blur_kernels=(3, 5),
        jpeg_p=0.1,
        shadow_p=0.1,
        grey_p=0.02,
    ),
    "strong": Level(crop_area=(0.5, 1.0)),
    "ultra_strong": Level(
        crop_area=(0.4, 1.0),
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.15,
        exposure_brightness=0.25,
        exposure_contrast=0.25,
        dropout_p=0.5,
        grid_p=0.3,
    ),
}
