#!/usr/bin/env bash
# Submits all stages; each starts when the one before it has ended well, and is cancelled where that has failed.
#
#   examples/slurm/pipeline.sh SETTINGS [NODES]
#
# SETTINGS: a file such as examples/slurm/digits.sh: what every stage is given, and what each is given besides.
# NODES: of alignment and RL, which train and sample on all of them; the other stages have one node. Default 1.
# Partition, account, time limit, GPUs: by Slurm's own variables, such as SBATCH_PARTITION, SBATCH_GPUS_PER_NODE.
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

before=
for stage in sft warmup align rlvr eval; do
    declare -n own=$stage
    options=(--parsable --kill-on-invalid-dep=yes)
    [[ $stage != align && $stage != rlvr ]] || options+=(--nodes="$nodes")
    [[ -z $before ]] || options+=(--dependency="afterok:$before")
    before=$(sbatch "${options[@]}" "examples/slurm/$stage.sbatch" "${all[@]}" "${own[@]}")
    before=${before%%;*} # a federation says its cluster, too
    echo "$stage: job $before, outputs/slurm/$stage-$before.out"
done
