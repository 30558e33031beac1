#!/usr/bin/env bash
# One run under SLURM, one process a GPU; jax finds its place and its GPU from SLURM's variables.
#
#   bash scripts/pod/slurm.sh --nodes=2 --gpus=8 [--partition=P] [--account=A] [--time=1-0] [--dry-run] \
#       -- --config=configs/mora_uuid.py:scale=paper --workdir=/shared/runs
#
# This folder, with its .venv, must be on a file system that all nodes have, and --workdir too. --gpus is of each node.
# A job that SLURM requeues resumes from its last checkpoint.
source "$(dirname "$0")/common.sh"
nodes="" gpus="" partition="" account="" time=""
options "nodes gpus partition account time" "$@"
need nodes gpus
check_base
more=()
[ -z "$partition" ] || more+=("--partition=$partition")
[ -z "$account" ] || more+=("--account=$account")
[ -z "$time" ] || more+=("--time=$time")
# All GPUs of a node are visible to all of its processes, of which jax gives each its own: no --gpus-per-task.
run sbatch --job-name=lowrank_jax "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" \
    --requeue --open-mode=append "${more[@]}" "--wrap=srun --kill-on-bad-exit=1 $(worker)"
echo "worker: $(worker)"
