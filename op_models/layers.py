"""Layers on top of :class:`~op_models.builder.GraphBuilder`: whole networks in float32, float16 weights or int8.

Weights are seeded noise, scaled so that every channel of every layer keeps zero mean and unit spread before its
activation (what batch normalisation does in a trained network), because int8 kernels without a vector path take as
long as their data makes them. Batch normalisation itself is folded: a convolution has a bias.

Each precision is written as TensorFlow's converter writes it:

* ``float32``;
* ``float16``: every float constant is stored as float16 behind a ``DEQUANTIZE`` operator, which the runtime folds at
  load time;
* ``int8``: per-channel symmetric weights, int32 bias with scale input x weight, one scale for an activation; tensors
  that a kernel cannot rescale between (pools, slices, reshapes, concatenations) share one scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from op_models import signals
from op_models.builder import GraphBuilder, OptionValue, Quantization
from op_models.signals import Array, Signal

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Padding = Literal["same", "valid"]
# Outputs whose scale and zero point the int8 kernels fix.
_FIXED = {
    "LOGISTIC": (1 / 256, -128),
    "SOFTMAX": (1 / 256, -128),
    "TANH": (1 / 128, 0),
    "L2_NORMALIZATION": (1 / 128, 0),
}


@dataclass(frozen=True, slots=True)
class Node:
    """An activation of a network under construction."""

    index: int
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """Size of the last axis."""
        return self.shape[-1]


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or two."""
    return (size, size) if isinstance(size, int) else size


def spatial(size: int, window: int, stride: int, padding: str, dilation: int = 1) -> int:
    """Output size of a window operation along one axis, by TensorFlow's two padding rules."""
    reach = (window - 1) * dilation + 1
    return -(-size // stride) if padding == "same" else -(-(size - reach + 1) // stride)


class NetworkBuilder:
    """A network under construction in one precision; every layer method returns the :class:`Node` that it computes.

    ``ranges`` maps tensor names to (low, high) that were observed (:func:`op_models.ranges.observed`) and then
    replace the computed int8 ranges. The same calls give the same tensor names in all precisions, so ranges observed
    on the float32 twin fit.
    """

    def __init__(
        self,
        precision: Precision = "float32",
        seed: int = 0,
        name: str = "main",
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        self.precision = precision
        self.graph = GraphBuilder(name)
        self._seed = seed
        self._signals: dict[int, Signal] = {}
        self._names: dict[int, str] = {}
        self._ranges = ranges or {}
        self._one_scale: dict[int, int] = {}  # union-find over tensors that must share a scale
        self._later: list[Callable[[], None]] = []  # constants whose scale depends on an activation's

    # --- tensors ------------------------------------------------------------------------------------------------

    def input(self, shape: Sequence[int], mean: float = 0.0, std: float = 1.0) -> Node:
        """The network's input; ``mean`` and ``std`` say what it will be fed with."""
        index = self.graph.input(shape, self._dtype, name="input")
        self._names[index] = "input"
        self._signals[index] = signals.noise(shape[-1] if shape else 1, mean, std)
        return Node(index, tuple(shape))

    def signal(self, node: Node) -> Signal:
        """Expected mean and spread of an activation."""
        return self._signals[node.index]

    def build(self, *outputs: Node) -> bytes:
        """Finish the scales and return the bytes of the ``.tflite`` file."""
        if self.precision == "int8":
            self._quantize()
        self.graph.output(*(node.index for node in outputs))
        return self.graph.build()

    @property
    def _dtype(self) -> str:
        return "i8" if self.precision == "int8" else "f32"

    def _out(self, shape: Sequence[int], signal: Signal) -> int:
        name = f"a{len(self._names)}"
        index = self.graph.tensor(shape, self._dtype, name=name)
        self._names[index] = name
        self._signals[index] = signal
        return index

    def apply(
        self,
        op: str,
        inputs: Sequence[Node | int],
        shape: Sequence[int],
        signal: Signal,
        options: Mapping[str, OptionValue] | None = None,
        one_scale: bool = False,
    ) -> Node:
        """Any operator with one output: nodes and constant tensors in, ``signal`` the expected output.

        ``one_scale``: the int8 kernel needs the scale of its inputs for its output as well.
        """
        indices = [item.index if isinstance(item, Node) else item for item in inputs]
        output = self._out(shape, signal)
        self.graph.op(op, indices, [output], options)
        if one_scale:
            for item in inputs:
                if isinstance(item, Node):
                    self._unite(output, item.index)
        if op in _FIXED and self.precision == "int8":
            self.graph.set_quantization(output, Quantization((_FIXED[op][0],), _FIXED[op][1]))
        return Node(output, tuple(shape))

    # --- constants ----------------------------------------------------------------------------------------------

    def constant(self, values: Array) -> int:
        """A float constant operand (of ADD, MUL, ...): one scale a tensor in int8."""
        if self.precision != "int8":
            return self._float(values)
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 1e-6)
        quantization = _affine(low, high)
        scale = float(np.asarray(quantization.scale)[0])
        grid = np.clip(np.round(values / scale) + quantization.zero_point, -128, 127).astype(np.int8)
        return self.graph.constant(grid, quantization=quantization)

    def _float(self, values: Array) -> int:
        plain = values.astype(np.float32, copy=False)
        if self.precision == "float32":
            return self.graph.constant(plain)
        half = self.graph.constant(plain.astype(np.float16))
        return self.graph.op("DEQUANTIZE", [half], [self.graph.tensor(plain.shape, "f32")])[0]

    def _kernel(self, values: Array, axis: int) -> tuple[int, Array]:
        """A weight tensor, and its scale for each index along ``axis`` (int8 alone; else ones)."""
        if self.precision != "int8":
            return self._float(values), np.ones(1)
        others = tuple(at for at in range(values.ndim) if at != axis)
        scale = np.maximum(np.abs(values).max(axis=others), 1e-8).astype(np.float32) / np.float32(127)
        shaped = scale.reshape([-1 if at == axis else 1 for at in range(values.ndim)])
        grid = np.clip(np.rint(values / shaped), -127, 127).astype(np.int8)
        return self.graph.constant(grid, quantization=Quantization(scale, 0, axis)), scale

    def _bias(self, values: Array, scale: Array, source: Node) -> int:
        """A bias; in int8 its scale is input x weight, so it is written once the input's scale is known."""
        if self.precision != "int8":
            return self._float(values)
        index = self.graph.tensor(values.shape, "i32")

        def write() -> None:
            product = scale * np.float32(self._scale(source.index))
            self.graph.set_quantization(index, Quantization(product, 0, 0))
            # In float64, where the largest int32 is exact.
            grid = np.clip(np.rint(values / product.astype(np.float64)), -(2**31), 2**31 - 1)
            self.graph.set_constant(index, grid.astype(np.int32))

        self._later.append(write)
        return index

    @cached_property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self._seed)  # made when first used: importing numpy.random takes a while

    def _draw(self, *shape: int) -> Array:
        return self._random.standard_normal(shape, dtype=np.float32)

    # --- int8 scales --------------------------------------------------------------------------------------------

    def _root(self, index: int) -> int:
        root = index
        while self._one_scale.get(root, root) != root:
            root = self._one_scale[root]
        while self._one_scale.get(index, index) != root:  # keep the paths short
            self._one_scale[index], index = root, self._one_scale.get(index, index)
        return root

    def _unite(self, first: int, second: int) -> None:
        self._one_scale[self._root(second)] = self._root(first)

    def _scale(self, index: int) -> float:
        quantization = self.graph.quantization(index)
        assert quantization is not None
        return float(np.asarray(quantization.scale)[0])

    def _quantize(self) -> None:
        bounds: dict[int, tuple[float, float]] = {}
        fixed: dict[int, Quantization] = {}
        for index, signal in self._signals.items():
            root = self._root(index)
            if (quantization := self.graph.quantization(index)) is not None:
                fixed[root] = quantization
            low, high = self._ranges.get(self._names[index], signal.bounds)
            known = bounds.get(root, (0.0, 1e-6))
            bounds[root] = min(low, known[0]), max(high, known[1])
        for index in self._signals:
            root = self._root(index)
            self.graph.set_quantization(index, fixed.get(root) or _affine(*bounds[root]))
        for write in self._later:
            write()
        self._later.clear()

    # --- layers with weights ------------------------------------------------------------------------------------

    def conv2d(
        self,
        x: Node,
        filters: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        pad: Padding = "same",
        act: str | None = None,
        bias: bool = True,
        dilation: int | tuple[int, int] = 1,
    ) -> Node:
        """2-D convolution over an NHWC activation; without a bias zeros are written, as the converter does."""
        (kh, kw), (sh, sw), (dh, dw) = pair(kernel), pair(stride), pair(dilation)
        batch, height, width, channels = x.shape
        incoming = self.signal(x)
        weights = self._draw(filters, kh, kw, channels)
        taps = weights.sum(axis=(1, 2), dtype=np.float64)
        power = (weights**2).sum(axis=(1, 2), dtype=np.float64) @ incoming.variance
        gain = 1.0 / np.sqrt(np.maximum(power, 1e-12))
        weights *= gain[:, None, None, None].astype(np.float32)
        shift, signal = self._centre(gain * (taps @ incoming.mean), bias)
        tensor, scale = self._kernel(weights, 0)
        inputs: list[Node | int] = [x, tensor, self._bias(shift if bias else np.zeros(filters, np.float32), scale, x)]
        shape = (batch, spatial(height, kh, sh, pad, dh), spatial(width, kw, sw, pad, dw), filters)
        options = {"pad": pad, "stride": (sh, sw), "dilation": (dh, dw), **_act(act)}
        return self.apply("CONV_2D", inputs, shape, signals.activated(signal, act), options)

    def depthwise(
        self,
        x: Node,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        pad: Padding = "same",
        act: str | None = None,
        multiplier: int = 1,
        dilation: int | tuple[int, int] = 1,
    ) -> Node:
        """Depthwise 2-D convolution with a bias (runtimes add one even where a network has none)."""
        (kh, kw), (sh, sw), (dh, dw) = pair(kernel), pair(stride), pair(dilation)
        batch, height, width, channels = x.shape
        incoming = self.signal(x)
        weights = self._draw(1, kh, kw, channels * multiplier)
        std, mean = np.repeat(incoming.std, multiplier), np.repeat(incoming.mean, multiplier)
        gain = 1.0 / np.maximum(np.sqrt((weights**2).sum(axis=(0, 1, 2), dtype=np.float64)) * std, 1e-6)
        weights *= gain.astype(np.float32)
        shift, signal = self._centre(weights.sum(axis=(0, 1, 2), dtype=np.float64) * mean, True)
        tensor, scale = self._kernel(weights, 3)
        shape = (batch, spatial(height, kh, sh, pad, dh), spatial(width, kw, sw, pad, dw), channels * multiplier)
        options = {"pad": pad, "stride": (sh, sw), "dilation": (dh, dw), **_act(act)}
        inputs: list[Node | int] = [x, tensor, self._bias(shift, scale, x)]
        return self.apply("DEPTHWISE_CONV_2D", inputs, shape, signals.activated(signal, act), options)

    def fully_connected(self, x: Node, units: int, act: str | None = None, bias: bool = True) -> Node:
        """Dense layer over the last axis."""
        incoming = self.signal(x)
        weights = self._draw(units, x.channels)
        gain = 1.0 / np.sqrt(np.maximum((weights.astype(np.float64) ** 2) @ incoming.variance, 1e-12))
        weights *= gain[:, None].astype(np.float32)
        shift, signal = self._centre(weights.astype(np.float64) @ incoming.mean, bias)
        tensor, scale = self._kernel(weights, 0)
        inputs: list[Node | int] = [x, tensor, self._bias(shift, scale, x) if bias else -1]
        return self.apply("FULLY_CONNECTED", inputs, (*x.shape[:-1], units), signals.activated(signal, act), _act(act))

    def _centre(self, mean: Array, bias: bool) -> tuple[Array, Signal]:
        """Bias that takes the mean out (and puts a little noise in), and the signal that is left, of unit spread."""
        if not bias:
            return np.zeros(0, np.float32), Signal(mean, np.ones(mean.size))
        offset = 0.1 * self._draw(mean.size).astype(np.float64)
        return (offset - mean).astype(np.float32), Signal(offset, np.ones(mean.size))

    def scale_shift(self, x: Node, act: str | None = None) -> Node:
        """A batch normalisation that no convolution can take in: MUL and ADD by constants."""
        incoming = self.signal(x)
        gain = 1.0 / np.maximum(incoming.std, 1e-6)
        scaled = self.apply("MUL", [x, self.constant(gain)], x.shape, Signal(gain * incoming.mean, np.ones(x.channels)))
        shift, signal = self._centre(gain * incoming.mean, True)
        return self.apply("ADD", [scaled, self.constant(shift)], x.shape, signals.activated(signal, act), _act(act))

    # --- layers without weights ---------------------------------------------------------------------------------

    def add(self, a: Node, b: Node, act: str | None = None) -> Node:
        """Sum of two activations (with broadcasting)."""
        return self._binary("ADD", a, b, signals.added(*self._both(a, b), a == b), act)

    def sub(self, a: Node, b: Node, act: str | None = None) -> Node:
        """Difference of two activations."""
        return self._binary("SUB", a, b, signals.added(*self._both(a, b), a == b, sign=-1.0), act)

    def mul(self, a: Node, b: Node, act: str | None = None) -> Node:
        """Product of two activations (with broadcasting, such as a squeeze-and-excite gate)."""
        return self._binary("MUL", a, b, signals.multiplied(*self._both(a, b)), act)

    def _both(self, a: Node, b: Node) -> tuple[Signal, Signal]:
        first, second = self.signal(a), self.signal(b)
        if a.channels == b.channels:
            return first, second
        channels = max(a.channels, b.channels)
        return signals.mixed(first, channels), signals.mixed(second, channels)

    def _binary(self, op: str, a: Node, b: Node, signal: Signal, act: str | None) -> Node:
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self.apply(op, [a, b], shape, signals.activated(signal, act), _act(act))

    def relu(self, x: Node) -> Node:
        """Standalone RELU."""
        return self.apply("RELU", [x], x.shape, signals.activated(self.signal(x), "relu"))

    def relu6(self, x: Node) -> Node:
        """Standalone RELU6."""
        return self.apply("RELU6", [x], x.shape, signals.activated(self.signal(x), "relu6"))

    def hard_swish(self, x: Node) -> Node:
        """x * relu6(x + 3) / 6 in one operator."""
        signal = signals.through(lambda v: v * np.clip(v + 3.0, 0.0, 6.0) / 6.0, self.signal(x), floor=-0.375)
        return self.apply("HARD_SWISH", [x], x.shape, signal)

    def logistic(self, x: Node) -> Node:
        """Sigmoid."""
        signal = signals.through(lambda v: 1.0 / (1.0 + np.exp(-v)), self.signal(x), floor=0.0, ceiling=1.0)
        return self.apply("LOGISTIC", [x], x.shape, signal)

    def gelu(self, x: Node) -> Node:
        """Gaussian error linear unit (tanh form)."""
        law = signals.through(lambda v: v / (1.0 + np.exp(-1.702 * v)), self.signal(x), floor=-0.17)
        return self.apply("GELU", [x], x.shape, law, {"approximate": True})

    def softmax(self, x: Node) -> Node:
        """Softmax over the last axis."""
        share = 1.0 / x.channels
        # Between even shares and one winner takes all, which would be sqrt(share).
        signal = Signal(np.full(x.channels, share), np.full(x.channels, 0.5 * share**0.5), 0.0, 1.0)
        return self.apply("SOFTMAX", [x], x.shape, signal)

    def avg_pool(self, x: Node, window: int, stride: int = 1, pad: Padding = "same", act: str | None = None) -> Node:
        """Average over windows, padding not counted."""
        return self._pool("AVERAGE_POOL_2D", x, window, stride, pad, act)

    def max_pool(self, x: Node, window: int, stride: int = 1, pad: Padding = "same", act: str | None = None) -> Node:
        """Maximum over windows."""
        return self._pool("MAX_POOL_2D", x, window, stride, pad, act)

    def _pool(self, op: str, x: Node, window: int, stride: int, pad: Padding, act: str | None) -> Node:
        batch, height, width, channels = x.shape
        shape = (batch, spatial(height, window, stride, pad), spatial(width, window, stride, pad), channels)
        law = signals.pooled(self.signal(x), window * window, "average" if op.startswith("AVERAGE") else "max")
        options = {"pad": pad, "stride": (stride, stride), "window": (window, window), **_act(act)}
        return self.apply(op, [x], shape, signals.activated(law, act), options, one_scale=True)

    def mean(self, x: Node, axes: Sequence[int] = (1, 2), keep: bool = False) -> Node:
        """Mean over axes (global average pooling by default)."""
        count = int(np.prod([x.shape[axis] for axis in axes]))
        shape = [1 if at in axes else size for at, size in enumerate(x.shape) if keep or at not in axes]
        incoming = self.signal(x)
        law = Signal(incoming.mean, incoming.std / count**0.25, incoming.floor, incoming.ceiling)
        if len(x.shape) - 1 in axes:
            law = signals.mixed(law, shape[-1] if shape else 1)
        options = {"keep_dims": keep}
        return self.apply("MEAN", [x, self.graph.constant(np.array(axes, np.int32))], shape, law, options)

    def concat(self, nodes: Sequence[Node], axis: int = -1) -> Node:
        """Concatenation."""
        axis = axis % len(nodes[0].shape)
        last = axis == len(nodes[0].shape) - 1
        shape = list(nodes[0].shape)
        shape[axis] = sum(node.shape[axis] for node in nodes)
        law = signals.joined([self.signal(node) for node in nodes])
        options = {"axis": -1 if last else axis}
        return self.apply("CONCATENATION", nodes, shape, law if last else signals.mixed(law, shape[-1]), options, one_scale=True)

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        """The same values in another shape."""
        law = self.signal(x) if shape[-1] == x.channels else signals.mixed(self.signal(x), shape[-1])
        target = self.graph.constant(np.array(shape, np.int32))
        return self.apply("RESHAPE", [x, target], shape, law, one_scale=True)

    def transpose(self, x: Node, order: Sequence[int]) -> Node:
        """Axes in another order."""
        shape = [x.shape[axis] for axis in order]
        kept = order[-1] == len(order) - 1
        law = self.signal(x) if kept else signals.mixed(self.signal(x), shape[-1])
        return self.apply("TRANSPOSE", [x, self.graph.constant(np.array(order, np.int32))], shape, law, one_scale=True)

    def pad(self, x: Node, paddings: Sequence[tuple[int, int]]) -> Node:
        """Zeros around an activation: (before, after) for each axis."""
        shape = [size + before + after for size, (before, after) in zip(x.shape, paddings, strict=True)]
        law = self.signal(x) if shape[-1] == x.channels else signals.mixed(self.signal(x), shape[-1])
        table = self.graph.constant(np.array(paddings, np.int32))
        return self.apply("PAD", [x, table], shape, law, one_scale=True)

    def slice(self, x: Node, begin: Sequence[int], size: Sequence[int]) -> Node:
        """A box out of an activation."""
        law = self.signal(x) if size[-1] == x.channels else signals.mixed(self.signal(x), size[-1])
        bounds = [self.graph.constant(np.array(values, np.int32)) for values in (begin, size)]
        return self.apply("SLICE", [x, *bounds], size, law, one_scale=True)

    def crop(self, x: Node, top: int, left: int) -> Node:
        """``x[:, top:, left:, :]`` as the converter writes it: a STRIDED_SLICE with masks for the whole ranges."""
        values = ([0, top, left, 0], [0, 0, 0, 0], [1, 1, 1, 1])
        shape = (x.shape[0], x.shape[1] - top, x.shape[2] - left, x.shape[3])
        tables = [self.graph.constant(np.array(item, np.int32)) for item in values]
        # Bit i of a mask: axis i starts (ends) where the tensor does. The channel and batch axes are whole.
        options = {"begin_mask": 9, "end_mask": 15}
        return self.apply("STRIDED_SLICE", [x, *tables], shape, self.signal(x), options, one_scale=True)

    def resize(self, x: Node, height: int, width: int, method: Literal["bilinear", "nearest"] = "bilinear") -> Node:
        """Resize the picture axes (half-pixel centres)."""
        op = "RESIZE_BILINEAR" if method == "bilinear" else "RESIZE_NEAREST_NEIGHBOR"
        size = self.graph.constant(np.array([height, width], np.int32))
        shape = (x.shape[0], height, width, x.channels)
        options = {"half_pixel_centers": True}
        return self.apply(op, [x, size], shape, self.signal(x), options, one_scale=True)

    def batch_matmul(self, a: Node, b: Node, transpose_b: bool = False) -> Node:
        """Matrix product over the last two axes (``b`` read transposed on request)."""
        inner, columns = (b.shape[-1], b.shape[-2]) if transpose_b else (b.shape[-2], b.shape[-1])
        if a.shape[-1] != inner:
            raise ValueError(f"cannot multiply {a.shape} by {b.shape}")
        law = signals.multiplied(signals.mixed(self.signal(a), columns), signals.mixed(self.signal(b), columns))
        signal = Signal(inner * law.mean, np.sqrt(inner) * law.std)
        return self.apply("BATCH_MATMUL", [a, b], (*a.shape[:-1], columns), signal, {"adj_y": transpose_b})


def _act(act: str | None) -> dict[str, OptionValue]:
    return {} if act is None else {"act": act}


def _affine(low: float, high: float) -> Quantization:
    scale = (high - low) / 255.0
    return Quantization((scale,), int(np.clip(round(-128 - low / scale), -128, 127)))
