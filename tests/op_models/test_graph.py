"""Claims about reading .tflite files: hostile bytes are refused, and only work that a runtime does is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from op_models import graph as graphs
from op_models.arrange import Arrangement
from op_models.builder import GraphBuilder, Quantization
from op_models.errors import DynamicShapeError, ModelFileError, OpModelError, UnsupportedModelError
from op_models.lift import Lifter
from op_models.spec import OpSpec
from tests.op_models import built

NETWORKS = sorted(built.NETWORKS)


def names(data: bytes) -> list[str]:
    return [group.spec.name for group in graphs.parse(data).groups]


def read_all(data: bytes) -> None:
    """Everything that the rest of the package asks of a file that it has never seen."""
    network = graphs.parse(data, "hostile")
    lifter = Lifter(network)
    for group in network.groups:
        assert OpSpec.from_key(group.spec.key) == group.spec
        lifter.op_model(group, Arrangement("hot", 2, tap_after=1))


# --- hostile files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_sound_file_is_read_whole(network: str) -> None:
    read_all(built.NETWORKS[network]())


@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_truncated_file_is_refused_with_the_packages_own_error(network: str, data: st.DataObject) -> None:
    content = built.NETWORKS[network]()
    cut = data.draw(st.integers(0, len(content) - 1))
    try:
        read_all(content[:cut])
    except OpModelError:
        return
    # Constants may lie at the very end: then nothing but padding can have been cut.
    assert graphs.parse(content[:cut]).groups == graphs.parse(content).groups


@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bits_are_read_or_refused_but_never_crash(network: str, data: st.DataObject) -> None:
    content = bytearray(built.NETWORKS[network]())
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=6)):
        content[place // 8] ^= 1 << (place % 8)
    try:
        read_all(bytes(content))
    except OpModelError as error:
        assert str(error)


@pytest.mark.parametrize("network", NETWORKS)
@settings(max_examples=40)
@given(data=st.data())
def test_overwritten_words_are_read_or_refused_but_never_crash(network: str, data: st.DataObject) -> None:
    content = bytearray(built.NETWORKS[network]())
    word = data.draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, len(content)]))
    place = data.draw(st.integers(0, len(content) // 4 - 1)) * 4
    content[place : place + 4] = word.to_bytes(4, "little")
    try:
        read_all(bytes(content))
    except OpModelError as error:
        assert str(error)


@settings(max_examples=150)
@given(noise=st.binary(max_size=400), marked=st.booleans())
def test_random_bytes_are_no_model(noise: bytes, marked: bool) -> None:
    with pytest.raises(OpModelError):
        read_all(noise[:4] + b"TFL3" + noise[8:] if marked else noise)


def test_a_vector_that_claims_to_be_longer_than_the_file_is_refused() -> None:
    content = built.network_f32()
    refused = 0
    for place in range(0, len(content) - 4, 4):
        hostile = bytearray(content)
        hostile[place : place + 4] = (0x3FFFFFFF).to_bytes(4, "little")
        try:
            graphs.parse(bytes(hostile)).groups  # noqa: B018
        except OpModelError:
            refused += 1
    assert refused > 50


def test_a_file_that_is_missing_or_no_model_is_named_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nowhere\.tflite"):
        graphs.read(tmp_path / "nowhere.tflite")
    text = tmp_path / "notes.tflite"
    text.write_text("this is no model at all")
    with pytest.raises(ModelFileError, match=r"notes\.tflite.*TFL3"):
        graphs.read(text)
    with pytest.raises(ModelFileError):
        graphs.read(tmp_path)  # a directory


def test_a_file_without_a_graph_is_unsupported() -> None:
    def drop(model: Any) -> None:
        model.subgraphs = []

    with pytest.raises(UnsupportedModelError, match="no graph"):
        graphs.parse(built.edited(built.network_f32(), drop))


def test_a_tensor_that_two_operators_write_is_refused() -> None:
    def clash(model: Any) -> None:
        operators = model.subgraphs[0].operators
        operators[2].outputs = operators[1].outputs

    with pytest.raises(ModelFileError, match="already written"):
        graphs.parse(built.edited(built.network_f32(), clash))


def test_an_operator_that_reads_what_is_written_later_is_refused() -> None:
    def loop(model: Any) -> None:
        operators = model.subgraphs[0].operators
        add = operators[4]
        add.inputs = np.array([add.outputs[0], add.inputs[1]], np.int32)

    with pytest.raises(ModelFileError):
        read_all(built.edited(built.network_i8(), loop))


def test_operators_without_inputs_are_read_or_refused_but_never_crash() -> None:
    for name in NETWORKS:
        for operator in range(len(graphs.parse(built.NETWORKS[name]()).operators)):

            def strip(model: Any, operator: int = operator) -> None:
                model.subgraphs[0].operators[operator].inputs = np.array([], np.int32)

            try:
                read_all(built.edited(built.NETWORKS[name](), strip))
            except OpModelError as error:
                assert str(error)


# --- work, dead code, constants --------------------------------------------------------------------------------


def test_operators_that_reach_no_output_are_no_work_also_in_a_chain() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 2))
    dead = built.unary(builder, "RELU", built.conv_f32(builder, x, 3))
    built.unary(builder, "LOGISTIC", dead)
    builder.output(built.unary(builder, "TANH", x))
    network = graphs.parse(builder.build())
    assert [group.spec.name for group in network.groups] == ["TANH"]
    assert sorted(network.dead) == [0, 1, 2]
    assert [operator.name for operator in network.live] == ["TANH"]


def test_an_operator_of_which_one_output_is_read_is_alive() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4))
    parts = [builder.tensor((1, 2)), builder.tensor((1, 2))]
    builder.op("SPLIT", [builder.constant([1]), x], parts)
    builder.output(parts[1])
    network = graphs.parse(builder.build())
    assert not network.dead
    assert len(network.groups[0].spec.outputs) == 2


def test_float16_weights_are_folded_and_keep_their_stored_type_in_the_key() -> None:
    network = graphs.parse(built.network_f16())
    assert len(network.folded) == 4
    assert [group.spec.name for group in network.groups] == ["CONV_2D+RELU", "CONV_2D", "ADD"]
    weights = network.groups[0].spec.constants
    assert [(tensor.role, tensor.dtype) for tensor in weights] == [("folded", "f16")] * 2
    assert "~f16[8x1x1x4]" in network.groups[0].spec.key


def test_a_dequantize_of_an_activation_is_work() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4), "i8", Quantization((0.1,), 3))
    out = builder.tensor((1, 4))
    builder.op("DEQUANTIZE", [x], [out])
    builder.output(out)
    assert names(builder.build()) == ["DEQUANTIZE"]


def test_constants_that_decide_the_work_are_in_the_key_and_biases_are_not() -> None:
    keys = [group.spec.key for group in graphs.parse(built.network_f32()).groups]
    assert "*i32[4x2]={0,0,1,1,1,1,0,0}" in keys[0]  # paddings
    assert "*i32[2]={1,2}" in keys[4]  # the axes of the mean
    int8 = [group.spec.key for group in graphs.parse(built.network_i8()).groups]
    assert "*i32.c[8]," not in int8[0]
    assert "*i32.c[8])" in int8[0]


# --- groups ----------------------------------------------------------------------------------------------------


def test_a_relu_goes_with_its_producer_where_it_is_the_only_reader() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 2))
    builder.output(built.unary(builder, "RELU6", built.conv_f32(builder, x, 3)))
    assert names(builder.build()) == ["CONV_2D+RELU6"]


def test_a_relu_beside_another_reader_stands_alone() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 2))
    x = built.conv_f32(builder, x, 3)
    builder.output(built.binary(builder, "ADD", built.unary(builder, "RELU", x), x))
    assert names(builder.build()) == ["CONV_2D", "RELU", "ADD"]


def test_two_relus_of_one_tensor_stand_alone() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 2))
    x = built.conv_f32(builder, x, 3)
    builder.output(built.unary(builder, "RELU", x), built.unary(builder, "RELU6", x))
    assert names(builder.build()) == ["CONV_2D", "RELU", "RELU6"]


def test_a_relu_of_what_is_also_an_output_stands_alone() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 2))
    x = built.conv_f32(builder, x, 3)
    builder.output(x, built.unary(builder, "RELU", x))
    assert names(builder.build()) == ["CONV_2D", "RELU"]


def test_a_relu_behind_a_convolution_that_clamps_already_stands_alone() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 2))
    builder.output(built.unary(builder, "RELU", built.conv_f32(builder, x, 3, act="relu6")))
    assert names(builder.build()) == ["CONV_2D", "RELU"]


def test_a_pad_goes_with_the_only_convolution_that_reads_it() -> None:
    builder = GraphBuilder()
    x = built.padded(builder, builder.input((1, 4, 4, 2)))
    builder.output(built.conv_f32(builder, x, 3, kernel=3, pad="valid"))
    assert names(builder.build()) == ["PAD+CONV_2D"]


def test_a_pad_that_two_convolutions_read_stands_alone() -> None:
    builder = GraphBuilder()
    x = built.padded(builder, builder.input((1, 4, 4, 2)))
    for channels in (3, 4):
        builder.output(built.conv_f32(builder, x, channels, kernel=3, pad="valid"))
    assert names(builder.build()) == ["PAD", "CONV_2D", "CONV_2D"]


def test_an_int8_swish_is_one_group_and_a_float_one_is_two() -> None:
    assert names(built.network_i8())[:2] == ["CONV_2D", "LOGISTIC+MUL"]
    key = graphs.parse(built.network_i8()).groups[1].spec.key
    assert "MUL(@0,%0)" in key
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 2))
    builder.output(built.binary(builder, "MUL", x, built.unary(builder, "LOGISTIC", x)))
    assert names(builder.build()) == ["LOGISTIC", "MUL"]


def test_an_int8_gate_on_another_tensor_is_no_swish() -> None:
    builder = GraphBuilder()
    x, y = builder.input((1, 4, 4, 2), "i8", built.I8), builder.input((1, 4, 4, 2), "i8", built.I8)
    gate = built.unary(builder, "LOGISTIC", x, Quantization((1 / 256,), -128))
    builder.output(built.binary(builder, "MUL", y, gate))
    assert names(builder.build()) == ["LOGISTIC", "MUL"]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_executed_operator_is_in_exactly_one_group(network: str) -> None:
    parsed = graphs.parse(built.NETWORKS[network]())
    grouped = [index for group in parsed.groups for index in group.operators]
    assert sorted(grouped) == [operator.index for operator in parsed.live]
    assert [group.operators[-1] for group in parsed.groups] == sorted(group.operators[-1] for group in parsed.groups)


def test_equal_operations_share_one_key_whatever_their_weights() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4, 4, 3))
    for seed in (1, 2):
        weights = builder.constant(built.rng(seed).standard_normal((3, 1, 1, 3)).astype(np.float32))
        out = builder.tensor((1, 4, 4, 3))
        builder.op("CONV_2D", [x, weights, -1], [out], {"pad": "same", "stride": "1x1"})
        x = out
    builder.output(x)
    groups = graphs.parse(builder.build()).groups
    assert len(groups) == 2
    assert len({group.spec.key for group in groups}) == 1


# --- shapes, custom operators, subgraphs -----------------------------------------------------------------------


def open_dimension(dimension: int) -> bytes:
    def change(model: Any) -> None:
        subgraph = model.subgraphs[0]
        tensor = subgraph.tensors[subgraph.inputs[0]]
        signature = list(tensor.shape)
        signature[dimension] = -1
        tensor.shapeSignature = np.array(signature, np.int32)

    return built.edited(built.network_f32(), change)


def test_an_open_width_is_a_dynamic_shape_and_an_open_batch_counts_as_written() -> None:
    with pytest.raises(DynamicShapeError, match="open"):
        graphs.parse(open_dimension(1)).groups  # noqa: B018
    assert graphs.parse(open_dimension(0)).groups == graphs.parse(built.network_f32()).groups


def test_a_negative_dimension_on_the_way_is_a_dynamic_shape() -> None:
    def change(model: Any) -> None:
        subgraph = model.subgraphs[0]
        tensor = subgraph.tensors[subgraph.operators[1].outputs[0]]
        tensor.shape = np.array([1, -1, 8, 8], np.int32)

    with pytest.raises(DynamicShapeError, match="CONV_2D"):
        graphs.parse(built.edited(built.network_f32(), change)).groups  # noqa: B018


def as_custom(name: bytes) -> bytes:
    """The f32 network with its SOFTMAX replaced by a custom operator."""

    def change(model: Any) -> None:
        code = model.operatorCodes[model.subgraphs[0].operators[-1].opcodeIndex]
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = name
        operator = model.subgraphs[0].operators[-1]
        operator.builtinOptionsType, operator.builtinOptions = 0, None
        operator.customOptions = np.array([1, 2, 3], np.uint8)

    return built.edited(built.network_f32(), change)


def test_a_custom_operator_is_named_and_told_apart_by_its_options() -> None:
    spec = graphs.parse(as_custom(b"My Op(1)|x")).groups[-1].spec
    assert spec.name.startswith("CUSTOM:My_Op_1__x")
    assert OpSpec.from_key(spec.key) == spec
    assert "options_sha256=" in spec.key


@pytest.mark.parametrize("name", [b"", b"\xff\xfe", b"a" * 300, "größe".encode()])
def test_any_custom_name_makes_a_key_that_reads_back(name: bytes) -> None:
    spec = graphs.parse(as_custom(name)).groups[-1].spec
    assert OpSpec.from_key(spec.key) == spec


def test_only_the_first_of_several_subgraphs_is_read() -> None:
    import copy

    def change(model: Any) -> None:
        model.subgraphs.append(copy.copy(model.subgraphs[0]))

    network = graphs.parse(built.edited(built.network_i8(), change))
    assert network.subgraphs == 2
    assert network.groups == graphs.parse(built.network_i8()).groups


def test_the_hash_of_a_graph_is_the_hash_of_its_file(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "network.tflite"
    path.write_bytes(built.network_i8())
    assert graphs.read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
