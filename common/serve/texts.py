"""The sentences that people read, in the page and in answers: web/texts.json, or a translation."""

import difflib
import functools
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.console import fail

ENGLISH = Path(__file__).parent / "web" / "texts.json"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@functools.cache
def english() -> dict[str, str]:
    """All sentences by key; `{name}` stands for a value."""
    return json.loads(ENGLISH.read_text(encoding="utf-8"))


def read_texts(path: Path) -> dict[str, str]:
    """All sentences, those of a translation in place of the English ones.

    Args:
        path: a JSON object of some or all keys of web/texts.json.

    Raises:
        SystemExit: where the file is none, has an unknown key, or a sentence whose placeholders are
            not those of the English one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        fail(f"--texts {path} cannot be read: {error}")
    if not isinstance(found, dict):
        fail(f"--texts {path} is no JSON object of keys and sentences, as {ENGLISH} is.")
    for key, sentence in found.items():
        if key not in english():
            close = difflib.get_close_matches(key, english(), n=1)
            hint = f" Did you mean '{close[0]}'?" if close else f" {ENGLISH} has them all."
            fail(f"--texts {path}: there is no text '{key}'.{hint}")
        if not isinstance(sentence, str) or not sentence.strip():
            fail(f"--texts {path}: '{key}' is no sentence; leave it out to keep the English one.")
        wanted, given = (set(_PLACEHOLDER.findall(text)) for text in (english()[key], sentence))
        if wanted != given or {*"{}"} & {*_PLACEHOLDER.sub("", sentence)}:
            fail(
                f"--texts {path}: '{key}' should hold {_listed(wanted)} and holds {_listed(given)}."
            )
    return {**english(), **found}


def _listed(names: set[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in sorted(names)) or "no placeholder"


def fill_page(page: str, texts: Mapping[str, str]) -> str:
    """A page of HTML with its sentences, for which their keys stand in it, as in `{choose}`."""
    return _PLACEHOLDER.sub(lambda found: html.escape(texts[found[1]]), page)


def message(rejection: Mapping[str, Any], texts: Mapping[str, str]) -> str | None:
    """What is wrong and what to do about it, of an answer's `rejection`; None where nothing is."""
    reason = rejection["reason"]
    return reason and f"{texts[f'why_{reason}']} {texts[f'do_{reason}']}"
