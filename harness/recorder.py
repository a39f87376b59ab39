"""What a bench hands its rounds to: they go to disk, and a running estimate says which jobs want another round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness import journal as journals
from harness import raw
from harness.clock import Clock
from harness.errors import DeviceError, WorkerDiedError
from harness.estimate import ClockName, Floats, burst_values, interval, levels_with_replicates
from harness.jobs import Job
from harness.operation_table import operation_fit
from harness.plan import Plan
from harness.rundir import RunWriter
from harness.watcher import Watcher

_LEAST_ROUNDS = 3  # below this many there is no interval to speak of
_CHECK_EVERY = 2  # rounds between two looks at the intervals


def is_open(job_id: str, state: journals.JournalState) -> bool:
    """Whether a job is neither finished nor failed."""
    return job_id not in state.finished and job_id not in state.failed


class BlockRecorder:
    """Keeps the rounds of one block on disk and decides which of its jobs want another one.

    ``jobs`` are all jobs of the run, ``places`` those of this attempt among them; ``deadline_us`` is when the block's share of
    the budget is used up, on ``clock``. A :class:`harness.devices.bench.Recorder`.
    """

    def __init__(
        self,
        writer: RunWriter,
        jobs: Sequence[Job],
        block: str,
        places: Sequence[int],
        plan: Plan,
        deadline_us: int | None,
        *,
        clock: Clock,
        watcher: Watcher,
    ) -> None:
        self.writer, self.all_jobs, self.block, self.places = writer, jobs, block, list(places)
        self.measure, self.deadline_us, self.clock, self.watcher = plan.measure, deadline_us, clock, watcher
        self.jobs = [jobs[p] for p in places]
        self.clock_name: ClockName = "thread-cpu" if plan.runtime.threads == 1 else "wall"
        self.measured_ns = 0
        state = writer.state()
        self.open = {i for i, job in enumerate(self.jobs) if is_open(job.job_id, state)}
        self.empty = next(i for i, job in enumerate(self.jobs) if job.role == "empty")
        # An operation may have lost or finished one of its op models in an earlier attempt: the others still need it.
        self.whole = [place for place, job in enumerate(jobs) if job.block == block]
        column_of = {place: column for column, place in enumerate(self.whole)}
        self.column = [column_of[place] for place in self.places]
        self.lost = {place for place in self.whole if jobs[place].job_id in state.failed}
        self.history = [self._history(rows) for _, rows in writer.rounds(block)]
        self.values: list[Floats] = [values[self.column] for values in self.history]
        self.rounds = len(self.values)
        self.checked = 0

    def _history(self, rows: raw.RawRows) -> Floats:
        return burst_values(rows, self.clock_name, len(self.all_jobs))[self.whole]

    def live(self) -> list[int]:
        """Places in the block that want another round: open jobs, and the standing models as long as there are any."""
        self._settle()
        wanted = {i for i in self.open if self.jobs[i].role not in ("reference", "empty")}
        if not wanted:
            wanted = {i for i in self.open if self._count(i) < self.measure.rounds_min}
            return sorted(wanted)
        standing = {i for i, job in enumerate(self.jobs) if job.role in ("reference", "empty")}
        return sorted(wanted | standing)

    def _count(self, index: int) -> int:
        return sum(1 for values in self.values if not np.isnan(values[index]))

    def _counts(self) -> Floats:
        counts: Floats = np.sum(~np.isnan(np.stack(self.values)), axis=0)
        return counts

    def _settle(self) -> None:
        measure = self.measure
        if not self.values or len(self.values) == self.checked:
            return
        self.checked = len(self.values)
        counts = self._counts()
        late = self.deadline_us is not None and self.clock.now_us() >= self.deadline_us
        due = {i for i in self.open if counts[i] >= measure.rounds_max}
        for index in sorted(due):
            self._finish(index, "rounds", counts)
        if late:
            for index in sorted(i for i in self.open if counts[i] >= _LEAST_ROUNDS):
                self._finish(index, "budget", counts)
        ripe = {i for i in self.open if counts[i] >= measure.rounds_min}
        if ripe and len(self.values) % _CHECK_EVERY == 0:
            for index in sorted(self._converged(ripe)):
                self._finish(index, "converged", counts)

    def _converged(self, ripe: set[int]) -> set[int]:
        """Jobs whose subject has a narrow enough interval; the op models of one operation converge together."""
        levels, replicates = levels_with_replicates(np.stack(self.history))
        index_of = {column: index for index, column in enumerate(self.column)}
        subjects: dict[str, list[int]] = {}
        for column, place in enumerate(self.whole):
            job = self.all_jobs[place]
            if job.role not in ("reference", "empty") and place not in self.lost:
                subjects.setdefault(job.subject, []).append(column)
        done: set[int] = set()
        for members in subjects.values():
            waiting = {index_of[column] for column in members if column in index_of} & self.open
            if waiting and waiting <= ripe and self._is_narrow(members, levels, replicates):
                done.update(waiting)
        return done

    def _is_narrow(self, members: list[int], levels: Floats, replicates: Floats) -> bool:
        jobs = [self.all_jobs[self.whole[column]] for column in members]
        if jobs[0].key is None:
            estimate, spread = float(levels[members[0]]), replicates[:, members[0]]
        elif jobs[0].context == "hot" and len(jobs) < 2:
            return True  # its partner cannot run: no number of rounds makes a slope of one op model
        else:
            fit = operation_fit(jobs, members, levels, replicates, self.column[self.empty])
            estimate, spread = fit.cost_us, fit.replicates_us
        low, high = interval(estimate, spread)
        return estimate > 0 and (high - low) / 2 <= self.measure.target_half_width_frac * estimate

    def _finish(self, index: int, reason: journals.FinishReason, counts: Floats) -> None:
        self.open.discard(index)
        self.writer.append(journals.JobFinished(job_id=self.jobs[index].job_id, rounds=int(counts[index]), reason=reason))

    def round(self, rows: raw.RawRows) -> None:
        """One round onto disk, then into the running estimate."""
        kept = rows.copy()
        kept["job"] = np.asarray(self.places, np.uint32)[rows["job"]]
        self.writer.record_round(self.block, kept)
        self.measured_ns += int(kept["wall_ns"].sum())
        self.history.append(self._history(kept))
        self.values.append(self.history[-1][self.column])
        self.watcher.round(self.block, len(self.values), len(self.open))

    def failed(self, place: int, error: DeviceError) -> None:
        """Journals a job that cannot run."""
        job = self.jobs[place]
        if place not in self.open:
            return
        self.open.discard(place)
        self.lost.add(self.places[place])
        attempt = self.writer.state().failures.get(job.job_id, 0) + 1
        kind, message = type(error).__name__, str(error)
        self.writer.append(journals.JobFailed(job_id=job.job_id, attempt=attempt, error=kind, message=message))
        self.watcher.job_failed(job, message)

    def give_up(self, error: DeviceError) -> None:
        """Ends the block's last attempt: what has enough rounds is finished, the rest failed."""
        self._settle()
        for index in sorted(self.open):
            if self.jobs[index].role in ("reference", "empty") and self._count(index) >= _LEAST_ROUNDS:
                self._finish(index, "rounds", self._counts())
            else:
                self.failed(index, error)

    def expected_us(self, expected: Mapping[int, float]) -> None:
        """The bench's first impression; the display estimates from rounds instead."""

    def close(self) -> None:
        """Finishes the standing models with the block."""
        if not self.values:
            for index in sorted(self.open):
                self.failed(index, WorkerDiedError(returncode=None, last_lines=["no round was measured"]))
            return
        counts = self._counts()
        for index in sorted(self.open):
            self._finish(index, "rounds", counts)
