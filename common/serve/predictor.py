"""The exports/ folder: bundle.json, `Predictor`, which runs its models with ONNX Runtime, and the
settings of the light model. 03 checks its exports with it, 04 serves with it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from common.classes import ClassTree
from common.console import Unusable
from common.decide import Rejection, Rollup, rejection_from_json, rollups_from_json
from common.files import file_sha256, write_text
from common.serve.photos import Photo, read_at_size

FORMAT = 4
FILE_NAME = "bundle.json"
OUTPUTS = ("probabilities", "ood", "heatmap")
# of batches: a GPU prepares for each size anew, so there are few; a batch is filled up to the next
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)
_PREPROCESSING = {
    "resize": "pillow-bilinear-antialias",
    "layout": "NHWC",
    "dtype": "uint8",
    "color": "RGB",
}
_MEND = "Export with: python 03_export.py"
# exports/browser/, the light model of the web page
LIGHT_FORMAT = 2
MODEL, HEADS, SETTINGS = "light.onnx", "heads.bin", "light.json"
_MEND_LIGHT = "Export with: python 03_export.py --browser"


class BundleError(Unusable):
    """An exports folder or a model that cannot be used; the message says what, where and what to
    do.
    """


@dataclass(frozen=True)
class ModelCard:
    """What bundle.json says about one model file.

    temperature: {"species": one, "disease": one per species}; rejection, rollup: None where none
    was fitted; rollups: by the name of the precision they were fitted for, such as "0.95", of which
    `rollup` is the default.
    """

    file: str
    sha256: str
    size_mb: float
    precision: str
    temperature: Mapping[str, Any]
    rejection: Rejection | None
    rollup: Rollup | None
    rollups: Mapping[str, Rollup]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Bundle:
    """The contents of bundle.json, checked.

    size: the models' pixels per side; long_side: what photos are shrunk to before that (the long
    side at which they were organized), or None; raw: the whole of bundle.json as plain values, with
    what this class does not name.
    """

    folder: Path
    name: str
    version: str
    created: str
    recipe: str
    backbone: str
    tree: ClassTree
    size: int
    long_side: int | None
    scores: tuple[str, ...]
    default_model: str
    models: Mapping[str, ModelCard]
    metrics: Mapping[str, Any]
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Outputs:
    """A batch's probabilities float32 (N, C), rows sum to 1; ood float32 (N, K); heatmap float32
    (N, h, w), 0 to 1.
    """

    probabilities: np.ndarray
    ood: np.ndarray
    heatmap: np.ndarray


def write_bundle(folder: Path | str, bundle: Mapping[str, Any]) -> Path:
    """Check and write bundle.json, atomically: to a temporary file that is flushed and renamed.

    folder already holds the model files; bundle has the plain values of the contract. Returns the
    path written. Raises BundleError where a key is missing or wrong, a model file is absent or has
    another hash, or a number is NaN or infinite; OSError where the disk fails.
    """
    folder = Path(folder)
    try:
        text = json.dumps(bundle, indent=1, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise BundleError(f"{folder / FILE_NAME} cannot be written: {error}") from None
    for card in _parse(folder, json.loads(text)).models.values():
        _verify(folder, card)
    write_text(folder / FILE_NAME, text + "\n")
    return folder / FILE_NAME


def read_bundle(folder: Path | str) -> Bundle:
    """Read and check bundle.json and the hash of the default model.

    Raises BundleError where the folder or the file is missing, is of another format, lacks a key or
    holds something else than expected, or the default model is not the file that was exported.
    """
    folder = Path(folder)
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise BundleError(f"there is no exports folder at {folder}. {_MEND}")
    if not path.is_file():
        raise BundleError(f"{folder} holds no {FILE_NAME}, so it is no exports folder. {_MEND}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is damaged ({error}). {_MEND}") from None
    bundle = _parse(folder, data)
    _verify(folder, bundle.models[bundle.default_model])
    return bundle


def open_session(
    path: Path | str,
    threads: int = 1,
    providers: Sequence[str] | None = None,
    options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """Make the one kind of ONNX Runtime session this project uses; several threads may run it at
    once.

    path is an .onnx file, threads those of one run, providers ONNX Runtime's names in order of
    preference, with `options` for the first (None: the CPU). Raises BundleError where a provider is
    not installed or the file is no model that ONNX Runtime loads.
    """
    available = onnxruntime.get_available_providers()
    names = list(providers or ["CPUExecutionProvider"])
    if missing := [name for name in names if name not in available]:
        raise BundleError(
            f"ONNX Runtime here has no {', '.join(missing)}. It has: {', '.join(available)}"
        )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # warnings about the graph concern whoever exports it
    # idle threads must not burn cores
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # of use where a provider other than the CPU's leaves nodes to it
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        return onnxruntime.InferenceSession(
            str(path), settings, names, [dict(options or {}), *({} for _ in names[1:])]
        )
    except Exception as error:  # the runtime's exceptions share no base class of their own
        raise BundleError(f"ONNX Runtime cannot load {path}: {str(error)[:300]}") from None


class Predictor:
    """A model of an exports folder, ready to run; `run` may be called from several threads at once.

    model is a file name listed in bundle.json (None: its default); threads, providers and options
    as for `open_session`. `submit` has pictures run where others may be waiting too: here it runs
    them at once, on a GPU `providers` puts `Batcher.submit` in its place. Raises BundleError as
    `read_bundle` and `open_session` do, and where the model is not listed, is not the file that was
    exported, or does not keep the contract of inputs and outputs.
    """

    def __init__(
        self,
        folder: Path | str,
        model: str | None = None,
        threads: int = 1,
        providers: Sequence[str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.submit: Callable[[np.ndarray], Future[Outputs]] = self._run_now
        self.bundle = read_bundle(folder)
        name = model or self.bundle.default_model
        if name not in self.bundle.models:
            raise BundleError(
                f"{folder} has no model '{name}'. It has: {', '.join(self.bundle.models)}"
            )
        self.card = self.bundle.models[name]
        if name != self.bundle.default_model:
            _verify(self.bundle.folder, self.card)
        self.session = open_session(self.bundle.folder / name, threads, providers, options)
        self._check_signature()
        size = self.bundle.size
        outputs = self.run(np.zeros((1, size, size, 3), np.uint8))  # also warms it up
        if abs((total := float(outputs.probabilities.sum())) - 1.0) > 1e-3:
            raise BundleError(
                f"{self.card.file} breaks the contract: its probabilities sum to {total:.4g}, not 1"
            )

    def run(self, batch: np.ndarray) -> Outputs:
        """Run a batch of pictures, uint8 (N, size, size, 3) RGB with N >= 1.

        Raises ValueError where the batch has another shape or type, BundleError where the model's
        outputs have other shapes than the bundle says, or are NaN.
        """
        size = self.bundle.size
        if (
            batch.dtype != np.uint8
            or batch.ndim != 4
            or batch.shape[1:] != (size, size, 3)
            or len(batch) == 0
        ):
            raise ValueError(
                f"{self.card.file} takes pictures as uint8 (N, {size}, {size}, 3), not as "
                f"{batch.dtype} {batch.shape}"
            )
        outputs = Outputs(*self.session.run(list(OUTPUTS), {"images": batch}))
        for key, columns in (
            ("probabilities", self.bundle.tree.num_classes),
            ("ood", len(self.bundle.scores)),
        ):
            if (shape := getattr(outputs, key).shape) != (len(batch), columns):
                raise BundleError(
                    f"{self.card.file} gives {key} of shape {shape}, but by {FILE_NAME} it should "
                    f"be {(len(batch), columns)}. {_MEND}"
                )
        if outputs.heatmap.ndim != 3 or len(outputs.heatmap) != len(batch):
            raise BundleError(
                f"{self.card.file} gives a heatmap of shape {outputs.heatmap.shape}, not (N, h, w)"
            )
        if not (np.isfinite(outputs.probabilities).all() and np.isfinite(outputs.heatmap).all()):
            raise BundleError(f"{self.card.file} gave NaN or infinite values; use another model")
        return outputs

    def _run_now(self, batch: np.ndarray) -> "Future[Outputs]":
        done: Future[Outputs] = Future()
        try:
            done.set_result(self.run(batch))
        except Exception as error:  # as a batch would bring it
            done.set_exception(error)
        return done

    def read(
        self, source: bytes | Path | str, middle: float | None = None, **limits: int | None
    ) -> Photo:
        """Read a picture for this model; arguments and errors as for `photos.read_at_size`."""
        bundle = self.bundle
        return read_at_size(source, bundle.size, middle, long_side=bundle.long_side, **limits)

    def _check_signature(self) -> None:
        size = self.bundle.size
        inputs = [(node.name, node.type, node.shape) for node in self.session.get_inputs()]
        outputs = {node.name: node.type for node in self.session.get_outputs()}
        wrong = [
            f"`{name}` is {outputs.get(name, 'missing')}"
            for name in OUTPUTS
            if outputs.get(name) != "tensor(float)"
        ]
        fits = [
            name == "images"
            and kind == "tensor(uint8)"
            and len(shape) == 4
            and not isinstance(shape[0], int)
            and all(
                have == want or not isinstance(have, int)
                for have, want in zip(shape[1:], (size, size, 3), strict=True)
            )
            for name, kind, shape in inputs
        ]
        if fits != [True]:
            told = ", ".join(f"{name}: {kind} {shape}" for name, kind, shape in inputs)
            wrong.append(f"its inputs are {told}")
        if wrong:
            raise BundleError(
                f"{self.bundle.folder / self.card.file} breaks the contract: {'; '.join(wrong)}. "
                f"It should take `images` as tensor(uint8) ['N', {size}, {size}, 3], N free, and "
                f"give {', '.join(OUTPUTS)} as tensor(float). {_MEND}"
            )


def _parse(folder: Path, data: Any) -> Bundle:
    path = folder / FILE_NAME
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise BundleError(
            f"{path} has format {found!r}, and this program reads format {FORMAT}: export again "
            f"with python 03_export.py"
        )
    try:
        preprocessing = data["preprocessing"]
        if wrong := [key for key in _PREPROCESSING if preprocessing[key] != _PREPROCESSING[key]]:
            raise ValueError(
                f"preprocessing {wrong[0]} is {preprocessing[wrong[0]]!r}; only "
                f"{_PREPROCESSING[wrong[0]]!r} is known"
            )
        scores = tuple(str(score) for score in data["scores"])
        tree = ClassTree.from_json(data["tree"])
        models = {
            file: _parse_card(file, card, scores, tree) for file, card in data["models"].items()
        }
        if data["default_model"] not in models:
            raise ValueError(
                f"the default model '{data['default_model']}' is not among "
                f"{', '.join(models) or 'none'}"
            )
        return Bundle(
            folder=folder,
            name=str(data["name"]),
            version=str(data["version"]),
            created=str(data["created"]),
            recipe=str(data["recipe"]),
            backbone=str(data["backbone"]),
            tree=tree,
            size=_pixels(preprocessing["size"], 1),
            long_side=_pixels(preprocessing.get("long_side") or 0, 0) or None,
            scores=scores,
            default_model=data["default_model"],
            models=models,
            metrics=dict(data["metrics"]),
            raw=data,
        )
    except KeyError as error:
        raise BundleError(f"{path} lacks the key {error}. {_MEND}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is not as it should be: {error}. {_MEND}") from None


def _parse_card(
    file: str, card: Mapping[str, Any], scores: tuple[str, ...], tree: ClassTree
) -> ModelCard:
    if Path(file).name != file or "\\" in file or not file.endswith(".onnx"):
        raise ValueError(f"'{file}' is not the plain name of an .onnx file")
    try:
        temperature = {
            "species": float(card["temperature"]["species"]),
            "disease": [float(t) for t in card["temperature"]["disease"]],
        }
        if len(temperature["disease"]) != tree.num_species or not all(
            t > 0 for t in (temperature["species"], *temperature["disease"])
        ):
            raise ValueError(
                "its temperatures must be positive: one for species, and for diseases one per "
                "species"
            )
        rollups = rollups_from_json(card["rollup"])
        return ModelCard(
            file,
            str(card["sha256"]),
            float(card["size_mb"]),
            str(card["precision"]),
            temperature,
            rejection_from_json(card["rejection"], scores),
            next(iter(rollups.values()), None),
            rollups,
            dict(card["metrics"]),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"model '{file}': {error}") from None


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Read and check exports/browser/light.json.

    Raises BundleError where a file is missing, of another format or damaged.
    """
    for name in (SETTINGS, MODEL):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} holds no {name}. {_MEND_LIGHT}")
    path = folder / SETTINGS
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != LIGHT_FORMAT:
            raise BundleError(
                f"{path} has format {data['format']!r}, and this program reads format "
                f"{LIGHT_FORMAT}: export again with python 03_export.py --browser"
            )
        species, counts, offsets = data["species"], data["diseases"], data["heads"]["offsets"]
        if not len(species) == len(counts) == len(offsets) - 1:
            raise ValueError(
                f"{len(species)} species, {len(counts)} counts of diseases, {len(offsets)} offsets"
            )
        if data["heatmap"] not in ("exact", "activity"):
            raise ValueError(f"its heatmap is {data['heatmap']!r}")
        wanted = "model preprocessing scores temperature rejection rollup deferral"
        return data | {key: data[key] for key in wanted.split()}
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not as it should be ({error}). {_MEND_LIGHT}") from None


def _pixels(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 8192:
        raise ValueError(f"{value!r} is no picture size")
    return value


def _verify(folder: Path, card: ModelCard) -> None:
    path = folder / card.file
    if not path.is_file():
        raise BundleError(f"{path} is missing, though {FILE_NAME} lists it. {_MEND}")
    if (found := file_sha256(path)) != card.sha256:
        raise BundleError(
            f"{path} is not the file that was exported: its SHA-256 begins with {found[:12]}, and "
            f"{FILE_NAME} says {card.sha256[:12]}. Copy the whole folder again, or: {_MEND}"
        )
