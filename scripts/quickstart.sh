#!/usr/bin/env bash
# From a fresh clone to MoRA compared with LoRA on the same UUIDs: environment, two runs, one table. No account, no
# model to download, no questions.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/environment.sh
help_if_asked "$@"
[ $# -eq 0 ] || refuse "quickstart.sh takes no arguments, and was given $1; leave it out"
make_environment .

# Offline unless the user is logged in to W&B: experiments.run decides the same way, without a prompt.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-.venv/jax_cache}"

.venv/bin/python -m experiments.run --config=configs/mora_uuid.py
.venv/bin/python -m experiments.run --config=configs/mora_uuid.py:method=lora
.venv/bin/python -m experiments.tables mora_table2 --scale=laptop --results=runs --figures=runs/figures
