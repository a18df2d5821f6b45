#!/usr/bin/env bash
# Submit all stages. Each stage starts when the previous one has succeeded, and is cancelled if that
# one has failed. Nothing is submitted if the settings of a stage have a mistake.
#
#   examples/slurm/pipeline.sh SETTINGS [NODES]
#
# SETTINGS  File with the arguments of the stages, such as examples/slurm/digits.sh
# NODES     Number of nodes of every stage. Default: 1
#
# The settings name the GPUs and the time limit (`resources`). Set the partition and the account with
# Slurm's own variables, such as SBATCH_PARTITION.
set -euo pipefail
if (($# < 1 || $# > 2)); then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
settings=$(realpath "$1")
nodes=${2:-1}
cd "$(dirname "$0")/../.."
# shellcheck source=examples/slurm/digits.sh
source "$settings"
mkdir -p outputs/slurm
# shellcheck source=/dev/null
[[ -f .venv/bin/activate ]] && source .venv/bin/activate

stages=(sft warmup align rlvr eval)
for stage in "${stages[@]}"; do
    declare -n own=$stage
    python -m verl_prism.main stage="$stage" "${all[@]}" "${own[@]}" --cfg job >/dev/null
done

before=
for stage in "${stages[@]}"; do
    declare -n own=$stage
    options=(--parsable --job-name="$stage" --kill-on-invalid-dep=yes --nodes="$nodes")
    options+=("${resources[@]}")
    [[ -z $before ]] || options+=(--dependency="afterok:$before")
    before=$(sbatch "${options[@]}" examples/slurm/stage.sbatch "$stage" "${all[@]}" "${own[@]}")
    before=${before%%;*} # a federation appends the name of its cluster
    echo "$stage: job $before, outputs/slurm/$stage-$before.out"
done
