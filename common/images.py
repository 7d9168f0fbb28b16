"""The one way a file or an upload becomes an RGB picture, and the one resize to model size.

Training, calibration, serving and batch prediction all see the pixels that these functions make, so
a model never meets a resize in service that it was not measured with.
"""

import functools
import io
import logging
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import IcoImagePlugin, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from common import containers

# MPO (phones' multi-picture JPEG) is opened as JPEG
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "ICO")
SUFFIXES = tuple(
    ".jpg .jpeg .jfif .jpe .mpo .png .webp .bmp .gif .tif .tiff .avif .heif .heic .ico".split()
)
MAX_PIXELS = 100_000_000  # a 100-megapixel photo; Pillow calls 179 million a decompression bomb
MIN_SIDE = 32  # below this no leaf can be made out
MAX_BYTES = 64 * 1024 * 1024
MAX_ICON = 4_000_000  # pixels: Pillow decodes an icon while it opens the file
MAX_PROFILE = 4 << 20  # bytes of an ICC profile; those of printers have 0.5 to 2.5 MB

# What the largest values of deep pictures stand for: floats of 0 to 1; 8, 10, 12 and 16 bits
_FULL = (1, 255, 1023, 4095, 65535)
_BLACK = 1 / 16  # of the full range: below this next to nothing can be seen
MAX_DEEP = MAX_PIXELS // 4  # of those whose bits OpenCV reads: three floats a pixel are 12 bytes

# A cheap first shrink (libjpeg's decode at 1/2, 1/4, 1/8; whole-pixel boxes) leaves at least this
# ratio to the exact one. Boxes that are nearly as large as the wanted pixels would cost up to 10 dB
# on sharp pictures; at 1.75 it is one.
_LEFT_OVER = 1.75

_ORIENTATION = 0x0112  # in EXIF

# Pillow warns about odd metadata and about sizes; damage raises and sizes are checked here
warnings.filterwarnings("ignore", module=r"PIL\.")
# without a handler of its own Pillow would write its errors to stderr
logging.getLogger("PIL").addHandler(logging.NullHandler())
# OpenCV would write about damaged files to stderr; what it raises or returns tells it
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Pillow has no mode for these floats: it reads the header, OpenCV the pixels
for _order in (b"II", b"MM"):
    for _kind, _bits in ((1, (64,)), (2, (32,) * 3), (2, (64,) * 3)):
        _key = (_order, _kind, (3,), 1, _bits, ())
        TiffImagePlugin.OPEN_INFO.setdefault(_key, ("RGB", "RGB;float"))
PngImagePlugin.MAX_TEXT_MEMORY = 8 << 20  # bytes of all texts, unpacked; Pillow allows 64 MiB
# Pillow registers formats lazily and `Image.open(formats=...)` raises KeyError before it has
Image.init()


class ImageError(ValueError):
    """A file that is no usable picture.

    Attributes:
        reason: one word for tables: `empty`, `text`, `format`, `truncated`, `too_large`,
            `too_small`, `unreadable`, `dark`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NeedsMemory(ImageError):
    """A picture whose decoding takes more memory than it may: `needed` bytes."""

    def __init__(self, needed: int, what: str) -> None:
        super().__init__(
            "too_large",
            f"decoding {what} takes {needed / 1e6:.0f} MB of memory, more than one picture may "
            "take; send it smaller, or as a baseline JPEG",
        )
        self.needed = needed


def read_rgb(source: bytes | Path | str, **limits: int | None) -> np.ndarray:
    """Read a picture; arguments, pixels and errors as for `read_sized`."""
    return read_sized(source, **limits)[0]


def read_sized(
    source: bytes | Path | str,
    *,
    long_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    max_bytes: int | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read a picture: upright by its EXIF tag, first frame, alpha over white, as sRGB of 8 bits:
    colours by the picture's ICC profile, deep values by the range that they use.

    Args:
        source: the bytes of a picture, or the path of one.
        long_side: shrink to at most this many pixels on the long side (never enlarged), each the
            mean of the area it covers.
        max_pixels: reject a picture whose header announces more, before anything is decoded.
        min_side: reject a picture whose short side has fewer pixels.
        max_bytes: reject a picture that would take more memory while it is decoded.

    Returns:
        uint8 (height, width, 3), RGB, own memory; and the width and height of the upright original.

    Raises:
        ImageError: where the bytes are no picture of `FORMATS`, are damaged, too large, too small
            or, of more than 8 bits, black; NeedsMemory where max_bytes do not suffice.
        OSError: where the path cannot be read.
    """
    data = source if isinstance(source, bytes) else _read_file(Path(source))
    if not data:
        raise ImageError("empty", "the file is empty")
    try:
        whole = _check_structure(data)
        if data.startswith(b"\0\0\1\0"):
            _check_icon(data, min(max_pixels, MAX_ICON))
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels, min_side)
            if max_bytes and (needed := _decoded_bytes(image, long_side, whole)) > max_bytes:
                kind = "progressive JPEG" if whole else image.format
                raise NeedsMemory(needed, f"this {kind} of {image.width} x {image.height} pixels")
            size = image.size
            rgb = _turn(_decode(image, data, long_side), orientation := _orientation(image))
            turned = orientation in (5, 6, 7, 8)
            if image.format == "TIFF":  # turned while it is loaded
                turned = (size[0] > size[1]) != (rgb.shape[1] > rgb.shape[0])
            return rgb, size[::-1] if turned else size
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(*containers.name_unknown(data, FORMATS)) from None
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except MemoryError:
        raise ImageError("too_large", "there is not enough memory to decode it") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ImageError(
            reason, f"the picture is damaged: {error or type(error).__name__}"
        ) from None


def resize_to_model(rgb: np.ndarray, size: int) -> np.ndarray:
    """Resize a picture to the model's square, aspect ratio not kept: Pillow's bilinear filter with
    antialiasing.

    Args:
        rgb: uint8 (height, width, 3).
        size: pixels per side.

    Returns:
        uint8 (size, size, 3).
    """
    if rgb.shape[0] == size and rgb.shape[1] == size:
        return rgb
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR))


def middle_of(rgb: np.ndarray, share: float) -> np.ndarray:
    """Cut out the middle of uint8 (height, width, 3), `share` (0 to 1) of both sides, at least a
    pixel; own memory.
    """
    height, width = (max(1, round(share * side)) for side in rgb.shape[:2])
    top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


def encode_jpeg(rgb: np.ndarray, quality: int = 92) -> bytes:
    """Encode uint8 (height, width, 3) RGB as JPEG bytes; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ImageError(
            "too_large",
            f"the file has {path.stat().st_size / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} are "
            f"read",
        )
    return path.read_bytes()


def _check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels; at most {max_pixels:,} are read")
    if min(width, height) < min_side:
        raise ImageError(
            "too_small",
            f"{width} x {height} pixels; at least {min_side} on the short side are needed",
        )


def _check_structure(data: bytes) -> bool:
    try:
        return containers.check(data)
    except ValueError as error:
        raise ImageError("unreadable", str(error)) from None


def _decoded_bytes(image: Image.Image, long_side: int | None, whole: bool) -> int:
    """About how many bytes decoding an opened picture takes at its peak, its file not counted.

    Pillow has 4 bytes for a pixel of RGB and makes copies; what they add up to is measured.

    Args:
        whole: as `containers.check` tells it: libjpeg then keeps all coefficients, 2 bytes each.
    """
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        scale = 1 if long_side is None else _draft_scale(image, long_side)
        across, down = (max(part[i] for part in image.layer) for i in (1, 2))
        values = sum(part[1] * part[2] for part in image.layer) / max(1, across * down)
        return int(pixels * (8 / scale**2 + (2.2 * values if whole else 0)))
    deep = image.mode[0] in "IF" or ";16" in str(image.tile[:1])
    if ";float" in str(image.tile[:1]):
        each = 30
    elif deep or image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        each = 18 if image.mode != "RGBA" else 22 if image.format in ("WEBP", "AVIF") else 14
    else:
        each = 10 if image.format in ("TIFF", "AVIF") else 8
        each += 8 * (image.format == "WEBP" and not _is_still(image))
    return pixels * (each + 4 * ("icc_profile" in image.info))


def _check_icon(data: bytes, max_pixels: int) -> None:
    """Read the header of an icon's largest picture."""
    entries = IcoImagePlugin.IcoFile(io.BytesIO(data)).entry
    if not entries:
        raise ImageError("unreadable", "an icon file without a picture")
    part = data[entries[0].offset :]
    _check_structure(part)
    with Image.open(io.BytesIO(part), formats=("PNG", "DIB")) as image:
        _check_size(
            image.width, image.height // (2 if image.format == "DIB" else 1), max_pixels, 0
        )  # a DIB's mask lies below it


def _decode(image: Image.Image, data: bytes, long_side: int | None) -> np.ndarray:
    """Decode to uint8 (height, width, 3), not turned yet, at the size that is wanted."""
    size, drafted = image.size, None
    if image.format in ("JPEG", "MPO"):
        image.decodermaxblock = len(data)  # one block, not 64 KiB at a time: 2 % of the decode
        scale = 1 if long_side is None else _draft_scale(image, long_side)
        drafted = image.draft("RGB", (size[0] // scale, size[1] // scale)) if scale > 1 else None
    stored = str(image.tile[:1]) if image.format in ("PNG", "TIFF") else ""
    if floats := ";float" in stored:
        image.getexif().pop(_ORIENTATION, None)  # OpenCV turns it
    elif _is_still(image) and size[0] * size[1] > 250_000:
        image = _still_webp(image, data)
    else:
        image.load()
    # of 16 bits and several bands Pillow keeps the upper 8
    upper = ";16" in stored and image.mode in ("RGB", "RGBA")
    dark = upper and _used(np.asarray(image.convert("RGB"))) < 255 * _BLACK
    rgb = _to_rgb(_all_bits(image, data) if floats or dark else image)
    if drafted is None:
        size = rgb.size  # a TIFF is turned while it is loaded
    if long_side is None or max(size) <= long_side:
        return np.array(rgb)
    target = tuple(max(1, round(side * long_side / max(size))) for side in size)
    # libjpeg's last column and row may stand for less than a whole pixel: where the picture ends is
    # a fraction
    extent = drafted[1][2:] if drafted else size
    boxes = tuple(
        max(1, int(have / (_LEFT_OVER * want))) for have, want in zip(extent, target, strict=True)
    )
    if max(boxes) > 1:
        rgb = rgb.reduce(boxes)
        extent = tuple(side / box for side, box in zip(extent, boxes, strict=True))
    return _shrink(np.asarray(rgb), extent, target, means=drafted is not None or max(boxes) > 1)


def _is_still(image: Image.Image) -> bool:
    return image.format == "WEBP" and image.mode == "RGB" and image.n_frames == 1


def _still_webp(image: Image.Image, data: bytes) -> Image.Image:
    """Decode with OpenCV, to the same values: Pillow goes through the decoder for animations, which
    takes 16 bytes a pixel instead of 7, and for large pictures up to twice the time.
    """
    how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    if values is None or values.shape[1::-1] != image.size:
        raise ImageError("truncated", "the picture is damaged: not all of it can be read")
    decoded = Image.fromarray(cv2.cvtColor(values, cv2.COLOR_BGR2RGB, dst=values))
    decoded.info = image.info
    return decoded


def _draft_scale(image: Image.Image, long_side: int) -> int:
    """Choose libjpeg's scale, 1/8 to 1/1: the smallest that leaves the exact shrink enough to
    do.
    """
    scale = 8
    while scale > 1 and (
        max(image.size) < scale * _LEFT_OVER * long_side or min(image.size) < scale
    ):
        scale //= 2
    # Colour that is stored coarser along one axis only (4:2:2) is made coarser along both: 4 dB on
    # grass
    _, across, down, _ = image.layer[0]
    return max(1, scale * min(across, down) // max(across, down))


def _shrink(
    rgb: np.ndarray, extent: tuple[float, float], target: tuple[int, int], means: bool
) -> np.ndarray:
    """Shrink the first `extent` (width, height) pixels to `target`, each the mean of the area that
    it covers.

    OpenCV's INTER_AREA is slow unless the ratio is whole. Where the pixels are `means` of several
    already and the ratio is near 2, a slight blur and a linear resize take a quarter of the time
    and are as near to the mean over the original pixels.
    """
    ratios = tuple(have / want for have, want in zip(extent, target, strict=True))
    kind = cv2.INTER_AREA
    if means and all(_LEFT_OVER <= ratio < 2.05 for ratio in ratios):
        rgb = cv2.GaussianBlur(rgb, (3, 3), 0.46, borderType=cv2.BORDER_REPLICATE)
        kind = cv2.INTER_LINEAR
    # given as factors, the ratios hold exactly; given as a size, they would stretch the last,
    # partial pixel
    rgb = cv2.resize(rgb, None, fx=1 / ratios[0], fy=1 / ratios[1], interpolation=kind)
    return np.ascontiguousarray(rgb[: target[1], : target[0]])


def _orientation(image: Image.Image) -> int:
    try:
        if (text := image.info.get("Raw profile type exif")) and "exif" not in image.info:
            image.info["exif"] = bytes.fromhex("".join(text.split("\n")[3:]))
            containers.check_tags(image.info["exif"])
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block does not damage the picture
        return 1


def _turn(rgb: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        rgb = rgb.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, sRGB by the picture's profile, over white. Before it is shrunk, as browsers do: what
    sRGB cannot say is cut off pixel by pixel.
    """
    if image.mode.startswith("I") or image.mode == "F":  # convert() would clip, not scale
        full = _scale(np.asarray(image))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        full = image if image.mode == "RGBA" else image.convert("RGBA")
    else:
        full = image
    rgb = full if full.mode == "RGB" else full.convert("RGB")
    if color_profile(image) == "converted":
        mode, transform = _transform(image.info["icc_profile"])
        source = image if mode == "CMYK" else rgb.getchannel(0) if mode == "L" else rgb
        rgb = transform.apply(source)
    if full.mode != "RGBA":
        return rgb
    paper = Image.new("RGB", full.size, (255, 255, 255))
    paper.paste(rgb, mask=full.getchannel("A"))
    return paper


def _all_bits(image: Image.Image, data: bytes) -> Image.Image:
    """Decode with OpenCV, which drops no bits, to 8 bits of grey, RGB or RGBA, upright."""
    if image.width * image.height > MAX_DEEP:
        told = f"{image.width} x {image.height} pixels of more than 8 bits"
        raise ImageError("too_large", f"{told}; at most {MAX_DEEP:,} are read")
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or set(values.shape[:2]) != set(image.size):
        raise ImageError("unreadable", "the picture is damaged: not all of it can be read")
    scaled = _scale(values if values.ndim == 2 else values[..., 2::-1])
    if values.shape[2:] == (4,):
        scaled.putalpha(_scale(values[..., 3]))
    scaled.info["icc_profile"] = image.info.get("icc_profile")
    return scaled


def _finite(part: np.ndarray) -> np.ndarray:
    """As float64; NaN and what stands for missing values (infinite, 1e30 and more) is 0."""
    part = part.astype(np.float64)
    return np.where(np.abs(part) < 1e30, part, 0.0)


def _used(values: np.ndarray) -> float:
    """What all values but a thousandth are at most: single wrong pixels do not count."""
    flat = values.reshape(-1)
    return float(np.percentile(_finite(flat[:: 1 + flat.size // (1 << 20)]), 99.9))


def _scale(values: np.ndarray) -> Image.Image:
    """Scale (height, width) or (height, width, 3) of any range to 8 bits: from the fewest bits that
    hold the values in use, so that 10-bit data are as bright as their camera meant them; floats
    that use less than a quarter of such a range, and larger values, by their own.

    Raises:
        ImageError: where even that is black.
    """
    used, floats = _used(values), values.dtype.kind == "f"
    top = next((top for top in (_FULL if floats else _FULL[1:]) if used <= top), used)
    if floats and used < top / 4:
        top = used
    if used <= 0 or used < top * _BLACK:
        told = f"all but a thousandth of its values are at most {used:g}"
        raise ImageError("dark", f"the picture is black: {told}, and {top:g} would be white")
    step = max(
        1, (1 << 20) // max(1, values.shape[1])
    )  # a few rows at a time: as floats the whole could be 800 MB
    scaled = np.empty(values.shape, np.uint8)
    for at in range(0, values.shape[0], step):
        strip = slice(at, at + step)
        scaled[strip] = np.clip(_finite(values[strip]) * (255.0 / top), 0, 255)
    return Image.fromarray(scaled)


@functools.lru_cache(8)  # each keeps its profile
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of the pictures that an ICC profile is for, "" where it is broken; and what
    converts them to sRGB, None where that changes no colour by more than 2 of 255.
    """
    try:
        if len(profile) > MAX_PROFILE:
            return "", None
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[opened.profile.xcolor_space.strip()]
        # the intent that comes nearest to browsers where inks are tabled
        how = (ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
        transform = ImageCms.buildTransform(opened, *how)
    except Exception:  # what programs write as a profile is anything
        return "", None
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3)
    before = Image.fromarray(colors).convert(mode)
    change = np.asarray(transform.apply(before), int) - np.asarray(before.convert("RGB"))
    return mode, transform if np.abs(change).max() > 2 else None


def color_profile(image: Image.Image) -> str:
    """Whether the colours of an opened picture are converted when it is read: `converted`, "" where
    they are sRGB already or nothing is known of them, `broken` where its profile cannot be used.
    """
    if not (profile := image.info.get("icc_profile")):
        return ""
    mode, transform = _transform(profile)
    fits = (mode == "CMYK") == (image.mode == "CMYK") and (mode != "L" or image.mode[0] in "1LIF")
    return "broken" if not mode or not fits else "converted" if transform else ""


def photo_quality(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Measure light and focus at model size.

    Args:
        pictures: uint8 (N, size, size, 3), RGB.

    Returns:
        brightness: float64 (N,), mean grey, 0..1; sharpness: float64 (N,), variance of the
        Laplacian over the variance of the grey values (Pech-Pacheco et al. 2000, made independent
        of contrast).
    """
    brightness, sharpness = np.empty(len(pictures)), np.empty(len(pictures))
    for i, rgb in enumerate(pictures):
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        (mean, spread), (_, edges) = (
            cv2.meanStdDev(values) for values in (grey, cv2.Laplacian(grey, cv2.CV_16S))
        )
        brightness[i] = mean.item() / 255
        sharpness[i] = edges.item() ** 2 / (
            spread.item() ** 2 + 1
        )  # + 1 grey level: a blank picture is not sharp
    return {"brightness": brightness, "sharpness": sharpness}
