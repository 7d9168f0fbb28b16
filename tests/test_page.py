"""The web page in a headless Chromium, against a real server: what a person would see for each kind of answer.

A page of the tests' own adds one script to index.html: it drops a photo into the page as a person would, waits for the
answer and writes what it finds into the document, which Chromium then prints. The product has no hook for this.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
import subprocess
import threading
import time

import pytest
import tiny_bundle as tiny
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.bundle import Predictor
from common.http_app import WEB, Settings, make_app

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
                 if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed to look at the page with")

PHOTOS = {"scab": tiny.picture(tiny.color_of(2), (300, 200), "JPEG"), "healthy": tiny.picture(tiny.color_of(0)),
          "between": tiny.picture(tiny.between(1, 2)), "stranger": tiny.picture(tiny.STRANGER), "text": b"no picture",
          "huge": tiny.picture(tiny.color_of(2), (700, 500), "BMP")}  # over the server's limit: the page shrinks it

SCRIPT = """
const broken = [];
addEventListener("error", (event) => broken.push(String(event.message)));
addEventListener("unhandledrejection", (event) => broken.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => broken.push(`CSP ${event.blockedURI}`));
const until = async (test) => { while (!test()) await new Promise((done) => setTimeout(done, 20)); };
addEventListener("load", async () => {
  const $ = (id) => document.getElementById(id);
  const seen = {};
  await until(() => !$("known").hidden);
  for (const name of new URLSearchParams(location.search).get("photos").split(",")) {
    const type = name === "text" ? "text/plain" : name === "huge" ? "image/bmp" : "image/png";
    const file = new File([await (await fetch(`/test/photo/${name}`)).arrayBuffer()], name, { type });
    const transfer = new DataTransfer();
    transfer.items.add(file);
    if (name === "healthy") {
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    } else if (name === "between") {
      document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
    } else {
      $("file").files = transfer.files;
      $("file").dispatchEvent(new Event("change"));
    }
    const first = $("result").dataset.state;
    await until(() => $("result").dataset.state !== "waiting" && $("result").getAttribute("aria-busy") === "false");
    if (name !== "text") await until(() => !$("frame").hidden);
    if (!$("heat-switch").hidden) $("heat-switch").click();
    const heat = $("heat").getBoundingClientRect();
    const photo = $("preview").getBoundingClientRect();
    seen[name] = {
      first, state: $("result").dataset.state, text: $("result").innerText, spoken: $("spoken").textContent,
      bars: [...document.querySelectorAll("#result .bar i")].map((bar) => parseFloat(bar.style.width)),
      framed: !$("frame").hidden, heat: $("heat").hidden ? null : [$("heat").width, $("heat").height],
      covers: Math.abs(heat.width - photo.width) < 1 && Math.abs(heat.height - photo.height) < 1,
      wide: document.documentElement.scrollWidth, window: innerWidth,
    };
  }
  const report = document.createElement("script");
  report.type = "application/json";
  report.id = "report";
  report.textContent = JSON.stringify({ seen, broken, known: $("known").textContent });
  document.body.append(report);
});
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    predictor = Predictor(tiny.make(tmp_path_factory.mktemp("page") / "exports"))
    app = make_app(predictor, Settings(max_upload_mb=0.5))

    async def page(_: Request) -> Response:
        text = (WEB / "index.html").read_text(encoding="utf-8")
        text = text.replace("</head>", '<script src="/test/script.js"></script></head>')
        return Response(text, media_type="text/html")

    async def script(_: Request) -> Response:
        return Response(SCRIPT, media_type="text/javascript")

    async def photo(request: Request) -> Response:
        return Response(PHOTOS[request.path_params["name"]], media_type="application/octet-stream")

    app.router.routes += [Route("/test/page", page), Route("/test/script.js", script),
                          Route("/test/photo/{name}", photo)]
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def look(site, photos, tmp_path, window="1200,900"):
    """Open the page, give it the photos one after the other, and return what its reader would find."""
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}",
         f"--window-size={window}", "--virtual-time-budget=20000", "--dump-dom", f"{site}/test/page?photos={photos}"],
        capture_output=True, text=True, timeout=90)
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', done.stdout, re.DOTALL)
    assert found, f"the page gave no report:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    report = json.loads(html.unescape(found.group(1)))
    assert report["broken"] == []
    return report


def test_every_kind_of_answer_is_shown_and_told(site, tmp_path):
    report = look(site, ",".join(PHOTOS), tmp_path)
    seen = report["seen"]
    assert {name: one["state"] for name, one in seen.items()} == {
        "scab": "answered", "healthy": "answered", "between": "rolled_up", "stranger": "rejected", "text": "error",
        "huge": "answered"}
    assert all(one["first"] == "waiting" for one in seen.values())
    assert all(word in seen["scab"]["text"] for word in ("Disease found", "Apple", "Scab"))
    assert seen["scab"]["spoken"].startswith("Apple, scab")
    assert len(seen["scab"]["bars"]) >= 2 and min(seen["scab"]["bars"][:2]) > 90
    assert "Looks healthy" in seen["healthy"]["text"] and "Disease found" not in seen["healthy"]["text"]
    assert "Plant only" in seen["between"]["text"] and "Rust" in seen["between"]["text"]
    assert len(seen["between"]["bars"]) == 1 + 3  # the plant, and what it may have of this plant's own leaves only
    assert "Not a plant I know" in seen["stranger"]["text"] and "What to do next" in seen["stranger"]["text"]
    assert "Disease found" not in seen["stranger"]["text"]
    assert "not a picture" in seen["text"]["text"] and "not a picture" in seen["text"]["spoken"]
    assert "3 plants" in report["known"] and "Basil" in report["known"]


def test_the_heatmap_lies_over_the_photo_and_goes_with_it(site, tmp_path):
    seen = look(site, "scab,text", tmp_path)["seen"]
    assert seen["scab"]["heat"] == [tiny.CELLS, tiny.CELLS] and seen["scab"]["covers"]
    assert seen["text"]["heat"] is None and not seen["text"]["framed"]


def test_nothing_is_cut_off_on_a_narrow_phone(site, tmp_path):
    seen = look(site, "scab,stranger", tmp_path, window="360,740")["seen"]
    for one in seen.values():
        assert one["window"] <= 500 and one["wide"] <= one["window"]
