#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice: creates it, copies this checkout's HEAD there, installs, and starts.
#
#   bash scripts/pod/tpu_vm.sh --name=NAME --zone=ZONE --type=v5litepod-16 [--version=...] [--create=no] [--dry-run] \
#       -- --config=configs/mora_uuid.py:scale=paper --workdir=/mnt/shared/runs
#
# --workdir must be a folder that all hosts share (a mounted Filestore or bucket). --create=no takes a slice that
# exists; the same command then resumes the run. The last lines say how to copy the results here and how to delete the
# slice, which is yours to do.
source "$(dirname "$0")/common.sh"
name="" zone="" type="" version="" create=yes
options "name zone type version create" "$@"
need name zone type
check_base
case $type in
    v5litepod-*) default=v2-alpha-tpuv5-lite ;;
    v5p-*) default=v2-alpha-tpuv5 ;;
    v6e-*) default=v2-alpha-tpuv6e ;;
    *) default=tpu-ubuntu2204-base ;;
esac
archive=lowrank_jax.tar.gz
tpu=(gcloud compute tpus tpu-vm)
there=("--zone=$zone" --worker=all)

folder=$(value_of workdir)
folder=${folder:-runs}
[[ $folder == /* ]] || folder=lowrank_jax/$folder
afterwards() { # also where a command fails: the slice costs money until it is deleted
    echo "to copy the results here: $(quoted "${tpu[@]}" scp --recurse "$name:$folder" . "--zone=$zone" --worker=0)"
    echo "when you are done: $(quoted "${tpu[@]}" delete "$name" "--zone=$zone")"
}
trap afterwards EXIT

if [ "$create" != no ]; then
    run "${tpu[@]}" create "$name" "--zone=$zone" "--accelerator-type=$type" "--version=${version:-$default}"
fi
run git archive --format=tar.gz "--output=/tmp/$archive" HEAD
run "${tpu[@]}" scp "/tmp/$archive" "$name:" "${there[@]}"
run "${tpu[@]}" ssh "$name" "${there[@]}" \
    "--command=mkdir -p lowrank_jax && tar -xzf $archive -C lowrank_jax && cd lowrank_jax && $(install tpu)"
run "${tpu[@]}" ssh "$name" "${there[@]}" "--command=cd lowrank_jax && $(worker)"
echo "worker: $(worker)"
