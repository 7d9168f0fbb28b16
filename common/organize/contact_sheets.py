"""Pictures of the organized data: class sizes, a contact sheet per class, and a page that holds
them all. No torch.
"""

import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.console import progress
from common.files import whole, write_text
from common.images import ImageError, read_rgb
from common.organize import contact_sheets_page

SPLITS = ("train", "val", "test")
THRESHOLDS = (80, 50)  # rare and very rare in the published protocol
MOST, COLUMNS, THUMB = 24, 6, 128  # stored pictures of 512 px come out of the decoder at this size
FRAME, GAP, MARGIN, HEAD = 4, 6, 12, 88
CELL = THUMB + 2 * FRAME
WIDTH = 2 * MARGIN + COLUMNS * CELL + (COLUMNS - 1) * GAP
GROUND, EMPTY, INK, SOFT, WARNING = "#181f1b", "#222b26", "#e7ede8", "#9daca2", "#e9b95c"
FRAMES = ("", "#5fa8e8", "#f0b23c")  # of val and test; the commoner train goes without
CHIPS = ("#c2408f", "#2a7f8e", "#7a55c7", "#b0532a", "#4f7d1f", "#a33a46")


class Member(NamedTuple):
    """One picture of a sheet: its bytes, its split (0 train, 1 val, 2 test), its group, and the
    group's pictures in the class.
    """

    data: bytes
    split: int
    group: int
    copies: int = 1


def long_tail(path: Path, names: Sequence[str], counts: np.ndarray, dark: bool = False) -> None:
    """Draw the class sizes, largest first, on a log scale and coloured by split (PNG), and say how
    many are rare.

    Args:
        path: where the picture goes.
        names: name of each class.
        counts: int (classes, 3), pictures in train, val and test.
        dark: for a dark page.
    """
    import matplotlib  # slow to import, and not needed without --report

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ground, ink, soft, colors = (
        ("#181f1b", "#e7ede8", "#9daca2", ("#4f9a70", "#5fa8e8", "#f0b23c"))
        if dark
        else ("#ffffff", "#1b241e", "#5a685f", ("#7fb795", "#2f78b7", "#d08a1d"))
    )
    total = counts.sum(1)
    order = np.argsort(-total, kind="stable")
    n, tops = len(order), np.cumsum(counts[order], axis=1)
    style = {
        "text.color": ink,
        "axes.labelcolor": soft,
        "xtick.color": soft,
        "ytick.color": soft,
        "axes.edgecolor": soft,
        "font.size": 10,
        "axes.facecolor": ground,
        "figure.facecolor": ground,
    }
    with plt.rc_context(style):
        figure, axis = plt.subplots(figsize=(7, 4), constrained_layout=True)
        low, x = 0.7, np.arange(1, n + 1)
        for k in (2, 1, 0):  # each from the ground up, so that no gap shows between them
            top = np.maximum(tops[:, k], low)
            if n <= 60:
                axis.bar(x, top, width=0.82, color=colors[k], label=SPLITS[k])
            else:
                axis.fill_between(
                    np.repeat(x, 2) + np.tile([-0.5, 0.5], n),
                    low,
                    np.repeat(top, 2),
                    color=colors[k],
                    linewidth=0,
                    label=SPLITS[k],
                )
        axis.set(
            yscale="log",
            ylim=(low, max(200, 3 * int(total.max(initial=1)))),
            xlim=(0.4, max(n, 1) + 0.6),
            ylabel="pictures",
        )
        for at in THRESHOLDS:
            axis.axhline(at, color=ink, linewidth=1, linestyle=(0, (5, 3)))
            axis.text(
                1.01, at, str(at), va="center", fontsize=9, transform=axis.get_yaxis_transform()
            )
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.spines[["top", "right"]].set_visible(False)
        if n <= 24:
            axis.set_xticks(
                x,
                [_cut(names[i], 24) for i in order],
                rotation=40,
                ha="right",
                rotation_mode="anchor",
                fontsize=8,
            )
        else:
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
            axis.set_xlabel(
                f"classes, largest first: {_cut(names[order[0]], 28)} to "
                f"{_cut(names[order[-1]], 28)}"
            )
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(
            handles[::-1], labels[::-1], ncols=3, frameon=False, loc="upper right", labelcolor=ink
        )
        axis.set_title("\n".join(size_words(total)), loc="left", fontsize=11)
        with whole(path) as aside:
            figure.savefig(aside, dpi=200, format="png")
        plt.close(figure)


def size_words(total: np.ndarray) -> list[str]:
    """Say how many classes and pictures there are and how many classes are rare, in two lines;
    total: int (classes,).
    """
    rare = [
        f"{_count(int((total < at).sum()), 'class', 'classes')} below {at}" for at in THRESHOLDS
    ]
    return [
        f"{_count(int(total.sum()), 'picture')} in {_count(len(total), 'class', 'classes')}",
        f"{', '.join(rare)} pictures",
    ]


def pick(
    class_idx: np.ndarray, split: np.ndarray, group: np.ndarray, num_classes: int, most: int = MOST
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the pictures of each sheet, evenly over the class, in order of split and then group.

    Args:
        class_idx, split, group: int (K,), of each picture.
        num_classes: classes.
        most: pictures per class.

    Returns:
        int64 (P,) picture numbers, and int64 (num_classes + 1,): class i shows those from starts[i]
        to starts[i + 1].
    """
    order = np.lexsort((group, split, class_idx))
    sizes = np.bincount(class_idx, minlength=num_classes)
    taken = np.minimum(sizes, most)
    starts, first = (np.concatenate([[0], np.cumsum(counts)]) for counts in (taken, sizes))
    of = np.repeat(np.arange(num_classes), taken)
    step = np.arange(len(of)) - starts[of]
    return order[first[of] + (2 * step + 1) * sizes[of] // (2 * taken[of])], starts


def sheet_name(name: str) -> str:
    """File name of a class's sheet: tomato/early_blight -> tomato__early_blight.jpg; different
    classes get different names.
    """
    words = r"[a-z0-9.-]+(_[a-z0-9.-]+)*"
    if len(name) <= 180 and re.fullmatch(f"{words}(/{words})*", name):
        return name.replace("/", "__") + ".jpg"
    return (
        re.sub(r"[^a-z0-9]+", "_", name.lower())[:120]
        + "-"
        + hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
        + ".jpg"
    )


def draw_sheet(
    name: str, counts: Sequence[int], members: Sequence[Member], reasons: Sequence[str] = ()
) -> bytes:
    """Draw the contact sheet of one class; the same arguments give the same bytes.

    Val and test pictures have a coloured frame. Near-duplicates carry the letter of their group and
    its size.

    Args:
        name: "species/disease".
        counts: pictures in train, val and test.
        members: what is shown, at most MOST; one that cannot be read is shown as an empty cell that
            says so.
        reasons: why the class is suspicious; the first stands in the heading.

    Returns:
        JPEG, WIDTH px wide, at least one row of cells high.
    """
    members = members[:MOST]
    rows = max(1, -(-len(members) // COLUMNS))
    sheet = Image.new("RGB", (WIDTH, HEAD + rows * (CELL + GAP) - GAP + MARGIN), GROUND)
    draw = ImageDraw.Draw(sheet)
    letters: dict[int, int] = {}
    for k, member in enumerate(members):
        left, top = MARGIN + k % COLUMNS * (CELL + GAP), HEAD + k // COLUMNS * (CELL + GAP)
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), FRAMES[member.split] or EMPTY)
        draw.rectangle(
            (left + FRAME, top + FRAME, left + FRAME + THUMB - 1, top + FRAME + THUMB - 1), EMPTY
        )
        try:
            thumb = Image.fromarray(read_rgb(member.data, long_side=THUMB, min_side=1))
            sheet.paste(thumb, (left + (CELL - thumb.width) // 2, top + (CELL - thumb.height) // 2))
        except ImageError as error:
            draw.text(
                (left + CELL // 2, top + CELL // 2), error.reason, SOFT, _font(13), anchor="mm"
            )
        if member.copies > 1:
            letter = letters.setdefault(member.group, len(letters))
            _chip(
                draw,
                (left + FRAME, top + CELL - FRAME),
                f"{chr(65 + letter)}  {member.copies}",
                CHIPS[letter % len(CHIPS)],
            )
    _heading(draw, name, counts, len(members), reasons, bool(letters))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _chip(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, color: str) -> None:
    left, bottom = corner
    right = left + 12 + int(_font(13).getlength(text))
    draw.rectangle((left, bottom - 20, right, bottom - 1), color)
    draw.text((left + 6, bottom - 10), text, "#ffffff", _font(13), anchor="lm")


def _heading(
    draw: ImageDraw.ImageDraw,
    name: str,
    counts: Sequence[int],
    shown: int,
    reasons: Sequence[str],
    alike: bool,
) -> None:
    total, right = sum(counts), WIDTH - MARGIN
    for split, words in ((2, "test"), (1, "val")):
        left = right - int(_font(14).getlength(words))
        draw.text((left, 24), words, SOFT, _font(14), anchor="lm")
        draw.rectangle((left - 20, 17, left - 7, 30), GROUND, FRAMES[split], 3)
        right = left - 36
    title = " / ".join(dict.fromkeys(name.replace("_", " ").split("/")))
    draw.text((MARGIN, 24), _fit(title, 24, right - MARGIN), INK, _font(24), anchor="lm")
    text = f"{total:,} pictures: " + ", ".join(
        f"{count:,} {split}" for split, count in zip(SPLITS, counts, strict=True)
    )
    text += f"  -  {shown} shown" if shown < total else ""
    text += (
        "  -  a letter marks near-duplicates, the figure how many the class has" if alike else ""
    )
    draw.text((MARGIN, 50), _fit(text, 14, WIDTH - 2 * MARGIN), SOFT, _font(14), anchor="lm")
    if reasons:
        text = reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")
        draw.text((MARGIN, 72), _fit(text, 14, WIDTH - 2 * MARGIN), WARNING, _font(14), anchor="lm")


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _fit(text: str, size: int, width: int) -> str:
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _count(number: int, word: str, words: str = "") -> str:
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def write_contact_sheets(
    folder: Path,
    names: Sequence[str],
    members: Callable[[int], Sequence[Member]],
    counts: np.ndarray,
    suspects: Mapping[int, Sequence[str]],
    workers: int,
    notes: Sequence[str] = (),
) -> Path:
    """Write a contact sheet per class, the picture of class sizes, and index.html that shows them,
    rarest class first.

    Each file is written aside and renamed and depends on the arguments alone, so that a killed run
    and another end with the same files.

    Args:
        folder: made where it is missing; other files in it stay.
        names: "species/disease" of each class.
        members: class number -> the pictures of its sheet; called from several threads (`pick`
            chooses them).
        counts: int (classes, 3), pictures in train, val and test.
        suspects: class number -> why it is suspicious, worst first.
        workers: threads.
        notes: sentences for the head of the page.

    Returns:
        the path of index.html.

    Raises:
        OSError: where a file cannot be written; what `members` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.asarray(counts, np.int64).reshape(len(names), len(SPLITS))
    for dark in (False, True):
        long_tail(folder / f"long_tail{'_dark' * dark}.png", names, counts, dark)
    files = [sheet_name(name) for name in names]

    def write(i: int) -> None:
        data = draw_sheet(names[i], counts[i].tolist(), members(i), suspects.get(i, ()))
        aside = folder / f"{files[i]}.tmp"
        aside.write_bytes(data)
        os.replace(aside, folder / files[i])

    with ThreadPoolExecutor(workers) as pool:  # decoders and encoders free the lock
        for _ in progress(pool.map(write, range(len(names))), len(names), "sheets", "class"):
            pass
    crop = (WIDTH, HEAD - GAP // 2, CELL + GAP)
    page = contact_sheets_page.page(
        names, files, counts, suspects, notes, size_words(counts.sum(1)), crop
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"
