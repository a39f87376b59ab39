"""What a table has to beat: the thesis' method, MACs times a constant, and measuring the same networks twice.

Pure functions over arrays. ``fit`` is a boolean mask of shape (n,): the networks that constants are fitted on; the
others are scored. The thesis sums mean wall time over N of 12 operations over a cell's operations and adds a constant
for all else; MACs times a constant is the usual proxy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from luts.errors import RequestError
from luts.metrics import Floats, Score, Values, score

Mask = npt.NDArray[np.bool_]


def fit_mask(n: int, k: int, *, seed: int) -> Mask:
    """Which ``k`` of ``n`` networks to fit on, drawn by ``seed``; at least one must remain to be scored."""
    if k < 1:
        raise RequestError(f"constants cannot be fitted on {k} networks")
    if k >= n:
        raise RequestError(f"fitting on {k} of {n} networks leaves none to score")
    mask = np.zeros(n, dtype=bool)
    mask[np.random.default_rng(seed).choice(n, size=k, replace=False)] = True
    return mask


def thesis_sums(counts: npt.ArrayLike, op_us: npt.ArrayLike) -> Floats:
    """Sums of the genotype's operations: counts (n, m) times microseconds (m,), nothing else."""
    table, each = np.asarray(counts, dtype=np.float64), np.asarray(op_us, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != each.size:
        raise RequestError(f"counts of shape {table.shape} do not fit {each.size} operations")
    return np.asarray(table @ each, dtype=np.float64)


def with_constant_bias(sums_us: Values, measured_us: Values, fit: Mask) -> Floats:
    """Sums plus one constant: the mean of measured - sum over the networks to fit on."""
    sums, measured = _pair(sums_us, measured_us, fit)
    return sums + float((measured[fit] - sums[fit]).mean())


def thesis(counts: npt.ArrayLike, op_us: npt.ArrayLike, measured_us: Values, fit: Mask) -> Floats:
    """The thesis' prediction: sums over the genotype plus a constant bias.

    With mean wall time over N as ``op_us`` it is the method as published, with slopes of this project the same method
    with this project's statistic.
    """
    return with_constant_bias(thesis_sums(counts, op_us), measured_us, fit)


def proportional(sizes: Values, measured_us: Values, fit: Mask) -> Floats:
    """Sizes (MACs, parameters) times one constant: exp(mean(log(measured / size))) over the networks to fit on."""
    size, measured = _pair(sizes, measured_us, fit)
    if not ((size > 0).all() and (measured > 0).all()):
        raise RequestError("a proportional baseline needs positive sizes and measurements")
    return size * float(np.exp(np.log(measured[fit] / size[fit]).mean()))


def scaled(predicted_us: Values, measured_us: Values, fit: Mask) -> Floats:
    """Predictions times the one scale that :func:`luts.calibrate.fit` would choose from the networks to fit on."""
    return proportional(predicted_us, measured_us, fit)


def retest(first_us: Values, second_us: Values) -> Score:
    """The floor: how well one measurement of the networks predicts another of the same networks.

    No scale is fitted: drift between the two counts, as it counts for every predictor.
    """
    return score(first_us, second_us)


def _pair(values: Values, measured_us: Values, fit: Mask) -> tuple[Floats, Floats]:
    first: npt.NDArray[Any] = np.asarray(values, dtype=np.float64)
    second: npt.NDArray[Any] = np.asarray(measured_us, dtype=np.float64)
    if not first.shape == second.shape == fit.shape:
        raise RequestError(f"{first.size} values, {second.size} measurements and a mask of {fit.size} do not match")
    if not fit.any():
        raise RequestError("a baseline with a constant needs a network to fit it on")
    return first, second
