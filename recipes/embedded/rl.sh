#!/usr/bin/env bash
# Reinforcement learning on embedded speech against further SFT, a seed or several: bash recipes/embedded/rl.sh 0 1 2
# Each seed goes on from its own recogniser of sft.sh, several times: GSPO with the references' cross-entropy beside it, as many
# steps of SFT on the same samples, GSPO alone, GRPO, and GSPO with one step to a rollout; all are scored with
# suite=embedded_noise. Prints the figures.
# In the environment: SFT, where sft.sh wrote to; MODEL, one recogniser for all seeds in place of those; PYTHON and WORK, the
# interpreter, the folder to write to; VARIANTS, some of "references sft gspo grpo on_policy"; STEPS of each. What is
# finished in WORK is taken as it is: another recipe wants another folder.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_rl}
variants=${VARIANTS:-references sft gspo grpo on_policy}
recipe=$(dirname "$0")
source "$recipe/../once.sh"
declare -A command=(
  [references]="stage=rl experiment=embedded_rl_references"
  [sft]="stage=sft experiment=embedded_rl_control"
  [gspo]="stage=rl experiment=embedded_rl"
  [grpo]="stage=rl experiment=embedded_rl stage.objective.level=token stage.objective.clip_low=0.2 stage.objective.clip_high=0.2"
  [on_policy]="stage=rl experiment=embedded_rl stage.updates_per_rollout=1"
)
suite() {  # MODEL FOLDER
  once "$2" stage=evaluate suite=embedded_noise init_from="$1"
}
for seed in "$@"; do
  model=${MODEL:-${SFT:-runs/embedded_sft}/$seed/last/model}
  suite "$model" "$work/$seed/before"
  for variant in $variants; do
    # shellcheck disable=SC2086
    once "$work/$seed/$variant" ${command[$variant]} seed="$seed" init_from="$model" stage.test=false \
      ${STEPS:+trainer.max_steps="$STEPS"}
    suite "$work/$seed/$variant/model" "$work/$seed/$variant/suite"
  done
done
"$python" "$recipe/rl_figures.py" "$work"
