"""Parameters and memory from config.json alone, against models that are built."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from verl_prism.compose import compose_run
from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification
from verl_prism.doctor.memory import (
    GIB,
    activations,
    cached_sequences,
    host_memory,
    moments,
    state,
    trained,
)
from verl_prism.doctor.sizes import read_config, sizes_of, stored_parameters, upcycled

VISION = {
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_heads": 16,
    "in_channels": 3,
    "num_position_embeddings": 2304,
}
SMALL_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
LARGE_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def qwen3_vl(
    hidden: int, mlp: int, layers: int, heads: int, tied: bool, vision: dict
) -> Qwen3VLConfig:
    text = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "head_dim": 128,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=VISION | vision | {"out_hidden_size": hidden},
        tie_word_embeddings=tied,
    )


QWEN = {
    "2b": qwen3_vl(2048, 6144, 28, 16, True, SMALL_VISION),
    "4b": qwen3_vl(2560, 9728, 36, 32, True, SMALL_VISION),
    "8b": qwen3_vl(4096, 12288, 36, 32, False, LARGE_VISION),
}


def sizes(name: str):
    return sizes_of(QWEN[name].to_dict())


@pytest.mark.parametrize(("name", "billions"), [("2b", 2.13), ("4b", 4.44), ("8b", 8.77)])
def test_a_dense_models_parameters_are_counted_exactly(name, billions):
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(QWEN[name])
    tensors = [parameter.numel() for parameter in model.parameters()]
    assert (sizes(name).total, sizes(name).largest) == (sum(tensors), max(tensors))
    assert sizes(name).total / 1e9 == pytest.approx(billions, rel=0.01)
    assert sizes(name).vision == sum(
        parameter.numel() for parameter in model.model.visual.parameters()
    )


@pytest.mark.parametrize("routing", ["dedicated", "token", "dense"])
def test_a_discriminators_parameters_are_those_after_upcycling(routing, discriminator_folder):
    upcycle = compose_run(["stage=warmup", f"prism.discriminator.upcycle.routing={routing}"])[
        1
    ].discriminator.upcycle
    expected = sizes_of(upcycled(QWEN["2b"].to_dict(), upcycle))
    config = AutoConfig.from_pretrained(discriminator_folder)
    for key, value in QWEN["2b"].vision_config.to_dict().items():
        setattr(config.vision_config, key, value)
    for key, value in QWEN["2b"].text_config.to_dict().items():
        setattr(config.text_config, key, value)
    config.text_config.moe_intermediate_size = config.text_config.intermediate_size
    config.text_config.mlp_only_layers = list(range(28)) if routing == "dense" else []
    config.text_config.num_experts, config.text_config.num_experts_per_tok = 4, 2
    config.routing = routing
    with torch.device("meta"):
        model = PrismDiscriminatorForTokenClassification(config)
    assert expected.total == sum(parameter.numel() for parameter in model.parameters())


def test_folders_are_read_without_their_weights(dense_folder, discriminator_folder):
    for folder, load in (
        (dense_folder, AutoModelForImageTextToText.from_pretrained),
        (discriminator_folder, load_discriminator),
    ):
        real = sum(parameter.numel() for parameter in load(folder).parameters())
        assert real == sizes_of(read_config(folder)).total == stored_parameters(folder)


def test_the_state_of_training_takes_what_we_say(dense_folder):
    """Weights, gradients and AdamW's moments of the tiny model, in bytes."""
    model = AutoModelForImageTextToText.from_pretrained(dense_folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments_ = [t for each in optimizer.state.values() for t in each.values() if t.ndim]
    total = sizes_of(read_config(dense_folder)).total
    real = [
        sum(t.nbytes for t in tensors)
        for tensors in (list(model.parameters()), [p.grad for p in model.parameters()], moments_)
    ]
    assert list(state(total, total, ranks=1)) == real


def test_adapters_are_counted_exactly(dense_folder):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForImageTextToText.from_pretrained(dense_folder)
    model = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", exclude_modules=".*visual.*")
    )
    real = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sizes_of(read_config(dense_folder)).adapters(4) == real


def test_checkpointed_activations_are_not_underestimated(dense_folder):
    """What autograd keeps of one real pass over 512 tokens, without logits, against the estimate."""
    prism = compose_run(["stage=sft", "prism.hardware.gradient_checkpointing=false"])[1]
    model = AutoModelForImageTextToText.from_pretrained(dense_folder, dtype=torch.float32)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    held = []  # so that no storage is freed and its address used again
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or pack(t), lambda t: t):
        model.model.language_model(inputs_embeds=torch.zeros(1, 512, 128, requires_grad=True))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    real = sum(size for address, size in kept.items() if address not in weights)
    assert 0.5 * real < activations(prism, sizes_of(read_config(dense_folder)), 512) < 4 * real


def fits(stage: str, hardware: str, policy: str, *overrides: str) -> dict[str, float]:
    """GiB on a device at each moment."""
    prism = compose_run(
        [f"stage={stage}", f"model=qwen3_vl_{policy}", f"hardware={hardware}", *overrides]
    )[1]
    judge = sizes_of(upcycled(QWEN["2b"].to_dict(), prism.discriminator.upcycle))
    judged = judge if stage in ("warmup", "align") else None
    return {
        moment.name: moment.total / GIB
        for moment in moments(prism, sizes(policy), judged, 80 * GIB)
    }


@pytest.mark.parametrize("policy", ["4b", "8b"])
@pytest.mark.parametrize("stage", ["sft", "warmup", "align", "rlvr"])
def test_the_papers_settings_fit_eight_h100(stage, policy):
    assert max(fits(stage, "8xh100", policy).values()) < 0.9 * 80


@pytest.mark.parametrize("stage", ["sft", "warmup", "align", "rlvr"])
def test_adapters_fit_one_gpu(stage):
    assert max(fits(stage, "1gpu_lora", "4b").values()) < 0.9 * 80


def test_all_weights_of_4b_do_not_fit_one_gpu():
    held = fits("align", "8xh100", "4b", "prism.hardware.devices_per_node=1")
    assert held["the policy learns"] > 80
    assert held["the discriminator learns"] > 80


def test_models_that_stay_take_room_from_one_another():
    away, here = (
        fits("align", "8xh100", "8b", f"prism.hardware.offload={word}")
        for word in ("true", "false")
    )
    assert here["the policy learns"] - away["the policy learns"] == pytest.approx(
        12 * 5.2987e9 / 8 / GIB, rel=0.01
    )
    assert here["vLLM generates"] > away["vLLM generates"] > 0.4 * 80


def test_what_learns_is_what_is_not_frozen():
    frozen, all_weights = (
        trained(compose_run(["stage=sft", f"prism.sft.freeze_vision={word}"])[1], sizes("4b"))
        for word in ("true", "false")
    )
    assert all_weights - frozen == sizes("4b").vision


def test_a_larger_share_caches_more_sequences():
    """Of 8,192 tokens: 0.25 of 80 GiB is 20, and an 8B's weights leave under 2 of them."""
    align = ["stage=align", "model=qwen3_vl_8b", "hardware=8xh100"]
    shares = [
        compose_run([*align, f"prism.hardware.gpu_memory_utilization={share}"])[1]
        for share in (0.2, 0.25, 0.4)
    ]
    none, one, many = (cached_sequences(prism, sizes("8b"), 80 * GIB) for prism in shares)
    assert none == 0
    assert 1 < one < 2
    assert 8 < many < 16


def test_loading_takes_a_copy_for_each_rank():
    prism = compose_run(["stage=rlvr", "model=qwen3_vl_4b", "hardware=8xh100"])[1]
    assert host_memory(prism, sizes("4b"), None) == 4 * sizes("4b").total * (4 + 8)
