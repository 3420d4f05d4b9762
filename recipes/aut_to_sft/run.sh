#!/usr/bin/env bash
# Does a pretrained encoder save training? AuT, then SFT from its encoder with half the steps, beside
# SFT from random weights:
#   bash recipes/aut_to_sft/run.sh [key=value ...]     key=value goes to both SFT runs
# PYTHON, WORK and SEED in the environment: the interpreter, the folder to write to, the seed. An AuT
# that is in WORK/aut already is taken as it is.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/aut_to_sft}
seed=${SEED:-0}
steps=1350
sft=(stage=sft seed="$seed" data.corpus.validation_samples=400 trainer.validate_every=135)

if [[ ! -f $work/aut/model/config.json ]]; then
  "$python" -m qwen3asr_train stage=aut seed="$seed" run_dir="$work/aut"
fi
"$python" -m qwen3asr_train "${sft[@]}" run_dir="$work/scratch" trainer.max_steps=$steps "$@"
"$python" -m qwen3asr_train "${sft[@]}" run_dir="$work/encoder" trainer.max_steps=$((steps / 2)) \
  init_from_encoder="$work/aut/model" "$@"
"$python" "$(dirname "$0")/compare.py" "$work/scratch" "$work/encoder"
