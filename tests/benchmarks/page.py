"""The page in headless Chromium: bytes and times to its answers, and its numbers against Python's.

  python tests/benchmarks/page.py --exports exports --photos data/organized/test

Needs Chromium, the light model in exports/browser, and the runtime that `run_all.sh` fetches. Each
figure stands beside what is asked of it; the exit code is 1 where one is missed. Cold starts are in
profiles of their own, which have kept nothing.
"""

import argparse
import base64
import gzip
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from chromium import Chromium, Page
from page_site import Site, serve

from common.console import fail, progress, say, table
from common.export.browser.light_model import LightModel
from common.images import SUFFIXES, read_rgb, resize_to_model
from common.serve.http import web_files

HELPERS = """(async () => {
  globalThis.blobOf = (encoded) => new Blob([Uint8Array.from(atob(encoded), (c) =>
    c.charCodeAt(0))], { type: 'image/jpeg' });
  globalThis.light = await import('/light.js');
  const result = document.getElementById('result');
  globalThis.timed = (blob, by) => new Promise((done) => {
    const given = new DataTransfer();
    given.items.add(new File([blob], 'photo.jpg', { type: blob.type }));
    const began = performance.now();
    new MutationObserver((_, self) => {
      if (result.dataset.by !== by) return;
      self.disconnect();
      requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
    }).observe(result, { attributes: true });
    document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: given, bubbles: true,
      cancelable: true }));
    document.getElementById('ask').click();
  });
})()"""


def text(data: bytes) -> str:
    """Bytes as the page takes them."""
    return base64.b64encode(data).decode()


def large(path: Path, long_side: int = 4000) -> bytes:
    """A photo of 12 megapixels made of a smaller one: enlarged, with a sensor's noise, as JPEG."""
    with Image.open(path) as image:
        rgb = np.array(
            image.convert("RGB").resize((long_side, long_side * 3 // 4), Image.Resampling.BICUBIC)
        )
    noise = np.random.default_rng(0).normal(0, 3, (long_side // 4, long_side))
    rgb = np.clip(rgb + np.tile(noise, (3, 1))[..., None], 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def cold(browser: Chromium, site: Site, photo: bytes, slower: int = 1) -> tuple[float, int, float]:
    """Open the page for the first time, its thread so many times slower, and answer a photo:
    seconds until it can answer, bytes sent until it has, ms from the photo to the answer.
    """
    before = len(site.sent)
    page = browser.page("about:blank", fresh=True)
    page.call("Emulation.setCPUThrottlingRate", rate=slower)
    page.open(site.url)
    if page.wait("document.documentElement.dataset.ready", 60) != "browser":
        fail(
            f"the page does not answer by itself: "
            f"{page.js('''document.getElementById('privacy').innerText''')}"
        )
    loaded = sum(site.sent[before:])
    page.js(HELPERS)
    # what the page keeps for offline use afterwards comes out of the browser's own cache, or again
    # as a part of the page
    again = sum(
        size
        for row, size in zip(site.asked[before:], site.sent[before:], strict=True)
        if row[1] == "/sw.js"
    )
    page.js("new Promise((done) => setTimeout(done, 2000))")  # nobody takes a photo sooner
    took = page.js(f"timed(blobOf('{text(photo)}'), 'browser')")
    heads = sum(
        size
        for row, size in zip(site.asked[before:], site.sent[before:], strict=True)
        if row[1].endswith("heads.bin")
    )
    ready = page.js("performance.getEntriesByName('ready')[0].startTime") / 1000
    page.close()
    return ready, loaded - again + (heads if heads > loaded else 0), took


def compare(page: Page, light: LightModel, photos: list[bytes]) -> dict[str, Any]:
    """Answer photos in the page and in Python: largest difference of a probability, answers that
    differ, ms of the model.
    """
    counts = np.asarray(light.settings["diseases"])
    starts, worst, other, times = np.concatenate([[0], np.cumsum(counts)]), 0.0, 0, []
    for photo in progress(photos, total=len(photos), desc="compare", unit="photo"):
        rgb = read_rgb(photo, long_side=light.settings["preprocessing"].get("long_side"))
        wanted = light.answer(resize_to_model(rgb, light.size))
        found = page.js(f"light.answer(blobOf('{text(photo)}'))", timeout=60)
        numbers = found["numbers"]
        worst = max(
            worst,
            float(
                np.abs(
                    np.add.reduceat(wanted.probabilities, starts[:-1]) - numbers["species"]
                ).max()
            ),
        )
        for s, own in numbers["own"]:
            worst = max(
                worst,
                float(np.abs(wanted.probabilities[starts[s] : starts[s + 1]] - own).max())
                if s in wanted.fetched
                else 0.0,
            )
        other += starts[numbers["class"][0]] + numbers["class"][1] != wanted.class_idx
        times.append(found["timings_ms"]["model"])
    return {"worst": worst, "other": int(other), "ms": float(np.median(times))}


def main() -> int:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--exports", type=Path, required=True)
    parser.add_argument(
        "--photos",
        type=Path,
        required=True,
        help="a folder of photos, taken evenly from it and the folders below",
    )
    parser.add_argument("--count", type=int, default=100, help="photos to compare (default: 100)")
    parser.add_argument(
        "--repeat", type=int, default=5, help="cold starts, and large photos (default: 5)"
    )
    args = parser.parse_args()
    paths = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        fail(f"there are no photos in {args.photos}.")
    paths = [
        paths[i] for i in np.linspace(0, len(paths) - 1, min(args.count, len(paths))).astype(int)
    ]
    big = [large(path) for path in paths[:: max(1, len(paths) // args.repeat)][: args.repeat]]
    light, rows = LightModel(args.exports / "browser"), []

    def row(name: str, found: float, limit: float | None, unit: str, digits: int = 0) -> None:
        missed = limit is not None and found > limit
        rows.append(
            (
                name,
                f"{found:,.{digits}f} {unit}",
                "" if limit is None else f"<= {limit:,g} {unit}",
                "MISSED" if missed else "",
            )
        )

    with tempfile.TemporaryDirectory() as folder:
        browser = Chromium(Path(folder) / "profile")
        try:
            with serve(args.exports) as site:
                starts = [cold(browser, site, paths[0].read_bytes()) for _ in range(args.repeat)]
                row("bytes before the first answer", starts[0][1] / 1e6, 3.6, "MB", 2)
                row(
                    "page ready, cold, median",
                    float(np.median([ready for ready, *_ in starts])),
                    1.6,
                    "s",
                    2,
                )
                slow = [cold(browser, site, paths[0].read_bytes(), 6) for _ in range(args.repeat)]
                row(
                    "the same, 6 times slower",
                    float(np.median([ready for ready, *_ in slow])),
                    4,
                    "s",
                    2,
                )
                row(
                    "photo to answer, 6 times slower",
                    float(np.median([took for *_, took in slow])),
                    400,
                    "ms",
                )
                own = [path.read_bytes() for path in web_files.WEB.iterdir()]
                row("the page's own code and texts", sum(map(len, own)) / 1e3, None, "KB", 1)
                row(
                    "the same as it is sent",
                    sum(len(gzip.compress(data, 6)) for data in own) / 1e3,
                    60,
                    "KB",
                    1,
                )
                page = browser.page(site.url)
                page.wait("document.documentElement.dataset.ready")
                page.js(HELPERS)
                page.js(
                    "fetch('/page.json').then((r) => r.json()).then((f) => light.start(f, "
                    "true)).then((s) => s.loading)"
                )
                same = compare(page, light, [path.read_bytes() for path in paths])
                row(
                    f"largest difference of a probability, {len(paths)} photos",
                    same["worst"],
                    1e-4,
                    "",
                    7,
                )
                row("photos with another answer", same["other"], 0, "")
                row("model, median", same["ms"], 15, "ms", 1)
                near = compare(page, light, big)
                row(
                    f"the same, {len(big)} JPEGs of 12 megapixels shrunk by libjpeg",
                    near["worst"],
                    None,
                    "",
                    4,
                )
                times = [
                    page.js(f"timed(blobOf('{text(photo)}'), 'browser')", timeout=60)
                    for photo in big
                ]
                row("photo of 12 megapixels to answer, median", float(np.median(times)), 400, "ms")
                page.close()
            web_files.RUNTIME = Path(folder)  # nothing is there: the page asks the server
            with serve(args.exports) as site:
                page = browser.page(site.url)
                page.wait("document.documentElement.dataset.ready")
                page.js(HELPERS)
                times = [
                    page.js(f"timed(blobOf('{text(photo)}'), 'server')", timeout=60)
                    for photo in big
                ]
                row("the same to the server's answer, median", float(np.median(times)), 1000, "ms")
                row(
                    "bytes of a photo that is sent",
                    max(size for *_, size in site.posts()) / 1e3,
                    None,
                    "KB",
                    1,
                )
                page.close()
        finally:
            browser.close()
    say(table(rows, ("", "found", "asked", "")))
    return 1 if any(missed for *_, missed in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
