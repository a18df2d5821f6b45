#!/usr/bin/env bash
# Create .venv with the locked packages for a CPU host. Return at once if that is done; continue if it was interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0+cpu
TORCH_INDEX=https://download.pytorch.org/whl/cpu
LOCK=requirements/cpu.txt
PYTHON=${PYTHON:-python3.11}
LOG=$PWD/.venv/setup.log
STAMP=.venv/.ready
wanted=$( (pwd; cat "$LOCK" pyproject.toml setup.py "$0" verl_prism/cpu/verl_prism_cpu.pth) | sha256sum)

is_ready() { [[ -f $STAMP && $(<"$STAMP") == "$wanted" ]]; }
is_python311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }
say() { step=$1; printf '[%4d s] %s\n' "$SECONDS" "$step"; }
pip() { .venv/bin/python -m pip --quiet "$@" >>"$LOG" 2>&1; }

explain_failure() {
    printf '\nSetup failed at: %s\n' "$step" >&2
    [[ -s $LOG ]] && { printf 'Last lines of %s:\n' "$LOG"; tail -n 15 "$LOG" | sed 's/^/    /'; } >&2
    printf '\nFix the cause (usually the network or a full disk) and run the same command again: setup continues\n' >&2
    printf 'where it stopped. To start over: rm -rf .venv\n' >&2
}

is_ready && exit 0
step="looking for Python 3.11"
if ! is_python311 "$PYTHON"; then
    echo "Python 3.11 is required, but '$PYTHON' is missing or another version." >&2
    echo "Install it, or say where it is: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
fi
exec 9<.
flock 9 # one setup at a time
is_ready && exit 0
trap '[[ $? == 0 ]] || explain_failure' EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
if ! is_python311 .venv/bin/python; then
    say "creating .venv (details: .venv/setup.log)"
    rm -rf .venv
    mkdir .venv
    "$PYTHON" -m venv .venv >"$LOG" 2>&1
fi
# pip takes the CPU build from a local wheel if it knows one; PyPI has only the CUDA build.
# --no-compile: Python compiles the tenth of the files that a run imports when it first imports them.
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
