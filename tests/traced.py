"""Commands run under `strace`: whom they and their processes ask, and which files they write."""

import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STRACE = shutil.which("strace")
# io_uring could do all of the others unseen
CALLS = "connect,sendto,sendmsg,sendmmsg,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,"
CALLS += "renameat2,link,linkat,symlink,symlinkat,mknod,mknodat,io_uring_setup"
NAMES = {"ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "DO_NOT_TRACK"}
ADDRESS = re.compile(
    r"sa_family=AF_INET6?, sin6?_port=htons\((\d+)\).*?"
    r"(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([^\"]+)"
)
PATH = re.compile(r"(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?\"((?:[^\"\\]|\\.)*)\"")
WRITES = re.compile(r"O_CREAT|O_WRONLY|O_RDWR")


@dataclass(frozen=True)
class Trace:
    """What processes did: `asked`, address and port of each packet or connection that left the
    machine or asked for a name; `local`: how many stayed on loopback; `written`: paths that they
    made, renamed or opened to write.
    """

    asked: frozenset[str]
    local: int
    written: frozenset[Path]

    def outside(self, *folders: Path) -> list[Path]:
        """What was written elsewhere than below these folders and Python's own __pycache__."""
        own = [*(folder.resolve() for folder in folders), Path("/dev"), Path("/proc")]
        return sorted(
            path
            for path in self.written
            if "__pycache__" not in path.parts and not any(map(path.is_relative_to, own))
        )


def without_settings(home: Path, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of somebody with this home folder who has set nothing about telemetry; files
    for a moment go below it, too.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in NAMES and not name.startswith(("XDG_", "MPL", "TORCH", "HF_"))
    }
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return kept | {"HOME": str(home), "TMPDIR": str(home / "tmp")}


def may_trace() -> bool:
    """Whether strace is installed and allowed to trace; some containers forbid it."""
    command = [*words(Path(os.devnull)), "true"]
    return STRACE is not None and subprocess.run(command, check=False).returncode == 0


def words(log: Path) -> list[str]:
    """What to write before a command, to have its calls in a log for `read`."""
    options = ["-f", "--seccomp-bpf", "-qq", "-y", "-e", f"trace={CALLS}", "-e", "signal=none"]
    return [STRACE, *options, "-o", str(log)]


def run(command: Sequence[str | Path], log: Path, cwd: Path, **options: object) -> Trace:
    """Run a command under strace in the folder cwd; options as for `subprocess.run`. Raises
    CalledProcessError where it fails.
    """
    subprocess.run([*words(log), *command], check=True, cwd=cwd, **options)
    return read(log, cwd)


def read(log: Path, cwd: Path) -> Trace:
    """Read what strace wrote; paths that it shows without their folder are taken as below cwd.

    A call that another process interrupts is two lines, `<unfinished ...>` and `<... resumed>`: the
    first has the address or path. Calls that failed count as asked, but wrote nothing.
    """
    asked, local, written = set(), 0, set()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        call, _, rest = line.split(maxsplit=1)[-1].partition("(")
        for port, address in ADDRESS.findall(rest):
            # the resolver of a container may be on loopback: it passes questions on
            if port == "53" or not ipaddress.ip_address(address).is_loopback:
                asked.add(f"{address} port {port}")
            else:
                local += 1
        if call == "io_uring_setup":
            asked.add("io_uring, which strace cannot follow")
        paths = list(PATH.finditer(rest))
        if not paths or call.startswith(("connect", "send")) or " = -1 " in rest:
            continue
        if not call.startswith("open") or WRITES.search(rest[paths[-1].end() :].split(" = ")[0]):
            written |= {Path(os.path.normpath(os.path.join(m[1] or cwd, m[2]))) for m in paths}
    return Trace(frozenset(asked), local, frozenset(written))
