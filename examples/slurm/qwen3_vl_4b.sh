# shellcheck shell=bash disable=SC2034
# Settings for examples/slurm/pipeline.sh: Qwen3-VL-4B with the paper's values on nodes with eight
# 80 GB GPUs. docs/data.md lists the columns of the data. Submit:
#   examples/slurm/pipeline.sh examples/slurm/qwen3_vl_4b.sh 1
root=runs/qwen3_vl_4b # on a disk that all nodes share; it holds data/
# The models come from the Hugging Face Hub; with several nodes, HF_HOME is on a shared disk too. If
# the nodes have no network, first run, where there is one:
#   hf download Qwen/Qwen3-VL-4B-Instruct && hf download Qwen/Qwen3-VL-2B-Instruct
# Options of sbatch. Two runs must not share a host. --mem=0 requests all of its memory.
resources=(--gpus-per-node=8 --exclusive --mem=0 --time=24:00:00)
# A 4B model fits into one GPU, so each GPU has a vLLM engine of its own (tensor_parallel_size=1).
all=(model=qwen3_vl_4b hardware=8xh100 prism.root="$root")
# The paper's SFT has 16 demonstrations per step, for at most 16 GPUs. On more, raise it:
# sft=(prism.sft.examples_per_step=64)
sft=()
warmup=()
align=()
rlvr=(algorithm=grpo)
eval=("prism.eval.policies={SFT: $root/sft/policy, aligned: $root/align/policy, RL: $root/rlvr/policy}")
