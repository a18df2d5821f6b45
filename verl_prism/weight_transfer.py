"""The socket through which verl's workers send the policy's weights to vLLM.

verl names it after the job's id in Ray. In a Ray of its own every run is the first job, so two such
runs on one host would share a socket, and one of them would wait forever.
"""

import os
from pathlib import Path


def own_socket(address: str) -> str:
    """Return verl's address of a socket, moved to the folder of this process's Ray if it has one.

    address: `ipc:///tmp/NAME`, the same for the sender and the receiver.
    """
    folder = os.environ.get("RAY_TMPDIR")
    if folder is None or not Path(folder).is_dir():
        return address
    _, _, name = address.rpartition("/")
    return f"ipc://{folder}/{name}"
