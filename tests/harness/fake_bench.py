"""A bench whose every number follows from a seed: what a device would do, without one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harness.devices.bench import Recorder
from harness.errors import ModelRunError
from harness.jobs import Job
from harness.provenance import DeviceFacts, RuntimeFacts
from harness.raw import RawRows, rows
from tests.harness.scripted_run import DEVICE, RUNTIME

KEYS = ("RELU(f32[1x8x8x8])->f32[1x8x8x8]", "ADD(f32[1x8x8x8],f32[1x8x8x8])->f32[1x8x8x8]")
FIXED_US = 2.0
INVOKES = 3


def plan_text(*, keys: Sequence[str] = KEYS, contexts: str = '["hot"]', extra: str = "", **measure: float) -> str:
    """A small plan: two operations of two op models each, a block each, six rounds."""
    chosen = {"rounds_min": 3, "rounds_max": 6, "block_models": 4} | measure
    lines = ["plan_format = 1", "[operations]", f"keys = {json.dumps(list(keys))}", f"contexts = {contexts}", extra, "[measure]"]
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in chosen.items())]) + "\n"


def true_cost_us(job: Job) -> float:
    """What one copy of a job's operation costs on this bench: 1 to 11 us, decided by its key."""
    return 1.0 + zlib.crc32((job.key or job.name).encode()) % 1000 / 100


def true_time_us(job: Job) -> float:
    """What an invocation of a job's model costs when nothing disturbs it."""
    return FIXED_US + (0.0 if job.role == "empty" else true_cost_us(job) * job.copies)


class FakeBench:
    """Implements :class:`harness.devices.bench.Bench`.

    ``noise_frac`` is the spread of what is added to each invocation; ``broken`` chooses jobs that cannot run;
    ``before_round`` is called with the number of the round (over all calls of :meth:`run`) and may raise.
    """

    def __init__(
        self,
        *,
        noise_frac: float = 0.01,
        broken: Callable[[Job], bool] = lambda _: False,
        before_round: Callable[[int], None] = lambda _: None,
        seed: int = 5,
    ) -> None:
        self.noise_frac, self.broken, self.before_round, self.seed = noise_frac, broken, before_round, seed
        self.rounds = 0
        self.blocks: list[list[str]] = []
        self.visits: dict[str, int] = {}

    def facts(self) -> DeviceFacts:
        return DEVICE

    def runtime(self) -> RuntimeFacts:
        return RUNTIME

    def run(self, block: Sequence[Job], paths: Sequence[Path], record: Recorder) -> None:
        assert all(path.is_file() for path in paths)
        self.blocks.append([job.job_id for job in block])
        for place, job in enumerate(block):
            if self.broken(job):
                record.failed(place, ModelRunError(model=job.name, reason="no such kernel"))
        while live := [place for place in record.live() if not self.broken(block[place])]:
            self.before_round(self.rounds)
            record.round(self._round(block, live))
            self.rounds += 1

    def _round(self, block: Sequence[Job], live: Sequence[int]) -> RawRows:
        order = np.random.default_rng((self.seed, self.rounds)).permutation(list(live)).tolist()
        jobs: list[int] = []
        invokes: list[int] = []
        times_ns: list[int] = []
        for place in order:
            job = block[place]
            visit = self.visits[job.job_id] = self.visits.get(job.job_id, 0) + 1
            rng = np.random.default_rng((self.seed, visit, zlib.crc32(job.job_id.encode())))
            disturbed = true_time_us(job) * (1 + self.noise_frac * rng.exponential(size=1 + INVOKES))
            jobs += [place] * (1 + INVOKES)
            invokes += range(1 + INVOKES)
            times_ns += (disturbed * 1e3).astype(np.int64).tolist()
        at_ns = np.cumsum([0, *times_ns[:-1]]).tolist()
        return rows(job=jobs, invoke=invokes, cpu_ns=times_ns, wall_ns=times_ns, at_ns=at_ns)
