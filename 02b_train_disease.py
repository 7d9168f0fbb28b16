"""Stage B: train one disease head per species, then everything together.

Reads   data/organized/, checkpoints/species_only/*-best.pt (02a_train_species.py)
Writes  checkpoints/disease_heads/: disease_heads_epoch=NN.pt, disease_heads_final.pt, last.pt
        checkpoints/hierarchical_full/: epoch=NN.pt (half way), epoch=NN-best.pt, last.pt
        and in each log.jsonl, config.json, curves.png, confusion.png, report.md, report.html
Next    03_export.py

  python 02b_train_disease.py
      with the recipe that the species checkpoint was trained by
  python 02b_train_disease.py --joint-epochs 20 --device-batch 32

Killed or stopped, the same command goes on where it was and ends with the same weights.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.console import Stopwatch, duration, fail, friendly, header, parser, say
from common.train import checkpoint, recipe_flags, recipes
from common.train.averaging import average_with_heads
from common.train.compute import shut_down
from common.train.dataset import Organized, load_organized
from common.train.machine import add_training_flags, evaluate_checkpoint, print_plan, set_up
from common.train.recipes import Phase
from common.train.run import Run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    flags = parser(__doc__)
    flags.add_argument(
        "--species-checkpoint",
        type=Path,
        default=None,
        metavar="FILE",
        help="where to start (default: the best of checkpoints/species_only)",
    )
    add_training_flags(flags, recipe=None)
    return flags.parse_args(argv)


def species_checkpoint(args: argparse.Namespace, data: Organized) -> dict[str, Any]:
    """Load the species checkpoint and check that its classes are those of the data."""
    path = args.species_checkpoint or checkpoint.find_best(args.checkpoints / "species_only")
    if path is None:
        fail(
            f"there is no *-best.pt in {args.checkpoints / 'species_only'}. Run "
            "02a_train_species.py first, or give a checkpoint with --species-checkpoint."
        )
    payload = checkpoint.load(path)
    checkpoint.require_tree(payload, data.tree, path, data.root)
    say(f"species checkpoint: {path} (species {payload['metrics']['species_top1']:.4f} on val)")
    return payload


def train_heads(run: Run) -> None:
    """B1 and B2: all disease heads at once on the frozen backbone, then the rare classes more
    often.
    """
    run.resume()
    for epoch, phase in run.epochs():
        loss = run.train_epoch(epoch, phase)
        judged, metrics = run.evaluate()
        run.end_epoch(epoch, phase, loss, metrics)
        if run.epochs_done == run.total_epochs:
            run.save("disease_heads_final.pt", judged, metrics)
        elif run.epochs_done == run.phase_start + phase.epochs:
            run.save(f"disease_heads_epoch={epoch + 1:02d}.pt", judged, metrics)
        run.save_last()
    run.finish(run.folder / "disease_heads_final.pt", "Stage B: disease heads")


def train_jointly(run: Run, heads: Path) -> None:
    """B3: species and disease loss through the whole network; `heads` is what it began with."""
    run.resume()
    for epoch, phase in run.epochs():
        loss = run.train_epoch(epoch, phase)
        judged, metrics = run.evaluate()
        # the best so far: the most with species and disease both right
        if run.end_epoch(epoch, phase, loss, metrics):
            run.save_best(f"epoch={epoch + 1:02d}-best.pt", judged, metrics)
        if epoch + 1 == phase.epochs // 2:
            run.save(f"epoch={epoch + 1:02d}.pt", judged, metrics)
        run.save_last()
    best = checkpoint.find_best(run.folder)
    if run.recipe.average_with_heads == "yes":
        average_with_heads(run, heads, best)
    run.finish(best, "Stage B: end to end")


@friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Train stage B; see the module's docstring."""
    args, clock = parse(argv), Stopwatch()
    header("02b train disease")
    if args.evaluate:
        return evaluate_checkpoint(args)
    data = load_organized(args.data)
    payload = species_checkpoint(args, data)
    recipe, overridden = recipe_flags.from_flags(args, None if args.recipe else payload["recipe"])
    recipe_name = args.recipe or payload["identity"]["recipe"]
    say(recipe_flags.describe(recipe_name, recipe, overridden))
    if data.tree.num_classes == data.tree.num_species or recipe.classes == "flat":
        why = (
            "every species has one class only"
            if recipe.classes != "flat"
            else "02a has trained all classes of this flat recipe"
        )
        say(f"{why}: there is no disease to train.", "next: python 03_export.py")
        return 0
    settings = payload["settings"]
    if (recipe.backbone, recipe.image_size) != (settings["backbone"], settings["image_size"]):
        fail(
            f"the species checkpoint is {settings['backbone']} at {settings['image_size']} px, "
            f"the recipe asks for {recipe.backbone} at {recipe.image_size} px. Leave --recipe, "
            "--backbone and --image-size out, or train 02a so."
        )
    heads, joint = recipes.disease_phases(recipe), recipes.joint_phases(recipe)
    setup = set_up(args, data, recipe, recipe_name, overridden)
    print_plan(data, heads + joint, recipe)
    trained_heads = args.checkpoints / "disease_heads" / "disease_heads_final.pt"

    def new_run(name: str, phases: list[Phase]) -> Run:
        model, start_from = checkpoint.build_model(payload), checkpoint.weights_hash(payload)
        return Run(args.checkpoints / name, phases, model, setup, start_from)

    if heads:
        with new_run("disease_heads", heads) as run:
            train_heads(run)
        payload = checkpoint.load(trained_heads)
    if joint:
        with new_run("hierarchical_full", joint) as run:
            train_jointly(run, trained_heads)
    shut_down()
    say(f"time: {duration(clock())}", "next: python 03_export.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
