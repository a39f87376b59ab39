"""Generates the network that holds exactly one operation, from its key alone: random weights, sane quantisation.

Lifting from it gives op models for grids and search spaces for which no network file is at hand.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from op_models import graph
from op_models.builder import NUMPY_DTYPE, GraphBuilder, Quantization
from op_models.errors import NotLiftableError
from op_models.spec import OpSpec, Step, TensorSpec

_ACTIVATION_SCALE = 0.04  # 127 steps of it are about five standard deviations of a unit-variance signal
_FIXED_OUTPUT = {"LOGISTIC": (1 / 256, -128), "SOFTMAX": (1 / 256, -128), "TANH": (1 / 128, 0)}
_MOST_BYTES = 2 << 30
# What the writer makes of options and tensors that do not go together: anything can stand in a key.
_UNWRITABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, struct.error)
_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})


def network(key: str, seed: int = 0) -> bytes:
    """A ``.tflite`` file with one copy of the operation that ``key`` describes.

    Raises :class:`~op_models.errors.SpecError` for text that is no key and :class:`NotLiftableError` for an operation that
    cannot be written from its key (custom operators, whose options a key only names by hash; options or tensors that do
    not go together).
    """
    return network_of(OpSpec.from_key(key), seed)


def network_of(spec: OpSpec, seed: int = 0) -> bytes:
    """As :func:`network`, from the parsed specification."""
    custom = [step.op for step in spec.steps if step.op.startswith(("CUSTOM:", "STABLEHLO_", "BUILTIN_"))]
    if custom:
        raise NotLiftableError(spec.name, "an operation that a key does not describe in full", custom)
    size_bytes = sum(tensor.size_bytes for tensor in (*spec.activations, *spec.constants, *spec.outputs))
    if size_bytes > _MOST_BYTES:
        raise NotLiftableError(spec.name, f"its tensors take {size_bytes} bytes, more than a file can hold")
    try:
        data = _Generator(spec, seed).build()
    except _UNWRITABLE as error:
        raise NotLiftableError(spec.name, f"it cannot be written from its key ({error})") from error
    found = [group.spec.key for group in graph.parse(data, spec.name).groups]
    if found != [spec.key]:
        raise NotLiftableError(spec.name, f"writing what its key says gives {' and '.join(found) or 'no operation'} instead")
    return data


class _Generator:
    def __init__(self, spec: OpSpec, seed: int) -> None:
        self.spec, self.rng = spec, np.random.default_rng(seed)
        self.builder = GraphBuilder("operation")
        self.external: list[int] = []

    def build(self) -> bytes:
        produced: list[int] = []
        for step in self.spec.steps:
            inputs = []
            for position, tensor in enumerate(step.inputs):
                if tensor is None:
                    inputs.append(-1)
                elif isinstance(tensor, int):
                    inputs.append(produced[tensor] if tensor >= 0 else self.external[-tensor - 1])
                elif tensor.role == "act":
                    inputs.append(self.builder.input(tensor.shape, tensor.dtype, self._activation(tensor)))
                    self.external.append(inputs[-1])
                else:
                    inputs.append(self._constant(step, position, tensor))
            outputs = [self.builder.tensor(t.shape, t.dtype, self._output(step, t, inputs)) for t in step.outputs]
            self.builder.op(step.op, inputs, outputs, dict(step.options))
            produced.append(outputs[0])
            last = outputs
        self.builder.output(*last)
        return self.builder.build()

    def _activation(self, tensor: TensorSpec) -> Quantization | None:
        return None if tensor.quant == "none" else Quantization((_ACTIVATION_SCALE,), 0)

    def _output(self, step: Step, tensor: TensorSpec, inputs: list[int]) -> Quantization | None:
        if tensor.quant == "none":
            return None
        if step.op in _FIXED_OUTPUT:
            scale, zero = _FIXED_OUTPUT[step.op]
            return Quantization((scale,), zero)
        return self._activation(tensor)

    def _constant(self, step: Step, position: int, tensor: TensorSpec) -> int:
        if tensor.values is not None:
            dtype = NUMPY_DTYPE[tensor.dtype]
            return self.builder.constant(np.array(tensor.values, dtype).reshape(tensor.shape), dtype=tensor.dtype)
        if step.op == "RESHAPE" and position == 1:
            return self.builder.constant(list(step.outputs[0].shape))
        if tensor.dtype == "f16" and tensor.role == "folded":
            values = self._weights(tensor).astype(np.float16)
            stored = self.builder.constant(values)
            return self.builder.op("DEQUANTIZE", [stored], [self.builder.tensor(tensor.shape)])[0]
        if tensor.role == "folded":
            raise NotLiftableError(self.spec.name, f"a constant computed from {tensor.text} cannot be written", [step.op])
        if tensor.dtype == "f32":
            return self.builder.constant(self._weights(tensor).astype(np.float32))
        if tensor.dtype in ("i8", "u8", "i16"):
            return self._integer_weights(step, tensor)
        if tensor.dtype == "i32" and tensor.quant != "none":
            count = tensor.elements if tensor.quant == "channel" else 1
            scale = np.full(count, _ACTIVATION_SCALE * self._weight_scale(step), np.float32)
            values = self.rng.integers(-100, 100, tensor.shape).astype(np.int32)
            return self.builder.constant(values, quantization=Quantization(scale, 0, 0))
        return self.builder.constant(np.ones(tensor.shape, NUMPY_DTYPE[tensor.dtype]), dtype=tensor.dtype)

    def _fan_in(self, step: Step) -> float:
        weights = step.inputs[1] if len(step.inputs) > 1 else None
        if not isinstance(weights, TensorSpec) or not weights.shape:
            return 1.0
        axis = -1 if step.op == "DEPTHWISE_CONV_2D" else 0
        return max(1.0, weights.elements / weights.shape[axis])

    def _weights(self, tensor: TensorSpec) -> NDArray[np.float64]:
        fan_in = max(1.0, tensor.elements / max(tensor.shape[:1] or (1,)))
        drawn: NDArray[np.float64] = self.rng.standard_normal(tensor.shape) / np.sqrt(fan_in)
        return drawn

    def _weight_scale(self, step: Step) -> float:
        return 1.0 / (40.0 * float(np.sqrt(self._fan_in(step))))

    def _integer_weights(self, step: Step, tensor: TensorSpec) -> int:
        low, high = (0, 255) if tensor.dtype == "u8" else (-127, 127)
        middle = 128 if tensor.dtype == "u8" else 0
        values = np.clip(np.rint(self.rng.normal(middle, 40, tensor.shape)), low, high)
        axis = len(tensor.shape) - 1 if step.op == "DEPTHWISE_CONV_2D" else 0
        if step.op in _CONVOLUTIONS:
            count = tensor.shape[axis] if tensor.quant == "channel" else 1
            scale = np.full(count, self._weight_scale(step), np.float32)
        else:
            count = tensor.shape[axis] if tensor.quant == "channel" else 1
            scale = np.full(count, _ACTIVATION_SCALE, np.float32)
        quantization = None if tensor.quant == "none" else Quantization(scale, middle, axis)
        return self.builder.constant(values.astype(NUMPY_DTYPE[tensor.dtype]), quantization=quantization)
