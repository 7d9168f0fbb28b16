"""The one way a file or an upload becomes an RGB picture, and the one resize to model size.

Training, calibration, serving and batch prediction all see the pixels that these functions make, so a model never
meets a resize in service that it was not measured with.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # MPO (phones' multi-picture JPEG) is opened as JPEG
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
MAX_PIXELS = 100_000_000  # a 100-megapixel photo; Pillow calls twice 89 million a decompression bomb
MIN_SIDE = 32  # below this there is no leaf to see
MAX_BYTES = 64 * 1024 * 1024

# Pillow warns about odd metadata and about sizes; damage raises and sizes are checked here
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.init()  # Pillow registers formats lazily and `Image.open(formats=...)` raises KeyError before it has


class ImageError(ValueError):
    """A file that is no usable picture.

    Attributes:
        reason: one word for tables: `empty`, `text`, `format`, `truncated`, `too_large`, `too_small`, `unreadable`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_rgb(source: bytes | Path | str, *, long_side: int | None = None, max_pixels: int = MAX_PIXELS,
             min_side: int = MIN_SIDE) -> np.ndarray:
    """Read a picture: upright by its EXIF tag, first frame, alpha over white, 16 bit scaled to 8, as RGB.

    Args:
        source: the bytes of a picture, or the path of one.
        long_side: shrink to at most this many pixels on the long side (never enlarged).
        max_pixels: refuse a picture whose header announces more, before anything is decoded.
        min_side: refuse a picture whose short side has fewer pixels.

    Returns:
        uint8 (height, width, 3), RGB, own memory.

    Raises:
        ImageError: where the bytes are no picture of `FORMATS`, are damaged, too large or too small.
    """
    data = source if isinstance(source, bytes) else _read_file(Path(source))
    if not data:
        raise ImageError("empty", "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError("too_large", f"{width} x {height} pixels; at most {max_pixels:,} are read")
            if min(width, height) < min_side:
                raise ImageError("too_small", f"{width} x {height} pixels; at least {min_side} on the short side are needed")
            if long_side is not None:
                # libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the work; Pillow keeps both sides above the target
                image.draft("RGB", _fit(width, height, long_side))
            image = _to_rgb(ImageOps.exif_transpose(image))
            if long_side is not None and max(image.size) > long_side:
                image = image.resize(_fit(*image.size, long_side), Image.Resampling.LANCZOS, reducing_gap=2.0)
            return np.array(image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(*_name_the_stranger(data)) from None
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except MemoryError:
        raise ImageError("too_large", "there is not enough memory to decode it") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes (struct.error, KeyError, ...)
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise ImageError(reason, f"the picture is damaged: {error or type(error).__name__}") from None


def resize_to_model(rgb: np.ndarray, size: int) -> np.ndarray:
    """Resize a picture to the model's square, aspect ratio not kept: Pillow's bilinear filter with antialiasing.

    Args:
        rgb: uint8 (height, width, 3).
        size: pixels per side.

    Returns:
        uint8 (size, size, 3).
    """
    if rgb.shape[0] == size and rgb.shape[1] == size:
        return rgb
    return np.array(Image.fromarray(rgb).resize((size, size), Image.Resampling.BILINEAR))


def encode_jpeg(rgb: np.ndarray, quality: int = 92) -> bytes:
    """Encode uint8 (height, width, 3) RGB as JPEG bytes; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _read_file(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise ImageError("too_large", f"the file has {path.stat().st_size / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} are read")
    return path.read_bytes()


def _fit(width: int, height: int, long_side: int) -> tuple[int, int]:
    scale = min(1.0, long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 and 32 bit grey: convert() would clip instead of scale
        values = np.asarray(image, dtype=np.float64)
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray(np.clip(values * (255.0 / max(top, values.max(initial=1))), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def _name_the_stranger(data: bytes) -> tuple[str, str]:
    head = data[:256].lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "text", "a Git LFS pointer, not the picture itself (run `git lfs pull` where it came from)"
    if head[:1] == b"<":
        return "text", "an HTML or XML page, not a picture"
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return "text", "a text file, not a picture"
    return "format", "no picture of a known format (" + ", ".join(FORMATS) + ")"
