# Sourced by the other scripts: make_environment TARGET installs TARGET ("." or ".[test]") into .venv, once per setup.py;
# help_if_asked "$@" prints the script's first lines for --help, and ends it.

help_if_asked() {
    case ${1:-} in
        -h | --help) sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "scripts/$(basename "$0")" && exit 0 ;;
    esac
}

refuse() { # MESSAGE
    echo "error: $1" >&2
    exit 2
}

fits() { # PYTHON: whether it runs as a version that this project supports
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

version() { # PYTHON: its version, as "Python 3.12"
    "$1" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null
}

make_environment() {
    local target=$1 python stamp has asked
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        for candidate in python3.12 python3.11 python3 python; do
            if fits "$candidate"; then
                python=$candidate
                break
            fi
        done
    fi
    if [ -z "$python" ]; then
        echo "error: no Python 3.11 or 3.12 found; install one, or name it: PYTHON=/path/to/python bash $0" >&2
        return 2
    fi
    if ! fits "$python"; then
        echo "error: PYTHON=$python does not run as Python 3.11 or 3.12; name another: PYTHON=/path/to/python bash $0" >&2
        return 2
    fi
    stamp=.venv/installed-$(printf '%s' "$target" | tr -dc 'a-z')
    if [ ! -x .venv/bin/python ]; then
        echo "making .venv with $python"
        "$python" -m venv .venv
    fi
    has=$(version .venv/bin/python || echo "a Python that does not run") asked=$(version "$python")
    if [ -n "${PYTHON:-}" ] && [ "$has" != "$asked" ]; then
        echo "error: .venv has $has and PYTHON=$python is $asked; remove .venv, and the same command makes a new one" >&2
        return 2
    fi
    if ! fits .venv/bin/python; then
        echo "error: .venv has $has, not Python 3.11 or 3.12; remove .venv, and the same command makes a new one" >&2
        return 2
    fi
    if ! cmp -s setup.py "$stamp"; then
        echo "installing $target into .venv (about 2 minutes, 1.2 GB; with test extras 3 GB)"
        .venv/bin/python -m pip install --quiet --upgrade pip
        .venv/bin/python -m pip install --quiet --editable "$target"
        cp setup.py "$stamp"
    fi
}

# Transparent huge pages for large arrays, where Linux has them on demand (glibc >= 2.35): a step of MiniLM-L6 with LoRA
# on 16 x 96 tokens took 0.63 s instead of 0.76 s on two cores.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
