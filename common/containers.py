"""What a picture file may be made of. Its pixels are bounded by its size in pixels; the work on
what stands around them (segments, chunks, tags) by the checks here, before a decoder sees the file.

The bounds are many times what cameras and programs write. Damage is left to the decoder to tell.
"""

import codecs
import contextlib
import re
import struct
from collections.abc import Sequence

# Beside chunks of 1 KiB of pixels: photos have up to 200 (a depth map in segments of 64 KiB)
MOST_PARTS = 1000
# of a JPEG with several, usually 10: even an empty scan costs a walk over the whole picture
MOST_SCANS = 50
MOST_FILL = 4096  # bytes between two segments of a JPEG that mean nothing
MOST_METADATA = 2 << 20  # bytes of those segments of a JPEG that Pillow reads item by item
MOST_COMPRESSED = 100  # chunks of a PNG that may unfold to 1 MB each: its profile and texts
MOST_BLOCKS = 10_000  # of 255 bytes, before a GIF's first picture; chunks of a WebP, frames too
MOST_ICONS = 256
MOST_TAGS = 1000  # in one directory of a TIFF or of EXIF; cameras write 60
MOST_DIRECTORIES = 32
MOST_VALUES = 150_000  # numbers in all tags: a strip for each row of 75,000

_MAGIC = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"\0\0\1\0", "ICO"),
    (8, b"WEBP", "WEBP"),
    (4, b"ftypavi", "AVIF"),
)
# the head of a JPEG's scan of 1 to 4 components
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_WIDTHS = {1: 1, 2: 1, 7: 1, 3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8}
_BYTES = (1, 2, 7)  # types of tags that are read in one piece
_NESTED = (330, 34665, 34853, 40965)  # tags that lead to further directories: SubIFDs, EXIF, GPS


def check(data: bytes) -> bool:
    """Check the structure of a picture.

    Returns:
        whether it is a JPEG that is decoded whole before its first row: a progressive one, or one
        with a scan for each colour.

    Raises:
        ValueError: where reading it would take much longer than its pixels do.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _check_jpeg(data)
        if data.startswith(b"\x89PNG"):
            _check_png(data)
        elif data.startswith(b"GIF8"):
            _check_gif(data)
        elif data.startswith(b"RIFF"):
            _check_webp(data)
        elif data[:2] in (b"II", b"MM"):
            check_tags(data)
        elif data.startswith(b"\0\0\1\0"):
            _at_most(MOST_ICONS, struct.unpack_from("<H", data, 4)[0], "pictures in an icon file")
    except (struct.error, IndexError):
        pass  # it ends early
    return False


def _at_most(limit: int, count: int, what: str) -> None:
    if count > limit:
        raise ValueError(f"it has more than {limit:,} {what}; save it again with another program")


def _check_jpeg(data: bytes) -> bool:
    at, fill, metadata, components, sequential = 2, 0, 0, 0, True
    whole, exif, pages = False, [], b""
    for _ in range(MOST_PARTS):
        found = _MARKER.search(data, at, at + MOST_FILL)
        if found is None or found.end() + 8 > len(data):
            fill += len(data[at : at + MOST_FILL + 1])
            break
        fill += found.start() - at
        at, kind = found.end(), data[found.end() - 1]
        if 0xD0 <= kind <= 0xD9 or kind == 1:  # has no length
            continue
        length = max(2, data[at] << 8 | data[at + 1])
        if kind == 0xDA:
            whole = not sequential or data[at + 2] < components
            break
        if kind == 0xE1 and data.startswith(b"Exif\0\0", at + 2):
            metadata += length
            exif.append(data[at + 8 : at + length])
        elif kind == 0xE2 and data.startswith(b"MPF\0", at + 2):
            pages = data[at + 6 : at + length]
        elif kind in (0xDB, 0xED):
            metadata += length
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            components, sequential = data[at + 7], kind <= 0xC1
            metadata += length
        at += length
    else:
        _at_most(MOST_PARTS, MOST_PARTS + 1, "segments before the pixels of a JPEG")
    _at_most(MOST_FILL, fill, "bytes between the segments of a JPEG")
    _at_most(MOST_METADATA, metadata, "bytes of tables and EXIF in a JPEG")
    if whole:
        _at_most(MOST_SCANS, len(_SCAN.findall(data)), "scans")
    for tags in filter(None, (b"".join(exif), pages)):
        check_tags(tags)
    return whole


def _check_png(data: bytes) -> None:
    at, pixels, others, compressed = 8, 0, 0, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"fdAT", b"fcTL"):
            pixels += 1
        else:
            others += 1
            compressed += kind in (b"iCCP", b"zTXt", b"iTXt")
            if kind == b"eXIf":
                check_tags(data[at + 8 : at + 8 + length])
        _at_most(
            MOST_PARTS + len(data) // 1024,
            pixels,
            "pieces of pixels, too many for a PNG of its size",
        )
        _at_most(MOST_PARTS, others, "chunks beside the pixels of a PNG")
        _at_most(MOST_COMPRESSED, compressed, "profiles and texts in a PNG")
        at += 12 + length


def _check_gif(data: bytes) -> None:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    inside = False  # an extension
    for _ in range(MOST_BLOCKS):
        if inside:
            inside, at = data[at] > 0, at + 1 + data[at]
        elif data[at] in b",;":
            return
        else:
            inside = data[at] == 0x21
            at += 1 + inside
    _at_most(MOST_BLOCKS, MOST_BLOCKS + 1, "blocks of a GIF before its picture")


def _check_webp(data: bytes) -> None:
    at, chunks = 12, 0
    while at + 8 <= len(data):
        chunks += 1
        _at_most(MOST_BLOCKS, chunks, "chunks in a WebP")
        length = struct.unpack_from("<I", data, at + 4)[0]
        if data.startswith(b"EXIF", at):
            check_tags(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2


def check_tags(data: bytes) -> None:
    """Check the directories of a TIFF or an EXIF block that Pillow reads: the first and those that
    it leads to. Raises ValueError as `check`.
    """
    with contextlib.suppress(struct.error):  # it ends early
        _check_directories(data.removeprefix(b"Exif\0\0"))


def _check_directories(data: bytes) -> None:
    order = "<" if data[:2] == b"II" else ">"
    head, entry, width = order + "H", order + "HHII", 12
    todo = [struct.unpack_from(order + "I", data, 4)[0]]
    if data[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        head, entry, width = order + "Q", order + "HHQQ", 20
        todo = [struct.unpack_from(order + "Q", data, 8)[0]]
    values = size = 0
    for at in todo:
        count, begin = struct.unpack_from(head, data, at)[0], at + struct.calcsize(head)
        _at_most(MOST_TAGS, count, "tags in a directory of a TIFF or EXIF")
        there = min(count, (len(data) - begin) // width) * width
        for tag, kind, number, value in struct.iter_unpack(entry, data[begin : begin + there]):
            if tag in _NESTED and number == 1 and value not in todo:
                todo.append(value)
            bytes_ = number * _WIDTHS.get(kind, 1)
            if bytes_ <= len(data):  # otherwise it is damaged, and not read
                size += bytes_
                values += 0 if kind in _BYTES else number
        _at_most(MOST_DIRECTORIES, len(todo), "directories in a TIFF or EXIF")
        _at_most(MOST_VALUES, values, "numbers in the tags of a TIFF or EXIF")
        _at_most(
            2 * len(data) + 4096, size, "bytes in its tags, which a file of its size cannot hold"
        )


def name_unknown(data: bytes, formats: Sequence[str]) -> tuple[str, str]:
    """Say what a file is that no decoder takes for a picture of these `formats`: an ImageError's
    reason and its sentence.
    """
    head = data[:256].lstrip()
    if head.startswith(b"version https://git-lfs"):
        return (
            "text",
            "a Git LFS pointer, not the picture itself (run `git lfs pull` where it came from)",
        )
    if head[:1] == b"<":
        return "text", "an HTML or XML page, not a picture"
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        text = "\0"
    if text.translate({9: 32, 10: 32, 13: 32}).isprintable():
        return "text", "a text file, not a picture"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        return "format", "a HEIC photo, as iPhones make them: export it as JPEG first"
    for place, magic, kind in _MAGIC:
        if data.startswith(magic, place):
            return (
                "unreadable",
                f"the picture is damaged: it begins like {kind}, but the header makes no sense",
            )
    return "format", "no picture of a known format (" + ", ".join(formats) + ")"
