"""Kill a training process with SIGKILL while it saves, many times, and check every restart.

    python benchmarks/checkpoint_kills.py --kills 200

The process trains a tiny policy and a tiny discriminator, each with AdamW, a schedule and random
gradients. It resumes from the newest complete checkpoint, makes a step, saves both models with
verl's FSDPCheckpointManager, publishes the checkpoint, and so on. The killer waits until a save or
a publication begins, and then for a random part of the time that it takes.

Before each restart, every file of an unfinished checkpoint is overwritten with a pickle that leaves
a trace when it is loaded. The process also exits if it opens such a file. A restart must find a
complete checkpoint that is not older than the last one announced. A repeated step must give the
same weights bit for bit.
"""

import argparse
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

os.environ |= {"OMP_NUM_THREADS": "1", "VERL_PLATFORM": "cpu"}  # before torch and verl
os.environ |= {"VERL_LOGGING_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.utils.logging import disable_progress_bar
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.resume import checkpoint_to_resume
from verl_prism.checkpoints.store import MANIFEST, POINTER, published
from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.launcher.launch import prepare_output
from verl_prism.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
CONTENTS = ["model", "optimizer", "extra", "hf_model"]
OPENED_UNFINISHED = 3
DAMAGED = 4


@dataclass(frozen=True)
class Models:
    """What is trained, by the subfolder of a checkpoint."""

    networks: dict[str, torch.nn.Module]
    processor: ProcessorMixin


class Trainer:
    """Trains and saves in one process, beginning with the newest complete checkpoint.

    tell: reports to the killer.
    """

    def __init__(self, prism: Prism, models: Models, tell: Callable[..., None]) -> None:
        self._prism = prism
        self._run = RunFolder(prism.output)
        self._store = checkpoint_store(prism)
        self._networks = models.networks
        self._tell = tell
        torch.manual_seed(0)
        self._managers = {}
        for name, network in models.networks.items():
            self._managers[name] = _manager(network, models.processor)

    def run(self, trap: bool) -> None:
        """Train until this process is killed. trap: first open files that must not be opened."""
        if trap:
            for file in files_below(self._run.unfinished_checkpoints):
                file.read_bytes()
        checkpoint, damaged = checkpoint_to_resume(
            self._store, self._prism.stage, self._prism.steps
        )
        if damaged:
            os._exit(DAMAGED)
        step = 0
        if checkpoint:
            step = checkpoint.step
            self._load(checkpoint.folder, step)
        self._tell(started=step, weights=self._weights())
        prepare_output(self._prism, self._run, checkpoint)
        while True:
            step += 1
            self._train()
            self._tell(saving=step, weights=self._weights())
            self._save(step)
            self._tell(publishing=step)
            self._store.publish(step)
            self._tell(done=step)

    def _load(self, folder: Path, step: int) -> None:
        for name, manager in self._managers.items():
            manager.load_checkpoint(str(folder / name))
        position = torch.load(folder / "data.pt", weights_only=True)["position"]
        assert {position, *self._steps()} == {step}, "parts of two checkpoints"

    def _train(self) -> None:
        for name, network in self._networks.items():
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            self._managers[name].optimizer.step()
            self._managers[name].lr_scheduler.step()

    def _save(self, step: int) -> None:
        folder = self._store.unfinished(step)
        for name, manager in self._managers.items():
            manager.save_checkpoint(str(folder / name), None, step)
        torch.save({"position": step}, folder / "data.pt")

    def _steps(self) -> list[int]:
        """Return the steps that the optimizers and the schedules have counted."""
        steps = []
        for manager in self._managers.values():
            steps.append(manager.lr_scheduler.last_epoch)
            steps += [int(state["step"]) for state in manager.optimizer.state.values()]
        return steps

    def _weights(self) -> list[float]:
        """Return a number for each network that changes with any of its weights."""
        sums = []
        with torch.no_grad():
            for network in self._networks.values():
                tensors = [parameter.full_tensor() for parameter in network.parameters()]
                squares = torch.stack([tensor.double().square().sum() for tensor in tensors])
                sums.append(squares.sum().item())
        return sums


def _manager(network: torch.nn.Module, processor: ProcessorMixin) -> FSDPCheckpointManager:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    contents = {"save_contents": CONTENTS, "load_contents": CONTENTS}
    return FSDPCheckpointManager(network, optimizer, schedule, processor, contents)


def start(prism: Prism, models: Models, store: Path, trap: bool) -> tuple[int, int]:
    """Fork a trainer; return its process id and the pipe on which it reports.

    A fork need not import and load everything again.
    """
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        return pid, read
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    train(prism, models, store, trap, write)


def train(prism: Prism, models: Models, store: Path, trap: bool, pipe: int) -> NoReturn:
    """Train in a forked process, and report to `pipe`."""

    def tell(**message: Any) -> None:
        os.write(pipe, (json.dumps(message) + "\n").encode())

    try:
        warnings.simplefilter("ignore")
        sys.addaudithook(exit_at_unfinished_files(RunFolder(prism.output).unfinished_checkpoints))
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        for network in models.networks.values():
            fully_shard(network)
        Trainer(prism, models, tell).run(trap)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def exit_at_unfinished_files(folder: Path) -> Callable[[str, tuple], None]:
    """Return a hook that ends the process when it opens a file left by a killed process."""
    left = {str(path) for path in files_below(folder)}

    def hook(event: str, arguments: tuple) -> None:
        if event != "open" or str(arguments[0]) not in left:
            return
        file = Path(arguments[0])
        if file.exists() and file.stat().st_size == len(POISON):
            os._exit(OPENED_UNFINISHED)

    return hook


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class Trace:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (LOADED,)


LOADED = Path(tempfile.gettempdir()) / f"loaded-{os.getpid()}"
POISON = pickle.dumps(Trace())


class Killer:
    """Starts and kills trainers, and checks what they report."""

    def __init__(self, prism: Prism, models: Models, folder: Path, trap: bool) -> None:
        self._prism = prism
        self._run = RunFolder(prism.output)
        self._models = models
        self._folder = folder
        self._trap = trap
        self._announced = 0
        self._weights: dict[int, list[float] | None] = {0: None}
        self._seconds = {"saving": 0.5, "publishing": 0.2}
        self.moments: Counter[str] = Counter()
        self.repeated = 0

    def kill_one(self, number: int, aim: str, share: float) -> None:
        """Start a trainer, and kill it at the given share of a save or a publication."""
        store = self._folder / f"store{number}"
        self._pid, pipe = start(self._prism, self._models, store, self._trap)
        with os.fdopen(pipe) as reports:
            self._follow(reports, aim, share, saves=2 - number % 2)
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            for line in reports:
                if line.endswith("\n"):
                    self._take(json.loads(line))
        store.unlink(missing_ok=True)
        self.moments[self._moment()] += 1
        for file in files_below(self._run.unfinished_checkpoints):
            file.write_bytes(POISON)

    def _follow(self, reports: Iterable[str], aim: str, share: float, saves: int) -> None:
        """Return when it is time to kill the trainer."""
        end = "publishing" if aim == "saving" else "done"
        begun = 0.0
        seen = 0
        for line in reports:
            report = json.loads(line)
            self._take(report)
            if aim in report:
                begun = time.monotonic()
                seen += 1
                if seen == saves:
                    time.sleep(share * self._seconds[aim])
                    return
            elif begun and end in report:
                self._seconds[aim] = time.monotonic() - begun
        _, status = os.waitpid(self._pid, 0)
        raise SystemExit(f"a start failed: exit status {os.waitstatus_to_exitcode(status)}")

    def _take(self, report: dict) -> None:
        if "started" in report and report["started"] < self._announced:
            raise SystemExit(
                f"step {self._announced} was published, "
                f"and the next start found {report['started']}"
            )
        step = report.get("started", report.get("saving"))
        if step is not None:
            self._compare(step, report["weights"], again="saving" in report)
        self._announced = report.get("done", self._announced)

    def _compare(self, step: int, weights: list[float], again: bool) -> None:
        before = self._weights.get(step)
        if before is not None:
            self.repeated += again
            if before != weights:
                raise SystemExit(f"step {step} gave other weights the second time")
        self._weights[step] = weights

    def _moment(self) -> str:
        """Return what the process was doing when it was killed, judging by what it left."""
        unfinished = list(self._run.unfinished_checkpoints.glob("global_step_*"))
        if any((folder / MANIFEST).exists() for folder in unfinished):
            return "all written, not yet renamed"
        if unfinished:
            return "writing"
        complete = published(self._run)
        if complete and self._pointer() != complete[-1].name.rpartition("_")[2]:
            return "renamed, pointer not yet written"
        if len(complete) > 1 or self._run.unfinished_checkpoints.exists():
            return "removing the old one"
        return "between saves"

    def _pointer(self) -> str | None:
        pointer = self._run.checkpoints / POINTER
        return pointer.read_text() if pointer.exists() else None


def tiny_models(folder: Path) -> tuple[Path, Path]:
    """Create the policy of the digits example, and a discriminator upcycled from it."""
    digits = ROOT / "examples" / "digits"
    data = folder / "data"
    base = folder / "base"
    for command in (
        [digits / "data.py", "--out", data],
        [digits / "model.py", "--data", data, "--out", base],
    ):
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    upcycle(base, folder / "discriminator", experts=2, experts_per_token=1)
    return base, folder / "discriminator"


def load_models(base: Path, discriminator: Path) -> Models:
    policy = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    networks = {"actor": policy, "discriminator": load_discriminator(discriminator)}
    return Models(networks, AutoProcessor.from_pretrained(base))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trap",
        action="store_true",
        help="open unfinished files on purpose: the command must fail",
    )
    parser.add_argument("--models", type=Path, nargs=2, metavar=("POLICY", "DISCRIMINATOR"))
    return parser.parse_args()


def run_kills(options: argparse.Namespace, folder: Path) -> str:
    """Kill and restart, and return the report. Raises SystemExit if a check fails."""
    chance = random.Random(options.seed)
    began = time.monotonic()
    base, discriminator = options.models or tiny_models(folder)
    (folder / "train.parquet").touch()
    own = [
        f"prism.root={folder}",
        f"prism.policy={base}",
        f"prism.data.train={folder / 'train.parquet'}",
    ]
    _, prism = compose_run(["stage=align", "prism.steps=1000000", "prism.resume=true", *own])
    killer = Killer(prism, load_models(base, discriminator), folder, options.trap)
    for number in range(options.kills):
        killer.kill_one(number, chance.choice(["saving", "publishing"]), chance.uniform(0, 1.1))
        if LOADED.exists():
            raise SystemExit("a file of an unfinished checkpoint was loaded")
    seconds = time.monotonic() - began
    moments = ", ".join(f"{moment}: {count}" for moment, count in killer.moments.most_common())
    return (
        f"{options.kills} kills in {seconds:.0f} s, every start found a complete checkpoint; "
        f"{moments}; {killer.repeated} steps repeated, with the same weights"
    )


def main() -> None:
    options = parse_arguments()
    disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        print(run_kills(options, folder))
    finally:
        LOADED.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
