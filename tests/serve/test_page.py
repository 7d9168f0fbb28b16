"""The web page in headless browsers, against a real server: what a person sees for each kind of
answer, by browser and by server.
"""

import re

import tiny_bundle as tiny
import tiny_light
from page_site import PHOTOS, choose, give, needs_runtime, serve, settle, yes

UNOPENED = ("broken.jpg", "scan.tif")

# region without a light model


def test_without_a_light_model_the_server_answers_and_the_page_says_so(plain, places, tab):
    page = tab(plain, "server")
    seen = {
        name: give(page, places, name) for name in PHOTOS if name not in (*UNOPENED, "halves.png")
    }
    sent = len(plain.posts())
    for name in UNOPENED:  # Chromium cannot open them: they would leave the device whole
        give(page, places, name)
        assert len(plain.posts()) == sent
        seen[name] = yes(page)
        sent += 1
    assert {name: (one.state, one.by) for name, one in seen.items()} == {
        "scab.jpg": ("answered", "server"),
        "healthy.png": ("answered", "server"),
        "between.png": ("rolled_up", "server"),
        "no_plant.png": ("rejected", "server"),
        "text.txt": ("error", ""),
        "small.png": ("error", ""),
        "broken.jpg": ("error", ""),
        "corn.png": ("answered", "server"),
        "scan.tif": ("answered", "server"),
        "huge.bmp": ("answered", "server"),
    }
    assert all(
        word in seen["scab.jpg"].text
        for word in ("Disease found", "Apple", "Scab", "A small copy was sent to 127.0.0.1")
    )
    assert seen["scab.jpg"].spoken.startswith("Apple, scab")
    assert seen["scab.jpg"].bars[0] > 90
    assert "The whole photo was sent" in seen["scan.tif"].text
    assert "Looks healthy" in seen["healthy.png"].text
    assert "Disease found" not in seen["healthy.png"].text
    assert "Plant only" in seen["between.png"].text
    assert "Rust" in seen["between.png"].text
    assert len(seen["between.png"].bars) == 2  # what it may have, of this plant's diseases only
    assert "Not a plant I know" in seen["no_plant.png"].text
    assert "What to do now" in seen["no_plant.png"].text
    assert "not a picture" in seen["text.txt"].text
    assert "not a picture" in seen["text.txt"].spoken
    assert "40 × 24" in seen["small.png"].text
    assert "damaged" in seen["broken.jpg"].text
    assert seen["scab.jpg"].heat == [tiny.CELLS, tiny.CELLS]
    assert seen["scab.jpg"].covers
    assert seen["text.txt"].heat is None
    assert "nothing is set up" in seen["scab.jpg"].privacy
    assert "32 × 32 pixels" in seen["scab.jpg"].privacy
    give(page, places, "huge.bmp")
    assert "700 × 500 pixels" in page.js(
        "document.querySelector('#result details').textContent"
    )  # of the photo, not of its copy
    assert "3 plants" in page.wait("document.getElementById('known').textContent")
    sent = {query: size for _, path, query, size in plain.posts() if path == "/predict"}
    assert sent["heatmap=1&short_side=200"] < 1000
    assert sent["heatmap=1&short_side=500"] < 1000  # small copies
    assert sent["heatmap=1"] == len(PHOTOS["scan.tif"])  # Chromium cannot read it: the photo itself


def test_photos_that_disagree_are_named_and_not_answered(plain, places, tab):
    page = tab(plain, "server")
    seen = give(page, places, "scab.jpg", "corn.png")
    assert (seen.state, seen.by) == ("rejected", "server")
    assert seen.text.count("The photos disagree: photo 1 says apple scab, photo 2 says corn") == 1
    assert "Are they all of one plant?" in seen.text
    seen = give(page, places, "scab.jpg", "healthy.png")
    assert seen.state == "rolled_up"
    for told in (seen.text, seen.spoken):
        assert told.count("photo 1 says apple scab, photo 2 says apple healthy") == 1


def test_drop_and_paste_are_taken_too(plain, tab):
    page = tab(plain, "server")
    for kind, event in (
        (
            "healthy",
            "new DragEvent('drop', { dataTransfer: given, bubbles: true, cancelable: true })",
        ),
        # Firefox lets nobody fill a ClipboardEvent
        (
            "scab",
            "Object.defineProperty(new Event('paste', { bubbles: true }), 'clipboardData', "
            "{ value: given })",
        ),
    ):
        red, green, blue = tiny.color_of({"healthy": 0, "scab": 2}[kind])
        page.js(f"""(async () => {{
            const pen = new OffscreenCanvas(90, 60).getContext('2d');
            pen.fillStyle = 'rgb({red}, {green}, {blue})';
            pen.fillRect(0, 0, 90, 60);
            const given = new DataTransfer();
            given.items.add(new File([await pen.canvas.convertToBlob()], 'a.png',
              {{ type: 'image/png' }}));
            document.body.dispatchEvent({event});
            document.getElementById('ask').click();
        }})()""")
        assert kind in settle(page).spoken


def test_a_phone_in_the_dark(plain, places, tab):
    page = tab(plain, "server", width=360, height=740, mobile=True, dark=True)
    for name in ("scab.jpg", "no_plant.png"):
        seen = give(page, places, name)
        assert seen.window == 360
        assert seen.wide <= 360
    top = "document.getElementById('{}').getBoundingClientRect().top"
    tops = page.js(f"[{top.format('shoot')}, {top.format('pick')}]")
    assert tops[0] <= tops[1]
    light = page.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(light) < 60


def test_the_keyboard_reaches_everything(plain, places, tab):
    page = tab(plain, "server")
    give(page, places, "scab.jpg")
    reached = []
    for _ in range(16):
        page.press("Tab")
        reached.append(page.js("document.activeElement.id || document.activeElement.tagName"))
    assert [name for name in dict.fromkeys(reached) if name != "BODY"] == [
        "ask",
        "pick",
        "more",
        "crop",
        "heat-switch",
        "plant",
        "private",
        "details",
        "known-summary",
    ]
    nameless = (
        "[...document.querySelectorAll('button, input:not([hidden]), img')].filter((e) => "
        "e.offsetParent && !e.labels?.length"
        " && !e.textContent && !e.hasAttribute('alt')).length"
    )
    assert page.js(nameless) == 0


def answering(page, answer):
    """Let the page's requests for answers get another one: a promise in JavaScript."""
    page.js(
        f"""globalThis.fetch = ((real) => (url, options) => String(url).startsWith('predict')
        ? ({answer})(options) : real(url, options))(fetch)"""
    )


PROXIES = {
    "413 text/html": ("too large", "smaller"),
    "429 text/html": ("too many photos", "Wait 1 min"),
    "429 text/html 1800": ("too many photos", "Wait 30 min"),
    "200 text/html": ("sign-in page", "Load this page again"),
    "200 application/json": ("sign-in page", "Load this page again"),
    "404 text/html": ("404", "whoever runs"),
    "403 text/html": ("403", "whoever runs"),
    "401 text/html": ("Only programs", "whoever runs"),
    "502 text/html": ("does not answer", "Wait a minute"),
    "504 text/html": ("does not answer", "Wait a minute"),
    "503 text/html 3600": ("busy", "Wait 60 min"),
    "503 text/html Fri,_31_Dec_2100_23:59:59_GMT": ("busy", "Wait 3"),
    "500 text/html": ("500", "Try again"),
}  # status, type and Retry-After of an answer: what the page says


def test_what_a_proxy_answers_gets_a_sentence_of_the_pages_own(plain, places, tab):
    page = tab(plain, "server")
    for answer, words in PROXIES.items():
        status, kind, *later = answer.split()
        headers = {"content-type": kind} | (
            {"retry-after": later[0].replace("_", " ")} if later else {}
        )
        text = "{}" if "json" in kind else "<html><center>nginx</center></html>"
        answering(
            page, f"async () => new Response('{text}', {{ status: {status}, headers: {headers} }})"
        )
        seen = give(page, places, "scab.jpg")
        assert seen.state == "error", answer
        for word in words:
            assert word in seen.text, answer
        assert "JSON" not in seen.text, answer
        assert "JPEG, PNG" not in seen.text, answer  # another photo would not help


def test_no_answer_is_waited_for_half_a_minute(plain, places, tab):
    page = tab(plain, "server")
    answering(
        page,
        "({ signal }) => new Promise((_, no) => signal.addEventListener('abort', () => "
        "no(signal.reason)))",
    )
    page.js(
        "globalThis.setTimeout = ((real) => (call, ms) => real(call, ms >= 30000 && ms < 32000 ? "
        "50 : ms))(setTimeout)"
    )
    seen = give(page, places, "scab.jpg")
    assert seen.state == "error"
    assert "no answer within 30 seconds" in seen.text


def test_without_a_connection_the_page_says_so(plain, places, tab):
    page = tab(plain, "server")
    page.offline(True)
    assert "You are offline" in give(page, places, "scab.jpg").text
    page.offline(False)
    assert give(page, places, "scab.jpg").state == "answered"


# endregion

# region with the light model


@needs_runtime
def test_the_page_works_below_a_prefix_of_a_proxy(places, tab):
    with serve(places.light, prefix="/leaves") as site:
        site.url += "/"
        page = tab(site)
        page.wait("navigator.serviceWorker.controller && !document.getElementById('known').hidden")
        assert give(page, places, "scab.jpg").by == "browser"
        assert give(page, places, "between.png").by == "server"
        assert page.js("fetch('app.webmanifest').then((r) => r.json())")["start_url"] == "."
        told = page.js("fetch('openapi.json').then((r) => r.json())")
        assert told["servers"] == [{"url": "."}]
        page.open(f"{site.url}docs/")
        target = page.wait("document.querySelector('a[href$=json]')?.href")
        assert target == f"{site.url}openapi.json"
        assert [row for row in site.asked if row[1] == "/outside"] == []
        site.down = True
        page.open(site.url)
        page.wait("document.documentElement.dataset.ready === 'browser'")
        assert give(page, places, "scab.jpg").by == "browser"
        unsure = give(page, places, "between.png")
        assert unsure.by == "browser"
        assert "does not answer" in unsure.text


@needs_runtime
def test_a_photo_is_answered_in_the_browser_and_nothing_is_sent(light, places, tab):
    page, before = tab(light), len(light.posts())
    seen = give(page, places, "scab.jpg")
    assert (seen.state, seen.by) == (
        "answered",
        "browser",
    )
    assert "Your photo stayed on this device" in seen.text
    assert seen.spoken.startswith("Apple, scab")
    assert seen.heat == [tiny_light.CELLS] * 2
    assert seen.covers
    rejected = give(page, places, "no_plant.png")
    assert (rejected.state, rejected.by) == (
        "rejected",
        "browser",
    )
    assert "Not a plant I know" in rejected.text
    assert len(light.posts()) == before


@needs_runtime
def test_an_unsure_answer_goes_to_the_server_by_itself_and_any_other_by_a_button(
    light, places, tab
):
    page, before = tab(light), len(light.posts())
    seen = give(page, places, "between.png")
    assert (seen.state, seen.by) == ("rolled_up", "server")
    [[method, path, query, size]] = light.posts()[before:]
    assert (method, path, query) == (
        "POST",
        "/predict",
        "heatmap=1&short_side=60",
    )
    assert 0 < size < 1000
    give(page, places, "healthy.png")
    page.click("second")
    page.wait("document.getElementById('result').dataset.by === 'server'")
    assert len(light.posts()) == before + 2


@needs_runtime
def test_never_send_sends_nothing_and_is_remembered(light, places, tab):
    page = tab(light)
    page.click("private")
    page.wait(
        "navigator.serviceWorker.controller && !document.getElementById('known').hidden"
    )  # all that the page asks for by itself
    before = len(light.asked)
    seen = {
        name: give(page, places, *([name] if name else ["between.png", "healthy.png"]))
        for name in ("between.png", "scab.jpg", "scan.tif", "broken.jpg", "huge.bmp", "")
    }
    # not a photo, and no request that tells what was seen; the browser looks for a newer sw.js when
    # it likes
    assert [row for row in light.asked[before:] if row[1] != "/sw.js"] == []
    assert {name: (one.state, one.by) for name, one in seen.items()} == {
        "between.png": ("rolled_up", "browser"),
        "scab.jpg": ("answered", "browser"),
        "scan.tif": ("error", ""),
        "broken.jpg": ("error", ""),
        "huge.bmp": ("answered", "browser"),
        "": ("rolled_up", "browser"),
    }
    assert "stay on this device" in seen["scab.jpg"].privacy
    assert "second opinion" not in seen["scab.jpg"].text
    assert "cannot be shown here. The photo was not sent" in seen["scan.tif"].text
    assert "answer is about the photo you see" in seen[""].text
    page.reload()
    page.wait("document.documentElement.dataset.ready === 'browser'")
    assert page.js("document.getElementById('private').checked")


def test_never_send_calls_off_what_is_under_way(plain, places, tab):
    page = tab(plain, "server")
    page.js(
        "globalThis.fetch = (url, { signal }) => new Promise((_, no) => { if (signal.aborted) "
        "no(signal.reason);"
        " signal.addEventListener('abort', () => no(signal.reason)); })"
    )  # a server that never answers
    choose(page, places, "scab.jpg")
    page.click("ask")
    page.wait("document.body.classList.contains('busy')")
    page.click("private")
    assert "never to send" in settle(page).text


def test_never_send_without_a_light_model_says_why_there_is_no_answer(plain, places, tab):
    page, before = tab(plain, "server"), len(plain.posts())
    page.click("private")
    seen = give(page, places, "scab.jpg")
    assert seen.state == "error"
    assert "never to send" in seen.text
    assert "nothing is set up" in seen.text
    assert len(plain.posts()) == before


@needs_runtime
def test_several_photos_go_to_the_server_together(light, places, tab):
    page, before = tab(light), len(light.posts())
    give(page, places, "scab.jpg", "healthy.png", "scan.tif")
    seen = yes(page)
    assert seen.by == "server"
    [[_, _, query, size]] = light.posts()[before:]
    assert query == "heatmap=1&short_side=60"
    assert len(PHOTOS["scan.tif"]) < size < len(PHOTOS["scan.tif"]) + 2000


@needs_runtime
def test_without_the_server_the_browser_answers_with_a_note_and_the_page_opens_again(places, tab):
    with serve(places.light) as site:
        page = tab(site)
        page.wait(
            "navigator.serviceWorker.controller && caches.keys().then((names) => names.length)"
        )
        site.stop()
        seen = give(page, places, "between.png")
        assert (seen.state, seen.by) == ("rolled_up", "browser")
        assert "no connection" in seen.text
        assert "this device alone" in seen.text
        page.reload()
        page.wait(
            "document.documentElement.dataset.ready === 'browser' && "
            "!document.getElementById('known').hidden"
        )
        again = give(page, places, "scab.jpg")
        assert (again.state, again.by) == ("answered", "browser")
        names = page.js(
            "caches.keys().then(async ([name]) => (await (await "
            "caches.open(name)).keys()).map((kept) => "
            "new URL(kept.url).pathname))"
        )
        assert "/" in names
        assert "/predict" not in names
        assert "/sw.js" not in names
        assert any(re.search("light.onnx$", name) for name in names)


@needs_runtime
def test_of_many_heads_only_those_that_answers_need_are_fetched_and_kept(tmp_path, places, tab):
    exports = tiny.make(tmp_path / "exports")
    tiny_light.add(exports, padding=1_000_000)
    with serve(exports) as site:
        page = tab(site)
        page.wait("navigator.serviceWorker.controller !== null")
        for name in ("scab.jpg", "healthy.png"):  # both apple
            assert give(page, places, name).state == "answered"
        sizes = [
            size
            for row, size in zip(site.asked, site.sent, strict=True)
            if row[1].endswith("heads.bin")
        ]
        assert len(sizes) == 1
        assert 1_000_000 < sizes[0] < 1_001_000
        site.stop()
        page.reload()
        page.wait("document.documentElement.dataset.ready === 'browser'")
        assert give(page, places, "scab.jpg").state == "answered"
        other = give(page, places, "corn.png")
        assert (other.state, other.by) == ("rolled_up", "browser")
        assert "Corn" in other.text
        assert "Connect once more" in other.text


@needs_runtime
def test_a_browser_that_blurs_pixels_sends_the_photo_itself(light, places, tab):
    page = tab(light, "server", blurs=True)
    before = len(light.posts())
    give(page, places, "scab.jpg")
    assert light.posts()[before:] == []
    seen = yes(page)
    assert seen.by == "server"
    assert "fingerprinting" in seen.privacy
    assert "your whole photo, with its place" in seen.privacy.lower()
    assert light.posts()[before:] == [["POST", "/predict", "heatmap=1", len(PHOTOS["scab.jpg"])]]


# endregion
