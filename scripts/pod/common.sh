# Sourced by the scripts of this folder: their options, --dry-run, and the command that every process runs.
#
# options NAMES "$@"   reads --name=value into $name for the names given, --dry-run, and, after "--", the flags of
#                      experiments.run into $WORDS; --help prints the script's first lines. Flags that only make
#                      experiments.run print something are refused, as a machine would be started for it
# need NAME...         ends the script where one of these is empty
# run WORD...          prints a command as it can be pasted, and runs it unless there is --dry-run
# worker               prints the command of one process
# check_base           prints what the hosts need to read the run's base model; ends the script where it has no weights
#                      or is unknown, and with --dry-run only says so
# value_of FLAG        prints the value that $WORDS give a flag of experiments.run, without its dashes

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
    echo "error: $1" >&2
    exit 2
}

usage() {
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "scripts/pod/$(basename "$0")"
}

options() {
    local known=" $1 " key
    shift
    DRY_RUN="" WORDS=()
    while [ $# -gt 0 ]; do
        key=${1%%=*} key=${key#--}
        case $1 in
            --) shift && WORDS=("$@") && break ;;
            -h | --help) usage && exit 0 ;;
            --dry-run) DRY_RUN=1 ;;
            --config | --config[=.]* | --workdir | --workdir=*) fail "write -- before $1: the flags of experiments.run come after it" ;;
            --*=*) [[ $known == *" $key "* ]] || fail "unknown option --$key; there are:$known--dry-run"
                printf -v "$key" %s "${1#*=}" ;;
            *) fail "unknown word $1; write --name=value, and the flags of experiments.run after --" ;;
        esac
        shift
    done
    for key in "${WORDS[@]}"; do
        case ${key%%=*} in
            -h | -help | --help | -helpshort | --helpshort | -helpfull | --helpfull | -helpxml | --helpxml | "-?" | "--?" | \
            -only_check_args | --only_check_args)
                fail "$key after -- would start machines and train nothing; run it here: python -m experiments.run --help" ;;
        esac
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

check_base() {
    local said status=0 python=.venv/bin/python
    [ -x $python ] || python=python3
    said=$($python scripts/pod/base.py "${WORDS[@]}" 2>&1) || status=$?
    said=${said##*$'\n'}
    if [ $status = 2 ] && [ -z "$DRY_RUN" ]; then
        echo "$said" >&2
        exit 2
    fi
    case $status in
        0) echo "$said" ;;
        2) echo "base: the run would end with \"$said\"" ;;
        *) echo "base: not checked, as $python here cannot read the config; the hosts must find its weights" ;;
    esac
}

value_of() {
    local word value="" next=""
    for word in "${WORDS[@]}"; do
        [ -z "$next" ] || value=$word
        next=""
        case $word in
            --"$1"=* | -"$1"=*) value=${word#*=} ;;
            --"$1" | -"$1") next=1 ;;
        esac
    done
    echo "$value"
}

# Where the machine's Python may be older than 3.11: uv brings one.
INSTALL='python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv'
install() {
    echo "$INSTALL && python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[$1]'"
}
