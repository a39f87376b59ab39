from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

from harness import errors
from harness.errors import ExitCode, HarnessError

PATH = Path("runs/a")
ALL: list[tuple[HarnessError, ExitCode]] = [
    (errors.PlanError(problems=[("grid.kernel", "must be odd"), ("", "empty")]), ExitCode.BAD_REQUEST),
    (errors.RunLockedError(path=PATH, pid=7), ExitCode.BAD_REQUEST),
    (errors.RunLockedError(path=PATH, pid=None), ExitCode.BAD_REQUEST),
    (errors.RunExistsError(path=PATH, is_run=True), ExitCode.BAD_REQUEST),
    (errors.RunExistsError(path=PATH, is_run=False, found="thesis.tex"), ExitCode.BAD_REQUEST),
    (errors.NotARunError(path=PATH), ExitCode.BAD_REQUEST),
    (errors.HalfMadeRunError(path=PATH), ExitCode.BAD_REQUEST),
    (errors.RunClosedError(path=PATH), ExitCode.BAD_REQUEST),
    (errors.ResumeMismatchError(path=PATH, what="plan", expected="a" * 64, found="b" * 64), ExitCode.BAD_REQUEST),
    (errors.CorruptRunError(path=PATH, reason="it is missing"), ExitCode.BAD_REQUEST),
    (errors.CorruptRunError(path=PATH, reason="not a journal line", line=3), ExitCode.BAD_REQUEST),
    (errors.JournalError(path=PATH, reason="the run has started already"), ExitCode.BAD_REQUEST),
    (errors.WorkerDiedError(returncode=-9, last_lines=["Killed"]), ExitCode.SOME_JOBS_FAILED),
    (errors.WorkerDiedError(returncode=None), ExitCode.SOME_JOBS_FAILED),
    (errors.ModelRunError(model="a.tflite", reason="no such kernel"), ExitCode.SOME_JOBS_FAILED),
    (errors.JobTimeoutError(job_id="j", limit_s=2.5), ExitCode.SOME_JOBS_FAILED),
    (errors.StorageError(path=PATH, cause=OSError(errno.ENOSPC, "x")), ExitCode.SOME_JOBS_FAILED),
    (errors.InterruptedRunError(path=PATH), ExitCode.INTERRUPTED),
    (errors.DeviceError("no such core"), ExitCode.NO_SUCH_HARDWARE),
]


@pytest.mark.parametrize(("error", "exit_code"), ALL, ids=lambda value: type(value).__name__)
def test_every_error_is_one_sentence_with_an_exit_code(error: HarnessError, exit_code: ExitCode) -> None:
    told = str(error)
    assert told
    assert "\n" not in told
    assert not told.endswith(".")
    assert error.exit_code is exit_code


def test_every_error_of_the_tree_is_in_its_docstring() -> None:
    tree = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, HarnessError):
            assert name in tree


def test_a_plan_tells_all_its_problems_at_once() -> None:
    told = str(errors.PlanError(problems=[("grid.kernel", "must be odd"), ("n", "must rise")], source="p.toml"))
    assert told == "p.toml has 2 problems: grid.kernel: must be odd; n: must rise"


@pytest.mark.parametrize(
    ("returncode", "how"), [(-9, "SIGKILL"), (-200, "signal 200"), (3, "exited with 3"), (None, "without telling")]
)
def test_a_dead_worker_tells_how_it_ended(returncode: int | None, how: str) -> None:
    assert how in str(errors.WorkerDiedError(returncode=returncode))


def test_what_a_process_printed_does_not_break_the_sentence() -> None:
    error = errors.ModelRunError(model="a.tflite", reason="Traceback:\n  File x\nValueError: no")
    assert "\n" not in str(error)
    assert error.reason.endswith("ValueError: no")


def test_a_full_disk_is_told_apart_from_a_forbidden_one() -> None:
    assert errors.StorageError(path=PATH, cause=OSError(errno.ENOSPC, "x")).is_full
    forbidden = errors.StorageError(path=PATH, cause=PermissionError(errno.EACCES, "Permission denied"))
    assert not forbidden.is_full
    assert str(forbidden) == f"cannot write {PATH}: Permission denied"


@pytest.mark.parametrize("error", [item for item, _ in ALL], ids=lambda value: type(value).__name__)
def test_errors_cross_a_process_boundary(error: HarnessError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error)
    assert {name: str(value) for name, value in vars(back).items()} == {name: str(value) for name, value in vars(error).items()}
