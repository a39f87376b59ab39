from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.errors import CorruptRunError, JournalError, StorageError
from harness.files import OsFileLayer
from harness.journal import (
    AttemptAbandoned,
    BlockStarted,
    Event,
    FileRecorded,
    JobFailed,
    JobFinished,
    Journal,
    Note,
    RoundRecorded,
    RunFinished,
    RunInterrupted,
    RunResumed,
    RunStarted,
    fold,
    parse,
)
from tests.faults import Crash, FaultyFileLayer, When

SHA = "0" * 64
STARTED = RunStarted(run_id="r", plan_sha256=SHA, manifest_sha256=SHA, jobs_sha256=SHA, job_count=2)
BLOCK = BlockStarted(block="b", attempt=1, jobs=(0, 1))
FINISHED = JobFinished(job_id="j", rounds=3, reason="converged")
PATH = Path("journal.jsonl")
WHEN: tuple[When, ...] = ("before", "torn")


def round_of(number: int, *, attempt: int = 1, block: str = "b") -> RoundRecorded:
    path = f"raw/{block}/{number:05d}.npy"
    return RoundRecorded(block=block, attempt=attempt, round=number, path=path, sha256=SHA, jobs=(0,), rows=1)


def journal_of(path: Path, *events: Event, files: OsFileLayer | None = None) -> Journal:
    journal = Journal.create(path, STARTED, files=files or FaultyFileLayer(), now_unix_us=lambda: 5)
    for event in events:
        journal.append(event)
    return journal


def journal_bytes(tmp_path: Path, *events: Event) -> bytes:
    journal_of(tmp_path / PATH, *events)
    return (tmp_path / PATH).read_bytes()


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    events: list[Event] = [
        RunResumed(reason="the user asked"),
        BLOCK,
        round_of(0),
        FileRecorded(path="attached/x", sha256=SHA, what="profile"),
        FINISHED,
        JobFailed(job_id="k", attempt=2, error="ModelRunError", message='line one\nline "two" \u2028 ü 🙂'),
        AttemptAbandoned(block="b", attempt=1, error="WorkerDiedError", message="SIGKILL"),
        Note(text="drift of 2 %", block="b"),
        RunInterrupted(reason="Ctrl-C"),
        RunFinished(finished=1, failed=1),
    ]
    data = journal_bytes(tmp_path, *events)
    text = parse(data, PATH)
    assert [entry.body for entry in text.entries] == [STARTED, *events]
    assert [entry.seq for entry in text.entries] == list(range(len(events) + 1))
    assert {entry.at_unix_us for entry in text.entries} == {5}
    assert text.torn == b""
    assert text.size_bytes == len(data)
    for line in data.decode().split("\n")[:-1]:
        assert set(json.loads(line)) == {"seq", "at_unix_us", "body", "chain"}


def test_state_folds_events(tmp_path: Path) -> None:
    failure = JobFailed(job_id="j", attempt=1, error="E", message="m")
    other = JobFailed(job_id="k", attempt=1, error="E", message="m")
    journal = journal_of(tmp_path / PATH, BLOCK, round_of(0), failure, other, other, round_of(1), FINISHED)
    state = journal.state()
    assert state.started == STARTED
    assert (dict(state.finished), dict(state.failed)) == ({"j": FINISHED}, {"k": other})
    assert dict(state.failures) == {"j": 1, "k": 2}
    assert state.rounds_of("b") == (round_of(0), round_of(1))
    assert state.rounds_of("absent") == ()
    assert dict(state.attempts) == {"b": 1}
    assert not state.is_finished
    assert state == fold(parse((tmp_path / PATH).read_bytes(), PATH).entries, PATH)
    journal.append(RunFinished(finished=1, failed=1))
    assert journal.state().is_finished
    assert not state.is_finished


@pytest.mark.parametrize(
    ("events", "refused", "why"),
    [
        ((), STARTED, "started already"),
        ((), round_of(0), "not running"),
        ((BLOCK,), BLOCK, "attempt 1 already"),
        ((BLOCK,), round_of(1), "round 0 of block b is next"),
        ((BLOCK, round_of(0)), round_of(0), "round 1 of block b is next"),
        ((BLOCK,), round_of(0, attempt=2), "attempt 2 of block b is not running"),
        ((BlockStarted(block="b", attempt=1, jobs=(1,)),), round_of(0), "not started with job 0"),
        ((BLOCK, AttemptAbandoned(block="b", attempt=1, error="E", message="")), round_of(0), "not running"),
        ((), AttemptAbandoned(block="b", attempt=1, error="E", message=""), "not running"),
        ((FINISHED,), FINISHED, "finished already"),
        ((FINISHED,), JobFailed(job_id="j", attempt=1, error="E", message=""), "finished already"),
        ((FINISHED,), RunFinished(finished=2, failed=0), "1 jobs finished and 0 failed"),
        ((RunFinished(finished=0, failed=0),), Note(text="late"), "resume it first"),
    ],
)
def test_what_cannot_follow_is_refused_and_not_written(
    tmp_path: Path, events: tuple[Event, ...], refused: Event, why: str
) -> None:
    journal = journal_of(tmp_path / PATH, *events)
    before = (tmp_path / PATH).read_bytes()
    with pytest.raises(JournalError, match=why):
        journal.append(refused)
    assert (tmp_path / PATH).read_bytes() == before


def test_a_torn_last_line_never_happened(tmp_path: Path) -> None:
    data = journal_bytes(tmp_path, BLOCK, FINISHED)
    whole = len(b"".join(data.splitlines(keepends=True)[:2]))
    for size in range(whole, len(data)):
        (tmp_path / PATH).write_bytes(data[:size])
        assert len(parse(data[:size], PATH).entries) == 2
        journal = Journal.open(tmp_path / PATH, files=FaultyFileLayer(), now_unix_us=lambda: 5)
        assert (tmp_path / PATH).read_bytes() == data[:whole]
        journal.append(FINISHED)
        assert (tmp_path / PATH).read_bytes() == data


def test_reading_does_not_cut_a_torn_line(tmp_path: Path) -> None:
    data = journal_bytes(tmp_path, BLOCK)[:-3]
    assert parse(data, PATH).torn == data[parse(data, PATH).size_bytes :] != b""


def test_a_journal_without_a_complete_event_is_corrupt(tmp_path: Path) -> None:
    first = journal_bytes(tmp_path)
    for data in (b"", first[:-1], b"\n", b"\0" * 4096):
        with pytest.raises(CorruptRunError, match="line 1"):
            parse(data, PATH)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_every_flipped_byte_is_found_with_its_line(tmp_path: Path, mask: int) -> None:
    data = journal_bytes(tmp_path, BLOCK, FINISHED)
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= mask
        with pytest.raises(CorruptRunError) as caught:
            parse(bytes(flipped), PATH)
        assert caught.value.line == data[:position].count(b"\n") + 1


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_journal_are_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(CorruptRunError):
        parse(data, PATH)


def test_a_line_of_another_kind_with_a_right_chain_is_corrupt(tmp_path: Path) -> None:
    first = journal_bytes(tmp_path)
    chain = json.loads(first)["chain"]
    for seq, body, told in (
        (1, '{"event":"run_vanished"}', "body"),
        (1, '{"event":"note","text":3}', "body"),
        (1, '{"event":"note","text":"a","colour":"red"}', "body"),
        (7, '{"event":"note","text":"a"}', "expected event 1, found 7"),
        (1, '{"event":"note","text":"a"', "Invalid JSON"),
    ):
        content = f'{{"seq":{seq},"at_unix_us":5,"body":{body}'.encode()
        digest = hashlib.sha256(chain.encode() + b"\n" + content).hexdigest()[:16]
        with pytest.raises(CorruptRunError, match="line 2") as caught:
            parse(first + content + f',"chain":"{digest}"}}\n'.encode(), PATH)
        assert told in caught.value.reason


def test_what_a_process_said_is_made_storable(tmp_path: Path) -> None:
    said = "caf\udce9 " + "x" * 10_000
    journal_of(tmp_path / PATH, JobFailed(job_id="j", attempt=1, error="E", message=said))
    entry = parse((tmp_path / PATH).read_bytes(), PATH).entries[-1].body
    assert isinstance(entry, JobFailed)
    assert entry.message.startswith("caf? xxx")
    assert entry.message.endswith("x")
    assert len(entry.message) <= 4_000


@pytest.mark.parametrize("block", ["", "../b", "a/b", ".hidden", "a\nb", "a" * 200])
def test_a_block_name_is_a_plain_file_name(block: str) -> None:
    with pytest.raises(ValidationError):
        BlockStarted(block=block, attempt=1, jobs=())


def test_a_full_disk_leaves_the_journal_as_it_was_and_usable(tmp_path: Path) -> None:
    files = FaultyFileLayer()
    journal = journal_of(tmp_path / PATH, BLOCK, files=files)
    before = (tmp_path / PATH).read_bytes()
    files.at, files.when = files.steps, "full"
    with pytest.raises(StorageError, match="the disk is full"):
        journal.append(FINISHED)
    assert (tmp_path / PATH).read_bytes() == before
    assert not journal.state().finished
    files.is_full = False
    journal.append(FINISHED)
    assert parse((tmp_path / PATH).read_bytes(), PATH).entries == journal.entries


class ImpatientFileLayer(OsFileLayer):
    """Ctrl-C comes when the line is on disk and nobody knows yet."""

    is_pressed = False

    def append(self, path: Path, data: bytes) -> None:
        super().append(path, data)
        if self.is_pressed:
            self.is_pressed = False
            raise KeyboardInterrupt


def test_an_interrupt_during_a_write_does_not_break_the_next(tmp_path: Path) -> None:
    files = ImpatientFileLayer()
    journal = journal_of(tmp_path / PATH, BLOCK, files=files)
    files.is_pressed = True
    with pytest.raises(KeyboardInterrupt):
        journal.append(FINISHED)
    journal.append(RunInterrupted(reason="Ctrl-C"))
    assert [entry.body.event for entry in parse((tmp_path / PATH).read_bytes(), PATH).entries] == [
        "run_started",
        "block_started",
        "run_interrupted",
    ]


def test_after_a_write_that_cannot_be_undone_nothing_more_is_taken(tmp_path: Path) -> None:
    class Broken(OsFileLayer):
        def append(self, path: Path, data: bytes) -> None:
            super().append(path, data[:9])
            raise StorageError(path=path, cause=OSError(5, "I/O error"))

        def truncate(self, path: Path, size_bytes: int) -> None:
            raise StorageError(path=path, cause=OSError(5, "I/O error"))

    journal = journal_of(tmp_path / PATH, files=Broken())
    with pytest.raises(StorageError):
        journal.append(BLOCK)
    with pytest.raises(JournalError, match="open the run again"):
        journal.append(BLOCK)
    Journal.open(tmp_path / PATH, files=OsFileLayer()).append(BLOCK)


def test_a_journal_is_born_with_its_first_event_or_not_at_all(tmp_path: Path) -> None:
    for step in range(4):
        for when in WHEN:
            path = tmp_path / f"{step}{when}"
            with pytest.raises(Crash):
                Journal.create(path, STARTED, files=FaultyFileLayer(step, when))
            assert not path.exists() or len(parse(path.read_bytes(), path).entries) == 1
