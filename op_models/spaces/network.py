"""A network as an expression graph that is simplified the way TensorFlow's converter simplifies it, then written.

A search space describes its networks here, literally as published; :class:`Network` then gives what the converter
would:

* equal expressions without weights are one (the converter's common-subexpression elimination; sums are commutative),
  so two pools of one tensor are computed once; operations with weights are never equal;
* what no output needs is gone;
* a batch normalisation is folded into the convolution that alone feeds it, else it stays as MUL and ADD;
* a ReLU goes into the convolution, sum or pool before it where it is that one's only reader, else it stays an operator
  (it stays after a concatenation, a slice and a mean, which cannot take it in).

Checked operator for operator against TensorFlow 2.21's converter (float32 and int8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from op_models.graph import parse
from op_models.layers import NetworkBuilder, Node, Padding, Precision, spatial
from op_models.ranges import observed
from op_models.spaces.base import CountMatrix

# Operators into which the converter puts a ReLU.
_TAKE_RELU = frozenset({"conv", "depthwise", "add", "average", "max", "norm"})
_WEIGHTED = frozenset({"conv", "depthwise", "dense", "norm", "input"})
_Attributes = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Expression:
    """One value of a network: what computes it (``op`` and ``attributes``) from which others; ``shape`` is NHWC."""

    op: str
    inputs: tuple[int, ...]
    attributes: _Attributes
    shape: tuple[int, ...]
    act: str | None = None


class Network:
    """A network under description; values are plain numbers, to be passed to the next layer."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.expressions: list[Expression] = []
        self._known: dict[tuple[str, tuple[int, ...], _Attributes], int] = {}
        self.input = self._value("input", (), (), (1, *shape))

    def _value(self, op: str, inputs: tuple[int, ...], attributes: _Attributes, shape: tuple[int, ...]) -> int:
        key = (op, inputs, attributes)
        if op in _WEIGHTED or key not in self._known:
            self._known[key] = len(self.expressions)
            self.expressions.append(Expression(op, inputs, attributes, shape))
        return self._known[key]

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value, batch first."""
        return self.expressions[value].shape

    def _window(self, value: int, kernel: int, stride: int, pad: str) -> tuple[int, int, int]:
        batch, height, width, _ = self.shape(value)
        return batch, spatial(height, kernel, stride, pad), spatial(width, kernel, stride, pad)

    def conv(self, x: int, filters: int, kernel: int, stride: int = 1, pad: str = "same") -> int:
        """Convolution with a bias (the folded batch normalisation)."""
        return self._value("conv", (x,), (filters, kernel, stride, pad), (*self._window(x, kernel, stride, pad), filters))

    def depthwise(self, x: int, kernel: int, stride: int = 1) -> int:
        """Depthwise convolution with a bias."""
        shape = (*self._window(x, kernel, stride, "same"), self.shape(x)[-1])
        return self._value("depthwise", (x,), (kernel, stride), shape)

    def norm(self, x: int) -> int:
        """Batch normalisation that stands on its own."""
        return self._value("norm", (x,), (), self.shape(x))

    def dense(self, x: int, units: int, bias: bool) -> int:
        """Fully connected layer."""
        return self._value("dense", (x,), (units, int(bias)), (self.shape(x)[0], units))

    def relu(self, x: int, kind: str = "relu") -> int:
        """ReLU, or ``relu6``."""
        return self._value("relu", (x,), (kind,), self.shape(x))

    def average(self, x: int, window: int, stride: int = 1, pad: str = "same") -> int:
        """Average pool; padding is not counted."""
        shape = (*self._window(x, window, stride, pad), self.shape(x)[-1])
        return self._value("average", (x,), (window, stride, pad), shape)

    def max(self, x: int, window: int, stride: int = 1) -> int:
        """Maximum pool, same padding."""
        shape = (*self._window(x, window, stride, "same"), self.shape(x)[-1])
        return self._value("max", (x,), (window, stride), shape)

    def add(self, a: int, b: int) -> int:
        """Sum."""
        first, second = sorted((a, b))
        return self._value("add", (first, second), (), self.shape(a))

    def concat(self, values: Sequence[int]) -> int:
        """Concatenation along the channels; of one value, that value."""
        if len(values) == 1:
            return values[0]
        channels = sum(self.shape(value)[-1] for value in values)
        return self._value("concat", tuple(values), (), (*self.shape(values[0])[:-1], channels))

    def crop(self, x: int) -> int:
        """Without its first row and column."""
        batch, height, width, channels = self.shape(x)
        return self._value("crop", (x,), (), (batch, height - 1, width - 1, channels))

    def mean(self, x: int) -> int:
        """Global average pool."""
        return self._value("mean", (x,), (), (self.shape(x)[0], self.shape(x)[-1]))

    def simplified(self, output: int) -> tuple[list[tuple[int, Expression]], int]:
        """What the converter leaves: (value, expression) in order of computation, and the output's value."""
        readers = [0] * len(self.expressions)
        live = {output}
        readers[output] += 1  # the caller
        for value in range(output, -1, -1):
            if value in live:
                for source in self.expressions[value].inputs:
                    readers[source] += 1
                    live.add(source)
        kept: dict[int, Expression] = {}
        alias: dict[int, int] = {}
        for value in sorted(live):
            expression = self.expressions[value]
            inputs = tuple(alias.get(source, source) for source in expression.inputs)
            if inputs:
                before = kept[inputs[0]]
                only = readers[expression.inputs[0]] == 1
                if expression.op == "norm" and only and before.op == "conv" and before.act is None:
                    alias[value] = inputs[0]
                    continue
                if expression.op == "relu" and only and before.op in _TAKE_RELU and before.act is None:
                    kept[inputs[0]] = replace(before, act=str(expression.attributes[0]))
                    alias[value] = inputs[0]
                    continue
            kept[value] = replace(expression, inputs=inputs)
        return list(kept.items()), alias.get(output, output)

    def write(self, output: int, precision: Precision, seed: int, name: str) -> bytes:
        """The simplified network as a ``.tflite`` file with seeded weights; int8 is calibrated on its float32 twin."""
        ranges = observed(self.write(output, "float32", seed, name), seed) if precision == "int8" else None
        builder = NetworkBuilder(precision, seed, name, ranges)
        nodes: dict[int, Node] = {}
        kept, last = self.simplified(output)
        for value, expression in kept:
            nodes[value] = emit(builder, expression, [nodes[source] for source in expression.inputs])
        return builder.build(nodes[last])


def _padding(value: int | str | None) -> Padding:
    return "valid" if value == "valid" else "same"


def emit(builder: NetworkBuilder, expression: Expression, inputs: Sequence[Node]) -> Node:
    """Write one expression into a builder."""
    act = expression.act
    match expression.op, expression.attributes:
        case "input", ():
            return builder.input(expression.shape)
        case "conv", (int(filters), int(kernel), int(stride), pad):
            return builder.conv2d(inputs[0], filters, kernel, stride, _padding(pad), act)
        case "depthwise", (int(kernel), int(stride)):
            return builder.depthwise(inputs[0], kernel, stride, "same", act)
        case "norm", ():
            return builder.scale_shift(inputs[0], act)
        case "dense", (int(units), bias):
            return builder.fully_connected(inputs[0], units, bias=bool(bias))
        case "relu", (kind,):
            return builder.relu6(inputs[0]) if kind == "relu6" else builder.relu(inputs[0])
        case "average", (int(window), int(stride), pad):
            return builder.avg_pool(inputs[0], window, stride, _padding(pad), act)
        case "max", (int(window), int(stride)):
            return builder.max_pool(inputs[0], window, stride, act=act)
        case "add", ():
            return builder.add(inputs[0], inputs[1], act)
        case "concat", ():
            return builder.concat(inputs)
        case "crop", ():
            return builder.crop(inputs[0], 1, 1)
        case "mean", ():
            return builder.mean(inputs[0])
    raise AssertionError(f"no such expression: {expression}")


# --- operation counts without building whole networks --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signature:
    """What decides the key of an expression: everything but which values it reads.

    ``shapes`` are those of its inputs. ``repeats`` is () where these are all different values, else it names for each
    input the first input that is the same value: (0, 0) for the sum of a value with itself.
    """

    op: str
    attributes: _Attributes
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    act: str | None = None
    repeats: tuple[int, ...] = ()


def signatures(kept: Sequence[tuple[int, Expression]]) -> Counter[Signature]:
    """How often each kind of operation occurs in a simplified network (its input left out)."""
    shape = {value: expression.shape for value, expression in kept}
    return Counter(
        Signature(
            expression.op,
            expression.attributes,
            tuple(shape[source] for source in expression.inputs),
            expression.shape,
            expression.act,
            _repeats(expression.inputs),
        )
        for _, expression in kept
        if expression.op != "input"
    )


def _repeats(inputs: tuple[int, ...]) -> tuple[int, ...]:
    return () if len(set(inputs)) == len(inputs) else tuple(inputs.index(source) for source in inputs)


@lru_cache(maxsize=65536)
def _known_keys(signature: Signature, precision: Precision) -> list[str]:
    """A place for the keys of one signature, filled by :func:`keys_of`."""
    return []


def keys_of(wanted: Iterable[Signature], precision: Precision) -> dict[Signature, tuple[str, ...]]:
    """Operation keys of signatures (a batch normalisation on its own has two: MUL and ADD).

    All that are new are written into one model, which is walked as any file is, so they are the keys of real graphs.
    """
    listed = list(dict.fromkeys(wanted))
    missing = [signature for signature in listed if not _known_keys(signature, precision)]
    if missing:
        builder = NetworkBuilder(precision)
        marks = []
        ends = []
        for signature in missing:
            inputs = [builder.input(shape) for shape in signature.shapes]
            if signature.repeats:
                inputs = [inputs[first] for first in signature.repeats]
            expression = Expression(signature.op, (), signature.attributes, signature.shape, signature.act)
            ends.append(emit(builder, expression, inputs))
            marks.append(len(builder.graph))
        graph = parse(builder.build(*ends), "operations of a space")
        owner = {}
        for mark, signature in zip(reversed(marks), reversed(missing), strict=True):
            owner.update(dict.fromkeys(range(mark), signature))
        for group in graph.groups:
            _known_keys(owner[group.operators[-1]], precision).append(group.spec.key)
    return {signature: tuple(_known_keys(signature, precision)) for signature in listed}


def tabulate(columns: Mapping[Signature, NDArray[Any]], valid: NDArray[np.bool_], precision: Precision) -> CountMatrix:
    """A count matrix from one array [n] for each signature; rows that are not valid become 0."""
    used = {signature: values for signature, values in columns.items() if values.any()}
    keys = keys_of(used, precision)
    order: dict[str, int] = {}
    for signature in used:
        for key in keys[signature]:
            order.setdefault(key, len(order))
    table = np.zeros((len(order), len(valid)), dtype=np.float32)
    for signature, values in used.items():
        for key in keys[signature]:
            table[order[key]] += values
    table *= valid
    return CountMatrix(tuple(order), np.ascontiguousarray(table.T), valid)


def key_counts(counted: Counter[Signature], precision: Precision) -> dict[str, int]:
    """Executions of each operation key."""
    keys = keys_of(counted, precision)
    total: Counter[str] = Counter()
    for signature, count in counted.items():
        for key in keys[signature]:
            total[key] += count
    return dict(total)
