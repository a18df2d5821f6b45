#!/usr/bin/env bash
# The whole method on real pictures, on a machine with two cores and no GPU: under half an hour.
# Each stage starts from the folder that the one before it wrote. Run it from the repository's root.
#
#   examples/digits/run.sh [FOLDER] [SEED]
set -euo pipefail
root=${1:-outputs/digits}
seed=${2:-0}
here=examples/digits

prism() { python -m verl_prism.main model=digits hardware=cpu prism.root="$root" prism.seed="$seed" "$@"; }

# Pictures, questions, demonstrations and teacher's answers; a tiny Qwen3-VL with random weights.
python $here/data.py --out "$root/data" --seed "$seed"
python $here/model.py --data "$root/data" --out "$root/base" --seed "$seed"

# 1. Fine-tune on demonstrations, most of them careless: the policy learns their drift.
prism stage=sft prism.steps=350 prism.sft.examples_per_step=16 prism.optim.lr=2e-3 prism.optim.warmup_steps=35

# 2a. Teach the discriminator to tell the teacher's answers from the policy's, and, so that it looks at the picture, from
#     the teacher's answers to other questions.
prism stage=warmup prism.steps=200 prism.discriminator.lr=1e-3 prism.warmup.prompts=4000 \
    prism.warmup.samples_per_prompt=2 prism.warmup.mismatched_teachers=2 prism.warmup.pairs_per_step=64

# 2b. The game: the policy against the discriminator. No gold answer is read here.
prism stage=align prism.steps=45 prism.optim.lr=1e-4 prism.discriminator.lr=2e-4

# 3. Reinforcement learning with verifiable rewards.
prism stage=rlvr algorithm=grpo prism.steps=50 prism.optim.lr=1e-4

# How each stage's policy answers 600 questions on handwriting that none has seen.
prism stage=eval prism.eval.metrics=$here/metrics.py:measure \
    "prism.eval.policies={SFT: $root/sft/policy, aligned: $root/align/policy, RL: $root/rlvr/policy}"
