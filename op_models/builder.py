"""Writes ``.tflite`` files from scratch: tensors, constants and operators in, the bytes of a file out.

:class:`GraphBuilder` knows the file format and nothing about networks; :mod:`op_models.layers` puts layers with random
weights and sane quantisation on top. Options are named as in :mod:`op_models.spec` (``pad=same``, ``stride=2x2``,
``act=relu``, ``window=3x3``, the schema's own names in snake case for the rest), so the operator of a key can be
written back as it is; what the tensors already say (new shapes, numbers of splits, depth multipliers) is filled in
here.

Constants go into buffers aligned to 16 bytes, as the converter writes them; tensors that share a constant share one
buffer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from op_models.errors import SpecError
from op_models.flatwrite import Writer, layout

OptionValue = str | int | float | bool | Sequence[int]
Array = NDArray[Any]

NUMPY_DTYPE: dict[str, str] = {
    "f32": "<f4",
    "f16": "<f2",
    "f64": "<f8",
    "i8": "|i1",
    "u8": "|u1",
    "i16": "<i2",
    "u16": "<u2",
    "i32": "<i4",
    "u32": "<u4",
    "i64": "<i8",
    "u64": "<u8",
    "bool": "|b1",
}
_SHORT_DTYPE = {np.dtype(text): short for short, text in NUMPY_DTYPE.items()}
TENSOR_TYPE: dict[str, int] = {
    "f32": schema.TensorType.FLOAT32,
    "f16": schema.TensorType.FLOAT16,
    "f64": schema.TensorType.FLOAT64,
    "i8": schema.TensorType.INT8,
    "u8": schema.TensorType.UINT8,
    "i16": schema.TensorType.INT16,
    "u16": schema.TensorType.UINT16,
    "i32": schema.TensorType.INT32,
    "u32": schema.TensorType.UINT32,
    "i64": schema.TensorType.INT64,
    "u64": schema.TensorType.UINT64,
    "bool": schema.TensorType.BOOL,
    "i4": schema.TensorType.INT4,
    "bf16": schema.TensorType.BFLOAT16,
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """Scales of a quantised tensor: one for the tensor, or one for each index along ``axis``."""

    scale: tuple[float, ...] | Array
    zero_point: int = 0
    axis: int = 0


@dataclass(slots=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str
    name: str
    quantization: Quantization | None = None
    buffer: int = 0


@dataclass(slots=True)
class _Operator:
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[tuple[str, OptionValue], ...]


class GraphBuilder:
    """One subgraph under construction. Tensors are plain indices; -1 stands for an absent optional input.

    >>> builder = GraphBuilder()
    >>> x = builder.input((1, 4))
    >>> y = builder.op("RELU", [x], [builder.tensor((1, 4))])
    >>> builder.output(*y)
    >>> builder.build()[4:8]
    b'TFL3'
    """

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self._tensors: list[_Tensor] = []
        self._operators: list[_Operator] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._buffers: list[bytes | memoryview] = [b""]

    def __len__(self) -> int:
        """Number of operators so far."""
        return len(self._operators)

    def tensor(self, shape: Sequence[int], dtype: str = "f32", quantization: Quantization | None = None, name: str = "") -> int:
        """A tensor that an operator will compute."""
        index = len(self._tensors)
        self._tensors.append(_Tensor(tuple(shape), dtype, name or f"t{index}", quantization))
        return index

    def input(self, shape: Sequence[int], dtype: str = "f32", quantization: Quantization | None = None, name: str = "") -> int:
        """An input of the model."""
        index = self.tensor(shape, dtype, quantization, name)
        self._inputs.append(index)
        return index

    def constant(
        self,
        values: Array | Sequence[int] | bytes,
        *,
        shape: Sequence[int] | None = None,
        dtype: str | None = None,
        quantization: Quantization | None = None,
        name: str = "",
    ) -> int:
        """A constant, stored in a buffer of its own.

        ``values`` is an array, a list of int32, or raw bytes (then ``shape`` and ``dtype`` say what they are).
        """
        if isinstance(values, bytes):
            if shape is None or dtype is None:
                raise ValueError("raw bytes need a shape and a dtype")
            index = self.tensor(shape, dtype, quantization, name)
        else:
            array = np.asarray(
                values, dtype=NUMPY_DTYPE[dtype or "i32"] if not isinstance(values, (np.ndarray, np.generic)) else None
            )
            short = dtype or _SHORT_DTYPE[array.dtype]
            index = self.tensor(array.shape if shape is None else shape, short, quantization, name)
            values = array.astype(NUMPY_DTYPE[short], copy=False)
        self._tensors[index].buffer = self._buffer(values)
        return index

    def shared(self, constant: int, name: str = "") -> int:
        """Another tensor over the buffer of ``constant``: the same weights once in the file, for many operators."""
        source = self._tensors[constant]
        index = self.tensor(source.shape, source.dtype, source.quantization, name)
        self._tensors[index].buffer = source.buffer
        return index

    def set_quantization(self, tensor: int, quantization: Quantization) -> None:
        """Set the scales of a tensor after the fact (they may depend on all its readers)."""
        self._tensors[tensor].quantization = quantization

    def set_constant(self, tensor: int, values: Array) -> None:
        """Give a tensor made by :meth:`tensor` its constant content after the fact."""
        self._tensors[tensor].buffer = self._buffer(values.astype(NUMPY_DTYPE[self._tensors[tensor].dtype], copy=False))

    def _buffer(self, values: Array | bytes) -> int:
        # A view of bytes: the array is kept alive by it and is not copied before the file is joined.
        content = values if isinstance(values, bytes) else np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._buffers.append(content)
        return len(self._buffers) - 1

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, OptionValue] | None = None,
        version: int | None = None,
    ) -> tuple[int, ...]:
        """Append an operator and return its outputs.

        ``name`` is the schema's (``CONV_2D``). Raises :class:`SpecError` for an operator or option that the schema
        lacks.
        """
        filled = dict(options or {})
        for option, value in _implied(self, name, inputs, outputs):
            filled.setdefault(option, value)
        plain = tuple((option, _plain(value)) for option, value in sorted(filled.items()))
        _packed_options(name, plain)  # raises on what the schema lacks, at the edge
        kinds = "int8" if any(self._tensors[i].dtype == "i8" for i in (*inputs, *outputs) if i >= 0) else "float32"
        number = version if version is not None else _VERSION.get((name, kinds), 2 if kinds == "int8" else 1)
        self._operators.append(_Operator(name, number, tuple(inputs), tuple(outputs), plain))
        return tuple(outputs)

    def output(self, *tensors: int) -> None:
        """Declare outputs of the model, in order."""
        self._outputs.extend(tensors)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors[tensor].shape

    def dtype(self, tensor: int) -> str:
        """Short dtype of a tensor."""
        return self._tensors[tensor].dtype

    def quantization(self, tensor: int) -> Quantization | None:
        """Scales of a tensor, if it is quantised."""
        return self._tensors[tensor].quantization

    def build(self) -> bytes:
        """The bytes of the ``.tflite`` file (schema version 3)."""
        writer = Writer()
        buffers = [writer.table(_EMPTY)]
        buffers += [writer.table(_BUFFER, writer.data(content)) for content in self._buffers[1:]]
        tensors = [_write_tensor(writer, tensor) for tensor in self._tensors]
        codes: dict[tuple[str, int], int] = {}
        packed: dict[tuple[str, tuple[tuple[str, OptionValue], ...]], tuple[int, int]] = {}
        operators = []
        for operator in self._operators:
            code = codes.setdefault((operator.name, operator.version), len(codes))
            what = (operator.name, operator.options)
            if what not in packed:
                kind, content, root = _packed_options(*what)
                packed[what] = (kind, writer.embed(content, root) if content else 0)
            operators.append(_write_operator(writer, operator, code, *packed[what]))
        subgraph = writer.table(
            _SUBGRAPH,
            writer.tables(tensors),
            writer.ints(self._inputs),
            writer.ints(self._outputs),
            writer.tables(operators),
            writer.text(self.name),
        )
        model = writer.table(
            _MODEL,
            3,
            writer.tables([_write_code(writer, *code) for code in codes]),
            writer.tables([subgraph]),
            writer.text("written by op_models"),
            writer.tables(buffers),
        )
        return writer.finish(model, b"TFL3")


# Slots of the schema's tables (TensorFlow Lite schema, version 3).
_EMPTY = layout()  # buffer 0, which stands for "no data"
_BUFFER = layout((0, "ref"))
_TENSOR = layout((0, "ref"), (1, "u8"), (2, "u32"), (3, "ref"))
_TENSOR_QUANTIZED = layout((0, "ref"), (1, "u8"), (2, "u32"), (3, "ref"), (4, "ref"))
_QUANTIZATION = layout((2, "ref"), (3, "ref"), (6, "i32"))
_CODE = layout((0, "u8"), (2, "i32"), (3, "i32"))
_OPERATOR = layout((0, "u32"), (1, "ref"), (2, "ref"))
_OPERATOR_OPTIONS = layout((0, "u32"), (1, "ref"), (2, "ref"), (3, "u8"), (4, "ref"))
_SUBGRAPH = layout((0, "ref"), (1, "ref"), (2, "ref"), (3, "ref"), (4, "ref"))
_MODEL = layout((0, "u32"), (1, "ref"), (2, "ref"), (3, "ref"), (4, "ref"))


def _write_tensor(writer: Writer, tensor: _Tensor) -> int:
    common = (writer.ints(tensor.shape), TENSOR_TYPE[tensor.dtype], tensor.buffer, writer.text(tensor.name))
    if tensor.quantization is None:
        return writer.table(_TENSOR, *common)
    scale = np.asarray(tensor.quantization.scale, dtype="<f4")
    zero_point = np.full(scale.size, tensor.quantization.zero_point, dtype="<i8")
    quantization = writer.table(_QUANTIZATION, writer.numbers(scale), writer.numbers(zero_point), tensor.quantization.axis)
    return writer.table(_TENSOR_QUANTIZED, *common, quantization)


def _write_operator(writer: Writer, operator: _Operator, code: int, kind: int, options: int) -> int:
    common = (code, writer.ints(operator.inputs), writer.ints(operator.outputs))
    if not options:
        return writer.table(_OPERATOR, *common)
    return writer.table(_OPERATOR_OPTIONS, *common, kind, options)


def _write_code(writer: Writer, name: str, version: int) -> int:
    code = getattr(schema.BuiltinOperator, name)
    # Codes beyond 127 do not fit the deprecated byte; it then holds the placeholder.
    return writer.table(_CODE, min(code, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES), version, code)


# --- options ----------------------------------------------------------------------------------------------------

# Versions that the converter writes where they differ from 1 (float) and 2 (int8).
_VERSION: dict[tuple[str, str], int] = {
    ("CONV_2D", "int8"): 3,
    ("DEPTHWISE_CONV_2D", "int8"): 3,
    ("FULLY_CONNECTED", "int8"): 4,
    ("BATCH_MATMUL", "int8"): 2,
    ("DEQUANTIZE", "float32"): 3,
    ("RESIZE_BILINEAR", "float32"): 3,
    ("RESIZE_BILINEAR", "int8"): 3,
    ("RESIZE_NEAREST_NEIGHBOR", "float32"): 3,
    ("RESIZE_NEAREST_NEIGHBOR", "int8"): 3,
    ("RESHAPE", "int8"): 1,
    ("QUANTIZE", "int8"): 1,
    ("HARD_SWISH", "int8"): 1,
    ("TRANSPOSE_CONV", "float32"): 1,
    ("TRANSPOSE_CONV", "int8"): 3,
}
_POOLS = ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
_REDUCERS = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")
# Operators whose options are not called like themselves; None: the operator has none.
_OPTIONS_OF: dict[str, str | None] = {
    **dict.fromkeys(_POOLS, "Pool2DOptions"),
    **dict.fromkeys(_REDUCERS, "ReducerOptions"),
    "L2_NORMALIZATION": "L2NormOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "PADV2": "PadV2Options",
    "SPACE_TO_BATCH_ND": "SpaceToBatchNDOptions",
    "BATCH_TO_SPACE_ND": "BatchToSpaceNDOptions",
    "CONV_3D_TRANSPOSE": "Conv3DOptions",
    "ATAN2": "ATan2Options",
    "LSTM": "LSTMOptions",
    "SVDF": "SVDFOptions",
    "RNN": "RNNOptions",
}
_PAIRS = {
    "stride": ("strideH", "strideW"),
    "window": ("filterHeight", "filterWidth"),
    "dilation": ("dilationHFactor", "dilationWFactor"),
}
_FIELDS = {"pad": "padding", "act": "fusedActivationFunction", "padding": "padding"}
_ENUMS = {
    "padding": schema.Padding,
    "fusedActivationFunction": schema.ActivationFunctionType,
    "mode": schema.MirrorPadMode,
}


def _plain(value: OptionValue) -> OptionValue:
    return value if isinstance(value, (str, int, float, bool)) else tuple(int(item) for item in value)


def _options_name(name: str) -> str | None:
    if name in _OPTIONS_OF:
        return _OPTIONS_OF[name]
    camel = "".join(part.capitalize() for part in name.split("_")) + "Options"
    for candidate in (camel, camel.replace("2d", "2D").replace("3d", "3D")):
        if hasattr(schema.BuiltinOptions, candidate):
            return candidate
    return None


@lru_cache(maxsize=4096)
def _packed_options(name: str, options: tuple[tuple[str, OptionValue], ...]) -> tuple[int, bytes, int]:
    """(type, FlatBuffer, position of its root table) of an operator's options; (0, b"", 0) where it has none."""
    if not hasattr(schema.BuiltinOperator, name):
        raise SpecError(name, "the TensorFlow Lite schema has no such operator")
    kind = _options_name(name)
    if kind is None:
        if options:
            raise SpecError(name, f"the operator takes no options, found {dict(options)}")
        return 0, b"", 0
    table = getattr(schema, kind + "T")()
    for option, value in options:
        for field, item in _fields_of(option, value):
            if not hasattr(table, field):
                raise SpecError(name, f"the operator has no option {option!r}")
            setattr(table, field, _enum_value(name, field, item, getattr(table, field)))
    packer = flatbuffers.Builder(64)
    packer.Finish(table.Pack(packer))
    content = bytes(packer.Output())
    return getattr(schema.BuiltinOptions, kind), content, int.from_bytes(content[:4], "little")


def _fields_of(option: str, value: OptionValue) -> list[tuple[str, Any]]:
    if option in _PAIRS:
        if isinstance(value, str):
            value = tuple(map(int, value.split("x")))
        pair = (value, value) if isinstance(value, (int, float)) else tuple(value)
        return list(zip(_PAIRS[option], pair, strict=True))
    camel = re.sub(r"_([a-z0-9])", lambda found: found[1].upper(), option)
    return [(_FIELDS.get(option, camel), value)]


def _enum_value(name: str, field: str, value: Any, default: Any) -> Any:
    enum = _ENUMS.get(field)
    if enum is not None and isinstance(value, str):
        found = {text.lower(): code for text, code in vars(enum).items() if text.isupper()}.get(value.lower())
        if found is None:
            raise SpecError(name, f"{field} cannot be {value!r}")
        return found
    if isinstance(value, str):
        if isinstance(default, bool):
            return value == "yes"
        if isinstance(default, float):
            return float(value)
        if isinstance(default, int):
            return int(value)
        return [int(part) for part in value.split("x") if part]
    return list(value) if isinstance(value, tuple) else value


def _implied(builder: GraphBuilder, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> list[tuple[str, OptionValue]]:
    """Options that the tensors already decide."""
    match name:
        case "RESHAPE":
            return [("new_shape", builder.shape(outputs[0]))]
        case "DEPTHWISE_CONV_2D":
            return [("depth_multiplier", builder.shape(inputs[1])[-1] // builder.shape(inputs[0])[-1])]
        case "SPLIT" | "SPLIT_V":
            return [("num_splits", len(outputs))]
        case "PACK":
            return [("values_count", len(inputs))]
        case "UNPACK":
            return [("num", len(outputs))]
        case "CAST":
            types = TENSOR_TYPE[builder.dtype(inputs[0])], TENSOR_TYPE[builder.dtype(outputs[0])]
            return [("in_data_type", types[0]), ("out_data_type", types[1])]
        case "SHAPE":
            return [("out_type", TENSOR_TYPE[builder.dtype(outputs[0])])]
        case "SOFTMAX":
            return [("beta", 1.0)]
        case "MEAN" | "SUM" | "REDUCE_MAX" | "REDUCE_MIN":
            return [("keep_dims", len(builder.shape(outputs[0])) == len(builder.shape(inputs[0])))]
        case "FULLY_CONNECTED":
            return [("keep_num_dims", len(builder.shape(outputs[0])) > 2)]
    return []
