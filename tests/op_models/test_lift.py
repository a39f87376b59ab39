"""Claims about op models: every copy computes exactly what the operation computes in its network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from op_models import graph as graphs
from op_models.arrange import Arrangement
from op_models.builder import GraphBuilder
from op_models.errors import NotLiftableError
from op_models.feeds import activations, network_inputs, record
from op_models.graph import Graph, Group
from op_models.lift import Lifter
from tests.op_models import built

Array = NDArray[Any]
NETWORKS = sorted(built.NETWORKS)


def run(model: bytes, inputs: Sequence[Array]) -> list[Array]:
    """Outputs of a model on LiteRT's own kernels, which compute the same for an operator wherever it stands."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter: Any = Interpreter(
        model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]


def in_network(network: Graph, group: Group, seed: int = 3) -> tuple[list[Array], list[Array]]:
    """What a group reads and writes while its network runs."""
    read = activations(network, group)
    written = network.operators[group.operators[-1]].outputs
    values = record(network, (*read, *written), inputs=network_inputs(network, seed))
    return [values[t] for t in read], [values[t] for t in written]


def all_groups() -> list[tuple[str, int]]:
    return [(name, i) for name in NETWORKS for i in range(len(graphs.parse(built.NETWORKS[name]()).groups))]


@pytest.mark.parametrize(("name", "position"), all_groups())
@pytest.mark.parametrize("sets", [1, 2, 3])
def test_every_copy_side_by_side_computes_what_the_operation_does_in_its_network(name: str, position: int, sets: int) -> None:
    network = graphs.parse(built.NETWORKS[name]())
    group = network.groups[position]
    model = Lifter(network).op_model(group, Arrangement("cold", 3, input_sets=sets))
    inputs, expected = [], []
    for seed in range(sets):
        read, written = in_network(network, group, seed)
        inputs.extend(read)
        expected.append(written)
    outputs = run(model, inputs)
    assert len(outputs) == 3 * len(expected[0])
    for copy in range(3):
        for place, wanted in enumerate(expected[copy % sets]):
            np.testing.assert_array_equal(outputs[copy * len(expected[0]) + place], wanted)


@pytest.mark.parametrize(("name", "position"), all_groups())
@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_tap_reads_the_first_element_of_every_copy(name: str, position: int, delay: int) -> None:
    network = graphs.parse(built.NETWORKS[name]())
    group = network.groups[position]
    model = Lifter(network).op_model(group, Arrangement("hot", 4, tap_after=delay))
    read, written = in_network(network, group)
    outputs = run(model, read)
    assert len(outputs) == 4 * len(written)
    for place, output in enumerate(outputs):
        wanted = written[place % len(written)]
        assert output.size == 1
        assert output.ravel()[0] == wanted.ravel()[0]


def chainable() -> list[tuple[str, int]]:
    found = []
    for name, position in all_groups():
        spec = graphs.parse(built.NETWORKS[name]()).groups[position].spec
        if len(spec.activations) == 1 and spec.activations[0] == spec.outputs[0]:
            found.append((name, position))
    return found


@pytest.mark.parametrize(("name", "position"), chainable())
def test_a_chain_of_three_is_the_operation_three_times(name: str, position: int) -> None:
    network = graphs.parse(built.NETWORKS[name]())
    group = network.groups[position]
    lifter = Lifter(network)
    alone = lifter.op_model(group, Arrangement("hot", 1))
    (first,), _ = in_network(network, group)
    value = first
    for _ in range(3):
        (value,) = run(alone, [value])
    (output,) = run(lifter.op_model(group, Arrangement("hot", 3, layout="chain")), [first])
    np.testing.assert_array_equal(output, value)


def test_operations_of_every_type_can_be_chained() -> None:
    assert {name for name, _ in chainable()} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_op_model_holds_n_times_the_operation_of_its_key_and_nothing_else(name: str) -> None:
    network = graphs.parse(built.NETWORKS[name]())
    lifter = Lifter(network)
    for group in network.groups:
        model = graphs.parse(lifter.op_model(group, Arrangement("cold", 5, input_sets=5)))
        assert [found.spec.key for found in model.groups] == [group.spec.key] * 5
        assert not model.dead
        assert len(model.inputs) == 5 * len(group.spec.activations)


def test_copies_share_one_weight_buffer_in_the_file() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 2, 2, 64))
    builder.output(built.conv_f32(builder, x, 64))
    network = graphs.parse(builder.build())
    one, many = (len(Lifter(network).op_model(network.groups[0], Arrangement("hot", n))) for n in (1, 20))
    assert many < one + 20 * 1000


def test_float16_weights_are_unpacked_once_for_all_copies() -> None:
    network = graphs.parse(built.network_f16())
    model = graphs.parse(Lifter(network).op_model(network.groups[0], Arrangement("hot", 6)))
    assert [operator.name for operator in model.operators].count("DEQUANTIZE") == 2
    assert len(model.folded) == 2


def test_all_outputs_of_an_operation_stay_alive_without_a_tap() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4))
    parts = [builder.tensor((1, 2)), builder.tensor((1, 2))]
    builder.op("SPLIT", [builder.constant([1]), x], parts)
    builder.output(*parts)
    network = graphs.parse(builder.build())
    model = Lifter(network).op_model(network.groups[0], Arrangement("hot", 2))
    outputs = run(model, [np.array([[1, 2, 3, 4]], np.float32)])
    assert [output.tolist() for output in outputs] == [[[1, 2]], [[3, 4]]] * 2


def test_an_operation_that_runs_other_graphs_is_refused_by_name() -> None:
    def change(model: Any) -> None:
        code = model.operatorCodes[model.subgraphs[0].operators[-1].opcodeIndex]
        code.builtinCode, code.deprecatedBuiltinCode = 119, 119  # WHILE
        operator = model.subgraphs[0].operators[-1]
        operator.builtinOptionsType, operator.builtinOptions = 0, None

    network = graphs.parse(built.edited(built.network_f32(), change))
    with pytest.raises(NotLiftableError, match="WHILE") as caught:
        Lifter(network).op_model(network.groups[-1], Arrangement("hot", 1))
    assert caught.value.operators == ("WHILE",)


def test_a_constant_operand_is_lifted_along_and_never_becomes_an_input() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4))
    constant = builder.constant(np.ones((1, 4), np.float32))
    builder.output(built.binary(builder, "ADD", x, constant))
    network = graphs.parse(builder.build())
    lifted = graphs.parse(Lifter(network).op_model(network.groups[0], Arrangement("cold", 2, input_sets=2)))
    assert len(lifted.inputs) == 2
    assert [group.spec.key for group in lifted.groups] == [network.groups[0].spec.key] * 2


def test_an_op_model_of_four_hundred_operators_is_complete() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 16, 16, 24))
    builder.output(built.conv_f32(builder, x, 24, kernel=3))
    network = graphs.parse(builder.build())
    lifter = Lifter(network)
    start_s = time.perf_counter()
    model = lifter.op_model(network.groups[0], Arrangement("hot", 400))
    took_s = time.perf_counter() - start_s
    print(f"400 operators: {took_s * 1e3:.0f} ms, {len(model)} bytes")  # read by a person; a test does not judge time
    assert len(graphs.parse(model).groups) == 400
