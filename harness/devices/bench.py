"""The seam where a local worker, a phone behind a shell and a virtual phone meet: ``Bench`` and ``Recorder``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harness.errors import DeviceError
from harness.jobs import Job
from harness.provenance import DeviceFacts, RuntimeFacts
from harness.raw import RawRows


class Recorder(Protocol):
    """Takes what a bench measures, round by round, and says what is still wanted."""

    def live(self) -> Sequence[int]:
        """Places (in the block) of the jobs that want another round; empty when the block is done."""
        ...

    def round(self, rows: RawRows) -> None:
        """Keeps one round; ``job`` in the rows is the place in the block. On disk when this returns."""
        ...

    def failed(self, place: int, error: DeviceError) -> None:
        """A job that cannot run; the others go on."""
        ...

    def expected_us(self, expected: Mapping[int, float]) -> None:
        """First rough time of each job, for the progress display."""
        ...


class Bench(Protocol):
    """Something that runs blocks of jobs."""

    def facts(self) -> DeviceFacts:
        """What the device is."""
        ...

    def runtime(self) -> RuntimeFacts:
        """What software runs the models."""
        ...

    def run(self, block: Sequence[Job], paths: Sequence[Path], record: Recorder) -> None:
        """Measures one block, round after round, until ``record.live()`` is empty.

        ``paths`` holds the model file of each job. Raises :class:`~harness.errors.WorkerDiedError` when the device is
        lost in the middle; rounds already recorded stay.
        """
        ...
