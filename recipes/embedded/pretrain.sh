#!/usr/bin/env bash
# What recipes/embedded/sft.sh begins with, a seed or several: bash recipes/embedded/pretrain.sh 0 1 2
# An encoder in eight languages (stage=aut: single clean sentences, then longer clips and noise), and a language model that
# reads words and copies names from a context. The released models bring both along.
# PYTHON and WORK in the environment: the interpreter, the folder to write to. What is finished there is taken as it is.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_sft}
source "$(dirname "$0")/../once.sh"
for seed in "$@"; do
  to=$work/$seed
  once "$to/aut_first" stage=aut experiment=embedded_aut_first seed="$seed" stage.test=false
  once "$to/aut" stage=aut experiment=embedded_aut seed="$seed" init_from="$to/aut_first/model" stage.test=false
  once "$to/aut_more" stage=aut experiment=embedded_aut_more seed="$seed" init_from="$to/aut/model" stage.test=false
  once "$to/text" stage=sft experiment=embedded_text seed="$seed" stage.test=false
  once "$to/text_lists" stage=sft experiment=embedded_text_lists seed="$seed" init_from="$to/text/model" stage.test=false
done
