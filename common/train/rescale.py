"""After training, where the recipe asks for it: heads scaled for rare classes (lws, tau), kept
where val gains by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.console import say
from common.train import checkpoint
from common.train.cached_features import cache_eval, cache_views
from common.train.dataset import balanced_weights
from common.train.engine import evaluate
from common.train.metrics import summarise
from common.train.tail import Schedule, retrain_heads

if TYPE_CHECKING:
    from common.train.run import Run


def rescale_heads(run: Run, best: Path) -> None:
    """Scale the heads of the best checkpoint by `recipe.tail`, `lws` or `tau`, and write it back if
    macro F1 on val rises.

    Kang et al. 2020: decision boundaries follow the lengths of the weights, which follow the sizes
    of the classes. The backbone stands still, so features of `cached_views` views (at least one)
    are computed once. Other values of `tail` do nothing."""
    if run.recipe.tail not in ("lws", "tau") or not run.world.leads:
        return
    payload = checkpoint.load(best)
    if payload.get("rescaled"):
        return
    args, splits, folder = run.args, run.data.splits, run.folder / "features"
    model = checkpoint.build_model(payload).to(
        run.compute.device, memory_format=torch.channels_last
    )
    common = {
        "workers": args.workers,
        "device_batch": args.device_batch,
        "manifest_hash": run.data.manifest_hash,
    }
    views = max(1, run.recipe.cached_views)
    train = cache_views(
        model,
        splits["train"],
        run.recipe,
        run.compute,
        folder / "train",
        views,
        args.seed,
        **common,
    )
    val = cache_eval(model, splits["val"], run.compute, folder / "val", **common)
    class_idx, tree = splits["train"].class_idx, run.data.tree
    before = summarise(evaluate(model, val.batches(), run.compute), tree, run.data.class_sizes)
    counts = np.bincount(class_idx, minlength=tree.num_classes)
    state = retrain_heads(
        model,
        train,
        val,
        run.recipe.tail,
        counts,
        Schedule(),
        args.seed,
        run.compute,
        balanced_weights(class_idx) if run.recipe.tail == "lws" else None,
    )
    model.load_state_dict(state, strict=False)
    after = summarise(evaluate(model, val.batches(), run.compute), tree, run.data.class_sizes)
    kept = after["macro_f1"] > before["macro_f1"]
    say(
        f"tail {run.recipe.tail}: macro F1 on val {before['macro_f1']:.4f} -> "
        f"{after['macro_f1']:.4f}, tail F1 {before['tail_f1']:.4f} -> "
        f"{after['tail_f1']:.4f}; {'kept' if kept else 'the heads stay as they were trained'}"
    )
    changed = (
        {"model": model.state_dict(), "ema": None, "metrics": {**payload["metrics"], **after}}
        if kept
        else {}
    )
    checkpoint.save(best, {**payload, **changed, "rescaled": run.recipe.tail})
    shutil.rmtree(folder)
