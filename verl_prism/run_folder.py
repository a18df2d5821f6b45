"""The layout of a run's output folder. No other module spells the name of a file in it."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from verl_prism.config import Stage


@dataclass(frozen=True)
class RunFolder:
    """The output folder of one stage's run (`prism.output`)."""

    path: Path

    @property
    def policy(self) -> Path:
        """Hugging Face folder of the trained policy."""
        return self.path / "policy"

    @property
    def discriminator(self) -> Path:
        """Hugging Face folder of the trained discriminator."""
        return self.path / "discriminator"

    @property
    def discriminator_settings(self) -> Path:
        """Stage warmup: the settings that `discriminator` was trained with, as JSON."""
        return self.path / "discriminator.settings.json"

    def result(self, stage: Stage) -> Path:
        """Return the path of what a stage produces for the next one."""
        match stage:
            case "warmup":
                return self.discriminator
            case "sample":
                return self.samples_file
            case "eval":
                return self.path
        return self.policy

    @property
    def reference(self) -> Path:
        """Stage dpo: log-probabilities of all responses under the policy that it starts from.

        A line holds the number of a pair, and those of the teacher's and the policy's response.
        """
        return self.path / "reference.jsonl"

    @property
    def config(self) -> Path:
        """The run's configuration, secrets redacted."""
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        """Everything that the stage's processes wrote to stdout and stderr."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """Metrics of each step as JSON lines, in the format of verl's file logger."""
        return self.path / "metrics.jsonl"

    @property
    def earlier_metrics(self) -> Path:
        """Metrics of the steps before the last resume; joined with `metrics` when the run ends."""
        return self.path / "metrics.earlier.jsonl"

    @property
    def step_samples(self) -> Path:
        """Some of the policy's responses of each training step, one JSON line each."""
        return self.path / "step_samples.jsonl"

    @property
    def report(self) -> Path:
        """The report of the run, one HTML file without links to anything else."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """The summary that the console shows at the end of the stage, as JSON."""
        return self.path / "summary.json"

    @property
    def outcome(self) -> Path:
        """How the stage's process ended, as JSON for the launcher."""
        return self.path / "outcome.json"

    @property
    def end_request(self) -> Path:
        """Exists if the stage was asked to save and end early."""
        return self.path / "end_requested"

    @property
    def checkpoints(self) -> Path:
        """Complete checkpoints, `global_step_N`."""
        return self.path / "checkpoints"

    @property
    def unfinished_checkpoints(self) -> Path:
        """Checkpoints that are still being written. Nothing is ever read from here."""
        return self.checkpoints / "unfinished"

    @property
    def replaced_checkpoints(self) -> Path:
        """Checkpoints of an earlier run, kept until this run has saved one."""
        return self.path / "checkpoints.replaced"

    def replaced(self, result: Path) -> Path:
        """Where the `policy` or `discriminator` of an earlier run is, until another one follows."""
        return result.with_name(f"{result.name}.replaced")

    @property
    def skipped_rows(self) -> Path:
        """Numbers of the rows that every stage leaves out: JSON {"train": [...], "heldout": [...]}.

        The numbers count from 0 over all files of `prism.data.train` or `prism.data.heldout`. The
        file is absent if no row is left out.
        """
        return self.path / "skipped_rows.json"

    @property
    def samples_file(self) -> Path:
        """Stage sample: the questions with the policy's responses, as parquet."""
        return self.path / "samples.parquet"

    @property
    def rollouts(self) -> Path:
        """Stages warmup and sample: journal of the policy's responses, one JSON line per prompt."""
        return self.path / "rollouts.jsonl"

    @property
    def sample_journals(self) -> Path:
        """Stage eval: folder with a journal of the responses of each policy."""
        return self.path / "samples"

    def samples(self, policy: str) -> Path:
        """Stage eval: journal of a policy's responses, one JSON line per question."""
        return self.sample_journals / f"{quote(policy, safe='')}.jsonl"

    @property
    def upcycled(self) -> Path:
        """Stage warmup: the discriminator that training starts from."""
        return self.path / "upcycled"

    @property
    def responses(self) -> Path:
        """Stage eval: every response with its marks, one JSON line each."""
        return self.path / "responses.jsonl"

    @property
    def results(self) -> Path:
        """Stage eval: means and intervals per policy, as JSON."""
        return self.path / "results.json"

    @property
    def results_table(self) -> Path:
        """Stage eval: the results as a Markdown table."""
        return self.path / "results.md"

    @property
    def examples(self) -> Path:
        """Stage eval: a picture of what each policy answered to a few questions."""
        return self.path / "examples.png"

    @property
    def node_logs(self) -> Path:
        """Output of Ray on each host, when `verl_prism.cluster` started it."""
        return self.path / "nodes"
