"""vLLM on CPU can load new weights while it serves."""

import inspect

import torch
from vllm import _custom_ops
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

from verl_prism.cpu.vllm_plugin import register
from verl_prism.cpu.worker_extension import CpuWorkerExtension
from verl_prism.worker_extension import vLLMColocateWorkerExtension


def test_a_linear_keeps_its_weight_and_uses_new_values(monkeypatch):
    monkeypatch.setattr(_custom_ops, "_supports_onednn", _custom_ops._supports_onednn)
    register()
    layer = torch.nn.Linear(32, 16, bias=False)
    layer.weight.requires_grad_(False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    layer.weight.fill_(2.0)
    outputs = layer.cpu_linear(torch.ones(1, 32), layer.weight, None)
    assert torch.equal(outputs, torch.full((1, 16), 64.0))


def test_received_weights_are_copied_from_the_shared_buffer(monkeypatch):
    received = {}
    monkeypatch.setattr(
        vLLMColocateWorkerExtension,
        "_update_weights",
        lambda self, weights, **kwargs: received.update(weights),
    )
    buffer = torch.arange(4.0)
    extension = object.__new__(CpuWorkerExtension)
    extension._update_weights([("w", buffer[:2])], peft_config=None, base_sync_done=True)
    buffer.zero_()
    assert received["w"].tolist() == [0.0, 1.0]


def test_verl_loads_weights_through_the_overridden_method():
    parameters = inspect.signature(vLLMColocateWorkerExtension._update_weights).parameters
    assert list(parameters) == ["self", "weights", "peft_config", "base_sync_done"]
    assert "_update_weights" in inspect.getsource(
        vLLMColocateWorkerExtension.update_weights_from_ipc
    )
