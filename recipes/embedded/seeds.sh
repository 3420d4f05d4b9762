#!/usr/bin/env bash
# The default job with several seeds: bash recipes/embedded/seeds.sh [SEED ...]; prints a line each.
set -euo pipefail
cd "$(dirname "$0")/../.."
for seed in "${@:-0 1 2}"; do
  for one in $seed; do
    python -m qwen3asr_train stage=sft seed="$one" run_dir="runs/seeds/$one" trainer.progress=false | tail -n 1
  done
done
