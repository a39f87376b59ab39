"""Jobs: one op model or network to measure, known by the hash of what it is."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from harness.record import Record

Role = Literal["operation", "network", "elp-nas", "reference", "empty"]


class Job(Record):
    """One model that is measured.

    ``job_id`` is a hash of everything else but ``block``: the same content asked for twice is one job. ``key`` and
    ``context`` say which table entry it serves; ``copies`` is its N.
    """

    job_id: str
    role: Role
    name: str
    key: str | None = None
    context: Literal["hot", "cold", "far"] | None = None
    copies: int = 1
    why: str = ""
    model_sha256: str
    model_bytes: int
    memory_bytes: int
    delegate: str
    threads: int
    seed: int
    invokes: int | None = None
    """Invocations a visit; None leaves it to the bench."""
    feed_sha256: str | None = None
    block: str = ""

    @property
    def subject(self) -> str:
        """What this job measures, together with others that differ in N alone."""
        return f"{self.role}:{self.key or self.name}:{self.context}"


def make_job(**facts: object) -> Job:
    """A job with its id computed from ``facts`` (all fields of :class:`Job` but ``job_id``)."""
    content = Job(job_id="", **facts)  # type: ignore[arg-type]  # pydantic checks them
    identity = content.model_dump(mode="json", exclude={"job_id", "block", "why"})
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return content.model_copy(update={"job_id": digest[:16]})


def in_blocks(jobs: list[Job], *, most_models: int, most_bytes: int) -> list[Job]:
    """The jobs with ``block`` filled in: subjects stay together, a block keeps within models and memory.

    Every block gets the reference and the empty model, so that blocks can be compared; they are separate jobs of the
    same content, told apart by their name.
    """
    standing = [job for job in jobs if job.role in ("reference", "empty")]
    subjects: dict[str, list[Job]] = {}
    for job in jobs:
        if job.role not in ("reference", "empty"):
            subjects.setdefault(job.subject, []).append(job)
    placed: list[Job] = []
    standing_bytes = sum(job.memory_bytes for job in standing)
    number, held, held_bytes = 0, 0, 0
    for group in subjects.values():
        size_bytes = sum(job.memory_bytes for job in group)
        if number == 0 or held + len(group) > most_models or held_bytes + size_bytes > most_bytes:
            number, held, held_bytes = number + 1, len(standing), standing_bytes
            placed.extend(_standing(standing, f"b{number:03d}"))
        held, held_bytes = held + len(group), held_bytes + size_bytes
        placed.extend(job.model_copy(update={"block": f"b{number:03d}"}) for job in group)
    return placed


def _standing(jobs: list[Job], block: str) -> list[Job]:
    made = []
    for job in jobs:
        facts = job.model_dump(exclude={"job_id"}) | {"block": block, "name": f"{job.name}@{block}"}
        made.append(make_job(**facts))
    return made
