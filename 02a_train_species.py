"""Stage A: train the backbone and the species head of SwinHierarchical.

Reads   data/organized/ (01_reorganize.py)
Writes  checkpoints/species_only/: epoch=NN-val_loss=X.pt after each phase, epoch=NN-best.pt,
        last.pt (to go on from), pretrained.pt (what it began with, for 03), log.jsonl,
        config.json, curves.png, confusion.png, report.md, report.html (what it got wrong)
Next    02b_train_disease.py

  python 02a_train_species.py
      recipe auto: resolved from the photos, the network and the machine, and printed with reasons
  python 02a_train_species.py --minutes 60
      as many passes over the photos as 02a and 02b can take in an hour
  python 02a_train_species.py --recipe demo --weights none      minutes on two CPU cores
  python 02a_train_species.py --review-labels
      before that: lists pictures that may be under a wrong label, in checkpoints/labels_review/
  python 02a_train_species.py --batch-size 128 --device-batch 32
      any cell of the recipe, any machine

Killed or stopped, the same command goes on where it was and ends with the same weights. Expect on
the generated demo pictures (--recipe demo) a species accuracy above 0.95 on val at the end of phase
A2; recipe auto trains no more than the heads here, and everything in 02b.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from common.classes import ClassTree
from common.console import Stopwatch, duration, fail, friendly, header, parser, say, warn
from common.files import file_sha256
from common.train import auto, checkpoint, recipe_flags, recipes
from common.train.averaging import average_with_heads
from common.train.cached_features import Extraction
from common.train.compute import shut_down
from common.train.dataset import load_organized
from common.train.label_review import review_labels
from common.train.machine import (
    add_training_flags,
    evaluate_checkpoint,
    print_plan,
    resolve_machine,
    set_up,
)
from common.train.model import SwinHierarchical
from common.train.recipes import AUTO, Recipe
from common.train.run import Run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    flags = parser(__doc__)
    flags.add_argument(
        "--weights",
        default="auto",
        metavar="auto|imagenet|none|FILE",
        help="initial backbone: timm's pretrained weights if they can be had (auto) or without "
        "fail (imagenet), random (none), or a file with a timm state dict or a Foliar checkpoint",
    )
    flags.add_argument(
        "--review-labels",
        action="store_true",
        help="list the pictures most likely under a wrong label, by the features of --weights, in "
        "labels_review/ below --checkpoints; trains nothing",
    )
    flags.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="time for 02a and 02b together: recipe auto takes as many passes over the photos as "
        "fit (default: no limit; on a CPU 30, in proportion for more than 5,000 photos)",
    )
    add_training_flags(flags, recipe="auto")
    return flags.parse_args(argv)


def new_model(weights: str, seed: int, recipe: Recipe, tree: ClassTree) -> SwinHierarchical:
    """Build the model with the initial weights that --weights asks for."""
    settings = recipe_flags.model_settings(recipe)
    recipe_flags.require_backbone(recipe.backbone)

    def build(pretrained: bool) -> SwinHierarchical:
        torch.manual_seed(seed)  # the heads start equal, whichever way the backbone came
        try:
            model = SwinHierarchical(recipe.backbone, tree, pretrained=pretrained, **settings)
            # some networks are built for any size and fail on the first picture
            with torch.inference_mode():
                size = recipe.image_size
                model.eval()(torch.zeros(1, size, size, 3, dtype=torch.uint8))
            return model
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            if pretrained:
                raise
            fail(
                f"--backbone {recipe.backbone} cannot be built at {recipe.image_size} px: "
                f"{checkpoint.first_line(error)}. Names: "
                'python -c "import timm; print(timm.list_models())"'
            )

    if weights in ("auto", "imagenet"):
        build(pretrained=False)  # an unknown name is a mistake, not a missing download
        checkpoint.skip_unreachable_hub()
        try:
            return build(pretrained=True)
        except Exception as error:  # hub clients raise anything from OSError to their own classes
            reason = f"{type(error).__name__}: {checkpoint.first_line(error)}"[:160]
            if weights == "imagenet":
                fail(
                    f"timm's pretrained weights of {recipe.backbone} cannot be had ({reason}). "
                    "Connect to the internet, give a file with --weights FILE, or start from "
                    "random weights with --weights none."
                )
            warn(
                f"NO PRETRAINED WEIGHTS: {recipe.backbone} starts from RANDOM weights ({reason}). "
                "Real photos need pretrained weights, or hours: connect to the internet, or give a "
                "file with --weights FILE."
            )
    model = build(pretrained=False)
    if weights not in ("auto", "imagenet", "none"):
        say(checkpoint.load_backbone(model, Path(weights)))
    return model


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Train stage A; see the module's docstring."""
    args, clock = parse(argv), Stopwatch()
    header("02a train species")
    if args.evaluate:
        return evaluate_checkpoint(args)
    data = load_organized(args.data)
    minutes = auto.time_limit(args, data)
    recipe, overridden, why = auto.choose(args, data)
    if not recipes.species_phases(recipe):
        fail(
            "every phase of stage A has 0 epochs: nothing would be trained. Give "
            "--species-finetune-epochs or another phase some."
        )
    if args.review_labels:
        say(recipe_flags.describe(args.recipe, recipe, overridden, why))
        compute, world = resolve_machine(args, recipe)
        # random features would accuse everyone: without pretrained weights, stop
        weights = "imagenet" if args.weights == "auto" else args.weights
        model = new_model(weights, args.seed, recipe, data.tree)
        model.to(compute.device, memory_format=torch.channels_last)
        batch, workers = args.device_batch, args.workers
        extraction = Extraction(model, compute, batch, workers, data.manifest_hash, world)
        review_labels(extraction, data, args.checkpoints / "labels_review")
        shut_down()
        return 0
    setup = set_up(args, data, recipe, args.recipe, overridden)
    if data.tree.num_species == 1 and recipe.classes != "flat" and args.recipe != AUTO:
        warn(
            f"{data.tree.species[0]} IS THE ONLY SPECIES: its head has nothing to learn, so that "
            "the loss of this stage is 0.0; 02b learns the diseases. Keep this stage short "
            "(--species-finetune-epochs 0 --species-final-epochs 0) and give 02b more "
            "--joint-epochs; or make each disease a class of its own: 01_reorganize.py --levels 1."
        )

    folder = args.checkpoints / "species_only"
    # a run that goes on has its weights in last.pt: nothing to download
    going_on = (folder / "last.pt").is_file() and not args.fresh
    model = new_model("none" if going_on else args.weights, args.seed, recipe, data.tree)
    if minutes and not going_on:
        passes = auto.passes_that_fit(setup, model, minutes, clock)
        recipe, overridden, why = auto.choose(args, data, passes)
        setup = replace(setup, recipe=recipe, overridden=overridden)
    phases = recipes.species_phases(recipe)
    say(recipe_flags.describe(args.recipe, recipe, overridden, why))
    print_plan(data, phases, recipe)
    start_from = file_sha256(Path(args.weights)) if Path(args.weights).is_file() else args.weights
    with Run(folder, phases, model, setup, start_from) as run:
        run.resume()
        if model.pretrained and run.world.is_main:  # 03 asks it for a second opinion
            checkpoint.save(folder / checkpoint.PRETRAINED, checkpoint.describe_model(model))
        for epoch, phase in run.epochs():
            loss = run.train_epoch(epoch, phase)
            judged, metrics = run.evaluate()
            # the best so far: in stage A, the most species right
            if run.end_epoch(epoch, phase, loss, metrics):
                run.save_best(f"epoch={epoch + 1:02d}-best.pt", judged, metrics)
            if run.epochs_done == run.phase_start + phase.epochs:
                name = f"epoch={epoch + 1:02d}-val_loss={metrics['species_nll']:.2f}.pt"
                run.save(name, judged, metrics)
            run.save_last()
        best = checkpoint.find_best(folder)
        if recipe.classes == "flat" and recipe.average_with_heads == "yes":
            phase_ends = folder.glob("epoch=*-val_loss=*.pt")
            first = min(phase_ends, key=lambda path: int(re.findall(r"\d+", path.name)[0]))
            average_with_heads(run, first, best)
        run.finish(best, "Stage A: species")
    shut_down()
    say(f"time: {duration(clock())}", "next: python 02b_train_disease.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
