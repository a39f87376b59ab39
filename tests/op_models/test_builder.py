"""The writer of .tflite files: what it writes, the schema's own reader and the runtime read, in all precisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from hypothesis import given, settings
from hypothesis import strategies as st

from op_models import graph
from op_models.builder import GraphBuilder, OptionValue, Quantization
from op_models.errors import SpecError
from op_models.layers import PRECISIONS, NetworkBuilder, Node, Precision
from op_models.ranges import observed


def run(data: bytes, seed: int = 0) -> np.ndarray:
    """First output of a model on noise, as real numbers."""
    runner = Interpreter(model_content=data, num_threads=1)
    runner.allocate_tensors()
    rng = np.random.default_rng(seed)
    for details in runner.get_input_details():
        noise = rng.standard_normal(details["shape"])
        scale, zero_point = details["quantization"]
        if details["dtype"] is np.int8:
            noise = np.clip(np.round(noise / scale + zero_point), -128, 127)
        runner.set_tensor(details["index"], noise.astype(details["dtype"]))
    runner.invoke()
    details = runner.get_output_details()[0]
    values: np.ndarray = runner.get_tensor(details["index"]).astype(np.float64)
    scale, zero_point = details["quantization"]
    return (values - zero_point) * scale if details["dtype"] is np.int8 else values


def attention(net: NetworkBuilder, x: Node) -> Node:
    """One attention block over the pixels of a picture."""
    tokens = net.reshape(x, (1, 64, 16))
    query, key, value = (net.fully_connected(tokens, 16) for _ in range(3))
    scores = net.softmax(net.batch_matmul(query, key, transpose_b=True))
    mixed = net.add(tokens, net.fully_connected(net.batch_matmul(scores, value), 16))
    return net.add(mixed, net.fully_connected(net.gelu(net.fully_connected(mixed, 32)), 16))


def gated(net: NetworkBuilder, x: Node) -> Node:
    """A squeeze-and-excite gate."""
    squeezed = net.mean(x, keep=True)
    gate = net.logistic(net.conv2d(net.conv2d(squeezed, 4, 1, act="relu"), x.channels, 1))
    return net.mul(x, gate)


LAYERS: dict[str, Callable[[NetworkBuilder, Node], Node]] = {
    "conv": lambda net, x: net.conv2d(x, 8, 3, 2, act="relu"),
    "conv without bias": lambda net, x: net.conv2d(x, 8, (1, 7), pad="valid", bias=False),
    "dilated conv": lambda net, x: net.conv2d(x, 8, 3, dilation=2),
    "depthwise": lambda net, x: net.depthwise(x, 5, 2, act="relu6"),
    "depthwise with multiplier": lambda net, x: net.depthwise(x, 3, multiplier=2),
    "relu": lambda net, x: net.relu(x),
    "relu6": lambda net, x: net.relu6(x),
    "hard swish": lambda net, x: net.hard_swish(x),
    "swish": lambda net, x: net.mul(x, net.logistic(x)),
    "gelu": lambda net, x: net.gelu(x),
    "softmax": lambda net, x: net.softmax(x),
    "add": lambda net, x: net.add(x, net.conv2d(x, x.channels, 1), act="relu"),
    "add to itself": lambda net, x: net.add(x, x),
    "sub": lambda net, x: net.sub(x, net.max_pool(x, 3)),
    "norm": lambda net, x: net.scale_shift(x, act="relu"),
    "average pool": lambda net, x: net.avg_pool(x, 3, act="relu"),
    "max pool": lambda net, x: net.max_pool(x, 2, 2, "valid"),
    "mean": lambda net, x: net.mean(x),
    "mean kept": lambda net, x: net.mean(x, keep=True),
    "mean of channels": lambda net, x: net.mean(x, axes=(3,)),
    "dense": lambda net, x: net.fully_connected(net.mean(x), 10),
    "concat": lambda net, x: net.concat([x, net.relu(x), net.conv2d(x, 4, 1)]),
    "concat of rows": lambda net, x: net.concat([x, x], axis=1),
    "reshape": lambda net, x: net.reshape(x, (1, 1024)),
    "transpose": lambda net, x: net.transpose(x, (0, 3, 1, 2)),
    "pad": lambda net, x: net.conv2d(net.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 8, 3, 2, "valid"),
    "channel pad": lambda net, x: net.pad(x, ((0, 0), (0, 0), (0, 0), (0, 8))),
    "slice": lambda net, x: net.slice(x, (0, 0, 0, 0), (1, 8, 8, 7)),
    "crop": lambda net, x: net.crop(x, 1, 1),
    "bilinear": lambda net, x: net.resize(x, 12, 12),
    "nearest": lambda net, x: net.resize(x, 16, 16, "nearest"),
    "gate": gated,
    "attention": attention,
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_runs_in_every_precision_and_gives_a_signal(layer: str, precision: Precision) -> None:
    net = NetworkBuilder(precision, seed=3)
    end = LAYERS[layer](net, net.input((1, 8, 8, 16)))
    output = run(net.build(end))
    assert output.shape == end.shape
    assert np.isfinite(output).all()
    assert output.std() > 1e-4


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "softmax"])
def test_precisions_compute_the_same_network(layer: str) -> None:
    outputs = {}
    for precision in PRECISIONS:
        net = NetworkBuilder(precision, seed=7)
        outputs[precision] = run(net.build(LAYERS[layer](net, net.input((1, 8, 8, 16)))))
    spread = outputs["float32"].std()
    assert np.abs(outputs["float16"] - outputs["float32"]).max() < 0.02 * spread + 1e-3
    # Eight bits over +-4 standard deviations, a few layers deep.
    assert np.abs(outputs["int8"] - outputs["float32"]).mean() < (0.4 if layer == "attention" else 0.1) * spread + 0.01


def chain(operators: int) -> bytes:
    net = NetworkBuilder("float32", seed=1)
    x = net.input((1, 32, 32, 36))
    for _ in range(operators // 2):
        x = net.conv2d(net.depthwise(x, 3), 36, 1, act="relu")
    return net.build(x)


def test_an_op_model_of_400_operators_has_them_all() -> None:
    assert len(graph.parse(chain(400), "chain").operators) == 400


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    def model(seed: int) -> bytes:
        net = NetworkBuilder("int8", seed)
        return net.build(net.conv2d(net.input((1, 4, 4, 3)), 5, 3))

    assert model(1) == model(1)
    assert model(1) != model(2)


def unpacked(data: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def test_the_schemas_own_reader_reads_what_was_written() -> None:
    builder = GraphBuilder("two convolutions")
    x = builder.input((1, 5, 5, 2), name="picture")
    weights = np.arange(36, dtype=np.float32).reshape(2, 3, 3, 2)
    kernel = builder.constant(weights)
    bias = builder.constant(np.array([1.0, -1.0], dtype=np.float32))
    options: dict[str, OptionValue] = {"pad": "valid", "stride": (2, 1), "act": "relu6"}
    (y,) = builder.op("CONV_2D", [x, kernel, bias], [builder.tensor((1, 2, 3, 2))], options)
    (z,) = builder.op("MUL", [y, y], [builder.tensor((1, 2, 3, 2), name="square")])
    builder.output(z, y)
    model = unpacked(builder.build())
    subgraph = model.subgraphs[0]
    assert (model.version, subgraph.name) == (3, b"two convolutions")
    assert (list(subgraph.inputs), list(subgraph.outputs)) == ([x], [z, y])
    assert [code.builtinCode for code in model.operatorCodes] == [
        schema.BuiltinOperator.CONV_2D,
        schema.BuiltinOperator.MUL,
    ]
    conv, mul = subgraph.operators
    assert (conv.builtinOptions.strideH, conv.builtinOptions.strideW, conv.builtinOptions.padding) == (2, 1, 1)
    assert conv.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU6
    assert list(mul.inputs) == [y, y]
    assert subgraph.tensors[z].name == b"square"
    content = model.buffers[subgraph.tensors[kernel].buffer].data.tobytes()
    assert np.frombuffer(content, dtype=np.float32).reshape(weights.shape).tolist() == weights.tolist()


@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=12),
    names=st.lists(st.text(max_size=20), min_size=1, max_size=4),
)
def test_constants_of_any_size_come_back_aligned(sizes: list[int], names: list[str]) -> None:
    builder = GraphBuilder(names[0])
    constants = [
        builder.constant(bytes(range(size)), shape=(size,), dtype="u8", name=names[at % len(names)])
        for at, size in enumerate(sizes)
    ]
    builder.output(*constants)
    data = builder.build()
    model = schema.Model.GetRootAs(data, 0)
    for constant, size in zip(constants, sizes, strict=True):
        buffer = model.Buffers(model.Subgraphs(0).Tensors(constant).Buffer())
        assert buffer.DataLength() == size
        if size:
            vector = buffer._tab.Vector(buffer._tab.Offset(4))
            assert vector % 16 == 0
            assert data[vector : vector + size] == bytes(range(size))


def test_shared_constants_are_stored_once() -> None:
    def model(shared: bool) -> bytes:
        builder = GraphBuilder()
        x = builder.input((1, 64))
        weights = np.eye(64, dtype=np.float32)
        first = builder.constant(weights)
        outputs: list[int] = []
        for copy in range(8):
            kernel = first if copy == 0 else builder.shared(first) if shared else builder.constant(weights)
            outputs += builder.op("FULLY_CONNECTED", [x, kernel, -1], [builder.tensor((1, 64))])
        builder.output(*outputs)
        return builder.build()

    assert len(model(shared=False)) - len(model(shared=True)) >= 7 * 64 * 64 * 4
    assert run(model(shared=True)) == pytest.approx(run(model(shared=False)))


def test_a_convolution_computes_what_its_weights_say() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 2, 2, 4), dtype=np.float32)
    picture = np.random.default_rng(0).standard_normal((1, 5, 6, 4))
    builder = GraphBuilder()
    x = builder.input((1, 5, 6, 4))
    output = builder.tensor((1, 4, 5, 3))
    inputs = [x, builder.constant(weights), builder.constant(np.zeros(3, dtype=np.float32))]
    builder.op("CONV_2D", inputs, [output], {"pad": "valid", "stride": "1x1"})
    builder.output(output)
    patches = np.lib.stride_tricks.sliding_window_view(picture, (2, 2), axis=(1, 2))
    expected = np.einsum("nhwcij,oijc->nhwo", patches, weights)
    assert run(builder.build()) == pytest.approx(expected, abs=1e-4)


@given(
    size=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pad=st.sampled_from(["same", "valid"]),
)
@settings(max_examples=40)
def test_declared_shapes_are_those_that_the_runtime_computes(
    size: int, kernel: int, stride: int, dilation: int, pad: Any
) -> None:
    if pad == "valid" and (kernel - 1) * dilation >= size:
        return
    net = NetworkBuilder("float32")
    x = net.input((1, size, size, 2))
    conv = net.conv2d(x, 3, kernel, stride, pad, dilation=dilation)
    pool = net.max_pool(x, min(kernel, size), stride, pad)
    runner = Interpreter(model_content=net.build(conv, pool), num_threads=1)
    runner.resize_tensor_input(0, [2, size, size, 2])  # makes the runtime compute all shapes itself
    runner.allocate_tensors()
    for node in (conv, pool):
        assert tuple(runner.get_tensor_details()[node.index]["shape"]) == (2, *node.shape[1:])


def test_int8_activations_use_their_range_without_saturating() -> None:
    net = NetworkBuilder("int8", seed=5)
    x = net.input((1, 16, 16, 8))
    for _ in range(12):
        x = net.add(net.conv2d(net.relu(x), 8, 3), net.avg_pool(x, 3))
    data = net.build(net.relu(x))
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = Interpreter(model_content=data, experimental_op_resolver_type=resolver, experimental_preserve_all_tensors=True)
    runner.allocate_tensors()
    scale, zero_point = runner.get_input_details()[0]["quantization"]
    noise = np.random.default_rng(0).standard_normal((1, 16, 16, 8)) / scale + zero_point
    runner.set_tensor(0, np.clip(np.round(noise), -128, 127).astype(np.int8))
    runner.invoke()
    parsed = graph.parse(data, "deep")
    for operator in parsed.operators:
        values = runner.get_tensor(operator.outputs[0])
        if operator.name == "ADD":
            assert 4 < values.astype(float).std() < 80
            assert (np.abs(values.astype(int) + 0.5) > 127).mean() < 0.05


def test_tensors_that_a_kernel_cannot_rescale_share_one_scale() -> None:
    net = NetworkBuilder("int8")
    x = net.input((1, 4, 4, 2), std=3.0)
    pooled = net.max_pool(x, 2)
    joined = net.concat([pooled, net.conv2d(x, 2, 1)])
    net.build(net.relu(joined))
    scales = {np.asarray(net.graph.quantization(node.index).scale)[0] for node in (x, pooled, joined)}  # type: ignore[union-attr]
    assert len(scales) == 1


def test_float16_weights_are_stored_in_half_the_bytes_and_folded_at_load_time() -> None:
    def model(precision: Precision) -> bytes:
        net = NetworkBuilder(precision)
        return net.build(net.conv2d(net.input((1, 4, 4, 64)), 64, 3))

    single, half = graph.parse(model("float32"), "single"), graph.parse(model("float16"), "half")
    assert len(half.data) < 0.55 * len(single.data)
    assert [group.spec.name for group in graph.groups(half)] == ["CONV_2D"]
    assert [operator.name for operator in half.operators].count("DEQUANTIZE") == 2


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("CONVOLVE", {}, "no such operator"),
        ("RELU", {"alpha": 1.0}, "takes no options"),
        ("CONV_2D", {"strides": 2}, "no option 'strides'"),
        ("CONV_2D", {"pad": "full"}, "cannot be 'full'"),
    ],
)
def test_an_operator_that_the_schema_lacks_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    builder = GraphBuilder()
    x = builder.input((1, 4))
    with pytest.raises(SpecError, match=said):
        builder.op(name, [x], [builder.tensor((1, 4))], options)


def test_options_given_as_in_a_key_are_read_back_as_in_a_key() -> None:
    builder = GraphBuilder()
    x = builder.input((1, 9, 9, 2))
    options = {"act": "relu6", "pad": "valid", "stride": "2x3", "window": "3x2"}
    builder.output(*builder.op("AVERAGE_POOL_2D", [x], [builder.tensor((1, 4, 3, 2))], options))
    (operator,) = graph.parse(builder.build(), "pool").operators
    assert dict(operator.options) == options


def test_a_quantised_tensor_keeps_its_scales() -> None:
    builder = GraphBuilder()
    quantization = Quantization((0.5, 0.25), 0, 3)
    constant = builder.constant(np.zeros((1, 1, 1, 2), dtype=np.int8), quantization=quantization)
    builder.output(constant)
    tensor = unpacked(builder.build()).subgraphs[0].tensors[constant]
    assert tensor.quantization.scale.tolist() == [0.5, 0.25]
    assert tensor.quantization.zeroPoint.tolist() == [0, 0]
    assert tensor.quantization.quantizedDimension == 3


def test_observed_ranges_replace_the_computed_ones() -> None:
    def deep(precision: Precision, ranges: dict[str, tuple[float, float]] | None = None) -> bytes:
        net = NetworkBuilder(precision, seed=2, ranges=ranges)
        x = net.input((1, 8, 8, 4))
        for _ in range(8):
            x = net.add(x, net.avg_pool(x, 3))  # correlated: grows faster than independent signals would
        return net.build(net.relu(x))

    ranges = observed(deep("float32"))
    exact = run(deep("float32"))
    errors = [np.abs(run(deep("int8", known)) - exact).mean() for known in (None, ranges)]
    assert errors[1] < 0.05 * exact.std()
    assert errors[1] < errors[0] / 2
    assert all(low <= 0.0 < high for low, high in ranges.values())
