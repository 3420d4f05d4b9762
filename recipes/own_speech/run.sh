#!/usr/bin/env bash
# Digit recordings to a recogniser, scored on a speaker that it never heard:
#   bash recipes/own_speech/run.sh RECORDINGS [SPEAKER] [key=value ...]
# RECORDINGS: folder or tar of {digit}_{speaker}_{index}.wav. key=value goes to the training of the
# digits. PYTHON, WORK and BASE in the environment: the interpreter, the folder to write to, and a
# model to start from instead of the one trained here first.
set -euo pipefail
recordings=${1:?usage: run.sh RECORDINGS [SPEAKER] [key=value ...]}
speaker=jackson
shift
if [[ $# -gt 0 && $1 != *=* ]]; then
  speaker=$1
  shift
fi
python=${PYTHON:-python}
work=${WORK:-runs/own_speech}
base=${BASE:-$work/base/model}
folder=$work/$speaker
here=$(dirname "$0")

to_shards() {  # STRINGS SHARDS
  "$python" -m data_prep.folder "$1" --speaker-folder 1 --language English --overwrite --out "$2"
}

# made voices first; once for all speakers
if [[ ! -f $base/config.json ]]; then
  "$python" -m qwen3asr_train stage=sft run_dir="$work/base"
fi
if [[ ! -d $work/made/shards ]]; then
  "$python" "$here/synthetic_takes.py" --out "$work/made/takes"
  "$python" "$here/digit_strings.py" "$work/made/takes" --out "$work/made/strings" --strings 10000
  to_shards "$work/made/strings/train" "$work/made/shards"
fi
"$python" "$here/digit_strings.py" "$recordings" --out "$folder/strings" --held-out "$speaker"
for split in train test; do
  to_shards "$folder/strings/$split" "$folder/shards/$split"
done
"$python" -m qwen3asr_train stage=sft experiment=own_speech init_from="$base" \
  data.train="{recorded: $folder/shards/train, made: $work/made/shards}" \
  data.shares="{recorded: 0.5, made: 0.5}" data.test="$folder/shards/test" \
  run_dir="$folder/run" "$@"
"$python" -m qwen3asr_train stage=evaluate suite=mine data.test="$folder/shards/test" \
  init_from="$folder/run/model" data.english_normaliser=basic stage.decoding.max_new_tokens=24 \
  run_dir="$folder/conditions"
