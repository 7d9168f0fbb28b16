"""Parts of pages that are one file: no server, no script, nothing from outside."""

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

STYLE = """
:root { font: 16px/1.5 system-ui, sans-serif; color-scheme: light dark; --line: #8886; }
body { max-width: 1200px; margin: 0 auto; padding: 0 16px 60px; }
h1 { font-size: 1.5rem; margin: 24px 0 8px; }
h2 { font-size: 1.2rem; margin: 40px 0 8px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 24px 0 8px; overflow-wrap: anywhere; }
p { max-width: 80ch; }
code { white-space: nowrap; }
nav ul, ul.pictures { display: flex; flex-wrap: wrap; gap: 6px 16px; padding: 0; list-style: none; }
ul.pictures { gap: 14px; align-items: flex-start; }
ul.pictures > li {
  box-sizing: border-box; width: min(184px, 50% - 7px); padding: 11px; border-radius: 10px;
  border: 1px solid var(--line); break-inside: avoid;
}
ul.pictures > li.wide { width: min(348px, 100%); }
figure { margin: 0; }
figcaption { overflow-wrap: anywhere; font-size: .88rem; }
figcaption strong, figcaption span, figcaption small { display: block; }
figcaption small { opacity: .75; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto 8px; border-radius: 4px; }
img.drawn { background: white; margin: 12px 0; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: 4px 16px 4px 0; text-align: left; border-bottom: 1px solid var(--line); }
@media print { nav { display: none; } body { max-width: none; } h2, h3 { break-after: avoid; } }
"""


def document(title: str, style: str, body: str) -> str:
    """Put a page together: a plain title, CSS and HTML -> HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)} - Foliar</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def text(words: object) -> str:
    """Escape for HTML, attributes too; what no file can hold (half of a surrogate pair) is "?"."""
    return escape(str(words).encode(errors="replace").decode())


class Picture(NamedTuple):
    """A picture of a sheet: `jpeg` of `width` x `height` px; `alt` says what it is for those who do
    not see it; `title` and `lines` stand below it, and `paths` in small print; `wide`: it takes two
    places.
    """

    jpeg: bytes
    width: int
    height: int
    alt: str
    title: str
    lines: Sequence[str]
    paths: Sequence[str]
    wide: bool = True


def sheet(pictures: Sequence[Picture]) -> str:
    """A contact sheet: pictures side by side; nothing where there are none."""
    return f'<ul class="pictures">{"".join(map(_figure, pictures))}</ul>' if pictures else ""


def _figure(one: Picture) -> str:
    lines = "".join(f"<span>{text(line)}</span>" for line in one.lines if line)
    paths = "".join(f"<small>{text(path)}</small>" for path in one.paths if path)
    title = f"<strong>{text(one.title)}</strong>" if one.title else ""
    return (
        f"<li{' class=wide' if one.wide else ''}><figure><img "
        f'src="{_uri("jpeg", one.jpeg)}" width="{one.width}" height="{one.height}" '
        f'alt="{text(one.alt)}"><figcaption>{title}{lines}{paths}</figcaption></figure></li>\n'
    )


def drawing(path: Path, alt: str) -> str:
    """A PNG file as part of the page; nothing where there is none."""
    if not path.is_file():
        return ""
    return f'<img class="drawn" src="{_uri("png", path.read_bytes())}" alt="{text(alt)}">\n'


def _paragraph(words: str) -> str:
    """Plain words; flags and file names are not broken."""
    unbroken = re.sub(r"(--[a-z-]+|\w+[.](?:py|csv))", r"<code>\1</code>", text(words))
    return f"<p>{unbroken}</p>"


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def rows_table(rows: Sequence[Sequence[object]], titles: Sequence[str]) -> str:
    """A table that scrolls by itself where the screen is narrow."""
    head = "".join(f'<th scope="col">{text(title)}</th>' for title in titles)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{text(titles[0])}"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


class Section(NamedTuple):
    """A section: `key` to link to it, its title, a plain sentence, and HTML below that."""

    key: str
    title: str
    words: str
    html: str


def sections(title: str, lead: Sequence[str], parts: Sequence[Section]) -> str:
    """A whole page: title, plain sentences, links to the sections, the sections."""
    links = "".join(f'<li><a href="#{part.key}">{text(part.title)}</a></li>' for part in parts)
    return document(
        title,
        STYLE,
        f"<header>\n<h1>{text(title)}</h1>\n{''.join(map(_paragraph, lead))}\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n</header>\n<main>\n'
        + "".join(
            f'<section id="{part.key}">\n<h2>{text(part.title)}</h2>\n<p>{text(part.words)}</p>\n'
            f"{part.html}</section>\n"
            for part in parts
        )
        + "</main>",
    )
