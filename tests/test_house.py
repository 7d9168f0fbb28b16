"""The conventions of the house, as code."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted(ROOT.glob("0*.py"))
COMMON = sorted((ROOT / "common").rglob("*.py"))
MODULES = [
    ".".join(p.relative_to(ROOT).with_suffix("").parts) for p in COMMON if p.stem != "__init__"
]
WITH_TORCH = {
    f"common.{name}"
    for name in (
        "export.browser.light_export",
        "export.browser.light_graph",
        "export.fitting",
        "export.graph",
        "export.int8",
        "export.outcomes",
        "export.pictures",
        "export.quantize",
        "export.report",
        "organize.duplicates.cosine",
        "organize.duplicates.embed",
        "train.augment",
        "train.cached_features",
        "train.checkpoint",
        "train.dataset",
        "train.distil",
        "train.distributed",
        "train.ema",
        "train.engine",
        "train.evaluation",
        "train.heads",
        "train.loop",
        "train.losses",
        "train.machine",
        "train.model",
        "train.optim",
        "train.rescale",
        "train.run",
        "train.tail",
    )
}
# all others, with them 01 and 04, start without it (quantize: older onnxruntimes import it)
MOST_LINES = 420


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_scripts_are_there():
    assert [p.name for p in SCRIPTS] == [
        "01_reorganize.py",
        "02a_train_species.py",
        "02b_train_disease.py",
        "03_export.py",
        "04_serve.py",
    ]


@pytest.mark.parametrize("path", SCRIPTS + COMMON, ids=lambda p: p.name)
def test_nothing_imports_a_numbered_script(path):
    text = path.read_text(encoding="utf-8")
    assert not any(re.match(r"\d", name.split(".")[0]) for name in imports_of(path))
    assert not re.search(r"import_module\(\s*[\"']\d", text) and "runpy" not in text


@pytest.mark.parametrize("path", SCRIPTS + COMMON, ids=lambda p: p.name)
def test_files_stay_short_and_functions_too(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 80, node.name
    assert not re.search(r"(?<![\w.])/(work|tmp|home|root)/", text), "a path of one machine"
    assert path.name != "utils.py"


@pytest.mark.parametrize("path", COMMON, ids=lambda p: p.name)
def test_everything_public_in_common_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert path.name == "__init__.py" or ast.get_docstring(tree)
    for scope in [
        tree,
        *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")),
    ]:
        for node in scope.body:
            if isinstance(
                node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            ) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
    assert path.name != "__init__.py" or not path.read_text(), "nothing is re-exported"


@pytest.mark.parametrize("path", COMMON, ids=lambda p: p.name)
def test_common_parses_no_arguments_at_import(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            assert not re.search(r"print|parse_args|seed|cuda|basicConfig", called), (
                f"{path.name}: {called}"
            )


def test_torch_free_modules_do_without_torch():
    assert set(MODULES) >= WITH_TORCH
    names = [name for name in MODULES if name not in WITH_TORCH] + ["04_serve", "01_reorganize"]
    done = python(
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "    bad = {'torch', 'timm', 'torchvision'} & set(sys.modules)\n    assert not bad, "
        "f'{name} imports {bad}'"
    )
    assert done.returncode == 0, done.stderr


def test_importing_prints_nothing_and_touches_no_network_or_device():
    names = MODULES + [p.stem for p in SCRIPTS]
    done = python(
        "import socket\n"
        "def closed(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = closed\nsocket.getaddrinfo = closed\n"
        f"import importlib, random\nimport torch\nbefore, state = random.getstate(), "
        f"torch.random.get_rng_state()\n"
        f"for name in {names!r}:\n    importlib.import_module(name)\n"
        "assert not torch.cuda.is_initialized(), 'device at import'\n"
        "assert random.getstate() == before and torch.equal(torch.random.get_rng_state(), state), "
        "'seed at import'"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# region flags and the README


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """--help of every script, as a person sees it, all in one process to be quick."""
    import contextlib
    import importlib
    import io

    found = {}
    for path in SCRIPTS:
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as caught,
        ):
            importlib.import_module(path.stem).main(["--help"])
        assert caught.value.code == 0 and err.getvalue() == "", path.name
        found[path.name] = out.getvalue()
    return found


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def test_help_of_each_script(helps):
    for path in SCRIPTS:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert all(word in doc for word in ("Reads", "Writes")) or path.name == "04_serve.py", (
            path.name
        )
        assert doc.splitlines()[0] in helps[path.name]
        assert all(
            re.fullmatch(r"--[a-z0-9]+(-[a-z0-9]+)*", flag) for flag in flags_in(helps[path.name])
        )


def test_both_trainers_take_the_same_flags(helps):
    assert flags_in(helps["02a_train_species.py"].split("options:")[1]) - {"--weights"} == flags_in(
        helps["02b_train_disease.py"].split("options:")[1]
    ) - {"--species-checkpoint"}


def test_a_misspelt_flag_stops_every_script():
    import importlib

    for path in SCRIPTS:
        with pytest.raises(SystemExit) as caught:
            importlib.import_module(path.stem).main(["--no-such-flag"])
        assert caught.value.code == 2, path.name


def commands(text: str) -> list[list[str]]:
    """The commands of a text's code blocks, continued lines joined, comments and prompts left
    out."""
    found = []
    for block in re.findall(r"```(?:bash|sh|console|shell|text)?\n(.*?)```", text, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(r"(\S+=\S+ )*(python3? |bash run_all\.sh)", line):
                words = shlex.split(line, comments=True)
                found.append(
                    [w for i, w in enumerate(words) if "=" not in w or i > 0 and w.startswith("-")]
                )
    return found


def known_flags(helps: dict[str, str]) -> dict[str, set[str]]:
    return {
        **{name: flags_in(text) for name, text in helps.items()},
        "run_all.sh": flags_in(
            (ROOT / "run_all.sh").read_text().split("<<'TXT'")[1].split("\nTXT")[0]
        ),
    }


def test_commands_of_the_readme_have_known_flags(helps):
    known, checked = known_flags(helps), 0
    for words in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        script = words[1]
        if script in ("-m", "-c"):
            module = words[2].split(".")
            assert (
                script == "-c"
                or module[0] in ("pytest", "venv", "pip")
                or (ROOT / Path(*module)).with_suffix(".py").is_file()
            ), words
            continue
        if script not in known:
            assert (ROOT / script).is_file(), f"{' '.join(words)}: there is no {script}"
            continue
        for before, word in zip(words[1:], words[2:], strict=False):
            passed = {
                "--organize": ["01_reorganize.py"],
                "--train": ["02a_train_species.py", "02b_train_disease.py"],
                "--export": ["03_export.py"],
            }.get(before, [script])  # run_all.sh hands these on
            for taker in passed:
                assert flags_in(word) <= known[taker], (
                    f"{' '.join(words)}: {taker} does not know {flags_in(word) - known[taker]}"
                )
        checked += 1
    assert checked >= 4, "the README shows commands"
    assert {w[1] for w in commands((ROOT / "README.md").read_text(encoding="utf-8"))} >= {
        "run_all.sh"
    }


def test_commands_of_the_docstrings_have_known_flags(helps):
    known = known_flags(helps)
    for path in SCRIPTS:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        lines = re.findall(r"^\s*python (\d\w+\.py)(.*)$", doc, flags=re.M)
        assert lines, path.name
        for script, rest in lines:
            assert flags_in(rest) <= known[script], (path.name, rest)


def test_the_readme_names_every_file_at_the_top():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in [
        *(p.name for p in SCRIPTS),
        "run_all.sh",
        "requirements.txt",
        "common/",
        "tests/",
        "pyproject.toml",
        ".ci/run",
    ]:
        assert name in readme, name
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    top = (
        {line.split("/")[0] for line in listed.stdout.splitlines()}
        if listed.returncode == 0
        else set()
    )
    allowed = {
        *(p.name for p in SCRIPTS),
        "run_all.sh",
        "requirements.txt",
        "common",
        "tests",
        "pyproject.toml",
        ".ci",
        ".gitignore",
        "README.md",
    }
    assert top <= allowed, top - allowed


def test_no_picture_or_model_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    odd = [
        n
        for n in listed.stdout.splitlines()
        if Path(n).suffix.lower()
        in {
            ".jpg",
            ".jpeg",
            ".png",
            ".webp",
            ".gif",
            ".pt",
            ".pth",
            ".onnx",
            ".bin",
            ".npz",
            ".npy",
            ".zip",
            ".tar",
        }
    ]
    assert not odd


# endregion
