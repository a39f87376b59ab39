"""Runs a plan: expands it, measures block by block, journals everything, and resumes what was cut short.

The only place that catches a job's error: it is journaled, and the other jobs go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from harness import journal as journals
from harness import operation_table, rundir
from harness import plan as plans
from harness.clock import Clock, SystemClock, unix_now_us
from harness.devices.bench import Bench
from harness.devices.local import LocalBench, can_pin, last_core
from harness.errors import (
    CorruptRunError,
    DeviceError,
    InterruptedRunError,
    PlanError,
    ResumeMismatchError,
    RunExistsError,
)
from harness.expand import Expansion, expand
from harness.files import FileLayer
from harness.jobs import Job
from harness.plan import Plan
from harness.provenance import DeviceFacts, Manifest
from harness.recorder import BlockRecorder, is_open
from harness.rundir import RunWriter
from harness.watcher import Silent, Watcher
from op_models.arrange import CacheSizes
from op_models.artifact import ArtifactCache, default_cache
from op_models.errors import CacheError

ATTEMPTS = 3
_MOST_SHARED_BYTES = 64 << 20  # far op models rotate through this much, and hundreds of them are in memory


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    path: Path
    finished: int
    failed: Mapping[str, str]
    unliftable: Mapping[str, str]
    measured_s: float
    wall_s: float


@dataclass(slots=True)
class Settings:
    """What surrounds a plan and does not decide its numbers."""

    cache: ArtifactCache | None = None
    files: FileLayer | None = None
    clock: Clock = field(default_factory=SystemClock)
    watcher: Watcher = field(default_factory=Silent)
    budget_s: float | None = None
    command: tuple[str, ...] = ()
    plan_directory: Path | None = None
    """Where a plan's relative paths start."""
    bench: Bench | None = None
    """What measures, instead of the device that the plan names."""


def cache_sizes(facts: DeviceFacts) -> CacheSizes:
    """Cache sizes to arrange op models by; common ones where the device does not tell."""
    usual = CacheSizes()
    private = facts.l2_bytes or usual.private_bytes
    shared = min(facts.l3_bytes or usual.shared_bytes, _MOST_SHARED_BYTES)
    return CacheSizes(private, max(shared, 4 * private))


def bench_of(plan: Plan, feeds: Mapping[str, Path] | None = None) -> Bench:
    """The bench that a plan names. Raises :class:`DeviceError` where this computer has no such core."""
    core = plan.device.core if plan.device.core is not None else last_core()
    if plan.device.core is not None and not can_pin(plan.device.core):
        raise DeviceError(f"a process cannot be bound to core {plan.device.core} here (this computer has {os.cpu_count()} cores)")
    return LocalBench(
        core=core,
        burst_us=plan.measure.burst_us,
        job_timeout_s=plan.measure.job_timeout_s,
        seed=plan.measure.seed,
        feeds=feeds,
    )


def prepare(plan: Plan, settings: Settings, progress: Callable[[str], None] = lambda _: None) -> tuple[Expansion, Bench]:
    """Expands a plan for the device it names; nothing is measured yet."""
    cache = settings.cache or default_cache()
    bench = settings.bench or bench_of(plan)
    expansion = expand(plan, cache, cache_sizes(bench.facts()), progress=progress)
    return expansion, settings.bench or bench_of(plan, expansion.feeds)


def run(plan: Plan, plan_text: str, path: Path, settings: Settings | None = None) -> Outcome:
    """Measures everything that a plan asks for into a new run directory.

    Raises PlanError, RunError or StorageError before anything is measured, and :class:`InterruptedRunError` when the
    user stops it (what is measured is kept).
    """
    settings = settings or Settings()
    if rundir.condition(path) in ("run", "finished"):  # said before minutes of preparation, not after
        raise RunExistsError(path=path, is_run=True)
    expansion, bench = prepare(plan, settings)
    if not expansion.unliftable and all(job.role in ("reference", "empty") for job in expansion.jobs):
        raise PlanError(problems=[("", "nothing in it is an operation or a network to measure")], source=plan.name)
    manifest = Manifest(
        run_id=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}",
        created_unix_us=unix_now_us(),
        plan_sha256=rundir.plan_sha256(plan_text),
        device=bench.facts(),
        runtime=bench.runtime(),
        command=settings.command,
        settings=_settings_facts(plan, bench, expansion) | {"plan_directory": _directory(settings)},
    )
    jobs = [job.model_dump(mode="json") for job in expansion.jobs]
    with rundir.create(path, plan_text=plan_text, manifest=manifest, jobs=jobs, files=settings.files) as writer:
        return _Run(plan, writer, bench, settings, expansion).measure()


def resume(path: Path, settings: Settings | None = None) -> Outcome:
    """Measures what is missing in a run directory that was cut short; of a finished one only the table is computed again.

    The plan, the jobs and their op models are the run's own: op models come from the cache, and are made again from the
    plan where the cache lost them. Raises as :func:`run`, and ResumeMismatchError where they cannot be made again.
    """
    settings = settings or Settings()
    with rundir.open_run(path, files=settings.files) as writer:
        directory = writer.manifest.settings.get("plan_directory")
        source = Path(str(directory)) if directory else Path.cwd()
        plan = plans.parse(writer.plan_text, str(path / "plan.toml"), directory=source, check_files=False)
        jobs = _jobs_of(writer)
        state = writer.state()
        unliftable = _texts(writer.manifest.settings.get("unliftable"))
        if writer.is_closed:
            _derive(writer)
            failed = {name: event.message for name, event in state.failed.items()}
            return Outcome(path, len(state.finished), failed, unliftable, 0.0, 0.0)
        cache = settings.cache or default_cache()
        if not all(_held(cache, job) for job in jobs):
            _make_again(plan, jobs, cache, path, settings)
        feeds = {job.feed_sha256: cache.path(job.feed_sha256) for job in jobs if job.feed_sha256 is not None}
        bench = settings.bench or bench_of(plan, feeds)
        writer.append(journals.RunResumed(reason="asked to go on"))
        expansion = Expansion(jobs=jobs, unliftable=unliftable, feeds=feeds)
        return _Run(plan, writer, bench, settings, expansion).measure()


def _derive(run: RunWriter) -> None:
    for name, data in operation_table.files(operation_table.compute(run)).items():
        run.put_derived(name, data)


def _texts(value: object) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, Mapping) else {}


def _jobs_of(run: RunWriter) -> list[Job]:
    try:
        return [Job.model_validate(dict(job)) for job in run.jobs]
    except ValueError as error:
        raise CorruptRunError(path=run.path / "jobs.json", reason=f"its jobs are not jobs ({error})") from error


def _held(cache: ArtifactCache, job: Job) -> bool:
    try:
        cache.path(job.model_sha256)
        if job.feed_sha256 is not None:
            cache.path(job.feed_sha256)
    except CacheError:
        return False
    return True


def _make_again(plan: Plan, jobs: list[Job], cache: ArtifactCache, path: Path, settings: Settings) -> None:
    plans.require_files(plan, str(path / "plan.toml"))
    expansion, _ = prepare(plan, settings)
    if expansion.jobs != jobs or not all(_held(cache, job) for job in jobs):
        expected, found = (_digest([job.model_dump(mode="json") for job in made]) for made in (expansion.jobs, jobs))
        raise ResumeMismatchError(path=path, what="set of op models", expected=expected, found=found)


def _digest(jobs: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(jobs, sort_keys=True).encode()).hexdigest()


def _directory(settings: Settings) -> str | None:
    return None if settings.plan_directory is None else str(settings.plan_directory.resolve())


def _settings_facts(plan: Plan, bench: Bench, expansion: Expansion) -> dict[str, JsonValue]:
    core = bench.core if isinstance(bench, LocalBench) else None
    sizes = cache_sizes(bench.facts())
    return {
        "core": core,
        "clock": "thread-cpu" if plan.runtime.threads == 1 else "wall",
        "private_cache_bytes": sizes.private_bytes,
        "shared_cache_bytes": sizes.shared_bytes,
        "fed_with_noise": {key: str(reason) for key, reason in sorted(expansion.unfed.items())},
        "unliftable": {key: str(reason) for key, reason in sorted(expansion.unliftable.items())},
    }


class _Run:
    def __init__(self, plan: Plan, writer: RunWriter, bench: Bench, settings: Settings, expansion: Expansion) -> None:
        self.plan, self.writer, self.bench, self.settings, self.expansion = plan, writer, bench, settings, expansion
        self.cache = settings.cache or default_cache()
        self.jobs = expansion.jobs
        self.measured_ns = 0
        self.began_us = settings.clock.now_us()

    def measure(self) -> Outcome:
        """All blocks, then the derived table and the checksums."""
        blocks: dict[str, list[int]] = {}
        for place, job in enumerate(self.jobs):
            blocks.setdefault(job.block, []).append(place)
        try:
            self.settings.watcher.begins(self.writer.path, len(self.jobs), len(blocks))
            for name, places in blocks.items():
                self._block(name, places, blocks)
            _derive(self.writer)
            self.writer.finish()
        except KeyboardInterrupt as stop:
            if not self.writer.state().is_finished:
                self.writer.append(journals.RunInterrupted(reason="stopped by the user"))
            raise InterruptedRunError(path=self.writer.path, reason="stopped by the user") from stop
        state = self.writer.state()
        return Outcome(
            path=self.writer.path,
            finished=len(state.finished),
            failed={name: event.message for name, event in state.failed.items()},
            unliftable=self.expansion.unliftable,
            measured_s=self.measured_ns / 1e9,
            wall_s=(self.settings.clock.now_us() - self.began_us) / 1e6,
        )

    def _block(self, name: str, places: list[int], blocks: Mapping[str, list[int]]) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            state = self.writer.state()
            left = [p for p in places if is_open(self.jobs[p].job_id, state)]
            if not left:
                return
            standing = [p for p in places if self.jobs[p].role in ("reference", "empty")]
            chosen = sorted({*left, *standing})
            recorder = BlockRecorder(
                self.writer,
                self.jobs,
                name,
                chosen,
                self.plan,
                self._deadline_us(name, places, blocks),
                clock=self.settings.clock,
                watcher=self.settings.watcher,
            )
            self.settings.watcher.block(name, len(left), recorder.rounds)
            self.writer.start_block(name, chosen)
            try:
                block = [self.jobs[p] for p in chosen]
                self.bench.run(block, [self.cache.path(job.model_sha256) for job in block], recorder)
                recorder.close()
                return
            except DeviceError as error:
                self._give_up(name, error, recorder, last=attempt == ATTEMPTS)
            finally:
                self.measured_ns += recorder.measured_ns

    def _give_up(self, name: str, error: DeviceError, recorder: BlockRecorder, *, last: bool) -> None:
        number = self.writer.state().attempts[name]
        kind, message = type(error).__name__, str(error)
        self.writer.append(journals.AttemptAbandoned(block=name, attempt=number, error=kind, message=message))
        if last:
            recorder.give_up(error)

    def _deadline_us(self, name: str, places: list[int], blocks: Mapping[str, list[int]]) -> int | None:
        budget_s = self.settings.budget_s if self.settings.budget_s is not None else self.plan.measure.budget_s
        if budget_s is None:
            return None
        now = self.settings.clock.now_us()
        remaining_us = budget_s * 1e6 - (now - self.began_us)
        names = list(blocks)
        waiting = sum(len(blocks[other]) for other in names[names.index(name) :])
        return now + int(max(0.0, remaining_us) * len(places) / max(1, waiting))
