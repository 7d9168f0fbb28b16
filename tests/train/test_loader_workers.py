"""The weights of a run are the same bits with any number of loader workers, however the system
starts processes.
"""

import contextlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import tiny_data
import torch
import warm
from conftest import run
from same_runs import same, same_run

from common.train import recipes
from common.train.augment import draw_mix, step_draws
from common.train.compute import Compute
from common.train.dataset import EpochSampler, TrainViews, make_loader
from common.train.loop import Work, training_step
from common.train.model import SwinHierarchical
from common.train.optim import make_optimizer, set_rates, set_trainable

METHODS = [
    name
    for name in ("fork", "forkserver", "spawn")
    if name in multiprocessing.get_all_start_methods()
]


@contextlib.contextmanager
def started_by(method: str) -> Iterator[None]:
    """Make `method` the system's way to start processes: fork on most of Linux, forkserver there
    from Python 3.14, spawn elsewhere.
    """
    before = multiprocessing.get_start_method(allow_none=True)
    if method == "forkserver":
        warm.preload()  # or each worker would take seconds to import torch
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


# region the loader


RECIPE = replace(recipes.get("foliar"), image_size=32, batch_size=8, mix_share=1.0)
(PHASE,) = recipes.joint_phases(RECIPE)


def short_run(data, workers: int) -> dict[str, object]:
    """All batches of two epochs, and the weights after a step on each: species and disease, MixUp
    or CutMix, dropout.
    """
    split, batches = data.splits["train"], []
    torch.manual_seed(0)
    model = SwinHierarchical(
        "test_resnet",
        data.tree,
        image_size=32,
        neck={"dropout": 0.3, "width": 32, "dropout_after": 0.1},
    )
    model.use_counts(np.bincount(split.class_idx, minlength=data.tree.num_classes))
    set_trainable(model, PHASE)
    optimizer, compute = (
        make_optimizer(model, PHASE, RECIPE),
        Compute(torch.device("cpu"), torch.float32),
    )
    sampler = EpochSampler(len(split), 8, 0)
    loader = make_loader(TrainViews(split, RECIPE, 0), workers, sampler=sampler)
    sampler.start(range(2))  # as a phase does: the workers read on over the end of an epoch
    for count, (images, class_idx) in enumerate(loader):
        seed, rng = step_draws(0, *divmod(count, len(sampler)))
        mix = draw_mix(8, 32, RECIPE, rng)
        work = Work(model, optimizer, compute.scaler(), compute, PHASE, RECIPE, 8, 4)
        set_rates(optimizer, 1e-3)
        loss = training_step(work, images, class_idx, mix, seed)
        batches.append([images, class_idx, loss])
    assert len(batches) == 2 * len(sampler) > 8
    return {"batches": batches, "model": model.state_dict()}


@pytest.fixture(scope="module")
def alone(data):
    """What the process makes by itself."""
    return short_run(data, workers=0)


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        (method, workers)
        for method in METHODS
        for workers in (1, 2)
        if (method, workers) != ("spawn", 1)
    ],
)  # that one stands below; each costs seconds
def test_batches_and_weights_are_those_without_workers(data, alone, method, workers):
    with started_by(method):
        same(short_run(data, workers), alone)


def test_a_short_run_shows_what_differs(data, alone):
    """Another picture in one place of one batch ends in other weights: the comparison can fail."""
    data.splits["train"].class_idx[0], before = (
        data.splits["train"].class_idx[0] ^ 1,
        data.splits["train"].class_idx[0],
    )
    try:
        with pytest.raises(AssertionError):
            same(short_run(data, 0), alone)
    finally:
        data.splits["train"].class_idx[0] = before


# endregion

# region the script

ONE_EPOCH = [
    *tiny_data.SPECIES,
    "--mix-share",
    "0.5",
    "--ema-decay",
    "0.9",
    "--device-batch",
    "4",
    "--species-warmup-epochs",
    "0",
    "--species-finetune-epochs",
    "1",
    "--species-final-epochs",
    "0",
]


@pytest.fixture(scope="module")
def trained_alone(organized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert (
        run(
            "02a_train_species",
            "--data",
            organized,
            "--checkpoints",
            folder,
            *ONE_EPOCH,
            "--workers",
            0,
        )
        == 0
    )
    return folder / "species_only"


@pytest.mark.parametrize("method", METHODS)
def test_02a_ends_with_the_weights_of_a_run_without_workers(
    organized, trained_alone, tmp_path, method
):
    with started_by(method):
        assert (
            run(
                "02a_train_species",
                "--data",
                organized,
                "--checkpoints",
                tmp_path,
                *ONE_EPOCH,
                "--workers",
                1,
            )
            == 0
        )
    same_run(trained_alone, tmp_path / "species_only")


# endregion
