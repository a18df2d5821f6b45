"""Files that are linked to another folder, or copied."""

import errno
import os

import pytest

from verl_prism.files import link_or_copy


@pytest.mark.parametrize("linked", [True, False])
def test_a_file_is_linked_or_else_copied(tmp_path, monkeypatch, linked):
    def no_links(source, target):
        raise OSError(errno.EPERM, "this file system has no hard links")

    if not linked:
        monkeypatch.setattr(os, "link", no_links)
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    target = tmp_path / "policy.safetensors"
    link_or_copy(str(source), str(target))
    assert target.read_bytes() == b"weights"
    assert target.samefile(source) == linked


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    for name in ("source", "target"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        link_or_copy(str(tmp_path / "source"), str(tmp_path / "target"))
    assert (tmp_path / "target").read_text() == "target"
