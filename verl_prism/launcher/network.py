"""Network settings of a run: its processes talk to each other over loopback only."""

import secrets
from pathlib import Path


def network_environment(single_node: bool, offline: bool, scratch: Path) -> dict[str, str]:
    """Return environment variables for the stage's processes. The user's own take precedence.

    Always:
        RAY_USAGE_STATS_ENABLED, DO_NOT_TRACK: no usage statistics. vLLM and Hugging Face read the
            latter.

    If offline:
        HF_HUB_OFFLINE: no process contacts the Hugging Face Hub.

    On a single node:
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER: 0 makes loopback the address of the node, as on Windows
            and macOS. Ray, verl's HTTP servers and TransferQueue listen on the node's address.
            `_node_ip_address=127.0.0.1` would not do: Ray resolves it to a public address.
        RAY_AUTH_MODE, RAY_AUTH_TOKEN: Ray only answers processes of this run. By default it keeps
            one token for all runs in a file that other users may read.
        VLLM_HOST_IP, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: the same for vLLM and torch.
        VERL_PRISM_STORES: folder in which the ranks of a worker group meet (`verl_prism.plugin`).

    single_node: the run uses one node, with a Ray of its own.
    offline: `prism.hub.offline`.
    scratch: the run's temporary folder.
    """
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}
    if offline:
        variables["HF_HUB_OFFLINE"] = "1"
    if single_node:
        variables |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            "VERL_PRISM_STORES": str(scratch),
        }
    return variables
