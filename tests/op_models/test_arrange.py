"""Claims about the layout of op models: N values that give a slope, working sets that keep what a context promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from op_models import graph as graphs
from op_models.arrange import (
    CONTEXTS,
    MAX_COPIES,
    MOST_STATE_BYTES,
    Arrangement,
    CacheSizes,
    arrange,
    chain,
    cold_rotation_bytes,
    contexts,
    copy_bytes,
    far_rotation_bytes,
    state_bytes,
    weight_bytes,
)
from op_models.spec import OpSpec, Step, TensorSpec
from tests.op_models import built

MIB = 1 << 20


@st.composite
def operations(draw: st.DrawFn) -> OpSpec:
    """An operation of any size: from nothing to larger than every cache."""
    side, channels = draw(st.integers(1, 224)), draw(st.integers(1, 1024))
    act = TensorSpec((1, side, side, channels), draw(st.sampled_from(["f32", "i8"])))
    out = TensorSpec((1, side, side, draw(st.integers(1, 1024))), act.dtype)
    kernel = draw(st.sampled_from([1, 3, 7]))
    shape = (out.shape[3], kernel, kernel, draw(st.integers(1, 1024)))
    weights = TensorSpec(shape, draw(st.sampled_from(["f32", "f16", "i8"])), role="const")
    weighted = draw(st.booleans())
    inputs = (act, weights) if weighted else (act,)
    return OpSpec((Step("CONV_2D" if weighted else "LOGISTIC", (), inputs, (out,)),))


@st.composite
def cache_sizes(draw: st.DrawFn) -> CacheSizes:
    private = draw(st.sampled_from([256 << 10, 512 << 10, MIB, 2 * MIB]))
    return CacheSizes(private, private * draw(st.integers(2, 32)))


times_us = st.floats(0.01, 1e5)


@given(operations(), cache_sizes())
def test_every_operation_has_a_context(spec: OpSpec, caches: CacheSizes) -> None:
    found = contexts(spec, caches)
    assert found
    assert set(found) <= set(CONTEXTS)
    assert len(set(found)) == len(found)


@given(operations(), cache_sizes(), times_us)
def test_every_context_has_sizes_ascending_and_a_reason(spec: OpSpec, caches: CacheSizes, expected_us: float) -> None:
    for context in contexts(spec, caches):
        models = arrange(spec, context, caches, expected_us=expected_us)
        copies = [model.copies for model in models.models]
        assert copies == sorted(set(copies))
        assert 1 <= copies[0] <= copies[-1] <= MAX_COPIES
        # One size is enough where it is set against none, which the reason then says.
        assert len(copies) >= 2 or (copies[0] >= 2 and "against none" in models.why)
        assert all(model.context == context for model in models.models)
        assert len({model.name for model in models.models}) == len(copies)
        assert all(str(number) in models.why for number in copies)


@given(operations(), cache_sizes(), times_us)
def test_cold_copies_touch_more_than_the_private_cache_between_two_visits(
    spec: OpSpec, caches: CacheSizes, expected_us: float
) -> None:
    if "cold" not in contexts(spec, caches):
        return
    for model in arrange(spec, "cold", caches, expected_us=expected_us).models:
        assert model.copies * copy_bytes(spec) > caches.private_bytes or model.copies >= MAX_COPIES // 2
        assert model.input_sets == model.copies


@given(operations(), cache_sizes(), times_us)
def test_far_copies_rotate_more_weights_than_cold_ones(spec: OpSpec, caches: CacheSizes, expected_us: float) -> None:
    if "far" not in contexts(spec, caches):
        return
    *_, cold = arrange(spec, "cold", caches, expected_us=expected_us).models
    *_, far = arrange(spec, "far", caches, expected_us=expected_us).models
    assert far.copies >= min(cold.copies, 3)
    assert weight_bytes(spec) > 0


@given(operations(), cache_sizes(), times_us)
def test_no_context_needs_much_more_memory_than_it_rotates_through(spec: OpSpec, caches: CacheSizes, expected_us: float) -> None:
    for context in contexts(spec, caches):
        for model in arrange(spec, context, caches, expected_us=expected_us).models:
            rotating = max(far_rotation_bytes(caches), cold_rotation_bytes(caches))
            # Tables of pointers come on top of the weights that rotate. A whole copy more on either side has to be left.
            assert model.copies * state_bytes(spec) <= max(2 * rotating, MOST_STATE_BYTES) + 3 * copy_bytes(spec)


@given(operations(), cache_sizes(), times_us)
def test_hot_copies_keep_their_weights_in_the_private_cache(spec: OpSpec, caches: CacheSizes, expected_us: float) -> None:
    if "hot" not in contexts(spec, caches):
        return
    for model in arrange(spec, "hot", caches, expected_us=expected_us).models:
        assert model.input_sets == 1
        assert model.copies * weight_bytes(spec) <= caches.private_bytes


@given(operations(), cache_sizes(), times_us)
def test_hot_outputs_are_freed_before_they_fill_the_cache(spec: OpSpec, caches: CacheSizes, expected_us: float) -> None:
    if "hot" not in contexts(spec, caches):
        return
    outputs = sum(tensor.size_bytes for tensor in spec.outputs)
    for model in arrange(spec, "hot", caches, expected_us=expected_us).models:
        alive = model.copies if model.tap_after is None else model.tap_after + 1
        assert alive * outputs <= max(caches.private_bytes, 2 * outputs)


@given(operations(), cache_sizes(), st.integers(0, 1 << 30), st.integers(0, 1 << 30))
def test_a_larger_network_never_drops_a_context(spec: OpSpec, caches: CacheSizes, one: int, other: int) -> None:
    small, large = sorted((one, other))
    found = set(contexts(spec, caches, footprint_bytes=small))
    assert found <= set(contexts(spec, caches, footprint_bytes=large)) <= set(contexts(spec, caches))


@pytest.mark.parametrize("units", [16, 512, 1024, 1536, 1800, 2048, 2300, 4000])
def test_the_reason_of_a_hot_layout_is_true_for_dense_layers_of_any_size(units: int) -> None:
    spec = OpSpec.from_key(f"FULLY_CONNECTED(f32[1x64],*f32[{units}x64],_)->f32[1x{units}]")
    if "hot" in contexts(spec, CacheSizes()):
        for model in arrange(spec, "hot", CacheSizes()).models:
            assert model.copies * copy_bytes(spec) <= CacheSizes().private_bytes


def test_float16_weights_count_as_the_floats_that_they_become() -> None:
    network = graphs.parse(built.network_f16())
    assert weight_bytes(network.groups[0].spec) == 4 * (8 * 4 + 8)


def test_names_tell_arrangements_apart() -> None:
    made = [
        Arrangement("hot", 2),
        Arrangement("hot", 3),
        Arrangement("cold", 2),
        Arrangement("hot", 2, tap_after=1),
        Arrangement("hot", 2, tap_after=2),
        Arrangement("hot", 2, input_sets=2),
        Arrangement("hot", 2, layout="chain"),
    ]
    assert len({arrangement.name for arrangement in made}) == len(made)


def test_only_what_feeds_itself_can_be_chained() -> None:
    relu = OpSpec.from_key("RELU(f32[1x4])->f32[1x4]")
    assert chain(relu, 100) == Arrangement("hot", 100, layout="chain")
    for key in ("MEAN(f32[1x4x4x2],*i32[2]={1,2})->f32[1x2]", "ADD(f32[4],f32[4])->f32[4]", "CAST(f32[4])->i32[4]"):
        with pytest.raises(ValueError, match="cannot feed"):
            chain(OpSpec.from_key(key), 2)
