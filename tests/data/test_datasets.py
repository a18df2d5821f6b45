"""verl's datasets with our rows: equal to verl's own, and rows without images."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mixed_images import IMAGES, write_mixed_images
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from verl.utils import hf_processor, hf_tokenizer
from verl.utils.dataset.dataset_utils import SFTTensorCollator
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.model import extract_multi_modal_inputs

from verl_prism.compose import compose_run
from verl_prism.data.checks.inputs import InputReport, SplitReport, write_skipped_rows
from verl_prism.data.datasets import PrismRLDataset, PrismSFTDataset
from verl_prism.data.pair_dataset import PrismPairDataset
from verl_prism.errors import UserError

IMAGE_TOKENS = 8


@pytest.fixture(scope="module")
def model(dense_folder):
    return hf_tokenizer(str(dense_folder)), hf_processor(str(dense_folder))


def compose(stage: str, folder, cache, *overrides: str):
    folders = (f"prism.root={folder}", f"prism.data.cache={cache}", f"prism.output={cache}/run")
    return compose_run([f"stage={stage}", *folders, *overrides])[0]


def test_demonstrations_equal_those_of_verls_dataset(digits_folder, tmp_path, model):
    config = compose("sft", digits_folder, tmp_path)
    tokenizer, processor = model
    ours = PrismSFTDataset(config.data.train_files, tokenizer, config.data, processor)
    plain = OmegaConf.create(OmegaConf.to_container(config.data, resolve=True))
    verls = MultiTurnSFTDataset(plain.train_files, tokenizer, plain, processor)
    assert len(ours) == len(verls)
    for index in (0, 5000, len(ours) - 1):
        mine, theirs = ours[index], verls[index]
        assert mine.keys() == theirs.keys()
        inputs = (mine.pop("multi_modal_inputs"), theirs.pop("multi_modal_inputs"))
        for found, expected in ((mine, theirs), inputs):
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_demonstrations_with_any_number_of_images(digits_folder, tmp_path, model, dense_folder):
    """In one batch, whose first row has no image."""
    file = write_mixed_images(digits_folder / "data" / "sft.parquet", tmp_path / "mixed.parquet", 8)
    config = compose("sft", digits_folder, tmp_path, f"prism.data.train={file}")
    dataset = PrismSFTDataset(config.data.train_files, model[0], config.data, model[1])
    loader = DataLoader(dataset, batch_size=4, collate_fn=SFTTensorCollator("no_padding"))
    for batch in loader:
        inputs = extract_multi_modal_inputs(batch["multi_modal_inputs"])
        assert len(inputs["image_grid_thw"]) == sum(IMAGES)
        pads = model[0].convert_tokens_to_ids("<|image_pad|>")
        assert [int((ids == pads).sum()) for ids in batch["input_ids"]] == [
            IMAGE_TOKENS * images for images in IMAGES
        ]


def test_a_demonstration_that_is_too_long_is_named(digits_folder, tmp_path, model):
    config = compose("sft", digits_folder, tmp_path, "prism.hardware.max_tokens_per_device=8")
    dataset = PrismSFTDataset(config.data.train_files, model[0], config.data, model[1])
    with pytest.raises(ValueError, match="max_length=8") as refused:
        dataset[3]
    assert refused.value.__notes__ == [f"in {digits_folder}/data/sft.parquet, row 3"]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_questions_with_any_number_of_images(split, digits_folder, tmp_path, model):
    source = digits_folder / "data" / f"{split}.parquet"
    file = write_mixed_images(source, tmp_path / "mixed.parquet", 8)
    limits = "prism.image.max_pixels=1024"
    config = compose("rlvr", digits_folder, tmp_path, f"prism.data.{split}=[{file}]", limits)
    files = config.data.train_files if split == "train" else config.data.val_files
    dataset = PrismRLDataset(files, model[0], config.data, model[1])
    assert len(dataset) == 8
    for index, row in enumerate(dataset):
        content = row["raw_prompt"][-1]["content"]
        parts = [part for part in content if isinstance(part, dict) and part["type"] == "image"]
        assert [part["max_pixels"] for part in parts] == [1024] * IMAGES[index % 4]
        assert "images" not in row


def test_the_same_file_for_training_and_evaluation(digits_folder, tmp_path, model):
    """Each split has its own rows that are left out: here a teacher's response is too long."""
    file = digits_folder / "data" / "train.parquet"
    folders = (f"prism.root={digits_folder}", f"prism.output={tmp_path}/run")
    files = (f"prism.data.heldout={file}", f"prism.data.cache={tmp_path}")
    config, prism = compose_run(["stage=align", *folders, *files])
    rows = pq.read_metadata(file).num_rows
    splits = {"heldout": SplitReport(rows, 50, (), {}, 0)}
    splits["train"] = SplitReport(rows - 1, 50, (1,), {}, 0)
    write_skipped_rows(prism, InputReport(splits))
    dataset = PrismRLDataset(config.data.train_files, model[0], config.data, model[1])
    assert len(dataset) == rows - 1
    assert dataset.dataframe.rows.number(1) == 2


def pair_dataset(digits_folder, tmp_path, model, student: str) -> PrismPairDataset:
    """Return the pair of the first question's teacher and a response of the policy."""
    row = pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 1).to_pylist()[0]
    file = tmp_path / "samples.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"student_responses": [student]}]), file)
    one = "prism.dpo.responses_per_prompt=1"
    config = compose("dpo", digits_folder, tmp_path, f"prism.data.train={file}", one)
    return PrismPairDataset(config.data.train_files, model[0], config.data, model[1])


WHOLE = "<caption> A 0. </caption><think> 0 + 0 = 0 </think><answer> 0 </answer>"


@pytest.mark.parametrize(
    ("student", "end"),
    [
        (WHOLE, "<|im_end|>\n"),
        (f"{WHOLE}\n", "<|im_end|>\n"),
        (WHOLE.partition("</answer>")[0], ""),
        (WHOLE.partition("<answer>")[0], ""),
        (f"{WHOLE} and so on", ""),
        ("", ""),
    ],
)
def test_the_end_of_a_response_that_was_cut_is_not_learned(
    student, end, digits_folder, tmp_path, model
):
    (pair,) = pair_dataset(digits_folder, tmp_path, model, student)
    teacher, policy = (
        model[0].decode(example["input_ids"][example["loss_mask"].bool()]) for example in pair
    )
    assert teacher.endswith("</answer><|im_end|>\n")
    assert policy == student + end
    assert model[0].decode(pair[1]["input_ids"]).endswith("<|im_end|>\n")


def test_verls_own_limit_on_rows_is_refused(digits_folder, tmp_path, model):
    config = compose("rlvr", digits_folder, tmp_path)
    with pytest.raises(UserError, match=r"train_max_samples"):
        PrismRLDataset(config.data.train_files, model[0], config.data, model[1], max_samples=5)
