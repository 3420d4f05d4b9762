#!/usr/bin/env bash
# The whole of stage=sft on embedded speech, a seed or several: bash recipes/embedded/sft.sh 0 1 2
# It begins with the encoder and the language model of pretrain.sh, which it runs where they are not there yet. Then clean
# sentences; then contexts, orders, silence, streams and noise, at last with more names that are not said; then the suite.
# Prints the figures of each seed.
# PYTHON and WORK in the environment: the interpreter, the folder to write to. What is finished there is taken as it is.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_sft}
recipe=$(dirname "$0")
source "$recipe/../once.sh"
for seed in "$@"; do
  to=$work/$seed
  PYTHON="$python" WORK="$work" bash "$recipe/pretrain.sh" "$seed"
  once "$to/start" stage=sft experiment=embedded_start seed="$seed" init_from="$to/text_lists/model" \
    init_from_encoder="$to/aut_more/model" stage.test=false
  once "$to/sft" stage=sft experiment=embedded_sft seed="$seed" init_from="$to/start/model" stage.test=false
  once "$to/last" stage=sft experiment=embedded_sft_last seed="$seed" init_from="$to/sft/model" stage.test=false
  once "$to/suite" stage=evaluate suite=embedded init_from="$to/last/model" \
    stage.decoding.max_piece_seconds=4 stage.decoding.min_piece_seconds=1 stage.live.max_segment_seconds=5
done
"$python" "$recipe/suite_figures.py" "${@/#/$work/}"
