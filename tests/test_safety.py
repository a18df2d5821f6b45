"""Our code never runs code from a model folder or from data."""

import ast
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import verl_prism
from verl_prism.compose import compose_run
from verl_prism.config import flatten

SOURCES = sorted(Path(verl_prism.__file__).parent.rglob("*.py"))
UNSAFE = {
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.loads",
    "os.system",
    "os.popen",
}


def calls() -> list[tuple[str, str, ast.Call]]:
    """Return file and line, dotted name and node of each call in the package."""
    return [
        (f"{path}:{node.lineno}", ast.unparse(node.func), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


# Pickles in a temporary database without a name, which only the process that wrote them can read.
OWN_PICKLES = "prepare/convert/seen.py"


def test_no_call_runs_code_from_a_file_or_a_string():
    assert len(SOURCES) > 50
    unsafe = [
        place
        for place, name, call in calls()
        if name in UNSAFE or keywords(call).get("shell") == "True"
        if OWN_PICKLES not in place
    ]
    assert not unsafe


# Files of a run's own checkpoint, which verl loads in the same way, and of the check's own process.
OWN_FILES = ("checkpoints/reshard.py", "gpu_check/two_ranks.py")


def test_torch_loads_only_tensors():
    loads = [
        (place, keywords(call).get("weights_only"))
        for place, name, call in calls()
        if name.endswith("torch.load")
    ]
    assert loads
    unsafe = [place for place, only in loads if only != "True"]
    assert all(any(own in str(place) for own in OWN_FILES) for place in unsafe), unsafe


def test_no_call_trusts_the_code_of_a_model():
    assert any(name.endswith("from_pretrained") for _, name, _ in calls())
    assert not [place for place, _, call in calls() if "trust_remote_code" in keywords(call)]
    assert not [path for path in SOURCES if "trust_remote_code" in path.read_text()]


@pytest.mark.parametrize("stage", ["sft", "warmup", "align", "rlvr", "eval"])
@pytest.mark.parametrize("algorithm", ["grpo", "opd_whitebox"])
def test_verl_does_not_trust_the_code_of_a_model(stage, algorithm):
    config, _ = compose_run(
        [f"stage={stage}", f"algorithm={algorithm}", "prism.hardware.ray_gpus=2"]
    )
    keys = [
        key
        for key, _ in flatten(OmegaConf.to_container(config))
        if key.endswith("trust_remote_code")
    ]
    assert bool(keys) == (stage in ("sft", "align", "rlvr"))
    assert not [key for key in keys if OmegaConf.select(config, key)]
