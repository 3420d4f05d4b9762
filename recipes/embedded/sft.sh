#!/usr/bin/env bash
# The whole of stage=sft on embedded speech, a seed or several: bash recipes/embedded/sft.sh 0 1 2
# It begins with the encoder and the language model of pretrain.sh, which it runs where they are not there yet. Then clean
# sentences; then contexts, orders, silence, streams and noise; then the suite. Prints the figures of each seed.
# PYTHON and WORK in the environment: the interpreter, the folder to write to.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_sft}
recipe=$(dirname "$0")
for seed in "$@"; do
  PYTHON="$python" WORK="$work" bash "$recipe/pretrain.sh" "$seed"
  "$python" -m qwen3asr_train stage=sft experiment=embedded_start seed="$seed" \
    init_from="$work/$seed/text/model" init_from_encoder="$work/$seed/aut/model" \
    run_dir="$work/$seed/start" stage.test=false
  "$python" -m qwen3asr_train stage=sft experiment=embedded_sft seed="$seed" \
    init_from="$work/$seed/start/model" run_dir="$work/$seed/sft" stage.test=false
  "$python" -m qwen3asr_train stage=evaluate suite=embedded init_from="$work/$seed/sft/model" \
    run_dir="$work/$seed/suite" stage.decoding.max_piece_seconds=4 stage.live.max_segment_seconds=5
done
"$python" "$recipe/suite_figures.py" "${@/#/$work/}"
