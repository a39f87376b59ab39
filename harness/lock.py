"""The lock that keeps two processes from writing to one run."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from harness.errors import RunClosedError, RunLockedError, storage_error


class RunLock:
    """An advisory lock that the system takes back when its holder dies; the file tells who holds it."""

    def __init__(self, path: Path) -> None:
        """Take the lock of the file at ``path``, made where missing. Raises RunLockedError, StorageError."""
        self._path = path
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(path, error, doing="lock") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            pid = self._holder()
            self._drop()
            raise RunLockedError(path=path.parent, pid=pid) from error
        except OSError as error:
            self._drop()
            raise storage_error(path, error, doing="lock") from error

    def require_held(self) -> None:
        """Raises RunClosedError where the lock was released."""
        if self._descriptor is None:
            raise RunClosedError(path=self._path.parent)

    def release(self) -> None:
        """Let go; twice is harmless."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # who held it is only for people
                os.ftruncate(self._descriptor, 0)
            self._drop()

    def _holder(self) -> int | None:
        assert self._descriptor is not None
        text = os.pread(self._descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else None

    def _drop(self) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None
