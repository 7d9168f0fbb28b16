"""Index, sampling and views: what an epoch holds must not depend on workers, order or a restart."""

import csv
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from conftest import run

from common.images import read_rgb, resize_to_model
from common.train import dataset, recipes
from common.train.dataset import (
    EpochSampler,
    EvalViews,
    TrainViews,
    boost_weights,
    load_organized,
    make_loader,
    rare_weights,
)

RECIPE = replace(recipes.get("demo"), image_size=32, batch_size=8)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def write_manifest(manifest: Path, rows: list[dict[str, str]]) -> None:
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory) -> Path:
    """data/organized of the same pictures in shards of at most 20,000 bytes; read only."""
    return tiny_data.organize(tmp_path_factory.mktemp("sharded"), "--shards", 0.02)


@pytest.fixture
def copy(organized, tmp_path):
    """A copy of the organized folder that may be broken."""
    return shutil.copytree(organized, tmp_path / "organized")


def batches(sampler: EpochSampler) -> list[list[tuple[int, int, int]]]:
    return list(sampler)


def at(epoch: int, step: int = 0, **kwargs) -> EpochSampler:
    sampler = EpochSampler(**{"count": 50, "batch_size": 8, "seed": 3, **kwargs})
    sampler.start(range(epoch, epoch + 1), step)
    return sampler


# region sampling


def test_order_is_a_function_of_seed_and_epoch():
    assert batches(at(2)) == batches(at(2)) != batches(at(3))
    assert batches(at(2)) != batches(at(2, seed=4))
    pictures = [i for batch in at(2) for _, _, i in batch]
    assert len(at(2)) == 6, "each once, the last partial batch dropped"
    assert len(pictures) == 48 == len(set(pictures)), "each once, the last partial batch dropped"
    assert [p for batch in at(2) for _, p, _ in batch] == list(range(48))
    assert {e for b in at(2) for e, _, _ in b} == {2}


@pytest.mark.parametrize("weights", [None, np.arange(50.0)])
def test_a_restart_at_any_step_goes_on_in_the_same_order(weights):
    for step in range(7):
        assert batches(at(1, step, weights=weights)) == batches(at(1, weights=weights))[step:]


def test_fewer_pictures_than_a_batch_are_one_batch():
    assert [len(b) for b in at(0, count=5)] == [5]


def test_weights_are_followed():
    weights = np.repeat([1.0, 3.0, 5.0], [500, 300, 200])
    drawn = np.bincount(
        [i for b in at(0, count=1000, weights=weights) for _, _, i in b], minlength=1000
    )
    shares = [drawn[:500].sum(), drawn[500:800].sum(), drawn[800:].sum()] / drawn.sum()
    np.testing.assert_allclose(shares, np.array([500, 900, 1000]) / 2400, atol=0.04)
    assert drawn.max() > 1, "drawn with replacement"


def fake_split(data, classes: list[int]):
    return replace(data.splits["train"], class_idx=np.array(classes, np.int32))


def test_rare_classes_weigh_3_and_5(data):
    recipe = recipes.get("hierarchical")
    sizes = np.array([10, 49, 50, 79, 80, 500, 81])
    np.testing.assert_array_equal(
        rare_weights(fake_split(data, list(range(7))), sizes, recipe), [5, 5, 3, 3, 1, 1, 1]
    )


def test_boosted_rare_classes_fill_at_least_their_share(data):
    recipe = recipes.get("hierarchical")
    sizes = np.array([20, 60, 500, 500, 500, 500, 500])
    split = fake_split(data, [0] * 2 + [1] * 4 + [2] * 200 + [3] * 200)
    before, after = rare_weights(split, sizes, recipe), boost_weights(split, sizes, recipe)
    assert before[:6].sum() / before.sum() < 0.06
    assert after[:6].sum() / after.sum() == pytest.approx(0.5)
    np.testing.assert_allclose(
        after[:6] / after[0],
        before[:6] / before[0],
        err_msg="rare classes keep their weights to each other",
    )
    full = boost_weights(fake_split(data, [0] * 30 + [2] * 3), sizes, recipe)
    assert full[:30].sum() / full.sum() > 0.9, "a share that is larger already stays"
    none = fake_split(data, [2, 3, 4])
    np.testing.assert_array_equal(boost_weights(none, sizes, recipe), [1, 1, 1])


# endregion

# region views


def test_index(data, organized):
    assert sum(map(len, data.splits.values())) == 70
    assert list(data.splits) == [
        "train",
        "val",
        "test",
    ]
    assert data.class_sizes.tolist() == [10] * 7
    assert data.long_side == 512
    for split in data.splits.values():
        for i in range(len(split)):
            species, disease = data.tree.pair(int(split.class_idx[i]))
            assert split.path(i).is_file()
            assert split.path(i).parts[-3:-1] == (species, disease)


def test_eval_views_are_what_is_served(data):
    split = data.splits["val"]
    views, class_idx = next(iter(make_loader(EvalViews(split, 32), 0)))
    assert views.dtype == torch.uint8
    assert class_idx.tolist() == split.class_idx.tolist()
    assert len(views) == len(split) >= 7
    for i in range(len(split)):
        np.testing.assert_array_equal(
            views[i].numpy(), resize_to_model(read_rgb(split.path(i)), 32)
        )


def test_a_shard_data_set_is_the_same_data_set(data, sharded):
    other = load_organized(sharded)
    assert other.tree == data.tree
    assert not list(sharded.glob("t*/*/*"))
    assert other.manifest_hash != data.manifest_hash
    for name, split in data.splits.items():
        theirs = other.splits[name]
        for column in ("class_idx", "width", "height", "size"):
            np.testing.assert_array_equal(
                getattr(theirs, column), getattr(split, column), err_msg=f"{name} {column}"
            )
        assert len(theirs.ends) == len(list((sharded / name).iterdir())) > 1
        assert (split.offset == -1).all()
        for i in range(len(split)):
            assert theirs.read(i) == split.read(i) == split.path(i).read_bytes()
            assert theirs.path(i).parent == sharded / name
            assert theirs.path(i).suffix == ".tar"


def test_shards_are_opened_once_and_not_too_many(sharded, monkeypatch):
    split = load_organized(sharded).splits["train"]
    want = [split.read(i) for i in range(len(split))]
    held = dict(split._shards)
    assert [split.read(i) for i in range(len(split))] == want
    assert split._shards == held
    assert len(held) == len(split.ends) >= 4
    del held
    monkeypatch.setattr(dataset, "OPEN_SHARDS", 2)
    few, held = load_organized(sharded).splits["train"], len(os.listdir("/dev/fd"))
    for i in np.random.default_rng(0).integers(0, len(split), 200).tolist():
        assert few.read(i) == want[i]
        assert len(few._shards) <= 2
        assert len(os.listdir("/dev/fd")) <= held + 2
    del few, split
    assert len(os.listdir("/dev/fd")) <= held - 4, "closed with their split"


def test_a_spawned_worker_opens_its_own_shards(sharded):
    split = load_organized(sharded).splits["val"]
    want = [split.read(i) for i in range(len(split))]
    sent = pickle.dumps(TrainViews(split, RECIPE, 5))
    del split
    again = pickle.loads(sent).split
    assert not again._shards
    assert [again.read(i) for i in range(len(again))] == want


def epoch_of(data, workers: int, step: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    split = data.splits["train"]
    sampler = EpochSampler(len(split), 8, 5)
    sampler.start(range(3, 4), step)
    return list(make_loader(TrainViews(split, RECIPE, 5), workers, sampler=sampler))


def test_any_number_of_workers_gives_the_same_batches(data, sharded):
    alone, shards = epoch_of(data, 0), load_organized(sharded)
    steps = len(data.splits["train"]) // 8
    assert len(alone) == steps > 4
    assert alone[0][0].shape == (8, 32, 32, 3)
    assert alone[0][0].dtype == torch.uint8
    for source, workers, step in (
        (data, 1, 0),
        (data, 2, 0),
        (data, 2, 3),
        (data, 0, 2),
        (shards, 0, 0),
        (shards, 2, 1),
    ):
        again = epoch_of(source, workers, step)  # the last forks with all shards open
        assert len(again) == steps - step
        for (a, x), (b, y) in zip(alone[step:], again, strict=True):
            assert torch.equal(a, b), f"{workers} workers from step {step} of {source.root}"
            assert torch.equal(x, y), f"{workers} workers from step {step} of {source.root}"


def test_training_on_shards_ends_with_the_same_weights(organized, sharded, tmp_path):
    """Bit for bit, after an epoch that changes every weight; evaluation reads shards too."""
    flags = [
        *tiny_data.SPECIES,
        "--species-warmup-epochs",
        0,
        "--species-finetune-epochs",
        1,
        "--species-final-epochs",
        0,
    ]
    ends = []
    for name, folder in (("files", organized), ("shards", sharded)):
        assert (
            run("02a_train_species", "--data", folder, "--checkpoints", tmp_path / name, *flags)
            == 0
        )
        ends.append(torch.load(tmp_path / name / "species_only" / "last.pt", weights_only=True))
    files, shards = (end["model"] for end in ends)
    assert list(files) == list(shards)
    assert all(torch.equal(files[key], shards[key]) for key in files)
    same = set(ends[0]["metrics"]) - {"seconds", "wait_share", "images_per_second"}
    assert len(same) > 10
    assert all(ends[0]["metrics"][key] == ends[1]["metrics"][key] for key in same)


def test_the_same_picture_is_drawn_anew_at_another_place(data):
    views = TrainViews(data.splits["train"], RECIPE, 5)
    one, two, three = (views[item][0] for item in ((0, 0, 4), (0, 1, 4), (1, 0, 4)))
    assert not torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(one, views[0, 0, 4][0])


def test_a_file_that_broke_is_replaced_with_a_warning(copy, capfd):
    split = load_organized(copy).splits["train"]
    views = TrainViews(split, RECIPE, 5)
    want = views[0, 7, 3]
    split.path(2).write_bytes(b"broken")
    split.path(len(split) - 1).unlink()
    got = views[0, 7, 2]
    assert torch.equal(got[0], want[0]), "the next picture, with its own label"
    assert got[1] == want[1] == split.class_idx[3], "the next picture, with its own label"
    assert views[0, 7, len(split) - 1][1] == split.class_idx[0], "after the last comes the first"
    told = capfd.readouterr().err
    assert str(split.path(2)) in told
    assert str(split.path(len(split) - 1)) in told
    for i in range(len(split)):
        split.path(i).unlink(missing_ok=True)
    with pytest.raises(RuntimeError, match="still complete"):
        views[0, 0, 0]


def test_a_shard_that_broke_is_named_with_the_place(sharded, tmp_path, capfd):
    copy = shutil.copytree(sharded, tmp_path / "organized")
    split = load_organized(copy).splits["train"]
    views = TrainViews(split, RECIPE, 5)
    last = int(
        np.argmax(np.where(split.file == split.file[0], split.offset, -1))
    )  # the last picture of the first one's shard
    stays = (last + 1) % len(split)
    want = views[0, 7, stays]
    os.truncate(split.path(last), int(split.offset[last]) + 100)
    got = views[0, 7, last]
    assert got[1] == split.class_idx[stays]
    assert torch.equal(got[0], want[0])
    told = capfd.readouterr().err
    assert f"{split.path(last)} at byte {split.offset[last]} cannot be read (the shard ends" in told
    assert "01_reorganize.py" in told
    assert split.file[stays] != split.file[last], "the test needs its neighbour elsewhere"


# endregion

# region mistakes


def test_pictures_held_out_are_in_no_split(copy, data):
    """Their species are not in the class tree; near-duplicates of other classes may stand
    between.
    """
    manifest = copy / "manifest.csv"
    rows = rows_of(manifest)
    for i, name in enumerate(("holdout_species", "holdout_diseases")):
        rows.insert(
            7 * i,
            {
                **rows[0],
                "species": "nettle",
                "split": name,
                "path": f"holdout/{name[8:]}/nettle/rust/{i:016x}.jpg",
            },
        )
    write_manifest(manifest, rows)
    again = load_organized(copy)
    for name, split in data.splits.items():
        assert [again.splits[name].read(i) for i in range(len(split))] == [
            split.read(i) for i in range(len(split))
        ]


def test_a_large_manifest_is_read_in_parts(copy, data, monkeypatch, refused):
    """Parts end in the middle of splits and of shards, and lines are counted on, over quoted line
    ends too.
    """
    monkeypatch.setattr("common.train.manifest.AT_ONCE", 5)
    again = load_organized(copy)
    for name, split in data.splits.items():
        assert [again.splits[name].path(i).name for i in range(len(split))] == [
            split.path(i).name for i in range(len(split))
        ]
    rows = rows_of(copy / "manifest.csv")
    rows[31]["source"] = "two\nlines"
    rows[32]["source"] = "two\nmore"
    rows[33]["width"] = "wide"
    write_manifest(copy / "manifest.csv", rows)
    refused(("line 37", "wide"), load_organized, copy)


def test_what_does_not_fit_is_told(copy, tmp_path, refused):
    refused(("01_reorganize.py", "--data"), load_organized, tmp_path / "nowhere")
    manifest, index = copy / "manifest.csv", copy / "species_index.json"
    good, tree = manifest.read_text(), index.read_text()
    lines = good.splitlines(keepends=True)
    for bad, words in (
        (
            "".join(lines[:3]) + "x.jpg,nettle,healthy,train,g0,0,0,64,64,x,x,,900\n",
            ("line 4", "nettle"),
        ),
        (good.replace(",train,", ",trian,", 1), "trian"),
        (good.replace(",64,64,", ",wide,64,", 1), "wide"),
        (good.replace(",64,64,", ",0,64,", 1), "line 2"),
        (good.replace(",64,64,", f",{2**40},64,", 1), "line 2"),
        (good + "x.jpg,corn,healthy,train,g0,0,0,64,64,x,x,5,0\n", "line 72"),
        (good + "\0\n", "72"),
        (
            "path,species,disease,split,group,sha256,phash,width,height,source\n",
            ("offset", "01_reorganize.py"),
        ),
        ("".join(lines[:1]), "train"),
        (good[: good.rindex(",val,")], ("line", "columns")),
    ):
        manifest.write_text(bad)
        refused(words, load_organized, copy)
    manifest.write_text(good)
    for bad in (tree[:50], json.dumps({"species": []}), "[]"):
        index.write_text(bad)
        refused("species_index.json", load_organized, copy)


# endregion
