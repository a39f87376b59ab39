"""An operation as the converted graph has it, and its stable readable key.

An :class:`OpSpec` is one thing that the runtime executes: mostly a single TensorFlow Lite operator, sometimes a
short group that runtimes fuse (``PAD`` into the convolution behind it, a ``RELU`` into its only producer). The key is
the text form of the whole specification: equal keys cost the same on one device, and a key can be turned back into
an op model.

Grammar, by example::

    CONV_2D(f32[1x32x32x36],*f32[36x1x1x36],*f32[36])->f32[1x32x32x36];pad=same;stride=1x1|RELU(%0)->f32[1x32x32x36]

* ``f32[...]`` an activation, ``*f32[...]`` a constant, ``~f16[...]`` a constant that the runtime unpacks at load time;
* ``i8.t[...]`` quantised with one scale, ``i8.c[...]`` with one scale a channel;
* ``*i32[2]={1,2}`` a small constant whose values decide the work (axes, paddings, sizes);
* ``%0`` the output of the first step of the group, ``@0`` the group's first activation input once more, ``_`` an absent
  optional input; ``|`` joins the steps of a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from op_models.errors import SpecError

DTYPE_SIZE_BYTES: dict[str, float] = {
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "f64": 8,
    "i8": 1,
    "u8": 1,
    "i16": 2,
    "u16": 2,
    "i32": 4,
    "u32": 4,
    "i64": 8,
    "u64": 8,
    "bool": 1,
    "i4": 0.5,
    "u4": 0.5,
    "i2": 0.25,
    "c64": 8,
    "c128": 16,
    "f8e4": 1,
    "f8e5": 1,
    "str": 1,
    "resource": 4,
    "variant": 4,
}

QUANTS = ("none", "tensor", "channel")
ROLES = ("act", "const", "folded")
_QUANT_MARK = {"none": "", "tensor": ".t", "channel": ".c"}
_MARK_QUANT = {"": "none", "t": "tensor", "c": "channel"}
_ROLE_MARK = {"act": "", "const": "*", "folded": "~"}
_MARK_ROLE = {"": "act", "*": "const", "~": "folded"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape, type and role of one tensor of an operation.

    ``role`` is ``act`` (computed at run time), ``const`` (stored in the file) or ``folded`` (computed from constants
    when the model is loaded; ``dtype`` is then that of the stored constant, such as float16 weights). ``values`` holds
    the content of a small integer constant whose values decide the work, else None.
    """

    shape: tuple[int, ...]
    dtype: str
    quant: str = "none"
    role: str = "act"
    values: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size_bytes(self) -> int:
        """Bytes as stored in the file."""
        return int(self.elements * DTYPE_SIZE_BYTES.get(self.dtype, 4))

    @property
    def text(self) -> str:
        """This tensor in the grammar of the module."""
        shape = "x".join(map(str, self.shape))
        values = "" if self.values is None else "={" + ",".join(map(str, self.values)) + "}"
        return f"{_ROLE_MARK[self.role]}{self.dtype}{_QUANT_MARK[self.quant]}[{shape}]{values}"


# An input of a step: a tensor of its own; n >= 0: the output of step n of the group; n < 0: the group's
# activation input number -n-1 once more; None: an optional input that is absent.
StepInput = TensorSpec | int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One TensorFlow Lite operator of a group: name, the options that matter, inputs and outputs."""

    op: str
    options: tuple[tuple[str, str], ...]
    inputs: tuple[StepInput, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def text(self) -> str:
        """This step in the grammar of the module."""
        inputs = ",".join(map(_input_text, self.inputs))
        outputs = ",".join(tensor.text for tensor in self.outputs)
        options = "".join(f";{name}={value}" for name, value in self.options)
        return f"{self.op}({inputs})->{outputs}{options}"

    def option(self, name: str, default: str = "") -> str:
        """Value of an option as text, or ``default``."""
        return dict(self.options).get(name, default)


@dataclass(frozen=True)
class OpSpec:
    """One thing that the runtime executes: a group of one or more operators. Hashable, ordered by key."""

    steps: tuple[Step, ...]

    @cached_property
    def key(self) -> str:
        """The stable readable name under which a measurement of this operation is stored."""
        return "|".join(step.text for step in self.steps)

    @staticmethod
    def from_key(key: str) -> OpSpec:
        """The operation that a key describes.

        Raises :class:`SpecError` where the text does not follow the grammar.
        """
        return _parse(key)

    @property
    def activations(self) -> tuple[TensorSpec, ...]:
        """Activation inputs that come from outside the group, in order."""
        return tuple(
            tensor for step in self.steps for tensor in step.inputs if isinstance(tensor, TensorSpec) and tensor.role == "act"
        )

    @property
    def constants(self) -> tuple[TensorSpec, ...]:
        """Constants of all steps (weights, biases, axes), stored or folded."""
        return tuple(
            tensor for step in self.steps for tensor in step.inputs if isinstance(tensor, TensorSpec) and tensor.role != "act"
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the last step."""
        return self.steps[-1].outputs

    @property
    def name(self) -> str:
        """The operators' names, such as ``PAD+CONV_2D``."""
        return "+".join(step.op for step in self.steps)


def _input_text(tensor: StepInput) -> str:
    if tensor is None:
        return "_"
    if isinstance(tensor, TensorSpec):
        return tensor.text
    return f"%{tensor}" if tensor >= 0 else f"@{-tensor - 1}"


_NAME = re.compile(r"[A-Z][A-Za-z0-9_]*(?::[^\s()|;,]+)?")
_TENSOR = re.compile(r"(?P<role>[*~]?)(?P<dtype>[a-z]+[0-9]*(?:e[0-9])?)(?:\.(?P<quant>[tc]))?\[(?P<shape>[0-9x]{0,200})\]")
_VALUES = re.compile(r"=\{(-?[0-9]{1,19}(?:,-?[0-9]{1,19})*)?\}")
_REFERENCE = re.compile(r"([%@])([0-9]{1,4})")
_OPTION = re.compile(r";([a-z0-9_]+)=([^;|()\s]*)")


class _Cursor:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def expect(self, literal: str) -> None:
        if not self.take(literal):
            raise SpecError(self.text, f"expected {literal!r} at character {self.at}")

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found


def _tensor(cursor: _Cursor) -> TensorSpec:
    found = cursor.match(_TENSOR)
    if not found or found["dtype"] not in DTYPE_SIZE_BYTES:
        raise SpecError(cursor.text, f"expected a tensor such as f32[1x8x8x3] at character {cursor.at}")
    parts = found["shape"].split("x") if found["shape"] else []
    if any(not part or len(part) > 12 for part in parts):
        raise SpecError(cursor.text, f"a shape with an empty or absurd dimension before character {cursor.at}")
    values = cursor.match(_VALUES)
    return TensorSpec(
        shape=tuple(map(int, parts)),
        dtype=found["dtype"],
        quant=_MARK_QUANT[found["quant"] or ""],
        role=_MARK_ROLE[found["role"]],
        values=None if values is None else tuple(map(int, values[1].split(","))) if values[1] else (),
    )


def _is_activation(tensor: StepInput) -> bool:
    return isinstance(tensor, TensorSpec) and tensor.role == "act"


def _inputs(cursor: _Cursor, step: int, activations: int) -> tuple[StepInput, ...]:
    cursor.expect("(")
    inputs: list[StepInput] = []
    while not cursor.take(")"):
        if inputs:
            cursor.expect(",")
        if cursor.take("_"):
            inputs.append(None)
        elif reference := cursor.match(_REFERENCE):
            number = int(reference[2])
            if reference[1] == "@" and number >= activations + sum(map(_is_activation, inputs)):
                raise SpecError(cursor.text, f"step {step} repeats an input that does not stand before it")
            if reference[1] == "%" and number >= step:
                raise SpecError(cursor.text, f"step {step} reads the output of step {number}")
            inputs.append(number if reference[1] == "%" else -number - 1)
        else:
            inputs.append(_tensor(cursor))
    return tuple(inputs)


@lru_cache(maxsize=65536)
def _parse(key: str) -> OpSpec:
    cursor = _Cursor(key)
    steps: list[Step] = []
    activations = 0
    while True:
        name = cursor.match(_NAME)
        if not name:
            raise SpecError(key, f"expected an operator's name at character {cursor.at}")
        inputs = _inputs(cursor, len(steps), activations)
        activations += sum(map(_is_activation, inputs))
        cursor.expect("->")
        outputs = [_tensor(cursor)]
        while cursor.take(","):
            outputs.append(_tensor(cursor))
        options: list[tuple[str, str]] = []
        while option := cursor.match(_OPTION):
            options.append((option[1], option[2]))
        steps.append(Step(op=name[0], options=tuple(options), inputs=inputs, outputs=tuple(outputs)))
        if cursor.at == len(key):
            break
        cursor.expect("|")
    spec = OpSpec(tuple(steps))
    if spec.key != key:
        raise SpecError(key, "not in canonical form (leading zeros or unsorted parts)")
    return spec
