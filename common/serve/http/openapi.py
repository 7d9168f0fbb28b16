"""The server's description for programs, /openapi.json: openapi.json beside this file, with the
names of the model that is served.
"""

import copy
import json
from pathlib import Path
from typing import Any

from common.serve.http.inference_protocol import MOST_PICTURES
from common.serve.predictor import Predictor

EVERYWHERE = {
    "431": "the header of the request is too large",
    "500": "a fault of the server",
    "503": "busy or stopping",
}


def document(predictor: Predictor) -> dict[str, Any]:
    """The description as OpenAPI 3.1."""
    bundle = predictor.bundle
    of_model = {
        "species": {"enum": list(bundle.tree.species)},
        "precision": {"enum": sorted(predictor.card.rollups) or [""]},  # "" is always taken
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
            for status, meaning in EVERYWHERE.items():
                entry["responses"].setdefault(status, {"description": meaning})
            for response in entry["responses"].values():
                response.setdefault("content", content)
            for option in entry.get("parameters", ()):
                option["schema"].update(of_model.get(option["name"], {}))
    predict = found["paths"]["/predict"]["post"]
    form = predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    form.update({option["name"]: option["schema"] for option in predict["parameters"]})
    return found
