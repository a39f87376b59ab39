"""A run directory: made at once, written by one process at a time, readable at every moment.

::

    plan.toml       the plan, verbatim          raw/BLOCK/ROUND.npy   what was measured, never rewritten
    manifest.json   who, where, with what       attached/NAME         other recordings (profiles, logs)
    jobs.json       every job of the run        derived/NAME          results that can be thrown away
    journal.jsonl   what happened, in order     CHECKSUMS             sha256sum of it all, once finished
    LOCK            held while being written

The journal is written last when a run is made, so a directory without one is half-made and holds no measurement. A raw
file comes under its name complete (rename) and is then journaled: between the two it is in flight, and opening the run
again adopts it. A process that is forked while a run is open inherits the lock; one that is spawned does not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from pydantic import JsonValue, ValidationError

from harness import journal as journals
from harness import raw as raws
from harness.clock import unix_now_us
from harness.errors import (
    CorruptRunError,
    HalfMadeRunError,
    JournalError,
    NotARunError,
    ResumeMismatchError,
    RunClosedError,
    RunExistsError,
    StorageError,
)
from harness.files import FileLayer, OsFileLayer
from harness.journal import BlockStarted, Entry, Event, FileRecorded, Journal, JournalState, RoundRecorded
from harness.layout import (
    ATTACHED,
    CHECKSUMS,
    DERIVED,
    JOBS,
    JOURNAL,
    LOCK,
    MANIFEST,
    PLAN,
    RAW,
    Condition,
    checksums,
    condition,
    raw_path,
    recordings,
    stranger,
    sweep,
)
from harness.lock import RunLock
from harness.provenance import Manifest

__all__ = [
    "Condition",
    "JobRecord",
    "RunReader",
    "RunWriter",
    "condition",
    "create",
    "open_run",
    "plan_sha256",
    "raw_path",
    "read_run",
]

JobRecord = Mapping[str, JsonValue]
"""A job as stored: whatever its writer needs, with a unique string under "job_id"."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,120}\Z")


def plan_sha256(plan_text: str) -> str:
    """The hash that ties a run to its plan."""
    return _sha256(plan_text.encode())


def create(
    path: Path,
    *,
    plan_text: str,
    manifest: Manifest,
    jobs: Sequence[JobRecord],
    files: FileLayer | None = None,
    now_unix_us: Callable[[], int] = unix_now_us,
) -> RunWriter:
    """Make a run directory and open it for writing; the caller closes it.

    A half-made directory is completed. Raises RunExistsError, RunLockedError, StorageError; ValueError where the
    manifest is of another plan or the job ids are not unique.
    """
    files = files or OsFileLayer()
    if manifest.plan_sha256 != plan_sha256(plan_text):
        raise ValueError("the manifest belongs to another plan")
    encoded_jobs = _encode_jobs(jobs)
    encoded_manifest = manifest.model_dump_json(indent=1).encode() + b"\n"
    _refuse_existing(path)
    files.make_directory(path)
    lock = RunLock(path / LOCK)
    try:
        _refuse_existing(path)  # again: another process may have made it before we had the lock
        files.write_atomic(path / PLAN, plan_text.encode(), replace=True)
        files.write_atomic(path / MANIFEST, encoded_manifest, replace=True)
        files.write_atomic(path / JOBS, encoded_jobs, replace=True)
        for directory in (RAW, ATTACHED, DERIVED):
            files.make_directory(path / directory)
        sweep(path, files)
        first = journals.RunStarted(
            run_id=manifest.run_id,
            plan_sha256=manifest.plan_sha256,
            manifest_sha256=_sha256(encoded_manifest),
            jobs_sha256=_sha256(encoded_jobs),
            job_count=len(jobs),
        )
        journal = Journal.create(path / JOURNAL, first, files=files, now_unix_us=now_unix_us)
        return RunWriter(path, journal=journal, lock=lock, files=files)
    except BaseException:
        lock.release()
        raise


def open_run(
    path: Path,
    *,
    plan_text: str | None = None,
    jobs: Sequence[JobRecord] | None = None,
    files: FileLayer | None = None,
    now_unix_us: Callable[[], int] = unix_now_us,
) -> RunWriter:
    """Open a run to go on writing; the caller closes it.

    Cuts a torn journal tail, removes leftovers of unfinished writes and journals a raw file that was in flight. It
    journals no ``run_resumed``: that is the caller's to say. Raises NotARunError, HalfMadeRunError, RunLockedError,
    ResumeMismatchError (where ``plan_text`` or ``jobs`` are given and differ), CorruptRunError, StorageError.
    """
    files = files or OsFileLayer()
    _require_run(path)
    lock = RunLock(path / LOCK)
    try:
        started = journals.parse(files.read(path / JOURNAL), path / JOURNAL).entries[0].body
        if isinstance(started, journals.RunStarted):
            if plan_text is not None:
                _require_same(path, "plan", plan_sha256(plan_text), started.plan_sha256)
            if jobs is not None:
                _require_same(path, "set of jobs", _sha256(_encode_jobs(jobs)), started.jobs_sha256)
        journal = Journal.open(path / JOURNAL, files=files, now_unix_us=now_unix_us)
        run = RunWriter(path, journal=journal, lock=lock, files=files)
        sweep(path, files)
        if not run.is_closed:
            run.adopt_rounds_in_flight()
        return run
    except BaseException:
        lock.release()
        raise


def read_run(path: Path, *, files: FileLayer | None = None) -> RunReader:
    """Read a run without touching it, be it live, killed or finished. Raises as :func:`open_run`, but for the lock."""
    files = files or OsFileLayer()
    _require_run(path)
    text = journals.parse(files.read(path / JOURNAL), path / JOURNAL)
    return RunReader(path, entries=text.entries, files=files)


class RunReader:
    """A run's contents; every recorded file is checked against the journal when it is read."""

    def __init__(self, path: Path, *, entries: Iterable[Entry], files: FileLayer) -> None:
        """Use :func:`read_run`. Raises CorruptRunError where plan, manifest and jobs are not the journal's."""
        self.path = path
        self._files = files
        self._read_entries = tuple(entries)
        self._read_state = journals.fold(self._read_entries, path / JOURNAL)
        started = self._read_state.started
        plan = self._anchored(PLAN, started.plan_sha256)
        try:
            self.plan_text = plan.decode()
            self.manifest = Manifest.model_validate_json(self._anchored(MANIFEST, started.manifest_sha256))
        except UnicodeDecodeError as error:
            raise CorruptRunError(path=path / PLAN, reason="not UTF-8") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CorruptRunError(path=path / MANIFEST, reason=f"{where}: {first['msg']}") from error
        self.jobs = _decode_jobs(self._anchored(JOBS, started.jobs_sha256), path / JOBS)
        self.job_ids = tuple(str(job["job_id"]) for job in self.jobs)
        self.job_number: Mapping[str, int] = MappingProxyType({name: at for at, name in enumerate(self.job_ids)})
        if len(self.jobs) != started.job_count:
            raise CorruptRunError(path=path / JOBS, reason=f"expected {started.job_count} jobs, found {len(self.jobs)}")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The journal's entries, oldest first."""
        return self._read_entries

    @property
    def is_closed(self) -> bool:
        """Whether the run is finished and has its checksums."""
        return self._files.exists(self.path / CHECKSUMS)

    def state(self) -> JournalState:
        """What the journal comes to."""
        return self._read_state

    def raw(self, recorded: RoundRecorded) -> raws.RawRows:
        """The rows of a journaled round. Raises CorruptRunError where they are not what was written."""
        rows = raws.decode(self._recorded(recorded.path, recorded.sha256), self.path / recorded.path)
        if raws.job_numbers(rows) != recorded.jobs or rows.size != recorded.rows:
            raise CorruptRunError(path=self.path / recorded.path, reason="its rows are not of the journaled jobs")
        return rows

    def rounds(self, block: str | None = None) -> Iterator[tuple[RoundRecorded, raws.RawRows]]:
        """Every journaled round with its rows, in the order of measuring, of one block where given."""
        for entry in self.entries:
            if isinstance(entry.body, RoundRecorded) and block in (None, entry.body.block):
                yield entry.body, self.raw(entry.body)

    def file(self, path: str) -> bytes:
        """The bytes of a recorded file by its path in the run. Raises KeyError, CorruptRunError."""
        return self._recorded(path, self.state().files[path])

    def derived(self, name: str) -> bytes:
        """The bytes of a derived file. Raises StorageError where it is not there."""
        return self._files.read(self.path / DERIVED / name)

    def put_derived(self, name: str, data: bytes) -> Path:
        """Write or replace a derived file; allowed on a finished run and without the lock."""
        if _FILE_NAME.match(name) is None:
            raise ValueError(f"{name!r} is not a plain file name")
        self._files.make_directory(self.path / DERIVED)
        self._files.write_atomic(self.path / DERIVED / name, data, replace=True)
        return self.path / DERIVED / name

    def _anchored(self, name: str, sha256: str) -> bytes:
        if not self._files.exists(self.path / name):
            raise CorruptRunError(path=self.path / name, reason="it is missing")
        return self._recorded(name, sha256)

    def _recorded(self, path: str, sha256: str) -> bytes:
        if not self._files.exists(self.path / path):
            raise CorruptRunError(path=self.path / path, reason="it is journaled but missing")
        data = self._files.read(self.path / path)
        found = _sha256(data)
        if found != sha256:
            raise CorruptRunError(path=self.path / path, reason=f"expected sha256 {sha256[:12]}, found {found[:12]}")
        return data


class RunWriter(RunReader):
    """A run open for writing by this process alone, until :meth:`close`."""

    def __init__(self, path: Path, *, journal: Journal, lock: RunLock, files: FileLayer) -> None:
        """Use :func:`create` or :func:`open_run`."""
        self._journal, self._lock = journal, lock
        super().__init__(path, entries=journal.entries, files=files)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self._journal.entries

    def state(self) -> JournalState:
        return self._journal.state()

    def append(self, event: Event) -> Entry:
        """Journal an event. Raises JournalError where it cannot follow or names an unknown job, RunClosedError."""
        self._require_open()
        if isinstance(event, journals.JobFinished | journals.JobFailed) and event.job_id not in self.job_number:
            raise JournalError(path=self.path / JOURNAL, reason=f"{event.job_id} is no job of this run")
        if isinstance(event, BlockStarted) and any(number >= len(self.jobs) for number in event.jobs):
            raise JournalError(path=self.path / JOURNAL, reason=f"there are only {len(self.jobs)} jobs")
        return self._journal.append(event)

    def start_block(self, block: str, jobs: Iterable[int]) -> BlockStarted:
        """Journal that a block's next attempt begins with the jobs at these places of jobs.json."""
        attempt = self.state().attempts.get(block, 0) + 1
        event = BlockStarted(block=block, attempt=attempt, jobs=tuple(sorted(set(jobs))))
        self.append(event)
        return event

    def record_round(self, block: str, rows: raws.RawRows) -> RoundRecorded:
        """Put a round of the block's running attempt on disk and journal it.

        Raises StorageError (the round did not happen and leaves nothing behind), JournalError where the block is not
        running, ValueError where the rows are not sane.
        """
        self._require_open()
        data = raws.encode(rows)
        event = self._round(block, data, raws.job_numbers(rows), rows.size)
        if self._files.exists(self.path / event.path):
            self.adopt_rounds_in_flight()
            event = self._round(block, data, event.jobs, event.rows)
        self._journal.check(event)
        try:
            self._files.make_directory(self.path / RAW / block)
            self._files.write_atomic(self.path / event.path, data)
            self._journal.append(event)
        except StorageError:
            self._files.remove(self.path / event.path)
            raise
        return event

    def record_file(self, name: str, data: bytes, *, what: str) -> FileRecorded:
        """Put another recording under attached/ and journal it; never overwrites one that is journaled."""
        self._require_open()
        if _FILE_NAME.match(name) is None:
            raise ValueError(f"{name!r} is not a plain file name")
        event = FileRecorded(path=f"{ATTACHED}/{name}", sha256=_sha256(data), what=what)
        self._journal.check(event)
        self._files.make_directory(self.path / ATTACHED)
        # What lies there and is not journaled was cut short and never happened.
        self._files.write_atomic(self.path / event.path, data, replace=True)
        self._journal.append(event)
        return event

    def adopt_rounds_in_flight(self) -> None:
        """Journal raw files that are complete but were not journaled yet, and drop such attached files.

        Raises CorruptRunError where a raw file lies where none can have been in flight.
        """
        state = self.state()
        for path in recordings(self.path, RAW, self._files):
            relative = path.relative_to(self.path).as_posix()
            if relative in state.files:
                continue
            block = path.parent.name
            if block not in state.attempts or relative != raw_path(block, len(state.rounds.get(block, ()))):
                raise CorruptRunError(path=path, reason="it is not journaled and is not the next round of its block")
            data = self._files.read(path)
            rows = raws.decode(data, path)
            event = self._round(block, data, raws.job_numbers(rows), rows.size).model_copy(update={"adopted": True})
            try:
                self._journal.append(event)
            except JournalError as error:
                raise CorruptRunError(path=path, reason=f"it is not journaled and cannot be: {error.reason}") from error
            state = self.state()
        for path in recordings(self.path, ATTACHED, self._files):
            if path.relative_to(self.path).as_posix() not in state.files:
                self._files.remove(path)

    def finish(self) -> None:
        """Journal ``run_finished`` and write the checksums; the run then takes nothing more.

        Raises JournalError where a job is neither finished nor failed.
        """
        if self.is_closed:
            return
        state = self.state()
        left = [name for name in self.job_ids if name not in state.finished and name not in state.failed]
        if left:
            raise JournalError(path=self.path / JOURNAL, reason=f"{len(left)} jobs are left, for example {left[0]}")
        if not state.is_finished:
            self.append(journals.RunFinished(finished=len(state.finished), failed=len(state.failed)))
        self._files.write_atomic(self.path / CHECKSUMS, checksums(self.path, self._files))

    def reopen(self, reason: str) -> None:
        """Take the checksums off a finished run and journal why, to try its failed jobs again."""
        self._lock.require_held()
        self._files.remove(self.path / CHECKSUMS)
        self.append(journals.RunResumed(reason=reason))

    def close(self) -> None:
        """Release the lock; writes nothing, twice is harmless."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _round(self, block: str, data: bytes, jobs: tuple[int, ...], rows: int) -> RoundRecorded:
        state = self.state()
        number = len(state.rounds.get(block, ()))
        return RoundRecorded(
            block=block,
            attempt=max(1, state.attempts.get(block, 0)),
            round=number,
            path=raw_path(block, number),
            sha256=_sha256(data),
            jobs=jobs,
            rows=rows,
        )

    def _require_open(self) -> None:
        self._lock.require_held()
        if self.is_closed:
            raise RunClosedError(path=self.path)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encode_jobs(jobs: Sequence[JobRecord]) -> bytes:
    names = [job.get("job_id") for job in jobs]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise ValueError("every job needs a job_id of its own")
    lines = [json.dumps(dict(job), sort_keys=True, ensure_ascii=False, allow_nan=False) for job in jobs]
    return ('{"format": "run-jobs", "version": 1, "jobs": [\n' + ",\n".join(lines) + "\n]}\n").encode()


def _decode_jobs(data: bytes, path: Path) -> tuple[JobRecord, ...]:
    try:
        document = json.loads(data)
        jobs: list[JobRecord] = document["jobs"]
        if document["format"] != "run-jobs" or document["version"] != 1 or _encode_jobs(jobs) != data:
            raise ValueError("not a run's jobs, version 1")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptRunError(path=path, reason=f"not a list of jobs ({error})") from error
    return tuple(jobs)


def _refuse_existing(path: Path) -> None:
    found = condition(path)
    if found in ("run", "finished"):
        raise RunExistsError(path=path, is_run=True)
    if found == "foreign":
        example = stranger(path) if path.is_dir() else None
        raise RunExistsError(path=path, is_run=False, found=example or "")


def _require_run(path: Path) -> None:
    found = condition(path)
    if found == "half-made":
        raise HalfMadeRunError(path=path)
    if found not in ("run", "finished"):
        raise NotARunError(path=path)


def _require_same(path: Path, what: str, expected: str, found: str) -> None:
    if expected != found:
        raise ResumeMismatchError(path=path, what=what, expected=expected, found=found)
