"""Settings and fixtures of all tests: one thread, no network, the repository root on the path, and
the pipeline at tiny size, run once.
"""

import importlib
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # equal sums on every machine, and in the subprocesses too
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tiny_data  # noqa: E402
from filelock import FileLock  # noqa: E402  # comes with torch
from PIL import Image  # noqa: E402

import common  # noqa: E402, F401  # turns off telemetry

cv2.setNumThreads(1)  # OpenCV's threads do not survive the forks of loaders and pools
Image.new("L", (1, 1)).save(written := BytesIO(), "PNG")
PIXEL = written.getvalue()


def run(script: str, *argv: object, rendered: bool = False) -> int:
    """Call a numbered script's main in this process. 02a, 02b and 03 make their figures, but write
    a pixel for each unless `rendered`: rendering would take most of a tiny run. The commands of
    test_pipeline render theirs, and the tests of `plots` all kinds.
    """
    main, words = importlib.import_module(script).main, [str(part) for part in argv]
    if rendered or not script.startswith(("02", "03")):
        return main(words)
    from matplotlib.figure import Figure

    with mock.patch.object(Figure, "savefig", lambda _, path, **__: Path(path).write_bytes(PIXEL)):
        return main(words)


@pytest.fixture
def refused(capfd):
    """Call a script and expect exit code 2 with a sentence on stderr that holds all of `words`;
    returns the sentence.
    """

    def check(words: str | tuple[str, ...], call, *args: object, **kwargs: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(*args, **kwargs)
        told = capfd.readouterr().err
        assert caught.value.code == 2, f"exit code {caught.value.code}: {told}"
        assert "error:" in told, told
        assert "Traceback" not in told, told
        for word in (words,) if isinstance(words, str) else words:
            assert word in told, f"`{word}` is not in: {told}"
        return told

    return check


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a seed of its own is the same in every run."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Have a folder made by whichever of pytest's processes needs it first, and read by all."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = place / "once" / name, place / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def organized(made_once) -> Path:
    """data/organized of the tiny set, with pictures of no plant; read only."""
    return made_once("tiny", tiny_data.organize) / "data" / "organized"


@pytest.fixture(scope="session")
def data(organized):
    """The tiny set as the trainers load it; read only."""
    from common.train.dataset import load_organized

    return load_organized(organized)


@pytest.fixture(scope="session")
def trained(organized, made_once) -> SimpleNamespace:
    """`.data` and `.checkpoints` after 02a and 02b; read only."""

    def make(folder: Path) -> None:
        where = ["--data", organized, "--checkpoints", folder]
        assert run("02a_train_species", *where, *tiny_data.SPECIES) == 0
        assert run("02b_train_disease", *where, *tiny_data.DISEASE) == 0

    return SimpleNamespace(data=organized, checkpoints=made_once("checkpoints", make))


@pytest.fixture(scope="session")
def exported(trained, made_once) -> SimpleNamespace:
    """`.exports` too, after 03; read only."""
    where = ["--data", trained.data, "--checkpoints", trained.checkpoints]

    def make(folder: Path) -> None:
        assert run("03_export", *where, "--output", folder, "--workers", 0) == 0

    exports = made_once("exports", make)
    flags = [*where, "--output", exports, "--workers", 0]
    return SimpleNamespace(**vars(trained), exports=exports, flags=flags)


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """The exports folder of `tiny_bundle`, whose model goes by the mean colour; read only."""
    import tiny_bundle

    return tiny_bundle.make(tmp_path_factory.mktemp("tiny_bundle") / "exports")


@pytest.fixture(scope="module")
def predictor(exports):
    """A predictor of `exports`."""
    from common.serve.predictor import Predictor

    return Predictor(exports)


@pytest.fixture(scope="session")
def browsers(tmp_path_factory):
    """Gives a headless browser by its name: one process each, which all tests of the page share."""
    from chromium import CHROMIUM, Chromium
    from firefox import FIREFOX, Firefox

    made, kinds = {}, {"chromium": (CHROMIUM, Chromium), "firefox": (FIREFOX, Firefox)}

    def get(name):
        program, kind = kinds[name]
        if program is None:
            pytest.skip(f"no {name} is installed to look at the page with")
        if name not in made:
            made[name] = kind(tmp_path_factory.mktemp(name) / "profile")
        return made[name]

    yield get
    for one in made.values():
        one.close()


@pytest.fixture(scope="module", params=["chromium", "firefox"])
def browser(browsers, request):
    """Each browser in turn. A test for one only is parametrized with its name."""
    return browsers(request.param)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> SimpleNamespace:
    """`.plain`: exports without a light model; `.light`: with one; `.full`: with advice and
    pictures to compare with, too; `.photos`: the folder of `PHOTOS`.
    """
    import json
    import shutil

    import tiny_bundle as tiny
    import tiny_light
    from page_site import PHOTOS

    root = tmp_path_factory.mktemp("page")
    plain, light = tiny.make(root / "plain"), tiny.make(root / "light")
    tiny_light.add(light)
    full = shutil.copytree(light, root / "full")
    (full / "advice.csv").write_text(
        "species,disease,language,scientific_name,local_name,text,severity,treatment,link,source\n"
        "apple,,sw,Malus domestica,Mti wa tofaa,,,,,\n"
        "apple,scab,en,Venturia inaequalis,,Burn the leaves.,high in wet years,copper,"
        "https://example.org/scab,Extension service\n"
    )
    index = {}
    for i in range(tiny.TREE.num_classes):
        name = tiny.TREE.class_name(i)
        (full / "reference" / name).mkdir(parents=True)
        (full / "reference" / name / "1.jpg").write_bytes(tiny.picture(tiny.color_of(i)))
        index[name] = [{"file": f"{name}/1.jpg", "source": "my garden"}]
    (full / "reference" / "index.json").write_text(json.dumps(index))
    (root / "photos").mkdir()
    for name, data in PHOTOS.items():
        (root / "photos" / name).write_bytes(data)
    return SimpleNamespace(plain=plain, light=light, full=full, photos=root / "photos")


@pytest.fixture(scope="module")
def plain(places):
    """The page without a light model, served."""
    from page_site import serve

    with serve(places.plain, max_upload_mb=0.5) as site:
        yield site


@pytest.fixture(scope="module")
def light(places):
    """The page with one, served."""
    from page_site import serve

    with serve(places.light, max_upload_mb=0.5) as site:
        yield site


@pytest.fixture(scope="module")
def full(places):
    """The page with all that it can show, served."""
    from page_site import serve

    with serve(places.full, max_upload_mb=0.5) as site:
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
            if not re.search(
                "REFUSED|INTERNET_DISC|when fetching the script|status of (4|502)"
                "|leaf.svg’. A ServiceWorker intercepted",  # Firefox leaves a page before its icon
                text,
            )
        ]
        page.close()
        assert complaints == []
