"""The page in a headless Firefox, where there is one: it answers by itself, sees the server's
pixels, and knows when it may not.
"""

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import tiny_bundle as tiny
import tiny_light
from conftest import run
from firefox import FIREFOX, Firefox
from page_site import needs_runtime, serve
from test_page_numbers import LONG_SIDE, RUN, SIZE, cases

from common.images import read_rgb, resize_to_model

pytestmark = [
    pytest.mark.skipif(FIREFOX is None, reason="no Firefox is installed to look at the page with"),
    needs_runtime,
]


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    exports = tiny.make(tmp_path_factory.mktemp("firefox") / "exports")
    tiny_light.add(exports)
    with serve(exports) as site:
        yield site


@pytest.fixture
def opened(light, tmp_path):
    """Open the page in a Firefox with settings of its own."""
    made = []

    def open_(**prefs):
        firefox = Firefox(tmp_path / "profile", **prefs)
        made.append(firefox)
        firefox.call("WebDriver:Navigate", url=light.url)
        return firefox, firefox.wait("document.documentElement.dataset.ready")

    yield open_
    for firefox in made:
        firefox.close()


def give(firefox, path, photo):
    path.write_bytes(photo)
    firefox.choose("#file", path)
    firefox.wait("!document.getElementById('ask').hidden")
    firefox.js("document.getElementById('ask').click()")
    return settle(firefox)


def settle(firefox):
    return firefox.wait(
        "(({dataset: {state, by}, ariaBusy}) => state && state !== 'waiting' && "
        "ariaBusy === 'false' && "
        "[state, by])"
        "(document.getElementById('result'))"
    )


def test_it_answers_asks_and_rejects_from_the_server_s_pixels(opened, light, tmp_path):
    firefox, ready = opened()
    assert ready == "browser"
    before = len(light.posts())
    assert give(firefox, tmp_path / "a.png", tiny.picture(tiny.color_of(2), (300, 200))) == [
        "answered",
        "browser",
    ]
    assert give(firefox, tmp_path / "b.png", tiny.picture(tiny.NO_PLANT, (300, 200))) == [
        "rejected",
        "browser",
    ]
    assert len(light.posts()) == before
    assert give(firefox, tmp_path / "c.png", tiny.picture(tiny.between(1, 2), (300, 200))) == [
        "rolled_up",
        "server",
    ]
    for name, photo in cases().items():
        found = firefox.js(
            f"{{ await {RUN}; return globalThis.run('{base64.b64encode(photo).decode()}', "
            f"{LONG_SIDE}, {SIZE}); }}"
        )
        rgb = np.frombuffer(base64.b64decode(found["rgb"]), np.uint8).reshape(
            found["height"], found["width"], 3
        )
        wanted = read_rgb(photo, long_side=LONG_SIDE)
        # what shines through is rounded otherwise here
        assert np.abs(rgb.astype(int) - wanted).max() <= ("rgba" in name), name
        if "rgba" not in name:
            small = np.frombuffer(base64.b64decode(found["small"]), np.uint8).reshape(SIZE, SIZE, 3)
            assert np.array_equal(small, resize_to_model(wanted, SIZE)), name


def test_where_pixels_are_blurred_against_fingerprinting_the_photo_itself_is_sent(
    opened, light, tmp_path
):
    firefox, ready = opened(privacy__resistFingerprinting=True)
    assert ready == "server"
    assert "fingerprinting" in firefox.js("document.getElementById('privacy').innerText")
    photo, before = tiny.picture(tiny.color_of(2), (300, 200), "JPEG"), len(light.posts())
    assert give(firefox, tmp_path / "a.jpg", photo) == ["question", ""]
    assert light.posts()[before:] == []
    firefox.js("document.getElementById('whole-yes').click()")
    assert settle(firefox) == ["answered", "server"]
    assert light.posts()[before:] == [["POST", "/predict", "heatmap=1", len(photo)]]


def test_a_square_a_known_plant_and_the_search(opened, light, tmp_path):
    firefox, _ = opened()
    photo = tiny.halves(tiny.color_of(2), tiny.color_of(4))
    give(firefox, tmp_path / "a.png", photo)
    firefox.js("document.getElementById('crop').click()")
    square = "document.getElementById('square')"
    firefox.js(
        f"{{ for (let i = 0; i < 99; i += 1) {square}.dispatchEvent(new KeyboardEvent('keydown', "
        "{ key: 'ArrowRight', bubbles: true, cancelable: true })); }"
    )
    firefox.js("document.getElementById('ask').click()")
    assert settle(firefox) == ["answered", "browser"]
    assert firefox.js("document.querySelector('#result h2').textContent") == "Corn"
    firefox.js(
        "{ const field = document.getElementById('plant'); field.value = 'apple'; "
        "field.dispatchEvent(new Event('input')); document.getElementById('ask').click(); }"
    )
    settle(firefox)
    assert firefox.js("document.querySelector('#result h2').textContent") == "Apple"
    firefox.js(
        "{ const field = document.getElementById('search'); field.value = 'blight'; "
        "field.dispatchEvent(new Event('input')); }"
    )
    assert firefox.js("document.getElementById('known-list').textContent") == "Cornblight"


def test_as_a_folder_it_answers_without_a_server_and_without_a_connection(tmp_path):
    exports, folder = tiny.make(tmp_path / "exports"), tmp_path / "site"
    tiny_light.add(exports)
    assert run("03_export", "--output", exports, "--static", folder) == 0
    asked = []

    class Host(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.command)

    host = ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=folder))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    url, photo = f"http://127.0.0.1:{host.server_port}/", tiny.picture(tiny.color_of(2), (300, 200))
    firefox = Firefox(tmp_path / "profile")
    try:
        for connected in (True, False):
            if not connected:
                host.shutdown()
                host.server_close()
            firefox.call("WebDriver:Navigate", url=url)
            assert firefox.wait("document.documentElement.dataset.ready") == "browser"
            found = give(firefox, tmp_path / "a.png", photo)
            assert found == ["answered", "browser"]
            firefox.wait("navigator.serviceWorker.controller")
    finally:
        firefox.close()
        host.server_close()
    assert set(asked) == {"GET"}
