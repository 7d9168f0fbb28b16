#!/usr/bin/env bash
# The whole line on one command: raw photos -> data set -> trained model -> export -> a served answer.
set -euo pipefail

usage() {
  cat <<'TXT'
bash run_all.sh                        the demo: generated leaves, every stage, minutes on two CPU cores
bash run_all.sh SOURCE [SOURCE ...]    your folders of class folders (Tomato___Early_blight/, or tomato/early_blight/);
                                       NAME=FOLDER names one in the manifest
bash run_all.sh test [PYTEST ARGS]     the tests

  --work DIR          where data/, checkpoints/ and exports/ go (default: this folder)
  --recipe NAME       hierarchical, two_core, demo ... (python -m common.train.recipes prints them;
                      default: demo for the demo, else hierarchical with a GPU, two_core without)
  --weights WHAT      auto, imagenet, none or a file of backbone weights (default: auto; none for the demo)
  --not-plants DIR    pictures that show no plant, to fit and test the rejection
  --no-browser        train and export no light model for the browser
  --light-weights X   initial weights of the light model: auto, imagenet, none or a file (default: auto; for the demo, whose
                      light model is a shortened copy, those of the large one)
  --organize "FLAGS"  further flags for 01_reorganize.py, --train "FLAGS" for 02a and 02b, --export "FLAGS" for 03
                      (write paths among them in full)
  --fresh             make everything anew, where the photos or the settings have changed
  --port N            port of the trial server (default: any free one)
  --dry-run           print the commands, run nothing
  --help

Run it again and it goes on where it stopped; what is done is not done twice.
TXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$here recipe="" weights="" not_plants="" organize="" train="" export_flags="" fresh="" port=0 dry_run="" browser=1 light_weights="" sources=()
fail() { echo "error: $*" >&2; exit 2; }
value() { [ $# -ge 2 ] || fail "$1 needs a value (bash run_all.sh --help)"; }

# 1. ----------------------------------------------------------------------------------------- the environment
prepare_python() {
  if [ -z "${VIRTUAL_ENV:-}" ]; then
    local stamp="$here/.venv/.requirements"
    if ! cmp -s "$here/requirements.txt" "$stamp" 2>/dev/null; then
      echo "== making .venv and installing requirements.txt (once; some GB with torch)"
      [ -x "$here/.venv/bin/python" ] || python3 -m venv "$here/.venv" || fail "python3 -m venv failed; on Debian: apt install python3-venv"
      "$here/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" \
        || fail "pip could not install requirements.txt; its message stands above. Run the same command again once it is mended."
      cp "$here/requirements.txt" "$stamp"
    fi
    # shellcheck disable=SC1091
    source "$here/.venv/bin/activate"
  fi
  python -c 'import torch, timm, onnxruntime, cv2' 2>/dev/null \
    || fail "the active environment ($(command -v python)) lacks packages: pip install -r requirements.txt, or deactivate it and run this again."
}

fetch_runtime() {  # what runs the light model in the page; without it the page asks the server
  local name=onnxruntime-web-1.30.0 to="$here/.web/onnxruntime-web-1.30.0" without="the page will ask the server for every photo" made
  [ ! -f "$to/done" ] || return 0
  command -v npm >/dev/null || { echo "== there is no npm to fetch ${name%-*} with: $without. On Debian: apt install npm"; return 0; }
  echo "== fetching ${name%-*} ${name##*-} with npm (33 MB, once)"
  made=$(mktemp -d)
  if (cd "$made" && npm pack --silent --fetch-retries=1 --fetch-timeout=60000 "${name%-*}@${name##*-}") >/dev/null 2>"$made/log" &&
     python - "$made/$name.tgz" "$made" <<'PY' && pack "$made/ort.wasm.bundle.min.mjs" "$made/ort-wasm-simd-threaded.wasm"; then
import base64, hashlib, pathlib, sys, tarfile
archive, to = map(pathlib.Path, sys.argv[1:])
if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()) != (
        b"q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="):
    sys.exit(f"{archive.name} is not the file that is meant: its SHA-512 is another")
with tarfile.open(archive) as tar:
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (to / name).write_bytes(tar.extractfile(f"package/dist/{name}").read())
PY
    rm -f "$made/log" "$made/$name.tgz"; touch "$made/done"
    rm -rf "$to"; mkdir -p "$here/.web"; mv "$made" "$to"; chmod 755 "$to"
  else
    echo "== it could not be fetched, so $without; run this again to try again. $(tail -n 1 "$made/log")"
    rm -rf "$made"
  fi
}

pack() {  # pack FILE...: compressed copies beside files, which the server sends to browsers that take them
  ! command -v node >/dev/null || node -e '
const zlib = require("zlib"), fs = require("fs"), files = process.argv.slice(1);
for (const file of files) {
  const data = fs.readFileSync(file), c = zlib.constants;
  fs.writeFileSync(file + ".gz", zlib.gzipSync(data, { level: 9 }));
  fs.writeFileSync(file + ".br", zlib.brotliCompressSync(data, { params: { [c.BROTLI_PARAM_QUALITY]: 11, [c.BROTLI_PARAM_LGWIN]: 24,
    [c.BROTLI_PARAM_SIZE_HINT]: data.length } }));
}' "$@"
}

if [ "${1:-}" = test ]; then
  shift
  prepare_python
  cd "$here"
  [ $# -eq 0 ] || exec python -m pytest "$@"
  # a process per core, four at most; each file of tests runs in one of them
  share=$(mktemp -d) processes=$(nproc 2>/dev/null || echo 2) others=() status=0
  trap 'kill "${others[@]}" 2>/dev/null || true; rm -rf "$share"' EXIT
  for i in $(seq 2 $((processes < 4 ? processes : 4))); do
    python -m pytest --share="$share" >"$share/$i.log" 2>&1 & others+=($!)
  done
  python -m pytest --share="$share" || status=$?
  for i in "${!others[@]}"; do
    wait "${others[$i]}" || status=$?
    echo "== process $((i + 2))"; cat "$share/$((i + 2)).log"
  done
  others=()
  exit "$status"
fi

while [ $# -gt 0 ]; do
  case "$1" in
    --help|-h) usage; exit 0 ;;
    --work) value "$@"; work=$2; shift 2 ;;
    --recipe) value "$@"; recipe=$2; shift 2 ;;
    --weights) value "$@"; weights=$2; shift 2 ;;
    --not-plants) value "$@"; not_plants=$2; shift 2 ;;
    --no-browser) browser=""; shift ;;
    --light-weights) value "$@"; light_weights=$2; shift 2 ;;
    --organize) value "$@"; organize=$2; shift 2 ;;
    --train) value "$@"; train=$2; shift 2 ;;
    --export) value "$@"; export_flags=$2; shift 2 ;;
    --port) value "$@"; port=$2; shift 2 ;;
    --fresh) fresh=--fresh; shift ;;
    --dry-run) dry_run=1; shift ;;
    -*) fail "unknown flag $1 (bash run_all.sh --help lists them)" ;;
    *) [ -d "$1" ] || [ -d "${1#*=}" ] || fail "there is no folder $1"; sources+=("$1"); shift ;;
  esac
done
[ -z "$not_plants" ] || [ -d "$not_plants" ] || fail "--not-plants: there is no folder $not_plants"

[ -n "$dry_run" ] || prepare_python
[ -n "$dry_run$([ -n "$browser" ] || echo none)" ] || fetch_runtime

# 2. ----------------------------------------------------------------------------------------- what to run
if [ ${#sources[@]} -eq 0 ]; then
  inputs=(--demo) recipe=${recipe:-demo}
  [ -n "$weights" ] || { [ "$recipe" = demo ] && weights=none || weights=auto; }
else
  inputs=("${sources[@]}") weights=${weights:-auto}
  if [ -z "$recipe" ]; then
    if [ -z "$dry_run" ] && python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then recipe=hierarchical; else
      recipe=two_core
      echo "== no GPU is seen: recipe two_core (MobileNetV2, 160 px). --recipe hierarchical trains the Swin-Tiny, for days on a CPU."
    fi
  fi
fi
case "$recipe" in demo|two_core) light=light_$recipe ;; *) light=light ;; esac
[ -z "$not_plants" ] || inputs+=(--not-plants "$not_plants")
times="" started=$(date +%s)

stage() {  # stage NAME COMMAND...: show the command as a person would type it, run it, note its time
  local name=$1 begin; shift
  echo; printf '$ '; printf '%q ' "$@"; echo
  [ -z "$dry_run" ] || return 0
  begin=$(date +%s)
  (cd "$here" && "$@") || exit $?
  times+="$name $(($(date +%s) - begin))"$'\n'
}

# 3. ----------------------------------------------------------------------------------------- the stages
if [ -z "$dry_run" ]; then mkdir -p "$work" 2>/dev/null || fail "cannot make the folder $work"; work=$(cd "$work" && pwd); fi
data=$work/data/organized checkpoints=$work/checkpoints exports=$work/exports
absolute=()
for i in "${inputs[@]}"; do
  name=""
  if [ ! -d "$i" ] && [ -d "${i#*=}" ]; then name=${i%%=*}= i=${i#*=}; fi
  [ ! -d "$i" ] || i=$(cd "$i" && pwd)
  absolute+=("$name$i")
done
best() {  # best CHECKPOINTS: the checkpoint to export, of the last stage that has one
  local found
  for found in "$1"/hierarchical_full/*-best.pt "$1"/disease_heads/disease_heads_final.pt "$1"/species_only/*-best.pt; do
    [ ! -f "$found" ] || { echo "$found"; return; }
  done
  echo "$1/hierarchical_full/epoch=NN-best.pt"  # of a dry run
}
[ ! -f "$light_weights" ] || light_weights=$(cd "$(dirname "$light_weights")" && pwd)/$(basename "$light_weights")
[ ! -f "$weights" ] || weights=$(cd "$(dirname "$weights")" && pwd)/$(basename "$weights")
# shellcheck disable=SC2086  # the flag strings are meant to split
{
  stage 01_reorganize python 01_reorganize.py "${absolute[@]}" --output "$data" $fresh $organize
  stage 02a_train_species python 02a_train_species.py --data "$data" --checkpoints "$checkpoints" --recipe "$recipe" --weights "$weights" $fresh $train
  stage 02b_train_disease python 02b_train_disease.py --data "$data" --checkpoints "$checkpoints" $fresh $train
  browser_flags=()
  if [ -n "$browser" ]; then  # a small model learns from the large one's answers
    stage light_species python 02a_train_species.py --data "$data" --checkpoints "$checkpoints/light" --recipe "$light" \
      --weights "${light_weights:-$([ "$light" = light_demo ] && best "$checkpoints" || echo auto)}" --teacher "$(best "$checkpoints")" $fresh
    stage light_disease python 02b_train_disease.py --data "$data" --checkpoints "$checkpoints/light" --teacher "$(best "$checkpoints")" $fresh
    browser_flags=(--browser "$(best "$checkpoints/light")")
  fi
  stage 03_export python 03_export.py --data "$data" --checkpoints "$checkpoints" --output "$exports" "${browser_flags[@]}" $fresh $export_flags
}
[ -n "$dry_run" ] || [ ! -d "$exports/browser" ] || pack "$exports"/browser/light.{onnx,json}
if [ -n "$dry_run" ]; then echo; echo "$ python 04_serve.py --exports $exports"; exit 0; fi

# 4. ----------------------------------------------------------------------------------------- a trial of the server
echo; echo "\$ python 04_serve.py --exports $exports --port $port"
log=$(mktemp); begin=$(date +%s)
(cd "$here" && exec python 04_serve.py --exports "$exports" --port "$port") >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
python - "$log" "$data" <<'PY' || { cat "$log" >&2; fail "the trial of the server failed; what it said stands above"; }
import csv, io, json, pathlib, re, sys, time, urllib.request
log, data = map(pathlib.Path, sys.argv[1:])
for _ in range(600):
    found = re.search(r"http://[\d.]+:\d+", log.read_text())
    if found: break
    time.sleep(0.1)
else: sys.exit("error: the server did not start within a minute")
def ask(title, photo):
    answer = json.load(urllib.request.urlopen(urllib.request.Request(found[0] + "/predict?top_k=2", data=photo), timeout=60))
    print(f"\n{title}\n  -> {answer['decision']}: " + (f"{answer['species']} / {answer['disease'] or 'disease not sure'}" if answer["species"]
          else answer["rejection"]["message"]) + f"  {answer['probabilities']}  {answer['timings_ms']['total']:.0f} ms")
rows = [r for r in csv.DictReader(open(data / "manifest.csv", encoding="utf-8")) if r["split"] == "test"]
leaf = next((r for r in rows if r["disease"] != "healthy"), rows[0])
with open(data / leaf["path"], "rb") as file:  # its own file, or the shard that holds it
    file.seek(int(leaf["offset"] or 0)); photo = file.read(int(leaf["size"]))
ask(f"a held-out leaf, {leaf['species']} / {leaf['disease']} ({leaf['path']})", photo)
strangers = sorted((data / "not_plants" / "test").rglob("*.jpg"))
if strangers: ask(f"a picture of no plant ({strangers[0].relative_to(data)})", strangers[0].read_bytes())
else:
    from PIL import Image, ImageDraw
    page = Image.new("RGB", (480, 640), "white"); draw = ImageDraw.Draw(page); buffer = io.BytesIO()
    for y in range(40, 600, 24): draw.text((30, y), "A page of text is no plant. " * 3, fill="black")
    page.save(buffer, "PNG"); ask("a picture of no plant (a drawn page of text)", buffer.getvalue())
PY
kill -TERM "$server"; wait "$server" || fail "the server did not stop cleanly"
trap 'rm -f "$log"' EXIT
times+="04_serve $(($(date +%s) - begin))"$'\n'

# 5. ----------------------------------------------------------------------------------------- what came of it
(cd "$here" && python - "$exports/report.json" "$times" $(($(date +%s) - started))) <<'PY'
import json, sys
from common.console import duration, table
from common.export.report import report_table
print("\n== results " + "=" * 69 + "\n" + report_table(json.load(open(sys.argv[1]))))
rows = [line.rsplit(" ", 1) for line in sys.argv[2].splitlines()] + [["in all", sys.argv[3]]]
print("\n" + table([(name, duration(int(seconds))) for name, seconds in rows], ("stage", "time of this run")))
PY
echo; echo "Serve it for good:  $([ -n "${VIRTUAL_ENV:-}" ] && echo "$VIRTUAL_ENV/bin/python" || echo python) 04_serve.py --exports $exports"
