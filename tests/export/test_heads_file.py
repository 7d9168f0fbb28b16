"""heads.bin: records by byte range, their contents, and what is refused."""

import struct

import numpy as np
import pytest

from common.classes import ClassTree
from common.export.browser.heads_file import Head, HeadsError, pack, unpack
from common.export.quantize import int8

TREE = ClassTree(
    ("apple", "basil", "corn"), (("healthy", "rust", "scab"), ("healthy",), ("blight", "häßlich"))
)
STAMP = b"\x01\x02\x03\x04"


@pytest.fixture
def heads() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "ws": rng.normal(size=(3, 17)).astype(np.float32),
        "bs": rng.normal(size=3).astype(np.float32),
        "w": (rng.normal(size=(6, 17)) * np.array([[0.01], [1], [50], [1], [1], [1]])).astype(
            np.float32
        ),
        "b": rng.normal(size=6).astype(np.float32),
    }


def packed(h: dict[str, np.ndarray], temperatures=(2.0, 1.0, 0.5)) -> tuple[bytes, list[int]]:
    return pack(TREE, (h["ws"], h["bs"]), (h["w"], h["b"]), np.array(temperatures), STAMP)


def test_each_record_holds_its_species(heads):
    data, offsets = packed(heads)
    assert offsets[0] == 0
    assert offsets[-1] == len(data)
    assert all(o % 4 == 0 for o in offsets)
    for s, names in enumerate(TREE.diseases):
        head, classes = (
            unpack(data[offsets[s] : offsets[s + 1]], STAMP),
            slice(TREE.offsets[s], TREE.offsets[s + 1]),
        )
        assert head.names == names
        assert head.temperature == (2.0, 1.0, 0.5)[s]
        assert np.array_equal(head.bias, heads["b"][classes])
        assert head.species_bias == heads["bs"][s]
        # a rounded weight is off by half a step of its own row, whatever the other rows hold
        for mine, true in zip(
            [head.species_row, *head.rows], [heads["ws"][s], *heads["w"][classes]], strict=True
        ):
            assert np.abs(mine - true).max() <= np.abs(true).max() / 127 * 0.501


def test_the_layout_is_the_documented_one(heads):
    data, offsets = packed(heads)
    record, rows, width = data[offsets[2] : offsets[3]], 3, 17
    assert struct.unpack_from("<4sHHf", record, 4) == (STAMP, 2, 17, 0.5)
    at = 16 + 8 * rows
    small = np.frombuffer(record, np.int8, rows * width, at).reshape(rows, width)
    assert np.array_equal(small[1:], int8(heads["w"][4:], 0)[0])
    assert np.abs(small).max(axis=1).tolist() == [127] * 3
    assert record[at + rows * width :].rstrip(b"\0").decode() == "blight\nhäßlich"


def test_probabilities_are_the_softmax_under_the_temperature(heads):
    data, offsets = packed(heads)
    features = np.random.default_rng(1).normal(size=(5, 17)).astype(np.float32) * 0.1
    head = unpack(data[: offsets[1]], STAMP)
    logits = (features.astype(np.float64) @ head.rows.T.astype(np.float64) + head.bias) / 2.0
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.abs(head.probabilities(features) - expected).max() < 1e-6
    alone = unpack(data[offsets[1] : offsets[2]], STAMP)
    assert np.array_equal(alone.probabilities(features), np.ones((5, 1)))


def test_extreme_logits_stay_finite():
    head = Head(
        ("a", "b"),
        0.05,
        np.zeros(2),
        0.0,
        np.array([[9e3, 0], [0, 9e3]], np.float32),
        np.zeros(2, np.float32),
    )
    assert np.allclose(head.probabilities(np.array([[1, -1]], np.float32)), [[1, 0]])


def test_a_model_without_a_species_head_has_rows_of_zeros(heads):
    data, offsets = pack(TREE, None, (heads["w"], heads["b"]), np.ones(3), STAMP)
    assert not unpack(data[: offsets[1]], STAMP).species_row.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r[:10], "cut short"),
        (lambda r: r[:-4], "damaged"),
        (lambda r: r[:40] + bytes([r[40] ^ 1]) + r[41:], "damaged"),
    ],
)
def test_a_damaged_record_is_refused(heads, change, words):
    data, offsets = packed(heads)
    with pytest.raises(HeadsError, match=words):
        unpack(change(data[: offsets[1]]), STAMP)


def test_heads_of_another_model_are_refused(heads):
    data, offsets = packed(heads)
    with pytest.raises(HeadsError, match="another model"):
        unpack(data[: offsets[1]], b"\x09\x09\x09\x09")


def test_what_does_not_fit_is_not_packed(heads):
    for wrong in ({"w": heads["w"][:5]}, {"b": heads["b"][:5]}, {"ws": heads["ws"][:2]}):
        with pytest.raises(ValueError, match="do not fit"):
            packed(heads | wrong)
    with pytest.raises(ValueError, match="do not fit"):
        packed(heads, temperatures=(1.0, 1.0))
    wide = np.zeros((6, 70_000), np.float32)
    with pytest.raises(ValueError, match="65,535"):
        pack(TREE, None, (wide, heads["b"]), np.ones(3), STAMP)
