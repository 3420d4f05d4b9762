#!/usr/bin/env bash
# The forced aligner on embedded speech, a seed or several: bash recipes/embedded/aligner.sh 0 1 2
# For each seed a recogniser and an AuT; from the recogniser an aligner, first on the times of the AuT's CTC
# alignment, then under a noisy teacher. AAS on clips, on 60 and 300 s joined (the AuT tells which words a piece
# holds), across languages, in noise, and on the digit strings of a speaker that nobody trained on, beside the AuT's
# CTC alignment. Prints a line of figures for each seed.
# In the environment: PYTHON, the interpreter; WORK, the folder to write to; SFT and AUT, folders of models
# to begin with instead of those trained here; DIGITS, folder or tar of {digit}_{speaker}_{index}.wav (without it there are
# no digit strings), of which SPEAKER is held out.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_aligner}
digits=${DIGITS:-}
speaker=${SPEAKER:-jackson}
root=$(cd "$(dirname "$0")/../.." && pwd)
sets=()
if [[ -n $digits ]]; then
  shards=$work/digits/shards
  if [[ ! -d $shards ]]; then
    "$python" "$root/recipes/own_speech/digit_strings.py" "$digits" --out "$work/digits/strings" \
      --held-out "$speaker" --strings 5 --times
    "$python" -m data_prep.folder "$work/digits/strings/test" --language English \
      --overwrite --out "$work/digits/plain"
    # the joins are exact: nothing is in doubt
    "$python" -m data_prep.import_times "$work/digits/plain" --times "$work/digits/strings/times" \
      --max-letter-seconds 9 --min-letter-seconds 0 --out "$shards"
  fi
  sets=("+suite.sets.digits.data=$shards")
fi
if [[ ! -d $work/speech/test ]]; then
  "$python" -m data_prep.embedded --out "$work/speech" --train-samples 24000 --test-samples 400
fi
speech=(data.validation="$work/speech/validation" data.test="$work/speech/test")
for seed in "$@"; do
  sft=${SFT:-$work/$seed/sft/model}
  aut=${AUT:-$work/$seed/aut/model}
  if [[ ! -f $sft/config.json ]]; then
    "$python" -m qwen3asr_train stage=sft seed="$seed" run_dir="$work/$seed/sft" stage.test=false
  fi
  if [[ ! -f $aut/config.json ]]; then
    "$python" -m qwen3asr_train stage=aut seed="$seed" run_dir="$work/$seed/aut" stage.test=false
  fi
  "$python" -m data_prep.ctc_align "$work/speech/train" --model "$aut" --out "$work/$seed/ctc"
  "$python" -m qwen3asr_train stage=aligner experiment=embedded_aligner_first seed="$seed" \
    init_from="$sft" data.train="$work/$seed/ctc" "${speech[@]}" run_dir="$work/$seed/first"
  "$python" -m qwen3asr_train stage=aligner experiment=embedded_aligner seed="$seed" \
    init_from="$work/$seed/first/model" data.train="$work/speech/train" "${speech[@]}" \
    run_dir="$work/$seed/aligner"
  "$python" -m qwen3asr_train stage=evaluate suite=alignment init_from="$work/$seed/aligner/model" \
    stage.evaluation.ctc_model="$aut" stage.decoding.coarse_model="$aut" \
    stage.decoding.max_seconds=3 stage.decoding.min_seconds=0.4 run_dir="$work/$seed/suite" "${sets[@]}"
done
"$python" "$root/recipes/embedded/aligner_figures.py" "${@/#/$work/}"
