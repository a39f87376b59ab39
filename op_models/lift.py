"""Lifts an operation out of its network into an op model: N copies with its own weights, quantisation and options.

Every operator that TensorFlow Lite has can be measured this way, since nothing is rebuilt: tensors, options and weights
are taken over as they stand in the file. Copies share one weight buffer in the file; runtimes that pack weights do so
for each copy, so N copies behave like N layers. Constant sub-graphs (float16 ``DEQUANTIZE``, ``DENSIFY``) are taken
over with the operation.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from op_models.arrange import Arrangement
from op_models.errors import ModelFileError, NotLiftableError
from op_models.graph import Graph, Group

_NOT_ALONE = frozenset(
    {
        "WHILE",
        "IF",
        "CALL",
        "CALL_ONCE",
        "VAR_HANDLE",
        "READ_VARIABLE",
        "ASSIGN_VARIABLE",
        "HASHTABLE",
        "HASHTABLE_FIND",
        "HASHTABLE_IMPORT",
        "HASHTABLE_SIZE",
        "STABLEHLO_COMPOSITE",
    }
)
_SLICEABLE = frozenset({"f32", "i8", "u8", "i32", "i64", "i16", "bool"})


class Lifter:
    """Op models of the groups of one network. Parsing the network's tables once serves all of them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        try:
            self._model = schema.ModelT.InitFromPackedBuf(graph.data)
        except Exception as error:  # whatever broken tables make the generated code raise
            raise ModelFileError(graph.name, f"its tables cannot be unpacked ({type(error).__name__}: {error})") from error
        self._subgraph = self._model.subgraphs[0]
        self._producer = {output: op for op in graph.operators for output in op.outputs}

    def op_model(self, group: Group, arrangement: Arrangement) -> bytes:
        """The op model of one group, as the bytes of a ``.tflite`` file.

        Raises :class:`NotLiftableError` for an operator that needs more of the network than its inputs.
        """
        refused = [self.graph.operators[i].name for i in group.operators if self.graph.operators[i].name in _NOT_ALONE]
        if refused:
            raise NotLiftableError(self.graph.name, "an operation that runs other graphs or holds state", refused)
        return _OpModelWriter(self, group, arrangement).build()


class _OpModelWriter:
    def __init__(self, lifter: Lifter, group: Group, arrangement: Arrangement) -> None:
        self.lifter, self.group, self.arrangement = lifter, group, arrangement
        self.graph, self.source = lifter.graph, lifter._subgraph
        self.codes: list[Any] = []
        self.code_of: dict[int | str, int] = {}
        self.buffers: list[Any] = [schema.BufferT()]
        self.buffer_of: dict[int, int] = {}
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.constants: dict[int, int] = {}
        self.small: dict[tuple[int, ...], int] = {}
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def build(self) -> bytes:
        members = [self.graph.operators[i] for i in self.group.operators]
        inside = {tensor for op in members for tensor in op.outputs}
        constant = self.graph.constant_source
        outside = list(dict.fromkeys(t for op in members for t in op.inputs if t >= 0 and t not in inside and t not in constant))
        if not outside:
            raise NotLiftableError(self.graph.name, "an operation without an input", [op.name for op in members])
        sets = [[self._tensor(t, is_input=True) for t in outside] for _ in range(self.arrangement.input_sets)]
        self.inputs = [tensor for chosen in sets for tensor in chosen]
        pending: list[int] = []
        chosen = sets[0]
        for copy in range(self.arrangement.copies):
            if self.arrangement.own_weights:
                self.constants.clear()
                self.buffer_of.clear()
            if self.arrangement.layout == "fan-out":
                chosen = sets[copy % len(sets)]
            made = self._copy(members, dict(zip(outside, chosen, strict=True)))
            finals = [made[t] for t in members[-1].outputs]
            if self.arrangement.layout == "chain":
                chosen = finals[:1]
                self.outputs = finals
            else:
                pending.extend(finals)
                self._tap_due(pending, copy)
        if self.arrangement.layout == "fan-out":
            if self.arrangement.tap_after is None:
                self.outputs.extend(pending)
            else:
                for tensor in pending:
                    self._tap(tensor)
        return self._pack()

    def _tap_due(self, pending: list[int], copy: int) -> None:
        delay = self.arrangement.tap_after
        if delay is None:
            return
        per_copy = len(self.graph.operators[self.group.operators[-1]].outputs)
        while len(pending) > delay * per_copy:
            self._tap(pending.pop(0))

    def _tap(self, tensor: int) -> None:
        """Reads one element of an output, so that its memory can be used again."""
        shape = self.tensors[tensor].shape
        if self._dtype_of(tensor) not in _SLICEABLE or len(shape) == 0:
            self.outputs.append(tensor)
            return
        begin, size = self._small_constant((0,) * len(shape)), self._small_constant((1,) * len(shape))
        out = schema.TensorT()
        original = self.tensors[tensor]
        out.shape, out.type, out.name = np.ones(len(shape), np.int32), original.type, f"tap{tensor}"
        out.quantization, out.buffer = original.quantization, 0
        self.tensors.append(out)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._builtin("SLICE")
        operator.inputs = np.array([tensor, begin, size], np.int32)
        operator.outputs = np.array([len(self.tensors) - 1], np.int32)
        operator.builtinOptionsType = schema.BuiltinOptions.SliceOptions
        operator.builtinOptions = schema.SliceOptionsT()
        self.operators.append(operator)
        self.outputs.append(len(self.tensors) - 1)

    def _dtype_of(self, tensor: int) -> str:
        from op_models.graph import DTYPE_OF_CODE

        return DTYPE_OF_CODE[self.tensors[tensor].type]

    def _small_constant(self, values: tuple[int, ...]) -> int:
        if values not in self.small:
            content = np.array(values, np.int32)
            buffer = schema.BufferT()
            buffer.data = content.view(np.uint8)
            self.buffers.append(buffer)
            tensor = schema.TensorT()
            tensor.shape, tensor.type = np.array([len(values)], np.int32), schema.TensorType.INT32
            tensor.name, tensor.buffer = f"const{len(self.tensors)}", len(self.buffers) - 1
            self.tensors.append(tensor)
            self.small[values] = len(self.tensors) - 1
        return self.small[values]

    def _builtin(self, name: str) -> int:
        if name not in self.code_of:
            code = schema.OperatorCodeT()
            number = getattr(schema.BuiltinOperator, name)
            code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
            self.codes.append(code)
            self.code_of[name] = len(self.codes) - 1
        return self.code_of[name]

    def _copy(self, members: list[Any], made: dict[int, int]) -> dict[int, int]:
        """Appends one copy of the group; ``made`` maps tensors of the network to tensors here, and is completed."""
        for member in members:
            operator = self.source.operators[member.index]
            inputs = []
            for position, tensor in enumerate(member.inputs):
                if tensor < 0:
                    inputs.append(-1)
                elif tensor in made:
                    inputs.append(made[tensor])
                else:
                    inputs.append(self._constant(tensor))
                if member.name == "RESHAPE" and position == 1 and tensor not in self.graph.constant_source:
                    # A shape that is computed at run time from a fixed shape: write the value it always has.
                    inputs[-1] = self._small_constant(self.graph.tensors[member.outputs[0]].shape)
            outputs = []
            for tensor in member.outputs:
                made[tensor] = self._tensor(tensor)
                outputs.append(made[tensor])
            self._operator(operator, inputs, outputs)
        return made

    def _operator(self, original: Any, inputs: list[int], outputs: list[int]) -> None:
        operator = schema.OperatorT()
        operator.__dict__.update(original.__dict__)
        operator.opcodeIndex = self._code(original.opcodeIndex)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        operator.intermediates, operator.debugMetadataIndex = None, -1
        self.operators.append(operator)

    def _code(self, original: int) -> int:
        if original not in self.code_of:
            self.codes.append(self.lifter._model.operatorCodes[original])
            self.code_of[original] = len(self.codes) - 1
        return self.code_of[original]

    def _constant(self, tensor: int) -> int:
        """A constant of the network here, with the operators that compute it where it is folded."""
        if tensor in self.constants:
            return self.constants[tensor]
        producer = self.lifter._producer.get(tensor)
        if producer is None:
            self.constants[tensor] = self._tensor(tensor, keep_buffer=True)
            return self.constants[tensor]
        inputs = [self._constant(t) if t >= 0 else -1 for t in producer.inputs]
        outputs = []
        for output in producer.outputs:
            self.constants[output] = self._tensor(output)
            outputs.append(self.constants[output])
        self._operator(self.source.operators[producer.index], inputs, outputs)
        return self.constants[tensor]

    def _tensor(self, original: int, *, keep_buffer: bool = False, is_input: bool = False) -> int:
        source = self.source.tensors[original]
        tensor = schema.TensorT()
        tensor.__dict__.update(source.__dict__)
        tensor.shape = np.asarray(self.graph.tensors[original].shape, np.int32)
        tensor.shapeSignature, tensor.isVariable, tensor.hasRank = None, False, source.hasRank
        tensor.name = f"{'x' if is_input else 't'}{len(self.tensors)}"
        tensor.buffer = self._buffer(source.buffer) if keep_buffer else 0
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _buffer(self, original: int) -> int:
        if original not in self.buffer_of:
            self.buffers.append(self.lifter._model.buffers[original])
            self.buffer_of[original] = len(self.buffers) - 1
        return self.buffer_of[original]

    def _pack(self) -> bytes:
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators, subgraph.name = self.tensors, self.operators, "op_model"
        subgraph.inputs, subgraph.outputs = np.array(self.inputs, np.int32), np.array(self.outputs, np.int32)
        model = schema.ModelT()
        model.version, model.operatorCodes, model.subgraphs = 3, self.codes, [subgraph]
        model.buffers, model.description = self.buffers, "op model"
        size_bytes = 4096 + sum(0 if b.data is None else len(b.data) for b in self.buffers)
        builder = flatbuffers.Builder(size_bytes + 400 * (len(self.tensors) + len(self.operators)))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
