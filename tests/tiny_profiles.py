"""ICC profiles written byte by byte, and what their colours are in sRGB by the formulas."""

import struct

import numpy as np

# the columns are red, green and blue as XYZ under D50; how light a value is: an exponent or sRGB's
# curve
PRIMARIES = {
    "sRGB": ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)),
    "Display P3": (
        (0.51512, 0.2412, -0.00105),
        (0.29198, 0.69225, 0.04189),
        (0.1571, 0.06657, 0.78407),
    ),
    "Adobe RGB": (
        (0.60974, 0.31111, 0.01947),
        (0.20528, 0.62567, 0.06087),
        (0.14919, 0.06322, 0.74457),
    ),
    "ProPhoto": ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)),
}
EXPONENTS = {"Adobe RGB": 2.19921875, "ProPhoto": 1.80078125, "grey": 1.80078125}
D50 = (0.9642, 1.0, 0.8249)


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def curve(exponent: float | None) -> bytes:
    """A `curv` of one exponent, or a `para` of sRGB's curve."""
    if exponent:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * exponent))
    return b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def whole(space: bytes, pcs: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    tags = {
        b"desc": b"desc\0\0\0\0\0\0\0\5test\0" + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50),
        **tags,
    }
    table, data, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", at + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4xI", at + len(data), 0x02400000) + kind + space + pcs
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*D50) + bytes(48)
    return head + table + data


def profile(name: str) -> bytes:
    """A profile of `PRIMARIES`, "grey", or "inks": CMYK by a table with two steps an ink."""
    if name == "grey":
        return whole(b"GRAY", b"XYZ ", {b"kTRC": curve(EXPONENTS[name])})
    if name == "inks":
        steps = bytes(range(256))
        head = b"mft1\0\0\0\0\4\3\2\0" + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
        # paper is white, any full ink a grey of L* 50, several or black are black
        lightness = [255 if inks == 0 else 128 if inks in (1, 2, 4, 8) else 0 for inks in range(16)]
        grid = b"".join(bytes((light, 128, 128)) for light in lightness)
        table = head + 4 * steps + grid + 3 * steps
        tags = {b"A2B0": table, b"A2B1": table, b"A2B2": table}
        return whole(b"CMYK", b"Lab ", tags, b"prtr")
    tags = {
        letter + b"XYZ": b"XYZ \0\0\0\0" + fixed(*xyz)
        for letter, xyz in zip((b"r", b"g", b"b"), PRIMARIES[name], strict=True)
    }
    trc = curve(EXPONENTS.get(name))
    return whole(b"RGB ", b"XYZ ", tags | {b"rTRC": trc, b"gTRC": trc, b"bTRC": trc})


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light 0..1 as values of sRGB, 0..255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def in_srgb(rgb: np.ndarray, name: str) -> np.ndarray:
    """Values 0..255 (..., 3) of a space as float values 0..255 of sRGB, clipped."""
    values = rgb / 255
    if exponent := EXPONENTS.get(name):
        linear = values**exponent
    else:
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    matrix = np.linalg.inv(np.array(PRIMARIES["sRGB"]).T) @ np.array(PRIMARIES[name]).T
    return encoded(linear @ matrix.T)
