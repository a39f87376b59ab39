from __future__ import annotations

import pytest

from op_models import elp_nas, graph
from op_models.counts import graph_counts
from op_models.elp_nas import OPERATIONS, ElpOperation
from tests.op_models.running import outputs_of

IDS = [operation.name for operation in OPERATIONS]


def test_there_are_four_operations_at_three_shapes() -> None:
    assert len(OPERATIONS) == 12
    assert len(set(IDS)) == 12
    assert {(operation.size, operation.channels) for operation in OPERATIONS} == {(32, 36), (16, 72), (8, 144)}
    assert elp_nas.COPIES == (1, 100)


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_a_chain_is_n_times_the_work_of_one_at_one_shape(operation: ElpOperation) -> None:
    one, many = (graph.parse(operation.chain(copies)) for copies in (1, 7))
    assert graph_counts(many).macs == 7 * graph_counts(one).macs
    assert len(many.live) == 7 * len(one.live)
    assert {op.name for op in many.live} == {op.name for op in one.live}
    shape = (1, operation.size, operation.size, operation.channels)
    assert {many.tensors[op.outputs[0]].shape for op in many.live} == {shape}
    assert not many.dead


@pytest.mark.parametrize("operation", OPERATIONS[:6], ids=IDS[:6])
def test_a_separable_convolution_is_relu_depthwise_pointwise(operation: ElpOperation) -> None:
    parsed = graph.parse(operation.chain(1))
    assert [op.name for op in parsed.live] == ["RELU", "DEPTHWISE_CONV_2D", "CONV_2D"]
    window = 3 if operation.kind == "sep3" else 5
    assert parsed.tensors[parsed.live[1].inputs[1]].shape[1:3] == (window, window)
    # Each copy has weights of its own, as in a network.
    weights = {op.inputs[1] for op in graph.parse(operation.chain(3)).live if op.name != "RELU"}
    assert len(weights) == 6


@pytest.mark.parametrize("operation", OPERATIONS[6:], ids=IDS[6:])
def test_a_pool_is_three_by_three_and_keeps_the_shape(operation: ElpOperation) -> None:
    (operator,) = graph.parse(operation.chain(1)).live
    assert operator.name == {"avg3": "AVERAGE_POOL_2D", "max3": "MAX_POOL_2D"}[operation.kind]
    assert dict(operator.options) == {"pad": "same", "stride": "1x1", "window": "3x3"}


@pytest.mark.parametrize("operation", OPERATIONS[2::3], ids=IDS[2::3])
def test_the_published_chain_runs(operation: ElpOperation) -> None:
    data = operation.chain(100)
    assert data == operation.chain(100)
    (output,) = outputs_of(data)
    assert output.shape == (1, operation.size, operation.size, operation.channels)
