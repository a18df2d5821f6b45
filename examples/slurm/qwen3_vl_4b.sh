# shellcheck shell=bash disable=SC2034
# Settings for examples/slurm/pipeline.sh: Qwen3-VL-4B with the paper's values on nodes with eight
# 80 GB GPUs. docs/data.md lists the columns of the data. Submit:
#   examples/slurm/pipeline.sh examples/slurm/qwen3_vl_4b.sh 1
root=runs/qwen3_vl_4b # on a disk that all nodes share; it holds data/ and base/ (the base model)
# Options of sbatch. Two runs must not share a host. --mem=0 requests all of its memory.
resources=(--gpus-per-node=8 --exclusive --mem=0 --time=24:00:00)
# A 4B model fits into one GPU, so each GPU has a vLLM engine of its own (tensor_parallel_size=1).
all=(model=qwen3_vl_4b hardware=8xh100 prism.root="$root")
sft=(prism.checkpoint_every=200)
warmup=(prism.checkpoint_every=200)
align=(prism.checkpoint_every=25)
rlvr=(algorithm=grpo prism.checkpoint_every=25)
eval=("prism.eval.policies={SFT: $root/sft/policy, aligned: $root/align/policy, RL: $root/rlvr/policy}")
