"""A policy that was trained with adapters goes to the next stage as a plain one."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from verl_prism.checkpoints.merge_lora import INDEX, merge_adapters


@pytest.mark.parametrize("adapters_first", [False, True])
def test_merged_weights_compute_what_weights_and_adapters_did(
    dense_folder, tmp_path, adapters_first
):
    """In two files, as a large model's are, an adapter not in that of its weight."""
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        exclude_modules=".*visual.*",
        init_lora_weights=False,
    )
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(dense_folder), settings)
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("lm_head.weight")
    }
    halves = [
        [name for name in tensors if ("lora_B" in name) == second]
        for second in (adapters_first, not adapters_first)
    ]
    folder = shutil.copytree(dense_folder, tmp_path / "policy")
    (folder / "model.safetensors").unlink()
    checkpoint = tmp_path / "checkpoint.safetensors"
    save_file({name: tensors[name] for name in halves[0]}, checkpoint)
    os.link(checkpoint, folder / "model-1.safetensors")
    save_file({name: tensors[name] for name in halves[1]}, folder / "model-2.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {}}))

    merge_adapters(folder, scale=2.0)

    plain, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens = torch.arange(10, 20)[None]
    with torch.no_grad():
        expected, got, base = (
            each(input_ids=tokens).logits
            for each in (
                model.eval(),
                plain.eval(),
                AutoModelForImageTextToText.from_pretrained(dense_folder).eval(),
            )
        )
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, base)
    assert load_file(checkpoint).keys() == set(halves[0]), "the checkpoint is as it was"
