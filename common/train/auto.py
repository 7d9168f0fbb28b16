"""Recipe `auto`: one rule from the data, the network and the machine to the settings of a run.

`resolve` is the rule, on the numbers right below. It gives plain settings, each with a reason, so
that whatever uses a recipe needs to know nothing of it. `passes_that_fit` measures how many passes
over the photos a time allows.
"""

import argparse
import copy
import itertools
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from common.console import Stopwatch, duration, fail, say, warn
from common.train import checkpoint, loop, recipe_flags, recipes
from common.train.averaging import PICTURES, SHARES
from common.train.compute import choose_compute
from common.train.dataset import Organized
from common.train.machine import Setup, backbone_shape
from common.train.model import SwinHierarchical
from common.train.protocols import BASE, Recipe
from common.train.recipes import AUTO
from common.train.run import Run

# region the numbers of the rule

# Passes over the training photos by their number, and between these in proportion on a log scale.
# BiT-HyperRule (Kolesnikov et al. 2020) counts steps of 512 photos: 500 below 20,000 photos, 10,000
# below 500,000, 20,000 above: 64 passes at 4,000, 51 at 100,000 and 7 at 1.5 million.
PASSES = ((4_000, 60), (100_000, 50), (1_500_000, 7))
BATCH = ((5_000, 32), (20_000, 64), (math.inf, 256))  # pictures per step, below so many photos
MANY = 20_000  # photos from which on MixUp, CutMix and RandAugment pay (BiT-HyperRule: MixUp)
# By the kind of network: rate, the batch it is for (by the square root for others), layer decay.
# The first was chosen on val (MobileNetV2, 2,800 photos, 13 passes, 3 seeds: 93.8 % both right and
# NLL 0.34 against 92.7 and 0.40 at 5e-4 without decay); the others follow timm's fine-tuning.
SMALL, CONVOLUTIONAL, ATTENTION = "small convolutional", "convolutional", "transformer or ConvNeXt"
KINDS = {SMALL: (2e-3, 32, 0.8), CONVOLUTIONAL: (3e-4, 32, 0.9), ATTENTION: (1e-4, 128, 0.8)}
SMALL_BELOW = 10.0  # million parameters
# Heads first, on stored features (LP-FT, Kumar et al. 2022): views of each photo, steps, rate
VIEWS, HEAD_STEPS, HEAD_RATE = 2, 1500, 1e-3
HEAD_EPOCHS = (2, 30)  # at least, at most
EMA = ((2_000, 0.99), (50_000, 0.999), (math.inf, 0.9999))  # decay, below so many steps
BACKBONES = {  # by device; the first is taken, common/train/RECIPES.md compares them
    "a CPU": ("mobilenetv2_100", "mobilenetv4_conv_medium.e500_r256_in1k"),
    "a GPU": (
        "convnext_tiny.in12k_ft_in1k",
        "tiny_vit_21m_224.dist_in22k_ft_in1k",
        "mobilenetv4_conv_medium.e500_r256_in1k",
        "swin_tiny_patch4_window7_224.ms_in22k",
    ),
}
CPU_SIDE = 160  # px, for a small network on a CPU
CPU_MINUTES, CPU_PHOTOS = 30.0, 5_000  # on a CPU: so long for so many photos; more take longer
FEW_PASSES = 8  # fewer than these are told
RESERVE = 0.95  # of the time is planned with
HEADS_SHARE = 0.02  # time of a step of heads alone, of one of everything (measured, two cores)
# What is measured: steps after those of the warm-up, or as many as these seconds have, and of val
WARM_UP, MEASURED, MEASURE_SECONDS, VAL_BATCHES = 3, 30, 20.0, 8

# endregion

# region the rule


def look_at(backbone: str, arguments: str) -> tuple[float, str, int]:
    """Look at a backbone without its weights; one that would have to be downloaded first is taken
    for a transformer of 30 million parameters, 224 px.

    Returns:
        millions of parameters, a key of KINDS, the side of the pictures it was trained on [px].
    """
    built = backbone_shape(replace(BASE, backbone=backbone, backbone_args=arguments))
    if built is None:
        return 30.0, ATTENTION, 224
    million = sum(p.numel() for p in built.parameters()) / 1e6
    kind = SMALL if million < SMALL_BELOW else CONVOLUTIONAL
    if any(isinstance(module, nn.LayerNorm) for module in built.modules()):
        kind = ATTENTION
    return million, kind, int(built.pretrained_cfg["input_size"][-1])


def resolve(
    sizes: np.ndarray,
    num_species: int,
    device: str,
    given: Mapping[str, Any],
    most_passes: float = math.inf,
) -> tuple[Recipe, dict[str, str]]:
    """The rule.

    Args:
        sizes: int (classes,), pictures per class of the train split.
        num_species: as many as classes: every species has one class.
        device: cpu, cuda or mps.
        given: the settings that flags give; what follows from a setting follows from these.
        most_passes: what the time allows.

    Returns:
        a recipe without the given settings, and a reason for each setting that the rule chose.
    """
    photos, place = int(sizes.sum()), "a CPU" if device == "cpu" else "a GPU"
    first, *others = BACKBONES[place]
    million, kind, side = look_at(given.get("backbone", first), given.get("backbone_args", ""))
    told = f"{photos:,} photos"
    light = kind == SMALL and device == "cpu"
    rich = kind != SMALL and photos >= MANY
    usual_classes = "flat" if len(sizes) == num_species else "hierarchical"
    wanted = given.get("classes", usual_classes)
    flat = "flat" in (usual_classes, wanted)  # 02b has nothing to train
    usual_batch = next(batch for below, batch in BATCH if photos < below)
    batch = given.get("batch_size", usual_batch)
    limit = passes_of(photos)
    passes = max(1, int(min(limit, most_passes)))
    steps = passes * max(1, photos // batch)
    rate, for_batch, decay = KINDS[kind]
    head_epochs = int(np.clip(HEAD_STEPS * batch // photos, *HEAD_EPOCHS))
    heads = "species_warmup" if flat else "disease_heads"
    everything = "species_finetune" if flat else "joint"
    first_heads, then_all = (
        "heads first, on stored features",
        "heads first, then everything at once",
    )
    rows: dict[str, tuple[Any, str]] = {
        "backbone": (first, f"for {place}; or --backbone {', '.join(others)}"),
        "classes": (usual_classes, f"{num_species} species, {len(sizes)} classes"),
        "image_size": (CPU_SIDE, f"small network on {place}")
        if light
        else (side, "what its weights were trained at"),
        "batch_size": (usual_batch, told),
        "cached_views": (1 if photos >= MANY or passes < FEW_PASSES else VIEWS, first_heads),
        "species_warmup_epochs": (head_epochs if flat or num_species > 1 else 1, first_heads),
        "disease_heads_epochs": (0 if flat else head_epochs, first_heads),
        "species_warmup_lr": (HEAD_RATE, "heads alone"),
        "species_warmup_lr_end": (HEAD_RATE, "heads alone"),
        "disease_heads_lr": (HEAD_RATE, "heads alone"),
        "species_finetune_epochs": (0, then_all),
        "species_final_epochs": (0, then_all),
        "disease_boost_epochs": (0, then_all),
        "joint_epochs": (0, then_all),
        f"{everything}_epochs": (
            passes,
            told if passes == limit else f"what the time allows, of {limit}",
        ),
        f"{everything}_lr": (
            float(f"{rate * math.sqrt(batch / for_batch):.2g}"),
            f"{kind}, batch {batch}",
        ),
        f"{everything}_lr_end": (1e-6, "cosine"),
        "layer_decay": (decay, kind),
        "ema_decay": (next(d for below, d in EMA if steps < below), f"{steps:,} steps"),
        "average_with_heads": (
            "yes" if given.get(f"{heads}_epochs", 1) and (wanted == "flat") == flat else "no",
            "where val says that it helps",
        ),
        "loss": ("cross_entropy", "with log-priors in place of weights"),
        "tail": ("balanced_softmax", f"classes of {sizes.min()} to {sizes.max()} photos"),
        "label_smoothing": (0.1, "as usual in fine-tuning"),
        "disease_weight": (1.0, "the loss of the pair"),
        "augment": ("full" if rich else "gentle", f"{told}, {million:.1f} M parameters"),
        "mix_share": (0.5 if rich else 0.0, f"{told}, {kind}"),
        "randaugment_ops": (2 if rich else 0, f"{told}, {kind}"),
    }
    rows["source"] = ("ours: resolved from the data, the network and the machine", "")
    recipe = replace(BASE, **{name: value for name, (value, _) in rows.items()})
    return recipe, {name: why for name, (_, why) in rows.items() if why}


def passes_of(photos: int) -> int:
    """Passes over so many photos, by PASSES."""
    known, passes = np.array(PASSES, float).T
    return round(float(np.interp(math.log(photos), np.log(known), passes)))


# endregion


def choose(
    args: argparse.Namespace, data: Organized, most_passes: float = math.inf
) -> tuple[Recipe, dict[str, Any], dict[str, str]]:
    """Resolve the recipe of 02a, whichever is named. A run of `auto` that goes on keeps the
    settings of its last.pt, so that neither another machine nor another time changes them.

    Returns:
        the recipe; what flags changed (see `recipe_flags.from_flags`); reasons for settings.
    """
    last = args.checkpoints / "species_only" / "last.pt"
    if args.recipe != AUTO:
        return *recipe_flags.from_flags(args), {}
    if last.is_file() and not args.fresh:
        saved = checkpoint.load(last)
        if saved["identity"]["recipe"] == AUTO:
            say(f"recipe auto, as resolved when {last.parent} was begun")
            recipe, _ = recipe_flags.from_flags(args, saved["recipe"])
            return recipe, {}, {}
    recipe_flags.from_flags(args, asdict(BASE))  # refuses what no recipe can have
    given = recipe_flags.given(args)
    device = choose_compute(args.device, args.precision).device.type
    base, why = resolve(data.train_sizes, data.tree.num_species, device, given, most_passes)
    return *recipe_flags.from_flags(args, asdict(base)), why


# endregion

# region the time


class Pace(NamedTuple):
    """Seconds of a training step, and of judging val."""

    step: float
    val: float


def time_limit(args: argparse.Namespace, data: Organized) -> float | None:
    """Minutes that training may take, or None: those of --minutes; on a CPU CPU_MINUTES, in
    proportion for more than CPU_PHOTOS, unless a flag gives the passes.

    Raises:
        SystemExit: where --minutes makes no sense.
    """
    passes = {"joint_epochs", "species_finetune_epochs", "species_final_epochs"}
    has_passes = passes & recipe_flags.given(args).keys()
    if args.minutes is None:
        if args.recipe != AUTO or has_passes or choose_compute(args.device).device.type != "cpu":
            return None
        return CPU_MINUTES * max(1.0, len(data.splits["train"]) / CPU_PHOTOS)
    others = [f"--recipe {args.recipe}"] * (args.recipe != AUTO)
    others += ["the flags for epochs"] * bool(has_passes) + ["--review-labels"] * args.review_labels
    if others:
        fail(f"--minutes lets recipe auto choose the passes: leave out either it or {others[0]}.")
    if not 0 < args.minutes < math.inf:
        fail(f"--minutes is {args.minutes:g}; it must be a number above 0.")
    return args.minutes


def passes_that_fit(setup: Setup, model: SwinHierarchical, minutes: float, clock: Stopwatch) -> int:
    """Passes over the training photos that end in time, at least 1, by this machine's first steps.

    Args:
        clock: runs since the script began.
    """
    say(f"measuring how many passes over the photos fit into {minutes:g} minutes ...")
    pace, recipe = measure(setup, model), setup.recipe
    photos, val = len(setup.data.splits["train"]), len(setup.data.splits["val"])
    once, each = costs(pace, recipe, photos, val)
    once += clock()
    wanted = max(recipe.joint_epochs, recipe.species_finetune_epochs)
    fit = max(0, math.floor((RESERVE * 60 * minutes - once) / each))
    passes = max(1, fit)  # one at least, however long it takes
    told = f"all {wanted} fit into {minutes:g} minutes"
    if fit < wanted:
        needed = math.ceil((once + wanted * each) / RESERVE / 60)
        told = f"{fit} of {wanted} fit into {minutes:g} minutes, all into --minutes {needed}"
    say(f"a pass over {photos:,} photos takes {duration(each)}, all else {duration(once)}: {told}")
    if passes < min(FEW_PASSES, wanted):
        warn(
            f"few passes ({passes}) make a worse model: give more --minutes, a smaller "
            "--image-size or --backbone, or a GPU."
        )
    return setup.world.gather(passes)[0]  # the others measured something else


def costs(pace: Pace, recipe: Recipe, photos: int, val: int) -> tuple[float, float]:
    """Seconds of both scripts: those that do not depend on the passes, and those of a pass.

    Features are stored and a report is written once in each script; the averages at the end judge
    val, and see some training photos.
    """
    phases = recipes.species_phases(recipe) + recipes.disease_phases(recipe)
    heads = [phase.epochs for phase in phases if phase.frozen]
    look = pace.val / val  # a photo through the network, without learning
    learn = max(1, photos // recipe.batch_size) * pace.step
    views = sum(recipe.cached_views or epochs for epochs in heads)
    once = views * photos * look + (2 * len(heads) + 1) * pace.val
    once += sum(heads) * HEADS_SHARE * learn
    if recipe.average_with_heads == "yes":
        once += pace.val + len(SHARES) * (pace.val + PICTURES * look)
    return once, learn + pace.val


def measure(setup: Setup, model: SwinHierarchical) -> Pace:
    """Take the first steps of the phase with all passes, and judge some of val, on a copy of the
    model.
    """
    phases = recipes.species_phases(setup.recipe) + recipes.joint_phases(setup.recipe)
    times: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Run(Path(folder), phases[-1:], copy.deepcopy(model), setup, "") as run,
    ):
        next(run.epochs())
        whole, clock = Stopwatch(), Stopwatch()
        steps = (run.train_batches, 0, 0, len(run.sampler), run.take_step)
        for loss, _ in itertools.islice(loop.train_epoch(run.work, *steps), WARM_UP + MEASURED):
            float(loss)  # waits for the device
            times.append(clock())
            clock = Stopwatch()
            if run.world.any(whole() > MEASURE_SECONDS and len(times) > WARM_UP):
                break
        clock, some = Stopwatch(), itertools.islice(run.val_batches, VAL_BATCHES)
        judged = loop.evaluate(run.work.model, some, run.compute)
        share = len(judged.class_idx) * run.world.size / len(setup.data.splits["val"])
        pace = Pace(typical(times[min(WARM_UP, len(times) - 1) :]), clock() / share)
        if run.world.is_main:
            run.live.close()
    return pace


def typical(seconds: list[float]) -> float:
    """Seconds of one of several steps: the median of the means of three parts. Workers deliver in
    bursts, which a mean evens out, and other work disturbs a part.
    """
    parts = np.array_split(seconds, min(3, len(seconds)))
    return float(np.median([part.mean() for part in parts]))


# endregion
