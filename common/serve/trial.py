"""A trial of the server: start it, ask it about a held-out photo and about a picture of no plant,
print the answers, stop it.

  python -m common.serve.trial --exports exports --data data/organized

Exit code 0 only where it started, answered both and stopped cleanly on SIGTERM.
"""

import csv
import io
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from common import console

SCRIPT = Path(__file__).parents[2] / "04_serve.py"
START_SECONDS, STOP_SECONDS = 60, 40


def held_out_photo(data: Path) -> tuple[str, bytes]:
    """A photo of the test split, of a diseased plant where there is one: its title and bytes.

    Raises SystemExit where data is no data set of 01, or has no test photo.
    """
    manifest = data / "manifest.csv"
    if not manifest.is_file():
        console.fail(f"there is no {manifest}; write it with 01_reorganize.py.")
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    if not rows:
        console.fail(f"{manifest} has no photo in the test split.")
    row = next((row for row in rows if row["disease"] != "healthy"), rows[0])
    with (data / row["path"]).open("rb") as stream:  # the photo's own file, or its shard
        stream.seek(int(row["offset"] or 0))
        photo = stream.read(int(row["size"]))
    return f"a held-out leaf, {row['species']} / {row['disease']} ({row['path']})", photo


def no_plant(data: Path) -> tuple[str, bytes]:
    """A picture of no plant, of the data set or drawn: its title and bytes."""
    if found := sorted((data / "not_plants" / "test").rglob("*.jpg")):
        return f"a picture of no plant ({found[0].relative_to(data)})", found[0].read_bytes()
    page, buffer = Image.new("RGB", (480, 640), "white"), io.BytesIO()
    draw = ImageDraw.Draw(page)
    for y in range(40, 600, 24):
        draw.text((30, y), "A page of text is no plant. " * 3, fill="black")
    page.save(buffer, "PNG")
    return "a picture of no plant (a drawn page of text)", buffer.getvalue()


def ask(url: str, photo: bytes) -> dict[str, Any]:
    """The server's answer to a photo. Raises OSError where there is none."""
    with urllib.request.urlopen(f"{url}/predict?top_k=2", data=photo, timeout=60) as response:
        return json.load(response)


def told(answer: dict[str, Any]) -> str:
    """An answer in a line."""
    what = answer["rejection"]["message"]
    if answer["species"]:
        what = f"{answer['species']} / {answer['disease'] or 'disease not sure'}"
    milliseconds = answer["timings_ms"]["total"]
    return f"  -> {answer['decision']}: {what}  {answer['probabilities']}  {milliseconds:.0f} ms"


def wait_for_url(server: subprocess.Popen[str], lines: list[str]) -> str:
    """The address that the server prints once it serves; its output goes to `lines`. Raises
    SystemExit where it ends first or takes longer than a minute.
    """

    def read() -> None:
        assert server.stdout is not None
        lines.extend(server.stdout)  # to the end, so that the server never waits for its reader

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        if found := re.search(r"http://[\w.\[\]:]+:\d+", "".join(lines)):
            return found[0]
        time.sleep(0.1)
    reading.join(1)  # a server that has ended may have said why a moment ago
    console.fail(f"the server did not start:\n{''.join(lines)}")


@console.friendly
def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial; returns the exit code."""
    parser = console.parser(__doc__)
    parser.add_argument("--exports", type=Path, default=Path("exports"), help="what 03 wrote")
    parser.add_argument(
        "--data", type=Path, default=Path("data/organized"), help="what 01 wrote: the photos to ask"
    )
    parser.add_argument("--port", type=int, default=0, help="port (default: any free one)")
    args = parser.parse_args(argv)
    photos = [held_out_photo(args.data), no_plant(args.data)]
    command = [sys.executable, "-u", SCRIPT, "--exports", args.exports, "--port", args.port]
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        lines: list[str] = []
        try:
            url = wait_for_url(server, lines)
            for title, photo in photos:
                console.say("", title, told(ask(url, photo)))
            server.terminate()
            code = server.wait(STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            console.fail(f"the trial of the server failed ({error}):\n{''.join(lines)}")
        finally:
            server.kill()
    if code:
        console.fail(f"the server stopped with exit code {code}:\n{''.join(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
