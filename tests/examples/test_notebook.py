"""The notebook of the digits example runs outside Jupyter, and its outputs show what it says."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
NOTEBOOK = DIGITS / "alignment_game.ipynb"
ABSOLUTE_PATH = re.compile(r"(?<![\w.:])/\w[\w.-]*/\w|[A-Z]:\\")
ERROR = re.compile(r"^(\w.*?)  +(perception|reasoning) +([\d.]+) +([\d.]+)$", re.MULTILINE)
CANDIDATE = re.compile(r"^ +([+-][\d.]+) +([+-][\d.]+) +[+-][\d.]+ .*\((.*)\)$", re.MULTILINE)
POLICY = re.compile(r"^.*: perception (\d+)%, reasoning \d+%$", re.MULTILINE)

# Appended to the cells. The rule for advantages is written out in the notebook.
CHECKS = """
import sys
from verl_prism.alignment.advantage import normalize_groups
several = torch.randn(2, 5, 4)
some = torch.rand(5, 4) < 0.6
torch.testing.assert_close(normalize(several, some), normalize_groups(several, some, 0.001))
assert not {"ray", "verl", "vllm"} & sys.modules.keys()
"""


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def code_cells() -> list[dict]:
    return [cell for cell in cells() if cell["cell_type"] == "code"]


def code() -> str:
    return "\n".join("".join(cell["source"]) for cell in code_cells())


def stored_outputs() -> list[dict]:
    return [output for cell in code_cells() for output in cell["outputs"]]


def stored_text() -> str:
    texts = []
    for output in stored_outputs():
        if output["output_type"] == "stream":
            texts += output["text"]
        else:
            texts += output["data"].get("text/plain", [])
    return "".join(texts)


def run(folder: Path, **settings: str) -> str:
    """Run all cells in a new process, in a folder of its own, and return what they print."""
    script = folder / "notebook.py"
    script.write_text(code() + CHECKS, encoding="utf-8")
    path = os.pathsep.join([str(DIGITS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": path} | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_claims(text: str) -> None:
    """Check what the notebook says about its outputs."""
    accuracies = {
        error: (float(seen), float(blind)) for error, _, seen, blind in ERROR.findall(text)
    }
    misread, random_digit, carry, off_by_one = accuracies.values()
    assert misread[0] > 0.9
    assert random_digit[0] > 0.9
    assert carry[0] > 0.9
    assert off_by_one[0] > 0.65
    # Perception needs the image, a sum does not.
    assert misread[1] < 0.75
    assert random_digit[1] < 0.65
    assert carry[1] > 0.9

    found = CANDIDATE.findall(text)
    terms = {name: (float(perception), float(reasoning)) for perception, reasoning, name in found}
    right = terms["right"]
    assert terms["8 read as 3"][0] < right[0]
    assert terms["8 read as 3"][1] == right[1]
    assert terms["sum 10 too low"][0] == right[0]
    assert terms["sum 10 too low"][1] < right[1]

    perception = [int(share) for share in POLICY.findall(text)]
    assert perception[-1] > perception[0] + 10


def test_stored_outputs():
    assert NOTEBOOK.stat().st_size < 400_000
    assert all(cell["execution_count"] for cell in code_cells())
    assert not [output for output in stored_outputs() if output["output_type"] == "error"]
    assert not [output for output in stored_outputs() if output.get("name") == "stderr"]
    pictures = [output for output in stored_outputs() if "image/png" in output.get("data", {})]
    assert len(pictures) == code().count("plt.subplots")
    check_claims(stored_text())


def test_there_is_no_absolute_path():
    assert not ABSOLUTE_PATH.findall(stored_text())
    assert not ABSOLUTE_PATH.findall(code())


def test_only_public_names_are_imported():
    modules = [
        node.module for node in ast.walk(ast.parse(code())) if isinstance(node, ast.ImportFrom)
    ]
    ours = {module for module in modules if module.startswith("verl_prism")}
    assert ours == {"verl_prism.discriminator", "verl_prism.response"}


def test_a_run_with_fewer_steps(tmp_path):
    text = run(tmp_path, QUICK="1")
    assert len(ERROR.findall(text)) == 4
    assert len(CANDIDATE.findall(text)) == 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_full_run(tmp_path):
    check_claims(run(tmp_path))
