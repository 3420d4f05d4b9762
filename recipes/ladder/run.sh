#!/usr/bin/env bash
# What do the earlier stages bring? The same SFT steps from random weights, from an AuT encoder, and from
# an omni model over that encoder, in English and Chinese; a seed or several:
#   bash recipes/ladder/run.sh 0 1 2
# PYTHON, WORK and STEPS in the environment: the interpreter, the folder to write to, the steps of SFT.
# What is finished in WORK already is taken as it is.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/ladder}
steps=${STEPS:-675}

source "$(dirname "$0")/../once.sh"

for seed in "$@"; do
  to=$work/$seed
  once "$to/aut" stage=aut seed="$seed"
  once "$to/omni" stage=omni seed="$seed" 'data.corpus.languages=[English,Chinese]' \
    init_from_encoder="$to/aut/model"
  # one learning rate and one CTC weight for all three: `auto` differs with what a run begins from
  sft=(stage=sft seed="$seed" trainer.max_steps="$steps" stage.optimizer.lr=2.0e-3 stage.ctc_weight=1.0
       data.corpus.validation_samples=400 trainer.validate_every=135)
  once "$to/scratch" "${sft[@]}"
  once "$to/from_aut" "${sft[@]}" init_from_encoder="$to/aut/model"
  once "$to/from_omni" "${sft[@]}" init_from="$to/omni/model"
done
"$python" "$(dirname "$0")/figures.py" "${@/#/$work/}"
