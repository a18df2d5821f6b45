# shellcheck shell=bash disable=SC2034
# Settings for examples/slurm/pipeline.sh: Qwen3-VL-4B with the paper's values. docs/data.md
# lists the columns of the data. Submit:
#   SBATCH_GPUS_PER_NODE=8 SBATCH_EXCLUSIVE=exclusive SBATCH_TIMELIMIT=24:00:00 \
#       examples/slurm/pipeline.sh examples/slurm/qwen3_vl_4b.sh 1
root=runs/qwen3_vl_4b # on a disk that all nodes share; it holds data/ and base/ (the base model)
all=(model=qwen3_vl_4b hardware=cuda prism.root="$root")
sft=(prism.checkpoint_every=200)
warmup=(prism.checkpoint_every=200)
align=(prism.checkpoint_every=25)
rlvr=(algorithm=grpo prism.checkpoint_every=25)
eval=("prism.eval.policies={SFT: $root/sft/policy, aligned: $root/align/policy, RL: $root/rlvr/policy}")
