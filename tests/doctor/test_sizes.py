"""Sizes from config.json only, and memory estimated from them, against models that are built."""

from dataclasses import asdict

import pytest
import torch
from qwen3_vl import QWEN
from transformers import AutoModelForImageTextToText

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.discriminator import load_discriminator
from verl_prism.doctor.finding import GIB
from verl_prism.doctor.memory_estimate import (
    DISCRIMINATOR_UPDATE,
    GENERATION,
    POLICY_UPDATE,
    DeviceMemory,
    host_memory,
    phases,
    replay_memory,
    trainable_parameters,
    training_state,
)
from verl_prism.doctor.sizes import (
    Sizes,
    discriminator_sizes,
    policy_sizes,
    sizes_of,
    upcycled,
)
from verl_prism.errors import UserError

# Parameters of each part as they were counted by hand from config.json.
COUNTED = {
    "2b": {
        "total": 2_127_532_032,
        "embeddings": 311_164_928,
        "layer": 50_336_000,
        "layers": 28,
        "head": 0,
        "vision": 406_957_056,
        "largest": 311_164_928,
        "linear_widths": 38_912,
        "hidden": 2048,
        "mlp": 6144,
        "attention": 4096,
        "cache": 2048,
        "vocabulary": 151_936,
        "scored_tokens": 0,
        "vision_hidden": 1024,
        "vision_depth": 24,
        "merged_patches": 4,
        "patch_values": 3 * 2 * 16 * 16,
    },
    "4b": {
        "total": 4_437_815_808,
        "embeddings": 388_956_160,
        "layer": 100_930_816,
        "layers": 36,
        "head": 0,
        "vision": 415_347_712,
        "largest": 388_956_160,
        "linear_widths": 57_344,
        "hidden": 2560,
        "mlp": 9728,
        "attention": 6144,
        "cache": 2048,
        "vocabulary": 151_936,
        "scored_tokens": 0,
        "vision_hidden": 1024,
        "vision_depth": 24,
        "merged_patches": 4,
        "patch_values": 3 * 2 * 16 * 16,
    },
    "8b": {
        "total": 8_767_123_696,
        "embeddings": 622_329_856,
        "layer": 192_946_432,
        "layers": 36,
        "head": 622_329_856,
        "vision": 576_388_336,
        "largest": 622_329_856,
        "linear_widths": 75_776,
        "hidden": 4096,
        "mlp": 12_288,
        "attention": 6144,
        "cache": 2048,
        "vocabulary": 151_936,
        "scored_tokens": 0,
        "vision_hidden": 1152,
        "vision_depth": 27,
        "merged_patches": 4,
        "patch_values": 3 * 2 * 16 * 16,
    },
}


def compose(*overrides: str) -> Prism:
    _, prism = compose_run(overrides)
    return prism


@pytest.fixture(scope="module")
def sizes() -> dict[str, Sizes]:
    return {name: sizes_of(config) for name, config in QWEN.items()}


def upcycled_2b(*overrides: str) -> Sizes:
    upcycle = compose("stage=warmup", *overrides).discriminator.upcycle
    return sizes_of(upcycled(QWEN["2b"], upcycle))


@pytest.mark.parametrize(("name", "billions"), [("2b", 2.13), ("4b", 4.44), ("8b", 8.77)])
def test_parts_of_a_dense_model(sizes, name, billions):
    assert asdict(sizes[name]) == COUNTED[name]
    assert sizes[name].total / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("routing", "total", "layer", "head", "mlp"),
    [
        ("dedicated", 5_298_659_328, 163_590_400, 4096, 2 * 6144),
        ("token", 5_298_657_280, 163_590_400, 2048, 2 * 6144),
        ("dense", 2_127_536_128, 50_336_000, 4096, 6144),
    ],
)
def test_parts_of_an_upcycled_discriminator(routing, total, layer, head, mlp):
    sizes = upcycled_2b(f"prism.discriminator.upcycle.routing={routing}")
    assert (sizes.total, sizes.layer, sizes.head, sizes.mlp) == (total, layer, head, mlp)
    unchanged = ("embeddings", "layers", "vision", "largest", "hidden", "attention")
    for name in unchanged:
        assert asdict(sizes)[name] == COUNTED["2b"][name], name


def test_sizes_equal_the_loaded_models(dense_folder, discriminator_folder):
    policy = AutoModelForImageTextToText.from_pretrained(dense_folder)
    assert policy_sizes(dense_folder).total == count(policy)
    assert discriminator_sizes(discriminator_folder).total == count(
        load_discriminator(discriminator_folder)
    )


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_folder_with_another_model_is_refused(dense_folder, discriminator_folder, tmp_path):
    with pytest.raises(UserError, match="prism_discriminator"):
        policy_sizes(discriminator_folder)
    with pytest.raises(UserError, match="qwen3_vl"):
        discriminator_sizes(dense_folder)
    with pytest.raises(UserError, match=r"config\.json"):
        policy_sizes(tmp_path)


def test_training_state_equals_the_tensors_of_a_real_step(dense_folder):
    model = AutoModelForImageTextToText.from_pretrained(dense_folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    adam = 0
    for state in optimizer.state.values():
        adam += sum(tensor.nbytes for tensor in state.values() if tensor.ndim)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    total = policy_sizes(dense_folder).total
    assert training_state(total, total, shards=1) == (weights, weights, adam)


def test_adapters_are_counted_exactly(dense_folder):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForImageTextToText.from_pretrained(dense_folder)
    model = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", exclude_modules=".*visual.*")
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert policy_sizes(dense_folder).adapters(4) == trained


def test_activations_are_not_underestimated(dense_folder):
    """Compare with what autograd saves in a real pass over 512 tokens, without logits."""
    prism = compose("stage=sft", "prism.hardware.gradient_checkpointing=false")
    model = AutoModelForImageTextToText.from_pretrained(dense_folder, dtype=torch.float32)
    held = []  # keeps storages alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.language_model(inputs_embeds=torch.zeros(1, 512, 128, requires_grad=True))
    saved = {}
    for tensor in held:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    real = sum(nbytes for address, nbytes in saved.items() if address not in weights)
    device = DeviceMemory(prism.hardware, prism.data)
    estimate = device.activations(policy_sizes(dense_folder), 512, image_tokens=0)
    assert 0.5 * real < estimate < 4 * real


def estimate(sizes: dict[str, Sizes], policy: str, stage: str, hardware: str, *overrides: str):
    """Return the GiB on a device of 80 GiB in each phase."""
    prism = compose(
        f"stage={stage}", f"model=qwen3_vl_{policy}", f"hardware={hardware}", *overrides
    )
    discriminator = None
    if stage in ("warmup", "align"):
        upcycle = prism.discriminator.upcycle
        discriminator = sizes_of(upcycled(QWEN["2b"], upcycle))
    step = phases(prism, sizes[policy], discriminator, 80 * GIB)
    return {phase.name: phase.total / GIB for phase in step}


@pytest.mark.parametrize(
    ("policy", "stage", "expected"),
    [
        ("4b", "sft", [30.795847415924072]),
        ("4b", "warmup", [69.0, 60.9677209854126]),
        ("4b", "align", [37.0, 16.71505069732666, 31.376081466674805, 60.9677209854126]),
        ("4b", "rlvr", [53.0, 16.71505069732666, 35.172468185424805]),
        ("8b", "sft", [43.071741692721844]),
        ("8b", "align", [37.0, 26.14839980006218, 43.87694689631462, 60.9677209854126]),
        ("8b", "rlvr", [53.0, 26.14839980006218, 48.05614611506462]),
    ],
)
def test_the_papers_settings_fit_eight_h100(sizes, policy, stage, expected):
    estimated = estimate(sizes, policy, stage, "8xh100")
    assert list(estimated.values()) == expected
    assert max(expected) < 0.9 * 80


def test_eight_experts_fit_eight_h100(sizes):
    """The figures of docs/method.md and of trainer_configs/discriminator/eight_experts.yaml."""
    align = (sizes, "4b", "align", "8xh100")
    four = estimate(*align)[DISCRIMINATOR_UPDATE]
    eight = estimate(*align, "discriminator=eight_experts")[DISCRIMINATOR_UPDATE]
    assert (round(four, 1), round(eight, 1)) == (61.0, 69.4)
    states = []
    for experts in (4, 8):
        total = upcycled_2b(f"prism.discriminator.upcycle.experts={experts}").total
        states.append(sum(training_state(total, total, shards=8)) / GIB)
    assert [round(state, 1) for state in states] == [9.9, 17.7]


def test_likelihoods_fit_eight_h100(sizes):
    """Logits of 1,024 tokens take 1.4 GiB; their number does not grow with the pack."""
    align = (sizes, "4b", "align", "8xh100")
    heads = estimate(*align)[DISCRIMINATOR_UPDATE]
    likelihoods = estimate(*align, "discriminator=likelihood")[DISCRIMINATOR_UPDATE]
    assert likelihoods - heads == pytest.approx(1.45, abs=0.01)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("sft", [40.380438804626465]),
        ("warmup", [37.0, 64.31808471679688]),
        ("align", [37.0, 33.24720287322998, 40.380438804626465, 64.31808471679688]),
        ("rlvr", [37.0, 33.24720287322998, 44.176825523376465]),
    ],
)
def test_adapters_fit_one_gpu(sizes, stage, expected):
    assert list(estimate(sizes, "4b", stage, "1gpu_lora").values()) == expected
    assert max(expected) < 0.9 * 80


def test_full_training_of_4b_does_not_fit_one_gpu(sizes):
    estimated = estimate(sizes, "4b", "align", "8xh100", "prism.hardware.devices_per_node=1")
    assert estimated[POLICY_UPDATE] > 80
    assert estimated[DISCRIMINATOR_UPDATE] > 80


def test_models_that_are_not_offloaded_take_memory_from_each_other(sizes):
    align = (sizes, "8b", "align", "8xh100")
    offloaded = estimate(*align, "prism.hardware.offload=true")
    kept = estimate(*align, "prism.hardware.offload=false")
    idle_discriminator = 12 * 5.2987e9 / 8 / GIB
    assert kept[POLICY_UPDATE] - offloaded[POLICY_UPDATE] == pytest.approx(
        idle_discriminator, rel=0.01
    )
    assert kept[GENERATION] > offloaded[GENERATION] > 0.4 * 80


def test_a_frozen_vision_tower_is_not_trained(sizes):
    frozen = compose("stage=sft", "prism.sft.freeze_vision=true")
    full = compose("stage=sft", "prism.sft.freeze_vision=false")
    policy = sizes["4b"]
    difference = trainable_parameters(full, policy) - trainable_parameters(frozen, policy)
    assert difference == policy.vision


@pytest.mark.parametrize(("share", "least", "most"), [(0.2, 0, 0), (0.25, 1, 2), (0.4, 8, 16)])
def test_a_larger_share_caches_more_sequences(sizes, share, least, most):
    """Of 8,192 tokens: 0.25 of 80 GiB is 20, and an 8B's weights leave under 2 of them."""
    prism = compose(
        "stage=align",
        "model=qwen3_vl_8b",
        "hardware=8xh100",
        f"prism.hardware.gpu_memory_utilization={share}",
    )
    device = DeviceMemory(prism.hardware, prism.data)
    assert least <= device.cached_sequences(sizes["8b"], 80 * GIB) <= most


def test_loading_takes_a_copy_for_each_rank(sizes):
    prism = compose("stage=rlvr", "model=qwen3_vl_4b", "hardware=8xh100")
    assert host_memory(prism, sizes["4b"], None) == 4 * sizes["4b"].total * (4 + 8)


REPLAY = "prism.discriminator.replay_share=0.5"


def replayed(*overrides: str) -> int:
    prism = compose("stage=align", "model=qwen3_vl_4b", "hardware=8xh100", *overrides)
    return replay_memory(prism, upcycled_2b())


def test_a_remembered_image_takes_25_megabytes():
    """One of 1024 x 1024 pixels has 64 x 64 patches, which are 1,024 tokens."""
    one = (
        "prism.data.max_prompt_tokens=1024",
        "prism.discriminator.replay_groups=1",
        "prism.hardware.devices_per_node=1",
    )
    assert replayed(REPLAY, *one) == 4 * 3 * 2 * 1024 * 1024 == 25_165_824


def test_a_node_holds_the_groups_of_its_devices():
    groups = replayed(REPLAY)
    assert groups == 8 * 64 * 2 * 25_165_824
    assert replayed(REPLAY, "prism.hardware.nodes=2") == groups
    pool = ("prism.discriminator.placement=pool", "prism.discriminator.pool_devices=2")
    assert replayed(REPLAY, *pool) == groups / 4
    assert replayed() == 0


def test_remembered_groups_are_host_memory(sizes):
    settings = ("stage=align", "model=qwen3_vl_4b", "hardware=8xh100")
    for offload in ("true", "false"):
        key = f"prism.hardware.offload={offload}"
        without = host_memory(compose(*settings, key), sizes["4b"], upcycled_2b())
        replaying = host_memory(compose(*settings, key, REPLAY), sizes["4b"], upcycled_2b())
        assert replaying - without == replayed(REPLAY)


def test_a_remembered_image_takes_what_its_tensor_takes(dense_folder, prompt):
    patches = prompt.image_grid_thw.prod().item()
    assert prompt.pixel_values.nbytes == 4 * patches * policy_sizes(dense_folder).patch_values
