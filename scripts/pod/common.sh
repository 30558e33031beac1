# Sourced by the scripts of this folder: their options, --dry-run, and the command that every process runs.
#
# options NAMES "$@"   reads --name=value into $name for the names given, --dry-run, and, after "--", the flags of
#                      experiments.run into $WORDS
# need NAME...         ends the script where one of these is empty
# run WORD...          prints a command as it can be pasted, and runs it unless there is --dry-run
# worker               prints the command of one process

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "error: $1" >&2
    exit 2
}

options() {
    local known=" $1 " key
    shift
    DRY_RUN="" WORDS=()
    while [ $# -gt 0 ]; do
        key=${1%%=*} key=${key#--}
        case $1 in
            --) shift && WORDS=("$@") && break ;;
            --dry-run) DRY_RUN=1 ;;
            --*=*) [[ $known == *" $key "* ]] || fail "unknown option --$key; there are:$known--dry-run"
                printf -v "$key" %s "${1#*=}" ;;
            *) fail "unknown word $1; write --name=value, and the flags of experiments.run after --" ;;
        esac
        shift
    done
    [ ${#WORDS[@]} -gt 0 ] || fail "no flags of experiments.run; give them after --, e.g. -- --config=configs/mora_uuid.py"
}

need() {
    local each  # no option has this name: it would hide that option
    for each in "$@"; do
        [ -n "${!each:-}" ] || fail "--$each=... is missing"
    done
}

quoted() {
    local word line=""
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    echo "${line# }"
}

run() {
    quoted "$@"
    if [ -z "$DRY_RUN" ]; then
        "$@"
    fi
}

worker() {
    quoted .venv/bin/python -m experiments.run --multihost "${WORDS[@]}"
}

# Where the machine's Python may be older than 3.11: uv brings one.
INSTALL='python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv'
install() {
    echo "$INSTALL && python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[$1]'"
}
