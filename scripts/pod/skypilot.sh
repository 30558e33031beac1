#!/usr/bin/env bash
# One run on GPU machines of any cloud, by SkyPilot: starts skypilot.yaml with your flags.
#
#   bash scripts/pod/skypilot.sh --cluster=NAME --gpus=H200:8 [--nodes=1] [--dry-run] \
#       -- --config=configs/mora_uuid.py:scale=paper --workdir=/mnt/shared/runs
#
# With several nodes --workdir must be storage that all of them mount (file_mounts in skypilot.yaml).
source "$(dirname "$0")/common.sh"
cluster="" gpus="" nodes=1
options "cluster gpus nodes" "$@"
need cluster gpus
check_base
run sky launch "--cluster=$cluster" "--gpus=$gpus" "--num-nodes=$nodes" "--env=WORKER=$(worker)" \
    scripts/pod/skypilot.yaml
echo "worker: $(worker)"
