"""Size of the report of a run with many samples, and how long a browser takes to show it.

    python benchmarks/report.py [--samples 5000] [--steps 938] [--folder DIR]

The samples are texts of 380 random words, two for each question, and each question has a picture of
640 x 480 pixels. Needs Chromium for the time in the browser.
"""

import argparse
import io
import json
import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.data.schema import EXAMPLE, schema
from verl_prism.report.page import write_report
from verl_prism.report.step_samples import add_samples
from verl_prism.run_folder import RunFolder

COLUMNS = ("prompt", "images", "data_source", "reward_model", "teacher_response")
WORDS = (
    "the",
    "left",
    "right",
    "digit",
    "sum",
    "angle",
    "area",
    "is",
    "so",
    "because",
    "we",
    "see",
)
METRICS = 120
PROBE = """<script type="module">
while (!document.querySelector("#settings table")) await new Promise((go) => setTimeout(go, 5));
console.log("shown after " + performance.now());
</script></body>"""


def picture(numbers: np.random.Generator) -> bytes:
    """Return a JPEG that looks like a blurred photo."""
    small = numbers.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def write_questions(file: Path, count: int) -> None:
    """Write questions that differ in their picture."""
    numbers = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        row = {name: EXAMPLE[name] for name in COLUMNS}
        rows.append(row | {"images": [{"bytes": picture(numbers)}]})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(COLUMNS)), file)


def make_run(folder: Path, samples: int, steps: int) -> RunFolder:
    """Write a run of stage align with this many samples and steps."""
    write_questions(folder / "train.parquet", (samples + 1) // 2)
    run = RunFolder(folder / "align")
    run.path.mkdir()
    data = f"prism.data.train={folder}/train.parquet"
    places = (f"prism.root={folder}", f"prism.output={run.path}")
    _, prism = compose_run(["stage=align", *places, data])
    run.config.write_text(yaml.safe_dump({"prism": prism.model_dump(mode="json")}))
    chooser = random.Random(0)

    def text(words: int) -> str:
        return " ".join(chooser.choices(WORDS, k=words))

    add_samples(
        run,
        [
            {
                "step": number * steps // samples,
                "row": number // 2,
                "response": f"<caption>{text(80)}</caption><think>{text(300)}</think>"
                f"<answer>{number}</answer>",
                "advantage": chooser.gauss(0, 1),
                "perception": chooser.gauss(0, 1),
                "reasoning": chooser.gauss(0, 1),
            }
            for number in range(samples)
        ],
    )
    with run.metrics.open("w") as lines:
        for step in range(1, steps + 1):
            data = {f"metric/{number}": chooser.random() for number in range(METRICS)}
            lines.write(json.dumps({"step": step, "data": data}) + "\n")
    return run


def seconds_in_browser(page: Path) -> float | None:
    """Return the time until a browser shows the page; None without Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return None
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", PROBE))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command = [browser, *options, "--timeout=30000", "--dump-dom", probed.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    found = re.search(r"shown after ([\d.]+)", said)
    return float(found[1]) / 1000 if found else None


def main() -> None:
    """Make the run, write its report, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=938)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="report-"))
    folder.mkdir(parents=True, exist_ok=True)
    run = make_run(folder, arguments.samples, arguments.steps)
    started = time.perf_counter()
    write_report([run.path], run.report)
    print(f"written in {time.perf_counter() - started:.1f} s")
    print(f"{run.report}: {run.report.stat().st_size / 1e6:.1f} MB")
    seconds = seconds_in_browser(run.report)
    print("no Chromium" if seconds is None else f"shown in the browser after {seconds:.1f} s")


if __name__ == "__main__":
    main()
