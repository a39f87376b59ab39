"""Ranges of activations, observed by running a float32 network on noise: what calibration does before quantising."""

from __future__ import annotations

from math import floor, log10

import numpy as np
from ai_edge_litert import interpreter

from op_models.graph import parse

_SAMPLES = 2


def observed(data: bytes, seed: int = 0) -> dict[str, tuple[float, float]]:
    """(lowest, highest) value of every activation of a float32 model by tensor name, over a few inputs of normal noise.

    Rounded outwards to three digits, so that machines whose float kernels differ in the last place agree.
    """
    graph = parse(data, "network to calibrate")
    indices = [*graph.inputs, *(output for operator in graph.live for output in operator.outputs)]
    runner = interpreter.Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    runner.allocate_tensors()
    rng = np.random.default_rng(seed)
    bounds: dict[str, tuple[float, float]] = {}
    for _ in range(_SAMPLES):
        for index in graph.inputs:
            runner.set_tensor(index, rng.standard_normal(graph.tensors[index].shape, dtype=np.float32))
        runner.invoke()
        for index in indices:
            values = runner.get_tensor(index)
            name = graph.tensors[index].name
            low, high = bounds.get(name, (0.0, 0.0))
            bounds[name] = min(low, float(values.min())), max(high, float(values.max()))
    return {name: (-_rounded_up(-low), _rounded_up(high)) for name, (low, high) in bounds.items()}


def _rounded_up(value: float) -> float:
    """The next number of three digits, away from zero (values are not negative)."""
    if value <= 0.0:
        return 0.0
    step = 10.0 ** (floor(log10(value)) - 2)
    return float(np.ceil(value / step) * step)
