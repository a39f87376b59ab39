from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import plan as plans
from harness import rundir, runner
from harness.devices.local import LocalBench, can_pin, last_core
from harness.errors import DeviceError, ExitCode, JobTimeoutError, ModelRunError, WorkerDiedError
from harness.jobs import Job, make_job
from harness.journal import AttemptAbandoned
from harness.raw import RawRows
from harness.runner import Settings
from harness.verify import verify
from harness.watcher import Silent
from op_models.artifact import ArtifactCache
from op_models.standing import empty_model
from tests.harness.fake_bench import plan_text
from tests.harness.processes import workers
from tests.harness.scripted_run import recordings
from tests.op_models.built import network_f32


def job_of(path: Path, place: int, feed: str | None = None) -> Job:
    return make_job(
        role="network", name=f"{place}:{path.name}", model_sha256="ab" * 32, model_bytes=1, memory_bytes=1,
        delegate="xnnpack", threads=1, seed=1, feed_sha256=feed,
    )  # fmt: skip


@dataclass
class Keeping:
    """A recorder that wants some rounds of everything and keeps what it gets."""

    places: set[int]
    rounds_wanted: int = 2
    rounds: list[RawRows] = field(default_factory=list)
    errors: dict[int, DeviceError] = field(default_factory=dict)
    expected: dict[int, float] = field(default_factory=dict)
    after_round: Callable[[int], None] = lambda _: None

    def live(self) -> Sequence[int]:
        return sorted(self.places - set(self.errors)) if len(self.rounds) < self.rounds_wanted else []

    def round(self, rows: RawRows) -> None:
        self.rounds.append(rows)
        self.after_round(len(self.rounds))

    def failed(self, place: int, error: DeviceError) -> None:
        self.errors[place] = error

    def expected_us(self, expected: Mapping[int, float]) -> None:
        self.expected.update(expected)


def measured(bench: LocalBench, paths: Sequence[Path], *, fed: Mapping[int, Path] | None = None, **given: Any) -> Keeping:
    """What a recorder got; ``fed`` gives the file with the data of some models."""
    record = Keeping(set(range(len(paths))), **given)
    names = {place: f"{place:02x}" * 32 for place in fed or {}}
    bench.feeds = {names[place]: path for place, path in (fed or {}).items()}
    bench.run([job_of(path, place, names.get(place)) for place, path in enumerate(paths)], paths, record)
    return record


@pytest.fixture
def bench() -> LocalBench:
    return LocalBench(core=None, burst_us=50.0, job_timeout_s=30.0)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.tflite"
    path.write_bytes(empty_model())
    return path


def kill_worker(_: int = 0) -> None:
    (pid,) = workers()
    os.kill(pid, signal.SIGKILL)


def test_every_model_is_visited_in_every_round_in_another_order(bench: LocalBench, good: Path) -> None:
    record = measured(bench, [good] * 6, rounds_wanted=4)
    assert record.errors == {}
    assert set(record.expected) == set(range(6))
    orders = [tuple(dict.fromkeys(rows["job"].tolist())) for rows in record.rounds]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(orders)) > 1
    for rows in record.rounds:
        for place in range(6):
            invokes = rows["invoke"][rows["job"] == place]
            assert invokes.tolist() == list(range(len(invokes)))
            assert len(invokes) >= 4  # the warm-up and three that count
    assert workers() == []


def test_a_corrupt_model_fails_alone(bench: LocalBench, tmp_path: Path, good: Path) -> None:
    corrupt = tmp_path / "corrupt.tflite"
    corrupt.write_bytes(network_f32()[:300])
    record = measured(bench, [good, corrupt, good])
    assert isinstance(record.errors[1], ModelRunError)
    assert "1:corrupt.tflite cannot run" in str(record.errors[1])
    assert [set(rows["job"].tolist()) for rows in record.rounds] == [{0, 2}, {0, 2}]


def test_a_block_of_which_nothing_can_be_loaded_ends(bench: LocalBench, tmp_path: Path) -> None:
    record = measured(bench, [tmp_path / "absent.tflite"] * 2)
    assert set(record.errors) == {0, 1}
    assert record.rounds == []


def test_a_worker_that_is_killed_in_a_round_is_told_with_its_signal(bench: LocalBench, good: Path) -> None:
    with pytest.raises(WorkerDiedError, match="SIGKILL") as caught:
        measured(bench, [good], rounds_wanted=9, after_round=kill_worker)
    assert caught.value.returncode == -signal.SIGKILL
    assert workers() == []


def test_a_worker_that_hangs_in_a_round_is_given_up(good: Path) -> None:
    def stop(_: int) -> None:
        (pid,) = workers()
        os.kill(pid, signal.SIGSTOP)

    with pytest.raises(JobTimeoutError):
        measured(LocalBench(core=None, burst_us=50.0, job_timeout_s=0.3), [good], rounds_wanted=9, after_round=stop)
    assert workers() == []


@contextlib.contextmanager
def deadly(path: Path, then: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Data that kill the worker that loads them: a pipe, whose reader hangs until it is dead and ``then`` is done."""
    os.mkfifo(path)
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set() and path.is_fifo():
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # refused while nobody reads
                (pid,) = workers()
                os.kill(pid, signal.SIGKILL)
                while Path(f"/proc/{pid}").exists():  # until then some thread of it may hold the pipe open
                    time.sleep(0.001)
                then()
                os.close(descriptor)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield path
    finally:
        is_over.set()
        thread.join()


def test_a_model_that_kills_the_worker_is_found_and_the_others_go_on(bench: LocalBench, tmp_path: Path, good: Path) -> None:
    with deadly(tmp_path / "feed") as feed:
        record = measured(bench, [good] * 3, fed={1: feed})
    assert set(record.errors) == {1}
    assert isinstance(record.errors[1], WorkerDiedError)
    assert [set(rows["job"].tolist()) for rows in record.rounds] == [{0, 2}, {0, 2}]


def test_two_models_that_kill_the_worker_are_both_found(bench: LocalBench, tmp_path: Path, good: Path) -> None:
    with deadly(tmp_path / "first") as first, deadly(tmp_path / "second") as second:
        record = measured(bench, [good] * 3, fed={0: first, 2: second})
    assert set(record.errors) == {0, 2}
    assert [set(rows["job"].tolist()) for rows in record.rounds] == [{1}, {1}]


def test_a_worker_that_dies_by_itself_while_loading_is_not_blamed_on_a_model(
    bench: LocalBench, tmp_path: Path, good: Path
) -> None:
    path = tmp_path / "feed.npz"

    def become_harmless() -> None:
        path.unlink()
        np.savez(path, x0=np.ones((1, 1), np.float32))

    with deadly(path, become_harmless) as feed, pytest.raises(WorkerDiedError):
        measured(bench, [good, good], fed={1: feed})


def test_a_model_that_never_finishes_loading_times_out_alone(tmp_path: Path, good: Path) -> None:
    endless = tmp_path / "endless.tflite"
    os.mkfifo(endless)  # nobody ever writes to it
    record = measured(LocalBench(core=None, burst_us=50.0, job_timeout_s=1.0), [good, endless, good])
    assert set(record.errors) == {1}
    error = record.errors[1]
    assert isinstance(error, JobTimeoutError)
    assert error.job_id == job_of(endless, 1).job_id
    assert len(record.rounds) == 2


def test_the_default_core_can_be_pinned_to_and_one_that_is_not_there_cannot() -> None:
    before = os.sched_getaffinity(0)
    core = last_core()
    assert core is not None
    assert can_pin(core)
    assert not can_pin(4000)
    assert not can_pin(10**30)
    assert os.sched_getaffinity(0) == before


# --- with the runner ----------------------------------------------------------------------------------------------


def test_a_run_whose_worker_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    class KillsOnce(Silent):
        def round(self, name: str, number: int, live: int) -> None:
            if (name, number) == ("b002", 3):
                kill_worker()

    text = plan_text(rounds_min=6, rounds_max=6, burst_us=50)
    settings = Settings(cache=ArtifactCache(tmp_path / "artifacts"), watcher=KillsOnce())
    outcome = runner.run(plans.parse(text), text, tmp_path / "run", settings)
    assert outcome.failed == {}
    run = rundir.read_run(tmp_path / "run")
    assert [entry.body.block for entry in run.entries if isinstance(entry.body, AttemptAbandoned)] == ["b002"]
    assert len(recordings(tmp_path / "run")) == 12
    assert verify(tmp_path / "run") == []


def test_a_model_that_cannot_run_fails_alone_in_a_run(tmp_path: Path) -> None:
    # XNNPACK and LiteRT's own kernels both refuse to add what has different types.
    key = "ADD(f32[1x4],i32[1x4])->f32[1x4]"
    text = plan_text(keys=["RELU(f32[1x8x8x8])->f32[1x8x8x8]", key], rounds_min=3, rounds_max=3, burst_us=50)
    settings = Settings(cache=ArtifactCache(tmp_path / "artifacts"))
    outcome = runner.run(plans.parse(text), text, tmp_path / "run", settings)
    assert len(outcome.failed) == 2
    state = rundir.read_run(tmp_path / "run").state()
    assert {event.error for event in state.failed.values()} == {"ModelRunError"}
    assert ModelRunError.exit_code == ExitCode.SOME_JOBS_FAILED
    assert verify(tmp_path / "run") == []
