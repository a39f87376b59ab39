from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import (
    CorruptRunError,
    HalfMadeRunError,
    JournalError,
    NotARunError,
    ResumeMismatchError,
    RunClosedError,
    RunExistsError,
    RunLockedError,
    StorageError,
)
from harness.integrity import check_integrity
from harness.journal import (
    AttemptAbandoned,
    BlockStarted,
    Event,
    FileRecorded,
    JobFailed,
    JobFinished,
    Journal,
    RoundRecorded,
    RunStarted,
)
from harness.layout import CHECKSUMS, JOURNAL
from harness.rundir import condition, create, open_run, read_run
from tests.faults import Crash, FaultyFileLayer, When
from tests.harness.scripted_run import (
    BLOCKS,
    DEVICE,
    JOBS,
    MANIFEST,
    PLAN_TEXT,
    ROUNDS,
    drive,
    make,
    outcome,
    recordings,
    rows_of,
)

WHOLE_RUNS = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    drive(path)
    return path


def steps_of(tmp_path: Path) -> list[tuple[str, str]]:
    files = FaultyFileLayer()
    drive(tmp_path / "counted", files)
    return files.log


def errors_in(path: Path) -> list[str]:
    return [str(finding) for finding in check_integrity(path) if finding.is_error]


# Whole runs, unbroken


def test_an_unbroken_run_is_whole_and_reads_back(unbroken: Path) -> None:
    run = read_run(unbroken)
    assert check_integrity(unbroken) == []
    assert condition(unbroken) == "finished"
    assert (run.plan_text, run.manifest, run.jobs) == (PLAN_TEXT, MANIFEST, JOBS)
    assert run.manifest.device == DEVICE
    assert [(event.block, event.round) for event, _ in run.rounds()] == [(b, r) for b in BLOCKS for r in range(ROUNDS)]
    for event, rows in run.rounds("second"):
        assert rows.tolist() == rows_of("second", event.round).tolist()
    assert run.file("attached/profile.json") == b'{"a": 1}'
    assert set(run.state().finished) == {"a1", "a2"}
    assert set(run.state().failed) == {"b1"}


def test_checksums_are_what_sha256sum_checks(unbroken: Path) -> None:
    lines = (unbroken / CHECKSUMS).read_text().splitlines()
    assert sorted(line[66:] for line in lines) == sorted(
        {*recordings(unbroken), "plan.toml", "manifest.json", "jobs.json", "journal.jsonl"}
    )


def test_checksums_that_were_only_rearranged_are_told(tmp_path: Path) -> None:
    drive(tmp_path / "run", FaultyFileLayer())
    lines = (tmp_path / "run" / CHECKSUMS).read_text().splitlines(keepends=True)
    (tmp_path / "run" / CHECKSUMS).write_text("".join(reversed(lines)))
    assert errors_in(tmp_path / "run") == ["CHECKSUMS: is not written as it was"]


def test_nothing_may_be_added_to_a_finished_run_but_derived_files(unbroken: Path) -> None:
    with open_run(unbroken) as run:
        with pytest.raises(RunClosedError):
            run.append(JobFinished(job_id="a1", rounds=1, reason="rounds"))
        with pytest.raises(RunClosedError):
            run.record_round("first", rows_of("first", 0))
        run.put_derived("operations.json", b"1")
        run.put_derived("operations.json", b"2")
        assert run.derived("operations.json") == b"2"
    assert check_integrity(unbroken) == []


def test_a_finished_run_can_be_reopened_to_try_failed_jobs_again(tmp_path: Path) -> None:
    drive(tmp_path / "run")
    with open_run(tmp_path / "run") as run:
        run.reopen("the missing kernel is there now")
        run.start_block("second", [2])
        run.append(JobFinished(job_id="b1", rounds=1, reason="converged"))
        run.finish()
    assert check_integrity(tmp_path / "run") == []
    state = read_run(tmp_path / "run").state()
    assert not state.failed
    assert state.failures == {"b1": 1}
    assert state.attempts["second"] == 2


def test_a_closed_writer_takes_nothing(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    run.close()
    run.close()
    with pytest.raises(RunClosedError):
        run.start_block("first", [0])


# Who may open what


def test_two_writers_of_one_directory_are_refused_with_the_pid(tmp_path: Path) -> None:
    with make(tmp_path / "run"):
        with pytest.raises(RunLockedError) as caught:
            open_run(tmp_path / "run")
        assert caught.value.pid == os.getpid()
        assert str(os.getpid()) in str(caught.value)
        assert read_run(tmp_path / "run").job_ids == ("a1", "a2", "b1")
    open_run(tmp_path / "run").close()


def test_the_lock_tells_its_holder_and_not_an_earlier_one(tmp_path: Path) -> None:
    make(tmp_path / "run").close()
    (tmp_path / "run" / "LOCK").write_text("1234567890123\n")  # as a killed process leaves it
    with open_run(tmp_path / "run"):
        assert (tmp_path / "run" / "LOCK").read_text() == f"{os.getpid()}\n"


def test_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from tests.harness.scripted_run import make;"
        f"make(Path({str(tmp_path / 'run')!r})); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / "run" / "LOCK").read_text().strip().isdigit()
    open_run(tmp_path / "run").close()


def test_another_plan_or_other_jobs_refuse_to_resume(tmp_path: Path) -> None:
    make(tmp_path / "run").close()
    with pytest.raises(ResumeMismatchError, match="another plan") as caught:
        open_run(tmp_path / "run", plan_text=PLAN_TEXT + "\n")
    assert caught.value.found == MANIFEST.plan_sha256
    with pytest.raises(ResumeMismatchError, match="another set of jobs"):
        open_run(tmp_path / "run", plan_text=PLAN_TEXT, jobs=JOBS[:2])
    open_run(tmp_path / "run", plan_text=PLAN_TEXT, jobs=JOBS).close()


def test_a_run_is_not_created_over_another_or_over_foreign_files(tmp_path: Path) -> None:
    make(tmp_path / "run").close()
    with pytest.raises(RunExistsError, match="already holds a run"):
        make(tmp_path / "run")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(RunExistsError, match=r"chapter1\.tex"):
        make(tmp_path / "thesis")
    assert [item.name for item in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunExistsError):
        make(tmp_path / "file")


def test_of_two_that_create_at_once_the_second_is_refused(tmp_path: Path) -> None:
    class Slow(FaultyFileLayer):
        def make_directory(self, path: Path) -> None:
            if not path.exists():
                make(path).close()  # the other process was quicker
            super().make_directory(path)

    with pytest.raises(RunExistsError):
        make(tmp_path / "run", Slow())
    assert check_integrity(tmp_path / "run") == []


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        for opener in (open_run, read_run, check_integrity):
            with pytest.raises(NotARunError, match=str(path)):
                opener(path)


def test_jobs_need_ids_of_their_own_and_the_manifest_its_plan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="job_id"):
        create(tmp_path / "run", plan_text=PLAN_TEXT, manifest=MANIFEST, jobs=[{"job_id": "x"}, {"job_id": "x"}])
    with pytest.raises(ValueError, match="another plan"):
        create(tmp_path / "run", plan_text="", manifest=MANIFEST, jobs=JOBS)
    assert condition(tmp_path / "run") == "absent"


# What a writer refuses


def test_unknown_jobs_and_early_ends_are_refused(tmp_path: Path) -> None:
    with make(tmp_path / "run") as run:
        with pytest.raises(JournalError, match="no job of this run"):
            run.append(JobFailed(job_id="zz", attempt=1, error="E", message=""))
        with pytest.raises(JournalError, match="only 3 jobs"):
            run.start_block("first", [3])
        with pytest.raises(JournalError, match="not running"):
            run.record_round("first", rows_of("first", 0))
        run.start_block("first", [0])
        with pytest.raises(JournalError, match="not started with job 1"):
            run.record_round("first", rows_of("first", 0))
        with pytest.raises(JournalError, match="3 jobs are left"):
            run.finish()
        with pytest.raises(ValueError, match="plain file name"):
            run.record_file("../escape", b"", what="")
    assert check_integrity(tmp_path / "run") == []
    assert recordings(tmp_path / "run") == {}


def test_rounds_go_on_counting_across_attempts(tmp_path: Path) -> None:
    with make(tmp_path / "run") as run:
        for attempt in (1, 2):
            assert run.start_block("first", BLOCKS["first"]).attempt == attempt
            event = run.record_round("first", rows_of("first", attempt))
            assert (event.attempt, event.round) == (attempt, attempt - 1)
            run.append(AttemptAbandoned(block="first", attempt=attempt, error="WorkerDiedError", message="signal 9"))
        assert len(run.state().rounds_of("first")) == 2
        assert len(run.state().rounds_of("first", 2)) == 1
        assert [item.attempt for item in run.state().abandoned] == [1, 2]


# Killed


@pytest.mark.parametrize("when", ["before", "torn"])  # after one step is before the next
def test_killed_at_any_step_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, unbroken: Path, when: When) -> None:
    wanted = outcome(read_run(unbroken))
    steps = [step for step, (kind, _) in enumerate(steps_of(tmp_path)) if when == "before" or kind == "write"]
    for step in steps:
        path = tmp_path / f"{when}{step}"
        with pytest.raises(Crash):
            drive(path, FaultyFileLayer(step, when))
        if path.exists() and condition(path) != "empty":
            assert errors_in(path) == []
        survivors = recordings(path)
        drive(path, FaultyFileLayer())
        assert check_integrity(path) == [], f"{when} step {step}"
        assert outcome(read_run(path)) == wanted
        assert survivors.items() <= recordings(path).items()
        assert recordings(path) == recordings(unbroken)


@WHOLE_RUNS
@given(kills=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["before", "after", "torn"])), max_size=20))
def test_killed_again_and_again_a_run_still_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, unbroken: Path, kills: list[tuple[int, When]]
) -> None:
    path = tmp_path_factory.mktemp("killed") / "run"
    survivors: dict[str, str] = {}
    for step, when in kills:
        try:
            drive(path, FaultyFileLayer(step, when))
        except Crash:
            journaled = read_run(path).state().files if condition(path) in ("run", "finished") else {}
            assert survivors.items() <= recordings(path).items()
            survivors = {name: sha256 for name, sha256 in recordings(path).items() if name in journaled}
    drive(path, FaultyFileLayer())
    assert check_integrity(path) == []
    assert outcome(read_run(path)) == outcome(read_run(unbroken))
    assert survivors.items() <= recordings(path).items()


@pytest.mark.parametrize(("step", "when"), [(3, "after"), (21, "torn"), (45, "before")])
def test_a_process_that_is_really_gone_leaves_a_resumable_run(tmp_path: Path, unbroken: Path, step: int, when: When) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-m", "tests.harness.scripted_run", str(path), str(step), when]
    assert subprocess.run(command, check=False).returncode == 137
    drive(path)
    assert check_integrity(path) == []
    assert outcome(read_run(path)) == outcome(read_run(unbroken))


def test_a_half_made_directory_is_told_apart_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(Crash):
        make(path, FaultyFileLayer(8, "before"))
    assert condition(path) == "half-made"
    assert [finding.kind for finding in check_integrity(path)] == ["half-made"]
    for opener in (open_run, read_run):
        with pytest.raises(HalfMadeRunError, match="start it again"):
            opener(path)
    make(path).close()
    assert check_integrity(path) == []


def test_a_round_in_flight_is_adopted_once(tmp_path: Path) -> None:
    path = tmp_path / "run"
    files = FaultyFileLayer()
    with make(path, files) as run:
        run.start_block("first", BLOCKS["first"])
        files.at, files.when = files.steps + 6, "before"  # directory, its sync, write, sync, rename, sync, append
        with pytest.raises(Crash):
            run.record_round("first", rows_of("first", 0))
    assert [finding.kind for finding in check_integrity(path)] == ["in-flight"]
    for _ in range(2):
        with open_run(path) as run:
            (adopted,) = run.state().rounds_of("first")
            assert adopted.adopted
            assert adopted.jobs == BLOCKS["first"]
            assert run.raw(adopted).tolist() == rows_of("first", 0).tolist()
    assert check_integrity(path) == []


def test_leftovers_of_unfinished_writes_are_told_and_swept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with make(path) as run:
        run.start_block("first", BLOCKS["first"])
        run.record_round("first", rows_of("first", 0))
    leftovers = [path / name for name in (".x.partial", "raw/first/.00001.npy.partial", "attached/.x.partial")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    findings = check_integrity(path)
    assert [(finding.kind, finding.is_error) for finding in findings] == [("leftover", False)] * 3
    open_run(path).close()
    assert check_integrity(path) == []


def test_an_unjournaled_attachment_never_happened(tmp_path: Path) -> None:
    path = tmp_path / "run"
    make(path).close()
    (path / "attached/profile.json").write_bytes(b"cut short before it was journaled")
    assert [finding.kind for finding in check_integrity(path)] == ["in-flight"]
    with open_run(path) as run:
        run.record_file("profile.json", b"{}", what="operator profile")
        with pytest.raises(JournalError, match="recorded already"):
            run.record_file("profile.json", b"[]", what="operator profile")
        assert run.file("attached/profile.json") == b"{}"
        with pytest.raises(KeyError):
            run.file("attached/other.json")
    assert check_integrity(path) == []


def test_a_raw_file_that_nobody_can_have_been_writing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with make(path) as run:
        run.start_block("first", BLOCKS["first"])
        event = run.record_round("first", rows_of("first", 0))
    (path / "raw/first/00007.npy").write_bytes((path / event.path).read_bytes())
    with pytest.raises(CorruptRunError, match="not the next round"):
        open_run(path)
    assert [finding.kind for finding in check_integrity(path)] == ["unjournaled"]


# A full disk


def test_a_full_disk_at_any_step_loses_nothing(tmp_path: Path, unbroken: Path) -> None:
    steps = [step for step, (kind, _) in enumerate(steps_of(tmp_path)) if kind in ("write", "make_directory")]
    for step in steps:
        path = tmp_path / f"full{step}"
        with pytest.raises(StorageError, match="the disk is full") as caught:
            drive(path, FaultyFileLayer(step, "full"))
        assert caught.value.is_full
        assert str(path) in str(caught.value)
        if path.exists() and condition(path) != "empty":
            assert errors_in(path) == []
            assert not [item for item in path.rglob("*") if item.name.endswith(".partial")]
        drive(path, FaultyFileLayer())
        assert check_integrity(path) == []
        assert outcome(read_run(path)) == outcome(read_run(unbroken))
    assert len(steps) > 20


@pytest.mark.parametrize("offset", [0, 2, 6])  # the block's directory, the raw file, the journal line
def test_the_same_writer_goes_on_when_there_is_room_again(tmp_path: Path, offset: int) -> None:
    files = FaultyFileLayer()
    with make(tmp_path / "run", files) as run:
        run.start_block("first", BLOCKS["first"])
        files.at, files.when = files.steps + offset, "full"
        with pytest.raises(StorageError):
            run.record_round("first", rows_of("first", 0))
        assert recordings(tmp_path / "run") == {}
        files.is_full = False
        assert run.record_round("first", rows_of("first", 0)).round == 0
    assert check_integrity(tmp_path / "run") == []


# Tampering


def flip(path: Path, position: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= mask
    path.write_bytes(bytes(data))


def protected(path: Path) -> list[Path]:
    names = [item for item in path.rglob("*") if item.is_file() and item.name != "LOCK"]
    return sorted(item for item in names if item.relative_to(path).parts[0] != "derived")


@pytest.mark.parametrize("is_closed", [True, False])
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_anywhere_is_found(unbroken: Path, tmp_path: Path, is_closed: bool, data: st.DataObject) -> None:
    path = tmp_path / "run"
    if not path.exists():
        drive(path)
    if not is_closed:
        (path / CHECKSUMS).unlink(missing_ok=True)
    victim = data.draw(st.sampled_from(protected(path)))
    before = victim.read_bytes()
    try:
        flip(victim, data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255)))
        assert errors_in(path)
    finally:
        victim.write_bytes(before)
    assert check_integrity(path) == []


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_removed_file_or_journal_line_is_found(tmp_path: Path, is_closed: bool) -> None:
    path = tmp_path / "run"
    drive(path)
    if not is_closed:
        (path / CHECKSUMS).unlink()
    for victim in protected(path):
        data = victim.read_bytes()
        if victim.name in (JOURNAL, CHECKSUMS):
            continue
        victim.unlink()
        assert victim.relative_to(path).as_posix() in "\n".join(errors_in(path))
        victim.write_bytes(data)
    journal = path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    for at in range(len(lines) - (0 if is_closed else 1)):
        journal.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
        assert errors_in(path), lines[at]
        swapped = [*lines[:at], *reversed(lines[at : at + 2]), *lines[at + 2 :]]
        journal.write_bytes(b"".join(swapped))
        assert errors_in(path) or swapped == lines
    journal.write_bytes(b"".join(lines))
    assert check_integrity(path) == []


def forge(path: Path, events: list[Event]) -> None:
    """A journal whose chain is right: what only a forger, or a fault of ours, writes."""
    (path / JOURNAL).unlink()
    first, *others = events
    assert isinstance(first, RunStarted)
    journal = Journal.create(path / JOURNAL, first, files=FaultyFileLayer())
    for event in others:
        journal.append(event)


def test_a_journal_that_tells_of_other_things_than_lie_there_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run"
    drive(path)
    (path / CHECKSUMS).unlink()
    events: list[Event] = [entry.body for entry in read_run(path).entries]
    round_at, file_at, finished_at = (
        next(at for at, event in enumerate(events) if isinstance(event, kind))
        for kind in (RoundRecorded, FileRecorded, JobFinished)
    )
    block_at = next(at for at, event in enumerate(events) if isinstance(event, BlockStarted))
    forgeries: list[tuple[int, dict[str, object], str]] = [
        (0, {"run_id": "another"}, "names another plan or run"),
        (0, {"plan_sha256": "0" * 64}, "plan.toml: expected sha256"),
        (0, {"job_count": 2}, "expected 2 jobs"),
        (block_at, {"jobs": (0, 1, 99)}, "beyond the 3"),
        (round_at, {"path": "raw/first/00009.npy"}, "has a wrong place"),
        (round_at, {"path": "../elsewhere"}, "has a wrong place"),
        (round_at, {"jobs": (0,)}, "not of the journaled jobs"),
        (round_at, {"rows": 99}, "not of the journaled jobs"),
        (round_at, {"sha256": "0" * 64}, "expected sha256 000000000000"),
        (file_at, {"path": "attached/../../x"}, "outside of its place"),
        (file_at, {"path": "attached/other"}, "missing"),
        (finished_at, {"job_id": "stranger"}, "not in jobs.json"),
        (finished_at, {"job_id": "stranger"}, "job a1 neither finished nor failed"),
    ]
    for at, update, told in forgeries:
        forge(path, [*events[:at], events[at].model_copy(update=update), *events[at + 1 :]])
        assert told in "\n".join(errors_in(path)), update
        if at == round_at and "path" not in update:
            with pytest.raises(CorruptRunError):
                list(read_run(path).rounds())
    forge(path, events)
    assert check_integrity(path) == []


def test_an_added_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "run"
    drive(path)
    for name in ("raw/first/00002.npy", "raw/note.txt", "attached/more.json", "extra.txt"):
        (path / name).write_bytes(b"x")
        assert name in "\n".join(errors_in(path))
        (path / name).unlink()
    assert check_integrity(path) == []


def test_reading_an_edited_round_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    drive(path)
    (recorded,) = [entry.body for entry in read_run(path).entries if isinstance(entry.body, RoundRecorded)][:1]
    flip(path / recorded.path, -1, 1)
    with pytest.raises(CorruptRunError, match="expected sha256") as caught:
        read_run(path).raw(recorded)
    assert caught.value.path == path / recorded.path


def test_a_run_whose_plan_was_edited_does_not_open(tmp_path: Path) -> None:
    make(tmp_path / "run").close()
    (tmp_path / "run" / "plan.toml").write_text("# nothing")
    for opener in (open_run, read_run):
        with pytest.raises(CorruptRunError, match=r"plan\.toml"):
            opener(tmp_path / "run")
    open_errors = errors_in(tmp_path / "run")
    assert len(open_errors) == 1
    assert "plan.toml" in open_errors[0]
