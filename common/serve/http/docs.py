"""/docs: the description of `openapi.document` for people, with examples, and a button to try each
address.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from common.serve.http.openapi import EVERYWHERE

_MOST_VALUES = 12  # of an option
_PREDICT = (
    "curl --data-binary @leaf.jpg URL/predict",
    "curl --data-binary @leaf.jpg 'URL/predict?top_k=3&amp;heatmap=1'",
    "curl -F photo=@a.jpg -F photo=@b.jpg -F species={species} URL/predict",
)
_INFER = (
    "curl -H 'Content-Type: application/json' --data-binary @request.json URL{path}",
    'request.json: {{"inputs": [{{"name": "images", "datatype": "UINT8", '
    '"shape": [1, SIZE, SIZE, 3], "data": [...]}}]}}',
)
_PHOTO = (
    "<p class=field><label for=try-photo>Photo</label>"
    "<input type=file id=try-photo accept=image/*></p>"
    "<p class=field><label for=try-options>Options</label>"
    "<input id=try-options value=top_k=3 autocomplete=off spellcheck=false></p>"
)


def page(described: Mapping[str, Any]) -> str:
    """The page, HTML; where it names files of its own, beside it, these begin with `./`."""
    name = html.escape(" ".join(described["info"].values()))
    addresses = [
        (method, path, entry)
        for path, methods in described["paths"].items()
        for method, entry in methods.items()
        if "{version}" not in path and path != "/docs"
    ]
    everywhere = ", ".join(f"{status} ({meaning})" for status, meaning in EVERYWHERE.items())
    links = "".join(
        f"<li><a href='#{method}{path}'><code>{method.upper()} {path}</code></a></li>"
        for method, path, _ in addresses
    )
    return "\n".join(
        [
            f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{name}: the API"
            "</title><meta name=viewport content='width=device-width, initial-scale=1'>"
            "<meta name=color-scheme content='light dark'>"
            "<link rel=icon href=./leaf.svg type=image/svg+xml><link rel=stylesheet "
            "href=./style.css><link rel=stylesheet href=./docs.css><script src=./docs.js "
            "type=module></script></head><body><header class=top><img src=./leaf.svg alt='' "
            f"width=30 height=30><h1>{name}: the API</h1><p><a href=./>the page</a></p></header>"
            "<main><section class=card><p>For programs: <a href=./openapi.json>openapi.json</a>. "
            'An error is <code>{"error": {"code", "message"}}</code>, and <code>{"error": message}'
            f"</code> below /v2. Any address may answer {everywhere}.</p><ul>{links}</ul>"
            "<p class=field><label for=key>API key, where the server has one</label><input id=key "
            "type=password autocomplete=off></p></section>",
            *(_address(described, *one) for one in addresses),
            "</main></body></html>",
        ]
    )


def _address(described: Mapping[str, Any], method: str, path: str, entry: Mapping[str, Any]) -> str:
    rows = [(row["name"], row["schema"], row["description"]) for row in entry.get("parameters", ())]
    names = {name: schema["enum"][0] for name, schema, _ in rows if "enum" in schema}
    real = path.format_map(names)
    examples: Sequence[str] = (f"curl URL{real}",)
    if path == "/predict":
        examples = [line.format(species=html.escape(names["species"])) for line in _PREDICT]
    elif path.endswith("/infer"):
        examples = [html.escape(line.format(path=real), quote=False) for line in _INFER]
        fields = described["components"]["schemas"]["InferRequest"]["properties"]
        rows += [(field, one, one["description"]) for field, one in fields.items()]
    statuses = [
        (status, one["description"])
        for status, one in entry["responses"].items()
        if one["description"] != EVERYWHERE.get(status)
    ]
    key = " Asks for the API key where the server has one." if "security" in entry else ""
    parts = [
        f"<section class=card id='{method}{path}'><h2><code>{method.upper()} {html.escape(path)}"
        f"</code></h2><p>{html.escape(entry['summary'])}{key}</p>",
        "<pre tabindex=0 aria-label=Example>" + "\n".join(examples) + "</pre>",
    ]
    if not path.endswith("/infer"):
        parts.append(
            f"{_PHOTO if path == '/predict' else ''}<button type=button class='button minor' "
            f"data-try='.{html.escape(real)}'>Try {html.escape(real)}</button><pre tabindex=0 "
            "role=status aria-label=Answer hidden></pre>"
        )
    if rows:
        cells = [(field, _values(schema), meaning) for field, schema, meaning in rows]
        parts.append(_table(("option", "values", "meaning"), cells))
    return "".join([*parts, _table(("status", "meaning"), statuses), "</section>"])


def _values(schema: Mapping[str, Any]) -> str:
    values = schema.get("enum", [schema["type"]])
    return ", ".join([*values[:_MOST_VALUES], *["..."] * (len(values) > _MOST_VALUES)])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = row(titles, "th") + "".join(row(cells, "td") for cells in rows)
    name = f"tabindex=0 role=group aria-label='{titles[0]}'"  # it scrolls where it is wide
    return f"<div class=wide {name}><table>{body}</table></div>"
