"""Small networks for the tests of graphs, lifting and feeds, built in memory with known content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from op_models.builder import GraphBuilder, Quantization

I8 = Quantization((0.05,), 0)


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def conv_f32(builder: GraphBuilder, x: int, channels: int, *, kernel: int = 1, act: str | None = None, pad: str = "same") -> int:
    height, width, depth = builder.shape(x)[1:]
    lost = kernel - 1 if pad == "valid" else 0
    weights = builder.constant(rng().standard_normal((channels, kernel, kernel, depth)).astype(np.float32) / depth)
    bias = builder.constant(rng(8).standard_normal(channels).astype(np.float32))
    out = builder.tensor((1, height - lost, width - lost, channels))
    options: dict[str, str] = {"pad": pad, "stride": "1x1"}
    if act is not None:
        options["act"] = act
    builder.op("CONV_2D", [x, weights, bias], [out], options)
    return out


def conv_f16(builder: GraphBuilder, x: int, channels: int) -> int:
    """A convolution whose float16 weights are unpacked by DEQUANTIZE operators, as converters write them."""
    depth = builder.shape(x)[3]
    unpacked = []
    for number, shape in enumerate([(channels, 1, 1, depth), (channels,)]):
        stored = builder.constant((rng(number).standard_normal(shape) / depth).astype(np.float16))
        unpacked.append(builder.tensor(shape))
        builder.op("DEQUANTIZE", [stored], [unpacked[-1]])
    out = builder.tensor((*builder.shape(x)[:3], channels))
    builder.op("CONV_2D", [x, *unpacked], [out], {"pad": "same", "stride": "1x1"})
    return out


def conv_i8(builder: GraphBuilder, x: int, channels: int) -> int:
    depth = builder.shape(x)[3]
    scale = np.full(channels, 0.01, np.float32)
    weights = builder.constant(
        rng().integers(-127, 128, (channels, 1, 1, depth)).astype(np.int8), quantization=Quantization(scale)
    )
    bias = builder.constant(rng(8).integers(-500, 500, channels).astype(np.int32), quantization=Quantization(scale * 0.05))
    out = builder.tensor((*builder.shape(x)[:3], channels), "i8", I8)
    builder.op("CONV_2D", [x, weights, bias], [out], {"pad": "same", "stride": "1x1"})
    return out


def unary(builder: GraphBuilder, name: str, x: int, quantization: Quantization | None = None, **options: Any) -> int:
    out = builder.tensor(builder.shape(x), builder.dtype(x), quantization or builder.quantization(x))
    builder.op(name, [x], [out], options)
    return out


def binary(builder: GraphBuilder, name: str, x: int, y: int, **options: Any) -> int:
    out = builder.tensor(builder.shape(x), builder.dtype(x), builder.quantization(x))
    builder.op(name, [x, y], [out], options)
    return out


def padded(builder: GraphBuilder, x: int) -> int:
    batch, height, width, depth = builder.shape(x)
    out = builder.tensor((batch, height + 2, width + 2, depth))
    paddings = builder.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
    builder.op("PAD", [x, paddings], [out])
    return out


def network_f32() -> bytes:
    """PAD+CONV, CONV+RELU, a RELU with two readers, pooling, ADD, MEAN and a dense layer."""
    builder = GraphBuilder()
    x = builder.input((1, 8, 8, 3))
    x = conv_f32(builder, padded(builder, x), 8, kernel=3, pad="valid")
    x = unary(builder, "RELU", x)
    y = unary(builder, "RELU", conv_f32(builder, x, 8))
    pooled = builder.tensor((1, 8, 8, 8))
    builder.op("MAX_POOL_2D", [x], [pooled], {"pad": "same", "stride": "1x1", "window": "3x3"})
    x = binary(builder, "ADD", pooled, y)
    mean = builder.tensor((1, 8))
    builder.op("MEAN", [x, builder.constant([1, 2])], [mean])
    weights = builder.constant(rng().standard_normal((5, 8)).astype(np.float32))
    logits = builder.tensor((1, 5))
    builder.op("FULLY_CONNECTED", [mean, weights, -1], [logits])
    builder.output(unary(builder, "SOFTMAX", logits, beta=1.0))
    return builder.build()


def network_f16() -> bytes:
    builder = GraphBuilder()
    x = builder.input((1, 8, 8, 4))
    x = unary(builder, "RELU", conv_f16(builder, x, 8))
    builder.output(binary(builder, "ADD", conv_f16(builder, x, 8), x))
    return builder.build()


def network_i8() -> bytes:
    """An int8 swish (LOGISTIC and MUL of one input), a RELU that stands alone, ADD and a pool."""
    builder = GraphBuilder()
    x = builder.input((1, 8, 8, 4), "i8", I8)
    x = conv_i8(builder, x, 8)
    gate = unary(builder, "LOGISTIC", x, Quantization((1 / 256,), -128))
    x = binary(builder, "MUL", x, gate)
    y = unary(builder, "RELU", x)
    x = binary(builder, "ADD", x, y)
    pooled = builder.tensor((1, 8, 8, 8), "i8", I8)
    builder.op("AVERAGE_POOL_2D", [x], [pooled], {"pad": "same", "stride": "1x1", "window": "3x3"})
    builder.output(pooled)
    return builder.build()


NETWORKS: dict[str, Callable[[], bytes]] = {"f32": network_f32, "f16": network_f16, "i8": network_i8}


def edited(data: bytes, change: Callable[[Any], None]) -> bytes:
    """The model after a change to its tables (a ``ModelT``)."""
    model = schema.ModelT.InitFromPackedBuf(data)
    change(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
