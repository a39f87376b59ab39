"""Reads any ``.tflite`` file into a plain graph and tells work from dead code and constants.

:func:`read` gives a :class:`Graph`; :func:`groups` gives what a runtime executes of it, in order, as
:class:`~op_models.spec.OpSpec` values. The reader never trusts the file: every count is bounded by the file's size and every
index is checked, so a truncated or hostile file is a :class:`~op_models.errors.ModelFileError`, nothing else.

Schema: the FlatBuffers schema version 3 of TensorFlow Lite, as generated inside ``ai-edge-litert``.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from op_models.errors import DynamicShapeError, ModelFileError, UnsupportedModelError
from op_models.flatread import Reader
from op_models.options import OptionReader
from op_models.spec import DTYPE_SIZE_BYTES, OpSpec, Step, StepInput, TensorSpec

MAX_FILE_BYTES = 2 * 2**30
_DTYPES = {
    "FLOAT32": "f32",
    "FLOAT16": "f16",
    "INT32": "i32",
    "UINT8": "u8",
    "INT64": "i64",
    "STRING": "str",
    "BOOL": "bool",
    "INT16": "i16",
    "COMPLEX64": "c64",
    "INT8": "i8",
    "FLOAT64": "f64",
    "COMPLEX128": "c128",
    "UINT64": "u64",
    "RESOURCE": "resource",
    "VARIANT": "variant",
    "UINT32": "u32",
    "UINT16": "u16",
    "INT4": "i4",
    "BFLOAT16": "bf16",
    "INT2": "i2",
    "UINT4": "u4",
    "FLOAT8_E4M3FN": "f8e4",
    "FLOAT8_E5M2": "f8e5",
}
DTYPE_OF_CODE: dict[int, str] = {getattr(schema.TensorType, name): short for name, short in _DTYPES.items()}
OPERATOR_NAME: dict[int, str] = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper() and isinstance(code, int)
}
# What broken offsets make the generated accessors raise.
_BROKEN = (
    struct.error,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    AssertionError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a graph. ``shape`` is the shape in the file; ``dynamic`` marks a dimension left open."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    quant: str
    is_const: bool
    dynamic: bool = False
    sparse: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes."""
        count = 1
        for size in self.shape:
            count *= size
        return int(count * DTYPE_SIZE_BYTES[self.dtype])


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a graph; ``inputs`` holds -1 for an absent optional input."""

    index: int
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Operators that are measured and looked up together, and the specification of what they do."""

    operators: tuple[int, ...]
    spec: OpSpec


@dataclass(frozen=True)
class Graph:
    """The first subgraph of a ``.tflite`` file.

    ``data`` is the file itself, kept for lifting operations out with their own weights.
    """

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    data: bytes
    subgraphs: int = 1

    @cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def folded(self) -> frozenset[int]:
        """Indices of operators that read constants alone: done once at load time, no work at run time."""
        constant = {tensor.index for tensor in self.tensors if tensor.is_const}
        folded = set()
        for operator in self.operators:
            present = [index for index in operator.inputs if index >= 0]
            if present and all(index in constant for index in present):
                folded.add(operator.index)
                constant.update(operator.outputs)
        return frozenset(folded)

    @cached_property
    def dead(self) -> frozenset[int]:
        """Indices of operators that no output of the graph depends on."""
        needed = set(self.outputs)
        live = set()
        for operator in reversed(self.operators):
            if any(output in needed for output in operator.outputs) or not operator.outputs:
                live.add(operator.index)
                needed.update(operator.inputs)
        return frozenset(operator.index for operator in self.operators if operator.index not in live)

    @cached_property
    def live(self) -> tuple[Operator, ...]:
        """Operators that a runtime has to execute at every inference, in order."""
        return tuple(op for op in self.operators if op.index not in self.folded and op.index not in self.dead)

    @cached_property
    def constant_source(self) -> dict[int, Tensor | None]:
        """For each constant tensor, stored or folded, the stored tensor behind it (None where several are)."""
        source: dict[int, Tensor | None] = {tensor.index: tensor for tensor in self.tensors if tensor.is_const}
        for operator in self.operators:
            if operator.index in self.folded:
                inputs = [source.get(index) for index in operator.inputs if index >= 0]
                for output in operator.outputs:
                    source[output] = inputs[0] if len(inputs) == 1 else None
        return source

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """What the runtime executes, in order; see :func:`groups`."""
        return _groups(self)


def read(path: Path | str) -> Graph:
    """The graph of a ``.tflite`` file.

    Raises :class:`ModelFileError` for a file that is missing, truncated or no model, and
    :class:`UnsupportedModelError` for one without a graph.
    """
    path = Path(path)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise ModelFileError(str(path), f"{size_bytes} bytes is more than the format can hold")
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(str(path), error.strerror or str(error)) from error
    return parse(data, path.name)


def parse(data: bytes, name: str = "model") -> Graph:
    """The graph of the bytes of a ``.tflite`` file; ``name`` is for messages."""
    if len(data) < 8 or data[4:8] != b"TFL3":
        raise ModelFileError(name, "it lacks the mark TFL3 of the format")
    try:
        return _parse(data, name)
    except _BROKEN as error:
        raise ModelFileError(name, f"its tables do not hold together ({type(error).__name__}: {error})") from error


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")


# Slots of the schema's tables (TensorFlow Lite schema, version 3).
_MODEL_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_BUFFER_DATA, _BUFFER_SIZE = 0, 2
_TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = 0, 1, 2, 3
_SHAPE, _TYPE, _BUFFER, _NAME, _QUANTIZATION, _SPARSITY, _SIGNATURE = 0, 1, 2, 3, 4, 6, 7
_SCALE = 2
_OP_CODE, _OP_INPUTS, _OP_OUTPUTS = 0, 1, 2


def _parse(data: bytes, name: str) -> Graph:
    reader = Reader(data)
    model = reader.root()
    subgraphs = reader.tables(model, _MODEL_SUBGRAPHS)
    if not subgraphs:
        raise UnsupportedModelError(name, "the file holds no graph")
    buffers = [
        reader.vector(buffer, _BUFFER_DATA, 1)[1] > 0 or reader.u32(buffer, _BUFFER_SIZE) > 1
        for buffer in reader.tables(model, _MODEL_BUFFERS)
    ]
    schema_model = schema.Model.GetRootAs(data, 0)
    codes = [_operator_code(schema_model.OperatorCodes(i)) for i in range(len(reader.tables(model, _MODEL_CODES)))]
    subgraph = subgraphs[0]
    tensors = tuple(_tensor(reader, at, i, buffers) for i, at in enumerate(reader.tables(subgraph, _TENSORS)))
    texts = OptionReader(reader)
    operators = tuple(_operator(reader, at, i, codes, texts) for i, at in enumerate(reader.tables(subgraph, _OPERATORS)))
    inputs, outputs = reader.ints(subgraph, _INPUTS), reader.ints(subgraph, _OUTPUTS)
    _check_indices(tensors, operators, inputs, outputs)
    return Graph(name, tensors, operators, inputs, outputs, data, len(subgraphs))


def _check_indices(
    tensors: tuple[Tensor, ...], operators: tuple[Operator, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    count = len(tensors)
    if any(not 0 <= index < count for index in (*inputs, *outputs)):
        raise ValueError("an input or output of the graph is no tensor of it")
    written = set(inputs) | {tensor.index for tensor in tensors if tensor.is_const}
    read_early: set[int] = set()  # legal for state that no operator writes
    for operator in operators:
        if any(not -1 <= index < count for index in operator.inputs):
            raise ValueError(f"operator {operator.index} reads a tensor that does not exist")
        if any(not 0 <= index < count for index in operator.outputs):
            raise ValueError(f"operator {operator.index} writes a tensor that does not exist")
        if any(index in written for index in operator.outputs):
            raise ValueError(f"operator {operator.index} writes a tensor that is already written")
        read_early.update(index for index in operator.inputs if index >= 0 and index not in written)
        if any(index in read_early for index in operator.outputs):
            raise ValueError(f"operator {operator.index} writes a tensor that was read before")
        written.update(operator.outputs)


def _operator_code(code: Any) -> tuple[str, int]:
    # Files from before 2020 hold the code in the old byte-sized field only.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = OPERATOR_NAME.get(number)
    if name is None:
        name = f"BUILTIN_{number}"
    if name == "CUSTOM":
        custom = "".join(c if c.isalnum() or c in "._-" else "_" for c in _text(code.CustomCode())) or "unnamed"
        name = f"CUSTOM:{custom}"
    return name, code.Version()


def _tensor(reader: Reader, at: int, index: int, buffers: list[bool]) -> Tensor:
    shape = reader.ints(at, _SHAPE)
    signature = reader.ints(at, _SIGNATURE)
    count = 1
    for size in shape:
        count *= size
        if size < -1:
            raise ValueError(f"tensor {index} has the shape {shape}")
    if count > 2**40 or len(shape) > 16:
        raise ValueError(f"tensor {index} has the shape {shape}")
    buffer = reader.u32(at, _BUFFER)
    if not 0 <= buffer < max(1, len(buffers)):
        raise ValueError(f"tensor {index} uses buffer {buffer} of {len(buffers)}")
    quantization = reader.table(at, _QUANTIZATION)
    scales = reader.vector(quantization, _SCALE, 4)[1] if quantization else 0
    return Tensor(
        index=index,
        name=reader.text(at, _NAME),
        shape=shape,
        dtype=DTYPE_OF_CODE[reader.u8(at, _TYPE)],
        quant="none" if scales == 0 else "tensor" if scales == 1 else "channel",
        is_const=bool(buffers and buffers[buffer]),
        dynamic=-1 in shape or (bool(signature) and min(signature[1:], default=0) < 0),
        sparse=reader.table(at, _SPARSITY) != 0,
    )


def _operator(reader: Reader, at: int, index: int, codes: list[tuple[str, int]], texts: OptionReader) -> Operator:
    name, version = codes[reader.u32(at, _OP_CODE)]
    return Operator(
        index=index,
        name=name,
        version=version,
        inputs=reader.ints(at, _OP_INPUTS),
        outputs=reader.ints(at, _OP_OUTPUTS),
        options=texts.texts(at, name),
    )


# --- what is executed -------------------------------------------------------------------------------------------

_RELUS = frozenset({"RELU", "RELU6", "RELU_N1_TO_1"})
# Operators into which XNNPACK (subgraph fusion of a clamp into its only producer) folds a ReLU.
_TAKE_RELU = frozenset(
    {
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
        "TRANSPOSE_CONV",
    }
)
_TAKE_PAD = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
# Integer constants of these operators are biases or repeat the output's shape: their values decide nothing.
_VALUES_DECIDE_NOTHING = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "RESHAPE", "CONV_3D", "BATCH_MATMUL"}
)
_MAX_VALUES = 32


def groups(graph: Graph) -> tuple[Group, ...]:
    """What a runtime executes of a graph, in order of execution.

    Dead operators and operators on constants are left out. A ``RELU`` goes with the operator before it where it is that
    one's only reader; a ``PAD`` with the only convolution that reads it; int8 ``LOGISTIC`` and ``MUL`` of one input go
    together (a hard or soft swish that runtimes fuse). The grouping does not depend on the runtime: a group costs what it
    costs, fused or not.

    Raises :class:`DynamicShapeError` where the amount of work is unknown before run time.
    """
    return graph.groups


def _groups(graph: Graph) -> tuple[Group, ...]:
    _require_static(graph)
    readers: dict[int, list[int]] = {}
    for operator in graph.live:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator.index)
    outputs = set(graph.outputs)

    def only_reader(tensor: int) -> Operator | None:
        found = readers.get(tensor, [])
        return graph.operators[found[0]] if len(found) == 1 and tensor not in outputs else None

    taken: dict[int, int] = {}  # operator -> first operator of its group
    members: dict[int, list[int]] = {}
    for operator in graph.live:
        head = taken.setdefault(operator.index, operator.index)
        members.setdefault(head, [operator.index])
        if len(operator.outputs) != 1:
            continue
        reader = only_reader(operator.outputs[0])
        if reader is not None and reader.index not in taken and _fuses(graph, operator, reader):
            taken[reader.index] = head
            members[head].append(reader.index)
    # A group runs where its last member stands.
    ordered = sorted(members.values(), key=lambda group: group[-1])
    specs: dict[tuple[Step, ...], OpSpec] = {}
    found = []
    for group in ordered:
        steps = _steps(graph, group)
        found.append(Group(tuple(group), specs.setdefault(steps, OpSpec(steps))))
    return tuple(found)


def _fuses(graph: Graph, operator: Operator, reader: Operator) -> bool:
    if reader.name in _RELUS:
        activation = dict(operator.options).get("act")
        return operator.name in _TAKE_RELU and activation is None
    if operator.name == "PAD" and reader.name in _TAKE_PAD:
        return reader.inputs[:1] == operator.outputs[:1]
    if operator.name == "LOGISTIC" and reader.name == "MUL":
        quantised = graph.tensors[operator.outputs[0]].quant != "none"
        return quantised and set(reader.inputs) == {*operator.inputs[:1], operator.outputs[0]}
    return False


def _require_static(graph: Graph) -> None:
    for index in graph.inputs:
        tensor = graph.tensors[index]
        if tensor.dynamic:
            raise DynamicShapeError(graph.name, f"input {tensor.name!r} leaves a dimension of {list(tensor.shape)} open")
    for operator in graph.live:
        for index in (*operator.inputs, *operator.outputs):
            if index >= 0 and any(size < 0 for size in graph.tensors[index].shape):
                tensor = graph.tensors[index]
                raise DynamicShapeError(
                    graph.name, f"{operator.name} works on {tensor.name!r}, whose shape {list(tensor.shape)} is open"
                )


def _steps(graph: Graph, operators: list[int]) -> tuple[Step, ...]:
    produced: dict[int, int] = {}
    outside: dict[int, int] = {}
    steps = []
    for position, index in enumerate(operators):
        operator = graph.operators[index]
        inputs: list[StepInput] = []
        for tensor in operator.inputs:
            if tensor < 0:
                inputs.append(None)
            elif tensor in produced:
                inputs.append(produced[tensor])
            elif tensor in outside:
                inputs.append(-outside[tensor] - 1)
            else:
                described = _tensor_spec(graph, tensor, operator.name)
                if described.role == "act":
                    outside[tensor] = len(outside)
                inputs.append(described)
        for tensor in operator.outputs:
            produced[tensor] = position
        steps.append(
            Step(
                op=operator.name,
                options=_options(graph, operator),
                inputs=tuple(inputs),
                outputs=tuple(_tensor_spec(graph, tensor, operator.name) for tensor in operator.outputs),
            )
        )
    return tuple(steps)


def _options(graph: Graph, operator: Operator) -> tuple[tuple[str, str], ...]:
    """An operator's options; a filter of one pixel never reaches over an edge, so its two paddings are one operation."""
    if operator.name == "CONV_2D" and len(operator.inputs) > 1 and ("pad", "valid") in operator.options:
        shape = graph.tensors[operator.inputs[1]].shape if operator.inputs[1] >= 0 else ()
        if len(shape) == 4 and shape[1] == shape[2] == 1:
            return tuple((name, "same" if name == "pad" else value) for name, value in operator.options)
    return operator.options


def _tensor_spec(graph: Graph, index: int, operator: str) -> TensorSpec:
    tensor = graph.tensors[index]
    source = graph.constant_source
    if index not in source:
        return TensorSpec(tensor.shape, tensor.dtype, tensor.quant)
    if tensor.is_const:
        values = None
        if tensor.dtype in ("i32", "i64") and operator not in _VALUES_DECIDE_NOTHING:
            content = constant_values(graph, index)
            if content is not None and content.size <= _MAX_VALUES:
                values = tuple(content.ravel().tolist())
        return TensorSpec(tensor.shape, tensor.dtype, tensor.quant, "const", values)
    stored = source[index]
    dtype = tensor.dtype if stored is None else stored.dtype
    return TensorSpec(tensor.shape, dtype, "none" if stored is None else stored.quant, "folded")


def constant_values(graph: Graph, index: int) -> np.ndarray[Any, Any] | None:
    """Values of a stored int32 or int64 constant as a flat array; None where the file holds another amount of them."""
    tensor = graph.tensors[index]
    try:
        model = schema.Model.GetRootAs(graph.data, 0)
        raw = model.Buffers(model.Subgraphs(0).Tensors(index).Buffer()).DataAsNumpy()
        content = np.frombuffer(raw.tobytes(), dtype="<i4" if tensor.dtype == "i32" else "<i8")
    except _BROKEN:
        return None
    return content if content.nbytes == tensor.size_bytes else None
