"""Damaged uploads for tests: pictures of every format, drawn here, with bytes flipped, cut,
swapped, repeated or set to extremes.
"""

import io
import random
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
