"""How well predictions agree with measurements; NumPy only, every share a fraction of 1.

All take arrays of shape (n,) with n >= 1, measured values positive, and raise
:class:`~luts.errors.RequestError` for arrays that are empty, of different lengths or not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luts.errors import RequestError

Floats = npt.NDArray[np.float64]
Values = npt.NDArray[Any] | Sequence[float]


def _pair(a: Values, b: Values) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise RequestError(f"{first.size} values cannot be compared with {second.size}")
    if first.size == 0:
        raise RequestError("there is nothing to compare: no network was measured")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise RequestError("a value that is not finite cannot be compared")
    return first, second


def relative_errors(measured: Values, predicted: Values) -> Floats:
    """(predicted - measured) / measured of each network. Measured values must be positive."""
    truth, guess = _pair(measured, predicted)
    if not (truth > 0).all():
        raise RequestError("a measured value that is not positive has no relative error")
    return guess / truth - 1


def mape_frac(measured: Values, predicted: Values) -> float:
    """Mean absolute relative error."""
    return float(np.abs(relative_errors(measured, predicted)).mean())


def mdape_frac(measured: Values, predicted: Values) -> float:
    """Median absolute relative error."""
    return float(np.median(np.abs(relative_errors(measured, predicted))))


def max_ape_frac(measured: Values, predicted: Values) -> float:
    """Largest absolute relative error."""
    return float(np.abs(relative_errors(measured, predicted)).max())


def bias_frac(measured: Values, predicted: Values) -> float:
    """Mean relative error: below 0 where predictions are too low."""
    return float(relative_errors(measured, predicted).mean())


def rmse(measured: Values, predicted: Values) -> float:
    """Root of the mean squared error, in the unit of the values."""
    truth, guess = _pair(measured, predicted)
    return float(np.sqrt(np.mean((guess - truth) ** 2)))


def hits_frac(measured: Values, predicted: Values, within_frac: float) -> float:
    """Share of networks whose relative error is at most ``within_frac`` (0.05 for 5 %)."""
    return float((np.abs(relative_errors(measured, predicted)) <= within_frac).mean())


def ranks(values: Values) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def spearman(a: Values, b: Values) -> float:
    """Spearman's rank correlation with ties; NaN where one side is constant."""
    first, second = _pair(a, b)
    x, y = ranks(first), ranks(second)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def kendall(a: Values, b: Values) -> float:
    """Kendall's tau-b with ties in O(n log n) (Knight's method); NaN where one side is constant."""
    first, second = _pair(a, b)
    n = first.size
    order = np.lexsort((second, first))
    x, y = first[order], second[order]
    pairs = n * (n - 1) // 2
    tied_x, tied_y = _tied_pairs(x), _tied_pairs(np.sort(y))
    both = np.flatnonzero(np.concatenate(([True], (x[1:] != x[:-1]) | (y[1:] != y[:-1]), [True])))
    tied_both = _choose_two(np.diff(both))
    # Within equal x the y are ascending, so that they count as no inversion.
    discordant = _inversions(np.unique(y, return_inverse=True)[1])
    concordant_minus = pairs - tied_x - tied_y + tied_both - 2 * discordant
    size = float(np.sqrt(float(pairs - tied_x) * float(pairs - tied_y)))
    return concordant_minus / size if size > 0 else float("nan")


def _choose_two(counts: npt.NDArray[np.intp]) -> int:
    return int((counts.astype(np.int64) * (counts.astype(np.int64) - 1) // 2).sum())


def _tied_pairs(ordered: Floats) -> int:
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    return _choose_two(np.diff(edges))


def _inversions(values: npt.NDArray[np.intp]) -> int:
    """Pairs i < j with values[i] > values[j], by merging sorted runs of doubling length, all of a length at once."""
    n = values.size
    if n < 2:
        return 0
    span = 1 << (n - 1).bit_length()
    top = int(values.max()) + 1
    padded = np.full(span, top, dtype=np.int64)
    padded[:n] = values
    count, width = 0, 1
    while width < span:
        blocks = padded.reshape(-1, 2, width)
        # Lift each block above all earlier ones, so that one search serves all of them.
        lift = np.arange(blocks.shape[0], dtype=np.int64)[:, None] * (top + 1)
        left, right = blocks[:, 0] + lift, blocks[:, 1] + lift
        behind = np.searchsorted(left.ravel(), right.ravel(), side="right").reshape(right.shape)
        count += int(((np.arange(1, blocks.shape[0] + 1) * width)[:, None] - behind).sum())
        padded = np.sort(padded.reshape(-1, 2 * width), axis=1).ravel()
        width *= 2
    return count


def interval_coverage_frac(measured: Values, low: Values, high: Values) -> float:
    """Share of measured values inside their interval."""
    truth, lower = _pair(measured, low)
    upper = np.asarray(high, dtype=np.float64)
    return float(((truth >= lower) & (truth <= upper)).mean())


def median_half_width_frac(predicted: Values, low: Values, high: Values) -> float:
    """Median of half the interval's width over the predicted value."""
    middle, lower = _pair(predicted, low)
    upper = np.asarray(high, dtype=np.float64)
    return float(np.median((upper - lower) / 2 / np.abs(middle)))


@dataclass(frozen=True, slots=True)
class Score:
    """All metrics of one predictor on n networks; the interval's two are None for a predictor without intervals."""

    networks: int
    mape_frac: float
    mdape_frac: float
    max_ape_frac: float
    bias_frac: float
    rmse_us: float
    hits_1_frac: float
    hits_5_frac: float
    hits_10_frac: float
    spearman: float
    kendall: float
    interval_coverage_frac: float | None = None
    median_half_width_frac: float | None = None


def score(measured_us: Values, predicted_us: Values, low_us: Values | None = None, high_us: Values | None = None) -> Score:
    """Every metric at once, intervals included where both ends are given."""
    truth, guess = _pair(measured_us, predicted_us)
    return Score(
        networks=truth.size,
        mape_frac=mape_frac(truth, guess),
        mdape_frac=mdape_frac(truth, guess),
        max_ape_frac=max_ape_frac(truth, guess),
        bias_frac=bias_frac(truth, guess),
        rmse_us=rmse(truth, guess),
        hits_1_frac=hits_frac(truth, guess, 0.01),
        hits_5_frac=hits_frac(truth, guess, 0.05),
        hits_10_frac=hits_frac(truth, guess, 0.10),
        spearman=spearman(truth, guess),
        kendall=kendall(truth, guess),
        interval_coverage_frac=(None if low_us is None or high_us is None else interval_coverage_frac(truth, low_us, high_us)),
        median_half_width_frac=(None if low_us is None or high_us is None else median_half_width_frac(guess, low_us, high_us)),
    )
