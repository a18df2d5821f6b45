"""verl's dataset for stage dpo: pairs of a teacher's response and one of the policy's."""

from typing import Any

import torch
from omegaconf import DictConfig

from verl_prism.config import parse_prism
from verl_prism.data.checks.rows import END_TOKENS
from verl_prism.data.datasets import ExampleRows, ModelRows, PrismSFTDataset, open_rows
from verl_prism.data.rows import Row
from verl_prism.response import ends_with_answer

PAIR = "pair"  # the number of an example's pair
TIE = "tie"  # 1 if both responses of the pair are the same, else 0


class Demonstrations(ExampleRows):
    """The responses of pairs as demonstrations: the teacher's of pair i is 2i, the policy's 2i + 1.

    A row has a pair for each of its first `responses` values of `student_responses`.
    """

    def __init__(self, rows: ModelRows, responses: int) -> None:
        self.rows = rows.rows
        self._model_rows = rows
        self._responses = responses

    def __len__(self) -> int:
        return 2 * self._responses * len(self._model_rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        found, text = self._row(index)
        # As a string, verl would replace an <image> that the policy wrote by one of the images.
        answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        return {"messages": [*found["prompt"], answer], "images": found["images"]}

    def response(self, index: int) -> str:
        """Return the response of a demonstration."""
        _, text = self._row(index)
        return text

    def _row(self, index: int) -> tuple[Row, str]:
        """Return the row and the response of a demonstration."""
        pair, is_student = divmod(index, 2)
        row, response = divmod(pair, self._responses)
        found = self._model_rows[row]
        text = found["student_responses"][response] if is_student else found["teacher_response"]
        return found, text


class PrismPairDataset(PrismSFTDataset):
    """Pairs, each as the two examples that verl's SFT dataset makes of its demonstrations.

    The chat template ends each response. If the policy's response does not end with an answer, the
    length limit may have cut it, and the policy never sampled that end: the loss leaves it out.
    """

    _model_rows: Demonstrations

    def _open(self, files: Any, config: DictConfig, max_samples: int) -> Demonstrations:
        responses = parse_prism(config.prism).dpo.responses_per_prompt
        return Demonstrations(open_rows(files, config, max_samples), responses)

    def __len__(self) -> int:
        return super().__len__() // 2

    def __getitem__(self, item: int) -> list[dict[str, Any]]:  # type: ignore[override]
        teacher = super().__getitem__(2 * item)
        student = super().__getitem__(2 * item + 1)
        if not ends_with_answer(self._model_rows.response(2 * item + 1)):
            student["loss_mask"][-END_TOKENS:] = 0
        tie = torch.equal(teacher["input_ids"], student["input_ids"])
        pair = {PAIR: torch.tensor([item]), TIE: torch.tensor([float(tie)])}
        return [teacher | pair, student | pair]
