"""Weights between those after the heads' phase and the final ones (WiSE-FT, Wortsman et al. 2022),
where val scores them higher.
"""

import copy
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from common.console import progress, say
from common.train import checkpoint, loop
from common.train.compute import Compute
from common.train.dataset import EpochSampler, EvalViews, TrainViews, make_loader
from common.train.metrics import Judged, summarise, tail_f1
from common.train.model import SwinHierarchical
from common.train.run import Run

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the final weights
PICTURES = 512  # from which batch norms take their statistics anew


def average_with_heads(run: Run, heads: Path, best: Path) -> None:
    """Replace the best checkpoint of a run that has ended by its average with the one after the
    heads' phase, where the last phase scores it higher on val.

    Its metrics then have `average_share`: the share of the final weights, 1 where none of SHARES is
    better. A checkpoint that has it is left as it is; a run killed here begins to average again.
    """
    if not run.world.is_main:
        return
    payload = checkpoint.load(best)
    if "average_share" in payload["metrics"]:
        return
    data, device = run.data, run.compute.device
    views = EvalViews(data.splits["val"], run.recipe.image_size)
    start, end = (
        checkpoint.build_model(p).to(device, memory_format=torch.channels_last)
        for p in (checkpoint.load(heads), payload)
    )

    def judge(model: SwinHierarchical) -> tuple[Judged, dict[str, float]]:
        pin = run.compute.on_gpu
        loader = make_loader(views, run.args.workers, batch_size=run.eval_batch, pin_memory=pin)
        judged = loop.evaluate(model, loader, run.compute)
        return judged, summarise(judged, data.tree, data.class_sizes)

    score = run.phases[-1].score
    chosen, (judged, metrics), share_taken = end, judge(end), 1.0
    before = metrics
    pictures = first_views(run) if batch_norms(end) else []
    for share in progress(SHARES, len(SHARES), "averages", "average"):
        model = between(start, end, share)
        measure_batch_norms(model, pictures, run.compute)
        other = judge(model)
        if score(other[1]) > score(metrics):
            chosen, (judged, metrics), share_taken = model, other, share
    rare = tail_f1(judged, data.tree, data.class_sizes)
    metrics = metrics | {"average_share": share_taken, "tail_f1_per_class": rare}
    checkpoint.save(best, payload | {"model": chosen.state_dict(), "ema": None, "metrics": metrics})
    say(
        f"averaged with the weights after the heads' phase: {share_taken:.0%} of the final weights "
        f"are best on val (both right {before['cascade_top1']:.4f} -> "
        f"{metrics['cascade_top1']:.4f}, macro F1 {before['macro_f1']:.4f} -> "
        f"{metrics['macro_f1']:.4f})"
        if share_taken < 1
        else "no average with the weights after the heads' phase is better on val"
    )


@torch.no_grad()
def between(start: SwinHierarchical, end: SwinHierarchical, share: float) -> SwinHierarchical:
    """A model of `share` x the end's weights + (1 - share) x the start's; buffers are the end's."""
    model = copy.deepcopy(end)
    torch._foreach_lerp_(list(model.parameters()), list(start.parameters()), 1.0 - share)
    return model


def first_views(run: Run) -> list[Tensor]:
    """Some training views in batches, uint8 (N, size, size, 3)."""
    train = run.data.splits["train"]
    views = TrainViews(train, run.recipe, run.args.seed)
    sampler = EpochSampler(len(train), min(64, len(train)), run.args.seed)
    batches = list(islice(sampler, PICTURES // 64))
    return [images for images, _ in make_loader(views, run.args.workers, sampler=batches)]


def batch_norms(model: SwinHierarchical) -> list[_BatchNorm]:
    """The layers that keep statistics."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def measure_batch_norms(
    model: SwinHierarchical, pictures: Iterable[Tensor], compute: Compute
) -> None:
    """Take the statistics of all batch norms anew, as the mean over batches of pictures: those of
    other weights do not fit averaged ones (Izmailov et al. 2018, section 3.2).
    """
    for norm in batch_norms(model):
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for images in pictures:
        with compute.autocast():
            model.features(compute.upload(images))
    model.eval()
