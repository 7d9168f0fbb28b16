"""Features that survive a kill and are never stale, and all pairs above a cosine against brute
force.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from tiny_data import CLASSES, draw

from common import images
from common.organize.duplicates import cosine, embed
from common.organize.duplicates.cosine import cosine_matches, cosine_pairs
from common.organize.duplicates.embed import (
    Backbone,
    Embedder,
    features,
    load_embedder,
)
from common.organize.duplicates.lookalikes import judge

FP32, BF16 = "fp32", "bf16"


# region pairs


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float16)


def clumps(count: int, dim: int, seed: int, spread: float) -> np.ndarray:
    """Rows around a few centres, so that cosines lie on both sides of any threshold; one row of
    zeros.
    """
    rng = np.random.default_rng(seed)
    centres = np.abs(rng.normal(size=(40, dim)))
    rows = centres[rng.integers(40, size=count)] + spread * rng.normal(
        size=(count, dim)
    ) * rng.uniform(0, 1, (count, 1))
    rows[count // 2] = 0
    return unit(rows)


def brute(rows: np.ndarray, threshold: float) -> np.ndarray:
    """All pairs in float64, in ascending order."""
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    products = exact @ exact.T / np.maximum(np.outer(norms, norms), 1e-12)
    return np.argwhere(np.triu(products >= threshold, 1))


@pytest.fixture(params=["float32", "float16"])
def kind(request, monkeypatch) -> torch.dtype:
    """The precision of a CPU's products, and that of a GPU's, computed here."""
    made = getattr(torch, request.param)
    monkeypatch.setattr(
        cosine, "_plan", lambda threshold, _: (made, threshold - cosine.SLACK[made], 512, 2048)
    )
    return made


@pytest.mark.parametrize("threshold", [0.9, 0.97, 0.995])
def test_cosine_pairs_equal_brute_force(threshold, kind):
    rows = clumps(1100, 96, 1, 0.4)  # three rows of tiles
    want = brute(rows, threshold)
    found = cosine_pairs(rows, threshold)
    assert found.dtype == np.int64
    assert 100 < len(want) < 100_000
    assert np.array_equal(found, want)


def test_short_rows_lose_no_pair(kind, monkeypatch):
    monkeypatch.setattr(cosine, "REDUCE_FROM", 0)
    monkeypatch.setattr(cosine, "SAMPLE", 300)  # most rows have no part in choosing the directions
    rng = np.random.default_rng(2)
    rows = unit(
        np.abs(rng.normal(size=(1500, 24))) @ rng.normal(size=(24, 160))
        + 0.3 * rng.normal(size=(1500, 160))
    )
    strange = unit(
        rng.normal(size=(6, 160))
    )  # outside the directions: only the length of the rest can hold them together
    copies = np.concatenate([rows[:200], strange]).astype(np.float32)
    rows = np.concatenate(
        [
            rows,
            strange,
            unit(copies + rng.normal(size=copies.shape) * rng.uniform(0, 0.03, (len(copies), 1))),
        ]
    )
    bound = 0.95 - cosine.SLACK[kind]
    short = cosine._short_rows(rows, cosine._norms(rows), 0.95, bound, 10**6)
    assert short.dtype == np.float16, "shorter than the rows"
    assert short.shape[1] in (33, 65, 129), "shorter than the rows"
    products, exact = (a.astype(np.float64) @ a.astype(np.float64).T for a in (short, rows))
    assert (products >= exact - 1.5e-3).all(), "a product of short rows is never below the cosine"
    want = brute(rows, 0.95)
    assert 100 < len(want)
    assert {(1500 + k, 1706 + k) for k in range(6)} & {tuple(pair) for pair in want.tolist()}
    assert np.array_equal(cosine_pairs(rows, 0.95), want)


def test_cosine_matches_equal_brute_force():
    rows = clumps(2600, 48, 4, 0.4)
    queries, stored = rows[:90], rows[90:]
    pairs = brute(rows, 0.95)
    want = pairs[(pairs[:, 0] < 90) & (pairs[:, 1] >= 90)] - [0, 90]
    assert len(want) > 100
    assert np.array_equal(cosine_matches(queries, stored, 0.95), want)
    assert (
        cosine_matches(queries[:0], stored, 0.95).shape
        == cosine_matches(queries, stored[:0], 0.95).shape
        == (0, 2)
    )


def test_pairs_on_the_threshold_belong_to_it():
    rows = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]], np.float16)
    exact = brute(rows, -1)
    assert len(exact) == 3
    for i, j in exact.tolist():
        a, b = rows[i].astype(np.float64), rows[j].astype(np.float64)
        value = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        assert [i, j] in cosine_pairs(rows, value - 1e-12).tolist()
        assert [i, j] not in cosine_pairs(rows, value + 1e-12).tolist()


def test_a_threshold_that_is_too_low_stops_with_a_sentence(refused, monkeypatch):
    rows = clumps(900, 64, 3, 0.2)
    refused(("cosine 0.5 is too low", "higher"), cosine_pairs, rows, 0.5, "cpu", 20)
    assert len(cosine_pairs(rows, 0.5, "cpu", 900)) > 20 * 900
    monkeypatch.setattr(cosine, "REDUCE_FROM", 0)
    monkeypatch.setattr(cosine, "_reaching", lambda *_: pytest.fail("the sample should have told"))
    refused("cosine 0.5 is too low", cosine_pairs, rows, 0.5, "cpu", 20)


def test_no_pictures_one_and_a_senseless_threshold():
    for count in (0, 1):
        assert cosine_pairs(np.ones((count, 4), np.float16) / 2, 0.9).shape == (0, 2)
    assert cosine_pairs(np.zeros((5, 4), np.float16), 0.9).shape == (0, 2), (
        "rows of zeros are like nothing"
    )
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            cosine_pairs(np.ones((2, 4), np.float16), threshold)


# endregion

# region features


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Fixed weights of a tiny network, saved as a file of pretrained ones would be."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def embedder(weights) -> Embedder:
    return load_embedder(Backbone("test_resnet", str(weights), 32), FP32, views=1)


class Pictures:
    """Stored pictures that count how often each is read."""

    def __init__(self, count: int) -> None:
        classes = list(CLASSES.values())
        self.jpegs = [
            images.encode_jpeg(draw(*classes[n % len(classes)], n, size=40)) for n in range(count)
        ]
        self.keys = np.array(
            [np.frombuffer(hashlib.sha256(j).digest(), np.uint8) for j in self.jpegs]
        )
        self.read_numbers: list[int] = []
        self.at, self.act = -1, lambda: None

    def read(self, number: int) -> bytes:
        self.read_numbers.append(number)
        if len(self.read_numbers) == self.at:
            self.act()
        return self.jpegs[number]

    def run(self, embedder: Embedder, store: Path) -> np.ndarray:
        """Features from the store, and `.read_numbers` of this run alone."""
        self.read_numbers = []
        return np.array(features(self.read, self.keys, embedder, store, batch=3, workers=1))


@pytest.fixture
def pictures(monkeypatch) -> Pictures:
    monkeypatch.setattr(
        embed, "BLOCK", 8
    )  # 27 pictures: three blocks and a part, each of batches of 3, 3 and 2
    return Pictures(27)


def test_features_are_those_of_the_network(pictures, embedder, tmp_path):
    made = pictures.run(embedder, tmp_path / "store")
    assert made.dtype == np.float16
    assert made.shape == (27, embedder.dim)
    assert np.allclose(np.linalg.norm(made.astype(np.float32), axis=1), 1, atol=1e-3)
    pixels = [images.read_rgb(jpeg) for jpeg in pictures.jpegs]
    assert np.allclose(made, embedder.embed(pixels), atol=2e-3)
    network = timm.create_model("test_resnet", num_classes=0)
    network.load_state_dict(embedder._model.state_dict())
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    one = torch.from_numpy(images.resize_to_model(pixels[5], 32)).permute(2, 0, 1) / 255
    with torch.inference_mode():
        alone = network.eval()(((one - mean) / std)[None])[0].numpy()
    assert np.allclose(made[5], alone / np.linalg.norm(alone), atol=2e-3)
    assert np.abs(made[5].astype(np.float32) - made[6]).max() > 0.01
    assert features(pictures.read, pictures.keys[:0], embedder, tmp_path / "none").shape == (
        0,
        embedder.dim,
    )


@pytest.mark.parametrize("at", [1, 9, 17, 26])
def test_a_killed_run_goes_on_and_ends_the_same(pictures, embedder, tmp_path, at):
    whole, again = tmp_path / "whole", tmp_path / "again"
    pictures.at, pictures.act = (
        at,
        lambda: shutil.copytree(whole, again),
    )  # the files as a kill at this moment leaves them
    want = pictures.run(embedder, whole)
    pictures.at = -1
    assert np.array_equal(pictures.run(embedder, again), want)
    first = min(pictures.read_numbers)
    assert pictures.read_numbers == list(range(first, 27))
    assert first % 8 == 0
    assert first <= at, "finished blocks are not made again"
    assert first >= max(0, (at - 1 - 3 * embed.AHEAD) // 8 * 8 - 8), (
        "finished blocks are not made again"
    )
    for name in ("features.f16", "features.done"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    pictures.run(embedder, again)
    assert pictures.read_numbers == []


def test_stale_features_are_never_used(pictures, embedder, weights, tmp_path):
    store = tmp_path / "store"
    want = pictures.run(embedder, store)
    # another picture in the place of one: its block alone is made again
    pictures.jpegs[10] = pictures.jpegs[3]
    pictures.keys[10] = pictures.keys[3]
    made = pictures.run(embedder, store)
    assert pictures.read_numbers == list(range(8, 16))
    assert np.array_equal(made[10], made[3])
    assert np.array_equal(np.delete(made, 10, 0), np.delete(want, 10, 0))
    # another network, stopped half way; then the first one again: what the other wrote must not
    # pass for the first one's
    other = load_embedder(Backbone("test_resnet", str(weights), 32), FP32, views=2)

    class Killed(BaseException):
        pass

    def killed() -> None:
        raise Killed

    pictures.at, pictures.act = 24, killed
    with pytest.raises(Killed):
        pictures.run(other, store)
    pictures.at = -1
    assert np.array_equal(pictures.run(embedder, store), made)
    assert pictures.read_numbers == list(range(27))
    # fewer pictures, and a file that lost its end
    assert len(pictures.run(embedder, store)) == 27
    assert pictures.read_numbers == []
    with (store / "features.f16").open("r+b") as file:
        file.truncate(20 * 2 * embedder.dim)
    assert np.array_equal(pictures.run(embedder, store), made)
    assert pictures.read_numbers == list(range(16, 27))


def test_the_identity_names_everything_that_changes_a_feature(embedder, weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    plain = Backbone("test_resnet", str(weights), 32)
    assert load_embedder(plain, FP32, views=1).identity == embedder.identity
    others = [
        load_embedder(Backbone("test_resnet", str(tmp_path / "other.pth"), 32), FP32, views=1),
        load_embedder(plain, BF16, views=1),
        load_embedder(plain, FP32, views=2),
        load_embedder(Backbone("test_resnet", str(weights), 64), FP32, views=1),
        load_embedder(
            Backbone("test_resnet", str(weights), 32, mean=(0.4,) * 3, std=(0.5,) * 3),
            FP32,
            views=1,
        ),
    ]
    assert len({embedder.identity, *(e.identity for e in others)}) == 6


def test_averaged_views_make_flips_and_turns_alike(weights, embedder):
    picture = draw("tomato", "late_blight", 1, size=32)
    turned = np.ascontiguousarray(np.rot90(picture))
    flipped = np.ascontiguousarray(picture[:, ::-1])

    def likeness(maker: Embedder, other: np.ndarray) -> float:
        a, b = maker.embed([picture, other]).astype(np.float64)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    two, eight = (
        load_embedder(Backbone("test_resnet", str(weights), 32), FP32, views=v) for v in (2, 8)
    )
    assert likeness(embedder, flipped) < 0.9999, "otherwise the rest shows nothing"
    assert likeness(embedder, turned) < 0.9999, "otherwise the rest shows nothing"
    assert likeness(two, flipped) > 0.99999
    assert likeness(two, turned) < 0.9999
    assert likeness(eight, flipped) > 0.99999
    assert likeness(eight, turned) > 0.99999
    with pytest.raises(ValueError, match="views"):
        load_embedder(Backbone("test_resnet", str(weights), 32), FP32, views=3)


def test_a_planted_copy_is_found_among_others(pictures, embedder, tmp_path):
    pictures.jpegs[20] = images.encode_jpeg(images.read_rgb(pictures.jpegs[4]), quality=60)
    pictures.keys[20] = 1
    made = pictures.run(embedder, tmp_path / "store")
    exact = made.astype(np.float64)
    products = exact @ exact.T
    assert products[4, 20] == products[4, np.arange(27) != 4].max()
    assert [4, 20] in cosine_pairs(made, float(products[4, 20]) - 0.001).tolist()


def test_planted_copies_judge_the_search(pictures, embedder, tmp_path):
    made, sample, groups = pictures.run(embedder, tmp_path / "store"), [2, 9, 25], np.arange(27)
    wide, narrow = (
        judge(sample, groups, pictures.read, made, embedder, t) for t in (0.01, 0.999999)
    )
    assert [row.copies for row in wide] == [3] * len(wide)
    assert len(wide) >= 7
    assert all(row.found == 3 for row in wide), "everything is alike at a low threshold"
    assert any(row.false for row in wide), "everything is alike at a low threshold"
    assert sum(row.false for row in narrow) == 0
    assert sum(row.found for row in narrow) < 9


# endregion

# region errors


def test_random_weights_are_refused(refused):
    refused(
        ("--embed", "they mean nothing", "--weights FILE"),
        load_embedder,
        Backbone("test_resnet", "none"),
        FP32,
    )


def test_weights_that_cannot_be_had(refused, monkeypatch, tmp_path, weights):
    create = timm.create_model

    def offline(
        name: str, *args: object, pretrained: bool = False, **kwargs: object
    ) -> torch.nn.Module:
        if pretrained:
            raise OSError("no route to the hub")
        return create(name, *args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(embed, "_skip_unreachable_hub", lambda: None)
    refused(
        ("no route to the hub", "test_resnet", "--weights FILE"),
        load_embedder,
        Backbone("test_resnet"),
        FP32,
    )
    refused(
        "there is no file", load_embedder, Backbone("test_resnet", str(tmp_path / "none.pth")), FP32
    )
    refused(
        "does not fit backbone test_vit",
        load_embedder,
        Backbone("test_vit", str(weights), 160),
        FP32,
    )
    refused(("--backbone no_such_net", "list_models"), load_embedder, Backbone("no_such_net"), FP32)


def test_a_picture_that_is_gone_or_broken(refused, pictures, embedder, tmp_path):
    pictures.jpegs[12] = pictures.jpegs[12][:200]
    refused(("stored picture 12", "--fresh"), pictures.run, embedder, tmp_path / "store")

    def gone(number: int) -> bytes:
        raise FileNotFoundError(2, "No such file", f"{number}.jpg")

    refused(
        ("stored picture 0", "--fresh"), features, gone, pictures.keys, embedder, tmp_path / "other"
    )


def test_a_feature_that_is_not_a_number(refused, pictures, weights, tmp_path):
    broken = load_embedder(Backbone("test_resnet", str(weights), 32), FP32, views=1)
    with torch.no_grad():
        next(broken._model.parameters()).fill_(float("inf"))
    refused(("not a number", "--precision fp32"), pictures.run, broken, tmp_path / "store")


# endregion
