"""MACs, parameters and bytes against figures worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from op_models import counts
from op_models.graph import groups, parse
from op_models.layers import PRECISIONS, NetworkBuilder, Precision
from op_models.spec import OpSpec

KEYS = [
    # key, MACs, parameters, bytes of weights
    (
        "CONV_2D(f32[1x32x32x36],*f32[72x3x3x36],*f32[72])->f32[1x16x16x72];pad=same;stride=2x2",
        16 * 16 * 72 * 9 * 36,
        72 * 9 * 36 + 72,
        4 * (72 * 9 * 36 + 72),
    ),
    (  # grouped: each of 8 outputs sees 2 of the 4 channels
        "CONV_2D(f32[1x5x5x4],*f32[8x1x1x2],*f32[8])->f32[1x5x5x8];pad=same;stride=1x1",
        25 * 8 * 2,
        8 * 2 + 8,
        4 * 24,
    ),
    (
        "CONV_2D(i8.t[1x4x4x3],*i8.c[5x1x1x3],*i32.c[5])->i8.t[1x4x4x5];pad=same;stride=1x1",
        16 * 5 * 3,
        5 * 3 + 5,
        5 * 3 + 4 * 5,
    ),
    (
        "DEPTHWISE_CONV_2D(f32[1x8x8x6],~f16[1x5x5x6],~f16[6])->f32[1x8x8x6];pad=same;stride=1x1",
        64 * 6 * 25,
        150 + 6,
        2 * 156,
    ),
    ("FULLY_CONNECTED(f32[7x64],*f32[10x64],_)->f32[7x10]", 7 * 64 * 10, 640, 2560),
    (
        "TRANSPOSE_CONV(*i32[4]={1,8,8,2},*f32[2x3x3x5],f32[1x4x4x5])->f32[1x8x8x2];pad=same;stride=2x2",
        16 * 5 * 9 * 2,
        90,
        360,
    ),
    ("BATCH_MATMUL(f32[2x3x4],f32[2x4x5])->f32[2x3x5]", 2 * 3 * 4 * 5, 0, 0),
    ("BATCH_MATMUL(f32[2x4x3],f32[2x4x5])->f32[2x3x5];adj_x=yes", 2 * 3 * 4 * 5, 0, 0),
    ("BATCH_MATMUL(f32[2x3x4],@0)->f32[2x3x3];adj_y=yes", 2 * 3 * 4 * 3, 0, 0),
    (
        "CONV_3D(f32[1x4x4x4x2],*f32[3x3x3x2x5])->f32[1x4x4x4x5];pad=same",
        64 * 5 * 27 * 2,
        270,
        1080,
    ),
    ("ADD(f32[1x8x8x3],f32[1x8x8x3])->f32[1x8x8x3]", 0, 0, 0),
    ("MUL(f32[1x8x8x3],*f32[3])->f32[1x8x8x3]", 0, 3, 12),
    ("MEAN(f32[1x8x8x3],*i32[2]={1,2})->f32[1x3]", 0, 0, 0),
    ("AVERAGE_POOL_2D(f32[1x8x8x3])->f32[1x8x8x3];pad=same;stride=1x1;window=3x3", 0, 0, 0),
    (
        "PAD(f32[1x8x8x3],*i32[4x2]={0,0,1,1,1,1,0,0})->f32[1x10x10x3]"
        "|CONV_2D(%0,*f32[4x3x3x3],*f32[4])->f32[1x8x8x4];pad=valid;stride=1x1|RELU(%1)->f32[1x8x8x4]",
        64 * 4 * 27,
        4 * 27 + 4,
        4 * (4 * 27 + 4),
    ),
]


@pytest.mark.parametrize(("key", "macs", "params", "weight_bytes"), KEYS)
def test_an_operation_counts_as_worked_out_by_hand(key: str, macs: int, params: int, weight_bytes: int) -> None:
    spec = OpSpec.from_key(key)
    found = counts.counts(spec)
    assert (found.macs, found.params, found.weight_bytes) == (macs, params, weight_bytes)
    assert found.macs == counts.macs(spec)
    assert found.operators == len(spec.steps)


def test_bytes_of_activations_are_those_outside_the_group() -> None:
    spec = OpSpec.from_key(
        "PAD(f32[1x8x8x3],*i32[4x2]={0,0,1,1,1,1,0,0})->f32[1x10x10x3]"
        "|CONV_2D(%0,*f32[4x3x3x3],*f32[4])->f32[1x8x8x4];pad=valid;stride=1x1"
    )
    assert counts.input_bytes(spec) == 4 * 64 * 3
    assert counts.output_bytes(spec) == 4 * 64 * 4
    twice = OpSpec.from_key("ADD(i8.t[1x8x8x3],@0)->i8.t[1x8x8x3]")
    assert counts.input_bytes(twice) == 64 * 3


@given(
    size=st.integers(1, 9),
    channels=st.integers(1, 5),
    filters=st.integers(1, 5),
    kernel=st.integers(1, 3),
    precision=st.sampled_from(PRECISIONS),
)
def test_a_networks_counts_are_the_sum_of_its_layers(
    size: int, channels: int, filters: int, kernel: int, precision: Precision
) -> None:
    net = NetworkBuilder(precision)
    x = net.input((1, size, size, channels))
    y = net.fully_connected(net.mean(net.conv2d(net.depthwise(x, kernel), filters, 1)), 3)
    graph = parse(net.build(y), "three layers")
    found = counts.graph_counts(graph)
    pixels = size * size
    weights = (channels * kernel**2, channels * filters, 3 * filters)
    assert found.macs == pixels * (weights[0] + weights[1]) + weights[2]
    assert found.params == sum(weights) + channels + filters + 3
    bias_bytes = 2 if precision == "float16" else 4
    weight_bytes = {"float32": 4, "float16": 2, "int8": 1}[precision]
    assert found.weight_bytes == weight_bytes * sum(weights) + bias_bytes * (channels + filters + 3)
    assert found.operators == 4
    assert found.macs == sum(counts.macs(group.spec) for group in groups(graph))


def test_a_constant_that_two_operators_read_counts_once() -> None:
    net = NetworkBuilder("float32")
    x = net.input((1, 4, 4, 8))
    gain = net.constant(net.signal(x).std + 1.0)
    law = net.signal(x)
    y = net.apply("MUL", [net.apply("MUL", [x, gain], x.shape, law), gain], x.shape, law)
    graph = parse(net.build(y), "twice")
    assert counts.graph_counts(graph).params == 8
    assert sum(counts.params(group.spec) for group in groups(graph)) == 16
