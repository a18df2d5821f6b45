"""The columns of the parquet files, one row per question.

| column           | type                              | read by                   |
|------------------|-----------------------------------|---------------------------|
| messages         | list of {role, content}           | sft                       |
| prompt           | list of {role, content}           | warmup, align, rlvr, eval |
| images           | list of {bytes}, may be missing   | all                       |
| data_source      | string                            | align, rlvr, eval         |
| reward_model     | {style: "rule", ground_truth}     | align, rlvr, eval         |
| teacher_response | string: a whole response          | warmup, align             |
| extra_info       | struct: index, facts of a task,   | optional                  |
|                  | equivalent_answers: list of texts |                           |

Each `<image>` in a message is a placeholder for the next item of `images`. Stage align does not use
`reward_model`, but verl's reward loop requires the column.
"""

from verl_prism.config import Stage

_QUESTION = ("prompt", "images", "data_source", "reward_model")

TRAIN_COLUMNS: dict[Stage, tuple[str, ...]] = {
    "sft": ("messages", "images"),
    "warmup": ("prompt", "images", "teacher_response"),
    "align": (*_QUESTION, "teacher_response"),
    "rlvr": _QUESTION,
    "eval": (),
}
HELDOUT_COLUMNS: dict[Stage, tuple[str, ...]] = {
    "sft": (),
    "warmup": (),
    "align": _QUESTION,
    "rlvr": _QUESTION,
    "eval": _QUESTION,
}
