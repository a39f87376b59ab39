"""Real activations: what an operation reads inside its network, for kernels whose speed depends on their data.

Most kernels cost the same whatever they compute on, so op models are fed with seeded noise. Some branch on each
element (the reference kernels of quantised ReLUs: 114 us on sorted, 285 us on random data for one tensor) or do an
amount of work that the values decide (non-maximum suppression). :func:`why_real_data` tells which;
:func:`real_instances` runs the network and keeps what those operations read, in as many different sets as it takes for
the processor not to learn them; :func:`save` writes the ``.npz`` that the measuring worker loads.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from op_models.errors import ModelFileError, UnsupportedModelError
from op_models.graph import Graph, Group
from op_models.spec import OpSpec, Step, TensorSpec

Array = NDArray[Any]
_NUMPY = {
    "f32": np.float32,
    "f16": np.float16,
    "f64": np.float64,
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
    "u16": np.uint16,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
    "u64": np.uint64,
    "bool": np.bool_,
}
# Distinct elements whose branches a current core does not learn (AMD EPYC: 150,000 come within 6 % of the network).
_LEARNT_ELEMENTS = 150_000
_MOST_SETS = 64
_QUANTISED = frozenset({"i8", "u8", "i16"})
_BRANCHES = "its kernel for quantised data branches on every element"
_WORK = "the values decide how much it does"
_ADDRESSES = "the values decide which memory it reads or writes"
# Measured on LiteRT 2.3 by running each operator on constant, sorted and random data; a factor of 1.5 and more counts.
_QUANTISED_BRANCHES = frozenset({"RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "PRELU", "ARG_MAX", "ARG_MIN"})
_QUANTISED_BRANCHES_UNDELEGATED = frozenset({"LEAKY_RELU"})
_FLOAT_UNDELEGATED = frozenset({"ELU", "GELU", "SQRT", "RSQRT"})
_ALWAYS: dict[str, str] = {
    **dict.fromkeys(("WHERE", "UNIQUE", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5", "TOPK_V2"), _WORK),
    **dict.fromkeys(("GATHER", "GATHER_ND", "EMBEDDING_LOOKUP", "SCATTER_ND", "SPARSE_TO_DENSE"), _ADDRESSES),
    "CUSTOM:TFLite_Detection_PostProcess": _WORK,
}


def why_real_data(spec: OpSpec, delegate: str = "xnnpack") -> str | None:
    """Why an operation has to be measured on the data of its network, or None where any data will do.

    ``delegate`` is ``xnnpack``, or ``none`` for LiteRT's own kernels, of which more branch.
    """
    for step in spec.steps:
        reason = _reason(step, delegate)
        if reason is not None:
            return f"{step.op}: {reason}"
    return None


def branching(spec: OpSpec) -> bool:
    """Whether an operation is one quantised operator whose kernel branches on the sign of every element."""
    return len(spec.steps) == 1 and spec.steps[0].op in _QUANTISED_BRANCHES and spec.outputs[0].dtype in _QUANTISED


def needs_real_data(spec: OpSpec, delegate: str = "xnnpack") -> bool:
    """Whether an operation has to be measured on the data of its network; :func:`why_real_data` tells the reason."""
    return why_real_data(spec, delegate) is not None


def _reason(step: Step, delegate: str) -> str | None:
    if step.op in _ALWAYS:
        return _ALWAYS[step.op]
    undelegated = delegate == "none"
    dtype = next((tensor.dtype for tensor in (*step.inputs, *step.outputs) if isinstance(tensor, TensorSpec)), "f32")
    if dtype in _QUANTISED:
        if step.op in _QUANTISED_BRANCHES or (undelegated and step.op in _QUANTISED_BRANCHES_UNDELEGATED):
            return _BRANCHES
    elif undelegated and step.op in _FLOAT_UNDELEGATED:
        return "its kernel calls a function of the C library that has slow and fast cases"
    return None


# --- inputs of a network ---------------------------------------------------------------------------------------


def network_inputs(graph: Graph, seed: int) -> tuple[Array, ...]:
    """Seeded data for the inputs of a network, in order: what the measuring worker feeds for the same seed.

    Floats are standard normal, 8-bit integers lie around the middle of their range with a standard deviation of 30,
    other integers (indices, sizes, token numbers) are 1, which is valid nearly everywhere.
    """
    rng = np.random.default_rng(seed)
    return tuple(_noise(graph.tensors[index].shape, graph.tensors[index].dtype, rng, graph) for index in graph.inputs)


def _noise(shape: tuple[int, ...], dtype: str, rng: np.random.Generator, graph: Graph) -> Array:
    if dtype not in _NUMPY:
        raise UnsupportedModelError(graph.name, f"no data can be made for an input of type {dtype}")
    kind = np.dtype(_NUMPY[dtype])
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    if dtype == "i8":
        return np.clip(np.rint(rng.normal(0, 30, shape)), -128, 127).astype(np.int8)
    if dtype == "u8":
        return np.clip(np.rint(rng.normal(128, 30, shape)), 0, 255).astype(np.uint8)
    if dtype == "bool":
        return np.asarray(rng.integers(0, 2, shape), dtype=np.bool_)
    return np.ones(shape, kind)


# --- activations inside a network ------------------------------------------------------------------------------


def activations(graph: Graph, group: Group) -> tuple[int, ...]:
    """Tensors that a group reads from outside, in the order of its op model's inputs."""
    members = [graph.operators[index] for index in group.operators]
    inside = {tensor for operator in members for tensor in operator.outputs}
    read = (tensor for operator in members for tensor in operator.inputs)
    constant = graph.constant_source
    return tuple(dict.fromkeys(t for t in read if t >= 0 and t not in inside and t not in constant))


class Recorder:
    """One network loaded on LiteRT's own kernels with all its tensors kept, to be run on several inputs.

    Raises :class:`UnsupportedModelError` where the network does not run without a delegate (some custom operators).
    """

    def __init__(self, graph: Graph, *, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.graph = graph
        with _runtime_errors(graph):
            self._interpreter: Any = Interpreter(
                model_content=graph.data,
                num_threads=threads,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
                experimental_preserve_all_tensors=True,
            )
            self._interpreter.allocate_tensors()

    def run(self, inputs: Sequence[Array], tensors: Iterable[int]) -> dict[int, Array]:
        """Values of the wanted tensors (copies) after a run on ``inputs``, which are in the network's order."""
        with _runtime_errors(self.graph):
            for index, array in zip(self.graph.inputs, inputs, strict=True):
                self._interpreter.set_tensor(index, np.ascontiguousarray(array))
            self._interpreter.invoke()
            return {index: np.array(self._interpreter.get_tensor(index)) for index in sorted(set(tensors))}


@contextmanager
def _runtime_errors(graph: Graph) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()
        reason = said[0] if said else type(error).__name__
        raise UnsupportedModelError(graph.name, f"it does not run on LiteRT's own kernels: {reason}") from error


def record(
    graph: Graph, tensors: Iterable[int], *, seed: int = 0, inputs: Sequence[Array] | None = None, threads: int = 1
) -> dict[int, Array]:
    """Values of tensors after one run of a network on LiteRT's own kernels.

    ``inputs`` defaults to :func:`network_inputs` of ``seed``. The interpreter keeps every tensor while it runs; only
    the wanted ones are copied out, and the rest is freed before this returns. Raises as :class:`Recorder`.
    """
    data = network_inputs(graph, seed) if inputs is None else inputs
    return Recorder(graph, threads=threads).run(data, tensors)


def group_inputs(
    graph: Graph, groups: Sequence[Group], *, seed: int = 0, inputs: Sequence[Array] | None = None, threads: int = 1
) -> tuple[tuple[Array, ...], ...]:
    """What each group reads inside the network, one run for all of them.

    The result has an entry for each group, in order: its activations as :func:`activations` orders them. Groups that
    read the same tensor share the array. Raises as :func:`record`.
    """
    read = [activations(graph, group) for group in groups]
    values = record(graph, {t for tensors in read for t in tensors}, seed=seed, inputs=inputs, threads=threads)
    return tuple(tuple(values[t] for t in tensors) for tensors in read)


def distinct_sets(spec: OpSpec) -> int:
    """How many different sets of inputs an op model of a branching operation has to rotate through, 1..64.

    A processor learns the branches of data that it has met: the int8 ``RELU`` of 19,008 elements takes 60 us on one set
    of inputs run again and again, 133 us on 8 sets, 137 us on 32, and 145 us in its network.
    """
    elements = max((tensor.elements for tensor in spec.activations), default=1)
    return max(1, min(_MOST_SETS, -(-_LEARNT_ELEMENTS // max(1, elements))))


def real_instances(
    graph: Graph, groups: Sequence[Group], *, seed: int = 0, most_runs: int = 64, threads: int = 1
) -> dict[str, tuple[tuple[Array, ...], ...]]:
    """Real inputs for each distinct operation among ``groups``: as many sets as :func:`distinct_sets` asks for.

    Every place where an operation stands gives one set a run; the network is run on fresh inputs (seeds counting up from
    ``seed``, at most ``most_runs``) until all operations have enough. Keys are those of the groups; no more than the
    sets that are returned is held. Raises as :class:`Recorder`.
    """
    places: dict[str, list[tuple[int, ...]]] = {}
    wanted: dict[str, int] = {}
    for group in groups:
        places.setdefault(group.spec.key, []).append(activations(graph, group))
        wanted[group.spec.key] = distinct_sets(group.spec)
    found: dict[str, list[tuple[Array, ...]]] = {key: [] for key in places}
    recorder = Recorder(graph, threads=threads) if places else None
    for run in range(most_runs):
        open_keys = [key for key in places if len(found[key]) < wanted[key]]
        if not open_keys or recorder is None:
            break
        needed = {key: places[key][: wanted[key] - len(found[key])] for key in open_keys}
        tensors = {tensor for chosen in needed.values() for place in chosen for tensor in place}
        values = recorder.run(network_inputs(graph, seed + run), tensors)
        for key, chosen in needed.items():
            found[key].extend(tuple(values[tensor] for tensor in place) for place in chosen)
    return {key: tuple(sets) for key, sets in found.items()}


# --- data for kernels that branch on every element --------------------------------------------------------------

FRESH_ELEMENTS = 3 << 18
"""Different elements that an op model of a branching kernel works on: more than a branch predictor learns by heart.

Measured on an EPYC: the branches of 30,000 random elements that come again at every invocation are all foreseen, those
of 300,000 are not. A network meets new data every time, and even on the same data it has more branches than that."""


SIGNS = ("one", "even")
"""The two kinds of data between which the cost of a branching operation lies: all above zero, and evenly about it."""


def variant(key: str, signs: str) -> str:
    """The key under which a branching operation on one of :data:`SIGNS` is measured, beside its own."""
    return f"{key};signs={signs}"


def resampled(arrays: Sequence[Array], count: int, seed: int) -> list[Array]:
    """``count`` new tensors like the given ones, which are taken in turn.

    Each channel (last axis) draws from its own values: it keeps its share of signs, and no two tensors repeat a sequence.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        array = arrays[number % len(arrays)]
        flat = array.reshape(-1, array.shape[-1] if array.ndim else 1)
        picked = rng.integers(0, len(flat), flat.shape)
        found.append(np.take_along_axis(flat, picked, axis=0).reshape(array.shape))
    return found


def signed(shape: Sequence[int], dtype: str, zero: int, signs: str, count: int, seed: int) -> list[Array]:
    """``count`` tensors of independent quantised noise about ``zero``: all above it (``one``) or on both sides (``even``)."""
    rng = np.random.default_rng(seed)
    kind = np.iinfo(_NUMPY[dtype])
    found = []
    for _ in range(count):
        noise = np.rint(rng.normal(0, 30, shape))
        found.append(np.clip(zero + (1 + np.abs(noise) if signs == "one" else noise), kind.min, kind.max).astype(kind.dtype))
    return found


# --- files -----------------------------------------------------------------------------------------------------


def pack(instances: Sequence[Sequence[Array]]) -> bytes:
    """The bytes of an ``.npz`` with the inputs of one operation, for the measuring worker.

    Each instance is one set of inputs (the same operation may stand at several places of a network); an op model with
    several input sets takes them in turn. Arrays are named ``x00000 x00001 ...`` in the order of the op model's inputs,
    instance by instance. Equal data gives equal bytes.
    """
    import zipfile

    held = io.BytesIO()
    # Not numpy.savez, which stamps the time of day into the archive.
    with zipfile.ZipFile(held, "w", zipfile.ZIP_STORED) as archive:
        flat = [array for instance in instances for array in instance]
        for number, array in enumerate(flat):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"x{number:05d}.npy"), content.getvalue())
    return held.getvalue()


def save(path: Path | str, instances: Sequence[Sequence[Array]]) -> None:
    """Writes :func:`pack` to a file, whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + f".{os.getpid()}.part")
    part.write_bytes(pack(instances))
    part.replace(path)


def load(path: Path | str | BinaryIO) -> Mapping[str, Array]:
    """The arrays of a file written by :func:`save`, by name.

    Raises :class:`ModelFileError` for anything else.
    """
    import zipfile
    import zlib

    content: dict[str, Array] = {}
    try:
        # Not numpy.load, which leaves the file open where it is no archive.
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                with archive.open(name) as member:
                    content[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        raise ModelFileError(str(path), f"it holds no activations ({error})") from error
    return content
