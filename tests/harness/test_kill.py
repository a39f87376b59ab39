"""A run is cut short at every single write and at moments drawn over it, and always goes on to the same end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness import plan as plans
from harness import rundir, runner
from harness.errors import ExitCode, InterruptedRunError, StorageError
from harness.files import FileLayer
from harness.runner import Settings
from harness.verify import verify
from op_models.artifact import ArtifactCache
from tests.faults import Crash, FaultyFileLayer, When
from tests.harness.fake_bench import KEYS, FakeBench, plan_text
from tests.harness.processes import children, interruptible, is_alive
from tests.harness.scripted_run import recordings

# --- at every write, with a file layer that dies ----------------------------------------------------------------

TEXT = plan_text(rounds_min=3, rounds_max=3)


class StoppingFileLayer(FaultyFileLayer):
    """Ctrl-C at one step, where the process does not die but tidies up."""

    def _die(self) -> None:
        self.at = None
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArtifactCache:
    return ArtifactCache(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, cache: ArtifactCache) -> list[tuple[str, str]]:
    """What the unbroken run does to its files, step by step."""
    counted = FaultyFileLayer()
    go_on(tmp_path_factory.mktemp("unbroken") / "run", cache, counted)
    return counted.log


def go_on(path: Path, cache: ArtifactCache, files: FileLayer | None = None) -> None:
    bench = FakeBench(broken=lambda job: job.key == KEYS[1] and job.copies > 10)
    chosen = Settings(cache=cache, files=files, bench=bench)
    if rundir.condition(path) in ("run", "finished"):
        runner.resume(path, chosen)
    else:
        runner.run(plans.parse(TEXT), TEXT, path, chosen)


def ending(path: Path) -> tuple[object, ...]:
    """What an interrupted run must have in common with an unbroken one."""
    run = rundir.read_run(path)
    state = run.state()
    return run.job_ids, set(state.finished), set(state.failed), run.is_closed


def cut_and_go_on(path: Path, cache: ArtifactCache, layers: list[FileLayer]) -> None:
    kept: dict[str, str] = {}
    for files in [*layers, None]:
        try:
            go_on(path, cache, files)
        except (Crash, StorageError, InterruptedRunError, KeyboardInterrupt):
            assert files is not None
        found = recordings(path)
        assert kept.items() <= found.items(), "a recording was lost or rewritten"
        kept = found
        if rundir.condition(path) not in ("absent", "empty"):
            assert [finding for finding in verify(path) if finding.is_error] == []


def check_every_step(
    directory: Path, cache: ArtifactCache, steps: list[tuple[str, str]], kind: type[FaultyFileLayer], when: When
) -> None:
    go_on(directory / "unbroken", cache)
    expected = ending(directory / "unbroken")
    rng = np.random.default_rng(len(steps))
    for at, (step, _) in enumerate(steps):
        if when in ("torn", "full") and step not in ("write", "make_directory"):
            continue
        path = directory / f"{at}"
        # The run that goes on is cut short too, soon after its start.
        cut_and_go_on(path, cache, [kind(at, when), kind(int(rng.integers(0, 12)), when)])
        assert ending(path) == expected, f"step {at}, {steps[at]}"
        assert verify(path) == [], f"step {at}, {steps[at]}"


@pytest.mark.parametrize("when", ["before", "torn", "full"])
def test_a_run_survives_its_death_at_every_write(
    tmp_path: Path, cache: ArtifactCache, steps: list[tuple[str, str]], when: When
) -> None:
    assert len(steps) > 70
    check_every_step(tmp_path, cache, steps, FaultyFileLayer, when)


def test_a_run_survives_ctrl_c_at_every_write(tmp_path: Path, cache: ArtifactCache, steps: list[tuple[str, str]]) -> None:
    check_every_step(tmp_path, cache, steps, StoppingFileLayer, "after")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "when"), [(FaultyFileLayer, "after"), (StoppingFileLayer, "before"), (StoppingFileLayer, "torn")]
)
def test_a_run_survives_the_rarer_ends_at_every_write(
    tmp_path: Path, cache: ArtifactCache, steps: list[tuple[str, str]], kind: type[FaultyFileLayer], when: When
) -> None:
    check_every_step(tmp_path, cache, steps, kind, when)


# --- real processes ---------------------------------------------------------------------------------------------

BLOCKS = 2
PATIENCE_S = 120


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return written_plan(tmp_path, rounds=30)


def written_plan(directory: Path, rounds: int) -> Path:
    path = directory / "plan.toml"
    path.write_text(plan_text(rounds_min=rounds, rounds_max=rounds, burst_us=50))
    return path


class Command:
    """``python -m harness.profile`` in a process of its own."""

    def __init__(self, directory: Path, *arguments: str | Path) -> None:
        self._said = (directory / "stderr.txt").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.profile", *map(str, arguments)],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            preexec_fn=interruptible,  # noqa: PLW1509 (it only resets a signal)
        )

    @classmethod
    def start(cls, directory: Path, plan: Path, run: Path) -> Command:
        if rundir.condition(run) in ("run", "finished"):
            return cls(directory, "--resume", run)
        return cls(directory, "--plan", plan, "--out", run)

    def workers(self) -> list[int]:
        """Processes that it started."""
        return children(self.process.pid, self.process.pid)

    def wait_for_rounds(self, run: Path, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while rounds_on_disk(run) < number and self.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def end(self, how: signal.Signals | None = None) -> int:
        if how is not None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE_S)

    def said(self) -> str:
        self._said.seek(0)
        return self._said.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rounds_on_disk(run: Path) -> int:
    return sum(1 for _ in run.glob("raw/*/*.npy"))


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived the process that started it"
        time.sleep(0.01)


def finish(directory: Path, plan: Path, run: Path) -> None:
    with Command.start(directory, plan, run) as command:
        assert command.end() == ExitCode.DONE, command.said()


def kill_and_go_on(directory: Path, *, kills: int, rounds: int, seed: int) -> None:
    plan, run = written_plan(directory, rounds), directory / "run"
    rng = random.Random(seed)
    # A few of them while the process starts or loads, the others after a round.
    moments = sorted((rng.randrange(BLOCKS * rounds), rng.random() < 0.25) for _ in range(kills))
    print(f"seed {seed}: killed at {moments}")
    kept: dict[str, str] = {}
    orphans: list[int] = []
    for moment, early in moments:
        with Command.start(directory, plan, run) as command:
            if early or rounds_on_disk(run) >= moment:
                time.sleep(rng.uniform(0, 1))
            else:
                command.wait_for_rounds(run, moment)
                time.sleep(rng.uniform(0, 0.02))
            workers = command.workers()
            assert command.end(signal.SIGKILL) in (-signal.SIGKILL, ExitCode.DONE), command.said()
            orphans += workers
            wait_until_gone(workers)
        found = recordings(run)
        assert kept.items() <= found.items()
        kept = found
        if rundir.condition(run) in ("run", "finished"):
            assert [finding for finding in verify(run) if finding.is_error] == []
    assert orphans
    finish(directory, plan, run)
    assert kept.items() <= recordings(run).items()
    finish(directory, plan, directory / "unbroken")
    assert ending(run) == ending(directory / "unbroken")
    assert not rundir.read_run(run).state().failed
    assert verify(run) == []
    assert len(recordings(run)) == BLOCKS * rounds  # what was recorded before a kill is not measured again


@pytest.fixture
def seed() -> int:
    """Fresh every time, except in CI; pytest shows what was printed where the test fails."""
    return 20 if os.environ.get("CI") else random.randrange(2**32)


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_at_20_moments_ends_as_an_unbroken_one(tmp_path: Path, seed: int) -> None:
    kill_and_go_on(tmp_path, kills=20, rounds=30, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("again", range(4))
def test_a_longer_run_that_is_killed_at_40_moments_ends_as_an_unbroken_one(tmp_path: Path, seed: int, again: int) -> None:
    kill_and_go_on(tmp_path, kills=40, rounds=150, seed=seed + again)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_says_how_to_go_on(tmp_path: Path, plan: Path, how: signal.Signals) -> None:
    run = tmp_path / "a run"
    with Command.start(tmp_path, plan, run) as command:
        command.wait_for_rounds(run, 7)
        workers = command.workers()
        assert command.end(how) == ExitCode.INTERRUPTED
        stopped, go_on_with = command.said().splitlines()[-2:]
    assert stopped == f"{run} was stopped (stopped by the user) and can be resumed"
    assert go_on_with == f"next: python -m harness.profile --resume '{run}'"
    wait_until_gone(workers)
    kept = recordings(run)
    finish(tmp_path, plan, run)
    assert kept.items() <= recordings(run).items()
    assert verify(run) == []


def test_a_second_process_is_kept_out_of_a_run_in_one_sentence(tmp_path: Path) -> None:
    plan, run = written_plan(tmp_path, rounds=1000), tmp_path / "run"
    (tmp_path / "second").mkdir()
    with Command.start(tmp_path, plan, run) as first:
        first.wait_for_rounds(run, 1)
        assert first.process.poll() is None, first.said()
        for arguments, sentence in (
            (("--resume", run), f"{run} is being written by process {first.process.pid}"),
            (("--plan", plan, "--out", run), f"{run} already holds a run"),
        ):
            with Command(tmp_path / "second", *arguments) as second:
                assert second.end() == ExitCode.BAD_REQUEST
                assert second.said().startswith(sentence)
                assert second.said().count("\n") == 1
        assert first.process.poll() is None
        assert first.end(signal.SIGINT) == ExitCode.INTERRUPTED
    assert [finding for finding in verify(run) if finding.is_error] == []
