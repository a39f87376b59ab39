from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from op_models import graph, locality
from op_models.arrange import CacheSizes, activation_bytes, state_bytes
from op_models.spec import OpSpec
from tests.op_models.built import NETWORKS, network_f32

KEYS = tuple(sorted({group.spec.key for build in NETWORKS.values() for group in graph.parse(build()).groups}))
CACHES = st.builds(
    CacheSizes, private_bytes=st.sampled_from([2**17, 2**18, 2**20, 2**21]), shared_bytes=st.sampled_from([2**22, 2**25, 2**26])
)
SIZES = st.floats(0, 1e12)


def test_the_footprint_is_all_state_and_the_largest_set_of_activations() -> None:
    conv = "CONV_2D(f32[1x8x8x4],*f32[6x1x1x4],*f32[6])->f32[1x8x8x6];pad=same;stride=1x1"
    weights_bytes = 4 * (6 * 4 + 6)
    moved_bytes = 4 * 8 * 8 * (4 + 6)
    small = "RELU(f32[1x10])->f32[1x10]"
    assert locality.footprint_bytes([]) == 0
    assert locality.footprint_bytes([small]) == 80
    assert locality.footprint_bytes([conv]) == weights_bytes + moved_bytes
    assert locality.footprint_bytes([conv, small, conv]) == 2 * weights_bytes + moved_bytes


def test_the_footprint_of_a_graph_is_that_of_what_it_executes() -> None:
    parsed = graph.parse(network_f32())
    specs = [group.spec for group in parsed.groups]
    state = sum(state_bytes(spec) for spec in specs)
    moved = max(activation_bytes(spec.activations) + activation_bytes(spec.outputs) for spec in specs)
    assert locality.graph_footprint_bytes(parsed) == state + moved


@given(rows=st.lists(st.lists(st.integers(0, 5), min_size=len(KEYS), max_size=len(KEYS)), min_size=1, max_size=6))
def test_footprints_in_bulk_are_those_of_each_network(rows: list[list[int]]) -> None:
    found = locality.footprints_bytes(KEYS, np.array(rows, np.float32))
    expected = [locality.footprint_bytes(key for key, count in zip(KEYS, row, strict=True) for _ in range(count)) for row in rows]
    assert found.tolist() == expected


def test_networks_of_no_operation_have_no_footprint() -> None:
    assert locality.footprints_bytes((), np.zeros((3, 0))).tolist() == [0, 0, 0]
    assert locality.footprints_bytes(KEYS, np.zeros((2, len(KEYS)))).tolist() == [0, 0]


@given(sizes=st.lists(SIZES, min_size=1, max_size=20), caches=CACHES)
def test_shares_are_bounded_and_far_is_reached_through_cold(sizes: list[float], caches: CacheSizes) -> None:
    ordered = np.sort(np.array(sizes))
    cold, far = locality.mixture(ordered, caches)
    assert np.isfinite([*cold, *far]).all()
    assert (cold >= 0).all()
    assert (cold <= locality.COLD_MOST).all()
    assert ((far >= 0) & (far <= 1)).all()
    assert (np.diff(far) >= 0).all()
    assert (np.diff(cold)[far[1:] == 0] >= 0).all()
    assert (cold[far > 0] > 0).all()


@given(size=SIZES, caches=CACHES)
def test_one_network_is_placed_as_among_many(size: float, caches: CacheSizes) -> None:
    alone = locality.mixture(size, caches)
    among = locality.mixture(np.array([1.0, size, 1e9]), caches)
    assert [float(share) for share in alone] == [float(share[1]) for share in among]


@pytest.mark.parametrize("private_bytes", [2**18, 2**20])
def test_the_smallest_networks_are_hot_and_the_largest_are_far(private_bytes: int) -> None:
    caches = CacheSizes(private_bytes, 2**25)
    assert [float(share) for share in locality.mixture(0.0, caches)] == [0, 0]
    assert [float(share) for share in locality.mixture(float(private_bytes), caches)] == [0, 0]
    cold, far = (float(share) for share in locality.mixture(1e12, caches))
    assert far == 1
    assert cold >= 1


@given(key=st.sampled_from(KEYS), copies=st.integers(1, 50))
def test_more_of_the_same_operation_never_shrinks_a_footprint(key: str, copies: int) -> None:
    one, many = locality.footprint_bytes([key]), locality.footprint_bytes([key] * copies)
    assert many - one == (copies - 1) * state_bytes(OpSpec.from_key(key))
