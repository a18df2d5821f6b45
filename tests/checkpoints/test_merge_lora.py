"""A policy trained with adapters is exported as a plain one."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from verl_prism.checkpoints.merge_lora import INDEX, merge_adapters


@pytest.mark.parametrize("adapters_first", [False, True])
def test_merged_weights_compute_what_weights_and_adapters_did(
    dense_folder, tmp_path, adapters_first
):
    """Adapters may be in another file than their weights, as in a large model."""
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        exclude_modules=".*visual.*",
        init_lora_weights=False,
    )
    model = get_peft_model(AutoModelForImageTextToText.from_pretrained(dense_folder), settings)
    files = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for name, tensor in model.state_dict().items():
        first = ("lora_B" in name) == adapters_first
        if not name.endswith("lm_head.weight"):
            files["model-1.safetensors" if first else "model-2.safetensors"][name] = tensor
    source = tmp_path / "huggingface"
    source.mkdir()
    for name, tensors in files.items():
        save_file(tensors, source / name)
    (source / INDEX).write_text(json.dumps({"weight_map": {}}))
    target = tmp_path / "policy"
    shutil.copytree(dense_folder, target, ignore=shutil.ignore_patterns("*.safetensors"))

    merge_adapters(source, target, scale=2.0)

    plain, info = AutoModelForImageTextToText.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    base = AutoModelForImageTextToText.from_pretrained(dense_folder)
    merged = logits(plain)
    torch.testing.assert_close(merged, logits(model))
    assert not torch.allclose(merged, logits(base))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(10, 20)[None]).logits
