"""What the processes of a run say to the network: to each other over loopback, and to nobody else."""

import secrets
from pathlib import Path

from verl_prism.config import Prism


def network_environment(prism: Prism, scratch: Path) -> dict[str, str]:
    """Environment variables of the stage's processes; the user's own go before them.

    Quiet:
        RAY_USAGE_STATS_ENABLED, DO_NOT_TRACK: no usage statistics; the latter for vLLM and Hugging Face.
        HF_HUB_OFFLINE: all models are local folders, so nobody has to ask the hub for them.

    On one node, with a Ray of its own:
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER: 0 makes loopback the address of the node, as on those systems; Ray, verl's
            HTTP servers and TransferQueue listen on the node's address. Ray resolves `_node_ip_address=127.0.0.1` to
            an outward address.
        RAY_AUTH_MODE, RAY_AUTH_TOKEN: Ray answers this run alone. By itself it would keep one token for all runs in a
            file of the user's home that others can read.
        VLLM_HOST_IP, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: the same for vLLM and torch.
        VERL_PRISM_STORES: folder where `verl_prism.plugin` lets the ranks of a worker group meet.
    """
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if prism.hardware.nodes > 1 or prism.hardware.ray_address is not None:
        return quiet
    loopback = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    ray = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    return quiet | loopback | ray | {"VERL_PRISM_STORES": str(scratch)}
