"""What a check receives (a case) and what it yields (findings)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from verl_prism.config import ON_RAY, ONLY_SAMPLE, Prism
from verl_prism.data.checks import InputReport, check_files, has_gpu, model_folders
from verl_prism.errors import UserError

if TYPE_CHECKING:
    from verl_prism.doctor.sizes import Sizes

GIB = 2**30

Level = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: "error" if it would stop the run or make it train wrongly; "note" if it is
            about this host only, which has no GPU, so that the run cannot be here, or if something
            could not be checked because of another error.
        text: What was found.
        fix: What to do about it; empty if the level is "ok".
    """

    level: Level
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Case:
    """The run that is checked. The first use of a model's sizes imports torch.

    Attributes:
        response_tokens: Mean length of the policy's responses, if the user knows it.
    """

    config: DictConfig
    prism: Prism
    response_tokens: int | None = None

    @property
    def on_ray(self) -> bool:
        """Whether the stage's trainer runs on Ray."""
        return self.prism.stage in ON_RAY

    @property
    def uses_ray(self) -> bool:
        """Whether the stage uses Ray: for its trainer, several nodes, or several vLLM engines."""
        hardware = self.prism.hardware
        samples = self.prism.stage in (*ONLY_SAMPLE, "warmup")
        several_engines = hardware.devices_per_node > hardware.tensor_parallel_size
        return self.on_ray or hardware.nodes > 1 or (samples and several_engines)

    @property
    def without_gpu(self) -> bool:
        """Whether the run needs GPUs and this host has none: it may be a cluster's login node."""
        return self.prism.hardware.device == "cuda" and not has_gpu()

    @property
    def policy_folder(self) -> Path:
        """Folder of the policy; in stage eval, of the first policy."""
        if self.prism.stage == "eval":
            return next(iter(self.prism.eval.policies.values()))
        return self.prism.policy

    @property
    def inputs(self) -> InputReport:
        """What the check of models and data finds. Raises UserError for the first mistake."""
        if isinstance(self._inputs, UserError):
            raise self._inputs
        return self._inputs

    @property
    def has_wrong_inputs(self) -> bool:
        """Whether there is a mistake in the models or the data."""
        return isinstance(self._inputs, UserError)

    @cached_property
    def lacks_model(self) -> bool:
        """Whether a model that the stage loads is not in its folder."""
        folders = model_folders(self.prism).values()
        return not all((folder / "config.json").is_file() for folder in folders)

    @cached_property
    def _inputs(self) -> InputReport | UserError:
        try:
            return check_files(self.prism)
        except UserError as error:
            return error

    @cached_property
    def policy(self) -> "Sizes":
        """Sizes of the policy."""
        from verl_prism.doctor.sizes import policy_sizes

        return policy_sizes(self.policy_folder)

    @cached_property
    def discriminator(self) -> "Sizes | None":
        """Sizes of the discriminator; None if the stage has none."""
        from verl_prism.doctor.sizes import discriminator_sizes, upcycled_sizes

        match self.prism.stage:
            case "warmup":
                return upcycled_sizes(self.prism.discriminator.upcycle)
            case "align":
                return discriminator_sizes(self.prism.discriminator.path)
        return None


Check = Callable[[Case], Iterator[Finding]]


def ok(text: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding("ok", text)


def note(text: str) -> Finding:
    """Return a finding that tells the user something and needs no action."""
    return Finding("note", text)


def warning(text: str, fix: str) -> Finding:
    """Return a finding that deserves attention but does not stop the run."""
    return Finding("warning", text, fix)


def error(text: str, fix: str) -> Finding:
    """Return a finding that would stop the run or make it train wrongly."""
    return Finding("error", text, fix)


def gib(num_bytes: float) -> str:
    """Format a number of bytes in GiB, with three digits."""
    return f"{num_bytes / GIB:.3g} GiB"
