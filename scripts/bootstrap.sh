#!/usr/bin/env bash
# Create .venv with locked packages. Return at once if that is done; continue if it was interrupted.
#
#   scripts/bootstrap.sh [--cpu|--gpu]
#
# --cpu  for a host without an accelerator; Python 3.11
# --gpu  for a host with NVIDIA GPUs and CUDA 13; Python 3.11 or 3.12
# Default: the set that .venv has; a new .venv gets the set for CPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
LOG=$PWD/.venv/setup.log
STAMP=.venv/.ready
SET=.venv/.set
FLASH_ATTN=flash-attn==2.8.3
WHEELHOUSE=https://verl-project.github.io/verl-wheelhouse/simple/ # prebuilt for Python 3.12

present=
[[ -f $SET ]] && present=$(<"$SET")
case "${1:-}" in
    --cpu) set=cpu ;;
    --gpu) set=gpu ;;
    "") set=${present:-cpu} ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
if [[ -n $present && $present != "$set" ]]; then
    echo ".venv has the packages for ${present}s. To replace them: rm -rf .venv" >&2
    exit 1
fi
if [[ $set == cpu ]]; then
    TORCH=2.13.0+cpu TORCH_INDEX=https://download.pytorch.org/whl/cpu VERSIONS="3.11"
else
    TORCH=2.11.0 TORCH_INDEX=https://download.pytorch.org/whl/cu130 VERSIONS="3.11 3.12"
fi
LOCK=requirements/$set.txt
wanted=$( (pwd; cat "$LOCK" pyproject.toml setup.py "$0" verl_prism/cpu/verl_prism_cpu.pth) | sha256sum)

is_ready() { [[ -f $STAMP && $(<"$STAMP") == "$wanted" ]]; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_supported() { [[ " $VERSIONS " == *" $(version "$1") "* ]]; }
say() { step=$1; printf '[%4d s] %s\n' "$SECONDS" "$step"; }
pip() { .venv/bin/python -m pip --quiet "$@" >>"$LOG" 2>&1; }

explain_failure() {
    printf '\nSetup failed at: %s\n' "$step" >&2
    [[ -s $LOG ]] && { printf 'Last lines of %s:\n' "$LOG"; tail -n 15 "$LOG" | sed 's/^/    /'; } >&2
    printf '\nFix the cause (usually the network or a full disk) and run the same command again: setup continues\n' >&2
    printf 'where it stopped. To start over: rm -rf .venv\n' >&2
}

install_flash_attn() {
    if [[ $(version .venv/bin/python) == 3.12 ]]; then
        say "installing $FLASH_ATTN, prebuilt"
        pip install --no-deps --no-compile --only-binary :all: --index-url "$WHEELHOUSE" "$FLASH_ATTN" && return
    fi
    echo "flash-attn is not installed, so set prism.hardware.attention=sdpa (docs/running.md: On GPUs)"
}

is_ready && exit 0
step="looking for Python"
if ! is_supported "$PYTHON"; then
    echo "Python ${VERSIONS// / or } is required, but '$PYTHON' is missing or another version." >&2
    echo "Install it, or say where it is: make PYTHON=/path/to/python ..." >&2
    exit 1
fi
exec 9<.
flock 9 # one setup at a time
is_ready && exit 0
trap '[[ $? == 0 ]] || explain_failure' EXIT

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
if ! is_supported .venv/bin/python; then
    say "creating .venv (details: .venv/setup.log)"
    rm -rf .venv
    mkdir .venv
    "$PYTHON" -m venv .venv >"$LOG" 2>&1
    echo "$set" >"$SET"
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
[[ $set == cpu ]] || install_flash_attn
echo "$wanted" >"$STAMP"
say "ready"
