"""Cached features: those of the exact views, whatever the workers and kills; stale ones are never
used.
"""

import errno
import pickle
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.console import friendly
from common.train import cached_features, recipes
from common.train.cached_features import CachedViews, Extraction, cache_eval, cache_views
from common.train.compute import Compute, World
from common.train.dataset import EpochSampler, EvalViews, TrainViews, make_loader
from common.train.model import SwinHierarchical

RECIPE = replace(recipes.get("demo"), image_size=32, batch_size=8)
CPU = Compute(torch.device("cpu"), torch.float32)
VIEWS, SEED = 2, 3


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    return SwinHierarchical(
        "test_resnet", data.tree, image_size=32, pixel_stats=((0.5,) * 3, (0.5,) * 3)
    ).eval()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(cached_features, "BLOCK", 10)


@pytest.fixture
def forwards(model, monkeypatch):
    """How many pictures went through the network."""
    seen, real = [], model.features
    monkeypatch.setattr(model, "features", lambda pixels: seen.append(len(pixels)) or real(pixels))
    return seen


def extraction(model, data, **kwargs) -> Extraction:
    settings = {"device_batch": 4, "workers": 0, "manifest_hash": data.manifest_hash, **kwargs}
    return Extraction(model, **{"compute": CPU, **settings})


def make(model, data, folder: Path, **kwargs) -> CachedViews:
    recipe, seed = kwargs.pop("recipe", RECIPE), kwargs.pop("seed", SEED)
    views = kwargs.pop("views", VIEWS)
    dataset = TrainViews(data.splits["train"], recipe, seed)
    return cache_views(extraction(model, data, **kwargs), dataset, views, folder)


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """A cache made in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_features, "BLOCK", 10)
        return make(model, data, tmp_path_factory.mktemp("whole"))


def same(one: CachedViews, other: CachedViews) -> bool:
    return one.path.read_bytes() == other.path.read_bytes()


# region what it holds


def test_rows_are_the_features_of_the_exact_views(model, data, whole):
    split = data.splits["train"]
    assert whole.rows["feature"].shape == (VIEWS, len(split), model.num_features)
    assert whole.rows["feature"].dtype == np.float16
    views = TrainViews(split, RECIPE, SEED)
    with torch.inference_mode():
        for k in range(VIEWS):
            exact = model.features(
                torch.stack([views[k, i, i][0] for i in range(len(split))])
            ).numpy()
            np.testing.assert_allclose(
                whole.rows["feature"][k].astype(np.float32), exact, rtol=2e-3, atol=1e-3
            )
    np.testing.assert_array_equal(whole.rows["class_idx"], np.tile(split.class_idx, (VIEWS, 1)))
    assert np.abs(whole.rows["feature"][0].astype(float) - whole.rows["feature"][1]).max() > 0.01, (
        "two views of a picture differ"
    )


def test_items_are_rows_by_epoch_and_picture(whole):
    ((features, class_idx),) = whole.__getitems__([(5, 17, 4)])
    assert features.dtype == torch.float32
    assert type(class_idx) is int
    np.testing.assert_array_equal(features, whole.rows["feature"][5 % VIEWS, 4].astype(np.float32))
    assert class_idx == whole.rows["class_idx"][0, 4]
    assert len(whole) == whole.count


@pytest.mark.parametrize("workers", [0, 1])
def test_sampler_and_loader_work_unchanged(whole, workers):
    sampler = EpochSampler(len(whole), 8, SEED)
    sampler.start(range(3, 4))
    batches = list(make_loader(whole, workers, sampler=sampler))
    assert len(batches) == len(sampler)
    for (features, class_idx), items in zip(batches, sampler, strict=True):
        assert features.shape == (8, whole.num_features)
        assert features.dtype == torch.float32
        assert class_idx.dtype == torch.int64
        for row, target, (epoch, _, i) in zip(features, class_idx, items, strict=True):
            np.testing.assert_array_equal(
                row, whole.rows["feature"][epoch % VIEWS, i].astype(np.float32)
            )
            assert target == whole.rows["class_idx"][0, i]


def test_a_worker_gets_the_path_and_not_the_features(whole):
    assert len(whole.rows) == VIEWS
    sent = pickle.dumps(whole)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).rows["feature"], whole.rows["feature"])


def test_evaluation_views(model, data, tmp_path):
    made = cache_eval(extraction(model, data), data.splits["val"], tmp_path)
    parts = [made.batch([(0, i, i)]) for i in range(len(made))]
    pictures = EvalViews(data.splits["val"], 32)
    with torch.inference_mode():
        exact = model.features(torch.stack([pictures[i][0] for i in range(len(pictures))]))
    torch.testing.assert_close(torch.cat([f for f, _ in parts]), exact, rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(
        torch.cat([class_idx for _, class_idx in parts]), data.splits["val"].class_idx
    )


def test_a_picture_that_cannot_be_read_brings_the_class_of_its_stand_in(
    model, data, tmp_path, monkeypatch
):
    split = data.splits["train"]
    i = int(np.flatnonzero(np.diff(split.class_idx))[0])  # the next picture is of another class
    real = type(split).read
    monkeypatch.setattr(type(split), "read", lambda self, j: b"" if j == i else real(self, j))
    made = make(model, data, tmp_path)
    assert made.rows["class_idx"][0, i] == split.class_idx[i + 1] != split.class_idx[i]


def test_the_backbone_stands_still_while_it_is_cached(model, data, whole, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    made = make(model, data, tmp_path)
    assert model.backbone.training, "left in the mode it was in"
    model.eval()
    assert same(made, whole)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# endregion

# region workers, kills, processes


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(model, data, whole, tmp_path, workers):
    assert same(make(model, data, tmp_path, workers=workers), whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 4, 13])
def test_killed_it_goes_on_from_the_last_whole_block(
    model, data, whole, tmp_path, monkeypatch, after
):
    real, calls = model.features, []

    def features(pixels):
        calls.append(len(pixels))
        if len(calls) > after:
            raise Killed
        return real(pixels)

    monkeypatch.setattr(model, "features", features)
    with pytest.raises(Killed):
        make(model, data, tmp_path)
    done = (tmp_path / cached_features.DONE).read_bytes()
    assert done == b"\1" * (after // 3), "blocks of 10 in batches of 4, 4 and 2"
    monkeypatch.setattr(model, "features", lambda pixels: calls.append(len(pixels)) or real(pixels))
    calls.clear()
    assert same(make(model, data, tmp_path), whole)
    assert sum(calls) == VIEWS * whole.count - 10 * (after // 3)
    calls.clear()
    assert same(make(model, data, tmp_path), whole), "all there"
    assert not calls, "all there"


def test_a_file_cut_short_is_filled_again(model, data, whole, tmp_path, forwards):
    made = make(model, data, tmp_path)
    with made.path.open("r+b") as file:
        file.truncate(made.path.stat().st_size - 1)
    forwards.clear()
    assert same(make(model, data, tmp_path), whole)
    assert 0 < sum(forwards) <= 10


def test_processes_share_the_work(model, data, whole, tmp_path, forwards, monkeypatch):
    monkeypatch.setattr(World, "barrier", lambda self: None)
    make(model, data, tmp_path, world=World(0, 2))
    first = sum(forwards)
    assert 0 < first < VIEWS * whole.count
    made = make(model, data, tmp_path, world=World(1, 2))
    # one after the other here: the second finds the first one's blocks done and takes every other
    # one of the rest
    assert first < sum(forwards) < VIEWS * whole.count
    make(model, data, tmp_path)
    assert sum(forwards) == VIEWS * whole.count, "no block twice"
    assert same(made, whole), "no block twice"


# endregion

# region stale features


def test_more_views_are_added_and_fewer_are_a_part(model, data, whole, tmp_path, forwards):
    make(model, data, tmp_path, views=1)
    assert same(make(model, data, tmp_path), whole)
    assert sum(forwards) == VIEWS * whole.count
    forwards.clear()
    np.testing.assert_array_equal(
        make(model, data, tmp_path, views=1).rows["feature"][0], whole.rows["feature"][0]
    )
    assert same(make(model, data, tmp_path), whole)
    assert not forwards


CHANGES = {
    "seed": {"seed": 4},
    "manifest": {"manifest_hash": "other"},
    "precision": {"compute": Compute(CPU.device, torch.bfloat16)},
    "level": {"recipe": replace(RECIPE, augment="full")},
    "tier2": {"recipe": replace(RECIPE, tier2_share=0.9)},
    "weights": {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_made_of_anything_else_is_made_anew(
    model, data, tmp_path, forwards, change, capsys
):
    make(model, data, tmp_path)
    forwards.clear()
    parameter = next(model.backbone.parameters())
    before = parameter.data.clone()
    parameter.data[0] += change == "weights"
    made = make(model, data, tmp_path, **CHANGES[change])
    parameter.data.copy_(before)
    assert sum(forwards) == VIEWS * made.count
    assert "made anew" in capsys.readouterr().out


def test_settings_without_an_effect_on_features_leave_them(model, data, tmp_path, forwards):
    make(model, data, tmp_path)
    forwards.clear()
    make(
        model,
        data,
        tmp_path,
        device_batch=5,
        recipe=replace(RECIPE, batch_size=4, weight_decay=0.0, disease_heads_lr=1.0),
    )
    assert not forwards


def test_an_edited_augmentation_is_noticed(model, data, tmp_path, forwards, monkeypatch):
    make(model, data, tmp_path)
    real = TrainViews.__getitem__
    monkeypatch.setattr(
        TrainViews,
        "__getitem__",
        lambda self, item: (255 - real(self, item)[0], real(self, item)[1]),
    )
    forwards.clear()
    make(model, data, tmp_path)
    assert sum(forwards)


def test_rows_that_are_being_replaced_do_not_count_as_done(
    model, data, whole, tmp_path, monkeypatch
):
    make(model, data, tmp_path)
    real = model.features
    monkeypatch.setattr(model, "features", lambda pixels: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        make(model, data, tmp_path, seed=99)
    monkeypatch.setattr(model, "features", real)
    assert same(make(model, data, tmp_path), whole), (
        "back to the first seed, whose rows are half gone"
    )


def test_every_setting_that_a_view_reads_is_among_those_compared(data):
    asked = set()

    class Watched:
        def __getattr__(self, name):
            asked.add(name)
            return getattr(replace(RECIPE, randaugment_ops=1), name)

    _ = TrainViews(data.splits["train"], Watched(), 0)[0, 0, 0]
    assert asked <= set(cached_features.VIEW_SETTINGS)
    assert "image_size" in asked


# endregion

# region the disk and the machine


def test_a_disk_too_small_is_told_beforehand(model, data, tmp_path, monkeypatch, refused, forwards):
    monkeypatch.setattr(
        cached_features.shutil,
        "disk_usage",
        lambda folder: namedtuple("usage", "total used free")(10, 10, 1000),
    )
    refused(("GB more in", "--cached-views"), make, model, data, tmp_path)
    assert not forwards


def test_a_disk_that_fills_up_ends_in_a_sentence_and_loses_no_block(
    model, data, whole, tmp_path, monkeypatch, refused
):
    real, flushed = cached_features._flush, []

    def flush(file):
        flushed.append(file.name)
        if len(flushed) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(cached_features, "_flush", flush)
    refused("the disk is full", friendly(lambda argv: make(model, data, tmp_path) and 0))
    monkeypatch.undo()
    monkeypatch.setattr(cached_features, "BLOCK", 10)
    assert (tmp_path / cached_features.DONE).read_bytes() == b"\1\1"
    assert same(make(model, data, tmp_path), whole)


def test_out_of_memory_takes_smaller_pieces(model, data, whole, tmp_path, monkeypatch, capsys):
    real, sizes = model.features, []

    def features(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(pixels)

    monkeypatch.setattr(model, "features", features)
    made = make(model, data, tmp_path)
    assert sizes[:4] == [4, 2, 1, 1]
    assert set(sizes[4:]) == {1}
    assert "1 pictures at once" in capsys.readouterr().out
    np.testing.assert_allclose(
        made.rows["feature"].astype(float),
        whole.rows["feature"].astype(float),
        rtol=2e-3,
        atol=1e-3,
    )


def test_a_feature_that_is_no_number_stops(model, data, tmp_path, monkeypatch, refused):
    real = model.features
    monkeypatch.setattr(model, "features", lambda pixels: real(pixels) * 1e9)
    refused("--precision fp32", make, model, data, tmp_path)
    assert (tmp_path / cached_features.DONE).read_bytes() == b""


# endregion
