"""verl's datasets for stages sft, align and rlvr, with rows that are read when a batch needs them.

verl's own SFT dataset reads whole files into the memory of every rank. verl passes only the branch
`data` of the config to a dataset, so `data.prism` holds our config.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer.chat_template import extract_system_prompt_and_generation

from verl_prism import config as prism_config
from verl_prism.config import parse_prism
from verl_prism.data.images import limited_images
from verl_prism.data.rows import Column, Row, Rows, heldout_rows, train_rows
from verl_prism.errors import UserError


class ExampleRows(Sequence[Row]):
    """What verl's datasets make examples of. `rows` are those of the data files."""

    rows: Rows


class ModelRows(ExampleRows):
    """Rows whose `images` are as verl takes them: a list, with the limits of `prism.image`."""

    def __init__(self, rows: Rows, limits: prism_config.Image) -> None:
        self.rows = rows
        self._limits = limits

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        row = self.rows[index]
        return row | {"images": limited_images(row, self._limits)}


class PrismSFTDataset(MultiTurnSFTDataset):
    """verl's SFT dataset, which reads a demonstration when a batch needs it."""

    def __init__(
        self,
        parquet_files: Any,
        tokenizer: PreTrainedTokenizerBase,
        config: DictConfig,
        processor: ProcessorMixin,
        max_samples: int = -1,
    ) -> None:
        self._model_rows = self._open(parquet_files, config, max_samples)
        super().__init__(parquet_files, tokenizer, config, processor, max_samples)

    def _open(self, files: Any, config: DictConfig, max_samples: int) -> ExampleRows:
        """Return the demonstrations: rows with `messages` and `images`."""
        return open_rows(files, config, max_samples)

    def _download(self) -> None:
        """Do nothing: the files are local."""

    def _read_files_and_process(self) -> None:
        self.dataframe = _Frame(self._model_rows)
        self.messages = self._model_rows  # verl only takes their number
        self.tools = self._column(self.tools_key)
        self.enable_thinking = self._column(self.enable_thinking_key)
        self.system_prompt, self.generation_prompt = extract_system_prompt_and_generation(
            self.tokenizer, **self.apply_chat_template_kwargs
        )

    def _column(self, name: str) -> Column | None:
        rows = self._model_rows.rows
        return rows.column(name) if name in rows.columns else None

    def __getitem__(self, item: int) -> dict[str, Any]:
        try:
            example = super().__getitem__(item)
        except Exception as error:
            error.add_note(f"in {self._model_rows.rows.place(item)}")
            raise
        # verl's collator needs the key in every row of a batch if it is in one.
        return {"multi_modal_inputs": {}} | example


class PrismRLDataset(RLHFDataset):
    """verl's RL dataset, which reads a question when a batch needs it."""

    def _download(self, use_origin_parquet: bool = False) -> None:
        """Do nothing: the files are local."""

    def _read_files_and_tokenize(self) -> None:
        self.dataframe = open_rows(self.original_data_files, self.config, self.max_samples)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Return a question as verl does, with the number of its row for the report."""
        return super().__getitem__(item) | {"row": item}


def open_rows(files: Any, config: DictConfig, max_samples: int) -> ModelRows:
    """Return the rows of `prism.data.train`, or of `heldout` if `files` are verl's `val_files`.

    If both are the same files, verl does not say which of them it reads. The rows are then those of
    `prism.data.train`, none of which is too long for either.

    Args:
        files: a path or paths, as verl passes them.
        config: verl's branch `data`.
    """
    if max_samples > 0:
        raise UserError(
            "data.train_max_samples and data.val_max_samples are not supported; "
            "write a smaller file"
        )
    prism = parse_prism(config.prism)
    heldout = _paths(files) == _paths(config.val_files) != _paths(config.train_files)
    rows = heldout_rows(prism) if heldout else train_rows(prism)
    return ModelRows(rows, prism.image)


def _paths(files: Any) -> list[str]:
    return [files] if isinstance(files, str) else list(files or ())


class _Frame:
    """The part of a pandas data frame that verl's SFT dataset uses: `frame.iloc[index]`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    @property
    def iloc(self) -> "_Frame":
        return self

    def __getitem__(self, index: int) -> pd.Series:
        return pd.Series(self._rows[index])
