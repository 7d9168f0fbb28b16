"""The page as a grower uses it: a square of a photo, several photos, a known plant, advice and
pictures to compare with, what leaves the device, and waiting.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny_bundle as tiny
from page_site import SLOW, choose, give, needs_runtime, serve, settle

from common.serve.texts import english


def ask(page):
    page.click("ask")
    return settle(page)


def square(page):
    """Left, top and side of the square on the photo, in shares of its width and height."""
    return page.js("""(() => {
      const [a, b] = ['square', 'preview'].map((id) =>
        document.getElementById(id).getBoundingClientRect());
      return a.width ? [(a.left - b.left) / b.width, (a.top - b.top) / b.height,
        a.width / b.width, a.height / b.height] : null;
    })()""")


def at(page, *places):
    """The places on the screen of places on the photo, in shares of its width and height."""
    left, top, width, height = page.js("""(async () => {
      const box = () => document.getElementById('preview').getBoundingClientRect();
      let still = 0; // frames: a finger that is lifted lets the page roll on
      for (let last; still < 4; last = box().top) {
        document.getElementById('stage').scrollIntoView();
        await new Promise(requestAnimationFrame);
        still = box().top === last ? still + 1 : 0;
      }
      const { left, top, width, height } = box();
      return [left, top, width, height]; })()""")
    return [(left + x * width, top + y * height) for x, y in places]


# region a part of a photo


@needs_runtime
def test_a_square_drawn_with_a_mouse_is_what_is_answered_and_what_is_sent(full, places, tab):
    page, before = tab(full), len(full.posts())
    choose(page, places, "halves.png")
    page.wait("!document.getElementById('crop').hidden")
    assert "Corn" not in ask(page).text
    page.drag(*at(page, (0.6, 0.2), (0.9, 0.5)))
    assert square(page) == pytest.approx([0.6, 0.2, 0.3, 0.45], abs=0.02)
    assert page.js("document.getElementById('result').dataset.state") == "", "it is asked anew"
    seen = ask(page)
    assert (seen.state, seen.by) == ("answered", "browser")
    assert "Corn" in seen.text
    page.click("second")
    page.wait("document.getElementById('result').dataset.by === 'server'")
    assert "Corn" in settle(page).text
    [_, _, query, size] = full.posts()[-1]
    assert "short_side=90" in query  # of the square: 0.45 of 200 pixels
    assert size < 1000
    assert len(full.posts()) > before
    page.click("crop")  # the whole photo again
    assert square(page) is None


@needs_runtime
def test_two_fingers_span_the_square_and_one_scrolls(full, places, tab):
    page = tab(full, width=360, height=740, mobile=True)
    choose(page, places, "halves.png")
    page.wait("!document.getElementById('crop').hidden")
    up = at(page, (0.5, 0.7), (0.5, 0.4), (0.5, 0.1))
    before = page.js("scrollY")
    page.fingers(*([place] for place in up))
    page.wait(f"scrollY > {before} + 20")
    assert square(page) is None
    one, other, *ends = at(page, (0.6, 0.4), (0.8, 0.5), (0.6, 0.3), (0.9, 0.6))
    page.fingers([one], [one, other], ends)
    assert square(page) == pytest.approx([0.6, 0.225, 0.3, 0.45], abs=0.02)
    assert page.js("visualViewport.scale") == 1, "the browser has not zoomed in"
    assert "Corn" in ask(page).text


@needs_runtime
def test_the_square_moves_and_grows_by_keys_and_stays_within_the_photo(full, places, tab):
    page = tab(full)
    choose(page, places, "halves.png")
    page.wait("!document.getElementById('crop').hidden")
    page.js("document.getElementById('crop').focus()")
    page.click("crop")
    assert page.js("document.activeElement.id") == "crop"
    first = square(page)
    page.js("document.getElementById('square').focus()")
    page.press("ArrowRight", 2)
    assert square(page)[0] == pytest.approx(first[0] + 2 * 0.05 * 2 / 3, abs=0.01)
    page.press("ArrowUp", 30)
    page.press("ArrowRight", 30)
    left, top, width, height = square(page)
    assert (top, left + width) == pytest.approx((0, 1), abs=0.01)
    page.press("-", 30)
    assert square(page)[3] == pytest.approx(0.1, abs=0.01)
    page.press("+", 30)
    assert square(page)[3] == pytest.approx(1, abs=0.01)


# endregion

# region several photos, a known plant, what it knows


def test_all_photos_of_a_plant_are_shown_and_too_many_are_told(plain, places, tab):
    page = tab(plain, "server")
    names = ["scab.jpg", "healthy.png", "between.png", "corn.png", "no_plant.png", "small.png"]
    choose(page, places, *names[:2])
    page.wait("document.querySelectorAll('#thumbs img').length === 2")
    page.choose("#file-more", [places.photos / name for name in names[2:]])
    page.wait("document.querySelectorAll('#thumbs img').length === 5")
    assert "1 were left out" in page.js("document.getElementById('left-out').textContent")
    click_first = "document.querySelector('#thumbs li:nth-child(2) button')"
    page.js(f"{click_first}.focus()")
    page.js(f"{click_first}.click()")
    page.wait(f"{click_first}.ariaPressed === 'true'")
    assert page.js(f"document.activeElement === {click_first}")
    seen = ask(page)
    assert "photo 1 says apple scab" in seen.text, "numbers are those of the photos as they stand"
    assert len(page.js("[...document.querySelectorAll('.shots img')].map((i) => i.src)")) == 5
    assert seen.by == "server"
    choose(page, places, "scab.jpg")  # another plant
    page.wait("document.getElementById('thumbs').hidden")


def type_into(page, field, text):
    page.js(f"""(() => {{ const field = document.getElementById('{field}');
      field.value = {json.dumps(text)}; field.dispatchEvent(new Event('input')); }})()""")


@needs_runtime
def test_a_known_plant_is_picked_by_typing_and_counts_here_and_there(light, places, tab):
    page = tab(light)
    page.wait("document.querySelectorAll('#plants option').length === 3")

    def type_(text):
        type_into(page, "plant", text)
        return page.js("document.getElementById('plant-hint').textContent")

    assert "not on my list" in type_("appel")
    assert type_(" Corn ") == ""
    seen = give(page, places, "scab.jpg")
    assert "Corn" in page.js("document.querySelector('#result h2').textContent")
    assert "You said corn" in seen.text
    assert "I would have said apple" in seen.text
    assert "I am sure" not in seen.text
    if page.js("document.getElementById('second')"):
        page.click("second")
        page.wait("document.getElementById('result').dataset.by === 'server'")
    assert "species=corn" in light.posts()[-1][2]
    assert "You said corn" in settle(page).text
    assert type_("") == ""
    assert "Apple" in give(page, places, "scab.jpg").text


@needs_runtime
def test_what_it_knows_is_searched_by_any_name(full, tab):
    page = tab(full)
    page.wait("!document.getElementById('known').hidden")

    def search(text):
        type_into(page, "search", text)
        return page.js("document.getElementById('known-list').textContent")

    assert "Basil" in search("")
    assert search("BLIGHT") == "Cornblight"
    assert "Apple" in search("malus")
    assert "scab" in search("venturia")
    assert search("zzz") == ""
    type_into(page, "plant", "mti wa TOFAA")
    assert page.js("document.getElementById('plant-hint').textContent") == ""
    assert page.js("document.getElementById('search-count').textContent") == "0 found"


# endregion

# region advice


@needs_runtime
def test_advice_and_pictures_are_shown_where_somebody_wrote_and_gave_them(full, places, tab):
    page = tab(full)
    page.wait("!document.getElementById('known').hidden")
    seen = give(page, places, "scab.jpg")
    for told in ("Malus domestica", "Mti wa tofaa", "Venturia inaequalis", "Burn the leaves."):
        assert told in seen.text
    for told in ("high in wet years", "copper", "Extension service", "my garden"):
        assert told in seen.text
    link = page.js("(({ href, rel }) => [href, rel])(document.querySelector('.next a'))")
    assert link == ["https://example.org/scab", "noopener noreferrer"]
    shown = page.js("[...document.querySelectorAll('.compare img')].map((i) => i.src)")
    assert any(url.endswith("reference/apple/scab/1.jpg") for url in shown)
    assert shown[0].startswith("blob:"), "the person's own photo first"
    healthy = give(page, places, "corn.png")
    assert "Burn" not in healthy.text
    assert "get advice for this disease" in healthy.text, "nothing is invented"


@needs_runtime
def test_under_never_send_pictures_are_only_asked_for_after_a_yes(full, places, tab):
    page = tab(full, fresh=True)
    page.wait("!document.getElementById('known').hidden")
    page.click("private")
    before = len(full.asked)
    seen = give(page, places, "scab.jpg")
    assert "knows what you compare" in seen.text
    assert [row for row in full.asked[before:] if row[1].endswith(".jpg")] == []
    page.click("compare-load")
    page.wait("document.querySelector('.compare img[src^=reference]')?.complete")
    assert [row for row in full.asked[before:] if row[1].endswith(".jpg")]


@needs_runtime
def test_the_example_is_a_picture_that_may_be_shown(full, tab):
    page = tab(full)
    page.wait("!document.getElementById('example').hidden")
    page.click("example")
    page.wait("!document.getElementById('ask').hidden")
    assert page.js("document.getElementById('example').hidden")
    assert ask(page).state == "answered"


@needs_runtime
def test_nobody_is_told_that_the_example_is_too_small(places, tab, tmp_path):
    exports = shutil.copytree(places.full, tmp_path / "exports")
    for path in (exports / "reference").rglob("*.jpg"):
        path.write_bytes(tiny.picture(tiny.color_of(0), (60, 36)))
    with serve(exports) as site:
        page = tab(site)
        assert "too small" in give(page, SimpleNamespace(photos=exports), path).text
        page.reload()
        page.wait("document.getElementById('example')?.hidden === false")
        page.click("example")
        page.wait("!document.getElementById('ask').hidden")
        seen = ask(page)
        assert (seen.state, "too small" in seen.text) == ("answered", False)


# endregion

# region words, what leaves the device, waiting


@needs_runtime
def test_a_rejected_photo_shows_no_sure_guess_and_says_what_is_wrong(light, places, tab):
    page = tab(light)
    seen = give(page, places, "no_plant.png")
    outside = page.js("""[...document.querySelectorAll('#result > :not(details)')].map((e) =>
      e.innerText).join(' ')""")
    assert "%" not in outside
    assert not any(name in outside for name in ("Apple", "Basil", "Corn"))
    assert seen.bars == []
    for name in ("scab.jpg", "healthy.png", "corn.png"):
        assert "100 %" not in give(page, places, name).text


@needs_runtime
def test_badge_sentence_and_bars_agree_and_a_poor_photo_is_never_surely_healthy(light, places, tab):
    page = tab(light)
    seen = give(page, places, "healthy.png")
    share = page.js("document.querySelector('#result .share').textContent")
    assert f"I am sure: {share}." in seen.text
    assert "Looks healthy" in seen.text
    (places.photos / "low.png").write_bytes(tiny.picture(tiny.color_of(0), (90, 36)))
    seen = give(page, places, "low.png")
    assert (seen.state, "The photo is too small." in seen.text) == ("answered", True)
    assert "Probably healthy" in seen.text
    assert "I would say so (over 99 %), but mind this:" in seen.text
    assert "worries me" not in seen.text


@needs_runtime
def test_a_photo_that_no_other_opinion_makes_better_is_not_sent(light, places, tab):
    page, before = tab(light), len(light.posts())
    (places.photos / "low.png").write_bytes(tiny.picture(tiny.between(2, 4), (90, 36)))
    assert give(page, places, "low.png").text.startswith("No answer\nYour photo stayed on this")
    assert len(light.posts()) == before


def test_on_a_phone_the_question_is_in_sight_with_both_answers(plain, places, tab):
    page = tab(plain, "server", width=360, height=640, mobile=True)
    assert give(page, places, "scan.tif").state == "question"
    bottom = page.js("document.getElementById('whole-no').getBoundingClientRect().bottom")
    assert 0 < bottom <= 640


def test_a_whole_photo_leaves_only_after_a_yes_and_a_no_is_a_no(plain, places, tab):
    page, before = tab(plain, "server"), len(plain.posts())
    seen = give(page, places, "scan.tif")
    assert seen.state == "question"
    assert "with its place" in seen.text
    page.click("whole-no")
    seen = settle(page)
    assert (seen.state, len(plain.posts())) == ("error", before)
    assert "not sent" in seen.text
    give(page, places, "scan.tif")
    page.click("private")
    assert settle(page).state == "error"
    assert len(plain.posts()) == before


@needs_runtime
def test_what_the_browser_can_show_is_answered_on_the_device(light, places, tab):
    """An SVG stands for what an <img> shows and a worker cannot decode, as HEIC on some phones."""
    (places.photos / "drawn.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><rect width="300" '
        f'height="200" fill="rgb{tiny.color_of(2)}"/></svg>'
    )
    page, before = tab(light), len(light.posts())
    seen = give(page, places, "drawn.svg")
    assert (seen.state, seen.by, len(light.posts())) == ("answered", "browser", before)
    assert seen.spoken.startswith("Apple, scab")


@needs_runtime
def test_while_it_asks_it_shows_that_and_can_be_stopped(light, places, tab):
    page = tab(light)
    page.js(SLOW)
    choose(page, places, "between.png")
    page.click("ask")
    page.wait("document.getElementById('result').textContent.includes('so I am asking')")
    during = page.js("document.getElementById('result').innerText")
    assert "cannot tell" not in during
    assert "Show what you have" in during
    assert page.js("document.querySelectorAll('#result [role=progressbar]').length") == 1
    page.click("cancel")
    seen = settle(page)
    assert (seen.state, seen.by) == ("rolled_up", "browser")
    assert "You called it off" in seen.text
    assert "A small copy was sent" in seen.text, "what was under way may have arrived"


# endregion

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(2000)


@pytest.mark.parametrize("never", [False, True])
def test_what_the_server_cannot_open_either_is_told_at_once_and_not_sent(plain, places, tab, never):
    page, before = tab(plain, "server"), len(plain.posts())
    (places.photos / "IMG_1.HEIC").write_bytes(HEIC)
    (places.photos / "IMG_2.heif").write_bytes(HEIC.replace(b"heic", b"mif1"))
    (places.photos / "film.mp4").write_bytes(b"\0\0\0\x24ftypmp42" + bytes(2000))
    (places.photos / "raw.jpg").write_bytes(b"FUJIFILMCCD-RAW" + bytes(2000))
    if never:
        page.click("private")
    for name in ("IMG_1.HEIC", "IMG_2.heif"):
        seen = give(page, places, name)
        assert seen.state == "error"
        assert "screenshot" in seen.text
        assert "Most Compatible" in seen.text
    page.js(
        "void (Blob.prototype.slice = ((real) => function (...part) {"
        " globalThis.read = true; return real.apply(this, part); })(Blob.prototype.slice))"
    )
    for name, is_read in (("film.mp4", False), ("raw.jpg", True)):
        seen = give(page, places, name)
        assert (seen.state, "not a picture" in seen.text) == ("error", True)
        assert page.js("Boolean(globalThis.read)") == is_read, "a film may be large"
    assert len(plain.posts()) == before


@needs_runtime
def test_local_names_in_the_page_s_language_are_shown_in_place_of_class_names(
    places, tab, tmp_path
):
    exports = shutil.copytree(places.light, tmp_path / "exports")
    (exports / "advice.csv").write_text(
        "species,disease,language,scientific_name,local_name,text\n"
        "apple,,de,Malus domestica,Zierapfel,Im Winter schneiden.\napple,scab,de,,Schorf,\n"
        "corn,,en,,basil,\nbasil,,de,,Zierapfel,\n"
        "corn,blight,de,,Mais,\ncorn,healthy,de,,Mais,\n"
    )
    texts = {**english(), "language": "de", "healthy": "gesund"}
    with serve(exports, texts=texts) as site:
        page = tab(site)
        page.wait("!document.getElementById('known').hidden")
        known = page.js("document.getElementById('known-list').textContent")
        assert "Zierapfel" in known
        assert "gesund, rust, Schorf" in known
        assert known.index("Corn") < known.index("Zierapfel"), "in the order of what is shown"
        options = page.js("[...document.getElementById('plants').options].map((e) => e.value)")
        assert options == ["corn", "Zierapfel", "basil"], "two are called the same"
        type_into(page, "search", "gesund")
        assert "Zierapfel" in page.js("document.getElementById('known-list').textContent")
        type_into(page, "plant", "zierapfel")
        seen = give(page, places, "scab.jpg")
        heading = page.js(
            "[...document.querySelectorAll('#result :is(h2, .second)')].map((e) => e.textContent)"
        )
        assert heading == ["Zierapfel", "Schorf"]
        assert (
            page.js("document.querySelector('#result .label').textContent") == "Zierapfel, Schorf"
        )
        assert "Malus domestica\napple" in seen.text
        assert "Im Winter schneiden." in seen.text, "a row for the whole species"
        type_into(page, "plant", "")
        seen = give(page, places, "corn.png")
        assert page.js("document.querySelector('#result h2').textContent") == "Corn"
        assert "basil" in seen.text, "a name in another language stands below"
        type_into(page, "plant", "basil")
        give(page, places, "corn.png")
        name = page.js("document.querySelector('#result h2')?.textContent")
        assert name == "Zierapfel", "the class of that name, not the corn that is called so too"
        type_into(page, "plant", "")
        (tmp_path / "near.png").write_bytes(tiny.picture((183, 220, 106)))
        seen = give(page, SimpleNamespace(photos=tmp_path), "near.png")
        assert (seen.state, len(seen.bars)) == ("answered", 2), "of two that are called the same"


@needs_runtime
def test_a_second_opinion_is_only_offered_where_there_is_a_connection(light, places, tab):
    away = SimpleNamespace(url=light.url.replace("127.0.0.1", "leaf.localhost"))
    for site, there in ((away, False), (light, True)):  # on this very computer it is without one
        page = tab(site)
        offered = "document.getElementById('second').hidden === false"
        page.offline(True)
        assert give(page, places, "no_plant.png").state == "rejected"
        assert page.js(offered) == there
        assert ("You are offline" in settle(page).privacy) == (not there)
        page.offline(False)
        page.wait(offered)


def test_a_device_that_is_too_old_is_told_so_and_not_that_it_blurs_photos(plain, tab):
    why = tab(plain, "server").js("""(async () => {
      delete globalThis.OffscreenCanvas;
      await import('./worker.js');
      return new Promise((done) => {
        globalThis.postMessage = ({ result }) => done(result);
        onmessage({ data: { id: 1, job: 'checkPixels', facts: {} } });
      });
    })()""")
    assert why == {"pixels": False, "why": "old"}


@needs_runtime
def test_a_photo_that_is_all_but_black_is_rejected_on_the_device(places, tab, tmp_path):
    exports = shutil.copytree(places.light, tmp_path / "exports")
    path = exports / "browser" / "light.json"
    settings = json.loads(path.read_text())
    # a quarter of it, 0.35, is more than basil has, and a little less than scab has: 0.36
    settings["rejection"]["photo"]["brightness"] = 1.4
    path.write_text(json.dumps(settings))
    for name, class_idx in (("basil.png", 3), ("scab.png", 2)):
        (tmp_path / name).write_bytes(tiny.picture(tiny.color_of(class_idx)))
    with serve(exports) as site:
        page, here = tab(site), SimpleNamespace(photos=tmp_path)
        assert give(page, here, "scab.png").state == "answered"
        seen = give(page, here, "basil.png")
        assert (seen.state, seen.by) == ("rejected", "browser")
        assert "too dark" in seen.text
        assert site.posts() == []
