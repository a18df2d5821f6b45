"""Command line: compose the config, check it and the files that it names, run one stage."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from omegaconf import DictConfig, OmegaConf

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.data.epochs import steps_of
from verl_prism.errors import UserError, write_traceback
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
  stage=dpo        a baseline: prefer the teacher to fixed responses -> <output>/policy
  stage=sample     the policy answers the training questions         -> <output>/samples.parquet
  stage=eval       grade policies on the held-out questions          -> <output>/results.json

config groups
  algorithm=grpo|dapo|gspo|opd_whitebox    of stage rlvr; default grpo
  model=digits|qwen3_vl_2b|qwen3_vl_4b|qwen3_vl_8b
                                           base model, token limits, batch sizes; default digits
  hardware=cpu|cuda|8xh100|1gpu_lora       default cpu
  discriminator=eight_experts|likelihood   views choose among four experts each; a score is the
                                           likelihood of a view; default two experts and a head

common keys
  prism.root=FOLDER                   folder of the whole pipeline; data/ and base/ are inputs
  prism.output=FOLDER                 folder of this run; default <root>/<stage>
  prism.policy=MODEL                  policy to start from: a folder in Hugging Face format, or a
                                      model on the Hub, org/name or org/name@revision
  prism.data.train=FILES              training questions (parquet)
  prism.data.heldout=FILES            held-out questions (parquet)
  prism.steps=N                       number of training steps
  prism.epochs=X                      passes over the training data, instead of prism.steps
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
  --check          check the data and the model folders, copy the data for reading by row, print
                   what was found, and stop
  --help           show this text

exit codes
  0 done    1 failed    2 user error    75 saved and ended early, run again    130 interrupted

examples
  python -m verl_prism.main stage=sft prism.root=outputs/digits prism.steps=300 prism.optim.lr=1e-3
  python -m verl_prism.main stage=align prism.root=outputs/digits prism.align.perception_weight=0.7
  python -m verl_prism.main stage=rlvr algorithm=dapo model=qwen3_vl_4b hardware=8xh100
  python -m verl_prism.main stage=eval prism.policy=outputs/digits/align/policy
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
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if options.help:
        sys.stdout.write(HELP)
        return 0
    try:
        _check_options(unknown)
        return _run(options)
    except UserError as error:
        redact = command_redactor(options.overrides, os.environ)
        sys.stderr.write(f"verl_prism: {redact(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        redact = command_redactor(options.overrides, os.environ)
        file = write_traceback(redact(traceback.format_exc()))
        name = type(error).__name__
        sys.stderr.write(f"verl_prism: {name}: {redact(str(error))}; traceback in {file}\n")
        return 1


def _check_options(unknown: Sequence[str]) -> None:
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        raise UserError(f"unknown option {unknown[0]}; write {name}=... without dashes")


def _run(options: argparse.Namespace) -> int:
    config, prism = _compose(options)
    if options.cfg:
        _show_config(options, config, prism)
        return 0
    from verl_prism.data import checks  # imports pyarrow

    check_uploads(config)
    if not options.check:
        checks.check_device(prism)
    with _progress_bar("checking the data") as on_progress:
        report = checks.check_inputs(prism, on_progress)
    if prism.epochs is not None and report.train_rows is not None:
        steps = steps_of(prism, report.train_rows)
        known = prism.model_copy(update={"steps": steps})  # with the models that were found
        config, prism = compose_run(options.overrides, lambda _: known, steps)
    for note in checks.notes(prism, report):
        sys.stderr.write(f"verl_prism: note: {note}\n")
    _copy_data(prism)
    if options.check:
        return _end_check(prism, checks.summary(prism, report))
    checks.write_skipped_rows(prism, report)
    from verl_prism.launcher.launch import launch
    from verl_prism.launcher.restart import with_restarts

    return with_restarts(launch, config, prism)


def _compose(options: argparse.Namespace) -> tuple[DictConfig, Prism]:
    """Compose the config. Unless it is only to be shown, find the models that are hub ids."""
    if options.cfg:
        return compose_run(options.overrides)
    from verl_prism.hub import with_local_models

    find_models = partial(with_local_models, weights=not options.check, say=print)
    return compose_run(options.overrides, find_models)


def _copy_data(prism: Prism) -> None:
    """Copy the stage's data files for reading by row, unless there is a copy already.

    The stage would make the copies too, but under the watch of the launcher.
    """
    from verl_prism.data.arrow_copy import arrow_copy, has_copy
    from verl_prism.data.checks import data_files

    cache = prism.data.cache
    for _, file, _ in data_files(prism):
        if not has_copy(file, cache):
            with _progress_bar(f"copying {file}") as on_progress:
                arrow_copy(file, cache, on_progress)


def _show_config(options: argparse.Namespace, config: DictConfig, prism: Prism) -> None:
    """Print the config with the steps of `prism.epochs`, if the rows can be counted."""
    if prism.epochs is not None:
        from verl_prism.data.checks import count_rows

        try:
            steps = steps_of(prism, count_rows(prism))
            config, _ = compose_run(options.overrides, steps=steps)
        except UserError as error:
            note = f"prism.steps is not that of prism.epochs: {error}"
            sys.stderr.write(f"verl_prism: note: {note}\n")
    _print_config(config, options.package)


def _print_config(config: DictConfig, package: str | None) -> None:
    shown = run_redactor(config, os.environ).config(config)
    part = OmegaConf.select(shown, package) if package else shown
    if not OmegaConf.is_config(part):
        raise UserError(f"--package {package}: no such part of the config")
    sys.stdout.write(OmegaConf.to_yaml(part))


def _end_check(prism: Prism, summary: str) -> int:
    """Print what was found, and whether this host could run the stage."""
    from verl_prism.data.checks import has_gpu

    sys.stdout.write(f"ok: {summary}\n")
    if prism.hardware.device == "cuda" and not has_gpu():
        sys.stdout.write("no GPU here: run verl_prism.doctor on the run's hosts to check them\n")
    return 0


@contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with the remaining time, on a terminal only; yield a function that moves it."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),  # a file's name may look like markup
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
