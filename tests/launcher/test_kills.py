"""A killed process ends the run soon, is named, and leaves nothing behind."""

import json

import psutil
import pytest

from verl_prism.launcher.process_names import ROLES

SMALL = ["prism.rollout.prompts_per_step=4", "prism.rollout.samples_per_prompt=4"]
LIMIT = 60.0  # seconds

# Role in the message -> part of the command line.
ON_RAY = {
    ROLES["vLLMHttpServer"]: "ray::vLLMHttpServer",
    ROLES["raylet"]: "/raylet --",
    ROLES["SimpleStorageUnit"]: "ray::SimpleStorageUnit",
    ROLES["WorkerDict"]: "ray::WorkerDict",
    ROLES["EngineCore"]: "VLLM::EngineCore",
    "stage's own process": "verl_prism.stages.run",
    ROLES["AgentLoopWorkerTQ"]: "ray::AgentLoopWorkerTQ",
    ROLES["gcs_server"]: "/gcs_server --",
    ROLES["RewardLoopWorker"]: "ray::RewardLoopWorker",
    ROLES["TransferQueueController"]: "ray::TransferQueueController",
    ROLES["PrismTaskRunner"]: "ray::PrismTaskRunner",
    ROLES["GlobalRequestLoadBalancer"]: "ray::GlobalRequestLoadBalancer",
}


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ON_RAY)
def test_a_killed_process_of_a_stage_on_ray_ends_the_run(role, start_stage):
    run = start_stage("align", "prism.steps=1000", *SMALL)
    run.reach('"data"')
    victim = next(process for process in run.descendants if ON_RAY[role] in command_line(process))
    victim.kill()
    status, stderr, seconds = run.end(LIMIT)
    print(f"\nkilled: {role}; ended after {seconds:.1f} s\n{stderr}")
    assert status == 1
    assert role in stderr
    run.assert_nothing_left()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_rank_of_sft_ends_the_run(start_stage, digits_folder):
    run = start_stage(
        "sft",
        f"prism.policy={digits_folder / 'base'}",
        "prism.hardware.devices_per_node=2",
        "prism.steps=1000",
    )
    run.reach('"data"')
    children = run.descendants[0].children()
    *_, victim = [child for child in children if "spawn_main" in command_line(child)]
    victim.kill()
    status, stderr, seconds = run.end(LIMIT)
    print(f"\nkilled: a rank of sft; ended after {seconds:.1f} s\n{stderr}")
    assert status == 1
    assert f"Signal 9 (SIGKILL) received by PID {victim.pid}" in stderr
    run.assert_nothing_left()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_engine_ends_the_warmup(start_stage):
    """On CPU vLLM runs in the stage's own process."""
    run = start_stage("warmup", "prism.warmup.prompts=4000")
    run.reach("sampling")
    next(
        process for process in run.descendants if "verl_prism.stages.run" in command_line(process)
    ).kill()
    status, stderr, seconds = run.end(LIMIT)
    print(f"\nkilled: warm-up; ended after {seconds:.1f} s\n{stderr}")
    assert status == 1
    assert "the stage's own process was killed by SIGKILL" in stderr
    run.assert_nothing_left()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_is_restarted_from_its_last_checkpoint(start_stage):
    run = start_stage(
        "rlvr", "prism.steps=10", "prism.checkpoint_every=1", "prism.max_restarts=1", *SMALL
    )
    run.reach('"data"')
    next(
        process for process in run.descendants if "ray::WorkerDict" in command_line(process)
    ).kill()
    status, stderr, _ = run.end(600)
    assert status == 0
    assert "the policy worker (WorkerDict), process" in stderr
    assert "restart 1 of prism.max_restarts=1" in stderr
    lines = (run.output / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps[0] == 1
    assert steps[-1] == 10
    assert steps == sorted(set(steps))
    assert (run.output / "policy" / "config.json").is_file()
    run.assert_nothing_left()


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
