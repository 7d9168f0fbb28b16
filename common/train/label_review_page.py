"""The page on which a person looks through the labels in doubt and decides about each."""

import json
from collections.abc import Sequence

from common.train.page import document

_STYLE = """
:root { font: 15px/1.45 system-ui, sans-serif; color-scheme: light dark; }
body { max-width: 900px; margin: 0 auto; padding: 0 16px 60px; }
header { position: sticky; top: 0; padding: 10px 0; background: Canvas; }
h1 { margin: 0; font-size: 1.3rem; }
article { margin: 18px 0; }
article.done { opacity: .55; }
img { display: block; width: 100%; max-width: 600px; border-radius: 8px; }
.words { display: grid; grid-template-columns: repeat(3, 1fr); max-width: 600px; }
small { display: block; overflow-wrap: anywhere; opacity: .7; }
button, input { font: inherit; padding: 3px 10px; margin: 4px 4px 0 0; }
"""
_BODY = """\
<header>
<h1>Labels in doubt</h1>
<button id="save">Save labels_review.csv</button> <output id="state" role="status"></output>
</header>
<p>Each row shows the picture, a clear example of the class that it is given, and one of the class
that it looks like. Decide, save, and run 01_reorganize.py again with --labels-review and the saved
file. What is left open stays as it is, and is listed again.</p>
<noscript>This page needs JavaScript; without it, fill in labels_review.csv.</noscript>
<main></main>
<datalist id="classes"></datalist>
<script>
const { columns, rows, classes, shown } = @DATA@;
const [PICTURE, GIVEN, SUGGESTED, CONFIDENCE, , DECISION, SHA] = columns.keys();
const make = (parent, tag, text, rest = {}) =>
  parent.appendChild(Object.assign(document.createElement(tag), { textContent: text }, rest));
const tell = () => {
  const done = rows.slice(0, shown).filter((row) => row[DECISION]).length;
  document.getElementById("state").value = `${done} of ${shown} decided`;
};
for (const name of classes) make(document.getElementById("classes"), "option", name);
rows.slice(0, shown).forEach((row, number) => {
  const box = make(document.querySelector("main"), "article", "");
  const file = `${String(number).padStart(4, "0")}.jpg`;
  make(box, "img", "", { src: file, alt: "", loading: "lazy", width: 600, height: 200 });
  const words = make(box, "div", "", { className: "words" });
  make(words, "span", `${number + 1}`);
  make(words, "span", `given: ${row[GIVEN]}`);
  make(words, "span", `looks like: ${row[SUGGESTED]} (${row[CONFIDENCE]})`);
  make(box, "small", row[PICTURE]);
  const decide = (value) => {
    row[DECISION] = input.value = value.trim();
    box.classList.toggle("done", Boolean(row[DECISION]));
    localStorage.setItem(row[SHA], row[DECISION]);
    tell();
  };
  for (const [text, value] of [
    [`keep ${row[GIVEN]}`, "keep"], [`change to ${row[SUGGESTED]}`, row[SUGGESTED]],
    ["drop", "drop"],
  ]) make(box, "button", text, { onclick: () => decide(value) });
  const input = make(box, "input", "", {
    placeholder: "or another class", onchange: () => decide(input.value),
  });
  input.setAttribute("list", "classes");
  input.setAttribute("aria-label", "decision");
  decide(localStorage.getItem(row[SHA]) ?? row[DECISION]);
});
tell();
const cell = (text) => `"${text.replaceAll('"', '""')}"`;
const table = () => [columns, ...rows].map((row) => row.map(cell).join(",") + "\\r\\n").join("");
document.getElementById("save").onclick = () => {
  const href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  make(document.body, "a", "", { href, download: "labels_review.csv" }).click();
};
</script>"""


def page(
    columns: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str], shown: int
) -> str:
    """Compose the page; the pictures of its rows lie beside it: 0000.jpg, 0001.jpg ...

    Args:
        columns: titles of labels_review.csv.
        rows: all its rows, which the page saves again with the decisions.
        classes: names that may be given.
        shown: how many of the rows, from the first on, are shown.

    Returns:
        HTML.
    """
    data = {"columns": columns, "rows": rows, "classes": classes, "shown": shown}
    body = _BODY.replace("@DATA@", json.dumps(data).replace("<", "\\u003c"))
    return document("Labels in doubt", _STYLE, body)
