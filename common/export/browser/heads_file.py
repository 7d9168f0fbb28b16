"""heads.bin: the heads of all species as int8, one record per species, so that a page fetches by
byte range the one it needs.

A record, little-endian, for a species of D diseases and F features; it begins on a multiple of 4
bytes:

| bytes      | what                                                                               |
|------------|------------------------------------------------------------------------------------|
| 4          | uint32, CRC-32 of all that follows in the record                                   |
| 4          | stamp: the first bytes of the SHA-256 of the model these heads belong to           |
| 2, 2       | uint16 D, uint16 F                                                                 |
| 4          | float32, temperature of the species' diseases                                      |
| 4 (D + 1)  | float32, scale of each row: first the species' own, then its diseases in order     |
| 4 (D + 1)  | float32, bias of each row                                                          |
| F (D + 1)  | int8 rows                                                                          |
| the rest   | the diseases' names as UTF-8, one a line, zero-filled to a multiple of 4 bytes     |

logit = scale x (row . feature) + bias. The species' own row is there for the heatmap, which is the
map's product with the sum of both rows; the probability of the species comes from the model.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.classes import ClassTree
from common.export.quantize import int8

_START = struct.Struct("<I4sHHf")
Fetch = Callable[[int, int], bytes]  # (first byte, one past the last) -> these bytes


class HeadsError(ValueError):
    """A record that is cut short, damaged or of another model; the message says which."""


@dataclass(frozen=True)
class Head:
    """One species' head: names of D diseases, the temperature, float32 species_row (F,), rows (D,
    F) and bias (D,).
    """

    names: tuple[str, ...]
    temperature: float
    species_row: np.ndarray
    species_bias: float
    rows: np.ndarray
    bias: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """P(disease given this species): features float32 (N, F) -> float32 (N, D), rows sum to
        1.
        """
        if len(self.names) == 1:
            return np.ones((len(features), 1), np.float32)
        logits = (features @ self.rows.T + self.bias) / np.float32(self.temperature)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)


def pack(
    tree: ClassTree,
    species: tuple[np.ndarray, np.ndarray] | None,
    diseases: tuple[np.ndarray, np.ndarray],
    temperatures: np.ndarray,
    stamp: bytes,
) -> tuple[bytes, list[int]]:
    """Pack the heads of all species.

    Args:
        tree: the classes, in index order.
        species: weight float (S, F) and bias (S,) of the species head; None for a model that has
            none.
        diseases: weight float (L, F) and bias (L,) of the packed disease heads.
        temperatures: float (S,), of each species' diseases, above 0.
        stamp: 4 bytes that tell which model these heads belong to.

    Returns:
        the file's bytes, and S + 1 offsets: the record of species s is bytes offsets[s] up to
        offsets[s + 1].

    Raises:
        ValueError: where shapes do not fit the tree, or a species has more diseases or features
            than a record can say.
    """
    weight, bias = (np.asarray(values, np.float32) for values in diseases)
    width = weight.shape[1]
    top = [np.zeros((tree.num_species, width), np.float32), np.zeros(tree.num_species, np.float32)]
    if species is not None:
        top = [np.asarray(values, np.float32) for values in species]
    if (
        weight.shape[0] != tree.num_classes
        or bias.shape != (tree.num_classes,)
        or top[0].shape != (tree.num_species, width)
        or len(temperatures) != tree.num_species
        or len(stamp) != 4
    ):
        raise ValueError(
            f"heads of {weight.shape} and {top[0].shape} do not fit {tree.num_species} species of "
            f"{tree.num_classes} classes"
        )
    if max(width, int(np.diff(tree.offsets).max())) > 0xFFFF:
        raise ValueError("a record holds at most 65,535 diseases and features")
    parts, offsets = [], [0]
    for s, names in enumerate(tree.diseases):
        classes = slice(tree.offsets[s], tree.offsets[s + 1])
        small, scale = int8(np.concatenate([top[0][s : s + 1], weight[classes]]), 0)
        body = b"".join(
            [
                _START.pack(0, stamp, len(names), width, float(temperatures[s]))[4:],
                scale.astype("<f4").tobytes(),
                np.append(top[1][s], bias[classes]).astype("<f4").tobytes(),
                small.tobytes(),
                "\n".join(names).encode(),
            ]
        )
        body += b"\0" * (-len(body) % 4)
        parts.append(struct.pack("<I", zlib.crc32(body)) + body)
        offsets.append(offsets[-1] + len(parts[-1]))
    return b"".join(parts), offsets


def unpack(record: bytes, stamp: bytes) -> Head:
    """Read one record.

    Raises:
        HeadsError: where it is cut short or damaged, or belongs to another model than `stamp` says.
    """
    if len(record) < _START.size:
        raise HeadsError(f"a record of {len(record)} bytes is cut short")
    checksum, found, count, width, temperature = _START.unpack_from(record)
    if zlib.crc32(record[4:]) != checksum:
        raise HeadsError("a record is damaged: its checksum is wrong")
    if found != stamp:
        raise HeadsError(
            f"the heads belong to another model: {found.hex()} instead of {stamp.hex()}"
        )
    rows, at = count + 1, _START.size
    scale, bias = np.frombuffer(record, "<f4", 2 * rows, at).reshape(2, rows)
    small = np.frombuffer(record, np.int8, rows * width, at + 8 * rows).reshape(rows, width)
    names = tuple(record[at + 8 * rows + rows * width :].rstrip(b"\0").decode().split("\n"))
    values = small.astype(np.float32) * scale[:, None]
    return Head(names, temperature, values[0], float(bias[0]), values[1:], bias[1:])
