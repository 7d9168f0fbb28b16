"""The recipe tables on the command line: every row but `source` is a flag of both trainers."""

import argparse
import ast
import math
import re
from dataclasses import fields, replace
from typing import Any

from common.console import fail, say
from common.train.augment_levels import LEVELS
from common.train.protocols import BASE
from common.train.recipes import COLUMNS, Recipe, did_you_mean, get

NECK = ("dropout", "width", "dropout_after")


def add_flags(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add `--recipe`, one flag per row of the tables and `--list-backbones`; without a default the
    recipe is the checkpoint's.
    """
    parser.add_argument(
        "--recipe",
        default=default,
        help=f"column of the recipe tables: {', '.join(COLUMNS)}; "
        + (
            f"or auto: resolved from the data, the network and the machine (default {default})"
            if default
            else "default: that of the species checkpoint"
        ),
    )
    parser.add_argument(
        "--list-backbones",
        nargs="?",
        const="*",
        type=_list_backbones,
        metavar="PATTERN",
        help="print the timm names that have pretrained weights, such as those like *swin*, and "
        "exit",
    )
    group = parser.add_argument_group(
        "recipe settings (default: the recipe's cell; python -m common.train.recipes prints them)"
    )
    for f in fields(Recipe):
        if f.name != "source":
            kind = f.type
            unit = f" [{f.metadata['unit']}]" if f.metadata["unit"] else ""
            group.add_argument(
                "--" + f.name.replace("_", "-"),
                type=kind,
                default=None,
                metavar=kind.__name__.upper(),
                help=f.metadata["meaning"].replace("%", "%%") + unit,
            )


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags give."""
    found = {f.name: getattr(args, f.name, None) for f in fields(Recipe)}
    return {name: value for name, value in found.items() if value is not None}


def from_flags(
    args: argparse.Namespace, inherited: dict[str, Any] | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """Resolve the recipe of a run.

    Args:
        args: parsed flags.
        inherited: the settings to start from in place of those of --recipe, such as a checkpoint's.
            Settings that were not known when it was written are those of `hierarchical`; those that
            are no longer known are left out.

    Returns:
        the recipe, and what the flags changed: {setting: the recipe's own value}.

    Raises:
        SystemExit: for an unknown recipe or a value out of range.
    """
    known = {f.name for f in fields(Recipe)} & (inherited or {}).keys()
    base = replace(BASE, **{n: inherited[n] for n in known}) if inherited else get(args.recipe)
    values = given(args)
    for first in [name for name in values if name.endswith("_lr")]:
        last = first + "_end"
        if getattr(base, last, None) == getattr(base, first):  # a constant rate stays one
            values.setdefault(last, values[first])
    recipe = replace(base, **values)
    _check(recipe)
    return recipe, {
        name: getattr(base, name) for name, value in values.items() if value != getattr(base, name)
    }


def _check(recipe: Recipe) -> None:
    for f in fields(Recipe):
        value, flag = getattr(recipe, f.name), "--" + f.name.replace("_", "-")
        least, most = f.metadata["least"], f.metadata["most"]
        choices = tuple(LEVELS) if f.name == "augment" else f.metadata["choices"]
        if choices and value not in choices:
            fail(
                f"{flag} `{value}` is unknown.{did_you_mean(value, choices)} It is one of "
                f"{', '.join(choices)}."
            )
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= least):
            fail(f"{flag} is {value}; it must be a number, {least} or more.")
        if most is not None and value > most:
            fail(f"{flag} is {value}; it must be at most {most:g}.")
    if recipe.layer_decay == 0:
        fail("--layer-decay is 0; it must be above 0, at most 1 (1 = all blocks learn alike).")
    heads = "species_warmup" if recipe.classes == "flat" else "disease_heads"
    if recipe.average_with_heads == "yes" and getattr(recipe, f"{heads}_epochs") == 0:
        fail(
            "--average-with-heads yes, but no phase trains heads alone: give "
            f"--{heads.replace('_', '-')}-epochs some epochs, or --average-with-heads no."
        )
    model_settings(recipe)
    betas(recipe)


def describe(
    name: str, recipe: Recipe, overridden: dict[str, Any], why: dict[str, str] | None = None
) -> str:
    """Write the resolved recipe, a line per setting, with `<- was 30` where a flag changed it, and
    the reason where there is one.
    """
    notes = {**(why or {}), **{setting: f"was {value}" for setting, value in overridden.items()}}
    lines = [f"recipe {name} ({recipe.source})"]
    for f in fields(Recipe):
        if f.name != "source":
            note = f"   <- {notes[f.name]}" if f.name in notes else ""
            lines.append(f"  {f.name:<29}{getattr(recipe, f.name)!s:<38}{note}".rstrip())
    return "\n".join(lines)


# region values in words


def model_settings(recipe: Recipe) -> dict[str, Any]:
    """Read what the recipe says about the model, as keyword arguments of `SwinHierarchical`.

    Raises:
        SystemExit: where a setting cannot be read.
    """
    extra = arguments(recipe.backbone_args)
    if recipe.drop_path != "timm":
        share = _number(recipe.drop_path)
        if not 0 <= share < 1:
            fail(f"--drop-path is `{recipe.drop_path}`: give timm, or a share from 0 to below 1.")
        if extra.setdefault("drop_path_rate", share) != share:
            fail(
                "stochastic depth is given twice: as --drop-path, and as drop_path_rate in "
                "--backbone-args. Leave one out."
            )
    return {
        "image_size": recipe.image_size,
        "backbone_args": extra,
        "classes": recipe.classes,
        "neck": neck(recipe.neck),
        "pixel_stats": (
            channels("pixel_mean", recipe.pixel_mean),
            channels("pixel_std", recipe.pixel_std),
        ),
    }


def arguments(
    text: str, flag: str = "--backbone-args", example: str = "pad_type=same,depths=[2,2,6,2]"
) -> dict[str, Any]:
    """Read `backbone_args`: "pad_type=same,depths=[2,2,2,2]" -> {"pad_type": "same", "depths": [2,
    2, 2, 2]}.

    Raises:
        SystemExit: where a part is not name=value.
    """
    found: dict[str, Any] = {}
    parts = re.split(r",(?![^\[(]*[\])])", text)  # commas within brackets stay
    for part in filter(None, map(str.strip, parts)):
        name, equals, value = part.partition("=")
        if not equals:
            fail(f"{flag}: `{part}` is not name=value (example: {example}).")
        found[name.strip()] = _literal(value.strip())
    return found


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def neck(text: str) -> dict[str, float] | None:
    """Read `neck`: "" -> None, "width=512,dropout=0.3" -> {"dropout": 0.3, "width": 512,
    "dropout_after": 0.0}.

    Raises:
        SystemExit: for an unknown name, a width below 1 or a dropout outside 0..1.
    """
    example = "dropout=0.3,width=512,dropout_after=0.15"
    given = arguments(text, "--neck", example)
    for name in given:
        if name not in NECK:
            fail(f"--neck: `{name}` is unknown.{did_you_mean(name, NECK)} Example: {example}.")
    found = {"dropout": 0.0, "dropout_after": 0.0, **given}
    odd = [
        n
        for n in ("dropout", "dropout_after")
        if not isinstance(found[n], (int, float)) or not 0 <= found[n] < 1
    ]
    if given and (odd or not isinstance(found.get("width"), int) or found["width"] < 1):
        fail(
            f"--neck is `{text}`: it needs a width of 1 or more, and dropouts from 0 to below 1. "
            f"Example: {example}."
        )
    return {name: found[name] for name in NECK} if given else None


def betas(recipe: Recipe) -> tuple[float, float]:
    """Read `betas`: "0.9 0.999" -> (0.9, 0.999).

    Raises:
        SystemExit: where they are not two numbers from 0 to below 1.
    """
    values = [_number(part) for part in recipe.betas.split()]
    if len(values) != 2 or not all(0 <= v < 1 for v in values):
        fail(
            f"--betas is `{recipe.betas}`: give two numbers in quotes, each 0 to below 1, such as "
            f'"0.9 0.999".'
        )
    return values[0], values[1]


def channels(name: str, text: str) -> tuple[float, ...] | None:
    """Read `pixel_mean` or `pixel_std`: "timm" -> None, "0.5" -> the same for all channels, "0.4
    0.5 0.6" -> each.

    Raises:
        SystemExit: where it is none of these.
    """
    if text == "timm":
        return None
    values = tuple(_number(v) for v in text.split())
    if len(values) not in (1, 3) or any(not 0 <= v <= 1 for v in values):
        fail(
            f"--{name.replace('_', '-')} is `{text}`: give timm, one number, or three in quotes, "
            f"each 0 to 1."
        )
    return values * 3 if len(values) == 1 else values


# endregion

# region backbones


def backbone_names(pattern: str = "*") -> list[str]:
    """Names of timm's models with pretrained weights; no network is used.

    Args:
        pattern: with `*` and `?`; a plain word finds the names that hold it.

    Raises:
        SystemExit: where no name fits.
    """
    import timm  # here, so that this module starts without torch

    found = timm.list_models(
        pattern if set(pattern) & set("*?[") else f"*{pattern}*", pretrained=True
    )
    if not found:
        fail(
            f"no backbone of timm {timm.__version__} is like "
            f"`{pattern}`.{did_you_mean(pattern, timm.list_models())}"
        )
    return found


def require_backbone(name: str) -> None:
    """Refuse a backbone that timm does not know, before anything is built; names of a model hub
    pass (hf-hub:...).

    Raises:
        SystemExit: with the closest name, for an unknown name or an unknown tag of weights
            (name.tag).
    """
    import timm

    base, _, tag = name.partition(".")
    if ":" in name:
        return
    if not timm.is_model(base):
        fail(
            f"--backbone {name} is unknown to timm "
            f"{timm.__version__}.{did_you_mean(base, timm.list_models())} "
            "--list-backbones prints the names, --list-backbones swin those that hold a word."
        )
    tags = [other.partition(".")[2] for other in timm.list_models(f"{base}.*", pretrained=True)]
    if tag and tag not in tags:
        fail(
            f"--backbone {base} has no weights `{tag}`.{did_you_mean(tag, tags)} It has "
            f"{', '.join(tags) or 'none'}; without a tag "
            "timm chooses."
        )


def _list_backbones(pattern: str) -> None:
    say(*backbone_names(pattern))
    raise SystemExit(0)


# endregion
