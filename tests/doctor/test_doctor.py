"""Each planted fault is found, alone, with its cure; a run that is right has none."""

import json
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from verl_prism.compose import compose_run
from verl_prism.doctor import host
from verl_prism.doctor.__main__ import CHECKS, HELP, findings, main
from verl_prism.doctor.finding import Case, Finding

SLOW = ("processes talk", "verl")  # seconds each
QUICK = {name: check for name, check in CHECKS.items() if name not in SLOW}


class SetUp:
    """A small run of stage align whose folders are its own, to be spoilt."""

    def __init__(self, root, dense, discriminator, rows):
        self.root = root
        self.policy = shutil.copytree(dense, root / "sft" / "policy")
        self.discriminator = shutil.copytree(discriminator, root / "warmup" / "discriminator")
        for name in ("train", "heldout"):
            (root / "data").mkdir(exist_ok=True)
            pq.write_table(rows, root / "data" / f"{name}.parquet")

    def case(self, *overrides: str, stage: str = "align") -> Case:
        small = ("prism.rollout.prompts_per_step=4", "prism.rollout.samples_per_prompt=4")
        return Case(*compose_run([f"stage={stage}", f"prism.root={self.root}", *small, *overrides]))

    def told(self, *overrides: str, stage: str = "align") -> dict[str, list[Finding]]:
        """What is not in order, by check."""
        case = self.case(*overrides, stage=stage)
        found = {name: findings(check, case) for name, check in QUICK.items()}
        told = {
            name: [finding for finding in each if finding.level != "ok"]
            for name, each in found.items()
        }
        return {name: each for name, each in told.items() if each}

    def edit(self, file, **changes: object) -> None:
        content = json.loads(file.read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            node = content
            for parent in parents:
                node = node[parent]
            assert last in node
            node[last] = value
        file.write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path, dense_folder, discriminator_folder, digits_folder):
    rows = pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 8)
    return SetUp(tmp_path / "run", dense_folder, discriminator_folder, rows)


def only(
    told: dict[str, list[Finding]], check: str, text: str, cure: str, level: str = "fault"
) -> None:
    """This check alone has told one thing, and how to mend it."""
    assert list(told) == [check], told
    (finding,) = told[check]
    assert finding.level == level
    assert text in finding.text
    assert cure in finding.cure


def test_a_run_that_is_right_has_no_findings(run):
    assert run.told() == {}


@pytest.mark.parametrize("stage", ["sft", "warmup", "rlvr", "eval"])
def test_every_stage_is_looked_at(run, stage, digits_folder):
    policies = f"prism.policy={run.policy}"
    data = f"prism.data.train={digits_folder / 'data' / ('sft' if stage == 'sft' else 'train')}.parquet"
    small = ["prism.warmup.prompts=8"] if stage == "warmup" else []
    assert run.told(policies, *([data] if stage == "sft" else []), *small, stage=stage) == {}


def test_another_version(run, monkeypatch, tmp_path):
    """Found before the real one, as in an environment where somebody has upgraded it."""
    folder = tmp_path / "site" / "transformers-4.57.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.0\n")
    monkeypatch.syspath_prepend(folder.parent)
    only(run.told(), "packages", "transformers is 4.57.0, not ==5.9.0", "requirements/cpu.txt")


def test_a_plugin_that_is_kept_out(run, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    only(
        run.told(),
        "plugin",
        "VERL_USE_EXTERNAL_PLUGINS=none keeps verl from loading verl_prism. Unset it",
        "",
    )


@pytest.mark.parametrize(
    ("name", "value", "stage", "cure"),
    [
        (
            "RAY_ADDRESS",
            "10.0.0.1:6379",
            "align",
            "unset RAY_ADDRESS, or say prism.hardware.ray_address=auto",
        ),
        ("VERL_PLATFORM", "nvidia", "align", "unset VERL_PLATFORM"),
        ("RANK", "3", "warmup", "unset RANK"),
    ],
)
def test_a_variable_that_leads_astray(run, monkeypatch, name, value, stage, cure):
    monkeypatch.setenv(name, value)
    only(run.told("prism.warmup.prompts=8", stage=stage), "environment", f"{name}={value}", cure)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("CUDA_VISIBLE_DEVICES", "", "unset CUDA_VISIBLE_DEVICES"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "unset PYTORCH_CUDA_ALLOC_CONF"),
        ("VERL_PLATFORM", "cpu", "unset VERL_PLATFORM"),
    ],
)
def test_a_variable_that_leads_a_gpu_run_astray(run, monkeypatch, name, value, cure):
    monkeypatch.setenv(name, value)
    (finding,) = findings(CHECKS["environment"], run.case("hardware=cuda"))
    assert (finding.level, finding.cure.startswith(cure)) == ("fault", True)


def test_a_variable_that_lets_the_hub_be_asked(run, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    only(run.told(), "environment", "HF_HUB_OFFLINE=0", "unset HF_HUB_OFFLINE", level="warning")


@contextmanager
def at_most(kind: int, count: int):
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_too_few_open_files(run):
    with at_most(resource.RLIMIT_NOFILE, 1024):
        told = run.told()
    only(told, "limits", "at most 1024 open files", "ulimit -n 65536")


def test_too_few_processes(run):
    with at_most(resource.RLIMIT_NPROC, 4000):
        told = run.told()
    only(told, "limits", "at most 4000 processes and threads", "ulimit -u unlimited")


def test_too_little_shared_memory(run):
    """For this bucket; the real size of the folder is the host's."""
    told = run.told("prism.hardware.weight_bucket_mib=100000000", stage="align")
    told.pop("device memory")  # it is too large for memory too
    only(told, "shared memory", "/dev/shm has", "docker run --shm-size=16g")


def test_a_scratch_folder_that_is_not_there(run, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "SCRATCH", tmp_path / "absent")
    only(run.told(), "scratch folder", "is no folder that can be written", "mkdir -m 1777")


def test_an_output_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    told = run.told(f"prism.output={tmp_path / 'file' / 'out'}")
    only(
        told,
        "output",
        f"{tmp_path / 'file'} is not a folder that can be written",
        "set prism.output",
    )


def test_a_disk_too_small_for_checkpoints(run):
    """A policy of 2 trillion parameters, by the header of its weights."""
    header = json.dumps(
        {"weight": {"dtype": "F32", "shape": [2000, 10**9], "data_offsets": [0, 8 * 10**12]}}
    ).encode()
    (run.policy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    only(
        run.told(),
        "output",
        "checkpoints of 2.98e+04 GiB each need 5.96e+04 GiB",
        "prism.root to a larger disk",
    )


def test_too_few_logical_cpus_for_ray(run):
    only(
        run.told("prism.hardware.ray_cpus=4"),
        "Ray",
        "asks Ray for 6 logical CPUs, it would have 4",
        "set prism.hardware.ray_cpus=6",
    )


def test_too_few_devices_for_ray(run):
    told = run.told(
        "prism.hardware.devices_per_node=2",
        "prism.hardware.ray_gpus=1",
        f"prism.policy={run.policy}",
        stage="rlvr",
    )
    only(told, "Ray", "asks Ray for 2 devices, it would have 1", "prism.hardware.ray_gpus")


def test_two_nodes_without_a_ray(run):
    only(
        run.told("prism.hardware.nodes=2"),
        "Ray",
        "a Ray of its own has one node",
        "prism.hardware.ray_address",
    )


def test_a_ray_that_does_not_answer(run):
    told = run.told("prism.hardware.ray_address=127.0.0.1:9")
    only(
        told, "Ray", "nothing answers at prism.hardware.ray_address=127.0.0.1:9", "ray start --head"
    )


def test_a_folder_that_is_not_whole(run):
    (run.discriminator / "tokenizer.json").unlink()
    only(run.told(), "models and data", f"{run.discriminator}: no tokenizer there", "")


def test_an_image_processor_of_another_model(run):
    run.edit(run.policy / "processor_config.json", image_processor__merge_size=4)
    only(
        run.told(),
        "image patches",
        "spatial_merge_size is 2 in config.json, 4 in its image processor",
        "copy the image processor of the model's own base",
    )


def test_a_discriminator_that_cuts_images_otherwise(run):
    run.edit(run.discriminator / "config.json", vision_config__temporal_patch_size=1)
    run.edit(run.discriminator / "processor_config.json", image_processor__temporal_patch_size=1)
    told = run.told()
    only(
        told,
        "image patches",
        "cuts images otherwise than prism.policy",
        "start both from models of one family",
    )
    assert told["image patches"][0].text.endswith("temporal_patch_size")


def test_the_patch_size_of_another_model(run):
    told = run.told("prism.model.image_patch_size=16")
    only(told, "image patches", "patches of 8 pixels, not 16", "set prism.model.image_patch_size=8")


def test_a_batch_that_the_devices_cannot_share(run):
    told = run.told("prism.hardware.devices_per_node=3")
    only(
        told,
        "batches",
        "16 responses a step, 16 of them to an update, 3 devices",
        "set prism.rollout.prompts_per_step",
    )


def test_a_mini_batch_that_does_not_divide_the_batch(run):
    told = run.told("actor_rollout_ref.actor.ppo_mini_batch_size=3")
    only(told, "batches", "16 responses a step, 12 of them to an update", "ppo_mini_batch_size")


def test_a_sequence_longer_than_a_pass(run):
    told = run.told("prism.data.max_response_tokens=2000")
    only(
        told,
        "batches",
        "a sequence may have 2064 tokens",
        "set prism.hardware.max_tokens_per_device=2064",
    )


def test_fewer_rows_than_a_batch(run):
    told = run.told("prism.rollout.prompts_per_step=16")
    only(
        told,
        "rows",
        "has 8 rows, less than one batch: prism.rollout.prompts_per_step=16",
        "add rows, or lower",
    )


def test_fewer_rows_than_the_warmup_would_use(run):
    told = run.told("prism.warmup.prompts=100", stage="warmup")
    only(
        told,
        "rows",
        "has 8 rows; all of them will be used",
        "set prism.warmup.prompts=8",
        level="warning",
    )


def test_a_tensor_larger_than_the_bucket(run):
    run.edit(run.policy / "config.json", text_config__vocab_size=200_000)
    only(
        run.told(),
        "weights to vLLM",
        "largest tensor is 98 MiB, prism.hardware.weight_bucket_mib=64",
        "set prism.hardware.weight_bucket_mib=98",
    )


def test_a_pass_too_large_for_the_memory(run):
    told = run.told("prism.hardware.max_tokens_per_device=1000000000")
    only(
        told,
        "device memory",
        "the policy learns:",
        "a smaller prism.hardware.max_tokens_per_device",
    )


def test_experts_too_many_for_the_memory(run):
    run.edit(run.discriminator / "config.json", text_config__num_local_experts=40_000)
    told = run.told()
    told.pop("output", None)  # nor may the disk hold them
    assert {finding.cure for finding in told["device memory"]} >= {
        "more devices, or fewer prism.discriminator.upcycle.experts"
    }


def test_a_share_of_the_gpu_too_small_for_vllm(run):
    run.edit(run.policy / "config.json", text_config__num_hidden_layers=100_000)
    (finding,) = findings(
        CHECKS["vLLM's cache"],
        run.case("hardware=cuda", "prism.hardware.gpu_memory_utilization=0.1"),
    )
    assert (finding.level, finding.text) == (
        "fault",
        "vLLM's share of the device has no room for one sequence beside the weights",
    )
    assert "raise prism.hardware.gpu_memory_utilization" in finding.cure


def test_a_host_too_small_for_idle_models(run):
    run.edit(run.policy / "config.json", text_config__num_hidden_layers=1_000_000)
    (finding,) = findings(CHECKS["host memory"], run.case("hardware=cuda"))
    assert (finding.level, "a host with more memory" in finding.cure) == ("fault", True)


def test_processes_that_cannot_talk(run, monkeypatch):
    case = run.case()
    assert [finding.level for finding in findings(CHECKS["processes talk"], case)] == ["ok"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    (finding,) = findings(CHECKS["processes talk"], case)
    assert finding.level == "fault"
    assert "two processes cannot add up numbers by gloo" in finding.text
    assert "GLOO_SOCKET_IFNAME" in finding.cure


def test_what_verl_refuses(run):
    (finding,) = findings(
        CHECKS["verl"], run.case("actor_rollout_ref.actor.loss_agg_mode=median", stage="rlvr")
    )
    assert (finding.level, "Invalid loss_agg_mode: median" in finding.text) == ("fault", True)


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """An nvidia-smi that tells of the GPUs that it is given."""

    def give(*lines: str) -> None:
        file = tmp_path / "bin" / "nvidia-smi"
        file.parent.mkdir(exist_ok=True)
        file.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", str(file.parent), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return give


H100 = "NVIDIA H100 80GB HBM3, 81559, 4, 9.0, 580.65.06"
TWO = ("hardware=cuda", "prism.hardware.devices_per_node=2")


@pytest.mark.parametrize(
    ("lines", "text", "cure"),
    [
        ([H100], "1 GPUs to be seen here; 2 are wanted", "lower prism.hardware.devices_per_node"),
        ([], "0 GPUs to be seen here", "nvidia-smi"),
        (
            [H100, "Tesla V100, 32768, 4, 7.0, 580.65.06"],
            "compute capability 7.0, not 8.0",
            "choose an Ampere GPU",
        ),
        (
            [H100.replace("580.65.06", "535.104.05")] * 2,
            "the NVIDIA driver is 535.104.05",
            "install a newer driver",
        ),
        (
            [H100, H100.replace(", 4,", ", 30000,")],
            "GPU 1: 29.3 GiB are in use",
            "nvidia-smi shows by whom",
        ),
    ],
)
def test_gpus_that_do_not_do(run, gpus, lines, text, cure):
    gpus(*lines)
    (finding,) = findings(CHECKS["GPUs"], run.case(*TWO))
    assert finding.level != "ok"
    assert text in finding.text
    assert cure in finding.cure


def test_gpus_that_do(run, gpus, monkeypatch):
    gpus(H100, H100)
    assert findings(CHECKS["GPUs"], run.case(*TWO)) == [Finding("ok", "2 x NVIDIA H100 80GB HBM3")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (finding,) = findings(CHECKS["GPUs"], run.case(*TWO))
    assert finding.text == "1 GPUs to be seen here; 2 are wanted"


def test_the_command_says_all_and_ends_with_2(run, capsys, monkeypatch):
    monkeypatch.setattr("verl_prism.doctor.__main__.CHECKS", QUICK)
    assert main(["stage=align", f"prism.root={run.root}", "prism.rollout.prompts_per_step=4"]) == 0
    assert capsys.readouterr().out.endswith("0 faults, 0 warnings\n")
    assert main(["stage=align", f"prism.root={run.root}", "prism.hardware.ray_cpus=1"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "→ set prism.hardware.ray_cpus=6" in said
    assert "✗ rows" in said


def test_nothing_there_is_no_traceback(tmp_path):
    """Every check fails in its own way, and says so."""
    command = [sys.executable, "-m", "verl_prism.doctor", "stage=align", f"prism.root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert f"prism.policy={tmp_path}" in "".join(done.stdout.split())


def test_help_and_a_mistyped_key(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP
    assert main(["stage=align", "prism.stpes=3"]) == 2
    assert "did you mean prism.steps?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_ray_that_is_there_is_asked(run, monkeypatch):
    """A cluster of one node with one device; a run that wants two would wait for ever."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray on loopback
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        start = [
            "start",
            "--head",
            f"--port={port}",
            "--node-ip-address=127.0.0.1",
            "--num-cpus=8",
            "--num-gpus=1",
            f"--temp-dir={folder}",
            "--include-dashboard=false",
            "--disable-usage-stats",
            "--block",
        ]
        ray = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), *start], stdout=subprocess.DEVNULL
        )
        keys = [
            f"prism.hardware.ray_address=127.0.0.1:{port}",
            "prism.hardware.ray_cpus=null",
            "prism.hardware.ray_gpus=null",
            f"prism.policy={run.policy}",
        ]
        try:
            for _ in range(60):
                (first,) = findings(CHECKS["Ray"], run.case(*keys, stage="rlvr"))
                if first.level == "ok" or not first.text.startswith("nothing answers"):
                    break
                time.sleep(1)
            (second,) = findings(
                CHECKS["Ray"], run.case(*keys, "prism.hardware.devices_per_node=2", stage="rlvr")
            )
        finally:
            ray.terminate()
            ray.wait()
    assert first == Finding("ok", f"127.0.0.1:{port}: 1 nodes, 1 devices and 8 logical CPUs free")
    assert second.text.startswith(
        "0 of Ray's nodes have 2 devices and 6 logical CPUs free; 1 are wanted"
    )
    assert "prism.hardware.devices_per_node" in second.cure
