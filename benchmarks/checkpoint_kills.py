"""Kill -9 a training process at random moments while it saves, again and again, and look at what each start finds.

    python benchmarks/checkpoint_kills.py --kills 200

The process holds a tiny policy and a tiny discriminator, each with AdamW, a schedule and random gradients. It goes on
from the newest complete checkpoint, makes a step, saves both by verl's FSDPCheckpointManager, publishes, and so on. The
killer waits for the start of a save, or of its publication, and for a random part of the time that one takes. Before
the next start it fills every file that was left half done with a pickle that betrays whoever loads it; and the process
ends itself if it opens one. A start must find a complete checkpoint no older than the last that was announced; a step
that is made a second time must give the same weights to the last bit.
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
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "VERL_PLATFORM": "cpu"}  # before torch and verl
os.environ |= {"VERL_LOGGING_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"}

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

from verl_prism.checkpoints.resume import checkpoint_to_resume
from verl_prism.checkpoints.store import (
    MANIFEST,
    POINTER,
    checkpoints_folder,
    publish,
    published,
    unfinished_folder,
)
from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.launcher.launch import clear_output

ROOT = Path(__file__).parents[1]
CONTENTS = ["model", "optimizer", "extra", "hf_model"]
OPENED_HALF_ONE, DAMAGED = 3, 4


class Trainer:
    """One process's part: both networks, loaded from the newest complete checkpoint."""

    def __init__(self, prism: Prism, networks: dict[str, torch.nn.Module], processor, tell):
        self._prism, self._networks, self._tell = prism, networks, tell
        torch.manual_seed(0)
        self._managers = {
            name: self._manager(network, processor) for name, network in networks.items()
        }

    def run(self, trap: bool) -> None:
        if trap:
            for file in filter(Path.is_file, unfinished_folder(self._prism).rglob("*")):
                file.read_bytes()
        checkpoint, damaged = checkpoint_to_resume(self._prism)
        if damaged:
            os._exit(DAMAGED)
        step = 0
        if checkpoint:
            for name, manager in self._managers.items():
                manager.load_checkpoint(str(checkpoint.folder / name))
            position = torch.load(checkpoint.folder / "data.pt", weights_only=True)["position"]
            step = checkpoint.step
            assert position == step and set(self._steps()) == {step}, "parts of two checkpoints"
        self._tell(started=step, weights=self._weights())
        clear_output(self._prism, checkpoint)
        while True:
            step += 1
            self._train()
            self._tell(saving=step, weights=self._weights())
            self._save(step)
            self._tell(publishing=step)
            publish(self._prism, step)
            self._tell(done=step)

    def _manager(self, network, processor) -> FSDPCheckpointManager:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        contents = {"save_contents": CONTENTS, "load_contents": CONTENTS}
        return FSDPCheckpointManager(network, optimizer, schedule, processor, contents)

    def _train(self) -> None:
        for name, network in self._networks.items():
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            self._managers[name].optimizer.step()
            self._managers[name].lr_scheduler.step()

    def _save(self, step: int) -> None:
        folder = unfinished_folder(self._prism) / f"global_step_{step}"
        for name, manager in self._managers.items():
            manager.save_checkpoint(str(folder / name), None, step)
        torch.save({"position": step}, folder / "data.pt")

    def _steps(self) -> list[int]:
        """As the optimizers and the schedules count them."""
        optimizers = [
            int(s["step"]) for m in self._managers.values() for s in m.optimizer.state.values()
        ]
        return [
            *optimizers,
            *(manager.lr_scheduler.last_epoch for manager in self._managers.values()),
        ]

    def _weights(self) -> list[float]:
        """A number for each network that any changed weight changes."""
        with torch.no_grad():
            sums = [
                [p.full_tensor().double().square().sum() for p in n.parameters()]
                for n in self._networks.values()
            ]
        return [torch.stack(of_one).sum().item() for of_one in sums]


def start(
    prism: Prism, networks: dict[str, torch.nn.Module], processor, store: Path, trap: bool
) -> tuple[int, int]:
    """Forks: what is imported and loaded here need not be again. Returns the process and where it reports."""
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        return pid, read
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)

    def tell(**message) -> None:
        os.write(write, (json.dumps(message) + "\n").encode())

    try:
        warnings.simplefilter("ignore")
        sys.addaudithook(_end_at_half_ones(unfinished_folder(prism)))
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        for network in networks.values():
            fully_shard(network)
        Trainer(prism, networks, processor, tell).run(trap)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _end_at_half_ones(folder: Path):
    """Ends the process when it opens a file of a checkpoint that another process had left unfinished."""
    left = {str(path) for path in folder.rglob("*") if path.is_file()}

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]) in left and os.path.exists(arguments[0]):
            content = os.stat(arguments[0])
            if content.st_size == len(POISON):
                os._exit(OPENED_HALF_ONE)

    return hook


class Betrayal:
    def __reduce__(self):
        return Path.touch, (BETRAYED,)


BETRAYED = Path(tempfile.gettempdir()) / f"betrayed-{os.getpid()}"
POISON = pickle.dumps(Betrayal())


class Killer:
    """Starts, kills and keeps count."""

    def __init__(self, prism: Prism, base: Path, discriminator: Path, folder: Path, trap: bool):
        self._prism, self._folder, self._trap = prism, folder, trap
        policy = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        self._networks = {"actor": policy, "discriminator": load_discriminator(discriminator)}
        self._processor = AutoProcessor.from_pretrained(base)
        self._announced, self._weights = 0, {0: None}
        self._seconds = {"saving": 0.5, "publishing": 0.2}
        self.moments: Counter[str] = Counter()
        self.repeated = 0

    def kill_one(self, number: int, aim: str, wait: float) -> None:
        """Let a process start, and kill it at the share `wait` of a save or a publication."""
        store = self._folder / f"store{number}"
        self._pid, pipe = start(self._prism, self._networks, self._processor, store, self._trap)
        with os.fdopen(pipe) as reports:
            self._follow(reports, aim, wait, saves=2 - number % 2)
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            for report in map(json.loads, filter(lambda line: line.endswith("\n"), reports)):
                self._take(report)
        store.unlink(missing_ok=True)
        self.moments[self._moment()] += 1
        for file in filter(Path.is_file, unfinished_folder(self._prism).rglob("*")):
            file.write_bytes(POISON)

    def _follow(self, reports, aim: str, wait: float, saves: int) -> None:
        begun, seen = 0.0, 0
        for line in reports:
            report = json.loads(line)
            self._take(report)
            if aim in report:
                begun, seen = time.monotonic(), seen + 1
                if seen == saves:
                    time.sleep(wait * self._seconds[aim])
                    return
            elif begun and ("publishing" in report if aim == "saving" else "done" in report):
                self._seconds[aim] = time.monotonic() - begun
        raise SystemExit(
            f"a start failed: exit status {os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])}"
        )

    def _take(self, report: dict) -> None:
        if "started" in report and report["started"] < self._announced:
            raise SystemExit(
                f"step {self._announced} was published, and the next start found {report['started']}"
            )
        step = report.get("started", report.get("saving"))
        if step is not None and step in self._weights and self._weights[step] is not None:
            self.repeated += "saving" in report
            if self._weights[step] != report["weights"]:
                raise SystemExit(f"step {step} gave other weights the second time")
        if step is not None:
            self._weights[step] = report["weights"]
        self._announced = report.get("done", self._announced)

    def _moment(self) -> str:
        """Where the process was when it died, from what it left."""
        half = [path for path in unfinished_folder(self._prism).glob("global_step_*")]
        if any((folder / MANIFEST).exists() for folder in half):
            return "all written, not yet renamed"
        if half:
            return "writing"
        whole = published(self._prism)
        pointer = checkpoints_folder(self._prism) / POINTER
        if whole and (
            not pointer.exists() or pointer.read_text() != whole[-1].name.rpartition("_")[2]
        ):
            return "renamed, pointer not yet written"
        return (
            "removing the old one"
            if len(whole) > 1 or unfinished_folder(self._prism).exists()
            else "between saves"
        )


def tiny_models(folder: Path) -> tuple[Path, Path]:
    """The digits' policy, and a discriminator upcycled from it."""
    digits = ROOT / "examples" / "digits"
    subprocess.run(
        [sys.executable, digits / "data.py", "--out", folder / "data"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    model = [
        sys.executable,
        digits / "model.py",
        "--data",
        folder / "data",
        "--out",
        folder / "base",
    ]
    subprocess.run(model, check=True, stdout=subprocess.DEVNULL)
    upcycle(folder / "base", folder / "discriminator", experts=2, experts_per_token=1)
    return folder / "base", folder / "discriminator"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trap", action="store_true", help="open half ones on purpose: the command has to fail"
    )
    parser.add_argument("--models", type=Path, nargs=2, metavar=("POLICY", "DISCRIMINATOR"))
    options = parser.parse_args()
    disable_progress_bar()
    folder, chance, began = (
        Path(tempfile.mkdtemp(prefix="kills-")),
        random.Random(options.seed),
        time.monotonic(),
    )
    try:
        base, discriminator = options.models or tiny_models(folder)
        (folder / "train.parquet").touch()
        own = [
            f"prism.root={folder}",
            f"prism.policy={base}",
            f"prism.data.train={folder / 'train.parquet'}",
        ]
        prism = compose_run(["stage=align", "prism.steps=1000000", "prism.resume=true", *own])[1]
        killer = Killer(prism, base, discriminator, folder, options.trap)
        for number in range(options.kills):
            killer.kill_one(number, chance.choice(["saving", "publishing"]), chance.uniform(0, 1.1))
            if BETRAYED.exists():
                raise SystemExit("a file of a half checkpoint was loaded")
        seconds = time.monotonic() - began
        moments = ", ".join(f"{moment}: {count}" for moment, count in killer.moments.most_common())
        print(
            f"{options.kills} kills in {seconds:.0f} s, every start found a complete checkpoint; {moments}; "
            f"{killer.repeated} steps made again, with the same weights"
        )
    finally:
        BETRAYED.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
