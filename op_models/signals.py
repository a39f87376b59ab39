"""How mean and spread of activations travel through layers, so that random networks stay in a sane range.

A :class:`Signal` holds, for each channel (last axis), the mean and the standard deviation that an activation has if the
network's input is noise. The laws here are those of independent normal variables: exact enough to scale weights, to
centre every layer as batch normalisation does, and to choose int8 ranges that neither saturate nor waste the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SPREAD = 4.0  # standard deviations that a range covers on either side
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, slots=True)
class Signal:
    """Mean and standard deviation a channel, and the bounds that an activation function sets."""

    mean: Array
    std: Array
    floor: float = -np.inf
    ceiling: float = np.inf

    @property
    def bounds(self) -> tuple[float, float]:
        """A range that holds nearly all values (and always 0, as int8 quantisation needs)."""
        low = max(float((self.mean - _SPREAD * self.std).min()), self.floor)
        high = min(float((self.mean + _SPREAD * self.std).max()), self.ceiling)
        return min(low, 0.0), max(high, 1e-6)

    @property
    def variance(self) -> Array:
        """Variance a channel."""
        return self.std**2


def noise(channels: int, mean: float = 0.0, std: float = 1.0) -> Signal:
    """The signal of an input with one mean and spread."""
    return Signal(np.full(channels, mean), np.full(channels, std))


def through(function: Callable[[Array], Array], signal: Signal, floor: float = -np.inf, ceiling: float = np.inf) -> Signal:
    """What a pointwise function makes of a normal signal (Gauss-Hermite quadrature)."""
    values = function(signal.mean[:, None] + signal.std[:, None] * _NODES)
    mean = values @ _WEIGHTS
    variance = (values**2) @ _WEIGHTS - mean**2
    return Signal(mean, np.sqrt(np.maximum(variance, 1e-12)), floor, ceiling)


def activated(signal: Signal, activation: str | None) -> Signal:
    """After a fused activation function (``None``, ``relu``, ``relu6``, ``relu_n1_to_1``, ``tanh``)."""
    match activation:
        case None | "none":
            return signal
        case "relu":
            return through(lambda x: np.maximum(x, 0.0), signal, floor=0.0)
        case "relu6":
            return through(lambda x: np.clip(x, 0.0, 6.0), signal, floor=0.0, ceiling=6.0)
        case "relu_n1_to_1":
            return through(lambda x: np.clip(x, -1.0, 1.0), signal, floor=-1.0, ceiling=1.0)
        case "tanh":
            return through(np.tanh, signal, floor=-1.0, ceiling=1.0)
    raise ValueError(f"no law for the activation {activation!r}")


def added(first: Signal, second: Signal, same: bool = False, sign: float = 1.0) -> Signal:
    """Sum (or difference) of two signals; ``same`` where both are one tensor."""
    mean = first.mean + sign * second.mean
    std = np.abs(1.0 + sign) * first.std if same else np.sqrt(first.variance + second.variance)
    return Signal(mean, np.maximum(std, 1e-6))


def multiplied(first: Signal, second: Signal) -> Signal:
    """Product of two independent signals."""
    mean = first.mean * second.mean
    square = (first.variance + first.mean**2) * (second.variance + second.mean**2)
    return Signal(mean, np.sqrt(np.maximum(square - mean**2, 1e-12)))


def pooled(signal: Signal, window: int, kind: str) -> Signal:
    """Average or maximum over ``window`` neighbours, which are taken to be half correlated."""
    if kind == "average":
        return Signal(signal.mean, signal.std / np.sqrt(np.sqrt(window)), signal.floor, signal.ceiling)
    # Mean of the largest of n normal values is about sqrt(2 ln n) - 0.4 standard deviations up.
    up = max(np.sqrt(2.0 * np.log(max(window, 2))) - 0.6, 0.0)
    return Signal(signal.mean + up * signal.std, 0.6 * signal.std, signal.floor, signal.ceiling)


def joined(signals: list[Signal]) -> Signal:
    """Concatenation along the channels."""
    return Signal(
        np.concatenate([signal.mean for signal in signals]),
        np.concatenate([signal.std for signal in signals]),
        min(signal.floor for signal in signals),
        max(signal.ceiling for signal in signals),
    )


def mixed(signal: Signal, channels: int) -> Signal:
    """The same values spread over other channels (reshape, transpose): every channel gets the overall figures."""
    mean = float(signal.mean.mean())
    std = float(np.sqrt((signal.variance + (signal.mean - mean) ** 2).mean()))
    return Signal(np.full(channels, mean), np.full(channels, std), signal.floor, signal.ceiling)
