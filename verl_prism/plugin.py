"""What `import verl` loads in every process (entry point group `verl.plugins`).

Keep it small: it runs while verl itself is still being imported, in every Ray and vLLM process.
"""

import os
from importlib.metadata import entry_points

from verl_prism.errors import UserError

if os.environ.get("VERL_PLATFORM") == "cpu":
    from verl_prism.cpu.platform import register_platform
    from verl_prism.cpu.process_group import accept_repeated_backends

    register_platform()
    accept_repeated_backends()

if os.environ.get("WG_BACKEND") == "ray" and (folder := os.environ.get("VERL_PRISM_STORES")):
    # A group of verl's workers meets in a file; torch's own store would listen to the whole network.
    os.environ.setdefault("DIST_INIT_METHOD", f"file://{folder}/{os.environ['WG_PREFIX']}")


def assert_loaded() -> None:
    """Raises UserError unless `import verl` loads this module; verl would skip it without a word."""
    if "verl_prism.plugin" not in {entry.value for entry in entry_points(group="verl.plugins")}:
        raise UserError(
            "verl does not know of verl_prism: the package is not installed in this environment. "
            "Install it on every node: pip install -e . --no-deps"
        )
    wanted = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    if wanted.lower() != "auto" and "verl_prism" not in [
        name.strip() for name in wanted.split(",")
    ]:
        raise UserError(
            f"VERL_USE_EXTERNAL_PLUGINS={wanted} keeps verl from loading verl_prism. Unset it, or add verl_prism to it."
        )
