"""Upcycling a tiny real Qwen3-VL: computation, contents, memory and rejected inputs."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, Qwen3VLForConditionalGeneration

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.__main__ import main
from verl_prism.discriminator.batch import Group, GroupEncoder
from verl_prism.discriminator.shards import PROCESSOR_FILES
from verl_prism.discriminator.spans import tokenize_spans
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.errors import UserError
from verl_prism.response import View, parse_response

RESPONSE = parse_response("<caption> a 3 </caption><think> 3 </think><answer> 3 </answer>")
UP_PROJ = "model.language_model.layers.1.mlp.up_proj.weight"
EXPERTS = "model.language_model.layers.1.mlp.experts"


def load_folder(folder):
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def with_weights(dense_folder, folder, change):
    """A copy of the dense model whose weights `change` has altered in place."""
    shutil.copytree(dense_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def sharded_folder(dense_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    Qwen3VLForConditionalGeneration.from_pretrained(dense_folder).save_pretrained(
        folder, max_shard_size="600KB"
    )
    AutoProcessor.from_pretrained(dense_folder).save_pretrained(folder)
    return folder


def dense_states(dense, prompt, span):
    """hidden[P + span, h] of a prompt with its image and a span."""
    ids = torch.cat([prompt.input_ids, torch.tensor(span)])[None]
    return dense.model(
        input_ids=ids,
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        mm_token_type_ids=(ids == dense.config.image_token_id).long(),
    ).last_hidden_state[0]


def packed_states(discriminator, pack):
    """hidden[S, h] at the terminal tokens of the pack's spans."""
    kept = []
    discriminator.model.language_model.norm.register_forward_hook(
        lambda module, inputs, output: kept.append(output[0])
    )
    discriminator(pack)
    return kept[0]


@pytest.mark.parametrize("routing", ["dedicated", "token", "dense"])
@torch.no_grad()
def test_upcycled_without_noise_computes_what_the_dense_model_computes(
    dense_folder, tmp_path, prompt, tokenizer, routing
):
    upcycle(dense_folder, tmp_path / "target", routing=routing)
    discriminator = load_discriminator(tmp_path / "target")
    encoder = GroupEncoder(discriminator.config)
    spans = tokenize_spans(RESPONSE, tokenizer)
    pack, _ = encoder.pack([encoder.encode(Group(prompt, spans, []))])
    dense = Qwen3VLForConditionalGeneration.from_pretrained(dense_folder)
    caption = dense_states(dense, prompt, spans[View.PERCEPTION])
    reasoning = dense_states(dense, prompt, spans[View.REASONING])
    expected = torch.cat([caption, reasoning[len(prompt.input_ids) :]])
    assert prompt.pixel_values is not None
    torch.testing.assert_close(
        packed_states(discriminator, pack), expected[pack.terminals], rtol=0, atol=1e-5
    )


def test_noise_is_seeded_and_relative_to_each_weight(dense_folder, tmp_path):
    dense = with_weights(
        dense_folder, tmp_path / "dense", lambda tensors: tensors[UP_PROJ].mul_(10)
    )
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        upcycle(dense, tmp_path / name, noise=0.01, seed=seed)
    a, b, c = (load_folder(tmp_path / name) for name in "abc")
    gate_up, down = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"
    for name in (gate_up, down):
        assert torch.equal(a[name], b[name])
        assert not torch.equal(a[name], c[name])
    source = load_folder(dense)
    for part, weight in zip(
        (*a[gate_up].chunk(2, dim=1), a[down]),
        (
            source[UP_PROJ.replace("up", "gate")],
            source[UP_PROJ],
            source[UP_PROJ.replace("up", "down")],
        ),
        strict=True,
    ):
        spreads = [(expert - weight).std().item() for expert in part]
        assert spreads == pytest.approx([0.01 * weight.std().item()] * 4, rel=0.03)


def test_sharding_changes_no_number(dense_folder, sharded_folder, tmp_path):
    upcycle(dense_folder, tmp_path / "whole", noise=0.01, seed=3)
    upcycle(sharded_folder, tmp_path / "sharded", noise=0.01, seed=3, max_shard_size="500KB")
    assert len(list(tmp_path.glob("sharded/*.safetensors"))) > 3
    whole, sharded = (
        load_discriminator(tmp_path / name).state_dict() for name in ("whole", "sharded")
    )
    torch.testing.assert_close(sharded, whole, rtol=0, atol=0)


def test_routers_and_heads_have_the_initial_standard_deviation(discriminator_folder):
    config = AutoConfig.from_pretrained(discriminator_folder)
    tensors = load_folder(discriminator_folder)
    new = [
        name for name in tensors if name.endswith("mlp.gate.weight") or name.startswith("heads.")
    ]
    assert len(new) == config.text_config.num_hidden_layers + len(View)
    values = torch.cat([tensors[name].flatten() for name in new])
    assert values.mean().item() == pytest.approx(0, abs=0.01)
    assert values.std().item() == pytest.approx(config.text_config.initializer_range, rel=0.1)
    assert len(values.unique()) > 0.99 * len(values)


def test_stored_dtype_is_kept(dense_folder, tmp_path):
    def halve(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    upcycle(with_weights(dense_folder, tmp_path / "dense", halve), tmp_path / "target", noise=0.01)
    assert {tensor.dtype for tensor in load_folder(tmp_path / "target").values()} == {
        torch.bfloat16
    }
    assert AutoConfig.from_pretrained(tmp_path / "target").dtype == torch.bfloat16


def test_lm_head_is_dropped(dense_folder, tmp_path):
    def untie(tensors):
        tensors["lm_head.weight"] = torch.zeros(512, 128)

    upcycle(with_weights(dense_folder, tmp_path / "dense", untie), tmp_path / "target")
    load_discriminator(tmp_path / "target")


def test_processor_is_copied(dense_folder, discriminator_folder):
    before, after = (
        AutoProcessor.from_pretrained(folder) for folder in (dense_folder, discriminator_folder)
    )
    assert after.to_dict() == before.to_dict()
    assert after.chat_template == before.chat_template
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_progress_counts_every_byte(dense_folder, tmp_path):
    steps = []
    upcycle(
        dense_folder,
        tmp_path / "target",
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert {total for _, total in steps} == {
        sum(tensor.nbytes for tensor in load_folder(tmp_path / "target").values())
    }
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]


MEASURE = """
import sys
from pathlib import Path
from verl_prism.discriminator.upcycling import upcycle

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

small, dense, target = sys.argv[1:]
upcycle(small, target)  # libraries load what they load at first use
for size in ("10MB", "1GB"):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    upcycle(dense, target, noise=0.01, max_shard_size=size)
    print(memory("VmHWM") - before)
"""


def test_memory_is_bounded_by_the_shard_size(dense_folder, tmp_path):
    config = AutoConfig.from_pretrained(dense_folder)
    config.text_config.intermediate_size, config.text_config.num_hidden_layers = 3072, 8
    dense = tmp_path / "dense"
    Qwen3VLForConditionalGeneration(config).save_pretrained(dense, max_shard_size="5MB")
    for file in PROCESSOR_FILES:
        if (dense_folder / file).exists():
            shutil.copy(dense_folder / file, dense)
    target = tmp_path / "target"
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, dense_folder, dense, target],
        capture_output=True,
        text=True,
        check=True,
    )
    sharded, whole = map(int, run.stdout.split())
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    assert len(list(dense.glob("*.safetensors"))) >= 8
    assert size > 150e6
    assert whole > 0.75 * size  # what the measure shows when everything is in memory
    assert sharded < 0.4 * size


def drop(name):
    return lambda tensors: tensors.pop(name)


def add(name):
    return lambda tensors: tensors.update({name: torch.zeros(1)})


def reshape(name):
    return lambda tensors: tensors.update({name: tensors[name][1:].contiguous()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(UP_PROJ), r"missing: language_model\.layers\.1\.mlp\.up_proj\.weight\)"),
        (add("model.visual.extra.weight"), r"unexpected: visual\.extra\.weight\)"),
        (add("score.weight"), r"unexpected: score\.weight\)"),
        (
            reshape(UP_PROJ),
            r"another shape: language_model\.layers\.1\.mlp\.up_proj\.weight \[383, 128\], not",
        ),
        (
            add("ema.model.visual.pos_embed.weight"),
            r"more than one model: .*ema\.model\.visual\.pos_embed\.weight",
        ),
    ],
)
def test_incomplete_dense_model_is_rejected_with_the_name_of_the_tensor(
    dense_folder, tmp_path, change, message
):
    dense = with_weights(dense_folder, tmp_path / "dense", change)
    with pytest.raises(UserError, match=message):
        upcycle(dense, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_other_models_are_rejected(discriminator_folder, tmp_path):
    with pytest.raises(UserError, match="is a prism_discriminator, but a qwen3_vl is needed"):
        upcycle(discriminator_folder, tmp_path / "target")
    with pytest.raises(
        UserError, match=r"is not a Hugging Face model: its config\.json cannot be read"
    ):
        upcycle(tmp_path / "nothing", tmp_path / "target")


def test_missing_weights_are_named(dense_folder, sharded_folder, tmp_path):
    bare, holed, torn = (tmp_path / name for name in ("bare", "holed", "torn"))
    shutil.copytree(dense_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match=r"bare has no safetensors"):
        upcycle(bare, tmp_path / "target")
    shutil.copytree(sharded_folder, holed, ignore=shutil.ignore_patterns("model-00002-*"))
    with pytest.raises(
        UserError,
        match=r"holed lacks model-00002-of-\d+\.safetensors, listed in model\.safetensors\.in",
    ):
        upcycle(holed, tmp_path / "target")
    shutil.copytree(dense_folder, torn)
    (torn / "model.safetensors").write_bytes(
        (dense_folder / "model.safetensors").read_bytes()[:-100]
    )
    with pytest.raises(UserError, match=r"torn/model\.safetensors cannot be read"):
        upcycle(torn, tmp_path / "target")


def test_index_that_disagrees_with_its_shards_is_rejected(sharded_folder, tmp_path):
    shutil.copytree(sharded_folder, tmp_path / "dense")
    index = tmp_path / "dense" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost"] = content["weight_map"][UP_PROJ]
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"disagree on model\.ghost"):
        upcycle(tmp_path / "dense", tmp_path / "target")


def test_folder_without_processor_is_rejected(dense_folder, tmp_path):
    shutil.copytree(
        dense_folder, tmp_path / "dense", ignore=shutil.ignore_patterns("*processor_config.json")
    )
    with pytest.raises(UserError, match="no tokenizer or no image processor"):
        upcycle(tmp_path / "dense", tmp_path / "target")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 3}, "dedicated routing"),
        ({"experts": 4, "experts_per_token": 3}, "dedicated routing"),
        (
            {"routing": "token", "experts": 2, "experts_per_token": 3},
            "experts_per_token=3 must be in 1 to experts=2",
        ),
        ({"routing": "random"}, "routing=random"),
        ({"routing": "dense", "noise": 0.1}, "routing=dense has none"),
        ({"noise": -0.1}, "noise=-0.1"),
    ],
)
def test_invalid_settings_are_rejected(dense_folder, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        upcycle(dense_folder, tmp_path / "target", **settings)
    assert not list(tmp_path.iterdir())


def test_interrupted_run_does_not_change_the_target(dense_folder, tmp_path):
    target = tmp_path / "target"
    upcycle(dense_folder, target, seed=1)
    before = load_folder(target)

    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcycle(dense_folder, target, seed=2, max_shard_size="500KB", on_progress=interrupt)
    torch.testing.assert_close(load_folder(target), before, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_only_a_discriminator_is_replaced(dense_folder, tmp_path):
    target, notes = tmp_path / "target", tmp_path / "notes"
    upcycle(dense_folder, target, max_shard_size="500KB")
    upcycle(dense_folder, target)
    assert [file.name for file in target.glob("*.safetensors*")] == ["model.safetensors"]
    notes.mkdir()
    (notes / "diary.txt").write_text("dear diary")
    for precious in (notes, dense_folder):
        with pytest.raises(
            UserError, match="exists and is not a discriminator, so it is not replaced"
        ):
            upcycle(dense_folder, precious)
    assert (notes / "diary.txt").exists()
    assert (dense_folder / "model.safetensors").exists()


def test_command_makes_what_the_function_makes(dense_folder, tmp_path, capsys):
    target = tmp_path / "target"
    options = ["--routing", "token", "--seed", "5"]
    assert main(["upcycle", str(dense_folder), str(target), *options]) == 0
    expected = rf"{re.escape(str(target))}: discriminator of \d\.\d+MB in 1 file\n"
    assert re.fullmatch(expected, capsys.readouterr().out)
    upcycle(dense_folder, tmp_path / "same", routing="token", seed=5)
    torch.testing.assert_close(load_folder(target), load_folder(tmp_path / "same"), rtol=0, atol=0)


def test_command_prints_errors_in_one_line(tmp_path, capsys):
    assert main(["upcycle", str(tmp_path / "nothing"), str(tmp_path / "target")]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert error.startswith(
        f"verl_prism.discriminator: {tmp_path / 'nothing'} is not a Hugging Face model"
    )


def test_command_rejects_unknown_choices(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["upcycle", "a", "b", "--routing", "random"])
    assert "invalid choice: 'random'" in capsys.readouterr().err
