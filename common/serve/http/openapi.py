"""The server's description for programs (/openapi.json) and for people (/docs): openapi.json beside
this file, with the names of the model that is served.
"""

import copy
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.serve.http.inference_protocol import MOST_PICTURES
from common.serve.predictor import Predictor

_MOST_VALUES = 12  # of an option that /docs lists
_EVERYWHERE = {
    "431": "the header of the request is too large",
    "500": "a fault of the server",
    "503": "busy or stopping",
}


def document(predictor: Predictor) -> dict[str, Any]:
    """The description as OpenAPI 3.1."""
    bundle = predictor.bundle
    of_model = {
        "species": {"enum": list(bundle.tree.species)},
        "precision": {"enum": sorted(predictor.card.rollups)},
        "prior": {"example": f"{bundle.tree.species[0]}:3"},
        "name": {"enum": [bundle.name]},
        "version": {"enum": [bundle.version]},
    }
    found = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    found["info"] = {"title": bundle.name, "version": bundle.version}
    tensor = found["components"]["schemas"]["InferRequest"]["properties"]["inputs"]["items"]
    tensor["properties"]["shape"]["prefixItems"] = [
        {"type": "integer", "minimum": 1, "maximum": MOST_PICTURES},
        *({"enum": [side]} for side in (bundle.size, bundle.size, 3)),
    ]
    for path in [path for path in found["paths"] if "{name}" in path]:
        methods = copy.deepcopy(found["paths"][path])
        for entry in methods.values():
            version = {"name": "version", "description": "its version", "schema": {}}
            entry["parameters"].append({**entry["parameters"][0], **version})
        found["paths"][path.replace("{name}", "{name}/versions/{version}")] = methods
    for path, methods in found["paths"].items():
        error = "ProtocolError" if path.startswith("/v2") else "Error"
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}}
        for entry in methods.values():
            for status, meaning in _EVERYWHERE.items():
                entry["responses"].setdefault(status, {"description": meaning})
            for response in entry["responses"].values():
                response.setdefault("content", content)
            for option in entry.get("parameters", ()):
                option["schema"].update(of_model.get(option["name"], {}))
    predict = found["paths"]["/predict"]["post"]
    form = predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    form.update({option["name"]: option["schema"] for option in predict["parameters"]})
    return found


def page(described: Mapping[str, Any]) -> str:
    """The description, as `document` gives it, as a page without scripts or styles of its own."""
    name = html.escape(" ".join(described["info"].values()))
    addresses = [
        (method, path, entry)
        for path, methods in described["paths"].items()
        for method, entry in methods.items()
        if "{version}" not in path
    ]
    everywhere = ", ".join(f"{status} ({meaning})" for status, meaning in _EVERYWHERE.items())
    options = described["paths"]["/predict"]["post"]["parameters"]
    species = html.escape(options[0]["schema"]["enum"][0])
    parts = [
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{name}: the API</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1"></head><body><main>'
        f"<h1>{name}: the API</h1><p>For programs: <a href=openapi.json>openapi.json</a>. An "
        'error is <code>{"error": {"code", "message"}}</code>, and <code>{"error": message}</code> '
        f"below /v2. Any address may answer {everywhere}.</p>"
        "<pre>curl --data-binary @leaf.jpg URL/predict\ncurl -F photo=@a.jpg -F photo=@b.jpg "
        f"-F species={species} URL/predict</pre>"
    ]
    for method, path, entry in addresses:
        key = " Asks for the API key where the server has one." if "security" in entry else ""
        parts.append(
            f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
            f"<p>{html.escape(entry['summary'])}{key}</p>"
        )
        rows = [
            (row["name"], row["schema"], row["description"]) for row in entry.get("parameters", ())
        ]
        if path.endswith("/infer"):
            fields = described["components"]["schemas"]["InferRequest"]["properties"]
            rows += [(field, one, one["description"]) for field, one in fields.items()]
        if rows:
            cells = [(field, _values(schema), meaning) for field, schema, meaning in rows]
            parts.append(_table(("option", "values", "meaning"), cells))
        statuses = [
            (status, one["description"])
            for status, one in entry["responses"].items()
            if one["description"] != _EVERYWHERE.get(status)
        ]
        parts.append(_table(("status", "meaning"), statuses))
    return "\n".join([*parts, "</main></body></html>"])


def _values(schema: Mapping[str, Any]) -> str:
    values = schema.get("enum", [schema["type"]])
    return ", ".join([*values[:_MOST_VALUES], *["..."] * (len(values) > _MOST_VALUES)])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(titles, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"
