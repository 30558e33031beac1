#!/usr/bin/env bash
# The checks (style, format, types), then the whole test suite, in their own environment; arguments go to pytest
# (bash scripts/test.sh -k mora). The first check that fails ends the script.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/environment.sh
make_environment ".[test,dev]"

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/basedpyright

export JAX_PLATFORMS=cpu
exec .venv/bin/python -m pytest -n 2 "$@"
