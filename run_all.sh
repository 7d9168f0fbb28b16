#!/usr/bin/env bash
# The pipeline in one command: raw photos -> data set -> trained model -> export -> a served answer.
#
# bash run_all.sh                        the demo: generated leaves, every stage, minutes on 2 cores
# bash run_all.sh SOURCE [SOURCE ...]    your folders of class folders (Tomato___Early_blight/ or
#                                        tomato/early_blight/); NAME=FOLDER names it in manifest.csv
# bash run_all.sh test [PYTEST ARGS]     the tests; -m smoke runs a quick selection
#
#   --work DIR          where data/, checkpoints/ and exports/ go (default: this folder)
#   --recipe NAME       auto (default; the demo's is demo), or a column of common/train/RECIPES.md
#   --minutes N         for recipe auto: time to train the large model (default: 02a --help says it)
#   --weights WHAT      auto, imagenet, none or a file of weights (default: auto; of the demo: none)
#   --not-plants DIR    pictures that show no plant, to fit and test the rejection
#   --no-browser        train and export no light model for the browser
#   --light-weights X   initial weights of the light model: auto, imagenet, none or a file (default:
#                       auto; the demo's light model starts from the weights of its large one)
#   --organize "FLAGS"  further flags for 01_reorganize.py, --train "FLAGS" for 02a and 02b,
#                       --export "FLAGS" for 03 (write paths among them in full)
#   --fresh             redo every stage whose photos or settings have changed
#   --port N            port of the trial server (default: any free one)
#   --dry-run           print the commands, run nothing; --help prints this text
#
# Run the same command again to resume where it stopped; finished stages are not repeated.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$here recipe="" minutes="" weights="" light_weights="" not_plants="" organize="" train=""
export="" port=0 fresh="" dry_run="" browser=1 sources=() inputs=()
fail() { echo "error: $*" >&2; exit 2; }

prepare_python() {  # the active environment, or else .venv with requirements.txt in it
  if [ -z "${VIRTUAL_ENV:-}" ]; then
    local python="$here/.venv/bin/python" stamp="$here/.venv/.requirements"
    if ! cmp -s "$here/requirements.txt" "$stamp" 2>/dev/null; then
      echo "== making .venv and installing requirements.txt (once; some GB with torch)"
      [ -x "$python" ] || python3 -m venv "$here/.venv" \
        || fail "python3 -m venv failed; on Debian: apt install python3-venv"
      "$python" -m pip install -q --disable-pip-version-check -r "$here/requirements.txt" \
        || fail "pip could not install requirements.txt (see above); fix that and run this again."
      cp "$here/requirements.txt" "$stamp"
    fi
    source "$here/.venv/bin/activate"
  fi
  (cd "$here" && python -c 'import common, torch, timm, onnxruntime, cv2') 2>/dev/null \
    || fail "$(command -v python) lacks packages: pip install -r requirements.txt, or deactivate it"
}

if [ "${1:-}" = test ]; then  # a process per core, at most four
  shift; prepare_python; cd "$here"
  exec python -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
fi

[ $# = 0 ] || { set -- "${@/#\~\//$HOME/}"; set -- "${@/=\~\//=$HOME/}"; }  # '~/x', NAME=~/x
while [ $# -gt 0 ]; do
  case "$1" in
    --help|-h) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --work|--recipe|--minutes|--weights|--light-weights|--not-plants|--organize|--train|--export|\
    --port)
      [ $# -ge 2 ] || fail "$1 needs a value (bash run_all.sh --help)"
      name=${1#--}; printf -v "${name//-/_}" %s "$2"; shift 2 ;;  # into the variable of that name
    --no-browser) browser=""; shift ;;
    --fresh) fresh=--fresh; shift ;;  --dry-run) dry_run=1; shift ;;
    -*) fail "unknown flag $1 (bash run_all.sh --help lists them)" ;;
    *) [ -d "$1" ] || [ -d "${1#*=}" ] || fail "there is no folder $1"; sources+=("$1"); shift ;;
  esac
done
[ -z "$not_plants" ] || [ -d "$not_plants" ] || fail "--not-plants: there is no folder $not_plants"
[ -n "$dry_run" ] || prepare_python

if [ ${#sources[@]} -eq 0 ]; then inputs=(--demo) recipe=${recipe:-demo}
  [ "$recipe" != demo ] || weights=${weights:-none}
fi
recipe=${recipe:-auto} light=light  # without a GPU, a light model that trains on a CPU
case "$recipe" in
  demo|two_core) light=light_$recipe ;;
  auto) [ -z "$dry_run" ] && python -c 'import torch; exit(not torch.cuda.is_available())' \
    || light=light_two_core ;;
esac
[ -z "$minutes" ] || [ "$recipe" = auto ] || fail "--minutes is for recipe auto, not for $recipe"

full() {  # the whole path of a FOLDER, a NAME=FOLDER or a file
  if [ -d "$1" ]; then (cd "$1" && pwd)
  elif [ -d "${1#*=}" ]; then echo "${1%%=*}=$(cd "${1#*=}" && pwd)"
  else echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; fi
}
[ -n "$dry_run" ] || mkdir -p "$work" 2>/dev/null || fail "cannot make the folder $work"
[ ! -d "$work" ] || work=$(full "$work")
for source in ${sources[@]+"${sources[@]}"}; do inputs+=("$(full "$source")"); done
[ -z "$not_plants" ] || inputs+=(--not-plants "$(full "$not_plants")")
[ ! -f "$weights" ] || weights=$(full "$weights")
[ ! -f "$light_weights" ] || light_weights=$(full "$light_weights")
data=$work/data/organized checkpoints=$work/checkpoints exports=$work/exports times=""
note() { times+=$(printf '  %-18s %3d min %02d s' "$1" $(($2 / 60)) $(($2 % 60)))$'\n'; }
stage() {  # stage NAME COMMAND...: show the command as a person would type it, run it, time it
  local name=$1 begin=$SECONDS; shift
  echo; printf '$ '; printf '%q ' "$@"; echo
  [ -n "$dry_run" ] || "$@" || exit $?
  note "$name" $((SECONDS - begin))
}
best() {  # best CHECKPOINTS: the checkpoint to export, of the last stage that has one
  for found in "$1"/hierarchical_full/*-best.pt "$1"/disease_heads/disease_heads_final.pt \
               "$1"/species_only/*-best.pt "$1/hierarchical_full/epoch=NN-best.pt"; do
    [ ! -f "$found" ] || break
  done
  echo "$found"  # the last of them in a dry run
}
cd "$here"
where=(--data "$data" --checkpoints "$checkpoints")  # below, flag strings are unquoted to be split
stage 01_reorganize python 01_reorganize.py "${inputs[@]}" --output "$data" $fresh $organize
stage 02a_train_species python 02a_train_species.py "${where[@]}" --recipe "$recipe" \
  --weights "${weights:-auto}" ${minutes:+--minutes "$minutes"} $fresh $train
stage 02b_train_disease python 02b_train_disease.py "${where[@]}" $fresh $train
if [ -n "$browser" ]; then  # a small model learns from the large one's answers
  teacher=$(best "$checkpoints") small=(--data "$data" --checkpoints "$checkpoints/light")
  [ "$light" != light_demo ] || light_weights=${light_weights:-$teacher}
  stage light_species python 02a_train_species.py "${small[@]}" --recipe "$light" \
    --weights "${light_weights:-auto}" --teacher "$teacher" $fresh
  stage light_disease python 02b_train_disease.py "${small[@]}" --teacher "$teacher" $fresh
fi
stage 03_export python 03_export.py "${where[@]}" --output "$exports" \
  ${browser:+--browser "$(best "$checkpoints/light")"} $fresh $export
if [ -z "$dry_run" ]; then
  [ -z "$browser" ] || python -m common.serve.web_runtime fetch
  [ ! -d "$exports/browser" ] \
    || python -m common.serve.web_runtime pack "$exports"/browser/light.{onnx,json}
  stage 04_serve python -m common.serve.trial --exports "$exports" --data "$data" --port "$port"
  echo; echo "== results"; python -m common.export.report "$exports/report.json"
  note "in all" "$SECONDS"; echo; echo "== time of this run"; echo "$times"
fi
echo; echo "$ ${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/}python 04_serve.py --exports $exports"
