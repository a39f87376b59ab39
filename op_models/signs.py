"""How mixed the signs of an activation are, estimated from a network's file alone, without running it.

The kernels of quantised ReLUs branch on every element: what one costs follows from how often the processor guesses the
branch wrongly. So its cost lies on the line between that of a tensor of one sign (*mixing* 0) and that of evenly mixed
independent signs (*mixing* 1)::

    cost = cost(one sign) + mixing * (cost(even) - cost(one sign)),    mixing = min(2 e, r * 2 c)

with e the share of the rarer sign in the tensor, and c the mean of that share over channels: channels come round in turn,
so a processor learns which of them lean to one side, within some pixels (r falls with their number). On LiteRT 2.3 and an
EPYC, 3.1 and 7.9 ns an element, and within 4 % of the line between.

The shares are estimated by sending mean and spread of every channel through the network's own weights, by the laws of
:mod:`op_models.signals`; where there is no law for an operator, the quantisation range of its output decides.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from op_models import signals
from op_models.feeds import branching
from op_models.graph import Graph, Group, Operator
from op_models.signals import Signal

Array = NDArray[Any]
_STORED = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8, "i16": np.int16, "i32": np.int32}
_INTEGERS: dict[str, type[np.signedinteger[Any]] | type[np.unsignedinteger[Any]]] = {
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
}
_NOISE_STEPS = 30.0  # what the measuring worker feeds 8-bit inputs with
_THRESHOLDS = {"RELU": (0.0,), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0), "PRELU": (0.0,)}
_SAME_VALUES = frozenset(
    {"STRIDED_SLICE", "SLICE", "RESHAPE", "PAD", "PADV2", "MIRROR_PAD", "QUANTIZE", "DEQUANTIZE", "SQUEEZE"}
    | {"EXPAND_DIMS", "RESIZE_NEAREST_NEIGHBOR", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"}
)
_FUSED = {"relu": "relu", "relu6": "relu6", "relu_n1_to_1": "relu_n1_to_1", "tanh": "tanh"}
# How much of what channels tell stays unused after so many pixels; fitted to LiteRT's profile of 200 ReLUs in ten ENAS
# micro networks (seeds 901 and 905) on an EPYC.
_UNLEARNT, _LEARNING = 4.25, 0.15
# Neighbours of a pixel are alike, so the largest of a window is that of fewer independent values.
_INDEPENDENT_FRAC = 0.6
# What damaged tables make the generated accessors and the arithmetic on them raise.
_BROKEN = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


def mixings(graph: Graph) -> Mapping[int, float]:
    """Estimated mixing, 0..1, of each group of a graph that is one branching operator, by its place in ``graph.groups``.

    Empty for a network without such operators, which then costs no time.
    """
    wanted = {place: group for place, group in enumerate(graph.groups) if branching(group.spec)}
    if not wanted:
        return {}
    walk = _Walk(graph)
    return {place: walk.mixing(graph.operators[group.operators[0]]) for place, group in wanted.items()}


def room(graph: Graph, group: Group) -> int:
    """Steps that a branching group's input has on the scarcer side of its zero point."""
    zero, kind = zero_point(graph, group), np.iinfo(_INTEGERS[graph.tensors[_first(graph, group)].dtype])
    return int(min(zero - kind.min, kind.max - zero))


def mixing(shares: Array, pixels: int) -> float:
    """Mixing of a tensor of ``pixels`` x channels elements; ``shares`` [outcomes, channels] of each outcome of the branch."""
    overall = 2.0 * float(1.0 - shares.mean(axis=1).max())
    by_channel = 2.0 * float(1.0 - shares.max(axis=0).mean())
    unlearnt = max(1.0, _UNLEARNT / float(max(pixels, 1) ** _LEARNING))
    return max(0.0, min(1.0, overall, unlearnt * by_channel))


def zero_point(graph: Graph, group: Group) -> int:
    """The stored number that stands for 0 in the first activation of a group (0 where it is not quantised)."""
    return _quantization(schema.Model.GetRootAs(graph.data, 0).Subgraphs(0).Tensors(_first(graph, group)))[1]


def _first(graph: Graph, group: Group) -> int:
    return graph.operators[group.operators[0]].inputs[0]


def _quantization(tensor: Any) -> tuple[float, int]:
    found = tensor.Quantization()
    if found is None or found.ScaleLength() < 1:
        return 1.0, 0
    return float(found.Scale(0)), int(found.ZeroPoint(0)) if found.ZeroPointLength() else 0


class _Walk:
    """Signals of a graph's tensors, from its inputs on; only what is asked for is computed."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.model = schema.Model.GetRootAs(graph.data, 0)
        self.subgraph = self.model.Subgraphs(0)
        self.producer = {output: operator for operator in graph.operators for output in operator.outputs}
        self.known: dict[int, Signal] = {}

    def mixing(self, operator: Operator) -> float:
        """Mixing of one branching operator's input."""
        signal = self.signal(operator.inputs[0])
        spread = np.maximum(signal.std, 1e-9)
        edges = [_cumulative((at - signal.mean) / spread) for at in _THRESHOLDS[operator.name]]
        bounds = np.stack([np.zeros_like(edges[0]), *edges, np.ones_like(edges[0])])
        shape = self.graph.tensors[operator.inputs[0]].shape
        return mixing(np.diff(bounds, axis=0), int(np.prod(shape[:-1], dtype=np.int64)))

    def signal(self, index: int) -> Signal:
        """The signal of a tensor."""
        waiting = [index]  # not by recursion: networks are deep
        while waiting:
            tensor = waiting[-1]
            operator = self.producer.get(tensor)
            missing = [] if operator is None else [i for i in self._activations(operator) if i not in self.known]
            if tensor not in self.known and missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            if tensor not in self.known:
                self._compute(tensor, operator)
        return self.known[index]

    def _activations(self, operator: Operator) -> list[int]:
        constant = self.graph.constant_source
        return [index for index in operator.inputs if index >= 0 and index not in constant]

    def _compute(self, tensor: int, operator: Operator | None) -> None:
        if operator is None:
            self.known[tensor] = self._input(tensor)
            return
        try:
            with np.errstate(all="ignore"):
                found = self._law(operator)
        except _BROKEN:
            found = None
        for output in operator.outputs:
            self.known[output] = found if found is not None and _sane(found, self._channels(output)) else self._range(output)

    def _channels(self, tensor: int) -> int:
        shape = self.graph.tensors[tensor].shape
        return max(1, shape[-1]) if shape else 1

    def _input(self, tensor: int) -> Signal:
        described = self.graph.tensors[tensor]
        scale, zero = _quantization(self.subgraph.Tensors(tensor))
        if described.dtype in ("i8", "u8") and described.quant != "none":
            middle = 128 if described.dtype == "u8" else 0
            return signals.noise(self._channels(tensor), (middle - zero) * scale, _NOISE_STEPS * scale)
        return signals.noise(self._channels(tensor))

    def _range(self, tensor: int) -> Signal:
        """What the quantisation range tells: a normal signal of which it holds four standard deviations on either side."""
        described = self.graph.tensors[tensor]
        if described.dtype not in ("i8", "u8") or described.quant != "tensor":
            return signals.noise(self._channels(tensor))
        scale, zero = _quantization(self.subgraph.Tensors(tensor))
        lowest = 0 if described.dtype == "u8" else -128
        low, high = scale * (lowest - zero), scale * (lowest + 255 - zero)
        return signals.noise(self._channels(tensor), (low + high) / 2, max((high - low) / 8, 1e-9))

    def _constant(self, tensor: int) -> Array:
        """Real values of a stored constant."""
        stored = self.graph.constant_source[tensor]
        if stored is None:
            raise ValueError("computed from several constants")
        described = self.subgraph.Tensors(stored.index)
        raw = self.model.Buffers(described.Buffer()).DataAsNumpy()
        values = np.frombuffer(raw, _STORED[stored.dtype]).reshape(stored.shape).astype(np.float32)
        quantization = described.Quantization()
        if quantization is None or quantization.ScaleLength() < 1:
            return values
        scale, zero = quantization.ScaleAsNumpy(), quantization.ZeroPointAsNumpy()
        along = [1] * values.ndim
        if scale.size > 1:
            along[quantization.QuantizedDimension()] = -1
        if np.any(zero):
            values -= np.asarray(zero, np.float32).reshape(along)
        values *= scale.astype(np.float32).reshape(along)
        return values

    def _operand(self, tensor: int, channels: int) -> Signal:
        """An input of an element-wise operator, constant or not, with the channels of its output."""
        if tensor in self.graph.constant_source:
            values = self._constant(tensor)
            signal = Signal(np.atleast_1d(values.reshape(-1, values.shape[-1]).mean(0) if values.ndim else values), np.zeros(1))
        else:
            signal = self.known[tensor]
        return Signal(np.broadcast_to(signal.mean, channels), np.broadcast_to(signal.std, channels), signal.floor, signal.ceiling)

    def _law(self, operator: Operator) -> Signal | None:
        options = dict(operator.options)
        found = self._bare(operator, options)
        if found is None or operator.name in _THRESHOLDS:
            return found
        act = options.get("act")
        return found if act is None or act not in _FUSED else signals.activated(found, _FUSED[act])

    def _bare(self, operator: Operator, options: Mapping[str, str]) -> Signal | None:
        inputs, channels = operator.inputs, self._channels(operator.outputs[0])
        match operator.name:
            case "FULLY_CONNECTED":
                weights, source = self._constant(inputs[1]), self.known[inputs[0]]
                return self._weighted(operator, weights @ source.mean, (weights * weights) @ source.variance)
            case "CONV_2D":
                weights, source = self._constant(inputs[1]), self.known[inputs[0]]
                taps = np.moveaxis(weights @ source.mean.astype(np.float32), 0, -1)
                power = np.square(weights, out=weights).sum(axis=(1, 2)) @ source.variance
                return self._weighted(operator, *self._padded(operator, options, taps, power))
            case "DEPTHWISE_CONV_2D":
                weights, source = self._constant(inputs[1])[0], self.known[inputs[0]]
                times = channels // source.mean.size
                mean, variance = np.repeat(source.mean, times), np.repeat(source.variance, times)
                power = (weights * weights).sum(axis=(0, 1)) * variance
                return self._weighted(operator, *self._padded(operator, options, weights * mean, power))
            case "ADD" | "SUB":
                first, second = (self._operand(index, channels) for index in inputs)
                return signals.added(first, second, inputs[0] == inputs[1], 1.0 if operator.name == "ADD" else -1.0)
            case "MUL":
                first, second = (self._operand(index, channels) for index in inputs)
                return signals.multiplied(first, second)
            case "CONCATENATION" if options.get("axis") in ("-1", str(len(self.graph.tensors[operator.outputs[0]].shape) - 1)):
                return signals.joined([self._operand(index, self._channels(index)) for index in inputs])
            case "RELU" | "RELU6" | "RELU_N1_TO_1":
                return signals.activated(self.known[inputs[0]], operator.name.lower())
            case "AVERAGE_POOL_2D" | "MAX_POOL_2D":
                height, _, width = options.get("window", "1x1").partition("x")
                size, source = int(height) * int(width), self.known[inputs[0]]
                if operator.name.startswith("AVERAGE"):
                    return signals.pooled(source, size, "average")
                return signals.pooled(source, 1 + round(_INDEPENDENT_FRAC * (size - 1)), "max")
            case "MEAN":
                source = self.known[inputs[0]]
                return Signal(source.mean, source.std / 4, source.floor, source.ceiling)
            case "LOGISTIC":
                return signals.through(lambda x: 1 / (1 + np.exp(-x)), self.known[inputs[0]], 0.0, 1.0)
            case "HARD_SWISH":
                return signals.through(lambda x: x * np.clip(x + 3, 0, 6) / 6, self.known[inputs[0]], floor=-0.375)
            case name if name in _SAME_VALUES:
                return self.known[inputs[0]]
        return None

    def _padded(self, operator: Operator, options: Mapping[str, str], taps: Array, variance: Array) -> tuple[Array, Array]:
        """Mean and variance of a convolution's output; ``taps`` [height, width, channels] is the mean that each tap adds.

        Where the window hangs over the edge some taps see zeros: with large means that is most of the spread.
        """
        if taps.shape[:2] == (1, 1):
            return taps[0, 0], variance
        before, after = (self.graph.tensors[index].shape for index in (operator.inputs[0], operator.outputs[0]))
        strides = [int(number) for number in options.get("stride", "1x1").split("x")]
        steps = [int(number) for number in options.get("dilation", "1x1").split("x")]
        same = options.get("pad") == "same"
        rows, columns = (
            _inside(before[1 + axis], after[1 + axis], taps.shape[axis], strides[axis], steps[axis], same) for axis in (0, 1)
        )
        mean = np.diagonal(columns) @ np.tensordot(np.diagonal(rows), taps, 1)
        both = columns @ np.tensordot(rows, taps, 1)
        return mean, variance + np.maximum((both * taps).sum(axis=(0, 1)) - mean * mean, 0.0)

    def _weighted(self, operator: Operator, mean: Array, variance: Array) -> Signal:
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            mean = mean + self._constant(operator.inputs[2])
        return Signal(mean, np.sqrt(np.maximum(variance, 0.0)))


def _sane(signal: Signal, channels: int) -> bool:
    return signal.mean.shape == (channels,) == signal.std.shape and bool(
        np.isfinite(signal.mean).all() and np.isfinite(signal.std).all()
    )


@lru_cache(maxsize=256)
def _inside(before: int, after: int, window: int, stride: int, dilation: int, same: bool) -> Array:
    """Share of outputs along an axis for which two taps of the window both lie inside the input, [window, window]."""
    reach = (window - 1) * dilation + 1
    padding = max((after - 1) * stride + reach - before, 0) // 2 if same else 0
    place = np.arange(after) * stride - padding + np.arange(window)[:, None] * dilation
    seen = ((place >= 0) & (place < before)).astype(np.float64)
    answer: Array = seen @ seen.T / max(after, 1)
    return answer


def _cumulative(z: Array) -> Array:
    """Distribution function of the standard normal, within 0.0002."""
    z = np.clip(z, -8.0, 8.0)
    return 0.5 * (1.0 + np.tanh(0.7978845608 * (z + 0.044715 * z**3)))
