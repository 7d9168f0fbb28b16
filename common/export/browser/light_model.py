"""exports/browser/: the light model as a page runs it, and `LightModel`, which answers in Python
exactly as the page does.

light.onnx takes `images` uint8 (N, size, size, 3) RGB and gives
  species  float32 (N, S)        P(species), calibrated
  feature  float32 (N, F)        what the disease heads see
  ood      float32 (N, scores)   out-of-distribution scores, larger = farther from train
  map      float32 (N, h, w, F)  the last feature map, or (N, h, w, 1) where the heatmap can only
  say how active each place is
heads.bin holds the disease heads (common/export/browser/heads_file.py), light.json all the rest.

An answer: P(class) = P(species) x P(disease given species), by the heads of the best species first.
A species whose probability is not above the best class found so far cannot hold a better one, so
that only the heads above it are fetched: nearly always one.
"""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.classes import ClassTree
from common.export.browser import deferral, heads_file
from common.export.browser.heads_file import Fetch, Head
from common.files import file_sha256
from common.serve.predictor import (
    HEADS,
    MODEL,
    SETTINGS,
    BundleError,
    open_session,
    read_settings,
)

OUTPUTS = ("species", "feature", "ood", "map")
_MEND = "Export with: python 03_export.py --browser"


@dataclass(frozen=True)
class LightAnswer:
    """One picture's numbers, as the page has them.

    class_idx: packed index of the best class; probabilities: float64 (classes,), exact for species
        whose
    head was fetched and evenly spread within the others, so that sums per species and the best
    class are right; ood: float32 (scores,); heatmap: float32 (h, w), 0..1; fetched: species whose
    heads were needed; ask: P(the server is right and this is not); asks: whether to send the
    photo.
    """

    class_idx: int
    probabilities: np.ndarray
    ood: np.ndarray
    heatmap: np.ndarray
    fetched: tuple[int, ...]
    ask: float | None
    asks: bool


class LightModel:
    """The files of exports/browser/, ready to answer; numpy and ONNX Runtime alone.

    folder holds light.onnx and light.json; fetch reads a byte range of heads.bin (None: the file
    beside them). Raises BundleError where a file is missing, is not the one that was exported or
    breaks the contract; heads_file.HeadsError as heads are fetched.
    """

    def __init__(self, folder: Path | str, threads: int = 1, fetch: Fetch | None = None) -> None:
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        if (found := file_sha256(self.folder / MODEL)) != self.settings["model"]["sha256"]:
            raise BundleError(
                f"{self.folder / MODEL} is not the file that was exported: its SHA-256 begins "
                f"with {found[:12]}. {_MEND}"
            )
        self.size, self.scores = (
            int(self.settings["preprocessing"]["size"]),
            tuple(self.settings["scores"]),
        )
        self.stamp, self.offsets = bytes.fromhex(found[:8]), list(self.settings["heads"]["offsets"])
        self.fetch = fetch or self._read
        rule = self.settings.get("deferral")
        self.rule = None if rule is None else deferral.from_json(rule)
        self.session = open_session(self.folder / MODEL, threads)
        self._heads: dict[int, Head] = {}

    def _read(self, start: int, stop: int) -> bytes:
        with open(self.folder / HEADS, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def head(self, species: int) -> Head:
        """Return a species' head; it is fetched once. Raises HeadsError where its record is not as
        it should be.
        """
        if species not in self._heads:
            record = self.fetch(self.offsets[species], self.offsets[species + 1])
            head = heads_file.unpack(record, self.stamp)
            if len(head.names) != self.settings["diseases"][species]:
                raise heads_file.HeadsError(
                    f"the record of {self.settings['species'][species]} has {len(head.names)} "
                    f"diseases"
                )
            self._heads[species] = head
        return self._heads[species]

    @cached_property
    def tree(self) -> ClassTree:
        """The class tree, for which the names of all heads are fetched."""
        return ClassTree(
            tuple(self.settings["species"]),
            tuple(self.head(s).names for s in range(len(self.settings["species"]))),
        )

    def run(self, pictures: np.ndarray) -> list[np.ndarray]:
        """Run the model on uint8 (N, size, size, 3) RGB: species, feature, ood and map, as the
        module's docstring has them.
        """
        return self.session.run(list(OUTPUTS), {"images": np.ascontiguousarray(pictures)})

    def outputs(self, pictures: np.ndarray) -> list[np.ndarray]:
        """Pictures as for `run` -> joint probabilities float32 (N, classes) and scores float32 (N,
        K), by all heads, as the large models.
        """
        species, feature, ood, _ = self.run(pictures)
        joint = [
            species[:, s : s + 1] * self.head(s).probabilities(feature)
            for s in range(species.shape[1])
        ]
        return [np.concatenate(joint, axis=1), ood]

    def answer(self, picture: np.ndarray) -> LightAnswer:
        """Answer one picture uint8 (size, size, 3) as the page does: with as few heads as the best
        class needs.
        """
        species, feature, ood, feature_map = self.run(picture[None])
        species, counts = species[0].astype(np.float64), np.asarray(self.settings["diseases"])
        starts = np.concatenate([[0], np.cumsum(counts)])
        probabilities = np.repeat(species / counts, counts)
        best, class_idx, fetched = -1.0, 0, []
        for s in np.argsort(-species, kind="stable"):
            if species[s] <= best:
                break
            own = species[s] * self.head(int(s)).probabilities(feature)[0].astype(np.float64)
            probabilities[starts[s] : starts[s + 1]] = own
            fetched.append(int(s))
            if own.max() > best:
                best, class_idx = float(own.max()), int(starts[s] + own.argmax())
        ask, asks = None, False
        if self.rule is not None and "gen" in self.scores:
            gen = ood[:, self.scores.index("gen")]
            values = deferral.signals(probabilities[None], gen, self._shape)
            ask, asks = float(self.rule.score(*values)[0]), bool(self.rule.sends(*values)[0])
        heat = self.heatmap(feature_map[0], class_idx, starts)
        return LightAnswer(class_idx, probabilities, ood[0], heat, tuple(fetched), ask, asks)

    def heatmap(self, feature_map: np.ndarray, class_idx: int, starts: np.ndarray) -> np.ndarray:
        """Class activation of a class: feature map (h, w, F or 1), its packed index, first class of
        each species -> (h, w), 0..1.
        """
        heat = feature_map[..., 0]
        if self.settings["heatmap"] == "exact":
            s = int(np.searchsorted(starts, class_idx, side="right") - 1)
            head = self.head(s)
            heat = feature_map @ (head.species_row + head.rows[class_idx - starts[s]])
        low, high = heat.min(), heat.max()
        return (heat - low) / max(float(high - low), 1e-6)

    @cached_property
    def _shape(self) -> ClassTree:
        """A tree of the right shape without the names of diseases, which the rule needs none of."""
        return ClassTree(
            tuple(self.settings["species"]),
            tuple(tuple(map(str, range(n))) for n in self.settings["diseases"]),
        )


def wire_bytes(data: bytes) -> dict[str, int | None]:
    """Bytes as they are, by gzip 9, and by brotli 11 where that package is installed (None
    elsewhere).
    """
    try:
        import brotli
    except ImportError:
        brotli = None
    return {
        "raw": len(data),
        "gzip": len(gzip.compress(data, 9, mtime=0)),
        "brotli": len(brotli.compress(data)) if brotli else None,
    }


def first_answer(
    files: Mapping[str, Mapping[str, int | None]],
    sizes: np.ndarray,
    fetched: Sequence[tuple[int, ...]],
) -> dict[str, Any]:
    """Count the bytes before the first answer: model, settings and the heads that answers need
    (ranges travel uncompressed).

    Args:
        files: `wire_bytes` of light.onnx and light.json.
        sizes: int (S,), bytes of each species' record.
        fetched: for each of some answers, the species whose heads it needed; none: one of mean size
            is counted.
    """
    fetched = fetched or [(s,) for s in range(len(sizes))]
    heads = float(np.mean([sizes[list(one)].sum() for one in fetched]))
    model, settings = files[MODEL], files[SETTINGS]
    return {
        "heads_fetched": float(np.mean([len(one) for one in fetched])),
        "head_bytes": round(heads),
        "head_bytes_most": int(sizes.max()),
        **{
            way: None if model[way] is None else round(model[way] + settings[way] + heads)
            for way in ("raw", "gzip", "brotli")
        },
    }
