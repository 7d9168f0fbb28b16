"""index.html of the contact sheets: one page with all classes, which works without a server."""

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

import numpy as np

_STYLE = """
:root {
  --paper: #f4f6f1; --card: #ffffff; --ink: #1b241e; --soft: #5a685f; --line: #dfe5dc;
  --sunk: #f0f3ed; --red: #a3352b; --amber: #8a5a00; --amber-wash: #fbf1dc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #101512; --card: #181f1b; --ink: #e7ede8; --soft: #9daca2; --line: #2a342e;
    --sunk: #131916; --red: #f0958a; --amber: #e9b95c; --amber-wash: #342a17;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body {
  margin: 0 auto; max-width: 1080px; padding: 0 20px 40px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1, p { margin: 0; }
header { display: flex; align-items: center; gap: 10px; padding: 26px 0 20px; }
header h1 { font-size: 1.35rem; }
header p { margin-left: auto; color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 18px; }
.head {
  display: grid; grid-template-columns: minmax(0, 2.2fr) minmax(0, 1fr); gap: 24px;
  padding: 20px 24px; align-items: center;
}
.head img { width: 100%; display: block; }
.numbers { display: grid; gap: 14px; margin: 0; }
.numbers dt { color: var(--soft); font-size: .92rem; }
.numbers dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.2; }
.notes {
  grid-column: 1 / -1; display: grid; gap: 8px; padding: 14px 16px; border-radius: 12px;
  background: var(--sunk);
}
.tools { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; padding: 20px 2px 12px; }
.tools input, .tools select {
  font: inherit; padding: 9px 16px; min-height: 44px; border-radius: 999px;
  border: 1px solid var(--line); background: var(--card); color: var(--ink);
}
.tools input { flex: 1 1 220px; min-width: 0; }
.tools output { color: var(--soft); margin-left: auto; }
table { width: 100%; border-collapse: collapse; table-layout: fixed; }
th { color: var(--soft); font-size: .86rem; text-align: left; padding: 14px 8px 10px; }
td { padding: 10px 8px; border-top: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { padding-left: 24px; }
th:last-child, td:last-child { padding-right: 24px; }
.n { width: 72px; text-align: right; font-variant-numeric: tabular-nums; }
th:last-child { width: 424px; }
td:nth-child(2) { font-weight: 650; }
td .none { color: var(--red); font-weight: 650; }
td:first-child { overflow-wrap: anywhere; }
td:first-child a { color: var(--ink); font-weight: 600; text-decoration: none; }
td:first-child a:hover { text-decoration: underline; }
td:first-child small { color: var(--soft); font-size: .86rem; }
td p {
  margin-top: 6px; padding: 4px 10px; border-radius: 8px; background: var(--amber-wash);
  color: var(--amber); font-size: .86rem;
}
.strip {
  display: block; overflow: hidden; border-radius: 8px; background: #181f1b;
  aspect-ratio: @WIDTH@ / @TALL@;
}
.strip img { display: block; width: 100%; margin-top: -@UP@%; }
@media (max-width: 900px) { th:last-child { width: 300px; } }
@media (max-width: 760px) {
  body { padding: 0 12px 40px; }
  .head { grid-template-columns: minmax(0, 1fr); padding: 14px; }
  .numbers { grid-template-columns: 1fr 1fr; }
  .tools input { flex-basis: 100%; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody { display: block; }
  tr { display: grid; grid-template-columns: repeat(4, 1fr); padding: 12px 14px; }
  tr + tr { border-top: 1px solid var(--line); }
  td, td:first-child, td:last-child { border: 0; padding: 3px 0; }
  td:first-child, td:last-child { grid-column: 1 / -1; }
  td.n { width: auto; text-align: left; }
  td.n::after { content: " " attr(data-of); color: var(--soft); font-size: .86rem; }
}
"""
_SCRIPT = """
const rows = [...document.querySelectorAll("tbody tr")];
const [find, only, left] = ["find", "only", "left"].map((id) => document.getElementById(id));
const sift = () => {
  const words = find.value.toLowerCase().split(/\\s+/);
  let n = 0;
  for (const row of rows) {
    const kinds = row.dataset.is.split(" ");
    const named = words.every((word) => row.dataset.name.includes(word));
    row.hidden = !(named && (!only.value || kinds.includes(only.value)));
    n += !row.hidden;
  }
  left.value = `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")} classes`;
};
find.addEventListener("input", sift);
only.addEventListener("change", sift);
document.getElementById("tools").hidden = false;
sift();
"""


def page(
    names: Sequence[str],
    sheets: Sequence[str],
    counts: np.ndarray,
    suspects: Mapping[int, Sequence[str]],
    notes: Sequence[str],
    size_words: Sequence[str],
    crop: tuple[int, int, int],
) -> str:
    """Compose the page; it needs nothing but the sheets and long_tail.png and long_tail_dark.png
    beside it.

    Args:
        names: "species/disease" of each class.
        sheets: file name of each class's sheet.
        counts: int (classes, 3), pictures in train, val and test.
        suspects: class number -> why it is suspicious.
        notes: sentences for the head of the page.
        size_words: what the picture of class sizes says, for those who do not see it.
        crop: width of a sheet, and top and height of its first row of pictures, px.

    Returns:
        HTML, classes ordered from rare to frequent.
    """
    width, top, tall = crop
    total = counts.sum(1)
    style = _STYLE.replace("@WIDTH@", str(width)).replace("@TALL@", str(tall))
    style = style.replace("@UP@", f"{100 * top / width:.3f}")
    numbers = [
        ("classes", len(names)),
        ("pictures", int(total.sum())),
        ("classes below 80 pictures", int((total < 80).sum())),
        ("classes below 50 pictures", int((total < 50).sum())),
        ("suspicious classes", sum(map(bool, suspects.values()))),
    ]
    rows = "\n".join(
        _row(names[i], sheets[i], counts[i].tolist(), suspects.get(i, ()))
        for i in np.argsort(total, kind="stable").tolist()
    )
    said = (
        '<div class="notes">' + "".join(f"<p>{escape(note)}</p>" for note in notes) + "</div>"
        if notes
        else ""
    )
    figures = "".join(f"<div><dt>{word}</dt><dd>{number:,}</dd></div>" for word, number in numbers)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Contact sheets of {len(names):,} classes - Foliar</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>Foliar</h1>
<p>Contact sheets of the organized pictures</p>
</header>
<main>
<section class="head" aria-label="Class sizes">
<picture><source srcset="long_tail_dark.png" media="(prefers-color-scheme: dark)">
<img src="long_tail.png" width="1400" height="800" style="height: auto"
 alt="{escape("; ".join(size_words))}"></picture>
<dl class="numbers">{figures}</dl>
{said}</section>
<form class="tools" id="tools" hidden onsubmit="return false">
<input id="find" type="search" placeholder="Find a class" aria-label="Find a class">
<select id="only" aria-label="Show"><option value="">All classes</option>
<option value="odd">Suspicious</option>
<option value="rare">Below 80 pictures</option><option value="scarce">Below 50 pictures</option>
<option value="unjudged">No val or test picture</option></select>
<output id="left" role="status"></output>
</form>
<section>
<table>
<thead><tr><th>class, rarest first</th><th class="n">pictures</th><th class="n">train</th>
<th class="n">val</th><th class="n">test</th><th>first pictures (opens the sheet)</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</section>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _row(name: str, sheet: str, counts: Sequence[int], reasons: Sequence[str]) -> str:
    total, href = sum(counts), escape(quote(sheet))
    shown = [
        escape(part) for part in dict.fromkeys(name.replace("_", " ").split("/"))
    ]  # a class without diseases is named once
    title = f"<small>{' / '.join(shown[:-1])}</small> {shown[-1]}" if len(shown) > 1 else shown[0]
    kinds = " ".join(
        kind
        for kind, holds in (
            ("odd", reasons),
            ("rare", total < 80),
            ("scarce", total < 50),
            ("unjudged", not (counts[1] and counts[2])),
        )
        if holds
    )
    cells = "".join(
        f'<td class="n" data-of="{of}">{number:,}</td>'
        if number
        else f'<td class="n" data-of="{of}"><span class="none">0</span></td>'
        for of, number in zip(("in all", "train", "val", "test"), (total, *counts), strict=True)
    )
    said = "".join(f"<p>{escape(reason)}</p>" for reason in reasons)
    return (
        f'<tr data-is="{kinds}" data-name="{escape(name.replace("_", " ").lower())}"><td><a '
        f'href="{href}">{title}</a>{said}</td>{cells}'
        f'<td><a class="strip" href="{href}" tabindex="-1" aria-hidden="true"><img src="{href}" '
        f'loading="lazy" alt="">'
        "</a></td></tr>"
    )
