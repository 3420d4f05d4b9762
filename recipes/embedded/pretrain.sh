#!/usr/bin/env bash
# What recipes/embedded/sft.sh begins with, a seed or several: bash recipes/embedded/pretrain.sh 0 1 2
# An encoder in eight languages (stage=aut: single clean sentences, then longer clips and noise), and a language model that
# reads words and copies names from a context. The released models bring both along.
# PYTHON and WORK in the environment: the interpreter, the folder to write to.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_sft}
for seed in "$@"; do
  "$python" -m qwen3asr_train stage=aut experiment=embedded_aut_first seed="$seed" \
    run_dir="$work/$seed/aut_first" stage.test=false
  "$python" -m qwen3asr_train stage=aut experiment=embedded_aut seed="$seed" \
    init_from="$work/$seed/aut_first/model" run_dir="$work/$seed/aut" stage.test=false
  "$python" -m qwen3asr_train stage=sft experiment=embedded_text seed="$seed" \
    run_dir="$work/$seed/text" stage.test=false
done
