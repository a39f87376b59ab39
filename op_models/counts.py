"""Work and memory of operations and whole graphs: MACs, parameters, bytes.

MACs follow the usual convention (one multiply-add of a convolution, matrix product or dense layer is one MAC;
element-wise work, pools, activations and data movement are 0). Parameters are elements of float or quantised
constants that are operands (weights, biases, scales of a normalisation); shapes, axes and paddings are not
parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from op_models.graph import Graph, groups
from op_models.spec import OpSpec, Step, TensorSpec

# dtype of integer constants that are data, not operands, unless the operator is one of those with an integer bias.
_INDEX_TYPES = frozenset({"i32", "i64", "bool", "str"})
_WITH_BIAS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE"})


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals of an operation or a network; bytes are those of the file's types."""

    macs: int = 0
    params: int = 0
    weight_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    operators: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.macs + other.macs,
            self.params + other.params,
            self.weight_bytes + other.weight_bytes,
            self.input_bytes + other.input_bytes,
            self.output_bytes + other.output_bytes,
            self.operators + other.operators,
        )


def macs(spec: OpSpec) -> int:
    """Multiply-accumulates of one execution; 0 for operators that have none."""
    return sum(_MACS[step.op](spec, step) for step in spec.steps if step.op in _MACS)


def params(spec: OpSpec) -> int:
    """Elements of the constants that are operands (weights and biases)."""
    return sum(tensor.elements for tensor in _operands(spec))


def weight_bytes(spec: OpSpec) -> int:
    """Bytes of weights and biases as the file stores them (float16 weights count 2 each)."""
    return sum(tensor.size_bytes for tensor in _operands(spec))


def input_bytes(spec: OpSpec) -> int:
    """Bytes of the distinct activations that come from outside the group."""
    return sum(tensor.size_bytes for tensor in spec.activations)


def output_bytes(spec: OpSpec) -> int:
    """Bytes that the group writes for others to read."""
    return sum(tensor.size_bytes for tensor in spec.outputs)


def counts(spec: OpSpec) -> Counts:
    """All figures of one operation."""
    return Counts(macs(spec), params(spec), weight_bytes(spec), input_bytes(spec), output_bytes(spec), operators=len(spec.steps))


def graph_counts(graph: Graph) -> Counts:
    """Figures of everything that a runtime executes of a graph.

    ``input_bytes`` and ``output_bytes`` are those of the network's own inputs and outputs. A constant that several
    operators read is counted once.
    """
    total = sum((counts(group.spec) for group in groups(graph)), Counts())
    seen: set[int] = set()
    elements = stored = 0
    source = graph.constant_source
    for operator in graph.live:
        for position, index in enumerate(operator.inputs):
            if index < 0 or index not in source:
                continue
            tensor = source[index] or graph.tensors[index]
            if tensor.index in seen or not _is_operand(operator.name, position, tensor.dtype):
                continue
            seen.add(tensor.index)
            elements += prod(graph.tensors[index].shape)
            stored += tensor.size_bytes
    return Counts(
        macs=total.macs,
        params=elements,
        weight_bytes=stored,
        input_bytes=sum(graph.tensors[index].size_bytes for index in graph.inputs),
        output_bytes=sum(graph.tensors[index].size_bytes for index in graph.outputs),
        operators=total.operators,
    )


def _is_operand(operator: str, position: int, dtype: str) -> bool:
    if operator == "TRANSPOSE_CONV" and position == 0:  # the output's shape
        return False
    return dtype not in _INDEX_TYPES or operator in _WITH_BIAS


def _operands(spec: OpSpec) -> list[TensorSpec]:
    return [
        tensor
        for step in spec.steps
        for position, tensor in enumerate(step.inputs)
        if isinstance(tensor, TensorSpec) and tensor.role != "act" and _is_operand(step.op, position, tensor.dtype)
    ]


# --- MACs by operator -------------------------------------------------------------------------------------------


def _resolve(spec: OpSpec, step: Step, position: int) -> TensorSpec:
    """The tensor behind an input, also where it is another step's output or a repeated activation."""
    tensor = step.inputs[position]
    if isinstance(tensor, TensorSpec):
        return tensor
    if tensor is None:
        raise ValueError(f"{step.op} lacks input {position}")
    return spec.steps[tensor].outputs[0] if tensor >= 0 else spec.activations[-tensor - 1]


def _conv(spec: OpSpec, step: Step) -> int:
    """Filter [out, kh, kw, in / groups]: every output element takes kh*kw*in/groups products."""
    _, height, width, depth = _resolve(spec, step, 1).shape
    return step.outputs[0].elements * height * width * depth


def _depthwise(spec: OpSpec, step: Step) -> int:
    """Filter [1, kh, kw, out]."""
    _, height, width, _ = _resolve(spec, step, 1).shape
    return step.outputs[0].elements * height * width


def _transpose_conv(spec: OpSpec, step: Step) -> int:
    """Inputs (shape, filter [out, kh, kw, in], activation): every input element meets kh*kw*out weights."""
    out, height, width, _ = _resolve(spec, step, 1).shape
    return _resolve(spec, step, 2).elements * height * width * out


def _dense(spec: OpSpec, step: Step) -> int:
    """Weights [units, depth], over all rows of the input."""
    return step.outputs[0].elements * _resolve(spec, step, 1).shape[-1]


def _matmul(spec: OpSpec, step: Step) -> int:
    """[..., m, k] x [..., k, n], either side possibly stored transposed."""
    shape = _resolve(spec, step, 0).shape
    inner = shape[-2] if step.option("adj_x") == "yes" else shape[-1]
    return step.outputs[0].elements * inner


def _conv3d(spec: OpSpec, step: Step) -> int:
    """Filter [kd, kh, kw, in, out]."""
    depth, height, width, incoming, _ = _resolve(spec, step, 1).shape
    return step.outputs[0].elements * depth * height * width * incoming


def _conv3d_transpose(spec: OpSpec, step: Step) -> int:
    """Inputs (shape, filter [kd, kh, kw, out, in], activation)."""
    depth, height, width, out, _ = _resolve(spec, step, 1).shape
    return _resolve(spec, step, 2).elements * depth * height * width * out


def _lstm(spec: OpSpec, step: Step) -> int:
    """All weight matrices once for each row (batch x time) of the input."""
    rows = _resolve(spec, step, 0).elements // _resolve(spec, step, 0).shape[-1]
    matrices = [t for t in step.inputs[1:] if isinstance(t, TensorSpec) and t.role != "act" and len(t.shape) == 2]
    return rows * sum(tensor.elements for tensor in matrices)


def _svdf(spec: OpSpec, step: Step) -> int:
    """Feature weights [filters, depth] and time weights [filters, memory] once for each row."""
    rows = _resolve(spec, step, 0).shape[0]
    return rows * (_resolve(spec, step, 1).elements + _resolve(spec, step, 2).elements)


_MACS: dict[str, Callable[[OpSpec, Step], int]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _dense,
    "BATCH_MATMUL": _matmul,
    "CONV_3D": _conv3d,
    "CONV_3D_TRANSPOSE": _conv3d_transpose,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "LSTM": _lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _lstm,
    "RNN": _lstm,
    "SVDF": _svdf,
}
