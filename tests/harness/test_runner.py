from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import plan as plans
from harness import rundir, runner
from harness.clock import VirtualClock
from harness.errors import (
    DeviceError,
    ExitCode,
    HalfMadeRunError,
    InterruptedRunError,
    JobTimeoutError,
    PlanError,
    ResumeMismatchError,
    RunExistsError,
    RunLockedError,
    StorageError,
    WorkerDiedError,
)
from harness.jobs import Job
from harness.journal import AttemptAbandoned, BlockStarted, JobFinished, RunInterrupted
from harness.runner import Outcome, Settings
from harness.verify import verify
from op_models.artifact import ArtifactCache
from tests.faults import FaultyFileLayer
from tests.harness.fake_bench import KEYS, FakeBench, plan_text, true_cost_us
from tests.harness.scripted_run import recordings
from tests.op_models.built import edited, network_f32


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("artifacts"))


def run(path: Path, cache: ArtifactCache, bench: FakeBench | None = None, text: str | None = None, **given: Any) -> Outcome:
    text = plan_text() if text is None else text
    chosen = Settings(cache=cache, bench=bench or FakeBench(), **given)
    return runner.run(plans.parse(text), text, path, chosen)


def resume(path: Path, cache: ArtifactCache, bench: FakeBench | None = None, **given: Any) -> Outcome:
    return runner.resume(path, Settings(cache=cache, bench=bench or FakeBench(), **given))


def table(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "derived" / "operations.json").read_bytes())
    return found


def finished(path: Path) -> dict[str, JobFinished]:
    return dict(rundir.read_run(path).state().finished)


def jobs(path: Path) -> list[Job]:
    return [Job.model_validate(dict(job)) for job in rundir.read_run(path).jobs]


def at(*numbers: int, error: Callable[[], BaseException]) -> Callable[[int], None]:
    """What happens before a round: the error at each of these numbers, once."""
    left = set(numbers)

    def act(number: int) -> None:
        if number in left:
            left.discard(number)
            raise error()

    return act


def died() -> WorkerDiedError:
    return WorkerDiedError(returncode=-9, last_lines=["hm"])


def test_a_run_measures_every_job_and_ends_with_a_table(tmp_path: Path, cache: ArtifactCache) -> None:
    outcome = run(tmp_path / "run", cache, FakeBench(noise_frac=0.001), plan_text(contexts='["hot", "cold"]'))
    assert set(finished(tmp_path / "run")) == {job.job_id for job in jobs(tmp_path / "run")}
    assert (outcome.failed, outcome.unliftable) == ({}, {})
    assert verify(tmp_path / "run") == []
    entries = table(tmp_path / "run")["entries"]
    assert {entry["key"] for entry in entries} == set(KEYS)
    truth = {job.key: true_cost_us(job) for job in jobs(tmp_path / "run")}
    for entry in entries:
        assert entry["latency_us"] == pytest.approx(truth[entry["key"]], rel=0.02)
        assert entry["latency_us_low"] <= entry["latency_us"] <= entry["latency_us_high"]
    assert condition(tmp_path / "run") == "finished"


def condition(path: Path) -> str:
    return rundir.condition(path)


def test_every_block_holds_the_standing_models_and_is_measured_in_one_go(tmp_path: Path, cache: ArtifactCache) -> None:
    bench = FakeBench()
    run(tmp_path / "run", cache, bench)
    roles = {job.job_id: job.role for job in jobs(tmp_path / "run")}
    assert len(bench.blocks) == 2
    for block in bench.blocks:
        assert sorted(roles[job] for job in block) == ["empty", "operation", "operation", "reference"]
    assert set(table(tmp_path / "run")["blocks"]) == {"b001", "b002"}


def test_measuring_stops_when_the_interval_is_narrow_enough(tmp_path: Path, cache: ArtifactCache) -> None:
    text = plan_text(rounds_min=4, rounds_max=40, target_half_width_frac=0.02)
    run(tmp_path / "quiet", cache, FakeBench(noise_frac=0.0), text)
    run(tmp_path / "noisy", cache, FakeBench(noise_frac=3.0), text)
    quiet = {job.role: finished(tmp_path / "quiet")[job.job_id] for job in jobs(tmp_path / "quiet")}
    noisy = {job.role: finished(tmp_path / "noisy")[job.job_id] for job in jobs(tmp_path / "noisy")}
    assert (quiet["operation"].rounds, quiet["operation"].reason) == (4, "converged")
    assert (noisy["operation"].rounds, noisy["operation"].reason) == (40, "rounds")


def test_an_operation_that_is_done_is_not_visited_again_while_others_go_on(tmp_path: Path, cache: ArtifactCache) -> None:
    class Uneven(FakeBench):
        def _round(self, block: Any, live: Any) -> Any:
            found = super()._round(block, live)
            noisy = [place for place, job in enumerate(block) if job.key == KEYS[0]]
            found["cpu_ns"][[row in noisy for row in found["job"]]] *= 1 + self.rounds % 7
            return found

    run(tmp_path / "run", cache, Uneven(noise_frac=0.0), plan_text(rounds_min=4, rounds_max=30, block_models=20))
    rounds = {job.key: finished(tmp_path / "run")[job.job_id].rounds for job in jobs(tmp_path / "run")}
    assert rounds[KEYS[1]] == 4
    assert rounds[KEYS[0]] == 30


def test_a_budget_ends_measuring_and_every_block_gets_its_share(tmp_path: Path, cache: ArtifactCache) -> None:
    clock = VirtualClock(0)
    bench = FakeBench(noise_frac=3.0, before_round=lambda _: clock.sleep_us(1_000_000))
    text = plan_text(rounds_min=20, rounds_max=1000)
    run(tmp_path / "run", cache, bench, text, clock=clock, budget_s=20)
    ended = finished(tmp_path / "run")
    assert {event.reason for event in ended.values()} == {"budget"}
    assert all(8 <= event.rounds <= 12 for event in ended.values())
    assert clock.now_us() <= 25e6


def test_a_budget_that_is_too_small_still_gives_every_operation_an_interval(tmp_path: Path, cache: ArtifactCache) -> None:
    clock = VirtualClock(0)
    bench = FakeBench(before_round=lambda _: clock.sleep_us(1_000_000))
    run(tmp_path / "run", cache, bench, plan_text(budget_s=0.001), clock=clock)
    assert {event.rounds for event in finished(tmp_path / "run").values()} == {3}
    assert len(table(tmp_path / "run")["entries"]) == 2


def test_a_job_that_cannot_run_is_told_and_the_others_go_on(tmp_path: Path, cache: ArtifactCache) -> None:
    bench = FakeBench(broken=lambda job: job.key == KEYS[0] and job.copies > 10)
    outcome = run(tmp_path / "run", cache, bench, plan_text(rounds_min=3, rounds_max=500))
    (failed,) = outcome.failed.values()
    assert "no such kernel" in failed
    found = table(tmp_path / "run")
    assert [entry["key"] for entry in found["entries"]] == [KEYS[1]]
    assert [(item["key"], item["context"]) for item in found["failed"]] == [(KEYS[0], "hot")]
    # No number of rounds makes a slope of the one that is left.
    assert max(event.rounds for event in finished(tmp_path / "run").values()) < 50
    assert verify(tmp_path / "run") == []


def test_a_run_of_which_nothing_can_run_ends_all_the_same(tmp_path: Path, cache: ArtifactCache) -> None:
    outcome = run(tmp_path / "run", cache, FakeBench(broken=lambda job: job.role == "operation"))
    assert len(outcome.failed) == 4
    assert table(tmp_path / "run")["entries"] == []
    assert verify(tmp_path / "run") == []


@pytest.mark.parametrize("number", range(6))
def test_a_worker_that_dies_is_started_again_and_no_round_is_lost(tmp_path: Path, cache: ArtifactCache, number: int) -> None:
    text = plan_text(rounds_min=6, block_models=20)
    outcome = run(tmp_path / "run", cache, FakeBench(before_round=at(number, error=died)), text)
    assert outcome.failed == {}
    events = [entry.body for entry in rundir.read_run(tmp_path / "run").entries]
    (abandoned,) = [event for event in events if isinstance(event, AttemptAbandoned)]
    assert (abandoned.attempt, abandoned.error) == (1, "WorkerDiedError")
    assert len(recordings(tmp_path / "run")) == 6
    assert verify(tmp_path / "run") == []


def test_a_block_whose_worker_always_dies_fails_and_the_next_goes_on(tmp_path: Path, cache: ArtifactCache) -> None:
    bench = FakeBench()

    def act(_: int) -> None:
        if len(bench.blocks) <= runner.ATTEMPTS:
            raise died()

    bench.before_round = act
    outcome = run(tmp_path / "run", cache, bench)
    assert len(bench.blocks) == runner.ATTEMPTS + 1
    places = {job.job_id: job.block for job in jobs(tmp_path / "run")}
    assert {places[job] for job in outcome.failed} == {"b001"}
    assert {places[job] for job in finished(tmp_path / "run")} == {"b002"}
    assert all("SIGKILL" in message for message in outcome.failed.values())
    assert verify(tmp_path / "run") == []


def test_a_worker_that_dies_for_the_last_time_when_all_is_measured_leaves_nothing_open(
    tmp_path: Path, cache: ArtifactCache
) -> None:
    bench = FakeBench()

    class DiesAtTheEnd(FakeBench):
        def run(self, block: Any, paths: Any, record: Any) -> None:
            super().run(block, paths, record)
            raise JobTimeoutError(job_id="x", limit_s=1)

    bench = DiesAtTheEnd()
    outcome = run(tmp_path / "run", cache, bench)
    assert outcome.failed == {}
    assert verify(tmp_path / "run") == []


def interrupted(path: Path, cache: ArtifactCache, number: int) -> None:
    with pytest.raises(InterruptedRunError) as caught:
        run(path, cache, FakeBench(before_round=at(number, error=KeyboardInterrupt)), plan_text(rounds_min=6))
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert caught.value.path == path


@pytest.mark.parametrize("number", [0, 1, 7, 11])
def test_ctrl_c_leaves_a_run_that_goes_on_where_it_was(tmp_path: Path, cache: ArtifactCache, number: int) -> None:
    path = tmp_path / "run"
    interrupted(path, cache, number)
    kept = recordings(path)
    assert len(kept) == number
    assert isinstance(rundir.read_run(path).entries[-1].body, RunInterrupted)
    assert [finding for finding in verify(path) if finding.is_error] == []
    bench = FakeBench()
    resume(path, cache, bench)
    assert kept.items() <= recordings(path).items()
    assert bench.rounds == 12 - number
    assert set(finished(path)) == set(rundir.read_run(path).job_ids)
    assert verify(path) == []


def test_a_finished_run_is_not_measured_again_but_its_table_can_be_lost(tmp_path: Path, cache: ArtifactCache) -> None:
    path = tmp_path / "run"
    run(path, cache)
    before = (path / "derived" / "operations.json").read_bytes()
    for file in (path / "derived").iterdir():
        file.unlink()
    assert any(finding.is_error for finding in verify(path))
    bench = FakeBench()
    outcome = resume(path, cache, bench)
    assert (bench.rounds, outcome.finished) == (0, 8)
    assert (path / "derived" / "operations.json").read_bytes() == before
    assert verify(path) == []


def test_failed_jobs_stay_failed_when_a_run_goes_on(tmp_path: Path, cache: ArtifactCache) -> None:
    path = tmp_path / "run"
    bench = FakeBench(broken=lambda job: job.key == KEYS[0], before_round=at(2, error=KeyboardInterrupt))
    with pytest.raises(InterruptedRunError):
        run(path, cache, bench)
    outcome = resume(path, cache)
    assert len(outcome.failed) == 2
    assert [entry["key"] for entry in table(path)["entries"]] == [KEYS[1]]


def test_the_other_op_model_of_an_operation_is_finished_when_one_was_before_a_crash(tmp_path: Path, cache: ArtifactCache) -> None:
    # The disk fills up between the two journal lines that finish the op models of one operation.
    text = plan_text(rounds_min=4, rounds_max=40)
    counted = FaultyFileLayer()
    run(tmp_path / "whole", cache, FakeBench(noise_frac=0.0), text, files=counted)
    entries = rundir.read_run(tmp_path / "whole").entries
    (first, second, *_) = [entry.seq for entry in entries if isinstance(entry.body, JobFinished)]
    assert second == first + 1
    writes = [step for step, (kind, name) in enumerate(counted.log) if (kind, name) == ("write", "journal.jsonl")]
    path = tmp_path / "cut"
    # The first line of a journal is not appended.
    with pytest.raises(StorageError):
        run(path, cache, FakeBench(noise_frac=0.0), text, files=FaultyFileLayer(writes[second - 1], "full"))
    assert len(finished(path)) == 1
    outcome = resume(path, cache, FakeBench(noise_frac=0.0))
    assert outcome.failed == {}
    assert len(table(path)["entries"]) == 2
    assert verify(path) == []


@pytest.mark.parametrize(
    "name",
    ["journal.jsonl", ".00000.npy.partial", ".00003.npy.partial", ".operations.json.partial", ".CHECKSUMS.partial", "b002"],
)
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_with_space(tmp_path: Path, cache: ArtifactCache, name: str) -> None:
    counted = FaultyFileLayer()
    run(tmp_path / "whole", cache, files=counted)
    step = counted.log.index(("make_directory" if name == "b002" else "write", name))
    path = tmp_path / "run"
    with pytest.raises(StorageError, match="the disk is full") as caught:
        run(path, cache, files=FaultyFileLayer(step, "full"))
    assert caught.value.is_full
    assert caught.value.exit_code == ExitCode.SOME_JOBS_FAILED
    kept = recordings(path)
    assert [finding for finding in verify(path) if finding.is_error] == []
    resume(path, cache)
    assert kept.items() <= recordings(path).items()
    assert set(finished(path)) == set(rundir.read_run(path).job_ids)
    assert verify(path) == []


def test_a_run_where_one_is_already_is_refused_before_anything_is_prepared(tmp_path: Path, cache: ArtifactCache) -> None:
    run(tmp_path / "run", cache)

    class Untouched(FakeBench):
        def facts(self) -> Any:
            raise AssertionError

    with pytest.raises(RunExistsError, match="already holds a run"):
        run(tmp_path / "run", cache, Untouched())


def test_a_run_that_another_process_writes_is_refused(tmp_path: Path, cache: ArtifactCache) -> None:
    path = tmp_path / "run"

    def act(_: int) -> None:
        with pytest.raises(RunLockedError):
            resume(path, cache)
        with pytest.raises(RunExistsError):
            run(path, cache)

    run(path, cache, FakeBench(before_round=act))
    assert verify(path) == []


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, cache: ArtifactCache) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunExistsError, match=r"letter\.txt"):
        run(tmp_path, cache)
    assert [item.name for item in tmp_path.iterdir()] == ["letter.txt"]


def test_a_half_made_run_is_started_again(tmp_path: Path, cache: ArtifactCache) -> None:
    path = tmp_path / "run"
    with pytest.raises(StorageError):
        run(path, cache, files=FaultyFileLayer(6, "full"))
    with pytest.raises(HalfMadeRunError):
        resume(path, cache)
    run(path, cache)
    assert verify(path) == []


def test_op_models_that_the_cache_lost_are_made_again(tmp_path: Path, cache: ArtifactCache) -> None:
    path = tmp_path / "run"
    interrupted(path, cache, 3)
    resume(path, ArtifactCache(tmp_path / "empty"))
    assert verify(path) == []


def test_op_models_that_cannot_be_made_again_are_not_replaced_by_others(tmp_path: Path, cache: ArtifactCache) -> None:
    model, path = tmp_path / "net.tflite", tmp_path / "run"
    model.write_bytes(network_f32())
    plan, text = plans.for_models((model,))
    with pytest.raises(InterruptedRunError):
        runner.run(plan, text, path, Settings(cache=cache, bench=FakeBench(before_round=at(2, error=KeyboardInterrupt))))
    kept = recordings(path)
    changed = bytearray(network_f32())
    changed[changed.index(network_f32()[-64:-32])] ^= 1
    empty = ArtifactCache(tmp_path / "empty")
    model.write_bytes(changed)
    with pytest.raises(ResumeMismatchError, match="op models"):
        resume(path, empty)
    model.unlink()
    with pytest.raises(PlanError, match="does not exist"):
        resume(path, ArtifactCache(tmp_path / "emptier"))
    assert recordings(path) == kept
    resume(path, cache)  # which needs no model file
    assert verify(path) == []


def test_a_core_that_is_not_there_is_no_such_hardware(tmp_path: Path, cache: ArtifactCache) -> None:
    text = plan_text() + "[device]\ncore = 4000\n"
    with pytest.raises(DeviceError, match="core 4000") as caught:
        runner.run(plans.parse(text), text, tmp_path / "run", Settings(cache=cache))
    assert caught.value.exit_code == ExitCode.NO_SUCH_HARDWARE
    assert not (tmp_path / "run").exists()


@dataclass
class Listening:
    """A watcher that keeps what it was told."""

    told: list[tuple[object, ...]] = field(default_factory=list)

    def begins(self, run: Path, jobs: int, blocks: int) -> None:
        self.told.append(("begins", run, jobs, blocks))

    def block(self, name: str, jobs: int, rounds_done: int) -> None:
        self.told.append(("block", name, jobs, rounds_done))

    def round(self, name: str, number: int, live: int) -> None:
        self.told.append(("round", name, number, live))

    def job_failed(self, job: Job, reason: str) -> None:
        self.told.append(("failed", job.key))


def test_a_watcher_hears_of_blocks_rounds_and_failures(tmp_path: Path, cache: ArtifactCache) -> None:
    watcher = Listening()
    bench = FakeBench(broken=lambda job: job.key == KEYS[1] and job.copies > 10)
    run(tmp_path / "run", cache, bench, plan_text(rounds_min=3, rounds_max=3), watcher=watcher)
    assert watcher.told[:3] == [("begins", tmp_path / "run", 8, 2), ("block", "b001", 4, 0), ("round", "b001", 1, 4)]
    assert watcher.told.count(("failed", KEYS[1])) == 1
    assert [item[2] for item in watcher.told if item[0] == "round"] == [1, 2, 3, 1, 2, 3]


def test_a_plan_of_networks_alone_gives_their_latency(tmp_path: Path, cache: ArtifactCache) -> None:
    model = tmp_path / "net.tflite"
    model.write_bytes(network_f32())
    plan, text = plans.for_models((), networks=(model,))
    runner.run(plan, text, tmp_path / "run", Settings(cache=cache, bench=FakeBench(noise_frac=0.001)))
    (network,) = table(tmp_path / "run")["networks"]
    (job,) = [job for job in jobs(tmp_path / "run") if job.role == "network"]
    assert network["name"] == str(model)
    assert network["latency_us"] == pytest.approx(2.0 + true_cost_us(job), rel=0.01)


def test_what_cannot_be_lifted_is_told_also_when_the_run_is_resumed(tmp_path: Path, cache: ArtifactCache) -> None:
    model, path = tmp_path / "net.tflite", tmp_path / "run"

    def change(tables: Any) -> None:
        (operator,) = [op for op in tables.subgraphs[0].operators if len(op.inputs) == 3 and op.inputs[2] == -1]
        operator.inputs = operator.inputs[:1]

    model.write_bytes(edited(network_f32(), change))
    plan, text = plans.for_models((model,))
    with pytest.raises(InterruptedRunError):
        runner.run(plan, text, path, Settings(cache=cache, bench=FakeBench(before_round=at(2, error=KeyboardInterrupt))))
    outcome = resume(path, cache)
    assert [key.partition("(")[0] for key in outcome.unliftable] == ["FULLY_CONNECTED"]
    assert [item["context"] for item in table(path)["failed"]] == [None]


MISHAPS: list[Callable[[], BaseException]] = [died, KeyboardInterrupt, lambda: JobTimeoutError(job_id="x", limit_s=2)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=25)
@given(
    mishaps=st.dictionaries(st.integers(0, 14), st.sampled_from(MISHAPS), max_size=8),
    broken=st.sets(st.integers(0, 7), max_size=4),
    noise=st.sampled_from([0.0, 0.05, 2.0]),
    together=st.booleans(),
)
def test_whatever_happens_a_run_ends_with_every_job_finished_or_failed(
    tmp_path_factory: pytest.TempPathFactory,
    cache: ArtifactCache,
    mishaps: dict[int, Callable[[], BaseException]],
    broken: set[int],
    noise: float,
    together: bool,
) -> None:
    path = tmp_path_factory.mktemp("runs") / "run"
    text = plan_text(block_models=20 if together else 4)
    left = dict(mishaps)
    number = 0

    def act(_: int) -> None:
        nonlocal number
        number += 1
        if number in left:
            raise left.pop(number)()

    def is_broken(job: Job) -> bool:
        return job.role == "operation" and int(job.job_id, 16) % 8 in broken

    kept: dict[str, str] = {}
    while condition(path) != "finished":
        bench = FakeBench(noise_frac=noise, broken=is_broken, before_round=act)
        try:
            if condition(path) == "run":
                resume(path, cache, bench)
            else:
                run(path, cache, bench, text)
        except InterruptedRunError:
            pass
        assert kept.items() <= recordings(path).items()
        kept = recordings(path)
    state = rundir.read_run(path).state()
    assert set(state.finished) | set(state.failed) == set(rundir.read_run(path).job_ids)
    assert {event.attempt for event in starts(path)} >= {1}
    assert verify(path) == []


def starts(path: Path) -> Iterable[BlockStarted]:
    return [entry.body for entry in rundir.read_run(path).entries if isinstance(entry.body, BlockStarted)]
