from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.jobs import Job, in_blocks, make_job

FACTS: dict[str, object] = {
    "role": "operation",
    "name": "RELU n4",
    "key": "RELU(f32[4])->f32[4]",
    "context": "hot",
    "copies": 4,
    "model_sha256": "ab" * 32,
    "model_bytes": 100,
    "memory_bytes": 1000,
    "delegate": "xnnpack",
    "threads": 1,
    "seed": 1,
}
STANDING = [
    make_job(**(FACTS | {"role": role, "name": role, "key": None, "context": None, "copies": 1, "memory_bytes": 10}))
    for role in ("empty", "reference")
]


def operation(key: str, copies: int, memory_bytes: int = 1000) -> Job:
    return make_job(**(FACTS | {"key": key, "copies": copies, "memory_bytes": memory_bytes}))


def test_the_id_is_the_same_for_the_same_content() -> None:
    assert make_job(**FACTS).job_id == make_job(**dict(reversed(FACTS.items()))).job_id


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "ac" * 32},
        {"copies": 5},
        {"context": "cold"},
        {"key": "RELU(f32[5])->f32[5]"},
        {"delegate": "none"},
        {"threads": 2},
        {"seed": 2},
        {"feed_sha256": "cd" * 32},
        {"role": "network"},
    ],
)
def test_whatever_decides_the_measurement_decides_the_id(change: dict[str, object]) -> None:
    assert make_job(**(FACTS | change)).job_id != make_job(**FACTS).job_id


@pytest.mark.parametrize("change", [{"why": "because"}, {"block": "b001"}])
def test_explanations_and_the_place_do_not_decide_the_id(change: dict[str, object]) -> None:
    assert make_job(**(FACTS | change)).job_id == make_job(**FACTS).job_id


def test_a_job_survives_json() -> None:
    job = make_job(**FACTS)
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert Job.model_validate(job.model_dump(mode="json")) == job


def test_a_job_with_a_fact_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError):
        make_job(**(FACTS | {"colour": "red"}))


@given(
    groups=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5000)), max_size=20),  # op models of a subject, memory of each
    most_models=st.integers(4, 12),
    most_bytes=st.integers(100, 20_000),
)
def test_blocks_keep_subjects_together_and_within_limits(
    groups: list[tuple[int, int]], most_models: int, most_bytes: int
) -> None:
    jobs = [operation(f"OP{i}(f32[4])->f32[4]", n, size) for i, (count, size) in enumerate(groups) for n in range(1, count + 1)]
    placed = in_blocks([*STANDING, *jobs], most_models=most_models, most_bytes=most_bytes)
    blocks: dict[str, list[Job]] = {}
    for job in placed:
        blocks.setdefault(job.block, []).append(job)
    measured = [job for job in placed if job.role == "operation"]
    assert [job.job_id for job in measured] == [job.job_id for job in jobs]
    assert len({job.job_id for job in placed}) == len(placed)
    of_subject: dict[str, set[str]] = {}
    for job in measured:
        of_subject.setdefault(job.subject, set()).add(job.block)
    assert all(len(found) == 1 for found in of_subject.values())
    for held in blocks.values():
        assert Counter(job.role for job in held if job.role != "operation") == {"empty": 1, "reference": 1}
        subjects = {job.subject for job in held if job.role == "operation"}
        # One subject that is too large for any block gets one of its own.
        assert len(subjects) == 1 or len(held) <= most_models
        assert len(subjects) == 1 or sum(job.memory_bytes for job in held) <= most_bytes


def test_no_block_is_made_for_standing_models_alone() -> None:
    assert in_blocks(STANDING, most_models=10, most_bytes=10_000) == []


def test_op_models_of_one_operation_and_context_are_one_subject() -> None:
    assert operation("A", 1).subject == operation("A", 7).subject
    assert operation("A", 1).subject != operation("B", 1).subject
    assert make_job(**(FACTS | {"context": "far"})).subject != make_job(**FACTS).subject
