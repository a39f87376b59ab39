"""Runs one model through LiteRT's C API with its profiler on: the process behind :mod:`harness.runtimes.op_profile`.

Run as ``python -m harness.runtimes.litert_c MODEL``; the harness never calls the library in its own process, so that a
crash in C costs one profile and nothing else. The last line on standard output is JSON: either
``{"failed": "reason"}`` or ``{"invoke_us": [...], "operators": [[index, name, [us, ...]], ...]}`` with one
figure a run; what the library logs goes to standard error.

The C API has no stable binary interface. What is relied on, from LiteRT 2.3's headers ``litert/c/litert_profiler.h``,
``litert_profiler_event.h``, ``litert_compiled_model.h``, ``litert_opaque_options.h`` and ``litert_tensor_buffer.h``:
handles are pointers, sizes and indices are ``size_t``, options travel as TOML texts, and an event is 104 bytes.
Tensor types are passed back as the bytes that the library gave, so their layout does not matter. Any other version is
refused, and the events are checked against what the model holds before they are believed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPPORTED_VERSION = "2.3."
KERNELS = ("builtin", "reference")
_CPU = 1  # kLiteRtHwAcceleratorCpu
_FOR_WRITING = 1  # kLiteRtTensorBufferLockModeWrite
_OPERATOR_INVOKE = 2  # OPERATOR_INVOKE_EVENT: metadata 1 is the node, metadata 2 the subgraph
_TENSOR_TYPE_BYTES = 512  # sizeof(LiteRtRankedTensorType) is 72; the rest is room
# ProfiledEventData as C++ lays it out on 64-bit machines. The memory figures (48 bytes) are not read.
EVENT = np.dtype(
    {
        "names": ["tag", "type", "start_us", "elapsed_us", "node", "subgraph", "source"],
        "formats": ["<u8", "<u4", "<u8", "<u8", "<u8", "<u8", "<u4"],
        "offsets": [0, 8, 16, 24, 80, 88, 96],
        "itemsize": 104,
    }
)


class ProfilerError(Exception):
    """The library refused, or what it answered is not what its headers say."""


class ProfiledModel:
    """One model compiled with profiling on, with its input and output buffers."""

    def __init__(self, library: Path, model: Path, *, kernels: str, threads: int) -> None:
        self._library = ctypes.CDLL(str(library))
        self._libc = ctypes.CDLL(None)
        self._libc.strdup.restype, self._libc.strdup.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        self._environment = self._made("LiteRtCreateEnvironment", 0, None)
        self._model = self._made("LiteRtCreateModelFromFile", self._environment, os.fsencode(model))
        options = self._made("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, ctypes.c_int(_CPU))
        self._add_options(options, "runtime_options_string", "enable_profiling = true\n")
        # An identifier that the library does not know is ignored without a word; `check` below would notice.
        self._add_options(options, "xnnpack", f'kernel_mode = "{kernels}"\nnum_threads = {threads}\n')
        self._compiled = self._made("LiteRtCreateCompiledModel", self._environment, self._model, options)
        self._profiler = self._made("LiteRtCompiledModelGetProfiler", self._compiled)
        self._inputs, self._outputs = self._buffers("Input"), self._buffers("Output")

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status != 0:
            raise ProfilerError(f"{name} answers status {status}")

    def _made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(handle))
        if handle.value is None:
            raise ProfilerError(f"{name} gives nothing")
        return handle

    def _size(self, name: str, *arguments: Any) -> int:
        size = ctypes.c_size_t()
        self._call(name, *arguments, ctypes.byref(size))
        return size.value

    def _add_options(self, options: ctypes.c_void_p, identifier: str, toml: str) -> None:
        # The library frees the text with the function that it is given here.
        payload = ctypes.c_void_p(self._libc.strdup(toml.encode()))
        free = ctypes.cast(self._libc.free, ctypes.c_void_p)
        opaque = self._made("LiteRtCreateOpaqueOptions", identifier.encode(), payload, free)
        self._call("LiteRtAddOpaqueOptions", options, opaque)

    def _buffers(self, kind: str) -> Any:
        index = self._size("LiteRtGetMainModelSubgraphIndex", self._model)
        subgraph = self._made("LiteRtGetModelSubgraph", self._model, ctypes.c_size_t(index))
        count = self._size(f"LiteRtGetNumSubgraph{kind}s", subgraph)
        handles = (ctypes.c_void_p * count)()
        for i in range(count):
            tensor = self._made(f"LiteRtGetSubgraph{kind}", subgraph, ctypes.c_size_t(i))
            tensor_type = (ctypes.c_char * _TENSOR_TYPE_BYTES)()
            self._call("LiteRtGetRankedTensorType", tensor, tensor_type)
            place = (ctypes.c_size_t(0), ctypes.c_size_t(i))
            needed = self._made(f"LiteRtGetCompiledModel{kind}BufferRequirements", self._compiled, *place)
            handles[i] = self._made(
                "LiteRtCreateManagedTensorBufferFromRequirements", self._environment, tensor_type, needed
            ).value
        return handles

    def feed(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Writes the model's inputs, in order."""
        if len(arrays) != len(self._inputs):
            raise ProfilerError(f"the library sees {len(self._inputs)} inputs where the file has {len(arrays)}")
        for handle, array in zip(self._inputs, arrays, strict=True):
            buffer = ctypes.c_void_p(handle)
            size_bytes = self._size("LiteRtGetTensorBufferPackedSize", buffer)
            if size_bytes != array.nbytes:
                raise ProfilerError(f"the library wants {size_bytes} bytes for an input of {array.nbytes}")
            address = ctypes.c_void_p()
            self._call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), ctypes.c_int(_FOR_WRITING))
            ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, size_bytes)
            self._call("LiteRtUnlockTensorBuffer", buffer)

    def invoke(self) -> None:
        """Runs the model once."""
        self._call(
            "LiteRtRunCompiledModel",
            self._compiled,
            ctypes.c_size_t(0),
            ctypes.c_size_t(len(self._inputs)),
            self._inputs,
            ctypes.c_size_t(len(self._outputs)),
            self._outputs,
        )

    def profile(self) -> NDArray[Any]:
        """Runs the model once and gives the profiler's events, of type :data:`EVENT`.

        The profiler's memory is a ring, so it is emptied after every run.
        """
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        self.invoke()
        self._call("LiteRtStopProfiler", self._profiler)
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        if count.value < 1:
            raise ProfilerError("the profiler saw nothing")
        # Room for structures four times as large: a wrong layout shall be found by `check`, not by a crash.
        events = np.zeros(count.value * 4, EVENT)
        self._call("LiteRtGetProfilerEvents", self._profiler, count, ctypes.c_void_p(events.ctypes.data))
        return events[: count.value]

    def names(self, events: NDArray[Any]) -> list[str]:
        """Operator names of checked events; the profiler owns the texts until it is reset."""
        return [ctypes.string_at(int(tag)).decode("utf-8", "replace") for tag in events["tag"]]


def check(events: NDArray[Any], operators: int) -> NDArray[Any]:
    """The events of operators in the first subgraph, after a look at whether the bytes are events at all.

    Raises :class:`ProfilerError` where they cannot be: unknown types, times that run backwards, nodes out of range.
    """
    kinds = events["type"]
    invoked: NDArray[Any] = events[(kinds == _OPERATOR_INVOKE) & (events["subgraph"] == 0)]
    sound = (
        bool(np.all((kinds > 0) & (kinds <= 1 << 8) & (kinds & (kinds - 1) == 0)))
        and invoked.size > 0
        and bool(np.all(invoked["node"] < operators))
        and bool(np.all(np.diff(invoked["start_us"].astype(np.int64)) >= 0))
        and bool(np.all(invoked["elapsed_us"] < 1 << 40))
        and bool(np.all(invoked["tag"] > 0))
        and np.unique(invoked["node"]).size == invoked.size
    )
    if not sound:
        raise ProfilerError("the profiler's events do not look like operators of this model")
    return invoked


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads the model, runs it, and gives what the module's text says."""
    from op_models import feeds, graph

    network = graph.read(arguments.model)
    model = ProfiledModel(arguments.library, arguments.model, kernels=arguments.kernels, threads=arguments.threads)
    model.feed(feeds.network_inputs(network, arguments.seed))
    for _ in range(max(1, arguments.warmups)):
        model.invoke()
    names: list[tuple[int, str]] = []
    elapsed, invoke_us = [], []
    for _ in range(arguments.runs):
        events = model.profile()
        invoked = check(events, len(network.operators))
        seen = list(zip(map(int, invoked["node"]), model.names(invoked), strict=True))
        if names and seen != names:
            raise ProfilerError("two runs of one model did not execute the same operators")
        names = seen
        elapsed.append(invoked["elapsed_us"].astype(np.int64))
        last = invoked[-1]
        invoke_us.append(int(last["start_us"] + last["elapsed_us"] - invoked[0]["start_us"]))
    columns = np.stack(elapsed, axis=1).tolist()
    return {
        "invoke_us": invoke_us,
        "operators": [[index, name, figures] for (index, name), figures in zip(names, columns, strict=True)],
    }


def main() -> None:
    """Measures one model and answers with one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m harness.runtimes.litert_c", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--kernels", choices=KERNELS, default="builtin")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--warmups", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--core", type=int, default=None)
    arguments = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library logs to standard output as well
    if arguments.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {arguments.core})
    try:
        answer = measure(arguments)
    except (ProfilerError, AttributeError, OSError, ValueError) as error:  # AttributeError: a function is missing
        answer = {"failed": f"{error}"}
    except Exception as error:  # noqa: BLE001 - the parent must hear why, whatever it was
        answer = {"failed": f"{type(error).__name__}: {error}"}
    replies.write(json.dumps(answer) + "\n")
    replies.flush()
    sys.stderr.flush()
    os._exit(0)  # what the library holds is not taken down: its order of destruction is nobody's promise


if __name__ == "__main__":
    main()
