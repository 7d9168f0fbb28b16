"""Reading: what is stored and how, the journal that survives kills, and readers that die."""

import hashlib
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_data
from PIL import Image
from tiny_profiles import in_srgb, profile

from common import images
from common.organize import intake
from common.organize.duplicates.phash import perceptual_hash
from common.organize.intake import FACTS, HEADER, REASONS, Journal, read_all, read_file, target_of
from common.organize.sources import list_files, parse_sources


def picture(number: int = 0, size: int = 64) -> Image.Image:
    return Image.fromarray(tiny_data.draw("apple", "scab", number, size))


def read(path: Path, link: bool = True, long_side: int = 512):
    target = path.parent / "stored.jpg"
    facts, detail = read_file(str(path), str(target), long_side, link)
    return facts, detail, target


# region one file


def test_a_small_jpeg_becomes_a_hard_link_or_a_copy(tmp_path):
    picture().save(tmp_path / "a.jpg", quality=90)
    facts, detail, target = read(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    assert (facts["reason"], detail) == (0, "")
    assert target.samefile(tmp_path / "a.jpg")
    assert int(facts["stored"]) == len(data)
    assert facts["sha256"].tobytes() == hashlib.sha256(data).digest()
    assert (
        facts["width"],
        facts["height"],
    ) == (64, 64)
    assert int(facts["phash"]) == perceptual_hash(images.read_rgb(data))
    again, _, _ = read(tmp_path / "a.jpg")  # the target is there already, and is the source
    assert again == facts
    assert (tmp_path / "a.jpg").read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "stored.jpg"]
    copied, _, target = read(tmp_path / "a.jpg", link=False)
    assert copied == facts
    assert not target.samefile(tmp_path / "a.jpg")
    assert target.read_bytes() == data


def test_what_replaces_a_link_never_writes_into_the_source(tmp_path):
    picture(0).save(tmp_path / "a.jpg", quality=90)
    before = (tmp_path / "a.jpg").read_bytes()
    read(tmp_path / "a.jpg")
    picture(1).save(tmp_path / "b.png")
    read(tmp_path / "b.png")  # the same target, now encoded
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert (tmp_path / "stored.jpg").read_bytes() != before


@pytest.mark.parametrize("change", ["png", "large", "progressive", "turned", "grey"])
def test_all_else_is_encoded(tmp_path, change):
    image, options, name = picture(size=96), {}, "a.jpg"
    if change == "png":
        name = "a.png"
    if change == "progressive":
        options = {"progressive": True}
    if change == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image, options = image.crop((0, 0, 96, 80)), {"exif": exif}
    if change == "grey":
        image = image.convert("L")
    image.save(tmp_path / name, **options)
    facts, _, target = read(tmp_path / name, long_side=64 if change == "large" else 512)
    with Image.open(target) as stored:
        assert (
            stored.size
            == (int(facts["width"]), int(facts["height"]))
            == {"large": (64, 64), "turned": (80, 96)}.get(change, (96, 96))
        )
        assert stored.mode == "RGB"
        assert stored.getexif().get(0x0112, 1) == 1
    assert target.stat().st_size == facts["stored"]
    assert not target.samefile(tmp_path / name)


def test_training_reads_the_colours_that_serving_reads(tmp_path):
    flat = Image.new("RGB", (64, 64), (90, 140, 60))
    for name in ("Display P3", "Adobe RGB", "sRGB"):
        flat.save(tmp_path / "a.jpg", icc_profile=profile(name), quality=95)
        facts, _, target = read(tmp_path / "a.jpg")
        assert target.samefile(tmp_path / "a.jpg"), "its profile travels with it"
        served = images.read_rgb(tmp_path / "a.jpg")
        assert (images.read_rgb(target) == served).all()
        assert abs(served[9, 9] - in_srgb(np.array((90, 140, 60)), name)).max() < 3
        assert intake.COLORS[facts["colors"]] == ("converted" if name != "sRGB" else "")
        facts, _, target = read(tmp_path / "a.jpg", long_side=40)
        with Image.open(target) as stored:
            assert not stored.info.get("icc_profile"), "what is encoded here is sRGB"
        assert abs(images.read_rgb(target)[9, 9].astype(int) - served[9, 9]).max() < 3


def test_pixels_tell_pictures_apart_and_equal_ones_together(tmp_path):
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "b.bmp")
    picture(1).save(tmp_path / "c.png")
    a, b, c = (read(tmp_path / name)[0] for name in ("a.png", "b.bmp", "c.png"))
    assert (a["pixels"] == b["pixels"]).all()
    assert (a["sha256"] != b["sha256"]).any()
    assert (a["pixels"] != c["pixels"]).any()


def test_refusals_have_a_reason_and_store_nothing(tmp_path):
    cases = {
        "notes.txt": (b"hello", "not_a_picture"),
        "noending": (b"hello", "not_a_picture"),
        "a.jpg": (b"", "empty"),
        "b.jpg": (b"version https://git-lfs.github.com/spec/v1", "text"),
        "c.png": (cv2.imencode(".png", np.full((40, 40), 15, np.uint16))[1].tobytes(), "dark"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        facts, detail, target = read(tmp_path / name)
        assert REASONS[int(facts["reason"])] == reason
        assert detail
        assert not target.exists()
    assert REASONS[int(read(tmp_path / "gone.jpg")[0]["reason"])] == "unreadable"


def test_a_file_of_too_many_bytes_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    (tmp_path / "a.jpg").write_bytes(b"x" * 5000)
    facts, detail, _ = read(tmp_path / "a.jpg")
    assert REASONS[int(facts["reason"])] == "too_large"
    assert "MB" in detail


# endregion

# region all files


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "raw" / "Apple scab"
    root.mkdir(parents=True)
    for k in range(5):
        picture(k).save(root / f"{k}.png")
    (root / "text.jpg").write_bytes(b"hello")
    os.mkfifo(root / "pipe.jpg")
    (root / "broken.jpg").symlink_to(root / "gone.jpg")
    return tmp_path / "raw"


def organize(source: Path, store: Path, workers: int = 1):
    files = list_files(parse_sources([str(source)], None))
    facts, details = read_all(files, store, 512, True, workers)
    return files, facts, details


def test_every_file_has_its_facts_and_pipes_do_not_hang(source, tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(organize(source, tmp_path / "store")), daemon=True
    )
    thread.start()
    thread.join(60)
    assert done, "still waiting for the pipe"
    files, facts, details = done[0]
    told = {files.name(i): REASONS[facts["reason"][i]] for i in range(len(files))}
    assert told == {
        **{f"{k}.png": "" for k in range(5)},
        "text.jpg": "text",
        "pipe.jpg": "unreadable",
        "broken.jpg": "unreadable",
    }
    assert {files.name(i) for i in details} == {"text.jpg", "pipe.jpg", "broken.jpg"}
    for i in range(len(files)):
        assert (tmp_path / "store" / target_of(facts["key"][i])).exists() == (
            facts["reason"][i] == 0
        )


def test_colour_profiles_are_counted(source, tmp_path, capfd):
    organize(source, tmp_path / "store")
    assert "profile" not in "".join(capfd.readouterr())
    for k, made in enumerate((profile("Adobe RGB"), profile("sRGB"), b"none", profile("inks"))):
        picture(k).save(source / "Apple scab" / f"c{k}.png", icc_profile=made)
    for _ in range(2):  # from the journal, too
        organize(source, tmp_path / "store")
        told = capfd.readouterr()
        assert "1 pictures have colours of another profile than sRGB" in told.out
        assert "2 pictures have a colour profile that cannot be used" in told.err


def test_what_the_journal_holds_is_not_read_again(source, tmp_path, monkeypatch, capsys):
    _, facts, details = organize(source, tmp_path / "store")
    (source / "Apple scab" / "new.png").write_bytes((source / "Apple scab" / "0.png").read_bytes())
    asked = []
    honest = intake.read_files
    monkeypatch.setattr(intake, "ProcessPoolExecutor", _InThisProcess)
    monkeypatch.setattr(
        intake, "read_files", lambda paths, *rest: asked.extend(paths) or honest(paths, *rest)
    )
    files, again, told = organize(source, tmp_path / "store")
    assert [Path(p).name for p in asked] == ["new.png"]
    assert "going on: 6 of 9" in capsys.readouterr().out
    same = [i for i in range(len(files)) if files.name(i) != "new.png"]
    assert (again[same] == facts).all()
    assert [told[i] for i in sorted(told)] == [details[i] for i in sorted(details)]


@pytest.mark.parametrize("cut", [1, FACTS.itemsize - 1, FACTS.itemsize + 5])
def test_a_record_cut_short_by_a_kill_is_read_again(source, tmp_path, cut):
    _, facts, details = organize(source, tmp_path / "store")
    path = tmp_path / "store" / "journal.bin"
    os.truncate(path, path.stat().st_size - cut)
    (tmp_path / "store" / "details.jsonl").write_text(
        '["0011", "half a li'
    )  # the last record is the one with a detail
    _, again, told = organize(source, tmp_path / "store")
    assert (again == facts).all()
    assert told == details
    assert (path.stat().st_size - len(HEADER)) % FACTS.itemsize == 0
    _, third, told = organize(source, tmp_path / "store")
    assert (third == facts).all(), "the line after the half one must not be lost"
    assert told == details, "the line after the half one must not be lost"


def test_a_journal_of_another_version_starts_anew(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "journal.bin").write_bytes(
        b"something else entirely, and long enough to be read as records " * 20
    )
    journal = Journal(store)
    assert len(journal.load()[0]) == 0
    journal.close()


class _InThisProcess:
    def __init__(self, *_, **__):
        pass

    def submit(self, work, *args):
        from concurrent.futures import Future

        future = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, **_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def _deadly(paths, *rest):
    if any(path.endswith("2.png") for path in paths):
        os._exit(11)  # as a segmentation fault in a decoder would
    return _HONEST(paths, *rest)


_HONEST = intake.read_files


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="the replaced function reaches a worker by fork only"
)
def test_a_file_that_kills_its_reader_is_refused_and_the_rest_goes_on(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(intake, "read_files", _deadly)
    monkeypatch.setattr(intake, "CHUNK", 2)
    files, facts, details = organize(source, tmp_path / "store", workers=2)
    told = {files.name(i): REASONS[facts["reason"][i]] for i in range(len(files))}
    assert told == {
        **{f"{k}.png": "" for k in (0, 1, 3, 4)},
        "2.png": "unreadable",
        "text.jpg": "text",
        "pipe.jpg": "unreadable",
        "broken.jpg": "unreadable",
    }
    assert any("the process that read it died" in detail for detail in details.values())


# endregion
