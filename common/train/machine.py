"""What both trainers share around their runs: flags, the machine, the plan, and `--evaluate`."""

import argparse
import ctypes
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.console import fail, mute, say, table
from common.files import file_sha256, follow
from common.train import checkpoint, recipe_flags
from common.train.compute import Compute, World, choose_compute, join
from common.train.dataset import EvalViews, Organized, default_workers, load_organized, make_loader
from common.train.losses import Teacher
from common.train.model import create_backbone
from common.train.recipes import AUTO, Phase, Recipe
from common.train.report_page import write_reports

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


FLAGS: dict[str, dict[str, Any]] = {  # besides the settings of the recipe
    "--data": {
        "type": Path,
        "default": Path("data/organized"),
        "help": "folder written by 01_reorganize.py",
    },
    "--checkpoints": {
        "type": Path,
        "default": Path("checkpoints"),
        "help": "where the run folders stand",
    },
    "--seed": {"type": int, "default": 0, "help": "all randomness follows from it (default 0)"},
    "--fresh": {"action": "store_true", "help": "start over, even where a run could go on"},
    "--device": {
        "default": "auto",
        "help": "auto, cpu, cuda, cuda:1 ... (ROCm is called cuda), mps",
    },
    "--compile": {
        "default": "auto",
        "choices": ["auto", "on", "off"],
        "help": "torch.compile of the backbone; auto: on an NVIDIA GPU, where a phase is long "
        "enough to win the warm-up back",
    },
    "--precision": {
        "default": "auto",
        "choices": ["auto", "bf16", "fp16", "fp32"],
        "help": "auto: bf16 where the hardware is faster so, else fp16 on a GPU and fp32 on a CPU",
    },
    "--device-batch": {
        "type": int,
        "default": 0,
        "help": "pictures on the device at once; lower it when memory runs out "
        "(0: the whole batch)",
    },
    "--workers": {
        "type": int,
        "help": "loader processes (default: one per core, at most 8)",
    },
    "--evaluate": {
        "type": Path,
        "metavar": "CHECKPOINT",
        "help": "judge a checkpoint on --split; trains nothing",
    },
    "--split": {
        "choices": ["val", "test"],
        "default": "val",
        "help": "for --evaluate (default val)",
    },
    "--teacher": {
        "type": Path,
        "metavar": "CHECKPOINT",
        "help": "learn from this trained model's answers, too (distillation)",
    },
    "--teacher-share": {
        "type": float,
        "default": 0.7,
        "help": "weight of the teacher's answers beside the labels (default 0.7)",
    },
    "--teacher-temperature": {
        "type": float,
        "default": 2.0,
        "help": "softens both models' answers before they are compared (default 2)",
    },
    "--skip-nan": {
        "action": "store_true",
        "help": "leave out steps whose gradient is no number, instead of stopping",
    },
    "--save-minutes": {
        "type": float,
        "default": 15.0,
        "help": "save within an epoch this often",
    },
}


def add_training_flags(parser: argparse.ArgumentParser, recipe: str | None) -> None:
    """Add the flags that both trainers share: FLAGS, and one per recipe setting (default:
    `recipe`).
    """
    for name, options in FLAGS.items():
        parser.add_argument(name, **options)
    recipe_flags.add_flags(parser, recipe)


@dataclass(frozen=True)
class Setup:
    """What all runs of a script have in common.

    Attributes:
        args: flags of the script.
        data: what is learned.
        recipe, recipe_name: settings, and the column they come from.
        overridden: the settings that flags changed, with the recipe's own values.
        compute, world: device and precision; the processes that share each batch.
        teacher: a trained model whose answers are targets as well, or None.
    """

    args: argparse.Namespace
    data: Organized
    recipe: Recipe
    recipe_name: str
    overridden: dict[str, Any]
    compute: Compute
    world: World
    teacher: Teacher | None

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        found = {"recipe": self.recipe_name, **asdict(self.recipe), "seed": self.args.seed}
        if self.teacher is not None:
            sha256 = file_sha256(self.args.teacher)
            found["teacher"] = [sha256, self.teacher.share, self.teacher.temperature]
        if self.recipe_name == AUTO and hasattr(self.args, "minutes"):  # settings are in last.pt
            flags = sorted(recipe_flags.given(self.args))
            found |= {"flags": flags, "minutes": self.args.minutes}
        del found["source"]
        return found | {"data": self.data.manifest_hash}

    def config(self) -> dict[str, dict[str, Any]]:
        """Every setting and where its value comes from, for config.json."""
        origin = dict.fromkeys(self.overridden | recipe_flags.given(self.args), "flag")
        settings = {
            key: {"value": value, "from": origin.get(key, f"recipe {self.recipe_name}")}
            for key, value in asdict(self.recipe).items()
        }
        machine = {
            key: {"value": str(getattr(self.args, key)), "from": "machine"}
            for key in (
                "device",
                "precision",
                "compile",
                "device_batch",
                "workers",
                "data",
                "seed",
                "weights",
            )
            if hasattr(self.args, key)
        }
        return settings | machine | {"compute": {"value": str(self.compute), "from": "derived"}}


def set_up(
    args: argparse.Namespace,
    data: Organized,
    recipe: Recipe,
    recipe_name: str,
    overridden: dict[str, Any],
) -> Setup:
    """Resolve the machine and load the teacher.

    Raises:
        SystemExit: for a flag that makes no sense, --checkpoints that cannot hold any, or a teacher
            that cannot be used.
    """
    args.checkpoints = follow(args.checkpoints)
    if args.checkpoints.is_file():
        fail(f"--checkpoints {args.checkpoints} is a file. Give a folder.")
    compute, world = resolve_machine(args, recipe)
    teacher = find_teacher(args, data, compute)
    return Setup(args, data, recipe, recipe_name, overridden, compute, world, teacher)


def resolve_machine(args: argparse.Namespace, recipe: Recipe) -> tuple[Compute, World]:
    """Check the machine flags, fill in what they leave open, join the other processes and print the
    arithmetic of the batch.

    Raises:
        SystemExit: for a value that makes no sense.
    """
    device = args.device
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # the one that torchrun names
    compute = choose_compute(device, args.precision, slow_in_bf16=has_depthwise(recipe))
    if compute.device.type == "cpu":
        keep_memory()
    if compute.on_gpu:  # what is left in float32, in TF32, unless float32 was asked for
        exact = args.precision == "fp32"
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact
    world = join(compute.device)
    if not world.is_main:
        mute()
    if args.device_batch < 0 or args.seed < 0 or (args.workers or 0) < 0:
        fail("--device-batch, --workers and --seed cannot be negative.")
    if args.workers is None:
        args.workers = default_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if recipe.batch_size < world.size:
        fail(
            f"--batch-size {recipe.batch_size} is smaller than the {world.size} processes that "
            f"share it."
        )
    share = -(-recipe.batch_size // world.size)
    args.device_batch = min(args.device_batch or share, share)
    say(
        f"compute: {compute}; {args.workers} loader workers; torch threads: "
        f"{torch.get_num_threads()}",
        f"batch: {recipe.batch_size} pictures per step = "
        f"{f'{world.size} processes x ' if world.size > 1 else ''}"
        f"{-(-share // args.device_batch)} x {args.device_batch} on the device",
    )
    return compute, world


def backbone_shape(recipe: Recipe) -> nn.Module | None:
    """Build the recipe's backbone without memory and weights (on torch's meta device), to look at;
    None where its configuration would have to be downloaded, or its arguments are wrong.

    Raises:
        SystemExit: for a name that timm does not know.
    """
    recipe_flags.require_backbone(recipe.backbone)
    if ":" in recipe.backbone:
        return None
    arguments = recipe_flags.arguments(recipe.backbone_args)
    try:
        with torch.device("meta"):  # no random numbers
            return create_backbone(recipe.backbone, recipe.image_size, False, arguments)
    except Exception:  # whatever is wrong with the arguments is said where the model is built
        return None


def has_depthwise(recipe: Recipe) -> bool:
    """Whether the backbone has depthwise convolutions, which CPUs train faster in float32 than in
    bf16.
    """
    backbone = backbone_shape(recipe)
    return backbone is not None and any(
        isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in backbone.modules()
    )


def keep_memory() -> None:
    """Keep freed memory in the process: glibc would give each large activation back to the system,
    and fault its pages in anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: macOS, Windows, musl
        return
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


def find_teacher(args: argparse.Namespace, data: Organized, compute: Compute) -> Teacher | None:
    """Load the model of --teacher, if it is given.

    Raises:
        SystemExit: where it cannot be read, knows other classes, or its flags make no sense.
    """
    if args.teacher is None:
        return None
    if not 0 < args.teacher_share <= 1 or args.teacher_temperature <= 0:
        fail("--teacher-share must be above 0 and at most 1, --teacher-temperature above 0.")
    payload = checkpoint.load(args.teacher)
    checkpoint.require_tree(payload, data.tree, args.teacher, data.root)
    model = checkpoint.build_model(payload).to(compute.device, memory_format=torch.channels_last)
    return Teacher(model, args.teacher_share, args.teacher_temperature)


def print_plan(data: Organized, phases: list[Phase], recipe: Recipe) -> None:
    """Print the data and the phases that a run is about to spend time on."""
    sizes = data.class_sizes
    say(
        f"data: {data.root}: {data.tree.num_species} species, {data.tree.num_classes} classes "
        f"({int((sizes < recipe.rare_below).sum())} under {recipe.rare_below} pictures), "
        + ", ".join(f"{name} {len(split):,}" for name, split in data.splits.items()),
        table(
            [
                (
                    p.name,
                    p.epochs,
                    f"{p.lr:g}" + (f" -> {p.lr_end:g}" if p.lr_end != p.lr else ""),
                    f"{p.heads} heads"
                    + (f" + backbone x {p.backbone_scale:g}" if p.backbone_scale else ""),
                    p.sampling,
                )
                for p in phases
            ],
            ("phase", "epochs", "lr", "trains", "sampling"),
        ),
    )


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
        EvalViews(split, model.settings["image_size"]),
        workers,
        batch_size=args.device_batch or 64,
        pin_memory=compute.on_gpu,
    )
    say(
        f"{args.evaluate}: {model.settings['backbone']}, {payload['epochs_done']} epochs; {compute}"
    )
    folder = args.evaluate.with_name(f"{args.evaluate.stem} on {args.split}")
    parts = model, batches, data, compute
    write_reports(folder, args.evaluate, *parts, split=args.split, title="Evaluation")
    return 0
