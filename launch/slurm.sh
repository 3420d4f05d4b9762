#!/usr/bin/env bash
# One run over several nodes; arguments go to python -m qwen3asr_train:
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=4 launch/slurm.sh \
#     stage=sft strategy=zero2 run_dir=runs/mine
# A requeued job goes on from its newest checkpoint, and so does the same command given again, as after a time
# limit. Without run_dir the run's folder is runs/STAGE/job-ID, which only a requeued job finds again.
#SBATCH --job-name=qwen3asr_train
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
# srun does not take it over from sbatch by itself
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
status=0
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m qwen3asr_train resume=auto "$@" \
  strategy.num_nodes="$SLURM_NNODES" strategy.devices="${SLURM_NTASKS_PER_NODE:-1}" || status=$?
# When a node is lost, the others fail before SLURM has noticed. Give it time to: then it requeues this
# job, while a job that ends by itself with an error stays ended.
if [ "$status" -gt 2 ] || [ "$status" -eq 1 ]; then sleep "${NODE_LOSS_GRACE:-60}"; fi
exit "$status"
