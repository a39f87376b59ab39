"""Who is told how a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from harness.jobs import Job


class Watcher(Protocol):
    """Is told how a run goes; the progress display and tests implement it."""

    def begins(self, run: Path, jobs: int, blocks: int) -> None: ...

    def block(self, name: str, jobs: int, rounds_done: int) -> None: ...

    def round(self, name: str, number: int, live: int) -> None: ...

    def job_failed(self, job: Job, reason: str) -> None: ...


class Silent:
    """A watcher that looks away."""

    def begins(self, run: Path, jobs: int, blocks: int) -> None:
        """Nothing."""

    def block(self, name: str, jobs: int, rounds_done: int) -> None:
        """Nothing."""

    def round(self, name: str, number: int, live: int) -> None:
        """Nothing."""

    def job_failed(self, job: Job, reason: str) -> None:
        """Nothing."""
