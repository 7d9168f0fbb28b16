"""When and with what camera a photo was taken."""

import io
import re

from PIL import Image

_MAKE, _MODEL, _CHANGED, _EXIF, _TAKEN = 0x010F, 0x0110, 0x0132, 0x8769, 0x9003


def capture_moment(data: bytes) -> str:
    """Name the camera and the minute of a photo, as its EXIF block has them, so that photos of one
    scene can be grouped.

    Args:
        data: the bytes of a picture of any kind.

    Returns:
        such as `canon eos 5d 2019-06-01 14:03`; "" where the camera or the time is missing, or the
        clock was never set (a year before 1990, or the first minute of a year). DateTimeOriginal
        counts, else DateTime. Never raises.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "TIFF", "AVIF")) as image:
            if image.format != "TIFF" and "exif" not in image.info:
                return ""  # here getexif() would decode a PNG to its end
            exif = image.getexif()
            taken = exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_CHANGED)
        make, model, taken = (_plain(text) for text in (exif.get(_MAKE), exif.get(_MODEL), taken))
        when = re.match(r"((?:199|20\d)\d)[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d)", taken)
        camera = model if model.startswith(make.split(" ")[0]) else f"{make} {model}".strip()
        if not when or not camera or when.groups()[1:] == ("01", "01", "00", "00"):
            return ""
        return "{} {}-{}-{} {}:{}".format(camera, *when.groups())
    except Exception:  # cameras and editors write all kinds of broken blocks
        return ""


def _plain(text: object) -> str:
    """The text of a tag up to its first NUL: printable ASCII in lower case, one space between
    words.
    """
    ascii_ = str(text or "").partition("\0")[0][:64].encode("ascii", "ignore").decode()
    return " ".join(re.sub(r"[^ -~]", " ", ascii_).lower().split())
