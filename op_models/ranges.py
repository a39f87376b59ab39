"""Ranges of activations, observed by running a float32 network on noise: what calibration does before quantising."""

from __future__ import annotations

from math import ceil, floor, log10

from op_models.feeds import Recorder, network_inputs
from op_models.graph import parse

_SAMPLES = 2


def observed(data: bytes, seed: int = 0) -> dict[str, tuple[float, float]]:
    """(lowest, highest) value of every activation of a float32 model by tensor name, over a few inputs of normal noise.

    Rounded outwards to three digits, so that machines whose float kernels differ in the last place agree. Raises
    :class:`~op_models.errors.UnsupportedModelError` where the model does not run.
    """
    graph = parse(data, "network to calibrate")
    indices = [*graph.inputs, *(output for operator in graph.live for output in operator.outputs)]
    recorder = Recorder(graph)
    bounds: dict[str, tuple[float, float]] = {}
    for sample in range(_SAMPLES):
        for index, values in recorder.run(network_inputs(graph, seed + sample), indices).items():
            name = graph.tensors[index].name
            low, high = bounds.get(name, (0.0, 0.0))
            bounds[name] = min(low, float(values.min())), max(high, float(values.max()))
    return {name: (-_rounded_up(-low), _rounded_up(high)) for name, (low, high) in bounds.items()}


def _rounded_up(value: float) -> float:
    """The next number of three digits, away from zero (values are not negative)."""
    if value <= 0.0:
        return 0.0
    step = 10.0 ** (floor(log10(value)) - 2)
    return ceil(value / step) * step
