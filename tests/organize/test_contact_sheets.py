"""Contact sheets: which pictures a sheet shows, what is drawn on it, and a page that finds every
class.
"""

import html
import io
import re
import shutil
import subprocess
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from common.organize import contact_sheets
from common.organize.contact_sheets import CELL, FRAME, GAP, HEAD, MARGIN, THUMB, Member

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (path := shutil.which(name))
    ),
    None,
)
NAMES = ["apple/scab", "corn/common_rust", "<b>&\"'/x y", "daisy/daisy"]
COUNTS = np.array([[5, 1, 1], [2, 0, 0], [90, 20, 20], [40, 8, 7]])


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def members(class_idx: int) -> list[Member]:
    return [
        Member(jpeg((50 * class_idx, 120, 20 * k)), k % 3, k) for k in range(min(3 + class_idx, 24))
    ]


def cell(sheet: bytes, k: int) -> np.ndarray:
    """The k-th cell of a sheet: int (CELL, CELL, 3)."""
    left, top = MARGIN + k % 6 * (CELL + GAP), HEAD + k // 6 * (CELL + GAP)
    return np.array(Image.open(io.BytesIO(sheet)).convert("RGB")).astype(int)[
        top : top + CELL, left : left + CELL
    ]


def near(pixels: np.ndarray, color: str | tuple[int, int, int]) -> np.ndarray:
    rgb = tuple(bytes.fromhex(color[1:])) if isinstance(color, str) else color
    return np.abs(pixels - np.array(rgb)).max(-1) < 30


def test_a_sheet_shows_its_class_evenly_and_small_classes_whole():
    rng = np.random.default_rng(0)
    class_idx = np.repeat([0, 1, 3], [500, 7, 24])  # class 2 has no picture
    split, group = (
        rng.choice(3, len(class_idx), p=[0.7, 0.15, 0.15]),
        rng.integers(0, 400, len(class_idx)),
    )
    pictures, starts = contact_sheets.pick(class_idx, split, group, 4)
    assert np.diff(starts).tolist() == [24, 7, 0, 24]
    assert len(set(pictures.tolist())) == len(pictures)
    for i in range(4):
        mine = pictures[starts[i] : starts[i + 1]]
        assert (class_idx[mine] == i).all()
        assert np.lexsort((group[mine], split[mine])).tolist() == list(range(len(mine))), (
            "splits together, then groups"
        )
    shown = np.bincount(split[pictures[:24]], minlength=3) / 24
    assert np.abs(shown - np.bincount(split[:500]) / 500).max() <= 1 / 24, "each split by its share"
    assert sorted(pictures[starts[1] : starts[2]].tolist()) == list(range(500, 507))


def test_sheet_names_are_safe_and_never_meet():
    names = [
        "a/b",
        "a__b",
        "a/b_c",
        "a_b/c",
        "A/b",
        "a b",
        "a/../../b",
        "a/b/c",
        "x" * 300,
        "x" * 301,
        "c:\\a",
        "<b>",
        "",
        "_a/b",
        "a_/b",
        "é",
    ]
    files = [contact_sheets.sheet_name(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    assert all(re.fullmatch(r"[a-z0-9._-]{1,200}\.jpg", file) and file[0] != "." for file in files)
    assert files[0] == "a__b.jpg"
    assert contact_sheets.sheet_name("tomato/early_blight") == "tomato__early_blight.jpg"


def test_frames_tell_the_split_and_pictures_keep_their_shape():
    wide = jpeg((200, 30, 30), (120, 60))
    sheet = contact_sheets.draw_sheet(
        "apple/scab", [1, 1, 1], [Member(wide, k, k) for k in range(3)]
    )
    for k, color in enumerate((contact_sheets.EMPTY, *contact_sheets.FRAMES[1:])):
        pixels = cell(sheet, k)
        assert near(pixels[1:3, 20:-20], color).mean() > 0.95
        assert near(pixels[20:-20, -3:-1], color).mean() > 0.95
        red = near(pixels, (200, 30, 30))
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        assert abs(len(columns) - 120) <= 2, "never stretched or enlarged"
        assert abs(len(rows) - 60) <= 2, "never stretched or enlarged"
        assert abs(rows.mean() - CELL / 2) <= 1.5
        assert abs(columns.mean() - CELL / 2) <= 1.5
    large = cell(
        contact_sheets.draw_sheet(
            "a/b", [1, 0, 0], [Member(jpeg((200, 30, 30), (800, 1600)), 0, 0)]
        ),
        0,
    )
    red = near(large, (200, 30, 30))
    assert abs(red.any(1).sum() - THUMB) <= 2
    assert abs(red.any(0).sum() - THUMB / 2) <= 2


def test_near_duplicates_share_a_mark_and_others_have_none():
    shown = [
        Member(jpeg((20, 20, 20)), 0, group, copies)
        for group, copies in ((7, 3), (8, 1), (7, 3), (9, 2))
    ]
    sheet = contact_sheets.draw_sheet("a/b", [4, 0, 0], shown)
    marks = [
        [
            bool(
                near(cell(sheet, k)[-FRAME - 19 : -FRAME - 1, FRAME : FRAME + 40], color).sum()
                > 100
            )
            for color in contact_sheets.CHIPS[:2]
        ]
        for k in range(4)
    ]
    assert marks == [[True, False], [False, False], [True, False], [False, True]]


def test_a_picture_that_cannot_be_read_spoils_only_its_cell():
    green = (30, 160, 60)
    sheet = contact_sheets.draw_sheet(
        "a/b",
        [3, 0, 0],
        [
            Member(jpeg(green), 0, 0),
            Member(b"no picture", 0, 1),
            Member(jpeg(green)[:300], 0, 2),
            Member(jpeg(green), 0, 3),
        ],
    )
    assert [bool(near(cell(sheet, k), green).any()) for k in range(4)] == [True, False, False, True]
    assert near(cell(sheet, 1)[CELL // 2 - 10 : CELL // 2 + 10], contact_sheets.SOFT).any(), (
        "the cell says why"
    )


@pytest.mark.parametrize("count", [0, 1, 6, 7, 24, 30])
def test_sheets_grow_by_rows_and_show_24_at_most(count):
    shown = [Member(jpeg((9, 9, 9)), 0, k) for k in range(count)]
    sheet = Image.open(
        io.BytesIO(
            contact_sheets.draw_sheet(
                "a/" + "very_long_name_" * 9, [count, 0, 0], shown, ["a reason " * 40]
            )
        )
    )
    rows = max(1, -(-min(count, 24) // 6))
    assert sheet.size == (contact_sheets.WIDTH, HEAD + rows * (CELL + GAP) - GAP + MARGIN)


def write(folder, workers=1, from_members=members):
    return contact_sheets.write_contact_sheets(
        folder,
        NAMES,
        from_members,
        COUNTS,
        {2: ["shares <i>7</i> pairs"], 0: []},
        workers,
        ["note <1> & more"],
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sheets") / "report")


def test_killed_halfway_or_with_more_workers_it_ends_with_the_same_files(made, tmp_path):
    def breaks(class_idx):
        if class_idx == 2:
            raise InterruptedError("killed")
        return members(class_idx)

    wanted = contents(made.parent)
    assert len(wanted) == len(NAMES) + 3
    assert not any(name.endswith(".tmp") for name in wanted)
    with pytest.raises(InterruptedError):
        write(tmp_path, from_members=breaks)
    assert "index.html" not in contents(tmp_path), "the page comes last"
    assert len(contents(tmp_path)) <= 5, "the page comes last, and the broken sheet is missing"
    (tmp_path / (contact_sheets.sheet_name(NAMES[2]) + ".tmp")).write_bytes(b"half")
    write(tmp_path, workers=2)
    assert contents(tmp_path) == wanted


def test_the_page_lists_every_class_rarest_first_with_links_that_lead_somewhere(made):
    text = made.read_text(encoding="utf-8")
    rows = re.findall(r"<tr data-is=.*?</tr>", text, flags=re.S)
    links = [unquote(html.unescape(re.search(r'href="([^"]*)"', row).group(1))) for row in rows]
    assert links == [contact_sheets.sheet_name(NAMES[i]) for i in (1, 0, 3, 2)]
    assert all((made.parent / link).is_file() for link in links)
    assert [re.findall(r'data-of="\w[^>]*>(?:<[^>]*>)?([\d,]+)', row) for row in rows][:2] == [
        ["2", "2", "0", "0"],
        ["7", "5", "1", "1"],
    ]
    assert [re.search(r'data-is="([^"]*)"', row).group(1) for row in rows] == [
        "rare scarce unjudged",
        "rare scarce",
        "rare",
        "odd",
    ]
    assert "shares &lt;i&gt;7&lt;/i&gt; pairs" in rows[3]
    assert "<b>" not in text
    assert "note &lt;1&gt; &amp; more" in text
    assert ">daisy</a>" in rows[2], "a class without diseases is named once"
    assert "<small>" not in rows[2], "a class without diseases is named once"
    assert not re.search(r"(src|href)=\"(https?:)?//", text), "no server is needed"
    assert {"long_tail.png", "long_tail_dark.png"} <= set(contents(made.parent))


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome is installed to look at the page with"
)
def test_the_page_finds_classes(made, tmp_path):
    probe = """<script>const seen = [];
const shown = () => rows.filter((row) => !row.hidden && row.getClientRects().length);
const show = () => seen.push(shown().map((row) => row.rowIndex).join("+"));
show(); find.value = "rust corn"; find.dispatchEvent(new Event("input")); show();
find.value = "rust apple"; find.dispatchEvent(new Event("input")); show();
find.value = ""; only.value = "odd"; only.dispatchEvent(new Event("change")); show();
only.value = "scarce"; only.dispatchEvent(new Event("change")); show();
seen.push(document.documentElement.scrollWidth <= innerWidth);
seen.push(document.querySelector("input").offsetHeight > 20, left.value);
document.title = seen.join("|");</script></body>"""
    page = made.parent / "probe.html"
    page.write_text(made.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={tmp_path}",
            "--window-size=500,900",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    page.unlink()
    assert (
        re.search(r"<title>(.*?)</title>", done.stdout).group(1)
        == "1+2+3+4|1||4|1+2|true|true|2 of 4 classes"
    ), done.stderr[-500:]


@pytest.mark.parametrize(("classes", "dark"), [(5, False), (2000, True)])
def test_class_sizes_are_drawn_for_few_and_many(classes, dark, tmp_path):
    total = np.maximum(1, (30000 / np.arange(1, classes + 1))).astype(int)
    counts = np.stack([total - 2 * (total // 5), total // 5, total // 5], axis=1)
    contact_sheets.long_tail(
        tmp_path / "tail.png", [f"plant/disease_{i}" for i in range(classes)], counts[::-1], dark
    )
    pixels = np.array(Image.open(tmp_path / "tail.png").convert("RGB")).astype(int)
    assert [path.name for path in tmp_path.iterdir()] == ["tail.png"]
    for color in ("#4f9a70", "#5fa8e8", "#f0b23c") if dark else ("#7fb795", "#2f78b7", "#d08a1d"):
        assert (np.abs(pixels - list(bytes.fromhex(color[1:]))).max(-1) < 8).mean() > 0.004, color
    area = np.abs(pixels - list(bytes.fromhex("4f9a70" if dark else "7fb795"))).max(-1) < 8
    heights = area[180:].sum(0)  # below the legend
    drawn = heights[heights > 0]
    assert drawn[:20].mean() > 1.1 * drawn[-20:].mean(), "largest first, down to the smallest"


def test_the_number_of_rare_classes_is_said():
    said = contact_sheets.size_words(np.array([49, 50, 79, 80, 1000]))
    assert said == ["1,258 pictures in 5 classes", "3 classes below 80, 1 class below 50 pictures"]
