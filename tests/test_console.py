"""What people see: tables, durations, and errors that end in a sentence."""

import errno
import subprocess
import sys

import pytest
from conftest import ROOT

from common import console


def test_table_is_markdown_in_padded_columns():
    text = console.table([("a", 1), ("longer name", 22.5)], ("name", "n"))
    assert text.splitlines() == [
        "| name        | n    |",
        "|-------------|------|",
        "| a           | 1    |",
        "| longer name | 22.5 |",
    ]
    assert console.table([], ("a", "b")).splitlines() == ["| a   | b   |", "|-----|-----|"]
    with pytest.raises(ValueError, match="2 cells"):
        console.table([(1, 2, 3)], ("a", "b"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (48.4, "48 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (725, "12 min 05 s"),
        (5999, "99 min 59 s"),
        (6000, "1 h 40 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def test_fail_says_what_and_ends_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        console.fail("there is no folder x.")
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: there is no folder x.\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), ("disk is full", "x.pt")),
        (OSError(errno.EDQUOT, "Quota"), ("disk is full",)),
        (PermissionError(errno.EACCES, "Permission denied", "there"), ("no permission", "there")),
        (OSError(errno.EROFS, "Read-only file system", "there"), ("no permission",)),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file "
                "data/3"
            ),
            ("disk is full",),
        ),
    ],
)
def test_mishaps_end_in_a_sentence(error, words, refused):
    @console.friendly
    def main(argv=None):
        raise error

    refused(words, main, [])


def test_our_own_faults_keep_their_traceback():
    for error in (
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("shapes differ"),
        ValueError("x"),
    ):

        @console.friendly
        def main(argv=None, error=error):
            raise error

        with pytest.raises(type(error)):
            main([])


def test_ctrl_c_ends_with_130(capsys):
    @console.friendly
    def main(argv=None):
        raise KeyboardInterrupt

    assert main([]) == 130
    assert "Run the same command again" in capsys.readouterr().err


def test_flags_are_not_abbreviated(capsys):
    flags = console.parser("what it does")
    flags.add_argument("--output")
    for argv in (["--outp", "x"], ["--ouput", "x"]):
        with pytest.raises(SystemExit) as caught:
            flags.parse_args(argv)
        assert caught.value.code == 2
    assert "what it does" in flags.format_help()


def test_progress_gives_every_item(capsys):
    assert list(console.progress([1, 2, 3], desc="reading", unit="file")) == [1, 2, 3]
    console.say("a", "b")
    console.header("title")
    console.warn("look out")
    out, err = capsys.readouterr()
    assert out.startswith("a\nb\n")
    assert "== title =" in out
    assert "!! look out" in err


def test_a_long_part_ends_in_one_line(capsys):
    with console.long_part("answers of x", 3) as bar:
        for _ in range(3):
            bar.update()
    out, err = capsys.readouterr()
    assert out == "answers of x: 3 pictures in 0 s\n"
    assert err.count("answers of x") == 1, "no terminal: the beginning alone"


def test_the_end_of_a_script_looks_through_nothing():
    """With torch loaded, the interpreter's last collections took most of the seconds between the
    last line and the end of the process.
    """
    code = """if True:
        import atexit, gc
        from common.console import friendly
        @atexit.register
        def last():
            gc.collect()
            print(len(gc.get_objects()) < 100 < gc.get_freeze_count())
        raise SystemExit(friendly(lambda argv: 0)())
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
