"""Command line: compose the config, check it and the files that it names, run one stage."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from omegaconf import DictConfig, OmegaConf

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.errors import UserError
from verl_prism.redaction import check_uploads, command_redactor, run_redactor

HELP = """\
python -m verl_prism.main stage=... [algorithm=...] [model=...] [hardware=...] [key=value ...]

Run one stage of the post-training of a vision-language model on verl. By default, a stage starts
from the output of the previous stage under prism.root.

stages
  stage=sft        supervised fine-tuning on demonstrations          -> <output>/policy
  stage=warmup     warm-up of the discriminator                      -> <output>/discriminator
  stage=align      adversarial alignment against the discriminator   -> <output>/policy
  stage=rlvr       RL with verifiable rewards                        -> <output>/policy
  stage=eval       grade policies on the held-out questions          -> <output>/results.json

config groups
  algorithm=grpo|dapo|gspo|opd_whitebox    of stage rlvr; default grpo
  model=digits|qwen3_vl_2b|qwen3_vl_4b|qwen3_vl_8b
                                           base model, token limits, batch sizes; default digits
  hardware=cpu|cuda|8xh100|1gpu_lora       default cpu
  discriminator=eight_experts              views choose among four experts each; default two each

common keys
  prism.root=FOLDER                   folder of the whole pipeline; data/ and base/ are inputs
  prism.output=FOLDER                 folder of this run; default <root>/<stage>
  prism.policy=MODEL                  policy to start from: a folder in Hugging Face format, or a
                                      model on the Hub, org/name or org/name@revision
  prism.data.train=FILES              training questions (parquet)
  prism.data.heldout=FILES            held-out questions (parquet)
  prism.steps=N                       number of training steps
  prism.seed=N                        random seed
  prism.optim.lr=X                    learning rate of the policy
  prism.rollout.prompts_per_step=N    prompts in each training step
  prism.rollout.samples_per_prompt=N  responses sampled for each prompt
  prism.checkpoint_every=N            save a checkpoint every N steps
  prism.resume=true                   resume from the latest complete checkpoint in prism.output
  prism.hardware.devices_per_node=N   devices of this host; for more hosts see
                                      python -m verl_prism.cluster --help
trainer_configs/prism.yaml explains all keys under prism. verl's own keys can be set too.

options
  --cfg job        print the composed config and stop; --package prism prints one part of it
  --check          also check the data and the model folders, then stop
  --help           show this text

exit codes
  0 done    1 failed    2 user error    75 saved and ended early, run again    130 interrupted

examples
  python -m verl_prism.main stage=sft prism.root=outputs/digits prism.steps=300 prism.optim.lr=1e-3
  python -m verl_prism.main stage=align prism.root=outputs/digits prism.align.perception_weight=0.7
  python -m verl_prism.main stage=rlvr algorithm=dapo model=qwen3_vl_4b hardware=8xh100
  python -m verl_prism.main stage=rlvr algorithm=opd_whitebox prism.policy=outputs/digits/sft/policy
  python -m verl_prism.main stage=eval 'prism.eval.policies={SFT: sft/policy, RL: rlvr/policy}'
  python -m verl_prism.main stage=align actor_rollout_ref.actor.ppo_mini_batch_size=8 --cfg job
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0: done. 1: the stage failed. 2: a mistake in the input. 75: the stage saved and ended early.
    130: interrupted.
    """
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
        redact = command_redactor(options.overrides, os.environ)
        sys.stderr.write(f"verl_prism: {redact(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    config, prism = _compose(options)
    if options.cfg:
        shown = run_redactor(config, os.environ).config(config)
        part = OmegaConf.select(shown, options.package) if options.package else shown
        if not OmegaConf.is_config(part):
            raise UserError(f"--package {options.package}: no such part of the config")
        sys.stdout.write(OmegaConf.to_yaml(part))
        return 0
    from verl_prism.data.checks import check_device, check_inputs, has_gpu

    if not options.check:
        check_device(prism.hardware)
    check_uploads(config)
    check_inputs(prism)
    if options.check:
        if prism.hardware.device == "cuda" and not has_gpu():
            sys.stdout.write(
                "no GPU here: run verl_prism.doctor on the run's hosts to check them\n"
            )
        return 0
    from verl_prism.launcher.launch import launch
    from verl_prism.launcher.restart import with_restarts

    return with_restarts(launch, config, prism)


def _compose(options: argparse.Namespace) -> tuple[DictConfig, Prism]:
    """Compose the config. Unless it is only to be shown, find the models that are hub ids."""
    if options.cfg:
        return compose_run(options.overrides)
    from verl_prism.hub import with_local_models

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")

    weights = not options.check
    return compose_run(options.overrides, partial(with_local_models, weights=weights, say=say))


if __name__ == "__main__":
    sys.exit(main())
