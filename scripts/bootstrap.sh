#!/usr/bin/env bash
# Makes .venv with the locked packages of a CPU host. Returns at once where that is done; run again, it continues.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0+cpu
TORCH_INDEX=https://download.pytorch.org/whl/cpu
LOCK=requirements/cpu.txt
PYTHON=${PYTHON:-python3.11}
LOG=$PWD/.venv/setup.log
STAMP=.venv/.ready
wanted=$( (pwd; cat "$LOCK" setup.py "$0" verl_prism/cpu/verl_prism_cpu.pth) | sha256sum)

is_ready() { [[ -f $STAMP && $(<"$STAMP") == "$wanted" ]]; }
is_python311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }
say() { step=$1; printf '[%4d s] %s\n' "$SECONDS" "$step"; }
pip() { .venv/bin/python -m pip --quiet "$@" >>"$LOG" 2>&1; }

explain_failure() {
    printf '\nSet-up stopped at: %s\n' "$step" >&2
    [[ -s $LOG ]] && { printf 'The last lines of %s:\n' "$LOG"; tail -n 15 "$LOG" | sed 's/^/    /'; } >&2
    printf '\nMend the cause (most often the network or a full disk) and run the same command again: it continues\n' >&2
    printf 'where it stopped. To begin anew: rm -rf .venv\n' >&2
}

is_ready && exit 0
step="looking for Python 3.11"
if ! is_python311 "$PYTHON"; then
    echo "Python 3.11 is needed and '$PYTHON' is not it. Install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi
exec 9<.
flock 9 # another make may be at it
is_ready && exit 0
trap '[[ $? == 0 ]] || explain_failure' EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
if ! is_python311 .venv/bin/python; then
    say "making .venv (details of all that follows: .venv/setup.log)"
    rm -rf .venv
    mkdir .venv
    "$PYTHON" -m venv .venv >"$LOG" 2>&1
fi
# Asked for by name, the CPU build comes from a local wheel where pip knows one; PyPI has the CUDA build alone.
# Not compiled here: Python compiles the tenth that a run imports, once, when it imports it.
say "installing torch $TORCH"
if ! pip install --no-deps --no-compile "torch==$TORCH"; then
    say "installing torch $TORCH from $TORCH_INDEX"
    pip install --no-deps --no-compile "torch==$TORCH" --index-url "$TORCH_INDEX"
fi
say "installing $(grep -c == "$LOCK") locked packages"
pip install --no-deps --no-compile -r "$LOCK"
say "installing verl_prism"
pip install --no-deps --no-build-isolation -e .
echo "$wanted" >"$STAMP"
say "ready"
