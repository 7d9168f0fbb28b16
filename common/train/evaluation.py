"""`--evaluate CHECKPOINT`: a trained model judged on a split, without training."""

import argparse

import numpy as np
import torch

from common.console import fail, say
from common.train import checkpoint
from common.train.compute import choose_compute
from common.train.dataset import EvalViews, default_workers, load_organized, make_loader
from common.train.loop import evaluate
from common.train.report import evaluate_report


def evaluate_checkpoint(args: argparse.Namespace) -> int:
    """Judge `args.evaluate` on `args.split` of `args.data`; the report goes beside the checkpoint.

    Returns:
        the exit code.

    Raises:
        SystemExit: where the checkpoint cannot be read, knows other classes, or the split holds no
            picture.
    """
    data, payload = load_organized(args.data), checkpoint.load(args.evaluate)
    checkpoint.require_tree(payload, data.tree, args.evaluate, data.root)
    split = data.splits[args.split]
    if not len(split):
        fail(f"{args.data} has no picture in the {args.split} split.")
    compute = choose_compute(args.device, args.precision)
    model = checkpoint.build_model(payload).to(compute.device, memory_format=torch.channels_last)
    workers = default_workers() if args.workers is None else args.workers
    batches = make_loader(
        EvalViews(split, model.settings["image_size"]), workers, batch_size=args.device_batch or 64
    )
    say(
        f"{args.evaluate}: {model.settings['backbone']}, {payload['epochs_done']} epochs; {compute}"
    )
    folder = args.evaluate.with_name(f"{args.evaluate.stem} on {args.split}")
    train_sizes = np.bincount(data.splits["train"].class_idx, minlength=data.tree.num_classes)
    evaluate_report(
        folder,
        evaluate(model, batches, compute),
        data.tree,
        data.class_sizes,
        train_sizes,
        title="Evaluation",
        checkpoint=args.evaluate.name,
        split=args.split,
    )
    return 0
