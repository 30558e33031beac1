#!/usr/bin/env bash
# The whole test suite in its own environment; arguments go to pytest (bash scripts/test.sh -k mora).
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/environment.sh
make_environment ".[test]"

export JAX_PLATFORMS=cpu
exec .venv/bin/python -m pytest -n 2 "$@"
