"""The Open Inference Protocol (version 2, REST) for the raw model, so that clients written for
Triton or KServe work.

The tensors are those of the exported file: `images` uint8 (N, size, size, 3) in, `probabilities`,
`ood` and `heatmap` out. They travel as JSON, or behind it as bytes with the binary tensor data
extension. Source: github.com/kserve/open-inference-protocol, and docs/protocol of
github.com/triton-inference-server/server.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
JSON_BYTES = 64 * 1024  # of a request without the numbers of its tensor
# of a number: `255, ` as Python's json writes it, and its share of the brackets of nested lists
NUMBER_BYTES = 6
# the last two are what curl and fetch say where nobody says anything
TYPES = (
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "text/plain",
)
_BLANKS = b" \t\r\n"
_NUMBERS = re.compile(rb'"data"\s*:\s*(\[[0-9\[\], \t\r\n]*\])')
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


def body_limit(size: int) -> int:
    """The most bytes of a request: the text of as many pictures of `size` px as it may hold."""
    return JSON_BYTES + NUMBER_BYTES * MOST_PICTURES * size * size * 3


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises RequestError (415) where the body is compressed, or of a type that holds no JSON."""
    coding = (headers.get("content-encoding") or "identity").strip().lower()
    if coding != "identity":
        raise RequestError(
            415,
            "encoding",
            f"The body is encoded as {coding[:20]!r}, which is not understood. Send it as it is.",
            {"accept-encoding": "identity"},
        )
    kind = (headers.get("content-type") or TYPES[0]).split(";")[0].strip().lower()
    if kind not in TYPES:
        raise RequestError(
            415,
            "content_type",
            f"The body is of type {kind[:40]!r}. Send JSON as application/json, or with the "
            f"bytes of a tensor behind it as application/octet-stream.",
        )


def routes(predictor: Predictor, ready: Callable[[], bool], infer: Endpoint) -> list[Route]:
    """The addresses below /v2.

    Args:
        predictor: the model, which is called by the bundle's name.
        ready: whether requests are taken.
        infer: answers POST .../infer.
    """
    name, version = predictor.bundle.name, predictor.bundle.version

    def tell(told: Mapping[str, Any], state: bool = False) -> Endpoint:
        async def answer(_: Request) -> Response:
            if not state:
                return JSONResponse(told)
            if ready():
                return JSONResponse({**told, "ready": True})
            return JSONResponse({**told, "ready": False, "error": "The server is stopping."}, 503)

        return answer

    server = {"name": "foliar", "version": version, "extensions": ["binary_tensor_data"]}
    found = [
        Route("/v2", tell(server)),
        Route("/v2/health/live", tell({"live": True})),
        Route("/v2/health/ready", tell({}, state=True)),
    ]
    for base in addresses(predictor):
        found += [
            Route(base, tell(describe(predictor))),
            Route(f"{base}/ready", tell({"name": name}, state=True)),
            Route(f"{base}/infer", infer, methods=["POST"]),
        ]
    return found


def addresses(predictor: Predictor) -> list[str]:
    """The two addresses of the model; its name may hold slashes."""
    base = f"/v2/models/{predictor.bundle.name}"
    return [base, f"{base}/versions/{predictor.bundle.version}"]


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

    id: str | None
    wanted: Mapping[str, bool]
    outputs: Future[Outputs]


def read_request(predictor: Predictor, body: bytes, headers: Mapping[str, str]) -> Asked:
    """Read the body of an infer request, JSON with perhaps the bytes of a tensor behind it, and
    give its pictures to the model.

    Raises RequestError (400) where it is no request that this model can answer.
    """
    length = headers.get(HEADER_LENGTH, str(len(body)))
    if not re.fullmatch("[0-9]{1,11}", length) or int(length) > len(body):
        raise _bad(
            f"{HEADER_LENGTH} should be the number of bytes of JSON at the beginning of the body."
        )
    asked, numbers = _read_json(body[: int(length)])
    batch = _images(asked, numbers, body[int(length) :], predictor.bundle.size)
    return Asked(asked.get("id"), _outputs(asked), predictor.submit(batch))


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
    if asked.id is not None:
        answer["id"] = asked.id
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


def _read_json(text: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a request into its JSON, with null in place of the tensor's numbers, and their text.

    Numbers are counted before they are parsed: 7 MB of `[]` would become 165 MB of lists.
    """
    numbers = b""
    if found := _NUMBERS.search(text):  # a key of that name has no list elsewhere in the protocol
        numbers = found[1]
        text = text[: found.start(1)] + b"null" + text[found.end(1) :]
    if len(text) > JSON_BYTES:
        raise _bad(
            f"The request has {len(text)} bytes of JSON beside the numbers of `data`; at most "
            f"{JSON_BYTES} are read. `data` should be whole numbers, flat or nested as the shape "
            f"says."
        )
    try:
        asked = json.loads(text, parse_constant=int)  # NaN is no JSON, and no int either
    except (ValueError, RecursionError):
        raise _bad("The request is no JSON.") from None
    if not isinstance(asked, dict):
        raise _bad("The request should be a JSON object with `inputs`.")
    if not isinstance(asked.get("id", ""), str):
        raise _bad("`id` should be a string.")
    return asked, numbers


def _images(asked: Mapping[str, Any], numbers: bytes, tail: bytes, size: int) -> np.ndarray:
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
    told = _parameter(tensor, "binary_data_size", int)
    if told is None and not tail:
        if tensor.get("data", "") is not None or (values := _values(numbers, shape)) is None:
            raise _bad(
                f"`data` should be {count} whole numbers from 0 to 255, flat or nested as the "
                f"shape says."
            )
        return values
    if told != count or len(tail) != count or "data" in tensor:
        raise _bad(
            f"The shape needs {count} bytes behind the JSON, no `data`, and `binary_data_size` "
            f"{count}; it is {told}, and {len(tail)} bytes are there."
        )
    return np.frombuffer(tail, np.uint8).reshape(shape)


def _values(text: bytes, shape: Sequence[int]) -> np.ndarray | None:
    """The numbers of a JSON array, uint8 of that shape, or None where they do not fit.

    Commas and brackets are compared as text first, so that what is parsed has the right size. Each
    step is a pass in C over the text: none keeps the event loop waiting for long.
    """
    marked = text.translate(_DIGITS)
    digits = marked.count(b"0")
    for number in (b"000", b"00", b"0"):  # longer ones become several marks, which is rejected
        marked = marked.replace(number, b"n")
    nested = b"n"
    for side in reversed(shape):
        nested = b"[%b]" % b",".join([nested] * side)
    flat = b"[%b]" % nested.translate(None, b"[]")
    if marked.translate(None, _BLANKS) not in (flat, nested):
        return None
    values = np.fromstring(text.translate(None, b"[]" + _BLANKS), np.int16, sep=",")
    # with a leading zero, which JSON does not have, there are more digits than the values need
    if values.max() > 255 or digits != values.size + (values > 9).sum() + (values > 99).sum():
        return None
    return values.astype(np.uint8).reshape(shape)


def _parameter(owner: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _bad("`parameters` should be an object.")
    if name in parameters and type(parameters[name]) is not kind:
        words = {bool: "true or false", int: "a whole number"}
        raise _bad(f"The parameter `{name}` should be {words[kind]}.")
    return parameters.get(name, default)


def _outputs(asked: Mapping[str, Any]) -> dict[str, bool]:
    binary = _parameter(asked, "binary_data_output", bool, False)
    outputs = asked.get("outputs", [])
    if (
        not isinstance(outputs, list)
        or not all(isinstance(row, dict) and row.get("name") in OUTPUTS for row in outputs)
        or len({row["name"] for row in outputs}) < len(outputs)
    ):
        raise _bad(
            f"`outputs` should be a list of objects with a name, each once: {', '.join(OUTPUTS)}."
        )
    if not outputs:
        return dict.fromkeys(OUTPUTS, binary)
    return {row["name"]: _parameter(row, "binary_data", bool, binary) for row in outputs}
