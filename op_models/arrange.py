"""Decides how copies of an operation are laid out in an op model, and says why.

An op model holds N copies of one operation; the cost of one is the slope over N. What a copy costs also depends on where
its data lies when it starts, so an operation is measured in up to three *contexts*, each the situation in a network of
some size:

* ``hot``: all that the copies touch fits the core's private cache, as in a network of some hundred kilobytes;
* ``cold``: weights, inputs and outputs of a copy were last touched a few private caches ago, as in a network of some
  megabytes;
* ``far``: weights were last touched more than a shared cache ago and come from memory, as in a network of tens of
  megabytes.

Which mixture a network sees follows from its footprint (:mod:`op_models.locality`). A *cold* or *far* op model rotates
through a given number of bytes; another N would rotate through another number and so measure another context.
Its line over N therefore starts at the empty model (N = 0), not at a smaller op model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from op_models.spec import OpSpec, Step, TensorSpec

Context = Literal["hot", "cold", "far"]
CONTEXTS: tuple[Context, ...] = ("hot", "cold", "far")
COLD_ROTATION = 5.5
"""Private caches that a ``cold`` op model rotates through."""
FAR_ROTATION = 30
"""Private caches that the weights of a ``far`` op model rotate through, where the shared cache's size is not known."""
_UNPACKED = {"f16": 2.0}  # float16 weights are held as float32 at run time
MAX_COPIES = 160
MOST_STATE_BYTES = 256 << 20
"""Bytes of weights and tables that one op model may hold."""
_SMALL_OUTPUT_BYTES = 8192
_HOT_FRAC = 0.45  # two copies and what they work on must fit
_POINTER_BYTES = 8


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """Private and shared cache of the core that measures, in bytes.

    ``packed`` says whether the runtime keeps weights and pointer tables of its own for every operation (XNNPACK does).
    """

    private_bytes: int = 1 << 20
    shared_bytes: int = 32 << 20
    packed: bool = True


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Layout of one op model.

    ``copies`` copies read ``input_sets`` different sets of inputs in turn. ``layout`` is ``fan-out`` (copies side by
    side on those inputs) or ``chain`` (each reads the one before). With ``tap_after`` not None, the output of a copy is
    read by a one-element slice that many copies later, so that its memory is free again; otherwise outputs stay. Runtimes
    that pack weights (XNNPACK) have them once a copy by themselves; for those that do not, ``own_weights`` writes them so.
    """

    context: Context
    copies: int
    layout: Literal["fan-out", "chain"] = "fan-out"
    input_sets: int = 1
    tap_after: int | None = None
    own_weights: bool = False

    @property
    def name(self) -> str:
        """Short text that tells arrangements of one operation apart."""
        tap = "" if self.tap_after is None else f"-tap{self.tap_after}"
        own = "-own" if self.own_weights else ""
        return f"{self.context}-{self.layout}-n{self.copies}-in{self.input_sets}{tap}{own}"


@dataclass(frozen=True, slots=True)
class Arrangements:
    """The op models of one operation in one context, N ascending, and the reason for their shape."""

    models: tuple[Arrangement, ...]
    why: str


def weight_bytes(spec: OpSpec) -> int:
    """Bytes of constants that one copy reads while it runs, as the runtime holds them."""
    return sum(int(tensor.size_bytes * _UNPACKED.get(tensor.dtype, 1.0)) for tensor in spec.constants)


def activation_bytes(tensors: tuple[TensorSpec, ...]) -> int:
    """Bytes of the given activations together."""
    return sum(tensor.size_bytes for tensor in tensors)


def state_bytes(spec: OpSpec) -> int:
    """Bytes that belong to one copy alone and that it reads while it runs: constants and tables of input pointers.

    Kernels for windows of more than one pixel walk a table of pointers into their input (XNNPACK's indirection buffer):
    one pointer a window position and output pixel for convolutions, one a column of the window for depthwise and pooling.
    """
    total = weight_bytes(spec)
    for step in spec.steps:
        output = step.outputs[0].shape
        height, width = _window(step)
        if height * width <= 1 or len(output) != 4:
            continue
        if step.op == "CONV_2D":
            total += output[1] * output[2] * height * width * _POINTER_BYTES
        else:
            total += output[1] * (height * width + (output[2] - 1) * height) * _POINTER_BYTES
    return total


def _window(step: Step) -> tuple[int, int]:
    if step.op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        filters = step.inputs[1] if len(step.inputs) > 1 else None
        shape = filters.shape if isinstance(filters, TensorSpec) else ()
        return (shape[1], shape[2]) if len(shape) == 4 else (1, 1)
    if step.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        height, _, width = step.option("window", "1x1").partition("x")
        return (int(height), int(width)) if height.isdecimal() and width.isdecimal() else (1, 1)
    return 1, 1


def copy_bytes(spec: OpSpec) -> int:
    """Bytes that one copy touches: what belongs to it, inputs and outputs."""
    return state_bytes(spec) + activation_bytes(spec.activations) + activation_bytes(spec.outputs)


def contexts(spec: OpSpec, caches: CacheSizes, *, footprint_bytes: int | None = None) -> tuple[Context, ...]:
    """Contexts in which an operation is measured on a device.

    A copy that alone fills the private cache is never hot; one that touches next to nothing is the same everywhere. Only
    weights of some size, in a network (of ``footprint_bytes``, None: any) that exceeds the shared cache's reach, come from
    memory.
    """
    touched = copy_bytes(spec)
    if touched < 0.004 * caches.private_bytes:
        return ("hot",)
    found: list[Context] = ["cold"] if touched > _HOT_FRAC * caches.private_bytes else ["hot", "cold"]
    wide_enough = weight_bytes(spec) * MAX_COPIES > 0.4 * far_rotation_bytes(caches)
    if wide_enough and (footprint_bytes is None or footprint_bytes > cold_rotation_bytes(caches)):
        found.append("far")
    return tuple(found)


def cold_rotation_bytes(caches: CacheSizes) -> int:
    """Bytes that ``cold`` op models rotate through."""
    return int(min(COLD_ROTATION * caches.private_bytes, max(caches.shared_bytes / 2, 2 * caches.private_bytes)))


def far_rotation_bytes(caches: CacheSizes) -> int:
    """Bytes that the weights of ``far`` op models rotate through."""
    return max(caches.shared_bytes, 2 * cold_rotation_bytes(caches))


def arrange(spec: OpSpec, context: Context, caches: CacheSizes, *, expected_us: float = 20.0) -> Arrangements:
    """Op models for one operation in one context.

    ``expected_us`` is a rough guess of one copy's time; it only bounds how long one invocation takes.
    """
    if context == "hot":
        return _hot(spec, caches, expected_us)
    return _cold(spec, caches) if context == "cold" else _far(spec, caches, expected_us)


def _hot(spec: OpSpec, caches: CacheSizes, expected_us: float) -> Arrangements:
    state = state_bytes(spec)
    inputs, outputs = activation_bytes(spec.activations), activation_bytes(spec.outputs)
    room = max(0.0, 0.5 * caches.private_bytes - inputs - 2 * outputs)
    by_state = int(room / state) if state else MAX_COPIES
    wanted = max(4, int(600 / max(expected_us, 0.5)))
    many = max(2, min(by_state, wanted, 24))
    few = max(1, many // 6)
    tapped = outputs > _SMALL_OUTPUT_BYTES and many * outputs > 0.25 * caches.private_bytes
    why = f"{few} and {many} copies on one input: {many * state} bytes of weights and tables stay in the private cache"
    if tapped:
        why += ", and each output is freed by a one-element slice"
    return Arrangements(tuple(Arrangement("hot", n, tap_after=1 if tapped else None) for n in (few, many)), why)


def _cold(spec: OpSpec, caches: CacheSizes) -> Arrangements:
    touched = max(1, copy_bytes(spec))
    copies = max(2, min(-(-cold_rotation_bytes(caches) // touched), MAX_COPIES))
    why = (
        f"{copies} copies against none, each with weights, inputs and outputs of its own: "
        f"{copies * touched} bytes pass before any of them is touched again"
    )
    return Arrangements((Arrangement("cold", copies, input_sets=copies),), why)


def _far(spec: OpSpec, caches: CacheSizes, expected_us: float) -> Arrangements:
    weights = max(1, weight_bytes(spec))
    inputs, outputs = activation_bytes(spec.activations), activation_bytes(spec.outputs)
    by_time = max(3, int(40_000 / max(expected_us, 1.0)))
    by_memory = MOST_STATE_BYTES // max(1, state_bytes(spec))
    copies = max(2, min(-(-far_rotation_bytes(caches) // weights), MAX_COPIES, by_time, by_memory))
    near = cold_rotation_bytes(caches) - caches.private_bytes
    sets = max(1, min(copies, -(-near // max(1, inputs))))
    delay = -(-near // max(1, outputs))
    why = (
        f"{copies} copies against none: {copies * weights} bytes of weights pass before any is touched again, "
        f"inputs and outputs rotate through {near} bytes each"
    )
    tap = None if delay >= copies else delay
    return Arrangements((Arrangement("far", copies, input_sets=sets, tap_after=tap),), why)


def fresh(spec: OpSpec, elements: int) -> Arrangements:
    """One op model whose copies read inputs of their own, ``elements`` elements together.

    For kernels whose time is that of their branches. Where data lies hardly counts there, so this is all of *cold*.
    """
    size = max(1, spec.activations[0].elements)
    copies = max(2, min(-(-elements // size), MAX_COPIES))
    why = f"{copies} copies against none, each on data of its own: {copies * size} branches are more than can be learnt"
    return Arrangements((Arrangement("cold", copies, input_sets=copies),), why)


def chain(spec: OpSpec, copies: int) -> Arrangement:
    """One chain of an operation whose output feeds the next copy, as the N-repeated models of ELP-NAS are built.

    Raises ValueError where the output does not fit the input.
    """
    first, last = spec.activations[0], spec.outputs[0]
    if len(spec.activations) != 1 or first.shape != last.shape or first.dtype != last.dtype:
        raise ValueError(f"the output {last.text} of {spec.name} cannot feed its input {first.text}")
    return Arrangement("hot", copies, layout="chain")
