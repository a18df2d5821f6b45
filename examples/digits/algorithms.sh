#!/usr/bin/env bash
# GRPO, DAPO and GSPO from the SFT and from the aligned policy of examples/digits/run.sh, and how all of them answer the
# held-out questions. Run it from the repository's root, after run.sh.
#
#   examples/digits/algorithms.sh [FOLDER] [SEED] [STEPS]
set -euo pipefail
root=${1:-outputs/digits}
seed=${2:-0}
steps=${3:-20}
here=examples/digits

prism() { python -m verl_prism.main model=digits hardware=cpu prism.root="$root" prism.seed="$seed" "$@"; }

policies="SFT: $root/sft/policy, aligned: $root/align/policy"
for start in sft align; do
    for algorithm in grpo dapo gspo; do
        prism stage=rlvr algorithm=$algorithm prism.policy="$root/$start/policy" \
            prism.output="$root/algorithms/$start-$algorithm" prism.steps="$steps" prism.optim.lr=1e-4
        policies+=", $start-$algorithm: $root/algorithms/$start-$algorithm/policy"
    done
done

# With two updates per batch the policy has moved at the second, so that GSPO's ratio of a sequence is not 1 and is clipped.
prism stage=rlvr algorithm=gspo prism.output="$root/algorithms/gspo-two-updates" prism.steps=4 prism.optim.lr=1e-4 \
    actor_rollout_ref.actor.ppo_mini_batch_size=8

prism stage=eval prism.output="$root/algorithms/eval" prism.eval.metrics=$here/metrics.py:measure \
    "prism.eval.policies={$policies}"
