#!/usr/bin/env bash
# The whole of stage=sft on embedded speech, a seed or several: bash recipes/embedded/sft.sh 0 1 2
# First text alone; then clean sentences; then contexts, orders, silence, streams and noise; then the suite. Prints the
# figures of each seed.
# PYTHON and WORK in the environment: the interpreter, the folder to write to.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_sft}
for seed in "$@"; do
  "$python" -m qwen3asr_train stage=sft experiment=embedded_text seed="$seed" \
    run_dir="$work/$seed/text" stage.test=false
  "$python" -m qwen3asr_train stage=sft experiment=embedded_start seed="$seed" \
    init_from="$work/$seed/text/model" run_dir="$work/$seed/start" stage.test=false
  "$python" -m qwen3asr_train stage=sft experiment=embedded_sft seed="$seed" \
    init_from="$work/$seed/start/model" run_dir="$work/$seed/sft" stage.test=false
  "$python" -m qwen3asr_train stage=evaluate suite=embedded init_from="$work/$seed/sft/model" \
    run_dir="$work/$seed/suite" stage.decoding.max_piece_seconds=4
done
"$python" "$(dirname "$0")/suite_figures.py" "${@/#/$work/}"
