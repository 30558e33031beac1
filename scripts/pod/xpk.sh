#!/usr/bin/env bash
# One run as a workload of xpk, Google's queue of TPU slices on Kubernetes; the cluster exists already.
#
#   bash scripts/pod/xpk.sh --cluster=CLUSTER --workload=NAME --type=v5litepod-16 [--slices=1] [--zone=ZONE] \
#       [--project=PROJECT] [--dry-run] -- --config=configs/mora_uuid.py:scale=paper --workdir=/mnt/shared/runs
#
# xpk builds an image from the base image and this folder. --workdir must be storage that the cluster mounts in all pods.
source "$(dirname "$0")/common.sh"
cluster="" workload="" type="" slices=1 zone="" project=""
options "cluster workload type slices zone project" "$@"
need cluster workload type
check_base
where=()
[ -z "$zone" ] || where+=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
run xpk workload create "--cluster=$cluster" "--workload=$workload" "--tpu-type=$type" "--num-slices=$slices" \
    "${where[@]}" --base-docker-image=python:3.12 --script-dir=. "--command=$(install tpu) && $(worker)"
echo "worker: $(worker)"
