"""The two models that stand in every block: an empty one (the harness's own floor) and a reference (how fast the host is now)."""

from __future__ import annotations

import numpy as np

from op_models.builder import GraphBuilder


def empty_model() -> bytes:
    """A model that does next to nothing: one addition of two numbers. Its time is what an invocation costs in itself."""
    builder = GraphBuilder("empty")
    x = builder.input((1, 1))
    one = builder.constant(np.ones((1, 1), np.float32))
    builder.output(*builder.op("ADD", [x, one], [builder.tensor((1, 1))]))
    return builder.build()


def reference_model() -> bytes:
    """A small network with a bit of everything that networks wait for.

    Three stages of a convolution, a depthwise and a pointwise convolution with an addition, at 32x32, 16x16 and 8x8, then
    a dense layer over 1.5 MB of weights: arithmetic that stays in the private cache beside weights and activations that
    do not. Its time relative to an earlier measurement says by how much the host is slower or faster now.
    """
    rng = np.random.default_rng(20_221)
    builder = GraphBuilder("reference")

    def weights(*shape: int) -> int:
        fan_in = int(np.prod(shape[1:]))
        return builder.constant((rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def conv(x: int, channels: int, kernel: int, stride: int) -> int:
        _, height, width, depth = builder.shape(x)
        out = builder.tensor((1, height // stride, width // stride, channels))
        bias = builder.constant(np.zeros(channels, np.float32))
        options = {"pad": "same", "stride": f"{stride}x{stride}", "act": "relu"}
        return builder.op("CONV_2D", [x, weights(channels, kernel, kernel, depth), bias], [out], options)[0]

    def depthwise(x: int, kernel: int) -> int:
        shape = builder.shape(x)
        bias = builder.constant(np.zeros(shape[3], np.float32))
        kernel_weights = builder.constant((rng.standard_normal((1, kernel, kernel, shape[3])) / kernel).astype(np.float32))
        options = {"pad": "same", "stride": "1x1"}
        return builder.op("DEPTHWISE_CONV_2D", [x, kernel_weights, bias], [builder.tensor(shape)], options)[0]

    x = builder.input((1, 32, 32, 16))
    for channels, stride in ((48, 1), (96, 2), (192, 2)):
        x = conv(x, channels, 3 if stride == 1 else 1, stride)
        y = conv(depthwise(x, 5), channels, 1, 1)
        x = builder.op("ADD", [x, y], [builder.tensor(builder.shape(x))])[0]
    flat = builder.op("RESHAPE", [x, builder.constant([1, 12288])], [builder.tensor((1, 12288))])[0]
    dense = [flat, weights(32, 12288), builder.constant(np.zeros(32, np.float32))]
    builder.output(*builder.op("FULLY_CONNECTED", dense, [builder.tensor((1, 32))]))
    return builder.build()
