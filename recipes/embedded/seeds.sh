#!/usr/bin/env bash
# The default job with several seeds: bash recipes/embedded/seeds.sh 0 1 2; prints a line each.
set -euo pipefail
cd "$(dirname "$0")/../.."
for seed in "$@"; do
  python -m qwen3asr_train stage=sft seed="$seed" run_dir="runs/seeds/$seed" trainer.progress=false | tail -n 1
done
