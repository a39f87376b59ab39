"""A file layer that dies, tears or fills up at a chosen step, so that every write of a run can be the last."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal

from harness.files import OsFileLayer

When = Literal["before", "after", "torn", "full"]


class Crash(BaseException):
    """The process is gone. Not an Exception: nothing that handles errors may handle this."""


class FaultyFileLayer(OsFileLayer):
    """The real file layer until its ``at``-th single step (a write, sync, rename, cut, removal, new directory).

    ``when`` says what happens there: the process dies "before" or "after" the step, or leaves it "torn" (a write
    reaches the disk in part; what cannot be torn dies before), or the disk is "full" for that step and all later writes
    until :attr:`is_full` is set to False. Once dead, every further step dies too, so that a tidy ``finally`` cannot
    cheat. With ``kills`` the process really ends as under SIGKILL. ``at=None`` only counts ``steps``, told in ``log``.
    """

    def __init__(self, at: int | None = None, when: When = "before", *, kills: bool = False) -> None:
        self.at, self.when, self.kills = at, when, kills
        self.steps = 0
        self.log: list[tuple[str, str]] = []
        self.is_dead = False
        self.is_full = False

    def _step_write(self, descriptor: int, data: bytes, path: Path) -> None:
        struck = self._begin("write", path)
        if (struck and self.when in ("torn", "full")) or self.is_full:
            super()._step_write(descriptor, data[: len(data) // 2], path)
            self._full_or_dead()
        super()._step_write(descriptor, data, path)
        self._end(struck)

    def _step_sync(self, descriptor: int, path: Path) -> None:
        # No power fails here, and the system remembers what a dead process wrote: counting the step is enough.
        self._end(self._begin("sync", path))

    def _step_rename(self, temporary: Path, path: Path) -> None:
        struck = self._begin("rename", path)
        super()._step_rename(temporary, path)
        self._end(struck)

    def _step_truncate(self, descriptor: int, size_bytes: int, path: Path) -> None:
        struck = self._begin("truncate", path)
        super()._step_truncate(descriptor, size_bytes, path)
        self._end(struck)

    def _step_make_directory(self, path: Path) -> None:
        struck = self._begin("make_directory", path)
        if self.is_full:
            self._full_or_dead()
        super()._step_make_directory(path)
        self._end(struck)

    def _step_remove(self, path: Path) -> None:
        struck = self._begin("remove", path)
        super()._step_remove(path)
        self._end(struck)

    def _forget(self, temporary: Path) -> None:
        if not self.is_dead:
            super()._forget(temporary)

    def _begin(self, kind: str, path: Path) -> bool:
        """Count a step; whether it is the chosen one."""
        if self.is_dead:
            raise Crash
        self.log.append((kind, path.name))
        struck = self.steps == self.at
        self.steps += 1
        if struck and self.when == "full" and kind in ("write", "make_directory"):
            self.is_full = True
        if struck and (self.when == "before" or (self.when == "torn" and kind != "write")):
            self._die()
        return struck

    def _end(self, struck: bool) -> None:
        if struck and self.when == "after":
            self._die()

    def _full_or_dead(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._die()

    def _die(self) -> None:
        if self.kills:
            os._exit(137)
        self.is_dead = True
        raise Crash
