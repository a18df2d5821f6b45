#!/usr/bin/env bash
# The whole method on real images, on two CPU cores, without a GPU.
# Each stage starts from the output of the previous one.
#
#   examples/digits/run.sh [FOLDER] [SEED]
set -euo pipefail
root=${1:-outputs/digits}
seed=${2:-0}
here=$(dirname "$0")

# A stage that is complete is not run again, and one that was stopped continues.
prism() {
    python -m verl_prism.main model=digits hardware=cpu prism.resume=true \
        prism.root="$root" prism.seed="$seed" "$@"
}

# Images of three digits, the question what their sum is, demonstrations and the teacher's responses;
# a tiny Qwen3-VL with random weights.
if [[ ! -f $root/base/config.json ]]; then
    python "$here/data.py" --out "$root/data" --seed "$seed" --task row --digits 3
    python "$here/model.py" --data "$root/data" --out "$root/base" --seed "$seed"
fi

# 1. Fine-tune on the demonstrations. Most of them are careless, and the policy learns their errors.
prism stage=sft prism.steps=450 prism.sft.examples_per_step=16 prism.optim.lr=2e-3 \
    prism.optim.warmup_steps=35

# 2a. Warm up the discriminator: it learns to score the teacher's responses above the policy's. The
#     teacher's responses to other questions are further negatives, so it has to look at the image.
prism stage=warmup discriminator=likelihood prism.steps=100 prism.discriminator.lr=5e-4 \
    prism.warmup.prompts=1000 prism.warmup.samples_per_prompt=2 \
    prism.warmup.mismatched_teachers=2 prism.warmup.pairs_per_step=64

# 2b. Align the policy against the discriminator. Gold answers are not used here.
prism stage=align discriminator=likelihood prism.steps=25 prism.optim.lr=3e-4 \
    prism.discriminator.lr=2e-4

# 3. Reinforcement learning with verifiable rewards.
prism stage=rlvr algorithm=grpo prism.steps=20 prism.optim.lr=3e-4

# Evaluate the policy of each stage on 600 questions about held-out scans.
prism stage=eval "prism.eval.metrics=$here/metrics.py:measure" \
    "prism.eval.policies={SFT: $root/sft/policy, aligned: $root/align/policy, RL: $root/rlvr/policy}"
