"""The recipe table on the command line: every row but `source` is a flag of both trainers."""

from __future__ import annotations

import argparse
import ast
import math
import re
from dataclasses import asdict, fields, replace
from typing import Any

from common.console import fail
from common.levels import LEVELS
from common.recipes import COLUMNS, TABLE, Recipe, get, plain


def add_flags(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add `--recipe` and one flag per row of the table; without a default the recipe is that of the checkpoint before."""
    parser.add_argument("--recipe", default=default, help="column of the recipe table: " + ", ".join(COLUMNS)
                        + (f" (default {default})" if default else " (default: that of the species checkpoint)"))
    group = parser.add_argument_group("recipe settings (default: the recipe's cell; python -m common.recipes prints them)")
    for f in fields(Recipe):
        if f.name != "source":
            kind = type(plain(TABLE[f.name][0]))
            unit = f" [{f.metadata['unit']}]" if f.metadata["unit"] else ""
            group.add_argument("--" + f.name.replace("_", "-"), type=kind, default=None, metavar=kind.__name__.upper(),
                               help=f.metadata["meaning"].replace("%", "%%") + unit)


def from_flags(args: argparse.Namespace, inherited: dict[str, Any] | None = None) -> tuple[Recipe, dict[str, Any]]:
    """Resolve the recipe of a run.

    Args:
        args: parsed flags.
        inherited: the settings of the checkpoint to go on from; the base where no --recipe is given.

    Returns:
        the recipe, and what the flags changed: {setting: the recipe's own value}.

    Raises:
        SystemExit: for an unknown recipe or a value out of range.
    """
    base = Recipe(**inherited) if inherited and not args.recipe else get(args.recipe)
    given = {f.name: getattr(args, f.name) for f in fields(Recipe) if getattr(args, f.name, None) is not None}
    recipe = replace(base, **given)
    for name, value in asdict(recipe).items():
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
            fail(f"--{name.replace('_', '-')} is {value}; it must be a number, 0 or more.")
    if recipe.augment not in LEVELS:
        fail(f"--augment {recipe.augment} is unknown. Levels: {', '.join(LEVELS)}.")
    for name in ("image_size", "batch_size"):
        if getattr(recipe, name) < 1:
            fail(f"--{name.replace('_', '-')} must be at least 1.")
    return recipe, {name: getattr(base, name) for name, value in given.items() if value != getattr(base, name)}


def describe(name: str, recipe: Recipe, overridden: dict[str, Any]) -> str:
    """Write the resolved recipe, a line per setting, with `<- was 30` where a flag changed it."""
    lines = [f"recipe {name} ({recipe.source})"]
    for f in fields(Recipe):
        if f.name != "source":
            was = f"   <- was {overridden[f.name]}" if f.name in overridden else ""
            lines.append(f"  {f.name:<29}{getattr(recipe, f.name)!s:<38}{was}".rstrip())
    return "\n".join(lines)


def arguments(text: str) -> dict[str, Any]:
    """Read `backbone_args`: "pad_type=same,depths=[2,2,2,2]" -> {"pad_type": "same", "depths": [2, 2, 2, 2]}.

    Raises:
        SystemExit: where a part is not name=value.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in re.split(r",(?![^\[(]*[\])])", text))):  # commas within brackets stay
        name, equals, value = part.partition("=")
        if not equals:
            fail(f"--backbone-args: `{part}` is not name=value (example: pad_type=same,drop_path_rate=0.2).")
        found[name.strip()] = _literal(value.strip())
    return found


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return list(value) if isinstance(value, tuple) else value


def channels(name: str, text: str) -> tuple[float, ...] | None:
    """Read `pixel_mean` or `pixel_std`: "timm" -> None, "0.5" -> the same for all channels, "0.4 0.5 0.6" -> each.

    Raises:
        SystemExit: where it is none of these.
    """
    if text == "timm":
        return None
    try:
        values = tuple(float(v) for v in text.split())
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or any(not 0 <= v <= 1 for v in values):
        fail(f"--{name.replace('_', '-')} is `{text}`: give timm, one number, or three in quotes, each 0 to 1.")
    return values * 3 if len(values) == 1 else values
