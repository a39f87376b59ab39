"""What can go wrong in the harness, as one tree; facts are attributes and the message is one sentence.

::

    HarnessError                     exit code 1
    +-- PlanError                    2   everything wrong with a plan at once, each with its path
    +-- RunError                     2   a run directory cannot be used as asked
    |   +-- RunLockedError               another process is writing to it
    |   +-- NotARunError                 there is no run
    |   +-- RunExistsError               there is a run (or something else) already
    |   +-- HalfMadeRunError             its creation was cut short; creating it again repairs it
    |   +-- RunClosedError               it has checksums already; nothing may be added
    |   +-- ResumeMismatchError          it was made from another plan or other jobs
    |   +-- CorruptRunError              something in it is not what was written
    |   +-- JournalError                 an event was offered that the journal cannot hold
    +-- DeviceError                  3   the device cannot do what is asked
    |   +-- WorkerDiedError          1   the measuring process ended by itself
    |   +-- ModelRunError            1   the runtime refused one model
    |   +-- JobTimeoutError          1   one job took longer than it may
    +-- StorageError                 1   the file system refused (full disk, no permission), with the path
    +-- InterruptedRunError          130 stopped by the user; what was measured is on disk and resumable

Commands catch :class:`HarnessError`, print its sentence and exit with :attr:`HarnessError.exit_code`.
Only the runner catches a job's :class:`DeviceError`: it journals the attempt and goes on.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import ClassVar


class ExitCode(IntEnum):
    """What a command's exit status says."""

    DONE = 0
    SOME_JOBS_FAILED = 1
    BAD_REQUEST = 2
    NO_SUCH_HARDWARE = 3
    INTERRUPTED = 130


class HarnessError(Exception):
    """Root of everything the harness raises on purpose."""

    exit_code: ClassVar[ExitCode] = ExitCode.SOME_JOBS_FAILED

    def __init__(self, message: str) -> None:
        # What a process printed may be part of it; the attributes keep that as it was.
        super().__init__(" ".join(line.strip() for line in message.splitlines()))

    def __reduce__(self) -> tuple[Callable[..., HarnessError], tuple[object, ...]]:
        # The constructors take facts by name, which pickle alone cannot give back to them.
        return _rebuilt, (type(self), self.args, self.__dict__)


class PlanError(HarnessError):
    """A plan asks for something that cannot be; ``problems`` holds (path in the plan, what is wrong)."""

    exit_code = ExitCode.BAD_REQUEST

    def __init__(self, *, problems: Sequence[tuple[str, str]], source: str = "the plan") -> None:
        self.problems = tuple(problems)
        self.source = source
        told = "; ".join(f"{path}: {what}" if path else what for path, what in self.problems)
        number = len(self.problems)
        super().__init__(f"{source} has {number} problem{'' if number == 1 else 's'}: {told}")


class RunError(HarnessError):
    """A run directory cannot be used as asked."""

    exit_code = ExitCode.BAD_REQUEST


class RunLockedError(RunError):
    """Another process holds the run; ``pid`` is None where the lock does not tell."""

    def __init__(self, *, path: Path, pid: int | None) -> None:
        self.path, self.pid = path, pid
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(f"{path} is being written by {holder}; wait for it or choose another directory")


class NotARunError(RunError):
    """There is no run where one was expected."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        found = "holds no journal" if path.is_dir() else "is not a directory" if path.exists() else "does not exist"
        super().__init__(f"{path} is not a run directory: it {found}")


class RunExistsError(RunError):
    """A new run was asked for where something is already; ``is_run`` says whether it is a run."""

    def __init__(self, *, path: Path, is_run: bool, found: str = "") -> None:
        self.path, self.is_run, self.found = path, is_run, found
        if is_run:
            super().__init__(f"{path} already holds a run; resume it or choose another directory")
        else:
            what = f" (for example {found})" if found else ""
            super().__init__(f"{path} holds files that are not a run{what}; choose an empty or new directory")


class HalfMadeRunError(RunError):
    """A directory whose creation was cut short: nothing was measured in it yet."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} was never finished being created and holds no measurement; start it again")


class RunClosedError(RunError):
    """Something was to be added to a run that is finished and has its checksums."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is finished and has its checksums; nothing may be added to it")


class ResumeMismatchError(RunError):
    """The run was made from something else than what it is to be resumed with.

    ``what`` names it ("plan", "jobs"), ``expected`` is the hash of what was given and ``found`` the run's.
    """

    def __init__(self, *, path: Path, what: str, expected: str, found: str) -> None:
        self.path, self.what, self.expected, self.found = path, what, expected, found
        super().__init__(
            f"{path} was made from another {what}: expected {expected[:12]}, found {found[:12]};"
            " resume with the original or choose a new directory"
        )


class CorruptRunError(RunError):
    """A file of a run is not what was written; ``line`` counts from 1 where a line is meant."""

    def __init__(self, *, path: Path, reason: str, line: int | None = None) -> None:
        self.path, self.reason, self.line = path, reason, line
        place = f"{path}, line {line}" if line is not None else f"{path}"
        super().__init__(f"{place}: {reason}")


class JournalError(RunError):
    """An event was offered that cannot follow what the journal holds."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} cannot take this event: {reason}")


class DeviceError(HarnessError):
    """The device cannot do what is asked."""

    exit_code = ExitCode.NO_SUCH_HARDWARE


class WorkerDiedError(DeviceError):
    """The measuring process ended by itself.

    ``returncode`` is as :mod:`subprocess` gives it: negative is the signal that killed it, None where unknown;
    ``last_lines`` is the end of what it printed.
    """

    exit_code = ExitCode.SOME_JOBS_FAILED

    def __init__(self, *, returncode: int | None, last_lines: Sequence[str] = ()) -> None:
        self.returncode = returncode
        self.signal_name = _signal_name(returncode)
        self.last_lines = tuple(last_lines)
        if self.signal_name is not None:
            how = f"was killed by {self.signal_name}"
        elif returncode is None:
            how = "ended without telling why"
        else:
            how = f"exited with {returncode}"
        said = f"; its last words: {self.last_lines[-1]}" if self.last_lines else ""
        super().__init__(f"the measuring process {how}{said}")


class ModelRunError(DeviceError):
    """The runtime refused or failed to run one model."""

    exit_code = ExitCode.SOME_JOBS_FAILED

    def __init__(self, *, model: str, reason: str) -> None:
        self.model, self.reason = model, reason
        super().__init__(f"{model} cannot run: {reason}")


class JobTimeoutError(DeviceError):
    """One job took longer than it may."""

    exit_code = ExitCode.SOME_JOBS_FAILED

    def __init__(self, *, job_id: str, limit_s: float) -> None:
        self.job_id, self.limit_s = job_id, limit_s
        super().__init__(f"job {job_id} took longer than {limit_s:g} s")


class StorageError(HarnessError):
    """The file system refused; the OSError is the ``__cause__``."""

    def __init__(self, *, path: Path, cause: OSError, doing: str = "write") -> None:
        self.path, self.doing = path, doing
        self.errno = cause.errno
        self.is_full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if self.is_full else (cause.strerror or str(cause) or type(cause).__name__)
        super().__init__(f"cannot {doing} {path}: {reason}")


class InterruptedRunError(HarnessError):
    """The user stopped the run; what was measured is on disk."""

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, *, path: Path, reason: str = "interrupted") -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} was stopped ({reason}) and can be resumed")


def _rebuilt(kind: type[HarnessError], args: tuple[object, ...], facts: dict[str, object]) -> HarnessError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


def _signal_name(returncode: int | None) -> str | None:
    if returncode is None or returncode >= 0:
        return None
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def storage_error(path: Path | str | os.PathLike[str], cause: OSError, doing: str = "write") -> StorageError:
    """The StorageError for an OSError met while ``doing`` something to ``path``; raise it ``from`` the cause."""
    return StorageError(path=Path(path), cause=cause, doing=doing)
