"""What verl_prism changes in every process that imports verl (entry point group `verl.plugins`).

verl imports this module while verl itself is still being imported, in every process of Ray and
vLLM. So everything here runs at import, depends on environment variables only, and is small.
"""

import os
from importlib.metadata import entry_points

from verl_prism.errors import UserError

# On a host without an accelerator: register the platform before verl looks for it, and patch torch.
if os.environ.get("VERL_PLATFORM") == "cpu":
    from verl_prism.cpu.platform import register_platform
    from verl_prism.cpu.process_group import accept_repeated_backends

    register_platform()
    accept_repeated_backends()

# In a worker of verl (WG_BACKEND=ray) on one node: the ranks of a worker group find each other
# through a file in a folder that only this user can read. torch's own store would listen on all
# interfaces.
if os.environ.get("WG_BACKEND") == "ray" and (folder := os.environ.get("VERL_PRISM_STORES")):
    os.environ.setdefault("DIST_INIT_METHOD", f"file://{folder}/{os.environ['WG_PREFIX']}")


def assert_loaded() -> None:
    """Check that `import verl` loads this module. If it does not, verl gives no message.

    Raises:
        UserError: the package is not installed, or VERL_USE_EXTERNAL_PLUGINS excludes it.
    """
    if "verl_prism.plugin" not in {entry.value for entry in entry_points(group="verl.plugins")}:
        raise UserError(
            "verl does not find verl_prism: the package is not installed in this environment. "
            "Install it on every node: pip install -e . --no-deps"
        )
    plugins = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    names = [name.strip() for name in plugins.split(",")]
    if plugins.lower() != "auto" and "verl_prism" not in names:
        raise UserError(
            f"VERL_USE_EXTERNAL_PLUGINS={plugins} keeps verl from loading verl_prism. "
            "Unset it, or add verl_prism to it."
        )
