"""Checks of a run's inputs that take seconds to minutes, before Ray starts.

Every check raises UserError that names the file, the row or the key, and the fix.
"""

from verl_prism.data.checks.host import check_device, has_gpu
from verl_prism.data.checks.inputs import (
    InputReport,
    check_files,
    check_inputs,
    check_number_of_rows,
    count_rows,
    data_files,
    notes,
    summary,
    write_skipped_rows,
)
from verl_prism.data.checks.models import check_model_folder, model_folders
from verl_prism.data.checks.steps import check_division, check_longest

__all__ = [
    "InputReport",
    "check_device",
    "check_division",
    "check_files",
    "check_inputs",
    "check_longest",
    "check_model_folder",
    "check_number_of_rows",
    "count_rows",
    "data_files",
    "has_gpu",
    "model_folders",
    "notes",
    "summary",
    "write_skipped_rows",
]
