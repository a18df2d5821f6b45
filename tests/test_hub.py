"""Models named by hub ids: what is downloaded, what the config then holds, and every message."""

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
from hub_server import MAIN, TAGGED, HubServer
from huggingface_hub import constants

from verl_prism import hub
from verl_prism.checkpoints.fingerprint import fingerprint
from verl_prism.checkpoints.model_card import ModelCard
from verl_prism.compose import compose_run
from verl_prism.config import folder_or_hub_id
from verl_prism.data.checks import check_files
from verl_prism.errors import UserError
from verl_prism.hub import with_local_models
from verl_prism.hub_cache import hub_name, missing_bytes
from verl_prism.launcher.launch import environment

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def server(dense_folder, tmp_path, monkeypatch):
    """A Hub that this process uses, with an empty cache."""
    with HubServer(dense_folder) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


@pytest.fixture
def data(digits_folder):
    return f"prism.data.train={digits_folder}/data/sft.parquet"


def compose(*overrides: str, weights: bool = True, said: list[str] | None = None):
    say = [].append if said is None else said.append
    find_models = partial(with_local_models, weights=weights, say=say)
    return compose_run(["stage=sft", *overrides], find_models)


def message(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(*overrides)
    return str(caught.value)


def test_the_config_holds_the_folder_of_the_download(server, dense_folder, tmp_path, data):
    said: list[str] = []
    config, prism = compose("prism.policy=org/tiny", data, said=said)
    folder = tmp_path / "cache" / "models--org--tiny" / "snapshots" / MAIN
    assert prism.policy == folder
    assert config.prism.policy == config.model.path == str(folder)
    weights = (dense_folder / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights
    (line,) = said
    assert line.startswith("prism.policy=org/tiny: downloading ")
    check_files(prism)


def test_a_complete_model_is_not_downloaded_again(server):
    compose("prism.policy=org/tiny")
    server.requests.clear()
    said: list[str] = []
    compose("prism.policy=org/tiny", said=said)
    assert server.requests == ["GET /api/models/org/tiny/revision/main"]
    assert said == []


def test_an_interrupted_download_is_completed(server):
    _, prism = compose("prism.policy=org/tiny")
    (prism.policy / "model.safetensors").unlink()
    (prism.policy / "config.json").unlink()
    compose("prism.policy=org/tiny")
    assert (prism.policy / "model.safetensors").is_file()
    assert (prism.policy / "config.json").is_file()


def test_a_revision(server):
    _, prism = compose("prism.policy=org/tiny@v1")
    assert prism.policy.name == TAGGED


def test_the_discriminator_and_its_base(server):
    _, prism = compose(
        "stage=warmup", "prism.discriminator.upcycle.base=org/tiny", "prism.policy=/p"
    )
    assert prism.discriminator.upcycle.base.name == MAIN
    _, prism = compose("stage=align", "prism.discriminator.path=org/tiny@v1", "prism.policy=/p")
    assert prism.discriminator.path.name == TAGGED


def test_policies_of_an_evaluation(server):
    policies = "prism.eval.policies={before: /folder, after.1: org/tiny}"
    _, prism = compose("stage=eval", policies)
    assert prism.eval.policies["before"] == Path("/folder")
    assert prism.eval.policies["after.1"].name == MAIN


def test_only_models_that_the_stage_loads_are_downloaded(server):
    judge = ("prism.reward.judge.endpoint=http://localhost/v1", "prism.reward.judge.model=org/tiny")
    _, prism = compose(
        "stage=rlvr", "prism.policy=org/tiny", "prism.discriminator.path=org/no", *judge
    )
    assert prism.reward.judge.model == "org/tiny"
    assert prism.policy.name == MAIN


def test_a_check_downloads_no_weights_and_says_how_large_they_are(server, data):
    said: list[str] = []
    _, prism = compose("prism.policy=org/tiny", data, weights=False, said=said)
    assert "config.json" in server.downloads
    assert "model.safetensors" not in server.downloads
    assert missing_bytes(prism.policy) > 1e6
    (line,) = said
    assert line.startswith("prism.policy=org/tiny: 0.00")
    assert line.endswith("GiB of weights are not downloaded yet")
    check_files(prism)


@pytest.mark.parametrize("variable", [True, False])
def test_offline(server, monkeypatch, variable):
    _, online = compose("prism.policy=org/tiny")
    server.requests.clear()
    setting = "prism.hub.offline=true"
    if variable:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        setting = "prism.hub.offline=false"
    _, prism = compose("prism.policy=org/tiny", setting)
    assert prism.policy == online.policy
    text = message("prism.policy=org/tiny@v1", setting)
    assert ("HF_HUB_OFFLINE" if variable else "prism.hub.offline=true") in text
    assert "hf download org/tiny --revision v1" in text
    (online.policy / "model.safetensors").unlink()
    assert "not completely in" in message("prism.policy=org/tiny", setting)
    assert server.requests == []


def test_processes_of_a_run_are_offline_only_if_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "HF_HUB_OFFLINE" not in environment(compose_run(["stage=sft"])[1], tmp_path)
    _, prism = compose_run(["stage=sft", "prism.hub.offline=true"])
    assert environment(prism, tmp_path)["HF_HUB_OFFLINE"] == "1"


def test_a_name_that_is_neither_a_folder_nor_a_model(server):
    text = message("prism.policy=sft/policy")
    assert text.startswith("prism.policy=sft/policy: there is no such folder, and http://127.0.0.1")
    assert "has no such model, or it is private" in text


def test_a_missing_revision(server):
    assert message("prism.policy=org/tiny@v9") == (
        "prism.policy=org/tiny@v9: the model has no revision v9"
    )


def test_a_gated_model(server, monkeypatch):
    server.gated = {"hf_right"}
    assert f"accept its conditions at {server.url}/org/tiny and set HF_TOKEN" in message(
        "prism.policy=org/tiny"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    text = message("prism.policy=org/tiny")
    assert "your token gives no access to it" in text
    assert "hf_wrong" not in text
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert compose("prism.policy=org/tiny")[1].policy.name == MAIN


def test_a_hub_that_fails(server):
    server.down = True
    text = message("prism.policy=org/tiny")
    assert "503" in text
    assert "hf download org/tiny" in text


def test_no_network(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    text = message("prism.policy=org/tiny")
    assert "http://127.0.0.1:9 does not deliver it (ConnectError: " in text


def test_a_disk_that_is_too_small(server, monkeypatch):
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    text = message("prism.policy=org/tiny")
    assert "0 GiB free. Set HF_HOME to a folder on a larger disk" in text.replace("9.31e-10", "0")


def test_a_disk_that_fills_up(server, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    assert "the disk is full. Set HF_HOME" in message("prism.policy=org/tiny")


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", None),
        ("Qwen/Qwen3-VL-4B-Instruct@main", "Qwen/Qwen3-VL-4B-Instruct", "main"),
        ("Qwen/Qwen3-VL-4B-Instruct@refs/pr/1", "Qwen/Qwen3-VL-4B-Instruct", "refs/pr/1"),
    ],
)
def test_hub_ids(text, repo, revision):
    assert hub.parse_hub_id("key", folder_or_hub_id(text)) == ("key", repo, revision)


@pytest.mark.parametrize(
    "text", ["base", "/base", "./a/b", "../b", "~/b", "a/b/c", "outputs/a/b@c"]
)
def test_folders(text):
    path = folder_or_hub_id(text)
    assert path == Path(text).expanduser().absolute()


def test_a_folder_takes_precedence_over_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("org/tiny").mkdir(parents=True)
    assert folder_or_hub_id("org/tiny") == tmp_path / "org" / "tiny"


def test_a_folder_below_the_root_is_never_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, prism = compose_run(["stage=sft", "prism.root=runs"])
    assert prism.policy == tmp_path / "runs" / "base"


def test_the_fingerprint_and_the_model_card_name_the_commit(server, data, tmp_path):
    _, prism = compose("prism.policy=org/tiny", data)
    assert fingerprint(prism)["prism.policy"] == f"org/tiny@{MAIN}"
    ModelCard.of(prism, "policy", prism.policy, {}).write(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"Started from `org/tiny@{MAIN}`" in card
    assert "snapshots" not in card
    assert hub_name(tmp_path) is None


def hub_variables(server: HubServer, home: Path) -> dict[str, str]:
    return os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}


def run_main(server: HubServer, home: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "verl_prism.main", *arguments],
        cwd=REPOSITORY,
        env=hub_variables(server, home),
        capture_output=True,
        text=True,
    )


def test_the_command_checks_a_model_on_the_hub(server, tmp_path, data):
    one_epoch = "prism.epochs=1"
    done = run_main(
        server, tmp_path, "stage=sft", "prism.policy=org/tiny@v1", data, one_epoch, "--check"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "prism.policy=org/tiny@v1: 0.00" in done.stdout
    done = run_main(server, tmp_path, "stage=sft", "prism.policy=org/typo", data, "--check")
    assert done.returncode == 2
    assert "has no such model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.integration
@pytest.mark.slow
def test_only_the_driver_of_a_run_asks_the_hub(server, digits_folder, tmp_path):
    """The processes of a stage get a folder, so they send the Hub nothing."""
    folders = (f"prism.root={tmp_path}", f"prism.data.train={digits_folder}/data/sft.parquet")
    done = run_main(
        server, tmp_path, "stage=sft", "prism.policy=org/tiny", "prism.steps=2", *folders
    )
    assert done.returncode == 0, done.stderr
    (resolved,) = [path for path in server.requests if "revision" in path]
    assert resolved.endswith("/main")
    downloads = len(server.downloads)
    assert downloads == len(set(server.downloads))
    server.requests.clear()
    heldout = f"prism.data.heldout={digits_folder}/data/heldout.parquet"
    small = ("prism.eval.max_questions=4", "prism.eval.samples=1")
    done = run_main(
        server, tmp_path, "stage=eval", "prism.policy=org/tiny", *small, heldout, *folders
    )
    assert done.returncode == 0, done.stderr
    assert server.requests == ["GET /api/models/org/tiny/revision/main"]
