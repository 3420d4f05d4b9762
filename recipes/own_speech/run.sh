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

if [[ ! -f $base/config.json ]]; then  # made speech first; once for all speakers
  "$python" -m qwen3asr_train stage=sft run_dir="$work/base"
fi
"$python" "$(dirname "$0")/digit_strings.py" "$recordings" --out "$folder/strings" --held-out "$speaker"
for split in train test; do
  "$python" -m data_prep.folder "$folder/strings/$split" --speaker-folder 1 --language English \
    --overwrite --out "$folder/shards/$split"
done
"$python" -m qwen3asr_train stage=sft experiment=own_speech init_from="$base" \
  data.train="$folder/shards/train" data.test="$folder/shards/test" run_dir="$folder/run" "$@"
