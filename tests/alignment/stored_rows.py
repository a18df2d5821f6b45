"""Rows of the TransferQueue in memory, under its interface."""

from dataclasses import dataclass, field
from typing import Any

from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_prism.alignment.groups import ids_key
from verl_prism.discriminator import Prompt, Spans
from verl_prism.response import View


@dataclass
class StoredRows:
    """Stands in for the module `transfer_queue` and records what is read."""

    rows: dict[str, dict[str, Any]]
    reads: list[tuple[str, str]] = field(default_factory=list)  # key and field

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]):
        assert partition_id == "train"
        self.reads += [(key, name) for key in keys for name in select_fields]
        selected = [{name: self.rows[key][name] for name in select_fields} for key in keys]
        return list_of_dict_to_tensordict(selected)


def stored_row(prompt: Prompt, teacher: str, student: Spans | None) -> dict[str, Any]:
    """What verl and the reward manager leave of a rollout."""
    info: dict[str, Any] = {"fault": "" if student else "missing"}
    for view in View:
        info[ids_key(view)] = list(student[view]) if student else []
    images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
    return {
        "prompts": prompt.input_ids,
        "multi_modal_inputs": {name: value for name, value in images.items() if value is not None},
        "teacher_response": teacher,
        "extra_fields": {"reward_extra_info": info},
    }
