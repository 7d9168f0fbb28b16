"""The Open Inference Protocol (version 2, REST) for the raw model, so that clients written for
Triton or KServe work.

The tensors are those of the exported file: `images` uint8 (N, size, size, 3) in, `probabilities`,
`ood` and `heatmap` out. They travel as JSON, or behind it as bytes with the binary tensor data
extension. Source: github.com/kserve/open-inference-protocol.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.serve.http.uploads import RequestError
from common.serve.predictor import OUTPUTS, Outputs, Predictor

Endpoint = Callable[[Request], Awaitable[Response]]
MOST_PICTURES = 8  # in one request
HEADER_LENGTH = "inference-header-content-length"  # bytes of JSON before the tensors


def routes(predictor: Predictor, ready: Callable[[], bool], infer: Endpoint) -> list[Route]:
    """The addresses below /v2.

    Args:
        predictor: the model, which is called by the bundle's name.
        ready: whether requests are taken.
        infer: answers POST .../infer.
    """
    name, version = predictor.bundle.name, predictor.bundle.version

    def of_model(answer: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            asked, wanted = request.path_params["name"], request.path_params.get("version", version)
            if (asked, wanted) != (name, version):
                raise RequestError(
                    404,
                    "not_found",
                    f"There is no model '{asked[:60]}' of that version; there is '{name}', "
                    f"version {version}.",
                )
            return await answer(request)

        return checked

    def telling(content: Callable[[], dict[str, Any]]) -> Endpoint:
        async def tell(_: Request) -> Response:
            told = content()
            return JSONResponse(told, 200 if told.get("ready", True) else 503)

        return tell

    about = {"name": "foliar", "version": version, "extensions": ["binary_tensor_data"]}
    model_ready = of_model(telling(lambda: {"name": name, "ready": ready()}))
    found = [
        Route("/v2", telling(lambda: about)),
        Route("/v2/health/live", telling(lambda: {"live": True})),
        Route("/v2/health/ready", telling(lambda: {"ready": ready()})),
    ]
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            Route(base, of_model(telling(lambda: describe(predictor)))),
            Route(f"{base}/ready", model_ready),
            Route(f"{base}/infer", of_model(infer), methods=["POST"]),
        ]
    return found


def describe(predictor: Predictor) -> dict[str, Any]:
    """The model's metadata: name, versions, platform, and name, datatype and shape of each tensor
    (-1 where a side is free).
    """

    def told(nodes: Any) -> list[dict[str, Any]]:
        kinds = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
        return [
            {
                "name": node.name,
                "datatype": kinds[node.type],
                "shape": [side if isinstance(side, int) else -1 for side in node.shape],
            }
            for node in nodes
            if node.name in ("images", *OUTPUTS)
        ]

    return {
        "name": predictor.bundle.name,
        "versions": [predictor.bundle.version],
        "platform": "onnx_onnxv1",
        "inputs": told(predictor.session.get_inputs()),
        "outputs": told(predictor.session.get_outputs()),
    }


@dataclass(frozen=True)
class Asked:
    """An infer request whose pictures the model runs: its id, or None; the outputs that it wants,
    each with whether as bytes; and what the model gives.
    """

    id: Any
    wanted: Mapping[str, bool]
    outputs: Future[Outputs]


def read_request(predictor: Predictor, body: bytes, headers: Mapping[str, str]) -> Asked:
    """Read the body of an infer request, JSON with perhaps the bytes of a tensor behind it, and
    give its pictures to the model.

    Raises RequestError (400) where it is no request that this model can answer.
    """
    asked, tail = _split(body, headers.get(HEADER_LENGTH))
    batch, wanted = _images(asked, tail, predictor.bundle.size), _outputs(asked)
    return Asked(asked.get("id"), wanted, predictor.submit(batch))


def respond(predictor: Predictor, asked: Asked, found: Outputs) -> Response:
    """Put the model's outputs into the form that was asked for. Raises RequestError (422)."""
    rows, blobs = [], []
    for name, binary in asked.wanted.items():
        values = np.ascontiguousarray(getattr(found, name), np.float32)
        row: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if binary:
            blobs.append(values.astype("<f4").tobytes())
            row["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            row["data"] = values.ravel().tolist()
        rows.append(row)
    answer: dict[str, Any] = {
        "model_name": predictor.bundle.name,
        "model_version": predictor.bundle.version,
        "outputs": rows,
    }
    if isinstance(asked.id, str):
        answer["id"] = asked.id[:200]
    try:
        head = json.dumps(answer, allow_nan=False).encode()
    except ValueError:
        raise RequestError(
            422, "not_finite", "An output holds values that JSON cannot carry; ask for binary data."
        ) from None
    if not blobs:
        return Response(head, media_type="application/json")
    return Response(
        b"".join([head, *blobs]),
        headers={HEADER_LENGTH: str(len(head))},
        media_type="application/octet-stream",
    )


def _bad(message: str) -> RequestError:
    return RequestError(400, "bad_request", message)


def _split(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    end = len(body)
    if length is not None:
        if not (
            length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= len(body)
        ):
            raise _bad(
                f"{HEADER_LENGTH} should be the number of bytes of JSON at the beginning of the "
                f"body."
            )
        end = int(length)
    try:
        asked = json.loads(body[:end])
    except (ValueError, RecursionError):
        raise _bad("The request is no JSON.") from None
    if not isinstance(asked, dict):
        raise _bad("The request should be a JSON object with `inputs`.")
    return asked, body[end:]


def _images(asked: Mapping[str, Any], tail: bytes, size: int) -> np.ndarray:
    expected = (
        f"`inputs` should be one tensor `images`, UINT8, shape [N, {size}, {size}, 3] with "
        f"N from 1 to {MOST_PICTURES}"
    )
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad(f"{expected}.")
    tensor, shape = inputs[0], inputs[0].get("shape")
    if tensor.get("name") != "images" or tensor.get("datatype") != "UINT8":
        raise _bad(
            f"{expected}, not {str(tensor.get('name'))[:40]!r} as "
            f"{str(tensor.get('datatype'))[:20]!r}."
        )
    if (
        not isinstance(shape, list)
        or len(shape) != 4
        or any(type(side) is not int for side in shape)
        or shape[1:] != [size, size, 3]
        or not 1 <= shape[0] <= MOST_PICTURES
    ):
        raise _bad(f"{expected}, not {str(shape)[:60]}.")
    count = shape[0] * size * size * 3
    parameters = tensor.get("parameters")
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        if parameters["binary_data_size"] != count or len(tail) != count:
            raise _bad(f"The tensor has {len(tail)} bytes and its shape needs {count}.")
        return np.frombuffer(tail, np.uint8).reshape(shape)
    try:
        values = np.array(tensor.get("data"))
    except (ValueError, TypeError, OverflowError):
        raise _bad("`data` should be numbers, flat or nested as the shape says.") from None
    if (
        values.dtype.kind not in "iu"
        or values.size != count
        or not (0 <= values.min() and values.max() <= 255)
    ):
        raise _bad(
            f"`data` should be {count} whole numbers from 0 to 255, flat or nested as the shape "
            f"says."
        )
    return values.astype(np.uint8).reshape(shape)


def _outputs(asked: Mapping[str, Any]) -> dict[str, bool]:
    parameters = asked.get("parameters")
    binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    outputs = asked.get("outputs")
    if outputs is None or outputs == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(outputs, list) or not all(
        isinstance(entry, dict) and entry.get("name") in OUTPUTS for entry in outputs
    ):
        raise _bad(f"`outputs` should be a list of objects with a name: {', '.join(OUTPUTS)}.")
    own = {entry["name"]: entry.get("parameters") for entry in outputs}
    return {
        name: bool(mine.get("binary_data", binary)) if isinstance(mine, dict) else binary
        for name, mine in own.items()
    }
