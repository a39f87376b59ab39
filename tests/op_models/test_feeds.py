"""Claims about real activations: what is recorded is what the operation reads, and the worker feeds it as it is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.devices.worker import LoadedModel, _data
from op_models import feeds
from op_models import graph as graphs
from op_models.arrange import Arrangement
from op_models.builder import GraphBuilder
from op_models.errors import ModelFileError, UnsupportedModelError
from op_models.lift import Lifter
from op_models.spec import OpSpec
from tests.op_models import built

NETWORKS = sorted(built.NETWORKS)


def spec(op: str, dtype: str) -> OpSpec:
    mark = ".t" if dtype in {"i8", "u8", "i16"} else ""
    return OpSpec.from_key(f"{op}({dtype}{mark}[1x4x4x2])->{dtype}{mark}[1x4x4x2]")


# --- which operations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i8", "u8", "i16"])
@pytest.mark.parametrize("op", ["RELU", "RELU6", "RELU_N1_TO_1"])
def test_quantised_relus_need_the_networks_data_and_float_ones_do_not(op: str, dtype: str) -> None:
    assert feeds.needs_real_data(spec(op, dtype))
    assert "branches" in (feeds.why_real_data(spec(op, dtype)) or "")
    assert not feeds.needs_real_data(spec(op, "f32"))
    assert feeds.why_real_data(spec(op, "f32"), "none") is None


def test_more_operators_need_it_without_a_delegate() -> None:
    assert not feeds.needs_real_data(spec("LEAKY_RELU", "i8"))
    assert feeds.needs_real_data(spec("LEAKY_RELU", "i8"), "none")
    assert not feeds.needs_real_data(spec("ELU", "f32"))
    assert feeds.needs_real_data(spec("ELU", "f32"), "none")


def test_a_group_needs_it_where_one_of_its_operators_does() -> None:
    group = OpSpec.from_key("ADD(i8.t[1x4],i8.t[1x4])->i8.t[1x4]|RELU(%0)->i8.t[1x4]")
    assert (feeds.why_real_data(group) or "").startswith("RELU:")


@pytest.mark.parametrize("key", ["ADD(i8.t[4],i8.t[4])->i8.t[4]", "CONV_2D(f32[1x4x4x2],*f32[3x1x1x2],_)->f32[1x4x4x3]"])
def test_ordinary_operations_do_not_need_it(key: str) -> None:
    assert feeds.why_real_data(OpSpec.from_key(key)) is None


def test_a_gather_needs_it_for_its_indices() -> None:
    key = "GATHER(f32[10x4],i32[3])->f32[3x4]"
    assert "memory" in (feeds.why_real_data(OpSpec.from_key(key)) or "")


# --- inputs ----------------------------------------------------------------------------------------------------


def many_inputs() -> bytes:
    builder = GraphBuilder()
    inputs = [builder.input((1, 4), dtype) for dtype in ("f32", "i8", "u8", "i32", "bool", "f32")]
    outputs = [builder.tensor((1, 4), builder.dtype(x)) for x in inputs]
    for x, out in zip(inputs, outputs, strict=True):
        builder.op("RESHAPE", [x, builder.constant([1, 4])], [out])
    builder.output(*outputs)
    return builder.build()


@given(seed=st.integers(0, 2**32 - 1))
def test_network_inputs_are_those_of_the_worker_for_the_same_seed(seed: int) -> None:
    network = graphs.parse(many_inputs())
    rng = np.random.default_rng(seed)
    kinds = [np.float32, np.int8, np.uint8, np.int32, np.bool_, np.float32]
    for position, (array, kind) in enumerate(zip(feeds.network_inputs(network, seed), kinds, strict=True)):
        detail = {"shape": np.array([1, 4], np.int32), "dtype": kind}
        expected = _data(detail, rng, position, None)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_another_seed_gives_other_data() -> None:
    network = graphs.parse(built.network_f32())
    first, second = (feeds.network_inputs(network, seed)[0] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_an_input_of_text_is_refused() -> None:
    from ai_edge_litert import schema_py_generated as schema

    def change(model: schema.ModelT) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].type = schema.TensorType.STRING

    network = graphs.parse(built.edited(built.network_f32(), change))
    with pytest.raises(UnsupportedModelError, match="str"):
        feeds.network_inputs(network, 0)


# --- recording -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lifted_operation_fed_with_what_was_recorded_gives_what_the_network_gives(name: str) -> None:
    network = graphs.parse(built.NETWORKS[name]())
    recorded = feeds.group_inputs(network, network.groups, seed=5)
    written = feeds.record(network, [network.operators[g.operators[-1]].outputs[0] for g in network.groups], seed=5)
    for group, inputs in zip(network.groups, recorded, strict=True):
        model = graphs.parse(Lifter(network).op_model(group, Arrangement("hot", 1)))
        assert [array.shape for array in inputs] == [model.tensors[i].shape for i in model.inputs]
        output = feeds.record(model, model.outputs, inputs=inputs)[model.outputs[0]]
        np.testing.assert_array_equal(output, written[network.operators[group.operators[-1]].outputs[0]])


def test_only_the_asked_tensors_are_kept() -> None:
    network = graphs.parse(built.network_i8())
    relu = next(group for group in network.groups if group.spec.name == "RELU")
    (tensor,) = feeds.activations(network, relu)
    assert set(feeds.record(network, [tensor])) == {tensor}


def test_recorded_arrays_do_not_hold_the_interpreter() -> None:
    network = graphs.parse(built.network_i8())
    for array in feeds.record(network, range(len(network.tensors))).values():
        assert array.base is None


def test_an_int8_relu_reads_both_signs_and_never_only_noise() -> None:
    network = graphs.parse(built.network_i8())
    relu = next(group for group in network.groups if group.spec.name == "RELU")
    ((values,),) = feeds.group_inputs(network, [relu], seed=1)
    assert values.dtype == np.int8
    assert (values < 0).any()
    assert (values > 0).any()


def test_a_network_that_no_kernel_runs_is_refused_with_the_runtimes_reason() -> None:
    def change(model: object) -> None:
        code = model.operatorCodes[0]  # type: ignore[attr-defined]
        code.builtinCode = code.deprecatedBuiltinCode = 32
        code.customCode = b"Nobody"

    network = graphs.parse(built.edited(built.network_f32(), change))
    with pytest.raises(UnsupportedModelError, match="Nobody"):
        feeds.record(network, [0])


def test_small_operations_rotate_through_more_sets_than_large_ones() -> None:
    sets = [
        feeds.distinct_sets(OpSpec.from_key(f"RELU(i8.t[1x{side}x{side}x64])->i8.t[1x{side}x{side}x64]"))
        for side in (1, 4, 8, 16, 32, 64, 200)
    ]
    assert sets == sorted(sets, reverse=True)
    assert sets[0] == 64
    assert sets[-1] == 1


def test_real_instances_are_distinct_and_come_from_every_place_and_several_runs() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 16, 16, 32), "i8", built.I8)
    first = built.unary(builder, "RELU", built.conv_i8(builder, x, 32))
    second = built.unary(builder, "RELU", built.binary(builder, "ADD", x, first))
    builder.output(first, second)
    network = graphs.parse(builder.build())
    relus = [group for group in network.groups if "RELU" in group.spec.name]
    found = feeds.real_instances(network, relus, seed=1)
    assert set(found) == {group.spec.key for group in relus}
    for group in relus:
        sets = found[group.spec.key]
        assert len(sets) == feeds.distinct_sets(group.spec) == 19
        assert len({one[0].tobytes() for one in sets}) == len(sets)
        np.testing.assert_array_equal(sets[0][0], feeds.group_inputs(network, [group], seed=1)[0][0])


def test_the_number_of_runs_is_bounded() -> None:
    network = graphs.parse(built.network_i8())
    relu = next(group for group in network.groups if group.spec.name == "RELU")
    assert len(feeds.real_instances(network, [relu], most_runs=3)[relu.spec.key]) == 3
    assert feeds.real_instances(network, []) == {}


# --- files -----------------------------------------------------------------------------------------------------


def test_equal_data_gives_equal_bytes() -> None:
    arrays = [[np.arange(6, dtype=np.int8).reshape(2, 3)], [np.zeros((2, 3), np.int8)]]
    assert feeds.pack(arrays) == feeds.pack([[array.copy() for array in one] for one in arrays])


@given(counts=st.tuples(st.integers(1, 30), st.integers(1, 4)), seed=st.integers(0, 999))
def test_a_file_reads_back_in_the_order_of_the_inputs(counts: tuple[int, int], seed: int) -> None:
    instances, width = counts
    rng = np.random.default_rng(seed)
    arrays = [[rng.integers(-9, 9, (2, 2)).astype(np.int8) for _ in range(width)] for _ in range(instances)]
    content = feeds.load(io.BytesIO(feeds.pack(arrays)))
    flat = [array for one in arrays for array in one]
    for array, wanted in zip(content.values(), flat, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_the_worker_feeds_every_input_set_with_the_next_instance(tmp_path: Path) -> None:
    network = graphs.parse(built.network_i8())
    add = next(group for group in network.groups if group.spec.name == "ADD")
    instances = [feeds.group_inputs(network, [add], seed=seed)[0] for seed in range(12)]
    feeds.save(tmp_path / "feed.npz", instances)
    model = tmp_path / "op.tflite"
    model.write_bytes(Lifter(network).op_model(add, Arrangement("cold", 12, input_sets=12)))
    loaded = LoadedModel(str(model), delegate="none", threads=1, seed=0, feed=str(tmp_path / "feed.npz"))
    details = loaded._interpreter.get_input_details()
    fed = [np.array(loaded._interpreter.get_tensor(detail["index"])) for detail in details]
    for array, wanted in zip(fed, [array for one in instances for array in one], strict=True):
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"not an archive at all"])
def test_a_file_that_holds_no_activations_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "feed.npz"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="no activations"):
        feeds.load(path)
    with pytest.raises(ModelFileError):
        feeds.load(tmp_path / "missing.npz")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "feed.npz", x0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelFileError):
        feeds.load(tmp_path / "feed.npz")
