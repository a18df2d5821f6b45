# shellcheck shell=bash disable=SC2034
# Settings for examples/slurm/pipeline.sh: the digits example. examples/digits/run.sh explains the
# keys. First make the data and the base model:
#   python examples/digits/data.py --out outputs/digits/data --task row --digits 3
#   python examples/digits/model.py --data outputs/digits/data --out outputs/digits/base
root=outputs/digits
resources=() # options of sbatch
all=(model=digits hardware=cpu prism.root="$root")
sft=(prism.steps=450 prism.sft.examples_per_step=16 prism.optim.lr=2e-3 prism.optim.warmup_steps=35)
warmup=(
    discriminator=likelihood prism.steps=100 prism.discriminator.lr=5e-4 prism.warmup.prompts=1000
    prism.warmup.samples_per_prompt=2 prism.warmup.mismatched_teachers=2 prism.warmup.pairs_per_step=64
)
align=(
    discriminator=likelihood prism.steps=25 prism.optim.lr=3e-4 prism.discriminator.lr=2e-4
    prism.checkpoint_every=10
)
rlvr=(algorithm=grpo prism.steps=20 prism.optim.lr=3e-4 prism.checkpoint_every=10)
eval=(
    prism.eval.metrics=examples/digits/metrics.py:measure
    "prism.eval.policies={SFT: $root/sft/policy, aligned: $root/align/policy, RL: $root/rlvr/policy}"
)
