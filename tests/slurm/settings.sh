# shellcheck shell=bash disable=SC2034,SC2154
# Settings of examples/slurm/pipeline.sh for the tests, with few steps. The test sets $root.
resources=()
all=(
    model=digits hardware=cpu prism.root="$root"
    prism.rollout.prompts_per_step=4 prism.rollout.samples_per_prompt=4
)
sft=(prism.steps=60 prism.sft.examples_per_step=16 prism.optim.lr=2e-3 prism.optim.warmup_steps=10)
warmup=(
    prism.steps=3 prism.discriminator.lr=1e-3 prism.warmup.prompts=40
    prism.warmup.samples_per_prompt=2 prism.warmup.pairs_per_step=16
)
align=(prism.steps=6 prism.optim.lr=1e-4 prism.checkpoint_every=1)
rlvr=(prism.steps=2 prism.optim.lr=1e-4)
eval=(
    "prism.eval.policies={aligned: $root/align/policy, RL: $root/rlvr/policy}"
    prism.eval.max_questions=20
)
