#!/usr/bin/env bash
# Reinforcement learning on embedded speech against further SFT: MODEL=RUN/model bash recipes/embedded/rl.sh 0 1 2
# For each seed, from the same recogniser: GSPO, as many steps of SFT on the same samples, GRPO, and GSPO with one
# step to a rollout; each is scored with suite=embedded_noise. Prints the figures.
# MODEL in the environment: the recogniser (of experiment=embedded_sft). PYTHON, WORK: the interpreter, the folder
# to write to. VARIANTS: some of "gspo sft grpo on_policy". STEPS: of each.
set -euo pipefail
python=${PYTHON:-python}
work=${WORK:-runs/embedded_rl}
steps=${STEPS:-500}
declare -A command=(
  [gspo]="stage=rl experiment=embedded_rl"
  [sft]="stage=sft experiment=embedded_rl_control"
  [grpo]="stage=rl experiment=embedded_rl stage.objective.level=token stage.objective.clip_low=0.2 stage.objective.clip_high=0.2"
  [on_policy]="stage=rl experiment=embedded_rl stage.updates_per_rollout=1"
)
suite() {  # MODEL FOLDER
  "$python" -m qwen3asr_train stage=evaluate suite=embedded_noise init_from="$1" run_dir="$2"
}
suite "$MODEL" "$work/before"
for seed in "$@"; do
  for variant in ${VARIANTS:-gspo sft grpo on_policy}; do
    # shellcheck disable=SC2086
    "$python" -m qwen3asr_train ${command[$variant]} seed="$seed" init_from="$MODEL" stage.test=false \
      trainer.max_steps="$steps" run_dir="$work/$seed/$variant"
    suite "$work/$seed/$variant/model" "$work/$seed/$variant/suite"
  done
done
"$python" "$(dirname "$0")/rl_figures.py" "$work"
