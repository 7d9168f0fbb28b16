"""Sentences: texts.json, a translation by --texts, and that no sentence stands anywhere else."""

import json
import re

import pytest
import tiny_bundle as tiny
from conftest import run
from page_site import give, serve
from starlette.testclient import TestClient

from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.http.web_files import WEB
from common.serve.predictor import Predictor
from common.serve.texts import english, fill_page, read_texts

# what a person who looks at a plant need not know
INNARDS = re.compile(r"server|browser|strange|model|sharpness|JSON", re.I)
BELOW_DETAILS = {"by_browser", "by_server", "took"}


def written(tmp_path, value):
    path = tmp_path / "texts.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_a_translation_replaces_sentences_and_keeps_the_others(tmp_path):
    given = {"language": "sw", "ask": "Ni nini?", "class": "{disease} ya {species}"}
    found = read_texts(written(tmp_path, given))
    assert found == {**english(), **given}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"aks": "Ni nini?"}, "no text 'aks'. Did you mean 'ask'?"),
        ({"qqq": "x"}, "no text 'qqq'. "),
        ({"class": "{species}"}, "'class' should hold {disease}, {species} and holds {species}."),
        ({"ask": "Ni {nini}?"}, "'ask' should hold no placeholder and holds {nini}."),
        ({"ask": "Ni nini?}"}, "'ask' should hold"),
        ({"ask": ""}, "'ask' is no sentence"),
        ({"ask": 3}, "'ask' is no sentence"),
        (["ask"], "is no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_bad_translation_is_told_what_is_wrong(tmp_path, capsys, given, told):
    with pytest.raises(SystemExit) as caught:
        read_texts(written(tmp_path, given))
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        read_texts(tmp_path / "none.json")


def test_a_table_has_no_use_for_it(tmp_path, capsys):
    given = written(tmp_path, {"ask": "Ni nini?"})
    with pytest.raises(SystemExit):
        run("04_serve", "--predict", tmp_path, "--texts", given)
    assert "--predict writes a table" in capsys.readouterr().err


def test_every_text_is_used_and_every_text_that_is_used_is_there():
    code = "".join(p.read_text(encoding="utf-8") for p in WEB.glob("*.js"))
    html = (WEB / "index.html").read_text(encoding="utf-8")
    used = set(re.findall(r"\{(\w+)\}", html))
    used |= set(re.findall(r"\"([a-z_0-9]+)\"", code)) & set(english())
    used |= {key for key in english() if re.match("(ill|healthy|named)_[012]", key)}
    starts = re.findall(r"[`\"]([a-z_]+_)\$\{", code)
    used |= {key for key in english() if any(key.startswith(start) for start in starts)}
    used |= {f"{key}_do" for key in used if f"{key}_do" in english()}
    used |= {f"do_{key[4:]}" for key in used if key.startswith("why_")} & set(english())
    used |= {key for key in english() if re.match("photos?_|differ_", key)}
    assert used == set(english())


def test_a_grower_reads_no_word_of_what_it_is_made_of():
    found = {key for key, text in english().items() if INNARDS.search(text)}
    assert found <= BELOW_DETAILS
    assert not [text for text in english().values() if re.search(r"\b100 ?%", text)]


def test_no_sentence_stands_in_the_page_itself():
    html = (WEB / "index.html").read_text(encoding="utf-8")
    bare = re.sub(r"<(script|code|title|h1)\b.*?</\1>|<[^>]*>|\{\w+\}", "", html, flags=re.S)
    assert bare.split() == []
    filled = fill_page(html, {**english(), "choose": "<b>&"})
    assert "&lt;b&gt;&amp;</button>" in filled
    assert not re.search(r"\{\w+\}", filled)


def test_answers_of_the_server_are_in_the_language_too(exports):
    texts = {**english(), "why_not_a_plant": "Siijui.", "do_not_a_plant": "Piga tena."}
    client = TestClient(make_app(Predictor(exports), Settings(texts=texts)))
    told = client.post("/predict", content=tiny.picture(tiny.NO_PLANT)).json()
    assert told["rejection"]["message"] == "Siijui. Piga tena."
    assert client.get("/texts.json").json() == texts
    plain = TestClient(make_app(Predictor(exports), Settings())).get("/page.json").json()
    assert client.get("/page.json").json()["version"] != plain["version"], "it is kept anew"


def test_the_page_speaks_another_language(places, tab):
    texts = {**english(), "language": "sw", "ask": "Ni nini?", "ill_2": "Mgonjwa"}
    with serve(places.plain, texts=texts) as site:
        page = tab(site, "server")
        assert page.js("document.documentElement.lang") == "sw"
        assert page.js("document.getElementById('ask').textContent") == "Ni nini?"
        assert "Mgonjwa" in give(page, places, "scab.jpg").text
