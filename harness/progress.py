"""The progress display of a run on standard error: a bar on a terminal, a line a block elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.jobs import Job


class Progress:
    """A :class:`harness.watcher.Watcher` that shows how far a run is."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=self._console, disable=not sys.stderr.isatty(), transient=True)
        self._task = self._bar.add_task("preparing op models", total=None)
        self._blocks = self._number = self._in_block = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def begins(self, run: Path, jobs: int, blocks: int) -> None:
        """Says where results go."""
        self._blocks = blocks
        self._console.print(f"measuring {jobs} op models into {run}", markup=False)

    def block(self, name: str, jobs: int, rounds_done: int) -> None:
        """A new block: the bar starts again."""
        self._number, self._in_block = self._number + 1, jobs
        again = f", {rounds_done} rounds are there" if rounds_done else ""
        self._bar.reset(self._task, total=jobs, description=f"block {self._number}/{self._blocks}{again}")
        if self._bar.disable:
            self._console.print(f"block {self._number}/{self._blocks}: {jobs} op models{again}", markup=False)

    def round(self, name: str, number: int, live: int) -> None:
        """Another round is on disk."""
        told = f"block {self._number}/{self._blocks} round {number}"
        self._bar.update(self._task, completed=self._in_block - live, description=told)

    def job_failed(self, job: Job, reason: str) -> None:
        """Says at once what failed."""
        self._console.print(f"failed: {job.name}: {reason}", markup=False)
