"""A small run whose every number is fixed: two blocks, three jobs of which one fails, one attached file.

``drive`` is what a runner does, resuming included, without a device: given the same directory again and again it ends
with the same recordings, however often it was cut short.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from harness.files import FileLayer, OsFileLayer
from harness.journal import JobFailed, JobFinished, RunResumed
from harness.provenance import DeviceFacts, Manifest, RuntimeFacts
from harness.raw import RawRows, rows
from harness.rundir import JobRecord, RunReader, RunWriter, condition, create, open_run, plan_sha256
from tests.faults import FaultyFileLayer

PLAN_TEXT = '[plan]\nname = "täst"\n'
JOBS: tuple[JobRecord, ...] = (
    {"job_id": "a1", "key": "CONV_2D ä", "n": 4},
    {"job_id": "a2", "key": "CONV_2D ä", "n": 24},
    {"job_id": "b1", "key": "RELU", "n": 4},
)
BLOCKS: dict[str, tuple[int, ...]] = {"first": (0, 1), "second": (1, 2)}
ROUNDS = 2
FAILING = "b1"

DEVICE = DeviceFacts(
    cpu_model="a cpu", cpu_vendor=None, architecture="x86_64", core_count=2, usable_cores=(0, 1), clusters=(),
    threads_per_core=None, l1d_bytes=32768, l2_bytes=1 << 20, l3_bytes=None, memory_bytes=None, kernel="Linux 6",
    os_name=None, is_virtual=None, load_average_1min=0.5, host_sha256=None,
)  # fmt: skip
RUNTIME = RuntimeFacts(
    name="litert", version="2", library=None, library_sha256=None, python_version="3.11", numpy_version="2",
    package_version=None,
)  # fmt: skip
MANIFEST = Manifest(
    run_id="r1", created_unix_us=1, plan_sha256=plan_sha256(PLAN_TEXT), device=DEVICE, runtime=RUNTIME,
    settings={"threads": 1},
)  # fmt: skip


def no_time() -> int:
    """A clock that stands, so that two journals of the same events are equal."""
    return 0


def rows_of(block: str, number: int) -> RawRows:
    """What a round would have measured."""
    jobs = [job for job in BLOCKS[block] for _ in range(2)]
    times = [1_000 * number + 10 * at + len(block) for at in range(len(jobs))]
    return rows(job=jobs, invoke=[0, 1] * len(BLOCKS[block]), cpu_ns=times, wall_ns=times, at_ns=times)


def make(path: Path, files: FileLayer | None = None) -> RunWriter:
    """The run, just created."""
    return create(path, plan_text=PLAN_TEXT, manifest=MANIFEST, jobs=JOBS, files=files, now_unix_us=no_time)


def drive(path: Path, files: FileLayer | None = None) -> None:
    """Create or resume the run and take it to its end."""
    files = files or OsFileLayer()
    if condition(path) in ("run", "finished"):
        run = open_run(path, plan_text=PLAN_TEXT, jobs=JOBS, files=files, now_unix_us=no_time)
        with run:
            if not run.is_closed:
                if not run.state().is_finished:
                    run.append(RunResumed())
                go_on(run)
    else:
        with make(path, files) as run:
            go_on(run)


def go_on(run: RunWriter) -> None:
    """Do what is left."""
    for block in BLOCKS if not run.state().is_finished else ():
        if len(run.state().rounds_of(block)) < ROUNDS:
            run.start_block(block, BLOCKS[block])
        while (number := len(run.state().rounds_of(block))) < ROUNDS:
            run.record_round(block, rows_of(block, number))
        for job_id in (run.job_ids[number] for number in BLOCKS[block]):
            state = run.state()
            if job_id == FAILING and job_id not in state.failed:
                run.append(JobFailed(job_id=job_id, attempt=1, error="ModelRunError", message="no such kernel"))
            elif job_id != FAILING and job_id not in state.finished:
                run.append(JobFinished(job_id=job_id, rounds=ROUNDS, reason="rounds"))
        if block == "first" and "attached/profile.json" not in run.state().files:
            run.record_file("profile.json", b'{"a": 1}', what="operator profile")
    run.finish()


def recordings(path: Path) -> dict[str, str]:
    """The hash of every recording that lies in the directory."""
    found = [*path.glob("raw/*/*.npy"), *path.glob("attached/*.json")]
    return {item.relative_to(path).as_posix(): hashlib.sha256(item.read_bytes()).hexdigest() for item in found}


def outcome(run: RunReader) -> tuple[object, ...]:
    """What an interrupted run must have in common with an unbroken one."""
    state = run.state()
    return (
        run.job_ids,
        dict(state.finished),
        dict(state.failed),
        dict(state.files),
        {block: [(item.round, item.sha256, item.jobs) for item in found] for block, found in state.rounds.items()},
        state.is_finished,
        run.is_closed,
    )


if __name__ == "__main__":  # a process of its own, to be killed for good: PATH STEP WHEN
    drive(Path(sys.argv[1]), FaultyFileLayer(int(sys.argv[2]), sys.argv[3], kills=True))  # type: ignore[arg-type]
