"""The benchmarks: where they are published, and the functions that read and measure them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import hallusion
import mathverse
import mathvision
import mathvista
import mmmu
import mmmu_pro
import wemath
from columns import Columns
from measures import MeasureAll
from question import Question, Row


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    hub: id of the data set on the Hugging Face Hub.
    files: glob patterns of its parquet files in that repository, with `{split}`.
    rows: number of published rows of the split.
    forms: the columns of a file, in each of the forms in which files are published.
    """

    hub: str
    split: str
    files: tuple[str, ...]
    rows: int
    forms: tuple[Columns, ...]
    facts: Mapping[str, str]
    read: Callable[[Row], Question]
    measure: MeasureAll

    def patterns(self, split: str) -> list[str]:
        """Return the glob patterns of the files of a split."""
        return [pattern.format(split=split) for pattern in self.files]

    def download_command(self, hub: str, split: str, folder: str) -> str:
        """Return the command that downloads a split to `folder`."""
        included = " ".join(f'--include "{pattern}"' for pattern in self.patterns(split))
        return f"hf download --repo-type dataset {hub} {included} --local-dir {folder}"


BENCHMARKS: dict[str, Benchmark] = {
    "mathvista": Benchmark(
        hub="AI4Math/MathVista",
        split="testmini",
        files=("data/{split}-*.parquet",),
        rows=1000,
        forms=(mathvista.COLUMNS,),
        facts=mathvista.FACTS,
        read=mathvista.read,
        measure=mathvista.measure,
    ),
    "mathverse": Benchmark(
        hub="CaraJ/MathVerse-lmmseval",
        split="testmini",
        files=("{split}.parquet",),
        rows=3940,
        forms=(mathverse.COLUMNS,),
        facts=mathverse.FACTS,
        read=mathverse.read,
        measure=mathverse.measure,
    ),
    "mathvision": Benchmark(
        hub="MathLLMs/MathVision",
        split="testmini",
        files=("data/{split}-*.parquet",),
        rows=304,
        forms=(mathvision.COLUMNS,),
        facts=mathvision.FACTS,
        read=mathvision.read,
        measure=mathvision.measure,
    ),
    "wemath": Benchmark(
        hub="We-Math/We-Math",
        split="testmini",
        files=("data/{split}-*.parquet",),
        rows=1740,
        forms=(wemath.COLUMNS,),
        facts=wemath.FACTS,
        read=wemath.read,
        measure=wemath.measure,
    ),
    "mmmu": Benchmark(
        hub="lmms-lab/MMMU",
        split="validation",
        files=("data/{split}-*.parquet",),
        rows=900,
        forms=(mmmu.COLUMNS,),
        facts=mmmu.FACTS,
        read=mmmu.read,
        measure=mmmu.measure,
    ),
    "mmmu_pro": Benchmark(
        hub="MMMU/MMMU_Pro",
        split="test",
        files=("standard (10 options)/{split}-*.parquet", "vision/{split}-*.parquet"),
        rows=3460,
        forms=(mmmu_pro.STANDARD, mmmu_pro.VISION),
        facts=mmmu_pro.FACTS,
        read=mmmu_pro.read,
        measure=mmmu_pro.measure,
    ),
    "hallusion_bench": Benchmark(
        hub="lmms-lab/HallusionBench",
        split="image",
        files=("data/{split}-*.parquet",),
        rows=951,
        forms=(hallusion.COLUMNS,),
        facts=hallusion.FACTS,
        read=hallusion.read,
        measure=hallusion.measure,
    ),
}
