"""Damaged uploads for tests: pictures of every format, drawn here, with bytes flipped, cut,
swapped, repeated or set to extremes; their segments, chunks and tags, too, with all that counts
them right; and files whose structure or size is out of all proportion.
"""

import io
import json
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, features

_MAGIC = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\x10\0\0\0WEBP",
    b"\0\0\1\0",
    b"%PDF-1.7",
    b"\0\0\0 ftypavif",
    b"\0\0\0 ftypheic",
    b"PK\3\4",
    b"<svg ",
    b"\x7fELF",
)
_EXTREMES = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\1",
    b"\1\0\0\0",
    b"\x80\0\0\0",
)


def whole(side: int = 48) -> list[bytes]:
    """A small picture in every format that is read, and its variants."""
    values = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((side + 16, side), Image.Resampling.BICUBIC)
    clear = image.copy()
    clear.putalpha(120)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    deep = Image.fromarray((values[..., 0].astype(np.uint16) * 257).repeat(8, 0).repeat(8, 1))
    kinds = [
        (image, "JPEG", {}),
        (image, "JPEG", {"progressive": True}),
        (image.convert("CMYK"), "JPEG", {}),
        (image.convert("L"), "JPEG", {}),
        (image, "JPEG", {"exif": exif}),
        (image, "PNG", {}),
        (clear, "PNG", {}),
        (deep, "PNG", {}),
        (image.convert("P"), "PNG", {}),
        (image, "WEBP", {}),
        (clear, "WEBP", {"lossless": True}),
        (image, "BMP", {}),
        (image, "TIFF", {}),
        (image.convert("P"), "GIF", {"save_all": True, "append_images": [image.convert("P")]}),
        (image, "ICO", {"sizes": [(48, 48)]}),
    ]
    if features.check("libtiff"):
        kinds += [
            (image, "TIFF", {"compression": how})
            for how in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")
        ]
    kinds += [(image, "AVIF", {})] if features.check("avif") else []
    found = []
    for picture, kind, save in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **save)
        found.append(buffer.getvalue())
    return found


def mutated(pictures: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged copies, the same for the same seed; most damage lies near the beginning,
    where headers are.
    """
    draw = random.Random(seed)
    for turn in range(count):
        data = bytearray(pictures[turn % len(pictures)])
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            _damage(data, draw)
        yield bytes(data)


def _damage(data: bytearray, draw: random.Random) -> None:
    if len(data) < 16:
        data += bytes(16)
    at = draw.randrange(min(len(data), draw.choice((32, 200, len(data)))))
    kind = draw.randrange(8)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        for _ in range(draw.choice((1, 4, 30))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        data[at] = draw.randrange(256)
    elif kind == 3:
        data[at : at + 4] = draw.choice(_EXTREMES)
    elif kind == 4:
        del data[at : at + draw.choice((1, 2, 8, 64))]
    elif kind == 5:
        data[at:at] = data[at : at + draw.choice((1, 16, 256))]
    elif kind == 6:
        data[: len(magic)] = (magic := draw.choice(_MAGIC))
    else:
        data[at:at] = draw.randbytes(draw.choice((1, 4, 100)))


def form(data: bytes, draw: random.Random, damage: bool) -> tuple[bytes, str]:
    """A form with a file, and its content type; damaged around the file, too, where asked."""
    head = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\nContent-Type: '
        b"image/jpeg\r\n\r\n"
    )
    body = bytearray(head + data + b"\r\n--b--\r\n")
    kind = "multipart/form-data; boundary=b"
    if damage:
        for _ in range(draw.choice((1, 3))):
            body[draw.randrange(90)] ^= 1 << draw.randrange(8)
        kind = draw.choice(
            (
                kind,
                kind,
                "multipart/form-data",
                *(
                    f"multipart/form-data; {rest}"
                    for rest in (
                        "boundary=",
                        "boundary=" + "b" * 200,
                        "boundary=\xff",
                        "charset=none; boundary=b",
                    )
                ),
            )
        )
    return bytes(body), kind


# region structure


def segment(kind: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes((255, kind)) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def riff(*chunks: bytes) -> bytes:
    """A WebP of chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF of one directory of (tag, type, count, value or offset)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries) & 0xFFFF) + packed + bytes(4) + tail


def stripes(count: int, compression: int = 1) -> bytes:
    """A TIFF of 64 x 64 px of grey in so many strips, all of them the same bytes."""
    first = 10 + 12 * 9 + 4
    fields = [(256, 64), (257, 64), (258, 8), (259, compression), (262, 1), (277, 1), (278, 1)]
    entries = [(tag, 4, 1, value) for tag, value in fields]
    entries += [(tag, 4, count, first) for tag in (273, 279)]
    return tiff(sorted(entries), struct.pack("<I", first) * count)


def costly(size: int) -> dict[str, bytes]:
    """Files of about `size` bytes whose structure, not whose pixels, would cost time or memory."""
    image = Image.new("RGB", (64, 64), (90, 120, 30))
    saved = {}
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "ICO"):
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"sizes": [(64, 64)]} if kind == "ICO" else {}))
        saved[kind] = buffer.getvalue()
    jpeg, png, webp, ico = (saved[kind] for kind in ("JPEG", "PNG", "WEBP", "ICO"))
    unfolded, at = zlib.compress(bytes(1_000_000)), saved["GIF"].index(b",")
    gif = saved["GIF"][:at], saved["GIF"][at:]
    many_tags = tiff([(1000 + i, 4, size // 8, 8) for i in range(5000)]).ljust(size, b"\0")
    into = {
        "jpeg fill": b"\xff" * size,
        "jpeg junk": b"\xff\0" * (size // 2),
        "jpeg restarts": b"\xff\xd0" * (size // 2),
        "jpeg empty comments": b"\xff\xfe\0\2" * (size // 4),
        "jpeg Photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4" + bytes(6)) * (size // 30),
        "jpeg tables": segment(0xDB, (b"\0" + bytes(range(1, 65))) * 1000) * (size // 65_000),
        "jpeg frames": segment(0xC0, b"\x08\0\x40\0\x40\3" + b"\1\x11\0" * 21_000)
        * (size // 63_000),
        "jpeg EXIF": b"".join(
            segment(0xE1, b"Exif\0\0" + many_tags[i : i + 65_000]) for i in range(0, size, 65_000)
        ),
    }
    found = {name: jpeg[:2] + extra + jpeg[2:] for name, extra in into.items()}
    into = {
        "png empty chunks": chunk(b"teSt") * (size // 12),
        "png empty pixels": chunk(b"IDAT") * (size // 12),
        "png profiles": chunk(b"iCCP", b"a\0\0" + unfolded) * (size // len(unfolded)),
        "png texts": chunk(b"zTXt", b"a\0\0" + unfolded) * 50,
    }
    found |= {name: png[:33] + extra + png[33:] for name, extra in into.items()}
    into = {
        "gif comment": b"!\xfe" + b"\1a" * (size // 2) + b"\0",
        "gif comments": b"!\xfe\0" * (size // 3),
        "gif junk": b"\1" * size,
    }
    found |= {name: gif[0] + extra + gif[1] for name, extra in into.items()}
    head = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\x3f\0\0" * 2
    entry = ico[6:18] + struct.pack("<I", 22)
    return found | {
        "webp chunks": riff(head, webp[12:], b"teSt\0\0\0\0" * (size // 8)),
        "tiff strips": stripes(size // 4),
        "tiff compressed strips": stripes(size // 4, compression=5),
        "tiff tags": many_tags,
        "icons": ico[:4] + struct.pack("<H", min(65535, size // 16)) + entry * (size // 16) + ico,
    }


def slow_bitmap(pixels: int) -> bytes:
    """A BMP whose runs of one pixel Pillow reads in Python, a microsecond each."""
    head = struct.pack("<IiiHHIIiiII", 40, 4000, pixels // 4000, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + head + bytes(1024) + b"\1\1" * pixels


def giants(draw: random.Random) -> Iterator[bytes]:
    """Small files that announce millions of pixels."""
    wide, high = draw.choice(((16383, 3900), (8000, 8000), (4000, 3000), (5000, 2000)))
    for data in whole():
        head = bytearray(data)
        if data.startswith(b"\xff\xd8"):
            at = next(i for i in range(len(head)) if head[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
            head[at + 5 : at + 9] = struct.pack(">HH", high, wide)
        elif data.startswith(b"\x89PNG"):
            head[16:24] = struct.pack(">II", wide, high)
            head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
        elif data.startswith(b"BM"):
            head[18:26] = struct.pack("<ii", wide, high)
        elif data.startswith(b"GIF8"):
            at = head.index(b",")
            head[6:10] = head[at + 5 : at + 9] = struct.pack("<HH", wide, high)
        elif data.startswith(b"RIFF"):
            continue
        yield bytes(head)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "WEBP", lossless=True)
    head = bytearray(buffer.getvalue())  # one colour takes no bits: as valid in any size
    size = struct.unpack_from("<I", head, 21)[0] & ~0xFFFFFFF
    head[21:25] = struct.pack("<I", size | (wide - 1) | (high - 1) << 14)
    yield bytes(head)


def _parts(data: bytes) -> list[bytes]:
    """The segments, chunks or tags of a picture; what follows them is the last part."""
    found, at = [], 0
    if data.startswith(b"\xff\xd8"):
        found, at = [data[:2]], 2
        while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
            end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
            found, at = [*found, data[at:end]], end
    elif data.startswith((b"\x89PNG", b"RIFF")):
        at, order = (8, ">I") if data.startswith(b"\x89PNG") else (12, "<I")
        found, place = [data[:at]], at if order == ">I" else at + 4
        while at + 8 <= len(data):
            length = struct.unpack_from(order, data, place)[0]
            end = at + (12 + length if order == ">I" else 8 + length + length % 2)
            found, place, at = [*found, data[at:end]], place + end - at, end
    elif data.startswith(b"II*\0"):
        at = struct.unpack_from("<I", data, 4)[0]
        found, count, at = [data[: at + 2]], struct.unpack_from("<H", data, at)[0], at + 2
        found += [data[at + 12 * i : at + 12 * i + 12] for i in range(count)]
        at += 12 * count
    return [*found, data[at:]]


def restructured(pictures: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` copies whose segments, chunks or tags are repeated, left out, moved or changed,
    the same for the same seed; the checksums of PNG and the length of WebP are right again.
    """
    draw = random.Random(seed)
    cut = [parts for parts in map(_parts, pictures) if len(parts) > 3]
    for turn in range(count):
        parts = list(cut[turn % len(cut)])
        for _ in range(draw.choice((1, 1, 2, 4))):
            at = draw.randrange(1, len(parts))
            part, kind = parts[at], draw.randrange(5)
            if kind == 0:
                parts[at:at] = [part] * draw.choice(
                    (1, 2, 20, 500, 20_000 if len(part) < 99 else 9)
                )
            elif kind == 1 and len(parts) > 2:
                del parts[at]
            elif kind == 2:
                other = draw.randrange(1, len(parts))
                parts[at], parts[other] = parts[other], part
            elif len(part) > 12:
                changed = bytearray(part)
                place = draw.randrange(len(part) if len(part) < 64 else 64)
                changed[place : place + 4] = draw.choice((*_EXTREMES, draw.randbytes(4)))
                if parts[0].startswith(b"\x89PNG"):
                    changed[-4:] = struct.pack(">I", zlib.crc32(changed[4:-4]))
                parts[at] = bytes(changed)
        data = b"".join(parts)
        yield riff(data[12:]) if data.startswith(b"RIFF") else data


def tensors(side: int, draw: random.Random) -> Iterator[bytes]:
    """Bodies for /v2/models/NAME/infer: a right one, and some that are out of all proportion."""
    many = draw.choice((1000, 100_000, 1_000_000))
    plain = {"name": "images", "datatype": "UINT8", "shape": [1, side, side, 3]}
    values = ["[7" + ",7" * (side * side * 3 - 1) + "]"]
    values += ['["' + "a" * draw.choice((400, many)) + '"' + ',""' * many + "]"]
    values += ["[" + "[]," * many + "[]]", "[" * many, "[" + "1e400," * 999 + "1]"]
    values += ["[" + "9" * (many // 100) + "]", "[[[" + "0," * many + "0]]]", '{"a":' * 900]
    for value in values:
        head = json.dumps({"inputs": [plain]})[:-3]
        yield f'{head}, "data": {value}}}]}}'.encode()


# endregion
