"""onnxruntime-web, which runs the light model in the page, and compressed copies of files.

  python -m common.serve.web_runtime fetch           into .web/, with npm (33 MB, once)
  python -m common.serve.web_runtime pack FILE ...   FILE.gz and, where node is installed, FILE.br

Without the runtime the page asks the server for every photo, so that `fetch` ends with exit code 0
where npm is missing or the network is, and says so.
"""

import base64
import gzip
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import console
from common.files import stand_in

NAME, VERSION = "onnxruntime-web", "1.30.0"
RUNTIME = Path(__file__).parents[2] / ".web" / f"{NAME}-{VERSION}"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
PINNED = {  # SHA-256 of the two files
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_WITHOUT = "the page will ask the server for every photo"
_BROTLI = """const fs = require("fs"), zlib = require("zlib"), c = zlib.constants;
for (const file of process.argv.slice(1)) {
  const data = fs.readFileSync(file);
  fs.writeFileSync(file + ".br", zlib.brotliCompressSync(data, { params: {
    [c.BROTLI_PARAM_QUALITY]: 11, [c.BROTLI_PARAM_LGWIN]: 24,
    [c.BROTLI_PARAM_SIZE_HINT]: data.length } }));
}"""


def fetch(folder: Path = RUNTIME) -> bool:
    """Fetch the runtime with npm, check it and unpack its two files, whole or not at all.

    Returns:
        whether it is there; where it is not, the terminal says why.
    """
    if (folder / "done").is_file():
        return True
    if not (npm := shutil.which("npm")):
        console.say(f"== no npm to fetch {NAME} with: {_WITHOUT}. On Debian: apt install npm")
        return False
    console.say(f"== fetching {NAME} {VERSION} with npm (33 MB, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", "--fetch-retries=1", "--fetch-timeout=60000"]
    command += ["--no-update-notifier", "--cache=cache"]  # asks for nothing else, leaves nothing
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        new = Path(made) / "new"
        new.mkdir()
        try:
            subprocess.run(
                [*command, f"{NAME}@{VERSION}"], cwd=made, check=True, capture_output=True
            )
            unpack(Path(made) / f"{NAME}-{VERSION}.tgz", new)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", b"") or str(error).encode()
            last = (told.decode(errors="replace").strip().splitlines() or [""])[-1]
            console.say(f"== not fetched, so {_WITHOUT}; run this again to try again. {last}")
            return False
        pack([new / SCRIPT, new / WASM])
        (new / "done").touch()
        stand_in(new, folder)
    return True


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the runtime's two files from the npm package. Raises ValueError where its SHA-512 is
    not the pinned one.
    """
    digest = hashlib.sha512(archive.read_bytes()).digest()
    if base64.b64encode(digest).decode() != SHA512:
        raise ValueError(f"{archive.name} is not the expected file: its SHA-512 differs")
    with tarfile.open(archive) as tar:
        for name in PINNED:
            member = tar.extractfile(f"package/dist/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())


def pack(files: Sequence[Path]) -> None:
    """Write a .gz beside each file and, by node where it is installed, a .br."""
    for file in files:
        data = gzip.compress(file.read_bytes(), 9, mtime=0)
        file.with_name(file.name + ".gz").write_bytes(data)
    if node := shutil.which("node"):
        subprocess.run([node, "-e", _BROTLI, *map(str, files)], check=True)


@console.friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Fetch or pack; returns the exit code."""
    parser = console.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="fetch the runtime, once")
    packing = commands.add_parser("pack", help="write compressed copies beside files")
    packing.add_argument("files", nargs="+", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.command == "fetch":
        fetch()
        return 0
    if missing := [file for file in args.files if not file.is_file()]:
        console.fail(f"there is no file {missing[0]} to pack.")
    pack(args.files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
