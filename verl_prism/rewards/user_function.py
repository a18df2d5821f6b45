"""Functions of the user's own, written as `path/to/file.py:function` in the config."""

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from verl_prism.errors import UserError

FORM = "write path/to/file.py:function"


METRICS_KEY = "prism.eval.metrics"


def load_metrics(spec: str) -> Callable[..., Any]:
    """Return the function of (response, row) that computes a task's own marks in stage eval.

    Raises:
        UserError: see `load_function`.
    """
    return load_function(METRICS_KEY, spec, ("response", "row"), by_name=False)


def load_function(
    key: str, spec: str, arguments: Sequence[str], *, by_name: bool = True
) -> Callable[..., Any]:
    """Return the function that `spec` names.

    key: the config key, for messages.
    arguments: what the function is called with.
    by_name: whether the arguments are given by name, rather than in this order.

    Raises:
        UserError: there is no such file or function, the file cannot be imported, or the function
            does not take the arguments.
    """
    path, _, name = spec.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"{key}={spec}: no file {path!r}; {FORM}")
    function = getattr(_module(key, Path(path)), name, None)
    if not callable(function):
        raise UserError(f"{key}={spec}: {path} has no function {name!r}")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{key}={spec}: {name} is a coroutine; write `def` instead of `async def`")
    try:
        signature = inspect.signature(function)
        signature.bind(**dict.fromkeys(arguments)) if by_name else signature.bind(*arguments)
    except TypeError as error:
        how = " by name" if by_name else ""
        raise UserError(
            f"{key}={spec}: {name} is called with {', '.join(arguments)}{how}, "
            f"which it does not accept: {error}"
        ) from None
    return function


@cache
def _module(key: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{key}: {path} is not a Python file; {FORM}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code can raise anything
        raise UserError(
            f"{key}: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module
