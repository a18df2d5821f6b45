#!/usr/bin/env bash
# Train GRPO, DAPO and GSPO from the SFT policy and from the aligned policy of run.sh, then evaluate
# all of them on the held-out questions. Run it from the root of the repository, after run.sh.
#
#   examples/digits/algorithms.sh [FOLDER] [SEED] [STEPS]
set -euo pipefail
root=${1:-outputs/digits}
seed=${2:-0}
steps=${3:-20}
here=examples/digits

prism() {
    python -m verl_prism.main model=digits hardware=cpu prism.root="$root" prism.seed="$seed" "$@"
}

policies="SFT: $root/sft/policy, aligned: $root/align/policy"
for start in sft align; do
    for algorithm in grpo dapo gspo; do
        prism stage=rlvr algorithm=$algorithm prism.policy="$root/$start/policy" \
            prism.output="$root/algorithms/$start-$algorithm" prism.steps="$steps" prism.optim.lr=1e-4
        policies+=", $start-$algorithm: $root/algorithms/$start-$algorithm/policy"
    done
done

# With two updates per batch, the policy has changed by the second one. GSPO's sequence ratio then
# differs from 1 and is clipped.
prism stage=rlvr algorithm=gspo prism.output="$root/algorithms/gspo-two-updates" prism.steps=4 \
    prism.optim.lr=1e-4 actor_rollout_ref.actor.ppo_mini_batch_size=8

prism stage=eval prism.output="$root/algorithms/eval" prism.eval.metrics=$here/metrics.py:measure \
    "prism.eval.policies={$policies}"
