"""Features for finding near-duplicates that a perceptual hash misses: the pooled output of a
pretrained timm backbone, kept on disk so that a killed run continues.
"""

import hashlib
import json
import os
import socket
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub  # comes with timm
import numpy as np
import timm
import torch
from torch import Tensor, nn

from common import images
from common.console import fail, progress, say

BLOCK = 1024  # pictures that are recorded as done together
# Least cosine of near-duplicates, by the number of averaged views. Measured with MobileNetV2
# (ImageNet) on 4,007 leaf photos of 68 classes (8 views: 3,216): no pair at or above it joins two
# classes, and by eye most show one leaf twice. Another network may want another value.
THRESHOLDS = {1: 0.93, 2: 0.94, 8: 0.96}
AHEAD = 3  # batches decoded before the network asks for them
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# region the network


@dataclass(frozen=True)
class Backbone:
    """Which network computes the features.

    Attributes:
        name: timm model name.
        weights: `imagenet` (timm's pretrained ones, downloaded or cached) or a file: timm state
            dict or Foliar checkpoint.
        image_size: side of the input, px.
        arguments: further arguments of timm.create_model, and `conv_head=False`, which removes the
            convolution that MobileNetV3 and V4 have behind the pooling.
        mean, std: of the input per channel, 0..1; None takes those of timm's pretrained weights.
    """

    name: str = "mobilenetv2_100"
    weights: str = "imagenet"
    image_size: int = 224
    arguments: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def build(self, pretrained: bool) -> nn.Module:
        """Build the network without its classifier. Raises what timm raises."""
        arguments = {"num_classes": 0, "pretrained": pretrained, **self.arguments}
        conv_head = arguments.pop("conv_head", True)
        try:
            model = timm.create_model(self.name, img_size=self.image_size, **arguments)
        except TypeError as error:  # convolutional networks take any size and no such argument
            if "img_size" not in str(error):
                raise
            model = timm.create_model(self.name, **arguments)
        for part in () if conv_head else ("conv_head", "norm_head", "act2"):
            setattr(model, part, nn.Identity())
        return model.eval().requires_grad_(False)


class Embedder:
    """A pretrained backbone on its device: pixels to unit vectors.

    Attributes:
        size: side of the pictures it takes, px.
        dim: length of a feature.
        views: how many orientations of a picture are averaged: 1, 2 (with its mirror image) or 8
            (all turns and flips, so that a turned copy has the same feature).
        device, dtype: where it computes, and the type of autocast; float32 turns autocast off.
        identity: 64 hex digits that change with anything that changes a feature: network, weights,
            pixels, views, precision.
    """

    def __init__(self, backbone: Backbone, model: nn.Module, precision: str, views: int) -> None:
        if views not in THRESHOLDS:
            raise ValueError(f"views is {views}; 1, 2 or 8")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = _dtype(self.device, precision)
        self.size, self.views = backbone.image_size, views
        mean, std = (
            given or model.pretrained_cfg[name]
            for name, given in (("mean", backbone.mean), ("std", backbone.std))
        )
        digest = hashlib.sha256()
        for key, value in sorted(model.state_dict().items()):
            digest.update(key.encode() + value.contiguous().cpu().numpy().tobytes())
        settings = {
            **asdict(backbone),
            "weights": digest.hexdigest(),
            "mean": mean,
            "std": std,
            "views": views,
            "computed": f"{self.device.type} {self.dtype}",
        }
        self.identity = hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=str).encode()
        ).hexdigest()
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=self.device) * 255
            for values in (mean, std)
        )
        self._model = model.to(self.device, memory_format=torch.channels_last)
        self.dim = len(self.embed([np.zeros((self.size, self.size, 3), np.uint8)])[0])

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Embed a batch: uint8 (N, size, size, 3) RGB -> float16 (N, dim) of length 1 (0 where a
        feature is all zero).
        """
        batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        views = (self._view(view) for view in _orientations(batch, self.views))
        return nn.functional.normalize(sum(views), dim=1).to(torch.float16).cpu().numpy()

    def _view(self, batch: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            inputs = ((batch.float() - self._mean) / self._std).permute(0, 3, 1, 2)
            maps = self._model.forward_features(inputs)
            feature = self._model.forward_head(maps, pre_logits=True)
        return nn.functional.normalize(feature.float(), dim=1)

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embed pictures of any size: uint8 (height, width, 3) RGB each -> float16 (N, dim)."""
        return self(np.stack([images.resize_to_model(rgb, self.size) for rgb in pictures]))


def _orientations(batch: Tensor, views: int) -> Iterator[Tensor]:
    for turns in range(4 if views == 8 else 1):
        turned = torch.rot90(batch, turns, dims=(1, 2))
        yield turned
        if views > 1:
            yield turned.flip(2)


def _dtype(device: torch.device, precision: str) -> torch.dtype:
    """Type of autocast; `auto` is bf16 where the hardware multiplies it, else fp16 on a GPU and
    fp32 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        fail("--precision fp16 needs a GPU. On a CPU use bf16 or fp32.")
    if precision != "auto":
        return _DTYPES[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = any(getattr(torch.cpu, name, bool)() for name in checks)
    return torch.bfloat16 if fast else torch.float32


def load_embedder(backbone: Backbone, precision: str = "auto", views: int = 2) -> Embedder:
    """Build the network with pretrained weights; random ones would find likeness where there is
    none. It runs on the GPU where there is one.

    Args:
        backbone: the network; its `weights` must be pretrained ones.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        views: see `Embedder`; each costs a forward pass per picture.

    Raises:
        SystemExit: for an unknown network, one that cannot be built at that size, or weights that
            cannot be had.
    """
    if backbone.weights in ("none", "random", ""):
        fail(
            "--embed compares features of a trained network; with random weights they mean "
            "nothing. Give --weights imagenet or --weights FILE, or leave --embed out."
        )
    size = backbone.image_size
    try:  # an unknown name is a mistake, not a missing download
        model = backbone.build(pretrained=False)
        with torch.inference_mode():
            model(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        fail(
            f"--backbone {backbone.name} cannot be built at {size} px: {_first_line(error)}. "
            'Names: python -c "import timm; print(timm.list_models())"'
        )
    if backbone.weights not in ("imagenet", "auto"):
        _load_weights(model, backbone)
        return Embedder(backbone, model, precision, views)
    _skip_unreachable_hub()
    try:
        model = backbone.build(pretrained=True)
    except Exception as error:  # hub clients raise anything from OSError to their own classes
        fail(
            f"--embed needs pretrained weights, and timm's of {backbone.name} cannot be had "
            f"({type(error).__name__}: {_first_line(error)}). Connect to the internet once, or "
            "give a file with --weights FILE; without --embed the perceptual hash still finds "
            "copies that were re-encoded, resized, flipped or turned."
        )
    return Embedder(backbone, model, precision, views)


def _load_weights(model: nn.Module, backbone: Backbone) -> None:
    """Load a timm state dict, or the backbone of a Foliar checkpoint."""
    path = Path(backbone.weights)
    if not path.is_file():
        fail(f"--weights: there is no file {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            state = state.get(key, state)
        state = {key.removeprefix("backbone."): value for key, value in state.items()}
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        fail(f"--weights {path} is damaged, or no file of weights ({_first_line(error)}).")
    wanted = model.state_dict()
    odd = [
        key
        for key, value in wanted.items()
        if getattr(state.get(key), "shape", None) != value.shape
    ]
    if odd:
        fail(
            f"--weights {path} does not fit backbone {backbone.name}: {len(odd)} of {len(wanted)} "
            f"tensors are missing or of another shape (first: {odd[0]}). Give the backbone that "
            "these weights belong to with --backbone."
        )
    model.load_state_dict({key: state[key] for key in wanted})
    say(f"backbone weights: {path.name} ({len(wanted)} tensors)")


def _skip_unreachable_hub() -> None:
    """Let timm use its cache alone where the model hub cannot be reached: otherwise it retries for
    two minutes before it says so. Behind a proxy nothing is changed.
    """
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    if urllib.request.getproxies():
        return
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError:
        huggingface_hub.constants.HF_HUB_OFFLINE = True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


# endregion

# region features of all pictures


def features(
    read: Callable[[int], bytes],
    keys: np.ndarray,
    embedder: Embedder,
    store: Path,
    *,
    batch: int | None = None,
    workers: int = 2,
) -> np.ndarray:
    """Embed all pictures, in blocks that survive a kill; what an earlier run finished is not done
    again.

    `store/features.f16` holds the rows; `store/features.done` one SHA-256 per block, over the
    embedder's identity and the block's keys, so that a block made from other pictures or another
    network is made anew. A block is written before it is recorded, and its batches never depend on
    where a run began: the result of a killed run is that of one never stopped.

    Args:
        read: picture number -> its file's bytes; called from several threads.
        keys: uint8 (count, width), the content hash of each picture.
        embedder: from `load_embedder`.
        store: folder for the two files.
        batch: pictures per forward pass; None: 16 on a CPU, 256 on a GPU.
        workers: decoding threads.

    Returns:
        float16 (count, embedder.dim), rows of length 1, mapped read-only from the file.

    Raises:
        SystemExit: where a picture cannot be read any more, or a feature is not a number.
        OSError: where the store cannot be written (a full disk).
    """
    count, width = len(keys), 2 * embedder.dim
    if not count:
        return np.zeros((0, embedder.dim), np.float16)
    store.mkdir(parents=True, exist_ok=True)
    rows_file, done_file = store / "features.f16", store / "features.done"
    starts = range(0, count, BLOCK)
    wanted = [
        hashlib.sha256(
            embedder.identity.encode() + np.ascontiguousarray(keys[s : s + BLOCK]).tobytes()
        ).digest()
        for s in starts
    ]
    done = _still_good(rows_file, done_file, wanted, count, width)
    todo = [s for s, good in zip(starts, done, strict=True) if not good]
    if len(todo) < len(starts):
        ready = count - sum(min(BLOCK, count - s) for s in todo)
        say(f"features: {ready:,} of {count:,} pictures are done already")
    batch = batch or (16 if embedder.device.type == "cpu" else 256)
    spans = [
        (a, min(a + batch, s + BLOCK, count))
        for s in todo
        for a in range(s, min(s + BLOCK, count), batch)
    ]
    with (
        rows_file.open("r+b") as rows,
        done_file.open("r+b") as record,
        progress((), total=count, desc="features", unit="picture") as bar,
    ):
        bar.update(count - sum(b - a for a, b in spans))
        for (a, b), pixels in zip(
            spans, _decoded(read, spans, embedder.size, workers), strict=True
        ):
            made = embedder(pixels)
            if not np.isfinite(made).all():
                fail(
                    f"a feature of pictures {a} to {b - 1} is not a number: the network "
                    f"overflows. Run again with --precision fp32."
                )
            rows.seek(a * width)
            rows.write(made.tobytes())
            bar.update(b - a)
            if b == count or b % BLOCK == 0:
                _flush(rows)
                record.seek((b - 1) // BLOCK * 32)
                record.write(wanted[(b - 1) // BLOCK])
                _flush(record)
    return np.memmap(rows_file, np.float16, "r", shape=(count, embedder.dim))


def _still_good(
    rows_file: Path, done_file: Path, wanted: list[bytes], count: int, width: int
) -> list[bool]:
    """Say which blocks are done, strike out all others in the record, and give both files their
    size.
    """
    have = done_file.read_bytes() if done_file.is_file() else b""
    size = rows_file.stat().st_size if rows_file.is_file() else 0
    done = [
        have[32 * i : 32 * i + 32] == digest and size >= min((i + 1) * BLOCK, count) * width
        for i, digest in enumerate(wanted)
    ]
    # a block about to be overwritten must not keep the record of what it held: a third run might
    # want just that
    with open(done_file, "r+b" if done_file.is_file() else "wb") as file:
        file.write(
            b"".join(
                digest if good else bytes(32) for digest, good in zip(wanted, done, strict=True)
            )
        )
        file.truncate(32 * len(wanted))
        _flush(file)
    with open(rows_file, "r+b" if rows_file.is_file() else "wb") as file:
        file.truncate(count * width)
    return done


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _decoded(
    read: Callable[[int], bytes], spans: list[tuple[int, int]], size: int, workers: int
) -> Iterator[np.ndarray]:
    """Yield the pixels of each span, uint8 (n, size, size, 3), decoded in threads a few spans ahead
    (Pillow frees the lock).
    """

    def pixels(number: int) -> np.ndarray:
        return images.resize_to_model(images.read_rgb(read(number), min_side=1), size)

    def collect(batch: dict[int, Future[np.ndarray]]) -> np.ndarray:
        try:
            return np.stack([batch[number].result() for number in batch])
        except (images.ImageError, OSError) as error:
            number = next(number for number, one in batch.items() if one.exception())
            fail(
                f"stored picture {number} cannot be read any more ({error}): the store was "
                "changed, or the disk is failing. Run again with --fresh."
            )

    pool, waiting = ThreadPoolExecutor(max(1, workers)), deque()
    try:
        for span in spans:
            waiting.append({number: pool.submit(pixels, number) for number in range(*span)})
            if len(waiting) > AHEAD:
                yield collect(waiting.popleft())
        while waiting:
            yield collect(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


# endregion
