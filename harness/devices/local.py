"""This computer as a bench: a pinned worker process, all models of a block loaded, interleaved in rounds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness import provenance, raw
from harness.devices.bench import Recorder
from harness.errors import DeviceError, JobTimeoutError, ModelRunError, WorkerDiedError
from harness.jobs import Job
from harness.provenance import DeviceFacts, RuntimeFacts

_START_LIMIT_S = 60.0  # for importing numpy and the runtime from a slow disk
LEAST_INVOKES = 3
MOST_INVOKES = 60


def last_core() -> int | None:
    """The core a worker is pinned to by default: the last that this process may use (the first gets most interrupts)."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return max(os.sched_getaffinity(0))


def can_pin(core: int) -> bool:
    """Whether a process may be bound to a core: tried out on this thread, since no list says it for containers."""
    if not hasattr(os, "sched_getaffinity"):
        return False
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
    except (OSError, OverflowError, ValueError):
        return False
    os.sched_setaffinity(0, before)
    return True


class LocalBench:
    """Measures on this computer.

    ``core`` is the core to pin to; ``burst_us`` how long one visit to a model should take; ``feeds`` gives the path of a
    ``.npz`` with real input data by its hash.
    """

    def __init__(
        self,
        *,
        core: int | None,
        burst_us: float = 3000.0,
        job_timeout_s: float = 120.0,
        seed: int = 1,
        feeds: Mapping[str, Path] | None = None,
    ) -> None:
        self.core, self.burst_us, self.job_timeout_s, self.seed = core, burst_us, job_timeout_s, seed
        self.feeds = feeds or {}

    def facts(self) -> DeviceFacts:
        """What this computer is."""
        return provenance.device_facts()

    def runtime(self) -> RuntimeFacts:
        """Which LiteRT runs here."""
        return provenance.litert_facts()

    def run(self, block: Sequence[Job], paths: Sequence[Path], record: Recorder) -> None:
        """Loads all jobs of the block and visits them in a fresh random order each round.

        A model that kills the worker, or never ends, while it is loaded is reported as failed and left out.
        """
        left_out: set[int] = set()
        while True:
            try:
                self._run(block, paths, record, left_out)
                return
            except _LostWorkerError as lost:
                if lost.loading is None:
                    raise lost.error from lost
                culprit = [place for place in range(len(block)) if place not in left_out][lost.loading]
                error = self._alone(block[culprit], paths[culprit])
                if error is None:  # it is not that model but all of them together, or a signal from outside
                    raise lost.error from lost
                left_out.add(culprit)
                record.failed(culprit, error)

    def _run(self, block: Sequence[Job], paths: Sequence[Path], record: Recorder, left_out: set[int]) -> None:
        places = [place for place in range(len(block)) if place not in left_out]
        with _Worker(self.core, self.job_timeout_s) as worker:
            failed, expected = worker.load([self._wanted(block[p], paths[p]) for p in places])
            for index, reason in failed.items():
                record.failed(places[index], ModelRunError(model=block[places[index]].name, reason=reason))
            record.expected_us({places[i]: us for i, us in expected.items()})
            invokes = {places[i]: block[places[i]].invokes or self._invokes(us) for i, us in expected.items()}
            rng = np.random.default_rng(self.seed)
            index_of = {place: index for index, place in enumerate(places)}
            while live := [place for place in record.live() if place in invokes]:
                order = rng.permutation(live).tolist()
                rows, broken = worker.round([index_of[p] for p in order], [invokes[p] for p in order])
                for index, reason in broken.items():
                    place = places[index]
                    invokes.pop(place, None)
                    record.failed(place, ModelRunError(model=block[place].name, reason=reason))
                if rows.size:
                    rows["job"] = np.asarray(places, np.uint32)[rows["job"]]
                    record.round(rows)

    def _invokes(self, expected_us: float) -> int:
        return int(np.clip(self.burst_us / max(expected_us, 0.1), LEAST_INVOKES, MOST_INVOKES))

    def _wanted(self, job: Job, path: Path) -> dict[str, Any]:
        feed = None if job.feed_sha256 is None else str(self.feeds[job.feed_sha256])
        return {
            "path": str(path),
            "delegate": job.delegate,
            "threads": job.threads,
            "seed": job.seed,
            "feed": feed,
        }

    def _alone(self, job: Job, path: Path) -> DeviceError | None:
        """How one model ends a worker that loads nothing else; None where it does not."""
        try:
            with _Worker(self.core, self.job_timeout_s) as worker:
                worker.load([self._wanted(job, path)])
        except _LostWorkerError as lost:
            if isinstance(lost.error, JobTimeoutError):
                return JobTimeoutError(job_id=job.job_id, limit_s=lost.error.limit_s)
            return lost.error
        return None


class _LostWorkerError(Exception):
    """The worker is gone or hangs; ``loading`` is the index of the model that it was loading, None in a round."""

    def __init__(self, error: WorkerDiedError | JobTimeoutError, *, loading: int | None) -> None:
        super().__init__(str(error))
        self.error, self.loading = error, loading


class _Worker:
    """A running worker process and the conversation with it."""

    def __init__(self, core: int | None, timeout_s: float) -> None:
        self.core, self.timeout_s = core, timeout_s
        self._talk = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS",)}
        environment["PYTHONPATH"] = os.pathsep.join([p for p in sys.path if p])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.devices.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._talk,
            env=environment,
            start_new_session=True,
        )
        self._held = b""
        self._loading: int | None = None

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, models: list[dict[str, Any]]) -> tuple[dict[int, str], dict[int, float]]:
        """Loads models; answers (reasons of those that failed, first time in us of the others) by index."""
        answer = self._ask({"op": "load", "core": self.core, "models": models}, _START_LIMIT_S + self.timeout_s)
        while "loading" in answer:
            self._loading = answer["loading"]
            answer = json.loads(self._read_line(self.timeout_s))
        self._loading = None
        expected = {i: us for i, us in enumerate(answer["expected_us"]) if us is not None}
        return {int(i): reason for i, reason in answer["failed"].items()}, expected

    def round(self, order: list[int], invokes: list[int]) -> tuple[raw.RawRows, dict[int, str]]:
        """One round; rows carry the worker's index as ``job``."""
        limit_s = self.timeout_s + 0.5 * len(order)
        answer = self._ask({"op": "round", "order": order, "invokes": invokes}, limit_s)
        payload = self._read_exactly(answer["bytes"], limit_s)
        rows: raw.RawRows = np.load(io.BytesIO(payload), allow_pickle=False)
        return rows, {int(i): reason for i, reason in answer["failed"].items()}

    def _ask(self, request: dict[str, Any], limit_s: float) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._lost() from error
        return json.loads(self._read_line(limit_s))

    def _read_line(self, limit_s: float) -> bytes:
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._held:
            self._receive(deadline, limit_s)
        line, _, self._held = self._held.partition(b"\n")
        return line

    def _read_exactly(self, count: int, limit_s: float) -> bytes:
        deadline = time.monotonic() + limit_s
        while len(self._held) < count:
            self._receive(deadline, limit_s)
        payload, self._held = self._held[:count], self._held[count:]
        return payload

    def _receive(self, deadline: float, limit_s: float) -> None:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise _LostWorkerError(JobTimeoutError(job_id="of the block", limit_s=limit_s), loading=self._loading)
        chunk = os.read(pipe, 1 << 20)
        if not chunk:
            raise self._lost()
        self._held += chunk

    def _lost(self) -> _LostWorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._talk.seek(0, os.SEEK_END)
        self._talk.seek(max(0, self._talk.tell() - 4000))
        lines = [line for line in self._talk.read().decode("utf-8", "replace").splitlines() if line.strip()]
        error = WorkerDiedError(returncode=self._process.poll(), last_lines=lines[-3:])
        return _LostWorkerError(error, loading=self._loading)

    def close(self) -> None:
        """Ends the worker; twice is harmless."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            try:
                self._process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._talk.close()
