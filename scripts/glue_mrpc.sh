#!/usr/bin/env bash
# From a fresh clone to one cell of LoRA's GLUE table on a CPU: MRPC, MiniLM-L6, LoRA r=8, 3 epochs, 3 seeds. GLUE's files
# are read from FOLDER (bash scripts/glue_mrpc.sh FOLDER) or $LOWRANK_JAX_GLUE_DIR, otherwise downloaded through TFDS.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/environment.sh
help_if_asked "$@"
[ $# -eq 0 ] || [ -d "$1" ] || refuse "$1 is no folder; name the one with GLUE's files, or leave it out"
make_environment .

if [ $# -gt 0 ]; then export LOWRANK_JAX_GLUE_DIR=$1; fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-.venv/jax_cache}"

.venv/bin/python scripts/fetch_weights.py minilm-l6
# One after the other: on two cores three seeds in one program (experiments.trials --seeds=0,1,2) took 1.27 times as
# long.
for seed in 0 1 2; do
    .venv/bin/python -m experiments.run --config=configs/lora_glue.py:task=mrpc,model=minilm-l6,method=lora,epochs=3 --config.seed=$seed
done
.venv/bin/python -m experiments.tables lora_table2 --results=runs
