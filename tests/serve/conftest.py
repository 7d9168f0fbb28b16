"""What the tests of the page share: its servers, its photos, and tabs of Chromium."""

from types import SimpleNamespace

import pytest
import tiny_bundle as tiny
import tiny_light
from page_site import PHOTOS, serve


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> SimpleNamespace:
    """`.plain`: exports without a light model; `.light`: with one; `.photos`: the folder of
    `PHOTOS`.
    """
    root = tmp_path_factory.mktemp("page")
    plain, light = tiny.make(root / "plain"), tiny.make(root / "light")
    tiny_light.add(light)
    (root / "photos").mkdir()
    for name, data in PHOTOS.items():
        (root / "photos" / name).write_bytes(data)
    return SimpleNamespace(plain=plain, light=light, photos=root / "photos")


@pytest.fixture(scope="module")
def plain(places):
    with serve(places.plain, max_upload_mb=0.5) as site:
        yield site


@pytest.fixture(scope="module")
def light(places):
    with serve(places.light, max_upload_mb=0.5) as site:
        yield site


@pytest.fixture
def tab(browser):
    """Open pages, wait until they are ready to answer, and close them at the end; a complaint of
    theirs fails the test.
    """
    pages = []

    def open_(site, wanted="browser", **emulate):
        page = browser.page(site.url, **emulate)
        pages.append(page)
        assert page.wait("document.documentElement.dataset.ready") == wanted
        return page

    yield open_
    for page in pages:
        page.js("localStorage.clear()")
        complaints = [
            text
            for text in page.complaints()
            if "ERR_CONNECTION_REFUSED" not in text and "status of 4" not in text
        ]
        page.close()
        assert complaints == []
