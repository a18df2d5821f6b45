"""Files in zip and tar archives, read in place: nothing is unpacked."""

import bz2
import gzip
import lzma
import os
import posixpath
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from verl_prism.errors import UserError
from verl_prism.prepare.convert.records import Rejected

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OPENERS: dict[bytes, Callable[..., IO[bytes]]] = {
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"BZh": bz2.open,  # type: ignore[dict-item]
    b"\xfd7zXZ\x00": lzma.open,  # type: ignore[dict-item]
}
CHUNK = 2**20
BOMB_BYTES = 2**30  # an archive may always become as large as this,
BOMB_RATIO = 200  # or this many times as large as it is
UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # encrypted
    NotImplementedError,  # compressed in another way
)
_WEB_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def inner_path(path: str) -> str:
    """Return a relative path without "." and "..".

    Raises:
        Rejected: it leads out of its folder, or is a web address.
    """
    if "\0" in path or not path.strip():
        raise Rejected("image path is empty or not a path", repr(path))
    if _WEB_ADDRESS.match(path):
        raise Rejected("image is a web address", f"{path[:200]}; download the images first")
    normal = posixpath.normpath(path)
    if normal.startswith(("/", "../")) or normal == "..":
        raise Rejected("image path leads out of its folder", path[:200])
    return normal


def is_archive(path: str | Path) -> bool:
    """Return whether a file is an archive, by its name."""
    return str(path).lower().endswith(SUFFIXES)


def open_archive(path: Path) -> "Archive":
    """Open an archive and read the names in it.

    Raises:
        UserError: it is damaged, or far larger than a sound archive when it is decompressed.
    """
    kind = ZipArchive if path.name.lower().endswith(".zip") else TarArchive
    try:
        return kind(path)
    except UNREADABLE as error:
        raise UserError(f"{path}: a damaged archive ({error}); copy it again") from None


class Archive:
    """The files of an archive by name.

    A name that leads out of the archive is never found, and one that occurs twice is refused.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._files: dict[str, Any] = {}
        self._twice: set[str] = set()

    def names(self) -> Iterator[str]:
        """Yield the names of the files."""
        yield from self._files

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file's content, None if there is no such file; see `Store`."""
        path = inner_path(path)
        if path not in self._files:
            return None
        if path in self._twice:
            raise Rejected("file occurs twice in its archive", f"{path} in {self.name}")
        if self.size(path) > limit:
            raise Rejected("image too large", f"{path} has {self.size(path):,} bytes")
        try:
            with self.open(path) as file:
                content = file.read(limit + 1)
        except UNREADABLE as error:
            raise Rejected("archive member is damaged", f"{path}: {error}") from None
        if len(content) > limit:
            raise Rejected("image too large", f"{path} has over {limit:,} bytes")
        return content

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, as the archive states it."""
        raise NotImplementedError

    def open(self, path: str) -> IO[bytes]:
        """Open a file of the archive."""
        raise NotImplementedError

    def _add(self, name: str, entry: Any) -> None:
        normal = posixpath.normpath(name)
        if normal.startswith(("/", "..")):
            return
        if normal in self._files:
            self._twice.add(normal)
        self._files[normal] = entry


class ZipArchive(Archive):
    """A zip archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._zip = zipfile.ZipFile(path)
        for entry in self._zip.infolist():
            if not entry.is_dir():
                self._add(entry.filename, entry)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return self._files[path].file_size

    def open(self, path: str) -> IO[bytes]:
        """Open a file."""
        return self._zip.open(self._files[path])


class TarArchive(Archive):
    """A tar archive. A compressed one is decompressed to a temporary file first."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._content = _plain(path)
        with tarfile.open(fileobj=self._content, mode="r:") as tar:
            for entry in tar:
                if entry.isfile():
                    self._add(entry.name, (entry.offset_data, entry.size))
                tar.members = []  # type: ignore[attr-defined] # which would grow

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return self._files[path][1]

    def open(self, path: str) -> IO[bytes]:
        """Open a file."""
        return _Part(self._content, *self._files[path])  # type: ignore[return-value]


class _Part:
    """Some bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        return self._take(self._file.read, size)

    def readline(self, size: int = -1) -> bytes:
        return self._take(self._file.readline, size)

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        left = self._size - self._position
        wanted = left if size < 0 else min(size, left)
        self._file.seek(self._start + self._position)
        content = read(wanted) if wanted else b""
        if wanted and not content:
            raise EOFError("the archive ends inside this file")
        self._position += len(content)
        return content

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _plain(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        head = file.read(6)
    for magic, opener in OPENERS.items():
        if head.startswith(magic):
            with opener(path) as compressed:
                return _decompressed(path, compressed)
    return open(path, "rb")


def _decompressed(path: Path, compressed: IO[bytes]) -> IO[bytes]:
    limit = max(BOMB_BYTES, BOMB_RATIO * os.path.getsize(path))
    plain = tempfile.TemporaryFile()  # noqa: SIM115 it is the result
    total = 0
    while chunk := compressed.read(CHUNK):
        total += len(chunk)
        if total > limit:
            plain.close()
            raise UserError(f"{path}: decompresses to over {limit:,} bytes; unpack it yourself")
        plain.write(chunk)
    plain.seek(0)
    return plain
