#!/usr/bin/env bash
# The checks (style, format, types), then the whole test suite, in their own environment; arguments go to pytest
# (bash scripts/test.sh -k mora). The first check that fails ends the script.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/environment.sh
help_if_asked "$@"
make_environment ".[test,dev]"

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/basedpyright

export JAX_PLATFORMS=cpu
# The workers and the tests' own processes read compiled modules instead of compiling them each anew.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/python -m compileall -q lowrank_jax experiments configs
# The whole suite: a third worker computes while others wait for their processes, and each file is one worker's, which
# makes its fixtures once (four files of models and adapters: 93 s of CPU instead of 107).
if [ $# -eq 0 ]; then
    set -- -n 3 --dist loadfile --no-loadscope-reorder
else
    set -- -n 2 "$@"
fi
exec .venv/bin/python -m pytest "$@"
