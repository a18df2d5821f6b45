"""python -m verl_prism.main: compose the configuration, check it and what it names, run one stage."""

import argparse
import os
import sys
from collections.abc import Sequence

from omegaconf import OmegaConf

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.redaction import check_uploads, command_redactor, run_redactor

HELP = """\
python -m verl_prism.main stage=… [algorithm=…] [model=…] [hardware=…] [key=value …]

Runs one stage of training a vision-language model, on verl. Each stage starts from the folder that the one before it
wrote under prism.root, unless told otherwise.

stages
  stage=sft        supervised fine-tuning on demonstrations              -> <output>/policy
  stage=warmup     the discriminator: teacher's answers from policy's    -> <output>/discriminator
  stage=align      the adversarial game of policy and discriminator      -> <output>/policy
  stage=rlvr       RL with verifiable rewards                            -> <output>/policy
  stage=eval       answers to the held-out questions, graded             -> <output>/results.json

flags
  algorithm=grpo|dapo|gspo                       of stage=rlvr; default grpo
  model=digits|qwen3_vl_4b|qwen3_vl_8b           sizes and limits that suit a model; default digits
  hardware=cpu|cuda|8xh100|1gpu_lora             default cpu
  prism.root=FOLDER      a whole pipeline's folder; data are in data/, the base model is in base/
  prism.output=FOLDER    this run's folder; default <root>/<stage>
  prism.policy=FOLDER    the Hugging Face folder to start from; default: what the stage before wrote
  prism.data.train=FILE  prism.data.heldout=FILE                         parquet
  prism.steps=N  prism.seed=N  prism.optim.lr=X
  prism.checkpoint_every=N  prism.resume=true    go on from the newest complete checkpoint of this output folder
  prism.rollout.prompts_per_step=N  prism.rollout.samples_per_prompt=N
  prism.hardware.devices_per_node=N      on several hosts: python -m verl_prism.cluster --help
Any key of trainer_configs/prism.yaml, where all are explained, and any key of verl's own configuration may be given.

  --cfg job        print the composed configuration and stop; --package prism prints one part of it
  --check          also look at the data and the model folders, then stop
  --help           this text

examples
  python -m verl_prism.main stage=sft prism.root=outputs/digits prism.steps=300 prism.optim.lr=1e-3
  python -m verl_prism.main stage=align prism.root=outputs/digits prism.align.perception_weight=0.7
  python -m verl_prism.main stage=rlvr algorithm=dapo model=qwen3_vl_4b hardware=8xh100 prism.policy=models/aligned
  python -m verl_prism.main stage=eval 'prism.eval.policies={sft: runs/sft/policy, rlvr: runs/rlvr/policy}'
  python -m verl_prism.main stage=rlvr algorithm=gspo actor_rollout_ref.actor.ppo_mini_batch_size=8 --cfg job
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where the stage failed, 2 for a mistake in the input, 75 where it saved and ended
    early, 130 where it was stopped."""
    parser = argparse.ArgumentParser(prog="verl_prism", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("--package")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    if options.help:
        sys.stdout.write(HELP)
        return 0
    try:
        return _run(options)
    except UserError as error:
        sys.stderr.write(
            f"verl_prism: {command_redactor(options.overrides, os.environ)(str(error))}\n"
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    config, prism = compose_run(options.overrides)
    if options.cfg:
        shown = run_redactor(config, os.environ).config(config)
        part = OmegaConf.select(shown, options.package) if options.package else shown
        if not OmegaConf.is_config(part):
            raise UserError(f"--package {options.package}: no such part of the configuration")
        sys.stdout.write(OmegaConf.to_yaml(part))
        return 0
    from verl_prism.data.checks import check_inputs

    check_uploads(config)
    check_inputs(prism)
    if options.check:
        return 0
    from verl_prism.launcher.launch import launch
    from verl_prism.launcher.restart import with_restarts

    return with_restarts(launch, config, prism)


if __name__ == "__main__":
    sys.exit(main())
