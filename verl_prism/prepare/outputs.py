"""Check that a command does not write into its own source."""

from collections.abc import Iterable
from pathlib import Path

from verl_prism.config import DataFiles
from verl_prism.errors import UserError


def check_output(key: str, output: Path, source: DataFiles, files: Iterable[Path]) -> None:
    """Check that a file to write is no file of the source, now or in the next run.

    Args:
        key: the setting that names the file, for messages.
        output: the file.
        source: files, folders or globs, as the setting `source` names them.
        files: what they are now.

    Raises:
        UserError: it is one of `files`, or lies in a folder or matches a glob of `source`.
    """
    target = output.resolve()
    if target in {file.resolve() for file in files}:
        raise UserError(f"{key}: {output} is a file of source; choose another name")
    for path in [source] if isinstance(source, Path) else source:
        if _holds(path, target):
            raise UserError(
                f"{key}: {output} would be a file of source={path} in the next run; choose another "
                "folder"
            )


def _holds(path: Path, target: Path) -> bool:
    """Return whether a folder or glob finds a file."""
    if path.is_dir():
        return path.resolve() == target.parent
    if path.is_file():
        return False
    if "**" in path.parts:  # which stands for any number of folders
        folder = Path(*path.parts[: path.parts.index("**")]).resolve()
        return any(parent.match(str(folder)) for parent in target.parents)
    return target.match(str(path.parent.resolve() / path.name))
