"""What the browser computes against Python, to the pixel and to 1e-4: decoding, shrinking, the
light model, the decision. And its files.
"""

import base64
import io
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle as tiny
import tiny_light
from page_site import needs_runtime, serve
from PIL import Image
from starlette.testclient import TestClient
from tiny_profiles import profile

from common.decide import decide, rejection_from_json, rollups_from_json
from common.export.browser.light_model import LightModel
from common.files import file_sha256
from common.images import photo_quality, read_rgb, resize_to_model
from common.serve.answer import Options, answer
from common.serve.fusion import condition
from common.serve.http import web_files
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.predictor import Predictor

LONG_SIDE, SIZE = 64, tiny_light.SIZE
RUN = """(async () => {
  globalThis.blobOf = (encoded) => new Blob([Uint8Array.from(atob(encoded), (c) =>
    c.charCodeAt(0))]);
  const pixels = await import('/pixels.js');
  const text = (data) => { let s = ''; for (const byte of data) s += String.fromCharCode(byte);
    return btoa(s); };
  const { tall_first: tallFirst } = await (await fetch('/page.json')).json();
  globalThis.run = async (encoded, longSide, size, crop = null) => {
    const { rgb } = await pixels.read(blobOf(encoded), longSide, crop);
    const small = pixels.resize(rgb, size, tallFirst);
    const png = new Uint8Array(await (await pixels.png(small)).arrayBuffer());
    return { width: rgb.width, height: rgb.height, rgb: text(rgb.data), small: text(small.data),
      png: text(png),
      quality: pixels.quality(small) };
  };
})()"""
START = """(async () => {
  globalThis.light = await import('/light.js');
  const state = await light.start(await (await fetch('/page.json')).json(), false);
  await state.loading;
})()"""


def leafy(width: int, height: int, channels: int = 3) -> np.ndarray:
    """A picture with waves and noise, uint8 (height, width, channels)."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack(
        [127 + 80 * np.sin(x / 9 + k) * np.cos(y / (7 + k)) for k in range(channels)], axis=-1
    )
    return np.clip(
        waves + np.random.default_rng(width * height).normal(0, 25, waves.shape), 0, 255
    ).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str, **save: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **save)
    return buffer.getvalue()


def turned(orientation: int, width: int, height: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(leafy(width, height), "JPEG", exif=exif, quality=90)


def cases() -> dict[str, bytes]:
    """Photos whose pixels must be equal: every way through the shrink, formats, transparency,
    rotation.
    """
    found = {}
    for width, height in (
        (64, 48),
        (41, 60),
        (100, 75),
        (128, 128),
        (130, 97),
        (60, 200),
        (187, 150),
    ):
        found[f"jpeg {width}x{height}"] = encode(leafy(width, height), "JPEG", quality=85)
    for width, height in ((64, 64), (192, 192), (250, 187), (187, 250), (700, 500), (1000, 333)):
        found[f"png {width}x{height}"] = encode(leafy(width, height), "PNG")
        found[f"webp {width}x{height}"] = encode(leafy(width, height), "WEBP", quality=80)
    found |= {f"orientation {n}": turned(n, 64, 41) for n in range(1, 9)}
    found |= {f"orientation {n}, large": turned(n, 150, 101) for n in (3, 6, 8)}
    found |= {
        f"jpeg {way}": encode(leafy(120, 90), "JPEG", subsampling=way) for way in ("4:2:2", "4:4:4")
    }
    found |= {
        "progressive": encode(leafy(120, 90), "JPEG", progressive=True),
        "grey": encode(leafy(60, 50)[..., 0], "JPEG"),
        "rgba": encode(leafy(60, 50, 4), "PNG"),
        "rgba, large": encode(leafy(160, 120, 4), "PNG"),
        "rgba webp": encode(leafy(60, 50, 4), "WEBP", lossless=True),
    }
    buffer = io.BytesIO()
    Image.fromarray(leafy(60, 50)).quantize(64).save(buffer, "GIF")
    return found | {"gif": buffer.getvalue()}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    made = tiny.make(tmp_path_factory.mktemp("numbers") / "exports")
    card = tiny.card(made / "model.onnx")
    torn = {
        "score": "gen",
        "weights": {"gen": 1.0},
        "threshold": 0.47,
        "quantiles": list(np.linspace(0, 0.5, 101)),
    }
    far = {
        "score": "mahalanobis",
        "weights": {"mahalanobis": 2.0},
        "threshold": 0.4,
        "quantiles": list(np.linspace(0, 0.3, 101)),
    }
    tiny_light.add(made, rejection={**card["rejection"], "plant": far, "disease": torn})
    return made


@pytest.fixture(scope="module")
def page(browser, exports):
    with serve(exports) as site:
        opened = browser.page(site.url)
        opened.wait("document.documentElement.dataset.ready")
        opened.js(RUN)
        yield opened
        opened.close()


def seen_by(page, photo: bytes, size: int = SIZE, crop: dict | None = None) -> SimpleNamespace:
    """What pixels.js makes of a photo: `.rgb` shrunk, `.small` at model size, `.png` to be sent,
    `.quality`.
    """
    run = f"run('{base64.b64encode(photo).decode()}', {LONG_SIDE}, {size}, {json.dumps(crop)})"
    found = SimpleNamespace(**page.js(run))
    found.rgb = np.frombuffer(base64.b64decode(found.rgb), np.uint8).reshape(
        found.height, found.width, 3
    )
    found.small = np.frombuffer(base64.b64decode(found.small), np.uint8).reshape(size, size, 3)
    found.png = base64.b64decode(found.png)
    return found


def are_the_same(page, name, found, wanted):
    """To the pixel; in Firefox to 1 of 255 where something shines through: it rounds otherwise."""
    rounds = "rgba" in name and page.browser.name == "firefox"
    assert found.shape == wanted.shape, name
    assert np.abs(found.astype(int) - wanted).max() <= rounds, name


def test_the_browser_sees_the_server_s_pixels(page):
    for name, photo in cases().items():
        found = seen_by(page, photo)
        are_the_same(page, name, found.rgb, read_rgb(photo, long_side=LONG_SIDE))
        small = resize_to_model(found.rgb, SIZE)
        assert np.array_equal(found.small, small), f"{name}: at model size"
        assert np.array_equal(read_rgb(found.png, long_side=LONG_SIDE), found.small), (
            f"{name}: what is sent"
        )
        for measure, value in photo_quality(found.small[None]).items():
            assert found.quality[measure] == pytest.approx(value[0], abs=1e-5), f"{name}: {measure}"
    assert b"Exif" not in found.png
    assert b"eXIf" not in found.png


def test_colour_profiles_give_the_server_s_pixels(page):
    """To 2 of 255: both convert a photo before they shrink it, by different programs."""
    for name in ("Display P3", "Adobe RGB", "ProPhoto", "grey", "sRGB"):
        for kind, size in (("JPEG", (60, 50)), ("JPEG", (120, 90)), ("PNG", (700, 500))):
            pixels = leafy(*size)[..., 0] if name == "grey" else leafy(*size)
            photo = encode(pixels, kind, icc_profile=profile(name))
            found, wanted = seen_by(page, photo).rgb, read_rgb(photo, long_side=LONG_SIDE)
            assert np.abs(found.astype(int) - wanted).max() <= 2 * (name != "sRGB"), name
            plain = read_rgb(encode(pixels, kind), long_side=LONG_SIDE)
            assert np.abs(plain.astype(int) - wanted).max() > 15 or name == "sRGB", name
    clear = encode(leafy(160, 120, 4), "PNG", icc_profile=profile("Display P3"))
    off = seen_by(page, clear).rgb.astype(int) - read_rgb(clear, long_side=LONG_SIDE)
    assert np.abs(off).max() <= 2
    for broken in (b"no profile", profile("Display P3")[:100]):
        photo = encode(leafy(60, 50), "JPEG", icc_profile=broken)
        assert np.array_equal(seen_by(page, photo).rgb, read_rgb(photo, long_side=LONG_SIDE))


def test_a_square_of_a_photo_gives_the_pixels_of_the_square(page):
    """Whatever the format, rotation or transparency: what is cut out is what Python would cut."""
    photos = cases()
    for name in ("jpeg 187x150", "png 700x500", "orientation 6", "orientation 8, large", "rgba"):
        whole = read_rgb(photos[name])
        height, width = whole.shape[:2]
        side = int(0.45 * min(width, height) + 0.5)
        left, top = int(0.31 * width + 0.5), int(0.2 * height + 0.5)
        cut = encode(whole[top : top + side, left : left + side], "PNG")
        found = seen_by(page, photos[name], crop={"x": 0.31, "y": 0.2, "side": 0.45})
        wanted = read_rgb(cut, long_side=LONG_SIDE, min_side=1)
        are_the_same(page, name, found.rgb, wanted)
        assert np.array_equal(read_rgb(found.png), resize_to_model(found.rgb, SIZE)), name


def test_a_jpeg_that_libjpeg_shrinks_is_near(page):
    """Pillow lets libjpeg decode at 1/2 to 1/8, which no browser can: means over boxes stand for
    it.
    """
    y, x = np.mgrid[:600, :800]
    smooth = np.stack(
        [127 + 90 * np.sin(x / (40 + 9 * k)) * np.cos(y / (31 + 5 * k)) for k in range(3)], axis=-1
    ).astype(np.uint8)
    for photo in (
        encode(smooth, "JPEG", quality=90),
        encode(smooth, "JPEG", quality=90, subsampling=0),
    ):
        found, wanted = seen_by(page, photo), read_rgb(photo, long_side=LONG_SIDE)
        assert np.abs(found.rgb.astype(int) - wanted).mean() < 0.5
        assert np.abs(found.small.astype(int) - resize_to_model(wanted, SIZE)).max() <= 3


@needs_runtime
def test_the_browser_answers_as_python_does(page, exports):
    light = LightModel(exports / "browser")
    rejection = rejection_from_json(light.settings["rejection"], light.settings["scores"])
    rollup = next(iter(rollups_from_json(light.settings["rollup"]).values()))
    page.js(START)
    offsets, outcomes = tiny.TREE.offsets, set()
    colors = [tiny.color_of(class_idx) for class_idx in range(6)] + [
        tiny.between(a, b) for a in range(6) for b in range(a)
    ]
    colors += [tiny.NO_PLANT, (-12, -12, -12)]
    colors += [
        tuple(int(v) for v in color) for color in np.random.default_rng(0).integers(0, 256, (15, 3))
    ]
    for i, color in enumerate(colors):
        height = 36 if i % 3 == 0 else 70
        shade = np.linspace(-12, 12, 90)[None, :, None] + np.linspace(-7, 7, height)[:, None, None]
        photo = encode(np.clip(np.array(color) + shade, 0, 255).astype(np.uint8), "JPEG")
        rgb = resize_to_model(read_rgb(photo, long_side=64), SIZE)
        wanted = light.answer(rgb)
        found = page.js(f"light.answer(blobOf('{base64.b64encode(photo).decode()}'))")
        numbers = found["numbers"]
        sums = np.add.reduceat(wanted.probabilities, offsets[:-1])
        assert numbers["species"] == pytest.approx(sums, abs=1e-4)
        assert [s for s, _ in numbers["own"]] == list(wanted.fetched)
        assert numbers["ood"] == pytest.approx(wanted.ood, abs=1e-4)
        for s, own in numbers["own"]:
            assert own == pytest.approx(wanted.probabilities[offsets[s] : offsets[s + 1]], abs=1e-4)
        assert offsets[numbers["class"][0]] + numbers["class"][1] == wanted.class_idx
        assert found["ask"] == pytest.approx(wanted.ask, abs=1e-4)
        assert found["asks"] == wanted.asks
        assert np.abs(np.array(found["heatmap"]) - wanted.heatmap).max() < 1e-3
        measured = {name: float(values[0]) for name, values in photo_quality(rgb[None]).items()} | {
            "short_side": height
        }
        told = asdict(
            decide(wanted.probabilities, wanted.ood, light.tree, rejection, rollup, photo=measured)
        )
        for key in ("decision", "level", "species", "disease", "healthy"):
            assert found[key] == told[key], key
        assert found["probabilities"] == pytest.approx(told["probabilities"], abs=1e-4)
        for key, value in told["rejection"].items():
            if isinstance(value, float):
                assert found["rejection"][key] == pytest.approx(value, abs=1e-4), key
            elif key != "photo":
                assert found["rejection"][key] == value, key
        assert [one["measure"] for one in found["rejection"]["photo"]] == [
            one["measure"] for one in told["rejection"]["photo"]
        ]
        outcomes.add((found["decision"], found["rejection"]["reason"]))
    assert {decision for decision, _ in outcomes} == {"answered", "rolled_up", "rejected"}
    assert {reason for _, reason in outcomes} >= {
        None,
        "not_a_plant",
        "unknown_species",
        "unknown_disease",
        "small",
        "dark",
    }


@needs_runtime
def test_a_known_plant_counts_as_it_does_in_python(page, exports):
    light = LightModel(exports / "browser")
    rejection = rejection_from_json(light.settings["rejection"], light.settings["scores"])
    rollup = next(iter(rollups_from_json(light.settings["rollup"]).values()))
    page.js(START)
    agreed = set()
    for color in (tiny.color_of(0), tiny.between(1, 2), tiny.between(2, 4), tiny.NO_PLANT):
        photo = encode(np.full((70, 90, 3), color, np.uint8), "PNG")
        rgb = resize_to_model(read_rgb(photo, long_side=64), SIZE)
        alone, (joint, _) = light.answer(rgb), light.outputs(rgb[None])
        for said in tiny.TREE.species:
            blob = f"blobOf('{base64.b64encode(photo).decode()}')"
            found = page.js(f"light.answer({blob}, null, '{said}')")
            measured = {key: float(one[0]) for key, one in photo_quality(rgb[None]).items()}
            known = condition(joint[0], said, light.tree)
            told = asdict(
                decide(
                    known,
                    alone.ood,
                    light.tree,
                    rejection,
                    rollup,
                    photo={**measured, "short_side": 70},
                )
            )
            for key in ("decision", "species", "disease", "healthy"):
                assert found[key] == told[key], (color, said, key)
            assert found["probabilities"] == pytest.approx(told["probabilities"], abs=1e-4)
            best = light.tree.pair(alone.class_idx)[0]
            assert found["conditioned"]["agrees"] == (best == said)
            assert found["conditioned"]["best_before"]["species"] == best
            agreed.add(best == said)
    assert agreed == {True, False}


def test_the_server_answers_the_small_copy_as_it_would_the_photo(page, exports):
    predictor, photo = Predictor(exports), tiny.picture(tiny.between(1, 2), (90, 50))
    copy = seen_by(page, photo, predictor.bundle.size).png
    assert np.array_equal(predictor.read(copy).pixels, predictor.read(photo).pixels)
    sent = ((photo, None), (copy, 50))
    whole, part = (
        answer(predictor, [tiny.run_photo(predictor, data, short_side=side)], Options())
        for data, side in sent
    )
    for told in (whole, part):
        del told["timings_ms"], told["image"], told["photos"]
    assert whole == part
    without = answer(predictor, [tiny.run_photo(predictor, copy)], Options())
    assert [one["measure"] for one in without["rejection"]["photo"]] == ["short_side"]


# region the files


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """Stand-ins for the runtime's two files, with compressed copies."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in web_files.PINNED:
        (folder / name).write_bytes(name.encode() * 50)
        (folder / f"{name}.br").write_bytes(b"small")
    monkeypatch.setattr(web_files, "RUNTIME", folder)
    monkeypatch.setattr(
        web_files, "PINNED", {name: file_sha256(folder / name) for name in web_files.PINNED}
    )
    return folder


def test_files_are_kept_for_ever_and_sent_packed_or_in_part(exports, runtime):
    # where Python has brotli, the client would ask for it, and `small` is no such thing
    plain = {"accept-encoding": "identity"}
    client = TestClient(make_app(Predictor(exports), Settings()), headers=plain)
    light = client.get("/page.json").json()["light"]
    for url in (
        light["onnx"],
        light["settings"],
        light["heads"]["url"],
        light["script"],
        light["wasm"],
    ):
        answer = client.get(url)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert "content-encoding" not in answer.headers
        assert client.get(url, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert client.get(light["wasm"]).headers["content-type"] == "application/wasm"
    assert client.get(light["script"]).headers["content-type"].startswith("text/javascript")
    with client.stream(
        "GET", light["wasm"], headers={"accept-encoding": "gzip, deflate, br"}
    ) as answer:
        assert answer.headers["content-encoding"] == "br"
        assert b"".join(answer.iter_raw()) == b"small"
    packed = client.get(light["settings"], headers={"accept-encoding": "gzip"})  # made on the fly
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json()["format"] == 2
    heads = (exports / "browser" / "heads.bin").read_bytes()
    part = client.get(
        light["heads"]["url"], headers={"range": "bytes=4-19", "accept-encoding": "gzip"}
    )
    assert (part.status_code, part.content, part.headers["content-range"]) == (
        206,
        heads[4:20],
        f"bytes 4-19/{len(heads)}",
    )
    assert (
        client.get(light["heads"]["url"], headers={"range": f"bytes=8-{10**9}"}).content
        == heads[8:]
    )
    assert (
        client.get(light["heads"]["url"], headers={"range": f"bytes={len(heads)}-"}).status_code
        == 416
    )
    last = client.get(light["heads"]["url"], headers={"range": "bytes=-5"})
    assert (last.status_code, last.content) == (206, heads[-5:])
    for far in (
        f"bytes={'9' * 5000}-",
        f"bytes={2**63}-{2**64}",
        "bytes=-0",
        f"bytes={'0' * 9}9999-",
    ):
        beyond = client.get(light["heads"]["url"], headers={"range": far})
        assert beyond.status_code == 416
        assert beyond.headers["content-range"] == f"bytes */{len(heads)}"
        assert str(len(heads)) in beyond.json()["error"]["message"]
    for long in (f"bytes=0-{'9' * 5000}", f"bytes=-{'9' * 5000}", f"Bytes=-{2**64}"):
        assert client.get(light["heads"]["url"], headers={"range": long}).status_code == 206
    # no range, several, one of another unit, or of another version of the file: all of it
    for odd in ("bytes=9-4", "lines=1-2", "bytes=0-1,4-5", "bytes=--5", "bytes=-", "bytes=x-", "x"):
        whole = client.get(light["heads"]["url"], headers={"range": odd})
        assert (whole.status_code, whole.content) == (200, heads), odd
    old = {"range": "bytes=99999-", "if-range": '"another"'}
    assert client.get(light["heads"]["url"], headers=old).status_code == 200
    old["if-range"] = last.headers["etag"]
    assert client.get(light["heads"]["url"], headers=old).status_code == 416
    for wrong in (
        "/files/0000000000000000/light.onnx",
        "/files/x/../../bundle.json",
        light["onnx"].replace("light.onnx", "bundle.json"),
    ):
        assert client.get(wrong).status_code == 404


def test_what_is_missing_is_told(exports, runtime, tmp_path, monkeypatch):
    assert set(web_files.light_files(exports)) == {
        "light.json",
        "light.onnx",
        "heads.bin",
        *web_files.PINNED,
    }
    (runtime / web_files.WASM).write_bytes(b"else")
    assert f"{web_files.WASM} is not the expected file" in web_files.describe_light(exports)
    (runtime / web_files.SCRIPT).unlink()
    assert "web_runtime fetch" in web_files.describe_light(exports)
    other = tiny.make(tmp_path / "exports")
    assert "--browser" in web_files.describe_light(other)
    (tiny_light.add(other) / "heads.bin").write_bytes(b"else")
    assert "heads.bin is not the file" in web_files.describe_light(other)
    facts = TestClient(make_app(Predictor(other), Settings())).get("/page.json").json()
    assert facts["light"] is None
    assert str(tmp_path) not in str(facts)


# endregion
