"""Whether a run directory still holds what was written: every file against the journal, the journal against itself.

Nothing is recomputed here; what is derived from the raw data is the caller's to redo and compare.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness import journal as journals
from harness import raw as raws
from harness.errors import CorruptRunError, HalfMadeRunError, HarnessError, NotARunError, StorageError
from harness.files import FileLayer, OsFileLayer, is_temporary
from harness.journal import BlockStarted, JournalState, RoundRecorded
from harness.layout import (
    ATTACHED,
    CHECKSUMS,
    DERIVED,
    JOBS,
    JOURNAL,
    LOCK,
    MANIFEST,
    PLAN,
    RAW,
    checksums,
    condition,
    raw_path,
)
from harness.rundir import RunReader

Kind = Literal[
    "anchor",
    "changed",
    "checksums",
    "derived",
    "half-made",
    "in-flight",
    "jobs",
    "journal",
    "leftover",
    "missing",
    "stranger",
    "torn-tail",
    "unjournaled",
]

_CHECKSUM_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\Z")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a run directory that is not as it should be.

    ``path`` is relative to the run. Where ``is_error`` is False a killed process explains it and nothing is lost.
    """

    kind: Kind
    path: str
    message: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def check_integrity(path: Path, *, files: FileLayer | None = None) -> list[Finding]:
    """Everything that is wrong with a run directory, the worst first; empty where it is whole and nothing is in flight.

    Changes nothing and takes no lock; a live run may show a torn tail or a round in flight. Raises NotARunError where
    there is no run at all.
    """
    files = files or OsFileLayer()
    found = condition(path)
    if found == "half-made":
        return [Finding("half-made", ".", str(HalfMadeRunError(path=path)), is_error=False)]
    if found not in ("run", "finished"):
        raise NotARunError(path=path)
    findings = list(_findings(path, files, is_closed=found == "finished"))
    return sorted(findings, key=lambda finding: not finding.is_error)


def _findings(path: Path, files: FileLayer, *, is_closed: bool) -> Iterator[Finding]:
    if is_closed:
        # Also where the journal cannot be read: it tells which other files are still what they were.
        yield from _checksum_findings(path, files)
    try:
        text = journals.parse(files.read(path / JOURNAL), path / JOURNAL)
        state = journals.fold(text.entries, path / JOURNAL)
    except CorruptRunError as error:
        yield Finding("journal", JOURNAL, error.reason if error.line is None else f"line {error.line}: {error.reason}")
        return
    except StorageError as error:
        yield Finding("missing", JOURNAL, str(error))
        return
    if text.torn:
        message = f"ends in {len(text.torn)} bytes of an event that was never finished"
        yield Finding("torn-tail", JOURNAL, message, is_error=is_closed or state.is_finished)
    yield from _anchor_findings(path, state, files)
    yield from _job_findings(path, text, files)
    yield from _recorded_findings(path, text, files)
    yield from _unjournaled_findings(path, state, files, is_closed=is_closed)
    if is_closed and not state.is_finished:
        yield Finding("checksums", CHECKSUMS, "there are checksums although the journal does not say that it finished")


def _anchor_findings(path: Path, state: JournalState, files: FileLayer) -> Iterator[Finding]:
    """The files that were written before the journal, against its first event."""
    started = state.started
    anchors = ((PLAN, started.plan_sha256), (MANIFEST, started.manifest_sha256), (JOBS, started.jobs_sha256))
    for name, sha256 in anchors:
        yield from _hash_finding(path, name, sha256, files, kind="anchor")


def _job_findings(path: Path, text: journals.JournalText, files: FileLayer) -> Iterator[Finding]:
    """The jobs that events name, against jobs.json; the manifest, against the plan and the first event."""
    try:
        run = RunReader(path, entries=text.entries, files=files)
    except CorruptRunError as error:
        if "sha256" not in error.reason and "missing" not in error.reason:  # those are told by their anchors
            yield Finding("anchor", error.path.relative_to(path).as_posix(), error.reason)
        return
    except StorageError:
        return
    started = run.state().started
    if run.manifest.plan_sha256 != started.plan_sha256 or run.manifest.run_id != started.run_id:
        yield Finding("anchor", MANIFEST, "names another plan or run than the journal")
    named = {*run.state().finished, *run.state().failed}
    for stranger in sorted(named - set(run.job_ids)):
        yield Finding("jobs", JOURNAL, f"tells of job {stranger}, which is not in {JOBS}")
    for entry in text.entries:
        if isinstance(entry.body, BlockStarted) and any(number >= len(run.jobs) for number in entry.body.jobs):
            yield Finding("jobs", JOURNAL, f"block {entry.body.block} names a job beyond the {len(run.jobs)} of {JOBS}")
    if run.state().is_finished:
        for left in [name for name in run.job_ids if name not in named]:
            yield Finding("jobs", JOURNAL, f"says that the run finished, but job {left} neither finished nor failed")


def _recorded_findings(path: Path, text: journals.JournalText, files: FileLayer) -> Iterator[Finding]:
    """Every journaled recording, against its hash and what the journal says of its content."""
    for entry in text.entries:
        event = entry.body
        if isinstance(event, journals.FileRecorded):
            if not event.path.startswith(f"{ATTACHED}/") or ".." in event.path:
                yield Finding("journal", event.path, "is journaled outside of its place")
                continue
            yield from _hash_finding(path, event.path, event.sha256, files, kind="changed")
        elif isinstance(event, RoundRecorded):
            if event.path != raw_path(event.block, event.round):
                yield Finding("journal", event.path, f"round {event.round} of {event.block} has a wrong place")
                continue
            told = list(_hash_finding(path, event.path, event.sha256, files, kind="changed"))
            yield from told or _content_findings(path, event, files)


def _content_findings(path: Path, event: RoundRecorded, files: FileLayer) -> Iterator[Finding]:
    try:
        rows = raws.decode(files.read(path / event.path), path / event.path)
    except CorruptRunError as error:
        yield Finding("changed", event.path, error.reason)
        return
    if raws.job_numbers(rows) != event.jobs or rows.size != event.rows:
        yield Finding("changed", event.path, "its rows are not of the journaled jobs")


def _unjournaled_findings(path: Path, state: JournalState, files: FileLayer, *, is_closed: bool) -> Iterator[Finding]:
    """What lies there that the journal does not tell of: one recording can be in flight, the rest was put there."""
    unjournaled: list[str] = []
    known = {PLAN, MANIFEST, JOBS, JOURNAL, CHECKSUMS, LOCK}
    for item in _everything(path, files):
        relative = item.relative_to(path).as_posix()
        if relative in known or relative in state.files:
            continue
        if is_temporary(item):
            yield Finding("leftover", relative, "is left of a write that was never finished", is_error=is_closed)
        elif relative.startswith((f"{RAW}/", f"{ATTACHED}/")):
            unjournaled.append(relative)
        else:
            yield Finding("stranger", relative, "is not a file of the run")
    next_rounds = {raw_path(block, len(state.rounds.get(block, ()))) for block in state.attempts}
    could_be = [name for name in unjournaled if name in next_rounds or name.startswith(f"{ATTACHED}/")]
    if len(unjournaled) == 1 and could_be and not is_closed and not state.is_finished:
        yield Finding("in-flight", unjournaled[0], "is complete but was not journaled yet", is_error=False)
        return
    for name in unjournaled:
        yield Finding("unjournaled", name, "the journal does not tell of it")


def _checksum_findings(path: Path, files: FileLayer) -> Iterator[Finding]:
    try:
        told = files.read(path / CHECKSUMS)
        computed = checksums(path, files)
    except StorageError as error:
        yield Finding("checksums", CHECKSUMS, str(error))
        return
    if told == computed:
        return
    now = {line[66:]: line[:64] for line in computed.decode("utf-8", "replace").splitlines()}
    then: dict[str, str] = {}
    for number, line in enumerate(told.decode("utf-8", "replace").split("\n")[:-1], start=1):
        match = _CHECKSUM_LINE.match(line)
        if match is None:
            yield Finding("checksums", CHECKSUMS, f"line {number} is not a checksum")
        else:
            then[match[2]] = match[1]
    differing = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    for name in differing:
        if name not in now:
            yield Finding("checksums", name, f"is in {CHECKSUMS} but not in the directory")
        elif name not in then:
            yield Finding("checksums", name, f"is not in {CHECKSUMS}")
        else:
            yield Finding("checksums", name, _differs(then[name], now[name]))
    if not differing:
        yield Finding("checksums", CHECKSUMS, "is not written as it was")


def _differs(expected: str, found: str) -> str:
    shown = 12 if expected[:12] != found[:12] else 64
    return f"expected sha256 {expected[:shown]}, found {found[:shown]}"


def _hash_finding(path: Path, name: str, sha256: str, files: FileLayer, *, kind: Kind) -> Iterator[Finding]:
    if not files.exists(path / name):
        yield Finding("missing", name, "is journaled but missing")
        return
    try:
        found = hashlib.sha256(files.read(path / name)).hexdigest()
    except HarnessError as error:
        yield Finding(kind, name, str(error))
        return
    if found != sha256:
        yield Finding(kind, name, _differs(sha256, found))


def _everything(path: Path, files: FileLayer) -> Iterator[Path]:
    """Every file of the run but what is derived."""
    pending = [item for item in files.listing(path) if item.name != DERIVED]
    while pending:
        item = pending.pop()
        if item.is_dir() and not item.is_symlink():
            pending.extend(files.listing(item))
        else:
            yield item
