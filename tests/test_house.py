"""The conventions of this repository, as code: its layout, imports, sizes, documentation and
commands.
"""

import ast
import functools
import graphlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.smoke

SCRIPTS = sorted(ROOT.glob("0*.py"))
COMMON = sorted((ROOT / "common").rglob("*.py"))
CODE = SCRIPTS + COMMON
BENCHMARKS = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))
TEXTS = [*CODE, *sorted((ROOT / "tests").rglob("*.py")), ROOT / "run_all.sh", ROOT / ".ci/run"]
GUIDES = [
    "README.md",
    "common/serve/README.md",
    "common/serve/CLUSTERS.md",
    "tests/benchmarks/README.md",
]

# what each package may import besides itself; "core" stands for the modules in common/ itself
IMPORTS = {
    "core": set(),
    "demo": {"core"},
    "organize": {"core"},
    "train": {"core"},
    "export": {"core", "train", "common.serve.predictor"},
    "serve": {"core"},
}
# in packages that otherwise do without torch
WITH_TORCH = {"common.organize.duplicates.cosine", "common.organize.duplicates.embed"}
OLD_WORDS = r"stranger|plants_lost|\bclimb|\batlas|leaf_idx|num_leaves|sources/\d\d\d"


def each(paths: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Make a check of one file a test of them all, which names every file that fails and why."""

    def over_all(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            failed = {}
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    failed[str(path.relative_to(ROOT))] = str(error).splitlines()[0]
            assert not failed, "\n".join(f"{name}: {why}" for name, why in failed.items())

        test.__doc__ = check.__doc__
        return test

    return over_all


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = [name_of(path) for path in COMMON if path.stem != "__init__"]


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else "core"


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> set[str]:
    """Every name that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(parsed(path)) if isinstance(node, kinds)]


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names of a function's parameters, `self` and `cls` excepted."""
    args = node.args
    named = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return [name for name in named if name not in ("self", "cls")]


def run_at_import(path: Path) -> list[ast.Call]:
    """The calls that importing a file makes, those of decorators and defaults included; what runs
    as `__main__` alone is not.
    """
    found, nodes = [], list(parsed(path).body)
    while nodes:
        node = nodes.pop()
        found += [node] if isinstance(node, ast.Call) else []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes += [
                *node.decorator_list,
                *node.args.defaults,
                *filter(None, node.args.kw_defaults),
            ]
        elif not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)):
            nodes += ast.iter_child_nodes(node)
    return found


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


# region layout and imports


def test_the_scripts_are_there():
    assert [p.name for p in SCRIPTS] == [
        "01_reorganize.py",
        "02a_train_species.py",
        "02b_train_disease.py",
        "03_export.py",
        "04_serve.py",
    ]


def test_common_is_a_core_and_a_package_per_stage():
    modules = [
        "__init__",
        "classes",
        "console",
        "containers",
        "decide",
        "files",
        "images",
        "labels",
    ]
    packages = ["demo", "export", "organize", "serve", "train"]
    found = {p.name for p in (ROOT / "common").iterdir() if p.name != "__pycache__"}
    assert found == {*(f"{name}.py" for name in modules), *packages}


@each(CODE)
def test_nothing_imports_a_numbered_script(path):
    text = path.read_text(encoding="utf-8")
    assert not [name for name in imports_of(path) if re.match(r"\d", name)]
    assert not re.search(r"import_module\(\s*[\"']\d", text)
    assert "runpy" not in text


@each([path for path in COMMON if path.stem != "__init__"])
def test_imports_point_down(path):
    package = package_of(name_of(path))
    ours = imports_of(path) & set(MODULES)
    wrong = {
        name
        for name in ours
        if package_of(name) not in {package} | IMPORTS[package] and name not in IMPORTS[package]
    }
    assert not wrong, f"{package} must not import {wrong}"
    assert "TYPE_CHECKING" not in path.read_text(encoding="utf-8")


@each(SCRIPTS + BENCHMARKS)
def test_onnxruntime_is_imported_after_common(path):
    """`common/__init__.py` turns off its telemetry, which begins when it is imported."""
    assert "onnxruntime" not in imports_of(path), "import it from common.serve.predictor"


def test_run_all_imports_onnxruntime_after_common():
    imports = re.findall(r"import .*onnxruntime", (ROOT / "run_all.sh").read_text())
    assert imports
    assert all(line.startswith("import common, ") for line in imports)


def test_no_modules_import_each_other_in_a_circle():
    graph = {name_of(path): imports_of(path) & set(MODULES) for path in COMMON}
    assert sum(map(len, graph.values())) > 100, "imports are found"
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


# endregion

# region sizes


def test_common_and_the_scripts_stay_small():
    count = sum(isinstance(node, ast.stmt) for path in CODE for node in ast.walk(parsed(path)))
    # 15,360 until uploads that are not trusted, shards, advice and the page without a server
    assert count <= 16_670


@each(CODE)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 490
    for node in functions(path):
        assert node.end_lineno - node.lineno + 1 <= 100, f"{node.name} is too long"
        assert len(parameters(node)) <= 8, f"{node.name} takes too many parameters"
    assert not re.search(r"(?<![\w.])/(work|tmp|home|root)/", text), "a path of one machine"
    assert path.name != "utils.py"


@each(TEXTS)
def test_lines_have_at_most_100_columns(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, 1) if len(line) > 100]


@pytest.mark.parametrize(("name", "most"), [("README.md", 250), ("run_all.sh", 130)])
def test_what_everybody_reads_is_short(name, most):
    assert (ROOT / name).read_text(encoding="utf-8").count("\n") <= most


def test_the_training_loop_is_a_page():
    found = {node.name: node for node in functions(ROOT / "common" / "train" / "loop.py")}
    page = [found["training_step"], found["train_epoch"]]
    assert sum(node.end_lineno - node.lineno + 1 for node in page) < 120
    for node in page:
        assert not node.args.vararg
        assert not node.args.kwarg


# endregion

# region documentation, words and imports at run time


@each(CODE + BENCHMARKS)
def test_the_words_of_the_field(path):
    text = path.read_text(encoding="utf-8")
    assert not sorted(set(re.findall(OLD_WORDS, text, flags=re.I)))


@each(COMMON)
def test_everything_public_in_common_is_documented(path):
    tree = parsed(path)
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
    assert path.name != "__init__.py" or imports_of(path) <= {"os"}, "nothing is re-exported"


@each(COMMON)
def test_common_parses_no_arguments_at_import(path):
    for node in run_at_import(path):
        called = ast.unparse(node.func)
        assert not re.search(r"print|parse_args|seed|cuda|basicConfig|ArgumentParser", called), (
            called
        )


def test_the_core_and_all_but_training_do_without_torch():
    assert set(MODULES) >= WITH_TORCH
    free = [
        name
        for name in MODULES
        if package_of(name) in ("core", "demo", "organize", "serve") and name not in WITH_TORCH
    ]
    names = [*free, "common.train.recipes", "common.train.metrics", "01_reorganize", "04_serve"]
    done = python(
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "    bad = {'torch', 'timm', 'torchvision'} & set(sys.modules)\n    assert not bad, "
        "f'{name} imports {bad}'"
    )
    assert done.returncode == 0, done.stderr


def test_serving_loads_neither_the_name_parser_nor_what_trains_and_exports():
    names = [name for name in MODULES if package_of(name) == "serve"] + ["04_serve"]
    done = python(
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "print(*[n for n in sys.modules if n.startswith('common.')])"
    )
    assert done.returncode == 0, done.stderr
    loaded = {package_of(name) for name in done.stdout.split() if name in MODULES}
    assert loaded == {"core", "serve"}


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


# endregion

# region flags and commands


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
        assert caught.value.code == 0, path.name
        assert err.getvalue() == "", path.name
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
    assert flags_in(helps["02a_train_species.py"].split("options:")[1]) - {
        "--weights",
        "--review-labels",
        "--minutes",
    } == flags_in(helps["02b_train_disease.py"].split("options:")[1]) - {"--species-checkpoint"}


def test_a_misspelt_flag_stops_every_script():
    import importlib

    for path in SCRIPTS:
        with pytest.raises(SystemExit) as caught:
            importlib.import_module(path.stem).main(["--no-such-flag"])
        assert caught.value.code == 2, path.name


def code_of(path: Path) -> str:
    """A file without its docstring, which may show flags of other scripts."""
    text = path.read_text(encoding="utf-8")
    return text.replace(parsed(path).body[0].value.value, "", 1)


def commands(text: str) -> list[list[str]]:
    """The commands of a text's code blocks, continued lines joined, without comments, prompts and
    assignments; and those in running text that give flags to a script.
    """
    found = [["python", *shlex.split(told)] for told in re.findall(r"`(\w+\.py -[^`]*)`", text)]
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M):
        if language not in ("", "bash", "sh", "console", "shell", "text"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if re.match(r"(\S+=\S+ )*(\S*/)?(python3? |torchrun |bash run_all\.sh)", line):
                words = shlex.split(line, comments=True)
                while "=" in words[0]:
                    words.pop(0)
                found.append(words)
    return found


@pytest.fixture(scope="module")
def known_flags(helps) -> dict[str, set[str]]:
    """The flags of each script and of run_all.sh, from their help, and of each benchmark, from its
    source.
    """
    told = subprocess.run(
        ["bash", ROOT / "run_all.sh", "--help"], capture_output=True, text=True, check=True
    )
    texts = {**helps, "run_all.sh": told.stdout}
    adders = [p for p in (*BENCHMARKS, *COMMON) if any(f.name == "add_flags" for f in functions(p))]
    for path in BENCHMARKS:
        used = [p for p in adders if {p.stem, name_of(p)} & imports_of(path)]
        texts[str(path.relative_to(ROOT))] = "".join(map(code_of, {path, *used}))
    return {name: flags_in(text) for name, text in texts.items()}


HANDED_ON = {  # flags of run_all.sh whose value is flags of these scripts
    "--organize": ["01_reorganize.py"],
    "--train": ["02a_train_species.py", "02b_train_disease.py"],
    "--export": ["03_export.py"],
}


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_of_the_guides_have_known_flags(guide, known_flags):
    checked = set()
    for words in commands((ROOT / guide).read_text(encoding="utf-8")):
        told = " ".join(words)
        if words[1] == "-m":
            is_ours = words[2].startswith("common.")
            assert is_ours or words[2] in ("pytest", "venv", "pip", "http.server"), told
            assert not is_ours or (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file()
            continue
        if words[1] == "-c":
            continue
        own = list(itertools.dropwhile(lambda w: not w.endswith((".py", ".sh")), words))
        script = own[0]
        if script not in known_flags and "/" not in script:
            script = f"tests/benchmarks/{script}"
        assert (ROOT / script).is_file(), f"{told}: there is no {script}"
        checked.add(script)
        for before, word in zip(own, own[1:], strict=False):
            for taker in HANDED_ON.get(before, [script]):
                unknown = flags_in(word) - known_flags[taker]
                assert not unknown, f"{told}: {taker} does not know {unknown}"
    expected = {
        "README.md": {"run_all.sh", "01_reorganize.py", "04_serve.py"},
        # its curl lines are run by tests/serve/test_cookbook.py
        "common/serve/README.md": {"04_serve.py"},
        "common/serve/CLUSTERS.md": {"04_serve.py"},
        "tests/benchmarks/README.md": {
            str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "benchmarks").glob("*.py")
        }
        - {  # parts of others
            f"tests/benchmarks/{name}.py"
            for name in (
                "stopping",
                "few_shot",
                "gpu_bench",
                "gpu_scripts",
                "gpu_training",
                "ladder_contestants",
                "ladder_data",
            )
        },
    }[guide]
    assert not expected - checked, f"{guide} shows no command of {expected - checked}"


def test_commands_of_the_docstrings_have_known_flags(known_flags):
    for path in SCRIPTS:
        lines = re.findall(
            r"^\s*python (\d\w+\.py)(.*)$", ast.get_docstring(parsed(path)), flags=re.M
        )
        assert lines, path.name
        for script, rest in lines:
            assert flags_in(rest) <= known_flags[script], (path.name, rest)


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


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The paths that git tracks."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_nothing_else_stands_at_the_top(tracked):
    known = {".ci", ".dockerignore", ".gitignore", "README.md", "common", "pyproject.toml"}
    known |= {"requirements.txt", "run_all.sh", "tests", *(path.name for path in SCRIPTS)}
    assert not {line.split("/")[0] for line in tracked} - known


def test_no_picture_or_model_is_committed(tracked):
    pictures = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
    weights = {".pt", ".pth", ".onnx", ".bin", ".npz", ".npy", ".zip", ".tar"}
    assert not [name for name in tracked if Path(name).suffix.lower() in pictures | weights]


# endregion
