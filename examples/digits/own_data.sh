#!/usr/bin/env bash
# From raw questions and a teacher's API to a trained and evaluated model, on the digits: the commands
# of README, "Your own model and data". Run it from the root of the repository.
#
#   examples/digits/own_data.sh RAW BASE FOLDER ENDPOINT TEACHER [STEPS]
#
# RAW: folder that raw.py wrote. BASE: folder of the model to train. FOLDER: of everything that is
# written. ENDPOINT, TEACHER: URL of an OpenAI-compatible API and the name of the teacher there.
# STEPS: training steps of SFT; the other stages make a tenth of it.
set -euo pipefail
raw=$1 base=$2 root=$3 endpoint=$4 teacher=$5 steps=${6:-300}
few=$((steps / 10))
# The teacher and the model know this system message. Without these two settings, longer ones in the
# package describe the response format.
system="Reply with <caption>image</caption><think>steps</think><answer>sum</answer>."

data() {
    python -m verl_prism.data "$@"
}
prism() {
    python -m verl_prism.main model=digits hardware=cpu prism.root="$root" prism.model.base="$base" "$@"
}
mkdir -p "$root"
echo "$system" >"$root/teacher.txt"

# 1. The rows, in the form of the stages; and the questions for the evaluation, apart from the others.
data convert source="$raw/questions.jsonl" output="$root/questions.parquet" system_prompt="$system"
data split source="$root/questions.parquet" output="$root/split" splits='{train: 0.85, heldout: 0.15}'

# 2. The teacher's answers. The first command asks for 20 and says what all would cost.
ask=(source="$root/split/train.parquet" output="$root/data/train.parquet" tries=4
    teacher.endpoint="$endpoint" teacher.model="$teacher" prompt="$root/teacher.txt"
    teacher.max_tokens=64)
data estimate "${ask[@]}"
data distill "${ask[@]}"
mv "$root/split/heldout.parquet" "$root/data/heldout.parquet"
data check source="{train: $root/data/train.parquet, heldout: $root/data/heldout.parquet}" \
    model="$base" max_prompt_tokens=64

# 3. Fine-tune on the teacher's answers. The policy then answers the training questions itself.
prism stage=sft prism.data.train="$root/data/train.parquet" prism.steps="$steps" \
    prism.sft.examples_per_step=16 prism.optim.lr=2e-3 prism.optim.warmup_steps="$few"
data sample source="$root/data/train.parquet" output="$root/sampled.parquet" n=4 \
    policy="$root/sft/policy" run='[model=digits, hardware=cpu]'

# 4. Alignment: the discriminator's warm-up on these answers, then the game.
prism stage=warmup prism.data.train="$root/sampled.parquet" prism.warmup.responses=file \
    prism.steps="$few" prism.discriminator.lr=1e-3
prism stage=align prism.steps="$few" prism.optim.lr=1e-4 prism.discriminator.lr=2e-4

# 5. RL on the questions that the policy solves sometimes, and the evaluation.
data filter source="$root/sampled.parquet" output="$root/rl.parquet"
prism stage=rlvr prism.data.train="$root/rl.parquet" prism.steps="$few" prism.optim.lr=1e-4
prism stage=eval \
    prism.eval.policies="{SFT: $root/sft/policy, aligned: $root/align/policy, RL: $root/rlvr/policy}"
