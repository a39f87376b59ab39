"""The process that runs models on this computer: pinned to a core, driven over a pipe, one round at a time.

Run as ``python -m harness.devices.worker``. It imports numpy and LiteRT and nothing of the rest of the harness, so that its
memory holds the models and little else. Conversation, one JSON line a request on standard input:

* ``{"op": "load", "core": 1, "models": [{"path": ..., "delegate": "xnnpack", "threads": 1, "seed": 7, "feed": null}, ...]}``
  answers a line ``{"loading": i}`` before each model, then ``{"loaded": n, "failed": {"3": "reason"}, "expected_us": [...]}``;
* ``{"op": "round", "order": [2, 0, 1], "invokes": [5, 5, 9]}`` answers ``{"bytes": n, "failed": {}}`` and then n bytes: a
  ``.npy`` array of :data:`harness.raw.RAW_DTYPE`, one row an invocation, in the order of execution; the first invocation
  of each visit (``invoke`` 0) is the warm-up;
* ``{"op": "quit"}``.

A model that fails to load or to run is named in ``failed`` and left out; the others go on.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from harness.raw import RAW_DTYPE

_PR_SET_PDEATHSIG = 1


class LoadedModel:
    """One model in memory, fed with seeded data, ready to be invoked."""

    def __init__(self, path: str, *, delegate: str, threads: int, seed: int, feed: str | None) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kinds = {
            "xnnpack": OpResolverType.BUILTIN,
            "none": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            "reference": OpResolverType.BUILTIN_REF,
        }
        self._interpreter: Any = Interpreter(model_path=path, num_threads=threads, experimental_op_resolver_type=kinds[delegate])
        self._interpreter.allocate_tensors()
        content = None if feed is None else np.load(feed, allow_pickle=False)
        rng = np.random.default_rng(seed)
        for position, detail in enumerate(self._interpreter.get_input_details()):
            self._interpreter.set_tensor(detail["index"], _data(detail, rng, position, content))
        self.invoke: Callable[[], None] = self._interpreter.invoke


def _data(detail: Any, rng: np.random.Generator, position: int, feed: Any) -> np.ndarray[Any, Any]:
    shape, dtype = detail["shape"], np.dtype(detail["dtype"])
    if feed is not None:
        names = sorted(feed.files, key=lambda name: (len(name), name))
        array: np.ndarray[Any, Any] = feed[names[position % len(names)]]
        return np.ascontiguousarray(array.reshape(shape).astype(dtype))
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape), dtype=dtype)
    if dtype == np.int8:
        return np.asarray(np.clip(np.rint(rng.normal(0, 30, shape)), -128, 127), dtype=np.int8)
    if dtype == np.uint8:
        return np.asarray(np.clip(np.rint(rng.normal(128, 30, shape)), 0, 255), dtype=np.uint8)
    if dtype == np.bool_:
        return np.asarray(rng.integers(0, 2, shape), dtype=np.bool_)
    return np.ones(shape, dtype)  # indices, sizes, token numbers: one is valid nearly everywhere


def burst(job: int, invoke: Callable[[], None], count: int) -> np.ndarray[Any, Any]:
    """Rows of one burst: a warm-up and then ``count`` invocations of one model."""
    total = 1 + count
    clocks = np.empty((total, 4), np.int64)
    thread_ns, wall_ns = time.thread_time_ns, time.perf_counter_ns
    for i in range(total):
        cpu_before, wall_before = thread_ns(), wall_ns()
        invoke()
        wall_after, cpu_after = wall_ns(), thread_ns()
        clocks[i] = cpu_before, wall_before, wall_after, cpu_after
    rows = np.zeros(total, RAW_DTYPE)
    rows["job"], rows["invoke"] = job, np.arange(total)
    rows["cpu_ns"], rows["wall_ns"] = clocks[:, 3] - clocks[:, 0], clocks[:, 2] - clocks[:, 1]
    rows["at_ns"] = clocks[:, 1]
    return rows


def pin(core: int | None) -> bool:
    """Binds this process to one core; False where the system has no such call or refuses."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        return False
    return True


def end_with_parent() -> None:
    """Has the system end this process when its parent dies, also in the middle of a round (Linux; elsewhere at its end)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes
    import signal

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


class Worker:
    """Answers requests; see the module's text for the conversation."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self.requests, self.replies = requests, replies
        self.models: list[LoadedModel | None] = []

    def serve(self) -> None:
        """Answers until the pipe closes or ``quit`` comes."""
        for line in self.requests:
            request = json.loads(line)
            if request["op"] == "load":
                self._load(request)
            elif request["op"] == "round":
                self._round(request)
            else:
                return

    def _reply(self, answer: dict[str, Any], payload: bytes = b"") -> None:
        self.replies.write(json.dumps(answer).encode() + b"\n" + payload)
        self.replies.flush()

    def _load(self, request: dict[str, Any]) -> None:
        pinned = pin(request["core"])
        self.models.clear()
        failed: dict[str, str] = {}
        expected_us: list[float | None] = []
        for index, wanted in enumerate(request["models"]):
            self._reply({"loading": index})
            try:
                model = LoadedModel(
                    wanted["path"],
                    delegate=wanted["delegate"],
                    threads=wanted["threads"],
                    seed=wanted["seed"],
                    feed=wanted.get("feed"),
                )
                rows = burst(index, model.invoke, 2)
                expected_us.append(float(rows["wall_ns"][1:].min()) / 1e3)
                self.models.append(model)
            except Exception as error:  # noqa: BLE001 (the runtime raises whatever its C++ side does; it is reported)
                failed[str(index)] = f"{type(error).__name__}: {error}"
                expected_us.append(None)
                self.models.append(None)
        self._reply({"loaded": len(self.models) - len(failed), "failed": failed, "expected_us": expected_us, "pinned": pinned})

    def _round(self, request: dict[str, Any]) -> None:
        failed: dict[str, str] = {}
        parts = []
        order: Sequence[int] = request["order"]
        for index, invokes in zip(order, request["invokes"], strict=True):
            model = self.models[index]
            if model is None:
                failed[str(index)] = "not loaded"
                continue
            try:
                parts.append(burst(index, model.invoke, invokes))
            except Exception as error:  # noqa: BLE001 (see _load)
                failed[str(index)] = f"{type(error).__name__}: {error}"
        held = io.BytesIO()
        np.save(held, np.concatenate(parts) if parts else np.zeros(0, RAW_DTYPE), allow_pickle=False)
        payload = held.getvalue()
        self._reply({"bytes": len(payload), "failed": failed}, payload)


def main() -> None:
    """Serves standard input; whatever the runtime prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    end_with_parent()
    gc.disable()  # a collection in the middle of an invocation would be counted as its time
    # The pipe's other end decides when this process ends, not a Ctrl-C that the whole terminal group gets.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(sys.stdin.buffer, replies).serve()
    os._exit(0)  # the runtime's teardown of hundreds of interpreters takes seconds and frees nothing that matters


if __name__ == "__main__":
    main()
