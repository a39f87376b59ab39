"""How a run reaches the disk: whole files by temporary name and rename, lines by synced append, nothing in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from harness.errors import StorageError

TEMPORARY_SUFFIX = ".partial"


class FileLayer(Protocol):
    """Everything a run writes goes through one of these, so that a test can let it die at any step.

    Every method raises :class:`~harness.errors.StorageError` where the file system refuses.
    """

    def write_atomic(self, path: Path, data: bytes, *, replace: bool = False) -> None:
        """Make ``path`` hold ``data`` and survive a crash, or leave it as it was.

        Raises StorageError (``errno`` EEXIST) where the file is there and ``replace`` is False. Who calls holds the
        run's lock: the check and the rename are two steps.
        """
        ...

    def append(self, path: Path, data: bytes) -> None:
        """Add ``data`` to the end of an existing file and sync; a failure may leave a part of it there."""
        ...

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Cut a file to its first ``size_bytes`` and sync."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make a directory and what is missing above it; harmless where it is there."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file; harmless where it is gone."""
        ...

    def read(self, path: Path) -> bytes:
        """The bytes of a file."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether there is anything at ``path``."""
        ...

    def listing(self, path: Path) -> list[Path]:
        """What lies directly in a directory, sorted by name; empty where there is no such directory."""
        ...


class OsFileLayer:
    """The operating system's files. The ``_step`` methods are the single writes that a test can interrupt."""

    def write_atomic(self, path: Path, data: bytes, *, replace: bool = False) -> None:
        if not replace and self.exists(path):
            raise StorageError(path=path, cause=FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)))
        temporary = temporary_path(path)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                self._step_write(descriptor, data, temporary)
                self._step_sync(descriptor, temporary)
            finally:
                os.close(descriptor)
            self._step_rename(temporary, path)
        except OSError as error:
            # Only a refusal is cleaned up after. A crash cannot be, so what opens a run sweeps leftovers instead.
            self._forget(temporary)
            raise StorageError(path=path, cause=error) from error
        self._sync_parent(path)

    def append(self, path: Path, data: bytes) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                self._step_write(descriptor, data, path)
                self._step_sync(descriptor, path)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(path=path, cause=error, doing="append to") from error

    def truncate(self, path: Path, size_bytes: int) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._step_truncate(descriptor, size_bytes, path)
                self._step_sync(descriptor, path)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(path=path, cause=error, doing="cut") from error

    def make_directory(self, path: Path) -> None:
        missing = [path]
        try:
            while not missing[-1].parent.exists():
                missing.append(missing[-1].parent)
            for directory in reversed(missing):
                self._step_make_directory(directory)
                self._sync_parent(directory)
        except OSError as error:
            raise StorageError(path=path, cause=error, doing="make") from error

    def remove(self, path: Path) -> None:
        try:
            self._step_remove(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(path=path, cause=error, doing="remove") from error
        self._sync_parent(path)

    def read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise StorageError(path=path, cause=error, doing="read") from error

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def listing(self, path: Path) -> list[Path]:
        try:
            return sorted(path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(path=path, cause=error, doing="list") from error

    def _step_write(self, descriptor: int, data: bytes, path: Path) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]

    def _step_sync(self, descriptor: int, path: Path) -> None:
        os.fsync(descriptor)

    def _step_rename(self, temporary: Path, path: Path) -> None:
        temporary.replace(path)

    def _step_truncate(self, descriptor: int, size_bytes: int, path: Path) -> None:
        os.ftruncate(descriptor, size_bytes)

    def _step_make_directory(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def _step_remove(self, path: Path) -> None:
        path.unlink()

    def _sync_parent(self, path: Path) -> None:
        try:
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._step_sync(descriptor, path.parent)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Some file systems (network shares, Windows drives under WSL) cannot sync a directory and say so.
            if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
                return
            raise StorageError(path=path.parent, cause=error, doing="sync") from error

    def _forget(self, temporary: Path) -> None:
        try:
            temporary.unlink()
        except OSError:
            return


def temporary_path(path: Path) -> Path:
    """Where a file lies while it is being written: beside its place, hidden, with a telling suffix."""
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether a file is the leftover of a write that never finished."""
    return path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX)
