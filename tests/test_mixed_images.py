"""Every stage with rows without images, with one and with two, as a user runs it."""

import pytest
from mixed_images import write_mixed_images

SMALL = {
    "sft": ("prism.steps=2", "prism.sft.examples_per_step=8"),
    "warmup": ("prism.steps=2", "prism.warmup.prompts=24", "prism.warmup.samples_per_prompt=2"),
    "align": ("prism.steps=1", "prism.rollout.prompts_per_step=8"),
    "rlvr": ("prism.steps=1", "prism.rollout.prompts_per_step=8"),
    "eval": ("prism.eval.samples=1", "prism.eval.max_questions=8"),
}


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("stage", SMALL)
def test_rows_with_any_number_of_images(stage, pipeline, digits_folder, tmp_path):
    files = {}
    for name in ("sft", "train", "heldout"):
        source = digits_folder / "data" / f"{name}.parquet"
        files[name] = write_mixed_images(source, tmp_path / f"{name}.parquet", 32)
    train = files["sft"] if stage == "sft" else files["train"]
    metrics = pipeline.run(
        stage,
        *SMALL[stage],
        f"prism.data.train=[{train}]",
        f"prism.data.heldout={files['heldout']}",
        "prism.rollout.samples_per_prompt=2",
        "prism.image.max_pixels=1024",
        *(() if stage == "sft" else (f"prism.policy={pipeline.root}/sft/policy",)),
        output=tmp_path / "run",
    )
    assert metrics
