from __future__ import annotations

import numpy as np
import pytest

from op_models import graph
from op_models.arrange import CacheSizes, weight_bytes
from op_models.counts import graph_counts
from op_models.locality import graph_footprint_bytes
from op_models.standing import empty_model, reference_model
from tests.op_models.running import outputs_of


def test_the_empty_model_is_one_addition_of_two_numbers() -> None:
    parsed = graph.parse(empty_model())
    assert [group.spec.key for group in parsed.groups] == ["ADD(f32[1x1],*f32[1x1])->f32[1x1]"]
    (output,) = outputs_of(empty_model())
    assert output.shape == (1, 1)


def test_both_are_the_same_bytes_each_time() -> None:
    # Runs are compared by their reference: another one would be another unit.
    assert empty_model() == empty_model()
    assert reference_model() == reference_model()


@pytest.mark.parametrize("delegate", ["xnnpack", "none"])
def test_the_reference_runs_and_its_signal_stays_sane(delegate: str) -> None:
    first, second = (outputs_of(reference_model(), delegate=delegate, seed=seed)[0] for seed in (1, 2))
    assert first.shape == (1, 32)
    assert np.isfinite(first).all()
    assert 1e-3 < np.abs(first).max() < 1e3
    assert not np.array_equal(first, second)  # it depends on its input: nothing of it is folded away


def test_the_reference_has_work_of_each_kind_and_no_dead_operator() -> None:
    parsed = graph.parse(reference_model())
    assert not parsed.dead
    assert not parsed.folded
    assert {op.name for op in parsed.live} == {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "RESHAPE", "FULLY_CONNECTED"}
    assert 1e6 < graph_counts(parsed).macs < 1e8


def test_the_reference_holds_more_than_a_private_cache_and_less_than_a_shared_one() -> None:
    parsed = graph.parse(reference_model())
    caches = CacheSizes()
    assert caches.private_bytes < graph_footprint_bytes(parsed) < caches.shared_bytes
    dense = next(group.spec for group in parsed.groups if group.spec.name == "FULLY_CONNECTED")
    assert weight_bytes(dense) > caches.private_bytes
