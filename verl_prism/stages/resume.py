"""Whether an unfinished warm-up can go on: what it has left in its output folder, and with which settings.

Without torch, so that it is asked before anything is started or removed.
"""

import json
from pathlib import Path
from typing import Any

from verl_prism.config import Prism
from verl_prism.errors import UserError

PROGRESS = "progress.json"


def state_folder(prism: Prism) -> Path:
    return prism.output / "state"


def rollouts_file(prism: Prism) -> Path:
    """A line for each prompt: the policy's answers."""
    return prism.output / "rollouts.jsonl"


def upcycled_folder(prism: Prism) -> Path:
    """The discriminator that training started from."""
    return prism.output / "upcycled"


def check_resumable(prism: Prism) -> None:
    """Raises UserError where there is no state to go on from, or other settings would make another discriminator."""
    folder = state_folder(prism)
    states = saved_states(folder)
    missing = [path for path in (rollouts_file(prism), upcycled_folder(prism)) if not path.exists()]
    if not states or missing:
        raise UserError(
            f"prism.warmup.resume=true, but {missing[0] if missing else folder} of an unfinished warm-up is not there; "
            "start anew without it"
        )
    before = json.loads((states[-1] / PROGRESS).read_text())["settings"]
    wanted = decisive_settings(prism)
    changed = [f"{key}={wanted.get(key)} (was {before.get(key)})" for key in sorted(before | wanted)
               if before.get(key) != wanted.get(key)]  # fmt: skip
    if changed:
        raise UserError(
            f"prism.warmup.resume=true, but the warm-up in {folder} was started with other settings: "
            f"{', '.join(changed)}; give the same ones, or start anew without resume"
        )


def decisive_settings(prism: Prism) -> dict[str, Any]:
    """Keys without which the rest of the warm-up would not be what it would have been, and their values."""
    node = prism.model_dump(mode="json")
    alignment_only = {"path", "placement", "pool_devices", "updates_per_step", "skip_above_accuracy", "max_nonfinite"}
    sections: dict[str, Any] = {
        "": {key: node[key] for key in ("seed", "steps", "policy")},
        "data.": {key: node["data"][key] for key in ("train", "max_response_tokens")},
        "rollout.": {key: node["rollout"][key] for key in ("temperature", "top_p")},
        "hardware.": {"dtype": node["hardware"]["dtype"]},
        "warmup.": {key: value for key, value in node["warmup"].items() if key != "resume"},
        "discriminator.upcycle.": node["discriminator"].pop("upcycle"),
        "discriminator.": {key: v for key, v in node["discriminator"].items() if key not in alignment_only},
    }
    return {f"prism.{section}{key}": value for section, keys in sections.items() for key, value in keys.items()}


def saved_states(folder: Path) -> list[Path]:
    """Whole ones, the latest last."""
    return sorted((state for state in folder.glob("*") if state.name.isdigit()), key=lambda state: int(state.name))
