"""The tables of a report."""

import json

from verl_prism.doctor.__main__ import main as doctor
from verl_prism.gpu_check.table import markdown

CHECKS = [
    {"name": "bf16 flex: output", "value": 0.004, "limit": 0.02, "pass": True},
    {"name": "fp32 flex: output", "value": 9e-5, "limit": 1e-4, "pass": True},
    {"name": "Triton works", "value": True, "expected": True, "pass": True},
]
SIZE = {
    "students": 16,
    "tokens": 17800,
    "micro_batch_tokens": 65536,
    "median_seconds": 1.234,
    "model_tflops": 401.5,
    "mfu": 0.406,
    "peak_gib": 51.26,
    "model_gib": 20.0,
}
ENVIRONMENT = {
    "python": "3.12.3",
    "packages": {"torch": "2.11.0+cu130", "transformers": "5.17.0"},
    "devices": [{"name": "NVIDIA H100 80GB HBM3"}],
    "nvidia_smi": ["NVIDIA H100 80GB HBM3, 580.159.04"],
    "matmul_tflops": 790.1,
}


def result(name: str, status: str = "pass", **fields) -> dict:
    empty = {"reason": "", "error": [], "checks": [], "values": {}}
    return {"name": name, "status": status, "seconds": 1.5} | empty | fields


def report(*steps: dict) -> dict:
    started = {"started": "2026-11-26T18:00:00Z", "seconds": 301.0}
    return {**started, "device": "cuda", "quick": False, "complete": True, "steps": list(steps)}


def test_tables():
    text = markdown(
        report(
            result("environment", values=ENVIRONMENT),
            result("attention", checks=CHECKS),
            result("size-800-300-700", values=SIZE),
            result("reference", values={"gain": 5.9}),
            result("experts", "fail", reason="failed: dtypes", error=["x", "a | b"]),
            result("two-ranks", "skip", reason="needs two visible GPUs, but there is 1"),
        )
    )
    assert text.splitlines() == [
        "NVIDIA H100 80GB HBM3 (nvidia-smi: NVIDIA H100 80GB HBM3, 580.159.04); Python 3.12.3, "
        "torch 2.11.0+cu130, transformers 5.17.0; full sizes; 2026-11-26T18:00:00Z, 301 s.",
        "",
        "| step | result | seconds | found |",
        "|---|---|---:|---|",
        "| environment | pass | 1.5 | 790.1 TFLOP/s in a bf16 matrix product |",
        "| attention | pass | 1.5 | fp32 flex: output: 9.0e-05, limit 1e-04 |",
        "| size-800-300-700 | pass | 1.5 |  |",
        "| reference | pass | 1.5 | ours is 5.9 times as fast as the published algorithm |",
        "| experts | fail | 1.5 | failed: dtypes; a \\| b |",
        "| two-ranks | skip | 1.5 | needs two visible GPUs, but there is 1 |",
        "",
        "| prompt / caption / reasoning | responses | tokens | tokens per pack | seconds "
        "| model TFLOP/s | MFU | peak GiB | weights GiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| 800 / 300 / 700 | 16 | 17,800 | 65,536 | 1.23 | 401.50 | 41% | 51.26 | 20.00 |",
    ]


def test_a_report_that_was_cut_off():
    cut = report({"name": "environment", "status": "running"}) | {"complete": False}
    text = markdown(cut)
    assert "301 s, not complete." in text
    assert "| environment | running |  |  |" in text


def test_the_doctor_prints_a_report(tmp_path, capsys):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report(result("attention", checks=CHECKS))))
    assert doctor(["--gpu-check", "--table", str(file)]) == 0
    assert "| attention | pass | 1.5 |" in capsys.readouterr().out


def test_a_file_that_is_no_report(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert doctor(["--gpu-check", "--table", str(file)]) == 2
    assert "No such file" in capsys.readouterr().err
    file.write_text("{")
    assert doctor(["--gpu-check", "--table", str(file)]) == 2
    assert f"{file} is not a report" in capsys.readouterr().err
