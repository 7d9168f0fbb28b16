"""The page as a folder that any web host can serve: it answers in the browser alone."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from common.console import fail
from common.files import follow
from common.serve.http.web_files import PAGE, light_files, page_files
from common.serve.predictor import FILE_NAME, read_bundle

_ALTERNATIVES = 5  # of an answer, as a server lists unless told otherwise
_OWN = ("page.json", "sw.js")  # by these, which are written first, a folder of ours is known


def write_static(folder: Path, exports: Path, texts: Mapping[str, str]) -> list[str]:
    """Write the page of an exports folder with all that it asks for: its files, the light model and
    the runtime, advice, reference pictures, page.json and the class list.

    What an earlier run wrote is replaced; files of others in the folder stay.

    Args:
        folder: where to; made where it is missing.
        exports: written by 03_export.py, with a light model.
        texts: sentences by key.

    Returns:
        lines that say what was written, and how to look at it.

    Raises:
        BundleError: where the exports cannot be used, or the light model or the runtime is missing.
        SystemExit: where advice.csv or the reference pictures cannot be used, or a file of somebody
            else's stands in the way.
    """
    bundle, folder = read_bundle(exports), follow(folder)
    aside = folder / ".partial"  # there, too, where a first run was killed
    light_files(exports)  # says what is missing
    version = f"{bundle.version} {bundle.tree.fingerprint()}"
    files, made = page_files(bundle, texts, top_k=_ALTERNATIVES, server=None, version=version)
    species = [
        {"species": name, "diseases": list(diseases)}
        for name, diseases in zip(bundle.tree.species, bundle.tree.diseases, strict=True)
    ]
    counts = {"num_species": bundle.tree.num_species, "num_classes": bundle.tree.num_classes}
    told = {"name": bundle.name, "version": bundle.version, **counts, "classes": species}
    made |= {PAGE: made.pop(""), "model": json.dumps(told, ensure_ascii=False).encode()}
    tops = sorted({name.partition("/")[0] for name in (*files, *made)})
    taken = [path for path in (folder, *folder.parents, folder / FILE_NAME) if path.is_file()]
    if not (aside.exists() or all((folder / name).is_file() for name in _OWN)):
        taken += [path for name in tops if (path := folder / name).exists()]
    if taken:
        fail(f"{taken[0]} is in the way of the page. Choose another folder.")
    shutil.rmtree(aside, ignore_errors=True)
    for name in (*files, *made):
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
    for name, one in files.items():
        shutil.copyfile(one.path, aside / name)
    for name, data in made.items():
        (aside / name).write_bytes(data)
    for name in dict.fromkeys((*_OWN, *tops)):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        os.replace(aside / name, folder / name)
    aside.rmdir()
    size = sum((folder / name).stat().st_size for name in (*files, *made)) / 1e6
    return [
        f"wrote {folder}/ ({size:.1f} MB): any web host with https can serve it, below any address",
        f"look: python -m http.server --directory {folder}, then http://127.0.0.1:8000",
    ]
