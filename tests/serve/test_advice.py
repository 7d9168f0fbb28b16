"""advice.csv and reference pictures: what a person may write, what is refused, and how both are
served.
"""

import json
import shutil

import pytest
import tiny_bundle as tiny
from conftest import run
from starlette.testclient import TestClient

from common.serve.advice import begin_advice, describe_advice, read_advice, read_reference
from common.serve.http.app import make_app
from common.serve.http.service import Settings
from common.serve.predictor import Predictor

HEAD = "species,disease,language,scientific_name,local_name,text,severity,treatment,link,source\n"
ROW = "apple,scab,de,Venturia inaequalis,Schorf,Früh spritzen,hoch,Kupfer,https://a.example/b,LTZ\n"
WANTED = {
    "scientific_name": "Venturia inaequalis",
    "local_name": "Schorf",
    "text": "Früh spritzen",
    "severity": "hoch",
    "treatment": "Kupfer",
    "link": "https://a.example/b",
    "source": "LTZ",
}


@pytest.fixture
def read(tmp_path):
    """Write advice.csv and read it."""

    def read(text: str | bytes) -> dict:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "advice.csv").write_bytes(data)
        return read_advice(tmp_path, tiny.TREE)

    return read


def test_it_begins_with_a_row_per_class_that_says_nothing_and_is_never_replaced(tmp_path):
    assert read_advice(tmp_path, tiny.TREE) == {}
    begin_advice(tmp_path, tiny.TREE)
    lines = (tmp_path / "advice.csv").read_text().splitlines()
    assert lines[0] == HEAD.strip()
    assert lines[1:] == [
        ",".join([*tiny.TREE.pair(i), *[""] * 8]) for i in range(tiny.TREE.num_classes)
    ]
    assert read_advice(tmp_path, tiny.TREE) == {}
    assert describe_advice(tmp_path, tiny.TREE).startswith("none ")
    (tmp_path / "advice.csv").write_text(HEAD + ROW)
    begin_advice(tmp_path, tiny.TREE)
    assert (tmp_path / "advice.csv").read_text() == HEAD + ROW


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_it_is_read_as_spreadsheets_write_it(read, codec, mark, end):
    text = (HEAD + ROW).replace(",", mark).replace("\n", end)
    assert read(text.encode(codec)) == {"de": {"apple/scab": WANTED}}


def test_languages_whole_species_and_cells_of_several_lines(read, tmp_path):
    found = read(
        HEAD
        + "Apple,scab,,,,Prune.,,,,\n"
        + 'apple,scab,pt-BR,,,"Corte os ramos.\n\nQueime-os; ""logo"".",,,,\n'
        + "apple,,,Malus domestica,,,,,,\n"
        + "apple,healthy,,,,,,,,\n"  # says nothing
        + "no_such_plant,,,,,,,,,\n"
    )
    assert found.keys() == {"en", "pt-BR"}
    assert found["en"].keys() == {"apple/scab", "apple/"}
    assert found["en"]["apple/"]["scientific_name"] == "Malus domestica"
    assert found["pt-BR"]["apple/scab"]["text"] == 'Corte os ramos.\n\nQueime-os; "logo".'
    own = sum(tiny.TREE.class_name(i).startswith("apple/") for i in range(tiny.TREE.num_classes))
    told = describe_advice(tmp_path, tiny.TREE)
    assert f"in en for {own} of {tiny.TREE.num_classes} classes (none for " in told
    assert "apple" not in told
    assert told.endswith("; also in pt-BR")
    assert read_advice(tmp_path, tiny.TREE, "fr").keys() == {"fr", "pt-BR"}
    assert read("species,text\napple,Prune.\n")["en"]["apple/"]["text"] == "Prune."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + ROW + "apple,rust,,,,a, b,,,,\n", ("line 3", "11 cells", "header has 10")),
        (HEAD + ROW + "apple,rust,,,a\n", ("line 3", "5 cells")),
        (HEAD + "\n" + ROW.replace("scab", "scap"), ("line 3", "apple/scap", "apple/scab or")),
        (HEAD + ROW.replace("apple", "appel"), ("line 2", "appel/scab", "apple/scab or")),
        (HEAD + "qqq,,,,,a,,,,\n", ("line 2", "no class qqq is known. Correct")),
        (HEAD + ROW + ROW, ("line 3", "line 2 is about apple/scab in de, too")),
        (HEAD + ROW.replace("https:", "javascript:"), ("line 2", "javascript://", "https://")),
        (HEAD + ROW.replace("https://a.example/b", "www.a.example"), ("line 2", "www.a.example")),
        (HEAD + ROW.replace(",de,", ",German,"), ("line 2", "'German'", "pt-BR")),
        (HEAD.replace("treatment", "tretment") + ROW, ("'tretment'", "treatment", "first line")),
        (HEAD.replace("species", "plant") + ROW, ("'plant'", "species")),
        ((HEAD + ROW).encode("cp1252"), ("line 2", "UTF-8")),
        (HEAD + 'apple,scab,,,,"Prune,,,,\n' + ROW, ("line 2", "not closed")),
        (HEAD, "empty"),
        (b"PK\3\4....", "spreadsheet"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(read, refused, text, words):
    told = refused(words, read, text)
    assert "advice.csv" in told
    assert "--labels" not in told


# region served


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports with advice and a reference picture."""
    folder = tiny.make(tmp_path_factory.mktemp("advice") / "exports")
    (folder / "advice.csv").write_text(HEAD + ROW, encoding="utf-8")
    picture = folder / "reference" / "apple" / "scab" / "1.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(tiny.picture(tiny.color_of(2), (64, 48), "JPEG"))
    index = {"apple/scab": [{"file": "apple/scab/1.jpg", "source": "garden"}]}
    (folder / "reference" / "index.json").write_text(json.dumps(index))
    return folder


def test_the_server_answers_with_both_and_a_browser_may_keep_them(exports):
    client = TestClient(make_app(Predictor(exports), Settings()))
    assert client.get("/advice.json").json() == {"de": {"apple/scab": WANTED}}
    index = client.get("/reference/index.json").json()
    assert index == {"apple/scab": [{"file": "apple/scab/1.jpg", "source": "garden"}]}
    picture = client.get("/reference/apple/scab/1.jpg", headers={"accept-encoding": "gzip"})
    assert picture.content == (exports / "reference/apple/scab/1.jpg").read_bytes()
    assert picture.headers["content-type"] == "image/jpeg"
    for url in ("/advice.json", "/reference/index.json", "/reference/apple/scab/1.jpg"):
        first = client.get(url)
        assert first.headers["cache-control"] == "no-cache"
        again = client.get(url, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for url in ("apple/scab/2.jpg", "apple/scab", "..%2fbundle.json", "..%2f..%2fadvice.csv", ""):
        assert client.get(f"/reference/{url}").status_code == 404, url
    assert client.get("/advice.csv").status_code == 404
    facts = client.get("/page.json").json()
    assert "advice.json" in facts["shell"]
    assert [name for name in facts["shell"] if "reference" in name] == ["reference/index.json"], (
        "pictures are kept when they are shown"
    )


def test_a_page_that_was_kept_is_renewed_when_either_changes(exports, tmp_path):
    versions = []
    shutil.copytree(exports, tmp_path / "e")

    def seen() -> TestClient:
        client = TestClient(make_app(Predictor(tmp_path / "e"), Settings()))
        versions.append(client.get("/page.json").json()["version"])
        return client

    seen()
    (tmp_path / "e" / "advice.csv").write_text(HEAD + ROW.replace("hoch", "gering"))
    seen()
    picture = tmp_path / "e" / "reference" / "apple" / "scab" / "1.jpg"
    picture.write_bytes(tiny.picture(tiny.color_of(1), (99, 48), "JPEG"))
    seen()
    shutil.rmtree(tmp_path / "e" / "reference")
    (tmp_path / "e" / "advice.csv").unlink()
    client = seen()
    assert len(set(versions)) == 4
    assert client.get("/advice.json").json() == client.get("/reference/index.json").json() == {}
    assert "advice.json" not in client.get("/page.json").json()["shell"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"apple/scab": [{"file": "apple/scab/2.jpg", "source": "x"}]}, "2.jpg is missing"),
        ({"apple/scab": [{"file": "../advice.csv", "source": "x"}]}, "not of these classes"),
        ({"pear/scab": [{"file": "pear/scab/1.jpg", "source": "x"}]}, "not of these classes"),
        ({"apple/scab": [{"file": "apple/scab/1.jpg"}]}, "source"),
        ([], "cannot be used"),
    ],
)
def test_a_damaged_index_is_told(exports, tmp_path, refused, index, words):
    shutil.copytree(exports, tmp_path / "e")
    (tmp_path / "e" / "reference" / "index.json").write_text(json.dumps(index))
    refused((words, "03_export.py --reference"), read_reference, tmp_path / "e", tiny.TREE)


def test_no_server_and_no_worker_starts_over_bad_advice(exports, tmp_path, refused):
    shutil.copytree(exports, tmp_path / "e")
    (tmp_path / "e" / "advice.csv").write_text(HEAD + ROW.replace("scab", "scap"))
    start = ["--exports", tmp_path / "e", "--port", 0, "--provider", "cpu"]
    refused(("line 2", "apple/scab"), run, "04_serve", *start)
    refused(("line 2", "apple/scab"), run, "04_serve", *start, "--workers", 2)


# endregion
