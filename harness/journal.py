"""The append-only journal of a run: one synced JSON line an event, each line chained to the one before.

A line is ``{"seq":N,"at_unix_us":T,"body":{"event":...},"chain":"16 hex"}``. The chain is the head of the sha256 over
the chain of the line before and the line's own bytes, so that a flipped byte, an edited number, a swapped and a removed
line are all found. Bytes after the last newline were being written when the process died: they never happened, and
opening for writing cuts them off, which is the only truncation ever. Everything else odd is a CorruptRunError.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, TypeAdapter, ValidationError

from harness.clock import unix_now_us
from harness.errors import CorruptRunError, JournalError, StorageError
from harness.files import FileLayer
from harness.record import Record, Said, Sha256

BlockName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}$")]


FinishReason = Literal["converged", "rounds", "budget"]


class RunStarted(Record):
    """The first event of every journal; anchors the files that are written before it."""

    event: Literal["run_started"] = "run_started"
    run_id: str
    plan_sha256: Sha256
    manifest_sha256: Sha256
    jobs_sha256: Sha256
    job_count: NonNegativeInt


class RunResumed(Record):
    """The run was opened again to be continued."""

    event: Literal["run_resumed"] = "run_resumed"
    reason: Said = ""


class BlockStarted(Record):
    """A worker begins a block; ``attempt`` counts from 1 and grows, ``jobs`` are places in jobs.json."""

    event: Literal["block_started"] = "block_started"
    block: BlockName
    attempt: PositiveInt
    jobs: tuple[NonNegativeInt, ...]


class RoundRecorded(Record):
    """A raw file is complete on disk. Rounds count from 0 within a block and go on across its attempts."""

    event: Literal["round_recorded"] = "round_recorded"
    block: BlockName
    attempt: PositiveInt
    round: NonNegativeInt
    path: str
    sha256: Sha256
    jobs: tuple[NonNegativeInt, ...]
    rows: PositiveInt
    adopted: bool = False
    """Found complete but not journaled when the run was opened again."""


class FileRecorded(Record):
    """Something else that was measured (a profile, a log) is complete on disk."""

    event: Literal["file_recorded"] = "file_recorded"
    path: str
    sha256: Sha256
    what: Said


class JobFinished(Record):
    """A job has what it needs; ``reason`` says why it stopped."""

    event: Literal["job_finished"] = "job_finished"
    job_id: str
    rounds: NonNegativeInt
    reason: FinishReason


class JobFailed(Record):
    """A job could not be measured; ``error`` is the type's name."""

    event: Literal["job_failed"] = "job_failed"
    job_id: str
    attempt: PositiveInt
    error: Said
    message: Said


class AttemptAbandoned(Record):
    """A block's worker died or was given up; the rounds that it recorded stay."""

    event: Literal["attempt_abandoned"] = "attempt_abandoned"
    block: BlockName
    attempt: PositiveInt
    error: Said
    message: Said


class Note(Record):
    """Something that a reader of the run should know (drift, noise, a changed governor)."""

    event: Literal["note"] = "note"
    text: Said
    block: BlockName | None = None


class RunInterrupted(Record):
    """The user or the budget stopped the run; it is resumable."""

    event: Literal["run_interrupted"] = "run_interrupted"
    reason: Said


class RunFinished(Record):
    """Every job is finished or failed."""

    event: Literal["run_finished"] = "run_finished"
    finished: NonNegativeInt
    failed: NonNegativeInt


Event = (
    RunStarted
    | RunResumed
    | BlockStarted
    | RoundRecorded
    | FileRecorded
    | JobFinished
    | JobFailed
    | AttemptAbandoned
    | Note
    | RunInterrupted
    | RunFinished
)


class Entry(Record):
    """One line of the journal: an event, its number and when the host's clock says it was written."""

    seq: NonNegativeInt
    at_unix_us: NonNegativeInt
    body: Annotated[Event, Field(discriminator="event")]


@dataclass(frozen=True, slots=True)
class JournalState:
    """What the events come to.

    ``failed`` holds the last failure of each job that did not finish; ``failures`` counts them; ``attempts`` is the
    last attempt of each block; ``files`` maps every recorded path, raw rounds included, to its sha256.
    """

    started: RunStarted
    finished: Mapping[str, JobFinished]
    failed: Mapping[str, JobFailed]
    failures: Mapping[str, int]
    rounds: Mapping[str, tuple[RoundRecorded, ...]]
    attempts: Mapping[str, int]
    abandoned: tuple[AttemptAbandoned, ...]
    files: Mapping[str, str]
    is_finished: bool

    def rounds_of(self, block: str, attempt: int | None = None) -> tuple[RoundRecorded, ...]:
        """The rounds of a block, of one attempt where given; empty where there is none."""
        found = self.rounds.get(block, ())
        return found if attempt is None else tuple(item for item in found if item.attempt == attempt)


@dataclass(frozen=True, slots=True)
class JournalText:
    """A journal as read: its entries, how many bytes they fill, what torn bytes follow and the last chain."""

    entries: tuple[Entry, ...]
    size_bytes: int
    torn: bytes
    chain: str


class Journal:
    """A journal open for writing; who calls holds the run's lock."""

    def __init__(self, path: Path, text: JournalText, *, files: FileLayer, now_unix_us: Callable[[], int]) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self._path, self._files, self._now_unix_us = path, files, now_unix_us
        self._size_bytes, self._chain = text.size_bytes, text.chain
        self._entries = list(text.entries)
        self._fold = _fold(text.entries, path)
        self._is_broken = False

    @classmethod
    def create(cls, path: Path, first: RunStarted, *, files: FileLayer, now_unix_us: Callable[[], int] = unix_now_us) -> Journal:
        """A new journal with its first event, both or neither on disk: a journal is never empty."""
        entry = Entry(seq=0, at_unix_us=now_unix_us(), body=first)
        line, chain = _line(entry, "")
        files.write_atomic(path, line)
        text = JournalText(entries=(entry,), size_bytes=len(line), torn=b"", chain=chain)
        return cls(path, text, files=files, now_unix_us=now_unix_us)

    @classmethod
    def open(cls, path: Path, *, files: FileLayer, now_unix_us: Callable[[], int] = unix_now_us) -> Journal:
        """The journal at ``path`` with a torn tail cut off. Raises CorruptRunError, StorageError."""
        text = parse(files.read(path), path)
        journal = cls(path, text, files=files, now_unix_us=now_unix_us)
        if text.torn:
            files.truncate(path, text.size_bytes)
        return journal

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)

    def append(self, event: Event) -> Entry:
        """Write one event and sync it.

        Raises JournalError where the event cannot follow the others (nothing is written), StorageError where the disk
        refuses: then the event did not happen, and what was written of it is cut off again.
        """
        self.check(event)
        entry = Entry(seq=len(self._entries), at_unix_us=self._now_unix_us(), body=event)
        line, chain = _line(entry, self._chain)
        size_before_bytes = self._size_bytes
        try:
            self._files.append(self._path, line)
            self._chain, self._size_bytes = chain, size_before_bytes + len(line)
            self._entries.append(entry)
            self._fold.apply(event)
        except BaseException:
            # A full disk leaves a part of the line, and Ctrl-C can come between the disk and our memory of it.
            self._undo(size_before_bytes)
            raise
        return entry

    def check(self, event: Event) -> None:
        """Raises JournalError where :meth:`append` would; writes nothing."""
        problem = self._fold.problem(event)
        if problem is not None:
            raise JournalError(path=self._path, reason=problem)
        if self._is_broken:
            raise JournalError(path=self._path, reason="an earlier write failed half-way; open the run again")

    def state(self) -> JournalState:
        """What the events come to so far."""
        return self._fold.state()

    def _undo(self, size_bytes: int) -> None:
        self._is_broken = True
        try:
            self._files.truncate(self._path, size_bytes)
            text = parse(self._files.read(self._path), self._path)
        except StorageError:
            return
        self._size_bytes, self._chain = text.size_bytes, text.chain
        self._entries = list(text.entries)
        self._fold = _fold(text.entries, self._path)
        self._is_broken = False


def parse(data: bytes, path: Path) -> JournalText:
    """The entries of a journal's bytes; ``path`` is for the message. Raises CorruptRunError naming the line."""
    end = data.rfind(b"\n") + 1
    torn = data[end:]
    lines = data[:end].split(b"\n")[:-1]
    if not lines:
        raise CorruptRunError(path=path, line=1, reason="the journal holds no complete event")
    entries: list[Entry] = []
    chain = ""
    for number, line in enumerate(lines, start=1):
        entry, chain = _entry(line, chain, path, number)
        entries.append(entry)
    # What a dying process leaves is the beginning of a line. A whole line with something after it is an edit.
    if _LINE.match(torn[:-1]) is not None:
        raise CorruptRunError(path=path, line=len(lines) + 1, reason="its newline was overwritten")
    return JournalText(entries=tuple(entries), size_bytes=end, torn=torn, chain=chain)


def fold(entries: Iterable[Entry], path: Path) -> JournalState:
    """What entries come to. Raises CorruptRunError where one cannot follow the others."""
    return _fold(entries, path).state()


_LINE = re.compile(rb'(\{"seq":.*),"chain":"([0-9a-f]{16})"\}\Z', re.DOTALL)
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


def _line(entry: Entry, chain_before: str) -> tuple[bytes, str]:
    content = entry.model_dump_json().encode()[:-1]
    chain = _chain(chain_before, content)
    return content + f',"chain":"{chain}"}}\n'.encode(), chain


def _chain(before: str, content: bytes) -> str:
    return hashlib.sha256(before.encode() + b"\n" + content).hexdigest()[:16]


def _entry(line: bytes, chain_before: str, path: Path, number: int) -> tuple[Entry, str]:
    match = _LINE.match(line)
    if match is None:
        raise CorruptRunError(path=path, line=number, reason="not a journal line")
    content, found = match[1], match[2].decode()
    chain = _chain(chain_before, content)
    if chain != found:
        raise CorruptRunError(
            path=path, line=number, reason=f"expected chain {chain}, found {found}: this line or one before was changed"
        )
    try:
        entry = _ENTRY.validate_json(content + b"}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptRunError(path=path, line=number, reason=f"{where}: {first['msg']}") from error
    if entry.seq != number - 1:
        raise CorruptRunError(path=path, line=number, reason=f"expected event {number - 1}, found {entry.seq}")
    return entry, chain


class _Fold:
    """The state while it grows; says what may not follow before it is applied."""

    def __init__(self) -> None:
        self._started: RunStarted | None = None
        self._finished: dict[str, JobFinished] = {}
        self._failed: dict[str, JobFailed] = {}
        self._failures: dict[str, int] = {}
        self._rounds: dict[str, list[RoundRecorded]] = {}
        self._attempts: dict[str, int] = {}
        self._abandoned: list[AttemptAbandoned] = []
        self._files: dict[str, str] = {}
        self._running: dict[str, frozenset[int]] = {}
        self._is_finished = False

    def problem(self, event: Event) -> str | None:
        """Why ``event`` cannot follow, or None."""
        if isinstance(event, RunStarted):
            return None if self._started is None else "the run has started already"
        if self._started is None:
            return "the first event must be run_started"
        if self._is_finished and not isinstance(event, RunResumed):
            return "the run has finished; resume it first"
        match event:
            case BlockStarted():
                last = self._attempts.get(event.block, 0)
                if event.attempt <= last:
                    return f"block {event.block} is at attempt {last} already, not before attempt {event.attempt}"
            case RoundRecorded():
                return self._round_problem(event)
            case FileRecorded():
                if event.path in self._files:
                    return f"{event.path} is recorded already"
            case JobFinished() | JobFailed():
                if event.job_id in self._finished:
                    return f"job {event.job_id} is finished already"
            case AttemptAbandoned():
                if event.block not in self._running or event.attempt != self._attempts.get(event.block):
                    return f"attempt {event.attempt} of block {event.block} is not running"
            case RunFinished():
                counts = (len(self._finished), len(self._failed))
                if (event.finished, event.failed) != counts:
                    return f"{counts[0]} jobs finished and {counts[1]} failed, not {event.finished} and {event.failed}"
        return None

    def _round_problem(self, event: RoundRecorded) -> str | None:
        if event.block not in self._running or event.attempt != self._attempts.get(event.block):
            return f"attempt {event.attempt} of block {event.block} is not running"
        expected = len(self._rounds.get(event.block, ()))
        if event.round != expected:
            return f"round {expected} of block {event.block} is next, not {event.round}"
        strangers = sorted(set(event.jobs) - self._running[event.block])
        if strangers:
            return f"block {event.block} was not started with job {strangers[0]}"
        if event.path in self._files:
            return f"{event.path} is recorded already"
        return None

    def apply(self, event: Event) -> None:
        """Take an event in that has no problem."""
        match event:
            case RunStarted():
                self._started = event
            case RunResumed():
                self._is_finished = False
            case BlockStarted():
                self._attempts[event.block] = event.attempt
                self._running[event.block] = frozenset(event.jobs)
            case RoundRecorded():
                self._rounds.setdefault(event.block, []).append(event)
                self._files[event.path] = event.sha256
            case FileRecorded():
                self._files[event.path] = event.sha256
            case JobFinished():
                self._finished[event.job_id] = event
                self._failed.pop(event.job_id, None)
            case JobFailed():
                self._failed[event.job_id] = event
                self._failures[event.job_id] = self._failures.get(event.job_id, 0) + 1
            case AttemptAbandoned():
                self._abandoned.append(event)
                del self._running[event.block]
            case RunFinished():
                self._is_finished = True
            case Note() | RunInterrupted():
                pass

    def state(self) -> JournalState:
        """A copy that later events do not change."""
        assert self._started is not None
        return JournalState(
            started=self._started,
            finished=MappingProxyType(dict(self._finished)),
            failed=MappingProxyType(dict(self._failed)),
            failures=MappingProxyType(dict(self._failures)),
            rounds=MappingProxyType({block: tuple(found) for block, found in self._rounds.items()}),
            attempts=MappingProxyType(dict(self._attempts)),
            abandoned=tuple(self._abandoned),
            files=MappingProxyType(dict(self._files)),
            is_finished=self._is_finished,
        )


def _fold(entries: Iterable[Entry], path: Path) -> _Fold:
    folded = _Fold()
    for number, entry in enumerate(entries, start=1):
        problem = folded.problem(entry.body)
        if problem is not None:
            raise CorruptRunError(path=path, line=number, reason=problem)
        folded.apply(entry.body)
    return folded
