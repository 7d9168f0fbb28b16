"""The server's description for programs (/openapi.json) and for people (/docs), from one table."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.decide import MODES
from common.serve.http.uploads import MOST_PHOTOS
from common.serve.predictor import Predictor


@dataclass(frozen=True)
class Address:
    """One method of one address: what it is for, what it answers with ({status: words}), whether it
    asks for the key.
    """

    method: str
    path: str
    summary: str
    statuses: dict[int, str]
    kind: str = "application/json"
    keyed: bool = False


_ERRORS = {
    400: "an option, a form or a body that makes no sense",
    401: "the API key is missing or wrong",
    408: "the body came too slowly",
    413: "too many bytes or pixels",
    415: "no picture, or of no format that is read",
    422: "a damaged or too small picture",
    503: "busy or stopping; Retry-After says when to try again",
}
ADDRESSES = (
    Address(
        "post",
        "/predict",
        f"Answer 1 to {MOST_PHOTOS} photos of one plant.",
        {200: "the answer", **_ERRORS},
        keyed=True,
    ),
    Address(
        "get",
        "/model",
        "The model: classes, hash, temperatures, thresholds, precisions, metrics.",
        {200: "its description"},
    ),
    Address("get", "/healthz", "Whether the process lives.", {200: "it does"}),
    Address(
        "get",
        "/readyz",
        "Whether requests are taken.",
        {200: "they are", 503: "the server is stopping"},
    ),
    Address(
        "get",
        "/metrics",
        "Counts and histograms for Prometheus.",
        {200: "text", 401: _ERRORS[401]},
        "text/plain",
        True,
    ),
    Address("get", "/v2", "Open Inference Protocol: the server.", {200: "its metadata"}),
    Address("get", "/v2/health/live", "Open Inference Protocol: liveness.", {200: "live"}),
    Address(
        "get",
        "/v2/health/ready",
        "Open Inference Protocol: readiness.",
        {200: "ready", 503: "not ready"},
    ),
    Address(
        "get",
        "/v2/models/{name}",
        "Open Inference Protocol: the model's tensors.",
        {200: "its metadata", 404: "no such model"},
    ),
    Address(
        "get",
        "/v2/models/{name}/ready",
        "Open Inference Protocol: the model's readiness.",
        {200: "ready", 503: "not ready"},
    ),
    Address(
        "post",
        "/v2/models/{name}/infer",
        "Open Inference Protocol: run the raw model.",
        {200: "its outputs", **_ERRORS},
        keyed=True,
    ),
    Address("get", "/openapi.json", "This description for programs.", {200: "OpenAPI 3.1"}),
)


def options(predictor: Predictor) -> list[tuple[str, dict[str, Any], str]]:
    """The options of POST /predict as (name, JSON schema, meaning)."""
    tree, card = predictor.bundle.tree, predictor.card
    return [
        (
            "species",
            {"type": "string", "enum": list(tree.species)},
            "the species, where you know it: the answer goes by it",
        ),
        (
            "precision",
            {"type": "string", "enum": sorted(card.rollups)},
            "share of given answers that is "
            "to be right; a higher one gives the species alone, or rejects, more often",
        ),
        (
            "prior",
            {"type": "string", "example": f"{tree.species[0]}:3"},
            "weights on species, as name:weight,name:weight or a JSON "
            "object; 1 where nothing is said",
        ),
        (
            "top_k",
            {"type": "integer", "minimum": 1, "maximum": tree.num_classes},
            "how many alternatives to list",
        ),
        (
            "mode",
            {"type": "string", "enum": list(MODES)},
            "joint: the most probable species and disease together; routed: the best species "
            "first, then its best disease",
        ),
        (
            "heatmap",
            {"type": "string", "enum": ["0", "1"]},
            "whether to add where on the photo the model looked",
        ),
        (
            "short_side",
            {"type": "integer", "minimum": 1},
            "pixels on the short side of the photo, where a small copy of it is sent",
        ),
    ]


def document(predictor: Predictor) -> dict[str, Any]:
    """The description as OpenAPI 3.1."""
    number, text = {"type": "number"}, {"type": ["string", "null"]}
    listed = {"type": "array", "items": {"type": "object"}}
    schemas = {
        "Answer": {
            "type": "object",
            "required": [
                "decision",
                "level",
                "probabilities",
                "path",
                "alternatives",
                "rejection",
                "photos",
            ],
            "properties": {
                "decision": {"type": "string", "enum": ["answered", "rolled_up", "rejected"]},
                "level": {"type": "string", "enum": ["disease", "species", "none"]},
                "species": text,
                "disease": text,
                "healthy": {"type": ["boolean", "null"]},
                "probabilities": {"type": "object", "additionalProperties": number},
                "path": listed,
                "alternatives": listed,
                "rejection": {"type": "object"},
                "precision": text,
                "photos": listed,
                "agreement": {"type": "object"},
                "conditioned": {"type": ["object", "null"]},
                "prior": {"type": ["object", "null"]},
                "model": {"type": "object"},
                "image": {"type": "object"},
                "heatmap": {"type": "array"},
                "timings_ms": {"type": "object"},
            },
        },
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["code", "message"],
                    "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                }
            },
        },
    }
    paths: dict[str, Any] = {}
    for address in ADDRESSES:
        entry: dict[str, Any] = {
            "summary": address.summary,
            "responses": {
                str(status): {
                    "description": words,
                    "content": {address.kind: _schema(address, status)},
                }
                for status, words in address.statuses.items()
            },
        }
        if "{name}" in address.path:
            entry["parameters"] = [
                {
                    "name": "name",
                    "in": "path",
                    "required": True,
                    "schema": {"enum": [predictor.bundle.name]},
                }
            ]
        if address.path == "/predict":
            entry["parameters"] = [
                {"name": name, "in": "query", "description": words, "schema": schema}
                for name, schema, words in options(predictor)
            ]
            files = {
                "type": "array",
                "maxItems": MOST_PHOTOS,
                "items": {"type": "string", "format": "binary"},
            }
            form = {"photo": files, **{name: schema for name, schema, _ in options(predictor)}}
            entry["requestBody"] = {
                "required": True,
                "content": {
                    "image/*": {"schema": {"type": "string", "format": "binary"}},
                    "multipart/form-data": {"schema": {"type": "object", "properties": form}},
                },
            }
        if address.keyed:
            entry["security"] = [{}, {"bearer": []}, {"header": []}]
        paths.setdefault(address.path, {})[address.method] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": predictor.bundle.name, "version": predictor.bundle.version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def page(predictor: Predictor) -> str:
    """The description as a page without scripts or styles of its own."""
    name = html.escape(f"{predictor.bundle.name} {predictor.bundle.version}")
    parts = [
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{name}: the API</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1"></head><body><main>'
        f"<h1>{name}: the API</h1><p>For programs: <a href=/openapi.json>/openapi.json</a>. An "
        f"error is "
        '<code>{"error": {"code", "message"}}</code>.</p>'
        "<pre>curl --data-binary @leaf.jpg URL/predict\ncurl -F photo=@a.jpg -F photo=@b.jpg -F "
        "species="
        f"{html.escape(predictor.bundle.tree.species[0])} URL/predict</pre>"
    ]
    for address in ADDRESSES:
        parts.append(
            f"<h2><code>{address.method.upper()} "
            f"{html.escape(address.path)}</code></h2><p>{html.escape(address.summary)}"
            + (" Asks for the API key where the server has one." if address.keyed else "")
            + "</p>"
        )
        if address.path == "/predict":
            parts.append(
                _table(
                    ("option", "values", "meaning"),
                    [
                        (
                            key,
                            ", ".join(
                                [
                                    *schema.get("enum", [schema["type"]])[:12],
                                    *["..."] * (len(schema.get("enum", ())) > 12),
                                ]
                            ),
                            words,
                        )
                        for key, schema, words in options(predictor)
                    ],
                )
            )
        parts.append(
            _table(
                ("status", "meaning"),
                [(str(status), words) for status, words in address.statuses.items()],
            )
        )
    return "\n".join([*parts, "</main></body></html>"])


def _schema(address: Address, status: int) -> dict[str, Any]:
    if status != 200 and not address.path.startswith("/v2"):
        return {"schema": {"$ref": "#/components/schemas/Error"}}
    if address.path == "/predict":
        return {"schema": {"$ref": "#/components/schemas/Answer"}}
    return {"schema": {"type": "string" if address.kind == "text/plain" else "object"}}


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(titles, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"
